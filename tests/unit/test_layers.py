"""Imports go one way: each layer may import only layers to its left. Read from the source, not from what happens to load."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: left to right; parts that stand together do not import each other
ORDER = (
    ("core",),
    ("ops", "search", "dsl", "cuda"),
    ("graph", "runtime", "kernels"),
    ("passes", "providers"),
    ("measure",),
    ("fleet",),
    ("tuning",),
    ("planner",),
    ("report",),
    ("settings",),
    ("stages",),
    ("api",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
#: the runtime must work where the compiler parts cannot be imported
ONLY = {"runtime": {"core", "runtime"}}
#: data, importable from anywhere
DATA = {"configs"}


def part_of(file: Path) -> str:
    """The layer a source file belongs to: wpk/graph/x.py → graph, dsl/ir.py → dsl, wpk/api.py → api."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "wpk" else parts[0]


def imports(text: str) -> set[str]:
    """The parts of wpk that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names) if node.module == "wpk" else {node.module}
    return {name.split(".")[1] for name in found if name.startswith("wpk.")}


def broken(part: str, imported: str) -> bool:
    """True when ``part`` may not import ``imported``."""
    if part == imported or imported in DATA or imported.startswith("__"):
        return False
    if part in ONLY:
        return imported not in ONLY[part]
    return RANK[imported] >= RANK[part]


FILES = sorted(
    f
    for top in ("wpk", "search", "dsl", "kernels")
    for f in (ROOT / top).rglob("*.py")
    if f != ROOT / "wpk/__init__.py"
)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    bad = sorted(name for name in imports(file.read_text()) if broken(part, name))
    assert bad == [], (
        f"{file.relative_to(ROOT)} is of layer {part} and may not import wpk.{', wpk.'.join(bad)}"
    )


def test_the_rule_itself() -> None:
    assert imports("from wpk.graph.graph import Graph\nimport wpk.core.errors") == {"graph", "core"}
    assert imports("def f():\n    from wpk import api") == {"api"}
    assert broken("runtime", "search") and broken("core", "graph") and broken("dsl", "search")
    assert not broken("planner", "tuning") and not broken("graph", "ops") and not broken("kernels", "configs")
