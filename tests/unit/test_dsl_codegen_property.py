"""Any legal schedule, compiled, computes what its interpretation computes: on the widest ISA and as scalar code."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_c import run_c
from test_dsl_schedule_property import algorithms, random_schedule

from wpk.core.target import host_target
from wpk.dsl.algorithm import Algorithm
from wpk.dsl.interp import run
from wpk.dsl.ir import Kernel
from wpk.dsl.verify import verify


def feeds(kernel: Kernel) -> dict[str, np.ndarray]:
    """Small integers, so that sums are exact in any order."""
    rng = np.random.default_rng(5)
    return {
        p.name: rng.integers(-4, 5, p.shape).astype(np.float32)
        if p.access == "in"
        else np.full(p.shape, np.nan, np.float32)
        for p in kernel.params
    }


@pytest.mark.parametrize("isa", [host_target().isa, "scalar"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(algorithms(), st.integers(0, 2**32), st.integers(1, 14))
def test_compiled_schedules_compute_what_they_mean(
    isa: str, algorithm: Algorithm, seed: int, length: int
) -> None:
    kernel, _ = random_schedule(algorithm, Random(seed), length)
    verify(kernel)
    meant, found = feeds(kernel), feeds(kernel)
    run(kernel, meant)
    run_c(kernel, isa, found)
    for p in kernel.params:
        np.testing.assert_array_equal(found[p.name], meant[p.name])
