"""What a worker does: lower and build candidates of any machine, measure those of its own."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from wpk import __version__
from wpk.core.errors import FleetError, InvalidConfig, StorageError, ToolchainError
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.fleet.wire import Data, Facts, built_data, code_from, target_from, workload_from
from wpk.measure.builder import CompileError, build
from wpk.measure.measurer import Measurer, cpu_measurer
from wpk.measure.toolchain import Compiler
from wpk.providers.protocol import Code, Provider, Support
from wpk.search.space import Space

_FILE = re.compile(r"[0-9a-f]{32}\.so")


class Bench(Protocol):
    """What a worker offers. Tests put a simulated one here."""

    facts: Facts

    def build(self, request: Data) -> Data:
        """See :mod:`wpk.fleet.wire`."""
        ...

    def measure(self, request: Data, built: Data) -> Data:
        """See :mod:`wpk.fleet.wire`."""
        ...

    def again(self, request: Data, builts: Sequence[Data]) -> list[Data]:
        """See :mod:`wpk.fleet.wire`."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def facts_of(target: Target, compiler: Compiler, providers: Sequence[Provider], measures: bool = True) -> Facts:
    """The facts of this machine."""
    versions, machine = {p.name: p.version for p in providers}, f"{target.model}, {target.threads} threads"
    return Facts(__version__, compiler.version, versions, target.fingerprint, machine, measures)


class LocalBench:
    """Builds and measures here. The measuring process is started by the first measurement."""

    def __init__(
        self, target: Target, cache: Path, compiler: Compiler, providers: Sequence[Provider], measures: bool = True
    ) -> None:
        self.facts = facts_of(target, compiler, providers, measures)
        self._target, self._cache, self._compiler = target, cache, compiler
        self._providers: Mapping[str, Provider] = {p.name: p for p in providers}
        self._measurer: Measurer | None = None

    def build(self, request: Data) -> Data:
        """Raises StorageError and ToolchainError; what is wrong with the candidate is in the answer."""
        begun = perf_counter()
        code, library, file, failure, detail = None, None, "", "", ""
        try:
            code = self._code(request)
            if code.source is not None and not code.source.isa.startswith("sm_"):
                path = build(code.source.text, code.source.isa, self._compiler, self._cache)
                library, file = path.read_bytes(), path.name
        except (StorageError, ToolchainError, OSError):
            raise
        except CompileError as error:
            failure, detail = "compile", error.detail
        except InvalidConfig as error:
            failure, detail = "invalid", str(error)
        except Exception as error:  # a provider's mistake about one config must not end a search
            failure, detail = "invalid", f"{type(error).__name__}: {error}"
        return built_data(None if failure else code, library, file, failure, detail, perf_counter() - begun)

    def measure(self, request: Data, built: Data) -> Data:
        """Raises StorageError, InternalError."""
        if built["failure"]:
            return asdict(Measurement(failure=built["failure"], detail=built["detail"], build_s=built["seconds"]))
        provider = self._prebuilt(request["provider"], [(request["config"], built)])
        workload = workload_from(request["workload"])
        found = self._measuring().measure(workload, provider, [request["config"]], request["limit"])[0]
        return asdict(replace(found, build_s=built["seconds"]))

    def again(self, request: Data, builts: Sequence[Data]) -> list[Data]:
        """Raises StorageError, InternalError."""
        pairs = list(zip(request["candidates"], builts, strict=True))
        candidates = [(self._prebuilt(name, [(config, built)]), dict(config)) for (name, config), built in pairs]
        found = self._measuring().measure_again(workload_from(request["workload"]), candidates, request["rounds"])
        return [asdict(replace(m, build_s=b["seconds"])) for m, (_, b) in zip(found, pairs, strict=True)]

    def close(self) -> None:
        """End the measuring process."""
        if self._measurer is not None:
            self._measurer.close()
        self._measurer = None

    def _code(self, request: Data) -> Code:
        workload, target = workload_from(request["workload"]), target_from(request["target"])
        return self._provider(request["provider"]).build(workload, request["config"], target)

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise FleetError(f"this worker has no provider {name!r}")
        return self._providers[name]

    def _prebuilt(self, name: str, candidates: Sequence[tuple[Config, Data]]) -> Provider:
        for _, built in candidates:
            self._install(built)
        codes = {_key(config): _code_of(built) for config, built in candidates}
        return _Prebuilt(self._provider(name), codes)

    def _install(self, built: Data) -> None:
        """Put a library that another machine built where building would have put it."""
        if built["library"] is None:
            return
        if not _FILE.fullmatch(built["file"]):
            raise FleetError(f"unexpected name of a built library: {built['file']!r}")
        path = self._cache / "build" / built["file"]
        if path.exists():
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=".so.tmp", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(built["library"])
            os.chmod(temporary, 0o755)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError, UnboundLocalError):
                os.unlink(temporary)
            raise StorageError(f"cannot write to the cache {path.parent}: {error.strerror or error}") from error

    def _measuring(self) -> Measurer:
        if self._measurer is None:
            self._measurer = cpu_measurer(self._target, self._cache, self._compiler)
        return self._measurer


@dataclass(frozen=True)
class _Prebuilt:
    """A provider whose configs were lowered elsewhere: packing and everything else is the provider's own."""

    provider: Provider
    codes: Mapping[str, Code | InvalidConfig]

    def __getattr__(self, name: str) -> Any:  # ``packing``, ``accuracy``, and what providers may have besides
        return getattr(self.provider, name)

    @property
    def name(self) -> str:
        return self.provider.name

    @property
    def version(self) -> str:
        return self.provider.version

    def supports(self, workload: Workload, target: Target) -> Support:
        return self.provider.supports(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        return self.provider.space(workload, target)

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        code = self.codes[_key(config)]
        if isinstance(code, InvalidConfig):
            raise code
        return code

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        return self.provider.pack(workload, config, constants, target)


def _key(config: Config) -> str:
    return repr(sorted(config.items()))


def _code_of(built: Data) -> Code | InvalidConfig:
    return InvalidConfig(built["detail"]) if built["code"] is None else code_from(built["code"])
