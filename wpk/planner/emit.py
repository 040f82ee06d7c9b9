"""Tasks and places → parts: the plan, binaries, weights and models that a runner takes. Deterministic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wpk.core.launch import CudaSource
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.ops import work
from wpk.planner.candidates import Catalogue
from wpk.planner.schedule import Task
from wpk.planner.storage import Copy, Layout, Tensor
from wpk.providers.protocol import Code, Source
from wpk.runtime.parts import Content, Parts
from wpk.runtime.plan import Arg, BufferSpec, Choice, Plan, Port, Step

#: What a compiler takes: C for a shared library, CUDA for a cubin.
Text = Source | CudaSource

#: Sources → the files of their binaries, in order.
Build = Callable[[Sequence[Text]], Sequence[Path]]

#: Nodes, and the values they read and write → a serialized ONNX model of them.
Export = Callable[[Graph, Sequence[Node], Sequence[str], Sequence[str]], bytes]


@dataclass(frozen=True)
class Tools:
    """What making parts needs from outside: a compiler, an exporter, and the native runtime's library where the plan needs it."""

    build: Build
    export: Export
    runtime: Mapping[str, Content]


def emit(
    graph: Graph,
    tasks: Sequence[Task],
    layout: Layout,
    catalogue: Catalogue,
    tools: Tools,
    meta: dict[str, Any] | None = None,
) -> Parts:
    """The parts of the scheduled graph."""
    work = _Emission(graph, layout, catalogue, tools)
    sources = [text for t in tasks if t.code is not None and (text := text_of(t.code)) is not None]
    built = dict(zip(sources, tools.build(sources), strict=True)) if sources else {}
    work.binaries = {**tools.runtime, **{p.name: p for p in built.values()}}
    work.built = built
    steps = [step for task in tasks for step in work.steps(task)]
    steps.extend(work.output_copies())
    plan = Plan(
        graph.name, work.ports(graph.inputs), work.ports(graph.outputs), tuple(work.buffers), tuple(steps),
        layout.arena_bytes, catalogue.target.to_json(), catalogue.target.fingerprint,
        tuple(_choice(t) for t in tasks), meta,
    )  # fmt: skip
    texts = {symbol_of(source): source.text for source in sources}
    return Parts(plan, work.binaries, work.weights, work.models, texts)


@dataclass
class _Emission:
    graph: Graph
    layout: Layout
    catalogue: Catalogue
    tools: Tools
    built: dict[Text, Path] = field(default_factory=dict)
    buffers: list[BufferSpec] = field(default_factory=list)
    numbers: dict[BufferSpec, int] = field(default_factory=dict)
    binaries: dict[str, Content] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    models: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.graph.inputs:
            self._buffer(BufferSpec("input", self.graph.types[value].nbytes, value))
        for value in self.graph.outputs:
            self._buffer(BufferSpec("output", self.graph.types[value].nbytes, value))

    def ports(self, values: Sequence[str]) -> tuple[Port, ...]:
        """Model inputs or outputs."""
        return tuple(Port(v, self.graph.types[v].dtype, self.graph.types[v].shape) for v in values)

    def steps(self, task: Task) -> list[Step]:
        """What one task runs: nothing, copies, or one call."""
        if task.action.kind != "call":
            copies = self.layout.copies.get(task.action.name, ())
            return [self._copy(f"{task.action.name}#{i}", c) for i, c in enumerate(copies)]
        if task.code is None:
            return [self._region(task)]
        return [self._call(task)]

    def output_copies(self) -> list[Step]:
        """Model outputs that live elsewhere."""
        found = []
        for tensor in self.layout.output_copies:
            size = self.graph.types[tensor[0]].nbytes
            target = Arg(self._buffer(BufferSpec("output", size, tensor[0])))
            found.append(
                Step(f"{tensor[0]}:output", "copy", (self._arg(tensor), target), spec={"nbytes": size})
            )
        return found

    def _call(self, task: Task) -> Step:
        code, action = task.code, task.action
        assert code is not None
        packed = iter(self._packed(task))
        constants = {i for i, t in enumerate(task.operands) if t[0] in self.graph.constants}
        inputs = [next(packed) if i in constants else self._arg(t) for i, t in enumerate(task.operands)]
        args = (*inputs, *(self._arg(t) for t in action.writes))
        source = text_of(code)
        spec = {**(code.spec or {}), **self._extents(task, args)}
        if source is None:
            return Step(action.name, code.kind, args, spec=spec)
        symbol, binary = symbol_of(source), self.built[source].name
        if isinstance(source, CudaSource):
            return Step(action.name, "cuda", args, symbol, binary, {**source.calls(), **spec}, source.workspace_bytes)
        return Step(
            action.name, "kernel", args, symbol, binary,
            shared_bytes=source.shared_bytes, thread_bytes=source.thread_bytes,
        )  # fmt: skip

    def _extents(self, task: Task, args: Sequence[Arg]) -> dict[str, Any]:
        """How many bytes each argument has, and how many of them are written: what a GPU may run beside what rests on it."""
        if self.catalogue.target.arch != "cuda":
            return {}
        written = [self._bytes(t) for t in task.action.writes]
        read = [
            self.buffers[arg.buffer].nbytes if t[0] in self.graph.constants else self._bytes(t)
            for t, arg in zip(task.operands, args, strict=False)
        ]
        return {"outputs": len(written), "bytes": [*read, *written]}

    def _bytes(self, tensor: Tensor) -> int:
        return type_of(self.graph, tensor).nbytes

    def _packed(self, task: Task) -> list[Arg]:
        constants = [self.graph.constants[v] for v, _ in task.operands if v in self.graph.constants]
        if not constants:
            return []
        made = task.implementation
        provider = self.catalogue.provider(made.provider)
        packed = provider.pack(made.workload, made.config, constants, self.catalogue.target)
        return [Arg(self._weight(array)) for array in packed]

    def _region(self, task: Task) -> Step:
        action = task.action
        reads, writes = [v for v, _ in action.reads], [v for v, _ in action.writes]
        model = self.tools.export(self.graph, task.nodes, reads, writes)
        key = hashlib.sha256(model).hexdigest()[:24]
        self.models[key] = model
        spec = {
            "model": key,
            "inputs": [self._typed(v) for v in reads],
            "outputs": [self._typed(v) for v in writes],
        }
        args = tuple(self._arg(t) for t in (*action.reads, *action.writes))
        return Step(action.name, "onnxruntime", args, spec=spec)

    def _copy(self, name: str, copy: Copy) -> Step:
        args = (self._arg(copy.source, copy.source_offset), self._arg(copy.target, copy.target_offset))
        return Step(name, "copy", args, spec={"nbytes": copy.nbytes})

    def _typed(self, value: str) -> list[Any]:
        t = self.graph.types[value]
        return [value, t.dtype, list(t.shape)]

    def _arg(self, tensor: Tensor, offset: int = 0) -> Arg:
        place = self.layout.places[tensor]
        return Arg(self._root(place.root), place.offset + offset)

    def _root(self, root: Tensor) -> int:
        value, layout = root
        size = self.graph.types[value].with_layout(layout).nbytes
        if root in self.layout.outputs:
            return self._buffer(
                BufferSpec(
                    "output", self.graph.types[self.layout.outputs[root]].nbytes, self.layout.outputs[root]
                )
            )
        if value in self.graph.constants:
            return self._weight(self.graph.constants[value])
        if value in self.graph.inputs and layout == "ROW":
            return self._buffer(BufferSpec("input", size, value))
        return self._buffer(BufferSpec("arena", size, offset=self.layout.offsets[root]))

    def _weight(self, array: np.ndarray) -> int:
        data = np.ascontiguousarray(array)
        digest = hashlib.sha256(f"{data.dtype}{data.shape}".encode())
        digest.update(data.reshape(-1).view(np.uint8).data)
        key = digest.hexdigest()[:24]
        self.weights.setdefault(key, data)
        return self._buffer(BufferSpec("weight", data.nbytes, key))

    def _buffer(self, spec: BufferSpec) -> int:
        if spec not in self.numbers:
            self.numbers[spec] = len(self.buffers)
            self.buffers.append(spec)
        return self.numbers[spec]


def _choice(task: Task) -> Choice:
    made, nodes = task.implementation, task.nodes
    workload, cost = made.workload, work(made.workload)
    return Choice(
        task.action.name, nodes[0].op if len(nodes) == 1 else ("convert" if not nodes else "region"), workload.key,
        made.provider, dict(made.config), made.seconds if made.measured else None, made.rivals,
        tuple(o for n in nodes for o in n.origin), cost.flops, cost.nbytes,
    )  # fmt: skip


def text_of(code: Code) -> Text | None:
    """The text that code is compiled from; None for a library's call."""
    return code.source if code.source is not None else code.cuda


def symbol_of(source: Text) -> str:
    """The name of the function, of the first one of several kernels."""
    return source.launches[0].symbol if isinstance(source, CudaSource) else source.symbol


def constant_tensors(graph: Graph) -> list[Tensor]:
    """Tensors whose memory is given: the model's inputs and the constants, row-major."""
    return [(v, "ROW") for v in (*graph.inputs, *graph.constants)]


def type_of(graph: Graph, tensor: Tensor) -> TensorType:
    """The type of a tensor."""
    return graph.types[tensor[0]].with_layout(tensor[1])
