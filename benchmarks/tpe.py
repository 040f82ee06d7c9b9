"""Optuna's TPE as a strategy over our spaces: the rival that a user would otherwise reach for.

TPE knows boxes, not constraints, so it is helped as far as that is fair: ordered knobs are integers (their ranks), the others
categories; it starts with the same first configs; what it proposes beside the space is moved to the nearest valid config, and
told as that; for what it has proposed before it may
propose again, at no cost. It proposes one at a time, with
every result so far at hand, which none of our strategies is allowed. Failures are told as far slower than anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import isfinite, log
from random import Random

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from wpk.core.result import config_key
from wpk.search.knobs import Knob, Ordered, Value
from wpk.search.space import Config, Space
from wpk.search.strategy import beginning

#: What a failure is told as: log-seconds that nothing reaches.
_FAILED = 10.0
#: Proposals in a row that may be known before a new one is made from the last.
_PATIENCE = 5


class Tpe:
    """Ask and tell over Optuna's default sampler, multivariate."""

    def __init__(self, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        self._study = optuna.create_study(sampler=sampler)
        self._space, self._rng = space, Random(seed)
        self._knobs = tuple(k for k in space.knobs if len(k.values) > 1)
        self._boxes = {k.name: _box(k) for k in self._knobs}
        self._first = list(beginning(space, ()))
        self._told: dict[str, float] = {}
        self._size = space.size()

    def ask(self, n: int) -> list[Config]:
        """One config, whatever ``n``; none when the space is used up."""
        if len(self._told) >= self._size:
            return []
        if self._first:
            return [self._first.pop(0)]
        for _ in range(_PATIENCE):
            config = self._proposed()
            if config_key(config) not in self._told:
                return [config]
        while config_key(config) in self._told:
            config = self._space.mutate(config, self._rng)
        return [config]

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Add trials."""
        for config, seconds in results:
            self._told[config_key(config)] = log(seconds) if isfinite(seconds) else _FAILED
            self._add(config, self._told[config_key(config)])

    def _proposed(self) -> Config:
        trial = self._study.ask(self._boxes)
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # replaced by what is valid, see _add
        fixed = {k.name: k.values[0] for k in self._space.knobs if len(k.values) == 1}
        values = {k.name: _value(k, trial.params[k.name]) for k in self._knobs}
        return self._space.repair({k.name: {**fixed, **values}[k.name] for k in self._space.knobs}, self._rng)

    def _add(self, config: Config, value: float) -> None:
        params = {k.name: _param(k, config[k.name]) for k in self._knobs}
        self._study.add_trial(optuna.trial.create_trial(params=params, distributions=self._boxes, value=value))


def _box(knob: Knob) -> BaseDistribution:
    return IntDistribution(0, len(knob.values) - 1) if isinstance(knob, Ordered) else CategoricalDistribution(knob.values)


def _value(knob: Knob, param: Value) -> Value:
    return knob.values[int(param)] if isinstance(knob, Ordered) else param


def _param(knob: Knob, value: Value) -> Value:
    return knob.values.index(int(value)) if isinstance(knob, Ordered) else value
