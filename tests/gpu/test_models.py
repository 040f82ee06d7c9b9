"""Models compiled here run here: in every precision, right, from files, without copies, in several threads."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import encoder, zoo
from wpk import api
from wpk.core.errors import DeviceMemoryError
from wpk.core.target import Target
from wpk.planner.precision import MAX_ERROR
from wpk.report.accuracy import output_errors
from wpk.report.engines import random_feeds
from wpk.runtime import artifact
from wpk.runtime.cuda.driver import CudaDevice, open_device
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.runner import load
from wpk.stages import Options, read_graph


def crossed(model: Path, target: Target, folder: Path, precision: str = "fp32") -> Path:
    path = folder / f"{model.stem}-{precision}.wpk"
    api.cross(model, Options(target=f"cuda:{target.isa}", precision=precision), path)
    return path


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build("squeezenet", tmp_path_factory.mktemp("zoo"))


def reference(model: Path, feeds: dict[str, np.ndarray]) -> list[Any]:
    return list(onnxruntime.InferenceSession(str(model)).run(None, feeds))


def error(model: Path, found: list[np.ndarray], feeds: dict[str, np.ndarray]) -> float:
    return max(output_errors(read_graph(model, Options()), found, reference(model, feeds)))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet", "inception_v1", "densenet121", "encoder"])
def test_first_guesses_are_right(device: CudaDevice, target: Target, tmp_path: Path, name: str, precision: str) -> None:
    small = encoder.Size(layers=2, hidden=256, heads=4, length=64, words=100)
    model = encoder.build(tmp_path, small) if name == "encoder" else zoo.build(name, tmp_path)
    with load(crossed(model, target, tmp_path, precision), any_target=True) as runner:
        assert isinstance(runner, CudaRunner)
        feeds = random_feeds(runner.plan.inputs)
        assert error(model, runner.run(None, feeds), feeds) < MAX_ERROR[precision]


def test_repeated_runs_give_the_same_bits(device: CudaDevice, target: Target, tmp_path: Path, squeezenet: Path) -> None:
    with load(crossed(squeezenet, target, tmp_path), any_target=True) as runner:
        feeds = random_feeds(runner.plan.inputs)
        first = runner.run(None, feeds)
        for _ in range(20):
            for a, b in zip(runner.run(None, feeds), first, strict=True):
                np.testing.assert_array_equal(a, b)


def test_tuning_gives_a_plan_that_is_right_and_no_slower(device: CudaDevice, tmp_path: Path, squeezenet: Path) -> None:
    log = tmp_path / "log.jsonl"
    made = api.build(squeezenet, Options(budget=40.0, target="cuda", trials=12), tmp_path / "m.wpk", log)
    assert made.error < 1e-4
    assert made.verdict.winner in made.measured
    again = api.rebuild(log, squeezenet, Options(target="cuda"), tmp_path / "again.wpk")
    assert again.parts.plan.hash == made.parts.plan.hash


def test_threads_take_turns(device: CudaDevice, target: Target, tmp_path: Path, squeezenet: Path) -> None:
    with load(crossed(squeezenet, target, tmp_path), any_target=True) as runner:
        feeds = [random_feeds(runner.plan.inputs, seed) for seed in range(4)]
        expected = [runner.run(None, f)[0] for f in feeds]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: runner.run(None, feeds[i % 4])[0], range(32)))
        for i, array in enumerate(found):
            np.testing.assert_array_equal(array, expected[i % 4])


def test_torch_tensors_in_and_out(device: CudaDevice, target: Target, tmp_path: Path, squeezenet: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    with load(crossed(squeezenet, target, tmp_path), any_target=True) as runner:
        assert isinstance(runner, CudaRunner)
        feeds = random_feeds(runner.plan.inputs)
        want = runner.run(None, feeds)[0]
        (name,) = feeds
        (port,) = runner.plan.outputs
        out = torch.empty(port.shape, device="cuda")
        found = runner.run_on_device({name: torch.from_numpy(feeds[name]).cuda()}, {port.name: out})
        assert found[port.name].pointer == out.data_ptr()
        np.testing.assert_array_equal(out.cpu().numpy(), want)
        view = torch.as_tensor(runner.run_on_device({name: torch.from_numpy(feeds[name]).cuda()})[port.name], device="cuda")
        np.testing.assert_array_equal(view.cpu().numpy(), want)


def test_a_closed_runner_gives_its_memory_back(device: CudaDevice, target: Target, tmp_path: Path, squeezenet: Path) -> None:
    import pycuda.driver as cuda

    path = crossed(squeezenet, target, tmp_path)

    def free() -> int:
        gc.collect()
        with device._active():
            return int(cuda.mem_get_info()[0])

    load(path, any_target=True).close()
    before = free()
    for _ in range(3):
        with load(path, any_target=True) as runner:
            runner.run(None, random_feeds(runner.plan.inputs))
    assert before - free() < 4 << 20


def test_a_model_that_does_not_fit_is_an_error(device: CudaDevice, target: Target, tmp_path: Path, squeezenet: Path) -> None:
    assert target.gpu is not None
    parts = artifact.read(crossed(squeezenet, target, tmp_path))
    hog = device.allocate(int(0.97 * free_memory(device)))
    try:
        fillers = []
        with pytest.raises(DeviceMemoryError, match="no room"):
            while True:
                fillers.append(device.allocate(1 << 20))
        with pytest.raises(DeviceMemoryError, match="no room"):
            CudaRunner(parts, open_device())
    finally:
        for pointer in (hog, *fillers):
            device.free(pointer)
    with CudaRunner(parts, device) as runner:
        runner.run(None, random_feeds(runner.plan.inputs))


def free_memory(device: CudaDevice) -> int:
    import pycuda.driver as cuda

    with device._active():
        return int(cuda.mem_get_info()[0])


def test_opaque_nodes_run_on_the_host(device: CudaDevice, target: Target, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    w = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("TopK", ["p", "k"], ["y", "i"], axis=-1)]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])], [onnx.ValueInfoProto(name="y")]
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([5]), "k")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    path = tmp_path / "topk.onnx"
    onnx.save_model(model, str(path))
    with load(crossed(path, target, tmp_path), any_target=True) as runner:
        feeds = random_feeds(runner.plan.inputs)
        np.testing.assert_allclose(runner.run(None, feeds)[0], reference(path, feeds)[0], rtol=1e-5, atol=1e-5)
