"""Guarded memory for candidates: pages that must not be touched before and after, canaries in the slack between.

The end of the data lies within 64 bytes of the pages behind it, so a write past the end faults at once or hits a canary.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
#: Bytes before and after that fault when touched.
GUARD = 16 * PAGE
ALIGN = 64
_CANARY = 0xA5
_NONE, _READ, _READ_WRITE = 0, 1, 3
_libc = ctypes.CDLL(None, use_errno=True)


def rounded(nbytes: int) -> int:
    """``nbytes`` up to the next multiple of 64."""
    return -(-nbytes // ALIGN) * ALIGN


class Region:
    """``copies`` blocks of ``nbytes``, each 64-byte aligned, one after the other, between guard pages."""

    def __init__(self, nbytes: int, copies: int = 1) -> None:
        """Raises MemoryError when the system refuses."""
        self.nbytes, self.copies, self.stride = nbytes, copies, rounded(nbytes)
        self._inner = -(-max(self.stride * copies, 1) // PAGE) * PAGE
        try:
            self._map = mmap.mmap(-1, self._inner + 2 * GUARD)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"cannot map {self._inner} bytes") from error
        self._bytes: np.ndarray = np.frombuffer(self._map, np.uint8)
        self._base = int(self._bytes.ctypes.data)
        self._start = GUARD + self._inner - self.stride * copies
        self.fill_slack()
        self._protect(0, GUARD, _NONE)
        self._protect(GUARD + self._inner, GUARD, _NONE)

    def address(self, copy: int = 0) -> int:
        """Where block ``copy`` starts."""
        return self._base + self._start + copy * self.stride

    def block(self, copy: int = 0) -> np.ndarray:
        """The bytes of block ``copy``, writable."""
        start = self._start + copy * self.stride
        return self._bytes[start : start + self.nbytes]

    def view(self, dtype: np.dtype, shape: tuple[int, ...], copy: int = 0) -> np.ndarray:
        """Block ``copy`` as an array."""
        return self.block(copy).view(dtype).reshape(shape)

    def fill(self, array: np.ndarray) -> None:
        """Every block becomes the bytes of ``array``."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for copy in range(self.copies):
            self.block(copy)[:] = source

    def poison(self) -> None:
        """All bits set: NaN in every float dtype."""
        self._bytes[self._start : self._start + self.stride * self.copies] = 0xFF
        self.fill_slack()

    def readonly(self, on: bool = True) -> None:
        """Make writes fault, or allow them again."""
        self._protect(GUARD, self._inner, _READ if on else _READ_WRITE)

    def intact(self) -> bool:
        """True when nothing was written between the data and the guard pages."""
        return all(bool((slack == _CANARY).all()) for slack in self._slack())

    def close(self) -> None:
        """Give the memory back, at once unless a view of it is still alive."""
        del self._bytes
        with contextlib.suppress(BufferError):
            self._map.close()

    def _slack(self) -> list[np.ndarray]:
        ends = [self._bytes[GUARD : self._start]]
        for copy in range(self.copies):
            start = self._start + copy * self.stride
            ends.append(self._bytes[start + self.nbytes : start + self.stride])
        return ends

    def fill_slack(self) -> None:
        """Put the canaries in place."""
        for slack in self._slack():
            slack[:] = _CANARY

    def _protect(self, offset: int, nbytes: int, how: int) -> None:
        if _libc.mprotect(ctypes.c_void_p(self._base + offset), ctypes.c_size_t(nbytes), how):
            raise MemoryError("cannot protect pages")


class Reuse:
    """Regions of earlier candidates, by shape: touching fresh pages costs more than filling old ones."""

    def __init__(self, most: int = 512 << 20) -> None:
        """``most``: bytes kept."""
        self._most = most
        self._free: dict[tuple[int, int], list[Region]] = {}

    def take(self, nbytes: int, copies: int = 1) -> Region:
        """A writable region, its content undefined. Raises MemoryError."""
        free = self._free.get((nbytes, copies))
        if not free:
            return Region(nbytes, copies)
        region = free.pop()
        region.readonly(False)
        region.fill_slack()
        return region

    def give(self, region: Region) -> None:
        """Keep a region for later, unless much is kept already."""
        kept = sum(r.stride * r.copies for free in self._free.values() for r in free)
        if kept + region.stride * region.copies > self._most:
            self.clear()
        if region.stride * region.copies <= self._most:
            self._free.setdefault((region.nbytes, region.copies), []).append(region)
        else:
            region.close()

    def clear(self) -> None:
        """Give everything back to the system."""
        for free in self._free.values():
            for region in free:
                region.close()
        self._free = {}
