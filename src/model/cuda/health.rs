//! What a device first failed at.
//!
//! Work is put into queues by methods that return nothing, from many places that could do nothing about an error. So the
//! first one is kept here, as the diagnostic that the run is to end with; after it the device is asked for nothing more,
//! and whoever reads gets zeros. Those are no results: where numbers become losses, weights or answers, the
//! device is asked whether it is [healthy](super::device::Device::healthy), which a training run does once a step.

use std::fmt::Display;
use std::sync::OnceLock;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY;

use super::context::said;
use crate::diag::{Diagnostic, Result};

/// Code of the error that a device which fails is.
pub const FAILED: &str = "gpu-failed";

/// What a library said.
pub struct Cause {
    /// There was not enough memory.
    memory: bool,
    said: String,
}

impl From<DriverError> for Cause {
    fn from(error: DriverError) -> Cause {
        Cause { memory: error.0 == CUDA_ERROR_OUT_OF_MEMORY, said: said(error) }
    }
}

impl From<CublasError> for Cause {
    fn from(error: CublasError) -> Cause {
        Cause { memory: error.0 == CUBLAS_STATUS_ALLOC_FAILED, said: format!("{:?}", error.0) }
    }
}

/// The first failure, if there was one.
#[derive(Default)]
pub struct Health(OnceLock<Diagnostic>);

impl Health {
    pub fn check(&self) -> Result<()> {
        self.0.get().map_or(Ok(()), |first| Err(first.clone().into()))
    }

    /// Asks the device for something, unless it has failed before. `what` completes "the GPU could not …".
    pub fn ask<T, E: Into<Cause>>(&self, what: impl Display, call: impl FnOnce() -> Result<T, E>) -> Option<T> {
        self.call(Memory::Gpu, what, call)
    }

    /// [`Health::ask`] for something that takes memory of the host.
    pub fn ask_host<T, E: Into<Cause>>(&self, what: impl Display, call: impl FnOnce() -> Result<T, E>) -> Option<T> {
        self.call(Memory::Host, what, call)
    }

    fn call<T, E: Into<Cause>>(
        &self,
        memory: Memory,
        what: impl Display,
        call: impl FnOnce() -> Result<T, E>,
    ) -> Option<T> {
        if self.0.get().is_some() {
            return None; // what would come of it follows from the first failure
        }
        match call() {
            Ok(given) => Some(given),
            Err(error) => {
                let _ = self.0.set(failure(memory, what, error.into())); // another thread's may have come first
                None
            }
        }
    }
}

/// Whose memory a call takes.
enum Memory {
    Gpu,
    Host,
}

fn failure(memory: Memory, what: impl Display, cause: Cause) -> Diagnostic {
    match (cause.memory, memory) {
        (true, Memory::Gpu) => Diagnostic::error("gpu-memory", format!("the GPU has no memory left to {what}"))
            .found(cause.said)
            .help("CUDA needs some memory beside what is planned: lower `micro_batch`, or give --recompute")
            .help("nvidia-smi shows what else takes memory of this GPU"),
        (true, Memory::Host) => {
            Diagnostic::error("host-memory", format!("the host has no memory left to {what}")).found(cause.said).help(
                "such memory is never swapped out: other programs, a container's limit or `ulimit -l` leave too little",
            )
        }
        (false, _) => Diagnostic::error(FAILED, format!("the GPU could not {what}"))
            .found(cause.said)
            .help("`flanc gpu check` runs every kernel; CUDA_LAUNCH_BLOCKING=1 has a kernel that fails named")
            .help("the system's log (dmesg) has a line with Xid if the driver gave the GPU up"),
    }
}
