//! TFRecord: records one after the other, each framed by its length and two checksums.
//!
//! ```text
//! u64 length, little-endian | u32 masked CRC-32C of the length | payload | u32 masked CRC-32C of the payload
//! ```
//!
//! There is no header, footer or index (tensorflow `core/lib/io/record_writer.h`). Opening a file walks the frames
//! once, checking each length, and keeps the offset of every [`STRIDE`]th record, so that a range of records is
//! reached without reading the ones before it. Payload checksums are verified as records are visited.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Place, Result};
use crate::storage::Mapped;

use super::record::{Damage, RECORD_LIMIT, Record};

/// Bytes of framing before the payload.
const HEADER: usize = 12;
/// Bytes of framing after the payload.
const FOOTER: usize = 4;
/// Records between two kept offsets: 8 bytes of index for every 256 records.
const STRIDE: u64 = 256;

#[derive(Debug)]
pub struct TfRecordFile<B = Mapped> {
    path: PathBuf,
    bytes: B,
    records: u64,
    /// Offsets of records 0, STRIDE, 2·STRIDE, …
    offsets: Vec<u64>,
    /// Why the walk ended before the end of the file.
    broken: Option<Diagnostic>,
}

impl<B: Deref<Target = [u8]>> TfRecordFile<B> {
    /// Walks the frames. Damage does not fail the call: the records before it are readable, see [`Self::broken`].
    ///
    /// # Errors
    /// The file is another kind of file, or a compressed one, which TFDS does not write.
    pub fn open(path: &Path, bytes: B) -> Result<Self> {
        let mut file = TfRecordFile { path: path.to_owned(), bytes, records: 0, offsets: Vec::new(), broken: None };
        let mut at = 0usize;
        while at < file.bytes.len() {
            match frame(&file.bytes, at) {
                Ok(payload) => {
                    if file.records % STRIDE == 0 {
                        file.offsets.push(at as u64);
                    }
                    file.records += 1;
                    at = payload.end + FOOTER;
                }
                Err(fault) => {
                    if at == 0
                        && !matches!(fault, Fault::PayloadCut { .. })
                        && let Some(other) = another_kind(&file.bytes)
                    {
                        return Err(other.at(path).into());
                    }
                    file.broken = Some(fault.diagnostic(&file.path, file.records, at));
                    break;
                }
            }
        }
        Ok(file)
    }

    /// Records that can be reached.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Why no record can be reached behind the last one, if the file goes on there.
    pub fn broken(&self) -> Option<&Diagnostic> {
        self.broken.as_ref()
    }

    /// Calls `visit` for the records of `range` that are `wanted`, in order; one whose payload does not match its
    /// checksum goes to `damaged` instead. A record that is not wanted is stepped over unread.
    pub fn visit(
        &self,
        range: Range<u64>,
        wanted: &dyn Fn(u64) -> bool,
        visit: &mut dyn FnMut(Record<'_>) -> Result<()>,
        damaged: &mut dyn FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        let range = range.start..range.end.min(self.records);
        if range.is_empty() {
            return Ok(());
        }
        let mut index = range.start / STRIDE * STRIDE;
        let mut at = self.offsets[(range.start / STRIDE) as usize] as usize;
        while index < range.end {
            // The walk in `open` has checked the frame; only its length is read again.
            let length = u64_at(&self.bytes, at) as usize;
            let payload = at + HEADER..at + HEADER + length;
            if index >= range.start && wanted(index) && length > RECORD_LIMIT {
                let diagnostic = Diagnostic::error("record-too-large", "a record is too large to be read")
                    .at(Place::Record { file: self.path.clone(), record: index, offset: Some(at as u64) })
                    .expected(format!("at most {RECORD_LIMIT} bytes"))
                    .found(format!("{length} bytes"))
                    .help("is it text? Images, audio and video are not for flanc");
                damaged(Damage::new(diagnostic, index..index + 1))?;
            } else if index >= range.start && wanted(index) {
                let stored = u32_at(&self.bytes, payload.end);
                let bytes = &self.bytes[payload.clone()];
                let computed = masked_crc(bytes);
                if stored == computed {
                    visit(Record { index, offset: at as u64, payload: bytes })?;
                } else {
                    let diagnostic = Diagnostic::error("record-checksum", "a record does not match its checksum")
                        .at(Place::Record { file: self.path.clone(), record: index, offset: Some(at as u64) })
                        .expected(format!("CRC-32C {computed:#010x}, computed from its payload of length {length}"))
                        .found(format!("{stored:#010x} in the file"))
                        .help("the file was damaged after it was written; copy or export it again");
                    damaged(Damage::new(diagnostic, index..index + 1))?;
                }
            }
            index += 1;
            at = payload.end + FOOTER;
        }
        Ok(())
    }
}

/// What a file is that does not begin with the length of a record, where its first bytes tell. They are looked at only
/// then: a record of 35,615 bytes begins like a gzip file.
fn another_kind(bytes: &[u8]) -> Option<Diagnostic> {
    let compressed = |by: &str, magic: &str, unpack: &str| {
        Diagnostic::error("compressed-tfrecord", format!("this TFRecord file is compressed with {by}"))
            .expected("an uncompressed TFRecord, as TFDS writes it")
            .found(format!("the first bytes {magic}"))
            .help(format!("unpack it under the same name: {unpack} < FILE > FILE.plain && mv FILE.plain FILE"))
    };
    let other = |what: &str, format: &str| {
        Diagnostic::error("not-tfrecord", format!("this is {what}, not a TFRecord file"))
            .expected("a TFRecord, by fileFormat and filepathTemplate in dataset_info.json")
            .found(format!("the first bytes of {what}"))
            .help(format!("set fileFormat in dataset_info.json to {format} if that is how the corpus was exported, or export it again"))
    };
    match bytes {
        [0x1f, 0x8b, ..] => Some(compressed("gzip", "1f 8b", "gzip -dc")),
        [0x78, second @ (0x01 | 0x5e | 0x9c | 0xda), ..] => {
            Some(compressed("zlib", &format!("78 {second:02x}"), "zlib-flate -uncompress"))
        }
        [0x83, 0xaf, 0x70, 0xd1, 0x0d, 0x88, 0x4a, 0x3f, ..] => {
            Some(other("a Riegeli or array_record file", "array_record"))
        }
        [b'P', b'A', b'R', b'1', ..] => Some(other("a Parquet file", "parquet")),
        _ => None,
    }
}

/// What is wrong with a frame.
enum Fault {
    /// Fewer bytes are left than a frame's header takes.
    HeaderCut {
        left: usize,
    },
    LengthChecksum {
        stored: u32,
        computed: u32,
    },
    /// The payload would end behind the end of the file.
    PayloadCut {
        length: u64,
        left: usize,
    },
}

/// Checks the frame at `at` and returns where its payload lies.
fn frame(bytes: &[u8], at: usize) -> Result<Range<usize>, Fault> {
    let left = bytes.len() - at;
    if left < HEADER {
        return Err(Fault::HeaderCut { left });
    }
    let stored = u32_at(bytes, at + 8);
    let computed = masked_crc(&bytes[at..at + 8]);
    if stored != computed {
        return Err(Fault::LengthChecksum { stored, computed });
    }
    let length = u64_at(bytes, at);
    let room = left - HEADER;
    if room < FOOTER || length > (room - FOOTER) as u64 {
        return Err(Fault::PayloadCut { length, left: room });
    }
    Ok(at + HEADER..at + HEADER + length as usize)
}

impl Fault {
    fn diagnostic(self, path: &Path, record: u64, at: usize) -> Diagnostic {
        let place = Place::Record { file: path.to_owned(), record, offset: Some(at as u64) };
        let lost = "this record and all behind it cannot be reached; copy or export the file again";
        match self {
            Fault::HeaderCut { left } => Diagnostic::error("record-cut", "the file ends inside the header of a record")
                .at(place)
                .expected(format!("a header of {HEADER} bytes"))
                .found(format!("{left} bytes"))
                .help(lost),
            Fault::LengthChecksum { stored, computed } => {
                Diagnostic::error("length-checksum", "the length of a record does not match its checksum")
                    .at(place)
                    .expected(format!("CRC-32C {computed:#010x}, computed from the length"))
                    .found(format!("{stored:#010x} in the file"))
                    .help(if record == 0 {
                        "is this a TFRecord file at all? If so, copy or export it again"
                    } else {
                        lost
                    })
            }
            Fault::PayloadCut { length, left } => {
                let diagnostic = Diagnostic::error("record-cut", "the file ends inside a record")
                    .at(place)
                    .expected(format!("a payload of {length} bytes and its checksum"))
                    .found(format!("{left} bytes to the end of the file"))
                    .help(lost);
                if length <= RECORD_LIMIT as u64 {
                    return diagnostic;
                }
                let meant =
                    "no record is so long, and the checksum of the length is right: it may be an attempt on the reader";
                diagnostic.note("note", meant)
            }
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// CRC-32C, masked as TensorFlow does so that a checksum of data that holds checksums stays meaningful
/// (tensorflow `core/lib/hash/crc32c.h`).
pub fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
