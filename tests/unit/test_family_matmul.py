"""Family matmul: batches, NumPy broadcasting, vectors as operands, constant right operands."""

import pytest
from family_check import Case, check_family, target
from family_products import gemm, matmul, product

from wpk.kernels.gemm import product_of
from wpk.kernels.matmul import MatMul

MATMUL = MatMul()
CASES = [
    Case("batches", matmul((2, 3, 7, 10), (2, 3, 10, 21))),
    Case(
        "broadcast-both",
        matmul((3, 7, 10), (2, 1, 10, 21), epilogue="add(acc,in2)", operands=[(2, 1, 1, 21)]),
    ),
    Case(
        "broadcast-a",
        matmul((9, 16), (2, 16, 20), epilogue="add(acc,in2)", operands=[(9, 20)], constants=(0, 2)),
    ),
    Case(
        "rows-merged",
        matmul((2, 9, 16), (16, 20), epilogue="add(acc,in2)", operands=[(20,)], constants=(1, 2)),
    ),
    Case(
        "rows-not-merged",
        matmul((2, 9, 16), (16, 20), epilogue="mul(acc,in2)", operands=[(9, 1)], constants=(1,)),
    ),
    Case("constant-batches", matmul((2, 9, 16), (2, 16, 20), epilogue="relu(acc)", constants=(1,))),
    Case("left-vector", matmul((4,), (2, 4, 5))),
    Case("right-vector", matmul((2, 3, 4), (4,))),
    Case("dot", matmul((40,), (40,))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case) -> None:
    check_family(MATMUL, case.workload, product, samples=4)


def test_rows_are_merged_where_b_has_no_batches() -> None:
    merged = product_of(matmul((2, 9, 16), (16, 20), constants=(1,)))
    assert (merged.batch, merged.m) == ((), 18)
    kept = product_of(matmul((2, 9, 16), (2, 16, 20)))
    assert (kept.batch, kept.m) == ((2,), 9)


def test_attention_has_thousands_of_configs() -> None:
    space = MATMUL.space(matmul((1, 12, 128, 64), (1, 12, 64, 128)), target())
    assert space.size(5000) == 5000
    assert space.first
    assert all(space.valid(c) for c in space.first)


def test_refuses_other_operators() -> None:
    assert "expected matmul" in (MATMUL.matches(gemm(4, 4, 4), target()) or "")
