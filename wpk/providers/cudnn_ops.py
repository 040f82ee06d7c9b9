"""Workloads → cuDNN graphs as plain data. What cuDNN's graphs cannot say raises :class:`Unsupported` with the reason.

A call is ``{"tensors", "arguments", "constants", "stages", "without"}``. Tensors lie in memory, each [dtype, extents, strides]:
the call's arguments (inputs, then the output), intermediate ones, constants ([tensor, value] pairs). A stage is one graph of
nodes [operation, operands, attributes]; the last one's result is tensor ``result``. An operand is a tensor's number, or -1 - i
for the result of the stage's node i. ``without`` names the numerical notes that no plan may carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import pi, prod, sqrt
from typing import Any

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload

#: dtype → cuDNN's name of it
DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}

#: Never: results that change from run to run, sums in less than float32, operands rounded to a shorter type than asked for.
_NEVER = ("NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION", "DOWN_CONVERT_INPUTS")

#: operator of an expression → cuDNN's pointwise operation
_POINTWISE = {
    **{op: op for op in ("add", "sub", "mul", "div", "max", "min", "pow", "neg", "abs", "exp", "log", "sqrt", "erf")},
    **{op: op for op in ("tanh", "sigmoid", "relu", "floor", "ceil")}, "recip": "reciprocal",
}  # fmt: skip

_ROW, _NHWC = "ROW", "NHWC"


class Unsupported(Exception):
    """cuDNN cannot compute the workload; the message says why."""


def lower(workload: Workload, apart: bool = False) -> dict[str, Any]:
    """The call that computes a convolution; ``apart``: its epilogue is a graph of its own. Raises Unsupported."""
    _check(workload)
    graphs = _Graphs(workload)
    x, y, pads = workload.inputs[0], workload.outputs[0], workload.ints("pads")
    graphs.arguments(weights_layout(workload))
    anchor = graphs.node("conv_fprop", [0, 1], {
        "pre_padding": list(pads[:2]), "post_padding": list(pads[2:]),
        "stride": list(workload.ints("strides")), "dilation": list(workload.ints("dilations")),
    })  # fmt: skip
    if apart:
        if workload.epilogue is None or workload.epilogue == Acc():
            raise Unsupported("there is no epilogue to compute apart")
        anchor = graphs.end(graphs.tensor(TensorType(x.dtype, y.shape, y.layout)))
    last = graphs.point(workload.epilogue or Acc(), anchor)
    if last != graphs.newest:
        raise Unsupported("the epilogue is an operand")
    graphs.end(len(workload.inputs))
    return graphs.call(precision_notes(workload))


def weights_layout(workload: Workload) -> str:
    """The layout that weights are packed into: the image's where they are constants, else their own."""
    return workload.inputs[0].layout if 1 in workload.constants else workload.inputs[1].layout


def precision_notes(workload: Workload) -> list[str]:
    """The numerical notes that no plan of the workload may carry: strict float32 has no tensor cores."""
    strict = workload.inputs[0].dtype == "float32" and dict(workload.attrs).get("precision") != "tf32"
    return [*_NEVER, *(["TENSOR_CORE"] if strict else [])]


def strides(shape: tuple[int, ...], layout: str) -> list[int]:
    """Strides, in elements, of (N, C, H, W) extents that lie in memory as ``layout`` says."""
    order = (0, 2, 3, 1) if layout == _NHWC else (0, 1, 2, 3)
    return [prod(shape[a] for a in order[order.index(axis) + 1 :]) for axis in range(4)]


def _check(w: Workload) -> None:
    if w.op == "pool":
        raise Unsupported("the Python frontend of cuDNN has no pooling")
    if w.op != "conv":
        raise Unsupported(f"only convolutions, not {w.op}")
    for t in (*w.inputs, *w.outputs):
        if t.dtype not in DTYPES:
            raise Unsupported(f"{t.dtype}: expected {', '.join(DTYPES)}")
        if t.layout not in (_ROW, _NHWC):
            raise Unsupported(f"layout {t.layout}: expected ROW or NHWC")
        if 0 in t.shape:
            raise Unsupported("empty tensors")
    if any(len(t.shape) != 4 for t in (w.inputs[0], w.inputs[1], w.outputs[0])):
        raise Unsupported("only two-dimensional convolutions")
    if w.inputs[0].dtype != w.inputs[1].dtype:
        raise Unsupported("image and weights of different dtypes")


class _Graphs:
    """Stages under construction."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._tensors: list[list[Any]] = []
        self._nodes: list[list[Any]] = []
        self._stages: list[dict[str, Any]] = []
        self._values: list[float] = []
        self._known: dict[Point, int] = {}

    def arguments(self, weights: str) -> None:
        """The workload's operands, then its output."""
        y = self._workload.outputs[0]
        for i, t in enumerate(self._workload.inputs):
            if len(t.shape) > 4:
                raise Unsupported("operands of more than 4 dimensions")
            if len(t.shape) != 4 and t.layout != _ROW:
                raise Unsupported("a broadcast operand that is not in rows")
            shape = (*[1] * (4 - len(t.shape)), *t.shape)
            vector = prod(shape) == max(shape)  # of one extent: it lies alike in every layout
            self.tensor(TensorType(t.dtype, shape, weights if i == 1 else y.layout if vector and i > 1 else t.layout))
        self.tensor(y)

    def tensor(self, t: TensorType) -> int:
        """A new tensor's number."""
        self._tensors.append([t.dtype, list(t.shape), strides(t.shape, t.layout)])
        return len(self._tensors) - 1

    @property
    def newest(self) -> int:
        """The operand that the last node's result is."""
        return -len(self._nodes)

    def node(self, op: str, operands: list[int], attrs: Mapping[str, Any]) -> int:
        """A new node's result as an operand."""
        self._nodes.append([op, operands, dict(attrs)])
        return self.newest

    def end(self, result: int) -> int:
        """A stage of all nodes so far, whose last one writes tensor ``result``."""
        self._stages.append({"nodes": self._nodes, "result": result})
        self._nodes, self._known = [], {}
        return result

    def point(self, point: Point, anchor: int) -> int:
        """An expression as an operand; ``anchor`` is the convolution's result."""
        if point not in self._known:
            self._known[point] = self._point(point, anchor)
        return self._known[point]

    def call(self, without: list[str]) -> dict[str, Any]:
        """All of it, constants numbered behind the other tensors."""
        count = len(self._tensors)
        numbers = {_CONSTANT + i: count + i for i in range(len(self._values))}
        for stage in self._stages:
            stage["nodes"] = [[op, [numbers.get(o, o) for o in operands], attrs] for op, operands, attrs in stage["nodes"]]
        for _ in self._values:
            self.tensor(TensorType("float32", (1, 1, 1, 1)))
        return {
            "tensors": self._tensors, "arguments": len(self._workload.inputs) + 1,
            "constants": [[numbers[_CONSTANT + i], v] for i, v in enumerate(self._values)],
            "stages": self._stages, "without": without,
        }  # fmt: skip

    def _point(self, point: Point, anchor: int) -> int:
        if isinstance(point, Acc):
            return anchor
        if isinstance(point, Input):
            return point.index
        if isinstance(point, Literal):
            return self._constant(point.value)
        for op, inner, attrs in _activations(point):
            return self.node(op, [self.point(inner, anchor)], attrs)
        if point.op not in _POINTWISE:
            raise Unsupported(f"epilogue operator {point.op}")
        operands = [self.point(a, anchor) for a in point.args]
        return self.node(_POINTWISE[point.op], operands, {})

    def _constant(self, value: float) -> int:
        if value not in self._values:
            self._values.append(value)
        return _CONSTANT + self._values.index(value)


#: Operands from here on are constants, until their tensors are numbered.
_CONSTANT = 1 << 20


def _activations(point: Apply) -> Iterator[tuple[str, Point, dict[str, float]]]:
    """The one operation that ``point`` is as a whole, if cuDNN has it: (operation, its operand, attributes)."""
    inner = _swish(point)
    if inner is not None:
        yield "swish", inner, {}
        return
    for op, template in (("gelu", _gelu), ("gelu_approx_tanh", _gelu_tanh)):
        half = point.args[0]
        if isinstance(half, Apply) and half.args and point == template(half.args[0]):
            yield op, half.args[0], {}
            return
    yield from _clip(point)


def _swish(point: Apply) -> Point | None:
    if point.op != "mul":
        return None
    for x, gate in (point.args, point.args[::-1]):
        if gate == apply("sigmoid", x):
            return x
    return None


def _clip(point: Apply) -> Iterator[tuple[str, Point, dict[str, float]]]:
    """min(max(x, low), high), min(relu(x), high) and max(x, 0) are a ReLU with bounds."""
    high = _bounded(point, "min")
    body = high[0] if high is not None else point
    low = _bounded(body, "max")
    if low is None and isinstance(body, Apply) and body.op == "relu":
        low = (body.args[0], 0.0)
    if low is None or (high is None and low[1] != 0.0):
        return
    attrs = {**({"lower_clip": low[1]} if low[1] else {}), **({"upper_clip": high[1]} if high is not None else {})}
    yield "relu", low[0], attrs


def _bounded(point: Point, op: str) -> tuple[Point, float] | None:
    if isinstance(point, Apply) and point.op == op:
        for x, bound in (point.args, point.args[::-1]):
            if isinstance(bound, Literal):
                return x, bound.value
    return None


def _gelu(x: Point) -> Point:
    inner = apply("erf", apply("mul", x, Literal(sqrt(0.5))))
    return apply("mul", apply("mul", x, Literal(0.5)), apply("add", inner, Literal(1.0)))


def _gelu_tanh(x: Point) -> Point:
    cube = apply("mul", apply("mul", x, x), apply("mul", x, Literal(0.044715)))
    inner = apply("tanh", apply("mul", apply("add", x, cube), Literal(sqrt(2 / pi))))
    return apply("mul", apply("mul", x, Literal(0.5)), apply("add", inner, Literal(1.0)))
