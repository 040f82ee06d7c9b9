"""Where tuning ends: at the budget, where nothing is to be gained, at the machine's roof; and how well it foresees that."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import pytest
from tuning_fakes import LIB, VERSIONS, Sim, SimMeasurer, workload

from wpk.settings import effort, parse_budget
from wpk.tuning.clock import Clock
from wpk.tuning.events import Ended, Event, Forecast
from wpk.tuning.forecast import Open, at_the_roof, seconds_left, total_seconds, worth_more
from wpk.tuning.log import TuningLog
from wpk.tuning.tasks import Task
from wpk.tuning.tuner import Tuned, TuneOptions, tune

TASKS = [Task(workload(8), ("a", "b")), Task(workload(16), ("c",)), Task(workload(32), ("d",))]
OPTIONS = TuneOptions(trials=120, batch=6, strategy="auto")


@dataclass
class Watched:
    """A run on a clock that each measurement moves by ``step`` seconds; remembers what was foreseen when."""

    step: Callable[[int], float] = lambda i: 0.1
    now: float = 0.0
    count: int = 0
    foreseen: list[tuple[float, float]] = field(default_factory=list)
    end: float = 0.0

    def tick(self) -> None:
        self.count += 1
        self.now += self.step(self.count)

    def on(self, event: Event) -> None:
        if isinstance(event, Forecast):
            self.foreseen.append((self.now, event.left))
        elif isinstance(event, Ended):
            self.end = event.seconds

    def run(self, options: TuneOptions, roofs: dict[str, float] | None = None) -> tuple[Tuned, Counter[str]]:
        measurer = SimMeasurer(before=self.tick)
        clock = Clock(now=lambda: self.now)
        tuned = tune(TASKS, (Sim(), LIB), measurer, TuningLog(None), VERSIONS, options, self, None, clock, roofs)
        return tuned, Counter(key for key, _, _ in measurer.asked)


def test_a_search_ends_where_nothing_is_to_be_gained() -> None:
    tuned, tried = Watched().run(OPTIONS)
    assert tuned.why == "done" and max(tried.values()) < 120
    for task in TASKS:
        size = task.workload.inputs[0].shape[1]
        assert tuned.results.best(task.workload)[0][2].time < 14e-6 * size, "near the valley's bottom"
    eager, _ = Watched().run(replace(OPTIONS, noise=1e-9))
    assert eager.measured > tuned.measured


def test_a_task_at_the_roof_is_not_searched() -> None:
    heavy = workload(32)
    _, tried = Watched().run(OPTIONS, {heavy.key: 39e-6 * 32})
    _, free = Watched().run(OPTIONS)
    assert tried[heavy.key] <= 8 < free[heavy.key]


@pytest.mark.parametrize("budget", [8.0, 12.0, None])
@pytest.mark.parametrize("step", [lambda i: 0.1, lambda i: 0.05 + 0.1 * (i % 2)], ids=["steady", "uneven"])
def test_the_end_is_foreseen_after_a_quarter(budget: float | None, step: Callable[[int], float]) -> None:
    watched = Watched(step)
    watched.run(replace(OPTIONS, budget=budget, strategy="genetic"))
    later = [(now, left) for now, left in watched.foreseen if now >= watched.end / 4]
    assert later and all(abs(now + left - watched.end) <= 0.2 * watched.end for now, left in later)


def test_no_budget_at_all() -> None:
    assert parse_budget("none") == inf
    tuned, tried = Watched().run(replace(OPTIONS, budget=inf, trials=12))
    assert tuned.why == "done" and set(tried.values()) == {12}


def test_effort_levels_configure_the_learner() -> None:
    levels = [effort(name) for name in ("quick", "normal", "thorough")]
    assert [level.strategy for level in levels] == ["auto"] * 3
    assert levels[0].rl.rounds < levels[1].rl.rounds < levels[2].rl.rounds
    assert levels[1].rl == type(levels[1].rl)(), "the defaults are those of normal"


def test_total_counts_each_node_once_by_its_best_task() -> None:
    tasks = [Task(workload(8), ("a", "b")), Task(workload(8, "NCHW16c"), ("a", "b")), Task(workload(16), ("c",))]
    assert total_seconds(tasks, [2.0, 1.0, 5.0]) == 1 + 1 + 5
    assert total_seconds(tasks, [2.0, inf, inf]) == 4


def test_worth_more_and_roof() -> None:
    task = Task(workload(8), ("a", "b"))
    assert worth_more(0.1, task, 1.0, 10.0, 0.01) and not worth_more(0.01, task, 1.0, 10.0, 0.01)
    assert worth_more(inf, task, 1.0, 10.0, 0.01) and worth_more(0.0, task, inf, 10.0, 0.01), "unknown: go on"
    assert at_the_roof(task, 1.04, {task.workload.key: 1.0}, 0.05) and not at_the_roof(task, 1.06, {task.workload.key: 1.0}, 0.05)
    assert not at_the_roof(task, 1.0, {}, 0.05)


def test_seconds_left_learns_from_the_tasks_that_ended() -> None:
    tasks = [Open(20, 100, 0.1), Open(60, 100, 0.2)]
    assert seconds_left(tasks, [30]) == pytest.approx(80 * 0.1 + 40 * 0.2)
    assert seconds_left(tasks, [30, 40, 50]) == pytest.approx(20 * 0.1)
