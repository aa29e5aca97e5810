//! Sums over the GPUs of all ranks, by NCCL.
//!
//! Only the types are cudarc's: it looks for NCCL by names under which Python's packages do not have it
//! (`libnccl.so.2`), so the few functions are looked up here. Their signatures are those of `nccl.h`, which have been
//! the same since NCCL 2.0. Ranks find each other by an identity that rank 0 makes and shares over TCP.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use libloading::Library;

use super::libraries;
use crate::diag::{Diagnostic, Result};
use crate::model::ranks::Ranks;

type GetUniqueId = unsafe extern "C" fn(*mut ncclUniqueId) -> ncclResult_t;
type CommInitRank = unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ncclResult_t;
type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    ncclRedOp_t,
    ncclComm_t,
    *mut c_void,
) -> ncclResult_t;
type CommDestroy = unsafe extern "C" fn(ncclComm_t) -> ncclResult_t;
type GetErrorString = unsafe extern "C" fn(ncclResult_t) -> *const c_char;

/// This rank's end of a communicator.
pub struct Nccl {
    communicator: ncclComm_t,
    all_reduce: AllReduce,
    destroy: CommDestroy,
    said: GetErrorString,
    /// What the functions belong to.
    _library: Library,
}

// SAFETY: a communicator belongs to no thread; NCCL asks only that its calls do not overlap, and `&mut Driver` sees to
// that.
unsafe impl Send for Nccl {}

impl Nccl {
    /// Waits until all ranks have come. The context of this rank's GPU has to be current.
    pub fn connect(ranks: &mut Ranks) -> Result<Nccl> {
        let library = libraries::nccl()?;
        // SAFETY: the types are those of `nccl.h`.
        let functions = unsafe {
            (|| -> Result<_, libloading::Error> {
                Ok((
                    *library.get::<GetUniqueId>(b"ncclGetUniqueId\0")?,
                    *library.get::<CommInitRank>(b"ncclCommInitRank\0")?,
                    *library.get::<AllReduce>(b"ncclAllReduce\0")?,
                    *library.get::<CommDestroy>(b"ncclCommDestroy\0")?,
                    *library.get::<GetErrorString>(b"ncclGetErrorString\0")?,
                ))
            })()
        };
        let (unique_id, init, all_reduce, destroy, said) = functions
            .map_err(|e| Diagnostic::error("nccl", format!("what was found as NCCL is something else: {e}")))?;
        let mut id = ncclUniqueId { internal: [0; 128] };
        if ranks.leads() {
            // SAFETY: a place for an identity.
            checked(unsafe { unique_id(&mut id) }, said, "make an identity")?;
        }
        let bytes = ranks.share(id.internal.iter().map(|&c| c as u8).collect())?;
        for (to, byte) in id.internal.iter_mut().zip(bytes) {
            *to = byte as c_char;
        }
        let mut communicator = MaybeUninit::uninit();
        // SAFETY: a place for a communicator, which is read only if NCCL has made one.
        let communicator = unsafe {
            let made = init(communicator.as_mut_ptr(), ranks.size() as c_int, id, ranks.rank() as c_int);
            checked(made, said, "connect the ranks")?;
            communicator.assume_init()
        };
        Ok(Nccl { communicator, all_reduce, destroy, said, _library: library })
    }

    /// Puts the sum over all ranks in the place of `numbers` f32, when the stream comes to it.
    ///
    /// # Safety
    ///
    /// The numbers lie on this rank's GPU until the stream has done so, and all ranks ask for the same sums in the same
    /// order.
    pub unsafe fn sum(&self, address: CUdeviceptr, numbers: usize, stream: CUstream) -> Result<()> {
        let (kind, by) = (ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        // SAFETY: the caller's; source and destination may be the same.
        let done = unsafe {
            let place = address as *mut c_void;
            (self.all_reduce)(place, place, numbers, kind, by, self.communicator, stream.cast())
        };
        checked(done, self.said, "sum gradients")
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: made in `connect`; the stream that it was used on is idle.
        let _ = unsafe { (self.destroy)(self.communicator) };
    }
}

fn checked(result: ncclResult_t, said: GetErrorString, what: &str) -> Result<()> {
    if result == ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: NCCL's texts are constants that end with a 0.
    let text = unsafe { CStr::from_ptr(said(result)) }.to_string_lossy().into_owned();
    Err(Diagnostic::error("nccl", format!("NCCL could not {what}"))
        .found(text)
        .help("NCCL_DEBUG=INFO has it say why; each rank needs a GPU of its own (LOCAL_RANK)")
        .into())
}
