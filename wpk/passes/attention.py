"""What exporters write of attention becomes one node: two products of activations with a softmax between them.

    q·kᵀ → scale, mask, anything elementwise → softmax over the last axis → ·v

The transposes by which heads come in front of the sequence, and go back behind it, vanish: the node reads and writes rows of all
heads where they lie. Only what ``fits`` says there is a kernel for is joined: other targets keep the three nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

from wpk.core.pointwise import Acc, Input, Point, substitute
from wpk.core.tensor import TensorType
from wpk.core.workload import Attr, Workload
from wpk.graph.graph import Node
from wpk.ops.attention import GUARD, OWN
from wpk.ops.attention import shapes as expected_shapes
from wpk.passes.draft import Draft
from wpk.passes.fuse import joint
from wpk.passes.idioms import drop_unread
from wpk.passes.rewrite import Match

#: (B, L, H, D) ↔ (B, H, L, D), and (B, N, H, D) → (B, H, D, N)
_SWAPPED, _TURNED = (0, 2, 1, 3), (0, 2, 3, 1)


@dataclass(frozen=True)
class Operand:
    """q, k or v: ``value`` seen in ``shape``, after transposing by ``perm`` what no other node has transposed."""

    value: str
    shape: tuple[int, ...]
    perm: tuple[int, ...] = ()


def anything(workload: Workload) -> bool:
    """Every attention fits."""
    return True


@dataclass(frozen=True)
class JoinAttention:
    """matmul(softmax(f(matmul(q, kᵀ))), v) → attention(q, k, v)."""

    fits: Callable[[Workload], bool] = anything
    name: str = "attention"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """The second product; then, against the order of data, all between it and the first, which is last."""
        if node.op != "matmul" or node.epilogue is not None:
            return
        path, maker = [node], draft.maker(node.inputs[0])
        if maker is not None and maker.op == "eltwise" and maker.epilogue == GUARD and len(maker.inputs) == 1:
            path, maker = [node, maker], draft.maker(maker.inputs[0])
        if maker is None or maker.op != "softmax" or maker.epilogue is not None:
            return
        if (scores := _scores(draft, maker.inputs[0])) is not None:
            yield *path, maker, *scores

    def check(self, draft: Draft, match: Match) -> str | None:
        """Nobody else reads what is in between, and there is a kernel."""
        node, softmax, product = match[0], next(n for n in match if n.op == "softmax"), match[-1]
        if reason := next(filter(None, (draft.shared(n.outputs[0]) for n in match[1:])), None):
            return reason
        shape = draft.types[product.outputs[0]].shape
        if softmax.attr("axis") not in (-1, len(shape) - 1):
            return f"softmax over axis {softmax.attr('axis')} of {shape}"
        if len(shape) not in (3, 4) or any(len(draft.types[v].shape) != len(shape) for v in _own(match)):
            return "expected three operands of three or four dimensions"
        batches = {draft.types[v].shape[:-2] for v in _own(match)}
        if len({b[:-1] for b in batches}) > 1 or draft.types[node.outputs[0]].shape[:-2] != shape[:-2]:
            return f"batches {sorted(batches)} broadcast"
        inputs, outputs, attrs = _parts(draft, match)
        types = tuple(draft.types[o.value] if o.shape == () else _typed(o.shape) for o in inputs)
        try:
            expected_shapes(types, dict(attrs))
        except ValueError as error:  # operands that broadcast over heads
            return str(error)
        known = tuple(i for i, o in enumerate(inputs) if o.value in draft.constants)
        workload = Workload("attention", types, (_typed(outputs),), attrs, None, known)
        return None if self.fits(workload) else f"no kernel for {workload}"

    def rewrite(self, draft: Draft, match: Match) -> None:
        """One node, between views of what it reads and of what it writes."""
        inputs, shape, attrs = _parts(draft, match)
        node, *moves = chain = (match[0], *_returned(draft, match[0]))
        names = tuple(_read(draft, node, o) for o in inputs)
        result, rank = chain[-1].outputs[0], draft.rank[chain[-1].name]
        made = draft.value(f"{result}.attention", shape)
        for gone in chain:
            draft.drop(gone)
        draft.put(Node(node.name, "attention", names, (made,), attrs, origin=_origins(reversed(match))), rank)
        draft.put(Node(draft.fresh_node(f"{node.name}.view"), "view", (made,), (result,), origin=_origins(moves)), rank)
        drop_unread(draft, node.inputs)


def _scores(draft: Draft, value: str) -> tuple[Node, ...] | None:
    """The elementwise nodes that make ``value`` from the result of a product, the last first, and the product."""
    maker = draft.maker(value)
    if maker is None or maker.op not in ("matmul", "eltwise"):
        return None
    if maker.op == "matmul":
        return (maker,)
    for source in maker.inputs:
        same = draft.types[source] == draft.types[value] and draft.shared(source) is None
        if same and (found := _scores(draft, source)) is not None:
            return (maker, *found)
    return None


def _own(match: Match) -> tuple[str, str, str]:
    """q, kᵀ and v."""
    q, k = match[-1].inputs[:2]
    return q, k, match[0].inputs[1]


def _parts(draft: Draft, match: Match) -> tuple[tuple[Operand, ...], tuple[int, ...], tuple[tuple[str, Attr], ...]]:
    """Inputs, shape of the output, attributes."""
    node, product = match[0], match[-1]
    anchor = product
    for step in reversed(match[next(i for i, n in enumerate(match) if n.op == "softmax") + 1 : -1]):
        point, reads = joint(step, anchor)
        anchor = replace(anchor, inputs=reads, epilogue=point, outputs=step.outputs)
    q, k, v = _own(match)
    operands = (_heads(draft, q, _SWAPPED), _keys(draft, k), _heads(draft, v, _SWAPPED))
    extra = tuple(Operand(name, ()) for name in anchor.inputs[2:])
    batch, heads, rows, size = (1, *draft.types[node.outputs[0]].shape)[-4:]
    by_rows = bool(_returned(draft, node))
    shape = (batch, rows, heads * size) if by_rows else (batch, heads, rows, size)
    attrs = (
        ("heads", heads), ("packed", 0), ("rows", int(by_rows)), ("safe", int(any(n.epilogue == GUARD for n in match))),
        ("scores", str(_scores_of(anchor.epilogue))),
    )  # fmt: skip
    return (*operands, *extra), shape, attrs


def _scores_of(point: Point | None) -> Point:
    """The expression of a product of two inputs as that of an attention, which has three."""

    def leaf(p: Point) -> Point:
        return Input(p.index + OWN - 2) if isinstance(p, Input) else p

    return substitute(point if point is not None else Acc(), leaf)


def _heads(draft: Draft, value: str, perm: tuple[int, ...]) -> Operand:
    """An operand (B, H, L, D), or the rows that it was transposed from."""
    value = _four(draft, value)
    shape = (1, *draft.types[value].shape)[-4:]
    maker = draft.maker(value)
    if maker is not None and maker.op == "transpose" and maker.attr("perm") == perm:
        b, length, heads, size = draft.types[maker.inputs[0]].shape
        return Operand(maker.inputs[0], (b, length, heads * size))
    return Operand(value, shape)


def _keys(draft: Draft, value: str) -> Operand:
    """Keys, which stand as (B, H, D, N) in a product."""
    value = _four(draft, value)
    maker = draft.maker(value)
    perm = maker.attr("perm") if maker is not None and maker.op == "transpose" else ()
    assert maker is not None or perm == ()
    if maker is not None and perm == _TURNED:
        b, length, heads, size = draft.types[maker.inputs[0]].shape
        return Operand(maker.inputs[0], (b, length, heads * size))
    if maker is not None and perm in ((0, 1, 3, 2), (0, 2, 1)):
        return _heads(draft, maker.inputs[0], _SWAPPED)
    *lead, size, length = draft.types[value].shape
    rank = len(lead) + 2
    return Operand(value, (1, *lead, length, size)[-4:], (*range(rank - 2), rank - 1, rank - 2))


def _four(draft: Draft, value: str) -> str:
    """What a value of three dimensions was before its leading 1 was taken away."""
    maker, shape = draft.maker(value), draft.types[value].shape
    seen = len(shape) == 3 and maker is not None and maker.op == "view"
    if seen and maker is not None and draft.types[maker.inputs[0]].shape == (1, *shape):
        return maker.inputs[0]
    return value


def _returned(draft: Draft, node: Node) -> tuple[Node, ...]:
    """The transpose that puts heads behind the sequence, perhaps after a view that adds a batch."""
    value, found = node.outputs[0], list[Node]()
    while draft.shared(value) is None:
        (reader,) = draft.readers(value)
        found.append(reader)
        if reader.op == "transpose":
            return tuple(found) if reader.attr("perm") == _SWAPPED else ()
        if reader.op != "view" or draft.types[reader.outputs[0]].shape != (1, *draft.types[value].shape):
            return ()
        value = reader.outputs[0]
    return ()


def _read(draft: Draft, node: Node, operand: Operand) -> str:
    """The name of an operand, which a transpose and a view may have to make; constants are made at once."""
    value = operand.value
    if value in draft.constants and (operand.perm or operand.shape not in ((), draft.types[value].shape)):
        array = draft.constants[value]
        turned_array = array.transpose(operand.perm) if operand.perm else array
        return draft.constant(turned_array.reshape(operand.shape), value)
    if operand.perm:
        shape = draft.types[value].shape
        turned = draft.value(f"{value}.turned", tuple(shape[p] for p in operand.perm))
        name = draft.fresh_node(f"{node.name}.turn")
        draft.put(Node(name, "transpose", (value,), (turned,), (("perm", operand.perm),)), draft.rank[node.name])
        value = turned
    if operand.shape in ((), draft.types[value].shape):
        return value
    assert prod(operand.shape) == prod(draft.types[value].shape)
    seen = draft.value(f"{value}.rows", operand.shape)
    draft.put(Node(draft.fresh_node(f"{node.name}.rows"), "view", (value,), (seen,)), draft.rank[node.name])
    return seen


def _origins(nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(o for n in nodes for o in n.origin))


def _typed(shape: tuple[int, ...]) -> TensorType:
    return TensorType("float32", shape)
