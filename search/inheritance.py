"""Fitness inheritance: what a config may be expected to take, from the configs told that share its values.

Log-seconds are taken as a sum of one term for every knob's value, fitted by ridge regression with more weight on the fast.
That is far too simple to predict a time, and enough to tell which of a few children deserves to be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log

import numpy as np

from wpk.search.space import Config, Space

#: A failure counts as this much slower than the slowest that ran, in log-seconds.
_FAILED = 0.5
#: Weight of a prior at zero for every term, in configs.
_RIDGE = 0.5
#: Least weight of a config, and how fast weights fall with log-seconds beyond the best.
_FLOOR, _FALL = 0.1, 1.0


class Inheritance:
    """Learns from what it is told; compares configs."""

    def __init__(self, space: Space) -> None:
        knobs = [k for k in space.knobs if len(k.values) > 1]
        pairs = [(k.name, v) for k in knobs for v in k.values]
        self._names = tuple(k.name for k in knobs)
        self._column = {pair: i for i, pair in enumerate(pairs)}
        self._rows: list[list[int]] = []
        self._logs: list[float | None] = []
        self._terms: np.ndarray | None = None

    def add(self, config: Config, seconds: float) -> None:
        """Learn a result; infinity for a failure."""
        self._rows.append(self._columns(config))
        self._logs.append(log(seconds) if isfinite(seconds) else None)
        self._terms = None

    def least(self, configs: Sequence[Config]) -> Config:
        """The config expected to take the least time; the first of ``configs`` before any success was told."""
        return configs[0] if len(configs) == 1 else self.ranked(configs)[0]

    def ranked(self, configs: Sequence[Config]) -> list[Config]:
        """The same, those expected to take least time first; as they were before any success was told."""
        if not any(x is not None for x in self._logs):
            return list(configs)
        if self._terms is None:
            self._terms = self._fit()
        terms = self._terms
        return sorted(configs, key=lambda c: float(terms[self._columns(c)].sum()))

    def _columns(self, config: Config) -> list[int]:
        return [self._column[n, config[n]] for n in self._names]

    def _fit(self) -> np.ndarray:
        """One term a value, in log-seconds."""
        worst = max(x for x in self._logs if x is not None)
        y = np.array([worst + _FAILED if x is None else x for x in self._logs])
        x = np.zeros((len(y), len(self._column)))
        x[np.arange(len(y))[:, None], self._rows] = 1.0
        weights = np.exp(-_FALL * (y - y.min())) + _FLOOR
        normal = x.T @ (x * weights[:, None]) + _RIDGE * np.eye(x.shape[1])
        return np.asarray(np.linalg.solve(normal, x.T @ (weights * (y - y.mean()))))
