//! Rows picked by number, and sums over rows: embedding, gather and scatter, biases.

use half::bf16;

use super::{BF16, Buffer, Draw, Outcome, Simulator, arguments, close, equal, floats, schedules, with_simulator};

fn check_embedding(simulator: &Simulator, ids: &[u32], vocabulary: usize, c: usize) -> Outcome {
    let (n, mut draw) = (ids.len(), Draw(9));
    let (table, dy, before) = (draw.bf16s(vocabulary * c), draw.bf16s(n * c), draw.floats(vocabulary * c));
    // The tokens of each distinct id, ascending.
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|&i| ids[i as usize]);
    let mut distinct: Vec<u32> = ids.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let before_id = |id: u32| ids.iter().filter(|&&i| i < id).count() as u32;
    let starts: Vec<u32> = distinct.iter().map(|&id| before_id(id)).chain([n as u32]).collect();
    let count = Buffer::new(&[distinct.len() as u32]);
    // What lies behind them would give id 0 the gradients of all tokens.
    let filled = |list: &[u32], fill: [u32; 2], length: usize| {
        list.iter().copied().chain(fill.into_iter().cycle()).take(length).collect::<Vec<u32>>()
    };
    let (starts, distinct) = (filled(&starts, [0, n as u32], n + 1), filled(&distinct, [0; 2], n));
    let lists = (Buffer::new(&order), Buffer::new(&starts), Buffer::new(&distinct));
    let inputs = (Buffer::new(&table), Buffer::new(ids), Buffer::new(&dy));
    let (y, dtable) = schedules(simulator, |run| {
        let (mut y, mut dtable) = (Buffer::<bf16>::unset(n * c), Buffer::new(&before));
        run.launch("embed", [n, 1], 128, 0, arguments![&mut y, &inputs.0, &inputs.1, n, c])?;
        let grid = [n, c.div_ceil(256)]; // as if every token had an id of its own
        run.launch(
            "embed_backward",
            grid,
            256,
            0,
            arguments![&mut dtable, &inputs.2, &lists.0, &lists.1, &lists.2, &count, c],
        )?;
        Ok((y.get()?, dtable.get()?))
    })?;
    let what = format!("embedding of {n}, {c} wide");
    let expected: Vec<bf16> = ids.iter().flat_map(|&id| table[id as usize * c..][..c].to_vec()).collect();
    equal(&what, &y, &expected)?;
    let mut expected = floats(&before);
    for (id, dy) in ids.iter().zip(dy.chunks(c)) {
        expected[*id as usize * c..][..c].iter_mut().zip(dy).for_each(|(e, d)| *e += d.to_f64());
    }
    close(&format!("{what}, backward"), &dtable, &expected, 1e-6)
}

fn check_gather(simulator: &Simulator, rows: &[u32], n: usize, c: usize) -> Outcome {
    let mut draw = Draw(10);
    let (x, before) = (draw.bf16s(n * c), draw.bf16s(n * c));
    let (inputs, count) = ((Buffer::new(&x), Buffer::new(rows)), rows.len());
    let (y, dx) = schedules(simulator, |run| {
        let (mut y, mut dx) = (Buffer::<bf16>::unset(count * c), Buffer::new(&before));
        run.launch("gather_rows", [count, 1], 128, 0, arguments![&mut y, &inputs.0, &inputs.1, count, c])?;
        run.launch("scatter_rows", [count, 1], 128, 0, arguments![&mut dx, &y, &inputs.1, count, c])?;
        Ok((y.get()?, dx.get()?))
    })?;
    let expected: Vec<bf16> = rows.iter().flat_map(|&row| x[row as usize * c..][..c].to_vec()).collect();
    equal(&format!("gather_rows, {c} wide"), &y, &expected)?;
    let from = |i: usize| if rows.contains(&((i / c) as u32)) { x[i] } else { before[i] };
    equal(&format!("scatter_rows, {c} wide"), &dx, &(0..n * c).map(from).collect::<Vec<bf16>>())
}

fn check_bias(simulator: &Simulator, rows: usize, o: usize, parts: usize) -> Outcome {
    let mut draw = Draw(11);
    let (y, bias, before) = (draw.bf16s(rows * o), draw.bf16s(o), draw.floats(o));
    let inputs = (Buffer::new(&y), Buffer::new(&bias));
    let (sum, dbias) = schedules(simulator, |run| {
        let (mut sum, mut part, mut dbias) = (Buffer::new(&y), Buffer::<f32>::unset(parts * o), Buffer::new(&before));
        run.launch("add_bias", [2, 1], 256, 0, arguments![&mut sum, &inputs.1, rows, o])?;
        run.launch("bias_backward", [o.div_ceil(256), parts], 256, 0, arguments![&mut part, &inputs.0, rows, o])?;
        run.launch("sum_parts", [o.div_ceil(32), 1], 512, 0, arguments![&mut dbias, &part, parts, o])?;
        Ok((sum.get()?, dbias.get()?))
    })?;
    let what = format!("bias ({rows}, {o}) in {parts} parts");
    let expected: Vec<f64> = y.iter().enumerate().map(|(i, y)| y.to_f64() + bias[i % o].to_f64()).collect();
    close(&what, &sum, &expected, BF16)?;
    let column = |i: usize| (0..rows).map(|r| y[r * o + i].to_f64()).sum::<f64>();
    let expected: Vec<f64> = (0..o).map(|i| f64::from(before[i]) + column(i)).collect();
    close(&format!("{what}, backward"), &dbias, &expected, 1e-6)
}

/// All of it on shapes as small as show what goes wrong.
pub fn check(simulator: &Simulator) -> Outcome {
    check_embedding(simulator, &[4, 2, 2, 0, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 5, 40)?;
    check_embedding(simulator, &[1, 0, 1], 2, 13)?;
    check_gather(simulator, &[1, 2, 5], 7, 24)?;
    check_gather(simulator, &[0, 6], 7, 13)?;
    check_bias(simulator, 37, 48, 2)?;
    check_bias(simulator, 6, 13, 1)
}

#[test]
fn small_shapes() {
    with_simulator(check);
}

#[test]
fn rows_of_any_width() {
    with_simulator(|simulator| {
        for c in [1, 8, 255, 256, 264, 1032] {
            check_embedding(simulator, &[3, 3, 1, 3], 4, c)?;
            check_gather(simulator, &[2], 3, c)?;
            check_bias(simulator, 3, c, 2)?;
        }
        // More parts than rows; one id for all tokens.
        check_bias(simulator, 2, 16, 5)?;
        check_embedding(simulator, &[7; 100], 8, 16)
    });
}
