"""The CUDA matrix product: any config, interpreted and emulated, gives what NumPy gives; its text compiles without spills."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, compiled, emulated, interpreted, product
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.kernels.cuda.gemm import CudaGemm, matmul, tile_of

FAMILY = CudaGemm()


def matrices(w: Workload, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=t.shape).astype(t.dtype) for t in w.inputs]


def expected(w: Workload, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a.T if w.attr("trans_a") else a) @ (b.T if w.attr("trans_b") else b)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.booleans(), st.booleans(), st.integers(0, 1 << 30))
def test_any_config_means_the_product(m: int, n: int, k: int, trans_a: bool, trans_b: bool, seed: int) -> None:
    w = product(m, n, k, trans_a, trans_b)
    config = FAMILY.space(w, H200).sample(Random(seed))
    if tile_of(config).threads > 64:
        return
    a, b = matrices(w, seed)
    got = interpreted(FAMILY.build(w, config, H200).kernel, [a, b])
    np.testing.assert_allclose(got, expected(w, a, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "trans_a", "trans_b"),
    [((70, 96, 64), False, False), ((33, 64, 40), True, False), ((16, 40, 100), False, True), ((65, 31, 17), True, True)],
)
def test_the_text_means_the_product(shape: tuple[int, int, int], trans_a: bool, trans_b: bool) -> None:
    w = product(*shape, trans_a, trans_b)
    space, rng = FAMILY.space(w, H200), Random(sum(shape))
    a, b = matrices(w)
    for config in (space.default(), space.sample(rng)):
        kernel = FAMILY.build(w, config, H200).kernel
        np.testing.assert_allclose(emulated(kernel, [a, b]), expected(w, a, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ["sm_80", "sm_90a", "sm_100"])
def test_large_products_compile_without_spills(isa: str) -> None:
    w = product(1024, 1024, 1024)
    config = FAMILY.space(w, H200).default()
    for resources in compiled(FAMILY.build(w, config, H200).kernel, isa).values():
        assert resources.local_bytes == 0


def test_an_epilogue_and_packed_constants() -> None:
    types = tuple(TensorType("float32", s) for s in ((30, 24), (24, 36), (36,), (30, 36)))
    attrs = (("trans_a", False), ("trans_b", False))
    w = Workload("gemm", types, (TensorType("float32", (30, 36)),), attrs, parse("relu(add(add(acc,in2),in3))"), (1, 2))
    a, b, bias, rest = matrices(w)
    config = FAMILY.space(w, H200).default()
    packed = FAMILY.pack(w, config, [b, bias], H200)
    got = emulated(FAMILY.build(w, config, H200).kernel, [a, *packed, rest])
    np.testing.assert_allclose(got, np.maximum(a @ b + bias + rest, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", [1, 2])
def test_batches_broadcast(split: int) -> None:
    types = tuple(TensorType("float32", s) for s in ((3, 1, 18, 32), (2, 32, 20)))
    w = Workload("matmul", types, (TensorType("float32", (3, 2, 18, 20)),))
    family = matmul()
    a, b = matrices(w)
    config = {**family.space(w, H200).default(), "split_k": split, "tile_k": 8, "unroll_k": 4}
    got = emulated(family.build(w, config, H200).kernel, [a, np.broadcast_to(b, (1, 2, 32, 20)).copy()])
    np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("slices", "split"), [(2, 1), (4, 1), (2, 3)])
def test_slices_of_a_block_are_added(slices: int, split: int) -> None:
    w = product(17, 36, 100, trans_b=True)
    a, b = matrices(w)
    config = {
        **FAMILY.space(w, H200).default(), "tile_m": 4, "tile_n": 4, "lanes_m": 4, "warps_m": 1, "warps_n": 2, "tile_k": 8,
        "unroll_k": 4, "slices": slices, "split_k": split, "stages": 2,
    }  # fmt: skip
    kernel = FAMILY.build(w, config, H200).kernel
    np.testing.assert_allclose(emulated(kernel, [a, b]), expected(w, a, b), rtol=1e-4, atol=1e-4)


def test_the_meaning_of_slices() -> None:
    w = product(5, 12, 16)
    a, b = matrices(w)
    config = {
        **FAMILY.space(w, H200).default(), "tile_m": 2, "tile_n": 1, "lanes_m": 2, "warps_m": 1, "warps_n": 1, "tile_k": 4,
        "unroll_k": 2, "slices": 2, "split_k": 1, "stages": 2,
    }  # fmt: skip
    got = interpreted(FAMILY.build(w, config, H200).kernel, [a, b])
    np.testing.assert_allclose(got, expected(w, a, b), rtol=1e-4, atol=1e-4)


def test_the_space_is_large_and_its_guesses_are_valid() -> None:
    space = FAMILY.space(product(512, 512, 512), H200)
    configs = {tuple(sorted(space.sample(Random(i)).items())) for i in range(40)}
    assert len(configs) == 40
    assert all(all(limit(c) for limit in space.constraints) for c in space.first)
    assert len(space.first) >= 5


def test_parts_of_a_tile_that_does_not_fill_its_blocks() -> None:
    """The second kernel's last block has threads without work: what they would read must not move what the others read."""
    w = product(20, 24, 40)
    config = {**CudaGemm().space(w, H200).default(), "tile_m": 2, "tile_n": 4, "split_k": 2, "tile_k": 4, "stages": 1}
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=t.shape).astype(np.float32) for t in w.inputs)
    np.testing.assert_allclose(emulated(CudaGemm().build(w, config, H200).kernel, [a, b]), a @ b, rtol=1e-4, atol=1e-5)
