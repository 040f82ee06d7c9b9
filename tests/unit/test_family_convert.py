"""Layout conversions: every pair of layouts, channels that do not fill a block, one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from family_check import Case, check_family, target

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.convert import Convert

LAYOUTS = ("ROW", "NHWC", "NCHW8c", "NCHW16c")
SHAPES = {"image": (1, 3, 9, 7), "whole": (2, 32, 5, 5), "ragged": (1, 21, 6, 7), "pixel": (2, 37, 1, 1), "plain": (3, 20)}


def convert(shape: tuple[int, ...], source: str, to: str) -> Workload:
    """A convert workload."""
    return Workload("convert", (TensorType("float32", shape, source),), (TensorType("float32", shape, to),))


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """The logical value does not change."""
    return feeds[0]


CASES = [
    Case(f"{name}-{a}-{b}", convert(shape, a, b)) for name, shape in SHAPES.items() for a, b in permutations(LAYOUTS, 2)
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_keeps_the_value(case: Case) -> None:
    check_family(Convert(), case.workload, reference, samples=2, tolerance=0.0)


def test_feature_maps_are_transposed_in_registers() -> None:
    space = Convert().space(convert((1, 64, 14, 14), "NCHW16c", "ROW"), target())
    assert space.default()["move"] == "shuffle"


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (convert((1, 16, 4, 4), "ROW", "ROW"), "two different"),
        (convert((7,), "ROW", "NHWC"), "rank 2"),
        (Workload("convert", (TensorType("float32", (1, 2)),), (TensorType("float32", (2, 1), "NHWC"),)), "the same"),
    ],
)
def test_declines(workload: Workload, reason: str) -> None:
    assert reason in (Convert().matches(workload, target()) or "")
