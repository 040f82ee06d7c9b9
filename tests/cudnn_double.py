"""A double of the ``cudnn`` module: graphs that compute with NumPy on addresses of this process, plans that a test makes up.

It has the names and parameters of the real package that wpk uses, and no others; ``SIGNATURES`` is compared with the real
package where that is installed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import erf, prod
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wpk.core.pointwise import parse
from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.measure.emulated import EmulatedDevice
from wpk.runtime.cuda.cudnn_call import CudnnCall
from wpk.settings import gpu_target

#: What wpk calls: object → name → its parameters, in order (``self`` left out).
SIGNATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "module": {"create_handle": (), "set_stream": ("handle", "stream"), "backend_version": ()},
    "pygraph": {
        "__init__": ("name", "io_data_type", "intermediate_data_type", "compute_data_type", "handle"),
        "tensor": ("dim", "stride", "data_type", "name", "uid"),
        "validate": (), "build_operation_graph": (), "create_execution_plans": ("heuristics",),
        "deselect_numeric_notes": ("notes",), "select_numeric_notes": ("notes",),
        "deselect_workspace_greater_than": ("workspace_limit",),
        "get_execution_plan_count": (), "get_plan_name_at_index": ("index",), "build_plan_at_index": ("index",),
        "get_workspace_size_plan_at_index": ("index",),
        "execute_plan_at_index": ("tensor_dict", "workspace", "index", "handle"),
    },
    "tensor": {
        "set_output": ("value",), "set_data_type": ("dtype",), "set_dim": ("dim",), "set_stride": ("stride",),
        "set_uid": ("uid",),
    },
}  # fmt: skip
#: enumeration → the members that wpk names
MEMBERS = {
    "data_type": ("FLOAT", "HALF", "BFLOAT16"), "heur_mode": ("A", "B", "FALLBACK"),
    "numerical_note": ("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "NONDETERMINISTIC", "WINOGRAD"),
}  # fmt: skip

_UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh, "floor": np.floor,
    "ceil": np.ceil, "reciprocal": np.reciprocal, "erf": np.vectorize(erf, otypes=[np.float64]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "swish": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(erf)(x * 0.5**0.5)) / 2,
    "gelu_approx_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
}  # fmt: skip
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power,
}  # fmt: skip
#: Every operation, with its tensor operands and attributes as keywords.
OPERATIONS = {
    **dict.fromkeys(_UNARY, (1, ())), **dict.fromkeys(_BINARY, (2, ())), "relu": (1, ("lower_clip", "upper_clip")),
    "conv_fprop": (2, ("pre_padding", "post_padding", "stride", "dilation")),
}  # fmt: skip


class NotSupported(Exception):
    """The double of ``cudnnGraphNotSupportedError``."""


@dataclass(frozen=True)
class Plan:
    """A plan that the double offers. ``builds``: False for one that proves unsupported when it is built."""

    name: str
    notes: tuple[str, ...] = ()
    workspace: int = 0
    builds: bool = True


@dataclass(eq=False)
class Tensor:
    """Extents and strides, and for a node's result how it is computed."""

    dim: list[int] | None = None
    stride: list[int] | None = None
    data_type: Any = None
    uid: int | None = None
    output: bool = False
    compute: Callable[[Callable[[Tensor], np.ndarray]], np.ndarray] | None = None

    def set_output(self, value: bool) -> Tensor:
        self.output = value
        return self

    def set_data_type(self, dtype: Any) -> Tensor:
        self.data_type = dtype
        return self

    def set_dim(self, dim: Sequence[int]) -> Tensor:
        self.dim = list(dim)
        return self

    def set_stride(self, stride: Sequence[int]) -> Tensor:
        self.stride = list(stride)
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self


@dataclass
class Double:
    """What a test sees and says. ``plans``: of graphs with a convolution, and of graphs without one."""

    plans: list[Plan]
    others: list[Plan] = field(default_factory=lambda: [Plan("eng50")])
    modes: list[str] = field(default_factory=list)
    ran: list[tuple[str, int, int]] = field(default_factory=list)  # plan, stream, workspace
    streams: list[int] = field(default_factory=list)
    graphs: int = 0

    def module(self) -> ModuleType:
        """To be put into ``sys.modules`` as ``cudnn``."""
        made = ModuleType("cudnn")
        parts = {name: SimpleNamespace(**{m: f"{name}.{m}" for m in members}) for name, members in MEMBERS.items()}
        made.__dict__.update(
            parts, __version__="1.32.0", backend_version=lambda: 91900, create_handle=lambda: SimpleNamespace(stream=0),
            set_stream=self._set_stream, pygraph=self._graph, cudnnGraphNotSupportedError=NotSupported,
        )  # fmt: skip
        return made

    def _set_stream(self, handle: SimpleNamespace, stream: int) -> None:
        handle.stream = stream
        self.streams.append(stream)

    def _graph(
        self, name: str, io_data_type: str, intermediate_data_type: str, compute_data_type: str, handle: SimpleNamespace
    ) -> Graph:
        assert {intermediate_data_type, compute_data_type} == {"data_type.FLOAT"} and io_data_type and name
        self.graphs += 1
        return Graph(self, handle)


class Graph:
    """One graph; calls in another order than the real one takes fail."""

    def __init__(self, double: Double, handle: SimpleNamespace) -> None:
        self._double, self._handle = double, handle
        self._tensors: dict[int, Tensor] = {}
        self._results: list[Tensor] = []
        self._operations: list[str] = []
        self._state = "open"
        self._barred: set[str] = set()
        self._wanted: set[str] = set()
        self._limit: float = float("inf")
        self._built: set[int] = set()

    def tensor(self, dim: Sequence[int], stride: Sequence[int], data_type: str, name: str, uid: int) -> Tensor:
        assert self._state == "open" and len(dim) == len(stride) == 4 and uid > 0 and uid not in self._tensors and name
        self._tensors[uid] = made = Tensor(list(dim), list(stride), data_type, uid)
        return made

    def __getattr__(self, op: str) -> Callable[..., Tensor]:
        count, names = OPERATIONS[op]

        def node(*operands: Tensor, name: str, **attrs: Any) -> Tensor:
            assert self._state == "open" and len(operands) == count and set(attrs) <= set(names) and name
            self._operations.append(op)
            self._results.append(
                Tensor(compute=lambda value: _computed(op, [value(t) for t in operands], operands, attrs))
            )
            return self._results[-1]

        return node

    def validate(self) -> None:
        assert [t.output for t in self._results] == [*[False] * (len(self._results) - 1), True]
        out = self._results[-1]
        assert out.dim and out.stride and out.uid and out.uid not in self._tensors
        self._state = "valid"

    def build_operation_graph(self) -> None:
        assert self._state == "valid"
        self._state = "operations"

    def create_execution_plans(self, heuristics: Sequence[str]) -> None:
        assert self._state == "operations"
        self._double.modes = list(heuristics)
        if not self._plans:
            raise NotSupported("No valid engine configs")
        self._state = "planned"

    @property
    def _plans(self) -> list[Plan]:
        return self._double.plans if "conv_fprop" in self._operations else self._double.others

    def get_execution_plan_count(self) -> int:
        return len(self._plans) if self._state == "planned" else 0

    def get_plan_name_at_index(self, index: int) -> str:
        return self._plans[index].name

    def deselect_numeric_notes(self, notes: Sequence[str]) -> None:
        assert self._state == "planned", "before there are plans a filter marks nothing"
        self._barred |= {n.removeprefix("numerical_note.") for n in notes}

    def select_numeric_notes(self, notes: Sequence[str]) -> None:
        assert self._state == "planned"
        self._wanted |= {n.removeprefix("numerical_note.") for n in notes}

    def deselect_workspace_greater_than(self, workspace_limit: int) -> None:
        self._limit = workspace_limit

    def build_plan_at_index(self, index: int) -> None:
        plan = self._plans[index]
        if set(plan.notes) & self._barred or self._wanted - set(plan.notes):
            raise NotSupported("Deselecting execution plan")
        if plan.workspace > self._limit:
            raise NotSupported(
                f"[cudnn_frontend] Error: Skipping plan since workspace violation. Requires {plan.workspace}"
            )
        if not plan.builds:
            raise NotSupported("CUDNN_STATUS_NOT_SUPPORTED")
        self._built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self._built
        return self._plans[index].workspace

    def execute_plan_at_index(
        self, tensor_dict: Mapping[int, int], workspace: int, index: int, handle: SimpleNamespace
    ) -> None:
        assert index in self._built and handle is self._handle
        out = self._results[-1]
        assert set(tensor_dict) == {*self._tensors, out.uid} and all(tensor_dict.values())
        _poison(workspace, self._plans[index].workspace)
        self._double.ran.append((self._plans[index].name, handle.stream, workspace))
        known: dict[int, np.ndarray] = {}

        def value(t: Tensor) -> np.ndarray:
            if id(t) not in known:
                known[id(t)] = t.compute(value) if t.compute else _read(t, tensor_dict[t.uid or 0])
            return known[id(t)]

        _write(out, tensor_dict[out.uid or 0], value(out))


def _computed(op: str, values: list[np.ndarray], operands: Sequence[Tensor], attrs: Mapping[str, Any]) -> np.ndarray:
    if op == "conv_fprop":
        return _conv(*values, **attrs)
    if op == "relu":
        return np.clip(values[0], attrs.get("lower_clip", 0.0), attrs.get("upper_clip"))
    return _UNARY[op](values[0]) if op in _UNARY else _BINARY[op](*values)


def _conv(
    x: np.ndarray, w: np.ndarray, pre_padding: list[int], post_padding: list[int], stride: list[int], dilation: list[int]
) -> np.ndarray:
    """As cuDNN has it: groups follow from the channels."""
    (top, left), (bottom, right) = pre_padding, post_padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    groups, (count, _, kh, kw) = x.shape[1] // w.shape[1], w.shape
    high, wide = (
        (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], (kh, kw), dilation, stride, strict=True)
    )
    out = np.zeros((x.shape[0], count, high, wide))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation[0], i * dilation[0] + (high - 1) * stride[0] + 1, stride[0])
            columns = slice(j * dilation[1], j * dilation[1] + (wide - 1) * stride[1] + 1, stride[1])
            piece = x[:, :, rows, columns].reshape(x.shape[0], groups, -1, high, wide)
            taps = w[:, :, i, j].reshape(groups, count // groups, -1)
            out += np.einsum("ngchw,goc->ngohw", piece, taps).reshape(out.shape)
    return out


def _view(t: Tensor, pointer: int) -> np.ndarray:
    assert t.dim and t.stride
    kind = {"FLOAT": np.float32, "HALF": np.float16, "BFLOAT16": np.uint16}[t.data_type.removeprefix("data_type.")]
    size = np.dtype(kind).itemsize
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * (prod(t.dim) * size)).from_address(pointer)).view(kind)
    assert 1 + sum((n - 1) * s for n, s in zip(t.dim, t.stride, strict=True)) == prod(t.dim), "dense"
    return np.lib.stride_tricks.as_strided(flat, t.dim, [s * size for s in t.stride])


def _read(t: Tensor, pointer: int) -> np.ndarray:
    found = _view(t, pointer)
    if found.dtype == np.uint16:
        return (found.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return found.astype(np.float64)


def _write(t: Tensor, pointer: int, value: np.ndarray) -> None:
    view = _view(t, pointer)
    if view.dtype == np.uint16:
        bits = np.ascontiguousarray(np.broadcast_to(value, view.shape), np.float32).view(np.uint32)
        view[...] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        view[...] = value


def _poison(pointer: int, nbytes: int) -> None:
    """A plan may write all of its workspace."""
    if nbytes:
        ctypes.memset(pointer, 0xFF, nbytes)


# What tests of both the provider and its calls need

H200 = gpu_target("sm_90a")
PLANS = [Plan("eng1_k2=0"), Plan("eng2", ("TENSOR_CORE",)), Plan("eng3", (), 1000), Plan("eng1_k2=1", builds=False)]
#: Puts a double with these plans in the place of the package.
Install = Callable[[Sequence[Plan]], Double]


def installer(monkeypatch: pytest.MonkeyPatch) -> Install:
    """See :data:`Install`."""

    def installed(plans: Sequence[Plan]) -> Double:
        made = Double(list(plans))
        monkeypatch.setitem(sys.modules, "cudnn", made.module())
        return made

    return installed


class Here:
    """The library on an emulated device, through the double."""

    def __init__(self) -> None:
        self.device = EmulatedDevice(H200)

    def version(self) -> str:
        return "9.19.0, frontend 1.32.0"

    def plans(self, spec: dict[str, Any], target: Target) -> list[list[str]]:
        return CudnnCall.offers(spec, self.device)


def with_epilogue(workload: Workload, text: str | None, residual: str = "") -> Workload:
    """The workload with another epilogue; input 3 is a residual in the output's layout, or in ``residual``."""
    y = workload.outputs[0]
    inputs = (*workload.inputs, *([y.with_layout(residual or y.layout)] if text and "in3" in text else []))
    return replace(workload, inputs=inputs, epilogue=parse(text) if text else None)
