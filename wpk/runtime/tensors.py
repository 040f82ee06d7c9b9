"""Weights in the safetensors format, laid out so that each tensor starts at a multiple of 64 bytes and can be used mapped.

The format allows no holes between tensors, so what alignment needs is filled by byte tensors named ``~pad/<n>``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

ALIGN = 64
_PAD = "~pad/"
_TAGS = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8",
    "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32", "int64": "I64", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip
#: BF16 is read as its bits: NumPy has no such type, and a runner needs only the bytes.
_DTYPES = {tag: np.dtype("uint16" if tag == "BF16" else name) for name, tag in _TAGS.items()}


def encode(tensors: Mapping[str, np.ndarray]) -> tuple[int, Iterator[memoryview | bytes]]:
    """The size of the file in bytes, and its content piece by piece; no piece is a copy of a C-ordered array."""
    table, pieces, end = _arrange(tensors)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return 8 + len(text) + end, _content(struct.pack("<Q", len(text)) + text, pieces)


def decode(data: memoryview) -> dict[str, np.ndarray]:
    """The tensors, as read-only views of ``data``. Raises ValueError for data of another form."""
    if len(data) < 8:
        raise ValueError("the weights have no header")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("the header of the weights is longer than the file")
    table = json.loads(bytes(data[8 : 8 + length]))
    body = data[8 + length :]
    return {name: _view(body, name, entry) for name, entry in table.items() if _is_tensor(name)}


def _is_tensor(name: str) -> bool:
    return not name.startswith(_PAD) and name != "__metadata__"


def _arrange(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], list[np.ndarray | bytes], int]:
    table: dict[str, Any] = {}
    pieces: list[np.ndarray | bytes] = []
    end = 0
    for name, array in tensors.items():
        if not _is_tensor(name):
            raise ValueError(f"a tensor cannot be named {name!r}")
        table[name] = _entry(_TAGS[array.dtype.name], array.shape, end, array.nbytes)
        pieces.append(array)
        end += array.nbytes
        if hole := -end % ALIGN:
            table[f"{_PAD}{len(table)}"] = _entry("U8", (hole,), end, hole)
            pieces.append(bytes(hole))
            end += hole
    return table, pieces, end


def _entry(tag: str, shape: tuple[int, ...], start: int, nbytes: int) -> dict[str, Any]:
    return {"dtype": tag, "shape": list(shape), "data_offsets": [start, start + nbytes]}


def _content(head: bytes, pieces: list[np.ndarray | bytes]) -> Iterator[memoryview | bytes]:
    yield head
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        elif piece.nbytes:
            yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data


def _view(body: memoryview, name: str, entry: dict[str, Any]) -> np.ndarray:
    start, stop = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    count = prod(shape)
    if not 0 <= start <= stop <= len(body) or stop - start != count * dtype.itemsize:
        raise ValueError(f"the tensor {name!r} lies outside the weights")
    return np.frombuffer(body[start:stop], dtype, count).reshape(shape)
