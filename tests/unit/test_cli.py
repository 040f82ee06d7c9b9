"""The command line itself: options, exit codes, what an error looks like."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import Ran, refused

import wpk
from wpk import api
from wpk import cli as line
from wpk.core import errors
from wpk.core.errors import LogError, UsageError

Cli = Callable[..., Ran]
COMMANDS = ("compile", "replay", "run", "bench", "explain", "show", "doctor", "worker", "log")


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_help_lists_every_command(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert all(re.search(rf"^\s*{name} ", ran.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0 and "Usage: wpk" in ran.out


def test_no_arguments_show_help(cli: Cli) -> None:
    assert "compile" in cli().out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"wpk {wpk.__version__}\n"


def test_shapes_and_names() -> None:
    assert line.shapes(["x=1x3x8", "a=b=4"]) == {"x": (1, 3, 8), "a=b": (4,)}
    assert line.names("a, b,") == ("a", "b") and line.names(None) is None
    for wrong in ("x", "x=", "=1x2", "x=1xx2", "x=-1x2", "x=1,2"):
        with pytest.raises(UsageError, match="NAME=1x3"):
            line.shapes([wrong])


@pytest.mark.parametrize(
    "error", [LogError("a.jsonl: what\nhappened"), UsageError("no"), errors.StorageError("full")]
)
def test_errors_are_one_line_with_their_code(
    cli: Cli, small_onnx: Path, monkeypatch: pytest.MonkeyPatch, error: errors.WpkError
) -> None:
    monkeypatch.setattr(api, "build", raising(error))
    refused(cli("compile", small_onnx), error.exit_code, str(error).split("\n")[0])


def test_a_bug_is_one_line_and_says_how_to_see_more(
    cli: Cli, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "build", raising(IndexError("list index\nout of range")))
    refused(cli("compile", small_onnx), 70, "IndexError", "--debug")


def test_debug_raises(small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "build", raising(IndexError("x")))
    with pytest.raises(IndexError):
        line.run_command(["compile", str(small_onnx)], debug=True)
    monkeypatch.setenv("WPK_DEBUG", "1")
    with pytest.raises(IndexError):
        line.run_command(["compile", str(small_onnx)])


def test_interrupt_is_130(cli: Cli, small_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "build", raising(KeyboardInterrupt()))
    refused(cli("compile", small_onnx), 130, "interrupted")


def test_wrong_environment_is_an_error_too(
    cli: Cli, small_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WPK_THREADS", "many")
    refused(cli("doctor"), 2, "threads", "many")


def test_exit_codes_are_documented_and_distinct() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.WpkError)]
    codes = {c.exit_code for c in classes}
    assert len(codes) == len(classes)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for code in codes:
        assert re.search(rf"^\| {code} \|", readme, re.MULTILINE), code
        assert re.search(rf"\b{code}\b", line.__doc__ or "")


def test_doctor_finds_this_machine(cli: Cli) -> None:
    ran = cli("doctor")
    assert ran.code == 0
    for name in ("compiler", "cache", "native runtime", "onnxruntime", "nvrtc", "GPU"):
        assert name in ran.out


def test_doctor_fails_without_a_compiler(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WPK_CC", "/no/such/cc")
    ran = cli("doctor")
    assert ran.code == 1 and "/no/such/cc" in ran.out
