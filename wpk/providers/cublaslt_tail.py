"""Epilogues as cuBLASLt has them: activation(alpha · product + operands), read from an expression however it is spelled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, inputs_of

#: Where functions of the sum are compared; far out too, where clipping shows.
_AT = np.concatenate([np.linspace(-6.0, 6.0, 97), [-1e30, -1e3, -20.0, 20.0, 1e3, 1e30]])
#: Far less than between GELU and its approximation by tanh (4e-4), more than what short literals lose.
_CLOSE = 3e-5 * np.maximum(np.abs(_AT), 1.0)

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Unsupported(Exception):
    """cuBLASLt cannot compute the workload; the message says why."""


@dataclass(frozen=True)
class Tail:
    """``activation`` is "", RELU or GELU; ``added`` are positions of operands."""

    alpha: float = 1.0
    added: tuple[int, ...] = ()
    activation: str = ""


def tail(point: Point | None, exact: bool) -> Tail:
    """What ``point`` does. The library's GELU, the one by tanh, stands for the other too unless ``exact``. Raises Unsupported."""
    if point is None:
        return Tail()
    reasons = []
    for scaled in (False, True):
        try:
            return _tail(point, scaled, exact)
        except Unsupported as error:
            reasons.append(str(error))
    raise Unsupported(reasons[0])


def _tail(point: Point, scaled: bool, exact: bool) -> Tail:
    """``scaled``: a factor of the product belongs to the sum, not to what comes after it."""
    heads = _heads(point, scaled)
    if len(heads) != 1:
        raise Unsupported(f"the epilogue {point} is no function of one sum")
    (head,) = heads
    after = _replaced(point, head)
    if others := inputs_of(after):
        raise Unsupported(f"operand {others[0]} is read after the sum")
    summed = _sum(head, scaled)
    assert summed is not None
    factor, activation = _activation(after, exact)
    if factor != 1.0 and summed.added:
        raise Unsupported("a factor after the sum")
    return Tail(summed.alpha * factor, summed.added, activation)


def _heads(point: Point, scaled: bool) -> set[Point]:
    """The largest sums that the product is in."""
    summed = _sum(point, scaled)
    if summed is not None:
        return {point} if summed.alpha else set()
    return set().union(*(_heads(a, scaled) for a in point.args)) if isinstance(point, Apply) else set()


def _sum(point: Point, scaled: bool) -> Tail | None:
    """alpha · product + operands; alpha is 0 where the product is not in it; None for anything else."""
    match point:
        case Acc():
            return Tail()
        case Input(index):
            return Tail(0.0, (index,))
        case Apply("add", (left, right)):
            return _joined(_sum(left, scaled), _sum(right, scaled))
        case Apply("mul", (inner, Literal(factor))) | Apply("mul", (Literal(factor), inner)) if scaled:
            return _times(_sum(inner, scaled), factor)
        case Apply("div", (inner, Literal(divisor))) if scaled and divisor:
            return _times(_sum(inner, scaled), 1.0 / divisor)
    return None


def _joined(left: Tail | None, right: Tail | None) -> Tail | None:
    if left is None or right is None or left.alpha * right.alpha:
        return None
    return Tail(left.alpha + right.alpha, left.added + right.added)


def _times(inner: Tail | None, factor: float) -> Tail | None:
    return None if inner is None or inner.added or not inner.alpha else Tail(inner.alpha * factor)


def _replaced(point: Point, head: Point) -> Point:
    if point == head:
        return Acc()
    return Apply(point.op, tuple(_replaced(a, head) for a in point.args)) if isinstance(point, Apply) else point


def _activation(after: Point, exact: bool) -> tuple[float, str]:
    """(factor, activation) of a function of the sum, by its values."""
    found = _value(after, _AT)
    slope = float(found[-1] / _AT[-1])
    if slope and _same(found, slope * _AT):
        return (1.0, "") if after == Acc() else (slope, "")
    if _same(found, np.maximum(_AT, 0.0)):
        return 1.0, "RELU"
    if _same(found, _gelu(_AT)):
        return 1.0, "GELU"
    if _same(found, 0.5 * _AT * (1.0 + _erf(_AT * math.sqrt(0.5)))):
        if exact:
            raise Unsupported("cuBLASLt's GELU is the approximation by tanh")
        return 1.0, "GELU"
    raise Unsupported(f"cuBLASLt has no activation {after}")


def _gelu(x: np.ndarray) -> np.ndarray:
    values: np.ndarray = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return values


def _same(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.all(np.abs(found - wanted) < _CLOSE))


def _value(point: Point, x: np.ndarray) -> np.ndarray:
    """An expression of the sum alone, at ``x``; NaN where it is not known here."""
    if isinstance(point, Acc):
        return x
    if isinstance(point, Literal):
        return np.full_like(x, point.value)
    assert isinstance(point, Apply)
    function = _FUNCTIONS.get(point.op)
    if function is None:
        return np.full_like(x, np.nan)
    with np.errstate(all="ignore"):
        return function(*(_value(a, x) for a in point.args))


#: What activations are spelled with.
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power, "neg": np.negative, "abs": np.abs, "exp": np.exp, "sqrt": np.sqrt, "tanh": np.tanh, "erf": _erf,
    "recip": np.reciprocal, "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0.0),
    "lt": np.less, "le": np.less_equal, "where": np.where,
}  # fmt: skip
