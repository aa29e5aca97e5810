//! The GPU that there is, and what it takes to use it.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::libraries;
pub use super::libraries::NO_DRIVER;
use super::nvrtc::Compiler;
use crate::diag::{Diagnostic, Result};
use crate::model::ranks;

/// Oldest architecture that has the instructions the kernels use (bf16 `mma.sync`, `cp.async`): Ampere.
const OLDEST: (i32, i32) = (8, 0);

/// A GPU, as it was found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Facts {
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Newest CUDA that the driver knows.
    pub driver: (i32, i32),
    pub nvrtc: (i32, i32),
    pub cublaslt: (usize, usize),
    pub multiprocessors: i32,
    /// In bytes.
    pub memory: usize,
    pub memory_free: usize,
}

impl Facts {
    /// As NVRTC names it.
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// Looks for a GPU and for what it takes to use it; the first thing that is missing is said.
pub fn find() -> Result<Facts> {
    let (_context, facts) = Context::open()?;
    Ok(facts)
}

/// The context that all of the process shares, held.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl Context {
    pub fn open() -> Result<(Context, Facts)> {
        libraries::driver()?;
        let no_gpu = |e: DriverError| -> Box<Diagnostic> {
            Diagnostic::error("no-gpu", "CUDA's driver is there, but no GPU that it can use")
                .found(said(e))
                .help("nvidia-smi shows what the driver sees; CUDA_VISIBLE_DEVICES may hide devices")
                .help("--device cpu trains on the CPU")
                .into()
        };
        result::init().map_err(no_gpu)?;
        // Ranks of a machine take a GPU each; a launcher may also show each of them only its own.
        let local = ranks::Place::here()?.map_or(0, |place| place.local as i32);
        let count = result::device::get_count().map_err(no_gpu)?;
        let device = result::device::get(local % count.max(1)).map_err(no_gpu)?;
        let attribute = |which| {
            // SAFETY: `device` is one that the driver gave.
            unsafe { result::device::get_attribute(device, which) }.map_err(no_gpu)
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        };
        let capability = (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = result::device::get_name(device).map_err(no_gpu)?;
        if capability < OLDEST {
            return Err(Diagnostic::error("gpu-too-old", format!("{name} is too old for the kernels"))
                .expected("compute capability 8.0 (Ampere) or newer")
                .found(format!("{}.{}", capability.0, capability.1))
                .help("--device cpu trains on the CPU")
                .into());
        }
        let nvrtc = Compiler::open()?.version;
        libraries::cublaslt()?;
        // SAFETY: the device is valid; what is retained here is released in `drop`, and current until then on any
        // thread that says so.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(no_gpu)?;
        let held = Context { device, context };
        held.make_current().map_err(no_gpu)?;
        let (memory_free, memory) = result::mem_get_info().map_err(no_gpu)?;
        let mut driver = 0;
        // SAFETY: a place for an int; and a call without arguments.
        let cublaslt = unsafe {
            sys::cuDriverGetVersion(&mut driver).result().map_err(no_gpu)?;
            cudarc::cublaslt::sys::cublasLtGetVersion()
        };
        let facts = Facts {
            name,
            capability,
            driver: (driver / 1000, driver % 1000 / 10),
            nvrtc,
            cublaslt: (cublaslt / 10_000, cublaslt % 10_000 / 100),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory,
            memory_free,
        };
        Ok((held, facts))
    }

    /// Calls of this thread are about this context from now on.
    pub fn make_current(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained as long as `self`.
        unsafe { result::ctx::set_current(self.context) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`, once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// What the driver says about an error.
pub(super) fn said(error: DriverError) -> String {
    format!("{error:?}")
}
