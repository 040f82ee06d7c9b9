"""Algorithms: *what* is computed, as plain maths over named axes; no loops, no order, no storage.

    conv = Stage("acc", (n, oc, oh, ow), x[n, ic, oh*sh + kh - ph, ow*sw + kw - pw] * w[oc, ic, kh, kw],
                 Reduce("+", (ic, kh, kw)))
    out  = Stage("out", (n, oc, oh, ow), epilogue(acc[n, oc, oh, ow]))

Loads in a stage's value name parameters (physical indices of the buffer) or earlier stages (their axes' order).
"""

from __future__ import annotations

from dataclasses import dataclass

from wpk.dsl.ir import Buffer, Expr, Var


@dataclass(frozen=True, slots=True)
class Axis:
    """An iteration axis 0..extent-1. Use ``axis.var`` in expressions."""

    name: str
    extent: int

    @property
    def var(self) -> Var:
        """The axis as an expression."""
        return Var(self.name)


@dataclass(frozen=True, slots=True)
class Reduce:
    """Combine the value over ``axes`` with op ``+``, ``max`` or ``min``, starting from ``init``. Order is free.

    ``count`` makes the first axis ragged: only its first so many elements are combined (none where it is negative, all where it
    is more than there are), an integer expression of the stage's own axes. A schedule keeps that axis as one serial loop.

    ``decay`` gives the first axis an order: at each of its elements, what is there already is first multiplied by it, an
    expression of that axis and the stage's own. It is one serial loop too.
    """

    op: str
    axes: tuple[Axis, ...]
    init: float = 0.0
    count: Expr | None = None
    decay: Expr | None = None


@dataclass(frozen=True, slots=True)
class Carry:
    """What a loop hands from one step to the next: ``init`` at element 0 of ``axis``, at t + 1 what the stage's value is at t.

    That value may read stages that come later and read this one. A schedule places the stage at the loop of the steps; it has
    storage for one step, which outlives the loop: after it, it is what the last step has handed on.
    """

    axis: str
    init: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One tensor, defined pointwise over ``axes``, possibly reduced.

    A stage whose name is an output parameter writes that parameter: at its axes, or at ``scatter`` (physical indices,
    injective over the axes), where ``where`` holds. ``output`` names the parameter when several stages write disjoint
    parts of one.
    """

    name: str
    axes: tuple[Axis, ...]
    value: Expr
    reduce: Reduce | None = None
    scatter: tuple[Expr, ...] | None = None
    where: Expr | None = None
    dtype: str = "float32"
    output: str | None = None
    carry: Carry | None = None

    @property
    def target(self) -> str:
        """The name of what the stage writes: an output parameter, or storage of its own."""
        return self.output or self.name


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Parameters in argument order, constant tables, stages in dependency order; outputs are stages named as parameters."""

    name: str
    params: tuple[Buffer, ...]
    stages: tuple[Stage, ...]
    tables: tuple[Buffer, ...] = ()

    def stage(self, name: str) -> Stage:
        """The stage ``name``; KeyError when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def param(self, name: str) -> Buffer | None:
        """The parameter or table ``name``, or None."""
        return next((p for p in (*self.params, *self.tables) if p.name == name), None)
