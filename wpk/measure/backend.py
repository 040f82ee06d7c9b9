"""What measuring needs of a kind of target: how code is compiled, which worker runs it, what is cold.

:class:`CpuBackend` compiles C into shared libraries, :class:`CudaBackend` CUDA into cubins, which a worker runs on a GPU or in
the emulator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from threading import Lock
from typing import Protocol

from wpk.core.errors import InvalidConfig
from wpk.core.launch import CudaSource
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.measure.builder import CompileError, build, build_runtime
from wpk.measure.frames import Message
from wpk.measure.toolchain import Compiler
from wpk.providers.protocol import Code, Provider

#: Cold constants rotate through this many times the last-level cache.
_COLD_FACTOR = 2
#: A kernel whose code moves this many bytes to and from local memory, as the compiler counts them, is not worth a run.
_MOST_SPILLS = 1024


class Backend(Protocol):
    """See :mod:`wpk.measure.backend`."""

    @property
    def worker(self) -> Sequence[str]:
        """The arguments of :mod:`wpk.measure.worker` that say of which kind it is."""
        ...

    @property
    def cold_bytes(self) -> int:
        """Constants that exceed this much together do not stay in a cache."""
        ...

    @property
    def beside(self) -> bool:
        """True when building does not disturb what is timed meanwhile."""
        ...

    def build(self, provider: Provider, workload: Workload, config: Config) -> tuple[Code, Message]:
        """The code of a config, and the parts of a worker's request that say what to call. Safe to call from many threads.

        Raises CompileError, StorageError, ToolchainError, and what the provider raises.
        """
        ...

    def close(self) -> None:
        """Free what it has. A second call does nothing."""
        ...


class CpuBackend:
    """This machine's CPU."""

    def __init__(self, target: Target, cache: Path, compiler: Compiler) -> None:
        """Builds the native runtime. Raises ToolchainError, StorageError."""
        self._target, self._cache, self._compiler = target, cache, compiler
        self._runtime = build_runtime(target.isa, compiler, cache)

    @property
    def worker(self) -> Sequence[str]:
        """See :class:`Backend`."""
        return ("cpu", str(self._runtime), str(self._target.threads))

    @property
    def cold_bytes(self) -> int:
        """See :class:`Backend`: more than the last-level cache."""
        return _COLD_FACTOR * self._target.l3

    @property
    def beside(self) -> bool:
        """See :class:`Backend`: compilers take the cores that kernels are timed on."""
        return False

    def build(self, provider: Provider, workload: Workload, config: Config) -> tuple[Code, Message]:
        """See :class:`Backend`."""
        code = provider.build(workload, config, self._target)
        return code, self._compiled(code)

    def _compiled(self, code: Code) -> Message:
        if code.source is None or code.kind == "onnxruntime":
            return {"spec": dict(code.spec or {})}
        binary = build(code.source.text, code.source.isa, self._compiler, self._cache)
        workspace = code.source.shared_bytes + self._target.threads * code.source.thread_bytes
        return {"binary": str(binary), "symbol": code.source.symbol, "workspace": workspace}

    def close(self) -> None:
        """See :class:`Backend`."""


class CudaBackend:
    """A GPU: the first one here or, with ``emulate``, one that is not here. Owns ``jobs`` processes that compile."""

    def __init__(self, target: Target, cache: Path, jobs: int, emulate: bool = False) -> None:
        """Raises ToolchainError without NVRTC."""
        nvrtc.version()
        self._target, self._folder, self._emulate = target, cache / "cubin", emulate
        self._jobs, self._lock = jobs, Lock()
        self._pool: Executor | None = None

    @property
    def worker(self) -> Sequence[str]:
        """See :class:`Backend`."""
        return ("emulated", json.dumps(self._target.to_json())) if self._emulate else ("cuda", "0")

    @property
    def cold_bytes(self) -> int:
        """See :class:`Backend`: more than L2."""
        return 0 if self._emulate else _COLD_FACTOR * self._target.l2

    @property
    def beside(self) -> bool:
        """See :class:`Backend`: compilers take no part of the GPU."""
        return True

    def build(self, provider: Provider, workload: Workload, config: Config) -> tuple[Code, Message]:
        """See :class:`Backend`: in a process. A kernel that spills much is refused as InvalidConfig, for it need not be run."""
        if not provider.name.startswith("generated"):
            code = provider.build(workload, config, self._target)
            return code, {"spec": dict(code.spec or {})}
        return self._processes().submit(_built, provider, workload, config, self._target, self._folder).result()

    def close(self) -> None:
        """See :class:`Backend`."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _processes(self) -> Executor:
        with self._lock:
            if self._pool is None:
                self._pool = nvrtc.open_pool(self._jobs)
            return self._pool


def _built(
    provider: Provider, workload: Workload, config: Config, target: Target, folder: Path
) -> tuple[Code, Message]:
    """What a compiling process does."""
    code = provider.build(workload, config, target)
    source = code.cuda
    assert source is not None
    (found,) = nvrtc.compile_many([(source.text, target.isa)], folder=folder)
    if isinstance(found, nvrtc.CudaCompileError):
        raise CompileError(found.detail)
    _refuse(source, found, target)
    binary = folder / f"{nvrtc.cache_key(source.text, target.isa)}.cubin"
    spec = {**source.calls(), "text": source.text}
    return code, {"binary": str(binary), "spec": spec, "workspace": source.workspace_bytes}


def _refuse(source: CudaSource, compiled: nvrtc.Compiled, target: Target) -> None:
    """Raises InvalidConfig for what the device would not launch, and for what spills so much that it cannot be good."""
    assert target.gpu is not None
    for launch in source.launches:
        takes = compiled.resources[launch.symbol]
        if takes.registers * launch.threads > target.gpu.registers_per_sm:
            raise InvalidConfig(f"{launch.symbol}: {launch.threads} threads of {takes.registers} registers are too many")
        if launch.shared_bytes + takes.shared_bytes > target.gpu.shared_per_block:
            raise InvalidConfig(f"{launch.symbol}: {launch.shared_bytes} bytes of shared memory are too many")
        if takes.spill_bytes > _MOST_SPILLS:
            raise InvalidConfig(f"{launch.symbol}: spills {takes.spill_bytes} bytes with {takes.registers} registers")
