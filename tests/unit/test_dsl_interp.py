"""The interpreter rounds as the dtypes say and refuses what a kernel must not do."""

from __future__ import annotations

import numpy as np
import pytest
from dsl_kernels import F0, F1, buf, inp, ld, loop, out, st, v

from wpk.core.errors import InternalError
from wpk.dsl.interp import run
from wpk.dsl.ir import Alloc, Binary, Buffer, Cast, Const, Expr, If, Kernel, Prefetch, Select, Stmt, Unary


def kernel(*body: Stmt) -> Kernel:
    """x[4], y[4] and a body."""
    return Kernel("k", (inp("x", 4), out("y", 4)), body)


def arrays() -> dict[str, np.ndarray]:
    """Values for x, and a mark in y."""
    return {"x": np.array([1.5, -2, 0, 9], np.float32), "y": np.full(4, 77, np.float32)}


def result(value: Expr) -> np.ndarray:
    """``y[i] = value`` for each i."""
    args = arrays()
    run(kernel(loop("i", 4, st("y", (v("i"),), value))), args)
    return args["y"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ld("x", v("i")) * 2, [3, -4, 0, 18]),
        (F1 / ld("x", v("i")), [1 / 1.5, -0.5, np.inf, 1 / 9]),
        (Cast("float32", (v("i") - 2) // 2), [-1, -1, 0, 0]),
        (Cast("float32", (v("i") - 3) % 2), [1, 0, 1, 0]),
        (Select(ld("x", v("i")) < F0, F0, ld("x", v("i"))), [1.5, 0, 0, 9]),
        (Select(v("i").eq(3) & (ld("x", v("i")) > F0), F1, F0), [0, 0, 0, 1]),
        (Binary("min", ld("x", v("i")), F1), [1, -2, 0, 1]),
        (Binary("pow", ld("x", v("i")), Const(2.0, "float32")), [2.25, 4, 0, 81]),
        (Unary("floor", ld("x", v("i")) * 0.5), [0, -1, 0, 4]),
        (Cast("float32", Cast("int32", ld("x", v("i")))), [1, -2, 0, 9]),
        (Cast("bfloat16", ld("x", v("i")) * 1.001), [1.5, -2, 0, 9]),
        (Unary("not", Const(False, "bool")) & Const(True, "bool"), [1, 1, 1, 1]),
        (Unary("neg", Unary("abs", ld("x", v("i")))), [-1.5, -2, 0, -9]),
    ],
)
def test_expressions(value: Expr, expected: list[float]) -> None:
    np.testing.assert_allclose(result(value), np.array(expected, np.float32), rtol=1e-6)


def test_sums_round_to_float32_at_each_step() -> None:
    big = st("y", (0,), Const(2.0**24, "float32"))
    args = arrays()
    run(kernel(big, loop("i", 4, st("y", (0,), F1, "+"))), args)
    assert args["y"][0] == np.float32(2.0**24)  # exact arithmetic would give 2**24 + 4


def test_the_arm_not_taken_is_not_evaluated() -> None:
    guarded = Select(v("i") < 3, ld("x", v("i") + 1), F0)
    np.testing.assert_array_equal(result(guarded), np.array([-2, 0, 9, 0], np.float32))


def test_elements_that_are_never_written_keep_their_content() -> None:
    args = arrays()
    run(kernel(If(Const(True, "bool"), (st("y", (2,), F1),)), Prefetch("x", (Const(99),))), args)
    np.testing.assert_array_equal(args["y"], np.array([77, 77, 1, 77], np.float32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((st("y", (4,), F0),), r"index \(4,\) is out of range of y\(4,\)"),
        ((st("y", (0,), ld("x", -1)),), r"index \(-1,\) is out of range of x"),
        ((st("y", (0,), F1, "+"),), r"y\(0,\) is read before it is written"),
        ((Alloc(buf("t", 2), (st("t", (0,), F0), st("y", (0,), ld("t", 1)))),), r"t\(1,\) is read before"),
        ((st("z", (0,), F0),), "unknown buffer z"),
    ],
)
def test_refusals(body: tuple[Stmt, ...], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        run(kernel(*body), arrays())


def test_an_allocation_starts_undefined_each_time() -> None:
    again = loop("i", 2, Alloc(buf("t"), (If(v("i").eq(0), (st("t", (), F0),)), st("y", (v("i"),), ld("t")))))
    with pytest.raises(InternalError, match="t\\(\\) is read before"):
        run(kernel(again), arrays())


def test_wrong_arguments() -> None:
    with pytest.raises(InternalError, match="no argument for parameter x"):
        run(kernel(), {"y": np.zeros(4, np.float32)})
    with pytest.raises(InternalError, match=r"argument x: expected float32\(4,\), found float64\(4,\)"):
        run(kernel(), {"x": np.zeros(4), "y": np.zeros(4, np.float32)})


def test_nests_deeper_than_python_allows_and_integer_wrapping() -> None:
    deep: Stmt = st("s", (), Const(100, "int32"), "+")
    for depth in range(30):
        deep = loop(f"i{depth}", 1 + (depth == 0), deep)
    s = Buffer("s", (), "uint8", access="out")
    args = {"s": np.zeros((), np.uint8)}
    run(Kernel("deep", (s,), (st("s", (), Const(200, "int32")), deep)), args)
    assert args["s"] == (200 + 2 * 100) % 256
