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
template <bool RESIDUAL, bool WHOLE>
__device__ __forceinline__ uint4 operand(bf16* sum, const bf16* x, const bf16* delta, i64 at, int left) {
  uint4 v = load8<WHOLE>(x + at, left);
  if (!RESIDUAL) return v;
  float a[8], b[8];
  unpack8(a, v);
  unpack8(b, load8<WHOLE>(delta + at, left));
#pragma unroll
  for (int j = 0; j < 8; j++) a[j] += b[j];
  v = pack8(a);
  store8<WHOLE>(sum + at, v, left);
  return v;
}

template <bool WHOLE>
__device__ __forceinline__ void write_normed(bf16* y, uint4 x, const bf16* w, float rstd, int left) {
  float v[8], scale[8];
  unpack8(v, x);
  unpack8(scale, load8<WHOLE>(w, left));
#pragma unroll
  for (int j = 0; j < 8; j++) v[j] = v[j] * rstd * scale[j];
  store8<WHOLE>(y, pack8(v), left);
}

template <bool RESIDUAL, bool WHOLE>
__device__ __forceinline__ void norm_row(bf16* y, float* rstd, bf16* sum, const bf16* x, const bf16* delta,
                                         const bf16* w, int C, float eps) {
  i64 row = (i64)blockIdx.x * C;
  int step = blockDim.x * 8, own = threadIdx.x * 8;
  uint4 kept[KEPT];
  float squares = 0.f, v[8];
#pragma unroll
  for (int c = 0; c < KEPT; c++) {
    int i = own + c * step;
    if (i >= C) break;
    kept[c] = operand<RESIDUAL, WHOLE>(sum, x, delta, row + i, C - i);
    unpack8(v, kept[c]);
    squares += square_sum(v);
  }
  for (int i = own + KEPT * step; i < C; i += step) {
    unpack8(v, operand<RESIDUAL, WHOLE>(sum, x, delta, row + i, C - i));
    squares += square_sum(v);
  }
  float r = rsqrtf(block_sum(squares) / C + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
#pragma unroll
  for (int c = 0; c < KEPT; c++) {
    int i = own + c * step;
    if (i >= C) break;
    write_normed<WHOLE>(y + row + i, kept[c], w + i, r, C - i);
  }
  const bf16* normed = RESIDUAL ? sum : x;
  for (int i = own + KEPT * step; i < C; i += step)
    write_normed<WHOLE>(y + row + i, load8<WHOLE>(normed + row + i, C - i), w + i, r, C - i);
}

// y, x (rows, C), w (C), rstd (rows)
// grid (rows)  block 32 ceil(C / 256), at most 512; 4 bytes an element
extern "C" __global__ void __launch_bounds__(512, 2) rmsnorm(bf16* y, float* rstd, const bf16* x, const bf16* w, int C,
                                                          float eps) {
  if (C % 8 == 0)
    norm_row<false, true>(y, rstd, nullptr, x, nullptr, w, C, eps);
  else
    norm_row<false, false>(y, rstd, nullptr, x, nullptr, w, C, eps);
}
EXPORT_KERNEL(rmsnorm)

// sum = x + delta, and the norm of it · all (rows, C)
// grid (rows)  block 32 ceil(C / 256), at most 512; 8 bytes an element
extern "C" __global__ void __launch_bounds__(512) residual_rmsnorm(bf16* y, float* rstd, bf16* sum, const bf16* x,
                                                                   const bf16* delta, const bf16* w, int C, float eps) {
  if (C % 8 == 0)
    norm_row<true, true>(y, rstd, sum, x, delta, w, C, eps);
  else
    norm_row<true, false>(y, rstd, sum, x, delta, w, C, eps);
}
EXPORT_KERNEL(residual_rmsnorm)

// Eight columns of a row, as the backward pass needs them.
struct Columns {
  uint4 dy, x, dx;
};
template <bool WHOLE>
__device__ __forceinline__ Columns load_columns(const bf16* dy, const bf16* x, const bf16* dx, i64 at, int left) {
  return {load8<WHOLE>(dy + at, left), load8<WHOLE>(x + at, left), load8<WHOLE>(dx + at, left)};
}
// The sum of g x, g = dy w.
__device__ __forceinline__ float weighted_dot(Columns columns, uint4 w) {
  float g[8], v[8], scale[8], sum = 0.f;
  unpack8(g, columns.dy);
  unpack8(v, columns.x);
  unpack8(scale, w);
#pragma unroll
  for (int j = 0; j < 8; j++) sum += g[j] * scale[j] * v[j];
  return sum;
}
// Gives the new dx, and what the row adds to dw; `inner` is rstd^3 mean(g x).
__device__ __forceinline__ uint4 backward_columns(float (&dw)[8], Columns columns, uint4 w, float rstd, float inner) {
  float g[8], v[8], d[8], scale[8];
  unpack8(g, columns.dy);
  unpack8(v, columns.x);
  unpack8(d, columns.dx);
  unpack8(scale, w);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    d[j] += g[j] * scale[j] * rstd - v[j] * inner;
    dw[j] = g[j] * v[j] * rstd;
  }
  return pack8(d);
}

#define KEPT_BACKWARD 2

template <bool WHOLE>
__device__ __forceinline__ void backward_rows(bf16* dx, float* part, const bf16* dy, const bf16* x, const bf16* w,
                                              const float* rstd, int rows, int C) {
  int step = blockDim.x * 8, own = threadIdx.x * 8;
  float sums[KEPT_BACKWARD][8] = {}, dw[8];
  for (int i = own + KEPT_BACKWARD * step; i < C; i += step)
    for (int j = 0; j < 8 && i + j < C; j++) part[i + j] = 0.f;

  for (i64 n = blockIdx.x; n < rows; n += gridDim.x) {
    i64 row = n * C;
    float r = rstd[n], dot = 0.f;
    Columns kept[KEPT_BACKWARD];
#pragma unroll
    for (int c = 0; c < KEPT_BACKWARD; c++) {
      int i = own + c * step;
      if (i >= C) break;
      kept[c] = load_columns<WHOLE>(dy, x, dx, row + i, C - i);
      dot += weighted_dot(kept[c], load8<WHOLE>(w + i, C - i));
    }
    for (int i = own + KEPT_BACKWARD * step; i < C; i += step)
      dot += weighted_dot(load_columns<WHOLE>(dy, x, dx, row + i, C - i), load8<WHOLE>(w + i, C - i));
    float inner = block_sum(dot) / C * r * r * r;
#pragma unroll
    for (int c = 0; c < KEPT_BACKWARD; c++) {
      int i = own + c * step;
      if (i >= C) break;
      store8<WHOLE>(dx + row + i, backward_columns(dw, kept[c], load8<WHOLE>(w + i, C - i), r, inner), C - i);
#pragma unroll
      for (int j = 0; j < 8; j++) sums[c][j] += dw[j];
    }
    for (int i = own + KEPT_BACKWARD * step; i < C; i += step) {
      Columns columns = load_columns<WHOLE>(dy, x, dx, row + i, C - i);
      store8<WHOLE>(dx + row + i, backward_columns(dw, columns, load8<WHOLE>(w + i, C - i), r, inner), C - i);
      for (int j = 0; j < 8 && i + j < C; j++) part[i + j] += dw[j];
    }
  }
#pragma unroll
  for (int c = 0; c < KEPT_BACKWARD; c++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (own + c * step + j < C) part[own + c * step + j] = sums[c][j];
}

// With g = dy w: dx += rstd g - x rstd^3 mean(g x), dw_part[b] = the sum over block b's rows of dy x rstd ·
// dx, dy, x (rows, C), w (C), rstd (rows), dw_part (gridDim.x, C); then `sum_parts`
// Block b takes rows b, b + gridDim.x, ... All of a row is asked for before the block's sum is waited for. A thread has
// dw of its first twice eight columns in registers; of columns past those, in their place in dw_part.
// grid (parts), at most rows  block 32 ceil(C / 256), at most 512; 8 bytes an element
extern "C" __global__ void __launch_bounds__(512) rmsnorm_backward(bf16* dx, float* dw_part, const bf16* dy,
                                                                   const bf16* x, const bf16* w, const float* rstd,
                                                                   int rows, int C) {
  float* part = dw_part + (i64)blockIdx.x * C;
  if (C % 8 == 0)
    backward_rows<true>(dx, part, dy, x, w, rstd, rows, C);
  else
    backward_rows<false>(dx, part, dy, x, w, rstd, rows, C);
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

template <bool WHOLE>
__device__ __forceinline__ void norm_heads(bf16* y, float* rstd, const bf16* x, const bf16* w, int rows, int C,
                                           float eps) {
  HeadRows my = head_rows(C);
  int left = C - my.own;
  i64 offset = my.first % (32 / my.lanes);  // all lanes of a warp go round as often
  for (i64 base = my.first - offset; base < rows; base += my.step) {
    i64 row = base + offset, at = row * C + my.own;
    bool in = row < rows && left > 0;
    uint4 bits = in ? load8<WHOLE>(x + at, left) : make_uint4(0, 0, 0, 0);
    float v[8];
    unpack8(v, bits);
    float r = rsqrtf(warp_sum(square_sum(v), my.lanes) / C + eps);
    if (!in) continue;
    if (my.own == 0) rstd[row] = r;
    write_normed<WHOLE>(y + at, bits, w + my.own, r, left);
  }
}

// As `rmsnorm`, for C up to 256.
// grid ceil(rows / 8), or any  block 256; 4 bytes an element
extern "C" __global__ void __launch_bounds__(256) head_rmsnorm(bf16* y, float* rstd, const bf16* x, const bf16* w,
                                                               int rows, int C, float eps) {
  if (C % 8 == 0)
    norm_heads<true>(y, rstd, x, w, rows, C, eps);
  else
    norm_heads<false>(y, rstd, x, w, rows, C, eps);
}
EXPORT_KERNEL(head_rmsnorm)

// Adds to dw what this thread's columns have over its rows.
template <bool WHOLE>
__device__ __forceinline__ void backward_heads(float (&dw)[8], HeadRows my, bf16* dx, const bf16* dy, const bf16* x,
                                               const bf16* w, const float* rstd, int rows, int C) {
  int left = C - my.own;
  uint4 none = make_uint4(0, 0, 0, 0), scale = left > 0 ? load8<WHOLE>(w + my.own, left) : none;
  i64 offset = my.first % (32 / my.lanes);
  for (i64 base = my.first - offset; base < rows; base += my.step) {
    i64 row = base + offset, at = row * C + my.own;
    bool in = row < rows && left > 0;
    Columns columns = {none, none, none};
    float r = 0.f, row_dw[8];
    if (in) columns = load_columns<WHOLE>(dy, x, dx, at, left), r = rstd[row];
    float inner = warp_sum(weighted_dot(columns, scale), my.lanes) / C * r * r * r;
    if (!in) continue;
    store8<WHOLE>(dx + at, backward_columns(row_dw, columns, scale, r, inner), left);
#pragma unroll
    for (int j = 0; j < 8; j++) dw[j] += row_dw[j];
  }
}

// As `rmsnorm_backward`, for C up to 256.
// grid (parts), any  block 256; 8 bytes an element
extern "C" __global__ void __launch_bounds__(256) head_rmsnorm_backward(bf16* dx, float* dw_part, const bf16* dy,
                                                                        const bf16* x, const bf16* w, const float* rstd,
                                                                        int rows, int C) {
  STATIC_SHARED(float, sums, 256 * 8);  // by element and thread
  HeadRows my = head_rows(C);
  float dw[8] = {};
  if (C % 8 == 0)
    backward_heads<true>(dw, my, dx, dy, x, w, rstd, rows, C);
  else
    backward_heads<false>(dw, my, dx, dy, x, w, rstd, rows, C);
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
