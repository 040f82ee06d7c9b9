"""A graph under change: what rewrites read and edit. :meth:`Draft.freeze` makes a Graph of it again."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node


class Draft:
    """Nodes by name with an index of who makes and who reads each value, kept up to date by every edit."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types = dict(graph.types)
        self.constants = dict(graph.constants)
        self.nodes: dict[str, Node] = {}
        self.rank: dict[str, int] = {}
        self._makers: dict[str, str] = {}
        self._readers: dict[str, dict[str, None]] = {}
        for rank, node in enumerate(graph.nodes):
            self.put(node, rank)

    def put(self, node: Node, rank: int) -> None:
        """Add a node; among ready nodes the one of lower ``rank`` comes first in the frozen graph."""
        self.nodes[node.name], self.rank[node.name] = node, rank
        for value in node.outputs:
            self._makers[value] = node.name
        for value in node.inputs:
            self._readers.setdefault(value, {})[node.name] = None

    def drop(self, node: Node) -> None:
        """Remove a node; its outputs stay known as values until nothing reads them."""
        del self.nodes[node.name]
        for value in node.outputs:
            if self._makers.get(value) == node.name:
                del self._makers[value]
        for value in node.inputs:
            self._readers.get(value, {}).pop(node.name, None)

    def swap(self, old: Node, new: Node) -> None:
        """Put ``new`` where ``old`` was."""
        rank = self.rank[old.name]
        self.drop(old)
        self.put(new, rank)

    def maker(self, value: str) -> Node | None:
        """The node that makes ``value``; None for inputs and constants."""
        name = self._makers.get(value)
        return None if name is None else self.nodes[name]

    def readers(self, value: str) -> list[Node]:
        """The nodes that read ``value``."""
        return [self.nodes[n] for n in self._readers.get(value, {})]

    def is_output(self, value: str) -> bool:
        """True for an output of the graph."""
        return value in self.graph.outputs

    def shared(self, value: str) -> str | None:
        """Why ``value`` cannot disappear into its one reader; None when it can."""
        readers = len(self._readers.get(value, {}))
        if self.is_output(value):
            return f"{value!r} is an output of the model"
        return None if readers == 1 else f"{value!r} is read by {readers} nodes"

    def fresh(self, hint: str) -> str:
        """An unused value name."""
        name, count = hint, 1
        while name in self.types:
            name, count = f"{hint}.{count}", count + 1
        return name

    def fresh_node(self, hint: str) -> str:
        """An unused node name."""
        name, count = hint, 1
        while name in self.nodes:
            name, count = f"{hint}.{count}", count + 1
        return name

    def value(self, hint: str, shape: tuple[int, ...]) -> str:
        """A new float32 value that some node will make."""
        name = self.fresh(hint)
        self.types[name] = TensorType("float32", shape)
        return name

    def constant(self, array: np.ndarray, hint: str) -> str:
        """A new constant; its name."""
        name = self.fresh(hint)
        self.constants[name] = np.ascontiguousarray(array)
        self.types[name] = TensorType(str(array.dtype), array.shape)
        return name

    def forward(self, node: Node, source: str) -> bool:
        """Remove ``node`` (of one output) by letting its readers read ``source``.

        An output of the graph keeps its name: then ``source`` takes that name. False when it cannot.
        """
        (old,) = node.outputs
        if not self.is_output(old):
            self.drop(node)
            self._rename(old, source, self.readers(old))
            return True
        maker = self.maker(source)
        if maker is None or self.is_output(source):
            return False
        self.drop(node)
        self.swap(maker, replace(maker, outputs=tuple(old if v == source else v for v in maker.outputs)))
        self._rename(source, old, self.readers(source))
        return True

    def _rename(self, old: str, new: str, readers: Iterable[Node]) -> None:
        for reader in readers:
            self.swap(reader, replace(reader, inputs=tuple(new if v == old else v for v in reader.inputs)))

    def freeze(self) -> Graph:
        """The graph, in topological order, with only the constants and types that are still in use."""
        nodes = self._ordered()
        read = {v for n in nodes for v in n.inputs}
        constants = {v: a for v, a in self.constants.items() if v in read}
        alive = {*self.graph.inputs, *constants, *(v for n in nodes for v in n.outputs)}
        types = {v: t for v, t in self.types.items() if v in alive}
        return replace(self.graph, nodes=tuple(nodes), types=types, constants=constants)

    def _ordered(self) -> list[Node]:
        waiting = {n.name: len({v for v in n.inputs if v in self._makers}) for n in self.nodes.values()}
        ready = [(self.rank[n], n) for n, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order: list[Node] = []
        while ready:
            node = self.nodes[heapq.heappop(ready)[1]]
            order.append(node)
            for reader in (r for v in node.outputs for r in self._readers.get(v, {})):
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    heapq.heappush(ready, (self.rank[reader], reader))
        assert len(order) == len(self.nodes), "a rewrite made a cycle"
        return order
