"""Disks that are full, folders that cannot be written, compilers that are not there: codes 8 and 7; the old file stays."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small import Ran, refused, small_model

Cli = Callable[..., Ran]


def test_full_disk_while_saving_keeps_the_old_file(tmp_path: Path, own_cache: Path) -> None:
    model, output = tmp_path / "m.onnx", tmp_path / "m.wpk"
    onnx.save_model(small_model(channels=512), str(model))  # a megabyte of weights
    output.write_bytes(b"old")
    command = [sys.executable, "-m", "wpk", "compile", str(model), "--budget", "0s", "-o"]
    whole = tmp_path / "whole.wpk"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    limit = whole.stat().st_size // 2
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", limited, *command, str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    refused(Ran(done.returncode, done.stdout, done.stderr), 8, "m.wpk")
    assert output.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".jsonl") == [
        "m.onnx",
        "m.wpk",
        "whole.wpk",
    ]


def test_output_in_a_folder_that_is_not_there(cli: Cli, small_onnx: Path, tmp_path: Path) -> None:
    refused(cli("compile", small_onnx, "-o", tmp_path / "none" / "m.wpk", "--budget", "1s"), 8, "none")


def test_unwritable_cache(
    cli: Cli, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WPK_CACHE", str(tmp_path / "file" / "cache"))
    refused(cli("compile", small_onnx, "-o", tmp_path / "m.wpk", "--budget", "1s"), 8, "file/cache")


def test_unwritable_results(cli: Cli, small_wpk: Path, tmp_path: Path) -> None:
    refused(cli("run", small_wpk, "--random", "-o", tmp_path / "none" / "y.npz"), 8, "y.npz")


def test_no_compiler(cli: Cli, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(cli("compile", small_onnx, "-o", tmp_path / "m.wpk", "--budget", "1s"), 7, "compiler", "wpk[zig]")


def test_compiler_that_does_not_work(
    cli: Cli, small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WPK_CC", "/no/such/cc")
    refused(cli("compile", small_onnx, "-o", tmp_path / "m.wpk", "--budget", "1s"), 7, "/no/such/cc")


def test_a_closed_pipe_is_no_error(small_wpk: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m wpk explain {small_wpk} | head -1 >{os.devnull}; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
