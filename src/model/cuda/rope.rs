//! RoPE, in place: a thread turns eight pairs of a head, or one.

use super::batch::Loaded;
use super::device::{Arg, Buffer, Device, Launch};
use crate::model::ops::Turn;

/// Tables of cosines and sines (positions, D/2).
#[derive(Clone, Copy, Debug)]
pub struct Rotations {
    pub cos: Buffer,
    pub sin: Buffer,
    pub positions: usize,
}

/// Turns each pair of each head by its token's position · x (N, heads, D)
pub fn rope(
    device: &mut impl Device,
    x: Buffer,
    batch: &Loaded,
    rotations: Rotations,
    [heads, d]: [usize; 2],
    turn: Turn,
) {
    let (n, table) = (batch.tokens, rotations.positions * d / 2);
    let each = if (d / 2).is_multiple_of(8) { 8 } else { 1 };
    let items = n * heads * (d / 2) / each;
    let arguments = [
        x.bf16(n * heads * d),
        batch.positions.u32(n),
        rotations.cos.f32(table),
        rotations.sin.f32(table),
        Arg::int(n),
        Arg::int(heads),
        Arg::int(d),
        Arg::Int(i32::from(turn == Turn::Back)),
    ];
    device.launch(Launch::row("rope", items.div_ceil(256), 256), &arguments);
}
