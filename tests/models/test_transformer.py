"""A small encoder as exporters of BERT write it: everything is native, and right."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.encoder import Size, Writer, encoder
from wpk.api import build
from wpk.cuda import nvrtc
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.measurer import cuda_measurer
from wpk.planner.contract import candidate_plans, measure_plans
from wpk.report.engines import relative_l2
from wpk.settings import gpu_target
from wpk.stages import Options, open_shop, read_source

WORDS, LENGTH, HIDDEN, HEADS = 50, 12, 64, 2
SMALL = Size(2, HIDDEN, HEADS, LENGTH, WORDS)


def vision_transformer(layers: int = 1) -> onnx.ModelProto:
    """Patches, a class token, layers with one product for q, k and v, a softmax that is safe from NaN."""
    w, tokens, size = Writer(SMALL), 17, HIDDEN // HEADS
    x = w.op("Conv", "x", w.weight(HIDDEN, 3, 8, 8), w.weight(HIDDEN), strides=[8, 8])
    x = w.op("Transpose", w.op("Reshape", x, np.array([0, HIDDEN, -1])), perm=[0, 2, 1])
    x = w.op("Add", w.op("Concat", w.weight(1, 1, HIDDEN), x, axis=1), w.weight(1, tokens, HIDDEN))
    for _ in range(layers):
        h = w.op("LayerNormalization", x, w.weight(HIDDEN, around=1.0), w.weight(HIDDEN))
        qkv = w.op("Reshape", w.op("MatMul", h, w.weight(HIDDEN, 3 * HIDDEN)), np.array([1, tokens, 3, HEADS, size]))
        qkv = w.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (w.op("Gather", qkv, np.array(i), axis=0) for i in range(3))
        scores = w.op("MatMul", w.op("Mul", q, size**-0.5), w.op("Transpose", k, perm=[0, 1, 3, 2]))
        weights = w.op("Softmax", scores, axis=-1)
        weights = w.op("Where", w.op("IsNaN", weights), 0.0, weights)
        mixed = w.op("Transpose", w.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        x = w.op("Add", x, w.linear(w.op("Reshape", mixed, np.array([1, tokens, HIDDEN])), HIDDEN, HIDDEN))
    y = w.op("Gemm", w.op("Gather", w.layer_norm(x), np.array(0), axis=1), w.weight(HIDDEN, 10))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])]
    tensors = [numpy_helper.from_array(a, v) for v, a in w.weights.items()]
    graph = helper.make_graph(w.nodes, "vit", inputs, [onnx.ValueInfoProto(name=y)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_vision_transformer_has_no_region() -> None:
    model = vision_transformer()
    made = build(model, Options(budget=0.0, threads=2, providers=("generated",)))
    assert not {"onnx", "region"} & {c.op for c in made.parts.plan.choices}
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert relative_l2(made.runner.run(None, feeds)[0], session.run(None, feeds)[0]) < 1e-5


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
def test_an_encoder_on_an_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in 16 bits, by kernels of our own: there is no ONNX Runtime inside a GPU's plan."""
    device = EmulatedDevice(gpu_target("sm_90a"))
    monkeypatch.setattr("wpk.stages.open_device", lambda: device)
    monkeypatch.setattr("wpk.runtime.runner.open_device", lambda: device)
    monkeypatch.setattr("wpk.stages.cuda_measurer", partial(cuda_measurer, emulate=True))
    model = encoder(replace(SMALL, layers=1))
    made = build(model, Options(budget=0.0, target="cuda", precision="fp16"))
    ops = {c.op for c in made.parts.plan.choices}
    assert {"norm", "gather", "attention"} <= ops and not {"softmax", "matmul", "transpose"} & ops
    feeds = {"ids": np.arange(LENGTH)[None], "mask": np.ones((1, LENGTH), np.int64)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(made.runner.run(None, feeds), session.run(None, feeds), strict=True):
        assert relative_l2(found, expected) < 5e-3


@pytest.mark.parametrize(
    ("providers", "causal"), [(("generated",), False), (("generated",), True), (None, False)], ids=str
)
def test_an_encoder_has_no_region(providers: tuple[str, ...] | None, causal: bool) -> None:
    model = encoder(replace(SMALL, causal=causal))
    options = Options(budget=0.0, threads=2) if providers is None else Options(budget=0.0, threads=2, providers=providers)
    made = build(model, options)
    ops = [c.op for c in made.parts.plan.choices]
    assert ops.count("norm") == 5 and ops.count("gather") == 1 and ops.count("attention") + ops.count("softmax") == 2
    assert ops.count("eltwise") == 2  # the mask and the sum of embeddings: all else is somebody's epilogue
    assert not {"onnx", "region", "reduce"} & set(ops)
    assert not any(s.kind == "onnxruntime" for s in made.parts.plan.steps)
    mask = np.ones((1, LENGTH), np.int64)
    mask[0, 9:] = 0
    feeds = {"ids": np.random.default_rng(1).integers(0, WORDS, (1, LENGTH)), "mask": mask}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(made.runner.run(None, feeds), session.run(None, feeds), strict=True):
        assert relative_l2(found, expected) < 1e-5


def test_the_plan_of_onednn_is_of_operators_that_it_has() -> None:
    options = Options(budget=0.0, threads=2)
    shop = open_shop(options)
    if "onednn" not in {p.name for p in shop.providers}:
        pytest.skip("oneDNN is not installed")
    source = read_source(encoder(SMALL), options, shop)
    graph = next(g for g in source.graphs if any(n.op == "attention" for n in g.nodes))
    plans = candidate_plans(graph, source.session, None, shop.target, shop.providers, shop.tools, source.plain(graph))
    of_onednn = {c.op: c.provider for c in plans["onednn"].plan.choices}
    assert "attention" not in of_onednn and of_onednn["matmul"] == "onednn"
    measured = measure_plans({"onednn": plans["onednn"]}, source.feeds, source.expected, options.limit)
    assert measured["onednn"].ok
