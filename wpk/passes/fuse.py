"""Vertical fusion: an eltwise joins the node that makes one of its operands, as (part of) its epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.pointwise import Acc, Input, Point, size, substitute
from wpk.graph.graph import Node
from wpk.ops import OPERATORS
from wpk.passes.draft import Draft
from wpk.passes.rewrite import Match

#: who takes an eltwise in, the most worthwhile first
ANCHORS = ("conv", "gemm", "matmul", "norm", "eltwise", "pool", "reduce")


@dataclass(frozen=True)
class FuseEpilogue:
    """anchor → eltwise becomes one node. ``max`` bounds the operators of the joint expression."""

    max: int = 24
    name: str = "fuse"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """An eltwise with each anchor that makes an operand: convolutions first, the latest of them first."""
        if node.op != "eltwise":
            return
        makers = [
            m for v in dict.fromkeys(node.inputs) if (m := draft.maker(v)) is not None and m.op in ANCHORS
        ]
        for maker in sorted(makers, key=lambda m: (ANCHORS.index(m.op), -draft.rank[m.name])):
            yield node, maker

    def check(self, draft: Draft, match: Match) -> str | None:
        """One reader, one shape, operands the anchor can read beside its result, and a bounded expression."""
        node, anchor = match
        (value,) = anchor.outputs
        if reason := draft.shared(value):
            return reason
        shape = draft.types[node.outputs[0]].shape
        if anchor.op != "eltwise" and draft.types[node.outputs[0]].dtype != draft.types[value].dtype:
            return f"{node.outputs[0]!r} is {draft.types[node.outputs[0]].dtype}"
        if draft.types[value].shape != shape:
            return f"{value!r} is broadcast from {draft.types[value].shape} to {shape}"
        point = joint(node, anchor)[0]
        if size(point) > self.max:
            return f"the expression would have {size(point)} operators, the limit is {self.max}"
        others = (v for v in node.inputs if v != value)
        return next(filter(None, (operand_reason(draft, anchor, v, shape) for v in others)), None)

    def rewrite(self, draft: Draft, match: Match) -> None:
        """The anchor with the joint expression makes the eltwise's output."""
        node, anchor = match
        point, inputs = joint(node, anchor)
        origin = tuple(dict.fromkeys((*anchor.origin, *node.origin)))
        rank = max(draft.rank[node.name], draft.rank[anchor.name])
        draft.drop(node)
        draft.drop(anchor)
        draft.put(replace(anchor, inputs=inputs, outputs=node.outputs, epilogue=point, origin=origin), rank)


def operand_reason(draft: Draft, anchor: Node, value: str, shape: tuple[int, ...]) -> str | None:
    """Why ``anchor`` cannot read ``value`` in its epilogue; None when it can.

    An eltwise reads anything, a batch of products whatever broadcasts. Others read activations of the output's shape and
    constants of one value for each channel: (1, C, 1, 1) of images, (1, …, N) of matrices.
    """
    found = draft.types[value]
    if anchor.op == "eltwise":
        return None
    if found.dtype != "float32":
        return f"operand {value!r} is {found.dtype}"
    if anchor.op == "matmul" and np.broadcast_shapes(found.shape, shape) == shape:
        return None
    if value not in draft.constants:
        return (
            None
            if found.shape == shape
            else f"operand {value!r} of shape {found.shape} is not the output's {shape}"
        )
    axis = 1 if anchor.op in ("conv", "pool") else len(shape) - 1
    channels = tuple(d if i == axis else 1 for i, d in enumerate(shape))
    if found.shape in (channels, (1,) * len(shape)):
        return None
    return f"constant {value!r} of shape {found.shape} is not one value for each channel, {channels}"


def joint(node: Node, anchor: Node) -> tuple[Point, tuple[str, ...]]:
    """The expression of both and its operands: the anchor's inputs, then what only the eltwise reads."""
    assert node.epilogue is not None
    (value,) = anchor.outputs
    inner = anchor.epilogue if anchor.epilogue is not None else Acc()
    inputs, own = list(anchor.inputs), OPERATORS[anchor.op].arity or 0

    def leaf(point: Point) -> Point:
        if not isinstance(point, Input):
            return point
        name = node.inputs[point.index]
        if name == value:
            return inner
        if name not in inputs[own:]:
            inputs.append(name)
        return Input(own + inputs[own:].index(name))

    return substitute(node.epilogue, leaf), tuple(inputs)
