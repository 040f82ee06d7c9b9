"""Right kernels run right in the emulator: SIMT, barriers, copies, atomics, numbers of 16 bits."""

import numpy as np
import pytest
from cuda_texts import ADD, GEMM, LAST_BLOCK, NAMED, REDUCE, TRANSPOSE, Text

from wpk.core.launch import CudaSource, Launch
from wpk.cuda import emulator

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no C++ compiler")

RNG = np.random.default_rng(3)
SEEDS = (0, 1, 2)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def test_vector_add_guards_its_tail() -> None:
    a, b, c = floats(1000), floats(1000) + 1, np.zeros(1000, np.float32)
    emulator.run(ADD.source, [a, b, c], outputs=[2])
    np.testing.assert_array_equal(c, a + b)


@pytest.mark.parametrize("seed", SEEDS)
def test_transpose_through_shared_memory(seed: int) -> None:
    a, b = floats(96, 64), np.zeros((64, 96), np.float32)
    emulator.run(TRANSPOSE.source, [a, b], outputs=[1], seed=seed)
    np.testing.assert_array_equal(b, a.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_reduction_with_shuffles(seed: int) -> None:
    a, b = floats(5, 256), np.zeros(5, np.float32)
    emulator.run(REDUCE.source, [a, b], outputs=[1], seed=seed)
    np.testing.assert_allclose(b, a.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_gemm_with_a_pipeline_of_two_copies(arch: str, seed: int) -> None:
    a, b, c = floats(128, 64), floats(64, 128), np.zeros((128, 128), np.float32)
    emulator.run(GEMM.source, [a, b, c], outputs=[2], arch=arch, seed=seed)
    np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_block_sees_the_others_through_atomics(seed: int) -> None:
    a, count, b = floats(4, 64), np.zeros(1, np.int32), np.zeros(64, np.float32)
    emulator.run(LAST_BLOCK.source, [a, count, b], outputs=[2], seed=seed)
    np.testing.assert_array_equal(b, ((a[0] + a[1]) + a[2]) + a[3])
    assert count == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_hand_over(seed: int) -> None:
    a, b = floats(3, 32), np.zeros((3, 32), np.float32)
    emulator.run(NAMED.source, [a, b], outputs=[1], seed=seed)
    np.testing.assert_array_equal(b, a[:, ::-1])


def test_launches_share_the_workspace_in_order() -> None:
    text = """#include "wpk_device.cuh"
extern "C" __global__ void first(const float *a, float *b, char *workspace) {
  ((float *)workspace)[threadIdx.x] = a[threadIdx.x];
}
extern "C" __global__ void second(const float *a, float *b, char *workspace) {
  b[threadIdx.x] = ((float *)workspace)[63 - threadIdx.x];
}
"""
    launches = (Launch("first", (1, 1, 1), (64, 1, 1)), Launch("second", (1, 1, 1), (64, 1, 1)))
    a, b = floats(64), np.zeros(64, np.float32)
    emulator.run(CudaSource(text, launches, 256), [a, b], outputs=[1])
    np.testing.assert_array_equal(b, a[::-1])


def test_every_shuffle_vote_and_count() -> None:
    text = Text(
        """
extern "C" __global__ void k(int *__restrict__ out, char *workspace) {
  int lane = threadIdx.x, v = lane * 10;
  out[lane] = __shfl_sync(0xffffffffu, v, 5);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, v, 3);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, v, 3, 8);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, v, 1);
  out[128 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  out[160 + lane] = __any_sync(0xffffffffu, lane == 7) + 2 * __all_sync(0xffffffffu, lane < 31);
  out[192 + lane] = __syncthreads_count(lane < 5) + 100 * __syncthreads_or(lane == 9) + 1000 * __syncthreads_and(lane < 32);
  if (lane < 16) out[224 + lane] = __shfl_xor_sync(0x0000ffffu, v, 8);
  else out[224 + lane] = __shfl_sync(0xffff0000u, v, 16);
}
""",
        (1, 1, 1), (32, 1, 1),
    )  # fmt: skip
    lane = np.arange(32)
    out = np.zeros((8, 32), np.int32)
    emulator.run(text.source, [out], outputs=[0])
    expected = [
        np.full(32, 50), np.where(lane < 3, lane, lane - 3) * 10, np.where(lane % 8 + 3 > 7, lane, lane + 3) * 10,
        (lane ^ 1) * 10, np.full(32, sum(1 << i for i in range(0, 32, 3)), np.int64).astype(np.int32), np.full(32, 1),
        np.full(32, 1105), np.where(lane < 16, lane ^ 8, 16) * 10,
    ]  # fmt: skip
    np.testing.assert_array_equal(out, expected)


def test_atomics_of_shared_and_global_memory() -> None:
    text = Text(
        """
extern "C" __global__ void k(const int *__restrict__ a, int *__restrict__ bins, int *__restrict__ top, char *workspace) {
  __shared__ int own[8];
  if (threadIdx.x < 8) own[threadIdx.x] = 0;
  __syncthreads();
  int v = a[blockIdx.x * 64 + threadIdx.x];
  atomicAdd(&own[v % 8], 1);
  atomicMax(top, v);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&bins[threadIdx.x], own[threadIdx.x]);
}
""",
        (3, 1, 1), (64, 1, 1),
    )  # fmt: skip
    a = RNG.integers(0, 1000, 192).astype(np.int32)
    bins, top = np.zeros(8, np.int32), np.zeros(1, np.int32)
    emulator.run(text.source, [a, bins, top])
    np.testing.assert_array_equal(bins, np.bincount(a % 8, minlength=8))
    assert top == a.max()


def test_conversions_of_16_bits_round_as_numpy_does() -> None:
    text = Text(
        """
extern "C" __global__ void k(const f16 *__restrict__ all, const float *__restrict__ x, float *__restrict__ wide,
                             f16 *__restrict__ half, bf16 *__restrict__ brain, unsigned *__restrict__ tf32, char *workspace) {
  int i = blockIdx.x * 256 + threadIdx.x;
  wide[i] = to_float(all[i]);
  half[i] = to_f16(x[i]);
  brain[i] = to_bf16(x[i]);
  tf32[i] = to_tf32(x[i]);
}
""",
        (256, 1, 1), (256, 1, 1),
    )  # fmt: skip
    everything = np.arange(65536, dtype=np.uint16).view(np.float16)
    exponents = RNG.uniform(-30, 18, 65536)
    x = (RNG.choice([-1, 1], 65536) * np.exp2(exponents)).astype(np.float32)
    x[:3000] = everything[15000:18000].astype(np.float32) * np.float32(1 + 2.0**-11)  # ties
    wide, tf32 = np.zeros(65536, np.float32), np.zeros(65536, np.uint32)
    half, brain = np.zeros(65536, np.float16), np.zeros(65536, np.uint16)
    emulator.run(text.source, [everything, x, wide, half, brain, tf32], outputs=[2, 3, 4, 5])
    np.testing.assert_array_equal(wide, everything.astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, x.astype(np.float16))
    bits = x.view(np.uint32)
    np.testing.assert_array_equal(brain, ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))
    np.testing.assert_array_equal(tf32, (bits + 0x1000) & 0xFFFFE000)


def test_arguments_of_no_bytes_and_grids_of_three_axes() -> None:
    text = Text(
        """
extern "C" __global__ void k(const float *__restrict__ none, int *__restrict__ out, char *workspace) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * 24 + thread] = none == 0 && workspace == 0 ? block * 100 + thread : -1;
}
""",
        (2, 3, 4), (3, 4, 2),
    )  # fmt: skip
    out = np.zeros((24, 24), np.int32)
    emulator.run(text.source, [np.zeros(0, np.float32), out], outputs=[1])
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 100 + np.arange(24))
