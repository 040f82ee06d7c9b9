"""Convolutions by wgmma: any config, emulated, gives what sliding windows give; boxes are fetched; texts do not spill."""

from __future__ import annotations

from random import Random

import pytest
from cuda_conv_check import CASES, SAME3, check, in_dtype
from dsl_cuda_check import H200
from test_family_conv import conv

from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.kernels.cuda.conv_wgmma import CudaConvWgmma
from wpk.settings import gpu_target

FAMILY = CudaConvWgmma()
LAST = ("NHWC", "NHWC")
LARGE = {
    "3x3": ((1, 256, 14, 14), 256, 3, 1, SAME3),
    "pointwise": ((1, 2048, 7, 7), 512, 1),
    "strided": ((1, 128, 28, 28), 128, 3, 2, SAME3),
}


def wide(n: int, oc: int, dilation: int = 1, dtype: str = "bfloat16", stride: int = 1) -> Workload:
    """A padded convolution of 64 channels."""
    pads = (dilation,) * 4
    return in_dtype(conv((n, 64, 9, 11), oc, 3, stride, pads, dilation=dilation, layouts=LAST, residual=True), dtype)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("one-channel-groups", "batch-groups")])
def test_the_text_convolves(name: str) -> None:
    rng = Random(len(name))
    w = in_dtype(CASES[name]("NHWC"), rng.choice(("float32", "float16", "bfloat16")))
    space = FAMILY.space(w, H200)
    for config in (space.default(), space.sample(rng)):
        check(FAMILY, w, config)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize(("n", "dilation", "stride"), [(1, 1, 1), (3, 1, 1), (1, 2, 1), (3, 1, 2)])
def test_boxes_of_pixels(n: int, dilation: int, stride: int, width: int) -> None:
    w = wide(n, 40, dilation, stride=stride)
    plain = {"groups_n": 1, "rows": 1, "columns": 32, "order": "nm", "group": 1, "min_blocks": 1, "reduce": "kh_kw_c", "copy": 0}
    for groups, stages, split in ((1, 2, 1), (2, 4, 3)):
        config = {**plain, "fetch": width, "groups_m": groups, "stages": stages, "split_k": split}
        assert FAMILY.space(w, H200).valid(config)
        check(FAMILY, w, config)


@pytest.mark.parametrize("seed", range(4))
def test_any_config_of_wide_inputs(seed: int) -> None:
    w = wide(1 + seed % 2, 24, 1, "float32" if seed == 3 else "float16")
    check(FAMILY, w, FAMILY.space(w, H200).sample(Random(seed)), seed=seed)


def test_a_sum_of_one_step_is_fetched_too() -> None:
    w = in_dtype(conv((1, 64, 5, 7), 24, 1, layouts=LAST), "float16")
    config = {**FAMILY.space(w, H200).default(), "fetch": 1, "stages": 2}
    assert "tma_load_4d" in emit(FAMILY.build(w, config, H200).kernel, "sm_90a").text
    check(FAMILY, w, config)


@pytest.mark.parametrize("name", LARGE)
def test_guesses_are_valid_and_do_not_spill(name: str) -> None:
    w = in_dtype(conv(*LARGE[name], layouts=LAST), "float16")
    space = FAMILY.space(w, H200)
    assert len(space.first) >= 5 and all(space.valid(c) for c in space.first)
    assert space.default()["fetch"]
    for config in space.first[:2] if nvrtc.available() else ():
        compiled = nvrtc.compile(emit(FAMILY.build(w, config, H200).kernel, "sm_90a").text, "sm_90a")
        assert all(r.local_bytes == 0 for r in compiled.resources.values()) and nvrtc.losses(compiled.log) == []


def test_only_for_channels_last_of_16_bits_and_this_gpu() -> None:
    assert "NHWC" in str(FAMILY.matches(in_dtype(CASES["padded"]("ROW"), "float16"), H200))
    assert "float16, bfloat16" in str(FAMILY.matches(CASES["padded"]("NHWC"), H200))
    assert "sums of 9" in str(FAMILY.matches(in_dtype(CASES["one-channel-groups"]("NHWC"), "float16"), H200))
    assert "sm_80" in str(FAMILY.matches(in_dtype(CASES["padded"]("NHWC"), "float16"), gpu_target("sm_80")))
