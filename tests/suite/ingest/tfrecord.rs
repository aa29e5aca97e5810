use std::path::Path;

use flanc::diag::{Diagnostic, Place};
use flanc::ingest::record::Damage;
use flanc::ingest::tfrecord::{TfRecordFile, masked_crc};

/// A record in its frame.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    [header(payload.len() as u64), payload.to_vec(), masked_crc(payload).to_le_bytes().to_vec()].concat()
}

/// A length with its checksum.
pub fn header(length: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], &masked_crc(&length.to_le_bytes()).to_le_bytes()].concat()
}

/// Offsets of the frames of a whole file.
pub fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        offsets.push(at);
        at += 16 + u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    }
    offsets
}

struct Outcome {
    rows: Vec<(u64, Vec<u8>)>,
    damage: Vec<Damage>,
    broken: Option<Diagnostic>,
}

fn read(bytes: &[u8]) -> Result<Outcome, Box<Diagnostic>> {
    let file = TfRecordFile::open(Path::new("test.tfrecord"), bytes)?;
    let (mut rows, mut damage) = (Vec::new(), Vec::new());
    file.visit(
        0..u64::MAX,
        &|_| true,
        &mut |record| {
            rows.push((record.index, record.payload.to_vec()));
            Ok(())
        },
        &mut |d| {
            damage.push(d);
            Ok(())
        },
    )?;
    Ok(Outcome { rows, damage, broken: file.broken().cloned() })
}

/// Some 4 KiB: short, long and empty records.
fn small() -> (Vec<u8>, Vec<Vec<u8>>) {
    let payloads: Vec<Vec<u8>> = (0..24usize).map(|i| format!("record {i} ").repeat(i * 5 % 37).into_bytes()).collect();
    let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
    assert!((3500..6000).contains(&bytes.len()), "{}", bytes.len());
    (bytes, payloads)
}

/// A damaged file gives records of the whole one, at their places, and a report that names one place in the file.
fn check(bytes: &[u8], payloads: &[Vec<u8>], what: &str) -> Outcome {
    let outcome = read(bytes).unwrap_or_else(|refusal| panic!("{what}: {refusal}"));
    for (index, payload) in &outcome.rows {
        assert_eq!(payload, &payloads[*index as usize], "{what}: record {index} is another one");
    }
    for diagnostic in outcome.damage.iter().map(|d| &d.diagnostic).chain(&outcome.broken) {
        let Place::Record { file, record, offset: Some(offset) } = &diagnostic.place else {
            panic!("{what}: {diagnostic}")
        };
        assert_eq!(file, Path::new("test.tfrecord"));
        assert_eq!(frames_before(payloads, *record), *offset, "{what}: {diagnostic}");
    }
    outcome
}

/// Where a record begins.
fn frames_before(payloads: &[Vec<u8>], record: u64) -> u64 {
    payloads[..record as usize].iter().map(|payload| 16 + payload.len() as u64).sum()
}

#[test]
fn whole_files_are_read() {
    let (bytes, payloads) = small();
    let outcome = check(&bytes, &payloads, "whole");
    assert_eq!(outcome.rows.len(), payloads.len());
    assert!(outcome.damage.is_empty() && outcome.broken.is_none());
    assert_eq!(read(b"").unwrap().rows.len(), 0);
}

/// Ranges are reached by the offsets that are kept of every 256th record.
#[test]
fn ranges_of_records_are_reached() {
    let payloads: Vec<Vec<u8>> = (0..1000).map(|i| format!("record {i}").into_bytes()).collect();
    let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
    let file = TfRecordFile::open(Path::new("test.tfrecord"), &bytes[..]).unwrap();
    for range in [0..0, 0..1, 255..257, 256..256, 511..513, 300..900, 999..1000, 999..2000, 1000..1001, 5000..6000] {
        for step in [1, 3] {
            let mut found = Vec::new();
            let mut visit = |record: flanc::ingest::record::Record<'_>| {
                assert_eq!(record.payload, &payloads[record.index as usize][..]);
                assert_eq!(record.offset, frames_before(&payloads, record.index));
                found.push(record.index);
                Ok(())
            };
            file.visit(range.clone(), &|index| index % step == 0, &mut visit, &mut |d| panic!("{}", d.diagnostic))
                .unwrap();
            let expected: Vec<u64> = range.clone().filter(|i| *i < 1000 && i % step == 0).collect();
            assert_eq!(found, expected, "{range:?}");
        }
    }
}

/// CRC-32C sees every single flip, and every byte of a TFRecord file is under one.
#[test]
fn every_bit_flip_is_detected() {
    let (bytes, payloads) = small();
    let mut changed = bytes.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            changed[at] ^= 1 << bit;
            let what = format!("byte {at} bit {bit}");
            let outcome = check(&changed, &payloads, &what);
            let lost: u64 = outcome.damage.iter().map(|d| d.lost).sum();
            assert_eq!(outcome.damage.len() + outcome.broken.iter().count(), 1, "{what}");
            assert!(outcome.broken.is_some() || lost == 1 && outcome.rows.len() == payloads.len() - 1, "{what}");
            changed[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_truncation_is_detected_but_those_between_records() {
    let (bytes, payloads) = small();
    let frames = frames(&bytes);
    for length in 0..bytes.len() {
        let whole = frames.iter().filter(|&&at| at <= length).count() - 1; // the last of them is cut, or only begins
        let outcome = check(&bytes[..length], &payloads, &format!("cut at byte {length}"));
        assert_eq!(outcome.rows.len(), whole, "cut at byte {length}");
        // At a boundary only the count in dataset_info.json tells: see `bad`.
        assert_eq!(outcome.broken.is_none(), frames.contains(&length), "cut at byte {length}");
    }
}

/// Lengths with valid checksums that the file does not have the bytes for. Memory for one of them would end the process.
#[test]
fn hostile_lengths_are_reported() {
    let (bytes, payloads) = small();
    for (record, &at) in frames(&bytes).iter().enumerate() {
        for length in [1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, u64::MAX - 15, u64::MAX] {
            let mut changed = bytes.clone();
            changed.splice(at..at + 12, header(length));
            let outcome = check(&changed, &payloads, &format!("record {record} of {length} bytes"));
            let broken = outcome.broken.expect("a report").to_string();
            assert!(broken.contains(&format!("test.tfrecord, record {record}, byte {at}\n")), "{broken}");
            assert!(broken.contains(&length.to_string()), "{broken}");
            assert_eq!(outcome.rows.len(), record);
        }
    }
    // A length that is too small puts the next frame, and the checksum, where there is none.
    for length in [0, 1] {
        let mut changed = bytes.clone();
        let at = frames(&bytes)[3];
        changed.splice(at..at + 12, header(length));
        let outcome = read(&changed).unwrap();
        assert_eq!(outcome.rows.len(), 3);
        let said = outcome.damage[0].diagnostic.to_string();
        assert!(said.contains(&format!("test.tfrecord, record 3, byte {at}\n")), "{said}");
        assert!(outcome.broken.is_some());
    }
}

/// Other files under this format are named, and a TFRecord that only begins like one of them is read.
#[test]
fn other_kinds_of_files_are_named() {
    let code = |bytes: &[u8]| read(bytes).err().map(|refusal| (refusal.code, refusal.notes[1].1.clone()));
    let (bytes, _) = small();
    for (magic, expected, found) in [
        (&b"\x1f\x8b\x08\0"[..], "compressed-tfrecord", "the first bytes 1f 8b"),
        (b"\x78\x9c", "compressed-tfrecord", "the first bytes 78 9c"),
        (b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f", "not-tfrecord", "the first bytes of a Riegeli or array_record file"),
        (b"PAR1", "not-tfrecord", "the first bytes of a Parquet file"),
    ] {
        assert_eq!(code(&[magic, &bytes].concat()), Some((expected, found.to_owned())));
        assert_eq!(code(magic), Some((expected, found.to_owned())));
    }
    assert_eq!(code(b"neither this nor that"), None, "of which only the checksum tells");
    let like_gzip = frame(&[b'x'; 0x8b1f]);
    assert!(like_gzip.starts_with(&[0x1f, 0x8b]));
    assert_eq!(read(&like_gzip).unwrap().rows.len(), 1);
    assert!(read(&like_gzip[..like_gzip.len() - 1]).unwrap().broken.is_some());
}
