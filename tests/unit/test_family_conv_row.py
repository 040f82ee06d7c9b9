"""Family conv_row: convolutions in layout ROW, grouped with odd channel counts, strided, dilated, padded, batched."""

from __future__ import annotations

import numpy as np
import pytest
from family_check import Case, check_family, configs_of, interpreted, random_feeds, target
from test_family_conv import conv, reference

from wpk.kernels.conv_row import ConvRow, pack_weights, rows_of

ROW = ("ROW", "ROW")
SAME = (1, 1, 1, 1)
FAMILY = ConvRow()
CASES = [
    Case("pointwise", conv((1, 16, 7, 7), 32, 1, layouts=ROW)),
    Case("pointwise-groups-batch", conv((2, 56, 5, 5), 26, 1, group=2, layouts=ROW, residual=True)),
    Case("pointwise-one-pixel", conv((1, 3, 1, 1), 4, 1, layouts=ROW)),
    Case("pointwise-stride-2", conv((1, 6, 14, 14), 5, 1, 2, layouts=ROW)),
    Case("same", conv((1, 4, 12, 40), 5, 3, 1, SAME, layouts=ROW)),
    Case("valid", conv((1, 4, 6, 20), 5, 3, 1, layouts=ROW)),
    Case("stride-2-batch", conv((2, 6, 9, 8), 5, 3, 2, SAME, layouts=ROW, residual=True)),
    Case("stride-3-uneven-pads", conv((1, 6, 13, 20), 5, 3, 3, (2, 1, 0, 3), layouts=ROW)),
    Case("dilated", conv((1, 4, 12, 20), 5, 3, 1, (2, 2, 2, 2), dilation=2, layouts=ROW)),
    Case("dilated-stride-2", conv((1, 4, 12, 20), 5, 3, 2, (2, 2, 2, 2), dilation=3, layouts=ROW)),
    Case("depthwise", conv((1, 12, 10, 18), 12, 3, 1, SAME, group=12, layouts=ROW, act="sigmoid({})")),
    Case("stem", conv((1, 3, 17, 15), 16, 7, 2, (3, 3, 3, 3), layouts=ROW)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case) -> None:
    small = np.prod(case.workload.outputs[0].shape) < 1000
    check_family(FAMILY, case.workload, reference, samples=4, interpret_too=bool(small), tolerance=4e-6)


def test_interpreted_tail_of_a_row() -> None:
    """21 pixels in vectors of 16: the second vector overlaps the first."""
    workload = conv((1, 2, 3, 7), 3, 1, layouts=ROW)
    feeds = random_feeds(workload)
    for config in configs_of(FAMILY, workload, 6):
        got = interpreted(FAMILY, workload, config, feeds)
        assert np.abs(got - reference(workload, feeds)).max() < 1e-5


SHUFFLENET = [
    conv((1, 24, 56, 56), 112, 1, group=4, layouts=ROW),
    conv((1, 136, 28, 28), 136, 1, group=4, layouts=ROW),
    conv((1, 272, 14, 14), 272, 1, group=4, layouts=ROW),
    conv((1, 544, 7, 7), 544, 1, group=4, layouts=ROW),
]


@pytest.mark.parametrize("workload", SHUFFLENET, ids=lambda w: "x".join(map(str, w.inputs[0].shape)))
def test_real_layers_have_thousands_of_configs_and_valid_first_ones(workload) -> None:  # type: ignore[no-untyped-def]
    space = FAMILY.space(workload, target())
    assert space.size(3000) == 3000
    assert len(space.first) >= 3
    assert all(space.valid(c) for c in space.first)


def test_weights_are_packed_by_tiles_of_a_group() -> None:
    s = rows_of(conv((1, 4, 3, 3), 6, 1, group=2, layouts=ROW))
    weights = np.arange(12, dtype=np.float32).reshape(6, 2, 1, 1)
    packed = pack_weights(s, weights, 2)
    assert packed.shape == (2, 2, 2, 1, 1, 2)
    assert packed[1, 0, :, 0, 0].tolist() == weights[3:5, :, 0, 0].T.tolist()
    assert packed[1, 1, :, 0, 0].tolist() == [[10, 0], [11, 0]]


def test_refusals_name_what_was_found() -> None:
    blocked = conv((1, 16, 4, 4), 16, 1)
    assert "NCHW16c" in (FAMILY.matches(blocked, target()) or "")
