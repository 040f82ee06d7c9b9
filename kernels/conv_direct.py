"""Direct convolution on channel-blocked layouts: a register tile of output pixels × output-channel blocks.

Input NCHW<b>c, or ROW for few channels (the first layer); output NCHW<b>c. A 1×1 convolution without stride and padding is
the same kernel on one row of H·W pixels. Weights are packed so that the kernel reads them front to back.
The blocking is that of Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures", SC18.
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
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Fuse,
    Parallel,
    Prefetch,
    Reorder,
    Split,
    Step,
    Unroll,
    Vectorize,
    schedule,
)  # fmt: skip
from wpk.kernels.epilogue import ZERO, Operands, block_of, padded
from wpk.kernels.family import Built
from wpk.search.knobs import Choice, Ordered
from wpk.search.space import Space

REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "scalar": 16}
TILE_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18, 20, 24, 28)
#: The value of the knob ``prefetch`` that asks for the next tile's weights instead of the next iterations'.
PANEL = -1
LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}


@dataclass(frozen=True)
class Shape:
    """A convolution's numbers, normalized: a pointwise one has one row of H·W pixels."""

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
    pads_end: tuple[int, int]
    dh: int
    dw: int
    groups: int
    block: int
    in_block: int

    @property
    def padded(self) -> bool:
        """True when the kernel reaches outside the input."""
        reach_h = (self.oh - 1) * self.sh + (self.kh - 1) * self.dh + 1
        reach_w = (self.ow - 1) * self.sw + (self.kw - 1) * self.dw + 1
        return bool(self.ph or self.pw) or reach_h > self.h or reach_w > self.w

    @property
    def hp(self) -> int:
        """Rows of the padded input."""
        return (self.oh - 1) * self.sh + (self.kh - 1) * self.dh + 1

    @property
    def wp(self) -> int:
        """Columns of the padded input."""
        return (self.ow - 1) * self.sw + (self.kw - 1) * self.dw + 1

    @property
    def kb(self) -> int:
        """Output channel blocks."""
        return -(-self.k // self.block)

    @property
    def cg(self) -> int:
        """Input channels of a group."""
        return self.c // self.groups


def is_flat(workload: Workload) -> bool:
    """True for pointwise convolutions whose pixels can be seen as one row: no stride, no padding, no broadcast along a row."""
    x, w, (_, _, oh, ow) = workload.inputs[0], workload.inputs[1], workload.outputs[0].shape
    still = (*w.shape[2:], *workload.ints("strides")) == (1, 1, 1, 1) and not any(workload.ints("pads"))
    whole = all(padded(t.shape)[2:] in ((1, 1), (oh, ow)) for t in workload.inputs[2:])
    return still and whole and x.layout != "ROW"


def shape_of(workload: Workload) -> Shape:
    """The normalized numbers of a conv workload."""
    x, w, y = workload.inputs[0], workload.inputs[1], workload.outputs[0]
    (n, c, h, wd), (k, _, kh, kw), (_, _, oh, ow) = x.shape, w.shape, y.shape
    (sh, sw), (dh, dw) = workload.ints("strides"), workload.ints("dilations")
    pt, pl, pb, pr = workload.ints("pads")
    if is_flat(workload):
        h, wd, oh, ow = 1, h * wd, 1, oh * ow
    groups = int(workload.attr("group"))  # type: ignore[arg-type]
    return Shape(n, c, h, wd, k, oh, ow, kh, kw, sh, sw, pt, pl, (pb, pr), dh, dw, groups,
                 block_of(y.layout), block_of(x.layout))  # fmt: skip


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, weights: Buffer) -> Algorithm:
    """out[n,ob,oh,ow,ov] = epilogue(sum over c, kh, kw of xp[n,c,oh*sh+kh*dh,ow*sw+kw*dw] * w[ob*b+ov,c,kh,kw])."""
    n, ob, oh, ow, ov = (
        Axis("n", s.n),
        Axis("ob", s.kb),
        Axis("oh", s.oh),
        Axis("ow", s.ow),
        Axis("ov", s.block),
    )
    c, kh, kw = Axis("c", s.cg), Axis("kh", s.kh), Axis("kw", s.kw)
    x = Buffer("x", physical_input(s))
    y, x_row, x_col = (n, ob, oh, ow, ov), oh.var * s.sh + kh.var * s.dh, ow.var * s.sw + kw.var * s.dw
    channel: Expr = c.var
    if s.groups > 1:
        channel = ob.var // (s.kb // s.groups) * s.cg + c.var
    stages: list[Stage] = []
    if s.padded:
        stages.append(padded_input(s))
        read: Expr = Load("xp", (n.var, channel // s.in_block, x_row, x_col, channel % s.in_block))
    else:
        read = Load("x", (n.var, channel // s.in_block, x_row, x_col, channel % s.in_block))
    weight = Load("w", (ob.var, c.var // 16, kh.var, kw.var, c.var % 16, ov.var))
    stages.append(Stage("acc", y, read * weight, Reduce("+", (c, kh, kw))))
    operands = Operands(workload, 2, s.block, is_flat(workload))
    acc = Load("acc", tuple(a.var for a in y))
    stages.append(Stage("out", y, operands.value(acc, n.var, ob.var, oh.var, ow.var, ov.var)))
    out = Buffer("out", (s.n, s.kb, s.oh, s.ow, s.block), access="out")
    return Algorithm("conv", (x, weights, *operands.buffers(), out), tuple(stages))


def physical_input(s: Shape) -> tuple[int, ...]:
    """The input's memory as (N, C blocks, H, W, block); ROW is block 1."""
    return (s.n, -(-s.c // s.in_block), s.h, s.w, s.in_block)


def padded_input(s: Shape) -> Stage:
    """xp[n,cb,h,w,cv] = x[n,cb,h-ph,w-pw,cv] inside the input, 0 outside."""
    n, cb, h, w, cv = (Axis(a, e) for a, e in zip(
        ("n", "cb", "h", "w", "cv"), (s.n, -(-s.c // s.in_block), s.hp, s.wp, s.in_block), strict=True))  # fmt: skip
    row, col = h.var - s.ph, w.var - s.pw
    inside = (wrap(-1) < row) & (row < s.h) & (wrap(-1) < col) & (col < s.w)
    return Stage("xp", (n, cb, h, w, cv), Select(inside, Load("x", (n.var, cb.var, row, col, cv.var)), ZERO))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """Register tile, reduction order and unroll, cache tile, loop order, parallel axes and grain, padding, prefetch, ISA."""
    isas = tuple(i for i in target.isas if i in ("avx512", "avx2", "neon")) or ("scalar",)
    widths = tuple(sorted({t for t in TILE_WIDTHS if t <= s.ow} | {min(s.ow, 28)}))
    rows = tuple(t for t in (1, 2, 3, 4, 6, 7, 8, 14, 16, 28, 56) if t <= s.oh)
    cols = tuple(t for t in (1, 2, 4, 8, 16, 32, 64) if t == 1 or t * widths[-1] < 2 * s.ow)
    chunks = tuple(sorted({t for t in (1, 2, 4, 8, 16, 32, 64) if t <= s.kb}))
    knobs = (
        Choice("isa", isas, isas[0]),
        Ordered("tile_w", widths, max(t for t in widths if t <= 14)),
        Ordered("tile_k", tuple(t for t in (1, 2, 3, 4) if t <= s.kb), min(2, s.kb)),
        Ordered("unroll_c", (1, 2, 4, 8, 16), 4),
        Choice("reduce", ("c_kh_kw", "kh_kw_c", "kh_c_kw"), "c_kh_kw"),
        Ordered("rows", rows, rows[0]),
        Ordered("cols", cols, 16 if s.oh == 1 else cols[-1]),
        Ordered("chunk", chunks, chunks[-1]),
        Choice("order", ("k_outer", "row_outer"), "k_outer"),
        Choice("inner", ("w_k", "k_w"), "k_w"),
        Choice("parallel", ("pixels", "channels", "both", "both_k"), "both"),
        Ordered("grain", (1, 2, 4), 1),
        Choice("tail", ("cut", "shift"), "cut"),
        Choice("pad", ("root", "rows") if s.padded else ("none",), "root" if s.padded else "none"),
        Ordered("prefetch", (PANEL, 0, 4, 8, 16), 0),
    )

    def in_one_group(config: Config) -> bool:
        return (s.kb // s.groups) % int(config["tile_k"]) == 0 or s.groups == 1

    return Space(knobs, (fits_registers, in_one_group), first_configs(s, target, knobs))


def fits_registers(config: Config) -> bool:
    """Accumulators, one row of weights and a broadcast fit the registers of the ISA (16-lane blocks)."""
    isa = str(config["isa"])
    vectors = -(-16 // LANES[isa]) * int(config["tile_k"])
    return (int(config["tile_w"]) + 1) * vectors + 1 <= REGISTERS[isa]


def first_configs(s: Shape, target: Target, knobs: tuple[Choice | Ordered, ...]) -> tuple[Config, ...]:
    """Analytic first guesses: the register tiles of least estimated time, each with its best way to divide the work."""
    base: Config = {k.name: k.default for k in knobs}
    values = {k.name: k.values for k in knobs}
    # Panels that a core's L2 holds twice can come from memory while the one before is used.
    early = PANEL if s.cg * s.kh * s.kw * s.block * 4 * 4 < target.l2 else 4
    ways: list[Config] = [
        {"parallel": "both", "order": "k_outer", "prefetch": early},
        {"parallel": "pixels", "order": "row_outer", "prefetch": early},
        {"parallel": "channels", "order": "k_outer", "prefetch": 8},
        {"parallel": "both_k", "order": "row_outer", "prefetch": 0},
    ]
    found: list[tuple[float, int, Config]] = []
    for i, way in enumerate(ways):
        for w, k, cols, chunk in product(
            values["tile_w"], values["tile_k"], values["cols"][:4], values["chunk"][:4]
        ):
            config = {**base, **way, "tile_w": w, "tile_k": k, "cols": cols, "chunk": max(int(chunk), int(k))}
            if config["chunk"] in values["chunk"] and fits_registers(config):
                found.append((estimate(s, config, target.threads), i, config))
    found.sort(key=lambda x: x[0])
    best: dict[tuple[object, ...], Config] = {}
    for _, i, config in found:
        best.setdefault((config["tile_w"], config["tile_k"]) if i == 0 else (i,), config)
    return tuple(list(best.values())[:8])


def estimate(s: Shape, c: Config, threads: int) -> float:
    """Cycles of a config: two vector FMAs and two loads a cycle, four cycles of latency, and the imbalance of the jobs."""
    k, steps = int(c["tile_k"]), s.cg * s.kh * s.kw
    vectors = s.block / LANES[str(c["isa"])] * k

    def tile(w: int) -> float:
        return steps * max(w * vectors / 2, (w + vectors) / 2, 4.0) + 3 * w * vectors + 40 if w else 0.0

    w, total_w = int(c["tile_w"]), s.ow
    row = (total_w // w) * tile(w) + tile(total_w % w)
    area = s.n * s.oh / int(c["rows"]) * -(-s.ow // (w * int(c["cols"])))
    chunks = -(-s.kb // max(int(c["chunk"]), k))
    jobs = {"pixels": area, "channels": s.n * chunks}.get(str(c["parallel"]), area * chunks)
    imbalance = -(-jobs // threads) * threads / jobs
    return row * s.n * s.oh * -(-s.kb // k) * (imbalance + 0.002 * jobs)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """The schedule of a config.

    parallel (n, k_o, row_o): for [k_m, row] in ``order``: for w_o: acc in registers = reduction; store the tile.
    """
    tile_w, tile_k, chunk = int(c["tile_w"]), int(c["tile_k"]), int(c["chunk"])
    plan: list[Step] = [
        Split("out", "ob", tile_k, "ob_o", "k", "shift"),
        Split("out", "ob_o", max(chunk // tile_k, 1), "k_o", "k_m", "shift"),
        Split("out", "oh", int(c["rows"]), "row_o", "row", "shift"),
        Split("out", "ow", tile_w * int(c["cols"]), "col_o", "col", "shift"),
        Split("out", "col", tile_w, "w_o", "w", "shift" if c["tail"] == "shift" else "cut"),
    ]
    middle = ("k_m", "row", "w_o") if c["order"] == "k_outer" else ("row", "k_m", "w_o")
    if c["inner"] == "w_k" and c["order"] == "row_outer":
        middle = ("row", "w_o", "k_m")
    outer, serial = {
        "pixels": (("n", "row_o", "col_o"), ("k_o",)),
        "channels": (("n", "k_o"), ("row_o", "col_o")),
        "both": (("n", "k_o", "row_o", "col_o"), ()),
        "both_k": (("n", "row_o", "col_o", "k_o"), ()),
    }[str(c["parallel"])]
    leaf = middle[-1]
    plan += [
        Reorder("out", (*outer, *serial, *middle, "w", "k", "ov")),
        *fuse_all("out", outer, "job"),
        Parallel("out", "job", int(c["grain"])),
        Unroll("out", "w"), Unroll("out", "k"), Vectorize("out", "ov"),
        ComputeAt("acc", "out", leaf, "register"),
        *reduction(s, c),
    ]  # fmt: skip
    return plan + padding(s, c, serial[-1] if serial else "job")


def fuse_all(stage: str, loops: Sequence[str], name: str) -> list[Step]:
    """Fuse adjacent loops into one called ``name``."""
    plan: list[Step] = []
    current = loops[0]
    for i, loop in enumerate(loops[1:]):
        fused = name if i == len(loops) - 2 else f"{name}{i}"
        plan.append(Fuse(stage, current, loop, fused))
        current = fused
    return plan


def reduction(s: Shape, c: Config) -> list[Step]:
    """Accumulator loops: the reduction outside, the unrolled register tile inside."""
    unroll = int(c["unroll_c"])
    plan: list[Step] = [Split("acc", "c", 16, "c_o", "c_i"), Split("acc", "c_i", unroll, "c_m", "c_u")]
    outer = {
        "c_kh_kw": ("c_o", "kh", "kw", "c_m"),
        "kh_kw_c": ("kh", "kw", "c_o", "c_m"),
        "kh_c_kw": ("kh", "c_o", "kw", "c_m"),
    }[str(c["reduce"])]
    plan += [
        Reorder("acc", ("n", "oh", *outer, "c_u", "ow", "ob", "ov")),
        Unroll("acc", "c_u"), Unroll("acc", "ow"), Unroll("acc", "ob"), Vectorize("acc", "ov"),
    ]  # fmt: skip
    return [*plan, *weight_prefetch("acc", "w", "ob", c)]


def weight_prefetch(stage: str, tensor: str, channels: str, c: Config) -> list[Step]:
    """Hints some iterations ahead, or, for PANEL, of the next channel tile's weights, which come while this tile is computed."""
    if c["prefetch"] == PANEL:
        return [Prefetch(stage, tensor, "c_u", 0, 2, ((channels, int(c["tile_k"])),))]
    return [Prefetch(stage, tensor, "c_m", int(c["prefetch"]))] if int(c["prefetch"]) else []


def padding(s: Shape, c: Config, at: str) -> list[Step]:
    """Where the padded input is made: once for all, or for the rows of one job."""
    if not s.padded:
        return []
    plan: list[Step] = [Vectorize("xp", "cv")] if s.in_block > 1 else []
    if c["pad"] == "rows":
        return [*plan, ComputeAt("xp", "out", at, "thread")]
    return [*plan, Reorder("xp", ("n", "cb", "h", "w", "cv")), Fuse("xp", "n", "cb", "nc"), Fuse("xp", "nc", "h", "job"),
            Parallel("xp", "job", 8)]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvDirect:
    """Direct convolution; see the module's docstring."""

    name: str = "conv_direct"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 2-D conv to a blocked layout; input blocked alike, or ROW with at most 8 channels per group."""
        if workload.op != "conv":
            return f"op is {workload.op}, expected conv"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or len(x.shape) != 4 or 1 not in workload.constants:
            return "expected a float32 2-D convolution with constant weights"
        s = shape_of(workload)
        if s.block == 1:
            return f"output layout {y.layout}, expected a channel-blocked one"
        if s.in_block == 1 and (s.c > 8 or s.groups > 1):
            return f"ROW input with {s.c} channels, expected a blocked layout above 8"
        if s.in_block not in (1, s.block):
            return f"input block {s.in_block}, output block {s.block}"
        if s.groups > 1 and (s.cg % s.block or (s.k // s.groups) % s.block):
            return f"{s.cg} → {s.k // s.groups} channels per group, expected multiples of {s.block}"
        return Operands(workload, 2, s.block, is_flat(workload)).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = shape_of(workload)
        weights = Buffer("w", (s.kb, -(-s.cg // 16), s.kh, s.kw, 16, s.block))
        kernel = lower(schedule(algorithm(workload, s, weights), steps(s, config)), symbol(s, config))
        return Built(kernel, str(config["isa"]))

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights (K, C/g, KH, KW) → (K/b, C/16, KH, KW, 16, b), zero-padded; epilogue constants blocked like the output."""
        s = shape_of(workload)
        return [
            pack_weights(s, constants[0]),
            *Operands(workload, 2, s.block, is_flat(workload)).pack(constants, 1),
        ]


def pack_weights(s: Shape, weights: np.ndarray) -> np.ndarray:
    """See :meth:`ConvDirect.pack`."""
    cb = -(-s.cg // 16)
    full = np.zeros((s.kb * s.block, cb * 16, s.kh, s.kw), np.float32)
    full[: s.k, : s.cg] = weights
    blocked = full.reshape(s.kb, s.block, cb, 16, s.kh, s.kw)
    return np.ascontiguousarray(blocked.transpose(0, 2, 4, 5, 3, 1))


def symbol(s: Shape, c: Config) -> str:
    """The kernel's name: dtype, op, tile, ISA."""
    return f"f32_conv{s.kh}x{s.kw}_{c['tile_w']}x{int(c['tile_k']) * s.block}__{c['isa']}"
