//! RoPE, SwiGLU and the cast: kernels that do the same to each number or pair.

use half::bf16;

use super::{BF16, Buffer, Draw, Outcome, Simulator, arguments, close, equal, floats, schedules, with_simulator};

fn check_rope(simulator: &Simulator, n: usize, heads: usize, dim: usize, grid: usize) -> Outcome {
    let (positions, pairs) = (11, dim / 2);
    let mut draw = Draw(5);
    let x = draw.bf16s(n * heads * dim);
    let angles: Vec<f32> = draw.floats(positions * pairs).iter().map(|a| 3.0 * a).collect();
    let at: Vec<u32> = (0..n).map(|_| draw.below(positions) as u32).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let inputs = (Buffer::new(&at), Buffer::new(&cos), Buffer::new(&sin));
    let turned = schedules(simulator, |run| {
        let turn = |back: usize| {
            let mut y = Buffer::new(&x);
            let arguments = arguments![&mut y, &inputs.0, &inputs.1, &inputs.2, n, heads, dim, back];
            run.launch("rope", [grid, 1], 256, 0, arguments)?;
            y.get()
        };
        Ok([turn(0)?, turn(1)?])
    })?;
    for (back, y) in turned.iter().enumerate() {
        let sign = if back == 1 { -1.0 } else { 1.0 };
        let mut expected = floats(&x);
        for (row, head) in expected.chunks_mut(dim).enumerate() {
            for i in 0..pairs {
                let angle = at[row / heads] as usize * pairs + i;
                let (c, s) = (f64::from(cos[angle]), sign * f64::from(sin[angle]));
                (head[i], head[i + pairs]) = (head[i] * c - head[i + pairs] * s, head[i + pairs] * c + head[i] * s);
            }
        }
        close(&format!("rope ({n}, {heads}, {dim}), back = {back}"), y, &expected, BF16)?;
    }
    Ok(())
}

fn check_swiglu(simulator: &Simulator, n: usize, grid: usize) -> Outcome {
    let mut draw = Draw(6);
    let mut gate: Vec<bf16> = draw.floats(n).iter().map(|v| bf16::from_f32(8.0 * v)).collect();
    // Where exp(-x) overflows, and where it vanishes.
    gate[0] = bf16::from_f32(-200.0);
    gate[n - 1] = bf16::from_f32(200.0);
    let (up, dh) = (draw.bf16s(n), draw.bf16s(n));
    let inputs = (Buffer::new(&gate), Buffer::new(&up), Buffer::new(&dh));
    let (h, dgate, dup) = schedules(simulator, |run| {
        let (mut h, mut dgate, mut dup) = (Buffer::<bf16>::unset(n), Buffer::new(&gate), Buffer::new(&up));
        run.launch("swiglu", [grid, 1], 256, 0, arguments![&mut h, &inputs.0, &inputs.1, n])?;
        run.launch("swiglu_backward", [grid, 1], 256, 0, arguments![&mut dgate, &mut dup, &inputs.2, n])?;
        Ok((h.get()?, dgate.get()?, dup.get()?))
    })?;
    let (g, u, d) = (floats(&gate), floats(&up), floats(&dh));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let each = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
    close(&format!("swiglu ({n})"), &h, &each(&|i| g[i] * sigmoid(g[i]) * u[i]), BF16)?;
    let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
    close(&format!("swiglu_backward ({n}), gate"), &dgate, &each(&|i| d[i] * u[i] * slope(g[i])), BF16)?;
    close(&format!("swiglu_backward ({n}), up"), &dup, &each(&|i| d[i] * g[i] * sigmoid(g[i])), BF16)
}

fn check_casts(simulator: &Simulator, n: usize) -> Outcome {
    let mut draw = Draw(7);
    let mut values = draw.floats(n);
    let special = [f32::INFINITY, -f32::INFINITY, f32::MAX, 0.0, -0.0, 1e-40, f32::from_bits(0x3F80_8000)];
    values.iter_mut().zip(special).for_each(|(v, s)| *v = s);
    let input = Buffer::new(&values);
    let nearest = schedules(simulator, |run| {
        let mut out = Buffer::<bf16>::unset(n);
        run.launch("cast_nearest", [1, 1], 256, 0, arguments![&mut out, &input, n])?;
        out.get()
    })?;
    let expected: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
    equal(&format!("cast_nearest ({n})"), &nearest, &expected)
}

/// NaN with payloads that a carry of rounding would turn into something else.
fn check_not_a_number(simulator: &Simulator) -> Outcome {
    let values = [0x7FC0_0000, 0x7F80_0001, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x7F80_FFFF].map(f32::from_bits);
    let input = Buffer::new(&[values.as_slice(), &values].concat());
    let bits = schedules(simulator, |run| {
        let mut nearest = Buffer::<bf16>::unset(10);
        run.launch("cast_nearest", [1, 1], 256, 0, arguments![&mut nearest, &input, 10usize])?;
        Ok(nearest.get()?.iter().map(|v| v.to_bits()).collect::<Vec<u16>>())
    })?;
    match bits.iter().find(|&&b| !bf16::from_bits(b).is_nan()) {
        Some(b) => Err(format!("NaN became {b:#x}")),
        None => Ok(()),
    }
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_rope(simulator, 9, 3, 32, 1)?;
    check_rope(simulator, 5, 2, 6, 1)?;
    check_swiglu(simulator, 8 * 300 + 5, 1)?;
    check_casts(simulator, 1029)?;
    check_not_a_number(simulator)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn any_length_and_grid() {
    with_simulator(|simulator| {
        for (heads, dim) in [(1, 2), (14, 64), (2, 96), (1, 128), (3, 80), (1, 256)] {
            check_rope(simulator, 7, heads, dim, 2)?;
        }
        for (n, grid) in [(1, 1), (8, 3), (257, 1), (4096, 2)] {
            check_swiglu(simulator, n, grid)?;
        }
        for n in [1, 7, 8, 64] {
            check_casts(simulator, n)?;
        }
        Ok(())
    });
}
