"""Layer and root-mean-square normalization of rows: mean, mean of the squared distances, the quotient; over cached rows.

The variance is that of the distances from the mean, computed after it, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Parallel, Step, schedule
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, ints, isas, nearest
from wpk.kernels.reduce import Rows, along, reduce_steps, reduced, vector_width
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """``outer`` rows of ``length`` elements; ``centred``: their mean is subtracted first."""

    outer: int
    length: int
    epsilon: float
    centred: bool
    groups: tuple[tuple[int, ...], ...]


def shape_of(workload: Workload) -> Shape:
    """The numbers of a norm workload."""
    x = workload.inputs[0].shape
    axis, epsilon = ints(workload, "axis")[0], workload.attr("epsilon")
    assert isinstance(epsilon, int | float)
    groups = (tuple(range(axis)), tuple(range(axis, len(x))))
    return Shape(
        prod(x[:axis]), prod(x[axis:]), float(np.float32(epsilon)), workload.attr("kind") == "layer", groups
    )


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, rows: Rows) -> Algorithm:
    """out[r,k] = epilogue(d[r,k] / sqrt(sum_k d[r,k]² / n + epsilon)) with d = x, or x minus its mean over k."""
    r, k = Axis("r", s.outer), Axis("k", s.length)
    share = float(np.float32(1 / s.length))
    stages: list[Stage] = []
    if s.centred:
        stages += reduced("sum", r, rows, "+", lambda at: Load("x", (r.var, at)))
        stages.append(Stage("mean", (r,), Load("sum", (r.var,)) * share))

    def distance(at: Expr) -> Expr:
        x = Load("x", (r.var, at))
        return x - Load("mean", (r.var,)) if s.centred else x

    stages += reduced("squares", r, rows, "+", lambda at: distance(at) * distance(at))
    root = Unary("sqrt", Load("squares", (r.var,)) * share + s.epsilon)
    stages.append(Stage("scale", (r,), Unary("recip", root)))
    operands = RowOperands(workload, 1, s.groups)
    value = operands.value(distance(k.var) * Load("scale", (r.var,)), (r.var, k.var))
    shape = (s.outer, s.length)
    params = (Buffer("x", shape), *operands.buffers(), Buffer("out", shape, access="out"))
    return Algorithm("norm", params, (*stages, Stage("out", (r, k), value)))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, vectors at a time, tails, parallel rows and grain."""
    kinds = isas(target)
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * LANES[kinds[0]] <= s.length)
    ragged = s.length % LANES[kinds[0]] != 0
    small = 2 * s.outer * s.length < SMALL or s.outer == 1 or target.threads == 1
    grains = (1, 2, 4, 8, 16, 32)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, nearest(unrolls, 4)),
        Choice("tail", ("mask", "cut") if ragged else ("mask",), "mask"),
        Choice("parallel", ("rows", "serial") if s.outer > 1 else ("serial",), "serial" if small else "rows"),
        Ordered("grain", grains, 1 if small else nearest(grains, max(s.outer // (4 * target.threads), 1))),
    )
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (lambda c: c["parallel"] == "rows" or c["grain"] == 1,), (first,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, rows: Rows, c: Config) -> list[Step]:
    """parallel r: sum; squares; out; each by vectors along the row."""
    plan: list[Step] = [*along("out", "k", rows, c["tail"] == "mask"), *reduce_steps("squares", "r", "out", "r")]
    plan.append(ComputeAt("scale", "out", "r", "register"))
    if s.centred:
        plan += [*reduce_steps("sum", "r", "out", "r"), ComputeAt("mean", "out", "r", "register")]
    return [*plan, Parallel("out", "r", int(c["grain"]))] if c["parallel"] == "rows" else plan


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """Layer and RMS normalization; see the module's docstring."""

    name: str = "norm"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 norm over the last axes of a ROW tensor."""
        if workload.op != "norm":
            return f"op is {workload.op}, expected norm"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or x.layout != "ROW" or y.layout != "ROW" or 0 in x.shape:
            return f"{x} → {y}, expected float32 in layout ROW"
        return RowOperands(workload, 1, shape_of(workload).groups).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        rows = Rows(s.outer, s.length, vector_width(LANES[isa], s.length), int(config["unroll"]))
        name = f"f32_norm_{s.outer}x{s.length}__{isa}"
        return Built(lower(schedule(algorithm(workload, s, rows), steps(s, rows, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return RowOperands(workload, 1, shape_of(workload).groups).pack(constants, 0)
