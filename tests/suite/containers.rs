//! ArrayRecord and Parquet: what real writers wrote is read whole, and whatever else is in a file, reading it ends
//! soon, in the right records or in a report.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flanc::diag::{Diagnostic, Severity};
use flanc::ingest::array_record::{ArrayRecordFile, CHUNK_LIMIT};
use flanc::ingest::parquet::{PAGE_LIMIT, ParquetFile, rows_kept_by_tfds};
use flanc::ingest::record::{Damage, Record};
use highway::{HighwayHash, HighwayHasher, Key};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

// ---- Reading, and what is checked of every reading -----------------------------------------------------------------

/// What came out of a file: payloads by index, and reports.
#[derive(Debug)]
struct Outcome {
    records: u64,
    rows: Vec<(u64, Vec<u8>)>,
    damage: Vec<Damage>,
}

impl Outcome {
    fn payloads(&self) -> Vec<&[u8]> {
        self.rows.iter().map(|(_, payload)| payload.as_slice()).collect()
    }
}

type Reader = fn(&[u8], Range<u64>) -> Result<Outcome, Box<Diagnostic>>;

fn array_record(bytes: &[u8], range: Range<u64>) -> Result<Outcome, Box<Diagnostic>> {
    let file = ArrayRecordFile::open(Path::new("test.array_record"), bytes)?;
    collect(file.records(), range.clone(), |visit, damaged| file.visit(range, &|_| true, visit, damaged))
}

fn parquet_file(bytes: &[u8], range: Range<u64>) -> Result<Outcome, Box<Diagnostic>> {
    let file = ParquetFile::open(Path::new("test.parquet"), bytes.to_vec())?;
    collect(file.records(), range.clone(), |visit, damaged| file.visit(range, &|_| true, visit, damaged))
}

type Visit<'v> = &'v mut dyn FnMut(Record<'_>) -> flanc::diag::Result<()>;
type Damaged<'v> = &'v mut dyn FnMut(Damage) -> flanc::diag::Result<()>;

/// Each record of the range is visited or reported, once, and each of the two in order.
fn collect(
    records: u64,
    range: Range<u64>,
    read: impl FnOnce(Visit, Damaged) -> flanc::diag::Result<()>,
) -> Result<Outcome, Box<Diagnostic>> {
    let (mut rows, mut damage) = (Vec::new(), Vec::<Damage>::new());
    let mut visit = |record: Record<'_>| {
        rows.push((record.index, record.payload.to_vec()));
        Ok(())
    };
    let mut report = |d| {
        damage.push(d);
        Ok(())
    };
    read(&mut visit, &mut report)?;
    let range = range.start.min(records)..range.end.min(records);
    assert!(rows.is_sorted_by(|a, b| a.0 < b.0) && damage.is_sorted_by(|a, b| a.records.end <= b.records.start));
    assert!(rows.iter().all(|(index, _)| range.contains(index) && !damage.iter().any(|d| d.records.contains(index))));
    let lost: u64 = damage.iter().map(|d| d.records.end - d.records.start).sum();
    assert_eq!(rows.len() as u64 + lost, range.end - range.start, "{damage:?}");
    Ok(Outcome { records, rows, damage })
}

/// A changed file gives the same records, or reports what is missing; it never gives another record.
fn check_detected(read: Reader, bytes: &[u8], rows: &[Vec<u8>], what: &str) {
    let Ok(outcome) = read(bytes, 0..u64::MAX) else { return };
    assert_eq!(outcome.records, rows.len() as u64, "{what}: the file was read with another number of records");
    for (index, payload) in &outcome.rows {
        assert_eq!(payload, &rows[*index as usize], "{what}: record {index} is another one");
    }
}

/// A changed file is read to an end; the records may be wrong where the format has no checksums.
fn check_ends(read: Reader, bytes: &[u8]) {
    let _ = read(bytes, 0..u64::MAX);
    let _ = read(bytes, 1..2);
}

fn each_bit(bytes: &[u8], places: impl IntoIterator<Item = usize>, mut check: impl FnMut(&[u8], &str)) {
    let mut changed = bytes.to_vec();
    for place in places {
        for bit in 0..8 {
            changed[place] ^= 1 << bit;
            check(&changed, &format!("byte {place} bit {bit}"));
            changed[place] ^= 1 << bit;
        }
    }
}

const HOSTILE: [u64; 8] = [0, 1, 1 << 31, (1 << 32) - 1, 1 << 56, 1 << 62, 1 << 63, u64::MAX];

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ingest").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

// ---- ArrayRecord ---------------------------------------------------------------------------------------------------

/// Row `i` of the ArrayRecord fixtures, which array_record 0.8.6 wrote: an empty one and one larger than a block.
fn fixture_row(i: usize) -> Vec<u8> {
    match i {
        7 => Vec::new(),
        11 => b"0123456789".repeat(7000),
        _ => format!("row {i} ").repeat(i + 1).into_bytes(),
    }
}

#[test]
fn array_record_of_its_own_writer() {
    let rows: Vec<Vec<u8>> = (0..20).map(fixture_row).collect();
    for name in ["zstd", "none", "brotli", "snappy", "padded"] {
        let bytes = fixture(&format!("array_record_{name}.gz"));
        let outcome = array_record(&bytes, 0..u64::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(outcome.damage.is_empty(), "{name}: {}", outcome.damage[0].diagnostic);
        assert_eq!(outcome.payloads(), rows, "{name}");
        for start in 0..21 {
            for end in start..22 {
                let part = array_record(&bytes, start as u64..end as u64).unwrap();
                assert_eq!(part.payloads(), rows[start.min(20)..end.min(20)], "{name} {start}..{end}");
            }
        }
    }
    assert_eq!(array_record(&fixture("array_record_empty.gz"), 0..1).unwrap().records, 0);
    let refusal = array_record(&fixture("array_record_transposed.gz"), 0..1).unwrap_err();
    assert_eq!(refusal.code, "array-record-transposed", "{refusal}");
}

#[test]
fn array_record_of_the_test_writer() {
    let google = fixture("array_record_none.gz");
    let rows: Vec<Vec<u8>> = (0..20).map(fixture_row).collect();
    let mut writer = Writer::new();
    for group in rows.chunks(4) {
        writer.records(b'\0', group);
    }
    // The footers differ: google's also holds the writer's options.
    let ours = writer.finish();
    let data = 64 + rows.iter().map(Vec::len).sum::<usize>();
    assert_eq!(ours[..data], google[..data]);
    assert_eq!(array_record(&ours, 0..u64::MAX).unwrap().payloads(), rows);
}

/// Three chunks, four records, the first 64 KiB block not left; and the places of the bytes that carry meaning.
fn small_array_record() -> (Vec<u8>, Vec<Vec<u8>>, Vec<usize>) {
    let rows: Vec<Vec<u8>> = ["a", "bb and more", "", "dddd"].map(|r| r.repeat(5).into_bytes()).to_vec();
    let mut writer = Writer::new();
    writer.records(b'\0', &rows[..1]);
    writer.records(b'z', &rows[1..3]);
    writer.records(b'z', &rows[3..]);
    let bytes = writer.finish();
    let end_of = |block: usize| block + bytes[block..block + 65536].iter().rposition(|&b| b != 0).unwrap() + 1;
    let meaningful = (0..end_of(0)).chain(65536..end_of(65536)).collect();
    (bytes, rows, meaningful)
}

#[test]
fn array_record_bit_flips() {
    let (bytes, rows, meaningful) = small_array_record();
    let (mut flips, mut unseen) = (0, Vec::new());
    each_bit(&bytes, meaningful, |changed, what| {
        check_detected(array_record, changed, &rows, what);
        flips += 1;
        if array_record(changed, 0..u64::MAX).is_ok_and(|o| o.damage.is_empty()) {
            unseen.push(what.split(' ').nth(1).unwrap().parse::<usize>().unwrap());
        }
    });
    assert!(flips > 3000);
    // Nobody reads the padding chunks and the header of the last block: flips there are the only ones not reported.
    let padding = bytes[..65536].iter().rposition(|&b| b != 0).unwrap() - 39..65536;
    let last_block_header = 65536..65536 + 24;
    let last_padding = last_block_header.end + chunk_bytes(&bytes, last_block_header.end, 0)..bytes.len();
    let unread = [padding, last_block_header, last_padding];
    assert!(unseen.iter().all(|at| unread.iter().any(|range| range.contains(at))), "{unseen:?}");
}

#[test]
fn array_record_damage_stays_local() {
    let rows: Vec<Vec<u8>> = (0..100).map(|i| format!("{i} ").repeat(1000).into_bytes()).collect();
    let mut writer = Writer::new();
    let offsets: Vec<usize> = rows.chunks(2).map(|pair| writer.records(b'\0', pair)).collect();
    let bytes = writer.finish();

    // A flip in the data of a chunk costs its records.
    let mut changed = bytes.clone();
    changed[offsets[10] + 60] ^= 1;
    let outcome = array_record(&changed, 0..100).unwrap();
    assert_eq!(outcome.rows.len(), 98);
    assert_eq!(outcome.damage[0].records, 20..22);
    let text = outcome.damage[0].diagnostic.to_string();
    assert!(text.contains("--> test.array_record, record 20, byte ") && text.contains("2 records are lost"), "{text}");
    assert_eq!(array_record(&changed, 21..30).unwrap().damage[0].records, 21..22);

    // A flip in a block header costs nothing, and is a warning of the one chunk it stands in.
    let mut changed = bytes.clone();
    changed[65536 + 9] ^= 1;
    let outcome = array_record(&changed, 0..100).unwrap();
    assert_eq!(outcome.payloads(), rows);
    let [warning] = &outcome.damage[..] else { panic!("{:?}", outcome.damage) };
    assert_eq!((warning.diagnostic.severity, warning.records.is_empty()), (Severity::Warning, true));
}

#[test]
fn array_record_truncations() {
    let (bytes, rows, meaningful) = small_array_record();
    let around = meaningful.iter().copied().filter(|at| !(2000..=65536).contains(at));
    for length in (0..bytes.len()).step_by(64).chain(around).chain([65535, 65536, 65537, bytes.len() - 1]) {
        let error = array_record(&bytes[..length], 0..u64::MAX).expect_err("a cut file has no index");
        assert!(matches!(error.code, "not-array-record" | "array-record-incomplete"), "{error}");
    }
    // Cut at a block and padded: as long as a whole file, but without its postscript.
    let mut cut = bytes.clone();
    cut[65536..].fill(0);
    check_detected(array_record, &cut, &rows, "no postscript");
}

#[test]
fn array_record_hostile_lengths() {
    let (bytes, rows, _) = small_array_record();
    // Headers of two chunks, of the footer and of the postscript, with a hash that is right.
    let footer = 64 + [0, 1, 2].map(|i| chunk_bytes(&bytes, 64, i)).iter().sum::<usize>();
    let chunks = [64, 64 + chunk_bytes(&bytes, 64, 0), footer, 65536 + 24];
    for chunk in chunks {
        for word in [1, 2, 3, 4] {
            for value in HOSTILE {
                let mut changed = bytes.clone();
                let kind = u64::from(changed[chunk + 24]);
                let value = if word == 3 { value << 8 | kind } else { value };
                changed[chunk + 8 * word..chunk + 8 * word + 8].copy_from_slice(&value.to_le_bytes());
                let hash = hash(&changed[chunk + 8..chunk + 40]);
                changed[chunk..chunk + 8].copy_from_slice(&hash.to_le_bytes());
                check_detected(array_record, &changed, &rows, &format!("chunk {chunk} word {word} = {value}"));
            }
        }
    }
    // Lengths within the data of a chunk, its hash right: of the sizes, of a compressed part, of a record.
    for value in HOSTILE {
        for data in [
            [&b"\0"[..], &varint(value), b"\x01x"].concat(),
            [&b"\0\x01"[..], &varint(value), b"x"].concat(),
            [&b"z\x04"[..], &varint(value), b"\x01x"].concat(),
            [&b"b\x04"[..], &varint(value), b"\x01x"].concat(),
            [&b"s\x04"[..], &varint(value), b"\x01x"].concat(),
            [&b"s"[..], &varint(value), &varint(value), b"x"].concat(),
        ] {
            for records in [1, 2] {
                let mut writer = Writer::new();
                writer.chunk(b'r', records, 1, &data);
                writer.entries.push((64, 1, records));
                check_ends(array_record, &writer.finish());
            }
        }
        for entry in [(value, 1, 1), (64, value, 1), (64, 1, value)] {
            let mut writer = Writer::new();
            writer.records(b'\0', &[b"row".to_vec()]);
            writer.entries[0] = entry;
            check_ends(array_record, &writer.finish());
        }
        let mut writer = Writer::new();
        writer.records(b'\0', &[b"row".to_vec()]);
        writer.footer_offset = Some(value);
        check_ends(array_record, &writer.finish());
    }
}

/// Files whose hashes are right and whose parts contradict each other.
#[test]
fn array_record_contradictions() {
    let check = |lie: &dyn Fn(&mut Writer), code: &str, found: &str| {
        let mut writer = Writer::new();
        writer.records(b'\0', &[b"one".to_vec()]);
        writer.records(b'\0', &[b"two".to_vec(), b"three".to_vec()]);
        lie(&mut writer);
        let diagnostic = match array_record(&writer.finish(), 0..u64::MAX) {
            Ok(outcome) => outcome.damage[0].diagnostic.clone(),
            Err(refusal) => *refusal,
        };
        assert_eq!(diagnostic.code, code, "{diagnostic}");
        assert!(diagnostic.to_string().contains(found), "{found}: {diagnostic}");
    };
    check(&|w| w.entries[0].2 = 2, "damaged-chunk", "1 in the chunk header");
    check(&|w| w.entries[1].2 = 1, "damaged-chunk", "2 in the chunk header");
    check(&|w| w.entries[1].2 = 1000, "array-record-index", "chunk 1 with 1000 records in 52 bytes");
    check(&|w| w.entries[1].0 = 70, "array-record-index", "chunk 1 at byte 70, outside of 104..");
    check(&|w| w.entries.swap(0, 1), "array-record-index", "chunk 1 at byte 64, outside of 150..");
    check(&|w| w.entries[0].0 = 0, "array-record-index", "chunk 0 at byte 0, outside of 64..");
    check(&|w| w.total = Some(4), "array-record-index", "3 records in the entries, 4 in the metadata");
    check(&|w| w.footer_offset = Some(65536), "array-record-incomplete", "footer at byte 65536, outside of 64..65536");
    check(&|w| w.footer_offset = Some(0), "array-record-incomplete", "footer at byte 0, outside of 64..65536");
    check(&|w| w.footer_offset = Some(64), "array-record-index", "metadata that are not a message");
    for (data, found) in [
        (&b""[..], "no data"),
        (b"\0", "record sizes that reach beyond"),
        (b"\0\x03\x01x", "record sizes that reach beyond"),
        (b"\0\x00x", "fewer record sizes"),
        (b"\0\x02\x01\x00x", "do not add up"),
        (b"\0\x01\x02x", "do not add up"),
        (b"\0\x01\x01xx", "2 bytes of records, 1 declared"),
        (b"q\x02\x01\x01x", "compression `q`"),
        (b"z\0", "without its length"),
    ] {
        let lie = |writer: &mut Writer| {
            let offset = writer.chunk(b'r', 1, 1, data) as u64;
            writer.entries = vec![(offset, 1, 1)];
        };
        check(&lie, "misformed-chunk", found);
    }
}

#[test]
fn array_record_bombs() {
    let bomb = vec![0; CHUNK_LIMIT + 1]; // some kilobytes, once compressed
    let zstd: fn(&[u8]) -> Vec<u8> = |bytes| zstd::bulk::compress(bytes, 1).unwrap();
    let brotli: fn(&[u8]) -> Vec<u8> = |bytes| {
        let mut stream = Vec::new();
        brotli::CompressorReader::new(bytes, 1 << 16, 1, 20).read_to_end(&mut stream).unwrap();
        stream
    };
    for (compression, compress) in [(b'z', zstd), (b'b', brotli)] {
        for declared in [1, 1 << 20, CHUNK_LIMIT as u64, CHUNK_LIMIT as u64 + 1] {
            let sizes = varint(declared);
            let sizes = [varint(sizes.len() as u64), compress(&sizes)].concat();
            let data = [&[compression][..], &varint(sizes.len() as u64), &sizes, &varint(declared), &compress(&bomb)];
            let mut writer = Writer::new();
            writer.chunk(b'r', 1, declared, &data.concat());
            writer.entries.push((64, declared, 1));
            let outcome = array_record(&writer.finish(), 0..1).unwrap();
            let report = outcome.damage[0].diagnostic.to_string();
            let reason = if declared > CHUNK_LIMIT as u64 { "chunk-too-large" } else { "part that does not decode" };
            assert!(report.contains(reason), "{declared} bytes declared: {report}");
        }
    }
}

/// Bytes of the `n`th chunk from `offset`, in a file whose chunks stay within a block.
fn chunk_bytes(bytes: &[u8], mut offset: usize, n: usize) -> usize {
    let length = |offset: usize| 40 + u64::from_le_bytes(bytes[offset + 8..offset + 16].try_into().unwrap()) as usize;
    (0..n).for_each(|_| offset += length(offset));
    length(offset)
}

/// The least of a writer: simple chunks, real hashes and block headers, footer and postscript.
struct Writer {
    bytes: Vec<u8>,
    /// Offset, decoded bytes and number of records of each chunk.
    entries: Vec<(u64, u64, u64)>,
    /// Written to the footer and to the postscript in place of the truth.
    total: Option<u64>,
    footer_offset: Option<u64>,
}

impl Writer {
    fn new() -> Self {
        let mut writer = Writer { bytes: Vec::new(), entries: Vec::new(), total: None, footer_offset: None };
        writer.chunk(b's', 0, 0, &[]);
        writer
    }

    /// A chunk of records and its entry; returns its offset.
    fn records(&mut self, compression: u8, records: &[Vec<u8>]) -> usize {
        let offset = self.simple_chunk(compression, records);
        let decoded = records.iter().map(|r| r.len() as u64).sum();
        self.entries.push((offset as u64, decoded, records.len() as u64));
        offset
    }

    fn simple_chunk(&mut self, compression: u8, records: &[Vec<u8>]) -> usize {
        let part = |bytes: Vec<u8>| match compression {
            b'z' => [varint(bytes.len() as u64), zstd::bulk::compress(&bytes, 3).unwrap()].concat(),
            _ => bytes,
        };
        let sizes = part(records.iter().flat_map(|r| varint(r.len() as u64)).collect());
        let values = records.concat();
        let decoded = values.len() as u64;
        let data = [&[compression][..], &varint(sizes.len() as u64), &sizes, &part(values)].concat();
        self.chunk(b'r', records.len() as u64, decoded, &data)
    }

    /// Any chunk; returns its offset.
    fn chunk(&mut self, kind: u8, records: u64, decoded: u64, data: &[u8]) -> usize {
        let words = [data.len() as u64, hash(data), records << 8 | u64::from(kind), decoded];
        let header: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let content = [&hash(&header).to_le_bytes()[..], &header, data].concat();
        let begin = self.bytes.len();
        let mut end = begin;
        for _ in 0..content.len() {
            end += if end.is_multiple_of(65536) { 25 } else { 1 };
        }
        let least = begin + records.min(1 << 20) as usize; // a lie about the number need not be paid for
        if !(1..25).contains(&(least % 65536)) {
            end = end.max(least);
        }
        let mut content = content.into_iter();
        while self.bytes.len() < end {
            let at = self.bytes.len();
            if at.is_multiple_of(65536) {
                let header = [(at - begin) as u64, (end - at) as u64].map(u64::to_le_bytes).concat();
                self.bytes.extend(hash(&header).to_le_bytes());
                self.bytes.extend(header);
            }
            self.bytes.push(content.next().unwrap_or(0));
        }
        begin
    }

    fn finish(mut self) -> Vec<u8> {
        let message = |numbers: &[u64]| -> Vec<u8> {
            (1u8..).zip(numbers).flat_map(|(field, &n)| [vec![field << 3], varint(n)].concat()).collect()
        };
        let total = self.entries.iter().fold(0u64, |sum, e| sum.wrapping_add(e.2));
        let metadata = message(&[1, self.entries.len() as u64, self.total.unwrap_or(total)]);
        let mut footer = vec![[&b"\x0a"[..], &varint(metadata.len() as u64), &metadata].concat()];
        footer.extend(self.entries.iter().map(|e| message(&[e.0, e.1, e.2])));
        let offset = self.simple_chunk(b'z', &footer) as u64;
        self.pad();
        let postscript = message(&[self.footer_offset.unwrap_or(offset), 0x71930e704fdae05e]);
        self.simple_chunk(b'\0', &vec![postscript; 3]);
        self.pad();
        self.bytes
    }

    fn pad(&mut self) {
        let room = 65536 - self.bytes.len() % 65536;
        self.chunk(b'p', 0, 0, &vec![0; room - 40]);
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let (a, b) = (u64::from_le_bytes(*b"Riegeli/"), u64::from_le_bytes(*b"records\n"));
    HighwayHasher::new(Key([a, b, a, b])).hash64(bytes)
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

// ---- Parquet -------------------------------------------------------------------------------------------------------

#[test]
fn parquet_of_its_own_writer() {
    let rows: Vec<Vec<u8>> = (0..130).map(|i| format!("row {i} ").repeat(3).into_bytes()).collect();
    let bytes = fixture("parquet_tfds");
    let outcome = parquet_file(&bytes, 0..u64::MAX).unwrap();
    assert!(outcome.damage.is_empty());
    assert_eq!(outcome.payloads(), rows);
    for (start, end) in [(0, 1), (99, 101), (100, 130), (129, 200), (130, 131), (50, 50)] {
        let part = parquet_file(&bytes, start as u64..end as u64).unwrap();
        assert_eq!(part.payloads(), rows[start.min(130)..end.min(130)]);
    }
}

#[test]
fn parquet_nulls_are_reported() {
    let outcome = parquet_file(&fixture("parquet_nulls"), 0..5).unwrap();
    assert_eq!(outcome.payloads(), [b"a", b"d"]);
    assert_eq!(outcome.damage.iter().map(|d| d.records.clone()).collect::<Vec<_>>(), [1..3, 4..5]);
}

#[test]
fn parquet_table_is_refused() {
    let refusal = parquet_file(&fixture("parquet_table"), 0..1).unwrap_err().to_string();
    assert!(refusal.starts_with("error[parquet-table]") && refusal.contains("`question/stem`"), "{refusal}");
}

#[test]
fn parquet_rows_lost_by_tfds() {
    // Seen in real exports: (rows of the shard, rows in the file).
    for (rows, kept) in [(0, 0), (1, 1), (100, 100), (101, 100), (500, 200), (4957, 900), (29000, 2300)] {
        assert_eq!(rows_kept_by_tfds(rows), kept);
    }
}

fn small_parquet(compression: Compression) -> (Vec<u8>, Vec<Vec<u8>>) {
    let rows: Vec<Vec<u8>> = (0..20).map(|i| format!("row {}", i % 7).into_bytes()).collect();
    let schema = parse_message_type("message schema { optional binary data; }").unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).unwrap();
    for group in rows.chunks(10) {
        let mut group_writer = writer.next_row_group().unwrap();
        let mut column = group_writer.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().map(|r| r.clone().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1; 10]), None).unwrap();
        column.close().unwrap();
        group_writer.close().unwrap();
    }
    (writer.into_inner().unwrap(), rows)
}

#[test]
fn parquet_changed_bytes_end_in_records_or_reports() {
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        let (bytes, rows) = small_parquet(compression);
        assert_eq!(parquet_file(&bytes, 0..u64::MAX).unwrap().payloads(), rows);
        each_bit(&bytes, 0..bytes.len(), |changed, _| check_ends(parquet_file, changed));
        for length in 0..bytes.len() {
            assert!(parquet_file(&bytes[..length], 0..1).is_err());
        }
        // Every byte becomes the beginning of a large varint, or of nothing.
        for at in 0..bytes.len() {
            for with in [&[0xff; 4][..], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x80; 9], &[0; 4]] {
                let mut changed = bytes.clone();
                let end = bytes.len().min(at + with.len());
                changed[at..end].copy_from_slice(&with[..end - at]);
                check_ends(parquet_file, &changed);
            }
        }
    }
}

#[test]
fn parquet_hostile_page_headers() {
    // PageHeader { 1: kind, 2: bytes, 3: stored bytes, 5 or 7: { 1: values, 2: encoding, 3, 4: levels } }
    let page = |kind: u64, bytes: u64, stored: u64, values: u64, field: u8, content: &[u8]| {
        let number = |n: u64| varint(n << 1);
        let (bytes, stored, values) = (number(bytes), number(stored), number(values));
        let head =
            [&b"\x15"[..], &number(kind), b"\x15", &bytes, b"\x15", &stored, &[field], b"\x15", &values].concat();
        [&head, &b"\x15\0\x15\x06\x15\x06\0\0"[..], content].concat()
    };
    let (bytes, _) = small_parquet(Compression::UNCOMPRESSED);
    let with = |pages: &[u8]| [&bytes[..4], pages, &bytes[4 + pages.len()..]].concat();
    for value in HOSTILE.into_iter().chain([10, 20, PAGE_LIMIT as u64, 1 << 20]) {
        for pages in [
            page(0, value, 10, 10, 0x2c, b"0123456789"),
            page(0, 10, value, 10, 0x2c, b"0123456789"),
            page(0, 10, 10, value, 0x2c, b"0123456789"),
            page(2, value, 8, 2, 0x4c, b"\0\0\0\0\0\0\0\0"),
            page(2, 8, 8, value, 0x4c, b"\0\0\0\0\0\0\0\0"),
            page(2, PAGE_LIMIT as u64, 8, value, 0x4c, b"\0\0\0\0\0\0\0\0"),
            page(3, 8, 8, value, 0x5c, b"\0\0\0\0\0\0\0\0"),
            page(1, 8, 8, value, 0x3c, b"\0\0\0\0\0\0\0\0"),
        ] {
            check_ends(parquet_file, &with(&pages));
        }
    }
    let two_dictionaries = page(2, 4, 4, 1, 0x4c, b"\0\0\0\0").repeat(2);
    for (pages, found) in [
        (page(0, 10, 10, 11, 0x2c, b"0123456789"), "at byte 4, a page of 11 rows, where 10 are left"),
        (page(0, (PAGE_LIMIT + 1) as u64, 10, 10, 0x2c, b""), "a page of 67108865 bytes, more than 67108864"),
        (page(0, 10, 1 << 20, 10, 0x2c, b""), "a page of 1048576 bytes, where"),
        (page(0, 11, 10, 10, 0x2c, b"0123456789"), "a page of another length than its header says"),
        (page(2, 8, 8, 3, 0x4c, b"01234567"), "a dictionary of 3 values in 8 bytes"),
        (page(3, 8, 8, 10, 0x5c, b"01234567"), "a data page of version 2"),
        (two_dictionaries, "at byte 25, a second dictionary"),
    ] {
        let outcome = parquet_file(&with(&pages), 0..20).unwrap();
        assert_eq!((outcome.rows.len(), outcome.damage[0].records.clone()), (10, 0..10));
        let report = outcome.damage[0].diagnostic.to_string();
        assert!(report.contains(found), "{found}: {report}");
    }
}

// ---- Both ------------------------------------------------------------------------------------------------------------

/// Chunks and row groups of which nothing is wanted are not looked at, and what is lost is counted by what is wanted.
#[test]
fn only_what_is_wanted_is_read() {
    type Reading<'r> = &'r dyn Fn(&dyn Fn(u64) -> bool, Visit, Damaged);
    let check = |read: Reading, wanted: fn(u64) -> bool, lost: &[(Range<u64>, u64)]| {
        let (mut rows, mut damage) = (Vec::new(), Vec::new());
        let mut visit = |record: Record<'_>| {
            rows.push(record.index);
            Ok(())
        };
        let mut report = |d: Damage| {
            damage.push((d.records, d.lost));
            Ok(())
        };
        read(&wanted, &mut visit, &mut report);
        assert_eq!(damage, lost);
        let in_damage = |index: &u64| lost.iter().any(|(records, _)| records.contains(index));
        assert_eq!(rows, (0..20).filter(|&i| wanted(i) && !in_damage(&i)).collect::<Vec<_>>());
    };

    let mut writer = Writer::new();
    let rows: Vec<Vec<u8>> = (0..20).map(|i| format!("{i} ").repeat(50).into_bytes()).collect();
    let offsets: Vec<usize> = rows.chunks(5).map(|group| writer.records(b'z', group)).collect();
    let mut bytes = writer.finish();
    bytes[offsets[1] + 60] ^= 1; // records 5 to 9
    let file = ArrayRecordFile::open(Path::new("test.array_record"), &bytes[..]).unwrap();
    let read = |wanted: &dyn Fn(u64) -> bool, visit: Visit<'_>, damaged: Damaged<'_>| {
        file.visit(0..u64::MAX, wanted, visit, damaged).unwrap();
    };
    check(&read, |_| true, &[(5..10, 5)]);
    check(&read, |i| i % 3 == 0, &[(6..10, 2)]);
    check(&read, |i| i == 8, &[(8..9, 1)]);
    check(&read, |i| !(5..10).contains(&i), &[]);
    check(&read, |_| false, &[]);

    let (mut bytes, _) = small_parquet(Compression::SNAPPY);
    bytes[4..8].fill(0xff); // the first page, with records 0 to 9
    let file = ParquetFile::open(Path::new("test.parquet"), bytes).unwrap();
    let read = |wanted: &dyn Fn(u64) -> bool, visit: Visit<'_>, damaged: Damaged<'_>| {
        file.visit(0..u64::MAX, wanted, visit, damaged).unwrap();
    };
    check(&read, |_| true, &[(0..10, 10)]);
    check(&read, |i| i % 4 == 1, &[(1..10, 3)]);
    check(&read, |i| i > 9, &[]);
    check(&read, |_| false, &[]);
}

// ---- Real exports --------------------------------------------------------------------------------------------------

/// The exports that the project is developed with; absent in a bare checkout.
fn corpora() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora");
    if !path.is_dir() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn other_formats_hold_the_rows_of_tfrecord() {
    let Some(corpora) = corpora() else { return };
    let mut files = 0;
    for root in ["array_record", "parquet", "multi_format"] {
        let root = corpora.join("alt_formats").join(root);
        for relative in flanc::storage::walk(&root).unwrap() {
            let name = relative.to_str().unwrap();
            let format = ["array_record", "parquet"].into_iter().find(|f| name.contains(&format!(".{f}-")));
            let Some(format) = format else { continue };
            let bytes = std::fs::read(root.join(&relative)).unwrap();
            let read: Reader = if format == "parquet" { parquet_file } else { array_record };
            let outcome = read(&bytes, 0..u64::MAX).unwrap();
            assert!(outcome.damage.is_empty(), "{name}");
            let twin = corpora.join("tfds").join(name.replace(&format!(".{format}-"), ".tfrecord-"));
            let twin = std::fs::read(&twin).unwrap_or_else(|e| panic!("{}: {e}", twin.display()));
            let expected = tfrecord(&twin);
            assert_eq!(outcome.rows.len(), expected.len(), "{name}");
            for ((index, payload), expected) in outcome.rows.iter().zip(&expected) {
                assert_eq!(entries(payload), entries(expected), "{name} record {index}");
            }
            assert_eq!(outcome.rows.len() as u64, shard_length(&root.join(&relative)), "{name}");
            files += 1;
        }
    }
    assert!(files > 20, "{files}");
}

#[test]
fn real_damage_is_explained() {
    let Some(corpora) = corpora() else { return };
    let bad = corpora.join("bad");
    let cut = bad.join("array_record_truncated/trec/1.0.0/trec-test.array_record-00000-of-00001");
    let refusal = array_record(&std::fs::read(cut).unwrap(), 0..1).unwrap_err();
    assert_eq!(refusal.code, "array-record-incomplete", "{refusal}");
    let lost = bad.join("parquet_rows_lost_by_tfds/openbookqa/0.1.0/openbookqa-train.parquet-00000-of-00001");
    let outcome = parquet_file(&std::fs::read(&lost).unwrap(), 0..u64::MAX).unwrap();
    assert_eq!(outcome.rows.len() as u64, rows_kept_by_tfds(shard_length(&lost)));
}

/// The payloads of a TFRecord file, its checksums unread.
fn tfrecord(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        records.push(&bytes[12..12 + length]);
        bytes = &bytes[16 + length..];
    }
    records
}

/// The features of an Example, sorted: their order differs from one writing process to the next.
fn entries(example: &[u8]) -> Vec<&[u8]> {
    let mut entries: Vec<&[u8]> = fields(example).into_iter().flat_map(fields).collect();
    entries.sort_unstable();
    entries
}

/// The fields of a message whose fields all have a length.
fn fields(mut message: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [0x0a, rest @ ..] = message {
        let varint = rest.iter().position(|&b| b < 0x80).unwrap() + 1;
        let length = (0..varint).map(|i| usize::from(rest[i] & 0x7f) << (7 * i)).sum::<usize>();
        found.push(&rest[varint..varint + length]);
        message = &rest[varint + length..];
    }
    assert!(message.is_empty());
    found
}

/// What dataset_info.json says of a file named `<name>-<split>.<format>-<shard>-of-<shards>`.
fn shard_length(path: &Path) -> u64 {
    let info = std::fs::read(path.with_file_name("dataset_info.json")).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let (stem, shard) = name.split_once('.').unwrap();
    let shard: usize = shard.rsplit('-').nth(2).unwrap().parse().unwrap();
    let split = info["splits"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| stem.ends_with(&format!("-{}", s["name"].as_str().unwrap())));
    split.unwrap()["shardLengths"][shard].as_str().unwrap().parse().unwrap()
}
