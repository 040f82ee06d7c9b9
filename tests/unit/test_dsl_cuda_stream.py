"""Stream-K: shares cover every step of k once, products are right whatever they cut through, and repeat bit by bit."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from dsl_cuda_check import H200, compiled, emulated, interpreted, product

from wpk.core.errors import InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import emulator
from wpk.dsl.affine import linear, substitute
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.ir import Const, Expr
from wpk.dsl.verify import verify
from wpk.kernels.cuda import gemm, gemm_mma
from wpk.kernels.cuda.stream import Shares, shared, shares_of
from wpk.kernels.gemm import product_of

MMA, SIMT = gemm_mma.CudaGemmMma(), gemm.CudaGemm()
HALF: Config = {
    "warps_m": 1, "warps_n": 1, "rows": 1, "columns": 1, "bytes_k": 64, "split_k": 1, "slices": 1, "stages": 3, "swizzle": True,
    "order": "nm", "group": 1, "min_blocks": 1,
}  # fmt: skip
PLAIN: Config = {
    "tile_m": 2, "tile_n": 4, "lanes_m": 8, "warps_m": 1, "warps_n": 1, "tile_k": 8, "split_k": 1, "slices": 1, "pad": 4,
    "rows": "turned", "stages": 2, "unroll_k": 4, "order": "nm", "group": 1, "min_blocks": 1,
}  # fmt: skip


def operands(w: Workload, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Small integers, whose products any dtype and order of sums gets right to the last bit; and their product."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-4, 5, t.shape).astype(t.dtype) for t in w.inputs[:2])
    turned = dict(w.attrs)
    x, y = (a.T if turned.get("trans_a") else a), (b.T if turned.get("trans_b") else b)
    return [a, b], x.astype(np.float64) @ y.astype(np.float64)


def at(e: Expr, **values: int) -> int:
    """An integer expression's value."""
    form = linear(substitute(e, {k: Const(v) for k, v in values.items()}), {})
    assert form.is_const
    return form.const


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_even_and_cover_all(seed: int) -> None:
    rng = Random(seed)
    rest, steps = rng.randint(1, 12), rng.randint(3, 17)
    each = rng.randint(2, steps)
    s = Shares(7, rest, steps, each)
    loop = shared(s)
    assert loop.count is not None and s.pieces <= 2
    done: dict[tuple[int, int], int] = {}
    for share in range(s.blocks):
        mine = 0
        for piece in range(s.pieces):
            tile, first, count = (at(e, share=share, piece=piece) for e in (loop.tile, loop.first, loop.count))
            assert 7 <= tile < 7 + rest
            for step in range(first, first + count):
                assert done.setdefault((tile, step), share) == share and step < steps
                mine += 1
        assert mine == each or share == s.blocks - 1
    assert len(done) == rest * steps
    assert s.parts == max(len({share for (t, _), share in done.items() if t == 7 + tile}) for tile in range(rest))


@pytest.mark.parametrize(("trans_a", "trans_b"), [(False, True), (True, False)])
@pytest.mark.parametrize(("slots", "order", "group"), [(12, "nm", 1), (9, "mn", 2), (25, "mn", 1)])
def test_on_tensor_cores(trans_a: bool, trans_b: bool, slots: int, order: str, group: int) -> None:
    """16 tiles of 12 steps: one wave and shares of the last four tiles; of seven; shares alone."""
    w = product(60, 30, 12 * 32 - 5, trans_a, trans_b, "float16")
    inputs, want = operands(w)
    kernel = MMA.build(w, {**HALF, "stream": slots, "order": order, "group": group}, H200).kernel
    got = [emulated(kernel, inputs, seed=seed) for seed in range(2)]
    np.testing.assert_array_equal(got[0], want)
    assert got[0].tobytes() == got[1].tobytes()


@pytest.mark.parametrize(("rows", "stages", "slots"), [("turned", 1, 4), ("kept", 3, 7)])
def test_on_plain_cores(rows: str, stages: int, slots: int) -> None:
    w = product(40, 36, 75)
    inputs, want = operands(w)
    kernel = SIMT.build(w, {**PLAIN, "rows": rows, "stages": stages, "stream": slots}, H200).kernel
    np.testing.assert_array_equal(emulated(kernel, inputs), want)


def test_sums_in_another_order_differ_but_repeat() -> None:
    w = product(33, 30, 200)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=t.shape).astype(np.float32) for t in w.inputs]
    kernel = SIMT.build(w, {**PLAIN, "stream": 7}, H200).kernel
    runs = {emulated(kernel, inputs, seed=seed).tobytes() for seed in range(3)}
    assert len(runs) == 1
    np.testing.assert_allclose(np.frombuffer(runs.pop(), np.float32).reshape(33, 30), inputs[0] @ inputs[1], rtol=1e-4, atol=1e-4)


def test_the_meaning_is_the_product() -> None:
    w = product(16, 24, 80, dtype="float16")
    inputs, want = operands(w)
    np.testing.assert_array_equal(interpreted(MMA.build(w, {**HALF, "bytes_k": 32, "stream": 2}, H200).kernel, inputs), want)


def test_int8() -> None:
    types = TensorType("int8", (40, 300)), TensorType("int8", (24, 300))
    w = Workload("gemm", types, (TensorType("int32", (40, 24)),), (("trans_a", False), ("trans_b", True)))
    (a, b), want = operands(w)
    kernel = MMA.build(w, {**HALF, "stream": 5}, H200).kernel
    verify(kernel)
    out = np.zeros((40, 24), np.int32)
    emulator.run(emit(kernel, "sm_80"), [a, b, out], outputs=[2], arch="sm_80")
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("batch", [((2, 3), (2, 3)), ((3, 1), (1, 2))])
def test_batches(batch: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    types = TensorType("float16", (*batch[0], 20, 160)), TensorType("float16", (*batch[1], 160, 16))
    out = (*np.broadcast_shapes(*batch), 20, 16)
    w = Workload("matmul", types, (TensorType("float16", out),))
    inputs, want = operands(w)
    got = emulated(gemm_mma.matmul().build(w, {**HALF, "stream": 7}, H200).kernel, inputs)
    np.testing.assert_array_equal(got.reshape(out), want)


def test_an_epilogue() -> None:
    types = tuple(TensorType("float32", s) for s in ((30, 64), (64, 40), (40,)))
    attrs = (("trans_a", False), ("trans_b", False))
    w = Workload("gemm", types, (TensorType("float32", (30, 40)),), attrs, parse("relu(add(acc,in2))"), (2,))
    inputs, want = operands(w)
    bias, config = np.arange(-20, 20, dtype=np.float32), {**PLAIN, "stream": 4}
    got = emulated(SIMT.build(w, config, H200).kernel, [*inputs, *SIMT.pack(w, config, [bias], H200)])
    np.testing.assert_array_equal(got, np.maximum(want + bias, 0))


def test_only_an_underfull_wave_is_shared() -> None:
    assert H200.gpu is not None
    sms = H200.gpu.sms
    full = product_of(product(16 * sms * 2, 8, 1024, dtype="float16"))
    assert shares_of(full, 16, 8, 32, sms) is None
    assert shares_of(replace(full, m=16 * (sms * 2 - 5)), 16, 8, 32, sms) is None
    under = shares_of(replace(full, m=16 * (sms + 60)), 16, 8, 32, sms)
    assert under == Shares(sms, 60, 32, 15)
    assert under.blocks == 128
    with pytest.raises(InvalidConfig, match="none to share"):
        MMA.build(product(16 * sms, 8, 1024, dtype="float16"), {**HALF, "stream": sms}, H200)


@pytest.mark.parametrize(("family", "dtype"), [(MMA, "float16"), (SIMT, "float32")])
def test_spaces_offer_it(family: gemm.CudaGemm | gemm_mma.CudaGemmMma, dtype: str) -> None:
    w = product(512, 512, 2048, dtype=dtype)
    space = family.space(w, H200)
    config = next(c for c in space.first if c["stream"])
    assert space.valid(config)
    assert not space.valid({**config, "split_k": 2})
    assert not space.valid({**config, "slices": 2})
    kernel = family.build(w, config, H200).kernel
    assert "atomic" not in emit(kernel, "sm_90a").text


@pytest.mark.parametrize("isa", ["sm_80", "sm_90a", "sm_100"])
def test_it_compiles_without_spills(isa: str) -> None:
    w = product(1024, 1024, 1024, False, True, "float16")
    large = {"warps_m": 2, "warps_n": 2, "rows": 4, "columns": 8, "bytes_k": 128, "stages": 3, "stream": 132}
    kernels = [MMA.build(w, {**HALF, **large}, H200).kernel]
    fat = {"tile_m": 8, "tile_n": 8, "lanes_m": 4, "warps_m": 2, "warps_n": 2, "stages": 3, "rows": "kept", "stream": 132}
    kernels.append(SIMT.build(product(512, 700, 1024), {**PLAIN, **fat}, H200).kernel)
    for kernel in kernels:
        found = compiled(kernel, isa)
        assert len(found) in (0, 2, 3)
        assert all(r.spill_bytes == 0 for r in found.values())
