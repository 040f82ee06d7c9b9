"""Which nodes may compute in lower precision: as many as leave the whole model's error inside a limit.

The error is found on the CPU, before anything is tuned, by computing the model node by node as the target will: operands rounded
to what is stored or to what tensor cores read, sums in float32. Nodes go back to float32 in the order of the error they make
by themselves, for the work they are, until the model's error fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from wpk.core.errors import UsageError
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.ops import work
from wpk.ops.attention import OWN
from wpk.passes.precision import STORED, lowerable, lowered
from wpk.providers.reference import reference_output
from wpk.runtime.ports import numpy_dtype

#: Found and expected outputs → error.
Distance = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]

#: Largest relative L2 error of a whole model when the user names none.
MAX_ERROR: Mapping[str, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2}

#: What is computed here may differ a little from what the target computes.
_MARGIN = 0.8


@dataclass(frozen=True)
class Precision:
    """The outcome: the graph to tune, the nodes that stay in float32, each lowered node's own error, the model's error."""

    graph: Graph
    mode: str
    kept: tuple[str, ...]
    errors: Mapping[str, float]
    error: float

    def to_json(self) -> dict[str, object]:
        """Plain JSON data, for the plan's ``meta``."""
        return {"mode": self.mode, "kept": list(self.kept), "errors": dict(self.errors), "error": self.error}


def check_precision(name: str) -> str:
    """``name``. Raises UsageError when there is no such precision."""
    if name not in STORED:
        raise UsageError(f"precision {name!r}: expected one of {', '.join(STORED)}")
    return name


def choose_precision(
    graph: Graph,
    mode: str,
    limit: float,
    feeds: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray],
    distance: Distance,
    supports: Callable[[Workload], bool] = lambda workload: True,
) -> Precision:
    """Lower as many nodes of ``graph`` to ``mode`` as leave its error on ``feeds`` below ``limit``.

    ``expected`` are the float32 reference's outputs. Nodes whose lowered workload nobody ``supports`` are not lowered and not
    mentioned. Raises UsageError for an unknown mode.
    """
    able = [n for n in graph.nodes if lowerable(graph, n, check_precision(mode)) and supports(_alone(graph, n, mode)[1])]
    never = tuple(n.name for n in graph.nodes if n not in able)
    if not able:
        return Precision(graph, mode, (), {}, 0.0)
    errors = node_errors(graph, able, mode, feeds)
    worst_first = sorted(able, key=lambda n: (-_blame(graph, n, errors[n.name]), n.name))

    def with_kept(count: int) -> Precision:
        kept = tuple(sorted(n.name for n in worst_first[:count]))
        made = lowered(graph, mode, {*kept, *never})
        error = distance(evaluate(made, feeds), expected)
        return Precision(made, mode, kept, {n: e for n, e in errors.items() if n not in kept}, error)

    return _fewest(with_kept, len(able), limit * _MARGIN)


def _fewest(attempt: Callable[[int], Precision], most: int, limit: float) -> Precision:
    """The attempt that keeps the fewest nodes and meets the limit, by bisection; with all kept nothing is lowered."""
    best = attempt(0)
    if best.error <= limit:
        return best
    few, many = 0, most
    best = attempt(most)
    while many - few > 1:
        middle = (few + many) // 2
        found = attempt(middle)
        if found.error <= limit:
            many, best = middle, found
        else:
            few = middle
    return best


def _blame(graph: Graph, node: Node, error: float) -> float:
    """How much a node's error weighs: the more, the less is won by lowering it."""
    return error / max(work(graph.workload(node)).flops, 1.0) ** 0.25 if isfinite(error) else np.inf


def node_errors(graph: Graph, nodes: Sequence[Node], mode: str, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 error that each of ``nodes`` makes by itself, its operands being right."""
    values = evaluate_all(graph, feeds)
    found = {}
    for node in nodes:
        alone, _ = _alone(graph, node, mode)
        low = evaluate_all(alone, {v: values[v] for v in alone.inputs}, rounded_outputs=STORED[mode])
        found[node.name] = max(_relative(low[v], values[v]) for v in node.outputs)
    return found


def _alone(graph: Graph, node: Node, mode: str) -> tuple[Graph, Workload]:
    """The lowered model of one node, and the node's workload in the middle of a lowered graph."""
    inputs = tuple(dict.fromkeys(v for v in node.inputs if v not in graph.constants))
    constants = {v: graph.constants[v] for v in node.inputs if v in graph.constants}
    alone = lowered(Graph(node.name, inputs, node.outputs, (node,), graph.types, constants), mode)
    inner = next(n for n in alone.nodes if n.name == node.name)
    workload = alone.workload(inner)
    narrow = tuple(replace(t, dtype=STORED[mode]) for t in workload.outputs)
    return alone, replace(workload, outputs=narrow)


def evaluate(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ``graph``, computed node by node with the roundings that its dtypes and ``precision`` attributes say."""
    values = evaluate_all(graph, feeds)
    return [values[v] for v in graph.outputs]


def evaluate_all(
    graph: Graph, feeds: Mapping[str, np.ndarray], rounded_outputs: str = "float32"
) -> dict[str, np.ndarray]:
    """Every value of ``graph``; float32 outputs pass through ``rounded_outputs`` once, as if another node read them so."""
    values: dict[str, np.ndarray] = {**graph.constants, **feeds}
    for node in graph.nodes:
        workload = graph.workload(node)
        arrays = [values[v] for v in node.inputs]
        if dict(node.attrs).get("precision") == "tf32":
            own = OWN if node.op == "attention" else 2
            arrays = [tf32(a) if i < own else a for i, a in enumerate(arrays)]
        values.update(zip(node.outputs, reference_output(workload, arrays, node.payload), strict=True))
    if rounded_outputs != "float32":
        with np.errstate(over="ignore"):
            rounded = {v: values[v].astype(numpy_dtype(rounded_outputs)).astype(np.float32) for v in graph.outputs}
        values.update(rounded)
    return values


def tf32(array: np.ndarray) -> np.ndarray:
    """float32 values rounded to the ten bits of mantissa that tensor cores read, half away from zero as ``cvt.rna`` does."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    norm = float(np.linalg.norm(b))
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(a - b)) / norm if norm else float(np.any(a != b))
    return error if isfinite(error) else np.inf
