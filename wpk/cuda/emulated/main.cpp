// Runs one job: the program's arguments say which file holds the kernel's arguments and which launches to do.
#include "simt.h"

#include <cstdarg>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/resource.h>
#include <unistd.h>

struct Entry { const char *symbol; simt::Kernel kernel; };
extern "C" const Entry wpk_entries[];  // at the end of the kernel's text, ended by a null symbol

namespace simt {

// one line on stdout: kind, line, pc, detail
[[noreturn]] void fail(const char *kind, void *pc, int line, const char *format, ...) {
  char detail[512];
  va_list rest;
  va_start(rest, format);
  vsnprintf(detail, sizeof detail, format, rest);
  va_end(rest);
  char where[96] = "", text[800];
  if (self)
    snprintf(where, sizeof where, "; thread (%u,%u,%u) of block (%u,%u,%u)", self->thread.x, self->thread.y, self->thread.z,
             block.index.x, block.index.y, block.index.z);
  int length = snprintf(text, sizeof text, "%s\t%d\t%#lx\t%s%s\n", kind, line,
                        pc ? (unsigned long)pc - load_address : 0ul, detail, where);
  if (write(1, text, length) < 0) _exit(4);
  _exit(3);
}

static void crash(int, siginfo_t *info, void *) {
  fail("crash", nullptr, self ? self->line : 0, "the kernel touched %p, or ran out of stack", info->si_addr);
}

static rlim_t cpu_seconds;
static void out_of_time(int) { fail("timeout", nullptr, 0, "the kernel ran for more than %d s", (int)cpu_seconds); }

// CPU time: the machine may be busy, and the process stopped for a while
static void limit_time(rlim_t seconds) {
  cpu_seconds = seconds;
  rlimit limit = {seconds, seconds + 5};
  setrlimit(RLIMIT_CPU, &limit);
  struct sigaction action = {};
  action.sa_handler = out_of_time;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGXCPU, &action, nullptr);
}

static void catch_crashes() {
  static char stack[64 << 10];
  stack_t alternate = {stack, 0, sizeof stack};
  sigaltstack(&alternate, nullptr);
  struct sigaction action = {};
  action.sa_sigaction = crash;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

static Kernel find(const char *symbol) {
  for (const Entry *entry = wpk_entries; entry->symbol; entry++)
    if (!strcmp(entry->symbol, symbol)) return entry->kernel;
  fail("launch", nullptr, 0, "the text has no kernel %s", symbol);
}

constexpr int MAX_ARGUMENTS = 64;
static void *arguments[MAX_ARGUMENTS], *values[MAX_ARGUMENTS];  // not on the heap: kernels read them, checked
static int argument_count;
constexpr int MAX_MAPS = 16;
static TensorMap maps[MAX_MAPS + 1];
static int map_count;

static void add_argument(int fd, const char *text) {
  size_t offset, bytes;
  unsigned flags;
  if (argument_count == MAX_ARGUMENTS) fail("limit", nullptr, 0, "more than %d arguments", MAX_ARGUMENTS);
  if (sscanf(text, "%zu,%zu,%u", &offset, &bytes, &flags) != 3) exit(5);
  values[argument_count] = bytes ? add_buffer(fd, offset, bytes, flags) : nullptr;
  arguments[argument_count] = &values[argument_count];
  argument_count++;
}

static void add_map(const char *text) {
  int argument, element, rank, swizzle, used = 0;
  size_t offset;
  if (sscanf(text, "%d,%zu,%d,%d,%d%n", &argument, &offset, &element, &rank, &swizzle, &used) != 5) exit(5);
  TensorMap &map = maps[map_count++];
  map = {(char *)values[argument] + offset, element, rank, swizzle, {}, {}, {}, {}};
  for (int part = 0; part < 4; part++)  // sizes, strides in bytes (the first is an element's), box, steps
    for (int axis = 0; axis < rank; axis++) {
      int64_t value = strtoll(text + used + 1, const_cast<char **>(&text), 10);
      used = 0;
      if (part == 3) map.step[axis] = (unsigned char)value;
      else if (part == 2) map.box[axis] = (short)value;
      else (part ? map.stride : map.size)[axis] = value;
    }
  if (argument_count == MAX_ARGUMENTS || map_count > MAX_MAPS) fail("limit", nullptr, 0, "too many arguments");
  arguments[argument_count++] = &map;
}

static void launch(const char *text) {
  char symbol[256];
  Dim grid, size;
  unsigned shared;
  if (sscanf(text, "%255[^,],%u,%u,%u,%u,%u,%u,%u", symbol, &grid.x, &grid.y, &grid.z, &size.x, &size.y, &size.z, &shared) != 8)
    exit(5);
  begin_launch();
  run_grid(find(symbol), arguments, grid, size, shared);
}

}  // namespace simt

// FD SECONDS SEED {a OFFSET,BYTES,FLAGS}... {m ARGUMENT,OFFSET,ELEMENT,RANK,SWIZZLE,SIZES,STRIDES,BOX}... {l SYMBOL,GRID,BLOCK,SHARED}...
int main(int count, char **words) {
  using namespace simt;
  if (count < 4) return 5;
  int fd = atoi(words[1]);
  random_state = strtoull(words[3], nullptr, 10) * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
  catch_crashes();
  limit_time(strtoul(words[2], nullptr, 10));
  start_memory();
  for (int i = 4; i + 1 < count; i += 2) {
    if (words[i][0] == 'a') add_argument(fd, words[i + 1]);
    if (words[i][0] == 'm') add_map(words[i + 1]);
    if (words[i][0] == 'l') launch(words[i + 1]);
  }
  check_outputs();
  return 0;
}
