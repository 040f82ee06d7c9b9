"""A space: knobs + constraints. It enumerates, samples, mutates, crosses and repairs configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from math import prod
from random import Random

from wpk.search.knobs import Knob, Value

Config = dict[str, Value]
Constraint = Callable[[Config], bool]


@dataclass(frozen=True)
class Space:
    """All assignments of ``knobs`` for which every constraint holds.

    ``first`` are configs worth trying before any others (the analytic defaults), best first; ``default()`` is the first
    valid one of them, else the knobs' defaults, repaired.
    """

    knobs: tuple[Knob, ...]
    constraints: tuple[Constraint, ...] = ()
    first: tuple[Config, ...] = field(default=(), compare=False)

    def valid(self, config: Config) -> bool:
        """True when ``config`` assigns every knob one of its values and all constraints hold."""
        if set(config) != {k.name for k in self.knobs} or any(config[k.name] not in k.values for k in self.knobs):
            return False
        return all(c(config) for c in self.constraints)

    @property
    def raw_size(self) -> int:
        """Assignments before constraints."""
        return prod(len(k.values) for k in self.knobs)

    def enumerate(self) -> Iterator[Config]:
        """Every valid config, in knob order."""
        names = [k.name for k in self.knobs]
        for values in product(*(k.values for k in self.knobs)):
            config = dict(zip(names, values, strict=True))
            if all(c(config) for c in self.constraints):
                yield config

    def default(self) -> Config:
        """The config to use when nothing is measured. Raises ValueError for an empty space."""
        for config in self.first:
            if self.valid(config):
                return dict(config)
        return self.repair({k.name: k.default for k in self.knobs}, Random(0))

    def sample(self, rng: Random) -> Config:
        """A random valid config: uniform by rejection, then by repair. Raises ValueError for an empty space."""
        for _ in range(64):
            config: Config = {k.name: k.sample(rng) for k in self.knobs}
            if all(c(config) for c in self.constraints):
                return config
        return self.repair({k.name: k.sample(rng) for k in self.knobs}, rng)

    def repair(self, config: Config, rng: Random) -> Config:
        """The nearest valid config found by changing few knobs, else by enumeration."""
        if self.valid(config):
            return config
        for changes in range(1, 4):
            for _ in range(48):
                trial = dict(config)
                for knob in rng.sample(self.knobs, min(changes, len(self.knobs))):
                    trial[knob.name] = knob.sample(rng)
                if self.valid(trial):
                    return trial
        found = next(self.enumerate(), None)
        if found is None:
            raise ValueError("the space has no valid config")
        return found

    def mutate(self, config: Config, rng: Random, rate: float = 0.25) -> Config:
        """Move some knobs (at least one): mostly to a neighbour, sometimes anywhere; the result is valid."""
        chosen = [k for k in self.knobs if rng.random() < rate and len(k.values) > 1]
        movable = [k for k in self.knobs if len(k.values) > 1]
        if not chosen and movable:
            chosen = [rng.choice(movable)]
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

    def encode(self, config: Config) -> tuple[float, ...]:
        """A fixed-length numeric vector of a config."""
        return tuple(x for k in self.knobs for x in k.encode(config[k.name]))
