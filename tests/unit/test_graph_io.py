"""Import: constants, shapes, batch, opaque nodes, and every way a file can be bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_build import FLOAT, feeds_of, load, make, node, normal, ops, optimized, run
from onnx import TensorProto, helper, numpy_helper

from wpk.core.errors import ModelError, UsageError
from wpk.graph.onnx_io import export_model, load_model


def test_constants_fold_through_shape_arithmetic(tmp_path: Path) -> None:
    constants = {"zero": np.array([0], np.int64), "minus": np.array([-1], np.int64)}
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Concat", ["n", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]), node("ConstantOfShape", ["s"], ["zeros"]), node("Add", ["x", "zeros"], ["a"]),
        node("Reshape", ["a", "target"], ["q"]), node("Sub", ["r", "q"], ["y"]),
    ]  # fmt: skip
    graph = load(make(nodes, {"x": ["batch", 3, 2]}, ["y"], constants), tmp_path, batch=4)
    assert ops(graph) == ["view", "eltwise", "view", "eltwise"]
    assert graph.types["r"].shape == (4, 6)


def test_initializers_that_are_inputs_are_constants(tmp_path: Path) -> None:
    model = make([node("Add", ["x", "c"], ["y"])], {"x": [3], "c": [3]}, ["y"], {"c": normal(3)}, opset=9)
    model.ir_version = 3
    graph = load(model, tmp_path)
    assert graph.inputs == ("x",) and set(graph.constants) == {"c"}


def test_random_numbers_are_not_folded(tmp_path: Path) -> None:
    model = make(
        [node("RandomNormal", [], ["r"], shape=[3]), node("Add", ["x", "r"], ["y"])], {"x": [3]}, ["y"]
    )
    assert ops(load(model, tmp_path)) == ["onnx", "eltwise"]


def test_a_constant_output_is_made_by_a_node(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["y"], value=numpy_helper.from_array(np.arange(3))),
        node("Relu", ["x"], ["z"]),
    ]
    graph = optimized(make(nodes, {"x": [2]}, ["y", "z"]), tmp_path)
    assert graph.outputs == ("y", "z") and sorted(ops(graph)) == ["eltwise", "view"]


def test_shapes_and_batch_set_the_inputs(tmp_path: Path) -> None:
    model = make([node("Relu", ["x"], ["y"])], {"x": ["n", 3, "h", "w"]}, ["y"])
    graph = load(model, tmp_path, shapes={"x": (2, 3, 5, 7)})
    assert graph.types["y"].shape == (2, 3, 5, 7)
    with pytest.raises(ModelError, match=r"input 'x' has unknown dimensions nx3xhxw"):
        load(model, tmp_path)
    with pytest.raises(ModelError, match=r"unknown dimensions"):
        load(model, tmp_path, batch=2)
    with pytest.raises(ModelError, match=r"4 dimensions, the shape given has 2"):
        load(model, tmp_path, shapes={"x": (1, 3)})
    with pytest.raises(UsageError, match=r"no input 'z' to give a shape, found x"):
        load(model, tmp_path, shapes={"z": (1, 3)})


def test_batch_rewrites_the_reshapes_of_a_fixed_batch(tmp_path: Path) -> None:
    targets = {
        "a": np.array([1, 12], np.int64),
        "b": np.array([1, -1, 3], np.int64),
        "c": np.array([-1], np.int64),
    }
    nodes = [
        node("Reshape", ["x", "a"], ["r"]),
        node("Reshape", ["r", "b"], ["q"]),
        node("Reshape", ["q", "c"], ["y"]),
    ]
    model = make(nodes, {"x": [1, 3, 4]}, ["y", "q"], targets)
    graph = load(model, tmp_path, batch=5)
    shapes = [graph.types[v].shape for v in ("x", "r", "q", "y")]
    assert shapes == [(5, 3, 4), (5, 12), (5, 4, 3), (60,)]
    (y, q) = run(export_model(graph), feeds_of(graph))
    np.testing.assert_array_equal(q.reshape(-1), y)


def test_a_reshape_that_fits_the_new_batch_is_left_alone(tmp_path: Path) -> None:
    model = make(
        [node("Reshape", ["x", "s"], ["y"])], {"x": [1, 6]}, ["y"], {"s": np.array([1, 12], np.int64)}
    )
    graph = load(model, tmp_path, batch=2)
    assert graph.types["y"].shape == (1, 12)
    with pytest.raises(
        ModelError, match=r"node 'Reshape_y' \(Reshape\): 18 elements do not fit the shape 3x12"
    ):
        load(model, tmp_path, batch=3)


def test_control_flow_is_opaque_and_sees_what_it_captures(tmp_path: Path) -> None:
    y = onnx.ValueInfoProto(name="inner")
    then = helper.make_graph([node("Add", ["a", "c"], ["inner"])], "then", [], [y])
    other = helper.make_graph([node("Mul", ["a", "a"], ["inner"])], "else", [], [y])
    nodes = [
        node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["a"]), node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Less", ["total", "zero"], ["flag"]), node("If", ["flag"], ["b"], then_branch=then, else_branch=other),
        node("Neg", ["b"], ["y"]),
    ]  # fmt: skip
    constants = {"c": normal(4), "zero": np.zeros((), np.float32)}
    model = make(nodes, {"x": [4]}, ["y"], constants)
    graph = load(model, tmp_path)
    branch = next(n for n in graph.nodes if n.op == "onnx" and n.attr("onnx_op") == "If")
    assert branch.inputs == ("flag", "a", "c")
    # cleaning removes Identity, so the subgraph's `a` is then known by another name outside
    assert sorted(set(ops(optimized(model, tmp_path)))) == ["eltwise", "reduce", "region", "view"]


@pytest.mark.parametrize("condition", [True, False])
def test_an_if_with_a_known_condition_is_its_branch(condition: bool, tmp_path: Path) -> None:
    outs = [onnx.ValueInfoProto(name=v) for v in ("p", "q")]
    deeper = helper.make_graph(
        [node("Sub", ["p", "x"], ["d"])], "deeper", [], [onnx.ValueInfoProto(name="d")]
    )
    then = helper.make_graph(
        [node("Add", ["x", "k"], ["p"]), node("If", ["flag"], ["q"], then_branch=deeper, else_branch=deeper)],
        "then", [], outs, [numpy_helper.from_array(normal(4), "k")],
    )  # fmt: skip
    other = helper.make_graph([node("Mul", ["x", "x"], ["p"]), node("Neg", ["p"], ["q"])], "else", [], outs)
    nodes = [
        node("If", ["flag"], ["a", "b"], then_branch=then, else_branch=other),
        node("If", ["flag"], ["c", "e"], then_branch=then, else_branch=other),
        node("Sum", ["a", "b", "c", "e"], ["y"]),
    ]  # fmt: skip
    model = make(nodes, {"x": [4]}, ["y"], {"flag": np.array(condition)})
    assert set(ops(optimized(model, tmp_path))) == {"eltwise"}


def test_a_scalar_from_control_flow_has_a_shape(tmp_path: Path) -> None:
    out = [onnx.ValueInfoProto(name="s")]
    then = helper.make_graph([node("ReduceSum", ["x"], ["s"], keepdims=0)], "then", [], out)
    other = helper.make_graph([node("ReduceMax", ["x"], ["s"], keepdims=0)], "else", [], out)
    nodes = [node("If", ["flag"], ["a"], then_branch=then, else_branch=other), node("Add", ["x", "a"], ["y"])]
    flag = [node("ReduceMin", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["flag"], to=TensorProto.BOOL)]
    graph = optimized(make([*flag, *nodes], {"x": [4]}, ["y"]), tmp_path)
    assert graph.types["a"].shape == () and ops(graph) == ["reduce", "view", "eltwise", "region", "eltwise"]


def test_what_computes_imports_though_inference_refuses(tmp_path: Path) -> None:
    constants = {
        "start": np.array(0),
        "stop": np.array([6]),
        "step": np.array(1),
    }  # a range's ends should be scalars
    nodes = [
        node("Range", ["start", "stop", "step"], ["r"]), node("Cast", ["r"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"]),
    ]  # fmt: skip
    graph = load(make(nodes, {"x": [6]}, ["y"], constants), tmp_path)
    np.testing.assert_array_equal(graph.constants["f"], np.arange(6, dtype=np.float32))


def test_contrib_operators_get_their_types_from_onnxruntime(tmp_path: Path) -> None:
    nodes = [node("FastGelu", ["x"], ["g"], domain="com.microsoft"), node("Relu", ["g"], ["y"])]
    graph = optimized(make(nodes, {"x": [2, 3]}, ["y"], domains={"com.microsoft": 1}), tmp_path)
    assert ops(graph) == ["region", "eltwise"] and graph.types["g"].shape == (2, 3)


def test_model_functions_are_inlined(tmp_path: Path) -> None:
    body = [node("Mul", ["p", "p"], ["q"]), node("Relu", ["q"], ["r"])]
    function = helper.make_function("mine", "Square", ["p"], ["r"], body, [helper.make_opsetid("", 17)])
    model = make([node("Square", ["x"], ["y"], domain="mine")], {"x": [3]}, ["y"], domains={"mine": 1})
    model.functions.append(function)
    assert ops(optimized(model, tmp_path)) == ["eltwise"]


def test_data_dependent_shapes_live_inside_a_region(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("NonZero", ["r"], ["n"]),
        node("Shape", ["n"], ["s"]),
        node("Cast", ["s"], ["y"], to=FLOAT),
    ]
    assert ops(optimized(make(nodes, {"x": [5]}, ["y"]), tmp_path)) == ["eltwise", "region", "eltwise"]
    with pytest.raises(ModelError, match=r"output 'n': its shape depends on the data"):
        load(make(nodes[:2], {"x": [5]}, ["n"]), tmp_path)


def test_external_data(tmp_path: Path) -> None:
    model = make([node("Add", ["x", "c"], ["y"])], {"x": [50]}, ["y"], {"c": normal(50)})
    path = tmp_path / "m.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(load_model(path).constants["c"], normal(50))
    (tmp_path / "m.data").write_bytes(b"1234")
    with pytest.raises(ModelError, match=r"tensor 'c' ends at byte 200 of .*m\.data, which has 4 bytes"):
        load_model(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"m\.data, which does not exist"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"), (b"", "the file is empty"), (b"hello, this is text\n", "not an ONNX model"),
        (make([node("Relu", ["x"], ["y"])], {"x": [3]}, ["y"]).SerializeToString()[:-9], r"onnx: not a"),
    ],
    ids=["missing", "empty", "text", "truncated"],
)  # fmt: skip
def test_bad_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value) and "bad.onnx" in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Relu", ["missing"], ["y"])], r"node 'Relu_y' \(Relu\): input 'missing' is made by no earlier node"),
        ([node("Relu", ["x"], ["z"])], r"output 'y': expected the result of a node, found it is made by no node"),
        ([node("Frob", ["x"], ["y"], domain="my.ops")], r"node 'Frob_y': operator Frob is of unknown domain 'my.ops'"),
        ([node("Frob", ["x"], ["y"])], r"no operator Frob in opset 17"),
        ([node("MatMul", ["x", "x"], ["y"])], r"node 'MatMul_y' \(MatMul\): .*[Ii]ncompatible dimensions"),
        ([node("Gelu", ["x"], ["y"], domain="com.microsoft")], r"which the model does not import"),
    ],
)  # fmt: skip
def test_bad_nodes(nodes: list[onnx.NodeProto], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(make(nodes, {"x": [2, 3]}, ["y"]), tmp_path)
    assert "\n" not in str(caught.value)


def test_strings_and_passed_through_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected numbers, found strings"):
        load(make([node("Identity", ["x"], ["y"])], {"x": [3]}, ["y"], dtype=TensorProto.STRING), tmp_path)
    with pytest.raises(ModelError, match=r"output 'x': expected the result of a node, found it is an input"):
        model = make([], {"x": [3]}, ["x"])
        model.graph.output[0].CopyFrom(model.graph.input[0])
        load(model, tmp_path)


def test_too_many_weights_for_one_model(tmp_path: Path) -> None:
    graph = load(make([node("Add", ["x", "c"], ["y"])], {"x": [3]}, ["y"], {"c": normal(3)}), tmp_path)
    huge = np.broadcast_to(np.float32(1), (3 << 28,))
    with pytest.raises(ModelError, match=r"3\.0 GiB of weights, expected at most 2 GiB"):
        export_model(
            type(graph)(graph.name, graph.inputs, graph.outputs, graph.nodes, graph.types, {"c": huge})
        )
