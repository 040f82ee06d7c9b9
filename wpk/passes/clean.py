"""Cleanup rules: what moves no data, or moves it twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.pointwise import Input, Literal, Point, substitute
from wpk.graph.graph import Node
from wpk.ops import OPERATORS
from wpk.passes.draft import Draft
from wpk.passes.fuse import ANCHORS
from wpk.passes.rewrite import Match


@dataclass(frozen=True)
class Forward:
    """A node that gives back its input (a view to the same shape, a concat or split of one, x → x) goes away."""

    name: str = "forward"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """Any node of one output whose result is its first input."""
        if len(node.outputs) != 1 or not node.inputs or node.inputs[0] in draft.constants:
            return
        same = draft.types[node.inputs[0]] == draft.types[node.outputs[0]]
        single = node.op in ("concat", "split", "view") or (node.op == "transpose" and _is_identity(node))
        if (
            same
            and (single or (node.op == "eltwise" and node.epilogue == Input(0)))
            and len(node.inputs) == 1
        ):
            yield (node,)

    def check(self, draft: Draft, match: Match) -> str | None:
        """An output of the model must still be made by some node under its own name."""
        source, result = match[0].inputs[0], match[0].outputs[0]
        if draft.is_output(result) and (draft.maker(source) is None or draft.is_output(source)):
            return f"{result!r} is an output of the model"
        return None

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Readers read the input."""
        draft.forward(match[0], match[0].inputs[0])


@dataclass(frozen=True)
class MergeMoves:
    """view(view(x)) → view(x); transpose(transpose(x)) → transpose(x); concat(…, concat(…)) along one axis → one concat."""

    name: str = "merge-moves"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """Two moves of one kind, one reading the other."""
        if node.op not in ("view", "transpose", "concat"):
            return
        for value in dict.fromkeys(node.inputs):
            maker = draft.maker(value)
            if (
                maker is not None
                and maker.op == node.op
                and (node.op != "concat" or maker.attrs == node.attrs)
            ):
                yield node, maker

    def check(self, draft: Draft, match: Match) -> str | None:
        """Copies are merged only where the inner one then disappears; views cost nothing."""
        outer, inner = match
        return None if outer.op == "view" else draft.shared(inner.outputs[0])

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Read the inner one's input."""
        outer, inner = match
        made = inner.outputs[0]
        inputs = tuple(w for v in outer.inputs for w in (inner.inputs if v == made else (v,)))
        new = replace(outer, inputs=inputs, origin=_origins(inner, outer))
        if outer.op == "transpose":
            first, second = _perm(inner), _perm(outer)
            new = replace(new, attrs=(("perm", tuple(first[p] for p in second)),))
        draft.swap(outer, new)
        if not draft.readers(made) and not draft.is_output(made):
            draft.drop(inner)


@dataclass(frozen=True)
class TransposeToView:
    """A transpose that moves only axes of extent 1 keeps the bytes: a view."""

    name: str = "transpose-to-view"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """Any transpose whose longer axes stay in order."""
        if node.op == "transpose":
            shape = draft.types[node.inputs[0]].shape
            long = [p for p in _perm(node) if shape[p] > 1]
            if long == sorted(long):
                yield (node,)

    def check(self, draft: Draft, match: Match) -> str | None:
        """Always."""
        return None

    def rewrite(self, draft: Draft, match: Match) -> None:
        """The same node as a view."""
        draft.swap(match[0], replace(match[0], op="view", attrs=()))


@dataclass(frozen=True)
class SinkView:
    """eltwise(view(x)) → view(eltwise(x)): the expression comes to stand by what made x, and can fuse with it."""

    name: str = "sink-view"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """An eltwise that reads a view of its own output's shape, made of something a fusion can start from."""
        for value in dict.fromkeys(node.inputs if node.op == "eltwise" else ()):
            view = draft.maker(value)
            if view is None or view.op != "view" or draft.types[value] != draft.types[node.outputs[0]]:
                continue
            maker = draft.maker(view.inputs[0])
            changes = draft.types[view.inputs[0]] != draft.types[value]
            if maker is not None and maker.op in ANCHORS and changes and draft.types[value].dtype == "float32":
                yield node, view

    def check(self, draft: Draft, match: Match) -> str | None:
        """Every other operand must have a view in the shape before the view."""
        node, view = match
        for value in (view.outputs[0], view.inputs[0]):
            if reason := draft.shared(value):
                return reason
        before, after = draft.types[view.inputs[0]].shape, draft.types[node.outputs[0]].shape
        for value in node.inputs:
            shape = draft.types[value].shape
            if shape != after and (value not in draft.constants or _reshaped(shape, before, after) is None):
                return (
                    f"operand {value!r} of shape {shape} has no equal in the shape {before} before the view"
                )
            if value != view.outputs[0] and (rival := self._rival(draft, view, value)):
                return f"{rival!r}, which makes {value!r}, takes it in"
        return None

    @staticmethod
    def _rival(draft: Draft, view: Node, value: str) -> str | None:
        """The node behind ``value`` that has the better claim to the eltwise; else the two would take turns for ever."""
        mine, theirs = draft.maker(view.inputs[0]), draft.maker(value)
        while theirs is not None and theirs.op == "view":
            theirs = draft.maker(theirs.inputs[0])
        if mine is None or theirs is None or theirs.op not in ANCHORS or draft.shared(theirs.outputs[0]):
            return None
        if draft.types[theirs.outputs[0]] == draft.types[view.inputs[0]]:
            return None
        claims = [(ANCHORS.index(n.op), -draft.rank[n.name], n.name) for n in (mine, theirs)]
        return theirs.name if claims[1] < claims[0] else None

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Move the view behind the eltwise; operands of the output's shape get a view too."""
        node, view = match
        source, result = view.inputs[0], node.outputs[0]
        before, after = draft.types[source].shape, draft.types[result].shape
        inner = draft.value(f"{result}.inner", before)
        inputs = tuple(
            source if v == view.outputs[0] else self._operand(draft, node, v, before, after)
            for v in node.inputs
        )
        draft.drop(view)
        draft.swap(node, replace(node, inputs=inputs, outputs=(inner,)))
        draft.put(
            Node(draft.fresh_node(view.name), "view", (inner,), (result,), origin=view.origin),
            draft.rank[node.name],
        )

    @staticmethod
    def _operand(
        draft: Draft, node: Node, value: str, before: tuple[int, ...], after: tuple[int, ...]
    ) -> str:
        if value in draft.constants:
            array = draft.constants[value]
            shape = before if array.shape == after else _reshaped(array.shape, before, after)
            assert shape is not None
            return draft.constant(array.reshape(shape), value)
        other = draft.value(f"{value}.view", before)
        draft.put(
            Node(draft.fresh_node(f"{node.name}.view"), "view", (value,), (other,)), draft.rank[node.name]
        )
        return other


def _reshaped(
    shape: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape that means, among axes ``before``, what the constant's ``shape`` means among axes ``after``."""
    full = (1,) * (len(after) - len(shape)) + shape
    if [d for d in before if d > 1] == [d for d in after if d > 1]:  # only axes of extent 1 come and go
        long = iter(f for f, d in zip(full, after, strict=True) if d > 1)
        return tuple(next(long) if d > 1 else 1 for d in before)
    if before and after and before[-1] == after[-1] and all(d == 1 for d in full[:-1]):
        return (1,) * (len(before) - 1) + full[-1:]
    return None


@dataclass(frozen=True)
class ConstantOperands:
    """Constants of one element inside an expression become literals."""

    name: str = "literals"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """Any epilogue with a constant operand of one element."""
        if node.epilogue is not None and any(self._single(draft, node, i) for i in self._extra(node)):
            yield (node,)

    def check(self, draft: Draft, match: Match) -> str | None:
        """The output's shape must come from the other operands."""
        (node,) = match
        kept = [draft.types[v].shape for i, v in enumerate(node.inputs) if not self._single(draft, node, i)]
        if node.op == "eltwise" and np.broadcast_shapes(*kept) != draft.types[node.outputs[0]].shape:
            return "the output's shape comes from a constant"
        return None

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Substitute and renumber."""
        (node,) = match
        assert node.epilogue is not None
        kept = [
            i
            for i in range(len(node.inputs))
            if not (i in self._extra(node) and self._single(draft, node, i))
        ]

        def leaf(point: Point) -> Point:
            if not isinstance(point, Input):
                return point
            if point.index in kept:
                return Input(kept.index(point.index))
            return Literal(float(draft.constants[node.inputs[point.index]].reshape(())))

        inputs = tuple(node.inputs[i] for i in kept)
        draft.swap(node, replace(node, inputs=inputs, epilogue=substitute(node.epilogue, leaf)))

    @staticmethod
    def _extra(node: Node) -> range:
        return range(OPERATORS[node.op].arity or 0, len(node.inputs))

    @staticmethod
    def _single(draft: Draft, node: Node, index: int) -> bool:
        value = draft.constants.get(node.inputs[index])
        return value is not None and value.size == 1


def _is_identity(node: Node) -> bool:
    return _perm(node) == tuple(range(len(_perm(node))))


def _perm(node: Node) -> tuple[int, ...]:
    return tuple(int(p) for p in node.attr("perm"))  # type: ignore[union-attr]


def _origins(*nodes: Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(o for n in nodes for o in n.origin))
