"""Convolution ROW → ROW, vectors along the pixels of a row: a register tile of output channels × vectors of pixels.

For channel counts that no blocked layout suits (groups of 28 channels, say) and for what lies in layout ROW anyway. Pointwise
convolutions see the image as one long row and read it where it lies; others read a copy with zeros around it, in which the
columns of a strided convolution are sorted by phase, so that every read is a run of consecutive elements. Weights are packed
so that the channels of a tile are broadcast from one stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Parallel,
    Prefetch,
    Reorder,
    Segment,
    Split,
    Step,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.epilogue import ZERO
from wpk.kernels.family import Built
from wpk.kernels.gemm import VECTOR, covered, thrifty
from wpk.kernels.nests import REGISTERS, fused, isas
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Rows:
    """A convolution's numbers, channels by group. ``flat``: the image is one row of H·W pixels, read where it lies."""

    n: int
    groups: int
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
    flat: bool

    def lanes(self, isa: str) -> int:
        """Pixels of a vector: a power of two, no longer than the row where the row is read in place."""
        lanes = VECTOR[isa]
        while lanes > 1 and (lanes > self.ow if self.flat else lanes >= 2 * self.ow):
            lanes //= 2
        return lanes

    def vectors(self, isa: str) -> int:
        """Vectors of an output row; the last one overlaps the one before (flat) or reaches beyond the row."""
        return -(-self.ow // self.lanes(isa))

    @property
    def groups_of_dims(self) -> tuple[tuple[int, ...], ...]:
        """The output's dimensions that each of (n, channel, row, column) stands for."""
        return ((0,), (1,), (), (2, 3)) if self.flat else ((0,), (1,), (2,), (3,))


def rows_of(workload: Workload) -> Rows:
    """The numbers of a conv workload."""
    (n, c, h, w), (k, _, kh, kw) = workload.inputs[0].shape, workload.inputs[1].shape
    (_, _, oh, ow), groups = workload.outputs[0].shape, int(workload.attr("group"))  # type: ignore[arg-type]
    (sh, sw), (dh, dw), pads = workload.ints("strides"), workload.ints("dilations"), workload.ints("pads")
    flat = (kh, kw, sh, sw) == (1, 1, 1, 1) and not any(pads)
    if flat:
        h, w, oh, ow = 1, h * w, 1, oh * ow
    return Rows(
        n, groups, c // groups, h, w, k // groups, oh, ow, kh, kw, sh, sw, pads[0], pads[1], dh, dw, flat
    )


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Rows, tile: int, isa: str) -> Algorithm:
    """out[n,g,k,row,col] = epilogue(sum over c,kh,kw of xp[n,g,c,row*sh+kh*dh,col*sw+kw*dw] * w[g,kb,c,kh,kw,kt]).

    k = kb*tile + kt < K/g; col = cv*lanes + cl, moved back to the end of the row (flat) or stored only inside it.
    """
    lanes, blocks = s.lanes(isa), -(-s.k // tile)
    n, g, kb, oh = Axis("n", s.n), Axis("g", s.groups), Axis("kb", blocks), Axis("oh", s.oh)
    kt, cv, cl = Axis("kt", tile), Axis("cv", s.vectors(isa)), Axis("cl", lanes)
    c, kh, kw = Axis("c", s.c), Axis("kh", s.kh), Axis("kw", s.kw)
    start: Expr = cv.var * lanes
    if s.flat and s.ow % lanes:
        start = Binary("min", start, wrap(s.ow - lanes))
    channel, col = g.var * s.c + c.var, start + cl.var
    weight = Load("wp", (g.var, kb.var, c.var, kh.var, kw.var, kt.var))
    read = (
        Load("x", (n.var, channel, wrap(0), col))
        if s.flat
        else read_phases(s, n.var, channel, oh.var, col, kh.var, kw.var)
    )
    at = (n, g, kb, oh, cv, kt, cl)
    output = kb.var * tile + kt.var
    place = (n.var, g.var * s.k + output, oh.var, col)
    done = RowOperands(workload, 2, s.groups_of_dims).value(Load("acc", tuple(a.var for a in at)), place)
    stages = [] if s.flat else [phases(s, s.groups * s.c, s.vectors(isa) * lanes)]
    stages += [
        Stage("acc", at, read * weight, Reduce("+", (c, kh, kw))),
        Stage("out", at, done, None, place, (output < s.k) & (col < s.ow)),
    ]
    weights = Buffer("wp", (s.groups, blocks, s.c, s.kh, s.kw, tile))
    return Algorithm("conv_row", parameters(workload, s, weights), tuple(stages))


def parameters(workload: Workload, s: Rows, weights: Buffer) -> tuple[Buffer, ...]:
    """x, packed weights, epilogue operands, out."""
    x = Buffer("x", (s.n, s.groups * s.c, s.h, s.w))
    out = Buffer("out", (s.n, s.groups * s.k, s.oh, s.ow), access="out")
    return (x, weights, *RowOperands(workload, 2, s.groups_of_dims).buffers(), out)


def phases(s: Rows, channels: int, columns: int) -> Stage:
    """xp[n,c,rp,r,cp,q] = x[n,c,r*sh+rp-ph,q*sw+cp-pw], 0 outside: what ``columns`` output columns read, sorted by phase."""
    reach_h, reach_w = (s.kh - 1) * s.dh, (s.kw - 1) * s.dw
    most_h = max(k * s.dh % s.sh for k in range(s.kh))
    most_w = max(k * s.dw % s.sw for k in range(s.kw))
    n, c, rp, r = (
        Axis("n", s.n),
        Axis("c", channels),
        Axis("rp", most_h + 1),
        Axis("r", s.oh + reach_h // s.sh),
    )
    cp, q = Axis("cp", most_w + 1), Axis("q", columns + reach_w // s.sw)
    row, col = r.var * s.sh + rp.var - s.ph, q.var * s.sw + cp.var - s.pw
    inside = (wrap(-1) < row) & (row < s.h) & (wrap(-1) < col) & (col < s.w)
    return Stage("xp", (n, c, rp, r, cp, q), Select(inside, Load("x", (n.var, c.var, row, col)), ZERO))


def read_phases(s: Rows, n: Expr, channel: Expr, row: Expr, col: Expr, kh: Expr, kw: Expr) -> Load:
    """What the element (kh, kw) of the kernel reads for an output pixel, from :func:`phases`."""
    down, right = kh * s.dh, kw * s.dw
    return Load("xp", (n, channel, down % s.sh, row + down // s.sh, right % s.sw, col + right // s.sw))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Rows, target: Target) -> Space:
    """Register tile, reduction order and unroll, cache tiles, loop order, parallel axes and grain, padding, prefetch, ISA."""
    choices = isas(target)
    widest = max(s.vectors(isa) for isa in choices)
    knobs: tuple[Knob, ...] = (
        Choice("isa", choices, choices[0]),
        Ordered(
            "tile_k", tuple(t for t in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 24) if t <= s.k), 1
        ),
        Ordered("tile_v", tuple(t for t in (1, 2, 3, 4, 5, 6) if t <= widest), 1),
        Ordered("cols", tuple(t for t in (1, 2, 4, 8, 16) if t == 1 or t // 2 < widest), 1),
        Ordered("rows", tuple(t for t in (1, 2, 4, 7, 8, 14, 16, 28) if t <= s.oh), 1),
        Ordered("chunk", tuple(t for t in (1, 2, 4, 8, 16, 32) if t == 1 or t // 2 < s.k), 1),
        Ordered("unroll_c", tuple(u for u in (1, 2, 4, 8) if u <= s.c), 1),
        Choice("reduce", ("c_kh_kw", "kh_kw_c", "kh_c_kw") if s.kh * s.kw > 1 else ("c_kh_kw",), "c_kh_kw"),
        Choice("order", ("k_outer", "row_outer", "row_k"), "row_outer"),
        Choice("parallel", ("pixels", "channels", "both", "both_k"), "both"),
        Ordered("grain", (1, 2, 4), 1),
        Choice("pad", ("none",) if s.flat else ("root", "job"), "none" if s.flat else "root"),
        Ordered("prefetch", (0, 4, 8, 16), 0),
    )

    def fits(c: Config) -> bool:
        return int(c["tile_k"]) * int(c["tile_v"]) + int(c["tile_v"]) + 1 <= REGISTERS[str(c["isa"])]

    def reaches(c: Config) -> bool:
        vectors, tile = s.vectors(str(c["isa"])), int(c["tile_v"])
        wide = tile <= vectors and thrifty(vectors, tile * int(c["cols"]), tile)
        blocks = thrifty(-(-s.k // int(c["tile_k"])), int(c["chunk"]), 1)
        return wide and blocks and thrifty(s.oh, int(c["rows"]), 1)

    def keeps(c: Config) -> bool:
        height = (int(c["rows"]) if c["parallel"] != "channels" else s.oh) * s.sh + s.kh * s.dh
        return (
            c["pad"] != "job" or 4 * s.c * height * (s.w + 2 * s.pw + VECTOR[str(c["isa"])]) <= 2 * target.l2
        )

    return Space(knobs, (fits, reaches, keeps), first_configs(s, target, knobs, (fits, reaches, keeps)))


def first_configs(s: Rows, target: Target, knobs: tuple[Knob, ...], limits: Sequence) -> tuple[Config, ...]:  # type: ignore[type-arg]
    """Analytic first guesses: the register tiles of least estimated time, with the work divided evenly."""
    base: Config = {k.name: k.default for k in knobs}
    values = {k.name: k.values for k in knobs}
    ways: tuple[Config, ...] = (
        {"parallel": "both", "order": "row_outer"},
        {"parallel": "pixels", "order": "row_outer"},
        {"parallel": "both_k", "order": "row_k"},
    )
    found: list[tuple[float, Config]] = []
    for way in ways:
        for tile_k, tile_v, cols, chunk in product(
            *(values[x] for x in ("tile_k", "tile_v", "cols", "chunk"))
        ):
            c = {**base, **way, "tile_k": tile_k, "tile_v": tile_v, "cols": cols, "chunk": chunk}
            if all(limit(c) for limit in limits):
                found.append((estimate(s, c, target), c))
    found.sort(key=lambda pair: pair[0])
    best: dict[object, Config] = {}
    for _, c in found:
        best.setdefault((c["tile_k"], c["tile_v"], c["parallel"]), c)
    return tuple(list(best.values())[:6])


def estimate(s: Rows, c: Config, target: Target) -> float:
    """Cycles: two vector FMAs and two loads a cycle, four cycles of latency, storing the tile, and the imbalance of the jobs."""
    isa, k = str(c["isa"]), int(c["tile_k"])
    vectors, blocks = s.vectors(isa), -(-s.k // int(c["tile_k"]))

    def tile(v: int) -> float:
        return s.c * s.kh * s.kw * max(k * v / 2, (k + v) / 2, 4.0) + 2 * k * v + 30 if v else 0.0

    v = min(int(c["tile_v"]), vectors)
    wide = covered(vectors, v * int(c["cols"]))
    row = wide // v * tile(v) + tile(wide % v)
    pieces = s.n * -(-s.oh // int(c["rows"])) * -(-vectors // (v * int(c["cols"])))
    jobs = pieces * (1 if c["parallel"] == "pixels" else s.groups * -(-blocks // int(c["chunk"])))
    imbalance = -(-jobs // target.threads) * target.threads / jobs
    tiles = s.n * covered(s.oh, int(c["rows"])) * s.groups * covered(blocks, int(c["chunk"]))
    return row * tiles * (imbalance + 0.002 * jobs / target.threads)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Rows, c: Config) -> list[Step]:
    """The schedule of a config.

    parallel (n, g, kb_o, row_o, v_o): for [kb_i, row, v_m] in ``order``: acc in registers = reduction; store the tile.
    """
    outer, serial = {
        "pixels": (("n", "row_o", "v_o"), ("g", "kb_o")),
        "channels": (("n", "g", "kb_o"), ("row_o", "v_o")),
        "both": (("n", "g", "kb_o", "row_o", "v_o"), ()),
        "both_k": (("n", "row_o", "v_o", "g", "kb_o"), ()),
    }[str(c["parallel"])]
    middle = {
        "k_outer": ("kb_i", "row", "v_m"),
        "row_outer": ("row", "v_m", "kb_i"),
        "row_k": ("row", "kb_i", "v_m"),
    }[str(c["order"])]
    fuse, job = fused("out", outer)
    tile_v = int(c["tile_v"])
    plan: list[Step] = [
        Split("out", "kb", int(c["chunk"]), "kb_o", "kb_i", "shift"),
        Split("out", "oh", int(c["rows"]), "row_o", "row", "shift"),
        Split("out", "cv", tile_v * int(c["cols"]), "v_o", "v_i", "shift"),
        Split("out", "v_i", tile_v, "v_m", "v", "cut"),
        Reorder("out", (*outer, *serial, *middle, "kt", "v", "cl")),
        *fuse, Parallel("out", job, int(c["grain"])),
        Unroll("out", "kt"), Unroll("out", "v"), Vectorize("out", "cl"),
        ComputeAt("acc", "out", middle[-1], "register"),
        *reduction(c),
    ]  # fmt: skip
    return plan if s.flat else plan + copying(s, c, serial[-1] if serial else job)


def reduction(c: Config) -> list[Step]:
    """Accumulator loops: the reduction outside, the register tile inside."""
    outer = {
        "c_kh_kw": ("c_o", "kh", "kw"),
        "kh_kw_c": ("kh", "kw", "c_o"),
        "kh_c_kw": ("kh", "c_o", "kw"),
    }[str(c["reduce"])]
    unroll = int(c["unroll_c"])
    plan: list[Step] = [
        Split("acc", "c", unroll, "c_o", "c_u"),
        Reorder("acc", ("n", "g", "kb", "oh", *outer, "c_u", "kt", "cv", "cl")),
        *(Unroll("acc", loop) for loop in ("c_u", "kt", "cv")), Vectorize("acc", "cl"),
    ]  # fmt: skip
    if int(c["prefetch"]):
        plan.append(Prefetch("acc", "xp" if c["pad"] != "none" else "x", "c_o", int(c["prefetch"])))
    return plan


def copying(s: Rows, c: Config, at: str) -> list[Step]:
    """Where the copy with zeros is made: once for all, or for the rows of one job; in vectors where columns stay adjacent."""
    plan = copied_columns(s, str(c["isa"]))
    if c["pad"] == "job":
        return [*plan, ComputeAt("xp", "out", at, "thread")]
    fuse, job = fused("xp", ("n", "c", "rp"))
    return [*plan, *fuse, Parallel("xp", job)]


def copied_columns(s: Rows, isa: str) -> list[Step]:
    """Loops of the copy along a row: vectors, or, where every ``sw``-th column is picked, a middle without tests."""
    if s.sw == 1:
        return [Split("xp", "q", VECTOR[isa], "q_o", "q_v", "guard"), Vectorize("xp", "q_v")]
    down, right = (max(k * d % t for k in range(n)) for n, d, t in ((s.kh, s.dh, s.sh), (s.kw, s.dw, s.sw)))
    return [
        Segment("xp", "r", (-(-s.ph // s.sh), max((s.h - 1 - down + s.ph) // s.sh + 1, 0))),
        Segment("xp", "q", (-(-s.pw // s.sw), max((s.w - 1 - right + s.pw) // s.sw + 1, 0))),
    ]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvRow:
    """Convolution in layout ROW, vectorized along pixels; see the module's docstring."""

    name: str = "conv_row"
    version: int = 1
    packing: tuple[str, ...] = ("tile_k",)

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 2-D conv in layout ROW with constant weights."""
        reason = unfit(workload)
        return reason or RowOperands(workload, 2, rows_of(workload).groups_of_dims).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(rows_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, tile, isa = rows_of(workload), int(config["tile_k"]), str(config["isa"])
        name = f"f32_conv{s.kh}x{s.kw}_row_{tile}x{int(config['tile_v']) * s.lanes(isa)}__{isa}"
        return Built(lower(schedule(algorithm(workload, s, tile, isa), steps(s, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights (K, C/g, KH, KW) → (g, K/g/tile, C/g, KH, KW, tile), zero-padded; epilogue constants as they are."""
        s = rows_of(workload)
        operands = RowOperands(workload, 2, s.groups_of_dims)
        return [pack_weights(s, constants[0], int(config["tile_k"])), *operands.pack(constants, 1)]


def unfit(workload: Workload) -> str | None:
    """Why a workload is no float32 2-D convolution in layout ROW with constant weights, or None."""
    if workload.op != "conv":
        return f"op is {workload.op}, expected conv"
    x, y = workload.inputs[0], workload.outputs[0]
    if x.dtype != "float32" or len(x.shape) != 4 or workload.constants[:1] != (1,):
        return "expected a float32 2-D convolution with constant weights"
    if x.layout != "ROW" or y.layout != "ROW":
        return f"layouts {x.layout} → {y.layout}, expected ROW"
    return None


def pack_weights(s: Rows, weights: np.ndarray, tile: int) -> np.ndarray:
    """See :meth:`ConvRow.pack`."""
    blocks = -(-s.k // tile)
    full = np.zeros((s.groups, blocks * tile, s.c, s.kh, s.kw), np.float32)
    full[:, : s.k] = weights.reshape(s.groups, s.k, s.c, s.kh, s.kw)
    return np.ascontiguousarray(np.moveaxis(full.reshape(s.groups, blocks, tile, s.c, s.kh, s.kw), 2, -1))
