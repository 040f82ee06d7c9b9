"""Workloads → cuDNN graphs as plain data. What cuDNN's graphs cannot say raises :class:`Unsupported` with the reason.

A call is ``{"tensors", "arguments", "constants", "stages"}``. Tensors lie in memory, each [dtype, extents, strides]: the call's
arguments (inputs, then the output), intermediate ones, constants ([tensor, value] pairs). A stage is one graph of nodes
[operation, operands, attributes]; the last one's result is tensor ``result``. An operand is a tensor's number, or -1 - i for the
result of the stage's node i. ``views`` describes tensors otherwise in this stage: [tensor, extents, strides]. ``without`` names
the numerical notes that none of its plans may carry.

Forms of a call: ``whole`` is one graph. ``narrow`` is that with float32 constants of the epilogue in the image's shorter dtype,
which most of the fused engines want. ``apart`` is a convolution and a second graph for the epilogue. ``winograd`` is one graph
for Winograd's engines in strict float32, whose results are judged as those of our own (``only`` names the notes that a plan must
carry): sums of other engines are held to a closer tolerance there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import pi, prod, sqrt
from typing import Any

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload

WHOLE, NARROW, APART, WINOGRAD = FORMS = ("whole", "narrow", "apart", "winograd")

_DTYPES = ("float32", "float16", "bfloat16")

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


def lower(workload: Workload, form: str = WHOLE) -> dict[str, Any]:
    """The call that computes a convolution. Raises Unsupported."""
    _check(workload)
    epilogue = workload.epilogue or Acc()
    graphs = _Graphs(workload, form)
    anchor = graphs.node("conv_fprop", [0, 1], _window(workload))
    if form == APART:
        if epilogue == Acc():
            raise Unsupported("there is no epilogue to compute apart")
        anchor = graphs.between(precision_notes(workload))
    if graphs.point(epilogue, anchor) != graphs.newest:
        raise Unsupported("the epilogue is an operand")
    if form == WINOGRAD:
        if not is_strict(workload):
            raise Unsupported("Winograd's engines have a form of their own in strict float32 only")
        graphs.end(len(workload.inputs), [*_NEVER, "TENSOR_CORE"], ["WINOGRAD"])
    else:
        graphs.end(len(workload.inputs), [] if form == APART else precision_notes(workload))
    return graphs.call()


def operands(workload: Workload, form: str) -> list[TensorType]:
    """The inputs, of 4 dimensions, as they lie in memory: constant weights in the image's layout. Raises Unsupported."""
    x, y = workload.inputs[0], workload.outputs[0]
    found = []
    for i, t in enumerate(workload.inputs):
        if len(t.shape) > 4:
            raise Unsupported("operands of more than 4 dimensions")
        if len(t.shape) != 4 and t.layout != _ROW:
            raise Unsupported("a broadcast operand that is not in rows")
        shape = (*[1] * (4 - len(t.shape)), *t.shape)
        constant, vector = i in workload.constants, prod(shape) == max(shape)  # a vector lies alike in every layout
        layout = x.layout if i == 1 and constant else y.layout if i > 1 and vector else t.layout
        shorter = form == NARROW and i > 1 and constant and t.dtype == "float32"
        found.append(TensorType(x.dtype if shorter else t.dtype, shape, layout))
    if form == NARROW and [t.dtype for t in found] == [t.dtype for t in workload.inputs]:
        raise Unsupported("there is nothing to narrow")
    return found


def precision_notes(workload: Workload) -> list[str]:
    """The notes that no plan of a convolution may carry: strict float32 has no tensor cores, and a form for Winograd."""
    return [*_NEVER, *(["TENSOR_CORE", "WINOGRAD"] if is_strict(workload) else [])]


def is_strict(workload: Workload) -> bool:
    """True where float32 means float32."""
    return workload.inputs[0].dtype == "float32" and dict(workload.attrs).get("precision") != "tf32"


def strides(shape: tuple[int, ...], layout: str) -> list[int]:
    """Strides, in elements, of (N, C, H, W) extents that lie in memory as ``layout`` says."""
    order = (0, 2, 3, 1) if layout == _NHWC else (0, 1, 2, 3)
    return [prod(shape[a] for a in order[order.index(axis) + 1 :]) for axis in range(4)]


def _window(w: Workload) -> dict[str, list[int]]:
    pads = w.ints("pads")
    return {
        "pre_padding": list(pads[:2]), "post_padding": list(pads[2:]), "stride": list(w.ints("strides")),
        "dilation": list(w.ints("dilations")),
    }  # fmt: skip


def _check(w: Workload) -> None:
    if w.op == "pool":
        raise Unsupported("the Python frontend of cuDNN has no pooling")
    if w.op != "conv":
        raise Unsupported(f"only convolutions, not {w.op}")
    for t in (*w.inputs, *w.outputs):
        if t.dtype not in _DTYPES:
            raise Unsupported(f"{t.dtype}: expected {', '.join(_DTYPES)}")
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

    def __init__(self, workload: Workload, form: str) -> None:
        """Raises Unsupported."""
        self._workload = workload
        self._types = [*operands(workload, form), workload.outputs[0]]
        self._arguments = len(self._types)
        self._nodes: list[list[Any]] = []
        self._stages: list[dict[str, Any]] = []
        self._values: list[float] = []
        self._known: dict[Point, int] = {}

    @property
    def newest(self) -> int:
        """The operand that the last node's result is."""
        return -len(self._nodes)

    def node(self, op: str, given: list[int], attrs: Mapping[str, Any]) -> int:
        """A new node's result as an operand."""
        self._nodes.append([op, given, dict(attrs)])
        return self.newest

    def between(self, without: list[str]) -> int:
        """End a stage; its result, of the image's dtype, is an operand of the next."""
        y = self._workload.outputs[0]
        self._types.append(TensorType(self._workload.inputs[0].dtype, y.shape, y.layout))
        self.end(len(self._types) - 1, without)
        return len(self._types) - 1

    def end(self, result: int, without: list[str], only: Sequence[str] = ()) -> None:
        """A stage of all nodes so far, whose last one writes tensor ``result``."""
        self._stages.append({"nodes": self._nodes, "result": result, "views": [], "without": without, "only": list(only)})
        self._nodes, self._known = [], {}

    def point(self, point: Point, anchor: int) -> int:
        """An expression as an operand; ``anchor`` is the convolution's result."""
        if point not in self._known:
            self._known[point] = self._point(point, anchor)
        return self._known[point]

    def call(self) -> dict[str, Any]:
        """All of it, constants numbered behind the other tensors. Raises Unsupported."""
        count = len(self._types)
        scalars = [TensorType("float32", (1, 1, 1, 1))] * len(self._values)
        for stage in self._stages:
            for node in stage["nodes"]:
                node[1] = [count + i - _CONSTANT if i >= _CONSTANT else i for i in node[1]]
        types = [*self._types, *scalars]
        for stage in self._stages[1:]:
            stage["views"] = _views(stage, types)
        return {
            "tensors": [[t.dtype, list(t.shape), strides(t.shape, t.layout)] for t in types], "arguments": self._arguments,
            "constants": [[count + i, v] for i, v in enumerate(self._values)], "stages": self._stages,
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
        if point.op == "add":
            return self._sum(point, anchor)
        if point.op not in _POINTWISE:
            raise Unsupported(f"epilogue operator {point.op}")
        given = [self.point(a, anchor) for a in point.args]
        return self.node(_POINTWISE[point.op], given, {})

    def _sum(self, point: Apply, anchor: int) -> int:
        """Whole tensors before vectors: cuDNN's fused engines want a residual before the bias."""
        total, *terms = sorted(_terms(point), key=self._rank)
        result = self.point(total, anchor)
        for term in terms:
            result = self.node("add", [result, self.point(term, anchor)], {})
        return result

    def _rank(self, term: Point) -> int:
        if isinstance(term, Input):
            return 1 if self._workload.inputs[term.index].shape == self._workload.outputs[0].shape else 2
        return 3 if isinstance(term, Literal) else 0

    def _constant(self, value: float) -> int:
        if value not in self._values:
            self._values.append(value)
        return _CONSTANT + self._values.index(value)


def _terms(point: Point) -> Iterator[Point]:
    if isinstance(point, Apply) and point.op == "add":
        for arg in point.args:
            yield from _terms(arg)
    else:
        yield point


def _views(stage: Mapping[str, Any], types: list[TensorType]) -> list[list[Any]]:
    """A graph without a convolution wants channels last: rows (N, C, H, W) are seen as (N, H·W, C, 1), H·W last.

    Raises Unsupported for tensors that cannot be seen so.
    """
    result = types[stage["result"]]
    if result.layout == _NHWC:
        return []
    area = result.shape[2:]
    used = {stage["result"], *(i for _, given, _ in stage["nodes"] for i in given if i >= 0)}
    views = []
    for i in sorted(used):
        shape = types[i].shape
        if types[i].layout != _ROW or shape[2:] not in (area, (1, 1)):
            raise Unsupported("an epilogue apart with operands of several layouts")
        pixels = shape[2] * shape[3]
        views.append([i, [shape[0], pixels, shape[1], 1], [shape[1] * pixels, 1, pixels, pixels]])
    return views


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
