//! The model against transformers' classes (fixtures of `tests/transformers_model.py`), and against itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flanc::diag::Result;
use flanc::model::arena::{Precision, Table};
use flanc::model::config::Config;
use flanc::model::cpu::Cpu;
use flanc::model::decoder::{Decoder, Layout, Purpose};
use flanc::model::ops::{AdafactorStep, Batch, Ops, Rate};
use flanc::model::weights::{self, Dtype};
use flanc::seed::Seed;
use half::bf16;
use safetensors::SafeTensors;

use super::compile::Scratch;

const CASES: [&str; 7] = ["llama", "llama3-tied", "llama-odd", "qwen2", "qwen2-untied", "qwen3", "llama-yarn"];

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/model").join(name)
}

/// What PyTorch computed.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Golden {
        Golden(fs::read(fixture(name).join("golden.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// Token ids by segment, and which of them are trained.
    fn segments(&self) -> Vec<(Vec<u32>, Vec<bool>)> {
        let (ids, trained) = (self.integers("ids"), self.integers("trained"));
        let mut at = 0;
        let segment = |&length: &u32| {
            let range = at..at + length as usize;
            at = range.end;
            (ids[range.clone()].to_vec(), trained[range].iter().map(|&t| t == 1).collect())
        };
        self.integers("lengths").iter().map(segment).collect()
    }

    /// All segments in one row, with loss on what is trained.
    fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        for (ids, trained) in self.segments() {
            batch.push(&ids, |i| trained[i]);
        }
        batch
    }

    /// All segments in one row, every position to be predicted.
    fn whole(&self) -> Batch {
        let mut batch = Batch::default();
        for (ids, _) in self.segments() {
            batch.push(&ids, |_| true);
        }
        batch
    }
}

const SCORE: Purpose = Purpose::Score { places: 0 };
const TRAIN: Purpose = Purpose::Train { recompute: false, master_weights: Precision::F32 };

const STEP: AdafactorStep = AdafactorStep {
    rate: Rate::Fixed(1e-3),
    decay_rate: -0.8,
    max_norm: None,
    eps1: 1e-30,
    eps2: 1e-3,
    clip_threshold: 1.0,
    weight_decay: 0.0,
    scale_parameter: false,
    seed: 17,
};

/// A model laid out for batches of up to 64 tokens, with logits for 7 of them at a time.
fn open(directory: &Path, purpose: Purpose) -> Result<(Decoder, Cpu)> {
    let config = weights::config(directory)?;
    let (decoder, mut cpu) = fresh(config, purpose)?;
    weights::load(directory, &decoder, &mut cpu)?;
    Ok((decoder, cpu))
}

fn fresh(config: Config, purpose: Purpose) -> Result<(Decoder, Cpu)> {
    let (decoder, table): (Decoder, Table) = Decoder::lay_out(config, Layout { tokens: 64, logit_rows: 7, purpose });
    let mut cpu = Cpu::allocate(table)?;
    cpu.set_rotations(&decoder.config.rope(), 64);
    Ok((decoder, cpu))
}

/// Length of the difference over length of `b`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / square(&mut b.iter().map(|&b| f64::from(b))).max(1e-30)
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

#[test]
fn logits_are_those_of_transformers() {
    for name in CASES {
        for purpose in [SCORE, TRAIN] {
            let (golden, (decoder, mut cpu)) = (Golden::read(name), open(&fixture(name), purpose).unwrap());
            let logits = decoder.logits(&mut cpu, &golden.whole());
            let (expected, width) = (golden.floats("logits"), decoder.config.vocabulary);
            let worst = logits.chunks(width).zip(expected.chunks(width)).map(|(a, b)| relative(a, b));
            let worst = worst.fold(0.0, f64::max);
            println!("{name}: logits differ by {worst:.1e}");
            assert!(worst < 1e-4, "{name}: {worst}");
            assert_eq!(logits.len(), expected.len());
        }
    }
}

#[test]
fn gradients_are_those_of_transformers() {
    for name in CASES {
        let mut gradients = Vec::new();
        for recompute in [false, true] {
            let (golden, batch) = (Golden::read(name), Golden::read(name).batch());
            let (decoder, mut cpu) =
                open(&fixture(name), Purpose::Train { recompute, master_weights: Precision::F32 }).unwrap();
            let losses = decoder.train(&mut cpu, &batch, 1.0 / batch.rows.len() as f32);
            let expected = f64::from(golden.floats("loss")[0]);
            assert!((mean(&losses) - expected).abs() < 1e-5 * expected, "{name}: loss {}", mean(&losses));
            let mut worst = ("", 0.0);
            let mut bytes = Vec::new();
            for parameter in &decoder.parameters {
                let gradient = cpu.read(parameter.training.unwrap().0);
                let difference = relative(&gradient, &golden.floats(&format!("gradient.{}", parameter.name)));
                // A bias of the keys adds the same to all scores of a row: its gradient is zero but for rounding.
                if difference > worst.1 && !parameter.name.ends_with("k_proj.bias") {
                    worst = (&parameter.name, difference);
                }
                bytes.extend(gradient);
            }
            println!("{name}: gradients differ by {:.1e} ({})", worst.1, worst.0);
            assert!(worst.1 < 1e-3, "{name}: {worst:?}");
            gradients.push(bytes);
        }
        assert_eq!(gradients[0], gradients[1], "{name}: what is computed again is what was computed");
    }
}

#[test]
fn ten_steps_of_adafactor_are_those_of_transformers() {
    for name in CASES {
        let golden = Golden::read(name);
        let batch = golden.batch();
        for kind in ["absolute", "scaled", "relative"] {
            let (decoder, mut cpu) = open(&fixture(name), TRAIN).unwrap();
            let mut worst: f64 = 0.0;
            for expected in golden.floats(&format!("steps.{kind}")) {
                decoder.zero_gradients(&mut cpu);
                let loss = mean(&decoder.train(&mut cpu, &batch, 1.0 / batch.rows.len() as f32));
                worst = worst.max((loss - f64::from(expected)).abs());
                let step = AdafactorStep {
                    rate: if kind == "relative" { Rate::Relative } else { Rate::Fixed(1e-2) },
                    weight_decay: if kind == "scaled" { 0.1 } else { 0.0 },
                    scale_parameter: kind != "absolute",
                    ..STEP
                };
                decoder.update(&mut cpu, &step);
            }
            println!("{name}, {kind}: losses differ by {worst:.1e}");
            assert!(worst < 1e-4, "{name}, {kind}: {worst}");
        }
    }
}

#[test]
fn packed_rows_are_their_segments_one_by_one() {
    for name in CASES {
        let golden = Golden::read(name);
        let (decoder, mut packed) = open(&fixture(name), TRAIN).unwrap();
        let losses = decoder.train(&mut packed, &golden.batch(), 1.0);
        let (decoder, mut single) = open(&fixture(name), TRAIN).unwrap();
        let mut single_losses = Vec::new();
        for (ids, trained) in golden.segments() {
            let mut batch = Batch::default();
            batch.push(&ids, |i| trained[i]);
            single_losses.extend(decoder.train(&mut single, &batch, 1.0));
        }
        assert!(relative(&losses, &single_losses) < 1e-6);
        for parameter in &decoder.parameters {
            let gradient = parameter.training.unwrap().0;
            let difference = relative(&packed.read(gradient), &single.read(gradient));
            assert!(
                difference < 1e-5 || parameter.name.ends_with("k_proj.bias"),
                "{name} {}: {difference}",
                parameter.name
            );
        }
    }
}

/// Everything a step touches, on one thread and on several.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let config = "{\"model_type\": \"qwen3\", \"vocab_size\": 300, \"hidden_size\": 40, \"intermediate_size\": 96, \
        \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16}";
    let run = |threads: usize, master_weights: Precision| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let purpose = Purpose::Train { recompute: false, master_weights };
            let layout = Layout { tokens: 1000, logit_rows: 300, purpose };
            let (decoder, table) = Decoder::lay_out(Config::parse(config).unwrap(), layout);
            let mut cpu = Cpu::allocate(table).unwrap();
            cpu.set_rotations(&decoder.config.rope(), 500);
            weights::init(Seed(3), &decoder, &mut cpu);
            let mut batch = Batch::default();
            for (number, length) in [400usize, 1, 130, 7, 460].into_iter().enumerate() {
                let stream = Seed(number as u64).stream(&["ids"]);
                let ids: Vec<u32> = (0..length as u64).map(|i| (stream.draw(i) % 300) as u32).collect();
                batch.push(&ids, |_| true);
            }
            for _ in 0..2 {
                decoder.zero_gradients(&mut cpu);
                decoder.train(&mut cpu, &batch, 1e-3);
                decoder.update(&mut cpu, &AdafactorStep { max_norm: Some(0.1), ..STEP });
            }
            decoder.parameters.iter().flat_map(|p| cpu.read(p.weight)).map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    for kept in [Precision::F32, Precision::Bf16] {
        let one = run(1, kept);
        assert!(run(2, kept) == one && run(5, kept) == one, "{kept:?}");
    }
}

/// Steps that are short beside the distance between two numbers of bf16: rounded to nearest, most of what would be learned
/// is lost; by draws, as much is learned as in f32.
#[test]
fn what_steps_are_too_short_for_is_learned_by_draws() {
    let golden = Golden::read("qwen2");
    let batch = golden.batch();
    let learned = |master_weights: Precision, to_nearest: bool| {
        let purpose = Purpose::Train { recompute: false, master_weights };
        let (decoder, mut cpu) = open(&fixture("qwen2"), purpose).unwrap();
        let nearest = |cpu: &mut Cpu| {
            for parameter in &decoder.parameters {
                let values: Vec<f32> = cpu.read(parameter.weight).iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
                cpu.write(parameter.weight, &values);
            }
        };
        nearest(&mut cpu); // all begin with the same
        let mut losses = Vec::new();
        for _ in 0..60 {
            decoder.zero_gradients(&mut cpu);
            losses.push(mean(&decoder.train(&mut cpu, &batch, 1.0 / batch.rows.len() as f32)));
            decoder.update(&mut cpu, &AdafactorStep { rate: Rate::Fixed(3e-5), ..STEP });
            if to_nearest {
                nearest(&mut cpu);
            }
        }
        losses[0] - losses.last().unwrap()
    };
    let (exact, drawn, lost) =
        (learned(Precision::F32, false), learned(Precision::Bf16, false), learned(Precision::F32, true));
    println!("the loss falls by {exact:.5}; drawn {drawn:.5}, to nearest {lost:.5}");
    assert!(exact > 0.0 && (drawn - exact).abs() < 0.1 * exact, "{exact} {drawn}");
    assert!(lost < 0.5 * exact, "{exact} {lost}");
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let scratch = Scratch::new();
    for name in CASES {
        let (decoder, cpu) = open(&fixture(name), SCORE).unwrap();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let directory = scratch.join(format!("{name}-{dtype:?}"));
            weights::save(&directory, &decoder, &cpu, dtype).unwrap();
            let (_, again) = open(&directory, SCORE).unwrap();
            for parameter in &decoder.parameters {
                let (before, after) = (cpu.read(parameter.weight), again.read(parameter.weight));
                match dtype {
                    Dtype::F32 => assert_eq!(before, after),
                    Dtype::Bf16 => assert!(relative(&after, &before) < 1.0 / 256.0),
                }
            }
        }
    }
}

/// Where Python has PyTorch and transformers: a checkpoint of ours, loaded there, computes the same logits.
#[test]
fn transformers_loads_what_is_saved() {
    let python = std::env::var("FLANC_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import torch, transformers, safetensors"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} cannot import torch, transformers and safetensors");
        return;
    }
    let scratch = Scratch::new();
    // Qwen3 needs a newer transformers than the PyTorch of Debian runs.
    for (name, dtype) in [
        ("llama", Dtype::F32),
        ("llama3-tied", Dtype::F32),
        ("llama-yarn", Dtype::F32),
        ("qwen2", Dtype::F32),
        ("qwen2-untied", Dtype::Bf16),
    ] {
        let (golden, directory) = (Golden::read(name), scratch.join(name));
        let (decoder, cpu) = open(&fixture(name), SCORE).unwrap();
        weights::save(&directory, &decoder, &cpu, dtype).unwrap();
        let (decoder, mut cpu) = open(&directory, SCORE).unwrap();
        let logits = decoder.logits(&mut cpu, &golden.whole());
        let segments: Vec<Vec<u32>> = golden.segments().into_iter().map(|(ids, _)| ids).collect();
        let expected = serde_json::json!({ "logits": logits, "segments": segments, "tolerance": 1e-4 });
        fs::write(directory.join("expected.json"), expected.to_string()).unwrap();
        let mut script = Command::new(&python);
        let output = script.args(["tests/transformers_model.py", "check"]).arg(&directory).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        println!("{name}: {said}");
    }
}

// ---- Checkpoints that are not as they should be --------------------------------------------------------------------

fn refusal(change: impl Fn(&Path)) -> String {
    let scratch = Scratch::new();
    super::compile::copy_tree(&fixture("qwen2"), &scratch);
    change(&scratch);
    match open(&scratch, SCORE) {
        Err(diagnostic) => diagnostic.to_string(),
        Ok(_) => panic!("refused"),
    }
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_said() {
    let config = |from: &'static str, to: &'static str| {
        refusal(move |directory| {
            let path = directory.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(path, text.replace(from, to)).unwrap();
        })
    };
    assert!(config("\"vocab_size\": 67", "\"vocab_size\": 68").contains("error[weight-shape]"));
    assert!(config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3").contains("error[weight-missing]"));
    assert!(config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1").contains("error[weight-unknown]"));
    assert!(refusal(|d| fs::remove_file(d.join("model.safetensors")).unwrap()).contains("error[no-weights]"));
    let weights = |change: fn(&mut Vec<u8>)| {
        refusal(move |directory| {
            let path = directory.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        })
    };
    assert!(weights(|bytes| bytes.truncate(1000)).contains("error[safetensors]"));
    assert!(weights(|bytes| bytes.truncate(bytes.len() - 4)).contains("error[safetensors]"));
    assert!(weights(|bytes| bytes[..8].fill(0xff)).contains("error[safetensors]"));
    assert!(
        weights(|bytes| *bytes = b"version https://git-lfs.github.com/spec/v1".to_vec()).contains("error[safetensors]")
    );
}
