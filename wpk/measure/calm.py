"""Timing when the machine is itself: a probe of its speed before and after tells.

Another program takes a core for a while, or the host of a virtual machine lets two of its cores share a real one, for tenths of a
second at a time. All that is timed then takes up to twice its time, and a search that begins there shuns what is good.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

#: The share of the best speed seen that is good enough: a probe varies by some percent.
_ENOUGH = 0.85
#: Seconds that a timing waits for the machine, and how often it is made at most.
_PATIENCE, _ATTEMPTS = 0.25, 3
#: What is left of the best speed each time the machine does not come back to it: it may have become slower for good.
_FORGET = 0.9


class Calm:
    """``probe``: the speed at this moment, more is faster, in any unit; by default nothing is known of it."""

    def __init__(self, probe: Callable[[], float] = lambda: 1.0, clock: Callable[[], float] = perf_counter) -> None:
        self._probe, self._clock = probe, clock
        self._best = 0.0

    def settle(self) -> bool:
        """Probe until the machine is as fast as it was seen to be; False when that takes too long."""
        start = self._clock()
        while not self.now():
            if self._clock() - start > _PATIENCE:
                self._best *= _FORGET
                return False
        return True

    def now(self) -> bool:
        """Whether the machine is as fast as it was seen to be."""
        speed = self._probe()
        self._best = max(self._best, speed)
        return speed >= _ENOUGH * self._best

    def timed(self, measure: Callable[[], T], seconds: Callable[[T], float]) -> T:
        """What ``measure`` gives with the machine at its speed before and after; else the least of some by ``seconds``."""
        found: list[T] = []
        while len(found) < _ATTEMPTS:
            before = self.settle()
            found.append(measure())
            if before and self.now():
                return found[-1]
        return min(found, key=seconds)
