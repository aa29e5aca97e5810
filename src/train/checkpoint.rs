//! Checkpoints: all that a run needs to go on as if it had not been stopped.
//!
//! `RUN/checkpoints/step-00001000/` holds the weights in the numbers that they are kept in, Adafactor's moments in f32,
//! and `state.json`, which is put in place last and carries the hashes of the others, and one of its own text. Every file
//! is written under a temporary name, synced and renamed. There is no state of random numbers to be kept: draws are named
//! (see [`crate::seed`]).
//!
//! A directory without a state is one that a killed run did not finish writing, or removing; it is cleared away. One whose
//! bytes are not those that were written is damaged. It is set aside, under another name, where an older one is whole, and
//! the run goes on from there; where none is, nothing is touched and the run does not begin: it would begin anew.

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
const FILES: [&str; 2] = [WEIGHTS, MOMENTS];
/// Ends the name of a damaged checkpoint.
const ASIDE: &str = "damaged";

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
    pub files: Vec<(String, String)>,
    /// Hash of the file that says this, with nothing in this place.
    pub hash: String,
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

/// The hash of a file. It is read, not mapped: where a disk fails, that is an error and not the end of the process.
fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(storage::open(path)?).map_err(|e| storage::failure("read", path, &e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Writes a checkpoint and removes those before it, but for the last `keep`.
pub fn save(out: &Path, mut state: State, decoder: &Decoder, ops: &impl Ops, keep: usize) -> Result<()> {
    let directory = directory(out, state.step);
    storage::remove(&directory.join(STATE))?;
    weights::save_tensors(&directory.join(WEIGHTS), &masters(decoder), ops, masters_in(&state.settings))?;
    weights::save_tensors(&directory.join(MOMENTS), &moments(decoder), ops, Dtype::F32)?;
    state.files = Vec::new();
    for name in FILES {
        state.files.push((name.to_owned(), hash(&directory.join(name))?));
    }
    state.hash = String::new();
    state.hash = hash_of(&text(&state));
    storage::write(&directory.join(STATE), text(&state).as_bytes())?;
    let all = steps(out)?;
    for &step in all.iter().rev().filter(|&&s| s < state.step).skip(keep.saturating_sub(1)) {
        let directory = self::directory(out, step);
        // Without its state it is no checkpoint, however far the rest of the removal gets.
        storage::remove(&directory.join(STATE))?;
        storage::remove_tree(&directory)?;
    }
    Ok(())
}

fn text(state: &State) -> String {
    serde_json::to_string_pretty(state).expect("plain data is always JSON") + "\n"
}

/// Steps of which there are directories, ascending.
fn steps(out: &Path) -> Result<Vec<u64>> {
    let names = storage::list(&out.join(DIRECTORY))?;
    Ok(names.iter().filter_map(|(name, _)| name.strip_prefix("step-")?.parse().ok()).collect())
}

/// A checkpoint that is not as it was written.
pub struct Damaged {
    directory: PathBuf,
    why: String,
}

/// The last whole checkpoint, and the later ones that are damaged. It is an error if there are some, but none is whole, and
/// if one cannot be read.
pub fn find(out: &Path) -> Result<(Option<State>, Vec<Damaged>)> {
    let (mut damaged, mut unfinished) = (Vec::new(), Vec::new());
    let mut whole = None;
    for step in steps(out)?.into_iter().rev() {
        let directory = directory(out, step);
        match looked_at(&directory, step)? {
            Found::Whole(state) => {
                whole = Some(*state);
                break;
            }
            Found::Damaged(why) => damaged.push(Damaged { directory, why }),
            Found::Unfinished => unfinished.push(directory),
        }
    }
    if whole.is_none() {
        let aside = those_aside(out)?;
        if !damaged.is_empty() || !aside.is_empty() {
            return Err(none_whole(out, &damaged, &aside));
        }
    }
    for directory in unfinished {
        storage::remove_tree(&directory)?;
    }
    Ok((whole, damaged))
}

/// Gives damaged checkpoints another name, as the run goes on from `step`; what is to be said of each.
pub fn set_aside(out: &Path, damaged: &[Damaged], step: u64) -> Result<Vec<Diagnostic>> {
    let taken = those_aside(out)?;
    let mut warnings = Vec::new();
    for Damaged { directory, why } in damaged {
        let names = (1..).map(|n| if n == 1 { ASIDE.to_owned() } else { format!("{ASIDE}-{n}") });
        let mut free = names.map(|end| directory.with_extension(end)).filter(|path| !taken.contains(&name(path)));
        let aside = free.next().expect("there is a number that none has");
        storage::rename(directory, &aside)?;
        let message = format!("a checkpoint is damaged: {why}; the run goes on from the one of step {step}");
        let warning = Diagnostic::warning("checkpoint-damaged", message).at(&aside);
        warnings.push(warning.help("it is kept under this name; remove it when nobody needs it"));
    }
    Ok(warnings)
}

/// What a directory turns out to be.
enum Found {
    Whole(Box<State>),
    /// What is wrong with it.
    Damaged(String),
    Unfinished,
}

fn looked_at(directory: &Path, step: u64) -> Result<Found> {
    let files = storage::list(directory)?;
    let has = |name: &str| files.iter().any(|(file, _)| file == name);
    if !has(STATE) {
        return Ok(Found::Unfinished);
    }
    let damaged = |why: String| Ok(Found::Damaged(why));
    let Ok(text) = String::from_utf8(storage::map(&directory.join(STATE))?.to_vec()) else {
        return damaged(format!("{STATE} is no text"));
    };
    let state: State = match serde_json::from_str(&text) {
        Ok(state) => state,
        Err(e) => return damaged(format!("{STATE} cannot be read, or is of another version of flanc: {e}")),
    };
    // No other part of the text is as long as a hash and the same.
    if hash_of(&text.replacen(&state.hash, "", 1)) != state.hash || state.step != step {
        return damaged(format!("{STATE} is not as it was written"));
    }
    for (name, written) in &state.files {
        if !has(name) {
            return damaged(format!("{name} is missing"));
        }
        if hash(&directory.join(name))? != *written {
            return damaged(format!("{name} is not as it was written"));
        }
    }
    Ok(Found::Whole(Box::new(state)))
}

/// Names of checkpoints that were set aside.
fn those_aside(out: &Path) -> Result<Vec<String>> {
    let names = storage::list(&out.join(DIRECTORY))?.into_iter().map(|(name, _)| name);
    Ok(names.filter(|name| name.split_once('.').is_some_and(|(_, end)| end.starts_with(ASIDE))).collect())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn none_whole(out: &Path, damaged: &[Damaged], aside: &[String]) -> Box<Diagnostic> {
    let found = damaged.iter().map(|Damaged { directory, why }| format!("{}: {why}", name(directory)));
    let found = found.chain(aside.iter().map(|name| format!("{name}: set aside by an earlier run")));
    Diagnostic::error("no-whole-checkpoint", "the run that is here has checkpoints, but none that is whole")
        .at(out.join(DIRECTORY).as_path())
        .found(found.collect::<Vec<_>>().join("; "))
        .help(format!("put a whole checkpoint in their place, from a copy; or remove {} to begin anew", out.display()))
        .into()
}

/// Reads weights and moments back.
pub fn load(out: &Path, state: &State, decoder: &Decoder, ops: &mut impl Ops) -> Result<()> {
    let directory = directory(out, state.step);
    weights::load_tensors(&directory.join(WEIGHTS), &masters(decoder), ops, masters_in(&state.settings))?;
    weights::load_tensors(&directory.join(MOMENTS), &moments(decoder), ops, Dtype::F32)
}
