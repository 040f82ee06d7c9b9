"""Settings come from defaults, the file, the environment, in that order; wrong values are named."""

from pathlib import Path

import pytest

from wpk.core.errors import UsageError
from wpk.settings import effort, load_settings, parse_budget, shipped_names, shipped_target


def test_defaults(tmp_path: Path) -> None:
    found = load_settings({"HOME": str(tmp_path)})
    assert (found.cc, found.threads, found.debug) == (None, None, False)
    assert found.cache.is_relative_to(tmp_path)


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('cache = "/from/file"\ncc = "clang"\nthreads = 3\n')
    found = load_settings({"WPK_CONFIG": str(file), "WPK_THREADS": "5", "WPK_DEBUG": "1"})
    assert (str(found.cache), found.cc, found.threads, found.debug) == ("/from/file", "clang", 5, True)


@pytest.mark.parametrize(
    "text, named", [("chache = 1", "chache"), ("cache =", "config.toml"), ("threads = 0", "threads")]
)
def test_wrong_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=named):
        load_settings({"WPK_CONFIG": str(file)})


def test_missing_named_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="WPK_CONFIG"):
        load_settings({"WPK_CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.parametrize(
    "text, seconds", [("60", 60), (2.5, 2.5), ("90s", 90), ("2m", 120), ("1.5h", 5400), ("500ms", 0.5)]
)
def test_budget(text: str | float, seconds: float) -> None:
    assert parse_budget(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-3", "3 weeks", "1e3"])
def test_wrong_budget(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_budget(text)


def test_shipped_data_loads() -> None:
    levels = [effort(name) for name in shipped_names("effort")]
    assert {level.name for level in levels} == {"quick", "normal", "thorough"}
    assert effort("quick").budget < effort("normal").budget < effort("thorough").budget
    targets = [shipped_target(name) for name in shipped_names("targets")]
    assert all((t.isas[-1] == "scalar" or t.gpu is not None) and t.threads >= 1 for t in targets)
    assert len({t.fingerprint for t in targets}) == len(targets) >= 4


def test_unknown_level_lists_the_known() -> None:
    with pytest.raises(UsageError, match="normal, quick, thorough"):
        effort("extreme")
