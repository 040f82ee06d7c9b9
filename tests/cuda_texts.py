"""CUDA kernels written by hand, for the tests of NVRTC and of the emulator; each is right as it stands."""

from dataclasses import dataclass

from wpk.core.launch import CudaSource, Dim3, Launch, TensorMap

ALL = ("sm_80", "sm_90a", "sm_100")
HOPPER = ("sm_90a",)
TMA = ("sm_90a", "sm_100")


@dataclass(frozen=True)
class Text:
    """A kernel ``k`` with its launch shape, and the compute capabilities it is legal for."""

    body: str
    grid: Dim3
    block: Dim3
    shared_bytes: int = 0
    workspace_bytes: int = 0
    maps: tuple[TensorMap, ...] = ()
    archs: tuple[str, ...] = ALL

    @property
    def text(self) -> str:
        return '#include "wpk_device.cuh"\n' + self.body

    @property
    def source(self) -> CudaSource:
        launch = Launch("k", self.grid, self.block, self.shared_bytes)
        return CudaSource(self.text, (launch,), self.workspace_bytes, self.maps)

    def but(self, old: str, new: str, times: int = 1) -> "Text":
        """The same with a planted fault: ``old``, which occurs ``times`` times, replaced by ``new``."""
        assert self.body.count(old) == times, (old, self.body.count(old))
        fields = {**self.__dict__, "body": self.body.replace(old, new)}
        return Text(**fields)


ADD = Text(
    """
extern "C" __global__ void __launch_bounds__(128)
k(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ c, char *workspace) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < 1000) c[i] = a[i] + b[i];
}
""",
    (8, 1, 1), (128, 1, 1),
)  # fmt: skip

#: 96×64 → 64×96
TRANSPOSE = Text(
    """
extern "C" __global__ void __launch_bounds__(256) k(const float *__restrict__ a, float *__restrict__ b, char *workspace) {
  __shared__ float tile[32][33];
  int x = threadIdx.x, y = threadIdx.y;
  for (int j = 0; j < 32; j += 8) tile[y + j][x] = a[(blockIdx.y * 32 + y + j) * 64 + blockIdx.x * 32 + x];
  __syncthreads();
  for (int j = 0; j < 32; j += 8) b[(blockIdx.x * 32 + y + j) * 96 + blockIdx.y * 32 + x] = tile[x][y + j];
}
""",
    (2, 3, 1), (32, 8, 1),
)  # fmt: skip

#: sums of rows of 256
REDUCE = Text(
    """
extern "C" __global__ void __launch_bounds__(256) k(const float *__restrict__ a, float *__restrict__ b, char *workspace) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  float *partial = (float *)wpk_shared;
  float v = a[blockIdx.x * 256 + threadIdx.x];
  for (int lanes = 16; lanes; lanes >>= 1) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = threadIdx.x < 8 ? partial[threadIdx.x] : 0.0f;
    for (int lanes = 4; lanes; lanes >>= 1) v += __shfl_down_sync(0xffffffffu, v, lanes);
    if (threadIdx.x == 0) b[blockIdx.x] = v;
  }
}
""",
    (5, 1, 1), (256, 1, 1), shared_bytes=32,
)  # fmt: skip

#: 128×128 = 128×64 times 64×128 in tiles of 64×64×16, two stages
GEMM = Text(
    """
extern "C" __global__ void __launch_bounds__(256, 2)
k(const float *__restrict__ a, const float *__restrict__ b, float *__restrict__ c, char *workspace) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  float (*as)[64][20] = (float (*)[64][20])wpk_shared;
  float (*bs)[16][64] = (float (*)[16][64])(wpk_shared + 2 * 64 * 20 * 4);
  const int N = 128, K = 64;
  int t = threadIdx.x, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, ty = t / 16, tx = t % 16;
  float acc[4][4] = {};
  cp_async<16>(&as[0][t / 4][t % 4 * 4], a + (m0 + t / 4) * K + t % 4 * 4, true);
  cp_async<16>(&bs[0][t / 16][t % 16 * 4], b + t / 16 * N + n0 + t % 16 * 4, true);
  cp_async_commit();
  for (int k0 = 0, s = 0; k0 < K; k0 += 16, s ^= 1) {
    bool more = k0 + 16 < K;
    cp_async<16>(&as[s ^ 1][t / 4][t % 4 * 4], a + (m0 + t / 4) * K + k0 + 16 + t % 4 * 4, more);
    cp_async<16>(&bs[s ^ 1][t / 16][t % 16 * 4], b + (k0 + 16 + t / 16) * N + n0 + t % 16 * 4, more);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; k++) {
      float4 y = *(const float4 *)&bs[s][k][tx * 4];
      for (int i = 0; i < 4; i++) {
        float x = as[s][ty * 4 + i][k];
        acc[i][0] = fmaf(x, y.x, acc[i][0]);
        acc[i][1] = fmaf(x, y.y, acc[i][1]);
        acc[i][2] = fmaf(x, y.z, acc[i][2]);
        acc[i][3] = fmaf(x, y.w, acc[i][3]);
      }
    }
    __syncthreads();  // before the next copy
  }
  for (int i = 0; i < 4; i++)
    *(float4 *)(c + (m0 + ty * 4 + i) * N + n0 + tx * 4) = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
}
""",
    (2, 2, 1), (256, 1, 1), shared_bytes=2 * 64 * 20 * 4 + 2 * 16 * 64 * 4,
)  # fmt: skip

#: sums over 4 blocks by split-K: partial sums, then the block that comes last adds them in order
LAST_BLOCK = Text(
    """
extern "C" __global__ void __launch_bounds__(64)
k(const float *__restrict__ a, int *__restrict__ count, float *__restrict__ b, char *workspace) {
  __shared__ int last;
  float *partial = (float *)workspace;
  partial[blockIdx.x * 64 + threadIdx.x] = a[blockIdx.x * 64 + threadIdx.x];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(count, 1) == 3;
  __syncthreads();
  if (!last) return;
  float sum = 0.0f;
  for (int i = 0; i < 4; i++) sum += partial[i * 64 + threadIdx.x];
  b[threadIdx.x] = sum;
}
""",
    (4, 1, 1), (64, 1, 1), workspace_bytes=1024,
)  # fmt: skip

#: one warp hands a buffer to another through named barriers, three times
NAMED = Text(
    """
extern "C" __global__ void __launch_bounds__(64) k(const float *__restrict__ a, float *__restrict__ b, char *workspace) {
  __shared__ float buffer[32];
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 3; i++) {
    if (threadIdx.x < 32) {
      if (i) named_barrier_sync(2, 64);
      buffer[lane] = a[i * 32 + lane];
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      b[i * 32 + lane] = buffer[31 - lane];
      if (i < 2) named_barrier_arrive(2, 64);
    }
  }
}
""",
    (1, 1, 1), (64, 1, 1),
)  # fmt: skip


def mma(name: str, element: str, result: str, k: int) -> Text:
    """One warp: d (16×8) += a (16×k, rows) × b (8×k: columns), fragments gathered element by element as PTX says."""
    pairs = {"float": 1, "f16": 2, "bf16": 2, "int8_t": 4}[element]
    convert = "to_tf32(x)" if element == "float" else "x"
    word = f"""
static __device__ __forceinline__ unsigned word(const {element} *p) {{
  unsigned w = 0;
  for (int i = 0; i < {pairs}; i++) {{
    {element} x = p[i];
    w |= {"as_bits(x)" if pairs > 1 else convert} << {32 // pairs if pairs > 1 else 0} * i;
  }}
  return w;
}}"""
    bits = "" if pairs == 1 else (
        "static __device__ __forceinline__ unsigned as_bits(int8_t x) { return (unsigned char)x; }\n"
        if element == "int8_t"
        else f"static __device__ __forceinline__ unsigned as_bits({element} x) {{ return x.bits; }}\n"
    )  # fmt: skip
    half = k // 2
    body = f"""
{bits}{word}
extern "C" __global__ void __launch_bounds__(32)
k(const {element} *__restrict__ a, const {element} *__restrict__ b, {result} *__restrict__ d, char *workspace) {{
  int group = threadIdx.x / 4, at = threadIdx.x % 4 * {pairs};
  unsigned x[4] = {{word(a + group * {k} + at), word(a + (group + 8) * {k} + at),
                   word(a + group * {k} + at + {half}), word(a + (group + 8) * {k} + at + {half})}};
  unsigned y[2] = {{word(b + group * {k} + at), word(b + group * {k} + at + {half})}};
  {result} acc[4];
  for (int i = 0; i < 4; i++) acc[i] = d[(group + i / 2 * 8) * 8 + threadIdx.x % 4 * 2 + i % 2];
  {name}(acc, x, y);
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + threadIdx.x % 4 * 2 + i % 2] = acc[i];
}}
"""
    return Text(body, (1, 1, 1), (32, 1, 1))


#: 16×8 = 16×16 (rows) × 16×8 (rows): a by ldmatrix, b by ldmatrix.trans
LDMATRIX = Text(
    """
extern "C" __global__ void __launch_bounds__(32)
k(const f16 *__restrict__ a, const f16 *__restrict__ b, float *__restrict__ c, char *workspace) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  f16 *as = (f16 *)wpk_shared, *bs = as + 16 * 24;
  int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) as[i / 16 * 24 + i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) bs[i] = b[i];
  __syncwarp();
  unsigned x[4], y[2], z[1];
  float d[4] = {};
  ldmatrix_x4(x, as + lane % 16 * 24 + lane / 16 * 8);
  ldmatrix_x2_trans(y, bs + lane % 16 * 8);
  ldmatrix_x1_trans(z, bs + (8 + lane % 8) * 8);
  y[1] = z[0];
  mma_m16n8k16_f16(d, x, y);
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
""",
    (1, 1, 1), (32, 1, 1), shared_bytes=16 * 24 * 2 + 256,
)  # fmt: skip


def wgmma(call: str, element: str, a_bytes: int, b_bytes: int, desc_a: str, desc_b: str, n: int = 64) -> Text:
    """One warpgroup: 64×n products of operands whose images are copied to shared memory as they are; twice, so 2·a·b."""
    body = f"""
extern "C" __global__ void __launch_bounds__(128)
k(const unsigned *__restrict__ a, const unsigned *__restrict__ b, float *__restrict__ c, char *workspace) {{
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  int t = threadIdx.x;
  for (int i = t; i < {a_bytes} / 4; i += 128) ((unsigned *)wpk_shared)[i] = a[i];
  for (int i = t; i < {b_bytes} / 4; i += 128) ((unsigned *)(wpk_shared + {a_bytes}))[i] = b[i];
  fence_async();
  __syncthreads();
  float d[{n // 2}];
  for (int i = 0; i < {n // 2}; i++) d[i] = 1.0f;
  wgmma_hold(d);
  wgmma_fence();
  {call}(d, matrix_desc(wpk_shared, {desc_a}), matrix_desc(wpk_shared + {a_bytes}, {desc_b}), false);
  {call}(d, matrix_desc(wpk_shared, {desc_a}), matrix_desc(wpk_shared + {a_bytes}, {desc_b}));
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
  for (int i = 0; i < {n // 2}; i++)
    c[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * {n} + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
}}
"""
    return Text(body, (1, 1, 1), (128, 1, 1), a_bytes + b_bytes, archs=HOPPER)


#: 96×64 = 96×128 times (64×128)ᵀ in fp16: TMA with 128-byte swizzle, two stages with full and empty barriers, wgmma.
#: One producer warp, one warpgroup of consumers; the second block of rows hangs over the edge.
PIPELINE = Text(
    """
extern "C" __global__ void __launch_bounds__(160)
k(const f16 *__restrict__ a, const f16 *__restrict__ b, float *__restrict__ c, char *workspace,
  const __grid_constant__ tensor_map map_a, const __grid_constant__ tensor_map map_b) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  mbarrier *full = (mbarrier *)(wpk_shared + 32768), *empty = full + 2;
  int t = threadIdx.x;
  if (t == 0) {
    for (int s = 0; s < 2; s++) mbar_init(full + s, 1), mbar_init(empty + s, 128);
  }
  __syncthreads();
  if (t >= 128) {
    if (t == 128)
      for (int i = 0; i < 4; i++) {
        unsigned char *stage = wpk_shared + i % 2 * 16384;
        if (i >= 2) mbar_wait(empty + i % 2, (i / 2 - 1) % 2);
        mbar_arrive_expect(full + i % 2, 16384);
        tma_load_2d(stage, &map_a, full + i % 2, i % 2 * 64, blockIdx.x * 64);
        tma_load_2d(stage + 8192, &map_b, full + i % 2, i % 2 * 64, 0);
      }
  } else {
    float d[32] = {};
    for (int i = 0; i < 4; i++) {
      unsigned char *stage = wpk_shared + i % 2 * 16384;
      mbar_wait(full + i % 2, i / 2 % 2);
      wgmma_fence();
      for (int k = 0; k < 4; k++)
        wgmma_m64k16_f16<64>(d, matrix_desc(stage + 32 * k, 16, 1024, 128), matrix_desc(stage + 8192 + 32 * k, 16, 1024, 128));
      wgmma_commit();
      wgmma_wait<0>();
      mbar_arrive(empty + i % 2);
    }
    for (int i = 0; i < 32; i++) {
      int row = blockIdx.x * 64 + t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
      if (row < 96) c[row * 64 + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
  }
}
""",
    (2, 1, 1), (160, 1, 1), shared_bytes=32768 + 32, archs=HOPPER,
    maps=(
        TensorMap(0, "float16", (128, 96), (256,), (64, 64), 128),
        TensorMap(1, "float16", (128, 64), (256,), (64, 64), 128),
    ),
)  # fmt: skip

#: a box of 8 rows of 32 floats, from (4, 2) of 40×10: what hangs over reads as zero; back out by a TMA store
TMA_BOX = Text(
    """
extern "C" __global__ void __launch_bounds__(64)
k(const float *__restrict__ a, float *__restrict__ b, float *__restrict__ c, char *workspace,
  const __grid_constant__ tensor_map from, const __grid_constant__ tensor_map to) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  float *box = (float *)wpk_shared;
  mbarrier *bar = (mbarrier *)(wpk_shared + 1024);
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_arrive_expect(bar, 1024);
    tma_load_2d(box, &from, bar, 12, 4);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  for (int i = threadIdx.x; i < 256; i += 64) b[i] = box[i];
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += 64) box[i] = i;
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_2d(&to, box, 12, 4);
    tma_store_commit();
    tma_store_wait<0>();
  }
  __syncthreads();
  box[threadIdx.x] = 0.0f;
}
""",
    (1, 1, 1), (64, 1, 1), shared_bytes=1024 + 8, archs=TMA,
    maps=(
        TensorMap(0, "float32", (40, 10), (160,), (32, 8)),
        TensorMap(2, "float32", (40, 10), (160,), (32, 8)),
    ),
)  # fmt: skip

#: the shared memory that a box of 5×6 pixels of 32 channels makes: each second pixel of an image of 7×9, from (-1, -1)
TMA_STEPS = Text(
    """
extern "C" __global__ void __launch_bounds__(64)
k(const float *__restrict__ a, float *__restrict__ b, char *workspace, const __grid_constant__ tensor_map from) {
  extern __shared__ __align__(1024) unsigned char wpk_shared[];
  mbarrier *bar = (mbarrier *)(wpk_shared + 4096);
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_arrive_expect(bar, 3840);
    tma_load_3d(wpk_shared, &from, bar, 0, -1, -1);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  for (int i = threadIdx.x; i < 960; i += 64) b[i] = ((float *)wpk_shared)[i];
}
""",
    (1, 1, 1), (64, 1, 1), shared_bytes=4096 + 8, archs=TMA,
    maps=(TensorMap(0, "float32", (32, 9, 7), (128, 1152), (32, 6, 5), 128, 0, (1, 2, 2)),),
)  # fmt: skip
