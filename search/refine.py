"""Local refinement: the untried neighbours of the best configs, nearest the very best first; how a search should end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite

from wpk.core.result import config_key
from wpk.search.space import Config, Space

#: Configs whose neighbours are tried, best first.
_CENTRES = 4


class Refine:
    """Neighbours of the best known. ``order`` gives the expected cost of configs, smaller is better; None: the space's order.

    It proposes nothing before something succeeded, and nothing once the best have no new neighbours.
    """

    def __init__(self, space: Space, order: Callable[[Sequence[Config]], Sequence[float]] | None = None) -> None:
        self._space, self._order = space, order
        self._seen: set[str] = set()
        self._best: list[tuple[float, Config]] = []

    def ask(self, n: int) -> list[Config]:
        """Up to ``n`` neighbours, none asked or told before."""
        found: list[Config] = []
        for _, centre in self._best:
            found += self._new(centre, n - len(found))
            if len(found) >= n:
                break
        return found

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Results of anyone."""
        self._seen.update(config_key(c) for c, _ in results)
        ran = [(s, c) for c, s in results if isfinite(s) and self._space.valid(c)]
        self._best = sorted([*self._best, *ran], key=lambda x: x[0])[:_CENTRES]

    def _new(self, centre: Config, n: int) -> list[Config]:
        near = list(self._untried(centre))
        if self._order is not None and len(near) > 1:
            costs = self._order(near)
            near = [near[i] for i in sorted(range(len(near)), key=lambda i: costs[i])]
        self._seen.update(config_key(c) for c in near[:n])
        return near[:n]

    def _untried(self, centre: Config) -> Iterator[Config]:
        return (c for c in self._space.neighbours(centre) if config_key(c) not in self._seen)
