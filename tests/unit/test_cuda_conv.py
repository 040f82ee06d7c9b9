"""Convolutions in float32 on a GPU: any config, interpreted and emulated, gives what sliding windows give; texts do not spill."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from cuda_conv_check import CASES, SAME3, check, feeds, with_constant_map
from dsl_cuda_check import H200, compiled, emulated
from test_family_conv import conv

from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType, from_layout, to_layout
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.verify import verify
from wpk.kernels.cuda.conv import CudaConv
from wpk.kernels.cuda.conv_shape import conv_of, copies, orders
from wpk.kernels.cuda.gemm import tile_of

FAMILY = CudaConv()
LAYOUTS = ("NHWC", "ROW")
LARGE = {
    "3x3": ((1, 256, 14, 14), 256, 3, 1, SAME3),
    "pointwise": ((1, 2048, 7, 7), 512, 1),
    "stem": ((1, 3, 224, 224), 64, 7, 2, (3, 3, 3, 3)),
    "early": ((1, 64, 56, 56), 64, 3, 1, SAME3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_text_convolves(name: str, layout: str) -> None:
    w = CASES[name](layout)
    space, rng = FAMILY.space(w, H200), Random(len(name))
    for config in [space.default(), space.sample(rng)][layout == "ROW" :]:
        check(FAMILY, w, config)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["odd", "one-channel-groups", "batch-groups"])
def test_the_kernel_means_a_convolution(name: str, layout: str) -> None:
    w = CASES[name](layout)
    config = {
        **FAMILY.space(w, H200).default(), "warps_m": 1, "warps_n": 1, "tile_m": 2, "tile_n": 2, "tile_k": 4, "unroll_k": 2,
        "split_k": 2,
    }  # fmt: skip
    check(FAMILY, w, config, emulate=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_order_of_the_sum(layout: str) -> None:
    for name in ("padded", "stem", "odd"):
        w = CASES[name](layout)
        for order in orders(conv_of(w)):
            check(FAMILY, w, {**FAMILY.space(w, H200).default(), "reduce": order, "copy": 0, "tile_k": 8})


@pytest.mark.parametrize("name", ["stem", "odd", "padded", "batch"])
def test_padded_copies(name: str) -> None:
    w = CASES[name]("NHWC")
    for copy in copies(conv_of(w))[1:]:
        check(FAMILY, w, {**FAMILY.space(w, H200).default(), "reduce": "kh_kwc", "copy": copy, "tile_k": 8})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_constants_of_any_shape_that_broadcasts(layout: str) -> None:
    w = with_constant_map(CASES["padded"](layout))
    x, weights, bias, shift, factor = feeds(w, 1)
    plain = replace(w, inputs=w.inputs[:2], epilogue=None, constants=(1,))
    config = FAMILY.space(w, H200).default()
    turn = (lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1))) if layout == "NHWC" else (lambda a: a)
    kernels = [FAMILY.build(v, config, H200).kernel for v in (w, plain)]
    packed = FAMILY.pack(w, config, [weights, bias, shift, factor], H200)
    physical = turn(x).reshape(kernels[0].params[0].shape)
    got, acc = emulated(kernels[0], [physical, *packed]), emulated(kernels[1], [physical, packed[0]])
    want = np.maximum((acc.reshape(w.outputs[0].physical) + turn(bias)) * turn(factor) + turn(shift), 0)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_factor_of_each_image_and_channel(layout: str) -> None:
    w = conv((2, 8, 5, 4), 12, 1, layouts=(layout, layout))
    factor = TensorType("float32", (2, 12, 1, 1), layout)
    w = replace(w, inputs=(*w.inputs, factor), epilogue=parse("mul(add(acc,in2),in3)"))
    assert FAMILY.matches(w, H200) is None
    x, weights, bias, scale = feeds(w, 3)
    config = FAMILY.space(w, H200).default()
    physical = [to_layout(a, layout) for a in (x, scale)]
    kernel = FAMILY.build(w, config, H200).kernel
    packed = FAMILY.pack(w, config, [weights, bias], H200)
    arrays = [a.reshape(p.shape) for a, p in zip((physical[0], *packed, physical[1]), kernel.params, strict=False)]
    want = (np.einsum("nchw,kc->nkhw", x, weights[:, :, 0, 0]) + bias) * scale
    got = from_layout(emulated(kernel, arrays), w.outputs[0].shape, layout)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LARGE)
def test_first_configs_do_not_spill(name: str, layout: str) -> None:
    w = conv(*LARGE[name], layouts=(layout, layout))
    isa = {"3x3": "sm_80", "early": "sm_100"}.get(name, "sm_90a")
    for config in FAMILY.space(w, H200).first[:2]:
        for resources in compiled(FAMILY.build(w, config, H200).kernel, isa).values():
            assert resources.local_bytes == 0


@pytest.mark.parametrize(("seed", "isa"), list(enumerate(["sm_80", "sm_90a", "sm_100", "sm_90a"])))
def test_sampled_configs_compile(seed: int, isa: str) -> None:
    rng = Random(seed)
    w = conv(*rng.choice(list(LARGE.values())), layouts=(LAYOUTS[seed % 2],) * 2)
    kernel = FAMILY.build(w, FAMILY.space(w, H200).sample(rng), H200).kernel
    verify(kernel)
    assert all(r.registers <= 255 for r in compiled(kernel, isa).values())


def test_channels_last_are_copied_by_16_bytes_without_tests_that_always_hold() -> None:
    w = conv(*LARGE["pointwise"], layouts=("NHWC", "NHWC"))
    text = emit(FAMILY.build(w, FAMILY.space(w, H200).default(), H200).kernel, "sm_90a").text
    assert "cp_async<16>" in text and "cp_async<4>" not in text
    assert "/ 7" not in text and "% 7" not in text


def _blocks(config: Config) -> int:
    """Blocks at once, of 14×14 pixels and 256 channels."""
    if config["stream"]:
        return int(config["stream"]) * int(config["min_blocks"])
    t = tile_of(config)
    return -(-196 // t.m) * -(-256 // t.n) * t.split


def test_the_space_is_large_and_its_guesses_are_valid() -> None:
    space = FAMILY.space(conv(*LARGE["3x3"], layouts=("NHWC", "NHWC")), H200)
    configs = {tuple(sorted(space.sample(Random(i)).items())) for i in range(40)}
    assert len(configs) == 40
    assert len(space.first) >= 5 and all(space.valid(c) for c in space.first)
    assert all(_blocks(c) >= 64 for c in space.first[:3])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layouts": ("ROW", "NHWC")}, "layouts ROW → NHWC"),
        ({"layouts": ("NCHW16c", "NCHW16c")}, "layouts NCHW16c"),
    ],
)
def test_it_says_why_not(changes: dict[str, tuple[str, str]], reason: str) -> None:
    assert reason in str(FAMILY.matches(conv((1, 16, 7, 7), 16, 3, **changes), H200))


def test_operands_in_another_layout_are_refused() -> None:
    w = CASES["padded"]("NHWC")
    other = replace(w, inputs=(*w.inputs[:3], w.inputs[3].with_layout("ROW")))
    assert "operand 3" in str(FAMILY.matches(other, H200))
