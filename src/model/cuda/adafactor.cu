// Adafactor (Shazeer & Stern 2018) as transformers does it, without first moment; formulas in ops.rs. A matrix takes four
// launches, for its second moments are means over all rows and over all columns, and its update is clipped by its root
// mean square. Every sum has a fixed order: between blocks by partial results, of which `parts` = gridDim.x are left.
//
// A weight is kept in f32, with a copy in bf16 that is computed with, or in bf16 alone: kernels whose names end in bf16
// have the same formulas, and round by draws what they leave.
//
// Bytes a parameter: stats reads g (and w, to scale by its size), rms reads g, apply reads g and w and writes w and its
// bf16 copy: 22, or 26; of a weight in bf16 alone 16, or 18. A block takes ROWS rows at a time and a thread four
// neighbouring columns of them, so that what belongs to a column is read once for all rows, and the block's sum is needed
// once for all of them. Four rows are 64 bytes on their way for each of an SM's thousand threads, twice what its share of
// the memory's latency asks for.
#include "rounding.cuh"

#define ROWS 4

// What the host asks for. In device memory, as is all that varies from step to step, so that a captured graph stays valid.
struct Asked {
  double rate, decay_rate, max_norm;
  u64 seed;
  float eps1, eps2, clip_threshold, weight_decay;
  int scale_parameter, relative;
};
// What is done. A step that is not `done` changes neither weights nor moments. Its number, counted from 1, and the run's
// seed name its draws.
struct AdafactorStep {
  float rate, beta2, eps1, eps2, clip_threshold, weight_decay, gradient_scale;
  int scale_parameter, done;
  u32 number;
  u64 seed;
};

// The step by the gradients' norm, if it is finite, and by how many were done before.
// grid 1  block any
extern "C" __global__ void adafactor_begin(AdafactorStep* step, u32* steps_done, const Asked* asked, const double* norm,
                                           const u32* finite) {
  if (threadIdx.x) return;
  u32 t = *steps_done += *finite;
  double length = *norm > 1e-12 ? *norm : 1e-12, root = 1 / sqrt((double)t);
  AdafactorStep s;
  s.rate = (float)(asked->relative ? (root < 1e-2 ? root : 1e-2) : asked->rate);
  s.beta2 = (float)(1 - pow((double)t, asked->decay_rate));
  s.eps1 = asked->eps1, s.eps2 = asked->eps2;
  s.clip_threshold = asked->clip_threshold, s.weight_decay = asked->weight_decay;
  s.gradient_scale = (float)(asked->max_norm < length ? asked->max_norm / length : 1);
  s.scale_parameter = asked->scale_parameter, s.done = *finite;
  s.number = t, s.seed = asked->seed;
  *step = s;
}
EXPORT_KERNEL(adafactor_begin)

__device__ __forceinline__ float square(float x) { return x * x; }

// Four columns of ROWS rows: what a thread asks for at once, before it uses any. Rows past the end are zeros.
template <bool WHOLE, class T>
__device__ __forceinline__ void load_rows(float4 (&v)[ROWS], const T* x, i64 first, int j, int R, int C) {
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    v[r] = first + r < R ? load4<WHOLE>(x + (first + r) * C + j, C - j) : make_float4(0.f, 0.f, 0.f, 0.f);
}
__device__ __forceinline__ float4 times(float4 v, float4 by, float factor) {
  return make_float4(v.x * factor * by.x, v.y * factor * by.y, v.z * factor * by.z, v.w * factor * by.w);
}
__device__ __forceinline__ float square_sum(float4 v) { return v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w); }

// Sums over the block of ROWS numbers a thread, in every thread.
__device__ __forceinline__ void block_sums(float (&v)[ROWS]) {
  STATIC_SHARED(float, part, ROWS * 32);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int r = 0; r < ROWS; r++) v[r] = warp_sum(v[r]);
  __syncthreads();  // part may still be read from an earlier call
  if (lane == 0)
#pragma unroll
    for (int r = 0; r < ROWS; r++) part[r * 32 + warp] = v[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < ROWS; r++) v[r] = warp_sum(lane < warps ? part[r * 32 + lane] : 0.f);
}

template <bool WHOLE, class W>
__device__ __forceinline__ void moments(float* vr, float* columns, float* w2_part, const float* g, const W* w,
                                        AdafactorStep step, int R, int C) {
  for (int j = threadIdx.x * 4; j < C; j += blockDim.x * 4)
    store4<WHOLE>(columns + j, make_float4(0.f, 0.f, 0.f, 0.f), C - j);
  double w2 = 0;  // of many rows: their sums are added in f64
  for (i64 first = (i64)blockIdx.x * ROWS; first < R; first += (i64)gridDim.x * ROWS) {
    float row_sum[ROWS] = {}, squares = 0.f;
    for (int j = threadIdx.x * 4; j < C; j += blockDim.x * 4) {
      float4 v[ROWS], sum = load4<WHOLE>(columns + j, C - j);
      load_rows<WHOLE>(v, g, first, j, R, C);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        // eps1 belongs to each number; what lies outside of the matrix has no part in a sum that is used.
        float4 q = make_float4(square(v[r].x * step.gradient_scale), square(v[r].y * step.gradient_scale),
                               square(v[r].z * step.gradient_scale), square(v[r].w * step.gradient_scale));
        float eps = first + r < R ? step.eps1 : 0.f;
        sum.x += q.x + eps, sum.y += q.y + eps, sum.z += q.z + eps, sum.w += q.w + eps;
        row_sum[r] += (q.x + q.y) + (q.z + q.w);
      }
      store4<WHOLE>(columns + j, sum, C - j);
      if (!step.scale_parameter) continue;
      load_rows<WHOLE>(v, w, first, j, R, C);
#pragma unroll
      for (int r = 0; r < ROWS; r++) squares += square_sum(v[r]);
    }
    w2 += squares;
    block_sums(row_sum);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if ((int)threadIdx.x == r && first + r < R)
        vr[first + r] = step.beta2 * vr[first + r] + (1.f - step.beta2) * (row_sum[r] / C + step.eps1);
  }
  w2 = block_sum(w2);
  if (threadIdx.x == 0) w2_part[blockIdx.x] = (float)w2;
}

template <class W>
__device__ __forceinline__ void stats(float* vr, float* col_part, float* w2_part, const float* g, const W* w,
                                      const AdafactorStep* step, int R, int C) {
  if (!step->done) return;
  float* columns = col_part + (i64)blockIdx.x * C;
  if (C % 4 == 0)
    moments<true>(vr, columns, w2_part, g, w, *step, R, C);
  else
    moments<false>(vr, columns, w2_part, g, w, *step, R, C);
}

// vr = beta2 vr + (1 - beta2) mean_columns q, q = (scale g)^2 + eps1; col_part[b] = the sum of q over block b's rows,
// w2_part[b] = the sum of w^2 over them, if the rate is scaled by it, else 0 · g, w (R, C), vr (R), col_part (P, C),
// w2_part (P)
// grid (P), any number, at most ceil(R / 4)  block 256
extern "C" __global__ void __launch_bounds__(256) adafactor_stats(float* vr, float* col_part, float* w2_part,
                                                                  const float* g, const float* w,
                                                                  const AdafactorStep* step, int R, int C) {
  stats(vr, col_part, w2_part, g, w, step, R, C);
}
EXPORT_KERNEL(adafactor_stats)
extern "C" __global__ void __launch_bounds__(256) adafactor_stats_bf16(float* vr, float* col_part, float* w2_part,
                                                                       const float* g, const bf16* w,
                                                                       const AdafactorStep* step, int R, int C) {
  stats(vr, col_part, w2_part, g, w, step, R, C);
}
EXPORT_KERNEL(adafactor_stats_bf16)

// vc = beta2 vc + (1 - beta2) mean_rows q; scalars = mean of vr, root mean square of w · vc (C), scalars (2)
// grid ceil(C / 32) + 1  block 512
extern "C" __global__ void __launch_bounds__(512) adafactor_factors(float* vc, float* scalars, const float* vr,
                                                                    const float* col_part, const float* w2_part,
                                                                    const AdafactorStep* step, int parts, int R, int C) {
  if (!step->done) return;
  if (blockIdx.x == gridDim.x - 1) {
    double sum = 0, w2 = 0;
    for (int i = threadIdx.x; i < R; i += blockDim.x) sum += vr[i];
    for (int i = threadIdx.x; i < parts; i += blockDim.x) w2 += w2_part[i];
    sum = block_sum(sum);
    w2 = block_sum(w2);
    if (threadIdx.x) return;
    scalars[0] = (float)(sum / R);
    scalars[1] = (float)sqrt(w2 / ((double)R * C));
    return;
  }
  int column = blockIdx.x * 32 + threadIdx.x % 32;
  float sum;
  if (column_sum(sum, col_part, parts, C, column))
    vc[column] = step->beta2 * vc[column] + (1.f - step->beta2) * (sum / R);
}
EXPORT_KERNEL(adafactor_factors)

// What rows' and columns' gradients are multiplied by: scale (vr / mean vr)^-1/2 and vc^-1/2.
__device__ __forceinline__ void row_factors(float (&factor)[ROWS], const float* vr, const float* scalars, float scale,
                                            i64 first, int R) {
#pragma unroll
  for (int r = 0; r < ROWS; r++) factor[r] = first + r < R ? scale * rsqrtf(vr[first + r] / scalars[0]) : 0.f;
}
template <bool WHOLE>
__device__ __forceinline__ float4 column_factors(const float* vc, int j, int C) {
  float4 v = load4<WHOLE>(vc + j, C - j);
  // Columns past the end are zeros, and stay zeros.
  return make_float4(rsqrtf(v.x), WHOLE || j + 1 < C ? rsqrtf(v.y) : 0.f, WHOLE || j + 2 < C ? rsqrtf(v.z) : 0.f,
                     WHOLE || j + 3 < C ? rsqrtf(v.w) : 0.f);
}

template <bool WHOLE>
__device__ __forceinline__ double update_squares(const float* g, const float* vr, const float* vc, const float* scalars,
                                                 float scale, int R, int C) {
  double u2 = 0;
  for (i64 first = (i64)blockIdx.x * ROWS; first < R; first += (i64)gridDim.x * ROWS) {
    float factor[ROWS], squares = 0.f;
    row_factors(factor, vr, scalars, scale, first, R);
    for (int j = threadIdx.x * 4; j < C; j += blockDim.x * 4) {
      float4 v[ROWS];
      load_rows<WHOLE>(v, g, first, j, R, C);
      float4 by = column_factors<WHOLE>(vc, j, C);
#pragma unroll
      for (int r = 0; r < ROWS; r++) squares += square_sum(times(v[r], by, factor[r]));
    }
    u2 += squares;
  }
  return block_sum(u2);
}

// u2_part[b] = the sum of u^2 over block b's rows, u = scale g (vr / mean vr)^-1/2 vc^-1/2 · u2_part (P)
// grid (P), as for stats  block 256
extern "C" __global__ void __launch_bounds__(256) adafactor_rms(float* u2_part, const float* g, const float* vr,
                                                                const float* vc, const float* scalars,
                                                                const AdafactorStep* step, int R, int C) {
  if (!step->done) return;
  float scale = step->gradient_scale;
  double u2 = C % 4 == 0 ? update_squares<true>(g, vr, vc, scalars, scale, R, C)
                         : update_squares<false>(g, vr, vc, scalars, scale, R, C);
  if (threadIdx.x == 0) u2_part[blockIdx.x] = (float)u2;
}
EXPORT_KERNEL(adafactor_rms)

// How far a step goes: u and w are multiplied by these and taken off. `rms_w` and `u2` are the root mean square of w and
// the mean square of u.
struct Rates {
  float update, decay;
};
__device__ __forceinline__ Rates rates(const AdafactorStep* step, float rms_w, double u2) {
  float rate = step->rate;
  if (step->scale_parameter) rate *= max(step->eps2, rms_w);
  return {rate / max(1.f, (float)sqrt(u2) / step->clip_threshold), step->weight_decay * rate};
}
__device__ __forceinline__ float stepped(float w, float u, Rates by) { return w - by.decay * w - by.update * u; }

// A weight in f32, and its copy, which is rounded to nearest.
struct InBoth {
  float* w;
  bf16* copy;
};
__device__ __forceinline__ float weight(InBoth kept, int i) { return kept.w[i]; }
__device__ __forceinline__ void keep(InBoth kept, int i, float v) {
  kept.w[i] = v;
  kept.copy[i] = to_bf(v);
}
template <bool WHOLE>
__device__ __forceinline__ void keep4(InBoth kept, i64 at, float4 v, int left) {
  store4<WHOLE>(kept.w + at, v, left);
  store4<WHOLE>(kept.copy + at, make_uint2(pack(v.x, v.y), pack(v.z, v.w)), left);
}

// A weight in bf16 alone, with the draws that it is rounded by.
struct InBf16 {
  bf16* w;
  Draws draws;
};
__device__ __forceinline__ InBf16 in_bf16(bf16* w, int tensor, const AdafactorStep* step) {
  return {w, {step->seed, (u32)tensor, step->number}};
}
__device__ __forceinline__ float weight(InBf16 kept, int i) { return to_f(kept.w[i]); }
__device__ __forceinline__ void keep(InBf16 kept, int i, float v) { kept.w[i] = (bf16)rounded(v, kept.draws, i); }
template <bool WHOLE>
__device__ __forceinline__ void keep4(InBf16 kept, i64 at, float4 v, int left) {
  store4<WHOLE>(kept.w + at, rounded4<WHOLE>(v, kept.draws, at), left);
}

template <bool WHOLE, class Kept>
__device__ __forceinline__ void move(Kept kept, const float* g, const float* vr, const float* vc, const float* scalars,
                                     float scale, Rates by, int R, int C) {
  for (i64 first = (i64)blockIdx.x * ROWS; first < R; first += (i64)gridDim.x * ROWS) {
    float factor[ROWS];
    row_factors(factor, vr, scalars, scale, first, R);
    for (int j = threadIdx.x * 4; j < C; j += blockDim.x * 4) {
      float4 v[ROWS], u[ROWS];
      load_rows<WHOLE>(v, kept.w, first, j, R, C);
      load_rows<WHOLE>(u, g, first, j, R, C);
      float4 column = column_factors<WHOLE>(vc, j, C);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (first + r >= R) break;
        i64 at = (first + r) * C + j;
        float4 d = times(u[r], column, factor[r]);
        float4 next = make_float4(stepped(v[r].x, d.x, by), stepped(v[r].y, d.y, by), stepped(v[r].z, d.z, by),
                                  stepped(v[r].w, d.w, by));
        keep4<WHOLE>(kept, at, next, C - j);
      }
    }
  }
}

template <class Kept>
__device__ __forceinline__ void apply(Kept kept, const float* u2_part, const float* g, const float* vr, const float* vc,
                                      const float* scalars, const AdafactorStep* step, int parts, int R, int C) {
  if (!step->done) return;
  double u2 = 0;
  for (int i = threadIdx.x; i < parts; i += blockDim.x) u2 += u2_part[i];
  Rates by = rates(step, scalars[1], block_sum(u2) / ((double)R * C));
  if (C % 4 == 0)
    move<true>(kept, g, vr, vc, scalars, step->gradient_scale, by, R, C);
  else
    move<false>(kept, g, vr, vc, scalars, step->gradient_scale, by, R, C);
}

// w -= decay w, w -= rate u / max(1, rms(u) / clip); `copy` = w, rounded to nearest · w, copy, g (R, C)
// grid any, at most ceil(R / 4)  block 256
extern "C" __global__ void __launch_bounds__(256) adafactor_apply(float* w, bf16* copy, const float* u2_part,
                                                                  const float* g, const float* vr, const float* vc,
                                                                  const float* scalars, const AdafactorStep* step,
                                                                  int parts, int R, int C) {
  apply(InBoth{w, copy}, u2_part, g, vr, vc, scalars, step, parts, R, C);
}
EXPORT_KERNEL(adafactor_apply)
// `tensor` names the draws. Philox is some 15 instructions a parameter, beside 8 bytes of memory.
extern "C" __global__ void __launch_bounds__(256) adafactor_apply_bf16(bf16* w, int tensor, const float* u2_part,
                                                                       const float* g, const float* vr,
                                                                       const float* vc, const float* scalars,
                                                                       const AdafactorStep* step, int parts, int R,
                                                                       int C) {
  apply(in_bf16(w, tensor, step), u2_part, g, vr, vc, scalars, step, parts, R, C);
}
EXPORT_KERNEL(adafactor_apply_bf16)

template <class Kept>
__device__ __forceinline__ void vector(Kept kept, float* v, const float* g, const AdafactorStep* step, int n) {
  if (!step->done) return;
  float beta2 = step->beta2, scale = step->gradient_scale;
  double w2 = 0, u2 = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float x = g[i] * scale, moment = beta2 * v[i] + (1.f - beta2) * (x * x + step->eps1);
    v[i] = moment;
    u2 += square(x * rsqrtf(moment));
    w2 += square(weight(kept, i));
  }
  w2 = block_sum(w2);
  u2 = block_sum(u2);
  Rates by = rates(step, (float)sqrt(w2 / n), u2 / n);
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    keep(kept, i, stepped(weight(kept, i), g[i] * scale * rsqrtf(v[i]), by));
}

// A vector's step, with a second moment for each number: v = beta2 v + (1 - beta2) q, u = scale g v^-1/2. Small enough
// for one block, and there are many: one launch each · all (n)
// grid 1  block 1024
extern "C" __global__ void __launch_bounds__(1024) adafactor_vector(float* w, bf16* copy, float* v, const float* g,
                                                                    const AdafactorStep* step, int n) {
  vector(InBoth{w, copy}, v, g, step, n);
}
EXPORT_KERNEL(adafactor_vector)
extern "C" __global__ void __launch_bounds__(1024) adafactor_vector_bf16(bf16* w, int tensor, float* v, const float* g,
                                                                         const AdafactorStep* step, int n) {
  vector(in_bf16(w, tensor, step), v, g, step, n);
}
EXPORT_KERNEL(adafactor_vector_bf16)
