"""Whole networks for a GPU that is not here: each node has a generated kernel, in each precision; one runs in the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.encoder import Size, encoder
from benchmarks.zoo import build
from wpk.api import cross
from wpk.cuda import nvrtc
from wpk.graph.onnx_io import load_model
from wpk.measure.emulated import emulated_runner
from wpk.passes import default_pipeline, run_pipeline
from wpk.passes.precision import lowered
from wpk.planner.candidates import Catalogue
from wpk.planner.choose import choose
from wpk.providers.registry import providers
from wpk.report.engines import random_feeds, relative_l2
from wpk.runtime import artifact
from wpk.settings import gpu_target
from wpk.stages import Options

H200 = gpu_target("sm_90a")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are built."""
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1", "resnet50", "densenet121"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_node_is_left_to_the_host(name: str, precision: str, zoo: Path) -> None:
    graph = lowered(run_pipeline(load_model(build(name, zoo)), default_pipeline()), precision)
    choices = choose(graph, Catalogue(providers(["generated"], H200), None, H200))
    used = {a.implementation.provider for a in choices.nodes.values()}
    assert used <= {p.name for p in providers(["generated"], H200)} | {"move"}, used


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
def test_a_network_in_the_emulator(zoo: Path, tmp_path: Path) -> None:
    """SqueezeNet, whole: every access of every kernel is checked, and the result is ONNX Runtime's."""
    model, path = build("squeezenet", zoo), tmp_path / "m.wpk"
    cross(model, Options(target="cuda:sm_90a"), path)
    parts = artifact.read(path)
    assert {s.kind for s in parts.plan.steps} <= {"cuda", "copy"}
    feeds = random_feeds(parts.plan.inputs)
    with emulated_runner(parts) as runner:
        (found,) = runner.run(None, feeds)
    (expected,) = onnxruntime.InferenceSession(str(model)).run(None, feeds)
    assert relative_l2(found, np.asarray(expected)) < 1e-5


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize("causal", [False, True])
def test_an_encoder_has_attentions(causal: bool, tmp_path: Path) -> None:
    """Neither a softmax nor a transpose is left of it, and the result is ONNX Runtime's."""
    model, path = encoder(Size(layers=1, hidden=128, heads=2, length=40, words=50, causal=causal)), tmp_path / "m.wpk"
    cross(model, Options(target="cuda:sm_90a"), path)
    parts = artifact.read(path)
    ops = [c.op for c in parts.plan.choices]
    assert ops.count("attention") == 1 and not {"softmax", "matmul", "transpose"} & set(ops)
    feeds = {"ids": np.arange(40)[None], "mask": (np.arange(40) < 33).astype(np.int64)[None]}
    with emulated_runner(parts) as runner:
        found = runner.run(None, feeds)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    assert all(relative_l2(a, np.asarray(b)) < 1e-5 for a, b in zip(found, expected, strict=True))
