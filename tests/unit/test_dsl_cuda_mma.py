"""Products on tensor cores: an instruction means what a thread gets of it; any config, emulated, gives what NumPy gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, compiled, emulated, interpreted, product

from wpk.core.errors import InternalError
from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import emulator
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.ir import (
    Alloc,
    Barrier,
    Binary,
    Buffer,
    Const,
    Expr,
    For,
    Invoke,
    Kernel,
    Load,
    Stmt,
    Store,
    Var,
)
from wpk.dsl.verify import verify
from wpk.kernels.cuda.gemm_mma import CudaGemmMma, matmul
from wpk.kernels.instr.cuda import mma

FAMILY = CudaGemmMma()


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Values as arrays hold them: bfloat16 as uint16 bit patterns; float32 with the few bits that tf32 keeps."""
    if dtype == "float32":
        return ((x.astype(np.float32).view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)
    if dtype != "bfloat16":
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def real(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


def workload(m: int, n: int, k: int, trans_a: bool, trans_b: bool, dtype: str) -> Workload:
    w = product(m, n, k, trans_a, trans_b, dtype)
    return replace(w, attrs=(("precision", "tf32"), *w.attrs)) if dtype == "float32" else w


def operands(w: Workload, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs, and their product in float64."""
    rng = np.random.default_rng(seed)
    a, b = (rounded(rng.normal(size=t.shape), t.dtype) for t in w.inputs[:2])
    x, y = real(a), real(b)
    return [a, b], (x.T if w.attr("trans_a") else x) @ (y.T if w.attr("trans_b") else y)


def close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    """Rounding of the result, and sums in another order."""
    relative = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    np.testing.assert_allclose(real(got), want, rtol=relative, atol=relative * 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(False, False), (False, True), (True, False), (True, True)])
def test_every_layout(dtype: str, trans_a: bool, trans_b: bool) -> None:
    w = workload(40, 48, 64, trans_a, trans_b, dtype)
    assert FAMILY.matches(w, H200) is None
    inputs, want = operands(w)
    config = {**FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 2, "rows": 2, "columns": 3, "stages": 2, "split_k": 1}
    close(emulated(FAMILY.build(w, config, H200).kernel, inputs), want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_meaning_of_a_thread_adds_up_to_the_product(dtype: str) -> None:
    w = workload(16, 8, 24, False, False, dtype)
    inputs, want = operands(w)
    config = {**FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "bytes_k": 32, "stages": 3}
    close(interpreted(FAMILY.build(w, config, H200).kernel, inputs), want, dtype)


@pytest.mark.parametrize(("slices", "split", "dtype"), [(2, 1, "float16"), (4, 2, "float32")])
def test_slices_of_a_block_are_added(slices: int, split: int, dtype: str) -> None:
    w = workload(40, 48, 256, False, True, dtype)
    inputs, want = operands(w)
    config = {
        **FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 2, "rows": 2, "columns": 3, "bytes_k": 64, "stages": 2,
        "slices": slices, "split_k": split,
    }  # fmt: skip
    close(emulated(FAMILY.build(w, config, H200).kernel, inputs), want, dtype)


@pytest.mark.parametrize("seed", range(5))
def test_any_config(seed: int) -> None:
    rng = Random(seed)
    dtype = rng.choice(("float32", "float16", "bfloat16"))
    w = workload(rng.choice((16, 33, 72)), rng.choice((8, 40, 65)), rng.choice((16, 50, 96)), seed % 2 == 0, seed % 3 == 0, dtype)
    inputs, want = operands(w, seed)
    close(emulated(FAMILY.build(w, FAMILY.space(w, H200).sample(rng), H200).kernel, inputs), want, dtype)


def test_float32_is_strict_unless_tf32_is_allowed() -> None:
    assert "precision tf32" in str(FAMILY.matches(product(16, 16, 16), H200))
    assert FAMILY.matches(workload(16, 16, 16, False, False, "float32"), H200) is None


def test_an_epilogue_in_half_precision() -> None:
    types = tuple(TensorType("float16", s) for s in ((30, 32), (32, 24), (24,)))
    attrs = (("trans_a", False), ("trans_b", False))
    w = Workload("gemm", types, (TensorType("float16", (30, 24)),), attrs, parse("relu(add(acc,in2))"), (2,))
    (a, b), want = operands(w)
    bias = np.linspace(-1, 1, 24).astype(np.float16)
    config = FAMILY.space(w, H200).default()
    got = emulated(FAMILY.build(w, config, H200).kernel, [a, b, *FAMILY.pack(w, config, [bias], H200)])
    close(got, np.maximum(want + bias, 0), "float16")


def test_batches() -> None:
    types = TensorType("float16", (2, 20, 32)), TensorType("float16", (2, 32, 16))
    w = Workload("matmul", types, (TensorType("float16", (2, 20, 16)),))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=t.shape).astype(np.float16) for t in types)
    family = matmul()
    got = emulated(family.build(w, family.space(w, H200).default(), H200).kernel, [a, b])
    close(got, a.astype(np.float64) @ b.astype(np.float64), "float16")


def test_large_tiles_compile_without_spills() -> None:
    w = workload(4096, 4096, 4096, False, False, "bfloat16")
    config = {
        **FAMILY.space(w, H200).default(), "warps_m": 2, "warps_n": 4, "rows": 4, "columns": 4, "bytes_k": 64, "stages": 4,
        "split_k": 1, "group": 1, "min_blocks": 1,
    }  # fmt: skip
    for resources in compiled(FAMILY.build(w, config, H200).kernel).values():
        assert resources.local_bytes == 0
        assert resources.registers <= 168


def int8_product(row: Expr) -> Kernel:
    """One warp: y = a × bᵀ of int8, 16×8×32; ``row`` is where a thread's rows of a begin."""
    t, i, j = Var("t"), Var("i"), Var("j")
    instr = mma("int8", 1, 1, False, False)
    zero = Const(0)

    def whole(name: str, source: str, rows: int) -> For:
        u, k = Var("u"), Var("k")
        at = u * rows + k
        body = Store(name, (at // 32, at % 32), Load(source, (at // 32, at % 32)))
        return For("u", zero, Const(32), "thread", (For("k", zero, Const(rows), "serial", (body,)),))

    four: Callable[[Stmt], Stmt] = lambda body: For(  # noqa: E731
        "i", zero, Const(2), "unroll", (For("j", zero, Const(2), "unroll", (body,)),)
    )
    clear = four(Store("acc", (zero, zero, i, j), Const(0, "int32")))
    operands = (("acc", (zero,) * 4), ("as", (row, zero)), ("bs", (t % 4 * 2, zero)))
    out = four(Store("y", (i * 8 + t // 4 % 8, t % 4 * 2 + j), Load("acc", (zero, zero, i, j))))
    body = Alloc(Buffer("acc", (1, 1, 2, 2), "int32", "register"), (clear, Invoke(instr.name, operands), out))
    tile = (whole("as", "a", 16), whole("bs", "b", 8), Barrier(), For("t", zero, Const(32), "thread", (body,)))
    shared = Alloc(Buffer("as", (16, 32), "int8", "block"), (Alloc(Buffer("bs", (8, 32), "int8", "block"), tile),))
    params = (Buffer("a", (16, 32), "int8"), Buffer("b", (8, 32), "int8"), Buffer("y", (16, 8), "int32", access="out"))
    return Kernel("int8_product", params, (shared,))


def test_int8_and_where_lanes_stand() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, size=(n, 32)).astype(np.int8) for n in (16, 8))
    kernel = int8_product(Binary("%", Var("t") // 4, Const(8)))
    verify(kernel)
    y = np.zeros((16, 8), np.int32)
    emulator.run(emit(kernel, "sm_80"), [a, b, y], outputs=[2], arch="sm_80")
    np.testing.assert_array_equal(y, a.astype(np.int32) @ b.astype(np.int32).T)
    with pytest.raises(InternalError, match="lane 1 is not where it must be in a"):
        emit(int8_product(Binary("%", Var("t"), Const(8))), "sm_80")
