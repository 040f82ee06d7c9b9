"""Norm, reduce, gather and integers on GPUs: interpreter, emulator and NVRTC, in every storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, compiled, emulated, interpreted
from family_check import random_feeds, tensor
from test_family_norm import (
    AFFINE,
    GATHERS,
    gather,
    gather_reference,
    norm,
    norm_reference,
    reduce,
    reduce_reference,
)
from test_family_resize import resize

from wpk.core.pointwise import parse
from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Workload
from wpk.kernels.cuda.eltwise import CudaEltwise
from wpk.kernels.cuda.gather import CudaGather
from wpk.kernels.cuda.norm import CudaNorm
from wpk.kernels.cuda.reduce import CudaReduce
from wpk.kernels.cuda.resize import CudaResize
from wpk.kernels.family import Family
from wpk.providers.reference import reference_output

H, B = "float16", "bfloat16"


def check(
    family: Family, workload: Workload, feeds: Sequence[np.ndarray], want: np.ndarray, tolerance: float, samples: int = 2
) -> None:
    """The default and some random configs: the emulator's output is right, the default's that of the interpreter too."""
    assert family.matches(workload, H200) is None, family.matches(workload, H200)
    space, rng = family.space(workload, H200), Random(1)
    constants = [feeds[i] for i in workload.constants]
    for n, config in enumerate([space.default(), *(space.sample(rng) for _ in range(samples))]):
        kernel = family.build(workload, config, H200).kernel
        packed = dict(zip(workload.constants, family.pack(workload, config, constants, H200), strict=True))
        arrays = [packed.get(i, a).reshape(p.shape) for (i, a), p in zip(enumerate(feeds), kernel.params, strict=False)]
        found = emulated(kernel, arrays).reshape(want.shape)
        assert np.abs(found - want).max() <= tolerance * max(np.abs(want).max(), 1e-30), config
        if n == 0:
            assert np.allclose(interpreted(kernel, arrays).reshape(want.shape), found, rtol=1e-6, atol=1e-6)
            assert all(r.spill_bytes == 0 for r in compiled(kernel).values())


NORMS = [
    norm(tensor(1, 6, 96), 2, "layer", AFFINE, (tensor(1, 1, 96), tensor(1, 1, 96))), norm(tensor(3, 70), 1, "rms"),
    norm(tensor(4, 1000), 1, "layer", "mul(acc,in1)", (tensor(1, 1000),)),
]  # fmt: skip


@pytest.mark.parametrize("workload", NORMS, ids=str)
def test_norms(workload: Workload) -> None:
    feeds = random_feeds(workload)
    check(CudaNorm(), workload, feeds, norm_reference(workload, feeds), 4e-6)


REDUCTIONS = [
    reduce(tensor(6, 100), (1,), "mean"), reduce(tensor(2, 5000), (1,), "max"), reduce(tensor(3, 7, 50), (1,), "sum"),
    reduce(tensor(33, 64), (0,), "mean", "relu(acc)"), reduce(tensor(5, 2, 3), (1, 2), "min"),
]  # fmt: skip


@pytest.mark.parametrize("workload", REDUCTIONS, ids=str)
def test_reductions(workload: Workload) -> None:
    feeds = random_feeds(workload)
    check(CudaReduce(), workload, feeds, reduce_reference(workload, feeds), 1e-5)


@pytest.mark.parametrize("case", GATHERS[:3], ids=str)
def test_gathers(case: object) -> None:
    workload: Workload = case.workload  # type: ignore[attr-defined]
    n = workload.inputs[0].shape[int(str(workload.attr("axis")))]
    indices = np.random.default_rng(3).integers(-n, n, workload.inputs[1].shape).astype(workload.inputs[1].dtype)
    feeds = [random_feeds(workload)[0], indices]
    check(CudaGather(), workload, feeds, gather_reference(workload, feeds), 0.0)


def test_storage_of_16_bits() -> None:
    """Half precision through the emulator, bfloat16 through NVRTC: arithmetic is float32."""
    for family, wide, reference in (
        (CudaNorm(), norm(tensor(4, 64), 1), norm_reference),
        (CudaReduce(), reduce(tensor(4, 64), (1,), "sum"), reduce_reference),
        (CudaReduce(), reduce(tensor(4, 6, 16), (1,), "sum"), reduce_reference),
    ):  # fmt: skip
        feeds = [random_feeds(wide)[0].astype(H)]
        check(family, stored(wide, H), feeds, reference(wide, feeds), 2e-3, samples=1)
        bf16 = stored(wide, B)
        kernel = family.build(bf16, family.space(bf16, H200).default(), H200).kernel
        assert all(r.spill_bytes == 0 for r in compiled(kernel).values())
    table = stored(gather(tensor(9, 24), TensorType("int64", (5,)), 0), H)
    feeds = [random_feeds(table)[0], np.array([8, -1, 3, 0, -9])]
    check(CudaGather(), table, feeds, gather_reference(table, feeds), 0.0)


def stored(workload: Workload, dtype: str) -> Workload:
    """The workload with its float32 operands in another dtype."""

    def as_dtype(types: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        return tuple(replace(t, dtype=dtype) if t.dtype == "float32" else t for t in types)

    return replace(workload, inputs=as_dtype(workload.inputs), outputs=as_dtype(workload.outputs))


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_integers_are_read_as_float32(dtype: str) -> None:
    mask = TensorType(dtype, (2, 1, 24))
    workload = Workload("eltwise", (tensor(2, 3, 24), mask), (tensor(2, 3, 24),), (), parse("add(in0,mul(sub(1.0,in1),-9.0))"))
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((2, 3, 24), np.float32), rng.integers(0, 2, mask.shape).astype(dtype)]
    want = feeds[0] + (1 - feeds[1].astype(np.float32)) * -9
    feeds[1] = feeds[1].view(np.uint8) if dtype == "bool" else feeds[1]
    check(CudaEltwise(), workload, feeds, want, 1e-6)


def test_declines() -> None:
    assert "expected floats" in (CudaNorm().matches(stored(NORMS[1], "int32"), H200) or "")
    assert "layout ROW" in (CudaReduce().matches(reduce(tensor(2, 16, 2, 2, layout="NHWC"), (1,), "sum"), H200) or "")
    integers = gather(TensorType("int64", (2, 4)), TensorType("int64", (1,)), 0)
    assert "expected floats" in (CudaGather().matches(integers, H200) or "")


@pytest.mark.parametrize("layout", ["ROW", "NHWC"])
@pytest.mark.parametrize("kind", ["linear", "nearest"])
def test_resizes(kind: str, layout: str) -> None:
    workload = resize((9, 7), "half_pixel", kind, "floor" if kind == "nearest" else "", layout, 8)
    feeds = random_feeds(workload)
    want = to_layout(reference_output(workload, feeds)[0], layout)
    check(CudaResize(), workload, [to_layout(feeds[0], layout)], want, 2e-6)
    half = stored(workload, H)
    check(CudaResize(), half, [to_layout(feeds[0], layout).astype(H)], want, 2e-3, samples=0)
