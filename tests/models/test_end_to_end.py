"""The whole way on small models: compile, look, run, replay, resume, run without the compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from small import Ran, refused, small_model

import wpk
from wpk.api import build, rebuild
from wpk.core.errors import LogError
from wpk.report.engines import relative_l2
from wpk.stages import Options
from wpk.tuning.events import Event, Measured

Cli = Callable[..., Ran]
QUICK = Options(budget=2.0, threads=2)


def onnxruntime_outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def normal(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def one_op_model(
    nodes: list[onnx.NodeProto], shapes: dict[str, list[int | str]], out: dict[str, list[int | str]]
) -> onnx.ModelProto:
    """A model of float tensors without weights."""
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in part.items()]
        for part in (shapes, out)
    ]
    graph = helper.make_graph(nodes, "g", *infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_compiled_model_is_right_and_reloads(small_wpk: Path) -> None:
    x = normal(1, 3, 12, 12)
    (expected,) = onnxruntime_outputs(small_model(), {"x": x})
    with wpk.load(small_wpk) as runner:
        assert [(p.name, p.shape, p.type) for p in runner.get_inputs()] == [
            ("x", [1, 3, 12, 12], "tensor(float)")
        ]
        (found,) = runner.run(None, {"x": x})
        (again,) = runner.run(["y"], {"x": x})
    assert relative_l2(found, expected) < 1e-5
    assert np.array_equal(found, again)


@pytest.mark.parametrize("form", ["bytes", "proto"])
def test_a_model_need_not_be_a_file(form: str) -> None:
    model = small_model()
    x = normal(1, 3, 12, 12)
    with wpk.compile(model if form == "proto" else model.SerializeToString(), budget=0, threads=1) as runner:
        assert relative_l2(runner.run(None, {"x": x})[0], onnxruntime_outputs(model, {"x": x})[0]) < 1e-5


@pytest.mark.parametrize(
    "providers", [["generated"], ["onednn", "onnxruntime"], ["onnxruntime"]], ids=",".join
)
def test_any_providers_give_the_same_answer(small_onnx: Path, providers: list[str]) -> None:
    x = normal(1, 3, 12, 12)
    with wpk.compile(small_onnx, budget=0, threads=2, providers=providers) as runner:
        assert (
            relative_l2(runner.run(None, {"x": x})[0], onnxruntime_outputs(small_model(), {"x": x})[0]) < 1e-5
        )
        used = {c.provider.split(":")[0] for c in runner.plan.choices}
    assert used <= {*providers, "move"}


def test_batch(small_onnx: Path) -> None:
    x = normal(4, 3, 12, 12)
    with wpk.compile(small_onnx, budget=0, batch=4, threads=2) as runner:
        (found,) = runner.run(None, {"x": x})
    one_by_one = [onnxruntime_outputs(small_model(), {"x": x[i : i + 1]})[0] for i in range(4)]
    assert relative_l2(found, np.concatenate(one_by_one)) < 1e-5


def test_symbolic_shapes() -> None:
    model = one_op_model([helper.make_node("Tanh", ["x"], ["y"])], {"x": ["n", 5]}, {"y": ["n", 5]})
    with wpk.compile(model, budget=0, shapes={"x": (3, 5)}) as runner:
        assert np.allclose(runner.run(None, {"x": normal(3, 5)})[0], np.tanh(normal(3, 5)), atol=1e-6)


def test_opaque_ops_run_through_onnxruntime() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("TopK", ["r", "k"], ["values", "indices"], axis=1),
        helper.make_node("Exp", ["values"], ["y"]),
    ]
    model = one_op_model(nodes, {"x": [2, 9]}, {"y": [2, 3]})
    model.graph.initializer.append(helper.make_tensor("k", TensorProto.INT64, [1], [3]))
    x = normal(2, 9)
    with wpk.compile(model, budget=0) as runner:
        assert relative_l2(runner.run(None, {"x": x})[0], onnxruntime_outputs(model, {"x": x})[0]) < 1e-6


def test_random_models_compile_unchecked() -> None:
    model = one_op_model(
        [helper.make_node("RandomNormalLike", ["x"], ["y"])], {"x": [64, 64]}, {"y": [64, 64]}
    )
    made = build(model, Options(budget=0.0))
    (y,) = made.runner.run(None, {"x": normal(64, 64)})
    assert abs(float(y.std()) - 1) < 0.1
    assert any("random" in note for note in made.notes)


def test_nothing_is_saved_that_is_not_right_enough(small_onnx: Path, tmp_path: Path) -> None:
    """An error nobody can reach: only ONNX Runtime itself, whose distance to itself is zero, is left."""
    made = build(small_onnx, replace(QUICK, max_error=1e-12), tmp_path / "m.wpk")
    assert made.verdict.winner == "onnxruntime" and made.error == 0.0
    assert any("tuned" in note and "allowed" in note for note in made.notes)


def test_resuming_measures_nothing_twice(small_onnx: Path, tmp_path: Path) -> None:
    reused: list[Event] = []

    class Watcher:
        def on(self, event: Event) -> None:
            reused.extend([event] if isinstance(event, Measured) and event.reused else [])

    log = tmp_path / "t.jsonl"
    build(small_onnx, QUICK, None, log)
    build(small_onnx, QUICK, None, log, Watcher())
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    searched = [e for e in entries if e.get("stage") == "search"]
    keys = {(e["key"], e["provider"], json.dumps(e["config"], sort_keys=True)) for e in searched}
    assert reused and len(keys) == len(searched)


def test_replay_gives_the_same_plan(small_onnx: Path, tmp_path: Path) -> None:
    log = tmp_path / "t.jsonl"
    made = build(small_onnx, QUICK, None, log)
    again = rebuild(log, small_onnx, QUICK)
    assert again.parts.plan.hash == made.parts.plan.hash and again.verdict.winner == made.verdict.winner
    with wpk.replay(log, small_onnx, threads=2) as runner:
        assert runner.plan.hash == made.parts.plan.hash


def test_strict_replay_names_the_task_whose_entry_is_gone(small_onnx: Path, tmp_path: Path) -> None:
    log = tmp_path / "t.jsonl"
    build(small_onnx, QUICK, None, log)
    lines = log.read_text().splitlines(keepends=True)
    for gone in range(0, len(lines) - 1, max(len(lines) // 6, 1)):
        entry = json.loads(lines[gone])
        if "seal" in entry:
            continue
        log.write_text("".join(lines[:gone] + lines[gone + 1 :]))
        with pytest.raises(LogError, match=entry["workload"]["op"]):
            rebuild(log, small_onnx, QUICK)
        rebuild(log, small_onnx, QUICK, strict=False).runner.close()


def test_interrupted_tuning_gives_a_plan(small_onnx: Path, tmp_path: Path) -> None:
    class Impatient:
        count = 0

        def on(self, event: Event) -> None:
            if isinstance(event, Measured):
                self.count += 1
                if self.count == 5:
                    raise KeyboardInterrupt

    made = build(
        small_onnx, replace(QUICK, budget=60.0), tmp_path / "m.wpk", tmp_path / "t.jsonl", Impatient()
    )
    assert made.tuned is not None and made.tuned.why == "interrupted"
    assert (tmp_path / "m.wpk").exists() and made.error < 1e-4


def test_commands_on_an_artifact(cli: Cli, small_wpk: Path, small_onnx: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 12))
    ran = cli("run", small_wpk, tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert ran.code == 0 and "float32[1x10]" in ran.out
    (expected,) = onnxruntime_outputs(small_model(), {"x": normal(1, 3, 12, 12)})
    assert relative_l2(np.load(tmp_path / "y.npy"), expected) < 1e-5

    ran = cli("explain", small_wpk, "--all", "--html", tmp_path / "page.html")
    assert ran.code == 0 and "contract" in ran.out and "share" in ran.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")

    ran = cli(
        "bench",
        small_wpk,
        "--onnx",
        small_onnx,
        "--against",
        "onnxruntime",
        "--rounds",
        "1",
        "--json",
        tmp_path / "b.json",
    )
    assert ran.code == 0 and "onnxruntime" in ran.out
    assert {t["name"] for t in json.loads((tmp_path / "b.json").read_text())} == {"wpk", "onnxruntime"}


def test_show_prints_the_generated_source(cli: Cli, small_onnx: Path, tmp_path: Path) -> None:
    made = build(small_onnx, Options(budget=0.0, providers=("generated",)), tmp_path / "m.wpk")
    step = next(s for s in made.parts.plan.steps if s.kind == "kernel")
    ran = cli("show", tmp_path / "m.wpk", step.name, "--source")
    assert ran.code == 0 and step.symbol in ran.out and "#include" in ran.out
    assert step.symbol in cli("show", tmp_path / "m.wpk", step.name).out


def test_compile_and_replay_from_the_command_line(cli: Cli, small_onnx: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "m.wpk", tmp_path / "m.jsonl"
    ran = cli(
        "compile", small_onnx, "-o", out, "--budget", "1s", "--html", tmp_path / "c.html", "--trace-fusion"
    )
    assert ran.code == 0 and log.exists() and out.exists()
    assert "error against ONNX Runtime" in ran.out and "saved" in ran.out
    again = cli("replay", log, small_onnx, "-o", tmp_path / "r.wpk")
    assert again.code == 0 and "nothing was measured" in again.out
    assert wpk.load(out).plan.hash == wpk.load(tmp_path / "r.wpk").plan.hash
    assert cli("compile", small_onnx, "-o", out, "--budget", "0s", "-q").out == ""
    listed = cli("log", "ls", log)
    assert listed.code == 0 and "conv(" in listed.out and "model(" in listed.out
    assert cli("log", "best", log, "-o", tmp_path / "best.jsonl").code == 0
    assert cli("replay", tmp_path / "best.jsonl", small_onnx, "-o", tmp_path / "b.wpk").code == 0
    assert wpk.load(out).plan.hash == wpk.load(tmp_path / "b.wpk").plan.hash
    assert cli("log", "merge", log, tmp_path / "best.jsonl", "-o", tmp_path / "both.jsonl").code == 0
    assert cli("log", "gc", tmp_path / "both.jsonl").code == 0
    assert cli("doctor", "--log", log).code == 0
    refused(cli("log", "ls", tmp_path / "none.jsonl"), 6, "none.jsonl")


_BARE = """
import sys
BANNED = "graph passes measure tuning planner providers search dsl kernels api report commands cli".split()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in ("onnx", "onnx_ir", "deap", "typer", "rich", "jinja2") or top == "wpk" and rest.split(".")[0] in BANNED:
            raise ImportError(name + " is banned")
sys.meta_path.insert(0, Refuse())
import numpy as np, wpk
with wpk.load(sys.argv[1]) as runner:
    print(runner.run(None, {"x": np.load(sys.argv[2])})[0].sum())
"""


def test_an_artifact_runs_without_compiler_or_compiler_parts(small_wpk: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 12))
    done = subprocess.run(
        [sys.executable, "-c", _BARE, str(small_wpk), str(tmp_path / "x.npy")],
        capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1.0, abs=1e-5)
