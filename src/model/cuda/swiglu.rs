//! SwiGLU: a thread has eight numbers.

use super::device::{Arg, Buffer, Device, Launch};

/// `h = silu(gate) · up` · n numbers each
pub fn swiglu(device: &mut impl Device, [h, gate, up]: [Buffer; 3], n: usize) {
    device.launch(Launch::each("swiglu", n), &[h.bf16(n), gate.bf16(n), up.bf16(n), Arg::long(n)]);
}

/// In place: gate and up become their gradients, given dh · n numbers each
pub fn swiglu_backward(device: &mut impl Device, [gate, up, dh]: [Buffer; 3], n: usize) {
    device.launch(Launch::each("swiglu_backward", n), &[gate.bf16(n), up.bf16(n), dh.bf16(n), Arg::long(n)]);
}
