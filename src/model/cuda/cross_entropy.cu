// What stands at the end of the model: losses and their gradient, the likeliest token, how likely segments are. Logits come a
// chunk of rows at a time; a row is read twice, the second time from L2 while the chunk fits there.
#include "device.cuh"

// A sum of exp(x) as 2^(max log2 e) times `sum`, so that nothing overflows.
struct Exponentials {
  float max, sum;
};
__device__ __forceinline__ Exponentials join(Exponentials a, Exponentials b) {
  float m = max(a.max, b.max);
  if (m == NEGATIVE_INFINITY) return {m, a.sum + b.sum};  // of nothing, or of logits that are all -inf
  return {m, a.sum * exp2_fast((a.max - m) * LOG2E) + b.sum * exp2_fast((b.max - m) * LOG2E)};
}

// Of this thread's columns.
template <bool WHOLE>
__device__ __forceinline__ Exponentials exponentials(const bf16* row, int V) {
  Exponentials own = {NEGATIVE_INFINITY, 0.f};
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < V; i += blockDim.x * 8) {
    float x[8];
    unpack8(x, load8<WHOLE>(row + i, V - i));
    Exponentials eight = {NEGATIVE_INFINITY, 0.f};
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (WHOLE || i + j < V) eight.max = max(eight.max, x[j]);
#pragma unroll
    for (int j = 0; j < 8; j++)
      if ((WHOLE || i + j < V) && eight.max != NEGATIVE_INFINITY) eight.sum += exp2_fast((x[j] - eight.max) * LOG2E);
    own = join(own, eight);
  }
  return own;
}

// A row that predicts nothing: neither a loss nor a gradient.
#define NO_TARGET 0xFFFFFFFFu

template <bool WHOLE>
__device__ __forceinline__ void write_gradient(bf16* row, Exponentials all, int target, int V, float gradient) {
  float scale = gradient / all.sum;
  for (int i = threadIdx.x * 8; i < V; i += blockDim.x * 8) {
    float x[8];
    unpack8(x, load8<WHOLE>(row + i, V - i));
#pragma unroll
    for (int j = 0; j < 8; j++)
      x[j] = exp2_fast((x[j] - all.max) * LOG2E) * scale - (i + j == target ? gradient : 0.f);
    store8<WHOLE>(row + i, pack8(x), V - i);
  }
}

// loss[r] = log sum_v exp logits[r, v] - logits[r, target[r]]; with_gradient, logits become
// weight (softmax(logits) - onehot(target)), and NaN if the loss is not finite · loss, target (rows), logits (rows, V),
// weight (1)
// grid (rows)  block 1024; 2 bytes an element, with gradient 6
extern "C" __global__ void __launch_bounds__(1024) cross_entropy(float* loss, bf16* logits, const u32* target, int V,
                                                                 const float* weight, int with_gradient) {
  STATIC_SHARED(Exponentials, part, 32);
  bf16* row = logits + (i64)blockIdx.x * V;
  if (target[blockIdx.x] == NO_TARGET) {
    if (threadIdx.x == 0) loss[blockIdx.x] = 0.f;
    for (int i = threadIdx.x; with_gradient && i < V; i += blockDim.x) row[i] = 0;
    return;
  }
  int t = target[blockIdx.x], warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  bool whole = V % 8 == 0;
  Exponentials own = whole ? exponentials<true>(row, V) : exponentials<false>(row, V);
  for (int o = 16; o; o >>= 1) {
    Exponentials other = {__shfl_xor_sync(~0u, own.max, o), __shfl_xor_sync(~0u, own.sum, o)};
    own = join(own, other);
  }
  if (lane == 0) part[warp] = own;
  __syncthreads();
  Exponentials all = part[0];
  for (int w = 1; w < warps; w++) all = join(all, part[w]);
  float of_target = to_f(row[t]);
  __syncthreads();  // the target's logit is overwritten below
  float own_loss = (all.max - of_target) + log2f(all.sum) * LN2;
  if (threadIdx.x == 0) loss[blockIdx.x] = own_loss;
  if (!with_gradient) return;
  float gradient = *weight + (own_loss - own_loss);  // 0, or NaN
  if (whole)
    write_gradient<true>(row, all, t, V, gradient);
  else
    write_gradient<false>(row, all, t, V, gradient);
}
EXPORT_KERNEL(cross_entropy)

// A candidate is better if its logit is greater, or as great and its id lower. (NaN is never better.)
struct Candidate {
  float logit;
  u32 id;
};
__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
  return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}

// Of this thread's columns.
template <bool WHOLE>
__device__ __forceinline__ Candidate best_of(const bf16* row, int V) {
  Candidate best = {NEGATIVE_INFINITY, 0};
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < V; i += blockDim.x * 8) {
    float x[8];
    unpack8(x, load8<WHOLE>(row + i, V - i));
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (WHOLE || i + j < V) best = better(best, {x[j], (u32)(i + j)});
  }
  return best;
}

// token[r] = the id of the greatest logit, the lowest of several · logits (rows, V)
// grid (rows)  block 1024; 2 bytes an element
extern "C" __global__ void __launch_bounds__(1024) argmax(u32* token, const bf16* logits, int V) {
  STATIC_SHARED(Candidate, part, 32);
  const bf16* row = logits + (i64)blockIdx.x * V;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  Candidate best = V % 8 == 0 ? best_of<true>(row, V) : best_of<false>(row, V);
  for (int o = 16; o; o >>= 1)
    best = better(best, {__shfl_xor_sync(~0u, best.logit, o), __shfl_xor_sync(~0u, best.id, o)});
  if (lane == 0) part[warp] = best;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < warps; w++) best = better(best, part[w]);
  token[blockIdx.x] = best.id;
}
EXPORT_KERNEL(argmax)

// Of segment s, whose rows begin with first_row[s]: likelihood[0, s] = minus the sum of their losses, in order;
// likelihood[1, s] = the same by their number, if there are any
// grid ceil(segments / 256)  block 256
extern "C" __global__ void segment_likelihoods(float* likelihood, const float* loss, const u32* first_row,
                                               int segments) {
  int s = (int)first_item();
  if (s >= segments) return;
  double sum = 0;
  for (u32 r = first_row[s]; r < first_row[s + 1]; r++) sum += loss[r];
  likelihood[s] = (float)-sum;
  likelihood[segments + s] = (float)(-sum / max(first_row[s + 1] - first_row[s], 1u));
}
EXPORT_KERNEL(segment_likelihoods)
