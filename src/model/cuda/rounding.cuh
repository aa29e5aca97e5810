// Rounding to bf16 by draws that have names, as model/rounding.rs does it; why, and what the names are, stands there.
#pragma once
#include "device.cuh"

// The draws of a tensor in a step.
struct Draws {
  u64 seed;
  u32 tensor, step;
};

// Philox 4x32-10: 128 random bits.
__device__ __forceinline__ uint4 philox(uint4 c, u32 k, u32 l) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u64 first = (u64)0xD2511F53u * c.x, second = (u64)0xCD9E8D57u * c.z;
    c = make_uint4((u32)(second >> 32) ^ c.y ^ k, (u32)second, (u32)(first >> 32) ^ c.w ^ l, (u32)first);
    k += 0x9E3779B9u, l += 0xBB67AE85u;
  }
  return c;
}

// For elements 4 four to 4 four + 3, of which each draws the lower half of a word.
__device__ __forceinline__ uint4 draw4(Draws d, i64 four) {
  return philox(make_uint4((u32)four, (u32)(four >> 32), d.tensor, d.step), (u32)d.seed, (u32)(d.seed >> 32));
}

// 16 random bits are added to those that are cut off, and the carry rounds up. A number of bf16 stays as it is.
__device__ __forceinline__ u32 rounded(float f, u32 random) {
  u32 u = __float_as_uint(f);
  if ((u & 0x7F800000u) == 0x7F800000u) return to_bf(f);  // infinite, NaN
  return (u + (random & 0xFFFFu)) >> 16;
}
__device__ __forceinline__ u32 rounded(float f, Draws d, i64 element) {
  uint4 random = draw4(d, element >> 2);
  bool odd = element & 1;
  return rounded(f, element & 2 ? (odd ? random.w : random.z) : (odd ? random.y : random.x));
}

// Four neighbours in two words, the first in the lower half of the first. Where rows are no multiple of four wide, they
// begin within a four.
template <bool WHOLE>
__device__ __forceinline__ uint2 rounded4(float4 v, Draws d, i64 element) {
  if constexpr (WHOLE) {
    uint4 random = draw4(d, element >> 2);
    return make_uint2(rounded(v.x, random.x) | rounded(v.y, random.y) << 16,
                      rounded(v.z, random.z) | rounded(v.w, random.w) << 16);
  } else {
    return make_uint2(rounded(v.x, d, element) | rounded(v.y, d, element + 1) << 16,
                      rounded(v.z, d, element + 2) | rounded(v.w, d, element + 3) << 16);
  }
}
