"""Softmax kernels against NumPy: last and inner axes, tails, extreme values, layouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, check_family, evaluate, random_feeds, target, tensor

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.softmax import Softmax


def softmax(
    x: TensorType, axis: int = -1, epilogue: str | None = None, operands: tuple[TensorType, ...] = ()
) -> Workload:
    """A softmax workload."""
    point = parse(epilogue) if epilogue else None
    return Workload("softmax", (x, *operands), (x,), (("axis", axis),), point, tuple(range(1, 1 + len(operands))))


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy, in float64."""
    axis = int(dict(workload.attrs)["axis"])  # type: ignore[arg-type]
    x = feeds[0].astype(np.float64)
    e = np.exp(x - x.max(axis, keepdims=True))
    return evaluate(workload.epilogue, e / e.sum(axis, keepdims=True), feeds)


CASES = [
    Case("classes", softmax(tensor(1, 1000))),
    Case("attention", softmax(tensor(2, 3, 4, 64))),
    Case("ragged", softmax(tensor(3, 37))),
    Case("short", softmax(tensor(4, 5))),
    Case("three", softmax(tensor(6, 3))),
    Case("one", softmax(tensor(2, 1))),
    Case("channels", softmax(tensor(2, 10, 1, 1), 1)),
    Case("blocked", softmax(tensor(2, 37, 1, 1, layout="NCHW16c"), 1)),
    Case("blocked-whole", softmax(tensor(1, 48, 1, 1, layout="NCHW8c"), 1)),
    Case("inner", softmax(tensor(2, 7, 5, 9), 1)),
    Case("inner-narrow", softmax(tensor(2, 7, 3), 1)),
    Case("inner-wide", softmax(tensor(1, 12, 130), 1)),
    Case("inner-first", softmax(tensor(9, 20), 0)),
    Case("epilogue", softmax(tensor(2, 3, 40), -1, "mul(add(acc,in1),in2)", (tensor(40), tensor(2, 3, 1)))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(case: Case) -> None:
    check_family(Softmax(), case.workload, reference, samples=4, tolerance=4e-6)


def test_huge_values_do_not_overflow() -> None:
    workload = softmax(tensor(3, 50))
    feeds = [(random_feeds(workload)[0] * 1000).astype(np.float32)]
    check_family(Softmax(), workload, reference, feeds=feeds, tolerance=4e-6)


def test_masked_scores() -> None:
    """-inf where attention is masked: those elements are exactly zero."""
    workload = softmax(tensor(4, 33))
    feeds = random_feeds(workload)
    feeds[0][:, 20:] = -np.inf
    check_family(Softmax(), workload, reference, feeds=feeds, tolerance=4e-6)


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (softmax(tensor(1, 16, 2, 2, layout="NCHW16c"), 1), "expected the channels of one pixel"),
        (softmax(TensorType("float16", (2, 4))), "expected float32"),
    ],
)
def test_declines(workload: Workload, reason: str) -> None:
    assert reason in (Softmax().matches(workload, target()) or "")
