"""Simulated measuring for tests of tuning: no compiler, no worker, times computed from configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from wpk.core.result import Config, Measurement, config_key
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.providers.protocol import Code, Provider, Support
from wpk.search.knobs import Ordered
from wpk.search.space import Space
from wpk.tuning.record import Record, Versions

TARGET = Target("x86_64", "test", ("avx512", "scalar"), 2, 32 << 10, 1 << 20, 8 << 20, 2)
VERSIONS = Versions("cc 12", {"generated:sim": "1", "generated:slow": "1", "lib": "3.1"}, "0.1")


def workload(size: int = 8, layout: str = "ROW") -> Workload:
    """One of many."""
    kind = TensorType("float32", (1, size, 2, 2), layout)
    return Workload("eltwise", (kind,), (kind,))


@dataclass(frozen=True)
class Sim:
    """A provider whose space is a 16×16 grid, or a single point."""

    name: str = "generated:sim"
    version: str = "1"
    side: int = 16

    def supports(self, workload: Workload, target: Target) -> Support:
        """Everything."""
        return Support(True)

    def space(self, workload: Workload, target: Target) -> Space:
        """Two ordered knobs."""
        return Space(tuple(Ordered(k, tuple(range(self.side)), 0) for k in ("a", "b")) if self.side else ())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """Never called."""
        raise NotImplementedError

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Never called."""
        raise NotImplementedError


LIB = Sim("lib", "3.1", 0)


def seconds(workload: Workload, provider: str, config: Config) -> float:
    """A valley at (11, 5), scaled by the workload's size; the library is in the middle; a > 13 fails."""
    scale = 1e-6 * workload.inputs[0].shape[1]
    if not config:
        return 40 * scale
    if int(config["a"]) > 13:
        return float("inf")
    off = abs(int(config["a"]) - 11) + abs(int(config["b"]) - 5)
    return scale * (10 + 3 * off) * (4 if "slow" in provider else 1)


@dataclass
class SimMeasurer:
    """Answers from :func:`seconds`; remembers what was asked. ``before`` is called before each answer."""

    target: Target = TARGET
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    again: list[list[tuple[str, str]]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def measure_each(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> Iterator[Measurement]:
        """See wpk.tuning.tuner.Measures."""
        for config in configs:
            self.before()
            self.asked.append((workload.key, provider.name, config_key(config)))
            yield answer(seconds(workload, provider.name, config))

    def measure_again(
        self, workload: Workload, candidates: Sequence[tuple[Provider, Config]], rounds: int = 5
    ) -> list[Measurement]:
        """See wpk.tuning.tuner.Measures."""
        self.again.append([(p.name, config_key(c)) for p, c in candidates])
        return [answer(seconds(workload, p.name, c) * 1.01) for p, c in candidates]


def answer(time: float) -> Measurement:
    """A measurement of that time, or a failure."""
    return Measurement((time,) * 3, tolerance=1e-6) if time < float("inf") else Measurement(failure="crash", detail="signal 11")


def record(size: int = 8, provider: str = "generated:sim", time: float = 1e-3, stage: str = "search", **config: int) -> Record:
    """A record that holds on TARGET with VERSIONS."""
    compiler = "cc 12" if provider.startswith("generated") else ""
    version = VERSIONS.providers[provider]
    values: Config = dict(config)
    return Record(workload(size), provider, version, values, TARGET.fingerprint, compiler, "0.1", 0, answer(time), stage)
