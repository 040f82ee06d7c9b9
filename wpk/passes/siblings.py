"""Horizontal fusion: convolutions of one input with one shape of window become one, whose result is split by channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wpk.graph.graph import Node
from wpk.passes.draft import Draft
from wpk.passes.rewrite import Match


@dataclass(frozen=True)
class FuseSiblings:
    """conv(x, w1), conv(x, w2) → split(conv(x, w1 ‖ w2)). ``multiple``: channels of all parts but the last must divide by it."""

    multiple: int = 1
    name: str = "siblings"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """The first of all convolutions that read the same input in the same way."""
        if node.op != "conv" or node.attr("group") != 1:
            return
        same = [n for n in draft.readers(node.inputs[0]) if _alike(draft, node, n)]
        same.sort(key=lambda n: draft.rank[n.name])
        if len(same) > 1 and same[0].name == node.name:
            yield tuple(same)

    def check(self, draft: Draft, match: Match) -> str | None:
        """All weights and operands must be constant, for they are concatenated."""
        varying = next((v for n in match for v in n.inputs[1:] if v not in draft.constants), None)
        if varying is not None:
            return f"operand {varying!r} is not constant"
        channels = [draft.types[n.outputs[0]].shape[1] for n in match[:-1]]
        odd = next((c for c in channels if c % self.multiple), None)
        return None if odd is None else f"{odd} channels do not divide by {self.multiple}"

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Concatenate weights and operands along the output channels; split the result."""
        first = match[0]
        outputs = tuple(n.outputs[0] for n in match)
        shapes = [draft.types[v].shape for v in outputs]
        sizes = tuple(s[1] for s in shapes)
        columns = list(zip(*(n.inputs[1:] for n in match), strict=True))
        joined = [self._join(draft, values, sizes, axis=min(i, 1)) for i, values in enumerate(columns)]
        whole = draft.value(f"{outputs[0]}.siblings", (shapes[0][0], sum(sizes), *shapes[0][2:]))
        origin = tuple(dict.fromkeys(o for n in match for o in n.origin))
        rank = draft.rank[first.name]
        for node in match:
            draft.drop(node)
        draft.put(replace(first, inputs=(first.inputs[0], *joined), outputs=(whole,), origin=origin), rank)
        split = draft.fresh_node(f"{first.name}.split")
        draft.put(
            Node(split, "split", (whole,), outputs, (("axis", 1), ("sizes", sizes)), None, origin), rank
        )

    @staticmethod
    def _join(draft: Draft, values: tuple[str, ...], sizes: tuple[int, ...], axis: int) -> str:
        arrays = [draft.constants[v] for v in values]
        if axis == 1:  # an operand by channel; a single value stands for all channels
            arrays = [np.broadcast_to(a, (1, c, 1, 1)) for a, c in zip(arrays, sizes, strict=True)]
        return draft.constant(np.concatenate(arrays, axis=axis), f"{values[0]}.siblings")


def _alike(draft: Draft, a: Node, b: Node) -> bool:
    same = (
        b.op == "conv"
        and a.inputs[0] == b.inputs[0]
        and a.attrs == b.attrs
        and len(a.inputs) == len(b.inputs)
    )
    kernels = (draft.types[a.inputs[1]].shape[1:], draft.types[b.inputs[1]].shape[1:]) if same else (0, 1)
    return same and kernels[0] == kernels[1] and a.epilogue == b.epilogue
