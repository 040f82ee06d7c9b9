"""Models compiled for a GPU that is not here: planned, saved, loaded, run on the emulated device, refused without a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_build import make, node, normal, run

from wpk.api import cross
from wpk.core.errors import ArtifactError, DeviceError, DeviceMemoryError, FeedError, UsageError
from wpk.core.launch import CudaSource, Launch, TensorMap, calls_of
from wpk.cuda import nvrtc
from wpk.measure.emulated import EmulatedDevice, emulated_runner
from wpk.runtime import artifact
from wpk.runtime.cuda import driver
from wpk.runtime.cuda.order import Touch, dependencies, lanes
from wpk.runtime.cuda.runner import CudaRunner, check_device
from wpk.runtime.runner import load
from wpk.settings import gpu_target
from wpk.stages import Options

H200 = gpu_target("sm_90a")
pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")


def branches() -> onnx.ModelProto:
    """Two branches of products that meet; one value is read by both; an output that is an input of more work."""
    constants = {"w": normal(24, 40), "v": normal(24, 40, seed=1), "b": normal(40), "u": normal(40, 12)}
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["q"]), node("Relu", ["q"], ["left"]),
        node("MatMul", ["x", "v"], ["r"]), node("Sigmoid", ["r"], ["right"]),
        node("Mul", ["left", "right"], ["both"]), node("MatMul", ["both", "u"], ["y"]),
    ]  # fmt: skip
    return make(nodes, {"x": (6, 24)}, ["y", "both"], constants)


def with_region() -> onnx.ModelProto:
    """An operator with no native meaning between two that have one."""
    top = node("TopK", ["p", "k"], ["top", "where"], axis=-1)
    nodes = [node("MatMul", ["x", "w"], ["p"]), top, node("MatMul", ["top", "u"], ["y"])]
    return make(nodes, {"x": (4, 8)}, ["y"], {"w": normal(8, 16), "k": np.array([5]), "u": normal(5, 8)})


def compiled(model: onnx.ModelProto, folder: Path, target: str = "cuda:sm_90a") -> Path:
    path = folder / "model.wpk"
    cross(model, Options(target=target), path)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_branches_run_in_any_order_their_data_allows(tmp_path: Path, seed: int) -> None:
    model, x = branches(), normal(6, 24, seed=7)
    parts = artifact.load(compiled(model, tmp_path))
    with CudaRunner(parts, EmulatedDevice(H200, seed)) as runner:
        assert [a.name for a in runner.get_inputs()] == ["x"]
        found = runner.run(None, {"x": x})
        for got, want in zip(found, run(model.SerializeToString(), {"x": x}), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(runner.run(["both"], {"x": x})[0], found[1])


def test_the_file_has_cubins_and_their_text(tmp_path: Path) -> None:
    parts = artifact.read(compiled(branches(), tmp_path))
    kernels = [s for s in parts.plan.steps if s.kind == "cuda"]
    assert len(kernels) >= 3
    for step in kernels:
        launches, _ = calls_of(step.spec or {})
        assert bytes(parts.binaries[step.binary])[:4] == b"\x7fELF"
        assert f"{launches[0].symbol}(" in parts.sources[step.symbol]
    assert set(parts.binaries) == {s.binary for s in kernels}


def test_equal_compiles_give_equal_plans(tmp_path: Path) -> None:
    first, second = (artifact.read(compiled(branches(), tmp_path)).plan for _ in range(2))
    assert first == second and first.hash == second.hash


def test_opaque_nodes_run_on_the_host_in_between(tmp_path: Path) -> None:
    model, x = with_region(), normal(4, 8, seed=3)
    parts = artifact.read(compiled(model, tmp_path))
    assert [s.kind for s in parts.plan.steps] == ["cuda", "onnxruntime", "cuda"]
    with emulated_runner(parts) as runner:
        (want,) = run(model.SerializeToString(), {"x": x})
        np.testing.assert_allclose(runner.run(None, {"x": x})[0], want, rtol=2e-5, atol=2e-5)
        assert [name for name, _ in runner.profile({"x": x})] == [s.name for s in parts.plan.steps]


def test_data_stays_on_the_device(tmp_path: Path) -> None:
    """Feeds and outputs in memory of the caller's, by the array interface; the runner's own memory without."""
    device, x = EmulatedDevice(H200), normal(6, 24, seed=5)
    parts = artifact.read(compiled(branches(), tmp_path))
    with CudaRunner(parts, device) as feeder, CudaRunner(parts, device) as runner:
        want = runner.run(None, {"x": x})
        there = feeder.run_on_device({"x": x})
        given = {"x": replace(there["both"], shape=(6, 24), pointer=feeder._own["x"])}
        found = runner.run_on_device(given, {"y": there["y"]})
        assert found["y"].pointer == there["y"].pointer
        for name, expected in zip(("y", "both"), want, strict=True):
            back = np.empty_like(expected)
            device.download(found[name].pointer, back)
            np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (24, 6)}, r"expected float32\[6,24\], found float32\[24,6\]"),
        ({"dtype": "float16"}, r"found float16\[6,24\]"),
    ],
)
def test_device_feeds_are_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    parts = artifact.read(compiled(branches(), tmp_path))
    with CudaRunner(parts, EmulatedDevice(H200)) as runner:
        there = replace(runner.run_on_device({"x": normal(6, 24)})["both"], shape=(6, 24))
        with pytest.raises(FeedError, match=message):
            runner.run_on_device({"x": replace(there, **change)})  # type: ignore[arg-type]
        with pytest.raises(FeedError, match="expected an array on the GPU, found ndarray"):
            runner.run_on_device({"x": normal(6, 24)}, {"y": np.zeros((6, 12), np.float32)})


def test_nothing_is_left_on_the_device(tmp_path: Path) -> None:
    device, parts = EmulatedDevice(H200), artifact.read(compiled(branches(), tmp_path))
    runner = CudaRunner(parts, device)
    runner.run(None, {"x": normal(6, 24)})
    assert device._blocks
    runner.close()
    runner.close()
    assert not device._blocks
    with pytest.raises(UsageError, match="closed"):
        runner.run(None, {"x": normal(6, 24)})


def test_no_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    assert H200.gpu is not None
    small = EmulatedDevice(replace(H200, gpu=replace(H200.gpu, memory=5000)))
    with pytest.raises(DeviceMemoryError, match=r"no room for \d+ bytes"):
        CudaRunner(artifact.read(compiled(branches(), tmp_path)), small)
    assert not small._blocks


def test_without_a_device_the_error_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(index: int = 0) -> None:
        raise DeviceError("no CUDA device: none")

    monkeypatch.setattr("wpk.runtime.runner.open_device", nothing)
    with pytest.raises(DeviceError, match=r"tiny was compiled for NVIDIA H200 \(sm_90a\): no CUDA device: none"):
        load(compiled(branches(), tmp_path))


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(driver, "import_module", missing)
    with pytest.raises(DeviceError, match=r"PyCUDA cannot be loaded .*pip install 'wpk\[cuda\]'"):
        driver.CudaDevice()


@pytest.mark.parametrize(
    ("compiled_for", "device", "any_target", "fits"),
    [
        ("sm_90a", "sm_90a", False, True), ("sm_90a", "sm_80", True, False), ("sm_80", "sm_90a", True, False),
        ("sm_80", "sm_80", False, True), ("sm_100", "sm_90a", True, False),
    ],
)  # fmt: skip
def test_other_devices_are_refused(tmp_path: Path, compiled_for: str, device: str, any_target: bool, fits: bool) -> None:
    plan = artifact.read(compiled(branches(), tmp_path, f"cuda:{compiled_for}")).plan
    found = EmulatedDevice(gpu_target(device))
    if fits:
        check_device(plan, found, any_target)
    else:
        with pytest.raises(ArtifactError, match=f"was made for .*{compiled_for}.*, found .*{device}"):
            check_device(plan, found, any_target)


def test_another_model_of_the_same_kind_needs_the_users_word(tmp_path: Path) -> None:
    plan = artifact.read(compiled(branches(), tmp_path, "cuda:sm_80")).plan
    other = EmulatedDevice(replace(gpu_target("sm_80"), model="NVIDIA A30"))
    check_device(plan, other, any_target=True)
    with pytest.raises(ArtifactError, match="NVIDIA A30"):
        check_device(plan, other)


def test_a_plan_for_cpus_is_not_emulated(small_wpk: Path) -> None:
    with pytest.raises(UsageError, match="only models for GPUs are emulated"):
        emulated_runner(artifact.read(small_wpk))


def test_an_argument_outside_its_buffer_is_refused(tmp_path: Path) -> None:
    parts = artifact.read(compiled(branches(), tmp_path))
    step = parts.plan.steps[0]
    wrong = replace(step, spec={**(step.spec or {}), "bytes": [10**6] * len(step.args)})
    plan = replace(parts.plan, steps=(wrong, *parts.plan.steps[1:]))
    runner = CudaRunner(replace(parts, plan=plan), EmulatedDevice(H200))
    with runner, pytest.raises(ArtifactError, match="outside buffer"):
        runner.run(None, {"x": normal(6, 24)})


def test_a_missing_weight_or_binary_is_refused(tmp_path: Path) -> None:
    parts = artifact.read(compiled(branches(), tmp_path))
    for broken in (replace(parts, weights={}), replace(parts, binaries={})):
        device = EmulatedDevice(H200)
        with pytest.raises(ArtifactError, match="is missing"):
            CudaRunner(broken, device)
        assert not device._blocks


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"cuda:sm_100, cuda:sm_80, cuda:sm_90a"):
        gpu_target("sm_70")


def test_calls_survive_json() -> None:
    launch = Launch("k", (3, 2, 1), (64, 1, 1), 1024)
    tensor = TensorMap(0, "float16", (64, 8), (128,), (32, 8), 64, steps=(1, 2))
    assert calls_of(CudaSource("", (launch,), 0, (tensor,)).calls()) == ((launch,), (tensor,))


# Order


def touches(*spans: tuple[int, int, bool]) -> list[Touch]:
    return [Touch(start, nbytes, writes) for start, nbytes, writes in spans]


def test_steps_wait_for_what_they_read_overwrite_or_write_too() -> None:
    write_a, read_a, write_b = (0, 8, True), (4, 8, False), (16, 4, True)
    steps = [touches(write_a), touches(write_b), touches(read_a), touches((0, 4, False)), touches(write_a)]
    assert dependencies(steps) == [(), (), (0,), (0,), (2, 3)]


def test_neighbours_that_only_touch_are_apart() -> None:
    assert dependencies([touches((0, 8, True)), touches((8, 8, True))]) == [(), ()]


def test_a_chain_stays_on_its_stream_and_branches_get_others() -> None:
    chain: Sequence[Sequence[int]] = [(), (0,), (1,)]
    assert lanes(chain, 4) == [0, 0, 0]
    fork = [(), (0,), (0,), (1, 2)]
    assert lanes(fork, 4) == [0, 0, 1, 0]
    assert set(lanes([(), (), (), (), ()], 2)) == {0, 1}


def test_the_emulated_device_keeps_what_must_come_after() -> None:
    after = [(), (0,), (), (1, 2), (2,)]
    orders = {tuple(EmulatedDevice(H200, seed).order(after)) for seed in range(20)}
    assert len(orders) > 3
    for order in orders:
        assert all(order.index(j) < order.index(i) for i, before in enumerate(after) for j in before)
