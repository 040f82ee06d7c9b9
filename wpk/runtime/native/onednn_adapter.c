/* oneDNN behind the ABI of wpk.h. The library is opened at run time and its C types are opaque pointers here, so this file
   compiles with no oneDNN header and the result loads where the library is absent.

   A call is described by integers (`desc`), written by wpk/providers/onednn.py:

     version, primitive, algorithm, n_memories, n_params, n_postops,
     memories:        arg, position, dtype, ndims, dims[ndims], length, tag[length]
     params:          n_params integers (floats as the bits of a double)
     post-ops:        0, algorithm, alpha, beta (elementwise) | 1, algorithm, memory (binary)
     implementation:  length, name[length] (empty: the library's first)

   `arg` is oneDNN's argument number, `position` the index into the kernel's args, `tag` a layout as `aBcd16b`. Layouts of
   packed weights and the implementation are chosen when compiling and named here, so that a call means the same later.
   Numbers of enumerations are those of oneDNN 3's dnnl_types.h, which its versioning keeps stable. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gomp_bridge.h"
#include "wpk.h"

enum { VERSION = 1, MAX_DIMS = 12, MAX_MEMORIES = 256, MAX_POSTOPS = 32, MAX_TEXT = 128 };
enum { CONVOLUTION = 1, INNER_PRODUCT, MATMUL, POOLING, LRN, SOFTMAX, ELTWISE, BINARY, REORDER, CONCAT };
enum { POST_ELTWISE, POST_BINARY };
enum { CPU = 1, FORWARD_INFERENCE = 96, SCRATCHPAD_USER = 1, UNIMPLEMENTED = 3 };
enum { ARG_SRC = 1, ARG_SRC_1 = 2, ARG_DST = 17, ARG_WEIGHTS = 33, ARG_BIAS = 41, ARG_SCRATCHPAD = 80, ARG_MULTIPLE = 1024 };
enum { QUERY_IMPL = 8, QUERY_SCRATCHPAD = 136 };

typedef struct { int arg; void *memory; } exec_arg; /* dnnl_exec_arg_t */

/* The functions used, as X(result, name, parameters). Handles are void pointers. */
#define FUNCTIONS(X) \
  X(int, engine_create, (void **, int, size_t)) \
  X(int, stream_create, (void **, void *, unsigned)) \
  X(int, memory_desc_create_with_string_tag, (void **, int, const int64_t *, int, const char *)) \
  X(size_t, memory_desc_get_size, (const void *)) \
  X(int, memory_desc_destroy, (void *)) \
  X(int, memory_create, (void **, const void *, void *, void *)) \
  X(int, memory_set_data_handle, (void *, void *)) \
  X(int, memory_destroy, (void *)) \
  X(int, post_ops_create, (void **)) \
  X(int, post_ops_append_eltwise, (void *, int, float, float)) \
  X(int, post_ops_append_binary, (void *, int, const void *)) \
  X(int, post_ops_destroy, (void *)) \
  X(int, primitive_attr_create, (void **)) \
  X(int, primitive_attr_set_post_ops, (void *, const void *)) \
  X(int, primitive_attr_set_scratchpad_mode, (void *, int)) \
  X(int, primitive_attr_destroy, (void *)) \
  X(int, convolution_forward_primitive_desc_create, (void **, void *, int, int, const void *, const void *, const void *, const void *, \
      const int64_t *, const int64_t *, const int64_t *, const int64_t *, const void *)) \
  X(int, inner_product_forward_primitive_desc_create, (void **, void *, int, const void *, const void *, const void *, const void *, const void *)) \
  X(int, matmul_primitive_desc_create, (void **, void *, const void *, const void *, const void *, const void *, const void *)) \
  X(int, pooling_forward_primitive_desc_create, (void **, void *, int, int, const void *, const void *, \
      const int64_t *, const int64_t *, const int64_t *, const int64_t *, const int64_t *, const void *)) \
  X(int, lrn_forward_primitive_desc_create, (void **, void *, int, int, const void *, const void *, int64_t, float, float, float, const void *)) \
  X(int, softmax_forward_primitive_desc_create, (void **, void *, int, int, const void *, const void *, int, const void *)) \
  X(int, eltwise_forward_primitive_desc_create, (void **, void *, int, int, const void *, const void *, float, float, const void *)) \
  X(int, binary_primitive_desc_create, (void **, void *, int, const void *, const void *, const void *, const void *)) \
  X(int, reorder_primitive_desc_create, (void **, const void *, void *, const void *, void *, const void *)) \
  X(int, concat_primitive_desc_create, (void **, void *, const void *, int, int, const void *const *, const void *)) \
  X(int, primitive_desc_query, (const void *, int, int, void *)) \
  X(const void *, primitive_desc_query_md, (const void *, int, int)) \
  X(int, primitive_desc_next_impl, (void *)) \
  X(int, primitive_desc_destroy, (void *)) \
  X(int, primitive_create, (void **, const void *)) \
  X(int, primitive_execute, (const void *, void *, int, const exec_arg *)) \
  X(int, primitive_destroy, (void *)) \
  X(const void *, version, (void))

typedef struct {
#define FIELD(result, name, parameters) result(*name) parameters;
  FUNCTIONS(FIELD)
#undef FIELD
  void *engine, *stream;
} library;

typedef struct { int arg, position, dtype, ndims; const int64_t *dims; void *md; } memory_spec;

typedef struct {
  int primitive, algorithm, n_memories, n_params;
  memory_spec memories[MAX_MEMORIES];
  const int64_t *params;
  char implementation[MAX_TEXT];
  void *attr;
} call;

typedef struct {
  const library *lib;
  void *primitive, *scratchpad;
  int n_args;
  exec_arg *args;
  int *positions; /* per exec arg; -1 for the scratchpad */
} state;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static library *opened;
static char opened_path[4096];

/* Loading */

static int resolve(library *lib, void *handle, char *error, int error_bytes) {
#define RESOLVE(result, name, parameters) \
  *(void **)&lib->name = dlsym(handle, "dnnl_" #name); \
  if (!lib->name) return snprintf(error, error_bytes, "the oneDNN library lacks dnnl_%s; wpk needs oneDNN 3.x", #name), 1;
  FUNCTIONS(RESOLVE)
#undef RESOLVE
  if (*(const int *)lib->version() != 3)
    return snprintf(error, error_bytes, "expected oneDNN 3.x, found version %d", *(const int *)lib->version()), 1;
  return 0;
}

static const library *open_locked(const char *path, char *error, int error_bytes) {
  if (opened && !strcmp(path, opened_path)) return opened;
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return snprintf(error, error_bytes, "cannot load oneDNN: %s", dlerror()), NULL;
  library *lib = calloc(1, sizeof *lib);
  if (!lib || resolve(lib, handle, error, error_bytes)) return free(lib), NULL;
  wpk_bridge_install(handle);
  if (lib->engine_create(&lib->engine, CPU, 0) || lib->stream_create(&lib->stream, lib->engine, 1))
    return snprintf(error, error_bytes, "oneDNN found no CPU engine"), free(lib), NULL;
  opened = lib;
  snprintf(opened_path, sizeof opened_path, "%s", path);
  return lib;
}

static const library *open_library(const char *path, char *error, int error_bytes) {
  pthread_mutex_lock(&lock);
  const library *lib = open_locked(path, error, error_bytes);
  pthread_mutex_unlock(&lock);
  return lib;
}

/* Reading a desc */

typedef struct { const int64_t *at, *end; } reader;

static int64_t next(reader *r) { return r->at < r->end ? *r->at++ : (r->at = r->end + 1, 0); }

static const int64_t *take(reader *r, int64_t n) {
  if (n < 0 || r->at > r->end || n > r->end - r->at) return r->at = r->end + 1, NULL;
  const int64_t *start = r->at;
  r->at += n;
  return start;
}

static int overrun(const reader *r) { return r->at > r->end; }

static float real(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return (float)value;
}

/* A text of a desc: its length, then one integer a character. */
static int read_text(reader *r, char text[MAX_TEXT]) {
  int64_t length = next(r);
  const int64_t *letters = take(r, length);
  if (!letters || length >= MAX_TEXT) return 1;
  for (int64_t i = 0; i < length; i++) text[i] = (char)letters[i];
  text[length] = 0;
  return 0;
}

/* Letters of dimensions, then blocks such as 16b. The library divides by what it does not understand. */
static int is_tag(const char *tag, int ndims) {
  int outer = 0;
  for (; *tag && !(*tag >= '0' && *tag <= '9'); tag++, outer++)
    if ((*tag | 32) < 'a' || (*tag | 32) >= 'a' + ndims) return 0;
  while (*tag) {
    char *end;
    long block = strtol(tag, &end, 10);
    if (end == tag || block < 1 || *end < 'a' || *end >= 'a' + ndims) return 0;
    tag = end + 1;
  }
  return outer == ndims;
}

static int read_memory(const library *lib, reader *r, memory_spec *m) {
  char tag[MAX_TEXT];
  m->arg = (int)next(r), m->position = (int)next(r), m->dtype = (int)next(r), m->ndims = (int)next(r);
  if (m->ndims < 1 || m->ndims > MAX_DIMS || !(m->dims = take(r, m->ndims)) || read_text(r, tag) || !is_tag(tag, m->ndims)) return 1;
  return lib->memory_desc_create_with_string_tag(&m->md, m->ndims, m->dims, m->dtype, tag);
}

static int read_postops(const library *lib, reader *r, call *c, int n) {
  void *ops = NULL;
  int bad = n > MAX_POSTOPS || lib->primitive_attr_create(&c->attr) || lib->post_ops_create(&ops);
  for (int i = 0; i < n && !bad; i++) {
    int64_t kind = next(r), algorithm = next(r), first = next(r);
    if (kind == POST_ELTWISE) bad = lib->post_ops_append_eltwise(ops, (int)algorithm, real(first), real(next(r)));
    else if (first < 0 || first >= c->n_memories) bad = 1;
    else bad = lib->post_ops_append_binary(ops, (int)algorithm, c->memories[first].md);
  }
  bad = bad || lib->primitive_attr_set_post_ops(c->attr, ops) || lib->primitive_attr_set_scratchpad_mode(c->attr, SCRATCHPAD_USER);
  if (ops) lib->post_ops_destroy(ops);
  return bad;
}

static void release_call(const library *lib, call *c) {
  for (int i = 0; i < c->n_memories; i++)
    if (c->memories[i].md) lib->memory_desc_destroy(c->memories[i].md);
  if (c->attr) lib->primitive_attr_destroy(c->attr);
  free(c);
}

static call *read_call(const library *lib, const int64_t *desc, int64_t n, char *error, int error_bytes) {
  reader r = {desc, desc + n};
  int64_t version = next(&r);
  call *c = calloc(1, sizeof *c);
  if (!c) return snprintf(error, error_bytes, "out of memory"), NULL;
  c->primitive = (int)next(&r), c->algorithm = (int)next(&r);
  int64_t memories = next(&r);
  c->n_params = (int)next(&r);
  int postops = (int)next(&r), bad = version != VERSION || memories < 0 || memories > MAX_MEMORIES || overrun(&r);
  for (int64_t i = 0; i < memories && !bad; i++) bad = read_memory(lib, &r, &c->memories[c->n_memories++]);
  if (bad || !(c->params = take(&r, c->n_params)) || read_postops(lib, &r, c, postops) || read_text(&r, c->implementation))
    return snprintf(error, error_bytes, "oneDNN rejects the description of a tensor of the call"), release_call(lib, c), NULL;
  return c;
}

/* Creating the primitive */

static const void *desc_of(const call *c, int arg) {
  for (int i = 0; i < c->n_memories; i++)
    if (c->memories[i].arg == arg) return c->memories[i].md;
  return NULL;
}

static int concat_desc(const library *lib, void **pd, const call *c) {
  const void *sources[MAX_MEMORIES];
  int n = 0;
  while (n < MAX_MEMORIES && (sources[n] = desc_of(c, ARG_MULTIPLE + n))) n++;
  return lib->concat_primitive_desc_create(pd, lib->engine, desc_of(c, ARG_DST), n, (int)c->params[0], sources, c->attr);
}

static int params_needed(int primitive) {
  switch (primitive) {
    case CONVOLUTION: return 8; /* strides, dilates, padding left, right: two each */
    case POOLING: return 10;    /* strides, kernel, dilates, padding left, right */
    case LRN: return 4;
    case SOFTMAX: case CONCAT: return 1;
    case ELTWISE: return 2;
    default: return 0;
  }
}

static int primitive_desc(const library *lib, void **pd, const call *c) {
  const void *src = desc_of(c, ARG_SRC), *dst = desc_of(c, ARG_DST), *weights = desc_of(c, ARG_WEIGHTS), *bias = desc_of(c, ARG_BIAS);
  const int64_t *p = c->params;
  void *e = lib->engine;
  if (c->n_params != params_needed(c->primitive)) return 2;
  switch (c->primitive) {
    case CONVOLUTION: return lib->convolution_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, c->algorithm, src, weights, bias, dst, p, p + 2, p + 4, p + 6, c->attr);
    case INNER_PRODUCT: return lib->inner_product_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, src, weights, bias, dst, c->attr);
    case MATMUL: return lib->matmul_primitive_desc_create(pd, e, src, weights, bias, dst, c->attr);
    case POOLING: return lib->pooling_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, c->algorithm, src, dst, p, p + 2, p + 4, p + 6, p + 8, c->attr);
    case LRN: return lib->lrn_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, c->algorithm, src, dst, p[0], real(p[1]), real(p[2]), real(p[3]), c->attr);
    case SOFTMAX: return lib->softmax_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, c->algorithm, src, dst, (int)p[0], c->attr);
    case ELTWISE: return lib->eltwise_forward_primitive_desc_create(pd, e, FORWARD_INFERENCE, c->algorithm, src, dst, real(p[0]), real(p[1]), c->attr);
    case BINARY: return lib->binary_primitive_desc_create(pd, e, c->algorithm, src, desc_of(c, ARG_SRC_1), dst, c->attr);
    case REORDER: return lib->reorder_primitive_desc_create(pd, src, e, dst, e, c->attr);
    case CONCAT: return concat_desc(lib, pd, c);
    default: return 2;
  }
}

/* Moves pd on to the implementation named; nonzero when it is not among those the library offers. */
static int select_implementation(const library *lib, void *pd, const char *wanted) {
  const char *name = "";
  while (*wanted && !lib->primitive_desc_query(pd, QUERY_IMPL, 0, &name) && strcmp(name, wanted))
    if (lib->primitive_desc_next_impl(pd)) return 1;
  return 0;
}

static void *describe(const library *lib, call *c, char *error, int error_bytes) {
  void *pd = NULL;
  int status = primitive_desc(lib, &pd, c);
  if (status == UNIMPLEMENTED) return snprintf(error, error_bytes, "oneDNN has no implementation of this call"), NULL;
  if (status) return snprintf(error, error_bytes, "oneDNN refuses the call (status %d)", status), NULL;
  if (!select_implementation(lib, pd, c->implementation)) return pd;
  snprintf(error, error_bytes, "oneDNN on this machine lacks the implementation %s", c->implementation);
  return lib->primitive_desc_destroy(pd), NULL;
}

/* State */

void wpk_onednn_destroy(void *object) {
  state *s = object;
  if (!s) return;
  for (int i = 0; i < s->n_args; i++)
    if (s->args[i].memory) s->lib->memory_destroy(s->args[i].memory);
  if (s->primitive) s->lib->primitive_destroy(s->primitive);
  free(s->scratchpad), free(s->args), free(s->positions), free(s);
}

static int add_arg(state *s, int arg, int position, const void *md, void *handle) {
  s->args[s->n_args].arg = arg;
  s->positions[s->n_args] = position;
  return s->lib->memory_create(&s->args[s->n_args++].memory, md, s->lib->engine, handle);
}

static int add_scratchpad(state *s, const void *pd) {
  const void *md = s->lib->primitive_desc_query_md(pd, QUERY_SCRATCHPAD, 0);
  size_t bytes = md ? s->lib->memory_desc_get_size(md) : 0;
  if (!bytes) return 0;
  s->scratchpad = aligned_alloc(64, (bytes + 63) / 64 * 64);
  return !s->scratchpad || add_arg(s, ARG_SCRATCHPAD, -1, md, s->scratchpad);
}

static int fill(state *s, const call *c, const void *pd) {
  s->args = calloc(c->n_memories + 1, sizeof *s->args);
  s->positions = calloc(c->n_memories + 1, sizeof *s->positions);
  if (!s->args || !s->positions || s->lib->primitive_create(&s->primitive, pd)) return 1;
  for (int i = 0; i < c->n_memories; i++) {
    const memory_spec *m = &c->memories[i];
    if (m->position >= 0 && add_arg(s, m->arg, m->position, m->md, NULL)) return 1;
  }
  return add_scratchpad(s, pd);
}

void *wpk_onednn_create(const int64_t *desc, int64_t n, const char *library_path, int threads, char *error, int error_bytes) {
  const library *lib = open_library(library_path, error, error_bytes);
  call *c = lib ? read_call(lib, desc, n, error, error_bytes) : NULL;
  wpk_bridge_threads(threads); /* implementations are chosen for a number of threads */
  void *pd = c ? describe(lib, c, error, error_bytes) : NULL;
  state *s = pd ? calloc(1, sizeof *s) : NULL;
  if (s) {
    s->lib = lib;
    if (fill(s, c, pd)) snprintf(error, error_bytes, "oneDNN cannot create the primitive"), wpk_onednn_destroy(s), s = NULL;
  }
  wpk_bridge_threads(0);
  if (pd) lib->primitive_desc_destroy(pd);
  if (c) release_call(lib, c);
  return s;
}

/* A state serves one call at a time: its memory objects carry the pointers of the call. */
int wpk_onednn_run(void *object, void *const *args, void *workspace, const wpk_rt *rt) {
  state *s = object;
  (void)workspace;
  for (int i = 0; i < s->n_args; i++)
    if (s->positions[i] >= 0 && s->lib->memory_set_data_handle(s->args[i].memory, args[s->positions[i]])) return 1;
  wpk_bridge_enter(rt);
  int status = s->lib->primitive_execute(s->primitive, s->lib->stream, s->n_args, s->args);
  wpk_bridge_leave();
  return status;
}
