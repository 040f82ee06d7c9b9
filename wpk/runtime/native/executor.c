/* Runs a prepared plan: for each step, pointers from bases and offsets, one call through a function pointer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wpk_runtime.h"

typedef struct { int32_t base; int64_t offset; } argument;
typedef struct { wpk_fn fn; void *state; int32_t first, count; int own_threads; } step;
struct wpk_plan { int64_t steps; int32_t most_args; step *step; argument *args; };

static void *duplicate(int64_t count, size_t size) { return calloc(count > 0 ? count : 1, size); }

wpk_plan *wpk_plan_create(int64_t steps, const wpk_fn *fns, void *const *states, const int32_t *arg_start,
                          const int32_t *arg_base, const int64_t *arg_offset, const uint8_t *own_threads) {
  wpk_plan *plan = calloc(1, sizeof *plan);
  if (!plan) return NULL;
  *plan = (wpk_plan){steps, 0, duplicate(steps, sizeof(step)), duplicate(arg_start[steps], sizeof(argument))};
  if (!plan->step || !plan->args) return wpk_plan_destroy(plan), NULL;
  for (int64_t i = 0; i < steps; i++) {
    int32_t count = arg_start[i + 1] - arg_start[i];
    plan->step[i] = (step){fns[i], states[i], arg_start[i], count, own_threads[i]};
    if (count > plan->most_args) plan->most_args = count;
  }
  for (int32_t j = 0; j < arg_start[steps]; j++) plan->args[j] = (argument){arg_base[j], arg_offset[j]};
  return plan;
}

void wpk_plan_destroy(wpk_plan *plan) {
  if (!plan) return;
  free(plan->step), free(plan->args), free(plan);
}

static int run_step(const wpk_plan *plan, const step *s, wpk_pool *pool, void *const *bases, void *workspace, void **args) {
  const argument *a = plan->args + s->first;
  for (int32_t k = 0; k < s->count; k++) args[k] = (char *)bases[a[k].base] + a[k].offset;
  if (s->own_threads) wpk_pool_quiet(pool);
  return s->fn(s->state, args, workspace, wpk_pool_rt(pool));
}

int wpk_run(const wpk_plan *plan, wpk_pool *pool, void *const *bases, void *workspace, int64_t first, int64_t last,
            int64_t *failed, double *seconds) {
  void *args[plan->most_args + 1];
  int code = 0;
  wpk_pool_hot(pool, 1);
  for (int64_t i = first; i < last && !code; i++) {
    double start = seconds ? wpk_now() : 0;
    code = run_step(plan, &plan->step[i], pool, bases, workspace, args);
    if (seconds) seconds[i] = wpk_now() - start;
    if (code) *failed = i;
  }
  wpk_pool_hot(pool, 0);
  return code;
}

/* Copies */

enum { COPY_GRAIN = 1 << 18 };
typedef struct { char *to; const char *from; } copy;

static void copy_body(void *ctx, int64_t begin, int64_t end, int thread) {
  const copy *c = ctx;
  (void)thread;
  memcpy(c->to + begin, c->from + begin, end - begin);
}

void *wpk_copy_create(const int64_t *desc, int64_t n, const char *library_path, int threads, char *error, int error_bytes) {
  (void)library_path, (void)threads;
  int64_t *state = n == 1 && desc[0] >= 0 ? malloc(sizeof *state) : NULL;
  if (!state) return snprintf(error, error_bytes, "a copy is described by one number of bytes"), NULL;
  *state = desc[0];
  return state;
}

int wpk_copy_run(void *state, void *const *args, void *workspace, const wpk_rt *rt) {
  copy c = {args[1], args[0]};
  (void)workspace;
  rt->parallel(rt, copy_body, &c, *(const int64_t *)state, COPY_GRAIN);
  return 0;
}

void wpk_copy_destroy(void *state) { free(state); }
