// The length of all gradients together.
#include "device.cuh"

// part[b] = the sum of squares of block b's share of g. In f64, where no finite f32 overflows: the result is finite
// exactly if every g is.
// grid (parts), of a fixed number for a given n, which fixes the order of summation  block 256; 4 bytes an element
extern "C" __global__ void __launch_bounds__(256) sum_squares(double* part, const float* g, i64 n) {
  double sum = 0;
  i64 whole = n / 4;
  for (i64 i = first_item(); i < whole; i += item_step()) {
    float4 v = ((const float4*)g)[i];
    sum += (double)v.x * v.x + (double)v.y * v.y + ((double)v.z * v.z + (double)v.w * v.w);
  }
  for (i64 i = whole * 4 + first_item(); i < n; i += item_step()) sum += (double)g[i] * g[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}
EXPORT_KERNEL(sum_squares)

// out = the root of the sum of the parts; finite = 1 if it is a number, else 0
// grid 1  block 256
extern "C" __global__ void __launch_bounds__(256) finish_norm(double* out, u32* finite, const double* part, int parts) {
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += blockDim.x) sum += part[i];
  sum = block_sum(sum);
  if (threadIdx.x) return;
  *out = sqrt(sum);
  *finite = sum <= 1.7976931348623157e308;  // false for infinity and for NaN
}
EXPORT_KERNEL(finish_norm)
