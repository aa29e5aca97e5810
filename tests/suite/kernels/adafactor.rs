//! Adafactor, step by step.

use flanc::model::rounding::{self, Draws};
use half::bf16;

use super::{
    Argument, BF16, Buffer, Draw, Outcome, Run, Simulator, arguments, close, equal, schedules, with_simulator,
};

/// As in the kernels: seven floats, two ints, the number of the step and the run's seed.
#[derive(Clone, Copy)]
struct Step {
    rate: f32,
    beta2: f32,
    eps1: f32,
    eps2: f32,
    clip_threshold: f32,
    weight_decay: f32,
    gradient_scale: f32,
    scale_parameter: bool,
    done: bool,
    number: u32,
    seed: u64,
}

const STEP: Step = Step {
    rate: 1e-2,
    beta2: 0.0,
    eps1: 1e-30,
    eps2: 1e-3,
    clip_threshold: 1.0,
    weight_decay: 0.0,
    gradient_scale: 1.0,
    scale_parameter: false,
    done: true,
    number: 5,
    seed: 7 << 33 | 17,
};

impl Step {
    fn words(self) -> [u32; 12] {
        let floats = [self.rate, self.beta2, self.eps1, self.eps2, self.clip_threshold, self.weight_decay];
        let [a, b, c, d, e, f] = floats.map(f32::to_bits);
        let (scale, seed) = (self.gradient_scale.to_bits(), [self.seed as u32, (self.seed >> 32) as u32]);
        [a, b, c, d, e, f, scale, self.scale_parameter.into(), self.done.into(), self.number, seed[0], seed[1]]
    }
}

/// Of a matrix, or of a vector.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    vector: bool,
}

impl Shape {
    fn matrix(rows: usize, columns: usize) -> Shape {
        Shape { rows, columns, vector: false }
    }

    fn vector(numbers: usize) -> Shape {
        Shape { rows: 1, columns: numbers, vector: true }
    }

    fn numbers(self) -> usize {
        self.rows * self.columns
    }

    /// Moments, all of a value.
    fn moments<F: Copy>(self, value: F) -> [Vec<F>; 2] {
        if self.vector { [self.columns, 0] } else { [self.rows, self.columns] }.map(|length| vec![value; length])
    }
}

/// A tensor with its moments: of its rows and columns, or of each number.
#[derive(Clone, Debug, PartialEq)]
struct State<F> {
    w: Vec<F>,
    moments: [Vec<F>; 2],
}

/// The formulas of ops.rs.
fn reference(state: &mut State<f64>, g: &[f32], shape: Shape, step: Step) {
    let Shape { rows, columns, vector } = shape;
    let [rate, beta2, eps1, eps2, clip, decay, scale] =
        [step.rate, step.beta2, step.eps1, step.eps2, step.clip_threshold, step.weight_decay, step.gradient_scale]
            .map(f64::from);
    let rms = |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
    let g: Vec<f64> = g.iter().map(|&g| f64::from(g) * scale).collect();
    let q: Vec<f64> = g.iter().map(|g| g * g + eps1).collect();
    let mix = |v: &mut f64, fresh: f64| *v = beta2 * *v + (1.0 - beta2) * fresh;
    let u: Vec<f64> = if vector {
        state.moments[0].iter_mut().zip(&q).for_each(|(v, &q)| mix(v, q));
        g.iter().zip(&state.moments[0]).map(|(g, v)| g / v.sqrt()).collect()
    } else {
        let [vr, vc] = &mut state.moments;
        for (i, v) in vr.iter_mut().enumerate() {
            mix(v, q[i * columns..][..columns].iter().sum::<f64>() / columns as f64);
        }
        for (j, v) in vc.iter_mut().enumerate() {
            mix(v, (0..rows).map(|i| q[i * columns + j]).sum::<f64>() / rows as f64);
        }
        let mean = vr.iter().sum::<f64>() / rows as f64;
        g.iter().enumerate().map(|(i, g)| g / (vr[i / columns] / mean).sqrt() / vc[i % columns].sqrt()).collect()
    };
    let rate = if step.scale_parameter { rate * rms(&state.w).max(eps2) } else { rate };
    let by = rate / (rms(&u) / clip).max(1.0);
    state.w.iter_mut().zip(&u).for_each(|(w, u)| *w = *w - decay * rate * *w - by * u);
}

/// A step by the kernels, which also leave the weights in bf16.
fn launch(run: &Run, state: &mut State<f32>, g: &[f32], shape: Shape, step: Step) -> Outcome<Vec<bf16>> {
    let (mut w, mut copy) = (Buffer::new(&state.w), Buffer::<bf16>::unset(g.len()));
    let weight = [(&mut w).into(), (&mut copy).into()];
    state.moments = launch_each(run, ("", weight), &state.moments, g, shape, step)?;
    state.w = w.get()?;
    copy.get()
}

/// A step for weights in bf16 alone, of the tensor of this number; what becomes of them and of their moments.
fn launch_in_bf16(
    run: &Run,
    (w, tensor): (&[bf16], usize),
    moments: &[Vec<f32>; 2],
    g: &[f32],
    shape: Shape,
    step: Step,
) -> Outcome<(Vec<bf16>, [Vec<f32>; 2])> {
    let mut w = Buffer::new(w);
    let weight = [(&mut w).into(), tensor.into()];
    let moments = launch_each(run, ("_bf16", weight), moments, g, shape, step)?;
    Ok((w.get()?, moments))
}

/// The kernels with this end of their names, one after another; the moments that they leave.
fn launch_each(
    run: &Run,
    (end, [w, beside]): (&str, [Argument; 2]),
    moments: &[Vec<f32>; 2],
    g: &[f32],
    shape: Shape,
    step: Step,
) -> Outcome<[Vec<f32>; 2]> {
    let (Shape { rows, columns, vector }, parts) = (shape, 3);
    let [mut a, mut b] = moments.each_ref().map(|moments| Buffer::new(moments));
    let (g, step) = (Buffer::new(g), Buffer::new(&step.words()));
    let kernel = |name: &str| format!("adafactor_{name}{end}");
    if vector {
        run.launch(&kernel("vector"), [1, 1], 64, 0, arguments![w, beside, &mut a, &g, &step, columns])?;
    } else {
        let (mut columns_part, mut w2) = (Buffer::<f32>::unset(parts * columns), Buffer::<f32>::unset(parts));
        let (mut scalars, mut u2) = (Buffer::<f32>::unset(2), Buffer::<f32>::unset(parts));
        let arguments = arguments![&mut a, &mut columns_part, &mut w2, &g, w, &step, rows, columns];
        run.launch(&kernel("stats"), [parts, 1], 64, 0, arguments)?;
        let arguments = arguments![&mut b, &mut scalars, &a, &columns_part, &w2, &step, parts, rows, columns];
        run.launch("adafactor_factors", [columns.div_ceil(32) + 1, 1], 512, 0, arguments)?;
        let arguments = arguments![&mut u2, &g, &a, &b, &scalars, &step, rows, columns];
        run.launch("adafactor_rms", [parts, 1], 64, 0, arguments)?;
        let arguments = arguments![w, beside, &u2, &g, &a, &b, &scalars, &step, parts, rows, columns];
        run.launch(&kernel("apply"), [2, 1], 64, 0, arguments)?;
    }
    Ok([a.get()?, b.get()?])
}

/// Four steps, with gradients whose rows and columns differ in size.
fn check_steps(simulator: &Simulator, shape: Shape, change: impl Fn(&mut Step)) -> Outcome {
    let (n, columns, mut draw) = (shape.numbers(), shape.columns, Draw(16));
    let w: Vec<f32> = draw.floats(n).iter().map(|v| 0.1 * v).collect();
    let size = |i: usize| 1e-3 * (1.0 + (i / columns) as f32) / (1.0 + (i % columns) as f32);
    let gradients: Vec<Vec<f32>> =
        (0..4).map(|_| draw.floats(n).iter().enumerate().map(|(i, v)| v * size(i)).collect()).collect();
    let step = |t: usize| {
        let mut step = Step { beta2: (1.0 - (t as f64).powf(-0.8)) as f32, ..STEP };
        change(&mut step);
        step
    };
    let (state, compute) = schedules(simulator, |run| {
        let mut state = State { w: w.clone(), moments: shape.moments(0.0) };
        let mut compute = Vec::new();
        for (t, g) in gradients.iter().enumerate() {
            compute = launch(run, &mut state, g, shape, step(t + 1))?;
        }
        Ok((state, compute))
    })?;
    let mut expected = State { w: w.iter().map(|&v| v.into()).collect(), moments: shape.moments(0.0) };
    for (t, g) in gradients.iter().enumerate() {
        reference(&mut expected, g, shape, step(t + 1));
    }
    let what = format!("adafactor, {shape:?}");
    let moved = |after: &[f64]| after.iter().zip(&w).map(|(a, &b)| a - f64::from(b)).collect::<Vec<f64>>();
    let after: Vec<f64> = state.w.iter().map(|&v| v.into()).collect();
    // The movement, of some 0.04, is a difference of numbers of 0.1 in f32.
    close(&format!("{what}, movement"), &moved(&after), &moved(&expected.w), 1e-5)?;
    close(&format!("{what}, moments of rows"), &state.moments[0], &expected.moments[0], 1e-5)?;
    if !shape.vector {
        close(&format!("{what}, moments of columns"), &state.moments[1], &expected.moments[1], 1e-5)?;
    }
    let rounded: Vec<bf16> = state.w.iter().map(|&v| bf16::from_f32(v)).collect();
    equal(&format!("{what}, copy in bf16"), &compute, &rounded)
}

/// A step that is not done, whatever its gradients are, leaves everything as it was.
fn check_skipped(simulator: &Simulator) -> Outcome {
    let mut draw = Draw(18);
    let run = Run { simulator, seed: 0 };
    for shape in [Shape::matrix(6, 10), Shape::vector(60)] {
        let moments = shape.moments(()).map(|moments| draw.floats(moments.len()));
        let before = State { w: draw.floats(60), moments };
        let mut g = draw.floats(60);
        g[7] = f32::NAN;
        let mut state = before.clone();
        let step = Step { done: false, ..STEP };
        let compute = launch(&run, &mut state, &g, shape, step)?;
        equal("weights of a step that is skipped", &state.w, &before.w)?;
        equal("its first moments", &state.moments[0], &before.moments[0])?;
        equal("its second moments", &state.moments[1], &before.moments[1])?;
        if !compute.iter().all(|c| c.is_nan()) {
            return Err("a step that is skipped writes weights in bf16".to_owned());
        }
        let w = draw.bf16s(60);
        let (after, moments) = launch_in_bf16(&run, (&w, TENSOR), &before.moments, &g, shape, step)?;
        equal("weights in bf16 of a step that is skipped", &after, &w)?;
        equal("their first moments", &moments[0], &before.moments[0])?;
    }
    Ok(())
}

/// A number of a tensor in a table.
const TENSOR: usize = 258;

/// A step whose update is the gradient: of moments of 1, to which nothing comes.
const PLAIN: Step = Step { rate: 1.0, beta2: 1.0, clip_threshold: 1e30, ..STEP };

/// Numbers of f32 that become weights in bf16 are rounded to the same bits as on the CPU: such as bf16 has, such as lie
/// between, 0 and -0, the largest (which `decay` of -1 makes infinite) and NaN.
fn check_rounding(simulator: &Simulator, shape: Shape, decay: f32) -> Outcome {
    let (n, mut draw) = (shape.numbers(), Draw(19));
    let mut w = draw.bf16s(n);
    let mut g: Vec<f32> = draw.floats(n).iter().map(|v| 0.01 * v).collect();
    g.iter_mut().step_by(5).for_each(|g| *g = 0.0);
    let special = [bf16::MAX, bf16::MIN, bf16::ZERO, bf16::NEG_ZERO, bf16::from_bits(1), bf16::ONE];
    w.iter_mut().step_by(5).zip(special).for_each(|(w, special)| *w = special);
    if shape.vector {
        // As a GPU's operations leave it; a carry would make 0 of it. In a matrix it would be in all means.
        g[n - 1] = f32::from_bits(0x7FFF_FFFF);
    }
    let step = Step { weight_decay: decay, ..PLAIN };
    // As bits, for NaN is not equal to itself.
    let rounded = schedules(simulator, |run| {
        let (w, _) = launch_in_bf16(run, (&w, TENSOR), &shape.moments(1.0), &g, shape, step)?;
        Ok(w.iter().map(|w| w.to_bits()).collect::<Vec<u16>>())
    })?;
    let stepped = |(w, g): (&bf16, &f32)| w.to_f32() - decay * w.to_f32() - g;
    let mut expected: Vec<f32> = w.iter().zip(&g).map(stepped).collect();
    rounding::round(&mut expected, Draws { seed: step.seed, tensor: TENSOR as u32, step: step.number });
    for (i, (&found, expected)) in rounded.iter().zip(&expected).enumerate() {
        let found = bf16::from_bits(found);
        if found.to_f32().to_bits() != expected.to_bits() && !(found.is_nan() && expected.is_nan()) {
            return Err(format!("{shape:?}, decay {decay}: weight {i} is {found:?}, expected {expected}"));
        }
    }
    Ok(())
}

/// The size of weights in bf16 scales the rate; what comes out is a neighbour of what it has to be.
fn check_size(simulator: &Simulator, shape: Shape) -> Outcome {
    let (n, mut draw) = (shape.numbers(), Draw(20));
    let (w, g) = (draw.bf16s(n), draw.floats(n));
    let step = Step { rate: 0.5, weight_decay: 0.1, scale_parameter: true, ..STEP };
    let (found, moments) =
        schedules(simulator, |run| launch_in_bf16(run, (&w, TENSOR), &shape.moments(0.0), &g, shape, step))?;
    let mut expected = State { w: w.iter().map(|w| w.to_f64()).collect(), moments: shape.moments(0.0) };
    reference(&mut expected, &g, shape, step);
    close(&format!("adafactor in bf16, {shape:?}"), &found, &expected.w, 2.0 * BF16)?;
    close(&format!("adafactor in bf16, {shape:?}, moments"), &moments[0], &expected.moments[0], 1e-5)
}

/// What 1 + r / 2^16 / 128 is rounded to says whether its draw is at least 2^16 - r. Random123's `kat_vectors` for
/// philox4x32-10: counter and key 0 give 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
fn check_known_draws(simulator: &Simulator) -> Outcome {
    let run = Run { simulator, seed: 0 };
    let step = Step { number: 0, seed: 0, ..PLAIN };
    for (below, up) in [(0, true), (1, false)] {
        let g =
            [0xE8D5u32, 0xC58D, 0xAC4C, 0xDBD8].map(|draw| -((0x1_0000 - draw - below) as f32) / (1u64 << 23) as f32);
        for shape in [Shape::matrix(1, 4), Shape::vector(4)] {
            let (w, _) = launch_in_bf16(&run, (&[bf16::ONE; 4], 0), &shape.moments(1.0), &g, shape, step)?;
            let expected = if up { bf16::from_bits(bf16::ONE.to_bits() + 1) } else { bf16::ONE };
            equal(&format!("{below} below a known draw, {shape:?}"), &w, &[expected; 4])?;
        }
    }
    Ok(())
}

/// What is asked for: rate (none: relative), the norm that was found, and the most that it may be.
fn check_begin(
    simulator: &Simulator,
    rate: Option<f64>,
    (norm, finite): (f64, bool),
    most: f64,
    before: u32,
) -> Outcome {
    let run = Run { simulator, seed: 0 };
    let seed = 7 << 33 | 17;
    let asked = [rate.unwrap_or(0.0), -0.8, most].map(f64::to_bits).into_iter().chain([seed]);
    let asked: Vec<[u32; 2]> = asked.map(|bits| [bits as u32, (bits >> 32) as u32]).collect();
    let rest = [1e-30f32, 1e-3, 2.0, 0.1].map(f32::to_bits);
    let asked = [asked.as_flattened(), &rest, &[1, rate.is_none().into()]].concat();
    let (mut step, mut done) = (Buffer::<u32>::unset(12), Buffer::new(&[before]));
    let (asked, norm_found, flag) = (Buffer::new(&asked), Buffer::new(&[norm]), Buffer::new(&[u32::from(finite)]));
    run.launch("adafactor_begin", [1, 1], 32, 0, arguments![&mut step, &mut done, &asked, &norm_found, &flag])?;
    let t = f64::from(before + u32::from(finite));
    equal("steps done", &done.get()?, &[t as u32])?;
    let step = step.get()?;
    if !finite {
        return equal("the flag of a step that is skipped", &step[8..9], &[0]);
    }
    let expected = Step {
        rate: rate.unwrap_or((1.0 / t.sqrt()).min(1e-2)) as f32,
        beta2: (1.0 - t.powf(-0.8)) as f32,
        eps1: 1e-30,
        eps2: 1e-3,
        clip_threshold: 2.0,
        weight_decay: 0.1,
        gradient_scale: (most / norm.max(1e-12)).min(1.0) as f32,
        scale_parameter: true,
        done: true,
        number: t as u32,
        seed,
    };
    equal("a step that begins", &step, &expected.words())
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_skipped(simulator)?;
    check_begin(simulator, Some(3e-5), (4.0, true), 1.0, 0)?;
    check_begin(simulator, Some(3e-5), (4.0, true), f64::INFINITY, 7)?;
    check_begin(simulator, Some(3e-5), (0.0, true), 1.0, 41)?;
    check_begin(simulator, None, (0.5, true), 1.0, 3)?;
    check_begin(simulator, None, (0.5, true), 1.0, 1_000_000)?;
    check_begin(simulator, Some(3e-5), (f64::NAN, false), 1.0, 0)?;
    check_begin(simulator, Some(3e-5), (f64::INFINITY, false), 1.0, 12)?;
    check_steps(simulator, Shape::matrix(37, 300), |_| ())?;
    check_steps(simulator, Shape::matrix(20, 33), |step| {
        (step.scale_parameter, step.rate) = (true, 0.5);
        step.weight_decay = 0.1;
        // Clipping would hide a scale that is lost.
        (step.gradient_scale, step.clip_threshold) = (0.5, 1e9);
    })?;
    check_steps(simulator, Shape::vector(70), |step| {
        step.weight_decay = 0.1;
        (step.gradient_scale, step.clip_threshold) = (0.5, 1e9);
    })?;
    for shape in [Shape::matrix(5, 44), Shape::matrix(7, 31), Shape::vector(150)] {
        check_rounding(simulator, shape, 0.0)?;
        check_rounding(simulator, shape, -1.0)?;
        check_size(simulator, shape)?;
    }
    check_known_draws(simulator)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn tensors_of_any_shape() {
    with_simulator(|simulator| {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (4, 300), (100, 4), (33, 31)] {
            check_steps(simulator, Shape::matrix(rows, columns), |_| ())?;
            check_rounding(simulator, Shape::matrix(rows, columns), 0.0)?;
        }
        for n in [1, 64, 1030] {
            check_steps(simulator, Shape::vector(n), |step| (step.scale_parameter, step.rate) = (true, 0.5))?;
            check_rounding(simulator, Shape::vector(n), 0.0)?;
        }
        Ok(())
    });
}

#[test]
fn every_option() {
    with_simulator(|simulator| {
        for shape in [Shape::matrix(12, 10), Shape::vector(90)] {
            let check = |change: &dyn Fn(&mut Step)| check_steps(simulator, shape, change);
            check(&|step| step.clip_threshold = 0.25)?;
            check(&|step| step.clip_threshold = 1e9)?;
            check(&|step| step.gradient_scale = 0.01)?;
            check(&|step| (step.scale_parameter, step.eps2) = (true, 10.0))?;
            check(&|step| step.eps1 = 1e-6)?;
        }
        Ok(())
    });
}

#[test]
fn without_gradient_nothing_moves() {
    with_simulator(|simulator| {
        let step = Step { rate: 1.0, ..STEP };
        let w = Draw(17).floats(60);
        let run = Run { simulator, seed: 0 };
        for shape in [Shape::matrix(6, 10), Shape::vector(60)] {
            let mut state = State { w: w.clone(), moments: shape.moments(0.0) };
            launch(&run, &mut state, &[0.0; 60], shape, step)?;
            equal(&format!("weights without gradient, {shape:?}"), &state.w, &w)?;
        }
        Ok(())
    });
}
