//! Checkpoints: all that a run needs to go on as if it had not been stopped.
//!
//! `RUN/checkpoints/step-00001000/` holds the weights in the numbers that they are kept in, Adafactor's moments in
//! f32, and `state.json`, which is put in place last and carries the hashes of the others: a directory without it, or
//! with other bytes than it says, is no checkpoint, and the one before it is used. Every file is written under a
//! temporary name, synced and renamed. There is no state of random numbers to be kept: draws are named (see
//! [`crate::seed`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::diag::{Diagnostic, Result};
use crate::model::arena::{Precision, Tensor};
use crate::model::decoder::Decoder;
use crate::model::ops::{Moments, Ops};
use crate::model::weights::{self, Dtype};
use crate::storage;

const DIRECTORY: &str = "checkpoints";
const STATE: &str = "state.json";
const MOMENTS: &str = "optimizer.safetensors";
const WEIGHTS: &str = "model.safetensors";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this form.
    pub format: u32,
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Steps of the optimizer.
    pub updates: u64,
    /// Rows taken from the data.
    pub position: u64,
    pub skipped: u64,
    /// Hash of the plan that the data was compiled by.
    pub plan: String,
    /// Hash of the model's configuration.
    pub model: String,
    #[serde(with = "as_toml")]
    pub settings: Settings,
    /// Names and hashes of the other files.
    #[serde(default)]
    pub files: Vec<(String, String)>,
}

/// Settings as the text of a TOML file, which keeps every number to the bit; serde_json rounds some when it reads them.
mod as_toml {
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    use super::Settings;

    pub fn serialize<S: Serializer>(settings: &Settings, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&toml::to_string(settings).map_err(ser::Error::custom)?)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Settings, D::Error> {
        toml::from_str(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn directory(out: &Path, step: u64) -> PathBuf {
    out.join(DIRECTORY).join(format!("step-{step:08}"))
}

/// Names of the optimizer's tensors.
fn moments(decoder: &Decoder) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for parameter in &decoder.parameters {
        match parameter.training.map(|(_, moments)| moments) {
            Some(Moments::Factored { rows, columns }) => {
                tensors.push((format!("{}.rows", parameter.name), rows));
                tensors.push((format!("{}.columns", parameter.name), columns));
            }
            Some(Moments::Full(all)) => tensors.push((parameter.name.clone(), all)),
            None => {}
        }
    }
    tensors
}

fn masters(decoder: &Decoder) -> Vec<(String, Tensor)> {
    decoder.parameters.iter().map(|p| (p.name.clone(), p.weight)).collect()
}

/// What weights are written in: they are kept in nothing finer.
fn masters_in(settings: &Settings) -> Dtype {
    match settings.master_weights {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::Bf16,
    }
}

fn hash(path: &Path) -> Result<String> {
    Ok(blake3::hash(&storage::map(path)?).to_hex().to_string())
}

/// Writes a checkpoint and removes those before it, but for the last `keep`.
pub fn save(out: &Path, mut state: State, decoder: &Decoder, ops: &impl Ops, keep: usize) -> Result<()> {
    let directory = directory(out, state.step);
    storage::remove(&directory.join(STATE))?;
    weights::save_tensors(&directory.join(WEIGHTS), &masters(decoder), ops, masters_in(&state.settings))?;
    weights::save_tensors(&directory.join(MOMENTS), &moments(decoder), ops, Dtype::F32)?;
    state.files = Vec::new();
    for name in [WEIGHTS, MOMENTS] {
        state.files.push((name.to_owned(), hash(&directory.join(name))?));
    }
    let mut text = serde_json::to_string_pretty(&state).expect("plain data is always JSON");
    text.push('\n');
    storage::write(&directory.join(STATE), text.as_bytes())?;
    let all = steps(out)?;
    for &step in all.iter().rev().filter(|&&s| s < state.step).skip(keep.saturating_sub(1)) {
        let directory = self::directory(out, step);
        // Without its state it is no checkpoint, however far the rest of the removal gets.
        storage::remove(&directory.join(STATE))?;
        storage::remove_tree(&directory)?;
    }
    Ok(())
}

/// Steps of which there are directories, ascending.
fn steps(out: &Path) -> Result<Vec<u64>> {
    let names = storage::list(&out.join(DIRECTORY))?;
    Ok(names.iter().filter_map(|(name, _)| name.strip_prefix("step-")?.parse().ok()).collect())
}

/// The last whole checkpoint; directories of later ones, cut off or damaged, are removed.
pub fn find(out: &Path) -> Result<Option<State>> {
    for step in steps(out)?.into_iter().rev() {
        let directory = directory(out, step);
        let path = directory.join(STATE);
        if storage::stamp(&path).is_some() {
            let text = storage::read_text(&path)?;
            let state: State = serde_json::from_str(&text).map_err(|e| {
                Diagnostic::error("checkpoint", format!("the state of a checkpoint cannot be read: {e}"))
                    .at(&path)
                    .help("it may be of another version of flanc; remove its directory to go on from the one before")
            })?;
            let whole =
                state.files.iter().all(|(name, is)| hash(&directory.join(name)).is_ok_and(|found| found == *is));
            if whole && state.step == step {
                return Ok(Some(state));
            }
        }
        storage::remove_tree(&directory)?;
    }
    Ok(None)
}

/// Reads weights and moments back.
pub fn load(out: &Path, state: &State, decoder: &Decoder, ops: &mut impl Ops) -> Result<()> {
    let directory = directory(out, state.step);
    weights::load_tensors(&directory.join(WEIGHTS), &masters(decoder), ops, masters_in(&state.settings))?;
    weights::load_tensors(&directory.join(MOMENTS), &moments(decoder), ops, Dtype::F32)
}
