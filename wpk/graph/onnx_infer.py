"""One ONNX node at a time: the types of its outputs, or their values when all inputs are known.

Types come from onnx's inference with known shapes and small constants; where that knows nothing (contrib operators,
control flow), from ONNX Runtime's. Values come from NumPy for what only moves data, else from ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TypeProto, helper, numpy_helper, shape_inference

from wpk.core.tensor import TensorType

#: constants up to this many elements take part in shape inference
SMALL = 1024
#: results beyond this many bytes are not folded
FOLD_LIMIT = 1 << 30
NONDETERMINISTIC = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


@dataclass(frozen=True)
class Context:
    """What a node's model says beside the node: the operator sets and the IR version."""

    opsets: Mapping[str, int]
    ir_version: int

    @property
    def imports(self) -> list[onnx.OperatorSetIdProto]:
        """As protobuf."""
        return [helper.make_opsetid(d, v) for d, v in self.opsets.items()]

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], constants: Mapping[str, np.ndarray], *nodes: NodeProto
    ) -> bytes:  # fmt: skip
        """A serialized model of a node, or of a few; its outputs are those of the last."""
        outputs = [onnx.ValueInfoProto(name=v) for v in nodes[-1].output if v]
        initializers = [numpy_helper.from_array(a, v) for v, a in constants.items()]
        graph = helper.make_graph(nodes, "node", list(inputs), outputs, initializers)
        model = helper.make_model(graph, opset_imports=self.imports, ir_version=self.ir_version)
        return bytes(model.SerializeToString())


def tensor_type(proto: TypeProto | None) -> TensorType:
    """A tensor type; unknown dimensions are −1; what is no tensor, or of unknown rank, is ``other[-1]`` or ``dtype[-1]``."""
    if proto is None or not proto.HasField("tensor_type"):
        return TensorType("other", (-1,))
    tensor = proto.tensor_type
    try:
        dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name)
    except KeyError:
        dtype = "other"
    if not tensor.HasField("shape"):
        return TensorType(dtype, (-1,))
    return TensorType(dtype, tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim))


def proto_type(dtype: np.dtype[Any] | str, shape: Sequence[int]) -> TypeProto:
    """The protobuf of a tensor type with known shape."""
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


def is_static(proto: TypeProto | None) -> bool:
    """True for a tensor whose every dimension is known."""
    return tensor_type(proto).dtype != "other" and min(tensor_type(proto).shape, default=0) >= 0


def infer(
    node: NodeProto, types: Mapping[str, TypeProto], constants: Mapping[str, np.ndarray], context: Context
) -> dict[str, TypeProto]:
    """The types of the outputs, as far as they can be known.

    Raises ValueError with the reason when the node's inputs do not fit it, or when nobody knows the operator.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    found, error = _infer_onnx(node, domain, types, constants, context)
    if error is None and all(is_static(found.get(v)) for v in node.output if v):
        return found
    more, refusal = _infer_runtime(node, types, constants, context)
    # onnx's inference is stricter than what runs, so its word counts only when the other refuses too
    if refusal is not None and (error is not None or (domain and not found)):
        raise ValueError(error or refusal)
    return {**found, **more}


Inferred = tuple[dict[str, TypeProto], str | None]


def _infer_onnx(
    node: NodeProto, domain: str, types: Mapping[str, TypeProto], constants: Mapping[str, np.ndarray], context: Context
) -> Inferred:  # fmt: skip
    """The types that onnx's inference finds, or the reason why it refuses the node."""
    version = context.opsets.get(domain, 1)
    if not onnx.defs.has(node.op_type, max_inclusive_version=version, domain=domain):
        return {}, None
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    data = {v: numpy_helper.from_array(constants[v], v) for v in node.input if _is_small(constants.get(v))}
    mine = {v: types[v] for v in (*node.input, *captured(node)) if v}
    try:
        found = shape_inference.infer_node_outputs(
            schema, node, mine, data, None, context.imports, context.ir_version
        )
    except shape_inference.InferenceError as error:
        return {}, _first_line(error)
    return found, None


def _infer_runtime(
    node: NodeProto, types: Mapping[str, TypeProto], constants: Mapping[str, np.ndarray], context: Context
) -> Inferred:  # fmt: skip
    """The static types that ONNX Runtime finds, or the reason why it refuses the node."""
    names = list(dict.fromkeys(v for v in (*node.input, *captured(node)) if v))
    known = {v: constants[v] for v in names if _is_small(constants.get(v))}
    inputs = [helper.make_value_info(v, types[v]) for v in names if v not in known]
    try:
        session = _session(context.model(inputs, known, node))
    except Exception as error:  # onnxruntime raises its own classes, which share no base
        return {}, _first_line(error)
    found = {o.name: t for o in session.get_outputs() if (t := _runtime_type(o)) is not None}
    return {
        v: t for v, t in found.items() if tensor_type(t).shape or _is_scalar(node, v, inputs, known, context)
    }, None


def _is_scalar(
    node: NodeProto, value: str, inputs: list[onnx.ValueInfoProto], known: Mapping[str, np.ndarray], context: Context
) -> bool:  # fmt: skip
    """ONNX Runtime prints a scalar's shape and an unknown one alike; only a scalar's shape has no elements."""
    shape = helper.make_node("Shape", [value], [f"{value}/shape"])
    return bool(_session(context.model(inputs, known, node, shape)).get_outputs()[0].shape == [0])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _runtime_type(arg: Any) -> TypeProto | None:
    if not arg.type.startswith("tensor(") or any(not isinstance(d, int) for d in arg.shape):
        return None
    name = {"float": "float32", "double": "float64"}.get(arg.type[7:-1], arg.type[7:-1])
    try:
        return proto_type(name, arg.shape)
    except (TypeError, KeyError, ValueError):
        return None


def evaluate(
    node: NodeProto, types: Mapping[str, TypeProto], constants: Mapping[str, np.ndarray], context: Context
) -> dict[str, np.ndarray] | None:
    """The values of the outputs; None when they are not known at compile time."""
    ins = [v for v in (*node.input, *captured(node)) if v]
    if (
        node.op_type in ("Shape", "Size")
        and node.domain in ("", "ai.onnx")
        and is_static(types[node.input[0]])
    ):
        return {node.output[0]: _shape_of(node, tensor_type(types[node.input[0]]).shape)}
    if not all(v in constants for v in ins) or node.op_type in NONDETERMINISTIC:
        return None
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attrs.get("training_mode") or (node.op_type == "Dropout" and len(node.input) > 2):
        return None
    return _by_numpy(node, attrs, constants) or _by_runtime(node, types, constants, context)


def _by_numpy(
    node: NodeProto, attrs: Mapping[str, Any], constants: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Constants and fills: what has no operand to compute with."""
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        value = _constant(attrs)
        return None if value is None else {node.output[0]: value}
    if node.op_type == "ConstantOfShape":
        fill = numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
        shape = tuple(int(d) for d in constants[node.input[0]])
        return (
            {node.output[0]: np.full(shape, fill.reshape(-1)[0], fill.dtype)}
            if prod(shape) * fill.itemsize <= FOLD_LIMIT
            else None
        )
    return None


def _constant(attrs: Mapping[str, Any]) -> np.ndarray | None:
    if "value" in attrs:
        return numpy_helper.to_array(attrs["value"])
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    found = next(((np.asarray(attrs[k], t)) for k, t in kinds.items() if k in attrs), None)
    return found


def _by_runtime(
    node: NodeProto, types: Mapping[str, TypeProto], constants: Mapping[str, np.ndarray], context: Context
) -> dict[str, np.ndarray] | None:
    names = list(dict.fromkeys(v for v in (*node.input, *captured(node)) if v))
    if sum(constants[v].nbytes for v in names) > FOLD_LIMIT:
        return None
    first = constants[names[0]] if names else None
    if node.op_type in _RESHAPES and first is not None and is_static(types.get(node.output[0])):
        return {node.output[0]: first.reshape(tensor_type(types[node.output[0]]).shape)}
    inputs = [helper.make_value_info(v, types[v]) for v in names]
    outputs = [v for v in node.output if v]
    if sum(
        tensor_type(types[v]).shape != () and _nbytes(types[v]) > FOLD_LIMIT for v in outputs if v in types
    ):
        return None
    try:
        values = _session(context.model(inputs, {}, node)).run(outputs, {v: constants[v] for v in names})
    except Exception:  # an operator or dtype that ONNX Runtime cannot run here stays a node
        return None
    return dict(zip(outputs, values, strict=True)) if all(isinstance(v, np.ndarray) for v in values) else None


def _nbytes(proto: TypeProto) -> int:
    t = tensor_type(proto)
    return 8 * prod(t.shape) if min(t.shape, default=0) >= 0 else 0


def _shape_of(node: NodeProto, shape: Sequence[int]) -> np.ndarray:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Size":
        return np.array(prod(shape), np.int64)
    return np.array(shape[slice(attrs.get("start", 0), attrs.get("end"))], np.int64)


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _is_small(array: np.ndarray | None) -> bool:
    return array is not None and array.size <= SMALL


def captured(node: NodeProto) -> tuple[str, ...]:
    """Values of the outer graph that the node's subgraphs read, in order of first use, each once."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            found.update(dict.fromkeys(_free(graph)))
    return tuple(found)


def _free(graph: onnx.GraphProto) -> list[str]:
    bound = {v.name for v in graph.input} | {i.name for i in graph.initializer}
    free: list[str] = []
    for node in graph.node:
        free += [v for v in (*node.input, *captured(node)) if v and v not in bound]
        bound |= set(node.output)
    return free + [v.name for v in graph.output if v.name and v.name not in bound]
