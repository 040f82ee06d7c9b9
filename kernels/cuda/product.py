"""Matrix products for GPUs as algorithms: operands padded to whole tiles, the sum in parts, the output.

What a product reads and writes (:class:`Ends`) is apart from how it runs, so that convolutions share the schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from wpk.core.target import Gpu
from wpk.core.workload import Workload
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.ir import Buffer, Cast, Const, Expr, Load, Select
from wpk.kernels.cuda.operands import GpuOperands
from wpk.kernels.epilogue import ZERO
from wpk.kernels.gemm import Product


@dataclass(frozen=True)
class Ends:
    """Where the operands of a product come from and where it goes.

    ``a`` and ``b`` are padded operands ``as`` and ``bs`` [*batch, kb, ki, row], given the axes of k and the padded extent of
    rows. ``out`` makes the stage that writes the sum at (*batch, m, n), over the axes given. ``before`` are stages they read.
    """

    name: str
    params: tuple[Buffer, ...]
    a: Callable[[tuple[Axis, Axis], int], Stage]
    b: Callable[[tuple[Axis, Axis], int], Stage]
    out: Callable[[Expr, tuple[Expr, ...], tuple[Axis, ...]], Stage]
    before: tuple[Stage, ...] = ()


def ends(workload: Workload, p: Product) -> Ends:
    """The ends of a gemm or matmul workload. Sums of int8 products are int32, which an epilogue sees as float32."""
    dtype, result = workload.inputs[0].dtype, workload.outputs[0].dtype
    batch = batch_axes(p)
    operands = GpuOperands(workload, 2, p.groups)

    def out(acc: Expr, at: tuple[Expr, ...], place: tuple[Axis, ...]) -> Stage:
        where = (at[-2] < p.m) & (at[-1] < p.n)
        acc = Cast("float32", acc) if dtype == "int8" and result != "int32" else acc
        return Stage("out", place, operands.value(acc, at), None, at, where, result)

    a, b = operand_buffers(p, dtype)
    return Ends(
        workload.op, (a, b, *operands.buffers(), Buffer("out", (*p.batch, p.m, p.n), result, access="out")),
        lambda k, rows: staged("as", "a", batch, p.a_batch, k, ("m", p.m, rows), p.k, p.trans_a, dtype),
        lambda k, rows: staged("bs", "b", batch, p.b_batch, k, ("n", p.n, rows), p.k, not p.trans_b, dtype),
        out,
    )  # fmt: skip


def batch_axes(p: Product) -> tuple[Axis, ...]:
    """The axes b0, b1, … of a product's batch dimensions."""
    return tuple(Axis(f"b{i}", n) for i, n in enumerate(p.batch))


@dataclass(frozen=True)
class Steps:
    """Axes of k: splits, slices of a block, steps of a slice, what it takes of k, steps of all; ``at``: (step of all, element).

    Slices of a block take turns, so that at each step of theirs they read one piece of k together.
    """

    ks: Axis
    kp: Axis
    ko: Axis
    ki: Axis
    kb: Axis
    at: tuple[Expr, Expr]


def k_axes(k: int, tile: int, split: int, slices: int = 1) -> Steps:
    """The axes of ``k`` by steps of ``tile`` in ``split`` parts, each of as many ``slices``."""
    steps = -(-k // (tile * split * slices))
    ks, kp, ko, ki = Axis("ks", split), Axis("kp", slices), Axis("ko", steps), Axis("ki", tile)
    step = ks.var * steps + ko.var if split > 1 else ko.var
    at = step * slices + kp.var if slices > 1 else step
    return Steps(ks, kp, ko, ki, Axis("kb", split * steps * slices), (at, ki.var))


def summed(
    e: Ends, stages: list[Stage], product: Expr, k: Steps, place: tuple[Axis, ...], at: tuple[Expr, ...],
    dtype: str = "float32",
) -> Algorithm:  # fmt: skip
    """``stages``, the sum of ``product`` over k (of ``dtype``), and the output.

    Slices of k are added by a block (``slice`` → ``joint``), splits by a second kernel (``part`` → ``total``).
    """
    split, slices = (k.ks,) if k.ks.extent > 1 else (), (k.kp,) if k.kp.extent > 1 else ()
    stages = [*e.before, *stages, Stage("acc", (*split, *slices, *place), product, Reduce("+", (k.ko, k.ki)), dtype=dtype)]
    last = "acc"
    if slices:
        stages.append(_same("slice", last, (*split, *slices, *place), dtype))
        stages.append(_same("joint", "slice", (*split, *slices, *place), dtype, k.kp))
        last = "joint"
    if split:
        stages.append(_same("part", last, (*split, *place), dtype))
        stages.append(_same("total", "part", (*split, *place), dtype, k.ks))
        last = "total"
    acc = Load(last, tuple(x.var for x in place))
    return Algorithm(e.name, e.params, (*stages, e.out(acc, at, place)))


def _same(name: str, source: str, axes: tuple[Axis, ...], dtype: str, over: Axis | None = None) -> Stage:
    """What another stage has along the same axes, added over one of them."""
    value = Load(source, tuple(x.var for x in axes))
    kept = tuple(x for x in axes if x is not over)
    return Stage(name, kept, value, Reduce("+", (over,)) if over else None, dtype=dtype)


def operand_buffers(p: Product, dtype: str = "float32") -> tuple[Buffer, Buffer]:
    """The two matrices as they lie in memory."""
    a = (p.k, p.m) if p.trans_a else (p.m, p.k)
    b = (p.n, p.k) if p.trans_b else (p.k, p.n)
    return Buffer("a", (*p.a_batch, *a), dtype), Buffer("b", (*p.b_batch, *b), dtype)


@dataclass(frozen=True)
class Where:
    """Where a main loop reads. ``outer``, ``rows``, ``columns``: its axes, from blocks to what a thread has; ``batch``, ``m``,
    ``n``: indices of the element that they make. ``k``: axes of the operands' steps of k and of a step's elements; the loop
    begins at step ``first`` and is ``at`` (step, element) from there. What its stages are called ends in ``suffix``.
    """

    suffix: str
    outer: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    batch: tuple[Expr, ...]
    m: Expr
    n: Expr
    k: tuple[Axis, Axis]
    first: Expr
    at: tuple[Expr, Expr]


def batch_index(batch: tuple[Axis, ...], extents: tuple[int, ...]) -> tuple[Expr, ...]:
    """Indices of an operand whose batch dimensions may broadcast."""
    return batch_at(tuple(x.var for x in batch), extents)


def batch_at(batch: tuple[Expr, ...], extents: tuple[int, ...]) -> tuple[Expr, ...]:
    """The same, of any element of the batch."""
    return tuple(x if n > 1 else Const(0) for x, n in zip(batch, extents, strict=True))


def staged(
    name: str, tensor: str, batch: tuple[Axis, ...], extents: tuple[int, ...], k_axes: tuple[Axis, Axis],
    row: tuple[str, int, int], k_count: int, k_first: bool, dtype: str = "float32",
) -> Stage:  # fmt: skip
    """``name[batch, kb, ki, row]`` = the tensor's element, 0 outside. ``row`` is (axis, extent, padded extent)."""
    own = tuple(Axis(x.name, n) for x, n in zip(batch, extents, strict=True))
    axis = Axis(row[0], row[2])
    k = k_axes[0].var * k_axes[1].extent + k_axes[1].var
    pair = (k, axis.var) if k_first else (axis.var, k)
    value = Load(tensor, (*(x.var for x in own), *pair))
    inside = (axis.var < row[1]) & (k < k_count)
    zero = Const(0, dtype) if dtype == "int8" else ZERO
    return Stage(name, (*own, *k_axes, axis), Select(inside, value, zero), dtype=dtype)


@dataclass(frozen=True)
class Block:
    """A block of a product, as its time is estimated: tile (``k``: a step of all slices), splits, threads; blocks held at once.

    ``rate``: multiply-adds of a multiprocessor in a cycle. Bytes for each k: ``copied`` to shared memory, ``read`` from it.
    """

    m: int
    n: int
    k: int
    split: int
    threads: int
    resident: int
    rate: float
    copied: int
    read: int
    slices: int
    stages: int


def cycles(p: Product, gpu: Gpu, b: Block) -> float:
    """Rough cycles of a product: those of its blocks, and of the sum of the parts. A kernel starts in about 3000."""
    tiles = prod(p.batch) * -(-p.m // b.m) * -(-p.n // b.n)
    busy = busy_cycles(gpu, b, -(-tiles * b.split // gpu.sms), -(-p.k // (b.k * b.split)))
    parts = 8 * b.split * prod(p.batch) * p.m * p.n / (30 * gpu.sms) + 3000
    return busy + (parts if b.split > 1 else 0)


def busy_cycles(gpu: Gpu, b: Block, mine: int, steps: int) -> float:
    """Rough cycles of the busiest multiprocessor, with ``mine`` blocks of ``steps`` of k: arithmetic or traffic, and waiting.

    It takes some 40 bytes a cycle from L2, 700 cycles after asking, and 128 from shared memory; its schedulers idle less the
    more warps they have.
    """
    together, rounds = min(mine, b.resident), -(-mine // b.resident)
    warps = together * b.threads / 128
    work = max(b.m * b.n / b.rate * (1 + 1 / warps), b.copied / 40, b.read / 128)
    waiting = steps * 700 / max(b.stages - 1, 0.5)
    joined = mine * (b.slices * b.m * b.n / 16 + 1000) if b.slices > 1 else 0
    return rounds * (1500 + max(together * steps * b.k * work, waiting)) + joined


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that a multiprocessor holds at once, one at least."""
    most = (gpu.threads_per_sm // threads, gpu.registers_per_sm // (threads * registers), gpu.shared_per_sm // shared_bytes)
    return max(min(most), 1)


__all__ = [
    "Block", "Ends", "Steps", "Where", "batch_at", "batch_axes", "batch_index", "busy_cycles", "cycles", "ends", "k_axes",
    "operand_buffers", "resident_blocks", "staged", "summed",
]  # fmt: skip
