"""Opaque regions: nodes without native meaning, grouped so that ONNX Runtime is entered as rarely as possible.

A region is convex: no path leaves it and comes back, so the graph of regions has no cycles. Native nodes that only move or
combine data between opaque ones go with them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from wpk.core.errors import ModelError
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_io import export_region
from wpk.ops import OPERATORS
from wpk.passes.rewrite import Trace

OPAQUE = ("onnx", "region")


def group_regions(graph: Graph, absorb: bool = True, trace: Trace | None = None) -> Graph:
    """``graph`` with every opaque node inside a ``region`` node whose payload is a serialized ModelProto.

    With ``absorb``, native nodes between opaque ones join. A graph in which a value of unknown shape would cross the border
    of a region becomes one region. Raises ModelError when such a value is an output of the model.
    """
    members = {n.name for n in graph.nodes if n.op in OPAQUE}
    if not members:
        return graph
    if absorb:
        members |= _between(graph, members)
    groups = _groups(graph, members)
    if any(-1 in graph.types[v].shape for group in groups for v in _border(graph, group)):
        groups = [list(graph.nodes)]
    if trace is not None:
        trace.extend(f"regions: {' + '.join(n.name for n in group)}: done" for group in groups)
    return _contract(graph, groups)


def _between(graph: Graph, members: set[str]) -> set[str]:
    """Native nodes that are no anchors, all of whose neighbours are opaque or are such nodes."""
    maker, readers = graph.producer(), graph.consumers()
    light = {n.name for n in graph.nodes if OPERATORS[n.op].fusion in ("elementwise", "injective")}
    while True:
        inside = members | light
        bad = {
            n.name
            for n in graph.nodes
            if n.name in light and not _surrounded(graph, n, inside, maker, readers)
        }
        if not bad:
            return light
        light -= bad


def _surrounded(
    graph: Graph, node: Node, inside: set[str], maker: dict[str, Node], readers: dict[str, list[Node]]
) -> bool:
    sources = [v for v in node.inputs if v not in graph.constants]
    if any(v not in maker or maker[v].name not in inside for v in sources) or not sources:
        return False
    return all(
        v not in graph.outputs and all(r.name in inside for r in readers.get(v, [])) for v in node.outputs
    )


def _groups(graph: Graph, members: set[str]) -> list[list[Node]]:
    """Members joined along edges, then independent groups with each other, wherever that makes no cycle."""
    joined = _Contraction(graph)
    order = [n for n in graph.nodes if n.name in members]
    maker = graph.producer()
    for node in order:
        for source in dict.fromkeys(maker[v].name for v in node.inputs if v in maker):
            if source in members:
                joined.join(joined.group[source], joined.group[node.name])
    ids = list(dict.fromkeys(joined.group[n.name] for n in order))
    for i, first in enumerate(ids):
        for second in ids[i + 1 :]:
            joined.join(first, second)
    groups: dict[int, list[Node]] = {}
    for node in order:
        groups.setdefault(joined.group[node.name], []).append(node)
    return list(groups.values())


class _Contraction:
    """The graph with some nodes merged into groups; it never has a cycle."""

    def __init__(self, graph: Graph) -> None:
        self.group = {n.name: i for i, n in enumerate(graph.nodes)}
        self._members = {i: [n.name] for i, n in enumerate(graph.nodes)}
        self._after: dict[int, set[int]] = {i: set() for i in self._members}
        self._before: dict[int, set[int]] = {i: set() for i in self._members}
        maker = graph.producer()
        for i, node in enumerate(graph.nodes):
            for value in node.inputs:
                if value in maker:
                    source = self.group[maker[value].name]
                    self._after[source].add(i)
                    self._before[i].add(source)

    def join(self, first: int, second: int) -> None:
        """Make two groups one, unless they are one, are gone, or a path between them leaves both."""
        if first == second or first not in self._members or second not in self._members:
            return
        if self._detour(first, second) or self._detour(second, first):
            return
        for name in self._members[second]:
            self.group[name] = first
        self._members[first] += self._members.pop(second)
        for edges, back in ((self._after, self._before), (self._before, self._after)):
            for other in edges.pop(second):
                back[other].discard(second)
                if other != first:
                    back[other].add(first)
                    edges[first].add(other)
            edges[first].discard(second)

    def _detour(self, start: int, goal: int) -> bool:
        """True when a path of more than one edge goes from ``start`` to ``goal``."""
        stack, seen = [g for g in self._after[start] if g != goal], set()
        while stack:
            here = stack.pop()
            if here == goal:
                return True
            if here not in seen:
                seen.add(here)
                stack.extend(self._after[here])
        return False


def _border(graph: Graph, nodes: list[Node]) -> list[str]:
    inside = {n.name for n in nodes}
    made = [v for n in nodes for v in n.outputs]
    read = {v for n in graph.nodes if n.name not in inside for v in n.inputs} | set(graph.outputs)
    return [v for n in nodes for v in n.inputs if v not in made] + [v for v in made if v in read]


def _contract(graph: Graph, groups: list[list[Node]]) -> Graph:
    of = {n.name: i for i, group in enumerate(groups) for n in group}
    regions = [_region(graph, i, group) for i, group in enumerate(groups)]
    nodes = _ordered(graph, [n for n in graph.nodes if n.name not in of], regions)
    read = {v for n in nodes for v in n.inputs}
    constants = {v: a for v, a in graph.constants.items() if v in read}
    alive = {*graph.inputs, *constants, *(v for n in nodes for v in n.outputs)}
    return replace(
        graph,
        nodes=tuple(nodes),
        constants=constants,
        types={v: t for v, t in graph.types.items() if v in alive},
    )


def _region(graph: Graph, index: int, group: list[Node]) -> Node:
    inside = {n.name for n in group}
    made = {v for n in group for v in n.outputs}
    needed = set(graph.outputs) | {v for n in graph.nodes if n.name not in inside for v in n.inputs}
    inputs = tuple(
        dict.fromkeys(v for n in group for v in n.inputs if v not in made and v not in graph.constants)
    )
    outputs = tuple(v for n in group for v in n.outputs if v in needed)
    for value in (*inputs, *outputs):
        if -1 in graph.types[value].shape:
            raise ModelError(
                f"{graph.name}: the shape of {value!r} depends on the data, expected a static one at the model's border"
            )
    payload = export_region(graph, group, inputs, outputs)
    ops = "+".join(dict.fromkeys(str(n.attr("onnx_op")) if n.op == "onnx" else n.op for n in group))
    attrs = (("digest", hashlib.sha256(payload).hexdigest()[:16]), ("domain", ""), ("onnx_op", ops))
    origin = tuple(dict.fromkeys(o for n in group for o in n.origin))
    return Node(f"region_{index}", "region", inputs, outputs, attrs, None, origin, payload)


def _ordered(graph: Graph, native: list[Node], regions: list[Node]) -> list[Node]:
    """Topological order; regions wait for their inputs, natives keep their order otherwise."""
    waiting, ready, order = [*native, *regions], {*graph.inputs, *graph.constants}, []
    while waiting:
        free = [n for n in waiting if set(n.inputs) <= ready]
        assert free, "regions made a cycle"
        order += free
        ready |= {v for n in free for v in n.outputs}
        placed = {n.name for n in free}
        waiting = [n for n in waiting if n.name not in placed]
    return order
