// mbarriers and TMA by their meaning. A TMA load's data arrives when somebody waits for it and nothing else can go on.
#include "simt.h"

#include <cstdlib>
#include <cstring>

using namespace simt;

// ---- mbarriers: their state is kept here, the eight bytes in shared memory only serve the shadow ----

struct Pending { const TensorMap *map; char *shared; int64_t at[5]; };

struct MBarrier {
  const void *address;
  uint32_t block;  // order of the block that initialized it
  int count, pending, phase;
  long bytes;  // expected and not here yet
  Seen arrived, completed;
  List<Pending> copies;
};
static MBarrier mbarriers[MBARRIERS];

template <> void List<Pending>::push(const Pending &item) {
  if (size == room) items = (Pending *)realloc(items, (room = room ? 2 * room : 8) * sizeof(Pending));
  items[size++] = item;
}

static MBarrier &slot_of(const void *address, int line) {
  MBarrier *free = nullptr;
  for (MBarrier &barrier : mbarriers) {
    if (barrier.block == block.order && barrier.address == address) return barrier;
    if (barrier.block != block.order) free = &barrier;
  }
  if (!free) fail("limit", nullptr, line, "more than %u mbarriers in a block", MBARRIERS);
  free->block = 0;
  return *free;
}

static MBarrier &initialized(const void *address, int line) {
  check_aligned(address, 8, line);
  check_read(address, 8, nullptr, line);
  MBarrier &barrier = slot_of(address, line);
  if (!barrier.block) fail("barrier", nullptr, line, "an mbarrier that was never initialized");
  return barrier;
}

static void complete_if_done(MBarrier &barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.completed = barrier.arrived;
  barrier.pending = barrier.count;
  barrier.phase ^= 1;
}

static void arrive_at(MBarrier &barrier, int line) {
  settle();
  if (!barrier.pending) fail("barrier", nullptr, line, "more than %d threads arrive in one phase", barrier.count);
  release_into(barrier.arrived);
  barrier.pending--;
  complete_if_done(barrier);
}

// ---- boxes of tensors ----

static int box_bytes(const TensorMap &map) {
  int bytes = map.element;
  for (int axis = 0; axis < map.rank; axis++) bytes *= map.box[axis];
  return bytes;
}

// calls back with each inner row of a box: where it lies in the box, in global memory (null: outside), and how much of it
// is inside; rows may begin or end outside
template <class F> static void rows_of(const TensorMap &map, const int64_t *at, F each) {
  int64_t rows = box_bytes(map) / (map.element * map.box[0]);
  for (int64_t row = 0; row < rows; row++) {
    char *global = map.base;
    bool inside = true;
    int64_t rest = row;
    for (int axis = 1; axis < map.rank; axis++) {
      int64_t index = at[axis] + rest % map.box[axis] * map.step[axis];
      rest /= map.box[axis];
      inside &= index >= 0 && index < map.size[axis];
      global += index * map.stride[axis];
    }
    int64_t first = at[0] < 0 ? -at[0] : 0, last = map.size[0] - at[0];
    if (last > map.box[0]) last = map.box[0];
    if (!inside || first >= last) first = last = 0;
    each(row * map.box[0] * map.element, global + at[0] * map.element, first * map.element, last * map.element);
  }
}

// the 16-byte pieces of a box keep together under any swizzle
static char *piece(const TensorMap &map, char *shared, int64_t offset) {
  return (char *)swizzled((uintptr_t)shared + offset, map.swizzle);
}

static const TensorMap &checked_map(const void *map, const void *shared, int rank, int line) {
  const TensorMap &known = *(const TensorMap *)map;
  if (known.rank != rank) fail("launch", nullptr, line, "a tensor map of %d axes used with %d", known.rank, rank);
  int aligned = known.swizzle ? 8 * known.swizzle : 128;
  if ((uintptr_t)shared % aligned)
    fail("misaligned", nullptr, line, "TMA needs shared memory aligned to %d bytes here; %d bytes off", aligned,
         (int)((uintptr_t)shared % aligned));
  return known;
}

static void land_box(const Pending &copy, unsigned agent, uint32_t stamp) {
  const TensorMap &map = *copy.map;
  rows_of(map, copy.at, [&](int64_t offset, char *global, int64_t first, int64_t last) {
    for (int64_t done = 0; done < map.element * map.box[0]; done += 16) {
      char data[16] = {};
      int64_t from = first > done ? first : done, to = last < done + 16 ? last : done + 16;
      if (from < to) memcpy(data + (from - done), global + from, to - from);
      land(piece(map, copy.shared, offset + done), data, 16, agent, stamp);
    }
  });
}

static void land_all(MBarrier &barrier) {
  unsigned agent = BARRIER_AGENTS + (unsigned)(&barrier - mbarriers);
  for (const Pending &copy : barrier.copies) {
    uint32_t stamp = agent_stamp();
    land_box(copy, agent, stamp);
    barrier.arrived.clocks[agent] = stamp;
    barrier.bytes -= box_bytes(*copy.map);
    if (barrier.bytes < 0) fail("barrier", nullptr, self->line, "%ld bytes more than expected arrive", -barrier.bytes);
  }
  if (!barrier.copies.size) return;
  barrier.copies.size = 0;
  complete_if_done(barrier);
}

struct Wait { MBarrier *barrier; int parity; };

static bool phase_is_over(void *argument) {
  Wait &wait = *(Wait *)argument;
  if (wait.barrier->phase == wait.parity) land_all(*wait.barrier);
  return wait.barrier->phase != wait.parity;
}

void simt::check_nothing_under_way() {
  for (const MBarrier &barrier : mbarriers)
    if (barrier.block == block.order && barrier.copies.size)
      fail("in-flight", nullptr, 0, "block (%u,%u,%u) ends with TMA loads under way", block.index.x, block.index.y, block.index.z);
}

extern "C" {
void wpk_mbar_init(void *address, int count, int line) {
  check_aligned(address, 8, line);
  check_write(address, 8, nullptr, line);
  MBarrier &barrier = slot_of(address, line);
  List<Pending> copies = barrier.copies;
  memset(&barrier, 0, sizeof barrier);
  barrier.copies = copies;
  barrier.copies.size = 0;
  barrier.address = address;
  barrier.block = block.order;
  barrier.count = barrier.pending = count;
}

void wpk_mbar_arrive(void *address, int bytes, int line) {
  MBarrier &barrier = initialized(address, line);
  barrier.bytes += bytes;
  arrive_at(barrier, line);
}

void wpk_mbar_wait(void *address, int parity, int line) {
  settle();
  Wait wait = {&initialized(address, line), parity & 1};
  if (wait.barrier->phase == wait.parity) sleep_until(phase_is_over, &wait, "mbar_wait", line);
  acquire_from(wait.barrier->completed);
}

void wpk_tma_load(void *shared, const void *map, void *address, const int *at, int rank, int line) {
  const TensorMap &known = checked_map(map, shared, rank, line);
  MBarrier &barrier = initialized(address, line);
  Pending copy = {&known, (char *)shared, {}};
  for (int axis = 0; axis < rank; axis++) copy.at[axis] = at[axis];
  rows_of(known, copy.at, [&](int64_t, char *global, int64_t first, int64_t last) {
    if (first < last) check_read(global + first, last - first, nullptr, line);
  });
  mark_in_flight(shared, box_bytes(known), line);
  barrier.copies.push(copy);
}

void wpk_tma_store(const void *map, void *shared, const int *at, int rank, int line) {
  const TensorMap &known = checked_map(map, shared, rank, line);
  unsigned agent = STORE_AGENTS + self->id / LANES % 8;
  uint32_t stamp = agent_stamp();
  int64_t where[5] = {};
  for (int axis = 0; axis < rank; axis++) where[axis] = at[axis];
  rows_of(known, where, [&](int64_t offset, char *global, int64_t first, int64_t last) {
    for (int64_t done = first / 16 * 16; done < last; done += 16) {
      char *from = piece(known, (char *)shared, offset + done);
      check_proxy_read(from, 16, cell_of(agent, stamp), 0, line, "a TMA store");
      int64_t start = first > done ? first : done, stop = last < done + 16 ? last : done + 16;
      check_write(global + start, stop - start, nullptr, line);
      memcpy(global + start, from + (start - done), stop - start);
    }
  });
  self->uncommitted_stores = (int)stamp;
}

void wpk_tma_store_commit() {
  self->store_groups.push(self->uncommitted_stores);
  self->uncommitted_stores = 0;
}

void wpk_tma_store_wait(int left) {
  int done = self->store_groups.size - left;
  if (done <= 0) return;
  for (int i = 0; i < done; i++)
    wait_for_agent(STORE_AGENTS + self->id / LANES % 8, (uint32_t)self->store_groups.items[i]);
  self->store_groups.drop(done);
}

void wpk_fence_async() {
  settle();
  fence_writes();
}
}
