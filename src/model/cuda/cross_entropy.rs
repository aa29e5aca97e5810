//! The end of the model: losses and their gradient, the likeliest token. A block has a row of logits.

use super::device::{Arg, Buffer, Device, Launch};

/// `losses[r] = log Σ_v exp logits[r, v] - logits[r, targets[r]]`; with `gradient`, logits become
/// `gradient · (softmax(logits) - onehot(target))` · losses, targets (rows), logits (rows, V)
pub fn cross_entropy(
    device: &mut impl Device,
    [losses, logits, targets]: [Buffer; 3],
    [rows, v]: [usize; 2],
    gradient: Option<f32>,
) {
    let arguments = [
        losses.f32(rows),
        logits.bf16(rows * v),
        targets.u32(rows),
        Arg::int(v),
        Arg::Float(gradient.unwrap_or(0.0)),
        Arg::Int(i32::from(gradient.is_some())),
    ];
    device.launch(Launch::row("cross_entropy", rows, 1024), &arguments);
}

/// The id of each row's greatest logit, the lowest of several · tokens (rows), logits (rows, V)
pub fn argmax(device: &mut impl Device, [tokens, logits]: [Buffer; 2], [rows, v]: [usize; 2]) {
    let arguments = [tokens.u32(rows), logits.bf16(rows * v), Arg::int(v)];
    device.launch(Launch::row("argmax", rows, 1024), &arguments);
}
