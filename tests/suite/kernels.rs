//! Every CUDA kernel against its formula in f64, on the simulator.
//!
//! Operands are drawn in the kernel's own numbers, so that what differs from the reference is the kernel's rounding.
//! Outputs that a kernel overwrites are NaN before it, and around each buffer lies a margin that has to be whole
//! afterwards. Each launch runs under several schedules, and all have to leave the same bytes. Each check takes the
//! simulator that it runs on and returns what is wrong, so that `planted` can hand it one with a mistake in it.

#![allow(unsafe_code)] // kernels are launched with pointers

mod adafactor;
mod attention;
mod cached;
mod elementwise;
mod gemm;
mod loss;
mod norms;
mod planted;
mod rows;

use std::ffi::c_void;
use std::fmt::Debug;

use half::bf16;

use super::simulator::{SEEDS, Simulator};

/// Nothing, or what is wrong.
type Outcome<T = ()> = Result<T, String>;

/// Runs a check on the kernels as they are.
fn with_simulator(check: impl FnOnce(&Simulator) -> Outcome) {
    if let Some(Err(wrong)) = Simulator::get().map(check) {
        panic!("{wrong}");
    }
}

/// What kernels compute with.
trait Number: Copy + PartialEq + Debug {
    /// All bits set: NaN where there is one.
    const UNSET: Self;
    fn is_unset(self) -> bool;
    fn float(self) -> f64;
}

macro_rules! floats {
    ($($type:ty, $bits:ty, $float:expr;)*) => { $(impl Number for $type {
        const UNSET: $type = <$type>::from_bits(<$bits>::MAX);
        fn is_unset(self) -> bool {
            self.to_bits() == <$bits>::MAX
        }
        fn float(self) -> f64 {
            $float(self)
        }
    })* };
}
floats! { bf16, u16, bf16::to_f64; f32, u32, f64::from; f64, u64, |x| x; }

impl Number for u32 {
    const UNSET: u32 = u32::MAX;
    fn is_unset(self) -> bool {
        self == u32::MAX
    }
    fn float(self) -> f64 {
        self.into()
    }
}

/// Memory of a device, with a margin on both sides that is looked at in the end.
struct Buffer<T: Number> {
    values: Vec<T>,
}

/// A multiple of 16 bytes of any number, so that what lies between margins is as well aligned as the whole.
const MARGIN: usize = 64;

impl<T: Number> Buffer<T> {
    fn new(values: &[T]) -> Buffer<T> {
        let margin = [T::UNSET; MARGIN];
        let buffer = Buffer { values: [&margin, values, &margin].concat() };
        assert_eq!(buffer.values.as_ptr().addr() % 16, 0, "kernels count on 16 bytes, as memory of a device has them");
        buffer
    }

    fn unset(length: usize) -> Buffer<T> {
        Buffer::new(&vec![T::UNSET; length])
    }

    fn pointer(&self) -> u64 {
        self.values[MARGIN..].as_ptr().addr() as u64
    }

    /// What is in it, if the margins are whole.
    fn get(&self) -> Outcome<Vec<T>> {
        let (low, rest) = self.values.split_at(MARGIN);
        let (values, high) = rest.split_at(rest.len() - MARGIN);
        if low.iter().chain(high).all(|v| v.is_unset()) {
            return Ok(values.to_vec());
        }
        Err(format!("a kernel wrote past the ends of a buffer of {}", values.len()))
    }
}

/// An argument of a kernel: a pointer or a number, in the low bytes.
#[derive(Clone, Copy)]
struct Argument(u64);

impl<T: Number> From<&Buffer<T>> for Argument {
    fn from(buffer: &Buffer<T>) -> Argument {
        Argument(buffer.pointer())
    }
}

impl<T: Number> From<&mut Buffer<T>> for Argument {
    fn from(buffer: &mut Buffer<T>) -> Argument {
        Argument(buffer.pointer())
    }
}

/// An `int` or a `long`.
impl From<usize> for Argument {
    fn from(value: usize) -> Argument {
        Argument(value as u64)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Argument {
        Argument(value.to_bits().into())
    }
}

macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::suite::kernels::Argument::from($argument)),*] };
}
use arguments;

/// A simulator under one schedule.
struct Run<'s> {
    simulator: &'s Simulator,
    seed: u32,
}

impl Run<'_> {
    /// Over a grid of up to three dimensions.
    fn launch<const R: usize>(
        &self,
        kernel: &str,
        grid: [usize; R],
        block: usize,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Outcome {
        let mut values: Vec<u64> = arguments.iter().map(|a| a.0).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let (grid, block) = ([0, 1, 2].map(|i| *grid.get(i).unwrap_or(&1) as u32), [block as u32, 1, 1]);
        // SAFETY: each test lists the arguments of its kernel. A kernel that is wrong can do anything, which is what
        // margins around the buffers are to find.
        unsafe { self.simulator.launch(kernel, grid, block, shared_bytes, &mut pointers, self.seed) }
    }
}

/// What `run` leaves, which has to be the same under every schedule.
fn schedules<T: PartialEq>(simulator: &Simulator, run: impl Fn(&Run) -> Outcome<T>) -> Outcome<T> {
    let first = run(&Run { simulator, seed: SEEDS[0] })?;
    for seed in SEEDS[1..].iter().copied() {
        if run(&Run { simulator, seed })? != first {
            return Err(format!("the result depends on the order of threads: seed {seed} differs from {}", SEEDS[0]));
        }
    }
    Ok(first)
}

/// Reproducible operands, uniform in -1..1.
struct Draw(u64);

impl Draw {
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.float() + 1.0) / 2.0 * bound as f32) as usize % bound
    }

    fn floats(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| self.float()).collect()
    }

    fn bf16s(&mut self, length: usize) -> Vec<bf16> {
        (0..length).map(|_| bf16::from_f32(self.float())).collect()
    }
}

fn floats<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.float()).collect()
}

/// Rounding to bf16, which has eight bits of a number, is off by at most 2^-8 of it.
const BF16: f64 = 1.0 / 256.0;

/// Each number is within `tolerance` of what is expected, relative to it and to the root mean square of all.
fn close<T: Number>(what: &str, got: &[T], expected: &[f64], tolerance: f64) -> Outcome {
    assert_eq!(got.len(), expected.len(), "{what}");
    let rms = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64).sqrt();
    let mut worst = 0.0f64;
    for (i, (g, &e)) in got.iter().zip(expected).enumerate() {
        let error = (g.float() - e).abs() / (e.abs() + rms).max(f64::MIN_POSITIVE);
        if error.is_nan() || error > tolerance {
            return Err(format!("{what}: number {i} is {g:?}, expected {e} within {tolerance:.1e}"));
        }
        worst = worst.max(error);
    }
    println!("{what}: {} numbers within {worst:.1e} (allowed {tolerance:.1e})", got.len());
    Ok(())
}

/// Each number is what is expected.
fn equal<T: Number>(what: &str, got: &[T], expected: &[T]) -> Outcome {
    assert_eq!(got.len(), expected.len(), "{what}");
    match got.iter().zip(expected).position(|(g, e)| g != e) {
        Some(i) => Err(format!("{what}: number {i} is {:?}, expected {:?}", got[i], expected[i])),
        None => Ok(()),
    }
}
