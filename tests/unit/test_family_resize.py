"""Resizing against ONNX Runtime: kinds, coordinate modes, roundings, layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_check import check_family, target, tensor
from graph_build import make, node, ops, optimized

from wpk.core.workload import Workload
from wpk.kernels.resize import Resize
from wpk.ops.resize import COORDINATES, ROUNDINGS
from wpk.providers.reference import reference_output

H, W = 5, 6


def resize(
    out: tuple[int, int], coordinate: str = "half_pixel", kind: str = "linear", rounding: str = "",
    layout: str = "ROW", c: int = 3, scales: tuple[float, float] | None = None,
) -> Workload:  # fmt: skip
    """A resize of 5 × 6 images."""
    ratios = tuple(float(np.float32(b) / np.float32(a)) for a, b in zip((H, W), out, strict=True))
    attrs = (
        ("coordinate", coordinate), ("kind", kind), ("rounding", rounding), ("scales", scales or ratios), ("sizes", out),
    )  # fmt: skip
    return Workload("resize", (tensor(2, c, H, W, layout=layout),), (tensor(2, c, *out, layout=layout),), attrs)


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """ONNX Runtime."""
    return reference_output(workload, feeds)[0]


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("out", [(10, 12), (7, 4), (15, 6), (1, 40)])
def test_linear(coordinate: str, out: tuple[int, int]) -> None:
    check_family(Resize(), resize(out, coordinate), reference, samples=1)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("coordinate", ["half_pixel", "asymmetric", "align_corners"])
def test_nearest(rounding: str, coordinate: str) -> None:
    for out in ((10, 12), (7, 40)):
        check_family(Resize(), resize(out, coordinate, "nearest", rounding), reference, samples=1, tolerance=0)


@pytest.mark.parametrize("kind", ["linear", "nearest"])
def test_blocked_layouts(kind: str) -> None:
    for layout, c in (("NCHW16c", 20), ("NCHW8c", 8)):
        workload = resize((9, 12), "half_pixel", kind, "floor" if kind == "nearest" else "", layout, c)
        check_family(Resize(), workload, reference, samples=3)


def test_scales_that_are_not_the_ratio() -> None:
    workload = resize((8, 10), "half_pixel", "linear", scales=(1.7, 1.7))
    check_family(Resize(), workload, reference, samples=1)


def test_channels_last_are_declined() -> None:
    assert "expected float32" in (Resize().matches(resize((3, 3), layout="NHWC"), target()) or "")


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, "resize"), ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "resize"),
        ({"mode": "nearest", "nearest_mode": "ceil"}, "resize"), ({"mode": "cubic"}, "region"),
    ],
)  # fmt: skip
def test_resize_of_onnx(attrs: dict[str, Any], expected: str, tmp_path: Path) -> None:
    by_scale = {"roi": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 1.5], np.float32)}
    model = make([node("Resize", ["x", *by_scale], ["y"], **attrs)], {"x": [1, 3, H, W]}, ["y"], by_scale)
    assert ops(optimized(model, tmp_path)) == [expected]
    by_size = {"n": np.array([1, 3, 8, 4])}
    model = make([node("Resize", ["x", "", "", "n"], ["y"], **attrs)], {"x": [1, 3, H, W]}, ["y"], by_size)
    assert ops(optimized(model, tmp_path)) == [expected]


@pytest.mark.parametrize(("opset", "op"), [(9, "Upsample"), (10, "Resize")])
def test_old_opsets(opset: int, op: str, tmp_path: Path) -> None:
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    model = make([node(op, ["x", "s"], ["y"], mode="nearest")], {"x": [1, 3, H, W]}, ["y"], scales, opset=opset)
    assert ops(optimized(model, tmp_path)) == ["resize"]
