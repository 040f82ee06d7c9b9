"""pool: maximum or average over windows; global pooling is one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, one_layout
from wpk.ops.conv import explicit_pads, ints, windows

ATTRS = ("count_include_pad", "dilations", "kernel", "kind", "pads", "strides")


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(N, C, OH, OW)."""
    n, c, *spatial = inputs[0].shape
    return ((n, c, *windows(spatial, attrs["kernel"], attrs)),)


def flops(w: Workload) -> float:
    """One for each element of each window."""
    return float(prod(w.outputs[0].shape) * prod(cast("tuple[int, ...]", w.attr("kernel"))))


def lift(f: Foreign, b: Builder) -> str | None:
    """MaxPool and AveragePool over two axes, without indices."""
    if len(f.type(0).shape) != 4:
        return f"pooling over {len(f.type(0).shape) - 2} axes"
    if f.extra_outputs:
        return "indices are used"
    include = int(f.attrs.get("count_include_pad", 0))
    kernel = tuple(f.attrs["kernel_shape"])
    pads = explicit_pads(f, kernel, f.out.shape[2:])
    if include and pads != tuple(f.attrs.get("pads", (0, 0, 0, 0))):
        return "average that counts padding, with computed padding"
    kind = "max" if f.op_type == "MaxPool" else "avg"
    b.emit(
        "pool", f.inputs[:1], f.out.shape, f.outputs[0], final=True, count_include_pad=include, kernel=kernel,
        dilations=ints(f, "dilations", 2), kind=kind, pads=pads, strides=ints(f, "strides", 2),
    )  # fmt: skip
    return None


def lift_global(f: Foreign, b: Builder) -> str | None:
    """GlobalMaxPool and GlobalAveragePool."""
    if len(f.type(0).shape) != 4:
        return f"pooling over {len(f.type(0).shape) - 2} axes"
    _emit_global(f, b, "max" if f.op_type == "GlobalMaxPool" else "avg", f.outputs[0], final=True)
    return None


def lift_reduce(f: Foreign, b: Builder) -> str | None:
    """ReduceMean and ReduceMax over exactly the spatial axes of an image."""
    axes = f.constant(1) if f.has(1) else f.attrs.get("axes")
    if axes is None or sorted(int(a) % 4 for a in axes) != [2, 3] or len(f.type(0).shape) != 4:
        return "not over the two spatial axes"
    keep = bool(f.attrs.get("keepdims", 1))
    name = _emit_global(f, b, "max" if f.op_type == "ReduceMax" else "avg", f.outputs[0], final=keep)
    if not keep:
        b.view(name, f.out.shape, f.outputs[0], final=True)
    return None


def _emit_global(f: Foreign, b: Builder, kind: str, output: str, final: bool) -> str:
    n, c, *spatial = f.type(0).shape
    return b.emit(
        "pool", f.inputs[:1], (n, c, 1, 1), output, final=final, count_include_pad=0, dilations=(1, 1),
        kernel=tuple(spatial), kind=kind, pads=(0, 0, 0, 0), strides=(1, 1),
    )  # fmt: skip


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """MaxPool or AveragePool; dilations only where they matter, for older opsets do not have them."""
    attrs: dict[str, Any] = {
        "kernel_shape": w.attr("kernel"),
        "pads": w.attr("pads"),
        "strides": w.attr("strides"),
    }
    if set(cast("tuple[int, ...]", w.attr("dilations"))) != {1}:
        attrs["dilations"] = w.attr("dilations")
    if w.attr("kind") == "max":
        s.op("MaxPool", ins, outs[0], **attrs)
    else:
        s.op("AveragePool", ins, outs[0], count_include_pad=w.attr("count_include_pad"), **attrs)


POOL = Operator(
    "pool", "reduction", 1, ATTRS, shapes, flops, one_layout, spell,
    {
        "MaxPool": lift, "AveragePool": lift, "GlobalMaxPool": lift_global, "GlobalAveragePool": lift_global,
    },
)  # fmt: skip
