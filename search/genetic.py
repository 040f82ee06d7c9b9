"""The genetic strategy, on DEAP: tournament selection, crossover and mutation that keep constraints, elitism.

Generations overlap: whoever is told enters the population, and the worst leave it. Batches may thus have any size. Nothing
is proposed twice. Some proposals are one-step neighbours of the best configs known, and a few are random, so that the
search neither stops short of the nearest optimum nor stays in it. Of a brood of children only the one that inherits most
(:mod:`wpk.search.inheritance`) is measured: making children costs nothing beside measuring one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from random import Random

from deap import base, tools

from wpk.core.result import config_key
from wpk.search.inheritance import Inheritance
from wpk.search.space import Config, Space

#: Children tried in one way before the next, more random one.
_TRIES = 20


@dataclass(frozen=True)
class GeneticOptions:
    """Population size, elite size, tournament size, and the shares of the ways a child comes about.

    ``cross``, ``climb`` (a neighbour of an elite member) and ``fresh`` (random) are probabilities; the rest is mutation.
    ``brood``: children made for each that is proposed; ``blind``: the share of proposals made without comparing any;
    ``shortlist``: children of a brood that a screen compares, where there is one. A run has
    100 to 200 measurements: a population of 12 breeds from the second batch on, and many random children in a brood cost
    nothing, for those that inherit little are not measured. On recorded spaces results vary little around these values.
    """

    population: int = 12
    elite: int = 4
    tournament: int = 3
    cross: float = 0.35
    climb: float = 0.2
    fresh: float = 0.3
    brood: int = 16
    blind: float = 0.1
    shortlist: int = 4


class _Seconds(base.Fitness):  # type: ignore[misc]
    """Smaller is better."""

    weights = (-1.0,)


class _Individual:
    """A config with its fitness, as DEAP's tools want it."""

    def __init__(self, config: Config, seconds: float) -> None:
        self.config, self.key = dict(config), config_key(config)
        self.fitness = _Seconds((seconds,))


def _same(a: _Individual, b: _Individual) -> bool:
    return a.key == b.key


@contextmanager
def _globally(rng: Random) -> Iterator[None]:
    """DEAP draws from the global generator: lend it ``rng``'s state, and leave the global state as it was."""
    state = random.getstate()
    random.setstate(rng.getstate())
    try:
        yield
    finally:
        rng.setstate(random.getstate())
        random.setstate(state)


class Genetic:
    """See the module. ``first`` are the configs of the first generation's beginning, best first.

    A ``screen``, an opinion of what configs cost, chooses among those of a brood that inherit most.
    """

    def __init__(
        self, space: Space, seed: int, first: Sequence[Config] = (), options: GeneticOptions | None = None,
        screen: Callable[[Sequence[Config]], Sequence[float]] | None = None,
    ) -> None:  # fmt: skip
        self._space, self._rng = space, Random(seed)
        self._options, self._screen = options or GeneticOptions(), screen
        self._queue = [dict(c) for c in first]
        self._seen: set[str] = set()
        self._population: list[_Individual] = []
        self._elite = tools.HallOfFame(self._options.elite, similar=_same)
        self._rest: Iterator[Config] | None = None
        self._inheritance = Inheritance(space)
        self._toolbox = _toolbox(space, self._rng, self._options)

    @property
    def best(self) -> tuple[Config, float] | None:
        """The best config told and its seconds; None before any success."""
        if not self._elite or not isfinite(_seconds(self._elite[0])):
            return None
        return dict(self._elite[0].config), _seconds(self._elite[0])

    def ask(self, n: int) -> list[Config]:
        """``n`` configs, none asked or told before; fewer when the space is used up."""
        asked: list[Config] = []
        while len(asked) < n and (config := self._next()) is not None:
            self._seen.add(config_key(config))
            asked.append(config)
        return asked

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Results enter the population; the worst leave it."""
        told = [_Individual(c, s) for c, s in results if self._space.valid(c)]
        self._seen.update(i.key for i in told)
        self._elite.update(told)
        for one in told:
            self._inheritance.add(one.config, _seconds(one))
        newest = {i.key: i for i in (*self._population, *told)}
        self._population = tools.selBest(list(newest.values()), self._options.population)

    def _next(self) -> Config | None:
        while self._queue:
            config = self._queue.pop(0)
            if self._fresh(config):
                return config
        brood = self._brood()
        return self._selected(brood) if brood else self._leftover()

    def _selected(self, brood: Sequence[Config]) -> Config:
        """The child to be measured. A blind brood of one is not looked at."""
        if self._screen is None or len(brood) == 1:
            return self._inheritance.least(brood)
        few = self._inheritance.ranked(brood)[: self._options.shortlist if self._parents() else None]
        costs = self._screen(few)
        return few[min(range(len(few)), key=lambda i: costs[i])]

    def _brood(self) -> list[Config]:
        """New configs, made in ever more random ways until there is one; no more than options say."""
        aimless = not self._parents() and self._screen is None
        blind = aimless or self._rng.random() < self._options.blind
        wanted, brood = 1 if blind else self._options.brood, dict[str, Config]()
        for attempt, make in enumerate(self._ways()):
            if len(brood) == wanted or (brood and attempt >= _TRIES):
                break
            config = make()
            if self._fresh(config):
                brood[config_key(config)] = config
        return list(brood.values())

    def _ways(self) -> Iterator[Callable[[], Config]]:
        """Ways to make a config, ever more random."""
        for attempt in range(3 * _TRIES):
            if not self._parents() or attempt >= 2 * _TRIES:
                yield self._toolbox.sample
            else:
                yield self._wild if attempt >= _TRIES else self._breed

    def _parents(self) -> list[_Individual]:
        """Who may have children: those that ran, once the first generation is complete enough to choose from."""
        alive = [i for i in self._population if isfinite(_seconds(i))]
        return alive if len(self._population) >= self._options.population // 2 else []

    def _breed(self) -> Config:
        options, draw = self._options, self._rng.random()
        if draw < options.fresh:
            return self._toolbox.sample()  # type: ignore[no-any-return]
        if draw < options.fresh + options.climb:
            return self._climb()
        if draw < options.fresh + options.climb + options.cross:
            child = self._toolbox.mate(*(i.config for i in self._select(2)))
            return self._toolbox.mutate(child, rate=0.1) if self._rng.random() < 0.5 else child  # type: ignore[no-any-return]
        return self._toolbox.mutate(self._select(1)[0].config)  # type: ignore[no-any-return]

    def _climb(self) -> Config:
        """An untried neighbour of one of the best, the better the likelier."""
        elite = list(self._elite)
        one = elite[min(int(self._rng.expovariate(1.0)), len(elite) - 1)]
        near = [c for c in self._space.neighbours(one.config) if self._fresh(c)]
        return self._rng.choice(near) if near else self._space.mutate(one.config, self._rng)

    def _wild(self) -> Config:
        return self._toolbox.mutate(self._select(1)[0].config, rate=0.5)  # type: ignore[no-any-return]

    def _select(self, n: int) -> list[_Individual]:
        with _globally(self._rng):
            return self._toolbox.select(self._parents(), n)  # type: ignore[no-any-return]

    def _fresh(self, config: Config) -> bool:
        return config_key(config) not in self._seen

    def _leftover(self) -> Config | None:
        """The space is nearly used up: go through what remains."""
        if self._rest is None:
            self._rest = self._space.enumerate()
        return next(filter(self._fresh, self._rest), None)


def _toolbox(space: Space, rng: Random, options: GeneticOptions) -> base.Toolbox:
    toolbox = base.Toolbox()
    toolbox.register("sample", space.sample, rng)
    toolbox.register("mate", space.cross, rng=rng)
    toolbox.register("mutate", space.mutate, rng=rng)
    toolbox.register("select", tools.selTournament, tournsize=options.tournament)
    return toolbox


def _seconds(individual: _Individual) -> float:
    values = individual.fitness.values
    return float(values[0]) if values else inf
