"""Lanes taken from one or two vector registers become one permutation instruction."""

from __future__ import annotations

import numpy as np

from wpk.dsl.algorithm import Algorithm, Axis, Stage
from wpk.dsl.codegen.c import emit
from wpk.dsl.interp import run
from wpk.dsl.ir import Buffer, Kernel, Load
from wpk.dsl.lower import lower
from wpk.dsl.schedule import ComputeAt, Split, Step, StoreAs, Unroll, Vectorize, schedule
from wpk.dsl.verify import verify


def permuted(sources: int) -> Kernel:
    """out[one, q] = r[one, place(q)]: 4 rows of 8 lanes; each row of the output takes its lanes from ``sources`` rows."""
    one, q = Axis("one", 1), Axis("q", 32)
    row, lane = q.var // 8, q.var % 8
    taken = (row + lane % sources) % 4
    rows = Stage("r", (one, q), Load("x", (q.var,)))
    out = Stage("out", (one, q), Load("r", (one.var, taken * 8 + (lane + 3) % 8)))
    params = (Buffer("x", (32,)), Buffer("out", (1, 32), access="out"))
    plan: list[Step] = [ComputeAt("r", "out", "one", "register"), StoreAs("r", whole=("q",))]
    for stage in ("out", "r"):
        plan += [Split(stage, "q", 8, "i", "l"), Unroll(stage, "i"), Vectorize(stage, "l")]
    return lower(schedule(Algorithm("permuted", params, (rows, out)), plan))


def test_two_sources_are_one_shuffle() -> None:
    text = emit(permuted(2), "avx2").text
    assert text.count("__builtin_shufflevector(r_") == 4
    assert "r_0_0, r_0_1, 3, 12, 5, 14, 7, 8, 1, 10" in text


def test_three_sources_are_built_by_lane() -> None:
    assert "__builtin_shufflevector(r_" not in emit(permuted(3), "avx2").text


def test_meaning() -> None:
    x, out = np.arange(32, dtype=np.float32), np.full((1, 32), np.nan, np.float32)
    kernel = permuted(2)
    verify(kernel)
    run(kernel, {"x": x, "out": out})
    q = np.arange(32)
    np.testing.assert_array_equal(out[0], (q // 8 + q % 8 % 2) % 4 * 8 + (q % 8 + 3) % 8)
