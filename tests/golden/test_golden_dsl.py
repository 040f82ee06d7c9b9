"""The text of kernels and of the C printed for them, byte for byte: a refactoring changes none of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dsl_kernels import Example, examples

from wpk.dsl.codegen.c import emit
from wpk.dsl.printer import show

Golden = Callable[[str, str], None]
#: kernels printed for the narrower ISAs too
PORTABLE = ("conv1x1", "masked_tail", "softmax")


@pytest.mark.parametrize("example", examples(16), ids=str)
def test_kernels(example: Example, golden: Golden) -> None:
    golden(f"ir/{example}.txt", show(example.kernel))


@pytest.mark.parametrize(
    ("isa", "example"),
    [("avx512", e) for e in examples(16)]
    + [(isa, e) for isa, n in (("avx2", 8), ("neon", 4), ("scalar", 2)) for e in examples(n) if str(e).startswith(PORTABLE)],
    ids=str,
)
def test_c(isa: str, example: Example, golden: Golden) -> None:
    first = emit(example.kernel, isa)
    assert first == emit(example.kernel, isa)
    golden(f"c/{example}.{isa}.c", first.text)
