"""Lower precision, node by node: which values are stored in 16 bits, which products may run on tensor cores in tf32.

A lowered node reads its own operands (activations and weights) in the lower precision and writes it, but for the model's outputs.
Operands of epilogues and of elementwise nodes come as they are: their arithmetic is float32 anyway. Where a node that is not
lowered meets one that is, a cast (an eltwise that does nothing else) stands between them, once for each value.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from wpk.core.pointwise import Input
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.graph.verify import verify
from wpk.ops import OPERATORS
from wpk.ops.attention import OWN
from wpk.runtime.ports import numpy_dtype

#: What users call a precision → the dtype that values are stored in.
STORED: Mapping[str, str] = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}

#: Ops whose products tensor cores make.
PRODUCTS = ("conv", "gemm", "matmul", "attention")

#: Ops that can write another dtype than they read.
_MIXED = (*PRODUCTS, "eltwise")

_OPAQUE = ("onnx", "region")


def lowerable(graph: Graph, node: Node, precision: str) -> bool:
    """True when ``node`` has something to gain: a product for tf32, any native node on float32 for 16 bits."""
    if precision == "fp32" or node.op in _OPAQUE:
        return False
    if precision == "tf32":
        return node.op in PRODUCTS
    values = (*node.inputs, *node.outputs)
    return all(graph.types[v].dtype == "float32" for v in values if v)


def lowered(graph: Graph, precision: str, keep: Container[str] = ()) -> Graph:
    """``graph`` with every lowerable node in ``precision`` but those named in ``keep``."""
    chosen = [n for n in graph.nodes if n.name not in keep and lowerable(graph, n, precision)]
    if not chosen:
        return graph
    if precision == "tf32":
        return _with_tensor_cores(graph, {n.name for n in chosen})
    made = _Lowering(graph, STORED[precision], {n.name for n in chosen}).run()
    verify(made)
    return made


def _with_tensor_cores(graph: Graph, names: Container[str]) -> Graph:
    def marked(node: Node) -> Node:
        attrs = tuple(sorted((*node.attrs, ("precision", "tf32"))))
        return replace(node, attrs=attrs) if node.name in names else node

    made = replace(graph, nodes=tuple(map(marked, graph.nodes)))
    verify(made)
    return made


@dataclass
class _Lowering:
    graph: Graph
    dtype: str
    names: Container[str]
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    casts: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> Graph:
        """The lowered graph; constants that nobody reads any more are left out."""
        self.types, self.constants = dict(self.graph.types), dict(self.graph.constants)
        for node in self.graph.nodes:
            self._node(node)
        read = {v for n in self.nodes for v in n.inputs} | set(self.graph.outputs)
        constants = {v: a for v, a in self.constants.items() if v in read}
        return replace(self.graph, nodes=tuple(self.nodes), types=self.types, constants=constants)

    def _node(self, node: Node) -> None:
        low = node.name in self.names
        arity = OPERATORS[node.op].arity
        own = {"eltwise": 0, "attention": OWN}.get(node.op, len(node.inputs) if arity is None else arity)
        wanted = self.dtype if low else None
        inputs = tuple(
            self._as(v, wanted or self.graph.types[v].dtype) if v and (i < own or not low) else v
            for i, v in enumerate(node.inputs)
        )
        outputs = tuple(self._output(node, v) for v in node.outputs) if low else node.outputs
        self.nodes.append(replace(node, inputs=inputs, outputs=outputs))
        for value, inner in zip(node.outputs, outputs, strict=True):
            if inner != value:
                self.nodes.append(_cast(f"{value}:cast", inner, value, node.origin))

    def _output(self, node: Node, value: str) -> str:
        """What a lowered node writes: a model's output keeps its type, by a cast if the op cannot make one itself."""
        if value not in self.graph.outputs:
            self.types[value] = replace(self.types[value], dtype=self.dtype)
            return value
        if node.op in _MIXED:
            return value
        inner = self.casts[value, self.dtype] = f"{value}.{self.dtype}"  # what lowered readers want
        self.types[inner] = replace(self.types[value], dtype=self.dtype)
        return inner

    def _as(self, value: str, dtype: str) -> str:
        """``value`` in ``dtype``: itself, a rounded constant, or a cast, made once."""
        if self.types[value].dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            other = f"{value}.{dtype}"
            self.casts[value, dtype] = other
            self.types[other] = replace(self.types[value], dtype=dtype)
            if value in self.constants:
                with np.errstate(over="ignore"):  # what overflows shows in the error
                    self.constants[other] = self.constants[value].astype(numpy_dtype(dtype))
            else:
                self.nodes.append(_cast(f"{value}:{dtype}", value, other, ()))
        return self.casts[value, dtype]


def _cast(name: str, source: str, target: str, origin: tuple[str, ...]) -> Node:
    return Node(name, "eltwise", (source,), (target,), (), Input(0), origin)
