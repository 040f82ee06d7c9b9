/* The thread pool. A loop is announced by a new epoch; workers join while it is open; the caller works too, closes the
   loop when no chunk is left, and waits only for those that joined. So a worker that the system has put aside delays
   nothing, and a pool whose threads are gone (after fork) still computes. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "wpk_runtime.h"

/* Spinning bridges the serial gaps between the loops of one inference; longer gaps are better slept through. */
static const double COLD_SPIN = 60e-6, HOT_SPIN = 2e-3, QUIET_SPIN = 0, ASSEMBLY = 5e-3;
enum { CHECK_EVERY = 64, YIELD_AFTER = 4096, CHUNKS_A_CLAIM = 64, OPEN = 1u << 31, LINE = 64 };

typedef struct { /* one thread's chunks: next to claim, and the end */
  _Alignas(LINE) _Atomic int64_t next;
  int64_t end;
} share;

typedef struct { wpk_pool *pool; int index; } seat;

struct wpk_pool {
  wpk_rt rt;
  wpk_body body;
  void *ctx;
  int64_t n, grain, step; /* step: chunks a claim takes */
  share *shares;
  pthread_t *workers;
  seat *seats;
  int started, pin, held;
#ifdef __linux__
  cpu_set_t before; /* of the caller, while it is held */
#endif
  _Alignas(LINE) _Atomic uint64_t epoch; /* workers watch this */
  _Alignas(LINE) _Atomic uint32_t members; /* OPEN, plus the workers inside the loop */
  _Alignas(LINE) _Atomic int busy, hot, quiet, stop;
  _Atomic int sleepers;
  pthread_mutex_t lock;
  pthread_cond_t wake;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void run_chunks(wpk_pool *p, const share *s, int64_t chunk, int thread) {
  int64_t last = chunk + p->step < s->end ? chunk + p->step : s->end;
  int64_t stop = last * p->grain < p->n ? last * p->grain : p->n;
  p->body(p->ctx, chunk * p->grain, stop, thread);
}

static void work_on(wpk_pool *p, share *s, int thread) {
  for (;;) {
    int64_t chunk = atomic_fetch_add_explicit(&s->next, p->step, memory_order_relaxed);
    if (chunk >= s->end) return;
    run_chunks(p, s, chunk, thread);
  }
}

static void work(wpk_pool *p, int thread) {
  for (int i = 0; i < p->rt.threads; i++) {
    share *s = &p->shares[(thread + i) % p->rt.threads];
    if (i == 0 || atomic_load_explicit(&s->next, memory_order_relaxed) < s->end) work_on(p, s, thread);
  }
}

/* Worker */

static int join_loop(wpk_pool *p) {
  uint32_t seen = atomic_load(&p->members);
  while (seen & OPEN)
    if (atomic_compare_exchange_weak(&p->members, &seen, seen + 1)) return 1;
  return 0;
}

static int news(wpk_pool *p, uint64_t seen) { return atomic_load(&p->epoch) != seen || atomic_load(&p->stop); }

/* Sleeps until a loop is announced, or, with `or_hot`, until work is expected soon. */
static void sleep_until_news(wpk_pool *p, uint64_t seen, int or_hot) {
  pthread_mutex_lock(&p->lock);
  atomic_fetch_add(&p->sleepers, 1);
  while (!news(p, seen) && !(or_hot && atomic_load(&p->hot) && !atomic_load(&p->quiet)))
    pthread_cond_wait(&p->wake, &p->lock);
  atomic_fetch_sub(&p->sleepers, 1);
  pthread_mutex_unlock(&p->lock);
}

static double patience(wpk_pool *p) {
  if (atomic_load_explicit(&p->quiet, memory_order_relaxed)) return QUIET_SPIN;
  return atomic_load_explicit(&p->hot, memory_order_relaxed) ? HOT_SPIN : COLD_SPIN;
}

static void await_news(wpk_pool *p, uint64_t seen) {
  double start = wpk_now();
  for (uint32_t spins = 1; !news(p, seen); spins++) {
    relax();
    if (spins % CHECK_EVERY && !atomic_load_explicit(&p->quiet, memory_order_relaxed)) continue;
    if (wpk_now() - start < patience(p)) continue;
    int hot = atomic_load(&p->hot) && !atomic_load(&p->quiet); /* spun for long inside a run: a long serial step */
    sleep_until_news(p, seen, !hot);
    start = wpk_now();
  }
}

/* On systems that have no affinity, nothing is pinned. */
static void pin_thread(int index) {
#ifdef __linux__
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  int count = CPU_COUNT(&allowed), wanted = count ? index % count : 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) {
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      pthread_setaffinity_np(pthread_self(), sizeof one, &one);
      return;
    }
#else
  (void)index;
#endif
}

static void *worker(void *argument) {
  seat *s = argument;
  wpk_pool *p = s->pool;
  uint64_t seen = 0;
  if (p->pin) pin_thread(s->index);
  for (;;) {
    await_news(p, seen);
    if (atomic_load(&p->stop)) return NULL;
    seen = atomic_load(&p->epoch);
    if (!join_loop(p)) continue;
    work(p, s->index);
    atomic_fetch_sub(&p->members, 1);
  }
}

/* Caller */

static void wake_sleepers(wpk_pool *p) {
  if (!atomic_load(&p->sleepers)) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

static int64_t first_chunk(int64_t chunks, int thread, int threads) { return (chunks * thread + threads - 1) / threads; }

static void announce(wpk_pool *p, wpk_body body, void *ctx, int64_t n, int64_t grain, int64_t chunks) {
  int threads = p->rt.threads;
  int64_t step = chunks / ((int64_t)threads * CHUNKS_A_CLAIM);
  p->body = body, p->ctx = ctx, p->n = n, p->grain = grain, p->step = step > 1 ? step : 1;
  for (int t = 0; t < threads; t++) {
    p->shares[t].end = first_chunk(chunks, t + 1, threads);
    atomic_store_explicit(&p->shares[t].next, first_chunk(chunks, t, threads), memory_order_relaxed);
  }
  atomic_store_explicit(&p->shares[0].next, p->step, memory_order_relaxed); /* the caller's first, whoever is quick */
  atomic_store(&p->quiet, 0);
  atomic_store(&p->members, OPEN);
  atomic_fetch_add(&p->epoch, 1);
  wake_sleepers(p);
}

static void await_members(wpk_pool *p) {
  atomic_fetch_and(&p->members, ~OPEN);
  for (int spins = 0; atomic_load_explicit(&p->members, memory_order_acquire); spins++) {
    relax();
    if (spins > YIELD_AFTER) sched_yield();
  }
}

static void parallel(const wpk_rt *rt, wpk_body body, void *ctx, int64_t n, int64_t grain) {
  wpk_pool *p = (wpk_pool *)rt;
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  int64_t chunks = (n + grain - 1) / grain;
  if (chunks == 1 || rt->threads == 1 || atomic_exchange(&p->busy, 1)) return body(ctx, 0, n, 0);
  announce(p, body, ctx, n, grain, chunks);
  run_chunks(p, &p->shares[0], 0, 0);
  work(p, 0);
  await_members(p);
  atomic_store(&p->busy, 0);
}

void wpk_pool_hot(wpk_pool *p, int hot) {
  if (p->rt.threads == 1) return;
  atomic_store(&p->hot, hot);
  if (hot) atomic_store(&p->quiet, 0), wake_sleepers(p);
}

void wpk_pool_quiet(wpk_pool *p) { atomic_store(&p->quiet, 1); }

/* The system wakes a thread where the one that woke it runs, and moves it apart after milliseconds: longer than many
   kernels are timed for. */
void wpk_pool_assemble(wpk_pool *p) {
  if (p->rt.threads == 1) return;
#ifdef __linux__
  p->held = p->pin && !sched_getaffinity(0, sizeof p->before, &p->before);
  if (p->held) pin_thread(0);
#endif
  wpk_pool_hot(p, 1);
  for (double start = wpk_now(); atomic_load(&p->sleepers) && wpk_now() - start < ASSEMBLY;) relax();
}

void wpk_pool_dismiss(wpk_pool *p) {
  wpk_pool_hot(p, 0);
#ifdef __linux__
  if (p->held) pthread_setaffinity_np(pthread_self(), sizeof p->before, &p->before);
#endif
  p->held = 0;
}

const wpk_rt *wpk_pool_rt(wpk_pool *p) { return &p->rt; }

/* Life */

static void *aligned_zeros(size_t bytes) {
  size_t rounded = (bytes + LINE - 1) / LINE * LINE;
  void *memory = aligned_alloc(LINE, rounded);
  return memory ? memset(memory, 0, rounded) : NULL;
}

static void release(wpk_pool *p) {
  if (!p) return;
  pthread_mutex_destroy(&p->lock), pthread_cond_destroy(&p->wake);
  free(p->shares), free(p->workers), free(p->seats), free(p);
}

/* When the system gives fewer threads than wanted, the pool is as large as what it gives. */
static void start_workers(wpk_pool *p, int threads) {
  for (int i = 1; i < threads; i++) {
    p->seats[i] = (seat){p, i};
    if (pthread_create(&p->workers[p->started], NULL, worker, &p->seats[i])) break;
    p->started++;
  }
  p->rt.threads = p->started + 1;
}

wpk_pool *wpk_pool_create(int threads, int pin) {
  wpk_pool *p = aligned_zeros(sizeof *p);
  if (!p) return NULL;
  threads = threads < 1 ? 1 : threads;
  p->rt = (wpk_rt){threads, parallel};
  p->pin = pin;
  pthread_mutex_init(&p->lock, NULL), pthread_cond_init(&p->wake, NULL);
  p->shares = aligned_zeros(threads * sizeof *p->shares);
  p->workers = calloc(threads, sizeof *p->workers);
  p->seats = calloc(threads, sizeof *p->seats);
  if (!p->shares || !p->workers || !p->seats) return release(p), NULL;
  start_workers(p, threads);
  return p;
}

void wpk_pool_destroy(wpk_pool *p) {
  if (!p) return;
  atomic_store(&p->stop, 1);
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
  for (int i = 0; i < p->started; i++) pthread_join(p->workers[i], NULL);
  release(p);
}
