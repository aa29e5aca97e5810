// From f32 to bf16.
#include "device.cuh"

// grid ceil(n / 8 / 256), or any  block 256; 6 bytes an element
extern "C" __global__ void __launch_bounds__(256) cast_nearest(bf16* out, const float* in, i64 n) {
  for (i64 i = first_item() * 8; i < n; i += item_step() * 8) {
    int left = (int)min(n - i, (i64)8);
    if (left == 8) {
      float4 a = *(const float4*)(in + i), b = *(const float4*)(in + i + 4);
      *(uint4*)(out + i) = make_uint4(pack(a.x, a.y), pack(a.z, a.w), pack(b.x, b.y), pack(b.z, b.w));
    } else {
      for (int j = 0; j < left; j++) out[i + j] = to_bf(in[i + j]);
    }
  }
}
EXPORT_KERNEL(cast_nearest)
