"""Max and average pooling for GPUs: a thread has a vector of outputs in registers and goes through their window.

Where the whole image is one window and lies row by row, each channel is a row that all threads of some add up together
(:mod:`wpk.kernels.cuda.rows`). Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Reorder, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.images import ImageOperands, job_space, job_steps, size_of, unfit
from wpk.kernels.cuda.nests import width_of
from wpk.kernels.cuda.rows import RowTile, reduced_steps, row_space, shares, tile_of, total
from wpk.kernels.family import Built
from wpk.kernels.pool import Shape, pooled_scale, shape_of
from wpk.search.knobs import Choice
from wpk.search.space import Space

NO_INDEX: Expr = Const(0)


def whole(workload: Workload, s: Shape) -> bool:
    """True when a channel is one row of memory and one window."""
    return s.rows.kernel == s.rows.size == 1 and s.cols.out == 1 and workload.outputs[0].layout == "ROW"


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape) -> Algorithm:
    """out[n,c,oh,ow] = epilogue(max or mean over kh, kw of x[n,c,oh*sh+kh*dh-ph,ow*sw+kw*dw-pw]), axes in memory's order."""
    last = workload.outputs[0].layout == "NHWC"
    n, c, oh, ow = (Axis(a, e) for a, e in zip(("n", "c", "oh", "ow"), (s.n, s.c, s.rows.out, s.cols.out), strict=True))
    kh, kw = Axis("kh", s.rows.kernel), Axis("kw", s.cols.kernel)
    op, init = ("+", 0.0) if s.average else ("max", -np.inf)
    row = oh.var * s.rows.stride + kh.var * s.rows.dilation - s.rows.pad
    col = ow.var * s.cols.stride + kw.var * s.cols.dilation - s.cols.pad
    value: Expr = Load("x", _order(last, n.var, c.var, row, col))
    if s.padded:
        inside = (wrap(-1) < row) & (row < s.rows.size) & (wrap(-1) < col) & (col < s.cols.size)
        value = Select(inside, value, Const(init, "float32"))
    axes = (n, oh, ow, c) if last else (n, c, oh, ow)
    acc = Stage("acc", axes, value, Reduce(op, (kh, kw), init))
    done: Expr = Load("acc", tuple(a.var for a in axes))
    scale, tables = pooled_scale(s, oh, ow) if s.average else (None, ())
    operands = ImageOperands(workload)
    result = operands.value(done if scale is None else done * scale, n.var, c.var, oh.var, ow.var)
    x, y = workload.inputs[0], workload.outputs[0]
    params = (
        Buffer("x", _sizes(last, s.n, s.c, s.rows.size, s.cols.size), x.dtype), *operands.buffers(),
        Buffer("out", tuple(a.extent for a in axes), y.dtype, access="out"),
    )  # fmt: skip
    return Algorithm("pool", params, (acc, Stage("out", axes, result, dtype=y.dtype)), tables)


def row_algorithm(workload: Workload, s: Shape, tile: RowTile) -> Algorithm:
    """out[r] = epilogue(max or mean over k of x[r,k]) for row r = n*C + c of one image's channel."""
    op, (rb, ri) = "+" if s.average else "max", tile.axes[:2]
    stages = [*shares("part", tile, op, lambda r, k: Load("x", (r, k))), total("total", "part", tile, op)]
    value: Expr = Load("total", (rb.var, ri.var))
    value = value * float(np.float32(1 / s.cols.size)) if s.average else value
    operands, y = ImageOperands(workload), workload.outputs[0]
    image, channel = (tile.row // s.c, tile.row % s.c) if s.n > 1 else (NO_INDEX, tile.row)
    value = operands.value(value, image, channel, NO_INDEX, NO_INDEX)
    out = Stage("out", (rb, ri, Axis("t", 1)), value, scatter=(tile.row,), dtype=y.dtype)
    params = (
        Buffer("x", (s.n * s.c, s.cols.size), workload.inputs[0].dtype), *operands.buffers(),
        Buffer("out", (s.n * s.c,), y.dtype, access="out"),
    )  # fmt: skip
    return Algorithm("pool", params, (*stages, out))


def _order(last: bool, n: Expr, c: Expr, h: Expr, w: Expr) -> tuple[Expr, ...]:
    return (n, h, w, c) if last else (n, c, h, w)


def _sizes(last: bool, n: int, c: int, h: int, w: int) -> tuple[int, ...]:
    return (n, h, w, c) if last else (n, c, h, w)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, s: Shape, target: Target) -> Space:
    """As jobs, and whether the window is unrolled; or as rows."""
    assert target.gpu is not None
    if whole(workload, s):
        size = DTYPE_BYTES[workload.inputs[0].dtype]
        return row_space(s.n * s.c, s.cols.size, width_of(s.cols.size, bytes_each=size), target.gpu)
    last = workload.outputs[0].layout == "NHWC"
    count, row = s.n * s.c * s.rows.out * s.cols.out, s.c if last else s.cols.out
    small = s.rows.kernel * s.cols.kernel <= 25
    unroll = Choice("unroll", ("all", "row") if small else ("row",), "all" if small else "row")
    return job_space(count, row, size_of(workload), target.gpu, (unroll,))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(workload: Workload, c: Config) -> list[Step]:
    """block: thread: acc over the window; out."""
    last = workload.outputs[0].layout == "NHWC"
    lead, along = (("n", "oh", "ow"), "c") if last else (("n", "c", "oh"), "ow")
    inner = "vector" if int(c["vectors"]) > 1 else "thread"
    return [
        *job_steps("out", lead, along, c), ComputeAt("acc", "out", inner, "register"),
        Reorder("acc", (*lead, "kh", "kw", along)), Unroll("acc", "kw"), Vectorize("acc", along),
        *([Unroll("acc", "kh")] if c["unroll"] == "all" else []),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaPool:
    """Pooling; see the module's docstring."""

    name: str = "cuda_pool"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Images of 16 or 32-bit floats in ROW or NHWC, the same in and out."""
        return unfit(workload, "pool", target)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(workload, shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, kind = shape_of(workload), workload.attr("kind")
        name = f"{kind}pool_{s.rows.kernel}x{s.cols.kernel}_{s.c}x{s.rows.out}x{s.cols.out}__{target.isa}"
        if whole(workload, s):
            tile = tile_of(s.n * s.c, s.cols.size, config)
            plan = reduced_steps("part", tile, "total")
            return Built(lower(schedule(row_algorithm(workload, s, tile), plan), name), target.isa)
        return Built(lower(schedule(algorithm(workload, s), steps(workload, config)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants in the order of memory."""
        return ImageOperands(workload).pack(constants)
