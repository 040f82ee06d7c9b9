"""attention: softmax(f(q·kᵀ))·v for each head, f being an expression over the scores and its operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from wpk.core.pointwise import Acc, Input, Literal, Point, apply, inputs_of, parse, size
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.ops.base import Builder, Foreign, Operator, Shape, Speller, eltwise, row_only
from wpk.ops.eltwise import spell_point

#: q, k and v; further inputs are operands of the scores
OWN = 3

#: a row of weights that is not a number (all its scores are -infinity) becomes zeros
GUARD: Point = apply("where", apply("eq", apply("eq", Input(0), Input(0)), Literal(0.0)), Literal(0.0), Input(0))


@dataclass(frozen=True)
class Heads:
    """The numbers of an attention.

    ``heads`` are those of queries, ``groups`` those of keys and values, each for as many heads in turn; ``size`` counts the
    elements of a query and of a key, ``values`` those of a value.
    """

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    size: int
    values: int

    @property
    def scores(self) -> Shape:
        """The shape that the scores and their operands broadcast to."""
        return self.batch, self.heads, self.queries, self.keys


def heads_of(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> Heads:
    """The numbers that shapes mean; ValueError where they do not fit.

    Each of q, k and v is (B, L, H·D), or (B, H, L, D); ``packed``: each is (B, L, 3·H·D), of which it is the first, second or
    last third (they are one value then).
    """
    q, k, v = (t.shape for t in inputs[:OWN])
    heads = int(attrs["heads"])
    if attrs["packed"]:
        if len(q) != 3 or not q == k == v or q[2] % (3 * heads):
            raise ValueError(f"packed attention of {heads} heads: {q}, {k} and {v} are not rows of three times their width")
        return Heads(q[0], heads, heads, q[1], q[1], q[2] // (3 * heads), q[2] // (3 * heads))
    size = _per_head(q, heads)
    groups = _groups(k, size)
    found = Heads(q[0], heads, groups, _length(q), _length(k), size, _per_head(v, groups))
    same = q[0] == k[0] == v[0] and found.keys == _length(v) and heads % groups == 0
    if not same or (len(q) == 4 and q[1] != heads) or (len(k) == 4 and k[3] != size) or (len(v) == 4 and v[1] != groups):
        raise ValueError(f"attention of {heads} heads: {q}, {k} and {v} do not fit")
    return found


def _length(shape: Shape) -> int:
    return shape[2] if len(shape) == 4 else shape[1]


def _per_head(shape: Shape, heads: int) -> int:
    if len(shape) not in (3, 4) or (len(shape) == 3 and shape[2] % heads):
        raise ValueError(f"{shape} is neither (batch, length, {heads} heads × size) nor (batch, {heads} heads, length, size)")
    return shape[3] if len(shape) == 4 else shape[2] // heads


def _groups(shape: Shape, size: int) -> int:
    if len(shape) not in (3, 4) or (len(shape) == 3 and shape[2] % size):
        raise ValueError(f"keys of shape {shape} are not of {size} elements")
    return shape[1] if len(shape) == 4 else shape[2] // size


def shapes(inputs: Sequence[TensorType], attrs: Mapping[str, Any]) -> tuple[Shape, ...]:
    """(B, M, H·E) with ``rows``, else (B, H, M, E); the expression reads exactly its operands, which broadcast to the scores."""
    h = heads_of(inputs, attrs)
    extra = tuple(range(OWN, len(inputs)))
    if inputs_of(parse(str(attrs["scores"]))) != extra:
        raise ValueError(f"scores {attrs['scores']} do not read just the inputs {extra}")
    for t in inputs[OWN:]:
        if np.broadcast_shapes(t.shape, h.scores) != h.scores:
            raise ValueError(f"{t} does not broadcast to the scores {h.scores}")
    return ((h.batch, h.queries, h.heads * h.values) if attrs["rows"] else (h.batch, h.heads, h.queries, h.values),)


def flops(w: Workload) -> float:
    """Two products, and the softmax between them."""
    h = heads_of(w.inputs, dict(w.attrs))
    return prod(h.scores) * (2.0 * (h.size + h.values) + 5.0 + size(parse(str(w.attr("scores")))))


def lift(f: Foreign, b: Builder) -> str | None:
    """Attention (opset 23) without a past, as exporters of older models spell it: products, a softmax, transposes."""
    if f.extra_outputs or any(f.has(i) for i in range(4, len(f.inputs))):
        return "keys and values of the past, or their lengths"
    types = [f.type(i) for i in range(OWN)]
    if any(t.dtype != "float32" for t in (*types, f.out)):
        return "not float32"
    counts = [int(f.attrs.get(x, 0)) or types[i].shape[1] for i, x in enumerate(("q_num_heads", "kv_num_heads"))]
    if counts[0] != counts[1]:
        return f"{counts[0]} heads of queries for {counts[1]} of keys"
    a = heads_of(types, {"heads": counts[0], "packed": 0})
    q, k, v = (_split(b, f.inputs[i], t.shape, counts[0]) for i, t in enumerate(types))
    turned = b.emit("transpose", (k,), (a.batch, a.heads, a.size, a.keys), f.inputs[1], perm=(0, 1, 3, 2))
    masked = _masked(f, b, a, b.emit("matmul", (q, turned), a.scores, f.outputs[0], _scaled(f, a)))
    if masked is None:
        return f"a mask {f.type(3)} that does not broadcast to the scores {a.scores}"
    weights = b.emit("softmax", (masked,), a.scores, f.outputs[0], axis=3)
    if f.has(3):
        weights = eltwise(f, b, GUARD, (weights,), a.scores, f.outputs[0], final=False)
    by_rows, mixed = len(f.out.shape) == 3, (a.batch, a.heads, a.queries, a.values)
    made = b.emit("matmul", (weights, v), mixed, f.outputs[0], final=not by_rows)
    if by_rows:
        made = b.emit("transpose", (made,), (a.batch, a.queries, a.heads, a.values), f.outputs[0], perm=(0, 2, 1, 3))
        b.view(made, f.out.shape, f.outputs[0], final=True)
    return None


def _split(b: Builder, value: str, shape: Shape, heads: int) -> str:
    """Rows of all heads as (B, H, L, D)."""
    if len(shape) == 4:
        return value
    batch, length, width = shape
    rows = b.view(value, (batch, length, heads, width // heads), value)
    return b.emit("transpose", (rows,), (batch, heads, length, width // heads), value, perm=(0, 2, 1, 3))


def _scaled(f: Foreign, a: Heads) -> Point:
    """The product times the scale, softly capped."""
    point = apply("mul", Acc(), Literal(float(np.float32(f.attrs.get("scale", a.size**-0.5)))))
    cap = Literal(float(f.attrs.get("softcap", 0.0)))
    return apply("mul", apply("tanh", apply("div", point, cap)), cap) if cap.value else point


def _masked(f: Foreign, b: Builder, a: Heads, scores: str) -> str | None:
    """Scores with the mask and without what comes later; None where the mask does not broadcast."""
    if f.has(3):
        mask = f.type(3)
        if len(mask.shape) > 4 or any(n not in (1, m) for n, m in zip(mask.shape[::-1], a.scores[::-1], strict=False)):
            return None
        chosen = apply("where", Input(1), Input(0), Literal(float("-inf")))
        point = chosen if mask.dtype == "bool" else apply("add", Input(0), Input(1))
        scores = eltwise(f, b, point, (scores, f.inputs[3]), a.scores, f.outputs[0], final=False)
    if int(f.attrs.get("is_causal", 0)):
        later = np.where(np.tri(a.queries, a.keys, dtype=bool), np.float32(0), np.float32("-inf"))
        name = b.constant(later.reshape(1, 1, a.queries, a.keys), f"{f.outputs[0]}.later")
        point = apply("add", Input(0), Input(1))
        scores = eltwise(f, b, point, (scores, name), a.scores, f.outputs[0], final=False)
    return scores


def spell(s: Speller, w: Workload, ins: Sequence[str], outs: Sequence[str]) -> None:
    """As exporters write it."""
    h = heads_of(w.inputs, dict(w.attrs))
    shared = h.heads // h.groups
    counts = ((h.heads, h.queries, h.size), (h.groups, h.keys, h.size), (h.groups, h.keys, h.values))
    q, k, v = (
        _by_head(s, ins[i], w.inputs[i], (h.batch, length, heads, n), i if w.attr("packed") else None)
        for i, (heads, length, n) in enumerate(counts)
    )
    k = s.op("Transpose", (k,), perm=(0, 1, 3, 2))
    if shared > 1:
        k, v = _repeated(s, k, h, (h.size, h.keys)), _repeated(s, v, h, (h.keys, h.values))
    operands = [
        s.op("Cast", (name,), to=1) if t.dtype not in ("float32", "float16", "bfloat16") else name
        for name, t in zip(ins[OWN:], w.inputs[OWN:], strict=True)
    ]
    scores = spell_point(s, parse(str(w.attr("scores"))), s.op("MatMul", (q, k)), (*ins[:OWN], *operands))
    weights = s.op("Softmax", (scores,), axis=3 if s.opset < 13 else -1)
    if w.attr("safe"):
        weights = spell_point(s, GUARD, "", (weights,))
    if not w.attr("rows"):
        s.op("MatMul", (weights, v), outs[0])
        return
    mixed = s.op("Transpose", (s.op("MatMul", (weights, v)),), perm=(0, 2, 1, 3))
    s.op("Reshape", (mixed, _shape(s, (h.batch, h.queries, h.heads * h.values))), outs[0])


def _by_head(s: Speller, name: str, t: TensorType, shape: Shape, third: int | None) -> str:
    """(B, H, L, D) of any form; ``shape`` is (B, L, H, D), ``third`` which part of packed rows it is."""
    if len(t.shape) == 4:
        return name
    if third is None:
        rows = s.op("Reshape", (name, _shape(s, shape)))
    else:
        parts = s.op("Reshape", (name, _shape(s, (*shape[:2], 3, *shape[2:]))))
        rows = s.op("Gather", (parts, s.constant(np.array(third, np.int64))), axis=2)
    return s.op("Transpose", (rows,), perm=(0, 2, 1, 3))


def _repeated(s: Speller, name: str, h: Heads, rest: tuple[int, int]) -> str:
    """Each group for all its heads."""
    wide = s.op("Reshape", (name, _shape(s, (h.batch, h.groups, 1, *rest))))
    wide = s.op("Expand", (wide, _shape(s, (h.batch, h.groups, h.heads // h.groups, *rest))))
    return s.op("Reshape", (wide, _shape(s, (h.batch, h.heads, *rest))))


def _shape(s: Speller, shape: tuple[int, ...]) -> str:
    return s.constant(np.array(shape, np.int64))


ATTENTION = Operator(
    "attention", "anchor", None, ("heads", "packed", "rows", "safe", "scores"), shapes, flops, row_only, spell,
    {"Attention": lift},
)  # fmt: skip
