"""What a runner is made of, in memory or read from an artifact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wpk.core.errors import ArtifactError
from wpk.runtime.plan import Plan, Step

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

    def binary(self, name: str) -> Content:
        """A binary. Raises ArtifactError when it is missing."""
        if name not in self.binaries:
            raise ArtifactError(f"binary {name!r} is missing")
        return self.binaries[name]

    def model(self, step: Step) -> bytes:
        """The model of an onnxruntime step. Raises ArtifactError when it is missing."""
        key = (step.spec or {}).get("model", "")
        if key not in self.models:
            raise ArtifactError(f"step {step.name!r}: its model {key!r} is missing")
        return self.models[key]

    def weight(self, key: str, nbytes: int) -> np.ndarray:
        """A weight of ``nbytes``. Raises ArtifactError when it is missing or has another size."""
        if key not in self.weights:
            raise ArtifactError(f"weight {key!r} is missing")
        array = self.weights[key]
        if array.nbytes != nbytes:
            raise ArtifactError(f"weight {key!r}: expected {nbytes} bytes, found {array.nbytes}")
        return array
