/* The ABI between the native runtime, generated kernels and library adapters. */
#ifndef WPK_H
#define WPK_H
#include <stdint.h>

/* Handed to every kernel. `parallel` calls body(ctx, begin, end, thread) over [0, n) in chunks that are multiples of
   `grain` (but the last), on `threads` threads, and returns when all are done. Bodies never nest parallel calls. */
typedef struct wpk_rt wpk_rt;
typedef void (*wpk_body)(void *ctx, int64_t begin, int64_t end, int thread);
struct wpk_rt {
  int threads;
  void (*parallel)(const wpk_rt *rt, wpk_body body, void *ctx, int64_t n, int64_t grain);
};

/* A generated kernel: args in parameter order (inputs, constants, outputs as the Workload orders them: all inputs, then
   outputs), 64-byte aligned workspace of shared_bytes + threads * thread_bytes (each a multiple of 64). `state` is NULL
   for generated kernels and the adapter's object for library calls. Returns 0, or a nonzero error code. */
typedef int (*wpk_fn)(void *state, void *const *args, void *workspace, const wpk_rt *rt);
#endif
