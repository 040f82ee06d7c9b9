"""Matrix units and TMA in the emulator give what PTX says that they give; see tests/instruction_cases.py."""

import numpy as np
import pytest
from instruction_cases import Case, cases

from wpk.cuda import emulator

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no C++ compiler")
CASES = cases()


def check(case: Case, arch: str, seed: int = 0) -> None:
    args = [x.copy() for x in case.args]
    emulator.run(case.text.source, args, outputs=case.whole, arch=arch, seed=seed)
    for index, expected in case.expected.items():
        np.testing.assert_array_equal(args[index], expected)


@pytest.mark.parametrize("name", CASES)
def test_instructions(name: str) -> None:
    for arch in CASES[name].text.archs:
        if arch != "sm_80":
            check(CASES[name], arch)


@pytest.mark.parametrize("seed", (1, 2))
def test_a_pipeline_of_producer_and_consumers_in_any_order(seed: int) -> None:
    check(CASES["pipeline"], "sm_90a", seed)
