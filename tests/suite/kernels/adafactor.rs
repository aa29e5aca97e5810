//! Adafactor, step by step.

use half::bf16;

use super::{Buffer, Draw, Outcome, Run, Simulator, arguments, close, equal, schedules, with_simulator};

/// As in the kernels: seven floats and two ints.
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
};

impl Step {
    fn words(self) -> [u32; 9] {
        let floats = [self.rate, self.beta2, self.eps1, self.eps2, self.clip_threshold, self.weight_decay];
        let [a, b, c, d, e, f] = floats.map(f32::to_bits);
        [a, b, c, d, e, f, self.gradient_scale.to_bits(), self.scale_parameter.into(), self.done.into()]
    }
}

/// A tensor with its moments: of its rows and columns, or of each number.
#[derive(Clone, Debug, PartialEq)]
struct State<F> {
    w: Vec<F>,
    moments: [Vec<F>; 2],
}

/// The formulas of ops.rs.
fn reference(state: &mut State<f64>, g: &[f32], columns: usize, vector: bool, step: Step) {
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
        let (rows, [vr, vc]) = (q.len() / columns, &mut state.moments);
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
fn launch(
    run: &Run,
    state: &mut State<f32>,
    g: &[f32],
    columns: usize,
    vector: bool,
    step: Step,
) -> Outcome<Vec<bf16>> {
    let (n, rows, parts) = (g.len(), g.len() / columns, 3);
    let [a, b] = &state.moments;
    let (mut w, mut a, mut b) = (Buffer::new(&state.w), Buffer::new(a), Buffer::new(b));
    let (mut compute, g, step) = (Buffer::<bf16>::unset(n), Buffer::new(g), Buffer::new(&step.words()));
    if vector {
        run.launch("adafactor_vector", [1, 1], 64, 0, arguments![&mut w, &mut compute, &mut a, &g, &step, n])?;
    } else {
        let (mut columns_part, mut w2) = (Buffer::<f32>::unset(parts * columns), Buffer::<f32>::unset(parts));
        let (mut scalars, mut u2) = (Buffer::<f32>::unset(2), Buffer::<f32>::unset(parts));
        let arguments = arguments![&mut a, &mut columns_part, &mut w2, &g, &w, &step, rows, columns];
        run.launch("adafactor_stats", [parts, 1], 64, 0, arguments)?;
        let arguments = arguments![&mut b, &mut scalars, &a, &columns_part, &w2, &step, parts, rows, columns];
        run.launch("adafactor_factors", [columns.div_ceil(32) + 1, 1], 512, 0, arguments)?;
        run.launch(
            "adafactor_rms",
            [parts, 1],
            64,
            0,
            arguments![&mut u2, &g, &a, &b, &scalars, &step, rows, columns],
        )?;
        let arguments = arguments![&mut w, &mut compute, &u2, &g, &a, &b, &scalars, &step, parts, rows, columns];
        run.launch("adafactor_apply", [2, 1], 64, 0, arguments)?;
    }
    *state = State { w: w.get()?, moments: [a.get()?, b.get()?] };
    compute.get()
}

/// Four steps, with gradients whose rows and columns differ in size.
fn check_steps(
    simulator: &Simulator,
    rows: usize,
    columns: usize,
    vector: bool,
    change: impl Fn(&mut Step),
) -> Outcome {
    let (n, mut draw) = (rows * columns, Draw(16));
    let w: Vec<f32> = draw.floats(n).iter().map(|v| 0.1 * v).collect();
    let size = |i: usize| 1e-3 * (1.0 + (i / columns) as f32) / (1.0 + (i % columns) as f32);
    let gradients: Vec<Vec<f32>> =
        (0..4).map(|_| draw.floats(n).iter().enumerate().map(|(i, v)| v * size(i)).collect()).collect();
    let step = |t: usize| {
        let mut step = Step { beta2: (1.0 - (t as f64).powf(-0.8)) as f32, ..STEP };
        change(&mut step);
        step
    };
    let moments = if vector { [n, 0] } else { [rows, columns] };
    let (state, compute) = schedules(simulator, |run| {
        let mut state = State { w: w.clone(), moments: moments.map(|n| vec![0.0; n]) };
        let mut compute = Vec::new();
        for (t, g) in gradients.iter().enumerate() {
            compute = launch(run, &mut state, g, columns, vector, step(t + 1))?;
        }
        Ok((state, compute))
    })?;
    let mut expected = State { w: w.iter().map(|&v| v.into()).collect(), moments: moments.map(|n| vec![0.0; n]) };
    for (t, g) in gradients.iter().enumerate() {
        reference(&mut expected, g, columns, vector, step(t + 1));
    }
    let what = format!("adafactor ({rows}, {columns}){}", if vector { ", a vector" } else { "" });
    let moved = |after: &[f64]| after.iter().zip(&w).map(|(a, &b)| a - f64::from(b)).collect::<Vec<f64>>();
    let after: Vec<f64> = state.w.iter().map(|&v| v.into()).collect();
    // The movement, of some 0.04, is a difference of numbers of 0.1 in f32.
    close(&format!("{what}, movement"), &moved(&after), &moved(&expected.w), 1e-5)?;
    close(&format!("{what}, moments of rows"), &state.moments[0], &expected.moments[0], 1e-5)?;
    if !vector {
        close(&format!("{what}, moments of columns"), &state.moments[1], &expected.moments[1], 1e-5)?;
    }
    let rounded: Vec<bf16> = state.w.iter().map(|&v| bf16::from_f32(v)).collect();
    equal(&format!("{what}, copy in bf16"), &compute, &rounded)
}

/// A step that is not done, whatever its gradients are, leaves everything as it was.
fn check_skipped(simulator: &Simulator) -> Outcome {
    let (rows, columns, mut draw) = (6, 10, Draw(18));
    let run = Run { simulator, seed: 0 };
    for vector in [false, true] {
        let n = rows * columns;
        let lengths = if vector { [n, 0] } else { [rows, columns] };
        let before = State { w: draw.floats(n), moments: lengths.map(|n| draw.floats(n)) };
        let mut g = draw.floats(n);
        g[7] = f32::NAN;
        let mut state = before.clone();
        let compute = launch(&run, &mut state, &g, columns, vector, Step { done: false, ..STEP })?;
        equal("weights of a step that is skipped", &state.w, &before.w)?;
        equal("its first moments", &state.moments[0], &before.moments[0])?;
        equal("its second moments", &state.moments[1], &before.moments[1])?;
        if !compute.iter().all(|c| c.is_nan()) {
            return Err("a step that is skipped writes weights in bf16".to_owned());
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
    let asked = [rate.unwrap_or(0.0), -0.8, most].map(|v| [v.to_bits() as u32, (v.to_bits() >> 32) as u32]);
    let rest = [1e-30f32, 1e-3, 2.0, 0.1].map(f32::to_bits);
    let asked = [asked.as_flattened(), &rest, &[1, rate.is_none().into()]].concat();
    let (mut step, mut done) = (Buffer::<u32>::unset(9), Buffer::new(&[before]));
    let (asked, norm_found, flag) = (Buffer::new(&asked), Buffer::new(&[norm]), Buffer::new(&[u32::from(finite)]));
    run.launch("adafactor_begin", [1, 1], 32, 0, arguments![&mut step, &mut done, &asked, &norm_found, &flag])?;
    let t = f64::from(before + u32::from(finite));
    equal("steps done", &done.get()?, &[t as u32])?;
    let step = step.get()?;
    if !finite {
        return equal("the flag of a step that is skipped", &step[8..], &[0]);
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
    check_steps(simulator, 37, 300, false, |_| ())?;
    check_steps(simulator, 20, 33, false, |step| {
        (step.scale_parameter, step.rate) = (true, 0.5);
        step.weight_decay = 0.1;
        // Clipping would hide a scale that is lost.
        (step.gradient_scale, step.clip_threshold) = (0.5, 1e9);
    })?;
    check_steps(simulator, 1, 70, true, |step| {
        step.weight_decay = 0.1;
        (step.gradient_scale, step.clip_threshold) = (0.5, 1e9);
    })
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn tensors_of_any_shape() {
    with_simulator(|simulator| {
        for (rows, columns) in [(1, 1), (1, 9), (9, 1), (4, 300), (100, 4), (33, 31)] {
            check_steps(simulator, rows, columns, false, |_| ())?;
        }
        for n in [1, 64, 1030] {
            check_steps(simulator, 1, n, true, |step| (step.scale_parameter, step.rate) = (true, 0.5))?;
        }
        Ok(())
    });
}

#[test]
fn every_option() {
    with_simulator(|simulator| {
        for vector in [false, true] {
            let shape = if vector { (1, 90) } else { (12, 10) };
            let check = |change: &dyn Fn(&mut Step)| check_steps(simulator, shape.0, shape.1, vector, change);
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
        let mut state = State { w: w.clone(), moments: [vec![0.0; 6], vec![0.0; 10]] };
        launch(&run, &mut state, &[0.0; 60], 10, false, step)?;
        equal("weights without gradient", &state.w, &w)?;
        let mut state = State { w: w.clone(), moments: [vec![0.0; 60], vec![]] };
        launch(&run, &mut state, &[0.0; 60], 60, true, step)?;
        equal("a vector without gradient", &state.w, &w)
    });
}
