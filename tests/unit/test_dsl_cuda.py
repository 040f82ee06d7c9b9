"""CUDA schedules: what may be bound, where barriers come, what the text does in the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dsl_cuda_check import compiled, emulated, interpreted

from wpk.core.errors import InternalError, InvalidConfig
from wpk.cuda.emulator import EmulationError
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.barriers import BarrierError
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.ir import Alloc, Barrier, Buffer, Const, For, If, Kernel, Load, Stmt, Store, Var
from wpk.dsl.lower import lower
from wpk.dsl.printer import show
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Fuse,
    Reorder,
    RFactor,
    ScheduleError,
    Split,
    Step,
    Vectorize,
    schedule,
)
from wpk.dsl.verify import verify


def row_sums(rows: int, n: int) -> Algorithm:
    """out[r] = sum of x[r, :]."""
    r, k = Axis("r", rows), Axis("k", n)
    total = Stage("total", (r,), Load("x", (r.var, k.var)), Reduce("+", (k,)))
    out = Stage("out", (r,), Load("total", (r.var,)))
    return Algorithm("row_sums", (Buffer("x", (rows, n)), Buffer("out", (rows,), access="out")), (total, out))


#: a block a row: partial sums by threads in shared memory, then their sum in order
ACROSS_THREADS: list[Step] = [
    RFactor("total", "k", 32, "part"),
    Bind("out", "r", "block.x"),
    ComputeAt("total", "out", "r", "register"),
    ComputeAt("part", "out", "r", "block"),
    Bind("part", "k_o", "thread"),
]


def reversed_rows(rows: int, n: int) -> Algorithm:
    """out[r, i] = 2 x[r, n-1-i] by way of a stage: every thread reads what another one wrote."""
    r, i = Axis("r", rows), Axis("i", n)
    mid = Stage("mid", (r, i), Load("x", (r.var, i.var)) * 2.0)
    out = Stage("out", (r, i), Load("mid", (r.var, Const(n - 1) - i.var)))
    params = (Buffer("x", (rows, n)), Buffer("out", (rows, n), access="out"))
    return Algorithm("reversed_rows", params, (mid, out))


REVERSED: list[Step] = [
    Split("out", "r", 2, "b", "s", "guard"),
    Bind("out", "b", "block.x"), Bind("out", "i", "thread"),
    ComputeAt("mid", "out", "s", "block"), Bind("mid", "i", "thread"),
]  # fmt: skip


def barriers(stmts: tuple[Stmt, ...]) -> int:
    return sum(
        1 if isinstance(s, Barrier) else barriers(s.body) if isinstance(s, For | If | Alloc) else 0 for s in stmts
    )


def without_barriers(stmts: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    kept = (s for s in stmts if not isinstance(s, Barrier))
    return tuple(replace(s, body=without_barriers(s.body)) if isinstance(s, For | If | Alloc) else s for s in kept)


def test_a_reduction_across_threads() -> None:
    kernel = lower(schedule(row_sums(3, 2048), ACROSS_THREADS))
    x = np.random.default_rng(0).normal(size=(3, 2048)).astype(np.float32)
    np.testing.assert_allclose(interpreted(kernel, [x]), x.sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(emulated(kernel, [x]), interpreted(kernel, [x]))
    assert barriers(kernel.body) == 1
    assert all(r.spill_bytes == 0 for r in compiled(kernel).values())


def test_threads_wait_after_writing_and_before_writing_again() -> None:
    """Once in front of the copy (the iteration before may still read), once behind it."""
    kernel = lower(schedule(reversed_rows(8, 64), [*REVERSED, Reorder("out", ("b", "s", "i"))]))
    x = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    np.testing.assert_array_equal(emulated(kernel, [x]), 2 * x[:, ::-1])
    assert barriers(kernel.body) == 2


def test_the_emulator_sees_a_missing_barrier() -> None:
    kernel = lower(schedule(reversed_rows(8, 64), [*REVERSED, Reorder("out", ("b", "s", "i"))]))
    x = np.ones((8, 64), np.float32)
    with pytest.raises(EmulationError, match=r"race|unwritten"):
        emulated(replace(kernel, body=without_barriers(kernel.body)), [x])


def test_no_barrier_without_shared_memory() -> None:
    plain = [Bind("out", "r", "block.x"), Bind("out", "i", "thread"), ComputeAt("mid", "out", "i", "register")]
    assert barriers(lower(schedule(reversed_rows(4, 8), plain)).body) == 0


def test_a_collective_in_a_loop_that_not_all_threads_run_is_refused() -> None:
    steps: list[Step] = [
        Bind("out", "r", "block.x"), Split("out", "i", 32, "t", "s", "guard"), Bind("out", "t", "thread"),
        ComputeAt("mid", "out", "s", "block"), Bind("mid", "i", "thread"), Split("mid", "i", 1, "io", "ii"),
    ]  # fmt: skip
    with pytest.raises(InvalidConfig):
        lower(schedule(reversed_rows(4, 64), steps))
    two = [Bind("out", "r", "block.x"), Split("out", "i", 32, "t", "s", "guard"), Bind("out", "t", "thread"),
           ComputeAt("mid", "out", "t", "block"), Bind("mid", "i", "thread")]  # fmt: skip
    with pytest.raises(BarrierError, match="2 of the block's 64 threads"):
        lower(schedule(reversed_rows(4, 64), two))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Bind("total", "k", "thread"), "carries a reduction"),
        (Bind("out", "q", "thread"), "no such loop"),
        (Bind("out", "r", "vector"), "expected blocks or thread"),
        (Bind("out", "r", "thread", 2), "min_blocks belongs to a block loop"),
    ],
)
def test_bind_refuses(step: Step, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule(row_sums(4, 8), [step])


def test_a_stage_inside_another_has_no_blocks() -> None:
    with pytest.raises(ScheduleError, match="inside another"):
        schedule(row_sums(4, 8), [ComputeAt("total", "out", "r", "register"), Bind("total", "r", "block.x")])
    with pytest.raises(ScheduleError, match=r"has a block\.x loop"):
        schedule(row_sums(4, 8), [Bind("total", "r", "block.x"), ComputeAt("total", "out", "r", "register")])


def _collective(value: Load) -> Kernel:
    """Threads in which all threads together store ``value``."""
    inner = For("u", Const(0), Const(4), "thread", (Store("s", (Var("u"),), value),))
    read = Store("y", (Var("t"),), Load("s", (Var("t"),)))
    register = Alloc(Buffer("r", (1,), scope="register"), (Store("r", (Const(0),), Const(1.0, "float32")), inner, read))
    outer = For("t", Const(0), Const(4), "thread", (Alloc(Buffer("s", (4,), scope="block"), (register,)),))
    return Kernel("collective", (Buffer("x", (4,)), Buffer("y", (4,), access="out")), (outer,))


def test_what_all_threads_make_together_knows_no_single_thread() -> None:
    verify(_collective(Load("x", (Var("u"),))))
    with pytest.raises(InternalError, match="variable t of one thread"):
        verify(_collective(Load("x", (Var("t"),))))
    with pytest.raises(InternalError, match="buffer r of one thread"):
        verify(_collective(Load("r", (Const(0),))))


@pytest.mark.parametrize("count", [1025, 4096])
def test_too_many_threads(count: int) -> None:
    kernel = lower(schedule(row_sums(count, 4), [ComputeAt("total", "out", "r", "register"), Bind("out", "r", "thread")]))
    with pytest.raises(InternalError, match="a block has 1024 threads"):
        verify(kernel)


@pytest.mark.parametrize(("n", "width", "wide"), [(96, 4, True), (94, 2, True), (94, 4, False), (93, 4, False)])
def test_vectors_where_alignment_and_the_guard_allow(n: int, width: int, wide: bool) -> None:
    r, i = Axis("r", 5), Axis("i", n)
    out = Stage("out", (r, i), Load("x", (r.var, i.var)) + 1.0)
    algorithm = Algorithm("plus", (Buffer("x", (5, n)), Buffer("out", (5, n), access="out")), (out,))
    steps: list[Step] = [
        Split("out", "i", width, "o", "v", "guard"), Fuse("out", "r", "o", "f"), Split("out", "f", 32, "b", "t", "guard"),
        Bind("out", "b", "block.x"), Bind("out", "t", "thread"), Vectorize("out", "v"),
    ]  # fmt: skip
    kernel = lower(schedule(algorithm, steps))
    x = np.random.default_rng(2).normal(size=(5, n)).astype(np.float32)
    np.testing.assert_array_equal(emulated(kernel, [x]), x + 1)
    assert (f"f32x{width} *)" in emit(kernel, "sm_80").text) == wide


def test_text_and_printed_ir_name_the_bindings() -> None:
    kernel = lower(schedule(row_sums(4, 64), ACROSS_THREADS))
    assert "for part_k_o in 0..2 thread:" in show(kernel)
    source = emit(kernel, "sm_90a")
    assert source == emit(kernel, "sm_90a")
    assert source.text.startswith('#include "wpk_device.cuh"')
    assert source.launches[0].grid == (4, 1, 1)
    assert source.launches[0].block == (2, 1, 1)
