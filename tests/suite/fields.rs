//! The fields that definitions derive, against those that FLAN v1's own code derives from the same rows.
//!
//! `tests/fixtures/flan_fields/<task>.jsonl` are made by `tests/flan_fields.py` from the bundled rows; `golden/flan_fields`
//! of the research corpora, where they are at hand, from real ones. Where a definition lists a difference, it is taken
//! as FLAN v1 has it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::ingest::shared_corpora;

/// Fields of FLAN that no definition has to offer: prompts for baselines, labels as numbers, an index.
fn is_offered(task: &str, field: &str) -> bool {
    !(field.starts_with("glm_") || field == "label" || field.starts_with("idx/")) && (task, field) != ("stsb", "answer") // a float there, which is none of its options
}

#[test]
fn fields_are_flans_on_real_rows() {
    let Some(corpora) = shared_corpora() else { return };
    let tasks = check(&corpora.join("golden/flan_fields"), &corpora.join("tfds"));
    assert!(tasks >= 23, "{tasks} tasks");
}

#[test]
fn fields_are_flans_on_the_bundled_rows() {
    let tasks = check(Path::new("tests/fixtures/flan_fields"), Path::new("data"));
    assert!(tasks >= 60, "{tasks} tasks");
}

/// Compares every file of golden fields; gives their number.
fn check(golden: &Path, data: &Path) -> usize {
    let mut tasks = 0;
    let mut differences = Vec::new();
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        let lines: Vec<Value> =
            fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let task = path.file_stem().unwrap().to_str().unwrap();
        let mut splits: Vec<&str> = lines.iter().map(|l| l["split"].as_str().unwrap()).collect();
        splits.dedup();
        for split in splits {
            let of_split: Vec<&Value> = lines.iter().filter(|l| l["split"] == split).collect();
            let ours = derived(task, split, data);
            // FLAN's filters run elsewhere, so its files have rows that ours leave out; never the other way round.
            let missing = of_split.iter().filter(|theirs| ours.iter().all(|o| o["row"] != theirs["row"])).count();
            assert!(missing * 2 < of_split.len(), "{task} {split}: {missing} of {} rows left out", of_split.len());
            for theirs in of_split {
                let Some(ours) = ours.iter().find(|o| o["row"] == theirs["row"]) else { continue };
                for (field, value) in theirs["fields"].as_object().unwrap() {
                    if is_offered(task, field) && &ours["fields"][field] != value {
                        let (row, found) = (&theirs["row"], &ours["fields"][field]);
                        differences.push(format!("{task} {split} row {row}, {field}: {found} is not {value}"));
                    }
                }
            }
        }
        tasks += 1;
    }
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
    tasks
}

fn derived(task: &str, split: &str, data: &Path) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_flanc"))
        .args(["render", task, "--fields", "--flan-v1", "--split", split, "--rows", "..40", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{task}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
