"""Passes one by one: what fuses, what does not and why, and that the model still computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_build import load, make, node, normal, ops, optimized

from wpk.core.errors import InternalError, UsageError
from wpk.graph.graph import Graph
from wpk.passes import default_pipeline, format_pipeline, parse_pipeline, run_pipeline
from wpk.passes.pipeline import Dead, Fuse, Regions, Siblings


def batch_norm(prefix: str, channels: int) -> dict[str, np.ndarray]:
    """Parameters of a BatchNormalization: scale, bias, mean, variance."""
    made = {f"{prefix}{k}": normal(channels, seed=ord(k)) for k in "sbm"}
    return made | {f"{prefix}v": np.abs(normal(channels, seed=7)) + np.float32(0.5)}


def conv_chain() -> onnx.ModelProto:
    """conv → BatchNormalization → Mul → Add → Relu, as old exporters spell it."""
    constants = {
        "w": normal(4, 3, 3, 3),
        **batch_norm("n", 4),
        "scale": normal(4),
        "shift": normal(4, seed=3),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "ns", "nb", "nm", "nv"], ["n"]),
        node("Unsqueeze", ["scale"], ["s4"], axes=[1, 2]), node("Mul", ["n", "s4"], ["m"]),
        node("Unsqueeze", ["shift"], ["t4"], axes=[1, 2]), node("Add", ["m", "t4"], ["a"]), node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    return make(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants, opset=9)


def test_batch_norm_and_what_follows_go_into_the_weights(tmp_path: Path) -> None:
    graph = optimized(conv_chain(), tmp_path)
    assert ops(graph) == ["conv"] and str(graph.nodes[0].epilogue) == "relu(add(acc,in2))"
    assert graph.nodes[0].origin == ("Conv_c", "BatchNormalization_n", "Mul_m", "Add_a", "Relu_y")


def test_grouped_conv_and_gemm_weights_scale_by_output_channel(tmp_path: Path) -> None:
    constants = {
        "w": normal(4, 2, 1, 1),
        **batch_norm("n", 4),
        "g": normal(5, 4),
        "k": normal(5, seed=4),
        "b": normal(5),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], group=2), node("BatchNormalization", ["c", "ns", "nb", "nm", "nv"], ["n"]),
        node("GlobalAveragePool", ["n"], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "g", "b"], ["h"], transB=1),
        node("Div", ["h", "k"], ["d"]), node("Neg", ["d"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [2, 4, 3, 3]}, ["y"], constants), tmp_path)
    assert ops(graph) == ["conv", "pool", "view", "gemm"]
    assert [str(n.epilogue) for n in graph.nodes] == ["add(acc,in2)", "None", "None", "add(acc,in2)"]


def test_a_gate_on_the_result_keeps_the_scale_inside(tmp_path: Path) -> None:
    constants = {"w": normal(4, 3, 1, 1), **batch_norm("n", 4)}
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "ns", "nb", "nm", "nv"], ["n"]),
        node("Sigmoid", ["n"], ["s"]), node("Mul", ["n", "s"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [1, 3, 5, 5]}, ["y"], constants), tmp_path)
    assert ops(graph) == ["conv"]
    assert str(graph.nodes[0].epilogue) == "mul(add(acc,in2),sigmoid(add(acc,in2)))"


def residual(other: str, shape: list[int]) -> onnx.ModelProto:
    """relu(conv(x) + other)."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Add", ["c", other], ["a"]), node("Relu", ["a"], ["y"])]
    return make(nodes, {"x": [2, 3, 4, 4], "r": shape}, ["y"], {"w": normal(3, 3, 1, 1), "k": normal(*shape)})


@pytest.mark.parametrize(
    ("other", "shape", "fused"),
    [
        ("r", [2, 3, 4, 4], True), ("r", [1, 3, 1, 1], False), ("r", [2, 3, 1, 1], False), ("k", [3, 1, 1], True),
        ("k", [1], True), ("k", [4, 4], False), ("k", [2, 3, 4, 4], False),
    ],
)  # fmt: skip
def test_operands_of_an_epilogue(other: str, shape: list[int], fused: bool, tmp_path: Path) -> None:
    trace: list[str] = []
    graph = optimized(residual(other, shape), tmp_path, trace=trace)
    assert ops(graph) == (["conv"] if fused else ["conv", "eltwise"])
    assert any(line.startswith("fuse: Conv_c + Add_a: declined: ") for line in trace) == (not fused)


def test_a_residual_sum_joins_the_later_branch(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Conv", ["b", "v"], ["c"]),
        node("Conv", ["x", "v"], ["d"]), node("Sum", ["c", "d"], ["s"]), node("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    constants = {"w": normal(3, 3, 1, 1), "v": normal(3, 3, 1, 1, seed=1)}
    graph = optimized(make(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants), tmp_path)
    last = graph.nodes[-1]
    assert ops(graph) == ["conv"] * 3 and last.name == "Conv_d" and str(last.epilogue) == "relu(add(in2,acc))"
    assert last.inputs[2] == "c"


def test_what_is_read_twice_or_is_an_output_stays(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    model = make(nodes, {"x": [1, 3, 4, 4]}, ["y", "c"], {"w": normal(3, 3, 1, 1)})
    trace: list[str] = []
    assert ops(optimized(model, tmp_path, trace=trace)) == ["conv", "eltwise"]
    assert "fuse: Conv_c + Relu_y: declined: 'c' is an output of the model" in trace


def test_the_limit_on_expressions(tmp_path: Path) -> None:
    chain = [node("Tanh", [f"v{i}"], [f"v{i + 1}"]) for i in range(6)]
    model = make(chain, {"v0": [4]}, ["v6"])
    trace: list[str] = []
    graph = optimized(model, tmp_path, (Fuse(max=4),), trace)
    assert len(graph.nodes) == 2 and any("would have 6 operators, the limit is 4" in t for t in trace)


def test_eltwise_moves_in_front_of_a_concat_and_a_view(tmp_path: Path) -> None:
    constants = {"w": normal(2, 3, 1, 1), "v": normal(3, 3, 1, 1), "s": normal(5, 1, 1)}
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Conv", ["x", "v"], ["b"]), node("Concat", ["a", "b"], ["c"], axis=1),
        node("Mul", ["c", "s"], ["m"]), node("Relu", ["m"], ["r"]), node("GlobalMaxPool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]), node("Tanh", ["f"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants), tmp_path)
    assert ops(graph) == ["conv", "conv", "concat", "pool", "view"]
    assert [str(n.epilogue) for n in graph.nodes[:4]] == ["relu(acc)", "relu(acc)", "None", "tanh(acc)"]


def test_a_bias_behind_a_matmul_of_sequences_fuses(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Add", ["a", "x"], ["y"]),
    ]
    graph = optimized(make(nodes, {"x": [2, 3, 5]}, ["y"], {"w": normal(5, 5), "b": normal(5)}), tmp_path)
    assert sorted(ops(graph)) == [
        "gemm",
        "view",
        "view",
    ]  # the residual reads the view that the product reads
    assert str(next(n for n in graph.nodes if n.op == "gemm").epilogue) == "add(add(acc,in2),in3)"


def test_cleanup(tmp_path: Path) -> None:
    shapes = {"a": np.array([6, 4], np.int64), "b": np.array([1, 2, 3, 4], np.int64)}
    nodes = [
        node("Identity", ["x"], ["i"]), node("Transpose", ["i"], ["t"], perm=[1, 0, 2, 3]), node("Reshape", ["t", "a"], ["r"]),
        node("Reshape", ["r", "b"], ["q"]), node("Concat", ["q"], ["c"], axis=1),
        node("Transpose", ["c"], ["u"], perm=[0, 2, 1, 3]),
        node("Transpose", ["u"], ["v"], perm=[0, 2, 1, 3]), node("Relu", ["v"], ["y"]), node("Tanh", ["r"], ["unused"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [1, 2, 3, 4]}, ["y"], shapes), tmp_path)
    assert ops(graph) == ["eltwise"]  # the first transpose moves an axis of extent 1


def test_outputs_keep_their_names_and_makers(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Identity", ["r"], ["y"]),
        node("Identity", ["r"], ["z"]),
        node("Identity", ["x"], ["w"]),
    ]
    graph = optimized(make(nodes, {"x": [3]}, ["y", "z", "w"]), tmp_path)
    assert graph.outputs == ("y", "z", "w") and sorted(ops(graph)) == ["eltwise", "view", "view"]


def test_duplicates_merge(tmp_path: Path) -> None:
    constants = {"a": normal(3, 3, 1, 1), "b": normal(3, 3, 1, 1)}
    nodes = [node("Conv", ["x", "a"], ["p"]), node("Conv", ["x", "b"], ["q"]), node("Mul", ["p", "q"], ["y"])]
    graph = optimized(make(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants), tmp_path)
    assert ops(graph) == ["conv"] and str(graph.nodes[0].epilogue) == "mul(acc,acc)"


def test_constants_fold_after_import_too(tmp_path: Path) -> None:
    from dataclasses import replace

    graph = load(
        make(
            [node("Add", ["x", "c"], ["a"]), node("Mul", ["a", "x"], ["y"])],
            {"x": [3]},
            ["y"],
            {"c": normal(3)},
        ),
        tmp_path,
    )
    known = replace(
        graph, inputs=(), constants={**graph.constants, "x": np.ones(3, np.float32)}, outputs=("y",)
    )
    folded = run_pipeline(known, parse_pipeline("fold,dce"))
    assert ops(folded) == ["eltwise"] and set(folded.constants) == {"a", "x"}
    np.testing.assert_allclose(folded.constants["a"], 1 + normal(3))


def siblings(channels: int) -> onnx.ModelProto:
    """Three 1×1 convolutions of one input, one of them without bias, concatenated."""
    constants = {k: normal(channels, 3, 1, 1, seed=i) for i, k in enumerate("uvw")} | {
        "b": normal(channels),
        "c": normal(channels, seed=2),
    }
    nodes = [
        node("Conv", ["x", "u", "b"], ["p"]), node("Conv", ["x", "v", "c"], ["q"]), node("Conv", ["x", "w"], ["r"]),
        node("Relu", ["p"], ["pr"]), node("Relu", ["q"], ["qr"]), node("Concat", ["pr", "qr", "r"], ["y"], axis=1),
    ]  # fmt: skip
    return make(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants)


def test_horizontal_fusion(tmp_path: Path) -> None:
    graph = optimized(siblings(16), tmp_path, default_pipeline(siblings=True))
    assert sorted(ops(graph)) == ["concat", "conv", "conv", "split"]
    split = next(n for n in graph.nodes if n.op == "split")
    assert split.attr("sizes") == (16, 16) and split.outputs == ("pr", "qr")
    assert sorted(ops(optimized(siblings(16), tmp_path))) == ["concat", "conv", "conv", "conv"]


def test_horizontal_fusion_keeps_to_whole_blocks(tmp_path: Path) -> None:
    trace: list[str] = []
    graph = optimized(siblings(6), tmp_path, default_pipeline(siblings=True), trace)
    assert "split" not in ops(graph) and any("6 channels do not divide by 16" in t for t in trace)
    assert "split" in ops(optimized(siblings(6), tmp_path, (Fuse(), Siblings(multiple=2))))


def test_pipelines_print_and_parse() -> None:
    text = "clean,fuse{max=8},siblings{multiple=8},regions{absorb=false},dce"
    assert format_pipeline(parse_pipeline(text)) == text
    assert parse_pipeline("fuse{max=24},regions{absorb=true}") == (Fuse(), Regions())
    assert parse_pipeline(format_pipeline(default_pipeline())) == default_pipeline()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuze", "unknown pass 'fuze'"), ("fuse{size=3}", "no option 'size'"), ("fuse{max=x}", "expected int, found 'x'"),
        ("regions{absorb=1}", "expected bool"), ("fuse,,dce", "malformed"), ("fuse{max=3", "malformed"),
        ("dce{a=1}", "expected one of none"),
    ],
)  # fmt: skip
def test_pipelines_refuse(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_pipeline(text)


def test_a_pass_that_breaks_a_rule_is_found(tmp_path: Path) -> None:
    from dataclasses import dataclass, replace

    @dataclass(frozen=True)
    class Breaks(Dead):
        def run(self, graph: Graph, trace: list[str] | None) -> Graph:
            return replace(graph, nodes=graph.nodes[1:])

    with pytest.raises(InternalError, match="before it is made"):
        run_pipeline(load(conv_chain(), tmp_path), (Breaks(),))


def test_views_of_one_value_in_two_shapes_are_two(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "a"], ["y"]), node("Reshape", ["x", "b"], ["r"]), node("Transpose", ["r"], ["z"], perm=[1, 0])]
    model = make(nodes, {"x": [2, 6]}, ["y", "z"], {"a": np.array([3, 4]), "b": np.array([4, 3])})
    assert sorted(ops(optimized(model, tmp_path))) == ["transpose", "view", "view"]
