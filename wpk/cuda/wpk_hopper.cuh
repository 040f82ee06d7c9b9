// sm_90 and later: mbarriers and tensor memory access (TMA). sm_90a alone: wgmma. Included by wpk_device.cuh.
#pragma once

// ---- mbarrier: a phase ends when `count` arrivals and the expected bytes have come; phases alternate in parity 0, 1, 0 ... ----

struct __align__(8) mbarrier { uint64_t state; };

// by one thread; a block barrier must follow before others use it
WPK_DEVICE void mbar_init(mbarrier *bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
WPK_DEVICE void mbar_arrive(mbarrier *bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
WPK_DEVICE void mbar_arrive_expect(mbarrier *bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
// until the phase of this parity has ended; returns at once when it is over already
WPK_DEVICE void mbar_wait(mbarrier *bar, int parity) {
  asm volatile("{\n.reg .pred done;\n"
               "wait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra wait;\n}" ::"r"(shared_address(bar)), "r"(parity) : "memory");
}

// ---- TMA: boxes of a tensor, described by a tensor map (cuTensorMapEncodeTiled), to and from shared memory ----

struct __align__(128) tensor_map { uint64_t words[16]; };

#define WPK_TMA(RANK, ARGUMENTS, LIST, REGISTERS)                                                                       \
  WPK_DEVICE void tma_load_##RANK##d(void *shared, const void *map, mbarrier *bar, ARGUMENTS) {                         \
    asm volatile("cp.async.bulk.tensor." #RANK "d.shared::cluster.global.mbarrier::complete_tx::bytes "                 \
                 "[%0], [%1, {" REGISTERS "}], [%2];"                                                                   \
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(bar)), LIST : "memory");                   \
  }                                                                                                                     \
  WPK_DEVICE void tma_store_##RANK##d(const void *map, const void *shared, ARGUMENTS) {                                 \
    int unused = 0;                                                                                                     \
    asm volatile("cp.async.bulk.tensor." #RANK "d.global.shared::cta.bulk_group [%1, {" REGISTERS "}], [%0];"           \
                 ::"r"(shared_address(shared)), "l"(map), "r"(unused), LIST : "memory");                                \
  }
#define WPK_AND ,
WPK_TMA(2, int c0 WPK_AND int c1, "r"(c0) WPK_AND "r"(c1), "%3, %4")
WPK_TMA(3, int c0 WPK_AND int c1 WPK_AND int c2, "r"(c0) WPK_AND "r"(c1) WPK_AND "r"(c2), "%3, %4, %5")
WPK_TMA(4, int c0 WPK_AND int c1 WPK_AND int c2 WPK_AND int c3,
        "r"(c0) WPK_AND "r"(c1) WPK_AND "r"(c2) WPK_AND "r"(c3), "%3, %4, %5, %6")
WPK_TMA(5, int c0 WPK_AND int c1 WPK_AND int c2 WPK_AND int c3 WPK_AND int c4,
        "r"(c0) WPK_AND "r"(c1) WPK_AND "r"(c2) WPK_AND "r"(c3) WPK_AND "r"(c4), "%3, %4, %5, %6, %7")
#undef WPK_AND
#undef WPK_TMA
WPK_DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// until at most N of the calling thread's groups of stores still read shared memory
template <int N> WPK_DEVICE void tma_store_wait() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }

// between what this thread wrote to shared memory and wgmma or TMA reading it; then a barrier
WPK_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// ---- wgmma: 64×N += 64×k times k×N by four warps, operands in shared memory ----

template <int REGISTERS> WPK_DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> WPK_DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// keeps the compiler from moving or copying accumulators across; around a series of wgmma, or it waits after each of them
template <int COUNT> WPK_DEVICE void wgmma_hold(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// before the first wgmma, and whenever accumulators were touched since the last
WPK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
WPK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> WPK_DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// "Matrix Descriptor Format"; offsets in bytes, swizzle 0, 32, 64 or 128
WPK_DEVICE uint64_t matrix_desc(const void *shared, int leading_bytes, int stride_bytes, int swizzle) {
  uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return (uint64_t)((shared_address(shared) & 0x3ffff) >> 4) | (uint64_t)((leading_bytes & 0x3ffff) >> 4) << 16 |
         (uint64_t)((stride_bytes & 0x3ffff) >> 4) << 32 | mode << 62;
}

// %0 … of the first n accumulators, and the operands they stand for
#define WPK_S4 "%0, %1, %2, %3"
#define WPK_D4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define WPK_S8 WPK_S4 ", %4, %5, %6, %7"
#define WPK_D8 WPK_D4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define WPK_S12 WPK_S8 ", %8, %9, %10, %11"
#define WPK_D12 WPK_D8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define WPK_S16 WPK_S12 ", %12, %13, %14, %15"
#define WPK_D16 WPK_D12, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define WPK_S20 WPK_S16 ", %16, %17, %18, %19"
#define WPK_D20 WPK_D16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define WPK_S24 WPK_S20 ", %20, %21, %22, %23"
#define WPK_D24 WPK_D20, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define WPK_S28 WPK_S24 ", %24, %25, %26, %27"
#define WPK_D28 WPK_D24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define WPK_S32 WPK_S28 ", %28, %29, %30, %31"
#define WPK_D32 WPK_D28, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define WPK_S36 WPK_S32 ", %32, %33, %34, %35"
#define WPK_D36 WPK_D32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define WPK_S40 WPK_S36 ", %36, %37, %38, %39"
#define WPK_D40 WPK_D36, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define WPK_S44 WPK_S40 ", %40, %41, %42, %43"
#define WPK_D44 WPK_D40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define WPK_S48 WPK_S44 ", %44, %45, %46, %47"
#define WPK_D48 WPK_D44, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define WPK_S52 WPK_S48 ", %48, %49, %50, %51"
#define WPK_D52 WPK_D48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define WPK_S56 WPK_S52 ", %52, %53, %54, %55"
#define WPK_D56 WPK_D52, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define WPK_S60 WPK_S56 ", %56, %57, %58, %59"
#define WPK_D60 WPK_D56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define WPK_S64 WPK_S60 ", %60, %61, %62, %63"
#define WPK_D64 WPK_D60, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define WPK_S68 WPK_S64 ", %64, %65, %66, %67"
#define WPK_D68 WPK_D64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define WPK_S72 WPK_S68 ", %68, %69, %70, %71"
#define WPK_D72 WPK_D68, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define WPK_S76 WPK_S72 ", %72, %73, %74, %75"
#define WPK_D76 WPK_D72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define WPK_S80 WPK_S76 ", %76, %77, %78, %79"
#define WPK_D80 WPK_D76, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define WPK_S84 WPK_S80 ", %80, %81, %82, %83"
#define WPK_D84 WPK_D80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define WPK_S88 WPK_S84 ", %84, %85, %86, %87"
#define WPK_D88 WPK_D84, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define WPK_S92 WPK_S88 ", %88, %89, %90, %91"
#define WPK_D92 WPK_D88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define WPK_S96 WPK_S92 ", %92, %93, %94, %95"
#define WPK_D96 WPK_D92, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define WPK_S100 WPK_S96 ", %96, %97, %98, %99"
#define WPK_D100 WPK_D96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define WPK_S104 WPK_S100 ", %100, %101, %102, %103"
#define WPK_D104 WPK_D100, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define WPK_S108 WPK_S104 ", %104, %105, %106, %107"
#define WPK_D108 WPK_D104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define WPK_S112 WPK_S108 ", %108, %109, %110, %111"
#define WPK_D112 WPK_D108, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define WPK_S116 WPK_S112 ", %112, %113, %114, %115"
#define WPK_D116 WPK_D112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define WPK_S120 WPK_S116 ", %116, %117, %118, %119"
#define WPK_D120 WPK_D116, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define WPK_S124 WPK_S120 ", %120, %121, %122, %123"
#define WPK_D124 WPK_D120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define WPK_S128 WPK_S124 ", %124, %125, %126, %127"
#define WPK_D128 WPK_D124, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

// scale-d is a predicate: without `accumulate`, d is written, not read. TA, TB: a is m-major, b is n-major (16-bit types).
#define WPK_WGMMA(N, H, A, B, P, X, Y, TYPE, SUFFIX, LIST)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                           \
               "wgmma.mma_async.sync.aligned.m64n" #N TYPE " {" WPK_S##H "}, " A ", " B ", p, 1, 1" SUFFIX ";\n}"       \
               : WPK_D##H : "l"(a), "l"(b), "r"((int)accumulate) LIST)
#define WPK_MAJORS , "n"(TA), "n"(TB)
#define WPK_WGMMA_ALL(TYPE, ALL)                                                                                        \
  if constexpr (N == 8) ALL(8, 4, "%4", "%5", "%6", "%7", "%8", TYPE);                                                  \
  else if constexpr (N == 16) ALL(16, 8, "%8", "%9", "%10", "%11", "%12", TYPE);                                        \
  else if constexpr (N == 24) ALL(24, 12, "%12", "%13", "%14", "%15", "%16", TYPE);                                     \
  else if constexpr (N == 32) ALL(32, 16, "%16", "%17", "%18", "%19", "%20", TYPE);                                     \
  else if constexpr (N == 40) ALL(40, 20, "%20", "%21", "%22", "%23", "%24", TYPE);                                     \
  else if constexpr (N == 48) ALL(48, 24, "%24", "%25", "%26", "%27", "%28", TYPE);                                     \
  else if constexpr (N == 56) ALL(56, 28, "%28", "%29", "%30", "%31", "%32", TYPE);                                     \
  else if constexpr (N == 64) ALL(64, 32, "%32", "%33", "%34", "%35", "%36", TYPE);                                     \
  else if constexpr (N == 80) ALL(80, 40, "%40", "%41", "%42", "%43", "%44", TYPE);                                     \
  else if constexpr (N == 96) ALL(96, 48, "%48", "%49", "%50", "%51", "%52", TYPE);                                     \
  else if constexpr (N == 112) ALL(112, 56, "%56", "%57", "%58", "%59", "%60", TYPE);                                   \
  else if constexpr (N == 128) ALL(128, 64, "%64", "%65", "%66", "%67", "%68", TYPE);                                   \
  else if constexpr (N == 144) ALL(144, 72, "%72", "%73", "%74", "%75", "%76", TYPE);                                   \
  else if constexpr (N == 160) ALL(160, 80, "%80", "%81", "%82", "%83", "%84", TYPE);                                   \
  else if constexpr (N == 176) ALL(176, 88, "%88", "%89", "%90", "%91", "%92", TYPE);                                   \
  else if constexpr (N == 192) ALL(192, 96, "%96", "%97", "%98", "%99", "%100", TYPE);                                  \
  else if constexpr (N == 208) ALL(208, 104, "%104", "%105", "%106", "%107", "%108", TYPE);                             \
  else if constexpr (N == 224) ALL(224, 112, "%112", "%113", "%114", "%115", "%116", TYPE);                             \
  else if constexpr (N == 240) ALL(240, 120, "%120", "%121", "%122", "%123", "%124", TYPE);                             \
  else if constexpr (N == 256) ALL(256, 128, "%128", "%129", "%130", "%131", "%132", TYPE);                             \
  else static_assert(N < 0, "no wgmma of this N");
#define WPK_WGMMA_16(N, H, A, B, P, X, Y, TYPE) \
  WPK_WGMMA(N, H, A, B, P, X, Y, TYPE, ", " X ", " Y, WPK_MAJORS)
#define WPK_WGMMA_32(N, H, A, B, P, X, Y, TYPE) WPK_WGMMA(N, H, A, B, P, X, Y, TYPE, "", )

template <int N, int TA = 0, int TB = 0>
WPK_DEVICE void wgmma_m64k16_f16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  WPK_WGMMA_ALL("k16.f32.f16.f16", WPK_WGMMA_16)
}
template <int N, int TA = 0, int TB = 0>
WPK_DEVICE void wgmma_m64k16_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  WPK_WGMMA_ALL("k16.f32.bf16.bf16", WPK_WGMMA_16)
}
template <int N> WPK_DEVICE void wgmma_m64k8_tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  WPK_WGMMA_ALL("k8.f32.tf32.tf32", WPK_WGMMA_32)
}

#endif
