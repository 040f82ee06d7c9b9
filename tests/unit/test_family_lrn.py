"""LRN kernels against the formula: windows at the ends of the channels, tails, layouts, powers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, check_family, evaluate, target, tensor

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.lrn import Lrn

B16, B8 = "NCHW16c", "NCHW8c"


def lrn(
    x: TensorType, size: int = 5, beta: float = 0.75, bias: float = 1.0, alpha: float = 0.3,
    epilogue: str | None = None, operands: tuple[TensorType, ...] = (),
) -> Workload:  # fmt: skip
    """An lrn workload; alpha is large, so that the sum matters."""
    attrs = (("alpha", alpha), ("beta", beta), ("bias", bias), ("size", size))
    constants = tuple(range(1, 1 + len(operands)))
    return Workload("lrn", (x, *operands), (x,), attrs, parse(epilogue) if epilogue else None, constants)


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """ONNX's formula, in float64."""
    x, a = feeds[0].astype(np.float64), dict(workload.attrs)
    size, channels = int(a["size"]), x.shape[1]  # type: ignore[arg-type]
    total = np.zeros_like(x)
    for c in range(channels):
        low, high = max(0, c - (size - 1) // 2), min(channels - 1, c + -(-(size - 1) // 2))
        total[:, c] = (x[:, low : high + 1] ** 2).sum(1)
    y = x / (a["bias"] + a["alpha"] / size * total) ** a["beta"]  # type: ignore[operator]
    return evaluate(workload.epilogue, y, feeds)


CASES = [
    Case("alexnet", lrn(tensor(1, 96, 5, 5, layout=B16))),
    Case("padded", lrn(tensor(2, 19, 3, 7, layout=B16))),
    Case("few-channels", lrn(tensor(1, 3, 4, 4, layout=B8))),
    Case("even-window", lrn(tensor(1, 32, 3, 3, layout=B16), size=4)),
    Case("wide-window", lrn(tensor(1, 40, 2, 3, layout=B8), size=13)),
    Case("one-channel-window", lrn(tensor(1, 16, 3, 3, layout=B16), size=1)),
    Case("square-root", lrn(tensor(1, 20, 4, 5, layout=B16), beta=0.5)),
    Case("quarter", lrn(tensor(1, 20, 4, 5, layout=B16), beta=0.25)),
    Case("whole", lrn(tensor(1, 20, 4, 5, layout=B16), beta=1.0, bias=2.0)),
    Case("any-power", lrn(tensor(1, 20, 4, 5, layout=B16), beta=0.6)),
    Case("row", lrn(tensor(2, 7, 5, 9))),
    Case("row-small", lrn(tensor(1, 6, 1, 3))),
    Case("row-wide", lrn(tensor(1, 5, 13, 21), size=7)),
    Case("epilogue", lrn(tensor(1, 19, 3, 4, layout=B16), epilogue="relu(add(acc,in1))", operands=(tensor(1, 19, 1, 1),))),
    Case("row-epilogue", lrn(tensor(1, 9, 3, 4), epilogue="mul(acc,in1)", operands=(tensor(9, 1, 1),))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_formula(case: Case) -> None:
    check_family(Lrn(), case.workload, reference, samples=4)


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (lrn(tensor(1, 64, 2, 2, layout=B8), size=19), "at most two blocks"),
        (lrn(tensor(1, 16, 2, 2, layout=B16), bias=0.0), "may be 0"),
        (Workload("pool", (tensor(4),), (tensor(4),)), "expected lrn"),
    ],
)
def test_declines(workload: Workload, reason: str) -> None:
    assert reason in (Lrn().matches(workload, target()) or "")
