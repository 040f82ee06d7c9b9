"""Softmax along one axis: the maximum, the exponentials and their sum, the quotient; in one pass over cached rows.

Along the last axis a row is reduced by vectors; along another axis vectors go over what lies inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Inline,
    Parallel,
    Reorder,
    Split,
    Step,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.epilogue import ZERO, block_of
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, ints, isas, nearest
from wpk.kernels.reduce import Rows, along, reduce_steps, reduced, vector_width
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space

NEGATIVE = float("-inf")
ZERO_INDEX = Const(0)


@dataclass(frozen=True)
class Shape:
    """``outer`` × ``length`` × ``inner`` elements, softmax along the middle; ``pitch`` ≥ length counts padding lanes."""

    outer: int
    length: int
    inner: int
    pitch: int
    groups: tuple[tuple[int, ...], ...]


def shape_of(workload: Workload) -> Shape:
    """The numbers of a softmax workload."""
    x = workload.inputs[0]
    rank = len(x.shape)
    axis = ints(workload, "axis")[0] % rank
    outer, length, inner = prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :])
    block = block_of(x.layout)
    groups = (tuple(range(axis)), (axis,), tuple(range(axis + 1, rank)))
    return Shape(outer, length, inner, -(-length // block) * block, groups)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, rows: Rows) -> Algorithm:
    """m[r] = max_k x[r,k]; e[r,k] = exp(x[r,k] - m[r]); z[r] = sum_k e[r,k]; out[r,k] = epilogue(e[r,k] / z[r])."""
    r, k, kept = Axis("r", s.outer), Axis("k", s.length), Axis("k", s.pitch)
    largest = reduced("m", r, rows, "max", lambda at: Load("x", (r.var, at)))
    power = Stage("e", (r, k), Unary("exp", Load("x", (r.var, k.var)) - Load("m", (r.var,))))
    total = reduced("z", r, rows, "+", lambda at: Load("e", (r.var, at)))
    scale = Stage("scale", (r,), Unary("recip", Load("z", (r.var,))))
    quotient = Load("e", (r.var, k.var)) * Load("scale", (r.var,))
    operands = RowOperands(workload, 1, s.groups)
    whole: Expr = operands.value(quotient, (r.var, k.var, ZERO_INDEX))
    if s.pitch > s.length:
        whole = Select(kept.var < s.length, whole, ZERO)
    out = Stage("out", (r, kept), whole)
    params = (Buffer("x", (s.outer, s.pitch)), *operands.buffers(), Buffer("out", (s.outer, s.pitch), access="out"))
    return Algorithm("softmax", params, (*largest, power, *total, scale, out))


def inner_algorithm(workload: Workload, s: Shape) -> Algorithm:
    """The same along the middle of x[r,k,i], for all i at once."""
    r, k, i = Axis("r", s.outer), Axis("k", s.length), Axis("i", s.inner)
    x, e = Load("x", (r.var, k.var, i.var)), Load("e", (r.var, k.var, i.var))
    operands = RowOperands(workload, 1, s.groups)
    stages = (
        Stage("m", (r, i), x, Reduce("max", (k,), NEGATIVE)),
        Stage("e", (r, k, i), Unary("exp", x - Load("m", (r.var, i.var)))),
        Stage("z", (r, i), e, Reduce("+", (k,))),
        Stage("scale", (r, i), Unary("recip", Load("z", (r.var, i.var)))),
        Stage("out", (r, k, i), operands.value(e * Load("scale", (r.var, i.var)), (r.var, k.var, i.var))),
    )
    shape = (s.outer, s.length, s.inner)
    return Algorithm("softmax", (Buffer("x", shape), *operands.buffers(), Buffer("out", shape, access="out")), stages)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, vectors at a time, exponentials kept or computed twice, tails, parallel rows and grain."""
    kinds = isas(target)
    row = s.length if s.inner == 1 else s.inner
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * LANES[kinds[0]] <= row)
    ragged = s.inner == 1 and s.length % LANES[kinds[0]] != 0
    jobs = s.outer if s.inner == 1 else s.outer * -(-s.inner // LANES[kinds[0]])
    small = 8 * s.outer * s.length * s.inner < SMALL or jobs == 1 or target.threads == 1
    grains = (1, 2, 4, 8, 16, 32)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, nearest(unrolls, 4 if s.inner == 1 else 2)),
        Choice("exp", ("keep", "twice"), "keep"),
        Choice("tail", ("mask", "cut") if ragged else ("mask",), "mask"),
        Choice("parallel", ("rows", "serial") if jobs > 1 else ("serial",), "serial" if small else "rows"),
        Ordered("grain", grains, 1 if small else nearest(grains, max(jobs // (4 * target.threads), 1))),
    )
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (lambda c: c["parallel"] == "rows" or c["grain"] == 1,), (first,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, rows: Rows, c: Config) -> list[Step]:
    """parallel r: m; e and z; out; each by vectors along the row."""
    masked = c["tail"] == "mask"
    plan: list[Step] = [
        *along("out", "k", rows, masked),
        *reduce_steps("m", "r", "out", "r"), *reduce_steps("z", "r", "out", "r"),
        ComputeAt("scale", "out", "r", "register"),
    ]  # fmt: skip
    if c["exp"] == "keep":
        plan += [ComputeAt("e", "out", "r", "thread"), *along("e", "k", rows, masked)]
    else:
        plan.append(Inline("e"))
    return [*plan, Parallel("out", "r", int(c["grain"]))] if c["parallel"] == "rows" else plan


def inner_steps(s: Shape, width: int, c: Config) -> list[Step]:
    """parallel (r, i_o): for k: m; for k: e, z; for k: out; vectors over i."""
    tile = min(width * int(c["unroll"]), s.inner)
    tile -= tile % width
    plan: list[Step] = [Split("out", "i", tile, "i_o", "i_t", "shift"), Reorder("out", ("r", "i_o", "k", "i_t"))]
    job = "i_o"
    if c["parallel"] == "rows":
        joined, job = fused("out", ("r", "i_o"))
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    plan += _vectors("out", "i_t", width)
    kept = [("e", "thread")] if c["exp"] == "keep" else []
    for stage, scope in (("m", "register"), *kept, ("z", "register"), ("scale", "register")):
        plan.append(ComputeAt(stage, "out", job, "thread" if scope == "thread" else "register"))
        plan += [] if stage in ("e", "scale") else [Reorder(stage, ("r", "k", "i"))]
        plan += _vectors(stage, "i", width)
    return plan if kept else [Inline("e"), *plan]


def _vectors(stage: str, loop: str, width: int) -> list[Step]:
    return [Split(stage, loop, width, f"{loop}_u", f"{loop}_v"), Unroll(stage, f"{loop}_u"), Vectorize(stage, f"{loop}_v")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Softmax:
    """Softmax; see the module's docstring."""

    name: str = "softmax"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 softmax along any axis of a ROW tensor, or along the channels of a blocked one of 1×1 pixels."""
        if workload.op != "softmax":
            return f"op is {workload.op}, expected softmax"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or x.layout != y.layout or x.layout == "NHWC" or 0 in x.shape or not x.shape:
            return f"{x} → {y}, expected float32 in one layout, ROW or channel-blocked"
        s = shape_of(workload)
        if x.layout != "ROW" and (s.groups[1] != (1,) or s.inner != 1 or len(workload.inputs) > 1):
            return f"axis {s.groups[1][0]} of {x}, expected the channels of one pixel and no other operand"
        return RowOperands(workload, 1, s.groups).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        name = f"f32_softmax_{s.outer}x{s.length}x{s.inner}__{isa}"
        width = vector_width(LANES[isa], s.length if s.inner == 1 else s.inner)
        if s.inner > 1:
            return Built(lower(schedule(inner_algorithm(workload, s), inner_steps(s, width, config)), name), isa)
        rows = Rows(s.outer, s.length, width, int(config["unroll"]))
        return Built(lower(schedule(algorithm(workload, s, rows), steps(s, rows, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return RowOperands(workload, 1, shape_of(workload).groups).pack(constants, 0)
