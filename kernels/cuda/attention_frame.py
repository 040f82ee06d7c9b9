"""Attention for GPUs: a block has the scores of some queries of one head in shared memory, from the product to the weights.

    scores = f(q·kᵀ) → largest of each row, sum of the powers → Σ exp(score - largest)·v / sum

so that a softmax costs no memory traffic, as in Dao et al., "FlashAttention", NeurIPS 2022. Keys and values pass in steps, copied
ahead. Either all scores of a row are kept, or those of a step: then the largest score is that so far, and where it grows, sums so
far are scaled down (Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018); so rows may have any length.
Queries, keys and values are read, and the result is written, as rows of all heads or head by head. This file has the algorithm
but for the two products, :mod:`wpk.kernels.cuda.attention_steps` the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.pointwise import parse
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Carry, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Select, Unary
from wpk.kernels.cuda.eltwise import stored
from wpk.kernels.cuda.nests import gpu_of
from wpk.kernels.cuda.operands import STORED
from wpk.kernels.epilogue import ZERO, padded, to_expr
from wpk.ops.attention import OWN, Heads, heads_of

LEAST = Const(float("-inf"), "float32")
#: the largest score before the first: finite, so that scores of -infinity are no differences of infinities
LOWEST = -3.4028234663852886e38
#: the largest head
LARGEST = 128


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

    ``step``: keys of a step of the second product, with ``stream`` of both; ``early``: values are copied with the queries, all of
    them; ``shares``: threads for a row of the softmax; elements of queries and keys are padded to multiples of ``deep``; weights
    are stored as ``weights``.
    """

    m: Dealt
    n: Dealt
    e: Dealt
    threads: tuple[str, ...]
    step: int
    shares: int
    deep: int
    weights: str = "float32"
    stream: bool = False
    early: bool = False

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

    @property
    def last(self) -> Expr:
        """The step behind the last one."""
        return Const(self.steps[0].extent)

    @property
    def turns(self) -> Axis:
        """Steps of the second product, as what its sum runs over."""
        return Axis("ko", self.steps[0].extent)

    @property
    def decay(self) -> Expr | None:
        """What a step of the second product makes of the sums so far."""
        place = (*self.at, self.tile.m.index(), self.turns.var)
        return Load("decay", place) if self.tile.stream else None

    def query(self, row: Expr) -> Expr:
        """The query that a row of the tile is."""
        return self.at[2] * self.tile.m.extent + row

    def load(self, name: str, index: int, at: tuple[Expr, Expr, Expr, Expr]) -> Expr:
        """An element (batch, head, place, element) of q, k or v."""
        b, h, place, element = at
        if self.workload.attr("packed"):
            return Load(name, (b, place, Const(index), h, element))
        rows = len(self.workload.inputs[index].shape) == 3
        return Load(name, (b, place, h, element) if rows else (b, h, place, element))


def buffers(workload: Workload, a: Heads) -> list[Buffer]:
    """The parameters: operands by head, however they lie; operands of the scores; the result."""
    counts = ((a.heads, a.queries, a.size), (a.groups, a.keys, a.size), (a.groups, a.keys, a.values))
    found = []
    for name, (heads, length, size), t in zip("qkv", counts, workload.inputs[:OWN], strict=True):
        shape: tuple[int, ...] = (a.batch, length, heads, size) if len(t.shape) == 3 else (a.batch, heads, length, size)
        if workload.attr("packed"):
            shape = (a.batch, length, 3, heads, size)
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
    """s[m,n] = f(sa[m,n]); the softmax of its rows; out[m,e] = oa[m,e]·scale[m]."""
    t, a, at = f.tile, f.heads, f.at
    products, tile = sums(f), (*f.place, *t.m.made(), *f.columns)
    sa = Load("sa", tuple(x.var for x in tile))
    m, e, inner = t.m.index(), t.e.index(), (*t.m.made(), *t.e.made())
    total = Load("total", (*at, m, *((f.last,) if t.stream else ())))
    value: Expr = Load("oa", (*at, *(x.var for x in inner))) * Load("scale", (*at, *(x.var for x in t.m.made())))
    if f.workload.attr("safe"):  # the sum of no powers is 0, or not a number
        value = Select(Binary("<", ZERO, total), value, ZERO)
    b, h, _ = at
    result = f.workload.outputs[0].dtype
    place = (b, f.query(m), h, e) if f.workload.attr("rows") else (b, h, f.query(m), e)
    inside = (f.query(m) < a.queries) & (e < a.values)
    stages = (
        *staged(f), *products.first,
        Stage("s", tile, score(f, sa, t.m.index(), f.column)), *(streamed(f) if t.stream else whole(f)), *products.second,
        Stage("scale", (*f.place, *t.m.made()), Unary("recip", total)),
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


def whole(f: Frame) -> list[Stage]:
    """largest[m], total[m] = Σ_n exp(s - largest), p[m,n] = exp(s - largest)."""
    t, row, (kb, ki) = f.tile, f.row, f.steps
    largest = Load("largest", (*f.at, row.var))
    weight = Unary("exp", f.scores(row.var, kb.var * t.step + ki.var) - largest)
    return [
        *shared(f, "largest", "max", f.keys, (), lambda n: f.scores(row.var, n)),
        Stage("largest", (*f.place, row), Load("largest_all", (*f.at, row.var))),
        *shared(f, "total", "+", f.keys, (), lambda n: Unary("exp", f.scores(row.var, n) - largest)),
        Stage("total", (*f.place, row), Load("total_all", (*f.at, row.var))),
        Stage("p", (*f.place, row, kb, ki), weight, dtype=t.weights),
    ]


def streamed(f: Frame) -> list[Stage]:
    """The same step by step: largest[m,k] so far, decay[m,k] of what was summed before, ``before`` and ``total`` handed on."""
    t, row, (kb, ki) = f.tile, f.row, f.steps
    after, place, at = Axis("kt", kb.extent + 1), (*f.place, row, kb), (*f.at, row.var, kb.var)
    weight = Unary("exp", f.scores(row.var, kb.var * t.step + ki.var) - Load("largest", at))
    handed = (*f.at, row.var, after.var)
    return [
        *shared(f, "largest", "max", t.step, (kb,), lambda n: f.scores(row.var, kb.var * t.step + n)),
        Stage("before", (*f.place, row, after), Load("largest", handed), carry=Carry("kt", LOWEST)),
        Stage("largest", place, Binary("max", Load("before", at), Load("largest_all", at))),
        Stage("decay", place, Unary("exp", Load("before", at) - Load("largest", at))),
        Stage("p", (*f.place, row, kb, ki), weight, dtype=t.weights),
        *shared(f, "total", "+", t.step, (kb,), lambda n: Load("p", (*at, n))),
        Stage("total", (*f.place, row, after), Load("sum", handed), carry=Carry("kt", 0.0)),
        Stage("sum", place, Load("total", at) * Load("decay", at) + Load("total_all", at)),
    ]


def shared(
    f: Frame, name: str, op: str, count: int, step: tuple[Axis, ...], value: Callable[[Expr], Expr]
) -> list[Stage]:
    """``name_all``[row, *step] = op over n < count of value(n), in shares of several threads, added in order."""
    row, share, turn = f.row, Axis("t", f.tile.shares), Axis("j", count // f.tile.shares)
    place = (*f.place, row, *step)
    part = tuple(x.var for x in (*place, share))
    init = float("-inf") if op == "max" else 0.0
    read = value(turn.var * share.extent + share.var)
    return [
        Stage(f"{name}_share", (*place, share), read, Reduce(op, (turn,), init)),
        Stage(f"{name}_part", (*place, share), Load(f"{name}_share", part)),
        Stage(f"{name}_all", place, Load(f"{name}_part", part), Reduce(op, (share,), init)),
    ]


# --- WHAT FAMILIES SHARE ------------------------------------------------------------------------------------------------


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


def packed(workload: Workload, constants: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Constants in the shapes of the parameters."""
    params = buffers(workload, heads_of(workload.inputs, dict(workload.attrs)))
    found = (
        np.ascontiguousarray(c).reshape(params[i].shape) for i, c in zip(workload.constants, constants, strict=True)
    )
    return [c.view(np.uint8) if c.dtype == np.bool_ else c for c in found]
