// Rotary position embedding (Su et al. 2021), in the halves form of Hugging Face's checkpoints.
#include "device.cuh"

// In place, for each head and i < D/2, at the token's position p:
//   x[i], x[i + D/2] = x[i] cos[p, i] - x[i + D/2] sin[p, i], x[i + D/2] cos[p, i] + x[i] sin[p, i]
// and with the sine's sign turned if `back` · x (N, heads, D), cos, sin (positions, D/2)
// A thread turns eight pairs where D/2 is a multiple of eight, else one. 4 bytes an element; the tables stay in L2.
// grid ceil(N heads D/2 / 8 / 256), or any  block 256
extern "C" __global__ void __launch_bounds__(256) rope(bf16* x, const u32* positions, const float* cos, const float* sin,
                                                       int N, int heads, int D, int back) {
  int half = D / 2;
  float sign = back ? -1.f : 1.f;
  bool whole = half % 8 == 0;
  int each = whole ? 8 : 1, per_head = half / each;
  for (i64 item = first_item(); item < (i64)N * heads * per_head; item += item_step()) {
    i64 head = item / per_head;
    int i = (int)(item % per_head) * each;
    i64 angle = (i64)positions[head / heads] * half + i;
    bf16 *low = x + head * D + i, *high = low + half;
    if (whole) {
      float a[8], b[8];
      unpack8(a, *(const uint4*)low);
      unpack8(b, *(const uint4*)high);
#pragma unroll
      for (int q = 0; q < 8; q += 4) {
        float4 c4 = *(const float4*)(cos + angle + q), s4 = *(const float4*)(sin + angle + q);
        float c[4] = {c4.x, c4.y, c4.z, c4.w}, s[4] = {s4.x, s4.y, s4.z, s4.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float u = a[q + j], v = b[q + j];
          a[q + j] = u * c[j] - v * (sign * s[j]);
          b[q + j] = v * c[j] + u * (sign * s[j]);
        }
      }
      *(uint4*)low = pack8(a);
      *(uint4*)high = pack8(b);
    } else {
      float u = to_f(*low), v = to_f(*high), c = cos[angle], s = sign * sin[angle];
      *low = to_bf(u * c - v * s);
      *high = to_bf(v * c + u * s);
    }
  }
}
EXPORT_KERNEL(rope)
