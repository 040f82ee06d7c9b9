"""Epilogues: elementwise expressions (:mod:`wpk.core.pointwise`) as DSL expressions, and the operands they read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core import pointwise
from wpk.core.pointwise import Acc, Apply, Input, Literal, Point
from wpk.core.tensor import channel_block
from wpk.core.workload import Workload
from wpk.dsl.ir import Binary, Buffer, Const, Expr, Load, Select, Unary

_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "max": "max", "min": "min", "pow": "pow"}
_COMPARE = {"lt": "<", "le": "<=", "eq": "=="}
ONE, ZERO = Const(1.0, "float32"), Const(0.0, "float32")


def to_expr(point: Point, acc: Expr | None, operand: Callable[[int], Expr]) -> Expr:
    """The DSL expression of ``point``; ``operand(i)`` gives input i at the output element."""
    if isinstance(point, Acc):
        assert acc is not None
        return acc
    if isinstance(point, Input):
        return operand(point.index)
    if isinstance(point, Literal):
        return Const(point.value, "float32")
    args = [to_expr(a, acc, operand) for a in point.args]
    if point.op in _BINARY:
        return Binary(_BINARY[point.op], args[0], args[1])
    if point.op in _COMPARE:
        return Select(Binary(_COMPARE[point.op], args[0], args[1]), ONE, ZERO)
    if point.op == "where":
        return Select(Unary("not", Binary("==", args[0], ZERO)), args[1], args[2])
    if point.op == "relu":
        return Binary("max", args[0], ZERO)
    return Unary(point.op, args[0])


_VALUES: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "max": max, "min": min, "pow": lambda a, b: a**b, "neg": lambda a: -a, "abs": abs, "exp": math.exp,
    "log": math.log, "sqrt": math.sqrt, "erf": math.erf, "tanh": math.tanh, "floor": math.floor, "ceil": math.ceil,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)), "relu": lambda a: max(a, 0.0), "recip": lambda a: 1 / a,
    "lt": lambda a, b: float(a < b), "le": lambda a, b: float(a <= b), "eq": lambda a, b: float(a == b),
    "where": lambda c, a, b: a if c else b,
}  # fmt: skip


def vanishes(point: Point | None, alive: Collection[int] = ()) -> bool:
    """True when the expression is 0 where all it reads is 0: then padding lanes stay zero by themselves.

    ``alive``: operands that are not 0 there, because they broadcast over the channels; their values are unknown, but finite.
    """
    try:
        return point is None or _at_zero(point, alive) == 0.0
    except (ArithmeticError, ValueError):
        return False


def _at_zero(point: Point, alive: Collection[int]) -> float | None:
    """The value in a padding lane; None when it depends on what is not known."""
    if isinstance(point, Literal):
        return point.value
    if not isinstance(point, Apply):
        return None if isinstance(point, Input) and point.index in alive else 0.0
    args = [_at_zero(a, alive) for a in point.args]
    if None not in args:
        return float(_VALUES[point.op](*args))
    if point.op == "mul" and 0.0 in args:
        return 0.0
    if point.op == "where" and (args[0] is not None or args[1] == args[2]):
        return args[1] if args[0] or args[0] is None else args[2]
    return None


@dataclass(frozen=True)
class Operands:
    """The epilogue operands of a workload with a 4-D output (N, C, H, W), as parameters of the kernel.

    Constants are packed to (n, ceil(C/b), h, w, b), each extent 1 where they broadcast, b the output's channel block
    (1 for ROW: then (n, C, h, w, 1)).
    """

    workload: Workload
    first: int
    block: int
    flat: bool = False  # the kernel sees H·W pixels as one row

    def reason(self) -> str | None:
        """Why some operand cannot be read here, or None."""
        w = self.workload
        out = w.outputs[0]
        for i in range(self.first, len(w.inputs)):
            t = w.inputs[i]
            if t.dtype != "float32":
                return f"epilogue operand {i} is {t.dtype}, expected float32"
            shape = padded(t.shape)
            if len(shape) != 4 or any(a not in (1, b) for a, b in zip(shape, out.shape, strict=True)):
                return f"epilogue operand {i} of shape {t.shape} does not broadcast to {out.shape}"
            if i in w.constants:
                continue
            if t.layout != "ROW" and t.layout != out.layout:
                return f"epilogue operand {i} has layout {t.layout}, the output {out.layout}"
            if t.layout != "ROW" and shape[1] != out.shape[1]:
                return f"epilogue operand {i} is blocked but broadcasts over channels"
            plain = shape[1] == 1 or self.block == 1 or (shape[1] % self.block == 0 and shape[2:] == (1, 1))
            if t.layout == "ROW" and not plain:
                return f"epilogue operand {i} is ROW, the output {out.layout}"
        return None

    def buffers(self) -> list[Buffer]:
        """Their parameters, in order."""
        return [Buffer(f"e{i}", self._shape(i)) for i in range(self.first, len(self.workload.inputs))]

    def _shape(self, i: int) -> tuple[int, ...]:
        n, c, h, w = padded(self.workload.inputs[i].shape)
        h, w = (1, h * w) if self.flat else (h, w)
        return (n, 1, h, w, 1) if c == 1 else (n, -(-c // self.block), h, w, self.block)

    def at(self, i: int, n: Expr, ob: Expr, h: Expr, w: Expr, ov: Expr) -> Expr:
        """Operand ``i`` at an output element."""
        shape = self._shape(i)
        index = tuple(Const(0) if size == 1 else e for size, e in zip(shape, (n, ob, h, w, ov), strict=True))
        return Load(f"e{i}", index)

    def value(self, acc: Expr | None, n: Expr, ob: Expr, h: Expr, w: Expr, ov: Expr) -> Expr:
        """The epilogue at an output element; zero in padding lanes."""
        point, channels = self.workload.epilogue, self.workload.outputs[0].shape[1]
        if point is None:
            assert acc is not None
            return acc
        whole = to_expr(point, acc, lambda i: self.at(i, n, ob, h, w, ov))
        if channels % self.block and not vanishes(point, self._alive()):
            return Select(ob * self.block + ov < channels, whole, ZERO)
        return whole

    def _alive(self) -> set[int]:
        """Operands that broadcast over the channels: they fill padding lanes too."""
        inputs = self.workload.inputs
        return {i for i in range(self.first, len(inputs)) if padded(inputs[i].shape)[1] == 1}

    def pack(self, constants: Sequence[np.ndarray], skip: int) -> list[np.ndarray]:
        """Pack the constants that are epilogue operands; the first ``skip`` constants are the anchor's own."""
        picked = [i for i in self.workload.constants if i >= self.first]
        return [self._packed(i, c) for i, c in zip(picked, constants[skip:], strict=True)]

    def _packed(self, i: int, array: np.ndarray) -> np.ndarray:
        shape = self._shape(i)
        value = np.asarray(array, np.float32).reshape(padded(self.workload.inputs[i].shape))
        if shape[1] == 1 and shape[4] == 1:
            return np.ascontiguousarray(value.reshape(shape))
        n, c, h, w = value.shape
        # a flat kernel reads the same memory: rows of one image follow each other
        out = np.zeros((n, shape[1] * shape[4], h, w), np.float32)
        out[:, :c] = value
        return np.ascontiguousarray(np.moveaxis(out.reshape(n, shape[1], shape[4], h, w), 2, -1))


def padded(shape: tuple[int, ...], rank: int = 4) -> tuple[int, ...]:
    """``shape`` with leading ones up to ``rank``."""
    return (1,) * (rank - len(shape)) + shape


def block_of(layout: str) -> int:
    """The channel block of a layout, 1 for ROW."""
    return channel_block(layout) if layout != "ROW" else 1


def identity() -> Point:
    """The epilogue that changes nothing."""
    return Acc()


__all__ = ["Operands", "block_of", "padded", "pointwise", "to_expr", "vanishes"]
