"""cuDNN without cuDNN: what is refused, what a call says, and calls run by a double of the library that computes with NumPy."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cudnn_double as double
import numpy as np
import pytest
from cuda_workloads import DTYPES, conv, gemm, pool
from cudnn_double import Double, Plan

from wpk.core.errors import DeviceError, InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.target import Target, host_target
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.core.workload import Workload
from wpk.measure.check import relative_error, tolerance
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.inputs import random_inputs
from wpk.providers.cudnn import Cudnn
from wpk.providers.cudnn_ops import FORMS, Unsupported, lower
from wpk.providers.reference import reference_output
from wpk.providers.registry import providers
from wpk.runtime.cuda.cudnn_call import CudnnCall
from wpk.runtime.ports import numpy_dtype
from wpk.settings import gpu_target

H200 = gpu_target("sm_90a")
PLANS = [Plan("eng1_k2=0"), Plan("eng2", ("TENSOR_CORE",)), Plan("eng3", (), 1000), Plan("eng1_k2=1", builds=False)]
EPILOGUES = (
    "add(acc,in2)", "relu(add(acc,in2))", "relu(add(add(acc,in2),in3))", "add(relu(add(acc,in2)),in3)",
    "mul(add(acc,in2),sigmoid(add(acc,in2)))", "min(max(add(acc,in2),0.0),6.0)", "tanh(sub(mul(acc,0.5),in2))",
    "mul(acc,min(max(add(mul(acc,0.16666667),0.5),0.0),1.0))", "div(in2,add(exp(neg(acc)),1.0))",
    "mul(mul(acc,0.5),add(erf(mul(acc,0.7071067811865476)),1.0))", "max(acc,-0.25)", "add(1.0,abs(acc))",
)  # fmt: skip


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Plan]], Double]:
    def installed(plans: Sequence[Plan]) -> Double:
        made = Double(list(plans))
        monkeypatch.setitem(sys.modules, "cudnn", made.module())
        return made

    return installed


class Here:
    """The library on an emulated device, through the double."""

    def __init__(self) -> None:
        self.device = EmulatedDevice(H200)

    def version(self) -> str:
        return "9.19.0, frontend 1.32.0"

    def plans(self, spec: dict[str, Any], target: Target) -> list[list[str]]:
        return CudnnCall.offers(spec, self.device)


class Absent(Here):
    def version(self) -> str:
        raise DeviceError("cuDNN's frontend is not installed: pip install 'wpk[cuda]'")


def with_epilogue(workload: Workload, text: str | None, residual: str = "") -> Workload:
    """The workload with another epilogue; input 3 is a residual in the output's layout, or in ``residual``."""
    y = workload.outputs[0]
    inputs = (*workload.inputs, *([y.with_layout(residual or y.layout)] if text and "in3" in text else []))
    return replace(workload, inputs=inputs, epilogue=parse(text) if text else None)


def with_image(image: TensorType) -> Workload:
    made = conv(3, 4, 5, 3)
    return replace(made, inputs=(image, *made.inputs[1:]))


def run(provider: Cudnn, workload: Workload, config: dict[str, Any], device: EmulatedDevice) -> float:
    """The relative error of one config, from a spec that went through JSON."""
    spec = json.loads(json.dumps(provider.build(workload, config, H200).spec))
    arrays = random_inputs(workload, 0)
    (want,) = reference_output(workload, arrays)
    packed = iter(provider.pack(workload, config, [arrays[i] for i in workload.constants], H200))
    pointers = []
    for i, (array, t) in enumerate(zip(arrays, workload.inputs, strict=True)):
        placed = next(packed) if i in workload.constants else to_layout(array, t.layout)
        assert placed.flags.c_contiguous
        pointers.append(device.allocate(placed.nbytes))
        device.upload(pointers[-1], placed)
    y = workload.outputs[0]
    pointers.append(device.allocate(y.nbytes))
    call = CudnnCall(spec, device)
    space = device.allocate(max(call.workspace_bytes, 1))
    call.enqueue(7, pointers, space)
    found = np.empty(y.physical, numpy_dtype(y.dtype))
    device.download(pointers[-1], found)
    for pointer in (*pointers, space):
        device.free(pointer)
    return relative_error(from_layout(found, y.shape, y.layout), want)


# What is refused


def test_absent_is_said_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", None)  # importing it fails as if it were not there
    provider = Cudnn()
    assert provider.version == "absent"
    refused = provider.supports(conv(16, 24, 9, 3), H200)
    assert not refused and "wpk[cuda]" in refused.reason and "not installed" in refused.reason
    assert next(provider.space(conv(16, 24, 9, 3), H200).enumerate(), None) is None


def test_a_frontend_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch, install: Any) -> None:
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
def test_refusals_by_workload(install: Any, workload: Workload, reason: str) -> None:
    install(PLANS)
    refused = Cudnn(Here()).supports(workload, H200)
    assert not refused and reason in refused.reason
    with pytest.raises(Unsupported, match=reason.split(":")[0]):
        lower(workload)


def test_cpus_are_refused() -> None:
    assert "GPU" in Cudnn(Here()).supports(conv(16, 24, 9, 3), host_target(threads=1)).reason


def test_a_gpu_where_cudnn_has_no_plan(install: Any) -> None:
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


def test_the_space_lists_plans_in_their_order(install: Any) -> None:
    seen = install([*PLANS, PLANS[0]])
    space = Cudnn(Here()).space(conv(16, 24, 9, 3), H200)
    plans = ["eng1_k2=0", "eng3", "eng1_k2=1"]
    assert list(space.enumerate()) == [
        *({"form": "whole", "plan": p} for p in plans), *({"form": "apart", "plan": f"{p}+eng50"} for p in plans),
    ]  # fmt: skip
    assert space.default() == {"form": "whole", "plan": "eng1_k2=0"}
    assert seen.modes == ["heur_mode.A", "heur_mode.B", "heur_mode.FALLBACK"]


def test_two_graphs_only_where_there_are_few_fused_plans(install: Any) -> None:
    install([*PLANS, Plan("eng5")])
    forms = [c["form"] for c in Cudnn(Here()).space(conv(16, 24, 9, 3), H200).enumerate()]
    assert forms == ["whole"] * 4
    forms = [c["form"] for c in Cudnn(Here()).space(conv(16, 24, 9, 3, dtype="float16"), H200).enumerate()]
    assert forms == ["narrow"] * 5 + ["whole"] * 5


def test_precision_decides_which_plans_are_legal(install: Any) -> None:
    tensor_cores = Plan("tc", ("TENSOR_CORE",))
    shorter, loose = Plan("half", ("DOWN_CONVERT_INPUTS",)), Plan("loose", ("NONDETERMINISTIC", "TENSOR_CORE"))
    install([Plan("fma"), tensor_cores, shorter, loose, Plan("sums", ("REDUCED_PRECISION_REDUCTION",))])

    def names(workload: Workload) -> set[object]:
        return {c["plan"] for c in Cudnn(Here()).space(with_epilogue(workload, None), H200).enumerate()}

    assert names(conv(16, 24, 9, 3)) == {"fma"}
    assert names(conv(16, 24, 9, 3, tf32=True)) == {"fma", "tc"}
    assert names(conv(16, 24, 9, 3, dtype="float16")) == names(conv(16, 24, 9, 3, dtype="bfloat16")) == {"fma", "tc"}


def test_the_workspace_is_limited(install: Any) -> None:
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


# Calls


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize(("form", "dtype"), [(f, d) for f in FORMS for d in DTYPES if (f, d) != ("narrow", "float32")])
def test_calls_compute_the_workload(install: Any, form: str, dtype: str, layout: str) -> None:
    seen, device = install(PLANS), EmulatedDevice(H200)
    provider = Cudnn(Here())
    shapes = [conv(16, 24, 9, 3, 2, dtype=dtype, layout=layout), conv(6, 6, 5, 3, group=6, dtype=dtype, layout=layout)]
    for i, text in enumerate(EPILOGUES):
        if form == "narrow" and "in2" not in text:
            continue
        workload = with_epilogue(shapes[i % 2], text)
        if "in2" not in text:
            workload = replace(workload, inputs=workload.inputs[:2], constants=(1,))
        config = {"form": form, "plan": "eng3" if form != "apart" else "eng3+eng50"}
        assert run(provider, workload, config, device) <= tolerance(dtype, 9 * 16), (text, workload.key)
    assert {name for name, _, _ in seen.ran} == ({"eng3", "eng50"} if form == "apart" else {"eng3"})
    gc.collect()
    assert not device._blocks, "constants go with their call"


def test_windows_strides_dilations_and_mixed_layouts(install: Any) -> None:
    install(PLANS)
    attrs = (("dilations", (2, 1)), ("group", 2), ("pads", (1, 0, 2, 1)), ("strides", (2, 1)))
    types = (TensorType("float32", (2, 4, 9, 7)), TensorType("float32", (6, 2, 3, 2)), TensorType("float32", (6, 1, 1)))
    y = TensorType("float32", (2, 6, 4, 7), "NHWC")
    workload = Workload("conv", types, (y,), attrs, parse("relu(add(acc,in2))"), (1, 2))
    device = EmulatedDevice(H200)
    for form, plan in (("whole", "eng3"), ("apart", "eng3+eng50")):
        assert run(Cudnn(Here()), workload, {"form": form, "plan": plan}, device) < 1e-6
    assert run(Cudnn(Here()), replace(workload, constants=(2,)), {"form": "whole", "plan": "eng3"}, device) < 1e-6
    mixed = with_epilogue(conv(6, 8, 5, 1), "relu(add(add(acc,in2),in3))", "NHWC")
    assert run(Cudnn(Here()), mixed, {"form": "whole", "plan": "eng3"}, device) < 1e-6
    with pytest.raises(InvalidConfig, match="several layouts"):
        Cudnn(Here()).build(mixed, {"form": "apart", "plan": "a+b"}, H200)


def test_a_plan_is_found_by_its_name(install: Any) -> None:
    seen = install(PLANS)
    spec = Cudnn(Here()).build(conv(16, 24, 9, 3), {"form": "whole", "plan": "eng3"}, H200).spec
    assert spec is not None
    device = EmulatedDevice(H200)
    CudnnCall(spec, device)
    seen.plans[:] = reversed(PLANS)
    CudnnCall(spec, device)
    assert [name for name, *_ in seen.ran] == ["eng3", "eng3"]
    seen.plans[:] = PLANS[:2]
    with pytest.raises(DeviceError, match=r"9\.19\.0, frontend 1\.32\.0 has no plan 'eng3'.*made with 9\.19.*tune again"):
        CudnnCall(spec, device)


def test_plans_that_break_the_rules_do_not_run(install: Any) -> None:
    seen = install(PLANS)
    provider, device = Cudnn(Here()), EmulatedDevice(H200)
    for name, why in (("eng2", "Deselecting execution plan"), ("eng1_k2=1", "NOT_SUPPORTED")):
        spec = provider.build(conv(16, 24, 9, 3), {"form": "whole", "plan": name}, H200).spec
        with pytest.raises(DeviceError, match=f"plan '{name}'.*{why}"):
            CudnnCall(spec or {}, device)
    assert not seen.ran and not device._blocks


def test_a_call_is_ready_before_it_is_used(install: Any) -> None:
    """It ran once on memory of its own, on the device's stream; then it runs on the stream that it is given, with one handle."""
    seen, device = install(PLANS), EmulatedDevice(H200)
    workload = with_epilogue(conv(16, 24, 9, 3), "add(relu(acc),2.0)")
    spec = Cudnn(Here()).build(workload, {"form": "apart", "plan": "eng3+eng50"}, H200).spec
    call = CudnnCall(spec or {}, device)
    assert [(name, stream) for name, stream, _ in seen.ran] == [("eng3", device.stream), ("eng50", device.stream)]
    assert len(device._blocks) == 1, "the constant stays"
    assert call.workspace_bytes == 7936 + 1000, "the convolution's result, aligned, and the plan's own"
    del call
    gc.collect()
    assert not device._blocks


def test_equal_layers_share_a_plan(install: Any) -> None:
    seen, device = install(PLANS), EmulatedDevice(H200)
    provider = Cudnn(Here())
    specs = [provider.build(conv(16, 24, 9, 3), {"form": "whole", "plan": p}, H200).spec or {} for p in ("eng3", "eng1_k2=0")]
    calls = [CudnnCall(s, device) for s in (specs[0], specs[0], specs[1])]
    assert seen.graphs == 2 and len(calls) == 3
    CudnnCall(specs[0], EmulatedDevice(H200))
    assert seen.graphs == 3, "a plan is of one device"
    calls.clear()
    CudnnCall(specs[0], device)
    assert seen.graphs == 4, "and goes with its calls"


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
