//! The decoder: its table of tensors, and its forward and backward pass as calls of [`Ops`].
//!
//! ```text
//! x₀ = embed(ids)
//! for each layer:  m = x + o_proj(attention(rope(q, k), v))     q, k, v from norm(x)
//!                  x = m + down_proj(silu(gate) · up)           gate, up from norm(m)
//! logits = lm_head(norm(x)), of the rows that predict something
//! ```
//!
//! Kept for the backward pass of a layer: x, q, k, v, attention's result, m, gate and up. What is normed or multiplied
//! elementwise is computed again, which costs little beside the products. With `recompute` only x is kept of each
//! layer, and its forward pass is done again before its backward pass: a third more work, far less memory.
//!
//! Texts can be gone on with token by token: keys and values of what a model has seen are kept by layer, and a later
//! batch says which of its segments goes on from where ([`super::ops::Past`]).

use super::arena::{Bounds, Group, Kind, Precision, Table, Tensor};
use super::config::Config;
use super::ops::{
    AdafactorStep, AttentionGradients, AttentionSaved, Batch, Cache, Likelihood, Moments, Ops, Turn, Work,
};
use super::ranks::Ranks;
use crate::diag::Result;

/// What a model is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Most tokens of a batch (N).
    pub tokens: usize,
    /// Rows whose logits exist at a time (R).
    pub logit_rows: usize,
    pub purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes only, with places for keys and values of so many tokens (P), for texts to be gone on with.
    Score { places: usize },
    Train {
        recompute: bool,
        /// What weights are kept in from step to step.
        master_weights: Precision,
    },
}

/// A weight and what belongs to it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As checkpoints name it.
    pub name: String,
    pub weight: Tensor,
    /// Of a model laid out for training.
    pub training: Option<(Tensor, Moments)>,
    /// Where the gradients of several passes are added up, if they are kept apart.
    pub total: Option<Tensor>,
}

pub struct Decoder {
    pub config: Config,
    pub layout: Layout,
    pub parameters: Vec<Parameter>,
    embedding: Weight,
    layers: Vec<LayerWeights>,
    final_norm: Weight,
    head: Weight,
    /// The residual stream before each layer, and after the last (N, C).
    x: Vec<Tensor>,
    /// By layer; one for all where nothing is kept.
    saved: Vec<Saved>,
    final_rstd: Tensor,
    /// By layer, of a model laid out for scoring.
    caches: Vec<Cache>,
    work: Workspace,
    gradients: Option<GradientWorkspace>,
}

/// A weight and its gradient, if there is one.
#[derive(Clone, Copy)]
struct Weight {
    w: Tensor,
    d: Option<Tensor>,
}

impl Weight {
    fn gradient(self) -> Tensor {
        self.d.expect("a model laid out for training has gradients")
    }
}

#[derive(Clone, Copy)]
struct Linear {
    weight: Weight,
    bias: Option<Weight>,
}

struct LayerWeights {
    norm1: Weight,          // (C)
    q: Linear,              // (H·D, C)
    k: Linear,              // (K·D, C)
    v: Linear,              // (K·D, C)
    q_norm: Option<Weight>, // (D)
    k_norm: Option<Weight>, // (D)
    o: Linear,              // (C, H·D)
    norm2: Weight,          // (C)
    gate: Linear,           // (F, C)
    up: Linear,             // (F, C)
    down: Linear,           // (C, F)
}

#[derive(Clone, Copy)]
struct Saved {
    rstd1: Tensor, // (N)
    q: Tensor,     // (N, H, D), rotated
    k: Tensor,     // (N, K, D), rotated
    v: Tensor,     // (N, K, D)
    raw: Option<RawHeads>,
    o: Tensor,     // (N, H, D)
    lse: Tensor,   // (N, H)
    m: Tensor,     // (N, C)
    rstd2: Tensor, // (N)
    gate: Tensor,  // (N, F)
    up: Tensor,    // (N, F)
}

/// Queries and keys before their norm.
#[derive(Clone, Copy)]
struct RawHeads {
    q: Tensor,      // (N, H, D)
    k: Tensor,      // (N, K, D)
    q_rstd: Tensor, // (N, H)
    k_rstd: Tensor, // (N, K)
}

struct Workspace {
    normed: Tensor, // (N, C)
    delta: Tensor,  // (N, C)
    h: Tensor,      // (N, F)
    hidden: Tensor, // (R, C)
    logits: Tensor, // (R, V)
    losses: Tensor, // (N, and what fills the last chunk of R)
}

struct GradientWorkspace {
    dx: Tensor,      // (N, C)
    dnormed: Tensor, // (N, C)
    dh: Tensor,      // (N, F)
    dout: Tensor,    // (N, H, D)
    dq: Tensor,      // (N, H, D)
    dk: Tensor,      // (N, K, D)
    dv: Tensor,      // (N, K, D)
    /// Gradients of queries and keys before their norm.
    raw: Option<(Tensor, Tensor)>,
    dhidden: Tensor, // (R, C)
}

/// Writes the table and remembers the parameters.
struct Tables {
    table: Table,
    parameters: Vec<Parameter>,
    purpose: Purpose,
}

impl Tables {
    fn weight(&mut self, name: String, shape: &[usize]) -> Weight {
        // What is not trained needs no more than the numbers that are computed with.
        let (kind, train) = match self.purpose {
            Purpose::Train { master_weights, .. } => (Kind::Weight(master_weights), true),
            Purpose::Score { .. } => (Kind::Activation, false),
        };
        let w = self.table.add(Group::Weights, kind, &*name, shape);
        let training = train.then(|| {
            let gradient = self.table.add(Group::Gradients, Kind::Exact, format!("gradient of {name}"), shape);
            let mut moment = |what: &str, shape: &[usize]| {
                self.table.add(Group::Optimizer, Kind::Exact, format!("{what} of {name}"), shape)
            };
            let moments = match *shape {
                [o, i] => {
                    Moments::Factored { rows: moment("row moments", &[o]), columns: moment("column moments", &[i]) }
                }
                _ => Moments::Full(moment("moments", shape)),
            };
            (gradient, moments)
        });
        self.parameters.push(Parameter { name, weight: w, training, total: None });
        Weight { w, d: training.map(|(gradient, _)| gradient) }
    }

    fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) -> Linear {
        Linear {
            weight: self.weight(format!("{name}.weight"), &[out, input]),
            bias: bias.then(|| self.weight(format!("{name}.bias"), &[out])),
        }
    }
}

impl Decoder {
    /// Writes the table of a model; nothing is allocated.
    pub fn lay_out(config: Config, layout: Layout) -> (Decoder, Table) {
        let c = &config;
        let (n, r) = (layout.tokens, layout.logit_rows);
        let (width, inner, vocabulary) = (c.hidden, c.intermediate, c.vocabulary);
        let (q_width, kv_width) = (c.query_width(), c.kv_width());
        let train = matches!(layout.purpose, Purpose::Train { .. });
        let bounds = Bounds { tokens: n, logit_rows: r, heads: c.heads, head_dim: c.head_dim };
        let mut t = Tables { table: Table::new(bounds), parameters: Vec::new(), purpose: layout.purpose };

        let embedding = t.weight("model.embed_tokens.weight".into(), &[vocabulary, width]);
        let mut layers = Vec::new();
        for l in 0..c.layers {
            let at = |part: &str| format!("model.layers.{l}.{part}");
            let attention = |part: &str| at(&format!("self_attn.{part}"));
            let q = t.linear(&attention("q_proj"), q_width, width, c.qkv_bias);
            let k = t.linear(&attention("k_proj"), kv_width, width, c.qkv_bias);
            let v = t.linear(&attention("v_proj"), kv_width, width, c.qkv_bias);
            let o = t.linear(&attention("o_proj"), width, q_width, c.output_bias);
            let mut head_norm = |part: &str| c.qk_norm.then(|| t.weight(attention(part), &[c.head_dim]));
            let (q_norm, k_norm) = (head_norm("q_norm.weight"), head_norm("k_norm.weight"));
            layers.push(LayerWeights {
                q,
                k,
                v,
                o,
                q_norm,
                k_norm,
                gate: t.linear(&at("mlp.gate_proj"), inner, width, false),
                up: t.linear(&at("mlp.up_proj"), inner, width, false),
                down: t.linear(&at("mlp.down_proj"), width, inner, false),
                norm1: t.weight(at("input_layernorm.weight"), &[width]),
                norm2: t.weight(at("post_attention_layernorm.weight"), &[width]),
            });
        }
        let final_norm = t.weight("model.norm.weight".into(), &[width]);
        let head = if c.tied { embedding } else { t.weight("lm_head.weight".into(), &[vocabulary, width]) };

        let Tables { mut table, parameters, .. } = t;
        let mut keep = |kind: Kind, name: String, shape: &[usize]| table.add(Group::Activations, kind, name, shape);
        // Without a backward pass, the residual stream goes back and forth between two tensors.
        let streams = if train { c.layers + 1 } else { 2 };
        let x = (0..streams).map(|l| keep(Kind::Activation, format!("activations.{l}.x"), &[n, width])).collect();
        let kept = if matches!(layout.purpose, Purpose::Train { recompute: false, .. }) { c.layers } else { 1 };
        let saved = (0..kept)
            .map(|l| {
                let mut add =
                    |kind: Kind, name: &str, shape: &[usize]| keep(kind, format!("activations.{l}.{name}"), shape);
                let mut statistic = |name: &str, shape: &[usize]| add(Kind::Exact, name, shape);
                let (rstd1, rstd2) = (statistic("rstd1", &[n]), statistic("rstd2", &[n]));
                let lse = statistic("lse", &[n, c.heads]);
                let rstd =
                    c.qk_norm.then(|| (statistic("q_rstd", &[n, c.heads]), statistic("k_rstd", &[n, c.kv_heads])));
                let mut keep = |name: &str, shape: &[usize]| add(Kind::Activation, name, shape);
                Saved {
                    rstd1,
                    q: keep("q", &[n, c.heads, c.head_dim]),
                    k: keep("k", &[n, c.kv_heads, c.head_dim]),
                    v: keep("v", &[n, c.kv_heads, c.head_dim]),
                    raw: rstd.map(|(q_rstd, k_rstd)| RawHeads {
                        q: keep("q_raw", &[n, c.heads, c.head_dim]),
                        k: keep("k_raw", &[n, c.kv_heads, c.head_dim]),
                        q_rstd,
                        k_rstd,
                    }),
                    o: keep("o", &[n, c.heads, c.head_dim]),
                    lse,
                    m: keep("m", &[n, width]),
                    rstd2,
                    gate: keep("gate", &[n, inner]),
                    up: keep("up", &[n, inner]),
                }
            })
            .collect();
        let final_rstd = keep(Kind::Exact, "activations.rstd".into(), &[n]);
        let caches = match layout.purpose {
            Purpose::Score { places } => (0..c.layers)
                .map(|l| Cache {
                    k: keep(Kind::Activation, format!("cache.{l}.k"), &[places, c.kv_heads, c.head_dim]),
                    v: keep(Kind::Activation, format!("cache.{l}.v"), &[places, c.kv_heads, c.head_dim]),
                })
                .collect(),
            Purpose::Train { .. } => Vec::new(),
        };

        let losses = table.add(Group::Workspace, Kind::Exact, "losses", &[n.next_multiple_of(r)]);
        let mut work = |name: &str, shape: &[usize]| table.add(Group::Workspace, Kind::Activation, name, shape);
        let workspace = Workspace {
            normed: work("normed", &[n, width]),
            delta: work("delta", &[n, width]),
            h: work("h", &[n, inner]),
            hidden: work("hidden", &[r, width]),
            logits: work("logits", &[r, vocabulary]),
            losses,
        };
        let gradients = train.then(|| GradientWorkspace {
            dx: work("dx", &[n, width]),
            dnormed: work("dnormed", &[n, width]),
            dh: work("dh", &[n, inner]),
            dout: work("dout", &[n, c.heads, c.head_dim]),
            dq: work("dq", &[n, c.heads, c.head_dim]),
            dk: work("dk", &[n, c.kv_heads, c.head_dim]),
            dv: work("dv", &[n, c.kv_heads, c.head_dim]),
            raw: c
                .qk_norm
                .then(|| (work("dq_raw", &[n, c.heads, c.head_dim]), work("dk_raw", &[n, c.kv_heads, c.head_dim]))),
            dhidden: work("dhidden", &[r, width]),
        });
        let decoder = Decoder {
            config,
            layout,
            parameters,
            embedding,
            layers,
            final_norm,
            head,
            x,
            saved,
            final_rstd,
            caches,
            work: workspace,
            gradients,
        };
        (decoder, table)
    }

    /// Adds a second copy of the gradients to the table: each pass then begins with gradients of zero, and is added to
    /// the total by [`Decoder::sum_gradients`].
    pub fn keep_totals(&mut self, table: &mut Table) {
        for parameter in self.parameters.iter_mut().filter(|p| p.training.is_some()) {
            let shape = table.get(parameter.weight).shape.clone();
            let name = format!("total gradient of {}", parameter.name);
            parameter.total = Some(table.add(Group::Gradients, Kind::Exact, name, &shape));
        }
    }

    /// Numbers that are learned.
    pub fn parameter_count(&self, table: &Table) -> usize {
        self.parameters.iter().map(|p| table.get(p.weight).len()).sum()
    }

    /// Keeps the batch's keys and values, and nothing else.
    pub fn read(&self, ops: &mut impl Ops, batch: &Batch) {
        assert!(batch.keep, "a batch that is read is kept");
        self.forward(ops, batch);
    }

    /// The loss at each of the batch's rows.
    pub fn score(&self, ops: &mut impl Ops, batch: &Batch) -> Vec<f32> {
        self.losses(ops, batch);
        let losses = ops.losses(self.work.losses, batch.rows.len());
        ops.arrived(losses)
    }

    /// How likely the model finds what each of the batch's segments has to predict.
    pub fn likelihoods(&self, ops: &mut impl Ops, batch: &Batch) -> Vec<Likelihood> {
        self.losses(ops, batch);
        ops.likelihoods(self.work.losses)
    }

    fn losses(&self, ops: &mut impl Ops, batch: &Batch) {
        self.forward(ops, batch);
        self.each_chunk(ops, batch, |ops, first, count| {
            ops.cross_entropy(self.work.losses, self.work.logits, first, count, false);
        });
    }

    /// The most likely token after each of the batch's rows.
    pub fn most_likely(&self, ops: &mut impl Ops, batch: &Batch) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(batch.rows.len());
        self.forward(ops, batch);
        self.each_chunk(ops, batch, |ops, _, count| tokens.extend(ops.argmax(self.work.logits, count)));
        tokens
    }

    /// The logits of the batch's rows, one row of V after another.
    pub fn logits(&self, ops: &mut impl Ops, batch: &Batch) -> Vec<f32> {
        let mut logits = Vec::with_capacity(batch.rows.len() * self.config.vocabulary);
        self.forward(ops, batch);
        self.each_chunk(ops, batch, |ops, _, count| {
            logits.extend_from_slice(&ops.read(self.work.logits)[..count * self.config.vocabulary]);
        });
        logits
    }

    /// Adds to the gradients what `weight` times the sum of the batch's losses gives, and waits for the losses.
    pub fn train(&self, ops: &mut impl Ops, batch: &Batch, weight: f32) -> Vec<f32> {
        let losses = self.begin(ops, batch, batch.tokens(), weight);
        ops.arrived(losses)
    }

    /// [`Decoder::train`] without waiting, so that a backend with a queue always has work in it. Such a backend fills the
    /// batch up to `room` tokens, what its rows would have if nothing of them were left out, and to whole chunks of logits:
    /// passes of a run then have few shapes.
    pub fn begin<O: Ops>(&self, ops: &mut O, batch: &Batch, room: usize, weight: f32) -> O::Losses {
        let g = self.gradients.as_ref().expect("a model laid out for training has gradients");
        let filled = O::QUEUES.then(|| batch.filled(room, batch.rows.len().next_multiple_of(self.layout.logit_rows)));
        let losses = batch.rows.len();
        let batch = filled.as_ref().unwrap_or(batch);
        self.load(ops, batch, weight);
        ops.repeat(Work::Pass { tokens: batch.tokens(), rows: batch.rows.len() }, |ops| {
            self.run_layers(ops, batch);
            ops.zero(g.dnormed);
            self.each_chunk(ops, batch, |ops, first, count| {
                ops.cross_entropy(self.work.losses, self.work.logits, first, count, true);
                ops.linear_backward_weight(self.head.gradient(), None, self.work.logits, self.work.hidden, count);
                ops.linear_backward_input(g.dhidden, self.work.logits, self.head.w, count, false);
                ops.scatter(g.dnormed, g.dhidden, first, count);
            });
            self.backward(ops, g, batch);
        });
        ops.losses(self.work.losses, losses)
    }

    /// Before each pass, or all passes of a step where they are not kept apart.
    pub fn zero_gradients(&self, ops: &mut impl Ops) {
        ops.repeat(Work::Clear, |ops| {
            for (gradient, _) in self.parameters.iter().filter_map(|p| p.training) {
                ops.zero(gradient);
            }
        });
    }

    /// Before the first pass of a step.
    pub fn zero_totals(&self, ops: &mut impl Ops) {
        for total in self.parameters.iter().filter_map(|p| p.total) {
            ops.zero(total);
        }
    }

    /// Adds the gradients of all ranks to the totals, or puts their sum in their place.
    pub fn sum_gradients(&self, ops: &mut impl Ops, ranks: &mut Ranks) -> Result<()> {
        for parameter in &self.parameters {
            if let Some((gradient, _)) = parameter.training
                && (parameter.total.is_some() || ranks.size() > 1)
            {
                ops.sum_over_ranks(parameter.total, gradient, ranks)?;
            }
        }
        Ok(())
    }

    /// A step of the optimizer over all weights, skipped if a gradient is NaN or infinite. The length of the gradients,
    /// which says whether it was, is not waited for.
    pub fn update<O: Ops>(&self, ops: &mut O, step: &AdafactorStep) -> O::Norm {
        ops.set_step(step);
        ops.repeat(Work::Update, |ops| {
            let gradients: Vec<Tensor> = self.trained().map(|(_, gradient, _)| gradient).collect();
            ops.begin_step(&gradients);
            for (weight, gradient, moments) in self.trained() {
                ops.adafactor(weight, gradient, moments);
            }
        });
        ops.norm()
    }

    /// What the optimizer works on: weights, their gradients (in all), and moments.
    fn trained(&self) -> impl Iterator<Item = (Tensor, Tensor, Moments)> {
        self.parameters.iter().filter_map(|p| {
            let (gradient, moments) = p.training?;
            Some((p.weight, p.total.unwrap_or(gradient), moments))
        })
    }

    /// Makes logits of the batch's rows, a chunk at a time.
    fn each_chunk<O: Ops>(&self, ops: &mut O, batch: &Batch, mut visit: impl FnMut(&mut O, usize, usize)) {
        for first in (0..batch.rows.len()).step_by(self.layout.logit_rows) {
            let count = (batch.rows.len() - first).min(self.layout.logit_rows);
            ops.gather(self.work.hidden, self.work.normed, first, count);
            ops.linear(self.work.logits, self.work.hidden, self.head.w, None, count);
            visit(ops, first, count);
        }
    }

    /// Runs the layers over `batch`, of which no gradients are asked.
    fn forward(&self, ops: &mut impl Ops, batch: &Batch) {
        self.load(ops, batch, 0.0);
        self.run_layers(ops, batch);
    }

    fn load(&self, ops: &mut impl Ops, batch: &Batch, weight: f32) {
        assert!(batch.tokens() <= self.layout.tokens, "a batch has to fit into what the model was laid out for");
        ops.load(batch, weight);
    }

    /// Runs the layers over the batch that is loaded; the normed result stays in the workspace for what follows.
    fn run_layers(&self, ops: &mut impl Ops, batch: &Batch) {
        let (n, eps, work) = (batch.tokens(), self.config.norm_eps, &self.work);
        ops.embed(self.x[0], self.embedding.w);
        ops.rmsnorm(work.normed, self.saved(0).rstd1, self.x[0], self.layers[0].norm1.w, eps);
        for (l, layer) in self.layers.iter().enumerate() {
            self.forward_to_gates(ops, l, batch);
            let saved = self.saved(l);
            ops.swiglu(work.h, saved.gate, saved.up);
            forward(ops, work.delta, work.h, layer.down, n);
            let (rstd, norm) = match self.layers.get(l + 1) {
                Some(next) => (self.saved(l + 1).rstd1, next.norm1),
                None => (self.final_rstd, self.final_norm),
            };
            ops.residual_rmsnorm(work.normed, rstd, self.stream(l + 1), saved.m, work.delta, norm.w, eps);
        }
    }

    /// A layer from its normed input to gate and up: all that its backward pass needs.
    fn forward_to_gates(&self, ops: &mut impl Ops, l: usize, batch: &Batch) {
        let n = batch.tokens();
        let (layer, saved, work, eps) = (&self.layers[l], self.saved(l), &self.work, self.config.norm_eps);
        let (q, k) = saved.raw.map_or((saved.q, saved.k), |raw| (raw.q, raw.k));
        forward(ops, q, work.normed, layer.q, n);
        forward(ops, k, work.normed, layer.k, n);
        forward(ops, saved.v, work.normed, layer.v, n);
        if let (Some(raw), Some(q_norm), Some(k_norm)) = (saved.raw, layer.q_norm, layer.k_norm) {
            ops.rmsnorm(saved.q, raw.q_rstd, raw.q, q_norm.w, eps);
            ops.rmsnorm(saved.k, raw.k_rstd, raw.k, k_norm.w, eps);
        }
        ops.rope(saved.q, Turn::Forward);
        ops.rope(saved.k, Turn::Forward);
        if batch.past.is_empty() {
            ops.attention(saved.o, saved.lse, saved.q, saved.k, saved.v);
        } else {
            ops.attention_cached(saved.o, saved.lse, saved.q, saved.k, saved.v, self.caches[l]);
        }
        if batch.keep {
            ops.keep(self.caches[l], saved.k, saved.v);
        }
        forward(ops, work.delta, saved.o, layer.o, n);
        ops.residual_rmsnorm(work.normed, saved.rstd2, saved.m, self.stream(l), work.delta, layer.norm2.w, eps);
        forward(ops, saved.gate, work.normed, layer.gate, n);
        forward(ops, saved.up, work.normed, layer.up, n);
    }

    /// From the gradient of the normed result to those of all weights.
    fn backward(&self, ops: &mut impl Ops, g: &GradientWorkspace, batch: &Batch) {
        let (n, work, eps) = (batch.tokens(), &self.work, self.config.norm_eps);
        let last = self.stream(self.layers.len());
        ops.zero(g.dx);
        ops.rmsnorm_backward(g.dx, self.final_norm.gradient(), g.dnormed, last, self.final_norm.w, self.final_rstd);
        for (l, layer) in self.layers.iter().enumerate().rev() {
            let (x, saved) = (self.stream(l), self.saved(l));
            if matches!(self.layout.purpose, Purpose::Train { recompute: true, .. }) {
                ops.rmsnorm(work.normed, saved.rstd1, x, layer.norm1.w, eps);
                self.forward_to_gates(ops, l, batch);
            }

            // x = m + down_proj(h): dx goes on to m as it is, and through the MLP.
            ops.swiglu(work.h, saved.gate, saved.up);
            backward(ops, (g.dh, false), g.dx, work.h, layer.down, n);
            ops.swiglu_backward(saved.gate, saved.up, g.dh);
            ops.rmsnorm(work.normed, saved.rstd2, saved.m, layer.norm2.w, eps);
            backward(ops, (g.dnormed, false), saved.gate, work.normed, layer.gate, n);
            backward(ops, (g.dnormed, true), saved.up, work.normed, layer.up, n);
            ops.rmsnorm_backward(g.dx, layer.norm2.gradient(), g.dnormed, saved.m, layer.norm2.w, saved.rstd2);

            // m = x + o_proj(o): the same once more, through attention.
            backward(ops, (g.dout, false), g.dx, saved.o, layer.o, n);
            let Saved { o, lse, q, k, v, .. } = saved;
            ops.attention_backward(
                AttentionGradients { dq: g.dq, dk: g.dk, dv: g.dv },
                AttentionSaved { dout: g.dout, o, lse, q, k, v },
            );
            ops.rope(g.dq, Turn::Back);
            ops.rope(g.dk, Turn::Back);
            let mut heads = (g.dq, g.dk);
            if let (Some(raw), Some(gradients), Some(q_norm), Some(k_norm)) =
                (saved.raw, g.raw, layer.q_norm, layer.k_norm)
            {
                heads = gradients;
                ops.zero(heads.0);
                ops.zero(heads.1);
                ops.rmsnorm_backward(heads.0, q_norm.gradient(), g.dq, raw.q, q_norm.w, raw.q_rstd);
                ops.rmsnorm_backward(heads.1, k_norm.gradient(), g.dk, raw.k, k_norm.w, raw.k_rstd);
            }
            ops.rmsnorm(work.normed, saved.rstd1, x, layer.norm1.w, eps);
            backward(ops, (g.dnormed, false), heads.0, work.normed, layer.q, n);
            backward(ops, (g.dnormed, true), heads.1, work.normed, layer.k, n);
            backward(ops, (g.dnormed, true), g.dv, work.normed, layer.v, n);
            ops.rmsnorm_backward(g.dx, layer.norm1.gradient(), g.dnormed, x, layer.norm1.w, saved.rstd1);
        }
        ops.embed_backward(self.embedding.gradient(), g.dx);
    }

    fn stream(&self, l: usize) -> Tensor {
        self.x[l % self.x.len()]
    }

    fn saved(&self, l: usize) -> Saved {
        self.saved[l % self.saved.len()]
    }
}

fn forward(ops: &mut impl Ops, y: Tensor, x: Tensor, linear: Linear, rows: usize) {
    ops.linear(y, x, linear.weight.w, linear.bias.map(|b| b.w), rows);
}

/// Gradients of a linear layer's weights, and of its input, which is added to or overwritten.
fn backward(ops: &mut impl Ops, (dx, add): (Tensor, bool), dy: Tensor, x: Tensor, linear: Linear, rows: usize) {
    ops.linear_backward_weight(linear.weight.gradient(), linear.bias.map(Weight::gradient), dy, x, rows);
    ops.linear_backward_input(dx, dy, linear.weight.w, rows, add);
}
