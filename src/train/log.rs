//! What a run says of itself: events, and the files that keep them.
//!
//! `log.jsonl` is the one that is gone on from. TensorBoard's event file and the curve are made of what it holds, so
//! the three cannot differ.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::checkpoint::State;
use super::{curve, tensorboard};
use crate::diag::{Diagnostic, Result};
use crate::storage;

/// What happens in a run, as it is logged and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        step: u64,
        steps: u64,
        /// Seconds since 1970, here and below.
        time: f64,
        /// Version of this program.
        flanc: String,
        /// What computes; of several ranks, what rank 0 computes on.
        device: String,
        /// The model's shape, as in `config.json`.
        model: serde_json::Value,
        settings: serde_json::Value,
        parameters: usize,
        /// Bytes of the model's tensors, on each rank.
        bytes: u64,
        rows: u64,
        rows_per_step: usize,
        ranks: usize,
        /// FLOP/s of a large product, measured on each rank and added up: what `mfu` is a share of.
        ceiling: f64,
        /// Hash of the plan that the data was compiled by.
        data: String,
    },
    /// What is no error, but ought to be known.
    Warning {
        step: u64,
        time: f64,
        code: String,
        message: String,
        /// All of it, as it is printed.
        text: String,
    },
    Step {
        step: u64,
        time: f64,
        /// Mean over the targets.
        loss: f64,
        targets: usize,
        tokens: usize,
        rate: f64,
        norm: f64,
        epoch: f64,
        /// Of all ranks.
        tokens_per_second: f64,
        /// Share of the ceiling that the model's own operations come to.
        mfu: f64,
        /// Seconds left, by the mean of this run's steps.
        eta: f64,
        /// Bytes of memory that this process holds.
        memory: u64,
    },
    Skipped {
        step: u64,
        time: f64,
        reason: String,
        /// First and last row, the latter excluded.
        rows: (u64, u64),
    },
    Validation {
        step: u64,
        time: f64,
        loss: f64,
        targets: usize,
    },
    Checkpoint {
        step: u64,
    },
    /// The run was asked to stop before its end; the step's checkpoint is written.
    Stopped {
        step: u64,
        /// Its number.
        signal: i32,
        seconds: f64,
    },
    Finished {
        step: u64,
        seconds: f64,
    },
}

impl Event {
    /// What a run has to say as it goes on after `step`.
    pub(super) fn warning(step: u64, warning: &Diagnostic) -> Event {
        let Diagnostic { code, message, .. } = warning;
        let (code, message) = ((*code).to_owned(), message.clone());
        Event::Warning { step, time: now(), code, message, text: warning.to_string() }
    }

    pub fn step(&self) -> u64 {
        match self {
            Event::Started { step, .. }
            | Event::Warning { step, .. }
            | Event::Step { step, .. }
            | Event::Skipped { step, .. }
            | Event::Validation { step, .. }
            | Event::Checkpoint { step }
            | Event::Stopped { step, .. }
            | Event::Finished { step, .. } => *step,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// False if there was nothing left to do.
    pub trained: bool,
    /// The number of the signal that ended it before its last step.
    pub stopped: Option<i32>,
    pub steps: u64,
    pub skipped: u64,
    /// Mean of the first and of the last steps of the log, up to ten each.
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
    pub validation_loss: Option<f64>,
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The log of a run's directory.
pub(super) struct Log {
    path: PathBuf,
    /// TensorBoard's file, once the run is under way.
    events: Option<PathBuf>,
}

impl Log {
    pub fn of(out: &Path) -> Log {
        Log { path: out.join("log.jsonl"), events: None }
    }

    /// Forgets what was done after `step`, which is done again, and begins TensorBoard's file anew.
    pub fn go_on_after(&mut self, step: u64) -> Result<()> {
        let mut kept = if step == 0 { Vec::new() } else { self.lines()? };
        kept.retain(|(_, event)| event.step() <= step);
        let directory = self.path.with_file_name("tensorboard");
        storage::remove_tree(&directory)?;
        let mut records = tensorboard::begin(now());
        records.extend(kept.iter().flat_map(|(_, event)| tensorboard::record(event)));
        // Another name for each beginning: a TensorBoard that has the last file open looks for one that sorts after it.
        let path = directory.join(format!("events.out.tfevents.{:010}.flanc", now() as u64));
        storage::write(&path, &records)?;
        self.events = Some(path);
        // Lines stay as they are: a number that is read and written again may lose its last bit.
        let text: String = kept.into_iter().map(|(line, _)| line + "\n").collect();
        storage::write(&self.path, text.as_bytes())
    }

    pub fn write(&self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).expect("plain data is always JSON") + "\n";
        storage::append(&self.path, line.as_bytes())?;
        if let Some(path) = &self.events {
            storage::append(path, &tensorboard::record(event))?;
        }
        Ok(())
    }

    /// Lines so far, with what they say; a last one that was cut off is left out.
    fn lines(&self) -> Result<Vec<(String, Event)>> {
        if storage::stamp(&self.path).is_none() {
            return Ok(Vec::new());
        }
        let text = storage::read_text(&self.path)?;
        Ok(text.lines().filter_map(|line| Some((line.to_owned(), serde_json::from_str(line).ok()?))).collect())
    }

    fn curves(&self) -> Result<(curve::Points, curve::Points)> {
        let (mut train, mut validation) = (Vec::new(), Vec::new());
        for (_, event) in self.lines()? {
            match event {
                Event::Step { step, loss, .. } => train.push((step, loss)),
                Event::Validation { step, loss, .. } => validation.push((step, loss)),
                _ => {}
            }
        }
        Ok((train, validation))
    }

    pub fn draw(&self, path: &Path) -> Result<()> {
        let (train, validation) = self.curves()?;
        storage::write(path, curve::svg(&train, &validation).as_bytes())
    }

    pub fn summary(&self, state: &State, trained: bool, stopped: Option<i32>) -> Result<Summary> {
        let (train, validation) = self.curves()?;
        let mean = |points: &[(u64, f64)]| {
            (!points.is_empty()).then(|| points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64)
        };
        Ok(Summary {
            trained,
            stopped,
            steps: state.step,
            skipped: state.skipped,
            first_loss: mean(&train[..train.len().min(10)]),
            last_loss: mean(&train[train.len() - train.len().min(10)..]),
            validation_loss: validation.last().map(|p| p.1),
        })
    }
}
