"""view, transpose, concat, split, convert: data moves and nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from wpk.core.pointwise import Input, Literal, apply
from wpk.core.tensor import DTYPE_BYTES, TensorType, channel_block
from wpk.core.workload import Workload
from wpk.ops.base import READ, Builder, Foreign, Layouts, Operator, Shape, Speller, one_layout, row_only


def no_flops(w: Workload) -> float:
    """Nothing is computed."""
    return 0.0


def free_shape(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> None:
    """The shape is the output's own."""
    return None


def same_shape(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The input's shape."""
    return (inputs[0].shape,)


def transpose_shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The input's shape, permuted."""
    return (tuple(inputs[0].shape[p] for p in attrs["perm"]),)


def concat_shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The first input's shape with the axis summed."""
    first, axis = inputs[0].shape, attrs["axis"]
    if any(t.shape[:axis] != first[:axis] or t.shape[axis + 1 :] != first[axis + 1 :] for t in inputs):
        raise ValueError("inputs differ outside the axis")
    return ((*first[:axis], sum(t.shape[axis] for t in inputs), *first[axis + 1 :]),)


def split_shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """One shape for each size."""
    shape, axis = inputs[0].shape, attrs["axis"]
    if sum(attrs["sizes"]) != shape[axis]:
        raise ValueError(f"sizes {attrs['sizes']} do not sum to {shape[axis]}")
    return tuple((*shape[:axis], size, *shape[axis + 1 :]) for size in attrs["sizes"])


def whole_blocks(w: Workload, names: tuple[str, ...]) -> tuple[Layouts, ...]:
    """As :func:`one_layout` along the channels, where every part but the last is made of whole blocks."""
    if w.attr("axis") != 1:
        return row_only(w, names)
    parts = w.inputs if w.op == "concat" else w.outputs
    return tuple(
        layouts for layouts in one_layout(w, names)
        if all(t.shape[1] % channel_block(layouts.outputs[0]) == 0 for t in parts[:-1])
    )  # fmt: skip


def as_given(w: Workload, names: tuple[str, ...]) -> tuple[Layouts, ...]:
    """A conversion's layouts are what it is."""
    return (Layouts(tuple(t.layout for t in w.inputs), tuple(t.layout for t in w.outputs)),)


def lift_view(f: Foreign, b: Builder) -> str | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity: the output's shape is known already, the dtype is any."""
    if f.type(0).dtype != f.out.dtype or f.out.dtype not in DTYPE_BYTES:
        return f"{f.type(0)} is seen as {f.out}"
    if prod(f.type(0).shape) != prod(f.out.shape):
        return f"{f.type(0)} has not the elements of {f.out}"
    b.view(f.inputs[0], f.out.shape, f.outputs[0], final=True, dtype=f.out.dtype)
    return None


def lift_dropout(f: Foreign, b: Builder) -> str | None:
    """Dropout at inference, its mask unused."""
    training = f.constant(2)
    if f.extra_outputs or (f.has(2) and (training is None or bool(training))):
        return "training, or the mask is used"
    return lift_view(f, b)


def lift_cast(f: Foreign, b: Builder) -> str | None:
    """Cast to the same dtype: nothing; to float32 an eltwise, which reads all its operands as float32."""
    if f.type(0).dtype == f.out.dtype:
        return lift_view(f, b)
    if f.out.dtype not in ("float32", "bool") or f.type(0).dtype not in READ:
        return f"{f.type(0).dtype} to {f.out.dtype}"
    point = Input(0) if f.out.dtype == "float32" else apply("sub", Literal(1.0), apply("eq", Input(0), Literal(0.0)))
    b.emit("eltwise", f.inputs, f.out.shape, f.outputs[0], point, final=True, dtype=f.out.dtype)
    return None


def lift_expand(f: Foreign, b: Builder) -> str | None:
    """Expand: a view, or the sum with as many zeros as it takes."""
    x, y = f.type(0), f.out.shape
    if prod(x.shape) == prod(y):
        return lift_view(f, b)
    if x.dtype not in ("float32", "bool"):
        return f"{x} is repeated"
    full = (1,) * (len(y) - len(x.shape)) + x.shape
    zeros = np.zeros([n if k != n else 1 for k, n in zip(full, y, strict=True)], np.float32)
    names = (f.inputs[0], b.constant(zeros, f.outputs[0]))
    b.emit("eltwise", names, y, f.outputs[0], apply("add", Input(0), Input(1)), final=True, dtype=x.dtype)
    return None


def lift_transpose(f: Foreign, b: Builder) -> str | None:
    """Transpose."""
    perm = tuple(f.attrs.get("perm", range(len(f.out.shape))[::-1]))
    b.emit("transpose", f.inputs, f.out.shape, f.outputs[0], final=True, perm=perm)
    return None


def lift_concat(f: Foreign, b: Builder) -> str | None:
    """Concat."""
    axis = int(f.attrs["axis"]) % len(f.out.shape)
    b.emit("concat", f.inputs, f.out.shape, f.outputs[0], final=True, axis=axis)
    return None


def lift_split(f: Foreign, b: Builder) -> str | None:
    """Split; the sizes are the outputs'."""
    axis = int(f.attrs.get("axis", 0)) % len(f.type(0).shape)
    b.split(f.inputs[0], f.outputs, [f.types[v].shape for v in f.outputs], axis)
    return None


def lift_slice(f: Foreign, b: Builder) -> str | None:
    """Slice with step 1: for each axis that is cut, the middle part of a split."""
    starts = _slice_starts(f)
    if starts is None or f.out.dtype != "float32":
        return "not a contiguous part, or not of float32"
    value, shape = f.inputs[0], f.type(0).shape
    cut = [i for i, n in enumerate(f.out.shape) if n != shape[i]]
    for axis in cut:
        size = f.out.shape[axis]
        sizes = (starts[axis], size, shape[axis] - starts[axis] - size)
        final = axis == cut[-1]
        names = [f.outputs[0] if i == 1 and final else b.fresh(f.outputs[0]) for i in range(3)]
        parts = [(v, (*shape[:axis], n, *shape[axis + 1 :])) for v, n in zip(names, sizes, strict=True) if n]
        b.split(value, [v for v, _ in parts], [p for _, p in parts], axis)
        value, shape = names[1], (*shape[:axis], size, *shape[axis + 1 :])
    if not cut:
        b.view(value, shape, f.outputs[0], final=True)
    return None


def _slice_starts(f: Foreign) -> dict[int, int] | None:
    """Where each axis that is named starts; None when that is not known, or a step is not 1."""
    starts = f.constant(1) if f.opset >= 10 else f.attrs.get("starts")
    axes = f.constant(3) if f.opset >= 10 else f.attrs.get("axes")
    steps = f.constant(4)
    unknown = any(f.has(i) and f.constant(i) is None for i in (3, 4)) if f.opset >= 10 else False
    if starts is None or unknown or (steps is not None and set(steps.tolist()) != {1}):
        return None
    rank, x = len(f.out.shape), f.type(0).shape
    listed = [int(a) % rank for a in (axes if axes is not None else range(len(starts)))]
    found = zip(listed, map(int, starts), strict=True)
    return {a: min(max(start + x[a] if start < 0 else start, 0), x[a]) for a, start in found}


def lift_pad(f: Foreign, b: Builder) -> str | None:
    """Pad with a constant: for each axis a concat with constants, which the pass ``idioms`` makes padding of a convolution."""
    pads, value = pads_of(f), f.constant(2)
    if str(f.attrs.get("mode", "constant")) != "constant" or (f.has(2) and value is None) or pads is None:
        return "not by a constant, or by how much is not known"
    if any(n < 0 for pair in pads.values() for n in pair) or f.out.dtype != "float32":
        return "cuts, or is not of float32"
    filler = float(value.reshape(())) if value is not None else float(f.attrs.get("value", 0.0))
    name, shape = f.inputs[0], f.type(0).shape
    for axis, pair in pads.items():
        sides = [np.full((*shape[:axis], n, *shape[axis + 1 :]), filler, np.float32) for n in pair]
        before, after = ([b.constant(side, f.outputs[0])] if side.size else [] for side in sides)
        shape = (*shape[:axis], shape[axis] + sum(pair), *shape[axis + 1 :])
        name = b.emit("concat", (*before, name, *after), shape, f.outputs[0], axis=axis)
    b.view(name, shape, f.outputs[0], final=True)
    return None


def pads_of(f: Foreign) -> dict[int, tuple[int, int]] | None:
    """Elements before and after each padded axis; None when they are not known."""
    pads = f.constant(1) if f.opset >= 11 else f.attrs.get("pads")
    axes = f.constant(3) if f.has(3) else np.arange(len(f.out.shape))
    if pads is None or axes is None:
        return None
    count = len(axes)
    each = {int(a) % len(f.out.shape): (int(pads[i]), int(pads[i + count])) for i, a in enumerate(axes)}
    return {axis: pair for axis, pair in each.items() if pair != (0, 0)}


def spell_view(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Reshape to the output's shape."""
    s.op("Reshape", (*ins, s.constant(np.array(w.outputs[0].shape, np.int64))), outs[0])


def spell_transpose(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Transpose."""
    s.op("Transpose", ins, outs[0], perm=w.attr("perm"))


def spell_concat(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Concat."""
    s.op("Concat", ins, outs[0], axis=w.attr("axis"))


def spell_split(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Split; its sizes are an input from opset 13 on."""
    sizes = cast("tuple[int, ...]", w.attr("sizes"))
    if s.opset < 13:
        s.outputs("Split", ins, outs, axis=w.attr("axis"), split=sizes)
    else:
        s.outputs("Split", (*ins, s.constant(np.array(sizes, np.int64))), outs, axis=w.attr("axis"))


def spell_convert(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """Logically nothing."""
    s.op("Identity", ins, outs[0])


_VIEWS = dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"), lift_view)

VIEW = Operator(
    "view", "injective", 1, (), free_shape, no_flops, row_only, spell_view,
    {**_VIEWS, "Dropout": lift_dropout, "Cast": lift_cast, "Expand": lift_expand},
)  # fmt: skip
TRANSPOSE = Operator(
    "transpose", "injective", 1, ("perm",), transpose_shapes, no_flops, row_only, spell_transpose,
    {"Transpose": lift_transpose},
)  # fmt: skip
CONCAT = Operator(
    "concat",
    "injective",
    None,
    ("axis",),
    concat_shapes,
    no_flops,
    whole_blocks,
    spell_concat,
    {"Concat": lift_concat, "Pad": lift_pad},
)
SPLIT = Operator(
    "split", "injective", 1, ("axis", "sizes"), split_shapes, no_flops, whole_blocks, spell_split,
    {"Split": lift_split, "Slice": lift_slice},
)  # fmt: skip
CONVERT = Operator("convert", "injective", 1, (), same_shape, no_flops, as_given, spell_convert)
