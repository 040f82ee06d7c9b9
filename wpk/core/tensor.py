"""Tensor types: dtype, logical shape and layout. Everything here is plain frozen data."""

import re
from dataclasses import dataclass, replace
from math import prod

import numpy as np

DTYPE_BYTES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2,
    "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1,
    "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip

_BLOCKED = re.compile(r"NCHW(\d+)c")


def channel_block(layout: str) -> int:
    """The channel block of a layout: 16 for ``NCHW16c``, 1 for unblocked layouts."""
    match = _BLOCKED.fullmatch(layout)
    return int(match.group(1)) if match else 1


def physical_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The row-major shape in memory of a tensor of logical ``shape`` (N, C, spatial…).

    ``ROW`` keeps the logical order for any rank. ``NHWC`` moves C last. ``NCHW<b>c`` splits C into
    ceil(C/b) blocks and puts the block last: (N, ceil(C/b), H, W, b). Lanes beyond C hold zeros, always:
    whoever writes such a tensor writes those zeros.
    """
    if layout == "ROW":
        return shape
    if layout == "NHWC":
        return (shape[0], *shape[2:], shape[1])
    block = channel_block(layout)
    if block == 1:
        raise ValueError(f"unknown layout {layout!r}")
    return (shape[0], -(-shape[1] // block), *shape[2:], block)


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Convert a logical (N, C, spatial…) array to the physical array of ``layout``; padding lanes are zero."""
    if layout == "ROW":
        return np.ascontiguousarray(array)
    if layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))
    block = channel_block(layout)
    n, c, *spatial = array.shape
    blocks = -(-c // block)
    padded = np.zeros((n, blocks * block, *spatial), array.dtype)
    padded[:, :c] = array
    return np.ascontiguousarray(np.moveaxis(padded.reshape(n, blocks, block, *spatial), 2, -1))


def from_layout(array: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """The inverse of :func:`to_layout`: the logical array of ``shape`` held by a physical array."""
    physical = array.reshape(physical_shape(shape, layout))
    if layout == "ROW":
        return physical
    if layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(physical, -1, 1))
    merged = np.moveaxis(physical, -1, 2).reshape(shape[0], -1, *shape[2:])
    return np.ascontiguousarray(merged[:, : shape[1]])


@dataclass(frozen=True)
class TensorType:
    """A dtype, a logical shape (N, C, spatial… for activations) and a layout (``ROW``, ``NCHW16c``, ``NCHW8c``, ``NHWC``)."""

    dtype: str
    shape: tuple[int, ...]
    layout: str = "ROW"

    @property
    def physical(self) -> tuple[int, ...]:
        """Row-major shape in memory."""
        return physical_shape(self.shape, self.layout)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, padding lanes included."""
        return prod(self.physical) * DTYPE_BYTES[self.dtype]

    def with_layout(self, layout: str) -> "TensorType":
        """The same tensor in another layout."""
        return replace(self, layout=layout)

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.dtype}[{dims}]" + ("" if self.layout == "ROW" else f"@{self.layout}")
