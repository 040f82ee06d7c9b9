"""The tuning log: a file of JSON lines, one fsynced record a measurement, that survives being killed at any moment.

A line is a record, or a seal: ``{"schema": 1, "seal": {workload digest: records}}``, written when a tuning run ends. Records of
a workload are numbered, and the seal counts them, so that replay notices a lost line. A torn last line is skipped with a
warning, and replaced by the next append; any other line that cannot be read is an error.

A long log has an index beside it (:mod:`wpk.tuning.index`), with which it opens without parsing its lines.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from wpk.core.errors import LogError, StorageError
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.tuning.entries import Entries, Lines
from wpk.tuning.index import Covered, index_path, is_due, load_index, save_index
from wpk.tuning.record import SCHEMA, Record, Versions, digest, record_from_json

Seal = dict[str, int]

_CHUNK = 1 << 24
#: Of so many lines at once, the records are not kept in memory.
_KEPT = 10_000


@dataclass
class Contents:
    """What a log holds. ``end``: bytes up to the end of the last good line, ``open``: it lacks its newline; ``lines`` so far.

    ``checksum`` of those bytes; ``indexed``: records that the index beside the log has.
    """

    records: Entries = field(default_factory=Entries)
    seals: list[Seal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    end: int = 0
    open: bool = False
    lines: int = 0
    checksum: int = 0
    indexed: int = 0

    @property
    def workloads(self) -> dict[str, Workload]:
        """All that have records, by key."""
        return self.records.known_workloads()


def read_log(path: Path, index: bool = True) -> Contents:
    """The contents of a log; with ``index``, one is kept beside a long log.

    Raises LogError when it cannot be read or a line other than the last is damaged.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or error}") from error
    try:
        contents = _from_index(path, file)
        _take(contents, _read_from(file, contents.end), path)
    except OSError as error:
        raise LogError(f"{path}: {error.strerror or error}") from error
    finally:
        os.close(file)
    if index:
        _save_index(path, contents)
    return contents


class TuningLog:
    """An open log: looks up and appends. Several processes may append to one file; each sees the others' records."""

    def __init__(self, path: Path | None) -> None:
        """``path`` is created when missing; None keeps the log in memory. Raises LogError, StorageError."""
        self.path = path
        self.contents = Contents()
        self._inode = 0
        if path is not None:
            with self._locked():
                pass

    @property
    def records(self) -> Sequence[Record]:
        """All records, oldest first."""
        return self.contents.records

    @property
    def warnings(self) -> Sequence[str]:
        """What was skipped while reading."""
        return self.contents.warnings

    def of(self, workload: Workload) -> Sequence[Record]:
        """All records of a workload, oldest first."""
        records = self.contents.records
        return [records[i] for i in records.of(workload.key)]

    def holding(self, workload: Workload, target: Target, versions: Versions) -> Iterator[Record]:
        """The records of a workload that still hold, oldest first."""
        records = self.contents.records
        return records.holding(records.of(workload.key), target, versions)

    def lookup(self, workload: Workload, provider: str, config: Config) -> Record | None:
        """The newest record of exactly that, or None."""
        return self.contents.records.newest(workload.key, provider, config)

    def best(self, workload: Workload, target: Target, versions: Versions, provider: str | None = None) -> Record | None:
        """The fastest record of a workload that still holds, of one provider or of any; None when there is none."""
        latest = {r.key: r for r in self.holding(workload, target, versions)}
        ok = [r for r in latest.values() if r.measurement.ok and provider in (None, r.provider)]
        return min(ok, key=lambda r: r.measurement.time, default=None)

    def append(self, record: Record) -> Record:
        """Write a record, numbered, in one write, and wait until it is on the disk. Raises StorageError, LogError."""
        with self._locked() as file:
            records = self.contents.records
            record = replace(record, number=len(records.of(record.workload.key)))
            records.add(record, *self._write(file, record.to_json()))
            if self.path is not None:
                _save_index(self.path, self.contents)
        return record

    def seal(self, workloads: Iterable[Workload]) -> None:
        """Write down how many records each workload has. Raises StorageError, LogError."""
        with self._locked() as file:
            counts = {digest(w): len(self.contents.records.of(w.key)) for w in workloads}
            self._write(file, {"schema": SCHEMA, "seal": counts})
            self.contents.seals.append(counts)

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The file, locked, everything in it known; None for a log in memory."""
        if self.path is None:
            yield None
            return
        file = _open_locked(self.path)
        try:
            self._catch_up(file)
            yield file
        finally:
            os.close(file)

    def _catch_up(self, file: int) -> None:
        """Read what others appended since. A replaced file is read anew."""
        status = os.fstat(file)
        assert self.path is not None
        if status.st_ino != self._inode or status.st_size < self.contents.end:
            self.contents, self._inode = _from_index(self.path, file), status.st_ino
        data = _read_from(file, self.contents.end)
        if data:
            self.contents.warnings.clear()
            _take(self.contents, data, self.path)
            _save_index(self.path, self.contents)

    def _write(self, file: int | None, data: dict[str, Any]) -> tuple[int, int]:
        """Where the line begins, and its bytes."""
        if file is None:
            return 0, 0
        line = json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        line = b"\n" + line if self.contents.open else line
        try:
            os.ftruncate(file, self.contents.end)  # a torn line, if there is one, ends here
            _check_written(os.pwrite(file, line, self.contents.end), line)
            os.fsync(file)
        except OSError as error:
            raise StorageError(f"cannot write to the tuning log {self.path}: {error.strerror or error}") from error
        begun = self.contents.end
        self.contents.end += len(line)
        self.contents.checksum = crc32(line, self.contents.checksum)
        self.contents.lines += 1
        self.contents.open = False
        return begun, len(line)


def write_log(path: Path, records: Iterable[Record], seals: Iterable[Seal] = ()) -> None:
    """Replace ``path`` by a log of these records, numbered anew. Raises StorageError; the old file stays then."""
    counts: dict[str, int] = {}
    lines = []
    for record in records:
        name = digest(record.workload)
        lines.append(replace(record, number=counts.get(name, 0)).to_json())
        counts[name] = counts.get(name, 0) + 1
    known = {name for seal in seals for name in seal}
    if known:
        lines.append({"schema": SCHEMA, "seal": {name: counts.get(name, 0) for name in sorted(known)}})
    text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        index_path(path).unlink(missing_ok=True)  # it was the old file's
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def merge_logs(paths: Sequence[Path], output: Path) -> int:
    """Join logs into ``output``; equal records are kept once. Returns the number kept. Raises LogError, StorageError."""
    contents = [read_log(p) for p in paths]
    unique = {(r.key, r.fingerprint, r.time, r.measurement): r for c in contents for r in c.records}
    records = sorted(unique.values(), key=lambda r: r.time)
    write_log(output, records, [s for c in contents for s in c.seals])
    return len(records)


def collect_garbage(path: Path, target: Target, versions: Versions, keep: int = 8) -> tuple[int, int]:
    """Keep of each workload and provider the ``keep`` best that hold, and one failure of each kind. Returns (before, after).

    Raises LogError, StorageError.
    """
    file = _open_locked(path)
    try:
        contents = read_log(path)
        kept = _worth_keeping(contents.records, target, versions, keep)
        write_log(path, kept, contents.seals)
    finally:
        os.close(file)
    return len(contents.records), len(kept)


def _worth_keeping(records: Entries, target: Target, versions: Versions, keep: int) -> list[Record]:
    latest = {r.key: r for r in records.holding(range(len(records)), target, versions)}
    groups: dict[tuple[str, str, str | None], list[Record]] = {}
    for record in latest.values():
        groups.setdefault((record.workload.key, record.provider, record.measurement.failure), []).append(record)
    chosen = {
        r.key
        for (_, _, failure), group in groups.items()
        for r in sorted(group, key=lambda r: (r.stage != "final", r.measurement.time))[: 1 if failure else keep]
    }
    return [r for r in latest.values() if r.key in chosen]


def _open_locked(path: Path) -> int:
    """A descriptor of the file, created when missing, locked until it is closed. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_still(path, file):
                return file
            os.close(file)
    except OSError as error:
        raise StorageError(f"cannot open the tuning log {path}: {error.strerror or error}") from error


def _is_still(path: Path, file: int) -> bool:
    """False when the file was replaced while we waited for its lock."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _from_index(path: Path, file: int) -> Contents:
    """What the index beside the log knows of the open file; empty contents where it is of no use."""
    found = load_index(path, file)
    if found is None:
        return Contents()
    entries, seals, covered = found
    entries.lines = Lines(path)
    return Contents(entries, seals, [], covered.end, False, covered.lines, covered.checksum, len(entries))


def _save_index(path: Path, contents: Contents) -> None:
    """Bring the index up to date, when that is worth it and possible."""
    if is_due(len(contents.records), contents.indexed) and not contents.open:
        save_index(path, contents.records, contents.seals, Covered(contents.end, contents.checksum, contents.lines))
        contents.indexed = len(contents.records)  # also when it failed: no use trying again at once


def _read_from(file: int, start: int) -> bytes:
    parts = []
    while part := os.pread(file, _CHUNK, start):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _take(contents: Contents, data: bytes, path: Path) -> None:
    """Parse lines that follow ``contents.end``. Raises LogError for a damaged line that is not the last."""
    lines = _split(data)
    keep = len(lines) < _KEPT
    if not keep and contents.records.lines is None:
        contents.records.lines = Lines(path)
    for i, line in enumerate(lines):
        number = contents.lines + 1
        try:
            _take_line(contents, line, keep)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            if i + 1 < len(lines):
                raise LogError(f"{path}, line {number}: not a record of a tuning log ({what})") from error
            contents.warnings.append(f"{path}, line {number}: incomplete last line skipped")
            return
        contents.lines, contents.end, contents.open = number, contents.end + len(line), not line.endswith(b"\n")
        contents.checksum = crc32(line, contents.checksum)


def _take_line(contents: Contents, line: bytes, keep: bool) -> None:
    if not line.strip():
        return
    data = json.loads(line)
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']}, this version of wpk reads {SCHEMA}")
    if "seal" in data:
        contents.seals.append({str(k): int(v) for k, v in data["seal"].items()})
    else:
        record = record_from_json(data, contents.records.workloads)
        contents.records.add(record, contents.end, len(line), keep)


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [p + b"\n" for p in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _check_written(count: int, line: bytes) -> None:
    if count != len(line):
        raise OSError(28, "the disk is full")
