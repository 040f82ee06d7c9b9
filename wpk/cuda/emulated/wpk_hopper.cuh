// sm_90 and later: mbarriers, TMA; sm_90a alone: wgmma. The functions of ../wpk_hopper.cuh, by their meaning.
#pragma once

extern "C" {
void wpk_mbar_init(void *bar, int count, int line), wpk_mbar_arrive(void *bar, int bytes, int line);
void wpk_mbar_wait(void *bar, int parity, int line);
void wpk_tma_load(void *shared, const void *map, void *bar, const int *at, int rank, int line);
void wpk_tma_store(const void *map, void *shared, const int *at, int rank, int line);
void wpk_tma_store_commit(), wpk_tma_store_wait(int groups), wpk_fence_async();
void wpk_wgmma(int kind, float *d, int n, uint64_t a, uint64_t b, bool accumulate, bool a_major_m, bool b_major_n, int line);
void wpk_wgmma_fence(), wpk_wgmma_commit(), wpk_wgmma_wait(int groups);
uint64_t wpk_matrix_desc(const void *shared, int leading, int stride, int swizzle, int line);
}

struct alignas(8) mbarrier { uint64_t state; };
struct alignas(128) tensor_map { uint64_t words[16]; };

WPK_DEVICE void mbar_init(mbarrier *bar, int count, WPK_LINE) { wpk_mbar_init(bar, count, line); }
WPK_DEVICE void mbar_arrive(mbarrier *bar, WPK_LINE) { wpk_mbar_arrive(bar, 0, line); }
WPK_DEVICE void mbar_arrive_expect(mbarrier *bar, int bytes, WPK_LINE) { wpk_mbar_arrive(bar, bytes, line); }
WPK_DEVICE void mbar_wait(mbarrier *bar, int parity, WPK_LINE) { wpk_mbar_wait(bar, parity, line); }

#define WPK_TMA(RANK, COORDINATES, LIST)                                                                                \
  WPK_DEVICE void tma_load_##RANK##d(void *shared, const void *map, mbarrier *bar, COORDINATES, WPK_LINE) {             \
    int at[] = {LIST};                                                                                                  \
    wpk_tma_load(shared, map, bar, at, RANK, line);                                                                     \
  }                                                                                                                     \
  WPK_DEVICE void tma_store_##RANK##d(const void *map, const void *shared, COORDINATES, WPK_LINE) {                     \
    int at[] = {LIST};                                                                                                  \
    wpk_tma_store(map, (void *)shared, at, RANK, line);                                                                 \
  }
#define WPK_AND ,
WPK_TMA(2, int c0 WPK_AND int c1, c0 WPK_AND c1)
WPK_TMA(3, int c0 WPK_AND int c1 WPK_AND int c2, c0 WPK_AND c1 WPK_AND c2)
WPK_TMA(4, int c0 WPK_AND int c1 WPK_AND int c2 WPK_AND int c3, c0 WPK_AND c1 WPK_AND c2 WPK_AND c3)
WPK_TMA(5, int c0 WPK_AND int c1 WPK_AND int c2 WPK_AND int c3 WPK_AND int c4, c0 WPK_AND c1 WPK_AND c2 WPK_AND c3 WPK_AND c4)
#undef WPK_AND
#undef WPK_TMA
WPK_DEVICE void tma_store_commit() { wpk_tma_store_commit(); }
template <int N> WPK_DEVICE void tma_store_wait() { wpk_tma_store_wait(N); }
WPK_DEVICE void fence_async() { wpk_fence_async(); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int REGISTERS> WPK_DEVICE void registers_raise() {}
template <int REGISTERS> WPK_DEVICE void registers_lower() {}
template <int COUNT> WPK_DEVICE void wgmma_hold(float (&)[COUNT]) {}
WPK_DEVICE void wgmma_fence() { wpk_wgmma_fence(); }
WPK_DEVICE void wgmma_commit() { wpk_wgmma_commit(); }
template <int N> WPK_DEVICE void wgmma_wait() { wpk_wgmma_wait(N); }
WPK_DEVICE uint64_t matrix_desc(const void *shared, int leading_bytes, int stride_bytes, int swizzle, WPK_LINE) {
  return wpk_matrix_desc(shared, leading_bytes, stride_bytes, swizzle, line);
}

template <int N, int TA = 0, int TB = 0>
WPK_DEVICE void wgmma_m64k16_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, WPK_LINE) {
  static_assert(N % (N <= 64 ? 8 : 16) == 0 && N <= 256, "no wgmma of this N");
  wpk_wgmma(1, d, N, a, b, accumulate, TA, TB, line);
}
template <int N, int TA = 0, int TB = 0>
WPK_DEVICE void wgmma_m64k16_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, WPK_LINE) {
  static_assert(N % (N <= 64 ? 8 : 16) == 0 && N <= 256, "no wgmma of this N");
  wpk_wgmma(2, d, N, a, b, accumulate, TA, TB, line);
}
template <int N> WPK_DEVICE void wgmma_m64k8_tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, WPK_LINE) {
  static_assert(N % (N <= 64 ? 8 : 16) == 0 && N <= 256, "no wgmma of this N");
  wpk_wgmma(0, d, N, a, b, accumulate, false, false, line);
}

#endif
