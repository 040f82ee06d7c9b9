"""cuDNN on the GPU: every plan of convolutions with epilogues against the reference, its precision, its workspace, in graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cuda_workloads import conv

from benchmarks import zoo
from wpk import api
from wpk.core.errors import DeviceError
from wpk.core.pointwise import parse
from wpk.core.target import Target
from wpk.core.tensor import from_layout, to_layout
from wpk.core.workload import Workload
from wpk.measure.check import relative_error
from wpk.measure.inputs import random_inputs
from wpk.measure.measurer import Measurer, cuda_measurer
from wpk.planner.precision import MAX_ERROR
from wpk.providers.cudnn import Cudnn
from wpk.providers.reference import reference_output
from wpk.report.accuracy import output_errors
from wpk.report.engines import random_feeds
from wpk.runtime.cuda.cudnn_call import CudnnCall, cudnn_version
from wpk.runtime.cuda.driver import CudaDevice
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.ports import numpy_dtype
from wpk.runtime.runner import load
from wpk.stages import Options, read_graph

EPILOGUES = {
    "bias": "add(acc,in2)", "relu": "relu(add(acc,in2))", "residual": "relu(add(add(acc,in2),in3))",
    "relu6": "min(max(add(acc,in2),0.0),6.0)", "swish": "mul(add(acc,in2),sigmoid(add(acc,in2)))",
    "tanh": "tanh(add(acc,in2))", "gelu": "mul(mul(acc,0.5),add(erf(mul(acc,0.7071067811865476)),1.0))", "none": "",
}  # fmt: skip
#: All plans of this one are tried; of those without engines that come compiled only the first, which takes a second to compile.
MAIN, COMPILED = "relu", ("relu6", "swish", "tanh", "gelu")
#: failures of a plan that cuDNN lists but does not build
REFUSED = ("launch", "invalid")


@pytest.fixture(scope="module", autouse=True)
def installed() -> str:
    """cuDNN's version."""
    try:
        return cudnn_version()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def measurer(device: CudaDevice, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cuda_measurer(target, tmp_path_factory.mktemp("cache")) as made:
        yield made


def workload(epilogue: str, dtype: str, layout: str, tf32: bool = False, size: int = 14, channels: int = 64) -> Workload:
    made = conv(channels, 64, size, 3, dtype=dtype, layout=layout, tf32=tf32)
    text = EPILOGUES[epilogue]
    inputs = [*made.inputs, *([made.outputs[0]] if "in3" in text else [])][: 2 if "in2" not in text else None]
    constants = (1, 2) if "in2" in text else (1,)
    return replace(made, inputs=tuple(inputs), constants=constants, epilogue=parse(text) if text else None)


def computed(device: CudaDevice, provider: Cudnn, w: Workload, config: dict[str, object], target: Target) -> np.ndarray:
    """What one config gives, once and then from a recording."""
    arrays = random_inputs(w, 0)
    packed = iter(provider.pack(w, config, [arrays[i] for i in w.constants], target))  # type: ignore[arg-type]
    placed = [next(packed) if i in w.constants else to_layout(a, w.inputs[i].layout) for i, a in enumerate(arrays)]
    y = w.outputs[0]
    pointers = [device.allocate(n) for n in (*(a.nbytes for a in placed), y.nbytes)]
    for pointer, array in zip(pointers, placed, strict=False):
        device.upload(pointer, array)
    call = device.library("cudnn", provider.build(w, config, target).spec or {})  # type: ignore[arg-type]
    found = [np.empty(y.physical, numpy_dtype(y.dtype)) for _ in range(2)]
    call(device.stream, pointers)
    device.download(pointers[-1], found[0])
    device.upload(pointers[-1], np.zeros_like(found[0]))
    graph = device.record([lambda stream: call(stream, pointers)] * 2, [(), (0,)])
    graph.launch(device.stream)
    device.download(pointers[-1], found[1])
    graph.close()
    for pointer in pointers:
        device.free(pointer)
    np.testing.assert_array_equal(*found)
    return from_layout(found[0], y.shape, y.layout)


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_all_plans_are_right(measurer: Measurer, target: Target, epilogue: str, dtype: str, layout: str) -> None:
    """Through the measuring worker, with its guards around the output."""
    w = workload(epilogue, "float32" if dtype == "tf32" else dtype, layout, dtype == "tf32")
    provider = Cudnn()
    supported = provider.supports(w, target)
    assert supported, supported.reason
    configs = list(provider.space(w, target).enumerate())
    whole = epilogue == MAIN and dtype in ("float32", "float16")
    most = configs[: None if whole else 1 if epilogue in COMPILED else 4]
    found = list(zip(most, measurer.measure(w, provider, most), strict=True))
    assert all(m.ok or m.failure in REFUSED for _, m in found), [f for f in found if not f[1].ok]
    assert sum(m.ok for _, m in found) >= max(len(found) // 2, 1), found


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize("epilogue", ["relu", "residual", "swish"])
def test_strict_float32_is_float32(device: CudaDevice, target: Target, epilogue: str, layout: str) -> None:
    """No plan rounds its operands: sums of 576 terms to 1e-5, where tf32 is off by 3e-4. The same bits from a recording."""
    provider, w = Cudnn(), workload(epilogue, "float32", layout)
    (want,) = reference_output(w, random_inputs(w, 0))
    errors = {}
    for config in [c for c in provider.space(w, target).enumerate() if c["form"] != "winograd"][:5]:
        try:
            errors[str(config)] = relative_error(computed(device, provider, w, config, target), want)
        except DeviceError:
            continue
    assert errors and max(errors.values()) < 1e-5, errors


def test_tensor_cores_are_offered_to_tf32_only(target: Target) -> None:
    provider = Cudnn()
    strict, loose = (provider.space(workload("relu", "float32", "NHWC", tf32), target) for tf32 in (False, True))
    assert {str(c) for c in strict.enumerate() if c["form"] == "whole"} < {str(c) for c in loose.enumerate()}


def test_the_workspace_is_limited(device: CudaDevice, target: Target) -> None:
    w = workload("relu", "float16", "ROW")  # channels last in the workspace
    tight, roomy = Cudnn(limit=0), Cudnn()
    few, all_of_them = ([c for c in p.space(w, target).enumerate() if c["form"] == "narrow"] for p in (tight, roomy))
    assert len(few) < len(all_of_them) and all(c in all_of_them for c in few)
    config = next(c for c in all_of_them if c not in few)
    spec = roomy.build(w, config, target).spec or {}
    with device._active():
        assert 0 < CudnnCall(spec, device).workspace_bytes <= roomy.limit
        with pytest.raises(DeviceError, match="workspace"):
            CudnnCall({**spec, "limit": 0}, device)


def test_a_plan_that_is_gone_is_an_error(device: CudaDevice, target: Target, installed: str) -> None:
    provider = Cudnn()
    spec = provider.build(workload("relu", "float32", "ROW"), {"form": "whole", "plan": "eng987"}, target).spec
    with pytest.raises(DeviceError, match=f"cuDNN {installed} has no plan 'eng987'"):
        device.library("cudnn", spec or {})


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_models_run_with_it_in_graphs(device: CudaDevice, target: Target, tmp_path: Path, precision: str) -> None:
    import onnxruntime

    model = zoo.build("squeezenet", tmp_path)
    path = tmp_path / "m.wpk"
    options = Options(target=f"cuda:{target.isa}", precision=precision, providers=("cudnn", "generated"))
    api.cross(model, options, path)
    with load(path, any_target=True) as runner:
        assert isinstance(runner, CudaRunner)
        assert sum(s.kind == "cudnn" for s in runner.plan.steps) > 20
        feeds = random_feeds(runner.plan.inputs)
        first = runner.run(None, feeds)
        want = list(onnxruntime.InferenceSession(str(model)).run(None, feeds))
        assert max(output_errors(read_graph(model, Options()), first, want)) < MAX_ERROR[precision]
        for a, b in zip(runner.run(None, feeds), first, strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory_goes_with_the_call(device: CudaDevice, target: Target) -> None:
    provider, w = Cudnn(), workload("relu", "float16", "ROW")
    config = next(iter(provider.space(w, target).enumerate()))
    before = len(device._allocations)
    call = device.library("cudnn", provider.build(w, config, target).spec or {})
    assert len(device._allocations) > before
    del call
    assert len(device._allocations) == before
