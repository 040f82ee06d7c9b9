"""Matrix products on Hopper's tensor cores by ``wgmma``: float16, bfloat16, and float32 where the workload allows tf32.

The plan is that of :mod:`wpk.kernels.cuda.gemm_mma` with warpgroups for warps: each has ``rows`` fragments of 64×``columns``, and
one instruction of :mod:`wpk.kernels.instr.wgmma` adds a step of 128 bytes of k to all of them. Operands are read from shared
memory alone, in rows of 128 bytes that are swizzled; next steps are copied and next products begun while this one runs.
Constant weights are packed along k, so that tiles may have any number of columns (operands of float32 must lie so), and so that
threads have neighbouring columns (:mod:`wpk.kernels.cuda.wgmma_columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis
from wpk.dsl.fetch import LONGEST
from wpk.dsl.ir import Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Pipeline,
    Reorder,
    Split,
    Step,
    StoreAs,
    Tensorize,
    Unroll,
    schedule,
)
from wpk.kernels.cuda.gemm import cheapest, row_lengths
from wpk.kernels.cuda.gemm_mma import fragment_axes, laid, precision_of
from wpk.kernels.cuda.nests import MOST_REGISTERS, copied, fuse_all, gpu_of, part_axes, width_of
from wpk.kernels.cuda.operands import GpuOperands, as_float32
from wpk.kernels.cuda.product import (
    Block,
    Ends,
    batch_axes,
    batch_index,
    cycles,
    ends,
    k_axes,
    operand_buffers,
    resident_blocks,
    summed,
)
from wpk.kernels.cuda.wgmma_columns import Columns, as_vector, spread_ends, spread_over, spread_rows
from wpk.kernels.family import Built
from wpk.kernels.gemm import Product, product_of, unfit
from wpk.kernels.instr.cuda import TYPES
from wpk.kernels.instr.wgmma import PANEL, STEP_BYTES, step_of, wgmma
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: the compute capability that has these instructions, and threads of a warpgroup
ISA, GROUP = "sm_90a", 128
#: bytes of one operand that a multiprocessor multiplies with as many of the other in a cycle; warps that keep it as busy as one
RATE_BYTES, WARPS = 4096, 4
#: registers that ptxas wants beside the accumulators of one instruction
BESIDE = 26


@dataclass(frozen=True)
class Tile:
    """The numbers of a config: warpgroups of a block, fragments of 64×``columns`` of a warpgroup, parts of k."""

    groups_m: int
    groups_n: int
    rows: int
    columns: int
    split: int

    @property
    def m(self) -> int:
        """Rows of a block."""
        return self.groups_m * self.rows * 64

    @property
    def n(self) -> int:
        """Columns of a block."""
        return self.groups_n * self.columns

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.groups_m * self.groups_n * GROUP


def tile_of(c: Config) -> Tile:
    """The tile of a config."""
    return Tile(int(c["groups_m"]), int(c["groups_n"]), int(c["rows"]), int(c["columns"]), int(c["split_k"]))


#: (axes of m) → indices of a row in ``as``, and its place in the output
Rows = Callable[[tuple[Axis, ...]], tuple[tuple[Expr, ...], Expr]]

# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(p: Product, t: Tile, e: Ends, dtype: str, rows: Rows | None = None) -> Algorithm:
    """out[m, n] = epilogue(sum over k of as[k, m] * bs[k, n]), m = ((((mb*groups + mw)*rows + mi)*4 + mp)*2 + mh)*8 + mg,
    n as :class:`wpk.kernels.cuda.wgmma_columns.Columns` has it. ``rows`` gives a row's indices in ``as`` and its place in out,
    from the axes of m."""
    batch = batch_axes(p)
    m_axes, m = fragment_axes("m", "bwiphg", p.m, (t.groups_m, t.rows, 4, 2, 8))
    row, m = rows(m_axes) if rows else ((m,), m)
    n_axes, column, n = columns_of(p, t).axes(p.n)
    k = k_axes(p.k, step_of(dtype), t.split)
    stages = [e.a((k.kb, k.ki), m_axes[0].extent * t.m), e.b((k.kb, k.ki), n_axes[0].extent * t.n)]
    a, b = Load("as", (*batch_index(batch, p.a_batch), *k.at, *row)), Load("bs", (*batch_index(batch, p.b_batch), *k.at, column))
    at = (*(x.var for x in batch), m, n)
    return summed(e, stages, a * b, k, (*batch, *m_axes, *n_axes), at)


def columns_of(p: Product, t: Tile) -> Columns:
    """The columns of a block: spread where weights are packed, in panels where b does not lie along k."""
    return Columns(t.groups_n, t.columns, not p.trans_b, p.constant)


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(p: Product, gpu: Gpu, dtype: str, fetch: tuple[int, ...]) -> Space:
    """Warpgroups, fragments of each, stages under way, splits of k, block order; ways to ``fetch`` (TMA), best first."""
    step = step_of(dtype)
    columns = (16, 32, 64, 96, 128, 192, 256) if p.trans_b else (64, 128, 192, 256)
    knobs: tuple[Knob, ...] = (
        Ordered("groups_m", (1, 2, 3, 4), 1),
        Ordered("groups_n", (1, 2), 1),
        Ordered("rows", (1, 2), 1),
        Ordered("columns", columns, 64),
        Ordered("stages", (1, 2, 3, 4, 5, 6, 8), 4 if p.k > 3 * step else 1),
        Ordered("split_k", tuple(s for s in (1, 2, 3, 4, 6, 8, 12, 16) if s == 1 or s * 2 * step <= p.k), 1),
        Choice("fetch", fetch, fetch[0]),
        Choice("order", ("mn", "nm"), "nm"),
        Ordered("group", (1, 2, 4, 8, 16), 1),
        Ordered("min_blocks", (1, 2), 1),
    )  # fmt: skip
    limits = limits_of(p, gpu)
    return Space(knobs, limits, first_configs(p, gpu, knobs, limits, dtype))


def limits_of(p: Product, gpu: Gpu) -> tuple[Constraint, ...]:
    """What makes a config buildable, and not plainly wasteful."""
    return (
        lambda c: registers(c) <= MOST_REGISTERS,
        lambda c: tile_of(c).threads <= 4 * GROUP,
        lambda c: int(c["min_blocks"]) * (tile_of(c).threads * registers(c) + GROUP * 32) <= gpu.registers_per_sm,
        lambda c: not c["fetch"] or (int(c["stages"]) > 1 and longest(p, tile_of(c)) <= LONGEST),
        lambda c: not c["fetch"] or at_entry(c, gpu) >= int(c["columns"]) // 2 + BESIDE,
        lambda c: tile_of(c).m < max(2 * p.m, 65),
        lambda c: tile_of(c).n < max(2 * p.n, min(tile_of(c).n, PANEL) + 1),
        lambda c: int(c["min_blocks"]) * shared_bytes(c) <= min(gpu.shared_per_block, gpu.shared_per_sm),
        lambda c: slow_tiles(p, c) % int(c["group"]) == 0,
    )  # fmt: skip


def aligned(p: Product, dtype: str) -> bool:
    """May tensor maps describe the operands: rows of whole 16 bytes, five dimensions at most?"""
    return len(p.batch) < 4 and all(n * DTYPE_BYTES[dtype] % 16 == 0 for n in row_lengths(p))


def longest(p: Product, t: Tile) -> int:
    """Rows of the largest box that is fetched."""
    return max(PANEL, 0 if p.trans_a else t.m, t.n if p.trans_b else 0)


def registers(c: Config) -> int:
    """Registers of a thread: accumulators, addresses."""
    return int(c["rows"]) * int(c["columns"]) // 2 + 40


def at_entry(c: Config, gpu: Gpu) -> int:
    """Registers of a thread before a warpgroup that fetches gives its own away: ptxas wants an instruction to fit in these."""
    return gpu.registers_per_sm // (int(c["min_blocks"]) * (tile_of(c).threads + GROUP)) // 8 * 8


def shared_bytes(c: Config) -> int:
    """Shared memory of a block, and what alignment may waste."""
    t = tile_of(c)
    return int(c["stages"]) * (t.m + t.n) * STEP_BYTES + 2048


def slow_tiles(p: Product, c: Config) -> int:
    """Blocks along the slow dimension of the block order."""
    t = tile_of(c)
    return -(-p.m // t.m) if c["order"] == "mn" else tiles_n(p, t)


def tiles_n(p: Product, t: Tile) -> int:
    """Blocks along n."""
    return -(-(spread_over(p.n) if p.constant else p.n) // t.n)


def first_configs(
    p: Product, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...], dtype: str
) -> tuple[Config, ...]:
    """Guesses: tiles from large to small, each with the split of k that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    allowed = {k.name: k.values for k in knobs}
    shapes = (
        (2, 1, 1, 256), (2, 1, 1, 192), (2, 1, 1, 128), (1, 2, 1, 128), (1, 1, 1, 256), (2, 1, 1, 64), (1, 1, 1, 128),
        (1, 1, 1, 64), (1, 1, 1, 32), (1, 1, 1, 16),
    )  # fmt: skip
    found: list[Config] = []
    for groups_m, groups_n, rows, columns in shapes:
        tile: Config = {**base, "groups_m": groups_m, "groups_n": groups_n, "rows": rows, "columns": columns}
        tile["group"] = max(g for g in (1, 2, 4, 8) if slow_tiles(p, tile) % g == 0)
        if columns in allowed["columns"]:
            deep = [{**tile, "stages": s, "split_k": n} for s in (base["stages"], 3) for n in allowed["split_k"]]
            found += cheapest(deep, lambda c: cost(p, gpu, c, dtype), limits)
    return tuple(sorted(found, key=lambda c: cost(p, gpu, c, dtype)))


def cost(p: Product, gpu: Gpu, c: Config, dtype: str) -> float:
    """Rough cycles; see :func:`wpk.kernels.cuda.product.cycles`. Narrow fragments wait for a to be read from shared memory."""
    t, size = tile_of(c), DTYPE_BYTES[dtype]
    resident = resident_blocks(gpu, t.threads, registers(c), shared_bytes(c))
    read = t.threads // GROUP * t.rows * (64 + t.columns) * size
    copied, stages, busy = (t.m + t.n) * size, int(c["stages"]), WARPS * t.threads
    return cycles(p, gpu, Block(t.m, t.n, step_of(dtype), t.split, busy, resident, RATE_BYTES / size, copied, read, 1, stages))


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(
    p: Product, t: Tile, c: Config, dtype: str, result: str, strides: tuple[int, int] | None = None, a_steps: Sequence[Step] = ()
) -> list[Step]:
    """The schedule of a config, for a ``result`` of that dtype. ``strides`` as in :func:`wpk.kernels.cuda.gemm.steps`;
    ``a_steps``: the schedule of ``as``, if another.

    block (tiles, splits of k): thread (warpgroups, their threads): acc = 0; for ko: [copies under way]; acc += wgmma(as, bs);
    epilogue.
    """
    first = "part" if t.split > 1 else "out"
    batch = tuple(f"b{i}" for i in range(len(p.batch)))
    parts = part_axes(t.split)
    instr = wgmma(dtype, t.rows, t.columns, p.trans_a, not p.trans_b)
    columns, size = columns_of(p, t), DTYPE_BYTES[result]
    plan = block_tile(first, batch, columns, c, t.split, 4 if t.split > 1 else size)
    held, loops = columns.accumulators((*parts, *batch))
    plan += [
        ComputeAt("acc", first, "thread", "register"), *held,
        *(Unroll("acc", x) for x in ("ki", *loops)), Tensorize("acc", "ki", instr.name),
        ComputeAt("as", "acc", "ko", "block"), ComputeAt("bs", "acc", "ko", "block"),
        *([Pipeline("acc", "ko", int(c["stages"]), bool(c["fetch"]))] if int(c["stages"]) > 1 else []),
    ]  # fmt: skip
    a_stride, b_stride = strides or row_lengths(p)
    plan += a_steps or staged_tile("as", "m", len(p.a_batch), a_stride, p.trans_a, t.m, t, dtype)
    plan += staged_tile("bs", "n", len(p.b_batch), b_stride, not p.trans_b, t.n, t, dtype)
    return plan + (columns.added(batch, size) if t.split > 1 else [])


def block_tile(stage: str, batch: tuple[str, ...], columns: Columns, c: Config, parts: int, size: int) -> list[Step]:
    """Tiles and splits of k to blocks, ``group`` rows of tiles at a time; warpgroups and their threads to threads."""
    slow, fast = ("mb", "nb") if c["order"] == "mn" else ("nb", "mb")
    split, threads, vector = part_axes(parts), ("mw", "nw", "mp", "mg", "nq"), columns.vector(size)
    held = ("mi", *(x for x in columns.held if x not in vector), "mh")  # what is read for a column serves two rows
    plan: list[Step] = [
        Split(stage, slow, int(c["group"]), "slow_o", "slow_i", "guard"),
        Reorder(stage, (*batch, *split, "slow_o", fast, "slow_i", *threads, *held, *vector)),
    ]
    blocks, block = fuse_all(stage, ("slow_o", fast, "slow_i"), "tile")
    fused, thread = fuse_all(stage, threads, "thread")
    plan += [*blocks, *fused, Bind(stage, block, "block.x", int(c["min_blocks"])), Bind(stage, thread, "thread")]
    plan += [Bind(stage, "ks", "block.y")] if split else []
    if batch:
        fuse, one = fuse_all(stage, batch, "batch")
        plan += [*fuse, Bind(stage, one, "block.z")]
    return [*plan, *(Unroll(stage, x) for x in held), *as_vector(stage, vector)]


def staged_tile(
    stage: str, row: str, batches: int, stride: int, turned: bool, rows: int, t: Tile, dtype: str
) -> list[Step]:
    """All threads copy a tile: rows of k, or (``turned``) panels of 64 elements of m or n with k for rows."""
    outer = (*(f"b{i}" for i in range(batches)), "kb")
    along, other, extent = (row, "ki", rows) if turned else ("ki", row, step_of(dtype))
    nest = copied(stage, outer, (other,), along, width_of(stride, extent, bytes_each=DTYPE_BYTES[dtype]), t.threads)
    lanes = (row, PANEL) if turned else None
    return [*nest, StoreAs(stage, (*outer, row, "ki"), lanes=lanes, swizzle=STEP_BYTES)]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


def multiplied(workload: Workload) -> Product:
    """The product of a workload as its kernel sees it: constants lie along k."""
    p = product_of(workload)
    return replace(p, trans_b=True) if p.constant else p


def as_tf32(matrix: np.ndarray) -> np.ndarray:
    """A matrix of float32 rounded to the bits that tf32 has, to nearest; of another dtype as it is."""
    if matrix.dtype != np.float32:
        return matrix
    return ((matrix.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@dataclass(frozen=True)
class CudaGemmWgmma:
    """Matrix product of ROW matrices by wgmma; see the module's docstring. ``op`` is ``gemm`` or ``matmul``."""

    name: str = "cuda_gemm_wgmma"
    version: int = 1
    op: str = "gemm"
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Operands of one dtype in layout ROW: 16-bit floats, or float32 with ``precision="tf32"``; compute capability 9.0."""
        if workload.op != self.op or gpu_of(target) is None or target.isa != ISA:
            return f"op is {workload.op} for {target.arch} {target.isa}, expected {self.op} for cuda {ISA}"
        dtype = precision_of(workload)
        if dtype is None or dtype != workload.inputs[1].dtype:
            return f"operands {workload.inputs[0]} and {workload.inputs[1]}, expected one dtype of 16 bits, or float32 as tf32"
        reason = unfit(as_float32(workload))
        if reason is None and dtype == "float32" and (multiplied(workload).trans_a or not multiplied(workload).trans_b):
            return "operands of float32 that do not lie along k"
        return reason

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        p, dtype = multiplied(workload), workload.inputs[0].dtype
        return space(p, target.gpu, dtype, (1, 0) if aligned(p, dtype) else (0,))

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        dtype = workload.inputs[0].dtype
        p, t, result = multiplied(workload), tile_of(config), workload.outputs[0].dtype
        e = spread_ends(ends(workload, p), p, "b", dtype) if p.constant else ends(workload, p)
        name = f"{TYPES[dtype][1]}_{workload.op}_wgmma_{t.m}x{t.n}__{target.isa}"
        return Built(lower(schedule(algorithm(p, t, e, dtype), steps(p, t, config, dtype, result)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constant matrices as kernels read them, epilogue operands with the output's dimensions merged."""
        p = multiplied(workload)
        turned = p.trans_b != product_of(workload).trans_b
        own = [i for i in workload.constants if i < 2]
        plain = [
            as_tf32(laid(c, operand_buffers(p)[i].shape, i == 1 and turned)) for i, c in zip(own, constants, strict=False)
        ]
        plain = [*plain[:-1], spread_rows(plain[-1])] if p.constant else plain
        return [*plain, *GpuOperands(workload, 2, p.groups).pack(constants, len(own))]


def matmul() -> CudaGemmWgmma:
    """The family for batched matmul."""
    return CudaGemmWgmma("cuda_matmul_wgmma", op="matmul")
