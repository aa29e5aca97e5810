//! What every container format hands on: records, and reports of records that it could not hand on.

use std::ops::Range;

use crate::diag::Diagnostic;

/// Largest record that is read, in bytes. A length above it is taken for damage, before anything is allocated.
pub const RECORD_LIMIT: usize = 64 << 20;

/// One record as a container gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Counted from 0 within the file.
    pub index: u64,
    /// The byte of the file at which the record, or the chunk that holds it, begins.
    pub offset: u64,
    pub payload: &'a [u8],
}

/// Records that are in the file but cannot be read, and why. The range is empty where nothing was lost: a warning.
#[derive(Clone, Debug)]
pub struct Damage {
    pub diagnostic: Diagnostic,
    pub records: Range<u64>,
}
