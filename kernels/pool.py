"""Max and average pooling: a register tile of output pixels, vectors over channels (blocked) or over columns (ROW).

The window is reduced directly, or separably: down each column first, then across. Global pooling is one row of H·W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Const, Expr, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Inline,
    Parallel,
    Reorder,
    Segment,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.epilogue import Operands, block_of
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, REGISTERS, SMALL, fused, ints, isas, lanes, nearest, up_to
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Window:
    """One axis of a pooling: input and output sizes, kernel, stride, dilation, padding at both ends."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    pad: int
    pad_end: int

    def at(self, o: int, k: int) -> int:
        """The input position that output ``o`` reads at kernel position ``k``; outside 0..size-1 in the padding."""
        return o * self.stride - self.pad + k * self.dilation

    def inside(self, o: int) -> set[int]:
        """The input positions of a window."""
        return {p for k in range(self.kernel) if 0 <= (p := self.at(o, k)) < self.size}

    @property
    def reach(self) -> int:
        """Positions from the first that is read to the last."""
        return self.at(self.out - 1, self.kernel - 1) + self.pad + 1

    @property
    def padded(self) -> bool:
        """True when some window reaches outside the input."""
        return self.pad > 0 or self.reach - self.pad > self.size

    @property
    def clampable(self) -> bool:
        """True when moving a position from the padding to the nearest edge stays in the window: then a max is the same."""
        return all(
            min(max(self.at(o, k), 0), self.size - 1) in self.inside(o)
            for o in range(self.out)
            for k in range(self.kernel)
        )

    def counts(self, include_pad: bool) -> list[int]:
        """For each output, the positions that an average divides by."""
        low, high = (-self.pad, self.size + self.pad_end) if include_pad else (0, self.size)
        reads = ([self.at(o, k) for k in range(self.kernel)] for o in range(self.out))
        return [max(sum(low <= p < high for p in window), 1) for window in reads]

    def borders(self, tile: int) -> tuple[int, int]:
        """Tiles of ``tile`` outputs that need no test are those from the first to before the second of these two."""
        starts = [min(s, self.out - tile) for s in range(0, self.out, tile)]
        last = self.kernel - 1
        left = sum(self.at(s, 0) < 0 for s in starts)
        right = sum(self.at(s + tile - 1, last) < self.size for s in starts)
        return left, right


@dataclass(frozen=True)
class Shape:
    """A pooling's numbers; global pooling has one row. ``block`` is 1 for ROW."""

    n: int
    c: int
    block: int
    rows: Window
    cols: Window
    average: bool
    include_pad: bool

    @property
    def cb(self) -> int:
        """Channel blocks."""
        return -(-self.c // self.block)

    @property
    def padded(self) -> bool:
        """True when some window reaches outside the input."""
        return self.rows.padded or self.cols.padded

    @property
    def reads(self) -> int:
        """Elements read by all windows."""
        return self.n * self.cb * self.block * self.rows.out * self.cols.out * self.rows.kernel * self.cols.kernel


def shape_of(workload: Workload) -> Shape:
    """The normalized numbers of a pool workload."""
    x, y = workload.inputs[0], workload.outputs[0]
    (n, c, h, w), (_, _, oh, ow) = x.shape, y.shape
    (kh, kw), (sh, sw), (dh, dw) = (ints(workload, a) for a in ("kernel", "strides", "dilations"))
    pt, pl, pb, pr = ints(workload, "pads")
    rows, cols = Window(h, oh, kh, sh, dh, pt, pb), Window(w, ow, kw, sw, dw, pl, pr)
    if (kh, kw, oh, ow, dh, dw) == (h, w, 1, 1, 1, 1) and not (rows.padded or cols.padded):
        rows, cols = Window(1, 1, 1, 1, 1, 0, 0), Window(h * w, 1, h * w, 1, 1, 0, 0)
    average = workload.attr("kind") == "avg"
    return Shape(n, c, block_of(y.layout), rows, cols, average, bool(workload.attr("count_include_pad")))


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(workload: Workload, s: Shape, pad: str, separable: bool) -> Algorithm:
    """out[n,cb,oh,ow,v] = epilogue(max or mean over kh, kw of x[n,cb,oh*sh+kh*dh-ph,ow*sw+kw*dw-pw,v])."""
    n, cb, oh, ow, v = (Axis(a, e) for a, e in zip(
        ("n", "cb", "oh", "ow", "v"), (s.n, s.cb, s.rows.out, s.cols.out, s.block), strict=True))  # fmt: skip
    kh, kw = Axis("kh", s.rows.kernel), Axis("kw", s.cols.kernel)
    op, init = ("+", 0.0) if s.average else ("max", -np.inf)
    row = oh.var * s.rows.stride + kh.var * s.rows.dilation
    col = ow.var * s.cols.stride + kw.var * s.cols.dilation
    stages = [_padded_input(s, init)] if s.padded and pad != "clamp" else []

    def read(column: Expr) -> Expr:
        if stages:
            return Load("xp", (n.var, cb.var, row, column, v.var))
        at = (_clamped(row - s.rows.pad, s.rows), _clamped(column - s.cols.pad, s.cols))
        return Load("x", (n.var, cb.var, *at, v.var))

    value, axes = read(col), [kh, kw]
    if separable:
        w = Axis("w", s.cols.reach)
        stages.append(Stage("down", (n, cb, oh, w, v), read(w.var), Reduce(op, (kh,), init)))
        value, axes = Load("down", (n.var, cb.var, oh.var, col, v.var)), [kw]
    y = (n, cb, oh, ow, v)
    stages.append(Stage("acc", y, value, Reduce(op, tuple(axes), init)))
    done = Load("acc", tuple(a.var for a in y))
    scale, tables = pooled_scale(s, oh, ow) if s.average else (None, ())
    operands = Operands(workload, 1, s.block)
    result = operands.value(done if scale is None else done * scale, *(a.var for a in y))
    stages.append(Stage("out", y, result))
    x = Buffer("x", (s.n, s.cb, s.rows.size, s.cols.size, s.block))
    out = Buffer("out", (s.n, s.cb, s.rows.out, s.cols.out, s.block), access="out")
    return Algorithm("pool", (x, *operands.buffers(), out), tuple(stages), tables)


def _padded_input(s: Shape, init: float) -> Stage:
    """xp[n,cb,h,w,v] = x[n,cb,h-ph,w-pw,v] inside the input; outside, what changes no result."""
    n, cb, h, w, v = (Axis(a, e) for a, e in zip(
        ("n", "cb", "h", "w", "v"), (s.n, s.cb, s.rows.reach, s.cols.reach, s.block), strict=True))  # fmt: skip
    row, col = h.var - s.rows.pad, w.var - s.cols.pad
    inside = (wrap(-1) < row) & (row < s.rows.size) & (wrap(-1) < col) & (col < s.cols.size)
    value = Select(inside, Load("x", (n.var, cb.var, row, col, v.var)), Const(init, "float32"))
    return Stage("xp", (n, cb, h, w, v), value)


def _clamped(at: Expr, window: Window) -> Expr:
    if not window.padded:
        return at
    return Binary("min", Binary("max", at, Const(0)), Const(window.size - 1))


def pooled_scale(s: Shape, oh: Axis, ow: Axis) -> tuple[Expr, tuple[Buffer, ...]]:
    """1 / (positions counted), by row and column where they differ."""
    tables: list[Buffer] = []
    constant, factors = 1.0, list[Expr]()
    for window, axis in ((s.rows, oh), (s.cols, ow)):
        counts = window.counts(s.include_pad)
        if len(set(counts)) == 1:
            constant /= counts[0]
            continue
        name = f"per_{axis.name}"
        tables.append(Buffer(name, (len(counts),), values=tuple(float(np.float32(1 / c)) for c in counts)))
        factors.append(Load(name, (axis.var,)))
    total: Expr = Const(float(np.float32(constant)), "float32")
    for factor in factors:
        total = factor if total == Const(1.0, "float32") else total * factor
    return total, tuple(tables)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(s: Shape, target: Target) -> Space:
    """Form, padding, register tile (columns × channel blocks), unrolling of the window, rows of a job, grain, ISA."""
    kinds = isas(target)
    outs, rows, window = s.cols.out, s.rows.out, s.rows.kernel * s.cols.kernel
    tiles = sorted({*up_to((1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16), outs)}) if s.block > 1 else [1, 2, 4]
    pads = ("inline", "stage") if s.padded else ("none",)
    if s.padded and not s.average and s.block > 1 and s.rows.clampable and s.cols.clampable:
        pads = ("clamp", *pads)
    forms = ("direct", "separable") if s.rows.kernel > 1 and s.cols.kernel > 1 else ("direct",)
    some = tuple(sorted({*up_to((1, 2, 4, 7, 8, 14, 16, 28), rows), rows}))
    unrolls = tuple(sorted({*up_to((1, 2, 4, 8), window), min(window, 49)}))
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Choice("form", forms, forms[-1] if s.block > 1 or s.cols.stride > 1 else forms[0]),
        Choice("pad", pads, pads[0]),
        Ordered("tile_w", tuple(tiles), nearest(tiles, 4 if s.block > 1 else 1)),
        Ordered("tile_c", up_to((1, 2, 4, 8), s.cb) if s.block > 1 else (1,), 1),
        Ordered("unroll", unrolls, nearest(unrolls, 25)),
        Ordered("rows", some, rows),
        Choice("tail", ("cut", "shift") if s.block > 1 else ("shift",), "shift"),
        Choice("parallel", ("jobs", "serial"), "jobs"),
        Ordered("grain", (1, 2, 4, 8), 1),
    )  # fmt: skip
    return Space(knobs, (lambda c: fits(s, c), sane), first_configs(s, target, knobs))


def fits(s: Shape, c: Config) -> bool:
    """Accumulators, and the columns of a separable window, fit the registers; the text of a tile stays short."""
    isa, tile, blocks = str(c["isa"]), int(c["tile_w"]), int(c["tile_c"])
    if s.block == 1:
        return tile * vector(s, isa) <= max(s.cols.out, vector(s, isa)) and tile <= 4
    vectors = -(-s.block // max(LANES[isa], 4)) * blocks
    columns = (tile - 1) * s.cols.stride + s.cols.kernel
    if c["form"] == "separable":
        text = tile * s.cols.kernel + columns * (s.rows.kernel if int(c["unroll"]) > 1 else 1)
        return (tile + columns) * vectors <= REGISTERS[isa] and text * vectors <= 256
    return (tile + 1) * vectors <= REGISTERS[isa] and (tile * vectors == 1 or tile * vectors * int(c["unroll"]) <= 256)


def sane(c: Config) -> bool:
    """No two spellings of one schedule: a serial kernel has no grain."""
    return c["parallel"] == "jobs" or c["grain"] == 1


def vector(s: Shape, isa: str) -> int:
    """Lanes over the columns of a ROW output: a power of two not above its width."""
    width = max(LANES[isa], 4)
    while width > s.cols.out:
        width //= 2
    return width


def first_configs(s: Shape, target: Target, knobs: tuple[Knob, ...]) -> tuple[Config, ...]:
    """Whole images by channel block when that keeps all threads busy, else some rows; small poolings on one thread."""
    base: Config = {k.name: k.default for k in knobs}
    by_name = {k.name: k for k in knobs}
    jobs = s.n * s.cb
    if s.reads < 4 * SMALL or target.threads == 1:
        base["parallel"] = "serial"
    elif jobs < 2 * target.threads:
        wanted = s.rows.out * jobs / (2 * target.threads)
        base["rows"] = nearest([int(v) for v in by_name["rows"].values], wanted)
    if s.cols.out == 1 and s.block > 1 and jobs >= 8 * target.threads:
        base["tile_c"] = nearest([int(v) for v in by_name["tile_c"].values], 4)
    found: list[Config] = []
    widths = [int(v) for v in by_name["tile_w"].values]
    for limit in (6, 4, 2, 1):
        for form in dict.fromkeys((base["form"], "direct")):
            found.append({**base, "form": form, "tile_w": nearest(widths, limit)})
    return tuple(found)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(s: Shape, c: Config) -> list[Step]:
    """The schedule of a config.

    parallel (n, c_o, row_o): for row: for w_o: [columns of the window in registers]; acc in registers; store the tile.
    Loops over rows and columns run in segments, so that only the borders test for padding.
    """
    isa, tile, blocks = str(c["isa"]), int(c["tile_w"]), int(c["tile_c"])
    plan: list[Step] = [
        Split("out", "cb", blocks, "c_o", "c", "shift"),
        Split("out", "oh", int(c["rows"]), "row_o", "row", "shift"),
    ]
    inner: tuple[str, ...]
    if s.block > 1:
        plan += [Split("out", "ow", tile, "w_o", "w", "cut" if c["tail"] == "cut" else "shift")]
        inner, vectors = ("c", "w", "v"), [Unroll("out", "c"), Unroll("out", "w"), *lanes("out", "v", s.block, isa)]
    else:
        width = vector(s, isa)
        tile *= width
        plan += [Split("out", "ow", tile, "w_o", "w_i", "shift"), Split("out", "w_i", width, "w", "w_v")]
        inner, vectors = ("c", "v", "w", "w_v"), [Unroll("out", "w"), Vectorize("out", "w_v")]
    plan.append(Reorder("out", ("n", "c_o", "row_o", "row", "w_o", *inner)))
    if c["pad"] in ("inline", "clamp"):
        whole = int(c["rows"]) == s.rows.out
        plan += [Segment("out", "row", s.rows.borders(1))] if whole else []
        plan.append(Segment("out", "w_o", s.cols.borders(min(tile, s.cols.out))))
    job = "n"
    if c["parallel"] == "jobs":
        joined, job = fused("out", ("n", "c_o", "row_o"))
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    plan += [*vectors, *reduction(s, c, isa)]
    return plan + padding(s, c, job if c["parallel"] == "jobs" else "row_o", isa)


def reduction(s: Shape, c: Config, isa: str) -> list[Step]:
    """The window outside, the register tile inside; ``unroll`` positions at a time."""
    separable, window = c["form"] == "separable", min(int(c["unroll"]), s.cols.kernel)
    if separable:
        window = s.cols.kernel  # the columns are registers, which have no index at run time
    plan: list[Step] = [Split("acc", "kw", window, "k_o", "k"), ComputeAt("acc", "out", "w_o", "register")]
    outer = ("k_o", "k") if separable else ("kh", "k_o", "k")
    if not separable and int(c["unroll"]) >= s.rows.kernel * s.cols.kernel:
        plan.append(Unroll("acc", "kh"))
    plan.append(Unroll("acc", "k"))
    if s.block > 1:
        plan += [Reorder("acc", ("n", "oh", *outer, "cb", "ow", "v")), Unroll("acc", "cb"), Unroll("acc", "ow"),
                 *lanes("acc", "v", s.block, isa)]  # fmt: skip
    else:
        plan += [Split("acc", "ow", vector(s, isa), "w", "w_v"), Reorder("acc", ("n", "cb", "oh", *outer, "v", "w", "w_v")),
                 Unroll("acc", "w"), Vectorize("acc", "w_v"), StoreAs("acc", ("n", "cb", "oh", "v", "ow"))]  # fmt: skip
    return plan + (_down(s, c, isa) if separable else [])


def _down(s: Shape, c: Config, isa: str) -> list[Step]:
    """Columns of the window: in registers where channels are lanes, in a short row of scratch memory for ROW."""
    whole = [Unroll("down", "kh")] if int(c["unroll"]) > 1 else []
    if s.block == 1:
        return [ComputeAt("down", "out", "w_o", "thread"), Split("down", "w", vector(s, isa), "w_o", "w_v"),
                Reorder("down", ("n", "cb", "oh", "v", "w_o", "kh", "w_v")), Vectorize("down", "w_v"),
                *whole]  # fmt: skip
    return [ComputeAt("down", "out", "w_o", "register"), Reorder("down", ("n", "oh", "kh", "cb", "w", "v")), *whole,
            Unroll("down", "cb"), Unroll("down", "w"), *lanes("down", "v", s.block, isa)]  # fmt: skip


def padding(s: Shape, c: Config, at: str, isa: str) -> list[Step]:
    """Tested where it is read, or copied to scratch memory with the rows of a job."""
    if c["pad"] == "inline":
        return [Inline("xp")]
    if c["pad"] != "stage":
        return []
    vectors = lanes("xp", "v", s.block, isa) if s.block > 1 else [
        Reorder("xp", ("n", "cb", "h", "v", "w")), Split("xp", "w", max(LANES[isa], 4), "w_o", "w_v"), Vectorize("xp", "w_v")
    ]  # fmt: skip
    return [ComputeAt("xp", "out", at, "thread"), *vectors]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Pooling; see the module's docstring."""

    name: str = "pool"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 2-D max or average pooling, ROW or channel-blocked, the same layout in and out."""
        if workload.op != "pool":
            return f"op is {workload.op}, expected pool"
        x, y = workload.inputs[0], workload.outputs[0]
        if x.dtype != "float32" or len(x.shape) != 4 or 0 in (*x.shape, *y.shape):
            return f"input {x}, expected a non-empty float32 tensor of rank 4"
        if x.layout != y.layout or x.layout == "NHWC":
            return f"layouts {x.layout} → {y.layout}, expected ROW or one channel-blocked layout"
        return Operands(workload, 1, block_of(y.layout)).reason()

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        return space(shape_of(workload), target)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        s, c = shape_of(workload), config
        kind = "avgpool" if s.average else "maxpool"
        name = f"f32_{kind}{s.rows.kernel}x{s.cols.kernel}_{c['tile_w']}x{int(c['tile_c']) * s.block}__{c['isa']}"
        plain = algorithm(workload, s, str(c["pad"]), c["form"] == "separable")
        return Built(lower(schedule(plain, steps(s, c)), name), str(c["isa"]))

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Epilogue constants, blocked like the output."""
        return Operands(workload, 1, block_of(workload.outputs[0].layout)).pack(constants, 0)


__all__ = ["Pool", "Window", "shape_of"]
