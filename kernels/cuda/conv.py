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
    copied_first,
    copies,
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
from wpk.search.knobs import Choice
from wpk.search.space import Constraint, Space

# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, gpu: Gpu) -> Space:
    """That of a product of the same extents, the order of the sum (``reduce``), channels of a padded copy (``copy``)."""
    s = conv_of(workload)

    def fits(c: Config) -> bool:
        t, of = gemm.tile_of(c), conv_of(workload, int(c["copy"]))
        vectors = vectors_of(of, str(c["reduce"]), "float32", (t.m if s.last else t.n) * t.k * t.slices, t.k)
        return gemm.registers(c) + 2 * vectors // t.threads <= MOST_REGISTERS

    return with_reading(gemm.space(product_of(s, orders(s)[0]), gpu, stream=True), s, (0, s.c), fits)


def with_reading(product: Space, s: Conv, likely: tuple[int, ...], fits: Constraint) -> Space:
    """A product's space with knobs for how the input is read; ``likely``: copies that guesses make, best first.

    ``fits``: registers suffice for the addresses of what is copied.
    """
    known, made = orders(s), copies(s)
    limits: tuple[Constraint, ...] = (
        *product.constraints, fits, lambda c: c["copy"] == 0 or c["reduce"] == "kh_kwc",
    )  # fmt: skip
    ways = [(known[0], c) for c in likely if c in made] + [(order, 0) for order in known[1:]]
    knobs = (*product.knobs, Choice("reduce", known, known[0]), Choice("copy", made, ways[0][1]))
    found = [[{**c, "reduce": o, "copy": n} for c in product.first] for o, n in ways]
    found = [[c for c in of if all(limit(c) for limit in limits)] for of in found]
    best, *others = found
    return Space(knobs, limits, (*best[:2], *(c for of in others for c in of[:1]), *best[2:]))


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaConv:
    """Implicit matrix product; see the module's docstring."""

    name: str = "cuda_conv"
    version: int = 1
    packing: tuple[str, ...] = ("reduce", "copy")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 convolutions over two dimensions with constant weights, input and output both ROW or both NHWC."""
        if workload.op != "conv" or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected conv for cuda"
        return unfit(workload, ("float32",))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, order = conv_of(workload, int(config["copy"])), str(config["reduce"])
        p, t = product_of(s, order), gemm.tile_of(config)
        name = f"f32_conv{s.kh}x{s.kw}_{t.m}x{t.n}x{t.k}__{target.isa}"
        plan = gemm.steps(p, t, config, strides_of(s, p, order, "float32"))
        plan += copied_first(s) if config["copy"] else []
        return Built(lower(schedule(gemm.algorithm(p, t, ends(workload, s, p, order)), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights by groups as (k, rows) in the order of the sum, padded; epilogue constants in the output's order."""
        return pack(workload, config, constants)
