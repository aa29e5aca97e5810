//! Rows of the positions that predict something, out of all and back: a block copies a row.

use super::device::{Arg, Buffer, Device, Launch};

/// `y[r] = x[rows[r]]` · y (count, C), x (N, C)
pub fn gather_rows(device: &mut impl Device, [y, x, rows]: [Buffer; 3], [count, n, c]: [usize; 3]) {
    let arguments = [y.bf16(count * c), x.bf16(n * c), rows.u32(count), Arg::int(count), Arg::int(c)];
    device.launch(Launch::row("gather_rows", count, 128), &arguments);
}

/// `dx[rows[r]] = dy[r]` · dx (N, C), dy (count, C)
pub fn scatter_rows(device: &mut impl Device, [dx, dy, rows]: [Buffer; 3], [count, n, c]: [usize; 3]) {
    let arguments = [dx.bf16(n * c), dy.bf16(count * c), rows.u32(count), Arg::int(count), Arg::int(c)];
    device.launch(Launch::row("scatter_rows", count, 128), &arguments);
}
