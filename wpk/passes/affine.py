"""Scales and shifts by channel that follow a convolution or gemm go into its weights and one bias.

BatchNormalization, and the Mul and Add that exporters put behind it, arrive here as the inner part of the epilogue:
``relu(add(mul(add(mul(acc,in2),in3),in4),in5))`` becomes ``relu(add(acc,in2))`` with new weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, apply, inputs_of, substitute
from wpk.graph.graph import Node
from wpk.passes.draft import Draft
from wpk.passes.rewrite import Match

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Affine:
    """``rest`` is the epilogue over ``scale``·acc + ``shift``; ``steps`` operators were peeled off."""

    rest: Point
    scale: Array
    shift: Array
    steps: int


def peel(point: Point, constant: Callable[[Point], Array | None]) -> Affine:
    """The innermost run of scales and shifts by constants around the anchor's result, and what remains around it."""
    scale, shift, steps = np.ones(()), np.zeros(()), 0
    while True:
        parents = _parents(point)
        if len(parents) != 1 or (parent := parents.pop()).op not in _STEPS or parent.args.count(Acc()) != 1:
            break
        reverse = parent.args[-1] == Acc() and len(parent.args) == 2
        other = None if len(parent.args) == 1 else constant(parent.args[0 if reverse else 1])
        if (len(parent.args) == 2 and other is None) or (parent.op == "div" and reverse):
            break
        scale, shift = _STEPS[parent.op](scale, shift, other, reverse)
        point, steps = _replace(point, parent), steps + 1
    return Affine(point, scale, shift, steps)


def _reverse_sub(scale: Array, shift: Array, k: Any, reverse: bool) -> tuple[Array, Array]:
    return (-scale, k - shift) if reverse else (scale, shift - k)


_STEPS: dict[str, Callable[[Array, Array, Any, bool], tuple[Array, Array]]] = {
    "add": lambda scale, shift, k, reverse: (scale, shift + k),
    "sub": _reverse_sub,
    "mul": lambda scale, shift, k, reverse: (scale * k, shift * k),
    "div": lambda scale, shift, k, reverse: (scale / k, shift / k),
    "neg": lambda scale, shift, k, reverse: (-scale, -shift),
}


def _parents(point: Point) -> set[Apply]:
    """The distinct subtrees that read the anchor's result directly."""
    if not isinstance(point, Apply):
        return set()
    found = {p for a in point.args for p in _parents(a)}
    return found | {point} if Acc() in point.args else found


def _replace(point: Point, old: Apply) -> Point:
    if point == old:
        return Acc()
    return Apply(point.op, tuple(_replace(a, old) for a in point.args)) if isinstance(point, Apply) else point


@dataclass(frozen=True)
class FoldAffine:
    """Fold scales into the weights and shifts into one bias."""

    name: str = "bn"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """A conv or gemm whose epilogue starts with more than one addition of a constant."""
        if node.op not in ("conv", "gemm") or node.epilogue is None:
            return
        found = peel(node.epilogue, lambda p: _constant(draft, node, p))
        if found.steps > 1 or (found.steps == 1 and np.any(found.scale != 1.0)):
            yield (node,)

    def check(self, draft: Draft, match: Match) -> str | None:
        """The weights must be constant and the folded numbers finite."""
        (node,) = match
        assert node.epilogue is not None
        if node.inputs[1] not in draft.constants:
            return f"weights {node.inputs[1]!r} are not constant"
        found = peel(node.epilogue, lambda p: _constant(draft, node, p))
        finite = np.isfinite(found.scale).all() and np.isfinite(found.shift).all()
        return None if finite else "scale or shift is not finite"

    def rewrite(self, draft: Draft, match: Match) -> None:
        """New weights, at most one bias, the rest of the epilogue renumbered."""
        (node,) = match
        assert node.epilogue is not None
        found = peel(node.epilogue, lambda p: _constant(draft, node, p))
        weights = draft.constants[node.inputs[1]]
        axis = 0 if node.op == "conv" or node.attr("trans_b") else 1
        channels = weights.shape[axis]
        scale = np.broadcast_to(found.scale, channels).reshape(
            [-1 if i == axis else 1 for i in range(weights.ndim)]
        )
        scaled = draft.constant(
            (weights.astype(np.float64) * scale).astype(np.float32), f"{node.inputs[1]}.scaled"
        )
        inputs, rest = [*node.inputs[:1], scaled, *node.inputs[2:]], found.rest
        if np.any(found.shift != 0.0):
            shape = (1, -1, 1, 1) if node.op == "conv" else (1, -1)
            bias = np.broadcast_to(found.shift, channels).reshape(shape).astype(np.float32)
            inputs.append(draft.constant(bias, f"{node.inputs[1]}.bias"))
            term = apply("add", Acc(), Input(len(inputs) - 1))
            rest = substitute(rest, lambda p: term if isinstance(p, Acc) else p)
        bias_index = len(inputs) - 1 if len(inputs) > len(node.inputs) else -1
        order = sorted(
            inputs_of(rest), key=lambda i: (i != bias_index, i)
        )  # the bias first, then as they were
        renumbered = {old: 2 + new for new, old in enumerate(order)}
        rest = substitute(rest, lambda p: Input(renumbered[p.index]) if isinstance(p, Input) else p)
        new = tuple(inputs[i] for i in (0, 1, *order))
        draft.swap(node, replace(node, inputs=new, epilogue=None if rest == Acc() else rest))


def _constant(draft: Draft, node: Node, point: Point) -> Array | None:
    """The value of a leaf for each channel (or for all), in float64; None when it is not constant."""
    if isinstance(point, Literal):
        return np.array(point.value, np.float64)
    if isinstance(point, Input) and node.inputs[point.index] in draft.constants:
        array = draft.constants[node.inputs[point.index]]
        axis = 1 if node.op == "conv" else array.ndim - 1
        if array.size in (1, array.shape[axis]):
            return (
                array.astype(np.float64).reshape(-1)
                if array.size > 1
                else array.astype(np.float64).reshape(())
            )
    return None
