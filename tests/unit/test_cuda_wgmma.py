"""Products by wgmma: any config, emulated, gives what NumPy gives; a broken protocol is found; large tiles do not spill."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from cuda_workloads import gemm
from dsl_cuda_check import H200, compiled, emulated, interpreted, product
from test_dsl_cuda_mma import close, operands, workload

from wpk.core.errors import InternalError
from wpk.core.launch import CudaSource
from wpk.core.pointwise import parse
from wpk.core.result import Config
from wpk.core.tensor import TensorType
from wpk.core.workload import Workload
from wpk.cuda import emulator, nvrtc
from wpk.dsl.codegen.cuda import emit
from wpk.dsl.codegen.cudaring import KEPT, PRODUCERS
from wpk.dsl.ir import Alloc, Buffer, Const, Fetch, For, Kernel, Load, Side, Store, Var
from wpk.dsl.schedule import ScheduleError
from wpk.kernels.cuda.gemm_wgmma import CudaGemmWgmma, matmul
from wpk.kernels.instr.wgmma import wgmma
from wpk.settings import gpu_target

FAMILY = CudaGemmWgmma()


def config(w: Workload, **changes: int) -> Config:
    plain: Config = {"groups_m": 1, "groups_n": 1, "rows": 1, "split_k": 1, "order": "nm", "group": 1, "min_blocks": 1}
    return {**FAMILY.space(w, H200).default(), **plain, "fetch": 0, **changes}


LAYOUTS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("dtype", "trans_a", "trans_b"),
    [*((d, *layout) for d in ("float16", "bfloat16") for layout in LAYOUTS), ("float32", False, True)],
)
def test_every_layout(dtype: str, trans_a: bool, trans_b: bool) -> None:
    w = workload(104, 136, 200, trans_a, trans_b, dtype)
    assert FAMILY.matches(w, H200) is None
    inputs, want = operands(w)
    for fetch in (False, True):
        c = config(w, groups_n=1 + trans_a, columns=128 if not trans_b else 96, stages=3, fetch=fetch)
        close(emulated(FAMILY.build(w, c, H200).kernel, inputs), want, dtype)


def test_the_meaning_of_a_thread_adds_up_to_the_product() -> None:
    w = workload(64, 8, 50, False, True, "float16")
    inputs, want = operands(w)
    close(interpreted(FAMILY.build(w, config(w, columns=8, stages=1), H200).kernel, inputs), want, "float16")


def boxes(columns: int) -> Kernel:
    """y[k] = the box of 4 rows from (3 k - 2) and ``columns`` columns from 8 of x, in a ring of two slots."""
    k, t, i = Var("k"), Var("t"), Var("i")
    at = t * (columns // 8) + i
    box = Side(1, 0, 4), Side(2, 1, columns)
    fetch = Fetch("s", (k % 2, Const(0), Const(0)), "x", (k * 3 - 2, Const(8)), box, (10, 24), "float32")
    copy = Store("y", (k, at // columns, at % columns), Load("s", (k % 2, at // columns, at % columns)))
    use = For("i", Const(0), Const(columns // 8), "serial", (copy,))
    ring = For("k", Const(0), Const(5), "ring", (fetch, use), 2)
    slots = Alloc(Buffer("s", (2, 4, columns), scope="block", slots=2), (ring,))
    params = Buffer("x", (10, 24)), Buffer("y", (5, 4, columns), access="out")
    return Kernel("boxes", params, (For("t", Const(0), Const(32), "thread", (slots,)),))


@pytest.mark.parametrize("columns", [8, 16])
def test_boxes_mean_what_is_fetched(columns: int) -> None:
    x = np.arange(240, dtype=np.float32).reshape(10, 24) + 1
    around = np.pad(x, ((2, 8), (0, 8)))
    want = np.stack([around[3 * k : 3 * k + 4, 8 : 8 + columns] for k in range(5)])
    np.testing.assert_array_equal(interpreted(boxes(columns), [x]), want)
    np.testing.assert_array_equal(emulated(boxes(columns), [x]), want)


def test_only_rows_of_whole_pieces_are_fetched() -> None:
    w = workload(64, 64, 203, False, True, "float16")
    with pytest.raises(ScheduleError, match="rows of a are no multiple of 16 bytes"):
        FAMILY.build(w, config(w, columns=64, fetch=True), H200)
    assert FAMILY.space(w, H200).default()["fetch"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"groups_m": 2, "columns": 64, "stages": 4}, {"rows": 2, "columns": 32, "stages": 2, "split_k": 3},
        {"groups_m": 2, "columns": 64, "stages": 4, "fetch": True},
        {"rows": 2, "columns": 32, "stages": 2, "split_k": 3, "fetch": True},
        {"groups_m": 2, "groups_n": 2, "columns": 16, "stages": 1},
    ],
)  # fmt: skip
def test_tiles(changes: dict[str, int]) -> None:
    w = workload(200, 72, 456, False, True, "bfloat16")
    inputs, want = operands(w)
    close(emulated(FAMILY.build(w, config(w, **changes), H200).kernel, inputs), want, "bfloat16")


@pytest.mark.parametrize("seed", range(6))
def test_any_config(seed: int) -> None:
    rng = Random(seed)
    dtype = rng.choice(("float16", "bfloat16", "float32")) if seed % 2 and seed % 3 else "float16"
    m, n, k = (rng.choice(x) for x in ((16, 72, 160), (8, 65, 200), (50, 128, 264)))
    w = workload(m, n, k, seed % 2 == 0, seed % 3 > 0, dtype)
    inputs, want = operands(w, seed)
    close(emulated(FAMILY.build(w, FAMILY.space(w, H200).sample(rng), H200).kernel, inputs), want, dtype)


def test_batches_and_constants() -> None:
    """Constant weights are packed along k; a batch of them has a product each."""
    family = matmul()
    types = TensorType("float16", (2, 20, 96)), TensorType("float16", (2, 96, 24))
    w = Workload("matmul", types, (TensorType("float16", (2, 20, 24)),), constants=(1,))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=t.shape).astype(np.float16) for t in types)
    c = family.space(w, H200).default()
    got = emulated(family.build(w, c, H200).kernel, [a, *family.pack(w, c, [b], H200)])
    close(got, a.astype(np.float64) @ b.astype(np.float64), "float16")


@pytest.mark.parametrize(("columns", "split", "dtype"), [
    (16, 1, "float16"), (64, 1, "bfloat16"), (64, 1, "float32"), (16, 3, "float16"), (96, 2, "bfloat16"), (32, 3, "float32"),
])  # fmt: skip
def test_constant_weights_are_spread(columns: int, split: int, dtype: str) -> None:
    """Threads have neighbouring columns, which whole vectors of the output are made of."""
    w = replace(workload(72, 104, 456, False, True, dtype), constants=(1,))
    (a, b), want = operands(w)
    c = config(w, columns=columns, stages=3, split_k=split, fetch=1)
    kernel = FAMILY.build(w, c, H200).kernel
    close(emulated(kernel, [a, *FAMILY.pack(w, c, [b], H200)]), want, dtype)
    wide = {"float32": "f32x4", "float16": "f16x8" if columns > 16 else "f16x4", "bfloat16": "bf16x8"}[dtype]
    assert f"*({wide} *)(out" in emit(kernel, "sm_90a").text or f"*({wide} *)out" in emit(kernel, "sm_90a").text


def test_an_epilogue() -> None:
    types = tuple(TensorType("float16", s) for s in ((30, 128), (128, 24), (24,)))
    attrs = (("trans_a", False), ("trans_b", False))
    w = Workload("gemm", types, (TensorType("float16", (30, 24)),), attrs, parse("relu(add(acc,in2))"), (1, 2))
    (a, b), want = operands(w)
    bias = np.linspace(-1, 1, 24).astype(np.float16)
    c = FAMILY.space(w, H200).default()
    got = emulated(FAMILY.build(w, c, H200).kernel, [a, *FAMILY.pack(w, c, [b, bias], H200)])
    close(got, np.maximum(want + bias, 0), "float16")


def test_only_for_what_has_the_instructions() -> None:
    w = workload(64, 64, 64, False, True, "float16")
    assert "sm_100" in str(FAMILY.matches(w, gpu_target("sm_100")))
    assert "float32" in str(FAMILY.matches(product(64, 64, 64), H200))
    assert "lie along k" in str(FAMILY.matches(workload(64, 64, 64, False, False, "float32"), H200))
    with pytest.raises(InternalError, match="no wgmma for 96 columns"):
        wgmma("float16", 1, 96, False, True)
    with pytest.raises(InternalError, match="no wgmma of float32"):
        wgmma("float32", 1, 64, False, True)


def test_constants_are_rounded_to_tf32() -> None:
    """The hardware would cut their last bits off, always toward zero."""
    w = replace(workload(16, 24, 64, False, True, "float32"), constants=(1,))
    b = np.random.default_rng(0).normal(size=(24, 64)).astype(np.float32)
    (packed,) = FAMILY.pack(w, FAMILY.space(w, H200).default(), [b], H200)
    rows = [32 * (n // 32) + 8 * (n // 2 % 4) + 2 * (n // 8 % 4) + n % 2 for n in range(24)]
    packed = packed[rows]  # where tiles want them
    assert not np.any(packed.view(np.uint32) & 0x1FFF)
    error = packed / b - 1
    assert np.abs(error).max() < 2**-11 * 1.001
    assert abs(error.mean()) < 2**-14


def test_what_is_fetched_is_rounded_to_tf32_where_no_more_is_read() -> None:
    w = workload(64, 64, 64, False, True, "float32")
    maps = emit(FAMILY.build(w, config(w, columns=64, stages=2, fetch=1), H200).kernel, "sm_90a").tensor_maps
    assert [m.dtype for m in maps] == ["tf32", "tf32"]
    assert [m.dtype for m in emit(boxes(8), "sm_90a").tensor_maps] == ["float32"]


# --- THE PROTOCOL -------------------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, str, str]] = [
    ("  fence_async();\n", "", "proxy"),
    ("  wgmma_fence();\n", "", "proxy"),
    ("wgmma_wait<1>();", "", "race"),
    ("wgmma_wait<0>();", "", "in-flight"),
    ("  wgmma_commit();\n", "", "race"),
    ("cp_async_wait<0>();", "cp_async_wait<1>();", "in-flight"),
]


RING_BROKEN = [
    ("mbar_wait(full + i6, i8);", "", "in-flight"),
    ("mbar_wait(empty + i1, i3);", "", "barrier"),
    ("mbar_arrive(empty + i11)", "", "barrier"),
    ("12288", "12272", "barrier"),
    ("12288", "12304", "barrier"),
    ("wgmma_wait<1>();", "", "race"),
    ("mbar_init(empty + thread, 4);", "mbar_init(empty + thread, 3);", "race"),
]


@pytest.mark.parametrize(("fetch", "text", "instead", "kind"), [
    *((False, *b) for b in BROKEN), *((True, *b) for b in RING_BROKEN)
])  # fmt: skip
def test_a_broken_protocol_is_found(fetch: bool, text: str, instead: str, kind: str) -> None:
    w = workload(64, 32, 504, False, True, "float16")
    source = emit(FAMILY.build(w, config(w, columns=32, stages=3, fetch=fetch), H200).kernel, "sm_90a")
    assert text in source.text
    with pytest.raises(emulator.EmulationError) as found:
        run(replace(source, text=source.text.replace(text, instead)), w)
    assert found.value.kind == kind


def test_accumulators_are_no_numbers_before_they_are_waited_for() -> None:
    w = workload(64, 32, 500, False, True, "float16")
    source = emit(FAMILY.build(w, config(w, columns=32, stages=3), H200).kernel, "sm_90a")
    first, wait, epilogue = source.text.rpartition("wgmma_wait<0>();\n")
    late = first + epilogue.rstrip().removesuffix("}") + wait + "}\n"
    assert not np.isnan(run(source, w)).any()
    assert np.isnan(run(replace(source, text=late), w)).any()


def run(source: CudaSource, w: Workload) -> np.ndarray:
    """What a text makes of a workload's operands."""
    inputs, _ = operands(w)
    out = np.zeros(w.outputs[0].shape, np.float16)
    emulator.run(source, [*inputs, out], outputs=[2])
    return out


# --- THE COMPILER -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize("fetch", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_large_tiles_compile_without_spills(trans_b: bool, fetch: bool) -> None:
    w = workload(4096, 4096, 4096, False, trans_b, "bfloat16")
    kernel = FAMILY.build(w, config(w, groups_m=2, columns=256, stages=4, fetch=fetch), H200).kernel
    for resources in compiled(kernel).values():
        assert resources.local_bytes == 0
        assert resources.registers <= 224
    assert nvrtc.losses(nvrtc.compile(emit(kernel, "sm_90a").text, "sm_90a").log) == []


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize(("columns", "fits"), [(96, True), (128, False)])
def test_an_instruction_fits_in_the_registers_of_a_block_that_begins(columns: int, fits: bool) -> None:
    """Whatever is given away later."""
    w = gemm(4096, 4096, 4096, "bfloat16")
    c = config(w, groups_m=2 if columns > 96 else 1, columns=columns, stages=2, min_blocks=2, fetch=1)
    assert FAMILY.space(w, H200).valid(c) == fits
    text = emit(FAMILY.build(w, c, H200).kernel, "sm_90a").text
    if fits:
        assert nvrtc.losses(nvrtc.compile(text, "sm_90a").log) == []
    else:
        with pytest.raises(nvrtc.CudaCompileError, match="Insufficient registers"):
            nvrtc.compile(text, "sm_90a")


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed")
@pytest.mark.parametrize(("groups", "rows", "columns", "blocks"), [(2, 1, 256, 1), (2, 1, 64, 2), (4, 1, 128, 1), (1, 2, 128, 2)])
def test_registers_given_away_are_enough_for_those_taken(groups: int, rows: int, columns: int, blocks: int) -> None:
    """A warpgroup that raises its number waits until others have lowered theirs: of more than there are, for ever."""
    w = gemm(4096, 4096, 4096, "bfloat16")
    c = config(w, groups_m=groups, rows=rows, columns=columns, stages=2, min_blocks=blocks, fetch=1)
    source = emit(FAMILY.build(w, c, H200).kernel, "sm_90a")
    (launch,), raised = source.launches, re.search(r"registers_raise<(\d+)>", source.text)
    compiled = nvrtc.compile(source.text, "sm_90a")
    used = compiled.resources[launch.symbol]
    assert raised is not None and used.spill_bytes == 0 and nvrtc.losses(compiled.log) == []
    assert int(raised[1]) * (launch.threads - PRODUCERS) + KEPT * PRODUCERS <= used.registers * launch.threads
