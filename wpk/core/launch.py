"""How generated CUDA kernels are started: plain data that goes into records, plans and artifacts."""

from __future__ import annotations

from dataclasses import dataclass

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """One ``__global__`` function and its launch shape; ``shared_bytes`` is dynamic shared memory, ``cluster`` in blocks."""

    symbol: str
    grid: Dim3
    block: Dim3
    shared_bytes: int = 0
    cluster: Dim3 = (1, 1, 1)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]


@dataclass(frozen=True)
class CudaSource:
    """A CUDA translation unit and the launches that make up one call of the kernel, in order, on one stream.

    Every launch gets the same arguments: pointers to all parameters in the kernel's order, then one to the workspace
    (null when ``workspace_bytes`` is 0). The text includes ``wpk_device.cuh`` only and names no other header.
    """

    text: str
    launches: tuple[Launch, ...]
    workspace_bytes: int = 0
