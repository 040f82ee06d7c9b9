"""The GPU check's order, its memory of what was done, and its table. What needs a GPU runs on one only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Desk, Item, attempt, finished, plan, table
from wpk.core.errors import DeviceError


def line(name: str, precision: str, ours: float, eager: float, batch: int = 1, **more: Any) -> dict[str, Any]:
    figures = {
        "plans": {"tuned": ours, "libraries": 2 * ours}, "winner": "tuned", "torch": {"eager_s": eager}, "error": 1e-6, **more,
    }  # fmt: skip
    return {"item": f"{name}/{precision}", "name": name, "precision": precision, "batch": batch, "figures": figures}


def test_what_matters_comes_first_and_the_shares_leave_time_for_peers() -> None:
    items = plan()
    assert [i.key for i in items[:4]] == ["tests", "resnet50/fp32", "resnet50/fp16", "resnet50/tf32"]
    assert len({i.key for i in items}) == len(items)
    assert {(i.name, i.precision) for i in items if i.batch == 1} >= {
        (m, p) for m in ("resnet50", "vgg19", "inception_v2", "squeezenet") for p in ("fp32", "tf32", "fp16")
    }
    assert 0.5 < sum(i.share for i in items) < 0.85


def test_finished_items_are_not_repeated_and_failed_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    assert finished(path) == {}
    lines = [
        {"item": "a", "figures": {"failed": "x"}}, {"item": "b", "figures": {"failed": "y"}}, {"item": "b", "figures": {"z": 1}},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert list(finished(path)) == ["b"]


def test_the_table_compares_with_the_best_peer_and_the_goal() -> None:
    convs = [{"generated": 1e-6, "cudnn": 3e-6}, {"generated": 2e-6, "cudnn": 1.5e-6}, {"generated": 1e-6, "cudnn": None}]
    items = {
        "a": line("resnet50", "fp32", 0.7e-3, 2.1e-3, convolutions=convs), "b": line("vgg19", "fp16", 1e-3, 0.5e-3),
        "tests": {"item": "tests", "name": "tests", "precision": "", "batch": 1, "figures": {"exit": 0}},
    }  # fmt: skip
    text = table(items, "Some GPU")
    rows = [r for r in text.splitlines() if r.startswith(("| resnet50", "| vgg19"))]
    assert rows[0].split(" | ")[3:9] == ["0.700", "1.400", "2.100", "–", "2.00", "0.800: yes"]
    assert rows[1].split(" | ")[7] == "0.50"
    assert "Geometric mean over the best peer: 1.00." in text
    assert "| fp32 | 2 | 1.50 | 0.75 | 3.00 |" in text


@pytest.mark.parametrize(
    ("share", "said"), [(0.93, "generated code reaches 93% of cuBLASLt"), (None, "cuBLASLt was not measured")]
)
def test_large_products_are_compared_with_cublaslt(share: float | None, said: str) -> None:
    figures = {"seconds": {}, "tflops": {"generated:x": 610.0, "cublaslt": 655.6}, "share_of_cublaslt": share}
    items = {"g": {"item": "gemm4096/bf16", "name": "gemm4096", "precision": "bf16", "batch": 1, "figures": figures}}
    assert f"Product of 4096³, bf16: {said}. TFLOP/s: cublaslt 656, generated:x 610." in table(items, "Some GPU")


@pytest.mark.parametrize("error", [DeviceError("gone"), RuntimeError("what")])
def test_a_failure_is_a_figure(tmp_path: Path, error: Exception) -> None:
    def fails(item: Item, desk: Desk) -> dict[str, Any]:
        raise error

    found = attempt(fails, plan()[0], Desk(tmp_path, tmp_path, 1.0, 1.0))
    assert found == {"failed": f"{type(error).__name__}: {error}"}


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(index: int = 0) -> None:
        raise DeviceError("no CUDA device")

    monkeypatch.setattr(gpu_check, "open_device", nothing)
    with pytest.raises(DeviceError, match="no CUDA device"):
        gpu_check.main(["--out", str(tmp_path / "out")])
