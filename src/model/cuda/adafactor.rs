//! Adafactor: of a matrix the means of squares (rows in one pass, columns from partial sums), the length of the update,
//! and the update; of a vector all in one block. Reads a gradient three times and a weight twice: about 22 bytes a
//! parameter, or 16 of a weight in bf16 alone, which is what a step costs where batches are small.

use super::device::{Arg, Buffer, Device, Launch};
use super::norm::NORM_BYTES;
use crate::model::ops::{AdafactorStep, Rate};

/// Bytes of `Asked` in the kernels: what the host asks for.
const ASKED_BYTES: usize = 56;
/// Bytes of `AdafactorStep` in the kernels: what is done, which the norm of the gradients and the steps before decide.
const STEP_BYTES: usize = 48;

/// Where the numbers of a step lie, one after another; those of eight bytes begin at multiples of eight.
#[derive(Clone, Copy, Debug)]
pub struct Scalars {
    pub asked: Buffer,
    /// Norm of the gradients, and whether it is a number.
    pub norm: Buffer,
    /// Steps that were done (u32).
    pub done: Buffer,
    step: Buffer,
}

impl Scalars {
    pub const BYTES: usize = ASKED_BYTES + NORM_BYTES + 4 + STEP_BYTES.next_multiple_of(8);

    pub fn of(buffer: Buffer) -> Scalars {
        let norm = buffer.after(ASKED_BYTES);
        let done = norm.after(NORM_BYTES);
        Scalars { asked: buffer, norm, done, step: done.after(4) }
    }
}

/// Blocks that share the rows of a matrix, always as many: each leaves its part of the columns' sums.
const PARTS: usize = 528;

/// Numbers of the partial sums of a matrix with `i` columns: of columns, of the weight's squares, of the update's; and
/// two scalars.
pub fn partial(i: usize) -> usize {
    PARTS * i + 2 * PARTS + 2
}

/// What is asked for as the kernels read it: three f64, one u64, four f32 and two ints.
pub fn asked_bytes(step: &AdafactorStep) -> Vec<u8> {
    let (rate, relative) = match step.rate {
        Rate::Fixed(rate) => (rate, false),
        Rate::Relative => (0.0, true),
    };
    let exact = [rate, step.decay_rate, step.max_norm.unwrap_or(f64::INFINITY)].map(f64::to_le_bytes);
    let short = [step.eps1, step.eps2, step.clip_threshold, step.weight_decay].map(|n| (n as f32).to_le_bytes());
    let flags = [step.scale_parameter, relative].map(|flag| i32::from(flag).to_le_bytes());
    let bytes = [exact.as_flattened(), &step.seed.to_le_bytes(), short.as_flattened(), flags.as_flattened()].concat();
    assert_eq!(bytes.len(), ASKED_BYTES);
    bytes
}

/// Decides by the norm what the step is, and whether it is done at all; a step that is done is counted.
pub fn begin(device: &mut impl Device, scalars: Scalars) {
    let Scalars { asked, norm, done, step } = scalars;
    let arguments =
        [step.f32(STEP_BYTES / 4), done.u32(1), asked.f64(ASKED_BYTES / 8), norm.f64(1), norm.after(8).u32(1)];
    device.launch(Launch::row("adafactor_begin", 1, 32), &arguments);
}

/// A weight and its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    pub kept: Kept,
    pub gradient: Buffer,
}

/// Where a weight's numbers are.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// In f32, with a copy in bf16.
    Both { own: Buffer, copy: Buffer },
    /// In bf16 alone, rounded by the draws of the tensor of this number.
    Bf16 { own: Buffer, tensor: usize },
}

/// Kernels for a weight, and what they take of it.
struct Kernels {
    stats: &'static str,
    apply: &'static str,
    vector: &'static str,
    /// Its numbers, and what else the kernels that change it are given: the copy, or the number of the tensor.
    weight: [Arg; 2],
}

impl Kept {
    /// Of `n` numbers.
    fn kernels(self, n: usize) -> Kernels {
        match self {
            Kept::Both { own, copy } => Kernels {
                stats: "adafactor_stats",
                apply: "adafactor_apply",
                vector: "adafactor_vector",
                weight: [own.f32(n), copy.bf16(n)],
            },
            Kept::Bf16 { own, tensor } => Kernels {
                stats: "adafactor_stats_bf16",
                apply: "adafactor_apply_bf16",
                vector: "adafactor_vector_bf16",
                weight: [own.bf16(n), Arg::int(tensor)],
            },
        }
    }
}

/// A step for a matrix (O, I), with the moments of its rows (O) and columns (I).
pub fn matrix(
    device: &mut impl Device,
    weight: Weight,
    [rows, columns]: [Buffer; 2],
    scalars: Scalars,
    partial: Buffer,
    [o, i]: [usize; 2],
) {
    let step = scalars.step;
    let parts = o.div_ceil(8).min(PARTS);
    let column_part = partial.f32(parts * i);
    let weight_part = partial.after(4 * parts * i);
    let update_part = weight_part.after(4 * parts);
    let means = update_part.after(4 * parts);
    let (weight_part, update_part, means) = (weight_part.f32(parts), update_part.f32(parts), means.f32(2));
    let Kernels { stats, apply, weight: [w, beside], .. } = weight.kept.kernels(o * i);
    let g = weight.gradient.f32(o * i);
    let (vr, vc, step, parts_given) = (rows.f32(o), columns.f32(i), step.f32(STEP_BYTES / 4), Arg::int(parts));
    let shape = [Arg::int(o), Arg::int(i)];
    let mut launch = |kernel: &str, blocks: usize, block: usize, arguments: &[Arg]| {
        device.launch(Launch::row(kernel, blocks, block), &[arguments, &shape].concat());
    };
    launch(stats, parts, 256, &[vr, column_part, weight_part, g, w, step]);
    let factors = [vc, means, vr, column_part, weight_part, step, parts_given];
    launch("adafactor_factors", i.div_ceil(32) + 1, 512, &factors);
    launch("adafactor_rms", parts, 256, &[update_part, g, vr, vc, means, step]);
    launch(apply, parts, 256, &[w, beside, update_part, g, vr, vc, means, step, parts_given]);
}

/// A step for a vector (n), with a moment for each of its numbers.
pub fn vector(device: &mut impl Device, weight: Weight, moments: Buffer, scalars: Scalars, n: usize) {
    let Kernels { vector, weight: [w, beside], .. } = weight.kept.kernels(n);
    let (v, g, step) = (moments.f32(n), weight.gradient.f32(n), scalars.step.f32(STEP_BYTES / 4));
    device.launch(Launch::row(vector, 1, 1024), &[w, beside, v, g, step, Arg::int(n)]);
}
