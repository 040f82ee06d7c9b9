"""The index beside a log: whatever becomes of it, the log says the same; and with it, opening parses nothing."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_fakes import TARGET, VERSIONS, record, workload

from wpk.core.errors import LogError
from wpk.core.result import Measurement
from wpk.tuning.index import WORTH, index_path, is_due
from wpk.tuning.log import Contents, TuningLog, read_log, write_log
from wpk.tuning.record import Record

COUNT = WORTH + 90
FAILED = Measurement(failure="wrong", detail="é", tolerance=1e-6)


def some(count: int = COUNT) -> list[Record]:
    """Records of five workloads, some failed, some stale, some finals."""
    made = []
    for i in range(count):
        one = replace(record(8 * (1 + i % 5), a=i, time=1e-3 * (i + 1), stage="final" if i % 50 == 7 else "search"), time="t")
        one = replace(one, measurement=FAILED) if i % 40 == 3 else one
        made.append(replace(one, compiler="cc 11") if i % 3 == 1 else one)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log that was read once, and so has an index."""
    path = tmp_path / "log"
    write_log(path, some(), [{"x": 3}])
    assert not index_path(path).exists()
    read_log(path)
    assert index_path(path).exists()
    return path


def numbered() -> list[Record]:
    return [replace(r, number=i // 5) for i, r in enumerate(some())]


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the lines parsed."""
    counts = [0]
    real = json.loads

    def counting(data: bytes | str) -> object:
        counts[0] += isinstance(data, bytes) and data.startswith(b'{"schema"')
        return real(data)

    monkeypatch.setattr("json.loads", counting)
    return counts


def test_an_indexed_log_says_what_the_log_says(path: Path) -> None:
    contents = read_log(path)
    assert contents.indexed == len(contents.records) == COUNT and contents.lines == COUNT + 1
    assert contents.records == numbered() and contents.seals == [{"x": 0}]
    assert set(contents.workloads) == {workload(8 * (1 + i)).key for i in range(5)}
    index_path(path).unlink()
    plain = read_log(path, index=False)
    assert plain.records == contents.records and plain.end == contents.end and plain.checksum == contents.checksum
    assert list(plain.records.summary()) == list(contents.records.summary())
    assert not index_path(path).exists()


def test_opening_parses_only_what_is_asked_for(path: Path, unparsed: list[int]) -> None:
    log = TuningLog(path)
    assert unparsed[0] == 0 and len(log.records) == COUNT
    fresh = list(log.holding(workload(16), TARGET, VERSIONS))
    assert 0 < len(fresh) == unparsed[0] < len(log.contents.records.of(workload(16).key))
    assert fresh == [r for r in numbered() if r.workload == workload(16) and r.compiler != "cc 11"]
    assert log.lookup(workload(8), "generated:sim", {"a": 10}) == numbered()[10]
    assert log.lookup(workload(8), "generated:sim", {"a": 11}) is None


def test_summary_tells_failures_and_finals(path: Path) -> None:
    rows = list(read_log(path).records.summary())
    assert rows == [
        (r.workload.key, r.provider, r.measurement.time, r.measurement.failure, r.stage == "final") for r in numbered()
    ]


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    return data[:-300] + bytes([data[-300] ^ 1]) + data[-299:]


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, lambda d: b"", lambda d: d.replace(b"index 1", b"index 9"), lambda d: b"\0" * len(d), lambda d: d[1:]],
)
def test_a_damaged_index_is_made_anew(path: Path, damage: Callable[[bytes], bytes]) -> None:
    good = index_path(path).read_bytes()
    index_path(path).write_bytes(damage(good))
    assert read_log(path).records == numbered()
    assert index_path(path).read_bytes() == good


def test_an_index_of_another_log_is_ignored(path: Path) -> None:
    old = index_path(path).read_bytes()
    write_log(path, some()[5:])
    index_path(path).write_bytes(old)
    assert len(read_log(path).records) == COUNT - 5
    path.write_bytes(b"")
    assert len(read_log(path).records) == 0


def test_a_line_damaged_behind_the_index_is_still_an_error(path: Path) -> None:
    data = path.read_bytes()
    spot = data.index(b'"stage":"search"')
    path.write_bytes(data[:spot] + b'"stage":"lost!!"' + data[spot + 16 :])
    with pytest.raises(LogError, match="line 1: not a record"):
        read_log(path)


def test_a_log_grows_beyond_its_index_and_the_index_follows(path: Path) -> None:
    log = TuningLog(path)
    before = index_path(path).read_bytes()
    for i in range(WORTH - 1):
        log.append(record(8, b=i))
    assert index_path(path).read_bytes() == before, "not rewritten for each record"
    assert len(TuningLog(path).records) == COUNT + WORTH - 1, "a log killed here loads, with the rest parsed"
    log.append(record(8, b=WORTH))
    assert index_path(path).read_bytes() != before
    again = read_log(path)
    assert again.indexed == COUNT + WORTH == len(again.records)
    assert [r.number for r in again.records if r.workload == workload(8)] == list(range(len(again.records.of(workload(8).key))))


def test_a_torn_last_line_behind_an_index(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"schema":1,"key"')
    contents = read_log(path)
    assert len(contents.records) == COUNT and "incomplete last line skipped" in contents.warnings[0]
    log = TuningLog(path)
    log.append(record(8, b=1))
    assert read_log(path).warnings == [] and len(read_log(path).records) == COUNT + 1


def test_two_writers_and_an_index(path: Path) -> None:
    one, two = TuningLog(path), TuningLog(path)
    for i in range(WORTH):
        (one, two)[i % 2].append(record(8, b=i))
    assert read_log(path).records == TuningLog(path).records
    assert len(read_log(path).records) == COUNT + WORTH


def test_a_folder_that_cannot_be_written_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "log", some())

    def denied(*_: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(os, "replace", denied)
    assert len(read_log(tmp_path / "log").records) == COUNT
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_when_an_index_is_due() -> None:
    assert not is_due(WORTH - 1, 0) and is_due(WORTH, 0)
    assert not is_due(105_000, 100_000) and is_due(106_250, 100_000)
    assert isinstance(Contents().records.of("x"), list)


def test_a_long_log_is_not_parsed(tmp_path: Path, unparsed: list[int]) -> None:
    """Lines repeated as they are: what counts is how many are parsed."""
    path = tmp_path / "log"
    write_log(path, some(1000))
    path.write_bytes(path.read_bytes() * 20)
    unparsed[0] = 0
    assert len(read_log(path).records) == 20_000 and unparsed[0] == 20_000
    unparsed[0] = 0
    contents = read_log(path)
    assert len(contents.records) == 20_000 and unparsed[0] == 0
    assert contents.records[19_999].config == {"a": 999} and unparsed[0] == 1
