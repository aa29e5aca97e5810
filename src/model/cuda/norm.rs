//! The length of all gradients together, summed in f64 by pieces of fixed size.

use super::device::{Arg, Buffer, Device, Launch};
use crate::model::ops::Norm;

/// Numbers that a block sums up, and most blocks for a tensor.
const PIECE: usize = 1 << 14;
const MOST: usize = 1024;

/// Blocks that share a gradient of n numbers; of each, one sum is kept.
pub fn pieces(n: usize) -> usize {
    n.div_ceil(PIECE).clamp(1, MOST)
}

/// Bytes of a norm (f64) and of whether it is a number (u32).
pub const NORM_BYTES: usize = 12;

/// Sums up all gradients, given with their lengths. `squares` takes the sums of their pieces, `result` the norm.
pub fn norm(device: &mut impl Device, gradients: &[(Buffer, usize)], squares: Buffer, result: Buffer) {
    let mut parts = 0;
    for &(gradient, n) in gradients {
        let arguments = [squares.after(8 * parts).f64(pieces(n)), gradient.f32(n), Arg::long(n)];
        device.launch(Launch::row("sum_squares", pieces(n), 256), &arguments);
        parts += pieces(n);
    }
    let arguments = [result.f64(1), result.after(8).u32(1), squares.f64(parts), Arg::int(parts)];
    device.launch(Launch::row("finish_norm", 1, 256), &arguments);
}

/// A norm as it comes back from the device.
pub fn of_bytes(bytes: &[u8]) -> Norm {
    let (value, finite) = bytes.split_first_chunk::<8>().expect("twelve bytes");
    Norm { value: f64::from_le_bytes(*value), finite: finite != [0; 4] }
}
