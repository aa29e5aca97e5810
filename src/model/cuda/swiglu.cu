// SwiGLU (Shazeer 2020): h = silu(gate) up, silu(x) = x / (1 + exp(-x)).
#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_fast(-LOG2E * x)); }

template <bool WHOLE>
__device__ __forceinline__ void eight(bf16* h, const bf16* gate, const bf16* up, int left) {
  float g[8], u[8];
  unpack8(g, load8<WHOLE>(gate, left));
  unpack8(u, load8<WHOLE>(up, left));
#pragma unroll
  for (int j = 0; j < 8; j++) u[j] *= g[j] * sigmoid(g[j]);
  store8<WHOLE>(h, pack8(u), left);
}

// h, gate, up (n)
// grid ceil(n / 8 / 256), or any  block 256; 6 bytes an element
extern "C" __global__ void __launch_bounds__(256) swiglu(bf16* h, const bf16* gate, const bf16* up, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8)
    if (n - i >= 8)
      eight<true>(h + i, gate + i, up + i, 8);
    else
      eight<false>(h + i, gate + i, up + i, (int)(n - i));
}
EXPORT_KERNEL(swiglu)

template <bool WHOLE>
__device__ __forceinline__ void eight_backward(bf16* gate, bf16* up, const bf16* dh, int left) {
  float g[8], u[8], d[8];
  unpack8(g, load8<WHOLE>(gate, left));
  unpack8(u, load8<WHOLE>(up, left));
  unpack8(d, load8<WHOLE>(dh, left));
#pragma unroll
  for (int j = 0; j < 8; j++) {
    float s = sigmoid(g[j]), silu = g[j] * s;
    g[j] = d[j] * u[j] * (s + silu * (1.f - s));
    u[j] = d[j] * silu;
  }
  store8<WHOLE>(gate, pack8(g), left);
  store8<WHOLE>(up, pack8(u), left);
}

// In place, gate and up become their own gradients: silu' = s + silu (1 - s) with s the sigmoid · gate, up, dh (n)
// grid ceil(n / 8 / 256), or any  block 256; 10 bytes an element
extern "C" __global__ void __launch_bounds__(256) swiglu_backward(bf16* gate, bf16* up, const bf16* dh, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8)
    if (n - i >= 8)
      eight_backward<true>(gate + i, up + i, dh + i, 8);
    else
      eight_backward<false>(gate + i, up + i, dh + i, (int)(n - i));
}
EXPORT_KERNEL(swiglu_backward)
