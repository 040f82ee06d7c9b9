/* The timing loop and the probes of the machine's two roofs: memory bandwidth and FMA rate. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "wpk_runtime.h"

int wpk_runtime_version(void) { return WPK_RUNTIME_VERSION; }

double wpk_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Timing */

typedef struct {
  wpk_fn fn;
  void *state, *workspace;
  void *const *args;
  const wpk_rt *rt;
  int n_args, n_sets, set, code;
} target;

static double timed(target *t, int calls) { /* seconds a call */
  double start = wpk_now();
  for (int i = 0; i < calls && !t->code; i++) {
    t->code = t->fn(t->state, t->args + (size_t)t->set * t->n_args, t->workspace, t->rt);
    t->set = t->set + 1 < t->n_sets ? t->set + 1 : 0;
  }
  return (wpk_now() - start) / calls;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Half-width of the median's interval, relative: a robust standard error from the interquartile range. */
static double spread(const double *samples, int n) {
  double sorted[n];
  memcpy(sorted, samples, sizeof sorted);
  qsort(sorted, n, sizeof *sorted, compare);
  double width = sorted[3 * n / 4] - sorted[n / 4];
  return sorted[n / 2] > 0 ? 0.93 * width / (sorted[n / 2] * sqrt(n)) : 0;
}

enum { HOPELESS_SAMPLES = 3, CHECK_SPREAD_EVERY = 4 };

static int finished(const wpk_timing *how, const double *samples, int n, double least, double start) {
  if (n >= how->max_samples || wpk_now() - start >= how->max_seconds) return 1;
  if (how->hopeless > 0 && n >= HOPELESS_SAMPLES && least > how->hopeless) return 1;
  if (n < how->min_samples || n % CHECK_SPREAD_EVERY) return 0;
  return spread(samples, n) <= how->target_spread;
}

static int sample(target *t, const wpk_timing *how, double *samples) {
  double start = wpk_now(), once = timed(t, 1), least = INFINITY;
  for (int i = 0; i < how->warmup && !t->code && wpk_now() - start < how->max_seconds / 4; i++) {
    double again = timed(t, 1);
    if (again < once) once = again;
  }
  int calls = once < how->min_sample ? (int)ceil(how->min_sample / (once > 1e-8 ? once : 1e-8)) : 1, n = 0;
  do {
    samples[n] = timed(t, calls);
    if (samples[n] < least) least = samples[n];
    n++;
  } while (!t->code && !finished(how, samples, n, least, start));
  return t->code ? -abs(t->code) : n;
}

int wpk_time(wpk_fn fn, void *state, void *const *args, int n_args, int n_sets, void *workspace, const wpk_rt *rt,
             const wpk_timing *how, double *samples) {
  target t = {fn, state, workspace, args, rt, n_args, n_sets, 0, 0};
  wpk_pool_assemble((wpk_pool *)rt);
  int n = sample(&t, how, samples);
  wpk_pool_dismiss((wpk_pool *)rt);
  return n;
}

/* Read bandwidth */

enum { HUGE_PAGE = 2 << 20 };
typedef int64_t words __attribute__((vector_size(64)));
typedef struct { const words *data; _Atomic int64_t sink; } reading;

static void touch_body(void *ctx, int64_t begin, int64_t end, int thread) {
  (void)thread;
  memset((char *)((reading *)ctx)->data + begin, 1, end - begin);
}

static void read_body(void *ctx, int64_t begin, int64_t end, int thread) {
  reading *r = ctx;
  const words *p = r->data + begin / (int64_t)sizeof(words), *stop = r->data + end / (int64_t)sizeof(words);
  words a = {0}, b = {0}, c = {0}, d = {0};
  (void)thread;
  for (; p + 4 <= stop; p += 4) a += p[0], b += p[1], c += p[2], d += p[3];
  for (; p < stop; p++) a += *p;
  a = (a + b) + (c + d);
  r->sink += a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

/* Huge pages where the system has them: the roof is what memory gives, not what address translation costs. */
static void *roomy_alloc(int64_t bytes) {
  void *memory = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
#ifdef MADV_HUGEPAGE
  if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

double wpk_read_bandwidth(const wpk_rt *rt, int64_t bytes, int repeats) {
  const int64_t grain = 1 << 20;
  bytes = (bytes + grain - 1) / grain * grain;
  reading r = {roomy_alloc(bytes), 0};
  if (!r.data) return 0;
  rt->parallel(rt, touch_body, &r, bytes, grain);
  double best = INFINITY;
  for (int i = 0; i < repeats; i++) {
    double start = wpk_now();
    rt->parallel(rt, read_body, &r, bytes, grain);
    best = fmin(best, wpk_now() - start);
  }
  free((void *)r.data);
  return bytes / best;
}

/* FMA peak: enough independent chains to cover latency × ports, few enough to stay in registers. */
#if defined(__AVX512F__)
enum { VECTOR = 64 };
#elif defined(__AVX2__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif
enum { CHAINS = 12, FMA_ROUNDS = 20000 };
typedef float lanes __attribute__((vector_size(VECTOR)));
typedef struct { volatile float factor, term, sink; } chains;

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static void fma_body(void *ctx, int64_t begin, int64_t end, int thread) {
  chains *c = ctx;
  lanes m = (lanes){0} + c->factor, t = (lanes){0} + c->term;
  (void)thread;
#define START(i) lanes v##i = t + (float)i;
#define FMA(i) v##i = v##i * m + t;
#define FOLD(i) t += v##i;
  EACH(START)
  for (int64_t k = begin; k < end; k++) { EACH(FMA) }
  EACH(FOLD)
  c->sink = t[0];
}

double wpk_fma_peak(const wpk_rt *rt, double seconds) {
  chains c = {0.5f, 1.0f, 0};
  wpk_pool_assemble((wpk_pool *)rt);
  double best = INFINITY, start = wpk_now();
  do {
    double began = wpk_now();
    rt->parallel(rt, fma_body, &c, (int64_t)rt->threads * FMA_ROUNDS, FMA_ROUNDS);
    best = fmin(best, wpk_now() - began);
  } while (wpk_now() - start < seconds);
  wpk_pool_dismiss((wpk_pool *)rt);
  return 2.0 * CHAINS * (VECTOR / 4) * FMA_ROUNDS * rt->threads / best;
}
