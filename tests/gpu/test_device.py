"""The real device behind its seam: memory, errors, interop. What the emulated device promises, this one must keep."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from wpk.core.errors import ArtifactError, DeviceError, DeviceMemoryError
from wpk.core.launch import Launch
from wpk.core.target import Target
from wpk.cuda import nvrtc
from wpk.runtime.cuda.device import Binary, Call, Span
from wpk.runtime.cuda.driver import CudaDevice

ADD = """#include "wpk_device.cuh"
extern "C" __global__ void add(const float *a, const float *b, float *out, char *workspace) {
  int i = blockIdx.x * 64 + threadIdx.x;
  out[i] = a[i] + b[i];
}
"""
FAR = ADD.replace("out[i]", "out[i + (1ll << 40)]")
SLOW = ADD.replace("out[i] =", "for (int k = 0; k < 100000; ++k) __nanosleep(100); out[i] =")


def binary(text: str, target: Target) -> Binary:
    return Binary(f"{abs(hash(text))}.cubin", nvrtc.compile(text, target.isa).cubin, text)


def put(device: CudaDevice, array: np.ndarray) -> Span:
    span = Span(device.allocate(array.nbytes), array.nbytes)
    device.upload(span.pointer, array)
    return span


def added(device: CudaDevice, target: Target, text: str = ADD) -> tuple[Call, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=256).astype(np.float32) for _ in range(2))
    spans = (put(device, a), put(device, b), put(device, np.zeros(256, np.float32)))
    return Call(binary(text, target), (Launch("add", (4, 1, 1), (64, 1, 1)),), (), spans, Span(0, 0), 1), a, b


def get(device: CudaDevice, span: Span) -> np.ndarray:
    found = np.empty(span.nbytes // 4, np.float32)
    device.download(span.pointer, found)
    return found


def test_copies_of_any_size_come_back(device: CudaDevice) -> None:
    for count in (1, 1000, (16 << 20) // 4 + 3):
        x = np.random.default_rng(count).normal(size=count).astype(np.float32)
        span = put(device, x)
        np.testing.assert_array_equal(get(device, span), x)
        device.free(span.pointer)


def test_a_kernel_runs_once_and_in_a_graph(device: CudaDevice, target: Target) -> None:
    call, a, b = added(device, target)
    run = device.bind(call)
    run(device.stream)
    device.synchronize()
    np.testing.assert_array_equal(get(device, call.arguments[2]), a + b)
    device.upload(call.arguments[2].pointer, np.zeros(256, np.float32))
    graph = device.record([run, run, run, run], [(), (), (0, 1), (2,)])
    graph.launch(device.stream)
    device.synchronize()
    np.testing.assert_array_equal(get(device, call.arguments[2]), a + b)
    assert 0 < device.elapsed(graph.launch) < 1
    graph.close()
    graph.close()


def test_branches_run_beside_each_other(device: CudaDevice, target: Target) -> None:
    """Two kernels that mostly sleep take as long as one where nothing makes them wait."""
    run = device.bind(added(device, target, SLOW)[0])
    alone, both = device.record([run], [()]), device.record([run, run], [(), ()])
    chain = device.record([run, run], [(), (0,)])
    device.elapsed(alone.launch)
    one, two, after = (device.elapsed(g.launch) for g in (alone, both, chain))
    assert two < 1.5 * one < after


def test_out_of_memory_is_an_error_that_leaves_nothing(device: CudaDevice, target: Target) -> None:
    assert target.gpu is not None
    with pytest.raises(DeviceMemoryError, match=r"no room for \d+ bytes; \d+ of \d+ are free"):
        device.allocate(2 * target.gpu.memory)
    span = put(device, np.ones(8, np.float32))
    np.testing.assert_array_equal(get(device, span), np.ones(8))


def test_a_binary_for_another_gpu_is_refused(device: CudaDevice, target: Target) -> None:
    other = "sm_80" if target.isa != "sm_80" else "sm_90a"
    call, _, _ = added(device, target)
    wrong = Binary("other.cubin", nvrtc.compile(ADD, other).cubin)
    with pytest.raises(ArtifactError, match=r"cannot load binary 'other\.cubin'"):
        device.bind(Call(wrong, call.launches, (), call.arguments, call.workspace, 1))


def test_a_missing_kernel_is_named(device: CudaDevice, target: Target) -> None:
    call, _, _ = added(device, target)
    with pytest.raises(ArtifactError, match="has no kernel 'sub'"):
        device.bind(Call(call.binary, (Launch("sub", (1, 1, 1), (1, 1, 1)),), (), call.arguments, call.workspace, 1))


_FAULT = """
import sys; sys.path.insert(0, {folder!r})
from test_device import *
from wpk.runtime.cuda.driver import open_device
from wpk.settings import known_gpu
device = open_device()
call, a, b = added(device, known_gpu(device.target), FAR)
device.bind(call)(device.stream)
try:
    device.synchronize()
except DeviceError as error:
    print(error)
"""


def test_a_fault_says_that_the_process_is_lost(device: CudaDevice) -> None:
    """In a process of its own: nothing more can be done on the GPU there."""
    from pathlib import Path

    code = _FAULT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "a kernel faulted; this process can use the GPU no more" in done.stdout, done.stderr


def test_memory_is_shared_with_torch(device: CudaDevice, target: Target) -> None:
    """One context: torch reads what we wrote, and we read what torch wrote, by the array interface and by DLPack."""
    torch: Any = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    from wpk.runtime.cuda.interchange import DeviceArray, device_array
    from wpk.runtime.plan import Port

    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    span = put(device, x)
    seen = torch.as_tensor(DeviceArray(span.pointer, (3, 4), "float32"), device="cuda")
    np.testing.assert_array_equal(seen.cpu().numpy(), x)
    made = torch.full((3, 4), 7.0, device="cuda")
    assert device_array(Port("x", "float32", (3, 4)), made, "feed") == made.data_ptr()
    half = torch.ones((3, 4), dtype=torch.bfloat16, device="cuda")
    assert device_array(Port("h", "bfloat16", (3, 4)), half, "feed") == half.data_ptr()
    assert device_array(Port("h", "bfloat16", (3, 4)), OnlyDlpack(half), "feed") == half.data_ptr()


class OnlyDlpack:
    """A tensor that offers DLPack and nothing else."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def test_memory_is_shared_with_pycuda(device: CudaDevice) -> None:
    """A GPUArray made in the primary context is read where it lies."""
    gpuarray: Any = pytest.importorskip("pycuda.gpuarray")
    from wpk.runtime.cuda.interchange import device_array
    from wpk.runtime.plan import Port

    x = np.arange(6, dtype=np.float32)
    with device._active():
        made = gpuarray.to_gpu(x)
        pointer = device_array(Port("x", "float32", (6,)), made, "feed")
        assert pointer == int(made.gpudata)
        found = np.empty(6, np.float32)
        device.download(pointer, found)
        del made
    np.testing.assert_array_equal(found, x)


def test_a_second_device_is_independent(device: CudaDevice) -> None:
    import pycuda.driver as cuda

    if cuda.Device.count() < 2:
        pytest.skip("one GPU only")
    other = CudaDevice(1)
    span = put(other, np.ones(4, np.float32))
    np.testing.assert_array_equal(get(other, span), np.ones(4))
    other.close()


def test_an_index_beyond_the_devices_is_refused(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match="CUDA device 99: expected one of"):
        CudaDevice(99)
