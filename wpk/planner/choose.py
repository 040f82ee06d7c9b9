"""The global choice: one alternative for each node and the layouts each value exists in, as a PBQP.

A variable for each node (its alternatives) and one for each value: the layout it is made in, and the set of layouts it is also
converted to. So a converted copy is paid for once, however many consumers share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite

import numpy as np

from wpk.core.errors import InternalError
from wpk.graph.graph import Graph
from wpk.planner.candidates import Alternative, Catalogue, Implementation, alternatives, conversion
from wpk.planner.pbqp import Key, Problem, solve

#: See :func:`charge`; the step is in seconds.
CONVERSION_FACTOR, CONVERSION_STEP = 2.0, 3e-6


@dataclass(frozen=True)
class Forms:
    """The layouts a value exists in: the one it is made in, and those it is converted to."""

    made: str
    converted: tuple[str, ...] = ()

    def has(self, layout: str) -> bool:
        """True when the value exists in ``layout``."""
        return layout == self.made or layout in self.converted


@dataclass(frozen=True)
class Choices:
    """What was chosen: an alternative by node name, forms by value, conversions by (value, layout); the sum of seconds."""

    nodes: Mapping[str, Alternative]
    forms: Mapping[str, Forms]
    conversions: Mapping[tuple[str, str], Implementation]
    seconds: float


def choose(graph: Graph, catalogue: Catalogue) -> Choices:
    """The best implementation and layout for every node together. Raises InternalError when no layouts fit together."""
    options = {n.name: alternatives(graph, n, catalogue) for n in graph.nodes}
    forms = {v: _forms(graph, v, options) for v in _values(graph)}
    costs: dict[tuple[str, str, str], Implementation | None] = {}
    problem = Problem()
    for node in graph.nodes:
        problem.variable(("node", node.name), [a.implementation.seconds for a in options[node.name]])
    for value, some in forms.items():
        problem.variable(
            ("value", value), [_conversion_cost(graph, value, f, catalogue, costs) for f in some]
        )
    _connect(graph, problem, options, forms)
    answer = solve(problem)
    total = problem.cost(answer)
    if not isfinite(total):
        raise InternalError("the planner found no layouts that fit together")
    return _choices(graph, options, forms, costs, answer, total)


def _values(graph: Graph) -> list[str]:
    """Values that exist at run time, in the order they are made."""
    made = (*graph.inputs, *(v for n in graph.nodes for v in n.outputs))
    return [v for v in dict.fromkeys(made) if v and v not in graph.constants]


def _forms(graph: Graph, value: str, options: Mapping[str, Sequence[Alternative]]) -> list[Forms]:
    producer = graph.producer().get(value)
    made = ["ROW"] if producer is None else [a.layouts[value] for a in options[producer.name]]
    wanted = {a.layouts[value] for n in graph.consumers().get(value, ()) for a in options[n.name]}
    needed = {"ROW"} if value in graph.outputs else set()
    found: list[Forms] = []
    for layout in dict.fromkeys(made):
        others = sorted((wanted | needed) - {layout})
        subsets = (s for size in range(len(others) + 1) for s in combinations(others, size))
        found.extend(Forms(layout, s) for s in subsets if needed <= {layout, *s})
    return found


def _conversion_cost(
    graph: Graph,
    value: str,
    forms: Forms,
    catalogue: Catalogue,
    costs: dict[tuple[str, str, str], Implementation | None],
) -> float:
    total = 0.0
    for layout in forms.converted:
        key = (value, forms.made, layout)
        if key not in costs:
            costs[key] = conversion(graph.types[value].with_layout(forms.made), layout, catalogue)
        found = costs[key]
        total += inf if found is None else charge(found)
    return total


def charge(conversion: Implementation) -> float:
    """What a conversion costs inside a program, where it finds its tensor in another core's cache and is a step of its own.

    Timed alone it finds everything in its own cache: the small ones were seen to take three to five times as long in a plan.
    """
    return CONVERSION_FACTOR * conversion.seconds + CONVERSION_STEP if conversion.seconds else 0.0


def _connect(
    graph: Graph,
    problem: Problem,
    options: Mapping[str, Sequence[Alternative]],
    forms: Mapping[str, Sequence[Forms]],
) -> None:
    for node in graph.nodes:
        for value in dict.fromkeys((*node.inputs, *node.outputs)):
            if value not in forms:
                continue
            made = value in node.outputs
            fits = [
                [f.made == a.layouts[value] if made else f.has(a.layouts[value]) for f in forms[value]]
                for a in options[node.name]
            ]
            problem.edge(("node", node.name), ("value", value), np.where(fits, 0.0, inf))


def _choices(
    graph: Graph,
    options: Mapping[str, Sequence[Alternative]],
    forms: Mapping[str, Sequence[Forms]],
    costs: Mapping[tuple[str, str, str], Implementation | None],
    answer: Mapping[Key, int],
    total: float,
) -> Choices:
    nodes = {n.name: options[n.name][answer["node", n.name]] for n in graph.nodes}
    chosen = {v: some[answer["value", v]] for v, some in forms.items()}
    conversions = {}
    for value, form in chosen.items():
        for layout in form.converted:
            found = costs[value, form.made, layout]
            if found is not None:
                conversions[value, layout] = found
    return Choices(nodes, chosen, conversions, total)
