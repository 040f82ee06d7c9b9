"""All GPU families on one catalogue of workloads: each operator has one, and NVRTC takes what they print, for three GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor

import pytest
from cuda_workloads import workloads

from wpk.core.target import Target
from wpk.cuda import nvrtc
from wpk.providers.generated import GeneratedProvider
from wpk.providers.protocol import Provider
from wpk.providers.registry import providers
from wpk.search.strategy import beginning
from wpk.settings import gpu_target

CAPABILITIES = ("sm_80", "sm_90a", "sm_100")
ALL = tuple(workloads())


def generated(target: Target) -> list[Provider]:
    return [p for p in providers(["generated"], target) if isinstance(p, GeneratedProvider)]


@pytest.fixture(scope="module")
def compilers() -> Iterator[Executor]:
    with nvrtc.open_pool(2) as pool:
        yield pool


@pytest.mark.parametrize("workload", ALL, ids=lambda w: w.key)
def test_every_workload_has_a_family(workload: object) -> None:
    target = gpu_target("sm_90a")
    assert any(p.supports(workload, target) for p in generated(target)), [p.supports(workload, target) for p in generated(target)]


def test_every_family_is_tried() -> None:
    target = gpu_target("sm_90a")
    tried = {p.name for p in generated(target) if any(p.supports(w, target) for w in ALL)}
    assert tried >= {p.name for p in generated(target)}


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_first_guesses_compile_and_do_not_spill(capability: str, compilers: Executor) -> None:
    """One dtype of each family and operator; the families' own tests sample their spaces."""
    target = gpu_target(capability)
    texts = {}
    for provider in generated(target):
        for w in ALL:
            key = (provider.name, w.op, w.inputs[0].dtype)
            if key not in texts and provider.supports(w, target):
                config = beginning(provider.space(w, target), ())[-1]
                code = provider.build(w, config, target).cuda
                assert code is not None
                texts[key] = code.text
    found = nvrtc.compile_many([(text, capability) for text in texts.values()], compilers)
    for key, one in zip(texts, found, strict=True):
        assert isinstance(one, nvrtc.Compiled), (key, one)
        assert all(r.spill_bytes == 0 for r in one.resources.values()), (key, one.resources)
        assert nvrtc.losses(one.log) == [], key
