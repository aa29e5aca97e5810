//! `flanc train`: a model is fine-tuned on a compiled mixture.

mod signals;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use self::view::View;
use super::compile::{Sources, compile_into};
use super::device::{Chosen, Device, MasterWeights};
use super::{DataDirs, Definitions, Failure, Outcome, as_event, grouped, print, report};
use crate::compile;
use crate::diag::{Diagnostic, Result};
use crate::model::arena::{Group, Precision, megabytes};
use crate::model::cpu::Cpu;
use crate::model::cuda::context;
use crate::model::cuda::driver::Driver;
use crate::model::cuda::{Cuda, layout};
use crate::model::ranks::{Place, Ranks};
use crate::model::speed;
use crate::train::settings::Settings;
use crate::train::{Origin, Run, Stop, Summary, config, lay_out, open, train};

/// Fine-tune a language model on a compiled mixture
///
/// Reads the packed rows of `flanc compile` in their order, trains on targets only, and leaves a model that
/// transformers and vLLM load. A run that was stopped goes on where it was, to the bit, if the same command is given
/// again. Ctrl-C and SIGTERM have it stop after its step, with a checkpoint (exit code 130 or 143). Settings that neither
/// a file nor an option gives are FLAN's: Adafactor, learning rate 3e-5, 8,192 tokens a step, 30,000 steps.
#[derive(Args)]
#[command(after_help = "Examples:
  flanc train --recipe sample-held-out --init tiny --out run
  flanc train --recipe flan --data-dir ~/tensorflow_datasets --model ~/models/Qwen2.5-0.5B --out run
  flanc train --data out --out run --model ~/models/Qwen2.5-0.5B
  flanc train --data out --model ~/models/Qwen2.5-0.5B --plan")]
pub struct Train {
    #[command(flatten)]
    source: SourceOptions,
    /// Directory for checkpoints, log and the finished model
    #[arg(long, value_name = "RUN", required_unless_present = "plan")]
    out: Option<PathBuf>,
    #[command(flatten)]
    origin: OriginOptions,
    /// Settings of the run, see docs/TRAINING.md [default: FLAN's; with --init tiny those of data/tiny-model]
    #[arg(long, value_name = "TOML")]
    settings: Option<PathBuf>,
    /// Steps of the optimizer
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Learning rate
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Tokens of the rows that a step is made of
    #[arg(long, value_name = "N")]
    tokens_per_step: Option<usize>,
    /// Most tokens that go through the model at a time
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Keep one layer's activations at a time, and compute them again when they are needed
    #[arg(long)]
    recompute: bool,
    /// What weights are kept in from step to step [default: f32]
    #[arg(long, value_enum, value_name = "DTYPE")]
    master_weights: Option<MasterWeights>,
    /// Of fresh weights, and of draws by which weights in bf16 are rounded
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What computes
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print what memory goes where and whether it fits (exit code 1 if not), and do not train (a recipe is compiled: its rows
    /// count)
    #[arg(long)]
    plan: bool,
    /// Memory that --plan compares with, in GB [default: what this machine has free]
    #[arg(long, value_name = "GB", requires = "plan")]
    memory: Option<f64>,
    /// Print every event, and the summary or what went wrong, as a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten, next_help_heading = "With --recipe")]
    data_dirs: DataDirs,
    #[command(flatten, next_help_heading = "With --recipe")]
    definitions: Definitions,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SourceOptions {
    /// Directory that `flanc compile` wrote, of profile packed
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Compile this recipe first, into RUN/data: a file or the name of a bundled one. With --model, in the tokens of
    /// the tokenizer.json beside its weights
    #[arg(long, requires = "out")]
    recipe: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct OriginOptions {
    /// Directory of the model to begin with: config.json and safetensors
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Begin with fresh weights of this shape; `tiny` is a bundled one of a million parameters
    #[arg(long, value_name = "CONFIG.json")]
    init: Option<PathBuf>,
}

impl OriginOptions {
    fn origin(&self) -> Origin {
        match (&self.model, &self.init) {
            (Some(directory), _) => Origin::Checkpoint(directory.clone()),
            (None, Some(file)) if file.as_os_str() == "tiny" => Origin::Tiny,
            (None, Some(file)) => Origin::Fresh(file.clone()),
            (None, None) => unreachable!("clap requires one of them"),
        }
    }
}

impl Train {
    pub fn run(self) -> Outcome {
        let json = self.json;
        let outcome = self.train();
        if json && let Err(Failure::Diagnostics(list)) = &outcome {
            for diagnostic in list {
                print(&as_event("failed", diagnostic))?;
            }
        }
        outcome
    }

    fn train(self) -> Outcome {
        let origin = self.origin.origin();
        let settings = self.settings(&origin)?;
        let out = self.out.clone().unwrap_or_default();
        let place = Place::here()?;
        if self.plan {
            let run = Run { data: self.data(&out)?, out, origin, settings };
            return self.print_plan(&run, place.map_or(1, |place| place.size));
        }
        let mut ranks = match &place {
            None => Ranks::alone(),
            Some(place) => {
                let (host, port) = &place.first;
                let said = format!("rank {} of {}, with rank 0 at {host}:{port}", place.rank, place.size);
                let event = serde_json::json!({
                    "event": "rank", "rank": place.rank, "ranks": place.size, "first": format!("{host}:{port}"),
                });
                self.say(&said, &event)?;
                Ranks::connect(place)?
            }
        };
        let run = Run { data: self.data_of_all(&out, &mut ranks)?, out, origin, settings };
        let pool = super::threads(self.threads)?;
        let (device, said) = self.device.find()?;
        if let Some(said) = said {
            self.say(&said, &serde_json::json!({ "event": "device", "text": said }))?;
        }
        let stop = Arc::new(Stop::new(0));
        let json = self.json;
        signals::heed(&stop, move |signal| {
            let name = signals::name(signal);
            let said = format!("{name}: the run stops after its step, with a checkpoint; Ctrl-C now ends it at once");
            // A closed stdout is no reason not to stop.
            let _ = say(json, &said, &serde_json::json!({ "event": "stopping", "signal": signal, "text": said }));
        });
        let mut view = View::new(self.json);
        let summary = pool.install(|| match device {
            Chosen::Cpu => train::<Cpu>(&run, &mut ranks, &stop, &mut |event| view.show(event)),
            Chosen::Cuda => train::<Cuda<Driver>>(&run, &mut ranks, &stop, &mut |event| view.show(event)),
        });
        view.close();
        let summary = summary?;
        match (ranks.leads(), self.json, summary.stopped) {
            (true, true, _) => print(&format!("{}\n", serde_json::json!(summary)))?,
            (true, false, None) => print(&text(&summary, &run))?,
            _ => {}
        }
        summary.stopped.map_or(Ok(()), |signal| Err(Failure::Stopped(signal)))
    }

    fn say(&self, said: &str, event: &serde_json::Value) -> Outcome {
        say(self.json, said, event)
    }

    /// Where the data is; rank 0 compiles it, if a recipe is given, and the others wait.
    fn data_of_all(&self, out: &Path, ranks: &mut Ranks) -> std::result::Result<PathBuf, Failure> {
        match &self.source.recipe {
            Some(_) if !ranks.leads() => {
                ranks.share(Vec::new())?;
                Ok(compiled(out))
            }
            Some(_) => {
                let data = ranks.alive_during(|| self.data(out))?;
                ranks.share(Vec::new())?;
                Ok(data)
            }
            None => self.data(out),
        }
    }

    /// Where the data is; compiled now, if a recipe is given.
    fn data(&self, out: &Path) -> std::result::Result<PathBuf, Failure> {
        let (data, recipe) = match (&self.source.data, &self.source.recipe) {
            (Some(data), _) => return Ok(data.clone()),
            (None, Some(recipe)) => (compiled(out), recipe),
            (None, None) => unreachable!("clap requires one of them"),
        };
        let sources = Sources {
            recipe,
            data: &self.data_dirs,
            definitions: &self.definitions,
            max_bad_records: 0,
            model: self.origin.model.as_deref(),
        };
        let warn = |warnings: &[Diagnostic]| {
            report(warnings);
            for warning in warnings.iter().filter(|_| self.json) {
                let _ = print(&as_event("warning", warning)); // a closed stdout is said by what is printed next
            }
        };
        let (manifest, up_to_date) = match compile_into(&data, &sources, self.threads, warn)? {
            compile::Outcome::UpToDate(manifest) => (manifest, true),
            compile::Outcome::Compiled(compiled) => (compiled.manifest, false),
        };
        let (prompts, tokens) = manifest.mixture.get("train").map_or((0, 0), |train| (train.prompts, train.tokens));
        let done = if up_to_date { "is up to date" } else { "is compiled" };
        let said =
            format!("{}: {recipe} {done}, {} prompts, {} tokens", data.display(), grouped(prompts), grouped(tokens));
        let event = serde_json::json!({
            "event": "compiled", "recipe": recipe, "data": data, "up_to_date": up_to_date,
            "prompts": prompts, "tokens": tokens, "plan": manifest.plan, "tokenizer": manifest.tokenizer,
        });
        self.say(&said, &event)?;
        Ok(data)
    }

    fn settings(&self, origin: &Origin) -> Result<Settings> {
        let mut settings = match (&self.settings, origin) {
            (Some(path), _) => Settings::open(path)?,
            (None, Origin::Tiny) => Settings::tiny(),
            (None, _) => Settings::default(),
        };
        settings.steps = self.steps.unwrap_or(settings.steps);
        settings.tokens_per_step = self.tokens_per_step.unwrap_or(settings.tokens_per_step);
        settings.micro_batch = self.micro_batch.unwrap_or(settings.micro_batch);
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings.recompute |= self.recompute;
        settings.master_weights = self.master_weights.map_or(settings.master_weights, Precision::from);
        settings.optimizer.learning_rate = self.learning_rate.unwrap_or(settings.optimizer.learning_rate);
        settings.check()?;
        // What is typed ought to do something.
        let idle = if self.learning_rate.is_some() && settings.optimizer.relative_step {
            Some(("--learning-rate", "with `relative_step`, Adafactor takes its rate from the number of the step"))
        } else if self.seed.is_some() && self.origin.model.is_some() && settings.master_weights == Precision::F32 {
            Some((
                "--seed",
                "it is of fresh weights, and of how weights in bf16 are rounded; --model brings weights in f32",
            ))
        } else {
            None
        };
        match idle {
            Some((option, why)) => Err(Diagnostic::error("idle-option", format!("{option} would do nothing: {why}"))
                .help(format!("leave {option} out"))
                .into()),
            None => Ok(settings),
        }
    }

    fn print_plan(&self, run: &Run, ranks: usize) -> Outcome {
        let config = config(&run.origin)?;
        let data = open(run, &config)?;
        // A plan for a GPU needs none: only what is free on it is asked for, if there is one.
        let gpu = if self.device == Device::Cpu { None } else { context::find().ok() };
        let (settings, sequence) = (&run.settings, data.train.sequence);
        let (decoder, table, free, what) = if self.device == Device::Cuda || gpu.is_some() {
            let (decoder, table) = lay_out::<Cuda<Driver>>(config, settings, sequence, ranks);
            let free = gpu.map(|facts| facts.memory_free as u64);
            let what = match settings.master_weights {
                Precision::F32 => "in bf16, sums and weights in f32, on a GPU",
                Precision::Bf16 => "in bf16, sums in f32, on a GPU",
            };
            (decoder, layout::plan(table).0, free, what)
        } else {
            let (decoder, table) = lay_out::<Cpu>(config, settings, sequence, ranks);
            (decoder, table, speed::available(), "in f32 on the CPU")
        };
        let memory = self.memory.map(|gb| (gb * 1e9) as u64).or(free);
        let parameters = decoder.parameter_count(&table);
        if self.json {
            let groups = Group::ALL.map(|group| {
                serde_json::json!({ "group": group.name(), "bytes": table.bytes(group), "tensors": table.lines(group) })
            });
            let plan = serde_json::json!({
                "parameters": parameters, "tokens": decoder.layout.tokens, "groups": groups,
                "bytes": table.total_bytes(), "memory": memory, "fits": memory.map(|m| table.total_bytes() <= m),
            });
            print(&format!("{plan}\n"))?;
        } else {
            let tokens = decoder.layout.tokens;
            let plan = table.plan(memory);
            print(&format!("{parameters} parameters, {tokens} tokens at a time, {what}\n\n{plan}"))?;
        }
        match memory {
            Some(memory) if table.total_bytes() > memory => Err(does_not_fit(table.total_bytes(), memory).into()),
            _ => Ok(()),
        }
    }
}

/// Says on stderr what happens before a run is under way, and on stdout if JSON is asked for.
fn say(json: bool, said: &str, event: &serde_json::Value) -> Outcome {
    eprintln!("{said}");
    if json { print(&format!("{event}\n")) } else { Ok(()) }
}

/// Where a recipe is compiled to.
fn compiled(out: &Path) -> PathBuf {
    out.join("data")
}

fn text(summary: &Summary, run: &Run) -> String {
    let loss = |loss: Option<f64>| loss.map_or("–".to_owned(), |l| format!("{l:.4}"));
    let mut text = format!("{} steps, loss {} → {}", summary.steps, loss(summary.first_loss), loss(summary.last_loss));
    if let Some(validation) = summary.validation_loss {
        text.push_str(&format!(", validation {validation:.4}"));
    }
    if summary.skipped > 0 {
        text.push_str(&format!(", {} skipped", summary.skipped));
    }
    let out = run.out.display();
    if !summary.trained {
        text.push_str("; nothing was left to do");
    }
    text.push_str(&format!(
        "\nmodel: {out}/model, curve: {out}/loss.svg, log: {out}/log.jsonl, TensorBoard: {out}/tensorboard\n"
    ));
    text
}

fn does_not_fit(bytes: u64, memory: u64) -> Box<Diagnostic> {
    Diagnostic::error("does-not-fit", "the run does not fit into memory")
        .expected(format!("at most {}", megabytes(memory)))
        .found(megabytes(bytes))
        .help("lower --micro-batch, give --recompute, or take a smaller model")
        .into()
}
