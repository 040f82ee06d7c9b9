"""The records of a log as columns: whose, where, how fast and whether they hold is at hand, the rest is parsed when wanted."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, overload

from wpk.core.errors import LogError
from wpk.core.result import FAILURES, Config, config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.tuning.record import Record, Versions, record_from_json, stale_reason

#: Column → type code of :mod:`array`.
COLUMNS = {
    "offsets": "Q", "sizes": "I", "workloads": "I", "origins": "I", "configs": "Q", "numbers": "I", "seconds": "d", "kinds": "B",
}  # fmt: skip


class Origin(NamedTuple):
    """What must agree for a record to hold: see :func:`wpk.tuning.record.stale_reason`."""

    provider: str
    provider_version: str
    fingerprint: str
    compiler: str


class Lines:
    """A file whose lines are read where they lie."""

    def __init__(self, path: Path) -> None:
        """Raises LogError."""
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LogError(f"{path}: {error.strerror or error}") from error
        weakref.finalize(self, os.close, self._file)

    def parse(self, offset: int, size: int, workloads: dict[str, Workload]) -> Record:
        """The record there. Raises LogError when it is there no more."""
        try:
            return record_from_json(json.loads(os.pread(self._file, size, offset)), workloads)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(f"{self._path}: it changed while it was read ({type(error).__name__}: {error})") from error


class Entries(Sequence[Record]):
    """All records of a log, oldest first. Positions count from 0."""

    def __init__(self) -> None:
        self.columns: dict[str, array[Any]] = {name: array(code) for name, code in COLUMNS.items()}
        self.keys: dict[str, int] = {}  # workload key → its place in the column
        self.forms: list[dict[str, object]] = []  # workloads as JSON data, in that order
        self.origins: dict[Origin, int] = {}
        self.lines: Lines | None = None
        self.workloads: dict[str, Workload] = {}  # those parsed so far, by key
        self._parsed: dict[int, Record] = {}
        self._positions: dict[str, list[int]] | None = None

    def add(self, record: Record, offset: int = 0, size: int = 0, keep: bool = True) -> None:
        """A record that lies at ``offset`` of the file; without ``keep`` it will be parsed again when it is wanted."""
        key = record.workload.key
        if key not in self.keys:
            self.keys[key] = len(self.forms)
            self.forms.append(record.workload.to_json())
        m, origin = record.measurement, origin_of(record)
        kind = (record.stage == "final") + 2 * (0 if m.failure is None else 1 + FAILURES.index(m.failure))
        row = (
            offset, size, self.keys[key], self.origins.setdefault(origin, len(self.origins)), config_digest(record.config),
            record.number, m.time, kind,
        )  # fmt: skip
        if keep:
            self._parsed[len(self)] = record
        if self._positions is not None:
            self._positions.setdefault(key, []).append(len(self))
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self.columns["kinds"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    def _at(self, position: int) -> Record:
        if position not in self._parsed:
            assert self.lines is not None, "what was not parsed lies in a file"
            where = (self.columns["offsets"][position], self.columns["sizes"][position])
            self._parsed[position] = self.lines.parse(*where, self.workloads)
        return self._parsed[position]

    def of(self, workload: str) -> list[int]:
        """Positions of the records of a workload, by its key."""
        if self._positions is None:
            self._positions = {key: [] for key in self.keys}
            rows = list(self._positions.values())
            for position, number in enumerate(self.columns["workloads"]):
                rows[number].append(position)
        return self._positions.get(workload, [])

    def newest(self, workload: str, provider: str, config: Config) -> Record | None:
        """The newest record of exactly that, or None."""
        wanted, digests = config_digest(config), self.columns["configs"]
        for position in reversed(self.of(workload)):
            if digests[position] == wanted and (r := self._at(position)).provider == provider:
                return r
        return None

    def reasons(self, target: Target, versions: Versions) -> list[str | None]:
        """For each origin, in order, why its records no longer hold, or None."""
        return [stale_reason(origin, target, versions) for origin in self.origins]

    def holding(self, positions: Iterable[int], target: Target, versions: Versions) -> Iterator[Record]:
        """The records at these positions that still hold; the others are not parsed."""
        reasons, origins = self.reasons(target, versions), self.columns["origins"]
        return (self._at(p) for p in positions if reasons[origins[p]] is None)

    def known_workloads(self) -> dict[str, Workload]:
        """Every workload that has records, by its key, in the order first seen."""
        for key, place in self.keys.items():
            if key not in self.workloads:
                self.workloads[key] = Workload.from_json(self.forms[place])
        return {key: self.workloads[key] for key in self.keys}

    def summary(self) -> Iterator[tuple[str, str, float, str | None, bool]]:
        """Of every record, with nothing parsed: workload key, provider, seconds (infinity for a failure), failure, final?"""
        keys, providers = list(self.keys), [o.provider for o in self.origins]
        columns = (self.columns[name] for name in ("workloads", "origins", "seconds", "kinds"))
        for workload, origin, seconds, kind in zip(*columns, strict=True):
            failure = FAILURES[(kind >> 1) - 1] if kind > 1 else None
            yield keys[workload], providers[origin], inf if failure else seconds, failure, bool(kind & 1)


def origin_of(record: Record) -> Origin:
    """Where a record comes from."""
    return Origin(record.provider, record.provider_version, record.fingerprint, record.compiler)


def config_digest(config: Config) -> int:
    """64 bits that tell configs apart."""
    return int.from_bytes(blake2b(config_key(config).encode(), digest_size=8).digest(), "little")
