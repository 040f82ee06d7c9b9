"""Compare search strategies on recorded spaces: every task × strategy × seed, no clock and no noise.

    python -m benchmarks.strategies                             all, 50 seeds: JSON, Markdown and PNG in benchmarks/results/search
    python -m benchmarks.strategies --strategies random,genetic --start nothing --seeds 10

Strategies ask for 8 configs at a time, as the tuner does; TPE (see benchmarks/tpe.py) for one. They start from

    nothing    a random config, the same for all strategies of a seed, so that only the search counts
    transfer   what the shipped logs hold of the most similar other tasks, then the family's first configs
    defaults   the family's first configs, as in a first compile without logs; only where it is asked for

``rl`` and ``auto`` have a policy trained on the other recorded tasks, in five folds; ``rl-cold`` has none. ``auto`` and
``genetic-screened`` look at kernels as the tuner does, with a cost model trained without the task and its relatives. A run's
result is the best time after each measurement, relative to the space's optimum. Runs are kept under build/, by all they rest on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import inf
from pathlib import Path
from random import Random
from time import monotonic

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cost_model import Subject, features_of_space, load, relatives, trained
from benchmarks.strategy_report import Outcome, figure, markdown, summary
from wpk.core.result import config_key
from wpk.search.policy import Policy, load_policy
from wpk.search.prior import Screening
from wpk.search.recorded import SUFFIX, RecordedSpace, load_spaces
from wpk.search.space import Config, Space
from wpk.search.strategy import Context, Strategy, beginning, make_strategy
from wpk.search.train import lessons_of, train_policy
from wpk.tuning.experience import Experience
from wpk.tuning.log import read_log
from wpk.tuning.screening import effort

BATCH = 8
#: In the order of the tables; ``default`` measures nothing but the default.
ALL = ("default", "random", "tpe", "genetic", "genetic-screened", "rl-cold", "rl", "auto")
STARTS = ("nothing", "transfer", "defaults")
#: What is compared by default: everything where only the search counts, and what users get where a start is given.
DEFAULT: Mapping[str, Sequence[str]] = {"nothing": ALL, "transfer": ("random", "genetic", "genetic-screened", "auto")}
#: Where features of the recorded spaces' kernels are kept.
FEATURES = Path("build/cost_model")
#: Those that use a trained policy.
_TRAINED = ("rl", "auto")
#: Those that look at kernels.
_SCREENED = ("genetic-screened", "auto")
_FOLDS = 5


@dataclass(frozen=True)
class Plan:
    """What is compared: where the records are, where results are kept, how long and how often."""

    spaces: Path
    cache: Path
    start: str
    seeds: int
    trials: int


class Only:
    """The default config, and nothing else."""

    def __init__(self, space: Space) -> None:
        self._left = [space.default()]

    def ask(self, n: int) -> list[Config]:
        """The default, once."""
        return [self._left.pop()] if self._left else []

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Nothing to learn."""


@dataclass
class Told:
    """A strategy whose screen learns what it learns."""

    strategy: Strategy
    screen: Screening

    def ask(self, n: int) -> list[Config]:
        """The strategy's."""
        return self.strategy.ask(n)

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Both."""
        self.strategy.tell(results)
        self.screen.tell(results)


def agent(
    name: str, task: RecordedSpace, seed: int, trials: int, policy: Policy | None = None, screen: Screening | None = None
) -> Strategy:
    """A strategy as it comes to a task it has never seen. Raises UsageError for an unknown name."""
    if name == "default":
        return Only(task.space)
    if name == "tpe":
        from benchmarks.tpe import Tpe  # Optuna is needed for nothing else

        return Tpe(task.space, seed)
    context = Context(task.workload, task.target, policy, screen, trials)
    made = make_strategy(name.removesuffix("-cold").removesuffix("-screened"), task.space, seed, (), context)
    return made if screen is None else Told(made, screen)


def started(task: RecordedSpace, start: str, seed: int) -> RecordedSpace:
    """The task with other first configs."""
    if start == "defaults":
        return task
    if start == "nothing":
        first: tuple[Config, ...] = (task.space.sample(Random(seed)),)
    else:
        first = _transferred(task, _elsewhere().configs(task.workload, task.provider))
    return replace(task, space=replace(task.space, first=first))


def _transferred(task: RecordedSpace, hints: Sequence[Config]) -> tuple[Config, ...]:
    ours = set(beginning_keys(task.space))
    best = [c for c in beginning(task.space, hints) if config_key(c) not in ours]
    return (*best, *task.space.first)


def beginning_keys(space: Space) -> list[str]:
    """What a strategy tries first without hints."""
    return [config_key(c) for c in beginning(space, ())]


@cache
def _elsewhere() -> Experience:
    """The shipped logs without the recorded tasks themselves."""
    folder, known = Path(str(files("wpk.configs"))) / "tuned", {t.workload.key for t in _TASKS.values()}
    records = (r for path in sorted(folder.glob("*.jsonl")) for r in read_log(path).records)
    return Experience(r for r in records if r.workload.key not in known)


def run(task: RecordedSpace, strategy: Strategy, trials: int) -> list[float]:
    """The best seconds after each of ``trials`` measurements."""
    best, curve = inf, list[float]()
    while len(curve) < trials and (asked := strategy.ask(min(BATCH, trials - len(curve)))):
        told = task.tell(asked)
        strategy.tell(told)
        for _, seconds in told:
            best = min(best, seconds)
            curve.append(best)
    return curve + [best] * (trials - len(curve))


def runs(
    task: RecordedSpace, name: str, plan: Plan, policy: Policy | None = None,
    screen: Callable[[], Screening | None] = lambda: None,
) -> np.ndarray:  # fmt: skip
    """Best seconds over the optimum, (seeds, trials); infinity before any success. ``screen`` makes one for each run."""
    tasks = ((started(task, plan.start, seed), seed) for seed in range(plan.seeds))
    agents = ((t, agent(name, t, seed, plan.trials, policy, screen())) for t, seed in tasks)
    return np.array([run(t, a, plan.trials) for t, a in agents]) / task.optimum


_TASKS: dict[str, RecordedSpace] = {}


def _open(folder: Path) -> None:
    threadpool_limits(1)  # matrices are small: more threads than processes only wait for each other
    _TASKS.update((t.name, t) for t in load_spaces(folder))


def _curves(plan: Plan, task: str, name: str) -> np.ndarray:
    """The runs of a strategy on a task, from the cache where they are there."""
    key = f"{name}|{plan.start}|{plan.seeds}|{plan.trials}|{BATCH}|{_record(plan, task)}|{_code(name)}"
    if name in _TRAINED:
        key += "".join(_record(plan, t) for t in sorted(_TASKS))
    path = plan.cache / f"{_digest(key.encode())}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    policy = load_policy(_policy_path(plan, task)) if name in _TRAINED else None
    screen = _screens(plan, task) if name in _SCREENED else lambda: None
    found = runs(_TASKS[task], name, plan, policy, screen)
    plan.cache.mkdir(parents=True, exist_ok=True)
    np.save(path, found)
    return found


def _screens(plan: Plan, task: str) -> Callable[[], Screening]:
    """Makes screens as the tuner has them, on a cost model that has not seen the task or its relatives."""
    others = tuple(s for s in _subjects(plan.spaces) if relatives(s.name) != relatives(task))
    model, rows = trained(others, 0), features_of_space(_TASKS[task], plan.spaces / f"{task}{SUFFIX}", FEATURES)
    known = {config_key(c): row for c, row in zip(_TASKS[task].space.listed or (), rows, strict=True)}
    return lambda: Screening(lambda c: known[config_key(c)], model, effort=effort)


@cache
def _subjects(spaces: Path) -> tuple[Subject, ...]:
    return tuple(load(spaces, FEATURES, ()))


def _record(plan: Plan, task: str) -> str:
    return _digest((plan.spaces / f"{task}{SUFFIX}").read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _code(name: str) -> str:
    """The text of what a strategy runs; that of all strategies for those that use others."""
    search = Path(str(files("wpk.search")))
    learner = ("rl.py", "choices.py", "critic.py", "features.py", "policy.py", "train.py")
    own = {
        "default": (), "random": ("randomly.py",), "tpe": (), "genetic": ("genetic.py", "inheritance.py"), "rl": learner,
        "rl-cold": learner,
    }  # fmt: skip
    used = [search / f for f in ("space.py", "knobs.py", *own[name])] if name in own else sorted(search.glob("*.py"))
    extra = [Path(__file__).with_name("tpe.py")] if name == "tpe" else []
    return _digest(b"\0".join(p.read_bytes() for p in (*used, *extra)))


# Policies, each trained without the tasks it is used on


def _fold(task: str) -> int:
    return sorted(_TASKS).index(task) % _FOLDS


def _policy_path(plan: Plan, task: str) -> Path:
    text = "".join(_record(plan, t) for t in sorted(_TASKS)) + _code("rl") + str(_fold(task))
    return plan.cache / f"policy-{_digest(text.encode())}.npz"


def _train(plan: Plan, task: str) -> None:
    """The policy for a task and its fold."""
    path = _policy_path(plan, task)
    if not path.exists():
        plan.cache.mkdir(parents=True, exist_ok=True)
        others = [t for n, t in sorted(_TASKS.items()) if _fold(n) != _fold(task)]
        train_policy(lessons_of(others)).save(path)


def compare(plan: Plan, names: Sequence[str], only: Sequence[str], jobs: int) -> list[Outcome]:
    """All strategies on all tasks, or ``only`` on some."""
    _open(plan.spaces)
    tasks = [t for t in _TASKS.values() if not only or t.name in only]
    if set(names) & set(_SCREENED):
        _subjects(plan.spaces)  # lowers every kernel the first time
    with ProcessPoolExecutor(jobs, initializer=_open, initargs=(plan.spaces,)) as pool:
        if set(names) & set(_TRAINED):
            folds = {_fold(t.name): t.name for t in tasks}
            list(pool.map(_call, [(_train, plan, t) for t in folds.values()]))
        waiting = {(t.name, n): pool.submit(_curves, plan, t.name, n) for t in tasks for n in names}
        found = {pair: w.result() for pair, w in waiting.items()}
    return [Outcome(t.name, t.provider, len(t.outcomes), {n: found[t.name, n] for n in names}) for t in tasks]


def _call(job: tuple[Callable[[Plan, str], None], Plan, str]) -> None:
    job[0](*job[1:])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--strategies", type=lambda s: s.split(","), help="by default those of DEFAULT")
    p.add_argument("--start", type=lambda s: s.split(","), default=list(DEFAULT), help=", ".join(STARTS))
    p.add_argument("--tasks", type=lambda s: s.split(","), default=[], help="names; all by default")
    p.add_argument("--seeds", type=int, default=50)
    p.add_argument("--trials", type=int, default=100, help="measurements of a run")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--spaces", type=Path, default=Path("tests/data/spaces"))
    p.add_argument("--cache", type=Path, default=Path("build/strategies"))
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    return p.parse_args(arguments)


def main() -> None:
    """Compare, print, write."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    results, pages = {}, []
    for start in args.start:
        begun, names = monotonic(), args.strategies or DEFAULT.get(start, ALL)
        plan = Plan(args.spaces, args.cache, start, args.seeds, args.trials)
        outcomes = compare(plan, names, args.tasks, args.jobs)
        results[start] = summary(outcomes)
        pages.append(markdown(results[start], start))
        print(pages[-1], f"\n{len(outcomes) * len(names) * args.seeds} runs, {monotonic() - begun:.0f} s\n", flush=True)
        figure(outcomes, start, args.out / f"strategies-{start}.png")
    (args.out / "strategies.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "strategies.md").write_text("\n\n".join(pages) + "\n")


if __name__ == "__main__":
    main()
