"""Indices of one channel block in another: (8·j + v) // 16 needs no division of the lane."""

from __future__ import annotations

import pytest

from wpk.dsl.affine import index
from wpk.dsl.ir import Expr, Var, wrap

J, V = Var("j"), Var("v")
RANGES = {"j": (0, 9), "v": (0, 7)}


@pytest.mark.parametrize(
    ("expr", "simple"),
    [
        ((J * 8 + V) // 16, J // 2),
        ((J * 8 + V) % 16, V + J % 2 * 8),
        ((J * 24 + V + 8) // 16, (J * 3 + 1) // 2),
        (J * 8 // 16, J // 2),
        ((J * 4 + V) // 16, (J * 4 + V) // 16),
    ],
)
def test_coarse_steps_leave_the_division(expr: Expr, simple: Expr) -> None:
    assert index(expr, RANGES) == index(simple, RANGES)
    for j in range(10):
        for v in range(8):
            at = {"j": (j, j), "v": (v, v)}
            assert index(expr, at) == index(simple, at)


def test_the_lane_stays_linear() -> None:
    assert index((J * 8 + V) // 16, RANGES) == J // wrap(2)
