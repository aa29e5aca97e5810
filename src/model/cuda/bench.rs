//! How fast a device is, and how much of that the kernels and whole models get out of it.
//!
//! Ceilings are measured, not looked up: bytes copied a second, and operations of a large product by cuBLASLt. A kernel's
//! floor is the time that the ceiling needs for the bytes it has to move, each once, or for the operations it has to do.
//! A model's operations are those of [`speed::training_flops`]; MFU is their share of the product's ceiling.
//!
//! Buffers are larger than any L2 cache, so that a kernel that runs again and again reads from memory.

use std::time::Instant;

use super::check::{self, Operation, Shape};
use super::device::{Buffer, Device, Form, Product};
use super::{Cuda, cast, gemm};
use crate::diag::Result;
use crate::model::arena::{Group, Kind, Precision, Table, Tensor};
use crate::model::config::Config;
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::{AdafactorStep, Batch, Ops, Past, Rate};
use crate::model::speed;
use crate::seed::Seed;

/// What a device can do.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Ceilings {
    /// Bytes read and written a second by a copy.
    pub copy: f64,
    /// Operations a second of a product in bf16.
    pub product: f64,
}

/// A kernel's time beside what the ceilings need for it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Timed {
    pub what: String,
    pub seconds: f64,
    pub floor_seconds: f64,
}

impl Timed {
    /// Of its floor; 1 is as fast as can be.
    pub fn share(&self) -> f64 {
        self.floor_seconds / self.seconds
    }
}

/// A model's training steps, and how fast its answers grow.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Speed {
    pub model: String,
    /// Its `config.json`.
    pub config: serde_json::Value,
    pub parameters: usize,
    /// What weights are kept in.
    pub master_weights: Precision,
    pub bytes: u64,
    pub tokens_per_step: usize,
    pub targets: usize,
    pub segments: Vec<u32>,
    pub step_seconds: f64,
    pub tokens_per_second: f64,
    /// Of the product's ceiling.
    pub mfu: f64,
    pub answers: Answers,
}

/// Greedy generation: a token a pass of each of many texts, behind what is kept of them.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Answers {
    pub texts: usize,
    /// Tokens of each text that are kept.
    pub past: usize,
    pub tokens_per_second: f64,
    /// Of the copy's ceiling, by which weights and what is kept are read once a pass.
    pub share: f64,
}

/// How large everything is. The tests have a small one, to run what otherwise runs on a GPU only.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Numbers of a copy.
    pub copied: usize,
    /// Rows, columns and depth of a product.
    pub product: usize,
    pub kernels: Shape,
    /// Tokens of a training step.
    pub tokens: usize,
    /// Texts that answers are generated for at a time, and tokens that are kept of each.
    pub texts: usize,
    pub past: usize,
    /// Seconds that a measurement takes about.
    pub seconds: f64,
}

/// For a GPU: the widths of the 7B model.
pub const FULL: Scale = Scale {
    copied: 1 << 29,
    product: 8192,
    kernels: Shape {
        tokens: 16_384,
        width: 3584,
        inner: 18_944,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        vocabulary: 32_000,
    },
    tokens: 8192,
    texts: 64,
    past: 512,
    seconds: 0.2,
};

/// Seconds that `work` takes, of many times in a row.
fn time<D: Device>(cuda: &mut Cuda<D>, seconds: f64, mut work: impl FnMut(&mut Cuda<D>)) -> Result<f64> {
    let mut measure = |times: u32| {
        cuda.device.synchronize();
        let began = Instant::now();
        (0..times).for_each(|_| work(cuda));
        cuda.device.synchronize();
        cuda.healthy()?; // what does nothing is fast
        Ok(began.elapsed().as_secs_f64() / f64::from(times))
    };
    measure(1)?; // plans, first pages
    let once = measure(1)?;
    measure((seconds / once.max(1e-9)).clamp(1.0, 10_000.0) as u32)
}

/// Fills tensors with numbers that were drawn once, copied on the device.
fn fill<D: Device>(cuda: &mut Cuda<D>, tensors: &[Tensor]) {
    const DRAWN: usize = 1 << 18;
    for (which, &tensor) in tensors.iter().enumerate() {
        let (kind, length) = (cuda.table.get(tensor).kind, cuda.table.get(tensor).len());
        let numbers = check::drawn(which, length.min(DRAWN), kind == Kind::Exact);
        tile(cuda, tensor, &numbers);
    }
}

/// Writes `numbers` to a tensor, over and over.
fn tile<D: Device>(cuda: &mut Cuda<D>, tensor: Tensor, numbers: &[f32]) {
    let (own, length) = (cuda.own(tensor), cuda.table.get(tensor).len());
    let mut done = numbers.len().min(length);
    let kind = cuda.table.get(tensor).kind;
    if matches!(kind, Kind::Activation | Kind::Weight(Precision::Bf16)) {
        cuda.device.upload(own, &super::device::bytes_of(&numbers[..done], |v| half::bf16::from_f32(v).to_le_bytes()));
    } else {
        cuda.device.upload(own, &super::device::bytes_of(&numbers[..done], f32::to_le_bytes));
    }
    let bytes = own.bytes as usize / length.max(1);
    while done < length {
        let count = done.min(length - done);
        cuda.device.copy(own.after(done * bytes), Buffer { at: own.at, bytes: (count * bytes) as u64 });
        done += count;
    }
    if kind == Kind::Weight(Precision::F32) {
        let copy = cuda.at(tensor);
        cast::nearest(&mut cuda.device, copy, own, length);
    }
}

/// Measures what the device can do.
pub fn ceilings<D: Device>(device: D, scale: &Scale) -> Result<(Ceilings, D)> {
    let n = scale.product;
    let mut table = Table::default();
    let mut add = |shape: &[usize]| table.add(Group::Workspace, Kind::Activation, "operand", shape);
    let [from, to] = [add(&[scale.copied]), add(&[scale.copied])];
    let matrices = [add(&[n, n]), add(&[n, n]), add(&[n, n])];
    let mut cuda = Cuda::over(device, table)?;
    fill(&mut cuda, &[from, to, matrices[0], matrices[1], matrices[2]]);
    let (from, to) = (cuda.at(from), cuda.at(to));
    let copy = time(&mut cuda, scale.seconds, |cuda| cuda.device.copy(to, from))?;
    let product = time(&mut cuda, scale.seconds, |cuda| {
        cuda.multiply(Form::Nt, matrices.map(|t| cuda.at(t)), [n, n, n], false, false);
    })?;
    let ceilings = Ceilings { copy: 4.0 * scale.copied as f64 / copy, product: 2.0 * (n as f64).powi(3) / product };
    Ok((ceilings, cuda.device))
}

/// Operations whose kernels are timed; the rest is too small to matter. Of the last but one, and of the likeliest token,
/// the time includes bringing the result to the host.
const TIMED: [Operation; 23] = [
    check::Embed,
    check::EmbedBackward,
    check::Rmsnorm,
    check::ResidualRmsnorm,
    check::RmsnormBackward,
    check::HeadRmsnorm,
    check::HeadRmsnormBackward,
    check::Linear,
    check::LinearBackwardInput,
    check::LinearBackwardWeight,
    check::RopeForward,
    check::Attention,
    check::AttentionBackward,
    check::AttentionCached,
    check::Swiglu,
    check::SwigluBackward,
    check::Gather,
    check::Scatter,
    check::CrossEntropy,
    check::Argmax,
    check::Norm,
    check::AdafactorMatrix(Precision::F32),
    check::AdafactorMatrix(Precision::Bf16),
];

/// Bytes that an operation has to move and operations that it has to do, at least.
fn work(shape: &Shape, operation: Operation, batch: &Batch) -> (f64, f64) {
    let Shape { width, inner, heads, kv_heads, head_dim, vocabulary, .. } = *shape;
    let tokens = batch.tokens();
    let [n, c, f, v] = [tokens, width, inner, vocabulary].map(|size| size as f64);
    let [q, kv] = [heads, kv_heads].map(|heads| (tokens * heads * head_dim) as f64);
    let (rows, visible) = (batch.rows.len() as f64, visible(batch) * (heads * head_dim) as f64);
    let mut distinct = batch.ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let products = (2.0 * (n * c + n * f + f * c), 2.0 * n * c * f);
    match operation {
        check::Embed | check::Rmsnorm => (4.0 * n * c, 0.0),
        check::EmbedBackward => (2.0 * n * c + 8.0 * distinct.len() as f64 * c, 0.0),
        check::ResidualRmsnorm | check::RmsnormBackward => (8.0 * n * c, 0.0),
        check::HeadRmsnorm | check::RopeForward | check::RopeBack => (4.0 * q, 0.0),
        check::HeadRmsnormBackward => (8.0 * q, 0.0),
        check::Linear => products,
        check::LinearBackwardInput => (products.0 + 2.0 * n * c, products.1), // it adds
        check::LinearBackwardWeight => (products.0 + 6.0 * f * c, products.1), // it adds, in f32
        check::Attention => (4.0 * (q + kv), 4.0 * visible),
        check::AttentionBackward => (8.0 * q + 8.0 * kv, 10.0 * visible),
        check::AttentionCached => {
            let kept: f64 = batch.past.iter().map(|past| f64::from(past.length)).sum();
            (4.0 * (q + kv) + 4.0 * kept * (kv_heads * head_dim) as f64, 4.0 * visible)
        }
        check::Keep => (8.0 * kv, 0.0),
        check::Swiglu => (6.0 * n * f, 0.0),
        check::SwigluBackward => (10.0 * n * f, 0.0),
        check::Gather | check::Scatter => (4.0 * rows * c, 0.0),
        check::CrossEntropy => (4.0 * rows * v, 0.0),
        check::Argmax => (2.0 * rows * v, 0.0),
        check::Likelihoods => (4.0 * rows, 0.0),
        check::Norm => (4.0 * f * c, 0.0),
        check::AdafactorMatrix(kept) => (optimizer_bytes(kept) * f * c, 0.0),
        check::AdafactorVector(kept) => (optimizer_bytes(kept) * c, 0.0),
    }
}

/// Bytes of a number's gradient, which is read three times, and of its weight, which is read twice (its size scales the
/// rate) and written.
fn optimizer_bytes(kept: Precision) -> f64 {
    match kept {
        Precision::F32 => 3.0 * 4.0 + 2.0 * 4.0 + (4.0 + 2.0),
        Precision::Bf16 => 3.0 * 4.0 + 3.0 * 2.0,
    }
}

/// Pairs of a token and one that it sees.
fn visible(batch: &Batch) -> f64 {
    let of_segment = |(number, &length): (usize, &u32)| {
        let past = batch.past.get(number).map_or(0, |past| past.length);
        f64::from(length) * (f64::from(past) + (f64::from(length) + 1.0) / 2.0)
    };
    batch.segments.iter().enumerate().map(of_segment).sum()
}

/// Times every kernel; `report` is told of each.
pub fn kernels<D: Device>(device: D, scale: &Scale, ceilings: Ceilings, mut report: impl FnMut(&Timed)) -> Result<D> {
    let (mut device, shape) = (device, scale.kernels);
    for operation in TIMED {
        let batch = check::batch_for(operation, shape.tokens, shape.vocabulary);
        let case = check::case(shape, operation);
        let mut cuda = Cuda::over(device, case.table.clone())?;
        fill(&mut cuda, &case.tensors);
        check::prepare(&mut cuda, shape, &batch, operation, &case);
        let seconds = time(&mut cuda, scale.seconds, |cuda| {
            check::run(cuda, operation, &case, batch.rows.len());
        })?;
        let (bytes, operations) = work(&shape, operation, &batch);
        let floor_seconds = (bytes / ceilings.copy).max(operations / ceilings.product);
        let what = format!("{operation:?} {}", check::told(&shape, operation));
        report(&Timed { what, seconds, floor_seconds });
        device = cuda.device;
    }
    Ok(device)
}

/// Times our own product; its floor is the device's time for the same.
pub fn products<D: Device>(device: D, scale: &Scale, mut report: impl FnMut(&Timed)) -> Result<D> {
    let Shape { tokens: m, width: k, inner: n, .. } = scale.kernels;
    let mut table = Table::default();
    let mut add = |shape: &[usize]| table.add(Group::Workspace, Kind::Activation, "operand", shape);
    let operands = [add(&[m, n]), add(&[m, k]), add(&[n, k])];
    let mut cuda = Cuda::over(device, table)?;
    fill(&mut cuda, &operands);
    let [c, a, b] = operands.map(|t| cuda.at(t));
    for form in [Form::Nt, Form::Nn, Form::Tn] {
        let product = Product { form, c, a, b, m, n, k, exact: false, add: false };
        let floor_seconds = time(&mut cuda, scale.seconds, |cuda| {
            cuda.multiply(form, [c, a, b], [m, n, k], false, false);
        })?;
        let seconds = time(&mut cuda, scale.seconds, |cuda| gemm::multiply(&mut cuda.device, &product))?;
        report(&Timed { what: format!("our product {form:?} {m} {n} {k}"), seconds, floor_seconds });
    }
    Ok(cuda.device)
}

/// Models of the shapes of Qwen2.5 (config.json of Qwen/Qwen2.5-0.5B, -1.5B, -3B and -7B).
pub const MODELS: [&str; 4] = ["0.5B", "1.5B", "3B", "7B"];

/// The `config.json` of a model of [`MODELS`]; none of another name.
pub fn preset(name: &str) -> Option<serde_json::Value> {
    let (hidden, inner, layers, heads, kv_heads, vocabulary) = match name {
        "0.5B" => (896, 4864, 24, 14, 2, 151_936),
        "1.5B" => (1536, 8960, 28, 12, 2, 151_936),
        "3B" => (2048, 11_008, 36, 16, 2, 151_936),
        "7B" => (3584, 18_944, 28, 28, 4, 152_064),
        _ => return None,
    };
    Some(serde_json::json!({
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "tie_word_embeddings": name != "7B", "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768,
    }))
}

/// Rows as FLAN's packs have them: segments of 64 to 448 tokens, a fifth of each trained.
pub fn flan_like(tokens: usize, vocabulary: usize) -> Batch {
    let draw = |name: &str, i: usize| Seed(9).stream(&["gpu bench", name]).draw(i as u64) as usize;
    let mut batch = Batch::default();
    while batch.tokens() < tokens {
        let length = (64 + draw("length", batch.segments.len()) % 385).min(tokens - batch.tokens());
        let ids: Vec<u32> = (0..length).map(|i| (draw("id", batch.tokens() + i) % vocabulary) as u32).collect();
        batch.push(&ids, |i| i >= length - length.div_ceil(5));
    }
    batch
}

/// Trains a model of random weights for some steps, and has it answer.
pub fn model<D: Device>(
    device: D,
    scale: &Scale,
    ceilings: Ceilings,
    name: &str,
    config: &serde_json::Value,
    master_weights: Precision,
) -> Result<(Speed, D)> {
    let (said, config) = (config.clone(), Config::parse(&config.to_string())?);
    let batch = flan_like(scale.tokens, config.vocabulary);
    let purpose = Purpose::Train { recompute: false, master_weights };
    let layout = Layout { tokens: scale.tokens, logit_rows: 512.min(scale.tokens), purpose };
    let (decoder, table) = Decoder::lay_out(config, layout);
    let mut cuda = Cuda::over(device, table)?;
    cuda.set_rotations(&decoder.config.rope(), scale.tokens);
    fill_weights(&mut cuda, &decoder);
    let step = AdafactorStep {
        rate: Rate::Fixed(3e-5),
        decay_rate: -0.8,
        max_norm: None,
        eps1: 1e-30,
        eps2: 1e-3,
        clip_threshold: 1.0,
        weight_decay: 0.0,
        scale_parameter: false,
        seed: 17,
    };
    // As in training, what comes back is asked for a step late.
    let mut before = None;
    let step_seconds = time(&mut cuda, 10.0 * scale.seconds, |cuda| {
        decoder.zero_gradients(cuda);
        let losses = decoder.begin(cuda, &batch, scale.tokens, 1.0 / batch.rows.len() as f32);
        let norm = decoder.update(cuda, &step);
        if let Some((losses, norm)) = before.replace((losses, norm)) {
            cuda.arrived(losses);
            cuda.norm_arrived(norm);
        }
    })?;
    let (bytes, parameters) = (cuda.table.total_bytes(), decoder.parameter_count(&cuda.table));
    let mfu = speed::training_flops(&decoder.config, &batch) / step_seconds / ceilings.product;
    let (answers, device) = answers(cuda.device, scale, ceilings, decoder.config)?;
    let speed = Speed {
        model: name.to_owned(),
        config: said,
        parameters,
        master_weights,
        bytes,
        tokens_per_step: batch.tokens(),
        targets: batch.targets.len(),
        segments: batch.segments.clone(),
        step_seconds,
        tokens_per_second: batch.tokens() as f64 / step_seconds,
        mfu,
        answers,
    };
    Ok((speed, device))
}

fn fill_weights<D: Device>(cuda: &mut Cuda<D>, decoder: &Decoder) {
    let block: Vec<f32> = check::drawn(0, 1 << 18, false).iter().map(|v| v * 0.03).collect();
    for parameter in &decoder.parameters {
        let norm = parameter.name.ends_with("norm.weight");
        tile(cuda, parameter.weight, if norm { &[1.0] } else { &block });
    }
}

/// Times the pass by which every answer grows by a token. What is kept is zero: its bytes take as long to read as any.
fn answers<D: Device>(device: D, scale: &Scale, ceilings: Ceilings, config: Config) -> Result<(Answers, D)> {
    let Scale { texts, past, .. } = *scale;
    let places = texts * (past + 1);
    let layout = Layout { tokens: texts.max(past + 1), logit_rows: texts, purpose: Purpose::Score { places } };
    let (decoder, table) = Decoder::lay_out(config, layout);
    let mut cuda = Cuda::over(device, table)?;
    cuda.set_rotations(&decoder.config.rope(), past + 1);
    fill_weights(&mut cuda, &decoder);
    let (text, mut batch) = (vec![1; past + 1], Batch { keep: true, ..Batch::default() });
    for number in 0..texts {
        let past = Past { place: (number * (past + 1)) as u32, length: past as u32 };
        batch.go_on(past, &text, &[0]);
    }
    let seconds = time(&mut cuda, 10.0 * scale.seconds, |cuda| {
        decoder.most_likely(cuda, &batch);
    })?;
    let config = &decoder.config;
    let kept = places * config.layers * 2 * config.kv_heads * config.head_dim;
    // An embedding that is not the head as well is hardly read.
    let embedding = if config.tied { 0 } else { config.vocabulary * config.hidden };
    let bytes = 2.0 * (decoder.parameter_count(&cuda.table) - embedding + kept) as f64;
    let share = bytes / ceilings.copy / seconds;
    Ok((Answers { texts, past, tokens_per_second: texts as f64 / seconds, share }, cuda.device))
}
