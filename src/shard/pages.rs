//! Column chunks as Parquet pages made by ourselves: lists of ids, and where they came from.
//!
//! A shard's columns are lists without nulls, most of their length runs: repetition levels are a 0 and so many 1s for
//! each list, definition levels all the same, an attention mask one value throughout. A general writer takes them
//! value by value; writing the runs down costs nothing (docs/performance.md). Labels and masks are nowhere but in the
//! pages: what they are follows from where the targets lie. What zstd then finds depends on how the values lie: ids by
//! their bytes (all the lowest, then all the second, …), which takes half the time and a sixth of the space off a
//! mixture; labels as they are beside other prompts of the same row, which they mostly repeat, and as numbers in a
//! dictionary in a mixture, where next to nothing repeats and runs are better not written out; a mask that is the same
//! throughout as deltas.
//!
//! Pages are those of format 1.0 (apache/parquet-format, `README.md` "Data Pages", `Encodings.md` "RLE", "RLE_DICTIONARY",
//! "BYTE_STREAM_SPLIT" and "DELTA_BINARY_PACKED").

use std::ops::Range;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// What a label is where no loss is computed.
pub const IGNORED: i32 = -100;
/// Values of a page, about: a MiB of ids.
const PAGE_VALUES: usize = 1 << 18;
/// How zstd compresses: what does not repeat is not looked at twice, but coded by frequency in any case. What that costs in
/// space, and what it saves, is in docs/performance.md.
const FAST: [CParameter; 2] =
    [CParameter::CompressionLevel(-4), CParameter::LiteralCompressionMode(ParamSwitch::Enable)];

/// A column without nulls.
#[derive(Clone, Copy, Debug)]
pub struct Column<'r> {
    pub shape: Shape<'r>,
    pub values: Values<'r>,
}

/// What a row of a column is.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'r> {
    /// A value; there are so many.
    Flat(usize),
    /// A list: where each begins, and the end of the last.
    Lists(&'r [u32]),
}

impl Shape<'_> {
    pub fn rows(self) -> usize {
        match self {
            Shape::Flat(rows) => rows,
            Shape::Lists(ends) => ends.len() - 1,
        }
    }

    /// Where the values of a row begin, or where the last ends.
    fn start(self, row: usize) -> usize {
        match self {
            Shape::Flat(_) => row,
            Shape::Lists(ends) => ends[row] as usize,
        }
    }
}

/// The values of a column, one row after another.
#[derive(Clone, Copy, Debug)]
pub enum Values<'r> {
    /// Ids of tokens.
    Ids(&'r [u32]),
    /// Ids of tokens where they are to be learnt, in ascending stretches; [`IGNORED`] elsewhere.
    Labels { ids: &'r [u32], targets: &'r [Range<u32>], repeats: Repeats },
    /// Lengths, places and counts.
    Numbers(&'r [u32]),
    /// Numbers of rows; the only values of which shards give the least and the greatest.
    Rows(&'r [u64]),
    /// Some of these names.
    Names { names: &'r [String], keys: &'r [u32] },
    /// 1 in these ascending stretches, 0 elsewhere.
    Mask(&'r [Range<u32>]),
    /// 1 throughout.
    Ones,
}

/// Whether prompts of a row lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    Many,
    Few,
}

/// Makes column chunks; keeps its buffers from one to the next.
pub struct PageEncoder {
    zstd: zstd::bulk::Compressor<'static>,
    page: Vec<u8>,
    compressed: Vec<u8>,
    dictionary: Dictionary,
    /// Numbers of the dictionary that are not yet in the page.
    open: Vec<u32>,
    chunk: Vec<u8>,
}

/// Numbers for what occurs in a column, as it comes.
#[derive(Default)]
struct Dictionary {
    /// By what occurs, one more than its number; 0 if it has none.
    numbers: Vec<u32>,
    /// By number.
    members: Vec<u32>,
}

impl Dictionary {
    fn begin(&mut self) {
        for member in self.members.drain(..) {
            self.numbers[member as usize] = 0;
        }
    }

    fn number(&mut self, occur: &[u32]) {
        let most = occur.iter().fold(0, |most, &member| most.max(member as usize));
        if self.numbers.len() <= most {
            self.numbers.resize(most + 1, 0);
        }
        for &member in occur {
            let number = &mut self.numbers[member as usize];
            if *number == 0 {
                self.members.push(member);
                *number = self.members.len() as u32;
            }
        }
    }
}

/// Bits that numbers up to this one take in a page; at least one.
fn width(greatest: usize) -> u32 {
    greatest.checked_ilog2().map_or(1, |log| log + 1)
}

/// A column chunk and its description, as [`parquet::file::writer::SerializedRowGroupWriter::append_column`] takes them.
pub struct Chunk {
    pub bytes: Bytes,
    pub close: ColumnCloseResult,
}

impl Default for PageEncoder {
    fn default() -> PageEncoder {
        let zstd = zstd::bulk::Compressor::new(0).and_then(|mut zstd| {
            FAST.into_iter().try_for_each(|parameter| zstd.set_parameter(parameter)).map(|()| zstd)
        });
        let zstd = zstd.expect("zstd has these parameters, and there is memory for its tables");
        PageEncoder {
            zstd,
            page: Vec::new(),
            compressed: Vec::new(),
            dictionary: Dictionary::default(),
            open: Vec::new(),
            chunk: Vec::new(),
        }
    }
}

impl PageEncoder {
    /// Encodes a column.
    pub fn encode(&mut self, column: Column<'_>, described: ColumnDescPtr) -> Result<Chunk> {
        let Column { shape, values } = column;
        let rows = shape.rows();
        let mut sink = TrackedWrite::new(std::mem::take(&mut self.chunk));
        let mut index = OffsetIndexBuilder::new();
        let mut encodings = match shape {
            Shape::Flat(_) => Vec::new(),
            Shape::Lists(_) => vec![Encoding::RLE], // of levels
        };
        let (mut uncompressed, mut written) = (0, 0);
        let mut data = 0;
        if let Some(num_values) = self.dictionary_page(values) {
            let page =
                Page::DictionaryPage { buf: self.compress()?, num_values, encoding: Encoding::PLAIN, is_sorted: false };
            let spec = SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, self.page.len()))?;
            uncompressed += spec.uncompressed_size as i64;
            encodings.push(Encoding::PLAIN);
            data = sink.bytes_written() as i64;
        }
        let mut row = 0;
        while row < rows {
            let first = row;
            while row < rows && (row == first || shape.start(row + 1) - shape.start(first) <= PAGE_VALUES) {
                row += 1;
            }
            let range = shape.start(first)..shape.start(row);
            self.page.clear();
            let entries = match shape {
                Shape::Flat(_) => range.len(),
                Shape::Lists(ends) => self.levels(&ends[first..=row]),
            };
            let encoding = self.values(values, range);
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
        self.chunk = sink.into_inner()?;
        let bytes = Bytes::copy_from_slice(&self.chunk);
        self.chunk.clear();
        let mut description = ColumnChunkMetaData::builder(described);
        if let Values::Rows(rows) = values {
            let (least, greatest) = (rows.iter().min(), rows.iter().max());
            // Parquet has no type for them; they count as unsigned by the column's logical type.
            let [least, greatest] = [least, greatest].map(|row| row.map(|&row| row as i64));
            description = description.set_statistics(Statistics::int64(least, greatest, None, Some(0), false));
        }
        let metadata = description
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_encodings(encodings)
            .set_num_values(written)
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(uncompressed)
            .set_dictionary_page_offset((data > 0).then_some(0))
            .set_data_page_offset(data)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(index.build()),
        };
        Ok(Chunk { bytes, close })
    }

    /// The page, compressed.
    fn compress(&mut self) -> Result<Bytes> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(self.page.len()));
        let compress = self.zstd.compress_to_buffer(&self.page, &mut self.compressed);
        compress.map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(Bytes::copy_from_slice(&self.compressed))
    }

    /// Fills the page with a dictionary, if the values are to be written by its numbers; gives how many there are.
    fn dictionary_page(&mut self, values: Values<'_>) -> Option<u32> {
        let PageEncoder { page, dictionary, .. } = self;
        match values {
            Values::Labels { ids, targets, repeats: Repeats::Few } => {
                dictionary.begin();
                targets.iter().for_each(|t| dictionary.number(&ids[t.start as usize..t.end as usize]));
                page.clear();
                page.extend(IGNORED.to_le_bytes());
                page.extend(dictionary.members.iter().flat_map(|id| id.to_le_bytes()));
                Some(dictionary.members.len() as u32 + 1)
            }
            Values::Names { names, keys } => {
                dictionary.begin();
                dictionary.number(keys);
                page.clear();
                for name in dictionary.members.iter().map(|&key| &names[key as usize]) {
                    page.extend((name.len() as u32).to_le_bytes());
                    page.extend(name.as_bytes());
                }
                Some(dictionary.members.len() as u32)
            }
            _ => None,
        }
    }

    /// Adds the levels of lists to a page; gives the number of entries: values, and a place for each empty list.
    fn levels(&mut self, offsets: &[u32]) -> usize {
        let lengths = || offsets.windows(2).map(|w| (w[1] - w[0]) as usize);
        let page = &mut self.page;
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

    /// Ends a page with the values in `range`.
    fn values(&mut self, values: Values<'_>, range: Range<usize>) -> Encoding {
        let PageEncoder { page, open, dictionary, .. } = self;
        let count = range.len();
        match values {
            Values::Ids(numbers) | Values::Numbers(numbers) => {
                planes(page, &numbers[range], |number| number.to_le_bytes());
                Encoding::BYTE_STREAM_SPLIT
            }
            Values::Rows(rows) => {
                planes(page, &rows[range], |row| row.to_le_bytes());
                Encoding::BYTE_STREAM_SPLIT
            }
            Values::Names { keys, .. } => {
                let width = width(dictionary.members.len().saturating_sub(1));
                page.push(width as u8);
                open.clear();
                for run in keys[range].chunk_by(|a, b| a == b) {
                    repeated(page, open, dictionary.numbers[run[0] as usize] - 1, run.len(), width);
                }
                packed(page, open, width);
                Encoding::RLE_DICTIONARY
            }
            // IGNORED has the number 0.
            Values::Labels { ids, targets, repeats: Repeats::Few } => {
                let width = width(dictionary.members.len());
                page.push(width as u8);
                open.clear();
                let mut at = range.start;
                for target in within(targets, &range) {
                    repeated(page, open, 0, target.start - at, width);
                    open.extend(ids[target.clone()].iter().map(|&id| dictionary.numbers[id as usize]));
                    at = target.end;
                }
                repeated(page, open, 0, range.end - at, width);
                packed(page, open, width);
                Encoding::RLE_DICTIONARY
            }
            Values::Labels { ids, targets, repeats: Repeats::Many } => {
                let labels = grown(page, count);
                labels.fill(IGNORED.to_le_bytes());
                for target in within(targets, &range) {
                    let labels = &mut labels[target.start - range.start..target.end - range.start];
                    labels.iter_mut().zip(&ids[target]).for_each(|(label, id)| *label = id.to_le_bytes());
                }
                Encoding::PLAIN
            }
            Values::Mask(ones) => {
                let mask = grown(page, count);
                for one in within(ones, &range) {
                    mask[one.start - range.start..one.end - range.start].fill(1i32.to_le_bytes());
                }
                Encoding::PLAIN
            }
            Values::Ones => {
                constant(page, 1, count);
                Encoding::DELTA_BINARY_PACKED
            }
        }
    }
}

/// Adds numbers by their bytes: the lowest of all, then the second of all, and so on.
fn planes<T: Copy, const N: usize>(page: &mut Vec<u8>, numbers: &[T], bytes: impl Fn(T) -> [u8; N]) {
    for plane in 0..N {
        page.extend(numbers.iter().map(|&number| bytes(number)[plane]));
    }
}

/// Room for so many values more, 0 as yet.
fn grown(page: &mut Vec<u8>, count: usize) -> &mut [[u8; 4]] {
    let start = page.len();
    page.resize(start + 4 * count, 0);
    page[start..].as_chunks_mut().0
}

/// The stretches in `range`, which is of whole lists: none crosses its ends.
fn within<'s>(stretches: &'s [Range<u32>], range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<'s> {
    let first = stretches.partition_point(|stretch| (stretch.end as usize) <= range.start);
    let end = range.end;
    stretches[first..].iter().map(|s| s.start as usize..s.end as usize).take_while(move |s| s.start < end)
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

/// `count` times a number: what the open group of eight lacks goes there, the rest is a run if it is long enough.
fn repeated(page: &mut Vec<u8>, open: &mut Vec<u32>, number: u32, count: usize, width: u32) {
    let group = open.len().next_multiple_of(8) - open.len();
    let rest = count.saturating_sub(group);
    if rest < 8 {
        open.resize(open.len() + count, number);
        return;
    }
    open.resize(open.len() + group, number);
    packed(page, open, width);
    varint(page, (rest as u64) << 1);
    page.extend(&number.to_le_bytes()[..width.div_ceil(8) as usize]);
}

/// The open numbers, `width` bits each, in groups of eight.
fn packed(page: &mut Vec<u8>, open: &mut Vec<u32>, width: u32) {
    if open.is_empty() {
        return;
    }
    open.resize(open.len().next_multiple_of(8), 0);
    varint(page, (open.len() as u64 / 8) << 1 | 1);
    let (mut bits, mut held) = (0u64, 0);
    for number in open.drain(..) {
        bits |= u64::from(number) << held;
        held += width;
        if held >= 32 {
            page.extend((bits as u32).to_le_bytes());
            bits >>= 32;
            held -= 32;
        }
    }
    page.extend(&bits.to_le_bytes()[..held as usize / 8]); // eight numbers end with a byte
}

/// `count` times one value, as deltas of 0: blocks of 128, in four parts of no bits each.
fn constant(page: &mut Vec<u8>, value: u8, count: usize) {
    const BLOCK: usize = 128;
    const PARTS: usize = 4;
    varint(page, BLOCK as u64);
    varint(page, PARTS as u64);
    varint(page, count as u64);
    varint(page, 2 * u64::from(value)); // zigzag: twice a number that is not negative
    for _ in 0..count.saturating_sub(1).div_ceil(BLOCK) {
        varint(page, 0);
        page.extend([0; PARTS]);
    }
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
    use proptest::prelude::*;

    use super::super::columns::{lists_of, schema};
    use super::super::reader::{IdPages, lists_i8, lists_i32, open};
    use super::super::writer::ShardWriter;
    use super::*;
    use arrow::datatypes::DataType;

    /// A list, and which of its values are targets.
    type List = (Vec<u32>, Range<usize>);

    /// What is read back from a shard with these lists in each kind of column.
    fn check(test: &str, groups: &[Vec<List>]) {
        let directory = std::env::temp_dir().join(format!("flanc-pages-{test}-{}", std::process::id()));
        let (ids, mask) = (lists_of(DataType::Int32), lists_of(DataType::Int8));
        let schema = schema(&[
            ("input_ids", ids.clone()),
            ("labels", ids.clone()),
            ("numbered", ids.clone()),
            ("seq_lengths", ids),
            ("loss_mask", mask.clone()),
            ("attention_mask", mask),
        ]);
        let (mut writer, encoder) = ShardWriter::create(&directory, "a.parquet", schema, &[]).unwrap();
        let mut pages = PageEncoder::default();
        for lists in groups {
            let (mut ids, mut offsets, mut targets) = (Vec::new(), vec![0], Vec::new());
            for (list, of_list) in lists {
                let start = ids.len();
                targets.push((start + of_list.start) as u32..(start + of_list.end) as u32);
                ids.extend(list);
                offsets.push(ids.len() as u32);
            }
            let column = |values| Column { shape: Shape::Lists(&offsets), values };
            let columns = [
                column(Values::Ids(&ids)),
                column(Values::Labels { ids: &ids, targets: &targets, repeats: Repeats::Many }),
                column(Values::Labels { ids: &ids, targets: &targets, repeats: Repeats::Few }),
                column(Values::Numbers(&ids)),
                column(Values::Mask(&targets)),
                column(Values::Ones),
            ];
            writer.write(encoder.pages(&columns, &mut pages).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let wanted: Vec<List> = groups.concat();
        let all = |value: &dyn Fn(&List, usize) -> i32| -> Vec<Vec<i32>> {
            wanted.iter().map(|list| (0..list.0.len()).map(|i| value(list, i)).collect()).collect()
        };
        for (name, narrow, wanted) in [
            ("input_ids", false, all(&|list, i| list.0[i] as i32)),
            ("labels", false, all(&|list, i| if list.1.contains(&i) { list.0[i] as i32 } else { IGNORED })),
            ("numbered", false, all(&|list, i| if list.1.contains(&i) { list.0[i] as i32 } else { IGNORED })),
            ("seq_lengths", false, all(&|list, i| list.0[i] as i32)),
            ("loss_mask", true, all(&|list, i| i32::from(list.1.contains(&i)))),
            ("attention_mask", true, all(&|_, _| 1)),
        ] {
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
            assert!(found == wanted, "{name}");
        }
        if wanted.iter().all(|(list, _)| !list.is_empty()) {
            let mut pages = IdPages::open(&directory, "a.parquet", "input_ids").unwrap();
            let (mut page, mut found) = (Vec::new(), Vec::new());
            loop {
                pages.next_page(&mut page).unwrap();
                if page.is_empty() {
                    break;
                }
                found.extend_from_slice(&page);
            }
            assert!(found == wanted.into_iter().flat_map(|(list, _)| list).collect::<Vec<u32>>());
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn rows_longer_than_a_page_and_targets_anywhere() {
        let long = |n: usize| (0..n as u32).collect::<Vec<u32>>();
        check(
            "long",
            &[vec![
                (long(PAGE_VALUES + 3), 0..0),
                (long(PAGE_VALUES + 9), 5..PAGE_VALUES + 9),
                (long(PAGE_VALUES), 0..PAGE_VALUES),
                (vec![7], 0..1),
            ]],
        );
        check("targets", &[(1..60).map(|n| (long(n), n / 3..n - n / 4)).collect()]);
        check(
            "extremes",
            &[vec![(vec![1; 5], 2..5); 300], vec![(vec![i32::MAX as u32, 0, 1 << 21], 0..2)], vec![(vec![], 0..0); 9]],
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(
            groups in prop::collection::vec(
                prop::collection::vec(
                    (prop::collection::vec(0..70_000u32, 0..90), any::<(prop::sample::Index, prop::sample::Index)>()).prop_map(
                        |(list, (from, length))| {
                            let from = from.index(list.len() + 1);
                            let length = length.index(list.len() - from + 1);
                            (list, from..from + length)
                        },
                    ),
                    1..30,
                ),
                1..4,
            )
        ) {
            check("property", &groups);
        }
    }
}
