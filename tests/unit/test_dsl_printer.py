"""The text of kernels: precedence, and that every node prints."""

from __future__ import annotations

import pytest
from dsl_kernels import F1, Example, examples, ld, v

from wpk.dsl.ir import Barrier, Binary, Cast, Const, Expr, Invoke, Kernel, Prefetch, Select, Unary
from wpk.dsl.printer import show, show_expr


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ((v("a") + v("b")) * v("c"), "(a + b) * c"),
        (v("a") + v("b") * v("c"), "a + b * c"),
        (v("a") - (v("b") - v("c")), "a - (b - c)"),
        ((v("a") - v("b")) - v("c"), "a - b - c"),
        ((v("a") + 1) // 2 % 3, "(a + 1) // 2 % 3"),
        ((v("a") < 1) & Binary("or", v("b") < 2, v("c") <= 3), "a < 1 and (b < 2 or c <= 3)"),
        (Binary("max", ld("x", v("i"), 0), F1), "max(x[i, 0], 1.0)"),
        (Select(v("i").eq(0), Unary("neg", F1), Cast("float32", v("i"))), "select(i == 0, neg(1.0), float32(i))"),
        (Const(3, "int32"), "int32(3)"),
    ],
)
def test_expressions(expr: Expr, text: str) -> None:
    assert show_expr(expr) == text


def test_statements() -> None:
    body = (Barrier(), Prefetch("x", (Const(1),), 2, True), Invoke("fma", (("x", (v("i"),)), ("y", ()))))
    assert show(Kernel("k", (), body)) == "kernel k\n  barrier\n  prefetch x[1] locality 2 write\n  fma(x[i], y[])\n"


@pytest.mark.parametrize("example", examples(8), ids=str)
def test_the_same_kernel_gives_the_same_text(example: Example) -> None:
    assert show(example.kernel) == show(example.kernel)
    assert show(example.kernel).startswith(f"kernel {example.kernel.name}\n")
