"""Runs emitted C without the native runtime: compile, load, call with a serial ``parallel``."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from wpk.core.target import host_target
from wpk.dsl.codegen.c import CSource, emit
from wpk.dsl.ir import Kernel
from wpk.measure.builder import build
from wpk.measure.toolchain import Compiler, find_compiler

THREADS = 2

#: lanes of float32 to test each ISA with; what is printed for NEON is portable, so it runs on any machine
WIDTHS = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 2}


@cache
def compiler() -> Compiler:
    """The C compiler of this machine."""
    return find_compiler()


def runnable(isa: str) -> bool:
    """Can this machine run code of ``isa``?"""
    return isa == "neon" or isa in host_target().isas


def run_c(kernel: Kernel, isa: str, args: dict[str, np.ndarray]) -> CSource:
    """Emit, compile and run ``kernel``; the ``out`` arrays of ``args`` are written. Returns the source."""
    source = emit(kernel, isa, "kernel_under_test")
    library = ctypes.CDLL(str(build(source.text, isa, compiler(), Path(gettempdir()) / "wpk-test-cache")))
    function = library.kernel_under_test
    function.restype = ctypes.c_int
    arrays = [aligned(args[p.name]) for p in kernel.params]
    pointers = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
    workspace = aligned(np.full((source.shared_bytes + THREADS * source.thread_bytes) // 4 + 16, math.nan, np.float32))
    runtime = _Runtime(THREADS, _SERIAL)
    code = function(None, pointers, ctypes.c_void_p(workspace.ctypes.data), ctypes.byref(runtime))
    assert code == 0
    for p, a in zip(kernel.params, arrays, strict=True):
        args[p.name][...] = a
    return source


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a 64-byte aligned address, 64 bytes of other memory before and behind."""
    room = np.full(array.nbytes + 256, 0xAB, np.uint8)
    start = 64 - room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)
_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class _Runtime(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int), ("parallel", _PARALLEL))


def _serial(_rt: int, body: int, ctx: int, n: int, grain: int) -> None:
    """Chunks of ``grain``, the last first, on threads in turn."""
    for k, begin in reversed(list(enumerate(range(0, n, grain)))):
        _BODY(body)(ctx, begin, min(begin + grain, n), k % THREADS)


_SERIAL = _PARALLEL(_serial)
