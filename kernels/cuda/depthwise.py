"""Depthwise convolutions for GPUs, any number of output channels for each input channel: direct, a small tile a thread.

A thread has the outputs of a few rows and columns in registers, and what its tile reads of the input: vectors along the
columns in layout ROW, along channels in NHWC, read straight from device memory or from a box that its block copied to shared
memory. Arithmetic is float32 whatever the storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, ComputeAt, Inline, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.conv_shape import Conv, given
from wpk.kernels.cuda.depthwise_grid import Grid, box_elements, cycles, grid_of, registers
from wpk.kernels.cuda.images import ImageOperands, size_of, unfit
from wpk.kernels.cuda.nests import MOST_REGISTERS, WARP, fuse_all, width_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.epilogue import ZERO
from wpk.kernels.family import Built
from wpk.search.knobs import Choice, Knob, Ordered, Value
from wpk.search.space import Constraint, Space

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def axes_of(g: Grid) -> dict[str, Axis]:
    """Axes of the output by name: image, blocks (cb, hb, wb), threads (ct, ht, wt), a tile's rows, vectors and lanes."""
    cb, hb, wb = g.blocks
    extents = {
        "n": g.conv.n, "cb": cb, "hb": hb, "wb": wb, "ct": g.channels, "ht": g.rows, "wt": g.columns,
        "hi": g.height, "wi": g.vectors, "v": g.lanes, "kh": g.conv.kh, "kw": g.conv.kw,
    }  # fmt: skip
    return {name: Axis(name, n) for name, n in extents.items()}


@dataclass(frozen=True)
class Place:
    """An output's row, its channel and column, those of them in vectors (``vector``), and whether it exists."""

    row: Expr
    column: Expr
    channel: Expr
    vector: Expr
    exists: Expr


def place_of(g: Grid, a: dict[str, Axis]) -> Place:
    """Where the element at the axes is."""
    v = {name: axis.var for name, axis in a.items()}
    s = g.conv
    row = (v["hb"] * g.rows + v["ht"]) * g.height + v["hi"]
    channel = v["cb"] * g.channels + v["ct"]
    column = (v["wb"] * g.columns + v["wt"]) * g.vectors + v["wi"]
    if s.last:
        exists = (row < s.oh) & (column < s.ow) & (channel < s.k // g.lanes)
        return Place(row, column, channel * g.lanes + v["v"], channel, exists)
    exists = (row < s.oh) & (column < s.ow // g.lanes) & (channel < s.k)
    return Place(row, column * g.lanes + v["v"], channel, column, exists)


def input_stage(name: str, g: Grid, dtype: str, source: str = "") -> Stage:
    """``name[n, row, column, channel vector, lane]`` or ``[n, channel, row, column vector, lane]``, 0 outside: x, or a copy."""
    s, (high, wide) = g.conv, g.box
    n, h, r = Axis("n", s.n), Axis("h", high), Axis("r", g.reads)
    row = h.var - s.ph
    inside = _within(row, s.h)
    if s.last:
        w, q = Axis("w", wide), Axis("q", -(-g.blocks[0] * g.channels * g.lanes // (s.kg * g.reads)))
        axes, column = (n, h, w, q, r), w.var - s.pw
        inside = inside & _within(column, s.w) & (q.var < s.c // g.reads)
        index: tuple[Expr, ...] = (n.var, row, column, q.var * g.reads + r.var)
    else:
        q = Axis("q", -(-g.blocks[0] * g.channels // s.kg))
        w = Axis("w", -(-wide // g.reads) + 1)  # a tile that begins inside a vector asks for one more
        axes, vector = (n, q, h, w, r), w.var - g.lead // g.reads
        inside = inside & _within(vector, s.w // g.reads) & (q.var < s.c)
        index = (n.var, q.var, row, vector * g.reads + r.var)
    value: Expr = Load(source, tuple(a.var for a in axes)) if source else Select(inside, Load("x", index), ZERO)
    return Stage(name, axes, value, dtype=dtype)


def _within(at: Expr, extent: int) -> Expr:
    return (wrap(-1) < at) & (at < extent)


def input_index(g: Grid, a: dict[str, Axis], p: Place) -> tuple[Expr, ...]:
    """Where :func:`input_stage` has what an output is multiplied from at (kh, kw)."""
    s, n, lane = g.conv, a["n"].var, a["v"].var
    row = p.row * s.sh + a["kh"].var * s.dh
    column = p.column * s.sw + a["kw"].var * s.dw
    if not s.last:
        channel = p.channel // s.kg if s.kg > 1 else p.channel
        column = column + (g.lead - s.pw)
        return n, channel, row, column // g.reads, column % g.reads
    if s.kg == 1:
        return n, row, column, p.vector, lane
    shared = s.kg // g.lanes
    return n, row, column, p.vector // shared if shared > 1 else p.vector, wrap(0)


def algorithm(workload: Workload, g: Grid, unroll: str, staged: bool) -> Algorithm:
    """out[n,k,oh,ow] = epilogue(sum over kh, kw of x[n, k // multiplier, oh*sh+kh*dh-ph, ow*sw+kw*dw-pw] * w[k,kh,kw])."""
    s, x, y = g.conv, workload.inputs[0], workload.outputs[0]
    a = axes_of(g)
    p, place = place_of(g, a), tuple(a.values())[:-2]
    stages = [input_stage("xs", g, x.dtype)] if staged else []
    stages.append(input_stage("xr", g, "float32", "xs" if staged else ""))
    weights, weight = weights_of(workload, g, a, p, unroll)
    term = Load("xr", input_index(g, a, p)) * weight
    acc = Stage("acc", place, term, Reduce("+", (a["kh"], a["kw"])))
    operands = ImageOperands(workload, 2)
    value = operands.value(Load("acc", tuple(b.var for b in place)), a["n"].var, p.channel, p.row, p.column)
    index = (a["n"].var, p.row, p.column, p.channel) if s.last else (a["n"].var, p.channel, p.row, p.column)
    out = Stage("out", place, value, None, index, p.exists, y.dtype)
    sizes = ((s.n, s.h, s.w, s.c), (s.n, s.oh, s.ow, s.k)) if s.last else ((s.n, s.c, s.h, s.w), (s.n, s.k, s.oh, s.ow))
    params = (
        Buffer("x", sizes[0], x.dtype), weight_buffer(workload, s), *operands.buffers(),
        Buffer("out", sizes[1], y.dtype, access="out"),
    )  # fmt: skip
    return Algorithm("depthwise", params, (*stages, *weights, acc, out))


def weight_buffer(workload: Workload, s: Conv) -> Buffer:
    """Packed weights: (kh, kw, channel) in NHWC, (channel, tap) in ROW, rows a multiple of 16 bytes."""
    dtype = workload.inputs[1].dtype
    unit = 16 // DTYPE_BYTES[dtype]
    shape = (s.kh, s.kw, -(-s.k // unit) * unit) if s.last else (s.k, -(-s.kh * s.kw // unit) * unit)
    return Buffer("w", shape, dtype)


def weights_of(
    workload: Workload, g: Grid, a: dict[str, Axis], p: Place, unroll: str
) -> tuple[tuple[Stage, ...], Expr]:
    """The weight of an output at (kh, kw), and the stage that has weights in registers, if any, from which it comes."""
    s, kh, kw, q = g.conv, a["kh"], a["kw"], Axis("q", g.blocks[0] * g.channels)
    if s.last:
        r = Axis("r", g.lanes)
        read = Load("w", (kh.var, kw.var, q.var * g.lanes + r.var))
        stage = Stage("wr", (kh, kw, q, r), Select(q.var < s.k // g.lanes, read, ZERO))
        return (stage,), Load("wr", (kh.var, kw.var, p.vector, a["v"].var))
    tap = kh.var * s.kw + kw.var
    if not weights_kept(g, unroll):
        return (), Select(p.channel < s.k, Load("w", (p.channel, tap)), ZERO)
    unit = 16 // DTYPE_BYTES[workload.inputs[1].dtype]
    t, r = Axis("t", weight_buffer(workload, s).shape[1] // unit), Axis("r", unit)
    stage = Stage("wr", (q, t, r), Select(q.var < s.k, Load("w", (q.var, t.var * unit + r.var)), ZERO))
    return (stage,), Load("wr", (p.channel, tap // unit, tap % unit))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Conv, size: int, gpu: Gpu) -> Space:
    """A thread's tile, the threads of a block, what is unrolled and kept, the shared box, blocks of a multiprocessor."""
    heights = tuple(t for t in (1, 2, 3, 4, 5, 6, 7, 8) if t <= s.oh)
    widths = tuple(t for t in (1, 2, 3, 4, 5, 6, 7, 8, 14, 16) if t <= s.ow)
    lanes = tuple(n for n in (1, 2, 4, 8) if n <= widest(s, size))
    counts = {"c": threads_for(s.k, lanes), "h": threads_for(s.oh, heights), "w": threads_for(s.ow, widths)}
    knobs: tuple[Knob, ...] = (
        Ordered("tile_h", heights, 1), Ordered("tile_w", widths, 1), Ordered("lanes", lanes, lanes[-1]),
        *(Ordered(f"threads_{x}", values, 1) for x, values in counts.items()),
        Choice("unroll", unrolls(s), unrolls(s)[-1]), Choice("stage", STAGES, "none"), Ordered("min_blocks", (2, 3, 4, 6, 8), 2),
    )  # fmt: skip

    def fits(c: Config) -> bool:
        g, blocks = grid_of(s, size, c), int(c["min_blocks"])
        most = min(gpu.registers_per_sm // (blocks * WARP * g.warps), MOST_REGISTERS)
        shared = c["stage"] == "none" or box_elements(g) * size * blocks <= gpu.shared_per_block
        return sensible(g) and registers(g, str(c["unroll"])) <= most and shared

    return Space(knobs, (fits,), first_configs(s, size, gpu, knobs, fits))


#: where a thread reads the input: device memory, or what its block copied
STAGES = ("none", "block")
#: loads of a thread that are under way together, while a block copies
COPIES = 8
def unrolls(s: Conv) -> tuple[str, ...]:
    """What is written out and kept in registers: a tile's whole input (``all``), that of one row of the kernel at a time.

    ``row``: rows are written out too, ``loop``: they are not; ``none``: a large kernel is a loop of loads.
    """
    small, short = s.kh * s.kw <= 49, s.kw <= 16
    ways = {"all": small, "row": small and s.kh > 1, "loop": short and s.kh > 1, "none": s.kh * s.kw > 25}
    return tuple(way for way, useful in ways.items() if useful)


def widest(s: Conv, size: int) -> int:
    """Most channels of a thread: vectors of the output that are vectors of the input, or have one channel of it."""
    if not s.last:
        return 1
    return width_of(s.k, bytes_each=size) if s.kg == 1 else width_of(s.kg, bytes_each=size)


def threads_for(extent: int, tiles: tuple[int, ...]) -> tuple[int, ...]:
    """Counts of threads along an axis: powers of two, and those that cover it exactly with some tile."""
    whole = {-(-extent // t) for t in tiles}
    return tuple(sorted({n for n in (*whole, *(2**i for i in range(9))) if n <= min(2 * extent, 512)}))


def sensible(g: Grid) -> bool:
    """Blocks of a warp at least, if there is that much to do, of 512 threads at most; less than half of any axis is idle."""
    s = g.conv
    extents = ((g.channels, g.depth, s.k), (g.rows, g.height, s.oh), (g.columns, g.width, s.ow))
    whole = -(-s.k // g.depth) * -(-s.oh // g.height) * -(-s.ow // g.width)
    spread = all(n == 1 or n * tile < 2 * extent for n, tile, extent in extents)
    return spread and min(32, whole) <= g.threads <= 512


def first_configs(s: Conv, size: int, gpu: Gpu, knobs: tuple[Knob, ...], fits: Constraint) -> tuple[Config, ...]:
    """Guesses: the tiles that shall take least time, then those of each way to keep the input, best first."""
    allowed = {k.name: k.values for k in knobs}
    tiles = [(h, w) for h in allowed["tile_h"] for w in allowed["tile_w"] if h in (1, 2, 4, 7) and w in (1, 2, 4, 7, 8, 16)]
    found: list[tuple[float, Config]] = []
    for (height, width), lanes, most in product(tiles, allowed["lanes"][-2:], (64, 128, 256)):
        block = block_of(s, (int(lanes), int(height), int(width)), allowed, most)
        for unroll, stage in product(allowed["unroll"], STAGES):
            c: Config = {
                "tile_h": height, "tile_w": width, "lanes": lanes, **block, "unroll": unroll, "stage": stage, "min_blocks": 2,
            }  # fmt: skip
            if fits(c):
                found.append((cycles(s, size, c, gpu), c))
    best: dict[object, Config] = {}
    for _, c in sorted(found, key=lambda pair: pair[0]):
        best.setdefault((c["tile_h"], c["tile_w"]) if len(best) < 4 else (c["unroll"], c["stage"]), c)
    return tuple(list(best.values())[:8])


def block_of(s: Conv, tile: tuple[int, int, int], allowed: dict[str, tuple[Value, ...]], most: int) -> Config:
    """Threads of a block, ``most`` of them: as many as there are along the axis of neighbours in memory, then the next."""
    whole = dict(zip("chw", (-(-n // t) for n, t in zip((s.k, s.oh, s.ow), tile, strict=True)), strict=True))
    found: Config = {}
    for axis in "cwh" if s.last else "whc":
        count = max(int(n) for n in allowed[f"threads_{axis}"] if int(n) <= min(most, whole[axis]))
        found[f"threads_{axis}"] = count
        most //= count
    return found


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(g: Grid, c: Config) -> list[Step]:
    """block: [copy a box of the input;] thread: its input in registers; acc over the kernel; store the tile."""
    last, unroll = g.conv.last, str(c["unroll"])
    outer, threads = (("n", "hb", "wb", "cb"), ("ht", "wt", "ct")) if last else (("n", "cb", "hb", "wb"), ("ct", "ht", "wt"))
    fuse_blocks, block = fuse_all("out", outer, "block")
    fuse_threads, thread = fuse_all("out", threads, "thread")
    taps = {"all": ("kh", "kw"), "row": ("kh", "kw"), "loop": ("kw",), "none": ()}[unroll]
    return [
        Reorder("out", (*outer, *threads, "hi", "wi", "v")), *fuse_blocks, *fuse_threads,
        Bind("out", block, "block.x", int(c["min_blocks"])), Bind("out", thread, "thread"),
        Unroll("out", "hi"), Unroll("out", "wi"), Vectorize("out", "v"),
        ComputeAt("acc", "out", thread, "register"), Reorder("acc", (*outer, *threads, "kh", "kw", "hi", "wi", "v")),
        *(Unroll("acc", x) for x in (*taps, "hi", "wi")), Vectorize("acc", "v") if last else Unroll("acc", "v"),
        *kept_input(unroll, thread), *kept_weights(g, unroll, thread),
        *(shared_box(g, block) if c["stage"] == "block" else []),
    ]  # fmt: skip


def kept_input(unroll: str, thread: str) -> list[Step]:
    """What a thread has of the input in registers: for its whole tile, or for one row of the kernel."""
    if unroll == "none":
        return [Inline("xr")]
    at = ("out", thread) if unroll == "all" else ("acc", "kh")
    return [ComputeAt("xr", *at, "register"), *(Unroll("xr", x) for x in ("h", "w", "q")), Vectorize("xr", "r")]


def kept_weights(g: Grid, unroll: str, thread: str) -> list[Step]:
    """Weights in registers: a vector of channels at a time, or all of a channel."""
    if not weights_kept(g, unroll):
        return []
    if g.conv.last:
        return [ComputeAt("wr", "acc", "kw", "register"), Vectorize("wr", "r")]
    return [ComputeAt("wr", "out", thread, "register"), Unroll("wr", "t"), Vectorize("wr", "r")]


def weights_kept(g: Grid, unroll: str) -> bool:
    """True when they are read before they are needed: as vectors."""
    return g.conv.last or unroll in ("all", "row")


def shared_box(g: Grid, block: str) -> list[Step]:
    """All threads copy what the block reads of the input, in vectors; a few loads are under way at a time."""
    fuse, job = fuse_all("xs", ("h", "w", "q") if g.conv.last else ("q", "h", "w"), "job")
    return [
        ComputeAt("xs", "out", block, "block"), *fuse,
        Split("xs", job, g.threads * min(COPIES, -(-box_elements(g) // (g.threads * g.reads))), "turn", "some", "guard"),
        Split("xs", "some", g.threads, "load", "copier", "guard"), Unroll("xs", "load"),
        Bind("xs", "copier", "thread"), Vectorize("xs", "r"),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaDepthwise:
    """Depthwise convolution; see the module's docstring."""

    name: str = "cuda_depthwise"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Images of 16 or 32-bit floats in ROW or NHWC, the same in and out; constant weights of a filter for each channel."""
        reason = unfit(workload, "conv", target, 2)
        if reason is not None:
            return reason
        w, channels, groups = workload.inputs[1], workload.inputs[0].shape[1], workload.attr("group")
        if groups != channels or w.shape[1] != 1:
            return f"{groups} groups of {channels} channels, expected as many groups as channels"
        if w.dtype not in STORED or 1 not in workload.constants or 0 in workload.constants:
            return f"weights {w}, expected constant floats and an input that is not constant"
        return None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(given(workload), size_of(workload), target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s = given(workload)
        g = grid_of(s, size_of(workload), config)
        name = f"depthwise_{s.kh}x{s.kw}_{s.k}x{s.oh}x{s.ow}__{target.isa}"
        made = schedule(algorithm(workload, g, str(config["unroll"]), config["stage"] == "block"), steps(g, config))
        return Built(lower(made, name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Weights as :func:`weight_buffer` says, zero beyond; epilogue constants in the order of memory."""
        s = given(workload)
        weights = np.asarray(constants[0])
        taps = weights.reshape(s.k, s.kh * s.kw)
        out = np.zeros(weight_buffer(workload, s).shape, weights.dtype)
        if s.last:
            out[..., : s.k] = taps.T.reshape(s.kh, s.kw, s.k)
        else:
            out[:, : s.kh * s.kw] = taps
        return [out, *ImageOperands(workload, 2).pack(constants[1:])]
