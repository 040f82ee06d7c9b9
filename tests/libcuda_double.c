// What of libcuda.so.1 a bound call needs, to see what arrives there: no GPU, but the driver's own rules for what it is given.
// Prints a line for each call. A kernel named NAME_P_M has P pointers and M tensor maps for parameters.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { OK, INVALID_VALUE };
typedef struct { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; } Config;

static char name[64];
static int shared_limit = 48 << 10;

static int refuse(const char *why) {
  printf("refused: %s\n", why);
  return INVALID_VALUE;
}

// "cuTensorMapEncodeTiled" of the driver's manual
static int encode(void *map, int dtype, uint32_t rank, void *address, const uint64_t *dims, const uint64_t *strides,
                  const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
  static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  if ((uintptr_t)map % 128) return refuse("tensor map not aligned");
  if (rank < 1 || rank > 5 || (uintptr_t)address % 16) return refuse("rank or address");
  if (box[0] * bytes[dtype] % 16 || (swizzle && box[0] * bytes[dtype] > 16u << swizzle)) return refuse("inner box");
  printf("encode %d at %p:", dtype, address);
  for (uint32_t i = 0; i < rank; i++) {
    if (!dims[i] || !box[i] || box[i] > 256 || !steps[i] || steps[i] > 8) return refuse("box");
    if (i + 1 < rank && (!strides[i] || strides[i] % 16 || strides[i] >> 40)) return refuse("strides");
    printf(" %d:%d/%d", (int)dims[i], (int)box[i], (int)steps[i]);
    if (i + 1 < rank) printf(" (%d)", (int)strides[i]);
  }
  printf(", %d %d %d %d\n", interleave, swizzle, promotion, fill);
  for (int i = 0; i < 128; i++) ((unsigned char *)map)[i] = (unsigned char)(rank + i);
  return OK;
}

static int launch(const Config *c, void *function, void **parameters, void **extra) {
  int pointers = 0, maps = 0;
  if ((int)c->shared > shared_limit || function != name || extra || c->count) return refuse("launch");
  sscanf(strchr(name, '_'), "_%d_%d", &pointers, &maps);
  printf("launch %u,%u,%u of %u,%u,%u on %p, %u:", c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2],
         c->stream, c->shared);
  for (int i = 0; i < pointers; i++) printf(" %p", *(void **)parameters[i]);
  for (int i = pointers; i < pointers + maps; i++) {
    const unsigned char *map = parameters[i];
    printf(" map %d %d", map[0], map[127] - map[0]);
    if ((uintptr_t)map % 128) return refuse("map not aligned");
  }
  printf("\n");
  return OK;
}

static int load(void **module, const char *image) { return printf("module %.8s\n", image), *module = name, OK; }
static int function(void **found, void *module, const char *symbol) {
  snprintf(name, sizeof name, "%s", symbol);
  return *found = module, OK;
}
static int attribute(void *of, int which, int value) {
  if (of != name || which != 8 || value > 227 << 10) return refuse("attribute");  // MAX_DYNAMIC_SHARED_SIZE_BYTES
  return shared_limit = value, OK;
}
static int create(void **made) { return *made = name, OK; }
static int begin(void *stream, int mode) { return printf("capture on %p, mode %d\n", stream, mode), OK; }
static int end(void *stream, void **graph) { return printf("captured on %p\n", stream), *graph = name, OK; }
static int wait(void *stream, void *event, unsigned flags) { return printf("%p waits, %u\n", stream, flags), event ? OK : refuse("event"); }
static int other(void) { return OK; }

int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
  static const struct { const char *name; void *function; } known[] = {
      {"cuTensorMapEncodeTiled", encode}, {"cuLaunchKernelEx", launch},      {"cuModuleLoadData", load},
      {"cuModuleGetFunction", function},  {"cuFuncSetAttribute", attribute}, {"cuGetProcAddress", cuGetProcAddress_v2},
      {"cuEventCreate", create},          {"cuStreamBeginCapture", begin},   {"cuStreamEndCapture", end},
      {"cuStreamWaitEvent", wait},        {"cuGraphInstantiate", create},
  };
  (void)version, (void)flags;
  if (status) *status = 0;
  *found = other;
  for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(symbol, known[i].name)) *found = known[i].function;
  return OK;
}
