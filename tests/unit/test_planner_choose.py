"""The global choice of implementations and layouts, with invented times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest

from wpk.core.errors import InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.result import Config, Measurement
from wpk.core.target import Target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.graph.graph import Graph, Node
from wpk.planner.candidates import SEGMENT, Catalogue
from wpk.planner.choose import Choices, choose
from wpk.planner.layouts import same_bytes, slices, variants
from wpk.providers.protocol import Code, Support
from wpk.search.space import Space

TARGET = Target("x86_64", "test", ("avx512", "avx2", "scalar"), 2, 1 << 15, 1 << 20, 1 << 25, 2)
BLOCKED = "NCHW16c"
CONV = (("dilations", (1, 1)), ("group", 1), ("pads", (1, 1, 1, 1)), ("strides", (1, 1)))


@dataclass(frozen=True)
class Fake:
    """A provider of everything but what ``refuses`` names."""

    name: str = "fake"
    version: str = "1"
    refuses: tuple[str, ...] = ()

    def supports(self, workload: Workload, target: Target) -> Support:
        return Support(workload.op not in self.refuses, f"{self.name} has no {workload.op}")

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(())

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        return Code("onednn", spec={})

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        return list(constants)


@dataclass
class Times:
    """Invented times: (op, input layout, output layout) → seconds by provider. Others are not measured."""

    table: dict[tuple[str, str, str], dict[str, float | str]] = field(default_factory=dict)

    def best(self, workload: Workload) -> list[tuple[str, Config, Measurement]]:
        row = self.table.get((workload.op, workload.inputs[0].layout, workload.outputs[0].layout), {})
        return [
            (name, {}, Measurement(failure=t) if isinstance(t, str) else Measurement(samples=(t,)))
            for name, t in row.items()
        ]


def chain(*ops: str, outputs: Sequence[str] = ()) -> Graph:
    """x → op → op …; conv has constant weights."""
    types = {"x": TensorType("float32", (1, 32, 8, 8)), "w": TensorType("float32", (32, 32, 3, 3))}
    nodes, last = [], "x"
    for i, op in enumerate(ops):
        name = f"{op}{i}"
        types[name] = types["x"]
        inputs = (last, "w") if op == "conv" else (last,)
        extra = CONV if op == "conv" else ()
        epilogue = parse("relu(in0)") if op == "eltwise" else None
        payload = b"-" if op == "onnx" else b""
        nodes.append(Node(name, op, inputs, (name,), extra, epilogue, (f"/m/{name}",), payload))
        last = name
    return Graph(
        "chain", ("x",), (*outputs, last), tuple(nodes), types, {"w": np.zeros((32, 32, 3, 3), np.float32)}
    )


def layouts(choices: Choices) -> list[str]:
    return [f.made for f in choices.forms.values()]


def uniform(op: str, row: float, blocked: float) -> dict[tuple[str, str, str], dict[str, float | str]]:
    return {(op, "ROW", "ROW"): {"fake": row}, (op, BLOCKED, BLOCKED): {"fake": blocked}}


def converts(seconds: float) -> dict[tuple[str, str, str], dict[str, float | str]]:
    pairs = [p for p in product(("ROW", BLOCKED, "NHWC"), repeat=2) if p[0] != p[1]]
    return {("convert", *p): {"fake": seconds} for p in pairs}


def test_a_faster_layout_is_taken_when_it_pays_for_its_conversions() -> None:
    graph = chain("conv", "conv", "conv")
    cheap = choose(graph, Catalogue((Fake(),), Times(uniform("conv", 10, 5) | converts(1)), TARGET))
    assert layouts(cheap) == ["ROW", BLOCKED, BLOCKED, BLOCKED] and cheap.seconds == pytest.approx(
        19, abs=1e-4
    )
    assert sorted(cheap.conversions) == [("conv2", "ROW"), ("x", BLOCKED)]
    dear = choose(graph, Catalogue((Fake(),), Times(uniform("conv", 10, 5) | converts(4)), TARGET))
    assert layouts(dear) == ["ROW"] * 4 and dear.seconds == 30 and not dear.conversions


def test_greedy_choices_are_not_made() -> None:
    """The middle node alone is faster row-major, but not by two conversions."""
    times = Times(uniform("conv", 10, 5) | uniform("eltwise", 1, 2) | converts(1))
    graph = chain("conv", "eltwise", "conv")
    choices = choose(graph, Catalogue((Fake(),), times, TARGET))
    assert choices.forms["eltwise1"].made == BLOCKED


def test_a_converted_copy_is_paid_for_once() -> None:
    """Three readers want the other layout: one conversion serves them all."""
    types = {v: TensorType("float32", (1, 32, 8, 8)) for v in ("x", "a", "b", "c")}
    nodes = tuple(Node(v, "eltwise", ("x",), (v,), (), parse("relu(in0)")) for v in ("a", "b", "c"))
    graph = Graph("fan", ("x",), ("a", "b", "c"), nodes, types)
    table = {("eltwise", "ROW", "ROW"): {"fake": 20.0}, ("eltwise", BLOCKED, BLOCKED): {"fake": 2.0}}
    choices = choose(graph, Catalogue((Fake(),), Times({**table, **converts(5)}), TARGET))
    assert list(choices.conversions) == [("x", BLOCKED), ("a", "ROW"), ("b", "ROW"), ("c", "ROW")]
    assert choices.seconds == pytest.approx(3 * 2 + 4 * 10, abs=1e-4)


def test_the_fastest_provider_wins_and_rivals_are_told() -> None:
    times = Times({("conv", "ROW", "ROW"): {"slow": 3.0, "fast": 1.0, "wrong": "wrong"}})
    providers = (Fake("slow"), Fake("fast"), Fake("wrong"), Fake("none", refuses=("conv",)))
    chosen = choose(chain("conv"), Catalogue(providers, times, TARGET)).nodes["conv0"].implementation
    assert (chosen.provider, chosen.seconds, chosen.measured) == ("fast", 1.0, True)
    assert chosen.rivals == (("slow", 3.0), ("wrong", "wrong"), ("none", "none has no conv"))


@pytest.mark.parametrize(("seconds", "taken"), [(1.0, "first"), (1.02, "first"), (1.05, "second")])
def test_within_the_tie_margin_the_first_provider_is_taken(seconds: float, taken: str) -> None:
    times = Times({("conv", "ROW", "ROW"): {"first": seconds, "second": 1.0}})
    catalogue = Catalogue((Fake("first"), Fake("second")), times, TARGET)
    chosen = choose(chain("conv"), catalogue).nodes["conv0"].implementation
    assert (chosen.provider, chosen.seconds) == (taken, seconds if taken == "first" else 1.0)


def test_onnxruntime_is_for_what_nothing_else_computes() -> None:
    times = Times({("conv", "ROW", "ROW"): {"onnxruntime": 1e-5, "fake": 2e-5}})
    chosen = choose(chain("conv"), Catalogue((Fake("onnxruntime"), Fake()), times, TARGET)).nodes["conv0"].implementation
    assert chosen.provider == "fake" and ("onnxruntime", 1e-5 + SEGMENT) in chosen.rivals
    alone = choose(chain("conv"), Catalogue((Fake("onnxruntime"),), times, TARGET)).nodes["conv0"].implementation
    assert alone.provider == "onnxruntime"


def test_measurements_of_providers_not_asked_for_do_not_count() -> None:
    times = Times({("conv", "ROW", "ROW"): {"other": 0.001, "fake": 1.0}})
    chosen = choose(chain("conv"), Catalogue((Fake(),), times, TARGET)).nodes["conv0"].implementation
    assert chosen.provider == "fake" and chosen.rivals == ()


def test_without_measurements_defaults_are_taken() -> None:
    choices = choose(chain("conv", "conv"), Catalogue((Fake(),), None, TARGET))
    assert all(not a.implementation.measured for a in choices.nodes.values())


def test_a_default_that_does_not_build_is_passed_over() -> None:
    class Broken(Fake):
        def build(self, workload: Workload, config: Config, target: Target) -> Code:
            raise InvalidConfig("no")

    chosen = choose(chain("conv"), Catalogue((Broken("broken"), Fake("sound")), None, TARGET)).nodes["conv0"]
    assert chosen.implementation.provider == "sound"


def test_what_failed_is_not_taken_unmeasured() -> None:
    times = Times({("conv", "ROW", "ROW"): {"a": "crash"}})
    chosen = choose(chain("conv"), Catalogue((Fake("a"), Fake("b")), times, TARGET)).nodes["conv0"]
    assert chosen.implementation.provider == "b"


def test_opaque_nodes_go_to_onnxruntime_row_major() -> None:
    choices = choose(
        chain("conv", "onnx", "conv"),
        Catalogue((Fake(),), Times(uniform("conv", 10, 5) | converts(1)), TARGET),
    )
    assert choices.nodes["onnx1"].implementation.provider == "onnxruntime"
    assert choices.forms["conv0"].has("ROW") and choices.forms["onnx1"].made == "ROW"


def test_model_outputs_exist_row_major() -> None:
    graph = chain("conv", "conv", outputs=("conv0",))
    choices = choose(graph, Catalogue((Fake(),), Times(uniform("conv", 10, 1) | converts(1)), TARGET))
    assert choices.forms["conv0"].made == BLOCKED and choices.forms["conv0"].converted == ("ROW",)


def test_what_nobody_can_compute_runs_in_onnxruntime() -> None:
    chosen = choose(chain("conv"), Catalogue((Fake(refuses=("conv",)),), None, TARGET)).nodes["conv0"]
    assert chosen.implementation.provider == "onnxruntime" and set(chosen.layouts.values()) == {"ROW"}
    assert chosen.implementation.rivals == (("fake", "fake has no conv"),)


def typed(*shape: int, layout: str = "ROW") -> TensorType:
    return TensorType("float32", shape, layout)


@pytest.mark.parametrize("layout", ["ROW", "NHWC", "NCHW16c", "NCHW8c"])
@pytest.mark.parametrize("other", ["ROW", "NHWC", "NCHW16c", "NCHW8c"])
@pytest.mark.parametrize(
    "shape", [(2, 16, 3, 3), (2, 32, 1, 1), (1, 1, 3, 3), (2, 8, 3, 3), (2, 20, 1, 1), (2, 16, 1, 3)]
)
def test_same_bytes_says_what_moving_bytes_says(shape: tuple[int, ...], layout: str, other: str) -> None:
    from wpk.core.tensor import to_layout

    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    same = np.array_equal(to_layout(array, layout).ravel(), to_layout(array, other).ravel())
    found = same_bytes(typed(*shape, layout=layout), other)
    assert found == same or (same and not found and 1 in shape[1:])  # never wrongly true


def test_slices() -> None:
    node = Node("c", "concat", ("a", "b"), ("y",), (("axis", 1),))
    blocked = [typed(1, 16, 2, 2, layout=BLOCKED), typed(1, 20, 2, 2, layout=BLOCKED)]
    assert slices(node, blocked, typed(1, 36, 2, 2, layout=BLOCKED)) == (1, [256, 512])
    assert slices(node, blocked[::-1], typed(1, 36, 2, 2, layout=BLOCKED)) is None
    assert slices(node, [typed(3, 1, 2), typed(3, 2, 2)], typed(3, 3, 2)) == (3, [8, 16])
    assert slices(node, [typed(2, 4, 3, 3, layout="NHWC")] * 2, typed(2, 8, 3, 3, layout="NHWC")) == (
        18,
        [16, 16],
    )


def test_variants_leave_constants_alone() -> None:
    graph = chain("conv")
    found = variants(graph, graph.nodes[0], TARGET)
    assert {"x": "ROW", "conv0": "ROW"} in found and {"x": BLOCKED, "conv0": BLOCKED} in found
    assert all("w" not in v for v in found)
