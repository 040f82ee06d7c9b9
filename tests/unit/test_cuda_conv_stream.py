"""Stream-K in convolutions: shares cut through taps, images and groups, and give what sliding windows give."""

from __future__ import annotations

import pytest
from cuda_conv_check import CASES, check, in_dtype
from dsl_cuda_check import H200
from test_family_conv import conv

from wpk.core.result import Config
from wpk.core.workload import Workload
from wpk.kernels.cuda.conv import CudaConv
from wpk.kernels.cuda.conv_mma import CudaConvMma
from wpk.kernels.cuda.conv_shape import conv_of, copies

SMALL: Config = {"split_k": 1, "slices": 1, "stages": 3, "group": 1, "min_blocks": 1}
FRAGMENT: Config = {**SMALL, "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "bytes_k": 32}
TILE: Config = {**SMALL, "tile_m": 2, "tile_n": 4, "lanes_m": 8, "warps_m": 1, "warps_n": 1, "tile_k": 8, "unroll_k": 4}


@pytest.mark.parametrize(
    ("name", "layout", "slots"),
    [("padded", "NHWC", 5), ("padded", "ROW", 7), ("groups", "ROW", 5), ("batch-groups", "NHWC", 3), ("stem", "ROW", 25)],
)
def test_on_tensor_cores(name: str, layout: str, slots: int) -> None:
    w, family = in_dtype(CASES[name](layout), "float16"), CudaConvMma()
    check(family, w, {**family.space(w, H200).default(), **FRAGMENT, "stream": slots})


@pytest.mark.parametrize(("name", "layout", "slots"), [("padded", "NHWC", 5), ("batch-groups", "ROW", 4)])
def test_on_plain_cores(name: str, layout: str, slots: int) -> None:
    w, family = CASES[name](layout), CudaConv()
    check(family, w, {**family.space(w, H200).default(), **TILE, "stream": slots})


def test_after_a_padded_copy() -> None:
    w, family = in_dtype(CASES["stem"]("NHWC"), "float16"), CudaConvMma()
    copy = copies(conv_of(w))[-1]
    config = {**family.space(w, H200).default(), **FRAGMENT, "reduce": "kh_kwc", "copy": copy, "stream": 4}
    check(family, w, config)


def layer(layout: str) -> Workload:
    """A layer whose tiles no wave of an H200 fits."""
    return conv((1, 256, 28, 28), 512, 3, 1, (1, 1, 1, 1), layouts=(layout, layout))


@pytest.mark.parametrize("layout", ["NHWC", "ROW"])
def test_spaces_offer_it(layout: str) -> None:
    half, plain = in_dtype(layer(layout), "float16"), layer(layout)
    for space in (CudaConvMma().space(half, H200), CudaConv().space(plain, H200)):
        shared = [c for c in space.first if c["stream"]]
        assert shared and all(space.valid(c) for c in shared)
