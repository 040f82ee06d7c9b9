"""Products with few rows on GPUs, as fully connected layers at batch 1 are: the weights come once, at the memory's speed.

A row of weights (one output) is shared by some threads of a block, which read it in whole lines and add their shares in shared
memory, in order (:mod:`wpk.kernels.cuda.rows`); a block has a few rows. Weights that lie the other way round are turned
when they are packed. Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import schedule
from wpk.kernels.cuda.nests import gpu_of, width_of
from wpk.kernels.cuda.operands import STORED, GpuOperands, as_float32
from wpk.kernels.cuda.rows import RowTile, reduced_steps, row_space, shares, tile_of, total
from wpk.kernels.family import Built
from wpk.kernels.gemm import Product, product_of
from wpk.kernels.gemm import unfit as unfit_product
from wpk.search.space import Space

#: rows of the first operand for which weights are read again, from L2
MOST_ROWS = 4

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, p: Product, tile: RowTile) -> Algorithm:
    """out[m, n] = epilogue(sum over k of a[m, k] * w[n, k]), row r = n*M + m, so that neighbours share weights."""
    rb, ri = tile.axes[:2]

    def element(row: Expr, k: Expr) -> Expr:
        n, m = (row // p.m, row % p.m) if p.m > 1 else (row, Const(0))
        return Load("a", (m, k)) * Load("b", (n, k))

    stages = [*shares("part", tile, "+", element), total("total", "part", tile, "+")]
    n, m = (tile.row // p.m, tile.row % p.m) if p.m > 1 else (tile.row, Const(0))
    operands, y = GpuOperands(workload, 2, p.groups), workload.outputs[0]
    value = operands.value(Load("total", (rb.var, ri.var)), (m, n))
    stages.append(Stage("out", (rb, ri, Axis("t", 1)), value, scatter=(m, n), dtype=y.dtype))
    a, b = (Buffer(v, (rows, p.k), t.dtype) for v, rows, t in zip("ab", (p.m, p.n), workload.inputs, strict=False))
    return Algorithm("gemv", (a, b, *operands.buffers(), Buffer("out", (p.m, p.n), y.dtype, access="out")), tuple(stages))


# --- THE FAMILY: THE SPACE and THE SCHEDULE are those of wpk.kernels.cuda.rows ------------------------------------------


@dataclass(frozen=True)
class CudaGemv:
    """Products of a few rows with constant weights; see the module's docstring."""

    name: str = "cuda_gemv"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Gemm in ROW of 16 or 32-bit floats: at most four rows, not transposed, by constant weights."""
        if workload.op != "gemm" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected gemm for cuda"
        if any(t.dtype not in STORED for t in (*workload.inputs[:2], *workload.outputs)):
            return f"operand {workload.inputs[0]}, expected floats"
        reason = unfit_product(as_float32(workload))
        if reason is not None:
            return reason
        p = product_of(workload)
        if p.m > MOST_ROWS or (p.trans_a and p.m > 1):
            return f"{p.m} rows{', transposed' if p.trans_a else ''}, expected at most {MOST_ROWS}, as they are"
        return None if 1 in workload.constants or p.trans_b else "weights (K, N) that are not constant"

    def space(self, workload: Workload, target: Target) -> Space:
        """Elements of a load, threads of a row, rows of a block."""
        assert target.gpu is not None
        p = product_of(workload)
        size = max(DTYPE_BYTES[t.dtype] for t in workload.inputs[:2])
        return row_space(p.m * p.n, p.k, width_of(p.k, bytes_each=size), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        p = product_of(workload)
        tile = tile_of(p.m * p.n, p.k, config)
        name = f"gemv_{p.m}x{p.n}x{p.k}_{tile.rows}x{tile.threads}__{target.isa}"
        return Built(lower(schedule(algorithm(workload, p, tile), reduced_steps("part", tile, "total")), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights as (N, K), epilogue operands with the output's dimensions merged."""
        p = product_of(workload)
        own = [i for i in workload.constants if i < 2]
        turned = [
            np.ascontiguousarray(c.T if i == 1 and not p.trans_b else c.reshape((p.m, p.k)) if i == 0 else c)
            for i, c in zip(own, constants, strict=False)
        ]
        return [*turned, *GpuOperands(workload, 2, p.groups).pack(constants, len(own))]
