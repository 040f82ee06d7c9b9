"""Memory for the runner: aligned arrays, and one arena that the system may back with huge pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from math import prod

import numpy as np

#: What kernels like best: a cache line, and the widest vector.
ALIGN = 64
_HUGE = 2 << 20


def address_of(array: np.ndarray) -> int:
    """The address of the first element."""
    return int(array.__array_interface__["data"][0])


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new C-ordered array at a multiple of 64 bytes, its content undefined."""
    block = np.empty(prod(shape) * dtype.itemsize + ALIGN, np.uint8)
    return np.ndarray(shape, dtype, block, -address_of(block) % ALIGN)


def is_aligned(array: np.ndarray) -> bool:
    """True for a C-ordered array that starts at a multiple of 64 bytes."""
    return array.flags.c_contiguous and address_of(array) % ALIGN == 0


def round_up(nbytes: int) -> int:
    """The next multiple of 64."""
    return -(-nbytes // ALIGN) * ALIGN


class Arena:
    """Zeroed memory from the system, at a multiple of 4096 bytes, or of 2 MiB when it is that large."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        huge = nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE")
        try:
            self._map = mmap.mmap(-1, max(nbytes, 1) + (_HUGE if huge else 0))
        except OSError as error:
            raise MemoryError(f"no memory for an arena of {nbytes / 1e6:.1f} MB: {error.strerror}") from error
        if huge:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._start = -base % _HUGE if huge else 0
        self.address = base + self._start

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The C-ordered array at ``offset`` bytes; it keeps the memory alive."""
        return np.frombuffer(self._map, dtype, prod(shape), self._start + offset).reshape(shape)


def align_all(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays, those that :func:`is_aligned` denies copied, next to each other, into one arena."""
    moved = {name: array for name, array in arrays.items() if not is_aligned(array)}
    arena = Arena(sum(round_up(array.nbytes) for array in moved.values()))
    result, offset = dict(arrays), 0
    for name, array in moved.items():
        result[name] = copy = arena.array(offset, array.shape, array.dtype)
        copy[...] = array
        offset += round_up(array.nbytes)
    return result
