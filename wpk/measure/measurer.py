"""Measuring: configs of one workload → Measurements. Lower and build in parallel, then check and time one by one.

Nothing of ours runs beside a candidate that is being timed. A failure of a candidate, of whatever kind, is a Measurement.
"""

from __future__ import annotations

import base64
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import InvalidConfig, StorageError, ToolchainError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.measure.backend import Backend, CpuBackend, CudaBackend
from wpk.measure.builder import CompileError
from wpk.measure.candidate import copies_of
from wpk.measure.check import reduction_length, tolerance
from wpk.measure.frames import Message
from wpk.measure.inputs import Folder, Inputs, Oracle, Prepared
from wpk.measure.packed import Packs
from wpk.measure.pool import Died, Limits, Process, ask, start
from wpk.measure.timer import GPU_TIMING, Timing
from wpk.measure.toolchain import Compiler
from wpk.measure.worker import request_of
from wpk.providers.protocol import Code, Provider

#: Bytes a second at which data surely reaches a worker, for time limits.
_TRANSFER = 2e8
#: Copies of its constants that a session may make: file, parsed model, initializers, prepared form.
_SESSION_COPIES = 4
#: Time limit of a candidate when a good one is known: this many seconds, and this many times the good one's.
_GRACE, _TIMES = 2.0, 100.0


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure. ``cold``: constants come from memory, not cache. ``seconds``, ``nbytes``: limits of a candidate.

    ``jobs``: compilers at once. ``seed`` makes the inputs on which candidates are checked.
    """

    cold: bool = True
    seconds: float = 10.0
    nbytes: int = 1 << 30
    jobs: int = 2
    seed: int = 0
    timing: Timing = field(default_factory=Timing)


Candidates = Sequence[tuple[Provider, Config]]


@dataclass(frozen=True)
class _Built:
    """A candidate ready for a worker (``request``), or what went wrong (``failure``, ``detail``)."""

    seconds: float = 0.0
    request: Message | None = None
    failure: str = ""
    detail: str = ""
    accuracy: str = "direct"
    nbytes: int = 0  # of constants, all copies, and workspace


class Measurer:
    """Measures on this machine, one candidate at a time, whoever asks. Owns a worker process and a folder of arrays; close it,
    or use it as a context manager.
    """

    def __init__(
        self, target: Target, backend: Backend, oracle: Oracle | None = None, options: MeasureOptions | None = None
    ) -> None:
        """``oracle``: default ONNX Runtime. Raises StorageError."""
        self.target, self.options, self._backend = target, options or MeasureOptions(), backend
        self._folder = Folder()
        self._inputs = Inputs(self._folder, oracle or _reference, self.options.seed)
        self._packs = Packs(self._folder, target)
        self._process: Process | None = None
        self._told: Prepared | None = None
        self._builders = ThreadPoolExecutor(max(self.options.jobs, 1))
        self._using: set[object] = set()  # one for each batch under way
        self._turn = Lock()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove the folder. A second call does nothing."""
        self._end_worker()
        self._builders.shutdown(cancel_futures=True)
        self._backend.close()
        self._folder.close()

    def measure(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> list[Measurement]:
        """One Measurement a config, in order. See :meth:`measure_each`."""
        return list(self.measure_each(workload, provider, configs, limit))

    def measure_each(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> Iterator[Measurement]:
        """Measurements as they come, in order. ``limit``: seconds of the best so far; the hopeless get few samples.

        All configs are built before the first is run; where building disturbs nothing, from now on and beside what is run.
        Raises StorageError, InternalError.
        """
        candidates = [(provider, c) for c in configs]
        begun = self._begin(workload, candidates) if self._backend.beside else None
        each = self._each(workload, candidates, limit, begun)
        self._using.add(token := object())
        weakref.finalize(each, self._using.discard, token)
        return each

    def _each(
        self, workload: Workload, candidates: Candidates, limit: float | None, begun: list[Future[_Built]] | None
    ) -> Iterator[Measurement]:
        builds, ready = [], self._begin(workload, candidates) if begun is None else begun
        if not self._backend.beside:
            wait(ready)
        try:
            for future in ready:
                builds.append(future.result())
                measurement = self._run(builds[-1], self._inputs.of(workload), limit)
                if measurement.ok:
                    limit = min(limit or measurement.time, measurement.time)
                yield measurement
        finally:
            for future in ready:
                future.cancel()
            self._forget(builds, alone=len(self._using) <= 1)

    def measure_again(
        self, workload: Workload, candidates: Candidates, rounds: int = 5
    ) -> list[Measurement]:
        """Time rivals in turns, so that a drift of the machine meets them all. Raises as :meth:`measure_each`."""
        builds = [b.result() for b in self._begin(workload, candidates)]
        try:
            return self._run_again(builds, self._inputs.of(workload), rounds)
        finally:
            self._forget(builds, alone=not self._using)

    @property
    def slots(self) -> int:
        """How many candidates are worth asking for beside each other: one, or as many as are built beside what is run."""
        return self.options.jobs if self._backend.beside else 1

    # Building

    def _begin(self, workload: Workload, candidates: Candidates) -> list[Future[_Built]]:
        prepared = self._inputs.of(workload)
        return [self._builders.submit(self._build, workload, p, c, prepared) for p, c in candidates]

    def _build(self, workload: Workload, provider: Provider, config: Config, prepared: Prepared) -> _Built:
        start = perf_counter()
        try:
            built = self._lower(workload, provider, config, prepared)
        except (StorageError, ToolchainError, OSError):
            raise
        except CompileError as error:
            built = _Built(failure="compile", detail=error.detail)
        except InvalidConfig as error:
            built = _Built(failure="invalid", detail=str(error))
        except Exception as error:  # a provider's mistake about one config must not end a search
            built = _Built(failure="invalid", detail=f"{type(error).__name__}: {error}")
        return replace(built, seconds=perf_counter() - start)

    def _lower(self, workload: Workload, provider: Provider, config: Config, prepared: Prepared) -> _Built:
        code, how = self._backend.build(provider, workload, config)
        accuracy = code.accuracy or str(getattr(provider, "accuracy", "direct"))
        files: tuple[str, ...] = ()
        size = 0
        if code.kind == "onnxruntime":
            how = self._session(code, workload, provider.pack(workload, config, prepared.constants, self.target))
        else:
            files, size = self._packs.of(workload, provider, config, prepared.constants)
        cold = self._cold_bytes
        data = how.pop("nbytes", 0) + how.get("workspace", 0) + size * copies_of(size, cold)
        request = request_of(
            kind=code.kind, constants=list(files), cold_bytes=cold,
            timing=asdict(self.options.timing), tolerance=_tolerance(workload, accuracy), **how,
        )  # fmt: skip
        return _Built(request=request, accuracy=accuracy, nbytes=data)

    def _session(self, code: Code, workload: Workload, constants: Sequence[np.ndarray]) -> Message:
        """As :meth:`_native`, for ONNX Runtime: its model holds the constants, so that it can prepare them as it likes."""
        spec = dict(code.spec or {})
        model = base64.b64decode(str(spec.pop("model")))
        ports: list[Any] = list(spec["inputs"])  # type: ignore[call-overload]
        held = {ports[i][0]: a for i, a in zip(workload.constants, constants, strict=True)}
        spec["inputs"] = [p for p in ports if p[0] not in held]
        nbytes = _SESSION_COPIES * sum(a.nbytes for a in constants)
        return {"spec": spec, "model": self._folder.save(np.frombuffer(_holding(model, held), np.uint8)), "nbytes": nbytes}

    def _forget(self, builds: Sequence[_Built], alone: bool) -> None:
        self._folder.forget((b.request or {}).get("model") for b in builds)
        if alone:
            self._packs.make_room()

    @property
    def _cold_bytes(self) -> int:
        return self._backend.cold_bytes if self.options.cold else 0

    # Running

    def _run(self, built: _Built, prepared: Prepared, limit: float | None) -> Measurement:
        if built.request is None:
            return Measurement(failure=built.failure, detail=built.detail, build_s=built.seconds)
        begun = perf_counter()
        try:
            reply = self._ask_twice({**built.request, "limit": limit}, prepared, self._limits(built, limit))
        except Died as died:
            reply = _death(died)
        return self._measurement(built, reply, perf_counter() - begun)

    def _run_again(self, builds: list[_Built], prepared: Prepared, rounds: int) -> list[Measurement]:
        begun, ready = perf_counter(), [b for b in builds if b.request is not None]
        timing = replace(self.options.timing, min_samples=3, max_samples=5, target_spread=0.0)
        request = {"op": "again", "candidates": [b.request for b in ready], "rounds": rounds, "timing": asdict(timing)}
        limits = [self._limits(b, None) for b in ready]
        try:
            together = Limits(sum(x.seconds for x in limits), sum(x.nbytes for x in limits))
            replies = self._ask(request, prepared, together)["results"]
        except Died as died:
            replies = [_death(died)] * len(ready)
        seconds, answers = (perf_counter() - begun) / max(len(ready), 1), iter(replies)
        return [
            self._run(b, prepared, None) if b.request is None else self._measurement(b, next(answers), seconds) for b in builds
        ]

    def _ask_twice(self, request: Message, prepared: Prepared, limits: Limits) -> Message:
        """A crash in a worker that ran other candidates may be the late work of one of those: see it again in a new one."""
        used = self._process is not None and self._process.answered > 1
        try:
            return self._ask(request, prepared, limits)
        except Died as died:
            if died.kind != "crash" or not used:
                raise
        return self._ask(request, prepared, limits)

    def _ask(self, request: Message, prepared: Prepared, limits: Limits) -> Message:
        with self._turn:  # the finals of several tasks are asked for beside each other where there are slots
            try:
                if self._process is None:
                    self._process = start(self._backend.worker, self._folder.path)
                if self._told is not prepared:
                    ask(self._process, prepared.message, Limits(60.0, 1 << 40))
                    self._told = prepared
                reply = ask(self._process, request, limits)
                if reply.get("fatal"):
                    self._end_worker()
                return reply
            except BaseException:
                self._end_worker()
                raise

    def _end_worker(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = self._told = None

    def _limits(self, built: _Built, limit: float | None) -> Limits:
        """Time for far more than the best so far, and for moving the data; a library's first call may load and compile much."""
        seconds, kind = self.options.seconds, (built.request or {}).get("kind")
        if limit is not None and kind in ("kernel", "cuda"):
            seconds = min(seconds, _GRACE + _TIMES * limit)
        return Limits(seconds + built.nbytes / _TRANSFER, self.options.nbytes + 2 * built.nbytes)

    def _measurement(self, built: _Built, reply: Message, seconds: float) -> Measurement:
        request = built.request or {}
        cold = self.options.cold and bool(request.get("constants")) and reply["cold"]
        return Measurement(
            tuple(reply["samples"]), reply["failure"], reply["detail"], reply["error"], float(request.get("tolerance", 0.0)),
            built.seconds, seconds, "cold-weights" if cold else "warm", built.accuracy,
        )  # fmt: skip


def cpu_measurer(
    target: Target, cache: Path, compiler: Compiler, oracle: Oracle | None = None, options: MeasureOptions | None = None
) -> Measurer:
    """A measurer for this machine's CPU. Builds the native runtime. Raises ToolchainError, StorageError."""
    return Measurer(target, CpuBackend(target, cache, compiler), oracle, options)


def cuda_measurer(
    target: Target, cache: Path, oracle: Oracle | None = None, seed: int = 0, emulate: bool = False
) -> Measurer:
    """A measurer for this machine's GPU, or, with ``emulate``, for one that is not here: its times then say nothing.

    Raises ToolchainError without NVRTC, StorageError.
    """
    timing = replace(GPU_TIMING, min_sample=0.0) if emulate else GPU_TIMING
    jobs = os.cpu_count() or 1
    options = MeasureOptions(seconds=60.0 if emulate else 20.0, nbytes=4 << 30, jobs=jobs, seed=seed, timing=timing)
    return Measurer(target, CudaBackend(target, cache, options.jobs, emulate), oracle, options)


def _reference(workload: Workload, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    from wpk.providers.reference import reference_output  # pulls in ONNX Runtime

    return reference_output(workload, inputs)


def _holding(model: bytes, constants: dict[str, np.ndarray]) -> bytes:
    """The model with some of its inputs turned into initializers."""
    import onnx

    proto = onnx.load_model_from_string(model)
    kept = [i for i in proto.graph.input if i.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    return bytes(proto.SerializeToString())


def _death(died: Died) -> Message:
    return {"samples": [], "failure": died.kind, "detail": died.detail, "error": 0.0, "cold": True}


def _tolerance(workload: Workload, accuracy: str) -> float:
    inputs = "tf32" if dict(workload.attrs).get("precision") == "tf32" else workload.inputs[0].dtype
    terms = reduction_length(workload)
    return max(tolerance(dtype, terms, accuracy) for dtype in (inputs, *(t.dtype for t in workload.outputs)))
