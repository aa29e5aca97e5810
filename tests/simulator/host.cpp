// The simulator's fibers and schedules, and the one entry that tests call. See host.h.
#include "host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sim {

static const size_t STACK_BYTES = 128 << 10, DYNAMIC_BYTES = 228 << 10, STATIC_BYTES = 48 << 10;
static const size_t GUARD_BYTES = 1 << 10;  // past the end of dynamic shared memory
static const unsigned NAN_BITS = 0x7FC07FC0;  // as one float, and as two bf16

__thread Machine* machine;
static thread_local std::unique_ptr<Machine> owner;

static Kernel* kernels;
Kernel::Kernel(const char* name, void (*entry)(void**), std::vector<size_t> sizes)
    : name(name), entry(entry), sizes(std::move(sizes)), next(kernels) {
  kernels = this;
}
static const Kernel* find(const char* name) {
  const Kernel* kernel = kernels;
  while (kernel && strcmp(kernel->name, name)) kernel = kernel->next;
  return kernel;
}

static size_t static_used;
size_t static_shared_slot(size_t bytes) {
  size_t slot = __atomic_fetch_add(&static_used, (bytes + 15) / 16 * 16, __ATOMIC_SEQ_CST);
  if (slot + bytes > STATIC_BYTES) fail("more static shared memory than 48 KiB");
  return slot;
}

// Fibers. A fiber that fails is left where it is: its stack is used anew by the next launch.

static __thread void (*entry)(void**);
static __thread void** entry_arguments;

#if defined(__x86_64__)
extern "C" void flanc_simulator_switch(void** save, void* load);
asm(".text\n.globl flanc_simulator_switch\n.hidden flanc_simulator_switch\n"
    ".type flanc_simulator_switch,@function\nflanc_simulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
static __thread void* main_context;
static void switch_to_fiber(Fiber& f) { flanc_simulator_switch(&main_context, f.context); }
static void switch_to_main() { flanc_simulator_switch(&machine->current->context, main_context); }
static void prepare(Fiber& f, void (*body)()) {
  void** top = (void**)((char*)f.stack + STACK_BYTES - 64);
  *--top = nullptr;
  *--top = (void*)body;
  f.context = top - 6;  // six registers that the first switch pops
}
#else
static __thread ucontext_t* main_context;
static void switch_to_fiber(Fiber& f) { swapcontext(main_context, (ucontext_t*)f.context); }
static void switch_to_main() { swapcontext((ucontext_t*)machine->current->context, main_context); }
static void prepare(Fiber& f, void (*body)()) {
  if (!main_context) main_context = new ucontext_t;
  if (!f.context) f.context = new ucontext_t;
  ucontext_t* context = (ucontext_t*)f.context;
  getcontext(context);
  context->uc_stack.ss_sp = f.stack;
  context->uc_stack.ss_size = STACK_BYTES;
  context->uc_link = nullptr;
  makecontext(context, body, 0);
}
#endif

struct Failure {};

Machine::~Machine() {
  for (Fiber& f : fibers) munmap(f.stack, STACK_BYTES);
  free(dynamic_shared);
  free(static_shared);
  machine = nullptr;
}

void fail(const char* why) {
  char line[256];
  const dim3& b = machine->block;
  snprintf(line, sizeof line, "%s (block %u, %u, %u)", why, b.x, b.y, b.z);
  machine->failure = line;
  const Fiber* last = nullptr;
  int shown = 0;
  for (size_t i = 0; i < machine->threads; i++) {
    const Fiber& f = machine->fibers[i];
    bool same = last && f.state == last->state && f.line == last->line && !strcmp(f.what, last->what);
    last = &f;
    if (same || ++shown > 40) continue;
    switch (f.state) {
      case State::Runs: snprintf(line, sizeof line, "\n  from thread %u: runs", f.number); break;
      case State::Returned: snprintf(line, sizeof line, "\n  from thread %u: has returned", f.number); break;
      case State::InWarpOperation: snprintf(line, sizeof line, "\n  from thread %u: waits in %s", f.number, f.what); break;
      case State::AtBlockBarrier:
        snprintf(line, sizeof line, "\n  from thread %u: waits at __syncthreads, %s:%d", f.number, f.what, f.line);
    }
    machine->failure += line;
  }
  if (machine->current) switch_to_main();
  throw Failure();
}

static void body() {
  entry(entry_arguments);
  Fiber* f = machine->current;
  if (!f->copies.empty()) fail("a thread returned with copies that it never waited for");
  f->state = State::Returned;
  switch_to_main();
}

static void run(Fiber& f) {
  machine->current = &f;
  switch_to_fiber(f);
  machine->current = nullptr;
  if (!machine->failure.empty()) throw Failure();
}

void warp_barrier(const char* what) {
  Fiber* f = machine->current;
  f->state = State::InWarpOperation, f->what = what, f->line = 0;
  switch_to_main();
}

void block_barrier(const char* file, int line) {
  Fiber* f = machine->current;
  f->state = State::AtBlockBarrier, f->what = file, f->line = line;
  switch_to_main();
}

// Hardware operations

static float to_float(unsigned bits) {
  bits <<= 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

void mma16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Fragments {
    float a[8], b[4];
  } mine;  // each lane unpacks its own once
  for (int i = 0; i < 8; i++) mine.a[i] = to_float((a[i >> 1] >> (16 * (i & 1))) & 0xFFFF);
  for (int i = 0; i < 4; i++) mine.b[i] = to_float((b[i >> 1] >> (16 * (i & 1))) & 0xFFFF);
  Post* mail = exchange(mine, "mma16816");
  int lane = machine->current->number & 31, g = lane >> 2, t = lane & 3;
  for (int k = 0; k < 16; k++) {  // who holds A[g][k], A[g + 8][k], B[k][2 t] and B[k][2 t + 1]
    int owner = (k & 7) / 2, high = (k >> 3) * 2, half = k & 1;
    const Fragments* rows = (const Fragments*)mail[g * 4 + owner];
    float low_row = rows->a[high * 2 + half], high_row = rows->a[(high + 1) * 2 + half];
    float left = ((const Fragments*)mail[2 * t * 4 + owner])->b[high + half];
    float right = ((const Fragments*)mail[(2 * t + 1) * 4 + owner])->b[high + half];
    d[0] += low_row * left, d[1] += low_row * right, d[2] += high_row * left, d[3] += high_row * right;
  }
}

void ldmatrix4(unsigned (&r)[4], const unsigned short* row, bool transposed) {
  if ((uintptr_t)row % 16) fail("a row for ldmatrix does not begin at a multiple of 16 bytes");
  Post* mail = exchange(row, transposed ? "ldmatrix4, transposed" : "ldmatrix4");
  int lane = machine->current->number & 31, g = lane >> 2, t = lane & 3;
  for (int tile = 0; tile < 4; tile++) {
    unsigned low, high;
    if (transposed) {
      low = read<const unsigned short*>(mail, tile * 8 + 2 * t)[g];
      high = read<const unsigned short*>(mail, tile * 8 + 2 * t + 1)[g];
    } else {
      const unsigned short* at = read<const unsigned short*>(mail, tile * 8 + g);
      low = at[2 * t], high = at[2 * t + 1];
    }
    r[tile] = low | high << 16;
  }
  warp_barrier("the end of ldmatrix4");  // no lane may write to the tile before every lane has read it
}

static void land(const Copy& copy) {
  if (copy.ok)
    memcpy(copy.to, copy.from, 16);
  else
    memset(copy.to, 0, 16);
}

void copy16_async(void* to, const void* from, bool ok) {
  if ((uintptr_t)to % 16 || (ok && (uintptr_t)from % 16)) fail("a copy does not begin at a multiple of 16 bytes");
  Copy copy{to, from, ok, machine->current->group};
  if (machine->seed & 1)
    land(copy);
  else
    memset(to, 0xFF, 16);  // NaN
  machine->current->copies.push_back(copy);
}

void copies_commit() { machine->current->group++; }

void copies_wait(int groups) {
  Fiber* f = machine->current;
  size_t kept = 0;
  for (const Copy& copy : f->copies)
    if (copy.group >= f->group - groups)
      f->copies[kept++] = copy;
    else if (!(machine->seed & 1))
      land(copy);
  f->copies.resize(kept);
}

// Schedules

// If all of these fibers wait for `kind`, they go on.
static bool release(size_t from, size_t to, State kind) {
  const Fiber* first = nullptr;
  bool returned = false;
  for (size_t i = from; i < to; i++) {
    const Fiber& f = machine->fibers[i];
    if (f.state == State::Returned)
      returned = true;
    else if (f.state != kind)
      return false;
    else if (!first)
      first = &f;
  }
  if (!first) return false;
  if (returned) fail("some threads have returned, others wait for them");
  for (size_t i = from; i < to; i++)
    if (machine->fibers[i].line != first->line || strcmp(machine->fibers[i].what, first->what))
      fail("threads meet at different barriers or warp operations");
  for (size_t i = from; i < to; i++) machine->fibers[i].state = State::Runs;
  return true;
}

struct Random {
  uint64_t state;
  // 0..n in order for seed 0, else shuffled
  void order(std::vector<unsigned>& v, size_t n) {
    v.resize(n);
    for (size_t i = 0; i < n; i++) v[i] = i;
    if (!machine->seed) return;
    for (size_t i = n; i > 1; i--) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(v[i - 1], v[(state >> 33) % i]);
    }
  }
};

static void poison(char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4) memcpy(at + i, &NAN_BITS, 4);
}

static void run_block(size_t shared_bytes, Random& random) {
  std::vector<Fiber>& fibers = machine->fibers;
  const size_t threads = machine->threads;
  const dim3& size = machine->block_size;
  poison(machine->dynamic_shared, shared_bytes + GUARD_BYTES);
  poison(machine->static_shared, STATIC_BYTES);
  for (size_t i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    f.number = i;
    f.thread = {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
    f.state = State::Runs, f.what = "", f.line = 0, f.box = 0, f.group = 0;
    f.copies.clear();
    prepare(f, body);
  }
  size_t warps = (threads + 31) / 32;
  std::vector<unsigned> lanes, warp_order;
  // Each lane of a warp up to its next barrier; true if the warp may go on at once.
  auto step = [&](size_t warp) {
    size_t from = warp * 32, to = std::min(from + 32, threads);
    random.order(lanes, to - from);
    for (unsigned lane : lanes)
      if (fibers[from + lane].state == State::Runs) run(fibers[from + lane]);
    return release(from, to, State::InWarpOperation);
  };
  do {
    random.order(warp_order, warps);
    if (machine->seed)
      for (unsigned warp : warp_order)
        while (step(warp)) {
        }
    else
      for (bool more = true; more;) {
        more = false;
        for (unsigned warp : warp_order) more |= step(warp);
      }
  } while (release(0, threads, State::AtBlockBarrier));
  for (size_t i = 0; i < threads; i++)
    if (fibers[i].state != State::Returned) fail("threads wait for each other");
  for (size_t i = 0; i < GUARD_BYTES; i += 4)
    if (memcmp(machine->dynamic_shared + shared_bytes + i, &NAN_BITS, 4)) fail("a write past the end of dynamic shared memory");
}

static void launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes, void** arguments, unsigned seed) {
  if (!machine) {
    owner.reset(machine = new Machine());
    machine->dynamic_shared = (char*)aligned_alloc(1024, DYNAMIC_BYTES + GUARD_BYTES);
    machine->static_shared = (char*)aligned_alloc(1024, STATIC_BYTES);
  }
  machine->failure.clear();
  size_t threads = size_t(block.x) * block.y * block.z, blocks = size_t(grid.x) * grid.y * grid.z;
  machine->threads = 0, machine->current = nullptr, machine->seed = seed;
  machine->block = {0, 0, 0}, machine->block_size = block, machine->grid_size = grid;
  if (threads == 0 || threads > 1024 || blocks == 0) fail("a launch takes 1 to 1,024 threads a block, and a block or more");
  if (shared_bytes % 4 || shared_bytes > DYNAMIC_BYTES) fail("dynamic shared memory is at most 228 KiB, in words");
  machine->threads = threads;
  machine->fibers.resize(std::max(machine->fibers.size(), threads));
  for (Fiber& f : machine->fibers)
    if (!f.stack)
      f.stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  entry = kernel.entry, entry_arguments = arguments;
  Random random{seed * 0x9E3779B97F4A7C15ull};
  std::vector<unsigned> order;
  random.order(order, blocks);
  for (unsigned i : order) {
    machine->block = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block(shared_bytes, random);
  }
}

}  // namespace sim

// How many arguments a kernel takes, at most 64 of which get their sizes; none if there is no such kernel.
extern "C" __attribute__((visibility("default"))) size_t flanc_simulator_arguments(const char* name, size_t sizes[64]) {
  const sim::Kernel* kernel = sim::find(name);
  if (!kernel) return 0;
  for (size_t i = 0; i < kernel->sizes.size() && i < 64; i++) sizes[i] = kernel->sizes[i];
  return kernel->sizes.size();
}

// 0, or 1 with a report of what is wrong.
extern "C" __attribute__((visibility("default"))) int flanc_simulator_launch(const char* name, const unsigned grid[3],
                                                                             const unsigned block[3],
                                                                             size_t shared_bytes, void** arguments,
                                                                             unsigned seed, char* report,
                                                                             size_t report_bytes) {
  const sim::Kernel* kernel = sim::find(name);
  if (!kernel) {
    snprintf(report, report_bytes, "no kernel is called `%s`", name);
    return 1;
  }
  try {
    sim::launch(*kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, arguments, seed);
    return 0;
  } catch (const sim::Failure&) {
    snprintf(report, report_bytes, "%s: %s", name, sim::machine->failure.c_str());
    return 1;
  }
}
