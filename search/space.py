"""A space: knobs + constraints. It enumerates, samples, mutates, crosses and repairs configs.

Constraints are plain predicates on configs. They are also evaluated on partial configs: a predicate that asks for a knob
not assigned yet waits for it, so a search over assignments cuts a branch as soon as a constraint is known to fail. That
keeps enumeration and repair quick where few of millions of assignments are valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import prod
from random import Random
from typing import Any

import numpy as np

from wpk.search.knobs import Knob, Value

Config = dict[str, Value]
Constraint = Callable[[Config], bool]

#: the values of a knob, in the order in which a search tries them
Order = Callable[[Knob], Sequence[Value]]

#: assignments that one attempt of a repair looks at before it starts again in another order of knobs
_ATTEMPT = 2000
#: Random configs that are tried before one is repaired: some microseconds each, and a repair takes thousands of times that.
_REJECTED = 1000


@dataclass(frozen=True)
class Space:
    """All assignments of ``knobs`` for which every constraint holds.

    ``first`` are configs worth trying before any others (the analytic defaults), best first; ``default()`` is the first
    valid one of them, else the knobs' defaults, repaired. Constraints are pure and read knobs by ``config[name]``.
    With ``listed``, only those assignments are valid, in that order: a space whose code is not at hand (a recorded one).
    """

    knobs: tuple[Knob, ...]
    constraints: tuple[Constraint, ...] = ()
    first: tuple[Config, ...] = field(default=(), compare=False)
    listed: tuple[Config, ...] | None = None

    @cached_property
    def _values(self) -> dict[str, frozenset[Value]]:
        return {k.name: frozenset(k.values) for k in self.knobs}

    @cached_property
    def _movable(self) -> tuple[Knob, ...]:
        return tuple(k for k in self.knobs if len(k.values) > 1)

    @cached_property
    def _rows(self) -> dict[tuple[Value, ...], Config]:
        """The listed configs that the constraints allow, by their values in knob order."""
        return {self._row(c): c for c in self.listed or () if all(holds(c) for holds in self.constraints)}

    @cached_property
    def _uniform(self) -> tuple[Config, ...]:
        return tuple(self._rows.values())

    def _row(self, config: Config) -> tuple[Value, ...]:
        return tuple(config[k.name] for k in self.knobs)

    def _allowed(self, config: Config) -> bool:
        if self.listed is not None:
            return self._row(config) in self._rows
        return all(c(config) for c in self.constraints)

    def valid(self, config: Config) -> bool:
        """True when ``config`` assigns every knob one of its values and all constraints hold."""
        values = self._values
        if config.keys() != values.keys() or any(v not in values[k] for k, v in config.items()):
            return False
        return self._allowed(config)

    @property
    def raw_size(self) -> int:
        """Assignments before constraints."""
        return prod(len(k.values) for k in self.knobs)

    def size(self, limit: int = 100_000) -> int:
        """Valid configs, counted up to ``limit``."""
        return sum(1 for _ in islice(self.enumerate(), limit))

    def enumerate(self) -> Iterator[Config]:
        """Every valid config, in knob order; listed ones in the list's."""
        if self.listed is not None:
            return map(dict, self._rows.values())
        return self._search(self.knobs, lambda knob: knob.values)

    def default(self) -> Config:
        """The config to use when nothing is measured. Raises ValueError for an empty space."""
        for config in self.first:
            if self.valid(config):
                return dict(config)
        return self.repair({k.name: k.default for k in self.knobs}, Random(0))

    def sample(self, rng: Random) -> Config:
        """A random valid config: uniform by rejection, then by repair. Raises ValueError for an empty space."""
        if self._rows:
            return dict(rng.choice(self._uniform))
        for _ in range(_REJECTED):
            config: Config = {k.name: k.sample(rng) for k in self.knobs}
            if self._allowed(config):
                return config
        return self.repair(config, rng)

    def repair(self, config: Config, rng: Random) -> Config:
        """A valid config that differs from ``config`` in few knobs. Raises ValueError for an empty space."""
        if self.valid(config):
            return config
        if self.listed is not None:
            return self._nearest(config, rng)
        return self._nudged(config, rng) or self._rebuilt(config, rng)

    def mutate(self, config: Config, rng: Random, rate: float = 0.25) -> Config:
        """Move some knobs (at least one): mostly to a neighbour, sometimes anywhere; the result is valid."""
        chosen = [k for k in self._movable if rng.random() < rate]
        if not chosen and self._movable:
            chosen = [rng.choice(self._movable)]
        trial = dict(config)
        for knob in chosen:
            near = knob.neighbours(trial[knob.name])
            trial[knob.name] = rng.choice(near) if near and rng.random() < 0.7 else knob.sample(rng)
        return self.repair(trial, rng)

    def cross(self, a: Config, b: Config, rng: Random) -> Config:
        """Uniform crossover, repaired."""
        return self.repair({k.name: (a if rng.random() < 0.5 else b)[k.name] for k in self.knobs}, rng)

    def neighbours(self, config: Config) -> Iterator[Config]:
        """Every valid config one knob step away."""
        for knob in self.knobs:
            for value in knob.neighbours(config[knob.name]):
                trial = {**config, knob.name: value}
                if self.valid(trial):
                    yield trial

    def completion(self, chosen: Config, steps: int = _ATTEMPT) -> Config | None:
        """A valid config that has the values ``chosen``; None where there is none.

        ``chosen`` itself where ``steps`` assignments do not settle it. Of listed configs only the constraints are looked at.
        """
        knobs = sorted(self.knobs, key=lambda k: k.name not in chosen)
        left = iter(range(steps))
        found = self._search(knobs, lambda k: (chosen[k.name],) if k.name in chosen else k.values, left)
        config = next(found, None)
        return chosen if config is None and next(left, None) is None else config

    def encode(self, config: Config) -> tuple[float, ...]:
        """A fixed-length numeric vector of a config."""
        return tuple(x for k in self.knobs for x in k.encode(config[k.name]))

    def _nudged(self, config: Config, rng: Random) -> Config | None:
        """A valid config one to three knobs away from ``config``, if a few tries find one."""
        if config.keys() != self._values.keys():
            return None
        for changes in range(1, 4):
            for _ in range(32):
                trial = dict(config)
                for knob in rng.sample(self._movable, min(changes, len(self._movable))):
                    trial[knob.name] = knob.sample(rng)
                if self.valid(trial):
                    return trial
        return None

    def _rebuilt(self, config: Config, rng: Random) -> Config:
        """The first valid assignment in an order that keeps the knobs' values in ``config`` where it can."""

        def order(knob: Knob) -> Sequence[Value]:
            mine = config.get(knob.name)
            return sorted(rng.sample(knob.values, len(knob.values)), key=lambda v: v != mine)

        for budget in (_ATTEMPT, 2 * _ATTEMPT, 4 * _ATTEMPT, None):
            if budget is None and (guesses := [c for c in self.first if self.valid(c)]):
                return dict(rng.choice(guesses))  # rather than a search that may take for ever
            knobs = rng.sample(self.knobs, len(self.knobs)) if budget else self.knobs
            steps = None if budget is None else iter(range(budget))
            found = next(self._search(knobs, order, steps), None)
            if found is not None:
                return found
        raise ValueError("the space has no valid config")

    @cached_property
    def _ranks(self) -> np.ndarray:
        """The listed configs as ranks of their values, (configs, knobs)."""
        rank = [{v: i for i, v in enumerate(k.values)} for k in self.knobs]
        return np.array([[r[v] for r, v in zip(rank, row, strict=True)] for row in self._rows], np.int16)

    def _nearest(self, config: Config, rng: Random) -> Config:
        """The listed config with the fewest other values; one of several at random."""
        if not self._rows:
            raise ValueError("the space has no valid config")
        wanted = [k.values.index(v) if (v := config.get(k.name)) in k.values else -1 for k in self.knobs]
        far = (self._ranks != np.array(wanted, np.int16)).sum(axis=1)
        return dict(self._uniform[rng.choice(np.flatnonzero(far == far.min()).tolist())])

    def _search(
        self, knobs: Sequence[Knob], order: Order, steps: Iterator[int] | None = None
    ) -> Iterator[Config]:
        """Valid assignments by backtracking; ends early when ``steps`` runs out."""
        waiting = _settle(self.constraints, _Partial())
        if waiting is None:
            return
        for found in _assign(tuple(knobs), order, _Partial(), waiting, steps):
            yield {k.name: found[k.name] for k in self.knobs}


class _Missing(Exception):
    """A constraint asked for a knob that has no value yet."""


class _Partial(dict[str, Value]):
    """A config in the making."""

    def __missing__(self, name: str) -> Value:
        raise _Missing(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The knob's value; a constraint that would take the default waits instead."""
        return self[name]


#: knob name -> constraints to look at again once it has a value
_Waiting = dict[str, tuple[Constraint, ...]]


def _settle(constraints: Sequence[Constraint], config: _Partial) -> _Waiting | None:
    """The constraints still undecided, by the knob each waits for; None when one fails."""
    waiting: _Waiting = {}
    for constraint in constraints:
        try:
            if not constraint(config):
                return None
        except _Missing as missing:
            name = str(missing.args[0])
            waiting[name] = (*waiting.get(name, ()), constraint)
    return waiting


def _assign(
    knobs: tuple[Knob, ...], order: Order, config: _Partial, waiting: _Waiting, steps: Iterator[int] | None
) -> Iterator[_Partial]:
    if not knobs:
        if not waiting:
            yield config
        return
    knob, rest = knobs[0], knobs[1:]
    held = waiting.get(knob.name, ())
    for value in order(knob):
        if steps is not None and next(steps, None) is None:
            break
        config[knob.name] = value
        more = _settle(held, config)
        if more is not None:
            yield from _assign(rest, order, config, _merge(waiting, more, knob.name), steps)
    config.pop(knob.name, None)


def _merge(waiting: _Waiting, more: _Waiting, settled: str) -> _Waiting:
    if not more and settled not in waiting:
        return waiting
    merged = {name: held for name, held in waiting.items() if name != settled}
    for name, held in more.items():
        merged[name] = merged.get(name, ()) + held
    return merged
