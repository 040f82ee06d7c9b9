"""Transpositions against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from family_check import Case, check_family, target, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.core.workload import Workload
from wpk.kernels.transpose import Transpose, collapsed


def transpose(shape: tuple[int, ...], perm: tuple[int, ...]) -> Workload:
    """A transpose workload."""
    out = tensor(*(shape[d] for d in perm))
    return Workload("transpose", (tensor(*shape),), (out,), (("perm", perm),))


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy's transpose."""
    return feeds[0].transpose(dict(workload.attrs)["perm"])  # type: ignore[call-overload]


CASES = [
    Case("matrix", transpose((33, 50), (1, 0))),
    Case("small", transpose((3, 2), (1, 0))),
    Case("thin", transpose((3, 70), (1, 0))),
    Case("tall", transpose((70, 3), (1, 0))),
    Case("square", transpose((48, 32), (1, 0))),
    Case("batched", transpose((3, 20, 17), (0, 2, 1))),
    Case("heads", transpose((1, 9, 3, 20), (0, 2, 1, 3))),
    Case("keys", transpose((1, 9, 3, 20), (0, 2, 3, 1))),
    Case("shuffle", transpose((1, 4, 3, 5, 7), (0, 2, 1, 3, 4))),
    Case("nchw-nhwc", transpose((2, 3, 5, 7), (0, 2, 3, 1))),
    Case("reverse", transpose((5, 6, 7), (2, 1, 0))),
    Case("identity", transpose((3, 1, 40), (1, 0, 2))),
    Case("scalar", transpose((1, 1), (1, 0))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(case: Case) -> None:
    check_family(Transpose(), case.workload, reference, samples=4, tolerance=0.0)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_collapsed_moves_the_same_elements(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    sizes, order = collapsed(shape, perm)
    x = np.arange(np.prod(shape))
    small = x.reshape(sizes).transpose(order)
    np.testing.assert_array_equal(small.ravel(), x.reshape(shape).transpose(perm).ravel())
    assert all(b != a + 1 for a, b in pairwise(order))


def test_declines_an_epilogue_and_layouts() -> None:
    plain = transpose((4, 5), (1, 0))
    blocked = Workload("transpose", (tensor(1, 16, 2, 2, layout="NCHW16c"),), plain.outputs, plain.attrs)
    assert "expected non-empty float32 in layout ROW" in (Transpose().matches(blocked, target()) or "")
