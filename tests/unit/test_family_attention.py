"""Kernels of attention for CPUs against ONNX Runtime: ragged tiles, heads first, groups of heads, masks, rows with no score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from family_check import Case, check_family, compiled, random_feeds, target, tensor

from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.dsl.features import kernel_features
from wpk.kernels.attention import Attention
from wpk.ops.attention import shapes
from wpk.providers.reference import reference_output


def attention(
    heads: int, *operands: TensorType, scores: str = "mul(acc,0.25)", rows: bool = True, safe: bool = False, packed: bool = False,
) -> Workload:
    """Of q, k, v and the operands of scores."""
    attrs = (("heads", heads), ("packed", int(packed)), ("rows", int(rows)), ("safe", int(safe)), ("scores", scores))
    (out,) = shapes(operands, dict(attrs))
    return Workload("attention", operands, (tensor(*out),), attrs)


def reference(workload: Workload, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """ONNX Runtime's."""
    return np.asarray(reference_output(workload, feeds)[0])


CASES = [
    Case("mask", attention(2, *[tensor(2, 32, 64)] * 3, tensor(2, 1, 1, 32), scores="add(mul(acc,0.25),in3)")),
    Case("ragged", attention(3, tensor(1, 37, 96), tensor(1, 21, 96), tensor(1, 21, 60), scores="div(acc,5.5)")),
    Case("heads first", attention(2, *[tensor(1, 2, 33, 40)] * 3, rows=False)),
    Case("groups", attention(4, tensor(1, 9, 64), tensor(1, 2, 40, 16), tensor(1, 40, 64), safe=True)),
    Case("bias", attention(2, *[tensor(1, 19, 32)] * 3, tensor(2, 19, 19), scores="add(acc,in3)")),
    Case("packed", attention(2, *[tensor(2, 21, 96)] * 3, packed=True)),
    Case("one query", attention(1, tensor(3, 1, 16), *[tensor(3, 50, 16)] * 2, scores="acc")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_matches(case: Case) -> None:
    check_family(Attention(), case.workload, reference, samples=2, tolerance=6e-6, interpret_too=case is CASES[-1])


@pytest.mark.parametrize("safe", [False, True])
def test_a_condition_and_a_row_with_no_score(safe: bool) -> None:
    where = TensorType("bool", (1, 1, 18, 18))
    scores = "where(in3,mul(acc,0.25),-inf)"
    workload = attention(2, *[tensor(1, 18, 32)] * 3, where, scores=scores, safe=safe)
    feeds = random_feeds(Workload("attention", workload.inputs[:3], workload.outputs))
    mask = np.tri(18, dtype=bool)
    mask[5] = False
    feeds.append(mask.reshape(1, 1, 18, 18))
    expected = reference(workload, feeds)
    space = Attention().space(workload, target())
    found = compiled(Attention(), workload, space.first[0], feeds).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[0, 5]).all() != safe


def test_the_cost_model_sees_it() -> None:
    workload = CASES[0].workload
    built = Attention().build(workload, Attention().space(workload, target()).default(), target())
    assert np.isfinite(kernel_features(built.kernel, built.isa, target())).all()


def test_what_does_not_fit() -> None:
    half = TensorType("float16", (1, 8, 32))
    assert "expected float32" in str(Attention().matches(attention(2, half, half, half), target()))
    assert "expected attention" in str(Attention().matches(Workload("softmax", (), ()), target()))
