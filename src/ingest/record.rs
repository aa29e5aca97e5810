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

/// Records of a file that cannot be read, and why.
#[derive(Clone, Debug)]
pub struct Damage {
    pub diagnostic: Diagnostic,
    /// From the first to the last of them; empty where nothing was lost, which is a warning.
    pub records: Range<u64>,
    /// How many there are: those of the range that were wanted.
    pub lost: u64,
}

impl Damage {
    /// A whole range of records.
    pub fn new(diagnostic: Diagnostic, records: Range<u64>) -> Damage {
        let lost = records.end - records.start;
        Damage { diagnostic, records, lost }
    }
}

/// The records of `range` that are wanted, from the first to the last, and how many they are.
pub fn narrow(range: Range<u64>, wanted: &dyn Fn(u64) -> bool) -> (Range<u64>, u64) {
    let mut chosen = range.clone().filter(|&record| wanted(record));
    match chosen.next() {
        Some(first) => {
            let (last, more) = chosen.fold((first, 0), |(_, count), record| (record, count + 1));
            (first..last + 1, more + 1)
        }
        None => (range.start..range.start, 0),
    }
}
