"""The GPU check's order, its memory of what was done, and its table. What needs a GPU runs on one only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from benchmarks import gpu_check, zoo
from benchmarks.gpu_check import Desk, Item, attempt, heard, last_json, plan, run, take_over
from benchmarks.gpu_report import finished, settled, table
from wpk.core.errors import DeviceError


def line(name: str, precision: str, ours: float, batch: int = 1, **more: Any) -> dict[str, Any]:
    figures = {"plans": {"tuned": ours, "libraries": 2 * ours}, "winner": "tuned", "error": 1e-6, "tuning_s": 155.0, **more}
    return {"item": f"{name}/{precision}", "name": name, "precision": precision, "batch": batch, "figures": figures}


def peer(name: str, precision: str, **figures: float) -> dict[str, Any]:
    kind = "compile" if "compiled_s" in figures else "torch"
    return {"item": f"{name}/{precision}/{kind}", "name": name, "precision": precision, "batch": 1, "figures": figures}


def by_key(*lines: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {x["item"]: x for x in lines}


def test_what_matters_comes_first_and_the_shares_leave_time_for_peers() -> None:
    items = plan()
    keys = [i.key for i in items]
    resnet = [f"resnet50/{p}{peer}" for p in ("fp32", "fp16") for peer in ("", "/torch")]
    assert keys[:7] == ["tests/device", "tests/instructions", *resnet, "gemm4096/bf16"]
    assert len(set(keys)) == len(items)
    ours = {(i.name, i.precision) for i in items if i.batch == 1 and not i.peer}
    assert ours >= {(m, p) for m in zoo.NAMES for p in ("fp32", "tf32", "fp16", "bf16")} | {("bert-base-s128", "fp16")}
    assert all(f"{i.key}/torch" in keys for i in items if not i.peer and i.share and i.name != "gemm4096")
    assert 0.5 < sum(i.share for i in items) < 0.85


def test_every_file_of_tests_is_run() -> None:
    files = {x.stem.removeprefix("test_") for x in Path(__file__).parents[1].glob("gpu/test_*.py")}
    assert files == set(gpu_check.TESTS)


def test_finished_items_are_not_repeated_and_failed_ones_are_once(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    assert finished(path) == {} and settled(path) == set()
    lines = [
        {"item": "a", "figures": {"failed": "x"}}, {"item": "b", "figures": {"failed": "y"}}, {"item": "b", "figures": {"z": 1}},
        *[{"item": "c", "figures": {"failed": "z"}}] * 2,
    ]  # fmt: skip
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert list(finished(path)) == ["b"] and settled(path) == {"b", "c"}


def test_the_table_compares_with_the_best_peer_and_the_goal() -> None:
    convs = [{"generated": 1e-6, "cudnn": 3e-6}, {"generated": 2e-6, "cudnn": 1.5e-6}, {"generated": 1e-6, "cudnn": None}]
    text = table(by_key(
        line("resnet50", "fp32", 0.7e-3, convolutions=convs), peer("resnet50", "fp32", eager_s=2.1e-3),
        peer("resnet50", "fp32", eager_s=2.1e-3, compiled_s=1.19e-3), line("vgg19", "fp16", 1e-3),
        peer("vgg19", "fp16", eager_s=0.5e-3), line("zfnet512", "fp16", 1e-3),
    ), "Some GPU")  # fmt: skip
    rows = [r.split(" | ") for r in text.splitlines() if r.startswith(("| resnet50 | ", "| vgg19 | ", "| zfnet512 | "))]
    assert rows[0][3:9] == ["0.700", "1.400", "2.100", "1.190", "1.70", "0.800: yes"]
    assert [r[7] for r in rows[1:]] == ["0.50", "–"]
    assert "| every model faster than the best peer, geometric mean 2.0× | least 0.50×, geometric mean 0.92× | 2 | no |" in text
    assert "| convolutions over cuDNN's best engine, fp32: 1.6×, most above 5.40× | 1.50×, most 3.00× | 2 | no |" in text
    assert "| resnet50, fp32: 0.800 ms | 0.700 ms | 1 | yes |" in text
    assert "| resnet50 is tuned in 600 s | most 155 s | 1 | yes |" in text
    assert "| fp32 | 2 | 1.50 | 0.75 | 3.00 |" in text


@pytest.mark.parametrize(
    ("share", "said"), [(0.93, "generated code reaches 93% of cuBLASLt"), (None, "cuBLASLt was not measured")]
)
def test_large_products_are_compared_with_cublaslt(share: float | None, said: str) -> None:
    figures = {"seconds": {}, "tflops": {"generated:x": 610.0, "cublaslt": 655.6}, "share_of_cublaslt": share}
    items = {"g": {"item": "gemm4096/bf16", "name": "gemm4096", "precision": "bf16", "batch": 1, "figures": figures}}
    assert f"Product of 4096³, bf16: {said}. TFLOP/s: cublaslt 656, generated:x 610." in table(items, "Some GPU")


@pytest.mark.parametrize("error", [DeviceError("gone"), RuntimeError("what")])
def test_a_failure_is_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(item: Item, desk: Desk) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(gpu_check, "run_model", fails)
    assert attempt(Item("resnet50", "fp32"), Desk(tmp_path, tmp_path, 1.0, 1.0)) == {"failed": f"{type(error).__name__}: {error}"}


def test_a_run_goes_on_where_another_ended(tmp_path: Path) -> None:
    """What is done is not done again, in what time is left; the log comes back from its compressed form."""
    first, second = tmp_path / "first", tmp_path / "second"
    asked: list[str] = []

    def figures(item: Item, desk: Desk) -> dict[str, Any]:
        asked.append(item.key)
        desk.log.write_text("a line\n")
        return {"failed": "crashed"} if item.key == "resnet50/fp32" else {"tflops": {}, "share_of_cublaslt": None}

    def go(folder: Path, seconds: float) -> Desk:
        folder.mkdir()
        desk = Desk(folder, tmp_path, 1500.0, monotonic() + seconds)
        if folder == second:
            take_over(first, desk)
        run(desk, ["resnet50/fp32", "resnet50/fp32/torch", "gemm4096/bf16"], figures)
        return desk

    desk = go(first, 45.0)
    assert asked == ["resnet50/fp32/torch"]  # for a model that is too little time
    desk.log.unlink()
    asked.clear()
    assert go(second, 500.0).log.read_text() == "a line\n"
    assert asked == ["resnet50/fp32", "gemm4096/bf16"]
    assert (second / "results.md").exists()


def test_what_takes_too_long_ends_with_all_it_started() -> None:
    """What was said until then counts; nobody waits for a grandchild that holds the pipe."""
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('{\"eager_s\": 1.0}'); "
    begun = monotonic()
    status, said = heard([sys.executable, "-c", code + "import time; time.sleep(60)"], 2.0)
    assert status is None and last_json(status, said) == {"eager_s": 1.0} and monotonic() - begun < 20


def test_a_provider_that_fails_altogether_is_seen() -> None:
    """Each by the newest item, libraries even when nothing of theirs was measured."""
    health = {"cudnn": {"ok": 0, "failed": 12, "mostly": {"launch: cuDNN cannot be opened": 12}, "version": "9.19.0"}}
    old = line("resnet50", "fp32", 1e-3, health={"cudnn": {"ok": 1, "failed": 0, "mostly": {}, "version": None}})
    text = table(by_key(old, line("resnet50", "fp16", 1e-3, health=health)), "GPU")
    assert "cudnn (9.19.0): 0 candidates right, 12 not; 12 × launch: cuDNN cannot be opened" in text
    assert "1 candidates right" not in text


def test_what_says_nothing_of_use_has_failed() -> None:
    found = last_json(*heard([sys.executable, "-c", "raise SystemExit('no such thing')"], 20.0))
    assert found == {"failed": "ended with 1 | no such thing"}


def test_tests_are_counted_even_when_they_are_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "tests/gpu/test_device.py::a[x] PASSED [ 1%]\ntests/gpu/test_device.py::b FAILED [ 2%]\ntests/gpu/test_device.py::c "
    monkeypatch.setattr(gpu_check, "heard", lambda command, limit: (None, said))
    found = gpu_check.run_tests(Item("tests/device"), Desk(tmp_path, tmp_path, 1.0, monotonic() + 100))
    assert (found["passed"], found["failed_tests"], found["late"]) == (1, 1, True)
    text = table({"t": {"name": "tests/device", "precision": "", "figures": found}}, "GPU")
    assert "1 passed, 1 failed, 0 errors, 0 skipped, the rest not in time" in text


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(index: int = 0) -> None:
        raise DeviceError("no CUDA device")

    monkeypatch.setattr(gpu_check, "open_device", nothing)
    with pytest.raises(DeviceError, match="no CUDA device"):
        gpu_check.main(["--out", str(tmp_path / "out")])
