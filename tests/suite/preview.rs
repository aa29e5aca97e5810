//! The audit's report: what is in it, that no row is more than text in it, and its scripts.

use std::fs;
use std::path::Path;
use std::process::Command;

use flanc::audit::{Sample, audit};
use flanc::diag::Source;
use flanc::mixture;
use flanc::plan::{Data, sources_of_all_splits, with_tokenizer};
use flanc::preview::page::{MODULES, page};
use flanc::preview::report::report;
use flanc::task::{self, Folder};
use flanc::tokenize::Tokenizer;
use serde_json::{Value, json};

use super::audit::{flanc, put_corpus};
use super::compile::{Scratch, text};

/// Texts that would do something if they were markup, or that are easily cut in the wrong place.
const HOSTILE: [&str; 4] = [
    "</script><script>alert(1)</script> <!-- <img src=x onerror=alert(1)>",
    "A line\u{2028}and a paragraph\u{2029}, \u{202e}turned around, <eos> and </s>",
    "\u{1f600}\u{1f469}\u{200d}\u{1f52c} \u{4e2d}\u{6587} \u{e9}e\u{301}\u{0} \"quoted\" \\ {{ premise }}",
    "short",
];

const DEFINITION: &str = r#"
task = "odd"
tfds = "odd:1.0.0"
cluster = "fixtures"
licence = "CC0"
splits = { train = "train" }

[fields]
text = "text"
options = "['yes', 'no']"
answer = "options[label]"

[[template]]
name = "ask"
inputs = "Text: {{ text }}\nIs it so?\n{{ options_ }}"
targets = "{{ answer }}"

[[template]]
name = "of-some"
inputs = "{% if label_is_yes %}Say yes to {{ text | trim }}{% endif %}"
targets = "{{ answer }}"

[[template]]
name = "write"
kind = "turned-around"
inputs = "Write a text that is “{{ answer }}”."
targets = "{{ text }}"
"#;

/// The task `odd` over [`HOSTILE`], below a directory of its own.
fn odd() -> Scratch {
    let scratch = Scratch::new();
    let rows: Vec<Value> =
        HOSTILE.iter().enumerate().map(|(i, text)| json!({ "text": text, "label": i % 2 })).collect();
    put_corpus("odd", &json!({ "features": { "text": "text", "label": 2 }, "train": rows }), &scratch);
    let definition = DEFINITION.replace("answer = ", "label_is_yes = \"label == 0\"\nanswer = ");
    fs::create_dir(scratch.join("definitions")).unwrap();
    fs::write(scratch.join("definitions/odd.toml"), definition).unwrap();
    scratch
}

const TOKENIZER: &str = "tokenizer.file = 'data/tokenizer.json'\n";

/// The report of `odd` by a recipe.
fn report_of(keys: &str) -> Value {
    let scratch = odd();
    let folder = |name: &str| Folder::Directory(scratch.join(name));
    let (catalogue, _) =
        task::load(&folder("definitions"), &folder("schemas")).unwrap_or_else(|e| panic!("{}", text(&e)));
    let source = Source::new("recipe.toml", keys);
    let (recipe, _) = mixture::read(&source, "".as_ref(), &catalogue).unwrap_or_else(|e| panic!("{}", text(&e)));
    let data = [scratch.join("data")];
    let tokens = recipe.tokenizer.file.is_some();
    let sources =
        sources_of_all_splits(recipe, &catalogue, Data::OnDisk(&data)).unwrap_or_else(|e| panic!("{}", text(&e)));
    if !tokens {
        let found = audit(&sources, None, Sample::All, &|_, _| Ok(())).unwrap();
        return report(&sources, None, &found, 10, None).unwrap();
    }
    let plan = with_tokenizer(sources, &data, Tokenizer::open).unwrap_or_else(|e| panic!("{}", text(&e)));
    let found = audit(&plan, Some(&plan), Sample::All, &|_, _| Ok(())).unwrap();
    report(&plan, Some(&plan), &found, 10, None).unwrap()
}

/// A prompt of a report's only task.
fn prompt<'r>(report: &'r Value, row: usize, template: &str) -> &'r Value {
    let prompts = report["tasks"][0]["rows"][row]["prompts"].as_array().unwrap();
    prompts.iter().find(|prompt| prompt["template"] == template).unwrap()
}

/// The text of a side, and the expressions that its pieces come from.
fn pieces(report: &Value, side: &Value) -> (String, Vec<String>) {
    let task = &report["tasks"][0];
    let entry = |list: &str, index: u64| task[list][index as usize].as_str().unwrap().to_owned();
    let pieces = side["pieces"].as_array().unwrap();
    let text = pieces.iter().map(|piece| entry("texts", piece[0].as_u64().unwrap())).collect();
    let origins = pieces.iter().map(|piece| match piece[1].as_u64().unwrap() {
        0 => String::new(),
        n => entry("origins", n - 1),
    });
    (text, origins.collect())
}

#[test]
fn a_small_report() {
    let mut report = report_of(&format!("{TOKENIZER}lengths = {{ inputs = 40, targets = 16 }}"));
    report.as_object_mut().unwrap().remove("codes");
    report["tokenizer"].as_object_mut().unwrap().remove("special");
    let rows = report["tasks"][0]["rows"].as_array_mut().unwrap();
    rows.drain(..3);
    let text = serde_json::to_string_pretty(&report).unwrap();
    let directory = report["tasks"][0]["about"]["file"].as_str().unwrap().rsplit_once('/').unwrap().0;
    insta::assert_snapshot!(text.replace(directory, "definitions"));
}

#[test]
fn a_prompt_says_where_its_words_come_from() {
    let report = report_of("");
    assert_eq!(report["tokenizer"], Value::Null);
    let ask = prompt(&report, 0, "ask");
    let (text, origins) = pieces(&report, &ask["inputs"]);
    assert_eq!(text, format!("Text: {}\nIs it so?\nOPTIONS:\n- yes\n- no", HOSTILE[0]));
    assert_eq!(origins, ["", "text", "", "options_"]);
    assert_eq!(pieces(&report, &ask["targets"]), ("yes".to_owned(), vec!["answer".to_owned()]));
    assert_eq!((&ask["inputs"]["tokens"], &ask["inputs"]["cut"]), (&json!(""), &Value::Null));
    let write = prompt(&report, 3, "write");
    assert_eq!(pieces(&report, &write["inputs"]).1, ["", "answer", ""]);
    assert_eq!(
        (&write["kind"], &write["inputs"]["masked"], &write["targets"]["masked"]),
        (&json!("turned-around"), &json!(true), &json!(false))
    );
    let failed = prompt(&report, 1, "of-some");
    assert_eq!(failed["failure"]["code"], "empty-inputs");
    assert_eq!((&failed["inputs"], &failed["targets"]), (&Value::Null, &Value::Null));
    assert!(!failed["findings"].as_array().unwrap().is_empty());
}

#[test]
fn a_prompt_says_what_the_recipe_makes_of_it() {
    let counts = |report: &Value, row: usize, template: &str, side: &str| {
        let side = &prompt(report, row, template)[side];
        (side["token_count"].as_u64().unwrap(), side["cut"].clone(), side["special"].clone())
    };
    let with = |keys: &str| report_of(&format!("{TOKENIZER}{keys}"));
    let long = "lengths = { inputs = 30, targets = 16, overflow = ";
    let shortened = with(&format!("{long}'shorten' }}\ntokenizer.separator = '<eos>'"));
    let (tokens, cut, special) = counts(&shortened, 0, "ask", "inputs");
    let (from, to) = (cut[0].as_u64().unwrap(), cut[1].as_u64().unwrap());
    // What is taken away is the end of the longest field, and not that of the inputs.
    assert_eq!(tokens - (to - from), 29, "{cut}");
    assert!(to < tokens);
    assert_eq!(special["after"].as_array().unwrap().len(), 1);
    assert!(special["before"].as_array().unwrap().is_empty());
    let begun = with(&format!("{long}'shorten' }}\ntokenizer.separator = '<eos>'\ntokenizer.bos = '<pad>'"));
    let (tokens, cut, special) = counts(&begun, 0, "ask", "inputs");
    assert_eq!(tokens - (cut[1].as_u64().unwrap() - cut[0].as_u64().unwrap()), 28, "{cut}");
    assert_eq!(special["before"], json!([0]));
    let (tokens, cut, special) = counts(&shortened, 0, "write", "targets");
    assert_eq!(cut, json!([15, tokens]));
    assert_eq!(special["after"].as_array().unwrap().len(), 1);
    let (tokens, cut, _) = counts(&with(&format!("{long}'right' }}")), 0, "ask", "inputs");
    assert_eq!(cut, json!([30, tokens]));
    let (tokens, cut, _) = counts(&with(&format!("{long}'drop' }}")), 0, "ask", "inputs");
    assert_eq!(cut, json!([0, tokens]));
    let shown = with("shots = 1");
    let (text, origins) = pieces(&shown, &prompt(&shown, 0, "ask")["inputs"]);
    assert_eq!(origins[0], "(exemplars)");
    assert!(text.ends_with("- no") && text.matches("OPTIONS:").count() == 2, "{text}");
    let marked = with("wrapper = 'flan-v1'");
    let (text, origins) = pieces(&marked, &prompt(&marked, 3, "ask")["inputs"]);
    assert_eq!((origins[0].as_str(), origins.last().unwrap().as_str()), ("(markers)", "(markers)"));
    assert_eq!(text, "0 Text: short\nIs it so?\nOPTIONS:\n- yes\n- no X 1 FLAN");
}

#[test]
fn no_row_is_markup() {
    let report = report_of(TOKENIZER);
    let page = page(&report);
    assert_eq!(page.matches("</script>").count(), 2);
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains(['\u{2028}', '\u{2029}']));
    assert_eq!(embedded(&page), report);
}

#[test]
fn the_page_loads_nothing() {
    let page = page(&report_of(""));
    let policy = page.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    for source in ["unsafe", "http:", "https:", "*"] {
        assert!(!policy.contains(source), "{policy}");
    }
    // The style would be refused in attributes.
    assert!(!page.split("id=\"data\">").next().unwrap().contains(" style="));
}

/// The bundled rows of all tasks, with the bundled tokenizer.
#[test]
fn a_report_of_the_whole_catalogue() {
    let scratch = Scratch::new();
    let file = |name: &str| scratch.join(name).display().to_string();
    for (name, threads) in [("one.html", "1"), ("eight.html", "8")] {
        let output = flanc(&["audit", "--rows", "20", "--threads", threads, "--html", &file(name)]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let page = fs::read(file("one.html")).unwrap();
    assert!(page == fs::read(file("eight.html")).unwrap(), "threads change the report");
    assert!(page.len() < 15_000_000, "{} bytes", page.len());
    let output = flanc(&["audit", "--html-rows", "3"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn rates_are_asked_and_realised() {
    let scratch = Scratch::new();
    let file = |name: &str| scratch.join(name).display().to_string();
    let tokenizer = fs::canonicalize("data/tokenizer.json").unwrap();
    let recipe = format!(
        "tasks = ['rte', 'cola', 'sst2']\nhold_out = ['sst2']\ntemplates = 1\nsize = {{ prompts = 100 }}\n\
         tokenizer.file = '{}'",
        tokenizer.display()
    );
    fs::write(scratch.join("recipe.toml"), recipe).unwrap();
    let data = |arguments: &[&str]| -> Value {
        let output = flanc(&[&["audit", &file("recipe.toml"), "--html", &file("report.html")], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        embedded(&fs::read_to_string(file("report.html")).unwrap())
    };
    let rates = |data: &Value| -> Vec<Value> {
        data["tasks"].as_array().unwrap().iter().map(|t| t["about"]["rates"].clone()).collect()
    };
    let quotas = data(&[]);
    let [cola, rte, sst2] = &rates(&quotas)[..] else { panic!("{quotas}") };
    assert_eq!(sst2, &Value::Null);
    let number = |value: &Value| value.as_f64().unwrap();
    assert!((number(&cola["asked"]) + number(&rte["asked"]) - 1.0).abs() < 1e-9);
    assert_eq!(number(&rte["realised"]), number(&rte["drawn"]) / 100.0);
    let out = file("out");
    let compiled = flanc(&["compile", &file("recipe.toml"), "--out", &out]);
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let manifest: Value =
        serde_json::from_str(&fs::read_to_string(scratch.join("out/manifest.json")).unwrap()).unwrap();
    let compiled = data(&["--compiled", &out]);
    for (rates, entry) in rates(&compiled).iter().zip(manifest["tasks"].as_array().unwrap()) {
        assert_eq!(rates["realised"], entry["rate_realised"], "{entry}");
    }
    assert_eq!(compiled["compiled"]["plan"], manifest["plan"]);
    let output = flanc(&["audit", "--html", &file("report.html"), "--compiled", &file("absent")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("error[no-manifest]"), "{output:?}");
}

/// The data in a page.
fn embedded(page: &str) -> Value {
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(data).unwrap()
}

#[test]
fn scripts() {
    let Ok(version) = Command::new("node").arg("--version").output() else {
        eprintln!("skipped: the tests of the page's scripts need node");
        return;
    };
    let major: u32 =
        String::from_utf8_lossy(&version.stdout).trim_start_matches('v').split('.').next().unwrap().parse().unwrap();
    if major < 20 {
        eprintln!("skipped: the tests of the page's scripts need node 20");
        return;
    }
    let files = fs::read_dir("tests/page").unwrap().map(|entry| entry.unwrap().path());
    let output = Command::new("node").arg("--test").args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // As one module, no name may be there twice.
    let page = page(&json!({}));
    let script = page.split("<script type=\"module\">").nth(1).unwrap().split("</script>").next().unwrap();
    let scratch = Scratch::new();
    let bundle = scratch.join("bundle.mjs");
    fs::write(&bundle, script).unwrap();
    let output = Command::new("node").arg("--check").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(MODULES.iter().all(|(name, _)| Path::new("src/preview/assets").join(name).is_file()));
}
