//! What a device has to do: hold an arena, copy, launch kernels, multiply matrices.
//!
//! There are two: [`super::driver::Driver`], a GPU behind CUDA's driver, and the simulator of the test suite, which
//! runs the same kernels on the CPU in host memory. Everything above this line is the same code for both.
//!
//! A [`Buffer`] is a range of the arena. It becomes an argument of a kernel by saying how many numbers of which type
//! the kernel touches there ([`Buffer::bf16`], …), which is checked against its length: a launch cannot name memory
//! outside its tensors, and a launcher reads like the kernel's signature.

use crate::diag::Result;
use crate::model::ranks::Ranks;

/// Tensors begin at multiples of this many bytes: a kernel's widest loads are 16 bytes, cuBLASLt likes 256.
pub const ALIGNMENT: u64 = 256;

/// A range of the arena, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub at: u64,
    pub bytes: u64,
}

impl Buffer {
    /// What follows the first `bytes`.
    pub fn after(self, bytes: usize) -> Buffer {
        let bytes = bytes as u64;
        assert!(bytes <= self.bytes, "{bytes} bytes into a buffer of {}", self.bytes);
        Buffer { at: self.at + bytes, bytes: self.bytes - bytes }
    }

    fn holding(self, numbers: usize, bytes: usize) -> Arg {
        let asked = (numbers * bytes) as u64;
        assert!(asked <= self.bytes, "a kernel takes {asked} bytes of a buffer of {}", self.bytes);
        Arg::Pointer(self.at)
    }

    pub fn bf16(self, numbers: usize) -> Arg {
        self.holding(numbers, 2)
    }

    pub fn f32(self, numbers: usize) -> Arg {
        self.holding(numbers, 4)
    }

    pub fn u32(self, numbers: usize) -> Arg {
        self.holding(numbers, 4)
    }

    pub fn f64(self, numbers: usize) -> Arg {
        self.holding(numbers, 8)
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Bytes from the beginning of the arena; the kernel gets an address.
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Arg {
    /// A size that a kernel takes as `int`.
    pub fn int(value: usize) -> Arg {
        Arg::Int(i32::try_from(value).expect("sizes that kernels take as int are below 2³¹"))
    }

    /// A size that a kernel takes as `long`.
    pub fn long(value: usize) -> Arg {
        Arg::Long(value as i64)
    }

    /// Eight bytes that begin with the value, for an arena that begins at `arena`: a launch takes pointers to such.
    pub fn word(self, arena: u64) -> u64 {
        match self {
            Arg::Pointer(at) => arena + at,
            Arg::Int(value) => u64::from(value as u32),
            Arg::Long(value) => value as u64,
            Arg::Float(value) => u64::from(value.to_bits()),
        }
    }
}

/// A kernel, and how many threads run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch<'k> {
    pub kernel: &'k str,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub block: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: usize,
}

impl<'k> Launch<'k> {
    /// A row of blocks without dynamic shared memory.
    pub fn row(kernel: &'k str, blocks: usize, block: usize) -> Launch<'k> {
        Launch { kernel, grid: [blocks, 1, 1], block, shared: 0 }
    }

    /// A thread for every eight numbers.
    pub fn each(kernel: &'k str, numbers: usize) -> Launch<'k> {
        Launch::row(kernel, numbers.div_ceil(8 * 256), 256)
    }
}

/// How the operands of a product lie in memory; all are row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `c = a bᵀ` · a (m, k), b (n, k): `y = x wᵀ`
    Nt,
    /// `c = a b` · a (m, k), b (k, n): `dx = dy w`
    Nn,
    /// `c = aᵀ b` · a (k, m), b (k, n): `dw = dyᵀ x`
    Tn,
}

/// A product of matrices: operands in bf16, summed in f32 · c (m, n)
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub form: Form,
    pub c: Buffer,
    pub a: Buffer,
    pub b: Buffer,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// c is f32, not bf16.
    pub exact: bool,
    /// `c += …`, not `c = …`.
    pub add: bool,
}

impl Product {
    /// c, a and b as arguments; refuses buffers that are too short for the shape.
    pub fn operands(&self) -> [Arg; 3] {
        let Product { c, a, b, m, n, k, exact, .. } = *self;
        [if exact { c.f32(m * n) } else { c.bf16(m * n) }, a.bf16(m * k), b.bf16(n * k)]
    }
}

/// Number of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording(pub usize);

/// A device with one arena. Work is done as if in the order in which it is asked for; only [`Device::download`],
/// [`Device::arrived`] and [`Device::synchronize`] wait for it.
pub trait Device: Sized {
    /// Bytes on their way to the host. They have to be waited for, or their memory is lost.
    type Sent;

    /// Finds the device and makes its kernels ready.
    fn open() -> Result<Self>;

    /// The device's name and architecture.
    fn name(&self) -> String;

    /// Takes the arena, all of it zero; or tells how many bytes are free. What was recorded before is forgotten.
    fn take(&mut self, bytes: u64) -> Result<(), u64>;

    /// Copies bytes into a buffer. They may be overwritten as soon as this returns.
    fn upload(&mut self, to: Buffer, bytes: &[u8]);

    /// [`Device::upload`] by way of two other buffers of that length, in turn: bytes come there while work that was asked
    /// for before is still under way, and from there to their place when it is done.
    fn bring(&mut self, to: Buffer, by: [Buffer; 2], bytes: &[u8]);

    /// Waits for all work before it, and copies a buffer's first bytes out.
    fn download(&self, from: Buffer, bytes: &mut [u8]);

    /// Has a buffer's first `bytes` copied out when all work before is done, without waiting for it.
    fn send(&mut self, from: Buffer, bytes: usize) -> Self::Sent;

    /// Waits for bytes that were sent.
    fn arrived(&mut self, sent: Self::Sent) -> Vec<u8>;

    /// Sets all bytes of a buffer to 0.
    fn zero(&mut self, buffer: Buffer);

    /// Copies a buffer's bytes to another place of the arena, which is no shorter and does not overlap.
    fn copy(&mut self, to: Buffer, from: Buffer);

    /// Adds up a buffer's first `numbers`, in f32, over all ranks; each then has the sum in its place.
    fn sum_over_ranks(&mut self, buffer: Buffer, numbers: usize, ranks: &mut Ranks) -> Result<()>;

    /// Launches a kernel. The arguments are those of its signature, in their order.
    fn launch(&mut self, launch: Launch<'_>, arguments: &[Arg]);

    /// Multiplies matrices; `workspace` is free for it to use.
    fn multiply(&mut self, product: &Product, workspace: Buffer);

    /// What is asked for from now on is recorded, and not done: launches, products, copies within the arena, zeros.
    /// Nothing else may be asked for.
    fn record(&mut self);

    /// Ends what [`Device::record`] began.
    fn recorded(&mut self) -> Recording;

    /// Does what was recorded, with the arguments that it was recorded with.
    fn replay(&mut self, recording: Recording);

    /// Waits until everything that was asked for is done.
    fn synchronize(&self);

    /// What the device first failed at. Since then it does nothing, and what is read of it is no result.
    fn healthy(&self) -> Result<()>;
}

/// Numbers as the bytes they have on a device.
pub fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}
