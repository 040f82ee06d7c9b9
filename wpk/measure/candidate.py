"""One candidate inside a worker: its memory, its code, one checked call, its samples."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wpk.core.tensor import DTYPE_BYTES, TensorType
from wpk.core.workload import Workload
from wpk.measure.check import Verdict, check_outputs
from wpk.measure.memory import Region, Reuse
from wpk.measure.timer import Timing, time_calls
from wpk.runtime.binaries import open_binary
from wpk.runtime.native_api import Adapter, Call, Native, Pool
from wpk.runtime.ports import numpy_dtype
from wpk.runtime.sessions import Region as Session

#: Library calls of these kinds bring threads of their own: the pool's must not spin beside them.
OWN_THREADS = ("onnxruntime",)

#: Most copies of the constants of a cold candidate: each costs an argument list.
MAX_COPIES = 512

_FN = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * 4)


class LaunchError(Exception):
    """The code loads or runs no further than an error code."""


class DeviceFault(Exception):
    """A candidate made the GPU useless for this process."""


class Checked(Protocol):
    """The operands of a workload, and what its candidates must give."""

    def poison(self) -> None:
        """Make every output NaN."""
        ...

    def check(self, tolerance: float) -> Verdict:
        """Compare what the outputs hold with what is expected; writes past their ends are wrong too."""
        ...

    def close(self) -> None:
        """Free their memory."""
        ...


class Timed(Protocol):
    """A candidate that is loaded."""

    def run(self) -> None:
        """One call. Raises LaunchError, DeviceFault."""
        ...

    def time(self, how: Timing, cold: bool = True) -> list[float]:
        """Samples in seconds a call; ``cold``: constants in the state that the request asks for, else warm ones."""
        ...

    def close(self) -> None:
        """Free memory and code."""
        ...


class Bench(Protocol):
    """What candidates run on: this machine's CPU (:class:`Machine`) or a GPU (:class:`wpk.measure.gpu.GpuMachine`)."""

    def operands(
        self, workload: Workload, inputs: list[np.ndarray | None], expected: list[np.ndarray]
    ) -> Checked:
        """``inputs``: physical arrays, None at constants. ``expected``: logical arrays."""
        ...

    def candidate(self, operands: Any, request: dict[str, Any]) -> Timed:
        """A candidate on operands of this bench. Raises LaunchError, ArtifactError, MemoryError."""
        ...

    def speed(self) -> float:
        """How fast it is at this moment, more is faster, in any unit; constant where nothing is known."""
        ...


@dataclass(frozen=True)
class Machine:
    """What a worker has: the runtime, a pool of all threads, one of a single thread, and memory of earlier candidates."""

    native: Native
    pool: Pool
    alone: Pool
    memory: Reuse = field(default_factory=Reuse)

    def operands(
        self, workload: Workload, inputs: list[np.ndarray | None], expected: list[np.ndarray]
    ) -> Operands:
        """See :class:`Bench`."""
        return Operands(workload, inputs, expected)

    def candidate(self, operands: Operands, request: dict[str, Any]) -> Candidate:
        """See :class:`Bench`."""
        return Candidate(self, operands, request)

    def speed(self) -> float:
        """See :class:`Bench`: what multiply-adds all threads together make a second."""
        return self.native.speed(self.pool)


class Operands:
    """The inputs and outputs of a workload in guarded memory, shared by all its candidates."""

    def __init__(self, workload: Workload, inputs: list[np.ndarray | None], expected: list[np.ndarray]) -> None:
        """``inputs``: physical arrays, None at constants. ``expected``: logical arrays."""
        self.workload, self.expected = workload, expected
        self.inputs = [None if a is None else fill(Region(a.nbytes), a) for a in inputs]
        self.outputs = [Region(t.nbytes) for t in workload.outputs]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(r.nbytes for r in (*self.inputs, *self.outputs) if r is not None)

    def close(self) -> None:
        """See :class:`Checked`: memory goes when nobody holds it."""

    def poison(self) -> None:
        """Make every output NaN."""
        for region in self.outputs:
            region.poison()

    def check(self, tolerance: float) -> Verdict:
        """Compare what the outputs hold with what is expected; writes past their ends are wrong too."""
        for i, region in enumerate(self.outputs):
            if not region.intact():
                return Verdict(float("inf"), tolerance, f"wrote outside output {i}")
        types = self.workload.outputs
        buffers = [_typed(region, kind) for region, kind in zip(self.outputs, types, strict=True)]
        return check_outputs(buffers, self.expected, types, tolerance)


class Candidate:
    """A candidate ready to run. ``request`` is the message of :mod:`wpk.measure.measurer`."""

    def __init__(self, machine: Machine, operands: Operands, request: dict[str, Any]) -> None:
        """Raises LaunchError, ArtifactError or MemoryError."""
        self._machine, self._operands, self._stack = machine, operands, ExitStack()
        self._pool = machine.alone if request["kind"] in OWN_THREADS else machine.pool
        try:
            self._code = self._load(request)
            self._lay_out(request)
        except BaseException:
            self._stack.close()
            raise

    def run(self) -> None:
        """One call, on constants whose end is guarded. Raises LaunchError."""
        self._call(self._warm)
        if not self._workspace.intact():
            raise LaunchError("wrote outside its workspace")

    def time(self, how: Timing, cold: bool = True) -> list[float]:
        """Samples in seconds a call; ``cold``: constants in the state that the request asks for, else warm ones."""
        sets = self._sets if cold else [self._warm]
        if isinstance(self._code, Session):
            return time_calls(self._rotating(sets), how)
        return self._machine.native.time(self._code, sets, self._workspace.address(), self._pool, how.native())

    def close(self) -> None:
        """Free memory and code."""
        self._stack.close()

    def _lay_out(self, request: dict[str, Any]) -> None:
        self._arrays = [np.load(path, mmap_mode="r") for path in request["constants"]]
        self._copies = copies_of(sum(a.nbytes for a in self._arrays), int(request["cold_bytes"]))
        self._workspace = self._region(int(request["workspace"]))
        self._workspace.poison()
        self._warm = self._addresses([self._filled(a, 1) for a in self._arrays], 0)

    @cached_property
    def _sets(self) -> list[list[int]]:
        """Argument lists to rotate through. Made only for candidates worth it: filling the copies takes time."""
        if self._copies == 1:
            return [self._warm]
        regions = [self._filled(a, self._copies) for a in self._arrays]
        return [self._addresses(regions, copy) for copy in range(self._copies)]

    def _region(self, nbytes: int, copies: int = 1) -> Region:
        region = self._machine.memory.take(nbytes, copies)
        self._stack.callback(self._machine.memory.give, region)
        return region

    def _filled(self, array: np.ndarray, copies: int) -> Region:
        return fill(self._region(array.nbytes, copies), array)

    def _load(self, request: dict[str, Any]) -> Call | Session:
        if request["kind"] == "kernel":
            binary = open_binary(Path(request["binary"]).name, Path(request["binary"]))
            self._stack.callback(binary.close)
            return Call(binary.address(request["symbol"]))
        if request["kind"] == "onnxruntime":
            model = np.load(request["model"]).tobytes()
            return Session("candidate", request["spec"], model, self._machine.pool.threads)
        adapter = Adapter(self._machine.native, request["kind"], request["spec"], self._machine.pool.threads)
        self._stack.callback(adapter.close)
        return adapter.call

    def _addresses(self, regions: list[Region], copy: int) -> list[int]:
        """Inputs, then outputs; a session that holds its constants takes only the rest."""
        constants = iter([r.address(copy) for r in regions])
        inputs = [next(constants, None) if r is None else r.address() for r in self._operands.inputs]
        return [*(a for a in inputs if a is not None), *(r.address() for r in self._operands.outputs)]

    def _call(self, addresses: list[int]) -> None:
        if isinstance(self._code, Session):
            self._code.run(addresses)
            return
        args = (ctypes.c_void_p * len(addresses))(*addresses)
        state = self._code.state or None
        code = _FN(self._code.fn)(state, ctypes.cast(args, ctypes.c_void_p), self._workspace.address(), self._pool.rt)
        if code:
            raise LaunchError(f"the call returned error {code}")

    def _rotating(self, sets: list[list[int]]) -> Callable[[], None]:
        turn = 0

        def call() -> None:
            nonlocal turn
            self._call(sets[turn % len(sets)])
            turn += 1

        return call


def copies_of(nbytes: int, cold_bytes: int) -> int:
    """How many copies of ``nbytes`` of constants exceed ``cold_bytes`` together; 1 when warm or without constants."""
    if not nbytes or not cold_bytes:
        return 1
    return min(-(-cold_bytes // nbytes) + 1, MAX_COPIES) if nbytes < cold_bytes else 1


def fill(region: Region, array: np.ndarray) -> Region:
    """``region`` with every block holding ``array``, protected from writes."""
    region.fill(array)
    region.readonly()
    return region


def _typed(region: Region, kind: TensorType) -> np.ndarray:
    dtype = numpy_dtype(kind.dtype)
    assert dtype.itemsize == DTYPE_BYTES[kind.dtype]
    return region.view(dtype, kind.physical)
