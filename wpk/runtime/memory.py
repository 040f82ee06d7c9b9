"""Memory for the runner: aligned arrays, and one arena that the system may back with huge pages."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

#: What kernels like best: a cache line, and the widest vector.
ALIGN = 64
_HUGE = 2 << 20


def address_of(array: np.ndarray) -> int:
    """The address of the first element."""
    return int(array.__array_interface__["data"][0])


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new C-ordered array at a multiple of 64 bytes, its content undefined."""
    nbytes = dtype.itemsize
    for extent in shape:
        nbytes *= extent
    block = np.empty(nbytes + ALIGN, np.uint8)
    start = -address_of(block) % ALIGN
    return block[start : start + nbytes].view(dtype).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
    """``array`` itself when it is C-ordered and starts at a multiple of 64 bytes, else such a copy."""
    if array.flags.c_contiguous and address_of(array) % ALIGN == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


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
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        if huge:
            self.address += -self.address % _HUGE
