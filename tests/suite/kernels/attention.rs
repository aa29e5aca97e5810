//! Attention over packed segments, forward and backward.

use half::bf16;

use super::{Buffer, Draw, Outcome, Simulator, arguments, close, floats, schedules, with_simulator};

/// P is rounded to bf16 before it is multiplied, and the result once more. Both errors are of 2^-8 at most, the first
/// averages out over keys.
const FORWARD: f64 = 1.0 / 128.0;
/// The same for P and dS; the first keys of a segment have a few large P, where it averages out less.
const BACKWARD: f64 = 1.0 / 32.0;

#[derive(Clone, Copy)]
struct Shape<'s> {
    /// Lengths of segments.
    segments: &'s [usize],
    heads: usize,
    keys: usize,
    dim: usize,
}

struct Operands {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    dout: Vec<bf16>,
    start: Vec<u32>,
    end: Vec<u32>,
}

impl Shape<'_> {
    fn tokens(self) -> usize {
        self.segments.iter().sum()
    }

    fn scale(self) -> f32 {
        (self.dim as f32).powf(-0.5)
    }

    fn draw(self) -> Operands {
        let (n, mut draw) = (self.tokens(), Draw(self.dim as u64));
        // Queries three times as long, so that some keys count for much more than others.
        let q = draw.floats(n * self.heads * self.dim).iter().map(|v| bf16::from_f32(3.0 * v)).collect();
        let width = n * self.keys * self.dim;
        let (mut start, mut end, mut at) = (Vec::new(), Vec::new(), 0);
        for &length in self.segments {
            start.extend(std::iter::repeat_n(at as u32, length));
            at += length;
            end.extend(std::iter::repeat_n(at as u32, length));
        }
        let dout = draw.bf16s(n * self.heads * self.dim);
        Operands { q, k: draw.bf16s(width), v: draw.bf16s(width), dout, start, end }
    }
}

/// What the kernels leave, or the formulas: o, lse, dq, dk, dv.
struct Results<T, L> {
    o: Vec<T>,
    lse: Vec<L>,
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

fn run(simulator: &Simulator, shape: Shape, operands: &Operands) -> Outcome<Results<bf16, f32>> {
    let Shape { heads, keys, dim, .. } = shape;
    let (n, scale) = (shape.tokens(), shape.scale());
    let (q, k, v) = (Buffer::new(&operands.q), Buffer::new(&operands.k), Buffer::new(&operands.v));
    let (dout, start, end) = (Buffer::new(&operands.dout), Buffer::new(&operands.start), Buffer::new(&operands.end));
    let forward_rows = if dim > 128 { 32 } else { 64 };
    let backward_rows = [64, 32, 16][usize::from(dim > 64) + usize::from(dim > 128)];
    let bytes = |rows: usize| rows * (dim + 8) * 2;
    let lanes = (dim / 8).next_power_of_two();
    let tiles = n.div_ceil(64);
    let (o, lse, dq, dk, dv) = schedules(simulator, |run| {
        let (mut o, mut dq) = (Buffer::<bf16>::unset(n * heads * dim), Buffer::<bf16>::unset(n * heads * dim));
        let (mut lse, mut delta) = (Buffer::<f32>::unset(heads * n), Buffer::<f32>::unset(heads * n));
        let (mut dk, mut dv) = (Buffer::<bf16>::unset(n * keys * dim), Buffer::<bf16>::unset(n * keys * dim));
        run.launch(
            &format!("attention_{dim}"),
            [tiles, heads],
            128,
            bytes(64 + 4 * forward_rows),
            arguments![&mut o, &mut lse, &q, &k, &v, &start, n, heads, keys, scale],
        )?;
        run.launch(
            &format!("attention_delta_{dim}"),
            [(n * heads * lanes).div_ceil(256), 1],
            256,
            0,
            arguments![&mut delta, &dout, &o, n, heads],
        )?;
        run.launch(
            &format!("attention_dkdv_{dim}"),
            [tiles, keys],
            128,
            bytes(128 + 2 * backward_rows),
            arguments![&mut dk, &mut dv, &dout, &q, &k, &v, &lse, &delta, &start, &end, n, heads, keys, scale],
        )?;
        run.launch(
            &format!("attention_dq_{dim}"),
            [tiles, heads],
            128,
            bytes(128 + 2 * backward_rows),
            arguments![&mut dq, &dout, &q, &k, &v, &lse, &delta, &start, n, heads, keys, scale],
        )?;
        Ok((o.get()?, lse.get()?, dq.get()?, dk.get()?, dv.get()?))
    })?;
    Ok(Results { o, lse, dq, dk, dv })
}

/// The formulas. `rounded` is o as the kernel left it, which delta is taken of.
fn reference(shape: Shape, operands: &Operands, rounded: &[bf16]) -> Results<f64, f64> {
    let Shape { heads, keys, dim, .. } = shape;
    let (n, scale) = (shape.tokens(), f64::from(shape.scale()));
    let [q, k, v, dout] = [&operands.q, &operands.k, &operands.v, &operands.dout].map(|t| floats(t));
    let rounded = floats(rounded);
    let mut results = Results {
        o: vec![0.0; q.len()],
        lse: vec![0.0; heads * n],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; k.len()],
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for h in 0..heads {
        let key_head = h / (heads / keys);
        for i in 0..n {
            let own = (i * heads + h) * dim..(i * heads + h + 1) * dim;
            let key = |j: usize| (j * keys + key_head) * dim..(j * keys + key_head + 1) * dim;
            let visible = operands.start[i] as usize..i + 1;
            let scores: Vec<f64> = visible.clone().map(|j| scale * dot(&q[own.clone()], &k[key(j)])).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let lse = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
            results.lse[h * n + i] = lse;
            let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
            let dp: Vec<f64> = visible.clone().map(|j| dot(&dout[own.clone()], &v[key(j)])).collect();
            let delta = dot(&dout[own.clone()], &rounded[own.clone()]);
            for (j, (p, dp)) in visible.zip(p.iter().zip(&dp)) {
                let ds = p * (dp - delta) * scale;
                for (own, key) in own.clone().zip(key(j)) {
                    results.o[own] += p * v[key];
                    results.dq[own] += ds * k[key];
                    results.dk[key] += ds * q[own];
                    results.dv[key] += p * dout[own];
                }
            }
        }
    }
    results
}

fn check_shape(simulator: &Simulator, shape: Shape) -> Outcome {
    let operands = shape.draw();
    let got = run(simulator, shape, &operands)?;
    let expected = reference(shape, &operands, &got.o);
    let Shape { heads, keys, dim, segments } = shape;
    let what = format!("attention_{dim}, {heads} heads on {keys}, segments {segments:?}");
    close(&what, &got.o, &expected.o, FORWARD)?;
    close(&format!("{what}, lse"), &got.lse, &expected.lse, 1e-5)?;
    close(&format!("{what}, dq"), &got.dq, &expected.dq, BACKWARD)?;
    close(&format!("{what}, dk"), &got.dk, &expected.dk, BACKWARD)?;
    close(&format!("{what}, dv"), &got.dv, &expected.dv, BACKWARD)
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_shape(simulator, Shape { segments: &[3, 70, 1, 60, 16], heads: 4, keys: 2, dim: 32 })?;
    check_shape(simulator, Shape { segments: &[5, 130], heads: 2, keys: 1, dim: 96 })
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn heads_of_every_width() {
    with_simulator(|simulator| {
        for dim in [16, 32, 64, 96, 128] {
            check_shape(simulator, Shape { segments: &[10, 61, 2], heads: 2, keys: 2, dim })?;
        }
        check_shape(simulator, Shape { segments: &[30, 41], heads: 1, keys: 1, dim: 256 })
    });
}

#[test]
fn segments_of_any_length() {
    with_simulator(|simulator| {
        fn shape(segments: &[usize]) -> Shape<'_> {
            Shape { segments, heads: 1, keys: 1, dim: 16 }
        }
        check_shape(simulator, shape(&[1]))?;
        check_shape(simulator, shape(&[&[1; 60][..], &[2, 1, 3]].concat()))?;
        check_shape(simulator, shape(&[64]))?;
        check_shape(simulator, shape(&[64, 64]))?;
        check_shape(simulator, shape(&[65, 63]))?;
        check_shape(simulator, shape(&[200]))?;
        check_shape(simulator, shape(&[1, 191, 1, 130]))
    });
}

#[test]
fn groups_of_any_size() {
    with_simulator(|simulator| {
        for (heads, keys) in [(1, 1), (6, 2), (5, 1), (7, 1), (8, 1)] {
            check_shape(simulator, Shape { segments: &[20, 9], heads, keys, dim: 16 })?;
        }
        Ok(())
    });
}
