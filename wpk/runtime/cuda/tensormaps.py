"""Tensor maps as the driver encodes them: 128 opaque bytes each, made in memory of our own.

The driver wants the place it writes to aligned (64 bytes before CUDA 13, 128 since), which objects of cuda-bindings are not:
Python's memory is aligned to 16. So its function is called by address.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wpk.core.errors import DeviceError
from wpk.core.launch import TensorMap

#: bytes and alignment of a ``CUtensorMap``
BYTES, ALIGN = 128, 128

_DTYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "FLOAT64", "int8": "UINT8", "uint8": "UINT8",
    "int32": "INT32", "int64": "INT64", "tf32": "TFLOAT32",
}  # fmt: skip
#: the CUDA version, as the driver counts, that has tensor maps
_SINCE = 12000
_INT, _UINT, _PLACE = ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
#: cuTensorMapEncodeTiled: map, dtype, rank, address, dims, strides, box, steps, interleave, swizzle, promotion, fill
_ENCODE = ctypes.CFUNCTYPE(_INT, _PLACE, _INT, _UINT, _PLACE, _PLACE, _PLACE, _PLACE, _PLACE, _INT, _INT, _INT, _INT)


def encode(driver: Any, maps: list[tuple[TensorMap, int]]) -> tuple[ctypes.Array[ctypes.c_char], list[int]]:
    """Tensor maps of tensors at addresses: the memory that holds them, and where each lies in it.

    ``driver`` is the module of cuda-bindings. Raises DeviceError when it refuses one.
    """
    memory = ctypes.create_string_buffer(BYTES * len(maps) + ALIGN)
    start = -(-ctypes.addressof(memory) // ALIGN) * ALIGN
    places = [start + i * BYTES for i in range(len(maps))]
    for place, (tensor, address) in zip(places, maps, strict=True):
        _encode(driver, tensor, address, place)
    return memory, places


def _encode(driver: Any, tensor: TensorMap, address: int, place: int) -> None:
    rank = len(tensor.shape)
    steps = tensor.steps or (1,) * rank
    box = [n * step for n, step in zip(tensor.box, steps, strict=True)]
    status = _function(driver)(
        place, _value(driver, "DataType", "DATA_TYPE", _DTYPES[tensor.dtype]), rank, address,
        (ctypes.c_uint64 * rank)(*tensor.shape), (ctypes.c_uint64 * rank)(*tensor.strides), (_UINT * rank)(*box),
        (_UINT * rank)(*steps), _value(driver, "Interleave", "INTERLEAVE", "NONE"),
        _value(driver, "Swizzle", "SWIZZLE", f"{tensor.swizzle}B" if tensor.swizzle else "NONE"),
        _value(driver, "L2promotion", "L2_PROMOTION", "L2_128B"), _value(driver, "FloatOOBfill", "FLOAT_OOB_FILL", "NONE"),
    )  # fmt: skip
    if status:
        raise DeviceError(f"{driver.CUresult(status).name}: the driver refuses {tensor} at {address:#x}")


def _value(driver: Any, enumeration: str, prefix: str, name: str) -> int:
    return int(getattr(getattr(driver, f"CUtensorMap{enumeration}"), f"CU_TENSOR_MAP_{prefix}_{name}"))


def _function(driver: Any) -> Any:
    status, address, _ = driver.cuGetProcAddress(b"cuTensorMapEncodeTiled", _SINCE, 0)
    if int(status) or not address:
        raise DeviceError(f"the driver has no tensor maps ({status.name})")
    return _ENCODE(address)


__all__ = ["encode"]
