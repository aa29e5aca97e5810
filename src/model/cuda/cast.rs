//! From f32 to bf16.

use super::device::{Arg, Buffer, Device, Launch};

/// `out = in`, rounded to nearest, ties to even · n numbers each
pub fn nearest(device: &mut impl Device, out: Buffer, from: Buffer, n: usize) {
    device.launch(Launch::each("cast_nearest", n), &[out.bf16(n), from.f32(n), Arg::long(n)]);
}
