// wgmma by its meaning: four warps meet, operands are read through their descriptors, products arrive at the wait.
// Layouts as PTX "Shared Memory Matrix Layout" and "Matrix Descriptor Format" have them.
#include "simt.h"
#include "wpk_half.h"

#include <cstdlib>
#include <cstring>

using namespace simt;

constexpr int GROUP = 128, MAX_N = 256, MAX_K = 16;

struct Request {
  float *d;
  int kind, n;  // 0: tf32, 1: f16, 2: bf16
  uint64_t a, b;
  bool accumulate, a_major_m, b_major_n;
  int line;
};

struct Descriptor { uint32_t start, leading, stride; int swizzle; };

static Descriptor decoded(uint64_t bits) {
  static const int swizzles[] = {0, 128, 64, 32};
  return {(uint32_t)(bits & 0x3fff) << 4, (uint32_t)(bits >> 16 & 0x3fff) << 4, (uint32_t)(bits >> 32 & 0x3fff) << 4,
          swizzles[bits >> 62]};
}

// where 16 bytes lie; `outer` counts rows (m or n) of a k-major operand and k of the other, `piece` counts 16 bytes across
static uint32_t offset_of(const Descriptor &d, bool k_major, int outer, int piece) {
  int width = d.swizzle / 16;
  if (k_major)
    return outer % 8 * (d.swizzle ? d.swizzle : 16) + outer / 8 * d.stride + piece * (d.swizzle ? 16 : d.leading);
  if (!width) return piece * d.stride + outer % 8 * 16 + outer / 8 * d.leading;
  return piece % width * 16 + piece / width * d.leading + outer % 8 * d.swizzle + outer / 8 * d.stride;
}

static void check_pattern(const Descriptor &d, int rows, int line) {
  if (d.swizzle && rows > 8 && d.stride % (8 * d.swizzle))
    fail("misaligned", nullptr, line, "swizzled rows repeat every %d bytes; the descriptor's stride is %u", 8 * d.swizzle, d.stride);
  uint32_t turn = d.start >> 7 & (d.swizzle / 16 - 1);  // "Base offset", which descriptors leave at 0
  if (d.swizzle && turn)
    fail("misaligned", nullptr, line, "an operand begins %u bytes behind where its swizzle repeats, not at its first row", turn << 7);
}

// Each warp reads its 16 rows of a and all of b, until it waits. A cell has room for two readers: any two of the four
// warps show that one of them was not waited for.
struct Readers { unsigned first_warp; uint32_t stamp; bool all; };

static void check_piece(const void *at, const Readers &readers, int row, int line) {
  unsigned warp = readers.all ? next_random() % 4 : row / 16;
  Cell other = readers.all ? cell_of(WGMMA_AGENTS + readers.first_warp + (warp + 1) % 4, readers.stamp) : 0;
  check_proxy_read(at, 16, cell_of(WGMMA_AGENTS + readers.first_warp + warp, readers.stamp), other, line, "wgmma");
}

// value[k][row]; k_major: consecutive k are neighbours in memory
static void read_operand(double (*value)[MAX_N], uint64_t bits, const Request &request, int rows, bool k_major,
                         const Readers &readers) {
  Descriptor d = decoded(bits);
  int each = request.kind ? 8 : 4, depth = request.kind ? 16 : 8;  // elements in 16 bytes
  check_pattern(d, k_major ? rows : depth, request.line);
  int outer_count = k_major ? rows : depth, pieces = (k_major ? depth : rows) / each;
  for (int outer = 0; outer < outer_count; outer++)
    for (int piece = 0; piece < pieces; piece++) {
      unsigned char *at = shared_at((uint32_t)swizzled(d.start + offset_of(d, k_major, outer, piece), d.swizzle));
      check_piece(at, readers, k_major ? outer : piece * each, request.line);
      for (int i = 0; i < each; i++) {
        uint32_t word;
        uint16_t half;
        memcpy(&word, at + i * 4 % 16, 4);
        memcpy(&half, at + i * 2, 2);
        double x = request.kind == 0   ? wpk_bits_float(word & ~0x1fffu)
                   : request.kind == 1 ? wpk_half_to_float(half)
                                       : wpk_bits_float((uint32_t)half << 16);
        (k_major ? value[piece * each + i][outer] : value[outer][piece * each + i]) = x;
      }
    }
}

static float *take_base(Fiber &fiber, float *d, int count) {
  for (const Product &earlier : fiber.products)
    if (earlier.d == d) return nullptr;
  float *base = (float *)malloc(count * sizeof(float));
  memcpy(base, d, count * sizeof(float));
  memset(d, 0xff, count * sizeof(float));
  return base;
}

// gives the sum to the next wgmma under way on these accumulators, else to them
static void finish(Product &product, Product *later, Product *end) {
  for (int i = 0; i < product.count; i++) product.base[i] = product.values[i] + (product.accumulate ? product.base[i] : 0.0f);
  free(product.values);
  while (later < end && later->d != product.d) later++;
  if (later < end) {
    later->base = product.base;
    return;
  }
  memcpy(product.d, product.base, product.count * sizeof(float));
  free(product.base);
}

// each thread's share of the 64×n products; its accumulator i is row 16·warp + lane/4 + 8·(i/2%2), column 8·(i/4) + lane%4·2 + i%2
static void hand_out(const double (*product)[MAX_N], unsigned group, const Request &request, Request **brought, uint32_t stamp) {
  for (int t = 0; t < GROUP; t++) {
    int lane = t % LANES, count = request.n / 2;
    float *values = (float *)malloc(count * sizeof(float));
    for (int i = 0; i < count; i++)
      values[i] = (float)product[t / LANES * 16 + lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
    Fiber &fiber = fibers[group * GROUP + t];
    fiber.products.push({brought[t]->d, values, take_base(fiber, brought[t]->d, count), count, request.accumulate, stamp});
    fiber.uncommitted_products++;
  }
}

static void multiply(unsigned group, Request **brought) {
  const Request &request = *brought[0];
  static double a[MAX_K][MAX_N], b[MAX_K][MAX_N], product[64][MAX_N];
  uint32_t stamp = agent_stamp();
  read_operand(a, request.a, request, 64, !request.a_major_m, {group * 4, stamp, false});
  read_operand(b, request.b, request, request.n, !request.b_major_n, {group * 4, stamp, true});
  int depth = request.kind ? 16 : 8;
  for (int row = 0; row < 64; row++) {
    memset(product[row], 0, sizeof product[row]);
    for (int k = 0; k < depth; k++)
      for (int n = 0; n < request.n; n++) product[row][n] += a[k][row] * b[k][n];
  }
  hand_out(product, group, request, brought, stamp);
}

struct GroupMeeting { int arrived; Request *brought[GROUP]; };
static GroupMeeting meetings[MAX_THREADS / GROUP];

static bool alike(const Request &x, const Request &y) {
  return x.line == y.line && x.kind == y.kind && x.n == y.n && x.a == y.a && x.b == y.b && x.accumulate == y.accumulate;
}

extern "C" {
void wpk_wgmma(int kind, float *d, int n, uint64_t a, uint64_t b, bool accumulate, bool a_major_m, bool b_major_n, int line) {
  unsigned group = self->id / GROUP;
  if ((group + 1) * GROUP > block.threads) fail("divergence", nullptr, line, "wgmma in a group of fewer than 128 threads");
  if (!self->accumulators_fenced) fail("proxy", nullptr, line, "wgmma with no wgmma_fence since accumulators were used");
  settle();
  Request mine = {d, kind, n, a, b, accumulate, a_major_m, b_major_n, line};
  GroupMeeting &meeting = meetings[group];
  if (meeting.arrived) {
    for (int t = 0; t < GROUP; t++)
      if (meeting.brought[t] && !alike(*meeting.brought[t], mine))
        fail("divergence", nullptr, line, "threads of a warpgroup are at different wgmma, or with different descriptors");
  }
  meeting.brought[self->id % GROUP] = &mine;
  if (++meeting.arrived < GROUP) return sleep("wgmma", line);
  multiply(group, meeting.brought);
  meeting.arrived = 0;
  for (int t = 0; t < GROUP; t++) {
    meeting.brought[t] = nullptr;
    if (group * GROUP + t != self->id) wake(fibers[group * GROUP + t]);
  }
}

void wpk_wgmma_fence() { self->accumulators_fenced = true; }

void wpk_wgmma_commit() {
  self->product_groups.push(self->uncommitted_products);
  self->uncommitted_products = 0;
}

void wpk_wgmma_wait(int left) {
  settle();
  int done = self->product_groups.size - left, products = 0;
  if (left == 0) self->accumulators_fenced = false;
  if (done <= 0) return;
  for (int i = 0; i < done; i++) products += self->product_groups.items[i];
  for (int i = 0; i < products; i++) {
    Product &product = self->products.items[i];
    finish(product, &product + 1, self->products.end());
    wait_for_agent(WGMMA_AGENTS + self->id / LANES, product.clock);
  }
  self->products.drop(products);
  self->product_groups.drop(done);
}

uint64_t wpk_matrix_desc(const void *shared, int leading, int stride, int swizzle, int line) {
  if (!in_shared(shared, 16) || shared_offset(shared) >> 18)
    fail("out-of-bounds", nullptr, line, "a matrix descriptor of memory outside wpk_shared");
  check_aligned(shared, 16, line);
  uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return (uint64_t)shared_offset(shared) >> 4 | (uint64_t)((leading & 0x3ffff) >> 4) << 16 |
         (uint64_t)((stride & 0x3ffff) >> 4) << 32 | mode << 62;
}
}
