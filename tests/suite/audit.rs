//! The audit of templates, by fixtures: `tests/fixtures/audit/<code>-fires….toml` has what a code is for, and
//! `<code>-does-not….toml` what it must not be mistaken for. Beside those that fire is what is said.
//!
//! Every fixture is a task definition, most of them `like` one of those that are named after no code. Rows are in
//! `rows/<corpus>.json`, and a recipe of a fixture's own in `recipes/`. To add a test, add a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use flanc::audit::code::CODES;
use flanc::audit::{Audit, Finding, Sample, Side, audit};
use flanc::diag::Source;
use flanc::mixture;
use flanc::plan::{Data, sources_of_all_splits, with_tokenizer};
use flanc::task::{self, Catalogue, Folder};
use flanc::template::engine::STACK_BYTES;
use flanc::tokenize::Tokenizer;
use serde_json::{Value, json};

use super::compile::{Scratch, frame, text};
use super::ingest::shared_corpora;

const FIXTURES: &str = "tests/fixtures/audit";

#[test]
fn fixtures() {
    insta::with_settings!({
        snapshot_path => "../fixtures/audit",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::glob!("../fixtures/audit", "*-*.toml", |path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let (code, fires) = meant(name).unwrap_or_else(|| panic!("{name}"));
            let found: Vec<Finding> = check(name, 2).findings.into_iter().filter(|f| f.code.name == code).collect();
            let said: Vec<String> = found.iter().map(|f| f.diagnostic().to_string()).collect();
            if fires {
                assert!(!said.is_empty(), "{name} says nothing");
                let said = said.join("\n").lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
                insta::assert_snapshot!("said", said);
            } else {
                assert!(said.is_empty(), "{name}: {}", said.join("\n"));
            }
        });
    });
}

#[test]
fn every_code_has_fixtures() {
    let names: Vec<String> = fixture_names();
    for fires in [true, false] {
        let of_fixtures: BTreeSet<&str> =
            names.iter().filter_map(|name| meant(name)).filter(|(_, f)| *f == fires).map(|(code, _)| code).collect();
        let codes: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
        assert_eq!(of_fixtures, codes, "{fires}");
    }
}

#[test]
fn any_number_of_threads_finds_the_same() {
    for name in ["trailing-blanks-fires", "rows-dropped-fires", "label-in-inputs-fires", "inputs-cut-fires"] {
        let said =
            |threads| -> Vec<String> { check(name, threads).findings.iter().map(|f| f.json().to_string()).collect() };
        assert_eq!(said(1), said(8), "{name}");
    }
}

/// The project's own templates, over the rows that come with it.
#[test]
fn the_catalogue_is_clean() {
    let output = flanc(&["audit", "--fail-on", "note"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let widest = said.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{said}");
}

#[test]
fn the_catalogue_is_clean_on_real_rows() {
    let Some(corpora) = shared_corpora() else { return };
    let tfds = corpora.join("tfds");
    let output = flanc(&["audit", "on-disk", "--data-dir", tfds.to_str().unwrap(), "--fail-on", "note"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_is_found_decides_the_exit_code() {
    let corpora = corpora();
    let data = corpora.join("data");
    let schemas = corpora.join("schemas");
    let run = |arguments: &[&str]| {
        let places =
            ["--templates", FIXTURES, "--schemas", schemas.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        let recipe = corpora.join("recipe.toml");
        fs::write(&recipe, "tasks = ['unused-field-does-not', 'unused-field-fires']").unwrap();
        flanc(&[&["audit", recipe.to_str().unwrap()], &places[..], arguments].concat())
    };
    // One template has fewer than seven beside it, and nothing is worse than that.
    assert_eq!(run(&[]).status.code(), Some(0));
    assert_eq!(run(&["--fail-on", "warning"]).status.code(), Some(1));
    assert_eq!(run(&["--fail-on", "never"]).status.code(), Some(2));
    let places =
        ["--templates", FIXTURES, "--schemas", schemas.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let every_task = flanc(&[&["audit", "--json"], &places[..]].concat());
    assert!(String::from_utf8_lossy(&every_task.stdout).contains("\"code\":\"stray-characters\""), "{every_task:?}");
    let output = run(&["--json", "--fail-on", "warning", "--task", "unused-field-fires", "--rows", "2"]);
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_kind = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert!(
        of_kind("finding")
            .iter()
            .any(|f| f["code"] == "unused-field" && f["line"] == 9 && f["task"] == "unused-field-fires")
    );
    let task = of_kind("task")[0];
    assert_eq!((&task["rows"], &task["prompts"], &task["findings"]["warning"]), (&json!(4), &json!(4), &json!(1)));
}

#[test]
fn lengths_count_exemplars() {
    let median = |keys: &str| check_with("nli", keys, 2).tasks[0].lengths.quantile(Side::Inputs, 0.5);
    let (bare, shown) = (median(""), median("shots = 2"));
    assert!(shown > 2 * bare, "{shown} after {bare}");
    // Exemplars are left out rather than inputs cut; FLAN v1 cuts what is too long.
    assert_eq!(check_with("nli", "shots = 8\nlengths = { inputs = 100, targets = 8 }", 2).tasks[0].lengths.cut, [0, 0]);
}

#[test]
fn codes_are_explained() {
    for code in CODES {
        let output = flanc(&["audit", "--explain", code.name]);
        assert!(output.status.success());
        let page = fs::read_to_string("docs/AUDIT.md").unwrap();
        let severity = code.severity.name();
        assert!(page.contains(&format!("| `{}` | {severity} |", code.name)), "docs/AUDIT.md lacks `{}`", code.name);
    }
    let output = flanc(&["audit", "--explain", "unbalance"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `unbalanced`?"));
}

#[test]
fn a_change_of_templates_shows_in_prompts() {
    let corpora = corpora();
    let (old, new) = (Scratch::new(), Scratch::new());
    let definition = fs::read_to_string(format!("{FIXTURES}/nli.toml")).unwrap();
    fs::write(old.join("nli.toml"), &definition).unwrap();
    let template =
        "\n[[template]]\nname = 'added'\ninputs = '{{ premise }} {{ hypothesis }}'\ntargets = '{{ answer }}'\n";
    let changed = definition.replace("Does it follow?", "Does that follow?").replace("'maybe'", "'unclear'");
    fs::write(new.join("nli.toml"), changed + template).unwrap();
    let output = flanc(&[
        "diff",
        old.to_str().unwrap(),
        new.to_str().unwrap(),
        "--schemas",
        corpora.join("schemas").to_str().unwrap(),
        "--data-dir",
        corpora.join("data").to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap(), @r"
    task and template                                              prompts   altered
    nli base                                                            15        15
      test:0
      - inputs: d then it is silent until six.↵Does ⟦it follow? The clock is silent at three.↵OPTIONS:↵- yes↵- maybe⟧↵- no
      + inputs: d then it is silent until six.↵Does ⟦that follow? The clock is silent at three.↵OPTIONS:↵- yes↵- unclear⟧↵- no
    nli added added                                                     15        15
    all                                                                 30        30
    ");
    let unchanged = flanc(&["diff", "template-defs", "template-defs", "--task", "rte", "--rows", "5"]);
    assert!(String::from_utf8_lossy(&unchanged.stdout).ends_with("      150         0\n"), "{unchanged:?}");
}

// ---- What they go through ------------------------------------------------------------------------------------------

/// The code that a fixture is for, and whether it is to be found.
fn meant(name: &str) -> Option<(&str, bool)> {
    let split = |mark: &str| name.find(mark).map(|at| &name[..at]);
    split("-fires").map(|code| (code, true)).or(split("-does-not").map(|code| (code, false)))
}

fn fixture_names() -> Vec<String> {
    let files = fs::read_dir(FIXTURES).unwrap().map(|entry| entry.unwrap().path());
    let definitions = files.filter(|path| path.extension().is_some_and(|e| e == "toml"));
    definitions.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Audits one fixture over all of its rows, by the recipe that lies beside it.
fn check(name: &str, threads: usize) -> Audit {
    check_with(name, catalogue().recipe(name).unwrap_or_default(), threads)
}

fn catalogue() -> &'static Catalogue {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    CATALOGUE.get_or_init(|| {
        let schemas = Folder::Directory(corpora().join("schemas"));
        match task::load(&Folder::Directory(FIXTURES.into()), &schemas) {
            Ok((catalogue, _)) => catalogue,
            Err(errors) => panic!("{}", text(&errors)),
        }
    })
}

fn check_with(name: &str, keys: &str, threads: usize) -> Audit {
    let catalogue = catalogue();
    let corpora = corpora();
    let tasks = if keys.contains("tasks =") { String::new() } else { format!("tasks = ['{name}']\n") };
    let source = Source::new("recipe", format!("{tasks}{keys}\ntokenizer.file = 'data/tokenizer.json'"));
    let (recipe, _) = mixture::read(&source, "".as_ref(), catalogue).unwrap_or_else(|e| panic!("{}", text(&e)));
    let data = [corpora.join("data")];
    let sources =
        sources_of_all_splits(recipe, catalogue, Data::OnDisk(&data)).unwrap_or_else(|e| panic!("{}", text(&e)));
    let plan = with_tokenizer(sources, &data, Tokenizer::open).unwrap_or_else(|e| panic!("{}", text(&e)));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES).build().unwrap();
    pool.install(|| audit(&plan, Some(&plan), Sample::All, &|_, _| Ok(()))).unwrap_or_else(|e| panic!("{e}"))
}

pub fn flanc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanc")).args(arguments).output().unwrap()
}

/// The corpora of `rows/*.json` as TFDS would have them, below `data`, and their schemas.
fn corpora() -> &'static Path {
    static CORPORA: OnceLock<Scratch> = OnceLock::new();
    CORPORA.get_or_init(|| {
        let scratch = Scratch::new();
        for entry in fs::read_dir(format!("{FIXTURES}/rows")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let corpus: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            put_corpus(name, &corpus, &scratch);
        }
        scratch
    })
}

/// A corpus as TFDS would have it, below `data`, and its schema below `schemas`.
pub fn put_corpus(name: &str, corpus: &Value, root: &Path) {
    let features = features(&corpus["features"]);
    for directory in ["data", "schemas"].map(|d| root.join(d).join(name).join("1.0.0")) {
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("features.json"), features.to_string()).unwrap();
    }
    write_corpus(name, corpus, &root.join("data").join(name).join("1.0.0"));
}

/// `text` and numbers of classes, as features.json has them.
fn features(of: &Value) -> Value {
    let class = |module: &str, class: &str| format!("tensorflow_datasets.core.features.{module}.{class}");
    let feature = |kind: &Value| match kind.as_u64() {
        Some(classes) => json!({
            "pythonClassName": class("class_label_feature", "ClassLabel"), "classLabel": { "numClasses": classes.to_string() },
        }),
        None => json!({ "pythonClassName": class("text_feature", "Text"), "text": {} }),
    };
    let features: BTreeMap<&String, Value> =
        of.as_object().unwrap().iter().map(|(n, kind)| (n, feature(kind))).collect();
    json!({ "pythonClassName": class("features_dict", "FeaturesDict"), "featuresDict": { "features": features } })
}

/// Rows may be there several times over, each time with another number in place of `#`.
fn write_corpus(name: &str, corpus: &Value, directory: &Path) {
    let times = corpus["times"].as_u64().unwrap_or(1);
    let mut splits = Vec::new();
    for (split, rows) in corpus.as_object().unwrap().iter().filter(|(_, rows)| rows.is_array()) {
        let mut shard = Vec::new();
        let rows = rows.as_array().unwrap();
        for time in 0..times {
            rows.iter().for_each(|row| shard.extend(frame(&example(row.as_object().unwrap(), &time.to_string()))));
        }
        fs::write(directory.join(format!("{name}-{split}.tfrecord-00000-of-00001")), shard).unwrap();
        splits.push(json!({
            "name": split, "shardLengths": [(rows.len() as u64 * times).to_string()],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }));
    }
    let info = json!({ "name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": splits });
    fs::write(directory.join("dataset_info.json"), info.to_string()).unwrap();
}

/// A `tf.train.Example` of texts and integers.
fn example(row: &serde_json::Map<String, Value>, number: &str) -> Vec<u8> {
    let mut features = Vec::new();
    for (name, value) in row {
        let feature = match value {
            Value::String(text) => field(1, &field(1, text.replace('#', number).as_bytes())),
            // A packed list of one varint; -1 takes ten bytes.
            other => field(3, &field(1, &varint(other.as_i64().unwrap() as u64))),
        };
        features.extend(field(1, &[field(1, name.as_bytes()), field(2, &feature)].concat()));
    }
    field(1, &features)
}

/// A field of a protocol buffer that has a length.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [&varint(number << 3 | 2)[..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 128 {
        bytes.push(n as u8 | 128);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}
