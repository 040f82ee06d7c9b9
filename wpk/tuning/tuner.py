"""Tuning: tasks × providers → measurements in the log, within a wall-clock budget, best tasks first.

First every task gets its library baselines and the defaults of each generated provider; then batches go to whichever arm
(task, provider) promises most (:mod:`wpk.tuning.scheduler`); last, rivals within the tie margin are re-timed in turns. What
the log holds is not measured again. Stopping at any moment, Ctrl-C too, leaves the best so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import inf, isfinite
from typing import Protocol

from threadpoolctl import ThreadpoolController

from wpk.core.result import Config, Measurement, config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.providers.protocol import Provider
from wpk.search.cost_model import HOW_TO_INSTALL, available
from wpk.search.policy import shipped_policy
from wpk.search.strategy import SCREENED, Context, Learner, Strategy, make_strategy
from wpk.tuning.arm import Arm, finalists, patience, rivals, work
from wpk.tuning.clock import Clock
from wpk.tuning.events import Began, Ended, Event, Forecast, Measured, Note, Observer, Phase
from wpk.tuning.experience import Experience, distance
from wpk.tuning.flight import Batch, Flight
from wpk.tuning.forecast import Open, at_the_roof, seconds_left, total_seconds, worth_more
from wpk.tuning.log import TuningLog
from wpk.tuning.options import TuneOptions as TuneOptions
from wpk.tuning.record import Record, Versions, is_library
from wpk.tuning.results import ResultTable
from wpk.tuning.scheduler import promise
from wpk.tuning.screening import screening, shipped_cost_model
from wpk.tuning.tasks import Task


class Measures(Protocol):
    """What the tuner needs of :class:`wpk.measure.measurer.Measurer`.

    One that measures on several devices has an attribute ``slots``, their number now, and begins when ``measure_each`` is called.
    """

    target: Target

    def measure_each(
        self, workload: Workload, provider: Provider, configs: Sequence[Config], limit: float | None = None
    ) -> Iterator[Measurement]:
        """Measurements of configs, in order."""
        ...

    def measure_again(
        self, workload: Workload, candidates: Sequence[tuple[Provider, Config]], rounds: int = 5
    ) -> list[Measurement]:
        """Measurements of rivals, timed in turns."""
        ...


@dataclass(frozen=True)
class Tuned:
    """The results that hold, how many were measured and how many taken from the log, and why it ended (see Ended).

    ``searching``: seconds in which the strategies made proposals and learned, and nothing was measured.
    """

    results: ResultTable
    measured: int
    reused: int
    why: str
    searching: float = 0.0


def tune(
    tasks: Sequence[Task],
    providers: Sequence[Provider],
    measurer: Measures,
    log: TuningLog,
    versions: Versions,
    options: TuneOptions | None = None,
    observer: Observer | None = None,
    experience: Experience | None = None,
    clock: Clock | None = None,
    roofs: Mapping[str, float] | None = None,
) -> Tuned:
    """Tune ``tasks``, trying first what ``experience`` recommends. ``roofs``: by workload key, the least seconds possible.

    Every result is appended to ``log`` when it is known. Raises StorageError, LogError, InternalError."""
    return _Tuner(
        tasks, providers, measurer, log, versions, options or TuneOptions(), observer, experience, clock or Clock(), roofs or {},
    ).run()


class _Tuner:
    def __init__(
        self, tasks: Sequence[Task], providers: Sequence[Provider], measurer: Measures, log: TuningLog, versions: Versions,
        options: TuneOptions, observer: Observer | None, experience: Experience | None, clock: Clock,
        roofs: Mapping[str, float],
    ) -> None:  # fmt: skip
        self._experience = experience or Experience()
        self._tasks, self._providers, self._measurer, self._log = tasks, providers, measurer, log
        self._versions, self._options, self._observer = versions, options, observer
        self._clock, self._roofs = clock, roofs
        self._start = self._finished = clock.now()
        self._table = ResultTable()
        self._best = [inf] * len(tasks)
        self._trials = [0] * len(tasks)
        self._measured = self._reused = 0
        self._searching, self._libraries = 0.0, ThreadpoolController()
        self._rivals = rivals(tasks)
        self._arms: list[Arm] = []
        self._flight: Flight[Arm] = Flight()

    def run(self) -> Tuned:
        """All phases; then the seal."""
        why = "interrupted"
        try:
            self._tell(Began(self._tasks, self._options.budget, self._options.trials * len(self._tasks)))
            if self._options.screen is not None and not available():
                self._tell(Note(f"{HOW_TO_INSTALL}; kernels are screened by an estimate alone"))
            self._arms = [a for i, t in enumerate(self._tasks) for a in self._arms_of(i, t)]
            self._recall()
            why = self._phases()
        except KeyboardInterrupt:
            pass
        finally:
            self._flight.drop()
        self._log.seal(t.workload for t in self._tasks)
        self._tell(Ended(self._clock.now() - self._start, why))
        return Tuned(self._table, self._measured, self._reused, why, self._searching)

    def _phases(self) -> str:
        self._tell(Phase("baselines"))
        done = self._baselines()
        self._tell(Phase("search"))
        done = done and self._search()
        self._tell(Phase("finals"))
        done = self._finals() and done
        return "done" if done else "budget"

    # What there is

    def _arms_of(self, index: int, task: Task) -> Iterator[Arm]:
        target = self._measurer.target
        for provider in self._providers:
            if provider.supports(task.workload, target):
                space = provider.space(task.workload, target)
                # the first valid config in order may be far away where constraints are tight
                if any(map(space.valid, space.first)) or next(space.enumerate(), None) is not None:
                    yield Arm(index, provider, space)

    def _recall(self) -> None:
        """Take in what the log holds of these tasks."""
        arms = {(self._tasks[a.task].workload.key, a.provider.name): a for a in self._arms}
        for task in self._tasks:
            for record in self._log.holding(task.workload, self._measurer.target, self._versions):
                arm = arms.get((record.workload.key, record.provider))
                if arm is not None:
                    self._take(arm, record, reused=True)
                    arm.progress.add(
                        1, record.measurement.time, record.measurement.build_s + record.measurement.measure_s
                    )

    # Phases: each returns True when it did all it wanted, False when time ran out

    def _baselines(self) -> bool:
        """One config of every arm that may well win, then their other first ones, then one of each arm left while time allows.

        The tasks with most work first. Arms that prove to be far behind get no second config here.
        """
        arms = sorted(self._arms, key=lambda a: -work(self._tasks[a.task]))
        likely = [a for a in arms if self._likely(a)]
        rest = [a for a in arms if a not in likely]
        for group, stop, reserve in (
            (likely, 1, 0.0),
            (likely, None, 0.45),
            (rest, 1, 0.6),
            (rest, None, 0.75),
        ):
            for arm in group:
                if self._late(max(reserve, self._options.reserve)):
                    break
                if stop or arm.progress.best <= patience(arm, self._options.rival) * self._to_beat(arm.task):
                    wanted = [c for c in self._first_configs(arm)[:stop] if config_key(c) not in arm.known]
                    self._begin(arm, wanted)
                    while self._flight.full(self._slots):
                        self._finish(self._flight.oldest())
            while self._flight:
                self._finish(self._flight.oldest())
        return not self._late(self._options.reserve)

    def _likely(self, arm: Arm) -> bool:
        rivals = [self._tasks[i].workload for i in self._rivals[arm.task]]
        return self._experience.likely(self._tasks[arm.task].workload, arm.provider.name, rivals)

    def _first_configs(self, arm: Arm) -> list[Config]:
        if is_library(arm.provider.name):
            found = [arm.space.default(), *islice(arm.space.enumerate(), self._options.library_configs)]
            return list({config_key(c): c for c in found}.values())[: self._options.library_configs]
        known = self._experience.configs(self._tasks[arm.task].workload, arm.provider.name)
        first = [c for c in (*known, *arm.space.first, arm.space.default()) if arm.space.valid(c)]
        return list({config_key(c): c for c in first}.values())[: max(self._options.batch // 2, 1)]

    def _search(self) -> bool:
        while not self._late(self._options.reserve):
            while not self._flight.full(self._slots) and (arm := self._next_arm()) is not None:
                with self._thinking():
                    asked = self._strategy(arm).ask(self._batch(arm))
                arm.exhausted = not asked
                self._begin(arm, asked)
            if not self._flight:
                return True
            batch = self._flight.oldest()
            results = self._finish(batch)
            with self._thinking():
                self._learn(batch.arm, results)
            self._tell(Forecast(self._forecast()))
        self._flight.drop()
        return False

    def _batch(self, arm: Arm) -> int:
        """How many to ask for: fewer of what is slow to measure, so that the budget is kept."""
        affordable = max(int(self._options.batch_seconds / max(arm.progress.cost, 1e-3)), 1)
        return min(self._options.batch, affordable, self._left(arm.task))

    def _left(self, task: int) -> int:
        """Trials that a task still has, those under way not counted."""
        arms = [a for a in self._arms if a.task == task]
        return self._options.trials - self._trials[task] - self._flight.configs(*arms)

    @property
    def _slots(self) -> int:
        return int(getattr(self._measurer, "slots", 1))

    def _next_arm(self) -> Arm | None:
        """The most promising arm that may still be searched; one that has batches under way promises less."""
        open_arms = [
            a for a in self._arms
            if self._open(a) and self._left(a.task) > 0
        ]  # fmt: skip
        return max(open_arms, key=self._promise, default=None)

    def _open(self, arm: Arm) -> bool:
        """Whether more search of an arm may pay."""
        task = self._tasks[arm.task]
        if arm.exhausted or arm.settled or is_library(arm.provider.name):
            return False
        return not at_the_roof(task, self._best[arm.task], self._roofs, self._options.roof)

    def _learn(self, arm: Arm, results: Sequence[tuple[Config, Measurement]]) -> None:
        """Tell the strategy, and ask it whether to go on."""
        strategy = self._strategy(arm)
        if isinstance(strategy, Learner):
            strategy.tell_failures([(c, m.failure) for c, m in results if m.failure is not None])
        strategy.tell([(c, m.time) for c, m in results])
        if arm.screen is not None:
            arm.screen.tell([(c, m.time) for c, m in results])
        if isinstance(strategy, Learner):
            to_beat, total = self._to_beat(arm.task), total_seconds(self._tasks, self._best)
            gain = strategy.expected_gain(to_beat) * self._options.batch
            threshold = self._options.noise / len(self._tasks)
            arm.settled = not worth_more(gain, self._tasks[arm.task], to_beat, total, threshold)

    def _forecast(self) -> float:
        """Seconds left: what the open tasks will take, and the finals; no more than the budget."""
        arms: dict[int, Arm] = {a.task: a for a in self._arms if self._open(a) and self._left(a.task) > 0}
        tasks = [Open(self._trials[i], self._options.trials, a.progress.cost) for i, a in arms.items()]
        ended = [self._trials[i] for i in {a.task for a in self._arms if a.settled} - arms.keys()]
        left = seconds_left(tasks, ended) / (1 - self._options.reserve)
        budget = inf if self._options.budget is None else self._options.budget
        return max(min(left, budget - (self._clock.now() - self._start)), 0.0)

    def _promise(self, arm: Arm) -> float:
        rival = min((self._best[i] for i in self._rivals[arm.task]), default=inf)
        hope = promise(arm.progress, self._best[arm.task], rival, self._tasks[arm.task].weight)
        return hope / (1 + self._flight.configs(arm))

    def _to_beat(self, task: int) -> float:
        """The best of a task and of its rivals: what takes far longer will not be chosen."""
        return min(self._best[i] for i in (task, *self._rivals[task]))

    def _finals(self) -> bool:
        """Rivals in turns, where the choice matters most first."""
        order = sorted(range(len(self._tasks)), key=lambda i: -self._tasks[i].weight * _finite(self._best[i]))
        slots, pool = self._slots, ThreadPoolExecutor(self._slots)
        try:
            while order:
                if self._late(0.0):
                    return False
                rivals = [(i, r) for i in order[:slots] if (r := self._to_time_again(i))]
                order = order[slots:]
                again = pool.map if len(rivals) > 1 else map
                for (index, pairs), found in zip(rivals, again(self._again, rivals), strict=True):
                    self._take_finals(index, pairs, found)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return True

    def _to_time_again(self, index: int) -> list[tuple[Provider, Config]]:
        """The rivals of a task, if there is a choice to be made and time to make it well."""
        task, providers = self._tasks[index], {p.name: p for p in self._providers}
        best = finalists(self._table, task.workload, self._options)
        if len(best) < 2 or all(r.stage == "final" for r in best):
            return []
        if self._late_by(sum(r.measurement.build_s + r.measurement.measure_s for r in best)):
            return []
        return [(providers[r.provider], r.config) for r in best]

    def _again(self, rivals: tuple[int, list[tuple[Provider, Config]]]) -> list[Measurement]:
        return self._measurer.measure_again(self._tasks[rivals[0]].workload, rivals[1])

    def _take_finals(
        self, index: int, candidates: Sequence[tuple[Provider, Config]], found: Sequence[Measurement]
    ) -> None:
        arms = {a.provider.name: a for a in self._arms if a.task == index}
        for (provider, config), measurement in zip(candidates, found, strict=True):
            if (
                measurement.ok
            ):  # else the earlier result stands: what failed here may be the worker, not the candidate
                self._take(
                    arms[provider.name], self._record(arms[provider.name], config, measurement, "final")
                )

    # One step

    @contextmanager
    def _thinking(self) -> Iterator[None]:
        """Count the time; on one thread, because matrices are small and idle threads of the library would disturb timings."""
        begun = self._clock.now()
        with self._libraries.limit(limits=1):
            yield
        self._searching += self._clock.now() - begun

    def _strategy(self, arm: Arm) -> Strategy:
        """The arm's strategy, told what is known; it starts from good configs of similar tasks."""
        if arm.strategy is None:
            first = self._hints(arm)
            workload, target, options = self._tasks[arm.task].workload, self._measurer.target, self._options
            if options.strategy in SCREENED:
                arm.screen = screening(arm.provider, workload, target, options.screen, shipped_cost_model())
            context = Context(workload, target, shipped_policy(), arm.screen, options.trials, options.rl)
            arm.strategy = make_strategy(options.strategy, arm.space, options.seed, first, context)
            known = self._table.records(workload)
            told = [(r.config, r.measurement.time) for r in known if r.provider == arm.provider.name]
            arm.strategy.tell(told)
            if arm.screen is not None:
                arm.screen.tell(told)
        return arm.strategy

    def _hints(self, arm: Arm) -> list[Config]:
        """The best configs of the provider on other tasks of the same op, those of the most similar size first."""
        mine = self._tasks[arm.task].workload
        others = [w for w in self._table.workloads() if w.op == mine.op and w != mine]
        others.sort(key=lambda w: (distance(w, mine), w.key))
        ranked = (self._table.ranked(w, arm.provider.name)[:1] for w in others[:6])
        known = self._experience.configs(mine, arm.provider.name)
        return [*known, *(config for rows in ranked for _, config, _ in rows)]

    def _begin(self, arm: Arm, configs: Sequence[Config]) -> None:
        """Ask for measurements of configs."""
        if not configs:
            return
        best, begun = self._to_beat(arm.task), self._clock.now()
        limit = best if isfinite(best) else None
        workload = self._tasks[arm.task].workload
        measurements = self._measurer.measure_each(workload, arm.provider, configs, limit)
        self._flight.add(Batch(arm, configs, measurements, begun))

    def _finish(self, batch: Batch[Arm]) -> list[tuple[Config, Measurement]]:
        """Log and take in what was measured, one after the other, until the budget is over."""
        results = []
        try:
            for config, measurement in zip(batch.configs, batch.measurements, strict=False):
                self._take(batch.arm, self._record(batch.arm, config, measurement, "search"))
                results.append((config, measurement))
                if self._late(0.0):
                    break
        finally:
            batch.drop()
        since, self._finished = max(batch.begun, self._finished), self._clock.now()
        batch.arm.progress.add(len(results), min(m.time for _, m in results), self._finished - since)
        return results

    def _record(self, arm: Arm, config: Config, measurement: Measurement, stage: str) -> Record:
        compiler = "" if is_library(arm.provider.name) else self._versions.compiler
        return self._log.append(
            Record(
                self._tasks[arm.task].workload, arm.provider.name, arm.provider.version, config,
                self._measurer.target.fingerprint, compiler, self._versions.generator, self._options.seed, measurement, stage,
                time=self._clock.stamp(),
            )
        )  # fmt: skip

    def _take(self, arm: Arm, record: Record, reused: bool = False) -> None:
        self._table.add(record)
        if config_key(record.config) not in arm.known:
            arm.known[config_key(record.config)] = record.config
            self._trials[arm.task] += 1
        seconds = record.measurement.time
        improved = seconds < self._best[arm.task]
        self._best[arm.task] = min(self._best[arm.task], seconds)
        arm.progress.best = min(arm.progress.best, seconds)
        self._reused += reused
        self._measured += not reused
        self._tell(
            Measured(
                self._tasks[arm.task], record.provider, record.config, record.measurement, improved, reused
            )
        )

    def _late_by(self, seconds: float) -> bool:
        """True when something that takes ``seconds`` would end after the budget."""
        budget = self._options.budget
        return budget is not None and self._clock.now() - self._start + seconds >= budget

    def _late(self, reserve: float) -> bool:
        budget = self._options.budget
        return budget is not None and self._clock.now() - self._start >= budget * (1 - reserve)

    def _tell(self, event: Event) -> None:
        if self._observer is not None:
            self._observer.on(event)


def versions_of(providers: Sequence[Provider], compiler: str, generator: str = "") -> Versions:
    """The versions in force."""
    return Versions(compiler, {p.name: p.version for p in providers}, generator)


def _finite(seconds: float) -> float:
    return seconds if isfinite(seconds) else 0.0
