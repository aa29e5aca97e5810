//! Parquet as TFDS writes it: one binary column `data`, each value a serialized tf.train.Example.
//!
//! ```text
//! 0            `PAR1`
//! 4            row groups of at most 100 rows; in each, the column's pages: a dictionary page or none, data pages
//! end - 8 - n  metadata (Thrift, compact): schema, rows, and for each row group where its column is
//! end - 8      u32 n, `PAR1`
//! ```
//!
//! A page is a header (Thrift, compact) and its values, compressed as a whole; pyarrow, which TFDS writes with, takes
//! snappy and dictionary encoding. There is no checksum: a changed bit within a value goes unseen, which is why this is
//! not the format to keep corpora in.
//!
//! The `parquet` crate reads the metadata and decodes levels and values. It reserves memory on the word of a page
//! header and has panicked on damaged files, so it is kept on a short lead: page headers are read here, lengths are
//! held to the file and to limits, decompression is ours, and what the crate is asked to do is run under
//! `catch_unwind`.
//!
//! Sources: `README.md` and `src/main/thrift/parquet.thrift` of apache/parquet-format; the compact protocol's
//! specification in apache/thrift; `core/file_adapters.py` of tensorflow/datasets.

use std::cell::Cell;
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use ::parquet::basic::{Compression, ConvertedType, Encoding, Type as Physical};
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::schema::types::ColumnDescPtr;

use super::record::{Damage, RECORD_LIMIT, Record, narrow};
use crate::diag::{Diagnostic, Place, Result, listing};
use crate::storage::Mapped;

const MAGIC: &[u8; 4] = b"PAR1";

/// Largest page that is read, in bytes, stored and decompressed.
pub const PAGE_LIMIT: usize = RECORD_LIMIT;

/// Most values of a dictionary; pyarrow closes one at 1 MiB of bytes.
const DICTIONARY_LIMIT: u64 = 1 << 20;

/// Largest metadata that are read; a row group takes some 200 bytes and two samples of its values.
const METADATA_LIMIT: usize = 256 << 20;

/// Most rows of a row group: whoever asks which of them are wanted goes through all. TFDS writes 100, pyarrow a million.
const ROW_GROUP_LIMIT: u64 = 1 << 24;

/// Rows decoded at a time.
const BATCH: usize = 256;

/// A Parquet file of serialized examples whose metadata have been read. Records are read from it in any order, by any
/// number of threads.
pub struct ParquetFile<B = Mapped> {
    path: PathBuf,
    bytes: Arc<B>,
    column: ColumnDescPtr,
    row_groups: Vec<RowGroup>,
    records: u64,
}

struct RowGroup {
    records: Range<u64>,
    /// The bytes of its column's pages.
    pages: Range<usize>,
    compression: Compression,
}

impl<B: Deref<Target = [u8]> + Send + Sync + 'static> ParquetFile<B> {
    /// Reads the metadata. A file that does not hold serialized examples is refused, saying what it holds.
    pub fn open(path: &Path, bytes: B) -> Result<Self> {
        let (column, row_groups) = read_metadata(&bytes).map_err(|d| Box::new(d.at(path)))?;
        let records = row_groups.last().map_or(0, |g| g.records.end);
        Ok(ParquetFile { path: path.to_owned(), bytes: Arc::new(bytes), column, row_groups, records })
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    /// Calls `visit` for the records of `range` that the file has and that are `wanted`, in order. The rest of a row group
    /// in which something cannot be read goes to `damaged`, once, as does each run of empty rows; reading goes on behind
    /// it. A row group of which nothing is wanted is not decompressed. An error of either ends the visit and is returned.
    pub fn visit(
        &self,
        range: Range<u64>,
        wanted: &dyn Fn(u64) -> bool,
        visit: &mut dyn FnMut(Record<'_>) -> Result<()>,
        damaged: &mut dyn FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        let first = self.row_groups.partition_point(|g| g.records.end <= range.start);
        for group in self.row_groups[first..].iter().take_while(|g| g.records.start < range.end) {
            let (chosen, count) =
                narrow(group.records.start.max(range.start)..group.records.end.min(range.end), wanted);
            if count > 0 {
                self.visit_row_group(group, chosen, wanted, visit, damaged)?;
            }
        }
        Ok(())
    }

    fn visit_row_group(
        &self,
        group: &RowGroup,
        chosen: Range<u64>,
        wanted: &dyn Fn(u64) -> bool,
        visit: &mut dyn FnMut(Record<'_>) -> Result<()>,
        damaged: &mut dyn FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        let offset = group.pages.start as u64;
        let report = |diagnostic: Diagnostic, records: Range<u64>| {
            let (records, lost) = narrow(records, wanted);
            let place = Place::Record { file: self.path.clone(), record: records.start, offset: Some(offset) };
            let note = match lost {
                1 => "1 record is lost; those of other row groups can be read".to_owned(),
                n => format!("{n} records are lost, of {records:?}; those of other row groups can be read"),
            };
            Damage { diagnostic: diagnostic.at(place).note("note", note), records, lost }
        };
        let wanted = |index: u64| chosen.contains(&index) && wanted(index);

        let mut reader = self.column_reader(group);
        let mut rows = Rows::default();
        let mut next = group.records.start;
        while next < chosen.end {
            // Rows before the wanted ones are decoded too: they are in the same pages.
            let most = BATCH.min((chosen.end - next) as usize);
            if let Err(found) = rows.read(&mut reader, most) {
                return damaged(report(damaged_pages(found), next.max(chosen.start)..chosen.end));
            }
            let mut empty = next..next;
            let mut values = rows.values.iter();
            for index in next..next + most as u64 {
                let is_null = rows.levels.get((index - next) as usize) == Some(&0);
                let value = if is_null { None } else { values.next() };
                match value {
                    Some(value) if wanted(index) => visit(Record { index, offset, payload: value.data() })?,
                    None if wanted(index) && empty.end == index && !empty.is_empty() => empty.end += 1,
                    None if wanted(index) => {
                        if !empty.is_empty() {
                            damaged(report(empty_rows(), empty))?;
                        }
                        empty = index..index + 1;
                    }
                    _ => {}
                }
            }
            if !empty.is_empty() {
                damaged(report(empty_rows(), empty))?;
            }
            next += most as u64;
        }
        Ok(())
    }

    fn column_reader(&self, group: &RowGroup) -> ColumnReaderImpl<ByteArrayType> {
        let pages = Pages {
            bytes: self.bytes.clone(),
            at: group.pages.start,
            end: group.pages.end,
            rows: group.records.end - group.records.start,
            has_dictionary: false,
            compression: group.compression,
        };
        ColumnReaderImpl::new(self.column.clone(), Box::new(pages))
    }
}

/// Rows that TFDS 4.9.10 writes of a shard of `rows`. It loses the others: batch k is cut from an iterator, which
/// stands behind the batches before, as if that stood at the beginning still, and so drops 100 k rows, then takes 100.
/// A file of exactly so many rows, where dataset_info.json has more, was not damaged; the rows were never in it.
pub fn rows_kept_by_tfds(rows: u64) -> u64 {
    const TFDS_BATCH: u64 = 100;
    let (mut read, mut kept, mut skipped) = (0, 0, 0);
    loop {
        read += skipped;
        if read >= rows {
            return kept;
        }
        let taken = TFDS_BATCH.min(rows - read);
        read += taken;
        kept += taken;
        skipped += TFDS_BATCH;
    }
}

fn damaged_pages(found: String) -> Diagnostic {
    Diagnostic::error("damaged-row-group", "a row group of the Parquet file is damaged")
        .expected("pages with a value for each row")
        .found(found)
        .help("copy or export the file again; tfrecord and array_record have checksums, this format has none")
}

fn empty_rows() -> Diagnostic {
    Diagnostic::error("empty-row", "a row of the Parquet file is null")
        .expected("a serialized tf.train.Example in column `data`")
        .found("no value")
        .help("TFDS writes no nulls: export the file again")
}

/// One batch of decoded rows. `values` holds those that are not null; `levels` has a 0 for each null, or is empty.
#[derive(Default)]
struct Rows {
    levels: Vec<i16>,
    values: Vec<ByteArray>,
}

impl Rows {
    /// Reads exactly `most` rows, or says what was found instead.
    fn read(&mut self, reader: &mut ColumnReaderImpl<ByteArrayType>, most: usize) -> Result<(), String> {
        self.levels.clear();
        self.values.clear();
        let (levels, values) = (&mut self.levels, &mut self.values);
        // The reader is not used again after a panic: its row group is given up.
        let (rows, values, _) = guarded(|| reader.read_records(most, Some(levels), None, values))?;
        let nulls = self.levels.iter().filter(|&&level| level == 0).count();
        if rows != most || values + nulls != most {
            return Err(format!("pages that end {} rows early", most - rows.min(most)));
        }
        Ok(())
    }
}

thread_local! {
    /// Whether this thread is within [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the `parquet` crate; its errors and its panics become text, and nothing is printed of the latter.
fn guarded<T>(run: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    static SILENCED: Once = Once::new();
    SILENCED.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                print(panic);
            }
        }));
    });
    GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(false);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ParquetError::General(text))) => Err(text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            Err(format!("bytes that the Parquet decoder stumbled over: {}", text.unwrap_or_default()))
        }
    }
}

// ---- Metadata -----------------------------------------------------------------------------------------------------

fn read_metadata(bytes: &[u8]) -> Result<(ColumnDescPtr, Vec<RowGroup>)> {
    let (metadata, data_end) = decode_metadata(bytes)?;
    let column = example_column(&metadata)?;
    let mut row_groups: Vec<RowGroup> = Vec::with_capacity(metadata.num_row_groups());
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let start = row_groups.last().map_or(0, |g| g.records.end);
        let row_group = match (group.columns(), u64::try_from(group.num_rows())) {
            ([chunk], Ok(rows @ 0..=ROW_GROUP_LIMIT)) => {
                start.checked_add(rows).and_then(|end| place_pages(chunk, start..end, data_end))
            }
            _ => None,
        };
        row_groups.push(row_group.ok_or_else(|| {
            let rows = group.num_rows();
            broken(format!(
                "a row group {number} of {rows} rows that does not lie in the file, which has {data_end} bytes of pages"
            ))
        })?);
    }
    let rows = row_groups.last().map_or(0, |g| g.records.end);
    if u64::try_from(metadata.file_metadata().num_rows()) != Ok(rows) {
        let declared = metadata.file_metadata().num_rows();
        return Err(broken(format!("{rows} rows in the row groups, {declared} in the file")));
    }
    if let Some(wrong) = row_groups.iter().map(|g| g.compression).find(|&c| !is_supported(c)) {
        return Err(Diagnostic::error(
            "parquet-compression",
            "the Parquet file is compressed in a way that TFDS does not use",
        )
        .expected("snappy, zstd or none")
        .found(wrong.to_string().to_lowercase())
        .help("export again with TFDS, which takes snappy")
        .into());
    }
    Ok((column, row_groups))
}

/// The metadata, and where they and so the pages end.
fn decode_metadata(bytes: &[u8]) -> Result<(ParquetMetaData, usize)> {
    let cut = |found: String| {
        Diagnostic::error("parquet-incomplete", "this is not a whole Parquet file")
            .expected("`PAR1` at its beginning and end, and the length of its metadata before the last")
            .found(found)
            .help("the file was cut short, or its writer was never closed: copy or export it again")
    };
    let end = match bytes.len().checked_sub(8) {
        Some(end) if bytes.starts_with(MAGIC) => end,
        _ => {
            return Err(cut(format!(
                "{} bytes that begin with `{}`",
                bytes.len(),
                bytes[..bytes.len().min(4)].escape_ascii()
            ))
            .into());
        }
    };
    let (length, magic) = bytes[end..].split_at(4);
    if magic != MAGIC {
        return Err(cut(format!("`{}` at the end, byte {}", magic.escape_ascii(), end + 4)).into());
    }
    let length = length.iter().rev().fold(0usize, |n, &byte| n << 8 | usize::from(byte));
    let start = end.checked_sub(length).filter(|&start| start >= MAGIC.len() && length <= METADATA_LIMIT);
    let start = start.ok_or_else(|| cut(format!("metadata of {length} bytes in a file of {}", bytes.len())))?;
    let metadata = guarded(|| ParquetMetaDataReader::decode_metadata(&bytes[start..end])).map_err(broken)?;
    Ok((metadata, start))
}

fn broken(found: String) -> Box<Diagnostic> {
    Box::new(
        Diagnostic::error("parquet-metadata", "the metadata of the Parquet file are damaged")
            .expected("a schema, and row groups that lie in the file")
            .found(found)
            .help("copy or export the file again"),
    )
}

/// The one column that TFDS writes. Whatever else is in a Parquet file is a table of features.
fn example_column(metadata: &ParquetMetaData) -> Result<ColumnDescPtr> {
    let schema = metadata.file_metadata().schema_descr();
    if let [column] = schema.columns()
        && column.path().parts() == ["data"]
        && column.physical_type() == Physical::BYTE_ARRAY
        && column.converted_type() == ConvertedType::NONE
        && column.max_rep_level() == 0
        && column.max_def_level() <= 1
    {
        return Ok(column.clone());
    }
    let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    Err(Diagnostic::error("parquet-table", "this Parquet file is a table of features, not a TFDS export")
        .expected("one binary column `data` with serialized tf.train.Examples, as TFDS writes with file_format=parquet")
        .found(format!("{} columns: {}", names.len(), listing(names.iter().map(String::as_str))))
        .note(
            "note",
            "tfds.as_dataframe(…).to_parquet(…) writes such tables; the types of features.json are lost in them",
        )
        .help("read the directory that TFDS prepared, which has such a table's rows with their types")
        .into())
}

/// Where the pages of a row group lie; `None` if not in the file before `data_end`.
fn place_pages(chunk: &ColumnChunkMetaData, records: Range<u64>, data_end: usize) -> Option<RowGroup> {
    let first = match chunk.dictionary_page_offset() {
        Some(offset) if offset > 0 => offset.min(chunk.data_page_offset()),
        _ => chunk.data_page_offset(),
    };
    let start = usize::try_from(first).ok().filter(|&start| start >= MAGIC.len())?;
    let end = start.checked_add(usize::try_from(chunk.compressed_size()).ok()?)?;
    let in_this_file = end <= data_end && chunk.file_path().is_none();
    in_this_file.then(|| RowGroup { records, pages: start..end, compression: chunk.compression() })
}

fn is_supported(compression: Compression) -> bool {
    matches!(compression, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_))
}

// ---- Pages --------------------------------------------------------------------------------------------------------

/// The pages of one row group, one after another, each checked and decompressed here.
struct Pages<B> {
    bytes: Arc<B>,
    at: usize,
    end: usize,
    /// Rows that no page has brought yet.
    rows: u64,
    has_dictionary: bool,
    compression: Compression,
}

impl<B: Deref<Target = [u8]>> Pages<B> {
    fn next_page(&mut self) -> Result<Option<Page>, String> {
        while self.at < self.end {
            let at = self.at;
            let found = |text: String| format!("at byte {at}, {text}");
            let rest = &self.bytes[at..self.end]; // within the file: see place_pages
            let mut thrift = Thrift { rest };
            let header = page_header(&mut thrift).ok_or_else(|| found("no page header".to_owned()))?;
            let stored = thrift.rest.get(..header.stored_bytes).ok_or_else(|| {
                found(format!("a page of {} bytes, where {} are left", header.stored_bytes, thrift.rest.len()))
            })?;
            self.at = self.end - (thrift.rest.len() - stored.len());
            let largest = header.stored_bytes.max(header.bytes);
            if largest > PAGE_LIMIT {
                return Err(found(format!("a page of {largest} bytes, more than {PAGE_LIMIT}")));
            }
            let Some(content) = header.content else { continue }; // an index page, or one of a kind to come
            let content = content.map_err(found)?;
            let (rows, values) = content.counts();
            if rows > self.rows {
                return Err(found(format!("a page of {rows} rows, where {} are left", self.rows)));
            }
            self.rows -= rows;
            // A value of a dictionary has a length of 4 bytes before it.
            if values > DICTIONARY_LIMIT.min(header.bytes as u64 / 4) {
                return Err(found(format!("a dictionary of {values} values in {} bytes", header.bytes)));
            }
            if matches!(content, Content::Dictionary { .. }) && std::mem::replace(&mut self.has_dictionary, true) {
                return Err(found("a second dictionary".to_owned()));
            }
            let of_dictionary = matches!(content, Content::Data { encoding, .. } if encoding != Encoding::PLAIN);
            if of_dictionary && !self.has_dictionary {
                return Err(found("values of a dictionary, before there is one".to_owned()));
            }
            let decompressed =
                decompress(self.compression, stored, header.bytes).map_err(|text| found(text.to_owned()))?;
            return Ok(Some(match content {
                Content::Dictionary { values } => Page::DictionaryPage {
                    buf: decompressed.into(),
                    num_values: values,
                    encoding: Encoding::PLAIN,
                    is_sorted: false,
                },
                Content::Data { rows, encoding } => Page::DataPage {
                    buf: decompressed.into(),
                    num_values: rows,
                    encoding,
                    def_level_encoding: Encoding::RLE,
                    rep_level_encoding: Encoding::RLE,
                    statistics: None,
                },
            }));
        }
        Ok(None)
    }
}

/// Decompresses a page, which has to come out at exactly `bytes`, already held to [`PAGE_LIMIT`].
fn decompress(compression: Compression, stored: &[u8], bytes: usize) -> Result<Vec<u8>, &'static str> {
    let page = match compression {
        Compression::UNCOMPRESSED => stored.to_vec(),
        Compression::SNAPPY => {
            let declared = snap::raw::decompress_len(stored);
            if declared != Ok(bytes) {
                return Err("a snappy page of another length than its header says");
            }
            snap::raw::Decoder::new().decompress_vec(stored).map_err(|_| "a snappy page that does not decompress")?
        }
        Compression::ZSTD(_) => {
            zstd::bulk::decompress(stored, bytes).map_err(|_| "a zstd page that does not decompress")?
        }
        _ => return Err("a compression that is not supported"), // refused in read_metadata
    };
    if page.len() == bytes { Ok(page) } else { Err("a page of another length than its header says") }
}

impl<B: Deref<Target = [u8]> + Send + Sync> PageReader for Pages<B> {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        self.next_page().map_err(ParquetError::General)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        Err(ParquetError::NYI("pages are read in order".to_owned()))
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.get_next_page().map(drop)
    }
}

impl<B: Deref<Target = [u8]> + Send + Sync> Iterator for Pages<B> {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

// ---- Page headers -------------------------------------------------------------------------------------------------

struct PageHeader {
    bytes: usize,
    stored_bytes: usize,
    /// What is in it, or why that cannot be read; `None` if it is neither data nor a dictionary.
    content: Option<Result<Content, String>>,
}

enum Content {
    Data { rows: u32, encoding: Encoding },
    Dictionary { values: u32 },
}

impl Content {
    /// Rows and dictionary values.
    fn counts(&self) -> (u64, u64) {
        match *self {
            Content::Data { rows, .. } => (rows.into(), 0),
            Content::Dictionary { values } => (0, values.into()),
        }
    }
}

/// `PageHeader` of parquet.thrift. `None` if it is not one, or has a negative length.
fn page_header(thrift: &mut Thrift<'_>) -> Option<PageHeader> {
    const DATA: i64 = 0;
    const DICTIONARY: i64 = 2;
    const DATA_V2: i64 = 3;
    // By field number; the headers of data and dictionary pages begin with the number of values and their encoding.
    let (mut kind, mut bytes, mut stored_bytes) = (None, None, None);
    let (mut data, mut dictionary) = ([None; 4], [None; 4]);
    thrift.fields(0, &mut |thrift, field, kind_of_field| match field {
        1 => thrift.integer(kind_of_field, &mut kind),
        2 => thrift.integer(kind_of_field, &mut bytes),
        3 => thrift.integer(kind_of_field, &mut stored_bytes),
        5 | 7 if kind_of_field == Thrift::STRUCT => {
            let numbers = if field == 5 { &mut data } else { &mut dictionary };
            thrift.fields(1, &mut |thrift, field, kind_of_field| match field {
                1..=4 if kind_of_field == Thrift::I32 => {
                    thrift.integer(kind_of_field, &mut numbers[field as usize - 1])
                }
                _ => thrift.skip(kind_of_field, 1),
            })
        }
        _ => thrift.skip(kind_of_field, 0),
    })?;
    let content = match kind? {
        DATA => Some(data_content(data)),
        DICTIONARY => Some(dictionary_content(dictionary)),
        DATA_V2 => Some(Err("a data page of version 2, which TFDS does not write".to_owned())),
        _ => None,
    };
    let (bytes, stored_bytes) = (usize::try_from(bytes?).ok()?, usize::try_from(stored_bytes?).ok()?);
    Some(PageHeader { bytes, stored_bytes, content })
}

/// `DataPageHeader`: number of values, which are rows here, encoding, and that of definition levels.
fn data_content([rows, encoding, levels, _]: [Option<i64>; 4]) -> Result<Content, String> {
    const RLE: i64 = 3;
    let encoding = match encoding {
        Some(0) => Encoding::PLAIN,
        Some(2) => Encoding::PLAIN_DICTIONARY,
        Some(8) => Encoding::RLE_DICTIONARY,
        other => return Err(format!("values of encoding {other:?}, neither plain nor of a dictionary")),
    };
    match (rows.map(u32::try_from), levels) {
        (Some(Ok(rows)), Some(RLE)) => Ok(Content::Data { rows, encoding }),
        _ => Err("a data page without a number of rows, or with levels of another encoding than RLE".to_owned()),
    }
}

/// `DictionaryPageHeader`: number of values, encoding.
fn dictionary_content([values, encoding, ..]: [Option<i64>; 4]) -> Result<Content, String> {
    match (values.map(u32::try_from), encoding) {
        (Some(Ok(values)), Some(0 | 2)) => Ok(Content::Dictionary { values }),
        _ => Err("a dictionary without a number of values, or not in plain encoding".to_owned()),
    }
}

/// Reads Thrift's compact protocol: as much of it as page headers use, and past the rest.
struct Thrift<'t> {
    rest: &'t [u8],
}

impl Thrift<'_> {
    // Types of a field.
    const TRUE: u8 = 1;
    const FALSE: u8 = 2;
    const I8: u8 = 3;
    const I16: u8 = 4;
    const I32: u8 = 5;
    const I64: u8 = 6;
    const DOUBLE: u8 = 7;
    const BINARY: u8 = 8;
    const LIST: u8 = 9;
    const SET: u8 = 10;
    const STRUCT: u8 = 12;

    /// Structs within structs beyond this depth are damage: page headers have two levels.
    const DEPTH: u32 = 8;

    /// Calls `read` for each field of a struct, with its number and type; `read` has to consume the field.
    fn fields(&mut self, depth: u32, read: &mut dyn FnMut(&mut Self, i16, u8) -> Option<()>) -> Option<()> {
        if depth > Self::DEPTH {
            return None;
        }
        let mut field = 0i16;
        loop {
            let byte = self.byte()?;
            if byte == 0 {
                return Some(());
            }
            field = match byte >> 4 {
                0 => i16::try_from(self.zigzag()?).ok()?,
                delta => field.checked_add(delta.into())?,
            };
            read(self, field, byte & 0xf)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        match kind {
            Self::TRUE | Self::FALSE => Some(()), // the type is the value
            Self::I8 => self.byte().map(drop),
            Self::I16 | Self::I32 | Self::I64 => self.varint().map(drop),
            Self::DOUBLE => self.skip_bytes(8),
            Self::BINARY => {
                let length = self.varint()?;
                self.skip_bytes(usize::try_from(length).ok()?)
            }
            Self::LIST | Self::SET => {
                let byte = self.byte()?;
                let length = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                // An element takes a byte or more, so a longer list is none; this also bounds the loop.
                if depth >= Self::DEPTH || length > self.rest.len() as u64 {
                    return None;
                }
                (0..length).try_for_each(|_| match byte & 0xf {
                    Self::TRUE | Self::FALSE => self.byte().map(drop), // in a list, a byte each
                    kind => self.skip(kind, depth + 1),
                })
            }
            Self::STRUCT => self.fields(depth + 1, &mut |thrift, _, kind| thrift.skip(kind, depth + 1)),
            _ => None, // maps do not occur in Parquet
        }
    }

    /// Reads an integer field.
    fn integer(&mut self, kind: u8, into: &mut Option<i64>) -> Option<()> {
        if !matches!(kind, Self::I16 | Self::I32 | Self::I64) {
            return None;
        }
        *into = Some(self.zigzag()?);
        Some(())
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for n in 0..10 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(7 * n)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn skip_bytes(&mut self, count: usize) -> Option<()> {
        self.rest = self.rest.get(count..)?;
        Some(())
    }
}
