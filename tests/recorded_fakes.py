"""Recorded spaces for tests, shipped and made up, and a provider that offers them to the tuner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, log
from pathlib import Path

import numpy as np

from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.providers.protocol import Code, Support
from wpk.search.knobs import Choice, Ordered
from wpk.search.recorded import RecordedSpace, load_spaces
from wpk.search.space import Space

FOLDER = Path(__file__).parent / "data" / "spaces"
TARGET = Target("x86_64", "test", ("avx512", "scalar"), 2, 32 << 10, 1 << 20, 8 << 20, 2)

#: Smaller records are nearly exhausted by a search.
LARGE = 500


@cache
def shipped_spaces() -> tuple[RecordedSpace, ...]:
    """All records that come with the tests."""
    return load_spaces(FOLDER)


def large_spaces() -> tuple[RecordedSpace, ...]:
    """Those worth searching."""
    return tuple(r for r in shipped_spaces() if len(r.outcomes) >= LARGE)


def cold(recorded: RecordedSpace) -> RecordedSpace:
    """The record without the family's first configs."""
    return replace(recorded, space=replace(recorded.space, first=()))


def made_up(size: int = 8, failing: bool = True) -> RecordedSpace:
    """A tile with a register limit, an order that decides which chunk is good, and failures at the edge."""
    knobs = (
        Ordered("tile", (1, 2, 4, 8, 16, 32), 1), Ordered("unroll", (1, 2, 4, 8), 1),
        Choice("order", ("rows", "columns"), "rows"), Ordered("chunk", (1, 2, 4, 8, 16), 1), Ordered("prefetch", (0, 4, 8), 0),
    )  # fmt: skip
    space = Space(knobs, (lambda c: int(c["tile"]) * int(c["unroll"]) <= 32,))

    def outcome(c: Config) -> float | str:
        if failing and c["tile"] == 32 and c["order"] == "columns":
            return "crash"
        goal = 8 if c["order"] == "rows" else 2
        off = abs(log(int(c["tile"]) / 8)) + 0.5 * abs(log(int(c["unroll"]) / 2)) + 0.7 * abs(log(int(c["chunk"]) / goal))
        return 1e-6 * size * exp(0.4 * off + (0.1 if c["order"] == "rows" else 0.0) + 0.01 * int(c["prefetch"]))

    return record(space, outcome, size)


def record(space: Space, outcome: Callable[[Config], float | str], size: int = 8) -> RecordedSpace:
    """All of a space, with the outcomes of a function."""
    kind = TensorType("float32", (1, size, 2, 2))
    listed = tuple(space.enumerate())
    recorded = Space(space.knobs, (), space.first, listed)
    workload = Workload("eltwise", (kind,), (kind,))
    return RecordedSpace(
        f"made-up-{size}", "generated:made-up", "1", workload, TARGET, "cc 12", recorded, tuple(map(outcome, listed))
    )


@dataclass(frozen=True)
class RecordedProvider:
    """A provider whose spaces are records."""

    name: str
    version: str
    spaces: tuple[RecordedSpace, ...]

    def supports(self, workload: Workload, target: Target) -> Support:
        """What was recorded."""
        return Support(any(s.workload == workload and s.provider == self.name for s in self.spaces))

    def space(self, workload: Workload, target: Target) -> Space:
        """The record's."""
        return next(s.space for s in self.spaces if s.workload == workload and s.provider == self.name)

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """Never called."""
        raise NotImplementedError

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Never called."""
        raise NotImplementedError


def providers_of(spaces: Sequence[RecordedSpace]) -> tuple[RecordedProvider, ...]:
    """One provider for each family that was recorded."""
    names = dict.fromkeys((s.provider, s.provider_version) for s in spaces)
    return tuple(RecordedProvider(n, v, tuple(spaces)) for n, v in names)
