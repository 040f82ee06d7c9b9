"""Spelled-out normalizations become one node where they are one; a graph that cannot settle would hang here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_build import make, node, normal, ops, optimized

EPS = {"eps": np.array(1e-5, np.float32), "one": np.array(1.0, np.float32), "two": np.array(2.0, np.float32)}


def spelled(quotient: str, square: str, axes: list[int], centred: bool = True) -> onnx.ModelProto:
    """A normalization of x[2, 3, 8] with scale and bias."""
    d = "d" if centred else "x"
    nodes = [node("ReduceMean", ["x"], ["m"], axes=axes), node("Sub", ["x", "m"], ["d"])] if centred else []
    nodes.append(node("Pow", [d, "two"], ["s"]) if square == "pow" else node("Mul", [d, d], ["s"]))
    nodes += [node("ReduceMean", ["s"], ["v"], axes=axes), node("Add", ["v", "eps"], ["e"]), node("Sqrt", ["e"], ["r"])]
    if quotient == "div":
        nodes.append(node("Div", [d, "r"], ["n"]))
    else:
        nodes.append(node("Reciprocal", ["r"], ["q"]) if quotient == "recip" else node("Div", ["one", "r"], ["q"]))
        nodes.append(node("Mul", ["q", d], ["n"]))
    nodes += [node("Mul", ["n", "gain"], ["g"]), node("Add", ["g", "bias"], ["y"])]
    return make(nodes, {"x": [2, 3, 8]}, ["y"], {**EPS, "gain": normal(8), "bias": normal(8, seed=1)}, opset=13)


@pytest.mark.parametrize("quotient", ["div", "recip", "one"])
@pytest.mark.parametrize("square", ["pow", "mul"])
@pytest.mark.parametrize("centred", [True, False])
def test_spelled_out_norms(quotient: str, square: str, centred: bool, tmp_path: Path) -> None:
    graph = optimized(spelled(quotient, square, [-1], centred), tmp_path)
    assert ops(graph) == ["norm"] and str(graph.nodes[0].epilogue) == "add(mul(acc,in1),in2)"
    assert graph.nodes[0].attr("kind") == ("layer" if centred else "rms") and graph.nodes[0].attr("axis") == 2


def test_two_axes_and_what_is_none(tmp_path: Path) -> None:
    assert "norm" in ops(optimized(spelled("div", "mul", [1, 2]), tmp_path))
    trace: list[str] = []
    graph = optimized(spelled("div", "mul", [1]), tmp_path, trace=trace)
    assert "norm" not in ops(graph) and any("expected the last ones" in line for line in trace)


def test_statistics_that_others_read_stay(tmp_path: Path) -> None:
    model = spelled("div", "mul", [-1])
    model.graph.output.append(onnx.ValueInfoProto(name="m"))
    assert sorted(ops(optimized(model, tmp_path))) == ["norm", "reduce"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([0, 2], 0), ([1, 2], 1), (None, 0)])
def test_reductions(op: str, axes: list[int] | None, keep: int, opset: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {"keepdims": keep}
    constants = {}
    if axes and (opset >= 18 or op == "ReduceSum"):
        constants["a"] = np.array(axes)
    elif axes:
        given["axes"] = axes
    model = make([node(op, ["x", *constants], ["y"], **given)], {"x": [2, 3, 8]}, ["y"], constants, opset=opset)
    found = ops(optimized(model, tmp_path))
    assert "region" not in found and found.count("reduce") == (2 if axes == [0, 2] else 1)


def test_the_norms_of_onnx(tmp_path: Path) -> None:
    constants = {"s": normal(8), "b": normal(8, seed=1)}
    model = make([node("LayerNormalization", ["x", "s", "b"], ["y"])], {"x": [2, 3, 8]}, ["y"], constants)
    assert ops(optimized(model, tmp_path)) == ["norm"]
    varying = make([node("LayerNormalization", ["x", "s"], ["y"], axis=1)], {"x": [2, 3, 8], "s": [3, 8]}, ["y"])
    assert ops(optimized(varying, tmp_path)) == ["norm", "eltwise"]
    images = {"s": normal(3), "b": normal(3, seed=1)}
    model = make([node("InstanceNormalization", ["x", "s", "b"], ["y"])], {"x": [2, 3, 4, 4]}, ["y"], images)
    assert ops(optimized(model, tmp_path)) == ["view", "norm", "view", "eltwise"]


def test_group_norm(tmp_path: Path) -> None:
    constants = {"s": normal(6), "b": normal(6, seed=1)}
    nodes = [node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)]
    model = make(nodes, {"x": [2, 6, 4, 4]}, ["y"], constants, opset=21)
    model.ir_version = 10
    assert ops(optimized(model, tmp_path)) == ["view", "norm", "view", "eltwise"]


def test_not_a_number(tmp_path: Path) -> None:
    nodes = [node("Log", ["x"], ["l"]), node("IsNaN", ["l"], ["n"]), node("Sign", ["x"], ["s"])]
    nodes.append(node("Where", ["n", "s", "l"], ["y"]))
    assert set(ops(optimized(make(nodes, {"x": [3, 40]}, ["y"]), tmp_path))) == {"eltwise"}


def test_gelu_is_one_epilogue(tmp_path: Path) -> None:
    constants = {"w": normal(4, 6), "b": normal(6), "r": np.array(2**0.5, np.float32), "half": np.array(0.5, np.float32)}
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["h"]), node("Div", ["h", "r"], ["q"]),
        node("Erf", ["q"], ["e"]), node("Add", ["e", "one"], ["f"]), node("Mul", ["h", "f"], ["g"]),
        node("Mul", ["g", "half"], ["y"]),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [3, 4]}, ["y"], {**constants, "one": np.ones((), np.float32)}), tmp_path)
    assert ops(graph) == ["gemm"] and "erf" in str(graph.nodes[0].epilogue)


def test_two_products_of_other_shapes_do_not_take_turns(tmp_path: Path) -> None:
    """Each could take the sum in if the other gave up its shape."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("MatMul", ["a", "b"], ["q"]), node("Reshape", ["q", "s"], ["r"]),
        node("Add", ["p", "r"], ["y"]),
    ]  # fmt: skip
    constants = {"w": normal(4, 6), "b": normal(2, 4, 3), "s": np.array([2, 3, 6])}
    graph = optimized(make(nodes, {"x": [2, 3, 4], "a": [2, 6, 4]}, ["y"], constants), tmp_path)
    assert sorted(ops(graph)) == ["gemm", "matmul", "view", "view", "view"]


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_by_one_index_is_a_part(axis: int, tmp_path: Path) -> None:
    model = make([node("Gather", ["x", "i"], ["y"], axis=axis)], {"x": [3, 4, 5]}, ["y"], {"i": np.array(-1)})
    assert ops(optimized(model, tmp_path)) == ["split", "view"]
    model = make([node("Gather", ["x", "i"], ["y"], axis=axis)], {"x": [3, 4, 5]}, ["y"], {"i": np.array([[2, -1], [0, 0]])})
    assert ops(optimized(model, tmp_path)) == ["gather"]


def test_expand_and_where(tmp_path: Path) -> None:
    constants = {"s": np.array([2, 3, 4]), "c": np.array([True, False, True, False]), "zero": np.zeros((), np.float32)}
    nodes = [node("Expand", ["x", "s"], ["e"]), node("Where", ["c", "e", "zero"], ["y"])]
    graph = optimized(make(nodes, {"x": [3, 1]}, ["y"], constants), tmp_path)
    assert ops(graph) == ["eltwise"]


def test_a_condition_may_be_computed(tmp_path: Path) -> None:
    nodes = [node("Less", ["x", "z"], ["c"]), node("Where", ["c", "x", "z"], ["y"])]
    graph = optimized(make(nodes, {"x": [3, 4]}, ["y"], {"z": np.zeros((), np.float32)}), tmp_path)
    assert ops(graph) == ["eltwise"]


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons(op: str, tmp_path: Path) -> None:
    nodes = [node(op, ["x", "z"], ["c"]), node("Not", ["c"], ["n"]), node("Where", ["n", "x", "z"], ["y"])]
    model = make(nodes, {"x": [3, 4]}, ["y", "c"], {"z": np.zeros((), np.float32)})
    assert ops(optimized(model, tmp_path)) == ["eltwise", "eltwise"]


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic_of_masks(op: str, tmp_path: Path) -> None:
    constants = {"k": np.array(3), "s": np.array([2, 4, 4]), "zero": np.zeros((), np.float32), "axes": np.array([1])}
    nodes = [
        node("Unsqueeze", ["i", "axes"], ["u"]), node("Equal", ["u", "k"], ["e"]), node("Cast", ["u"], ["b"], to=9),
        node(op, ["e", "b"], ["m"]), node("Expand", ["m", "s"], ["w"]), node("Where", ["w", "zero", "zero"], ["z"]),
        node("Cast", ["w"], ["f"], to=1), node("Add", ["z", "f"], ["y"]),
    ]  # fmt: skip
    model = make(nodes, {"i": [2, 4]}, ["y"], constants, dtype=onnx.TensorProto.INT64)
    assert set(ops(optimized(model, tmp_path))) == {"view", "eltwise"}


def test_a_product_does_not_become_a_bool(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Less", ["p", "z"], ["y"])]
    model = make(nodes, {"x": [3, 4]}, ["y"], {"w": normal(4, 5), "z": np.zeros((), np.float32)})
    assert ops(optimized(model, tmp_path)) == ["gemm", "eltwise"]


def test_large_integers_are_compared_by_onnxruntime(tmp_path: Path) -> None:
    model = make([node("Equal", ["i", "k"], ["y"])], {"i": [4]}, ["y"], {"k": np.array(1 << 40)}, dtype=onnx.TensorProto.INT64)
    assert ops(optimized(model, tmp_path)) == ["region"]


def test_a_product_takes_a_mask_that_broadcasts(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["q", "k"], ["p"]), node("Add", ["p", "m"], ["y"])]
    model = make(nodes, {"q": [2, 3, 4, 8], "k": [2, 3, 8, 4], "m": [2, 1, 1, 4]}, ["y"])
    assert ops(optimized(model, tmp_path)) == ["matmul"]


def test_a_slice_of_several_axes(tmp_path: Path) -> None:
    constants = {"a": np.array([1, 0, -2]), "b": np.array([3, 9, 9]), "axes": np.array([0, 1, 2])}
    model = make([node("Slice", ["x", *constants], ["y"])], {"x": [4, 3, 5]}, ["y"], constants)
    assert ops(optimized(model, tmp_path)) == ["split", "split"]


@pytest.mark.parametrize("opset", [9, 13])
def test_padding_goes_into_the_convolution(opset: int, tmp_path: Path) -> None:
    pads = [0, 0, 1, 2, 0, 0, 0, 3]
    extra = {"p": np.array(pads)} if opset > 9 else {}
    attrs: dict[str, Any] = {} if opset > 9 else {"pads": pads}
    nodes = [node("Pad", ["x", *extra], ["q"], **attrs), node("Conv", ["q", "w"], ["y"], pads=[1, 0, 0, 0])]
    model = make(nodes, {"x": [1, 3, 6, 6]}, ["y"], {**extra, "w": normal(4, 3, 3, 4)}, opset=opset)
    graph = optimized(model, tmp_path)
    assert ops(graph) == ["conv"] and graph.nodes[0].attr("pads") == (2, 2, 0, 3)
    nodes[1] = node("Conv", ["q", "w"], ["y"], pads=[2, 0, 0, 0])
    model = make(nodes, {"x": [1, 3, 6, 6]}, ["y"], {**extra, "w": normal(4, 3, 3, 3)}, opset=opset)
    assert ops(optimized(model, tmp_path))[0] == "concat"


def test_padding_by_ones_is_a_concat(tmp_path: Path) -> None:
    constants = {"p": np.array([0, 0, 1, 0, 0, 0, 0, 0]), "one": np.ones((), np.float32), "w": normal(4, 3, 3, 3)}
    nodes = [node("Pad", ["x", "p", "one"], ["q"]), node("Conv", ["q", "w"], ["y"])]
    trace: list[str] = []
    assert ops(optimized(make(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants), tmp_path, trace=trace)) == ["concat", "conv"]
    assert any("the padding is not zero" in line for line in trace)
    model = make([node("Pad", ["x", "p"], ["y"], mode="reflect")], {"x": [1, 3, 6, 6]}, ["y"], constants)
    assert ops(optimized(model, tmp_path)) == ["region"]


def test_factors_of_products_are_epilogues(tmp_path: Path) -> None:
    constants = {"c": np.array(0.25, np.float32), "d": np.array(3.0, np.float32)}
    nodes = [
        node("Mul", ["c", "q"], ["qs"]), node("Div", ["k", "d"], ["ks"]), node("Transpose", ["ks"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["qs", "kt"], ["p"]), node("Relu", ["p"], ["y"]),
    ]  # fmt: skip
    inputs = {"q": [2, 4, 8], "k": [2, 5, 8]}
    graph = optimized(make(nodes, inputs, ["y"], constants), tmp_path)
    assert ops(graph) == ["transpose", "matmul"] and "0.25" in str(graph.nodes[1].epilogue)
    trace: list[str] = []
    graph = optimized(make(nodes, inputs, ["y", "qs"], constants), tmp_path, trace=trace)
    assert ops(graph).count("eltwise") == 1 and any("'qs' is an output" in line for line in trace)
