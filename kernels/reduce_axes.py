"""Sum, mean, maximum or minimum over neighbouring axes: rows by vectors, or vectors over what lies inside the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Parallel, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, ints, isas, nearest
from wpk.kernels.reduce import INIT, Rows, reduce_steps, reduced, vector_width
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space

#: how a kind combines
OPS = {"sum": "+", "mean": "+", "max": "max", "min": "min"}


@dataclass(frozen=True)
class Shape:
    """``outer`` × ``length`` × ``inner`` elements, reduced along the middle; ``groups`` of the output's dimensions."""

    outer: int
    length: int
    inner: int
    kind: str
    groups: tuple[tuple[int, ...], ...]


def shape_of(workload: Workload) -> Shape:
    """The numbers of a reduce workload."""
    x, axes = workload.inputs[0].shape, ints(workload, "axes")
    first, end = axes[0], axes[-1] + 1
    groups = (tuple(range(end)), tuple(range(end, len(x))))
    return Shape(prod(x[:first]), prod(x[first:end]), prod(x[end:]), str(workload.attr("kind")), groups)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, rows: Rows) -> Algorithm:
    """out[r] = epilogue(op over k of x[r,k]), divided by their number for a mean."""
    r = Axis("r", s.outer)
    total = reduced("total", r, rows, OPS[s.kind], lambda at: Load("x", (r.var, at)))
    value = finished(workload, s, Load("total", (r.var,)), r.var, Const(0))
    out = Stage("out", (r, Axis("one", 1)), value)
    return Algorithm("reduce", _params(workload, s, (s.outer, s.length)), (*total, out))


def inner_algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[r,i] = epilogue(op over k of x[r,k,i])."""
    r, k, i = Axis("r", s.outer), Axis("k", s.length), Axis("i", s.inner)
    op = OPS[s.kind]
    total = Stage("total", (r, i), Load("x", (r.var, k.var, i.var)), Reduce(op, (k,), INIT[op]))
    out = Stage("out", (r, i), finished(workload, s, Load("total", (r.var, i.var)), r.var, i.var))
    return Algorithm("reduce", _params(workload, s, (s.outer, s.length, s.inner)), (total, out))


def finished(workload: Workload, s: Shape, total: Expr, r: Expr, i: Expr) -> Expr:
    """The mean where it is one, and the epilogue."""
    value = total * float(np.float32(1 / s.length)) if s.kind == "mean" else total
    return RowOperands(workload, 1, s.groups).value(value, (r, i))


def _params(workload: Workload, s: Shape, shape: tuple[int, ...]) -> tuple[Buffer, ...]:
    operands = RowOperands(workload, 1, s.groups).buffers()
    return (Buffer("x", shape), *operands, Buffer("out", (s.outer, s.inner), access="out"))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, vectors at a time, parallel rows and grain."""
    kinds = isas(target)
    row = s.length if s.inner == 1 else s.inner
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * LANES[kinds[0]] <= row)
    jobs = s.outer if s.inner == 1 else s.outer * -(-s.inner // LANES[kinds[0]])
    small = s.outer * s.length * s.inner < SMALL or jobs == 1 or target.threads == 1
    grains = (1, 2, 4, 8, 16, 32, 64, 128)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, nearest(unrolls, 4)),
        Choice("parallel", ("rows", "serial") if jobs > 1 else ("serial",), "serial" if small else "rows"),
        Ordered("grain", grains, 1 if small else nearest(grains, 4096 / s.length)),
    )
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (lambda c: c["parallel"] == "rows" or c["grain"] == 1,), (first,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(c: Config) -> list[Step]:
    """parallel r: the row by vectors, then across their lanes."""
    plan = reduce_steps("total", "r", "out", "r")
    return [*plan, Parallel("out", "r", int(c["grain"]))] if c["parallel"] == "rows" else plan


def inner_steps(s: Shape, width: int, c: Config) -> list[Step]:
    """parallel (r, vectors of i): for k: add the vectors."""
    tile = min(width * int(c["unroll"]), s.inner)
    tile -= tile % width
    plan: list[Step] = [Split("out", "i", tile, "i_o", "i_t", "shift")]
    job = "i_o"
    if c["parallel"] == "rows":
        joined, job = fused("out", ("r", "i_o"))
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    plan += [*_vectors("out", "i_t", width), ComputeAt("total", "out", job, "register")]
    return [*plan, Reorder("total", ("r", "k", "i")), *_vectors("total", "i", width)]


def _vectors(stage: str, loop: str, width: int) -> list[Step]:
    return [Split(stage, loop, width, f"{loop}_u", f"{loop}_v"), Unroll(stage, f"{loop}_u"), Vectorize(stage, f"{loop}_v")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReduceAxes:
    """Reductions over axes; see the module's docstring."""

    name: str = "reduce"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 reduce in layout ROW."""
        if workload.op != "reduce":
            return f"op is {workload.op}, expected reduce"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or x.layout != "ROW" or y.layout != "ROW" or 0 in x.shape:
            return f"{x} → {y}, expected non-empty float32 in layout ROW"
        return RowOperands(workload, 1, shape_of(workload).groups).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        name = f"f32_reduce_{s.kind}_{s.outer}x{s.length}x{s.inner}__{isa}"
        width = vector_width(LANES[isa], s.length if s.inner == 1 else s.inner)
        if s.inner > 1:
            return Built(lower(schedule(inner_algorithm(workload, s), inner_steps(s, width, config)), name), isa)
        rows = Rows(s.outer, s.length, width, int(config["unroll"]))
        return Built(lower(schedule(algorithm(workload, s, rows), steps(config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return RowOperands(workload, 1, shape_of(workload).groups).pack(constants, 0)
