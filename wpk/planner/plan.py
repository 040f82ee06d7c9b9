"""The planner's front: a fused graph and measurements → parts that a runner takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wpk.core.errors import InternalError
from wpk.core.launch import CudaSource
from wpk.core.target import Target
from wpk.cuda import nvrtc
from wpk.graph.graph import Graph
from wpk.graph.onnx_io import export_region
from wpk.measure.builder import CompileError, build_many, build_runtime
from wpk.measure.toolchain import Compiler
from wpk.planner.candidates import Catalogue, ResultTable
from wpk.planner.choose import Choices, choose
from wpk.planner.emit import Export, Text, Tools, constant_tensors, emit
from wpk.planner.schedule import actions, schedule, tensor_bytes
from wpk.planner.storage import arrange
from wpk.providers.protocol import Provider, Source
from wpk.runtime.native_api import RUNTIME
from wpk.runtime.parts import Parts
from wpk.runtime.plan import Arg, BufferSpec, Plan, Port, Step

#: Fewer kernels than this are compiled here: a process takes a second to start.
_WORTH_PROCESSES = 8


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
    return Parts(plan, dict(tools.runtime), {}, {key: model})


def make_cuda_tools(target: Target, cache: Path, export: Export = export_region) -> Tools:
    """Tools that compile CUDA by NVRTC, in processes beside each other, into ``cache``. Raises ToolchainError."""
    nvrtc.version()
    folder = cache / "cubin"

    def build(texts: Sequence[Text]) -> list[Path]:
        sources = [s for s in texts if isinstance(s, CudaSource)]
        pairs = list(dict.fromkeys((s.text, target.isa) for s in sources))
        with _compilers(len([p for p in pairs if not (folder / f"{nvrtc.cache_key(*p)}.cubin").exists()])) as pool:
            for (text, _), found in zip(pairs, nvrtc.compile_many(pairs, pool, folder), strict=True):
                if isinstance(found, nvrtc.CudaCompileError):
                    raise InternalError(f"a chosen kernel does not compile: {found.detail}: {text.splitlines()[1]}")
        return [folder / f"{nvrtc.cache_key(s.text, target.isa)}.cubin" for s in sources]

    return Tools(build, export, {})


@contextmanager
def _compilers(count: int) -> Iterator[Executor | None]:
    """Processes for ``count`` compilations: none where starting them costs more than they save."""
    if count < _WORTH_PROCESSES:
        yield None
        return
    with nvrtc.open_pool(min(count, os.cpu_count() or 1)) as pool:
        yield pool


def make_tools(target: Target, compiler: Compiler, cache: Path, export: Export = export_region) -> Tools:
    """Tools that compile with ``compiler`` into ``cache``. Raises StorageError."""

    def build(texts: Sequence[Text]) -> list[Path]:
        sources = [s for s in texts if isinstance(s, Source)]
        built = build_many([(s.text, s.isa) for s in sources], compiler, cache, jobs=max(target.cores, 1))
        for source, result in zip(sources, built, strict=True):
            if isinstance(result, CompileError):
                raise InternalError(
                    f"kernel {source.symbol} was measured but does not compile: {result.detail}"
                )
        return [b for b in built if isinstance(b, Path)]

    return Tools(build, export, {RUNTIME: build_runtime(target.isa, compiler, cache)})
