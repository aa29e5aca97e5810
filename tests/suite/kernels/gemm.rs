//! The product of our own, in its three layouts.

use half::bf16;

use super::{BF16, Buffer, Draw, Outcome, Simulator, arguments, close, floats, schedules, with_simulator};

/// One layout, with bf16 and f32 as results, overwriting and adding.
fn check_product(simulator: &Simulator, layout: &str, [m, n, k]: [usize; 3]) -> Outcome {
    let mut draw = Draw(m as u64);
    let (a, b) = (draw.bf16s(m * k), draw.bf16s(k * n));
    let (before, before_f32) = (draw.bf16s(m * n), draw.floats(m * n));
    let inputs = (Buffer::new(&a), Buffer::new(&b));
    let (grid, shared) = ([n.div_ceil(128), m.div_ceil(128)], 81_920);
    let results = schedules(simulator, |run| {
        let (mut c, mut sum) = (Buffer::<bf16>::unset(m * n), Buffer::new(&before));
        let (mut c_f32, mut sum_f32) = (Buffer::<f32>::unset(m * n), Buffer::new(&before_f32));
        let kernel = format!("gemm_{layout}_bf16");
        run.launch(&kernel, grid, 256, shared, arguments![&mut c, &inputs.0, &inputs.1, m, n, k, 0usize])?;
        run.launch(&kernel, grid, 256, shared, arguments![&mut sum, &inputs.0, &inputs.1, m, n, k, 1usize])?;
        let kernel = format!("gemm_{layout}_f32");
        run.launch(&kernel, grid, 256, shared, arguments![&mut c_f32, &inputs.0, &inputs.1, m, n, k, 0usize])?;
        run.launch(&kernel, grid, 256, shared, arguments![&mut sum_f32, &inputs.0, &inputs.1, m, n, k, 1usize])?;
        Ok((c.get()?, sum.get()?, c_f32.get()?, sum_f32.get()?))
    })?;
    let (a, b) = (floats(&a), floats(&b));
    let at_a = |i: usize, l: usize| if layout == "tn" { a[l * m + i] } else { a[i * k + l] };
    let at_b = |l: usize, j: usize| if layout == "nt" { b[j * k + l] } else { b[l * n + j] };
    let element = |e: usize| (0..k).map(|l| at_a(e / n, l) * at_b(l, e % n)).sum::<f64>();
    let expected: Vec<f64> = (0..m * n).map(element).collect();
    let added = |before: Vec<f64>| -> Vec<f64> { expected.iter().zip(before).map(|(e, b)| e + b).collect() };
    let what = format!("gemm_{layout} ({m}, {n}, {k})");
    close(&format!("{what}, bf16"), &results.0, &expected, BF16)?;
    close(&format!("{what}, bf16 added"), &results.1, &added(floats(&before)), BF16)?;
    close(&format!("{what}, f32"), &results.2, &expected, 1e-5)?;
    close(&format!("{what}, f32 added"), &results.3, &added(floats(&before_f32)), 1e-5)
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    for layout in ["nt", "nn", "tn"] {
        check_product(simulator, layout, [40, 72, 200])?;
        check_product(simulator, layout, [19, 35, 43])?;
    }
    Ok(())
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn more_than_a_tile() {
    with_simulator(|simulator| {
        check_product(simulator, "nt", [130, 136, 40])?;
        check_product(simulator, "nn", [136, 130, 33])?;
        check_product(simulator, "tn", [136, 264, 16])?;
        // A single number; a common dimension of one.
        for layout in ["nt", "nn", "tn"] {
            check_product(simulator, layout, [1, 1, 1])?;
            check_product(simulator, layout, [8, 16, 1])?;
        }
        Ok(())
    });
}
