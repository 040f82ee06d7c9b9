"""Feeds and results as files: ``.npy`` for one tensor, ``.npz`` for several by name."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wpk.core.errors import FeedError, StorageError, UsageError
from wpk.runtime.plan import Port


def read_feeds(paths: Sequence[Path], inputs: Sequence[Port]) -> dict[str, np.ndarray]:
    """Arrays by input name. ``.npz`` files give names; ``.npy`` files fill the inputs in order.

    Raises FeedError for a missing, unreadable or surplus file; names, dtypes and shapes are the runner's to check.
    """
    feeds: dict[str, np.ndarray] = {}
    for path in paths:
        loaded = _load(path)
        if isinstance(loaded, np.ndarray):
            free = [p.name for p in inputs if p.name not in feeds]
            if not free:
                raise FeedError(f"{path}: the model has only {len(inputs)} inputs")
            feeds[free[0]] = loaded
        else:
            feeds.update(loaded)
    return feeds


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise FeedError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FeedError(f"{path}: expected a .npy or .npz file of plain numbers: {error}") from error


def write_results(path: Path, results: Mapping[str, np.ndarray]) -> None:
    """Write ``.npz``, or ``.npy`` for a single result. The old file stays until the new one is whole. Raises StorageError."""
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"{path}: expected a name that ends in .npy or .npz")
    if path.suffix == ".npy" and len(results) != 1:
        raise UsageError(f"{path}: the model has {len(results)} outputs ({', '.join(results)}): use .npz")
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            if path.suffix == ".npy":
                np.save(file, next(iter(results.values())))
            else:
                np.savez(file, **results)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
