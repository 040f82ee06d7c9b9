/* What libwpkrt.so exports, besides the adapters: threads, the plan executor, the timing loop, machine probes.
   Called from Python through ctypes (wpk/runtime/native_api.py mirrors this file). */
#ifndef WPK_RUNTIME_H
#define WPK_RUNTIME_H
#include "wpk.h"

/* Version of this interface; Python refuses a library of another. */
enum { WPK_RUNTIME_VERSION = 1 };
int wpk_runtime_version(void);

/* pool.c: the caller and `threads - 1` workers. The pool is a wpk_rt (its first member). A pool serves one caller at a
   time; a second one that finds it busy runs its loop alone, with `thread` 0, so callers with workspaces of their own
   are right, only slower. Chunk c of a loop belongs first to thread c * threads / chunks, so the same part of a tensor
   stays in the same core's cache from step to step; idle threads steal. Chunk 0 is always the caller's, and
   with no more chunks than threads, chunks that wait for each other all run at once. `pin` binds thread t to the t-th
   allowed core. Returns NULL when out of memory. */
typedef struct wpk_pool wpk_pool;
wpk_pool *wpk_pool_create(int threads, int pin);
void wpk_pool_destroy(wpk_pool *pool);
const wpk_rt *wpk_pool_rt(wpk_pool *pool);
/* Workers expect work soon (spin long, wake now) or not (spin some tens of microseconds, then sleep). */
void wpk_pool_hot(wpk_pool *pool, int hot);
/* Puts the workers to sleep at once: before code that has threads of its own. */
void wpk_pool_quiet(wpk_pool *pool);
/* For timing: every thread at work and on its own core. A pool whose workers are pinned pins the caller too, until
   `dismiss`; then waits, for some milliseconds at most, until all workers are awake. */
void wpk_pool_assemble(wpk_pool *pool);
void wpk_pool_dismiss(wpk_pool *pool);

/* executor.c: a prepared plan. Argument k of step i is bases[arg_base[j]] + arg_offset[j] with j = arg_start[i] + k;
   arrays are copied. Runs steps first <= i < last; returns 0, or the code of the step that failed, its index in
   *failed. `seconds`, unless NULL, gets the time of each step run (indexed as the steps). */
typedef struct wpk_plan wpk_plan;
wpk_plan *wpk_plan_create(int64_t steps, const wpk_fn *fns, void *const *states, const int32_t *arg_start,
                          const int32_t *arg_base, const int64_t *arg_offset, const uint8_t *own_threads);
void wpk_plan_destroy(wpk_plan *plan);
int wpk_run(const wpk_plan *plan, wpk_pool *pool, void *const *bases, void *workspace, int64_t first, int64_t last,
            int64_t *failed, double *seconds);

/* An adapter like those of the libraries: desc = {nbytes}; args: source, destination. */
void *wpk_copy_create(const int64_t *desc, int64_t n, const char *library_path, int threads, char *error, int error_bytes);
int wpk_copy_run(void *state, void *const *args, void *workspace, const wpk_rt *rt);
void wpk_copy_destroy(void *state);

/* timing.c. Argument sets: args[set * n_args + k]; calls rotate through the sets, so that constants are cold when the
   sets are larger than the cache. A sample is the mean of as many calls as last `min_sample` seconds. Stops when
   `max_samples` are taken, `max_seconds` are over, the interval of the median is within `target_spread` of it (after
   `min_samples`), or the first samples all exceed `hopeless` seconds (0: never). Returns the number of samples, or
   minus the kernel's error code. */
typedef struct {
  int32_t warmup, min_samples, max_samples, reserved;
  double max_seconds, target_spread, min_sample, hopeless;
} wpk_timing;
int wpk_time(wpk_fn fn, void *state, void *const *args, int n_args, int n_sets, void *workspace, const wpk_rt *rt,
             const wpk_timing *how, double *samples);

/* Bytes a second that all threads of rt read from memory: best of `repeats` passes over `bytes` (beyond the caches). */
double wpk_read_bandwidth(const wpk_rt *rt, int64_t bytes, int repeats);
/* float32 operations a second of fused multiply-adds on all threads of rt, best of several runs in about `seconds`. */
double wpk_fma_peak(const wpk_rt *rt, double seconds);
double wpk_now(void); /* seconds, monotonic */
#endif
