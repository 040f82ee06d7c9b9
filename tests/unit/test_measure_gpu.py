"""How a candidate on a GPU is timed, and what its failures mean, on a device that is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dsl_cuda_check import H200, product

from wpk.core.errors import DeviceError
from wpk.measure.candidate import DeviceFault, LaunchError
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.gpu import GpuCandidate, GpuOperands
from wpk.measure.timer import GPU_TIMING
from wpk.measure.worker import request_of
from wpk.runtime.cuda.device import Enqueue, LibraryCall

WORKLOAD = product(8, 8, 16)
WEIGHTS = np.arange(128, dtype=np.float32).reshape(16, 8)


class Clocked(EmulatedDevice):
    """Its library's call takes 20 µs, and does nothing but say which weights it reads."""

    def __init__(self) -> None:
        super().__init__(H200)
        self.read: list[float] = []
        self.timed: list[list[float]] = []
        self.refusal = self.fault = ""

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        return self._call

    def _call(self, stream: int, pointers: Sequence[int]) -> None:
        if self.refusal:
            raise DeviceError(self.refusal)
        found = np.empty(WEIGHTS.shape, np.float32)
        self.download(pointers[1], found)
        np.testing.assert_array_equal(found, WEIGHTS)
        self.read.append(pointers[1])

    def elapsed(self, work: Enqueue, ahead: Enqueue | None = None) -> float:
        if ahead is not None:
            ahead(self.stream)
        start = len(self.read)
        work(self.stream)
        self.timed.append(self.read[start:])
        return 20e-6 * (len(self.read) - start)

    def synchronize(self) -> None:
        if self.fault:
            raise DeviceError(self.fault)


def candidate(device: Clocked, folder: Path, cold_bytes: int = 0) -> GpuCandidate:
    np.save(folder / "w.npy", WEIGHTS)
    request = request_of(kind="cublaslt", constants=[str(folder / "w.npy")], cold_bytes=cold_bytes)
    return GpuCandidate(device, GpuOperands(device, WORKLOAD, [np.ones((8, 16), np.float32), None], []), request)


def test_cold_calls_go_through_copies_that_exceed_the_cache(tmp_path: Path) -> None:
    device = Clocked()
    made = candidate(device, tmp_path, 100 * WEIGHTS.nbytes)
    samples = made.time(GPU_TIMING)
    assert samples == pytest.approx([20e-6] * len(samples)) and len(samples) >= GPU_TIMING.min_samples
    assert len(set(device.read)) == 101
    first, second = device.timed[-2:]
    assert len(first) == 15 and not set(first) & set(second)
    count, recorded = len(device._blocks), len(device.read)
    made.time(GPU_TIMING)
    assert len(device._blocks) == count, "what was made once is used again"
    assert len(device.read) > recorded
    made.close()
    assert len(device._blocks) == 2, "the workload's input and output are left"


def test_what_stays_in_the_cache_however_often_it_is_copied_is_not_copied(tmp_path: Path) -> None:
    device = Clocked()
    candidate(device, tmp_path, 2000 * WEIGHTS.nbytes).time(GPU_TIMING)
    assert len(set(device.read)) == 1


def test_warm_calls_read_one_place(tmp_path: Path) -> None:
    device = Clocked()
    candidate(device, tmp_path, 100 * WEIGHTS.nbytes).time(GPU_TIMING.glance(1e-3), cold=False)
    assert len(set(device.read)) == 1 and len(device.timed[-1]) == 1


@pytest.mark.parametrize("act", [lambda c: c.run(), lambda c: c.time(GPU_TIMING)])
def test_what_is_refused_harms_nothing_and_a_fault_ends_the_device(tmp_path: Path, act: Callable[[GpuCandidate], Any]) -> None:
    device = Clocked()
    made = candidate(device, tmp_path)
    device.refusal = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    with pytest.raises(LaunchError, match="OUT_OF_RESOURCES"):
        act(made)
    device.fault = "a kernel faulted"
    with pytest.raises(DeviceFault):
        act(made)
