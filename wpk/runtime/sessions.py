"""Steps that ONNX Runtime runs: a model of a few nodes that reads and writes the plan's buffers in place.

``spec`` of such a step: ``model`` (key of its blob), ``inputs`` and ``outputs`` (lists of [name, dtype, shape]), in the order of
the step's arguments.
"""

from __future__ import annotations

from typing import Any

from wpk.core.errors import ArtifactError
from wpk.runtime.ports import numpy_dtype


class Region:
    """One session. Its threads sleep between calls, so that they do not take cores from the runtime's own.

    ``spec["spinning"]`` lets them spin instead: for a plan that is one session and nothing else.
    """

    def __init__(self, name: str, spec: dict[str, Any], model: bytes, threads: int) -> None:
        self._name = name
        self._session = _session(name, model, threads, bool(spec.get("spinning")))
        self._binding = self._session.io_binding()
        self._values = [
            *((self._binding.bind_input, *_typed(value)) for value in spec["inputs"]),
            *((self._binding.bind_output, *_typed(value)) for value in spec["outputs"]),
        ]

    def run(self, addresses: list[int]) -> None:
        """Run on buffers at these addresses: inputs, then outputs."""
        for (bind, name, dtype, shape), address in zip(self._values, addresses, strict=True):
            bind(name, "cpu", 0, dtype, shape, address)
        self._session.run_with_iobinding(self._binding)


def _typed(value: Any) -> tuple[str, Any, tuple[int, ...]]:
    name, dtype, shape = value
    return str(name), numpy_dtype(dtype).type, tuple(int(x) for x in shape)


def _session(name: str, model: bytes, threads: int, spinning: bool) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ArtifactError(f"step {name!r} runs in ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"step {name!r}: ONNX Runtime refuses its model: {error}") from error
