// Runs CUDA kernels on the CPU. Each CUDA thread is a fiber; barriers and warp operations switch between them; the
// blocks of a launch run one after another, on one thread of the system.
//
// Beyond the result it checks, and reports by name and thread: barriers and warp operations that not all threads reach,
// or not the same ones; asynchronous copies that nobody waited for; misaligned tiles; writes past the end of dynamic
// shared memory. What a kernel owes to luck shows in the result: shared memory is NaN at the beginning of each block, and
// a launch runs under several seeds, which must agree to the bit. Seed 0 moves all threads in step and takes blocks in
// order; any other runs one warp as far as it gets, in an order drawn from the seed, as is that of lanes and blocks.
// Copies land at their wait under even seeds (until then their place is NaN), and at once under odd ones.
//
// Not covered: races between blocks that run at the same time, bank conflicts, wgmma and TMA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline float2 make_float2(float a, float b) { return {a, b}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

namespace sim {

enum class State { Runs, AtBlockBarrier, InWarpOperation, Returned };

struct Copy {
  void* to;
  const void* from;
  bool ok;
  int group;
};

struct Fiber {
  dim3 thread;
  unsigned number = 0;  // in the block
  State state = State::Returned;
  const char* what = "";  // the barrier's file or the operation's name
  int line = 0;
  int box = 0;  // which of the warp's two mailboxes was used last
  int group = 0;
  std::vector<Copy> copies;
  void* stack = nullptr;
  void* context = nullptr;
};

typedef uint64_t Post[8];  // what a lane tells its warp

struct Machine {
  std::vector<Fiber> fibers;  // the first `threads` take part
  size_t threads;
  Fiber* current;  // none while schedules are made
  std::string failure;
  dim3 block, block_size, grid_size;
  unsigned seed;
  char* dynamic_shared;
  char* static_shared;
  Post mail[32][2][32];  // by warp, mailbox and lane
  ~Machine();
};
extern __thread Machine* machine;

[[noreturn]] void fail(const char* why);
void warp_barrier(const char* what);
void block_barrier(const char* file, int line);

// Every lane posts a value and may then read any lane's: what shuffles, votes and tensor operations are made of. Two
// mailboxes in turn need one barrier, not two.
template <class T>
inline Post* exchange(const T& mine, const char* what) {
  static_assert(sizeof(T) <= sizeof(Post), "a post is 64 bytes");
  Fiber* f = machine->current;
  Post* mail = machine->mail[f->number / 32][f->box ^= 1];
  memcpy(mail[f->number % 32], &mine, sizeof(T));
  warp_barrier(what);
  return mail;
}
template <class T>
inline T read(Post* mail, int lane) {
  T v;
  memcpy(&v, mail[lane & 31], sizeof(T));
  return v;
}

void mma16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void ldmatrix4(unsigned (&r)[4], const unsigned short* row, bool transposed);
void copy16_async(void* to, const void* from, bool ok);
void copies_commit();
void copies_wait(int groups);
size_t static_shared_slot(size_t bytes);

// From the arguments as cuLaunchKernel takes them to a typed call.
template <auto F>
struct Call;
template <class... A, void (*F)(A...)>
struct Call<F> {
  template <size_t... I>
  static void with(void** arguments, std::index_sequence<I...>) {
    F(*(std::remove_const_t<A>*)arguments[I]...);
  }
  static void entry(void** arguments) { with(arguments, std::index_sequence_for<A...>{}); }
  static std::vector<size_t> sizes() { return {sizeof(A)...}; }
};

struct Kernel {
  const char* name;
  void (*entry)(void**);
  std::vector<size_t> sizes;  // of the arguments, in bytes
  Kernel* next;
  Kernel(const char* name, void (*entry)(void**), std::vector<size_t> sizes);
};

}  // namespace sim

#define EXPORT_KERNEL(name) static sim::Kernel exported_##name(#name, sim::Call<name>::entry, sim::Call<name>::sizes());
#define DYNAMIC_SHARED(T, name) T* name = (T*)sim::machine->dynamic_shared
#define STATIC_SHARED(T, name, length)                                         \
  static const size_t name##_slot = sim::static_shared_slot(sizeof(T) * (length)); \
  T* name = (T*)(sim::machine->static_shared + name##_slot)

#define threadIdx (sim::machine->current->thread)
#define blockIdx (sim::machine->block)
#define blockDim (sim::machine->block_size)
#define gridDim (sim::machine->grid_size)
#define __syncthreads() sim::block_barrier(__FILE__, __LINE__)
inline void __syncwarp(unsigned = ~0u) { sim::warp_barrier("__syncwarp"); }
template <class T>
inline T __shfl_sync(unsigned, T v, int lane) {
  return sim::read<T>(sim::exchange(v, "__shfl_sync"), lane);
}
template <class T>
inline T __shfl_xor_sync(unsigned, T v, int mask) {
  sim::Post* mail = sim::exchange(v, "__shfl_xor_sync");
  return sim::read<T>(mail, (sim::machine->current->number % 32) ^ mask);
}

inline unsigned __float_as_uint(float f) {
  unsigned u;
  memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
