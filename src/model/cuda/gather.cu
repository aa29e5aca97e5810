// The positions that predict something, out of all and back.
#include "device.cuh"

// y[r] = x[rows[r]] · y (count, C), x (N, C)
// grid (count)  block 128
extern "C" __global__ void gather_rows(bf16* y, const bf16* x, const u32* rows, int count, int C) {
  i64 r = blockIdx.x;
  if (r < count) copy_row(y + r * C, x + (i64)rows[r] * C, C);
}
EXPORT_KERNEL(gather_rows)

// dx[rows[r]] = dy[r]; the other rows of dx stay as they are. Rows are distinct, but for those without a target, which
// all have a gradient of zeros
// grid (count)  block 128
extern "C" __global__ void scatter_rows(bf16* dx, const bf16* dy, const u32* rows, int count, int C) {
  i64 r = blockIdx.x;
  if (r < count) copy_row(dx + (i64)rows[r] * C, dy + r * C, C);
}
EXPORT_KERNEL(scatter_rows)
