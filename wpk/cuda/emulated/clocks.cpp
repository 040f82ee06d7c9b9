// Who has seen whose writes: barriers of a block, clocks of its threads, votes and shuffles.
#include "simt.h"

#include <cstring>

namespace simt {

static Seen seen[MAX_THREADS];
static uint32_t floor_clock = 1, top_clock = 1;
static bool across_warps;  // something finer than a full barrier has joined threads of different warps in this block

constexpr uint32_t LAST_CLOCK = (1u << 20) - 4096;

uint32_t clock_of(Fiber &fiber) { return fiber.stamp > floor_clock ? fiber.stamp : floor_clock; }

static void advance(Fiber &fiber) {
  fiber.stamp = clock_of(fiber) + 1;
  if (fiber.stamp > top_clock) top_clock = fiber.stamp;
}

// agents: the clock up to which somebody has waited for them, and that up to which all know it
static uint32_t waited[TRACKED], settled[TRACKED];

bool visible(Cell cell) {
  uint32_t clock = cell >> 12, id = cell & ID;
  if (id >= MAX_THREADS) return clock <= settled[id] || seen[self->id].clocks[id] >= clock;
  return clock < floor_clock || id == self->id || seen[self->id].clocks[id] >= clock;
}

uint32_t agent_stamp() {
  across_warps = true;
  return ++top_clock;
}

void wait_for_agent(unsigned id, uint32_t stamp) {
  uint32_t &known = seen[self->id].clocks[id];
  if (known < stamp) known = stamp;
  if (waited[id] < stamp) waited[id] = stamp;
}

void fence_writes() {
  advance(*self);
  self->fenced = self->stamp;
}

void full_barrier() {
  floor_clock = ++top_clock;
  memcpy(settled + MAX_THREADS, waited + MAX_THREADS, MAX_AGENTS * sizeof *settled);
  if (floor_clock > LAST_CLOCK) fail("limit", nullptr, self->line, "a block synchronizes too often to be followed");
}

void start_clocks() {
  across_warps = false;
  if (top_clock > LAST_CLOCK / 2) {
    memset(seen, 0, sizeof seen);
    memset(waited, 0, sizeof waited);
    memset(settled, 0, sizeof settled);
    top_clock = 0;
  }
  floor_clock = ++top_clock;
}

// the range of clocks that can matter
static void range(const Fiber &fiber, unsigned &from, unsigned &to) {
  from = across_warps ? 0 : fiber.id / LANES * LANES;
  to = across_warps ? TRACKED : from + LANES;
}

void join_threads(Fiber **members, int count, bool within_warp) {
  if (!within_warp) across_warps = true;
  unsigned from, to;
  range(*members[0], from, to);
  static Seen all;
  memset(&all.clocks[from], 0, (to - from) * sizeof(uint32_t));
  for (int i = 0; i < count; i++) {
    const uint32_t *mine = seen[members[i]->id].clocks;
    for (unsigned t = from; t < to; t++) all.clocks[t] = all.clocks[t] > mine[t] ? all.clocks[t] : mine[t];
  }
  for (int i = 0; i < count; i++) all.clocks[members[i]->id] = clock_of(*members[i]);
  for (int i = 0; i < count; i++) {
    memcpy(&seen[members[i]->id].clocks[from], &all.clocks[from], (to - from) * sizeof(uint32_t));
    advance(*members[i]);
  }
}

void release_into(Seen &into) {
  across_warps = true;
  const uint32_t *mine = seen[self->id].clocks;
  for (unsigned t = 0; t < TRACKED; t++) into.clocks[t] = into.clocks[t] > mine[t] ? into.clocks[t] : mine[t];
  into.clocks[self->id] = clock_of(*self);
  advance(*self);
}

void acquire_from(const Seen &from) {
  across_warps = true;
  uint32_t *mine = seen[self->id].clocks;
  for (unsigned t = 0; t < TRACKED; t++) mine[t] = mine[t] > from.clocks[t] ? mine[t] : from.clocks[t];
  for (unsigned t = MAX_THREADS; t < TRACKED; t++) waited[t] = waited[t] > mine[t] ? waited[t] : mine[t];
}

// ---- barriers of a block or part of it; number 0 is __syncthreads ----

struct Votes { int count, all, any; };
struct Barrier {
  unsigned expected, arrived;
  int line;
  Votes votes, result;  // of the phase under way, and of the last that ended
  Fiber *waiting[MAX_THREADS], *met[MAX_THREADS];
  int sleepers;
};
static Barrier barriers[16];

static void finish(Barrier &barrier) {
  if (barrier.arrived == block.threads) full_barrier();
  else join_threads(barrier.met, barrier.arrived, false);
  for (int i = 0; i < barrier.sleepers; i++) wake(*barrier.waiting[i]);
  barrier.arrived = barrier.sleepers = 0;
  barrier.result = barrier.votes;
}

static void arrive(Barrier &barrier, unsigned expected, int predicate, int line) {
  settle();
  if (!barrier.arrived) barrier.expected = expected, barrier.line = line, barrier.votes = {0, 1, 0};
  if (barrier.expected != expected)
    fail("barrier", nullptr, line, "%u threads expected here, %u at line %d", expected, barrier.expected, barrier.line);
  barrier.met[barrier.arrived++] = self;
  barrier.votes.count += predicate != 0;
  barrier.votes.any |= predicate != 0;
  barrier.votes.all &= predicate != 0;
}

static void cross(Barrier &barrier, const char *name, int line) {
  if (barrier.arrived == barrier.expected) return finish(barrier);
  barrier.waiting[barrier.sleepers++] = self;
  sleep(name, line);
}

// a block's barrier must be met by all its threads, at one place: hardware forgives exited threads, generated code never needs it
static const Votes &meet_block(int predicate, const char *name, int line) {
  Barrier &barrier = barriers[0];
  if (barrier.arrived && barrier.line != line)
    fail("barrier", nullptr, line, "threads of the block meet at different barriers: lines %d and %d", barrier.line, line);
  arrive(barrier, block.threads, predicate, line);
  cross(barrier, name, line);
  return barrier.result;
}

}  // namespace simt

using namespace simt;

extern "C" {
void wpk_syncthreads(int line) { meet_block(0, "__syncthreads", line); }
int wpk_syncthreads_count(int predicate, int line) { return meet_block(predicate, "__syncthreads_count", line).count; }
int wpk_syncthreads_and(int predicate, int line) { return meet_block(predicate, "__syncthreads_and", line).all; }
int wpk_syncthreads_or(int predicate, int line) { return meet_block(predicate, "__syncthreads_or", line).any; }

static void check_named(int id, int threads, int line) {
  if (id < 1 || id > 15 || threads % LANES || threads <= 0 || threads > (int)block.threads)
    fail("barrier", nullptr, line, "named barrier %d of %d threads in a block of %u", id, threads, block.threads);
}

void wpk_named_sync(int id, int threads, int line) {
  check_named(id, threads, line);
  arrive(barriers[id], threads, 0, line);
  cross(barriers[id], "named_barrier_sync", line);
}

void wpk_named_arrive(int id, int threads, int line) {
  check_named(id, threads, line);
  arrive(barriers[id], threads, 0, line);
  if (barriers[id].arrived == barriers[id].expected) finish(barriers[id]);
}
}

// ---- lanes ----

static void join_lanes(void **, uint32_t mask, unsigned warp) {
  Fiber *members[LANES];
  int count = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) members[count++] = &fibers[warp * LANES + __builtin_ctz(rest)];
  join_threads(members, count, true);
}

struct Vote { int predicate; uint32_t result; };

static void ballot(void **brought, uint32_t mask, unsigned) {
  uint32_t votes = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    votes |= (uint32_t)(((Vote *)brought[lane])->predicate != 0) << lane;
  }
  for (uint32_t rest = mask; rest; rest &= rest - 1) ((Vote *)brought[__builtin_ctz(rest)])->result = votes;
}

struct Shuffle { uint64_t value, result; int source; };

// a lane that does not take part has no value to give: reading it is an error
static void shuffle(void **brought, uint32_t mask, unsigned) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    Shuffle *mine = (Shuffle *)brought[__builtin_ctz(rest)];
    bool there = mask >> mine->source & 1;
    mine->result = there ? ((Shuffle *)brought[mine->source])->value : 0x7fc0dead7fc0deadull;
  }
}

extern "C" {
void wpk_syncwarp(uint32_t mask, int line) { meet("__syncwarp", mask, line, nullptr, join_lanes); }

uint32_t wpk_ballot(uint32_t mask, int predicate, int line) {
  Vote vote = {predicate, 0};
  meet("a vote", mask, line, &vote, ballot);
  return vote.result;
}

// kind 0: from lane `operand`; 1: up; 2: down; 3: xor. As PTX shfl: outside the segment of `width` lanes, the own value.
uint64_t wpk_shuffle(int kind, uint32_t mask, uint64_t value, int operand, int width, int line) {
  int lane = self->id % LANES, base = lane & ~(width - 1), last = base + width - 1, source = lane;
  if (kind == 0) source = base | (operand & (width - 1));
  if (kind == 1 && lane - operand >= base) source = lane - operand;
  if (kind == 2 && lane + operand <= last) source = lane + operand;
  if (kind == 3 && (lane ^ operand) <= last) source = lane ^ operand;
  Shuffle mine = {value, 0, source};
  meet("__shfl_sync", mask, line, &mine, shuffle);
  return mine.result;
}

unsigned wpk_thread(int axis) { return axis == 0 ? self->thread.x : axis == 1 ? self->thread.y : self->thread.z; }
unsigned wpk_block(int axis) { return axis == 0 ? block.index.x : axis == 1 ? block.index.y : block.index.z; }
unsigned wpk_block_size(int axis) { return axis == 0 ? block.size.x : axis == 1 ? block.size.y : block.size.z; }
unsigned wpk_grid_size(int axis) { return axis == 0 ? block.grid.x : axis == 1 ? block.grid.y : block.grid.z; }
}
