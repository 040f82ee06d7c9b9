"""Stream-K: the tiles of a last, underfull wave are shared evenly by all blocks, by steps of k.

A GPU holds ``slots`` blocks at once: its multiprocessors times the blocks that fit one. Where they do not divide the tiles of a
product, its last wave leaves some idle. Here whole waves are done as ever, a block a tile; then the steps of k of the tiles that
remain are laid end to end and cut into ``slots`` shares of one length, a block each. A share begins and ends where it happens to,
so it may have pieces of two tiles (no more, for it is shorter than a tile); pieces go to device memory, and a last kernel adds
those of a tile in the order of k, then does the epilogue. No atomics: the same bits each time.

This is the data-parallel + stream-K hybrid of Osama, Merrill, Cecka, Garland and Owens, "Stream-K: Work-Centric Parallel
Decomposition for Dense Matrix-Matrix Multiplication on the GPU", PPoPP 2023. It differs from theirs in that waves, shares and
sums are kernels after each other, not one that persists: so every piece goes through memory, where there one block of a tile
keeps its own and waits for the others', and each kernel waits for the slowest block of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from wpk.core.errors import InvalidConfig
from wpk.core.result import Config
from wpk.core.target import Gpu
from wpk.dsl.affine import substitute
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Binary, Const, Expr, Load, Select
from wpk.dsl.schedule import Bind, Step
from wpk.kernels.cuda.nests import added_parts
from wpk.kernels.cuda.product import Block, Ends, Where, busy_cycles
from wpk.kernels.gemm import Product


@dataclass(frozen=True)
class Stream:
    """What a config says of it: blocks at once, and the order of tiles (``group`` rows, or columns, of them at a time)."""

    slots: int
    by_rows: bool
    group: int


@dataclass(frozen=True)
class Shares:
    """``whole`` tiles are done a block each; of the ``rest``, of ``steps`` steps of k, a share has ``each`` steps."""

    whole: int
    rest: int
    steps: int
    each: int

    @property
    def blocks(self) -> int:
        """Shares."""
        return -(-self.rest * self.steps // self.each)

    @property
    def pieces(self) -> int:
        """Most tiles that a share has a piece of."""
        ends = (min((s + 1) * self.each, self.rest * self.steps) - 1 for s in range(self.blocks))
        return 1 + max(end // self.steps - s * self.each // self.steps for s, end in enumerate(ends))

    @property
    def parts(self) -> int:
        """Most shares that have a piece of a tile."""
        ends = ((t + 1) * self.steps - 1 for t in range(self.rest))
        return 1 + max(end // self.each - t * self.steps // self.each for t, end in enumerate(ends))


def stream_of(c: Config) -> Stream | None:
    """What a config says: ``stream`` multiprocessors, each with room for ``min_blocks``; None where it does not share tiles.

    Configs of a space without that knob do not.
    """
    sms = int(c["stream"]) if "stream" in c else 0
    return Stream(sms * int(c["min_blocks"]), c["order"] == "mn", int(c["group"])) if sms else None


def shares_of(p: Product, m: int, n: int, k: int, slots: int) -> Shares | None:
    """The shares of a product by tiles of ``m × n``, ``k`` a step; None where the last wave is as good as full."""
    tiles, steps = prod(p.batch) * -(-p.m // m) * -(-p.n // n), -(-p.k // k)
    rest = tiles % slots
    each = max(-(-rest * steps // slots), 2)
    return Shares(tiles - rest, rest, steps, each) if rest and 10 * each <= 9 * steps else None


def some_shares(p: Product, m: int, n: int, k: int, slots: int) -> Shares:
    """The same. Raises InvalidConfig where the last wave is as good as full."""
    found = shares_of(p, m, n, k, slots)
    if found is None:
        raise InvalidConfig(f"tiles of {m}x{n} fill the last wave of {slots} blocks: none to share")
    return found


def stream_cycles(gpu: Gpu, b: Block, s: Shares) -> float:
    """Rough cycles, as :func:`wpk.kernels.cuda.product.cycles`: whole waves, shares, the sum of their pieces."""
    waves = busy_cycles(gpu, b, -(-s.whole // gpu.sms), s.steps) + 3000 if s.whole else 0
    pieces = 8 * (s.blocks + s.rest) * b.m * b.n / (30 * gpu.sms) + 3000
    return waves + busy_cycles(gpu, b, -(-s.blocks // gpu.sms), s.each) + pieces


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A main loop: what its stages' names end in, its axes, the tile it is about, its first step of k; the most steps that it
    does, and how many here, where that differs."""

    suffix: str
    axes: tuple[Axis, ...]
    tile: Expr
    first: Expr
    most: int
    count: Expr | None = None


def waves(s: Shares) -> Loop:
    """A block a tile."""
    tile = Axis("tile", s.whole)
    return Loop("", (tile,), tile.var, Const(0), s.steps)


def shared(s: Shares) -> Loop:
    """A block a share, its pieces one after another; a piece beyond the last tile has no steps."""
    share, piece = Axis("share", s.blocks), Axis("piece", s.pieces)
    begin = share.var * s.each
    tile = begin // s.steps + piece.var
    first = _max(begin - tile * s.steps, Const(0))
    end = _min(_min(begin + s.each, Const(s.rest * s.steps)) - tile * s.steps, Const(s.steps))
    return Loop("_s", (share, piece), _min(tile, Const(s.rest - 1)) + s.whole, first, s.each, end - first)


def streamed(
    p: Product, e: Ends, stream: Stream, s: Shares, rows: tuple[tuple[Axis, ...], Expr], columns: tuple[tuple[Axis, ...], Expr],
    k: int, dtype: str, factors: Callable[[Where], tuple[list[Stage], Expr]],
) -> Algorithm:  # fmt: skip
    """``whole`` tiles, then ``part``, the pieces of the others, and their sums in ``out``.

    ``rows`` and ``columns``: axes of a product's rows from blocks inwards, and the index they make. ``factors`` gives the
    operands' stages and the product of their elements.
    """
    (mb, *m_axes), (nb, *n_axes) = rows[0], columns[0]
    inner = (*m_axes, *n_axes)
    at = tuple(x.var for x in inner)
    ki, kb = Axis("ki", k), Axis("kb", s.steps)

    def place(tile: Expr) -> tuple[Expr, ...]:
        *batch, m, n = corner(tile, p, mb.extent, nb.extent, stream)
        return (*batch, substitute(rows[1], {mb.name: m}), substitute(columns[1], {nb.name: n}))

    def summed(loop: Loop) -> list[Stage]:
        *batch, m, n = place(loop.tile)
        ko = Axis("ko", loop.most)
        where = Where(
            loop.suffix, loop.axes, tuple(m_axes), tuple(n_axes), tuple(batch), m, n, (kb, ki), loop.first, (ko.var, ki.var)
        )  # fmt: skip
        stages, product = factors(where)
        reduce = Reduce("+", (ko, ki), count=loop.count)
        return [*stages, Stage(f"acc{loop.suffix}", (*loop.axes, *inner), product, reduce, dtype=dtype)]

    stages = list(e.before)
    if s.whole:
        loop = waves(s)
        out = e.out(Load("acc", (loop.axes[0].var, *at)), place(loop.tile), (*loop.axes, *inner))
        stages += [*summed(loop), replace(out, name="whole", output=out.target)]
    loop = shared(s)
    assert loop.count is not None
    piece = Load("acc_s", (*(x.var for x in loop.axes), *at))
    stages += [*summed(loop), Stage("part", (*loop.axes, *inner), piece, None, None, Const(0) < loop.count, dtype)]
    tile, part = Axis("tile", s.rest), Axis("ks", s.parts)
    share = tile.var * s.steps // s.each + part.var
    known = Load("part", (share, tile.var - share * s.each // s.steps, *at))
    total = Select(share * s.each < (tile.var + 1) * s.steps, known, Const(0, dtype))
    stages.append(Stage("total", (tile, *inner), total, Reduce("+", (part,)), dtype=dtype))
    stages.append(e.out(Load("total", (tile.var, *at)), place(tile.var + s.whole), (tile, *inner)))
    return Algorithm(e.name, e.params, tuple(stages))


def corner(tile: Expr, p: Product, rows: int, columns: int, stream: Stream) -> tuple[Expr, ...]:
    """Indices of the batch, then of a tile's row and column of tiles."""
    batch: list[Expr] = []
    index = tile // (rows * columns)
    for n in reversed(p.batch):
        batch.insert(0, index % n)
        index = index // n
    fast = columns if stream.by_rows else rows
    tile = tile % (rows * columns) if p.batch else tile
    within = tile % (fast * stream.group)
    slow = tile // (fast * stream.group) * stream.group + within % stream.group
    pair = (slow, within // stream.group) if stream.by_rows else (within // stream.group, slow)
    return (*batch, *pair)


def _min(a: Expr, b: Expr) -> Expr:
    return Binary("min", a, b)


def _max(a: Expr, b: Expr) -> Expr:
    return Binary("max", a, b)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def streamed_steps(
    s: Shares, min_blocks: int, of_threads: Callable[..., list[Step]], accumulate: Callable[..., list[Step]],
    place: tuple[str, ...],
) -> list[Step]:  # fmt: skip
    """Whole tiles, shares of the others, their sums.

    ``of_threads(stage, loops of blocks, loops of a thread)`` binds threads, ``accumulate(suffix, (stage, loop), outer loops)``
    schedules a main loop where it is computed, ``place`` are the axes of a tile in the order of memory.
    """
    plan = [*of_threads("part", ("share",), ("piece",)), Bind("part", "share", "block.x", min_blocks)]
    plan += accumulate("_s", ("part", "piece"), ("share", "piece"))
    if s.whole:
        plan += [*of_threads("whole", ("tile",)), Bind("whole", "tile", "block.x", min_blocks)]
        plan += accumulate("", ("whole", "thread"), ("tile",))
    return plan + added_parts(place, s.parts)


__all__ = [
    "Loop", "Shares", "Stream", "corner", "shared", "shares_of", "some_shares", "stream_cycles", "stream_of", "streamed",
    "streamed_steps", "waves",
]  # fmt: skip
