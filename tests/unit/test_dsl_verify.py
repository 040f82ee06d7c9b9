"""Every rule of the IR: one kernel that breaks it, and what the verifier says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dsl_kernels import F0, Example, buf, examples, inp, lanes, ld, loop, out, st, unroll, v

from wpk.core.errors import InternalError
from wpk.dsl.ir import (
    Alloc,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    If,
    Invoke,
    Kernel,
    Prefetch,
    Select,
    Stmt,
    Unary,
)
from wpk.dsl.verify import verify

REG, SHARED, THREAD = buf("r", 4), buf("s", 4, scope="shared"), buf("h", 4, scope="thread")
TABLE = Buffer("t", (2,), "float32", "global", "in", (1.0, 2.0))


def store(value: Expr = F0) -> Stmt:
    """``y[0] = value``."""
    return st("y", (0,), value)


@pytest.mark.parametrize("example", [*examples(16), *examples(4)], ids=str)
def test_good_kernels_pass(example: Example) -> None:
    verify(example.kernel)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (store(v("i") + 1), "variable i is used outside its loop"),
        (store(ld("z", 0)), "buffer z is used outside its scope"),
        (Prefetch("z", (Const(0),)), "buffer z is used outside its scope"),
        (store(ld("x", 0, 0)), "x has 1 dimensions, found 2 indices"),
        (store(ld("x", F0)), "is not an integer"),
        (store(ld("x", ld("x", 0))), "is not an integer"),
        (store(Binary("xor", F0, F0)), "unknown operator xor"),
        (store(Unary("sin", F0)), "unknown operator sin"),
        (store(Cast("float7", F0)), "unknown dtype float7"),
        (store(Select(F0, F0, F0)), "is not a bool"),
        (store(Unary("not", F0)), "is not a bool"),
        (If(v("i") + 1, ()), "variable i is used"),
        (st("y", (0,), F0, "*"), "combines with unknown operator"),
        (st("x", (0,), F0), "x is stored to, but is an input"),
        (Alloc(TABLE, (st("t", (0,), F0),)), "t is stored to, but is an input or a constant table"),
        (Alloc(replace(TABLE, values=(1.0,)), ()), "table t has 1 values"),
        (Alloc(buf("g", 4, scope="global"), ()), "global buffer g is allocated"),
        (Alloc(buf("x", 4), ()), "buffer x hides another"),
        (Alloc(buf("r", 0), ()), r"shape \(0,\), expected positive"),
        (Alloc(buf("r", 4, dtype="tf32"), ()), "unknown dtype tf32"),
        (loop("i", 2, loop("i", 2)), "loop variable i hides another one"),
        (loop("i", 2, kind="spiral"), "unknown kind spiral"),  # type: ignore[arg-type]
        (loop("i", 2, loop("p", 2, kind="parallel")), "parallel loop p is not outermost"),
        (loop("p", 2, loop("q", 2, kind="parallel"), kind="parallel"), "parallel loop q is not outermost"),
        (If(Const(0) < Const(1), (loop("p", 2, kind="parallel"),)), "not outermost"),
        (Alloc(THREAD, (loop("p", 2, kind="parallel"),)), "parallel loop p is not outermost"),
        (loop("p", 2, Alloc(SHARED, ()), kind="parallel"), "shared buffer s is allocated inside a parallel loop"),
        (loop("p", 2, kind="parallel", grain=0), "grain of at least 1"),
        (loop("i", 3, For("u", Const(0), v("i") + 1, "unroll", ())), "unroll loop u has no constant bounds"),
        (lanes("l", 3), "has 3 lanes, expected a power of two"),
        (lanes("l", 4, lanes("m", 4)), "inside another vector loop"),
        (Alloc(REG, (loop("i", 4, st("r", (v("i"),), F0)),)), r"register r is indexed by i \(serial\)"),
        (Alloc(buf("r", 4, 4), (lanes("l", 4, st("r", (v("l"), 0), F0)),)), r"indexed by l \(vector\) in dimension 0"),
        (lanes("l", 4, Alloc(REG, (st("r", (v("l"),), F0),))), r"indexed by l \(vector\) in dimension 0"),
        (Invoke("no_such_instruction", ()), "unknown instruction"),
    ],
)
def test_refusals(body: Stmt, message: str) -> None:
    with pytest.raises(InternalError, match=f"kernel bad: .*{message}"):
        verify(Kernel("bad", (inp("x", 4), out("y", 4)), (body,)))


@pytest.mark.parametrize(
    "body",
    [
        Alloc(SHARED, (Alloc(TABLE, (loop("p", 2, kind="parallel"), loop("q", 2, kind="parallel"))),)),
        Alloc(REG, (unroll("i", 2, unroll("j", 2, st("r", (v("i") * 2 + v("j"),), F0))),)),
        Alloc(REG, (loop("i", 1, st("r", (v("i"),), F0)),)),
        unroll("i", 3, For("u", v("i"), v("i") + 2, "unroll", (st("y", (0,), F0),))),
    ],
)
def test_what_is_allowed(body: Stmt) -> None:
    verify(Kernel("good", (inp("x", 4), out("y", 4)), (body,)))


def test_parameters() -> None:
    with pytest.raises(InternalError, match="two parameters have one name"):
        verify(Kernel("bad", (inp("x", 4), out("x", 4)), ()))
    with pytest.raises(InternalError, match="parameter r has scope register"):
        verify(Kernel("bad", (REG,), ()))
