"""Opaque regions: as few as possible, and never a cycle."""

from __future__ import annotations

from pathlib import Path

import onnx
from graph_build import make, node, normal, ops, optimized
from hypothesis import given, settings
from hypothesis import strategies as st

from wpk.graph.graph import Graph
from wpk.passes.pipeline import Regions


def region_ops(graph: Graph) -> list[str]:
    """What the regions are made of."""
    return [str(n.attr("onnx_op")) for n in graph.nodes if n.op == "region"]


def test_independent_and_chained_nodes_are_one_region(tmp_path: Path) -> None:
    nodes = [
        node("Sin", ["x"], ["a"]),
        node("Cos", ["a"], ["b"]),
        node("Tan", ["x"], ["c"]),
        node("Asinh", ["c"], ["d"]),
    ]
    graph = optimized(make(nodes, {"x": [2, 3]}, ["b", "d"]), tmp_path)
    assert region_ops(graph) == ["Sin+Cos+Tan+Asinh"]


def test_a_path_through_native_nodes_parts_regions(tmp_path: Path) -> None:
    nodes = [
        node("Sin", ["x"], ["a"]), node("MatMul", ["a", "w"], ["m"]), node("Cos", ["m"], ["b"]), node("Atan", ["a"], ["c"]),
        node("Add", ["b", "c"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [2, 3]}, ["y"], {"w": normal(3, 3)}), tmp_path)
    assert sorted(region_ops(graph)) == ["Cos", "Sin+Atan"]


def test_light_nodes_between_opaque_ones_go_with_them(tmp_path: Path) -> None:
    nodes = [node("Sin", ["x"], ["a"]), node("Relu", ["a"], ["r"]), node("Cos", ["r"], ["y"])]
    model = make(nodes, {"x": [2, 3]}, ["y"])
    assert ops(optimized(model, tmp_path)) == ["region"]
    assert ops(optimized(model, tmp_path, (Regions(absorb=False),))) == ["region", "eltwise", "region"]


def test_weights_go_into_the_region(tmp_path: Path) -> None:
    model = make(
        [node("ConvTranspose", ["x", "w"], ["y"])], {"x": [1, 2, 3, 3]}, ["y"], {"w": normal(2, 4, 2, 2)}
    )
    graph = optimized(model, tmp_path)
    assert not graph.constants and graph.nodes[0].inputs == ("x",)


@st.composite
def dags(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs of opaque (Sin), anchor (MatMul) and light (Relu, Add) nodes."""
    values, nodes = ["x"], []
    for i in range(draw(st.integers(2, 12))):
        op = draw(st.sampled_from(["Sin", "Sin", "MatMul", "Relu", "Add"]))
        first, second = (draw(st.sampled_from(values)) for _ in range(2))
        inputs = {"MatMul": [first, "w"], "Add": [first, second]}.get(op, [first])
        nodes.append(node(op, inputs, [f"v{i}"]))
        values.append(f"v{i}")
    outputs = [v for v in values[1:] if not any(v in n.input for n in nodes)]
    return make(nodes, {"x": [3, 3]}, outputs, {"w": normal(3, 3) * 0.5})


@given(dags())
@settings(max_examples=40, deadline=None)
def test_random_graphs_have_no_cycles_and_compute_the_same(
    tmp_path_factory: object, model: onnx.ModelProto
) -> None:
    folder = tmp_path_factory.mktemp("dag")  # type: ignore[attr-defined]
    graph = optimized(model, folder, tolerance=1e-4)
    assert all(n.op != "onnx" for n in graph.nodes)
