//! Every operation of a model: formula, shapes, and what a backend owes.
//!
//! [`super::decoder`] writes the forward and backward pass of a model once, in these operations; a backend
//! ([`super::cpu`]) carries them out. There is no autograd: each operation that has a gradient has a backward
//! operation beside it, and the decoder calls them in reverse.
//!
//! Letters in shapes:
//!
//! | | |
//! | --- | --- |
//! | N | tokens of the batch, all rows and segments one after another: what others call B·T |
//! | B, T | rows of a packed shard and their length; the operations see only N and segments |
//! | C | width of the residual stream |
//! | F | width inside the MLP |
//! | V | vocabulary |
//! | L | layers |
//! | H, K, D | query heads, key-value heads, width of a head |
//! | R | rows of a chunk of those positions that predict something |
//! | P | places of tokens whose keys and values are kept |
//!
//! Matrices are row-major; weights of linear layers are (out, in), as checkpoints have them. Row counts of
//! activations come from the batch, which may be shorter than the tensors were laid out for.
//!
//! A backend owes the same bytes for the same inputs, whatever the number of threads or the order in which blocks
//! run: sums have a fixed order. `+=` marks outputs that are added to; all others are overwritten, whatever they
//! hold (NaN included).

use std::ops::Range;

use super::arena::{Table, Tensor};
use super::ranks::Ranks;
use super::rope::Rope;
use crate::diag::Result;

/// The tokens of a forward pass, and which of their positions are trained or scored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// (N)
    pub ids: Vec<u32>,
    /// Lengths of the segments, which add up to N. A token attends to those before it in its segment and to itself;
    /// its position is counted from the segment's first token.
    pub segments: Vec<u32>,
    /// Positions that predict something, ascending.
    pub rows: Vec<u32>,
    /// The token that each of `rows` has to predict; or [`NO_TARGET`].
    pub targets: Vec<u32>,
    /// By segment, what it goes on from; empty where every segment is a text from its beginning.
    pub past: Vec<Past>,
    /// Whether keys and values of these tokens are kept behind the past of their segment.
    pub keep: bool,
}

/// In place of a target: the row's loss is 0, and gives no gradient.
pub const NO_TARGET: u32 = u32::MAX;

/// The beginning of a text, whose keys and values were kept by earlier passes: a segment goes on behind it. Its tokens
/// attend to the past as well, and their positions count from the text's first token. Several segments may go on from
/// one past, and do not see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Where the text begins among what is kept, below P.
    pub place: u32,
    /// Tokens of it that are kept; 0 where the segment is the beginning.
    pub length: u32,
}

impl Batch {
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Adds a segment whose token i is predicted (from the one before it) where `trained(i)`.
    pub fn push(&mut self, ids: &[u32], trained: impl Fn(usize) -> bool) {
        let start = self.ids.len();
        for i in (1..ids.len()).filter(|&i| trained(i)) {
            self.rows.push((start + i - 1) as u32);
            self.targets.push(ids[i]);
        }
        self.ids.extend_from_slice(ids);
        self.segments.push(ids.len() as u32);
    }

    /// The same batch with so many tokens and rows, no fewer than it has. What is added changes neither losses nor
    /// gradients, but for how sums are rounded: a token is a segment by itself, a row predicts nothing.
    pub fn filled(&self, tokens: usize, rows: usize) -> Batch {
        let mut batch = self.clone();
        // An embedding that the batch has anyway, and a row whose gradient is zero anyway.
        batch.ids.resize(tokens, self.ids[0]);
        batch.segments.resize(self.segments.len() + tokens - self.tokens(), 1);
        let last = tokens as u32 - 1;
        assert!(self.rows.last().is_none_or(|&row| row < last), "the last token of a segment predicts nothing");
        batch.rows.resize(rows, last);
        batch.targets.resize(rows, NO_TARGET);
        batch
    }

    /// By segment, which of `rows` are its own.
    pub fn rows_of_segments(&self) -> impl Iterator<Item = Range<usize>> {
        let ends = self.segments.iter().scan(0, |end, length| {
            *end += length;
            Some(self.rows.partition_point(|row| row < end))
        });
        ends.scan(0, |first, end| Some(std::mem::replace(first, end)..end))
    }

    /// Adds the rest of a text, behind what is kept of it; its last tokens predict `targets`.
    pub fn go_on(&mut self, past: Past, text: &[u32], targets: &[u32]) {
        let rest = &text[past.length as usize..];
        self.ids.extend_from_slice(rest);
        self.segments.push(rest.len() as u32);
        self.past.push(past);
        let end = self.ids.len();
        self.rows.extend((end - targets.len()..end).map(|row| row as u32));
        self.targets.extend_from_slice(targets);
    }

    pub fn clear(&mut self) {
        self.ids.clear();
        self.segments.clear();
        self.rows.clear();
        self.targets.clear();
        self.past.clear();
        self.keep = false;
    }
}

/// Which way [`Ops::rope`] turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Forward,
    /// The transposed rotation: what the gradient goes through.
    Back,
}

/// Work that asks for the same operations on the same tensors whenever it comes; what differs from time to time was
/// loaded or written before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Gradients are set to zero.
    Clear,
    /// A pass, forward and backward, over a batch of so many tokens and rows.
    Pass { tokens: usize, rows: usize },
    /// A step of the optimizer.
    Update,
}

/// Length of all gradients together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norm {
    pub value: f64,
    /// False if any gradient is NaN or infinite: the step then changes nothing.
    pub finite: bool,
}

/// Logarithm of how likely a model finds some tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    pub in_all: f32,
    /// Mean over the tokens.
    pub per_token: f32,
}

/// Second moments that Adafactor keeps for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// Of a matrix (O, I): means over its rows (O) and over its columns (I).
    Factored { rows: Tensor, columns: Tensor },
    /// Of a vector, each.
    Full(Tensor),
}

/// A learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    Fixed(f64),
    /// `min(0.01, t^-½)` of the t-th step.
    Relative,
}

/// What a step of Adafactor is asked to be; see [`Ops::adafactor`]. What depends on the gradients, or on how many steps
/// there were before, a backend finds by itself: whoever asks may not know yet what became of the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdafactorStep {
    pub rate: Rate,
    /// `β₂ = 1 - t^decay_rate` at the t-th step, so that the first one remembers nothing.
    pub decay_rate: f64,
    /// Longer gradients, all together, are shortened to it.
    pub max_norm: Option<f64>,
    /// Added to squared gradients.
    pub eps1: f64,
    /// Smallest scale of a parameter.
    pub eps2: f64,
    pub clip_threshold: f64,
    pub weight_decay: f64,
    /// Multiply the rate by the root mean square of the tensor.
    pub scale_parameter: bool,
    /// Of the draws that weights are rounded by which are kept in bf16 alone.
    pub seed: u64,
}

impl AdafactorStep {
    /// The learning rate of the t-th step, counted from 1.
    pub fn rate(&self, t: u64) -> f64 {
        match self.rate {
            Rate::Fixed(rate) => rate,
            Rate::Relative => (t as f64).sqrt().recip().min(1e-2),
        }
    }

    pub fn beta2(&self, t: u64) -> f64 {
        1.0 - (t as f64).powf(self.decay_rate)
    }

    /// What every gradient is multiplied by, if all together are as long as `norm`.
    pub fn gradient_scale(&self, norm: f64) -> f64 {
        self.max_norm.map_or(1.0, |most| (most / norm.max(1e-12)).min(1.0))
    }
}

/// A backend: the memory of a table, and the operations on it.
pub trait Ops: Sized {
    /// Whether operations are queued and done later. What comes back to the host is then asked for a step late, so that
    /// there is always work in the queue; and passes that are trained on are filled up, so that few of them differ in shape.
    const QUEUES: bool;

    /// Takes the memory that `table` asks for; weights are undefined, all else is zero.
    fn allocate(table: Table) -> Result<Self>;

    fn table(&self) -> &Table;

    /// What computes, as people know it.
    fn device(&self) -> String;

    /// Bytes of memory that are taken where the backend computes.
    fn memory(&self) -> u64 {
        self.table().total_bytes()
    }

    /// Copies numbers into a tensor; rounded to nearest where it keeps bf16.
    fn write(&mut self, tensor: Tensor, values: &[f32]);

    /// Copies a tensor's numbers out.
    fn read(&self, tensor: Tensor) -> Vec<f32>;

    fn zero(&mut self, tensor: Tensor);

    /// What the backend first failed at. Since then it does nothing, and what is read of it is no result: to be asked before
    /// anything is taken for one.
    fn healthy(&self) -> Result<()> {
        Ok(())
    }

    /// Makes `batch` the one that all operations are about; ids are below V, segments with their past not longer than
    /// the rotations. `weight` is what the gradients of its losses are multiplied by.
    fn load(&mut self, batch: &Batch, weight: f32);

    /// Does `operations`, which are those of `work`. A backend with a queue may record them, and from then on repeat what
    /// it recorded.
    fn repeat(&mut self, _work: Work, operations: impl FnOnce(&mut Self)) {
        operations(self);
    }

    /// Sets what each pair of a head is turned by, for positions below `positions`.
    fn set_rotations(&mut self, rope: &Rope, positions: usize);

    // Embedding

    /// `y[n] = table[ids[n]]` · y (N, C), table (V, C)
    fn embed(&mut self, y: Tensor, table: Tensor);

    /// `dtable[ids[n]] += dy[n]`, in ascending n
    fn embed_backward(&mut self, dtable: Tensor, dy: Tensor);

    // RMSNorm (Zhang & Sennrich 2019)

    /// `y = x · rstd · w`, `rstd = 1 / sqrt(mean(x²) + eps)` over the last dimension ·
    /// y, x (N, C), w (C), rstd (N); or, for heads, (N·H, D), (D), (N·H)
    fn rmsnorm(&mut self, y: Tensor, rstd: Tensor, x: Tensor, w: Tensor, eps: f32);

    /// `sum = x + delta`, then [`Ops::rmsnorm`] of the sum: a residual connection and the norm after it · all (N, C)
    #[allow(clippy::too_many_arguments)] // they are the operands
    fn residual_rmsnorm(&mut self, y: Tensor, rstd: Tensor, sum: Tensor, x: Tensor, delta: Tensor, w: Tensor, eps: f32);

    /// With `g = dy · w`: `dx += rstd · g - x · rstd³ · mean(g · x)`, `dw += Σ_n dy · x · rstd`
    fn rmsnorm_backward(&mut self, dx: Tensor, dw: Tensor, dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor);

    // Linear

    /// `y = x wᵀ + bias` · y (rows, O), x (rows, I), w (O, I), bias (O)
    fn linear(&mut self, y: Tensor, x: Tensor, w: Tensor, bias: Option<Tensor>, rows: usize);

    /// `dx = dy w`, or `dx += dy w` · dx (rows, I), dy (rows, O), w (O, I)
    fn linear_backward_input(&mut self, dx: Tensor, dy: Tensor, w: Tensor, rows: usize, add: bool);

    /// `dw += dyᵀ x`, `dbias += Σ_rows dy` · dw (O, I), dy (rows, O), x (rows, I), dbias (O)
    fn linear_backward_weight(&mut self, dw: Tensor, dbias: Option<Tensor>, dy: Tensor, x: Tensor, rows: usize);

    // RoPE (Su et al. 2021), in the halves form of Hugging Face's checkpoints

    /// In place, for each head and i < D/2, with `a` the position times the frequency of i, and `s` the amplitude:
    /// `x[i], x[i + D/2] = s (x[i] cos a - x[i + D/2] sin a), s (x[i + D/2] cos a + x[i] sin a)` · x (N, heads, D).
    /// Its gradient is the same with `-a`: back is the transpose, not the inverse.
    fn rope(&mut self, x: Tensor, turn: Turn);

    // Attention: softmax over the tokens of the same segment up to itself, D^-½ as scale

    /// `S = q kᵀ / sqrt(D)` where visible, `o = softmax(S) v`, `lse = log Σ exp S`; query head h reads key-value head
    /// h / (H / K) · q, o (N, H, D), k, v (N, K, D), lse (N, H), in whichever order the backend likes
    fn attention(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor);

    /// With `P = exp(S - lse)`, `delta = Σ_D do · o`, `dS = P (do vᵀ - delta)`:
    /// `dq = dS k / sqrt(D)`, `dk = dSᵀ q / sqrt(D)`, `dv = Pᵀ do`; dk and dv are sums over the heads of a group
    fn attention_backward(&mut self, gradients: AttentionGradients, saved: AttentionSaved);

    // Attention with a cache, of batches with a [`Past`]. Token i of segment s has p = `past[s].place` and
    // n = `past[s].length`

    /// [`Ops::attention`] over the past and then the segment itself: i sees rows p to p + n of the cache, and of k and v
    /// the segment's tokens up to i · o, q (N, H, D), k, v (N, K, D), cache (P, K, D) each, lse (N, H)
    fn attention_cached(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: Cache);

    /// `cache[p + n + i] = k[i]`, and v likewise
    fn keep(&mut self, cache: Cache, k: Tensor, v: Tensor);

    // SwiGLU (Shazeer 2020)

    /// `h = silu(gate) · up`, `silu(x) = x / (1 + exp(-x))` · all (N, F)
    fn swiglu(&mut self, h: Tensor, gate: Tensor, up: Tensor);

    /// In place: gate and up become their own gradients, given dh
    fn swiglu_backward(&mut self, gate: Tensor, up: Tensor, dh: Tensor);

    // Loss, a chunk of R of the batch's `rows` at a time, beginning with number `first`: logits of all tokens never exist

    /// `y[r] = x[rows[first + r]]` · y (R, C), x (N, C)
    fn gather(&mut self, y: Tensor, x: Tensor, first: usize, count: usize);

    /// `dx[rows[first + r]] = dy[r]` · the other rows of dx stay as they are
    fn scatter(&mut self, dx: Tensor, dy: Tensor, first: usize, count: usize);

    /// `losses[first + r] = log Σ_v exp logits[r, v] - logits[r, targets[first + r]]`; with `gradient`, logits become
    /// `weight · (softmax(logits) - onehot(target))`, and NaN where the loss is NaN or infinite, so that every step that
    /// such a loss belongs to is skipped. Without a target both are 0 · losses (N, or as many as fill chunks of R),
    /// logits (R, V)
    fn cross_entropy(&mut self, losses: Tensor, logits: Tensor, first: usize, count: usize, gradient: bool);

    /// Losses on their way from the backend to whoever asked for them.
    type Losses;

    /// The losses of the batch's `rows`, without waiting for them.
    fn losses(&mut self, losses: Tensor, count: usize) -> Self::Losses;

    /// Waits for losses.
    fn arrived(&mut self, losses: Self::Losses) -> Vec<f32>;

    /// Of each segment with rows `R_s`: `-Σ_r losses[r]` over them, in ascending r and in f64, and the same by their number;
    /// the log-likelihood of what it predicts · losses (N)
    fn likelihoods(&mut self, losses: Tensor) -> Vec<Likelihood>;

    /// The most likely token of each row, the lowest id of several · logits (R, V)
    fn argmax(&mut self, logits: Tensor, count: usize) -> Vec<u32>;

    // Ranks

    /// Whether gradients of passes are kept apart and added up in the order of the passes, over all ranks: results then
    /// do not depend on the number of ranks, and a second copy of the gradients is needed where ranks do several passes
    /// each. Otherwise each rank adds up its own, and ranks are summed once a step.
    const SUMS_IN_ORDER: bool;

    /// `g = Σ g` over the ranks; with `total`, which a backend has whose sums are in order, `total += Σ g`, one rank
    /// after another. All ranks hold the same bytes afterwards.
    fn sum_over_ranks(&mut self, total: Option<Tensor>, g: Tensor, ranks: &mut Ranks) -> Result<()>;

    // Optimizer

    /// Says how many steps were done before, skipped ones not counted: where a run goes on.
    fn set_steps_done(&mut self, done: u64);

    /// What the steps that begin from now on are asked to be.
    fn set_step(&mut self, step: &AdafactorStep);

    /// Begins a step: finds `norm = sqrt(Σ g²)` over all the gradients. If one of them is NaN or infinite, the step is
    /// skipped: it does not count, and [`Ops::adafactor`] changes nothing until the next one begins.
    fn begin_step(&mut self, gradients: &[Tensor]);

    /// A step of Adafactor (Shazeer & Stern 2018) as transformers does it, without first moment; with
    /// `g *= min(1, max_norm / norm)`:
    ///
    /// `q = g² + eps1`; of a matrix `vr = β₂ vr + (1-β₂) mean_I q`, `vc = β₂ vc + (1-β₂) mean_O q`,
    /// `u = g · (vr / mean vr)^-½ · vc^-½`; of a vector `v = β₂ v + (1-β₂) q`, `u = g · v^-½`.
    /// `u /= max(1, rms(u) / clip_threshold)`; `lr = rate · [max(eps2, rms(w))]`;
    /// `w -= weight_decay · lr · w`; `w -= lr · u`
    ///
    /// All of it in f32. A weight that is kept in bf16 alone is then rounded by draws ([`super::rounding`]): of the bits of
    /// its element e, read as an integer, the upper 16 of `w[e] + r` are left, where r is the lower half of word e mod 4 of
    /// Philox under the key `seed` (64 bits) and the counter `(e / 4, tensor, t)` (64, 32 and 32 bits) at the t-th step;
    /// tensor is the weight's line in the table.
    fn adafactor(&mut self, w: Tensor, g: Tensor, moments: Moments);

    /// The norm of the step that was begun, on its way.
    type Norm;

    /// The norm of the step that was begun, without waiting for it.
    fn norm(&mut self) -> Self::Norm;

    /// Waits for a norm.
    fn norm_arrived(&mut self, norm: Self::Norm) -> Norm;
}

/// Keys, rotated, and values of a layer that are kept between batches.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    pub k: Tensor, // (P, K, D)
    pub v: Tensor, // (P, K, D)
}

/// Outputs of [`Ops::attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

/// Inputs of [`Ops::attention_backward`]: the gradient of the output, and operands and results of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved {
    pub dout: Tensor,
    pub o: Tensor,
    pub lse: Tensor,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}
