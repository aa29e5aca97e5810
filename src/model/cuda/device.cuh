// The few hardware operations that the kernels use: for a GPU as PTX, for the simulator (tests/simulator) as what they
// mean. No CUDA header is included, so NVRTC alone compiles every kernel; bfloat16 travels as its 16 bits.
#pragma once
#ifdef __CUDACC__
#define DYNAMIC_SHARED(T, name)                                        \
  extern __shared__ __align__(16) unsigned char name##_bytes[];        \
  T* name = (T*)name##_bytes
#define STATIC_SHARED(T, name, length) __shared__ T name[length]
#define EXPORT_KERNEL(name)  // the simulator finds kernels by name; a GPU's driver does by itself
#else
#include "host.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned short bf16;

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define NEGATIVE_INFINITY __uint_as_float(0xFF800000u)

// Numbers

__device__ __forceinline__ float to_f(bf16 b) { return __uint_as_float((u32)b << 16); }

// Nearest, of two the even one; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf(float f) {
  u32 u = __float_as_uint(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (bf16)((u >> 16) | 0x40u);
  return (bf16)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

// Two in a word, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
#ifdef __CUDACC__
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return (u32)to_bf(low) | (u32)to_bf(high) << 16;
#endif
}
__device__ __forceinline__ float low_half(u32 word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(u32 word) { return __uint_as_float(word & 0xFFFF0000u); }

// 2^x, to two units in the last place
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return exp2f(x);
#endif
}

// Rows of bf16, eight neighbours at a time: 16 bytes are the widest access a thread has, and a warp's 512 are whole
// cache lines. Of rows that are WHOLE, a multiple of eight wide, each begins at a multiple of 16 bytes if the first does.
// Others are read one by one, the `left` that are there, and the rest is zero. Kernels decide once for all of their
// accesses (in their template), so that no branch stands between loads that can be under way together.

template <bool WHOLE>
__device__ __forceinline__ uint4 load8(const bf16* at, int left) {
  if constexpr (WHOLE) {
    return *(const uint4*)at;
  } else {
    bf16 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = i < left ? at[i] : (bf16)0;
    return make_uint4(v[0] | (u32)v[1] << 16, v[2] | (u32)v[3] << 16, v[4] | (u32)v[5] << 16, v[6] | (u32)v[7] << 16);
  }
}
template <bool WHOLE>
__device__ __forceinline__ void store8(bf16* at, uint4 v, int left) {
  if constexpr (WHOLE) {
    *(uint4*)at = v;
  } else {
    u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < left) at[i] = (bf16)(word[i >> 1] >> (16 * (i & 1)));
  }
}
__device__ __forceinline__ void unpack8(float (&f)[8], uint4 v) {
  f[0] = low_half(v.x), f[1] = high_half(v.x), f[2] = low_half(v.y), f[3] = high_half(v.y);
  f[4] = low_half(v.z), f[5] = high_half(v.z), f[6] = low_half(v.w), f[7] = high_half(v.w);
}
__device__ __forceinline__ uint4 pack8(const float (&f)[8]) {
  return make_uint4(pack(f[0], f[1]), pack(f[2], f[3]), pack(f[4], f[5]), pack(f[6], f[7]));
}

// The same for f32, four at a time.

template <bool WHOLE>
__device__ __forceinline__ float4 load4(const float* at, int left) {
  if constexpr (WHOLE) {
    return *(const float4*)at;
  } else {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < left ? at[i] : 0.f;
    return make_float4(v[0], v[1], v[2], v[3]);
  }
}
template <bool WHOLE>
__device__ __forceinline__ void store4(float* at, float4 v, int left) {
  if constexpr (WHOLE) {
    *(float4*)at = v;
  } else {
    float number[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < left) at[i] = number[i];
  }
}

// Four neighbours in bf16, in two words, the first in the low half.

template <bool WHOLE>
__device__ __forceinline__ float4 load4(const bf16* at, int left) {
  uint2 v;
  if constexpr (WHOLE) {
    v = *(const uint2*)at;
  } else {
    u32 number[4];
#pragma unroll
    for (int i = 0; i < 4; i++) number[i] = i < left ? at[i] : 0;
    v = make_uint2(number[0] | number[1] << 16, number[2] | number[3] << 16);
  }
  return make_float4(low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y));
}
template <bool WHOLE>
__device__ __forceinline__ void store4(bf16* at, uint2 v, int left) {
  if constexpr (WHOLE) {
    *(uint2*)at = v;
  } else {
    u32 word[2] = {v.x, v.y};
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < left) at[i] = (bf16)(word[i >> 1] >> (16 * (i & 1)));
  }
}

// One row of C numbers to another place, by the whole block.
template <bool WHOLE>
__device__ __forceinline__ void copy_pieces(bf16* __restrict__ to, const bf16* __restrict__ from, int C) {
#pragma unroll 4
  for (int i = threadIdx.x * 8; i < C; i += blockDim.x * 8) store8<WHOLE>(to + i, load8<WHOLE>(from + i, C - i), C - i);
}
__device__ __forceinline__ void copy_row(bf16* to, const bf16* from, int C) {
  if (C % 8 == 0)
    copy_pieces<true>(to, from, C);
  else
    copy_pieces<false>(to, from, C);
}

// Number of this thread in the grid, and of threads in it: loops over any number of items with any grid.
__device__ __forceinline__ i64 first_item() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 item_step() { return (i64)gridDim.x * blockDim.x; }

// Sums, always in the same order

// Over neighbouring lanes, `width` of them (a power of two), in each of these.
template <class T>
__device__ __forceinline__ T warp_sum(T v, int width = 32) {
  for (int o = width / 2; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

// Over the block, in every thread; blockDim.x is a multiple of 32.
template <class T>
__device__ __forceinline__ T block_sum(T v) {
  STATIC_SHARED(T, part, 32);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  v = warp_sum(v);
  __syncthreads();  // part may still be read from an earlier call
  if (lane == 0) part[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? part[lane] : T(0));
}

// Over the first dimension of part (parts, C), for a column a lane: each warp sums a range of the parts, and the ranges'
// sums are added in order. True in those threads that hold a column's sum. Reads whole lines of 128 bytes, and shortens
// the chain of additions, where time would go, to parts / warps + warps.
__device__ __forceinline__ bool column_sum(float& sum, const float* part, int parts, int C, int column) {
  STATIC_SHARED(float, range_sum, 32 * 32);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  int share = (parts + warps - 1) / warps, end = min((warp + 1) * share, parts);
  sum = 0.f;
  if (column < C)
#pragma unroll 4
    for (int p = warp * share; p < end; p++) sum += part[(i64)p * C + column];
  range_sum[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= C) return false;
  for (int other = 1; other < warps; other++) sum += range_sum[other * 32 + lane];
  return true;
}

// Tensor cores. Lane = 4 g + t; fragments as PTX defines them for m16n8k16.

// d (16, 8) += a (16, 16) b (16, 8); a lane holds rows g and g + 8, columns 2 t and 2 t + 1 of d.
__device__ __forceinline__ void mma16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  sim::mma16816(d, a, b);
#endif
}

// Four tiles of 8 x 8 from shared memory: lane i gives the address of row i % 8 of tile i / 8. With TRANSPOSED each tile
// comes turned.
template <bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], const bf16* row) {
#ifdef __CUDACC__
  u32 at = (u32)__cvta_generic_to_shared(row);
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#else
  sim::ldmatrix4(r, row, TRANSPOSED);
#endif
}

// Copies that go on by themselves: 16 bytes from global to shared memory, there for sure only after the wait. Where `ok`
// is false, zeros are written and nothing is read.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool ok) {
#ifdef __CUDACC__
  int bytes = ok ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
               "r"(bytes)
               : "memory");
#else
  sim::copy16_async(to, from, ok);
#endif
}
__device__ __forceinline__ void copies_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  sim::copies_commit();
#endif
}
// Waits until all but the last N committed groups of this thread have landed.
template <int N>
__device__ __forceinline__ void copies_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  sim::copies_wait(N);
#endif
}
