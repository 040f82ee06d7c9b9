"""Planted faults: each must be found, with its kind and the line it is on, whatever the order of warps."""

import numpy as np
import pytest
from cuda_texts import (
    ADD,
    GEMM,
    LAST_BLOCK,
    LDMATRIX,
    NAMED,
    PIPELINE,
    REDUCE,
    TMA_BOX,
    TRANSPOSE,
    Text,
    wgmma,
)

from wpk.core.launch import CudaSource, Launch, TensorMap
from wpk.cuda import emulator
from wpk.cuda.emulator import EmulationError

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no C++ compiler")

SEEDS = (0, 1, 2)


def args_of(text: Text) -> list[np.ndarray]:
    """Arguments of the right sizes for the texts of cuda_texts."""
    f32, f16 = np.float32, np.float16
    return {
        ADD.grid: [np.ones(1000, f32)] * 2 + [np.zeros(1000, f32)],
        TRANSPOSE.grid: [np.ones((96, 64), f32), np.zeros((64, 96), f32)],
        REDUCE.grid: [np.ones((5, 256), f32), np.zeros(5, f32)],
        GEMM.grid: [np.ones((128, 64), f32), np.ones((64, 128), f32), np.zeros((128, 128), f32)],
        LAST_BLOCK.grid: [np.ones((4, 64), f32), np.zeros(1, np.int32), np.zeros(64, f32)],
        PIPELINE.grid: [np.ones((96, 128), f16), np.ones((64, 128), f16), np.zeros((96, 64), f32)],
    }[text.grid]


def caught(text: Text, args: list[np.ndarray] | None = None, **options: object) -> EmulationError:
    with pytest.raises(EmulationError) as info:
        emulator.run(text.source, args if args is not None else args_of(text), **options)  # type: ignore[arg-type]
    return info.value


def line_of(text: Text, part: str) -> int:
    (line,) = [i for i, line in enumerate(text.text.splitlines(), 1) if part in line]
    return line


# ---- global memory ----


def test_one_element_beyond_the_end() -> None:
    error = caught(ADD.but("i < 1000", "i < 1001"))
    assert error.kind == "out-of-bounds" and "byte 4000 of 4000" in error.detail and error.line == 6


def test_one_element_before_the_start_of_a_written_array() -> None:
    error = caught(ADD.but("c[i] =", "c[i - 1] ="))
    assert error.kind == "out-of-bounds" and "write" in error.detail and "byte -4" in error.detail


def test_far_beyond_is_not_taken_for_another_array() -> None:
    assert caught(ADD.but("a[i]", "a[i + 100000000]")).kind == "out-of-bounds"


def test_a_null_workspace_is_not_memory() -> None:
    assert caught(ADD.but("a[i] +", "((float *)workspace)[i] +")).kind == "out-of-bounds"


def test_an_output_that_is_not_written_throughout() -> None:
    error = caught(ADD.but("i < 1000", "i < 999"), outputs=[2])
    assert error.kind == "unwritten" and "argument 2" in error.detail


def test_an_output_that_is_read_first() -> None:
    error = caught(ADD.but("c[i] =", "c[i] +="), outputs=[2])
    assert error.kind == "unwritten" and error.line == 6


def test_workspace_that_nobody_wrote() -> None:
    assert caught(LAST_BLOCK.but("partial[blockIdx.x * 64 + threadIdx.x] =", "if (threadIdx.x) partial[threadIdx.x] =")).kind in (
        "unwritten", "race",
    )  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_launch_that_depend_on_each_other(seed: int) -> None:
    text = LAST_BLOCK.but("last = atomicAdd(count, 1) == 3", "last = blockIdx.x == 3")
    assert caught(text, seed=seed).kind in ("race", "unwritten")


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_that_write_the_same_place(seed: int) -> None:
    arguments = [np.arange(1280, dtype=np.float32), np.zeros(5, np.float32)]
    error = caught(REDUCE.but("b[blockIdx.x] = v", "b[0] = a[blockIdx.x]"), arguments, seed=seed)
    assert error.kind == "race" and "another block" in error.detail


def test_blocks_that_write_the_same_value_are_harmless() -> None:
    emulator.run(REDUCE.but("b[blockIdx.x] = v", "b[0] = 7.0f").source, args_of(REDUCE))


# ---- shared memory ----


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_missing_after_writing(seed: int) -> None:
    error = caught(TRANSPOSE.but("  __syncthreads();\n", ""), seed=seed)
    assert error.kind in ("race", "unwritten") and "tile[x]" in str(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_missing_before_writing_again(seed: int) -> None:
    again = "  __syncthreads();\n  float first = tile[x][y];\n  tile[y][x] = first + 1.0f;\n  __syncthreads();\n"
    text = TRANSPOSE.but("  __syncthreads();\n", again)
    assert caught(text, seed=seed).kind == "race"


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_do_not_march_in_step(seed: int) -> None:
    error = caught(LDMATRIX.but("__syncwarp();", ""), matrix_args(), seed=seed)
    assert error.kind in ("race", "unwritten")


def test_shared_memory_that_nobody_wrote() -> None:
    error = caught(TRANSPOSE.but("tile[x][y + j];", "tile[x][y + j + 1];"))
    assert error.kind == "unwritten" and error.line == line_of(TRANSPOSE, "= tile[x]")


def test_beyond_the_shared_memory_of_the_launch() -> None:
    error = caught(Text(**{**REDUCE.__dict__, "shared_bytes": 28}))
    assert error.kind == "out-of-bounds" and "wpk_shared[28]" in error.detail


def test_beyond_a_declared_array() -> None:
    error = caught(TRANSPOSE.but("tile[32][33]", "tile[32][31]"))
    assert error.kind == "out-of-bounds" and "index 31 of 'float [31]'" in error.detail


def test_misaligned_vectors() -> None:
    error = caught(GEMM.but("(const float4 *)&bs[s][k][tx * 4]", "(const float4 *)&bs[s][k][tx * 4 + 1]"))
    assert error.kind == "misaligned" and error.line == line_of(GEMM, "float4 y =")


def test_registers_that_were_never_set_show_in_the_result() -> None:
    if "-ftrivial-auto-var-init=pattern" not in emulator._optional_flags(emulator.default_host().compiler):
        pytest.skip("this compiler cannot fill registers with a pattern")
    arguments = args_of(GEMM)
    emulator.run(GEMM.but("float acc[4][4] = {};", "float acc[4][4];").source, arguments)
    assert not np.isclose(arguments[2], 64.0).any()


# ---- barriers ----


def test_a_barrier_that_part_of_the_block_reaches() -> None:
    text = TRANSPOSE.but("  __syncthreads();\n", "  __syncthreads();\n  if (y < 7) __syncthreads();\n")
    error = caught(text)
    assert error.kind == "barrier" and "224 of 256" in error.detail and "32 have exited" in error.detail
    assert error.line == line_of(text, "if (y < 7)")


def test_threads_that_meet_at_different_barriers() -> None:
    text = TRANSPOSE.but("  __syncthreads();\n", "  if (y < 4) __syncthreads();\n  else\n    __syncthreads();\n")
    assert caught(text).kind == "barrier"


def test_lanes_that_do_not_reach_a_shuffle() -> None:
    text = REDUCE.but("for (int lanes = 16;", "for (int lanes = 16 - (threadIdx.x == 3) * 16;")
    assert caught(text).kind == "divergence"


def test_a_named_barrier_that_waits_for_more_than_come() -> None:
    text = NAMED.but("named_barrier_arrive(1, 64);", "")
    assert caught(text, [np.ones((3, 32), np.float32), np.zeros((3, 32), np.float32)]).kind == "barrier"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_buffer_refilled_before_it_was_handed_back(seed: int) -> None:
    text = NAMED.but("if (i) named_barrier_sync(2, 64);", "").but("if (i < 2) named_barrier_arrive(2, 64);", "")
    arguments = [np.arange(96, dtype=np.float32), np.zeros((3, 32), np.float32)]
    assert caught(text, arguments, seed=seed).kind in ("race", "barrier")


# ---- asynchronous copies ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wait", ["", "cp_async_wait<2>();"])
def test_copies_read_before_the_wait(wait: str, seed: int) -> None:
    assert caught(GEMM.but("cp_async_wait<1>();", wait), seed=seed).kind == "in-flight"


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_of_others_need_a_barrier_after_the_wait(seed: int) -> None:
    text = GEMM.but("cp_async_wait<1>();\n    __syncthreads();", "__syncthreads();\n    cp_async_wait<1>();")
    assert caught(text, seed=seed).kind in ("in-flight", "race")


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_into_what_others_still_read(seed: int) -> None:
    text = GEMM.but("__syncthreads();  // before the next copy", "")
    assert caught(text, seed=seed).kind in ("race", "in-flight")


def test_copies_from_beyond_the_end_unless_they_are_off() -> None:
    assert caught(GEMM.but(", more);", ", true);", 2)).kind == "out-of-bounds"


def test_misaligned_copies() -> None:
    text = GEMM.but("cp_async<16>(&bs[0][t / 16][t % 16 * 4], b +", "cp_async<16>(&bs[0][t / 16][t % 16 * 4], b + 1 +")
    assert caught(text).kind == "misaligned"


# ---- Hopper ----


def test_an_mbarrier_used_before_all_know_it_is_there() -> None:
    text = PIPELINE.but("  }\n  __syncthreads();\n  if (t >= 128) {", "  }\n  if (t >= 128) {")
    assert caught(text).kind in ("race", "unwritten")


def test_tma_data_that_was_not_waited_for() -> None:
    assert caught(PIPELINE.but("mbar_wait(full + i % 2, i / 2 % 2);", "")).kind == "in-flight"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stage_refilled_while_it_is_read(seed: int) -> None:
    text = PIPELINE.but("if (i >= 2) mbar_wait(empty + i % 2, (i / 2 - 1) % 2);", "")
    assert caught(text, seed=seed).kind in ("race", "in-flight", "barrier")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stage_handed_back_before_wgmma_is_done(seed: int) -> None:
    wait, arrive = "      wgmma_wait<0>();\n", "      mbar_arrive(empty + i % 2);\n"
    text = PIPELINE.but(wait + arrive, arrive + wait)
    assert caught(text, seed=seed).kind == "race"


def test_fewer_bytes_than_expected() -> None:
    error = caught(PIPELINE.but("mbar_arrive_expect(full + i % 2, 16384)", "mbar_arrive_expect(full + i % 2, 16385)"))
    assert error.kind == "barrier" and "mbar_wait" in error.detail


def test_a_wait_for_the_wrong_parity() -> None:
    assert caught(PIPELINE.but("mbar_wait(full + i % 2, i / 2 % 2);", "mbar_wait(full + i % 2, 1);")).kind == "in-flight"


def test_accumulators_read_before_the_wait_are_not_numbers() -> None:
    text = PIPELINE.but("wgmma_wait<0>();", "float early = d[0];\n      wgmma_wait<0>();\n      if (early != early) __trap();")
    assert caught(text).kind == "trap"


def test_wgmma_needs_its_fences() -> None:
    assert caught(PIPELINE.but("wgmma_fence();", "")).kind == "proxy"
    plain = wgmma("wgmma_m64k16_f16<64>", "f16", 2048, 2048, "1024, 128, 0", "1024, 128, 0")
    arguments = [np.zeros(512, np.uint32), np.zeros(512, np.uint32), np.zeros((64, 64), np.float32)]
    emulator.run(plain.source, arguments)
    assert caught(plain.but("fence_async();", ""), arguments).kind == "proxy"
    assert caught(plain.but("wgmma_wait<0>();", ""), arguments).kind == "in-flight"


@pytest.mark.parametrize(("start", "swizzle"), [(128, 128), (896, 128), (256, 64), (128, 32)])
def test_wgmma_of_an_operand_in_the_middle_of_its_swizzle(start: int, swizzle: int) -> None:
    sizes = f"16, {8 * swizzle}, {swizzle}"
    text = wgmma("wgmma_m64k16_f16<8>", "f16", 64 * swizzle, 3072, sizes, sizes, 8)
    arguments = [np.zeros(16 * swizzle, np.uint32), np.zeros(768, np.uint32), np.zeros((64, 8), np.float32)]
    emulator.run(text.source, arguments)
    place = f"matrix_desc(wpk_shared + {64 * swizzle}"
    assert caught(text.but(place, f"{place} + {start}", 2), arguments).kind == "misaligned"


def test_tma_to_memory_that_is_not_aligned() -> None:
    text = PIPELINE.but("tma_load_2d(stage + 8192", "tma_load_2d(stage + 8192 + 512")
    assert caught(text).kind == "misaligned"


def test_shared_memory_overwritten_while_tma_stores_it() -> None:
    text = TMA_BOX.but("tma_store_wait<0>();", "")
    arguments = [np.ones(400, np.float32), np.zeros(256, np.float32), np.zeros(400, np.float32)]
    assert caught(text, arguments).kind == "race"
    assert caught(TMA_BOX.but("fence_async();", ""), arguments).kind == "proxy"


def test_tensor_maps_that_the_driver_would_refuse() -> None:
    maps = (TensorMap(0, "float32", (40, 10), (164,), (32, 8)), TMA_BOX.maps[1])
    assert caught(Text(**{**TMA_BOX.__dict__, "maps": maps}), [np.ones(400, np.float32)] * 3).kind == "launch"


# ---- the process ----


def test_a_kernel_that_never_ends() -> None:
    assert caught(ADD.but("c[i] =", "for (;;) c[i] ="), timeout=1.0).kind == "timeout"


def test_a_kernel_that_runs_out_of_stack() -> None:
    text = ADD.but("if (i < 1000) c[i] =", "volatile float large[100000]; large[i] = a[i]; c[i] =")
    assert caught(text).kind == "crash"


def test_text_that_does_not_compile() -> None:
    error = caught(ADD.but("c[i] =", "d[i] ="))
    assert error.kind == "compile" and "kernel.cu:6" in error.detail


def test_launches_that_a_device_refuses() -> None:
    one = (1, 1, 1)
    for launch in (Launch("k", one, (1025, 1, 1)), Launch("k", (0, 1, 1), one), Launch("k", one, one, 232449)):
        with pytest.raises(EmulationError) as info:
            emulator.run(CudaSource(ADD.text, (launch,)), args_of(ADD))
        assert info.value.kind == "launch"


def test_a_text_without_the_kernel_that_is_launched() -> None:
    with pytest.raises(EmulationError, match="compile"):
        emulator.run(CudaSource(ADD.text, (Launch("other", (1, 1, 1), (32, 1, 1)),)), args_of(ADD))


def matrix_args() -> list[np.ndarray]:
    return [np.ones((16, 16), np.float16), np.ones((16, 8), np.float16), np.zeros((16, 8), np.float32)]
