"""If with a known condition: the branch taken, spliced into the graph around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper


def taken_branch(
    proto: NodeProto, condition: bool, fresh: Callable[[str], str]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """The nodes and constants of the branch of an If, in order; its results are named as the If's outputs.

    Everything else that the branch makes gets a name from ``fresh``, for two branches may use one name.
    """
    wanted = "then_branch" if condition else "else_branch"
    graph = next(a.g for a in proto.attribute if a.name == wanted)
    made = [v for n in graph.node for v in n.output if v] + [i.name for i in graph.initializer]
    results = {}
    for inner, outer in zip(graph.output, proto.output, strict=False):
        if outer and inner.name in made and inner.name not in results:
            results[inner.name] = outer
    names = {v: results[v] if v in results else fresh(v) for v in made}
    nodes = [renamed(n, names) for n in graph.node]
    for inner, outer in zip(graph.output, proto.output, strict=False):
        if outer and results.get(inner.name) != outer:
            nodes.append(helper.make_node("Identity", [names.get(inner.name, inner.name)], [outer]))
    for node in nodes:
        node.name = f"{proto.name}/{node.name or node.op_type}"
    return nodes, {names[i.name]: numpy_helper.to_array(i) for i in graph.initializer}


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """A copy of ``node`` that reads and makes values by other names, in its subgraphs too."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for field in (copy.input, copy.output):
        field[:] = [names.get(v, v) for v in field]
    for attribute in copy.attribute:
        for graph in (attribute.g, *attribute.graphs):
            _rename_graph(graph, names)
    return copy


def _rename_graph(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    bound = (
        {v.name for v in graph.input}
        | {i.name for i in graph.initializer}
        | {v for n in graph.node for v in n.output}
    )
    free = {old: new for old, new in names.items() if old not in bound}
    copies = [renamed(n, free) for n in graph.node]
    graph.ClearField("node")
    graph.node.extend(copies)
    for output in graph.output:
        output.name = free.get(output.name, output.name)
