//! Our own product of matrices: what the simulator multiplies with, and the yardstick beside cuBLASLt.

use super::device::{Arg, Device, Form, Launch, Product};

/// Rows and columns of c that a block makes.
const TILE: usize = 128;
/// Shared memory of its ring of tiles, in bytes.
const SHARED: usize = 81_920;

/// Multiplies matrices by our own kernel.
pub fn multiply(device: &mut impl Device, product: &Product) {
    let Product { form, m, n, k, exact, add, .. } = *product;
    let kernel = match (form, exact) {
        (Form::Nt, false) => "gemm_nt_bf16",
        (Form::Nt, true) => "gemm_nt_f32",
        (Form::Nn, false) => "gemm_nn_bf16",
        (Form::Nn, true) => "gemm_nn_f32",
        (Form::Tn, false) => "gemm_tn_bf16",
        (Form::Tn, true) => "gemm_tn_f32",
    };
    let launch = Launch { kernel, grid: [n.div_ceil(TILE), m.div_ceil(TILE), 1], block: 256, shared: SHARED };
    let sizes = [Arg::int(m), Arg::int(n), Arg::int(k), Arg::Int(i32::from(add))];
    device.launch(launch, &[&product.operands()[..], &sizes].concat());
}
