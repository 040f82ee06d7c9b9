"""Reductions of rows by vectors: partial results in lanes, then across the lanes. The last vector of a row is masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpk.dsl.algorithm import Axis, Reduce, Stage
from wpk.dsl.ir import Const, Expr, Load, Select
from wpk.dsl.schedule import ComputeAt, Reorder, Segment, Split, Step, Unroll, Vectorize

INIT = {"+": 0.0, "max": float("-inf"), "min": float("inf")}


@dataclass(frozen=True)
class Rows:
    """Rows of ``length`` elements, taken ``chains`` vectors of ``width`` lanes at a time."""

    count: int
    length: int
    width: int
    chains: int

    @property
    def step(self) -> int:
        """Elements taken at a time."""
        return self.width * self.chains


def vector_width(lanes: int, length: int) -> int:
    """The greatest power of two that is neither above ``lanes`` nor above ``length``."""
    width = max(lanes, 4)
    while width > length:
        width //= 2
    return max(width, 1)


def reduced(name: str, r: Axis, rows: Rows, op: str, value: Callable[[Expr], Expr]) -> list[Stage]:
    """name[r] = op over k < length of value(k), as the stage ``name_part`` of partial results and ``name`` of all lanes.

    name_part[r, u, v] = op over j of value((j*chains + u)*width + v), the initial value beyond the end of the row.
    """
    u, v, j = Axis("u", rows.chains), Axis("v", rows.width), Axis("j", -(-rows.length // rows.step))
    k = (j.var * rows.chains + u.var) * rows.width + v.var
    init = INIT[op]
    inside = Select(k < rows.length, value(k), Const(init, "float32"))
    part = Stage(f"{name}_part", (r, u, v), inside, Reduce(op, (j,), init))
    read = Load(part.name, (r.var, u.var, v.var))
    return [part, Stage(name, (r,), read, Reduce(op, (u, v), init))]


def reduce_steps(name: str, r: str, consumer: str, loop: str) -> list[Step]:
    """Compute the stages of :func:`reduced` in registers at a loop of their consumer."""
    part = f"{name}_part"
    return [
        ComputeAt(name, consumer, loop, "register"), Unroll(name, "u"), Vectorize(name, "v"),
        ComputeAt(part, consumer, loop, "register"), Reorder(part, (r, "j", "u", "v")), Segment(part, "j", (-1,)),
        Unroll(part, "u"), Vectorize(part, "v"),
    ]  # fmt: skip


def along(stage: str, loop: str, rows: Rows, masked: bool = True) -> list[Step]:
    """Run along the row: ``chains`` vectors at a time, at the end under a mask, or as a shorter loop."""
    tail: list[Step] = [Segment(stage, f"{loop}_o", (-1,))] if masked else []
    return [
        Split(stage, loop, rows.step, f"{loop}_o", f"{loop}_i", "guard" if masked else "cut"),
        Split(stage, f"{loop}_i", rows.width, f"{loop}_u", f"{loop}_v"),
        *tail, Unroll(stage, f"{loop}_u"), Vectorize(stage, f"{loop}_v"),
    ]  # fmt: skip
