"""The seam between operators and the places implementations come from. A provider is: supports / space / build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wpk.core.launch import CudaSource
from wpk.core.result import Config
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.search.space import Space


@dataclass(frozen=True)
class Support:
    """Whether a provider can implement a workload; ``reason`` says why not."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Source:
    """Text of a translation unit that defines ``symbol`` with the ABI of ``runtime/native/wpk.h``.

    ``isa`` chooses compiler flags. The workspace is ``shared_bytes + threads * thread_bytes``.
    """

    text: str
    symbol: str
    isa: str
    shared_bytes: int = 0
    thread_bytes: int = 0


@dataclass(frozen=True)
class Code:
    """How a workload runs: generated source, or a call of a library adapter described by plain JSON data.

    ``kind``: ``kernel`` (``source`` is set), ``cuda`` (``cuda`` is set), ``onednn``, ``openblas``, ``onnxruntime``, ``cudnn``,
    ``cublaslt`` (``spec`` describes the call).
    ``inplace``: inputs whose memory the output may take over (same physical type, read before written, elementwise).
    ``accuracy``: class of the algorithm's rounding error, ``direct`` or ``winograd`` (:mod:`wpk.measure.check`); empty
    means that of the provider's attribute ``accuracy``, if it has one, else ``direct``.
    """

    kind: str
    source: Source | None = None
    spec: dict[str, object] | None = None
    inplace: tuple[int, ...] = ()
    accuracy: str = ""
    cuda: CudaSource | None = None


class Provider(Protocol):
    """A source of implementations. ``version`` is part of every record: when it changes, old timings are stale."""

    @property
    def name(self) -> str:
        """What ``--providers`` and records call it."""
        ...

    @property
    def version(self) -> str:
        """Of the library, or of the generator."""
        ...

    def supports(self, workload: Workload, target: Target) -> Support:
        """Can this provider implement ``workload`` on ``target``? Never raises."""
        ...

    def space(self, workload: Workload, target: Target) -> Space:
        """The configs to search; one point for a library with nothing to choose."""
        ...

    def build(self, workload: Workload, config: Config, target: Target) -> Code:
        """The code for one config. Raises InvalidConfig when the config cannot be built."""
        ...

    def pack(
        self, workload: Workload, config: Config, constants: Sequence[np.ndarray], target: Target
    ) -> list[np.ndarray]:
        """Constants (logical arrays, in the order of ``workload.constants``) as the code of ``config`` wants them in memory."""
        ...
