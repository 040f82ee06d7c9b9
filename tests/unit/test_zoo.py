"""The zoo: seeded, cached, of the batch asked for, and with sane numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.zoo import NAMES, build, make


def test_build_writes_once_and_by_seed(tmp_path: Path) -> None:
    first = build("squeezenet", tmp_path)
    content, time = first.read_bytes(), first.stat().st_mtime_ns
    assert build("squeezenet", tmp_path) == first and first.stat().st_mtime_ns == time
    first.unlink()
    assert build("squeezenet", tmp_path).read_bytes() == content
    assert build("squeezenet", tmp_path, seed=1).read_bytes() != content
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".onnx", ".onnx"]


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet'"):
        build("resnet", tmp_path)
    assert len(NAMES) == 9


@pytest.mark.parametrize(("name", "batch"), [("squeezenet", 1), ("shufflenet", 2)])
def test_models_are_valid_and_sane(name: str, batch: int) -> None:
    model = make(name, batch)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.input) == 1 and not any(n.op_type == "ConstantOfShape" for n in model.graph.node)
    before = model.graph.node[-1].input[0]  # the tensor before the softmax
    model.graph.output.append(onnx.ValueInfoProto(name=before))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
    (logits,) = session.run([before], {session.get_inputs()[0].name: x})
    assert logits.shape[0] == batch and np.isfinite(logits).all() and 0.1 < logits.std() < 50
