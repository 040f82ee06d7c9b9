"""Convolutions on Hopper's tensor cores by ``wgmma``, channels last: 16-bit floats, and float32 where the workload allows tf32.

:mod:`wpk.kernels.cuda.conv_mma` on the fragments of :mod:`wpk.kernels.cuda.gemm_wgmma`. Where channels are whole steps of the sum
a tile of pixels is a box of the input (``fetch`` is its width, its height follows), moved by the kernel's offset: TMA fetches it
at once, zeros around the input included. A convolution that only mixes channels is fetched as a plain product (``fetch`` = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.fetch import LONGEST, WIDEST
from wpk.dsl.ir import Const, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import StoreAs, schedule
from wpk.kernels.cuda import gemm_wgmma
from wpk.kernels.cuda.conv import with_reading
from wpk.kernels.cuda.conv_shape import (
    Conv,
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
from wpk.kernels.cuda.gemm_mma import precision_of
from wpk.kernels.cuda.gemm_wgmma import ISA, Tile, as_tf32, tile_of, tiles_n
from wpk.kernels.cuda.nests import MOST_REGISTERS, gpu_of
from wpk.kernels.cuda.product import Ends
from wpk.kernels.cuda.wgmma_columns import spread_ends, spread_rows
from wpk.kernels.epilogue import ZERO
from wpk.kernels.family import Built
from wpk.kernels.gemm import Product
from wpk.kernels.instr.cuda import TYPES
from wpk.kernels.instr.wgmma import step_of
from wpk.search.space import Space

#: widths of a box of pixels: what eight, or sixteen neighbouring rows of a fragment are
WIDTHS = (8, 16)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boxes:
    """Tiles of pixels as boxes of an image: ``height × width`` pixels, ``down × across`` boxes."""

    height: int
    width: int
    down: int
    across: int


def boxes_of(s: Conv, t: Tile, width: int) -> Boxes:
    """The boxes of a convolution for tiles of so many pixels."""
    height = t.m // width
    return Boxes(height, width, -(-s.oh // height), -(-s.ow // width))


def place_of(s: Conv, b: Boxes, axes: tuple[Axis, ...]) -> tuple[Expr, Expr, Expr]:
    """Image, row and column of the pixel that the axes of m stand for; beyond the output where a box hangs over."""
    mb, mw, mi, mp, mh, mg = (x.var for x in axes)
    box, outer = mb % (b.down * b.across), (mw * axes[2].extent + mi) * 4 + mp
    row, column = (outer * 2 + mh, mg) if b.width == 8 else (outer, mh * 8 + mg)
    image = mb // (b.down * b.across) if s.n > 1 else Const(0)
    return image, box // b.across * b.height + row, box % b.across * b.width + column


def by_boxes(workload: Workload, s: Conv, p: Product, t: Tile, order: str, width: int) -> Algorithm:
    """The convolution over boxes of pixels: as[kb, ki, image, row, column]."""
    b, dtype = boxes_of(s, t, width), workload.inputs[0].dtype
    e, whole = spread_ends(ends(workload, s, p, order), p, "w", dtype), replace(p, m=s.n * b.down * b.across * t.m)

    def rows(axes: tuple[Axis, ...]) -> tuple[tuple[Expr, ...], Expr]:
        image, row, column = place_of(s, b, axes)
        return (image, row, column), (image * s.oh + row) * s.ow + column

    def out(acc: Expr, at: tuple[Expr, ...], place: tuple[Axis, ...]) -> Stage:
        named = {x.name: x for x in place}
        _, row, column = place_of(s, b, tuple(named[f"m{x}"] for x in "bwiphg"))
        return replace(e.out(acc, at, place), where=(row < s.oh) & (column < s.ow) & (at[-1] < p.n))

    def of_input(k: tuple[Axis, Axis], _: int) -> Stage:
        return box_stage(s, b, k, dtype)

    return gemm_wgmma.algorithm(whole, t, Ends(e.name, e.params, of_input, e.b, out, e.before), dtype, rows)


def box_stage(s: Conv, b: Boxes, k_axes: tuple[Axis, Axis], dtype: str) -> Stage:
    """as[kb, ki, image, row, column] = the input's channel at a pixel moved by the kernel's offset, 0 outside the input."""
    image, my, mx = Axis("image", s.n), Axis("my", b.down * b.height), Axis("mx", b.across * b.width)
    k = k_axes[0].var * k_axes[1].extent + k_axes[1].var
    tap, channel = k // s.c, k % s.c
    row, column = my.var * s.sh + tap // s.kw * s.dh - s.ph, mx.var * s.sw + tap % s.kw * s.dw - s.pw
    inside = (wrap(-1) < row) & (row < s.h) & (wrap(-1) < column) & (column < s.w)
    value = Select(inside, Load("x", (image.var, row, column, channel)), ZERO)
    return Stage("as", (*k_axes, image, my, mx), value, dtype=dtype)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def ways(s: Conv, dtype: str) -> tuple[int, ...]:
    """Ways to fetch the input, best first: 1 as rows of a matrix, else the width of a box; 0 by other copies."""
    if s.groups > 1 or s.c * DTYPE_BYTES[dtype] % 16:
        return (0,)
    if s.h == 1 and (s.kh, s.kw, s.sw) == (1, 1, 1) and not s.outside_w:
        return (1, 0)
    if s.c % step_of(dtype) or max(s.sh, s.sw) > WIDEST:
        return (0,)
    return (*sorted(WIDTHS, key=lambda w: -(-s.ow // w) * w), 0)


def space(workload: Workload, gpu: Gpu) -> Space:
    """That of a product of the same extents, and how the input is read, as in :mod:`wpk.kernels.cuda.conv`."""
    s, dtype = conv_of(workload), workload.inputs[0].dtype
    p, step = product_of(s, orders(s)[-1], by_k=True), step_of(dtype)

    def fits(c: Config) -> bool:
        t, of = tile_of(c), conv_of(workload, int(c["copy"]))
        vectors = 0 if c["fetch"] else vectors_of(of, str(c["reduce"]), dtype, t.m * step, step)
        return gemm_wgmma.registers(c) + 3 * vectors // t.threads <= MOST_REGISTERS

    def fetched(c: Config) -> bool:
        if int(c["fetch"]) == 0:
            return True
        plain = c["reduce"] == "kh_kw_c" and c["copy"] == 0
        return plain and (c["fetch"] == 1 or fits_boxes(s, p, step, c))

    product = gemm_wgmma.space(p, gpu, dtype, ways(s, dtype))
    likely = (-(-s.c // 8) * 8, 0) if s.c % 8 else (0,)
    found = with_reading(product, s, likely, lambda c: fits(c) and fetched(c))
    boxed = [{**c, "reduce": "kh_kw_c", "copy": 0} for c in product.first if ways(s, dtype)[0]]
    boxed = [c for c in boxed if all(holds(c) for holds in found.constraints)]
    copied = tuple({**c, "fetch": 0} for c in boxed[:1])
    return replace(found, first=(*boxed[:2], *copied, *boxed[2:]) if boxed else found.first)


def fits_boxes(s: Conv, p: Product, step: int, c: Config) -> bool:
    """Do boxes have a size that can be fetched, and steps of the sum, and blocks, come out even?"""
    t = tile_of(c)
    b = boxes_of(s, t, int(c["fetch"]))
    slow = s.n * b.down * b.across if c["order"] == "mn" else tiles_n(p, t)
    return max(b.height * s.sh, b.width * s.sw) <= LONGEST and p.k % (step * t.split) == 0 and slow % int(c["group"]) == 0


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaConvWgmma:
    """Implicit matrix product by wgmma; see the module's docstring."""

    name: str = "cuda_conv_wgmma"
    version: int = 1
    packing: tuple[str, ...] = ("reduce", "copy")

    def matches(self, workload: Workload, target: Target) -> str | None:
        """As CudaConvMma, in layout NHWC, on a GPU of compute capability 9.0."""
        if workload.op != "conv" or gpu_of(target) is None or target.isa != ISA:
            return f"op is {workload.op} for {target.arch} {target.isa}, expected conv for cuda {ISA}"
        if workload.inputs[0].layout != "NHWC":
            return f"input {workload.inputs[0]}, expected layout NHWC"
        dtype, s = precision_of(workload), conv_of(workload)
        if dtype is None:
            return f"operand {workload.inputs[0]}: tensor cores take float16, bfloat16, or float32 with precision tf32"
        if s.groups > 1 and s.cg * s.kh * s.kw < step_of(dtype):
            return f"groups with sums of {s.cg * s.kh * s.kw} products, expected {step_of(dtype)} at least"
        return unfit(workload, ("float32", "float16", "bfloat16"))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, order, dtype = conv_of(workload, int(config["copy"])), str(config["reduce"]), workload.inputs[0].dtype
        p, t, width = product_of(s, order, by_k=True), tile_of(config), int(config["fetch"])
        name = f"{TYPES[dtype][1]}_conv{s.kh}x{s.kw}_wgmma_{t.m}x{t.n}__{target.isa}"
        stored = [StoreAs("as", ("kb", "image", "my", "mx", "ki"), join=(("my", "mx"),), swizzle=128)] if width > 1 else []
        result = workload.outputs[0].dtype
        plan = gemm_wgmma.steps(p, t, config, dtype, result, strides_of(s, p, order, dtype), stored)
        plan += copied_first(s) if config["copy"] else []
        if width > 1:
            algorithm = by_boxes(workload, s, p, t, order, width)
        else:
            algorithm = gemm_wgmma.algorithm(p, t, spread_ends(ends(workload, s, p, order), p, "w", dtype), dtype)
        return Built(lower(schedule(algorithm, plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights by groups as (rows, k) in the order of the sum, padded; epilogue constants in the output's order."""
        weights, *rest = pack(workload, config, constants, by_k=True)
        return [as_tf32(spread_rows(weights)), *rest]
