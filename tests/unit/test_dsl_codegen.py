"""Interpreter, compiled C and NumPy agree on hand-written kernels, for every ISA this machine runs."""

from __future__ import annotations

import numpy as np
import pytest
from dsl_kernels import Example, arguments, examples
from run_c import WIDTHS, run_c, runnable

from wpk.dsl.interp import run
from wpk.dsl.verify import verify


def assert_outputs(example: Example, found: dict[str, np.ndarray]) -> None:
    """Every output equals its meaning."""
    expected = example.meaning(found)
    for p in example.kernel.params:
        if p.access == "out":
            np.testing.assert_allclose(
                found[p.name], expected[p.name], rtol=example.tolerance, atol=example.tolerance
            )


@pytest.mark.parametrize("example", examples(4), ids=str)
def test_the_interpreter_computes_the_meaning(example: Example) -> None:
    verify(example.kernel)
    found = arguments(example.kernel)
    run(example.kernel, found)
    assert_outputs(example, found)


@pytest.mark.parametrize(
    ("isa", "example"), [(isa, e) for isa, n in WIDTHS.items() for e in examples(n)], ids=str
)
def test_compiled_c_computes_the_meaning(isa: str, example: Example) -> None:
    if not runnable(isa):
        pytest.skip(f"this machine does not run {isa}")
    found = arguments(example.kernel)
    run_c(example.kernel, isa, found)
    assert_outputs(example, found)
