"""gather: parts of a tensor along an axis, chosen by integers: an embedding lookup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, row_only

INDICES = ("int64", "int32")


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The data's shape with the indices' shape in place of the axis."""
    (data, indices), axis = inputs[:2], attrs["axis"]
    if not 0 <= axis < len(data.shape) or indices.dtype not in INDICES:
        raise ValueError(f"axis {axis} of {data} by {indices}")
    return ((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]),)


def flops(w: Workload) -> float:
    """Nothing is computed."""
    return 0.0


def lift(f: Foreign, b: Builder) -> str | None:
    """Gather of float32; by one constant index it is the middle part of a split."""
    data, indices = f.type(0), f.type(1)
    if data.dtype != "float32" or indices.dtype not in INDICES:
        return f"{data} by {indices}, expected float32 by int64 or int32"
    axis, known = int(f.attrs.get("axis", 0)) % len(data.shape), f.constant(1)
    if known is None or known.size > 1 or f.inputs[0] in f.constants:
        b.emit("gather", f.inputs, f.out.shape, f.outputs[0], final=True, axis=axis)
        return None
    index = int(known.reshape(())) % data.shape[axis]
    sizes = (index, 1, data.shape[axis] - index - 1)
    names = [(b.fresh(f.outputs[0]), n) for n in sizes]
    kept = [(v, n) for v, n in names if n]
    part = [(*data.shape[:axis], n, *data.shape[axis + 1 :]) for _, n in kept]
    b.split(f.inputs[0], [v for v, _ in kept], part, axis)
    b.view(names[1][0], f.out.shape, f.outputs[0], final=True)
    return None


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Gather."""
    s.op("Gather", ins, outs[0], axis=w.attr("axis"))


GATHER = Operator("gather", "injective", 2, ("axis",), shapes, flops, row_only, spell, {"Gather": lift})
