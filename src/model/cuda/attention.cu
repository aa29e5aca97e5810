// Attention over packed segments on tensor cores, forward and backward: each token sees those of its segment up to
// itself, so a tile of queries reads keys from the first token of its first segment on, and nothing before.
//
// With S = scale q k^T where visible, P = exp(S - lse), delta = sum_D dout o:
//   o = P v    dv = P^T dout    dS = P (dout v^T - delta)    dq = scale dS k    dk = scale dS^T q
// The forward pass goes over keys once, with a running maximum and sum (Dao et al. 2022). The backward pass makes S
// again from lse. One kernel owns keys and gives dk and dv, another owns queries and gives dq: S is made twice, but
// nothing is added by atomics and the order of every sum is fixed.
//
// A block has 4 warps, a warp 16 rows of what the block owns. Products are mma.m16n8k16 in f32; a product's result has
// the layout of the next one's left operand, so P and dS stay in registers, rounded to bf16. Tiles come by cp.async;
// their rows are padded by 16 bytes, which spreads the eight rows that ldmatrix reads at once over all banks.
// All reads and writes of memory are 16 or 4 bytes by neighbouring lanes. With 16 rows a warp, ldmatrix feeds about
// one product a 256 bytes, the balance point of an SM: larger tiles would be faster on long segments, and waste more on
// segments of some 200 tokens, which is what is trained on here.
#include "tiles.cuh"

// Rows that a block owns.
#define OWNED 64
// Rows that come at a time: keys in the forward pass; keys or queries in the backward pass.
#define FORWARD_ROWS(D) ((D) > 128 ? 32 : 64)
#define BACKWARD_ROWS(D) ((D) > 128 ? 16 : (D) > 64 ? 32 : 64)

// ROWS rows from row0 on, of one head of x (N, heads, D); those past N are zeros.
template <int D, int ROWS>
__device__ __forceinline__ void load_rows(bf16* to, const bf16* x, int row0, int N, int heads, int head) {
  for (int piece = threadIdx.x; piece < ROWS * (D / 8); piece += 128) {
    int r = piece / (D / 8), column = piece % (D / 8) * 8, row = row0 + r;
    copy16_async(to + r * LD(D) + column, x + ((i64)min(row, N - 1) * heads + head) * D + column, row < N);
  }
}

template <int D>
__device__ __forceinline__ void forward(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v,
                                        const u32* segment_start, int N, int H, int K, float scale) {
  constexpr int ROWS = FORWARD_ROWS(D), TILE = ROWS * LD(D);
  constexpr bool KEEP_QUERIES = D <= 128;  // in registers: D / 4 of them
  DYNAMIC_SHARED(bf16, shared);
  bf16 *queries = shared, *keys = queries + OWNED * LD(D), *values = keys + 2 * TILE;  // two buffers of each
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int h = blockIdx.y, key_head = h / (H / K), q0 = blockIdx.x * OWNED;
  int first = (int)segment_start[q0] / ROWS, last = (min(q0 + OWNED, N) - 1) / ROWS;
  const bf16* own_queries = queries + warp * 16 * LD(D);

  load_rows<D, OWNED>(queries, q, q0, N, H, h);
  load_rows<D, ROWS>(keys, k, first * ROWS, N, K, key_head);
  load_rows<D, ROWS>(values, v, first * ROWS, N, K, key_head);
  copies_commit();

  float sum[D / 8][4], max_score[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {0.f, 0.f};
  clear(sum);
  int row[2] = {q0 + warp * 16 + g, q0 + warp * 16 + g + 8}, start[2];
  for (int r = 0; r < 2; r++) start[r] = row[r] < N ? (int)segment_start[row[r]] : N;
  float to_base2 = scale * LOG2E;  // exp(x) = 2^(x log2 e)
  u32 kept[KEEP_QUERIES ? D / 16 : 1][4];

  for (int tile = first; tile <= last; tile++) {
    int buffer = (tile - first) & 1;
    if (tile < last) {
      load_rows<D, ROWS>(keys + (buffer ^ 1) * TILE, k, (tile + 1) * ROWS, N, K, key_head);
      load_rows<D, ROWS>(values + (buffer ^ 1) * TILE, v, (tile + 1) * ROWS, N, K, key_head);
      copies_commit();
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    __syncthreads();

    float s[ROWS / 8][4];
    clear(s);
    if (KEEP_QUERIES && tile == first) {
#pragma unroll
      for (int d = 0; d < D / 16; d++) left_fragment<D>(kept[KEEP_QUERIES ? d : 0], own_queries, d * 16);
    }
    if (KEEP_QUERIES) {
#pragma unroll
      for (int d = 0; d < D / 16; d++)
        add_scores<D, ROWS>(s, kept[KEEP_QUERIES ? d : 0], keys + buffer * TILE, d * 16);
    } else {
      multiply_transposed<D, ROWS>(s, own_queries, keys + buffer * TILE);
    }

#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        int key = tile * ROWS + n * 8 + 2 * t + (c & 1), r = c >> 1;
        s[n][c] = key >= start[r] && key <= row[r] ? s[n][c] * to_base2 : NEGATIVE_INFINITY;
      }
    add_weights<D, ROWS>(s, sum, max_score, total);
    multiply<D, ROWS>(sum, s, values + buffer * TILE);
    __syncthreads();  // before the next copies overwrite this buffer
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    if (row[r] >= N) continue;
    store_row<D>(o + ((i64)row[r] * H + h) * D, sum, r, 1.f / total[r]);
    if (t == 0) lse[(i64)h * N + row[r]] = (max_score[r] + log2f(total[r])) * LN2;
  }
}

// delta[h, n] = sum_D dout[n, h] o[n, h] · as many neighbouring lanes a row as hold it with eight elements each
template <int D>
__device__ __forceinline__ void delta_rows(float* delta, const bf16* dout, const bf16* o, int N, int H) {
  constexpr int LANES = D > 128 ? 32 : D > 64 ? 16 : D > 32 ? 8 : D > 16 ? 4 : 2;
  i64 row = first_item() / LANES;
  int column = threadIdx.x % LANES * 8;
  float sum = 0.f, a[8], b[8];
  if (row < (i64)N * H && column < D) {
    unpack8(a, *(const uint4*)(dout + row * D + column));
    unpack8(b, *(const uint4*)(o + row * D + column));
#pragma unroll
    for (int j = 0; j < 8; j++) sum += a[j] * b[j];
  }
  sum = warp_sum(sum, LANES);
  if (row < (i64)N * H && column == 0) delta[row % H * N + row / H] = sum;
}

// Which of the gradients a pass over the queries gives. Both at once take D registers a thread for their sums, which is
// too many for D = 256: there each has a pass of its own, and S is made once more.
enum Gradients { BOTH, KEYS, VALUES };

template <int D, Gradients WHICH>
__device__ __forceinline__ void key_value_pass(bf16* dk, bf16* dv, const bf16* dout, const bf16* q, const bf16* keys,
                                               const bf16* values, bf16* queries, bf16* output_gradients,
                                               const float* lse, const float* delta, const u32* segment_start, int end,
                                               int N, int H, int K, float scale) {
  constexpr int ROWS = BACKWARD_ROWS(D);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int k0 = blockIdx.x * OWNED, key_head = blockIdx.y, group = H / K;
  int key[2] = {k0 + warp * 16 + g, k0 + warp * 16 + g + 8};
  float sum_k[WHICH == VALUES ? 1 : D / 8][4], sum_v[WHICH == KEYS ? 1 : D / 8][4];
  clear(sum_k);
  clear(sum_v);
  for (int h = key_head * group; h < (key_head + 1) * group; h++)
    for (int q0 = k0; q0 < end; q0 += ROWS) {
      load_rows<D, ROWS>(queries, q, q0, N, H, h);
      load_rows<D, ROWS>(output_gradients, dout, q0, N, H, h);
      copies_commit();
      copies_wait<0>();
      __syncthreads();
      float p[ROWS / 8][4], ds[ROWS / 8][4];
      clear(p);
      multiply_transposed<D, ROWS>(p, keys + warp * 16 * LD(D), queries);
      if constexpr (WHICH != VALUES) {
        clear(ds);
        multiply_transposed<D, ROWS>(ds, values + warp * 16 * LD(D), output_gradients);
      }
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {  // the query of this column, and the two keys that this lane has of it
          int i = q0 + n * 8 + 2 * t + c, at = min(i, N - 1), start = (int)segment_start[at];
          float log_sum = lse[(i64)h * N + at] * LOG2E, d = delta[(i64)h * N + at];
#pragma unroll
          for (int r = 0; r < 2; r++) {
            bool visible = i < N && key[r] <= i && key[r] >= start;
            float& e = p[n][2 * r + c];
            e = visible ? exp2_fast(e * scale * LOG2E - log_sum) : 0.f;
            if constexpr (WHICH != VALUES)
              ds[n][2 * r + c] = visible ? e * (ds[n][2 * r + c] - d) * scale : 0.f;
          }
        }
      if constexpr (WHICH != KEYS) multiply<D, ROWS>(sum_v, p, output_gradients);
      if constexpr (WHICH != VALUES) multiply<D, ROWS>(sum_k, ds, queries);
      __syncthreads();  // before the next copies overwrite the tiles
    }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (key[r] >= N) continue;
    i64 at = ((i64)key[r] * K + key_head) * D;
    if constexpr (WHICH != VALUES) store_row<D>(dk + at, sum_k, r, 1.f);
    if constexpr (WHICH != KEYS) store_row<D>(dv + at, sum_v, r, 1.f);
  }
}

// A block owns 64 keys of a head, and goes over the queries that see any of them: from the first key to the end of the
// last one's segment, for each query head of the group.
template <int D>
__device__ __forceinline__ void backward_keys(bf16* dk, bf16* dv, const bf16* dout, const bf16* q, const bf16* k,
                                              const bf16* v, const float* lse, const float* delta,
                                              const u32* segment_start, const u32* segment_end, int N, int H, int K,
                                              float scale) {
  DYNAMIC_SHARED(bf16, shared);
  bf16 *keys = shared, *values = keys + OWNED * LD(D), *queries = values + OWNED * LD(D);
  bf16* output_gradients = queries + BACKWARD_ROWS(D) * LD(D);
  int k0 = blockIdx.x * OWNED, end = (int)segment_end[min(k0 + OWNED, N) - 1];
  load_rows<D, OWNED>(keys, k, k0, N, K, blockIdx.y);
  load_rows<D, OWNED>(values, v, k0, N, K, blockIdx.y);
  copies_commit();
  if constexpr (D <= 128) {
    key_value_pass<D, BOTH>(dk, dv, dout, q, keys, values, queries, output_gradients, lse, delta, segment_start, end, N,
                            H, K, scale);
  } else {
    key_value_pass<D, VALUES>(dk, dv, dout, q, keys, values, queries, output_gradients, lse, delta, segment_start, end,
                              N, H, K, scale);
    key_value_pass<D, KEYS>(dk, dv, dout, q, keys, values, queries, output_gradients, lse, delta, segment_start, end, N,
                            H, K, scale);
  }
}

// A block owns 64 queries of a head, and goes over the keys that any of them sees.
template <int D>
__device__ __forceinline__ void backward_queries(bf16* dq, const bf16* dout, const bf16* q, const bf16* k,
                                                 const bf16* v, const float* lse, const float* delta,
                                                 const u32* segment_start, int N, int H, int K, float scale) {
  constexpr int ROWS = BACKWARD_ROWS(D);
  DYNAMIC_SHARED(bf16, shared);
  bf16 *queries = shared, *output_gradients = queries + OWNED * LD(D);
  bf16 *keys = output_gradients + OWNED * LD(D), *values = keys + ROWS * LD(D);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int q0 = blockIdx.x * OWNED, h = blockIdx.y, key_head = h / (H / K), end = min(q0 + OWNED, N);
  load_rows<D, OWNED>(queries, q, q0, N, H, h);
  load_rows<D, OWNED>(output_gradients, dout, q0, N, H, h);
  float sum[D / 8][4], log_sum[2], d[2];
  clear(sum);
  int row[2] = {q0 + warp * 16 + g, q0 + warp * 16 + g + 8}, start[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    bool in = row[r] < N;
    start[r] = in ? (int)segment_start[row[r]] : N;
    log_sum[r] = in ? lse[(i64)h * N + row[r]] * LOG2E : 0.f;
    d[r] = in ? delta[(i64)h * N + row[r]] : 0.f;
  }
  for (int k0 = (int)segment_start[q0] / ROWS * ROWS; k0 < end; k0 += ROWS) {
    load_rows<D, ROWS>(keys, k, k0, N, K, key_head);
    load_rows<D, ROWS>(values, v, k0, N, K, key_head);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    float p[ROWS / 8][4], ds[ROWS / 8][4];
    clear(p);
    clear(ds);
    multiply_transposed<D, ROWS>(p, queries + warp * 16 * LD(D), keys);
    multiply_transposed<D, ROWS>(ds, output_gradients + warp * 16 * LD(D), values);
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        int key = k0 + n * 8 + 2 * t + (c & 1), r = c >> 1;
        bool visible = key >= start[r] && key <= row[r];
        ds[n][c] = visible ? exp2_fast(p[n][c] * scale * LOG2E - log_sum[r]) * (ds[n][c] - d[r]) * scale : 0.f;
      }
    multiply<D, ROWS>(sum, ds, keys);
    __syncthreads();  // before the next copies overwrite the tiles
  }
#pragma unroll
  for (int r = 0; r < 2; r++)
    if (row[r] < N) store_row<D>(dq + ((i64)row[r] * H + h) * D, sum, r, 1.f);
}

// For heads of D. q, o, dout, dq (N, H, D), k, v, dk, dv (N, K, D), lse, delta (H, N); segment_start[n] is the first
// token of n's segment, segment_end[n] one past its last. With F = D > 128 ? 32 : 64 and B = D > 128 ? 16 : D > 64 ? 32 : 64:
// attention_D        grid (ceil(N / 64), H)       block 128  shared (64 + 4 F) (D + 8) 2 bytes
// attention_delta_D  grid ceil(N H lanes / 256)   block 256  lanes = D / 8 or the next power of two
// attention_dkdv_D   grid (ceil(N / 64), K)       block 128  shared (128 + 2 B) (D + 8) 2 bytes
// attention_dq_D     grid (ceil(N / 64), H)       block 128  shared (128 + 2 B) (D + 8) 2 bytes
#define ATTENTION(D)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      attention_##D(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* segment_start, int N,  \
                    int H, int K, float scale) {                                                                      \
    forward<D>(o, lse, q, k, v, segment_start, N, H, K, scale);                                                       \
  }                                                                                                                   \
  EXPORT_KERNEL(attention_##D)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      attention_delta_##D(float* delta, const bf16* dout, const bf16* o, int N, int H) {                              \
    delta_rows<D>(delta, dout, o, N, H);                                                                              \
  }                                                                                                                   \
  EXPORT_KERNEL(attention_delta_##D)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      attention_dkdv_##D(bf16* dk, bf16* dv, const bf16* dout, const bf16* q, const bf16* k, const bf16* v,           \
                         const float* lse, const float* delta, const u32* segment_start, const u32* segment_end,      \
                         int N, int H, int K, float scale) {                                                          \
    backward_keys<D>(dk, dv, dout, q, k, v, lse, delta, segment_start, segment_end, N, H, K, scale);                  \
  }                                                                                                                   \
  EXPORT_KERNEL(attention_dkdv_##D)                                                                                   \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      attention_dq_##D(bf16* dq, const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const float* lse,     \
                       const float* delta, const u32* segment_start, int N, int H, int K, float scale) {              \
    backward_queries<D>(dq, dout, q, k, v, lse, delta, segment_start, N, H, K, scale);                                \
  }                                                                                                                   \
  EXPORT_KERNEL(attention_dq_##D)

ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(96)
ATTENTION(128)
ATTENTION(256)
