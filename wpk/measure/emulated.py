"""A device without a GPU: the emulator of :mod:`wpk.cuda` behind the seam of :mod:`wpk.runtime.cuda.device`.

Memory is the host's, calls run the CUDA text as the emulator does, with its checks, and recordings run their work in an order
drawn from the seed that keeps only what must come after what. So a plan that forgot a dependency gives wrong results here.
Times are those of the emulation: they say nothing of a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from wpk.core.errors import ArtifactError, DeviceError, DeviceMemoryError, UsageError
from wpk.core.launch import CudaSource
from wpk.core.target import Gpu, Target
from wpk.cuda import emulator
from wpk.runtime.cuda.device import Call, Enqueue, LibraryCall, Span
from wpk.runtime.cuda.runner import CudaRunner, is_cuda
from wpk.runtime.parts import Parts

_ALIGN = 256


class EmulatedDevice:
    """See :class:`wpk.runtime.cuda.device.Device`. ``target`` gives the compute capability and the memory's size."""

    def __init__(self, target: Target, seed: int = 0) -> None:
        assert target.gpu is not None
        self.target = target
        self._rng = Random(seed)
        self._fault = ""
        self._room = target.gpu.memory
        self._blocks: dict[int, np.ndarray] = {}

    @property
    def name(self) -> str:
        """See :class:`Device`."""
        return f"{self.target.model} (emulated)"

    @property
    def stream(self) -> int:
        """See :class:`Device`."""
        return 0

    def allocate(self, nbytes: int) -> int:
        """See :class:`Device`. New memory holds a pattern that is a NaN in every float format."""
        used = sum(b.nbytes for b in self._blocks.values())
        if used + nbytes > self._room:
            raise DeviceMemoryError(f"{self.name}: no room for {nbytes} bytes; {self._room - used} of {self._room} are free")
        block = np.full(nbytes + _ALIGN, 0xFF, np.uint8)
        pointer = -(-int(block.ctypes.data) // _ALIGN) * _ALIGN
        self._blocks[pointer] = block
        return pointer

    def free(self, pointer: int) -> None:
        """See :class:`Device`."""
        del self._blocks[pointer]

    def upload(self, pointer: int, array: np.ndarray) -> None:
        """See :class:`Device`."""
        self._view(Span(pointer, array.nbytes))[:] = array.reshape(-1).view(np.uint8)

    def download(self, pointer: int, array: np.ndarray) -> None:
        """See :class:`Device`."""
        array.reshape(-1).view(np.uint8)[:] = self._view(Span(pointer, array.nbytes))

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """See :class:`Device`."""
        self._view(Span(target, nbytes))[:] = self._view(Span(source, nbytes)).copy()

    def bind(self, call: Call) -> Enqueue:
        """See :class:`Device`. Raises ArtifactError when the binary came without its text."""
        if not call.binary.text:
            raise ArtifactError(f"binary {call.binary.name!r} has no CUDA text to emulate")
        source = CudaSource(call.binary.text, call.launches, call.workspace.nbytes, call.tensor_maps)
        first = len(call.arguments) - call.outputs

        def enqueue(stream: int) -> None:
            views = [self._view(span) for span in call.arguments]
            for view in views[:first]:
                view.flags.writeable = False  # so that it is not copied back
            try:
                outputs = range(first, len(views))
                emulator.run(source, views, seed=self._rng.randrange(1 << 30), arch=self.target.isa, outputs=outputs)
            except emulator.EmulationError as error:
                self._fault = f"{self.name}: {call.launches[0].symbol}: {error}"
                raise DeviceError(self._fault) from error

        return enqueue

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        """See :class:`Device`: there are no libraries here."""
        raise DeviceError(f"{self.name}: {kind} needs a GPU")

    def record(self, work: Sequence[Enqueue], after: Sequence[Sequence[int]]) -> EmulatedRecording:
        """See :class:`Device`."""
        return EmulatedRecording(self, tuple(work), tuple(tuple(a) for a in after))

    def elapsed(self, work: Enqueue, ahead: Enqueue | None = None) -> float:
        """See :class:`Device`: seconds of emulation; nothing needs to go ahead."""
        start = perf_counter()
        work(self.stream)
        return perf_counter() - start

    def synchronize(self) -> None:
        """See :class:`Device`: everything is done when it is called. After a fault a device is of no more use, as a real one."""
        if self._fault:
            raise DeviceError(self._fault)

    def close(self) -> None:
        """See :class:`Device`."""
        self._blocks.clear()

    def order(self, after: Sequence[Sequence[int]]) -> list[int]:
        """Some order of items in which each comes behind those of ``after``."""
        found: list[int] = []
        while len(found) < len(after):
            ready = [i for i, before in enumerate(after) if i not in found and set(before) <= set(found)]
            found.append(self._rng.choice(ready))
        return found

    def _view(self, span: Span) -> np.ndarray:
        if not span.nbytes:
            return np.empty(0, np.uint8)
        for start, block in self._blocks.items():
            if start <= span.pointer and span.pointer + span.nbytes <= start + block.nbytes - _ALIGN:
                break
        else:
            raise DeviceError(f"{self.name}: {span.nbytes} bytes at {span.pointer:#x} are not allocated")
        return np.ctypeslib.as_array((ctypes.c_uint8 * span.nbytes).from_address(span.pointer))


def emulated_runner(parts: Parts) -> CudaRunner:
    """A runner for a model compiled for a GPU that needs none. Raises UsageError for one that was not, ToolchainError."""
    target = parts.plan.target
    if not is_cuda(parts.plan):
        raise UsageError(f"{parts.plan.model} was compiled for {target['arch']}: only models for GPUs are emulated")
    emulator.default_host()
    plain = {**target, "isas": tuple(target["isas"]), "gpu": Gpu(**target["gpu"])}
    return CudaRunner(parts, EmulatedDevice(Target(**plain)))


class EmulatedRecording:
    """See :class:`wpk.runtime.cuda.device.Recording`."""

    def __init__(self, device: EmulatedDevice, work: tuple[Enqueue, ...], after: tuple[tuple[int, ...], ...]) -> None:
        self._device, self._work, self._after = device, work, after

    def launch(self, stream: int) -> None:
        """See :class:`Recording`."""
        for i in self._device.order(self._after):
            self._work[i](stream)

    def close(self) -> None:
        """See :class:`Recording`."""
