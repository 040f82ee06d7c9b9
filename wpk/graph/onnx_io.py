"""ONNX in: a file becomes a verified Graph of native and opaque nodes, with static shapes and constants folded.

    read (onnx_read) → shapes of the inputs → each node in order: fold it, or infer its types and lift it (wpk.ops) or keep it

``export_region`` and ``export_model`` (onnx_export) are the way back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import NodeProto, TypeProto, helper

from wpk.core.errors import ModelError, UsageError
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_export import export_model, export_region
from wpk.graph.onnx_infer import Context, captured, evaluate, infer, proto_type, tensor_type
from wpk.graph.onnx_inline import taken_branch
from wpk.graph.onnx_read import read_model
from wpk.ops import lift
from wpk.ops.base import Builder, Foreign

__all__ = ["export_model", "export_region", "load_model"]


def load_model(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None, batch: int | None = None
) -> Graph:
    """The graph of the ONNX model at ``path``.

    ``shapes`` gives inputs their shape; ``batch`` sets the first dimension of all inputs, and of the reshapes that repeat it.
    Raises ModelError for a bad file, a node that does not fit its inputs, or a dimension that nothing determines, and
    UsageError for a shape of an input that is not there.
    """
    path = Path(path)
    model = read_model(path)
    importer = _Importer(path, model)
    importer.feed(dict(shapes or {}), batch)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
        importer.add(ir.serde.serialize_node(node))
    return importer.finish()


@dataclass
class _Importer:
    path: Path
    model: ir.Model
    nodes: list[Node] = field(default_factory=list)
    protos: dict[str, TypeProto] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    batches: tuple[int, int] | None = None  # the batch in the file, the batch wanted

    def __post_init__(self) -> None:
        graph = self.model.graph
        version = self.model.opset_imports.get("", self.model.opset_imports.get("ai.onnx", 1))
        opsets = {**{d: v for d, v in self.model.opset_imports.items() if d != "ai.onnx"}, "": version}
        self.context = Context(opsets, max(self.model.ir_version, 4))
        self.outputs = tuple(str(v.name) for v in graph.outputs)
        self.used = set(self.outputs) | {v for node in graph for v in _reads(node)}
        made = {str(v.name) for node in graph for v in node.outputs}
        self.taken = made | self.used | {str(v.name) for v in graph.inputs} | set(graph.initializers)
        self.names: set[str] = set()
        for name, value in graph.initializers.items():
            if value.const_value is not None and name in self.used:
                self._constant(name, value.const_value.numpy())

    def feed(self, shapes: dict[str, tuple[int, ...]], batch: int | None) -> None:
        """The inputs and their shapes."""
        real = [v for v in self.model.graph.inputs if v.name not in self.model.graph.initializers]
        for name in set(shapes) - {str(v.name) for v in real}:
            raise UsageError(
                f"{self.path}: no input {name!r} to give a shape, found {', '.join(str(v.name) for v in real)}"
            )
        for value in real:
            self._input(value, shapes.get(str(value.name)), batch)

    def _input(self, value: ir.Value, given: tuple[int, ...] | None, batch: int | None) -> None:
        name = str(value.name)
        declared = (
            None if value.shape is None else tuple(d if isinstance(d, int) else -1 for d in value.shape)
        )
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{self.path}: input {name!r}: expected a tensor, found {value.type}")
        if value.dtype == ir.DataType.STRING:
            raise ModelError(f"{self.path}: input {name!r}: expected numbers, found strings")
        if given is not None and declared is not None and len(given) != len(declared):
            raise ModelError(
                f"{self.path}: input {name!r} has {len(declared)} dimensions, the shape given has {len(given)}"
            )
        shape = given if given is not None else declared
        if shape and batch is not None and given is None:
            self.batches = (shape[0], batch) if self.batches is None and shape[0] != batch else self.batches
            shape = (batch, *shape[1:])
        if shape is None or -1 in shape:
            raise ModelError(
                f"{self.path}: input {name!r} has unknown dimensions {_dims(value)}: give its shape, as in {name}=1x…"
            )
        self.inputs.append(name)
        self._type(name, proto_type(value.dtype.numpy(), shape))

    def add(self, proto: NodeProto) -> None:
        """One node: folded, lifted or opaque; an If whose condition is known is its branch."""
        free = captured(proto)
        where = f"{self.path}: node {proto.name!r} ({proto.op_type})"
        for value in (*proto.input, *free):
            if value and value not in self.types:
                raise ModelError(f"{where}: input {value!r} is made by no earlier node")
        if proto.op_type == "If" and proto.input[0] in self.constants:
            self._splice(proto)
        else:
            self._add(proto, free, where)

    def _splice(self, proto: NodeProto) -> None:
        """The branch that the condition takes."""
        condition = bool(self.constants[proto.input[0]].reshape(-1)[0])
        nodes, constants = taken_branch(proto, condition, lambda hint: self._reserve(hint, []))
        for name, array in constants.items():
            self._constant(name, array)
        self.used |= {v for n in nodes for v in (*n.input, *captured(n)) if v}
        for node in nodes:
            self.add(node)

    def _add(self, proto: NodeProto, free: tuple[str, ...], where: str) -> None:
        if self.batches and proto.op_type == "Reshape":
            self._rebatch(proto)
        refusal = self._infer(proto)
        if proto.op_type == "Reshape" and refusal is None:
            self._check_reshape(where, proto)
        values = evaluate(proto, self.protos, self.constants, self.context)
        if values is not None:
            for value, array in values.items():
                self._constant(value, array)
        elif refusal is not None:
            raise ModelError(f"{where}: {refusal}")
        elif not self._lift(proto):
            self._opaque(proto, free)

    def _infer(self, proto: NodeProto) -> str | None:
        """Type the outputs; or the reason why inference refuses, which is stricter than computing."""
        try:
            outs = infer(proto, self.protos, self.constants, self.context)
        except ValueError as error:
            return str(error)
        for value in filter(None, proto.output):
            self._type(value, outs.get(value))
        return None

    def _rebatch(self, proto: NodeProto) -> None:
        """A reshape to the old batch reshapes to the new one, if it reshapes a whole batch."""
        assert self.batches is not None
        old, new = self.batches
        data, target = tensor_type(self.protos[proto.input[0]]).shape, self.constants.get(proto.input[1])
        if target is None or proto.input[0] in self.constants or not data or data[0] != new:
            return
        if (
            not target.size
            or target[0] != old
            or (-1 not in target and 0 not in target and prod(target) == prod(data))
        ):
            return
        name = self._fresh(f"{proto.input[1]}.batch")
        self._constant(name, np.concatenate([[new], target[1:]]).astype(np.int64))
        proto.input[1] = name

    def _check_reshape(self, where: str, proto: NodeProto) -> None:
        """What onnx's inference leaves to the runtime: the elements must fit."""
        before, after = self.types[proto.input[0]].shape, self.types[proto.output[0]].shape
        if -1 not in (*before, *after) and prod(before) != prod(after):
            raise ModelError(
                f"{where}: {prod(before)} elements do not fit the shape {'x'.join(map(str, after))}"
            )

    def _lift(self, proto: NodeProto) -> bool:
        if proto.domain not in ("", "ai.onnx"):
            return False
        foreign = Foreign(
            proto.op_type, self.context.opsets[""], _attributes(proto), tuple(proto.input),
            tuple(v for v in proto.output if v), frozenset(self.used), self.types, self.constants,
        )  # fmt: skip
        names: list[str] = []
        builder = Builder(lambda hint: self._reserve(hint, names))
        if lift(foreign, builder) is not None:
            self.taken -= set(names)
            return False
        for name, array in builder.constants.items():
            self._constant(name, array)
        self.types.update(builder.types)
        for i, piece in enumerate(builder.pieces):
            name = proto.name if i == len(builder.pieces) - 1 else f"{proto.name}.{piece.op}"
            self.nodes.append(
                Node(
                    self._name(name),
                    piece.op,
                    piece.inputs,
                    piece.outputs,
                    piece.attrs,
                    piece.epilogue,
                    (proto.name,),
                )
            )
        return True

    def _opaque(self, proto: NodeProto, free: tuple[str, ...]) -> None:
        payload = proto.SerializeToString(deterministic=True)
        imports = tuple(f"{d}:{v}" for d, v in sorted(self.context.opsets.items()) if d)
        attrs = (
            ("digest", hashlib.sha256(payload).hexdigest()[:16]), ("domain", proto.domain), ("imports", imports),
            ("onnx_op", proto.op_type), ("opset", self.context.opsets[""]),
        )  # fmt: skip
        inputs = (*(v for v in proto.input if v), *free)
        outputs = tuple(v for v in proto.output if v)
        self.nodes.append(
            Node(self._name(proto.name), "onnx", inputs, outputs, attrs, None, (proto.name,), payload)
        )

    def finish(self) -> Graph:
        """The graph; constants that are outputs get a node that makes them."""
        for name in self.outputs:
            if name in self.inputs or name not in self.types:
                found = "an input" if name in self.inputs else "made by no node"
                raise ModelError(
                    f"{self.path}: output {name!r}: expected the result of a node, found it is {found}"
                )
            if name in self.constants:
                source = self._fresh(f"{name}.value")
                self._constant(source, self.constants.pop(name))
                self.nodes.append(Node(self._name(name), "view", (source,), (name,)))
            if -1 in self.types[name].shape:
                raise ModelError(
                    f"{self.path}: output {name!r}: its shape depends on the data, expected a static one"
                )
        read = {v for n in self.nodes for v in n.inputs}
        constants = {v: a for v, a in self.constants.items() if v in read}
        kept = {*self.inputs, *constants, *(v for n in self.nodes for v in n.outputs)}
        types = {v: t for v, t in self.types.items() if v in kept}
        return Graph(
            str(self.model.graph.name or self.path.stem),
            tuple(self.inputs),
            self.outputs,
            tuple(self.nodes),
            types,
            constants,
        )

    def _constant(self, name: str, array: np.ndarray) -> None:
        self.constants[name] = array
        self._type(name, proto_type(array.dtype, array.shape))
        self.taken.add(name)

    def _type(self, name: str, proto: TypeProto | None) -> None:
        self.protos[name] = proto if proto is not None else TypeProto()
        self.types[name] = tensor_type(proto)

    def _fresh(self, hint: str) -> str:
        name, count = hint, 1
        while name in self.taken:
            name, count = f"{hint}.{count}", count + 1
        return name

    def _reserve(self, hint: str, names: list[str]) -> str:
        name = self._fresh(hint)
        self.taken.add(name)
        names.append(name)
        return name

    def _name(self, hint: str) -> str:
        name, count = hint, 1
        while name in self.names:
            name, count = f"{hint}.{count}", count + 1
        self.names.add(name)
        return name


def _reads(node: ir.Node) -> Iterator[str]:
    yield from (str(v.name) for v in node.inputs if v is not None)
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        yield from captured(ir.serde.serialize_node(node))


def _attributes(proto: NodeProto) -> dict[str, object]:
    """Attributes as Python values; text decoded, lists as tuples."""

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return tuple(map(plain, value)) if isinstance(value, list) else value

    return {a.name: plain(helper.get_attribute_value(a)) for a in proto.attribute}


def _dims(value: ir.Value) -> str:
    return "of unknown rank" if value.shape is None else "x".join(str(d) for d in value.shape)
