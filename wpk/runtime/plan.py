"""The plan: everything the runner needs, as plain data that goes to JSON. Knows nothing of graphs, search or ONNX."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Port:
    """An input or output of the model: name, NumPy dtype name, logical shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BufferSpec:
    """Memory a step can name.

    ``kind``: ``input``/``output`` (``key`` = port name), ``weight`` (``key`` = tensor name in the weights file), ``arena``
    (``offset`` into the arena). ``nbytes`` is its size.
    """

    kind: str
    nbytes: int
    key: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Arg:
    """An argument of a step: a buffer and a byte offset into it (views and concat by offset)."""

    buffer: int
    offset: int = 0


@dataclass(frozen=True)
class Step:
    """One call. ``kind``: ``kernel`` (``symbol`` in binary ``binary``), ``cuda`` (the launches of ``spec``, see
    :class:`wpk.core.launch.CudaSource`; ``shared_bytes`` is its workspace), ``onednn``/``openblas`` (``spec`` for the adapter),
    ``onnxruntime`` (breaks the plan into segments; ``spec``: ``model``, the blob's key, ``inputs`` and ``outputs``, lists of
    [name, dtype, shape]), ``copy`` (args: src, dst; ``spec.nbytes``).
    """

    name: str
    kind: str
    args: tuple[Arg, ...]
    symbol: str = ""
    binary: str = ""
    spec: dict[str, Any] | None = None
    shared_bytes: int = 0
    thread_bytes: int = 0


@dataclass(frozen=True)
class Choice:
    """Why a step is what it is, for ``wpk explain``: provider, config and the rivals' times in seconds (or failure text).

    ``flops`` and ``nbytes`` are the work of the node (direct algorithm; compulsory traffic), for the roofline.
    """

    node: str
    op: str
    workload: str
    provider: str
    config: dict[str, Any]
    seconds: float | None
    rivals: tuple[tuple[str, float | str], ...] = ()
    origin: tuple[str, ...] = ()
    flops: float = 0.0
    nbytes: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Buffers, steps and explanations of one compiled model."""

    model: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    buffers: tuple[BufferSpec, ...]
    steps: tuple[Step, ...]
    arena_bytes: int
    target: dict[str, Any]
    fingerprint: str
    choices: tuple[Choice, ...] = ()
    meta: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Rebuild from :meth:`to_json`'s data. Raises KeyError or TypeError on data of another schema."""
        ports = {
            k: tuple(Port(p["name"], p["dtype"], tuple(p["shape"])) for p in data[k])
            for k in ("inputs", "outputs")
        }
        return Plan(
            data["model"], ports["inputs"], ports["outputs"],
            tuple(BufferSpec(**b) for b in data["buffers"]),
            tuple(Step(**{**s, "args": tuple(Arg(**a) for a in s["args"])}) for s in data["steps"]),
            data["arena_bytes"], data["target"], data["fingerprint"],
            tuple(
                Choice(**{**c, "rivals": tuple((n, t) for n, t in c["rivals"]), "origin": tuple(c["origin"])})
                for c in data["choices"]
            ),
            data["meta"],
        )  # fmt: skip

    @property
    def hash(self) -> str:
        """Hash of what runs: timings and explanations do not enter it, so a replay gives the same hash."""
        bare = replace(self, choices=(), meta=None)
        return hashlib.sha256(json.dumps(bare.to_json(), sort_keys=True).encode()).hexdigest()[:16]
