//! Embedding: a block copies a row, and in the backward pass adds up the rows of one id.

use super::batch::Loaded;
use super::device::{Arg, Buffer, Device, Launch};

/// `y[n] = table[ids[n]]` · y (N, C), table (V, C)
pub fn embed(device: &mut impl Device, y: Buffer, table: Buffer, batch: &Loaded, [v, c]: [usize; 2]) {
    let n = batch.tokens;
    let arguments = [y.bf16(n * c), table.bf16(v * c), batch.ids.u32(n), Arg::int(n), Arg::int(c)];
    device.launch(Launch::row("embed", n, 128), &arguments);
}

/// `dtable[ids[n]] += dy[n]` · dtable (V, C), dy (N, C)
pub fn embed_backward(device: &mut impl Device, dtable: Buffer, dy: Buffer, batch: &Loaded, [v, c]: [usize; 2]) {
    let n = batch.tokens;
    // At most every token has an id of its own.
    let launch = Launch { kernel: "embed_backward", grid: [n, c.div_ceil(256), 1], block: 256, shared: 0 };
    let arguments = [
        dtable.f32(v * c),
        dy.bf16(n * c),
        batch.order.u32(n),
        batch.starts.u32(n + 1),
        batch.distinct.u32(n),
        batch.distinct_count.u32(1),
        Arg::int(c),
    ];
    device.launch(launch, &arguments);
}
