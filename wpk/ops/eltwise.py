"""eltwise: an expression tree over inputs of broadcastable shapes, and the ONNX ops that are one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import READ, Builder, Foreign, Lift, Operator, Shape, Speller, eltwise, one_layout

X, Y = Input(0), Input(1)
ONE = Literal(1.0)

#: ONNX ops that are one operator of the expression language
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow"}
UNARY = {
    "Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Erf": "erf", "Tanh": "tanh",
    "Sigmoid": "sigmoid", "Relu": "relu", "Floor": "floor", "Ceil": "ceil", "Reciprocal": "recip",
}  # fmt: skip
VARIADIC = {"Sum": "add", "Max": "max", "Min": "min"}


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The broadcast of all inputs."""
    return (tuple(np.broadcast_shapes(*(t.shape for t in inputs))),)


def _softplus(x: Point) -> Point:
    """log(1 + exp(x)) without overflow."""
    return apply(
        "add", apply("relu", x), apply("log", apply("add", apply("exp", apply("neg", apply("abs", x))), ONE))
    )


def _hard_sigmoid(x: Point, alpha: float, beta: float) -> Point:
    inner = apply("add", apply("mul", x, Literal(alpha)), Literal(beta))
    return apply("min", apply("max", inner, Literal(0.0)), ONE)


def _leaky(x: Point, slope: Point) -> Point:
    if isinstance(slope, Literal) and 0 <= slope.value <= 1:
        return apply("max", x, apply("mul", x, slope))
    return apply("where", apply("lt", x, Literal(0.0)), apply("mul", x, slope), x)


def _elu(x: Point, alpha: float, gamma: float = 1.0, inner: float = 1.0) -> Point:
    """gamma·x above 0, gamma·alpha·(exp(x·inner) − 1) below; the exponent is kept at or below 0."""
    low = apply("min", x, Literal(0.0))
    power = apply("exp", low if inner == 1.0 else apply("mul", low, Literal(inner)))
    negative = apply("mul", apply("sub", power, ONE), Literal(alpha))
    both = apply("where", apply("lt", x, Literal(0.0)), negative, x)
    return both if gamma == 1.0 else apply("mul", both, Literal(gamma))


def _gelu(x: Point, approximate: str) -> Point:
    if approximate == "tanh":
        cube = apply("mul", apply("mul", x, x), apply("mul", x, Literal(0.044715)))
        inner: Point = apply("tanh", apply("mul", apply("add", x, cube), Literal(math.sqrt(2 / math.pi))))
    else:
        inner = apply("erf", apply("mul", x, Literal(math.sqrt(0.5))))
    return apply("mul", apply("mul", x, Literal(0.5)), apply("add", inner, ONE))


#: ONNX ops of one input as expressions of it and the attributes
FORMULAS: dict[str, Callable[[Mapping[str, Any]], Point]] = {
    "LeakyRelu": lambda a: _leaky(X, Literal(float(a.get("alpha", 0.01)))),
    "HardSigmoid": lambda a: _hard_sigmoid(X, float(a.get("alpha", 0.2)), float(a.get("beta", 0.5))),
    "HardSwish": lambda a: apply("mul", X, _hard_sigmoid(X, 1 / 6, 0.5)),
    "Elu": lambda a: _elu(X, float(a.get("alpha", 1.0))),
    "Celu": lambda a: _elu(X, float(a.get("alpha", 1.0)), inner=1 / float(a.get("alpha", 1.0))),
    "Selu": lambda a: _elu(X, float(a.get("alpha", 1.67326319217681884765625)), float(a.get("gamma", 1.05070102214813232421875))),
    "Softplus": lambda a: _softplus(X),
    "Softsign": lambda a: apply("div", X, apply("add", apply("abs", X), ONE)),
    "Mish": lambda a: apply("mul", X, apply("tanh", _softplus(X))),
    "ThresholdedRelu": lambda a: apply("where", apply("lt", Literal(float(a.get("alpha", 1.0))), X), X, Literal(0.0)),
    "Sign": lambda a: apply("sub", apply("lt", Literal(0.0), X), apply("lt", X, Literal(0.0))),
    "Gelu": lambda a: _gelu(X, str(a.get("approximate", "none"))),
}  # fmt: skip


#: integers up to here are float32 numbers
EXACT = 1 << 24
#: ONNX ops that give a bool, as expressions of ones and zeros
LOGIC: dict[str, Point] = {
    "Equal": apply("eq", X, Y), "Less": apply("lt", X, Y), "LessOrEqual": apply("le", X, Y),
    "Greater": apply("lt", Y, X), "GreaterOrEqual": apply("le", Y, X), "Not": apply("eq", X, Literal(0.0)),
    "IsNaN": apply("eq", apply("eq", X, X), Literal(0.0)),
    "And": apply("mul", X, Y), "Or": apply("max", X, Y), "Xor": apply("abs", apply("sub", X, Y)),
}  # fmt: skip


def _make(point: Point) -> Lift:
    """The lift that emits ``point`` over the node's inputs."""

    def lift(f: Foreign, b: Builder) -> str | None:
        eltwise(f, b, point, f.inputs, f.out.shape, f.outputs[0])
        return None

    return lift


def lift_formula(f: Foreign, b: Builder) -> str | None:
    """An activation of :data:`FORMULAS`."""
    eltwise(f, b, FORMULAS[f.op_type](f.attrs), f.inputs, f.out.shape, f.outputs[0])
    return None


def lift_variadic(f: Foreign, b: Builder) -> str | None:
    """Sum, Max, Min and Mean of any number of inputs."""
    point: Point = X
    for i in range(1, len(f.inputs)):
        point = apply(VARIADIC.get(f.op_type, "add"), point, Input(i))
    if f.op_type == "Mean":
        point = apply("mul", point, Literal(1 / len(f.inputs)))
    eltwise(f, b, point, f.inputs, f.out.shape, f.outputs[0])
    return None


def lift_pow(f: Foreign, b: Builder) -> str | None:
    """Pow; squares, cubes and square roots are spelled as such."""
    exponent = f.constant(1)
    value = float(exponent.reshape(())) if exponent is not None and exponent.size == 1 else None
    simple = {2: apply("mul", X, X), 3: apply("mul", apply("mul", X, X), X), 0.5: apply("sqrt", X)}
    point: Point = simple.get(value or 0.0, apply("pow", X, Y))
    if exponent is not None and value is None and exponent.dtype != np.float32:
        return "exponent is not float32"
    eltwise(f, b, point, f.inputs, f.out.shape, f.outputs[0])
    return None


def lift_clip(f: Foreign, b: Builder) -> str | None:
    """Clip between constant bounds."""
    if any(f.has(i) and f.constant(i) is None for i in (1, 2)):
        return "bounds are not constant"
    low = f.constant(1) if f.opset >= 11 else f.attrs.get("min")
    high = f.constant(2) if f.opset >= 11 else f.attrs.get("max")
    point: Point = X
    if low is not None:
        point = apply("max", point, Literal(float(low)))
    if high is not None:
        point = apply("min", point, Literal(float(high)))
    eltwise(f, b, point, f.inputs[:1], f.out.shape, f.outputs[0])
    return None


def lift_prelu(f: Foreign, b: Builder) -> str | None:
    """PRelu with a slope that broadcasts to the input."""
    slope = f.constant(1)
    scalar = slope is not None and slope.size == 1
    point = _leaky(X, Literal(float(slope.reshape(()))) if scalar and slope is not None else Y)
    eltwise(f, b, point, f.inputs, f.out.shape, f.outputs[0])
    return None


def lift_where(f: Foreign, b: Builder) -> str | None:
    """Where; a known condition becomes a constant of ones and zeros."""
    if f.out.dtype != "float32":
        return f"a choice of {f.out.dtype}"
    condition, known = f.inputs[0], f.constant(0)
    if known is not None:
        condition = b.constant(known.astype(np.float32), f.inputs[0])
    eltwise(f, b, apply("where", X, Y, Input(2)), (condition, *f.inputs[1:]), f.out.shape, f.outputs[0])
    return None


def lift_logic(f: Foreign, b: Builder) -> str | None:
    """Comparisons and logic: expressions of ones and zeros, stored as bool.

    Integers are compared as float32, which is exact with a constant below 2^24 on one side: then nothing else rounds to it.
    """
    dtypes = {f.types[v].dtype for v in f.inputs}
    known = [a for a in (f.constant(i) for i in range(len(f.inputs))) if a is not None]
    small = any(bool((np.abs(a.astype(np.float64)) < EXACT).all()) for a in known)
    if not dtypes <= set(READ) or (dtypes & {"int64", "int32"} and not small):
        return f"{' and '.join(sorted(dtypes))}, expected floats, or integers and a small constant"
    eltwise(f, b, LOGIC[f.op_type], f.inputs, f.out.shape, f.outputs[0], dtype="bool")
    return None


def lift_batch_norm(f: Foreign, b: Builder) -> str | None:
    """BatchNormalization at inference: a scale and a shift for each channel."""
    parameters = [f.constant(i) for i in range(1, 5)]
    if f.attrs.get("training_mode", 0) or not f.attrs.get("spatial", 1) or f.extra_outputs:
        return "training, or statistics for each element"
    if any(p is None for p in parameters):
        return "parameters are not constant"
    scale, bias, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    gain = scale / np.sqrt(variance + float(f.attrs.get("epsilon", 1e-5)))
    shape = (1, -1) + (1,) * (len(f.out.shape) - 2)
    pair = (gain, bias - mean * gain)
    names = [
        b.constant(p.reshape(shape).astype(np.float32), v) for p, v in zip(pair, f.inputs[1:3], strict=True)
    ]
    point = apply("add", apply("mul", X, Y), Input(2))
    eltwise(f, b, point, (f.inputs[0], *names), f.out.shape, f.outputs[0])
    return None


_NAMES = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "erf": "Erf", "tanh": "Tanh", "sigmoid": "Sigmoid",
    "relu": "Relu", "floor": "Floor", "ceil": "Ceil", "recip": "Reciprocal",
}  # fmt: skip


def spell_point(s: Speller, point: Point, acc: str, ins: Sequence[str], output: str = "") -> str:
    """The value name of ``point``, spelled as ONNX ops of float32; ``acc`` is the anchor's result."""
    if isinstance(point, Apply):
        return _spell_apply(s, point, acc, ins, output)
    if isinstance(point, Literal):
        name = s.constant(np.array(point.value, np.float32))
    else:
        name = acc if isinstance(point, Acc) else ins[point.index]
    return s.op("Identity", (name,), output) if output else name


def _spell_apply(s: Speller, point: Apply, acc: str, ins: Sequence[str], output: str) -> str:
    args = [spell_point(s, a, acc, ins) for a in point.args]
    if point.op in _NAMES:
        return s.op(_NAMES[point.op], args, output)
    if point.op == "where":
        return s.op("Where", (s.op("Cast", args[:1], to=9), *args[1:]), output)
    return s.op("Cast", (_spell_compare(s, point.op, args),), output, to=1)


def _spell_compare(s: Speller, op: str, args: list[str]) -> str:
    """A comparison as a bool tensor; the older opsets lack LessOrEqual and Equal of floats."""
    if op == "lt":
        return s.op("Less", args)
    if op == "le" and s.opset >= 12:
        return s.op("LessOrEqual", args)
    if op == "eq" and s.opset >= 11:
        return s.op("Equal", args)
    more = s.op("Greater", args)
    return s.op("Not", (more if op == "le" else s.op("Or", (more, s.op("Less", args))),))


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """The expression."""
    assert w.epilogue is not None
    if w.outputs[0].dtype == "bool":
        s.op("Cast", (spell_point(s, w.epilogue, "", ins),), outs[0], to=9)
    else:
        spell_point(s, w.epilogue, "", ins, outs[0])


def _flops(w: Workload) -> float:
    return 0.0 * prod(w.outputs[0].shape)


LIFTS: dict[str, Lift] = {
    **{onnx: _make(apply(op, X, Y)) for onnx, op in BINARY.items() if onnx != "Pow"},
    **{onnx: _make(apply(op, X)) for onnx, op in UNARY.items()},
    **dict.fromkeys(FORMULAS, lift_formula),
    **dict.fromkeys((*VARIADIC, "Mean"), lift_variadic),
    "Pow": lift_pow, "Clip": lift_clip, "PRelu": lift_prelu, "BatchNormalization": lift_batch_norm,
    "Where": lift_where, **dict.fromkeys(LOGIC, lift_logic),
}  # fmt: skip

ELTWISE = Operator("eltwise", "elementwise", 0, (), shapes, _flops, one_layout, spell, LIFTS)
