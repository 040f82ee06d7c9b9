"""Sums over a ragged axis: how far they go depends on the element; nothing beyond is read, staged or waited for."""

from __future__ import annotations

import numpy as np
import pytest
from dsl_cuda_check import compiled, emulated, interpreted
from run_c import run_c

from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.footprint import walk
from wpk.dsl.ir import Buffer, Expr, Load
from wpk.dsl.lower import lower
from wpk.dsl.printer import show
from wpk.dsl.schedule import (
    Bind,
    ComputeAt,
    Fuse,
    Pipeline,
    Reorder,
    RFactor,
    ScheduleError,
    Segment,
    Split,
    Step,
    Unroll,
    schedule,
)

ROWS, COLUMNS, STEPS, STEP = 7, 32, 4, 4


def band(count: Expr | None = None) -> Algorithm:
    """out[r, c] = sum of x[r, k] w[k, c] over the first ``r - 1`` steps of k, in steps of four: none to all, and more."""
    r, c, kb, ki = Axis("r", ROWS), Axis("c", COLUMNS), Axis("kb", STEPS), Axis("ki", STEP)
    kb2, ki2, c2 = Axis("kb", STEPS), Axis("ki", STEP), Axis("c", COLUMNS)
    ws = Stage("ws", (kb2, ki2, c2), Load("w", (kb2.var * STEP + ki2.var, c2.var)))
    product = Load("x", (r.var, kb.var * STEP + ki.var)) * Load("ws", (kb.var, ki.var, c.var))
    total = Stage("total", (r, c), product, Reduce("+", (kb, ki), count=count or r.var - 1))
    out = Stage("out", (r, c), Load("total", (r.var, c.var)))
    k = STEPS * STEP
    params = Buffer("x", (ROWS, k)), Buffer("w", (k, COLUMNS)), Buffer("out", (ROWS, COLUMNS), access="out")
    return Algorithm("band", params, (ws, total, out))


def operands() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, STEPS * STEP), (STEPS * STEP, COLUMNS)))
    steps = np.clip(np.arange(ROWS) - 1, 0, STEPS)
    inside = np.arange(STEPS * STEP)[None, :] // STEP < steps[:, None]
    return [x, w], (x * inside) @ w


#: a block a row, a thread a column; the weights of a step come by way of shared memory
TOGETHER: list[Step] = [
    Bind("out", "r", "block.x"), Bind("out", "c", "thread"),
    ComputeAt("total", "out", "c", "register"), Reorder("total", ("r", "c", "kb", "ki")), Unroll("total", "ki"),
    ComputeAt("ws", "total", "kb", "block"), Fuse("ws", "ki", "c", "job"),
    Split("ws", "job", COLUMNS, "chunk", "copier", "guard"),
    Unroll("ws", "chunk"), Bind("ws", "copier", "thread"),
]  # fmt: skip


def test_in_order() -> None:
    inputs, want = operands()
    kernel = lower(schedule(band(), []))
    np.testing.assert_allclose(interpreted(kernel, inputs), want, rtol=1e-5, atol=1e-5)
    out = np.zeros_like(want, np.float32)
    run_c(kernel, "neon", {"x": inputs[0], "w": inputs[1], "out": out})
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(2))
def test_staged_by_a_block(depth: int, seed: int) -> None:
    inputs, want = operands()
    piped: list[Step] = [Pipeline("total", "kb", depth)] if depth > 1 else []
    kernel = lower(schedule(band(), TOGETHER + piped))
    np.testing.assert_allclose(interpreted(kernel, inputs), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(emulated(kernel, inputs, seed=seed), want, rtol=1e-5, atol=1e-5)
    assert "for total_kb in 0..min(out_r - 1, 4):" in show(kernel)


def test_what_is_beyond_is_not_read() -> None:
    (x, w), want = operands()
    w[STEP * 2 :] = np.nan
    got = emulated(lower(schedule(band(), [*TOGETHER, Pipeline("total", "kb", 3)])), [x, w])
    np.testing.assert_allclose(got[:4], want[:4], rtol=1e-5, atol=1e-5)
    assert np.isnan(got[4:]).all()


def test_its_trips_are_those_of_an_average_row() -> None:
    leaves = walk(lower(schedule(band(), TOGETHER))).leaves
    trips = [loop.trip for leaf in leaves for loop in leaf.loops if loop.var == "total_kb"]
    assert trips and set(trips) == {2}  # 0, 0, 1, 2, 3, 4, 4


def test_it_compiles() -> None:
    for resources in compiled(lower(schedule(band(), [*TOGETHER, Pipeline("total", "kb", 3)]))).values():
        assert resources.spill_bytes == 0


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Split("total", "kb", 2, "ko", "kk")], "a ragged axis is one loop"),
        ([Unroll("total", "kb")], "a ragged axis is a serial loop"),
        ([Segment("total", "kb", (1,))], "a ragged axis is a serial loop"),
        ([Reorder("total", ("kb", "r", "c", "ki"))], r"a ragged axis is a serial loop inside those of \['r'\]"),
        ([RFactor("total", "kb", 2, "part")], "its first axis is ragged"),
    ],
)
def test_what_is_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        lower(schedule(band(), steps))


def test_threads_of_a_block_end_together() -> None:
    with pytest.raises(ScheduleError, match="threads of a block would end it at different times"):
        lower(schedule(band(Axis("c", COLUMNS).var // 8), TOGETHER))
