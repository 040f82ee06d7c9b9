"""Any legal schedule of an algorithm computes the algorithm: random steps, interpreted, against the unscheduled program."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.interp import run
from wpk.dsl.ir import Binary, Buffer, Const, Kernel, Load, Select, wrap
from wpk.dsl.lower import lower
from wpk.dsl.schedule import (
    CacheRead,
    ComputeAt,
    Fuse,
    Inline,
    Parallel,
    Prefetch,
    Reorder,
    RFactor,
    Scheduled,
    ScheduleError,
    Split,
    Step,
    StoreAs,
    Unroll,
    Vectorize,
    schedule,
)
from wpk.dsl.verify import verify

ZERO = Const(0.0, "float32")


def matmul(m: int, n: int, k: int) -> Algorithm:
    """out = max(a·b + bias, 0)."""
    i, j, p = Axis("i", m), Axis("j", n), Axis("p", k)
    acc = Stage("acc", (i, j), Load("a", (i.var, p.var)) * Load("b", (p.var, j.var)), Reduce("+", (p,)))
    relu = Binary("max", Load("acc", (i.var, j.var)) + Load("bias", (j.var,)), ZERO)
    params = (
        Buffer("a", (m, k)),
        Buffer("b", (k, n)),
        Buffer("bias", (n,)),
        Buffer("out", (m, n), access="out"),
    )
    return Algorithm("matmul", params, (acc, Stage("out", (i, j), relu)))


def convolution(c: int, h: int, k: int, taps: int, stride: int) -> Algorithm:
    """A padded 1-D convolution with a fused scale: three stages."""
    pad, oh = taps // 2, (h + 2 * (taps // 2) - taps) // stride + 1
    ch, row = Axis("ch", c), Axis("row", h + 2 * pad)
    inside = (wrap(-1) < row.var - pad) & (row.var - pad < h)
    xp = Stage("xp", (ch, row), Select(inside, Load("x", (ch.var, row.var - pad)), ZERO))
    o, r, ci, t = Axis("o", k), Axis("r", oh), Axis("ci", c), Axis("t", taps)
    product = Load("xp", (ci.var, r.var * stride + t.var)) * Load("w", (o.var, ci.var, t.var))
    acc = Stage("acc", (o, r), product, Reduce("+", (ci, t)))
    out = Stage("out", (o, r), Load("acc", (o.var, r.var)) * 2.0)
    params = (Buffer("x", (c, h)), Buffer("w", (k, c, taps)), Buffer("out", (k, oh), access="out"))
    return Algorithm("convolution", params, (xp, acc, out))


def blur(h: int, w: int) -> Algorithm:
    """Two pointwise stencils after each other, the second reads the first at three places."""
    i, j = Axis("i", h), Axis("j", w)
    wide = Axis("j", w + 2)
    total = Load("x", (i.var, wide.var)) + Load("x", (i.var + 1, wide.var)) + Load("x", (i.var + 2, wide.var))
    down = Stage("down", (i, wide), total)
    across = (
        Load("down", (i.var, j.var)) + Load("down", (i.var, j.var + 1)) + Load("down", (i.var, j.var + 2))
    )
    out = Stage("out", (i, j), across)
    return Algorithm("blur", (Buffer("x", (h + 2, w + 2)), Buffer("out", (h, w), access="out")), (down, out))


@st.composite
def algorithms(draw: st.DrawFn) -> Algorithm:
    size = st.integers(1, 9)
    which = draw(st.sampled_from(("matmul", "convolution", "blur")))
    if which == "matmul":
        return matmul(draw(size), draw(size), draw(size))
    if which == "blur":
        return blur(draw(size), draw(size))
    taps = draw(st.sampled_from((1, 3)))
    return convolution(
        draw(st.integers(1, 5)),
        draw(st.integers(taps, 9)),
        draw(st.integers(1, 5)),
        taps,
        draw(st.integers(1, 2)),
    )


def random_step(rng: Random, s: Scheduled, count: int) -> Step:
    """Some step, legal or not."""
    stage = rng.choice([t.name for t in s.algorithm.stages])
    order = list(s.nest(stage).order)
    loop = rng.choice(order)
    kind = rng.randrange(12)
    if kind <= 2:
        return Split(
            stage, loop, rng.randint(1, 5), f"o{count}", f"i{count}", rng.choice(("cut", "shift", "guard"))
        )
    if kind == 3:
        rng.shuffle(order)
        return Reorder(stage, tuple(order))
    if kind == 4 and len(order) > 1:
        at = rng.randrange(len(order) - 1)
        return Fuse(stage, order[at], order[at + 1], f"f{count}")
    if kind in (5, 6):
        consumer = rng.choice([t.name for t in s.algorithm.stages])
        return ComputeAt(
            stage, consumer, rng.choice(s.nest(consumer).order), rng.choice(("thread", "shared"))
        )
    if kind == 7:
        return rng.choice(
            (Unroll(stage, loop), Vectorize(stage, order[-1]), Parallel(stage, order[0], rng.randint(1, 3)))
        )
    if kind == 8:
        axes = [a.name for t in s.algorithm.stages if t.name == stage for a in t.axes]
        rng.shuffle(axes)
        return StoreAs(stage, tuple(axes))
    if kind == 9:
        return Inline(stage)
    if kind == 10:
        tensor = rng.choice([p.name for p in s.algorithm.params])
        return rng.choice(
            (CacheRead(tensor, f"c{count}", stage), Prefetch(stage, tensor, loop, rng.randint(1, 4)))
        )
    return RFactor(stage, loop, rng.randint(1, 3), f"p{count}")


def random_schedule(algorithm: Algorithm, rng: Random, length: int) -> tuple[Kernel, int]:
    """Apply random steps, dropping those that are refused; a step that cannot be lowered is taken back too."""
    state, kernel, taken = Scheduled(algorithm), lower(Scheduled(algorithm)), 0
    for count in range(length):
        try:
            trial = random_step(rng, state, count).apply(state)
            kernel = lower(trial)
        except ScheduleError:
            continue
        state, taken = trial, taken + 1
    return kernel, taken


def outputs(kernel: Kernel, seed: int) -> dict[str, np.ndarray]:
    """The outputs of a kernel on small integers, so that sums are exact in any order."""
    rng = np.random.default_rng(seed)
    args = {
        p.name: rng.integers(-4, 5, p.shape).astype(np.float32)
        if p.access == "in"
        else np.full(p.shape, np.nan, np.float32)
        for p in kernel.params
    }
    run(kernel, args)
    return {p.name: args[p.name] for p in kernel.params if p.access == "out"}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(algorithms(), st.integers(0, 2**32), st.integers(1, 14))
def test_any_legal_schedule_computes_the_algorithm(algorithm: Algorithm, seed: int, length: int) -> None:
    kernel, _ = random_schedule(algorithm, Random(seed), length)
    verify(kernel)
    expected = outputs(lower(Scheduled(algorithm)), 1)
    for name, found in outputs(kernel, 1).items():
        np.testing.assert_array_equal(found, expected[name])


def test_the_unscheduled_matmul_is_a_matmul() -> None:
    rng = np.random.default_rng(0)
    a, b, bias = (rng.integers(-4, 5, s).astype(np.float32) for s in ((3, 4), (4, 5), (5,)))
    out = np.full((3, 5), np.nan, np.float32)
    run(lower(Scheduled(matmul(3, 5, 4))), {"a": a, "b": b, "bias": bias, "out": out})
    np.testing.assert_array_equal(out, np.maximum(a @ b + bias, 0))


def test_random_schedules_do_schedule() -> None:
    taken = [random_schedule(matmul(6, 7, 4), Random(i), 12)[1] for i in range(20)]
    assert sum(taken) / len(taken) > 4


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Split("acc", "p", 4, "po", "pi", "shift"), "twice"),
        (Split("acc", "zz", 4, "po", "pi"), "no such loop"),
        (Reorder("out", ("i",)), "not an order"),
        (Parallel("acc", "j"), "not the outermost"),
        (Fuse("acc", "j", "p", "f"), "mixes"),
        (ComputeAt("out", "acc", "i"), "output"),
        (ComputeAt("acc", "out", "zz"), "no such loop"),
        (Inline("acc"), "reduced"),
        (CacheRead("bias", "c", "acc"), "does not read"),
        (RFactor("acc", "p", 3, "part"), "does not divide"),
    ],
)
def test_an_illegal_step_says_why(step: Step, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        schedule(matmul(4, 4, 4), [step])
