// Shared and global memory with a shadow. The kernel is compiled as for the thread sanitizer, whose hooks are defined here.
#include "simt.h"

#include <cstdio>
#include <cstring>
#include <link.h>
#include <sys/mman.h>

#define PC __builtin_return_address(0)

constexpr size_t SHARED_LIMIT = 232448;  // dynamic and static together, of a block (sm_90)
alignas(1024) thread_local unsigned char wpk_shared[SHARED_LIMIT];

extern "C" char __executable_start[], end[];

namespace simt {

// ---- shared memory: the thread-local segment of the program, wpk_shared and all static __shared__ variables ----

constexpr size_t STATIC_LIMIT = 48 << 10, CELLS = SHARED_LIMIT + STATIC_LIMIT + 4096;
static uintptr_t shared_start, shared_end, dynamic_start;
static Cell writer[CELLS], reader[CELLS], reader_before[CELLS];

// ---- global memory: each buffer far from all others, so that every stray address is told apart ----

constexpr int MAX_BUFFERS = 64;
constexpr int SLOT_BITS = 32;
struct Buffer {
  uintptr_t start;
  size_t bytes;
  unsigned flags;
  bool tracked;
  uint64_t *cells;  // order of the writing block << 32 | cell, for each byte
};
static Buffer buffers[MAX_BUFFERS];
static int buffer_count;
static uintptr_t arena;
static uint32_t launch_first;  // order of the first block of this launch
static unsigned char *released;  // by block order: the block has done an atomic operation on global memory
static uint32_t released_room;

uintptr_t load_address;

static int find_segment(dl_phdr_info *info, size_t, void *) {
  load_address = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_TLS) {
      shared_start = (uintptr_t)info->dlpi_tls_data;
      shared_end = shared_start + info->dlpi_phdr[i].p_memsz;
    }
  return 1;  // the first object is the program
}

void start_memory() {
  dl_iterate_phdr(find_segment, nullptr);
  dynamic_start = (uintptr_t)wpk_shared;
  if (shared_end - shared_start > CELLS) fail("limit", nullptr, 0, "more than 48 KB of static shared memory");
  arena = (uintptr_t)mmap(nullptr, (size_t)MAX_BUFFERS << SLOT_BITS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == (uintptr_t)MAP_FAILED) fail("crash", nullptr, 0, "no address space");
}

void *add_buffer(int fd, size_t offset, size_t bytes, unsigned flags) {
  if (buffer_count == MAX_BUFFERS || bytes >> (SLOT_BITS - 1)) fail("limit", nullptr, 0, "too many or too large arguments");
  Buffer &buffer = buffers[buffer_count];
  uintptr_t start = arena + ((uintptr_t)buffer_count++ << SLOT_BITS) + (1ull << (SLOT_BITS - 2));
  void *cells = mmap(nullptr, (bytes + 1) * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void *data = mmap((void *)start, bytes + 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset);
  if (cells == MAP_FAILED || data == MAP_FAILED) fail("crash", nullptr, 0, "no memory for arguments");
  buffer = {start, bytes, flags, (flags & UNWRITTEN) != 0, (uint64_t *)cells};
  return data;
}

void check_outputs() {
  for (int i = 0; i < buffer_count; i++) {
    if (!(buffers[i].flags & MUST_WRITE)) continue;
    for (size_t b = 0; b < buffers[i].bytes; b++)
      if (!buffers[i].cells[b]) {
        self = nullptr;
        fail("unwritten", nullptr, 0, "byte %zu of argument %d is never written", b, i);
      }
  }
}

// ---- reports ----

static const char *space_of(const void *address, char *name, size_t room) {
  uintptr_t at = (uintptr_t)address;
  if (at >= shared_start && at < shared_end)
    snprintf(name, room, at >= dynamic_start && at < dynamic_start + SHARED_LIMIT ? "wpk_shared[%zu]" : "static shared +%zu",
             (size_t)(at - (at >= dynamic_start && at < dynamic_start + SHARED_LIMIT ? dynamic_start : shared_start)));
  else if (at >= arena && at >> SLOT_BITS < (arena >> SLOT_BITS) + MAX_BUFFERS + 1 && (at - arena) >> SLOT_BITS < MAX_BUFFERS) {
    int slot = (int)((at - arena) >> SLOT_BITS);
    snprintf(name, room, "argument %d at byte %lld of %zu", slot, (long long)(at - buffers[slot].start), buffers[slot].bytes);
  } else snprintf(name, room, "address %p", address);
  return name;
}

[[noreturn]] static void fail_at(const char *kind, const char *what, const void *address, size_t bytes, void *pc, int line) {
  char name[96];
  fail(kind, pc, line, "%s of %zu bytes at %s", what, bytes, space_of(address, name, sizeof name));
}

[[noreturn]] static void fail_race(const char *what, const char *other, Cell cell, const void *address, void *pc, int line) {
  char name[96];
  char who[32] = "an asynchronous operation";
  if ((cell & ID) < MAX_THREADS) snprintf(who, sizeof who, "thread %u", cell & ID);
  fail("race", pc, line, "%s of %s, %s by %s with no synchronization in between", what, space_of(address, name, sizeof name),
       other, who);
}

// ---- a conflict is harmless when the value stays what it was; that is known once the store has happened ----

static struct { void *address; size_t bytes; unsigned char old[16]; const char *other; Cell cell; void *pc; int line; } conflict;

static void suspect(const void *address, size_t bytes, const char *other, Cell cell, void *pc, int line) {
  if (bytes > sizeof conflict.old) fail_race("write", other, cell, address, pc, line);
  if (conflict.bytes) return;
  conflict = {(void *)address, bytes, {}, other, cell, pc, line};
  memcpy(conflict.old, address, bytes);
}

void settle() {
  if (!conflict.bytes) return;
  size_t bytes = conflict.bytes;
  conflict.bytes = 0;
  if (memcmp(conflict.address, conflict.old, bytes))
    fail_race("write", conflict.other, conflict.cell, conflict.address, conflict.pc, conflict.line);
}

// ---- accesses to shared memory ----

bool in_shared(const void *address, size_t bytes) {
  uintptr_t at = (uintptr_t)address;
  return at >= shared_start && at + bytes <= shared_end;
}

uint32_t shared_offset(const void *address) { return (uint32_t)((uintptr_t)address - dynamic_start); }
unsigned char *shared_at(uint32_t offset) { return (unsigned char *)dynamic_start + offset; }

static inline void check_extent(uintptr_t at, size_t bytes, const char *what, void *pc, int line) {
  bool dynamic = at >= dynamic_start && at < dynamic_start + SHARED_LIMIT;
  if (dynamic && at + bytes > dynamic_start + block.shared_bytes)
    fail_at("out-of-bounds", what, (void *)at, bytes, pc, line);
}

static void read_shared(uintptr_t at, size_t bytes, void *pc, int line) {
  check_extent(at, bytes, "read", pc, line);
  size_t index = at - shared_start;
  Cell me = cell_of(self->id, clock_of(*self)), checked = me;
  for (size_t i = index; i < index + bytes; i++) {
    Cell last = writer[i];
    if (last != checked) {
      if (!last) fail_at("unwritten", "read", (void *)(at + i - index), bytes, pc, line);
      if ((last & ID) == IN_FLIGHT) fail_at("in-flight", "read", (void *)at, bytes, pc, line);
      if (!visible(last)) fail_race("read", "written", last, (void *)at, pc, line);
      checked = last;
    }
    if (reader[i] != me) {
      if ((reader[i] & ID) != self->id) reader_before[i] = reader[i];
      reader[i] = me;
    }
  }
}

static void write_shared(uintptr_t at, size_t bytes, Cell mark, void *pc, int line) {
  check_extent(at, bytes, "write", pc, line);
  size_t index = at - shared_start;
  for (size_t i = index; i < index + bytes; i++) {
    if ((writer[i] & ID) == IN_FLIGHT) fail_at("in-flight", "write", (void *)at, bytes, pc, line);
    bool both_atomic = writer[i] & mark & ATOMIC;
    if (!both_atomic && !visible(writer[i] & ~ATOMIC)) suspect((void *)at, bytes, "written", writer[i], pc, line);
    else if (!visible(reader[i])) suspect((void *)at, bytes, "read", reader[i], pc, line);
    else if (!visible(reader_before[i])) suspect((void *)at, bytes, "read", reader_before[i], pc, line);
    writer[i] = mark;
    reader[i] = reader_before[i] = 0;
  }
}

static void clear_cells(uintptr_t from, uintptr_t to) {
  size_t index = from - shared_start, count = to - from;
  memset(writer + index, 0, count * sizeof(Cell));
  memset(reader + index, 0, count * sizeof(Cell));
  memset(reader_before + index, 0, count * sizeof(Cell));
  memset((void *)from, (int)(next_random() & 0xff) | 0x80, count);  // what is read unseen should show
}

void start_block_memory() {
  clear_cells(shared_start, dynamic_start);
  clear_cells(dynamic_start, dynamic_start + block.shared_bytes);
  uintptr_t after = dynamic_start + SHARED_LIMIT;
  if (after < shared_end) clear_cells(after, shared_end);
}

// ---- accesses to global memory ----

// null: not within one buffer
static inline Buffer *buffer_at(uintptr_t at, size_t bytes) {
  size_t slot = (at - arena) >> SLOT_BITS;
  if (slot >= (size_t)buffer_count) return nullptr;
  Buffer &buffer = buffers[slot];
  return at >= buffer.start && at + bytes <= buffer.start + buffer.bytes ? &buffer : nullptr;
}

// was the write of another block handed over by atomics?
static bool handed_over(uint32_t order) {
  return order < released_room && released[order] && block.order < released_room && released[block.order];
}

static void read_global(Buffer &buffer, uintptr_t at, size_t bytes, void *pc, int line) {
  if (!buffer.tracked) return;
  for (size_t i = at - buffer.start; i < at - buffer.start + bytes; i++) {
    uint64_t cell = buffer.cells[i];
    uint32_t order = cell >> 32;
    if (!cell && buffer.flags & UNWRITTEN) fail_at("unwritten", "read", (void *)at, bytes, pc, line);
    if (order < launch_first) continue;
    if (order == block.order ? !visible((Cell)cell) : !handed_over(order)) {
      char name[96];
      fail("race", pc, line, "read of %s, written by %s in the same launch", space_of((void *)at, name, sizeof name),
           order == block.order ? "another thread" : "another block");
    }
  }
}

static void write_global(Buffer &buffer, uintptr_t at, size_t bytes, Cell mark, void *pc, int line) {
  buffer.tracked = true;
  for (size_t i = at - buffer.start; i < at - buffer.start + bytes; i++) {
    uint64_t cell = buffer.cells[i];
    uint32_t order = cell >> 32;
    bool both_atomic = cell & mark & ATOMIC;
    if (order >= launch_first && !both_atomic && (order == block.order ? !visible((Cell)cell & ~ATOMIC) : !handed_over(order)))
      suspect((void *)at, bytes, order == block.order ? "written" : "written in another block", (Cell)cell, pc, line);
    buffer.cells[i] = (uint64_t)block.order << 32 | mark;
  }
}

static bool elsewhere(uintptr_t at, size_t bytes) {
  uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
  bool stack = at + bytes > frame && at < frame + (256 << 10);
  return stack || (at >= (uintptr_t)__executable_start && at + bytes <= (uintptr_t)end);
}

static inline void read_at(uintptr_t at, size_t bytes, void *pc, int line) {
  settle();
  if (at >= shared_start && at + bytes <= shared_end) return read_shared(at, bytes, pc, line);
  if (Buffer *buffer = buffer_at(at, bytes)) return read_global(*buffer, at, bytes, pc, line);
  if (!elsewhere(at, bytes)) fail_at("out-of-bounds", "read", (void *)at, bytes, pc, line);
}

static inline void write_at(uintptr_t at, size_t bytes, Cell atomic, void *pc, int line) {
  settle();
  Cell mark = cell_of(self->id, clock_of(*self)) | atomic;
  if (at >= shared_start && at + bytes <= shared_end) return write_shared(at, bytes, mark, pc, line);
  if (Buffer *buffer = buffer_at(at, bytes)) return write_global(*buffer, at, bytes, mark, pc, line);
  if (!elsewhere(at, bytes)) fail_at("out-of-bounds", "write", (void *)at, bytes, pc, line);
}

void check_aligned(const void *address, size_t bytes, int line) {
  if ((uintptr_t)address % bytes) fail_at("misaligned", "access", address, bytes, nullptr, line);
}

void check_read(const void *address, size_t bytes, void *pc, int line) { read_at((uintptr_t)address, bytes, pc, line); }
void check_write(const void *address, size_t bytes, void *pc, int line) { write_at((uintptr_t)address, bytes, 0, pc, line); }

static void mark_released() {
  if (block.order >= released_room) {
    uint32_t room = block.order * 2 + 1024;
    unsigned char *larger = (unsigned char *)mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (released) memcpy(larger, released, released_room);
    released = larger;
    released_room = room;
  }
  released[block.order] = 1;
}

void check_atomic(const void *address, size_t bytes, int line) {
  check_aligned(address, bytes, line);
  uintptr_t at = (uintptr_t)address;
  Buffer *buffer = buffer_at(at, bytes);
  if (buffer) mark_released();
  bool unwritten = buffer ? buffer->flags & UNWRITTEN && !buffer->cells[at - buffer->start]
                          : in_shared(address, bytes) && !writer[at - shared_start];
  if (unwritten) fail_at("unwritten", "atomic operation", address, bytes, nullptr, line);
  write_at(at, bytes, ATOMIC, nullptr, line);
  if (conflict.bytes) fail_race("atomic operation", conflict.other, conflict.cell, address, nullptr, line);
}

// ---- asynchronous copies ----

void mark_in_flight(void *shared, size_t bytes, int line) {
  settle();
  if (!in_shared(shared, bytes)) fail_at("out-of-bounds", "copy into shared memory", shared, bytes, nullptr, line);
  write_shared((uintptr_t)shared, bytes, 0, nullptr, line);
  if (conflict.bytes) fail_race("copy", conflict.other, conflict.cell, conflict.address, nullptr, line);
  size_t index = (uintptr_t)shared - shared_start;
  for (size_t i = index; i < index + bytes; i++) writer[i] = cell_of(IN_FLIGHT, 1);
}

void land(void *shared, const void *data, size_t bytes, unsigned id, uint32_t stamp) {
  if (data) memcpy(shared, data, bytes);
  else memset(shared, 0, bytes);
  size_t index = (uintptr_t)shared - shared_start;
  for (size_t i = index; i < index + bytes; i++) writer[i] = cell_of(id, stamp);
}

void check_proxy_read(const void *shared, size_t bytes, Cell agent, Cell other, int line, const char *what) {
  if (!in_shared(shared, bytes)) fail_at("out-of-bounds", what, shared, bytes, nullptr, line);
  read_at((uintptr_t)shared, bytes, nullptr, line);
  size_t index = (uintptr_t)shared - shared_start;
  for (size_t i = index; i < index + bytes; i++) {
    unsigned id = writer[i] & ID;
    uint32_t clock = writer[i] >> 12;
    reader[i] = agent;
    if (other) reader_before[i] = other;
    if (id < MAX_THREADS && fibers[id].fenced <= clock && self->fenced <= clock)
      fail("proxy", nullptr, line, "%s reads what thread %u wrote with no fence_async in between", what, id);
  }
}

void begin_launch() { launch_first = block.order + 1; }

}  // namespace simt

using namespace simt;

// ---- hooks of -fsanitize=thread, bounds and alignment ----

struct Place { const char *file; uint32_t line, column; };
struct Type { uint16_t kind, info; char name[1]; };
struct Mismatch { Place place; Type *type; unsigned char log_alignment, access; };
struct Bounds { Place place; Type *array, *index; };

static inline void must_align(uintptr_t at, size_t bytes, void *pc) {
  if (at % bytes) fail_at("misaligned", "access", (void *)at, bytes, pc, 0);
}

#define HOOKS(SIZE)                                                                                                     \
  void __tsan_read##SIZE(void *p) { must_align((uintptr_t)p, SIZE, PC); read_at((uintptr_t)p, SIZE, PC, 0); }           \
  void __tsan_write##SIZE(void *p) { must_align((uintptr_t)p, SIZE, PC); write_at((uintptr_t)p, SIZE, 0, PC, 0); }      \
  void __tsan_unaligned_read##SIZE(void *p) { read_at((uintptr_t)p, SIZE, PC, 0); }                                     \
  void __tsan_unaligned_write##SIZE(void *p) { write_at((uintptr_t)p, SIZE, 0, PC, 0); }                                \
  void __tsan_volatile_read##SIZE(void *p) { read_at((uintptr_t)p, SIZE, PC, 0); }                                      \
  void __tsan_volatile_write##SIZE(void *p) { write_at((uintptr_t)p, SIZE, 0, PC, 0); }

extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void *p, unsigned long bytes) { read_at((uintptr_t)p, bytes, PC, 0); }
void __tsan_write_range(void *p, unsigned long bytes) { write_at((uintptr_t)p, bytes, 0, PC, 0); }
void *__tsan_memcpy(void *to, const void *from, unsigned long bytes) {
  read_at((uintptr_t)from, bytes, PC, 0);
  write_at((uintptr_t)to, bytes, 0, PC, 0);
  return memcpy(to, from, bytes);
}
void *__tsan_memset(void *to, int value, unsigned long bytes) {
  write_at((uintptr_t)to, bytes, 0, PC, 0);
  return memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

void __ubsan_handle_type_mismatch_v1(Mismatch *data, uintptr_t at) {
  fail("misaligned", nullptr, data->place.line, "%s at an address that is no multiple of %d (%d bytes off)", data->type->name,
       1 << data->log_alignment, (int)(at & ((1u << data->log_alignment) - 1)));
}
void __ubsan_handle_out_of_bounds(Bounds *data, uintptr_t index) {
  fail("out-of-bounds", nullptr, data->place.line, "index %lld of %s", (long long)index, data->array->name);
}
}
