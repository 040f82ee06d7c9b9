"""Direct and Winograd convolution: every sampled config, interpreted and compiled, against sliding windows in float64."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from family_check import check_family, target

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.dsl.verify import verify
from wpk.kernels.conv_direct import ConvDirect
from wpk.kernels.epilogue import vanishes
from wpk.kernels.winograd import Winograd, transform


def conv(
    x: tuple[int, int, int, int],
    k: int,
    size: int,
    stride: int = 1,
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: int = 1,
    group: int = 1,
    layouts: tuple[str, str] = ("NCHW16c", "NCHW16c"),
    residual: bool = False,
    act: str = "relu({})",
) -> Workload:
    """A convolution with bias, maybe a residual, and an activation."""
    n, c, h, w = x
    reach = dilation * (size - 1) + 1
    out = (n, k, (h + pads[0] + pads[2] - reach) // stride + 1, (w + pads[1] + pads[3] - reach) // stride + 1)
    inputs = [
        TensorType("float32", x, layouts[0]),
        TensorType("float32", (k, c // group, size, size)),
        TensorType("float32", (1, k, 1, 1)),
    ]
    text = "add(acc,in2)"
    if residual:
        inputs.append(TensorType("float32", out, layouts[1]))
        text = f"add({text},in3)"
    attrs = (("dilations", (dilation,) * 2), ("group", group), ("pads", pads), ("strides", (stride,) * 2))
    result = (TensorType("float32", out, layouts[1]),)
    return Workload("conv", tuple(inputs), result, attrs, parse(act.format(text)), (1, 2))


def reference(workload: Workload, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The convolution by sliding windows, in float64; its activation is relu or sigmoid."""
    x, w, bias = (a.astype(np.float64) for a in arrays[:3])
    (top, left, bottom, right), (s, _), (d, _) = (workload.ints(a) for a in ("pads", "strides", "dilations"))
    group, size = int(workload.attr("group")), w.shape[2]  # type: ignore[arg-type]
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = d * (size - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))[:, :, ::s, ::s, ::d, ::d]
    n, c = windows.shape[:2]
    grouped = windows.reshape(n, group, c // group, *windows.shape[2:])
    kernels = w.reshape(group, -1, c // group, size, size)
    y = np.einsum("ngchwij,gkcij->ngkhw", grouped, kernels, optimize=True).reshape(workload.outputs[0].shape) + bias
    y = y + arrays[3] if len(arrays) > 3 else y
    relu = str(workload.epilogue).startswith("relu")
    return np.asarray(np.maximum(y, 0) if relu else 1 / (1 + np.exp(-y)), np.float32)


SAME3 = (1, 1, 1, 1)
DIRECT = {
    "pointwise": conv((1, 16, 7, 7), 32, 1),
    "pointwise-batch": conv((2, 32, 5, 6), 16, 1, residual=True),
    "odd-channels": conv((1, 24, 9, 9), 40, 3, 2, SAME3, residual=True),
    "stem": conv((1, 3, 17, 15), 16, 7, 2, (3, 3, 3, 3), layouts=("ROW", "NCHW16c")),
    "groups": conv((1, 32, 5, 5), 64, 3, 1, SAME3, group=2),
    "dilated": conv((1, 16, 11, 9), 16, 3, 1, (2, 2, 2, 2), dilation=2),
    "uneven-pads": conv((1, 16, 8, 8), 16, 3, 2, (0, 0, 1, 1)),
    "block8": conv((1, 16, 6, 6), 20, 3, 1, SAME3, layouts=("NCHW8c", "NCHW8c")),
    "sigmoid": conv((1, 16, 5, 5), 24, 1, act="sigmoid({})"),
}
WINOGRAD = {
    "plain": conv((1, 16, 7, 7), 32, 3, 1, SAME3),
    "batch-odd": conv((2, 24, 6, 9), 20, 3, 1, SAME3, residual=True),
    "no-pad": conv((1, 16, 10, 10), 16, 3),
    "five": conv((1, 16, 8, 8), 16, 5, 1, (2, 2, 2, 2)),
    "groups": conv((1, 32, 6, 6), 32, 3, 1, SAME3, group=2),
    "block8": conv((1, 16, 9, 6), 16, 3, 1, SAME3, layouts=("NCHW8c", "NCHW8c")),
}


@pytest.mark.parametrize("name", DIRECT)
def test_direct(name: str) -> None:
    check_family(ConvDirect(), DIRECT[name], reference, samples=3)


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd(name: str) -> None:
    check_family(Winograd(), WINOGRAD[name], reference, samples=2, tolerance=1e-5, interpret_too=name == "plain")


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (2, 5)])
def test_the_transforms_convolve(m: int, r: int) -> None:
    f = transform(m, r)
    bt, at, g = np.array(f.b2) @ np.array(f.b1), np.array(f.a2) @ np.array(f.a1), np.array(f.g)
    rng = np.random.default_rng(0)
    d, w = rng.normal(size=f.size), rng.normal(size=r)
    np.testing.assert_allclose(at @ ((g @ w) * (bt @ d)), np.correlate(d, w, "valid"), atol=1e-12)


def test_a_resnet_convolution_has_thousands_of_configs() -> None:
    workload = conv((1, 64, 56, 56), 64, 3, 1, SAME3)
    for family in (ConvDirect(), Winograd()):
        space, rng = family.space(workload, target()), Random(0)
        found = {tuple(sorted(space.sample(rng).items())) for _ in range(1200)}
        assert len(found) > 1100
        verify(family.build(workload, space.default(), target()).kernel)


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (conv((1, 16, 7, 7), 16, 3, 2), "stride 2"),
        (conv((1, 16, 7, 7), 16, 1), "kernel 1x1"),
        (conv((1, 3, 7, 7), 16, 3, layouts=("ROW", "NCHW16c")), "layouts"),
    ],
)
def test_winograd_says_why_not(workload: Workload, reason: str) -> None:
    assert reason in (Winograd().matches(workload, target()) or "")


def test_direct_says_why_not() -> None:
    assert "output layout" in (ConvDirect().matches(conv((1, 16, 7, 7), 16, 3, layouts=("ROW", "ROW")), target()) or "")
    grouped = conv((1, 24, 7, 7), 24, 3, group=3)
    assert "per group" in (ConvDirect().matches(grouped, target()) or "")


def test_padding_lanes_need_no_mask_when_the_epilogue_keeps_zero() -> None:
    assert vanishes(parse("relu(add(acc,in2))"))
    assert not vanishes(parse("sigmoid(acc)"))
    assert not vanishes(parse("log(acc)"))
