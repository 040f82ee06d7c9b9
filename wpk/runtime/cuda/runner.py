"""Runs CUDA plans: weights uploaded once, one arena, the steps between two ONNX Runtime regions as one CUDA graph.

Feeds are NumPy arrays, or anything on the GPU that has ``__cuda_array_interface__`` or ``__dlpack__`` (GPUArray, cupy, torch):
those are read where they lie.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import ArtifactError, InternalError, UsageError
from wpk.core.launch import calls_of
from wpk.runtime.cuda.device import Binary, Call, Device, Enqueue, LibraryCall, Recording, Span
from wpk.runtime.cuda.interchange import DeviceArray, device_array, on_device
from wpk.runtime.cuda.order import Touch, dependencies
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Plan, Port, Step
from wpk.runtime.ports import (
    NodeArg,
    check_feed,
    check_names,
    check_outputs,
    node_arg,
    numpy_dtype,
)
from wpk.runtime.sessions import Region

_ALIGN = 256
#: Steps with a workspace take turns with this many, so that they can run beside each other.
_WORKSPACES = 4
#: What is timed runs so often, one after the other: a device that idles between runs takes longer for each.
_REPEATS = 5
#: Recordings kept for feeds and outputs that lie elsewhere than the runner's own.
_KEPT = 8


class CudaRunner:
    """A model compiled for a GPU, ready to run. Safe to call from several threads: calls take turns.

    As :class:`wpk.runtime.runner.Runner`; besides, :meth:`run_on_device` leaves data where it is.
    """

    def __init__(self, parts: Parts, device: Device) -> None:
        """Loads all there is. Raises ArtifactError when parts are missing, DeviceMemoryError when they have no room."""
        self.plan = parts.plan
        self.threads = 1
        self._device = device
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._finalizer = weakref.finalize(self, self._stack.close)
        self._recorded: OrderedDict[tuple[int, ...], list[Recording | int]] = OrderedDict()
        try:
            self._prepare(parts)
        except BaseException:
            self.close()
            raise

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs, in order."""
        return [node_arg(p) for p in self.plan.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs, in order."""
        return [node_arg(p) for p in self.plan.outputs]

    def run(
        self, output_names: Sequence[str] | None = None, feeds: Mapping[str, Any] | None = None
    ) -> list[np.ndarray]:
        """Outputs in the order of ``output_names`` (all for None), as new NumPy arrays. ``feeds``: input name → array.

        Raises FeedError, UsageError (unknown output, closed runner), DeviceError (a kernel faults).
        """
        wanted = check_outputs(output_names, self.plan.outputs)
        check_names({} if feeds is None else feeds, self.plan.inputs)
        ports = {p.name: p for p in self.plan.outputs}
        with self._lock:
            self._execute(self._feed(feeds or {}), {})
            found = []
            for name in wanted:
                array = np.empty(ports[name].shape, numpy_dtype(ports[name].dtype))
                self._device.download(self._own[name], array)
                found.append(array)
        return found

    def run_on_device(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> dict[str, DeviceArray]:
        """Run without copies: the outputs by name, on the device, ready when the runner's stream has come that far.

        ``outputs``: arrays on the device to write to. Others are the runner's own memory, valid until the next run.
        Raises as :meth:`run`.
        """
        check_names(feeds, self.plan.inputs)
        given = {} if outputs is None else dict(outputs)
        check_outputs(list(given), self.plan.outputs)
        ports = {p.name: p for p in self.plan.outputs}
        with self._lock:
            places = {n: device_array(ports[n], a, "output") for n, a in given.items()}
            self._execute(self._feed(feeds), places)
            self._device.synchronize()
        return {
            n: DeviceArray(places.get(n, self._own[n]), port.shape, port.dtype, self)
            for n, port in ports.items()
        }

    def profile(self, feeds: Mapping[str, Any]) -> list[tuple[str, float]]:
        """(name, seconds) of each step on the device, in order, its operands in the cache. Raises as :meth:`run`."""
        check_names(feeds, self.plan.inputs)
        with self._lock:
            work = self._bound(self._places(self._feed(feeds), {}))
            return [(s.name, self._step_seconds(s, work[i])) for i, s in enumerate(self.plan.steps)]

    def _step_seconds(self, step: Step, work: Enqueue) -> float:
        if step.kind == "onnxruntime":
            return self._device.elapsed(work)
        recording = self._device.record([work] * _REPEATS, [(i - 1,) if i else () for i in range(_REPEATS)])
        try:
            return self._device.elapsed(recording.launch, recording.launch) / _REPEATS
        finally:
            recording.close()

    def seconds(self, feeds: Mapping[str, Any]) -> float:
        """Seconds of one run by the device's own clock, feeds and outputs staying there; where parts of the plan run in ONNX
        Runtime, by the host's clock. Raises as :meth:`run`.
        """
        with self._lock:
            places = self._places(self._feed(feeds), {})
            recordings = self._recordings(places)
            if not self._regions:
                ahead, timed = partial(_launch, recordings), partial(_launch, recordings * _REPEATS)
                return self._device.elapsed(timed, ahead) / _REPEATS
            self._device.synchronize()
            start = perf_counter()
            self._run_all(recordings, places)
            self._device.synchronize()
            return perf_counter() - start

    def speed(self) -> float:
        """As :meth:`wpk.runtime.runner.Runner.speed`; a GPU's kernels have it to themselves."""
        return 1.0

    def close(self) -> None:
        """Free memory and code; wait for a call in progress. A second call does nothing."""
        with self._lock:
            self._finalizer()
            self._recorded.clear()

    def __enter__(self) -> CudaRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Preparing

    def _prepare(self, parts: Parts) -> None:
        plan, device = parts.plan, self._device
        self._arena = self._allocate(plan.arena_bytes)
        self._weights = {b.key: self._weight(parts, b.key, b.nbytes) for b in plan.buffers if b.kind == "weight"}
        ports = (*plan.inputs, *plan.outputs)
        self._own = {p.name: self._allocate(_nbytes(p)) for p in ports}
        self._workspaces = self._make_workspaces(plan.steps)
        self._binaries = {s.binary: _binary(parts, s) for s in plan.steps if s.kind == "cuda"}
        self._regions = {
            i: Region(s.name, s.spec or {}, parts.model(s), 0)
            for i, s in enumerate(plan.steps)
            if s.kind == "onnxruntime"
        }
        cuts = sorted({0, len(plan.steps), *self._regions, *(i + 1 for i in self._regions)})
        self._segments = list(pairwise(cuts))
        self._libraries: dict[int, LibraryCall] = {}
        device.synchronize()

    def _allocate(self, nbytes: int) -> int:
        pointer = self._device.allocate(max(nbytes, _ALIGN))
        self._stack.callback(self._device.free, pointer)
        return pointer

    def _weight(self, parts: Parts, key: str, nbytes: int) -> int:
        pointer = self._allocate(nbytes)
        self._device.upload(pointer, np.ascontiguousarray(parts.weight(key, nbytes)))
        return pointer

    def _make_workspaces(self, steps: Sequence[Step]) -> list[Span]:
        """A workspace for each step; the same few in turn."""
        users = [i for i, s in enumerate(steps) if s.kind == "cuda" and s.shared_bytes]
        size = [0] * _WORKSPACES
        for turn, i in enumerate(users):
            size[turn % _WORKSPACES] = max(size[turn % _WORKSPACES], steps[i].shared_bytes)
        pointers = [self._allocate(n) if n else 0 for n in size]
        turns = {i: turn % _WORKSPACES for turn, i in enumerate(users)}
        return [
            Span(pointers[turns[i]], s.shared_bytes) if i in turns else Span(0, 0)
            for i, s in enumerate(steps)
        ]

    # Running

    def _feed(self, feeds: Mapping[str, Any]) -> dict[str, int]:
        """Where each input lies: that of an array on the device, or the runner's own memory after a copy."""
        if not self._finalizer.alive:
            raise UsageError("this runner is closed")
        places = {}
        for port in self.plan.inputs:
            value = feeds[port.name]
            if on_device(value):
                places[port.name] = device_array(port, value, "feed")
                continue
            self._device.upload(self._own[port.name], check_feed(port, numpy_dtype(port.dtype), value))
            places[port.name] = self._own[port.name]
        return places

    def _places(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> dict[str, int]:
        return {**self._own, **inputs, **outputs}

    def _execute(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        places = self._places(inputs, outputs)
        self._run_all(self._recordings(places), places)

    def _run_all(self, recordings: Sequence[Recording | int], places: Mapping[str, int]) -> None:
        for recording in recordings:
            if isinstance(recording, int):
                self._run_region(recording, places)
            else:
                recording.launch(self._device.stream)

    def _recordings(self, places: Mapping[str, int]) -> list[Recording | int]:
        """A recording for each stretch of steps, the number of the step for ONNX Runtime's."""
        key = tuple(places.values())
        if key not in self._recorded:
            while len(self._recorded) >= _KEPT:
                for old in self._recorded.popitem(last=False)[1]:
                    if not isinstance(old, int):
                        old.close()
            self._recorded[key] = self._record(places)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    def _record(self, places: Mapping[str, int]) -> list[Recording | int]:
        work = self._bound(places)
        found: list[Recording | int] = []
        for first, last in self._segments:
            if first in self._regions:
                found.append(first)
                continue
            after = dependencies([self._touches(i, places) for i in range(first, last)])
            recording = self._device.record(work[first:last], after)
            self._stack.callback(recording.close)
            found.append(recording)
        return found

    def _bound(self, places: Mapping[str, int]) -> list[Enqueue]:
        return [self._enqueue(i, step, places) for i, step in enumerate(self.plan.steps)]

    def _enqueue(self, index: int, step: Step, places: Mapping[str, int]) -> Enqueue:
        spans, spec, device = self._spans(step, places), step.spec or {}, self._device
        if step.kind == "cuda":
            launches, maps = calls_of(spec)
            call = Call(
                self._binaries[step.binary], launches, maps, spans, self._workspaces[index], int(spec["outputs"])
            )
            return device.bind(call)
        if step.kind == "copy":
            source, target = spans
            return lambda stream: device.copy(target.pointer, source.pointer, int(spec["nbytes"]), stream)
        if step.kind == "onnxruntime":
            return lambda stream: self._run_region(index, places)
        if index not in self._libraries:
            self._libraries[index] = device.library(step.kind, spec)
        library, pointers = self._libraries[index], [s.pointer for s in spans]
        return lambda stream: library(stream, pointers)

    def _spans(self, step: Step, places: Mapping[str, int]) -> tuple[Span, ...]:
        sizes = (step.spec or {}).get("bytes")
        found = []
        for i, arg in enumerate(step.args):
            buffer = self.plan.buffers[arg.buffer]
            base = {
                "arena": self._arena + buffer.offset,
                "weight": self._weights.get(buffer.key, 0),
            }.get(buffer.kind) or places[buffer.key]
            nbytes = int(sizes[i]) if sizes else int((step.spec or {}).get("nbytes", buffer.nbytes - arg.offset))
            if arg.offset < 0 or arg.offset + nbytes > buffer.nbytes:
                raise ArtifactError(f"step {step.name!r}: argument {i} lies outside buffer {arg.buffer}")
            found.append(Span(base + arg.offset, nbytes))
        return tuple(found)

    def _touches(self, index: int, places: Mapping[str, int]) -> list[Touch]:
        step = self.plan.steps[index]
        spans, outputs = self._spans(step, places), _outputs(step)
        first = len(spans) - outputs
        found = [Touch(s.pointer, s.nbytes, i >= first) for i, s in enumerate(spans)]
        space = self._workspaces[index]
        return [*found, Touch(space.pointer, space.nbytes, True)] if space.nbytes else found

    def _run_region(self, index: int, places: Mapping[str, int]) -> None:
        """Inputs to the host, a session of ONNX Runtime, outputs back."""
        step = self.plan.steps[index]
        spec, spans = step.spec or {}, self._spans(step, places)
        typed = [*spec["inputs"], *spec["outputs"]]
        arrays = [np.empty([int(n) for n in shape], numpy_dtype(dtype)) for _, dtype, shape in typed]
        count = len(spec["inputs"])
        for array, span in zip(arrays[:count], spans, strict=False):
            self._device.download(span.pointer, array)
        try:
            self._regions[index].run([a.__array_interface__["data"][0] for a in arrays])
        except RuntimeError as error:
            raise InternalError(f"step {step.name!r} failed in ONNX Runtime: {error}") from error
        for array, span in zip(arrays[count:], spans[count:], strict=True):
            self._device.upload(span.pointer, array)


def _launch(recordings: Sequence[Recording | int], stream: int) -> None:
    for recording in recordings:
        assert not isinstance(recording, int)
        recording.launch(stream)


def _outputs(step: Step) -> int:
    """How many of a step's last arguments it writes."""
    spec = step.spec or {}
    return len(spec["outputs"]) if step.kind == "onnxruntime" else int(spec.get("outputs", 1))


def _nbytes(port: Port) -> int:
    return int(np.prod(port.shape, dtype=np.int64)) * numpy_dtype(port.dtype).itemsize


def _binary(parts: Parts, step: Step) -> Binary:
    content = parts.binary(step.binary)
    cubin = content.read_bytes() if isinstance(content, Path) else bytes(content)
    return Binary(step.binary, cubin, parts.sources.get(step.symbol, ""))


def is_cuda(plan: Plan) -> bool:
    """True for a plan made for a GPU."""
    return plan.target.get("arch") == "cuda"


def made_for(plan: Plan) -> str:
    """The GPU that a plan was made for, for messages."""
    return f"{plan.target.get('model')} ({plan.target['isas'][0]})"


def check_device(plan: Plan, device: Device, any_target: bool = False) -> None:
    """Raises ArtifactError unless the plan was made for this kind of GPU; with ``any_target`` the same instructions suffice."""
    found, wanted = device.target, plan.target["isas"][0]
    fits = found.isa == wanted or (_family(found.isa) == _family(wanted) and not wanted.endswith("a"))
    if fits and (any_target or found.model == plan.target.get("model")):
        return
    raise ArtifactError(f"{plan.model} was made for {made_for(plan)}, found {found.model} ({found.isa})")


def _family(isa: str) -> str:
    """Code for one compute capability runs on those of the same major number."""
    return isa.rstrip("a")[:-1]
