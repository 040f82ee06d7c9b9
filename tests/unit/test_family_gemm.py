"""Family gemm: odd sizes, tails, transposes, packed and unpacked operands, blocked k, epilogues."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from family_check import Case, check_family, configs_of, interpreted, random_feeds, target, tensor
from family_products import BIAS_RELU, gemm, product

from wpk.core.workload import Workload
from wpk.kernels.gemm import Gemm, pack_panels, product_of

GEMM = Gemm()
CASES = [
    Case("odd", gemm(5, 12, 40, epilogue=BIAS_RELU, operands=[(1, 40)], constants=(1, 2))),
    Case("transposed-a", gemm(17, 130, 70, trans_a=True, epilogue=BIAS_RELU, operands=[(70,)], constants=(1, 2))),
    Case("transposed-b", gemm(3, 256, 33, trans_b=True)),
    Case("whole-vectors", gemm(30, 64, 48, epilogue="add(mul(acc,in2),in3)", operands=[(30, 48), (48,)])),
    Case("column-operand", gemm(9, 8, 17, epilogue="mul(acc,in2)", operands=[(9, 1)])),
    Case("variable-b", gemm(6, 20, 35, epilogue="tanh(add(acc,in2))", operands=[(1, 35)], constants=())),
    Case("both-transposed", gemm(14, 20, 35, trans_a=True, trans_b=True, epilogue=BIAS_RELU, operands=[(1, 1)], constants=())),
    Case("constant-a", gemm(8, 9, 16, constants=(0,))),
    Case("one", gemm(1, 1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case) -> None:
    check_family(GEMM, case.workload, product, samples=4)


BIG = gemm(30, 192, 70, epilogue=BIAS_RELU, operands=[(70,)], constants=(1, 2))
FIXED = {
    "blocked-k": {"block_k": 64, "tile_m": 4, "tile_n": 2, "block_m": 4, "chunk_n": 2, "tail": "shift"},
    "blocked-k-packed-a": {"block_k": 96, "pack_a": "job", "order": "m_n", "parallel": "m", "chunk_n": 1},
    "packed-once": {"pack_a": "root", "parallel": "n", "tile_m": 6, "unroll_k": 8, "prefetch": 16},
}


@pytest.mark.parametrize("name", FIXED)
def test_chosen_configs_agree(name: str) -> None:
    config = {**GEMM.space(BIG, target()).default(), **FIXED[name]}
    assert GEMM.space(BIG, target()).valid(config)
    feeds = random_feeds(BIG)
    expected = product(BIG, feeds)
    assert np.abs(interpreted(GEMM, BIG, config, feeds) - expected).max() < 1e-5 * np.abs(expected).max()


def test_every_packing_of_a_variable_b_agrees() -> None:
    workload = gemm(9, 20, 37, constants=())
    space = GEMM.space(workload, target())
    feeds = random_feeds(workload)
    expected = product(workload, feeds)
    for pack in ("root", "job", "none"):
        config = space.repair({**space.default(), "pack_b": pack}, Random(0))
        assert config["pack_b"] == pack
        assert np.abs(interpreted(GEMM, workload, config, feeds) - expected).max() < 1e-5


def test_real_layers_have_thousands_of_configs_and_valid_first_ones() -> None:
    for workload in (gemm(128, 768, 768), gemm(32, 1024, 1000, constants=())):
        space = GEMM.space(workload, target())
        assert space.size(5000) == 5000
        assert space.first
        assert all(space.valid(c) for c in space.first)


def test_panels_hold_columns_in_order() -> None:
    workload = gemm(2, 3, 5, trans_b=True)
    b = np.arange(15, dtype=np.float32).reshape(5, 3)
    panels = pack_panels(product_of(workload), b, 4)
    assert panels.shape == (2, 3, 4)
    assert panels[0].tolist() == b[:4].T.tolist()
    assert panels[1, :, 0].tolist() == b[4].tolist()
    assert not panels[1, :, 1:].any()


def test_first_config_of_small_tiles_uses_registers() -> None:
    config = configs_of(GEMM, gemm(128, 768, 768), 0)[0]
    assert int(config["tile_m"]) * int(config["tile_n"]) >= 10


def refused(workload: Workload) -> str:
    reason = GEMM.matches(workload, target())
    assert reason is not None
    return reason


def test_refusals_name_what_was_found() -> None:
    plain = gemm(4, 4, 4)
    assert "expected gemm" in refused(replace(plain, op="matmul"))
    assert "expected float32" in refused(replace(plain, outputs=(replace(tensor(4, 4), dtype="float64"),)))
    assert "empty" in refused(replace(plain, inputs=(tensor(0, 4), tensor(4, 4)), outputs=(tensor(0, 4),)))
    odd = replace(plain, inputs=(*plain.inputs, tensor(2, 4)))
    assert "does not broadcast" in refused(odd)
