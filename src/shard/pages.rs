//! Column chunks of ids: lists of small integers as Parquet pages, made by ourselves.
//!
//! A shard's columns are lists without nulls, most of their length runs: repetition levels are a 0 and so many 1s for
//! each list, definition levels all the same, an attention mask one value throughout. A general writer takes them
//! value by value; writing the runs down costs nothing (docs/performance.md). Values are plain, or deltas where they
//! are all the same; zstd finds what repeats among them.
//!
//! Pages are those of format 1.0 (apache/parquet-format, `README.md` "Data Pages", `Encodings.md` "RLE" and
//! "DELTA_BINARY_PACKED").

use arrow::array::{Array, AsArray, ListArray};
use arrow::datatypes::{DataType, Int8Type, Int32Type};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

/// Values of a page, about: a MiB of ids.
const PAGE_VALUES: usize = 1 << 18;
/// Level of zstd; measured on real prompts (docs/performance.md).
pub const LEVEL: i32 = 1;

/// Makes column chunks; keeps its buffers from one to the next.
pub struct ChunkEncoder {
    zstd: zstd::bulk::Compressor<'static>,
    page: Vec<u8>,
}

/// A column chunk and its description, as [`parquet::file::writer::SerializedRowGroupWriter::append_column`] takes them.
pub struct Chunk {
    pub bytes: Bytes,
    pub close: ColumnCloseResult,
}

impl ChunkEncoder {
    pub fn new() -> Result<ChunkEncoder> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(ChunkEncoder { zstd, page: Vec::new() })
    }

    /// Whether a column is of the kind that is encoded here.
    pub fn takes(ty: &DataType) -> bool {
        matches!(ty, DataType::List(item) if !item.is_nullable() && matches!(item.data_type(), DataType::Int8 | DataType::Int32))
    }

    /// Encodes a column.
    pub fn encode(&mut self, lists: &ListArray, column: ColumnDescPtr) -> Result<Chunk> {
        let offsets = lists.value_offsets();
        let mut sink = TrackedWrite::new(Vec::new());
        let mut index = OffsetIndexBuilder::new();
        let (mut uncompressed, mut written, mut encodings) = (0, 0, vec![Encoding::RLE]);
        let mut row = 0;
        while row < lists.len() {
            let first = row;
            while row < lists.len() && (row == first || (offsets[row + 1] - offsets[first]) as usize <= PAGE_VALUES) {
                row += 1;
            }
            let ends = &offsets[first..=row];
            let entries = self.levels(ends);
            let encoding = self.values(lists, ends[0] as usize..ends[ends.len() - 1] as usize);
            if !encodings.contains(&encoding) {
                encodings.push(encoding);
            }
            let compressed = self.zstd.compress(&self.page).map_err(|e| ParquetError::External(Box::new(e)))?;
            let page = Page::DataPage {
                buf: Bytes::from(compressed),
                num_values: entries as u32,
                encoding,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            let spec = SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, self.page.len()))?;
            index.append_row_count((row - first) as i64);
            index.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
            uncompressed += spec.uncompressed_size as i64;
            written += entries as i64;
        }
        let bytes = sink.into_inner()?;
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
            .set_encodings(encodings)
            .set_num_values(written)
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(uncompressed)
            .set_data_page_offset(0)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: lists.len() as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(index.build()),
        };
        Ok(Chunk { bytes: Bytes::from(bytes), close })
    }

    /// Begins a page with its levels; gives the number of entries: values, and a place for each empty list.
    fn levels(&mut self, ends: &[i32]) -> usize {
        let lengths = || ends.windows(2).map(|w| (w[1] - w[0]) as usize);
        let page = &mut self.page;
        page.clear();
        prefixed(page, |page| {
            for length in lengths() {
                run(page, 1, 0);
                run(page, length.saturating_sub(1), 1);
            }
        });
        prefixed(page, |page| {
            // A value stands where its list has one: runs of lists that are not empty are one run.
            let mut full = 0;
            for length in lengths() {
                if length == 0 {
                    run(page, full, 1);
                    run(page, 1, 0);
                    full = 0;
                }
                full += length;
            }
            run(page, full, 1);
        });
        lengths().map(|n| n.max(1)).sum()
    }

    /// Ends a page with its values.
    fn values(&mut self, lists: &ListArray, range: std::ops::Range<usize>) -> Encoding {
        let values = lists.values();
        if let Some(values) = values.as_primitive_opt::<Int32Type>() {
            self.page.reserve(4 * range.len());
            // On a little-endian machine this is a copy.
            self.page.extend(values.values()[range].iter().flat_map(|v| v.to_le_bytes()));
            return Encoding::PLAIN;
        }
        let values = &values.as_primitive::<Int8Type>().values()[range];
        match values.first() {
            Some(&first) if values.iter().all(|&v| v == first) => {
                constant(&mut self.page, first, values.len());
                Encoding::DELTA_BINARY_PACKED
            }
            _ => {
                self.page.extend(values.iter().flat_map(|&v| i32::from(v).to_le_bytes()));
                Encoding::PLAIN
            }
        }
    }
}

/// Levels stand after their length in bytes.
fn prefixed(page: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = page.len();
    page.extend([0; 4]);
    write(page);
    let length = (page.len() - start - 4) as u32;
    page[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// `count` times a level of one bit.
fn run(page: &mut Vec<u8>, count: usize, level: u8) {
    if count > 0 {
        varint(page, (count as u64) << 1);
        page.push(level);
    }
}

/// `count` times one value, as deltas of 0: blocks of 128, in four parts of no bits each.
fn constant(page: &mut Vec<u8>, value: i8, count: usize) {
    const BLOCK: usize = 128;
    const PARTS: usize = 4;
    varint(page, BLOCK as u64);
    varint(page, PARTS as u64);
    varint(page, count as u64);
    varint(page, zigzag(value));
    for _ in 0..count.saturating_sub(1).div_ceil(BLOCK) {
        varint(page, zigzag(0));
        page.extend([0; PARTS]);
    }
}

fn zigzag(value: i8) -> u64 {
    let value = i64::from(value);
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint(page: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        page.push((value & 127) as u8 | 128);
        value >>= 7;
    }
    page.push(value as u8);
}
