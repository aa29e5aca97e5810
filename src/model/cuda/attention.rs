//! Attention over packed segments: a block owns 64 queries of a head, or 64 keys of a key-value head.

use super::batch::Loaded;
use super::device::{Arg, Buffer, Device, Launch};

/// Widths of heads that there are kernels for.
pub const WIDTHS: [usize; 6] = [16, 32, 64, 96, 128, 256];

/// Rows that a block owns.
const OWNED: usize = 64;

/// Tokens (N) and heads (H, K, D).
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    /// Numbers of q, of k, and of what is one for each query.
    pub fn numbers(self) -> [usize; 3] {
        let Shape { tokens: n, heads: h, kv_heads: k, head_dim: d } = self;
        [n * h * d, n * k * d, n * h]
    }

    /// The last arguments of every kernel but delta's.
    pub fn sizes(self) -> [Arg; 4] {
        let Shape { tokens: n, heads: h, kv_heads: k, head_dim: d } = self;
        [Arg::int(n), Arg::int(h), Arg::int(k), Arg::Float(1.0 / (d as f32).sqrt())]
    }

    /// Shared memory for so many rows, each padded by 16 bytes.
    pub fn shared(self, rows: usize) -> usize {
        rows * (self.head_dim + 8) * 2
    }

    fn blocks(self, heads: usize) -> [usize; 3] {
        [self.tokens.div_ceil(OWNED), heads, 1]
    }

    fn kernel(self, name: &str) -> String {
        format!("attention{name}_{}", self.head_dim)
    }
}

/// `o = softmax(q kᵀ / sqrt(D)) v` of what is visible, and the logarithms of the sums · q, o (N, H, D), k, v (N, K, D),
/// lse (H, N)
pub fn forward(device: &mut impl Device, shape: Shape, [o, lse]: [Buffer; 2], [q, k, v]: [Buffer; 3], batch: &Loaded) {
    let ([of_q, of_k, of_lse], n) = (shape.numbers(), shape.tokens);
    let rows = if shape.head_dim > 128 { 32 } else { 64 }; // keys at a time, in two buffers
    let launch = Launch {
        kernel: &shape.kernel(""),
        grid: shape.blocks(shape.heads),
        block: 128,
        shared: shape.shared(OWNED + 4 * rows),
    };
    let operands = [o.bf16(of_q), lse.f32(of_lse), q.bf16(of_q), k.bf16(of_k), v.bf16(of_k)];
    device.launch(launch, &[&operands[..], &[batch.segment_start.u32(n)], &shape.sizes()].concat());
}

/// Gradients of q, k and v (formulas: [`crate::model::ops::Ops::attention_backward`]) · dout, o as q; lse, delta (H, N)
pub fn backward(
    device: &mut impl Device,
    shape: Shape,
    [dq, dk, dv]: [Buffer; 3],
    [dout, o, lse, delta]: [Buffer; 4],
    [q, k, v]: [Buffer; 3],
    batch: &Loaded,
) {
    let ([of_q, of_k, of_lse], n) = (shape.numbers(), shape.tokens);
    let (heads, lanes) = (shape.heads, (shape.head_dim / 8).next_power_of_two());
    let (dout, delta, lse) = (dout.bf16(of_q), delta.f32(of_lse), lse.f32(of_lse));
    let arguments = [delta, dout, o.bf16(of_q), Arg::int(n), Arg::int(heads)];
    device.launch(Launch::row(&shape.kernel("_delta"), (n * heads * lanes).div_ceil(256), 256), &arguments);

    // Keys or queries at a time.
    let rows = match shape.head_dim {
        ..=64 => 64,
        65..=128 => 32,
        _ => 16,
    };
    let mut launch = |name: &str, heads: usize, arguments: &[&[Arg]]| {
        let (grid, shared) = (shape.blocks(heads), shape.shared(2 * OWNED + 2 * rows));
        device.launch(Launch { kernel: &shape.kernel(name), grid, block: 128, shared }, &arguments.concat());
    };
    let saved = [dout, q.bf16(of_q), k.bf16(of_k), v.bf16(of_k), lse, delta, batch.segment_start.u32(n)];
    let (end, sizes) = ([batch.segment_end.u32(n)], shape.sizes());
    launch("_dkdv", shape.kv_heads, &[&[dk.bf16(of_k), dv.bf16(of_k)], &saved, &end, &sizes]);
    launch("_dq", heads, &[&[dq.bf16(of_q)], &saved, &sizes]);
}
