"""Does the search work? Strategies against each other and the untuned default, on the tasks of a model, by real measuring.

    python -m benchmarks.search --model resnet50 --tasks 8 --trials 200 --seeds 5 --json benchmarks/results/search.json

Every strategy and seed searches each task alone, with the same number of measurements. A config is measured once and kept in
--log, whoever asks for it, so a second run resumes and all see the same times. The winners of all runs and the default are
then timed in turns, and only those times are compared. --budget ends a run early; --lock FILE holds that lock while timing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, inf, isfinite, log
from pathlib import Path
from statistics import mean
from time import monotonic

import matplotlib
import numpy as np

from benchmarks import zoo
from wpk import api
from wpk.core.result import Config, Measurement, config_key
from wpk.core.tensor import channel_block
from wpk.measure.measurer import Measurer, cpu_measurer
from wpk.planner.demand import wanted
from wpk.providers.protocol import Provider
from wpk.search.space import Space
from wpk.search.strategy import make_strategy
from wpk.tuning.log import TuningLog
from wpk.tuning.record import Record, Versions, is_library, stale_reason
from wpk.tuning.tasks import Task, tasks_of

matplotlib.use("Agg")

DEFAULT = "default"
_BATCH = 8
_RESAMPLES = 2000
#: Assignments, before constraints, that make a space worth searching.
_LARGE = 1000


class OutOfTime(Exception):
    """The budget is over; what was measured is in the log."""


@dataclass(frozen=True)
class Subject:
    """A task, the provider whose configs are searched, and its space."""

    task: Task
    provider: Provider
    space: Space


@dataclass
class Outcome:
    """Of one task: best seconds after each measurement by strategy and seed, re-timed winners, and the default's seconds."""

    task: str
    provider: str
    configs: int
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    winners: dict[str, list[float]] = field(default_factory=dict)
    default: float = inf


class Bench:
    """Measures with a memory: the log."""

    def __init__(self, shop: api.Shop, measurer: Measurer, log_file: TuningLog, lock: Path | None, deadline: float) -> None:
        self._shop, self._measurer, self._log, self._lock, self._deadline = shop, measurer, log_file, lock, deadline
        self._versions: Versions = shop.versions
        self.measured = 0
        self.seconds = 0.0

    def times(self, subject: Subject, configs: Sequence[Config]) -> list[float]:
        """Seconds of configs, measured unless the log holds them. Raises OutOfTime."""
        known = {config_key(c): self._known(subject, c, "search") for c in configs}
        missing = [c for c in configs if known[config_key(c)] is None]
        if missing:
            found = self._measure(subject, missing)
            known.update({config_key(c): m.time for c, m in zip(missing, found, strict=True)})
        return [inf if (seconds := known[config_key(c)]) is None else seconds for c in configs]

    def again(self, subject: Subject, configs: Sequence[Config], rounds: int) -> list[float]:
        """Seconds of configs timed in turns. Raises OutOfTime."""
        known = [self._known(subject, c, "final") for c in configs]
        if None in known:
            with self._alone():
                pairs = [(subject.provider, c) for c in configs]
                found = self._measurer.measure_again(subject.task.workload, pairs, rounds)
            known = [m.time for m in found]
            for config, measurement in zip(configs, found, strict=True):
                self._append(subject, config, measurement, "final")
        return [inf if seconds is None else seconds for seconds in known]

    def _known(self, subject: Subject, config: Config, stage: str) -> float | None:
        for record in reversed(self._log.of(subject.task.workload)):
            same = record.provider == subject.provider.name and record.config == config and record.stage == stage
            if same and stale_reason(record, self._shop.target, self._versions) is None:
                return record.measurement.time
        return None

    def _measure(self, subject: Subject, configs: Sequence[Config]) -> list[Measurement]:
        best = self._log.best(subject.task.workload, self._shop.target, self._versions, subject.provider.name)
        limit = best.measurement.time if best is not None else None
        with self._alone():
            begun = monotonic()
            found = self._measurer.measure(subject.task.workload, subject.provider, configs, limit)
            self.seconds += monotonic() - begun
        self.measured += len(found)
        for config, measurement in zip(configs, found, strict=True):
            self._append(subject, config, measurement, "search")
        return found

    def _append(self, subject: Subject, config: Config, measurement: Measurement, stage: str) -> None:
        self._log.append(
            Record(
                subject.task.workload, subject.provider.name, subject.provider.version, config, self._shop.target.fingerprint,
                self._versions.compiler, self._versions.generator, 0, measurement, stage,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if monotonic() > self._deadline:
            raise OutOfTime
        with contextlib.ExitStack() as stack:
            if self._lock is not None:
                fcntl.flock(stack.enter_context(self._lock.open("a")), fcntl.LOCK_EX)
            yield


def search(bench: Bench, subject: Subject, strategy: str, seed: int, trials: int) -> tuple[list[float], Config]:
    """Best seconds after each measurement, and the best config."""
    agent = make_strategy(strategy, subject.space, seed)
    best, winner = inf, subject.space.default()
    curve: list[float] = []
    while len(curve) < trials and (asked := agent.ask(min(_BATCH, trials - len(curve)))):
        seconds = bench.times(subject, asked)
        agent.tell(list(zip(asked, seconds, strict=True)))
        for config, time in zip(asked, seconds, strict=True):
            best, winner = (time, config) if time < best else (best, winner)
            curve.append(best)
    return curve + [best] * (trials - len(curve)), winner


def examine(bench: Bench, subject: Subject, strategies: Sequence[str], seeds: int, trials: int, rounds: int) -> Outcome:
    """All strategies and seeds on one task, then the winners in turns."""
    outcome = Outcome(subject.task.name, subject.provider.name, subject.space.size(20_000))
    winners: dict[str, list[Config]] = {}
    for name in strategies:
        runs = [search(bench, subject, name, seed, trials) for seed in range(seeds)]
        outcome.curves[name] = [curve for curve, _ in runs]
        winners[name] = [winner for _, winner in runs]
    default = subject.space.default()
    unique = list({config_key(c): c for c in (default, *(c for some in winners.values() for c in some))}.values())
    again = dict(zip(map(config_key, unique), bench.again(subject, unique, rounds), strict=True))
    outcome.winners = {name: [again[config_key(c)] for c in some] for name, some in winners.items()}
    outcome.default = again[config_key(default)]
    return outcome


def advantage(outcomes: Sequence[Outcome], better: str, worse: str) -> np.ndarray:
    """log(seconds of ``worse`` / seconds of ``better``), (tasks, seeds); ``worse`` may be the default."""
    rows = []
    for o in outcomes:
        rivals = [o.default] * len(o.winners[better]) if worse == DEFAULT else o.winners[worse]
        rows.append([log(r / b) if isfinite(r) and isfinite(b) else 0.0 for b, r in zip(o.winners[better], rivals, strict=True)])
    return np.array(rows)


def interval(logs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Geometric mean ratio and its 95% interval by resampling tasks and seeds."""
    rng = np.random.default_rng(seed)
    tasks, seeds = logs.shape
    means = [
        logs[np.ix_(rng.integers(0, tasks, tasks), rng.integers(0, seeds, seeds))].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def summary(outcomes: Sequence[Outcome], strategies: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Every strategy over the default, and each over those named after it: ratio, low, high."""
    pairs = [(a, DEFAULT) for a in strategies]
    pairs += [(a, b) for i, a in enumerate(strategies) for b in strategies[i + 1 :]]
    return {f"{a} over {b}": interval(advantage(outcomes, a, b)) for a, b in pairs}


def figure(outcomes: Sequence[Outcome], strategies: Sequence[str], path: Path) -> None:
    """Speed against the best known config of each task, geometric mean over tasks, by number of measurements."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in strategies:
        curves = np.array([_relative(o, name) for o in outcomes])  # (tasks, seeds, trials)
        speed = np.exp(curves.mean(axis=0))
        steps = np.arange(1, speed.shape[1] + 1)
        line = axes.plot(steps, speed.mean(axis=0), label=name)[0]
        axes.fill_between(steps, speed.min(axis=0), speed.max(axis=0), alpha=0.2, color=line.get_color(), linewidth=0)
    axes.axhline(exp(mean(log(_best(o) / _first(o)) for o in outcomes)), color="grey", linestyle=":", label="first config")
    axes.set(xlabel="measurements", ylabel="speed relative to the best known", title=f"{len(outcomes)} tasks, band over seeds")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _best(outcome: Outcome) -> float:
    return min(curve[-1] for curves in outcome.curves.values() for curve in curves)


def _first(outcome: Outcome) -> float:
    first = next(iter(outcome.curves.values()))[0]
    return next(s for s in first if isfinite(s))


def _relative(outcome: Outcome, strategy: str) -> list[list[float]]:
    best, worst = _best(outcome), _first(outcome)
    return [[log(best / (s if isfinite(s) else worst)) for s in curve] for curve in outcome.curves[strategy]]


def subjects(model: Path, shop: api.Shop, count: int, only: str | None) -> list[Subject]:
    """The model's tasks with a large space, those of most work first; of a node's layouts and providers only one."""
    source = api.read_source(model, api.Options(), shop)
    found: dict[tuple[str, ...], Subject] = {}
    for task in tasks_of(wanted(source.graphs[0], shop.target)):
        for one in _candidates(task, shop, only):
            known = found.get(task.nodes)
            if one.space.raw_size > _LARGE and (known is None or _merit(one) > _merit(known)):
                found[task.nodes] = one
    return sorted(found.values(), key=lambda s: -_work(s.task))[: count or None]


def _candidates(task: Task, shop: api.Shop, only: str | None) -> Iterator[Subject]:
    for provider in shop.providers:
        named = provider.name == only if only else not is_library(provider.name)
        if named and provider.supports(task.workload, shop.target):
            yield Subject(task, provider, provider.space(task.workload, shop.target))


def _merit(subject: Subject) -> tuple[bool, int]:
    """Blocked layouts before others, then the larger space."""
    return channel_block(subject.task.workload.outputs[0].layout) > 1, subject.space.raw_size


def _work(task: Task) -> float:
    weights = [t for i, t in enumerate(task.workload.inputs) if i in task.workload.constants]
    size = max((int(np.prod(t.shape)) for t in weights), default=1)
    return float(task.weight * size * np.prod(task.workload.outputs[0].shape))


def document(outcomes: Sequence[Outcome], args: argparse.Namespace, shop: api.Shop, bench: Bench) -> dict[str, object]:
    """What goes into the JSON file."""
    ratios: Mapping[str, tuple[float, float, float]] = summary(outcomes, args.strategies)
    return {
        "model": args.model, "trials": args.trials, "seeds": args.seeds, "machine": platform.processor(),
        "target": shop.target.to_json(), "measured": bench.measured,
        "rate": bench.measured / bench.seconds if bench.seconds else None,
        "ratios": {k: {"geomean": g, "low": lo, "high": hi} for k, (g, lo, hi) in ratios.items()},
        "tasks": [asdict(o) for o in outcomes],
    }  # fmt: skip


def report(outcomes: Sequence[Outcome], args: argparse.Namespace, shop: api.Shop, bench: Bench) -> None:
    """Print the ratios; write JSON and figure."""
    if not outcomes:
        print("no task was finished within the budget; run again to resume")
        return
    for name, (ratio, low, high) in summary(outcomes, args.strategies).items():
        print(f"{name}: {ratio:.3f}x  [{low:.3f}, {high:.3f}]  ({len(outcomes)} tasks, {args.seeds} seeds, {args.trials} trials)")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document(outcomes, args, shop, bench), indent=1) + "\n")
    figure(outcomes, args.strategies, args.json.with_suffix(".png"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="resnet50", help="a zoo model")
    p.add_argument("--tasks", type=int, default=0, help="the tasks of most work; 0: all")
    p.add_argument("--trials", type=int, default=200)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--strategies", type=lambda s: s.split(","), default=["genetic", "random"])
    p.add_argument("--provider", help="only this one, such as generated:conv_direct")
    p.add_argument("--rounds", type=int, default=10, help="turns of the final timing")
    p.add_argument("--threads", type=int, default=None)
    p.add_argument("--budget", type=float, default=inf, help="seconds; what is left is for the next run")
    p.add_argument("--lock", type=Path, help="hold a lock on this file while timing")
    p.add_argument("--zoo", type=Path, default=Path("build/zoo"))
    p.add_argument("--log", type=Path, default=Path("build/search.jsonl"))
    p.add_argument("--json", type=Path, default=Path("benchmarks/results/search.json"))
    return p.parse_args(arguments)


def main() -> None:
    """Run what the command line asks for."""
    args = parse()
    shop = api.open_shop(api.Options(threads=args.threads))
    outcomes: list[Outcome] = []
    with cpu_measurer(shop.target, shop.cache, shop.compiler) as measurer:
        bench = Bench(shop, measurer, TuningLog(args.log), args.lock, monotonic() + args.budget)
        with contextlib.suppress(OutOfTime, KeyboardInterrupt):
            for subject in subjects(zoo.build(args.model, args.zoo), shop, args.tasks, args.provider):
                outcomes.append(examine(bench, subject, args.strategies, args.seeds, args.trials, args.rounds))
                print(f"{subject.task.name}: {_best(outcomes[-1]) * 1e6:.0f} µs, {bench.measured} measured", flush=True)
        report(outcomes, args, shop, bench)


if __name__ == "__main__":
    main()
