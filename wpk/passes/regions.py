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
    group = {n.name: i for i, n in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.name in members:
            for source in _makers(graph, node):
                if source.name in members and group[source.name] != group[node.name]:
                    _join(graph, group, group[source.name], group[node.name])
    ids = list(dict.fromkeys(group[n.name] for n in graph.nodes if n.name in members))
    for i, first in enumerate(ids):
        for second in ids[i + 1 :]:
            if first in group.values() and second in group.values():
                _join(graph, group, first, second)
    return [
        [n for n in graph.nodes if group[n.name] == g]
        for g in dict.fromkeys(group[n.name] for n in graph.nodes if n.name in members)
    ]


def _makers(graph: Graph, node: Node) -> list[Node]:
    maker = graph.producer()
    return [maker[v] for v in dict.fromkeys(node.inputs) if v in maker]


def _join(graph: Graph, group: dict[str, int], first: int, second: int) -> None:
    """Make two groups one, unless a path between them leaves both."""
    maker = graph.producer()
    edges: dict[int, set[int]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value in maker and group[maker[value].name] != group[node.name]:
                edges.setdefault(group[maker[value].name], set()).add(group[node.name])
    if not (_detour(edges, first, second) or _detour(edges, second, first)):
        for name, g in group.items():
            if g == second:
                group[name] = first


def _detour(edges: dict[int, set[int]], start: int, goal: int) -> bool:
    """True when a path of more than one edge goes from ``start`` to ``goal``."""
    stack, seen = [g for g in edges.get(start, ()) if g != goal], set()
    while stack:
        here = stack.pop()
        if here == goal:
            return True
        if here not in seen:
            seen.add(here)
            stack.extend(edges.get(here, ()))
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
