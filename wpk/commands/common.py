"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from wpk.core.errors import StorageError, UsageError
from wpk.report.engines import random_feeds
from wpk.report.explain import Row
from wpk.runtime.cuda.runner import CudaRunner
from wpk.runtime.runner import Runner

_PROFILES = 7


def profile(runner: Runner | CudaRunner, repeats: int = _PROFILES) -> dict[str, float]:
    """Step name → median seconds over ``repeats`` runs on random inputs, after a warm-up."""
    feeds = random_feeds(runner.plan.inputs)
    runner.profile(feeds)
    taken = [runner.profile(feeds) for _ in range(repeats)]
    return {name: float(np.median([p[i][1] for p in taken])) for i, (name, _) in enumerate(taken[0])}


def find_row(rows: Sequence[Row], node: str) -> Row:
    """The row of a step, or of a node of the ONNX model that it stands for. Raises UsageError with near names."""
    for row in rows:
        if node == row.node or node in row.origin:
            return row
    near = [r.node for r in rows if node.lower() in r.node.lower()][:5] or [r.node for r in rows[:5]]
    raise UsageError(f"no node {node!r} in the plan; there is {', '.join(near)}, …")


def table(*columns: str) -> Table:
    grid = Table(header_style="bold")
    for name in columns:
        grid.add_column(
            name,
            overflow="fold",
            justify="right"
            if name
            in (
                "min",
                "mean",
                "max",
                "bytes",
                "runs",
                "entries",
                "failed",
                "best",
                "stale",
                "median",
                "spread",
                "ratio",
                "difference",
            )
            else "left",
        )
    return grid


def write_text(path: Path, text: str) -> None:
    """Write a small file. Raises StorageError."""
    try:
        path.write_text(text)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
