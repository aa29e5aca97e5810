//! Evaluation: options by rank, answers by generation, and what is counted.

use std::fs;
use std::process::Command;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use flanc::eval::{Evaluation, Report, evaluate};
use flanc::model::config::Config;
use flanc::model::cpu::Cpu;
use flanc::model::decoder::{Decoder, Layout, Purpose};
use flanc::model::ops::{Batch, Ops};
use flanc::model::weights::{self, Dtype};
use flanc::seed::Seed;
use flanc::shard::reader;

use super::compile::{Scratch, run, stderr, walk};

const RECIPE: &str = "tasks = ['trec', 'rte', 'web_nlg_en']\nhold_out = ['rte', 'web_nlg_en']\n\
    lengths = { inputs = 200, targets = 55 }\noutput = { profile = 'packed', sequence = 256 }";

/// A held-out task of two options, one of free text, and a model whose weights are of the given size.
fn bench(init_std: f64) -> Scratch {
    let scratch = Scratch::new();
    run(RECIPE, &scratch.join("data"));
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 256,
        "initializer_range": {init_std}}}"#
    );
    let layout = Layout { tokens: 1, logit_rows: 1, purpose: Purpose::Score };
    let (decoder, table) = Decoder::lay_out(Config::parse(&config).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    weights::init(Seed(1), &decoder, &mut cpu);
    weights::save(&scratch.join("model"), &decoder, &cpu, Dtype::F32).unwrap();
    scratch
}

fn evaluation(scratch: &Scratch) -> Evaluation {
    Evaluation {
        model: scratch.join("model"),
        data: scratch.join("data"),
        tasks: Vec::new(),
        limit: 20,
        longest_answer: 4,
        micro_batch: 700,
    }
}

fn report(evaluation: &Evaluation) -> Report {
    evaluate::<Cpu>(evaluation, |_| ()).unwrap()
}

struct Question {
    template: String,
    inputs: Vec<u32>,
    options: Vec<Vec<u32>>,
    answer: usize,
}

/// The prompts of a task that have options.
fn questions(scratch: &Scratch, task: &str) -> Vec<Question> {
    let data = scratch.join("data");
    let mut found = Vec::new();
    let files =
        walk(&data).into_iter().filter(|f| f.starts_with(&format!("eval/{task}/")) && !f.contains("provenance"));
    for file in files {
        let provenance = file.replace(".parquet", ".provenance.parquet");
        let origins = reader::open(&data, &provenance, 4096).unwrap();
        for (batch, origins) in reader::open(&data, &file, 4096).unwrap().zip(origins) {
            let (batch, origins) = (batch.unwrap(), origins.unwrap());
            let text = |name: &str, row: usize| origins[name].as_string::<i32>().value(row).to_owned();
            let list = |array: &dyn Array| -> Vec<u32> {
                array.as_primitive::<Int32Type>().values().iter().map(|&id| id as u32).collect()
            };
            let answers = batch["answer"].as_primitive::<Int32Type>();
            for row in (0..batch.num_rows()).filter(|&row| text("kind", row) == "original" && answers.value(row) >= 0) {
                let options = batch["options"].as_list::<i32>().value(row);
                let options = options.as_list::<i32>();
                let options = (0..options.len()).map(|o| list(&options.value(o))).collect();
                let inputs = list(&batch["input_ids"].as_list::<i32>().value(row));
                let answer = answers.value(row) as usize;
                found.push(Question { template: text("template", row), inputs, options, answer });
            }
        }
    }
    found
}

/// Each option by itself through the model.
#[test]
fn the_most_likely_option_is_the_answer() {
    let scratch = bench(0.3);
    let report = report(&evaluation(&scratch));
    let rte = report.tasks.iter().find(|t| t.task == "rte").unwrap();
    let layout = Layout { tokens: 256, logit_rows: 64, purpose: Purpose::Score };
    let (decoder, table) = Decoder::lay_out(weights::config(&scratch.join("model")).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    cpu.set_rotations(&decoder.config.rotation_frequencies(), 256);
    weights::load(&scratch.join("model"), &decoder, &mut cpu).unwrap();
    let all = questions(&scratch, "rte");
    assert!(rte.templates.len() > 3 && all.len() > 20, "{} templates, {}", rte.templates.len(), all.len());
    for (template, scores) in &rte.templates {
        let (mut right, mut right_normalised, mut count) = (0, 0, 0);
        for Question { inputs, options, answer, .. } in all.iter().filter(|q| q.template == *template).take(20) {
            let mut likelihood = |option: &Vec<u32>| {
                let mut batch = Batch::default();
                batch.push(&[&inputs[..], option].concat(), |i| i >= inputs.len());
                -decoder.score(&mut cpu, &batch).iter().map(|&l| f64::from(l)).sum::<f64>()
            };
            let sums: Vec<f64> = options.iter().map(&mut likelihood).collect();
            let means: Vec<f64> = sums.iter().zip(options).map(|(sum, o)| sum / o.len() as f64).collect();
            let best =
                |scores: &[f64]| (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            right += u32::from(best(&sums) == *answer);
            right_normalised += u32::from(best(&means) == *answer);
            count += 1;
        }
        let (accuracy, normalised) = (scores.accuracy.unwrap(), scores.accuracy_normalised.unwrap());
        assert_eq!(accuracy.count, count as usize);
        assert_eq!((accuracy.mean * f64::from(count)).round() as u32, right, "{template}");
        assert_eq!((normalised.mean * f64::from(count)).round() as u32, right_normalised, "{template}");
    }
}

/// A model that finds every token equally likely: a token, the first option wins; in all, the first of the shortest.
#[test]
fn ties_go_to_the_first_option() {
    let scratch = bench(0.0);
    let report = report(&evaluation(&scratch));
    let rte = report.tasks.iter().find(|t| t.task == "rte").unwrap();
    let all = questions(&scratch, "rte");
    for (template, scores) in &rte.templates {
        let asked: Vec<_> = all.iter().filter(|q| q.template == *template).take(20).collect();
        let share = |right: &dyn Fn(&Vec<Vec<u32>>) -> usize| {
            asked.iter().filter(|q| right(&q.options) == q.answer).count() as f64 / asked.len() as f64
        };
        let shortest = |options: &Vec<Vec<u32>>| (0..options.len()).min_by_key(|&o| options[o].len()).unwrap();
        assert_eq!(scores.accuracy_normalised.unwrap().mean, share(&|_| 0), "{template}");
        assert_eq!(scores.accuracy.unwrap().mean, share(&shortest), "{template}");
    }
    // Without options there is an answer to be generated: here four times the first token.
    let free = report.tasks.iter().find(|t| t.task == "web_nlg_en").unwrap();
    assert!(free.templates.values().all(|s| s.accuracy.is_none() && s.f1.is_some()), "{free:?}");
    assert_eq!(free.mean["exact_match"], 0.0);
}

/// How prompts share a pass makes no difference, and neither does asking for one task.
#[test]
fn batches_make_no_difference() {
    let scratch = bench(0.3);
    let whole = report(&evaluation(&scratch));
    let small = report(&Evaluation { micro_batch: 1, ..evaluation(&scratch) });
    assert_eq!(whole, small);
    let one = report(&Evaluation { tasks: vec!["rte".into()], ..evaluation(&scratch) });
    assert_eq!(one.tasks[..], whole.tasks.iter().filter(|t| t.task == "rte").cloned().collect::<Vec<_>>()[..]);
}

#[test]
fn the_program_prints_a_table_and_says_what_is_missing() {
    let scratch = bench(0.3);
    let program = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
        command.arg("eval").arg("--model").arg(scratch.join("model")).arg("--data").arg(scratch.join("data"));
        command.args(["--limit", "5", "--longest-answer", "3"]).args(more).output().unwrap()
    };
    let output = program(&[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(said.contains("rte validation (natural-language-inference)") || said.contains("rte test"), "{said}");
    assert!(said.contains("  mean"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&program(&["--json"]).stdout).unwrap();
    assert_eq!(json["tasks"].as_array().unwrap().len(), walk_tasks(&scratch));
    let output = program(&["--task", "rta"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("did you mean `rte`?"), "{}", stderr(&output));
    fs::remove_dir_all(scratch.join("model")).unwrap();
    assert!(stderr(&program(&[])).contains("config.json"));
}

/// Tasks and splits with evaluation shards.
fn walk_tasks(scratch: &Scratch) -> usize {
    let first = |file: &String| file.starts_with("eval/") && file.contains("-00000-") && !file.contains("provenance");
    walk(&scratch.join("data")).iter().filter(|file| first(file)).count()
}
