"""Opens shared libraries that are bytes or files; gives addresses of their functions."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path

from wpk.core.errors import ArtifactError
from wpk.runtime.parts import Content


class Binary:
    """An open shared library. Addresses are valid until :meth:`close`."""

    def __init__(self, name: str, library: ctypes.CDLL, fd: int | None = None) -> None:
        self.name = name
        self.library = library
        self._fd = fd
        self._closed = False

    def address(self, symbol: str) -> int:
        """The address of a function. Raises ArtifactError when the library has none of that name."""
        try:
            return ctypes.cast(getattr(self.library, symbol), ctypes.c_void_p).value or 0
        except AttributeError:
            raise ArtifactError(f"binary {self.name!r} has no function {symbol!r}") from None

    def close(self) -> None:
        """Unload the library. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        _dlclose(self.library._handle)
        if self._fd is not None:
            os.close(self._fd)


def open_binary(name: str, content: Content) -> Binary:
    """Load a library from a file, or from bytes without leaving a file behind. Raises ArtifactError when it does not load."""
    try:
        if isinstance(content, Path):
            return Binary(name, ctypes.CDLL(str(content)))
        return _from_memory(name, content) or _from_temporary(name, content)
    except OSError as error:
        raise ArtifactError(f"cannot load binary {name!r}: {error}") from error


def _from_memory(name: str, content: bytes | memoryview) -> Binary | None:
    """Load through a memory file; None where the system has none or forbids to run code from it.

    The descriptor stays open as long as the library: the loader knows libraries by path, and a reused number would
    make it hand out the old one.
    """
    try:
        fd = os.memfd_create(name)
    except (AttributeError, OSError):
        return None
    try:
        _write_all(fd, content)
        return Binary(name, ctypes.CDLL(f"/proc/self/fd/{fd}"), fd)
    except OSError:
        os.close(fd)
        return None


def _from_temporary(name: str, content: bytes | memoryview) -> Binary:
    fd, path = tempfile.mkstemp(prefix="wpk-", suffix=".so")
    try:
        with contextlib.closing(os.fdopen(fd, "wb")) as file:
            file.write(content)
        return Binary(name, ctypes.CDLL(path))
    finally:
        os.unlink(path)


def _write_all(fd: int, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _dlclose(handle: int) -> None:
    close = ctypes.CDLL(None).dlclose
    close.argtypes = (ctypes.c_void_p,)
    close(handle)
