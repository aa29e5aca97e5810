use std::fs;
use std::path::{Path, PathBuf};

use flanc::ingest::Corpus;
use flanc::ingest::info::{self, CorpusInfo, CorpusName, SplitInfo};
use flanc::ingest::splits::{self, Part, clip};
use serde_json::{Value, json};

use super::{scratch, settings};

/// A row of one text.
fn one_text() -> Value {
    json!({ "featuresDict": { "features": { "text": { "text": {} } } } })
}

fn info_of(name: &str, shards: &[u64]) -> Value {
    let shards: Vec<String> = shards.iter().map(u64::to_string).collect();
    json!({ "name": name, "fileFormat": "tfrecord", "splits": [{ "name": "train", "shardLengths": shards }] })
}

/// Writes the headers of a corpus, or other files, below a data directory.
fn write(root: &Path, directory: &str, files: &[(&str, String)]) {
    let directory = root.join(directory);
    fs::create_dir_all(&directory).unwrap();
    files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).unwrap());
}

fn corpus(root: &Path, directory: &str) {
    let name = directory.split('/').nth(1).unwrap();
    let files = [("dataset_info.json", info_of(name, &[3]).to_string()), ("features.json", one_text().to_string())];
    write(root, directory, &files);
}

/// What comes of a name: the directory, with its warnings, or the refusal.
fn find(root: &Path, name: &str, data_dirs: &[&str]) -> String {
    let data_dirs: Vec<PathBuf> = data_dirs.iter().map(|d| root.join(d)).collect();
    let found = CorpusName::parse(name).and_then(|name| info::read(&name, &data_dirs));
    tell(
        root,
        &format!("{name} in {}", data_dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")),
        found,
    )
}

fn tell(root: &Path, what: &str, found: Result<CorpusInfo, Box<flanc::diag::Diagnostic>>) -> String {
    let mut said = format!("# {what}\n");
    match found {
        Ok(info) => {
            said.push_str(&format!("{} at {}\n", info.name, info.directory.display()));
            info.warnings.iter().for_each(|warning| said.push_str(&warning.to_string()));
        }
        Err(refusal) => said.push_str(&refusal.to_string()),
    }
    said.push('\n');
    said.replace(&format!("{}/", root.display()), "")
}

#[test]
fn names_are_resolved() {
    let root = scratch("names");
    for directory in [
        "a/plain/1.0.0",
        "a/plain/1.9.0",
        "a/plain/1.10.0",
        "a/plain/incomplete.7HQ2_3.0.0",
        "a/plain/2.0.0.incompleteAB12",
        "a/plain/latest",
        "a/with_configs/one/1.0.0",
        "a/with_configs/two.b+c/1.0.0",
        "a/default/cola/2.0.0",
        "a/default/rte/2.0.0",
        "a/unfinished/incomplete.7HQ2_1.0.0",
        "a/unfinished_before/1.0.0.incompleteAB12",
        "b/plain/1.10.0",
        "b/plain/0.9.0",
        "c/plain/1.11.0",
    ] {
        corpus(&root, directory);
    }
    write(&root, "a/default/.config", &[("metadata.json", json!({ "default_config_name": "cola" }).to_string())]);
    write(&root, "tables", &[("plain__1.0.0__train.parquet", String::new())]);
    let mut said = String::new();
    for (name, data_dirs) in [
        ("plain", &["a"][..]),
        ("plain", &["a", "b"]),
        ("plain", &["b", "a"]),
        ("plain", &["absent", "a", "c"]),
        ("plain:1.9.0", &["a", "c"]),
        ("plain:0.9.0", &["a", "b"]),
        ("plain:3.0.0", &["a", "b", "c"]),
        ("plain:2.0.0", &["a"]),
        ("with_configs/two.b+c", &["a"]),
        ("with_configs/two", &["a"]),
        ("with_configs/oen", &["a"]),
        ("with_configs", &["a"]),
        ("with_configs/one:2.0.0", &["a"]),
        ("default", &["a"]),
        ("unfinished", &["a"]),
        ("unfinished_before", &["a"]),
        ("absent", &["a", "b"]),
        ("plain", &["tables"]),
        ("plain", &["a/plain"]),
        ("plain", &["a/plain/1.0.0"]),
        ("plain", &["absent"]),
        ("", &["a"]),
        ("../a/plain", &["b"]),
        ("plain/../../a", &["b"]),
        ("plain/a/b", &["a"]),
        ("pla in", &["a"]),
        ("plain:1.0", &["a"]),
        ("plain:1.0.x", &["a"]),
        ("plain:1.0.0.0", &["a"]),
        ("plain:99999999999999999999.0.0", &["a"]),
    ] {
        said.push_str(&find(&root, name, data_dirs));
    }
    settings("").bind(|| insta::assert_snapshot!("headers-names", said));
}

/// What dataset_info.json may say: defaults left out, other spellings, another format beside the main one, and nonsense.
#[test]
fn infos_are_understood() {
    let mut said = String::new();
    let split = |more: Value| {
        let mut split = json!({ "name": "train", "shardLengths": ["2", "1"] });
        split.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "name": "corpus", "splits": [split] })
    };
    let huge = (1u64 << 62).to_string();
    for (what, info, files) in [
        (
            "before file formats",
            json!({ "name": "corpus", "splits": [{ "name": "train", "shardLengths": ["2", 1] }] }),
            &[][..],
        ),
        (
            "snake_case",
            json!({ "name": "corpus", "file_format": "array_record", "splits": [{ "name": "train", "shard_lengths": [3] }] }),
            &[],
        ),
        ("no splits", json!({ "name": "corpus" }), &[]),
        (
            "an empty shard",
            json!({ "name": "corpus", "splits": [{ "name": "train", "shardLengths": ["0", "3"] }] }),
            &[],
        ),
        ("upper case", json!({ "name": "corpus", "fileFormat": "TFRECORD" }), &[]),
        (
            "main of two formats",
            json!({ "name": "corpus", "fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"] }),
            &["corpus-train.tfrecord-00000-of-00001", "corpus-train.array_record-00000-of-00001"],
        ),
        (
            "alternative of two formats",
            json!({ "name": "corpus", "fileFormat": "riegeli", "alternativeFileFormats": ["array_record"] }),
            &["corpus-train.riegeli-00000-of-00001", "corpus-train.array_record-00000-of-00001"],
        ),
        (
            "alternative that is not there",
            json!({ "name": "corpus", "fileFormat": "riegeli", "alternativeFileFormats": ["array_record"] }),
            &["corpus-train.riegeli-00000-of-00001"],
        ),
        ("another name", json!({ "name": "corpse", "splits": [] }), &[]),
        ("riegeli", json!({ "name": "corpus", "fileFormat": "riegeli" }), &[]),
        ("another format", json!({ "name": "corpus", "fileFormat": "lmdb" }), &[]),
        ("a list", json!([1, 2]), &[]),
        ("splits that are no list", json!({ "splits": "train" }), &[]),
        ("a split that is no object", json!({ "splits": ["train"] }), &[]),
        ("a split without a name", json!({ "splits": [{ "shardLengths": ["1"] }] }), &[]),
        ("a split with a path for a name", json!({ "splits": [{ "name": "../train", "shardLengths": ["1"] }] }), &[]),
        ("one split twice", json!({ "splits": [{ "name": "train" }, { "name": "train" }] }), &[]),
        ("negative lengths", split(json!({ "shardLengths": ["-2"] })), &[]),
        ("huge lengths", split(json!({ "shardLengths": [huge] })), &[]),
        ("lengths that add up to much", split(json!({ "shardLengths": vec![(1u64 << 47).to_string(); 9] })), &[]),
        ("another number of shards", split(json!({ "numShards": "3" })), &[]),
        ("a negative number of shards", split(json!({ "numShards": -1 })), &[]),
    ] {
        let root = scratch("infos");
        let header = [("dataset_info.json", info.to_string()), ("features.json", one_text().to_string())];
        write(&root, "corpus/1.0.0", &header);
        write(&root, "corpus/1.0.0", &files.iter().map(|name| (*name, String::new())).collect::<Vec<_>>());
        let found = info::read(&CorpusName::parse("corpus").unwrap(), std::slice::from_ref(&root));
        let more = match &found {
            Ok(info) => {
                let splits =
                    info.splits.iter().map(|s| format!("{} {:?}", s.name, s.shard_lengths)).collect::<Vec<_>>();
                format!("{:?}: {}\n\n", info.format, splits.join(", "))
            }
            Err(_) => String::new(),
        };
        said.push_str(tell(&root, what, found).trim_end_matches('\n'));
        said.push_str(if more.is_empty() { "\n\n" } else { "\n" });
        said.push_str(&more);
    }
    settings("").bind(|| insta::assert_snapshot!("headers-infos", said));
}

#[test]
fn file_names_come_from_templates() {
    let check = |template: Option<&str>, shards: usize, expected: Result<&[&str], &str>| {
        let root = scratch("templates");
        let mut info = info_of("corpus", &vec![1; shards]);
        if let Some(template) = template {
            info["splits"][0]["filepathTemplate"] = json!(template);
        }
        write(
            &root,
            "corpus/1.0.0",
            &[("dataset_info.json", info.to_string()), ("features.json", one_text().to_string())],
        );
        let info = info::read(&CorpusName::parse("corpus").unwrap(), std::slice::from_ref(&root)).unwrap();
        let found = info.shard_paths(&info.splits[0]);
        match expected {
            Ok(names) => {
                let names: Vec<PathBuf> = names.iter().map(|name| root.join("corpus/1.0.0").join(name)).collect();
                assert_eq!(found.unwrap(), names, "{template:?}");
            }
            Err(part) => {
                let refusal = found.unwrap_err();
                assert_eq!(refusal.code, "file-template");
                assert!(refusal.to_string().contains(part), "{refusal}");
                assert!(Corpus::open(&CorpusName::parse("corpus").unwrap(), &[root]).is_err());
            }
        }
    };
    let two = ["corpus-train.tfrecord-00000-of-00002", "corpus-train.tfrecord-00001-of-00002"];
    check(None, 2, Ok(&two));
    check(Some(""), 2, Ok(&two));
    check(Some("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"), 2, Ok(&two));
    check(Some("{SPLIT}_{SHARD_INDEX}.{FILEFORMAT}"), 2, Ok(&["train_00000.tfrecord", "train_00001.tfrecord"]));
    check(Some("{SHARD_INDEX}-{NUM_SHARDS}"), 1, Ok(&["00000-00001"]));
    check(Some("all rows.bin"), 1, Ok(&["all rows.bin"]));
    check(Some("{SPLIT}"), 0, Ok(&[]));
    check(Some("all rows.bin"), 2, Err("the same name for all of 2 shards from `all rows.bin`"));
    check(Some("../../../etc/passwd"), 1, Err("`../../../etc/passwd`, which is not a file name in this directory"));
    check(Some("/etc/passwd"), 1, Err("`/etc/passwd`"));
    check(Some("sub/{SPLIT}"), 1, Err("`sub/train`"));
    check(Some("..\\{SPLIT}"), 1, Err("not a file name"));
    check(Some(".."), 1, Err("not a file name"));
    check(Some("a\0b"), 1, Err("not a file name"));
    check(Some("{SPLIT"), 1, Err("`{SPLIT`"));
    check(Some("{HOME}-{SPLIT}"), 1, Err("the variable {HOME}"));
}

#[test]
fn label_files_are_found_and_fit() {
    let label = |classes: u64| json!({ "classLabel": { "numClasses": classes.to_string() } });
    let features = json!({ "featuresDict": { "features": {
        "plain": label(2),
        "a/b": { "featuresDict": { "features": { "c d": label(3) } } },
        "list": { "sequence": { "feature": label(2) } },
    } } });
    let files = [
        ("plain.labels.txt", "no\nyes\n"),
        ("a.b-c d.labels.txt", "\n  one  \r\ntwo\n\n\nthree"),
        ("list.labels.txt", "α\nβ\u{a0}γ\n"),
    ];
    let open = |files: &[(&str, &str)]| {
        let root = scratch("labels");
        let headers =
            [("dataset_info.json", info_of("corpus", &[]).to_string()), ("features.json", features.to_string())];
        write(&root, "corpus/1.0.0", &headers);
        write(&root, "corpus/1.0.0", &files.iter().map(|(name, text)| (*name, (*text).to_owned())).collect::<Vec<_>>());
        (root.clone(), info::read(&CorpusName::parse("corpus").unwrap(), &[root]))
    };
    let (_, info) = open(&files);
    let info = info.unwrap();
    assert!(info.warnings.is_empty(), "{}", info.warnings[0]);
    let text = format!("{:?}", info.features);
    for names in [r#"["no", "yes"]"#, r#"["one", "two", "three"]"#, r#"["α", "β\u{a0}γ"]"#] {
        assert!(text.contains(names), "{text}");
    }
    let mut said = String::new();
    for (what, files) in [
        ("no label file of `list`", &files[..2]),
        ("one name too many", &[files[1], files[2], ("plain.labels.txt", "no\nyes\nmaybe\n")]),
        ("an empty label file", &[files[0], files[1], ("list.labels.txt", "\n")]),
    ] {
        let (root, found) = open(files);
        said.push_str(&tell(&root, what, found));
    }
    settings("").bind(|| insta::assert_snapshot!("headers-labels", said));
}

/// Sub-splits as TFDS resolves them: rows of the shards one after the other.
#[test]
fn sub_splits_are_resolved() {
    let split =
        |name: &str, lengths: &[u64]| SplitInfo { name: name.into(), shard_lengths: lengths.to_vec(), template: None };
    let infos = [split("train", &[40, 35, 30]), split("translate-test", &[7]), split("empty", &[])];
    let show = |parts: Vec<Part>| {
        parts.iter().map(|p| format!("{} {}..{}", p.split, p.rows.start, p.rows.end)).collect::<Vec<_>>().join(" + ")
    };
    let mut said = String::new();
    for expression in [
        "train",
        "train[:]",
        "train[:3]",
        "train[-20:]",
        "train[:-20]",
        "train[-30:-10]",
        "train[105:]",
        "train[:0]",
        "train[1_0:2_0]",
        "train[ 5 : 6 ]",
        "train[5]",
        "train[-1]",
        "train[10%:20%]",
        "train[:1%]",
        "train[50%:]",
        "train[-10%:]",
        "train[:0.5%]",
        "train[33%:66%]",
        "train[1shard]",
        "train[-1shard]",
        "train[:2shard]",
        "train[1shard:2shard]",
        "train[3shard:]",
        "translate-test[:50%]",
        "empty",
        "empty[:50%]",
        "train[:3] + translate-test",
        "train[:1]+train[:1]",
        "all",
        "all+train[:1]",
        "test",
        "",
        "train+",
        "train[106:]",
        "train[:-106]",
        "train[105]",
        "train[50:10]",
        "train[:101%]",
        "train[4shard:]",
        "train[3shard]",
        "train[a:]",
        "train[1:2:3]",
        "train[",
        "train]",
        "train[10%]",
        "train[:nan%]",
        "train[:99999999999999999999]",
    ] {
        let found = splits::resolve(expression, &infos, 1.0).map_or_else(|problem| format!("! {problem}"), show);
        said.push_str(&format!("{expression:<28} {found}\n"));
    }
    for scale in [0.5, 0.1, 0.001] {
        let found = splits::resolve("train[:-200]", &[split("train", &[150])], scale)
            .map_or_else(|problem| format!("! {problem}"), show);
        said.push_str(&format!("{:<28} {found}\n", format!("train[:-200] of 150 by {scale}")));
    }
    settings("").bind(|| insta::assert_snapshot!("headers-sub-splits", said));
}

#[test]
fn places_are_cut_out_of_parts() {
    let parts = vec![
        Part { split: "a".into(), rows: 10..20 },
        Part { split: "b".into(), rows: 0..5 },
        Part { split: "a".into(), rows: 0..3 },
    ];
    let check = |range: std::ops::Range<u64>, expected: &[(&str, std::ops::Range<u64>)]| {
        let expected: Vec<Part> = expected.iter().map(|(s, r)| Part { split: (*s).into(), rows: r.clone() }).collect();
        assert_eq!(clip(parts.clone(), &range), expected, "{range:?}");
    };
    check(0..u64::MAX, &[("a", 10..20), ("b", 0..5), ("a", 0..3)]);
    check(0..10, &[("a", 10..20)]);
    check(9..11, &[("a", 19..20), ("b", 0..1)]);
    check(12..12, &[]);
    check(14..17, &[("b", 4..5), ("a", 0..2)]);
    check(18..99, &[]);
}
