"""Which steps of a plan must wait for which: by the bytes they read and write. The rest may run beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Touch:
    """``nbytes`` from ``start`` in one address space, read or written."""

    start: int
    nbytes: int
    writes: bool

    def meets(self, other: Touch) -> bool:
        """True when the two cannot be in any order: they overlap and one of them writes."""
        apart = self.start + self.nbytes <= other.start or other.start + other.nbytes <= self.start
        return (self.writes or other.writes) and not apart


def dependencies(steps: Sequence[Sequence[Touch]]) -> list[tuple[int, ...]]:
    """For each step the earlier ones it must wait for, those left out that another of them waits for already."""
    found: list[tuple[int, ...]] = []
    behind: list[set[int]] = []  # all that a step waits for, directly or not
    for i, touches in enumerate(steps):
        covered: set[int] = set()
        direct: list[int] = []
        for j in range(i - 1, -1, -1):
            if j not in covered and _conflict(touches, steps[j]):
                direct.append(j)
                covered |= {j} | behind[j]
        found.append(tuple(reversed(direct)))
        behind.append(covered)
    return found


def lanes(after: Sequence[Sequence[int]], most: int) -> list[int]:
    """A lane (stream) for each step, at most ``most``: that of a step it waits for, if nobody followed that one there yet."""
    lane: list[int] = []
    last: list[int] = []  # the last step of each lane
    for i, before in enumerate(after):
        free = [lane[j] for j in before if last[lane[j]] == j]
        mine = free[0] if free else len(last) if len(last) < most else min(range(most), key=lambda x: last[x])
        if mine == len(last):
            last.append(i)
        last[mine] = i
        lane.append(mine)
    return lane


def _conflict(a: Sequence[Touch], b: Sequence[Touch]) -> bool:
    return any(x.meets(y) for x in a for y in b)
