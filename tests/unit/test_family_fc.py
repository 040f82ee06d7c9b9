"""Family fc: few rows, streams of weights in several strands, padded last panels."""

from random import Random

import numpy as np
import pytest
from family_check import Case, check_family, interpreted, random_feeds, target
from family_products import BIAS_RELU, gemm, matmul, product

from wpk.kernels.fc import FullyConnected
from wpk.kernels.gemm import width_of

FC = FullyConnected()
CASES = [
    Case("one-row", gemm(1, 64, 70, epilogue=BIAS_RELU, operands=[(1, 70)], constants=(1, 2))),
    Case("four-rows", gemm(4, 40, 100, epilogue=BIAS_RELU, operands=[(100,)], constants=(1, 2))),
    Case(
        "transposed",
        gemm(2, 128, 33, trans_a=True, trans_b=True, epilogue="add(acc,in2)", operands=[(2, 33)]),
    ),
    Case("tiny", gemm(3, 7, 5)),
    Case("matmul", matmul((1, 1, 24), (24, 20), epilogue="add(acc,in2)", operands=[(20,)], constants=(1, 2))),
    Case("vector", matmul((48,), (48, 50), constants=(1,))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case) -> None:
    check_family(FC, case.workload, product, samples=5)


@pytest.mark.parametrize("strands", [1, 2, 4, 8])
def test_strands_agree(strands: int) -> None:
    workload = gemm(2, 32, 40, epilogue=BIAS_RELU, operands=[(40,)], constants=(1, 2))
    space = FC.space(workload, target())
    feeds = random_feeds(workload)
    expected = product(workload, feeds)
    config = space.repair({**space.default(), "strands": strands, "tile_n": 1}, Random(1))
    assert config["strands"] == strands
    assert np.abs(interpreted(FC, workload, config, feeds) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "k,n", [(25088, 4096), (4096, 4096), (4096, 1000), (9216, 4096), (2048, 1000), (18432, 4096)]
)
@pytest.mark.parametrize("m", [1, 4])
def test_real_layers_are_split_evenly(m: int, k: int, n: int) -> None:
    """Thousands of configs; the default gives both threads the same work and wastes at most a twentieth of the stream."""
    workload = gemm(m, k, n)
    space = FC.space(workload, target())
    assert space.size(2000) == 2000
    assert all(space.valid(c) for c in space.first)
    width = width_of(space.default())
    rounds = -(-n // (width * target().threads))
    assert rounds * width * target().threads <= 1.05 * n


def test_refusals_name_what_was_found() -> None:
    assert "not constant" in (FC.matches(gemm(1, 8, 8, constants=()), target()) or "")
    assert "5 rows" in (FC.matches(gemm(5, 8, 8), target()) or "")
    assert "batches" in (FC.matches(matmul((2, 1, 8), (2, 8, 8), constants=(1,)), target()) or "")
