"""Arrays on the GPU, in and out, without copies: ``__cuda_array_interface__`` (version 3) and DLPack."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import prod
from typing import Any

from wpk.core.errors import FeedError
from wpk.core.tensor import DTYPE_BYTES
from wpk.runtime.plan import Port
from wpk.runtime.ports import describe

#: dtype → the typestr of the array interface; bfloat16 has none there
TYPESTR = {
    "float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "|i1", "uint8": "|u1", "int16": "<i2", "int32": "<i4",
    "int64": "<i8", "bool": "|b1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bfloat16": "<u2",
}  # fmt: skip

#: What torch and ml_dtypes say bfloat16 is.
_BFLOAT16 = "<V2"
_CUDA, _CPU_DEVICES = 2, (1, 3)
#: Bytes that kernels read at once.
_ALIGN = 16
#: DLPack's type codes
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


@dataclass(frozen=True)
class DeviceArray:
    """A C-ordered array in device memory: ``pointer``, logical ``shape``, ``dtype``. ``owner`` keeps the memory alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any = field(default=None, repr=False, compare=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What GPUArray, cupy, numba and torch take."""
        return {
            "shape": self.shape, "typestr": TYPESTR[self.dtype], "data": (self.pointer, False), "strides": None, "version": 3,
            "stream": None,
        }  # fmt: skip


def on_device(value: Any) -> bool:
    """True for an array on the GPU, False for one of the host, or anything else."""
    if hasattr(value, "__cuda_array_interface__"):
        return True
    find = getattr(value, "__dlpack_device__", None)
    return find is not None and int(find()[0]) not in _CPU_DEVICES


def device_array(port: Port, value: Any, what: str) -> int:
    """The address of an array on the GPU that fits ``port``; ``what`` it is, for messages. Raises FeedError."""
    if not on_device(value):
        raise FeedError(f"{what} {port.name!r}: expected an array on the GPU, found {type(value).__name__}")
    if hasattr(value, "__cuda_array_interface__"):
        pointer = _from_interface(port, value.__cuda_array_interface__, what)
    else:
        pointer = _from_dlpack(port, value, what)
    if pointer % _ALIGN:
        raise FeedError(f"{what} {port.name!r}: expected an address that is a multiple of {_ALIGN}, found {pointer:#x}")
    return pointer


def _from_interface(port: Port, interface: dict[str, Any], what: str) -> int:
    shape, typestr = tuple(interface["shape"]), str(interface["typestr"])
    found = next((d for d, t in TYPESTR.items() if t == typestr and d != "bfloat16"), typestr)
    same = typestr == TYPESTR.get(port.dtype) or (port.dtype == "bfloat16" and typestr == _BFLOAT16)
    _check(port, port.dtype if same else found, shape, interface.get("strides"), DTYPE_BYTES[port.dtype], what)
    return int(interface["data"][0])


def _from_dlpack(port: Port, value: Any, what: str) -> int:
    """DLPack's struct is read here: no library for it is needed. The producer's object keeps the memory."""
    capsule = value.__dlpack__()
    tensor = _Managed.from_address(_pointer(capsule, b"dltensor")).tensor
    if tensor.device_type != _CUDA:
        raise FeedError(f"{what} {port.name!r}: expected memory of a CUDA device, found DLPack device {tensor.device_type}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    dtype = f"{_CODES.get(tensor.code, '?')}{tensor.bits}" if tensor.code != 6 else "bool"
    _check(port, dtype, shape, strides, 1, what)
    return int(tensor.data or 0) + int(tensor.byte_offset)


def _check(
    port: Port, dtype: str, shape: tuple[int, ...], strides: Any, unit: int, what: str
) -> None:
    """``strides`` in ``unit`` bytes an element, None for C order."""
    expected = describe(port.dtype, port.shape)
    if dtype != port.dtype or shape != port.shape:
        raise FeedError(f"{what} {port.name!r}: expected {expected}, found {describe(dtype, shape)}")
    dense = tuple(prod(shape[i + 1 :]) * unit for i in range(len(shape)))
    apart = [i for i, n in enumerate(shape) if n > 1]
    if strides is not None and any(strides[i] != dense[i] for i in apart):
        raise FeedError(f"{what} {port.name!r}: expected {expected} in C order, found strides {tuple(strides)}")


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor),)


def _pointer(capsule: Any, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(get(capsule, name) or 0)
