"""``wpk log …`` and ``wpk doctor --log``: what a user sees of a log, and what a log gives to others."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from measure_fakes import add_relu
from small import Ran, refused
from tuning_fakes import TARGET, VERSIONS, record

from wpk.commands.logdata import COLUMNS, as_csv, as_json, coverage, curves, lessons_of
from wpk.commands.logs import stale_entries
from wpk.core.result import Measurement
from wpk.core.target import host_target
from wpk.dsl.features import NAMES
from wpk.providers.registry import providers
from wpk.report.plots import Calibration, Coverage, Curve, bands, best_so_far, draw, rank_correlation
from wpk.search.cost_model import CostModel
from wpk.search.policy import load_policy
from wpk.tuning.log import read_log, write_log
from wpk.tuning.record import Record, Versions

Cli = Callable[..., Ran]


def some() -> list[Record]:
    failed = replace(record(a=9, b=1), measurement=Measurement(failure="wrong", detail='a "b",\nc', error=inf, tolerance=1e-6))
    good = [record(a=i, b=i % 2, time=1e-3 / (i + 1)) for i in range(4)]
    return [replace(r, time="t") for r in (*good, failed, record(8, "lib", 2e-3), record(16, "lib"))]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_log(tmp_path / "log.jsonl", some())
    return tmp_path / "log.jsonl"


def test_ls_and_best(cli: Cli, log: Path) -> None:
    listed, best = cli("log", "ls", log), cli("log", "best", log)
    assert "7 entries, 2 tasks" in listed.out and "250 µs" in listed.out
    assert best.out.index("generated:sim") < best.out.index("lib"), "the fastest first"
    before = log.read_bytes()
    assert cli("log", "best", log, "-o", log.with_name("best.jsonl")).code == 0 and log.read_bytes() == before
    for command in ("ls", "best", "gc", "export", "plot"):
        refused(cli("log", command, log.with_name("none")), 6, "No such file")
    assert not log.with_name("none").exists()


def test_merge_keeps_equal_measurements_once(cli: Cli, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    assert "7 entries" in cli("log", "merge", log, log, "-o", out).out
    assert "7 entries" in cli("log", "merge", out, log, "-o", out).out, "into itself"
    assert sorted(r.key for r in read_log(out).records) == sorted(r.key for r in some())


def test_export_has_stable_columns(cli: Cli, log: Path) -> None:
    rows = list(csv.DictReader(cli("log", "export", log).out.splitlines()))
    assert tuple(COLUMNS)[:6] == ("task", "op", "provider", "provider_version", "config", "stage")
    wanted = read_log(log).records
    text = as_csv(wanted)
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 7
    assert rows[0]["config"] == "a=0,b=0" and float(rows[1]["seconds"]) == 5e-4 and rows[4]["seconds"] == ""
    assert rows[4]["detail"] == 'a "b",\nc' and rows[4]["error"] == "" and rows[4]["failure"] == "wrong"
    data = json.loads(as_json(wanted))
    assert list(data[0])[: len(COLUMNS)] == list(COLUMNS) and data[0]["config"] == {"a": 0, "b": 0}
    assert data[0]["samples"] == [1e-3] * 3 and data[4]["seconds"] is None
    cli("log", "export", log, "-o", log.with_name("x.json"))
    assert json.loads(log.with_name("x.json").read_text()) == data
    refused(cli("log", "export", log, "-o", log.with_name("x.parquet")), 2, "expected one of csv, json")


def test_the_doctor_names_stale_fields(log: Path) -> None:
    assert stale_entries(log, TARGET, VERSIONS)[0].found.endswith("all 7 entries hold")
    newer = Versions("cc 13", {**VERSIONS.providers, "lib": "4"})
    texts = [f.found for f in stale_entries(log, TARGET, newer)]
    assert texts[0].endswith("7 of 7 entries are stale")
    assert texts[1:] == [
        "5 entries: stale compiler: expected 'cc 13', found 'cc 12'",
        "2 entries: stale provider_version: expected '4', found '3.1'",
    ]
    log.write_bytes(log.read_bytes()[:-9])
    assert "incomplete last line" in stale_entries(log, TARGET, VERSIONS)[0].found


def real_records(count: int = 6) -> list[Record]:
    """Of a real family's space, with made-up times."""
    target, provider = host_target(), next(p for p in providers() if p.name == "generated:eltwise")
    task = add_relu(4096)
    configs = [c for c, _ in zip(provider.space(task, target).enumerate(), range(count), strict=False)]
    whose = (target.fingerprint, "cc", "", 0)
    times = [Measurement((1e-6 * (i + 1),) * 3) for i in range(count)]
    pairs = zip(configs, times, strict=True)
    return [Record(task, provider.name, provider.version, c, *whose, m, time="t") for c, m in pairs]


def test_train_writes_a_policy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lessons = list(lessons_of([*real_records(), *some()], providers(), host_target()))
    assert len(lessons) == 1 and len(lessons[0].results) == 6
    write_log(tmp_path / "log", real_records())
    monkeypatch.setattr("wpk.commands.logdata.train_policy", lambda lessons, seed: _short(lessons, seed))
    ran = cli("log", "train", tmp_path / "log", "-o", tmp_path / "out", "--what", "policy")
    assert ran.code == 0 and "1 spaces, 6 measured configs" in ran.out
    assert load_policy(tmp_path / "out" / "policy.npz").parameters
    write_log(tmp_path / "log", some())
    refused(cli("log", "train", tmp_path / "log", "-o", tmp_path / "out"), 6, "no task with two measured configs")
    refused(cli("log", "train", tmp_path / "log", "-o", tmp_path / "out", "--what", "it"), 2, "expected policy or cost-model")


def test_train_writes_a_cost_model(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightgbm")
    write_log(tmp_path / "log", real_records())
    ran = cli("log", "train", tmp_path / "log", "-o", tmp_path / "out", "--what", "cost-model")
    assert ran.code == 0 and "cost model:" in ran.out
    assert CostModel.load(tmp_path / "out" / "cost_model.json").names == NAMES
    monkeypatch.setattr("wpk.commands.logdata.available", lambda: False)
    ran = cli("log", "train", tmp_path / "log", "-o", tmp_path / "none", "--what", "cost-model")
    assert ran.code == 0 and "needs LightGBM" in " ".join(ran.out.split()) and not list((tmp_path / "none").iterdir())


def _short(lessons: object, seed: int) -> object:
    from wpk.search.train import TrainOptions, train_policy

    return train_policy(lessons, seed, TrainOptions(steps=5))  # type: ignore[arg-type]


# Pictures


def test_curves_say_how_good_the_best_so_far_is() -> None:
    assert best_so_far([3.0, inf, 1.0], 5).tolist() == [3, 3, 1, 1, 1] and best_so_far([inf], 2).tolist() == [inf, inf]
    middle, low, high = bands(Curve("x", (([4.0, 2.0], 1.0), ([2.0, 2.0], 2.0), ([9.0, 3.0], 3.0))))
    assert middle.tolist() == [3, 1] and low.tolist() == [1, 1] and high.tolist() == [4, 2]
    found = curves([("one", some()), ("two", some()[:3])], "log")
    assert [c.name for c in found] == ["one", "two"] and found[1].runs[0] == ([1e-3, 5e-4, pytest.approx(1e-3 / 3)], 2.5e-4)
    assert [c.name for c in curves([("one", some())], "provider")] == ["generated:sim", "lib"]
    assert [c.name for c in curves([("one", some())], "seed")] == ["seed 0"]


def test_coverage_counts_values() -> None:
    found = coverage(some(), None)
    assert found is not None and found.tried == 5 and found.knobs["b"] == [("0", 2, 1e-3 / 3), ("1", 3, 2.5e-4)]
    real = coverage(real_records(), None)
    assert real is not None and any(count == 0 for rows in real.knobs.values() for _, count, _ in rows), "values not tried show"


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0
    assert rank_correlation([1, 2, 2, 3], [1, 3, 3, 9]) == pytest.approx(1), "ties share a rank"


def test_pictures_are_written_and_repeat(cli: Cli, log: Path, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        assert cli("log", "plot", log, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "a.svg").read_text()
    labels = ("measurements of a task (count)", "best time so far / best time known (ratio)")
    assert all(f"<!-- {label}" in text for label in labels)
    refused(cli("log", "plot", log, "-o", tmp_path / "a.jpg"), 2, "ends in .png or .svg")
    refused(cli("log", "plot", log, "--by", "x"), 2, "expected provider, log or seed")
    refused(cli("log", "plot", log, "--task", "nothing"), 2, "no generated kernel")


def test_a_picture_of_calibration(tmp_path: Path) -> None:
    times = np.linspace(1e-6, 1e-4, 30)
    one = Coverage("x", {"k": [("1", 0, inf)]}, 0, "1")
    draw(tmp_path / "a.png", [], one, Calibration((times * 1.1).tolist(), times.tolist(), "held-out tasks"))
    assert (tmp_path / "a.png").stat().st_size > 5000
