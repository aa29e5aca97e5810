//! What a run is asked for: a TOML file, with FLAN's recipe where it says nothing.
//!
//! ```toml
//! steps = 30_000
//! tokens_per_step = 8_192
//!
//! [optimizer]
//! learning_rate = 3e-5
//!
//! [schedule]
//! kind = "constant"
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::model::arena::Precision;
use crate::model::ops::{AdafactorStep, Rate};
use crate::model::weights::Dtype;
use crate::storage;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Of fresh weights, and of the draws by which weights are rounded.
    pub seed: u64,
    pub steps: u64,
    /// Tokens of the packed rows that a step is made of, padding included.
    pub tokens_per_step: usize,
    /// Most tokens that go through the model at a time; a step is done in as many passes as that takes.
    pub micro_batch: usize,
    /// Keep one layer's activations at a time, and compute them again in the backward pass.
    pub recompute: bool,
    /// What weights are kept in from step to step. In bf16 they are rounded by draws, see [`crate::model::rounding`].
    pub master_weights: Precision,
    /// Gradients longer than this are shortened to it.
    pub max_norm: Option<f64>,
    /// Steps that may be skipped, for having no target token or a NaN, before the run stops.
    pub max_skipped: u64,
    pub validate_every: u64,
    /// Rows of the validation shards that are looked at.
    pub validate_rows: usize,
    pub checkpoint_every: u64,
    /// Checkpoints that stay.
    pub keep: usize,
    /// Numbers of the finished model.
    pub dtype: Dtype,
    pub optimizer: Adafactor,
    pub schedule: Schedule,
}

/// Adafactor; the names are those of transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adafactor {
    pub learning_rate: f64,
    /// Take `min(0.01, 1 / sqrt(step))` as learning rate.
    pub relative_step: bool,
    /// Multiply the rate by the root mean square of each tensor.
    pub scale_parameter: bool,
    pub clip_threshold: f64,
    pub decay_rate: f64,
    pub eps: [f64; 2],
    pub weight_decay: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Steps over which the rate rises from 0.
    pub warmup: u64,
    /// What a cosine ends at, as a share of the rate.
    pub floor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    Constant,
    Cosine,
}

impl Default for Settings {
    /// FLAN's: arXiv 2109.01652, section 2.4.
    fn default() -> Self {
        Settings {
            seed: 17,
            steps: 30_000,
            tokens_per_step: 8_192,
            micro_batch: 4_096,
            recompute: false,
            master_weights: Precision::F32,
            max_norm: None,
            max_skipped: 10,
            validate_every: 500,
            validate_rows: 32,
            checkpoint_every: 500,
            keep: 2,
            dtype: Dtype::Bf16,
            optimizer: Adafactor::default(),
            schedule: Schedule { kind: ScheduleKind::Constant, warmup: 0, floor: 0.1 },
        }
    }
}

impl Default for Adafactor {
    fn default() -> Self {
        Adafactor {
            learning_rate: 3e-5,
            relative_step: false,
            scale_parameter: false,
            clip_threshold: 1.0,
            decay_rate: -0.8,
            eps: [1e-30, 1e-3],
            weight_decay: 0.0,
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Settings::default().schedule
    }
}

impl Settings {
    /// Those that [`super::Origin::Tiny`] is trained with in a few minutes.
    pub fn tiny() -> Settings {
        toml::from_str(include_str!("../../data/tiny-model/train.toml")).expect("a test reads the bundled settings")
    }

    /// Reads a TOML file.
    pub fn open(path: &Path) -> Result<Settings> {
        let text = storage::read_text(path)?;
        toml::from_str(&text).map_err(|e| {
            Diagnostic::error("train-settings", format!("the settings of a run cannot be read: {}", e.message()))
                .at(path)
                .found(e.to_string())
                .into()
        })
    }

    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = [
            (self.steps == 0, "`steps` is 0"),
            (
                self.tokens_per_step == 0 || self.micro_batch == 0,
                "`tokens_per_step` and `micro_batch` have to be above 0",
            ),
            (
                self.validate_every == 0 || self.checkpoint_every == 0,
                "`validate_every` and `checkpoint_every` have to be above 0",
            ),
            (self.keep == 0, "`keep` is 0: a run could not go on from anywhere"),
            (self.max_norm.is_some_and(|n| !positive(n)), "`max_norm` has to be above 0"),
            (!positive(optimizer.learning_rate), "`learning_rate` has to be above 0"),
            (!positive(optimizer.clip_threshold), "`clip_threshold` has to be above 0"),
            (!optimizer.eps.iter().all(|&e| positive(e)), "both of `eps` have to be above 0"),
            (!(-1.0..0.0).contains(&optimizer.decay_rate), "`decay_rate` has to be below 0, and at least -1"),
            (!(0.0..1.0).contains(&optimizer.weight_decay), "`weight_decay` has to be at least 0 and below 1"),
            (!(0.0..=1.0).contains(&self.schedule.floor), "`floor` has to be from 0 to 1"),
            (
                optimizer.relative_step && self.schedule != Schedule::default(),
                "`relative_step` is a schedule of its own; leave [schedule] out",
            ),
        ];
        match wrong.iter().find(|(wrong, _)| *wrong) {
            Some((_, message)) => Err(Diagnostic::error("train-settings", *message).into()),
            None => Ok(()),
        }
    }

    /// The optimizer's part of `step`, counted from 0.
    pub fn optimizer_step(&self, step: u64) -> AdafactorStep {
        let o = &self.optimizer;
        AdafactorStep {
            rate: self.rate(step),
            decay_rate: o.decay_rate,
            max_norm: self.max_norm,
            eps1: o.eps[0],
            eps2: o.eps[1],
            clip_threshold: o.clip_threshold,
            weight_decay: o.weight_decay,
            scale_parameter: o.scale_parameter,
            seed: self.seed,
        }
    }

    /// The learning rate of `step`, counted from 0.
    fn rate(&self, step: u64) -> Rate {
        if self.optimizer.relative_step {
            return Rate::Relative;
        }
        let Schedule { kind, warmup, floor } = self.schedule;
        let share = if step < warmup {
            (step + 1) as f64 / warmup as f64
        } else {
            match kind {
                ScheduleKind::Constant => 1.0,
                ScheduleKind::Cosine => {
                    let done = (step - warmup) as f64 / self.steps.saturating_sub(warmup).max(1) as f64;
                    floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
                }
            }
        };
        Rate::Fixed(self.optimizer.learning_rate * share)
    }

    /// Whether a run with `self` can be carried on with `other`, which differs in what does not change the steps done. How a
    /// step is cut into passes changes last bits, and may have to: for a GPU with less memory.
    pub fn goes_on_as(&self, other: &Settings) -> bool {
        let mut same = other.clone();
        same.micro_batch = self.micro_batch;
        same.recompute = self.recompute;
        same.keep = self.keep;
        same.checkpoint_every = self.checkpoint_every;
        same.validate_every = self.validate_every;
        same.validate_rows = self.validate_rows;
        same.max_skipped = self.max_skipped;
        same.dtype = self.dtype;
        if self.schedule.kind == ScheduleKind::Constant {
            same.steps = self.steps;
        }
        same == *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let settings: Settings = toml::from_str(
            "steps = 110\noptimizer.learning_rate = 1.0\nschedule = { kind = 'cosine', warmup = 10, floor = 0.1 }",
        )
        .unwrap();
        settings.check().unwrap();
        let rate = |s: u64| settings.optimizer_step(s).rate(1);
        assert_eq!([0, 9, 10, 60, 110].map(|s| (rate(s) * 1e6).round() / 1e6), [0.1, 1.0, 1.0, 0.55, 0.1]);
        assert_eq!(Settings::default().rate(29_999), Rate::Fixed(3e-5));
        Settings::tiny().check().unwrap();
    }

    #[test]
    fn a_run_goes_on_with_more_steps_but_not_with_another_rate() {
        let settings = Settings::default();
        assert!(settings.goes_on_as(&Settings { steps: 40_000, keep: 9, ..settings.clone() }));
        assert!(settings.goes_on_as(&Settings { micro_batch: 512, recompute: true, ..settings.clone() }));
        assert!(!settings.goes_on_as(&Settings { seed: 18, ..settings.clone() }));
        assert!(!settings.goes_on_as(&Settings { master_weights: Precision::Bf16, ..settings.clone() }));
        let cosine = Schedule { kind: ScheduleKind::Cosine, ..Schedule::default() };
        let cosine = Settings { schedule: cosine, ..settings };
        assert!(!cosine.goes_on_as(&Settings { steps: 40_000, ..cosine.clone() }));
    }
}
