"""Golden files: expected texts beside the tests. ``pytest tests/golden --update-golden`` rewrites those that differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden``."""
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files that differ")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text equals the file ``name`` of this folder."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / name
        if request.config.getoption("--update-golden", False):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no golden file {name}; make it with --update-golden"
        assert text == path.read_text(), f"{name} differs; if that is meant, run with --update-golden"

    return check
