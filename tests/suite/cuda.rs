//! The backend for GPUs over the simulator: whole models through the launches that run on a GPU, against the CPU.

mod evaluation;

use std::ffi::c_void;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use flanc::diag::Result;
use flanc::model::arena::{Group, Kind, Precision, Table};
use flanc::model::config::Config;
use flanc::model::cpu::Cpu;
use flanc::model::cuda::device::{ALIGNMENT, Arg, Buffer, Device, Launch, Product, Recording};
use flanc::model::cuda::{Cuda, attention, bench, check, context, gemm, layout};
use flanc::model::decoder::{Decoder, Layout, Purpose};
use flanc::model::ops::{AdafactorStep, Batch, Moments, Ops, Rate};
use flanc::model::ranks::{Place, Ranks};
use flanc::model::weights;
use flanc::seed::Seed;
use flanc::train::Event;
use half::bf16;
use libloading::Library;

use super::compile::{Scratch, stderr, walk};
use super::simulator::{self, SEEDS, Simulator};

/// The simulator as a device: an arena in the memory of the host.
pub struct Simulated {
    simulator: &'static Simulator,
    /// Order in which threads, warps and blocks run.
    seed: u32,
    arena: Vec<u8>,
    /// The arena's first aligned byte.
    start: usize,
    /// What was recorded, and what is being recorded.
    recordings: Vec<Vec<Task>>,
    recording: Option<Vec<Task>>,
    /// How many recordings there are, and how often one was done again.
    counts: Arc<[AtomicUsize; 2]>,
}

/// What can be recorded.
enum Task {
    Zero(Buffer),
    Copy(Buffer, Buffer),
    Launch { kernel: String, grid: [usize; 3], block: usize, shared: usize, arguments: Vec<Arg> },
}

impl Simulated {
    /// None, and a sentence about it, where there is no C++ compiler.
    fn get(seed: u32) -> Option<Simulated> {
        Some(Simulated {
            simulator: Simulator::get()?,
            seed,
            arena: Vec::new(),
            start: 0,
            recordings: Vec::new(),
            recording: None,
            counts: Arc::default(),
        })
    }

    /// Keeps a task where one is recorded; hands it back otherwise.
    fn keep(&mut self, task: Task) -> Option<Task> {
        match &mut self.recording {
            Some(recording) => {
                recording.push(task);
                None
            }
            None => Some(task),
        }
    }

    fn bytes(&mut self, buffer: Buffer) -> &mut [u8] {
        &mut self.arena[self.start + buffer.at as usize..][..buffer.bytes as usize]
    }
}

impl Device for Simulated {
    type Sent = Vec<u8>;

    fn open() -> Result<Simulated> {
        Ok(Simulated::get(0).expect("a C++ compiler, which was asked for before"))
    }

    fn name(&self) -> String {
        "simulator".to_owned()
    }

    fn take(&mut self, bytes: u64) -> Result<(), u64> {
        const MOST: u64 = 1 << 30;
        if bytes > MOST {
            return Err(MOST);
        }
        self.recordings.clear();
        self.arena = vec![0; (bytes + ALIGNMENT) as usize];
        self.start = self.arena.as_ptr().align_offset(ALIGNMENT as usize);
        Ok(())
    }

    fn upload(&mut self, to: Buffer, bytes: &[u8]) {
        assert!(self.recording.is_none(), "an upload cannot be recorded");
        self.bytes(to)[..bytes.len()].copy_from_slice(bytes);
    }

    fn bring(&mut self, to: Buffer, by: [Buffer; 2], bytes: &[u8]) {
        assert!(by.iter().all(|by| by.bytes >= bytes.len() as u64));
        self.upload(to, bytes);
    }

    fn download(&self, from: Buffer, bytes: &mut [u8]) {
        assert!(self.recording.is_none(), "a download cannot be recorded");
        assert!(bytes.len() as u64 <= from.bytes);
        bytes.copy_from_slice(&self.arena[self.start + from.at as usize..][..bytes.len()]);
    }

    fn send(&mut self, from: Buffer, bytes: usize) -> Vec<u8> {
        assert!(self.recording.is_none(), "nothing that is sent can be recorded");
        self.bytes(from)[..bytes].to_vec()
    }

    fn arrived(&mut self, sent: Vec<u8>) -> Vec<u8> {
        sent
    }

    fn zero(&mut self, buffer: Buffer) {
        if self.keep(Task::Zero(buffer)).is_some() {
            self.bytes(buffer).fill(0);
        }
    }

    fn copy(&mut self, to: Buffer, from: Buffer) {
        if self.keep(Task::Copy(to, from)).is_some() {
            let bytes = self.bytes(from).to_vec();
            self.bytes(to)[..bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn record(&mut self) {
        assert!(self.recording.replace(Vec::new()).is_none(), "one recording at a time");
    }

    fn recorded(&mut self) -> Recording {
        self.recordings.push(self.recording.take().expect("a recording was begun"));
        self.counts[0].fetch_add(1, Ordering::Relaxed);
        Recording(self.recordings.len() - 1)
    }

    fn replay(&mut self, recording: Recording) {
        self.counts[1].fetch_add(1, Ordering::Relaxed);
        let tasks = std::mem::take(&mut self.recordings[recording.0]);
        for task in &tasks {
            match task {
                Task::Zero(buffer) => self.zero(*buffer),
                Task::Copy(to, from) => self.copy(*to, *from),
                Task::Launch { kernel, grid, block, shared, arguments } => {
                    self.launch(Launch { kernel, grid: *grid, block: *block, shared: *shared }, arguments);
                }
            }
        }
        self.recordings[recording.0] = tasks;
    }

    #[allow(unsafe_code)]
    fn launch(&mut self, launch: Launch<'_>, arguments: &[Arg]) {
        if launch.grid.contains(&0) {
            return;
        }
        if self.recording.is_some() {
            let Launch { kernel, grid, block, shared } = launch;
            let (kernel, arguments) = (kernel.to_owned(), arguments.to_vec());
            self.keep(Task::Launch { kernel, grid, block, shared, arguments });
            return;
        }
        let base = self.bytes(Buffer { at: 0, bytes: 0 }).as_mut_ptr() as u64;
        let mut words: Vec<u64> = arguments.iter().map(|argument| argument.word(base)).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
        let (grid, block) = (launch.grid.map(|blocks| blocks as u32), [launch.block as u32, 1, 1]);
        // SAFETY: as on a GPU, the launcher answers for the arguments; each points to as many bytes of the arena as it
        // says that the kernel touches, and the arena is ours alone.
        let ran = unsafe { self.simulator.launch(launch.kernel, grid, block, launch.shared, &mut pointers, self.seed) };
        if let Err(report) = ran {
            panic!("{launch:?} {arguments:?}: {report}");
        }
    }

    fn multiply(&mut self, product: &Product, _: Buffer) {
        gemm::multiply(self, product);
    }

    fn sum_over_ranks(&mut self, buffer: Buffer, numbers: usize, ranks: &mut Ranks) -> Result<()> {
        let own: Vec<f32> =
            self.bytes(buffer).as_chunks().0[..numbers].iter().map(|b| f32::from_le_bytes(*b)).collect();
        let sum = ranks.sum(None, &own)?;
        self.upload(buffer, &sum.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        Ok(())
    }

    fn synchronize(&self) {}

    fn healthy(&self) -> Result<()> {
        Ok(())
    }
}

/// Families of models that differ in what they consist of, in widths that no tile likes.
const MODELS: [(&str, &str); 4] = [
    (
        "untied, YaRN",
        r#""model_type": "llama", "head_dim": 32, "num_key_value_heads": 1,
        "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 48}"#,
    ),
    ("tied, all biases", r#""model_type": "llama", "attention_bias": true, "tie_word_embeddings": true"#),
    ("biases of q, k, v", r#""model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": true"#),
    ("norm of q and k", r#""model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32"#),
];

fn config(parts: &str) -> Config {
    let text = format!(
        r#"{{{parts}, "vocab_size": 131, "hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 4, "initializer_range": 0.1}}"#
    );
    Config::parse(&text).unwrap()
}

const SCORE: Purpose = Purpose::Score { places: 0 };
const TRAIN: Purpose = Purpose::Train { recompute: false, master_weights: Precision::F32 };
const TRAIN_IN_BF16: Purpose = Purpose::Train { recompute: false, master_weights: Precision::Bf16 };

fn lay_out(parts: &str, purpose: Purpose) -> (Decoder, Table) {
    Decoder::lay_out(config(parts), Layout { tokens: 150, logit_rows: 50, purpose })
}

/// Fresh weights, rounded to what the device computes with: what then differs is computing.
fn fill(decoder: &Decoder, ops: &mut impl Ops) {
    ops.set_rotations(&decoder.config.rope(), 150);
    weights::init(Seed(17), decoder, ops);
    for parameter in &decoder.parameters {
        let rounded: Vec<f32> = ops.read(parameter.weight).iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
        ops.write(parameter.weight, &rounded);
    }
}

fn on_cpu(parts: &str, purpose: Purpose) -> (Decoder, Cpu) {
    let (decoder, table) = lay_out(parts, purpose);
    let mut cpu = Cpu::allocate(table).unwrap();
    fill(&decoder, &mut cpu);
    (decoder, cpu)
}

fn simulated(parts: &str, purpose: Purpose, seed: u32) -> Option<(Decoder, Cuda<Simulated>)> {
    let (decoder, table) = lay_out(parts, purpose);
    let mut cuda = Cuda::over(Simulated::get(seed)?, table).unwrap();
    fill(&decoder, &mut cuda);
    Some((decoder, cuda))
}

/// Three segments, of which one is longer than a tile and one a single token.
fn segments() -> Vec<Vec<u32>> {
    let ids = |number: u64, length: u64| {
        let stream = Seed(number).stream(&["ids"]);
        (0..length).map(|i| (stream.draw(i) % 131) as u32).collect()
    };
    vec![ids(1, 70), ids(2, 1), ids(3, 43)]
}

fn batch() -> Batch {
    let mut batch = Batch::default();
    for ids in segments() {
        batch.push(&ids, |i| i >= ids.len() / 3);
    }
    batch
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

const STEP: AdafactorStep = AdafactorStep {
    rate: Rate::Fixed(1e-2),
    decay_rate: -0.8,
    max_norm: Some(0.1),
    eps1: 1e-30,
    eps2: 1e-3,
    clip_threshold: 1.0,
    weight_decay: 0.01,
    scale_parameter: false,
    seed: 11 << 35 | 3,
};

/// Steps as a run does them; the loss of each.
fn steps(decoder: &Decoder, ops: &mut impl Ops, count: u32) -> Vec<f64> {
    let batch = batch();
    let step = |_| {
        decoder.zero_gradients(ops);
        let loss = mean(&decoder.train(ops, &batch, 1.0 / batch.rows.len() as f32));
        let norm = decoder.update(ops, &STEP);
        let norm = ops.norm_arrived(norm);
        assert!(norm.finite && norm.value > STEP.max_norm.unwrap(), "{norm:?}");
        loss
    };
    (0..count).map(step).collect()
}

// bf16 keeps 8 bits: rounding is some 2⁻⁹ = 0.002 of a number. A result goes through a dozen roundings a layer, which
// partly cancel out.

#[test]
fn logits_are_those_of_the_cpu() {
    for (name, parts) in MODELS {
        for purpose in [SCORE, TRAIN] {
            let Some((decoder, mut cuda)) = simulated(parts, purpose, 0) else { return };
            let (_, mut cpu) = on_cpu(parts, purpose);
            let (found, expected) = (decoder.logits(&mut cuda, &batch()), decoder.logits(&mut cpu, &batch()));
            let difference = relative(&found, &expected);
            println!("{name}: logits differ by {difference:.1e}");
            assert!(difference < 1.5e-2, "{name}: {difference}");
            let most_likely = decoder.most_likely(&mut cuda, &batch());
            let of_row = |row: &[f32]| row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
            assert_eq!(most_likely, found.chunks(131).map(of_row).collect::<Vec<_>>(), "{name}");
        }
    }
}

#[test]
fn gradients_are_those_of_the_cpu() {
    for (name, parts) in MODELS {
        for recompute in [false, true] {
            let purpose = Purpose::Train { recompute, master_weights: Precision::F32 };
            let Some((decoder, mut cuda)) = simulated(parts, purpose, 1) else { return };
            let (_, mut cpu) = on_cpu(parts, purpose);
            let weight = 1.0 / batch().rows.len() as f32;
            let (found, expected) =
                (decoder.train(&mut cuda, &batch(), weight), decoder.train(&mut cpu, &batch(), weight));
            assert!(relative(&found, &expected) < 1e-2, "{name}");
            let mut worst = (0.0, "");
            for parameter in &decoder.parameters {
                let gradient = parameter.training.unwrap().0;
                let difference = relative(&cuda.read(gradient), &cpu.read(gradient));
                // A bias of the keys adds the same to all scores of a row: its gradient is zero but for rounding.
                if difference > worst.0 && !parameter.name.ends_with("k_proj.bias") {
                    worst = (difference, &parameter.name);
                }
            }
            println!("{name}: gradients differ by {:.1e} ({})", worst.0, worst.1);
            assert!(worst.0 < 3e-2, "{name}: {worst:?}");
        }
    }
}

#[test]
fn three_steps_are_those_of_the_cpu() {
    for ((name, parts), purpose) in MODELS.into_iter().flat_map(|model| [(model, TRAIN), (model, TRAIN_IN_BF16)]) {
        let Some((decoder, mut cuda)) = simulated(parts, purpose, 2) else { return };
        let (_, mut cpu) = on_cpu(parts, purpose);
        let (found, expected) = (steps(&decoder, &mut cuda, 3), steps(&decoder, &mut cpu, 3));
        println!("{name}: {found:.4?} {expected:.4?}");
        assert!(expected[2] < expected[0] - 0.1, "{name}: there is something to be learned: {expected:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-2 * expected, "{name}: {found} {expected}");
        }
    }
}

/// Weights in bf16 alone, moved by the same in f32 here and there: a gradient of ±1 and steps of which `1 - β₂ = 1 / t` and
/// its root are exact. What is left of it is decided by the same draws.
#[test]
fn weights_are_rounded_as_on_the_cpu() {
    const SHAPES: [&[usize]; 5] = [&[13, 7], &[5, 64], &[3, 1030], &[37], &[64]];
    fn moved<O: Ops>(allocate: impl Fn(Table) -> O) -> Vec<Vec<f32>> {
        let mut table = Table::default();
        let mut add = |kind, shape: &[usize]| table.add(Group::Workspace, kind, "operand", shape);
        let tensors: Vec<_> = SHAPES
            .iter()
            .map(|shape| {
                let (w, g) = (add(Kind::Weight(Precision::Bf16), shape), add(Kind::Exact, shape));
                let moments = match **shape {
                    [o, i] => Moments::Factored { rows: add(Kind::Exact, &[o]), columns: add(Kind::Exact, &[i]) },
                    _ => Moments::Full(add(Kind::Exact, shape)),
                };
                (w, g, moments)
            })
            .collect();
        let mut ops = allocate(table);
        let draw = |tensor: usize, i: usize| Seed(tensor as u64).stream(&["operand"]).draw(i as u64);
        let mut left = Vec::new();
        for (t, seed) in [(1, 0), (4, 5 << 33 | 1), (16, 5 << 33 | 1)] {
            for (n, &(w, g, moments)) in tensors.iter().enumerate() {
                let numbers = |number: &dyn Fn(u64) -> f32| -> Vec<f32> {
                    (0..SHAPES[n].iter().product()).map(|i| number(draw(n, i))).collect()
                };
                ops.write(w, &numbers(&|d| ((d >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.1));
                ops.write(g, &numbers(&|d| if d % 2 == 0 { 1.0 } else { -1.0 }));
                let moments = match moments {
                    Moments::Factored { rows, columns } => vec![rows, columns],
                    Moments::Full(all) => vec![all],
                };
                moments.into_iter().for_each(|moments| ops.zero(moments));
            }
            ops.set_steps_done(t - 1);
            let exact = AdafactorStep { rate: Rate::Fixed(1.7e-4), decay_rate: -1.0, max_norm: None, ..STEP };
            ops.set_step(&AdafactorStep { clip_threshold: 1e9, seed, ..exact });
            ops.begin_step(&tensors.iter().map(|t| t.1).collect::<Vec<_>>());
            for &(w, g, moments) in &tensors {
                ops.adafactor(w, g, moments);
                left.push(ops.read(w));
            }
        }
        left
    }
    let expected = moved(|table| Cpu::allocate(table).unwrap());
    for seed in SEEDS {
        let Some(device) = Simulated::get(seed) else { return };
        let device = std::cell::Cell::new(Some(device));
        let found = moved(|table| Cuda::over(device.take().unwrap(), table).unwrap());
        for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let wrong = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(wrong, None, "schedule {seed}, tensor {n}");
        }
    }
}

/// Two ranks, each with its part of the segments, come to the gradients of one.
#[test]
fn ranks_sum_their_gradients() {
    let (name, parts) = MODELS[1];
    let part = |segments: &mut dyn Iterator<Item = Vec<u32>>| {
        let mut batch = Batch::default();
        segments.for_each(|ids| batch.push(&ids, |i| i >= ids.len() / 3));
        batch
    };
    let Some((decoder, mut one)) = simulated(parts, TRAIN, 0) else { return };
    for rank in 0..2 {
        decoder.train(&mut one, &part(&mut segments().into_iter().skip(rank).step_by(2)), 0.1);
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let sums = |rank: usize| {
        let mut ranks = Ranks::connect(&Place { rank, size: 2, local: 0, first: ("127.0.0.1".into(), port) }).unwrap();
        let (decoder, mut cuda) = simulated(parts, TRAIN, 0).unwrap();
        decoder.train(&mut cuda, &part(&mut segments().into_iter().skip(rank).step_by(2)), 0.1);
        decoder.sum_gradients(&mut cuda, &mut ranks).unwrap();
        decoder.parameters.iter().map(|p| cuda.read(p.training.unwrap().0)).collect::<Vec<_>>()
    };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| sums(1));
        (sums(0), second.join().unwrap())
    });
    assert!(first == second, "all ranks hold the same");
    for (parameter, sum) in decoder.parameters.iter().zip(&first) {
        let difference = relative(sum, &one.read(parameter.training.unwrap().0));
        assert!(
            difference < 1e-4 || parameter.name.ends_with("k_proj.bias"),
            "{name} {}: {difference}",
            parameter.name
        );
    }
}

#[test]
fn packed_rows_are_their_segments_one_by_one() {
    for (name, parts) in MODELS {
        let Some((decoder, mut packed)) = simulated(parts, TRAIN, 3) else { return };
        let losses = decoder.train(&mut packed, &batch(), 1.0);
        let Some((decoder, mut single)) = simulated(parts, TRAIN, 0) else { return };
        let mut single_losses = Vec::new();
        for ids in segments() {
            let mut batch = Batch::default();
            batch.push(&ids, |i| i >= ids.len() / 3);
            single_losses.extend(decoder.train(&mut single, &batch, 1.0));
        }
        // Tiles lie elsewhere: sums are rounded at other places, to f32, and then some to the other bf16.
        assert!(relative(&losses, &single_losses) < 2e-3, "{name}");
        for parameter in &decoder.parameters {
            let gradient = parameter.training.unwrap().0;
            let difference = relative(&packed.read(gradient), &single.read(gradient));
            assert!(
                difference < 1e-2 || parameter.name.ends_with("k_proj.bias"),
                "{name} {}: {difference}",
                parameter.name
            );
        }
    }
}

#[test]
fn any_schedule_gives_the_same_bytes() {
    let (_, parts) = MODELS[3];
    let run = |seed: u32, purpose: Purpose| {
        let (decoder, mut cuda) = simulated(parts, purpose, seed)?;
        let losses = steps(&decoder, &mut cuda, 2);
        let weights = decoder.parameters.iter().flat_map(|p| cuda.read(p.weight)).map(f32::to_bits);
        Some((losses, weights.collect::<Vec<_>>()))
    };
    for purpose in [TRAIN, TRAIN_IN_BF16] {
        let Some(first) = run(SEEDS[0], purpose) else { return };
        for &seed in &SEEDS[1..] {
            assert!(run(seed, purpose).as_ref() == Some(&first), "schedule {seed}, {purpose:?}");
        }
    }
}

/// Batches of one shape, and one of another, several times over: what is recorded for a shape is right for all of its
/// batches. Without recordings, which are given up before each step, come the same bytes.
#[test]
fn what_is_recorded_is_what_would_be_done() {
    let (name, parts) = MODELS[3];
    let batches: Vec<Batch> = [(150, 5), (121, 9), (140, 2), (77, 4), (150, 6), (60, 3), (130, 7)]
        .into_iter()
        .map(|(tokens, vocabulary)| check::batch(tokens, vocabulary))
        .collect();
    let run = |recorded: bool| {
        let device = Simulated::get(1)?;
        let counts = device.counts.clone();
        let (decoder, table) = lay_out(parts, TRAIN);
        let mut cuda = Cuda::over(device, table).unwrap();
        fill(&decoder, &mut cuda);
        let mut losses = Vec::new();
        for (i, batch) in batches.iter().enumerate() {
            if !recorded {
                cuda.set_rotations(&decoder.config.rope(), 150);
            }
            decoder.zero_gradients(&mut cuda);
            let sent = decoder.begin(&mut cuda, batch, 150, 1.0 / (i + 1) as f32);
            let norm = decoder.update(&mut cuda, &STEP);
            losses.push(cuda.arrived(sent));
            assert!(cuda.norm_arrived(norm).finite);
        }
        let weights = decoder.parameters.iter().flat_map(|p| cuda.read(p.weight)).map(f32::to_bits).collect::<Vec<_>>();
        Some((losses, weights, counts.each_ref().map(|count| count.load(Ordering::Relaxed))))
    };
    let Some((losses, weights, counts)) = run(true) else { return };
    let (expected, expected_weights, none) = run(false).unwrap();
    let lengths: Vec<usize> = losses.iter().map(Vec::len).collect();
    assert_eq!(lengths, batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>(), "{name}");
    assert!(losses == expected && weights == expected_weights, "{name}");
    // One and two chunks of 50 rows: two shapes of passes. Each work is recorded when it comes a second time.
    let chunks: Vec<usize> = lengths.iter().map(|rows| rows.div_ceil(50)).collect();
    assert_eq!(chunks, [2, 2, 2, 1, 2, 1, 2]);
    assert_eq!((counts, none), ([4, 6 + 6 + 4 + 1], [0, 0]));
}

/// What is filled up gives the same losses, and gradients that differ by rounding only.
#[test]
fn what_is_filled_up_gives_nothing() {
    let (_, parts) = MODELS[3];
    let full = batch().filled(150, 100);
    assert_eq!((full.tokens(), full.segments.iter().sum::<u32>(), full.rows.len()), (150, 150, 100));
    let (decoder, mut cpu) = on_cpu(parts, TRAIN);
    let (_, mut filled) = on_cpu(parts, TRAIN);
    let (losses, with) = (decoder.train(&mut cpu, &batch(), 0.1), decoder.train(&mut filled, &full, 0.1));
    assert_eq!(losses, with[..losses.len()]);
    assert!(with[losses.len()..].iter().all(|&loss| loss == 0.0));
    let gradients = |ops: &Cpu| decoder.parameters.iter().map(|p| ops.read(p.training.unwrap().0)).collect::<Vec<_>>();
    for (found, expected) in gradients(&filled).iter().zip(&gradients(&cpu)) {
        assert!(relative(found, expected) < 1e-6);
    }
}

/// What `flanc gpu check` does on a GPU, and on what this machine has time for.
#[test]
fn the_check_of_a_gpu_passes_on_the_simulator() {
    let Some(device) = Simulated::get(1) else { return };
    let report = |compared: &check::Compared| {
        println!("{compared:?}");
        assert!(compared.passes(), "{compared:?}");
    };
    let widths =
        attention::WIDTHS.map(|head_dim| check::Shape { head_dim, tokens: 70, width: 24, inner: 16, ..check::ODD });
    let device = check::operations(device, &[&[check::ODD], &widths[..]].concat(), report).unwrap();
    check::training(device, 2, report).unwrap();
}

/// What `flanc gpu bench` does, small; its times are those of the simulator.
#[test]
fn the_benchmark_of_a_gpu_runs_on_the_simulator() {
    let Some(device) = Simulated::get(0) else { return };
    let scale =
        bench::Scale { copied: 4096, product: 64, kernels: check::ODD, tokens: 40, texts: 3, past: 20, seconds: 0.0 };
    let (ceilings, device) = bench::ceilings(device, &scale).unwrap();
    let mut timed = Vec::new();
    let device = bench::kernels(device, &scale, ceilings, |t| timed.push(t.clone())).unwrap();
    let device = bench::products(device, &scale, |t| timed.push(t.clone())).unwrap();
    assert_eq!(timed.len(), 26);
    for t in &timed {
        assert!(t.seconds > 0.0 && t.floor_seconds > 0.0, "{t:?}");
    }
    let tiny = r#"{"model_type": "qwen2", "vocab_size": 131, "hidden_size": 64, "intermediate_size": 100,
        "num_hidden_layers": 1, "num_attention_heads": 4}"#;
    let tiny = serde_json::from_str(tiny).unwrap();
    let (speed, _) = bench::model(device, &scale, ceilings, "tiny", &tiny, Precision::F32).unwrap();
    assert!(speed.tokens_per_second > 0.0 && speed.mfu > 0.0 && speed.tokens_per_step == 40, "{speed:?}");
    let answers = &speed.answers;
    assert!(answers.tokens_per_second > 0.0 && answers.share > 0.0 && answers.texts == 3, "{answers:?}");
    for name in bench::MODELS {
        Config::parse(&bench::preset(name).unwrap().to_string()).unwrap();
    }
}

// ---- Memory --------------------------------------------------------------------------------------------------------

/// Bytes of each group, and of everything as it is laid out.
fn bytes(table: &Table) -> ([u64; 5], u64) {
    (Group::ALL.map(|group| table.bytes(group)), layout::places(table).1)
}

#[test]
fn a_plan_counts_what_is_taken() {
    let (decoder, table) = lay_out(MODELS[0].1, TRAIN);
    let parameters = decoder.parameter_count(&table) as u64;
    let (on_cpu, _) = bytes(&table);
    assert_eq!(on_cpu[..2], [4 * parameters, 4 * parameters]);
    let (planned, scratch) = layout::plan(table);
    let (on_gpu, laid_out) = bytes(&planned);
    assert_eq!(on_gpu[..3], [6 * parameters, 4 * parameters, on_cpu[2]], "weights also in bf16; the rest in f32");
    // (N, C), with 32 bytes a token of numbers that stay in f32: rstd twice, the sums of four heads, and one at the end.
    let exact = 4 * 150 * (2 * (2 + 4) + 1);
    assert_eq!(on_gpu[3], exact + (on_cpu[3] - exact) / 2);
    assert_eq!(planned.total_bytes(), on_gpu.iter().sum::<u64>());
    // Every tensor begins at a multiple of 256 bytes, weights and their copies.
    let most = ALIGNMENT * 2 * planned.entries().len() as u64;
    assert!(laid_out >= planned.total_bytes() && laid_out - planned.total_bytes() < most);
    assert_eq!(planned.get(scratch.products).bytes(Precision::Bf16), 32 << 20);

    // Weights in bf16 alone lie there once.
    let (planned, _) = layout::plan(lay_out(MODELS[0].1, TRAIN_IN_BF16).1);
    assert_eq!(bytes(&planned).0, [2 * parameters, on_gpu[1], on_gpu[2], on_gpu[3], on_gpu[4]]);
    assert!(laid_out - bytes(&planned).1 >= 4 * parameters);

    // What is only scored lies there once, in bf16.
    let (scored, _) = layout::plan(lay_out(MODELS[0].1, SCORE).1);
    assert_eq!(scored.bytes(Group::Weights), 2 * parameters);
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(device) = Simulated::get(0) else { return };
    let layout = Layout { tokens: 1 << 20, logit_rows: 64, purpose: TRAIN };
    let (_, table) = Decoder::lay_out(config(MODELS[0].1), layout);
    let Err(said) = Cuda::over(device, table) else { panic!("refused") };
    insta::assert_snapshot!(said.to_string());

    // Where weights are most of it, they may be kept in less.
    let helps = |purpose: Purpose| {
        let config = Config::parse(&bench::preset("7B").unwrap().to_string()).unwrap();
        let (_, table) = Decoder::lay_out(config, Layout { tokens: 4096, logit_rows: 512, purpose });
        let Err(said) = Cuda::over(Simulated::get(0).unwrap(), table) else { panic!("refused") };
        said.to_string().contains("--master-weights bf16 takes 6 bytes")
    };
    assert!(helps(TRAIN) && !helps(TRAIN_IN_BF16));

    let device = Simulated::get(0).unwrap();
    let (_, table) = lay_out(r#""model_type": "llama", "head_dim": 48"#, TRAIN);
    let Err(said) = Cuda::over(device, table) else { panic!("refused") };
    insta::assert_snapshot!(said.to_string());
}

// ---- Without a GPU -------------------------------------------------------------------------------------------------

fn flanc(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_flanc")).args(arguments).output().unwrap();
    (output.status.code(), stderr(&output))
}

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    if !context::find().is_err_and(|e| e.code == context::NO_DRIVER) {
        println!("skipped: this machine has a driver for NVIDIA GPUs");
        return;
    }
    let (code, said) = flanc(&["gpu"]);
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(said);
    for arguments in [
        &["gpu", "check"][..],
        &["gpu", "bench"],
        &["gpu", "all", "--out", "never"],
        &["train", "--data", "never", "--out", "never", "--init", "data/tiny-model/config.json", "--device", "cuda"],
        &["eval", "--data", "never", "--model", "never", "--device", "cuda"],
    ] {
        assert_eq!(flanc(arguments), (Some(1), said.clone()), "{arguments:?}");
    }
    let (code, said) = flanc(&["eval", "--data", "never", "--model", "never"]);
    assert_eq!(code, Some(1), "there is no such data");
    assert!(said.starts_with("computing on the CPU: CUDA's driver was not found"), "{said}");
}

#[test]
fn kernels_compile_where_nvrtc_is() {
    let (code, said) = flanc(&["gpu", "compile", "--arch", "sm_80", "sm_90"]);
    if said.contains("error[no-nvrtc]") {
        assert_eq!(code, Some(1));
        println!("skipped: {said}");
        return;
    }
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = flanc(&["gpu", "compile", "--arch", "sm_10"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("error[nvrtc]") && said.contains("for sm_10"), "{said}");
}

// ---- On a GPU that is simulated behind the driver ------------------------------------------------------------------

/// A directory with libraries that take the place of CUDA's driver, NVRTC and cuBLASLt: one file under three names.
fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let simulator = &Simulator::get()?.path;
        let source = fs::read("tests/simulator/driver.cpp").unwrap();
        let key = blake3::hash(&[&source[..], simulator.to_str().unwrap().as_bytes()].concat()).to_hex();
        let directory = simulator.with_file_name(format!("gpu-{}", &key[..16]));
        if !directory.exists() {
            let making = directory.with_extension(std::process::id().to_string());
            fs::create_dir_all(&making).unwrap();
            let library = making.join("libcuda.so");
            let mut command = Command::new(simulator::compiler());
            command.args([
                "-std=c++17",
                "-O2",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
                "tests/simulator/driver.cpp",
            ]);
            simulator::run(command.arg(simulator).arg("-o").arg(&library)).unwrap();
            for name in ["libnvrtc.so", "libcublasLt.so"] {
                fs::hard_link(&library, making.join(name)).unwrap();
            }
            // Another test program may have been as far.
            fs::rename(&making, &directory).or_else(|_| fs::remove_dir_all(&making)).unwrap();
        }
        Some(directory)
    };
    BUILT.get_or_init(build).as_deref()
}

/// Runs the program with a simulated GPU, and an empty cache in `scratch`.
fn on_simulated_gpu(scratch: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Option<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
    command.env("LD_LIBRARY_PATH", libraries()?).env("XDG_CACHE_HOME", scratch.join("cache"));
    Some(command.envs(variables.iter().copied()).args(arguments).output().unwrap())
}

/// Data, a model's shape and settings: steps of two passes each.
fn prepare_a_run(scratch: &Scratch) {
    super::compile::run(
        "tasks = ['rte', 'trec']\nlengths = { inputs = 96, targets = 31 }\n\
         output = { profile = 'packed', sequence = 128, shard_tokens = 30_000 }",
        &scratch.join("data"),
    );
    let config = r#"{"model_type": "qwen2", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}"#;
    fs::write(scratch.join("config.json"), config).unwrap();
    let settings = "tokens_per_step = 256\nmicro_batch = 128\ncheckpoint_every = 2\nvalidate_rows = 1\n\
        max_norm = 1.0\noptimizer.learning_rate = 1e-2\n";
    fs::write(scratch.join("train.toml"), settings).unwrap();
}

/// Runs it into `out`.
fn train(scratch: &Scratch, out: &str, more: &[&str], variables: &[(&str, &str)]) -> Option<Output> {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (data, config, settings, out) = (path("data"), path("config.json"), path("train.toml"), path(out));
    let arguments = ["train", "--data", &data, "--init", &config, "--settings", &settings, "--out", &out];
    on_simulated_gpu(scratch, &[&arguments[..], &["--threads", "2"], more].concat(), variables)
}

#[test]
fn the_program_trains_through_the_driver() {
    let scratch = Scratch::new();
    prepare_a_run(&scratch);
    let train = |out: &str, steps: &str, device: &str| {
        let variables = [("FLANC_SIMULATED_COUNTS", "")];
        let output = train(&scratch, out, &["--steps", steps, "--device", device], &variables)?;
        assert!(output.status.success(), "{}", stderr(&output));
        Some(stderr(&output))
    };
    let losses = |out: &str| -> Vec<f64> {
        let log = fs::read_to_string(scratch.join(out).join("log.jsonl")).unwrap();
        let events = log.lines().map(|line| serde_json::from_str(line).unwrap());
        events.filter_map(|event| if let Event::Step { loss, .. } = event { Some(loss) } else { None }).collect()
    };

    let Some(said) = train("gpu", "4", "auto") else { return };
    assert!(said.contains("computing on a simulated GPU (sm_90)"), "{said}");
    // Of clearing the gradients, of the passes, which have one shape, and of the optimizer; each is done once without.
    assert!(said.contains("3 graphs, launched 13 times"), "{said}");
    train("cpu", "4", "cpu").unwrap();
    let (found, expected) = (losses("gpu"), losses("cpu"));
    println!("{found:.4?} {expected:.4?}");
    assert_eq!(found.len(), 4);
    assert!(expected[3] < expected[0] - 0.1, "there is something to be learned: {expected:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-2 * expected, "{found} {expected}");
    }

    // Kernels are compiled once, and compiled again where what is kept of them is damaged.
    let cache = scratch.join("cache/flanc");
    let kept = walk(&cache);
    assert_eq!(kept.len(), 13, "{kept:?}");
    let bytes = fs::read(cache.join(&kept[0])).unwrap();
    fs::write(cache.join(&kept[0]), &bytes[..bytes.len() - 1]).unwrap();

    // A run that was stopped goes on to the bit.
    train("parts", "2", "cuda").unwrap();
    train("parts", "4", "cuda").unwrap();
    assert_eq!(fs::read(cache.join(&kept[0])).unwrap(), bytes);
    for file in ["model/model.safetensors", "checkpoints/step-00000004/optimizer.safetensors"] {
        let read = |out: &str| fs::read(scratch.join(out).join(file)).unwrap();
        assert!(read("gpu") == read("parts"), "{file}");
    }
}

/// The stand-in for the driver, called as the driver is: what is captured is done when it is launched, and not before it
/// has to be; what CUDA refuses meanwhile is refused, and spoils the capture; streams wait for events.
#[test]
#[allow(unsafe_code)] // functions of a C library are called
fn the_simulated_driver_captures_and_waits() {
    let Some(directory) = libraries() else { return };
    // SAFETY: we have made the library; loading it does nothing.
    let library = unsafe { Library::new(directory.join("libcuda.so")) }.unwrap();
    macro_rules! cu {
        ($name:ident($($value:expr => $type:ty),*)) => {{
            // SAFETY: the types are those in driver.cpp, and handles and memory come from it.
            unsafe {
                let name = concat!(stringify!($name), "\0").as_bytes();
                library.get::<unsafe extern "C" fn($($type),*) -> i32>(name).unwrap()($($value),*)
            }
        }};
    }
    type Handle = *mut c_void;
    let [mut context, mut first, mut second, mut event, mut graph, mut executable] = [std::ptr::null_mut(); 6];
    let mut memory = 0u64;
    assert_eq!(cu!(cuDevicePrimaryCtxRetain(&mut context => *mut Handle, 0 => i32)), 0);
    assert_eq!(cu!(cuMemAlloc_v2(&mut memory => *mut u64, 64 => usize)), 201, "no context is current");
    assert_eq!(cu!(cuCtxSetCurrent(context => Handle)), 0);
    assert_eq!(cu!(cuMemAlloc_v2(&mut memory => *mut u64, 64 => usize)), 0);
    assert_eq!(cu!(cuStreamCreate(&mut first => *mut Handle, 1 => u32)), 0);
    assert_eq!(cu!(cuStreamCreate(&mut second => *mut Handle, 1 => u32)), 0);
    assert_eq!(cu!(cuEventCreate(&mut event => *mut Handle, 2 => u32)), 0);
    // SAFETY: memory of that device is the host's.
    let byte = || unsafe { *(memory as *const u8) };
    let set = |value: u8, stream: Handle| {
        assert_eq!(cu!(cuMemsetD8Async(memory => u64, value => u8, 64 => usize, stream => Handle)), 0);
    };
    let wait = |stream: Handle| assert_eq!(cu!(cuStreamSynchronize(stream => Handle)), 0);
    set(1, first);
    wait(first);

    let begin = || assert_eq!(cu!(cuStreamBeginCapture_v2(first => Handle, 1 => u32)), 0);
    let pageable = [0u8; 64];
    let refused: [&dyn Fn() -> i32; 4] = [
        &|| cu!(cuStreamSynchronize(first => Handle)),
        &|| cu!(cuEventSynchronize(event => Handle)),
        &|| cu!(cuMemAlloc_v2(&mut 0 => *mut u64, 64 => usize)),
        &|| cu!(cuMemcpyHtoDAsync_v2(memory => u64, pageable.as_ptr() => *const u8, 64 => usize, first => Handle)),
    ];
    for refused in refused {
        begin();
        assert_eq!(refused(), 900);
        assert_eq!(cu!(cuStreamEndCapture(first => Handle, &mut graph => *mut Handle)), 901);
    }
    begin();
    set(2, first);
    assert_eq!(cu!(cuStreamEndCapture(first => Handle, &mut graph => *mut Handle)), 0);
    wait(first);
    assert_eq!(byte(), 1, "what is captured is not done");
    assert_eq!(cu!(cuGraphInstantiateWithFlags(&mut executable => *mut Handle, graph => Handle, 0 => u64)), 0);
    assert_eq!(cu!(cuGraphDestroy(graph => Handle)), 0);
    for other in [3, 4] {
        set(other, first);
        assert_eq!(cu!(cuGraphLaunch(executable => Handle, first => Handle)), 0);
        assert_ne!(byte(), other, "nobody has waited");
        wait(first);
        assert_eq!(byte(), 2);
    }

    set(5, first);
    assert_eq!(cu!(cuEventRecord(event => Handle, first => Handle)), 0);
    set(6, first);
    assert_eq!(cu!(cuStreamWaitEvent(second => Handle, event => Handle, 0 => u32)), 0);
    set(7, second);
    wait(second);
    assert_eq!(byte(), 7, "after what was before the event");
    wait(first);
    assert_eq!(byte(), 6, "and before what was not");
}

/// Batches are copied by a stream of their own, as early or as late as its events allow, and without them differently.
#[test]
fn copies_keep_their_order() {
    let scratch = Scratch::new();
    prepare_a_run(&scratch);
    let model = |out: &str, variables: &[(&str, &str)]| {
        let output = train(&scratch, out, &["--steps", "4", "--device", "cuda"], variables)?;
        let model = fs::read(scratch.join(out).join("model/model.safetensors")).unwrap_or_default();
        Some((output.status.success(), model, stderr(&output)))
    };
    let (early, mistake) = (("FLANC_SIMULATED_STREAMS", "early"), ("FLANC_SIMULATED_MISTAKE", "no-order"));
    let Some(late) = model("late", &[]) else { return };
    let early_too = model("early", &[early]).unwrap();
    assert!(late.0 && early_too.0, "{} {}", late.2, early_too.2);
    assert!(late.1 == early_too.1);
    for (out, variables) in [("mistaken", &[mistake][..]), ("mistaken-early", &[mistake, early])] {
        let mistaken = model(out, variables).unwrap();
        assert!(!mistaken.0 || mistaken.1 != late.1, "{out}: nobody saw that streams did not wait");
    }
}

/// Each function that a run calls fails once, three quarters through the run: at once, later where a kernel runs, for want of
/// memory. The run ends with what it was; what it has left is that of a run that was stopped.
#[test]
fn a_gpu_that_fails_ends_the_run_with_an_error() {
    // Of the driver, and of cuBLASLt.
    const OUT_OF_MEMORY: i32 = 2;
    const LAUNCH_FAILED: i32 = 719;
    const ALLOCATION_FAILED: i32 = 3;
    const EXECUTION_FAILED: i32 = 13;
    let scratch = Scratch::new();
    prepare_a_run(&scratch);
    let train = |out: &str, variable: (&str, &str)| {
        train(&scratch, out, &["--steps", "3", "--device", "cuda", "--json"], &[variable])
    };
    let Some(whole) = train("whole", ("FLANC_SIMULATED_COUNTS", "calls")) else { return };
    let whole = stderr(&whole);
    let calls: Vec<(&str, usize)> = whole
        .lines()
        .filter_map(|line| line.strip_suffix(" times")?.split_once(" called "))
        .map(|(function, count)| (function, count.parse().unwrap()))
        .collect();
    assert!(calls.len() > 20, "{whole}");
    let mut goes_on = None;
    for (function, count) in calls {
        let errors = match function {
            "cuMemHostAlloc" | "cuGraphInstantiateWithFlags" | "cuModuleGetFunction" => &[OUT_OF_MEMORY][..],
            "cublasLtMatmul" => &[ALLOCATION_FAILED, EXECUTION_FAILED],
            _ if function.starts_with("cublas") => &[EXECUTION_FAILED],
            _ => &[LAUNCH_FAILED],
        };
        for &error in errors {
            let out = format!("{function}-{error}");
            let failure = format!("{function}:{}:{error}", (3 * count).div_ceil(4));
            let output = train(&out, ("FLANC_SIMULATED_FAILURE", &failure)).unwrap();
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{failure}: {message}");
            let events = String::from_utf8_lossy(&output.stdout);
            let event: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
            assert_eq!(event["event"], "failed", "{failure}: {events}");
            let (code, words) = match (function, error) {
                ("cuMemHostAlloc", OUT_OF_MEMORY) => ("host-memory", "the host has no memory left to "),
                (_, OUT_OF_MEMORY | ALLOCATION_FAILED) => ("gpu-memory", "the GPU has no memory left to "),
                _ => ("gpu-failed", "the GPU could not "),
            };
            assert_eq!(event["code"], code, "{failure}");
            assert!(event["message"].as_str().unwrap().starts_with(words), "{failure}: {event}");
            println!("{failure}: {}", event["message"]);
            assert!(!scratch.join(&out).join("model/config.json").exists(), "{failure}");
            if event["text"].as_str().unwrap().contains("goes on after step 2") {
                goes_on = Some(out);
            }
        }
    }
    let goes_on = goes_on.expect("some of them fail after the checkpoint");
    assert!(train(&goes_on, ("FLANC_SIMULATED_COUNTS", "")).unwrap().status.success());
    let model = |out: &str| fs::read(scratch.join(out).join("model/model.safetensors")).unwrap();
    assert!(model(&goes_on) == model("whole"), "nothing that a dead GPU gave was kept");
}

#[test]
fn a_gpu_that_is_too_old_is_refused() {
    let scratch = Scratch::new();
    let variables = [("FLANC_SIMULATED_CAPABILITY", "7")];
    let Some(output) = on_simulated_gpu(&scratch, &["gpu"], &variables) else { return };
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(stderr(&output));
    // Asked for by nobody, the CPU takes over, and says why.
    let arguments = ["eval", "--data", "never", "--model", "never"];
    let said = stderr(&on_simulated_gpu(&scratch, &arguments, &variables).unwrap());
    assert!(said.starts_with("computing on the CPU: a simulated GPU is too old"), "{said}");
}
