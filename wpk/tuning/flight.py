"""Batches under way: where several devices measure, the next batches are asked for before the last ones are known.

Results are taken in the order in which batches were begun, whatever device was faster, so that the same measurements give the
same proposals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from wpk.core.result import Config, Measurement

#: Candidates under way for each device while the oldest batch is awaited: one is measured, the next one is ready.
_AHEAD = 2

A = TypeVar("A")


@dataclass(frozen=True)
class Batch(Generic[A]):
    """Configs of one arm whose ``measurements`` are coming. ``begun``: seconds, when they were asked for."""

    arm: A
    configs: Sequence[Config]
    measurements: Iterator[Measurement]
    begun: float

    def drop(self) -> None:
        """Want no more of it."""
        close = getattr(self.measurements, "close", None)
        if close is not None:
            close()


class Flight(Generic[A]):
    """The batches under way, oldest first."""

    def __init__(self) -> None:
        self._batches: deque[Batch[A]] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Batch[A]) -> None:
        """A batch was begun."""
        self._batches.append(batch)

    def oldest(self) -> Batch[A]:
        """The batch begun first, which is no longer under way."""
        return self._batches.popleft()

    def full(self, slots: int) -> bool:
        """True when ``slots`` devices have enough to do. A single one takes one batch at a time."""
        if slots <= 1:
            return bool(self._batches)
        return sum(len(b.configs) for b in islice(self._batches, 1, None)) >= _AHEAD * slots

    def configs(self, *arms: A) -> int:
        """How many configs of these arms are under way."""
        return sum(len(b.configs) for b in self._batches if any(b.arm is a for a in arms))

    def drop(self) -> None:
        """Want none of them any more."""
        while self._batches:
            self._batches.popleft().drop()
