"""Winograd for GPUs: transforms and products of any config give the convolution, in both layouts, on SIMT and tensor cores."""

from __future__ import annotations

from random import Random

import pytest
from cuda_conv_check import check, in_dtype
from dsl_cuda_check import H200
from test_family_conv import conv

from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.kernels.cuda.winograd import CudaWinograd, CudaWinogradMma
from wpk.kernels.family import Family
from wpk.settings import gpu_target

SAME = (1, 1, 1, 1)
FAMILIES: tuple[Family, ...] = (CudaWinograd(), CudaWinogradMma())


def shaped(case: str, layout: str) -> Workload:
    """Whole and ragged tiles, no padding, several images."""
    both = (layout, layout)
    return {
        "whole": lambda: conv((1, 16, 8, 8), 24, 3, 1, SAME, layouts=both, residual=True),
        "ragged": lambda: conv((1, 5, 7, 9), 6, 3, 1, SAME, layouts=both, residual=True),
        "valid": lambda: conv((1, 8, 9, 6), 8, 3, 1, (0, 0, 0, 0), layouts=both),
        "images": lambda: conv((2, 8, 6, 6), 8, 3, 1, SAME, layouts=both, residual=True),
    }[case]()


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize("case", ["whole", "ragged", "valid", "images"])
@pytest.mark.parametrize("m", [2, 4])
def test_first_guesses(case: str, layout: str, m: int) -> None:
    w, family = shaped(case, layout), CudaWinograd()
    config = next(c for c in family.space(w, H200).first if c["m"] == m)
    check(family, w, dict(config))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
def test_on_tensor_cores(dtype: str, layout: str) -> None:
    w, family = in_dtype(shaped("ragged", layout), dtype), CudaWinogradMma()
    # V and U are rounded too, and products of operands rounded to tf32 are compared with exact ones of the same operands
    check(family, w, dict(family.space(w, H200).first[0]), factor=100.0 if dtype == "float32" else 3.0)


@pytest.mark.parametrize("seed", range(4))
def test_sampled_configs(seed: int) -> None:
    w = shaped(("whole", "ragged")[seed % 2], ("ROW", "NHWC")[seed // 2])
    check(CudaWinograd(), w, CudaWinograd().space(w, H200).sample(Random(seed)), seed=seed)


@pytest.mark.parametrize(("change", "message"), [
    ({"kernel": 5}, "kernel 5x5"), ({"stride": 2}, "stride 2"), ({"group": 2}, "2 groups"), ({"dilation": 2}, "dilation 2"),
])  # fmt: skip
def test_other_convolutions_are_refused(change: dict[str, int], message: str) -> None:
    numbers = {"kernel": 3, "stride": 1, "group": 1, "dilation": 1, **change}
    pads = (2, 2, 2, 2)
    w = conv((1, 8, 12, 12), 8, numbers["kernel"], numbers["stride"], pads, group=numbers["group"],
             dilation=numbers["dilation"], layouts=("ROW", "ROW"))  # fmt: skip
    assert message in (CudaWinograd().matches(w, H200) or "")


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize("capability", ["sm_80", "sm_90a", "sm_100"])
def test_first_guesses_do_not_spill(capability: str) -> None:
    target = gpu_target(capability)
    for family in FAMILIES:
        for layout in ("ROW", "NHWC"):
            plain = conv((1, 64, 56, 56), 64, 3, 1, SAME, layouts=(layout, layout))
            w = plain if isinstance(family, CudaWinograd) else in_dtype(plain, "float32")
            config = dict(family.space(w, target).first[0])
            built = family.build(w, config, target)
            found = nvrtc.compile(emit(built.kernel, built.isa).text, built.isa).resources
            assert all(r.spill_bytes == 0 for r in found.values()), (family.name, layout, config, found)
