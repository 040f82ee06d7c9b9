"""Runs a plan: parts (plan, binaries, weights) → prepared steps → ``run(output_names, feeds)``."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes import c_double, c_void_p
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import ArtifactError, DeviceError, InternalError, UsageError
from wpk.core.tensor import DTYPE_BYTES
from wpk.runtime import artifact
from wpk.runtime.binaries import Binary, open_binary
from wpk.runtime.cuda.driver import open_device
from wpk.runtime.cuda.runner import CudaRunner, check_device, is_cuda, made_for
from wpk.runtime.memory import Arena, address_of, align_all, aligned_empty, round_up
from wpk.runtime.native_api import RUNTIME, Adapter, Call, Native, NativePlan, Pool, Prepared, load_native
from wpk.runtime.parts import Content, Parts
from wpk.runtime.plan import Plan, Port, Step
from wpk.runtime.ports import NodeArg, check_feed, check_names, check_outputs, node_arg, numpy_dtype
from wpk.runtime.sessions import Region

#: Steps of these kinds bring threads of their own: the pool's workers sleep meanwhile. ``spec["own_threads"]`` overrides.
OWN_THREADS: tuple[str, ...] = ()


class Runner:
    """A compiled model ready to run. Safe to call from several threads: calls take turns.

    ``threads`` is how many cores a call uses; by default as many as the plan was made for. Use as a context manager or
    :meth:`close` to free threads and memory early.
    """

    def __init__(self, parts: Parts, threads: int | None = None, pin: bool = False) -> None:
        """Raises UsageError for a bad ``threads``, ArtifactError when parts are missing or do not fit together."""
        self.plan = parts.plan
        self.threads = _thread_count(parts.plan, threads)
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._finalizer = weakref.finalize(self, self._stack.close)
        self._arena: Arena | None = None
        self._weights: dict[str, np.ndarray] = {}
        self._regions: dict[int, Region] = {}
        try:
            self._prepare(parts, pin)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def from_parts(
        plan: Plan,
        binaries: Mapping[str, Content],
        weights: Mapping[str, np.ndarray],
        models: Mapping[str, bytes] | None = None,
        threads: int | None = None,
    ) -> Runner:
        """A runner without a file. Weights that start at no multiple of 64 bytes are copied."""
        return Runner(Parts(plan, binaries, weights, models or {}), threads)

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs, in order."""
        return [node_arg(p) for p in self.plan.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs, in order."""
        return [node_arg(p) for p in self.plan.outputs]

    def run(
        self, output_names: Sequence[str] | None = None, feeds: Mapping[str, Any] | None = None
    ) -> list[np.ndarray]:
        """Outputs in the order of ``output_names`` (all for None), as new arrays. ``feeds``: input name → array.

        C-ordered feeds are read in place. Raises FeedError, UsageError (unknown output, closed runner), InternalError (a step
        fails).
        """
        wanted = check_outputs(output_names, self.plan.outputs)
        arrays = self._check({} if feeds is None else feeds)
        with self._lock:
            outputs = self._bind(arrays)
            self._execute(None)
        return [outputs[name] for name in wanted]

    def profile(self, feeds: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Run once; (name, seconds) of each step, in order. Raises as :meth:`run`."""
        arrays = self._check(feeds)
        seconds = (c_double * max(len(self.plan.steps), 1))()
        with self._lock:
            outputs = self._bind(arrays)
            self._execute(seconds)
            del outputs  # the steps wrote there
        return [(step.name, seconds[i]) for i, step in enumerate(self.plan.steps)]

    def speed(self) -> float:
        """How fast the machine is now: float32 operations a second that all threads of the runner reach in 0.3 ms.

        Raises UsageError when the runner is closed.
        """
        with self._lock:
            self._check_open()
            return self._library.speed(self._pool)

    def close(self) -> None:
        """Free threads, libraries and memory; wait for a call in progress. A second call does nothing."""
        with self._lock:
            self._finalizer()
            self._arena = None
            self._weights, self._regions = {}, {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Preparing

    def _prepare(self, parts: Parts, pin: bool) -> None:
        native = self._library = load_native(parts.binary(RUNTIME))
        self._pool = Pool(native, self.threads, pin)
        self._stack.callback(self._pool.close)
        workspace = _workspace_bytes(self.plan.steps, self.threads)
        self._arena = arena = Arena(round_up(self.plan.arena_bytes) + workspace)
        self._workspace = arena.address + round_up(self.plan.arena_bytes)
        weights = {b.key: parts.weight(b.key, b.nbytes) for b in self.plan.buffers if b.kind == "weight"}
        self._weights = align_all(weights)
        self._bases = (c_void_p * max(len(self.plan.buffers), 1))()
        self._fill_bases(arena.address)
        self._inputs = [self._bound("input", p) for p in self.plan.inputs]
        self._outputs = [self._bound("output", p) for p in self.plan.outputs]
        self._regions = {
            i: Region(s.name, s.spec or {}, parts.model(s), self.threads)
            for i, s in enumerate(self.plan.steps)
            if s.kind == "onnxruntime"
        }
        self._segments = _segments(len(self.plan.steps), self._regions)
        self._native = NativePlan(native, self._prepared(parts, native))
        self._stack.callback(self._native.close)

    def _fill_bases(self, arena: int) -> None:
        for i, buffer in enumerate(self.plan.buffers):
            if buffer.kind == "arena":
                if buffer.offset < 0 or buffer.offset + buffer.nbytes > self.plan.arena_bytes:
                    raise ArtifactError(f"buffer {i} lies outside the arena of {self.plan.arena_bytes} bytes")
                self._bases[i] = arena + buffer.offset
            elif buffer.kind == "weight":
                self._bases[i] = address_of(self._weights[buffer.key])
            elif buffer.kind not in ("input", "output"):
                raise ArtifactError(f"buffer {i} is of unknown kind {buffer.kind!r}")

    def _bound(self, kind: str, port: Port) -> tuple[Port, np.dtype, list[int]]:
        """A port, its NumPy dtype, and the buffers that stand for it."""
        if port.dtype not in DTYPE_BYTES:
            raise ArtifactError(f"{kind} {port.name!r} is of unknown dtype {port.dtype!r}")
        found = [i for i, b in enumerate(self.plan.buffers) if b.kind == kind and b.key == port.name]
        nbytes = DTYPE_BYTES[port.dtype] * int(np.prod(port.shape, dtype=np.int64))
        for i in found:
            if self.plan.buffers[i].nbytes != nbytes:
                raise ArtifactError(
                    f"{kind} {port.name!r} has {nbytes} bytes, its buffer {self.plan.buffers[i].nbytes}"
                )
        if kind == "output" and not found:
            raise ArtifactError(f"no buffer holds output {port.name!r}")
        return port, numpy_dtype(port.dtype), found

    def _prepared(self, parts: Parts, native: Native) -> list[Prepared]:
        binaries: dict[str, Binary] = {}
        prepared = []
        for step in self.plan.steps:
            own = bool((step.spec or {}).get("own_threads", step.kind in OWN_THREADS))
            prepared.append(Prepared(self._call(step, parts, native, binaries), self._args(step), own))
        return prepared

    def _call(self, step: Step, parts: Parts, native: Native, binaries: dict[str, Binary]) -> Call:
        if step.kind == "onnxruntime":
            return Call(0)
        if step.kind == "kernel":
            if step.binary not in binaries:
                binaries[step.binary] = open_binary(step.binary, parts.binary(step.binary))
                self._stack.callback(binaries[step.binary].close)
            return Call(binaries[step.binary].address(step.symbol))
        spec = step.spec or {}
        try:
            adapter = Adapter(
                native, step.kind, {"desc": [spec["nbytes"]]} if step.kind == "copy" else spec, self.threads
            )
        except ArtifactError as error:
            raise ArtifactError(f"step {step.name!r}: {error}") from error
        self._stack.callback(adapter.close)
        return adapter.call

    def _args(self, step: Step) -> tuple[tuple[int, int], ...]:
        for arg in step.args:
            if not 0 <= arg.buffer < len(self.plan.buffers):
                raise ArtifactError(
                    f"step {step.name!r} names buffer {arg.buffer} of {len(self.plan.buffers)}"
                )
            if not 0 <= arg.offset <= self.plan.buffers[arg.buffer].nbytes:
                raise ArtifactError(f"step {step.name!r}: offset {arg.offset} is outside buffer {arg.buffer}")
        return tuple((arg.buffer, arg.offset) for arg in step.args)

    # Running

    def _check(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        check_names(feeds, self.plan.inputs)
        return [check_feed(port, dtype, feeds[port.name]) for port, dtype, _ in self._inputs]

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise UsageError("this runner is closed")

    def _bind(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Point the input buffers at the feeds and the output buffers at new arrays."""
        self._check_open()
        for (_, _, slots), array in zip(self._inputs, arrays, strict=True):
            for slot in slots:
                self._bases[slot] = address_of(array)
        outputs = {}
        for port, dtype, slots in self._outputs:
            outputs[port.name] = array = aligned_empty(port.shape, dtype)
            for slot in slots:
                self._bases[slot] = address_of(array)
        return outputs

    def _execute(self, seconds: ctypes.Array[c_double] | None) -> None:
        for first, last in self._segments:
            if first in self._regions:
                self._run_region(first, seconds)
                continue
            code, failed = self._native.run(self._pool, self._bases, self._workspace, first, last, seconds)
            if code:
                raise InternalError(f"step {self.plan.steps[failed].name!r} failed with code {code}")

    def _run_region(self, index: int, seconds: ctypes.Array[c_double] | None) -> None:
        start = perf_counter()
        self._pool.quiet()
        step = self.plan.steps[index]
        try:
            self._regions[index].run([(self._bases[a.buffer] or 0) + a.offset for a in step.args])
        except RuntimeError as error:
            raise InternalError(f"step {step.name!r} failed in ONNX Runtime: {error}") from error
        if seconds is not None:
            seconds[index] = perf_counter() - start


def load(path: Path | str, threads: int | None = None, any_target: bool = False) -> Runner | CudaRunner:
    """The runner of a ``.wpk`` file; see :func:`wpk.runtime.artifact.load` for the errors. One made for a GPU runs on the first
    one here, and raises DeviceError when there is none.
    """
    return open_runner(artifact.load(Path(path), any_target), threads, any_target)


def open_runner(parts: Parts, threads: int | None = None, any_target: bool = False) -> Runner | CudaRunner:
    """The runner of parts, for CPU or GPU. Raises as :func:`load`."""
    if not is_cuda(parts.plan):
        return Runner(parts, threads)
    try:
        device = open_device()
    except DeviceError as error:
        raise DeviceError(f"{parts.plan.model} was compiled for {made_for(parts.plan)}: {error}") from error
    check_device(parts.plan, device, any_target)
    return CudaRunner(parts, device)


def _thread_count(plan: Plan, threads: int | None) -> int:
    count = int(plan.target.get("threads", 1)) if threads is None else threads
    if count < 1:
        raise UsageError(f"threads: expected at least 1, found {count}")
    return count


def _segments(count: int, regions: Mapping[int, Region]) -> list[tuple[int, int]]:
    """Stretches of steps that run together: native ones, or a single region."""
    cuts = sorted({0, count, *regions, *(i + 1 for i in regions)})
    return list(pairwise(cuts))


def _workspace_bytes(steps: Sequence[Step], threads: int) -> int:
    return max((round_up(s.shared_bytes) + threads * round_up(s.thread_bytes) for s in steps), default=0)
