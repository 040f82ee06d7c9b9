"""Batched matrix products with NumPy broadcasting: the kernel of :mod:`wpk.kernels.gemm` with batch dimensions around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.kernels import gemm
from wpk.kernels.family import Built
from wpk.search.space import Space


@dataclass(frozen=True)
class MatMul:
    """Batched matrix product of ROW tensors; a constant right operand is packed at compile time."""

    name: str = "matmul"
    version: int = 1
    packing: tuple[str, ...] = ("isa", "tile_n")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 matmul in layout ROW."""
        if workload.op != "matmul":
            return f"op is {workload.op}, expected matmul"
        return gemm.unfit(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`wpk.kernels.gemm.space`."""
        return gemm.space(gemm.product_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        return gemm.build(workload, config)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """See :func:`wpk.kernels.gemm.pack`."""
        return gemm.pack(workload, gemm.width_of(config), constants)
