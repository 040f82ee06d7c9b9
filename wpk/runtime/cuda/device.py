"""What running a CUDA plan needs of a GPU: memory, copies, calls, recordings (CUDA graphs). One real device, one emulated.

The seam is narrow on purpose: :class:`wpk.runtime.cuda.driver.CudaDevice` is the GPU; the emulator that proves generated
kernels without one (:mod:`wpk.cuda.emulated_device`) offers the same, so that plans, runners and measuring are tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from wpk.core.launch import Launch, TensorMap
from wpk.core.target import Target

#: Puts one call on a stream (a ``CUstream`` as an integer).
Enqueue = Callable[[int], None]

#: Puts a library's call on a stream, given its arguments' pointers.
LibraryCall = Callable[[int, Sequence[int]], None]


@dataclass(frozen=True)
class Binary:
    """A compiled translation unit: ``cubin`` for a GPU, and the CUDA ``text`` it was compiled from, for the emulator."""

    name: str
    cubin: bytes
    text: str = ""


@dataclass(frozen=True)
class Span:
    """``nbytes`` of device memory from ``pointer``."""

    pointer: int
    nbytes: int


@dataclass(frozen=True)
class Call:
    """One generated kernel ready to bind: launches in order, all with the same arguments; see wpk.core.launch.CudaSource."""

    binary: Binary
    launches: tuple[Launch, ...]
    tensor_maps: tuple[TensorMap, ...]
    arguments: tuple[Span, ...]
    workspace: Span
    outputs: int


class Recording(Protocol):
    """Work recorded once, to be launched many times."""

    def launch(self, stream: int) -> None:
        """Put all of it on ``stream``."""
        ...

    def close(self) -> None:
        """Free it. A second call does nothing."""
        ...


class Device(Protocol):
    """A GPU. Pointers and streams are plain integers. Methods may be called from any thread, one at a time."""

    @property
    def name(self) -> str:
        """As the driver calls it, such as ``NVIDIA H200``."""
        ...

    @property
    def target(self) -> Target:
        """The GPU as the compiler sees it."""
        ...

    @property
    def stream(self) -> int:
        """The stream that a runner's calls are put on."""
        ...

    def allocate(self, nbytes: int) -> int:
        """A pointer to new memory, aligned to 256 bytes. Raises DeviceMemoryError."""
        ...

    def free(self, pointer: int) -> None:
        """Give memory back."""
        ...

    def upload(self, pointer: int, array: np.ndarray) -> None:
        """Copy a C-ordered array to the device; done when it returns."""
        ...

    def download(self, pointer: int, array: np.ndarray) -> None:
        """Copy to a C-ordered array, after all work on the stream; done when it returns."""
        ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy within the device, on ``stream``."""
        ...

    def bind(self, call: Call) -> Enqueue:
        """Load the kernel's binary where that is still to do, fix its arguments. Raises ArtifactError for a bad binary."""
        ...

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        """A call of a vendor library (``cudnn``, ``cublaslt``). Raises DeviceError when it is not installed or refuses."""
        ...

    def record(self, work: Sequence[Enqueue], after: Sequence[Sequence[int]]) -> Recording:
        """Record ``work``; item i starts when those of ``after[i]`` (all < i) are done, beside others."""
        ...

    def elapsed(self, work: Enqueue, ahead: Enqueue | None = None) -> float:
        """Seconds that ``work`` takes on the stream, by the device's own clock. Waits for it.

        ``ahead`` runs first, untimed: an idle device would wait for ``work`` to be put on the stream, and count that too.
        """
        ...

    def synchronize(self) -> None:
        """Wait for the stream. Raises DeviceError when a kernel faulted."""
        ...

    def close(self) -> None:
        """Free what is left. A second call does nothing."""
        ...



