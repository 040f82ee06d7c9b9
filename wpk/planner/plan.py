"""The planner's front: a fused graph and measurements → parts that a runner takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wpk.core.errors import InternalError
from wpk.core.target import Target
from wpk.graph.graph import Graph
from wpk.graph.onnx_io import export_region
from wpk.measure.builder import CompileError, build_many, build_runtime
from wpk.measure.toolchain import Compiler
from wpk.planner.candidates import Catalogue, ResultTable
from wpk.planner.choose import Choices, choose
from wpk.planner.emit import Export, Tools, constant_tensors, emit
from wpk.planner.schedule import actions, schedule, tensor_bytes
from wpk.planner.storage import arrange
from wpk.providers.protocol import Provider, Source
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step


def plan_model(
    graph: Graph,
    results: ResultTable | None,
    target: Target,
    providers: Sequence[Provider],
    tools: Tools,
    meta: dict[str, Any] | None = None,
) -> Parts:
    """The fastest program for ``graph`` that ``results`` know of; where nothing is measured, the providers' defaults.

    What none of the providers can compute runs in ONNX Runtime, as opaque nodes do.
    """
    catalogue = Catalogue(tuple(providers), results, target)
    return assemble(graph, choose(graph, catalogue), catalogue, tools, meta)


def assemble(
    graph: Graph, choices: Choices, catalogue: Catalogue, tools: Tools, meta: dict[str, Any] | None = None
) -> Parts:
    """The program that makes ``choices``."""
    tasks = schedule(graph, choices, catalogue)
    outputs = [(v, "ROW") for v in graph.outputs]
    layout = arrange(actions(tasks), tensor_bytes(graph, tasks), constant_tensors(graph), outputs)
    facts = {**(meta or {}), "predicted_s": choices.seconds}
    return emit(graph, tasks, layout, catalogue, tools, facts)


def session_plan(
    graph: Graph, model: bytes, target: Target, tools: Tools, meta: dict[str, Any] | None = None
) -> Parts:
    """The whole model as one session of ONNX Runtime; ``graph`` gives the names and types of its inputs and outputs."""
    key = hashlib.sha256(model).hexdigest()[:24]
    kinds = [*(("input", v) for v in graph.inputs), *(("output", v) for v in graph.outputs)]
    buffers = tuple(BufferSpec(kind, graph.types[v].nbytes, v) for kind, v in kinds)
    typed = {v: [v, graph.types[v].dtype, list(graph.types[v].shape)] for _, v in kinds}
    spec = {
        "model": key,
        "inputs": [typed[v] for v in graph.inputs],
        "outputs": [typed[v] for v in graph.outputs],
        "spinning": True,  # nothing else runs: its threads may keep their cores
    }
    step = Step("model", "onnxruntime", tuple(Arg(i) for i in range(len(buffers))), spec=spec)
    inputs, outputs = (
        tuple(Port(v, graph.types[v].dtype, graph.types[v].shape) for v in values)
        for values in (graph.inputs, graph.outputs)
    )
    plan = Plan(
        graph.name, inputs, outputs, buffers, (step,), 0, target.to_json(), target.fingerprint, (), meta
    )
    return Parts(plan, dict([tools.runtime]), {}, {key: model})


def make_tools(target: Target, compiler: Compiler, cache: Path, export: Export = export_region) -> Tools:
    """Tools that compile with ``compiler`` into ``cache``. Raises StorageError."""

    def build(sources: Sequence[Source]) -> list[Path]:
        built = build_many([(s.text, s.isa) for s in sources], compiler, cache, jobs=max(target.cores, 1))
        for source, result in zip(sources, built, strict=True):
            if isinstance(result, CompileError):
                raise InternalError(
                    f"kernel {source.symbol} was measured but does not compile: {result.detail}"
                )
        return [b for b in built if isinstance(b, Path)]

    return Tools(build, export, (RUNTIME, build_runtime(target.isa, compiler, cache)))
