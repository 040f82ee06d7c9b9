"""What exporters spell out comes back as one node: normalizations, padding of convolutions, factors of products.

    layer   d = x - mean(x);  d / sqrt(mean(d * d) + epsilon)
    rms     x / sqrt(mean(x * x) + epsilon)

The quotient may be a product with a reciprocal, or with one over the root. Scale and bias are left to ``fuse``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point, substitute
from wpk.graph.graph import Node
from wpk.passes.draft import Draft
from wpk.passes.rewrite import Match

#: an operator and its arguments: names of values, or numbers
Term = tuple[str, tuple[str | float, ...]]


@dataclass(frozen=True)
class Found:
    """A normalization of ``source`` over the axes of the reductions ``means``."""

    source: str
    kind: str
    epsilon: float
    means: tuple[Node, ...]


def term(draft: Draft, value: str | float) -> Term | None:
    """The eltwise of one operator that makes ``value``; None when something else does."""
    node = draft.maker(value) if isinstance(value, str) else None
    if node is None or node.op != "eltwise" or not isinstance(node.epilogue, Apply):
        return None
    arguments: list[str | float] = []
    for argument in node.epilogue.args:
        if isinstance(argument, Input):
            arguments.append(node.inputs[argument.index])
        elif isinstance(argument, Literal):
            arguments.append(argument.value)
        else:
            return None
    return node.epilogue.op, tuple(arguments)


def quotient(draft: Draft, value: str) -> Iterator[tuple[str, str]]:
    """(d, v) where ``value`` is d / sqrt(v)."""
    op, arguments = term(draft, value) or ("", ())
    if op == "div":
        d, root = arguments
        if isinstance(d, str) and (under := _under_root(draft, root)):
            yield d, under
    for d, r in (arguments, arguments[::-1]) if op == "mul" else ():
        if isinstance(d, str) and (under := _under_reciprocal(draft, r)):
            yield d, under


def _under_root(draft: Draft, value: str | float) -> str | None:
    """v where ``value`` is sqrt(v)."""
    match term(draft, value):
        case ("sqrt", (str(v),)) | ("pow", (str(v), 0.5)):
            return v
    return None


def _under_reciprocal(draft: Draft, value: str | float) -> str | None:
    """v where ``value`` is 1 / sqrt(v)."""
    match term(draft, value):
        case ("recip", (root,)) | ("div", (1.0, root)):
            return _under_root(draft, root)
        case ("pow", (str(v), -0.5)):
            return v
    return None


def mean_of(draft: Draft, value: str | float) -> tuple[str, Node] | None:
    """(x, the reduction) where ``value`` is the mean of x."""
    node = draft.maker(value) if isinstance(value, str) else None
    if node is None or node.op != "reduce" or node.attr("kind") != "mean" or node.epilogue is not None:
        return None
    return node.inputs[0], node


def recognised(draft: Draft, node: Node) -> Iterator[Found]:
    """Every way to read the result of ``node`` as a normalization."""
    for d, under in quotient(draft, node.outputs[0]):
        match term(draft, under):
            case ("add", (str(variance), float(epsilon))) | ("add", (float(epsilon), str(variance))):
                yield from _of_variance(draft, d, variance, epsilon)


def _of_variance(draft: Draft, d: str, variance: str, epsilon: float) -> Iterator[Found]:
    squares, over = mean_of(draft, variance) or ("", None)
    if over is None or term(draft, squares) not in (("mul", (d, d)), ("pow", (d, 2.0))):
        return
    match term(draft, d):
        case ("sub", (str(x), m)) if (mean := mean_of(draft, m)) and mean[0] == x:
            yield Found(x, "layer", epsilon, (over, mean[1]))
            return
    yield Found(d, "rms", epsilon, (over,))


@dataclass(frozen=True)
class SpelledNorm:
    """The operators of a normalization become one norm."""

    name: str = "norm"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """A quotient or product that can be read as one; the match is it and its reductions."""
        if node.op == "eltwise":
            for found in recognised(draft, node):
                yield node, *found.means

    def check(self, draft: Draft, match: Match) -> str | None:
        """All reductions are over the same last axes."""
        node, *means = match
        rank, axes = len(draft.types[means[0].inputs[0]].shape), [_axes(m) for m in means]
        if len(set(axes)) > 1:
            return f"mean over {axes[-1]}, variance over {axes[0]}"
        if axes[0][-1] != rank - 1:
            return f"over axes {axes[0]} of {rank}, expected the last ones"
        source, result = draft.types[means[-1].inputs[0]], draft.types[node.outputs[0]]
        return None if source.shape == result.shape else f"{source} becomes {result}"

    def rewrite(self, draft: Draft, match: Match) -> None:
        """One norm makes the result; what only it needed goes."""
        node, *means = match
        found = next(f for f in recognised(draft, node) if f.means == tuple(means))
        attrs = (("axis", _axes(means[0])[0]), ("epsilon", found.epsilon), ("kind", found.kind))
        gone = origins(draft, node, found.source)
        new = replace(node, op="norm", inputs=(found.source,), attrs=attrs, epilogue=None, origin=gone)
        draft.swap(node, new)
        drop_unread(draft, node.inputs)


@dataclass(frozen=True)
class PaddedConv:
    """conv(concat(zeros, x, zeros)) along rows or columns → conv(x) with padding."""

    name: str = "pad"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """A convolution of a concat along a spatial axis with one part that is not constant."""
        maker = draft.maker(node.inputs[0]) if node.op == "conv" else None
        spatial = maker is not None and maker.op == "concat" and maker.attr("axis") in (2, 3)
        if maker is not None and spatial and sum(v not in draft.constants for v in maker.inputs) == 1:
            yield node, maker

    def check(self, draft: Draft, match: Match) -> str | None:
        """The constant parts are zeros, and fewer than a window is long."""
        node, concat = match
        if any(np.any(draft.constants[v]) for v in concat.inputs if v in draft.constants):
            return "the padding is not zero"
        window, dilations = draft.types[node.inputs[1]].shape[2:], _ints(node, "dilations")
        pads = self._pads(draft, node, concat)[0]
        reach = [(k - 1) * d for k, d in zip(window, dilations, strict=True)]
        return "windows of nothing but padding" if any(p > r for p, r in zip(pads, reach * 2, strict=True)) else None

    @staticmethod
    def _pads(draft: Draft, node: Node, concat: Node) -> tuple[tuple[int, ...], str]:
        """The padding of the convolution with that of the concat, and what is padded."""
        place = next(i for i, v in enumerate(concat.inputs) if v not in draft.constants)
        (axis,), pads = _ints(concat, "axis"), list(_ints(node, "pads"))
        sizes = [draft.types[v].shape[axis] for v in concat.inputs]
        pads[axis - 2] += sum(sizes[:place])
        pads[axis] += sum(sizes[place + 1 :])
        return tuple(pads), concat.inputs[place]

    def rewrite(self, draft: Draft, match: Match) -> None:
        """More padding of the convolution."""
        node, concat = match
        pads, source = self._pads(draft, node, concat)
        attrs = tuple((k, pads if k == "pads" else v) for k, v in node.attrs)
        gone = tuple(dict.fromkeys((*concat.origin, *node.origin)))
        draft.swap(node, replace(node, inputs=(source, *node.inputs[1:]), attrs=attrs, origin=gone))
        drop_unread(draft, node.inputs[:1])


@dataclass(frozen=True)
class ScaledProduct:
    """matmul(c · a, b) → c · matmul(a, b), also where a is transposed in between: the factor is then somebody's epilogue."""

    name: str = "scale"

    def match(self, draft: Draft, node: Node) -> Iterator[Match]:
        """A batched product, the product of an operand with a number, and the transposes between them."""
        for value in node.inputs[:2] if node.op == "matmul" else ():
            path, maker = [node], draft.maker(value)
            while maker is not None and maker.op in ("transpose", "view"):
                path, maker = [*path, maker], draft.maker(maker.inputs[0])
            if maker is not None and _factor(draft, maker) is not None:
                yield *path, maker

    def check(self, draft: Draft, match: Match) -> str | None:
        """Nobody else reads what is no longer scaled."""
        return next(filter(None, (draft.shared(n.outputs[0]) for n in match[1:])), None)

    def rewrite(self, draft: Draft, match: Match) -> None:
        """The factor goes into the product's epilogue."""
        node, scale = match[0], match[-1]
        point = _factor(draft, scale)
        assert point is not None
        inner = node.epilogue if node.epilogue is not None else Acc()
        whole = substitute(inner, lambda p: point if isinstance(p, Acc) else p)
        draft.swap(node, replace(node, epilogue=whole, origin=tuple(dict.fromkeys((*scale.origin, *node.origin)))))
        draft.forward(scale, scale.inputs[0])


def _factor(draft: Draft, node: Node) -> Point | None:
    """The epilogue that does what a product or quotient of a tensor and a number does; None when ``node`` is neither."""
    if node.op != "eltwise" or not isinstance(node.epilogue, Apply) or len(node.inputs) != 1:
        return None
    left, right = (*node.epilogue.args, None)[:2]
    if node.epilogue.op == "mul" and isinstance(left, Literal):
        left, right = right, left
    plain = draft.types[node.inputs[0]] == draft.types[node.outputs[0]]
    if not plain or node.epilogue.op not in ("mul", "div") or left != Input(0) or not isinstance(right, Literal):
        return None
    return Apply(node.epilogue.op, (Acc(), right))


def origins(draft: Draft, node: Node, source: str) -> tuple[str, ...]:
    """The ONNX nodes between ``source`` and ``node``, in order."""
    found: dict[str, tuple[str, ...]] = {}
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here.name not in found:
            found[here.name] = here.origin
            makers = (draft.maker(v) for v in here.inputs if v != source)
            waiting += [m for m in makers if m is not None]
    names = sorted(found, key=lambda n: draft.rank[n])
    return tuple(dict.fromkeys(o for n in names for o in found[n]))


def drop_unread(draft: Draft, values: tuple[str, ...]) -> None:
    """Remove the makers of values that nothing reads any more, and what only they read."""
    for value in dict.fromkeys(values):
        maker = draft.maker(value)
        made = maker.outputs if maker is not None else ()
        if maker is not None and not any(draft.readers(v) or draft.is_output(v) for v in made):
            draft.drop(maker)
            drop_unread(draft, maker.inputs)


def _axes(node: Node) -> tuple[int, ...]:
    return _ints(node, "axes")


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attr(name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)
