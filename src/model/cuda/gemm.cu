// Matrix products of our own: what the simulator's training steps use, and the yardstick beside cuBLASLt.
//
// A block makes 128 x 128 numbers of c, its 8 warps 64 x 32 each: 16 fragments of mma.m16n8k16, 64 registers of sums. Of
// the common dimension 32 come at a time, by cp.async into a ring of four stages, so that three are on their way while
// one is used. Tiles lie in shared memory as they lie in memory, rows padded by 16 bytes against bank conflicts; where
// the common dimension is not the inner one, ldmatrix turns them. A stage is 16 KiB for 2 MFLOP.
// A matrix whose rows do not begin at multiples of 16 bytes is read number by number; edges are filled with zeros.
#include "device.cuh"

#define TILE 128
#define DEPTH 32
#define STAGES 4
#define STAGE_LENGTH (TILE * (DEPTH + 8)) /* of the longer form, (TILE, DEPTH); the other is (DEPTH, TILE) */

// Which dimension of an operand is the inner one.
enum Inner { COMMON, OWN };

// The part of x that a stage holds: TILE rows or columns from `own0` on, DEPTH of the common dimension from `common0` on.
template <Inner INNER>
__device__ __forceinline__ void load_tile(bf16* to, const bf16* x, int own0, int common0, int own, int common) {
  constexpr int WIDTH = INNER == COMMON ? DEPTH : TILE, ROWS = TILE * DEPTH / WIDTH;
  int width = INNER == COMMON ? common : own, rows = INNER == COMMON ? own : common;
  int column0 = INNER == COMMON ? common0 : own0, row0 = INNER == COMMON ? own0 : common0;
  bool whole = width % 8 == 0;
#pragma unroll
  for (int piece = threadIdx.x; piece < ROWS * WIDTH / 8; piece += 256) {
    int r = piece / (WIDTH / 8), c = piece % (WIDTH / 8) * 8, left = width - column0 - c;
    bool in = row0 + r < rows && left > 0;
    const bf16* from = x + (i64)(row0 + r) * width + column0 + c;
    bf16* at = to + r * (WIDTH + 8) + c;
    if (whole)
      copy16_async(at, in ? from : x, in);
    else
      *(uint4*)at = in ? load8<false>(from, left) : make_uint4(0, 0, 0, 0);
  }
}

// A left operand of 16 rows from `row` on, and 16 of the common dimension from k on.
template <Inner INNER>
__device__ __forceinline__ void left_fragment(u32 (&f)[4], const bf16* tile, int row, int k) {
  int lane = threadIdx.x % 32;
  if (INNER == COMMON)
    ldmatrix4<false>(f, tile + (row + (lane & 15)) * (DEPTH + 8) + k + (lane >> 4) * 8);
  else
    ldmatrix4<true>(f, tile + (k + (lane >> 4) * 8 + (lane & 7)) * (TILE + 8) + row + (lane >> 3 & 1) * 8);
}

// Two right operands, of 8 columns each.
template <Inner INNER>
__device__ __forceinline__ void right_fragments(u32 (&f)[4], const bf16* tile, int column, int k) {
  int lane = threadIdx.x % 32;
  if (INNER == COMMON)
    ldmatrix4<false>(f, tile + (column + (lane >> 4) * 8 + (lane & 7)) * (DEPTH + 8) + k + (lane >> 3 & 1) * 8);
  else
    ldmatrix4<true>(f, tile + (k + (lane & 15)) * (TILE + 8) + column + (lane >> 4) * 8);
}

__device__ __forceinline__ float value(float c) { return c; }
__device__ __forceinline__ float value(bf16 c) { return to_f(c); }
__device__ __forceinline__ void put(float* c, float v) { *c = v; }
__device__ __forceinline__ void put(bf16* c, float v) { *c = to_bf(v); }
__device__ __forceinline__ void put_pair(float* c, float v, float w) { *(float2*)c = make_float2(v, w); }
__device__ __forceinline__ void put_pair(bf16* c, float v, float w) { *(u32*)c = pack(v, w); }

// The two neighbours that a lane holds of a row; together where rows of c are a multiple of two.
template <class Out>
__device__ __forceinline__ void write_pair(Out* c, i64 row, int column, int n, float v, float w, bool accumulate) {
  if (column >= n) return;
  Out* at = c + row * n + column;
  bool second = column + 1 < n;
  if (accumulate) {
    v += value(at[0]);
    if (second) w += value(at[1]);
  }
  if (n % 2 == 0) {
    put_pair(at, v, w);
    return;
  }
  put(at, v);
  if (second) put(at + 1, w);
}

template <Inner A, Inner B, class Out>
__device__ __forceinline__ void gemm(Out* c, const bf16* a, const bf16* b, int m, int n, int k, bool accumulate) {
  DYNAMIC_SHARED(bf16, shared);
  bf16 *a_stages = shared, *b_stages = a_stages + STAGES * STAGE_LENGTH;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, row0 = warp / 4 * 64, column0 = warp % 4 * 32;
  bool idle = m0 + row0 >= m || n0 + column0 >= n;  // a warp past the edge only helps to load
  int steps = (k + DEPTH - 1) / DEPTH;
  auto load = [&](int step) {
    if (step < steps) {
      int stage = step % STAGES * STAGE_LENGTH;
      load_tile<A>(a_stages + stage, a, m0, step * DEPTH, m, k);
      load_tile<B>(b_stages + stage, b, n0, step * DEPTH, n, k);
    }
    copies_commit();  // an empty group past the end keeps the count
  };
  for (int step = 0; step < STAGES - 1; step++) load(step);

  float sum[4][4][4];
#pragma unroll
  for (int i = 0; i < 64; i++) sum[i / 16][i / 4 % 4][i % 4] = 0.f;
  for (int step = 0; step < steps; step++) {
    copies_wait<STAGES - 2>();
    __syncthreads();  // this stage is there for all, and the one before it has been used by all
    load(step + STAGES - 1);
    if (idle) continue;
    const bf16 *a_tile = a_stages + step % STAGES * STAGE_LENGTH, *b_tile = b_stages + step % STAGES * STAGE_LENGTH;
#pragma unroll
    for (int kk = 0; kk < DEPTH; kk += 16) {
      u32 left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) left_fragment<A>(left[i], a_tile, row0 + i * 16, kk);
#pragma unroll
      for (int j = 0; j < 2; j++) right_fragments<B>(right[j], b_tile, column0 + j * 16, kk);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          u32 pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          mma16816(sum[i][j], left[i], pair);
        }
    }
  }
  copies_wait<0>();
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int row = m0 + row0 + i * 16 + half * 8 + lane / 4, column = n0 + column0 + j * 8 + lane % 4 * 2;
        if (row < m) write_pair(c, row, column, n, sum[i][j][2 * half], sum[i][j][2 * half + 1], accumulate);
      }
}

// c (m, n) = or, to accumulate, += a b, with f32 sums · c in bf16 or f32
// gemm_nt  a (m, k), b (n, k): y = x w^T
// gemm_nn  a (m, k), b (k, n): dx = dy w
// gemm_tn  a (k, m), b (k, n): dw = dy^T x
// grid (ceil(n / 128), ceil(m / 128))  block 256  shared 81920 bytes
#define GEMM(name, A, B, Out)                                                                          \
  extern "C" __global__ void __launch_bounds__(256)                                                    \
      name(Out* c, const bf16* a, const bf16* b, int m, int n, int k, int accumulate) {                \
    gemm<A, B>(c, a, b, m, n, k, accumulate);                                                          \
  }                                                                                                    \
  EXPORT_KERNEL(name)

GEMM(gemm_nt_bf16, COMMON, COMMON, bf16)
GEMM(gemm_nt_f32, COMMON, COMMON, float)
GEMM(gemm_nn_bf16, COMMON, OWN, bf16)
GEMM(gemm_nn_f32, COMMON, OWN, float)
GEMM(gemm_tn_bf16, OWN, OWN, bf16)
GEMM(gemm_tn_f32, OWN, OWN, float)
