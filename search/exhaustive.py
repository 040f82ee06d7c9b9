"""Exhaustive search: the yardstick for small spaces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from wpk.core.result import config_key
from wpk.search.space import Config, Space


class Exhaustive:
    """Every config once: the given first ones, then the space in its own order."""

    def __init__(self, space: Space, first: Sequence[Config] = ()) -> None:
        self._seen: set[str] = set()
        self._configs = filter(self._fresh, chain(first, space.enumerate()))

    def _fresh(self, config: Config) -> bool:
        key = config_key(config)
        fresh = key not in self._seen
        self._seen.add(key)
        return fresh

    def ask(self, n: int) -> list[Config]:
        """The next ``n`` configs."""
        return list(islice(self._configs, n))

    def tell(self, results: Sequence[tuple[Config, float]]) -> None:
        """Only marks the configs as known."""
        self._seen.update(config_key(config) for config, _ in results)
