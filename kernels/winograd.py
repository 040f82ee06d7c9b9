"""Winograd convolution F(m×m, r×r), stride 1, on channel-blocked layouts.

    V = B'dB over tiles of the input;  M[xi,nu] = U[xi,nu]·V[xi,nu];  out = epilogue(A'MA)

with U = G g G' computed at compile time (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).
A' and B' are written as products of two sparse factors, which halves the additions of the transforms. Tiles are processed in
blocks small enough that V and M stay in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Fuse,
    Inline,
    Parallel,
    Reorder,
    Split,
    Step,
    Unroll,
    Vectorize,
    schedule,
)  # fmt: skip
from wpk.kernels.conv_direct import LANES, PANEL, REGISTERS, TILE_WIDTHS, Shape, shape_of, weight_prefetch
from wpk.kernels.epilogue import ZERO, Operands
from wpk.kernels.family import Built
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Space

Matrix = tuple[tuple[float, ...], ...]
BLOCKS = (4, 7, 8, 14, 16, 20, 25, 28, 32, 42, 49, 56, 64, 98, 112, 196, 256, 392)


@dataclass(frozen=True)
class Transform:
    """F(m, r) in one dimension: B' = b2·b1, A' = a2·a1, G."""

    m: int
    r: int
    b1: Matrix
    b2: Matrix
    a1: Matrix
    a2: Matrix
    g: Matrix

    @property
    def size(self) -> int:
        """The tile's edge, m + r - 1."""
        return self.m + self.r - 1


def _eye(n: int) -> Matrix:
    return tuple(tuple(float(i == j) for j in range(n)) for i in range(n))


#: tile edge -> interpolation points without infinity, and the scale of G's rows
_POINTS = {
    4: ((0.0, 1.0, -1.0), (1.0, 0.5, 0.5)),
    6: ((0.0, 1.0, -1.0, 2.0, -2.0), (1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24)),
}
_B1: dict[int, Matrix] = {
    4: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    6: (
        (4, 0, -5, 0, 1, 0), (0, 0, -4, 0, 1, 0), (0, -4, 0, 1, 0, 0),
        (0, 0, -1, 0, 1, 0), (0, -2, 0, 2, 0, 0), (0, 4, 0, -5, 0, 1),
    ),
}  # fmt: skip
#: sums and differences of the entries of opposite points
_FOLD: dict[int, Matrix] = {
    4: ((1, 0, 0, 0), (0, 1, 1, 0), (0, 1, -1, 0), (0, 0, 0, 1)),
    6: (
        (1, 0, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 1, -1, 0, 0, 0),
        (0, 0, 0, 1, 1, 0), (0, 0, 0, 1, -1, 0), (0, 0, 0, 0, 0, 1),
    ),
}  # fmt: skip


def transform(m: int, r: int) -> Transform:
    """The transform on the points 0, 1, -1 (tile 4) or 0, 1, -1, 2, -2 (tile 6), and infinity. ValueError for other sizes."""
    size = m + r - 1
    if size not in _B1:
        raise ValueError(f"no transform for F({m}, {r})")
    points, scale = _POINTS[size]
    # the sums and differences of opposite points: (p^i, -p^i) become p^i times one of the two
    pairs = [abs(p) for p in points[1::2]]
    a2 = tuple(
        (
            float(i == 0),
            *(x for p in pairs for x in ((p**i, 0.0) if i % 2 == 0 else (0.0, p**i))),
            float(i == m - 1),
        )
        for i in range(m)
    )
    g = tuple(tuple(s * p**k for k in range(r)) for p, s in zip(points, scale, strict=True))
    g_inf = ((0.0,) * (r - 1) + (1.0,),)
    b2 = _eye(4) if size == 4 else _FOLD[6]
    return Transform(m, r, _B1[size], b2, _FOLD[size], a2, g + g_inf)


def transformed_weights(f: Transform, weights: np.ndarray) -> np.ndarray:
    """U (size, size, K, C) = G g G' of weights (K, C, r, r), computed in float64."""
    g = np.asarray(f.g, np.float64)
    u: np.ndarray = np.einsum("xi,kcij,yj->xykc", g, weights.astype(np.float64), g, optimize=True)
    return u.astype(np.float32)


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, f: Transform) -> Algorithm:
    """The module docstring's three lines as stages; tiles are numbered t = (n·TH + th)·TW + tw."""
    a, th, tw = f.size, -(-s.oh // f.m), -(-s.ow // f.m)
    cb, kb = -(-s.c // s.block), s.kb
    t, c_b, cv, k_b, kv = (
        Axis("t", s.n * th * tw),
        Axis("cb", cb),
        Axis("cv", s.block),
        Axis("kb", kb),
        Axis("kv", s.block),
    )
    i, j, xi, nu = Axis("i", a), Axis("j", a), Axis("xi", a), Axis("nu", a)
    image, row, col = t.var // (th * tw), t.var // tw % th * f.m, t.var % tw * f.m
    tc = (t.var, c_b.var, cv.var)
    stages = [_padded(s, f, th, tw)]
    stages.append(
        Stage("d", (i, j, t, c_b, cv), Load("xp", (image, c_b.var, row + i.var, col + j.var, cv.var)))
    )
    stages += [
        Stage("e", (xi, j, t, c_b, cv), times("B1", xi, a, lambda p: Load("d", (p, j.var, *tc)))),
        Stage("r", (xi, j, t, c_b, cv), times("B2", xi, a, lambda p: Load("e", (p, j.var, *tc)))),
        Stage("f", (xi, nu, t, c_b, cv), times("B1", nu, a, lambda p: Load("r", (xi.var, p, *tc)))),
        Stage("V", (xi, nu, t, c_b, cv), times("B2", nu, a, lambda p: Load("f", (xi.var, p, *tc)))),
    ]
    c = Axis("c", s.cg)
    channel: Expr = c.var if s.groups == 1 else k_b.var // (kb // s.groups) * s.cg + c.var
    product = Load("V", (xi.var, nu.var, t.var, channel // s.block, channel % s.block)) * Load(
        "u", (xi.var, nu.var, k_b.var, c.var // s.block, c.var % s.block, kv.var))  # fmt: skip
    y = (t, k_b, kv)
    tk = tuple(x.var for x in y)
    stages += [
        Stage("acc", (xi, nu, *y), product, Reduce("+", (c,))),
        Stage("M", (xi, nu, *y), Load("acc", (xi.var, nu.var, *tk))),
    ]
    oi, oj, p, q = Axis("i", f.m), Axis("j", f.m), Axis("p", a), Axis("q", a)
    stages += [
        Stage("g", (p, nu, *y), times("A1", p, a, lambda x: Load("M", (x, nu.var, *tk)))),
        Stage("z", (oi, nu, *y), times("A2", oi, a, lambda x: Load("g", (x, nu.var, *tk)))),
        Stage("h", (oi, q, *y), times("A1", q, a, lambda x: Load("z", (oi.var, x, *tk)))),
        Stage("y", (oi, oj, *y), times("A2", oj, a, lambda x: Load("h", (oi.var, x, *tk)))),
    ]
    operands = Operands(workload, 2, s.block)
    at = (image, k_b.var, row + oi.var, col + oj.var, kv.var)
    done = operands.value(Load("y", (oi.var, oj.var, *tk)), *at)
    inside = (row + oi.var < s.oh) & (col + oj.var < s.ow)
    stages.append(Stage("out", (*y[:2], oi, oj, kv), done, scatter=at, where=inside))
    u = Buffer("u", (a, a, kb, -(-s.cg // s.block), s.block, s.block))
    x = Buffer("x", (s.n, cb, s.h, s.w, s.block))
    out = Buffer("out", (s.n, kb, s.oh, s.ow, s.block), access="out")
    tables = [table_of("B1", f.b1), table_of("B2", f.b2), table_of("A1", f.a1), table_of("A2", f.a2)]
    return Algorithm("winograd", (x, u, *operands.buffers(), out), tuple(stages), tuple(tables))


def _padded(s: Shape, f: Transform, th: int, tw: int) -> Stage:
    """xp = x with zeros around it, up to the end of the last tile."""
    extents = (s.n, -(-s.c // s.block), th * f.m + f.r - 1, tw * f.m + f.r - 1, s.block)
    n, cb, h, w, cv = (Axis(a, e) for a, e in zip(("n", "cb", "h", "w", "cv"), extents, strict=True))
    row, col = h.var - s.ph, w.var - s.pw
    inside = (wrap(-1) < row) & (row < s.h) & (wrap(-1) < col) & (col < s.w)
    return Stage("xp", (n, cb, h, w, cv), Select(inside, Load("x", (n.var, cb.var, row, col, cv.var)), ZERO))


def table_of(name: str, matrix: Matrix) -> Buffer:
    """A matrix as a constant table of a kernel."""
    return Buffer(name, (len(matrix), len(matrix[0])), values=tuple(float(x) for row in matrix for x in row))


def times(table: str, row: Axis, n: int, of: Callable[[Expr], Expr]) -> Expr:
    """sum over p of table[row, p] * of(p), written out: constant factors of 0 and ±1 fold away when unrolled."""
    total: Expr | None = None
    for p in range(n):
        term = Load(table, (row.var, wrap(p))) * of(wrap(p))
        total = term if total is None else total + term
    assert total is not None
    return total


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def _chunks(s: Shape) -> tuple[int, ...]:
    return tuple(t for t in (1, 2, 4, 8, 16, 32) if t <= s.kb)


def tiles(s: Shape, m: int) -> int:
    """Output tiles of F(m, r)."""
    return s.n * -(-s.oh // m) * -(-s.ow // m)


def space(s: Shape, target: Target) -> Space:
    """Tile size, register tile, block of tiles, chunk of channels, orders, where V is made, parallel axes, padding, ISA."""
    isas = tuple(i for i in target.isas if i in ("avx512", "avx2", "neon")) or ("scalar",)
    sizes = (2, 4) if s.kh == 3 else (2,)
    most = tiles(s, 2)
    blocks = tuple(t for t in BLOCKS if t <= most) or (most,)
    knobs = (
        Choice("isa", isas, isas[0]),
        Ordered("m", sizes, sizes[-1]),
        Ordered("tile_t", tuple(t for t in TILE_WIDTHS if t <= most), min(14, most)),
        Ordered("tile_k", tuple(t for t in (1, 2, 3, 4) if t <= s.kb), min(2, s.kb)),
        Ordered("block", blocks, min(blocks, key=lambda b: abs(b - 28))),
        Ordered("chunk", _chunks(s), min(4, s.kb)),
        Choice("order", ("k_t", "t_k"), "k_t"),
        Choice("input", ("job", "root"), "job"),
        Choice("parallel", ("tiles", "channels", "both", "points"), "tiles"),
        Ordered("grain", (1, 2), 1),
        Ordered("unroll_c", (1, 2, 4, 8, 16), 4),
        Choice("pad", ("inline", "root"), "inline"),
        Ordered("prefetch", (PANEL, 0, 4, 8, 16), 0),
    )  # fmt: skip

    def fits(c: Config) -> bool:
        vectors = -(-16 // LANES[str(c["isa"])]) * int(c["tile_k"])
        return (int(c["tile_t"]) + 1) * vectors + 1 <= REGISTERS[str(c["isa"])]

    def nested(c: Config) -> bool:
        total, block = tiles(s, int(c["m"])), int(c["block"])
        room = total if c["parallel"] == "points" else min(block, total)
        whole = block <= total or block == min(blocks)
        return whole and int(c["tile_t"]) <= room and int(c["tile_k"]) <= int(c["chunk"])

    def made_before_use(c: Config) -> bool:
        return c["input"] == "root" or c["parallel"] == "tiles"

    return Space(
        knobs,
        (fits, nested, made_before_use),
        first_configs(s, target, {k.name: k.default for k in knobs}, blocks),
    )


def first_configs(s: Shape, target: Target, base: Config, blocks: tuple[int, ...]) -> tuple[Config, ...]:
    """Analytic first guesses, those of the m that should be faster first. See :func:`guesses`."""
    sizes = (4, 2) if s.kh == 3 else (2,)
    by_m = {m: guesses(s, target, {**base, "m": m}, blocks) for m in sizes}
    return tuple(c for m in sorted(sizes, key=lambda m: roof(s, m)) for c in by_m[m])


#: Multiply-adds, as FLOP, in the time a byte comes from memory: about ten on CPUs with wide vectors.
_BALANCE = 10.0


def roof(s: Shape, m: int) -> float:
    """The product's time, in FLOP: of its arithmetic, or of reading its weights from memory, whichever is more.

    A larger m does less arithmetic but reads more weights, (m + r - 1)² for each pair of channels: with few tiles it loses.
    """
    weights = (m + s.kh - 1) ** 2 * s.k * s.cg
    return max(2.0 * weights * tiles(s, m), _BALANCE * 4 * weights)


def guesses(s: Shape, target: Target, base: Config, blocks: tuple[int, ...]) -> list[Config]:
    """For one m. Where there are enough tiles for all threads: blocks of tiles for which V fills half of L2. Three phases over
    all tiles, with the register tile that leaves no remainder first. All tiles in one block, parallel over channels."""
    m = int(base["m"])
    a, total = (m + s.kh - 1) ** 2, tiles(s, m)
    wide: Config = {**base, "tile_t": _tile(total), "input": "root"}
    small = max((b for b in blocks if b <= min(total, 16)), default=min(blocks))
    chunk = 8 if s.kb >= 8 else _chunks(s)[-1]
    found: list[Config] = []
    for most, tile_k in ((14, 2), (8, 3)):  # the widest tiles that the registers hold
        tile = min(_tile(total, most), small)
        phases: Config = {"parallel": "points", "block": small, "prefetch": PANEL, "chunk": chunk}
        found.append({**wide, **phases, "tile_t": tile, "tile_k": min(tile_k, s.kb)})
    found.sort(key=lambda c: total % int(c["tile_t"]) != 0)
    room = max(target.l2 // (2 * 4 * a * s.c), 4)
    jobs = [b for b in blocks if b <= min(room, max(total // target.threads, 1))]
    if jobs:
        block = max(jobs, key=lambda b: (total % b == 0, b))
        found.insert(1, {**base, "block": block, "tile_t": _tile(block)})
    found.append({**wide, "parallel": "both", "block": max((b for b in blocks if b <= total), default=min(blocks))})
    return found


def _tile(count: int, most: int = 14) -> int:
    """The register tile for ``count`` tiles: large, and leaving no small remainder."""
    return max(range(1, min(count, most) + 1), key=lambda t: t - (5 if count % t else 0) + (count % t) / 14)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """For job (block of tiles): V; for k_o (chunk of channels): M by register tiles; output transform and store.

    ``parallel`` = ``points`` makes three phases of it: all of V, then all of M (jobs are points xi, nu and chunks of channels, so
    that each weight is read once), then the output transform.
    """
    plan: list[Step] = [
        Split("out", "t", int(c["block"]), "t_o", "t_i", "shift"),
        Split("out", "kb", int(c["chunk"]), "k_o", "k", "shift"),
        *output_loops(c),
        Unroll("out", "i"), Unroll("out", "j"), Vectorize("out", "kv"),
        *output_transform(), *product(c),
    ]  # fmt: skip
    if c["input"] == "root":
        plan += [
            Reorder("V", ("t", "cb", "xi", "nu", "cv")),
            Fuse("V", "t", "cb", "job"),
            Parallel("V", "job", 4),
        ]
        return plan + input_transform("job") + padding(c)
    plan += [ComputeAt("V", "out", "t_o", "thread"), Reorder("V", ("t", "cb", "xi", "nu", "cv"))]
    return plan + input_transform("cb") + padding(c)


def output_loops(c: Config) -> list[Step]:
    """The order of blocks and chunks, which of them are jobs, and where M is made."""
    inner, grain = ("t_i", "k", "i", "j", "kv"), int(c["grain"])
    if c["parallel"] in ("both", "points"):
        jobs: list[Step] = [Reorder("out", ("t_o", "k_o", *inner)), Fuse("out", "t_o", "k_o", "job")]
        place = [ComputeAt("M", "out", "job", "thread")] if c["parallel"] == "both" else []
        return [*jobs, Parallel("out", "job", grain), *place]
    first, second = ("t_o", "k_o") if c["parallel"] == "tiles" else ("k_o", "t_o")
    return [
        Reorder("out", (first, second, *inner)),
        Parallel("out", first, grain),
        ComputeAt("M", "out", second, "thread"),
    ]


def product(c: Config) -> list[Step]:
    """M[xi,nu]: a register tile of tiles × channel blocks, the reduction inside."""
    unroll = int(c["unroll_c"])
    outer = ("k_o", "t_o") if c["order"] == "k_t" else ("t_o", "k_o")
    inner = (*outer, "t_i", "k_i", "kv")
    plan: list[Step] = [Split("M", "t", int(c["tile_t"]), "t_o", "t_i")]
    if c["parallel"] == "points":
        plan += [
            Split("M", "kb", int(c["chunk"]), "k_c", "k_m", "shift"),
            Split("M", "k_m", int(c["tile_k"]), "k_o", "k_i"),
            Reorder("M", ("xi", "nu", "k_c", *inner)),
            Fuse("M", "xi", "nu", "point"), Fuse("M", "point", "k_c", "job"), Parallel("M", "job"),
        ]  # fmt: skip
    else:
        plan += [Split("M", "kb", int(c["tile_k"]), "k_o", "k_i"), Reorder("M", ("xi", "nu", *inner))]
    plan += [
        Unroll("M", "t_i"), Unroll("M", "k_i"), Vectorize("M", "kv"),
        ComputeAt("acc", "M", outer[1], "register"),
        Split("acc", "c", 16, "c_o", "c_i"), Split("acc", "c_i", unroll, "c_m", "c_u"),
        Reorder("acc", ("xi", "nu", "c_o", "c_m", "c_u", "t", "kb", "kv")),
        Unroll("acc", "c_u"), Unroll("acc", "t"), Unroll("acc", "kb"), Vectorize("acc", "kv"),
    ]  # fmt: skip
    return [*plan, *weight_prefetch("acc", "u", "kb", c)]


def input_transform(at: str) -> list[Step]:
    """Columns first: r[:, j] from one column of d; then V[xi, :] from one row of r. All in registers."""
    return [
        Unroll("V", "xi"), Unroll("V", "nu"), Vectorize("V", "cv"),
        ComputeAt("f", "V", "xi", "register"), Unroll("f", "nu"), Vectorize("f", "cv"),
        ComputeAt("r", "V", at, "register"), Reorder("r", ("j", "xi", "t", "cb", "cv")),
        Unroll("r", "j"), Unroll("r", "xi"), Vectorize("r", "cv"),
        ComputeAt("e", "r", "j", "register"), Unroll("e", "xi"), Vectorize("e", "cv"),
        ComputeAt("d", "r", "j", "register"), Unroll("d", "i"), Vectorize("d", "cv"),
    ]  # fmt: skip


def output_transform() -> list[Step]:
    """Columns first: z[:, nu] from one column of M; then a row of outputs from one row of z. All in registers."""
    return [
        Inline("y"),
        ComputeAt("h", "out", "i", "register"), Unroll("h", "q"), Vectorize("h", "kv"),
        ComputeAt("z", "out", "k", "register"), Reorder("z", ("nu", "i", "t", "kb", "kv")),
        Unroll("z", "nu"), Unroll("z", "i"), Vectorize("z", "kv"),
        ComputeAt("g", "z", "nu", "register"), Unroll("g", "p"), Vectorize("g", "kv"),
    ]  # fmt: skip


def padding(c: Config) -> list[Step]:
    """Zeros around the input: tested where it is read, or copied once."""
    if c["pad"] == "inline":
        return [Inline("xp")]
    return [
        Vectorize("xp", "cv"),
        Fuse("xp", "n", "cb", "nc"),
        Fuse("xp", "nc", "h", "job"),
        Parallel("xp", "job", 8),
    ]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Winograd:
    """Winograd convolution; see the module's docstring. Its error class is ``winograd`` (relative L2 up to 1e-4)."""

    name: str = "winograd"
    version: int = 1
    accuracy: str = "winograd"
    packing: tuple[str, ...] = ("m",)

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 3×3 or 5×5 conv, stride 1, dilation 1, blocked in and out with the same block."""
        if workload.op != "conv":
            return f"op is {workload.op}, expected conv"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or len(x.shape) != 4 or 1 not in workload.constants:
            return "expected a float32 2-D convolution with constant weights"
        s = shape_of(workload)
        if (s.kh, s.kw) not in ((3, 3), (5, 5)) or (s.sh, s.sw, s.dh, s.dw) != (1, 1, 1, 1):
            return f"kernel {s.kh}x{s.kw} stride {s.sh}x{s.sw} dilation {s.dh}x{s.dw}, expected 3x3 or 5x5 with 1 and 1"
        if s.block == 1 or s.in_block != s.block:
            return f"layouts {x.layout} → {y.layout}, expected one channel-blocked layout"
        if s.groups > 1 and (s.cg % s.block or (s.k // s.groups) % s.block):
            return f"{s.cg} → {s.k // s.groups} channels per group, expected multiples of {s.block}"
        return Operands(workload, 2, s.block).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        f = transform(int(config["m"]), s.kh)
        name = (
            f"f32_winograd{f.m}x{f.r}_{config['tile_t']}x{int(config['tile_k']) * s.block}__{config['isa']}"
        )
        return Built(lower(schedule(algorithm(workload, s, f), steps(s, config)), name), str(config["isa"]))

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights (K, C/g, r, r) → U (size, size, K/b, C/b, b, b), zero-padded; epilogue constants blocked like the output."""
        s = shape_of(workload)
        f = transform(int(config["m"]), s.kh)
        cb = -(-s.cg // s.block)
        full = np.zeros((f.size, f.size, s.kb * s.block, cb * s.block), np.float32)
        full[:, :, : s.k, : s.cg] = transformed_weights(f, constants[0])
        blocked = full.reshape(f.size, f.size, s.kb, s.block, cb, s.block).transpose(0, 1, 2, 4, 5, 3)
        return [np.ascontiguousarray(blocked), *Operands(workload, 2, s.block).pack(constants, 1)]


__all__ = ["Transform", "Winograd", "table_of", "times", "transform", "transformed_weights"]
