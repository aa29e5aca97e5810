//! Every kernel on a device against the operations on the CPU, and a small model trained on both.
//!
//! Inputs are drawn from a seed and rounded to bf16 for both sides. What is compared is the length of the difference
//! over the length of what the CPU computed in f32; the device's own rounding to bf16 is 2⁻⁹ of a number, so that sums
//! of many rounded numbers differ by some thousandths. Sums in f32 differ by their order, and by how tensor cores cut
//! off what they add.

use half::bf16;

use super::device::{Device, Form, Product};
use super::{Cuda, gemm};
use crate::diag::Result;
use crate::model::arena::{Bounds, Group, Kind, Precision, Table, Tensor};
use crate::model::config::Config;
use crate::model::cpu::Cpu;
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::{
    AdafactorStep, AttentionGradients, AttentionSaved, Batch, Cache, Moments, Ops, Past, Rate, Turn,
};
use crate::model::rope::Rope;
use crate::model::weights;
use crate::seed::Seed;

/// One comparison.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Compared {
    /// What was computed, and on which shape.
    pub what: String,
    pub error: f64,
    pub tolerance: f64,
}

impl Compared {
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance // not if it is NaN
    }
}

/// An operation with outputs that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Embed,
    EmbedBackward,
    Rmsnorm,
    ResidualRmsnorm,
    RmsnormBackward,
    HeadRmsnorm,
    HeadRmsnormBackward,
    Linear,
    LinearBackwardInput,
    LinearBackwardWeight,
    RopeForward,
    RopeBack,
    Attention,
    AttentionBackward,
    AttentionCached,
    Keep,
    Swiglu,
    SwigluBackward,
    Gather,
    Scatter,
    CrossEntropy,
    Argmax,
    Likelihoods,
    Norm,
    /// With weights that are kept in such numbers.
    AdafactorMatrix(Precision),
    AdafactorVector(Precision),
}

pub(super) use Operation::*;

/// With the most that an output may differ by. Where the last bits of a weight in f32 differ, its draw may take it to the
/// other neighbour in bf16, 2⁻⁸ of it away: a few weights in ten thousand at most.
const OPERATIONS: [(Operation, f64); 28] = [
    (Embed, 0.0),
    (EmbedBackward, 1e-5),
    (Rmsnorm, 4e-3),
    (ResidualRmsnorm, 6e-3),
    (RmsnormBackward, 4e-3),
    (HeadRmsnorm, 4e-3),
    (HeadRmsnormBackward, 4e-3),
    (Linear, 4e-3),
    (LinearBackwardInput, 4e-3),
    (LinearBackwardWeight, 1e-4),
    (RopeForward, 4e-3),
    (RopeBack, 4e-3),
    (Attention, 6e-3),
    (AttentionBackward, 1e-2),
    (AttentionCached, 6e-3),
    (Keep, 0.0),
    (Swiglu, 4e-3),
    (SwigluBackward, 4e-3),
    (Gather, 0.0),
    (Scatter, 0.0),
    (CrossEntropy, 4e-3),
    (Argmax, 0.0),
    (Likelihoods, 1e-6),
    (Norm, 1e-5),
    (AdafactorMatrix(Precision::F32), 1e-5),
    (AdafactorVector(Precision::F32), 1e-5),
    (AdafactorMatrix(Precision::Bf16), 1e-3),
    (AdafactorVector(Precision::Bf16), 1e-3),
];

/// Shapes that the operations are tried on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
}

/// Small and odd: no size is a multiple of a tile, and some are not of a vector's width.
pub const ODD: Shape = Shape { tokens: 77, width: 37, inner: 52, heads: 4, kv_heads: 2, head_dim: 32, vocabulary: 131 };

/// As models are, but few tokens: the CPU has to keep up.
pub const USUAL: Shape =
    Shape { tokens: 1000, width: 1024, inner: 2816, heads: 8, kv_heads: 2, head_dim: 128, vocabulary: 32_000 };

/// Compares every operation on every shape; `report` is told of each.
pub fn operations<D: Device>(device: D, shapes: &[Shape], mut report: impl FnMut(&Compared)) -> Result<D> {
    let mut device = device;
    for shape in shapes {
        for (operation, tolerance) in OPERATIONS {
            let (error, back) = one(device, *shape, operation)?;
            back.healthy()?;
            device = back;
            report(&Compared { what: format!("{operation:?} {}", told(shape, operation)), error, tolerance });
        }
        for form in [Form::Nt, Form::Nn, Form::Tn] {
            let (error, back) = own_product(device, *shape, form)?;
            back.healthy()?;
            device = back;
            let Shape { tokens: m, width: k, inner: n, .. } = *shape;
            report(&Compared { what: format!("our product {form:?} {m} {n} {k}"), error, tolerance: 1e-4 });
        }
    }
    Ok(device)
}

/// The sizes that an operation sees.
pub(super) fn told(shape: &Shape, operation: Operation) -> String {
    let Shape { tokens: n, width: c, inner: f, heads: h, kv_heads: k, head_dim: d, vocabulary: v } = shape;
    match operation {
        Embed | EmbedBackward | CrossEntropy | Argmax => format!("N {n} C {c} V {v}"),
        Rmsnorm | ResidualRmsnorm | RmsnormBackward | Gather | Scatter => format!("N {n} C {c}"),
        HeadRmsnorm | HeadRmsnormBackward | RopeForward | RopeBack => format!("N {n} H {h} D {d}"),
        Attention | AttentionBackward => format!("N {n} H {h} K {k} D {d}"),
        AttentionCached | Keep => {
            let batch = going_on(*n, *v);
            format!("N {} H {h} K {k} D {d} P {}", batch.tokens(), places(&batch))
        }
        Linear | LinearBackwardInput | LinearBackwardWeight => format!("N {n} I {c} O {f}"),
        Likelihoods => format!("N {n}"),
        Swiglu | SwigluBackward => format!("N {n} F {f}"),
        Norm | AdafactorMatrix(_) => format!("O {f} I {c}"),
        AdafactorVector(_) => format!("C {c}"),
    }
}

/// Segments of some hundred tokens and less, one of a single token, half of the positions predicting something.
pub fn batch(tokens: usize, vocabulary: usize) -> Batch {
    let draw = |name: &str, i: usize| Seed(5).stream(&["gpu check", name]).draw(i as u64) as usize;
    let mut batch = Batch::default();
    let mut left = tokens;
    while left > 0 {
        let number = batch.segments.len();
        let length = if number == 1 { 1 } else { (1 + draw("length", number) % 300).min(left) };
        let ids: Vec<u32> = (0..length).map(|i| (draw("id", batch.tokens() + i) % vocabulary) as u32).collect();
        let trained = |i: usize| i >= length / 2;
        batch.push(&ids, trained);
        left -= length;
    }
    batch
}

/// As when answers grow: of up to 256 tokens, most are alone behind a past, some with another, and pasts have up to 300
/// tokens.
pub fn going_on(tokens: usize, vocabulary: usize) -> Batch {
    let draw = |name: &str, i: usize| Seed(6).stream(&["gpu check", name]).draw(i as u64) as usize;
    let mut batch = Batch { keep: true, ..Batch::default() };
    let (mut place, tokens) = (0, tokens.min(256));
    while batch.tokens() < tokens {
        let number = batch.segments.len();
        let length = if number % 4 == 3 { 2.min(tokens - batch.tokens()) } else { 1 };
        let past = Past { place, length: (draw("past", number) % 301) as u32 };
        place += past.length + length as u32;
        let text: Vec<u32> = (0..past.length as usize + length).map(|i| (draw("id", i) % vocabulary) as u32).collect();
        batch.go_on(past, &text, &[]);
    }
    batch
}

/// Places that a batch asks for.
pub fn places(batch: &Batch) -> usize {
    let ends = batch.past.iter().zip(&batch.segments).map(|(past, length)| past.place + past.length + length);
    ends.max().unwrap_or(0) as usize
}

/// The batch that an operation is tried on.
pub(super) fn batch_for(operation: Operation, tokens: usize, vocabulary: usize) -> Batch {
    match operation {
        AttentionCached | Keep => going_on(tokens, vocabulary),
        _ => batch(tokens, vocabulary),
    }
}

/// Tensors of an operation, and which of them it writes.
pub(super) struct Case {
    pub table: Table,
    pub tensors: Vec<Tensor>,
    outputs: Vec<usize>,
}

/// Lays an operation's operands out. Some have a weight that they do not use: by their weights a backend knows how wide
/// what it keeps beside the tensors has to be.
pub(super) fn case(shape: Shape, operation: Operation) -> Case {
    let Shape { tokens: n, width: c, inner: f, heads: h, kv_heads: k, head_dim: d, vocabulary: v } = shape;
    let bounds = Bounds { tokens: n, logit_rows: n, heads: h, head_dim: d };
    let (activation, exact, weight) = (Kind::Activation, Kind::Exact, Kind::Weight(Precision::F32));
    let (of_width, q, kv) = (vec![n, c], vec![n, h, d], vec![n, k, d]);
    let (tensors, outputs): (Vec<(Kind, Vec<usize>)>, Vec<usize>) = match operation {
        Embed => (vec![(activation, of_width), (weight, vec![v, c])], vec![0]),
        EmbedBackward => (vec![(exact, vec![v, c]), (activation, of_width)], vec![0]),
        Rmsnorm => (
            vec![(activation, of_width.clone()), (exact, vec![n]), (activation, of_width), (weight, vec![c])],
            vec![0, 1],
        ),
        ResidualRmsnorm => (
            vec![
                (activation, of_width.clone()),
                (exact, vec![n]),
                (activation, of_width.clone()),
                (activation, of_width.clone()),
                (activation, of_width),
                (weight, vec![c]),
            ],
            vec![0, 1, 2],
        ),
        RmsnormBackward => (
            vec![
                (activation, of_width.clone()),
                (exact, vec![c]),
                (activation, of_width.clone()),
                (activation, of_width),
                (weight, vec![c]),
                (exact, vec![n]),
            ],
            vec![0, 1],
        ),
        HeadRmsnorm => {
            (vec![(activation, q.clone()), (exact, vec![n, h]), (activation, q), (weight, vec![d])], vec![0, 1])
        }
        HeadRmsnormBackward => (
            vec![
                (activation, q.clone()),
                (exact, vec![d]),
                (activation, q.clone()),
                (activation, q),
                (weight, vec![d]),
                (exact, vec![n, h]),
            ],
            vec![0, 1],
        ),
        Linear => {
            (vec![(activation, vec![n, f]), (activation, of_width), (weight, vec![f, c]), (weight, vec![f])], vec![0])
        }
        LinearBackwardInput => (vec![(activation, of_width), (activation, vec![n, f]), (weight, vec![f, c])], vec![0]),
        LinearBackwardWeight => (
            vec![
                (exact, vec![f, c]),
                (exact, vec![f]),
                (activation, vec![n, f]),
                (activation, of_width),
                (weight, vec![f]),
            ],
            vec![0, 1],
        ),
        RopeForward | RopeBack => (vec![(activation, q)], vec![0]),
        Attention => (
            vec![
                (activation, q.clone()),
                (exact, vec![n, h]),
                (activation, q),
                (activation, kv.clone()),
                (activation, kv),
            ],
            vec![0],
        ),
        AttentionBackward => (
            vec![
                (activation, q.clone()),
                (exact, vec![n, h]),
                (activation, q.clone()),
                (activation, kv.clone()),
                (activation, kv.clone()),
                (activation, q.clone()),
                (activation, q),
                (activation, kv.clone()),
                (activation, kv),
            ],
            vec![6, 7, 8],
        ),
        AttentionCached => {
            let batch = going_on(n, v);
            let (q, kv) = ((activation, vec![batch.tokens(), h, d]), (activation, vec![batch.tokens(), k, d]));
            let cache = (activation, vec![places(&batch), k, d]);
            let lse = (exact, vec![batch.tokens(), h]);
            (vec![q.clone(), lse, q, kv.clone(), kv, cache.clone(), cache], vec![0])
        }
        Keep => {
            let batch = going_on(n, v);
            let (cache, kv) = ((activation, vec![places(&batch), k, d]), (activation, vec![batch.tokens(), k, d]));
            (vec![cache.clone(), cache, kv.clone(), kv], vec![0, 1])
        }
        Swiglu | SwigluBackward => {
            let inner = (activation, vec![n, f]);
            (vec![inner.clone(), inner.clone(), inner], if operation == Swiglu { vec![0] } else { vec![0, 1] })
        }
        Gather | Scatter => (vec![(activation, of_width.clone()), (activation, of_width)], vec![0]),
        CrossEntropy => (vec![(exact, vec![n]), (activation, vec![n, v])], vec![0, 1]),
        Argmax => (vec![(activation, vec![n, v])], vec![]),
        Likelihoods => (vec![(exact, vec![n])], vec![]),
        Norm => (vec![(exact, vec![f, c]), (exact, vec![c]), (weight, vec![f, c]), (weight, vec![c])], vec![]),
        AdafactorMatrix(kept) => {
            let weight = Kind::Weight(kept);
            (vec![(weight, vec![f, c]), (exact, vec![f, c]), (exact, vec![f]), (exact, vec![c])], vec![0, 2, 3])
        }
        AdafactorVector(kept) => (vec![(Kind::Weight(kept), vec![c]), (exact, vec![c]), (exact, vec![c])], vec![0, 2]),
    };
    let mut table = Table::new(bounds);
    let tensors = tensors
        .into_iter()
        .enumerate()
        .map(|(i, (kind, shape))| table.add(Group::Workspace, kind, format!("operand {i}"), &shape))
        .collect();
    Case { table, tensors, outputs }
}

/// Numbers from -1 to 1 that bf16 holds; positive ones for moments.
pub(super) fn drawn(operand: usize, count: usize, positive: bool) -> Vec<f32> {
    let stream = Seed(3).stream(&["gpu check", &operand.to_string()]);
    let number = |i: usize| {
        let uniform = (stream.draw(i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        bf16::from_f32(if positive { uniform.abs() + 0.01 } else { uniform }).to_f32()
    };
    (0..count).map(number).collect()
}

/// Does an operation on operands that were drawn, and returns its outputs.
fn apply<O: Ops>(ops: &mut O, shape: Shape, operation: Operation, case: &Case) -> Vec<Vec<f32>> {
    let moments = matches!(operation, AdafactorMatrix(_) | AdafactorVector(_));
    for (i, &tensor) in case.tensors.iter().enumerate() {
        let numbers = drawn(i, ops.table().get(tensor).len(), moments && i >= 2);
        ops.write(tensor, &numbers);
    }
    let batch = batch_for(operation, shape.tokens, shape.vocabulary);
    prepare(ops, shape, &batch, operation, case);
    if operation == AttentionBackward {
        run(ops, Attention, case, 0); // which gives it o and lse
    }
    let count = batch.rows.len();
    if let Some(returned) = run(ops, operation, case, count) {
        return vec![returned];
    }
    let read = |&output: &usize| {
        let mut numbers = ops.read(case.tensors[output]);
        if matches!(operation, CrossEntropy | Gather) {
            numbers.truncate(numbers.len() / shape.tokens * count); // the rest is as it was
        }
        numbers
    };
    case.outputs.iter().map(read).collect()
}

/// What operations need besides their operands.
pub(super) fn prepare(ops: &mut impl Ops, shape: Shape, batch: &Batch, operation: Operation, case: &Case) {
    let frequencies: Vec<f32> = (0..shape.head_dim / 2).map(|i| 0.8f32.powi(i as i32)).collect();
    ops.set_rotations(&Rope { frequencies, amplitude: 1.25 }, shape.tokens);
    ops.load(batch, 0.125);
    if matches!(operation, AdafactorMatrix(_) | AdafactorVector(_)) {
        ops.set_steps_done(1); // the second one keeps some of the moments
        ops.set_step(&STEP);
        ops.begin_step(&case.tensors[1..2]);
    }
}

const STEP: AdafactorStep = AdafactorStep {
    rate: Rate::Fixed(1e-2),
    decay_rate: -0.8,
    max_norm: Some(0.5),
    eps1: 1e-30,
    eps2: 1e-3,
    clip_threshold: 1.0,
    weight_decay: 0.1,
    scale_parameter: true,
    seed: 3 << 40 | 5,
};

/// Does an operation, and hands out what it returns. The batch has `count` rows.
pub(super) fn run(ops: &mut impl Ops, operation: Operation, case: &Case, count: usize) -> Option<Vec<f32>> {
    let t = &case.tensors;
    let tokens = ops.table().bounds().tokens;
    match operation {
        Embed => ops.embed(t[0], t[1]),
        EmbedBackward => ops.embed_backward(t[0], t[1]),
        Rmsnorm | HeadRmsnorm => ops.rmsnorm(t[0], t[1], t[2], t[3], 1e-6),
        ResidualRmsnorm => ops.residual_rmsnorm(t[0], t[1], t[2], t[3], t[4], t[5], 1e-6),
        RmsnormBackward | HeadRmsnormBackward => ops.rmsnorm_backward(t[0], t[1], t[2], t[3], t[4], t[5]),
        Linear => ops.linear(t[0], t[1], t[2], Some(t[3]), tokens),
        LinearBackwardInput => ops.linear_backward_input(t[0], t[1], t[2], tokens, true),
        LinearBackwardWeight => ops.linear_backward_weight(t[0], Some(t[1]), t[2], t[3], tokens),
        RopeForward => ops.rope(t[0], Turn::Forward),
        RopeBack => ops.rope(t[0], Turn::Back),
        Attention => ops.attention(t[0], t[1], t[2], t[3], t[4]),
        AttentionBackward => {
            let saved = AttentionSaved { dout: t[5], o: t[0], lse: t[1], q: t[2], k: t[3], v: t[4] };
            ops.attention_backward(AttentionGradients { dq: t[6], dk: t[7], dv: t[8] }, saved);
        }
        AttentionCached => ops.attention_cached(t[0], t[1], t[2], t[3], t[4], Cache { k: t[5], v: t[6] }),
        Keep => ops.keep(Cache { k: t[0], v: t[1] }, t[2], t[3]),
        Swiglu => ops.swiglu(t[0], t[1], t[2]),
        SwigluBackward => ops.swiglu_backward(t[0], t[1], t[2]),
        Gather => ops.gather(t[0], t[1], 0, count),
        Scatter => ops.scatter(t[0], t[1], 0, count),
        CrossEntropy => ops.cross_entropy(t[0], t[1], 0, count, true),
        Argmax => return Some(ops.argmax(t[0], count).into_iter().map(|token| token as f32).collect()),
        Likelihoods => {
            let likelihoods = ops.likelihoods(t[0]);
            return Some(likelihoods.iter().flat_map(|l| [l.in_all, l.per_token]).collect());
        }
        Norm => {
            ops.set_step(&STEP);
            ops.begin_step(&t[..2]);
            let norm = ops.norm();
            return Some(vec![ops.norm_arrived(norm).value as f32]);
        }
        AdafactorMatrix(_) => ops.adafactor(t[0], t[1], Moments::Factored { rows: t[2], columns: t[3] }),
        AdafactorVector(_) => ops.adafactor(t[0], t[1], Moments::Full(t[2])),
    }
    None
}

fn one<D: Device>(device: D, shape: Shape, operation: Operation) -> Result<(f64, D)> {
    let case = case(shape, operation);
    let mut cpu = Cpu::allocate(case.table.clone())?;
    let expected = apply(&mut cpu, shape, operation, &case);
    let mut cuda = Cuda::over(device, case.table.clone())?;
    let found = apply(&mut cuda, shape, operation, &case);
    let worst = found.iter().zip(&expected).map(|(a, b)| relative(a, b)).fold(0.0, f64::max);
    Ok((worst, cuda.device))
}

/// Our own product against the device's.
fn own_product<D: Device>(device: D, shape: Shape, form: Form) -> Result<(f64, D)> {
    let Shape { tokens: m, width: k, inner: n, .. } = shape;
    let mut table = Table::default();
    let mut add = |kind, shape: &[usize]| table.add(Group::Workspace, kind, "operand", shape);
    let (a, b) = (add(Kind::Activation, &[m, k]), add(Kind::Activation, &[n, k]));
    let results = [add(Kind::Exact, &[m, n]), add(Kind::Exact, &[m, n])];
    let mut cuda = Cuda::over(device, table)?;
    for (operand, (tensor, count)) in
        [(a, m * k), (b, n * k), (results[0], m * n), (results[1], m * n)].into_iter().enumerate()
    {
        cuda.write(tensor, &drawn(operand.min(2), count, false));
    }
    let product =
        |c: Tensor| Product { form, c: cuda.at(c), a: cuda.at(a), b: cuda.at(b), m, n, k, exact: true, add: true };
    let products = results.map(product);
    let workspace = cuda.at(cuda.scratch.products);
    cuda.device.multiply(&products[0], workspace);
    gemm::multiply(&mut cuda.device, &products[1]);
    let error = relative(&cuda.read(results[1]), &cuda.read(results[0]));
    Ok((error, cuda.device))
}

/// Length of the difference over length of what is expected.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / square(&mut expected.iter().map(|&b| f64::from(b))).max(1e-30)
}

/// A model of every kind of operation: grouped heads, biases, a tied head, in a width that no tile likes.
const MODEL: &str = r#"{"model_type": "qwen2", "vocab_size": 515, "hidden_size": 128, "intermediate_size": 200,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true}"#;

/// Trains a small model on the device and on the CPU, with either kind of weights; what is compared is the loss of each step.
pub fn training<D: Device>(device: D, steps: usize, mut report: impl FnMut(&Compared)) -> Result<D> {
    let mut device = device;
    for (master_weights, kept) in [(Precision::F32, ""), (Precision::Bf16, ", weights in bf16")] {
        let purpose = Purpose::Train { recompute: false, master_weights };
        let layout = Layout { tokens: 300, logit_rows: 64, purpose };
        let (decoder, table) = Decoder::lay_out(Config::parse(MODEL)?, layout);
        let batch = batch(layout.tokens, decoder.config.vocabulary);
        let mut cpu = Cpu::allocate(table.clone())?;
        let expected = losses(&decoder, &mut cpu, &batch, steps)?;
        let mut cuda = Cuda::over(device, table)?;
        let found = losses(&decoder, &mut cuda, &batch, steps)?;
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = ((found - expected) / expected).abs();
            let what = format!("loss of step {}{kept}: {expected:.4}, {found:.4}", step + 1);
            report(&Compared { what, error, tolerance: 2e-2 });
        }
        device = cuda.device;
    }
    Ok(device)
}

fn losses<O: Ops>(decoder: &Decoder, ops: &mut O, batch: &Batch, steps: usize) -> Result<Vec<f64>> {
    ops.set_rotations(&decoder.config.rope(), decoder.layout.tokens);
    weights::init(Seed(17), decoder, ops);
    let step =
        AdafactorStep { rate: Rate::Fixed(3e-3), max_norm: None, weight_decay: 0.0, scale_parameter: false, ..STEP };
    let mut losses = Vec::new();
    for _ in 0..steps {
        decoder.zero_gradients(ops);
        let of_rows = decoder.train(ops, batch, 1.0 / batch.rows.len() as f32);
        losses.push(of_rows.iter().map(|&l| f64::from(l)).sum::<f64>() / of_rows.len() as f64);
        let norm = decoder.update(ops, &step);
        let norm = ops.norm_arrived(norm);
        ops.healthy()?;
        assert!(norm.finite, "gradients are numbers");
    }
    Ok(losses)
}
