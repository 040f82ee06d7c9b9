"""Convolutions on tensor cores: any config, emulated, gives what sliding windows give; texts do not spill."""

from __future__ import annotations

from random import Random

import pytest
from cuda_conv_check import CASES, SAME3, check, in_dtype
from dsl_cuda_check import H200, compiled
from test_family_conv import conv

from wpk.dsl.codegen.cuda import emit
from wpk.dsl.verify import verify
from wpk.kernels.cuda.conv_mma import CudaConvMma
from wpk.kernels.cuda.conv_shape import conv_of, copies

FAMILY = CudaConvMma()
LAYOUTS = ("NHWC", "ROW")
DTYPES = ("float32", "float16", "bfloat16")
LARGE = {
    "3x3": ((1, 256, 14, 14), 256, 3, 1, SAME3),
    "pointwise": ((1, 2048, 7, 7), 512, 1),
    "stem": ((1, 3, 224, 224), 64, 7, 2, (3, 3, 3, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_text_convolves(name: str, layout: str) -> None:
    rng = Random(len(name))
    w = in_dtype(CASES[name](layout), rng.choice(DTYPES))
    space = FAMILY.space(w, H200)
    for config in [space.default(), space.sample(rng)][layout == "ROW" :]:
        check(FAMILY, w, config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["stem", "padded"])
def test_padded_copies(name: str, dtype: str) -> None:
    w = in_dtype(CASES[name]("NHWC"), dtype)
    for copy in copies(conv_of(w))[1:]:
        check(FAMILY, w, {**FAMILY.space(w, H200).default(), "reduce": "kh_kwc", "copy": copy})


def test_a_step_that_is_wholly_outside_the_input_reads_nothing() -> None:
    w = in_dtype(conv((1, 8, 7, 5), 4, 7, 1, (3, 3, 3, 0), layouts=("NHWC", "NHWC"), residual=True), "bfloat16")
    config = {
        **FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "bytes_k": 32, "split_k": 8,
        "slices": 1, "stages": 2, "reduce": "kh_kwc", "copy": 0,
    }  # fmt: skip
    check(FAMILY, w, config)


@pytest.mark.parametrize(("layout", "dtype"), [("NHWC", "float16"), ("ROW", "float32")])
def test_the_kernel_means_a_convolution(layout: str, dtype: str) -> None:
    w = in_dtype(CASES["batch-groups"](layout), dtype)
    config = {
        **FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "bytes_k": 32, "split_k": 1,
    }  # fmt: skip
    check(FAMILY, w, config, emulate=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize(("dtype", "isa"), [("float16", "sm_90a"), ("float32", "sm_80"), ("bfloat16", "sm_100")])
def test_first_configs_do_not_spill(name: str, layout: str, dtype: str, isa: str) -> None:
    w = in_dtype(conv(*LARGE[name], layouts=(layout, layout)), dtype)
    config = FAMILY.space(w, H200).default()
    for resources in compiled(FAMILY.build(w, config, H200).kernel, isa).values():
        assert resources.local_bytes == 0


@pytest.mark.parametrize(("seed", "isa"), list(enumerate(["sm_80", "sm_90a", "sm_100", "sm_90a"])))
def test_sampled_configs_compile(seed: int, isa: str) -> None:
    rng = Random(seed)
    w = in_dtype(conv(*rng.choice(list(LARGE.values())), layouts=(LAYOUTS[seed % 2],) * 2), rng.choice(DTYPES))
    kernel = FAMILY.build(w, FAMILY.space(w, H200).sample(rng), H200).kernel
    verify(kernel)
    assert all(r.registers <= 255 for r in compiled(kernel, isa).values())


def test_channels_last_are_copied_by_16_bytes() -> None:
    w = in_dtype(conv(*LARGE["3x3"], layouts=("NHWC", "NHWC")), "float16")
    text = emit(FAMILY.build(w, FAMILY.space(w, H200).default(), H200).kernel, "sm_90a").text
    assert "cp_async<16>" in text and "cp_async<4>" not in text


def test_the_space_is_large_and_its_guesses_are_valid() -> None:
    space = FAMILY.space(in_dtype(conv(*LARGE["3x3"], layouts=("NHWC", "NHWC")), "float16"), H200)
    configs = {tuple(sorted(space.sample(Random(i)).items())) for i in range(40)}
    assert len(configs) == 40
    assert len(space.first) >= 5 and all(space.valid(c) for c in space.first)


def test_float32_is_strict_unless_tf32_is_allowed() -> None:
    assert "precision tf32" in str(FAMILY.matches(CASES["padded"]("NHWC"), H200))
