"""reduce: the sum, mean, maximum or minimum over neighbouring axes, which stay as axes of extent 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from wpk.core.pointwise import Input, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops import pool
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, eltwise, row_only

#: ONNX op → kind
KINDS = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}
#: ONNX ops that are a sum of squares, and what is done with it
SQUARES = {"ReduceSumSquare": None, "ReduceL2": "sqrt"}
_SPELLED = {kind: op for op, kind in KINDS.items()}


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The input's shape with 1 at the axes, which are ascending neighbours."""
    shape, axes = inputs[0].shape, attrs["axes"]
    if not axes or tuple(axes) != tuple(range(axes[0], axes[0] + len(axes))) or axes[-1] >= len(shape):
        raise ValueError(f"axes {axes} of {inputs[0]}, expected neighbours in order")
    return (tuple(1 if d in axes else n for d, n in enumerate(shape)),)


def flops(w: Workload) -> float:
    """One for each element of the input."""
    return float(prod(w.inputs[0].shape))


def axes_of(f: Foreign) -> tuple[int, ...] | None:
    """The axes of an ONNX reduction, ascending; all by default; None when they are not known."""
    rank = len(f.type(0).shape)
    given = f.constant(1) if f.has(1) else f.attrs.get("axes")
    if f.has(1) and given is None:
        return None
    axes = tuple(sorted(int(a) % max(rank, 1) for a in given)) if given is not None else ()
    if not axes:
        return () if f.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return axes


def runs(axes: Sequence[int], shape: Shape) -> list[tuple[int, ...]]:
    """``axes`` in runs of neighbours, axes of extent 1 in between included: each run is one reduction."""
    found: list[list[int]] = []
    for axis in axes:
        between = range(found[-1][-1] + 1, axis) if found else ()
        if found and all(shape[d] == 1 for d in between):
            found[-1] += [*between, axis]
        else:
            found.append([axis])
    return [tuple(run) for run in found]


def lift(f: Foreign, b: Builder) -> str | None:
    """ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceSumSquare, ReduceL2; means and maxima of images are global pools."""
    if f.op_type in ("ReduceMean", "ReduceMax") and pool.lift_reduce(f, b) is None:
        return None
    axes = axes_of(f)
    if axes is None or not f.type(0).shape:
        return "axes are not constant, or a scalar"
    value, shape = f.inputs[0], f.type(0).shape
    if f.op_type in SQUARES:
        value = eltwise(f, b, apply("mul", Input(0), Input(0)), (value,), shape, value, final=False)
    for run in reversed(runs(axes, shape)):
        shape = tuple(1 if d in run else n for d, n in enumerate(shape))
        value = b.emit("reduce", (value,), shape, f.outputs[0], axes=run, kind=KINDS.get(f.op_type, "sum"))
    if SQUARES.get(f.op_type) == "sqrt":
        value = eltwise(f, b, apply("sqrt", Input(0)), (value,), shape, f.outputs[0], final=False)
    b.view(value, f.out.shape, f.outputs[0], final=True)
    return None


def spell_reduce(s: Speller, kind: str, x: str, axes: Sequence[int], output: str = "") -> str:
    """An ONNX reduction that keeps its axes; they are an input from opset 18 on (13 of a sum)."""
    op = _SPELLED[kind]
    if s.opset < (13 if kind == "sum" else 18):
        return s.op(op, (x,), output, axes=tuple(axes), keepdims=1)
    return s.op(op, (x, s.constant(np.array(axes, np.int64))), output, keepdims=1)


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """One ONNX reduction."""
    spell_reduce(s, str(w.attr("kind")), ins[0], cast("tuple[int, ...]", w.attr("axes")), outs[0])


REDUCE = Operator(
    "reduce", "reduction", 1, ("axes", "kind"), shapes, flops, row_only, spell,
    dict.fromkeys((*KINDS, *SQUARES), lift),
)  # fmt: skip
