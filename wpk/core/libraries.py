"""Where the optional vendor libraries are: found by their files, without importing or loading anything."""

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: library → how to get it, for messages.
INSTALL = {
    "onednn": "pip install 'wpk[onednn]'",
    "openblas": "pip install 'wpk[openblas]'",
}


def find_library(name: str) -> Path | None:
    """The shared library of ``onednn`` or ``openblas``; None when it is not installed."""
    candidates = {"onednn": _onednn, "openblas": _openblas}[name]
    return next((path for path in candidates() if path.is_file()), None)


def _onednn() -> Iterator[Path]:
    """The onednn-cpu-gomp wheel puts its data files under the environment's root."""
    roots = (sysconfig.get_path("data"), sys.prefix, sys.base_prefix)
    for root in dict.fromkeys(map(Path, roots)):
        yield from (root / "lib" / name for name in ("libdnnl.so.3", "libdnnl.3.dylib"))


def _openblas() -> Iterator[Path]:
    spec = importlib.util.find_spec("scipy_openblas64")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "lib"
        yield from (folder / name for name in ("libscipy_openblas64_.so", "libscipy_openblas64_.dylib"))
