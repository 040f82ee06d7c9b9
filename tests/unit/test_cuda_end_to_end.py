"""The whole way for a GPU, the emulator in its place: tune, plan, check, save, replay. Only its times mean nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from graph_build import make, node, normal

from wpk.api import build, rebuild
from wpk.core.errors import LogError
from wpk.cuda import nvrtc
from wpk.measure.emulated import EmulatedDevice
from wpk.measure.measurer import cuda_measurer
from wpk.runtime.cuda.runner import CudaRunner
from wpk.settings import gpu_target
from wpk.stages import Options
from wpk.tuning.log import read_log

H200 = gpu_target("sm_90a")
pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EmulatedDevice(H200)
    monkeypatch.setattr("wpk.stages.open_device", lambda: device)
    monkeypatch.setattr("wpk.runtime.runner.open_device", lambda: device)
    monkeypatch.setattr("wpk.stages.cuda_measurer", partial(cuda_measurer, emulate=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx

    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["q"]), node("Relu", ["q"], ["r"]),
        node("MatMul", ["r", "v"], ["s"]), node("Sigmoid", ["s"], ["y"]),
    ]  # fmt: skip
    made = make(nodes, {"x": (4, 32)}, ["y"], {"w": normal(32, 24) / 6, "b": normal(24), "v": normal(24, 8) / 5})
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save_model(made, str(path))
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tuned_saved_and_replayed(
    model: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(budget=60.0, strategy="genetic", target="cuda", trials=3, precision=precision)
    log, out = tmp_path / "log.jsonl", tmp_path / "net.wpk"
    made = build(model, options, out, log)
    assert isinstance(made.runner, CudaRunner) and out.exists()
    assert made.error <= options.limit
    assert all(c.seconds is not None for c in made.parts.plan.choices)
    records = read_log(log).records
    assert {r.fingerprint for r in records} == {H200.fingerprint}
    assert sum(r.measurement.ok and r.provider.startswith("generated:cuda") for r in records) >= 3
    facts = (made.parts.plan.meta or {}).get("precision")
    assert (facts is None) == (precision == "fp32")
    again = rebuild(log, model, options, tmp_path / "again.wpk")
    assert again.parts.plan.hash == made.parts.plan.hash
    feeds = {"x": normal(4, 32, seed=2)}
    np.testing.assert_array_equal(again.runner.run(None, feeds)[0], made.runner.run(None, feeds)[0])
    refused_elsewhere(log, model, options, monkeypatch)


def refused_elsewhere(log: Path, model: Path, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of another GPU counts for nothing."""
    other = EmulatedDevice(gpu_target("sm_80"))
    monkeypatch.setattr("wpk.stages.open_device", lambda: other)
    with pytest.raises(LogError, match=r"fingerprint|machine|target"):
        rebuild(log, model, options)
