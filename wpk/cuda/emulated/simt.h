// The emulator's inner interface: threads of a block as fibers, shared and global memory with a shadow, rendezvous of warps.
// One process runs one job; one operating-system thread runs everything. The docstring of wpk/cuda/emulator.py is the overview.
#pragma once
#include <cstddef>
#include <cstdint>

namespace simt {

constexpr int MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32, LANES = 32;
// agents besides the threads that use shared memory: TMA loads of each mbarrier, wgmma of each warp, TMA stores
constexpr int MAX_AGENTS = 96, TRACKED = MAX_THREADS + MAX_AGENTS;
constexpr unsigned MBARRIERS = 48, BARRIER_AGENTS = MAX_THREADS, WGMMA_AGENTS = BARRIER_AGENTS + MBARRIERS,
                   STORE_AGENTS = WGMMA_AGENTS + MAX_WARPS;

struct Dim { unsigned x, y, z; };

enum class State : uint8_t { ready, blocked, exited };

// What a wgmma adds to its accumulators when it is waited for; until then they are not numbers. `base` is what they were;
// null: an earlier one under way will tell. `clock` is that of its agent.
struct Product { float *d, *values, *base; int count; bool accumulate; uint32_t clock; };

struct Copy { void *shared; const void *global; int bytes, line; bool valid; };

// a growing array that keeps its memory
template <class T> struct List {
  T *items = nullptr;
  int size = 0, room = 0;
  void push(const T &item);
  void drop(int count);  // the oldest
  T *begin() { return items; }
  T *end() { return items + size; }
};

struct Fiber {
  void *stack_pointer;
  unsigned id;  // in the block
  Dim thread;
  State state;
  uint32_t stamp;      // this thread's clock, counts its synchronizations; see Shadow clocks below
  uint32_t fenced;     // its clock at its last fence_async
  const char *at;      // what it waits in, for reports
  int line;            // of the kernel text
  List<Copy> copies;   // cp.async under way, oldest first
  List<int> groups;    // sizes of its committed groups, oldest first
  int uncommitted;
  List<Product> products;  // wgmma under way, oldest first
  List<int> product_groups, store_groups;
  int uncommitted_products, uncommitted_stores;
  bool accumulators_fenced;
  bool (*awake)(void *);  // polled while blocked; null when another thread wakes it
  void *awake_argument;
};

struct Block {
  Dim index, size, grid;
  unsigned threads, warps, alive;
  uint32_t order;         // number of this block in the run, over all launches; blocks run one after another
  uint32_t shared_bytes;  // dynamic
};

extern Fiber fibers[MAX_THREADS];
extern Fiber *self;
extern Block block;
extern uint32_t ready[MAX_WARPS];  // lanes that can go on
extern uint64_t random_state;

uint64_t next_random();

// ---- scheduling ----

typedef void (*Kernel)(void **arguments);
void run_grid(Kernel kernel, void **arguments, Dim grid, Dim size, uint32_t shared_bytes);
// blocks the calling thread until wake()
void sleep(const char *at, int line);
void wake(Fiber &fiber);
// blocks the calling thread until `awake` says true
void sleep_until(bool (*awake)(void *), void *argument, const char *at, int line);

// All lanes of `mask` meet; the last one runs `meaning` with what each brought, then all go on.
typedef void (*Meaning)(void *brought[LANES], uint32_t mask, unsigned warp);
void meet(const char *what, uint32_t mask, int line, void *mine, Meaning meaning);
inline uint32_t lanes_of(unsigned warp) {
  unsigned rest = block.threads - warp * LANES;
  return rest >= LANES ? 0xffffffffu : (1u << rest) - 1;
}

// ---- clocks: who has seen what. A cell of the shadow holds writer and clock; it is visible to a thread when that clock lies
// before the block's last full barrier, or the thread has seen it through a finer synchronization.

typedef uint32_t Cell;  // clock << 12 | atomic << 11 | id; 0: never
constexpr Cell ATOMIC = 1u << 11, ID = ATOMIC - 1, IN_FLIGHT = 2047;
inline Cell cell_of(unsigned id, uint32_t stamp) { return stamp << 12 | id; }
uint32_t clock_of(Fiber &fiber);
bool visible(Cell cell);  // to the running thread
void full_barrier();      // all threads of the block have met
void join_threads(Fiber **members, int count, bool within_warp);
struct Seen { uint32_t clocks[TRACKED]; };
void release_into(Seen &seen);        // what the running thread knows, and its own past
void acquire_from(const Seen &seen);
uint32_t agent_stamp();  // a fresh clock for an asynchronous agent
void wait_for_agent(unsigned id, uint32_t stamp);  // the running thread knows that the agent is done up to there
void fence_writes();                               // what the running thread wrote so far may be read by agents
void start_clocks();

// ---- memory ----

void check_read(const void *address, size_t bytes, void *pc, int line);
void check_write(const void *address, size_t bytes, void *pc, int line);
void check_atomic(const void *address, size_t bytes, int line);
void check_aligned(const void *address, size_t bytes, int line);
// asynchronous copies into shared memory: from here to land() its bytes must not be touched
void mark_in_flight(void *shared, size_t bytes, int line);
void land(void *shared, const void *data, size_t bytes, unsigned id, uint32_t stamp);
// reads by one or two agents, which last until they are waited for: as check_read, and the writes must have been fenced
void check_proxy_read(const void *shared, size_t bytes, Cell agent, Cell other, int line, const char *what);
bool in_shared(const void *address, size_t bytes);
uint32_t shared_offset(const void *address);  // of the 1024-aligned window
unsigned char *shared_at(uint32_t offset);
void settle();  // decides on a conflict that is harmless if the same value was written
void start_block_memory();
void *add_buffer(int fd, size_t offset, size_t bytes, unsigned flags);
void check_outputs();
void start_memory();
extern uintptr_t load_address;  // of the program; line tables count from there
void begin_launch();
void check_nothing_under_way();  // as a block ends
enum : unsigned { MUST_WRITE = 1, UNWRITTEN = 2 };

// ---- tensor maps: the plain data behind the opaque 128 bytes; axes innermost first ----

struct alignas(128) TensorMap {
  char *base;
  int element, rank, swizzle;
  int64_t size[5], stride[5];
  short box[5];
  unsigned char step[5];  // elements of the tensor from one of the box to the next
};
static_assert(sizeof(TensorMap) == 128, "a kernel's parameter of type tensor_map");

inline uintptr_t swizzled(uintptr_t address, int swizzle) {
  return swizzle ? address ^ (address >> 3 & (uintptr_t)(swizzle - 16)) : address;  // bits 4.. with bits 7..
}

// ---- reports; none of these returns ----

[[noreturn]] void fail(const char *kind, void *pc, int line, const char *format, ...);

}  // namespace simt
