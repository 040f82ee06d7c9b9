"""Products of int8 on tensor cores: exact int32 sums, whatever the config, or float32 where an epilogue scales them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, compiled

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import emulator
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.interp import run as interpret
from wpk.dsl.ir import Kernel
from wpk.dsl.verify import verify
from wpk.kernels.cuda.conv_mma import CudaConvMma
from wpk.kernels.cuda.gemm_mma import CudaGemmMma, matmul

FAMILY = CudaGemmMma()


def workload(m: int, n: int, k: int, trans_a: bool = False, trans_b: bool = True) -> Workload:
    a, b = (k, m) if trans_a else (m, k), (n, k) if trans_b else (k, n)
    types = TensorType("int8", a), TensorType("int8", b)
    return Workload("gemm", types, (TensorType("int32", (m, n)),), (("trans_a", trans_a), ("trans_b", trans_b)))


def operands(w: Workload, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Inputs with all values of int8, and their exact product."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, t.shape).astype(np.int8) for t in w.inputs[:2])
    x, y = a.astype(np.int32), b.astype(np.int32)
    turned = dict(w.attrs)
    return [a, b], (x.T if turned.get("trans_a") else x) @ (y.T if turned.get("trans_b") else y)


def run(kernel: Kernel, inputs: list[np.ndarray], dtype: str = "int32", seed: int = 0) -> np.ndarray:
    verify(kernel)
    out = np.zeros(kernel.params[-1].shape, dtype)
    emulator.run(emit(kernel, "sm_80"), [*inputs, out], seed=seed, outputs=[len(inputs)], arch="sm_80")
    return out


def small(w: Workload, **knobs: int | str | bool) -> Config:
    config = {**FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 2, "rows": 1, "columns": 2, "bytes_k": 64, "stages": 2}
    return {**config, "split_k": 1, "slices": 1, **knobs}


@pytest.mark.parametrize(("trans_a", "trans_b"), [(False, True), (False, False), (True, True), (True, False)])
def test_every_layout(trans_a: bool, trans_b: bool) -> None:
    w = workload(40, 48, 96, trans_a, trans_b)
    assert FAMILY.matches(w, H200) is None
    inputs, want = operands(w)
    np.testing.assert_array_equal(run(FAMILY.build(w, small(w), H200).kernel, inputs), want)


def test_the_meaning_of_a_thread_adds_up_to_the_product() -> None:
    w = workload(16, 8, 64)
    (a, b), want = operands(w)
    kernel = FAMILY.build(w, small(w, warps_n=1, columns=1), H200).kernel
    verify(kernel)
    out = np.zeros(want.shape, np.int32)
    interpret(kernel, {"a": a, "b": b, "out": out})
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(("split", "slices"), [(2, 1), (1, 2), (2, 2)])
def test_parts_of_k_are_int32(split: int, slices: int) -> None:
    w = workload(30, 20, 256)
    inputs, want = operands(w)
    config = small(w, split_k=split, slices=slices)
    np.testing.assert_array_equal(run(FAMILY.build(w, config, H200).kernel, inputs), want)


@pytest.mark.parametrize("seed", range(3))
def test_any_config(seed: int) -> None:
    rng = Random(seed)
    w = workload(rng.choice((16, 33, 72)), rng.choice((8, 40, 65)), rng.choice((32, 50, 160)), seed % 2 == 0, seed % 3 == 0)
    inputs, want = operands(w, seed)
    config = FAMILY.space(w, H200).sample(rng)
    np.testing.assert_array_equal(run(FAMILY.build(w, config, H200).kernel, inputs, seed=seed), want)


def test_a_constant_is_laid_along_k_before() -> None:
    w = replace(workload(24, 16, 128, trans_b=False), constants=(1,))
    (a, b), want = operands(w)
    config = small(w)
    (packed,) = FAMILY.pack(w, config, [b], H200)
    assert packed.shape == (16, 128)
    built = FAMILY.build(w, config, H200).kernel
    np.testing.assert_array_equal(run(built, [a, packed]), want)
    assert "cp_async<16>" in emit(built, "sm_80").text


def test_an_epilogue_scales_sums() -> None:
    types = TensorType("int8", (20, 64)), TensorType("int8", (24, 64)), TensorType("float32", (24,))
    attrs = (("trans_a", False), ("trans_b", True))
    w = Workload("gemm", types, (TensorType("float32", (20, 24)),), attrs, parse("relu(mul(acc,in2))"), (2,))
    assert FAMILY.matches(w, H200) is None
    inputs, want = operands(w)
    scales = np.linspace(-0.01, 0.01, 24, dtype=np.float32)
    config = small(w)
    got = run(FAMILY.build(w, config, H200).kernel, [*inputs, *FAMILY.pack(w, config, [scales], H200)], "float32")
    np.testing.assert_array_equal(got, np.maximum(want.astype(np.float32) * scales, 0))


def test_batches() -> None:
    types = TensorType("int8", (2, 20, 32)), TensorType("int8", (2, 32, 16))
    w = Workload("matmul", types, (TensorType("int32", (2, 20, 16)),))
    inputs, want = operands(w)
    family = matmul()
    np.testing.assert_array_equal(run(family.build(w, family.space(w, H200).default(), H200).kernel, inputs), want)


def test_what_is_refused() -> None:
    w = workload(16, 16, 32)
    assert "expected int32" in str(FAMILY.matches(replace(w, outputs=(TensorType("float32", (16, 16)),)), H200))
    assert "differ in dtype" in str(FAMILY.matches(replace(w, inputs=(w.inputs[0], TensorType("uint8", (16, 32)))), H200))
    types = TensorType("int8", (1, 32, 8, 8)), TensorType("int8", (16, 32, 1, 1))
    attrs = (("dilations", (1, 1)), ("group", 1), ("pads", (0, 0, 0, 0)), ("strides", (1, 1)))
    conv = Workload("conv", types, (TensorType("int32", (1, 16, 8, 8)),), attrs)
    assert CudaConvMma().matches(conv, H200) is not None


@pytest.mark.parametrize("isa", ["sm_80", "sm_90a", "sm_100"])
def test_large_tiles_compile_without_spills(isa: str) -> None:
    w = workload(4096, 4096, 4096)
    config = small(w, warps_m=2, warps_n=4, rows=4, columns=4, bytes_k=128, stages=3)
    for resources in compiled(FAMILY.build(w, config, H200).kernel, isa).values():
        assert resources.spill_bytes == 0
        assert resources.registers <= 168
