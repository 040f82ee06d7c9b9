"""Workloads → oneDNN calls. Each op has one function; what oneDNN cannot say raises :class:`Unsupported` with the reason."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import cast

from wpk.core.pointwise import Input, Literal, inputs_of
from wpk.core.tensor import TensorType, channel_block
from wpk.core.workload import Workload
from wpk.providers.chain import Link, chain
from wpk.providers.dnnl import (
    ANY,
    BIAS,
    DST,
    MULTIPLE,
    SRC,
    SRC_1,
    WEIGHTS,
    Call,
    Memory,
    PostBinary,
    PostEltwise,
    Primitive,
    post_op_argument,
)

_DIRECT, _MAX, _AVG_INCLUDE, _AVG_EXCLUDE, _LRN_ACROSS, _SOFTMAX = 1, 511, 767, 1023, 2815, 196608
_BINARY = {"add": 131056, "mul": 131057, "max": 131058, "min": 131059, "div": 131060, "sub": 131061}
_RELU, _TANH, _ABS, _SQRT, _LINEAR, _LOGISTIC, _EXP, _SWISH, _LOG, _CLIP, _POW = (
    32,
    33,
    36,
    37,
    38,
    41,
    42,
    44,
    45,
    46,
    48,
)
_FLT_MAX = 3.4028234663852886e38

_UNARY = {
    "relu": PostEltwise(_RELU), "tanh": PostEltwise(_TANH), "abs": PostEltwise(_ABS), "sqrt": PostEltwise(_SQRT),
    "sigmoid": PostEltwise(_LOGISTIC), "exp": PostEltwise(_EXP), "log": PostEltwise(_LOG), "neg": PostEltwise(_LINEAR, -1.0),
    "swish": PostEltwise(_SWISH, 1.0), "recip": PostEltwise(_POW, 1.0, -1.0),
}  # fmt: skip


class Unsupported(Exception):
    """oneDNN cannot compute the workload; the message says why."""


def lower(workload: Workload) -> tuple[Call, ...]:
    """The calls that compute ``workload``, each a different primitive; weights are laid out :data:`ANY`. Raises Unsupported."""
    if workload.op not in _LOWER:
        raise Unsupported(f"oneDNN has no {workload.op}")
    if any(t.dtype != "float32" for t in (*workload.inputs, *workload.outputs)):
        raise Unsupported("only float32")
    if any(not 1 <= len(t.shape) <= 6 or 0 in t.shape for t in workload.inputs):
        raise Unsupported("tensors of 1 to 6 dimensions, not empty")
    return _LOWER[workload.op](workload)


def layout_tag(t: TensorType) -> str:
    """The library's tag of a tensor's layout: ``abcd``, ``acdb``, ``aBcd16b``."""
    letters = "abcdef"[: len(t.shape)]
    if t.layout == "ROW":
        return letters
    if t.layout == "NHWC":
        return f"a{letters[2:]}b"
    return f"aB{letters[2:]}{channel_block(t.layout)}b"


def _conv(w: Workload) -> tuple[Call, ...]:
    x, kernel, y = w.inputs[0], w.inputs[1], w.outputs[0]
    if len(x.shape) != 4:
        raise Unsupported("only two-dimensional convolutions")
    group, (oc, ic, *window) = int(cast(int, w.attr("group"))), kernel.shape
    shape = (oc, ic, *window) if group == 1 else (group, oc // group, ic, *window)
    memories = [_operand(w, SRC, 0), Memory(WEIGHTS, 1, shape, _weights_tag(w, 1, len(shape))), _result(w)]
    pads = _ints(w, "pads")
    params = (*_ints(w, "strides"), *(d - 1 for d in _ints(w, "dilations")), *pads)
    return (
        _with_epilogue(
            w, Primitive.CONVOLUTION, _DIRECT, memories, params, (1, oc, *[1] * (len(y.shape) - 2))
        ),
    )


def _gemm(w: Workload) -> tuple[Call, ...]:
    (m, n), a = w.outputs[0].shape, w.inputs[0]
    k = prod(a.shape) // m
    source = Memory(SRC, 0, (m, k), "ba" if w.attr("trans_a") else "ab")
    transposed = bool(w.attr("trans_b"))
    plain = Memory(WEIGHTS, 1, (k, n), "ba" if transposed else "ab")
    if 1 not in w.constants:
        return (_with_epilogue(w, Primitive.MATMUL, 0, [source, plain, _result(w)], (), (1, n)),)
    matmul = [source, Memory(WEIGHTS, 1, (k, n), ANY), _result(w)]
    inner = [source, Memory(WEIGHTS, 1, (n, k), ANY), _result(w)]
    return (
        _with_epilogue(w, Primitive.INNER_PRODUCT, 0, inner, (), (1, n)),
        _with_epilogue(w, Primitive.MATMUL, 0, matmul, (), (1, n)),
    )


def _matmul(w: Workload) -> tuple[Call, ...]:
    rank = len(w.outputs[0].shape)
    if min(len(t.shape) for t in w.inputs[:2]) < 2:
        raise Unsupported("matmul of a vector")
    weights = _operand(w, WEIGHTS, 1, rank)
    if 1 in w.constants and rank == 2:
        weights = Memory(WEIGHTS, 1, weights.shape, ANY)
    memories = [_operand(w, SRC, 0, rank), weights, _result(w)]
    n = w.outputs[0].shape[-1]
    return (_with_epilogue(w, Primitive.MATMUL, 0, memories, (), (*[1] * (rank - 1), n)),)


def _pool(w: Workload) -> tuple[Call, ...]:
    x, y = w.inputs[0], w.outputs[0]
    if len(x.shape) != 4:
        raise Unsupported("only two-dimensional pooling")
    kernel, strides, dilations, pads = (_ints(w, name) for name in ("kernel", "strides", "dilations", "pads"))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    ends = [
        (o - 1) * s + r - i - p
        for o, s, r, i, p in zip(y.shape[2:], strides, reach, x.shape[2:], pads[:2], strict=True)
    ]
    include = w.attr("kind") == "avg" and bool(w.attr("count_include_pad"))
    if include and any(end > pad for end, pad in zip(ends, pads[2:], strict=True)):
        raise Unsupported("average that counts padding, with a window beyond it")
    algorithm = _MAX if w.attr("kind") == "max" else _AVG_INCLUDE if include else _AVG_EXCLUDE
    right = [max(pad, end) for pad, end in zip(pads[2:], ends, strict=True)]
    params = (*strides, *kernel, *(d - 1 for d in dilations), *pads[:2], *right)
    return (_with_epilogue(w, Primitive.POOLING, algorithm, [_operand(w, SRC, 0), _result(w)], params),)


def _lrn(w: Workload) -> tuple[Call, ...]:
    if w.epilogue is not None or int(cast(int, w.attr("size"))) % 2 == 0:
        raise Unsupported("LRN with an epilogue or an even window")
    params = (
        int(cast(int, w.attr("size"))),
        *(float(cast(float, w.attr(a))) for a in ("alpha", "beta", "bias")),
    )
    return (Call(Primitive.LRN, _LRN_ACROSS, (_operand(w, SRC, 0), _result(w)), params),)


def _softmax(w: Workload) -> tuple[Call, ...]:
    axis = int(cast(int, w.attr("axis"))) % len(w.inputs[0].shape)
    return (_with_epilogue(w, Primitive.SOFTMAX, _SOFTMAX, [_operand(w, SRC, 0), _result(w)], (axis,)),)


def _eltwise(w: Workload) -> tuple[Call, ...]:
    start, links = _eltwise_chain(w)
    memories = [_operand(w, SRC, start.index), _result(w)]
    head, rest = links[0], links[1:]
    if isinstance(head.other, Input):
        memories.append(_binary_operand(w, SRC_1, head))
        return (_with_links(w, Primitive.BINARY, _BINARY[head.op], memories, (), rest),)
    op = _eltwise_post_op(head)
    return (_with_links(w, Primitive.ELTWISE, op.algorithm, memories, (op.alpha, op.beta), rest),)


def _eltwise_chain(w: Workload) -> tuple[Input, tuple[Link, ...]]:
    """An operand of the output's shape over which the expression is a chain, and that chain."""
    for index in inputs_of(w.epilogue) if w.epilogue is not None else ():
        links = chain(w.epilogue, Input(index))
        if links and w.inputs[index].shape == w.outputs[0].shape:
            return Input(index), links
    raise Unsupported("the expression is not a chain of operators over one operand of the output's shape")


def _transpose(w: Workload) -> tuple[Call, ...]:
    x, y = w.inputs[0], w.outputs[0]
    if x.layout != "ROW" or y.layout != "ROW" or w.epilogue is not None:
        raise Unsupported("transpose of a blocked layout, or with an epilogue")
    # Output axis i is input axis perm[i]: seen with the output's axes, the source's memory order is perm inverted.
    perm = _ints(w, "perm")
    tag = "".join("abcdef"[perm.index(axis)] for axis in range(len(perm)))
    return (Call(Primitive.REORDER, 0, (Memory(SRC, 0, y.shape, tag), _result(w))),)


def _convert(w: Workload) -> tuple[Call, ...]:
    return (Call(Primitive.REORDER, 0, (_operand(w, SRC, 0), _result(w))),)


def _concat(w: Workload) -> tuple[Call, ...]:
    if w.epilogue is not None:
        raise Unsupported("concat with an epilogue")
    axis = int(cast(int, w.attr("axis"))) % len(w.outputs[0].shape)
    sources = [_operand(w, MULTIPLE + i, i) for i in range(len(w.inputs))]
    return (Call(Primitive.CONCAT, 0, (*sources, _result(w)), (axis,)),)


_LOWER: dict[str, Callable[[Workload], tuple[Call, ...]]] = {
    "conv": _conv, "gemm": _gemm, "matmul": _matmul, "pool": _pool, "lrn": _lrn, "softmax": _softmax,
    "eltwise": _eltwise, "transpose": _transpose, "convert": _convert, "concat": _concat,
}  # fmt: skip


def _with_epilogue(
    w: Workload, primitive: Primitive, algorithm: int, memories: list[Memory],
    params: tuple[int | float, ...], bias: tuple[int, ...] = (),
) -> Call:  # fmt: skip
    """The anchor's call with the workload's epilogue as bias (of shape ``bias``) and post-ops."""
    links = chain(w.epilogue)
    if links is None:
        raise Unsupported("the epilogue is not a chain of operators")
    head = links[0] if links else None
    if bias and head is not None and head.op == "add" and isinstance(head.other, Input):
        operand = w.inputs[head.other.index]
        if _padded(operand.shape, len(bias)) == bias and operand.layout == "ROW":
            # An inner product or convolution takes its bias as a vector, a matmul as a broadcast operand.
            shape = bias if primitive == Primitive.MATMUL else (max(bias),)
            memories.append(Memory(BIAS, head.other.index, shape, "abcdef"[: len(shape)]))
            links = links[1:]
    return _with_links(w, primitive, algorithm, memories, params, links)


def _with_links(
    w: Workload, primitive: Primitive, algorithm: int, memories: list[Memory],
    params: tuple[int | float, ...], links: tuple[Link, ...],
) -> Call:  # fmt: skip
    post_ops: list[PostEltwise | PostBinary] = []
    for link in links:
        if isinstance(link.other, Input):
            memories.append(_binary_operand(w, post_op_argument(len(post_ops)), link))
            post_ops.append(PostBinary(_BINARY[link.op], len(memories) - 1))
        else:
            post_ops.append(_eltwise_post_op(link))
    return Call(primitive, algorithm, tuple(memories), params, tuple(post_ops))


def _binary_operand(w: Workload, arg: int, link: Link) -> Memory:
    if link.op not in _BINARY or link.reversed or not isinstance(link.other, Input):
        raise Unsupported(f"epilogue operator {link.op} with a tensor operand")
    return _operand(w, arg, link.other.index, len(w.outputs[0].shape))


def _eltwise_post_op(link: Link) -> PostEltwise:
    if link.other is None:
        if link.op not in _UNARY:
            raise Unsupported(f"epilogue operator {link.op}")
        return _UNARY[link.op]
    c = cast(Literal, link.other).value
    match link.op, link.reversed:
        case "add", _:
            return PostEltwise(_LINEAR, 1.0, c)
        case "mul", _:
            return PostEltwise(_LINEAR, c, 0.0)
        case "sub", False:
            return PostEltwise(_LINEAR, 1.0, -c)
        case "sub", True:
            return PostEltwise(_LINEAR, -1.0, c)
        case "div", False:
            return PostEltwise(_LINEAR, 1.0 / c, 0.0)
        case "div", True:
            return PostEltwise(_POW, c, -1.0)
        case "pow", False:
            return PostEltwise(_POW, 1.0, c)
        case "max", _:
            return PostEltwise(_CLIP, c, _FLT_MAX)
        case "min", _:
            return PostEltwise(_CLIP, -_FLT_MAX, c)
    raise Unsupported(f"epilogue operator {link.op} with a literal")


def _operand(w: Workload, arg: int, index: int, rank: int | None = None) -> Memory:
    """Input ``index`` of the workload, its shape padded on the left to ``rank``."""
    t = w.inputs[index]
    shape = _padded(t.shape, rank or len(t.shape))
    if len(shape) != len(t.shape) and t.layout != "ROW":
        raise Unsupported("a broadcast operand in a blocked layout")
    tag = layout_tag(t) if len(shape) == len(t.shape) else "abcdef"[: len(shape)]
    return Memory(arg, index, shape, tag)


def _result(w: Workload) -> Memory:
    return Memory(DST, len(w.inputs), w.outputs[0].shape, layout_tag(w.outputs[0]))


def _weights_tag(w: Workload, index: int, rank: int) -> str:
    return ANY if index in w.constants else "abcdef"[:rank]


def _padded(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (*[1] * (rank - len(shape)), *shape)


def _ints(w: Workload, name: str) -> tuple[int, ...]:
    return tuple(int(v) for v in cast("tuple[int, ...]", w.attr(name)))
