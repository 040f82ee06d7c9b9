"""A double of ``nvmath.bindings.cublasLt``: it computes with NumPy what descriptors say, on the memory of an emulated device.

It has the names, parameters and attribute types of the real package that wpk uses, and no others, and refuses what the library
refuses: matrices that do not fit, a bias that is not there, too little workspace, pointers less aligned than was promised.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from math import erf
from types import SimpleNamespace
from typing import Any

import numpy as np

from wpk.measure.emulated import EmulatedDevice
from wpk.runtime.cuda.cublaslt_call import CublasLtCall
from wpk.runtime.cuda.device import LibraryCall, Span
from wpk.runtime.ports import numpy_dtype

#: function → its parameters, in order
SIGNATURES = {
    "create": (), "get_version": (),
    "matmul": (
        "light_handle", "compute_desc", "alpha", "a", "adesc", "b", "bdesc", "beta", "c", "cdesc", "d", "ddesc", "algo",
        "workspace", "workspace_size_in_bytes", "stream",
    ),
    "matrix_layout_create": ("type", "rows", "cols", "ld"), "matrix_layout_destroy": ("mat_layout",),
    "get_matrix_layout_attribute_dtype": ("attr",),
    "matrix_layout_set_attribute": ("mat_layout", "attr", "buf", "size_in_bytes"),
    "matmul_desc_create": ("compute_type", "scale_type"), "matmul_desc_destroy": ("matmul_desc",),
    "get_matmul_desc_attribute_dtype": ("attr",),
    "matmul_desc_set_attribute": ("matmul_desc", "attr", "buf", "size_in_bytes"),
    "matmul_preference_create": (), "matmul_preference_destroy": ("pref",),
    "get_matmul_preference_attribute_dtype": ("attr",),
    "matmul_preference_set_attribute": ("pref", "attr", "buf", "size_in_bytes"),
    "matmul_algo_get_heuristic": (
        "light_handle", "operation_desc", "adesc", "bdesc", "cdesc", "ddesc", "preference", "requested_algo_count",
        "heuristic_results_array", "return_algo_count",
    ),
    "get_matmul_algo_config_attribute_dtype": ("attr",),
    "matmul_algo_config_get_attribute": ("algo", "attr", "buf", "size_in_bytes", "size_written"),
}  # fmt: skip
#: enumeration → member → (value, the dtype of its values; "" where it has none)
MEMBERS = {
    "Epilogue": {
        "DEFAULT": (1, ""), "RELU": (2, ""), "BIAS": (4, ""), "RELU_BIAS": (6, ""), "GELU": (32, ""), "GELU_BIAS": (36, ""),
    },
    "MatmulDescAttribute": {
        "TRANSA": (3, "int32"), "TRANSB": (4, "int32"), "EPILOGUE": (7, "uint32"), "BIAS_POINTER": (8, "int64"),
    },
    "MatrixLayoutAttribute": {"BATCH_COUNT": (5, "int32"), "STRIDED_BATCH_OFFSET": (6, "int64")},
    "MatmulPreferenceAttribute": {
        "MAX_WORKSPACE_BYTES": (1, "uint64"), "REDUCTION_SCHEME_MASK": (3, "uint32"), "MIN_ALIGNMENT_A_BYTES": (5, "uint32"),
        "MIN_ALIGNMENT_B_BYTES": (6, "uint32"), "MIN_ALIGNMENT_C_BYTES": (7, "uint32"), "MIN_ALIGNMENT_D_BYTES": (8, "uint32"),
    },
    "MatmulAlgoConfigAttribute": {
        "ID": (0, "int32"), "TILE_ID": (1, "uint32"), "SPLITK_NUM": (2, "int32"), "REDUCTION_SCHEME": (3, "uint32"),
        "CTA_SWIZZLING": (4, "uint32"), "CUSTOM_OPTION": (5, "uint32"), "STAGES_ID": (6, "uint32"),
        "INNER_SHAPE_ID": (7, "uint16"), "CLUSTER_SHAPE_ID": (8, "uint16"),
    },
}  # fmt: skip
#: what the results of the heuristics look like in memory
RESULT = np.dtype(
    [
        ("algo", [("data_", np.uint64, (8,))]), ("workspace_size", np.uint64), ("state", np.int32),
        ("waves_count", np.float32), ("reserved", np.int32, (4,)),
    ],
    align=True,
)  # fmt: skip
DATA_TYPES = {0: "float32", 2: "float16", 14: "bfloat16"}
STRICT, TF32 = 68, 77
NOT_SUPPORTED, INVALID = 15, 7


class Failed(Exception):
    """The double of ``cuBLASLtError``."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(f"status {status}: {why}")
        self.status = status


@dataclass(frozen=True)
class Made:
    """An algorithm that the double offers; ``aligned``: what pointers must be multiples of, ``tile`` its one attribute."""

    tile: int
    workspace: int = 0
    aligned: int = 16
    state: int = 0
    scheme: int = 0


@dataclass
class Layout:
    """A matrix by columns, as it was created."""

    type: int
    rows: int
    cols: int
    ld: int
    attributes: dict[int, int] = field(default_factory=dict)

    @property
    def batch(self) -> tuple[int, int]:
        """(count, elements between two)."""
        return self.attributes.get(5, 1), self.attributes.get(6, 0)


class Bindings:
    """The module. ``offered``: its algorithms, best first; ``calls``: what ran, as (tile, strict)."""

    def __init__(self, device: EmulatedDevice, offered: Sequence[Made] = (Made(20),), version: int = 130400) -> None:
        self.offered, self._device, self._version = tuple(offered), device, version
        self.live: dict[int, Any] = {}
        self.calls: list[tuple[int, bool]] = []
        self.masks: list[int] = []
        self.failing = 0
        self._numbers = count(1000)
        self.cuBLASLtError = Failed
        self.matmul_heuristic_result_dtype = RESULT
        for name, members in MEMBERS.items():
            setattr(self, name, IntEnum(name, {k: v for k, (v, _) in members.items()}))
            setattr(self, _dtype_function(name), _typed(members))

    def get_version(self) -> int:
        return self._version

    def create(self) -> int:
        return self._new(SimpleNamespace(handle=True))

    # Descriptors

    def matrix_layout_create(self, type: int, rows: int, cols: int, ld: int) -> int:
        if not (type in DATA_TYPES and ld >= rows > 0 < cols):
            raise Failed(INVALID, "a layout")
        return self._new(Layout(type, rows, cols, ld))

    def matmul_desc_create(self, compute_type: int, scale_type: int) -> int:
        if compute_type not in (STRICT, TF32) or scale_type != 0:
            raise Failed(INVALID, "types")
        return self._new(SimpleNamespace(compute=compute_type, attributes={}))

    def matmul_preference_create(self) -> int:
        return self._new(SimpleNamespace(attributes={}))

    def matrix_layout_set_attribute(self, mat_layout: int, attr: int, buf: int, size_in_bytes: int) -> None:
        self._set(mat_layout, "MatrixLayoutAttribute", attr, buf, size_in_bytes)

    def matmul_desc_set_attribute(self, matmul_desc: int, attr: int, buf: int, size_in_bytes: int) -> None:
        self._set(matmul_desc, "MatmulDescAttribute", attr, buf, size_in_bytes)

    def matmul_preference_set_attribute(self, pref: int, attr: int, buf: int, size_in_bytes: int) -> None:
        self._set(pref, "MatmulPreferenceAttribute", attr, buf, size_in_bytes)

    def matrix_layout_destroy(self, mat_layout: int) -> None:
        del self.live[mat_layout]

    def matmul_desc_destroy(self, matmul_desc: int) -> None:
        del self.live[matmul_desc]

    def matmul_preference_destroy(self, pref: int) -> None:
        del self.live[pref]

    # Algorithms

    def matmul_algo_get_heuristic(
        self, light_handle: int, operation_desc: int, adesc: int, bdesc: int, cdesc: int, ddesc: int, preference: int,
        requested_algo_count: int, heuristic_results_array: int, return_algo_count: int,
    ) -> None:  # fmt: skip
        assert self.live[light_handle].handle
        if self.failing:
            raise Failed(self.failing, "heuristics")
        operation, wanted = self.live[operation_desc], self.live[preference].attributes
        self._check(operation, *(self.live[x] for x in (adesc, bdesc, cdesc, ddesc)))
        self.masks.append(wanted[3])
        aligned = min(wanted[i] for i in (5, 6, 7, 8))
        if operation.attributes.get(7, 1) & 4:
            aligned = min(aligned, operation.attributes[8] & -operation.attributes[8])
        able = [x for x in self.offered if x.workspace <= wanted[1] and x.aligned <= aligned and x.scheme & ~wanted[3] == 0]
        if not able:
            raise Failed(NOT_SUPPORTED, "heuristics")
        nbytes = requested_algo_count * RESULT.itemsize
        results = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(heuristic_results_array), RESULT)
        for into, made in zip(results, able, strict=False):
            into["algo"]["data_"][:4] = (66, made.tile, made.workspace, made.aligned)
            into["workspace_size"], into["state"] = made.workspace, made.state
        _write(return_algo_count, min(len(able), requested_algo_count), "int32")

    def matmul_algo_config_get_attribute(self, algo: int, attr: int, buf: int, size_in_bytes: int, size_written: int) -> None:
        if attr == 8:
            raise Failed(INVALID, "an attribute of a later version")
        dtype = _dtype_of("MatmulAlgoConfigAttribute", attr)
        assert size_in_bytes == np.dtype(dtype).itemsize
        words = (ctypes.c_uint64 * 8).from_address(algo)
        _write(buf, int(words[attr]) if attr < 2 else 0, dtype)
        _write(size_written, size_in_bytes, "uint64")

    def matmul(
        self, light_handle: int, compute_desc: int, alpha: int, a: int, adesc: int, b: int, bdesc: int, beta: int, c: int,
        cdesc: int, d: int, ddesc: int, algo: int, workspace: int, workspace_size_in_bytes: int, stream: int,
    ) -> None:  # fmt: skip
        assert self.live[light_handle].handle
        operation, layouts = self.live[compute_desc], [self.live[x] for x in (adesc, bdesc, cdesc, ddesc)]
        self._check(operation, *layouts)
        _, tile, needs, aligned = (int(x) for x in (ctypes.c_uint64 * 8).from_address(algo)[:4])
        used = [a, b, c, d, *([operation.attributes[8]] if operation.attributes.get(7, 1) & 4 else [])]
        if any(p % aligned for p in used) or workspace_size_in_bytes < needs or (needs and workspace % 16):
            raise Failed(INVALID, f"pointers or workspace of algorithm {tile}")
        self._device._view(Span(workspace, workspace_size_in_bytes))
        factors = (ctypes.c_float.from_address(p).value for p in (alpha, beta))
        self._compute(operation, layouts, (a, b, c, d), *factors)
        self.calls.append((tile, operation.compute == STRICT))

    # How it is done

    def _check(self, operation: Any, a: Layout, b: Layout, c: Layout, d: Layout) -> None:
        """Raises Failed for matrices that do not go together."""
        m, k = (a.cols, a.rows) if operation.attributes.get(3) else (a.rows, a.cols)
        k2, n = (b.cols, b.rows) if operation.attributes.get(4) else (b.rows, b.cols)
        fits = k == k2 and (m, n) == (c.rows, c.cols) == (d.rows, d.cols) and a.type == b.type and c.type == d.type
        wide = a.type == d.type or (d.type == 0 and a.type != 0)
        same_batch = len({x.batch[0] for x in (a, b, c, d)}) == 1
        if not (fits and wide and same_batch) or (d.batch[0] > 1 and d.batch[1] < m * n):
            raise Failed(INVALID, "matrices")
        if operation.attributes.get(7, 1) & 4 and not operation.attributes.get(8):
            raise Failed(NOT_SUPPORTED, "no bias")

    def _compute(
        self, operation: Any, layouts: Sequence[Layout], pointers: Sequence[int], alpha: float, beta: float
    ) -> None:
        a, b, c, d = (self._matrices(x, p) for x, p in zip(layouts, pointers, strict=True))
        a = a.swapaxes(1, 2) if operation.attributes.get(3) else a
        b = b.swapaxes(1, 2) if operation.attributes.get(4) else b
        result = alpha * (a.astype(np.float64) @ b.astype(np.float64))
        if beta:
            result = result + beta * c.astype(np.float64)
        epilogue = operation.attributes.get(7, 1)
        if epilogue & 4:
            vector = Layout(layouts[3].type, layouts[3].rows, 1, layouts[3].rows)
            result = result + self._matrices(vector, operation.attributes[8]).astype(np.float64)
        with np.errstate(over="ignore"):
            d[...] = _activated(result, epilogue & ~4).astype(d.dtype)

    def _matrices(self, layout: Layout, pointer: int) -> np.ndarray:
        """(batch, rows, cols) of the device's memory, read as the library reads it."""
        dtype = numpy_dtype(DATA_TYPES[layout.type])
        number, stride = layout.batch
        elements = (number - 1) * stride + (layout.cols - 1) * layout.ld + layout.rows
        data = self._device._view(Span(pointer, elements * dtype.itemsize)).view(dtype)
        steps = tuple(dtype.itemsize * s for s in (stride, 1, layout.ld))
        return np.lib.stride_tricks.as_strided(data, (number, layout.rows, layout.cols), steps)

    def _new(self, what: Any) -> int:
        number = next(self._numbers)
        self.live[number] = what
        return number

    def _set(self, number: int, kind: str, attr: int, buf: int, size: int) -> None:
        dtype = np.dtype(_dtype_of(kind, attr))
        if size != dtype.itemsize:
            raise Failed(INVALID, "size of an attribute")
        self.live[number].attributes[attr] = int(np.frombuffer((ctypes.c_uint8 * size).from_address(buf), dtype)[0])


class LtDevice(EmulatedDevice):
    """An emulated device that has cuBLASLt."""

    def library(self, kind: str, spec: dict[str, Any]) -> LibraryCall:
        """See :class:`wpk.runtime.cuda.driver.CudaDevice`."""
        assert kind == "cublaslt"
        call = CublasLtCall(spec, self)
        workspace = self.allocate(call.workspace_bytes) if call.workspace_bytes else 0
        return lambda stream, pointers: call.enqueue(stream, pointers, workspace)

    def offers(self, kind: str, spec: dict[str, Any]) -> list[list[str]]:
        """See :class:`wpk.runtime.cuda.driver.CudaDevice`."""
        assert kind == "cublaslt"
        return CublasLtCall.offers(spec, self)


def _activated(x: np.ndarray, epilogue: int) -> np.ndarray:
    if epilogue == 2:
        return np.maximum(x, 0)
    if epilogue == 32:
        return np.asarray(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))
    assert epilogue in (0, 1)
    return x


def exact_gelu(x: np.ndarray) -> np.ndarray:
    """The one by erf."""
    return np.asarray(0.5 * x * (1 + np.vectorize(erf)(x * 0.5**0.5)))


def _dtype_function(kind: str) -> str:
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind).lstrip("_")
    return f"get_{snake}_dtype"


def _typed(members: dict[str, tuple[int, str]]) -> Any:
    return lambda attr: np.dtype(next(dtype for value, dtype in members.values() if value == attr)).type


def _dtype_of(kind: str, attr: int) -> str:
    return next(dtype for value, dtype in MEMBERS[kind].values() if value == attr)


def _write(address: int, value: int, dtype: str) -> None:
    np.frombuffer((ctypes.c_uint8 * np.dtype(dtype).itemsize).from_address(address), dtype)[0] = value
