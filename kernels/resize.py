"""Resizing images: each output row and column knows its input pixels from constant tables (:mod:`wpk.ops.resize`).

Blocked layouts read vectors of channels; rows of pixels are gathered lane by lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Parallel, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, isas, lanes, nearest
from wpk.ops.resize import taps
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Shape:
    """``planes`` of ``h × w`` pixels become ``oh × ow`` ones, of ``inner`` contiguous channels each."""

    planes: int
    h: int
    w: int
    oh: int
    ow: int
    inner: int
    linear: bool


def shape_of(workload: Workload) -> Shape:
    """The numbers of a resize workload in any layout."""
    x, y = workload.inputs[0], workload.outputs[0]
    n, c, h, w = x.shape
    inner = 1 if x.layout == "ROW" else c if x.layout == "NHWC" else x.physical[-1]
    planes = n if x.layout == "NHWC" else n * (c if inner == 1 else x.physical[1])
    return Shape(planes, h, w, y.shape[2], y.shape[3], inner, workload.attr("kind") == "linear")


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[p,y,x,c] = in[p, row(y), column(x), c], or the same between two rows and two columns."""
    p, y, x, c = Axis("p", s.planes), Axis("y", s.oh), Axis("x", s.ow), Axis("c", s.inner)
    tables = [t for name, axis in (("row", 0), ("col", 1)) for t in tables_of(workload, name, axis)]

    def pixel(row: str, col: str) -> Expr:
        return Load("in", (p.var, Load(row, (y.var,)), Load(col, (x.var,)), c.var))

    value = pixel("row0", "col0")
    if s.linear:
        value = between(
            between(value, pixel("row0", "col1"), Load("col_share", (x.var,))),
            between(pixel("row1", "col0"), pixel("row1", "col1"), Load("col_share", (x.var,))),
            Load("row_share", (y.var,)),
        )
    dtype = workload.inputs[0].dtype
    params = (
        Buffer("in", (s.planes, s.h, s.w, s.inner), dtype),
        Buffer("out", (s.planes, s.oh, s.ow, s.inner), dtype, access="out"),
    )
    axes = (p, y, x, c) if s.inner > 1 else (p, y, c, x)
    at = (p.var, y.var, x.var, c.var)
    return Algorithm("resize", params, (Stage("out", axes, value, scatter=at, dtype=dtype),), tuple(tables))


def between(a: Expr, b: Expr, share: Expr) -> Expr:
    """a + share · (b - a), in the form that is exact for equal pixels."""
    return a + share * (b - a)


def tables_of(workload: Workload, name: str, axis: int) -> list[Buffer]:
    """The input pixels along an axis, and the share of the second."""
    first, second, share = taps(workload, axis)
    table = Buffer(f"{name}0", (len(first),), "int32", values=tuple(map(int, first)))
    if workload.attr("kind") == "nearest":
        return [table]
    return [
        table, Buffer(f"{name}1", (len(second),), "int32", values=tuple(map(int, second))),
        Buffer(f"{name}_share", (len(share),), values=tuple(map(float, share))),
    ]  # fmt: skip


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """ISA, pixels at a time, parallel rows and grain."""
    kinds = isas(target)
    step = 1 if s.inner > 1 else LANES[kinds[0]]
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * step <= s.ow)
    jobs, row = s.planes * s.oh, s.ow * s.inner
    small = 2 * jobs * row < SMALL or jobs == 1 or target.threads == 1
    grains = (1, 2, 4, 8, 16, 32, 64)
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, nearest(unrolls, 2)),
        Choice("parallel", ("rows", "serial") if jobs > 1 else ("serial",), "serial" if small else "rows"),
        Ordered("grain", grains, 1 if small else nearest(grains, 2048 / row)),
    )
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (lambda c: c["parallel"] == "rows" or c["grain"] == 1,), (first,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """parallel (plane, row): for pixels: vectors of channels, or of pixels."""
    isa, unroll = str(c["isa"]), int(c["unroll"])
    if s.inner > 1:
        plan: list[Step] = [Split("out", "x", unroll, "x_o", "x_u"), Unroll("out", "x_u"), *lanes("out", "c", s.inner, isa)]
    else:
        width = max(LANES[isa], 4)
        plan = [
            Split("out", "x", width * unroll, "x_o", "x_i"), Split("out", "x_i", width, "x_u", "x_v"),
            Unroll("out", "x_u"), Vectorize("out", "x_v"),
        ]  # fmt: skip
    if c["parallel"] == "serial":
        return plan
    joined, job = fused("out", ("p", "y"))
    return [*plan, *joined, Parallel("out", job, int(c["grain"]))]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resize:
    """Resizing; see the module's docstring."""

    name: str = "resize"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 images in one layout, ROW or channel-blocked, nothing fused."""
        if workload.op != "resize":
            return f"op is {workload.op}, expected resize"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or x.layout != y.layout or x.layout == "NHWC" or 0 in (*x.shape, *y.shape):
            return f"{x} → {y}, expected float32 in one layout, ROW or channel-blocked"
        return None if workload.epilogue is None else "a resize with an epilogue"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, isa = shape_of(workload), str(config["isa"])
        name = f"f32_resize_{s.h}x{s.w}to{s.oh}x{s.ow}__{isa}"
        return Built(lower(schedule(algorithm(workload, s), steps(s, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants stay as they are; there are none."""
        return [np.ascontiguousarray(c) for c in constants]
