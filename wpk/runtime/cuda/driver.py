"""The real GPU: PyCUDA for context, memory, streams and events; cuda-bindings for modules, launches, graphs and tensor maps.

PyCUDA's own launches know neither clusters nor parameters with an alignment of 64 bytes, hence the second library. The context
is the device's primary one, which torch and cupy use too: pointers and streams go between them as they are. Both libraries
come with the extra ``cuda`` and are imported on first use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any
from weakref import finalize

import numpy as np

from wpk.core.errors import ArtifactError, DeviceError, DeviceMemoryError
from wpk.core.launch import Launch
from wpk.core.target import Gpu, Target
from wpk.runtime.cuda.device import Binary, Call, Enqueue, LibraryCall
from wpk.runtime.cuda.order import lanes
from wpk.runtime.cuda.tensormaps import encode

#: Streams that branches of a recording are put on.
_STREAMS = 4
#: Bytes of pinned memory through which arrays of the host go.
_STAGE = 16 << 20

_INSTALL = "pip install 'wpk[cuda]'"
_FAULT = "this process can use the GPU no more"

#: Vendor libraries by kind of step: module and class of the call (see :mod:`wpk.runtime.cuda.cudnn_call`).
_LIBRARIES = {
    "cudnn": ("wpk.runtime.cuda.cudnn_call", "CudnnCall"),
    "cublaslt": ("wpk.runtime.cuda.cublaslt_call", "CublasLtCall"),
}


class CudaDevice:
    """One GPU, by its index. See :class:`wpk.runtime.cuda.device.Device`."""

    def __init__(self, index: int = 0) -> None:
        """Raises DeviceError where there is no such GPU, no driver, or a library is missing."""
        self._cuda, self._driver = _libraries()
        self._index = index
        with _translated("no CUDA device"):
            self._cuda.init()
            count = self._cuda.Device.count()
            if not 0 <= index < count:
                raise DeviceError(f"CUDA device {index}: expected one of the {count} there are")
            self._device = self._cuda.Device(index)
            self._context = self._device.retain_primary_context()
        # PyCUDA's destructor would end the context, which others use too, instead of letting go of it
        finalize(_ended, self._context.detach)
        self._allocations: dict[int, Any] = {}
        self._modules: dict[str, Any] = {}
        with self._active():
            # the first waits for, and is waited for by, the default stream, where other libraries work
            self._streams = [self._cuda.Stream(_NON_BLOCKING if i else 0) for i in range(_STREAMS)]
            self._stage = self._cuda.pagelocked_empty((_STAGE,), np.uint8)

    @property
    def name(self) -> str:
        """See :class:`Device`."""
        return str(self._device.name())

    @property
    def stream(self) -> int:
        """See :class:`Device`."""
        return int(self._streams[0].handle)

    @property
    def target(self) -> Target:
        """The GPU as the compiler sees it."""
        return _target(self._device, self.name, self._attribute)

    def _attribute(self, name: str) -> int:
        """An attribute of the device as ``cuda.h`` calls it; 0 where the driver does not know it."""
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}", None)
        if attribute is None:
            return 0
        status, value = self._driver.cuDeviceGetAttribute(attribute, self._index)
        return 0 if int(status) else int(value)

    def allocate(self, nbytes: int) -> int:
        """See :class:`Device`."""
        with self._active():
            try:
                found = self._cuda.mem_alloc(max(nbytes, 1))
            except self._cuda.MemoryError as error:
                free, total = self._cuda.mem_get_info()
                raise DeviceMemoryError(
                    f"{self.name}: no room for {nbytes} bytes; {free} of {total} are free"
                ) from error
        self._allocations[int(found)] = found
        return int(found)

    def free(self, pointer: int) -> None:
        """See :class:`Device`."""
        with self._active():
            self._allocations.pop(pointer).free()

    def upload(self, pointer: int, array: np.ndarray) -> None:
        """See :class:`Device`. Goes through pinned memory, piece by piece."""
        data = array.reshape(-1).view(np.uint8)
        with self._active():
            for at in range(0, data.nbytes, _STAGE):
                piece = data[at : at + _STAGE]
                self._stage[: piece.nbytes] = piece
                self._cuda.memcpy_htod_async(pointer + at, self._stage[: piece.nbytes], self._streams[0])
                self._streams[0].synchronize()

    def download(self, pointer: int, array: np.ndarray) -> None:
        """See :class:`Device`."""
        data = array.reshape(-1).view(np.uint8)
        with self._active():
            for at in range(0, data.nbytes, _STAGE):
                piece = data[at : at + _STAGE]
                self._cuda.memcpy_dtoh_async(self._stage[: piece.nbytes], pointer + at, self._streams[0])
                self._streams[0].synchronize()
                piece[:] = self._stage[: piece.nbytes]

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """See :class:`Device`."""
        with self._active():
            self._checked(self._driver.cuMemcpyDtoDAsync(target, source, nbytes, stream))

    def bind(self, call: Call) -> Enqueue:
        """See :class:`Device`."""
        with self._active():
            module = self._module(call.binary)
            functions = [self._function(module, call.binary, launch) for launch in call.launches]
            spans = (*call.arguments, call.workspace)
            maps = encode(self._driver, [(m, spans[m.parameter].pointer + m.offset) for m in call.tensor_maps])
            configs = [self._config(launch) for launch in call.launches]
        pointers = [s.pointer for s in call.arguments] + [call.workspace.pointer]
        parameters = _Parameters(pointers, *maps)

        def enqueue(stream: int) -> None:
            with self._active():
                for config, function in zip(configs, functions, strict=True):
                    config.hStream = self._driver.CUstream(stream)
                    self._checked(self._driver.cuLaunchKernelEx(config, function, parameters.address, 0))

        return enqueue

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        """See :class:`Device`. The call's workspace goes when the call does."""
        made = _library(kind)
        with self._active():
            call = made(spec, self)
            workspace = self.allocate(call.workspace_bytes) if call.workspace_bytes else 0

        def enqueue(stream: int, pointers: Sequence[int]) -> None:
            with self._active():
                call.enqueue(stream, pointers, workspace)

        if workspace:
            finalize(enqueue, self.free, workspace).atexit = False
        return enqueue

    def offers(self, kind: str, spec: dict[str, Any]) -> list[list[str]]:
        """The names of what a library offers for a call, best guess first, stage by stage. Raises DeviceError."""
        with self._active():
            found: list[list[str]] = _library(kind).offers(spec, self)
        return found

    def record(self, work: Sequence[Enqueue], after: Sequence[Sequence[int]]) -> CudaGraph:
        """See :class:`Device`: a CUDA graph, captured with its branches on streams of their own."""
        driver, events = self._driver, list[Any]()
        with self._active():
            try:
                graph = self._captured(work, after, events)
            finally:
                for event in events:  # not before the capture that refers to them has ended
                    driver.cuEventDestroy(event)
            try:
                executable = self._checked(driver.cuGraphInstantiate(graph, 0))
            finally:
                driver.cuGraphDestroy(graph)
        return CudaGraph(self, executable)

    def elapsed(self, work: Enqueue, ahead: Enqueue | None = None) -> float:
        """See :class:`Device`: by events around ``work``."""
        with self._active():
            begin, end = self._cuda.Event(), self._cuda.Event()
            if ahead is not None:
                ahead(self.stream)
            begin.record(self._streams[0])
            work(self.stream)
            end.record(self._streams[0])
            with _translated(f"{self.name}: a kernel faulted; {_FAULT}"):
                end.synchronize()
            return float(end.time_since(begin)) * 1e-3

    def synchronize(self) -> None:
        """See :class:`Device`."""
        with self._active(), _translated(f"{self.name}: a kernel faulted; {_FAULT}"):
            self._streams[0].synchronize()

    def close(self) -> None:
        """See :class:`Device`."""
        with suppress(DeviceError), self._active():
            for module in self._modules.values():
                self._driver.cuModuleUnload(module)
            for allocation in self._allocations.values():
                allocation.free()
        self._modules, self._allocations = {}, {}

    # How it is done

    @contextmanager
    def _active(self) -> Iterator[None]:
        """The context current in this thread; PyCUDA's errors as ours."""
        with _translated(self.name):
            self._context.push()
            try:
                yield
            finally:
                self._cuda.Context.pop()

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if int(status):
            raise DeviceError(f"{self.name}: {status.name}")
        return values[0] if values else None

    def _module(self, binary: Binary) -> Any:
        if binary.name not in self._modules:
            try:
                self._modules[binary.name] = self._checked(self._driver.cuModuleLoadData(binary.cubin))
            except DeviceError as error:
                raise ArtifactError(f"cannot load binary {binary.name!r}: {error}") from error
        return self._modules[binary.name]

    def _function(self, module: Any, binary: Binary, launch: Launch) -> Any:
        try:
            function = self._checked(self._driver.cuModuleGetFunction(module, launch.symbol.encode()))
        except DeviceError as error:
            raise ArtifactError(f"binary {binary.name!r} has no kernel {launch.symbol!r}") from error
        if launch.shared_bytes:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._checked(self._driver.cuFuncSetAttribute(function, attribute, launch.shared_bytes))
        return function

    def _config(self, launch: Launch) -> Any:
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
        config.sharedMemBytes = launch.shared_bytes
        if launch.cluster != (1, 1, 1):
            attribute = self._driver.CUlaunchAttribute()
            attribute.id = self._driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            cluster = attribute.value.clusterDim
            cluster.x, cluster.y, cluster.z = launch.cluster
            config.attrs, config.numAttrs = [attribute], 1
        return config

    def _captured(self, work: Sequence[Enqueue], after: Sequence[Sequence[int]], events: list[Any]) -> Any:
        """The graph of ``work``; its events are added to ``events``."""
        driver, streams = self._driver, [int(s.handle) for s in self._streams]
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._checked(driver.cuStreamBeginCapture(streams[0], mode))
        try:
            self._capture(work, after, streams, events)
        except BaseException:
            with suppress(DeviceError):  # what was captured is of no use
                self._checked(driver.cuStreamEndCapture(streams[0]))
            raise
        return self._checked(driver.cuStreamEndCapture(streams[0]))

    def _capture(
        self, work: Sequence[Enqueue], after: Sequence[Sequence[int]], streams: list[int], events: list[Any]
    ) -> None:
        lane = lanes(after, len(streams))
        awaited = {j for i, before in enumerate(after) for j in before if lane[j] != lane[i]}
        awaited |= {i for i, mine in enumerate(lane) if mine and mine not in lane[i + 1 :]}  # the last of each lane but the first
        marks = {-1: self._mark(streams[0], events)}  # the beginning
        entered, last = {0}, {0: -1}
        for i, enqueue in enumerate(work):
            before = [j for j in after[i] if lane[j] != lane[i]]
            if lane[i] not in entered:
                entered.add(lane[i])
                before = before or [-1]
            for j in before:
                self._checked(self._driver.cuStreamWaitEvent(streams[lane[i]], marks[j], 0))
            enqueue(streams[lane[i]])
            last[lane[i]] = i
            if i in awaited:
                marks[i] = self._mark(streams[lane[i]], events)
        for other in entered - {0}:
            self._checked(self._driver.cuStreamWaitEvent(streams[0], marks[last[other]], 0))

    def _mark(self, stream: int, events: list[Any]) -> Any:
        event = self._checked(self._driver.cuEventCreate(_NO_TIMING))
        events.append(event)
        self._checked(self._driver.cuEventRecord(event, stream))
        return event


class CudaGraph:
    """An instantiated CUDA graph; see :class:`wpk.runtime.cuda.device.Recording`."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self, stream: int) -> None:
        """See :class:`Recording`."""
        with self._device._active():
            self._device._checked(self._device._driver.cuGraphLaunch(self._executable, stream))

    def close(self) -> None:
        """See :class:`Recording`."""
        if self._executable is not None:
            with self._device._active():
                self._device._driver.cuGraphExecDestroy(self._executable)
            self._executable = None


#: ``CU_STREAM_NON_BLOCKING``, ``CU_EVENT_DISABLE_TIMING``
_NON_BLOCKING, _NO_TIMING = 1, 2


class _Parameters:
    """The parameters of a kernel as the driver wants them: an array of addresses of values that stay where they are."""

    def __init__(self, pointers: Sequence[int], memory: ctypes.Array[ctypes.c_char], maps: Sequence[int]) -> None:
        self._pointers, self._memory = (ctypes.c_uint64 * len(pointers))(*pointers), memory
        values = [ctypes.addressof(self._pointers) + 8 * i for i in range(len(pointers))]
        self._values = (ctypes.c_void_p * (len(pointers) + len(maps)))(*values, *maps)

    @property
    def address(self) -> int:
        """The address of the array."""
        return ctypes.addressof(self._values)


def _library(kind: str) -> Any:
    """The class of a library's calls. Raises ArtifactError."""
    if kind not in _LIBRARIES:
        raise ArtifactError(f"calls of {kind!r} are unknown: expected {', '.join(_LIBRARIES)}")
    module, name = _LIBRARIES[kind]
    return getattr(import_module(module), name)


def _libraries() -> tuple[Any, Any]:
    """PyCUDA's driver module and that of cuda-bindings. Raises DeviceError."""
    try:
        return _pycuda(), import_module("cuda.bindings.driver")
    except ImportError as error:
        missing = "PyCUDA" if any(x in str(error) for x in ("pycuda", "libcuda", "libcurand")) else "cuda-bindings"
        hint = "the NVIDIA driver is not installed" if "libcuda" in str(error) else _INSTALL
        raise DeviceError(f"no CUDA device: {missing} cannot be loaded ({error}): {hint}") from error


def _pycuda() -> Any:
    """Raises ImportError. The linker looks for libcurand, which PyCUDA wants, in no Python package; pathfinder does."""
    try:
        return import_module("pycuda.driver")
    except ImportError as error:
        if "libcurand" not in str(error):
            raise
        with suppress(Exception):  # what it cannot find is told by the second try
            import_module("cuda.pathfinder").load_nvidia_dynamic_lib("curand")
        return import_module("pycuda.driver")


def _ended() -> None:
    """Lives as long as the process: what :func:`weakref.finalize` does for it is done at exit, after what was asked for later."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """PyCUDA's errors as DeviceError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("pycuda"):
            raise DeviceError(f"{what}: {error}") from error
        raise


def _target(device: Any, name: str, attribute: Callable[[str], int]) -> Target:
    major, minor = device.compute_capability()

    def fact(key: str, default: int) -> int:
        return attribute(key) or default

    sms, shared = fact("MULTIPROCESSOR_COUNT", 1), fact("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", 99 << 10)
    per_sm = fact("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR", shared + 1024)
    bandwidth = 2e3 * fact("MEMORY_CLOCK_RATE", 1_000_000) * fact("GLOBAL_MEMORY_BUS_WIDTH", 1024) / 8
    gpu = Gpu(
        sms, per_sm, shared, fact("MAX_REGISTERS_PER_MULTIPROCESSOR", 65536), fact("MAX_THREADS_PER_MULTIPROCESSOR", 2048),
        int(device.total_memory()), bandwidth, 1e3 * fact("CLOCK_RATE", 1_500_000),
    )  # fmt: skip
    return Target("cuda", name, (capability(major, minor),), sms, per_sm, fact("L2_CACHE_SIZE", 4 << 20), 0, 1, gpu)


def capability(major: int, minor: int) -> str:
    """The compute capability to compile for: Hopper's with the instructions that only it has."""
    return f"sm_{major}{minor}{'a' if major == 9 else ''}"


def open_device(index: int = 0) -> CudaDevice:
    """The GPU of that index, opened once a process. Raises DeviceError."""
    if index not in _opened:
        _opened[index] = CudaDevice(index)
    return _opened[index]


_opened: dict[int, CudaDevice] = {}

#: What opens a device; tests and measuring put the emulator in its place.
Opener = Callable[[], Any]
