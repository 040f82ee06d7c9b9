"""Measuring CUDA candidates in the emulator: right ones get samples, wrong and faulting ones are failures, the run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, product

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.kernels.cuda.gemm import CudaGemm
from wpk.kernels.cuda.gemm_mma import CudaGemmMma
from wpk.measure.check import tolerance
from wpk.measure.measurer import Measurer, cuda_measurer
from wpk.providers.generated import GeneratedProvider
from wpk.providers.protocol import Code

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")

GEMM = GeneratedProvider(CudaGemm(), "cuda")
SMALL = product(20, 24, 40)


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cuda_measurer(H200, tmp_path_factory.mktemp("cache"), emulate=True) as made:
        yield made


@dataclass(frozen=True)
class Edited(GeneratedProvider):
    """A provider whose text is not what it should be."""

    old: str = ""
    new: str = ""

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        code = super().build(workload, config, target)
        assert code.cuda is not None and self.old in code.cuda.text
        return replace(code, cuda=replace(code.cuda, text=code.cuda.text.replace(self.old, self.new)))


def small_config() -> Config:
    base = GEMM.space(SMALL, H200).default()
    return {**base, "tile_m": 2, "tile_n": 4, "split_k": 1, "stages": 1}


def edited(old: str, new: str) -> Edited:
    return Edited(CudaGemm(), "cuda", old, new)


def test_right_candidates_get_samples(measurer: Measurer) -> None:
    space, rng = GEMM.space(SMALL, H200), Random(0)
    configs = [small_config(), {**small_config(), "split_k": 2, "tile_k": 4}, space.sample(rng)]
    for found in measurer.measure(SMALL, GEMM, configs):
        assert found.ok, found
        assert 0 < found.error < found.tolerance < 1e-4
        assert all(s > 0 for s in found.samples)


def test_operands_of_16_bits(measurer: Measurer) -> None:
    w = product(16, 16, 48, dtype="float16")
    provider = GeneratedProvider(CudaGemmMma(), "cuda")
    config = {**provider.space(w, H200).default(), "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "stages": 2, "split_k": 1}
    (found,) = measurer.measure(w, provider, [config])
    assert found.ok, found
    assert found.error < found.tolerance == tolerance("float16", 48) < 5e-3


def test_a_wrong_kernel_has_no_time(measurer: Measurer) -> None:
    (found,) = measurer.measure(SMALL, edited(" += ", " -= "), [small_config()])
    assert found.failure == "wrong" and not found.samples


def test_a_fault_ends_the_worker_and_not_the_run(measurer: Measurer) -> None:
    """The device is of no more use to that process, so the next candidate runs in a new one."""
    assert measurer.measure(SMALL, GEMM, [small_config()])[0].ok
    before = measurer._process
    (found,) = measurer.measure(SMALL, edited("out + ", "(out + (1 << 26)) + "), [small_config()])
    assert found.failure == "crash" and "out-of-bounds" in found.detail
    assert before is not None and measurer._process is None
    assert measurer.measure(SMALL, GEMM, [small_config()])[0].ok


def test_text_that_does_not_compile(measurer: Measurer) -> None:
    (found,) = measurer.measure(SMALL, edited(" += ", " +=& "), [small_config()])
    assert found.failure == "compile" and "error" in found.detail


def test_a_kernel_that_spills_is_not_run(measurer: Measurer) -> None:
    """Sixteen by sixteen accumulators do not fit the 64 registers that eight blocks leave."""
    (found,) = measurer.measure(SMALL, edited("__launch_bounds__(", "__launch_bounds__(1024, 2) // ("), [
        {**small_config(), "tile_m": 16, "tile_n": 8, "unroll_k": 4},
    ])  # fmt: skip
    assert found.failure == "invalid" and "spills" in found.detail


def test_finalists_are_timed_in_turns(measurer: Measurer) -> None:
    rivals: Sequence[tuple[GeneratedProvider, Config]] = [(GEMM, small_config()), (GEMM, {**small_config(), "tile_m": 4})]
    found = measurer.measure_again(SMALL, rivals, rounds=2)
    assert [m.ok for m in found] == [True, True]
    assert all(len(m.samples) >= 2 for m in found)


def test_tolerances_of_rounded_operands_do_not_grow_with_the_sum() -> None:
    assert tolerance("float16", 10) == tolerance("float16", 10000) < 5e-3
    assert tolerance("tf32", 64) < 5e-3 < tolerance("bfloat16", 64) < 0.04
    assert np.isclose(tolerance("float32", 100), 32 * 1.2e-7)


def test_finals_asked_for_beside_each_other_take_turns(measurer: Measurer) -> None:
    """The tuner asks for several tasks' finals at once where there are slots: each gets its own answers."""
    shapes = [product(8 + 4 * i, 16, 24) for i in range(3)]
    assert measurer.slots >= 1

    def final(w: Workload) -> bool:
        return all(m.ok for m in measurer.measure_again(w, [(GEMM, {**small_config(), "tile_m": 1})], rounds=1))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(final, shapes))
