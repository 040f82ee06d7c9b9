"""Recorded spaces: every config of a task measured once, so that strategies meet in a simulation without a clock.

A record needs no kernel family and no compiler: the valid configs are written out, each with its seconds or its failure.
Files are JSON, compressed with xz: ``{"schema", "name", "provider", "provider_version", "workload", "fingerprint", "target",
"compiler", "protocol", "knobs": [[kind, name, values, default]], "first": [row], "rows": [[index of each knob's value]],
"seconds": [seconds or null], "failures": {row: kind}}``.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any, Protocol

from wpk.core.errors import LogError
from wpk.core.result import FAILURES, Config, Measurement, config_key
from wpk.core.target import Gpu, Target
from wpk.core.workload import Workload
from wpk.search.knobs import Choice, Knob, Ordered
from wpk.search.space import Space

#: Version of the files' form. A reader refuses others.
SCHEMA = 1
SUFFIX = ".json.xz"


@dataclass(frozen=True)
class RecordedSpace:
    """A measured space: ``outcomes`` holds seconds, or a failure kind, of each config of ``space.listed``, in its order.

    ``protocol`` says in words how they were timed.
    """

    name: str
    provider: str
    provider_version: str
    workload: Workload
    target: Target
    compiler: str
    space: Space
    outcomes: tuple[float | str, ...]
    protocol: str = ""

    @cached_property
    def _by_key(self) -> dict[str, float | str]:
        return {config_key(c): o for c, o in zip(self.space.listed or (), self.outcomes, strict=True)}

    @cached_property
    def optimum(self) -> float:
        """The least seconds of all configs. Raises ValueError when none succeeded."""
        return min(o for o in self.outcomes if not isinstance(o, str))

    def outcome(self, config: Config) -> float | str:
        """Seconds, or the kind of failure. Raises KeyError for a config that was not recorded."""
        return self._by_key[config_key(config)]

    def seconds(self, config: Config) -> float:
        """Seconds; infinity for a failure. Raises KeyError for a config that was not recorded."""
        outcome = self.outcome(config)
        return inf if isinstance(outcome, str) else outcome

    def tell(self, configs: Sequence[Config]) -> list[tuple[Config, float]]:
        """What a strategy is told after it asked for ``configs``."""
        return [(c, self.seconds(c)) for c in configs]


class _Named(Protocol):
    """A provider, as far as a replay needs one."""

    @property
    def name(self) -> str: ...


@dataclass
class Replayer:
    """Measures as the tuner wants it (``wpk.tuning.tuner.Measures``), from records. ``measured`` counts the answers."""

    spaces: Sequence[RecordedSpace]
    measured: int = 0
    _known: dict[tuple[str, str], RecordedSpace] = field(init=False)

    def __post_init__(self) -> None:
        self._known = {(s.workload.key, s.provider): s for s in self.spaces}

    @property
    def target(self) -> Target:
        """The machine that the first space was recorded on."""
        return self.spaces[0].target

    def measure_each(
        self, workload: Workload, provider: _Named, configs: Sequence[Config], limit: float | None = None
    ) -> Iterator[Measurement]:
        """Measurements of configs, in order. Raises KeyError for what was not recorded."""
        space = self._known[workload.key, provider.name]
        for config in configs:
            self.measured += 1
            yield _measurement(space.outcome(config))

    def measure_again(
        self, workload: Workload, candidates: Sequence[tuple[_Named, Config]], rounds: int = 5
    ) -> list[Measurement]:
        """The same answers again. Raises as :meth:`measure_each`."""
        return [m for p, c in candidates for m in self.measure_each(workload, p, [c])]


def _measurement(outcome: float | str) -> Measurement:
    if isinstance(outcome, str):
        return Measurement(failure=outcome, detail="recorded")
    return Measurement((outcome,) * 3, tolerance=1e-6)


def save_space(recorded: RecordedSpace, path: Path) -> None:
    """Write a record; equal records give equal files."""
    text = json.dumps(_to_json(recorded), separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9))


def load_space(path: Path) -> RecordedSpace:
    """Read a record. Raises LogError when it is unreadable or of another schema."""
    try:
        data = json.loads(lzma.decompress(path.read_bytes()))
        if data["schema"] != SCHEMA:
            raise LogError(f"{path}: expected schema {SCHEMA}, found {data['schema']}")
        return _from_json(data)
    except (OSError, lzma.LZMAError, ValueError, KeyError, IndexError, TypeError) as error:
        raise LogError(f"cannot read the recorded space {path}: {error}") from error


def load_spaces(folder: Path) -> tuple[RecordedSpace, ...]:
    """All records of a folder, by file name. Raises LogError."""
    return tuple(load_space(p) for p in sorted(folder.glob(f"*{SUFFIX}")))


def _to_json(r: RecordedSpace) -> dict[str, Any]:
    listed = list(r.space.listed or ())
    keys = [config_key(c) for c in listed]
    ranks = [{v: i for i, v in enumerate(k.values)} for k in r.space.knobs]
    return {
        "schema": SCHEMA, "name": r.name, "provider": r.provider, "provider_version": r.provider_version,
        "workload": r.workload.to_json(), "fingerprint": r.target.fingerprint, "target": r.target.to_json(),
        "compiler": r.compiler, "protocol": r.protocol,
        "knobs": [[type(k).__name__, k.name, list(k.values), k.default] for k in r.space.knobs],
        "first": [keys.index(config_key(c)) for c in r.space.first],
        "rows": [[rank[c[k.name]] for k, rank in zip(r.space.knobs, ranks, strict=True)] for c in listed],
        "seconds": [None if isinstance(o, str) else float(f"{o:.5g}") for o in r.outcomes],
        "failures": {str(i): o for i, o in enumerate(r.outcomes) if isinstance(o, str)},
    }  # fmt: skip


def _from_json(data: Mapping[str, Any]) -> RecordedSpace:
    knobs = tuple(map(_knob, data["knobs"]))
    listed = tuple({k.name: k.values[i] for k, i in zip(knobs, row, strict=True)} for row in data["rows"])
    failures: Mapping[str, str] = data["failures"]
    outcomes = tuple(failures[str(i)] if s is None else float(s) for i, s in enumerate(data["seconds"]))
    if len(outcomes) != len(listed) or any(
        o not in FAILURES if isinstance(o, str) else not isfinite(o) for o in outcomes
    ):
        raise ValueError("outcomes do not fit the configs")
    space = Space(knobs, (), tuple(dict(listed[i]) for i in data["first"]), listed)
    return RecordedSpace(
        str(data["name"]), str(data["provider"]), str(data["provider_version"]), Workload.from_json(data["workload"]),
        _target(data["target"]), str(data["compiler"]), space, outcomes, str(data.get("protocol", "")),
    )  # fmt: skip


def _knob(data: Sequence[Any]) -> Knob:
    kind, name, values, default = data
    if kind == "Ordered":
        return Ordered(name, tuple(values), default)
    if kind == "Choice":
        return Choice(name, tuple(values), default)
    raise ValueError(f"knob {name}: unknown kind {kind!r}")


def _target(data: Mapping[str, Any]) -> Target:
    gpu = data.get("gpu")
    return Target(**{**data, "isas": tuple(data["isas"]), "gpu": None if gpu is None else Gpu(**gpu)})


def facts(recorded: RecordedSpace) -> dict[str, object]:
    """A summary for tables: counts, the optimum and the default relative to it."""
    times = sorted(o for o in recorded.outcomes if not isinstance(o, str))
    best = times[0]
    return {
        "name": recorded.name, "provider": recorded.provider, "configs": len(recorded.outcomes),
        "failed": len(recorded.outcomes) - len(times), "optimum_s": best,
        "default": recorded.seconds(recorded.space.default()) / best,
        "median": times[len(times) // 2] / best,
        "within_5_percent": sum(t <= 1.05 * best for t in times),
    }  # fmt: skip
