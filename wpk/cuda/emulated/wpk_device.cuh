// CUDA as C++ for a CPU: the builtins generated kernels use and the functions of ../wpk_device.cuh, by their meaning.
// Small and free of other headers, for it is compiled with every kernel; the work is done in the runtime beside it.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
// a thread-local variable is static inside a function, and may be extern: one word for both uses of __shared__
#define __shared__ thread_local
#define WPK_DEVICE static inline __attribute__((always_inline))
#define WPK_LINE int line = __builtin_LINE()

// ---- the runtime ----

extern "C" {
[[gnu::const]] unsigned wpk_thread(int axis), wpk_block(int axis), wpk_block_size(int axis), wpk_grid_size(int axis);
void wpk_syncthreads(int line), wpk_syncwarp(uint32_t mask, int line);
int wpk_syncthreads_count(int, int line), wpk_syncthreads_and(int, int line), wpk_syncthreads_or(int, int line);
void wpk_named_sync(int id, int threads, int line), wpk_named_arrive(int id, int threads, int line);
uint32_t wpk_ballot(uint32_t mask, int predicate, int line);
uint64_t wpk_shuffle(int kind, uint32_t mask, uint64_t value, int operand, int width, int line);
void wpk_atomic(const void *address, int bytes, int line);
void wpk_cp_async(void *shared, const void *global, int bytes, bool valid, int line);
void wpk_cp_async_commit();
void wpk_cp_async_wait(int groups);
void wpk_ldmatrix(uint32_t *r, const void *row, int tiles, bool trans, int line);
void wpk_mma(int kind, void *d, const uint32_t *a, const uint32_t *b, int line);
void wpk_trap(int line);
float expf(float), exp2f(float), logf(float), log2f(float), log10f(float), log1pf(float), expm1f(float), powf(float, float),
    sinf(float), cosf(float), tanf(float), asinf(float), acosf(float), atanf(float), atan2f(float, float), sinhf(float),
    coshf(float), tanhf(float), asinhf(float), acoshf(float), atanhf(float), erff(float), erfcf(float), sqrtf(float),
    cbrtf(float), fabsf(float), floorf(float), ceilf(float), truncf(float), roundf(float), rintf(float), nearbyintf(float),
    fmodf(float, float), fminf(float, float), fmaxf(float, float), fmaf(float, float, float), copysignf(float, float);
double exp(double), log(double), sqrt(double), fabs(double), floor(double), ceil(double), pow(double, double), erf(double),
    tanh(double), fma(double, double, double);
float wpk_add_rounded(float, float), wpk_mul_rounded(float, float);
void *memcpy(void *, const void *, unsigned long);
}

// ---- builtin variables and types ----

struct uint3 { unsigned x, y, z; };
struct int3 { int x, y, z; };
struct float3 { float x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
#define WPK_VECTORS(TYPE, NAME)                                                                                         \
  struct alignas(2 * sizeof(TYPE)) NAME##2 { TYPE x, y; };                                                              \
  struct alignas(4 * sizeof(TYPE) > 16 ? 16 : 4 * sizeof(TYPE)) NAME##4 { TYPE x, y, z, w; };                           \
  WPK_DEVICE NAME##2 make_##NAME##2(TYPE x, TYPE y) { return {x, y}; }                                                  \
  WPK_DEVICE NAME##4 make_##NAME##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }
WPK_VECTORS(float, float)
WPK_VECTORS(int, int)
WPK_VECTORS(unsigned, uint)
WPK_VECTORS(short, short)
WPK_VECTORS(unsigned short, ushort)
WPK_VECTORS(signed char, char)
WPK_VECTORS(unsigned char, uchar)
WPK_VECTORS(double, double)
WPK_VECTORS(long long, longlong)
WPK_VECTORS(unsigned long long, ulonglong)
#undef WPK_VECTORS

#define WPK_AXES(FUNCTION) (uint3{FUNCTION(0), FUNCTION(1), FUNCTION(2)})
#define threadIdx WPK_AXES(wpk_thread)
#define blockIdx WPK_AXES(wpk_block)
#define blockDim WPK_AXES(wpk_block_size)
#define gridDim WPK_AXES(wpk_grid_size)
#define warpSize 32

// ---- synchronization ----

WPK_DEVICE void __syncthreads(WPK_LINE) { wpk_syncthreads(line); }
WPK_DEVICE int __syncthreads_count(int predicate, WPK_LINE) { return wpk_syncthreads_count(predicate, line); }
WPK_DEVICE int __syncthreads_and(int predicate, WPK_LINE) { return wpk_syncthreads_and(predicate, line); }
WPK_DEVICE int __syncthreads_or(int predicate, WPK_LINE) { return wpk_syncthreads_or(predicate, line); }
WPK_DEVICE void __syncwarp(unsigned mask = 0xffffffffu, WPK_LINE) { wpk_syncwarp(mask, line); }
WPK_DEVICE void named_barrier_sync(int id, int threads, WPK_LINE) { wpk_named_sync(id, threads, line); }
WPK_DEVICE void named_barrier_arrive(int id, int threads, WPK_LINE) { wpk_named_arrive(id, threads, line); }
WPK_DEVICE void __threadfence() {}
WPK_DEVICE void __threadfence_block() {}
WPK_DEVICE void __trap(WPK_LINE) { wpk_trap(line); }

WPK_DEVICE unsigned __ballot_sync(unsigned mask, int predicate, WPK_LINE) { return wpk_ballot(mask, predicate, line); }
WPK_DEVICE int __any_sync(unsigned mask, int predicate, WPK_LINE) { return wpk_ballot(mask, predicate, line) != 0; }
WPK_DEVICE int __all_sync(unsigned mask, int predicate, WPK_LINE) { return wpk_ballot(mask, !predicate, line) == 0; }
WPK_DEVICE unsigned __activemask() { return 0xffffffffu; }

#define WPK_SHUFFLE(NAME, KIND, OPERAND)                                                                                \
  template <class T> WPK_DEVICE T NAME(unsigned mask, T value, OPERAND operand, int width = 32, WPK_LINE) {             \
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");                                                     \
    uint64_t bits = 0;                                                                                                  \
    __builtin_memcpy(&bits, &value, sizeof(T));                                                                         \
    bits = wpk_shuffle(KIND, mask, bits, (int)operand, width, line);                                                    \
    __builtin_memcpy(&value, &bits, sizeof(T));                                                                         \
    return value;                                                                                                       \
  }
WPK_SHUFFLE(__shfl_sync, 0, int)
WPK_SHUFFLE(__shfl_up_sync, 1, unsigned)
WPK_SHUFFLE(__shfl_down_sync, 2, unsigned)
WPK_SHUFFLE(__shfl_xor_sync, 3, int)
#undef WPK_SHUFFLE

// fibers do not preempt each other: a plain operation is atomic. no_sanitize: the check is the runtime's, not that of a plain access
#define WPK_ATOMIC(NAME, NEXT)                                                                                          \
  template <class T>                                                                                                    \
  __attribute__((no_sanitize("thread"))) static T NAME(T *address, decltype(T()) value, WPK_LINE) {                     \
    wpk_atomic(address, sizeof(T), line);                                                                               \
    T old = *(volatile T *)address;                                                                                     \
    *(volatile T *)address = NEXT;                                                                                      \
    return old;                                                                                                         \
  }
WPK_ATOMIC(atomicAdd, old + value)
WPK_ATOMIC(atomicSub, old - value)
WPK_ATOMIC(atomicExch, value)
WPK_ATOMIC(atomicMax, old > value ? old : value)
WPK_ATOMIC(atomicMin, old < value ? old : value)
WPK_ATOMIC(atomicAnd, old & value)
WPK_ATOMIC(atomicOr, old | value)
WPK_ATOMIC(atomicXor, old ^ value)
WPK_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
WPK_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef WPK_ATOMIC
template <class T>
__attribute__((no_sanitize("thread"))) static T atomicCAS(T *address, decltype(T()) expected, decltype(T()) value, WPK_LINE) {
  wpk_atomic(address, sizeof(T), line);
  T old = *(volatile T *)address;
  if (old == expected) *(volatile T *)address = value;
  return old;
}

// ---- loads, bits, numbers ----

template <class T> WPK_DEVICE T __ldg(const T *address) { return *address; }
template <class T> WPK_DEVICE T __ldcg(const T *address) { return *address; }
template <class T> WPK_DEVICE T __ldcs(const T *address) { return *address; }
template <class T> WPK_DEVICE void __stcs(T *address, T value) { *address = value; }
template <class T> WPK_DEVICE void __stcg(T *address, T value) { *address = value; }

template <class To, class From> WPK_DEVICE To wpk_bits(From from) { return __builtin_bit_cast(To, from); }
WPK_DEVICE unsigned __float_as_uint(float x) { return wpk_bits<unsigned>(x); }
WPK_DEVICE int __float_as_int(float x) { return wpk_bits<int>(x); }
WPK_DEVICE float __uint_as_float(unsigned x) { return wpk_bits<float>(x); }
WPK_DEVICE float __int_as_float(int x) { return wpk_bits<float>(x); }
WPK_DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
WPK_DEVICE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
WPK_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
WPK_DEVICE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
WPK_DEVICE int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
  return c;
}
WPK_DEVICE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t all = a | (uint64_t)b << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    unsigned s = selector >> 4 * i & 15, byte = (unsigned)(all >> 8 * (s & 7)) & 255;
    result |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}

#define WPK_MINMAX(TYPE)                                                                                                \
  WPK_DEVICE TYPE min(TYPE a, TYPE b) { return b < a ? b : a; }                                                         \
  WPK_DEVICE TYPE max(TYPE a, TYPE b) { return a < b ? b : a; }
WPK_MINMAX(int)
WPK_MINMAX(unsigned)
WPK_MINMAX(long)
WPK_MINMAX(unsigned long)
WPK_MINMAX(long long)
WPK_MINMAX(unsigned long long)
#undef WPK_MINMAX
WPK_DEVICE float min(float a, float b) { return fminf(a, b); }
WPK_DEVICE float max(float a, float b) { return fmaxf(a, b); }
WPK_DEVICE unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
WPK_DEVICE unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
WPK_DEVICE unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
WPK_DEVICE unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
WPK_DEVICE int abs(int x) { return x < 0 ? -x : x; }
WPK_DEVICE float abs(float x) { return fabsf(x); }
#define WPK_OVERLOAD(NAME) WPK_DEVICE float NAME(float x) { return NAME##f(x); }
WPK_OVERLOAD(exp) WPK_OVERLOAD(log) WPK_OVERLOAD(sqrt) WPK_OVERLOAD(fabs) WPK_OVERLOAD(floor) WPK_OVERLOAD(ceil)
WPK_OVERLOAD(erf) WPK_OVERLOAD(tanh)
#undef WPK_OVERLOAD

// what the GPU approximates is exact here: a family's tolerance must cover the difference (2 ulp and more)
WPK_DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
WPK_DEVICE float __expf(float x) { return expf(x); }
WPK_DEVICE float __logf(float x) { return logf(x); }
WPK_DEVICE float __log2f(float x) { return log2f(x); }
WPK_DEVICE float __sinf(float x) { return sinf(x); }
WPK_DEVICE float __cosf(float x) { return cosf(x); }
WPK_DEVICE float __powf(float x, float y) { return powf(x, y); }
WPK_DEVICE float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
WPK_DEVICE float __fdividef(float a, float b) { return a / b; }
WPK_DEVICE float __fdiv_rn(float a, float b) { return a / b; }
WPK_DEVICE float __frcp_rn(float x) { return 1.0f / x; }
WPK_DEVICE float __fsqrt_rn(float x) { return sqrtf(x); }
WPK_DEVICE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
WPK_DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// never fused with what surrounds them
WPK_DEVICE float __fadd_rn(float a, float b) { return wpk_add_rounded(a, b); }
WPK_DEVICE float __fsub_rn(float a, float b) { return wpk_add_rounded(a, -b); }
WPK_DEVICE float __fmul_rn(float a, float b) { return wpk_mul_rounded(a, b); }
WPK_DEVICE int __float2int_rn(float x) { return (int)rintf(x); }
WPK_DEVICE int __float2int_rd(float x) { return (int)floorf(x); }
WPK_DEVICE int __float2int_ru(float x) { return (int)ceilf(x); }
WPK_DEVICE int __float2int_rz(float x) { return (int)x; }
WPK_DEVICE float __int2float_rn(int x) { return (float)x; }
WPK_DEVICE bool isnan(float x) { return x != x; }
WPK_DEVICE bool isinf(float x) { return __builtin_isinf(x); }
WPK_DEVICE bool isfinite(float x) { return __builtin_isfinite(x); }

// ---- numbers of 16 bits ----

#include "wpk_half.h"

WPK_DEVICE float to_float(f16 x) { return wpk_half_to_float(x.bits); }
WPK_DEVICE float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
WPK_DEVICE f16 to_f16(float x) { return {wpk_float_to_half(x)}; }
WPK_DEVICE bf16 to_bf16(float x) { return {wpk_float_to_bfloat(x)}; }
WPK_DEVICE unsigned to_tf32(float x) { return (__float_as_uint(x) + 0x1000u) & ~0x1fffu; }
WPK_DEVICE unsigned pack2(f16 lo, f16 hi) { return lo.bits | (unsigned)hi.bits << 16; }
WPK_DEVICE unsigned pack2(bf16 lo, bf16 hi) { return lo.bits | (unsigned)hi.bits << 16; }
WPK_DEVICE unsigned as_uint(float x) { return __float_as_uint(x); }
WPK_DEVICE float as_float(unsigned x) { return __uint_as_float(x); }

// ---- copies and matrices ----

template <int BYTES> WPK_DEVICE void cp_async(void *shared, const void *global, bool valid, WPK_LINE) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  wpk_cp_async(shared, global, BYTES, valid, line);
}
WPK_DEVICE void cp_async_commit() { wpk_cp_async_commit(); }
template <int N> WPK_DEVICE void cp_async_wait() { wpk_cp_async_wait(N); }

#define WPK_LDMATRIX(TILES)                                                                                             \
  WPK_DEVICE void ldmatrix_x##TILES(unsigned (&r)[TILES], const void *row, WPK_LINE) {                                  \
    wpk_ldmatrix(r, row, TILES, false, line);                                                                           \
  }                                                                                                                     \
  WPK_DEVICE void ldmatrix_x##TILES##_trans(unsigned (&r)[TILES], const void *row, WPK_LINE) {                          \
    wpk_ldmatrix(r, row, TILES, true, line);                                                                            \
  }
WPK_LDMATRIX(1) WPK_LDMATRIX(2) WPK_LDMATRIX(4)
#undef WPK_LDMATRIX

#define WPK_MMA(NAME, TYPE, KIND)                                                                                       \
  WPK_DEVICE void NAME(TYPE (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], WPK_LINE) {                        \
    wpk_mma(KIND, d, a, b, line);                                                                                       \
  }
WPK_MMA(mma_m16n8k8_tf32, float, 0)
WPK_MMA(mma_m16n8k16_f16, float, 1)
WPK_MMA(mma_m16n8k16_bf16, float, 2)
WPK_MMA(mma_m16n8k32_s8, int, 3)
#undef WPK_MMA

#if __CUDA_ARCH__ >= 900
#include "wpk_hopper.cuh"
#endif

// ---- how the runtime calls a kernel: each value of `arguments` points at one argument ----

template <class... A> struct wpk_call {
  template <class... Done> static void with(void (*kernel)(A...), void **, Done... done) requires(sizeof...(Done) == sizeof...(A)) {
    kernel(*done...);
  }
  template <class... Done> static void with(void (*kernel)(A...), void **arguments, Done... done)
    requires(sizeof...(Done) < sizeof...(A))
  {
    with(kernel, arguments, done..., (typename at<sizeof...(Done), A...>::type *)arguments[sizeof...(Done)]);
  }
  template <unsigned long I, class First, class... Rest> struct at { typedef typename at<I - 1, Rest...>::type type; };
  template <class First, class... Rest> struct at<0, First, Rest...> { typedef First type; };
};
template <auto kernel> struct wpk_launcher;
template <class... A, void (*kernel)(A...)> struct wpk_launcher<kernel> {
  __attribute__((no_sanitize("thread"))) static void run(void **arguments) { wpk_call<A...>::with(kernel, arguments); }
};
struct wpk_entry { const char *symbol; void (*kernel)(void **); };
