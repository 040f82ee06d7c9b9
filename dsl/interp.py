"""The interpreter: the meaning of every kernel. It is slow, checks every access, and is the oracle of the printers.

A kernel is turned into a Python function and run. Memory is one Python list per buffer, ``None`` where nothing was
written yet; float32 values are ``np.float32``, indices and integers are Python ints, so each operation rounds as the
dtype says. ``float16`` and ``bfloat16`` are storage only: they compute as float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from wpk.core.errors import InternalError
from wpk.dsl.fetch import expand as expand_fetch
from wpk.dsl.instr import expand
from wpk.dsl.ir import (
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Cast,
    Commit,
    Const,
    Expr,
    Fetch,
    For,
    If,
    Invoke,
    Kernel,
    Load,
    Prefetch,
    Select,
    Settle,
    Stmt,
    Store,
    Unary,
    Var,
)

_F32, _F64 = np.float32, np.float64
_FLOATS: dict[str, Callable[[Any], Any]] = {"float32": _F32, "float64": _F64, "float16": _F32, "bfloat16": _F32}

#: CPython allows 20 loops inside one another in one function; deeper nests continue in an inner function.
_DEEP = 12


def run(kernel: Kernel, args: dict[str, np.ndarray]) -> None:
    """Run ``kernel`` on ``args`` (parameter name → array of its physical shape, any strides); writes the ``out`` arrays.

    bfloat16 arrays are uint16 bit patterns. Elements of outputs that the kernel never writes keep their content.
    Raises InternalError on an index out of range, a read of an element never written, or a wrong argument.
    """
    memory = {p.name: _memory(p, args) for p in kernel.params}
    namespace: dict[str, Any] = {"_np": np, "_fresh": _fresh, **_FUNCTIONS}
    source = _Source(namespace)
    text = source.kernel(kernel)
    exec(compile(text, f"<{kernel.name}>", "exec"), namespace)
    with np.errstate(all="ignore"):
        namespace["_kernel"](memory)
    for p in kernel.params:
        if p.access == "out":
            _write_back(p, memory[p.name], args[p.name])


def _memory(buffer: Buffer, args: dict[str, np.ndarray]) -> list[Any]:
    if buffer.values is not None:
        return _fresh(buffer)
    if buffer.name not in args:
        raise InternalError(f"no argument for parameter {buffer.name}")
    array = args[buffer.name]
    stored = "uint16" if buffer.dtype == "bfloat16" else buffer.dtype
    if array.shape != buffer.shape or array.dtype != np.dtype(stored):
        raise InternalError(
            f"argument {buffer.name}: expected {stored}{buffer.shape}, found {array.dtype}{array.shape}"
        )
    if buffer.access == "out":
        return [None] * prod(buffer.shape)
    return _decode(np.ascontiguousarray(array).ravel(), buffer.dtype)


def _decode(flat: np.ndarray, dtype: str) -> list[Any]:
    if dtype == "bfloat16":
        return list((flat.astype(np.uint32) << 16).view(np.float32))
    if dtype in ("float32", "float16"):
        return list(flat.astype(np.float32))
    return list(flat) if dtype == "float64" else list(flat.tolist())


def _encode(values: list[Any], dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = np.array(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if dtype.startswith("float"):
        return np.array(values, dtype)
    wrapped = [int(v) & 0xFFFFFFFFFFFFFFFF for v in values]
    return np.array(wrapped, np.uint64).astype(dtype)


def _write_back(buffer: Buffer, values: list[Any], array: np.ndarray) -> None:
    written = np.array([v is not None for v in values], bool)
    flat = array.flatten()
    flat[written] = _encode([v for v in values if v is not None], buffer.dtype)
    array[...] = flat.reshape(array.shape)


def _fresh(buffer: Buffer) -> list[Any]:
    """New storage: undefined, or the values of a constant table."""
    if buffer.values is None:
        return [None] * prod(buffer.shape)
    convert = _FLOATS.get(buffer.dtype, int)
    return [convert(v) for v in buffer.values]


def _accessors(buffer: Buffer, data: list[Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Checked ``load(*indices)`` and ``store(op, value, *indices)`` of one storage."""
    name, shape = buffer.name, buffer.shape
    narrow = _narrow(buffer.dtype)

    def at(indices: tuple[int, ...]) -> int:
        flat = 0
        for i, n in zip(indices, shape, strict=True):
            if not 0 <= i < n:
                raise InternalError(f"index {indices} is out of range of {name}{shape}")
            flat = flat * n + i
        return flat

    def load(*indices: int) -> Any:
        value = data[at(indices)]
        if value is None:
            raise InternalError(f"{name}{indices} is read before it is written")
        return value

    def store(op: str, value: Any, *indices: int) -> None:
        flat = at(indices)
        if op:
            value = _REDUCE[op](load(*indices), value)
        data[flat] = narrow(value)

    return load, store


def _narrow(dtype: str) -> Callable[[Any], Any]:
    """What storing in an element of ``dtype`` does to a value."""
    if dtype in ("float32", "float64"):
        return _FLOATS[dtype]
    if dtype == "bool":
        return bool
    if dtype == "int64":
        return int
    return lambda v: _decode(_encode([v], dtype), dtype)[0]


_REDUCE: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "max": lambda a, b: a if a > b else b,
    "min": lambda a, b: a if a < b else b,
}


def _cast(dtype: str, value: Any) -> Any:
    if dtype in ("float16", "bfloat16"):
        return _narrow(dtype)(value)
    if dtype in _FLOATS:
        return _FLOATS[dtype](value)
    if dtype == "bool":
        return bool(value)
    return _narrow(dtype)(int(value))


def _wide(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A float function computed in float64 and rounded to the dtype of its argument."""

    def narrowed(value: Any) -> Any:
        kind = _F64 if isinstance(value, np.float64) else _F32
        return kind(function(_F64(value)))

    return narrowed


def _pow(a: Any, b: Any) -> Any:
    kind = _F64 if isinstance(a, np.float64) else _F32
    return kind(np.power(_F64(a), _F64(b)))


def _divide(a: Any, b: Any) -> Any:
    """True division; a Python int beside a float takes the float's type."""
    kind = _F64 if isinstance(a, np.float64) or isinstance(b, np.float64) else _F32
    return kind(a) / kind(b)


_FUNCTIONS: dict[str, Any] = {
    "_exp": _wide(np.exp),
    "_log": _wide(np.log),
    "_sqrt": _wide(np.sqrt),
    "_rsqrt": _wide(lambda v: 1.0 / np.sqrt(v)),
    "_recip": _wide(lambda v: _F64(1.0) / v),
    "_erf": _wide(lambda v: math.erf(v)),
    "_tanh": _wide(np.tanh),
    "_sigmoid": _wide(lambda v: 1.0 / (1.0 + np.exp(-v))),
    "_floor": _wide(np.floor),
    "_ceil": _wide(np.ceil),
    "_pow": _pow,
    "_div": _divide,
    "_cast": _cast,
    "_max": _REDUCE["max"],
    "_min": _REDUCE["min"],
    "_accessors": _accessors,
    "_InternalError": InternalError,
}

_CALLS = {"min": "_min", "max": "_max", "pow": "_pow", "/": "_div"}


class _Source:
    """Prints a kernel as the Python function ``_kernel(memory)``; constants and buffers go into ``namespace``."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.lines: list[str] = []
        self.buffers: dict[str, str] = {}
        self.count = 0

    def kernel(self, kernel: Kernel) -> str:
        self.line(0, "def _kernel(memory):")
        for p in kernel.params:
            self.open(p, f"memory[{p.name!r}]", 1)
        self.body(kernel.body, 1, 0)
        return "\n".join(self.lines)

    def line(self, indent: int, text: str) -> None:
        self.lines.append(" " * indent + text)

    def bind(self, value: object) -> str:
        """A name of the namespace that holds ``value``."""
        self.count += 1
        name = f"_c{self.count}"
        self.namespace[name] = value
        return name

    def open(self, buffer: Buffer, storage: str, indent: int) -> None:
        self.count += 1
        local = f"{_identifier(buffer.name)}_{self.count}"
        self.buffers[buffer.name] = local
        self.line(indent, f"ld_{local}, st_{local} = _accessors({self.bind(buffer)}, {storage})")

    def local(self, name: str) -> str:
        if name not in self.buffers:
            raise InternalError(f"unknown buffer {name}")
        return self.buffers[name]

    def body(self, stmts: tuple[Stmt, ...], indent: int, depth: int) -> None:
        for stmt in stmts:
            self.stmt(stmt, indent, depth)
        if not stmts:
            self.line(indent, "pass")

    def stmt(self, stmt: Stmt, indent: int, depth: int) -> None:
        match stmt:
            case For():
                self.loop(stmt, indent, depth)
            case Store():
                args = ", ".join([repr(stmt.op), self.expr(stmt.value), *map(self.expr, stmt.indices)])
                self.line(indent, f"st_{self.local(stmt.buffer)}({args})")
            case If():
                self.line(indent, f"if {self.expr(stmt.cond)}:")
                self.body(stmt.body, indent + 1, depth)
            case Alloc():
                self.alloc(stmt, indent, depth)
            case Invoke():
                self.body(expand(stmt), indent, depth)
            case Fetch():
                self.body(expand_fetch(stmt), indent, depth)
            case Prefetch() | Barrier() | Commit() | Settle():
                self.line(indent, "pass")

    def alloc(self, stmt: Alloc, indent: int, depth: int) -> None:
        hidden = dict(self.buffers)
        self.open(stmt.buffer, f"_fresh({self.bind(stmt.buffer)})", indent)
        self.body(stmt.body, indent, depth)
        self.buffers = hidden

    def loop(self, loop: For, indent: int, depth: int) -> None:
        if depth == _DEEP:
            self.count += 1
            self.line(indent, f"def _nest{self.count}():")
            name = f"_nest{self.count}"
            self.loop(loop, indent + 1, 0)
            self.line(indent, f"{name}()")
            return
        var = "v_" + _identifier(loop.var)
        self.line(indent, f"for {var} in range({self.expr(loop.start)}, {self.expr(loop.stop)}):")
        self.body(loop.body, indent + 1, depth + 1)

    def expr(self, e: Expr) -> str:
        match e:
            case Const():
                return self.const(e)
            case Var():
                return "v_" + _identifier(e.name)
            case Load():
                return f"ld_{self.local(e.buffer)}({', '.join(map(self.expr, e.indices))})"
            case Binary():
                a, b = self.expr(e.a), self.expr(e.b)
                return f"{_CALLS[e.op]}({a}, {b})" if e.op in _CALLS else f"({a} {e.op} {b})"
            case Unary():
                return self.unary(e)
            case Select():
                return f"({self.expr(e.a)} if {self.expr(e.cond)} else {self.expr(e.b)})"
            case Cast():
                return f"_cast({e.dtype!r}, {self.expr(e.a)})"
        raise InternalError(f"unknown expression {e!r}")

    def unary(self, e: Unary) -> str:
        a = self.expr(e.a)
        if e.op in ("neg", "not"):
            return f"(-{a})" if e.op == "neg" else f"(not {a})"
        return f"abs({a})" if e.op == "abs" else f"_{e.op}({a})"

    def const(self, e: Const) -> str:
        if e.dtype in _FLOATS:
            return self.bind(_FLOATS[e.dtype](e.value))
        return repr(bool(e.value) if e.dtype == "bool" else int(e.value))


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)
