"""Convolutions on tensor cores: float16, bfloat16, and float32 where the workload allows tf32.

:mod:`wpk.kernels.cuda.conv` on the fragments of :mod:`wpk.kernels.cuda.gemm_mma`. Weights are packed along the sum, so that both
matrices are read like the input of a channels-last convolution, whole 16-byte pieces of the sum at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.dsl.lower import lower
from wpk.dsl.schedule import schedule
from wpk.kernels.cuda import gemm_mma
from wpk.kernels.cuda.conv import with_reading
from wpk.kernels.cuda.conv_shape import (
    conv_of,
    copied_first,
    ends,
    orders,
    pack,
    product_of,
    strides_of,
    unfit,
    vectors_of,
)
from wpk.kernels.cuda.nests import MOST_REGISTERS, gpu_of
from wpk.kernels.family import Built
from wpk.kernels.instr.cuda import TYPES
from wpk.search.space import Space

# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, gpu: Gpu) -> Space:
    """That of a product of the same extents, and how the input is read, as in :mod:`wpk.kernels.cuda.conv`."""
    s, dtype = conv_of(workload), workload.inputs[0].dtype

    def fits(c: Config) -> bool:
        t, of = gemm_mma.tile_of(c, dtype), conv_of(workload, int(c["copy"]))
        vectors = vectors_of(of, str(c["reduce"]), dtype, (t.m if s.last else t.n) * t.k * t.slices, t.k)
        return gemm_mma.registers(c) + 3 * vectors // t.threads <= MOST_REGISTERS

    product = gemm_mma.space(product_of(s, orders(s)[0], by_k=True), dtype, gpu, stream=True)
    likely = (-(-s.c // 4) * 4, 0) if s.c % 4 else (0, s.c)
    return with_reading(product, s, likely, fits)


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaConvMma:
    """Implicit matrix product on tensor cores; see the module's docstring."""

    name: str = "cuda_conv_mma"
    version: int = 1
    packing: tuple[str, ...] = ("reduce", "copy")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """As CudaConv, of 16-bit floats, or float32 with ``precision="tf32"``."""
        if workload.op != "conv" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected conv for cuda"
        if gemm_mma.precision_of(workload) is None:
            return f"operand {workload.inputs[0]}: tensor cores take float16, bfloat16, or float32 with precision tf32"
        return unfit(workload, ("float32", "float16", "bfloat16"))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, order, dtype = conv_of(workload, int(config["copy"])), str(config["reduce"]), workload.inputs[0].dtype
        p, t = product_of(s, order, by_k=True), gemm_mma.tile_of(config, dtype)
        name = f"{TYPES[dtype][1]}_conv{s.kh}x{s.kw}_mma_{t.m}x{t.n}x{t.k}__{target.isa}"
        plan = gemm_mma.steps(p, t, config, dtype, strides_of(s, p, order, dtype))
        plan += copied_first(s) if config["copy"] else []
        return Built(lower(schedule(gemm_mma.algorithm(p, t, ends(workload, s, p, order)), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights by groups as (rows, k) in the order of the sum, padded; epilogue constants in the output's order."""
        return pack(workload, config, constants, by_k=True)
