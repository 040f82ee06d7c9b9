"""cuBLASLt on the GPU: all it offers for every form, against the reference; strict float32; in recordings and in tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cublaslt_workloads import CHAINED, chain, checked, conv, feeds_of, gemm, matmul, placed, t, workloads

from wpk.core.errors import DeviceError
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.measure.measurer import cuda_measurer
from wpk.providers.cublaslt import CublasLt
from wpk.providers.reference import reference_output
from wpk.runtime.cuda.cublaslt_call import CublasLtCall, cublaslt_version
from wpk.runtime.cuda.driver import CudaDevice
from wpk.runtime.cuda.runner import CudaRunner

#: sizes of real layers, where other kernels are offered than for small ones: few rows, long sums, odd extents
LARGE = [
    w
    for dtype in ("float32", "float16", "bfloat16")
    for w in (
        gemm(1, 1000, 2048, dtype, (0, 1), (t("float32", 1000),), "add(acc,in2)", (1, 2)),
        gemm(128, 3072, 768, dtype, (0, 0), (t("float32", 3072),), "relu(add(acc,in2))", (1, 2)),
        gemm(49, 512, 4608, dtype, (0, 1)),
        gemm(33, 77, 51, dtype),
        matmul((1, 12, 128, 64), (1, 12, 64, 128), dtype, (t("float32", 1, 1, 1, 128),), "add(div(acc,8.0),in2)", (2,)),
        conv(1, 256, 64, (56, 56), dtype, ("NHWC", "NHWC"), "relu(add(acc,in2))"),
        conv(1, 64, 256, (56, 56), dtype, ("NHWC", "NHWC"), "relu(add(add(acc,in2),in3))", residual=True),
        conv(2, 512, 128, (28, 28), dtype, ("ROW", "ROW"), "relu(add(acc,in2))"),
    )
]


@pytest.fixture(scope="module")
def provider(device: CudaDevice) -> CublasLt:
    try:
        cublaslt_version()
    except DeviceError as error:
        pytest.skip(str(error))
    return CublasLt()


@pytest.mark.parametrize("w", [*workloads(), *LARGE], ids=lambda w: w.key)
def test_all_that_is_offered_is_right(device: CudaDevice, target: Target, provider: CublasLt, w: Workload) -> None:
    support = provider.supports(w, target)
    assert support, support.reason
    wrong = {}
    for i, config in enumerate(provider.space(w, target).enumerate()):
        verdict = checked(device, provider, w, target, i)
        if not verdict.ok:
            wrong[config["algorithm"]] = verdict.problem
    assert not wrong


def test_float32_is_strict(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    """Operands with all bits of float32 in use: tf32 would lose three decimal digits of them."""
    w = gemm(64, 64, 256)
    rng = np.random.default_rng(0)
    feeds = [(rng.integers(1, 1 << 24, x.shape) / (1 << 24)).astype(np.float32) for x in w.inputs]
    exact = feeds[0].astype(np.float64) @ feeds[1].astype(np.float64)
    for config in provider.space(w, target).enumerate():
        found = product(device, provider, w, feeds, str(config["algorithm"]), target)
        assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 2e-6, config


def test_the_same_bits_every_time(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    """Sums in parts too are added in one order."""
    for w in (gemm(8, 64, 8192), gemm(8, 64, 8192, "float16"), gemm(8, 64, 8192, tf32=True)):
        feeds = feeds_of(w)
        for config in provider.space(w, target).enumerate():
            first, *others = [product(device, provider, w, feeds, str(config["algorithm"]), target) for _ in range(4)]
            assert all(np.array_equal(first, x) for x in others), config


def test_offers_are_the_same_when_asked_again(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    for w in LARGE:
        spec = provider.build(w, provider.space(w, target).default(), target).spec or {}
        assert device.offers("cublaslt", spec) == device.offers("cublaslt", spec)


def test_a_plan_records_it(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    """In a CUDA graph, twice, with one bias: the second call must not see the first one's pointers."""
    feeds = feeds_of(CHAINED)
    with CudaRunner(chain(provider, CHAINED, feeds, target), device) as runner:
        (once,) = reference_output(CHAINED, feeds)
        (twice,) = reference_output(CHAINED, [once, *feeds[1:]])
        for _ in range(3):
            np.testing.assert_allclose(runner.run(None, {"x": feeds[0]})[0], twice, rtol=1e-4, atol=1e-4)


def test_bindings_of_one_call_keep_apart_in_a_recording(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    """The bias is an attribute of the descriptor: each recorded call must have its own."""
    w = CHAINED
    sets = [feeds_of(w), [a + np.float32(1) for a in feeds_of(w)]]
    places = [placed(device, provider, w, feeds, target) for feeds in sets]
    call = device.library("cublaslt", provider.build(w, provider.space(w, target).default(), target).spec or {})
    work = [lambda stream, p=p: call(stream, p) for p in places]
    graph = device.record(work, [(), (0,)])
    graph.launch(device.stream)
    for feeds, place in zip(sets, places, strict=True):
        found = np.empty(w.outputs[0].shape, np.float32)
        device.download(place[-1], found)
        np.testing.assert_allclose(found, reference_output(w, feeds)[0], rtol=1e-4, atol=1e-4)
    graph.close()
    for pointer in (p for place in places for p in place):
        device.free(pointer)


def test_arrays_at_odd_places(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    w = gemm(6, 8, 4)
    feeds = feeds_of(w)
    places = placed(device, provider, w, feeds, target)
    block = device.allocate(feeds[0].nbytes + 16)
    call = device.library("cublaslt", provider.build(w, provider.space(w, target).default(), target).spec or {})
    for offset in (4, 8, 0):
        device.upload(block + offset, feeds[0])
        call(device.stream, [block + offset, *places[1:]])
        found = np.empty((6, 8), np.float32)
        device.download(places[-1], found)
        np.testing.assert_allclose(found, feeds[0] @ feeds[1], rtol=1e-5, atol=1e-5)
    for pointer in (*places, block):
        device.free(pointer)


def test_an_unknown_algorithm_is_an_error(device: CudaDevice, target: Target, provider: CublasLt) -> None:
    spec = provider.build(CHAINED, provider.space(CHAINED, target).default(), target).spec or {}
    with device._active(), pytest.raises(DeviceError, match="no algorithm 'id=12345'"):
        CublasLtCall({**spec, "algorithm": "id=12345"}, device)


@pytest.mark.parametrize("w", LARGE[:3], ids=lambda w: w.key)
def test_tuning_measures_it(target: Target, provider: CublasLt, tmp_path: Path, w: Workload) -> None:
    configs = list(provider.space(w, target).enumerate())
    with cuda_measurer(target, tmp_path) as measurer:
        for config, found in zip(configs, measurer.measure(w, provider, configs), strict=True):
            assert found.ok, (config, found)


def product(
    device: CudaDevice, provider: CublasLt, w: Workload, feeds: list[np.ndarray], algorithm: str, target: Target
) -> np.ndarray:
    """The result of one algorithm, in float32."""
    call = device.library("cublaslt", provider.build(w, {"algorithm": algorithm}, target).spec or {})
    places = placed(device, provider, w, feeds, target)
    call(device.stream, places)
    found = np.empty(w.outputs[0].shape, np.dtype(w.outputs[0].dtype))
    device.download(places[-1], found)
    for pointer in places:
        device.free(pointer)
    return found.astype(np.float32)
