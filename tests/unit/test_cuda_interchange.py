"""Arrays on a GPU as other libraries describe them. No GPU is needed to read a description."""

from __future__ import annotations

from typing import Any

import pytest

from wpk.core.errors import FeedError
from wpk.runtime.cuda.interchange import DeviceArray, device_array
from wpk.runtime.plan import Port


class Described:
    """An array of another library."""

    def __init__(self, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": shape, "typestr": typestr, "data": (0x1000, False), "strides": strides, "version": 3,
        }  # fmt: skip


@pytest.mark.parametrize("typestr", ["<u2", "<V2"])
def test_bfloat16_is_bits_or_what_torch_calls_it(typestr: str) -> None:
    assert device_array(Port("x", "bfloat16", (2, 3)), Described(typestr, (2, 3)), "feed") == 0x1000


@pytest.mark.parametrize("dtype", ["float16", "uint16"])
def test_what_torch_calls_bfloat16_is_nothing_else(dtype: str) -> None:
    with pytest.raises(FeedError, match="found <V2"):
        device_array(Port("x", dtype, (2, 3)), Described("<V2", (2, 3)), "feed")


def test_strides_are_bytes_and_must_be_dense() -> None:
    port = Port("x", "float32", (2, 1, 3))
    assert device_array(port, Described("<f4", (2, 1, 3), (12, 99, 4)), "feed") == 0x1000
    with pytest.raises(FeedError, match="C order"):
        device_array(port, Described("<f4", (2, 1, 3), (4, 4, 8)), "feed")


def test_what_goes_out_comes_in() -> None:
    assert device_array(Port("y", "int64", (4,)), DeviceArray(0x2000, (4,), "int64"), "output") == 0x2000
