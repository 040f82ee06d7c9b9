"""lrn, softmax and norm: reductions that give back their input's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from wpk.core.pointwise import Acc, Input, Point, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, eltwise, one_layout, row_only
from wpk.ops.reduce import spell_reduce


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The input's."""
    return (inputs[0].shape,)


def lrn_flops(w: Workload) -> float:
    """A square and a sum for each element of the window, and a power."""
    return float(prod(w.outputs[0].shape) * (2 * int(cast(int, w.attr("size"))) + 10))


def softmax_flops(w: Workload) -> float:
    """Maximum, subtraction, exponential, sum and division."""
    return 5.0 * prod(w.outputs[0].shape)


def norm_flops(w: Workload) -> float:
    """Two sums, the difference, the square and the product; without the mean three of them."""
    return (5.0 if w.attr("kind") == "layer" else 3.0) * prod(w.outputs[0].shape)


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


def lift_norm(f: Foreign, b: Builder) -> str | None:
    """LayerNormalization and RMSNormalization, statistics unused; constant scale and bias become the epilogue."""
    if f.extra_outputs:
        return "the statistics are used"
    shape = f.type(0).shape
    axis = int(f.attrs.get("axis", -1)) % len(shape)
    attrs: dict[str, Any] = {
        "axis": axis, "epsilon": float(f.attrs.get("epsilon", 1e-5)), "kind": _kind(f.op_type),
    }  # fmt: skip
    names = [v for i, v in enumerate(f.inputs[1:3], 1) if f.has(i)]
    if any(v not in f.constants for v in names):
        name = b.emit("norm", f.inputs[:1], shape, f.outputs[0], **attrs)
        eltwise(f, b, scaled(Input(0), len(names), 1), (name, *names), shape, f.outputs[0])
        return None
    operands = [
        b.constant(_ranked(np.broadcast_to(f.constants[v], shape[axis:]), len(shape)), v) for v in names
    ]
    point = scaled(Acc(), len(names), 1)
    b.emit("norm", (f.inputs[0], *operands), shape, f.outputs[0], point, final=True, **attrs)
    return None


def _kind(op_type: str) -> str:
    return "layer" if op_type == "LayerNormalization" else "rms"


def _ranked(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def scaled(point: Point, operands: int, first: int) -> Point:
    """``point`` times one operand, plus the next."""
    if operands > 0:
        point = apply("mul", point, Input(first))
    return apply("add", point, Input(first + 1)) if operands > 1 else point


def lift_channel_groups(f: Foreign, b: Builder) -> str | None:
    """InstanceNormalization and GroupNormalization: each group of channels of each image is a row."""
    n, c, *spatial = f.type(0).shape
    if f.op_type == "GroupNormalization" and f.opset < 21:
        return "scale and bias by group, as before opset 21"
    groups = int(f.attrs.get("num_groups", c))
    flat = (n * groups, c // groups * prod(spatial))
    rows = b.view(f.inputs[0], flat, f.inputs[0])
    epsilon = float(f.attrs.get("epsilon", 1e-5))
    rows = b.emit("norm", (rows,), flat, f.outputs[0], axis=1, epsilon=epsilon, kind="layer")
    image = b.view(rows, f.out.shape, f.outputs[0])
    shape = (1, c, *(1 for _ in spatial))
    names = [
        b.constant(f.constants[v].reshape(shape), v) if v in f.constants else b.view(v, shape, v)
        for v in f.inputs[1:3]
    ]
    eltwise(f, b, scaled(Input(0), 2, 1), (image, *names), f.out.shape, f.outputs[0])
    return None


def spell_norm(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """LayerNormalization without scale from opset 17 on, else its definition, as of the root mean square."""
    shape, axis = w.inputs[0].shape, int(cast(int, w.attr("axis")))
    epsilon, axes = float(cast(float, w.attr("epsilon"))), range(axis, len(shape))
    layer = w.attr("kind") == "layer"
    if layer and s.opset >= 17:
        ones = s.constant(np.ones(shape[axis:], np.float32))
        s.op("LayerNormalization", (ins[0], ones), outs[0], axis=axis, epsilon=epsilon)
        return
    x = s.op("Sub", (ins[0], spell_reduce(s, "mean", ins[0], axes))) if layer else ins[0]
    square = spell_reduce(s, "mean", s.op("Mul", (x, x)), axes)
    root = s.op("Sqrt", (s.op("Add", (square, s.constant(np.array(epsilon, np.float32)))),))
    s.op("Div", (x, root), outs[0])


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
NORM = Operator(
    "norm", "anchor", 1, ("axis", "epsilon", "kind"), shapes, norm_flops, row_only, spell_norm,
    {
        "LayerNormalization": lift_norm, "RMSNormalization": lift_norm,
        "InstanceNormalization": lift_channel_groups, "GroupNormalization": lift_channel_groups,
    },
)  # fmt: skip
