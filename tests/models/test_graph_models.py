"""Whole networks: imported, optimized and exported again, they compute what they did; and everything fuses that should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.zoo import build
from wpk.graph.onnx_io import export_model, load_model
from wpk.passes import default_pipeline, run_pipeline

#: operators after the default pipeline
EXPECTED = {
    "squeezenet": {"conv": 26, "concat": 8, "pool": 4, "view": 2, "softmax": 1},
    "shufflenet": {
        "conv": 49, "view": 33, "transpose": 16, "pool": 5, "concat": 3, "gemm": 1, "softmax": 1,
    },
    "resnet50": {"conv": 53, "pool": 2, "view": 1, "gemm": 1, "softmax": 1},
    "inception_v2": {"conv": 69, "pool": 13, "concat": 10, "view": 1, "gemm": 1, "softmax": 1},
    "densenet121": {"conv": 121, "eltwise": 62, "concat": 58, "pool": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are built."""
    return tmp_path_factory.mktemp("zoo")


def outputs(model: str | bytes, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime's first output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_left_after_fusion(name: str, zoo: Path) -> None:
    graph = run_pipeline(load_model(build(name, zoo)), default_pipeline())
    assert Counter(n.op for n in graph.nodes) == EXPECTED[name]


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
@pytest.mark.parametrize("batch", [None, 2])
def test_the_optimized_graph_computes_the_model(name: str, batch: int | None, zoo: Path) -> None:
    path = build(name, zoo)
    graph = run_pipeline(load_model(path, batch=batch), default_pipeline(siblings=True))
    x = np.random.default_rng(1).standard_normal(graph.types[graph.inputs[0]].shape, np.float32)
    expected = np.concatenate([outputs(str(path), x[i : i + 1]) for i in range(batch or 1)])
    found = outputs(export_model(graph), x)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    same = outputs(export_model(load_model(build(name, zoo, batch or 1))), x)
    assert np.linalg.norm(same - expected) <= 1e-5 * np.linalg.norm(expected)
