"""Softmax for GPUs: along rows, threads of a block share the maximum and the sum (:mod:`wpk.kernels.cuda.rows`); along another
axis a thread has a vector of what lies inside it and goes through the axis three times. Always in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Fuse,
    Reorder,
    Split,
    Step,
    Vectorize,
    schedule,
)
from wpk.kernels.cuda.eltwise import in_rows
from wpk.kernels.cuda.images import size_of
from wpk.kernels.cuda.nests import gpu_of, width_of
from wpk.kernels.cuda.operands import STORED, GpuOperands, as_float32
from wpk.kernels.cuda.rows import (
    RowTile,
    out_steps,
    row_space,
    share_steps,
    shares,
    tile_of,
    total,
    total_steps,
)
from wpk.kernels.family import Built
from wpk.kernels.nests import nearest
from wpk.kernels.row_operands import RowOperands
from wpk.kernels.softmax import Shape, shape_of
from wpk.search.knobs import Ordered
from wpk.search.space import Space

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, tile: RowTile) -> Algorithm:
    """out[r,k] = epilogue(exp(x[r,k] - m[r]) / z[r]), m[r] = max_k x[r,k], z[r] = sum_k exp(x[r,k] - m[r])."""
    place = tuple(a.var for a in tile.axes[:2])

    def power(value: Expr, of: str) -> Expr:
        return Unary("exp", value - Load(of, place))

    stages = [
        *shares("largest", tile, "max", lambda r, k: Load("x", (r, k))),
        *(total(name, "largest", tile, "max") for name in ("m_a", "m_b")),
        *shares("powers", tile, "+", lambda r, k: Load("x", (r, k)), lambda x: power(x, "m_a")),
        total("z", "powers", tile, "+"),
        Stage("scale", tile.axes[:2], Unary("recip", Load("z", place))),
    ]
    operands, at = GpuOperands(workload, 1, s.groups), (tile.row, tile.element)
    value = operands.value(power(Load("x", at), "m_b") * Load("scale", place), (*at, tile.element * 0))
    y = workload.outputs[0]
    out = Buffer("out", (s.outer, s.length), y.dtype, access="out")
    stages.append(Stage("out", tile.axes, value, scatter=at, where=tile.inside, dtype=y.dtype))
    x = Buffer("x", (s.outer, s.length), workload.inputs[0].dtype)
    return Algorithm("softmax", (x, *operands.buffers(), out), tuple(stages))


def inner_algorithm(workload: Workload, s: Shape) -> Algorithm:
    """The same along the middle of x[r,k,i], for all i at once."""
    r, k, i = Axis("r", s.outer), Axis("k", s.length), Axis("i", s.inner)
    x = Load("x", (r.var, k.var, i.var))
    power = Unary("exp", x - Load("m", (r.var, i.var)))
    operands, y = GpuOperands(workload, 1, s.groups), workload.outputs[0]
    value = operands.value(power * Load("scale", (r.var, i.var)), (r.var, k.var, i.var))
    stages = (
        Stage("m", (r, i), x, Reduce("max", (k,), float("-inf"))),
        Stage("z", (r, i), power, Reduce("+", (k,))),
        Stage("scale", (r, i), Unary("recip", Load("z", (r.var, i.var)))),
        Stage("out", (r, k, i), value, dtype=y.dtype),
    )
    shape = (s.outer, s.length, s.inner)
    params = (Buffer("x", shape, workload.inputs[0].dtype), *operands.buffers(), Buffer("out", shape, y.dtype, access="out"))
    return Algorithm("softmax", params, stages)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, s: Shape, target: Target) -> Space:
    """Elements of a load, threads; along rows as in :func:`wpk.kernels.cuda.rows.row_space`."""
    assert target.gpu is not None
    size = size_of(workload)
    if s.inner == 1:
        return row_space(s.outer, s.length, width_of(s.length, bytes_each=size), target.gpu)
    widths = tuple(w for w in (1, 2, 4, 8) if w <= width_of(s.inner, bytes_each=size))
    vectors = s.outer * s.inner / (target.gpu.sms * 128)
    return Space((
        Ordered("width", widths, nearest(widths, max(vectors, 1))), Ordered("threads", (32, 64, 128, 256), 64),
    ))  # fmt: skip


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(tile: RowTile) -> list[Step]:
    """block: shares of the maximum; shares of the sum; threads: the quotient."""
    return [
        *out_steps(tile), *share_steps("powers", tile), *total_steps("z", "out"), *share_steps("largest", tile),
        *total_steps("m_a", "powers_part"), *total_steps("m_b", "out"), ComputeAt("scale", "out", "thread", "register"),
    ]  # fmt: skip


def inner_steps(c: Config) -> list[Step]:
    """block: thread: the maximum, the sum, the quotients of a vector of what lies inside."""
    plan: list[Step] = [
        Split("out", "i", int(c["width"]), "io", "v", "guard"), Reorder("out", ("r", "io", "k", "v")),
        Fuse("out", "r", "io", "job"),
        Split("out", "job", int(c["threads"]), "block", "thread", "guard"), Bind("out", "block", "block.x"),
        Bind("out", "thread", "thread"), Vectorize("out", "v"),
    ]  # fmt: skip
    for stage in ("m", "z"):
        plan += [ComputeAt(stage, "out", "thread", "register"), Reorder(stage, ("r", "k", "i")), Vectorize(stage, "i")]
    return [*plan, ComputeAt("scale", "out", "thread", "register"), Vectorize("scale", "i")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaSoftmax:
    """Softmax; see the module's docstring."""

    name: str = "cuda_softmax"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """16 or 32-bit floats in ROW, any axis; in NHWC without epilogue."""
        if workload.op != "softmax" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected softmax for cuda"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype not in STORED or y.dtype not in STORED or x.layout != y.layout or not x.shape or 0 in x.shape:
            return f"{x} → {y}, expected non-empty floats in one layout"
        if x.layout not in ("ROW", "NHWC") or (x.layout == "NHWC" and workload.epilogue is not None):
            return f"layout {x.layout}, expected ROW, or NHWC with no epilogue"
        w = as_rows(workload)
        return RowOperands(as_float32(w), 1, shape_of(w).groups).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        w = as_rows(workload)
        return space(w, shape_of(w), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        w = as_rows(workload)
        s = shape_of(w)
        name = f"softmax_{s.outer}x{s.length}x{s.inner}__{target.isa}"
        if s.inner > 1:
            return Built(lower(schedule(inner_algorithm(w, s), inner_steps(config)), name), target.isa)
        tile = tile_of(s.outer, s.length, config)
        return Built(lower(schedule(algorithm(w, s, tile), steps(tile)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return GpuOperands(workload, 1, shape_of(as_rows(workload)).groups).pack(constants, 0)


def as_rows(workload: Workload) -> Workload:
    """The same softmax on ROW tensors: of channels last, the axis stands elsewhere."""
    rank = len(workload.inputs[0].shape)
    axis = int(workload.ints("axis")[0] if isinstance(workload.attr("axis"), tuple) else workload.attr("axis")) % rank  # type: ignore[arg-type]
    if workload.outputs[0].layout != "NHWC":
        return workload
    moved = {0: 0, 1: rank - 1}.get(axis, axis - 1)
    view = in_rows(workload)
    return Workload(view.op, view.inputs, view.outputs, (("axis", moved),), view.epilogue, view.constants)


