"""Pooling kernels against a plain window loop: padding, ceil mode, dilation, global, layouts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from family_check import Case, check_family, evaluate, target, tensor

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.pool import Pool, Window, shape_of

B16, B8 = "NCHW16c", "NCHW8c"


def pool(
    kind: str,
    x: tuple[int, int, int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    layout: str = B16,
    dilations: tuple[int, int] = (1, 1),
    include: bool = False,
    ceil: bool = False,
    epilogue: str | None = None,
    operands: tuple[TensorType, ...] = (),
) -> Workload:
    """A pool workload; the output size follows ONNX."""
    out = [_out(x[2 + d], kernel[d], strides[d], dilations[d], pads[d], pads[2 + d], ceil) for d in (0, 1)]
    attrs = (("count_include_pad", include), ("dilations", dilations), ("kernel", kernel), ("kind", kind),
             ("pads", pads), ("strides", strides))  # fmt: skip
    point = parse(epilogue) if epilogue else None
    constants = tuple(range(1, 1 + len(operands)))
    y = tensor(x[0], x[1], *out, layout=layout)
    return Workload("pool", (tensor(*x, layout=layout), *operands), (y,), attrs, point, constants)


def _out(size: int, k: int, s: int, d: int, begin: int, end: int, ceil: bool) -> int:
    room = size + begin + end - (k - 1) * d - 1
    count = (-(-room // s) if ceil else room // s) + 1
    return count - 1 if ceil and (count - 1) * s >= size + begin else count


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """One window at a time, in float64."""
    x, y, a = feeds[0].astype(np.float64), workload.outputs[0], dict(workload.attrs)
    (top, left, bottom, right), (h, w) = a["pads"], x.shape[2:]
    out = np.empty(y.shape)
    for oh, ow in product(range(y.shape[2]), range(y.shape[3])):
        reach = [[o * a["strides"][d] - p + k * a["dilations"][d] for k in range(a["kernel"][d])]
                 for d, (o, p) in enumerate(((oh, top), (ow, left)))]  # fmt: skip
        window = [x[:, :, r, c] for r, c in product(*reach) if 0 <= r < h and 0 <= c < w]
        padded = sum(r < h + bottom and c < w + right for r, c in product(*reach))
        count = padded if a["count_include_pad"] else len(window)
        out[:, :, oh, ow] = np.max(window, axis=0) if a["kind"] == "max" else np.sum(window, axis=0) / count
    return evaluate(workload.epilogue, out, feeds)


CASES = [
    Case("resnet", pool("max", (1, 32, 11, 13), (3, 3), (2, 2), (1, 1, 1, 1))),
    Case("vgg", pool("max", (2, 19, 8, 6), (2, 2), (2, 2))),
    Case("inception", pool("max", (1, 16, 7, 9), (3, 3), (1, 1), (1, 1, 1, 1))),
    Case("ceil", pool("max", (1, 32, 14, 13), (3, 3), (2, 2), ceil=True)),
    Case("one-sided", pool("max", (1, 16, 8, 8), (3, 3), (2, 2), (0, 0, 1, 1))),
    Case("dilated", pool("max", (1, 16, 12, 11), (3, 2), (1, 2), (2, 1, 2, 1), dilations=(2, 3))),
    Case("uneven", pool("max", (2, 7, 5, 17), (1, 4), (1, 3), (0, 2, 0, 1), layout=B8)),
    Case("large-window", pool("max", (1, 16, 15, 15), (9, 7), (3, 3), (4, 3, 4, 3))),
    Case("avg", pool("avg", (1, 48, 9, 9), (3, 3), (1, 1), (1, 1, 1, 1))),
    Case("avg-include", pool("avg", (1, 20, 9, 9), (3, 3), (2, 2), (1, 1, 1, 1), include=True)),
    Case("avg-include-ceil", pool("avg", (1, 8, 10, 8), (3, 3), (2, 2), (1, 0, 1, 0), include=True, ceil=True)),
    Case("avg-ceil", pool("avg", (1, 16, 10, 8), (3, 2), (2, 3), (0, 1, 0, 0), ceil=True)),
    Case("avg-plain", pool("avg", (1, 32, 14, 14), (2, 2), (2, 2))),
    Case("global", pool("avg", (2, 40, 7, 7), (7, 7))),
    Case("global-max", pool("max", (1, 128, 5, 3), (5, 3), layout=B8)),
    Case("row-max", pool("max", (1, 3, 21, 23), (3, 3), (2, 2), (1, 1, 1, 1), layout="ROW")),
    Case("row-same", pool("max", (2, 3, 6, 37), (3, 3), (1, 1), (1, 1, 1, 1), layout="ROW")),
    Case("row-avg", pool("avg", (1, 5, 9, 40), (3, 3), (1, 1), (1, 1, 1, 1), layout="ROW")),
    Case("row-narrow", pool("avg", (2, 3, 5, 3), (2, 2), layout="ROW", include=True)),
    Case("row-global", pool("avg", (2, 5, 6, 7), (6, 7), layout="ROW")),
    Case("epilogue", pool("avg", (1, 19, 6, 6), (2, 2), (2, 2), epilogue="relu(add(mul(acc,in1),in2))",
                          operands=(tensor(1, 19, 1, 1), tensor(1, 19, 1, 1)))),
    Case("row-epilogue", pool("max", (1, 6, 6, 9), (2, 2), layout="ROW", epilogue="add(acc,in1)",
                              operands=(tensor(6, 1, 1),))),
    Case("scalar-operand", pool("max", (1, 5, 6, 6), (2, 2), epilogue="add(acc,in1)", operands=(tensor(),))),
    Case("nonzero-padding", pool("max", (1, 5, 6, 6), (2, 2), epilogue="exp(acc)")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_window_loop(case: Case) -> None:
    check_family(Pool(), case.workload, reference, samples=4)


@pytest.mark.parametrize("window", [Window(8, 8, 3, 1, 1, 1, 1), Window(13, 7, 3, 2, 1, 1, 1), Window(9, 5, 2, 2, 1, 0, 1)])
@pytest.mark.parametrize("tile", [1, 2, 3])
def test_borders_are_exactly_the_tiles_that_reach_outside(window: Window, tile: int) -> None:
    left, right = window.borders(tile)
    starts = [min(s, window.out - tile) for s in range(0, window.out, tile)]
    for i, start in enumerate(starts):
        reads = {window.at(o, k) for o in range(start, start + tile) for k in range(window.kernel)}
        assert (min(reads) < 0) == (i < left) and (max(reads) >= window.size) == (i >= right)


def test_global_pooling_is_one_row() -> None:
    s = shape_of(pool("avg", (1, 32, 7, 6), (7, 6)))
    assert (s.rows.kernel, s.cols.kernel, s.cols.size) == (1, 42, 42)


def test_dilated_windows_do_not_clamp() -> None:
    assert Window(8, 8, 3, 1, 1, 1, 1).clampable
    assert not Window(8, 8, 3, 1, 2, 1, 3).clampable


def test_declines_mixed_layouts() -> None:
    workload = pool("max", (1, 16, 4, 4), (2, 2))
    mixed = Workload("pool", (tensor(1, 16, 4, 4),), workload.outputs, workload.attrs)
    assert "layouts ROW → NCHW16c" in (Pool().matches(mixed, target()) or "")
