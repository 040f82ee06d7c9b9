"""Screening: what kernels will cost, before any is built: an analytic estimate at first, then what was learned.

The estimate orders the first candidates; a cost model (:mod:`wpk.search.cost_model`), where there is one, corrects it by what
other tasks taught, and the task's own measurements correct both. It cannot shut anything out: strategies let a share of their
proposals pass without asking (ε-greedy: ``blind`` of the genetic strategy, ``free`` of reinforcement learning, a tenth each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from wpk.core.result import Config, config_key
from wpk.search.cost_model import Adapted, Array, CostModel, CostModelOptions, available, centre_of

#: Features of a config: (F,), the first the logarithm of an analytic estimate; None where there is no kernel.
Features = Callable[[Config], Array | None]

#: The model is fitted again once the measurements are this many times as many: fitting takes as long as eight looks.
_MORE = 1.25


@dataclass(frozen=True)
class ScreenOptions:
    """``most``: configs looked at closely between two tellings, beyond those already known; 0 for no screening. ``first``: as
    many before anything is told. ``memory``: the latest measurements that are learned from, which bounds the time that takes.
    """

    most: int = 8
    first: int = 24
    memory: int = 256


class Screening:
    """A screen as :class:`wpk.search.strategy.Context` wants it, which learns from what it is told.

    Looking at a config means lowering it, which costs milliseconds: beyond ``most`` new ones the rest are taken to be average.
    ``effort``: how many looks one counts for, by what was found.
    """

    def __init__(
        self, features: Features, model: CostModel | None = None, options: ScreenOptions | None = None,
        learning: CostModelOptions | None = None, effort: Callable[[Array], float] = lambda row: 1.0,
    ) -> None:  # fmt: skip
        self._features, self._model, self._effort = features, model, effort
        self._options = options or ScreenOptions()
        self._learning = learning or CostModelOptions()
        self._known: dict[str, Array | None] = {}
        self._left = float(self._options.first)
        self._told: dict[str, tuple[Config, float]] = {}
        self._adapted: Adapted | None = None
        self._learned = 0

    def __call__(self, configs: Sequence[Config]) -> list[float]:
        """Costs of configs, smaller is better; those not looked at get the others' mean, those without a kernel the worst."""
        keys = [config_key(c) for c in configs]
        for key, config in zip(keys, configs, strict=True):
            self._look(key, config)
        rows = {k: row for k in keys if (row := self._known.get(k)) is not None}
        if not rows:
            return [0.0] * len(configs)
        found = dict(zip(rows, self._scores(np.stack(list(rows.values()))).tolist(), strict=True))
        worst, usual = max(found.values()) + 1.0, float(np.mean(list(found.values())))
        return [found.get(k, worst if k in self._known else usual) for k in keys]

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Learn from results; infinity for a failure."""
        self._left = self._options.most
        self._told.update((config_key(c), (c, s)) for c, s in results)

    def _scores(self, rows: Array) -> Array:
        if self._adapted is None:
            self._adapted = Adapted(self._model, centre_of(rows), self._learning)
        if len(self._told) >= _MORE * self._learned and self._told and available():
            self._learned = len(self._told)
            self._learn(self._adapted)
        return self._adapted.score(rows)

    def _learn(self, adapted: Adapted) -> None:
        latest = list(self._told.items())[-self._options.memory :]
        if sum(isfinite(s) for _, (_, s) in latest) < self._learning.enough:
            return
        told = [(row, s) for key, (config, s) in latest if (row := self._look(key, config)) is not None]
        if told:
            adapted.fit(np.stack([row for row, _ in told]), np.array([s for _, s in told]))

    def _look(self, key: str, config: Config) -> Array | None:
        """What a config's kernel looks like; None also where there is no effort left to look."""
        if key not in self._known and self._left > 0:
            row = self._known[key] = self._features(config)
            self._left -= 1.0 if row is None else self._effort(row)
        return self._known.get(key)
