"""Attention for GPUs in the emulator against the oracle; BERT's sizes compile for three GPUs and do not spill."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from zlib import crc32

import numpy as np
import pytest
from cuda_workloads import attention
from dsl_cuda_check import H200, emulated

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.kernels.cuda.attention import CudaAttention
from wpk.kernels.cuda.attention_mma import CudaAttentionMma
from wpk.kernels.family import Family
from wpk.measure.measurer import Measurer, cuda_measurer
from wpk.providers.generated import GeneratedProvider
from wpk.providers.reference import reference_output
from wpk.settings import gpu_target

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")

FAMILIES: tuple[Family, ...] = (CudaAttention(), CudaAttentionMma())


def general(
    shapes: tuple[tuple[int, ...], ...], heads: int, scores: str = "mul(acc,0.25)", rows: bool = True, dtype: str = "float32",
    safe: bool = False, masks: tuple[TensorType, ...] = (), tf32: bool = False, packed: bool = False,
) -> Workload:  # fmt: skip
    """Any attention of q, k and v of some shapes."""
    q, v = shapes[0], shapes[2]
    queries = q[2] if len(q) == 4 else q[1]
    size = q[3] if len(q) == 4 else q[2] // heads
    k = shapes[1]
    groups = k[1] if len(k) == 4 else k[2] // size
    values = v[3] if len(v) == 4 else v[2] // groups
    values = values // 3 if packed else values
    out = (q[0], queries, heads * values) if rows else (q[0], heads, queries, values)
    attrs = (
        ("heads", heads), ("packed", int(packed)), *((("precision", "tf32"),) if tf32 else ()), ("rows", int(rows)),
        ("safe", int(safe)), ("scores", scores),
    )  # fmt: skip
    types = (*(TensorType(dtype, s) for s in shapes), *masks)
    return Workload("attention", types, (TensorType(dtype, out),), attrs)


#: small steps, so that there are several
STREAMS: dict[str, dict[str, int]] = {
    "cuda_attention": {"rows": 8, "threads": 64, "across": 8, "columns": 1, "step": 8},
    "cuda_attention_mma": {"warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "step": 8},
}
CAUSAL = TensorType("bool", (1, 1, 21, 21))
CASES = {
    "mask": attention("float32", (2, 20, 24), 16),
    "heads first": general(((1, 3, 18, 20), (1, 3, 25, 20), (1, 3, 25, 12)), 3, rows=False),
    "groups": general(((2, 9, 64), (2, 2, 40, 16), (2, 40, 48)), 4),
    "one group": general(((1, 9, 64), (1, 40, 32), (1, 40, 32)), 2),
    "condition": general(((1, 21, 64),) * 3, 2, "where(in3,mul(acc,0.25),-1000000000.0)", masks=(CAUSAL,)),
    "large": general(((1, 35, 128), (1, 70, 128), (1, 70, 128)), 1, "div(acc,11.0)"),
    "half": attention("float16", (1, 33, 40), 64),
    "bfloat16": attention("bfloat16", (1, 17, 20), 32, rows=False),
    "tf32": attention("float32", (1, 17, 33), 36, tf32=True),
    "packed": general(((2, 19, 96),) * 3, 2, dtype="float16", packed=True),
    "one query": general(((1, 1, 128), (1, 50, 128), (1, 50, 128)), 2),
}


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cuda_measurer(H200, tmp_path_factory.mktemp("cache"), emulate=True) as made:
        yield made


@pytest.mark.parametrize(
    ("case", "family"), [(x, f) for x in CASES for f in FAMILIES if f.matches(CASES[x], H200) is None],
    ids=lambda x: getattr(x, "name", x),
)  # fmt: skip
def test_configs_are_right(measurer: Measurer, case: str, family: Family) -> None:
    workload = CASES[case]
    space = family.space(workload, H200)
    sampled = space.sample(Random(crc32(workload.key.encode())))
    configs = [space.first[0], sampled] if case in ("mask", "heads first", "half", "tf32") else [sampled]
    for config, found in zip(configs, measurer.measure(workload, GeneratedProvider(family, "cuda"), configs), strict=True):
        assert found.ok, (config, found)


@pytest.mark.parametrize("keys", ["whole", "stream", "early"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_row_with_no_score(family: Family, keys: str) -> None:
    """A query that may look at nothing gives no number, or zeros where the model asks for that."""
    types, safe = ((1, 10, 32),) * 3, keys != "whole"
    mask = TensorType("float32", (1, 1, 10, 1))
    workload = general(types, 2, "add(acc,in3)", safe=safe, masks=(mask,), tf32=True)
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal(s, np.float32) for s in types] + [np.zeros((1, 1, 10, 1), np.float32)]
    feeds[3][0, 0, 4] = -np.inf
    (expected,) = reference_output(workload, feeds)
    config = {**family.space(workload, H200).default(), **STREAMS[family.name], "keys": keys}
    kernel = family.build(workload, config, H200).kernel
    found = emulated(kernel, [x.reshape(p.shape) for x, p in zip(feeds, kernel.params, strict=False)]).reshape(1, 10, 32)
    assert np.isnan(expected[0, 4]).all() != safe
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("capability", ["sm_80", "sm_90a", "sm_100"])
def test_encoders_do_not_spill(family: Family, capability: str) -> None:
    target = gpu_target(capability)
    for dtype, length, heads in (("float32", 128, 12), ("float16", 768, 16)):
        rows = (1, length, heads * 64)
        mask = TensorType("float32", (1, 1, 1, length))
        workload = general((rows,) * 3, heads, "add(div(acc,8.0),in3)", dtype=dtype, masks=(mask,), tf32=True)
        for config in family.space(workload, target).first[:1]:
            compiled = nvrtc.compile(emit(family.build(workload, config, target).kernel, capability).text, capability)
            assert all(r.spill_bytes == 0 for r in compiled.resources.values()), (config, compiled.resources)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_what_does_not_fit(family: Family) -> None:
    assert "expected floats" in str(family.matches(general(((1, 16, 64),) * 3, 2, dtype="int32", tf32=True), H200))
    assert "expected 128 at most" in str(family.matches(general(((1, 8, 512),) * 3, 2, tf32=True), H200))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_rows_of_any_length(family: Family) -> None:
    """Where the scores of a query are too many for shared memory, those of a step are kept."""
    keys = (1, 100_000, 64)
    workload = general(((1, 16, 64), keys, keys), 2, tf32=True)
    assert family.matches(workload, H200) is None
    assert {c["keys"] for c in family.space(workload, H200).first} == {"stream"}


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_step_by_step(family: Family, stages: int) -> None:
    """The largest score comes late in some rows, early in others, and some see no key of the first step."""
    types = ((1, 21, 64),) * 3
    mask = TensorType("float32", (1, 1, 21, 21))
    workload = general(types, 2, "add(mul(acc,0.5),in3)", masks=(mask,), tf32=True)
    rng = np.random.default_rng(stages)
    feeds = [rng.standard_normal(s, np.float32) for s in types]
    feeds.append(np.where(rng.random((1, 1, 21, 21)) < 0.3, -np.inf, 3 * rng.standard_normal((1, 1, 21, 21))).astype(np.float32))
    feeds[3][0, 0, 7, :17] = -np.inf
    (expected,) = reference_output(workload, feeds)
    config = {**family.space(workload, H200).default(), **STREAMS[family.name], "stages": stages, "keys": "stream"}
    kernel = family.build(workload, config, H200).kernel
    found = emulated(kernel, [x.reshape(p.shape) for x, p in zip(feeds, kernel.params, strict=False)]).reshape(1, 21, 64)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2 if family.name.endswith("mma") else 1e-5)
