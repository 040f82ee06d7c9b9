"""How generated CUDA kernels are started: plain data that goes into records, plans and artifacts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
class TensorMap:
    """A tensor in a parameter's memory as TMA copies boxes of it; axes innermost first, as ``cuTensorMapEncodeTiled`` has them.

    ``parameter`` counts the kernel's parameters, the workspace last; ``offset`` in bytes from its start. ``shape`` and
    ``box`` in elements, ``strides`` in bytes of all axes but the innermost. ``swizzle`` is 0, 32, 64 or 128 bytes; elements
    outside the tensor read as zero. ``dtype`` is an element's, or ``tf32``: float32, rounded to that as it is read, in whatever
    way the device rounds. ``steps``: the box takes each so-many-th element along an axis (up to 8; 1 of the
    innermost); () takes all.
    """

    parameter: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    offset: int = 0
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class CudaSource:
    """A CUDA translation unit and the launches that make up one call of the kernel, in order, on one stream.

    Every launch gets the same arguments: pointers to all parameters in the kernel's order, then one to the workspace
    (null when ``workspace_bytes`` is 0), then the tensor maps by value (``const __grid_constant__ tensor_map``). The text
    includes ``wpk_device.cuh`` only and names no other header.
    """

    text: str
    launches: tuple[Launch, ...]
    workspace_bytes: int = 0
    tensor_maps: tuple[TensorMap, ...] = ()

    def calls(self) -> dict[str, Any]:
        """The launches and tensor maps as plain JSON data, for plans; :func:`calls_of` reads them."""
        return {"launches": [_listed(x) for x in self.launches], "tensor_maps": [_listed(m) for m in self.tensor_maps]}


def _listed(value: Launch | TensorMap) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}


def calls_of(spec: dict[str, Any]) -> tuple[tuple[Launch, ...], tuple[TensorMap, ...]]:
    """The inverse of :meth:`CudaSource.calls`. Raises KeyError or TypeError on data of another schema."""

    def plain(data: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}

    launches = tuple(Launch(**plain(x)) for x in spec["launches"])
    return launches, tuple(TensorMap(**plain(m)) for m in spec["tensor_maps"])
