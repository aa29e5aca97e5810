//! Imported templates: that they print what their own implementations print, and what is said about those that cannot
//! be taken over.
//!
//! `tests/fixtures/import/expected.jsonl` was written by Jinja2 and by FLAN's rule, see `make.py` there;
//! `probes.jsonl` has what Jinja2 3.1.6 prints for expressions of all kinds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flanc::diag::Source;
use flanc::import::{self, Imported, flan, promptsource, writer};
use flanc::task::{self, Catalogue, Folder, Task};
use flanc::template::definition;
use flanc::template::engine::{Row, RowName};
use serde_json::{Map, Value, json};

use super::compile::{Compiler, Scratch, text};

const FIXTURES: &str = "tests/fixtures/import";

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

fn known() -> Catalogue {
    task::load(&Folder::BundledDefinitions, &Folder::BundledSchemas).expect("the bundled definitions are in order").0
}

fn said(imported: &Imported) -> String {
    imported.diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The tasks of an import, as they are after they were written and read again.
fn tasks(imported: &mut Imported) -> BTreeMap<String, Task> {
    let out = Scratch::new();
    let written = import::write(imported, &out, false).unwrap();
    let task = |path: &PathBuf| {
        let definition = task::read_file(path, &Folder::BundledDefinitions).expect("what is written can be read");
        Task::for_any_rows(definition).expect("what is written is in order")
    };
    written.iter().map(task).map(|task| (task.name().to_owned(), task)).collect()
}

/// What every template prints for every row, as `expected.jsonl` has it.
fn printed(task: &Task, rows: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    for (index, line) in rows.lines().enumerate() {
        let row: Map<String, Value> = serde_json::from_str(line).unwrap();
        let name = RowName { split: "", index: index as u64 };
        let bound = task.program.bind(Row::Json(&row), line.len(), name).unwrap().unwrap();
        for (i, template) in task.definition.templates.iter().enumerate() {
            let (parts, options) = match task.program.parts(&bound, i) {
                Ok(printed) if printed.parts.is_empty() => match task.program.render(&bound, i) {
                    Ok(prompt) => (json!([prompt.inputs, prompt.targets]), Value::Null),
                    Err(failure) => (json!(failure.reason.name()), Value::Null),
                },
                Ok(printed) => (json!(printed.parts), json!(printed.choices.as_deref())),
                Err(_) => (Value::Null, Value::Null),
            };
            let name = &template.name.text;
            lines.push(
                json!({ "task": task.name(), "row": index, "template": name, "parts": parts, "options": options }),
            );
        }
    }
    lines
}

fn expected(task: &str) -> Vec<Value> {
    let lines = read("expected.jsonl");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["task"] == task).collect()
}

#[test]
fn promptsource_templates_print_what_jinja2_prints() {
    let mut imported = promptsource::import(&fixture("templates"), &known()).unwrap();
    assert!(imported.diagnostics.is_empty(), "{}", said(&imported));
    assert_eq!((imported.files, imported.templates, imported.taken()), (2, 6, 6));
    let tasks = tasks(&mut imported);
    for (task, rows) in [("super_glue_rte", "rte.jsonl"), ("someone_odd-names", "odd-names.jsonl")] {
        let (ours, theirs) = (printed(&tasks[task], &read(rows)), expected(task));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs);
        }
    }
}

#[test]
fn flan_patterns_print_what_flan_prints() {
    let imports = || {
        let python = flan::import(&fixture("patterns.py"), &known()).unwrap();
        let json = Scratch::new();
        let groups: Map<String, Value> = ["rte", "odd-braces", "same-again", "anli"]
            .iter()
            .map(|name| ((*name).to_owned(), patterns(&python, name)))
            .collect();
        std::fs::write(json.join("patterns.json"), Value::from(groups).to_string()).unwrap();
        let json = flan::import(&json.join("patterns.json"), &known()).unwrap();
        [python, json]
    };
    for mut imported in imports() {
        assert!(imported.diagnostics.is_empty(), "{}", said(&imported));
        let tasks = tasks(&mut imported);
        // Three tasks share the patterns of one group.
        let names: Vec<&str> = tasks.keys().map(String::as_str).collect();
        assert_eq!(names, ["anli_r1", "anli_r2", "anli_r3", "odd-braces", "rte", "same-again"]);
        for group in ["odd-braces", "same-again"] {
            for (ours, theirs) in printed(&tasks[group], &read("odd-braces.jsonl")).iter().zip(expected(group)) {
                // What has nothing to say is no prompt.
                let empty = theirs["parts"][1].as_str().unwrap().trim().is_empty();
                assert_eq!(ours["parts"], if empty { json!("empty-targets") } else { theirs["parts"].clone() });
            }
        }
        let rte = printed(&tasks["rte"], "{\"premise\": \"P\", \"hypothesis\": \"H\", \"label\": 1}");
        assert_eq!(rte[0]["parts"], json!(["P\n\nSo is this true?\nH\n\nOPTIONS:\n- yes\n- no", "no"]));
        assert_eq!(rte[1]["parts"], json!(["Text: P\nClaim: H", "no\n"]));
    }
}

/// The patterns of a group as they are in `patterns.py`, told from what became of them.
fn patterns(imported: &Imported, group: &str) -> Value {
    let task = if group == "anli" { "anli_r1" } else { group };
    let outline = imported.definitions.iter().find(|d| d.task == task).unwrap();
    let back = |template: &str| {
        template.replace("{{ \"{\" }}", "\u{1}").replace("{{ ", "{").replace(" }}", "}").replace('\u{1}', "{")
    };
    let pair = |template: &writer::TemplateOutline| match &template.body {
        writer::BodyOutline::Sides { inputs, targets } => json!([back(inputs), back(targets)]),
        writer::BodyOutline::Prompt { .. } => panic!("FLAN has no such templates"),
    };
    outline.templates.iter().map(pair).collect()
}

#[test]
fn what_cannot_be_taken_over_is_said() {
    insta::with_settings!({ snapshot_path => "../fixtures/import/refused", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::glob!("../fixtures/import/refused", "*.yaml", |path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let imported = promptsource::import(&fixture("refused").join(name), &known()).unwrap();
            let taken = format!("{} of {} templates taken over", imported.taken(), imported.templates);
            insta::assert_snapshot!("said", format!("{taken}\n\n{}", said(&imported)));
        });
    });
}

#[test]
fn nothing_that_someone_went_on_with_is_replaced() {
    let out = Scratch::new();
    let import = || promptsource::import(&fixture("templates"), &known()).unwrap();
    let written = import::write(&mut import(), &out, false).unwrap();
    assert_eq!(written.len(), 2);
    // The same again is no conflict.
    let mut again = import();
    assert_eq!(import::write(&mut again, &out, false).unwrap(), written);
    assert!(again.diagnostics.is_empty(), "{}", said(&again));
    std::fs::write(&written[0], "# finished by hand\n").unwrap();
    let mut again = import();
    assert_eq!(import::write(&mut again, &out, false).unwrap(), written[1..]);
    assert_eq!(again.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), ["file-exists"]);
    assert_eq!(std::fs::read_to_string(&written[0]).unwrap(), "# finished by hand\n");
    assert_eq!(import::write(&mut import(), &out, true).unwrap(), written);
}

/// Random choices hang on the row and the template, and on nothing else.
#[test]
fn choices_are_drawn_by_the_row() {
    let source = Source::new(
        "t.toml",
        "task = 't'\ndialect = 'promptsource'\ntfds = 'none'\ncluster = 'x'\nlicence = ''\n\
         [[template]]\nname = 'a'\nprompt = '{{ range(1000) | choice }} {{ range(1000) | choice }} ||| x'\n\
         [[template]]\nname = 'b'\nanswer_choices = '{{ range(1000) | choice }}'\nprompt = '{{ range(1000) | random }} ||| x'\n",
    );
    let task = || Task::for_any_rows(definition::read(&source).unwrap().0.complete(None).unwrap()).unwrap();
    let rows = "{}\n{}\n";
    let lines = printed(&task(), rows);
    assert_eq!(lines, printed(&task(), rows));
    let inputs: Vec<&str> = lines.iter().map(|line| line["parts"][0].as_str().unwrap()).collect();
    insta::assert_snapshot!(inputs.join(", "), @"921 959, 39, 331 461, 529");
}

/// Every probe prints what Jinja2 prints, or stands in the list of those that are known to differ, with the reason.
#[test]
fn probes_print_what_jinja2_prints_or_are_known_to_differ() {
    let probes = read("probes.jsonl");
    let mut probes = probes.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let context = probes.next().unwrap()["context"].as_object().unwrap().clone();
    let mut differ = Vec::new();
    for probe in probes {
        // In the middle of a prompt, where nothing is stripped.
        let prompt = format!("x ||| [{}", probe["src"].as_str().unwrap());
        let outline = writer::Outline {
            comments: Vec::new(),
            task: "probe".into(),
            folder: String::new(),
            title: None,
            dialect: definition::Dialect::Promptsource,
            like: None,
            tfds: Some("none".into()),
            cluster: Some("x".into()),
            licence: Some(String::new()),
            origin: None,
            splits: Vec::new(),
            fields: Vec::new(),
            templates: vec![writer::TemplateOutline {
                name: "probe".into(),
                kind: definition::Kind::Original,
                body: writer::BodyOutline::Prompt { prompt, answer_choices: None, metadata: Default::default() },
            }],
        };
        let (draft, _) = definition::read(&Source::new("probe.toml", writer::write(&outline))).unwrap();
        let ours = Task::for_any_rows(draft.complete(None).unwrap()).ok().and_then(|task| {
            let bound = task.program.bind(Row::Json(&context), 1000, RowName::default()).unwrap().unwrap();
            let parts = task.program.parts(&bound, 0).ok()?.parts;
            Some(parts[1..].join("|||"))
        });
        let theirs = probe["out"].as_str().map(|out| {
            let out = format!("[{out}");
            out.trim_end_matches(|c: char| c.is_whitespace()).to_owned()
        });
        if ours != theirs {
            differ.push(probe["id"].to_string());
        }
    }
    let list: toml::Table = read("differ.toml").parse().unwrap();
    let known: Vec<String> = list.keys().cloned().collect();
    let sorted = |mut ids: Vec<String>| {
        ids.sort_by_key(|id| id.parse::<u64>().unwrap());
        ids
    };
    assert_eq!(sorted(differ), sorted(known));
}

/// With a schema and splits, which this one has from the bundled task of the same corpus.
#[test]
fn an_imported_definition_compiles() {
    let (definitions, out) = (Scratch::new(), Scratch::new());
    let mut imported = promptsource::import(&fixture("templates"), &known()).unwrap();
    import::write(&mut imported, &definitions, false).unwrap();
    std::fs::copy("template-defs/sentiment/sst2.toml", definitions.join("sst2.toml")).unwrap();
    let folder = Folder::Directory(definitions.to_path_buf());
    let (catalogue, warnings) = task::load(&folder, &Folder::BundledSchemas).unwrap_or_else(|e| panic!("{}", text(&e)));
    assert_eq!(warnings.iter().map(|d| d.code).collect::<Vec<_>>(), ["no-corpus"]);
    let compiler = Compiler { catalogue: &catalogue, ..Compiler::default() };
    let manifest = compiler.run("tasks = ['super_glue_rte']", &out).manifest;
    let task = serde_json::to_value(&manifest).unwrap()["tasks"].to_string();
    // Half of the rows are not what the second template is for, and the prompts of the others are there.
    assert!(task.contains("\"does-not-apply\""), "{task}");
    let out = Scratch::new();
    compiler.run("tasks = ['super_glue_rte', 'sst2']\nhold_out = ['super_glue_rte']", &out);
    assert!(std::fs::read_dir(out.join("eval/super_glue_rte")).unwrap().count() > 0);
}
