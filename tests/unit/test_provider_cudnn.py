"""cuDNN without cuDNN: what is refused and why, the space, what a call says; whether the double is like the real package."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from dataclasses import replace
from typing import Any

import cudnn_double as double
import pytest
from cuda_workloads import conv, gemm, pool
from cudnn_double import H200, PLANS, Here, Install, Plan, installer, with_epilogue

from wpk.core.errors import DeviceError, InvalidConfig
from wpk.core.target import host_target
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.measure.emulated import EmulatedDevice
from wpk.providers.cudnn import Cudnn
from wpk.providers.cudnn_ops import Unsupported, lower
from wpk.providers.registry import providers
from wpk.runtime.cuda.cudnn_call import CudnnCall


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    return installer(monkeypatch)


def with_image(image: TensorType) -> Workload:
    made = conv(3, 4, 5, 3)
    return replace(made, inputs=(image, *made.inputs[1:]))


# What is refused


def test_absent_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)  # importing it fails as if it were not there
    provider = Cudnn()
    assert provider.version == "absent"
    refused = provider.supports(conv(16, 24, 9, 3), H200)
    assert not refused and "wpk[cuda]" in refused.reason and "not installed" in refused.reason
    assert next(provider.space(conv(16, 24, 9, 3), H200).enumerate(), None) is None


def test_a_frontend_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
    module = install(PLANS).module()

    def missing() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    module.backend_version = missing
    monkeypatch.setitem(sys.modules, "cudnn", module)
    assert "nvidia-cudnn" in Cudnn().supports(conv(16, 24, 9, 3), H200).reason


@pytest.mark.parametrize(
    ("workload", "reason"),
    [
        (gemm(4, 4, 4), "only convolutions, not gemm"),
        (pool("max", 9, 3, 2, 1, "float32", "ROW"), "frontend of cuDNN has no pooling"),
        (conv(16, 24, 9, 3, dtype="float64"), "float64: expected float32, float16, bfloat16"),
        (conv(16, 32, 9, 3, layout="NCHW16c"), "layout NCHW16c: expected ROW or NHWC"),
        (with_epilogue(conv(16, 24, 9, 3), "where(lt(acc,in2),acc,in2)"), "epilogue operator where"),
        (with_epilogue(conv(16, 24, 9, 3), "in2"), "the epilogue is an operand"),
        (with_image(TensorType("float32", (3, 5, 5))), "two-dimensional"),
        (with_image(TensorType("float16", (1, 3, 5, 5))), "different dtypes"),
        (conv(0, 4, 5, 3), "empty tensors"),
    ],
)  # fmt: skip
def test_refusals_by_workload(install: Install, workload: Workload, reason: str) -> None:
    install(PLANS)
    refused = Cudnn(Here()).supports(workload, H200)
    assert not refused and reason in refused.reason
    with pytest.raises(Unsupported, match=reason.split(":")[0]):
        lower(workload)


def test_cpus_are_refused() -> None:
    assert "GPU" in Cudnn(Here()).supports(conv(16, 24, 9, 3), host_target(threads=1)).reason


def test_a_gpu_where_cudnn_has_no_plan(install: Install) -> None:
    install([Plan("eng2", ("TENSOR_CORE",))])
    provider = Cudnn(Here())
    assert "no plan" in provider.supports(conv(16, 24, 9, 3), H200).reason
    assert provider.supports(conv(16, 24, 9, 3, tf32=True), H200)
    install([])
    assert "No valid engine configs" in Cudnn(Here()).supports(conv(16, 24, 9, 3), H200).reason


def test_it_is_among_the_providers_for_gpus() -> None:
    assert isinstance(providers(["cudnn"], H200)[0], Cudnn)
    assert not any(isinstance(p, Cudnn) for p in providers())


# Space and spec


def test_the_space_lists_plans_in_their_order(install: Install) -> None:
    seen = install([*PLANS, PLANS[0]])
    space = Cudnn(Here()).space(conv(16, 24, 9, 3), H200)
    plans = ["eng1_k2=0", "eng3", "eng1_k2=1"]
    assert list(space.enumerate()) == [
        *({"form": "whole", "plan": p} for p in plans), *({"form": "apart", "plan": f"{p}+eng50"} for p in plans),
    ]  # fmt: skip
    assert space.default() == {"form": "whole", "plan": "eng1_k2=0"}
    assert seen.modes == ["heur_mode.A", "heur_mode.B", "heur_mode.FALLBACK"]


def test_two_graphs_only_where_there_are_few_fused_plans(install: Install) -> None:
    install([*PLANS, Plan("eng5")])
    forms = [c["form"] for c in Cudnn(Here()).space(conv(16, 24, 9, 3), H200).enumerate()]
    assert forms == ["whole"] * 4
    forms = [c["form"] for c in Cudnn(Here()).space(conv(16, 24, 9, 3, dtype="float16"), H200).enumerate()]
    assert forms == ["narrow"] * 5 + ["whole"] * 5


def test_precision_decides_which_plans_are_legal(install: Install) -> None:
    tensor_cores = Plan("tc", ("TENSOR_CORE",))
    shorter, loose = Plan("half", ("DOWN_CONVERT_INPUTS",)), Plan("loose", ("NONDETERMINISTIC", "TENSOR_CORE"))
    install([Plan("fma"), tensor_cores, shorter, loose, Plan("sums", ("REDUCED_PRECISION_REDUCTION",))])

    def names(workload: Workload) -> set[object]:
        return {c["plan"] for c in Cudnn(Here()).space(with_epilogue(workload, None), H200).enumerate()}

    assert names(conv(16, 24, 9, 3)) == {"fma"}
    assert names(conv(16, 24, 9, 3, tf32=True)) == {"fma", "tc"}
    assert names(conv(16, 24, 9, 3, dtype="float16")) == names(conv(16, 24, 9, 3, dtype="bfloat16")) == {"fma", "tc"}


def test_winograd_is_float32_too_and_has_a_form_of_its_own(install: Install) -> None:
    """Its results are judged as those of our own Winograd; with tensor cores it is not float32."""
    barred = (Plan(n, ("WINOGRAD", n)) for n in ("TENSOR_CORE", "DOWN_CONVERT_INPUTS"))
    install([Plan("fma"), Plan("fast", ("WINOGRAD",)), *barred])
    workload, provider = with_epilogue(conv(16, 24, 9, 3), None), Cudnn(Here())
    found = list(provider.space(workload, H200).enumerate())
    assert found == [{"form": "whole", "plan": "fma"}, {"form": "winograd", "plan": "fast"}]
    assert [provider.build(workload, c, H200).accuracy for c in found] == ["", "winograd"]
    spec = provider.build(workload, found[1], H200).spec
    assert spec is not None and CudnnCall(spec, EmulatedDevice(H200)).workspace_bytes == 0
    with pytest.raises(InvalidConfig, match="strict float32 only"):
        provider.build(conv(16, 24, 9, 3, tf32=True), found[1], H200)


def test_the_workspace_is_limited(install: Install) -> None:
    install([Plan("big", (), 5000), Plan("small", (), 100)])
    workload = with_epilogue(conv(16, 24, 9, 3), None)
    tight, roomy = Cudnn(Here(), limit=1000), Cudnn(Here())
    assert [c["plan"] for c in tight.space(workload, H200).enumerate()] == ["small"]
    assert [c["plan"] for c in roomy.space(workload, H200).enumerate()] == ["big", "small"]
    spec = roomy.build(workload, {"form": "whole", "plan": "big"}, H200).spec
    assert spec is not None and CudnnCall(spec, EmulatedDevice(H200)).workspace_bytes == 5000
    with pytest.raises(DeviceError, match=r"'big'.*Requires 5000"):
        CudnnCall({**spec, "limit": 1000}, EmulatedDevice(H200))


def test_specs_are_plain_data_that_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)
    code = Cudnn().build(conv(16, 24, 9, 3, layout="NHWC"), {"form": "whole", "plan": "eng5_k1=2"}, H200)
    assert code.kind == "cudnn" and code.spec == json.loads(json.dumps(code.spec))
    assert code.spec["version"] == "absent" and code.spec["arguments"] == 4
    (stage,) = code.spec["stages"]
    assert stage["plan"] == "eng5_k1=2" and "TENSOR_CORE" in stage["without"]
    assert stage["nodes"] == [
        ["conv_fprop", [0, 1], {"pre_padding": [1, 1], "post_padding": [1, 1], "stride": [1, 1], "dilation": [1, 1]}],
        ["add", [-1, 2], {}], ["relu", [-2], {}],
    ]  # fmt: skip
    assert code.spec["tensors"][0] == ["float32", [1, 16, 9, 9], [1296, 1, 144, 16]]
    assert code.spec["tensors"][2] == ["float32", [1, 24, 1, 1], [24, 1, 24, 24]]


@pytest.mark.parametrize(
    "config", [("", ""), ("both", "a"), ("whole", "a+b"), ("apart", "a"), ("apart", "a+"), ("narrow", "a")]
)
def test_configs_that_say_nothing_are_invalid(config: tuple[str, str]) -> None:
    with pytest.raises(InvalidConfig, match=r"expected|nothing to narrow"):
        Cudnn(Here()).build(conv(16, 24, 9, 3), {"form": config[0], "plan": config[1]}, H200)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("relu(acc)", [["relu", {}]]),
        ("max(acc,0.0)", [["relu", {}]]),
        ("min(relu(acc),6.0)", [["relu", {"upper_clip": 6.0}]]),
        ("min(6.0,max(-1.0,acc))", [["relu", {"lower_clip": -1.0, "upper_clip": 6.0}]]),
        ("mul(sigmoid(acc),acc)", [["swish", {}]]),
        ("mul(mul(acc,0.5),add(erf(mul(acc,0.7071067811865476)),1.0))", [["gelu", {}]]),
        ("max(acc,1.0)", [["max", {}]]),
        ("recip(acc)", [["reciprocal", {}]]),
        ("mul(sigmoid(acc),in2)", [["sigmoid", {}], ["mul", {}]]),
    ],
)
def test_activations_are_one_operation_where_cudnn_has_it(text: str, nodes: list[Any]) -> None:
    (stage,) = lower(with_epilogue(conv(16, 24, 9, 3), text))["stages"]
    assert [[op, attrs] for op, _, attrs in stage["nodes"][1:]] == nodes


def test_a_residual_comes_before_the_bias() -> None:
    (stage,) = lower(with_epilogue(conv(16, 24, 9, 3), "relu(add(add(acc,in2),in3))"))["stages"]
    assert [(op, given) for op, given, _ in stage["nodes"][1:]] == [("add", [-1, 3]), ("add", [-2, 2]), ("relu", [-3])]


# The double is like the real package


def test_the_double_has_what_is_called() -> None:
    for owner, kind in (("pygraph", double.Graph), ("tensor", double.Tensor)):
        for name, parameters in double.SIGNATURES[owner].items():
            if name != "__init__":
                assert tuple(inspect.signature(getattr(kind, name)).parameters)[1:] == parameters, name


def test_the_real_package_has_it_too() -> None:
    """Names and parameters of the installed package; this is what a new release of it may break."""
    try:
        real = importlib.import_module("cudnn")
    except ImportError:
        pytest.skip("nvidia-cudnn-frontend is not installed")
    owners = {"module": real, "pygraph": real.pygraph, "tensor": real.Tensor}
    for owner, calls in double.SIGNATURES.items():
        for name, parameters in calls.items():
            function = getattr(owners[owner], name)
            if name != "backend_version":  # a builtin
                assert set(parameters) <= set(inspect.signature(function).parameters), name
    for enumeration, members in double.MEMBERS.items():
        assert all(hasattr(getattr(real, enumeration), m) for m in members)
    graph = real.pygraph(name="wpk", io_data_type=real.data_type.FLOAT, handle=None)
    x = graph.tensor(dim=[1, 4, 5, 5], stride=[100, 25, 5, 1], data_type=real.data_type.FLOAT, name="x", uid=1)
    w = graph.tensor(dim=[4, 4, 1, 1], stride=[4, 1, 1, 1], data_type=real.data_type.FLOAT, name="w", uid=2)
    made = graph.conv_fprop(x, w, name="c", pre_padding=[0, 0], post_padding=[0, 0], stride=[1, 1], dilation=[1, 1])
    for op, (count, _) in double.OPERATIONS.items():
        if op != "conv_fprop":
            attrs = {"lower_clip": 0.0, "upper_clip": 6.0} if op == "relu" else {}
            made = getattr(graph, op)(*[made] * count, name=f"{op}1", **attrs)
    made.set_output(True).set_data_type(real.data_type.FLOAT).set_dim([1, 4, 5, 5]).set_stride([100, 25, 5, 1]).set_uid(3)
    assert len(graph.nodes) == len(double.OPERATIONS)  # validating needs a GPU
