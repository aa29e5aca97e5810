//! Biases of linear layers. cuBLASLt could add them at the end of a product; a pass of their own costs less than a
//! hundredth of a step, and is the same on every device.

use super::device::{Arg, Buffer, Device, Launch};
use super::rmsnorm::sum_parts;

/// Ranges of rows that are summed by themselves.
const PARTS: usize = 64;

/// Numbers of the partial sums of a bias of `o`.
pub fn partial(o: usize) -> usize {
    PARTS * o
}

/// `y[r] += bias` · y (rows, O), bias (O)
pub fn add(device: &mut impl Device, y: Buffer, bias: Buffer, [rows, o]: [usize; 2]) {
    let arguments = [y.bf16(rows * o), bias.bf16(o), Arg::int(rows), Arg::int(o)];
    device.launch(Launch::row("add_bias", (rows * o.div_ceil(8)).div_ceil(256), 256), &arguments);
}

/// `dbias += Σ_rows dy` · dbias (O), dy (rows, O)
pub fn backward(device: &mut impl Device, [dbias, dy, partial]: [Buffer; 3], [rows, o]: [usize; 2]) {
    let launch = Launch { kernel: "bias_backward", grid: [o.div_ceil(256), PARTS, 1], block: 256, shared: 0 };
    device.launch(launch, &[partial.f32(PARTS * o), dy.bf16(rows * o), Arg::int(rows), Arg::int(o)]);
    sum_parts(device, dbias, partial, [PARTS, o]);
}
