"""The tuner on simulated measuring: baselines first, budget to what promises most, nothing measured twice."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from tuning_fakes import LIB, TARGET, VERSIONS, Sim, SimMeasurer, answer, record, workload

from wpk.core.errors import UsageError
from wpk.core.result import Config, config_key
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.report.progress import progress_observer
from wpk.search.space import Space
from wpk.tuning.clock import Clock
from wpk.tuning.events import Began, Ended, Event, Measured, Phase
from wpk.tuning.log import TuningLog, read_log
from wpk.tuning.replay import replay
from wpk.tuning.scheduler import Progress, promise
from wpk.tuning.tasks import Task, extract, extract_variants
from wpk.tuning.tuner import Tuned, TuneOptions, tune, versions_of

TASKS = [Task(workload(8), ("a", "b")), Task(workload(16), ("c",)), Task(workload(32), ("d",))]
OPTIONS = TuneOptions(trials=60, batch=6)
PROVIDERS = (Sim(), LIB)


class Watch:
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        self.events.append(event)


def run(
    log: TuningLog,
    measurer: SimMeasurer,
    options: TuneOptions = OPTIONS,
    tasks: Sequence[Task] = TASKS,
    providers: Sequence[Sim] = PROVIDERS,
    watch: Watch | None = None,
    clock: Clock | None = None,
) -> Tuned:
    return tune(tasks, providers, measurer, log, VERSIONS, options, watch, clock=clock)


def test_a_space_with_a_guess_is_not_searched_for_its_first_config() -> None:
    """Where constraints are tight, the first valid one in order takes minutes to find."""

    class Far(Space):
        def enumerate(self) -> Iterator[Config]:
            raise AssertionError("searched")

    class Guessing(Sim):
        def space(self, workload: Workload, target: Target) -> Space:
            return Far(super().space(workload, target).knobs, first=({"a": 3, "b": 4},))

    found = run(TuningLog(None), SimMeasurer(), TuneOptions(trials=3, strategy="random"), providers=(Guessing(),))
    assert {t.workload for t in TASKS} == set(found.results.workloads())


def test_finds_the_valley_and_logs_everything() -> None:
    log, measurer = TuningLog(None), SimMeasurer()
    tuned = run(log, measurer)
    assert tuned.why == "done"
    for task in TASKS:
        provider, _, measurement = tuned.results.best(task.workload)[0]
        size = task.workload.inputs[0].shape[1]
        assert provider == "generated:sim" and measurement.time < 17e-6 * size
    counts = Counter(key for key, _, _ in measurer.asked)
    assert set(counts.values()) == {60}, "trials a task"
    assert len(set(measurer.asked)) == len(measurer.asked)
    searched = [r for r in log.records if r.stage == "search"]
    assert [r.key for r in searched] == measurer.asked
    assert tuned.measured == len(log.records) and tuned.reused == 0
    assert log.contents.seals


def test_every_task_gets_its_baselines_before_any_search() -> None:
    watch = Watch()
    run(TuningLog(None), SimMeasurer(), watch=watch)
    phases = [i for i, e in enumerate(watch.events) if isinstance(e, Phase)]
    first = [e for e in watch.events[phases[0] : phases[1]] if isinstance(e, Measured)]
    assert {(e.task.workload.key, e.provider) for e in first} == {
        (t.workload.key, p) for t in TASKS for p in ("lib", "generated:sim")
    }
    assert [e.name for e in watch.events if isinstance(e, Phase)] == ["baselines", "search", "finals"]
    assert isinstance(watch.events[0], Began) and isinstance(watch.events[-1], Ended)


def test_resume_measures_nothing_again(tmp_path: Path) -> None:
    run(TuningLog(tmp_path / "log"), SimMeasurer(), replace(OPTIONS, trials=20))
    first = read_log(tmp_path / "log")
    again, watch = SimMeasurer(), Watch()
    tuned = run(TuningLog(tmp_path / "log"), again, replace(OPTIONS, trials=20), watch=watch)
    assert again.asked == [] and again.again == [] and tuned.measured == 0 and tuned.reused == len(first.records)
    assert all(e.reused for e in watch.events if isinstance(e, Measured))
    more = SimMeasurer()
    run(TuningLog(tmp_path / "log"), more, replace(OPTIONS, trials=40))
    held = {r.key for r in first.records}
    assert len(more.asked) == 3 * 20 and not held & set(more.asked)


def test_stale_records_are_measured_again(tmp_path: Path) -> None:
    run(TuningLog(tmp_path / "log"), SimMeasurer(), replace(OPTIONS, trials=10))
    other = SimMeasurer(replace(TARGET, threads=1))
    assert run(TuningLog(tmp_path / "log"), other, replace(OPTIONS, trials=10)).reused == 0 and len(other.asked) == 30


def test_same_seed_same_proposals() -> None:
    one, two, three = SimMeasurer(), SimMeasurer(), SimMeasurer()
    single = [TASKS[0]]
    run(TuningLog(None), one, tasks=single)
    run(TuningLog(None), two, tasks=single)
    run(TuningLog(None), three, replace(OPTIONS, seed=1), tasks=single)
    assert one.asked == two.asked != three.asked


def interrupting(after: int) -> Callable[[], None]:
    left = [after]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return count


@pytest.mark.parametrize("after", [0, 1, 7, 50])
def test_an_interrupt_gives_the_best_so_far(after: int) -> None:
    log, watch = TuningLog(None), Watch()
    tuned = run(log, SimMeasurer(before=interrupting(after)), watch=watch)
    assert tuned.why == "interrupted" and tuned.measured == after == len(log.records)
    assert bool(tuned.results.workloads()) == (after > 0)
    assert watch.events[-1] == Ended(watch.events[-1].seconds, "interrupted")  # type: ignore[union-attr]
    assert replay(TASKS, log.contents, TARGET, VERSIONS).notes == (), "what is there replays"


def test_the_budget_ends_the_run() -> None:
    clock = [0.0]

    def tick() -> None:
        clock[0] += 0.1

    measurer = SimMeasurer(before=tick)
    tuned = run(TuningLog(None), measurer, replace(OPTIONS, budget=5.0, tie=0.5), clock=Clock(lambda: clock[0]))
    assert tuned.why == "budget" and 4.0 <= clock[0] <= 5.1 and len(measurer.asked) in range(40, 52)
    assert measurer.again, "time is kept for the finalists"


def test_finalists_are_timed_in_turns() -> None:
    measurer = SimMeasurer()
    tuned = run(TuningLog(None), measurer, replace(OPTIONS, tie=0.5))
    assert len(measurer.again) == 3 and all(2 <= len(rivals) <= 4 for rivals in measurer.again)
    name, config, measurement = tuned.results.best(TASKS[0].workload)[0]
    assert (name, config_key(config)) == measurer.again[0][0] or measurement.time > 0
    finals = [r for r in tuned.results.records(TASKS[0].workload) if r.stage == "final"]
    assert measurement in [r.measurement for r in finals]


def test_a_slow_provider_gets_fewer_trials_and_heavy_tasks_more() -> None:
    measurer = SimMeasurer()
    options = TuneOptions(budget=None, trials=150, batch=4)
    interrupted = replace(options, seed=3)
    measurer.before = interrupting(240)
    run(TuningLog(None), measurer, interrupted, providers=(Sim(), Sim("generated:slow"), LIB))
    by_provider = Counter(provider for _, provider, _ in measurer.asked)
    by_task = Counter(key for key, _, _ in measurer.asked)
    assert by_provider["generated:sim"] > 2 * by_provider["generated:slow"]
    assert by_task[workload(32).key] > by_task[workload(8).key]


def test_promise() -> None:
    fast = Progress(1e-3, 20, 4.0, [(10, 2e-3), (20, 1e-3)])
    stuck = Progress(1e-3, 100, 20.0, [(60, 1e-3), (70, 1e-3), (80, 1e-3), (90, 1e-3), (100, 1e-3)])
    assert promise(fast, 1e-3, inf, 1) > promise(stuck, 1e-3, inf, 1) > 0
    assert promise(stuck, 1e-3, inf, 5) == pytest.approx(5 * promise(stuck, 1e-3, inf, 1))
    assert promise(stuck, 0.5e-3, inf, 1) < promise(stuck, 1e-3, inf, 1), "another provider leads"
    assert promise(stuck, 1e-3, 0.5e-3, 1) < promise(stuck, 1e-3, inf, 1), "another layout leads"
    failing = [promise(Progress(inf, n, n * 0.2, []), 1e-3, inf, 1) for n in (0, 8, 80)]
    assert failing[0] > failing[1] > failing[2] > 0


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(UsageError, match="annealing"):
        TuneOptions(strategy="annealing")


def test_good_configs_of_similar_tasks_come_first() -> None:
    log = TuningLog(None)
    for a, b in ((11, 5), (1, 1)):
        log.append(record(16, a=a, b=b, time=1e-5 if a == 11 else 1e-3))
    measurer = SimMeasurer()
    tasks = [Task(workload(8), ("a",)), Task(workload(16), ("b",))]
    run(log, measurer, replace(OPTIONS, trials=12), tasks=tasks, providers=(Sim(),))
    mine = [c for key, _, c in measurer.asked if key == workload(8).key]
    assert mine.index("a=11,b=5") < 4


# Tasks


def graph() -> Graph:
    kind = TensorType("float32", (1, 8, 2, 2))
    nodes = (
        Node("n1", "eltwise", ("x",), ("y",)), Node("n2", "eltwise", ("y",), ("z",)), Node("n3", "view", ("z",), ("v",)),
        Node("n4", "onnx", ("v",), ("w",)), Node("n5", "pool", ("w",), ("out",)),
    )  # fmt: skip
    return Graph("g", ("x",), ("out",), nodes, dict.fromkeys(("x", "y", "z", "v", "w", "out"), kind))


def test_tasks_are_unique_workloads_with_their_nodes() -> None:
    tasks = extract(graph())
    assert [(t.workload.op, t.nodes, t.weight) for t in tasks] == [("eltwise", ("n1", "n2"), 2), ("pool", ("n5",), 1)]
    blocked = dict.fromkeys(("x", "y", "z"), "NCHW16c")
    both = extract(graph(), [{}, blocked])
    assert [t.weight for t in both] == [2, 1, 2] and {t.workload.outputs[0].layout for t in both} == {"ROW", "NCHW16c"}
    assert extract_variants(graph(), {"n1": [{}, blocked], "n3": [{}]}) == [
        Task(workload(8), ("n1",)), Task(workload(8, "NCHW16c"), ("n1",)),
    ]  # fmt: skip


def test_versions_of() -> None:
    found = versions_of([Sim(), LIB], "cc 12")
    assert found.providers == {"generated:sim": "1", "lib": "3.1"}


# Progress


def shown(events: list[Event], terminal: bool) -> str:
    from rich.console import Console

    out = io.StringIO()
    observer = progress_observer(Console(file=out, force_terminal=terminal, width=110, color_system=None), every=0.0)
    for event in events:
        observer.on(event)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_tasks_best_baseline_rate(terminal: bool) -> None:
    watch = Watch()
    run(TuningLog(None), SimMeasurer(), replace(OPTIONS, trials=12, budget=100.0), watch=watch)
    text = shown(watch.events, terminal)
    assert "3 tasks" in text and "eltwise d" in text and "36 candidates" in text
    assert "x over libraries" in text or "×" in text


def test_progress_survives_failures_and_interrupts() -> None:
    task = TASKS[0]
    events: list[Event] = [
        Began(TASKS, None, 10), Phase("baselines"), Measured(task, "lib", {}, answer(inf), False),
        Measured(task, "generated:sim", {"a": 1}, answer(1e-3), True), Ended(1.0, "interrupted"),
    ]  # fmt: skip
    assert "interrupted" in shown(events, False)


def test_an_op_with_unlike_shapes_has_hints_too() -> None:
    odd = Workload("eltwise", (), (TensorType("float32", (3,)),))
    tuned = run(TuningLog(None), SimMeasurer(), tasks=[Task(workload(8)), Task(workload(16))], providers=(LIB,))
    assert odd not in tuned.results.workloads() and len(tuned.results.workloads()) == 2
