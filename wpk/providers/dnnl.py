"""oneDNN calls as plain data, and the questions to ask the library when compiling.

A :class:`Call` describes one primitive. :func:`encode` turns it into the integers that ``runtime/native/onednn_adapter.c``
reads; :class:`Library` asks the same library, through ctypes, which implementations it has for a call, how it wants the
operands laid out whose tag is :data:`ANY`, and packs constants accordingly.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

ANY = "any"
VERSION = 1

SRC, SRC_1, DST, WEIGHTS, BIAS, MULTIPLE = 1, 2, 17, 33, 41, 1024
_POST_OP = 1 << 15  # DNNL_ARG_ATTR_MULTIPLE_POST_OP(i) is (i + 1) of these, with SRC_1
_CPU, _FORWARD, _F32, _TAG_ANY, _SCRATCHPAD_USER = 1, 96, 3, 1, 1
_QUERY_IMPL, _QUERY_STRIDES, _QUERY_EXEC_ARG, _QUERY_NBLKS, _QUERY_BLKS, _QUERY_IDXS = (
    8,
    14,
    255,
    263,
    264,
    265,
)


class Primitive(IntEnum):
    """What a call computes; the numbers are the adapter's."""

    CONVOLUTION = 1
    INNER_PRODUCT = 2
    MATMUL = 3
    POOLING = 4
    LRN = 5
    SOFTMAX = 6
    ELTWISE = 7
    BINARY = 8
    REORDER = 9
    CONCAT = 10


class DnnlError(Exception):
    """The library refuses a call; the message says which and why."""


@dataclass(frozen=True)
class Memory:
    """A float32 operand: oneDNN's argument number, position among the kernel's args, shape, layout tag.

    A tag is ``aBcd16b`` and the like, or :data:`ANY` for the library's choice.
    """

    arg: int
    position: int
    shape: tuple[int, ...]
    tag: str


@dataclass(frozen=True)
class PostEltwise:
    """An elementwise function of the result: algorithm and its two parameters."""

    algorithm: int
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class PostBinary:
    """A binary operator of the result and the operand ``memory`` of the call (an index into its memories)."""

    algorithm: int
    memory: int


@dataclass(frozen=True)
class Call:
    """One primitive. ``params`` in the order of the adapter's ``primitive_desc``; floats are those declared real there."""

    primitive: Primitive
    algorithm: int
    memories: tuple[Memory, ...]
    params: tuple[int | float, ...] = ()
    post_ops: tuple[PostEltwise | PostBinary, ...] = ()
    implementation: str = ""

    def with_tag(self, index: int, tag: str) -> Call:
        """The same call with memory ``index`` laid out as ``tag``."""
        memories = (
            *self.memories[:index],
            replace(self.memories[index], tag=tag),
            *self.memories[index + 1 :],
        )
        return replace(self, memories=memories)


def post_op_argument(index: int) -> int:
    """oneDNN's argument number of the operand of post-op ``index``."""
    return _POST_OP * (index + 1) | SRC_1


def encode(call: Call) -> list[int]:
    """The call as the adapter reads it. No memory may be :data:`ANY`."""
    head = [
        VERSION,
        int(call.primitive),
        call.algorithm,
        len(call.memories),
        len(call.params),
        len(call.post_ops),
    ]
    memories = [x for m in call.memories for x in _encode_memory(m)]
    params = [_bits(p) if isinstance(p, float) else p for p in call.params]
    post_ops = [x for op in call.post_ops for x in _encode_post_op(op)]
    return [*head, *memories, *params, *post_ops, *_text(call.implementation)]


def _encode_memory(m: Memory) -> list[int]:
    if m.tag == ANY:
        raise ValueError(f"operand {m.arg} has no layout")
    return [m.arg, m.position, _F32, len(m.shape), *m.shape, *_text(m.tag)]


def _encode_post_op(op: PostEltwise | PostBinary) -> list[int]:
    if isinstance(op, PostEltwise):
        return [0, op.algorithm, _bits(op.alpha), _bits(op.beta)]
    return [1, op.algorithm, op.memory]


def _text(text: str) -> list[int]:
    return [len(text), *text.encode("ascii")]


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


@lru_cache(maxsize=2)
def open_library(path: Path) -> Library:
    """The library at ``path``, opened once. Raises DnnlError when it cannot be loaded or is not oneDNN 3."""
    return Library(path)


class Library:
    """oneDNN through ctypes, for compile time only; ``version`` as ``3.2.0``."""

    def __init__(self, path: Path) -> None:
        try:
            self._lib = ctypes.CDLL(str(path))
        except OSError as error:
            raise DnnlError(f"cannot load {path}: {error}") from error
        self._lib.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
        self._lib.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        self._lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        numbers = tuple(self._lib.dnnl_version().contents)
        self.version = ".".join(map(str, numbers))
        if numbers[0] != 3:
            raise DnnlError(f"expected oneDNN 3.x, found {self.version} at {path}")
        self._engine = self._new("engine_create", _CPU, ctypes.c_size_t(0))
        self._stream = self._new("stream_create", self._engine, 1)

    def implementations(self, call: Call, threads: int) -> list[str]:
        """The library's implementations of ``call``, its preference first. Raises DnnlError if it refuses."""
        with self._primitive_desc(call, threads) as pd:
            names = [self._name(pd)]
            while self._lib.dnnl_primitive_desc_next_impl(pd) == 0:
                names.append(self._name(pd))
        return list(dict.fromkeys(names))

    def resolve(self, call: Call, threads: int) -> Call:
        """``call`` with every :data:`ANY` layout replaced by what ``call.implementation`` wants. Raises DnnlError."""
        wanted = [i for i, m in enumerate(call.memories) if m.tag == ANY]
        with self._primitive_desc(call, threads) as pd:
            while call.implementation and self._name(pd) != call.implementation:
                if self._lib.dnnl_primitive_desc_next_impl(pd):
                    raise DnnlError(f"no implementation {call.implementation}")
            for i in wanted:
                md = self._lib.dnnl_primitive_desc_query_md(pd, _QUERY_EXEC_ARG, call.memories[i].arg)
                call = call.with_tag(i, self._tag(call.memories[i].shape, md))
        return call

    def reorder(self, array: np.ndarray, source: Memory, target: Memory) -> np.ndarray:
        """``array`` (laid out as ``source``) copied to ``target``'s layout, as flat float32 with the layout's padding."""
        data = np.ascontiguousarray(array, np.float32)
        with self._memory_desc(source) as src, self._memory_desc(target) as dst:
            out = np.zeros(self._lib.dnnl_memory_desc_get_size(dst) // 4, np.float32)
            pd = self._new("reorder_primitive_desc_create", src, self._engine, dst, self._engine, None)
            primitive = self._new("primitive_create", pd)
            memories = [self._memory(src, data), self._memory(dst, out)]
            args = (_ExecArg * 2)(_ExecArg(SRC, memories[0]), _ExecArg(DST, memories[1]))
            self._check(
                "primitive_execute", self._lib.dnnl_primitive_execute(primitive, self._stream, 2, args)
            )
            self._check("stream_wait", self._lib.dnnl_stream_wait(self._stream))
            for memory in memories:
                self._lib.dnnl_memory_destroy(memory)
            self._lib.dnnl_primitive_destroy(primitive)
            self._lib.dnnl_primitive_desc_destroy(pd)
        return out

    def _new(self, function: str, *args: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._check(function, getattr(self._lib, f"dnnl_{function}")(ctypes.byref(handle), *args))
        return handle

    @staticmethod
    def _check(function: str, status: int) -> None:
        if status:
            why = {2: "invalid arguments", 3: "not implemented"}.get(status, f"status {status}")
            raise DnnlError(f"oneDNN {function}: {why}")

    def _memory(self, md: ctypes.c_void_p, array: np.ndarray) -> ctypes.c_void_p:
        return self._new("memory_create", md, self._engine, ctypes.c_void_p(array.ctypes.data))

    def _name(self, pd: ctypes.c_void_p) -> str:
        name = ctypes.c_char_p()
        self._check("query", self._lib.dnnl_primitive_desc_query(pd, _QUERY_IMPL, 0, ctypes.byref(name)))
        return (name.value or b"").decode()

    @contextmanager
    def _memory_desc(self, memory: Memory) -> Iterator[ctypes.c_void_p]:
        dims = (ctypes.c_int64 * len(memory.shape))(*memory.shape)
        head = (len(memory.shape), dims, _F32)
        if memory.tag == ANY:
            md = self._new("memory_desc_create_with_tag", *head, _TAG_ANY)
        else:
            md = self._new("memory_desc_create_with_string_tag", *head, memory.tag.encode())
        try:
            yield md
        finally:
            self._lib.dnnl_memory_desc_destroy(md)

    @contextmanager
    def _primitive_desc(self, call: Call, threads: int) -> Iterator[ctypes.c_void_p]:
        made: list[Any] = [self._memory_desc(m) for m in call.memories]
        mds: list[ctypes.c_void_p] = []
        attr = self._new("primitive_attr_create")
        try:
            mds.extend(m.__enter__() for m in made)
            self._set_post_ops(attr, call, mds)
            with self._threads(threads):
                pd = self._create_desc(call, mds, attr)
            yield pd
            self._lib.dnnl_primitive_desc_destroy(pd)
        finally:
            for m in made[: len(mds)]:
                m.__exit__(None, None, None)
            self._lib.dnnl_primitive_attr_destroy(attr)

    def _set_post_ops(self, attr: ctypes.c_void_p, call: Call, mds: Sequence[ctypes.c_void_p]) -> None:
        ops = self._new("post_ops_create")
        for op in call.post_ops:
            if isinstance(op, PostEltwise):
                parameters = (op.algorithm, ctypes.c_float(op.alpha), ctypes.c_float(op.beta))
                self._check("post-op", self._lib.dnnl_post_ops_append_eltwise(ops, *parameters))
            else:
                self._check(
                    "post-op", self._lib.dnnl_post_ops_append_binary(ops, op.algorithm, mds[op.memory])
                )
        self._check("post-ops", self._lib.dnnl_primitive_attr_set_post_ops(attr, ops))
        self._lib.dnnl_post_ops_destroy(ops)
        self._check("scratchpad", self._lib.dnnl_primitive_attr_set_scratchpad_mode(attr, _SCRATCHPAD_USER))

    @contextmanager
    def _threads(self, threads: int) -> Iterator[None]:
        """Implementations and layouts depend on how many threads OpenMP says it has."""
        before = self._lib.omp_get_max_threads()
        self._lib.omp_set_num_threads(threads)
        try:
            yield
        finally:
            self._lib.omp_set_num_threads(before)

    def _create_desc(
        self, call: Call, mds: Sequence[ctypes.c_void_p], attr: ctypes.c_void_p
    ) -> ctypes.c_void_p:
        by_arg = {m.arg: md for m, md in zip(call.memories, mds, strict=True)}
        src, dst, bias = by_arg.get(SRC), by_arg[DST], by_arg.get(BIAS)
        weights, e, p = by_arg.get(WEIGHTS), self._engine, call.params
        unary = (e, _FORWARD, call.algorithm, src, dst)
        match call.primitive:
            case Primitive.CONVOLUTION:
                pairs = [_dims(p[i : i + 2]) for i in range(0, 8, 2)]
                anchor = (e, _FORWARD, call.algorithm, src, weights, bias, dst)
                return self._new("convolution_forward_primitive_desc_create", *anchor, *pairs, attr)
            case Primitive.INNER_PRODUCT:
                operands = (src, weights, bias, dst)
                return self._new("inner_product_forward_primitive_desc_create", e, _FORWARD, *operands, attr)
            case Primitive.MATMUL:
                return self._new("matmul_primitive_desc_create", e, src, weights, bias, dst, attr)
            case Primitive.POOLING:
                pairs = [_dims(p[i : i + 2]) for i in range(0, 10, 2)]
                return self._new("pooling_forward_primitive_desc_create", *unary, *pairs, attr)
            case Primitive.LRN:
                size, reals = ctypes.c_int64(int(p[0])), map(ctypes.c_float, p[1:])
                return self._new("lrn_forward_primitive_desc_create", *unary, size, *reals, attr)
            case Primitive.SOFTMAX:
                return self._new("softmax_forward_primitive_desc_create", *unary, int(p[0]), attr)
            case Primitive.ELTWISE:
                return self._new(
                    "eltwise_forward_primitive_desc_create", *unary, *map(ctypes.c_float, p), attr
                )
            case Primitive.BINARY:
                return self._new(
                    "binary_primitive_desc_create", e, call.algorithm, src, by_arg[SRC_1], dst, attr
                )
            case Primitive.REORDER:
                return self._new("reorder_primitive_desc_create", src, e, dst, e, attr)
            case Primitive.CONCAT:
                sources = [by_arg[MULTIPLE + i] for i in range(len(by_arg) - 1)]
                array = (ctypes.c_void_p * len(sources))(*sources)
                return self._new("concat_primitive_desc_create", e, dst, len(sources), int(p[0]), array, attr)

    def _tag(self, shape: tuple[int, ...], md: int) -> str:
        """A layout as a tag: letters by falling stride, upper case where blocked, then the inner blocks."""
        strides = self._array(md, _QUERY_STRIDES, len(shape))
        count = ctypes.c_int()
        self._check(
            "query", self._lib.dnnl_memory_desc_query(ctypes.c_void_p(md), _QUERY_NBLKS, ctypes.byref(count))
        )
        blocks = self._array(md, _QUERY_BLKS, count.value)
        dims = self._array(md, _QUERY_IDXS, count.value)
        order = sorted(range(len(shape)), key=lambda i: (-strides[i], i))
        outer = "".join(chr(ord("A" if i in dims else "a") + i) for i in order)
        tag = outer + "".join(f"{b}{chr(ord('a') + d)}" for b, d in zip(blocks, dims, strict=True))
        with self._memory_desc(Memory(0, 0, shape, tag)) as again:
            if not self._lib.dnnl_memory_desc_equal(again, ctypes.c_void_p(md)):
                raise DnnlError(f"layout {tag} of {shape} does not describe all of the library's own")
        return tag

    def _array(self, md: int, query: int, n: int) -> list[int]:
        pointer = ctypes.POINTER(ctypes.c_int64)()
        self._check(
            "query", self._lib.dnnl_memory_desc_query(ctypes.c_void_p(md), query, ctypes.byref(pointer))
        )
        return [pointer[i] for i in range(n)]


class _ExecArg(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_int), ("memory", ctypes.c_void_p)]


def _dims(values: Sequence[int | float]) -> Any:
    return (ctypes.c_int64 * len(values))(*map(int, values))
