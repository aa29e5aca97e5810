//! Losses and their gradient, the likeliest token, how likely segments are, the norm of gradients.

use flanc::model::ops::NO_TARGET;
use half::bf16;

use super::{BF16, Buffer, Draw, Outcome, Run, Simulator, arguments, close, equal, floats, schedules, with_simulator};

/// Threads a row has on a GPU; fewer keep the simulator quick, and have more columns each.
const BLOCKS: [usize; 2] = [64, 1024];

fn check_cross_entropy(simulator: &Simulator, targets: &[u32], v: usize, block: usize, spread: f32) -> Outcome {
    let (rows, gradient) = (targets.len(), 0.37f32);
    let logits: Vec<bf16> = Draw(12).floats(rows * v).iter().map(|x| bf16::from_f32(spread * x)).collect();
    let (input, target, weight) = (Buffer::new(&logits), Buffer::new(targets), Buffer::new(&[gradient]));
    let (alone, loss, gradients) = schedules(simulator, |run| {
        let (mut alone, mut loss) = (Buffer::<f32>::unset(rows), Buffer::<f32>::unset(rows));
        let mut changed = Buffer::new(&logits);
        run.launch("cross_entropy", [rows, 1], block, 0, arguments![&mut alone, &input, &target, v, &weight, 0usize])?;
        let arguments = arguments![&mut loss, &mut changed, &target, v, &weight, 1usize];
        run.launch("cross_entropy", [rows, 1], block, 0, arguments)?;
        Ok((alone.get()?, loss.get()?, changed.get()?))
    })?;
    equal("logits, without gradient", &input.get()?, &logits)?;
    equal("loss, without gradient", &alone, &loss)?;
    let (mut expected, mut expected_gradients) = (Vec::new(), Vec::new());
    for (row, &target) in floats(&logits).chunks(v).zip(targets) {
        if target == NO_TARGET {
            expected.push(0.0);
            expected_gradients.extend(vec![0.0; v]);
            continue;
        }
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        expected.push(lse - row[target as usize]);
        let share = |(i, x): (usize, &f64)| (x - lse).exp() - f64::from(u8::from(i == target as usize));
        expected_gradients.extend(row.iter().enumerate().map(|i| f64::from(gradient) * share(i)));
    }
    let what = format!("cross_entropy ({rows}, {v}) by {block} threads");
    close(&what, &loss, &expected, 1e-5)?;
    close(&format!("{what}, gradient"), &gradients, &expected_gradients, BF16)
}

/// Of few `values`, the greatest comes up several times; of many, once, and anywhere.
fn check_argmax(simulator: &Simulator, rows: usize, v: usize, block: usize, values: usize) -> Outcome {
    let mut draw = Draw(13);
    let logits: Vec<bf16> = (0..rows * v).map(|_| bf16::from_f32(-9.0 - draw.below(values) as f32)).collect();
    let input = Buffer::new(&logits);
    let tokens = schedules(simulator, |run| {
        let mut tokens = Buffer::<u32>::unset(rows);
        run.launch("argmax", [rows, 1], block, 0, arguments![&mut tokens, &input, v])?;
        tokens.get()
    })?;
    let first = |row: &[bf16]| row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
    equal(&format!("argmax ({rows}, {v})"), &tokens, &logits.chunks(v).map(first).collect::<Vec<u32>>())
}

fn check_likelihoods(simulator: &Simulator, first_rows: &[u32]) -> Outcome {
    let losses = Draw(14).floats(*first_rows.last().unwrap() as usize);
    let (inputs, segments) = ((Buffer::new(&losses), Buffer::new(first_rows)), first_rows.len() - 1);
    let likelihoods = schedules(simulator, |run| {
        let mut likelihoods = Buffer::<f32>::unset(2 * segments);
        let arguments = arguments![&mut likelihoods, &inputs.0, &inputs.1, segments];
        run.launch("segment_likelihoods", [segments.div_ceil(256), 1], 256, 0, arguments)?;
        likelihoods.get()
    })?;
    let sums = first_rows.windows(2).map(|w| (w[1] - w[0], &losses[w[0] as usize..w[1] as usize]));
    let sums = sums.map(|(count, losses)| (f64::from(count), -losses.iter().map(|&l| f64::from(l)).sum::<f64>()));
    let (in_all, per_token): (Vec<f32>, Vec<f32>) =
        sums.map(|(n, sum)| (sum as f32, (sum / n.max(1.0)) as f32)).unzip();
    equal("segment_likelihoods", &likelihoods, &[in_all, per_token].concat())
}

/// The norm and whether it is finite, of several tensors over `parts` blocks each.
fn norm(run: &Run, tensors: &[Vec<f32>], parts: usize) -> Outcome<(f64, bool)> {
    let (mut part, mut value) = (Buffer::<f64>::unset(tensors.len() * parts), Buffer::<f64>::unset(1));
    let mut finite = Buffer::<u32>::unset(1);
    let mut all = Vec::new();
    for tensor in tensors {
        let (input, mut own) = (Buffer::new(tensor), Buffer::<f64>::unset(parts));
        run.launch("sum_squares", [parts, 1], 64, 0, arguments![&mut own, &input, tensor.len()])?;
        all.extend(own.get()?);
    }
    part.values[super::MARGIN..][..all.len()].copy_from_slice(&all);
    run.launch("finish_norm", [1, 1], 64, 0, arguments![&mut value, &mut finite, &part, all.len()])?;
    Ok((value.get()?[0], finite.get()?[0] == 1))
}

fn check_norm(simulator: &Simulator, lengths: &[usize], parts: usize) -> Outcome {
    let mut draw = Draw(15);
    let tensors: Vec<Vec<f32>> = lengths.iter().map(|&n| draw.floats(n)).collect();
    let (value, finite) = schedules(simulator, |run| norm(run, &tensors, parts))?;
    let expected = tensors.iter().flatten().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    close(&format!("norm of {lengths:?} in {parts} parts"), &[value], &[expected], 1e-14)?;
    equal("finite", &[u32::from(finite)], &[1])
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_cross_entropy(simulator, &[0, 999, NO_TARGET, 500], 1000, 128, 8.0)?;
    check_cross_entropy(simulator, &[12, 3, NO_TARGET], 77, 64, 30.0)?;
    check_argmax(simulator, 6, 1000, 128, 2000)?;
    check_argmax(simulator, 3, 77, 64, 5)?;
    check_likelihoods(simulator, &[0, 1, 4, 4, 9])?;
    check_norm(simulator, &[1003, 5], 3)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn vocabularies_of_any_size() {
    with_simulator(|simulator| {
        for block in BLOCKS {
            for v in [1, 7, 8, 513, 4096] {
                check_cross_entropy(simulator, &[0, v as u32 - 1], v, block, 4.0)?;
                check_argmax(simulator, 2, v, block, 5)?;
            }
        }
        check_norm(simulator, &[1], 1)?;
        check_norm(simulator, &[4096, 3, 257], 7)
    });
}

#[test]
fn what_is_not_finite_is_seen() {
    with_simulator(|simulator| {
        let run = Run { simulator, seed: 0 };
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 500, 1002] {
                let mut values = vec![0.5; 1003];
                values[at] = bad;
                assert!(!norm(&run, &[vec![1.0; 10], values], 3)?.1, "{bad} at {at}");
            }
        }
        // The greatest number there is has a square that f32 does not.
        let (value, finite) = norm(&run, &[vec![f32::MAX; 7]], 2)?;
        assert!(finite && (value / (7f64.sqrt() * f64::from(f32::MAX)) - 1.0).abs() < 1e-14, "{value}");
        Ok(())
    });
}

#[test]
fn logits_that_are_not_numbers_give_no_loss() {
    with_simulator(|simulator| {
        let (run, weight) = (Run { simulator, seed: 0 }, Buffer::new(&[1.0f32]));
        for bad in [bf16::NAN, bf16::INFINITY] {
            let mut logits = vec![bf16::ONE; 100];
            logits[61] = bad;
            let (mut changed, mut loss, target) = (Buffer::new(&logits), Buffer::<f32>::unset(1), Buffer::new(&[3u32]));
            let arguments = arguments![&mut loss, &mut changed, &target, 100usize, &weight, 1usize];
            run.launch("cross_entropy", [1, 1], 64, 0, arguments)?;
            let loss = loss.get()?[0];
            assert!(!loss.is_finite(), "{bad}: {loss}");
            assert!(changed.get()?.iter().all(|g| g.is_nan()), "{bad}: a gradient that looks like one");
        }
        // Infinitely unlikely: the other logits are numbers.
        let logits = [bf16::ONE, bf16::NEG_INFINITY, bf16::ONE];
        let (mut changed, mut loss, target) = (Buffer::new(&logits), Buffer::<f32>::unset(1), Buffer::new(&[1u32]));
        let arguments = arguments![&mut loss, &mut changed, &target, 3usize, &weight, 1usize];
        run.launch("cross_entropy", [1, 1], 64, 0, arguments)?;
        assert!(loss.get()?[0] == f32::INFINITY && changed.get()?.iter().all(|g| g.is_nan()));
        // What a mask leaves at minus infinity has no share.
        let logits = [bf16::NEG_INFINITY, bf16::ONE, bf16::ONE, bf16::NEG_INFINITY];
        let (mut changed, mut loss, target) = (Buffer::new(&logits), Buffer::<f32>::unset(1), Buffer::new(&[1u32]));
        let arguments = arguments![&mut loss, &mut changed, &target, 4usize, &weight, 1usize];
        run.launch("cross_entropy", [1, 1], 64, 0, arguments)?;
        close("cross_entropy with hidden tokens", &loss.get()?, &[2f64.ln()], 1e-6)?;
        close("its gradient", &changed.get()?, &[0.0, -0.5, 0.5, 0.0], BF16)
    });
}
