//! Training: packed shards and a model in, a fine-tuned model out.
//!
//! [`train`] is the table of contents. What a run leaves in its directory:
//!
//! | file | |
//! | --- | --- |
//! | `model/` | the finished model, for transformers and vLLM, and its tokenizer |
//! | `log.jsonl` | an object for every [`Event`]: each step with its loss, validations, what was skipped |
//! | `loss.svg` | the curve |
//! | `checkpoints/` | see [`checkpoint`] |
//!
//! The same command goes on where a stopped run was, to the bit. A step is weighted by its target tokens, not by
//! passes or rows: how a step is cut into passes changes no gradient but by rounding.

pub mod checkpoint;
pub mod curve;
pub mod data;
pub mod settings;

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::checkpoint::State;
use self::data::{Data, Limits, Step};
use self::settings::Settings;
use crate::diag::{Diagnostic, Result};
use crate::model::arena::Table;
use crate::model::config::Config;
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::{Batch, Ops};
use crate::model::weights;
use crate::seed::Seed;
use crate::shard::manifest;
use crate::storage;

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory with `config.json` and safetensors.
    Checkpoint(PathBuf),
    /// A `config.json`; weights are drawn.
    Fresh(PathBuf),
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Run {
    /// Directory that `flanc compile` wrote.
    pub data: PathBuf,
    pub out: PathBuf,
    pub origin: Origin,
    pub settings: Settings,
}

/// What happens in a run, as it is logged and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        step: u64,
        steps: u64,
        parameters: usize,
        bytes: u64,
        rows: u64,
        rows_per_step: usize,
        data: String,
    },
    Step {
        step: u64,
        loss: f64,
        targets: usize,
        tokens: usize,
        rate: f64,
        norm: f64,
        epoch: f64,
        tokens_per_second: f64,
    },
    Skipped {
        step: u64,
        reason: String,
        rows: (u64, u64),
    },
    Validation {
        step: u64,
        loss: f64,
        targets: usize,
    },
    Checkpoint {
        step: u64,
    },
    Finished {
        step: u64,
        seconds: f64,
    },
}

impl Event {
    fn step(&self) -> u64 {
        match self {
            Event::Started { step, .. }
            | Event::Step { step, .. }
            | Event::Skipped { step, .. }
            | Event::Validation { step, .. }
            | Event::Checkpoint { step }
            | Event::Finished { step, .. } => *step,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// False if there was nothing left to do.
    pub trained: bool,
    pub steps: u64,
    pub skipped: u64,
    /// Mean of the first and of the last steps of the log, up to ten each.
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
    pub validation_loss: Option<f64>,
}

/// Rows of a logits chunk: large enough for the products, small beside the activations.
const LOGIT_ROWS: usize = 512;

/// Reads the configuration of a run's model.
pub fn config(origin: &Origin) -> Result<Config> {
    match origin {
        Origin::Checkpoint(directory) => weights::config(directory),
        Origin::Fresh(file) => Config::open(file),
    }
}

/// A model as a run will have it: nothing is allocated.
pub fn lay_out(config: Config, settings: &Settings, sequence: usize) -> (Decoder, Table) {
    let purpose = Purpose::Train { recompute: settings.recompute };
    let tokens = rows_per_pass(settings, sequence) * sequence;
    Decoder::lay_out(config, Layout { tokens, logit_rows: LOGIT_ROWS.min(tokens), purpose })
}

/// Opens the data of a run for its model.
pub fn open(run: &Run, config: &Config) -> Result<Data> {
    run.settings.check()?;
    Data::open(&run.data, Limits { vocabulary: config.vocabulary, positions: config.max_positions })
}

fn rows_per_pass(settings: &Settings, sequence: usize) -> usize {
    let rows = (settings.tokens_per_step / sequence.max(1)).max(1);
    (settings.micro_batch / sequence.max(1)).clamp(1, rows)
}

/// Trains, or goes on training.
pub fn train<O: Ops + Send>(run: &Run, report: &mut (dyn FnMut(&Event) + Send)) -> Result<Summary> {
    let _lock = storage::lock(&run.out.join("run.lock"))?;
    let config = config(&run.origin)?;
    let data = open(run, &config)?;
    let mut state = start(run, &config, &data)?;
    let log = Log { path: run.out.join("log.jsonl") };
    if state.step >= run.settings.steps && storage::stamp(&run.out.join("model/config.json")).is_some() {
        return log.summary(&state, false);
    }
    let (decoder, mut ops) = prepare::<O>(run, config, &data, &state)?;
    log.cut(state.step)?;
    let mut say = |event: Event| -> Result<()> {
        log.write(&event)?;
        report(&event);
        Ok(())
    };
    say(Event::Started {
        step: state.step,
        steps: run.settings.steps,
        parameters: decoder.parameter_count(ops.table()),
        bytes: ops.table().total_bytes(),
        rows: data.train.rows,
        rows_per_step: data.train.rows_per_step(run.settings.tokens_per_step),
        data: data.plan.clone(),
    })?;
    let began = Instant::now();
    steps(run, &data, &decoder, &mut ops, &mut state, &mut say)?;
    finish(run, &decoder, &ops)?;
    say(Event::Finished { step: state.step, seconds: began.elapsed().as_secs_f64() })?;
    log.draw(&run.out.join("loss.svg"))?;
    log.summary(&state, true)
}

/// Where the run begins: at its last checkpoint, if it is one of this run.
fn start(run: &Run, config: &Config, data: &Data) -> Result<State> {
    let model = blake3::hash(config.to_json("float32").as_bytes()).to_hex().to_string();
    let fresh = State {
        format: 1,
        step: 0,
        updates: 0,
        position: 0,
        skipped: 0,
        plan: data.plan.clone(),
        model,
        settings: run.settings.clone(),
        files: Vec::new(),
    };
    let Some(mut found) = checkpoint::find(&run.out)? else { return Ok(fresh) };
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
        let told = |state: &State| {
            format!("plan {}, model {}, {:?}", start_of(&state.plan), start_of(&state.model), state.settings)
        };
        let (there, asked) = (told(&found), told(&fresh));
        return Err(Diagnostic::error("run-differs", format!("the run that is here has {what}"))
            .at(&run.out)
            .expected(there)
            .found(asked)
            .help("give this run another --out, or remove the directory; more --steps are fine with a constant rate")
            .into());
    }
    found.settings = run.settings.clone();
    Ok(found)
}

/// Enough of a hash to tell two apart.
fn start_of(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// Takes the memory of a model and fills it: from the checkpoint, from the model it begins with, or with fresh weights.
fn prepare<O: Ops>(run: &Run, config: Config, data: &Data, state: &State) -> Result<(Decoder, O)> {
    let (decoder, table) = lay_out(config, &run.settings, data.train.sequence);
    let mut ops = O::allocate(table)?;
    let positions = data.train.sequence.min(decoder.config.max_positions);
    ops.set_rotations(&decoder.config.rotation_frequencies(), positions);
    match &run.origin {
        _ if state.step > 0 => checkpoint::load(&run.out, state.step, &decoder, &mut ops)?,
        Origin::Checkpoint(directory) => weights::load(directory, &decoder, &mut ops)?,
        Origin::Fresh(_) => weights::init(Seed(run.settings.seed), &decoder, &mut ops),
    }
    Ok((decoder, ops))
}

/// Steps that are read ahead.
const AHEAD: usize = 2;

/// The loop: takes steps from the data until there are enough.
fn steps<O: Ops + Send>(
    run: &Run,
    data: &Data,
    decoder: &Decoder,
    ops: &mut O,
    state: &mut State,
    say: &mut (dyn FnMut(Event) -> Result<()> + Send),
) -> Result<()> {
    let settings = &run.settings;
    let rows = data.train.rows_per_step(settings.tokens_per_step);
    let per_pass = rows_per_pass(settings, data.train.sequence);
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        // Ends when the receiver is gone.
        let position = state.position;
        scope.spawn(move || {
            let mut source = data.train.rows_from(position);
            while sender.send(Step::read(&mut source, rows, per_pass)).is_ok() {}
        });
        let receiver = receiver; // dropped on every way out, before the scope waits for the thread
        while state.step < settings.steps {
            let began = Instant::now();
            let step = receiver.recv().expect("the reader lives as long as it is listened to")?;
            let from = state.position;
            state.position += rows as u64;
            let done = one_step(settings, decoder, ops, state, &step);
            state.step += 1;
            match done {
                Ok(done) => {
                    state.updates += 1;
                    say(Event::Step {
                        step: state.step,
                        loss: done.loss,
                        targets: step.targets(),
                        tokens: step.tokens(),
                        rate: done.rate,
                        norm: done.norm,
                        epoch: state.position as f64 / data.train.rows as f64,
                        tokens_per_second: step.tokens() as f64 / began.elapsed().as_secs_f64().max(1e-9),
                    })?;
                }
                Err(reason) => {
                    state.skipped += 1;
                    let rows = (from % data.train.rows, state.position % data.train.rows);
                    say(Event::Skipped { step: state.step, reason: reason.clone(), rows })?;
                    if state.skipped > settings.max_skipped {
                        return Err(Diagnostic::error(
                            "too-many-skipped",
                            format!("{} steps were skipped", state.skipped),
                        )
                        .at(&run.out)
                        .found(format!("the last one: {reason}"))
                        .expected(format!("at most {} (`max_skipped`)", settings.max_skipped))
                        .help(
                            "NaN or Inf: lower the learning rate, or give `max_norm`; log.jsonl names the rows of each",
                        )
                        .into());
                    }
                }
            }
            let last = state.step == settings.steps;
            if (last || state.step.is_multiple_of(settings.validate_every))
                && let Some(validation) = validate(settings, data, decoder, ops)?
            {
                say(Event::Validation { step: state.step, loss: validation.0, targets: validation.1 })?;
            }
            if last || state.step.is_multiple_of(settings.checkpoint_every) {
                checkpoint::save(&run.out, state.clone(), decoder, ops, settings.keep)?;
                say(Event::Checkpoint { step: state.step })?;
            }
        }
        Ok(())
    })
}

struct Done {
    loss: f64,
    rate: f64,
    norm: f64,
}

/// One step of the optimizer, or why it was not done; the weights are then as they were.
fn one_step(
    settings: &Settings,
    decoder: &Decoder,
    ops: &mut impl Ops,
    state: &State,
    step: &Step,
) -> Result<Done, String> {
    let targets = step.targets();
    if targets == 0 {
        return Err("no token of it is trained".to_owned());
    }
    decoder.zero_gradients(ops);
    let passes = step.passes.iter().filter(|p| !p.targets.is_empty());
    let losses: Vec<_> = passes.map(|pass| decoder.begin(ops, pass, 1.0 / targets as f32)).collect();
    let norm = decoder.gradient_norm(ops); // the only time in a step that is waited for the backend
    let sum: f64 = losses.into_iter().map(|losses| total(&ops.arrived(losses))).sum();
    let loss = sum / targets as f64;
    if !loss.is_finite() {
        return Err(format!("its loss is {loss}"));
    }
    if !norm.finite {
        return Err(format!("its loss is {loss}, but a gradient is NaN or infinite"));
    }
    let scale = settings.max_norm.map_or(1.0, |most| (most / norm.value.max(1e-12)).min(1.0));
    let update = settings.optimizer_step(state.step, state.updates + 1, scale);
    decoder.update(ops, &update);
    Ok(Done { loss, rate: update.rate, norm: norm.value })
}

fn total(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum()
}

/// Mean loss of the first validation rows, and of how many tokens.
fn validate(settings: &Settings, data: &Data, decoder: &Decoder, ops: &mut impl Ops) -> Result<Option<(f64, usize)>> {
    let Some(shards) = &data.validation else { return Ok(None) };
    let count = settings.validate_rows.min(shards.rows as usize);
    let mut rows = shards.rows_from(0);
    let (mut sum, mut targets) = (0.0, 0);
    for _ in 0..count {
        let mut batch = Batch::default();
        rows.next_into(&mut batch)?;
        if !batch.targets.is_empty() {
            sum += total(&decoder.score(ops, &batch));
            targets += batch.targets.len();
        }
    }
    Ok((targets > 0).then(|| (sum / targets as f64, targets)))
}

/// Writes the finished model, and the tokenizer that belongs to it.
fn finish(run: &Run, decoder: &Decoder, ops: &impl Ops) -> Result<()> {
    let directory = run.out.join("model");
    let tokenizer = storage::map(&run.data.join(manifest::TOKENIZER))?;
    storage::write(&directory.join(manifest::TOKENIZER), &tokenizer)?;
    weights::save(&directory, decoder, ops, run.settings.dtype)
}

/// `log.jsonl`.
struct Log {
    path: PathBuf,
}

impl Log {
    fn write(&self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).expect("plain data is always JSON") + "\n";
        storage::append(&self.path, line.as_bytes())
    }

    /// Lines so far, with what they say; a last one that was cut off is left out.
    fn lines(&self) -> Result<Vec<(String, Event)>> {
        if storage::stamp(&self.path).is_none() {
            return Ok(Vec::new());
        }
        let text = storage::read_text(&self.path)?;
        Ok(text.lines().filter_map(|line| Some((line.to_owned(), serde_json::from_str(line).ok()?))).collect())
    }

    /// Forgets what was done after `step`: it is done again.
    fn cut(&self, step: u64) -> Result<()> {
        let kept = if step == 0 { Vec::new() } else { self.lines()? };
        // Lines stay as they are: a number that is read and written again may lose its last bit.
        let kept = kept.into_iter().filter(|(_, event)| event.step() <= step);
        let text: String = kept.map(|(line, _)| line + "\n").collect();
        storage::write(&self.path, text.as_bytes())
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

    fn draw(&self, path: &Path) -> Result<()> {
        let (train, validation) = self.curves()?;
        storage::write(path, curve::svg(&train, &validation).as_bytes())
    }

    fn summary(&self, state: &State, trained: bool) -> Result<Summary> {
        let (train, validation) = self.curves()?;
        let mean = |points: &[(u64, f64)]| {
            (!points.is_empty()).then(|| points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64)
        };
        Ok(Summary {
            trained,
            steps: state.step,
            skipped: state.skipped,
            first_loss: mean(&train[..train.len().min(10)]),
            last_loss: mean(&train[train.len() - train.len().min(10)..]),
            validation_loss: validation.last().map(|p| p.1),
        })
    }
}
