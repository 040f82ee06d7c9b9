"""Who is measured next: the arm (one task and provider) that promises to save most time a second of measuring.

As in Ansor's task scheduler (Zheng et al., OSDI 2020, §6) the promise of more search is what the last batches brought, or an
optimistic guess that fades with the trials made, whichever is more; weighted by how often the task runs. An arm far behind
another arm of its task, or whose task is far behind another layout of the same nodes, promises little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

#: Batches that count as recent.
_WINDOW = 3
#: How much the optimist hopes to gain: this share of the time, divided by (trials + _CALM) for each further trial.
_HOPE, _CALM = 0.3, 8.0
#: How fast the promise falls with the ratio to the best rival.
_ARM_POWER, _TASK_POWER = 3.0, 4.0
#: Share of the current time saved by the first measurement of something that has none, as the optimist sees it.
_UNKNOWN = 1.0


@dataclass
class Progress:
    """What a search has brought so far: best seconds after each batch, trials, seconds spent measuring."""

    best: float = inf
    trials: int = 0
    spent: float = 0.0
    batches: list[tuple[int, float]] = field(default_factory=list)

    def add(self, trials: int, best: float, spent: float) -> None:
        """A batch of ``trials`` was measured in ``spent`` seconds; ``best`` is its best time."""
        self.trials += trials
        self.spent += spent
        self.best = min(self.best, best)
        self.batches.append((self.trials, self.best))

    @property
    def cost(self) -> float:
        """Seconds of measuring a trial; a guess before the first."""
        return max(self.spent / self.trials, 1e-3) if self.trials else 0.2

    @property
    def recent_gain(self) -> float:
        """Seconds of run time saved a trial over the last batches."""
        if len(self.batches) < 2:
            return 0.0
        before, after = self.batches[-min(len(self.batches), _WINDOW + 1)], self.batches[-1]
        if not isfinite(before[1]) or after[0] == before[0]:
            return 0.0
        return (before[1] - after[1]) / (after[0] - before[0])


def promise(arm: Progress, task_best: float, rival_best: float, weight: float) -> float:
    """Seconds of run time that a second of measuring this arm may save.

    ``task_best``: the best of any provider on the same task; ``rival_best``: the best of other tasks for the same nodes.
    """
    reference = min(task_best, rival_best)
    if not isfinite(arm.best):
        base = reference if isfinite(reference) else _UNKNOWN
        return weight * base * _HOPE / (arm.trials + _CALM) ** 2 / arm.cost
    optimistic = arm.best * _HOPE / (arm.trials + _CALM)
    behind: float = _ratio(task_best, arm.best) ** _ARM_POWER * _ratio(rival_best, task_best) ** _TASK_POWER
    return weight * behind * max(arm.recent_gain, optimistic) / arm.cost


def _ratio(other: float, mine: float) -> float:
    """How near ``mine`` is to ``other``: 1 when as fast or faster."""
    return min(other / mine, 1.0) if isfinite(mine) and mine > 0 else 1.0
