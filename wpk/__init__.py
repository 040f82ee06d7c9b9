"""wpk: an auto-tuning inference compiler. `import wpk` is cheap; names load on first use (PEP 562)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "compile": "wpk.api",
    "replay": "wpk.api",
    "load": "wpk.runtime.runner",
    "Runner": "wpk.runtime.runner",
    "CudaRunner": "wpk.runtime.cuda.runner",
    "WpkError": "wpk.core.errors",
}

__all__ = ["CudaRunner", "Runner", "WpkError", "__version__", "compile", "load", "replay"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'wpk' has no attribute {name!r}")
