"""Checks: tolerances that a wrong kernel cannot meet, and cannot be missed by a right one."""

from math import inf

import numpy as np
import pytest

from wpk.core.tensor import TensorType, to_layout
from wpk.core.workload import Workload
from wpk.measure.check import check_outputs, reduction_length, relative_error, tolerance
from wpk.measure.memory import Region
from wpk.measure.timer import Timing, time_calls


def conv(c: int = 64, k: int = 3) -> Workload:
    x, w, y = TensorType("float32", (1, c, 8, 8)), TensorType("float32", (32, c, k, k)), TensorType("float32", (1, 32, 8, 8))
    return Workload("conv", (x, w), (y,), constants=(1,))


@pytest.mark.parametrize("length", [1, 64, 4608, 25088])
def test_rounding_of_a_sum_is_allowed_and_one_wrong_element_is_not(length: int) -> None:
    rng = np.random.default_rng(length)
    a, b = (rng.standard_normal((64, length)).astype(np.float32) for _ in range(2))
    exact = np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    sequential = np.zeros(64, np.float32)
    for i in range(length):
        sequential += a[:, i] * b[:, i]
    allowed = tolerance("float32", length)
    assert relative_error(sequential, exact) <= allowed / 2
    many = np.tile(exact, 16_000)
    wrong = many.copy()
    wrong[7] += np.float32(np.sqrt(length))
    assert relative_error(wrong, many) > 10 * allowed


def test_tolerance_by_dtype_and_class() -> None:
    assert tolerance("int8", 1000) == 0
    assert tolerance("float64", 100) < tolerance("float32", 100) < tolerance("float16", 100)
    assert tolerance("float32", 576) < tolerance("float32", 576, "winograd") <= 1e-4
    assert tolerance("float32", 10**6, "winograd") == 1e-4
    with pytest.raises(KeyError):
        tolerance("float32", 1, "sloppy")


def test_reduction_length() -> None:
    t = TensorType
    assert reduction_length(conv()) == 576
    gemm = Workload("gemm", (t("float32", (1, 512)), t("float32", (10, 512))), (t("float32", (1, 10)),), (("trans_b", True),))
    assert reduction_length(gemm) == 512
    assert reduction_length(Workload("softmax", (t("float32", (2, 9)),), (t("float32", (2, 9)),), (("axis", -1),))) == 9
    assert reduction_length(Workload("eltwise", (t("float32", (2, 9)),), (t("float32", (2, 9)),))) == 1


def test_infinities_and_nans_must_be_the_same() -> None:
    expected = np.array([1, inf, np.nan, -inf, 2], np.float32)
    assert relative_error(expected.copy(), expected) == 0
    for i, value in ((0, np.nan), (1, 3.0), (2, 1.0), (3, inf)):
        other = expected.copy()
        other[i] = value
        assert relative_error(other, expected) == inf
    assert relative_error(np.full(3, np.nan, np.float32), np.ones(3, np.float32)) == inf
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
    assert relative_error(np.ones(2, np.float32), np.zeros(2, np.float32)) == inf
    assert relative_error(np.array([1, 2]), np.array([1, 2])) == 0 < relative_error(np.array([1, 3]), np.array([1, 2]))
    huge = np.full(4, 1e30, np.float32)
    assert relative_error(huge * np.float32(1.5), huge) == pytest.approx(0.5)


def test_padding_lanes_must_be_zero() -> None:
    kind = TensorType("float32", (1, 20, 2, 2), "NCHW16c")
    want = np.ones(kind.shape, np.float32)
    buffer = to_layout(want, kind.layout)
    assert check_outputs([buffer], [want], (kind,), 1e-6).ok
    buffer[0, 1, 0, 0, 5] = 1e-9
    assert "padding lanes" in check_outputs([buffer], [want], (kind,), 1e-6).problem


def test_the_message_names_the_worst_element() -> None:
    kind = TensorType("float32", (2, 3))
    want, found = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    found[1, 2] = 5
    verdict = check_outputs([found], [want], (kind,), 1e-6)
    assert not verdict.ok and verdict.error == pytest.approx(4 / 6**0.5)
    assert "at [1,2] expected 1.0, found 5.0" in verdict.problem


@pytest.mark.parametrize("nbytes", [0, 4, 64, 100, 4096, 5000])
@pytest.mark.parametrize("copies", [1, 3])
def test_regions_are_aligned_and_keep_apart(nbytes: int, copies: int) -> None:
    region = Region(nbytes, copies)
    region.poison()
    assert region.intact() and all(region.address(c) % 64 == 0 for c in range(copies))
    region.fill(np.arange(nbytes, dtype=np.uint8))
    assert region.intact()
    assert all(np.array_equal(region.block(c), np.arange(nbytes, dtype=np.uint8)) for c in range(copies))
    if nbytes % 64:
        region._bytes[region._start + nbytes] = 1
        assert not region.intact()
    region.close()


def test_absurd_sizes_are_memory_errors() -> None:
    with pytest.raises(MemoryError):
        Region(1 << 62)


def test_timing_adapts_to_the_candidate() -> None:
    how = Timing(max_seconds=0.05)
    assert how.glance(1e-3).max_samples == 3 and how.glance(1e-3).max_seconds == pytest.approx(0.05)
    assert how.in_full(1e-3).max_seconds == 0.05 and how.in_full(0.1).max_seconds == pytest.approx(0.7)
    assert how.native().max_samples == how.max_samples


def test_python_calls_are_timed_by_the_same_protocol() -> None:
    calls = []
    samples = time_calls(lambda: calls.append(1), Timing(max_samples=7, target_spread=0.0, min_sample=0.0))
    assert len(samples) == 7 and len(calls) == 1 + 2 + 7
