"""``libwpkrt.so`` through ctypes: threads, prepared plans, adapters, the timing loop. Mirrors ``native/wpk_runtime.h``."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_ubyte, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpk.core.errors import ArtifactError, InternalError
from wpk.core.libraries import INSTALL, find_library
from wpk.runtime.binaries import Binary, open_binary
from wpk.runtime.parts import Content

#: The name of the runtime among the binaries of an artifact.
RUNTIME = "libwpkrt.so"
VERSION = 1

_ERROR_BYTES = 512
#: Seconds of a probe of the machine's speed.
_PROBE = 3e-4
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "wpk_runtime_version": (c_int, ()),
    "wpk_pool_create": (c_void_p, (c_int, c_int)),
    "wpk_pool_destroy": (None, (c_void_p,)),
    "wpk_pool_rt": (c_void_p, (c_void_p,)),
    "wpk_pool_hot": (None, (c_void_p, c_int)),
    "wpk_pool_quiet": (None, (c_void_p,)),
    "wpk_plan_create": (
        c_void_p,
        (c_int64, POINTER(c_void_p), POINTER(c_void_p), POINTER(c_int32), POINTER(c_int32), POINTER(c_int64),
         POINTER(c_ubyte)),
    ),
    "wpk_plan_destroy": (None, (c_void_p,)),
    "wpk_run": (
        c_int,
        (c_void_p, c_void_p, POINTER(c_void_p), c_void_p, c_int64, c_int64, POINTER(c_int64), POINTER(c_double)),
    ),
    "wpk_time": (
        c_int,
        (c_void_p, c_void_p, POINTER(c_void_p), c_int, c_int, c_void_p, c_void_p, c_void_p, POINTER(c_double)),
    ),
    "wpk_read_bandwidth": (c_double, (c_void_p, c_int64, c_int)),
    "wpk_fma_peak": (c_double, (c_void_p, c_double)),
}  # fmt: skip


class TimingSpec(ctypes.Structure):
    """How to time: ``wpk_timing`` of ``wpk_runtime.h``; times in seconds, ``target_spread`` relative to the median."""

    _fields_ = (
        ("warmup", c_int32),
        ("min_samples", c_int32),
        ("max_samples", c_int32),
        ("reserved", c_int32),
        ("max_seconds", c_double),
        ("target_spread", c_double),
        ("min_sample", c_double),
        ("hopeless", c_double),
    )


@dataclass(frozen=True)
class Call:
    """Something the executor can call: addresses of the function and of its state (0 for generated kernels)."""

    fn: int
    state: int = 0


@dataclass(frozen=True)
class Prepared:
    """A step ready to run: its call, its arguments as (buffer index, byte offset), whether it brings threads of its own."""

    call: Call
    args: tuple[tuple[int, int], ...]
    own_threads: bool = False


class Adapter:
    """A library call: state made by ``wpk_<kind>_create`` from integers; see the adapters' C files for their meaning."""

    def __init__(self, native: Native, kind: str, spec: dict[str, Any], threads: int) -> None:
        create, run, destroy = (
            native.binary.address(f"wpk_{kind}_{verb}") for verb in ("create", "run", "destroy")
        )
        self._destroy = ctypes.CFUNCTYPE(None, c_void_p)(destroy)
        prototype = ctypes.CFUNCTYPE(c_void_p, POINTER(c_int64), c_int64, c_char_p, c_int, c_char_p, c_int)
        desc = [int(x) for x in spec["desc"]]
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        state = prototype(create)(
            (c_int64 * len(desc))(*desc), len(desc), _library_path(spec), threads, error, _ERROR_BYTES
        )
        if not state:
            raise ArtifactError(
                f"{kind}: {error.value.decode(errors='replace') or 'the call cannot be created'}"
            )
        self.call = Call(run, state)

    def close(self) -> None:
        """Free the state. A second call does nothing."""
        if self.call.state:
            self._destroy(self.call.state)
            self.call = Call(self.call.fn, 0)


class Pool:
    """A thread pool of ``threads`` threads, the caller among them."""

    def __init__(self, native: Native, threads: int, pin: bool = False) -> None:
        self._library = native.library
        self.handle: int | None = self._library.wpk_pool_create(threads, int(pin))
        if not self.handle:
            raise MemoryError("no memory for a thread pool")
        self.threads = threads

    @property
    def rt(self) -> int:
        """The address of the ``wpk_rt`` that kernels are given."""
        return int(self._library.wpk_pool_rt(self.handle))

    def quiet(self) -> None:
        """Put the workers to sleep: before code that has threads of its own."""
        self._library.wpk_pool_quiet(self.handle)

    def close(self) -> None:
        """End the workers. A second call does nothing."""
        if self.handle:
            self._library.wpk_pool_destroy(self.handle)
            self.handle = None


class NativePlan:
    """Steps in the executor's form; one call runs a stretch of them."""

    def __init__(self, native: Native, steps: Sequence[Prepared]) -> None:
        self._library = native.library
        starts = [0]
        for step in steps:
            starts.append(starts[-1] + len(step.args))
        pairs = [pair for step in steps for pair in step.args]
        self.count = len(steps)
        self.handle: int | None = self._library.wpk_plan_create(
            len(steps),
            (c_void_p * len(steps))(*(s.call.fn for s in steps)),
            (c_void_p * len(steps))(*(s.call.state or None for s in steps)),
            (c_int32 * len(starts))(*starts),
            (c_int32 * len(pairs))(*(buffer for buffer, _ in pairs)),
            (c_int64 * len(pairs))(*(offset for _, offset in pairs)),
            (c_ubyte * len(steps))(*(s.own_threads for s in steps)),
        )
        if not self.handle:
            raise MemoryError("no memory for a plan")
        self._failed = c_int64(0)

    def run(
        self, pool: Pool, bases: ctypes.Array[c_void_p], workspace: int, first: int, last: int,
        seconds: ctypes.Array[c_double] | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Run steps ``first <= i < last``. Returns (0, 0), or the code and index of the step that failed."""
        code = self._library.wpk_run(
            self.handle, pool.handle, bases, workspace, first, last, ctypes.byref(self._failed), seconds
        )
        return (code, self._failed.value) if code else (0, 0)

    def close(self) -> None:
        """Free the plan. A second call does nothing."""
        if self.handle:
            self._library.wpk_plan_destroy(self.handle)
            self.handle = None


class Native:
    """The loaded runtime. Made by :func:`load_native`; stays loaded until the process ends."""

    def __init__(self, binary: Binary) -> None:
        self.binary = binary
        self.library = binary.library
        for name, (result, arguments) in _SIGNATURES.items():
            binary.address(name)
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        if (found := self.library.wpk_runtime_version()) != VERSION:
            raise ArtifactError(f"the native runtime has interface version {found}, expected {VERSION}")

    def time(
        self, call: Call, arg_sets: Sequence[Sequence[int]], workspace: int, pool: Pool, how: TimingSpec
    ) -> list[float]:
        """Samples in seconds a call. ``arg_sets``: the addresses of the arguments, one sequence a set, used in rotation.

        Raises InternalError when the call returns an error code.
        """
        flat = [address for addresses in arg_sets for address in addresses]
        samples = (c_double * max(how.max_samples, 1))()
        count = self.library.wpk_time(
            call.fn, call.state or None, (c_void_p * len(flat))(*flat), len(arg_sets[0]), len(arg_sets),
            workspace or None, pool.rt, ctypes.byref(how), samples,
        )  # fmt: skip
        if count < 0:
            raise InternalError(f"the call returned error {-count}")
        return list(samples[:count])

    def read_bandwidth(self, pool: Pool, nbytes: int = 1 << 28, repeats: int = 5) -> float:
        """Bytes a second that the pool's threads read together from memory; 0 when there is no memory to try."""
        return float(self.library.wpk_read_bandwidth(pool.rt, nbytes, repeats))

    def fma_peak(self, pool: Pool, seconds: float = 0.1) -> float:
        """float32 operations a second (a multiply-add is two) that the pool's threads reach together."""
        return float(self.library.wpk_fma_peak(pool.rt, seconds))

    def speed(self, pool: Pool) -> float:
        """How fast the machine is at this moment: as :meth:`fma_peak`, in 0.3 ms, after which the workers sleep."""
        found = self.fma_peak(pool, _PROBE)
        pool.quiet()
        return found


_loaded: dict[str, Native] = {}
_loading = threading.Lock()


def load_native(content: Content) -> Native:
    """The runtime in ``content``. Equal content is loaded once a process and never unloaded: libraries that an adapter
    opened may hold pointers into it. Raises ArtifactError when it does not load or has another interface.
    """
    data = content.read_bytes() if isinstance(content, Path) else content
    key = hashlib.sha256(data).hexdigest()
    with _loading:
        if key not in _loaded:
            _loaded[key] = Native(open_binary(RUNTIME, content))
        return _loaded[key]


def _library_path(spec: dict[str, Any]) -> bytes:
    """The file of the library a spec names: a name of :data:`wpk.core.libraries.INSTALL`, a path, or none."""
    name = str(spec.get("library", ""))
    if name not in INSTALL:
        return name.encode()
    path = find_library(name)
    if path is None:
        raise ArtifactError(f"the library {name} is not installed: {INSTALL[name]}")
    return str(path).encode()
