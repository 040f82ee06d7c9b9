"""Tasks: the unique workloads of a graph, each with the nodes that want it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wpk.core.workload import Workload
from wpk.graph.graph import Graph

#: Ops that are not tuned: opaque ones run in ONNX Runtime whatever happens, views move nothing.
UNTUNED = ("onnx", "region", "view")


@dataclass(frozen=True)
class Task:
    """A workload to tune. ``nodes`` want it; tasks that share a node are rivals (other layouts), of which one will be chosen."""

    workload: Workload
    nodes: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """How often it runs in one inference."""
        return max(len(self.nodes), 1)

    @property
    def name(self) -> str:
        """For people: the op, the output and the first node."""
        where = f" {self.nodes[0]}" if self.nodes else ""
        more = f" +{len(self.nodes) - 1}" if len(self.nodes) > 1 else ""
        return f"{self.workload.op}{where}{more}"


def tasks_of(wanted: Iterable[tuple[str, Workload]]) -> list[Task]:
    """Tasks from (node name, workload) pairs, in the order first seen; untunable ops are left out."""
    nodes: dict[Workload, dict[str, None]] = {}
    for node, workload in wanted:
        if workload.op not in UNTUNED:
            nodes.setdefault(workload, {})[node] = None
    return [Task(workload, tuple(names)) for workload, names in nodes.items()]


def extract(graph: Graph, assignments: Iterable[Mapping[str, str]] = ({},)) -> list[Task]:
    """The tasks of a graph under each assignment of layouts (value name → layout; ROW where not named)."""
    return tasks_of((node.name, graph.workload(node, layouts)) for layouts in assignments for node in graph.nodes)


def extract_variants(graph: Graph, variants: Mapping[str, Iterable[Mapping[str, str]]]) -> list[Task]:
    """The tasks of a graph whose nodes (by name) may each work in several variants of layouts."""
    return tasks_of((n.name, graph.workload(n, v)) for n in graph.nodes for v in variants.get(n.name, ()))
