"""Strategies: they propose configs and are told how long each took. They know no kernels, devices or clocks.

A strategy holds its own ``Random(seed)`` and is reproducible: the same seed and the same answers give the same proposals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol

from wpk.core.errors import UsageError
from wpk.core.result import config_key
from wpk.search.exhaustive import Exhaustive
from wpk.search.genetic import Genetic
from wpk.search.randomly import Randomly
from wpk.search.space import Config, Space

#: a config and its seconds; infinity for a failure of any kind
Told = tuple[Config, float]

STRATEGIES = ("genetic", "random", "exhaustive")


class Strategy(Protocol):
    """Ask for configs, tell their times."""

    def ask(self, n: int) -> list[Config]:
        """Up to ``n`` valid configs, none asked or told before; fewer only when the space is used up."""
        ...

    def tell(self, results: Sequence[Told]) -> None:
        """Take in results, in the order measured. Configs that were never asked are welcome (earlier logs)."""
        ...


def make_strategy(name: str, space: Space, seed: int, first: Iterable[Config] = ()) -> Strategy:
    """The strategy ``name`` on ``space``. It begins with ``space.default()``, ``space.first``, then ``first``.

    ``first`` are configs from elsewhere, such as another shape's log; see :func:`beginning`.

    Raises UsageError for an unknown name, ValueError for an empty space.
    """
    begin = beginning(space, first)
    if name == "genetic":
        return Genetic(space, seed, begin)
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
