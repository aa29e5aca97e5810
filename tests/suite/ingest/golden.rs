use std::fs;
use std::path::Path;
use std::process::Command;

use flanc::ingest::Corpus;
use flanc::ingest::info::CorpusName;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{read, root, shared_corpora};

/// Every split of every corpus in `shared`: the hash that TFDS's own rows have.
#[test]
fn rows_are_those_of_tfds() {
    let Some(corpora) = shared_corpora() else { return };
    let golden = corpora.join("golden");
    let mut summaries = vec![golden.join("SUMMARY.jsonl")];
    let alternatives = fs::read_dir(&golden).unwrap().map(|entry| entry.unwrap().path().join("SUMMARY.jsonl"));
    summaries.extend(alternatives.filter(|path| path.is_file()));
    let lines: Vec<Value> = summaries
        .iter()
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect();
    let differing: Vec<String> = lines
        .par_iter()
        .filter_map(|line| {
            let [path, split, expected] = ["path", "split", "sha256"].map(|key| line[key].as_str().unwrap());
            let found = sha256(&corpora, path, split);
            (found != expected).then(|| format!("{path} {split}: {found}"))
        })
        .collect();
    assert_eq!(differing, [""; 0]);
    assert!(lines.len() >= 99, "{} splits", lines.len());
}

/// The hash over the canonical rows of one split of the version directory `path`.
fn sha256(corpora: &Path, path: &str, split: &str) -> String {
    let (data_dir, name) = data_dir_and_name(corpora, path);
    let corpus =
        Corpus::open(&CorpusName::parse(&name).unwrap(), &[data_dir]).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut hash = Sha256::new();
    let said = read(&corpus, &corpus.resolve(split, 1.0).unwrap(), |line| {
        hash.update(line);
        hash.update("\n");
    });
    // feature_zoo holds bytes that are no text, on purpose.
    assert!(said.iter().all(|diagnostic| diagnostic.code == "invalid-utf8"), "{path} {split}: {}", said[0]);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a version directory hangs: `…/<name>[/<config>]/<version>`, the config as dataset_info.json has it.
fn data_dir_and_name(corpora: &Path, path: &str) -> (std::path::PathBuf, String) {
    let directory = corpora.join(path);
    let info: Value = serde_json::from_slice(&fs::read(directory.join("dataset_info.json")).unwrap()).unwrap();
    let above: Vec<&str> = path.rsplitn(4, '/').collect();
    let [version, last, before, ..] = above[..] else { panic!("{path} is too short") };
    let config = info["configName"].as_str().is_some_and(|config| config == last);
    let levels = if config { 3 } else { 2 };
    let name = if config { format!("{before}/{last}:{version}") } else { format!("{last}:{version}") };
    (directory.ancestors().nth(levels).unwrap().to_owned(), name)
}

/// The bundled corpus of all feature kinds: the rows that TFDS decoded from it.
#[test]
fn feature_kinds_are_read_as_tfds_reads_them() {
    let data = root().join("data");
    let corpus = Corpus::open(&CorpusName::parse("feature_kinds").unwrap(), std::slice::from_ref(&data)).unwrap();
    let mut rows = Vec::new();
    let said = read(&corpus, &corpus.resolve("all", 1.0).unwrap(), |line| rows.push(line.to_owned()));
    assert!(said.iter().all(|diagnostic| diagnostic.code == "invalid-utf8"), "{}", said[0]);
    let golden = fs::read_to_string(data.join("rows/feature_kinds.golden.jsonl")).unwrap();
    let golden: Vec<&str> = golden.split_terminator('\n').collect();
    assert_eq!(rows.len(), golden.len());
    for (number, (row, golden)) in rows.iter().zip(golden).enumerate() {
        assert_eq!(row, golden, "row {number}");
    }
}

/// The bundled corpora are what `data/make.py` writes.
#[test]
fn bundled_corpora_are_up_to_date() {
    let check = Command::new("python3").arg(root().join("data/make.py")).arg("--check").output();
    let Ok(output) = check else {
        println!("skipped: there is no python3");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nwrite them again with: python3 data/make.py");
}
