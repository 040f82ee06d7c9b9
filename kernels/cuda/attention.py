"""Attention for GPUs: a block has the scores of some queries of one head in shared memory, from the product to the weights.

    scores = f(q·kᵀ) → largest of each row, sum of the powers → Σ exp(score - largest)·v / sum

so that a softmax costs no memory traffic, as in Dao et al., "FlashAttention", NeurIPS 2022; rows are short enough here to be kept
whole, which makes the running maximum of Milakov & Gimelshein (2018) needless. Keys and values pass in steps, copied ahead.
Queries, keys and values are read, and the result is written, as rows of all heads or head by head. This file has what all
attentions share, and products in float32 (the thread tile of :mod:`wpk.kernels.cuda.gemm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Select, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Fuse,
    Pipeline,
    Reorder,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.cuda.eltwise import stored
from wpk.kernels.cuda.nests import MOST_REGISTERS, WARP, copied, fuse_all, gpu_of, width_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.cuda.product import resident_blocks
from wpk.kernels.epilogue import ZERO, padded, to_expr
from wpk.kernels.family import Built
from wpk.ops.attention import OWN, Heads, heads_of
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Constraint, Space

LEAST = Const(float("-inf"), "float32")
#: most threads that share a row of the softmax
TOGETHER = 16
#: elements, or keys, that a thread has in registers at a time; the largest head
UNROLLED, LARGEST = 4, 128
#: what a block is: batch, head, tile of queries
PLACE = ("b", "h", "mb")


@dataclass(frozen=True)
class Dealt:
    """How rows or columns of a tile are dealt: axes (name, extent) from slow to fast, and which of them are threads."""

    axes: tuple[tuple[str, int], ...]
    threads: tuple[str, ...]

    @property
    def extent(self) -> int:
        """Rows or columns."""
        return prod(n for _, n in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """All axes."""
        return tuple(name for name, _ in self.axes)

    @property
    def held(self) -> tuple[str, ...]:
        """The axes of what a thread has."""
        return tuple(name for name in self.names if name not in self.threads)

    def made(self) -> tuple[Axis, ...]:
        """The axes."""
        return tuple(Axis(name, n) for name, n in self.axes)

    def index(self) -> Expr:
        """The row or column, in terms of the axes."""
        whole: Expr = Const(0)
        for axis in self.made():
            whole = whole * axis.extent + axis.var if whole != Const(0) else axis.var
        return whole

    def parts(self, index: Expr) -> tuple[Expr, ...]:
        """The axes in terms of a row or column."""
        found, below = list[Expr](), self.extent
        for _, n in self.axes:
            above, below = below, below // n
            found.append(index % above // below)
        return tuple(found)


@dataclass(frozen=True)
class Tile:
    """Queries, keys of a step of the first product, and values as they are dealt; ``threads`` in the order of a block's.

    ``step``: keys of a step of the second product; ``shares``: threads for a row of the softmax; elements of queries and keys
    are padded to multiples of ``deep``; weights are stored as ``weights``.
    """

    m: Dealt
    n: Dealt
    e: Dealt
    threads: tuple[str, ...]
    step: int
    shares: int
    deep: int
    weights: str = "float32"

    @property
    def count(self) -> int:
        """Threads of a block."""
        extents = dict((*self.m.axes, *self.n.axes))
        return prod(extents[x] for x in self.threads)

    def of_values(self) -> tuple[str, ...]:
        """Thread loops of the second product: those of the first, values for keys."""
        return tuple(f"e{x[1:]}" if x in self.n.threads else x for x in self.threads)


@dataclass(frozen=True)
class Sums:
    """The two products as stages: ``first`` makes the accumulators ``sa``, ``second`` makes ``oa``, from shared memory."""

    first: tuple[Stage, ...]
    second: tuple[Stage, ...]


def rounded(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The axes of an attention and what they stand for."""

    workload: Workload
    heads: Heads
    tile: Tile

    @property
    def place(self) -> tuple[Axis, ...]:
        """Batch, head, tile of queries."""
        a = self.heads
        return Axis("b", a.batch), Axis("h", a.heads), Axis("mb", -(-a.queries // self.tile.m.extent))

    @property
    def at(self) -> tuple[Expr, ...]:
        """Their variables."""
        return tuple(x.var for x in self.place)

    @property
    def group(self) -> tuple[Axis, ...]:
        """Batch and group of keys and values."""
        return Axis("b", self.heads.batch), Axis("g", self.heads.groups)

    @property
    def group_at(self) -> tuple[Expr, Expr]:
        """Where a head's keys and values are."""
        b, h, _ = self.at
        shared = self.heads.heads // self.heads.groups
        return b, h // shared if shared > 1 else h

    @property
    def keys(self) -> int:
        """Keys, padded to whole steps of both products and turns of the softmax."""
        return rounded(self.heads.keys, max(self.tile.n.extent, self.tile.step, self.tile.shares))

    @property
    def size(self) -> int:
        """Elements of a query, padded."""
        return rounded(self.heads.size, self.tile.deep)

    @property
    def row(self) -> Axis:
        """A query of the tile."""
        return Axis("r", self.tile.m.extent)

    @property
    def key(self) -> Axis:
        """A key."""
        return Axis("n", self.keys)

    @property
    def columns(self) -> tuple[Axis, ...]:
        """A key: step of the first product, and the axes of a step."""
        return Axis("nb", self.keys // self.tile.n.extent), *self.tile.n.made()

    @property
    def column(self) -> Expr:
        """The key, in terms of these."""
        return self.columns[0].var * self.tile.n.extent + self.tile.n.index()

    def scores(self, row: Expr, key: Expr) -> Expr:
        """A score: ``s`` has the axes of the first product."""
        n = self.tile.n
        return Load("s", (*self.at, *self.tile.m.parts(row), key // n.extent, *n.parts(key)))

    @property
    def element(self) -> Axis:
        """An element of a query."""
        return Axis("d", self.size)

    @property
    def steps(self) -> tuple[Axis, Axis]:
        """Step of the second product, key of a step."""
        return Axis("kb", self.keys // self.tile.step), Axis("ki", self.tile.step)

    def query(self, row: Expr) -> Expr:
        """The query that a row of the tile is."""
        return self.at[2] * self.tile.m.extent + row

    def load(self, name: str, index: int, at: tuple[Expr, Expr, Expr, Expr]) -> Expr:
        """An element (batch, head, place, element) of q, k or v."""
        b, h, place, element = at
        rows = len(self.workload.inputs[index].shape) == 3
        return Load(name, (b, place, h, element) if rows else (b, h, place, element))


def buffers(workload: Workload, a: Heads) -> list[Buffer]:
    """The parameters: operands by head, however they lie; operands of the scores; the result."""
    counts = ((a.heads, a.queries, a.size), (a.groups, a.keys, a.size), (a.groups, a.keys, a.values))
    found = []
    for name, (heads, length, size), t in zip("qkv", counts, workload.inputs[:OWN], strict=True):
        shape = (a.batch, length, heads, size) if len(t.shape) == 3 else (a.batch, heads, length, size)
        found.append(Buffer(name, shape, t.dtype))
    for i, t in enumerate(workload.inputs[OWN:], OWN):
        found.append(Buffer(f"x{i}", padded(t.shape, 4), stored(t.dtype)))
    order = (a.batch, a.queries, a.heads, a.values) if workload.attr("rows") else (a.batch, a.heads, a.queries, a.values)
    return [*found, Buffer("out", order, workload.outputs[0].dtype, access="out")]


def score(f: Frame, acc: Expr, row: Expr, key: Expr) -> Expr:
    """f(q·kᵀ) for a row of the tile and a key, -infinity outside."""
    a, m = f.heads, f.query(row)

    def operand(i: int) -> Expr:
        t = f.workload.inputs[i]
        at = (*f.at[:2], m, key)
        index = tuple(Const(0) if n == 1 else x for n, x in zip(padded(t.shape, 4), at, strict=True))
        value = Load(f"x{i}", index)
        return value if t.dtype in STORED else Cast("float32", value)

    value = to_expr(parse(str(f.workload.attr("scores"))), acc, operand)
    return Select((m < a.queries) & (key < a.keys), value, LEAST)


def algorithm(f: Frame, sums: Callable[[Frame], Sums]) -> Algorithm:
    """s[m,n] = f(sa[m,n]); largest[m], scale[m] = 1/Σ_n exp(s - largest); p = exp(s - largest); out[m,e] = oa[m,e]·scale[m]."""
    t, a, at, row = f.tile, f.heads, f.at, f.row
    products = sums(f)
    tile = (*f.place, *t.m.made(), *f.columns)
    sa = Load("sa", tuple(x.var for x in tile))
    kb, ki = f.steps
    weight = Unary("exp", f.scores(row.var, kb.var * t.step + ki.var) - Load("largest", (*at, row.var)))
    m, e, inner = t.m.index(), t.e.index(), (*t.m.made(), *t.e.made())
    scale = Load("scale", (*at, m))
    value: Expr = Load("oa", (*at, *(x.var for x in inner))) * scale
    if f.workload.attr("safe"):
        value = Select(Binary("==", scale, scale), value, ZERO)
    b, h, _ = at
    result = f.workload.outputs[0].dtype
    place = (b, f.query(m), h, e) if f.workload.attr("rows") else (b, h, f.query(m), e)
    inside = (f.query(m) < a.queries) & (e < a.values)
    stages = (
        *staged(f), *products.first,
        Stage("s", tile, score(f, sa, t.m.index(), f.column)),
        *shared(f, "largest", "max", lambda x: x, lambda x: x),
        *shared(f, "scale", "+", lambda x: Unary("exp", x - Load("largest", (*at, row.var))), lambda x: Unary("recip", x)),
        Stage("p", (*f.place, row, kb, ki), weight, dtype=t.weights), *products.second,
        Stage("out", (*f.place, *inner), value, None, place, inside, result),
    )  # fmt: skip
    return Algorithm("attention", tuple(buffers(f.workload, a)), stages)


def staged(f: Frame) -> tuple[Stage, Stage, Stage]:
    """``qs``, ``ks`` and ``vs``: the operands in shared memory, zero outside."""
    a, row, key, d = f.heads, f.row, f.key, f.element
    (b, h, _), (kb, ki), g = f.at, f.steps, f.group[1].var
    m, n = f.query(row.var), kb.var * ki.extent + ki.var
    e = Axis("e", f.tile.e.extent)
    types = tuple(t.dtype for t in f.workload.inputs[:OWN])
    q = Select((m < a.queries) & (d.var < a.size), f.load("q", 0, (b, h, m, d.var)), ZERO)
    k = Select((key.var < a.keys) & (d.var < a.size), f.load("k", 1, (b, g, key.var, d.var)), ZERO)
    v = Select((n < a.keys) & (e.var < a.values), f.load("v", 2, (b, g, n, e.var)), ZERO)
    return (
        Stage("qs", (*f.place, row, d), q, dtype=types[0]), Stage("ks", (*f.group, key, d), k, dtype=types[1]),
        Stage("vs", (*f.group, kb, ki, e), v, dtype=types[2]),
    )  # fmt: skip


def shared(f: Frame, name: str, op: str, more: Callable[[Expr], Expr], last: Callable[[Expr], Expr]) -> list[Stage]:
    """``name``[row] = last(op over n of more(s[row, n])), in shares of several threads, added in order."""
    row, share, turn = f.row, Axis("t", f.tile.shares), Axis("j", f.keys // f.tile.shares)
    at, part = (*f.at, row.var), (*f.at, row.var, share.var)
    init = float("-inf") if op == "max" else 0.0
    read = f.scores(row.var, turn.var * share.extent + share.var)
    return [
        Stage(f"{name}_share", (*f.place, row, share), more(read), Reduce(op, (turn,), init)),
        Stage(f"{name}_part", (*f.place, row, share), Load(f"{name}_share", part)),
        Stage(f"{name}_whole", (*f.place, row), Load(f"{name}_part", part), Reduce(op, (share,), init)),
        Stage(name, (*f.place, row), last(Load(f"{name}_whole", at))),
    ]


def simt_sums(f: Frame) -> Sums:
    """Products of what a thread has in registers."""
    t, at, group, d, (kb, ki) = f.tile, f.at, f.group_at, f.element, f.steps
    m, n, e = t.m.made(), f.columns, t.e.made()
    mi, ni, ei = (tuple(x.var for x in axes) for axes in (m, n, e))
    k, own = ko_axis(f), f.group
    at_group = tuple(x.var for x in own)
    first = (
        Stage("qr", (*f.place, *m, d), Load("qs", (*at, t.m.index(), d.var))),
        Stage("kr", (*own, *n, d), Load("ks", (*at_group, f.column, d.var))),
        Stage("sa", (*f.place, *m, *n), Load("qr", (*at, *mi, d.var)) * Load("kr", (*group, *ni, d.var)), Reduce("+", (d,))),
    )
    second = (
        Stage("pr", (*f.place, kb, *m, ki), Load("p", (*at, t.m.index(), kb.var, ki.var))),
        Stage("vr", (*own, kb, ki, *e), Load("vs", (*at_group, kb.var, ki.var, t.e.index()))),
        Stage(
            "oa", (*f.place, *m, *e),
            Load("pr", (*at, k.var, *mi, ki.var)) * Load("vr", (*group, k.var, ki.var, *ei)), Reduce("+", (k, ki)),
        ),
    )  # fmt: skip
    return Sums(first, second)


def ko_axis(f: Frame) -> Axis:
    """Steps of the second product, as what its sum runs over."""
    return Axis("ko", f.steps[0].extent)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def tile_of(a: Heads, c: Config) -> Tile:
    """The tile of a config: threads stand ``across`` side by side, with ``columns`` keys each, and under each other."""
    threads, across, rows = int(c["threads"]), int(c["across"]), int(c["rows"])
    side = threads // across
    vector = next(w for w in (4, 2, 1) if across * w <= max(a.values, across))
    m = Dealt((("mg", rows // side), ("mt", side)), ("mt",))
    n = Dealt((("ng", int(c["columns"])), ("nt", across)), ("nt",))
    e = Dealt((("eg", -(-a.values // (across * vector))), ("et", across), ("ev", vector)), ("et",))
    return Tile(m, n, e, ("mt", "nt"), int(c["step"]), min(threads // rows, TOGETHER), UNROLLED)


def space(workload: Workload, gpu: Gpu) -> Space:
    """Queries of a block, its threads and how many stand side by side, keys of a thread, keys of a step, stages under way."""
    a = heads_of(workload.inputs, dict(workload.attrs))
    knobs: tuple[Knob, ...] = (
        Ordered("rows", (8, 16, 32, 64, 128), 32), Ordered("threads", (32, 64, 128, 256), 128),
        Ordered("across", (4, 8, 16, 32), 16), Ordered("columns", (1, 2, 4, 8), 4), Ordered("step", (8, 16, 32, 64), 32),
        Ordered("stages", (1, 2, 3), 2), Ordered("min_blocks", (1, 2, 3, 4), 1),
    )  # fmt: skip
    limits = limits_of(workload, a, gpu)
    return Space(knobs, limits, first_configs(workload, a, gpu, knobs, limits))


def limits_of(workload: Workload, a: Heads, gpu: Gpu) -> tuple[Constraint, ...]:
    """What makes a config buildable, and not plainly wasteful."""
    return (
        lambda c: int(c["threads"]) // int(c["across"]) <= int(c["rows"]) <= int(c["threads"]),
        lambda c: int(c["rows"]) < max(2 * a.queries, 9),
        lambda c: int(c["across"]) * int(c["columns"]) < max(2 * a.keys, 33),
        lambda c: int(c["step"]) < max(2 * a.keys, 9),
        lambda c: registers(a, c) <= MOST_REGISTERS,
        lambda c: int(c["min_blocks"]) * int(c["threads"]) * registers(a, c) <= gpu.registers_per_sm,
        lambda c: int(c["min_blocks"]) * shared_bytes(workload, a, c) <= min(gpu.shared_per_block, gpu.shared_per_sm),
    )


def registers(a: Heads, c: Config) -> int:
    """Registers of a thread: accumulators of either product, operands of a step, addresses."""
    t = tile_of(a, c)
    rows, keys, values = (prod(n for x, n in d.axes if x in d.held) for d in (t.m, t.n, t.e))
    return max(rows * keys + UNROLLED * (rows + keys), rows * values + UNROLLED * rows + 2 * values) + 40


def shared_bytes(workload: Workload, a: Heads, c: Config) -> int:
    """Shared memory of a block."""
    return shared_of(Frame(workload, a, tile_of(a, c)), int(c["stages"]))


def shared_of(f: Frame, stages: int) -> int:
    """Queries and scores, and the larger of what the two products take beside them."""
    t, rows = f.tile, f.tile.m.extent
    q, k, v = (DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN])
    lasting = rows * ((f.size + 16 // q) * q + 4 * (f.keys + 16) + 8 * t.shares + 8)
    first = stages * t.n.extent * (f.size * k + 16)
    second = stages * (t.step * (t.e.extent * v + 16) + rows * (t.step * DTYPE_BYTES[t.weights] + 16))
    return lasting + max(first, second) + 1024


def first_configs(
    workload: Workload, a: Heads, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Guesses: for each number of queries the tile that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    found: list[Config] = []
    for rows in (8, 16, 32, 64):
        tiles = [
            {**base, "rows": rows, "threads": threads, "across": across, "columns": columns, "step": step, "stages": stages}
            for threads in (64, 128, 256) for across in (8, 16) for columns in (1, 2, 4, 8)
            for step in (16, 32) for stages in (1, 2)
        ]  # fmt: skip
        fit = [c for c in tiles if all(limit(c) for limit in limits)]
        found += sorted(fit, key=lambda c: cost(workload, a, gpu, c))[:1]
    return tuple(sorted(found, key=lambda c: cost(workload, a, gpu, c)))


def cost(workload: Workload, a: Heads, gpu: Gpu, c: Config) -> float:
    """Rough cycles: rounds of blocks, each the arithmetic of its products and the waiting of its steps."""
    f = Frame(workload, a, tile_of(a, c))
    t = f.tile
    rows, keys, values = (prod(n for x, n in d.axes if x in d.held) for d in (t.m, t.n, t.e))
    resident = resident_blocks(gpu, t.count, registers(a, c), shared_bytes(workload, a, c))
    first = f.size * (0.3 + max(1, 3 * (rows + keys) / (rows * keys))) / 128
    second = t.e.extent * (0.3 + max(1, 3 * (rows + values / 4) / (rows * values))) / 128
    work = t.m.extent * f.keys * (first + second + 0.5)
    waits = (f.keys / t.n.extent + f.keys / t.step) * (900 if c["stages"] == 1 else 300)
    return rounds(f, gpu, resident, t.count, work, waits)


def rounds(f: Frame, gpu: Gpu, resident: int, threads: int, work: float, waits: float) -> float:
    """Cycles of all blocks: ``work`` is a whole multiprocessor's, which few warps do not fill; ``waits`` overlap."""
    mine = -(-prod(x.extent for x in f.place) // gpu.sms)
    together = min(mine, resident)
    busy = max(together * work * (1 + 4 * WARP / (together * threads)), work + waits)
    return -(-mine // together) * (4000 + busy)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(f: Frame, c: Config, pads: tuple[int, int, int, int]) -> list[Step]:
    """What all attentions share; ``pads`` of queries, keys, weights and values in shared memory.

    block: queries; for nb: [keys]; thread: products, scores; largest; scale; thread: for ko: [values, weights]; products.
    """
    t, held = f.tile, (*f.tile.m.held, *f.tile.e.held)
    fuse, block = fuse_all("out", PLACE, "block")
    threads, thread = fuse_all("out", t.of_values(), "thread")
    plan: list[Step] = [
        Reorder("out", (*PLACE, *t.of_values(), *held)), *fuse, *threads,
        Bind("out", block, "block.x", int(c["min_blocks"])), Bind("out", thread, "thread"),
        *(Unroll("out", x) for x in held[:-1]), Vectorize("out", held[-1]),
        *scores_steps(f, block), *softmax_steps(f, "largest", block), *softmax_steps(f, "scale", block),
        ComputeAt("oa", "out", thread, "register"),
        *copy_steps(f, block, pads),
    ]  # fmt: skip
    depth = int(c["stages"])
    if depth > 1:
        plan += [Pipeline("s", "nb", depth)] if f.keys > t.n.extent else []
        plan += [Pipeline("oa", "ko", depth)] if f.keys > t.step else []
    return plan


def scores_steps(f: Frame, block: str) -> list[Step]:
    """Step by step of the keys, all threads make the scores of all rows."""
    t, held = f.tile, (*f.tile.m.held, *f.tile.n.held)
    threads, thread = fuse_all("s", t.threads, "thread")
    vector = t.n.names[-1] in t.n.held and dict(t.n.axes)[t.n.names[-1]] > 1
    last: Step = Vectorize("s", held[-1]) if vector else Unroll("s", held[-1])
    return [
        ComputeAt("s", "out", block, "block"),
        StoreAs("s", pad=("nb", max(t.shares, 4)), join=(t.m.names, ("nb", *t.n.names))),
        Reorder("s", (*PLACE, "nb", *t.threads, *held)), *threads, Bind("s", thread, "thread"),
        *(Unroll("s", x) for x in held[:-1]), last,
        ComputeAt("sa", "s", thread, "register"),
    ]  # fmt: skip


def softmax_steps(f: Frame, name: str, block: str) -> list[Step]:
    """The stages of :func:`shared`."""
    share, part, whole = (f"{name}_{x}" for x in ("share", "part", "whole"))
    return [
        ComputeAt(part, "out", block, "block"), Fuse(part, "r", "t", "thread"), Bind(part, "thread", "thread"),
        ComputeAt(share, part, "thread", "register"), Split(share, "j", 8, "j_o", "j_u"),
        Reorder(share, (*PLACE, "r", "t", "j_o", "j_u")), Unroll(share, "j_u"),
        ComputeAt(name, "out", block, "block"), Bind(name, "r", "thread"),
        ComputeAt(whole, name, "r", "register"), Unroll(whole, "t"),
    ]  # fmt: skip


def copy_steps(f: Frame, block: str, pads: tuple[int, int, int, int]) -> list[Step]:
    """Operands in shared memory, and the weights of a step of keys."""
    t, a = f.tile, f.heads
    sizes = [DTYPE_BYTES[x.dtype] for x in f.workload.inputs[:OWN]]
    q, k = (width_of(a.size, f.size, bytes_each=n) for n in sizes[:2])
    v, weights = width_of(a.values, t.e.extent, bytes_each=sizes[2]), width_of(t.step, bytes_each=4)
    return [
        ComputeAt("qs", "out", block, "block"), *copied("qs", PLACE, ("r",), "d", q, t.count),
        ComputeAt("ks", "s", "nb", "block"), *copied("ks", ("b", "g"), ("n",), "d", k, t.count),
        ComputeAt("p", "oa", "ko", "block"), *copied("p", (*PLACE, "kb"), ("r",), "ki", weights, t.count),
        ComputeAt("vs", "oa", "ko", "block"), *copied("vs", ("b", "g", "kb"), ("ki",), "e", v, t.count),
        StoreAs("qs", pad=("d", pads[0])), StoreAs("ks", pad=("d", pads[1])),
        StoreAs("p", (*PLACE, "kb", "r", "ki"), pad=("ki", pads[2])), StoreAs("vs", pad=("e", pads[3])),
    ]  # fmt: skip


def simt_steps(f: Frame) -> list[Step]:
    """A thread's products: what it needs of ``UNROLLED`` elements, or keys, in registers."""
    t = f.tile
    m, n, e = t.m, t.n, t.e
    first, second = (*m.held, *n.held), (*m.held, *e.held)
    return [
        Split("sa", "d", UNROLLED, "d_o", "d_u"), Reorder("sa", (*PLACE, "nb", *t.threads, "d_o", "d_u", *first)),
        *(Unroll("sa", x) for x in ("d_u", *first)),
        ComputeAt("qr", "sa", "d_o", "register"), *register_steps("qr", (*PLACE, *m.threads), (*m.held, "d")),
        ComputeAt("kr", "sa", "d_o", "register"), *register_steps("kr", ("b", "g", "nb", *n.threads), (*n.held, "d")),
        Split("oa", "ki", UNROLLED, "k_o", "k_u"), Reorder("oa", (*PLACE, *t.of_values(), "ko", "k_o", "k_u", *second)),
        *(Unroll("oa", x) for x in ("k_u", *second)),
        ComputeAt("pr", "oa", "k_o", "register"), *register_steps("pr", (*PLACE, "kb", *m.threads), (*m.held, "ki")),
        ComputeAt("vr", "oa", "k_u", "register"), *register_steps("vr", ("b", "g", "kb", "ki", *e.threads), e.held),
    ]  # fmt: skip


def register_steps(stage: str, outer: tuple[str, ...], held: tuple[str, ...]) -> list[Step]:
    """What a thread loads, in vectors of the last axis."""
    return [Reorder(stage, (*outer, *held)), *(Unroll(stage, x) for x in held[:-1]), Vectorize(stage, held[-1])]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


def unfit(workload: Workload, target: Target) -> str | None:
    """Why no attention of this file's kind can be built."""
    if workload.op != "attention" or gpu_of(target) is None:
        return f"op is {workload.op} for {target.arch}, expected attention for cuda"
    own = (*workload.inputs[:OWN], *workload.outputs)
    if any(t.dtype not in STORED for t in own) or any(t.layout != "ROW" for t in (*own, *workload.inputs)):
        return f"{', '.join(map(str, own))}: expected floats in layout ROW"
    if any(t.dtype not in (*STORED, "bool", "int8", "uint8", "int32", "int64") for t in workload.inputs):
        return "an operand of the scores that is neither a float nor an integer"
    a = heads_of(workload.inputs, dict(workload.attrs))
    if max(a.size, a.values) > LARGEST:
        return f"heads of {max(a.size, a.values)} elements, expected {LARGEST} at most"
    return "empty" if 0 in a.scores else None


@dataclass(frozen=True)
class CudaAttention:
    """Attention without tensor cores; see the module's docstring."""

    name: str = "cuda_attention"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Floats in ROW, heads of at most 128 elements, rows of scores that shared memory has room for."""
        if reason := unfit(workload, target):
            return reason
        assert target.gpu is not None
        a = heads_of(workload.inputs, dict(workload.attrs))
        least: Config = {"rows": 8, "threads": 64, "across": 8, "columns": 1, "step": 8, "stages": 1}
        fits = shared_bytes(workload, a, least) <= target.gpu.shared_per_block
        return None if fits else f"{a.keys} scores of a query are too many for shared memory"

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        a = heads_of(workload.inputs, dict(workload.attrs))
        f = Frame(workload, a, tile_of(a, config))
        name = f"attention_{f.tile.m.extent}x{f.tile.n.extent}x{a.size}__{target.isa}"
        plan = [*steps(f, config, (4, 4, 4, 0)), *simt_steps(f)]
        return Built(lower(schedule(algorithm(f, simt_sums), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are."""
        return packed(workload, constants)


def packed(workload: Workload, constants: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Constants in the shapes of the parameters."""
    params = buffers(workload, heads_of(workload.inputs, dict(workload.attrs)))
    found = (
        np.ascontiguousarray(c).reshape(params[i].shape) for i, c in zip(workload.constants, constants, strict=True)
    )
    return [c.view(np.uint8) if c.dtype == np.bool_ else c for c in found]
