"""The tuning log survives torn writes, other writers and other machines, and says what is wrong with it otherwise."""

import json
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from tuning_fakes import TARGET, VERSIONS, record, workload

from wpk.core.errors import LogError, StorageError
from wpk.core.result import Measurement
from wpk.tuning.log import TuningLog, collect_garbage, merge_logs, read_log, write_log
from wpk.tuning.record import Versions, digest, stale_reason
from wpk.tuning.replay import replay
from wpk.tuning.results import ResultTable, fresh_table
from wpk.tuning.tasks import Task


def written(path: Path, count: int = 5) -> TuningLog:
    log = TuningLog(path)
    for i in range(count):
        log.append(record(a=i, time=1e-3 / (i + 1)))
    return log


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    log = TuningLog(tmp_path / "deep" / "log.jsonl")
    failed = replace(record(a=2), measurement=Measurement(failure="wrong", detail="é\n\r\u2028", error=inf, tolerance=1e-6))
    kept = [log.append(r) for r in (record(a=1), failed, record(16, "lib", stage="final"))]
    assert [r.number for r in kept] == [0, 1, 0]
    contents = read_log(tmp_path / "deep" / "log.jsonl")
    assert contents.records == kept and contents.warnings == []
    assert len((tmp_path / "deep" / "log.jsonl").read_bytes().splitlines()) == 3


def test_lookup_and_best(tmp_path: Path) -> None:
    log = written(tmp_path / "log")
    found = log.lookup(workload(), "generated:sim", {"a": 3})
    assert found is not None and found.measurement.time == 1e-3 / 4
    assert log.lookup(workload(), "lib", {"a": 3}) is None and log.lookup(workload(16), "generated:sim", {"a": 3}) is None
    best = log.best(workload(), TARGET, VERSIONS)
    assert best is not None and best.config == {"a": 4}
    assert log.best(workload(), TARGET, Versions("cc 13", VERSIONS.providers)) is None
    log.append(replace(record(a=4, time=5e-3)))
    assert log.best(workload(), TARGET, VERSIONS).config == {"a": 3}, "the newest counts"  # type: ignore[union-attr]
    assert log.best(workload(), TARGET, VERSIONS, "lib") is None


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_torn_last_line_is_skipped_and_replaced(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log"
    written(path)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    whole = cut == 1  # only the newline is lost
    assert len(read_log(path).records) == (5 if whole else 4)
    log = TuningLog(path)
    assert len(log.records) == (5 if whole else 4)
    assert whole or "line 5: incomplete last line skipped" in log.warnings[0]
    log.append(record(b=1))
    again = read_log(path)
    assert len(again.records) == (6 if whole else 5) and again.warnings == []
    assert again.records[-1].config == {"b": 1}


def test_a_last_line_of_zeros_is_torn_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    written(path)
    path.write_bytes(path.read_bytes() + b"\0" * 700)
    log = TuningLog(path)
    assert len(log.records) == 5 and len(log.warnings) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda line: b"nonsense\n", "line 3: not a record"),
        (lambda line: line.replace(b'"schema":1', b'"schema":9'), "schema 9, this version of wpk reads 1"),
        (lambda line: line.replace(b'"stage":"search"', b'"stage":"x"'), "unknown stage"),
        (lambda line: line.replace(b'"provider":', b'"supplier":'), "KeyError"),
        (lambda line: line.replace(b"1x8x2x2", b"1x9x2x2"), "line 3"),
        (lambda line: b"[1]\n", "line 3"),
        (lambda line: line[:-30] + b"\n", "line 3"),
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path, damage, says: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log"
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert damage(lines[2]) != lines[2]
    path.write_bytes(b"".join([*lines[:2], damage(lines[2]), *lines[3:]]))
    with pytest.raises(LogError) as caught:
        TuningLog(path)
    assert says in str(caught.value) and "line 3" in str(caught.value) and str(path) in str(caught.value)


def test_missing_and_unreadable_logs(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"none\.jsonl: No such file"):
        read_log(tmp_path / "none.jsonl")
    with pytest.raises(StorageError, match="cannot open"):
        TuningLog(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert TuningLog(tmp_path / "empty").records == []


def test_two_logs_on_one_file_see_each_other(tmp_path: Path) -> None:
    one, two = TuningLog(tmp_path / "log"), TuningLog(tmp_path / "log")
    one.append(record(a=1))
    assert two.append(record(a=2)).number == 1
    assert one.append(record(a=3)).number == 2
    assert [r.config["a"] for r in one.records] == [1, 2, 3]
    assert [r.number for r in read_log(tmp_path / "log").records] == [0, 1, 2]


_WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tuning_fakes import record
from wpk.tuning.log import TuningLog
log = TuningLog(Path(sys.argv[2]))
for i in range(40):
    log.append(record(a=int(sys.argv[3]) * 100 + i))
"""


def test_processes_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "log"
    here = str(Path(__file__).parent)
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, here, str(path), str(i)]) for i in range(3)]
    assert [w.wait() for w in writers] == [0, 0, 0]
    records = read_log(path).records
    assert sorted(int(r.config["a"]) for r in records) == [100 * i + k for i in range(3) for k in range(40)]
    assert [r.number for r in records] == list(range(120))


def test_a_log_replaced_under_us_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = written(path)
    write_log(path, log.records[:2])
    log.append(record(a=9))
    assert [r.config["a"] for r in log.records] == [0, 1, 9] == [r.config["a"] for r in read_log(path).records]


def test_a_log_in_memory() -> None:
    log = TuningLog(None)
    log.append(record(a=1))
    log.seal([workload()])
    assert log.lookup(workload(), "generated:sim", {"a": 1}) and len(log.records) == 1


def test_stale_records_name_the_field() -> None:
    one = record(a=1)
    assert stale_reason(one, TARGET, VERSIONS) is None
    assert "fingerprint" in str(stale_reason(one, replace(TARGET, threads=1), VERSIONS))
    newer = Versions("cc 12", {**VERSIONS.providers, "generated:sim": "2"})
    assert stale_reason(one, TARGET, newer) == "provider_version: expected '2', found '1'"
    other = Versions("cc 13", VERSIONS.providers)
    assert stale_reason(one, TARGET, other) == "compiler: expected 'cc 13', found 'cc 12'"
    assert stale_reason(record(8, "lib"), TARGET, other) is None, "a library needs no compiler"
    assert "provider" in str(stale_reason(one, TARGET, Versions("cc 12", {})))


def test_merge_and_collect(tmp_path: Path) -> None:
    written(tmp_path / "a", 20)
    log = TuningLog(tmp_path / "b")
    log.append(record(16, "lib"))
    log.append(replace(record(a=77), fingerprint="other"))
    log.append(replace(record(a=78), measurement=Measurement(failure="crash")))
    log.append(replace(record(a=79), measurement=Measurement(failure="crash")))
    log.seal([workload(), workload(16)])
    assert merge_logs([tmp_path / "a", tmp_path / "b", tmp_path / "a"], tmp_path / "c") == 24
    assert collect_garbage(tmp_path / "c", TARGET, VERSIONS, keep=3) == (24, 5)
    kept = read_log(tmp_path / "c")
    assert sorted(int(r.config.get("a", -1)) for r in kept.records) == [-1, 17, 18, 19, 78]
    assert kept.seals == [{digest(workload()): 4, digest(workload(16)): 1}]
    TuningLog(tmp_path / "c").append(record(a=5))


def test_a_failed_rewrite_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    written(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="No space"):
        write_log(path, [])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["log"]


# Results


def test_results_per_provider_best_first() -> None:
    failed = replace(record(a=9), measurement=Measurement(failure="wrong"))
    table = ResultTable([record(a=1, time=3e-3), record(a=2, time=1e-3), record(8, "lib", 2e-3), failed])
    assert [(p, m.time) for p, _, m in table.best(workload())] == [("generated:sim", 1e-3), ("lib", 2e-3)]
    assert [c for _, c, _ in table.failures(workload())] == [{"a": 9}]
    assert [m.time for _, _, m in table.ranked(workload())] == [1e-3, 2e-3, 3e-3]
    assert [m.time for _, _, m in table.ranked(workload(), "lib")] == [2e-3]
    assert table.best(workload(99)) == [] and table.workloads() == [workload()]


def test_a_provider_that_only_failed_is_listed_with_its_failure() -> None:
    table = ResultTable([replace(record(a=9), measurement=Measurement(failure="wrong")), record(8, "lib")])
    assert [(p, m.failure) for p, _, m in table.best(workload())] == [("lib", None), ("generated:sim", "wrong")]


def test_finalists_stand_for_their_provider() -> None:
    lucky, slow = record(a=1, time=1e-3), record(a=2, time=1.05e-3)
    final = record(a=2, time=1.04e-3, stage="final")
    table = ResultTable([lucky, slow, final])
    assert table.best(workload())[0][1] == {"a": 2}
    table.add(record(a=2, time=0.5e-3))
    assert table.best(workload())[0][2].time == 1.04e-3, "a search's timing does not replace a finalist's"


def test_records_of_other_machines_are_no_results() -> None:
    mine, other = record(a=1, time=2e-3), replace(record(a=2, time=1e-3), fingerprint="other")
    assert fresh_table([mine, other], TARGET, VERSIONS).best(workload())[0][1] == {"a": 1}


# Replay


def sealed_log(path: Path) -> None:
    log = TuningLog(path)
    for size in (8, 16):
        for a in range(4):
            log.append(record(size, a=a, time=1e-3 * (a + 1)))
    log.seal([workload(8), workload(16), workload(32)])


TASKS = [Task(workload(s), (f"conv{s}",)) for s in (8, 16, 32)]


def test_replay_gives_the_table(tmp_path: Path) -> None:
    sealed_log(tmp_path / "log")
    replayed = replay(TASKS, read_log(tmp_path / "log"), TARGET, VERSIONS)
    assert replayed.notes == () and replayed.results.best(workload(16))[0][1] == {"a": 0}
    assert replayed.results.best(workload(32)) == [], "never measured, and the seal says so"


@pytest.mark.parametrize("line", range(8))
def test_strict_replay_notices_any_lost_entry_and_names_the_task(tmp_path: Path, line: int) -> None:
    path = tmp_path / "log"
    sealed_log(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    name = "conv8" if line < 4 else "conv16"
    with pytest.raises(LogError, match=f"task eltwise {name} .*entry {line % 4} of 4 is missing"):
        replay(TASKS, read_log(path), TARGET, VERSIONS)
    kept = replay(TASKS, read_log(path), TARGET, VERSIONS, strict=False)
    assert len(kept.notes) == 1 and len(kept.results.records(workload(8 if line < 4 else 16))) == 3


def test_strict_replay_names_missing_tasks_and_stale_fields(tmp_path: Path) -> None:
    sealed_log(tmp_path / "log")
    contents = read_log(tmp_path / "log")
    with pytest.raises(LogError, match=r"task eltwise new .*no entry in the log"):
        replay([Task(workload(64), ("new",))], contents, TARGET, VERSIONS)
    with pytest.raises(LogError, match=r"task eltwise conv8 .*stale compiler: expected 'cc 13', found 'cc 12'"):
        replay(TASKS, contents, TARGET, Versions("cc 13", VERSIONS.providers))
    loose = replay(TASKS, contents, TARGET, Versions("cc 13", VERSIONS.providers), strict=False)
    assert len(loose.notes) == 2 and loose.results.workloads() == []


def test_an_unsealed_log_replays_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sealed_log(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert replay(TASKS[:2], read_log(path), TARGET, VERSIONS).notes == ()
    with pytest.raises(LogError, match="conv32"):
        replay(TASKS, read_log(path), TARGET, VERSIONS)


def test_lines_are_plain_json_with_a_readable_key(tmp_path: Path) -> None:
    written(tmp_path / "log", 1)
    data = json.loads((tmp_path / "log").read_text())
    assert data["key"] == workload().key and data["measurement"]["samples"] == [1e-3] * 3
    assert {"schema", "provider", "provider_version", "config", "fingerprint", "compiler", "seed", "time"} <= set(data)
