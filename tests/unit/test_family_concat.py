"""Concatenations against NumPy: every axis, blocked channels that do and do not fill their blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, check_family, target, tensor

from wpk.core.workload import Workload
from wpk.kernels.concat import Concat, shape_of

B16, B8 = "NCHW16c", "NCHW8c"


def concat(axis: int, *shapes: tuple[int, ...], layout: str = "ROW", constants: tuple[int, ...] = ()) -> Workload:
    """A concat workload."""
    out = list(shapes[0])
    out[axis] = sum(s[axis] for s in shapes)
    inputs = tuple(tensor(*s, layout=layout) for s in shapes)
    return Workload("concat", inputs, (tensor(*out, layout=layout),), (("axis", axis),), None, constants)


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """NumPy's concatenate."""
    return np.concatenate(feeds, int(dict(workload.attrs)["axis"]))  # type: ignore[arg-type]


CASES = [
    Case("row-channels", concat(1, (2, 3, 5, 7), (2, 4, 5, 7))),
    Case("row-last", concat(-1, (3, 4, 5), (3, 4, 21), (3, 4, 1))),
    Case("row-first", concat(0, (2, 33), (1, 33))),
    Case("one-input", concat(0, (5,))),
    Case("constant", concat(1, (1, 1, 12), (1, 5, 12), constants=(0,))),
    Case("nhwc-channels", concat(1, (1, 3, 4, 4), (1, 5, 4, 4), layout="NHWC")),
    Case("nhwc-rows", concat(2, (2, 3, 4, 4), (2, 3, 2, 4), layout="NHWC")),
    Case("blocked", concat(1, (2, 32, 3, 3), (2, 16, 3, 3), (2, 48, 3, 3), layout=B16)),
    Case("blocked-ragged-end", concat(1, (2, 32, 3, 3), (2, 19, 3, 3), layout=B16)),
    Case("blocked-shifted", concat(1, (2, 19, 3, 5), (2, 30, 3, 5), (2, 7, 3, 5), layout=B16)),
    Case("blocked-within", concat(1, (1, 3, 2, 2), (1, 2, 2, 2), (1, 20, 2, 2), layout=B16)),
    Case("blocked-filled", concat(1, (1, 12, 4, 4), (1, 20, 4, 4), (1, 5, 4, 4), layout=B8)),
    Case("blocked-columns", concat(3, (1, 19, 3, 3), (1, 19, 3, 2), layout=B16)),
    Case("blocked-batch", concat(0, (1, 19, 3, 3), (2, 19, 3, 3), layout=B16)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_numpy(case: Case) -> None:
    check_family(Concat(), case.workload, reference, samples=4, tolerance=0.0)


def test_only_channels_that_split_a_block_shift() -> None:
    assert not shape_of(concat(1, (1, 32, 2, 2), (1, 19, 2, 2), layout=B16)).shifted
    assert shape_of(concat(1, (1, 19, 2, 2), (1, 32, 2, 2), layout=B16)).shifted


def test_declines_mixed_layouts() -> None:
    plain = concat(1, (1, 16, 2, 2), (1, 16, 2, 2), layout=B16)
    mixed = Workload("concat", (plain.inputs[0], tensor(1, 16, 2, 2)), plain.outputs, plain.attrs)
    assert "the output has layout NCHW16c" in (Concat().matches(mixed, target()) or "")
