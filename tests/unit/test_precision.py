"""Lower precision: what a lowered graph stores where, how far it is from the float32 model, which nodes go back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_build import make, node, normal, optimized

from wpk.api import cross
from wpk.core.errors import UsageError
from wpk.graph.graph import Graph
from wpk.measure.check import relative_error
from wpk.measure.emulated import emulated_runner
from wpk.passes.precision import lowered
from wpk.planner.precision import MAX_ERROR, choose_precision, evaluate, node_errors, tf32
from wpk.runtime import artifact
from wpk.stages import Options


def two_layers() -> onnx.ModelProto:
    """Two products with a residual between an opaque node and the output."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["q"]), node("Relu", ["q"], ["r"]),
        node("MatMul", ["r", "v"], ["s"]), node("Add", ["s", "x"], ["t"]), node("Softmax", ["t"], ["y"], axis=-1),
    ]  # fmt: skip
    return make(nodes, {"x": (6, 32)}, ["y", "t"], {"w": normal(32, 48) / 6, "b": normal(48), "v": normal(48, 32) / 7})


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return optimized(two_layers(), tmp_path_factory.mktemp("model"))


FEEDS = {"x": normal(6, 32, seed=4)}


def distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("mode", "dtype", "least", "most"), [
    ("fp16", "float16", 1e-5, 2e-3), ("bf16", "bfloat16", 1e-3, 2e-2), ("tf32", "float32", 1e-5, 2e-3),
])  # fmt: skip
def test_a_lowered_graph_computes_nearly_the_same(graph: Graph, mode: str, dtype: str, least: float, most: float) -> None:
    made, expected = lowered(graph, mode), evaluate(graph, FEEDS)
    error = distance(evaluate(made, FEEDS), expected)
    assert least < error < most
    products = [n for n in made.nodes if n.op in ("gemm", "matmul")]
    assert len(products) == 2
    for n in products:
        assert [made.types[v].dtype for v in n.inputs[:2]] == [dtype, dtype]
        assert ("precision", "tf32") in n.attrs or mode != "tf32"
    for value in (*made.inputs, *made.outputs):
        assert made.types[value].dtype == "float32"


def test_epilogues_read_operands_as_they_are(graph: Graph) -> None:
    """The bias stays in float32, and so does the model's input where the residual reads it."""
    made = lowered(graph, "fp16")
    extra = [made.types[v].dtype for n in made.nodes if n.op in ("gemm", "matmul") for v in n.inputs[2:]]
    assert extra == ["float32", "float32"]
    casts = [n for n in made.nodes if n.op == "eltwise" and str(n.epilogue) == "in0"]
    assert [n.inputs for n in casts].count(("x",)) == 1  # one cast of the input, for the first product


def test_float32_is_the_graph_itself(graph: Graph) -> None:
    assert lowered(graph, "fp32") is graph
    assert lowered(graph, "fp16", keep={n.name for n in graph.nodes}) is graph


def test_a_value_that_both_kinds_read_is_cast_once(graph: Graph) -> None:
    last = next(n for n in graph.nodes if "t" in n.outputs)
    made = lowered(graph, "fp16", keep={last.name})
    casts = [n for n in made.nodes if n.op == "eltwise" and str(n.epilogue) == "in0"]
    assert len({(n.inputs, made.types[n.outputs[0]].dtype) for n in casts}) == len(casts)
    assert distance(evaluate(made, FEEDS), evaluate(graph, FEEDS)) < 2e-3


def test_an_output_that_lowered_nodes_read_is_read_before_its_cast(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Softmax", ["p"], ["q"], axis=-1), node("MatMul", ["q", "v"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": (4, 16)}, ["y", "q"], {"w": normal(16, 16), "v": normal(16, 8)}), tmp_path)
    made = lowered(graph, "fp16")
    last = next(n for n in made.nodes if "y" in n.outputs)
    assert last.inputs[0] == "q.float16"
    assert [n.outputs for n in made.nodes if n.inputs == ("q.float16",)] == [("q",)]


def test_errors_of_single_nodes_are_those_of_a_few_roundings(graph: Graph) -> None:
    errors = node_errors(graph, graph.nodes, "fp16", FEEDS)
    assert set(errors) == {n.name for n in graph.nodes}
    assert all(1e-6 < e < 2e-3 for e in errors.values())


def test_all_nodes_are_lowered_where_the_limit_allows(graph: Graph) -> None:
    found = choose_precision(graph, "fp16", 5e-3, FEEDS, evaluate(graph, FEEDS), distance)
    assert not found.kept and 0 < found.error < 5e-3
    assert len(found.errors) == len(graph.nodes)


def test_a_node_that_overflows_stays_in_float32(tmp_path: Path) -> None:
    """Its result is beyond what float16 holds; what follows scales it back."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Softmax", ["p"], ["q"], axis=-1), node("MatMul", ["q", "v"], ["y"]),
    ]  # fmt: skip
    model = make(nodes, {"x": (4, 16)}, ["y"], {"w": normal(16, 16) * 5e4, "v": normal(16, 8)})
    graph = optimized(model, tmp_path)
    feeds = {"x": normal(4, 16)}
    found = choose_precision(graph, "fp16", 5e-3, feeds, evaluate(graph, feeds), distance)
    big = next(n.name for n in graph.nodes if "p" in n.outputs)
    assert big in found.kept and len(found.kept) < len(graph.nodes)
    assert found.error < 5e-3


def test_a_limit_that_nothing_meets_keeps_everything(graph: Graph) -> None:
    found = choose_precision(graph, "bf16", 1e-9, FEEDS, evaluate(graph, FEEDS), distance)
    assert len(found.kept) == len(graph.nodes) and found.error == 0.0 and not found.errors


@pytest.mark.parametrize("mode", ["tf32", "fp16", "bf16"])
def test_the_compiled_model_has_the_error_that_was_foretold(tmp_path: Path, mode: str) -> None:
    """Sums of the emulated tensor cores differ from the simulation's by roundings of float32 only."""
    path = tmp_path / "m.wpk"
    cross(two_layers(), Options(target="cuda:sm_90a", precision=mode), path)
    parts = artifact.read(path)
    foretold = (parts.plan.meta or {})["precision"]
    with emulated_runner(parts) as runner:
        found = runner.run(None, FEEDS)
    expected = evaluate(optimized(two_layers(), tmp_path), FEEDS)
    assert distance(found, expected) < MAX_ERROR[mode]
    assert foretold["mode"] == mode and 0 < foretold["error"] < MAX_ERROR[mode] and not foretold["kept"]


def test_tf32_keeps_ten_bits() -> None:
    x = np.array([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -(1 + 2**-11)], np.float32)
    np.testing.assert_array_equal(tf32(x), np.array([1, 1 + 2**-10, 1 + 2**-10, 1, -(1 + 2**-10)], np.float32))


def test_refusals() -> None:
    with pytest.raises(UsageError, match="expected one of fp32, tf32, fp16, bf16"):
        Options(precision="fp8", target="cuda")
    with pytest.raises(UsageError, match="kernels for CPUs compute in fp32 only"):
        Options(precision="fp16")
