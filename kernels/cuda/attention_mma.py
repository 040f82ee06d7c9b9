"""Attention on tensor cores by ``mma.sync``: float16, bfloat16, and float32 where the workload allows tf32.

The plan is that of :mod:`wpk.kernels.cuda.attention` with the thread tile of :mod:`wpk.kernels.cuda.gemm_mma`, for both products:
scores are float32 in shared memory, weights between 0 and 1 are rounded to the dtype of the values before they multiply them,
sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Reduce, Stage
from wpk.dsl.ir import Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Reorder, Split, Step, StoreAs, Tensorize, Unroll, schedule
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
from wpk.kernels.cuda.gemm_mma import RATE_BYTES, STEP_BYTES, precision_of
from wpk.kernels.cuda.nests import MOST_REGISTERS, WARP
from wpk.kernels.cuda.product import resident_blocks
from wpk.kernels.family import Built
from wpk.kernels.instr.cuda import TYPES, mma
from wpk.ops.attention import OWN, Heads, heads_of
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: most threads that share a row of the softmax
TOGETHER = 16

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def mma_sums(f: Frame) -> Sums:
    """Products of what is in shared memory."""
    t, at, group, d = f.tile, f.at, f.group_at, f.element
    m, n, e, k, ki = t.m.made(), f.columns, t.e.made(), f.turns, f.steps[1]
    first = Load("qs", (*at, t.m.index(), d.var)) * Load("ks", (*group, f.column, d.var))
    second = Load("p", (*at, t.m.index(), k.var, ki.var)) * Load("vs", (*group, k.var, ki.var, t.e.index()))
    return Sums(
        (Stage("sa", (*f.place, *m, *n), first, Reduce("+", (d,))),),
        (Stage("oa", (*f.place, *m, *e), second, Reduce("+", (k, ki), decay=f.decay)),),
    )


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def tile_of(a: Heads, c: Config, dtype: str) -> Tile:
    """The tile of a config: warps under and beside each other, fragments of 16 queries and of eight keys or values in each."""
    down, beside, rows, columns = (int(c[x]) for x in ("warps_m", "warps_n", "rows", "columns"))
    m = Dealt((("mw", down), ("mi", rows), ("mh", 2), ("mg", 8)), ("mw", "mg"))
    n = Dealt((("nw", beside), ("ni", columns), ("nq", 4), ("nv", 2)), ("nw", "nq"))
    e = Dealt((("ew", beside), ("ei", -(-a.values // (8 * beside))), ("eq", 4), ("ev", 2)), ("ew", "eq"))
    deep = STEP_BYTES // DTYPE_BYTES[dtype]
    shares = min(down * beside * WARP // m.extent, TOGETHER)
    return Tile(m, n, e, ("mw", "nw", "mg", "nq"), int(c["step"]), shares, deep, dtype, *keeping(c))


def space(workload: Workload, gpu: Gpu) -> Space:
    """Warps, fragments of a warp, keys of a step of the second product, stages under way, occupancy."""
    a, dtype = heads_of(workload.inputs, dict(workload.attrs)), workload.inputs[0].dtype
    least = STEP_BYTES // DTYPE_BYTES[dtype]
    knobs: tuple[Knob, ...] = (
        Ordered("warps_m", (1, 2, 4, 8), 1), Ordered("warps_n", (1, 2, 4, 8), 4), Ordered("rows", (1, 2), 1),
        Ordered("columns", (1, 2, 4, 8), 2), Ordered("step", tuple(n for n in (8, 16, 32, 64, 128) if n >= least), 32),
        Ordered("stages", (1, 2, 3), 2), Ordered("min_blocks", (1, 2, 3, 4), 1), Choice("keys", KEEPING, "whole"),
    )  # fmt: skip
    limits = limits_of(workload, a, gpu)
    return Space(knobs, limits, first_configs(workload, a, gpu, knobs, limits))


def limits_of(workload: Workload, a: Heads, gpu: Gpu) -> tuple[Constraint, ...]:
    """What makes a config buildable, and not plainly wasteful."""
    dtype = workload.inputs[0].dtype
    return (
        lambda c: 16 * int(c["warps_m"]) * int(c["rows"]) < max(2 * a.queries, 17),
        lambda c: 8 * int(c["warps_n"]) * int(c["columns"]) < max(2 * a.keys, 65),
        lambda c: 8 * int(c["warps_n"]) < max(2 * a.values, 9),
        lambda c: int(c["step"]) < max(2 * a.keys, 33),
        lambda c: c["keys"] != "stream" or int(c["step"]) == 8 * int(c["warps_n"]) * int(c["columns"]),
        lambda c: tile_of(a, c, dtype).count <= 512,
        lambda c: registers(a, c) <= MOST_REGISTERS,
        lambda c: int(c["min_blocks"]) * tile_of(a, c, dtype).count * registers(a, c) <= gpu.registers_per_sm,
        lambda c: int(c["min_blocks"]) * shared_bytes(workload, a, c) <= min(gpu.shared_per_block, gpu.shared_per_sm),
    )


def registers(a: Heads, c: Config) -> int:
    """Registers of a thread: the larger accumulators, fragments of a step, addresses."""
    rows, columns = int(c["rows"]), max(int(c["columns"]), -(-a.values // (8 * int(c["warps_n"]))))
    return 4 * rows * columns + 4 * rows + 2 * columns + 48


def shared_bytes(workload: Workload, a: Heads, c: Config) -> int:
    """Shared memory of a block."""
    return shared_of(Frame(workload, a, tile_of(a, c, workload.inputs[0].dtype)), int(c["stages"]))


def first_configs(
    workload: Workload, a: Heads, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Guesses: for each number of queries the tile that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    found: list[Config] = []
    for down, rows in ((4, 2), (2, 2), (4, 1), (2, 1), (1, 1)):
        tiles = [
            {**base, "warps_m": down, "warps_n": beside, "rows": rows, "columns": columns, "step": step, "stages": stages}
            for beside in (1, 2, 4, 8) for columns in (1, 2, 4, 8) for step in (32, 64) for stages in (1, 2)
        ]  # fmt: skip
        tiles = [{**c, "keys": keys} for c in tiles for keys in KEEPING]
        fit = [c for c in tiles if all(limit(c) for limit in limits)]
        found += sorted(fit, key=lambda c: cost(workload, a, gpu, c))[:1]
    return tuple(sorted(found, key=lambda c: cost(workload, a, gpu, c)))


def cost(workload: Workload, a: Heads, gpu: Gpu, c: Config) -> float:
    """Rough cycles: rounds of blocks, each the products, the traffic of shared memory, and the waiting of its steps."""
    dtype = workload.inputs[0].dtype
    size, f = DTYPE_BYTES[dtype], Frame(workload, a, tile_of(a, c, dtype))
    t = f.tile
    resident = resident_blocks(gpu, t.count, registers(a, c), shared_bytes(workload, a, c))
    down, beside = int(c["warps_m"]), int(c["warps_n"])
    products = t.m.extent * f.keys * (f.size + t.e.extent) * size / RATE_BYTES
    read = (beside * t.m.extent + down * f.keys) * (f.size + t.e.extent) * size / 128
    work = max(max(products, read) + t.m.extent * f.keys * 0.5, fetching(f))
    return rounds(f, gpu, resident, t.count, work, waiting(f, int(c["stages"])))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def mma_steps(f: Frame, c: Config, dtype: str) -> list[Step]:
    """A step of queries' elements, or of keys, is one instruction of a warp."""
    t, k = f.tile, STEP_BYTES // DTYPE_BYTES[dtype]
    rows, columns, values = int(c["rows"]), int(c["columns"]), dict(t.e.axes)["ei"]
    first, second = mma(dtype, rows, columns, False, False), mma(dtype, rows, values, False, True)
    return [
        Split("sa", "d", k, "d_o", "d_u"), *accumulated("sa", (*PLACE, "nb", *t.threads), ("d_o", "d_u"), "n", first.name),
        Split("oa", "ki", k, "k_o", "k_u"),
        *accumulated("oa", (*PLACE, *t.of_values()), ("ko", "k_o", "k_u"), "e", second.name),
    ]  # fmt: skip


def accumulated(stage: str, outer: tuple[str, ...], inner: tuple[str, ...], side: str, instr: str) -> list[Step]:
    """A product's loops, the last of ``inner`` being an instruction's."""
    held = ("mi", "mh", f"{side}i", f"{side}v")
    return [
        StoreAs(stage, (*outer, "mi", f"{side}i", "mh", f"{side}v")), Reorder(stage, (*outer, *inner, *held)),
        *(Unroll(stage, x) for x in (inner[-2], *held)), Tensorize(stage, inner[-1], instr),
    ]  # fmt: skip


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaAttentionMma:
    """Attention on tensor cores; see the module's docstring."""

    name: str = "cuda_attention_mma"
    version: int = 1
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """q, k and v of one dtype in ROW: 16-bit floats, or float32 with ``precision="tf32"``."""
        if reason := unfit(workload, target):
            return reason
        if precision_of(workload) is None or len({t.dtype for t in workload.inputs[:OWN]}) > 1:
            return f"operands {workload.inputs[:OWN]}: tensor cores take one 16-bit float, or float32 with precision tf32"
        return None

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(workload, target.gpu)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        a, dtype = heads_of(workload.inputs, dict(workload.attrs)), workload.inputs[0].dtype
        f, pad = Frame(workload, a, tile_of(a, config, dtype)), 16 // DTYPE_BYTES[dtype]
        name = f"{TYPES[dtype][1]}_attention_{f.tile.m.extent}x{f.tile.n.extent}x{a.size}__{target.isa}"
        pads = Pads(pad, pad, 8, pad, 8)
        plan = [*steps(f, config, pads), *mma_steps(f, config, dtype)]
        return Built(lower(schedule(algorithm(f, mma_sums), plan), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are."""
        return packed(workload, constants)
