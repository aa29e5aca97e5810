//! Prompts with exemplars, FLAN v1's mixtures, and contamination: what only some recipes ask for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flanc::shard::inspect::{NamedOrigin, provenance};
use flanc::shard::reader;
use flanc::task::{self, Folder};
use flanc::tokenize::Tokenizer;
use flanc::verify::verify;

use super::compile::{Compiler, Scratch, bytes, copy_tree, run, text};

/// The origins of every prompt in the shards below a folder, with the text of its inputs.
fn prompts(out: &Path, folder: &str) -> Vec<(NamedOrigin, String)> {
    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    let manifest = flanc::shard::manifest::require(out).unwrap();
    let mut found = Vec::new();
    let shards = manifest.files.iter().map(|f| &f.path).filter(|f| f.starts_with(folder));
    for file in shards.filter(|f| !f.ends_with(".provenance.parquet")) {
        let provenance_file = file.replace(".parquet", ".provenance.parquet");
        let mut origins = Vec::new();
        for batch in reader::open(out, &provenance_file, 100).unwrap() {
            origins.extend(provenance(&batch.unwrap(), &provenance_file).unwrap().concat());
        }
        let mut origins = origins.into_iter();
        for batch in reader::open(out, file, 100).unwrap() {
            let batch = batch.unwrap();
            let (ids, ends) = reader::lists_i32(&batch, "input_ids", file).unwrap();
            for row in ends.windows(2) {
                let (origin, target_start, _) = origins.next().unwrap();
                let inputs: Vec<u32> = ids[row[0] as usize..][..target_start].iter().map(|&id| id as u32).collect();
                found.push((origin, tokenizer.decode(&inputs)));
            }
        }
    }
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

const THREE: &str = "tasks = ['rte', 'trec', 'aeslc']";

#[test]
fn exemplars_are_other_training_rows() {
    let out = Scratch::new();
    run(&format!("{THREE}\nhold_out = ['rte']\nshots = 3\ntemplates = 2"), &out);
    verify(&out).unwrap_or_else(|e| panic!("{}", text(&e)));
    let mut exemplars = 0;
    for (folder, held_out) in [("tasks/", false), ("eval/", true)] {
        for (origin, inputs) in prompts(&out, folder) {
            assert_eq!(origin.task == "rte", held_out);
            assert!(origin.exemplars.len() <= 3);
            exemplars += origin.exemplars.len();
            for exemplar in &origin.exemplars {
                assert_eq!(exemplar.split, "train", "{origin:?}");
                assert_ne!((&exemplar.split, exemplar.row), (&origin.split, origin.row));
                assert_eq!(exemplar.template, origin.template);
            }
            let rows: BTreeSet<u64> = origin.exemplars.iter().map(|e| e.row).collect();
            assert_eq!(rows.len(), origin.exemplars.len(), "one row twice: {origin:?}");
            if origin.task == "trec" {
                assert_eq!(origin.exemplars.len(), 3, "short prompts have room for all: {inputs}");
            }
        }
    }
    assert!(exemplars > 100);
}

/// Few tokens leave room for some of them, or none; a prompt is never cut for an exemplar's sake.
#[test]
fn exemplars_keep_to_their_budget() {
    let (roomy, tight) = (Scratch::new(), Scratch::new());
    let keys = "tasks = ['trec', 'imdb_reviews']\nshots = 5\ntemplates = 3\nlengths = { inputs = 400, targets = 64 }";
    run(&format!("{keys}\nexemplar_tokens = 'none'"), &roomy);
    run(&format!("{keys}\nexemplar_tokens = 120"), &tight);
    let count = |out: &Path| prompts(out, "tasks/").iter().map(|(o, _)| o.exemplars.len()).sum::<usize>();
    assert!(count(&tight) > 0 && count(&tight) < count(&roomy), "{} {}", count(&tight), count(&roomy));
    let tokenizer = Tokenizer::open("data/tokenizer.json".as_ref()).unwrap();
    for (origin, inputs) in prompts(&tight, "tasks/").iter().filter(|(o, _)| !o.exemplars.is_empty()) {
        let mut ids = Vec::new();
        tokenizer.encoder().encode_into(inputs, &mut ids).unwrap();
        let tokens = ids.len();
        assert!(tokens <= 122, "{tokens} tokens: {origin:?}"); // the joints may take a token more than their parts
    }
}

#[test]
fn exemplars_do_not_depend_on_threads() {
    let (one, three) = (Scratch::new(), Scratch::new());
    let keys = format!("{THREE}\nshots = 2\nexemplar_templates = 'mixed'\ntemplates = 'one'");
    Compiler { threads: 1, ..Compiler::default() }.run(&keys, &one);
    Compiler { threads: 3, ..Compiler::default() }.run(&keys, &three);
    assert_eq!(bytes(&one), bytes(&three));
    let mixed = prompts(&one, "tasks/");
    assert!(mixed.iter().any(|(o, _)| o.exemplars.iter().any(|e| e.template != o.template)));
}

/// FLAN v1: the first rows, the i-th through template i mod 10, an incomplete ten dropped, markers, and an end of
/// sequence after the inputs.
#[test]
fn flan_v1_is_positional() {
    let out = Scratch::new();
    let manifest = run("tasks = ['rte', 'trec']\ncompat = 'flan-v1'\ncap = 27", &out);
    for task in &manifest.tasks {
        assert_eq!(task.splits["train"].prompts, 20, "27 rows make two whole tens");
    }
    let catalogue = super::compile::bundled();
    for (origin, inputs) in prompts(&out, "tasks/").iter().filter(|(o, _)| o.split == "train") {
        let templates = &catalogue.task(&origin.task).unwrap().definition.templates;
        // Validation rows are cut from the end of train, and counted from their own first one.
        let position = origin.row as usize;
        if position < 20 {
            assert_eq!(origin.template, templates[position % 10].name.text);
        }
        assert!(inputs.starts_with("0 ") && inputs.ends_with(" X 1 FLAN<eos>"), "{inputs}");
    }
}

/// FLAN v1 with exemplars: turns one after the other, exemplars through any template.
#[test]
fn flan_v1_joins_turns() {
    let out = Scratch::new();
    run("tasks = ['trec']\ncompat = 'flan-v1'\nshots = 2", &out);
    for (origin, inputs) in prompts(&out, "tasks/") {
        assert_eq!(inputs.matches(" X 1 ").count(), origin.exemplars.len() + 1, "{inputs}");
        assert_eq!(inputs.matches(" X 0 ").count(), origin.exemplars.len(), "{inputs}");
        assert_eq!(origin.exemplars.len(), 2);
    }
}

#[test]
fn flan_v1_takes_the_fields_of_the_release() {
    let (ours, theirs) = (Scratch::new(), Scratch::new());
    run("tasks = ['cnn_dailymail']\ncap = 10\ntemplates = 'round-robin'", &ours);
    run("tasks = ['cnn_dailymail']\ncap = 10\ncompat = 'flan-v1'", &theirs);
    let longest = |out: &Path| prompts(out, "tasks/cnn_dailymail/train").iter().map(|(_, i)| i.len()).max().unwrap();
    assert!(longest(&theirs) < longest(&ours), "the release loses the articles");
}

/// Two corpora, one of which repeats the evaluation rows of the other.
#[test]
fn contamination_is_counted_and_left_out() {
    let scratch = Scratch::new();
    let (data, definitions, schemas) = (scratch.join("data"), scratch.join("defs"), scratch.join("schemas"));
    for (name, tree) in [("data", &data), ("schemas", &schemas)] {
        for copy in ["rte", "again"] {
            copy_tree(&Path::new(name).join("super_glue/rte"), &tree.join("super_glue").join(copy));
        }
        copy_tree(&Path::new(name).join("trec"), &tree.join("trec"));
    }
    let info = data.join("super_glue/again/1.0.2/dataset_info.json");
    fs::write(&info, fs::read_to_string(&info).unwrap().replace("\"rte\"", "\"again\"")).unwrap();
    fs::create_dir_all(&definitions).unwrap();
    let rte = fs::read_to_string("template-defs/natural-language-inference/rte.toml").unwrap();
    fs::write(definitions.join("rte.toml"), &rte).unwrap();
    fs::copy("template-defs/misc/trec.toml", definitions.join("trec.toml")).unwrap();
    let again = "task = 'again'\nlike = 'rte'\ndataset = 'Again'\ntfds = 'super_glue/again:1.0.2'\n\
                 splits = { train = 'validation+train[:10]' }\n";
    fs::write(definitions.join("again.toml"), again).unwrap();
    let folders = (Folder::Directory(definitions), Folder::Directory(schemas));
    let (catalogue, _) = task::load(&folders.0, &folders.1).unwrap_or_else(|e| panic!("{}", text(&e)));
    let compiler = Compiler { catalogue: &catalogue, data, ..Compiler::default() };
    let keys = |contamination: &str| {
        format!(
            "tasks = ['again', 'trec']\nhold_out = ['rte']\ncontamination = '{contamination}'\nsplit_scale = 1\n\
                 [splits]\nrte = {{ train = 'train[10:]', test = 'validation' }}\ntrec = {{ train = 'train[1:]', validation = 'train[:1]' }}"
        )
    };
    let (ignored, counted, dropped) = (Scratch::new(), Scratch::new(), Scratch::new());
    let manifest = compiler.run(&keys("ignore"), &ignored).manifest;
    assert_eq!(manifest.contamination, []);

    let manifest = compiler.run(&keys("count"), &counted).manifest;
    let of = |task: &str| manifest.contamination.iter().find(|o| o.task == task).unwrap();
    let evaluated = manifest.tasks.iter().find(|t| t.task == "rte").unwrap().splits["test"].rows;
    let (held_out, again, trec) = (of("rte"), of("again"), of("trec"));
    assert_eq!((held_out.rows, held_out.overlapping, held_out.duplicates), (evaluated, evaluated, evaluated));
    assert_eq!((again.rows, again.overlapping, again.duplicates), (evaluated + 10, evaluated, evaluated));
    assert_eq!(trec.overlapping, 0, "questions of another corpus");
    let prompts_of = |manifest: &flanc::shard::manifest::Manifest| {
        manifest.tasks.iter().find(|t| t.task == "again").unwrap().splits["train"].prompts
    };
    assert_eq!(prompts_of(&manifest), (evaluated + 10) * 10);

    let manifest = compiler.run(&keys("drop"), &dropped).manifest;
    assert_eq!(prompts_of(&manifest), 100);
    assert_eq!(manifest.tasks.iter().find(|t| t.task == "again").unwrap().splits["train"].contaminated, evaluated);
    verify(&dropped).unwrap_or_else(|e| panic!("{}", text(&e)));
}

/// A row of what is held out that got into training is found by its provenance, whatever else adds up.
#[test]
fn verify_sees_held_out_rows_in_training() {
    let out = Scratch::new();
    run("tasks = ['rte', 'trec']\nhold_out = ['rte']\ntemplates = 'one'", &out);
    verify(&out).unwrap_or_else(|e| panic!("{}", text(&e)));
    let path = out.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    // As if `trec` were held out by a task over the same rows.
    let trec = manifest["tasks"].as_array().unwrap().iter().position(|t| t["task"] == "trec").unwrap();
    let (corpus, extent) = (manifest["tasks"][trec]["corpus"].clone(), manifest["tasks"][trec]["extent"].clone());
    let rte = 1 - trec;
    manifest["tasks"][rte]["corpus"] = corpus;
    for range in extent.as_array().unwrap() {
        manifest["tasks"][rte]["extent"].as_array_mut().unwrap().push(range.clone());
    }
    fs::write(&path, manifest.to_string()).unwrap();
    let faults = verify(&out).unwrap_err();
    assert!(text(&faults).contains("is held out, as one of `rte`"), "{}", text(&faults));
}
