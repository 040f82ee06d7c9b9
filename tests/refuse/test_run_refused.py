"""Feeds that do not fit and wrong command lines: codes 4 and 2."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import Ran, refused

Cli = Callable[..., Ran]
GOOD = np.zeros((1, 3, 12, 12), np.float32)


@pytest.mark.parametrize(
    "feeds, names",
    [
        ({"z": GOOD}, ("'z'", "'x'")),
        ({"x": GOOD.astype(np.float64)}, ("'x'", "float32", "float64")),
        ({"x": GOOD[:, :2]}, ("'x'", "[1,3,12,12]", "[1,2,12,12]")),
        ({"x": GOOD, "z": GOOD}, ("'z'",)),
    ],
    ids=["name", "dtype", "shape", "surplus"],
)
def test_wrong_feed(
    cli: Cli, small_wpk: Path, tmp_path: Path, feeds: dict[str, np.ndarray], names: tuple[str, ...]
) -> None:
    np.savez(tmp_path / "feeds.npz", **feeds)  # type: ignore[arg-type]
    refused(cli("run", small_wpk, tmp_path / "feeds.npz", "-o", tmp_path / "y.npz"), 4, *names)
    assert not (tmp_path / "y.npz").exists()


def test_missing_feed_file(cli: Cli, small_wpk: Path, tmp_path: Path) -> None:
    refused(cli("run", small_wpk, tmp_path / "none.npy"), 4, "none.npy")


def test_run_without_inputs(cli: Cli, small_wpk: Path) -> None:
    refused(cli("run", small_wpk), 2, "--random")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["frobnicate"], "frobnicate"),
        (["compile"], "MODEL"),
        (["compile", "m.onnx", "--budget", "soon"], "soon"),
        (["compile", "m.onnx", "--effort", "heroic"], "heroic"),
        (["compile", "m.onnx", "--strategy", "magic"], "magic"),
        (["compile", "m.onnx", "--shape", "x:1,2"], "x:1,2"),
        (["compile", "m.onnx", "--threads", "0"], "--threads"),
        (["compile", "m.onnx", "--providers", "cudnn"], "cudnn"),
        (["run", "--no-such-option"], "--no-such-option"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_wrong_command_line(cli: Cli, arguments: list[str], named: str, small_onnx: Path) -> None:
    refused(cli(*(small_onnx if a == "m.onnx" else a for a in arguments)), 2, named)


def test_against_an_unknown_engine(cli: Cli, small_wpk: Path, small_onnx: Path) -> None:
    refused(cli("bench", small_wpk, "--against", "abacus", "--onnx", small_onnx), 2, "abacus")


def test_against_without_the_model(cli: Cli, small_wpk: Path) -> None:
    refused(cli("bench", small_wpk, "--against", "onnxruntime"), 2, "--onnx")


def test_node_that_is_not_there(cli: Cli, small_wpk: Path) -> None:
    refused(cli("show", small_wpk, "conv99"), 2, "conv99")


@pytest.mark.parametrize("command", ["run", "explain", "bench"])
def test_a_file_that_is_no_artifact(cli: Cli, command: str, tmp_path: Path) -> None:
    file = tmp_path / "m.wpk"
    file.write_text("PK is not enough")
    refused(cli(command, file, *(["--random"] if command == "run" else [])), 5, "m.wpk")
    refused(cli(command, tmp_path / "none.wpk", *(["--random"] if command == "run" else [])), 5, "none.wpk")
