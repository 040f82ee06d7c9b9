"""What the C printer folds, hoists and refuses, seen in its text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from dsl_kernels import (
    F0,
    buf,
    conv1x1,
    examples,
    inp,
    lanes,
    ld,
    loop,
    out,
    st,
    thread_scratch,
    transform,
    two_phases,
    unroll,
    v,
)
from run_c import run_c

from wpk.core.errors import InternalError
from wpk.dsl.codegen.c import emit
from wpk.dsl.ir import Alloc, Binary, Buffer, Cast, Const, Expr, For, If, Kernel, Select, Stmt, Unary
from wpk.runtime.native import __file__ as native_folder


def text(*body: Stmt, isa: str = "avx512") -> str:
    """The statements printed for a body over x[64] and y[64], one a line, stripped."""
    source = emit(Kernel("k", (inp("x", 64), out("y", 64)), body), isa).text
    inside = source[source.index("phase_0(") :]
    return "\n".join(line.strip() for line in inside[: inside.index("\n}")].splitlines()[1:])


def test_a_transform_prints_only_its_nonzero_terms() -> None:
    source = emit(transform(16).kernel, "avx512").text
    adds = [s for s in source.splitlines() if re.match(r" *t_0_0 [+-]?=", s)]
    terms = ["= (f32x16){};", "+= 4.0f * d_0_0;", "-= 5.0f * d_2_0;", "+= d_4_0;"]
    assert [s.strip() for s in adds] == [f"t_0_0 {term}" for term in terms]
    assert "table" not in source


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ld("x", 0) * 1.0, "x[0]"),
        (ld("x", 0) * 0.0, "0.0f"),
        (ld("x", 0) * -1.0 + ld("x", 1), "x[1] - x[0]"),
        (ld("x", 0) - ld("x", 1) * -2.0, "x[0] + x[1] * 2.0f"),
        (ld("x", 0) + F0, "x[0]"),
        (ld("x", 0) / -1.0, "-x[0]"),
        (Const(1.5, "float32") * 3.0 - 0.5, "4.0f"),
        ((ld("x", 0) + ld("x", 1)) * ld("x", 2), "(x[0] + x[1]) * x[2]"),
        (ld("x", 0) - (ld("x", 1) - ld("x", 2)), "x[0] - (x[1] - x[2])"),
        (ld("x", 0) / (ld("x", 1) * ld("x", 2)), "x[0] / (x[1] * x[2])"),
        (Unary("neg", ld("x", 0) + ld("x", 1)) * ld("x", 2), "-((x[0] + x[1]) * x[2])"),
        (Select(Const(3) < Const(4), ld("x", 0), ld("x", 99)), "x[0]"),
        (Select(ld("x", 0) > F0, ld("x", 0), F0), "0.0f < x[0] ? x[0] : 0.0f"),
        (Cast("float32", Const(7)), "7.0f"),
        (ld("x", 0) * 2, "x[0] * 2.0f"),
        (ld("x", 0) + Const(0.1, "float32"), "x[0] + 0.1f"),
        (Binary("max", Const(1.0, "float32"), Const(2.0, "float32")), "2.0f"),
        (Const(float("inf"), "float32"), "__builtin_inff()"),
    ],
)
def test_folding(value: Expr, expected: str) -> None:
    assert text(st("y", (0,), value)) == f"y[0] = {expected};"


def test_adding_zero_prints_nothing() -> None:
    assert text(st("y", (0,), ld("x", 0) * 0.0, "+")) == ""


def test_guards_that_the_ranges_decide_vanish() -> None:
    i = v("o") * 4 + v("i")
    guarded = loop("o", 16, unroll("i", 4, If(i < 64, (st("y", (i,), ld("x", i)),)), If(i < 0, (st("y", (i,), F0),))))
    assert "if" not in text(guarded)
    half = loop("o", 16, unroll("i", 2, If(i < 61, (st("y", (i,), ld("x", i)),))))
    assert text(half).count("if (o < 15)") == 1 and text(half).count("if") == 1


def test_pointers_are_declared_in_the_innermost_loop_they_need() -> None:
    nest = loop("a", 4, loop("b", 4, loop("c", 4, st("y", (v("c"),), ld("x", v("a") * 16 + v("b") * 4 + 1), "+"))))
    lines = text(nest).splitlines()
    assert lines.index("const float *x_1 = x + a * 16 + b * 4;") < lines.index("for (int64_t c = 0; c < 4; ++c) {")
    assert lines.index("float *y_2 = y + c;") > lines.index("for (int64_t c = 0; c < 4; ++c) {")
    assert "y_2[0] += x_1[1];" in lines


def test_divisions_become_variables() -> None:
    fused = loop("p", 64, st("y", (v("p"),), ld("x", v("p") // 8 + v("p") % 8 * 8)))
    assert "= p / 8;" in text(fused) and "= p % 8;" in text(fused)
    signed = loop("p", 8, loop("q", 8, st("y", (v("p"),), ld("x", (v("q") - v("p")) // 2 + 4))))
    assert "floordiv_i64(q - p, 2)" in text(signed)


def test_one_iteration_is_no_loop_and_names_do_not_clash() -> None:
    assert "for" not in text(loop("i", 1, st("y", (v("i"),), ld("x", v("i")))))
    clash = loop("x", 4, loop("int", 4, st("y", (v("x"),), ld("x", v("int")), "+")))
    assert "for (int64_t x_ = 0;" in text(clash) and "for (int64_t int_ = 0;" in text(clash)


def test_shared_subexpressions_are_computed_once() -> None:
    once = Unary("exp", ld("x", 0))
    for _ in range(12):
        once = once * once + 1.0
    lines = text(st("y", (0,), once)).splitlines()
    assert len(lines) == 13 and "\n".join(lines).count("exp_f32") == 1


def test_masks_of_tails() -> None:
    at = v("k") * 16 + v("l")
    tail = loop("k", 4, lanes("l", 16, If(at < 50, (st("y", (at,), ld("x", at)),))))
    assert "= first_f32x16(50 - k * 16);" in text(tail) or "first_f32x16(- k * 16 + 50)" in text(tail)
    assert "storem_f32x16(y_" in text(tail) and "loadm_f32x16" not in text(tail)  # x[at] is in range for all lanes
    assert "f32x16_at(x" in text(tail)


def test_registers_of_mixed_lane_counts_become_an_array() -> None:
    mixed = Alloc(
        buf("r", 16),
        (
            lanes("a", 16, st("r", (v("a"),), ld("x", v("a")))),
            lanes("b", 8, st("y", (v("b"),), ld("r", v("b")) + ld("r", v("b") + 8))),
        ),
    )
    assert "float r[16] __attribute__((aligned(64)));" in text(mixed)
    kernel = Kernel("k", (inp("x", 64), out("y", 64)), (mixed,))
    args = {"x": np.arange(64, dtype=np.float32), "y": np.zeros(64, np.float32)}
    run_c(kernel, "neon", args)
    np.testing.assert_array_equal(args["y"][:8], args["x"][:8] + args["x"][8:16])


def test_memory_of_its_own_in_each_lane_means_no_lanes() -> None:
    own = Alloc(buf("h", 2, scope="thread"), (st("h", (0,), ld("x", v("l"))), st("y", (v("l"),), ld("h", 0) * 2.0)))
    assert "f32x4" not in text(lanes("l", 4, own)) and "y[3] = h[0] * 2.0f;" in text(lanes("l", 4, own))


def test_workspace_sizes_and_sharing() -> None:
    shared = emit(two_phases(5, 32, 16).kernel, "avx512")
    assert (shared.shared_bytes, shared.thread_bytes) == (64 + 64, 0)
    scratch = emit(thread_scratch(4, 32, 16).kernel, "avx512")
    assert (scratch.shared_bytes, scratch.thread_bytes) == (0, 2 * 128)  # a and b live one after the other
    assert "char *restrict pool" in scratch.text or "float *restrict pool" in scratch.text


def test_dtypes_do_not_share_memory() -> None:
    def one(name: str, dtype: str) -> Stmt:
        body = (st(name, (0,), Const(0, dtype)), st("y", (0,), Cast("float32", ld(name, 0))))
        return Alloc(buf(name, 16, scope="thread", dtype=dtype), body)

    source = emit(Kernel("k", (out("y", 4),), (one("a", "float32"), one("b", "int32"))), "scalar")
    assert source.thread_bytes == 128 and "pool" not in source.text


def test_the_text_is_small_and_stands_alone() -> None:
    source = emit(conv1x1(12, 3, 8, 2, 16, 4).kernel, "avx512")
    assert re.findall(r"#include.*", source.text) == ["#include <stdint.h>"]
    assert source.text.startswith("/* conv1x1_3x32 for avx512, generated by wpk */\n")
    assert source.symbol == "conv1x1_3x32" and f"int {source.symbol}(void *state" in source.text
    assert not any(re.search(r"[ \t]+$", line) for line in source.text.splitlines())


def test_the_abi_is_the_one_of_the_runtime() -> None:
    from pathlib import Path

    header = (Path(native_folder).parent / "wpk.h").read_text()
    printed = emit(Kernel("k", (), ()), "scalar").text
    body = re.search(r"struct wpk_rt \{(.*?)\};", header, re.S)
    assert body and " ".join(body[1].split()) in " ".join(printed.split())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lanes("l", 4, st("y", (0,), ld("x", v("l")))), "lanes of l race to store to y"),
        (lanes("l", 3, st("y", (v("l"),), F0)), "3 lanes: expected a power of two"),
        (loop("i", 2, For("u", Const(0), v("i") + 1, "unroll", ())), "unroll loop u has no constant bounds"),
        (loop("i", 2, loop("p", 2, kind="parallel")), "inside another loop"),
        (Alloc(buf("r", 4), (st("r", (4,), F0),)), "element 4 is out of range of r"),
        (Alloc(buf("r", 4), (loop("i", 4, st("r", (v("i"),), F0)),)), "r is indexed by a loop variable"),
        (st("z", (0,), F0), "unknown buffer z"),
        (st("y", (v("i"),), F0), "variable i is used outside its loop"),
        (st("y", (0, 0), F0), "y has 1 dimensions, found 2 indices"),
    ],
)
def test_refusals(body: Stmt, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        text(body)


def test_an_unknown_isa_is_named() -> None:
    with pytest.raises(InternalError, match="unknown ISA sse9: expected one of avx512"):
        emit(Kernel("k", (), ()), "sse9")


def test_a_dynamic_constant_table_is_static_data() -> None:
    table = Buffer("t", (4,), "float32", "global", "in", (1.0, -2.0, 0.5, 4.0))
    body = Alloc(table, (loop("i", 4, st("y", (v("i"),), ld("t", v("i")))),))
    source = emit(Kernel("k", (out("y", 4),), (body,)), "scalar").text
    assert "static const float table0_t[4] = {1.0f, -2.0f, 0.5f, 4.0f};" in source


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon", "scalar"])
def test_every_example_prints_for_every_isa_at_every_width(isa: str) -> None:
    for width in (2, 8, 32):
        for example in examples(width):
            assert emit(example.kernel, isa).text.count("{") == emit(example.kernel, isa).text.count("}")
