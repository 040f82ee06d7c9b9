"""The graph: nodes over named values. Plain data; passes make new graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wpk.core.pointwise import Point
from wpk.core.tensor import TensorType
from wpk.core.workload import Attr, Workload


@dataclass(frozen=True)
class Node:
    """One operator. ``op`` and ``attrs`` are those of :mod:`wpk.ops`; inputs beyond the anchor's own feed the epilogue.

    ``origin`` names the ONNX nodes it stands for, for messages. ``payload`` is the serialized ONNX of an opaque node or
    region (op ``onnx`` / ``region``), empty otherwise.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    epilogue: Point | None = None
    origin: tuple[str, ...] = ()
    payload: bytes = b""

    def attr(self, name: str) -> Attr:
        """The attribute ``name``; KeyError when absent."""
        return dict(self.attrs)[name]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order. ``types`` has every value; ``constants`` the known ones (logical arrays, ROW)."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    def producer(self) -> dict[str, Node]:
        """Value name → the node that makes it."""
        return {v: n for n in self.nodes for v in n.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name → the nodes that read it, in order, each once."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(v for v in node.inputs if v):
                table.setdefault(value, []).append(node)
        return table

    def workload(self, node: Node, layouts: Mapping[str, str] | None = None) -> Workload:
        """The workload of ``node`` when values have ``layouts`` (value name → layout; ROW when not named)."""
        layouts = layouts or {}

        def typed(value: str) -> TensorType:
            return self.types[value].with_layout(layouts.get(value, "ROW"))

        return Workload(
            node.op,
            tuple(typed(v) for v in node.inputs),
            tuple(typed(v) for v in node.outputs),
            node.attrs,
            node.epilogue,
            tuple(i for i, v in enumerate(node.inputs) if v in self.constants),
        )
