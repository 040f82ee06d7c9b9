"""Whole plans: a small network planned, run, and compared with ONNX Runtime; opaque nodes, batches, determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from wpk.core.pointwise import parse
from wpk.core.result import Config, Measurement
from wpk.core.target import host_target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_io import export_model
from wpk.measure.toolchain import find_compiler
from wpk.planner.contract import OURS, TimingOptions, candidate_plans, decide, measure_plans, model_workload
from wpk.planner.demand import unmeasured, wanted
from wpk.planner.emit import Tools
from wpk.planner.plan import make_tools, plan_model, session_plan
from wpk.providers.onednn import OneDnn
from wpk.runtime.plan import Plan
from wpk.runtime.runner import Runner

ONEDNN = OneDnn()
TARGET = host_target(threads=2)
pytestmark = pytest.mark.skipif(ONEDNN.path is None, reason="oneDNN is not installed")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    folder: Path = tmp_path_factory.mktemp("cache")
    return make_tools(TARGET, find_compiler(), folder)


class Net:
    """Builds a graph node by node."""

    def __init__(self, *shape: int) -> None:
        self.types = {"x": TensorType("float32", shape)}
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.rng = np.random.default_rng(0)

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = (self.rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(
            np.float32
        )
        self.types[name] = TensorType("float32", shape)
        return name

    def add(
        self,
        op: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        epilogue: str | None = None,
        **attrs: object,
    ) -> str:
        name = f"{op}{len(self.nodes)}"
        self.types[name] = TensorType("float32", shape)
        point = parse(epilogue) if epilogue else None
        self.nodes.append(Node(name, op, inputs, (name,), tuple(sorted(attrs.items())), point, (f"/{name}",)))  # type: ignore[arg-type]
        return name

    def conv(self, x: str, channels: int, k: int, residual: str | None = None) -> str:
        n, c, h, w = self.types[x].shape
        inputs = (
            x,
            self.constant(channels, c, k, k),
            self.constant(1, channels, 1, 1),
            *([residual] if residual else []),
        )
        epilogue = "relu(add(add(acc,in2),in3))" if residual else "relu(add(acc,in2))"
        pads = (k // 2,) * 4
        return self.add(
            "conv", inputs, (n, channels, h, w), epilogue, dilations=(1, 1), group=1, pads=pads, strides=(1, 1)
        )  # fmt: skip

    def concat(self, *parts: str) -> str:
        n, _, h, w = self.types[parts[0]].shape
        return self.add("concat", parts, (n, sum(self.types[p].shape[1] for p in parts), h, w), axis=1)

    def opaque(self, x: str, op_type: str) -> str:
        node = helper.make_node(op_type, [x], ["y"])
        attrs = {"digest": op_type, "domain": "", "imports": (":17",), "onnx_op": op_type, "opset": 17}
        name = self.add("onnx", (x,), self.types[x].shape, **attrs)
        self.nodes[-1] = Node(
            name, "onnx", (x,), (name,), self.nodes[-1].attrs, None, (), node.SerializeToString()
        )
        return name

    def graph(self, *outputs: str) -> Graph:
        return Graph("net", ("x",), outputs, tuple(self.nodes), self.types, self.constants)


def network(batch: int = 1) -> Graph:
    """Branches, nested concats, a residual, a view, a product, a softmax; an inner value is an output too."""
    net = Net(batch, 3, 12, 12)
    a = net.conv("x", 32, 3)
    c = net.concat(net.conv(a, 16, 1), net.conv(a, 32, 3), net.conv(a, 24, 3))
    d = net.concat(c, net.conv(c, 16, 3))
    e = net.conv(d, 88, 1, residual=d)
    pooled = net.add(
        "pool", (e,), (batch, 88, 1, 1), count_include_pad=0, dilations=(1, 1), kernel=(12, 12), kind="avg",
        pads=(0, 0, 0, 0), strides=(1, 1),
    )  # fmt: skip
    flat = net.add("view", (pooled,), (batch, 88))
    fc = net.add(
        "gemm",
        (flat, net.constant(10, 88), net.constant(1, 10)),
        (batch, 10),
        "add(acc,in2)",
        trans_a=0,
        trans_b=1,
    )
    return net.graph(net.add("softmax", (fc,), (batch, 10), axis=1), e, fc)


def opaque_network() -> Graph:
    """Two opaque nodes in a row with a view between, native ones around, and an opaque output."""
    net = Net(1, 16, 6, 6)
    a = net.conv("x", 16, 3)
    b = net.opaque(net.opaque(a, "Celu"), "Softsign")
    c = net.conv(b, 32, 1)
    return net.graph(c, net.opaque(c, "Celu"))


def feeds(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {v: rng.standard_normal(graph.types[v].shape).astype(np.float32) for v in graph.inputs}


def reference(graph: Graph) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(export_model(graph), providers=["CPUExecutionProvider"])
    result: list[np.ndarray] = session.run(list(graph.outputs), feeds(graph))
    return result


def assert_right(graph: Graph, found: list[np.ndarray]) -> None:
    for name, a, b in zip(graph.outputs, found, reference(graph), strict=True):
        assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b), name


@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_computes_what_onnxruntime_computes(tools: Tools, batch: int) -> None:
    graph = network(batch)
    parts = plan_model(graph, None, TARGET, [ONEDNN], tools)
    with Runner(parts) as runner:
        first = runner.run(None, feeds(graph))
        again = runner.run(None, feeds(graph))
    assert_right(graph, first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    copies = [s.name for s in parts.plan.steps if s.kind == "copy"]
    assert not copies if batch == 1 else all(c.startswith("concat") for c in copies)


def test_opaque_nodes_run_as_one_region_each_run(tools: Tools) -> None:
    graph = opaque_network()
    parts = plan_model(graph, None, TARGET, [ONEDNN], tools)
    assert [s.kind for s in parts.plan.steps if s.kind == "onnxruntime"] == ["onnxruntime"] * 2
    assert len(parts.models) == 2
    with Runner(parts) as runner:
        assert_right(graph, runner.run(None, feeds(graph)))


def test_the_same_choices_give_the_same_plan(tools: Tools) -> None:
    plans = [plan_model(network(), None, TARGET, [OneDnn()], tools).plan for _ in range(2)]
    assert plans[0] == plans[1] and plans[0].hash == plans[1].hash
    assert Plan.from_json(plans[0].to_json()) == plans[0]
    assert plan_model(network(2), None, TARGET, [ONEDNN], tools).plan.hash != plans[0].hash


def test_equal_weights_are_kept_once(tools: Tools) -> None:
    net = Net(1, 16, 4, 4)
    a = net.conv("x", 16, 1)
    b = net.conv(a, 16, 1)
    weights = net.nodes[0].inputs[1:]
    net.nodes[1] = Node(b, "conv", (a, *weights), (b,), net.nodes[1].attrs, net.nodes[1].epilogue)
    parts = plan_model(net.graph(b), None, TARGET, [ONEDNN], tools)
    assert len(parts.weights) == 2


def test_every_step_has_a_choice_that_explains_it(tools: Tools) -> None:
    plan = plan_model(network(), None, TARGET, [ONEDNN], tools).plan
    choices = {c.node: c for c in plan.choices}
    assert {s.name for s in plan.steps} <= set(choices)
    conv = choices["conv0"]
    assert conv.provider == "onednn" and conv.origin == ("/conv0",) and conv.flops > 2 * 32 * 27 * 144
    assert plan.meta is not None and plan.meta["predicted_s"] > 0


def test_the_whole_model_as_a_session(tools: Tools) -> None:
    graph = network()
    parts = session_plan(graph, export_model(graph), TARGET, tools)
    with Runner(parts) as runner:
        assert_right(graph, runner.run(None, feeds(graph)))


class Table:
    """Every workload seen takes ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.known: set[Workload] = set()

    def best(self, workload: Workload) -> list[tuple[str, Config, Measurement]]:
        if workload not in self.known:
            return []
        config = ONEDNN.space(workload, TARGET).default()
        return [("onednn", config, Measurement(samples=(self.seconds,)))]


def test_measuring_what_is_asked_for_ends(tools: Tools) -> None:
    graph, table = network(), Table(1e-5)
    table.known |= {w for _, w in wanted(graph, TARGET) if ONEDNN.supports(w, TARGET)}
    rounds = []
    while missing := unmeasured(graph, table, TARGET, [ONEDNN]):
        assert all(w.op == "convert" for _, w in missing)
        table.known |= {w for _, w in missing}
        rounds.append(len(missing))
        assert len(rounds) < 10
    plan = plan_model(graph, table, TARGET, [ONEDNN], tools).plan
    assert all(c.seconds is not None for c in plan.choices)


def test_the_contract_end_to_end(tools: Tools) -> None:
    graph = network()
    plans = candidate_plans(graph, export_model(graph), None, TARGET, [ONEDNN], tools)
    assert list(plans) == [OURS]
    plans["onnxruntime"] = session_plan(graph, export_model(graph), TARGET, tools)
    options = TimingOptions(rounds=3, most=3, seconds=0.0)
    measured = measure_plans(plans, feeds(graph), reference(graph), 1e-5, options)
    assert all(m.ok and len(m.samples) == 3 for m in measured.values())
    assert decide(measured).winner in plans
    wrong = [a + 1 for a in reference(graph)]
    failed = measure_plans(plans, feeds(graph), wrong, 1e-5, options)
    assert {m.failure for m in failed.values()} == {"wrong"}


def test_model_workloads_tell_models_apart() -> None:
    assert model_workload(network()) == model_workload(network())
    assert len({model_workload(g).key for g in (network(), network(2), opaque_network())}) == 3
