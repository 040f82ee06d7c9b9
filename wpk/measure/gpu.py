"""Candidates on a GPU: checked between guards, timed by the device's own clock around CUDA graphs of many calls.

Constants are cold when timed: each call of a graph has a copy of its own, and all copies together exceed L2. Small ones, which L2
would hold however many copies there are, are read from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import DeviceError
from wpk.core.launch import calls_of
from wpk.core.target import Gpu, Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.measure.candidate import DeviceFault, LaunchError, copies_of
from wpk.measure.check import Verdict, check_outputs
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.timer import Timing, calls_of_sample, collect
from wpk.runtime.cuda.device import Binary, Call, Device, Enqueue, Recording, Span
from wpk.runtime.ports import numpy_dtype

#: Bytes before and behind each output that nobody may write, and what they hold.
_GUARD, _PATTERN = 4096, 0xA5
#: Copies of constants begin at multiples of so many bytes.
_ALIGN = 256
#: Most calls of one graph.
_MOST_CALLS = 256


class GpuMachine:
    """See :class:`wpk.measure.candidate.Bench`."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def operands(
        self, workload: Workload, inputs: list[np.ndarray | None], expected: list[np.ndarray]
    ) -> GpuOperands:
        """See :class:`Bench`."""
        return GpuOperands(self.device, workload, inputs, expected)

    def candidate(self, operands: GpuOperands, request: dict[str, Any]) -> GpuCandidate:
        """See :class:`Bench`."""
        return GpuCandidate(self.device, operands, request)

    def speed(self) -> float:
        """See :class:`Bench`: a GPU's kernels have it to themselves."""
        return 1.0


def emulated_machine(target: dict[str, Any]) -> GpuMachine:
    """One that needs no GPU; ``target`` as :meth:`Target.to_json` gives it."""
    plain = {**target, "isas": tuple(target["isas"]), "gpu": Gpu(**target["gpu"])}
    return GpuMachine(EmulatedDevice(Target(**plain)))


class GpuOperands:
    """The inputs and outputs of a workload on the device, shared by all its candidates; outputs between guards."""

    def __init__(
        self, device: Device, workload: Workload, inputs: list[np.ndarray | None], expected: list[np.ndarray]
    ) -> None:
        """``inputs``: physical arrays, None at constants. ``expected``: logical arrays. Raises DeviceMemoryError."""
        self.workload, self.expected, self._device = workload, expected, device
        self._stack = ExitStack()
        try:
            self.inputs = [None if a is None else uploaded(device, self._stack, a) for a in inputs]
            self.outputs = [self._guarded(t.nbytes) for t in workload.outputs]
        except BaseException:
            self.close()
            raise

    def poison(self) -> None:
        """See :class:`wpk.measure.candidate.Checked`; the guards are renewed too."""
        for span in self.outputs:
            whole = np.full(span.nbytes + 2 * _GUARD, _PATTERN, np.uint8)
            whole[_GUARD : _GUARD + span.nbytes] = 0xFF
            self._device.upload(span.pointer - _GUARD, whole)

    def check(self, tolerance: float) -> Verdict:
        """See :class:`wpk.measure.candidate.Checked`."""
        found = []
        for i, (span, kind) in enumerate(zip(self.outputs, self.workload.outputs, strict=True)):
            whole = np.empty(span.nbytes + 2 * _GUARD, np.uint8)
            self._device.download(span.pointer - _GUARD, whole)
            if np.any(whole[:_GUARD] != _PATTERN) or np.any(whole[_GUARD + span.nbytes :] != _PATTERN):
                return Verdict(float("inf"), tolerance, f"wrote outside output {i}")
            found.append(_typed(whole[_GUARD : _GUARD + span.nbytes], kind))
        return check_outputs(found, self.expected, self.workload.outputs, tolerance)

    def close(self) -> None:
        """Free the memory. A second call does nothing."""
        self._stack.close()

    def _guarded(self, nbytes: int) -> Span:
        pointer = self._device.allocate(nbytes + 2 * _GUARD)
        self._stack.callback(self._device.free, pointer)
        return Span(pointer + _GUARD, nbytes)


class GpuCandidate:
    """A candidate on the device. ``request`` is the message of :mod:`wpk.measure.measurer`."""

    def __init__(self, device: Device, operands: GpuOperands, request: dict[str, Any]) -> None:
        """Raises LaunchError, DeviceFault."""
        self._device, self._operands, self._request = device, operands, request
        self._stack = ExitStack()
        try:
            self._arrays = [np.load(path, mmap_mode="r") for path in request["constants"]]
            space = device.allocate(request["workspace"]) if request["workspace"] else 0
            if space:
                self._stack.callback(device.free, space)
            self._workspace = Span(space, request["workspace"])
            self._library = None if request["kind"] == "cuda" else device.library(request["kind"], request["spec"])
            self._binary = _binary(request)
            self._constants = [uploaded(device, self._stack, a) for a in self._arrays]
            self._ready: dict[tuple[bool, float], tuple[int, Iterator[Recording]]] = {}
            self._warm = self._bound(self._constants)
        except BaseException as error:
            self.close()
            raise _as_failure(device, error) from error

    def run(self) -> None:
        """See :class:`wpk.measure.candidate.Timed`."""
        try:
            self._warm(self._device.stream)
            self._device.synchronize()
        except DeviceError as error:
            raise _as_failure(self._device, error) from error

    def time(self, how: Timing, cold: bool = True) -> list[float]:
        """See :class:`wpk.measure.candidate.Timed`."""
        try:
            calls, graphs = self._prepared(how, cold)
            elapsed = self._device.elapsed
            return collect(lambda: elapsed(next(graphs).launch, next(graphs).launch) / calls, how, perf_counter())
        except DeviceError as error:
            raise _as_failure(self._device, error) from error

    def close(self) -> None:
        """Free memory. A second call does nothing."""
        self._stack.close()

    def _prepared(self, how: Timing, cold: bool) -> tuple[int, Iterator[Recording]]:
        """How many calls a graph has, and graphs without end, each launched before: made once, for finals come back for more."""
        key = cold, how.min_sample
        if key not in self._ready:
            once = min(self._device.elapsed(self._warm) for _ in range(2))
            calls = min(calls_of_sample(how, once), _MOST_CALLS)
            graphs = [self._recorded(part) for part in _parts(self._work(cold), calls)]
            for graph in graphs:
                self._device.elapsed(graph.launch)
            self._ready[key] = calls, cycle(graphs)
        return self._ready[key]

    def _work(self, cold: bool) -> list[Enqueue]:
        """Calls that go through copies of the constants; a single call with warm ones, or where all copies would stay in L2."""
        size, enough = sum(a.nbytes for a in self._arrays), self._request["cold_bytes"]
        copies = copies_of(size, enough) if cold else 1
        copies = copies if copies * size > enough // 2 else 1
        return [self._warm, *map(self._bound, self._copied(copies - 1))]

    def _copied(self, count: int) -> Iterator[list[Span]]:
        """The constants ``count`` times over, in one block of memory, copied on the device."""
        sizes = [-(-span.nbytes // _ALIGN) * _ALIGN for span in self._constants]
        at = self._device.allocate(count * sum(sizes)) if count else 0
        if at:
            self._stack.callback(self._device.free, at)
        for _ in range(count):
            found = []
            for span, size in zip(self._constants, sizes, strict=True):
                self._device.copy(at, span.pointer, span.nbytes, self._device.stream)
                found.append(Span(at, span.nbytes))
                at += size
            yield found

    def _bound(self, constants: Sequence[Span]) -> Enqueue:
        given = iter(constants)
        spans = (*(next(given) if s is None else s for s in self._operands.inputs), *self._operands.outputs)
        if self._library is not None:
            library, pointers = self._library, [s.pointer for s in spans]
            return lambda stream: library(stream, pointers)
        launches, maps = calls_of(self._request["spec"])
        return self._device.bind(Call(self._binary, launches, maps, spans, self._workspace, len(self._operands.outputs)))

    def _recorded(self, work: Sequence[Enqueue]) -> Recording:
        """The calls one after another: they write the same outputs."""
        recording = self._device.record(work, [(i - 1,) if i else () for i in range(len(work))])
        self._stack.callback(recording.close)
        return recording


def uploaded(device: Device, stack: ExitStack, array: np.ndarray) -> Span:
    """``array`` on the device until ``stack`` is closed."""
    pointer = device.allocate(array.nbytes)
    stack.callback(device.free, pointer)
    device.upload(pointer, np.ascontiguousarray(array))
    return Span(pointer, array.nbytes)


def _binary(request: dict[str, Any]) -> Binary:
    if request["kind"] != "cuda":
        return Binary("", b"")
    path = Path(request["binary"])
    return Binary(path.name, path.read_bytes(), request["spec"]["text"])


def _parts(work: Sequence[Enqueue], calls: int) -> list[list[Enqueue]]:
    """Graphs of ``calls`` calls each that go through all of ``work``, again and again."""
    count = -(-len(work) // calls)
    endless = cycle(work)
    return [[next(endless) for _ in range(calls)] for _ in range(count)]


def _typed(data: np.ndarray, kind: TensorType) -> np.ndarray:
    return np.frombuffer(data.tobytes(), numpy_dtype(kind.dtype)).reshape(kind.physical)


def _as_failure(device: Device, error: BaseException) -> BaseException:
    """What the device refuses is a failed launch; what leaves it of no use is a fault, whenever it comes to light."""
    if not isinstance(error, DeviceError):
        return error
    try:
        device.synchronize()
    except DeviceError:
        return DeviceFault(str(error))
    return LaunchError(str(error))
