//! RMSNorm: a block has a row of the residual stream, some lanes of a warp have a head's.

use super::device::{Arg, Buffer, Device, Launch};

/// Blocks that share the rows of a backward pass: some for each multiprocessor of a large GPU, and always as many, so
/// that the sums of a weight's gradient have the same order everywhere.
const PARTS: usize = 264;
/// Heads that `head_rmsnorm` takes.
const WIDEST_HEAD: usize = 256;

/// Numbers of the partial sums of a weight that is `c` wide.
pub fn partial(c: usize) -> usize {
    PARTS * c
}

/// Rows (tokens, or their heads) and their width.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub rows: usize,
    pub width: usize,
    /// Rows are heads: many and short.
    pub heads: bool,
}

impl Rows {
    fn by_lanes(self) -> bool {
        self.heads && self.width <= WIDEST_HEAD
    }

    fn block(self) -> usize {
        (32 * self.width.div_ceil(256)).min(512)
    }
}

/// `y = x · rstd · w`, `rstd = 1 / sqrt(mean(x²) + eps)` · y, x (rows, C), w (C), rstd (rows)
pub fn rmsnorm(device: &mut impl Device, [y, rstd, x, w]: [Buffer; 4], rows: Rows, eps: f32) {
    let Rows { rows: n, width: c, .. } = rows;
    let buffers = [y.bf16(n * c), rstd.f32(n), x.bf16(n * c), w.bf16(c)];
    if rows.by_lanes() {
        let arguments = [&buffers[..], &[Arg::int(n), Arg::int(c), Arg::Float(eps)]].concat();
        device.launch(Launch::row("head_rmsnorm", n.div_ceil(8), 256), &arguments);
    } else {
        let arguments = [&buffers[..], &[Arg::int(c), Arg::Float(eps)]].concat();
        device.launch(Launch::row("rmsnorm", n, rows.block()), &arguments);
    }
}

/// `sum = x + delta`, and the norm of it · y, sum, x, delta (rows, C), w (C), rstd (rows)
pub fn residual_rmsnorm(device: &mut impl Device, [y, rstd, sum, x, delta, w]: [Buffer; 6], rows: Rows, eps: f32) {
    let Rows { rows: n, width: c, .. } = rows;
    let arguments = [
        y.bf16(n * c),
        rstd.f32(n),
        sum.bf16(n * c),
        x.bf16(n * c),
        delta.bf16(n * c),
        w.bf16(c),
        Arg::int(c),
        Arg::Float(eps),
    ];
    device.launch(Launch::row("residual_rmsnorm", n, rows.block()), &arguments);
}

/// `dx += rstd · g - x · rstd³ · mean(g · x)`, `dw += Σ dy · x · rstd`, with `g = dy · w` ·
/// dx, dy, x (rows, C), dw, w (C), rstd (rows)
pub fn rmsnorm_backward(device: &mut impl Device, [dx, dw, dy, x, w, rstd]: [Buffer; 6], partial: Buffer, rows: Rows) {
    let Rows { rows: n, width: c, .. } = rows;
    let parts = n.min(PARTS);
    let launch = if rows.by_lanes() {
        Launch::row("head_rmsnorm_backward", parts, 256)
    } else {
        Launch::row("rmsnorm_backward", parts, rows.block())
    };
    let arguments = [
        dx.bf16(n * c),
        partial.f32(parts * c),
        dy.bf16(n * c),
        x.bf16(n * c),
        w.bf16(c),
        rstd.f32(n),
        Arg::int(n),
        Arg::int(c),
    ];
    device.launch(launch, &arguments);
    sum_parts(device, dw, partial, [parts, c]);
}

/// `out[c] += Σ part[p, c]` · out (C), part (parts, C)
pub fn sum_parts(device: &mut impl Device, out: Buffer, part: Buffer, [parts, c]: [usize; 2]) {
    let arguments = [out.f32(c), part.f32(parts * c), Arg::int(parts), Arg::int(c)];
    device.launch(Launch::row("sum_parts", c.div_ceil(32), 512), &arguments);
}
