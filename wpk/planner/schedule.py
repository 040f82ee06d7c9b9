"""Choices → the order of the work: conversions before their first reader, and nodes, or runs of them for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.planner.candidates import Catalogue, Implementation
from wpk.planner.choose import Choices
from wpk.planner.layouts import slices
from wpk.planner.storage import Action, Tensor
from wpk.providers.protocol import Code

_MOVES = {"view": "alias", "convert": "alias", "concat": "join", "split": "cut"}


@dataclass(frozen=True)
class Task:
    """An action and what it stands for.

    ``nodes`` is empty for a conversion and may be several for ONNX Runtime. ``operands`` are all inputs in order, constants
    included. ``code`` is what runs; None for moves, and for ONNX Runtime, whose models are made from the nodes.
    """

    action: Action
    nodes: tuple[Node, ...]
    implementation: Implementation
    operands: tuple[Tensor, ...] = ()
    code: Code | None = None


def schedule(graph: Graph, choices: Choices, catalogue: Catalogue) -> tuple[Task, ...]:
    """All tasks in order. Raises InvalidConfig when a provider cannot build what it measured."""
    work = _Schedule(graph, choices, catalogue)
    return tuple(task for run in _runs(graph, choices) for task in work.tasks(run))


def _runs(graph: Graph, choices: Choices) -> Iterator[tuple[Node, ...]]:
    """Nodes one by one, but neighbours that ONNX Runtime computes together, with the views between them."""
    run: list[Node] = []
    views: list[Node] = []
    for node in graph.nodes:
        provider = choices.nodes[node.name].implementation.provider
        if provider == "onnxruntime":
            run, views = [*run, *views, node], []
            continue
        if run and node.op == "view":
            views.append(node)
            continue
        if run:
            yield tuple(run)
        yield from ((v,) for v in views)
        yield (node,)
        run, views = [], []
    if run:
        yield tuple(run)
    yield from ((v,) for v in views)


@dataclass
class _Schedule:
    graph: Graph
    choices: Choices
    catalogue: Catalogue
    made: set[Tensor] = field(default_factory=set)

    def tasks(self, nodes: tuple[Node, ...]) -> list[Task]:
        """The conversions that ``nodes`` need and are not made yet, then the nodes' own task."""
        read = [t for t in self._reads(nodes) if t[0] not in self.graph.constants]
        found = [self._conversion(t) for t in read if not self._exists(t)]
        found.append(self._region(nodes) if self._is_region(nodes) else self._node(nodes[0]))
        return [*found, *self._output_conversions(nodes)]

    def _exists(self, tensor: Tensor) -> bool:
        return tensor[1] == self.choices.forms[tensor[0]].made or tensor in self.made

    def _is_region(self, nodes: tuple[Node, ...]) -> bool:
        return self.choices.nodes[nodes[0].name].implementation.provider == "onnxruntime"

    def _reads(self, nodes: tuple[Node, ...]) -> list[Tensor]:
        inside = {v for n in nodes for v in n.outputs}
        pairs = ((v, self._layout(n, v)) for n in nodes for v in n.inputs if v and v not in inside)
        return list(dict.fromkeys(pairs)) if len(nodes) > 1 else list(pairs)

    def _layout(self, node: Node, value: str) -> str:
        return self.choices.nodes[node.name].layouts.get(value, "ROW")

    def _conversion(self, tensor: Tensor) -> Task:
        value, layout = tensor
        self.made.add(tensor)
        source = (value, self.choices.forms[value].made)
        return self._task(f"{value}:{layout}", (), self.choices.conversions[tensor], (source,), (tensor,))

    def _output_conversions(self, nodes: tuple[Node, ...]) -> list[Task]:
        """Model outputs are wanted ROW, whoever else wants them."""
        outputs = [(v, "ROW") for n in nodes for v in n.outputs if v in self.graph.outputs]
        return [self._conversion(t) for t in outputs if not self._exists(t)]

    def _region(self, nodes: tuple[Node, ...]) -> Task:
        constant = self.graph.constants
        reads = tuple(dict.fromkeys(t for t in self._reads(nodes) if t[0] not in constant))
        names = {n.name for n in nodes}
        wanted = {
            v for v, readers in self.graph.consumers().items() if any(r.name not in names for r in readers)
        }
        wanted |= set(self.graph.outputs)
        writes = tuple((v, "ROW") for n in nodes for v in n.outputs if v in wanted)
        implementation = self.choices.nodes[nodes[0].name].implementation
        return Task(Action(nodes[0].name, "call", reads, writes), nodes, implementation, reads)

    def _node(self, node: Node) -> Task:
        reads = tuple((v, self._layout(node, v)) for v in node.inputs)
        writes = tuple((v, self._layout(node, v)) for v in node.outputs)
        implementation = self.choices.nodes[node.name].implementation
        return self._task(node.name, (node,), implementation, reads, writes)

    def _task(
        self,
        name: str,
        nodes: tuple[Node, ...],
        implementation: Implementation,
        operands: tuple[Tensor, ...],
        writes: tuple[Tensor, ...],
    ) -> Task:
        if implementation.provider == "move":
            return Task(
                self._move(name, nodes, implementation.workload, operands, writes),
                nodes,
                implementation,
                operands,
            )
        provider = self.catalogue.provider(implementation.provider)
        code = provider.build(implementation.workload, implementation.config, self.catalogue.target)
        constant = self.graph.constants
        reads = tuple(t for t in operands if t[0] not in constant)
        before = [sum(t[0] not in constant for t in operands[:i]) for i in range(len(operands))]
        inplace = tuple(before[i] for i in code.inplace if operands[i][0] not in constant)
        return Task(Action(name, "call", reads, writes, inplace), nodes, implementation, operands, code)

    def _move(
        self,
        name: str,
        nodes: tuple[Node, ...],
        w: Workload,
        reads: tuple[Tensor, ...],
        writes: tuple[Tensor, ...],
    ) -> Action:
        kind = _MOVES[w.op]
        if kind == "alias":
            return Action(name, kind, reads, writes)
        parts, whole = (w.inputs, w.outputs[0]) if kind == "join" else (w.outputs, w.inputs[0])
        cut = slices(nodes[0], list(parts), whole)
        assert cut is not None, "moves are checked when they are proposed"
        return Action(name, kind, reads, writes, (), cut[0], tuple(cut[1]))


def actions(tasks: Sequence[Task]) -> tuple[Action, ...]:
    """The tasks' actions."""
    return tuple(t.action for t in tasks)


def tensor_bytes(graph: Graph, tasks: Sequence[Task]) -> Mapping[Tensor, int]:
    """Bytes of every tensor the tasks touch, and of the model's inputs and outputs."""
    ends = [(v, "ROW") for v in (*graph.inputs, *graph.outputs)]
    used = (*ends, *(t for task in tasks for t in (*task.operands, *task.action.reads, *task.action.writes)))
    return {t: graph.types[t[0]].with_layout(t[1]).nbytes for t in dict.fromkeys(used) if t[0]}
