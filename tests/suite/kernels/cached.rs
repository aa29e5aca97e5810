//! Attention that goes on from kept keys and values, and the keeping.

use half::bf16;

use super::{Buffer, Draw, Outcome, Simulator, arguments, close, equal, floats, schedules, with_simulator};

/// As without a cache: weights are rounded to bf16, and the result once more.
const FORWARD: f64 = 1.0 / 128.0;

/// A segment: where its text is kept, how much of it, and tokens of its own.
#[derive(Clone, Copy, Debug)]
struct Segment {
    place: usize,
    kept: usize,
    own: usize,
}

const fn segment(place: usize, kept: usize, own: usize) -> Segment {
    Segment { place, kept, own }
}

#[derive(Clone, Copy)]
struct Shape<'s> {
    segments: &'s [Segment],
    heads: usize,
    keys: usize,
    dim: usize,
    /// Ranges of keys that blocks share out.
    parts: usize,
}

/// Rows of the cache behind all that is kept.
const SPARE: usize = 3;

struct Operands {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    kept_k: Vec<bf16>,
    kept_v: Vec<bf16>,
    start: Vec<u32>,
    end: Vec<u32>,
    positions: Vec<u32>,
    places: Vec<u32>,
}

impl Shape<'_> {
    fn draw(self) -> Operands {
        let n: usize = self.segments.iter().map(|s| s.own).sum();
        let rows = self.segments.iter().map(|s| s.place + s.kept).max().unwrap() + SPARE;
        let mut draw = Draw(self.dim as u64);
        // Queries three times as long, so that some keys count for much more than others.
        let q = draw.floats(n * self.heads * self.dim).iter().map(|v| bf16::from_f32(3.0 * v)).collect();
        let (k, v) = (draw.bf16s(n * self.keys * self.dim), draw.bf16s(n * self.keys * self.dim));
        let (mut kept_k, mut kept_v) =
            (draw.bf16s(rows * self.keys * self.dim), draw.bf16s(rows * self.keys * self.dim));
        // What nobody kept is no number.
        for row in (0..rows).filter(|&row| !self.segments.iter().any(|s| (s.place..s.place + s.kept).contains(&row))) {
            for kept in [&mut kept_k, &mut kept_v] {
                kept[row * self.keys * self.dim..][..self.keys * self.dim].fill(bf16::NAN);
            }
        }
        let (mut start, mut end, mut positions, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &Segment { place, kept, own } in self.segments {
            let at = start.len() as u32;
            start.extend(std::iter::repeat_n(at, own));
            end.extend(std::iter::repeat_n(at + own as u32, own));
            positions.extend((kept..kept + own).map(|position| position as u32));
            places.extend(std::iter::repeat_n(place as u32, own));
        }
        Operands { q, k, v, kept_k, kept_v, start, end, positions, places }
    }
}

/// o and lse, as the kernels leave them.
fn run(simulator: &Simulator, shape: Shape, operands: &Operands) -> Outcome<(Vec<bf16>, Vec<f32>)> {
    let Shape { heads, keys, dim, parts, .. } = shape;
    let (n, scale) = (operands.start.len(), (dim as f32).powf(-0.5));
    let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(|t| Buffer::new(t));
    let [kept_k, kept_v] = [&operands.kept_k, &operands.kept_v].map(|t| Buffer::new(t));
    let [start, end] = [&operands.start, &operands.end].map(|t| Buffer::new(t));
    let [positions, places] = [&operands.positions, &operands.places].map(|t| Buffer::new(t));
    let warps = if dim > 128 { 2 } else { 4 };
    let several = if parts > 1 { parts } else { 0 };
    schedules(simulator, |run| {
        let (mut o, mut lse) = (Buffer::<bf16>::unset(n * heads * dim), Buffer::<f32>::unset(heads * n));
        let mut sums = Buffer::<f32>::unset(several * n * heads * dim);
        let mut weights = Buffer::<f32>::unset(several * n * heads * 2);
        run.launch(
            &format!("cached_attention_{dim}"),
            [n, keys * (heads / keys).div_ceil(16), parts],
            32 * warps,
            (16 + 64 * warps) * (dim + 8) * 2,
            arguments![
                &mut o,
                &mut lse,
                &mut sums,
                &mut weights,
                &q,
                &k,
                &v,
                &kept_k,
                &kept_v,
                &start,
                &end,
                &positions,
                &places,
                n,
                heads,
                keys,
                scale
            ],
        )?;
        if parts > 1 {
            let arguments = arguments![&mut o, &mut lse, &sums, &weights, n, heads, dim, parts];
            run.launch("join_parts", [(n * heads * dim / 8).div_ceil(256), 1], 256, 0, arguments)?;
            sums.get()?;
            weights.get()?;
        }
        Ok((o.get()?, lse.get()?))
    })
}

/// The formulas.
fn reference(shape: Shape, operands: &Operands) -> (Vec<f64>, Vec<f64>) {
    let Shape { heads, keys, dim, .. } = shape;
    let (n, scale) = (operands.start.len(), (dim as f64).powf(-0.5));
    let [q, k, v] = [&operands.q, &operands.k, &operands.v].map(|t| floats(t));
    let [kept_k, kept_v] = [&operands.kept_k, &operands.kept_v].map(|t| floats(t));
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; heads * n]);
    let mut first = 0;
    for &Segment { place, kept, own } in shape.segments {
        for (i, h) in (0..own).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let query = ((first + i) * heads + h) * dim;
            // The text's tokens up to i: where each one's key and value are.
            let row = |j: usize| {
                let (keys_of, values_of, row) =
                    if j < kept { (&kept_k, &kept_v, place + j) } else { (&k, &v, first + j - kept) };
                let at = (row * keys + h / (heads / keys)) * dim;
                (&keys_of[at..at + dim], &values_of[at..at + dim])
            };
            let score = |j: usize| scale * q[query..query + dim].iter().zip(row(j).0).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..=kept + i).map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let all = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
            lse[h * n + first + i] = all;
            for (j, score) in scores.iter().enumerate() {
                o[query..query + dim].iter_mut().zip(row(j).1).for_each(|(o, v)| *o += (score - all).exp() * v);
            }
        }
        first += own;
    }
    (o, lse)
}

fn check_shape(simulator: &Simulator, shape: Shape) -> Outcome {
    let operands = shape.draw();
    let (o, lse) = run(simulator, shape, &operands)?;
    let (expected, expected_lse) = reference(shape, &operands);
    let Shape { segments, heads, keys, dim, parts } = shape;
    let texts: Vec<(usize, usize)> = segments.iter().map(|s| (s.kept, s.own)).collect();
    let what = format!("cached_attention_{dim}, {heads} heads on {keys}, {texts:?} in {parts} parts");
    close(&what, &o, &expected, FORWARD)?;
    close(&format!("{what}, lse"), &lse, &expected_lse, 1e-5)
}

fn check_keep(simulator: &Simulator, c: usize) -> Outcome {
    let mut draw = Draw(21);
    let (rows, places, positions) = (9, [3u32, 3, 0, 6], [1u32, 2, 0, 2]);
    let (k, v) = (draw.bf16s(4 * c), draw.bf16s(4 * c));
    let before = [draw.bf16s(rows * c), draw.bf16s(rows * c)];
    let (fresh, lists) = ([Buffer::new(&k), Buffer::new(&v)], [Buffer::new(&positions), Buffer::new(&places)]);
    let after = schedules(simulator, |run| {
        let [mut kept_k, mut kept_v] = [&before[0], &before[1]].map(|t| Buffer::new(t));
        let arguments = arguments![&mut kept_k, &mut kept_v, &fresh[0], &fresh[1], &lists[0], &lists[1], c];
        run.launch("keep_rows", [4, 2], 128, 0, arguments)?;
        Ok([kept_k.get()?, kept_v.get()?])
    })?;
    for (after, (mut expected, fresh)) in after.iter().zip(before.into_iter().zip([k, v])) {
        for (row, fresh) in places.iter().zip(&positions).map(|(a, b)| (a + b) as usize).zip(fresh.chunks(c)) {
            expected[row * c..][..c].copy_from_slice(fresh);
        }
        equal(&format!("keep_rows, {c} wide"), after, &expected)?;
    }
    Ok(())
}

/// Options from one past, a text that begins, a long past, and one that ends with a tile.
const SEGMENTS: [Segment; 6] = [
    segment(0, 5, 3),
    segment(0, 5, 1),
    segment(8, 0, 2),
    segment(10, 130, 1),
    segment(10, 127, 1),
    segment(150, 60, 9),
];

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_shape(simulator, Shape { segments: &SEGMENTS, heads: 6, keys: 2, dim: 32, parts: 1 })?;
    check_shape(simulator, Shape { segments: &SEGMENTS, heads: 4, keys: 1, dim: 96, parts: 2 })?;
    check_shape(simulator, Shape { segments: &SEGMENTS[..4], heads: 18, keys: 1, dim: 32, parts: 1 })?;
    check_keep(simulator, 24)?;
    check_keep(simulator, 13)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn heads_of_every_width() {
    with_simulator(|simulator| {
        let segments = [segment(0, 70, 1), segment(71, 33, 2), segment(110, 64, 1)];
        for dim in [16, 32, 64, 96, 128, 256] {
            for parts in [1, 2] {
                check_shape(simulator, Shape { segments: &segments, heads: 2, keys: 1, dim, parts })?;
            }
        }
        Ok(())
    });
}

/// From one head to more than a block has rows; one token by itself, and more than fit into a block.
#[test]
fn groups_of_any_size() {
    with_simulator(|simulator| {
        let segments = [segment(0, 20, 1), segment(20, 7, 18), segment(30, 1, 5)];
        for (heads, keys) in [(1, 1), (3, 3), (6, 2), (5, 1), (7, 1), (16, 1), (17, 1), (33, 1)] {
            check_shape(simulator, Shape { segments: &segments, heads, keys, dim: 16, parts: 1 })?;
        }
        Ok(())
    });
}

/// Pasts that end around a tile, parts that some texts have no keys for.
#[test]
fn pasts_of_any_length() {
    with_simulator(|simulator| {
        for kept in [1, 15, 16, 62, 63, 64, 65, 200] {
            for parts in [1, 2, 5] {
                let segments = [segment(2, kept, 1), segment(2, kept, 3), segment(0, 2, 2)];
                check_shape(simulator, Shape { segments: &segments, heads: 2, keys: 2, dim: 16, parts })?;
            }
        }
        Ok(())
    });
}
