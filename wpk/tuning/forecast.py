"""When enough is enough, and how long it will still take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import mean

from wpk.tuning.tasks import Task

#: Tasks that must have ended before others are expected to end after as many trials.
_ENOUGH = 3


@dataclass(frozen=True)
class Open:
    """A task still searched: its trials so far, how many it may have, and the seconds that one takes."""

    trials: int
    most: int
    cost: float


def total_seconds(tasks: Sequence[Task], best: Sequence[float]) -> float:
    """Seconds of one inference, as far as known: each node by the best of its tasks; nodes without a time are left out."""
    nodes: dict[str, float] = {}
    for i, (task, seconds) in enumerate(zip(tasks, best, strict=True)):
        for node in task.nodes or (f"task {i}",):
            nodes[node] = min(nodes.get(node, inf), seconds)
    return sum(s for s in nodes.values() if isfinite(s))


def worth_more(gain: float, task: Task, to_beat: float, total: float, threshold: float) -> bool:
    """Whether a search is expected to save at least ``threshold`` of the ``total``.

    ``gain``: the expected share of ``to_beat``, the best seconds of the task's nodes, that a batch will save.
    """
    if not isfinite(gain) or not isfinite(to_beat):
        return True
    return gain * to_beat * task.weight >= threshold * total


def at_the_roof(task: Task, best: float, roofs: Mapping[str, float], margin: float) -> bool:
    """Whether ``best`` is within ``margin`` of what the machine can do (``roofs``: seconds, by workload key).

    What beats its roof clearly, by a cheaper algorithm or from a warm cache, shows that it has none.
    """
    roof = roofs.get(task.workload.key, 0.0)
    return abs(best - roof) <= margin * roof and roof > 0


def seconds_left(tasks: Sequence[Open], ended: Sequence[int]) -> float:
    """Seconds until all tasks have ended: each after its last trial, or after as many as those that ``ended`` took."""
    usual = mean(ended) if len(ended) >= _ENOUGH else inf
    return sum(max(min(t.most, max(usual, t.trials)) - t.trials, 0) * t.cost for t in tasks)
