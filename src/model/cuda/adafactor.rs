//! Adafactor: of a matrix the means of squares (rows in one pass, columns from partial sums), the length of the update,
//! and the update; of a vector all in one block. Reads a gradient three times and a weight twice: about 22 bytes a
//! parameter, which is what a step costs where batches are small.

use super::device::{Arg, Buffer, Device, Launch};
use crate::model::ops::AdafactorStep;

/// Bytes of `AdafactorStep` as the kernels read it.
pub const STEP_BYTES: usize = 32;

/// Blocks that share the rows of a matrix, always as many: each leaves its part of the columns' sums.
const PARTS: usize = 528;

/// Numbers of the partial sums of a matrix with `i` columns: of columns, of the weight's squares, of the update's; and
/// two scalars.
pub fn partial(i: usize) -> usize {
    PARTS * i + 2 * PARTS + 2
}

/// The step as the kernels read it: seven f32 and an int.
pub fn step_bytes(step: &AdafactorStep) -> [u8; STEP_BYTES] {
    let numbers =
        [step.rate, step.beta2, step.eps1, step.eps2, step.clip_threshold, step.weight_decay, step.gradient_scale];
    let mut bytes = [0; STEP_BYTES];
    for (place, number) in bytes.as_chunks_mut().0.iter_mut().zip(numbers) {
        *place = (number as f32).to_le_bytes();
    }
    bytes[28..].copy_from_slice(&i32::from(step.scale_parameter).to_le_bytes());
    bytes
}

/// A weight in f32, its copy in bf16, and its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    pub own: Buffer,
    pub copy: Buffer,
    pub gradient: Buffer,
}

/// A step for a matrix (O, I), with the moments of its rows (O) and columns (I).
pub fn matrix(
    device: &mut impl Device,
    weight: Weight,
    [rows, columns]: [Buffer; 2],
    [step, partial]: [Buffer; 2],
    [o, i]: [usize; 2],
) {
    let parts = o.div_ceil(8).min(PARTS);
    let column_part = partial.f32(parts * i);
    let weight_part = partial.after(4 * parts * i);
    let update_part = weight_part.after(4 * parts);
    let scalars = update_part.after(4 * parts);
    let (weight_part, update_part, scalars) = (weight_part.f32(parts), update_part.f32(parts), scalars.f32(2));
    let (w, copy, g) = (weight.own.f32(o * i), weight.copy.bf16(o * i), weight.gradient.f32(o * i));
    let (vr, vc, step, parts_given) = (rows.f32(o), columns.f32(i), step.f32(STEP_BYTES / 4), Arg::int(parts));
    let shape = [Arg::int(o), Arg::int(i)];
    let mut launch = |kernel: &str, blocks: usize, block: usize, arguments: &[Arg]| {
        device.launch(Launch::row(kernel, blocks, block), &[arguments, &shape].concat());
    };
    launch("adafactor_stats", parts, 256, &[vr, column_part, weight_part, g, w, step]);
    let factors = [vc, scalars, vr, column_part, weight_part, step, parts_given];
    launch("adafactor_factors", i.div_ceil(32) + 1, 512, &factors);
    launch("adafactor_rms", parts, 256, &[update_part, g, vr, vc, scalars, step]);
    launch("adafactor_apply", parts, 256, &[w, copy, update_part, g, vr, vc, scalars, step, parts_given]);
}

/// A step for a vector (n), with a moment for each of its numbers.
pub fn vector(device: &mut impl Device, weight: Weight, moments: Buffer, step: Buffer, n: usize) {
    let arguments = [
        weight.own.f32(n),
        weight.copy.bf16(n),
        moments.f32(n),
        weight.gradient.f32(n),
        step.f32(STEP_BYTES / 4),
        Arg::int(n),
    ];
    device.launch(Launch::row("adafactor_vector", 1, 1024), &arguments);
}
