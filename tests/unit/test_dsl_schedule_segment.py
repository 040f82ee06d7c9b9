"""Loops in segments, axes kept whole, and several stages that write one output."""

from __future__ import annotations

import numpy as np
import pytest

from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.interp import run
from wpk.dsl.ir import Alloc, Buffer, Const, For, If, Kernel, Load, Select, Stmt, Store, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    ComputeAt,
    Parallel,
    ScheduleError,
    Segment,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.dsl.verify import verify

ZERO = Const(0.0, "float32")


def neighbours(n: int, reach: int = 1) -> Algorithm:
    """out[i] = sum of x[i - reach .. i + reach], zero outside."""
    i, k = Axis("i", n), Axis("k", 2 * reach + 1)
    at = i.var + k.var - reach
    inside = (wrap(-1) < at) & (at < n)
    acc = Stage("acc", (i,), Select(inside, Load("x", (at,)), ZERO), Reduce("+", (k,)))
    out = Stage("out", (i,), Load("acc", (i.var,)))
    return Algorithm("neighbours", (Buffer("x", (n,)), Buffer("out", (n,), access="out")), (acc, out))


def compute(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """The interpreted output."""
    verify(kernel)
    out = np.full(kernel.params[-1].shape, np.nan, np.float32)
    run(kernel, {"x": x, "out": out})
    return out


def statements(body: tuple[Stmt, ...]) -> list[Stmt]:
    """Every statement, nested ones too."""
    found = list(body)
    for stmt in body:
        if isinstance(stmt, For | If | Alloc):
            found += statements(stmt.body)
    return found


@pytest.mark.parametrize("points", [(1, -1), (2, 5), (0,), (-3,), (1, 2, 3), (40,)])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_segments_change_nothing(points: tuple[int, ...], factor: int) -> None:
    x = np.random.default_rng(0).normal(size=13).astype(np.float32)
    steps: list[Step] = [
        Split("out", "i", factor, "i_o", "i_i"),
        Segment("out", "i_o", points),
        ComputeAt("acc", "out", "i_o", "register"),
        Unroll("out", "i_i"), Unroll("acc", "i"), Unroll("acc", "k"),
    ]  # fmt: skip
    out = compute(lower(schedule(neighbours(13), steps)), x)
    np.testing.assert_allclose(out, np.convolve(x, np.ones(3, np.float32), "same"), rtol=1e-6)


def test_interior_has_no_tests_left() -> None:
    steps = [Unroll("acc", "k"), ComputeAt("acc", "out", "i", "register"), Segment("out", "i", (1, -1))]
    kernel = lower(schedule(neighbours(13), steps))
    loops = [s for s in statements(kernel.body) if isinstance(s, For) and s.var == "out_i"]
    assert [(s.start, s.stop) for s in loops] == [(Const(1), Const(12))]
    sums = [s for s in statements(loops[0].body) if isinstance(s, Store) and s.op == "+"]
    assert sums and not any(isinstance(s.value, Select) for s in sums)


def test_segments_of_a_parallel_loop() -> None:
    x = np.arange(10, dtype=np.float32)
    steps = [Parallel("out", "i", 2), ComputeAt("acc", "out", "i"), Segment("out", "i", (1, -1))]
    out = compute(lower(schedule(neighbours(10), steps)), x)
    np.testing.assert_array_equal(out, np.convolve(x, np.ones(3, np.float32), "same"))


@pytest.mark.parametrize(
    "steps",
    [
        [Segment("out", "j", (1,))],
        [Vectorize("out", "i"), Segment("out", "i", (1,))],
        [Segment("out", "i", (1,)), Split("out", "i", 2, "i_o", "i_i")],
    ],
)
def test_illegal_segments(steps: list[Step]) -> None:
    with pytest.raises(ScheduleError, match="segment"):
        schedule(neighbours(8), steps)


def test_whole_axes_are_kept_in_full() -> None:
    """squares is stored for 4 + n + 4 places although only n + 2 of them are read: its vectors stay aligned."""
    n = 8
    i, c = Axis("i", n), Axis("c", n + 8)
    inside = (wrap(3) < c.var) & (c.var < n + 4)
    squares = Stage("sq", (c,), Select(inside, Load("x", (c.var - 4,)) * Load("x", (c.var - 4,)), ZERO))
    value = Load("sq", (i.var + 3,)) + Load("sq", (i.var + 4,)) + Load("sq", (i.var + 5,))
    out = Stage("out", (Axis("one", 1), i), value)
    algorithm = Algorithm("lrn", (Buffer("x", (n,)), Buffer("out", (1, n), access="out")), (squares, out))
    steps: list[Step] = [
        Split("sq", "c", 4, "c_o", "c_v"), Vectorize("sq", "c_v"), ComputeAt("sq", "out", "one"),
        StoreAs("sq", whole=("c",)),
    ]  # fmt: skip
    kernel = lower(schedule(algorithm, steps))
    allocs = [s for s in statements(kernel.body) if isinstance(s, Alloc)]
    assert [a.buffer.shape for a in allocs] == [(n + 8,)]
    x = np.arange(1, n + 1, dtype=np.float32)
    np.testing.assert_array_equal(compute(kernel, x)[0], np.convolve(x * x, np.ones(3, np.float32), "same"))


def test_two_stages_write_one_output() -> None:
    i, j = Axis("i", 3), Axis("j", 4)
    first = Stage("first", (i,), Load("x", (i.var,)), scatter=(i.var,), output="out")
    second = Stage("second", (j,), Load("x", (j.var,)) * 2.0, scatter=(j.var + 3,), output="out")
    params = (Buffer("x", (4,)), Buffer("out", (7,), access="out"))
    kernel = lower(schedule(Algorithm("concat", params, (first, second)), [Vectorize("second", "j")]))
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(compute(kernel, x), [0, 1, 2, 0, 2, 4, 6])
    with pytest.raises(ScheduleError, match="an output is computed at root"):
        schedule(Algorithm("concat", params, (first, second)), [ComputeAt("first", "second", "j")])
