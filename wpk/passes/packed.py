"""Queries, keys and values of one product: an attention reads them as thirds of its rows, where they lie.

Three products of one activation become one, which has three times the columns; and what exporters of vision transformers write
after such a product (rows cut in three, heads in front of the sequence) vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from wpk.core.pointwise import Acc, Input, Point, apply
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Node
from wpk.ops.attention import OWN
from wpk.passes.draft import Draft
from wpk.passes.idioms import drop_unread
from wpk.passes.rewrite import Match

#: (B, L, 3, H, D) → (3, B, H, L, D)
_APART = (2, 0, 3, 1, 4)


def packed(draft: Draft, node: Node, rows: str, shape: tuple[int, ...]) -> Node:
    """The attention that reads ``rows``, which have ``shape``."""
    inputs = (rows,) * OWN + node.inputs[OWN:]
    return replace(node, inputs=inputs, attrs=tuple((k, 1 if k == "packed" else v) for k, v in node.attrs))


def unfit(draft: Draft, node: Node, shape: tuple[int, ...], fits: Callable[[Workload], bool]) -> str | None:
    """Why there is no kernel for the attention of packed rows."""
    types = (TensorType("float32", shape),) * OWN + tuple(draft.types[v] for v in node.inputs[OWN:])
    known = tuple(i for i, v in enumerate(node.inputs) if i >= OWN and v in draft.constants)
    new = packed(draft, node, "", shape)
    workload = Workload("attention", types, (draft.types[node.outputs[0]],), new.attrs, None, known)
    return None if fits(workload) else f"no kernel for {workload}"


@dataclass(frozen=True)
class JoinProducts:
    """attention of views of gemm(x, wq), gemm(x, wk), gemm(x, wv) → packed attention of a view of gemm(x, [wq wk wv])."""

    fits: Callable[[Workload], bool]
    name: str = "qkv"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """An attention whose operands are views of products."""
        if node.op == "attention" and not node.attr("packed"):
            views = [m for v in node.inputs[:OWN] if (m := draft.maker(v)) is not None and m.op == "view"]
            products = [m for v in views if (m := draft.maker(v.inputs[0])) is not None and m.op == "gemm"]
            if len(products) == OWN and len({p.name for p in products}) == OWN:
                yield node, *views, *products

    def check(self, draft: Draft, match: Match) -> str | None:
        """One activation, constant weights and biases of one shape, rows that nobody else reads."""
        node, products = match[0], match[-OWN:]
        if reason := next(filter(None, (draft.shared(n.outputs[0]) for n in match[1:])), None):
            return reason
        if len({(p.inputs[0], p.attrs, draft.types[p.inputs[1]]) for p in products}) > 1:
            return "the products differ in more than the values of their weights"
        if any(p.inputs[1] not in draft.constants or _bias(draft, p) is None for p in products):
            return "weights are not constant, or more than a constant is added"
        shapes = {draft.types[v].shape for v in node.inputs[:OWN]}
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            return f"operands {sorted(shapes)}, expected rows of one shape"
        batch, length, width = next(iter(shapes))
        if (batch * length, width) != draft.types[products[0].outputs[0]].shape:
            return "the rows of the attention are not those of the products"
        return unfit(draft, node, (batch, length, 3 * width), self.fits)

    def rewrite(self, draft: Draft, match: Match) -> None:
        """One product of all weights side by side."""
        node, products = match[0], match[-OWN:]
        first, batch, length = products[0], *draft.types[node.inputs[0]].shape[:2]
        columns = 0 if first.attr("trans_b") else 1
        weights = np.concatenate([draft.constants[p.inputs[1]] for p in products], axis=columns)
        inputs = [first.inputs[0], draft.constant(weights, f"{first.inputs[1]}.qkv")]
        biases = [_bias(draft, p) for p in products]
        point: Point | None = None
        if any(b is not None and b.size for b in biases):
            width = draft.types[first.outputs[0]].shape[1]
            whole = [b if b is not None and b.size else np.zeros(width, np.float32) for b in biases]
            inputs.append(draft.constant(np.concatenate(whole).reshape(1, -1), f"{first.outputs[0]}.bias"))
            point = apply("add", Acc(), Input(2))
        made = draft.value(f"{first.outputs[0]}.qkv", (batch * length, weights.shape[columns]))
        origin = tuple(dict.fromkeys(o for p in products for o in p.origin))
        rank = max(draft.rank[p.name] for p in products)
        for gone in match[1:]:
            draft.drop(gone)
        draft.put(Node(first.name, "gemm", tuple(inputs), (made,), first.attrs, point, origin), rank)
        _read_packed(draft, node, made, (batch, length, weights.shape[columns]), rank)


@dataclass(frozen=True)
class PackedRows:
    """attention of the parts of transpose(x5) → packed attention of the rows of x5 (B, L, 3, H, D)."""

    fits: Callable[[Workload], bool]
    name: str = "thirds"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """An attention whose operands are views of the parts, in order, of what has its heads in front."""
        if node.op != "attention" or node.attr("packed"):
            return
        parts = [_part(draft, v) for v in node.inputs[:OWN]]
        turned = draft.maker(parts[0][0]) if parts[0] is not None else None
        if turned is None or turned.op != "transpose" or turned.attr("perm") != _APART:
            return
        if parts == [(turned.outputs[0], i) for i in range(OWN)]:
            yield node, turned

    def check(self, draft: Draft, match: Match) -> str | None:
        """The parts are whole heads."""
        node, turned = match
        shape = draft.types[turned.inputs[0]].shape
        batch, length, three, heads, size = shape
        expected = (batch, heads, length, size)
        if three != 3 or any(draft.types[v].shape != expected for v in node.inputs[:OWN]):
            return f"parts of {shape} are not queries, keys and values"
        return unfit(draft, node, (batch, length, 3 * heads * size), self.fits)

    def rewrite(self, draft: Draft, match: Match) -> None:
        """Read the rows."""
        node, turned = match
        source, before = turned.inputs[0], node.inputs[:OWN]
        batch, length, *rest = draft.types[source].shape
        _read_packed(draft, node, source, (batch, length, prod(rest)), draft.rank[turned.name])
        drop_unread(draft, before)


def _read_packed(draft: Draft, node: Node, value: str, shape: tuple[int, ...], rank: int) -> None:
    rows = draft.value(f"{value}.rows", shape)
    draft.put(Node(draft.fresh_node(f"{node.name}.rows"), "view", (value,), (rows,)), rank)
    draft.swap(node, packed(draft, node, rows, shape))


def _part(draft: Draft, value: str) -> tuple[str, int] | None:
    """(x, i) where ``value`` is a view of x[i]."""
    view = draft.maker(value)
    split = draft.maker(view.inputs[0]) if view is not None and view.op == "view" else None
    if view is None or split is None or split.op != "split" or split.attr("axis") != 0:
        return None
    lengths = [draft.types[v].shape[0] for v in split.outputs]
    which = split.outputs.index(view.inputs[0])
    return (split.inputs[0], sum(lengths[:which])) if lengths[which] == 1 else None


def _bias(draft: Draft, product: Node) -> np.ndarray | None:
    """What a product adds to each column: a constant, or nothing, which is an array of no element; None where it does more."""
    if product.epilogue is None:
        return np.empty(0, np.float32)
    if product.epilogue not in (apply("add", Acc(), Input(2)), apply("add", Input(2), Acc())):
        return None
    value = draft.constants.get(product.inputs[2])
    return value.reshape(-1) if value is not None and value.size == draft.types[product.outputs[0]].shape[1] else None
