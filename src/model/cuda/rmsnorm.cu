// RMSNorm (Zhang & Sennrich 2019): y = x rstd w, rstd = 1 / sqrt(mean(x^2) + eps). A block has a row of the residual
// stream in its registers between the two passes over it, up to four times eight elements a thread; wider rows are read
// twice, the second time from L1 or L2.
#include "device.cuh"

#define KEPT 4

__device__ __forceinline__ float square_sum(const float (&v)[8]) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < 8; j++) sum += v[j] * v[j];
  return sum;
}

// x is what is normed: with RESIDUAL the sum of x and delta, rounded, which is left in `sum`.
template <bool RESIDUAL>
__device__ __forceinline__ uint4 operand(bf16* sum, const bf16* x, const bf16* delta, i64 at, int left, bool whole) {
  uint4 v = load8(x + at, left, whole);
  if (!RESIDUAL) return v;
  float a[8], b[8];
  unpack8(a, v);
  unpack8(b, load8(delta + at, left, whole));
#pragma unroll
  for (int j = 0; j < 8; j++) a[j] += b[j];
  v = pack8(a);
  store8(sum + at, v, left, whole);
  return v;
}

template <bool RESIDUAL>
__device__ __forceinline__ void norm_row(bf16* y, float* rstd, bf16* sum, const bf16* x, const bf16* delta,
                                         const bf16* w, int C, float eps) {
  i64 row = (i64)blockIdx.x * C;
  int step = blockDim.x * 8, own = threadIdx.x * 8;
  bool whole = C % 8 == 0;
  uint4 kept[KEPT];
  float squares = 0.f, v[8];
#pragma unroll
  for (int c = 0; c < KEPT; c++) {
    int i = own + c * step;
    if (i >= C) break;
    kept[c] = operand<RESIDUAL>(sum, x, delta, row + i, C - i, whole);
    unpack8(v, kept[c]);
    squares += square_sum(v);
  }
  for (int i = own + KEPT * step; i < C; i += step) {
    unpack8(v, operand<RESIDUAL>(sum, x, delta, row + i, C - i, whole));
    squares += square_sum(v);
  }
  float r = rsqrtf(block_sum(squares) / C + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;

  auto finish = [&](int i, uint4 bits) {
    float scale[8];
    unpack8(v, bits);
    unpack8(scale, load8(w + i, C - i, whole));
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = v[j] * r * scale[j];
    store8(y + row + i, pack8(v), C - i, whole);
  };
#pragma unroll
  for (int c = 0; c < KEPT; c++) {
    int i = own + c * step;
    if (i >= C) break;
    finish(i, kept[c]);
  }
  const bf16* normed = RESIDUAL ? sum : x;
  for (int i = own + KEPT * step; i < C; i += step) finish(i, load8(normed + row + i, C - i, whole));
}

// y, x (rows, C), w (C), rstd (rows)
// grid (rows)  block 32 ceil(C / 256), at most 512; 4 bytes an element
extern "C" __global__ void __launch_bounds__(512, 2) rmsnorm(bf16* y, float* rstd, const bf16* x, const bf16* w, int C,
                                                          float eps) {
  norm_row<false>(y, rstd, nullptr, x, nullptr, w, C, eps);
}
EXPORT_KERNEL(rmsnorm)

// sum = x + delta, and the norm of it · all (rows, C)
// grid (rows)  block 32 ceil(C / 256), at most 512; 8 bytes an element
extern "C" __global__ void __launch_bounds__(512) residual_rmsnorm(bf16* y, float* rstd, bf16* sum, const bf16* x,
                                                                   const bf16* delta, const bf16* w, int C, float eps) {
  norm_row<true>(y, rstd, sum, x, delta, w, C, eps);
}
EXPORT_KERNEL(residual_rmsnorm)

// Adds to dx of eight columns, and gives what this row adds to dw; `inner` is rstd^3 mean(g x).
__device__ __forceinline__ void backward_eight(float (&dw)[8], bf16* dx, const bf16* dy, const bf16* x, const bf16* w,
                                               i64 row, int i, int C, float rstd, float inner, bool whole) {
  float g[8], v[8], scale[8], d[8];
  unpack8(g, load8(dy + row + i, C - i, whole));
  unpack8(v, load8(x + row + i, C - i, whole));
  unpack8(scale, load8(w + i, C - i, whole));
  unpack8(d, load8(dx + row + i, C - i, whole));
#pragma unroll
  for (int j = 0; j < 8; j++) {
    d[j] += g[j] * scale[j] * rstd - v[j] * inner;
    dw[j] = g[j] * v[j] * rstd;
  }
  store8(dx + row + i, pack8(d), C - i, whole);
}

// With g = dy w: dx += rstd g - x rstd^3 mean(g x), dw_part[b] = the sum over block b's rows of dy x rstd ·
// dx, dy, x (rows, C), w (C), rstd (rows), dw_part (gridDim.x, C); then `sum_parts`
// Block b takes rows b, b + gridDim.x, ... A thread keeps the gradients of its columns in registers; of columns past
// those, in their place in dw_part.
// grid (parts), at most rows  block 32 ceil(C / 256), at most 512; 8 bytes an element
extern "C" __global__ void __launch_bounds__(512) rmsnorm_backward(bf16* dx, float* dw_part, const bf16* dy,
                                                                   const bf16* x, const bf16* w, const float* rstd,
                                                                   int rows, int C) {
  int step = blockDim.x * 8, own = threadIdx.x * 8;
  bool whole = C % 8 == 0;
  float kept[KEPT][8] = {};
  float* part = dw_part + (i64)blockIdx.x * C;
  for (int i = own + KEPT * step; i < C; i += step)
    for (int j = 0; j < 8 && i + j < C; j++) part[i + j] = 0.f;

  for (i64 n = blockIdx.x; n < rows; n += gridDim.x) {
    i64 row = n * C;
    float r = rstd[n], dot = 0.f;
    for (int i = own; i < C; i += step) {
      float g[8], scale[8], v[8];
      unpack8(g, load8(dy + row + i, C - i, whole));
      unpack8(v, load8(x + row + i, C - i, whole));
      unpack8(scale, load8(w + i, C - i, whole));
#pragma unroll
      for (int j = 0; j < 8; j++) dot += g[j] * scale[j] * v[j];
    }
    float inner = block_sum(dot) / C * r * r * r;
    // The second reading comes from L1: a row is 2 to 32 KiB.
    float dw[8];
#pragma unroll
    for (int c = 0; c < KEPT; c++) {
      int i = own + c * step;
      if (i >= C) break;
      backward_eight(dw, dx, dy, x, w, row, i, C, r, inner, whole);
#pragma unroll
      for (int j = 0; j < 8; j++) kept[c][j] += dw[j];
    }
    for (int i = own + KEPT * step; i < C; i += step) {
      backward_eight(dw, dx, dy, x, w, row, i, C, r, inner, whole);
      for (int j = 0; j < 8 && i + j < C; j++) part[i + j] += dw[j];
    }
  }
#pragma unroll
  for (int c = 0; c < KEPT; c++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (own + c * step + j < C) part[own + c * step + j] = kept[c][j];
}
EXPORT_KERNEL(rmsnorm_backward)

// Norms of heads: rows of at most 256, many. Each takes as many neighbouring lanes as hold it with eight elements each,
// so that a warp has 32 / lanes rows, and loads are as wide as above.

struct HeadRows {
  int lanes, own;  // of a row; this lane's first element
  i64 first, step;
};
__device__ __forceinline__ HeadRows head_rows(int C) {
  int lanes = 1, lane = threadIdx.x % 32;
  while (lanes * 8 < C) lanes *= 2;
  i64 warp = first_item() / 32, warps = item_step() / 32;
  int each = 32 / lanes;
  return {lanes, lane % lanes * 8, warp * each + lane / lanes, warps * each};
}

// As `rmsnorm`, for C up to 256.
// grid ceil(rows / 8), or any  block 256; 4 bytes an element
extern "C" __global__ void __launch_bounds__(256) head_rmsnorm(bf16* y, float* rstd, const bf16* x, const bf16* w,
                                                               int rows, int C, float eps) {
  HeadRows my = head_rows(C);
  bool whole = C % 8 == 0;
  int left = C - my.own;
  float scale[8] = {};
  if (left > 0) unpack8(scale, load8(w + my.own, left, whole));
  i64 offset = my.first % (32 / my.lanes);  // all lanes of a warp go round as often
  for (i64 base = my.first - offset; base < rows; base += my.step) {
    i64 row = base + offset, at = row * C + my.own;
    bool in = row < rows && left > 0;
    float v[8] = {};
    if (in) unpack8(v, load8(x + at, left, whole));
    float r = rsqrtf(warp_sum(square_sum(v), my.lanes) / C + eps);
    if (!in) continue;
    if (my.own == 0) rstd[row] = r;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = v[j] * r * scale[j];
    store8(y + at, pack8(v), left, whole);
  }
}
EXPORT_KERNEL(head_rmsnorm)

// As `rmsnorm_backward`, for C up to 256.
// grid (parts), any  block 256; 8 bytes an element
extern "C" __global__ void __launch_bounds__(256) head_rmsnorm_backward(bf16* dx, float* dw_part, const bf16* dy,
                                                                        const bf16* x, const bf16* w, const float* rstd,
                                                                        int rows, int C) {
  STATIC_SHARED(float, sums, 256 * 8);  // by element and thread
  HeadRows my = head_rows(C);
  bool whole = C % 8 == 0;
  int left = C - my.own;
  float scale[8] = {}, dw[8] = {};
  if (left > 0) unpack8(scale, load8(w + my.own, left, whole));
  i64 offset = my.first % (32 / my.lanes);
  for (i64 base = my.first - offset; base < rows; base += my.step) {
    i64 row = base + offset, at = row * C + my.own;
    bool in = row < rows && left > 0;
    float g[8] = {}, v[8] = {}, d[8], r = 0.f, dot = 0.f;
    if (in) {
      unpack8(g, load8(dy + at, left, whole));
      unpack8(v, load8(x + at, left, whole));
      r = rstd[row];
    }
#pragma unroll
    for (int j = 0; j < 8; j++) dot += g[j] * scale[j] * v[j];
    float inner = warp_sum(dot, my.lanes) / C * r * r * r;
    if (!in) continue;
    unpack8(d, load8(dx + at, left, whole));
#pragma unroll
    for (int j = 0; j < 8; j++) {
      d[j] += g[j] * scale[j] * r - v[j] * inner;
      dw[j] += g[j] * v[j] * r;
    }
    store8(dx + at, pack8(d), left, whole);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) sums[j * 256 + threadIdx.x] = dw[j];
  __syncthreads();
  int column = threadIdx.x;
  if (column >= C) return;
  float total = 0.f;
  for (int t = column / 8; t < 256; t += my.lanes) total += sums[column % 8 * 256 + t];
  dw_part[(i64)blockIdx.x * C + column] = total;
}
EXPORT_KERNEL(head_rmsnorm_backward)

// out[c] += the sum of part[p, c] over p · part (parts, C), out (C)
// grid ceil(C / 32)  block 512
extern "C" __global__ void __launch_bounds__(512) sum_parts(float* out, const float* part, int parts, int C) {
  int column = blockIdx.x * 32 + threadIdx.x % 32;
  float sum;
  if (column_sum(sum, part, parts, C, column)) out[column] += sum;
}
EXPORT_KERNEL(sum_parts)
