//! How fast a step is, as a share of what the device could do: model FLOPs utilisation (MFU; Chowdhery et al. 2022,
//! appendix B). The ceiling is measured, on the device that trains and by the backend's own product; a table of data
//! sheets would know neither the machine nor what it has been throttled to.

use std::time::Instant;

use super::arena::{Bounds, Group, Kind, Table};
use super::config::Config;
use super::ops::{Batch, Ops};
use crate::diag::Result;
use crate::storage;

/// Floating-point operations of a training step over `batch`, counted as the model needs them: two for each weight and
/// token forward, four backward; causal attention within segments; the head where something is predicted. What is
/// computed again is not counted.
pub fn training_flops(config: &Config, batch: &Batch) -> f64 {
    let (c, q, kv) = (config.hidden as f64, config.query_width() as f64, config.kv_width() as f64);
    let layer = c * (2.0 * q + 2.0 * kv + 3.0 * config.intermediate as f64);
    let linear = config.layers as f64 * layer * batch.tokens() as f64;
    let head = c * config.vocabulary as f64 * batch.rows.len() as f64;
    // Scores and values, each token with those up to itself.
    let pairs: f64 = batch.segments.iter().map(|&n| f64::from(n) * (f64::from(n) + 1.0) / 2.0).sum();
    6.0 * (linear + head + config.layers as f64 * 2.0 * q * pairs)
}

/// Smallest and largest width of the product that is timed.
const WIDTHS: std::ops::RangeInclusive<usize> = 256..=4096;
/// Seconds that a measurement takes at least.
const LONG: f64 = 5e-3;

/// FLOP/s of a square product on this device: the best of a few measurements, of the first width that takes its time.
pub fn ceiling<O: Ops>() -> Result<f64> {
    // What a backend may want to know of a model; there is none here.
    let bounds = Bounds { tokens: 1, logit_rows: 1, heads: 1, head_dim: 64 };
    let mut width = *WIDTHS.start();
    loop {
        let mut table = Table::new(bounds);
        let mut add =
            |kind: Kind, name: &str, shape: &[usize]| table.add(Group::Workspace, kind, format!("timed {name}"), shape);
        let [y, x, w] = ["y", "x", "w"].map(|name| add(Kind::Activation, name, &[width, width]));
        let done = add(Kind::Exact, "end", &[1]);
        let mut ops = O::allocate(table)?;
        // Not zeros: a GPU clocks higher on those.
        let values: Vec<f32> = (0..width * width).map(|i| (i * 7919 % 997) as f32 / 997.0 - 0.5).collect();
        ops.write(x, &values);
        ops.write(w, &values);
        let mut seconds = |times: usize| -> Result<f64> {
            let began = Instant::now();
            for _ in 0..times {
                ops.linear(y, x, w, None, width);
            }
            ops.read(done); // waits for what is under way
            ops.healthy()?; // what does nothing is fast
            Ok(began.elapsed().as_secs_f64().max(1e-9) / times as f64)
        };
        seconds(1)?; // what is only done once
        let first = seconds(1)?;
        if first >= LONG || width >= *WIDTHS.end() {
            let times = (LONG / first).ceil() as usize;
            let best = (0..5).try_fold(first, |best, _| seconds(times).map(|seconds| best.min(seconds)))?;
            return Ok(2.0 * (width as f64).powi(3) / best);
        }
        width *= 2;
    }
}

/// Bytes of memory that this process holds, where the system says so.
pub fn resident() -> Option<u64> {
    let text = storage::read_text("/proc/self/status".as_ref()).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Bytes of memory that could be taken without swapping, where the system says so: what the machine has free, or what the
/// process's control group allows, if that is less.
pub fn available() -> Option<u64> {
    let text = storage::read_text("/proc/meminfo".as_ref()).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
    let allowed = storage::read_text("/sys/fs/cgroup/memory.max".as_ref()).ok();
    Some(allowed.and_then(|text| text.trim().parse().ok()).map_or(free, |allowed: u64| free.min(allowed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of one segment, counted by hand: 6 · (weights · tokens + head · rows + 2 · 2 · layers · pairs).
    #[test]
    fn flops() {
        let config = Config::parse(
            r#"{"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6,
                "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}"#,
        )
        .unwrap();
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3, 4, 5], |i| i >= 3);
        let layer = 4 * 4 * 2 + 4 * 2 * 2 + 3 * 4 * 6;
        let expected = 6 * (3 * layer * 5 + 4 * 10 * 2 + 3 * 2 * 4 * 15);
        assert_eq!(training_flops(&config, &batch), f64::from(expected));
    }
}
