"""The helper library of generated C: accuracy over the range, special values, scalars and vectors of every ISA."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dsl_kernels import Arrays, inp, lanes, ld, loop, out, st, v
from run_c import WIDTHS, run_c, runnable

from wpk.dsl.ir import Binary, Const, Expr, Kernel, Load, Unary

FINITE = np.float32(3e38)
SPECIAL = np.array(
    [
        0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        88.0,
        89.0,
        -87.5,
        -103.0,
        -110.0,
        1e30,
        -1e30,
        0.625,
        4.5,
    ]
)


def grid(low: float, high: float, n: int) -> np.ndarray:
    """Random points of a range, and of its logarithm."""
    rng = np.random.default_rng(7)
    small = np.sign(low + high or 1) * 10 ** rng.uniform(-30, math.log10(max(abs(low), abs(high))), n // 2)
    return np.concatenate([rng.uniform(low, high, n - n // 2), small]).astype(np.float32)


def pointwise(op: str, value: Expr, n: int, width: int, params: int = 1) -> Kernel:
    """``y = value(x, z)``, with lanes, and in the scalar output ``s``."""
    at = v("k") * width + v("lane")
    vector = loop("k", n // width, lanes("lane", width, st("y", (at,), _at(value, at))))
    scalar = loop("i", n, st("s", (v("i"),), _at(value, v("i"))))
    names = [inp(name, n) for name in ("x", "z")[:params]]
    return Kernel(op, (*names, out("y", n), out("s", n)), (vector, scalar))


def _at(e: Expr, at: Expr) -> Expr:
    if isinstance(e, Load):
        return ld(e.buffer, at)
    if isinstance(e, Unary):
        return Unary(e.op, _at(e.a, at))
    return Binary(e.op, _at(e.a, at), _at(e.b, at)) if isinstance(e, Binary) else e


X, Z = Load("x", ()), Load("z", ())
MEANING = {
    "exp": (np.exp, (-100.0, 88.5)),
    "log": (np.log, (1e-38, 1e6)),
    "sqrt": (np.sqrt, (0.0, 1e9)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (1e-30, 1e9)),
    "recip": (lambda x: 1 / x, (-1e9, 1e9)),
    "erf": (np.vectorize(math.erf), (-6.0, 6.0)),
    "tanh": (np.tanh, (-12.0, 12.0)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), (-80.0, 90.0)),
    "floor": (np.floor, (-1e5, 1e5)),
    "ceil": (np.ceil, (-1e5, 1e5)),
    "abs": (np.abs, (-1e5, 1e5)),
    "neg": (np.negative, (-1e5, 1e5)),
}


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("op", MEANING)
def test_accuracy_and_special_values(op: str, isa: str) -> None:
    if not runnable(isa):
        pytest.skip(f"this machine does not run {isa}")
    function, (low, high) = MEANING[op]
    x = np.concatenate([grid(low, high, 1008), SPECIAL.astype(np.float32)])
    args: Arrays = {"x": x, "y": np.zeros_like(x), "s": np.zeros_like(x)}
    run_c(pointwise(op, Unary(op, X), len(x), WIDTHS[isa]), isa, args)
    with np.errstate(all="ignore"):
        expected = function(x.astype(np.float64)).astype(np.float32)
    tiny = np.abs(expected) < 1.2e-38  # subnormal results keep absolute accuracy only
    for found in (args["y"], args["s"]):
        np.testing.assert_allclose(found[~tiny], expected[~tiny], rtol=1e-6)
        np.testing.assert_allclose(found[tiny], expected[tiny], atol=2e-44)


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("exponent", [0.75, -0.75, 0.5, -0.5, 1.0, -1.0, 2.0, 3.0, 1.7, 0.0])
def test_constant_powers(exponent: float, isa: str) -> None:
    if not runnable(isa):
        pytest.skip(f"this machine does not run {isa}")
    x = grid(1e-3, 1e3, 256)
    x = np.abs(x[(np.abs(x) > 1e-3)][:96])
    args: Arrays = {"x": x, "y": np.zeros_like(x), "s": np.zeros_like(x)}
    run_c(pointwise("pow", Binary("pow", X, Const(exponent, "float32")), len(x), WIDTHS[isa]), isa, args)
    for found in (args["y"], args["s"]):
        np.testing.assert_allclose(found, x.astype(np.float64) ** exponent, rtol=2e-6)


@pytest.mark.parametrize("isa", WIDTHS)
def test_general_powers_and_their_signs(isa: str) -> None:
    if not runnable(isa):
        pytest.skip(f"this machine does not run {isa}")
    x = np.array([2, -2, -2, -2, 0, 0, 3, 1.5, 10, 7, 1e-3, 5, -3, -0.5, 2, 9], np.float32)
    z = np.array([3, 3, 2, 0.5, 2, 0, 0, -3, 5, 0.3, 2.5, 1, 5, 4, -1.5, 0.5], np.float32)
    args: Arrays = {"x": x, "z": z, "y": np.zeros_like(x), "s": np.zeros_like(x)}
    run_c(pointwise("pow", Binary("pow", X, Z), 16, WIDTHS[isa], 2), isa, args)
    with np.errstate(all="ignore"):
        expected = x.astype(np.float64) ** z
    for found in (args["y"], args["s"]):
        np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.mark.parametrize("isa", WIDTHS)
def test_double_precision(isa: str) -> None:
    if not runnable(isa):
        pytest.skip(f"this machine does not run {isa}")
    at = v("k") * 4 + v("lane")
    value = Unary("sigmoid", ld("x", at)) + Unary("sqrt", Unary("abs", ld("x", at))) * Unary(
        "exp", ld("x", at)
    )
    body = loop("k", 4, lanes("lane", 4, st("y", (at,), value)))
    kernel = Kernel("double", (inp("x", 16, dtype="float64"), out("y", 16, dtype="float64")), (body,))
    x = np.linspace(-3, 3, 16)
    args: Arrays = {"x": x, "y": np.zeros(16)}
    run_c(kernel, isa, args)
    np.testing.assert_allclose(args["y"], 1 / (1 + np.exp(-x)) + np.sqrt(np.abs(x)) * np.exp(x), rtol=1e-14)
