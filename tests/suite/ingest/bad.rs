//! Twice the same: the malformed exports in `shared`, made with TFDS itself, and the bundled corpora, damaged here in the
//! same ways. Each has a snapshot of all that is said, and of how many rows can still be read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flanc::diag::Diagnostic;
use flanc::ingest::Corpus;
use flanc::ingest::info::{CorpusName, version_number};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use prost::Message;
use serde_json::{Value, json};

use super::example::{BytesList, Example, Int64List, Kind};
use super::{read, root, scratch, settings, shared_corpora, tfrecord};

#[test]
fn malformed_exports_are_explained() {
    let Some(corpora) = shared_corpora() else { return };
    let mut cases: Vec<PathBuf> =
        fs::read_dir(corpora.join("bad")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert_eq!(cases.len(), 26);
    for case in cases {
        settings("bad")
            .bind(|| insta::assert_snapshot!(case.file_name().unwrap().to_string_lossy().into_owned(), account(&case)));
    }
}

/// What there is to say of the one corpus below a data directory.
fn account(data_dir: &Path) -> String {
    let name = only_corpus(data_dir);
    let mut said = format!("# {name}\n");
    match Corpus::open(&CorpusName::parse(&name).unwrap(), &[data_dir.to_owned()]) {
        Err(refusal) => said.push_str(&refusal.to_string()),
        Ok(corpus) => {
            said.push_str(&tell(&corpus.info.warnings));
            for split in &corpus.info.splits {
                let mut rows = 0;
                let problems = read(&corpus, &corpus.resolve(&split.name, 1.0).unwrap(), |_| rows += 1);
                said.push_str(&format!(
                    "\n# {}: {rows} of {} rows can be read\n{}",
                    split.name,
                    split.rows(),
                    tell(&problems)
                ));
            }
        }
    }
    // Snapshots name no directory of this machine.
    said.replace(&format!("{}/", data_dir.display()), "")
}

/// The first two diagnostics of each code in full.
fn tell(diagnostics: &[Diagnostic]) -> String {
    const SHOWN: usize = 2;
    let mut text = String::new();
    let mut seen = BTreeMap::new();
    for diagnostic in diagnostics {
        let count = seen.entry(diagnostic.code).or_insert(0);
        *count += 1;
        if *count <= SHOWN {
            text.push_str(&diagnostic.to_string());
        }
    }
    for (code, count) in seen.into_iter().filter(|(_, count)| *count > SHOWN) {
        text.push_str(&format!("… and {} more of {code}\n", count - SHOWN));
    }
    text
}

/// `name[/config]:version` of the one version directory there is.
fn only_corpus(data_dir: &Path) -> String {
    let mut path = data_dir.to_owned();
    let mut names = Vec::new();
    loop {
        let mut directories =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        path = directories.find(|path| !path.ends_with(".config")).expect("a directory");
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if version_number(&name).is_some() {
            return format!("{}:{name}", names.join("/"));
        }
        names.push(name);
    }
}

// ---- The same from the bundled corpora ----------------------------------------------------------------------------------

#[test]
fn damaged_copies_are_explained() {
    check("array_record_truncated", "trec/1.0.0", |copy| {
        let whole = copy.fixture("array_record_zstd.gz");
        copy.replace_by("test", "array_record", &[20], &[&whole[..whole.len() * 6 / 10]]);
    });
    check("bad_data_crc", CB, |copy| copy.flip(10, |start, end| (start + end) / 2));
    check("bad_length_crc", CB, |copy| copy.flip(10, |start, _| start + 9));
    check("dtype_mismatch", CB, |copy| {
        copy.json("features.json", |json| {
            *feature(json, "premise") =
                json!({ "pythonClassName": "x.Tensor", "tensor": { "dtype": "int64", "shape": {} } })
        });
    });
    check("empty_record", CB, |copy| copy.record(10, |record| record.clear()));
    check("feature_missing_in_records", CB, |copy| {
        copy.json("features.json", |json| {
            json["featuresDict"]["features"]["extra"] = json!({ "pythonClassName": "x.Text", "text": {} })
        });
    });
    check("huge_length", CB, |copy| {
        copy.shard(|bytes| {
            let at = tfrecord::frames(bytes)[10];
            bytes.splice(at..at + 12, tfrecord::header(1 << 62));
        });
    });
    check("invalid_json_dataset_info", CB, |copy| {
        copy.file("dataset_info.json", |bytes| bytes.truncate(bytes.len() / 2))
    });
    check("invalid_utf8", CB, |copy| {
        copy.example(10, |example| {
            *example.kind_mut("premise") =
                Kind::Bytes(BytesList { value: vec![b"caf\xe9 \xff\xfe \xed\xa0\x80".to_vec()] });
        });
    });
    check("label_out_of_range", CB, |copy| {
        for (record, label) in [(10, 7), (11, -5)] {
            copy.example(record, |example| *example.kind_mut("label") = Kind::Ints(Int64List { value: vec![label] }));
        }
    });
    check("missing_dataset_info_json", CB, |copy| copy.remove("dataset_info.json"));
    check("missing_features_json", CB, |copy| copy.remove("features.json"));
    check("missing_labels_file", CB, |copy| copy.remove("label.labels.txt"));
    check("missing_shard_file", CB, |copy| copy.remove(CB_TRAIN));
    check("not_a_proto", CB, |copy| {
        copy.record(10, |record| *record = b"this is not a protobuf message at all".to_vec())
    });
    check("parquet_rows_lost_by_tfds", "openbookqa/0.1.0", |copy| {
        let rows: Vec<Vec<u8>> =
            copy.records("openbookqa-train.tfrecord-00000-of-00001").into_iter().cycle().take(600).collect();
        let kept = rows
            .chunks(100)
            .enumerate()
            .filter(|(batch, _)| [0, 2, 5].contains(batch))
            .flat_map(|(_, rows)| rows.to_vec());
        copy.replace_by("train", "parquet", &[600], &[&parquet_file(&kept.collect::<Vec<_>>())]);
    });
    check("path_traversal_template", CB, |copy| {
        copy.split(|split| split["filepathTemplate"] = json!("../../../../../../etc/passwd"));
    });
    check("ragged_lengths_mismatch", "feature_kinds/1.0.0", |copy| {
        copy.example(3, |example| {
            let Kind::Ints(lengths) = example.kind_mut("ragged3/ragged_row_lengths_0") else { panic!("no lengths") };
            lengths.value.push(2);
        });
    });
    check("truncated_at_boundary", CB, |copy| copy.shard(|bytes| bytes.truncate(tfrecord::frames(bytes)[30])));
    check("truncated_mid_record", CB, |copy| copy.shard(|bytes| bytes.truncate(tfrecord::frames(bytes)[30] + 100)));
    check("unknown_feature_class", CB, |copy| {
        copy.json("features.json", |json| {
            *feature(json, "hypothesis") = json!({ "pythonClassName": "my_pkg.features.Hologram", "hologram": {} })
        });
    });
    check("unknown_file_format", CB, |copy| copy.json("dataset_info.json", |json| json["fileFormat"] = json!("lmdb")));
    check("wrong_shard_count", CB, |copy| copy.split(|split| split["shardLengths"] = json!(["21", "21"])));
    check("wrong_shard_length", CB, |copy| copy.split(|split| split["shardLengths"] = json!(["43"])));
    check("wrong_shard_length_less", CB, |copy| copy.split(|split| split["shardLengths"] = json!(["41"])));
    check("zero_byte_shard", CB, |copy| copy.shard(Vec::clear));
}

/// What is not in `shared`.
#[test]
fn other_damaged_copies_are_explained() {
    check("array_record_as_tfrecord", CB, |copy| {
        let bytes = copy.fixture("array_record_zstd.gz");
        copy.shard(|shard| *shard = bytes);
    });
    check("array_record_transposed", "trec/1.0.0", |copy| {
        let bytes = copy.fixture("array_record_transposed.gz");
        copy.replace_by("test", "array_record", &[20], &[&bytes]);
    });
    check("dataset_of_unequal_lists", "feature_kinds/1.0.0", |copy| {
        copy.example(3, |example| {
            let Kind::Ints(values) = example.kind_mut("dataset/value") else { panic!("no integers") };
            values.value.push(2);
        });
    });
    check("gzip_tfrecord", CB, |copy| {
        copy.shard(|bytes| {
            use std::io::Write;
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(bytes).unwrap();
            *bytes = packer.finish().unwrap();
        });
    });
    check("labels_of_another_export", CB, |copy| copy.file("label.labels.txt", |bytes| bytes.extend(b"neither\n")));
    check("length_fits_no_frame", CB, |copy| {
        copy.shard(|bytes| {
            let at = tfrecord::frames(bytes)[10];
            bytes.splice(at..at + 12, tfrecord::header(1));
        });
    });
    check("optional_is_required", "feature_kinds/1.0.0", |copy| {
        copy.json("features.json", |json| {
            *feature(json, "opt_text") = json!({ "pythonClassName": "x.Text", "text": {} })
        });
    });
    check("parquet_damaged_row_group", "openbookqa/0.1.0", |copy| {
        let rows = copy.records("openbookqa-train.tfrecord-00000-of-00001");
        let mut bytes = parquet_file(&rows);
        bytes[4..12].fill(0xff); // the first page's header
        copy.replace_by("train", "parquet", &[rows.len() as u64], &[&bytes]);
    });
    check("parquet_of_another_export", "openbookqa/0.1.0", |copy| {
        let rows = copy.records("openbookqa-train.tfrecord-00000-of-00001");
        copy.replace_by("train", "parquet", &[rows.len() as u64 + 3], &[&parquet_file(&rows)]);
    });
    check("parquet_table", "openbookqa/0.1.0", |copy| {
        let bytes = fs::read(root().join("tests/fixtures/ingest/parquet_table")).unwrap();
        copy.replace_by("train", "parquet", &[3], &[&bytes]);
    });
    check("riegeli", CB, |copy| copy.json("dataset_info.json", |json| json["fileFormat"] = json!("riegeli")));
    check("sequence_of_fixed_length", "feature_kinds/1.0.0", |copy| {
        copy.example(3, |example| {
            let Kind::Bytes(values) = example.kind_mut("seq_fixed") else { panic!("no texts") };
            values.value.push(b"one more".to_vec());
        });
    });
    check("tensor_of_another_size", "feature_kinds/1.0.0", |copy| {
        copy.example(3, |example| {
            let Kind::Bytes(values) = example.kind_mut("tensor_bytes") else { panic!("no buffer") };
            values.value[0].truncate(15);
        });
        copy.example(4, |example| {
            let Kind::Bytes(values) = example.kind_mut("tensor_zlib") else { panic!("no buffer") };
            values.value[0].truncate(5);
        });
    });
}

const CB: &str = "super_glue/cb/1.0.2";
const CB_TRAIN: &str = "super_glue-train.tfrecord-00000-of-00001";

/// Damages a copy of a bundled corpus, and compares what is said of it with the snapshot.
fn check(case: &str, corpus: &str, damage: impl FnOnce(&Copy)) {
    let data_dir = scratch(&format!("damaged/{case}"));
    let directory = data_dir.join(corpus);
    fs::create_dir_all(&directory).unwrap();
    for entry in fs::read_dir(root().join("data").join(corpus)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
    }
    damage(&Copy { directory });
    settings("damaged").bind(|| insta::assert_snapshot!(case, account(&data_dir)));
}

struct Copy {
    directory: PathBuf,
}

impl Copy {
    fn file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.directory.join(name);
        let mut bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.directory.join(name)).unwrap();
    }

    fn json(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.file(name, |bytes| {
            let mut json = serde_json::from_slice(bytes).unwrap();
            change(&mut json);
            *bytes = json.to_string().into_bytes();
        });
    }

    /// The first split of dataset_info.json.
    fn split(&self, change: impl FnOnce(&mut Value)) {
        self.json("dataset_info.json", |json| change(&mut json["splits"][0]));
    }

    /// The first shard of the first split.
    fn shard(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut files: Vec<String> =
            flanc::storage::list(&self.directory).unwrap().into_iter().map(|(name, _)| name).collect();
        files.retain(|name| name.contains("-train.tfrecord-00000-"));
        self.file(&files[0], change);
    }

    /// A record of that, framed anew.
    fn record(&self, record: usize, change: impl FnOnce(&mut Vec<u8>)) {
        self.shard(|bytes| {
            let frames = tfrecord::frames(bytes);
            let end = frames.get(record + 1).map_or(bytes.len(), |&at| at);
            let mut payload = bytes[frames[record] + 12..end - 4].to_vec();
            change(&mut payload);
            bytes.splice(frames[record]..end, tfrecord::frame(&payload));
        });
    }

    fn example(&self, record: usize, change: impl FnOnce(&mut Example)) {
        self.record(record, |payload| {
            let mut example = Example::decode(&payload[..]).unwrap();
            change(&mut example);
            *payload = example.encode_to_vec();
        });
    }

    /// Flips a bit of a record; `place` gives a byte from where it begins and ends.
    fn flip(&self, record: usize, place: impl FnOnce(usize, usize) -> usize) {
        self.shard(|bytes| {
            let frames = tfrecord::frames(bytes);
            bytes[place(frames[record], frames[record + 1])] ^= 4;
        });
    }

    fn records(&self, name: &str) -> Vec<Vec<u8>> {
        let bytes = fs::read(self.directory.join(name)).unwrap();
        let mut ends = tfrecord::frames(&bytes);
        ends.push(bytes.len());
        ends.windows(2).map(|frame| bytes[frame[0] + 12..frame[1] - 4].to_vec()).collect()
    }

    fn fixture(&self, name: &str) -> Vec<u8> {
        use std::io::Read;
        let mut unpacked = Vec::new();
        let packed = fs::read(root().join("tests/fixtures/ingest").join(name)).unwrap();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        unpacked
    }

    /// Makes it a corpus of one split in another format.
    fn replace_by(&self, split: &str, format: &str, lengths: &[u64], shards: &[&[u8]]) {
        let name =
            self.directory.strip_prefix(self.directory.ancestors().nth(2).unwrap()).unwrap().iter().next().unwrap();
        let name = name.to_str().unwrap().to_owned();
        for (number, bytes) in shards.iter().enumerate() {
            let file = format!("{name}-{split}.{format}-{number:05}-of-{:05}", shards.len());
            fs::write(self.directory.join(file), bytes).unwrap();
        }
        let lengths: Vec<String> = lengths.iter().map(u64::to_string).collect();
        self.json("dataset_info.json", |json| {
            json["fileFormat"] = json!(format);
            json["splits"] = json!([{ "name": split, "shardLengths": lengths }]);
        });
    }
}

fn feature<'j>(json: &'j mut Value, name: &str) -> &'j mut Value {
    let feature = &mut json["featuresDict"]["features"][name];
    assert!(!feature.is_null(), "no feature `{name}`");
    feature
}

/// Row groups of 10, so that one of them can be damaged.
fn parquet_file(rows: &[Vec<u8>]) -> Vec<u8> {
    let schema = parse_message_type("message schema { optional binary data; }").unwrap();
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).unwrap();
    for group in rows.chunks(10) {
        let mut group_writer = writer.next_row_group().unwrap();
        let mut column = group_writer.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().map(|row| row.clone().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; values.len()]), None).unwrap();
        column.close().unwrap();
        group_writer.close().unwrap();
    }
    writer.into_inner().unwrap()
}
