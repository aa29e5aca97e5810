// Tiles of attention in shared memory, and products of them on tensor cores: 16 rows a warp.
#pragma once
#include "device.cuh"

// Width of a row in shared memory.
#define LD(D) ((D) + 8)

// The left operand of a product, 16 rows and 16 columns of a tile.
template <int D>
__device__ __forceinline__ void left_fragment(u32 (&a)[4], const bf16* rows, int column) {
  int lane = threadIdx.x % 32;
  ldmatrix4<false>(a, rows + (lane & 15) * LD(D) + column + (lane >> 4) * 8);
}

// s (16, ROWS) += a b^T, columns d..d+16 of them; b is a tile of ROWS rows
template <int D, int ROWS>
__device__ __forceinline__ void add_scores(float (&s)[ROWS / 8][4], const u32 (&a)[4], const bf16* b, int d) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < ROWS / 16; n++) {
    u32 f[4];
    ldmatrix4<false>(f, b + (n * 16 + (lane >> 4) * 8 + (lane & 7)) * LD(D) + d + (lane >> 3 & 1) * 8);
    u32 low[2] = {f[0], f[1]}, high[2] = {f[2], f[3]};
    mma16816(s[2 * n], a, low);
    mma16816(s[2 * n + 1], a, high);
  }
}

// s (16, ROWS) += a b^T over D; a is 16 rows of a tile
template <int D, int ROWS>
__device__ __forceinline__ void multiply_transposed(float (&s)[ROWS / 8][4], const bf16* a, const bf16* b) {
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    u32 f[4];
    left_fragment<D>(f, a, d);
    add_scores<D, ROWS>(s, f, b, d);
  }
}

// sum (16, D) += p b; p (16, ROWS) is rounded, b is a tile of ROWS rows
template <int D, int ROWS>
__device__ __forceinline__ void multiply(float (&sum)[D / 8][4], const float (&p)[ROWS / 8][4], const bf16* b) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < ROWS / 16; k++) {
    u32 a[4] = {pack(p[2 * k][0], p[2 * k][1]), pack(p[2 * k][2], p[2 * k][3]), pack(p[2 * k + 1][0], p[2 * k + 1][1]),
                pack(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      u32 f[4];
      ldmatrix4<true>(f, b + (k * 16 + (lane & 15)) * LD(D) + d * 16 + (lane >> 4) * 8);
      u32 low[2] = {f[0], f[1]}, high[2] = {f[2], f[3]};
      mma16816(sum[2 * d], a, low);
      mma16816(sum[2 * d + 1], a, high);
    }
  }
}

template <int TILES>
__device__ __forceinline__ void clear(float (&tiles)[TILES][4]) {
#pragma unroll
  for (int i = 0; i < TILES; i++) tiles[i][0] = tiles[i][1] = tiles[i][2] = tiles[i][3] = 0.f;
}

// Row g of a warp's result for half = 0, row g + 8 for half = 1, times `factor`, to a row of D numbers.
template <int D>
__device__ __forceinline__ void store_row(bf16* to, const float (&sum)[D / 8][4], int half, float factor) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < D / 8; n++)
    ((u32*)to)[n * 4 + t] = pack(sum[n][2 * half] * factor, sum[n][2 * half + 1] * factor);
}

// The next ROWS scores of a warp's 16 rows, times log2 e and -inf where hidden, become weights 2^(s - max). What was summed
// up is brought to the new maximum, and the total gets the weights of this lane's columns: its four lanes share a row.
template <int D, int ROWS>
__device__ __forceinline__ void add_weights(float (&s)[ROWS / 8][4], float (&sum)[D / 8][4], float (&max_score)[2],
                                            float (&total)[2]) {
  float greatest[2] = {max_score[0], max_score[1]}, rescale[2];
#pragma unroll
  for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) greatest[c >> 1] = max(greatest[c >> 1], s[n][c]);
#pragma unroll
  for (int r = 0; r < 2; r++) {  // the four lanes of a row
    greatest[r] = max(greatest[r], __shfl_xor_sync(~0u, greatest[r], 1));
    greatest[r] = max(greatest[r], __shfl_xor_sync(~0u, greatest[r], 2));
    float base = greatest[r] == NEGATIVE_INFINITY ? 0.f : greatest[r];  // nothing visible yet
    rescale[r] = exp2_fast(max_score[r] - base);
    max_score[r] = greatest[r];
    total[r] *= rescale[r];
    greatest[r] = base;
  }
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) sum[n][c] *= rescale[c >> 1];
#pragma unroll
  for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      s[n][c] = exp2_fast(s[n][c] - greatest[c >> 1]);
      total[c >> 1] += s[n][c];
    }
}
