// What generated CUDA kernels may use beyond CUDA's own builtins, as inline PTX. Includes nothing: NVRTC comes without headers.
// emulated/wpk_device.cuh gives the same functions their meaning on a CPU. PTX ISA chapters are named where they matter.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define WPK_DEVICE static __device__ __forceinline__

// ---- numbers of 16 bits: storage only, arithmetic is done in float ----

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

WPK_DEVICE float to_float(f16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
WPK_DEVICE float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
WPK_DEVICE f16 to_f16(float x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
WPK_DEVICE bf16 to_bf16(float x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
// to nearest, ties away from zero: what tensor cores expect of tf32 operands
WPK_DEVICE unsigned to_tf32(float x) { unsigned y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }
WPK_DEVICE unsigned pack2(f16 lo, f16 hi) { return lo.bits | (unsigned)hi.bits << 16; }
WPK_DEVICE unsigned pack2(bf16 lo, bf16 hi) { return lo.bits | (unsigned)hi.bits << 16; }
WPK_DEVICE unsigned as_uint(float x) { return __float_as_uint(x); }
WPK_DEVICE float as_float(unsigned x) { return __uint_as_float(x); }
WPK_DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---- asynchronous copies global → shared (sm_80) ----

// BYTES is 4, 8 or 16, and both pointers are so aligned; when !valid the source is not read and zeros arrive
template <int BYTES> WPK_DEVICE void cp_async(void *shared, const void *global, bool valid) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
                 "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::
                 "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "n"(BYTES),
                 "r"(valid ? BYTES : 0) : "memory");
}
WPK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// until at most N of the calling thread's groups are under way; other threads see the data after a barrier
template <int N> WPK_DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- matrices of a warp (sm_80); registers as in "Matrix Fragments for mma" ----

// lane i gives the address of row i of the 8×8 tiles of 16-bit elements: lanes 0-7 tile 0, 8-15 tile 1, ...
#define WPK_LDMATRIX(NAME, TRANS)                                                                                       \
  WPK_DEVICE void ldmatrix_x1##NAME(unsigned (&r)[1], const void *row) {                                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" TRANS ".shared.b16 {%0}, [%1];"                                        \
                 : "=r"(r[0]) : "r"(shared_address(row)) : "memory");                                                   \
  }                                                                                                                     \
  WPK_DEVICE void ldmatrix_x2##NAME(unsigned (&r)[2], const void *row) {                                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" TRANS ".shared.b16 {%0, %1}, [%2];"                                    \
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");                                       \
  }                                                                                                                     \
  WPK_DEVICE void ldmatrix_x4##NAME(unsigned (&r)[4], const void *row) {                                                \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 {%0, %1, %2, %3}, [%4];"                            \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");               \
  }
WPK_LDMATRIX(, "")
WPK_LDMATRIX(_trans, ".trans")
#undef WPK_LDMATRIX

// d += a × b; a is 16×k by rows, b is k×8 by columns
#define WPK_MMA(NAME, TYPE, LETTER, SHAPE)                                                                              \
  WPK_DEVICE void NAME(TYPE (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {                                  \
    asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
                 : "+" LETTER(d[0]), "+" LETTER(d[1]), "+" LETTER(d[2]), "+" LETTER(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                   \
  }
WPK_MMA(mma_m16n8k8_tf32, float, "f", "m16n8k8.row.col.f32.tf32.tf32.f32")
WPK_MMA(mma_m16n8k16_f16, float, "f", "m16n8k16.row.col.f32.f16.f16.f32")
WPK_MMA(mma_m16n8k16_bf16, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
WPK_MMA(mma_m16n8k32_s8, int, "r", "m16n8k32.row.col.s32.s8.s8.s32")
#undef WPK_MMA

// ---- barriers of part of a block; id 1..15, threads a multiple of 32 ----

WPK_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
WPK_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#if __CUDA_ARCH__ >= 900
#include "wpk_hopper.cuh"
#endif
#undef WPK_DEVICE
