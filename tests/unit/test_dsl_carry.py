"""What a loop hands from one step to the next, and sums that decay: a softmax in one pass, on threads and on a block's."""

from __future__ import annotations

import numpy as np
import pytest
from dsl_cuda_check import emulated, interpreted

from wpk.dsl.algorithm import Algorithm, Axis, Carry, Reduce, Stage
from wpk.dsl.ir import Binary, Buffer, Expr, Load, Unary
from wpk.dsl.lower import lower
from wpk.dsl.schedule import Bind, ComputeAt, Pipeline, Reorder, ScheduleError, Split, Step, Unroll, schedule

ROWS, STEPS, WIDTH = 12, 5, 8


def softmax_sum() -> Algorithm:
    """out[r] = Σ_n exp(x[r,n] - largest[r])·y[n] / Σ_n exp(x[r,n] - largest[r]), n = k·WIDTH + i, step by step."""
    r, k, i, after = Axis("r", ROWS), Axis("k", STEPS), Axis("i", WIDTH), Axis("after", STEPS + 1)
    at, n = (r.var, k.var), k.var * WIDTH + i.var
    power: Expr = Unary("exp", Load("xs", (r.var, n)) - Load("largest", at))
    decay = Load("decay", at)

    def total(name: str, value: Expr) -> Stage:
        return Stage(name, (r,), value, Reduce("+", (Axis("ko", STEPS), i), decay=Load("decay", (r.var, Axis("ko", STEPS).var))))

    later = Axis("ko", STEPS).var * WIDTH + i.var
    stages = (
        Stage("xs", (r, Axis("n", STEPS * WIDTH)), Load("x", (r.var, Axis("n", 0).var))),
        Stage("top", (r, k), Load("xs", (r.var, n)), Reduce("max", (i,), float("-inf"))),
        Stage("before", (r, after), Load("largest", (r.var, after.var)), carry=Carry("after", -1e30)),
        Stage("sums", (r, after), Load("sum", (r.var, after.var)), carry=Carry("after", 0.0)),
        Stage("largest", (r, k), Binary("max", Load("before", at), Load("top", at))),
        Stage("decay", (r, k), Unary("exp", Load("before", at) - Load("largest", at))),
        Stage("p", (r, k, i), power),
        Stage("part", (r, k), Load("p", (r.var, k.var, i.var)), Reduce("+", (i,))),
        Stage("sum", (r, k), Load("sums", at) * decay + Load("part", at)),
        total("acc", Load("p", (r.var, Axis("ko", STEPS).var, i.var)) * Load("y", (later,))),
        Stage("out", (r,), Load("acc", (r.var,)) / Load("sums", (r.var, after.var * 0 + STEPS))),
    )
    params = Buffer("x", (ROWS, STEPS * WIDTH)), Buffer("y", (STEPS * WIDTH,)), Buffer("out", (ROWS,), access="out")
    return Algorithm("softmax_sum", params, stages)


def by_hand(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    power = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(power @ y / power.sum(1))


def operands() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    x = 4 * rng.standard_normal((ROWS, STEPS * WIDTH)).astype(np.float32)
    return [x, rng.standard_normal(STEPS * WIDTH).astype(np.float32)]


def of_threads() -> list[Step]:
    """Each thread has a row, and hands on in registers."""
    placed = ("top", "before", "sums", "largest", "decay", "p", "part", "sum")
    return [
        Bind("out", "r", "thread"),
        ComputeAt("acc", "out", "r", "register"), Reorder("acc", ("r", "ko", "i")), Unroll("acc", "i"),
        *(ComputeAt(x, "acc", "ko", "register") for x in placed), *(Unroll(x, "i") for x in ("top", "p", "part")),
        ComputeAt("xs", "acc", "ko", "thread"),
    ]  # fmt: skip


def of_a_block(depth: int) -> list[Step]:
    """All threads copy a step, some steps ahead, and hand on in shared memory."""
    placed = ("largest", "decay", "p", "sum", "before", "sums")
    plan: list[Step] = [
        Split("out", "r", ROWS, "block", "thread", "guard"), Bind("out", "block", "block.x"), Bind("out", "thread", "thread"),
        ComputeAt("acc", "out", "thread", "register"), Reorder("acc", ("r", "ko", "i")),
        ComputeAt("xs", "acc", "ko", "block"), Bind("xs", "r", "thread"), *(ComputeAt(x, "acc", "ko", "block") for x in placed),
        *(Bind(x, "r", "thread") for x in placed),
        ComputeAt("top", "largest", "r", "register"), ComputeAt("part", "sum", "r", "register"),
    ]  # fmt: skip
    return [*plan, Pipeline("acc", "ko", depth)] if depth > 1 else plan


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_softmax_in_one_pass(depth: int) -> None:
    """With a pipeline only what needs nothing of the step is made ahead."""
    inputs = operands()
    kernel = lower(schedule(softmax_sum(), of_a_block(depth) if depth else of_threads()))
    expected = by_hand(*inputs)
    np.testing.assert_allclose(interpreted(kernel, inputs), expected, rtol=1e-5, atol=1e-6)
    if depth:
        np.testing.assert_allclose(emulated(kernel, inputs), expected, rtol=1e-5, atol=1e-6)


def polynomials() -> Algorithm:
    """out[r] = (…(x[r,0]·y[1] + x[r,1])·y[2] + …) + x[r,4]: Horner's rule, where all y are equal."""
    r, k = Axis("r", ROWS), Axis("k", STEPS)
    acc = Stage("acc", (r,), Load("x", (r.var, k.var)), Reduce("+", (k,), decay=Load("y", (k.var,))))
    out = Stage("out", (r,), Load("acc", (r.var,)))
    return Algorithm(
        "polynomials", (Buffer("x", (ROWS, STEPS)), Buffer("y", (STEPS,)), Buffer("out", (ROWS,), access="out")), (acc, out)
    )


@pytest.mark.parametrize("plan", [(), (ComputeAt("acc", "out", "r", "register"),), (Reorder("acc", ("k", "r")),)])
def test_sums_that_decay(plan: tuple[Step, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((ROWS, STEPS)).astype(np.float32), np.full(STEPS, 0.5, np.float32)
    found = interpreted(lower(schedule(polynomials(), plan)), [x, y])
    np.testing.assert_allclose(found, np.polyval(x.T, 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [Split("acc", "k", 5, "ka", "kc"), Unroll("acc", "k")])
def test_what_decays_is_one_serial_loop(wrong: Step) -> None:
    with pytest.raises(ScheduleError, match="a sum that decays is one serial loop"):
        lower(schedule(polynomials(), [wrong]))


def test_what_nobody_reads_is_not_handed_on() -> None:
    algorithm = softmax_sum()
    idle = Stage("idle", (Axis("r", ROWS), Axis("t", STEPS + 1)), Load("y", (Axis("r", ROWS).var,)), carry=Carry("t", 0.0))
    stages = (idle, *algorithm.stages)
    wide = Algorithm(algorithm.name, algorithm.params, stages)
    with pytest.raises(ScheduleError, match="nothing in or behind the loop"):
        lower(schedule(wide, [*of_threads(), ComputeAt("idle", "acc", "ko", "register")]))
