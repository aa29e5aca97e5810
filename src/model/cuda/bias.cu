// Biases of linear layers, where the product does not add them itself.
#include "device.cuh"

template <bool WHOLE>
__device__ __forceinline__ void add_to_rows(bf16* y, const bf16* bias, int rows, int O) {
  int per_row = (O + 7) / 8;
  for (i64 item = first_item(); item < (i64)rows * per_row; item += item_step()) {
    int column = (int)(item % per_row) * 8, left = O - column;
    bf16* at = y + item / per_row * O + column;
    float v[8], b[8];
    unpack8(v, load8<WHOLE>(at, left));
    unpack8(b, load8<WHOLE>(bias + column, left));
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] += b[j];
    store8<WHOLE>(at, pack8(v), left);
  }
}

// y[r] += bias · y (rows, O), bias (O)
// grid ceil(rows ceil(O / 8) / 256), or any  block 256; 4 bytes an element
extern "C" __global__ void __launch_bounds__(256) add_bias(bf16* y, const bf16* bias, int rows, int O) {
  if (O % 8 == 0)
    add_to_rows<true>(y, bias, rows, O);
  else
    add_to_rows<false>(y, bias, rows, O);
}
EXPORT_KERNEL(add_bias)

// The sum of rows from, from + 8, ... of dy, eight columns a lane.
template <bool WHOLE>
__device__ __forceinline__ void sum_rows(float (&sum)[8], const bf16* dy, int from, int to, int O, int column) {
  if (column >= O) return;
#pragma unroll 4
  for (int r = from; r < to; r += 8) {
    float v[8];
    unpack8(v, load8<WHOLE>(dy + (i64)r * O + column, O - column));
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += v[j];
  }
}

// part[p] = the sum over the p-th range of rows of dy · part (gridDim.y, O), dy (rows, O); then `sum_parts`
// The block's warps take every eighth row of its range, and are added in order.
// grid (ceil(O / 256), parts)  block 256; 2 bytes an element
extern "C" __global__ void __launch_bounds__(256) bias_backward(float* part, const bf16* dy, int rows, int O) {
  STATIC_SHARED(float, warp_part, 8 * 264);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = blockIdx.x * 256 + lane * 8;
  int share = (rows + gridDim.y - 1) / gridDim.y, from = blockIdx.y * share, to = min(from + share, rows);
  float sum[8] = {};
  if (O % 8 == 0)
    sum_rows<true>(sum, dy, from + warp, to, O, column);
  else
    sum_rows<false>(sum, dy, from + warp, to, O, column);
#pragma unroll
  for (int j = 0; j < 8; j++) warp_part[warp * 264 + j * 33 + lane] = sum[j];
  __syncthreads();
  column = blockIdx.x * 256 + threadIdx.x;
  if (column >= O) return;
  int at = threadIdx.x % 8 * 33 + threadIdx.x / 8;  // 33, not 32: else eight threads would meet in one bank
  float total = warp_part[at];
  for (int w = 1; w < 8; w++) total += warp_part[w * 264 + at];
  part[(i64)blockIdx.y * O + column] = total;
}
EXPORT_KERNEL(bias_backward)
