// SwiGLU (Shazeer 2020): h = silu(gate) up, silu(x) = x / (1 + exp(-x)).
#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_fast(-LOG2E * x)); }

// grid ceil(n / 8 / 256), or any  block 256; 6 bytes an element
extern "C" __global__ void __launch_bounds__(256) swiglu(bf16* h, const bf16* gate, const bf16* up, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    bool whole = left == 8;
    float g[8], u[8];
    unpack8(g, load8(gate + i, left, whole));
    unpack8(u, load8(up + i, left, whole));
#pragma unroll
    for (int j = 0; j < 8; j++) u[j] *= g[j] * sigmoid(g[j]);
    store8(h + i, pack8(u), left, whole);
  }
}
EXPORT_KERNEL(swiglu)

// In place, gate and up become their own gradients: silu' = s + silu (1 - s) with s the sigmoid.
// grid ceil(n / 8 / 256), or any  block 256; 10 bytes an element
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(bf16* gate, bf16* up, const bf16* dh, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    bool whole = left == 8;
    float g[8], u[8], d[8];
    unpack8(g, load8(gate + i, left, whole));
    unpack8(u, load8(up + i, left, whole));
    unpack8(d, load8(dh + i, left, whole));
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float s = sigmoid(g[j]), silu = g[j] * s;
      g[j] = d[j] * u[j] * (s + silu * (1.f - s));
      u[j] = d[j] * silu;
    }
    store8(gate + i, pack8(g), left, whole);
    store8(up + i, pack8(u), left, whole);
  }
}
EXPORT_KERNEL(swiglu_backward)
