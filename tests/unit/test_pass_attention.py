"""Attention as exporters write it becomes one node, where there is a kernel for it; its transposes vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_build import make, node, normal, ops, optimized

from benchmarks.encoder import Size, encoder
from wpk.core.target import host_target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph
from wpk.graph.onnx_io import load_model
from wpk.ops.attention import heads_of
from wpk.passes import default_pipeline, format_pipeline, parse_pipeline, run_pipeline
from wpk.passes.pipeline import Attention
from wpk.passes.precision import lowered
from wpk.providers.reference import reference_output
from wpk.providers.registry import providers

EVERYTHING = default_pipeline(attention=lambda workload: True, join=True)
BATCH, LENGTH, HEADS, SIZE = 2, 5, 3, 4
CONSTANTS = {
    "split": np.array([BATCH, LENGTH, HEADS, SIZE]), "joined": np.array([BATCH, LENGTH, HEADS * SIZE]),
    "root": np.array(2.0, np.float32), "scale": np.array(0.5, np.float32), "zero": np.array(0.0, np.float32),
}  # fmt: skip


def heads(name: str, perm: list[int]) -> list[onnx.NodeProto]:
    """The rows ``name`` by heads, as ``name``h."""
    return [node("Reshape", [name, "split"], [f"{name}r"]), node("Transpose", [f"{name}r"], [f"{name}h"], perm=perm)]


def spelled(middle: list[onnx.NodeProto], scores: str = "s", by_rows: bool = True, **inputs: list[int]) -> onnx.ModelProto:
    """softmax(``middle`` of q·kᵀ)·v; ``middle`` makes ``scores`` from ``p``."""
    nodes = [*heads("q", [0, 2, 1, 3]), *heads("k", [0, 2, 3, 1]), *heads("v", [0, 2, 1, 3])]
    nodes += [node("MatMul", ["qh", "kh"], ["p"]), *middle, node("Softmax", [scores], ["w"], axis=-1)]
    nodes += [node("MatMul", ["w", "vh"], ["o"])]
    if by_rows:
        nodes += [node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]), node("Reshape", ["t", "joined"], ["y"])]
    rows = {x: [BATCH, LENGTH, HEADS * SIZE] for x in "qkv"}
    return make(nodes, {**rows, **inputs}, ["y" if by_rows else "o"], CONSTANTS)


def only(graph: Graph) -> tuple[Any, ...]:
    """Shapes and scores of the one node there is."""
    (found,) = graph.nodes
    assert found.op == "attention"
    return *(graph.types[v].shape for v in found.inputs), found.attr("scores")


ROWS = (BATCH, LENGTH, HEADS * SIZE)


@pytest.mark.parametrize(
    ("middle", "scores"),
    [
        ([], "acc"),
        ([node("Div", ["p", "root"], ["s"])], "div(acc,2.0)"),
        ([node("Mul", ["p", "scale"], ["s"])], "mul(acc,0.5)"),
    ],
)
def test_factors(middle: list[onnx.NodeProto], scores: str, tmp_path: Path) -> None:
    graph = optimized(spelled(middle, "s" if middle else "p"), tmp_path, EVERYTHING)
    assert only(graph) == (ROWS, ROWS, ROWS, scores)


def test_a_factor_in_front(tmp_path: Path) -> None:
    model = spelled([], "p")
    scaled = model.graph.node[1]
    scaled.output[0] = "unscaled"
    model.graph.node.insert(2, node("Mul", ["unscaled", "scale"], ["qh"]))
    assert only(optimized(model, tmp_path, EVERYTHING)) == (ROWS, ROWS, ROWS, "mul(acc,0.5)")


@pytest.mark.parametrize("mask", [[BATCH, 1, 1, LENGTH], [LENGTH, LENGTH], [1, HEADS, LENGTH, LENGTH]])
def test_masks(mask: list[int], tmp_path: Path) -> None:
    model = spelled([node("Mul", ["p", "scale"], ["f"]), node("Add", ["f", "mask"], ["s"])], mask=mask)
    graph = optimized(model, tmp_path, EVERYTHING)
    assert only(graph) == (ROWS, ROWS, ROWS, tuple(mask), "add(mul(acc,0.5),in3)")


def test_a_condition_that_is_computed(tmp_path: Path) -> None:
    middle = [node("Less", ["mask", "zero"], ["c"]), node("Where", ["c", "zero", "p"], ["s"])]
    graph = optimized(spelled(middle, mask=[BATCH, 1, 1, LENGTH]), tmp_path, EVERYTHING)
    assert ops(graph) == ["eltwise", "attention"] and graph.types[graph.nodes[1].inputs[3]].dtype == "bool"


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    model = spelled([], "p")
    model.graph.node[-4].output[0] = "unsafe"
    guard = [node("IsNaN", ["unsafe"], ["n"]), node("Where", ["n", "zero", "unsafe"], ["w"])]
    for new in guard:
        model.graph.node.insert(len(model.graph.node) - 3, new)
    graph = optimized(model, tmp_path, EVERYTHING)
    assert graph.nodes[0].attr("safe") == 1 and ops(graph) == ["attention"]


def test_heads_stay_in_front_where_others_want_them(tmp_path: Path) -> None:
    graph = optimized(spelled([], "p", by_rows=False), tmp_path, EVERYTHING)
    assert only(graph)[:3] == (ROWS, ROWS, ROWS) and graph.nodes[0].attr("rows") == 0


def test_keys_that_are_an_input(tmp_path: Path) -> None:
    """Turned keys are turned back; batches of three dimensions have a batch of one in front."""
    nodes = [node("MatMul", ["q", "k"], ["p"]), node("Softmax", ["p"], ["w"], axis=-1), node("MatMul", ["w", "v"], ["y"])]
    model = make(nodes, {"q": [3, 5, 4], "k": [3, 4, 6], "v": [3, 6, 2]}, ["y"])
    graph = optimized(model, tmp_path, EVERYTHING)
    assert sorted(ops(graph)) == ["attention", "transpose", "view", "view", "view", "view"]
    found = next(n for n in graph.nodes if n.op == "attention")
    assert [graph.types[v].shape for v in found.inputs] == [(1, 3, 5, 4), (1, 3, 6, 4), (1, 3, 6, 2)]


@pytest.mark.parametrize("shapes", [([2, 1, 5, 4], [2, 3, 4, 6], [2, 3, 6, 2]), ([2, 3, 5, 4], [2, 3, 4, 6], [2, 1, 6, 2])])
def test_operands_that_broadcast_over_heads(shapes: tuple[list[int], ...], tmp_path: Path) -> None:
    nodes = [node("MatMul", ["q", "k"], ["p"]), node("Softmax", ["p"], ["w"], axis=-1), node("MatMul", ["w", "v"], ["y"])]
    model = make(nodes, dict(zip("qkv", shapes, strict=True)), ["y"])
    assert "attention" not in ops(optimized(model, tmp_path, EVERYTHING))


@pytest.mark.parametrize("which", ["q", "k"])
def test_an_operand_that_is_constant(which: str, tmp_path: Path) -> None:
    nodes = [node("MatMul", ["q", "k"], ["p"]), node("Softmax", ["p"], ["w"], axis=-1), node("MatMul", ["w", "v"], ["y"])]
    shapes = {"q": [3, 5, 4], "k": [3, 4, 6], "v": [3, 6, 2]}
    model = make(nodes, {x: s for x, s in shapes.items() if x != which}, ["y"], {which: normal(*shapes[which])})
    graph = optimized(model, tmp_path, EVERYTHING)
    (found,) = [n for n in graph.nodes if n.op == "attention"]
    assert found.inputs["qkv".index(which)] in graph.constants


def test_keys_of_all_heads(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["q", "k"], ["p"]), node("Softmax", ["p"], ["w"], axis=-1), node("MatMul", ["w", "v"], ["y"])]
    model = make(nodes, {"q": [2, 3, 5, 4], "k": [2, 1, 4, 6], "v": [2, 1, 6, 2]}, ["y"])
    assert "attention" in ops(optimized(model, tmp_path, EVERYTHING))


@pytest.mark.parametrize("why", ["read", "axis", "fits", "broadcast"])
def test_what_stays(why: str, tmp_path: Path) -> None:
    model = spelled([node("Mul", ["p", "scale"], ["s"])])
    pipeline: Any = EVERYTHING
    if why == "read":
        model.graph.output.append(onnx.ValueInfoProto(name="w"))
    elif why == "axis":
        model.graph.node[8].attribute[0].i = 2
    elif why == "fits":
        pipeline = default_pipeline(attention=lambda workload: False)
    else:
        nodes = [node("MatMul", ["q", "k"], ["p"]), node("Softmax", ["p"], ["w"], axis=-1), node("MatMul", ["w", "v"], ["y"])]
        model = make(nodes, {"q": [2, 3, 5, 4], "k": [1, 3, 4, 6], "v": [2, 3, 6, 2]}, ["y"])
    trace: list[str] = []
    graph = optimized(model, tmp_path, pipeline, trace)
    assert "attention" not in ops(graph) and any("attention" in line and "declined" in line for line in trace)


def test_by_default_nothing_is_joined(tmp_path: Path) -> None:
    assert "attention" not in ops(optimized(spelled([], "p"), tmp_path))


@pytest.mark.parametrize("causal", [False, True])
def test_an_encoder(causal: bool, tmp_path: Path) -> None:
    size = Size(layers=2, hidden=32, heads=2, length=6, words=9, causal=causal)
    path = tmp_path / "encoder.onnx"
    onnx.save_model(encoder(size), str(path))
    graph = run_pipeline(load_model(path), EVERYTHING)
    assert ops(graph).count("attention") == 2 and not {"softmax", "matmul", "transpose"} & set(ops(graph))
    assert ops(graph).count("gemm") == 2 * 4 + 1 and all(n.attr("packed") for n in graph.nodes if n.op == "attention")


def products(bias: str, shared: bool = False, keys: str = "x") -> onnx.ModelProto:
    """Attention of three products of x (k's of ``keys``); ``bias``: the operands that have one."""
    nodes, constants = [], dict(CONSTANTS)
    for i, name in enumerate("qkv"):
        nodes.append(node("MatMul", [keys if name == "k" else "x", f"w{name}"], [f"m{name}" if name in bias else name]))
        constants[f"w{name}"] = normal(8, HEADS * SIZE, seed=i)
        if name in bias:
            nodes.append(node("Add", [f"b{name}", f"m{name}"], [name]))
            constants[f"b{name}"] = normal(HEADS * SIZE, seed=i)
    nodes += spelled([], "p").graph.node
    inputs = {x: [BATCH, LENGTH, 8] for x in {"x", keys}}
    return make(nodes, inputs, ["y", *(["k"] if shared else [])], constants)


@pytest.mark.parametrize("bias", ["qkv", "", "qv"])
def test_products_of_one_activation_become_one(bias: str, tmp_path: Path) -> None:
    graph = optimized(products(bias), tmp_path, EVERYTHING)
    assert ops(graph) == ["view", "gemm", "view", "attention"] and graph.nodes[-1].attr("packed") == 1
    assert len(graph.nodes[1].inputs) == (3 if bias else 2)


@pytest.mark.parametrize(("shared", "keys"), [(True, "x"), (False, "z")])
def test_products_that_stay_apart(shared: bool, keys: str, tmp_path: Path) -> None:
    graph = optimized(products("qkv", shared, keys), tmp_path, EVERYTHING)
    assert ops(graph).count("gemm") == 3 and ops(graph).count("attention") == 1
    assert all(n.attr("packed") == 0 for n in graph.nodes if n.op == "attention")


@pytest.mark.parametrize("order", ["012", "102"])
def test_one_product_cut_in_three(order: str, tmp_path: Path) -> None:
    """As vision transformers have it; what is not in order is left as it is."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Reshape", ["m", "five"], ["f"])]
    nodes += [node("Transpose", ["f"], ["t"], perm=[2, 0, 3, 1, 4])]
    nodes += [node("Gather", ["t", f"i{i}"], [name], axis=0) for i, name in zip(order, "qkv", strict=True)]
    nodes += [node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["p"])]
    nodes += [node("Softmax", ["p"], ["a"]), node("MatMul", ["a", "v"], ["o"])]
    nodes += [node("Transpose", ["o"], ["r"], perm=[0, 2, 1, 3]), node("Reshape", ["r", "joined"], ["y"])]
    numbers = {f"i{i}": np.array(i) for i in range(3)} | {"five": np.array([BATCH, LENGTH, 3, HEADS, SIZE])}
    model = make(nodes, {"x": [BATCH, LENGTH, 8]}, ["y"], {**CONSTANTS, **numbers, "w": normal(8, 3 * HEADS * SIZE)})
    graph = optimized(model, tmp_path, EVERYTHING)
    if order == "012":
        assert ops(graph) == ["view", "gemm", "view", "attention"]
    assert ops(graph).count("attention") == 1


FORMS: dict[str, tuple[dict[str, list[int]], dict[str, Any]]] = {
    "rows": ({"q": [2, 5, 12], "k": [2, 7, 12], "v": [2, 7, 18]}, {"q_num_heads": 3, "kv_num_heads": 3}),
    "heads": ({"q": [2, 3, 5, 4], "k": [2, 3, 7, 4], "v": [2, 3, 7, 6]}, {}),
    "causal": ({"q": [2, 3, 5, 4], "k": [2, 3, 5, 4], "v": [2, 3, 5, 6]}, {"is_causal": 1, "scale": 0.3}),
    "cap": ({"q": [1, 1, 5, 4], "k": [1, 1, 7, 4], "v": [1, 1, 7, 6]}, {"softcap": 2.0}),
    "mask": ({"q": [2, 3, 5, 4], "k": [2, 3, 7, 4], "v": [2, 3, 7, 6], "mask": [2, 1, 5, 7]}, {}),
    "condition": ({"q": [2, 3, 5, 4], "k": [2, 3, 7, 4], "v": [2, 3, 7, 6], "mask": [5, 7]}, {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("joined", [False, True])
def test_onnx_attention(form: str, joined: bool, tmp_path: Path) -> None:
    inputs, attrs = FORMS[form]
    nodes = [node("Attention", ["q", "k", "v", *(["c" if form == "condition" else "mask"] if "mask" in inputs else [])], ["y"])]
    for name, value in attrs.items():
        nodes[0].attribute.append(onnx.helper.make_attribute(name, value))
    if form == "condition":
        nodes.insert(0, node("Less", ["mask", "half"], ["c"]))
    model = make(nodes, inputs, ["y"], {"half": np.array(0.5, np.float32)} if form == "condition" else {}, opset=23)
    model.ir_version = 11
    graph = optimized(model, tmp_path, EVERYTHING if joined else None)
    assert not {"region", "onnx"} & set(ops(graph)) and ops(graph).count("attention") == joined
    if joined:
        assert not {"transpose", "softmax", "matmul"} & set(ops(graph))


def test_onnx_attention_with_a_past_stays(tmp_path: Path) -> None:
    inputs = {"q": [1, 2, 3, 4], "k": [1, 2, 3, 4], "v": [1, 2, 3, 4], "pk": [1, 2, 5, 4], "pv": [1, 2, 5, 4]}
    model = make([node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "a", "b"])], inputs, ["y"], opset=23)
    model.ir_version = 11
    assert ops(optimized(model, tmp_path, EVERYTHING)) == ["region"]


def test_text() -> None:
    assert format_pipeline((Attention(lambda workload: False),)) == "attention"
    assert parse_pipeline("attention,attention{join=true}") == (Attention(), Attention(join=True))


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Of (B, H, L, D)."""
    scores = q @ k.transpose(0, 1, 3, 2) * 0.5 + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_reference_means_what_the_table_says(groups: int) -> None:
    q, k, v = normal(2, 3, 32), normal(2, groups, 5, 8, seed=1), normal(2, 5, groups * 6, seed=2)
    mask = normal(2, 1, 1, 5, seed=3)
    types = tuple(TensorType("float32", x.shape) for x in (q, k, v, mask))
    attrs = (("heads", 4), ("packed", 0), ("rows", 1), ("safe", 0), ("scores", "add(mul(acc,0.5),in3)"))
    workload = Workload("attention", types, (TensorType("float32", (2, 3, 24)),), attrs)
    a = heads_of(types, dict(attrs))
    assert (a.batch, a.heads, a.groups, a.queries, a.keys, a.size, a.values) == (2, 4, groups, 3, 5, 8, 6)
    (found,) = reference_output(workload, [q, k, v, mask])
    k, v = (np.repeat(x, 4 // groups, 1) for x in (k, v.reshape(2, 5, groups, 6).transpose(0, 2, 1, 3)))
    expected = by_hand(q.reshape(2, 3, 4, 8).transpose(0, 2, 1, 3), k, v, mask)
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1, 3).reshape(2, 3, 24), rtol=1e-5, atol=1e-5)


def test_operands_of_scores_keep_their_precision(tmp_path: Path) -> None:
    model = spelled([node("Add", ["p", "mask"], ["s"])], mask=[BATCH, 1, 1, LENGTH])
    graph = optimized(model, tmp_path, EVERYTHING)
    half = lowered(graph, "fp16")
    found = next(n for n in half.nodes if n.op == "attention")
    assert [half.types[v].dtype for v in found.inputs] == ["float16"] * 3 + ["float32"]
    fast = next(n for n in lowered(graph, "tf32").nodes if n.op == "attention")
    assert dict(fast.attrs)["precision"] == "tf32"


def test_only_kernels_of_their_own_are_a_reason() -> None:
    """ONNX Runtime could make one as well as three, and is no reason to join them."""
    target = host_target(1)
    mask = TensorType("float32", (1, 1, 1, 8))
    rows = TensorType("float32", (1, 8, 64))
    attrs = (("heads", 2), ("packed", 0), ("rows", 1), ("safe", 0), ("scores", "add(acc,in3)"))
    workload = Workload("attention", (rows, rows, rows, mask), (rows,), attrs)
    assert {p.name for p in providers(None, target) if p.supports(workload, target).ok} == {"generated:attention"}
