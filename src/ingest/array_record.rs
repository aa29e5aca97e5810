//! ArrayRecord: Riegeli/records with an index of its chunks at the end.
//!
//! ```text
//! 0            signature chunk, 64 bytes, the same in every file
//! 64           chunks of records; TFDS writes `group_size:1`, a chunk per record
//! footer       one chunk: metadata { version, chunks, records }, then { offset, bytes, records } for each chunk
//!              padding to a multiple of 65536
//! end - 65536  one chunk: { offset of the footer, magic number }, three times over; padding
//! ```
//!
//! A chunk is a header of 40 bytes and its data. Numbers are little-endian, hashes are HighwayHash64:
//!
//! ```text
//!  0  u64  hash of bytes 8..40          24  u8   type: `s` signature, `r` records, `t` records transposed,
//!  8  u64  bytes of data                         `m` metadata, `p` padding
//! 16  u64  hash of the data             25  u56  number of records
//!                                       32  u64  bytes of the records when decoded
//! ```
//!
//! The data of an `r` chunk is a byte for the compression (0 none, `z` zstd, `b` brotli, `s` snappy), a varint with
//! the length of the next part, the sizes of the records as varints, and the records one after another. Each of the
//! last two is compressed by itself and then begins with a varint, its length when decompressed.
//!
//! At every multiple of 65536 stands a block header of 24 bytes { hash, distance back to the beginning of the chunk,
//! distance on to its end }. It interrupts whatever chunk is there, in its header too; the chunk goes on behind it.
//! It serves recovery without an index, and we have the index: a damaged one costs nothing and is a warning.
//!
//! Everything here is checked before it is believed: lengths against the file and against [`CHUNK_LIMIT`] before
//! memory is taken, hashes before data is decoded, and the decoded against what was declared.
//!
//! Sources: `doc/riegeli_records_file_format.md` of google/riegeli; `cpp/layout.proto` and `cpp/array_record_reader.cc`
//! of google/array_record.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use brotli::enc::StandardAlloc;
use highway::{HighwayHash, HighwayHasher, Key};

use super::record::{Damage, RECORD_LIMIT, Record, narrow};
use crate::diag::{Diagnostic, Place, Result};
use crate::storage::Mapped;

const BLOCK: usize = 1 << 16;
const BLOCK_HEADER: usize = 24;
const CHUNK_HEADER: usize = 40;

/// `Riegeli/`, `records\n`, and both again.
const HASH_KEY: Key = Key([0x2f69_6c65_6765_6952, 0x0a73_6472_6f63_6572, 0x2f69_6c65_6765_6952, 0x0a73_6472_6f63_6572]);

/// The first block header and the signature chunk. Only the distance to the chunk's end could differ, and does not.
const SIGNATURE: [u8; 64] = [
    0x83, 0xaf, 0x70, 0xd1, 0x0d, 0x88, 0x4a, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, //
    0x40, 0, 0, 0, 0, 0, 0, 0, 0x91, 0xba, 0xc2, 0x3c, 0x92, 0x87, 0xe1, 0xa9, //
    0, 0, 0, 0, 0, 0, 0, 0, 0xe1, 0x9f, 0x13, 0xc0, 0xe9, 0xb1, 0xc3, 0x72, //
    0x73, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

const POSTSCRIPT_MAGIC: u64 = 0x7193_0e70_4fda_e05e;
const VERSION: u64 = 1;

/// Largest chunk that is read, in bytes, stored and decoded. With `group_size:1` this is the limit of a record.
pub const CHUNK_LIMIT: usize = RECORD_LIMIT;

/// Largest footer that is read. An entry is at most 33 bytes, a chunk at least 41: the file's size is a limit too.
const FOOTER_LIMIT: usize = 1 << 30;

/// An ArrayRecord file whose index has been read. Records are read from it in any order, by any number of threads.
pub struct ArrayRecordFile<B = Mapped> {
    path: PathBuf,
    bytes: B,
    index: Index,
}

/// Where the chunks are. Offsets rise, lie in the file, and leave each chunk as many bytes as it has records, or more.
struct Index {
    chunks: Vec<ChunkStart>,
    records: u64,
}

struct ChunkStart {
    offset: u64,
    /// Its first record; the last is the one before the next chunk's first.
    record: u64,
}

impl<B: Deref<Target = [u8]>> ArrayRecordFile<B> {
    /// Reads signature, postscript and footer. A file whose index is lost or damaged is refused as a whole.
    pub fn open(path: &Path, bytes: B) -> Result<Self> {
        let index = read_index(&bytes).map_err(|d| match d.place {
            Place::Nowhere => Box::new(d.at(path)),
            _ => d,
        })?;
        let file = ArrayRecordFile { path: path.to_owned(), bytes, index };
        file.refuse_transposed()?;
        Ok(file)
    }

    pub fn records(&self) -> u64 {
        self.index.records
    }

    /// Calls `visit` for the records of `range` that the file has and that are `wanted`, in order. A chunk that cannot
    /// be read goes to `damaged`, once, with those of its records, and reading goes on behind it; a chunk of which
    /// nothing is wanted is not looked at. An error of either ends the visit and is returned.
    pub fn visit(
        &self,
        range: Range<u64>,
        wanted: &dyn Fn(u64) -> bool,
        visit: &mut dyn FnMut(Record<'_>) -> Result<()>,
        damaged: &mut dyn FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        let end = range.end.min(self.records());
        if range.start >= end {
            return Ok(());
        }
        let mut decoder = Decoder::new().map_err(|e| crate::storage::failure("read", &self.path, &e))?;
        let first = self.index.chunks.partition_point(|c| c.record <= range.start) - 1; // chunk 0 begins with record 0
        for (number, chunk) in self.index.chunks.iter().enumerate().skip(first) {
            if chunk.record >= end {
                break;
            }
            let held = chunk.record..self.index.chunks.get(number + 1).map_or(self.records(), |c| c.record);
            let (chosen, count) = narrow(held.start.max(range.start)..held.end.min(end), wanted);
            if count == 0 {
                continue;
            }
            let place = Place::Record { file: self.path.clone(), record: chosen.start, offset: Some(chunk.offset) };
            match decoder.read(&self.bytes, chunk.offset as usize, held.end - held.start, CHUNK_LIMIT) {
                Ok(records) => {
                    if let Some(block) = records.bad_block_header.filter(|_| chosen.start == held.start) {
                        damaged(Damage::new(bad_block_header(block).at(place), held.start..held.start))?;
                    }
                    for (index, payload) in held.zip(records) {
                        if chosen.contains(&index) && wanted(index) {
                            visit(Record { index, offset: chunk.offset, payload })?;
                        }
                    }
                }
                Err(diagnostic) => {
                    let note = match count {
                        1 => "1 record is lost; those behind it can be read".to_owned(),
                        n => format!("{n} records are lost, of {chosen:?}; those behind them can be read"),
                    };
                    damaged(Damage {
                        diagnostic: diagnostic.at(place).note("note", note),
                        records: chosen,
                        lost: count,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Transposition is an option of the writer and so the same for all chunks: one look refuses the file early.
    fn refuse_transposed(&self) -> Result<()> {
        let Some(first) = self.index.chunks.first() else { return Ok(()) };
        let mut cursor = Cursor::at(&self.bytes, first.offset as usize);
        match cursor.chunk_header() {
            Ok(header) if header.kind == b't' => Err(Box::new(transposed().at(Place::Path(self.path.clone())))),
            _ => Ok(()), // a damaged chunk is reported when it is read
        }
    }
}

fn bad_block_header(offset: usize) -> Diagnostic {
    Diagnostic::warning("damaged-block-header", "a block header of the array_record file is damaged; no record is lost")
        .expected("a block header with the hash of its content")
        .found(format!("another hash at byte {offset}"))
        .help("the storage has changed bytes of this file: copy or export it again")
}

// ---- The index ----------------------------------------------------------------------------------------------------

fn read_index(bytes: &[u8]) -> Result<Index> {
    check_signature(bytes)?;
    let footer = read_postscript(bytes)?;
    read_footer(bytes, footer)
}

fn check_signature(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(&SIGNATURE) {
        return Ok(());
    }
    let found = match bytes {
        [] => "an empty file".to_owned(),
        [0x1f, 0x8b, ..] => "a gzip file".to_owned(),
        [b'P', b'A', b'R', b'1', ..] => "a Parquet file".to_owned(),
        _ => hex(&bytes[..bytes.len().min(16)]),
    };
    let diagnostic =
        Diagnostic::error("not-array-record", "this is not an array_record file, or its beginning is damaged")
            .expected("the Riegeli signature 83 af 70 d1 0d 88 4a 3f … in the first 64 bytes")
            .found(found)
            .help("check the fileFormat of dataset_info.json, and copy or export the file again");
    Err(diagnostic.into())
}

/// The offset of the footer, from the last block.
fn read_postscript(bytes: &[u8]) -> Result<usize> {
    let incomplete = |found: String| {
        Box::new(
            Diagnostic::error(
                "array-record-incomplete",
                "the array_record file has lost its end, and with it its index",
            )
            .expected("a length that is a multiple of 65536, with the postscript in the last 65536 bytes")
            .found(found)
            .help("the file was cut short, or its writer was never closed: copy or export it again"),
        )
    };
    if !bytes.len().is_multiple_of(BLOCK) {
        let (blocks, rest) = (bytes.len() / BLOCK, bytes.len() % BLOCK);
        return Err(incomplete(format!("{} bytes: {blocks} x 65536 and {rest} more", bytes.len())));
    }
    // The signature has shown that there is a byte, so there is a block.
    let last_block = bytes.len() - BLOCK;
    let mut decoder = Decoder::new().map_err(|e| incomplete(e.to_string()))?;
    let mut postscript = decoder
        .read_any(bytes, last_block, BLOCK)
        .map_err(|d| incomplete(format!("no postscript at byte {last_block}: {}", brief(&d))))?;
    let (mut footer, mut magic) = (None, None);
    let message = postscript.next().unwrap_or_default();
    each_field(message, &mut |field, value| match (field, value) {
        (1, Value::Number(n)) => footer = Some(n),
        (2, Value::Number(n)) => magic = Some(n),
        _ => {}
    })
    .ok_or_else(|| incomplete(format!("a postscript at byte {last_block} that is not a message")))?;
    match (footer, magic) {
        (Some(footer), Some(POSTSCRIPT_MAGIC)) if footer >= SIGNATURE.len() as u64 && footer < last_block as u64 => {
            Ok(footer as usize)
        }
        (Some(footer), Some(POSTSCRIPT_MAGIC)) => {
            Err(incomplete(format!("a postscript that puts the footer at byte {footer}, outside of 64..{last_block}")))
        }
        _ => Err(incomplete(format!("a chunk without the magic number of array_record at byte {last_block}"))),
    }
}

fn read_footer(bytes: &[u8], footer: usize) -> Result<Index> {
    let broken = |found: String| {
        Box::new(
            Diagnostic::error("array-record-index", "the index of the array_record file is damaged")
                .expected("the offset and the number of records of each chunk")
                .found(format!("at byte {footer}, {found}"))
                .help("copy or export the file again"),
        )
    };
    let mut decoder = Decoder::new().map_err(|e| broken(e.to_string()))?;
    let mut entries = decoder.read_any(bytes, footer, bytes.len().min(FOOTER_LIMIT)).map_err(|d| broken(brief(&d)))?;

    let mut metadata = None;
    let message = entries.next().unwrap_or_default();
    each_field(message, &mut |field, value| {
        if let (1, Value::Message(inner)) = (field, value) {
            metadata = Some(inner);
        }
    })
    .ok_or_else(|| broken("metadata that are not a message".to_owned()))?;
    let metadata = metadata.ok_or_else(|| broken("no array_record metadata".to_owned()))?;
    let (version, chunks, records) = three_numbers(metadata).ok_or_else(|| broken("unreadable metadata".to_owned()))?;
    if version != VERSION {
        return Err(broken(format!("version {version} of the format, of which only {VERSION} is known")));
    }
    if chunks != entries.remaining() as u64 {
        return Err(broken(format!("{} entries for {chunks} chunks", entries.remaining())));
    }

    // An entry occupies a byte of the decoded footer or more, so the index is held to a multiple of bytes that exist.
    let mut index = Index { chunks: Vec::with_capacity(entries.remaining()), records: 0 };
    let mut next_free = SIGNATURE.len() as u64;
    for (number, entry) in entries.enumerate() {
        let (offset, _, held) = three_numbers(entry).ok_or_else(|| broken(format!("an unreadable entry {number}")))?;
        if offset < next_free || offset >= footer as u64 {
            return Err(broken(format!("chunk {number} at byte {offset}, outside of {next_free}..{footer}")));
        }
        // A chunk has its header and, by padding if need be, a byte for each of its records.
        next_free = offset.saturating_add(held.max(CHUNK_HEADER as u64));
        if next_free > footer as u64 {
            return Err(broken(format!("chunk {number} with {held} records in {} bytes", footer as u64 - offset)));
        }
        index.chunks.push(ChunkStart { offset, record: index.records });
        index.records += held;
    }
    if index.records != records {
        return Err(broken(format!("{} records in the entries, {records} in the metadata", index.records)));
    }
    Ok(index)
}

/// Fields 1, 2 and 3 of a message of numbers; an absent one is 0.
fn three_numbers(message: &[u8]) -> Option<(u64, u64, u64)> {
    let mut numbers = [0; 4];
    each_field(message, &mut |field, value| {
        if let (1..=3, Value::Number(n)) = (field, value) {
            numbers[field as usize] = n;
        }
    })?;
    Some((numbers[1], numbers[2], numbers[3]))
}

/// A diagnostic as part of another one's text.
fn brief(diagnostic: &Diagnostic) -> String {
    let notes: Vec<_> =
        diagnostic.notes.iter().filter(|n| n.0 != "help").map(|(k, text)| format!("{k} {text}")).collect();
    if notes.is_empty() { diagnostic.message.clone() } else { format!("{} ({})", diagnostic.message, notes.join("; ")) }
}

// ---- Chunks -------------------------------------------------------------------------------------------------------

struct ChunkHeader {
    data_bytes: u64,
    data_hash: u64,
    kind: u8,
    records: u64,
    decoded_bytes: u64,
}

/// A place in the file that moves over block headers.
struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
    /// The first block header passed whose hash was wrong.
    bad_block_header: Option<usize>,
}

impl<'b> Cursor<'b> {
    fn at(bytes: &'b [u8], at: usize) -> Self {
        Cursor { bytes, at, bad_block_header: None }
    }

    fn chunk_header(&mut self) -> Result<ChunkHeader> {
        let begin = self.at;
        let mut copy = Vec::new();
        let header: &[u8; CHUNK_HEADER] = self
            .take(CHUNK_HEADER, &mut copy)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| damaged("the chunk header is cut off").expected("40 bytes").found(self.remaining()))?;
        let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| header[8 * n + i]));
        let (stored, computed) = (word(0), hash(&header[8..]));
        if stored != computed {
            return Err(damaged("the chunk header is damaged")
                .expected(format!("hash {stored:016x} as stored at byte {begin}"))
                .found(format!("hash {computed:016x}"))
                .help("copy or export the file again")
                .into());
        }
        Ok(ChunkHeader {
            data_bytes: word(1),
            data_hash: word(2),
            kind: header[24],
            records: word(3) >> 8,
            decoded_bytes: word(4),
        })
    }

    /// The next `length` bytes of the chunk: a slice of the file, or of `copy` where block headers lie between them.
    /// `None` where the file ends before. Nothing is allocated for bytes that are not there.
    fn take<'c>(&mut self, length: usize, copy: &'c mut Vec<u8>) -> Option<&'c [u8]>
    where
        'b: 'c,
    {
        if length > self.bytes.len().saturating_sub(self.at) {
            return None;
        }
        let bytes = self.bytes;
        self.skip_block_header()?;
        if length <= BLOCK - self.at % BLOCK {
            let taken = bytes.get(self.at..self.at + length)?;
            self.at += length;
            return Some(taken);
        }
        copy.clear();
        copy.reserve(length);
        while copy.len() < length {
            self.skip_block_header()?;
            let part = (BLOCK - self.at % BLOCK).min(length - copy.len());
            copy.extend_from_slice(bytes.get(self.at..self.at + part)?);
            self.at += part;
        }
        Some(copy)
    }

    /// Moves behind the block header that begins here, if one does. `None` if the place is within one.
    fn skip_block_header(&mut self) -> Option<()> {
        match self.at % BLOCK {
            0 => {
                let header = self.bytes.get(self.at..self.at + BLOCK_HEADER)?;
                if header[..8] != hash(&header[8..]).to_le_bytes() {
                    self.bad_block_header.get_or_insert(self.at);
                }
                self.at += BLOCK_HEADER;
                Some(())
            }
            inside if inside < BLOCK_HEADER => None,
            _ => Some(()),
        }
    }

    fn remaining(&self) -> String {
        format!(
            "{} bytes to the end of the file at byte {}",
            self.bytes.len().saturating_sub(self.at),
            self.bytes.len()
        )
    }
}

/// Decodes one chunk after another, in the same memory.
struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    data: Vec<u8>,
    sizes: Vec<u8>,
    values: Vec<u8>,
}

impl Decoder {
    fn new() -> std::io::Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()?;
        Ok(Decoder { zstd, data: Vec::new(), sizes: Vec::new(), values: Vec::new() })
    }

    /// The records of the chunk at `offset`, which are as many as the index says.
    fn read<'d>(&'d mut self, bytes: &'d [u8], offset: usize, records: u64, limit: usize) -> Result<Records<'d>> {
        let (mut cursor, header) = open_chunk(bytes, offset)?;
        if header.records != records {
            return Err(damaged("chunk and index disagree")
                .expected(format!("{records} records, as the index says"))
                .found(format!("{} in the chunk header", header.records))
                .help("copy or export the file again")
                .into());
        }
        self.decode(&mut cursor, &header, limit)
    }

    /// The records of a chunk that is in no index: footer and postscript.
    fn read_any<'d>(&'d mut self, bytes: &'d [u8], offset: usize, limit: usize) -> Result<Records<'d>> {
        let (mut cursor, header) = open_chunk(bytes, offset)?;
        self.decode(&mut cursor, &header, limit)
    }

    fn decode<'d>(&'d mut self, cursor: &mut Cursor<'d>, header: &ChunkHeader, limit: usize) -> Result<Records<'d>> {
        let declared = header.data_bytes.max(header.decoded_bytes);
        if declared > limit as u64 {
            return Err(too_large(declared, limit).into());
        }
        let data = cursor.take(header.data_bytes as usize, &mut self.data).ok_or_else(|| {
            damaged("the chunk is cut off")
                .expected(format!("{} bytes of data", header.data_bytes))
                .found(format!("the end of the file at byte {}", cursor.bytes.len()))
                .help("copy or export the file again")
        })?;
        let computed = hash(data);
        if computed != header.data_hash {
            return Err(damaged("the data of the chunk are damaged")
                .expected(format!("hash {:016x} as stored", header.data_hash))
                .found(format!("hash {computed:016x} of {} bytes", data.len()))
                .help("copy or export the file again")
                .into());
        }

        // From here on the bytes are those that were written, and what is wrong is the writer's fault.
        let (&compression, mut rest) = data.split_first().ok_or_else(|| misformed("no data"))?;
        let sizes_bytes = varint(&mut rest).filter(|&n| n <= rest.len() as u64);
        let sizes_bytes = sizes_bytes.ok_or_else(|| misformed("record sizes that reach beyond the chunk"))?;
        let (sizes, values) = rest.split_at(sizes_bytes as usize);
        // A varint has 10 bytes at most.
        let sizes_limit = limit.min(usize::try_from(header.records.saturating_mul(10)).unwrap_or(limit));
        let sizes = decompress(&mut self.zstd, compression, sizes, sizes_limit, &mut self.sizes)?;
        let values = decompress(&mut self.zstd, compression, values, limit, &mut self.values)?;
        if values.len() as u64 != header.decoded_bytes {
            return Err(
                misformed(format!("{} bytes of records, {} declared", values.len(), header.decoded_bytes)).into()
            );
        }
        let mut total = Some(0u64);
        let mut unread = sizes;
        for _ in 0..header.records {
            let size = varint(&mut unread).ok_or_else(|| misformed("fewer record sizes than records"))?;
            total = total.and_then(|t| t.checked_add(size));
        }
        if !unread.is_empty() || total != Some(values.len() as u64) {
            return Err(misformed("record sizes that do not add up to the records").into());
        }
        // A size was read for each record and no byte is left, so there are as many sizes as bytes or fewer.
        let records = header.records as usize;
        Ok(Records { sizes, values, records, bad_block_header: cursor.bad_block_header })
    }
}

fn open_chunk(bytes: &[u8], offset: usize) -> Result<(Cursor<'_>, ChunkHeader)> {
    let mut cursor = Cursor::at(bytes, offset);
    let header = cursor.chunk_header()?;
    match header.kind {
        b'r' => Ok((cursor, header)),
        b't' => Err(transposed().into()),
        kind => Err(misformed(format!("a chunk of type `{}`", kind.escape_ascii())).into()),
    }
}

/// The records of a chunk, one after another. Sizes and values have been found to agree.
struct Records<'d> {
    sizes: &'d [u8],
    values: &'d [u8],
    records: usize,
    bad_block_header: Option<usize>,
}

impl Records<'_> {
    fn remaining(&self) -> usize {
        self.records
    }
}

impl<'d> Iterator for Records<'d> {
    type Item = &'d [u8];

    fn next(&mut self) -> Option<&'d [u8]> {
        self.records = self.records.checked_sub(1)?;
        let size = varint(&mut self.sizes)?;
        let (record, rest) = self.values.split_at_checked(size as usize)?;
        self.values = rest;
        Some(record)
    }
}

/// Decompresses a part of a chunk into `out`, or gives it as it is if it is not compressed.
fn decompress<'d>(
    zstd: &mut zstd::bulk::Decompressor<'static>,
    compression: u8,
    mut part: &'d [u8],
    limit: usize,
    out: &'d mut Vec<u8>,
) -> Result<&'d [u8]> {
    if compression == 0 {
        return Ok(part);
    }
    let declared = varint(&mut part).ok_or_else(|| misformed("a compressed part without its length"))?;
    if declared > limit as u64 {
        return Err(too_large(declared, limit).into());
    }
    let declared = declared as usize;
    let misfit = |found: String| misformed(format!("{found}; it declares {declared} bytes"));
    out.clear();
    match compression {
        b'z' => {
            out.reserve(declared);
            zstd.decompress_to_buffer(part, out)
                .map_err(|e| misfit(format!("a zstd part that does not decode: {e}")))?;
        }
        b'b' => {
            out.resize(declared, 0);
            let length =
                brotli_to_buffer(part, out).ok_or_else(|| misfit("a brotli part that does not decode".to_owned()))?;
            out.truncate(length);
        }
        b's' => {
            out.resize(declared, 0);
            let length = snap::raw::Decoder::new().decompress(part, out);
            out.truncate(length.map_err(|e| misfit(format!("a snappy part that does not decode: {e}")))?);
        }
        other => return Err(misformed(format!("compression `{}`, not one of z, b, s", other.escape_ascii())).into()),
    }
    if out.len() != declared {
        return Err(misfit(format!("a part of {} bytes", out.len())).into());
    }
    Ok(out)
}

/// Decodes a whole brotli stream that fits into `out`; `None` if it is another length or no such stream. Windows above
/// 16 MiB, an extension that Riegeli does not use, are refused: they would be allocated on the stream's word.
fn brotli_to_buffer(stream: &[u8], out: &mut [u8]) -> Option<usize> {
    let memory = StandardAlloc::default;
    let mut state = brotli::BrotliState::new_strict(memory(), memory(), memory());
    let (mut unread, mut read, mut room, mut written, mut total) = (stream.len(), 0, out.len(), 0, 0);
    let result = brotli::BrotliDecompressStream(
        &mut unread,
        &mut read,
        stream,
        &mut room,
        &mut written,
        out,
        &mut total,
        &mut state,
    );
    (matches!(result, brotli::BrotliResult::ResultSuccess) && unread == 0).then_some(written)
}

fn hash(bytes: &[u8]) -> u64 {
    HighwayHasher::new(HASH_KEY).hash64(bytes)
}

fn damaged(message: &str) -> Diagnostic {
    Diagnostic::error("damaged-chunk", message)
}

fn misformed(found: impl Into<String>) -> Diagnostic {
    Diagnostic::error("misformed-chunk", "the chunk is not one of array_record's")
        .expected("record sizes and records, compressed by zstd, brotli, snappy or not at all")
        .found(found)
        .help("its hash is right, so it was written like this: export again with array_record's own writer")
}

fn too_large(declared: u64, limit: usize) -> Diagnostic {
    Diagnostic::error("chunk-too-large", "a chunk of the array_record file is too large to be read")
        .expected(format!("at most {limit} bytes"))
        .found(format!("{declared} bytes declared"))
        .help("if it is no damage, export again with options `group_size:1`, as TFDS does")
}

fn transposed() -> Diagnostic {
    Diagnostic::error("array-record-transposed", "the array_record file was written with the option `transpose`")
        .expected("chunks of type `r`: records one after another, as TFDS writes them")
        .found("chunks of type `t`: records taken apart into columns")
        .help("export again with options `group_size:1`, or convert the file with array_record's reader and writer")
}

// ---- Varints and messages -----------------------------------------------------------------------------------------

/// Takes a varint of at most 64 bits off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (n, &byte) in bytes.iter().take(10).enumerate() {
        if n == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte < 0x80 {
            *bytes = &bytes[n + 1..];
            return Some(value);
        }
    }
    None
}

enum Value<'m> {
    Number(u64),
    Message(&'m [u8]),
}

/// Calls `each` with the fields of a protocol buffers message that are varints or have a length.
fn each_field<'m>(mut message: &'m [u8], each: &mut dyn FnMut(u64, Value<'m>)) -> Option<()> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => each(tag >> 3, Value::Number(varint(&mut message)?)),
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (inner, rest) = message.split_at_checked(length)?;
                each(tag >> 3, Value::Message(inner));
                message = rest;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
