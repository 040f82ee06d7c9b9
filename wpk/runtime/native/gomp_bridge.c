/* See gomp_bridge.h. The difficulty: old libgomp interfaces open a region with GOMP_parallel_start, then the caller runs its
   share itself, then calls GOMP_parallel_end; but a pool's `parallel` returns only when all is done. So the pool's loop runs
   on a stack of its own: when the caller's turn comes inside the loop, the loop is suspended and start returns; end resumes
   it. Thread numbers are handed out as threads arrive, number 0 is always the caller's. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "gomp_bridge.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef void (*region_fn)(void *);

/* Stacks to switch between: `wpk_context` is one that is not running. */
#if defined(__x86_64__)
/* swapcontext without its two system calls: what a call preserves is kept on the stack left, whose top is the context. */
typedef struct { void *top; } wpk_context;
__attribute__((visibility("hidden"))) void wpk_switch(wpk_context *from, const wpk_context *to);
__asm__(
  ".text\n.hidden wpk_switch\n.globl wpk_switch\n.type wpk_switch, @function\nwpk_switch:\n"
  "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
  "  mov %rsp, (%rdi)\n  mov (%rsi), %rsp\n"
  "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n"
  ".size wpk_switch, . - wpk_switch\n");

static void prepare(wpk_context *c, char *stack, size_t bytes, void (*entry)(void)) {
  void **top = (void **)(stack + bytes) - 8; /* six registers, then where ret goes; at entry the stack is as after a call */
  top[6] = (void *)entry;
  c->top = top;
}
#else
#include <ucontext.h>
typedef ucontext_t wpk_context;

static void wpk_switch(wpk_context *from, const wpk_context *to) { swapcontext(from, to); }

static void prepare(wpk_context *c, char *stack, size_t bytes, void (*entry)(void)) {
  getcontext(c);
  c->uc_stack.ss_sp = stack, c->uc_stack.ss_size = bytes, c->uc_link = NULL;
  makecontext(c, entry, 0);
}
#endif

typedef struct {
  region_fn fn;
  void *data;
  int n;
  const void *owner; /* identifies the caller's thread */
  int begun, declined;
  _Atomic int next, waiting, generation;
} team;

typedef struct { /* a place to run the pool's loop, one for each calling thread */
  wpk_context caller, loop;
  char *stack;
  const wpk_rt *rt;
  int finished;
  team team;
} fiber;

typedef struct { /* of the current thread: the innermost region it is in */
  team *team;
  int id, n, depth;
  long loop_next, loop_end, loop_incr, loop_chunk; /* of the work-sharing loop it is in; loop_next < 0: its one block is done */
} place;

enum { STACK = 4 << 20, SPINS = 4096 };

static __thread struct { const wpk_rt *rt; int threads, gomp; place at; fiber *fiber; } self;

/* libgomp's own functions, for every thread and time that is not ours. */
static struct {
  void (*parallel_start)(region_fn, void *, unsigned);
  void (*parallel_end)(void);
  void (*parallel)(region_fn, void *, unsigned, unsigned);
  void (*barrier)(void);
  _Bool (*loop_static_start)(long, long, long, long, long *, long *);
  _Bool (*loop_static_next)(long *, long *);
  void (*loop_end)(void);
  void (*loop_end_nowait)(void);
  int (*max_threads)(void), (*num_threads)(void), (*thread_num)(void), (*in_parallel)(void);
  void (*set_num_threads)(int);
} gomp;

static int ours(void) { return self.at.team || (self.rt && !self.gomp); }

/* The fiber */

static pthread_key_t fibers;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_fiber(void *object) {
  munmap(((fiber *)object)->stack, STACK);
  free(object);
}

static void make_key(void) { pthread_key_create(&fibers, free_fiber); }

static fiber *own_fiber(void) {
  if (self.fiber) return self.fiber;
  fiber *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  f->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (f->stack == MAP_FAILED) return free(f), NULL;
  pthread_once(&once, make_key);
  pthread_setspecific(fibers, f);
  return self.fiber = f;
}

static void run_share(team *t) {
  int id = atomic_fetch_add(&t->next, 1);
  if (id >= t->n) return; /* the share kept for the caller */
  place before = self.at;
  self.at = (place){.team = t, .id = id, .n = t->n, .depth = 1};
  t->fn(t->data);
  self.at = before;
}

static void body(void *ctx, int64_t begin, int64_t end, int thread) {
  fiber *f = ctx;
  team *t = &f->team;
  (void)thread;
  if (t->owner == &self && !t->begun && end - begin > 1) {
    t->declined = 1; /* the pool is busy with another caller; a region needs all its threads at once */
    return;
  }
  for (int64_t i = begin; i < end; i++) {
    if (t->owner != &self || t->begun) run_share(t);
    else t->begun = 1, wpk_switch(&f->loop, &f->caller);
  }
}

/* What runs on the fiber: the pool's loop, then back for good. */
static void loop_main(void) {
  fiber *f = self.fiber;
  f->rt->parallel(f->rt, body, f, f->team.n, 1);
  f->finished = 1;
  wpk_switch(&f->loop, &f->caller);
  abort();
}

static void start_loop(fiber *f) {
  f->finished = 0;
  prepare(&f->loop, f->stack, STACK, loop_main);
  wpk_switch(&f->caller, &f->loop);
}

/* libgomp's interface */

static int fork_team(region_fn fn, void *data, int n) {
  fiber *f = n <= self.rt->threads ? own_fiber() : NULL;
  if (!f) return 0;
  f->rt = self.rt;
  f->team = (team){.fn = fn, .data = data, .n = n, .owner = &self, .next = 1};
  start_loop(f);
  if (f->team.declined) return 0;
  self.at = (place){.team = &f->team, .n = n, .depth = 1};
  return 1;
}

static void parallel_start(region_fn fn, void *data, unsigned threads) {
  static team alone = {.n = 1};
  int n = threads ? (int)threads : self.threads;
  if (!ours()) return gomp.parallel_start(fn, data, threads);
  if (self.at.team) self.at.depth++; /* nested: a team of one */
  else if (n == 1) self.at = (place){.team = &alone, .n = 1, .depth = 1};
  else if (!fork_team(fn, data, n)) self.gomp = 1, gomp.parallel_start(fn, data, threads);
}

static void parallel_end(void) {
  if (!ours()) return gomp.parallel_end(), (void)(self.gomp = 0);
  if (--self.at.depth) return;
  int forked = self.fiber && self.at.team == &self.fiber->team;
  self.at = (place){0};
  if (forked && !self.fiber->finished) wpk_switch(&self.fiber->caller, &self.fiber->loop);
}

static void parallel(region_fn fn, void *data, unsigned threads, unsigned flags) {
  if (!ours()) return gomp.parallel(fn, data, threads, flags);
  parallel_start(fn, data, threads);
  fn(data);
  parallel_end();
}

static void barrier(void) {
  team *t = self.at.team;
  if (!ours()) return gomp.barrier();
  if (!t || t->n == 1 || self.at.depth > 1) return;
  int generation = atomic_load(&t->generation);
  if (atomic_fetch_add(&t->waiting, 1) + 1 == t->n) {
    atomic_store(&t->waiting, 0);
    atomic_fetch_add(&t->generation, 1);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&t->generation, memory_order_acquire) == generation; spins++)
    if (spins > SPINS) sched_yield();
}

static int single(void) { return self.at.depth != 1; } /* outside any region, or in a nested team of one */
static int max_threads(void) {
  if (self.at.team) return self.at.n;
  return self.threads ? self.threads : gomp.max_threads();
}

static int num_threads(void) { return !ours() ? gomp.num_threads() : single() ? 1 : self.at.n; }
static int thread_num(void) { return !ours() ? gomp.thread_num() : single() ? 0 : self.at.id; }
static int in_parallel(void) { return ours() ? self.at.n > 1 : gomp.in_parallel(); }

static _Bool loop_static_next(long *begin, long *end) {
  if (!ours()) return gomp.loop_static_next(begin, end);
  place *p = &self.at;
  long count = (p->loop_end - p->loop_next + p->loop_incr - (p->loop_incr > 0 ? 1 : -1)) / p->loop_incr;
  if (p->loop_chunk < 0 || count <= 0) return 0;
  *begin = p->loop_next;
  *end = count > p->loop_chunk ? p->loop_next + p->loop_chunk * p->loop_incr : p->loop_end;
  p->loop_next += p->loop_chunk * num_threads() * p->loop_incr;
  return 1;
}

/* chunk 0: one block for each thread; else blocks of `chunk` in turn. */
static _Bool loop_static_start(long start, long end, long incr, long chunk, long *begin, long *stop) {
  if (!ours()) return gomp.loop_static_start(start, end, incr, chunk, begin, stop);
  long n = num_threads(), id = thread_num(), count = (end - start + incr - (incr > 0 ? 1 : -1)) / incr;
  place *p = &self.at;
  p->loop_incr = incr, p->loop_end = end, p->loop_chunk = chunk;
  if (chunk > 0) return p->loop_next = start + id * chunk * incr, loop_static_next(begin, stop);
  p->loop_chunk = -1;
  long each = count / n, extra = count % n, first = id * each + (id < extra ? id : extra), last = first + each + (id < extra);
  *begin = start + first * incr, *stop = start + last * incr;
  return count > 0 && last > first;
}

static void loop_end(void) {
  if (ours()) barrier();
  else gomp.loop_end();
}

static void loop_end_nowait(void) {
  if (!ours()) gomp.loop_end_nowait();
}

/* Redirecting */

typedef struct { const char *name; void *replacement; void **original; } redirection;
#define REDIRECT(name, field) {name, (void *)field, (void **)&gomp.field}

static const redirection redirections[] = {
  REDIRECT("GOMP_parallel_start", parallel_start), REDIRECT("GOMP_parallel_end", parallel_end),
  REDIRECT("GOMP_parallel", parallel), REDIRECT("GOMP_barrier", barrier),
  REDIRECT("GOMP_loop_static_start", loop_static_start), REDIRECT("GOMP_loop_static_next", loop_static_next),
  REDIRECT("GOMP_loop_end", loop_end), REDIRECT("GOMP_loop_end_nowait", loop_end_nowait),
  REDIRECT("omp_get_max_threads", max_threads), REDIRECT("omp_get_num_threads", num_threads),
  REDIRECT("omp_get_thread_num", thread_num), REDIRECT("omp_in_parallel", in_parallel),
};
enum { REDIRECTIONS = sizeof redirections / sizeof *redirections };

static const redirection *redirection_of(const char *name) {
  for (int i = 0; i < REDIRECTIONS; i++)
    if (!strcmp(name, redirections[i].name)) return &redirections[i];
  return NULL;
}

typedef struct { const char *strings; const ElfW(Sym) *symbols; const ElfW(Rela) *tables[2]; size_t sizes[2]; ElfW(Addr) base; } imports;

static imports read_imports(const struct link_map *map) {
  imports found = {.base = map->l_addr};
  for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
    ElfW(Addr) at = d->d_un.d_ptr < map->l_addr ? map->l_addr + d->d_un.d_ptr : d->d_un.d_ptr; /* musl leaves them relative */
    if (d->d_tag == DT_STRTAB) found.strings = (const char *)at;
    if (d->d_tag == DT_SYMTAB) found.symbols = (const void *)at;
    if (d->d_tag == DT_RELA) found.tables[0] = (const void *)at;
    if (d->d_tag == DT_JMPREL) found.tables[1] = (const void *)at;
    if (d->d_tag == DT_RELASZ) found.sizes[0] = d->d_un.d_val / sizeof(ElfW(Rela));
    if (d->d_tag == DT_PLTRELSZ) found.sizes[1] = d->d_un.d_val / sizeof(ElfW(Rela));
  }
  return found;
}

typedef void visitor(const char *name, void **slot);

static void each_import(const imports *in, visitor *visit) {
  for (int t = 0; t < 2; t++)
    for (size_t i = 0; in->tables[t] && i < in->sizes[t]; i++) {
      const ElfW(Rela) *rela = &in->tables[t][i];
      size_t symbol = ELF64_R_SYM(rela->r_info);
      const char *name = symbol ? in->strings + in->symbols[symbol].st_name : "";
      if (!strncmp(name, "GOMP_", 5) || !strncmp(name, "omp_", 4)) visit(name, (void **)(in->base + rela->r_offset));
    }
}

static int complete; /* every OpenMP import has a replacement and an original, and its slot can be written */

static void check(const char *name, void **slot) {
  const redirection *r = redirection_of(name);
  size_t page = sysconf(_SC_PAGESIZE);
  void *start = (void *)((uintptr_t)slot / page * page);
  if (!r || !*r->original || mprotect(start, page, PROT_READ | PROT_WRITE)) complete = 0;
}

static void redirect(const char *name, void **slot) { *slot = redirection_of(name)->replacement; }

void wpk_bridge_install(void *handle) {
  struct link_map *map = NULL;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) || !map) return;
  *(void **)&gomp.set_num_threads = dlsym(handle, "omp_set_num_threads");
  for (int i = 0; i < REDIRECTIONS; i++) *redirections[i].original = dlsym(handle, redirections[i].name);
  imports in = read_imports(map);
  complete = in.strings && in.symbols;
  if (complete) each_import(&in, check);
  if (complete) each_import(&in, redirect);
}

void wpk_bridge_threads(int threads) {
  self.threads = threads;
  if (threads && !complete && gomp.set_num_threads) gomp.set_num_threads(threads);
}

void wpk_bridge_enter(const wpk_rt *rt) {
  wpk_bridge_threads(rt->threads);
  self.rt = rt;
}

void wpk_bridge_leave(void) {
  self.rt = NULL;
  self.threads = 0;
}
#else
void wpk_bridge_install(void *handle) { (void)handle; }
void wpk_bridge_threads(int threads) { (void)threads; }
void wpk_bridge_enter(const wpk_rt *rt) { (void)rt; }
void wpk_bridge_leave(void) {}
#endif
