"""Whole-graph cleanups: nodes nobody needs, nodes that compute the same, nodes that compute constants."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime

from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_io import export_region
from wpk.passes.draft import Draft
from wpk.passes.rewrite import Trace

#: larger constants are not compared by content
COMPARED = 1 << 20
#: larger results are not computed at compile time
FOLDED = 1 << 28


def remove_dead(graph: Graph, trace: Trace | None = None) -> Graph:
    """Without the nodes that no output depends on."""
    needed, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed |= set(node.inputs)
        elif trace is not None:
            trace.append(f"dce: {node.name}: done")
    return Draft(replace(graph, nodes=tuple(reversed(kept)))).freeze()


def merge_duplicates(graph: Graph, trace: Trace | None = None) -> Graph:
    """With one constant for each content and one node for each computation."""
    draft = Draft(_merge_constants(graph))
    seen: dict[Hashable, str] = {}
    for node in list(draft.nodes.values()):
        node = draft.nodes[node.name]
        if node.op in ("onnx", "region") or len(node.outputs) != 1:
            continue
        key = (node.op, node.inputs, node.attrs, node.epilogue, draft.types[node.outputs[0]])
        first = draft.nodes.get(seen.get(key, ""))
        if first is None:
            seen[key] = node.name
        elif draft.forward(node, first.outputs[0]) and trace is not None:
            trace.append(f"cse: {node.name} is {first.name}: done")
    return draft.freeze()


def _merge_constants(graph: Graph) -> Graph:
    first: dict[Hashable, str] = {}
    same: dict[str, str] = {}
    for value, array in graph.constants.items():
        same[value] = first.setdefault(_content(value, array), value)
    nodes = tuple(replace(n, inputs=tuple(same.get(v, v) for v in n.inputs)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def _content(value: str, array: np.ndarray) -> Hashable:
    if array.nbytes > COMPARED or array.dtype == object:
        return value
    digest = hashlib.sha256(
        np.ascontiguousarray(array).view(np.uint8).tobytes() if array.size else b""
    ).hexdigest()
    return (str(array.dtype), array.shape, digest)


def fold_constants(graph: Graph, trace: Trace | None = None) -> Graph:
    """With every native node of constant inputs replaced by its value, unless it is an output or too large."""
    known, cone = set(graph.constants), []
    for node in graph.nodes:
        foldable = node.op not in ("onnx", "region") and all(v in known for v in node.inputs)
        if foldable and sum(graph.types[v].nbytes for v in node.outputs) <= FOLDED:
            known |= set(node.outputs)
            cone.append(node)
    if not cone:
        return graph
    draft, values = Draft(graph), _run(graph, cone)
    for node in cone:
        if any(draft.is_output(v) for v in node.outputs):
            continue
        draft.drop(node)
        draft.constants.update({v: values[v] for v in node.outputs})
        if trace is not None:
            trace.append(f"fold: {node.name}: done")
    return draft.freeze()


def _run(graph: Graph, nodes: list[Node]) -> dict[str, Any]:
    outputs = [v for n in nodes for v in n.outputs]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = export_region(graph, nodes, (), outputs)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, {}), strict=True))
