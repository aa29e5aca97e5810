// Between f32 and bf16.
#include "device.cuh"

// grid ceil(n / 8 / 256), or any  block 256; 6 bytes an element
extern "C" __global__ void __launch_bounds__(256) cast_nearest(bf16* out, const float* in, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    if (left == 8) {
      float4 a = *(const float4*)(in + i), b = *(const float4*)(in + i + 4);
      *(uint4*)(out + i) = make_uint4(pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w));
    } else {
      for (int j = 0; j < left; j++) out[i + j] = to_bf(in[i + j]);
    }
  }
}
EXPORT_KERNEL(cast_nearest)

// grid ceil(n / 8 / 256), or any  block 256; 6 bytes an element
extern "C" __global__ void __launch_bounds__(256) to_float(float* out, const bf16* in, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    if (left == 8) {
      float v[8];
      unpack8(v, *(const uint4*)(in + i));
      *(float4*)(out + i) = make_float4(v[0], v[1], v[2], v[3]);
      *(float4*)(out + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
    } else {
      for (int j = 0; j < left; j++) out[i + j] = to_f(in[i + j]);
    }
  }
}
EXPORT_KERNEL(to_float)

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits of a counter.
__device__ __forceinline__ uint4 philox(u64 counter, u32 key) {
  u32 c[4] = {(u32)counter, (u32)(counter >> 32), 0, 0}, k[2] = {key, 0};
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u32 high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    u32 high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
    c[0] = high1 ^ c[1] ^ k[0], c[1] = low1, c[2] = high0 ^ c[3] ^ k[1], c[3] = low0;
    k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u;
  }
  return make_uint4(c[0], c[1], c[2], c[3]);
}

// Up with the probability of what is cut off: 16 random bits are added to it, and the carry decides.
__device__ __forceinline__ bf16 round_stochastic(float f, u32 random) {
  u32 u = __float_as_uint(f);
  if ((u & 0x7F800000u) == 0x7F800000u) return to_bf(f);  // infinite, NaN
  return (bf16)((u + random) >> 16);
}

__device__ __forceinline__ u32 half_word(uint4 v, int i) {
  u32 word = i < 4 ? (i < 2 ? v.x : v.y) : (i < 6 ? v.z : v.w);
  return (word >> (16 * (i & 1))) & 0xFFFFu;
}

// Element i draws the half word (first + i) % 8 of counter (first + i) / 8 under the key `seed`, whatever the grid: a
// tensor may be rounded in pieces.
// grid ceil(n / 8 / 256), or any  block 256; 6 bytes and about 15 operations an element, more if first % 8 != 0
extern "C" __global__ void __launch_bounds__(256) cast_stochastic(bf16* out, const float* in, u32 seed, u64 first, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    if (left == 8 && first % 8 == 0) {
      float4 a = *(const float4*)(in + i), b = *(const float4*)(in + i + 4);
      float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      uint4 random = philox((first + i) / 8, seed);
      u32 r[8];
#pragma unroll
      for (int j = 0; j < 8; j++) r[j] = round_stochastic(v[j], half_word(random, j));
      *(uint4*)(out + i) = make_uint4(r[0] | r[1] << 16, r[2] | r[3] << 16, r[4] | r[5] << 16, r[6] | r[7] << 16);
    } else {
      for (int j = 0; j < left; j++) {
        u64 draw = first + i + j;
        out[i + j] = round_stochastic(in[i + j], half_word(philox(draw / 8, seed), (int)(draw % 8)));
      }
    }
  }
}
EXPORT_KERNEL(cast_stochastic)
