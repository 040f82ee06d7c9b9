"""Depthwise convolution: one filter for each channel, so a register tile of output rows × columns of one channel block.

On channel-blocked layouts vectors run over channels; in layout ROW over the columns of a row. Zeros around the input are
copied in (once, or for the rows of a job), or tested where they are read: then loops run in segments, and only the edges test.
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
from wpk.dsl.ir import Buffer, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Inline,
    Parallel,
    Reorder,
    Segment,
    Split,
    Step,
    Unroll,
    schedule,
)
from wpk.kernels import conv_direct
from wpk.kernels.conv_row import Rows, copied_columns, phases, read_phases, rows_of
from wpk.kernels.epilogue import Operands, block_of
from wpk.kernels.family import Built
from wpk.kernels.gemm import VECTOR, covered, thrifty
from wpk.kernels.nests import REGISTERS, fused, isas, lanes
from wpk.kernels.row_operands import RowOperands
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution: its numbers as a convolution of ``groups`` channels, and the channel block (1 for ROW)."""

    rows: Rows
    block: int

    @property
    def padded(self) -> bool:
        """True when the kernel reaches outside the input."""
        s = self.rows
        reach_h, reach_w = (s.oh - 1) * s.sh + (s.kh - 1) * s.dh, (s.ow - 1) * s.sw + (s.kw - 1) * s.dw
        return bool(s.ph or s.pw) or reach_h >= s.h or reach_w >= s.w

    @property
    def blocks(self) -> int:
        """Channel blocks: channels in layout ROW."""
        return -(-self.rows.groups // self.block)

    def lanes(self, isa: str) -> int:
        """Elements of the innermost axis: the channel block, or a vector of pixels."""
        return self.block if self.block > 1 else self.rows.lanes(isa)

    def columns(self, isa: str) -> int:
        """Columns, or vectors of columns in layout ROW."""
        return self.rows.ow if self.block > 1 else self.rows.vectors(isa)

    def registers(self, isa: str) -> int:
        """Vector registers that one column takes."""
        return -(-self.lanes(isa) // VECTOR[isa])


def depthwise_of(workload: Workload) -> Depthwise:
    """The numbers of a depthwise conv workload; rows stay rows even where the kernel is 1×1."""
    s = rows_of(workload)
    if s.flat:
        (_, _, h, w), (_, _, oh, ow) = workload.inputs[0].shape, workload.outputs[0].shape
        s = Rows(s.n, s.groups, 1, h, w, 1, oh, ow, 1, 1, 1, 1, 0, 0, s.dh, s.dw, False)
    return Depthwise(s, block_of(workload.outputs[0].layout))


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, d: Depthwise, isa: str) -> Algorithm:
    """out[n,cb,oh,ow,ov] = epilogue(sum over kh,kw of xp[…, oh*sh+kh*dh, col*sw+kw*dw, …] * w[cb,kh,kw,…])."""
    s = d.rows
    extents = {
        "n": s.n,
        "cb": d.blocks,
        "oh": s.oh,
        "ow": d.columns(isa),
        "ov": d.lanes(isa),
        "kh": s.kh,
        "kw": s.kw,
    }
    axes = tuple(Axis(name, n) for name, n in extents.items())
    return in_rows(workload, d, axes) if d.block == 1 else in_blocks(workload, d, axes)


def in_blocks(workload: Workload, d: Depthwise, axes: tuple[Axis, ...]) -> Algorithm:
    """Blocked layouts: col = ow, and ov is a channel of block cb."""
    s, operands, at = d.rows, Operands(workload, 2, d.block), axes[:5]
    n, cb, oh, ow, ov, kh, kw = (a.var for a in axes)
    read = Load("xp" if d.padded else "x", (n, cb, oh * s.sh + kh * s.dh, ow * s.sw + kw * s.dw, ov))
    done = operands.value(Load("acc", (n, cb, oh, ow, ov)), n, cb, oh, ow, ov)
    stages = [conv_direct.padded_input(conv_direct.shape_of(workload))] if d.padded else []
    stages += [
        Stage("acc", at, read * Load("wp", (cb, kh, kw, ov)), Reduce("+", axes[5:])),
        Stage("out", at, done),
    ]
    x, w = Buffer("x", (s.n, d.blocks, s.h, s.w, d.block)), Buffer("wp", (d.blocks, s.kh, s.kw, d.block))
    out = Buffer("out", (s.n, d.blocks, s.oh, s.ow, d.block), access="out")
    return Algorithm("conv_depthwise", (x, w, *operands.buffers(), out), tuple(stages))


def in_rows(workload: Workload, d: Depthwise, axes: tuple[Axis, ...]) -> Algorithm:
    """Layout ROW: cb is a channel, col = ow*lanes + ov, and what lies beyond the row is not stored."""
    s, operands, at = d.rows, RowOperands(workload, 2, d.rows.groups_of_dims), axes[:5]
    n, cb, oh, ow, ov, kh, kw = (a.var for a in axes)
    lanes, vectors = axes[4].extent, axes[3].extent
    col = ow * lanes + ov
    place = (n, cb, oh, col)
    product = read_phases(s, n, cb, oh, col, kh, kw) * Load("wp", (cb, kh, kw))
    stages = (
        phases(s, s.groups, vectors * lanes),
        Stage("acc", at, product, Reduce("+", axes[5:])),
        Stage("out", at, operands.value(Load("acc", (n, cb, oh, ow, ov)), place), None, place, col < s.ow),
    )
    x, w = Buffer("x", (s.n, s.groups, s.h, s.w)), Buffer("wp", (s.groups, s.kh, s.kw))
    out = Buffer("out", (s.n, s.groups, s.oh, s.ow), access="out")
    return Algorithm("conv_depthwise", (x, w, *operands.buffers(), out), stages)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(d: Depthwise, target: Target) -> Space:
    """Register tile, rows of a job, unroll, parallel axes and grain, tails, padding, ISA."""
    s, choices = d.rows, isas(target)
    widest = max(d.columns(isa) for isa in choices)
    copied = d.padded or d.block == 1
    pads = ("root", "job", "inline", "edges") if d.block > 1 or s.sw == 1 else ("root", "job")
    knobs: tuple[Knob, ...] = (
        Choice("isa", choices, choices[0]),
        Ordered("tile_w", tuple(t for t in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 28) if t <= widest), 1),
        Ordered("tile_h", tuple(t for t in (1, 2, 3, 4, 6, 7) if t <= s.oh), 1),
        Ordered(
            "rows", tuple(sorted({t for t in (1, 2, 3, 4, 7, 8, 14, 16, 28) if t <= s.oh} | {s.oh})), s.oh
        ),
        Choice("unroll", ("none", "kw", "kernel"), "kernel" if s.kh * s.kw <= 9 else "kw"),
        Choice("parallel", ("channels", "rows"), "channels"),
        Ordered("grain", (1, 2, 4, 8), 1),
        Choice("tail", ("cut", "shift"), "cut"),
        Choice("reduce", ("kh_kw", "kw_kh"), "kh_kw"),
        Choice("pad", pads if copied else ("none",), "job" if copied else "none"),
    )

    def fits(c: Config) -> bool:
        isa, tile = str(c["isa"]), int(c["tile_w"]) * int(c["tile_h"])
        return int(c["tile_w"]) <= d.columns(isa) and tile * d.registers(isa) + 3 <= REGISTERS[isa]

    def reaches(c: Config) -> bool:
        tile, rows = int(c["tile_h"]), int(c["rows"])
        divided = thrifty(s.oh, rows * tile, tile) or rows == s.oh
        return divided and (rows * tile < s.oh or (c["parallel"] == "channels" and rows in (1, s.oh)))

    def segmented(c: Config) -> bool:
        return c["pad"] != "edges" or (int(c["rows"]) == s.oh and c["unroll"] == "kernel")

    def short(c: Config) -> bool:
        taps = {"none": 1, "kw": s.kw, "kernel": s.kh * s.kw}[str(c["unroll"])]
        return taps * int(c["tile_w"]) * int(c["tile_h"]) <= 400

    limits = (fits, reaches, segmented, short)
    return Space(knobs, limits, first_configs(d, target, knobs, limits))


def first_configs(
    d: Depthwise, target: Target, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Analytic first guesses: the register tiles of least estimated time, with each way to treat the edges."""
    base: Config = {k.name: k.default for k in knobs}
    values = {k.name: k.values for k in knobs}
    found: list[tuple[float, Config]] = []
    for pad in values["pad"]:
        for tile_w, tile_h, rows in product(*(values[x] for x in ("tile_w", "tile_h", "rows"))):
            parallel = "channels" if rows == d.rows.oh else "rows"
            c = {**base, "pad": pad, "tile_w": tile_w, "tile_h": tile_h, "rows": rows, "parallel": parallel}
            if all(limit(c) for limit in limits):
                found.append((estimate(d, c, target), c))
    found.sort(key=lambda pair: pair[0])
    best: dict[object, Config] = {}
    for _, c in found:
        best.setdefault((c["pad"], c["tile_w"]) if len(best) < 4 else c["pad"], c)
    return tuple(list(best.values())[:6])


def estimate(d: Depthwise, c: Config, target: Target) -> float:
    """Cycles: the register tiles, the copy with zeros or the tests in its place, imbalance and number of the jobs."""
    s, isa = d.rows, str(c["isa"])
    columns, each = d.columns(isa), d.registers(isa)
    tile_w, tile_h = int(c["tile_w"]), int(c["tile_h"])

    def strip(h: int) -> float:
        whole, rest = divmod(columns, tile_w)
        return whole * tile_cycles(d, isa, h, tile_w) + tile_cycles(d, isa, h, rest)

    high = min(int(c["rows"]) * tile_h, s.oh)
    job = high // tile_h * strip(tile_h) + strip(high % tile_h)
    if c["pad"] in ("root", "job"):
        job += 2.5 * each * (high * s.sh + s.kh * s.dh) * (columns * s.sw + 2)
    elif c["pad"] == "inline":
        job *= 1.2
    jobs = s.n * d.blocks * (covered(s.oh, high) // high)
    imbalance = -(-jobs // target.threads) * target.threads / jobs
    return job * jobs * imbalance + 100 * jobs * (c["parallel"] == "rows") + 5000 * (c["pad"] == "root")


def tile_cycles(d: Depthwise, isa: str, h: int, w: int) -> float:
    """Cycles of a register tile: two FMAs and two loads (one that crosses lines) a cycle; too long code is not kept decoded.

    What neighbouring outputs read is loaded once as long as tile, weights and inputs fit the registers.
    """
    s, each, taps = d.rows, d.registers(isa), d.rows.kh * d.rows.kw
    sums = h * w * each
    if not sums:
        return 0.0
    shared = sums + taps * each + 3 <= REGISTERS[isa] and s.dh == s.dw == 1
    loads = each * ((h - 1) * s.sh + s.kh) * ((w - 1) * s.sw + s.kw) if shared else taps * (sums + each)
    crossing = 2 if d.block == 1 and s.kw > 1 else 1
    cycles = max(taps * sums, loads * crossing) / 2 + 0.3 * sums + 1.5
    return cycles * (1 + max(taps * sums - 140, 0) / 150)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(d: Depthwise, c: Config) -> list[Step]:
    """The schedule of a config.

    parallel (n, cb[, row_o]): for h_o, w_o: acc in registers = reduction; store the tile.
    """
    isa, tile_w, tile_h = str(c["isa"]), int(c["tile_w"]), int(c["tile_h"])
    outer, serial = (("n", "cb"), ("row_o",)) if c["parallel"] == "channels" else (("n", "cb", "row_o"), ())
    fuse, job = fused("out", outer)
    plan: list[Step] = [
        Split("out", "oh", tile_h * int(c["rows"]), "row_o", "row", "shift"),
        Split("out", "row", tile_h, "h_o", "h", "shift" if c["tail"] == "shift" else "cut"),
        Split("out", "ow", tile_w, "w_o", "w", "shift" if c["tail"] == "shift" else "cut"),
        Reorder("out", (*outer, *serial, "h_o", "w_o", "h", "w", "ov")),
        *fuse, Parallel("out", job, int(c["grain"])),
        Unroll("out", "h"), Unroll("out", "w"), *lanes("out", "ov", d.lanes(isa), isa),
        ComputeAt("acc", "out", "w_o", "register"),
        *reduction(d, c),
    ]  # fmt: skip
    return plan + edges(d, c, serial[-1] if serial else job)


def reduction(d: Depthwise, c: Config) -> list[Step]:
    """Accumulator loops: the kernel outside, the register tile inside."""
    taps = ("kh", "kw") if c["reduce"] == "kh_kw" else ("kw", "kh")
    unrolled = {"none": (), "kw": (taps[1],), "kernel": taps}[str(c["unroll"])]
    isa = str(c["isa"])
    return [
        Reorder("acc", ("n", "cb", *taps, "oh", "ow", "ov")),
        *(Unroll("acc", loop) for loop in (*unrolled, "oh", "ow")),
        *lanes("acc", "ov", d.lanes(isa), isa),
    ]


def edges(d: Depthwise, c: Config, at: str) -> list[Step]:
    """Zeros around the input: copied once or for the rows of a job, or tested where they are read."""
    if c["pad"] == "none":
        return []
    if c["pad"] == "inline":
        return [Inline("xp")]
    if c["pad"] == "edges":
        top, bottom = border(
            d.rows.ph, d.rows.sh, d.rows.oh, d.rows.h, (d.rows.kh - 1) * d.rows.dh, int(c["tile_h"])
        )
        width = int(c["tile_w"]) * (1 if d.block > 1 else d.lanes(str(c["isa"])))
        left, right = border(d.rows.pw, d.rows.sw, d.rows.ow, d.rows.w, (d.rows.kw - 1) * d.rows.dw, width)
        return [Inline("xp"), Segment("out", "h_o", (top, bottom)), Segment("out", "w_o", (left, right))]
    plan = copying(d, str(c["isa"]))
    if c["pad"] == "job":
        return [*plan, ComputeAt("xp", "out", at, "thread")]
    fuse, job = fused("xp", ("n", "cb", "h") if d.block > 1 else ("n", "c", "rp"))
    return [*plan, *fuse, Parallel("xp", job)]


def border(pad: int, stride: int, out: int, size: int, reach: int, tile: int) -> tuple[int, int]:
    """Tiles at the beginning, and the (negative) number at the end, that read outside the input."""
    first = -(-pad // stride)
    inside = max(
        (size - 1 - reach + pad) // stride + 1, 0
    )  # outputs before the first that reads beyond the end
    return -(-first // tile), -(-(-out // tile) - min(inside, out) // tile)


def copying(d: Depthwise, isa: str) -> list[Step]:
    """The copy with zeros, in vectors where neighbours stay neighbours."""
    if d.block > 1:
        return lanes("xp", "cv", d.block, isa)
    return copied_columns(d.rows, isa)


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvDepthwise:
    """Depthwise convolution; see the module's docstring."""

    name: str = "conv_depthwise"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 2-D conv with as many groups as input and output channels, blocked alike or ROW."""
        if workload.op != "conv":
            return f"op is {workload.op}, expected conv"
        x, w, y = workload.inputs[0], workload.inputs[1], workload.outputs[0]
        if x.dtype != "float32" or len(x.shape) != 4 or workload.constants[:1] != (1,):
            return "expected a float32 2-D convolution with constant weights"
        groups = workload.attr("group")
        if w.shape[1] != 1 or groups != x.shape[1] or groups != y.shape[1]:
            return f"{groups} groups for {x.shape[1]} → {y.shape[1]} channels, expected a depthwise convolution of multiplier 1"
        if x.layout != y.layout or (x.layout != "ROW" and block_of(x.layout) == 1):
            return f"layouts {x.layout} → {y.layout}, expected ROW or one channel-blocked layout"
        d = depthwise_of(workload)
        if d.block == 1:
            return RowOperands(workload, 2, d.rows.groups_of_dims).reason()
        return Operands(workload, 2, d.block).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(depthwise_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        d, isa = depthwise_of(workload), str(config["isa"])
        s, tile = d.rows, f"{config['tile_h']}x{config['tile_w']}"
        name = f"f32_depthwise{s.kh}x{s.kw}_{tile}x{d.lanes(isa)}__{isa}"
        return Built(lower(schedule(algorithm(workload, d, isa), steps(d, config)), name), isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights (C, 1, KH, KW) → (C/b, KH, KW, b), zero-padded; epilogue constants like the output."""
        d = depthwise_of(workload)
        if d.block == 1:
            operands = RowOperands(workload, 2, d.rows.groups_of_dims)
            return [np.ascontiguousarray(constants[0][:, 0], np.float32), *operands.pack(constants, 1)]
        s = d.rows
        full = np.zeros((d.blocks * d.block, s.kh, s.kw), np.float32)
        full[: s.groups] = constants[0][:, 0]
        packed = np.ascontiguousarray(np.moveaxis(full.reshape(d.blocks, d.block, s.kh, s.kw), 1, -1))
        return [packed, *Operands(workload, 2, d.block).pack(constants, 1)]


__all__ = ["ConvDepthwise", "Depthwise", "depthwise_of"]
