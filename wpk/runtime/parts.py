"""What a runner is made of, in memory or read from an artifact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wpk.runtime.plan import Plan

#: The content of a binary: bytes, or the file that holds it.
Content = bytes | memoryview | Path


@dataclass(frozen=True)
class Parts:
    """Everything a runner needs. ``weights`` are physical arrays, ``models`` serialized ONNX of onnxruntime steps.

    ``sources`` is for readers only: symbol → the C text that a generated kernel was compiled from.
    """

    plan: Plan
    binaries: Mapping[str, Content]
    weights: Mapping[str, np.ndarray]
    models: Mapping[str, bytes] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
