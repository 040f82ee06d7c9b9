// Threads of a block as fibers, run one at a time in an order drawn from the seed; barriers; rendezvous of warps.
#include "simt.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

// saves the callee's registers on the stack of `from`, goes on with `to`
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
constexpr int SAVED_WORDS = 7, RETURN_WORD = 6, WORDS_ABOVE = 3;  // aligned as behind a call
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, .-simt_switch
)");
constexpr int SAVED_WORDS = 20, RETURN_WORD = 11, WORDS_ABOVE = 4;
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif
extern "C" void simt_switch(void **from, void *to);

namespace simt {

constexpr size_t STACK = 256 << 10, GUARD = 512 << 10;  // a thread has at most 512 KB of local memory

Fiber fibers[MAX_THREADS];
Fiber *self;
Block block;
uint32_t ready[MAX_WARPS];
uint64_t random_state = 1;

static char *stacks;
static void *scheduler_stack;
static Kernel running_kernel;
static void **running_arguments;

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static void enter() {
  running_kernel(running_arguments);
  settle();
  if (self->products.size) fail("in-flight", nullptr, 0, "a thread ends with wgmma under way");
  self->state = State::exited;
  ready[self->id / LANES] &= ~(1u << self->id % LANES);
  block.alive--;
  simt_switch(&self->stack_pointer, scheduler_stack);
  abort();
}

static void prepare(Fiber &fiber, unsigned id) {
  char *top = stacks + (id + 1) * (STACK + GUARD);
  void **frame = (void **)top - SAVED_WORDS - WORDS_ABOVE;
  memset(frame, 0, SAVED_WORDS * sizeof(void *));
  frame[RETURN_WORD] = (void *)enter;
  fiber.stack_pointer = frame;
  fiber.id = id;
  fiber.thread = {id % block.size.x, id / block.size.x % block.size.y, id / (block.size.x * block.size.y)};
  fiber.state = State::ready;
  fiber.stamp = fiber.fenced = 0;
  fiber.copies.size = fiber.groups.size = fiber.uncommitted = 0;
  fiber.products.size = fiber.product_groups.size = fiber.uncommitted_products = 0;
  fiber.store_groups.size = fiber.uncommitted_stores = 0;
  fiber.accumulators_fenced = false;
  fiber.awake = nullptr;
  ready[id / LANES] |= 1u << id % LANES;
}

static void make_stacks() {
  size_t bytes = MAX_THREADS * (STACK + GUARD);
  stacks = (char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("crash", nullptr, 0, "no memory for stacks");
  for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * (STACK + GUARD), GUARD, PROT_NONE);
}

static void go_to_scheduler() {
  settle();
  simt_switch(&self->stack_pointer, scheduler_stack);
}

void sleep(const char *at, int line) {
  self->at = at;
  self->line = line;
  self->state = State::blocked;
  ready[self->id / LANES] &= ~(1u << self->id % LANES);
  go_to_scheduler();
}

void wake(Fiber &fiber) {
  fiber.state = State::ready;
  fiber.awake = nullptr;
  ready[fiber.id / LANES] |= 1u << fiber.id % LANES;
}

void sleep_until(bool (*awake)(void *), void *argument, const char *at, int line) {
  self->awake = awake;
  self->awake_argument = argument;
  sleep(at, line);
}

// ---- one block ----

static bool run_warp(unsigned warp) {
  bool progress = false;
  unsigned turn = next_random() % LANES;
  while (uint32_t lanes = ready[warp]) {
    uint32_t turned = turn ? lanes >> turn | lanes << (LANES - turn) : lanes;
    unsigned lane = (__builtin_ctz(turned) + turn) % LANES;
    self = &fibers[warp * LANES + lane];
    simt_switch(&scheduler_stack, self->stack_pointer);
    progress = true;
  }
  return progress;
}

static bool wake_those_who_poll() {
  bool any = false;
  for (unsigned i = 0; i < block.threads; i++) {
    Fiber &fiber = fibers[i];
    if (fiber.state != State::blocked || !fiber.awake) continue;
    self = &fiber;
    if (fiber.awake(fiber.awake_argument)) wake(fiber), any = true;
  }
  return any;
}

struct Meeting {
  uint32_t mask, arrived;
  const char *what;
  int line;
  void *brought[LANES];
};
static Meeting meetings[MAX_WARPS][LANES];  // by the lowest lane of the mask

static void report_lanes() {
  for (unsigned warp = 0; warp < block.warps; warp++)
    for (const Meeting &meeting : meetings[warp]) {
      if (!meeting.arrived) continue;
      self = &fibers[warp * LANES + __builtin_ctz(meeting.arrived)];
      fail("divergence", nullptr, meeting.line, "lanes %08x of warp %u wait in %s for lanes %08x", meeting.arrived, warp,
           meeting.what, meeting.mask & ~meeting.arrived);
    }
}

static void report_stuck() {
  report_lanes();
  const Fiber *waiting = nullptr;
  unsigned exited = 0, blocked = 0, beside = 0;
  for (unsigned i = 0; i < block.threads; i++) {
    const Fiber &fiber = fibers[i];
    if (fiber.state == State::exited) exited++;
    else if (!waiting) waiting = &fiber, blocked++;
    else if (fiber.line == waiting->line) blocked++;
    else beside++;
  }
  self = const_cast<Fiber *>(waiting);
  fail("barrier", nullptr, waiting->line, "%u of %u threads wait in %s; %u have exited, %u wait elsewhere", blocked,
       block.threads, waiting->at, exited, beside);
}

static void run_block() {
  unsigned order[MAX_WARPS];
  for (unsigned w = 0; w < block.warps; w++) order[w] = w;
  while (block.alive) {
    for (unsigned w = block.warps; w > 1; w--) {
      unsigned other = next_random() % w, kept = order[w - 1];
      order[w - 1] = order[other];
      order[other] = kept;
    }
    bool progress = false;
    for (unsigned w = 0; w < block.warps; w++) progress |= run_warp(order[w]);
    if (!progress && block.alive && !wake_those_who_poll()) report_stuck();
  }
}

// blocks in a random order: the whole grid walked with a step that has no common factor with its size
static uint64_t coprime_step(uint64_t count) {
  for (;;) {
    uint64_t step = next_random() % count, a = count, b = step;
    while (b) { uint64_t rest = a % b; a = b; b = rest; }
    if (a == 1 || count == 1) return step ? step : 1;
  }
}

void run_grid(Kernel kernel, void **arguments, Dim grid, Dim size, uint32_t shared_bytes) {
  if (!stacks) make_stacks();
  running_kernel = kernel;
  running_arguments = arguments;
  block.grid = grid;
  block.size = size;
  block.threads = size.x * size.y * size.z;
  block.warps = (block.threads + LANES - 1) / LANES;
  block.shared_bytes = shared_bytes;
  uint64_t count = (uint64_t)grid.x * grid.y * grid.z, step = coprime_step(count), at = next_random() % count;
  for (uint64_t i = 0; i < count; i++, at = (at + step) % count) {
    block.index = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
    block.order++;
    block.alive = block.threads;
    start_block_memory();
    start_clocks();
    for (unsigned t = 0; t < block.threads; t++) prepare(fibers[t], t);
    run_block();
    check_nothing_under_way();
  }
}

// ---- rendezvous of lanes ----

static void check_meeting(const Meeting &meeting, const char *what, uint32_t mask, int line) {
  if (meeting.mask == mask && !strcmp(meeting.what, what) && meeting.line == line) return;
  fail("divergence", nullptr, line, "lane is at %s (mask %08x) while lanes of its warp are at %s of line %d (mask %08x)", what,
       mask, meeting.what, meeting.line, meeting.mask);
}

void meet(const char *what, uint32_t mask, int line, void *mine, Meaning meaning) {
  unsigned warp = self->id / LANES, lane = self->id % LANES;
  mask &= lanes_of(warp);
  if (!(mask >> lane & 1)) fail("divergence", nullptr, line, "%s with mask %08x by a lane that it does not name", what, mask);
  Meeting &meeting = meetings[warp][__builtin_ctz(mask)];
  if (!meeting.arrived) meeting.mask = mask, meeting.what = what, meeting.line = line;
  else check_meeting(meeting, what, mask, line);
  meeting.arrived |= 1u << lane;
  meeting.brought[lane] = mine;
  if (meeting.arrived != mask) return sleep(what, line);
  settle();
  meeting.arrived = 0;
  meaning(meeting.brought, mask, warp);
  for (uint32_t rest = mask & ~(1u << lane); rest; rest &= rest - 1) wake(fibers[warp * LANES + __builtin_ctz(rest)]);
}

template <class T> void List<T>::push(const T &item) {
  if (size == room) items = (T *)realloc(items, (room = room ? 2 * room : 8) * sizeof(T));
  items[size++] = item;
}
template <class T> void List<T>::drop(int count) {
  size -= count;
  memmove(items, items + count, size * sizeof(T));
}
template struct List<Copy>;
template struct List<Product>;
template struct List<int>;

}  // namespace simt
