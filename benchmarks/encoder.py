"""A transformer encoder as exporters of BERT write it, weights drawn from a seed: norms and GELU spelled out, an integer mask.

    python -m benchmarks.encoder --length 128 --out DIR
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Size:
    """The sizes of an encoder; by default those of BERT-base (Devlin et al., NAACL 2019) with 128 tokens.

    ``causal``: the mask is a choice by a condition, and each token sees only those before it.
    """

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    length: int = 128
    words: int = 30522
    causal: bool = False


@dataclass
class Writer:
    """An ONNX graph being written, one node after another."""

    size: Size
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
        return (self.rng.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(around)).astype(np.float32)

    def linear(self, x: str, inside: int, out: int) -> str:
        """x·W + b; the bias comes first, as in PyTorch's exports."""
        product = self.op("MatMul", x, self.weight(inside, out, scale=inside**-0.5))
        return self.op("Add", self.weight(out), product)

    def layer_norm(self, x: str) -> str:
        """As exporters before opset 17 spell it."""
        hidden = self.size.hidden
        d = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", d, 2.0), axes=[-1])
        y = self.op("Div", d, self.op("Sqrt", self.op("Add", variance, 1e-12)))
        return self.op("Add", self.op("Mul", y, self.weight(hidden, around=1.0)), self.weight(hidden))

    def gelu(self, x: str) -> str:
        """With Erf."""
        inner = self.op("Add", self.op("Erf", self.op("Div", x, sqrt(2))), 1.0)
        return self.op("Mul", self.op("Mul", x, inner), 0.5)

    def split_heads(self, x: str, perm: list[int]) -> str:
        """(1, L, H) → (1, heads, L, H/heads), or its transpose."""
        shape = np.array([0, 0, self.size.heads, self.size.hidden // self.size.heads])
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def attention(self, x: str, mask: str) -> str:
        """Self-attention with an additive mask."""
        hidden = self.size.hidden
        q = self.split_heads(self.linear(x, hidden, hidden), [0, 2, 1, 3])
        k = self.split_heads(self.linear(x, hidden, hidden), [0, 2, 3, 1])
        v = self.split_heads(self.linear(x, hidden, hidden), [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", q, k), sqrt(hidden / self.size.heads))
        if self.size.causal:
            later = np.triu(np.ones((1, 1, self.size.length, self.size.length), bool), 1)
            scores = self.op("Where", later, -1e9, scores)
        weights = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, np.array([0, 0, hidden])), hidden, hidden)

    def block(self, x: str, mask: str) -> str:
        """An encoder layer."""
        hidden = self.size.hidden
        x = self.layer_norm(self.op("Add", self.attention(x, mask), x))
        wide = self.gelu(self.linear(x, hidden, 4 * hidden))
        return self.layer_norm(self.op("Add", self.linear(wide, 4 * hidden, hidden), x))


def encoder(size: Size | None = None, opset: int = 14) -> onnx.ModelProto:
    """Embeddings of ``ids`` (1, L), a ``mask`` of integers, the layers; outputs: the last layer's tokens, a pooled first one."""
    size = size or Size()
    w = Writer(size)
    mask = w.op("Unsqueeze", w.op("Unsqueeze", "mask", np.array([1])), np.array([2]))
    if size.causal:
        mask = w.op("Where", w.op("Not", w.op("Cast", mask, to=TensorProto.BOOL)), -1e9, 0.0)
    else:
        mask = w.op("Mul", w.op("Sub", 1.0, w.op("Cast", mask, to=TensorProto.FLOAT)), -10000.0)
    x = w.op("Gather", w.weight(size.words, size.hidden, scale=1.0), "ids", axis=0)
    x = w.layer_norm(w.op("Add", x, w.weight(1, size.length, size.hidden)))
    for _ in range(size.layers):
        x = w.block(x, mask)
    first = w.op("Gather", x, np.array(0), axis=1)
    pooled = w.op("Gemm", first, w.weight(size.hidden, size.hidden, scale=size.hidden**-0.5), w.weight(size.hidden), transB=1)
    y = w.op("Tanh", pooled)
    inputs = [helper.make_tensor_value_info(v, TensorProto.INT64, [1, size.length]) for v in ("ids", "mask")]
    outputs = [onnx.ValueInfoProto(name=v) for v in (x, y)]
    tensors = [numpy_helper.from_array(a, v) for v, a in w.weights.items()]
    graph = helper.make_graph(w.nodes, "encoder", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def build(folder: Path, size: Size | None = None) -> Path:
    """The file of an encoder in ``folder``, written unless it is there."""
    size = size or Size()
    path = folder / f"encoder-l{size.layers}-h{size.hidden}-s{size.length}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save_model(encoder(size), str(path))
    return path


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--length", type=int, default=Size.length)
    parser.add_argument("--out", type=Path, default=Path("build/zoo"))
    args = parser.parse_args()
    print(build(args.out, Size(layers=args.layers, length=args.length)))


if __name__ == "__main__":
    main()
