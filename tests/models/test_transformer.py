"""A small encoder as exporters of BERT write it: everything is native, and right."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import sqrt

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from wpk.api import build
from wpk.cuda import nvrtc
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.measurer import cuda_measurer
from wpk.report.engines import relative_l2
from wpk.settings import gpu_target
from wpk.stages import Options

WORDS, LENGTH, HIDDEN, HEADS = 50, 12, 64, 2


@dataclass
class Writer:
    """An ONNX graph being written, one node after another."""

    causal: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str | np.ndarray | float, **attrs: object) -> str:
        """A node; arrays and numbers become initializers."""
        names = [v if isinstance(v, str) else self.constant(v) for v in inputs]
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [out], f"{kind}_{len(self.nodes)}", **attrs))
        return out

    def constant(self, value: np.ndarray | float) -> str:
        """An initializer."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, np.float32) if isinstance(value, float) else value
        return name

    def weight(self, *shape: int, scale: float = 0.1, around: float = 0.0) -> np.ndarray:
        """Random weights."""
        return (self.rng.standard_normal(shape) * scale + around).astype(np.float32)

    def linear(self, x: str, out: int) -> str:
        """x·W + b; the bias comes first, as in PyTorch's exports."""
        return self.op("Add", self.weight(out), self.op("MatMul", x, self.weight(HIDDEN, out)))

    def layer_norm(self, x: str) -> str:
        """As exporters before opset 17 spell it."""
        d = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", d, 2.0), axes=[-1])
        y = self.op("Div", d, self.op("Sqrt", self.op("Add", variance, 1e-12)))
        return self.op("Add", self.op("Mul", y, self.weight(HIDDEN, around=1.0)), self.weight(HIDDEN))

    def gelu(self, x: str) -> str:
        """With Erf."""
        inner = self.op("Add", self.op("Erf", self.op("Div", x, sqrt(2))), 1.0)
        return self.op("Mul", self.op("Mul", x, inner), 0.5)

    def heads(self, x: str, perm: list[int]) -> str:
        """(1, L, H) → (1, heads, L, H/heads), or its transpose."""
        shape = np.array([0, 0, HEADS, HIDDEN // HEADS])
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def attention(self, x: str, mask: str) -> str:
        """Self-attention with an additive mask."""
        q = self.heads(self.linear(x, HIDDEN), [0, 2, 1, 3])
        k = self.heads(self.linear(x, HIDDEN), [0, 2, 3, 1])
        v = self.heads(self.linear(x, HIDDEN), [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", q, k), sqrt(HIDDEN / HEADS))
        if self.causal:
            later = np.triu(np.ones((1, 1, LENGTH, LENGTH), bool), 1)
            scores = self.op("Where", later, -1e9, scores)
        weights = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, np.array([0, 0, HIDDEN])), HIDDEN)

    def block(self, x: str, mask: str) -> str:
        """An encoder layer."""
        x = self.layer_norm(self.op("Add", self.attention(x, mask), x))
        wide = self.gelu(self.op("Add", self.op("MatMul", x, self.weight(HIDDEN, 4 * HIDDEN)), self.weight(4 * HIDDEN)))
        out = self.op("Add", self.op("MatMul", wide, self.weight(4 * HIDDEN, HIDDEN)), self.weight(HIDDEN))
        return self.layer_norm(self.op("Add", out, x))


def encoder(layers: int = 2, opset: int = 14, style: str = "bert") -> onnx.ModelProto:
    """Embeddings of ``ids``, a mask of integers, the layers, a pooled first token.

    ``style`` ``where``: the mask is a choice by a condition, and each token sees only those before it.
    """
    w = Writer(style == "where")
    mask = w.op("Unsqueeze", w.op("Unsqueeze", "mask", np.array([1])), np.array([2]))
    if style == "where":
        mask = w.op("Where", w.op("Not", w.op("Cast", mask, to=TensorProto.BOOL)), -1e9, 0.0)
    else:
        mask = w.op("Mul", w.op("Sub", 1.0, w.op("Cast", mask, to=TensorProto.FLOAT)), -10000.0)
    x = w.op("Gather", w.weight(WORDS, HIDDEN, scale=1.0), "ids", axis=0)
    x = w.layer_norm(w.op("Add", x, w.weight(1, LENGTH, HIDDEN)))
    for _ in range(layers):
        x = w.block(x, mask)
    first = w.op("Gather", x, np.array(0), axis=1)
    y = w.op("Tanh", w.op("Gemm", first, w.weight(HIDDEN, HIDDEN), w.weight(HIDDEN), transB=1))
    inputs = [helper.make_tensor_value_info(v, TensorProto.INT64, [1, LENGTH]) for v in ("ids", "mask")]
    outputs = [onnx.ValueInfoProto(name=v) for v in (x, y)]
    tensors = [numpy_helper.from_array(a, v) for v, a in w.weights.items()]
    graph = helper.make_graph(w.nodes, "encoder", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def vision_transformer(layers: int = 1) -> onnx.ModelProto:
    """Patches, a class token, layers with one product for q, k and v, a softmax that is safe from NaN."""
    w, tokens, size = Writer(), 17, HIDDEN // HEADS
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
        x = w.op("Add", x, w.linear(w.op("Reshape", mixed, np.array([1, tokens, HIDDEN])), HIDDEN))
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
    model = encoder(layers=1)
    made = build(model, Options(budget=0.0, target="cuda", precision="fp16"))
    assert {"norm", "gather", "softmax", "matmul"} <= {c.op for c in made.parts.plan.choices}
    feeds = {"ids": np.arange(LENGTH)[None], "mask": np.ones((1, LENGTH), np.int64)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(made.runner.run(None, feeds), session.run(None, feeds), strict=True):
        assert relative_l2(found, expected) < 5e-3


@pytest.mark.parametrize(
    ("providers", "style"), [(("generated",), "bert"), (("generated",), "where"), (None, "bert")], ids=str
)
def test_an_encoder_has_no_region(providers: tuple[str, ...] | None, style: str) -> None:
    model = encoder(style=style)
    options = Options(budget=0.0, threads=2) if providers is None else Options(budget=0.0, threads=2, providers=providers)
    made = build(model, options)
    ops = [c.op for c in made.parts.plan.choices]
    assert ops.count("norm") == 5 and ops.count("gather") == 1 and ops.count("softmax") == 2
    assert ops.count("eltwise") == 2  # the mask and the sum of embeddings: all else is somebody's epilogue
    assert not {"onnx", "region", "reduce"} & set(ops)
    assert not any(s.kind == "onnxruntime" for s in made.parts.plan.steps)
    mask = np.ones((1, LENGTH), np.int64)
    mask[0, 9:] = 0
    feeds = {"ids": np.random.default_rng(1).integers(0, WORDS, (1, LENGTH)), "mask": mask}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, expected in zip(made.runner.run(None, feeds), session.run(None, feeds), strict=True):
        assert relative_l2(found, expected) < 1e-5
