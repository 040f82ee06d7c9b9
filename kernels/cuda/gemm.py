"""Matrix products on ROW matrices for GPUs: block tile in shared memory, thread tile in registers, split-K in two kernels.

A block computes ``block_m × block_n`` of the product, by steps of ``tile_k``: its threads copy that much of both matrices to
shared memory together (rows of k outermost, so that a thread's rows and columns are vectors), then each adds products of
its ``tile_m`` rows and ``tile_n`` columns. These come in groups of four that lie a block's width apart, so that a warp reads
whole banks. Where blocks are few, ``split_k`` of them share a tile: partial sums go to device memory, a second kernel adds
them in order; or all of them share the last tiles evenly (:mod:`wpk.kernels.cuda.stream`).
See Volkov & Demmel, "Benchmarking GPUs to Tune Dense Linear Algebra", SC 2008; CUTLASS calls the levels
threadblock, warp and thread tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Const, Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Pipeline,
    Reorder,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.kernels.cuda.nests import (
    MOST_REGISTERS,
    WARP,
    added_parts,
    copied,
    fuse_all,
    gpu_of,
    joined_slices,
    part_axes,
    width_of,
)
from wpk.kernels.cuda.operands import GpuOperands
from wpk.kernels.cuda.product import (
    Block,
    Ends,
    Where,
    batch_at,
    batch_axes,
    cycles,
    ends,
    k_axes,
    operand_buffers,
    resident_blocks,
    summed,
)
from wpk.kernels.cuda.stream import (
    Shares,
    Stream,
    shares_of,
    some_shares,
    stream_cycles,
    stream_of,
    streamed,
    streamed_steps,
)
from wpk.kernels.family import Built
from wpk.kernels.gemm import Product, product_of, unfit
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space


@dataclass(frozen=True)
class Tile:
    """The numbers of a config. A thread's rows: ``groups_m`` groups of ``vector_m``, ``threads_m`` threads side by side."""

    groups_m: int
    threads_m: int
    vector_m: int
    groups_n: int
    threads_n: int
    vector_n: int
    lanes_m: int
    k: int
    split: int
    slices: int = 1
    stream: Stream | None = None

    @property
    def m(self) -> int:
        """Rows of a block."""
        return self.groups_m * self.threads_m * self.vector_m

    @property
    def n(self) -> int:
        """Columns of a block."""
        return self.groups_n * self.threads_n * self.vector_n

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.threads_m * self.threads_n * self.slices


def tile_of(c: Config) -> Tile:
    """The tile of a config."""
    tile_m, tile_n, lanes_m = int(c["tile_m"]), int(c["tile_n"]), int(c["lanes_m"])
    vector_m, vector_n = min(tile_m, 4), min(tile_n, 4)
    return Tile(
        tile_m // vector_m, int(c["warps_m"]) * lanes_m, vector_m,
        tile_n // vector_n, int(c["warps_n"]) * (WARP // lanes_m), vector_n,
        lanes_m, int(c["tile_k"]), int(c["split_k"]), int(c["slices"]), stream_of(c),
    )  # fmt: skip


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(p: Product, t: Tile, e: Ends) -> Algorithm:
    """out[m, n] = epilogue(sum over k of as[k, m] * bs[k, n]), m = ((mb*groups + mg)*threads + mt)*vector + mv, n likewise.

    ``as`` and ``bs`` are the operands transposed, zero beyond the last row, column and k; ``ar`` and ``br`` what a thread uses.
    """
    batch = batch_axes(p)
    m_axes, m = _split_axis("m", p.m, (t.groups_m, t.threads_m, t.vector_m))
    n_axes, n = _split_axis("n", p.n, (t.groups_n, t.threads_n, t.vector_n))
    made = partial(factors, p, e, (m_axes[0].extent * t.m, n_axes[0].extent * t.n))
    if t.stream:
        return streamed(p, e, t.stream, shares(p, t), (m_axes, m), (n_axes, n), t.k, "float32", made)
    k, at = k_axes(p.k, t.k, t.split, t.slices), tuple(x.var for x in batch)
    stages, product = made(Where("", batch, m_axes, n_axes, at, m, n, (k.kb, k.ki), Const(0), k.at))
    return summed(e, stages, product, k, (*batch, *m_axes, *n_axes), (*at, m, n))


def factors(p: Product, e: Ends, extents: tuple[int, int], w: Where) -> tuple[list[Stage], Expr]:
    """The operands, padded to ``extents``, what a thread uses of them, and the product of their elements."""
    kb, ki = w.k
    k, outer = (w.first + kb.var, ki.var), tuple(x.var for x in w.outer)
    a, b = replace(e.a(w.k, extents[0]), name=f"as{w.suffix}"), replace(e.b(w.k, extents[1]), name=f"bs{w.suffix}")
    x, y = Load(a.name, (*batch_at(w.batch, p.a_batch), *k, w.m)), Load(b.name, (*batch_at(w.batch, p.b_batch), *k, w.n))
    ar, br = Stage(f"ar{w.suffix}", (*w.outer, kb, ki, *w.rows), x), Stage(f"br{w.suffix}", (*w.outer, kb, ki, *w.columns), y)
    mine = Load(ar.name, (*outer, *w.at, *(x.var for x in w.rows)))
    return [a, b, ar, br], mine * Load(br.name, (*outer, *w.at, *(x.var for x in w.columns)))


def shares(p: Product, t: Tile) -> Shares:
    """How blocks share the product's last tiles. Raises InvalidConfig where they have none to share."""
    assert t.stream is not None
    return some_shares(p, t.m, t.n, t.k, t.stream.slots)


def _split_axis(name: str, extent: int, inner: tuple[int, int, int]) -> tuple[tuple[Axis, ...], Expr]:
    """Axes of blocks, groups, threads and vectors, and the index they make."""
    groups, threads, vector = inner
    extents = (-(-extent // prod(inner)), groups, threads, vector)
    axes = tuple(Axis(f"{name}{x}", n) for x, n in zip("bgtv", extents, strict=True))
    b, g, t, v = (a.var for a in axes)
    return axes, ((b * groups + g) * threads + t) * vector + v


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(p: Product, gpu: Gpu, stream: bool = False) -> Space:
    """Thread tile, lanes and warps along both dimensions, step and split of k, padding, unrolling, block order, occupancy.

    With ``stream``, blocks may share the tiles of an underfull last wave: ``min_blocks`` of so many multiprocessors.
    """
    steps = -(-p.k // 8)
    knobs: tuple[Knob, ...] = (
        Ordered("tile_m", (1, 2, 4, 8, 16), 8 if p.m >= 64 else 4),
        Ordered("tile_n", (1, 2, 4, 8, 16), 8 if p.n >= 64 else 4),
        Ordered("lanes_m", (1, 2, 4, 8, 16, 32), 4),
        Ordered("warps_m", (1, 2, 4, 8), 1),
        Ordered("warps_n", (1, 2, 4, 8), 1),
        Ordered("tile_k", tuple(k for k in (4, 8, 16, 32, 64) if k == 4 or k < 2 * p.k), 8 if p.k >= 8 else 4),
        Ordered("split_k", tuple(s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if s == 1 or 2 * s <= steps), 1),
        Ordered("slices", tuple(s for s in (1, 2, 4, 8) if s == 1 or 2 * s <= steps), 1),
        Ordered("pad", (0, 4), 4),
        Choice("rows", ("kept", "turned"), "kept"),
        Ordered("stages", (1, 2, 3, 4), 2),
        Ordered("unroll_k", (1, 2, 4, 8, 16), 4),
        Choice("order", ("mn", "nm"), "nm"),
        Ordered("group", (1, 2, 4, 8), 1),
        Ordered("min_blocks", (1, 2, 3, 4), 1),
        *((Ordered("stream", (0, gpu.sms), 0),) if stream else ()),
    )  # fmt: skip
    limits = (*limits_of(p, gpu), *((lambda c: shared_well(p, c),) if stream else ()))
    return Space(knobs, limits, first_configs(p, gpu, knobs, limits))


def limits_of(p: Product, gpu: Gpu) -> tuple[Constraint, ...]:
    """What makes a config buildable, and not plainly wasteful."""
    return (
        lambda c: registers(c) <= MOST_REGISTERS,
        lambda c: int(c["warps_m"]) * int(c["warps_n"]) * int(c["slices"]) * WARP <= 512,
        lambda c: int(c["min_blocks"]) * tile_of(c).threads * registers(c) <= gpu.registers_per_sm,
        lambda c: not_too_large(p.m, rows_of(c)),
        lambda c: not_too_large(p.n, columns_of(c)),
        lambda c: int(c["min_blocks"]) * shared_bytes(c) <= min(gpu.shared_per_block, gpu.shared_per_sm),
        lambda c: int(c["unroll_k"]) <= int(c["tile_k"]) and int(c["tile_m"]) * int(c["tile_n"]) * int(c["unroll_k"]) <= 2048,
        lambda c: int(c["split_k"]) * int(c["slices"]) * int(c["tile_k"]) <= p.k or int(c["split_k"]) * int(c["slices"]) == 1,
        lambda c: grouped_rows(p, c) % int(c["group"]) == 0,
    )  # fmt: skip


def shared_well(p: Product, c: Config) -> bool:
    """Where the last tiles are shared: is k in no other parts, and the last wave underfull?"""
    if c["stream"] == 0:
        return True
    if int(c["split_k"]) * int(c["slices"]) > 1:
        return False
    t = tile_of(c)
    return t.stream is not None and shares_of(p, t.m, t.n, t.k, t.stream.slots) is not None


def registers(c: Config) -> int:
    """Registers of a thread: its tile, operands of the steps that are unrolled, addresses."""
    m, n = int(c["tile_m"]), int(c["tile_n"])
    held = min(int(c["unroll_k"]), 4) if c["rows"] == "kept" else 1
    return m * n + (m + n) * held + 24


def shared_bytes(c: Config) -> int:
    """Shared memory of a block."""
    k, pad = int(c["tile_k"]), int(c["pad"])
    one = max((k + pad) * (rows_of(c) + columns_of(c)), k * (rows_of(c) + columns_of(c) + 2 * pad))
    joined = 4 * rows_of(c) * columns_of(c) if int(c["slices"]) > 1 else 0
    return int(c["slices"]) * (int(c["stages"]) * (4 * one + 256) + joined)


def rows_of(c: Config) -> int:
    """Rows of a block."""
    return int(c["tile_m"]) * int(c["lanes_m"]) * int(c["warps_m"])


def columns_of(c: Config) -> int:
    """Columns of a block."""
    return int(c["tile_n"]) * (WARP // int(c["lanes_m"])) * int(c["warps_n"])


def not_too_large(extent: int, tile: int) -> bool:
    """Half of a tile is used at least, unless it is the smallest that threads can share."""
    return tile < 2 * extent or tile <= 16


def grouped_rows(p: Product, c: Config) -> int:
    """Blocks along the slow dimension of the block order."""
    return -(-p.m // rows_of(c)) if c["order"] == "mn" else -(-p.n // columns_of(c))


def first_configs(p: Product, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]) -> tuple[Config, ...]:
    """Guesses: tiles from large to small, each with the parts of k that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    allowed = {k.name: k.values for k in knobs}
    shapes = (
        (8, 8, 4, 2, 4), (8, 8, 4, 2, 2), (8, 4, 4, 2, 2), (4, 8, 4, 2, 2), (4, 4, 4, 2, 2), (4, 4, 4, 1, 2), (4, 4, 4, 1, 1),
        (2, 4, 4, 1, 2), (1, 4, 1, 1, 2), (1, 4, 2, 1, 4),
    )  # fmt: skip
    found: list[Config] = []
    for tile_m, tile_n, lanes, warps_m, warps_n in shapes:
        tile: Config = {
            **base, "tile_m": tile_m, "tile_n": tile_n, "lanes_m": lanes, "warps_m": warps_m, "warps_n": warps_n,
            "tile_k": max(int(k) for k in allowed["tile_k"] if int(k) <= 16), "stages": 3,
        }  # fmt: skip
        parts = [{**tile, "split_k": s, "slices": n} for s in allowed["split_k"] for n in allowed["slices"]]
        parts += [{**tile, "stream": s, "min_blocks": n} for s in allowed.get("stream", ()) if s for n in allowed["min_blocks"]]
        found += cheapest([c for c in parts if tile_of(c).threads <= 256], lambda c: cost(p, gpu, c), limits)
    return tuple(sorted(found, key=lambda c: cost(p, gpu, c)))


def cheapest(configs: list[Config], cost: Callable[[Config], float], limits: tuple[Constraint, ...]) -> list[Config]:
    """The config of least cost among those within limits, or none."""
    return sorted((c for c in configs if all(limit(c) for limit in limits)), key=cost)[:1]


def cost(p: Product, gpu: Gpu, c: Config) -> float:
    """Rough cycles; see :func:`wpk.kernels.cuda.product.cycles`."""
    t = tile_of(c)
    resident = resident_blocks(gpu, t.threads, registers(c), shared_bytes(c))
    m, n = int(c["tile_m"]), int(c["tile_n"])
    rate = 128 / (0.3 + max(1, 3 * (m + n) / (m * n)))  # a vector from shared memory takes as long as three vectors of products
    copied, stages = 4 * (t.m + t.n), int(c["stages"])
    b = Block(t.m, t.n, t.k * t.slices, t.split, t.threads, resident, rate, copied, 0, t.slices, stages)
    return stream_cycles(gpu, b, shares(p, t)) if t.stream else cycles(p, gpu, b)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(p: Product, t: Tile, c: Config, strides: tuple[int, int] | None = None) -> list[Step]:
    """The schedule of a config. ``strides``: what vectors of a and b are multiples of in memory, if not whole rows.

    block (tiles, splits of k): thread: acc = 0; for ko: [copy as, bs together]; for ki: load ar, br; acc += ar ⊗ br.
    """
    accumulate = partial(accumulated, p, t, c, strides or row_lengths(p))
    if t.stream:
        place = ("tile", "mg", "mt", "mv", "ng", "nt")
        return streamed_steps(shares(p, t), int(c["min_blocks"]), partial(of_threads, t), accumulate, place)
    first = "part" if t.split > 1 else "out"
    batch = tuple(f"b{i}" for i in range(len(p.batch)))
    plan = block_tile(first, batch, t, c)
    if t.slices > 1:
        stored = ("mb", "nb", "mg", "mv", "ng", "mt", "nt", "nv")
        outer = (*part_axes(t.split), *batch)
        plan += joined_slices(first, outer, lanes("slice", t), ("mw", "nw", "ml", "nl"), ("mg", "mv", "ng"), stored)
    at = "slice" if t.slices > 1 else first
    plan += accumulate("", (at, "thread"), batch, part_axes(t.split, t.slices), ("mb", "nb"))
    return plan + (added_parts((*batch, "mb", "mg", "mt", "mv", "nb", "ng", "nt")) if t.split > 1 else [])


def accumulated(
    p: Product, t: Tile, c: Config, strides: tuple[int, int], suffix: str, at: tuple[str, str], outer: tuple[str, ...],
    parts: tuple[str, ...] = (), tile: tuple[str, ...] = (),
) -> list[Step]:  # fmt: skip
    """A thread's sums, made at a loop of a stage: steps of k, some copied ahead.

    ``outer`` are the loops around a tile, ``parts`` those of k, ``tile`` those of the tile's row and column, where it has them.
    """
    acc, a, b = f"acc{suffix}", f"as{suffix}", f"bs{suffix}"
    unroll, depth, by_rows = int(c["unroll_k"]), int(c["stages"]), c["rows"] == "kept"
    a_kept, b_kept = by_rows and not p.trans_a, by_rows and p.trans_b
    return [
        ComputeAt(acc, *at, "register"),
        Split(acc, "ki", unroll, "ki_o", "ki_u"),
        Reorder(acc, (*parts, *outer, *tile, "mt", "nt", "ko", "ki_o", "ki_u", "mg", "mv", "ng", "nv")),
        *(Unroll(acc, x) for x in ("ki_u", "mg", "mv", "ng", "nv")),
        ComputeAt(a, acc, "ko", "block"), ComputeAt(b, acc, "ko", "block"),
        *operand(f"ar{suffix}", acc, "m", outer, tile[:1], unroll, a_kept),
        *operand(f"br{suffix}", acc, "n", outer, tile[1:], unroll, b_kept),
        *([Pipeline(acc, "ko", depth)] if depth > 1 else []),
        *staged_copy(a, "m", len(p.a_batch), strides[0], p.trans_a, t.m, a_kept, t, c),
        *staged_copy(b, "n", len(p.b_batch), strides[1], not p.trans_b, t.n, b_kept, t, c),
    ]  # fmt: skip


def row_lengths(p: Product) -> tuple[int, int]:
    """Elements of a row of the operands in memory."""
    return p.m if p.trans_a else p.k, p.k if p.trans_b else p.n


def operand(
    stage: str, acc: str, row: str, outer: tuple[str, ...], block: tuple[str, ...], unroll: int, kept: bool
) -> list[Step]:
    """A thread's rows in registers: those of one k as vectors, or of ``unroll`` k, where rows are kept, as vectors along k."""
    if not kept:
        return [ComputeAt(stage, acc, "ki_u", "register"), Unroll(stage, f"{row}g"), Vectorize(stage, f"{row}v")]
    return [
        ComputeAt(stage, acc, "ki_o", "register"), Split(stage, "ki", min(unroll, 4), "ko", "kv", "guard"),
        Reorder(stage, (*outer, "kb", *block, f"{row}t", "ko", f"{row}g", f"{row}v", "kv")),
        *(Unroll(stage, x) for x in ("ko", f"{row}g", f"{row}v")), Vectorize(stage, "kv"),
        StoreAs(stage, (*outer, "kb", *block, *(f"{row}{x}" for x in "gtv"), "ki")),
    ]  # fmt: skip


def block_tile(stage: str, batch: tuple[str, ...], t: Tile, c: Config) -> list[Step]:
    """Tiles and splits of k to blocks, ``group`` rows of tiles at a time so that they share operands in L2; threads in warps."""
    slow, fast = ("mb", "nb") if c["order"] == "mn" else ("nb", "mb")
    plan: list[Step] = [
        Split(stage, slow, int(c["group"]), "slow_o", "slow_i", "guard"),
        *of_threads(t, stage, (*batch, *part_axes(t.split), "slow_o", fast, "slow_i")),
    ]
    blocks, block = fuse_all(stage, ("slow_o", fast, "slow_i"), "tile")
    plan += [*blocks, Bind(stage, block, "block.x", int(c["min_blocks"]))]
    if t.split > 1:
        plan.append(Bind(stage, "ks", "block.y"))
    if batch:
        fuse, one = fuse_all(stage, batch, "batch")
        plan += [*fuse, Bind(stage, one, "block.z")]
    return plan


def of_threads(t: Tile, stage: str, blocks: tuple[str, ...], pieces: tuple[str, ...] = ()) -> list[Step]:
    """Warps and lanes to threads, inside of ``blocks``; each thread does ``pieces`` one after another."""
    fuse, thread = fuse_all(stage, ("mw", "nw", "ml", "nl"), "thread")
    return [
        *lanes(stage, t),
        Reorder(stage, (*blocks, "mw", "nw", "ml", "nl", *pieces, "mg", "mv", "ng", "nv")),
        *fuse, Bind(stage, thread, "thread"), *(Unroll(stage, x) for x in ("mg", "mv", "ng")), Vectorize(stage, "nv"),
    ]  # fmt: skip


def lanes(stage: str, t: Tile) -> list[Step]:
    """Threads of a tile as warps and lanes."""
    return [Split(stage, "mt", t.lanes_m, "mw", "ml", "guard"), Split(stage, "nt", WARP // t.lanes_m, "nw", "nl", "guard")]


def staged_copy(
    stage: str, row: str, batches: int, stride: int, rows_in_memory: bool, rows: int, kept: bool, t: Tile, c: Config
) -> list[Step]:
    """All threads copy a tile to shared memory, in vectors along the dimension that is contiguous in device memory."""
    outer = (*(f"b{i}" for i in range(batches)), "kb")
    first, rest = (outer[:-1], ("kb",)) if t.slices > 1 else (outer, ())
    along, other, extent = (row, "ki", rows) if rows_in_memory else ("ki", row, t.k)
    width = width_of(stride, extent)
    return [
        *copied(stage, first, (*rest, other), along, width, t.threads),
        StoreAs(stage, (*outer, row, "ki") if kept else (*outer, "ki", row), pad=("ki" if kept else row, int(c["pad"]))),
    ]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaGemm:
    """Matrix product of ROW matrices in float32; see the module's docstring. ``op`` is ``gemm`` or ``matmul``."""

    name: str = "cuda_gemm"
    version: int = 2
    op: str = "gemm"
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Float32 in layout ROW, on a GPU."""
        if workload.op != self.op or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected {self.op} for cuda"
        return unfit(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(product_of(workload), target.gpu, stream=True)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        p, t = product_of(workload), tile_of(config)
        name = f"f32_{workload.op}_{t.m}x{t.n}x{t.k}__{target.isa}"
        return Built(lower(schedule(algorithm(p, t, ends(workload, p)), steps(p, t, config)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are, epilogue operands with the output's dimensions merged."""
        p = product_of(workload)
        own = [i for i in workload.constants if i < 2]
        plain = [
            np.ascontiguousarray(c, np.float32).reshape(operand_buffers(p)[i].shape)
            for i, c in zip(own, constants, strict=False)
        ]
        return [*plain, *GpuOperands(workload, 2, p.groups).pack(constants, len(own))]


def matmul() -> CudaGemm:
    """The family for batched matmul."""
    return CudaGemm("cuda_matmul", op="matmul")
