"""The rules every graph keeps. A broken one is a bug of wpk, never of the user's model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from wpk.core.errors import InternalError
from wpk.core.pointwise import Acc, Apply, Point, inputs_of
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.ops import OPERATORS

#: operators whose result an epilogue may change
EPILOGUES = {"conv", "gemm", "matmul", "pool", "lrn", "softmax", "eltwise", "norm", "reduce"}

#: products whose operands may be rounded to tf32 say so in an attribute of their own
_TENSOR_CORES = {(op, "precision", "tf32") for op in ("conv", "gemm", "matmul", "attention")}


def verify(graph: Graph) -> None:
    """Raise InternalError, naming the graph's node, unless:

    each value is made once, before it is read, and has a type; constants match theirs; outputs are made by nodes; each node is of
    a known operator with exactly its attributes, sorted; its output types follow from its inputs; its epilogue reads only
    operands that are there and broadcast to the output, and reads the anchor's result (an eltwise has none).
    """
    defined = {*graph.inputs, *graph.constants}
    names: set[str] = set()
    for value, array in graph.constants.items():
        _require(value in graph.types, f"constant {value!r} has no type")
        found = TensorType(str(array.dtype), array.shape)
        _require(
            found == graph.types[value], f"constant {value!r} is {found}, its type says {graph.types[value]}"
        )
    for node in graph.nodes:
        _require(node.name not in names, f"{graph.name}: two nodes are named {node.name!r}")
        names.add(node.name)
        missing = [v for v in node.inputs if v not in defined]
        _require(not missing, f"node {node.name!r} reads {missing} before it is made")
        again = [v for v in node.outputs if v in defined]
        _require(not again, f"node {node.name!r} makes {again} again")
        defined |= set(node.outputs)
        _verify_node(graph, node)
    made = {v for n in graph.nodes for v in n.outputs}
    _require(
        made >= set(graph.outputs),
        f"{graph.name}: outputs {sorted(set(graph.outputs) - made)} are made by no node",
    )


def _verify_node(graph: Graph, node: Node) -> None:
    where = f"node {node.name!r}"
    _require(node.op in OPERATORS, f"{where} is of unknown operator {node.op!r}")
    operator = OPERATORS[node.op]
    untyped = [v for v in (*node.inputs, *node.outputs) if v not in graph.types]
    _require(not untyped, f"{where}: values {untyped} have no type")
    found = tuple(k for k, v in node.attrs if (node.op, k, v) not in _TENSOR_CORES)
    _require(
        found == operator.attrs, f"{where} ({node.op}) has attributes {found}, expected {operator.attrs}"
    )
    mine = node.inputs if operator.arity is None else node.inputs[: operator.arity]
    _require(
        operator.arity is None or len(mine) == operator.arity,
        f"{where} has {len(mine)} inputs, expected {operator.arity}",
    )
    _verify_types(graph, node, [graph.types[v] for v in (node.inputs if node.op == "eltwise" else mine)])
    _verify_epilogue(graph, node, len(mine))


def _verify_types(graph: Graph, node: Node, inputs: list[TensorType]) -> None:
    try:
        expected = OPERATORS[node.op].shapes(inputs, dict(node.attrs))
    except (ValueError, IndexError) as error:
        raise InternalError(f"node {node.name!r} ({node.op}): {error}") from error
    found = tuple(graph.types[v].shape for v in node.outputs)
    _require(
        expected is None or found == expected,
        f"node {node.name!r} ({node.op}) makes {found}, expected {expected}",
    )


def _verify_epilogue(graph: Graph, node: Node, own: int) -> None:
    where = f"node {node.name!r} ({node.op})"
    if node.epilogue is None:
        _require(node.op != "eltwise", f"{where} has no expression")
        _require(
            OPERATORS[node.op].arity in (None, len(node.inputs)), f"{where} has inputs that nothing reads"
        )
        return
    _require(node.op in EPILOGUES, f"{where} cannot have an epilogue")
    used, extra = inputs_of(node.epilogue), tuple(range(own, len(node.inputs)))
    _require(used == extra, f"{where}: the epilogue {node.epilogue} reads inputs {used}, expected {extra}")
    _require(
        _reads_acc(node.epilogue) == (node.op != "eltwise"),
        f"{where}: {node.epilogue} and the anchor's result",
    )
    shape = graph.types[node.outputs[0]].shape
    operands = (graph.types[node.inputs[i]].shape for i in extra)
    _require(_broadcasts(operands, shape), f"{where}: an operand does not broadcast to {shape}")


def _broadcasts(shapes: Iterable[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, *shapes) == shape
    except ValueError:
        return False


def _reads_acc(point: Point) -> bool:
    return isinstance(point, Acc) or (isinstance(point, Apply) and any(map(_reads_acc, point.args)))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InternalError(message)
