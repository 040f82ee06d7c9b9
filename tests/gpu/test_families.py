"""Every family on the GPU: a few configs of each, checked against the oracle by the measuring worker that tuning uses."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from cuda_workloads import workloads

from wpk.core.target import Target
from wpk.core.workload import Workload
from wpk.measure.measurer import Measurer, cuda_measurer
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers
from wpk.runtime.cuda.driver import CudaDevice
from wpk.search.strategy import beginning
from wpk.settings import gpu_target

#: configs of each family on each workload, besides its first guess
SAMPLES = 3
PAIRS = [
    (w, p) for w in workloads() for p in providers(["generated"], gpu_target("sm_90a")) if p.supports(w, gpu_target("sm_90a"))
]


@pytest.fixture(scope="module")
def measurer(device: CudaDevice, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurer]:
    with cuda_measurer(target, tmp_path_factory.mktemp("cache")) as made:
        yield made


@pytest.mark.parametrize(("workload", "provider"), PAIRS, ids=lambda x: getattr(x, "name", None) or x.key)
def test_configs_are_right(measurer: Measurer, workload: Workload, provider: Provider) -> None:
    if not provider.supports(workload, measurer.target):
        pytest.skip("not on this GPU")
    space, rng = provider.space(workload, measurer.target), Random(0)
    configs = [*beginning(space, ())[:2], *(space.sample(rng) for _ in range(SAMPLES))]
    for config, found in zip(configs, measurer.measure(workload, provider, configs), strict=True):
        assert found.ok or found.failure == "invalid", (config, found)
