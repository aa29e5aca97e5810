//! The end of the model: losses and their gradient, the likeliest token, how likely segments are. A block has a row of
//! logits.

use super::device::{Arg, Buffer, Device, Launch};

/// `losses[r] = log Σ_v exp logits[r, v] - logits[r, targets[r]]`; with `gradient`, logits become
/// `weight · (softmax(logits) - onehot(target))` · losses, targets (rows), logits (rows, V), weight (1)
pub fn cross_entropy(
    device: &mut impl Device,
    [losses, logits, targets, weight]: [Buffer; 4],
    [rows, v]: [usize; 2],
    gradient: bool,
) {
    let arguments = [
        losses.f32(rows),
        logits.bf16(rows * v),
        targets.u32(rows),
        Arg::int(v),
        weight.f32(1),
        Arg::Int(i32::from(gradient)),
    ];
    device.launch(Launch::row("cross_entropy", rows, 1024), &arguments);
}

/// Log-likelihoods of segments: minus the sums of their rows' losses, and the means · likelihoods (2, segments), losses
/// (rows)
pub fn likelihoods(
    device: &mut impl Device,
    [likelihoods, losses, first_rows]: [Buffer; 3],
    [rows, segments]: [usize; 2],
) {
    let arguments = [likelihoods.f32(2 * segments), losses.f32(rows), first_rows.u32(segments + 1), Arg::int(segments)];
    device.launch(Launch::row("segment_likelihoods", segments.div_ceil(256), 256), &arguments);
}

/// The id of each row's greatest logit, the lowest of several · tokens (rows), logits (rows, V)
pub fn argmax(device: &mut impl Device, [tokens, logits]: [Buffer; 2], [rows, v]: [usize; 2]) {
    let arguments = [tokens.u32(rows), logits.bf16(rows * v), Arg::int(v)];
    device.launch(Launch::row("argmax", rows, 1024), &arguments);
}
