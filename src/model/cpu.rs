//! The operations on the CPU, in f32: plain loops, and `matrixmultiply` (through `ndarray`) for the products.
//!
//! Work is cut into blocks whose size does not depend on the number of threads, and whatever is summed over blocks is
//! summed in their order; the same inputs give the same bytes on any number of threads. (Another kind of processor may
//! choose other instructions for the products, and differ in the last bits.)
//!
//! Weights that are kept in bf16 alone are f32 here too, and compute as such, but only take values that bf16 has.

use std::ops::Range;

use half::bf16;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use rayon::prelude::*;

use super::arena::{Group, Kind, Precision, Table, Tensor};
use super::ops::{
    AdafactorStep, AttentionGradients, AttentionSaved, Batch, Cache, Likelihood, Moments, NO_TARGET, Norm, Ops, Past,
    Turn,
};
use super::ranks::Ranks;
use super::rope::Rope;
use super::rounding::{self, Draws};
use super::speed;
use crate::diag::Result;

/// Rows of activations that are worked on at a time.
const ROWS: usize = 128;
/// Rows of a weight's gradient that are worked on at a time.
const WEIGHT_ROWS: usize = 32;

pub struct Cpu {
    table: Table,
    /// By tensor. An operation takes its outputs out while it works, so that it can read the others.
    buffers: Vec<Vec<f32>>,
    batch: Batch,
    /// Cosine and sine by position and pair (P, D/2).
    rotations: Vec<(f32, f32)>,
    pairs: usize,
    /// What the gradients of losses are multiplied by.
    weight: f32,
    /// Steps of the optimizer that were done, what the next one is asked to be, and the norm of the one that was begun.
    steps_done: u64,
    step: Option<AdafactorStep>,
    norm: Norm,
}

impl Cpu {
    fn get(&self, tensor: Tensor) -> &[f32] {
        &self.buffers[tensor.index()]
    }

    fn take(&mut self, tensor: Tensor) -> Vec<f32> {
        std::mem::take(&mut self.buffers[tensor.index()])
    }

    fn put(&mut self, tensor: Tensor, buffer: Vec<f32>) {
        self.buffers[tensor.index()] = buffer;
    }

    /// Last dimension.
    fn width(&self, tensor: Tensor) -> usize {
        *self.table.get(tensor).shape.last().expect("tensors have dimensions")
    }

    /// Numbers of each token.
    fn per_token(&self, tensor: Tensor) -> usize {
        self.table.get(tensor).shape[1..].iter().product()
    }

    fn tokens(&self) -> usize {
        self.batch.tokens()
    }

    /// Takes the memory for `table`, of which there are `available` bytes: a system that promises more than it has ends the
    /// process when the memory is used, without a word.
    fn within(table: Table, available: Option<u64>) -> Result<Cpu> {
        let mut left = available.unwrap_or(u64::MAX);
        for (index, entry) in table.entries().iter().enumerate() {
            let rest = left.checked_sub(entry.bytes(table.precision()));
            left = rest.ok_or_else(|| table.out_of_memory(index))?;
        }
        let mut buffers = Vec::with_capacity(table.entries().len());
        for (index, entry) in table.entries().iter().enumerate() {
            let mut buffer: Vec<f32> = Vec::new();
            buffer.try_reserve_exact(entry.len()).map_err(|_| table.out_of_memory(index))?;
            buffer.resize(entry.len(), if entry.group == Group::Weights { f32::NAN } else { 0.0 });
            buffers.push(buffer);
        }
        Ok(Cpu {
            table,
            buffers,
            batch: Batch::default(),
            rotations: Vec::new(),
            pairs: 1,
            weight: 0.0,
            steps_done: 0,
            step: None,
            norm: Norm::default(),
        })
    }
}

impl Cpu {
    /// Attention of each segment to its past, if there is a cache, and to itself.
    fn attend(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: Option<Cache>) {
        let (mut out, mut out_lse) = (self.take(o), self.take(lse));
        let heads = Heads::of(&self.table, q, k);
        let (q, k, v) = (self.get(q), self.get(k), self.get(v));
        let cache = cache.map(|cache| (self.get(cache.k), self.get(cache.v)));
        let (segments, past) = (&self.batch.segments, &self.batch.past);
        let parts = cut(&mut out, segments, heads.q_width()).zip(cut(&mut out_lse, segments, heads.queries));
        let parts: Vec<_> = starts(segments).zip(parts).enumerate().collect();
        parts.into_par_iter().for_each(|(s, ((start, length), (o, lse)))| {
            // Keys and values: first those of the past, then those of the segment.
            let mut seen = vec![(k, v, start, length)];
            if let (Some((k, v)), Some(&Past { place, length: kept @ 1.. })) = (cache, past.get(s)) {
                seen.insert(0, (k, v, place as usize, kept as usize));
            }
            let all: usize = seen.iter().map(|(.., count)| count).sum();
            let mut scores = vec![0.0; length * all];
            for h in 0..heads.queries {
                let q = heads.query(q, start, length, h);
                let mut first = 0;
                for &(k, _, at, count) in &seen {
                    let k = heads.key(k, at, count, h);
                    let mut scores = strided_mut(&mut scores[first..], length, count, all);
                    general_mat_mul(heads.scale(), &q, &k.t(), 0.0, &mut scores);
                    first += count;
                }
                for (i, row) in scores.chunks_exact_mut(all).enumerate() {
                    let (visible, hidden) = row.split_at_mut(all - length + i + 1);
                    let max = visible.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let mut sum = 0.0;
                    for score in visible.iter_mut() {
                        *score = (*score - max).exp();
                        sum += *score;
                    }
                    visible.iter_mut().for_each(|score| *score /= sum);
                    hidden.fill(0.0);
                    lse[i * heads.queries + h] = max + sum.ln();
                }
                let mut o = heads.query_mut(o, length, h);
                let (mut first, mut beta) = (0, 0.0);
                for &(_, v, at, count) in &seen {
                    let v = heads.key(v, at, count, h);
                    general_mat_mul(1.0, &strided(&scores[first..], length, count, all), &v, beta, &mut o);
                    (first, beta) = (first + count, 1.0);
                }
            }
        });
        self.put(o, out);
        self.put(lse, out_lse);
    }
}

impl Ops for Cpu {
    const QUEUES: bool = false;
    const SUMS_IN_ORDER: bool = true;

    fn allocate(table: Table) -> Result<Cpu> {
        Cpu::within(table, speed::available())
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn device(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    fn memory(&self) -> u64 {
        speed::resident().unwrap_or(self.table.total_bytes())
    }

    fn write(&mut self, tensor: Tensor, values: &[f32]) {
        let buffer = &mut self.buffers[tensor.index()];
        buffer.copy_from_slice(values);
        if self.table.get(tensor).kind == Kind::Weight(Precision::Bf16) {
            buffer.par_iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
    }

    fn read(&self, tensor: Tensor) -> Vec<f32> {
        self.get(tensor).to_vec()
    }

    fn zero(&mut self, tensor: Tensor) {
        self.buffers[tensor.index()].fill(0.0);
    }

    fn load(&mut self, batch: &Batch, weight: f32) {
        self.batch.clone_from(batch);
        self.weight = weight;
    }

    fn set_rotations(&mut self, rope: &Rope, positions: usize) {
        self.pairs = rope.frequencies.len();
        self.rotations = rope.table(positions).collect();
    }

    fn embed(&mut self, y: Tensor, table: Tensor) {
        let (mut out, width) = (self.take(y), self.width(y));
        let table = self.get(table);
        for (row, &id) in out.chunks_exact_mut(width).zip(&self.batch.ids) {
            row.copy_from_slice(&table[id as usize * width..][..width]);
        }
        self.put(y, out);
    }

    fn embed_backward(&mut self, dtable: Tensor, dy: Tensor) {
        let (mut out, width) = (self.take(dtable), self.width(dtable));
        for (dy, &id) in self.get(dy).chunks_exact(width).zip(&self.batch.ids) {
            add(&mut out[id as usize * width..][..width], dy);
        }
        self.put(dtable, out);
    }

    fn rmsnorm(&mut self, y: Tensor, rstd: Tensor, x: Tensor, w: Tensor, eps: f32) {
        let (mut out, mut out_rstd) = (self.take(y), self.take(rstd));
        let (w, length) = (self.get(w), self.tokens() * self.per_token(x));
        let width = w.len();
        out[..length]
            .par_chunks_mut(width * ROWS)
            .zip(out_rstd.par_chunks_mut(ROWS))
            .zip(self.get(x)[..length].par_chunks(width * ROWS))
            .for_each(|((y, rstd), x)| {
                for ((y, rstd), x) in y.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
                    *rstd = norm_row(y, x, w, eps);
                }
            });
        self.put(y, out);
        self.put(rstd, out_rstd);
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
        let (mut out, length) = (self.take(sum), self.tokens() * self.width(x));
        let (x, delta) = (&self.get(x)[..length], &self.get(delta)[..length]);
        out[..length].par_chunks_mut(1 << 14).enumerate().for_each(|(block, sum)| {
            let at = block << 14;
            for ((sum, x), delta) in sum.iter_mut().zip(&x[at..]).zip(&delta[at..]) {
                *sum = x + delta;
            }
        });
        self.put(sum, out);
        self.rmsnorm(y, rstd, sum, w, eps);
    }

    fn rmsnorm_backward(&mut self, dx: Tensor, dw: Tensor, dy: Tensor, x: Tensor, w: Tensor, rstd: Tensor) {
        let (mut out, mut out_w) = (self.take(dx), self.take(dw));
        let (w, length) = (self.get(w), self.tokens() * self.per_token(x));
        let width = w.len();
        let partial: Vec<Vec<f32>> = out[..length]
            .par_chunks_mut(width * ROWS)
            .zip(self.get(dy)[..length].par_chunks(width * ROWS))
            .zip(self.get(x)[..length].par_chunks(width * ROWS))
            .zip(self.get(rstd).par_chunks(ROWS))
            .map(|(((dx, dy), x), rstd)| {
                let mut dw = vec![0.0; width];
                let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)).zip(rstd);
                for (((dx, dy), x), &rstd) in rows {
                    let mean = sum_of(width, |i| dy[i] * w[i] * x[i]) / width as f32;
                    let inner = mean * rstd * rstd * rstd;
                    for i in 0..width {
                        dx[i] += dy[i] * w[i] * rstd - x[i] * inner;
                        dw[i] += dy[i] * x[i] * rstd;
                    }
                }
                dw
            })
            .collect();
        for dw in partial {
            add(&mut out_w, &dw);
        }
        self.put(dx, out);
        self.put(dw, out_w);
    }

    fn linear(&mut self, y: Tensor, x: Tensor, w: Tensor, bias: Option<Tensor>, rows: usize) {
        let mut out = self.take(y);
        let (width, input) = (self.table.get(w).shape[0], self.width(w));
        let w = matrix(self.get(w), width, input);
        let bias = bias.map(|b| self.get(b));
        let x = &self.get(x)[..rows * input];
        out[..rows * width].par_chunks_mut(width * ROWS).zip(x.par_chunks(input * ROWS)).for_each(|(y, x)| {
            let beta = match bias {
                Some(bias) => {
                    y.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(bias));
                    1.0
                }
                None => 0.0,
            };
            let rows = x.len() / input;
            general_mat_mul(1.0, &matrix(x, rows, input), &w.t(), beta, &mut matrix_mut(y, rows, width));
        });
        self.put(y, out);
    }

    fn linear_backward_input(&mut self, dx: Tensor, dy: Tensor, w: Tensor, rows: usize, add: bool) {
        let mut out = self.take(dx);
        let (width, input) = (self.table.get(w).shape[0], self.width(w));
        let w = matrix(self.get(w), width, input);
        let dy = &self.get(dy)[..rows * width];
        let beta = if add { 1.0 } else { 0.0 };
        out[..rows * input].par_chunks_mut(input * ROWS).zip(dy.par_chunks(width * ROWS)).for_each(|(dx, dy)| {
            let rows = dy.len() / width;
            general_mat_mul(1.0, &matrix(dy, rows, width), &w, beta, &mut matrix_mut(dx, rows, input));
        });
        self.put(dx, out);
    }

    fn linear_backward_weight(&mut self, dw: Tensor, dbias: Option<Tensor>, dy: Tensor, x: Tensor, rows: usize) {
        let mut out = self.take(dw);
        let (width, input) = (self.table.get(dw).shape[0], self.width(dw));
        let by_row = matrix(&self.get(dy)[..rows * width], rows, width);
        let x = matrix(&self.get(x)[..rows * input], rows, input);
        out.par_chunks_mut(input * WEIGHT_ROWS).enumerate().for_each(|(block, dw)| {
            let (from, count) = (block * WEIGHT_ROWS, dw.len() / input);
            let dy = by_row.slice(ndarray::s![.., from..from + count]);
            general_mat_mul(1.0, &dy.t(), &x, 1.0, &mut matrix_mut(dw, count, input));
        });
        self.put(dw, out);
        if let Some(dbias) = dbias {
            let mut out = self.take(dbias);
            let dy = &self.get(dy)[..rows * width];
            for row in dy.chunks_exact(width) {
                add(&mut out, row);
            }
            self.put(dbias, out);
        }
    }

    fn rope(&mut self, x: Tensor, turn: Turn) {
        let (mut out, per_token, pairs) = (self.take(x), self.per_token(x), self.pairs);
        let segments = self.batch.segments.iter().enumerate();
        let positions = segments.flat_map(|(s, &length)| {
            let first = self.batch.past.get(s).map_or(0, |past| past.length as usize);
            first..first + length as usize
        });
        let positions: Vec<usize> = positions.collect();
        let rotations = &self.rotations;
        let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
        out[..positions.len() * per_token].par_chunks_mut(per_token * ROWS).zip(positions.par_chunks(ROWS)).for_each(
            |(x, positions)| {
                for (token, &position) in x.chunks_exact_mut(per_token).zip(positions) {
                    let rotations = &rotations[position * pairs..][..pairs];
                    for head in token.chunks_exact_mut(2 * pairs) {
                        let (low, high) = head.split_at_mut(pairs);
                        for ((a, b), &(cos, sin)) in low.iter_mut().zip(high).zip(rotations) {
                            (*a, *b) = (*a * cos - *b * (sign * sin), *b * cos + *a * (sign * sin));
                        }
                    }
                }
            },
        );
        self.put(x, out);
    }

    fn attention(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor) {
        self.attend(o, lse, q, k, v, None);
    }

    fn attention_cached(&mut self, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, cache: Cache) {
        self.attend(o, lse, q, k, v, Some(cache));
    }

    fn keep(&mut self, cache: Cache, k: Tensor, v: Tensor) {
        for (kept, fresh) in [(cache.k, k), (cache.v, v)] {
            let (mut out, width) = (self.take(kept), self.per_token(kept));
            let fresh = self.get(fresh);
            for ((start, length), past) in starts(&self.batch.segments).zip(&self.batch.past) {
                let place = (past.place + past.length) as usize;
                out[place * width..][..length * width].copy_from_slice(&fresh[start * width..][..length * width]);
            }
            self.put(kept, out);
        }
    }

    fn attention_backward(&mut self, gradients: AttentionGradients, saved: AttentionSaved) {
        let AttentionGradients { dq, dk, dv } = gradients;
        let (mut out_q, mut out_k, mut out_v) = (self.take(dq), self.take(dk), self.take(dv));
        let heads = Heads::of(&self.table, saved.q, saved.k);
        let [q, k, v, o, dout, lse] = [saved.q, saved.k, saved.v, saved.o, saved.dout, saved.lse].map(|t| self.get(t));
        let segments = &self.batch.segments;
        let (q_width, kv_width) = (heads.q_width(), heads.kv_width());
        let parts = cut(&mut out_q, segments, q_width)
            .zip(cut(&mut out_k, segments, kv_width).zip(cut(&mut out_v, segments, kv_width)));
        let parts: Vec<_> = starts(segments).zip(parts).collect();
        parts.into_par_iter().for_each(|((start, length), (dq, (dk, dv)))| {
            let square = length * length;
            let (mut p, mut ds) = (vec![0.0; square], vec![0.0; square]);
            for h in 0..heads.queries {
                // The first head of a group overwrites dk and dv, the others add to them.
                let beta = if h % heads.group() == 0 { 0.0 } else { 1.0 };
                let (q, k, v) =
                    (heads.query(q, start, length, h), heads.key(k, start, length, h), heads.key(v, start, length, h));
                let (o, dout) = (heads.query(o, start, length, h), heads.query(dout, start, length, h));
                general_mat_mul(heads.scale(), &q, &k.t(), 0.0, &mut matrix_mut(&mut p, length, length));
                general_mat_mul(1.0, &dout, &v.t(), 0.0, &mut matrix_mut(&mut ds, length, length));
                for i in 0..length {
                    let lse = lse[(start + i) * heads.queries + h];
                    let delta = sum_of(heads.dim, |d| o[(i, d)] * dout[(i, d)]);
                    let (p, ds) = (&mut p[i * length..][..length], &mut ds[i * length..][..length]);
                    for j in 0..=i {
                        p[j] = (p[j] - lse).exp();
                        ds[j] = p[j] * (ds[j] - delta);
                    }
                    p[i + 1..].fill(0.0);
                    ds[i + 1..].fill(0.0);
                }
                let (p, ds) = (matrix(&p, length, length), matrix(&ds, length, length));
                general_mat_mul(1.0, &p.t(), &dout, beta, &mut heads.key_mut(dv, length, h));
                general_mat_mul(heads.scale(), &ds, &k, 0.0, &mut heads.query_mut(dq, length, h));
                general_mat_mul(heads.scale(), &ds.t(), &q, beta, &mut heads.key_mut(dk, length, h));
            }
        });
        self.put(dq, out_q);
        self.put(dk, out_k);
        self.put(dv, out_v);
    }

    fn swiglu(&mut self, h: Tensor, gate: Tensor, up: Tensor) {
        let (mut out, length) = (self.take(h), self.tokens() * self.width(h));
        let (gate, up) = (&self.get(gate)[..length], &self.get(up)[..length]);
        out[..length].par_chunks_mut(1 << 14).enumerate().for_each(|(block, h)| {
            let at = block << 14;
            for ((h, gate), up) in h.iter_mut().zip(&gate[at..]).zip(&up[at..]) {
                *h = gate * sigmoid(*gate) * up;
            }
        });
        self.put(h, out);
    }

    fn swiglu_backward(&mut self, gate: Tensor, up: Tensor, dh: Tensor) {
        let (mut out_gate, mut out_up) = (self.take(gate), self.take(up));
        let length = self.tokens() * self.width(dh);
        let dh = &self.get(dh)[..length];
        out_gate[..length].par_chunks_mut(1 << 14).zip(out_up[..length].par_chunks_mut(1 << 14)).enumerate().for_each(
            |(block, (gate, up))| {
                for ((gate, up), dh) in gate.iter_mut().zip(up).zip(&dh[block << 14..]) {
                    let s = sigmoid(*gate);
                    let silu = *gate * s;
                    // silu' = s + silu (1 - s)
                    (*gate, *up) = (dh * *up * (s + silu * (1.0 - s)), dh * silu);
                }
            },
        );
        self.put(gate, out_gate);
        self.put(up, out_up);
    }

    fn gather(&mut self, y: Tensor, x: Tensor, first: usize, count: usize) {
        let (mut out, width) = (self.take(y), self.width(y));
        let x = self.get(x);
        for (y, &row) in out.chunks_exact_mut(width).zip(&self.batch.rows[first..first + count]) {
            y.copy_from_slice(&x[row as usize * width..][..width]);
        }
        self.put(y, out);
    }

    fn scatter(&mut self, dx: Tensor, dy: Tensor, first: usize, count: usize) {
        let (mut out, width) = (self.take(dx), self.width(dx));
        for (dy, &row) in self.get(dy).chunks_exact(width).zip(&self.batch.rows[first..first + count]) {
            out[row as usize * width..][..width].copy_from_slice(dy);
        }
        self.put(dx, out);
    }

    fn cross_entropy(&mut self, losses: Tensor, logits: Tensor, first: usize, count: usize, gradient: bool) {
        let (mut out, mut out_losses, width) = (self.take(logits), self.take(losses), self.width(logits));
        let weight = self.weight;
        out[..count * width]
            .par_chunks_mut(width)
            .zip(&mut out_losses[first..first + count])
            .zip(&self.batch.targets[first..first + count])
            .for_each(|((logits, loss), &target)| {
                if target == NO_TARGET {
                    *loss = 0.0;
                    if gradient {
                        logits.fill(0.0);
                    }
                    return;
                }
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum = sum_of(width, |i| (logits[i] - max).exp());
                let lse = max + sum.ln();
                *loss = lse - logits[target as usize];
                if gradient {
                    let weight = if loss.is_finite() { weight } else { f32::NAN };
                    logits.iter_mut().for_each(|x| *x = weight * (*x - lse).exp());
                    logits[target as usize] -= weight;
                }
            });
        self.put(logits, out);
        self.put(losses, out_losses);
    }

    type Losses = Vec<f32>;

    fn losses(&mut self, losses: Tensor, count: usize) -> Vec<f32> {
        self.get(losses)[..count].to_vec()
    }

    fn arrived(&mut self, losses: Vec<f32>) -> Vec<f32> {
        losses
    }

    fn likelihoods(&mut self, losses: Tensor) -> Vec<Likelihood> {
        let losses = self.get(losses);
        let of_segment = |rows: Range<usize>| {
            let (count, sum) =
                (rows.len().max(1) as f64, losses[rows].iter().map(|&loss| f64::from(loss)).sum::<f64>());
            Likelihood { in_all: -sum as f32, per_token: (-sum / count) as f32 }
        };
        self.batch.rows_of_segments().map(of_segment).collect()
    }

    fn argmax(&mut self, logits: Tensor, count: usize) -> Vec<u32> {
        let width = self.width(logits);
        let best = |row: &[f32]| {
            let mut best = 0;
            for (i, logit) in row.iter().enumerate() {
                if *logit > row[best] {
                    best = i;
                }
            }
            best as u32
        };
        self.get(logits)[..count * width].par_chunks(width).map(best).collect()
    }

    fn sum_over_ranks(&mut self, total: Option<Tensor>, g: Tensor, ranks: &mut Ranks) -> Result<()> {
        let start = total.map(|total| self.take(total));
        let sum = ranks.sum(start, self.get(g))?;
        self.put(total.unwrap_or(g), sum);
        Ok(())
    }

    fn set_steps_done(&mut self, done: u64) {
        self.steps_done = done;
    }

    fn set_step(&mut self, step: &AdafactorStep) {
        self.step = Some(*step);
    }

    fn begin_step(&mut self, gradients: &[Tensor]) {
        let sum: f64 = gradients.iter().map(|&g| square_sum(self.get(g))).sum();
        // A sum of squares in f64 overflows for no finite f32; it is NaN or infinite where a gradient is.
        self.norm = Norm { value: sum.sqrt(), finite: sum.is_finite() };
        self.steps_done += u64::from(self.norm.finite);
    }

    fn adafactor(&mut self, w: Tensor, g: Tensor, moments: Moments) {
        if !self.norm.finite {
            return;
        }
        let step = self.step.expect("a step is set before it begins");
        let mut weights = self.take(w);
        let mut update = self.take(g);
        let scale = step.gradient_scale(self.norm.value) as f32;
        let beta2 = step.beta2(self.steps_done);
        let (beta2, fresh, eps1) = (beta2 as f32, (1.0 - beta2) as f32, step.eps1 as f32);
        if scale != 1.0 {
            update.par_iter_mut().for_each(|g| *g *= scale);
        }
        match moments {
            Moments::Factored { rows, columns } => {
                let (mut vr, mut vc) = (self.take(rows), self.take(columns));
                let (height, width) = (vr.len(), vc.len());
                vr.par_iter_mut().zip(update.par_chunks(width)).for_each(|(v, g)| {
                    let mean = g.iter().map(|g| f64::from(g * g + eps1)).sum::<f64>() / width as f64;
                    *v = beta2 * *v + fresh * mean as f32;
                });
                // By blocks of columns, so that each column is summed from top to bottom.
                vc.par_chunks_mut(256).enumerate().for_each(|(block, v)| {
                    let mut sums = vec![0.0f64; v.len()];
                    for row in update.chunks_exact(width) {
                        for (sum, g) in sums.iter_mut().zip(&row[block * 256..]) {
                            *sum += f64::from(g * g + eps1);
                        }
                    }
                    for (v, sum) in v.iter_mut().zip(sums) {
                        *v = beta2 * *v + fresh * (sum / height as f64) as f32;
                    }
                });
                let mean = (vr.iter().map(|&v| f64::from(v)).sum::<f64>() / height as f64) as f32;
                let columns_factor: Vec<f32> = vc.iter().map(|v| 1.0 / v.sqrt()).collect();
                update.par_chunks_mut(width).zip(&vr).for_each(|(row, v)| {
                    let factor = 1.0 / (v / mean).sqrt();
                    for (g, column) in row.iter_mut().zip(&columns_factor) {
                        *g *= factor * column;
                    }
                });
                self.put(rows, vr);
                self.put(columns, vc);
            }
            Moments::Full(moments) => {
                let mut v = self.take(moments);
                for (g, v) in update.iter_mut().zip(&mut v) {
                    *v = beta2 * *v + fresh * (*g * *g + eps1);
                    *g /= v.sqrt();
                }
                self.put(moments, v);
            }
        }
        let rms = |values: &[f32]| (square_sum(values) / values.len() as f64).sqrt();
        let scale_parameter = if step.scale_parameter { rms(&weights).max(step.eps2) } else { 1.0 };
        let rate = step.rate(self.steps_done) * scale_parameter;
        let by = (rate / (rms(&update) / step.clip_threshold).max(1.0)) as f32;
        let decay = (step.weight_decay * rate) as f32;
        weights.par_iter_mut().zip(&update).for_each(|(w, u)| *w = *w - decay * *w - by * u);
        if self.table.get(w).kind == Kind::Weight(Precision::Bf16) {
            let count = u32::try_from(self.steps_done).expect("a run has fewer than 2³² steps");
            rounding::round(&mut weights, Draws { seed: step.seed, tensor: w.index() as u32, step: count });
        }
        self.put(w, weights);
        self.put(g, update); // no longer the gradient: the next step begins by clearing it
    }

    type Norm = Norm;

    fn norm(&mut self) -> Norm {
        self.norm
    }

    fn norm_arrived(&mut self, norm: Norm) -> Norm {
        norm
    }
}

/// How the heads of q and k lie.
#[derive(Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    dim: usize,
}

impl Heads {
    fn of(table: &Table, q: Tensor, k: Tensor) -> Heads {
        let (q, k) = (&table.get(q).shape, &table.get(k).shape);
        Heads { queries: q[1], keys: k[1], dim: q[2] }
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.queries / self.keys
    }

    fn q_width(self) -> usize {
        self.queries * self.dim
    }

    fn kv_width(self) -> usize {
        self.keys * self.dim
    }

    /// Query head `h` of a segment (length, D).
    fn query(self, q: &[f32], start: usize, length: usize, h: usize) -> ArrayView2<'_, f32> {
        let head = &q[start * self.q_width() + h * self.dim..];
        strided(head, length, self.dim, self.q_width())
    }

    /// The key or value head that query head `h` reads (length, D).
    fn key(self, k: &[f32], start: usize, length: usize, h: usize) -> ArrayView2<'_, f32> {
        let head = &k[start * self.kv_width() + h / self.group() * self.dim..];
        strided(head, length, self.dim, self.kv_width())
    }

    /// Of a slice that begins with the segment.
    fn query_mut(self, q: &mut [f32], length: usize, h: usize) -> ArrayViewMut2<'_, f32> {
        strided_mut(&mut q[h * self.dim..], length, self.dim, self.q_width())
    }

    fn key_mut(self, k: &mut [f32], length: usize, h: usize) -> ArrayViewMut2<'_, f32> {
        strided_mut(&mut k[h / self.group() * self.dim..], length, self.dim, self.kv_width())
    }
}

fn matrix(values: &[f32], rows: usize, width: usize) -> ArrayView2<'_, f32> {
    strided(values, rows, width, width)
}

fn matrix_mut(values: &mut [f32], rows: usize, width: usize) -> ArrayViewMut2<'_, f32> {
    strided_mut(values, rows, width, width)
}

const FITS: &str = "the slice holds the matrix";

fn strided(values: &[f32], rows: usize, width: usize, stride: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, width).strides((stride, 1)), values).expect(FITS)
}

fn strided_mut(values: &mut [f32], rows: usize, width: usize, stride: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, width).strides((stride, 1)), values).expect(FITS)
}

/// First token and length of each segment.
fn starts(segments: &[u32]) -> impl Iterator<Item = (usize, usize)> {
    segments.iter().scan(0, |start, &length| {
        let this = *start;
        *start += length as usize;
        Some((this, length as usize))
    })
}

/// The segments' parts of a tensor with `width` numbers a token.
fn cut<'v>(mut values: &'v mut [f32], segments: &[u32], width: usize) -> impl Iterator<Item = &'v mut [f32]> {
    segments.iter().map(move |&length| {
        let (part, rest) = std::mem::take(&mut values).split_at_mut(length as usize * width);
        values = rest;
        part
    })
}

fn norm_row(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) -> f32 {
    let rstd = 1.0 / (sum_of(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * rstd * w;
    }
    rstd
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// A sum in eight lanes, which the compiler can keep in one register; the order is fixed.
fn sum_of(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    let whole = length / 8 * 8;
    for at in (0..whole).step_by(8) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(at + lane);
        }
    }
    let rest: f32 = (whole..length).map(term).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Sum of squares in f64, by blocks of fixed size.
fn square_sum(values: &[f32]) -> f64 {
    let blocks: Vec<f64> =
        values.par_chunks(1 << 14).map(|block| block.iter().map(|&v| f64::from(v) * f64::from(v)).sum()).collect();
    blocks.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::arena::Bounds;
    use super::*;

    #[test]
    fn what_does_not_fit_is_named_before_it_is_taken() {
        let mut table = Table::new(Bounds::default());
        table.add(Group::Weights, Kind::Weight(Precision::F32), "first", &[100]);
        table.add(Group::Activations, Kind::Activation, "second", &[100]);
        assert!(Cpu::within(table.clone(), Some(800)).is_ok() && Cpu::within(table.clone(), None).is_ok());
        let said = |table: &Table| Cpu::within(table.clone(), Some(799)).err().unwrap().to_string();
        let scoring = said(&table);
        assert!(scoring.contains("error[out-of-memory]") && scoring.contains("`second`"), "{scoring}");
        // Options are named that the command has: evaluation has no gradients, and nothing to compute again.
        assert!(scoring.contains("--micro-batch") && !scoring.contains("--recompute"), "{scoring}");
        table.add(Group::Gradients, Kind::Exact, "third", &[100]);
        assert!(said(&table).contains("--recompute"));
    }
}
