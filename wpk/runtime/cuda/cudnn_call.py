"""Calls of cuDNN through its Python frontend: graphs made from plain data (:mod:`wpk.providers.cudnn_ops`), plans taken by name.

A plan's name says its engine and all its knobs, so that a recorded call runs what was measured, or fails; it never runs another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

import numpy as np

from wpk.core.errors import DeviceError
from wpk.core.tensor import DTYPE_BYTES
from wpk.runtime.cuda.device import Device

_INSTALL = "pip install 'wpk[cuda]'"
_NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
_ALIGN = 256
#: In this order: what cuDNN expects to be fast, what it has measured where it has, what always works.
_MODES = ("A", "B", "FALLBACK")
#: What the frontend says of a plan that a numerical note rules out, and of one that needs more workspace than allowed.
_NAMELESS = "INVALID_ENGINE_NAME"
_BARRED, _NEEDS = "Deselecting execution plan", re.compile(r"[Ww]orkspace violation\. Requires (\d+)")


def cudnn_version() -> str:
    """Of the library and its frontend, such as ``9.19.0, frontend 1.32.0``. Raises DeviceError when one is missing."""
    cudnn = _frontend()
    with _translated("cuDNN cannot be loaded: is nvidia-cudnn-cu13 (or -cu12) installed?"):
        number = int(cudnn.backend_version())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}, frontend {cudnn.__version__}"


class CudnnCall:
    """One call, its plans built, its kernels loaded; see :data:`wpk.runtime.cuda.driver._LIBRARIES`.

    ``workspace_bytes`` is room for the plans' workspaces and for what goes from one stage to the next.
    """

    def __init__(self, spec: Mapping[str, Any], device: Device) -> None:
        """Runs once on memory of its own, so that nothing is left to load while work is recorded.

        Raises DeviceError when cuDNN is not installed, when it has a plan no more, or when a plan breaks the call's limits.
        """
        self._cudnn, self._handle = _frontend(), _handle(device)
        self._tensors = [Tensor(*t) for t in spec["tensors"]]
        self._arguments = int(spec["arguments"])
        self._constants = self._uploaded(spec["constants"], device)
        self._stages = [_ready(self._cudnn, self._handle, spec, stage) for stage in spec["stages"]]
        between = range(self._arguments, len(self._tensors) - len(self._constants))
        self._offsets, end = {}, 0
        for i in between:
            self._offsets[i] = end
            end += -(-self._tensors[i].nbytes // _ALIGN) * _ALIGN
        self._scratch = end
        self.workspace_bytes = end + max(ready.workspace for ready in self._stages)
        self._warm_up(device)

    @staticmethod
    def offers(spec: Mapping[str, Any], device: Device) -> list[list[str]]:
        """The names of each stage's plans that keep to the call's limits, best guess first; some may still not build.

        Raises DeviceError when cuDNN is not installed or cannot compute a stage at all.
        """
        cudnn, handle = _frontend(), _handle(device)
        return [_Stage(cudnn, handle, spec, stage).legal(int(spec["limit"])) for stage in spec["stages"]]

    def enqueue(self, stream: int, pointers: Sequence[int], workspace: int) -> None:
        """Put the call on a stream. ``pointers``: the arguments, in order. Raises DeviceError."""
        places = {i: workspace + at for i, at in self._offsets.items()} | self._constants | dict(enumerate(pointers))
        with _translated("cuDNN refuses to run a plan"):
            self._cudnn.set_stream(self._handle, stream)
            for ready in self._stages:
                pack = {uid(i): places[i] for i in ready.stage.used}
                ready.stage.graph.execute_plan_at_index(pack, workspace + self._scratch, ready.index, self._handle)

    def _uploaded(self, constants: Sequence[Sequence[Any]], device: Device) -> dict[int, int]:
        """Where the constants lie: one block of memory that goes when this call goes."""
        if not constants:
            return {}
        values = np.zeros((len(constants), _ALIGN // 4), np.float32)
        values[:, 0] = [value for _, value in constants]
        start = device.allocate(values.nbytes)
        finalize(self, device.free, start).atexit = False
        device.upload(start, values)
        return {int(number): start + _ALIGN * i for i, (number, _) in enumerate(constants)}

    def _warm_up(self, device: Device) -> None:
        sizes = [*(t.nbytes for t in self._tensors[: self._arguments]), self.workspace_bytes]
        made: list[int] = []
        try:
            made.extend(device.allocate(max(n, 1)) for n in sizes)
            self.enqueue(device.stream, made[:-1], made[-1])
            device.synchronize()
        finally:
            for pointer in made:
                device.free(pointer)


class Tensor:
    """A tensor of a call: dtype, extents, strides in elements; dense."""

    def __init__(self, dtype: str, extents: Sequence[int], strides: Sequence[int]) -> None:
        self.dtype, self.extents, self.strides = dtype, [int(n) for n in extents], [int(n) for n in strides]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return prod(self.extents) * DTYPE_BYTES[self.dtype]


def uid(tensor: int) -> int:
    """The number that graphs know a call's tensor by: they take none below 1."""
    return tensor + 1


class _Stage:
    """One graph with its plans listed but none built."""

    def __init__(self, cudnn: Any, handle: Any, spec: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
        """Raises DeviceError when cuDNN has no plan for it."""
        self._cudnn = cudnn
        tensors = [Tensor(*t) for t in spec["tensors"]]
        for number, extents, strides in stage["views"]:
            tensors[number] = Tensor(tensors[number].dtype, extents, strides)
        float32 = cudnn.data_type.FLOAT
        with _translated("cuDNN cannot compute this"):
            self.graph = cudnn.pygraph(
                name="wpk", io_data_type=_dtype(cudnn, tensors[0]), intermediate_data_type=float32,
                compute_data_type=float32, handle=handle,
            )  # fmt: skip
            self.used = self._add(tensors, stage["nodes"], int(stage["result"]))
            self.graph.validate()
            self.graph.build_operation_graph()
            self.graph.create_execution_plans([getattr(cudnn.heur_mode, m) for m in _MODES])
            self.graph.deselect_numeric_notes([getattr(cudnn.numerical_note, n) for n in stage["without"]])
            if only := stage.get("only"):
                self.graph.select_numeric_notes([getattr(cudnn.numerical_note, n) for n in only])
            count = int(self.graph.get_execution_plan_count())
            self.names = [str(self.graph.get_plan_name_at_index(i)) for i in range(count)]

    def legal(self, limit: int) -> list[str]:
        """Names of plans that carry no forbidden note and need at most ``limit`` bytes of workspace, each once.

        Nothing is built: cuDNN is asked for plans that need less than no workspace, and its refusals say why.
        """
        self.graph.deselect_workspace_greater_than(-1)
        first = {name: self.names.index(name) for name in self.names if not name.startswith(_NAMELESS)}
        return [name for name, i in first.items() if self._keeps(i, limit)]

    def _keeps(self, index: int, limit: int) -> bool:
        try:
            self.graph.build_plan_at_index(index)
        except Exception as refusal:
            needs = _NEEDS.search(str(refusal))
            return int(needs[1]) <= limit if needs else _BARRED not in str(refusal)
        return True

    def _add(self, tensors: Sequence[Tensor], nodes: Sequence[Sequence[Any]], result: int) -> list[int]:
        """All nodes; the tensors in memory that they read or write."""
        inputs: dict[int, Any] = {}
        results: list[Any] = []
        for op, operands, attrs in nodes:
            for i in operands:
                if i >= 0 and i not in inputs:
                    inputs[i] = self._input(tensors[i], i)
            given = [inputs[i] if i >= 0 else results[-1 - i] for i in operands]
            results.append(getattr(self.graph, op)(*given, name=f"{op}{len(results)}", **attrs))
        self._output(results[-1], tensors[result], result)
        return [*inputs, result]

    def _input(self, t: Tensor, number: int) -> Any:
        kind = _dtype(self._cudnn, t)
        return self.graph.tensor(dim=t.extents, stride=t.strides, data_type=kind, name=f"t{number}", uid=uid(number))

    def _output(self, made: Any, t: Tensor, number: int) -> None:
        made.set_output(True).set_data_type(_dtype(self._cudnn, t)).set_dim(t.extents).set_stride(t.strides)
        made.set_uid(uid(number))


@dataclass(frozen=True, eq=False)
class _Ready:
    """A stage whose plan ``index`` is built and needs ``workspace`` bytes. ``handle`` is that which it was made for."""

    stage: _Stage
    index: int
    workspace: int
    handle: Any


#: Equal layers of a model share a plan: building one may compile for a second.
_built: WeakValueDictionary[tuple[int, str], _Ready] = WeakValueDictionary()


def _ready(cudnn: Any, handle: Any, spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Ready:
    """Raises DeviceError."""
    key = id(handle), json.dumps([spec["tensors"], spec["limit"], wanted])
    found = _built.get(key)
    if found is None:
        found = _built[key] = _build(_Stage(cudnn, handle, spec, wanted), wanted, spec, handle)
    return found


def _build(stage: _Stage, wanted: Mapping[str, Any], spec: Mapping[str, Any], handle: Any) -> _Ready:
    """Raises DeviceError."""
    name, limit = str(wanted["plan"]), int(spec["limit"])
    if name not in stage.names:
        raise DeviceError(
            f"cuDNN {cudnn_version()} has no plan {name!r} for this call, which was made with {spec['version']}: "
            f"tune again with this cuDNN; it has {len(stage.names)} others"
        )
    index = stage.names.index(name)
    with _translated(f"cuDNN's plan {name!r}"):
        stage.graph.deselect_workspace_greater_than(limit)
        stage.graph.build_plan_at_index(index)
        workspace = int(stage.graph.get_workspace_size_plan_at_index(index))
    if workspace > limit:
        raise DeviceError(f"cuDNN's plan {name!r} needs {workspace} bytes of workspace, allowed are {limit}")
    return _Ready(stage, index, workspace, handle)


def _dtype(cudnn: Any, tensor: Tensor) -> Any:
    return getattr(cudnn.data_type, _NAMES[tensor.dtype])


def _frontend() -> Any:
    """The frontend's module. Raises DeviceError."""
    try:
        return import_module("cudnn")
    except Exception as error:  # it loads libraries when imported
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cudnn"
        what = "is not installed" if missing else f"cannot be loaded ({error})"
        raise DeviceError(f"cuDNN's frontend {what}: {_INSTALL}") from error


_handles: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _handle(device: Device) -> Any:
    """The handle of a device, made once; its context is current."""
    if device not in _handles:
        with _translated("cuDNN cannot be opened"):
            _handles[device] = _frontend().create_handle()
    return _handles[device]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Whatever the frontend throws as DeviceError: it has exceptions of its own, and Python's for wrong arguments."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        text = str(error).strip()
        raise DeviceError(f"{what}: {text or type(error).__name__}") from error
