"""What to measure: the workloads the planner can choose among, and those a choice rests on that nobody measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.graph.graph import Graph
from wpk.planner.candidates import Catalogue, ResultTable
from wpk.planner.choose import choose
from wpk.planner.layouts import variants
from wpk.providers.protocol import Provider


def wanted(graph: Graph, target: Target) -> Iterator[tuple[str, Workload]]:
    """(node name, workload) of every variant of every node: what :func:`wpk.tuning.tasks.tasks_of` makes tasks of."""
    for node in graph.nodes:
        for variant in variants(graph, node, target):
            yield node.name, graph.workload(node, variant)


def unmeasured(
    graph: Graph, results: ResultTable | None, target: Target, providers: Sequence[Provider]
) -> list[tuple[str, Workload]]:
    """(name, workload) of what the best plan so far rests on without a measurement: conversions above all.

    Measuring these and asking again, until nothing is left, makes the choice one between facts: a plan has few conversions
    of the many it could have.
    """
    choices = choose(graph, Catalogue(tuple(providers), results, target))
    nodes = [(name, a.implementation) for name, a in choices.nodes.items()]
    between = [(f"{value}:{layout}", i) for (value, layout), i in choices.conversions.items()]
    found = {
        i.workload: name for name, i in (*nodes, *between) if not i.measured and i.provider != "onnxruntime"
    }
    return [(name, workload) for workload, name in found.items()]
