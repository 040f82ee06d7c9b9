"""Winograd convolution F(m×m, 3×3), stride 1, for GPUs, in three kernels: V = B'dB, M[xi,nu] = U[xi,nu]·V[xi,nu], A'MA.

The products are those of :mod:`wpk.kernels.cuda.gemm` (float32) or :mod:`wpk.kernels.cuda.gemm_mma` (tensor cores), a batch of
one for each point. V and M lie in the workspace: at batch 1 they stay in L2. A thread transforms one tile of one channel, in
registers; the factored transforms are those of :mod:`wpk.kernels.winograd` (Lavin & Gray, CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, ComputeAt, Inline, Reorder, Split, Step, Unroll, schedule
from wpk.kernels.cuda import gemm, gemm_mma
from wpk.kernels.cuda.conv_shape import Conv, conv_of, operands_of, unfit
from wpk.kernels.cuda.nests import fuse_all, gpu_of
from wpk.kernels.cuda.operands import as_floats, as_stored
from wpk.kernels.cuda.product import Ends, batch_axes, staged
from wpk.kernels.epilogue import ZERO, padded
from wpk.kernels.family import Built
from wpk.kernels.gemm import Product
from wpk.kernels.winograd import Transform, table_of, times, transform, transformed_weights
from wpk.search.knobs import Ordered
from wpk.search.space import Space

#: threads of a block of the transforms
THREADS = 128
#: bytes that transforms move in a cycle and multiprocessor, and the cycles that their two kernels take to start
_BYTES_A_CYCLE, _START = 24.0, 6000.0


@dataclass(frozen=True)
class Tiles:
    """Tiles of ``m`` × ``m`` outputs: ``th`` × ``tw`` of them in each of ``n`` images."""

    f: Transform
    n: int
    th: int
    tw: int

    @property
    def count(self) -> int:
        """All tiles."""
        return self.n * self.th * self.tw

    def place(self, t: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, first row and first column of tile ``t``."""
        image = t // (self.th * self.tw) if self.n > 1 else wrap(0)
        inside = t % (self.th * self.tw) if self.n > 1 else t
        return image, inside // self.tw * self.f.m, inside % self.tw * self.f.m


def tiles_of(workload: Workload, m: int) -> Tiles:
    """The tiles of a workload's output."""
    n, _, oh, ow = workload.outputs[0].shape
    return Tiles(transform(m, 3), n, -(-oh // m), -(-ow // m))


def product_of(s: Conv, tiles: Tiles, by_k: bool) -> Product:
    """The products of all points: rows are tiles where channels are last, else columns. ``by_k``: weights are [row][k]."""
    points = (tiles.f.size, tiles.f.size)
    if s.last:
        return Product(points, points, points, tiles.count, s.c, s.k, False, by_k, True, ())
    return Product(points, points, points, s.k, s.c, tiles.count, not by_k, False, True, ())


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def input_stages(workload: Workload, s: Conv, tiles: Tiles) -> tuple[Stage, ...]:
    """V[xi, nu, tile, c] (or […, c, tile]) from d[i, j] = x at (row + i - ph, col + j - pw), 0 outside."""
    a, t, c = tiles.f.size, Axis("t", tiles.count), Axis("c", s.c)
    pos = (t, c) if s.last else (c, t)
    at = tuple(x.var for x in pos)
    i, j, xi, nu = Axis("i", a), Axis("j", a), Axis("xi", a), Axis("nu", a)
    image, top, left = tiles.place(t.var)
    row, col = top + i.var - s.ph, left + j.var - s.pw
    inside = (wrap(-1) < row) & (row < s.h) & (wrap(-1) < col) & (col < s.w)
    read = Load("x", (image, row, col, c.var) if s.last else (image, c.var, row, col))
    return (
        Stage("d", (i, j, *pos), Select(inside, read, ZERO)),
        Stage("e", (xi, j, *pos), times("B1", xi, a, lambda p: Load("d", (p, j.var, *at)))),
        Stage("r", (xi, j, *pos), times("B2", xi, a, lambda p: Load("e", (p, j.var, *at)))),
        Stage("f", (xi, nu, *pos), times("B1", nu, a, lambda p: Load("r", (xi.var, p, *at)))),
        Stage("V", (xi, nu, *pos), times("B2", nu, a, lambda p: Load("f", (xi.var, p, *at))), dtype=workload.inputs[0].dtype),
    )


def output_stages(
    workload: Workload, s: Conv, tiles: Tiles, product: Callable[[Expr, Expr, Expr, Expr], Expr]
) -> tuple[Stage, ...]:
    """y at (row + i, col + j) = epilogue(A'MA), with M[p, nu] = product(p, nu, m, n)."""
    a, m = tiles.f.size, tiles.f.m
    t, k = Axis("t", tiles.count), Axis("k", s.k)
    pos = (t, k) if s.last else (k, t)
    at = tuple(x.var for x in pos)
    i, j, p, q, nu = Axis("i", m), Axis("j", m), Axis("p", a), Axis("q", a), Axis("nu", a)
    image, top, left = tiles.place(t.var)
    row, col = top + i.var, left + j.var
    done = operands_of(workload, s).value(Load("yv", (i.var, j.var, *at)), _operand_place(s, image, row, col, k.var))
    scatter = (image, row, col, k.var) if s.last else (image, k.var, row, col)
    inside = (row < s.oh) & (col < s.ow)
    return (
        Stage("g", (p, nu, *pos), times("A1", p, a, lambda x: product(x, nu.var, *at))),
        Stage("z", (i, nu, *pos), times("A2", i, a, lambda x: Load("g", (x, nu.var, *at)))),
        Stage("h", (i, q, *pos), times("A1", q, a, lambda x: Load("z", (i.var, x, *at)))),
        Stage("yv", (i, j, *pos), times("A2", j, a, lambda x: Load("h", (i.var, x, *at)))),
        Stage("fin", (*pos, i, j), done, None, scatter, inside, workload.outputs[0].dtype, "y"),
    )


def _operand_place(s: Conv, image: Expr, row: Expr, col: Expr, k: Expr) -> tuple[Expr, ...]:
    """Indices of an epilogue's operand, by the groups of dimensions of :func:`wpk.kernels.cuda.conv_shape.operands_of`."""
    pixel = row * s.ow + col
    if s.last:
        return (pixel, k) if s.n == 1 else (image, pixel, k)
    return (image, k, pixel)


def algorithm(workload: Workload, s: Conv, tiles: Tiles, p: Product, make: Callable[[Ends], Algorithm]) -> Algorithm:
    """Input transform, products, output transform; ``make`` gives the products' stages, of which ``out`` is M."""
    dtype, a = workload.inputs[0].dtype, tiles.f.size
    weights = Buffer("u", weight_shape(s, p, a), dtype)
    batch, points = batch_axes(p), (a, a)
    by_k = p.trans_b if s.last else not p.trans_a
    known = s.k if by_k else weights.shape[-1]

    def of_input(name: str, k: tuple[Axis, Axis], row: str, rows: int) -> Stage:
        return staged(name, "V", batch, points, k, (row, tiles.count, rows), s.c, not s.last, dtype)

    def of_weights(name: str, k: tuple[Axis, Axis], row: str, rows: int) -> Stage:
        return staged(name, "u", batch, points, k, (row, known, rows), s.c, not by_k, dtype)

    a_of, b_of = (of_input, of_weights) if s.last else (of_weights, of_input)
    ends = Ends(
        "winograd", (), lambda k, rows: a_of("as", k, "m", rows), lambda k, rows: b_of("bs", k, "n", rows),
        lambda acc, at, place: Stage("out", place, acc), input_stages(workload, s, tiles),
    )  # fmt: skip
    made = make(ends)
    place = made.stages[-1].axes[2:]
    rows, columns = (tuple(x for x in place if x.name.startswith(d)) for d in "mn")

    def product(xi: Expr, nu: Expr, first: Expr, second: Expr) -> Expr:
        return Load("out", (xi, nu, *_digits(first, rows), *_digits(second, columns)))

    x, y, n = workload.inputs[0], workload.outputs[0], workload.outputs[0].shape[0]
    sizes = ((n, s.h, s.w, s.c), (n, s.oh, s.ow, s.k)) if s.last else ((n, s.c, s.h, s.w), (n, s.k, s.oh, s.ow))
    operands = operands_of(workload, s).buffers()
    params = (Buffer("x", sizes[0], x.dtype), weights, *operands, Buffer("y", sizes[1], y.dtype, access="out"))
    names = {"B1": tiles.f.b1, "B2": tiles.f.b2, "A1": tiles.f.a1, "A2": tiles.f.a2}
    tables = tuple(table_of(name, matrix) for name, matrix in names.items())
    return Algorithm("winograd", params, (*made.stages, *output_stages(workload, s, tiles, product)), tables)


def _digits(index: Expr, axes: Sequence[Axis]) -> tuple[Expr, ...]:
    """``index`` in the mixed radix of ``axes``, the first of them the most significant."""
    found = []
    for i, axis in enumerate(axes):
        inner = prod(a.extent for a in axes[i + 1 :])
        digit = index // inner if inner > 1 else index
        found.append(digit % axis.extent if i else digit)
    return tuple(found)


def weight_shape(s: Conv, p: Product, a: int) -> tuple[int, ...]:
    """U: (points, points, C, K) or, by k, (points, points, K, C); the last a multiple of four, so that vectors fit."""
    by_k = p.trans_b if s.last else not p.trans_a
    first, second = (s.k, s.c) if by_k else (s.c, s.k)
    return (a, a, first, -(-second // 8) * 8)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(workload: Workload, gpu: Gpu, sizes: tuple[int, ...], of: Callable[[Product], Space], by_k: bool) -> Space:
    """That of the products, and the size of tiles; configs within the limits of the products they make."""
    s = conv_of(workload)
    spaces = {m: of(product_of(s, tiles_of(workload, m), by_k)) for m in sizes}
    widest = spaces[sizes[0]]

    def within(c: Config) -> bool:
        return all(limit(c) for limit in spaces[int(c["m"])].constraints)

    guesses = {m: spaces[m].first[:4] or (spaces[m].default(),) for m in sizes}
    first = [{**c, "m": m} for m in sorted(sizes, key=lambda m: traffic(workload, m)) for c in guesses[m]]
    known = {k.name: set(k.values) for k in widest.knobs}
    fit = [c for c in first if all(c[n] in v for n, v in known.items()) and within(c)]
    return Space((*widest.knobs, Ordered("m", sizes, sizes[-1])), (within,), tuple(fit))


def traffic(workload: Workload, m: int) -> float:
    """Elements of V, M and U for tiles of ``m``, and multiply-adds at a hundred for one of them."""
    s, tiles = conv_of(workload), tiles_of(workload, m)
    points = tiles.f.size**2
    moved = points * (tiles.count * (s.c + s.k) + s.c * s.k)
    return moved + points * tiles.count * s.c * s.k / 100


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def jobs(stage: str, pos: tuple[str, str], inner: tuple[str, ...]) -> list[Step]:
    """block: thread: one tile of one channel, its points unrolled."""
    fuse, one = fuse_all(stage, pos, "job")
    return [
        Reorder(stage, (*pos, *inner)), *fuse, Split(stage, one, THREADS, "block", "thread", "guard"),
        Bind(stage, "block", "block.x"), Bind(stage, "thread", "thread"), *(Unroll(stage, x) for x in inner),
    ]  # fmt: skip


def transform_steps(last: bool) -> list[Step]:
    """Columns first, all in registers: r[:, j] from one column of d, V[xi] from one row of r; z from columns of M, then rows."""
    pos = ("t", "c") if last else ("c", "t")
    out = ("t", "k") if last else ("k", "t")
    return [
        *jobs("V", pos, ("xi", "nu")),
        ComputeAt("f", "V", "xi", "register"), Unroll("f", "nu"),
        ComputeAt("r", "V", "thread", "register"), Reorder("r", ("j", "xi", *pos)), Unroll("r", "j"), Unroll("r", "xi"),
        ComputeAt("e", "r", "j", "register"), Unroll("e", "xi"), ComputeAt("d", "r", "j", "register"), Unroll("d", "i"),
        *jobs("fin", out, ("i", "j")), Inline("yv"),
        ComputeAt("h", "fin", "i", "register"), Unroll("h", "q"),
        ComputeAt("z", "fin", "thread", "register"), Reorder("z", ("nu", "i", *out)), Unroll("z", "nu"), Unroll("z", "i"),
        ComputeAt("g", "z", "nu", "register"), Unroll("g", "p"),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaWinograd:
    """Winograd convolution in float32; see the module's docstring. Its error class is ``winograd``."""

    name: str = "cuda_winograd"
    version: int = 1
    accuracy: str = "winograd"
    packing: tuple[str, ...] = ("m",)

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 3×3 conv, stride 1, dilation 1, one group; input and output both ROW or both NHWC."""
        return _unfit(workload, target, ("float32",))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        gpu = target.gpu
        assert gpu is not None
        return space(workload, gpu, (2, 4), lambda p: gemm.space(p, gpu), by_k=False)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernels. Raises InvalidConfig."""
        s, tiles = conv_of(workload), tiles_of(workload, int(config["m"]))
        p, t = product_of(s, tiles, by_k=False), gemm.tile_of(config)
        name = f"f32_winograd{tiles.f.m}x3_{t.m}x{t.n}x{t.k}__{target.isa}"
        plan = [*transform_steps(s.last), *gemm.steps(p, t, config, _strides(s, tiles, p))]
        whole = algorithm(workload, s, tiles, p, lambda e: gemm.algorithm(p, t, e))
        return Built(lower(schedule(whole, plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """U as :func:`weight_shape` says; epilogue constants in the output's order."""
        return packed(workload, config, constants, by_k=False)


@dataclass(frozen=True)
class CudaWinogradMma:
    """The same with products on tensor cores: 16-bit floats, or float32 where the workload allows tf32."""

    name: str = "cuda_winograd_mma"
    version: int = 1
    accuracy: str = "winograd"
    packing: tuple[str, ...] = ("m",)

    def matches(self, workload: Workload, target: Target) -> str | None:
        """As :class:`CudaWinograd`, in a dtype that tensor cores multiply."""
        if workload.op == "conv" and gemm_mma.precision_of(workload) is None:
            return f"operand {workload.inputs[0]}: tensor cores take float16, bfloat16, or float32 with precision tf32"
        return _unfit(workload, target, ("float32", "float16", "bfloat16"))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`. Tiles of 4 lose too many digits of what tensor cores read."""
        gpu, dtype = target.gpu, workload.inputs[0].dtype
        assert gpu is not None
        return space(workload, gpu, (2,), lambda p: gemm_mma.space(p, dtype, gpu), by_k=True)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernels. Raises InvalidConfig."""
        s, tiles, dtype = conv_of(workload), tiles_of(workload, int(config["m"])), workload.inputs[0].dtype
        p, t = product_of(s, tiles, by_k=True), gemm_mma.tile_of(config, dtype)
        name = f"{dtype}_winograd{tiles.f.m}x3_mma_{t.m}x{t.n}x{t.k}__{target.isa}"
        plan = [*transform_steps(s.last), *gemm_mma.steps(p, t, config, dtype, _strides(s, tiles, p))]
        whole = algorithm(workload, s, tiles, p, lambda e: gemm_mma.algorithm(p, t, e))
        return Built(lower(schedule(whole, plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """U as :func:`weight_shape` says; epilogue constants in the output's order."""
        return packed(workload, config, constants, by_k=True)


def _unfit(workload: Workload, target: Target, dtypes: tuple[str, ...]) -> str | None:
    if workload.op != "conv" or gpu_of(target) is None:
        return f"op is {workload.op} for {target.arch}, expected conv for cuda"
    reason = unfit(workload, dtypes)
    if reason is not None:
        return reason
    s = conv_of(workload)
    numbers = (s.kh, s.kw, s.sh, s.sw, s.dh, s.dw, s.groups)
    if numbers != (3, 3, 1, 1, 1, 1, 1):
        return f"kernel {s.kh}x{s.kw}, stride {s.sh}, dilation {s.dh}, {s.groups} groups: expected 3x3 with 1, 1 and 1"
    return None


def _strides(s: Conv, tiles: Tiles, p: Product) -> tuple[int, int]:
    """What vectors of a and b are multiples of in memory."""
    own = s.c if s.last else tiles.count
    weights = weight_shape(s, p, tiles.f.size)[-1]
    return (own, weights) if s.last else (weights, own)


def packed(
    workload: Workload, config: Config, constants: Sequence[np.ndarray], by_k: bool
) -> list[np.ndarray]:
    """The transformed weights, zero beyond the last; what the epilogue reads."""
    s, tiles = conv_of(workload), tiles_of(workload, int(config["m"]))
    p = product_of(s, tiles, by_k)
    shape = weight_shape(s, p, tiles.f.size)
    dtype = workload.inputs[1].dtype
    u = transformed_weights(tiles.f, as_floats(np.asarray(constants[0]), dtype))  # (a, a, K, C)
    turned = as_stored(u if by_k else u.transpose(0, 1, 3, 2), dtype)
    full = np.zeros(shape, turned.dtype)
    full[..., : turned.shape[-1]] = turned
    rest = [c.reshape(padded(c.shape)) for c in constants[1:]]
    rest = [np.ascontiguousarray(np.moveaxis(c, 1, -1)) for c in rest] if s.last else rest
    return [full, *operands_of(workload, s).pack([full, *rest], 1)]


__all__ = ["CudaWinograd", "CudaWinogradMma"]
