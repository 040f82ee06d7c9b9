"""The verifier finds each broken rule; the printer gives one line a node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wpk.core.errors import InternalError
from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType
from wpk.graph.graph import Graph, Node
from wpk.graph.printer import format_graph
from wpk.graph.verify import verify

CONV = (("dilations", (1, 1)), ("group", 1), ("pads", (1, 1, 1, 1)), ("strides", (1, 1)))


def tiny() -> Graph:
    """conv with bias and relu → view."""
    shapes = {"x": (1, 3, 8, 8), "w": (4, 3, 3, 3), "b": (1, 4, 1, 1), "c": (1, 4, 8, 8), "y": (1, 256)}
    constants = {k: np.zeros(shapes[k], np.float32) for k in "wb"}
    nodes = (
        Node(
            "conv", "conv", ("x", "w", "b"), ("c",), CONV, parse("relu(add(acc,in2))"), ("Conv_0", "Relu_1")
        ),
        Node("flat", "view", ("c",), ("y",)),
    )
    return Graph(
        "tiny", ("x",), ("y",), nodes, {k: TensorType("float32", s) for k, s in shapes.items()}, constants
    )


def test_printer() -> None:
    assert format_graph(tiny()) == (
        "graph tiny(%x: float32[1x3x8x8]) -> (%y)\n"
        "  %c: float32[1x4x8x8] = conv(%x, !w, !b) {dilations=1x1, group=1, pads=1x1x1x1, strides=1x1}"
        " | relu(add(acc,in2))   # Conv_0, Relu_1\n"
        "  %y: float32[1x256] = view(%c)\n"
    )


def test_a_good_graph() -> None:
    verify(tiny())


def conv(**changes: object) -> Graph:
    """The graph with a changed first node."""
    graph = tiny()
    return replace(graph, nodes=(replace(graph.nodes[0], **changes), graph.nodes[1]))  # type: ignore[arg-type]


def retyped(value: str, dtype: str, *shape: int) -> Graph:
    """The graph with another type for a value."""
    graph = tiny()
    return replace(graph, types={**graph.types, value: TensorType(dtype, shape)})


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (conv(op="conf"), "unknown operator 'conf'"),
        (conv(inputs=("z", "w", "b")), r"reads \['z'\] before it is made"),
        (conv(outputs=("x",)), r"makes \['x'\] again"),
        (conv(attrs=CONV[:3]), "has attributes"),
        (conv(attrs=CONV[::-1]), "has attributes"),
        (conv(attrs=(*CONV[:3], ("strides", (2, 2)))), r"makes \(\(1, 4, 8, 8\),\), expected \(\(1, 4, 4, 4\),\)"),
        (conv(epilogue=None), "has inputs that nothing reads"),
        (conv(epilogue=parse("add(acc,in3)")), r"reads inputs \(3,\), expected \(2,\)"),
        (conv(epilogue=parse("relu(in2)")), "the anchor's result"),
        (conv(inputs=("x",)), "has 1 inputs, expected 2"),
        (conv(name="flat"), "two nodes are named 'flat'"),
        (retyped("x", "float32", 1, 2, 8, 8), "2 channels in 1 groups do not fit"),
        (retyped("b", "float64", 1, 4, 1, 1), "constant 'b' is"),
        (replace(tiny(), nodes=tiny().nodes[::-1]), "before it is made"),
        (replace(tiny(), outputs=("y", "x")), r"outputs \['x'\] are made by no node"),
    ],
)  # fmt: skip
def test_broken_rules(graph: Graph, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify(graph)


def test_an_operand_must_broadcast() -> None:
    graph = retyped("b", "float32", 1, 5, 1, 1)
    graph = replace(graph, constants={**graph.constants, "b": np.zeros((1, 5, 1, 1), np.float32)})
    with pytest.raises(InternalError, match="does not broadcast"):
        verify(graph)
