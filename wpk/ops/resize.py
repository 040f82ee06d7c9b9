"""resize: images of other sizes, by the nearest pixel or linearly between pixels, as ONNX Resize and Upsample.

Where an output pixel lies among the input's is known when compiling: :func:`taps` gives the two input pixels of each output
row or column, and how much the second counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, one_layout

COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
ATTRS = ("coordinate", "kind", "rounding", "scales", "sizes")


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(N, C, OH, OW)."""
    n, c, _, _ = inputs[0].shape
    return ((n, c, *attrs["sizes"]),)


def flops(w: Workload) -> float:
    """Three multiply-adds of an output element, or nothing."""
    return 6.0 * prod(w.outputs[0].shape) if w.attr("kind") == "linear" else 0.0


def taps(w: Workload, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second input pixel of each output row (axis 0) or column (1), and the share of the second, in float32."""
    extent, count = w.inputs[0].shape[2 + axis], w.outputs[0].shape[2 + axis]
    scale = np.float32(cast("tuple[float, ...]", w.attr("scales"))[axis])
    at = positions(str(w.attr("coordinate")), extent, count, scale)
    if w.attr("kind") == "nearest":
        first = np.clip(_rounded(at, str(w.attr("rounding"))), 0, extent - 1).astype(np.int64)
        return first, first, np.zeros(count, np.float32)
    at = np.clip(at, 0, extent - 1)
    first = np.floor(at).astype(np.int64)
    return first, np.minimum(first + 1, extent - 1), (at - first).astype(np.float32)


def positions(coordinate: str, extent: int, count: int, scale: np.float32) -> np.ndarray:
    """Where ``count`` output pixels lie among ``extent`` input pixels, in float32."""
    o, half = np.arange(count, dtype=np.float32), np.float32(0.5)
    if coordinate == "asymmetric":
        return o / scale
    if coordinate == "align_corners":
        return o * np.float32(extent - 1) / np.float32(max(count - 1, 1))
    if coordinate == "pytorch_half_pixel" and count == 1:
        return np.zeros(1, np.float32)
    middle = (o + half) / scale - half
    if coordinate == "half_pixel_symmetric":
        grown = np.float32(count) / (scale * np.float32(extent))
        return np.float32(extent) / 2 * (1 - grown) + middle
    return middle


def _rounded(at: np.ndarray, rounding: str) -> np.ndarray:
    half = np.float32(0.5)
    shifted = {"round_prefer_ceil": at + half, "round_prefer_floor": at - half}.get(rounding, at)
    rounded: np.ndarray = np.floor(shifted) if rounding in ("floor", "round_prefer_ceil") else np.ceil(shifted)
    return rounded


def lift(f: Foreign, b: Builder) -> str | None:
    """Resize and Upsample of the two spatial axes of images, nearest or linear."""
    x, y = f.type(0).shape, f.out.shape
    found = settings(f)
    if isinstance(found, str):
        return found
    kind, coordinate, rounding = found
    if len(x) != 4 or x[:2] != y[:2]:
        return f"{x} to {y}, expected images of other heights and widths"
    scales = _scales(f)
    if scales is None:
        return "scales or sizes are not constant"
    b.emit(
        "resize", f.inputs[:1], y, f.outputs[0], final=True, coordinate=coordinate, kind=kind, rounding=rounding,
        scales=scales, sizes=y[2:],
    )  # fmt: skip
    return None


def settings(f: Foreign) -> tuple[str, str, str] | str:
    """Kind, coordinate mode and rounding; or why they are none of ours."""
    kind = str(f.attrs.get("mode", "nearest"))
    old = f.op_type == "Upsample" or f.opset < 11
    coordinate = "asymmetric" if old else str(f.attrs.get("coordinate_transformation_mode", "half_pixel"))
    rounding = "floor" if old else str(f.attrs.get("nearest_mode", "round_prefer_floor"))
    if kind not in ("nearest", "linear") or coordinate not in COORDINATES or rounding not in ROUNDINGS:
        return f"mode {kind}, {coordinate}, {rounding}"
    if any(f.attrs.get(k) for k in ("antialias", "exclude_outside", "axes")):
        return "antialias, exclude_outside or axes"
    if f.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "the aspect ratio is kept"
    return kind, coordinate, rounding if kind == "nearest" else ""


def _scales(f: Foreign) -> tuple[float, ...] | None:
    """Height's and width's: as given, or output over input; None when neither scales nor sizes are constant."""
    x, y = f.type(0).shape, f.out.shape
    given = f.attrs.get("scales") if f.opset < 9 else f.constant(1 if f.opset < 11 or f.op_type == "Upsample" else 2)
    if given is not None and len(given) == 4:
        return tuple(float(np.float32(v)) for v in given[2:])
    sizes = f.constant(3)
    return None if sizes is None else _ratios(x, y)


def _ratios(x: Shape, y: Shape) -> tuple[float, ...]:
    return tuple(float(np.float32(b) / np.float32(a)) for a, b in zip(x[2:], y[2:], strict=True))


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Resize by sizes where they say all, else by scales; what old opsets have is all that comes from them."""
    scales = cast("tuple[float, ...]", w.attr("scales"))
    full = (1.0, 1.0, *scales)
    kind = str(w.attr("kind"))
    if s.opset < 9:
        s.op("Upsample", ins, outs[0], mode=kind, scales=full)
        return
    factors = s.constant(np.array(full, np.float32))
    if s.opset < 11:
        s.op("Resize" if s.opset == 10 else "Upsample", (ins[0], factors), outs[0], mode=kind)
        return
    rounding = {"nearest_mode": str(w.attr("rounding"))} if kind == "nearest" else {}
    roi = s.constant(np.zeros(0, np.float32))
    by_size = scales == _ratios(w.inputs[0].shape, w.outputs[0].shape)
    tail = (s.constant(np.zeros(0, np.float32)), s.constant(np.array(w.outputs[0].shape, np.int64)))
    s.op(
        "Resize", (ins[0], roi, *(tail if by_size else (factors,))), outs[0], mode=kind,
        coordinate_transformation_mode=str(w.attr("coordinate")), **rounding,
    )  # fmt: skip


RESIZE = Operator(
    "resize", "reduction", 1, ATTRS, shapes, flops, one_layout, spell, {"Resize": lift, "Upsample": lift}
)
