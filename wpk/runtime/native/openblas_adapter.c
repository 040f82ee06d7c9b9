/* OpenBLAS behind the ABI of wpk.h: batches of row-major single-precision products, then bias and relu in a loop of our own.
   The library is opened at run time. Its jobs run on wpk's pool through its threading callback.

   A call is described by integers (`desc`), written by wpk/providers/openblas.py:

     version, m, n, k, trans_a, trans_b, batch, stride_a, stride_b, stride_c (floats between batches),
     position of a, b, c, bias among the args (bias: -1 for none), bias_kind (0 none, 1 one for each column, 2 one for each row), relu */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wpk.h"

enum { VERSION = 1, ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112, EPILOGUE_GRAIN = 1 << 14, MAX_HELPERS = 256 };
enum { BIAS_NONE, BIAS_COLUMN, BIAS_ROW };

typedef void (*dojob_fn)(int thread, void *jobs, int data);

typedef struct {
  void (*sgemm)(int, int, int, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float, float *, int64_t);
  void (*set_num_threads)(int);
  void (*set_callback)(void (*)(int, dojob_fn, int, size_t, void *, int));
} library;

typedef struct {
  const library *lib;
  int64_t m, n, k, trans_a, trans_b, batch, stride_a, stride_b, stride_c, a, b, c, bias, bias_kind, relu;
} state;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static library *opened;
static int current_threads;
static __thread const wpk_rt *current_rt;

/* Threads: the jobs of one product wait for each other, so all must run at once. */

typedef struct { dojob_fn dojob; char *jobs; size_t size; int data; } work;
typedef struct { const work *w; int64_t job; } helper;

static void do_job(const work *w, int64_t job) { w->dojob((int)job, w->jobs + job * w->size, w->data); }

static void *help(void *argument) {
  const helper *h = argument;
  do_job(h->w, h->job);
  return NULL;
}

/* The pool is busy or has too few threads: threads for this product alone. */
static void with_helpers(const work *w, int64_t begin, int64_t end) {
  pthread_t threads[MAX_HELPERS];
  helper helpers[MAX_HELPERS];
  int64_t n = end - begin;
  for (int64_t i = 1; i < n; i++) {
    helpers[i] = (helper){w, begin + i};
    if (pthread_create(&threads[i], NULL, help, &helpers[i])) abort(); /* the other jobs would wait for ever */
  }
  do_job(w, begin);
  for (int64_t i = 1; i < n; i++) pthread_join(threads[i], NULL);
}

static void jobs_body(void *ctx, int64_t begin, int64_t end, int thread) {
  (void)thread;
  with_helpers(ctx, begin, end);
}

static void callback(int sync, dojob_fn dojob, int jobs, size_t size, void *data, int extra) {
  work w = {dojob, data, size, extra};
  (void)sync;
  if (current_rt && jobs <= current_rt->threads) current_rt->parallel(current_rt, jobs_body, &w, jobs, 1);
  else with_helpers(&w, 0, jobs);
}

static int resolve(library *lib, void *handle) {
  *(void **)&lib->sgemm = dlsym(handle, "scipy_cblas_sgemm64_");
  *(void **)&lib->set_num_threads = dlsym(handle, "scipy_openblas_set_num_threads64_");
  *(void **)&lib->set_callback = dlsym(handle, "scipy_openblas_set_threads_callback_function64_");
  return !lib->sgemm || !lib->set_num_threads || !lib->set_callback;
}

static const library *open_locked(const char *path, char *error, int error_bytes) {
  if (opened) return opened;
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  library *lib = calloc(1, sizeof *lib);
  if (!handle) snprintf(error, error_bytes, "cannot load OpenBLAS: %s", dlerror());
  else if (!lib || resolve(lib, handle)) snprintf(error, error_bytes, "%s is not the OpenBLAS of scipy-openblas64", path);
  else return lib->set_callback(callback), opened = lib;
  free(lib);
  return NULL;
}

static void use_threads(const library *lib, int threads) {
  pthread_mutex_lock(&lock);
  threads = threads < MAX_HELPERS ? threads : MAX_HELPERS;
  if (current_threads != threads) lib->set_num_threads(current_threads = threads);
  pthread_mutex_unlock(&lock);
}

/* State */

void *wpk_openblas_create(const int64_t *desc, int64_t n, const char *library_path, int threads, char *error, int error_bytes) {
  enum { FIELDS = 15 };
  (void)threads;
  if (n != 1 + FIELDS || desc[0] != VERSION) return snprintf(error, error_bytes, "a product is described by %d numbers", 1 + FIELDS), NULL;
  pthread_mutex_lock(&lock);
  const library *lib = open_locked(library_path, error, error_bytes);
  pthread_mutex_unlock(&lock);
  state *s = lib ? calloc(1, sizeof *s) : NULL;
  if (!s) return NULL;
  s->lib = lib;
  memcpy(&s->m, desc + 1, FIELDS * sizeof *desc);
  return s;
}

void wpk_openblas_destroy(void *object) { free(object); }

typedef struct { const state *s; float *c; const float *bias; } epilogue;

static void epilogue_body(void *ctx, int64_t begin, int64_t end, int thread) {
  const epilogue *e = ctx;
  int64_t n = e->s->n;
  (void)thread;
  for (int64_t row = begin; row < end; row++) {
    float *c = e->c + row * n, fixed = e->s->bias_kind == BIAS_ROW ? e->bias[row] : 0;
    if (e->s->bias_kind == BIAS_COLUMN) for (int64_t j = 0; j < n; j++) c[j] += e->bias[j];
    else if (e->s->bias_kind == BIAS_ROW) for (int64_t j = 0; j < n; j++) c[j] += fixed;
    if (e->s->relu) for (int64_t j = 0; j < n; j++) c[j] = c[j] > 0 ? c[j] : 0;
  }
}

int wpk_openblas_run(void *object, void *const *args, void *workspace, const wpk_rt *rt) {
  const state *s = object;
  const float *a = args[s->a], *b = args[s->b], *bias = s->bias < 0 ? NULL : args[s->bias];
  float *c = args[s->c];
  int64_t grain = EPILOGUE_GRAIN / (s->n + 1) + 1;
  (void)workspace;
  use_threads(s->lib, rt->threads);
  current_rt = rt;
  for (int64_t i = 0; i < s->batch; i++, a += s->stride_a, b += s->stride_b, c += s->stride_c) {
    s->lib->sgemm(ROW_MAJOR, s->trans_a ? TRANS : NO_TRANS, s->trans_b ? TRANS : NO_TRANS, s->m, s->n, s->k, 1.0f,
                  a, s->trans_a ? s->m : s->k, b, s->trans_b ? s->k : s->n, 0.0f, c, s->n);
    epilogue e = {s, c, bias};
    if (s->bias_kind || s->relu) rt->parallel(rt, epilogue_body, &e, s->m, grain);
  }
  current_rt = NULL;
  return 0;
}
