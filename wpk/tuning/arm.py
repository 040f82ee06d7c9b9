"""Arms of the tuner, one for each task and provider, and which of them are rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from wpk.core.result import Config
from wpk.core.workload import Workload
from wpk.measure.check import reduction_length
from wpk.providers.protocol import Provider
from wpk.search.prior import Screening
from wpk.search.space import Space
from wpk.search.strategy import Strategy
from wpk.tuning.options import TuneOptions
from wpk.tuning.record import Record, is_library
from wpk.tuning.results import ResultTable
from wpk.tuning.scheduler import Progress
from wpk.tuning.tasks import Task


@dataclass
class Arm:
    """One task and provider: a space, a strategy made when it is first needed, and what it brought."""

    task: int
    provider: Provider
    space: Space
    strategy: Strategy | None = None
    screen: Screening | None = None
    progress: Progress = field(default_factory=Progress)
    known: dict[str, Config] = field(default_factory=dict)
    exhausted: bool = False
    settled: bool = False


def finalists(table: ResultTable, workload: Workload, options: TuneOptions) -> list[Record]:
    """The fastest records within the tie margin of the best, and the best of each other provider that is not far behind."""
    ok = sorted(
        (r for r in table.records(workload) if r.measurement.ok), key=lambda r: (r.measurement.time, r.key)
    )
    if not ok:
        return []
    best = ok[0].measurement.time
    near = [r for r in ok if r.measurement.time <= best * (1 + options.tie)][: options.finalists]
    leaders = {r.provider: r for r in reversed(ok) if r.measurement.time <= best * options.rival}
    return list({r.key: r for r in (*near, *leaders.values())}.values())


def rivals(tasks: Sequence[Task]) -> Mapping[int, tuple[int, ...]]:
    """Task → the other tasks that some node could be instead."""
    users: dict[str, set[int]] = {}
    for i, task in enumerate(tasks):
        for node in task.nodes:
            users.setdefault(node, set()).add(i)
    return {
        i: tuple(sorted({j for node in task.nodes for j in users[node]} - {i}))
        for i, task in enumerate(tasks)
    }


def patience(arm: Arm, rival: float) -> float:
    """The factor behind the best at which an arm gets no more first configs: a guess of a kernel's says less than a library's."""
    return rival if is_library(arm.provider.name) else 2 * rival


def work(task: Task) -> float:
    """A measure of the arithmetic in all runs of a task."""
    terms = reduction_length(task.workload)
    return float(task.weight * terms * sum(prod(t.shape) for t in task.workload.outputs))
