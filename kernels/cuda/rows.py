"""Rows on GPUs: ``rows`` of them in a block, ``threads`` for each, and sums (or maxima) over a row that all its threads know.

Thread t takes vectors t, t + threads, …, so that a warp reads whole lines. Its share is added in registers, the shares in
shared memory, in order: 16 at a time by some threads, then what is left by every thread for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpk.core.result import Config
from wpk.core.target import Gpu
from wpk.dsl.algorithm import Axis, Reduce, Stage
from wpk.dsl.ir import Const, Expr, Load, Select
from wpk.dsl.schedule import Bind, ComputeAt, Reorder, Split, Step, Unroll, Vectorize
from wpk.kernels.cuda.nests import WARP, divisors, fuse_all
from wpk.kernels.nests import nearest
from wpk.kernels.reduce import INIT
from wpk.search.knobs import Knob, Ordered
from wpk.search.space import Space

#: shares that one thread adds
TOGETHER = 16
#: turns of a thread that are unrolled, so that their loads are under way together
UNROLLED = 8

Element = Callable[[Expr, Expr], Expr]


@dataclass(frozen=True)
class RowTile:
    """``count`` rows of ``length`` elements, ``rows`` in a block, ``threads`` for a row, vectors of ``width``."""

    count: int
    length: int
    rows: int
    threads: int
    width: int

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Block, row of the block, thread of the row, turn, lane of a vector."""
        turns = -(-self.length // (self.threads * self.width))
        names = {"rb": self.count // self.rows, "ri": self.rows, "t": self.threads, "j": turns, "v": self.width}
        return tuple(Axis(name, n) for name, n in names.items())

    @property
    def turns(self) -> int:
        """Vectors of a thread."""
        return self.axes[3].extent

    @property
    def row(self) -> Expr:
        """The row, in terms of the axes."""
        return self.axes[0].var * self.rows + self.axes[1].var

    @property
    def element(self) -> Expr:
        """The place in the row, in terms of the axes."""
        _, _, t, j, v = (a.var for a in self.axes)
        return (j * self.threads + t) * self.width + v

    @property
    def inside(self) -> Expr | None:
        """The condition that the place is in the row; None when it always is."""
        return None if self.length % (self.threads * self.width) == 0 else self.element < self.length


def row_space(count: int, length: int, widest: int, gpu: Gpu, extra: tuple[Knob, ...] = ()) -> Space:
    """Elements of a load, threads of a row, rows of a block."""
    widths = tuple(w for w in (1, 2, 4, 8) if w <= widest)
    vectors = -(-length // widest)
    least = 1 if vectors < WARP else WARP
    threads = tuple(t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if least <= t < 2 * vectors) or (1,)
    rows = divisors(count, (1, 2, 4, 8, 16, 32, 64))
    wanted = vectors / (1 if count < 4 * gpu.sms else 4)
    thread = nearest(threads, min(max(wanted, WARP), 512))
    few = max(count // (2 * gpu.sms), 1)
    row = nearest(rows, max(min(128 // thread, few), 1))
    knobs: tuple[Knob, ...] = (
        Ordered("width", widths, widths[-1]), Ordered("threads", threads, thread), Ordered("rows", rows, row), *extra,
    )  # fmt: skip
    return Space(knobs, (lambda c: int(c["threads"]) * int(c["rows"]) <= 1024,))


def tile_of(count: int, length: int, c: Config) -> RowTile:
    """The tile of a config of :func:`row_space`."""
    return RowTile(count, length, int(c["rows"]), int(c["threads"]), int(c["width"]))


def shares(name: str, tile: RowTile, op: str, value: Element, more: Callable[[Expr], Expr] = lambda x: x) -> list[Stage]:
    """Stages up to what every thread has to add up: ``name_x`` loads, ``name_share`` a thread's, ``name_some`` 16 of them.

    ``name_part`` and ``name_mid`` are these two where the other threads see them.

    A share is the op over a thread's elements x of more(x), where x = value(row, element) (the initial value outside the row).
    """
    rb, ri, t, j, v = tile.axes
    init = Const(INIT[op], "float32")
    loaded = Load(f"{name}_x", tuple(a.var for a in tile.axes))
    term = more(loaded)
    if tile.inside is not None:
        term = Select(tile.inside, term, init)
    found = value(tile.row, tile.element)
    padded = found if tile.inside is None else Select(tile.inside, found, Const(0.0, "float32"))
    stages = [
        Stage(f"{name}_x", tile.axes, padded),
        Stage(f"{name}_share", (rb, ri, t), term, Reduce(op, (j, v), INIT[op])),
        Stage(f"{name}_part", (rb, ri, t), Load(f"{name}_share", (rb.var, ri.var, t.var))),
    ]
    if tile.threads > TOGETHER:
        g, q = Axis("g", tile.threads // TOGETHER), Axis("q", TOGETHER)
        read = Load(f"{name}_part", (rb.var, ri.var, q.var * g.extent + g.var))
        stages.append(Stage(f"{name}_some", (rb, ri, g), read, Reduce(op, (q,), INIT[op])))
        stages.append(Stage(f"{name}_mid", (rb, ri, g), Load(f"{name}_some", (rb.var, ri.var, g.var))))
    return stages


def total(name: str, source: str, tile: RowTile, op: str) -> Stage:
    """The whole of the shares of ``source``, for one thread: a stage in registers."""
    rb, ri = tile.axes[:2]
    many = tile.threads > TOGETHER
    h = Axis("h", tile.threads // TOGETHER if many else tile.threads)
    read = Load(f"{source}_{'mid' if many else 'part'}", (rb.var, ri.var, h.var))
    return Stage(name, (rb, ri), read, Reduce(op, (h,), INIT[op]))


def out_steps(tile: RowTile, stage: str = "out", along: bool = True) -> list[Step]:
    """The nest of a stage over rows (and, ``along``, their elements): blocks, threads, vectors."""
    inner = ("j", "v") if along else ()
    plan: list[Step] = [Reorder(stage, ("rb", "ri", "t", *inner)), Bind(stage, "rb", "block.x")]
    return [*plan, *_threads(stage, ("ri", "t")), *(_turns(stage, tile) if along else [])]


def share_steps(name: str, tile: RowTile, block: tuple[str, str] = ("out", "rb")) -> list[Step]:
    """The stages of :func:`shares`, in shared memory at a block loop."""
    part, share, loads = f"{name}_part", f"{name}_share", f"{name}_x"
    many = tile.turns > UNROLLED
    turns = ("j_o", "j_u") if many else ("j",)
    plan: list[Step] = [
        ComputeAt(part, *block, "block"), Reorder(part, ("rb", "ri", "t")), *_threads(part, ("ri", "t")),
        ComputeAt(share, part, "thread", "register"), *([Split(share, "j", UNROLLED, "j_o", "j_u")] if many else []),
        Reorder(share, ("rb", "ri", "t", *turns, "v")), Unroll(share, turns[-1]), Unroll(share, "v"),
        ComputeAt(loads, share, "j_o", "register") if many else ComputeAt(loads, part, "thread", "register"),
        Unroll(loads, "j"), Vectorize(loads, "v"),
    ]  # fmt: skip
    if tile.threads > TOGETHER:
        mid, some = f"{name}_mid", f"{name}_some"
        plan += [
            ComputeAt(mid, *block, "block"), Reorder(mid, ("rb", "ri", "g")), *_threads(mid, ("ri", "g")),
            ComputeAt(some, mid, "thread", "register"), Unroll(some, "q"),
        ]  # fmt: skip
    return plan


def reduced_steps(name: str, tile: RowTile, whole: str) -> list[Step]:
    """block: the shares ``name`` of its rows; a thread for each row, loops ``rb``, ``ri`` and a ``t`` of 1: their ``whole``."""
    fuse, one = fuse_all("out", ("ri", "t"), "thread")
    plan: list[Step] = [Bind("out", "rb", "block.x"), *fuse, Bind("out", one, "thread")]
    return [*plan, *share_steps(name, tile), *total_steps(whole, "out")]


def total_steps(name: str, consumer: str) -> list[Step]:
    """The stage of :func:`total` in the registers of a thread of ``consumer``."""
    return [ComputeAt(name, consumer, "thread", "register"), Unroll(name, "h")]


def _threads(stage: str, loops: tuple[str, ...]) -> list[Step]:
    fuse, one = fuse_all(stage, loops, "thread")
    return [*fuse, Bind(stage, one, "thread")]


def _turns(stage: str, tile: RowTile) -> list[Step]:
    return [*([Unroll(stage, "j")] if tile.turns <= UNROLLED else []), Vectorize(stage, "v")]
