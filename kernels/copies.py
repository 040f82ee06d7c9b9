"""Kernels that only move elements: rows by vectors, or tiles where another dimension is contiguous in the output.

A tile is moved element by element, or transposed in registers by Eklundh's network: for each bit of the position, rows exchange
lanes with the row that differs in this bit (Eklundh, "A Fast Computer Method for Matrix Transposing", 1972).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.dsl.affine import substitute
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Binary, Const, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Parallel, Reorder, Split, Step, StoreAs, Unroll, Vectorize, schedule
from wpk.kernels.family import Built
from wpk.kernels.nests import LANES, SMALL, fused, isas, nearest, up_to
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space


@dataclass(frozen=True)
class Copy:
    """The loops of a copy, in the output's order, and which of them is contiguous in the input.

    ``run``: elements of the last loop that are surely contiguous in both, where only the loop's name is the same.
    """

    extents: tuple[tuple[str, int], ...]
    source: str
    run: int = 1 << 30

    @property
    def last(self) -> str:
        """The loop that is contiguous in the output."""
        return self.extents[-1][0]

    @property
    def rows(self) -> bool:
        """True when the same loop is contiguous in both."""
        return self.source == self.last

    @property
    def lead(self) -> tuple[str, ...]:
        """The other loops."""
        return tuple(name for name, _ in self.extents if name not in (self.source, self.last))

    @property
    def count(self) -> int:
        """Elements of the output."""
        return prod(n for _, n in self.extents)

    def extent(self, loop: str) -> int:
        """The extent of a loop."""
        return dict(self.extents)[loop]


def build_copy(algorithm: Algorithm, copy: Copy, config: Config, name: str) -> Built:
    """The kernel of a copy whose stage ``out`` has the loops of ``copy``. Raises InvalidConfig."""
    isa = str(config["isa"])
    if config.get("move") == "shuffle":
        tile = int(config["tile_in"])
        moved = schedule(network(algorithm, copy, tile), _network_steps(copy, tile, config))
        return Built(lower(moved, f"{name}_{tile}x{tile}__{isa}"), isa)
    return Built(lower(schedule(algorithm, copy_steps(copy, config)), f"{name}__{isa}"), isa)


# --- THE ALGORITHM of a transposed tile -----------------------------------------------------------------------------------


def network(algorithm: Algorithm, copy: Copy, tile: int) -> Algorithm:
    """``out`` in tiles of ``tile``² elements q = tile·i + l: t0 has the rows of the input, each next stage exchanges one bit.

    The last tile of each dimension is moved back, so that it overlaps the one before it.
    """
    out = algorithm.stage("out")
    by_name = {a.name: a for a in out.axes}
    a_o, b_o = (Axis(n, -(-copy.extent(loop) // tile)) for n, loop in (("a_o", copy.source), ("b_o", copy.last)))
    axes = (*(by_name[n] for n in copy.lead), a_o, b_o, Axis("q", tile * tile))
    outer, q = tuple(a.var for a in axes[:-1]), axes[-1].var
    row, lane = q // tile, q % tile
    first = [Binary("min", o.var * tile, Const(copy.extent(n) - tile)) for o, n in ((a_o, copy.source), (b_o, copy.last))]
    read = {copy.source: first[0] + lane, copy.last: first[1] + row}
    write = {copy.source: first[0] + row, copy.last: first[1] + lane}
    stages = [Stage("t0", axes, substitute(out.value, read))]
    for k in range(tile.bit_length() - 1):
        bit = 1 << k
        shift = (lane // bit % 2 - row // bit % 2) * bit
        stages.append(Stage(f"t{k + 1}", axes, Load(f"t{k}", (*outer, (row + shift) * tile + (lane - shift)))))
    at = out.scatter or tuple(a.var for a in out.axes)
    where = None if out.where is None else substitute(out.where, write)
    done = Load(stages[-1].name, (*outer, q))
    stages.append(replace(out, axes=axes, value=done, scatter=tuple(substitute(e, write) for e in at), where=where))
    return replace(algorithm, stages=(*(s for s in algorithm.stages if s is not out), *stages))


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def copy_space(copy: Copy, target: Target) -> Space:
    """ISA, unroll or tile, how a tile moves, loop order, parallel loops and grain."""
    return _row_space(copy, target) if copy.rows else _tile_space(copy, target)


def _parallel(copy: Copy, target: Target, ways: tuple[str, ...], best: str, step: int) -> tuple[Knob, Knob]:
    small = copy.count < 2 * SMALL or target.threads == 1
    grains = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    grain = 1 if small else nearest(grains, 2048 / step)
    return Choice("parallel", (*ways, "serial"), "serial" if small else best), Ordered("grain", grains, grain)


def _row_space(copy: Copy, target: Target) -> Space:
    kinds, row = isas(target), min(copy.extent(copy.last), copy.run)
    unrolls = tuple(u for u in (1, 2, 4, 8) if u == 1 or u * LANES[kinds[0]] <= row)
    unroll = nearest(unrolls, 4)
    blocks = prod(copy.extent(n) for n in copy.lead[:-1])
    ways: tuple[str, ...]
    if copy.count == row:
        ways, best, step = ("vectors",), "vectors", unroll * LANES[kinds[0]]
    elif blocks > 1 and row < 256 and (blocks >= 4 * target.threads or blocks * row * 8 > copy.count):
        ways, best, step = ("blocks", "rows"), "blocks", copy.count // blocks
    else:
        ways, best, step = ("rows", "blocks") if blocks > 1 else ("rows",), "rows", row
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Ordered("unroll", unrolls, unroll),
        *_parallel(copy, target, ways, best, step),
    )
    return Space(knobs, (_sane,), ({k.name: k.default for k in knobs},))


def _tile_space(copy: Copy, target: Target) -> Space:
    kinds, source, last = isas(target), copy.extent(copy.source), copy.extent(copy.last)
    sizes = (4, 8, 16, 32, 64)
    ins, outs = up_to(sizes, source), up_to(sizes, last)
    lanes = nearest([t for t in sizes if t <= max(LANES[kinds[0]], 4)], min(source, last))
    squares = min(source, last) >= 4
    plain = ("read", "write", "gather", "scatter") if source < 4 else ("write", "read", "gather", "scatter")
    moves = ("shuffle", *plain) if squares else plain
    knobs: tuple[Knob, ...] = (
        Choice("isa", kinds, kinds[0]),
        Choice("move", moves, moves[0]),
        Ordered("tile_in", ins, lanes if squares else nearest(ins, 64)),
        Ordered("tile_out", outs, lanes if squares else nearest(outs, 64)),
        Choice("order", ("in_out", "out_in"), "in_out"),
        *_parallel(copy, target, ("tiles",), "tiles", 256),
    )  # fmt: skip
    first: Config = {k.name: k.default for k in knobs}
    return Space(knobs, (_sane, _square), (first, {**first, "order": "out_in"}))


def _sane(c: Config) -> bool:
    return c["parallel"] != "serial" or c["grain"] == 1


def _square(c: Config) -> bool:
    """A tile transposed in registers is square, and a row of it is one vector."""
    return c["move"] != "shuffle" or (c["tile_in"] == c["tile_out"] and int(c["tile_in"]) <= max(LANES[str(c["isa"])], 4))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def copy_steps(copy: Copy, c: Config) -> list[Step]:
    """The schedule of a config that moves elements as they are."""
    return row_steps(copy, c) if copy.rows else _tile_steps(copy, c)


def row_steps(copy: Copy, c: Config, stage: str = "out") -> list[Step]:
    """parallel outer loops: for vectors of the row, ``unroll`` at a time.

    ``rows`` divides all loops but the row's among threads, ``blocks`` keeps the innermost of them whole.
    """
    width, last = min(max(LANES[str(c["isa"])], 4), copy.run), copy.last
    plan: list[Step] = [
        Split(stage, last, width * int(c["unroll"]), "v_m", "v_i"), Split(stage, "v_i", width, "v_u", "v"),
        Unroll(stage, "v_u"), Vectorize(stage, "v"),
    ]  # fmt: skip
    if c["parallel"] == "vectors":
        return [*plan, Reorder(stage, ("v_m", *copy.lead, "v_u", "v")), Parallel(stage, "v_m", int(c["grain"]))]
    if c["parallel"] == "serial":
        return plan
    return [*plan, *_jobs(stage, copy.lead[:-1] if c["parallel"] == "blocks" else copy.lead, c)]


def _tile_steps(copy: Copy, c: Config) -> list[Step]:
    """parallel (outer loops, tiles): one tile, its inner loop contiguous in the output (``write``) or the input (``read``).

    ``gather`` and ``scatter`` are the same two with the inner loop as vectors.
    """
    move = str(c["move"])
    tile = ("a_t", "b_t") if move in ("write", "gather") else ("b_t", "a_t")
    inner = Vectorize("out", tile[1]) if move in ("gather", "scatter") else Unroll("out", tile[1])
    outer = _outer(copy, c)
    plan: list[Step] = [
        Split("out", copy.source, int(c["tile_in"]), "a_o", "a_t", "shift"),
        Split("out", copy.last, int(c["tile_out"]), "b_o", "b_t", "shift"),
        Reorder("out", (*outer, *tile)), inner,
    ]  # fmt: skip
    return plan if c["parallel"] == "serial" else [*plan, *_jobs("out", outer, c)]


def _network_steps(copy: Copy, tile: int, c: Config) -> list[Step]:
    """parallel (outer loops, tiles): rows of the input into registers, the network, rows of the output."""
    outer = _outer(copy, c)
    plan: list[Step] = [Reorder("out", (*outer, "q")), *_square_steps("out", tile)]
    job = outer[-1]
    if c["parallel"] == "tiles":
        joined, job = fused("out", outer)
        plan += [*joined, Parallel("out", job, int(c["grain"]))]
    for k in range(tile.bit_length() - 1, -1, -1):
        plan += [ComputeAt(f"t{k}", "out", job, "register"), StoreAs(f"t{k}", whole=("q",)), *_square_steps(f"t{k}", tile)]
    return plan


def _square_steps(stage: str, tile: int) -> list[Step]:
    return [Split(stage, "q", tile, "i", "l"), Unroll(stage, "i"), Vectorize(stage, "l")]


def _outer(copy: Copy, c: Config) -> tuple[str, ...]:
    return (*copy.lead, *(("a_o", "b_o") if c["order"] == "in_out" else ("b_o", "a_o")))


def _jobs(stage: str, outer: tuple[str, ...], c: Config) -> list[Step]:
    joined, job = fused(stage, outer)
    return [*joined, Parallel(stage, job, int(c["grain"]))]
