//! Attention that goes on from kept keys and values, and the keeping: a block reads a past once for all heads that share
//! it, and several blocks share a past where there are few of them.

use super::attention::{self, Shape};
use super::batch::Loaded;
use super::device::{Arg, Buffer, Device, Launch};

/// Rows of queries that a block has, each a head of a token.
const QUERIES: usize = 16;
/// Blocks that are enough for any GPU (two for each of the 132 multiprocessors of an H100). It is not asked how many this
/// one has, so that every GPU cuts a past into the same parts.
const ENOUGH: usize = 264;
/// Fewest keys that are worth a block.
const LEAST: usize = 256;

/// Parts that the longest text of a batch is cut into, as far as their results fit into `bytes`.
fn parts(shape: Shape, longest: usize, bytes: u64) -> usize {
    let Shape { tokens, heads, kv_heads, head_dim } = shape;
    let blocks = tokens * kv_heads * (heads / kv_heads).div_ceil(QUERIES);
    let of_part = 4 * tokens * heads * (head_dim + 2);
    let most = (bytes as usize / of_part).min(longest.div_ceil(LEAST)).max(1);
    ENOUGH.div_ceil(blocks).min(most)
}

/// [`attention::forward`] over the past in `cache` (places, K, D), k and v, and then the segment itself. `work` takes the
/// results of parts.
pub fn forward(
    device: &mut impl Device,
    shape: Shape,
    [o, lse]: [Buffer; 2],
    [q, k, v]: [Buffer; 3],
    (cache, places): ([Buffer; 2], usize),
    work: Buffer,
    batch: &Loaded,
) {
    if !batch.goes_on {
        // Texts from their beginnings see nothing but themselves, and are long.
        return attention::forward(device, shape, [o, lse], [q, k, v], batch);
    }
    let Shape { tokens: n, heads: h, kv_heads: k_heads, head_dim: d } = shape;
    let ([of_q, of_k, of_lse], of_cache) = (shape.numbers(), places * k_heads * d);
    let parts = parts(shape, batch.longest, work.bytes);
    let (sums, weights) = (work.f32(parts * of_q), work.after(4 * parts * of_q).f32(2 * parts * of_lse));
    let (o, lse) = (o.bf16(of_q), lse.f32(of_lse));
    let operands = [o, lse, sums, weights, q.bf16(of_q), k.bf16(of_k), v.bf16(of_k)];
    let cache = cache.map(|kept| kept.bf16(of_cache));
    let lists = [&batch.segment_start, &batch.segment_end, &batch.positions, &batch.places].map(|list| list.u32(n));
    let warps = if d > 128 { 2 } else { 4 };
    let launch = Launch {
        kernel: &format!("cached_attention_{d}"),
        grid: [n, k_heads * (h / k_heads).div_ceil(QUERIES), parts],
        block: 32 * warps,
        shared: shape.shared(QUERIES + 64 * warps),
    };
    device.launch(launch, &[&operands[..], &cache, &lists, &shape.sizes()].concat());
    if parts > 1 {
        let arguments = [o, lse, sums, weights, Arg::int(n), Arg::int(h), Arg::int(d), Arg::int(parts)];
        device.launch(Launch::row("join_parts", (of_q / 8).div_ceil(256), 256), &arguments);
    }
}

/// Keeps the batch's keys and values (N, C) behind the pasts of its segments · cache (places, C)
pub fn keep(
    device: &mut impl Device,
    (cache, places): ([Buffer; 2], usize),
    [k, v]: [Buffer; 2],
    batch: &Loaded,
    c: usize,
) {
    let n = batch.tokens;
    let kept = cache.map(|kept| kept.bf16(places * c));
    let arguments = [k.bf16(n * c), v.bf16(n * c), batch.positions.u32(n), batch.places.u32(n), Arg::int(c)];
    let launch = Launch { kernel: "keep_rows", grid: [n, 2, 1], block: 128, shared: 0 };
    device.launch(launch, &[&kept[..], &arguments].concat());
}
