"""The package list in pyproject.toml is the tree: nothing forgotten, nothing that is gone."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = ("wpk", "search", "dsl", "kernels", "configs")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages_in_tree() -> set[str]:
    """Dotted installed names of every folder under TOPS that has an ``__init__.py``."""
    folders = [init.parent.relative_to(ROOT) for top in TOPS for init in (ROOT / top).rglob("__init__.py")]
    return {".".join(f.parts if f.parts[0] == "wpk" else ("wpk", *f.parts)) for f in folders}


def test_every_package_is_listed() -> None:
    assert set(SETTINGS["packages"]) == packages_in_tree()


def test_every_python_file_is_in_a_package() -> None:
    files = [f for top in TOPS for f in (ROOT / top).rglob("*.py")]
    assert [f for f in files if not (f.parent / "__init__.py").exists()] == []


def test_top_folders_install_under_one_name() -> None:
    assert SETTINGS["package-dir"] == {"wpk": "wpk"} | {f"wpk.{top}": top for top in TOPS if top != "wpk"}


def test_data_patterns_cover_the_data() -> None:
    covered = set()
    for package, patterns in SETTINGS["package-data"].items():
        folder = ROOT / (
            package.removeprefix("wpk.") if package.split(".")[1] in TOPS else package.replace(".", "/")
        )
        covered |= {f for pattern in patterns for f in folder.glob(pattern)}
    kinds = {".c", ".h", ".j2", ".toml", ".jsonl"}
    data = {f for top in TOPS for f in (ROOT / top).rglob("*") if f.suffix in kinds}
    assert data - covered == set()
