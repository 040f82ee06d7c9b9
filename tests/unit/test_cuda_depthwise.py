"""Depthwise convolutions on a GPU: any config gives what sliding windows give; texts move vectors and do not spill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from cuda_conv_check import check, in_dtype
from cuda_workloads import conv as general
from dsl_cuda_check import H200, compiled
from test_family_conv import conv

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.kernels.cuda.conv_shape import given
from wpk.kernels.cuda.depthwise import CudaDepthwise
from wpk.kernels.cuda.depthwise_grid import grid_of
from wpk.measure.measurer import cuda_measurer
from wpk.providers.generated import GeneratedProvider
from wpk.settings import gpu_target

FAMILY = CudaDepthwise()
LAYOUTS = ("ROW", "NHWC")


def depthwise(
    c: int, h: int, w: int, size: int = 3, stride: int = 1, dilation: int = 1, multiplier: int = 1, layout: str = "ROW",
    images: int = 1, residual: bool = False, pads: tuple[int, int, int, int] | None = None,
) -> Workload:  # fmt: skip
    """A depthwise convolution with bias and ReLU, padded to keep its size unless ``pads`` are given."""
    around = (dilation * (size - 1) // 2,) * 4
    return conv((images, c, h, w), c * multiplier, size, stride, pads or around, dilation, c, (layout, layout), residual)


#: name -> numbers of a workload
CASES: dict[str, dict[str, object]] = {
    "whole": {"c": 16, "h": 8, "w": 8, "residual": True},
    "ragged": {"c": 6, "h": 7, "w": 9, "residual": True},
    "strided": {"c": 12, "h": 9, "w": 12, "stride": 2},
    "dilated": {"c": 8, "h": 11, "w": 9, "dilation": 2},
    "multiplied": {"c": 6, "h": 6, "w": 7, "multiplier": 2, "residual": True},
    "much-multiplied": {"c": 3, "h": 5, "w": 8, "multiplier": 8, "stride": 2},
    "images": {"c": 8, "h": 5, "w": 6, "images": 3, "residual": True},
    "uneven": {"c": 8, "h": 8, "w": 8, "stride": 2, "pads": (0, 0, 1, 1)},
    "5x5": {"c": 8, "h": 7, "w": 8, "size": 5},
    "4x4-stride-3": {"c": 4, "h": 9, "w": 10, "size": 4, "stride": 3, "pads": (2, 1, 2, 1)},
    "1x1": {"c": 8, "h": 5, "w": 8, "size": 1},
    "global": {"c": 40, "h": 7, "w": 7, "size": 7, "pads": (0, 0, 0, 0)},
}
#: layers of ShuffleNet and EfficientNet
LARGE = {
    "56": {"c": 112, "h": 56, "w": 56, "stride": 2}, "28": {"c": 136, "h": 28, "w": 28},
    "14": {"c": 272, "h": 14, "w": 14}, "7": {"c": 544, "h": 7, "w": 7}, "5x5": {"c": 672, "h": 14, "w": 14, "size": 5},
    "112": {"c": 32, "h": 112, "w": 112}, "7x7": {"c": 96, "h": 56, "w": 56, "size": 7},
}  # fmt: skip


def case(name: str, layout: str, dtype: str = "float32") -> Workload:
    """A workload; "large-…" are those of networks."""
    numbers = LARGE[name[6:]] if name.startswith("large-") else CASES[name]
    w = depthwise(**numbers, layout=layout)  # type: ignore[arg-type]
    return w if dtype == "float32" else in_dtype(w, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_first_guess_convolves(name: str, layout: str) -> None:
    w = case(name, layout)
    check(FAMILY, w, FAMILY.space(w, H200).default())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["ragged", "strided", "multiplied"])
def test_in_16_bits(name: str, dtype: str, layout: str) -> None:
    w = case(name, layout, dtype)
    space = FAMILY.space(w, H200)
    check(FAMILY, w, space.sample(Random(len(name))) if dtype == "float16" else space.default())


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
def test_measured_with_a_result_in_float32(tmp_path: Path) -> None:
    with cuda_measurer(H200, tmp_path, emulate=True) as measurer:
        for layout in LAYOUTS:
            w = general(16, 32, 9, 3, 2, group=16, dtype="float16", layout=layout, result="float32")
            (found,) = measurer.measure(w, GeneratedProvider(FAMILY, "cuda"), [FAMILY.space(w, H200).sample(Random(1))])
            assert found.ok, found


@pytest.mark.parametrize("seed", range(16))
def test_sampled_configs_convolve(seed: int) -> None:
    rng = Random(seed)
    w = case(sorted(CASES)[seed % len(CASES)], LAYOUTS[seed // 8])
    check(FAMILY, w, FAMILY.space(w, H200).sample(rng), seed=seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", ["none", "block"])
@pytest.mark.parametrize("unroll", ["all", "row", "loop", "none"])
def test_every_way_to_keep_the_input(unroll: str, stage: str, layout: str) -> None:
    w = case("global" if unroll == "none" else "strided", layout)
    space = FAMILY.space(w, H200)
    config = space.repair({**space.default(), "unroll": unroll, "stage": stage}, Random(0))
    assert (config["unroll"], config["stage"]) == (unroll, stage)
    check(FAMILY, w, config, emulate=False)


def test_any_kernel_has_a_config() -> None:
    for size in (1, 3, 9, 31):
        w = depthwise(4, 40, 40, size)
        space = FAMILY.space(w, H200)
        assert space.first and space.valid(space.sample(Random(size)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LARGE)
def test_first_guesses_do_not_spill(name: str, layout: str) -> None:
    isa = {"56": "sm_80", "14": "sm_100"}.get(name, "sm_90a")
    w = case(f"large-{name}", layout, {"28": "float16", "7": "bfloat16"}.get(name, "float32"))
    space = FAMILY.space(w, H200)
    assert len(space.first) >= 3 and all(space.valid(c) for c in space.first)
    for config in space.first[:2]:
        assert all(r.local_bytes == 0 for r in compiled(FAMILY.build(w, config, H200).kernel, isa).values()), config


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize("seed", range(8))
def test_sampled_configs_do_not_spill(seed: int) -> None:
    rng = Random(seed)
    target = gpu_target(("sm_80", "sm_90a", "sm_100")[seed % 3])
    w = case(f"large-{rng.choice(sorted(LARGE))}", LAYOUTS[seed % 2], rng.choice(["float32", "float16", "bfloat16"]))
    config = FAMILY.space(w, target).sample(rng)
    text = emit(FAMILY.build(w, config, target).kernel, target.isa).text
    for resources in nvrtc.compile(text, target.isa).resources.values():
        assert resources.spill_bytes == 0, (config, resources)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_vectors_are_read_and_written(layout: str) -> None:
    w = case("large-28", layout)
    config = {**FAMILY.space(w, H200).default(), "tile_h": 2, "tile_w": 4, "unroll": "all", "stage": "none"}
    text = emit(FAMILY.build(w, config, H200).kernel, "sm_90a").text
    assert "= *(const f32x4 *)(x_" in text and "*(f32x4 *)(out_" in text
    assert "#pragma unroll" in text and "x_3[" not in text


def test_first_guesses_spread_over_a_gpu() -> None:
    for name in LARGE:
        for layout in LAYOUTS:
            w = case(f"large-{name}", layout)
            g = grid_of(given(w), 4, FAMILY.space(w, H200).default())
            assert g.blocks[0] * g.blocks[1] * g.blocks[2] >= 88, (name, layout, g)


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (conv((1, 16, 7, 7), 16, 3, 1, (1, 1, 1, 1), group=4, layouts=("ROW", "ROW")), "4 groups of 16 channels"),
        (depthwise(16, 7, 7, layout="NCHW16c"), "layouts NCHW16c"),
        (replace(depthwise(16, 7, 7), constants=(2,)), "expected constant floats"),
        (replace(depthwise(4, 7, 7), outputs=(TensorType("float32", (1, 4, 7, 7), "NHWC"),)), "layouts ROW → NHWC"),
    ],
)
def test_it_says_why_not(w: Workload, reason: str) -> None:
    assert reason in str(FAMILY.matches(w, H200))
