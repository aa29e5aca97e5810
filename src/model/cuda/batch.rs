//! A batch as kernels read it: lists of numbers, copied to the device in one piece.
//!
//! They are 44 bytes a token at most. The host makes the lists of the next pass under the current one, and copies them under
//! it to another place of the device; between two passes there is only a copy from there, of a microsecond.
//!
//! Where a list lies depends on how many tokens and rows there are, and on nothing else: what is recorded for one batch is
//! right for all of its shape. The numbers that still differ, how many distinct ids there are and the weight of the
//! losses, stand before the lists.
//!
//! Attention asks for the first token and the end of each token's segment, RoPE for its position in the text. The gradient of
//! the embedding is a sum over the places of each id; a stable sort gives every id its places in ascending order, so
//! that a block can add them up without atomics.

use super::device::{Buffer, bytes_of};
use crate::model::ops::Batch;

/// Lists of the batch that is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// (N)
    pub tokens: usize,
    pub ids: Buffer,
    /// Positions within the text, the past of the segment included (N).
    pub positions: Buffer,
    /// Where what is kept of the text begins (N).
    pub places: Buffer,
    /// First token of the segment, and the one after its last (N).
    pub segment_start: Buffer,
    pub segment_end: Buffer,
    /// What the gradients of the losses are multiplied by (one f32).
    pub weight: Buffer,
    /// How many ids there are (one u32), those that occur, ascending (N, of which so many).
    pub distinct_count: Buffer,
    pub distinct: Buffer,
    /// Where each of them begins in `order`, and the end (N + 1, of which one more than there are).
    pub starts: Buffer,
    /// Tokens, sorted by id and then by place (N).
    pub order: Buffer,
    /// Positions that predict something, and what (rows).
    pub rows: Buffer,
    pub targets: Buffer,
    pub rows_count: usize,
    /// The first of its rows, of each segment, and the end (segments + 1).
    pub first_rows: Buffer,
    pub segments: usize,
    /// Whether a segment has a past.
    pub goes_on: bool,
    /// Tokens of the longest text, its past included.
    pub longest: usize,
}

/// Numbers, of four bytes each, that are kept for a batch of at most so many tokens and rows.
pub fn room(tokens: usize, rows: usize) -> usize {
    HEAD + 9 * tokens + 2 + 2 * rows
}

/// Numbers before the lists.
const HEAD: usize = 2;

/// The lists of `batch`, one after another, and where they will be once the bytes are in `buffer`.
pub fn lists(batch: &Batch, weight: f32, buffer: Buffer) -> (Vec<u8>, Loaded) {
    let tokens = batch.tokens();
    let segments = batch.segments.iter().scan(0, |end, &length| {
        *end += length;
        Some((*end - length, *end))
    });
    let (mut positions, mut places, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, (start, end)) in segments.enumerate() {
        let past = batch.past.get(number).copied().unwrap_or_default();
        positions.extend(past.length..past.length + end - start);
        places.extend((start..end).map(|_| past.place));
        starts.extend((start..end).map(|_| start));
        ends.extend((start..end).map(|_| end));
    }
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    order.sort_by_key(|&token| batch.ids[token as usize]);
    let (mut distinct, mut first): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    for (place, &token) in order.iter().enumerate() {
        let id = batch.ids[token as usize];
        if distinct.last() != Some(&id) {
            distinct.push(id);
            first.push(place as u32);
        }
    }
    first.push(tokens as u32);
    let mut first_rows: Vec<u32> = batch.rows_of_segments().map(|rows| rows.start as u32).collect();
    first_rows.push(batch.rows.len() as u32);

    let count = distinct.len() as u32;
    distinct.resize(tokens, 0);
    first.resize(tokens + 1, 0);

    let mut all: Vec<u32> = Vec::with_capacity(room(tokens, batch.rows.len()));
    let mut list = |numbers: &[u32]| {
        let at = 4 * all.len();
        all.extend_from_slice(numbers);
        buffer.after(at)
    };
    let loaded = Loaded {
        tokens,
        weight: list(&[weight.to_bits()]),
        distinct_count: list(&[count]),
        ids: list(&batch.ids),
        positions: list(&positions),
        places: list(&places),
        segment_start: list(&starts),
        segment_end: list(&ends),
        distinct: list(&distinct),
        starts: list(&first),
        order: list(&order),
        rows: list(&batch.rows),
        targets: list(&batch.targets),
        rows_count: batch.rows.len(),
        first_rows: list(&first_rows),
        segments: batch.segments.len(),
        goes_on: batch.past.iter().any(|past| past.length > 0),
        longest: positions.iter().max().map_or(0, |&last| last as usize + 1),
    };
    (bytes_of(&all, u32::to_le_bytes), loaded)
}
