"""Matrix products on tensor cores by ``mma.sync``: float16, bfloat16, and float32 where the workload allows tf32.

The plan is that of :mod:`wpk.kernels.cuda.gemm`, with another thread tile: a warp has ``rows × columns`` fragments of 16×8,
in which lane ``4 g + q`` owns elements (8 h + g, 2 q + v). So the sum over a step of k of what a thread owns *is* what
one instruction of :mod:`wpk.kernels.instr.cuda` gives it. Tiles in shared memory keep the order of device memory (rows along k,
or along m or n), swizzled where rows are short enough, padded elsewhere; they are copied some steps ahead.

Products of int8 are int32 sums, exact as long as they fit; tensor cores read int8 along k only, so an operand that lies along m
or n is turned on the way (constants before, by ``pack``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Gpu, Target
from wpk.core.tensor import DTYPE_BYTES
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.ir import Cast, Const, Expr, Load
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
    Vectorize,
    schedule,
)
from wpk.kernels.cuda.gemm import cheapest, row_lengths
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
from wpk.kernels.cuda.operands import GpuOperands, as_float32
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
from wpk.kernels.instr.cuda import TYPES, mma
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Constraint, Space

#: bytes of k that one instruction takes of a row
STEP_BYTES = 32
#: bytes of one operand that a multiprocessor multiplies with as many of the other in a cycle, by ``mma.sync``
RATE_BYTES = 2600


@dataclass(frozen=True)
class Tile:
    """The numbers of a config: warps of a block, fragments of a warp, elements of k of a step and of an instruction."""

    warps_m: int
    warps_n: int
    rows: int
    columns: int
    k: int
    step: int
    split: int
    slices: int = 1
    stream: Stream | None = None

    @property
    def m(self) -> int:
        """Rows of a block."""
        return self.warps_m * self.rows * 16

    @property
    def n(self) -> int:
        """Columns of a block."""
        return self.warps_n * self.columns * 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps_m * self.warps_n * self.slices * WARP


def tile_of(c: Config, dtype: str) -> Tile:
    """The tile of a config."""
    size = DTYPE_BYTES[dtype]
    return Tile(
        int(c["warps_m"]), int(c["warps_n"]), int(c["rows"]), int(c["columns"]),
        int(c["bytes_k"]) // size, STEP_BYTES // size, int(c["split_k"]), int(c["slices"]), stream_of(c),
    )  # fmt: skip


# --- THE ALGORITHM ------------------------------------------------------------------------------------------------------


def algorithm(p: Product, t: Tile, e: Ends) -> Algorithm:
    """out[m, n] = epilogue(sum over k of as[k, m] * bs[k, n]), m = ((mb*warps + mw)*rows + mi)*16 + 8*mh + mg,
    n = ((nb*warps + nw)*columns + ni)*8 + 2*nq + nv."""
    batch = batch_axes(p)
    m_axes, m = fragment_axes("m", "bwihg", p.m, (t.warps_m, t.rows, 2, 8))
    n_axes, n = fragment_axes("n", "bwiqv", p.n, (t.warps_n, t.columns, 4, 2))
    extents = m_axes[0].extent * t.m, n_axes[0].extent * t.n
    dtype = e.a((Axis("kb", 1), Axis("ki", 1)), 1).dtype
    result = "int32" if dtype == "int8" else "float32"
    if t.stream:
        made = partial(factors, p, e, extents)
        return streamed(p, e, t.stream, shares(p, t), (m_axes, m), (n_axes, n), t.k, result, made)
    k, at = k_axes(p.k, t.k, t.split, t.slices), tuple(x.var for x in batch)
    stages, product = factors(p, e, extents, Where("", batch, m_axes, n_axes, at, m, n, (k.kb, k.ki), Const(0), k.at))
    return summed(e, stages, product, k, (*batch, *m_axes, *n_axes), (*at, m, n), result)


def factors(p: Product, e: Ends, extents: tuple[int, int], w: Where) -> tuple[list[Stage], Expr]:
    """The operands, padded to ``extents``, and the product of their elements."""
    a, b = replace(e.a(w.k, extents[0]), name=f"as{w.suffix}"), replace(e.b(w.k, extents[1]), name=f"bs{w.suffix}")
    k = (w.first + w.at[0], w.at[1])
    x: Expr = Load(a.name, (*batch_at(w.batch, p.a_batch), *k, w.m))
    y: Expr = Load(b.name, (*batch_at(w.batch, p.b_batch), *k, w.n))
    if a.dtype == "int8":
        x, y = Cast("int32", x), Cast("int32", y)
    return [a, b], x * y


def shares(p: Product, t: Tile) -> Shares:
    """How blocks share the product's last tiles. Raises InvalidConfig where they have none to share."""
    assert t.stream is not None
    return some_shares(p, t.m, t.n, t.k, t.stream.slots)


def fragment_axes(name: str, letters: str, extent: int, inner: tuple[int, ...]) -> tuple[tuple[Axis, ...], Expr]:
    """Axes from blocks to what a lane owns, and the index they make."""
    extents = (-(-extent // prod(inner)), *inner)
    axes = tuple(Axis(f"{name}{x}", n) for x, n in zip(letters, extents, strict=True))
    index: Expr = axes[0].var
    for axis in axes[1:]:
        index = index * axis.extent + axis.var
    return axes, index


# --- THE SPACE ----------------------------------------------------------------------------------------------------------


def space(p: Product, dtype: str, gpu: Gpu, stream: bool = False) -> Space:
    """Warps, fragments of a warp, depth and split of k, stages under way, swizzle, block order, occupancy.

    With ``stream``, blocks may share the tiles of an underfull last wave: ``min_blocks`` of so many multiprocessors.
    """
    row_bytes = p.k * DTYPE_BYTES[dtype]
    knobs: tuple[Knob, ...] = (
        Ordered("warps_m", (1, 2, 4), 2),
        Ordered("warps_n", (1, 2, 4), 2),
        Ordered("rows", (1, 2, 4), 2),
        Ordered("columns", (1, 2, 4, 8, 16), 4),
        Ordered("bytes_k", tuple(b for b in (32, 64, 128, 256) if b == 32 or b < 2 * row_bytes), 64 if row_bytes > 32 else 32),
        Ordered("split_k", tuple(s for s in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if s == 1 or s * 64 <= row_bytes), 1),
        Ordered("slices", tuple(s for s in (1, 2, 4, 8) if s == 1 or s * 64 <= row_bytes), 1),
        Ordered("stages", (1, 2, 3, 4, 5, 6), 3),
        Choice("swizzle", (True, False), True),
        Choice("order", ("mn", "nm"), "nm"),
        Ordered("group", (1, 2, 4, 8), 1),
        Ordered("min_blocks", (1, 2, 3, 4), 1),
        *((Ordered("stream", (0, gpu.sms), 0),) if stream else ()),
    )  # fmt: skip
    limits = (*limits_of(p, dtype, gpu), *((lambda c: shared_well(p, dtype, c),) if stream else ()))
    return Space(knobs, limits, first_configs(p, dtype, gpu, knobs, limits))


def limits_of(p: Product, dtype: str, gpu: Gpu) -> tuple[Constraint, ...]:
    """What makes a config buildable, and not plainly wasteful."""
    return (
        lambda c: registers(c) <= MOST_REGISTERS,
        lambda c: tile_of(c, dtype).threads <= 512,
        lambda c: int(c["min_blocks"]) * tile_of(c, dtype).threads * registers(c) <= gpu.registers_per_sm,
        lambda c: int(c["warps_m"]) * int(c["rows"]) * 16 < max(2 * p.m, 17),
        lambda c: int(c["warps_n"]) * int(c["columns"]) * 8 < max(2 * p.n, 9),
        lambda c: int(c["min_blocks"]) * shared_bytes(c) <= min(gpu.shared_per_block, gpu.shared_per_sm),
        lambda c: parts_of(c) * int(c["bytes_k"]) <= p.k * DTYPE_BYTES[dtype] or parts_of(c) == 1,
        lambda c: slow_tiles(p, c) % int(c["group"]) == 0,
    )  # fmt: skip


def shared_well(p: Product, dtype: str, c: Config) -> bool:
    """Where the last tiles are shared: is k in no other parts, and the last wave underfull?"""
    if c["stream"] == 0:
        return True
    if parts_of(c) > 1:
        return False
    t = tile_of(c, dtype)
    return t.stream is not None and shares_of(p, t.m, t.n, t.k, t.stream.slots) is not None


def registers(c: Config) -> int:
    """Registers of a thread: accumulators, fragments of a step, addresses."""
    rows, columns = int(c["rows"]), int(c["columns"])
    return 4 * rows * columns + 4 * rows + 2 * columns + 40


def shared_bytes(c: Config) -> int:
    """Shared memory of a block, with padding at its worst."""
    m, n = 16 * int(c["rows"]) * int(c["warps_m"]), 8 * int(c["columns"]) * int(c["warps_n"])
    staged = int(c["stages"]) * ((m + n) * (int(c["bytes_k"]) + 32) + 32 * int(c["bytes_k"]) + 256)
    return int(c["slices"]) * (staged + (4 * m * n if int(c["slices"]) > 1 else 0))


def parts_of(c: Config) -> int:
    """Parts of k, of all blocks and in them."""
    return int(c["split_k"]) * int(c["slices"])


def slow_tiles(p: Product, c: Config) -> int:
    """Blocks along the slow dimension of the block order."""
    if c["order"] == "mn":
        return -(-p.m // (16 * int(c["rows"]) * int(c["warps_m"])))
    return -(-p.n // (8 * int(c["columns"]) * int(c["warps_n"])))


def first_configs(
    p: Product, dtype: str, gpu: Gpu, knobs: tuple[Knob, ...], limits: tuple[Constraint, ...]
) -> tuple[Config, ...]:
    """Guesses: tiles from large to small, each with the parts of k that shall take least time; best first."""
    base: Config = {k.name: k.default for k in knobs}
    allowed = {k.name: k.values for k in knobs}
    deep = max(int(b) for b in allowed["bytes_k"] if int(b) <= 128)
    shapes = (
        (2, 4, 4, 8), (2, 2, 4, 8), (2, 2, 4, 4), (2, 2, 2, 4), (2, 2, 2, 2),
        (1, 4, 2, 2), (1, 2, 1, 4), (1, 2, 1, 2), (1, 1, 1, 1),
    )  # fmt: skip
    found: list[Config] = []
    for warps_m, warps_n, rows, columns in shapes:
        tile: Config = {
            **base, "warps_m": warps_m, "warps_n": warps_n, "rows": rows, "columns": columns, "bytes_k": deep,
        }  # fmt: skip
        tile["stages"] = 4 if shared_bytes({**tile, "slices": 1}) <= gpu.shared_per_sm // 3 else 3
        parts = [{**tile, "split_k": s, "slices": n} for s in allowed["split_k"] for n in allowed["slices"]]
        parts += [{**tile, "stream": s, "min_blocks": n} for s in allowed.get("stream", ()) if s for n in allowed["min_blocks"]]
        parts = [c for c in parts if tile_of(c, dtype).threads <= 256]
        found += cheapest(parts, lambda c: cost(p, dtype, gpu, c), limits)
    return tuple(sorted(found, key=lambda c: cost(p, dtype, gpu, c)))


def cost(p: Product, dtype: str, gpu: Gpu, c: Config) -> float:
    """Rough cycles; see :func:`wpk.kernels.cuda.product.cycles`."""
    t, size = tile_of(c, dtype), DTYPE_BYTES[dtype]
    resident = resident_blocks(gpu, t.threads, registers(c), shared_bytes(c))
    read = t.threads // WARP * (16 * t.rows + 8 * t.columns) * size
    copied, stages = (t.m + t.n) * size, int(c["stages"])
    rate = RATE_BYTES / size
    b = Block(
        t.m, t.n, t.k * t.slices, t.split, t.threads, resident, rate, copied, read // t.slices, t.slices, stages
    )  # fmt: skip
    return stream_cycles(gpu, b, shares(p, t)) if t.stream else cycles(p, gpu, b)


# --- THE SCHEDULE -------------------------------------------------------------------------------------------------------


def steps(p: Product, t: Tile, c: Config, dtype: str, strides: tuple[int, int] | None = None) -> list[Step]:
    """The schedule of a config. ``strides`` as in :func:`wpk.kernels.cuda.gemm.steps`.

    block (tiles, splits of k): thread (warps, lanes): acc = 0; for ko: [copies under way]; for kk: acc += mma(as, bs); epilogue.
    """
    accumulate = partial(accumulated, p, t, c, dtype, strides or row_lengths(p))
    if t.stream:
        place = ("tile", "mw", "mi", "mh", "mg", "nw", "ni", "nq")
        return streamed_steps(shares(p, t), int(c["min_blocks"]), of_threads, accumulate, place)
    first = "part" if t.split > 1 else "out"
    batch = tuple(f"b{i}" for i in range(len(p.batch)))
    plan = block_tile(first, batch, t, c)
    if t.slices > 1:
        stored = ("mb", "nb", "mw", "nw", "mi", "mh", "ni", "mg", "nq", "nv")
        outer = (*part_axes(t.split), *batch)
        plan += joined_slices(first, outer, (), ("mw", "nw", "mg", "nq"), ("mi", "mh", "ni"), stored)
    plan += accumulate("", ("slice" if t.slices > 1 else first, "thread"), (*part_axes(t.split, t.slices), *batch, "mb", "nb"))
    return plan + (added_parts((*batch, "mb", "mw", "mi", "mh", "mg", "nb", "nw", "ni", "nq")) if t.split > 1 else [])


def accumulated(
    p: Product, t: Tile, c: Config, dtype: str, strides: tuple[int, int], suffix: str, at: tuple[str, str], outer: tuple[str, ...]
) -> list[Step]:
    """A thread's sums, made at a loop of a stage: steps of k, some copied ahead. ``outer`` are the loops around a tile."""
    acc, a, b = f"acc{suffix}", f"as{suffix}", f"bs{suffix}"
    by_k, stages = dtype == "int8", int(c["stages"])
    instr = mma(dtype, t.rows, t.columns, p.trans_a and not by_k, not p.trans_b and not by_k)
    return [
        ComputeAt(acc, *at, "register"),
        StoreAs(acc, (*outer, "mw", "mg", "nw", "nq", "mi", "ni", "mh", "nv")),
        Split(acc, "ki", t.step, "kk", "kl", "guard"),
        Reorder(acc, (*outer, "mw", "mg", "nw", "nq", "ko", "kk", "kl", "mi", "mh", "ni", "nv")),
        *(Unroll(acc, x) for x in ("kk", "mi", "mh", "ni", "nv")), Tensorize(acc, "kl", instr.name),
        ComputeAt(a, acc, "ko", "block"), ComputeAt(b, acc, "ko", "block"),
        *([Pipeline(acc, "ko", stages)] if stages > 1 else []),
        *staged_tile(a, "m", len(p.a_batch), strides[0], p.trans_a, t.m, t, c, dtype),
        *staged_tile(b, "n", len(p.b_batch), strides[1], not p.trans_b, t.n, t, c, dtype),
    ]  # fmt: skip


def block_tile(stage: str, batch: tuple[str, ...], t: Tile, c: Config) -> list[Step]:
    """Tiles and splits of k to blocks, ``group`` rows of tiles at a time; warps and lanes to threads."""
    slow, fast = ("mb", "nb") if c["order"] == "mn" else ("nb", "mb")
    split = part_axes(t.split)
    plan: list[Step] = [
        Split(stage, slow, int(c["group"]), "slow_o", "slow_i", "guard"),
        *of_threads(stage, (*batch, *split, "slow_o", fast, "slow_i")),
    ]
    blocks, block = fuse_all(stage, ("slow_o", fast, "slow_i"), "tile")
    plan += [*blocks, Bind(stage, block, "block.x", int(c["min_blocks"]))]
    plan += [Bind(stage, "ks", "block.y")] if split else []
    if batch:
        fuse, one = fuse_all(stage, batch, "batch")
        plan += [*fuse, Bind(stage, one, "block.z")]
    return plan


def of_threads(stage: str, blocks: tuple[str, ...], pieces: tuple[str, ...] = ()) -> list[Step]:
    """Warps and lanes to threads, inside of ``blocks``; each thread does ``pieces`` one after another."""
    fuse, thread = fuse_all(stage, ("mw", "nw", "mg", "nq"), "thread")
    return [
        Reorder(stage, (*blocks, "mw", "nw", "mg", "nq", *pieces, "mi", "mh", "ni", "nv")),
        *fuse, Bind(stage, thread, "thread"), *(Unroll(stage, x) for x in ("mi", "mh", "ni")), Vectorize(stage, "nv"),
    ]  # fmt: skip


def staged_tile(
    stage: str, row: str, batches: int, stride: int, turned: bool, rows: int, t: Tile, c: Config, dtype: str
) -> list[Step]:
    """All threads copy a tile in the order of device memory: rows of k, or (``turned``) rows of m or n (int8 kept along k)."""
    outer = (*(f"b{i}" for i in range(batches)), "kb")
    first, rest = (outer[:-1], ("kb",)) if t.slices > 1 else (outer, ())
    size = DTYPE_BYTES[dtype]
    along, other, extent = (row, "ki", rows) if turned else ("ki", row, t.k)
    by_words = turned and size == 4  # read element by element: eight columns of four rows
    width = width_of(stride, extent, bytes_each=size)
    nest = copied(stage, first, (*rest, other), along, width, t.threads)
    if turned and size == 1:
        along, other, extent = other, along, t.k
    swizzle = extent * size if c["swizzle"] and extent * size in (32, 64, 128) and not by_words else 0
    pad = 0 if swizzle else 8 if by_words else 16 // size
    return [*nest, StoreAs(stage, (*outer, other, along), pad=(along, pad) if pad else None, swizzle=swizzle)]


# --- THE FAMILY ---------------------------------------------------------------------------------------------------------


def precision_of(workload: Workload) -> str | None:
    """The dtype that tensor cores multiply for a workload, None where it is strict float32."""
    dtype = workload.inputs[0].dtype
    if dtype == "float32":
        return "float32" if dict(workload.attrs).get("precision") == "tf32" else None
    return dtype if dtype in TYPES and dtype != "int8" else None


def unfit_int8(workload: Workload) -> str | None:
    """Why a product of int8 cannot be built, or None: its sums are the output, or what an epilogue makes float32 of."""
    result = "int32" if workload.epilogue is None else "float32"
    if workload.outputs[0].dtype != result:
        return f"output {workload.outputs[0]} of an int8 product, expected {result} here"
    wide = tuple(replace(t, dtype="float32") for t in workload.inputs[:2])
    output = replace(workload.outputs[0], dtype="float32")
    return unfit(as_float32(replace(workload, inputs=(*wide, *workload.inputs[2:]), outputs=(output,))))


def multiplied(workload: Workload) -> Product:
    """The product of a workload as its kernel sees it: int8 constants lie along k."""
    p = product_of(workload)
    return replace(p, trans_b=True) if workload.inputs[1].dtype == "int8" and p.constant else p


def laid(matrix: np.ndarray, shape: tuple[int, ...], turned: bool) -> np.ndarray:
    """A constant operand as the kernel reads it, in ``shape``; a vector is a matrix either way."""
    return np.ascontiguousarray(np.swapaxes(matrix, -1, -2) if turned and matrix.ndim > 1 else matrix).reshape(shape)


@dataclass(frozen=True)
class CudaGemmMma:
    """Matrix product of ROW matrices on tensor cores; see the module's docstring. ``op`` is ``gemm`` or ``matmul``."""

    name: str = "cuda_gemm_mma"
    version: int = 2
    op: str = "gemm"
    packing: tuple[str, ...] = ()

    def matches(self, workload: Workload, target: Target) -> str | None:
        """Operands of one dtype in layout ROW: 16-bit floats, float32 with ``precision="tf32"``, or int8; on a GPU."""
        if workload.op != self.op or gpu_of(target) is None:
            return f"op is {workload.op} for {target.arch}, expected {self.op} for cuda"
        dtype = workload.inputs[0].dtype
        if precision_of(workload) is None and dtype != "int8":
            return f"operand {workload.inputs[0]}: tensor cores take float16, bfloat16, int8, or float32 with precision tf32"
        if dtype != workload.inputs[1].dtype:
            return f"operands {workload.inputs[0]} and {workload.inputs[1]} differ in dtype"
        return unfit_int8(workload) if dtype == "int8" else unfit(as_float32(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        """See :func:`space`."""
        assert target.gpu is not None
        return space(multiplied(workload), workload.inputs[0].dtype, target.gpu, stream=True)

    def build(self, workload: Workload, config: Config, target: Target) -> Built:
        """Algorithm + schedule → kernel. Raises InvalidConfig."""
        dtype = workload.inputs[0].dtype
        p, t = multiplied(workload), tile_of(config, dtype)
        name = f"{TYPES[dtype][1]}_{workload.op}_mma_{t.m}x{t.n}x{t.k}__{target.isa}"
        return Built(lower(schedule(algorithm(p, t, ends(workload, p)), steps(p, t, config, dtype)), name), target.isa)

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants as they are (an int8 matrix along k), epilogue operands with the output's dimensions merged."""
        p = multiplied(workload)
        turned = p.trans_b != product_of(workload).trans_b
        own = [i for i in workload.constants if i < 2]
        plain = [
            laid(c, operand_buffers(p)[i].shape, i == 1 and turned) for i, c in zip(own, constants, strict=False)
        ]
        return [*plain, *GpuOperands(workload, 2, p.groups).pack(constants, len(own))]


def matmul() -> CudaGemmMma:
    """The family for batched matmul."""
    return CudaGemmMma("cuda_matmul_mma", op="matmul")
