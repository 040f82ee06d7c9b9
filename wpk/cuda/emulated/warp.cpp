// Matrix units of a warp by their meaning, atomics and copies in flight. Register layouts as PTX "Matrix Fragments" has them.
#include "simt.h"
#include "wpk_half.h"

#include <cmath>
#include <cstring>

using namespace simt;

// ---- cp.async: nothing arrives before the wait ----

static void land_oldest(int count) {
  for (int i = 0; i < count; i++) {
    const Copy &copy = self->copies.items[i];
    land(copy.shared, copy.valid ? copy.global : nullptr, copy.bytes, self->id, clock_of(*self));
  }
  self->copies.drop(count);
}

extern "C" {
void wpk_atomic(const void *address, int bytes, int line) { check_atomic(address, bytes, line); }

void wpk_cp_async(void *shared, const void *global, int bytes, bool valid, int line) {
  check_aligned(shared, bytes, line);
  if (valid) {
    check_aligned(global, bytes, line);
    check_read(global, bytes, nullptr, line);
  }
  mark_in_flight(shared, bytes, line);
  self->copies.push({shared, global, bytes, line, valid});
  self->uncommitted++;
}

void wpk_cp_async_commit() {
  self->groups.push(self->uncommitted);
  self->uncommitted = 0;
}

void wpk_cp_async_wait(int left) {
  settle();
  int done = self->groups.size - left, copies = 0;
  if (done <= 0) return;
  for (int i = 0; i < done; i++) copies += self->groups.items[i];
  land_oldest(copies);
  self->groups.drop(done);
}

void wpk_trap(int line) { fail("trap", nullptr, line, "__trap"); }
float wpk_add_rounded(float a, float b) { return a + b; }
float wpk_mul_rounded(float a, float b) { return a * b; }
}

// ---- ldmatrix ----

struct Rows { const void *row; uint32_t *registers; int tiles, line; bool trans; };

static void load_matrices(void **brought, uint32_t, unsigned) {
  const Rows &first = *(Rows *)brought[0];
  for (int tile = 0; tile < first.tiles; tile++) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; row++) memcpy(element[row], ((Rows *)brought[tile * 8 + row])->row, 16);
    for (int lane = 0; lane < LANES; lane++) {
      int row = lane / 4, column = lane % 4 * 2;
      uint32_t low = first.trans ? element[column][row] : element[row][column];
      uint32_t high = first.trans ? element[column + 1][row] : element[row][column + 1];
      ((Rows *)brought[lane])->registers[tile] = low | high << 16;
    }
  }
}

static void whole_warp(const char *what, int line) {
  if (lanes_of(self->id / LANES) != 0xffffffffu) fail("divergence", nullptr, line, "%s in a warp of fewer than 32 threads", what);
}

extern "C" void wpk_ldmatrix(uint32_t *registers, const void *row, int tiles, bool trans, int line) {
  whole_warp("ldmatrix", line);
  if ((int)(self->id % LANES) < tiles * 8) {
    check_aligned(row, 16, line);
    if (!in_shared(row, 16)) fail("out-of-bounds", nullptr, line, "ldmatrix of a row outside shared memory");
    check_read(row, 16, nullptr, line);
  }
  Rows mine = {row, registers, tiles, line, trans};
  meet("ldmatrix", 0xffffffffu, line, &mine, load_matrices);
}

// ---- mma: products are exact, sums are rounded once; a GPU rounds sums in an order it does not tell ----

struct Fragments { void *d; const uint32_t *a, *b; };

static float low_half(uint32_t word, int kind) {
  return kind == 1 ? wpk_half_to_float((uint16_t)word) : wpk_bits_float(word << 16);
}
static float high_half(uint32_t word, int kind) {
  return kind == 1 ? wpk_half_to_float((uint16_t)(word >> 16)) : wpk_bits_float(word & 0xffff0000u);
}

// a is 16×16, b is kept by columns: 8×16
static void gather_halves(void **brought, int kind, float (*a)[32], float (*b)[32]) {
  for (int lane = 0; lane < LANES; lane++) {
    const Fragments &mine = *(Fragments *)brought[lane];
    int group = lane >> 2, pair = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
      float *at = &a[group + i % 2 * 8][pair + i / 2 * 8];
      at[0] = low_half(mine.a[i], kind);
      at[1] = high_half(mine.a[i], kind);
    }
    for (int i = 0; i < 2; i++) {
      b[group][pair + i * 8] = low_half(mine.b[i], kind);
      b[group][pair + i * 8 + 1] = high_half(mine.b[i], kind);
    }
  }
}

// a tensor core ignores the 13 bits that tf32 has not
static void gather_tf32(void **brought, float (*a)[32], float (*b)[32]) {
  for (int lane = 0; lane < LANES; lane++) {
    const Fragments &mine = *(Fragments *)brought[lane];
    int group = lane >> 2, within = lane % 4;
    for (int i = 0; i < 4; i++) a[group + i % 2 * 8][within + i / 2 * 4] = wpk_bits_float(mine.a[i] & ~0x1fffu);
    for (int i = 0; i < 2; i++) b[group][within + i * 4] = wpk_bits_float(mine.b[i] & ~0x1fffu);
  }
}

template <int K> static void multiply(void **brought, float (*a)[32], float (*b)[32]) {
  for (int lane = 0; lane < LANES; lane++) {
    float *d = (float *)((Fragments *)brought[lane])->d;
    for (int i = 0; i < 4; i++) {
      const float *row = a[(lane >> 2) + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
      double sum = d[i];
      for (int k = 0; k < K; k++) sum += (double)row[k] * column[k];
      d[i] = (float)sum;
    }
  }
}

static void mma_tf32(void **brought, uint32_t, unsigned) {
  float a[16][32], b[8][32];
  gather_tf32(brought, a, b);
  multiply<8>(brought, a, b);
}
template <int KIND> static void mma_halves(void **brought, uint32_t, unsigned) {
  float a[16][32], b[8][32];
  gather_halves(brought, KIND, a, b);
  multiply<16>(brought, a, b);
}

static void mma_s8(void **brought, uint32_t, unsigned) {
  int8_t a[16][32], b[8][32];
  for (int lane = 0; lane < LANES; lane++) {
    const Fragments &mine = *(Fragments *)brought[lane];
    int group = lane >> 2, four = lane % 4 * 4;
    for (int i = 0; i < 4; i++) memcpy(&a[group + i % 2 * 8][four + i / 2 * 16], &mine.a[i], 4);
    for (int i = 0; i < 2; i++) memcpy(&b[group][four + i * 16], &mine.b[i], 4);
  }
  for (int lane = 0; lane < LANES; lane++) {
    uint32_t *d = (uint32_t *)((Fragments *)brought[lane])->d;  // wraps around
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < 32; k++) d[i] += a[(lane >> 2) + i / 2 * 8][k] * b[lane % 4 * 2 + i % 2][k];
  }
}

extern "C" void wpk_mma(int kind, void *d, const uint32_t *a, const uint32_t *b, int line) {
  static const Meaning meanings[] = {mma_tf32, mma_halves<1>, mma_halves<2>, mma_s8};
  whole_warp("mma", line);
  Fragments mine = {d, a, b};
  meet("mma", 0xffffffffu, line, &mine, meanings[kind]);
}
