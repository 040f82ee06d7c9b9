"""Epilogues as chains: an expression whose anchor result passes through one operator after another.

``relu(add(add(acc,in2),in3))`` is ``add in2, add in3, relu``: the form in which libraries take fused operators.
"""

from __future__ import annotations

from dataclasses import dataclass

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point

_COMMUTATIVE = frozenset({"add", "mul", "max", "min"})


@dataclass(frozen=True)
class Link:
    """``op`` applied to the value so far; ``other`` is the second operand, ``reversed`` when it comes first.

    ``swish`` (v·sigmoid(v)) is the one op here that is not in :data:`wpk.core.pointwise.ARITY`.
    """

    op: str
    other: Input | Literal | None = None
    reversed: bool = False


def chain(point: Point | None, start: Point | None = None) -> tuple[Link, ...] | None:
    """The links from ``start`` (the anchor's result when None) to ``point``, innermost first; None when it is no chain."""
    start = start if start is not None else Acc()
    if point is None or point == start:
        return ()
    if not isinstance(point, Apply):
        return None
    step = _step(point, start)
    if step is None:
        return None
    link, inner = step
    rest = chain(inner, start)
    return None if rest is None else (*rest, link)


def _step(point: Apply, start: Point) -> tuple[Link, Point] | None:
    if _is_swish(point):
        return Link("swish"), min(point.args, key=_depth)
    if len(point.args) == 1:
        return Link(point.op), point.args[0]
    if len(point.args) != 2:
        return None
    first, second = point.args
    if isinstance(second, Input | Literal) and second != start:
        return Link(point.op, second), first
    if isinstance(first, Input | Literal) and first != start:
        return Link(point.op, first, point.op not in _COMMUTATIVE), second
    return None


def _is_swish(point: Apply) -> bool:
    if point.op != "mul":
        return False
    a, b = point.args
    return any(isinstance(y, Apply) and y.op == "sigmoid" and y.args[0] == x for x, y in ((a, b), (b, a)))


def _depth(point: Point) -> int:
    if isinstance(point, Apply):
        return 1 + max(map(_depth, point.args))
    return 0 if isinstance(point, Input | Acc) else -1
