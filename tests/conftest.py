"""What many tests share: a cache of their own, the command line as a call, a small model and its artifact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from small import Ran, small_model


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Builds go to a folder of this test run; the user's settings play no part."""
    folder = tmp_path_factory.mktemp("cache")
    saved = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith("WPK_")}
    os.environ |= {"WPK_CACHE": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
    yield folder
    for key in ("WPK_CACHE", "XDG_CONFIG_HOME"):
        del os.environ[key]
    os.environ |= saved


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``cli("compile", path, …)`` → exit code and what was printed, in this process."""
    from wpk.cli import run_command

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run_command([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of :func:`small_model`."""
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save_model(small_model(), str(path))
    return path


@pytest.fixture(scope="session")
def small_wpk(small_onnx: Path, own_cache: Path) -> Path:
    """:func:`small_model`, compiled in a moment."""
    import wpk

    path = small_onnx.with_suffix(".wpk")
    wpk.compile(small_onnx, output=path, budget=2.0, log=small_onnx.with_suffix(".jsonl"), threads=2).close()
    return path
