"""Real providers are measured by the real measurer, against the default oracle."""

from collections.abc import Iterator

import pytest

from wpk.core.pointwise import Acc, Input, apply
from wpk.core.target import host_target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.measure.measurer import MeasureOptions, Measurer, cpu_measurer
from wpk.measure.timer import Timing
from wpk.measure.toolchain import find_compiler
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers

RELU_BIAS = apply("relu", apply("add", Acc(), Input(2)))


def conv(layout: str) -> Workload:
    """3×3, 16 → 32 channels, bias and relu; weights and bias constant."""
    x, w = TensorType("float32", (1, 16, 9, 9), layout), TensorType("float32", (32, 16, 3, 3))
    y, bias = TensorType("float32", (1, 32, 9, 9), layout), TensorType("float32", (1, 32, 1, 1))
    attrs = (("dilations", (1, 1)), ("group", 1), ("pads", (1, 1, 1, 1)), ("strides", (1, 1)))
    return Workload("conv", (x, w, bias), (y,), attrs, RELU_BIAS, (1, 2))


def gemm() -> Workload:
    """One row times a constant matrix."""
    a, b, c = (TensorType("float32", s) for s in ((1, 96), (40, 96), (1, 40)))
    return Workload("gemm", (a, b), (c,), (("trans_a", False), ("trans_b", True)), None, (1,))


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    options = MeasureOptions(timing=Timing(max_seconds=0.005))
    with cpu_measurer(host_target(2), tmp_path_factory.mktemp("cache"), find_compiler(), options=options) as made:
        yield made


WORKLOADS = {"conv": conv("ROW"), "conv16c": conv("NCHW16c"), "gemm": gemm()}
PAIRS = [
    pytest.param(w, p, id=f"{key}-{p.name}")
    for key, w in WORKLOADS.items()
    for p in providers()
    if p.supports(w, host_target(2))
]


@pytest.mark.parametrize("key", WORKLOADS)
def test_libraries_and_generated_code_compete(key: str) -> None:
    mine = {str(p.id) for p in PAIRS if str(p.id).startswith(f"{key}-")}
    assert any("generated" in name for name in mine) and len(mine) >= 2


@pytest.mark.parametrize(("workload", "provider"), PAIRS)
def test_the_default_of_every_provider_is_right(measurer: Measurer, workload: Workload, provider: Provider) -> None:
    found = measurer.measure(workload, provider, [provider.space(workload, measurer.target).default()])[0]
    assert found.ok, found.detail
    assert found.error <= found.tolerance and found.accuracy == ("winograd" if "winograd" in provider.name else "direct")
    assert found.cache_state == ("warm" if provider.name == "onnxruntime" else "cold-weights")


def test_providers_are_timed_in_turns(measurer: Measurer) -> None:
    some = [p for p in providers() if p.supports(conv("ROW"), measurer.target)]
    rivals = [(p, p.space(conv("ROW"), measurer.target).default()) for p in some]
    assert all(m.ok for m in measurer.measure_again(conv("ROW"), rivals, rounds=2))


def test_every_output_is_checked(measurer: Measurer) -> None:
    x, parts = TensorType("float32", (1, 48, 5, 5)), [TensorType("float32", (1, c, 5, 5)) for c in (16, 32)]
    split = Workload("split", (x,), tuple(parts), (("axis", 1), ("sizes", (16, 32))))
    (provider,) = providers(["onnxruntime"])
    found = measurer.measure(split, provider, [provider.space(split, measurer.target).default()])[0]
    assert found.ok, found.detail
