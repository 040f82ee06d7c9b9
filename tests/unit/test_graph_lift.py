"""Every ONNX op with a native meaning: the native nodes compute what ONNX Runtime computes for the op."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_build import load, make, node, normal, ops, optimized

UNARY = [
    "Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "Floor", "Ceil", "Reciprocal", "LeakyRelu", "HardSigmoid",
    "HardSwish", "Elu", "Celu", "Selu", "Softplus", "Softsign", "Mish", "ThresholdedRelu",
]  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_activations(op: str, tmp_path: Path) -> None:
    graph = optimized(make([node(op, ["x"], ["y"])], {"x": [2, 3, 40]}, ["y"], opset=18), tmp_path)
    assert ops(graph) == ["eltwise"]


@pytest.mark.parametrize(
    ("op", "attrs", "opset"),
    [
        ("LeakyRelu", {"alpha": 1.5}, 17), ("Elu", {"alpha": 0.3}, 17), ("Selu", {"alpha": 2.0, "gamma": 1.5}, 17),
        ("Celu", {"alpha": 2.0}, 17), ("Gelu", {"approximate": "tanh"}, 20), ("Gelu", {}, 20),
        ("Clip", {"min": -0.5, "max": 0.25}, 9), ("Clip", {"min": 0.1}, 9), ("HardSigmoid", {"alpha": 0.5, "beta": 0.1}, 17),
    ],
)  # fmt: skip
def test_activation_attributes(op: str, attrs: dict[str, Any], opset: int, tmp_path: Path) -> None:
    graph = optimized(make([node(op, ["x"], ["y"], **attrs)], {"x": [5, 7]}, ["y"], opset=opset), tmp_path)
    assert ops(graph) == ["eltwise"]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("other", [(2, 3, 4), (4,), (3, 1), (1, 1, 1, 1), ()])
def test_binary_with_constants_of_any_shape(op: str, other: tuple[int, ...], tmp_path: Path) -> None:
    c = np.abs(normal(*other)) + np.float32(0.5)
    graph = optimized(make([node(op, ["x", "c"], ["y"])], {"x": [2, 3, 4]}, ["y"], {"c": c}), tmp_path)
    assert ops(graph) == ["eltwise"]


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, 2.5])
def test_pow(exponent: float, tmp_path: Path) -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Pow", ["a", "e"], ["y"])]
    graph = optimized(make(nodes, {"x": [6]}, ["y"], {"e": np.array(exponent, np.float32)}), tmp_path)
    assert ops(graph) == ["eltwise"] and ("pow" in str(graph.nodes[0].epilogue)) == (exponent == 2.5)


def test_clip_and_prelu_take_constants_only(tmp_path: Path) -> None:
    bounds = {"lo": np.array(-0.3, np.float32), "hi": np.array(0.4, np.float32)}
    assert ops(
        optimized(make([node("Clip", ["x", "lo", "hi"], ["y"])], {"x": [9]}, ["y"], bounds), tmp_path)
    ) == ["eltwise"]
    slopes = {"s": np.array([[0.5], [-1.0], [2.0]], np.float32)}
    assert ops(
        optimized(make([node("PRelu", ["x", "s"], ["y"])], {"x": [3, 5]}, ["y"], slopes), tmp_path)
    ) == ["eltwise"]
    varying = make([node("Clip", ["x", "lo"], ["y"])], {"x": [9], "lo": []}, ["y"])
    assert ops(optimized(varying, tmp_path)) == ["region"]


@pytest.mark.parametrize(
    "attrs",
    [
        {}, {"pads": [1, 2, 0, 1]}, {"strides": [2, 1]}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"}, {"group": 3},
    ],
)  # fmt: skip
def test_conv(attrs: dict[str, Any], tmp_path: Path) -> None:
    constants = {"w": normal(6, 6 // attrs.get("group", 1), 3, 2), "b": normal(6)}
    graph = optimized(
        make([node("Conv", ["x", "w", "b"], ["y"], **attrs)], {"x": [2, 6, 9, 8]}, ["y"], constants), tmp_path
    )
    assert ops(graph) == ["conv"] and str(graph.nodes[0].epilogue) == "add(acc,in2)"


def test_conv_of_a_sequence_is_a_conv_of_one_row(tmp_path: Path) -> None:
    model = make(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1]), node("Relu", ["c"], ["y"])],
        {"x": [1, 4, 9]},
        ["y"],
        {"w": normal(5, 4, 3)},
    )
    graph = optimized(model, tmp_path)
    assert ops(graph) == ["view", "conv", "view"] and str(graph.nodes[1].epilogue) == "relu(acc)"


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attrs",
    [
        {}, {"pads": [1, 0, 1, 1]}, {"strides": [2, 2], "ceil_mode": 1}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"dilations": [2, 2]},
    ],
)  # fmt: skip
def test_pool(op: str, attrs: dict[str, Any], tmp_path: Path) -> None:
    model = make(
        [node(op, ["x"], ["y"], kernel_shape=[2, 3], **attrs)], {"x": [1, 3, 8, 10]}, ["y"], opset=19
    )
    assert ops(optimized(model, tmp_path)) == ["pool"]


def test_average_that_counts_padding(tmp_path: Path) -> None:
    attrs = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    assert ops(
        optimized(make([node("AveragePool", ["x"], ["y"], **attrs)], {"x": [1, 2, 5, 5]}, ["y"]), tmp_path)
    ) == ["pool"]


def test_pool_with_indices_stays_opaque(tmp_path: Path) -> None:
    model = make([node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])], {"x": [1, 2, 4, 4]}, ["y", "i"])
    assert ops(optimized(model, tmp_path)) == ["region"]


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(op: str, tmp_path: Path) -> None:
    graph = optimized(make([node(op, ["x"], ["y"])], {"x": [2, 3, 5, 7]}, ["y"]), tmp_path)
    assert graph.nodes[0].attr("kernel") == (5, 7)


@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_the_image_is_a_global_pool(keep: int, tmp_path: Path) -> None:
    model = make([node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=keep)], {"x": [2, 3, 5, 7]}, ["y"])
    assert ops(optimized(model, tmp_path)) == ["pool"] + ["view"] * (1 - keep)
    other = make([node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=keep)], {"x": [2, 3, 5, 7]}, ["y"])
    assert ops(optimized(other, tmp_path)) == ["reduce"] + ["view"] * (1 - keep)


@pytest.mark.parametrize(
    ("opset", "axis", "expected"),
    [
        (9, 1, ["view", "softmax", "view"]),
        (9, 2, ["softmax"]),
        (13, 1, ["softmax"]),
        (13, -1, ["softmax"]),
        (11, 0, ["view", "softmax", "view"]),
    ],
)
def test_softmax_of_old_opsets_flattens(opset: int, axis: int, expected: list[str], tmp_path: Path) -> None:
    model = make([node("Softmax", ["x"], ["y"], axis=axis)], {"x": [2, 3, 4]}, ["y"], opset=opset)
    assert ops(optimized(model, tmp_path)) == expected


def test_lrn(tmp_path: Path) -> None:
    model = make(
        [node("LRN", ["x"], ["y"], size=5, alpha=0.01, beta=0.6, bias=1.5)], {"x": [1, 8, 3, 3]}, ["y"]
    )
    assert ops(optimized(model, tmp_path)) == ["lrn"]


@pytest.mark.parametrize("c", [(4,), (1, 4), (3, 1), (3, 4), (1,), ()])
@pytest.mark.parametrize("attrs", [{}, {"alpha": 0.5, "beta": 2.0, "transB": 1}, {"transA": 1, "beta": 0.0}])
def test_gemm(c: tuple[int, ...], attrs: dict[str, Any], tmp_path: Path) -> None:
    constants = {"b": normal(*((4, 5) if attrs.get("transB") else (5, 4))), "c": normal(*c)}
    x = [5, 3] if attrs.get("transA") else [3, 5]
    graph = optimized(
        make([node("Gemm", ["x", "b", "c"], ["y"], **attrs)], {"x": x}, ["y"], constants), tmp_path
    )
    # C by rows is no operand of a product's epilogue
    assert ops(graph) == (
        ["gemm", "eltwise"] if c in ((3, 1), (3, 4)) and attrs.get("beta") != 0.0 else ["gemm"]
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((3, 5), (5, 4), ["gemm"]), ((2, 3, 5), (5, 4), ["view", "gemm", "view"]), ((2, 3, 5), (2, 5, 4), ["matmul"]),
        ((5,), (5, 4), ["region"]), ((2, 1, 3, 5), (4, 5, 2), ["matmul"]),
    ],
)  # fmt: skip
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], expected: list[str], tmp_path: Path) -> None:
    model = make([node("MatMul", ["x", "b"], ["y"])], {"x": list(a)}, ["y"], {"b": normal(*b)})
    assert ops(optimized(model, tmp_path)) == expected


def test_moves(tmp_path: Path) -> None:
    shape = {"s": np.array([0, -1, 2], np.int64), "axes": np.array([1], np.int64)}
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("Reshape", ["t", "s"], ["r"]),
        node("Unsqueeze", ["r", "axes"], ["u"]),
        node("Concat", ["u", "u"], ["y"], axis=-1),
    ]  # fmt: skip
    graph = optimized(make(nodes, {"x": [2, 3, 4]}, ["y"], shape), tmp_path)
    assert ops(graph) == ["transpose", "view", "concat"]


@pytest.mark.parametrize("opset", [11, 13])
def test_split(opset: int, tmp_path: Path) -> None:
    sizes = [2, 3, 1]
    extra = {"s": np.array(sizes, np.int64)} if opset == 13 else {}
    attrs: dict[str, Any] = {} if opset == 13 else {"split": sizes}
    nodes = [node("Split", ["x", *extra], ["a", "b", "c"], axis=1, **attrs), node("Relu", ["a"], ["y"])]
    graph = optimized(make(nodes, {"x": [2, 6, 2]}, ["y", "b", "c"], extra, opset=opset), tmp_path)
    assert ops(graph) == ["split", "eltwise"] and graph.nodes[0].attr("sizes") == (2, 3, 1)


@pytest.mark.parametrize(
    ("start", "stop", "step", "expected"), [(1, 4, 1, "split"), (-3, 99, 1, "split"), (0, 6, 2, "region")]
)
def test_slice(start: int, stop: int, step: int, expected: str, tmp_path: Path) -> None:
    values = {"a": start, "b": stop, "axis": 1, "step": step}
    constants = {k: np.array([v], np.int64) for k, v in values.items()}
    graph = optimized(
        make([node("Slice", ["x", *constants], ["y"])], {"x": [2, 6, 3]}, ["y"], constants), tmp_path
    )
    assert ops(graph) == [expected]


def test_batch_norm_alone_is_a_scale_and_a_shift(tmp_path: Path) -> None:
    constants = {k: normal(3, seed=i) for i, k in enumerate("sbm")} | {
        "v": np.abs(normal(3)) + np.float32(0.5)
    }
    model = make(
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.01)],
        {"x": [2, 3, 4, 4]},
        ["y"],
        constants,
    )
    graph = optimized(model, tmp_path)
    assert str(graph.nodes[0].epilogue) == "add(mul(in0,in1),in2)"


@pytest.mark.parametrize("opset", [9, 13])
def test_dropout_is_nothing_at_inference(opset: int, tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Dropout", ["r"], ["d", "mask"]), node("Neg", ["d"], ["y"])]
    assert ops(optimized(make(nodes, {"x": [4]}, ["y"], opset=opset), tmp_path)) == ["eltwise"]


def test_other_dtypes_stay_opaque(tmp_path: Path) -> None:
    from onnx import TensorProto

    model = make([node("Add", ["x", "x"], ["y"])], {"x": [4]}, ["y"], dtype=TensorProto.INT64)
    assert ops(optimized(model, tmp_path)) == ["region"]
    assert ops(load(model, tmp_path)) == ["onnx"]
