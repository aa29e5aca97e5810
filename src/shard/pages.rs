//! Column chunks of ids: lists of small integers as Parquet pages, made by ourselves.
//!
//! A shard's columns are lists without nulls, most of their length runs: repetition levels are a 0 and so many 1s for
//! each list, definition levels all the same, an attention mask one value throughout. A general writer takes them
//! value by value; writing the runs down costs nothing (docs/performance.md). What zstd then finds depends on how the
//! values lie: ids by their bytes (all the lowest, then all the second, …), which takes half the time and a sixth of
//! the space off a mixture; labels, mostly runs of one value, as they are; a mask that is the same throughout as
//! deltas.
//!
//! Pages are those of format 1.0 (apache/parquet-format, `README.md` "Data Pages", `Encodings.md` "RLE",
//! "BYTE_STREAM_SPLIT" and "DELTA_BINARY_PACKED").

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
    compressed: Vec<u8>,
}

/// A column chunk and its description, as [`parquet::file::writer::SerializedRowGroupWriter::append_column`] takes them.
pub struct Chunk {
    pub bytes: Bytes,
    pub close: ColumnCloseResult,
}

impl ChunkEncoder {
    pub fn new() -> Result<ChunkEncoder> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(ChunkEncoder { zstd, page: Vec::new(), compressed: Vec::new() })
    }

    /// Whether a column is of the kind that is encoded here.
    pub fn takes(ty: &DataType) -> bool {
        matches!(ty, DataType::List(item) if !item.is_nullable() && matches!(item.data_type(), DataType::Int8 | DataType::Int32))
    }

    /// Encodes a column.
    pub fn encode(&mut self, lists: &ListArray, column: ColumnDescPtr) -> Result<Chunk> {
        let offsets = lists.value_offsets();
        let by_bytes = column.path().parts().first().is_some_and(|name| name == "input_ids");
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
            let encoding = self.values(lists, ends[0] as usize..ends[ends.len() - 1] as usize, by_bytes);
            if !encodings.contains(&encoding) {
                encodings.push(encoding);
            }
            let page = Page::DataPage {
                buf: self.compress()?,
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

    /// The page, compressed.
    fn compress(&mut self) -> Result<Bytes> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(self.page.len()));
        let compress = self.zstd.compress_to_buffer(&self.page, &mut self.compressed);
        compress.map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(Bytes::copy_from_slice(&self.compressed))
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
    fn values(&mut self, lists: &ListArray, range: std::ops::Range<usize>, by_bytes: bool) -> Encoding {
        let values = lists.values();
        if let Some(values) = values.as_primitive_opt::<Int32Type>() {
            let values = &values.values()[range];
            if by_bytes {
                for shift in [0, 8, 16, 24] {
                    self.page.extend(values.iter().map(|v| (v >> shift) as u8));
                }
                return Encoding::BYTE_STREAM_SPLIT;
            }
            self.page.reserve(4 * values.len());
            // On a little-endian machine this is a copy.
            self.page.extend(values.iter().flat_map(|v| v.to_le_bytes()));
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

/// Reads the values of a page of ids into `ids`; `None` if it is of another kind.
pub fn ids(page: &Page, ids: &mut Vec<u32>) -> Option<()> {
    let Page::DataPage { buf, num_values, encoding: Encoding::BYTE_STREAM_SPLIT, .. } = page else { return None };
    let mut start = 0;
    for _levels in ["repetition", "definition"] {
        let length = buf.get(start..start + 4)?.try_into().ok()?;
        start = start.checked_add(4)?.checked_add(u32::from_le_bytes(length) as usize)?;
    }
    // As many as there are entries: no list is empty.
    let (count, bytes) = (*num_values as usize, buf.get(start..)?);
    if bytes.len() != count.checked_mul(4)? {
        return None;
    }
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| &bytes[i * count..(i + 1) * count]);
    ids.clear();
    ids.extend((0..count).map(|i| u32::from_le_bytes([a[i], b[i], c[i], d[i]])));
    Some(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use proptest::prelude::*;

    use super::super::columns::{IGNORED, Lists};
    use super::super::reader::{IdPages, lists_i8, lists_i32, open};
    use super::super::writer::ShardWriter;
    use super::*;
    use arrow::datatypes::{Field, Schema};

    /// What is read back from a shard with these lists in each kind of column.
    fn check(test: &str, groups: &[Vec<Vec<i32>>]) {
        let directory = std::env::temp_dir().join(format!("flanc-pages-{test}-{}", std::process::id()));
        let list = |name: &str, item: DataType| {
            Field::new(name, DataType::List(Arc::new(Field::new("element", item, false))), false)
        };
        let fields = [("input_ids", DataType::Int32), ("labels", DataType::Int32), ("loss_mask", DataType::Int8)];
        let schema = Arc::new(Schema::new(fields.map(|(name, item)| list(name, item)).to_vec()));
        let mut writer = ShardWriter::create(&directory, "a.parquet", schema.clone(), &[]).unwrap();
        for lists in groups {
            let (mut ids, mut labels) = (Lists::<i32>::default(), Lists::<i32>::default());
            let mut mask = Lists::<i8>::default();
            for list in lists {
                ids.values.extend(list);
                ids.close();
                labels.values.extend(list);
                labels.close();
                mask.values.extend(list.iter().map(|v| *v as i8));
                mask.close();
            }
            let columns = vec![ids.finish(), labels.finish(), mask.finish()];
            writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let wanted: Vec<Vec<i32>> = groups.concat();
        for (name, narrow) in [("input_ids", false), ("labels", false), ("loss_mask", true)] {
            let mut found = Vec::new();
            for batch in open(&directory, "a.parquet", 100).unwrap() {
                let batch = batch.unwrap();
                let (values, ends) = if narrow {
                    let (values, ends) = lists_i8(&batch, name, "a.parquet").unwrap();
                    (values.iter().map(|&v| i32::from(v)).collect(), ends)
                } else {
                    let (values, ends) = lists_i32(&batch, name, "a.parquet").unwrap();
                    (values.to_vec(), ends)
                };
                found.extend(ends.windows(2).map(|w| values[w[0] as usize..w[1] as usize].to_vec()));
            }
            let narrowed =
                |list: &Vec<i32>| list.iter().map(|&v| if narrow { i32::from(v as i8) } else { v }).collect();
            assert_eq!(found, wanted.iter().map(narrowed).collect::<Vec<Vec<i32>>>(), "{name}");
        }
        if wanted.iter().all(|list| !list.is_empty()) {
            let mut pages = IdPages::open(&directory, "a.parquet", "input_ids").unwrap();
            let (mut page, mut found) = (Vec::new(), Vec::new());
            loop {
                pages.next_page(&mut page).unwrap();
                if page.is_empty() {
                    break;
                }
                found.extend(page.iter().map(|&id| id as i32));
            }
            assert_eq!(found, wanted.concat());
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn rows_longer_than_a_page_and_runs_of_every_length() {
        check("runs", &[vec![vec![IGNORED; PAGE_VALUES + 3], (0..PAGE_VALUES as i32 + 9).collect(), vec![7]]]);
        check(
            "runs",
            &[(1..40).map(|n| [vec![IGNORED; n], vec![5; n / 3], (0..n as i32).collect()].concat()).collect()],
        );
        check("runs", &[vec![vec![1; 5]; 300], vec![vec![i32::MAX, i32::MIN, 0, -129, 1 << 21]], vec![vec![]; 9]]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(
            groups in prop::collection::vec(
                prop::collection::vec(
                    prop::collection::vec((0..70_000i32, 1..20usize), 0..12).prop_map(|runs| {
                        runs.into_iter().flat_map(|(v, n)| std::iter::repeat_n(if v < 35_000 { IGNORED } else { v }, n)).collect()
                    }),
                    1..30,
                ),
                1..4,
            )
        ) {
            check("property", &groups);
        }
    }
}
