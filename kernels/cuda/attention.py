"""Attention for GPUs without tensor cores: float32 products by the thread tile of :mod:`wpk.kernels.cuda.gemm`.

A thread has ``rows / side`` queries, and of a step of keys ``columns``, ``across`` apart, so that a warp reads shared memory in
whole lines; then as many values as make up the head. See :mod:`wpk.kernels.cuda.attention_frame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Reduce, Stage
from wpk.dsl.ir import Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Reorder, Split, Step, Unroll, Vectorize, schedule
from wpk.kernels.cuda.attention_frame import Dealt, Frame, Sums, Tile, algorithm, packed, unfit
from wpk.kernels.cuda.attention_steps import (
    KEEPING,
    PLACE,
    Pads,
    fetching,
    keeping,
    rounds,
    shared_of,
    steps,
    waiting,
)
from wpk.kernels.cuda.nests import MOST_REGISTERS
from wpk.kernels.cuda.product import resident_blocks
from wpk.kernels.family import Built
from wpk.ops.attention import Heads, heads_of
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: most threads that share a row of the softmax
TOGETHER = 16
#: elements, or keys, that a thread has in registers at a time
UNROLLED = 4

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def simt_sums(f: Frame) -> Sums:
    """Products of what a thread has in registers."""
    t, at, group, d, (kb, ki) = f.tile, f.at, f.group_at, f.element, f.steps
    m, n, e = t.m.made(), f.columns, t.e.made()
    mi, ni, ei = (tuple(x.var for x in axes) for axes in (m, n, e))
    k, own = f.turns, f.group
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
            Load("pr", (*at, k.var, *mi, ki.var)) * Load("vr", (*group, k.var, ki.var, *ei)), Reduce("+", (k, ki), decay=f.decay),
        ),
    )  # fmt: skip
    return Sums(first, second)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def tile_of(a: Heads, c: Config) -> Tile:
    """The tile of a config: threads stand ``across`` side by side, with ``columns`` keys each, and under each other."""
    threads, across, rows = int(c["threads"]), int(c["across"]), int(c["rows"])
    side = threads // across
    vector = next(w for w in (4, 2, 1) if across * w <= max(a.values, across))
    m = Dealt((("mg", rows // side), ("mt", side)), ("mt",))
    n = Dealt((("ng", int(c["columns"])), ("nt", across)), ("nt",))
    e = Dealt((("eg", -(-a.values // (across * vector))), ("et", across), ("ev", vector)), ("et",))
    return Tile(m, n, e, ("mt", "nt"), int(c["step"]), min(threads // rows, TOGETHER), UNROLLED, "float32", *keeping(c))


def space(workload: Workload, gpu: Gpu) -> Space:
    """Queries of a block, its threads and how many stand side by side, keys of a thread and of a step, stages under way, rows."""
    a = heads_of(workload.inputs, dict(workload.attrs))
    knobs: tuple[Knob, ...] = (
        Ordered("rows", (8, 16, 32, 64, 128), 32), Ordered("threads", (32, 64, 128, 256), 128),
        Ordered("across", (4, 8, 16, 32), 16), Ordered("columns", (1, 2, 4, 8), 4), Ordered("step", (8, 16, 32, 64), 32),
        Ordered("stages", (1, 2, 3), 2), Ordered("min_blocks", (1, 2, 3, 4), 1), Choice("keys", KEEPING, "whole"),
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
        lambda c: c["keys"] != "stream" or int(c["step"]) == int(c["across"]) * int(c["columns"]),
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


def first_configs(
    workload: Workload, a: Heads, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Guesses: for each number of queries the tile that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    found: list[Config] = []
    for rows in (64, 32, 16, 8):
        tiles = [
            {**base, "rows": rows, "threads": threads, "across": across, "columns": columns, "step": step, "stages": stages}
            for threads in (64, 128, 256) for across in (8, 16) for columns in (1, 2, 4, 8)
            for step in ((16, 32) if a.keys > 8 else (8,)) for stages in (1, 2)
        ]  # fmt: skip
        tiles = [{**c, "keys": keys} for c in tiles for keys in KEEPING]
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
    work = max(t.m.extent * f.keys * (first + second + 0.5), fetching(f))
    return rounds(f, gpu, resident, t.count, work, waiting(f, int(c["stages"])))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class CudaAttention:
    """Attention without tensor cores; see the module's docstring."""

    name: str = "cuda_attention"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Floats in ROW, heads of at most 128 elements."""
        return unfit(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        a = heads_of(workload.inputs, dict(workload.attrs))
        f = Frame(workload, a, tile_of(a, config))
        name = f"attention_{f.tile.m.extent}x{f.tile.n.extent}x{a.size}__{target.isa}"
        plan = [*steps(f, config, Pads(4, 4, max(f.tile.shares, 4), 4, 0)), *simt_steps(f)]
        return Built(lower(schedule(algorithm(f, simt_sums), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are."""
        return packed(workload, constants)
