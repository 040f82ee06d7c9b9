"""Random search without repetition: the yardstick for large spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

from wpk.core.result import config_key
from wpk.search.space import Config, Space

#: draws in a row that may be known already before the rest of the space is enumerated
PATIENCE = 200


class Randomly:
    """The given first configs, then uniform ones."""

    def __init__(self, space: Space, seed: int, first: Sequence[Config] = ()) -> None:
        self._space, self._rng, self._first = space, Random(seed), first
        self._seen: set[str] = set()
        self._configs = self._propose()

    def _propose(self) -> Iterator[Config]:
        yield from filter(self._fresh, self._first)
        known = 0
        while known < PATIENCE:
            config = self._space.sample(self._rng)
            known = 0 if (fresh := self._fresh(config)) else known + 1
            if fresh:
                yield config
        yield from filter(self._fresh, self._space.enumerate())

    def _fresh(self, config: Config) -> bool:
        size = len(self._seen)
        self._seen.add(config_key(config))
        return len(self._seen) > size

    def ask(self, n: int) -> list[Config]:
        """``n`` configs, none twice; fewer when no others are left."""
        return list(islice(self._configs, n))

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Only marks the configs as known."""
        self._seen.update(config_key(config) for config, _ in results)
