"""Convolutions in float32 for GPUs, as matrix products whose left or right matrix is read from the input as it goes.

The plan is that of :mod:`wpk.kernels.cuda.gemm`: block tiles in shared memory, thread tiles in registers, split-K, pipelines.
Only what the tiles are copied from differs (:mod:`wpk.kernels.cuda.conv_shape`), after Chetlur et al., "cuDNN: Efficient
Primitives for Deep Learning", 2014 (implicit GEMM).
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
from wpk.kernels.cuda import gemm
from wpk.kernels.cuda.conv_shape import (
    Conv,
    conv_of,
    copies_of,
    ends,
    orders,
    pack,
    product_of,
    strides_of,
    unfit,
)
from wpk.kernels.cuda.nests import MOST_REGISTERS, gpu_of
from wpk.kernels.family import Built
from wpk.search.knobs import Choice
from wpk.search.space import Constraint, Space

# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Conv, gpu: Gpu) -> Space:
    """That of a product of the same extents, and the order of the sum (``reduce``)."""

    def fits(c: Config) -> bool:
        t = gemm.tile_of(c)
        copies = copies_of(s, str(c["reduce"]), "float32", (t.m if s.last else t.n) * t.k, t.k) // t.threads
        return gemm.registers(c) + 2 * copies <= MOST_REGISTERS

    return with_orders(gemm.space(product_of(s, orders(s)[0]), gpu), s, fits)


def with_orders(product: Space, s: Conv, fits: Constraint) -> Space:
    """A product's space with a knob for the order of the sum, and registers for addresses of what is copied."""
    known = orders(s)
    limits = (*product.constraints, fits)
    guesses = [{**c, "reduce": order} for c in product.first for order in known]
    first = [c for c in guesses if all(limit(c) for limit in limits)]
    likely = [c for c in first if c["reduce"] == known[0]]
    others = [c for c in first if c["reduce"] != known[0]][:1]
    return Space((*product.knobs, Choice("reduce", known, known[0])), limits, (*likely[:2], *others, *likely[2:]))


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaConv:
    """Implicit matrix product; see the module's docstring."""

    name: str = "cuda_conv"
    version: int = 1
    packing: tuple[str, ...] = ("reduce",)

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 convolutions over two dimensions with constant weights, input and output both ROW or both NHWC."""
        if workload.op != "conv" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected conv for cuda"
        return unfit(workload, ("float32",))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(conv_of(workload), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, order = conv_of(workload), str(config["reduce"])
        p, t = product_of(s, order), gemm.tile_of(config)
        name = f"f32_conv{s.kh}x{s.kw}_{t.m}x{t.n}x{t.k}__{target.isa}"
        plan = gemm.steps(p, t, config, strides_of(s, p, order, "float32"))
        return Built(lower(schedule(gemm.algorithm(p, t, ends(workload, s, p, order)), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights by groups as (k, rows) in the order of the sum, padded; epilogue constants in the output's order."""
        return pack(workload, str(config["reduce"]), constants)
