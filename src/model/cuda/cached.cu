// Attention of segments that go on from keys and values that are kept: forward only, for few tokens behind long pasts.
//
// What takes time there is to read the past, so a block reads it once for all heads that share it: its 16 rows of
// queries are the query heads of a key-value head, of as many neighbouring tokens as fit. Its warps share the keys out,
// 16 of each tile a warp, each with a maximum and sum of its own; in the end the shares are joined in their order. Where
// there are too few blocks to keep a GPU busy, several share the keys of a row (Dao et al. 2023, "Flash-Decoding"), and a
// second kernel joins what they found.
//
// A text's tokens are numbered from its first: those below `kept` are in the cache, from row `place` on, the others are
// the segment's own.
#include "tiles.cuh"

// Rows of queries of a block.
#define QUERIES 16
#define WARPS(D) ((D) > 128 ? 2 : 4)
// Keys that come at a time.
#define KEYS(D) (16 * WARPS(D))

// Weights of some keys: 2^max times `sum`.
struct Weights {
  float max, sum;
};

// Eight columns of a row: the sums over values of `parts` ranges of keys, joined in their order. Returns the weights of all.
__device__ __forceinline__ Weights join8(float (&value)[8], const float* sums, i64 to_next_sums, const Weights* weights,
                                         i64 to_next_weights, int parts) {
  Weights all = {NEGATIVE_INFINITY, 0.f};
  for (int p = 0; p < parts; p++) all.max = max(all.max, weights[p * to_next_weights].max);
#pragma unroll
  for (int j = 0; j < 8; j++) value[j] = 0.f;
  for (int p = 0; p < parts; p++) {
    Weights own = weights[p * to_next_weights];
    float factor = own.max == NEGATIVE_INFINITY ? 0.f : exp2_fast(own.max - all.max);  // a range without keys
    all.sum += own.sum * factor;
    float4 a = *(const float4*)(sums + p * to_next_sums), b = *(const float4*)(sums + p * to_next_sums + 4);
    float part[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; j++) value[j] += part[j] * factor;
  }
  return all;
}

// The result of a query: eight columns of o and, with the first of them, lse.
__device__ __forceinline__ void store8_of_query(bf16* o, float* lse, float (&value)[8], Weights all, int column) {
#pragma unroll
  for (int j = 0; j < 8; j++) value[j] /= all.sum;
  *(uint4*)(o + column) = pack8(value);
  if (column == 0) *lse = (all.max + log2f(all.sum)) * LN2;
}

// Where a block's text is: in the cache (P, K, D), and among the tokens of the batch (N, K, D).
struct Text {
  int place, kept, start;
};

// Keys or values of a text, a head's KEYS rows from `first` on; those from `end` on are zeros.
template <int D>
__device__ __forceinline__ void load_text(bf16* to, const bf16* cache, const bf16* own, Text text, int first, int end,
                                          int K, int key_head) {
  for (int piece = threadIdx.x; piece < KEYS(D) * (D / 8); piece += blockDim.x) {
    int r = piece / (D / 8), column = piece % (D / 8) * 8, i = min(first + r, end - 1);
    const bf16* from = i < text.kept ? cache + ((i64)(text.place + i) * K + key_head) * D
                                     : own + ((i64)(text.start + i - text.kept) * K + key_head) * D;
    copy16_async(to + r * LD(D) + column, from + column, first + r < end);
  }
}

template <int D>
__device__ __forceinline__ void cached(bf16* o, float* lse, float* part_sums, Weights* part_weights, const bf16* q,
                                       const bf16* k, const bf16* v, const bf16* kept_k, const bf16* kept_v,
                                       const u32* segment_start, const u32* segment_end, const u32* positions,
                                       const u32* places, int N, int H, int K, float scale) {
  constexpr int TILE = KEYS(D) * LD(D);
  constexpr bool KEEP_QUERIES = D <= 128;  // in registers: D / 4 of them
  DYNAMIC_SHARED(bf16, shared);
  bf16 *queries = shared, *keys = queries + QUERIES * LD(D), *values = keys + 2 * TILE;  // two buffers of each
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  // Rows: the tokens from n0 on, each with the same heads.
  int group = H / K, stacks = (group + QUERIES - 1) / QUERIES;
  int key_head = blockIdx.y / stacks, in_group = blockIdx.y % stacks * QUERIES;
  int heads = min(group - in_group, QUERIES), first_head = key_head * group + in_group;
  int n0 = blockIdx.x, start = segment_start[n0], tokens = QUERIES / heads;
  if ((n0 - start) % tokens != 0) return;  // the token is one of another block's
  tokens = min(tokens, (int)segment_end[n0] - n0);
  int rows = tokens * heads, position = positions[n0];
  Text text = {(int)places[n0], position - (n0 - start), start};

  // Keys: of all that the last token sees, this block's share in tiles.
  int end = position + tokens, tiles = (end + KEYS(D) - 1) / KEYS(D), share = (tiles + gridDim.z - 1) / gridDim.z;
  int first = blockIdx.z * share, last = min(first + share, tiles) - 1;

  for (int piece = threadIdx.x; piece < QUERIES * (D / 8); piece += blockDim.x) {
    int r = piece / (D / 8), column = piece % (D / 8) * 8, at = min(r, rows - 1);
    const bf16* from = q + ((i64)(n0 + at / heads) * H + first_head + at % heads) * D;
    copy16_async(queries + r * LD(D) + column, from + column, r < rows);
  }
  if (first <= last) {
    load_text<D>(keys, kept_k, k, text, first * KEYS(D), end, K, key_head);
    load_text<D>(values, kept_v, v, text, first * KEYS(D), end, K, key_head);
  }
  copies_commit();

  float sum[D / 8][4], max_score[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {0.f, 0.f};
  clear(sum);
  int seen[2] = {position + g / heads, position + (g + 8) / heads};  // the last key that a row sees
  float to_base2 = scale * LOG2E;  // exp(x) = 2^(x log2 e)
  u32 kept_queries[KEEP_QUERIES ? D / 16 : 1][4];

  for (int tile = first; tile <= last; tile++) {
    int buffer = (tile - first) & 1;
    if (tile < last) {
      load_text<D>(keys + (buffer ^ 1) * TILE, kept_k, k, text, (tile + 1) * KEYS(D), end, K, key_head);
      load_text<D>(values + (buffer ^ 1) * TILE, kept_v, v, text, (tile + 1) * KEYS(D), end, K, key_head);
      copies_commit();
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    __syncthreads();

    const bf16 *own_keys = keys + buffer * TILE + warp * 16 * LD(D), *own_values = own_keys + 2 * TILE;
    float s[2][4];
    clear(s);
    if (KEEP_QUERIES && tile == first) {
#pragma unroll
      for (int d = 0; d < D / 16; d++) left_fragment<D>(kept_queries[KEEP_QUERIES ? d : 0], queries, d * 16);
    }
    if (KEEP_QUERIES) {
#pragma unroll
      for (int d = 0; d < D / 16; d++) add_scores<D, 16>(s, kept_queries[KEEP_QUERIES ? d : 0], own_keys, d * 16);
    } else {
      multiply_transposed<D, 16>(s, queries, own_keys);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        int key = tile * KEYS(D) + warp * 16 + n * 8 + 2 * t + (c & 1);
        s[n][c] = key <= seen[c >> 1] ? s[n][c] * to_base2 : NEGATIVE_INFINITY;
      }
    add_weights<D, 16>(s, sum, max_score, total);
    multiply<D, 16>(sum, s, own_values);
    __syncthreads();  // before the next copies overwrite this buffer
  }

  // The warps' results take the tiles' place.
  copies_wait<0>();
  __syncthreads();
  float* sums = (float*)shared;
  Weights* weights = (Weights*)(sums + WARPS(D) * QUERIES * LD(D));
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    int row = warp * QUERIES + g + 8 * r;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      *(float2*)(sums + row * LD(D) + n * 8 + 2 * t) = make_float2(sum[n][2 * r], sum[n][2 * r + 1]);
    if (t == 0) weights[row] = {max_score[r], total[r]};
  }
  __syncthreads();
  for (int piece = threadIdx.x; piece < rows * (D / 8); piece += blockDim.x) {
    int r = piece / (D / 8), column = piece % (D / 8) * 8, n = n0 + r / heads, h = first_head + r % heads;
    float value[8];
    Weights all = join8(value, sums + r * LD(D) + column, QUERIES * LD(D), weights + r, QUERIES, WARPS(D));
    i64 query = (i64)n * H + h;
    if (gridDim.z == 1) {
      store8_of_query(o + query * D, lse + (i64)h * N + n, value, all, column);
    } else {
      query += (i64)blockIdx.z * N * H;
      float* to = part_sums + query * D + column;
      *(float4*)to = make_float4(value[0], value[1], value[2], value[3]);
      *(float4*)(to + 4) = make_float4(value[4], value[5], value[6], value[7]);
      if (column == 0) part_weights[query] = all;
    }
  }
}

// For heads of D. o, q (N, H, D), k, v (N, K, D), kept_k, kept_v (P, K, D), lse (H, N); of each token, the first of its
// segment and the one after its last, its position in the text, and the text's first row in the cache. With several
// `parts`, o and lse are left as they are, and part_sums (parts, N, H, D) and part_weights (parts, N, H, 2) written.
// grid (N, K ceil(H / K / 16), parts)  block 32 W  shared (16 + 64 W) (D + 8) 2 bytes, W = D > 128 ? 2 : 4
#define CACHED(D)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(32 * WARPS(D))                                                         \
      cached_attention_##D(bf16* o, float* lse, float* part_sums, Weights* part_weights, const bf16* q, const bf16* k, \
                           const bf16* v, const bf16* kept_k, const bf16* kept_v, const u32* segment_start,            \
                           const u32* segment_end, const u32* positions, const u32* places, int N, int H, int K,       \
                           float scale) {                                                                              \
    cached<D>(o, lse, part_sums, part_weights, q, k, v, kept_k, kept_v, segment_start, segment_end, positions, places, \
              N, H, K, scale);                                                                                         \
  }                                                                                                                    \
  EXPORT_KERNEL(cached_attention_##D)

CACHED(16)
CACHED(32)
CACHED(64)
CACHED(96)
CACHED(128)
CACHED(256)

// Joins the parts. A thread has eight columns of a query · o (N, H, D), lse (H, N)
// grid ceil(N H D / 8 / 256)  block 256
extern "C" __global__ void __launch_bounds__(256) join_parts(bf16* o, float* lse, const float* part_sums,
                                                             const Weights* part_weights, int N, int H, int D,
                                                             int parts) {
  i64 item = first_item(), queries = (i64)N * H, query = item / (D / 8);
  int column = (int)(item % (D / 8)) * 8;
  if (query >= queries) return;
  float value[8];
  Weights all = join8(value, part_sums + query * D + column, queries * D, part_weights + query, queries, parts);
  store8_of_query(o + query * D, lse + query % H * N + query / H, value, all, column);
}
EXPORT_KERNEL(join_parts)

// Keeps the keys and values of the batch: token n's go to row places[n] + positions[n] · k, v (N, C), kept (P, C)
// grid (N, 2), keys and values  block 128
extern "C" __global__ void keep_rows(bf16* kept_k, bf16* kept_v, const bf16* k, const bf16* v, const u32* positions,
                                     const u32* places, int C) {
  i64 from = blockIdx.x, to = (i64)places[from] + positions[from];
  if (blockIdx.y == 0)
    copy_row(kept_k + to * C, k + from * C, C);
  else
    copy_row(kept_v + to * C, v + from * C, C);
}
EXPORT_KERNEL(keep_rows)
