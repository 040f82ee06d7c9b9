"""Lifetimes → offsets: blocks that live at different times share memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wpk.core.errors import InternalError

#: Blocks start at multiples of this many bytes: a cache line, and the widest vector.
ALIGNMENT = 64


@dataclass(frozen=True)
class Block:
    """``nbytes`` of memory needed from step ``first`` to step ``last``, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """True when both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


def align(nbytes: int) -> int:
    """``nbytes`` rounded up to :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def place(blocks: Sequence[Block]) -> tuple[dict[str, int], int]:
    """Block name → offset, and the size of the arena. Largest first, each into the tightest gap it fits."""
    offsets: dict[str, int] = {}
    placed: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.nbytes, b.first, b.name)):
        busy = sorted((offsets[p.name], offsets[p.name] + align(p.nbytes)) for p in placed if p.meets(block))
        offsets[block.name] = _best_gap(busy, align(block.nbytes))
        placed.append(block)
    size = max((offsets[b.name] + align(b.nbytes) for b in blocks), default=0)
    check(blocks, offsets)
    return offsets, size


def check(blocks: Sequence[Block], offsets: Mapping[str, int]) -> None:
    """Raises InternalError when two blocks alive at once share a byte, or one is not aligned."""
    active: list[Block] = []
    for block in sorted(blocks, key=lambda b: b.first):
        start = offsets[block.name]
        active = [a for a in active if a.last >= block.first]
        for other in active:
            low = offsets[other.name]
            if start < low + other.nbytes and low < start + block.nbytes:
                raise InternalError(f"arena: {block.name} and {other.name} overlap")
        if start % ALIGNMENT or start < 0:
            raise InternalError(f"arena: {block.name} starts at byte {start}")
        active.append(block)


def _best_gap(busy: Sequence[tuple[int, int]], nbytes: int) -> int:
    """The start of the smallest gap between ``busy`` intervals (sorted) that holds ``nbytes``; the end when none does."""
    best: tuple[int, int] | None = None
    top = 0
    for start, end in busy:
        if start - top >= nbytes and (best is None or start - top < best[0]):
            best = (start - top, top)
        top = max(top, end)
    return top if best is None else best[1]
