"""Family conv_depthwise: blocked and ROW, any kernel, stride, dilation and padding; borders by copy, test or segments."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from family_check import Case, check_family, interpreted, random_feeds, target
from test_family_conv import conv, reference

from wpk.core.workload import Workload
from wpk.kernels.conv_depthwise import ConvDepthwise, border

SAME = (1, 1, 1, 1)
FAMILY = ConvDepthwise()


def depthwise(
    c: int,
    h: int,
    w: int,
    size: int,
    stride: int,
    pads: tuple[int, int, int, int],
    layout: str,
    *,
    dilation: int = 1,
    n: int = 1,
    residual: bool = False,
    act: str = "relu({})",
) -> Workload:
    """A depthwise convolution with bias."""
    return conv((n, c, h, w), c, size, stride, pads, dilation, c, (layout, layout), residual, act)


def cases(layout: str) -> list[Case]:
    """What every layout has to do."""
    return [
        Case(f"{layout}-same-batch", depthwise(20, 6, 18, 3, 1, SAME, layout, n=2, residual=True)),
        Case(f"{layout}-stride-2", depthwise(20, 11, 18, 3, 2, SAME, layout, act="sigmoid({})")),
        Case(f"{layout}-uneven-pads", depthwise(5, 9, 12, 3, 2, (0, 0, 1, 1), layout)),
        Case(f"{layout}-valid", depthwise(5, 9, 22, 3, 1, (0, 0, 0, 0), layout)),
        Case(f"{layout}-dilated", depthwise(5, 9, 22, 3, 1, (2, 2, 2, 2), layout, dilation=2)),
        Case(f"{layout}-5x5", depthwise(5, 7, 7, 5, 1, (2, 2, 2, 2), layout)),
        Case(f"{layout}-1x1", depthwise(5, 7, 7, 1, 1, (0, 0, 0, 0), layout)),
        Case(f"{layout}-4x4-stride-3", depthwise(5, 9, 10, 4, 3, (2, 1, 2, 1), layout)),
    ]


@pytest.mark.parametrize("case", [*cases("ROW"), *cases("NCHW16c"), *cases("NCHW8c")[:3]], ids=str)
def test_agrees_with_reference(case: Case) -> None:
    check_family(FAMILY, case.workload, reference, samples=3, interpret_too=False, tolerance=4e-6)


@pytest.mark.parametrize("pad", ["root", "job", "inline", "edges"])
@pytest.mark.parametrize("layout", ["ROW", "NCHW8c"])
def test_every_treatment_of_the_border_agrees(layout: str, pad: str) -> None:
    workload = depthwise(3, 5, 9, 3, 1, SAME, layout)
    space = FAMILY.space(workload, target())
    config = space.repair({**space.default(), "pad": pad, "tile_w": 1, "tile_h": 2}, Random(3))
    assert config["pad"] == pad
    feeds = random_feeds(workload)
    got = interpreted(FAMILY, workload, config, feeds)
    if layout == "NCHW8c":
        assert not got[..., 3:].any()
        got = np.moveaxis(got[:, 0, ..., :3], -1, 1)
    assert np.abs(got - reference(workload, feeds)).max() < 1e-5


def test_border_counts_tiles_that_read_outside() -> None:
    """8 outputs of stride 1, kernel 3, padding 1: the first and the last read outside."""
    assert border(1, 1, 8, 8, 2, 1) == (1, -1)
    assert border(1, 1, 8, 8, 2, 4) == (1, -1)
    assert border(0, 1, 6, 8, 2, 2) == (0, 0)
    assert border(1, 2, 4, 8, 2, 1) == (1, 0)


@pytest.mark.parametrize("layout", ["ROW", "NCHW16c"])
@pytest.mark.parametrize("c,size,stride", [(112, 56, 2), (136, 28, 1), (272, 14, 1), (544, 7, 1)])
def test_real_layers_have_thousands_of_configs_and_valid_first_ones(
    c: int, size: int, stride: int, layout: str
) -> None:
    space = FAMILY.space(depthwise(c, size, size, 3, stride, SAME, layout), target())
    assert space.size(2000) == 2000
    assert len(space.first) >= 2
    assert all(space.valid(config) for config in space.first)


def test_refusals_name_what_was_found() -> None:
    plain = depthwise(16, 5, 5, 3, 1, SAME, "NCHW16c")
    mixed = replace(plain, outputs=(plain.outputs[0].with_layout("ROW"),))
    assert "NCHW16c → ROW" in (FAMILY.matches(mixed, target()) or "")
    multiplied = conv((1, 8, 5, 5), 16, 3, 1, SAME, group=8, layouts=("ROW", "ROW"))
    assert "multiplier 1" in (FAMILY.matches(multiplied, target()) or "")
    assert "expected a float32" in (FAMILY.matches(replace(plain, constants=()), target()) or "")
