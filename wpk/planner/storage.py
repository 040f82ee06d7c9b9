"""Where every tensor lives: views, slices and in-place results share the memory of another; the rest gets arena blocks.

A *tensor* here is a value in one layout. Each has a place: a root and a byte offset into it. Roots are the model's inputs and
outputs, weights, and blocks of the arena.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wpk.planner.arena import ALIGNMENT, Block, place

#: A value name and a layout.
Tensor = tuple[str, str]


@dataclass(frozen=True)
class Action:
    """One step of the schedule.

    ``kind``: ``call`` (an implementation), ``alias`` (the write is the read), ``join`` (the write is made of the reads) or
    ``cut`` (the writes are parts of the read). ``sizes`` are the parts' bytes in one of ``repeats`` repeats. ``inplace``:
    reads whose memory the first write may take over.
    """

    name: str
    kind: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    inplace: tuple[int, ...] = ()
    repeats: int = 1
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """``offset`` bytes into ``root``."""

    root: Tensor
    offset: int = 0


@dataclass(frozen=True)
class Copy:
    """Bytes to move during an action: a piece of ``source`` to a piece of ``target``."""

    source: Tensor
    target: Tensor
    source_offset: int
    target_offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The result: places, arena offsets of the roots that are blocks, its size, and copies by action name.

    ``outputs`` maps roots to the model output whose buffer they are; ``output_copies`` are copied out at the end.
    """

    places: Mapping[Tensor, Place]
    offsets: Mapping[Tensor, int]
    arena_bytes: int
    copies: Mapping[str, tuple[Copy, ...]]
    outputs: Mapping[Tensor, str]
    output_copies: tuple[Tensor, ...]


def arrange(
    actions: Sequence[Action],
    nbytes: Mapping[Tensor, int],
    fixed: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> Layout:
    """Places for all tensors. ``fixed`` are inputs and weights, whose memory is given; ``outputs`` the model's."""
    work = _Arrangement(actions, nbytes, frozenset(fixed))
    work.alias()
    work.cut()
    work.join()
    work.bind_outputs(outputs)
    work.take_over()
    return work.result()


@dataclass
class _Arrangement:
    actions: Sequence[Action]
    nbytes: Mapping[Tensor, int]
    fixed: frozenset[Tensor]
    parent: dict[Tensor, Place] = field(default_factory=dict)
    copies: dict[str, list[Copy]] = field(default_factory=dict)
    bound: dict[Tensor, str] = field(default_factory=dict)
    copied: list[Tensor] = field(default_factory=list)

    def place(self, tensor: Tensor) -> Place:
        """Follow the links to the root."""
        offset = 0
        while tensor in self.parent:
            link = self.parent[tensor]
            tensor, offset = link.root, offset + link.offset
        return Place(tensor, offset)

    def alias(self) -> None:
        for action in self.actions:
            if action.kind == "alias":
                self.parent[action.writes[0]] = Place(action.reads[0])

    def cut(self) -> None:
        for action in self.actions:
            if action.kind != "cut":
                continue
            offset, whole = 0, sum(action.sizes)
            for part, size in zip(action.writes, action.sizes, strict=True):
                if action.repeats == 1 and offset % ALIGNMENT == 0:
                    self.parent[part] = Place(action.reads[0], offset)
                else:
                    self._copy(action, Copy(action.reads[0], part, offset, 0, size), whole, size)
                offset += size

    def join(self) -> None:
        """Small wholes first, so that a whole that is the beginning of a larger one goes into it in one piece."""
        joins = [a for a in self.actions if a.kind == "join"]
        for i, action in enumerate(joins):
            offset, whole = 0, sum(action.sizes)
            for part, size in self._pieces(action, joins[:i]):
                if action.repeats == 1 and offset % ALIGNMENT == 0 and self._movable(part, action.writes[0]):
                    self.parent[self.place(part).root] = Place(action.writes[0], offset)
                else:
                    self._copy(action, Copy(part, action.writes[0], 0, offset, size), size, whole)
                offset += size

    def _pieces(self, action: Action, earlier: Sequence[Action]) -> list[tuple[Tensor, int]]:
        """The parts, the longest run of them that an earlier join already holds taken as one."""
        parts = list(zip(action.reads, action.sizes, strict=True))
        for held in sorted(earlier, key=lambda e: -len(e.reads)):
            start = _find(held.reads, action.reads)
            if start is None or len(held.reads) < 2 or not held.repeats == action.repeats == 1:
                continue
            aligned = sum(action.sizes[:start]) % ALIGNMENT == 0
            if aligned and self._movable(held.writes[0], action.writes[0]):
                parts[start : start + len(held.reads)] = [(held.writes[0], sum(held.sizes))]
                break
        return parts

    def _movable(self, part: Tensor, whole: Tensor) -> bool:
        """Can the memory of ``part`` be laid into ``whole``? Not when it is given, lies elsewhere, or is a part itself."""
        at = self.place(part)
        own = at.offset == 0 and self.nbytes[at.root] == self.nbytes[part]
        return own and at.root not in self.fixed and at.root != self.place(whole).root

    def _copy(self, action: Action, first: Copy, source_step: int, target_step: int) -> None:
        """``first`` and its repetitions, ``source_step`` and ``target_step`` bytes apart."""
        pieces = self.copies.setdefault(action.name, [])
        for i in range(action.repeats if first.nbytes else 0):
            source, target = first.source_offset + i * source_step, first.target_offset + i * target_step
            pieces.append(replace(first, source_offset=source, target_offset=target))

    def bind_outputs(self, outputs: Sequence[Tensor]) -> None:
        for tensor in outputs:
            at = self.place(tensor)
            whole = at.offset == 0 and self.nbytes[at.root] == self.nbytes[tensor]
            if whole and at.root not in self.fixed and at.root not in self.bound:
                self.bound[at.root] = tensor[0]
            else:
                self.copied.append(tensor)

    def take_over(self) -> None:
        """Results that may overwrite an operand that nobody reads later."""
        last = {root: end for root, (_, end) in self._spans().items()}
        for index, action in enumerate(self.actions):
            if action.kind != "call" or len(action.writes) != 1:
                continue
            for i in action.inplace:
                if self._alone(action, i) and self._may_take(action.reads[i], action.writes[0], index, last):
                    self._take(action.reads[i], action.writes[0], last)
                    break

    def _alone(self, action: Action, index: int) -> bool:
        """True when no other operand looks at the same memory in another way."""
        root = self.place(action.reads[index]).root
        return all(t == action.reads[index] or self.place(t).root != root for t in action.reads)

    def _may_take(self, read: Tensor, write: Tensor, index: int, last: Mapping[Tensor, int]) -> bool:
        source, target = self.place(read), self.place(write)
        whole = source.offset == target.offset == 0 and self.nbytes[source.root] == self.nbytes[target.root]
        free = source.root not in self.fixed and source.root not in self.bound and source.root != target.root
        return whole and free and last[source.root] == index and self.nbytes[read] == self.nbytes[source.root]

    def _take(self, read: Tensor, write: Tensor, last: dict[Tensor, int]) -> None:
        source, target = self.place(read).root, self.place(write).root
        self.parent[source] = Place(target)
        last[target] = max(last[target], last[source])

    def result(self) -> Layout:
        places = {t: self.place(t) for t in self.nbytes}
        spans = {root: span for root, span in self._spans().items() if root not in self.bound}
        offsets, size = self._arena(spans)
        copies = {name: tuple(some) for name, some in self.copies.items() if some}
        return Layout(places, offsets, size, copies, dict(self.bound), tuple(self.copied))

    def _arena(self, spans: Mapping[Tensor, tuple[int, int]]) -> tuple[dict[Tensor, int], int]:
        names = {f"{value}@{layout}": (value, layout) for value, layout in spans}
        blocks = [Block(n, self.nbytes[t], *spans[t]) for n, t in names.items() if self.nbytes[t]]
        offsets, size = place(blocks)
        return {t: offsets.get(n, 0) for n, t in names.items()}, size

    def _spans(self) -> dict[Tensor, tuple[int, int]]:
        """Root → the first and last action during which anything in it is alive."""
        spans: dict[Tensor, tuple[int, int]] = {}
        uses = [(*action.reads, *action.writes) for action in self.actions]
        for index, tensors in enumerate((*uses, tuple(self.copied))):
            for tensor in tensors:
                root = self.place(tensor).root
                if root not in self.fixed:
                    spans[root] = (spans.get(root, (index, index))[0], index)
        return spans


def _find(few: Sequence[Tensor], many: Sequence[Tensor]) -> int | None:
    """Where ``few`` stands inside ``many``, in one piece."""
    starts = range(len(many) - len(few) + 1)
    return next((i for i in starts if tuple(many[i : i + len(few)]) == tuple(few)), None)
