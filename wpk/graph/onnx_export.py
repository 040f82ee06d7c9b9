"""ONNX out: nodes of a Graph, native or opaque, become a ModelProto: regions, whole-model baselines and oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from wpk.core.errors import ModelError
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_infer import captured, proto_type
from wpk.ops import spell
from wpk.ops.base import Speller

#: the operator set of exported native nodes, unless opaque ones dictate another
OPSET = 19  # the first with dilated average pooling
#: protobuf's limit is 2 GiB for one message; the nodes need some of it
LIMIT = (2 << 30) - (16 << 20)


def export_model(graph: Graph) -> bytes:
    """The whole graph as a serialized ModelProto with its inputs and outputs. Raises ModelError beyond 2 GiB of weights."""
    return export_region(graph, graph.nodes, graph.inputs, graph.outputs)


def export_region(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> bytes:
    """Some ``nodes`` of ``graph``, in topological order, as a serialized ModelProto.

    By default the inputs are what the nodes read and do not make, the outputs what is read elsewhere or is an output of the
    graph; constants become initializers. Raises ModelError when the weights exceed what one ONNX model may hold.
    """
    names = boundary(graph, nodes)
    ins, outs = (
        tuple(inputs if inputs is not None else names[0]),
        tuple(outputs if outputs is not None else names[1]),
    )
    writer = _Writer(graph, _opset(nodes), ins)
    for node in nodes:
        writer.add(node)
    return writer.model(ins, outs)


def boundary(graph: Graph, nodes: Sequence[Node]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values that nodes read but do not make (constants excepted), and those they make that are read elsewhere."""
    inside = {n.name for n in nodes}
    made = [v for n in nodes for v in n.outputs]
    read = dict.fromkeys(v for n in nodes for v in n.inputs if v not in made and v not in graph.constants)
    needed = set(graph.outputs) | {v for n in graph.nodes if n.name not in inside for v in n.inputs}
    return tuple(read), tuple(v for v in made if v in needed)


def _opset(nodes: Sequence[Node]) -> dict[str, int]:
    """The operator sets to import: those of the opaque nodes, which are of one model."""
    found: dict[str, int] = {}
    for node in nodes:
        if node.op == "onnx":
            found |= {d: int(v) for d, _, v in (str(i).partition(":") for i in node.attr("imports"))}  # type: ignore[union-attr]
            found[""] = int(node.attr("opset"))  # type: ignore[arg-type]
        elif node.op == "region":
            model = onnx.ModelProto.FromString(node.payload)
            found |= {o.domain: o.version for o in model.opset_import}
    return found if "" in found else {**found, "": OPSET}


@dataclass
class _Writer:
    graph: Graph
    opsets: dict[str, int]
    given: tuple[str, ...]
    protos: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    defined: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.defined |= set(self.given)
        self.count = 0

    def add(self, node: Node) -> None:
        """Append one node."""
        for value in node.inputs:
            if value in self.graph.constants and value not in self.given:
                self.constants[value] = self.graph.constants[value]
                self.defined.add(value)
        if node.op == "onnx":
            self._opaque(node)
        elif node.op == "region":
            self._region(node)
        else:
            self._native(node)
        self.defined |= set(node.outputs)

    def _native(self, node: Node) -> None:
        speller = Speller(self.opsets[""], lambda hint: self._fresh(f"{node.outputs[0]}/{hint}"))
        spell(speller, self.graph.workload(node), node.inputs, node.outputs)
        self.constants |= speller.constants
        for made in speller.nodes:
            attrs: dict[str, Any] = dict(made.attrs)
            self.protos.append(helper.make_node(made.op_type, made.inputs, made.outputs, **attrs))

    def _opaque(self, node: Node) -> None:
        """The node as it was, reading and making the values by their present names."""
        proto = NodeProto.FromString(node.payload)
        rename = iter(node.inputs)
        for i, value in enumerate(proto.input):
            if value:
                proto.input[i] = next(rename)
        for old, new in zip(captured(proto), rename, strict=True):
            self._alias(new, old)
        made = iter(node.outputs)
        for i, value in enumerate(proto.output):
            if value:
                proto.output[i] = next(made)
        self.protos.append(proto)

    def _region(self, node: Node) -> None:
        """The region's nodes; its inner names are unique in the graph it was made from."""
        inner = onnx.ModelProto.FromString(node.payload).graph
        for value, new in zip(inner.input, node.inputs, strict=True):
            self._alias(new, value.name)
        self.tensors.extend(t for t in inner.initializer if t.name not in self.defined)
        self.defined |= {t.name for t in inner.initializer}
        self.protos.extend(inner.node)
        self.defined |= {v for n in inner.node for v in n.output}
        for value, new in zip(inner.output, node.outputs, strict=True):
            self._alias(value.name, new)

    def _alias(self, source: str, name: str) -> None:
        if source != name and name not in self.defined:
            self.protos.append(helper.make_node("Identity", [source], [name]))
            self.defined.add(name)

    def _fresh(self, hint: str) -> str:
        self.count += 1
        while f"{hint}.{self.count}" in self.graph.types:
            self.count += 1
        return f"{hint}.{self.count}"

    def model(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """The serialized model."""
        nbytes = sum(a.nbytes for a in self.constants.values()) + sum(t.ByteSize() for t in self.tensors)
        if nbytes > LIMIT:
            gigabytes = nbytes / (1 << 30)
            raise ModelError(
                f"{self.graph.name}: {gigabytes:.1f} GiB of weights, expected at most 2 GiB in one ONNX model"
            )
        tensors = [numpy_helper.from_array(a, v) for v, a in self.constants.items()]
        graph = helper.make_graph(
            self.protos, self.graph.name or "graph", _infos(inputs, self.graph.types), _infos(outputs, self.graph.types),
            [*tensors, *self.tensors],
        )  # fmt: skip
        imports = [helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        version = max(8, min(helper.find_min_ir_version_for(imports, ignore_unknown=True), 10))
        model = helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="wpk")
        return bytes(model.SerializeToString(deterministic=True))


def _infos(names: Sequence[str], types: Mapping[str, TensorType]) -> list[onnx.ValueInfoProto]:
    return [helper.make_value_info(v, _proto(types[v])) for v in names]


def _proto(t: TensorType) -> onnx.TypeProto:
    if prod(t.shape) < 0:
        raise ModelError(f"a value of unknown shape {t} crosses the border of a region")
    return proto_type(t.dtype, t.shape)
