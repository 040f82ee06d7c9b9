"""Recorded spaces: what is listed is the space, files survive, the shipped ones are whole, and replays repeat byte for byte."""

import json
import lzma
import os
import subprocess
import sys
from math import exp, isfinite, log
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_fakes import FOLDER, cold, large_spaces, made_up, providers_of, shipped_spaces

from wpk.core.errors import LogError
from wpk.core.result import Config, config_key
from wpk.search.recorded import RecordedSpace, Replayer, facts, load_space, save_space
from wpk.search.space import Space
from wpk.search.strategy import make_strategy
from wpk.tuning.clock import Clock
from wpk.tuning.log import TuningLog
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import TuneOptions, tune, versions_of

MADE_UP = made_up()


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other fields."""
    data = json.loads(lzma.decompress(path.read_bytes()))
    path.write_bytes(lzma.compress(json.dumps({**data, **changes}).encode()))
    return path


def names_in(space: Space) -> set[str]:
    return {k.name for k in space.knobs}


# A space of listed configs


def test_what_is_listed_is_the_space() -> None:
    listed = MADE_UP.space.listed
    assert listed is not None
    assert list(MADE_UP.space.enumerate()) == list(listed)
    assert MADE_UP.space.size() == len(listed)
    assert all(map(MADE_UP.space.valid, listed))
    assert not MADE_UP.space.valid({**listed[0], "tile": 32, "unroll": 8})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_all_ways_to_a_config_stay_inside(seed: int) -> None:
    space, rng = MADE_UP.space, Random(seed)
    a, b = space.sample(rng), space.sample(rng)
    made = [space.mutate(a, rng), space.mutate(a, rng, 1.0), space.cross(a, b, rng), *space.neighbours(a)]
    assert all(map(space.valid, made))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_repair_changes_as_few_knobs_as_can_be(seed: int) -> None:
    space, rng = MADE_UP.space, Random(seed)
    broken = {k.name: k.sample(rng) for k in space.knobs}

    def changes(config: Config) -> int:
        return sum(broken[k] != config[k] for k in broken)

    assert changes(space.repair(broken, rng)) == min(map(changes, space.listed or ()))


def test_repair_of_values_that_no_knob_has() -> None:
    broken: Config = {"tile": 3, "unroll": 2, "order": "rows", "chunk": 8, "prefetch": 0}
    fixed = MADE_UP.space.repair(broken, Random(0))
    assert MADE_UP.space.valid(fixed) and {**fixed, "tile": 3} == broken


def test_samples_are_uniform_over_the_list() -> None:
    rng, size = Random(1), MADE_UP.space.size()
    drawn = [config_key(MADE_UP.space.sample(rng)) for _ in range(20 * size)]
    counts = [drawn.count(key) for key in set(drawn)]
    assert len(counts) == size
    assert max(counts) < 50


def test_an_empty_list_is_an_empty_space() -> None:
    empty = Space(MADE_UP.space.knobs, (), (), ())
    assert list(empty.enumerate()) == []
    with pytest.raises(ValueError, match="no valid config"):
        empty.default()


# Files


def test_a_file_gives_the_record_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json.xz"
    save_space(MADE_UP, path)
    found = load_space(path)
    assert found.space == MADE_UP.space and found.space.first == MADE_UP.space.first
    assert (found.workload, found.target, found.provider) == (MADE_UP.workload, MADE_UP.target, MADE_UP.provider)
    for config in MADE_UP.space.enumerate():
        assert found.seconds(config) == pytest.approx(MADE_UP.seconds(config), rel=1e-4)


def test_equal_records_give_equal_files(tmp_path: Path) -> None:
    save_space(MADE_UP, tmp_path / "a")
    save_space(load_space(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema"), ({"rows": []}, "outcomes do not fit"), ({"failures": {}}, "cannot read"),
        ({"knobs": [["Odd", "a", [1], 1]]}, "cannot read"), ({"seconds": None}, "cannot read"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_space(MADE_UP, tmp_path / "a")
    with pytest.raises(LogError, match=message):
        load_space(rewritten(tmp_path / "a", **changes))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    save_space(MADE_UP, tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-40])
    with pytest.raises(LogError, match="cannot read"):
        load_space(tmp_path / "a")


# The shipped records


def test_enough_tasks_are_recorded_in_little_room() -> None:
    assert len(large_spaces()) >= 12
    assert len({s.provider for s in shipped_spaces()}) >= 8
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 1 << 20


@pytest.mark.parametrize("recorded", shipped_spaces(), ids=lambda r: r.name)
def test_a_shipped_record_is_whole(recorded: RecordedSpace) -> None:
    listed = recorded.space.listed or ()
    assert len({config_key(c) for c in listed}) == len(listed) == len(recorded.outcomes)
    assert recorded.space.first and all(map(recorded.space.valid, recorded.space.first))
    assert isfinite(recorded.seconds(recorded.space.default()))
    assert all(set(k.values) == {c[k.name] for c in listed} for k in recorded.space.knobs)
    assert float(str(facts(recorded)["median"])) > 1.05


def test_records_need_no_kernels() -> None:
    code = (
        "import sys; from pathlib import Path; from wpk.search.recorded import load_spaces;"
        "assert load_spaces(Path(sys.argv[1]));"
        "sys.exit(any(m.startswith(('wpk.kernels', 'wpk.dsl', 'wpk.providers')) for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(FOLDER)], check=True)


# Replays


def test_a_replay_answers_what_was_recorded() -> None:
    replayer, (provider,) = Replayer([MADE_UP]), providers_of([MADE_UP])
    configs = list(MADE_UP.space.enumerate())
    found = list(replayer.measure_each(MADE_UP.workload, provider, configs))
    assert [m.time for m in found] == [MADE_UP.seconds(c) for c in configs]
    assert {m.failure for m in found} == {None, "crash"}
    assert replayer.measured == len(configs)
    with pytest.raises(KeyError):
        list(replayer.measure_each(MADE_UP.workload, provider, [{**configs[0], "tile": 5}]))


def proposals(name: str, recorded: RecordedSpace, seed: int, trials: int = 60) -> list[str]:
    """What a strategy asks for, in order."""
    strategy, asked = make_strategy(name, recorded.space, seed), list[Config]()
    while len(asked) < trials and (batch := strategy.ask(8)):
        strategy.tell(recorded.tell(batch))
        asked += batch
    return [config_key(c) for c in asked]


@pytest.mark.parametrize("name", ["genetic", "random"])
def test_a_seed_decides_all_proposals(name: str) -> None:
    recorded = large_spaces()[0]
    once = proposals(name, recorded, 7)
    assert once == proposals(name, recorded, 7)
    assert len(set(once)) == len(once)
    assert once != proposals(name, recorded, 8)


def tuned_on_records(log: Path) -> str:
    """Tune small tasks and large ones from records, by a clock that moves with the measurements: the log, and what is chosen."""
    spaces = [MADE_UP, made_up(16), *shipped_spaces()[:3]]
    providers, replayer = providers_of(spaces), Replayer(spaces)
    tasks = [Task(s.workload, (s.name,)) for s in spaces]
    options = TuneOptions(trials=40, seed=5, strategy="genetic")
    clock = Clock(lambda: 0.05 * replayer.measured, lambda: "2026-01-01T00:00:00Z")
    tuned = tune(tasks, providers, replayer, TuningLog(log), versions_of(providers, "cc 12"), options, clock=clock)
    best = [(n, config_key(c), m.time) for t in tasks for n, c, m in tuned.results.best(t.workload)]
    return log.read_text() + json.dumps(best)


def test_tuning_repeats_byte_for_byte_in_another_process(tmp_path: Path) -> None:
    here = tuned_on_records(tmp_path / "a.jsonl")
    assert len(here.splitlines()) > 150
    code = (
        "import sys; from pathlib import Path; from test_search_recorded import tuned_on_records;"
        "sys.stdout.write(tuned_on_records(Path(sys.argv[1])))"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(tmp_path / "b.jsonl")]
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert there.stdout == here


# What the genetic strategy is for


def final(name: str, recorded: RecordedSpace, seed: int, trials: int = 100) -> float:
    """Log of the best of ``trials`` over the optimum."""
    strategy, best = make_strategy(name, recorded.space, seed), list[float]()
    while len(best) < trials and (batch := strategy.ask(8)):
        told = recorded.tell(batch[: trials - len(best)])
        strategy.tell(told)
        best += [s for _, s in told]
    return log(min(best) / recorded.optimum)


def test_genetic_search_on_the_shipped_records() -> None:
    tasks = [cold(t) for t in large_spaces()]
    ours = exp(mean(final("genetic", t, seed) for t in tasks for seed in range(3)))
    blind = exp(mean(final("random", t, seed) for t in tasks for seed in range(3)))
    assert ours <= 1.06
    assert ours - 1 < 0.6 * (blind - 1)
