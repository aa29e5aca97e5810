//! Where everything lies: a model's tensors and what this backend keeps beside them, in one arena.
//!
//! A weight that is trained lies there twice: in f32, which the optimizer changes, and in bf16, which is computed with. One
//! that is kept in bf16 alone lies there once.

use super::device::{ALIGNMENT, Buffer};
use super::{adafactor, batch, bias, norm, rmsnorm};
use crate::model::arena::{Group, Kind, Precision, Table, Tensor};

/// Memory that cuBLASLt may use for a product, as NVIDIA recommends for Hopper
/// (<https://docs.nvidia.com/cuda/cublas/#cublassetworkspace>).
const PRODUCT_BYTES: usize = 32 << 20;

/// What this backend keeps beside a model's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// Ids, positions, segments and rows of the batch.
    pub batch: Tensor,
    /// The same of the batches that come next (2, …).
    pub coming: Tensor,
    /// Cosines and sines by position and pair (2, N, D/2).
    pub rotations: Tensor,
    /// Of the attention's backward pass (H, N).
    pub delta: Tensor,
    /// Sums over some of the rows, added up by a second kernel.
    pub partial: Tensor,
    /// Sums of squares of pieces of the gradients, in f64.
    pub squares: Tensor,
    /// The optimizer's [`adafactor::Scalars`], tokens that were found.
    pub scalars: Tensor,
    /// Log-likelihoods of segments, in all and by token (2, N).
    pub likelihoods: Tensor,
    /// For products, and for parts of attention with a cache.
    pub products: Tensor,
}

/// Adds to a model's table what is kept beside it on a GPU, and counts in the numbers that a GPU computes with.
pub fn plan(table: Table) -> (Table, Scratch) {
    let bounds = table.bounds();
    let trained = || table.entries().iter().filter(|e| matches!(e.kind, Kind::Weight(_)));
    let widths = trained().filter_map(|e| e.shape.last().copied());
    let partial =
        widths.map(|w| rmsnorm::partial(w).max(bias::partial(w)).max(adafactor::partial(w))).max().unwrap_or(0);
    let squares = trained().map(|e| norm::pieces(e.len())).sum::<usize>();
    let mut table = table.kept_in(Precision::Bf16);
    let mut add = |name: &str, shape: &[usize]| table.add(Group::Workspace, Kind::Exact, name, shape);
    let lists = batch::room(bounds.tokens, bounds.tokens.next_multiple_of(bounds.logit_rows.max(1)));
    let scratch = Scratch {
        batch: add("batch", &[lists]),
        coming: add("coming batches", &[2, lists]),
        rotations: add("rotations", &[2, bounds.tokens, bounds.head_dim / 2]),
        delta: add("attention delta", &[bounds.heads, bounds.tokens]),
        partial: add("partial sums", &[partial]),
        squares: add("squares", &[2 * squares]),
        scalars: add("scalars", &[adafactor::Scalars::BYTES / 4 + bounds.logit_rows]),
        likelihoods: add("likelihoods", &[2, bounds.tokens]),
        products: add("products", &[PRODUCT_BYTES / 4]),
    };
    (table, scratch)
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its numbers: f32 of weights that are kept in it and of what is exact, else bf16.
    pub own: Buffer,
    /// What is computed with: the copy in bf16 of a weight that is kept in f32, else the same.
    pub compute: Buffer,
}

/// Places of all tensors of a table, and the bytes that they take.
pub fn places(table: &Table) -> (Vec<Place>, u64) {
    let mut end = 0u64;
    let mut take = |bytes: u64| {
        let buffer = Buffer { at: end, bytes };
        end = end.saturating_add(bytes).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        buffer
    };
    let places = table
        .entries()
        .iter()
        .map(|entry| {
            let numbers = entry.len() as u64;
            match entry.kind {
                Kind::Weight(Precision::F32) => {
                    Place { own: take(numbers.saturating_mul(4)), compute: take(numbers.saturating_mul(2)) }
                }
                Kind::Weight(Precision::Bf16) | Kind::Exact | Kind::Activation => {
                    let own = take(entry.bytes(Precision::Bf16));
                    Place { own, compute: own }
                }
            }
        })
        .collect();
    (places, end)
}
