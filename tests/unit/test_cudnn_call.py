"""Calls of cuDNN, run by a double of the library that computes with NumPy: alone, measured, and in a model's plan."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_workloads import DTYPES, conv
from cudnn_double import H200, PLANS, Here, Install, Plan, installer, with_epilogue
from graph_build import make, node, normal
from graph_build import run as run_model

import wpk.providers.cudnn as provider_module
from wpk.api import cross
from wpk.core.errors import DeviceError, InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.core.workload import Workload
from wpk.measure.candidate import LaunchError
from wpk.measure.check import relative_error, tolerance
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.gpu import GpuCandidate, GpuOperands
from wpk.measure.inputs import random_inputs
from wpk.measure.timer import Timing
from wpk.measure.worker import request_of
from wpk.providers.cudnn import Cudnn
from wpk.providers.cudnn_ops import FORMS
from wpk.providers.reference import reference_output
from wpk.runtime import artifact
from wpk.runtime.cuda.cudnn_call import CudnnCall
from wpk.runtime.cuda.device import LibraryCall
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.ports import numpy_dtype
from wpk.stages import Options

EPILOGUES = (
    "add(acc,in2)", "relu(add(acc,in2))", "relu(add(add(acc,in2),in3))", "add(relu(add(acc,in2)),in3)",
    "mul(add(acc,in2),sigmoid(add(acc,in2)))", "min(max(add(acc,in2),0.0),6.0)", "tanh(sub(mul(acc,0.5),in2))",
    "mul(acc,min(max(add(mul(acc,0.16666667),0.5),0.0),1.0))", "div(in2,add(exp(neg(acc)),1.0))",
    "mul(mul(acc,0.5),add(erf(mul(acc,0.7071067811865476)),1.0))", "max(acc,-0.25)", "add(1.0,abs(acc))",
)  # fmt: skip


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    return installer(monkeypatch)


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


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize(("form", "dtype"), [
    (f, d) for f in FORMS for d in DTYPES if (f, d) != ("narrow", "float32") and (f != "winograd" or d == "float32")
])  # fmt: skip
def test_calls_compute_the_workload(install: Install, form: str, dtype: str, layout: str) -> None:
    plan = "eng7" if form == "winograd" else "eng3"
    seen, device = install([*PLANS, Plan("eng7", ("WINOGRAD",))]), EmulatedDevice(H200)
    provider = Cudnn(Here())
    shapes = [conv(16, 24, 9, 3, 2, dtype=dtype, layout=layout), conv(6, 6, 5, 3, group=6, dtype=dtype, layout=layout)]
    for i, text in enumerate(EPILOGUES):
        if form == "narrow" and "in2" not in text:
            continue
        workload = with_epilogue(shapes[i % 2], text)
        if "in2" not in text:
            workload = replace(workload, inputs=workload.inputs[:2], constants=(1,))
        config = {"form": form, "plan": plan if form != "apart" else "eng3+eng50"}
        assert run(provider, workload, config, device) <= tolerance(dtype, 9 * 16), (text, workload.key)
    assert {name for name, _, _ in seen.ran} == ({"eng3", "eng50"} if form == "apart" else {plan})
    gc.collect()
    assert not device._blocks, "constants go with their call"


def test_windows_strides_dilations_and_mixed_layouts(install: Install) -> None:
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


def test_a_plan_is_found_by_its_name(install: Install) -> None:
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


def test_plans_that_break_the_rules_do_not_run(install: Install) -> None:
    seen = install(PLANS)
    provider, device = Cudnn(Here()), EmulatedDevice(H200)
    for name, why in (("eng2", "Deselecting execution plan"), ("eng1_k2=1", "NOT_SUPPORTED")):
        spec = provider.build(conv(16, 24, 9, 3), {"form": "whole", "plan": name}, H200).spec
        with pytest.raises(DeviceError, match=f"plan '{name}'.*{why}"):
            CudnnCall(spec or {}, device)
    assert not seen.ran and not device._blocks


def test_a_call_is_ready_before_it_is_used(install: Install) -> None:
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


def test_equal_layers_share_a_plan(install: Install) -> None:
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


# Whole models and measuring


class WithLibraries(EmulatedDevice):
    """An emulated device that has cuDNN's double."""

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        assert kind == "cudnn"
        call = CudnnCall(spec, self)
        space = self.allocate(max(call.workspace_bytes, 1))
        return lambda stream, pointers: call.enqueue(stream, pointers, space)

    def offers(self, kind: str, spec: dict[str, Any]) -> list[list[str]]:
        return CudnnCall.offers(spec, self)


def test_a_model_runs_with_it(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From ONNX to a plan with its calls, through a file, run by the runner that GPUs have."""
    seen, device = install(PLANS), WithLibraries(H200)
    monkeypatch.setattr(provider_module, "open_device", lambda: device)
    constants = {"w": normal(8, 3, 3, 3), "b": normal(8, seed=1), "v": normal(8, 8, 1, 1, seed=2), "c": normal(8, seed=3)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["p"], pads=[1, 1, 1, 1]), node("Relu", ["p"], ["q"]), node("Conv", ["q", "v", "c"], ["r"]),
        node("Add", ["r", "q"], ["s"]), node("Relu", ["s"], ["y"]),
    ]  # fmt: skip
    model, x = make(nodes, {"x": (1, 3, 6, 5)}, ["y"], constants), normal(1, 3, 6, 5, seed=4)
    path = tmp_path / "m.wpk"
    cross(model, Options(target="cuda:sm_90a", providers=("cudnn",)), path)
    with CudaRunner(artifact.load(path), device) as runner:
        assert [s.kind for s in runner.plan.steps] == ["cudnn", "cudnn"]
        (want,) = run_model(model.SerializeToString(), {"x": x})
        for _ in range(2):
            np.testing.assert_allclose(runner.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-5)
    assert seen.ran[-1][0] == "eng1_k2=0"


def test_candidates_are_measured_as_any_other(install: Install, tmp_path: Path) -> None:
    """What a measuring worker does with one: constants from files, guards around the output, a recording that is timed."""
    seen, device = install(PLANS), WithLibraries(H200)
    provider, workload = Cudnn(Here()), conv(16, 24, 9, 3, dtype="float16")
    arrays = random_inputs(workload, 0)
    config = {"form": "narrow", "plan": "eng3"}
    files = []
    for i, array in enumerate(provider.pack(workload, config, [arrays[i] for i in workload.constants], H200)):
        np.save(tmp_path / f"{i}.npy", array)
        files.append(str(tmp_path / f"{i}.npy"))
    spec = provider.build(workload, config, H200).spec
    request = request_of(kind="cudnn", spec=json.loads(json.dumps(spec)), constants=files, cold_bytes=1 << 16)
    inputs = [None if i in workload.constants else a for i, a in enumerate(arrays)]
    operands = GpuOperands(device, workload, inputs, reference_output(workload, arrays))
    operands.poison()
    candidate = GpuCandidate(device, operands, request)
    candidate.run()
    assert operands.check(tolerance("float16", 144)).ok
    assert candidate.time(Timing(min_sample=0.0, min_samples=2, max_samples=2))
    assert {name for name, *_ in seen.ran} == {"eng3"}
    with pytest.raises(LaunchError, match="no plan 'eng9'"):
        GpuCandidate(device, operands, {**request, "spec": provider.build(workload, {**config, "plan": "eng9"}, H200).spec})
