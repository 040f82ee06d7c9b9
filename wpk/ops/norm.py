"""lrn and softmax: reductions that give back their input's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, one_layout, row_only


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The input's."""
    return (inputs[0].shape,)


def lrn_flops(w: Workload) -> float:
    """A square and a sum for each element of the window, and a power."""
    return float(prod(w.outputs[0].shape) * (2 * int(cast(int, w.attr("size"))) + 10))


def softmax_flops(w: Workload) -> float:
    """Maximum, subtraction, exponential, sum and division."""
    return 5.0 * prod(w.outputs[0].shape)


def lift_lrn(f: Foreign, b: Builder) -> str | None:
    """LRN over images."""
    if len(f.type(0).shape) != 4:
        return f"LRN of {len(f.type(0).shape)} dimensions"
    alpha, beta, bias = (
        float(f.attrs.get(k, d)) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    size = int(f.attrs["size"])
    b.emit(
        "lrn", f.inputs, f.out.shape, f.outputs[0], final=True, alpha=alpha, beta=beta, bias=bias, size=size
    )
    return None


def lift_softmax(f: Foreign, b: Builder) -> str | None:
    """Softmax. Before opset 13 it normalizes over all axes from ``axis`` on, which a view turns into one."""
    shape = f.type(0).shape
    axis = int(f.attrs.get("axis", -1 if f.opset >= 13 else 1)) % max(len(shape), 1)
    if not shape:
        return "softmax of a scalar"
    if f.opset >= 13 or axis == len(shape) - 1:
        b.emit("softmax", f.inputs, shape, f.outputs[0], final=True, axis=axis)
        return None
    flat = (prod(shape[:axis]), prod(shape[axis:]))
    name = b.view(f.inputs[0], flat, f.inputs[0])
    name = b.emit("softmax", (name,), flat, f.outputs[0], axis=1)
    b.view(name, shape, f.outputs[0], final=True)
    return None


def spell_lrn(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """LRN."""
    s.op("LRN", ins, outs[0], **dict(w.attrs))


def spell_softmax(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Softmax over the last axis, which means the same in every opset; other axes are moved there and back."""
    rank, axis = len(w.inputs[0].shape), int(cast(int, w.attr("axis")))
    if axis % rank == rank - 1:
        s.op("Softmax", ins, outs[0], axis=rank - 1)
        return
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    moved = s.op("Transpose", ins, perm=tuple(perm))
    s.op("Transpose", (s.op("Softmax", (moved,), axis=rank - 1),), outs[0], perm=tuple(perm))


LRN = Operator(
    "lrn",
    "reduction",
    1,
    ("alpha", "beta", "bias", "size"),
    shapes,
    lrn_flops,
    one_layout,
    spell_lrn,
    {"LRN": lift_lrn},
)
SOFTMAX = Operator(
    "softmax",
    "anchor",
    1,
    ("axis",),
    shapes,
    softmax_flops,
    row_only,
    spell_softmax,
    {"Softmax": lift_softmax},
)
