"""An eltwise behind a concat moves in front of it, to join what makes the parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from wpk.graph.graph import Node
from wpk.passes.draft import Draft
from wpk.passes.fuse import ANCHORS
from wpk.passes.rewrite import Match


@dataclass(frozen=True)
class HoistEltwise:
    """eltwise(concat(a, b)) → concat(eltwise(a), eltwise(b)), constants by channel being cut like the concat."""

    name: str = "hoist"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """An eltwise of one activation, made by a concat."""
        if node.op == "eltwise":
            varying = [v for v in node.inputs if v not in draft.constants]
            concat = draft.maker(varying[0]) if len(varying) == 1 else None
            if (
                concat is not None
                and concat.op == "concat"
                and draft.types[varying[0]] == draft.types[node.outputs[0]]
            ):
                yield node, concat

    def check(self, draft: Draft, match: Match) -> str | None:
        """Every part must be made by an anchor for the concat alone: then the eltwise costs nothing there."""
        concat = match[1]
        if reason := draft.shared(concat.outputs[0]):
            return reason
        if len(set(concat.inputs)) != len(concat.inputs):
            return "the concat reads a part twice"
        for value in concat.inputs:
            maker = draft.maker(value)
            if maker is None or maker.op not in ANCHORS:
                return f"{value!r} is not made by a node that takes an epilogue"
            if reason := draft.shared(value):
                return reason
        return None

    def rewrite(self, draft: Draft, match: Match) -> None:
        """One eltwise for each part."""
        node, concat = match
        (whole,), (result,) = concat.outputs, node.outputs
        axis, rank, start, parts = int(concat.attr("axis")), draft.rank[node.name], 0, []  # type: ignore[arg-type]
        draft.drop(node)
        draft.drop(concat)
        for i, value in enumerate(concat.inputs):
            shape = draft.types[value].shape
            stop = start + shape[axis]
            inputs = tuple(
                value if v == whole else _cut(draft, v, axis, start, stop, len(shape)) for v in node.inputs
            )
            parts.append(draft.value(f"{result}.{i}", shape))
            name = draft.fresh_node(f"{node.name}.{i}")
            draft.put(replace(node, name=name, inputs=inputs, outputs=(parts[-1],)), rank)
            start = stop
        draft.put(replace(concat, inputs=tuple(parts), outputs=(result,)), rank)


def _cut(draft: Draft, value: str, axis: int, start: int, stop: int, rank: int) -> str:
    array = draft.constants[value]
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.shape[axis] == 1:
        return value
    return draft.constant(array[(slice(None),) * axis + (slice(start, stop),)], value)
