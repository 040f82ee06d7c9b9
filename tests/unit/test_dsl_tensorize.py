"""Tensorize puts an instruction where the loops mean it, and says what differs where they do not."""

from __future__ import annotations

import numpy as np
import pytest

import wpk.kernels.instr.avx512  # noqa: F401  registers the instructions
from wpk.core.errors import InvalidConfig
from wpk.dsl.algorithm import Algorithm, Axis, Reduce, Stage
from wpk.dsl.interp import run
from wpk.dsl.ir import Buffer, Invoke, Kernel, Load, Stmt
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Reorder, Split, Step, Tensorize, Unroll, schedule


def matmul(n: int = 32) -> Algorithm:
    """out[i, j] = sum_p a[i, p] * b[p, j] with rows of ``n``."""
    i, j, p = Axis("i", 3), Axis("j", n), Axis("p", 5)
    acc = Stage("acc", (i, j), Load("a", (i.var, p.var)) * Load("b", (p.var, j.var)), Reduce("+", (p,)))
    out = Stage("out", (i, j), Load("acc", (i.var, j.var)))
    params = (Buffer("a", (3, 5)), Buffer("b", (5, n)), Buffer("out", (3, n), access="out"))
    return Algorithm("matmul", params, (acc, out))


def steps(width: int) -> list[Step]:
    return [
        Split("out", "j", width, "jo", "ji"),
        Reorder("out", ("i", "jo", "ji")),
        ComputeAt("acc", "out", "jo", "register"),
        Reorder("acc", ("i", "p", "j")),
        Tensorize("acc", "j", "avx512_fma_f32x16"),
    ]


def invokes(body: tuple[Stmt, ...]) -> list[Invoke]:
    found: list[Invoke] = []
    for s in body:
        found += [s] if isinstance(s, Invoke) else []
        found += invokes(s.body) if hasattr(s, "body") else []
    return found


def result(kernel: Kernel, n: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """What a kernel computes, and what it should."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, s).astype(np.float32) for s in ((3, 5), (5, n)))
    out = np.full((3, n), np.nan, np.float32)
    run(kernel, {"a": a, "b": b, "out": out})
    return out, a @ b


def test_the_inner_loop_becomes_the_instruction() -> None:
    kernel = lower(schedule(matmul(), steps(16)))
    assert {i.instr for i in invokes(kernel.body)} == {"avx512_fma_f32x16"}
    np.testing.assert_array_equal(*result(kernel))


def test_other_lane_counts_do_not_match() -> None:
    with pytest.raises(InvalidConfig, match="does not run over"):
        lower(schedule(matmul(), steps(8)))


def test_other_strides_do_not_match() -> None:
    algorithm = matmul(16)
    turned = [Reorder("acc", ("i", "j", "p")), Tensorize("acc", "p", "avx512_fma_f32x16")]
    with pytest.raises(InvalidConfig, match="avx512_fma_f32x16"):
        lower(schedule(algorithm, turned))


def test_a_loop_that_holds_another_stage_is_refused() -> None:
    steps_in = [ComputeAt("acc", "out", "j", "register"), Tensorize("out", "i", "avx512_fma_f32x16")]
    with pytest.raises(InvalidConfig, match="computed inside"):
        schedule(matmul(), [*steps_in, Unroll("out", "j")])
