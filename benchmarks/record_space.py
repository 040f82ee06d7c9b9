"""Record spaces: measure every config of a task's space (or of a closed part of it) once, to compare strategies without a clock.

    python -m benchmarks.record_space --prebuild                 lower and compile everything into the cache: not timed
    python -m benchmarks.record_space --measure --budget 25m     check and time; nothing else should run on the machine
    python -m benchmarks.record_space --pack                     write what is complete to tests/data/spaces and …/lessons
    python -m benchmarks.record_space --list                     tasks, sizes, what is done

Each phase resumes where it was ended. The first configs are timed first, so that the hopeless get a few calls only. Configs
within 10% of the best are timed again, at other moments and in other orders, and the median of their times is recorded.

Kernels of some microseconds need more: when the system lets both threads share a core for a while, they take twice as long.
With ``--turns 4`` every config is timed four times, in four orders, with each thread on a core of its own, and the least of
the four is recorded: whatever disturbs a measurement makes it longer.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic

from benchmarks.recorded_tasks import LESSONS, SUBJECTS, Subject, part
from wpk import api
from wpk.core.errors import InvalidConfig
from wpk.core.result import Config, Measurement, config_key
from wpk.measure.builder import CompileError, build
from wpk.measure.measurer import Measurer, cpu_measurer
from wpk.providers.protocol import Provider
from wpk.search.recorded import SUFFIX, RecordedSpace, facts, load_space, save_space
from wpk.search.space import Space
from wpk.settings import parse_budget
from wpk.stages import Shop
from wpk.tuning.experience import shipped

#: Configs measured between looks at the clock; their code is read before the first of them runs.
_BATCH = 48
#: Configs within this factor of the best are timed again, this many times.
_NEAR, _AGAIN = 1.1, 2


@dataclass
class Recording:
    """A subject's part of its space, and the file of what was measured so far: one line a measurement."""

    subject: Subject
    provider: Provider
    space: Space
    path: Path
    turns: int = 1
    times: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            data = json.loads(line)
            self._take(data["config"], data["seconds"], data["failure"])

    @property
    def configs(self) -> tuple[Config, ...]:
        """All configs to measure, the anchors first."""
        return self.space.listed or ()

    @property
    def best(self) -> float:
        """The least median so far; infinity without any."""
        return min((median(t) for t in self.times.values()), default=inf)

    def missing(self, turn: int) -> list[Config]:
        """What is to be measured in a turn: all in turn 0, and in later ones the near best, in an order of that turn."""
        if turn == 0:
            return [c for c in self.configs if not self._known(config_key(c))]
        if self.turns > 1:
            todo = [c for c in self.configs if 0 < len(self.times.get(config_key(c), ())) <= turn]
            return Random(turn).sample(todo, len(todo))
        near = [c for c in self.configs if self._near(config_key(c)) and len(self.times[config_key(c)]) <= turn]
        return Random(turn).sample(near, len(near))

    @property
    def complete(self) -> bool:
        """True when no turn misses anything."""
        return not any(self.missing(turn) for turn in range(self.rounds))

    @property
    def rounds(self) -> int:
        """How often a config is timed at most."""
        return self.turns if self.turns > 1 else _AGAIN + 1

    def add(self, config: Config, measurement: Measurement) -> None:
        """Append to the file."""
        seconds = measurement.time if measurement.ok else None
        line = {"config": config_key(config), "seconds": seconds, "failure": measurement.failure, "detail": measurement.detail}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._take(config_key(config), seconds, measurement.failure)

    def packed(self, shop: Shop) -> RecordedSpace:
        """The record, once complete."""
        keys = [config_key(c) for c in self.configs]
        of = min if self.turns > 1 else median
        outcomes = tuple(of(self.times[k]) if k in self.times else self.failures[k] for k in keys)
        return RecordedSpace(
            self.subject.name, self.provider.name, self.provider.version, self.subject.workload, shop.target,
            shop.compiler.version, self.space, outcomes, f"{of.__name__} of {self.rounds}{', pinned' * (self.turns > 1)}",
        )  # fmt: skip

    def _known(self, key: str) -> bool:
        return key in self.times or key in self.failures

    def _near(self, key: str) -> bool:
        return key in self.times and min(self.times[key]) <= _NEAR * self.best

    def _take(self, key: str, seconds: float | None, failure: str | None) -> None:
        if seconds is None:
            self.failures[key] = failure or "launch"
        else:
            self.times.setdefault(key, []).append(seconds)


def recordings(shop: Shop, folder: Path, only: Sequence[str] = (), turns: int = 1) -> Iterator[Recording]:
    """The subjects that this machine can run, each with its part of the space: written down when it is first chosen."""
    by_name = {p.name: p for p in shop.providers}
    known = shipped()
    for subject in (*SUBJECTS, *LESSONS):
        provider = by_name[f"generated:{subject.family}"]
        support = provider.supports(subject.workload, shop.target)
        if only and subject.name not in only:
            continue
        if not support.ok:
            print(f"{subject.name}: {support.reason}")
            continue
        space = provider.space(subject.workload, shop.target)
        best = list(known.configs(subject.workload, provider.name))
        chosen = part(space, subject.family, best, subject.limit)
        yield Recording(subject, provider, chosen, folder / f"{subject.name}.jsonl", turns)


def prebuild(shop: Shop, recording: Recording, jobs: int) -> tuple[int, int]:
    """Lower and compile all configs; (built, refused)."""
    work = [(recording.subject, c) for c in recording.configs]
    with ProcessPoolExecutor(jobs, initializer=_open) as pool:
        done = list(pool.map(_build_one, work, chunksize=16))
    return sum(done), len(done) - sum(done)


_SHOPS: list[Shop] = []


def _open() -> None:
    _SHOPS[:] = [api.open_shop(api.Options(threads=2))]


def _build_one(work: tuple[Subject, Config]) -> bool:
    (subject, config), shop = work, _SHOPS[0]
    provider = next(p for p in shop.providers if p.name == f"generated:{subject.family}")
    try:
        source = provider.build(subject.workload, config, shop.target).source
        if source is not None:
            build(source.text, source.isa, shop.compiler, shop.cache)
    except (CompileError, InvalidConfig):
        return False
    return True


def measure(measurer: Measurer, recording: Recording, deadline: float) -> bool:
    """Measure what is missing; False when time ran out before the end."""
    turns = iter(range(recording.rounds))
    while not recording.complete:  # what is near the best changes with it
        todo = recording.missing(next(turns, recording.rounds - 1))
        for start in range(0, len(todo), _BATCH):
            if monotonic() > deadline:
                return False
            batch = todo[start : start + _BATCH]
            limit = recording.best if recording.times and recording.turns == 1 else None
            found = measurer.measure_each(recording.subject.workload, recording.provider, batch, limit)
            for config, measurement in zip(batch, found, strict=True):
                recording.add(config, measurement)
                if recording.turns > 1:
                    _pin(measurer)
    return True


def _pin(measurer: Measurer) -> None:
    """Each thread of the worker on a core of its own, as ``Runner(pin=True)`` has it; the first measures the candidates."""
    process, cores = measurer._process, sorted(os.sched_getaffinity(0))
    if process is not None:
        threads = sorted(int(t) for t in os.listdir(f"/proc/{process.popen.pid}/task"))
        for i, thread in enumerate(threads):
            os.sched_setaffinity(thread, {cores[min(i, len(cores) - 1)]})


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for phase in ("prebuild", "measure", "pack", "list"):
        p.add_argument(f"--{phase}", action="store_true")
    p.add_argument("--tasks", type=lambda s: s.split(","), default=[], help="names; all by default")
    p.add_argument("--budget", default="none", help="of the measuring, such as 25m")
    p.add_argument("--jobs", type=int, default=2, help="compilers at once")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--turns", type=int, default=1, help="of every config, for short kernels")
    p.add_argument("--work", type=Path, default=Path("build/spaces"), help="folder of measurements")
    p.add_argument("--out", type=Path, default=Path("tests/data/spaces"), help="folder of records")
    return p.parse_args(arguments)


def main() -> None:
    """Run the phases asked for."""
    args = parse()
    shop = api.open_shop(api.Options(threads=args.threads))
    chosen = list(recordings(shop, args.work, args.tasks, args.turns))
    if args.prebuild:
        for one in chosen:
            begun, (built, refused) = monotonic(), prebuild(shop, one, args.jobs)
            print(f"{one.subject.name}: {built} built, {refused} refused, {monotonic() - begun:.0f} s", flush=True)
    if args.measure:
        _measure_all(shop, chosen, args.budget)
    if args.pack or args.measure:
        for one in chosen:
            if one.complete:
                save_space(one.packed(shop), record_path(one.subject, args.out))
    if args.list:
        for one in chosen:
            _show(one, args.out)


def record_path(subject: Subject, out: Path) -> Path:
    """Where a subject's record is kept; lessons have a folder of their own inside."""
    return (out / "lessons" if subject in LESSONS else out) / f"{subject.name}{SUFFIX}"


def _measure_all(shop: Shop, chosen: Sequence[Recording], budget: str) -> None:
    limit = parse_budget(budget)
    deadline = inf if limit is None else monotonic() + limit
    with cpu_measurer(shop.target, shop.cache, shop.compiler) as measurer:
        for one in chosen:
            begun, before = monotonic(), len(one.times)
            done = measure(measurer, one, deadline)
            rate = (len(one.times) - before) / (monotonic() - begun)
            print(
                f"{one.subject.name}: {len(one.times)} timed, {len(one.failures)} failed, {rate:.1f}/s, "
                f"best {one.best * 1e6:.1f} µs{'' if done else '; out of time, run again to go on'}", flush=True,
            )  # fmt: skip
            if not done:
                return


def _show(one: Recording, out: Path) -> None:
    path = record_path(one.subject, out)
    state = facts(load_space(path)) if path.exists() else f"{len(one.times) + len(one.failures)} measured"
    print(f"{one.subject.name}: {len(one.configs)} configs, {len(one.space.first)} first; {state}")


if __name__ == "__main__":
    main()
