"""Measuring: configs of one workload → Measurements. Lower and build in parallel, then check and time one by one.

Nothing of ours runs beside a candidate that is being timed. A failure of a candidate, of whatever kind, is a Measurement.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import InvalidConfig, StorageError, ToolchainError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.tensor import to_layout
from wpk.core.workload import Workload
from wpk.measure.builder import CompileError, build, build_runtime
from wpk.measure.candidate import copies_of
from wpk.measure.check import reduction_length, tolerance
from wpk.measure.pool import Died, Limits, Process, ask, start
from wpk.measure.timer import Timing
from wpk.measure.toolchain import Compiler
from wpk.measure.worker import request_of
from wpk.providers.protocol import Code, Provider

#: The logical outputs of a workload on logical inputs.
Oracle = Callable[[Workload, Sequence[np.ndarray]], list[np.ndarray]]

#: Cold constants rotate through this many times the last-level cache.
_COLD_FACTOR = 2
#: Bytes a second at which data surely reaches a worker, for time limits.
_TRANSFER = 2e8
#: Arrays go to memory-backed files when this much is free there.
_ROOM = 4 << 30


@dataclass(frozen=True)
class MeasureOptions:
    """``cold``: constants come from memory, not cache. ``seconds`` and ``nbytes`` limit a candidate; ``jobs`` compilers run at once.

    ``seed`` makes the inputs on which candidates are checked.
    """

    cold: bool = True
    seconds: float = 10.0
    nbytes: int = 1 << 30
    jobs: int = 2
    seed: int = 0
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class _Built:
    """A candidate ready for a worker (``request``), or what went wrong (``failure``, ``detail``)."""

    seconds: float
    request: dict[str, Any] | None = None
    failure: str = ""
    detail: str = ""
    accuracy: str = "direct"
    nbytes: int = 0  # of constants, all copies, and workspace


class Measurer:
    """Measures on this machine. Owns a worker process and a folder of arrays; close it, or use it as a context manager."""

    def __init__(
        self, target: Target, cache: Path, compiler: Compiler, oracle: Oracle, options: MeasureOptions | None = None
    ) -> None:
        """Builds the native runtime. Raises ToolchainError, StorageError, InternalError."""
        self.target, self.compiler, self.options = target, compiler, options or MeasureOptions()
        self._cache, self._oracle = cache, oracle
        self._runtime = build_runtime(target.isa, compiler, cache)
        self._folder = _new_folder()
        self._process: Process | None = None
        self._workload: Workload | None = None
        self._sent = False
        self._constants: list[np.ndarray] = []
        self._message: dict[str, Any] = {}
        self._count = 0

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove the folder. A second call does nothing."""
        self._end_worker()
        shutil.rmtree(self._folder, ignore_errors=True)

    def measure(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> list[Measurement]:
        """One Measurement a config, in order. See :meth:`measure_each`."""
        return list(self.measure_each(workload, provider, configs, limit))

    def measure_each(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> Iterator[Measurement]:
        """Measurements as they come, in order. ``limit``: seconds of the best so far; the hopeless get few samples.

        All configs are built before the first is run. Raises StorageError, InternalError.
        """
        self._prepare(workload)
        builds = self._build_all(workload, provider, configs)
        for built in builds:
            measurement = self._run(built, limit)
            self._forget(built)
            if measurement.ok:
                limit = min(limit or measurement.time, measurement.time)
            yield measurement

    def measure_again(
        self, workload: Workload, candidates: Sequence[tuple[Provider, Config]], rounds: int = 5
    ) -> list[Measurement]:
        """Time rivals in turns, so that a drift of the machine meets them all. Raises as :meth:`measure_each`."""
        self._prepare(workload)
        builds = [b for p, c in candidates for b in self._build_all(workload, p, [c])]
        try:
            return self._run_again(builds, rounds)
        finally:
            for built in builds:
                self._forget(built)

    # Building

    def _build_all(self, workload: Workload, provider: Provider, configs: Sequence[Config]) -> list[_Built]:
        with ThreadPoolExecutor(max(self.options.jobs, 1)) as pool:
            return list(pool.map(lambda config: self._build(workload, provider, config), configs))

    def _build(self, workload: Workload, provider: Provider, config: Config) -> _Built:
        start = perf_counter()
        try:
            built = self._lower(workload, provider, config)
        except (StorageError, ToolchainError, OSError):
            raise
        except CompileError as error:
            built = _Built(0.0, failure="compile", detail=error.detail)
        except InvalidConfig as error:
            built = _Built(0.0, failure="invalid", detail=str(error))
        except Exception as error:  # a provider's mistake about one config must not end a search
            built = _Built(0.0, failure="invalid", detail=f"{type(error).__name__}: {error}")
        return replace(built, seconds=perf_counter() - start)

    def _lower(self, workload: Workload, provider: Provider, config: Config) -> _Built:
        code = provider.build(workload, config, self.target)
        binary = ""
        if code.source is not None:
            binary = str(build(code.source.text, code.source.isa, self.compiler, self._cache))
        packed = provider.pack(workload, config, self._constants, self.target)
        accuracy = code.accuracy or str(getattr(provider, "accuracy", "direct"))
        workspace = _workspace(code, self.target.threads)
        request = request_of(
            kind=code.kind, binary=binary, symbol=code.source.symbol if code.source else "", workspace=workspace,
            constants=[self._save(a) for a in packed], cold_bytes=self._cold_bytes, timing=asdict(self.options.timing),
            tolerance=_tolerance(workload, accuracy), **self._spec(code),
        )  # fmt: skip
        constants = sum(a.nbytes for a in packed)
        return _Built(0.0, request, accuracy=accuracy, nbytes=workspace + constants * copies_of(constants, self._cold_bytes))

    def _spec(self, code: Code) -> dict[str, Any]:
        """The spec without its model, and the file the model is in."""
        spec = dict(code.spec or {})
        model = spec.pop("model", None)
        if model is None:
            return {"spec": spec}
        data = model if isinstance(model, bytes) else base64.b64decode(str(model))
        return {"spec": spec, "model": self._save(np.frombuffer(data, np.uint8))}

    def _save(self, array: np.ndarray) -> str:
        """A file with the array. Raises StorageError."""
        handle, path = tempfile.mkstemp(suffix=".npy", dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise StorageError(f"cannot write arrays to {self._folder}: {error.strerror or error}") from error
        return path

    def _forget(self, built: _Built) -> None:
        request = built.request or {}
        for path in (*request.get("constants", ()), request.get("model")):
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    @property
    def _cold_bytes(self) -> int:
        return _COLD_FACTOR * self.target.l3 if self.options.cold else 0

    # Running

    def _prepare(self, workload: Workload) -> None:
        """Inputs and the oracle's answer, computed once a workload."""
        if workload == self._workload:
            return
        self._workload, self._sent = None, False
        for path in self._folder.iterdir():
            path.unlink()
        inputs = random_inputs(workload, self.options.seed)
        expected = self._oracle(workload, inputs)
        self._constants = [inputs[i] for i in workload.constants]
        files = [
            None if i in workload.constants else self._save(to_layout(a, t.layout))
            for i, (a, t) in enumerate(zip(inputs, workload.inputs, strict=True))
        ]
        outputs = [self._save(np.ascontiguousarray(a)) for a in expected]
        self._message = {"op": "workload", "workload": workload.to_json(), "inputs": files, "expected": outputs}
        self._workload = workload

    def _run(self, built: _Built, limit: float | None) -> Measurement:
        if built.request is None:
            return Measurement(failure=built.failure, detail=built.detail, build_s=built.seconds)
        begun = perf_counter()
        request = {**built.request, "limit": limit}
        try:
            reply = self._ask_twice(request, self._limits(built, limit))
        except Died as died:
            reply = {"samples": [], "failure": died.kind, "detail": died.detail, "error": 0.0}
        return self._measurement(built, reply, perf_counter() - begun)

    def _run_again(self, builds: list[_Built], rounds: int) -> list[Measurement]:
        begun = perf_counter()
        ready = [b for b in builds if b.request is not None]
        timing = replace(self.options.timing, min_samples=3, max_samples=5, target_spread=0.0)
        request = {"op": "again", "candidates": [b.request for b in ready], "rounds": rounds, "timing": asdict(timing)}
        nbytes = sum(self._limits(b, None).nbytes for b in ready)
        try:
            replies = self._ask(request, Limits(self.options.seconds * (len(ready) + 1), nbytes))["results"]
        except Died as died:
            replies = [{"samples": [], "failure": died.kind, "detail": died.detail, "error": 0.0}] * len(ready)
        seconds = (perf_counter() - begun) / max(len(ready), 1)
        answers = iter(replies)
        return [
            self._run(b, None) if b.request is None else self._measurement(b, next(answers), seconds) for b in builds
        ]

    def _ask_twice(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """A crash in a worker that ran other candidates may be the late work of one of those: see it again in a new one."""
        used = self._process is not None and self._process.answered > 1
        try:
            return self._ask(request, limits)
        except Died as died:
            if died.kind != "crash" or not used:
                raise
        return self._ask(request, limits)

    def _ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        if self._process is None:
            self._process = start(self._runtime, self.target.threads, self._folder)
            self._sent = False
        try:
            if not self._sent:
                ask(self._process, self._message, Limits(60.0, 1 << 40))
                self._sent = True
            return ask(self._process, request, limits)
        except BaseException:
            self._end_worker()
            raise

    def _end_worker(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _limits(self, built: _Built, limit: float | None) -> Limits:
        """Time for what it does at best a hundred times slower than the best so far, and for moving its data."""
        seconds = self.options.seconds if limit is None else min(self.options.seconds, 2.0 + 100 * limit)
        return Limits(seconds + built.nbytes / _TRANSFER, self.options.nbytes + 2 * built.nbytes)

    def _measurement(self, built: _Built, reply: dict[str, Any], seconds: float) -> Measurement:
        cold = self.options.cold and bool((built.request or {}).get("constants"))
        return Measurement(
            tuple(reply["samples"]), reply["failure"], reply["detail"], reply["error"],
            float((built.request or {}).get("tolerance", 0.0)), built.seconds, seconds,
            "cold-weights" if cold else "warm", built.accuracy,
        )  # fmt: skip


def random_inputs(workload: Workload, seed: int) -> list[np.ndarray]:
    """Logical inputs, the same for the same workload and seed. Weights are scaled so that results are of order one."""
    digest = blake2b(f"{seed}:{workload.key}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    scale = reduction_length(workload) ** -0.5 if workload.op in ("conv", "gemm", "matmul") else 1.0
    return [
        _random(rng, t.dtype, t.shape, scale if i == 1 else 1.0) for i, t in enumerate(workload.inputs)
    ]


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], scale: float) -> np.ndarray:
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if "int" in dtype:
        return rng.integers(0, 100, shape).astype(dtype)
    return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)


def _tolerance(workload: Workload, accuracy: str) -> float:
    return max(tolerance(t.dtype, reduction_length(workload), accuracy) for t in workload.outputs)


def _workspace(code: Code, threads: int) -> int:
    if code.source is None:
        return 0
    return code.source.shared_bytes + threads * code.source.thread_bytes


def _new_folder() -> Path:
    """A folder in memory where the system has one. Folders of processes that are gone are removed first."""
    shared = Path("/dev/shm")
    roomy = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _ROOM
    root = shared if roomy else Path(tempfile.gettempdir())
    for old in root.glob("wpk-measure-*"):
        with contextlib.suppress(OSError, ValueError):
            owner = int(old.name.split("-")[2])
            if old.stat().st_uid == os.getuid() and not _alive(owner):
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"wpk-measure-{os.getpid()}-", dir=root))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
