"""Choosing among candidates by an opinion of them, so that it cannot shut anything out.

:class:`Screening` is the opinion: the analytic estimate that orders the first candidates, then a cost model
(:mod:`wpk.search.cost_model`), corrected by the task's own measurements. :func:`choose` is ε-greedy: a stated share of
proposals passes whatever the opinion of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from random import Random

import numpy as np

from wpk.core.result import Config, config_key
from wpk.search.cost_model import Adapted, Array, CostModel, CostModelOptions, available, centre_of

#: Features of a config: (F,), the first the logarithm of an analytic estimate; None where there is no kernel.
Features = Callable[[Config], Array | None]


@dataclass(frozen=True)
class ScreenOptions:
    """``most``: configs looked at closely between two tellings, beyond those already known. ``free``: the share of proposals
    that pass unscreened. ``shortlist``: candidates compared for one proposal.
    """

    most: int = 24
    free: float = 0.1
    shortlist: int = 4


class Screening:
    """A screen as :class:`wpk.search.strategy.Context` wants it, which learns from what it is told.

    Looking at a config means lowering it, which costs milliseconds: beyond ``most`` new ones the rest are taken to be average.
    """

    def __init__(
        self, features: Features, model: CostModel | None = None, options: ScreenOptions | None = None,
        learning: CostModelOptions | None = None,
    ) -> None:  # fmt: skip
        self._features, self._model = features, model
        self._options = options or ScreenOptions()
        self._learning = learning or CostModelOptions()
        self._known: dict[str, Array | None] = {}
        self._left = self._options.most
        self._told: dict[str, float] = {}
        self._adapted: Adapted | None = None
        self._stale = False

    def __call__(self, configs: Sequence[Config]) -> list[float]:
        """Costs of configs, smaller is better; those not looked at get the others' mean, those without a kernel the worst."""
        keys = [config_key(c) for c in configs]
        for key, config in zip(keys, configs, strict=True):
            if key not in self._known and self._left > 0:
                self._left -= 1
                self._known[key] = self._features(config)
        rows = {k: row for k in keys if (row := self._known.get(k)) is not None}
        if not rows:
            return [0.0] * len(configs)
        found = dict(zip(rows, self._scores(np.stack(list(rows.values()))).tolist(), strict=True))
        worst, usual = max(found.values()) + 1.0, float(np.mean(list(found.values())))
        return [found.get(k, worst if k in self._known else usual) for k in keys]

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Learn from results; infinity for a failure."""
        self._left = self._options.most
        for config, seconds in results:
            key = config_key(config)
            if key not in self._known:
                self._known[key] = self._features(config)
            self._told[key] = seconds
        self._stale = True

    def _scores(self, rows: Array) -> Array:
        if self._adapted is None:
            self._adapted = Adapted(self._model, centre_of(rows), self._learning)
        if self._stale and available():
            self._learn(self._adapted)
        self._stale = False
        return self._adapted.score(rows)

    def _learn(self, adapted: Adapted) -> None:
        told = [(row, s) for k, s in self._told.items() if (row := self._known[k]) is not None]
        if sum(isfinite(s) for _, s in told) > 1:
            adapted.fit(np.stack([row for row, _ in told]), np.array([s for _, s in told]))


def choose(
    candidates: Sequence[Config], n: int, screen: Callable[[Sequence[Config]], Sequence[float]], rng: Random, free: float
) -> list[Config]:
    """``n`` of the candidates: with probability ``free`` each the next in order, else the one of least cost that is left."""
    costs = list(screen(candidates))
    left, chosen = list(range(len(candidates))), list[Config]()
    while left and len(chosen) < n:
        pick = left[0] if rng.random() < free else min(left, key=lambda i: costs[i])
        left.remove(pick)
        chosen.append(candidates[pick])
    return chosen
