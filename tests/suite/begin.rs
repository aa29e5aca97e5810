//! What prompts begin with, by the recipe; and a recipe in the tokens of the model that it is compiled for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flanc::diag::Source;
use flanc::mixture;
use flanc::model::config::Config;
use flanc::model::cpu::Cpu;
use flanc::model::decoder::{Decoder, Layout, Purpose};
use flanc::model::ops::Ops;
use flanc::model::weights::{self, Dtype};
use flanc::plan;
use flanc::seed::Seed;
use flanc::tokenize::Tokenizer;
use flanc::verify::verify;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::compile::{Prompt, Scratch, bundled, lists, prompts, run, shards, stderr, text};

const TASKS: &str = "tasks = ['rte', 'trec']\nhold_out = ['rte']\n";
/// `<pad>`: the bundled tokenizer has no token for this alone.
const BOS: &str = "tokenizer.bos = '<pad>'\n";
/// A tokenizer of 802 tokens whose post-processor puts `<|begin_of_text|>` before every text.
const LLAMA: &str = "tests/fixtures/tokenizers/byte-level-llama3.json";
const BEGIN_OF_TEXT: u32 = 800;

// ---- What a recipe says --------------------------------------------------------------------------------------------

#[test]
fn every_prompt_begins_with_the_token() {
    for profile in ["packed", "sft", "megatron"] {
        let (plain, begun) = (Scratch::new(), Scratch::new());
        let keys = format!("{TASKS}output.profile = '{profile}'\n");
        run(&keys, &plain);
        let manifest = run(&format!("{keys}{BOS}"), &begun);
        assert_eq!(manifest.tokenizer.bos, Some((0, "<pad>".to_owned())));
        verify(&begun).unwrap_or_else(|faults| panic!("{profile}: {}", text(&faults)));
        for folder in ["tasks/", "eval/"] {
            let (plain, begun) = (prompts(&plain, folder), prompts(&begun, folder));
            assert!(!plain.is_empty() && plain.len() == begun.len());
            for (plain, begun) in plain.iter().zip(&begun) {
                assert_eq!(begun.segment.name, plain.segment.name);
                assert_eq!(begun.inputs(), [&[0], plain.inputs()].concat());
                assert_eq!(begun.targets(), plain.targets());
            }
        }
        for (plain, begun) in shards(&plain, "eval/").iter().zip(shards(&begun, "eval/")) {
            assert_eq!(&plain.batch["options"], &begun.batch["options"]);
        }
        let mixed = prompts(&begun, "mixture/");
        assert!(mixed.len() > 100 && mixed.iter().all(|prompt| prompt.ids[0] == 0));
        for file in manifest.files {
            let file = SerializedFileReader::new(fs::File::open(begun.join(file.path)).unwrap()).unwrap();
            let said = file.metadata().file_metadata().key_value_metadata().unwrap();
            assert!(said.iter().any(|pair| pair.key == "flanc.bos_id" && pair.value.as_deref() == Some("0")));
        }

        // What was made without it is not taken for what has it.
        let path = plain.join("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(manifest["tokenizer"].get("bos").is_none(), "manifests stay as they were");
        manifest["tokenizer"]["bos"] = serde_json::json!([0, "<pad>"]);
        fs::write(&path, manifest.to_string()).unwrap();
        let faults = text(&verify(&plain).unwrap_err());
        for folder in ["tasks", "eval", "mixture"] {
            assert!(faults.contains(&format!("{folder}/")), "{profile}: {faults}");
        }
        assert!(faults.contains("row 0: a segment does not begin with `<pad>`"), "{faults}");
    }
}

/// It is one of the tokens that a recipe allows for inputs, is never cut off, and stands before exemplars but once.
#[test]
fn the_lengths_count_the_token() {
    const LENGTH: usize = 60;
    for keys in ["overflow = 'shorten'", "overflow = 'right'", "overflow = 'drop'"] {
        let out = Scratch::new();
        let lengths = format!("lengths = {{ inputs = {LENGTH}, targets = 31, {keys} }}\n");
        run(&format!("{TASKS}shots = 2\ntokenizer.separator = '<eos>'\n{lengths}{BOS}"), &out);
        verify(&out).unwrap_or_else(|faults| panic!("{keys}: {}", text(&faults)));
        let prompts = [prompts(&out, "tasks/"), prompts(&out, "eval/")].concat();
        let longest = prompts.iter().map(|prompt| prompt.inputs().len()).max().unwrap();
        assert!((LENGTH - 3..=LENGTH).contains(&longest), "{keys}: {longest}");
        for prompt in &prompts {
            assert_eq!(places(prompt, 0), [0], "{keys}");
            assert_eq!(places(prompt, 1), [prompt.inputs().len() - 1, prompt.ids.len() - 1], "{keys}");
        }
    }
}

fn places(prompt: &Prompt, id: i32) -> Vec<usize> {
    (0..prompt.ids.len()).filter(|&at| prompt.ids[at] == id).collect()
}

/// The warnings of a plan that has other programs' tokenizer, in a recipe with these keys.
fn warnings(keys: &str) -> String {
    let recipe = format!("{TASKS}split_scale = 0.04\n[tokenizer]\nfile = '{LLAMA}'\n{keys}\n");
    let (recipe, _) = mixture::read(&Source::new("recipe.toml", recipe), Path::new(""), bundled()).unwrap();
    text(&plan::plan(recipe, bundled(), &["data".into()]).unwrap().warnings)
}

#[test]
fn a_tokenizer_that_is_used_to_one_is_warned_of() {
    insta::assert_snapshot!(warnings(""));
    assert_eq!(warnings("bos = '<|begin_of_text|>'"), "");
    assert_eq!(warnings("bos = 'none'"), "");
}

// ---- The tokens of a model -----------------------------------------------------------------------------------------

/// A model without experience, and the tokenizer that it has beside its weights.
fn model(directory: &Path, tokenizer: Option<&str>) {
    let config = r#"{"model_type": "llama", "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512}"#;
    let layout = Layout { tokens: 1, logit_rows: 1, purpose: Purpose::Score { places: 0 } };
    let (decoder, table) = Decoder::lay_out(Config::parse(config).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    weights::init(Seed(1), &decoder, &mut cpu);
    weights::save(directory, &decoder, &cpu, Dtype::F32).unwrap();
    if let Some(tokenizer) = tokenizer {
        fs::copy(tokenizer, directory.join("tokenizer.json")).unwrap();
    }
}

fn flanc(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_flanc")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The README's command, for a model with another tokenizer than the recipe's.
#[test]
fn a_recipe_is_compiled_in_the_tokens_of_the_model() {
    let scratch = Scratch::new();
    let (begun, out) = (scratch.join("begun"), scratch.join("run"));
    model(&begun, Some(LLAMA));
    // The end is said by its id, and the beginning by the post-processor.
    fs::write(begun.join("generation_config.json"), r#"{"eos_token_id": [801, 7], "pad_token_id": 801}"#).unwrap();
    let (begun, run) = (begun.display().to_string(), out.display().to_string());
    let few = ["--steps", "2", "--tokens-per-step", "512", "--device", "cpu", "--json"];
    let output =
        flanc(&[&["train", "--recipe", "sample-held-out", "--model", &begun, "--out", &run], &few[..]].concat());
    let end = "<|end_of_text|>";
    let said = format!(
        "sample-held-out: in the tokens of {begun}/tokenizer.json, bos {:?}, eos {end:?}, pad {end:?}, separator {end:?}\n",
        "<|begin_of_text|>"
    );
    assert!(stderr(&output).contains(&said), "{}", stderr(&output));
    let events = String::from_utf8(output.stdout).unwrap();
    let compiled: serde_json::Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(compiled["event"], "compiled");
    assert_eq!(compiled["tokenizer"]["bos"], serde_json::json!([BEGIN_OF_TEXT, "<|begin_of_text|>"]));
    verify(&out.join("data")).unwrap_or_else(|faults| panic!("{}", text(&faults)));

    let trained = out.join("model");
    assert_eq!(fs::read(trained.join("tokenizer.json")).unwrap(), fs::read(LLAMA).unwrap());
    let read_by = json(trained.join("tokenizer_config.json"));
    assert_eq!((&read_by["add_bos_token"], &read_by["bos_token"]), (&true.into(), &"<|begin_of_text|>".into()));
    assert_eq!(json(trained.join("generation_config.json"))["bos_token_id"], BEGIN_OF_TEXT);
    let (trained, data) = (trained.display().to_string(), out.join("data").display().to_string());
    let asked = ["--task", "cb", "--limit", "1", "--device", "cpu"];
    flanc(&[&["eval", "--model", &trained, "--data", &data], &asked[..]].concat());
}

/// The tokenizer beside a finished model does as the data had it, whatever it did before.
#[test]
fn a_finished_model_goes_on_as_the_data_began() {
    let scratch = Scratch::new();
    let recipe = "tasks = ['rte', 'trec']\nlengths = { inputs = 96, targets = 31 }\noutput.sequence = 128\n";
    let fresh = scratch.join("fresh");
    model(&fresh, None);
    let fresh = fresh.join("config.json").display().to_string();
    for (name, keys, bos) in [("begun", BOS, Some("<pad>")), ("plain", "", None)] {
        run(&format!("{recipe}{keys}"), &scratch.join(name));
        let (data, out) = (scratch.join(name), scratch.join(format!("{name}-run")));
        let (data, run) = (data.display().to_string(), out.display().to_string());
        let few = ["--steps", "1", "--tokens-per-step", "128", "--device", "cpu"];
        flanc(&[&["train", "--data", &data, "--init", &fresh, "--out", &run], &few[..]].concat());
        let tokenizer = Tokenizer::open(&out.join("model/tokenizer.json")).unwrap();
        assert_eq!(tokenizer.begins_with(), bos);
        let read_by = json(out.join("model/tokenizer_config.json"));
        assert_eq!(read_by["add_bos_token"], bos.is_some());
        assert_eq!(read_by["bos_token"].as_str(), bos);
    }
}

/// A model that was not tuned is asked as its own tokenizer has it, and the tuned one as the recipe trained it.
#[test]
fn each_model_of_a_comparison_is_asked_in_its_own_way() {
    let scratch = Scratch::new();
    let (untuned, tuned, out) = (scratch.join("untuned"), scratch.join("tuned"), scratch.join("out"));
    model(&untuned, Some(LLAMA));
    model(&tuned, Some(LLAMA));
    fs::write(tuned.join("tokenizer_config.json"), r#"{"add_bos_token": false}"#).unwrap();
    let recipe = scratch.join("recipe.toml");
    let keys = "lengths = { inputs = 200, targets = 55 }\noutput.sequence = 256\n[tokenizer]\neos = '</s>'";
    fs::write(&recipe, format!("{TASKS}{keys}")).unwrap();
    let [recipe, model, other, report] = [&recipe, &untuned, &tuned, &out].map(|path| path.display().to_string());
    let few = ["--limit", "1", "--shots", "1", "--data-dir", "data", "--device", "cpu"];
    flanc(
        &[&["eval", "compare", &recipe, "--untuned", &model, "--tuned", &other, "--out", &report], &few[..]].concat(),
    );
    for (way, begins) in [("untuned-zero-shot", true), ("untuned-few-shot", true), ("tuned-zero-shot", false)] {
        for shard in shards(&out.join("prompts").join(way), "eval/") {
            let inputs = lists(&shard.batch, "input_ids");
            assert!(inputs.iter().all(|ids| (ids[0] == BEGIN_OF_TEXT as i32) == begins), "{way}");
        }
    }
}
