"""Layer and RMS normalization for GPUs: a block for some rows, each read three times, from L1 after the first.

Mean, then the squares of the distances from it, then the quotient (:mod:`wpk.kernels.norm`); sums as in
:mod:`wpk.kernels.cuda.rows`, so that results repeat bit by bit. Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Step, schedule
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
from wpk.kernels.norm import Norm, Shape, shape_of
from wpk.search.space import Space

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, tile: RowTile) -> Algorithm:
    """out[r,k] = epilogue(d[r,k] / sqrt(sum_k d[r,k]² / n + epsilon)) with d = x, or x minus its mean over k."""
    place, share = tuple(a.var for a in tile.axes[:2]), float(np.float32(1 / s.length))
    x = workload.inputs[0].dtype
    stages: list[Stage] = []
    if s.centred:
        stages += shares("sum", tile, "+", lambda r, k: Load("x", (r, k)))
        stages += [total(name, "sum", tile, "+") for name in ("sum_a", "sum_b")]

    def distance(value: Expr, of: str) -> Expr:
        return value - Load(of, place) * share if s.centred else value

    def squared(value: Expr) -> Expr:
        d = distance(value, "sum_a")
        return d * d

    stages += shares("squares", tile, "+", lambda r, k: Load("x", (r, k)), squared)
    stages.append(total("square", "squares", tile, "+"))
    root = Unary("sqrt", Load("square", place) * share + s.epsilon)
    stages.append(Stage("scale", tile.axes[:2], Unary("recip", root)))
    operands = GpuOperands(workload, 1, s.groups)
    at = (tile.row, tile.element)
    value = operands.value(distance(Load("x", at), "sum_b") * Load("scale", place), at)
    out = Buffer("out", (s.outer, s.length), workload.outputs[0].dtype, access="out")
    stages.append(Stage("out", tile.axes, value, scatter=at, where=tile.inside, dtype=out.dtype))
    return Algorithm("norm", (Buffer("x", (s.outer, s.length), x), *operands.buffers(), out), tuple(stages))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, tile: RowTile) -> list[Step]:
    """block: shares of the sum; shares of the squares; threads: the quotient."""
    plan = [*out_steps(tile), *share_steps("squares", tile), *total_steps("square", "out")]
    if s.centred:
        plan += [*share_steps("sum", tile), *total_steps("sum_a", "squares_part"), *total_steps("sum_b", "out")]
    return [*plan, ComputeAt("scale", "out", "thread", "register")]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaNorm:
    """Layer and RMS normalization; see the module's docstring."""

    name: str = "cuda_norm"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Norm over the last axes of a ROW tensor of 16 or 32-bit floats."""
        if gpu_of(target) is None:
            return f"target is {target.arch}, expected cuda"
        if workload.op == "norm" and workload.inputs[0].dtype not in STORED:
            return f"{workload.inputs[0]}, expected floats"
        return Norm().matches(as_float32(workload), target)

    def space(self, workload: Workload, target: Target) -> Space:
        """Elements of a load, threads of a row, rows of a block."""
        assert target.gpu is not None
        s = shape_of(workload)
        size = max(DTYPE_BYTES[t.dtype] for t in (*workload.inputs, *workload.outputs))
        return row_space(s.outer, s.length, width_of(s.length, bytes_each=size), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        tile = tile_of(s.outer, s.length, config)
        name = f"norm_{s.outer}x{s.length}_{tile.rows}x{tile.threads}__{target.isa}"
        return Built(lower(schedule(algorithm(workload, s, tile), steps(s, tile)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants with the dimensions merged."""
        return GpuOperands(workload, 1, shape_of(workload).groups).pack(constants, 0)
