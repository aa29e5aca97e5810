//! Evaluation: options by rank, answers by generation, metrics against their own packages, and the comparison.

use std::fs;
use std::process::{Command, Output};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use flanc::eval::answer::Model;
use flanc::eval::metrics::{Metric, headline};
use flanc::eval::questions::questions as read_questions;
use flanc::eval::{Evaluation, Report, bleu, evaluate, rouge};
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
    model(&scratch, "model", init_std);
    scratch
}

fn model(scratch: &Scratch, name: &str, init_std: f64) {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": {init_std}}}"#
    );
    let layout = Layout { tokens: 1, logit_rows: 1, purpose: Purpose::Score { places: 0 } };
    let (decoder, table) = Decoder::lay_out(Config::parse(&config).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    weights::init(Seed(1), &decoder, &mut cpu);
    weights::save(&scratch.join(name), &decoder, &cpu, Dtype::F32).unwrap();
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

/// Shards of a task's split.
fn shards(scratch: &Scratch, task: &str, split: &str) -> Vec<String> {
    let begins = format!("eval/{task}/{split}-");
    let files = walk(&scratch.join("data")).into_iter();
    files.filter(|f| f.starts_with(&begins) && !f.contains("provenance")).collect()
}

/// The prompts of a task that have options.
fn questions(scratch: &Scratch, task: &str) -> Vec<Question> {
    let data = scratch.join("data");
    let mut found = Vec::new();
    for file in shards(scratch, task, "test") {
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

/// The model of a bench, laid out for one text at a time.
fn alone(scratch: &Scratch) -> (Decoder, Cpu) {
    let layout = Layout { tokens: 256, logit_rows: 64, purpose: Purpose::Score { places: 0 } };
    let (decoder, table) = Decoder::lay_out(weights::config(&scratch.join("model")).unwrap(), layout);
    let mut cpu = Cpu::allocate(table).unwrap();
    cpu.set_rotations(&decoder.config.rope(), 256);
    weights::load(&scratch.join("model"), &decoder, &mut cpu).unwrap();
    (decoder, cpu)
}

/// Each option by itself through the model.
#[test]
fn the_most_likely_option_is_the_answer() {
    let scratch = bench(0.3);
    let report = report(&evaluation(&scratch));
    let rte = report.tasks.iter().find(|t| t.task == "rte").unwrap();
    let (decoder, mut cpu) = alone(&scratch);
    let all = questions(&scratch, "rte");
    let templates = &rte.test.templates;
    assert!(templates.len() > 3 && all.len() > 20, "{} templates, {}", templates.len(), all.len());
    for scored in templates {
        let (mut right, mut right_normalised, mut count) = (0, 0, 0);
        let template = &scored.template;
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
        let (accuracy, normalised) = (scored.scores[&Metric::Accuracy], scored.scores[&Metric::AccuracyNormalised]);
        assert_eq!(accuracy.count, count as usize);
        assert_eq!((accuracy.value * f64::from(count)).round() as u32, right, "{template}");
        assert_eq!((normalised.value * f64::from(count)).round() as u32, right_normalised, "{template}");
    }
}

/// What is kept of the inputs says the same as the inputs: the likelihoods of options, and every token of an answer,
/// are those of whole texts that go through the model one by one.
#[test]
fn keeping_keys_and_values_changes_nothing() {
    let scratch = bench(0.3);
    let (decoder, mut cpu) = alone(&scratch);
    for (task, ranked) in [("rte", true), ("web_nlg_en", false)] {
        let file = &shards(&scratch, task, "test")[0];
        let mut asked = read_questions(&scratch.join("data"), file, 2048).unwrap();
        asked.truncate(40);
        // One that leaves nothing to be kept, and one alone with its places.
        asked[0].inputs.truncate(1);
        asked[39].inputs.truncate(2);
        let answers: Vec<Vec<u32>> = [256, 700, 2000]
            .iter()
            .map(|&micro_batch| {
                let config = weights::config(&scratch.join("model")).unwrap();
                let mut model = Model::<Cpu>::open(&scratch.join("model"), config, micro_batch, 256).unwrap();
                if ranked {
                    for (question, likelihoods) in asked.iter().zip(model.likelihoods(&asked).unwrap()) {
                        for (option, likelihood) in question.options.iter().zip(likelihoods) {
                            let mut batch = Batch::default();
                            batch.push(&[&question.inputs[..], option].concat(), |i| i >= question.inputs.len());
                            let alone = -decoder.score(&mut cpu, &batch).iter().map(|&l| f64::from(l)).sum::<f64>();
                            let close = |score: f32, of: f64| (f64::from(score) - of).abs() < 1e-5 * of.abs();
                            let scores = (likelihood.in_all, likelihood.per_token);
                            let mean = alone / option.len() as f64;
                            assert!(close(scores.0, alone) && close(scores.1, mean), "{scores:?}, {alone} alone");
                        }
                    }
                    return Vec::new();
                }
                // Answers of different lengths: some end at the first even token.
                let ends = |ids: &[u32]| ids.last().is_some_and(|id| id % 2 == 0);
                let answers = model.generate(&asked, 6, ends).unwrap();
                for (question, answer) in asked.iter().zip(&answers) {
                    let mut text = question.inputs.clone();
                    for (n, &token) in answer.iter().enumerate() {
                        let mut batch = Batch::default();
                        batch.push(&text, |_| false);
                        (batch.rows, batch.targets) = (vec![text.len() as u32 - 1], vec![0]);
                        assert_eq!(decoder.most_likely(&mut cpu, &batch), [token]);
                        assert_eq!(ends(&answer[..=n]) || n == 5, n + 1 == answer.len());
                        text.push(token);
                    }
                }
                let lengths: std::collections::BTreeSet<usize> = answers.iter().map(Vec::len).collect();
                assert!(lengths.len() > 2, "answers of {lengths:?} tokens");
                answers.concat()
            })
            .collect();
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

/// A pass is as long as it was asked to be, or as the longest text has to be; not as the longest that the model takes.
#[test]
fn memory_is_for_texts_that_are_asked_about() {
    let scratch = bench(0.3);
    let tokens = |micro_batch: usize, longest: usize| {
        let config = weights::config(&scratch.join("model")).unwrap();
        let model = Model::<Cpu>::open(&scratch.join("model"), config, micro_batch, longest).unwrap();
        (model.decoder.layout.tokens, model.longest)
    };
    assert_eq!([tokens(1, 100), tokens(160, 100), tokens(1, 1000)], [(100, 100), (160, 160), (256, 256)]);
}

/// A model that finds every token equally likely: a token, the first option wins; in all, the first of the shortest.
#[test]
fn ties_go_to_the_first_option() {
    let scratch = bench(0.0);
    let report = report(&evaluation(&scratch));
    let rte = report.tasks.iter().find(|t| t.task == "rte").unwrap();
    let all = questions(&scratch, "rte");
    for scored in &rte.test.templates {
        let asked: Vec<_> = all.iter().filter(|q| q.template == scored.template).take(20).collect();
        let share = |right: &dyn Fn(&Vec<Vec<u32>>) -> usize| {
            asked.iter().filter(|q| right(&q.options) == q.answer).count() as f64 / asked.len() as f64
        };
        let shortest = |options: &Vec<Vec<u32>>| (0..options.len()).min_by_key(|&o| options[o].len()).unwrap();
        assert_eq!(scored.scores[&Metric::AccuracyNormalised].value, share(&|_| 0), "{}", scored.template);
        assert_eq!(scored.scores[&Metric::Accuracy].value, share(&shortest), "{}", scored.template);
    }
    // Without options there is an answer to be generated: here four times the first token.
    let free = report.tasks.iter().find(|t| t.task == "web_nlg_en").unwrap();
    let has = |metric| free.test.templates.iter().filter(|t| t.scores.contains_key(&metric)).count();
    assert!(has(Metric::Accuracy) == 0 && has(Metric::Bleu) == free.test.templates.len(), "{free:?}");
    assert_eq!(free.test.mean[&Metric::ExactMatch].value, 0.0);
    assert_eq!(free.headline, Metric::Rouge1);
}

/// How prompts share a pass makes no difference, and neither does asking for one task.
#[test]
fn batches_make_no_difference() {
    let scratch = bench(0.3);
    let whole = report(&evaluation(&scratch));
    assert_eq!(whole, report(&Evaluation { micro_batch: 1, ..evaluation(&scratch) }));
    let one = report(&Evaluation { tasks: vec!["rte".into()], ..evaluation(&scratch) });
    assert_eq!(one.tasks[..], whole.tasks.iter().filter(|t| t.task == "rte").cloned().collect::<Vec<_>>()[..]);
}

#[test]
fn the_best_template_on_validation_rows_is_scored_on_test_rows() {
    let scratch = bench(0.3);
    let report = report(&evaluation(&scratch));
    for task in &report.tasks {
        let (best, validation) = (task.best_on_dev.as_ref().unwrap(), task.validation.as_ref().unwrap());
        assert!(!shards(&scratch, &task.task, "validation").is_empty());
        let of = |templates: &[flanc::eval::TemplateScores]| {
            templates.iter().find(|t| t.template == best.template).unwrap().scores[&task.headline]
        };
        assert_eq!((of(&validation.templates), of(&task.test.templates)), (best.validation, best.test));
        let first = validation.templates.iter().find(|t| t.scores[&task.headline].value >= best.validation.value);
        assert_eq!(first.unwrap().template, best.template, "{}", task.task);
        for template in validation.templates.iter().chain(&task.test.templates) {
            for (metric, score) in &template.scores {
                let ends = score.low <= score.value && score.value <= score.high;
                assert!(ends && score.low >= 0.0 && score.high <= 1.0 + 1e-12, "{metric:?} {score:?}");
            }
        }
    }
}

/// BLEU, chrF and ROUGE of `tests/metrics.py`'s pairs, to 1e-9 of what sacrebleu and rouge-score say.
#[test]
fn metrics_are_those_of_their_packages() {
    let golden: serde_json::Value =
        serde_json::from_str(&fs::read_to_string("tests/fixtures/metrics.json").unwrap()).unwrap();
    let text = |pair: &serde_json::Value, name: &str| pair[name].as_str().unwrap().to_owned();
    let pairs: Vec<(String, String)> = golden["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            let (answer, reference) = (text(pair, "answer"), text(pair, "reference"));
            let tokens: Vec<&str> = pair["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
            assert_eq!(bleu::tokens_13a(&answer), tokens, "{answer:?}");
            for (ours, theirs) in rouge::rouge(&answer, &reference).into_iter().zip(pair["rouge"].as_array().unwrap()) {
                let theirs = theirs.as_f64().unwrap();
                assert!((ours - theirs).abs() < 1e-9, "ROUGE {ours}, {theirs}: {answer:?} {reference:?}");
            }
            (answer, reference)
        })
        .collect();
    assert!(pairs.len() > 300);
    let sum = |counts: &mut dyn Iterator<Item = Vec<f64>>| {
        counts.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect()).unwrap()
    };
    for corpus in golden["corpora"].as_array().unwrap() {
        let range = corpus["start"].as_u64().unwrap() as usize..corpus["end"].as_u64().unwrap() as usize;
        let pairs = &pairs[range.clone()];
        let bleu = bleu::bleu(&sum(&mut pairs.iter().map(|(a, r)| bleu::bleu_counts(a, r).to_vec())));
        let chrf = bleu::chrf(&sum(&mut pairs.iter().map(|(a, r)| bleu::chrf_counts(a, r).to_vec())));
        for (name, ours) in [("bleu", bleu), ("chrf", chrf)] {
            let theirs = corpus[name].as_f64().unwrap();
            assert!((100.0 * ours - theirs).abs() < 1e-9, "{name} of {range:?}: {}, {theirs}", 100.0 * ours);
        }
    }
}

#[test]
fn tasks_are_known_by_what_their_clusters_ask_for() {
    assert_eq!(headline(true, "translation", ""), Metric::Accuracy);
    for (cluster, code_cluster, metric) in [
        ("translation", "translation", Metric::Bleu),
        ("summarization", "summarization", Metric::Rouge1),
        ("struct-to-text", "structure_to_text", Metric::Rouge1),
        ("closed-book-qa", "open_domain_qa", Metric::ExactMatch),
        ("misc", "math", Metric::ExactMatch),
        ("misc", "text_formatting", Metric::Verbatim),
        ("misc", "conversational_qa", Metric::F1),
        ("reading-comprehension", "reading_comprehension", Metric::F1),
        ("of-my-own", "", Metric::F1),
    ] {
        assert_eq!(headline(false, cluster, code_cluster), metric, "{cluster} {code_cluster}");
    }
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanc")).arg("eval").args(arguments).output().unwrap()
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_program_prints_a_table_and_says_what_is_missing() {
    let scratch = bench(0.3);
    let (model, data, out) = (scratch.join("model"), scratch.join("data"), scratch.join("report"));
    let program = |more: &[&str]| {
        let first = ["--model", text(&model), "--data", text(&data), "--limit", "5", "--longest-answer", "3"];
        program(&[&first[..], more].concat())
    };
    let output = program(&["--out", text(&out)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(said.contains("rte (natural-language-inference), by accuracy\n"), "{said}");
    assert!(said.contains("web_nlg_en (struct-to-text), by ROUGE-1\n"), "{said}");
    assert!(said.contains("best on validation rows"), "{said}");
    assert!(said.ends_with("\nof up to 5 prompts of each template (--limit)\n"), "{said}");
    assert_eq!(fs::read_to_string(out.join("report.txt")).unwrap(), said);
    let chart = fs::read_to_string(out.join("chart.svg")).unwrap();
    assert!(chart.contains(">rte<") && !chart.contains("NaN"), "{chart}");
    let json: serde_json::Value = serde_json::from_slice(&program(&["--json"]).stdout).unwrap();
    assert_eq!(json["tasks"].as_array().unwrap().len(), 2);
    assert!(json["signatures"]["bleu"].as_str().unwrap().starts_with("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|"));
    let output = program(&["--task", "rta"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("did you mean `rte`?"), "{}", stderr(&output));
    let own = fs::read_to_string(data.join("tokenizer.json")).unwrap();
    fs::write(model.join("tokenizer.json"), own.replace("\"<eos>\"", "\"<end>\"")).unwrap();
    assert!(stderr(&program(&[])).contains("error[other-tokenizer]"));
    fs::remove_dir_all(&model).unwrap();
    assert!(stderr(&program(&[])).contains("config.json"));
}

/// Both models in both ways, from one command; the second time it finds its prompts made.
#[test]
fn a_comparison_is_one_command() {
    let scratch = bench(0.3);
    model(&scratch, "untuned", 0.2);
    let recipe = scratch.join("recipe.toml");
    fs::write(&recipe, format!("{RECIPE}\n[tokenizer]\nseparator = '<eos>'\nfile = '{}'", tokenizer())).unwrap();
    let (untuned, tuned, out) = (scratch.join("untuned"), scratch.join("model"), scratch.join("out"));
    let compare = |more: &[&str]| {
        let models =
            ["compare", "--device", "cpu", "--untuned", text(&untuned), "--tuned", text(&tuned), "--out", text(&out)];
        let few = ["--limit", "4", "--longest-answer", "3", "--shots", "2", "--data-dir", "data"];
        program(&[&models[..], &few, more].concat())
    };
    let output = compare(&[text(&recipe)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(said.contains("| **natural-language-inference** |") && said.contains("| web_nlg_en "), "{said}");
    assert_eq!(fs::read_to_string(out.join("report.md")).unwrap(), said);
    let chart = fs::read_to_string(out.join("chart.svg")).unwrap();
    assert!(chart.contains("tuned, with exemplars") && !chart.contains("NaN"), "{chart}");
    let json: serde_json::Value =
        serde_json::from_slice(&compare(&[text(&recipe), "--json", "--threads", "1"]).stdout).unwrap();
    let written: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(json, written);
    let names: Vec<&str> = json["columns"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["untuned-zero-shot", "untuned-few-shot", "tuned-zero-shot", "tuned-few-shot"]);
    for task in json["tasks"].as_array().unwrap() {
        assert!(task["scores"].as_array().unwrap().iter().all(|s| s["value"].is_number()), "{task}");
    }
    // An untuned model sees fields and no instruction, in a single form; the answer goes on where the text ends.
    let prompt = |way: &str| {
        let data = out.join("prompts").join(way);
        let file = "eval/rte/test-00000-of-00001.parquet";
        let batch = reader::open(&data, file, 1).unwrap().next().unwrap().unwrap();
        let ids = batch["input_ids"].as_list::<i32>().value(0);
        let ids: Vec<u32> = ids.as_primitive::<Int32Type>().values().iter().map(|&id| id as u32).collect();
        flanc::tokenize::Tokenizer::open(&data.join("tokenizer.json")).unwrap().decode(&ids)
    };
    let plain = prompt("untuned-zero-shot");
    assert!(plain.ends_with('\n') && !plain.contains("OPTIONS") && plain.lines().count() == 2, "{plain:?}");
    let few = prompt("untuned-few-shot");
    assert!(few.ends_with(&plain) && few.contains("\n\n"), "{few:?}");
    assert!(prompt("tuned-zero-shot").ends_with("<eos>"));

    // Before anything is compiled.
    let unknown = stderr(&compare(&[text(&recipe), "--task", "rta"]));
    assert!(unknown.contains("did you mean `rte`?") && !unknown.contains(": prompts"), "{unknown}");
    let nothing = compare(&["sample"]);
    assert_eq!(nothing.status.code(), Some(1));
    insta::assert_snapshot!(stderr(&nothing));
    assert_eq!(program(&["compare"]).status.code(), Some(2));
    assert_eq!(program(&[]).status.code(), Some(2));
}

fn tokenizer() -> String {
    std::path::absolute("data/tokenizer.json").unwrap().display().to_string()
}
