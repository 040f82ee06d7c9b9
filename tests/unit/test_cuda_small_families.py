"""The GPU families that move and reduce: their first guess and a sampled config, in the emulator, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from zlib import crc32

import pytest
from cuda_workloads import workloads
from dsl_cuda_check import H200

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import nvrtc
from wpk.kernels.cuda import joins, moves
from wpk.kernels.cuda.gemv import CudaGemv
from wpk.kernels.cuda.lrn import CudaLrn
from wpk.kernels.cuda.pool import CudaPool
from wpk.kernels.cuda.softmax import CudaSoftmax
from wpk.kernels.family import Family
from wpk.measure.measurer import Measurer, cuda_measurer
from wpk.providers.generated import GeneratedProvider

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")

FAMILIES: tuple[Family, ...] = (
    CudaGemv(), CudaPool(), CudaSoftmax(), CudaLrn(), moves.CudaMove(), moves.convert(), joins.CudaJoin(), joins.split(),
)  # fmt: skip
#: 16-bit dtypes take turns: layouts differ in the schedule, dtypes only in loads and stores
CASES = [
    (w, f) for i, w in enumerate(workloads()) for f in FAMILIES
    if f.matches(w, H200) is None and (w.inputs[0].dtype == "float32" or i % 2)
]  # fmt: skip


@pytest.fixture(scope="module")
def measurer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cuda_measurer(H200, tmp_path_factory.mktemp("cache"), emulate=True) as made:
        yield made


@pytest.mark.parametrize(("workload", "family"), CASES, ids=lambda x: getattr(x, "name", None) or x.key)
def test_configs_are_right(measurer: Measurer, workload: Workload, family: Family) -> None:
    space = family.space(workload, H200)
    configs = [space.default()]
    if workload.inputs[0].dtype == "float32":
        configs.append(space.sample(Random(crc32(workload.key.encode()))))
    for config, found in zip(configs, measurer.measure(workload, GeneratedProvider(family, "cuda"), configs), strict=True):
        assert found.ok, (config, found)


def test_every_family_has_cases() -> None:
    assert {f.name for _, f in CASES} == {f.name for f in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_integers_and_other_operators_are_refused(family: Family) -> None:
    integers = TensorType("int32", (1, 8, 4, 4))
    other = Workload("view", (integers,), (integers,))
    assert "view" in (family.matches(other, H200) or "")
    named = next(w for w, f in CASES if f is family)
    attrs, count = named.attrs, len(named.inputs)
    wrong = Workload(named.op, (TensorType("int32", named.inputs[0].shape),) * count, named.outputs, attrs, None, named.constants)
    assert family.matches(wrong, H200) is not None
