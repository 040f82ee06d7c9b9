"""Convolutions as matrix products for GPUs: numbers, orders of the sum, the input's rows as they are read, packed weights.

Channels last, a product has pixels as rows and output channels as columns; otherwise it is the other way round, with an image
a batch. The sum runs over kh, kw and channels, in an order in which neighbours lie next to each other in memory or share
what is to be divided: then a step of the sum needs no division by thread, and whole vectors are inside the input or outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import gcd, prod

import numpy as np

from wpk.core.result import Config
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Axis, Stage
from wpk.dsl.ir import Buffer, Const, Expr, Load, Select, wrap
from wpk.dsl.schedule import Bind, Split, Step
from wpk.kernels.cuda.eltwise import in_rows
from wpk.kernels.cuda.nests import fuse_all, width_of
from wpk.kernels.cuda.operands import GpuOperands
from wpk.kernels.cuda.product import Ends, batch_axes, staged
from wpk.kernels.epilogue import ZERO, padded
from wpk.kernels.gemm import Product

#: elements that rows of the packed sum are padded to, where that wastes little
UNITS = (16, 8, 4)
NO_INDEX: Expr = Const(0)


@dataclass(frozen=True)
class Conv:
    """A convolution's numbers. One that only mixes channels has one row of all its pixels."""

    n: int
    c: int
    h: int
    w: int
    k: int
    oh: int
    ow: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    groups: int
    last: bool

    @property
    def cg(self) -> int:
        """Input channels of a group."""
        return self.c // self.groups

    @property
    def kg(self) -> int:
        """Output channels of a group."""
        return self.k // self.groups

    @property
    def pixels(self) -> int:
        """Output pixels of an image."""
        return self.oh * self.ow

    @property
    def outside_h(self) -> bool:
        """True when rows outside the input are read."""
        return self.ph > 0 or (self.oh - 1) * self.sh + (self.kh - 1) * self.dh >= self.h

    @property
    def outside_w(self) -> bool:
        """True when columns outside the input are read."""
        return self.pw > 0 or (self.ow - 1) * self.sw + (self.kw - 1) * self.dw >= self.w


def conv_of(workload: Workload, copy: int = 0) -> Conv:
    """The numbers of a conv workload; those on a padded copy of the input with ``copy`` channels, if any."""
    s = _joined(workload)
    if copy == 0:
        return s
    s = replace(s, c=copy, h=(s.oh - 1) * s.sh + (s.kh - 1) * s.dh + 1, ph=0, pw=0)
    row = (s.ow - 1) * s.sw * copy + run_of(s, "kh_kwc")[1]
    return replace(s, w=next(w for w in count(-(-row // copy)) if w * copy % 8 == 0))


def given(workload: Workload) -> Conv:
    """The numbers of a conv workload, rows and images apart even where it only mixes channels."""
    (n, c, h, w), (k, _, kh, kw), y = workload.inputs[0].shape, workload.inputs[1].shape, workload.outputs[0]
    pads, groups = workload.ints("pads"), int(workload.attr("group"))  # type: ignore[arg-type]
    (sh, sw), (dh, dw), (oh, ow) = workload.ints("strides"), workload.ints("dilations"), y.shape[2:]
    return Conv(n, c, h, w, k, oh, ow, kh, kw, sh, sw, pads[0], pads[1], dh, dw, groups, y.layout == "NHWC")


def _joined(workload: Workload) -> Conv:
    s = given(workload)
    if (s.kh, s.kw, s.sh, s.sw) != (1, 1, 1, 1) or any(workload.ints("pads")):
        return s
    n, h, w = (1, 1, s.n * s.h * s.w) if s.last and _whole(workload) else (s.n, 1, s.h * s.w)
    return replace(s, n=n, h=h, w=w, oh=h, ow=w)


def _whole(workload: Workload) -> bool:
    """True when what the epilogue reads is the same for all pixels of all images, or given for each."""
    n, _, h, w = workload.outputs[0].shape
    shapes = (padded(t.shape) for t in workload.inputs[2:])
    return all((x[0], *x[2:]) in ((1, 1, 1), (n, h, w)) for x in shapes)


def copies(s: Conv) -> tuple[int, ...]:
    """Channels that a padded copy of the input may have, where rows of it are read whole; 0: no copy."""
    if "kh_kwc" not in orders(s) or not (s.outside_h or s.outside_w):
        return (0,)
    wide = (-(-s.c // 4) * 4, -(-s.c // 8) * 8) if s.c < 8 else ()
    return tuple(sorted({0, s.c, *wide}))


# --- THE ORDER OF THE SUM -----------------------------------------------------------------------------------------------


def orders(s: Conv) -> tuple[str, ...]:
    """Orders of the sum, the likely best one first."""
    if s.last:
        joint = s.groups == 1 and s.dw == 1 and s.kw > 1
        return ("kh_kwc", "kh_kw_c") if joint else ("kh_kw_c",)
    return ("c_kh_kw", "kh_kw_c") if s.cg < 8 and s.kw > 1 else ("kh_kw_c",)


def run_of(s: Conv, order: str) -> tuple[int, int]:
    """Elements of the innermost part of the sum, and the same padded."""
    run = {"kh_kwc": s.kw * s.cg, "kh_kw_c": s.cg, "c_kh_kw": s.kw}[order]
    wide = (-(-run // u) * u for u in UNITS)
    return run, next((n for n in wide if n * 7 <= run * 8), run)


def depth(s: Conv, order: str) -> int:
    """Elements of the sum, padding included."""
    return s.kh * s.kw * s.cg // run_of(s, order)[0] * run_of(s, order)[1]


def product_of(s: Conv, order: str, by_k: bool = False) -> Product:
    """The matrix product. Weights are [k][row], or [row][k] where ``by_k``."""
    k = depth(s, order)
    group = (s.groups,) if s.groups > 1 else ()
    if s.last:
        return Product(group, group, group, s.n * s.pixels, k, s.kg, False, by_k, True, ())
    images = (s.n,) if s.n > 1 else ()
    weights = (*(1 for _ in images), *group)
    return Product((*images, *group), weights, (*images, *group), s.kg, k, s.pixels, not by_k, False, True, ())


def strides_of(s: Conv, p: Product, order: str, dtype: str) -> tuple[int, int]:
    """What vectors of a and b are multiples of in memory: as :func:`wpk.kernels.cuda.gemm.steps` wants them."""
    weights = padded_weights(p, s, dtype)[-1]
    if s.last:
        whole = order == "kh_kwc" and not s.outside_w
        pieces = (s.sw * s.c, s.w * s.c, run_of(s, order)[1]) if whole else (s.c, s.cg)
        return gcd(*pieces), weights
    return weights, (s.w if s.h == 1 and (s.kw, s.sw) == (1, 1) and not s.outside_w else 1)


def vectors_of(s: Conv, order: str, dtype: str, elements: int, tile_k: int) -> int:
    """Vectors that so many elements of the input's tile are copied in, by steps of ``tile_k``."""
    stride = strides_of(s, product_of(s, order), order, dtype)[not s.last]
    return elements // width_of(stride, *((tile_k,) if s.last else ()), bytes_each=DTYPE_BYTES[dtype])


# --- WHAT IS READ -------------------------------------------------------------------------------------------------------


def input_buffer(s: Conv, order: str, dtype: str) -> Buffer:
    """The input's memory; pixels and channels of a row are one dimension where the sum runs over both."""
    if not s.last:
        return Buffer("x", (s.n, s.c, s.h, s.w), dtype)
    return Buffer("x", (s.n, s.h, s.w * s.c) if order == "kh_kwc" else (s.n, s.h, s.w, s.c), dtype)


def padded_copy(s: Conv, own: Conv, dtype: str) -> Stage:
    """xp[image, row, pixel and channel] = the input where there is some, 0 around it; ``own`` are the workload's numbers."""
    n, h, j = Axis("n", s.n), Axis("h", s.h), Axis("j", s.w * s.c)
    column, c = j.var // s.c, j.var % s.c
    at = j.var - own.pw * own.c if s.c == own.c else (column - own.pw) * own.c + c
    inside = _within(c < own.c, h.var - own.ph, own.h)
    inside = _within(inside, column - own.pw, own.w)
    return Stage("xp", (n, h, j), Select(inside, Load("x", (n.var, h.var - own.ph, at)), ZERO), dtype=dtype)


def copied_first(s: Conv, threads: int = 256) -> list[Step]:
    """The kernel that makes the padded copy: a thread for each element."""
    fuse, one = fuse_all("xp", ("n", "h", "j"), "job")
    return [
        *fuse, Split("xp", one, threads, "block", "element", "guard"),
        Bind("xp", "block", "block.x"), Bind("xp", "element", "thread"),
    ]  # fmt: skip


def staged_input(
    name: str, tensor: str, s: Conv, p: Product, order: str, k_axes: tuple[Axis, Axis], rows: int, dtype: str
) -> Stage:
    """``name[batch, kb, ki, pixel]`` = what the pixel multiplies with the k-th weights, 0 outside the input.

    Weights beyond the innermost part of the sum are zero. A copy is read there as it is, the input may not have it.
    """
    batch, axis = batch_axes(p), Axis("m" if s.last else "n", rows)
    k, pixel = k_axes[0].var * k_axes[1].extent + k_axes[1].var, axis.var
    image, at = _pixel(s, batch, pixel)
    kh, kw, c, run = _taps(s, order, k)
    row, column = at[0] * s.sh + kh * s.dh - s.ph, at[1] * s.sw + kw * s.dw - s.pw
    inside: Expr = (pixel < (s.n if s.last else 1) * s.pixels) & (k < p.k)
    if tensor == "x" and run_of(s, order)[0] < run_of(s, order)[1]:
        inside = inside & (run < run_of(s, order)[0])
    inside = _within(inside, row, s.h) if s.outside_h else inside
    channel = batch[-1].var * s.cg + c if s.groups > 1 else c
    if order == "kh_kwc":
        column = (at[1] * s.sw - s.pw) * s.c + run
        index: tuple[Expr, ...] = (image, row, column)
    else:
        index = (image, row, column, channel) if s.last else (image, channel, row, column)
    if s.outside_w:
        inside = _within(inside, column, s.w * s.c if order == "kh_kwc" else s.w)
    return Stage(name, (*batch, *k_axes, axis), Select(inside, Load(tensor, index), ZERO), dtype=dtype)


def _pixel(s: Conv, batch: tuple[Axis, ...], pixel: Expr) -> tuple[Expr, tuple[Expr, Expr]]:
    """Image and (row, column) of a pixel of the output."""
    image: Expr = NO_INDEX
    if s.n > 1:
        image, pixel = (pixel // s.pixels, pixel % s.pixels) if s.last else (batch[0].var, pixel)
    return image, ((pixel // s.ow, pixel % s.ow) if s.oh > 1 else (NO_INDEX, pixel))


def _taps(s: Conv, order: str, k: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """kh, kw and channel of the k-th element of the sum, and its place in the innermost part."""
    run = run_of(s, order)[1]
    outer, inner = (NO_INDEX, k) if run == depth(s, order) else (k // run, k % run)
    if order == "kh_kwc":
        return outer, NO_INDEX, NO_INDEX, inner
    if order == "c_kh_kw":
        return outer % s.kh, inner, outer // s.kh, inner
    return outer // s.kw, outer % s.kw, inner, inner


def _within(inside: Expr, at: Expr, extent: int) -> Expr:
    return inside & (wrap(-1) < at) & (at < extent)


# --- WEIGHTS ------------------------------------------------------------------------------------------------------------


def padded_weights(p: Product, s: Conv, dtype: str) -> tuple[int, ...]:
    """The shape of packed weights, (groups…, k, rows) or (groups…, rows, k), rows of memory a multiple of 16 bytes."""
    batch, by_k = (p.b_batch, p.trans_b) if s.last else (p.a_batch, not p.trans_a)
    unit = 16 // DTYPE_BYTES[dtype]
    first, second = (s.kg, p.k) if by_k else (p.k, s.kg)
    return (*batch, first, -(-second // unit) * unit)


def packed_weights(weights: np.ndarray, s: Conv, p: Product, order: str, dtype: str) -> np.ndarray:
    """Weights (K, C/g, KH, KW) as :func:`padded_weights` says, zero beyond."""
    axes = {"kh_kwc": (0, 3, 4, 2, 1), "kh_kw_c": (0, 3, 4, 2, 1), "c_kh_kw": (0, 2, 3, 4, 1)}[order]
    run, wide = run_of(s, order)
    shape = padded_weights(p, s, dtype)
    given = weights.shape[1]
    weights = np.pad(weights, ((0, 0), (0, s.cg - given), (0, 0), (0, 0))) if given < s.cg else weights
    apart = weights.reshape(s.groups, s.kg, s.cg, s.kh, s.kw).transpose(axes).reshape(s.groups, -1, run, s.kg)
    full = np.zeros((s.groups, apart.shape[1], wide, s.kg), weights.dtype)
    full[:, :, :run] = apart
    flat = full.reshape(s.groups, -1, s.kg)
    by_k = p.trans_b if s.last else not p.trans_a
    flat = flat.transpose(0, 2, 1) if by_k else flat
    out = np.zeros((s.groups, *shape[-2:]), weights.dtype)
    out[:, :, : flat.shape[2]] = flat
    return out.reshape(shape)


# --- THE ENDS -----------------------------------------------------------------------------------------------------------


def operands_of(workload: Workload, s: Conv) -> GpuOperands:
    """The epilogue's operands: constants in the output's order of dimensions."""
    view = in_rows(workload)
    inputs = tuple(replace(t, layout="ROW") if i in workload.constants else t for i, t in enumerate(view.inputs))
    groups: tuple[tuple[int, ...], ...] = ((0,), (1,), (2, 3))
    if s.last:
        groups = ((0, 1, 2), (3,)) if s.n == 1 else ((0,), (1, 2), (3,))
    return GpuOperands(replace(view, inputs=inputs), 2, groups)


def pack(
    workload: Workload, config: Config, constants: Sequence[np.ndarray], by_k: bool = False
) -> list[np.ndarray]:
    """Weights as the kernel reads them, epilogue constants in the output's order."""
    s, order = conv_of(workload, int(config["copy"])), str(config["reduce"])
    p = product_of(s, order, by_k)
    rest = [c.reshape(padded(c.shape)) for c in constants[1:]]
    rest = [np.ascontiguousarray(np.moveaxis(c, 1, -1)) for c in rest] if s.last else rest
    weights = packed_weights(constants[0], s, p, order, workload.inputs[1].dtype)
    return [weights, *operands_of(workload, s).pack([weights, *rest], 1)]


def ends(workload: Workload, s: Conv, p: Product, order: str) -> Ends:
    """What the product reads and writes: parameters x, w, the epilogue's operands, out."""
    dtype, result = workload.inputs[0].dtype, workload.outputs[0].dtype
    operands, batch = operands_of(workload, s), batch_axes(p)
    weights = Buffer("w", padded_weights(p, s, dtype), dtype)
    shape = (s.n * s.pixels, s.k) if s.last else (s.n, s.k, s.pixels)
    own = conv_of(workload)
    copied = s != own
    params = (input_buffer(own, order, dtype), weights, *operands.buffers(), Buffer("out", shape, result, access="out"))

    def of_input(name: str, k: tuple[Axis, Axis], rows: int) -> Stage:
        return staged_input(name, "xp" if copied else "x", s, p, order, k, rows, dtype)

    def of_weights(name: str, row: str, k: tuple[Axis, Axis], rows: int) -> Stage:
        extents, by_k = (p.b_batch, p.trans_b) if s.last else (p.a_batch, not p.trans_a)
        known = s.kg if by_k else weights.shape[-1]
        return staged(name, "w", batch, extents, k, (row, known, rows), p.k, not by_k, dtype)

    def out(acc: Expr, at: tuple[Expr, ...], place: tuple[Axis, ...]) -> Stage:
        where = (at[-2] < p.m) & (at[-1] < p.n)
        index, place_of = _output(s, at)
        return Stage("out", place, operands.value(acc, place_of), None, index, where, result)

    if s.last:
        before = (padded_copy(s, own, dtype),) if copied else ()
        return Ends("conv", params, lambda k, n: of_input("as", k, n), lambda k, n: of_weights("bs", "n", k, n), out, before)
    return Ends("conv", params, lambda k, n: of_weights("as", "m", k, n), lambda k, n: of_input("bs", k, n), out)


def _output(s: Conv, at: tuple[Expr, ...]) -> tuple[tuple[Expr, ...], tuple[Expr, ...]]:
    """Indices of an element of the output, in memory and by groups of dimensions, from (*batch, m, n)."""
    *batch, m, n = at
    row, column = (n, m) if s.last else (m, n)
    channel = batch[-1] * s.kg + row if s.groups > 1 else row
    if not s.last:
        index = (batch[0] if s.n > 1 else NO_INDEX, channel, column)
        return index, index
    whole = (column, channel)
    return whole, whole if s.n == 1 else (column // s.pixels, column % s.pixels, channel)


def unfit(workload: Workload, dtypes: Sequence[str]) -> str | None:
    """Why a workload is no convolution that can be run this way, or None."""
    x, w, y = workload.inputs[0], workload.inputs[1], workload.outputs[0]
    if len(x.shape) != 4 or 0 in (*x.shape, *y.shape):
        return f"input {x}, expected four dimensions that are not empty"
    if x.layout != y.layout or x.layout not in ("ROW", "NHWC"):
        return f"layouts {x.layout} → {y.layout}, expected both ROW or both NHWC"
    if w.dtype != x.dtype or y.dtype not in (x.dtype, "float32") or x.dtype not in dtypes:
        return f"{x} * {w} → {y}, expected operands of one dtype of {', '.join(dtypes)}, and that or float32 as result"
    if 1 not in workload.constants or 0 in workload.constants:
        return "expected constant weights and an input that is not"
    s = conv_of(workload)
    if prod(product_of(s, orders(s)[0]).batch) > 65535:
        return f"{s.n} images of {s.groups} groups are more than a grid's third dimension has"
    return operands_of(workload, s).rows.reason()


__all__ = [
    "Conv", "conv_of", "copied_first", "copies", "ends", "given", "orders", "pack", "product_of", "strides_of", "unfit",
    "vectors_of",
]  # fmt: skip
