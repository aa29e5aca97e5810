//! The operations on a GPU: activations in bf16, sums in f32, weights in both, or in bf16 alone.
//!
//! One file for each family of kernels, the `.cu` beside the Rust that launches it; products go to cuBLASLt.
//! [`Cuda`] carries the operations out over a [`Device`], of which there are two: a GPU, and the simulator of the
//! tests, so that what is launched there, with which arguments, is what is launched here.
//!
//! Work is only put into a queue. Losses and the norm of a step come back when they are done, and training asks for them
//! a step late; the host waits only for tokens and weights. Whether a step of the optimizer is done at all is decided on
//! the device, where the norm is: by what it leaves for the kernels of the optimizer to read ([`adafactor`]). So what a
//! pass launches depends on its shape alone, and is recorded once for each ([`Ops::repeat`]).
//! All sums have a fixed order that depends on no clock and no device: the same run gives the same bytes again.

pub mod device;

pub mod adafactor;
pub mod attention;
pub mod bias;
pub mod cached;
pub mod cast;
pub mod cross_entropy;
pub mod embedding;
pub mod gather;
pub mod gemm;
pub mod norm;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;

mod batch;
pub mod health;
pub mod layout;

#[allow(unsafe_code)]
pub mod context;
#[allow(unsafe_code)]
pub mod driver;
#[allow(unsafe_code)]
mod libraries;
#[allow(unsafe_code)]
mod nccl;
#[allow(unsafe_code)]
pub mod nvrtc;
#[allow(unsafe_code)]
mod products;
pub mod source;

pub mod bench;
pub mod check;

use std::collections::HashMap;

use half::bf16;

use self::adafactor::{Kept, Scalars};
use self::batch::Loaded;
use self::device::{Buffer, Device, Form, Product, Recording, bytes_of};
use self::layout::{Place, Scratch};
use self::rmsnorm::Rows;
use self::rope::Rotations;
use super::arena::{Kind, Precision, Table, Tensor};
use super::ops::{
    AdafactorStep, AttentionGradients, AttentionSaved, Batch, Cache, Likelihood, Moments, Norm, Ops, Turn, Work,
};
use super::ranks::Ranks;
use super::rope::Rope;
use crate::diag::{Diagnostic, Result};

/// A model's memory on a device.
pub struct Cuda<D> {
    device: D,
    table: Table,
    places: Vec<Place>,
    scratch: Scratch,
    loaded: Loaded,
    rotations: Rotations,
    /// The step that the device is asked for.
    step: Option<AdafactorStep>,
    /// Work that has come once, or more often, and then is recorded.
    recordings: HashMap<Work, Option<Recording>>,
}

impl<D: Device> Cuda<D> {
    /// Takes the memory for `table` and for what is kept beside it.
    pub fn over(mut device: D, table: Table) -> Result<Cuda<D>> {
        let bounds = table.bounds();
        if bounds.heads > 0 && !attention::WIDTHS.contains(&bounds.head_dim) {
            let message = format!("there are no kernels for heads of {} numbers", bounds.head_dim);
            return Err(Diagnostic::error("model-unsupported", message)
                .expected(attention::WIDTHS.map(|width| width.to_string()).join(", "))
                .help("--device cpu runs every model")
                .into());
        }
        let (table, scratch) = layout::plan(table);
        let (places, bytes) = layout::places(&table);
        device.take(bytes).map_err(|free| {
            let missing = |place: &Place| place.compute.at.saturating_add(place.compute.bytes) > free;
            table.out_of_memory(places.iter().position(missing).unwrap_or(places.len() - 1))
        })?;
        device.healthy()?;
        let own = |tensor: Tensor| places[tensor.index()].own;
        let (loaded, rotations) = (
            batch::lists(&Batch::default(), 0.0, own(scratch.batch)).1,
            Rotations { cos: own(scratch.rotations), sin: own(scratch.rotations), positions: 0 },
        );
        Ok(Cuda { device, table, places, scratch, loaded, rotations, step: None, recordings: HashMap::new() })
    }

    /// What a tensor is computed with.
    fn at(&self, tensor: Tensor) -> Buffer {
        self.places[tensor.index()].compute
    }

    /// What is exact of a tensor.
    fn own(&self, tensor: Tensor) -> Buffer {
        self.places[tensor.index()].own
    }

    /// Last dimension.
    fn width(&self, tensor: Tensor) -> usize {
        *self.table.get(tensor).shape.last().expect("tensors have dimensions")
    }

    /// The batch's tokens, or their heads, as rows to be normed.
    fn rows(&self, x: Tensor) -> Rows {
        let shape = &self.table.get(x).shape;
        let (heads, width) = (&shape[1..shape.len() - 1], self.width(x));
        Rows { rows: self.loaded.tokens * heads.iter().product::<usize>(), width, heads: !heads.is_empty() }
    }

    fn attention_shape(&self, q: Tensor, k: Tensor) -> attention::Shape {
        let (q, k) = (&self.table.get(q).shape, &self.table.get(k).shape);
        attention::Shape { tokens: self.loaded.tokens, heads: q[1], kv_heads: k[1], head_dim: q[2] }
    }

    fn scalars(&self) -> Scalars {
        Scalars::of(self.own(self.scratch.scalars))
    }

    fn multiply(&mut self, form: Form, [c, a, b]: [Buffer; 3], [m, n, k]: [usize; 3], exact: bool, add: bool) {
        let workspace = self.own(self.scratch.products);
        self.device.multiply(&Product { form, c, a, b, m, n, k, exact, add }, workspace);
    }
}

impl<D: Device> Ops for Cuda<D> {
    const QUEUES: bool = true;
    /// NCCL sums in an order of its own, and a second copy of the gradients would cost memory that models need.
    const SUMS_IN_ORDER: bool = false;

    fn allocate(table: Table) -> Result<Cuda<D>> {
        Cuda::over(D::open()?, table)
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn device(&self) -> String {
        self.device.name()
    }

    fn write(&mut self, tensor: Tensor, values: &[f32]) {
        let (kind, own) = (self.table.get(tensor).kind, self.own(tensor));
        assert_eq!(self.table.get(tensor).len(), values.len(), "as many numbers as the tensor has");
        match kind {
            Kind::Activation | Kind::Weight(Precision::Bf16) => {
                self.device.upload(own, &bytes_of(values, |v| bf16::from_f32(v).to_le_bytes()));
            }
            Kind::Exact => self.device.upload(own, &bytes_of(values, f32::to_le_bytes)),
            Kind::Weight(Precision::F32) => {
                self.device.upload(own, &bytes_of(values, f32::to_le_bytes));
                let copy = self.at(tensor);
                cast::nearest(&mut self.device, copy, own, values.len());
            }
        }
    }

    fn read(&self, tensor: Tensor) -> Vec<f32> {
        let (entry, own) = (self.table.get(tensor), self.own(tensor));
        let mut bytes = vec![0; own.bytes as usize];
        self.device.download(own, &mut bytes);
        match entry.kind {
            Kind::Activation | Kind::Weight(Precision::Bf16) => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            Kind::Exact | Kind::Weight(Precision::F32) => {
                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
        }
    }

    fn zero(&mut self, tensor: Tensor) {
        self.device.zero(self.own(tensor));
    }

    fn healthy(&self) -> Result<()> {
        self.device.healthy()
    }

    fn load(&mut self, batch: &Batch, weight: f32) {
        let [buffer, coming] = [self.scratch.batch, self.scratch.coming].map(|t| self.own(t));
        let (bytes, loaded) = batch::lists(batch, weight, buffer);
        self.device.bring(buffer, [coming, coming.after(buffer.bytes as usize)], &bytes);
        self.loaded = loaded;
    }

    fn repeat(&mut self, work: Work, operations: impl FnOnce(&mut Self)) {
        let recording = match self.recordings.get(&work) {
            None => {
                // The first time does what is only done once: kernels are looked up, and products planned.
                operations(self);
                self.recordings.insert(work, None);
                return;
            }
            Some(Some(recording)) => *recording,
            Some(None) => {
                self.device.record();
                operations(self);
                let recording = self.device.recorded();
                self.recordings.insert(work, Some(recording));
                recording
            }
        };
        self.device.replay(recording);
    }

    fn set_rotations(&mut self, rope: &Rope, positions: usize) {
        let (cosines, sines): (Vec<f32>, Vec<f32>) = rope.table(positions).unzip();
        let cos = self.own(self.scratch.rotations);
        let sin = cos.after(4 * cosines.len());
        self.device.upload(cos, &bytes_of(&cosines, f32::to_le_bytes));
        self.device.upload(sin, &bytes_of(&sines, f32::to_le_bytes));
        self.rotations = Rotations { cos, sin, positions };
        self.recordings.clear(); // they are for the rotations before
    }

    fn embed(&mut self, y: Tensor, table: Tensor) {
        let shape = [self.table.get(table).shape[0], self.width(table)];
        let (y, table) = (self.at(y), self.at(table));
        embedding::embed(&mut self.device, y, table, &self.loaded, shape);
    }

    fn embed_backward(&mut self, dtable: Tensor, dy: Tensor) {
        let shape = [self.table.get(dtable).shape[0], self.width(dtable)];
        let (dtable, dy) = (self.at(dtable), self.at(dy));
        embedding::embed_backward(&mut self.device, dtable, dy, &self.loaded, shape);
    }

    fn rmsnorm(&mut self, y: Tensor, rstd: Tensor, x: Tensor, w: Tensor, eps: f32) {
        let rows = self.rows(x);
        let operands = [y, rstd, x, w].map(|t| self.at(t));
        rmsnorm::rmsnorm(&mut self.device, operands, rows, eps);
    }

    fn residual_rmsnorm(
        &mut self,
        y: Tensor,
        rstd: Tensor,
        sum: Tensor,
        x: Tensor,
        delta: Tensor,
        w: Tensor,
        eps: f32,
    ) {
        let rows = self.rows(x);
        let operands = [y, rstd, sum, x, delta, w].map(|t| self.at(t));
        rmsnorm::residual_rmsnorm(&mut self.device, operands, rows, eps);
    }

    fn rmsnorm_backward(&mut self, dx: Tensor, dw: Tensor, dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor) {
        let (rows, partial) = (self.rows(x), self.at(self.scratch.partial));
        let operands = [dx, dw, dy, x, w, rstd].map(|t| self.at(t));
        rmsnorm::rmsnorm_backward(&mut self.device, operands, partial, rows);
    }

    fn linear(&mut self, y: Tensor, x: Tensor, w: Tensor, bias: Option<Tensor>, rows: usize) {
        let (out, input) = (self.table.get(w).shape[0], self.width(w));
        let operands = [y, x, w].map(|t| self.at(t));
        self.multiply(Form::Nt, operands, [rows, out, input], false, false);
        if let Some(bias) = bias {
            let bias = self.at(bias);
            bias::add(&mut self.device, operands[0], bias, [rows, out]);
        }
    }

    fn linear_backward_input(&mut self, dx: Tensor, dy: Tensor, w: Tensor, rows: usize, add: bool) {
        let (out, input) = (self.table.get(w).shape[0], self.width(w));
        let operands = [dx, dy, w].map(|t| self.at(t));
        self.multiply(Form::Nn, operands, [rows, input, out], false, add);
    }

    fn linear_backward_weight(&mut self, dw: Tensor, dbias: Option<Tensor>, dy: Tensor, x: Tensor, rows: usize) {
        let (out, input) = (self.table.get(dw).shape[0], self.width(dw));
        let operands = [self.own(dw), self.at(dy), self.at(x)];
        self.multiply(Form::Tn, operands, [out, input, rows], true, true);
        if let Some(dbias) = dbias {
            let operands = [self.at(dbias), operands[1], self.at(self.scratch.partial)];
            bias::backward(&mut self.device, operands, [rows, out]);
        }
    }

    fn rope(&mut self, x: Tensor, turn: Turn) {
        let shape = &self.table.get(x).shape;
        let (heads, x) = ([shape[1], shape[2]], self.at(x));
        rope::rope(&mut self.device, x, &self.loaded, self.rotations, heads, turn);
    }

    fn attention(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor) {
        let shape = self.attention_shape(q, k);
        let (results, qkv) = ([o, lse].map(|t| self.at(t)), [q, k, v].map(|t| self.at(t)));
        attention::forward(&mut self.device, shape, results, qkv, &self.loaded);
    }

    fn attention_cached(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: Cache) {
        let (shape, places) = (self.attention_shape(q, k), self.table.get(cache.k).shape[0]);
        let (results, qkv) = ([o, lse].map(|t| self.at(t)), [q, k, v].map(|t| self.at(t)));
        let cache = ([cache.k, cache.v].map(|t| self.at(t)), places);
        let work = self.own(self.scratch.products); // no product is under way
        cached::forward(&mut self.device, shape, results, qkv, cache, work, &self.loaded);
    }

    fn keep(&mut self, cache: Cache, k: Tensor, v: Tensor) {
        let shape = &self.table.get(cache.k).shape;
        let (places, width) = (shape[0], shape[1] * shape[2]);
        let (cache, fresh) = ([cache.k, cache.v].map(|t| self.at(t)), [k, v].map(|t| self.at(t)));
        cached::keep(&mut self.device, (cache, places), fresh, &self.loaded, width);
    }

    fn attention_backward(&mut self, gradients: AttentionGradients, saved: AttentionSaved) {
        let shape = self.attention_shape(saved.q, saved.k);
        let AttentionGradients { dq, dk, dv } = gradients;
        let AttentionSaved { dout, o, lse, q, k, v } = saved;
        let (gradients, qkv) = ([dq, dk, dv].map(|t| self.at(t)), [q, k, v].map(|t| self.at(t)));
        let of_queries = [dout, o, lse, self.scratch.delta].map(|t| self.at(t));
        attention::backward(&mut self.device, shape, gradients, of_queries, qkv, &self.loaded);
    }

    fn swiglu(&mut self, h: Tensor, gate: Tensor, up: Tensor) {
        let (numbers, operands) = (self.loaded.tokens * self.width(h), [h, gate, up].map(|t| self.at(t)));
        swiglu::swiglu(&mut self.device, operands, numbers);
    }

    fn swiglu_backward(&mut self, gate: Tensor, up: Tensor, dh: Tensor) {
        let (numbers, operands) = (self.loaded.tokens * self.width(dh), [gate, up, dh].map(|t| self.at(t)));
        swiglu::swiglu_backward(&mut self.device, operands, numbers);
    }

    fn gather(&mut self, y: Tensor, x: Tensor, first: usize, count: usize) {
        let shape = [count, self.loaded.tokens, self.width(y)];
        let operands = [self.at(y), self.at(x), self.loaded.rows.after(4 * first)];
        gather::gather_rows(&mut self.device, operands, shape);
    }

    fn scatter(&mut self, dx: Tensor, dy: Tensor, first: usize, count: usize) {
        let shape = [count, self.loaded.tokens, self.width(dx)];
        let operands = [self.at(dx), self.at(dy), self.loaded.rows.after(4 * first)];
        gather::scatter_rows(&mut self.device, operands, shape);
    }

    fn cross_entropy(&mut self, losses: Tensor, logits: Tensor, first: usize, count: usize, gradient: bool) {
        let shape = [count, self.width(logits)];
        let (losses, targets) = (self.at(losses).after(4 * first), self.loaded.targets.after(4 * first));
        let operands = [losses, self.at(logits), targets, self.loaded.weight];
        cross_entropy::cross_entropy(&mut self.device, operands, shape, gradient);
    }

    type Losses = D::Sent;

    fn losses(&mut self, losses: Tensor, count: usize) -> D::Sent {
        let losses = self.own(losses);
        self.device.send(losses, 4 * count)
    }

    fn arrived(&mut self, losses: D::Sent) -> Vec<f32> {
        let bytes = self.device.arrived(losses);
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn likelihoods(&mut self, losses: Tensor) -> Vec<Likelihood> {
        let (likelihoods, losses) = (self.own(self.scratch.likelihoods), self.own(losses));
        let Loaded { rows_count, segments, first_rows, .. } = self.loaded;
        cross_entropy::likelihoods(&mut self.device, [likelihoods, losses, first_rows], [rows_count, segments]);
        let mut bytes = vec![0; 8 * segments];
        self.device.download(likelihoods, &mut bytes);
        let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (in_all, per_token) = numbers.split_at(segments);
        in_all.iter().zip(per_token).map(|(&in_all, &per_token)| Likelihood { in_all, per_token }).collect()
    }

    fn argmax(&mut self, logits: Tensor, count: usize) -> Vec<u32> {
        let tokens = self.own(self.scratch.scalars).after(Scalars::BYTES);
        let shape = [count, self.width(logits)];
        let logits = self.at(logits);
        cross_entropy::argmax(&mut self.device, [tokens, logits], shape);
        let mut bytes = vec![0; 4 * count];
        self.device.download(tokens, &mut bytes);
        bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    fn sum_over_ranks(&mut self, total: Option<Tensor>, g: Tensor, ranks: &mut Ranks) -> Result<()> {
        assert!(total.is_none(), "there are totals only where sums are in order");
        let (gradient, numbers) = (self.own(g), self.table.get(g).len());
        self.device.sum_over_ranks(gradient, numbers, ranks)
    }

    fn set_steps_done(&mut self, done: u64) {
        let done = u32::try_from(done).expect("a run has fewer than 2³² steps");
        let at = self.scalars().done;
        self.device.upload(at, &done.to_le_bytes());
    }

    fn set_step(&mut self, step: &AdafactorStep) {
        if self.step != Some(*step) {
            let asked = self.scalars().asked;
            self.device.upload(asked, &adafactor::asked_bytes(step));
            self.step = Some(*step);
        }
    }

    fn begin_step(&mut self, gradients: &[Tensor]) {
        let scalars = self.scalars();
        let gradients: Vec<(Buffer, usize)> =
            gradients.iter().map(|&g| (self.own(g), self.table.get(g).len())).collect();
        let squares = self.own(self.scratch.squares);
        norm::norm(&mut self.device, &gradients, squares, scalars.norm);
        adafactor::begin(&mut self.device, scalars);
    }

    fn adafactor(&mut self, w: Tensor, g: Tensor, moments: Moments) {
        let (scalars, partial) = (self.scalars(), self.own(self.scratch.partial));
        let kept = match self.table.get(w).kind {
            Kind::Weight(Precision::F32) => Kept::Both { own: self.own(w), copy: self.at(w) },
            Kind::Weight(Precision::Bf16) => Kept::Bf16 { own: self.own(w), tensor: w.index() },
            kind => unreachable!("an optimizer's step for {kind:?}"),
        };
        let weight = adafactor::Weight { kept, gradient: self.own(g) };
        match (moments, &self.table.get(w).shape[..]) {
            (Moments::Factored { rows, columns }, &[o, i]) => {
                let moments = [self.own(rows), self.own(columns)];
                adafactor::matrix(&mut self.device, weight, moments, scalars, partial, [o, i]);
            }
            (Moments::Factored { .. }, shape) => unreachable!("moments of rows and columns of {shape:?}"),
            (Moments::Full(all), shape) => {
                let (n, all) = (shape.iter().product(), self.own(all));
                adafactor::vector(&mut self.device, weight, all, scalars, n);
            }
        }
    }

    type Norm = D::Sent;

    fn norm(&mut self) -> D::Sent {
        let norm = self.scalars().norm;
        self.device.send(norm, norm::NORM_BYTES)
    }

    fn norm_arrived(&mut self, norm: D::Sent) -> Norm {
        norm::of_bytes(&self.device.arrived(norm))
    }
}
