"""Compare search strategies on recorded spaces: every task × strategy × seed, no clock and no noise.

    python -m benchmarks.strategies                             all, 50 seeds: JSON, Markdown and PNG in benchmarks/results/search
    python -m benchmarks.strategies --strategies random,genetic --seeds 10

Every strategy begins with the family's first configs and asks for 8 at a time, as the tuner does; TPE (see benchmarks/tpe.py)
for one at a time. A run's result is the best time after each measurement, relative to the space's optimum. Runs are kept in a
cache under build/, by the text of everything they depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from math import inf
from pathlib import Path
from time import monotonic

import numpy as np

from benchmarks.strategy_report import Outcome, figure, markdown, summary
from wpk.search.recorded import RecordedSpace, load_spaces
from wpk.search.space import Config, Space
from wpk.search.strategy import STRATEGIES, Strategy, make_strategy

BATCH = 8
#: Strategies of our own that are no search.
DEFAULT, TPE = "default", "tpe"
ALL = (DEFAULT, "random", TPE, *(s for s in STRATEGIES if s not in ("random", "exhaustive")))


class Only:
    """The default config, and nothing else."""

    def __init__(self, space: Space) -> None:
        self._left = [space.default()]

    def ask(self, n: int) -> list[Config]:
        """The default, once."""
        return [self._left.pop()] if self._left else []

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Nothing to learn."""


def agent(name: str, task: RecordedSpace, seed: int) -> Strategy:
    """A strategy as it comes to a task it has never seen. Raises UsageError for an unknown name."""
    if name == DEFAULT:
        return Only(task.space)
    if name == TPE:
        from benchmarks.tpe import Tpe  # Optuna is needed for nothing else

        return Tpe(task.space, seed)
    return make_strategy(name, task.space, seed)


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


def runs(task: RecordedSpace, name: str, seeds: Iterable[int], trials: int) -> np.ndarray:
    """Best seconds over the optimum, (seeds, trials); infinity before any success."""
    return np.array([run(task, agent(name, task, seed), trials) for seed in seeds]) / task.optimum


_TASKS: dict[str, RecordedSpace] = {}


def _start(folder: Path) -> None:
    _TASKS.update((t.name, t) for t in load_spaces(folder))


def _job(job: tuple[str, str, int, int]) -> np.ndarray:
    task, name, seeds, trials = job
    return runs(_TASKS[task], name, range(seeds), trials)


class Cache:
    """Arrays by a digest of what they were computed from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of ``key``, made when it is not there."""
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
        if path.exists():
            return np.asarray(np.load(path))
        self._folder.mkdir(parents=True, exist_ok=True)
        np.save(path, array := make())
        return array


def compare(
    folder: Path, tasks: Sequence[RecordedSpace], names: Sequence[str], seeds: int, trials: int, jobs: int, cache: Cache
) -> list[Outcome]:
    """All strategies on all tasks."""
    keys = {(t.name, n): _key(folder, t, n, seeds, trials) for t in tasks for n in names}
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(folder,)) as pool:
        waiting = {
            pair: pool.submit(cache.get, key, _Later((*pair, seeds, trials))) for pair, key in keys.items()
        }
        found: Mapping[tuple[str, str], np.ndarray] = {pair: w.result() for pair, w in waiting.items()}
    return [
        Outcome(t.name, t.provider, len(t.outcomes), {n: found[t.name, n].astype(float) for n in names}) for t in tasks
    ]


class _Later:
    """A job as a call without arguments that can be sent to another process."""

    def __init__(self, job: tuple[str, str, int, int]) -> None:
        self._job = job

    def __call__(self) -> np.ndarray:
        return _job(self._job)


def _key(folder: Path, task: RecordedSpace, name: str, seeds: int, trials: int) -> str:
    """Everything a run depends on: the record, the code of the strategies, seeds and lengths."""
    record = hashlib.sha256((folder / f"{task.name}.json.xz").read_bytes()).hexdigest()
    return f"{name}|{seeds}|{trials}|{BATCH}|{record}|{_code(name)}"


def _code(name: str) -> str:
    """The text of what a strategy runs; of all strategies for those that may use each other."""
    search = Path(str(files("wpk.search")))
    plain = {DEFAULT: (), "random": ("randomly.py",), TPE: (), "genetic": ("genetic.py",)}
    used = [search / f for f in ("space.py", "knobs.py", *plain.get(name, ()))] if name in plain else sorted(search.glob("*.py"))
    own = [Path(__file__).with_name("tpe.py")] if name == TPE else []
    configs = sorted((Path(str(files("wpk.configs"))) / "effort").glob("*.toml")) if name not in (DEFAULT, "random", TPE) else []
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in (*used, *own, *configs))).hexdigest()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--strategies", type=lambda s: s.split(","), default=list(ALL))
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
    args, begun = parse(), monotonic()
    tasks = [t for t in load_spaces(args.spaces) if not args.tasks or t.name in args.tasks]
    outcomes = compare(args.spaces, tasks, args.strategies, args.seeds, args.trials, args.jobs, Cache(args.cache))
    result = summary(outcomes)
    text = markdown(result)
    print(text)
    print(f"{len(tasks) * len(args.strategies) * args.seeds} runs, {monotonic() - begun:.0f} s")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "strategies.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "strategies.md").write_text(text + "\n")
    figure(outcomes, args.out / "strategies.png")


if __name__ == "__main__":
    main()
