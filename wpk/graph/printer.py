"""A graph as text: one line a node, in order; the same graph always gives the same text."""

from __future__ import annotations

from wpk.core.workload import Attr
from wpk.graph.graph import Graph, Node


def format_graph(graph: Graph) -> str:
    """Inputs, nodes and outputs::

        graph tiny(%x: float32[1x3x8x8]) -> (%y)
          %y: float32[1x4x8x8] = conv(%x, !w, !b) {group=1, …} | relu(add(acc,in2))   # Conv_0, Relu_1

    ``!`` marks constants, ``|`` the epilogue, ``#`` the ONNX nodes it stands for.
    """
    inputs = ", ".join(f"%{v}: {graph.types[v]}" for v in graph.inputs)
    head = f"graph {graph.name}({inputs}) -> ({', '.join(f'%{v}' for v in graph.outputs)})"
    return "\n".join([head, *(f"  {format_node(graph, n)}" for n in graph.nodes)]) + "\n"


def format_node(graph: Graph, node: Node) -> str:
    """One line for a node."""
    outs = ", ".join(f"%{v}: {graph.types[v]}" for v in node.outputs)
    ins = ", ".join(f"{'!' if v in graph.constants else '%'}{v}" for v in node.inputs)
    attrs = ", ".join(f"{k}={_attr(v)}" for k, v in node.attrs)
    parts = [
        f"{outs} = {node.op}({ins})",
        f"{{{attrs}}}" if attrs else "",
        f"| {node.epilogue}" if node.epilogue else "",
    ]
    return " ".join(filter(None, parts)) + (f"   # {', '.join(node.origin)}" if node.origin else "")


def _attr(value: Attr) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
