// Embedding: rows of a table by id, and the gradient of the table.
#include "device.cuh"

// y[n] = table[ids[n]] · y (N, C), table (V, C)
// grid (N)  block 128
extern "C" __global__ void embed(bf16* y, const bf16* table, const u32* ids, int N, int C) {
  i64 n = blockIdx.x;
  if (n < N) copy_row(y + n * C, table + (i64)ids[n] * C, C);
}
EXPORT_KERNEL(embed)

// The sum of the rows of dy that order[from..to] names, eight columns a lane.
template <bool WHOLE>
__device__ __forceinline__ void sum_rows(float (&sum)[8], const bf16* dy, const u32* order, int from, int to, int C,
                                         int column) {
  if (column >= C) return;
#pragma unroll 4
  for (int i = from; i < to; i++) {
    float v[8];
    unpack8(v, load8<WHOLE>(dy + (i64)order[i] * C + column, C - column));
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += v[j];
  }
}

// dtable[distinct[b]] += the sum of dy[order[i]] for i in starts[b]..starts[b + 1] · dtable (V, C), dy (N, C)
// `order` lists the tokens of each distinct id, ascending; no two blocks write to the same place, so nothing is atomic.
// Some ids come up hundreds of times in a batch (a comma, padding): eight warps sum an eighth of the rows each, and the
// eighths are added in order.
// grid (`count` distinct ids or more, ceil(C / 256))  block 256
extern "C" __global__ void __launch_bounds__(256) embed_backward(float* dtable, const bf16* dy, const u32* order,
                                                                 const u32* starts, const u32* distinct,
                                                                 const u32* count, int C) {
  STATIC_SHARED(float, part, 8 * 264);
  if (blockIdx.x >= *count) return;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.y * 256 + lane * 8;
  int first = starts[blockIdx.x], last = starts[blockIdx.x + 1], share = (last - first + 7) / 8;
  int from = first + warp * share, to = min(from + share, last);
  float sum[8] = {};
  if (C % 8 == 0)
    sum_rows<true>(sum, dy, order, from, to, C, column);
  else
    sum_rows<false>(sum, dy, order, from, to, C, column);
#pragma unroll
  for (int j = 0; j < 8; j++) part[warp * 264 + j * 33 + lane] = sum[j];
  __syncthreads();
  column = blockIdx.y * 256 + threadIdx.x;
  if (column >= C) return;
  int at = threadIdx.x % 8 * 33 + threadIdx.x / 8;  // 33, not 32: else eight threads would meet in one bank
  float total = part[at];
  for (int w = 1; w < 8; w++) total += part[w * 264 + at];
  dtable[(i64)distinct[blockIdx.x] * C + column] += total;
}
EXPORT_KERNEL(embed_backward)
