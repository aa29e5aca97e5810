//! RMSNorm of rows and of heads, with residual and backward.

use half::bf16;

use super::{BF16, Buffer, Draw, Outcome, Simulator, arguments, close, equal, floats, schedules, with_simulator};

const EPS: f32 = 1e-5;

/// Threads for rows of C, as the launcher has them.
fn block(c: usize) -> usize {
    (c.div_ceil(256) * 32).min(512)
}

/// y and rstd of rows of `w.len()`.
fn forward(x: &[f64], w: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let c = w.len();
    let mean = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>() / c as f64;
    let rstd: Vec<f64> = x.chunks(c).map(|row| (mean(row) + f64::from(EPS)).powf(-0.5)).collect();
    let y = x.iter().enumerate().map(|(i, v)| v * rstd[i / c] * w[i % c]).collect();
    (y, rstd)
}

/// What is added to dx, and dw.
fn backward(dy: &[f64], x: &[f64], w: &[f64], rstd: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let c = w.len();
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; c]);
    for ((dy, x), r) in dy.chunks(c).zip(x.chunks(c)).zip(rstd) {
        let mean = (0..c).map(|i| dy[i] * w[i] * x[i]).sum::<f64>() / c as f64;
        for i in 0..c {
            dx.push(r * dy[i] * w[i] - x[i] * r.powi(3) * mean);
            dw[i] += dy[i] * x[i] * r;
        }
    }
    (dx, dw)
}

/// A kernel's dx += and dw += over `parts` blocks.
fn check_backward(simulator: &Simulator, kernel: &str, rows: usize, c: usize, parts: usize, block: usize) -> Outcome {
    let mut draw = Draw(2);
    let (dy, x, w, before) = (draw.bf16s(rows * c), draw.bf16s(rows * c), draw.bf16s(c), draw.bf16s(rows * c));
    let before_w = draw.floats(c);
    let (_, rstd) = forward(&floats(&x), &floats(&w));
    let rstd: Vec<f32> = rstd.iter().map(|&r| r as f32).collect();
    let inputs = (Buffer::new(&dy), Buffer::new(&x), Buffer::new(&w), Buffer::new(&rstd));
    let (dx, dw) = schedules(simulator, |run| {
        let (mut dx, mut part, mut dw) =
            (Buffer::new(&before), Buffer::<f32>::unset(parts * c), Buffer::new(&before_w));
        let arguments = arguments![&mut dx, &mut part, &inputs.0, &inputs.1, &inputs.2, &inputs.3, rows, c];
        run.launch(kernel, [parts, 1], block, 0, arguments)?;
        run.launch("sum_parts", [c.div_ceil(32), 1], 512, 0, arguments![&mut dw, &part, parts, c])?;
        Ok((dx.get()?, dw.get()?))
    })?;
    let (mut expected, mut expected_w) = backward(&floats(&dy), &floats(&x), &floats(&w), &floats(&rstd));
    expected.iter_mut().zip(&before).for_each(|(e, b)| *e += b.to_f64());
    expected_w.iter_mut().zip(&before_w).for_each(|(e, &b)| *e += f64::from(b));
    let what = format!("{kernel} ({rows}, {c}) in {parts} parts");
    close(&format!("{what}, dx"), &dx, &expected, BF16)?;
    close(&format!("{what}, dw"), &dw, &expected_w, 1e-5)
}

fn check_rows(simulator: &Simulator, rows: usize, c: usize, block: usize) -> Outcome {
    let mut draw = Draw(1);
    let (x, delta, w) = (draw.bf16s(rows * c), draw.bf16s(rows * c), draw.bf16s(c));
    let inputs = (Buffer::new(&x), Buffer::new(&delta), Buffer::new(&w));
    let results = schedules(simulator, |run| {
        let (mut y, mut rstd) = (Buffer::<bf16>::unset(rows * c), Buffer::<f32>::unset(rows));
        run.launch("rmsnorm", [rows, 1], block, 0, arguments![&mut y, &mut rstd, &inputs.0, &inputs.2, c, EPS])?;
        let (mut y2, mut rstd2, mut sum) =
            (Buffer::<bf16>::unset(rows * c), Buffer::<f32>::unset(rows), Buffer::<bf16>::unset(rows * c));
        let arguments = arguments![&mut y2, &mut rstd2, &mut sum, &inputs.0, &inputs.1, &inputs.2, c, EPS];
        run.launch("residual_rmsnorm", [rows, 1], block, 0, arguments)?;
        Ok((y.get()?, rstd.get()?, y2.get()?, rstd2.get()?, sum.get()?))
    })?;
    let (y, rstd, y2, rstd2, sum) = results;
    let what = format!("rmsnorm ({rows}, {c})");
    let expected = forward(&floats(&x), &floats(&w));
    close(&what, &y, &expected.0, BF16)?;
    close(&format!("{what}, rstd"), &rstd, &expected.1, 1e-6)?;
    let expected_sum: Vec<bf16> = x.iter().zip(&delta).map(|(x, d)| bf16::from_f32(x.to_f32() + d.to_f32())).collect();
    equal(&format!("{what}, the sum"), &sum, &expected_sum)?;
    let expected = forward(&floats(&sum), &floats(&w));
    close(&format!("{what} of a sum"), &y2, &expected.0, BF16)?;
    close(&format!("{what} of a sum, rstd"), &rstd2, &expected.1, 1e-6)
}

fn check_heads(simulator: &Simulator, rows: usize, c: usize, grid: usize) -> Outcome {
    let mut draw = Draw(3);
    let (x, w) = (draw.bf16s(rows * c), draw.bf16s(c));
    let inputs = (Buffer::new(&x), Buffer::new(&w));
    let (y, rstd) = schedules(simulator, |run| {
        let (mut y, mut rstd) = (Buffer::<bf16>::unset(rows * c), Buffer::<f32>::unset(rows));
        run.launch(
            "head_rmsnorm",
            [grid, 1],
            256,
            0,
            arguments![&mut y, &mut rstd, &inputs.0, &inputs.1, rows, c, EPS],
        )?;
        Ok((y.get()?, rstd.get()?))
    })?;
    let (expected, expected_rstd) = forward(&floats(&x), &floats(&w));
    close(&format!("head_rmsnorm ({rows}, {c})"), &y, &expected, BF16)?;
    close(&format!("head_rmsnorm ({rows}, {c}), rstd"), &rstd, &expected_rstd, 1e-6)?;
    check_backward(simulator, "head_rmsnorm_backward", rows, c, grid, 256)
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_rows(simulator, 3, 200, 64)?;
    check_rows(simulator, 2, 77, 32)?;
    // Both warps have columns, and some threads a second eight; then, one warp with more than it keeps.
    check_backward(simulator, "rmsnorm_backward", 13, 520, 4, 64)?;
    check_backward(simulator, "rmsnorm_backward", 3, 600, 2, 32)?;
    check_backward(simulator, "rmsnorm_backward", 5, 77, 2, 32)?;
    check_heads(simulator, 37, 32, 2)?;
    check_heads(simulator, 19, 96, 1)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn rows_of_any_width() {
    with_simulator(|simulator| {
        // One number; less than a thread's; odd; exactly a warp's; a model's; more than one chunk a thread.
        for c in [1, 5, 77, 256, 896, 1001, 4104] {
            check_rows(simulator, 2, c, block(c))?;
            check_backward(simulator, "rmsnorm_backward", 3, c, 2, block(c))?;
        }
        // More than the chunks that a thread keeps; as wide as any model's.
        check_rows(simulator, 2, 1100, 32)?;
        check_backward(simulator, "rmsnorm_backward", 3, 1100, 2, 32)?;
        check_backward(simulator, "rmsnorm_backward", 3, 1101, 2, 32)?;
        check_rows(simulator, 1, 16_384, block(16_384))
    });
}

#[test]
fn heads_of_any_width() {
    with_simulator(|simulator| {
        for c in [1, 8, 15, 16, 64, 80, 128, 256] {
            check_heads(simulator, 21, c, 2)?;
        }
        Ok(())
    });
}

#[test]
fn parts_are_summed_in_any_number() {
    with_simulator(|simulator| {
        for (parts, c) in [(1, 1), (3, 33), (16, 32), (264, 40)] {
            let mut draw = Draw(4);
            let (part, before) = (draw.floats(parts * c), draw.floats(c));
            let input = Buffer::new(&part);
            let out = schedules(simulator, |run| {
                let mut out = Buffer::new(&before);
                run.launch("sum_parts", [c.div_ceil(32), 1], 512, 0, arguments![&mut out, &input, parts, c])?;
                out.get()
            })?;
            let column = |i: usize| (0..parts).map(|p| f64::from(part[p * c + i])).sum::<f64>();
            let expected: Vec<f64> = (0..c).map(|i| f64::from(before[i]) + column(i)).collect();
            close(&format!("sum_parts ({parts}, {c})"), &out, &expected, 1e-6)?;
        }
        Ok(())
    });
}
