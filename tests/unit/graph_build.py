"""Small ONNX models for the graph tests, and the one question asked of all: does the graph still compute the model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from wpk.graph.graph import Graph
from wpk.graph.onnx_io import export_model, load_model
from wpk.passes import default_pipeline, run_pipeline

FLOAT = TensorProto.FLOAT


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    """A node named after its first output."""
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{outputs[0]}", **attrs)


def make(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None, opset: int = 17, domains: Mapping[str, int] | None = None,
    dtype: int = FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    """A model whose outputs' types are left to inference."""
    infos = [helper.make_tensor_value_info(n, dtype, list(s)) for n, s in inputs.items()]
    outs = [onnx.ValueInfoProto(name=v) for v in outputs]
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", infos, outs, tensors)
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(d, v) for d, v in (domains or {}).items()),
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded normal float32 data."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32)


def load(model: onnx.ModelProto, folder: Path, **options: Any) -> Graph:
    """The graph of a model, through a file."""
    path = folder / "model.onnx"
    onnx.save_model(model, str(path))
    return load_model(path, **options)


def run(model: bytes, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's outputs, its own fusions off."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return list(session.run(None, {k: v for k, v in feeds.items() if k in known}))


def feeds_of(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Random feeds for a graph."""
    rng = np.random.default_rng(seed)
    return {
        v: rng.standard_normal(graph.types[v].shape, np.float32).astype(graph.types[v].dtype)
        if graph.types[v].dtype != "bool" else rng.integers(0, 2, graph.types[v].shape).astype(bool)
        for v in graph.inputs
    }  # fmt: skip


def optimized(
    model: onnx.ModelProto,
    folder: Path,
    pipeline: Any = None,
    trace: list[str] | None = None,
    tolerance: float = 1e-5,
) -> Graph:
    """The optimized graph, after asserting that it and the graph before it compute what ONNX Runtime makes of the model."""
    before = load(model, folder)
    after = run_pipeline(before, default_pipeline() if pipeline is None else pipeline, trace)
    feeds = feeds_of(before)
    expected = run(model.SerializeToString(), feeds)
    for graph in (before, after):
        for found, wanted in zip(run(export_model(graph), feeds), expected, strict=True):
            assert found.dtype == wanted.dtype and found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    return after


def ops(graph: Graph) -> list[str]:
    """The operators in order."""
    return [n.op for n in graph.nodes]
