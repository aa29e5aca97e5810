//! Training: packed shards and a model in, a fine-tuned model out.
//!
//! [`train`] is the table of contents. What a run leaves in its directory:
//!
//! | file | |
//! | --- | --- |
//! | `model/` | the finished model, for transformers and vLLM, and its tokenizer |
//! | `log.jsonl` | an object for every [`Event`]: each step with its loss, validations, what was skipped |
//! | `tensorboard/` | the same numbers for TensorBoard |
//! | `loss.svg` | the curve |
//! | `checkpoints/` | see [`checkpoint`] |
//!
//! The same command goes on where a stopped run was, to the bit. A step is weighted by its target tokens, not by
//! passes or rows: how a step is cut into passes changes no gradient but by rounding. Several [`Ranks`] share the passes
//! of each step; rank 0 decides where a run begins, and writes.

pub mod checkpoint;
pub mod curve;
pub mod data;
pub mod log;
pub mod settings;
mod steps;
pub mod tensorboard;

use std::path::PathBuf;
use std::sync::atomic::AtomicI32;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use self::checkpoint::State;
use self::data::{Data, Limits};
use self::log::Log;
pub use self::log::{Event, Summary};
use self::settings::Settings;
use crate::diag::{Diagnostic, Result};
use crate::model::arena::Table;
use crate::model::config::Config;
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::Ops;
use crate::model::ranks::Ranks;
use crate::model::{speed, vocabulary, weights};
use crate::seed::Seed;
use crate::shard::manifest::{self, TokenizerEntry};
use crate::storage;
use crate::tokenize::{Control, beginning_with};

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory with `config.json` and safetensors.
    Checkpoint(PathBuf),
    /// A `config.json`; weights are drawn.
    Fresh(PathBuf),
    /// The bundled shape of a million parameters, for the bundled tokenizer; weights are drawn.
    Tiny,
}

/// `config.json` of [`Origin::Tiny`].
const TINY: &str = include_str!("../../data/tiny-model/config.json");

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Run {
    /// Directory that `flanc compile` wrote.
    pub data: PathBuf,
    pub out: PathBuf,
    pub origin: Origin,
    pub settings: Settings,
}

/// Rows of a logits chunk: large enough for the products, small beside the activations.
const LOGIT_ROWS: usize = 512;

/// Reads the configuration of a run's model.
pub fn config(origin: &Origin) -> Result<Config> {
    match origin {
        Origin::Checkpoint(directory) => weights::config(directory),
        Origin::Fresh(file) => Config::open(file),
        Origin::Tiny => Config::parse(TINY),
    }
}

/// A model as a run will have it on each of `ranks`: nothing is allocated.
pub fn lay_out<O: Ops>(config: Config, settings: &Settings, sequence: usize, ranks: usize) -> (Decoder, Table) {
    let purpose = Purpose::Train { recompute: settings.recompute, master_weights: settings.master_weights };
    let cut = Cut::of(settings, sequence);
    let tokens = cut.rows_per_pass * sequence;
    let (mut decoder, mut table) =
        Decoder::lay_out(config, Layout { tokens, logit_rows: LOGIT_ROWS.min(tokens), purpose });
    if O::SUMS_IN_ORDER && cut.passes() > ranks {
        decoder.keep_totals(&mut table);
    }
    (decoder, table)
}

/// Opens the data of a run for its model.
pub fn open(run: &Run, config: &Config) -> Result<Data> {
    run.settings.check()?;
    let data = Data::open(&run.data, Limits { vocabulary: config.vocabulary, positions: config.max_positions })?;
    if let Origin::Checkpoint(model) = &run.origin {
        vocabulary::same_tokens(model, &run.data.join(manifest::TOKENIZER))?;
    }
    Ok(data)
}

/// How the rows of a step are cut into passes.
#[derive(Clone, Copy, Debug)]
struct Cut {
    rows: usize,
    rows_per_pass: usize,
}

impl Cut {
    fn of(settings: &Settings, sequence: usize) -> Cut {
        let rows = (settings.tokens_per_step / sequence.max(1)).max(1);
        Cut { rows, rows_per_pass: (settings.micro_batch / sequence.max(1)).clamp(1, rows) }
    }

    fn passes(self) -> usize {
        self.rows.div_ceil(self.rows_per_pass)
    }
}

/// Trains, or goes on training, until the run is done or `stop` is set. All of `ranks` are given the same run, and see the
/// same files.
pub fn train<O: Ops + Send>(
    run: &Run,
    ranks: &mut Ranks,
    stop: &Stop,
    report: &mut (dyn FnMut(&Event) + Send),
) -> Result<Summary> {
    // What is wrong with the inputs is said before there is a directory.
    let config = config(&run.origin)?;
    let data = open(run, &config)?;
    enough_passes(run, &data, ranks)?;
    let _lock = if ranks.leads() { Some(storage::lock(&run.out.join("run.lock"))?) } else { None };
    let (Start { mut state, finished }, warnings) = agreed(run, &config, &data, ranks)?;
    let mut log = Log::of(&run.out);
    if finished {
        for warning in &warnings {
            let event = Event::warning(state.step, warning);
            log.write(&event)?;
            report(&event);
        }
        return log.summary(&state, false, None);
    }
    let model = serde_json::from_str(&config.to_json("float32")).expect("a configuration is written as JSON");
    let ceiling = ranks.gather(&[speed::ceiling::<O>()?])?.concat().iter().sum();
    let (decoder, mut ops) = prepare::<O>(run, config, &data, &state, ranks.size())?;
    if ranks.leads() {
        log.go_on_after(state.step)?;
    }
    let leads = ranks.leads();
    let mut say = |event: Event| -> Result<()> {
        if leads {
            log.write(&event)?;
            report(&event);
        }
        Ok(())
    };
    say(Event::Started {
        step: state.step,
        steps: run.settings.steps,
        time: log::now(),
        flanc: env!("CARGO_PKG_VERSION").to_owned(),
        device: ops.device(),
        model,
        settings: serde_json::json!(run.settings),
        parameters: decoder.parameter_count(ops.table()),
        bytes: ops.table().total_bytes(),
        rows: data.train.rows,
        rows_per_step: Cut::of(&run.settings, data.train.sequence).rows,
        ranks: ranks.size(),
        ceiling,
        data: data.plan.clone(),
    })?;
    for warning in &warnings {
        say(Event::warning(state.step, warning))?;
    }
    let began = Instant::now();
    let trainer = steps::Trainer { run, data: &data, decoder: &decoder, ceiling, stop };
    let explained = |why: Box<Diagnostic>, ops: &O| if ops.healthy().is_err() { goes_on(run, *why) } else { why };
    let stopped = steps::steps(&trainer, &mut ops, ranks, &mut state, &mut say).map_err(|why| explained(why, &ops))?;
    if let Some(signal) = stopped {
        say(Event::Stopped { step: state.step, signal, seconds: began.elapsed().as_secs_f64() })?;
        return log.summary(&state, true, stopped);
    }
    if leads {
        finish(run, &data.tokenizer, &decoder, &ops).map_err(|why| explained(why, &ops))?;
    }
    say(Event::Finished { step: state.step, seconds: began.elapsed().as_secs_f64() })?;
    if leads {
        log.draw(&run.out.join("loss.svg"))?;
    }
    log.summary(&state, true, None)
}

/// Asks a run to stop after its step: by what number, as of a signal, or 0 as long as nothing is asked. Any rank's is enough.
pub type Stop = AtomicI32;

/// Where a run begins.
#[derive(Serialize, Deserialize)]
struct Start {
    state: State,
    /// There is nothing left to do.
    finished: bool,
}

/// Every rank has to have something to do.
fn enough_passes(run: &Run, data: &Data, ranks: &Ranks) -> Result<()> {
    let passes = Cut::of(&run.settings, data.train.sequence).passes();
    if passes < ranks.size() {
        return Err(Diagnostic::error(
            "idle-ranks",
            format!("a step has fewer passes than there are ranks ({})", ranks.size()),
        )
        .found(format!("{passes} passes of {} tokens", run.settings.micro_batch))
        .help("lower `micro_batch`, or raise `tokens_per_step`")
        .into());
    }
    Ok(())
}

/// What rank 0 finds is where all begin, if they were asked for the same; and what rank 0 has to say about it.
fn agreed(run: &Run, config: &Config, data: &Data, ranks: &mut Ranks) -> Result<(Start, Vec<Diagnostic>)> {
    let (mut text, mut warnings) = (Vec::new(), Vec::new());
    if ranks.leads() {
        let state;
        (state, warnings) = ranks.alive_during(|| start(run, config, data))?;
        let finished = state.step >= run.settings.steps && storage::stamp(&run.out.join("model/config.json")).is_some();
        text = serde_json::to_vec(&Start { state, finished }).expect("plain data is always JSON");
    }
    let text = ranks.share(text)?;
    let start: Start = serde_json::from_slice(&text).map_err(|e| {
        Diagnostic::error("ranks", format!("what rank 0 says of the run cannot be read: {e}"))
            .help("all ranks have to run the same flanc")
    })?;
    let here = fresh(run, config, data);
    let there = &start.state;
    if (&there.plan, &there.model, &there.settings) != (&here.plan, &here.model, &here.settings) {
        return Err(Diagnostic::error("ranks", format!("rank {} was asked for another run than rank 0", ranks.rank()))
            .expected(told(there, &here))
            .found(told(&here, there))
            .help("give all ranks the same command, and let them see the same files")
            .into());
    }
    Ok((start, warnings))
}

/// A run that has not begun.
fn fresh(run: &Run, config: &Config, data: &Data) -> State {
    State {
        format: 2,
        step: 0,
        updates: 0,
        position: 0,
        skipped: 0,
        plan: data.plan.clone(),
        model: blake3::hash(config.to_json("float32").as_bytes()).to_hex().to_string(),
        settings: run.settings.clone(),
        files: Vec::new(),
        hash: String::new(),
    }
}

/// What tells one run from another, but for what is the same in `other`.
fn told(state: &State, other: &State) -> String {
    let said = |state: &State| {
        let settings = toml::Value::try_from(&state.settings).expect("settings are written as TOML");
        let mut said = vec![format!("data {}", start_of(&state.plan)), format!("model {}", start_of(&state.model))];
        list(&mut said, "", &settings);
        said
    };
    let others = said(other);
    let only: Vec<String> = said(state).into_iter().filter(|line| !others.contains(line)).collect();
    if only.is_empty() { "nothing of the kind".to_owned() } else { only.join(", ") }
}

/// Adds every value of a TOML table as `table.key = value`.
fn list(said: &mut Vec<String>, name: &str, value: &toml::Value) {
    match value.as_table() {
        Some(table) => {
            for (key, value) in table {
                list(said, &[name, if name.is_empty() { "" } else { "." }, key].concat(), value);
            }
        }
        None => said.push(format!("{name} = {value}")),
    }
}

/// Where the run begins: at its last checkpoint, if it is one of this run. And what is to be said of that.
fn start(run: &Run, config: &Config, data: &Data) -> Result<(State, Vec<Diagnostic>)> {
    let fresh = fresh(run, config, data);
    let (Some(mut found), damaged) = checkpoint::find(&run.out)? else { return Ok((fresh, Vec::new())) };
    let differs = if found.model != fresh.model {
        Some("another model")
    } else if found.plan != fresh.plan {
        Some("other data")
    } else if !found.settings.goes_on_as(&run.settings) {
        Some("other settings")
    } else {
        None
    };
    if let Some(what) = differs {
        return Err(Diagnostic::error("run-differs", format!("the run that is here has {what}"))
            .at(&run.out)
            .expected(told(&found, &fresh))
            .found(told(&fresh, &found))
            .help("give this run another --out, or remove the directory")
            .help("--recompute and another --micro-batch are fine, and with a constant rate more --steps")
            .into());
    }
    let mut warnings = checkpoint::set_aside(&run.out, &damaged, found.step)?;
    let [before, now] = [&found.settings, &run.settings].map(|settings| Cut::of(settings, data.train.sequence));
    if before.rows_per_pass != now.rows_per_pass && found.step < run.settings.steps {
        let message =
            "`micro_batch` is another than before: sums are cut differently, and losses may differ in last bits";
        let warning = Diagnostic::warning("other-passes", message).at(&run.out);
        let said = |cut: Cut| format!("passes of up to {} rows", cut.rows_per_pass);
        warnings.push(warning.expected(said(before)).found(said(now)));
    }
    found.settings = run.settings.clone();
    Ok((found, warnings))
}

/// Enough of a hash to tell two apart.
fn start_of(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// Takes the memory of a model and fills it: from the checkpoint, from the model it begins with, or with fresh weights.
fn prepare<O: Ops>(run: &Run, config: Config, data: &Data, state: &State, ranks: usize) -> Result<(Decoder, O)> {
    let (decoder, table) = lay_out::<O>(config, &run.settings, data.train.sequence, ranks);
    let mut ops = O::allocate(table)?;
    let positions = data.train.sequence.min(decoder.config.max_positions);
    ops.set_rotations(&decoder.config.rope(), positions);
    match &run.origin {
        _ if state.step > 0 => checkpoint::load(&run.out, state, &decoder, &mut ops)?,
        Origin::Checkpoint(directory) => weights::load(directory, &decoder, &mut ops)?,
        Origin::Fresh(_) | Origin::Tiny => weights::init(Seed(run.settings.seed), &decoder, &mut ops),
    }
    ops.set_steps_done(state.updates);
    Ok((decoder, ops))
}

/// Says where a run goes on whose backend has failed.
fn goes_on(run: &Run, failed: Diagnostic) -> Box<Diagnostic> {
    let failed = match checkpoint::find(&run.out) {
        Ok((Some(last), _)) => {
            failed.help(format!("the same command goes on after step {}, at the last checkpoint", last.step))
        }
        Ok((None, _)) => failed.help("there is no checkpoint yet: the same command begins anew"),
        Err(_) => failed, // the same command says what is wrong with them
    };
    failed.into()
}

/// Writes the finished model, and the tokenizer that belongs to it.
fn finish(run: &Run, tokenizer: &TokenizerEntry, decoder: &Decoder, ops: &impl Ops) -> Result<()> {
    let directory = run.out.join("model");
    let bos = tokenizer.bos.clone().map(|(id, text)| Control { id, text });
    let text = storage::read_text(&run.data.join(manifest::TOKENIZER))?;
    let text = beginning_with(text, bos.as_ref());
    storage::write(&directory.join(manifest::TOKENIZER), text.as_bytes())?;
    let ((end, end_text), (padding, padding_text)) = (&tokenizer.eos, &tokenizer.pad);
    // Without a class, transformers takes that of the model's type, which adds control tokens of its own, with ids that
    // the model does not have.
    let mut read_by = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end_text, "pad_token": padding_text,
        "model_max_length": decoder.config.max_positions, "clean_up_tokenization_spaces": false,
        "add_bos_token": bos.is_some(),
    });
    // What ends an answer now; config.json goes on saying what the model came with.
    let mut generates_to = json!({ "eos_token_id": end, "pad_token_id": padding });
    if let Some(Control { id, text }) = bos {
        (read_by["bos_token"], generates_to["bos_token_id"]) = (json!(text), json!(id));
    }
    for (name, value) in [("tokenizer_config.json", read_by), ("generation_config.json", generates_to)] {
        storage::write(&directory.join(name), format!("{value:#}\n").as_bytes())?;
    }
    weights::save(&directory, decoder, ops, run.settings.dtype)
}
