"""Strategies: they propose configs and are told how long each took. They know no kernels, devices or clocks.

A strategy holds its own ``Random(seed)`` and is reproducible: the same seed and the same answers give the same proposals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Protocol, runtime_checkable

from wpk.core.errors import UsageError
from wpk.core.result import config_key
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.search.auto import AutoOptions, Portfolio
from wpk.search.exhaustive import Exhaustive
from wpk.search.genetic import Genetic
from wpk.search.policy import Policy
from wpk.search.randomly import Randomly
from wpk.search.rl import Reinforced, RlOptions, Screen
from wpk.search.space import Config, Space

#: a config and its seconds; infinity for a failure of any kind
Told = tuple[Config, float]

#: Those that heed a screen.
SCREENED = ("auto", "rl", "genetic")
STRATEGIES = ("auto", "rl", "genetic", "random", "exhaustive")


class Strategy(Protocol):
    """Ask for configs, tell their times."""

    def ask(self, n: int) -> list[Config]:
        """Up to ``n`` valid configs, none asked or told before; fewer only when the space is used up."""
        ...

    def tell(self, results: Sequence[Told]) -> None:
        """Take in results, in the order measured. Configs that were never asked are welcome (earlier logs)."""
        ...


@runtime_checkable
class Learner(Strategy, Protocol):
    """A strategy that has an opinion of what is still to be gained."""

    def tell_failures(self, kinds: Sequence[tuple[Config, str]]) -> None:
        """How configs failed, by kind (wpk.core.result.FAILURES), before they are told as infinity."""
        ...

    def expected_gain(self, seconds: float = inf) -> float:
        """The share of the best time, or of ``seconds`` if less, that one more config is expected to save; infinity: unknown."""
        ...


@dataclass(frozen=True)
class Context:
    """What a strategy may know besides the space. All of it is advice.

    ``workload`` and ``target`` condition a trained ``policy``; ``screen`` is a cost model's opinion of configs, any unit, smaller
    is better; ``trials``: how many configs will be asked for at most, where that is known.
    """

    workload: Workload | None = None
    target: Target | None = None
    policy: Policy | None = None
    screen: Screen | None = None
    trials: int | None = None
    options: RlOptions | None = None


def make_strategy(
    name: str, space: Space, seed: int, first: Iterable[Config] = (), context: Context | None = None
) -> Strategy:
    """The strategy ``name`` on ``space``. It begins with ``space.default()``, ``space.first``, then ``first``.

    ``first`` are configs from elsewhere, such as another shape's log; see :func:`beginning`.

    Raises UsageError for an unknown name, ValueError for an empty space.
    """
    begin, known = beginning(space, first), context or Context()
    if name in ("auto", "rl"):
        given = (known.workload, known.target, known.policy, known.screen)
        if name == "rl":
            return Reinforced(space, seed, begin, known.options, *given)
        return Portfolio(space, seed, begin, AutoOptions(rl=known.options or RlOptions()), *given, known.trials)
    if name == "genetic":
        return Genetic(space, seed, begin, screen=known.screen)
    if name == "random":
        return Randomly(space, seed, begin)
    if name == "exhaustive":
        return Exhaustive(space, begin)
    raise UsageError(f"strategy {name!r}: expected one of {', '.join(STRATEGIES)}")


def beginning(space: Space, extra: Iterable[Config]) -> tuple[Config, ...]:
    """The default, ``space.first`` and ``extra``, in that order, each once and all valid.

    Configs of ``extra`` that break a constraint or have a value this space lacks are repaired; those of other knobs left out.
    """
    rng, names = Random(0), {k.name for k in space.knobs}
    hints = [space.repair(dict(c), rng) for c in extra if set(c) == names]
    candidates = (space.default(), *(c for c in space.first if space.valid(c)), *hints)
    return tuple({config_key(c): dict(c) for c in candidates}.values())
