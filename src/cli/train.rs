//! `flanc train`: a model is fine-tuned on a compiled mixture.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::device::{Chosen, Device};
use super::{Outcome, print};
use crate::diag::Result;
use crate::model::arena::{Group, megabytes};
use crate::model::cpu::Cpu;
use crate::model::cuda::driver::{self, Driver};
use crate::model::cuda::{Cuda, layout};
use crate::storage;
use crate::train::settings::Settings;
use crate::train::{Event, Origin, Run, Summary, config, lay_out, open, train};

/// Fine-tune a language model on a compiled mixture
///
/// Reads the packed rows of `flanc compile` in their order, trains on targets only, and leaves a model that
/// transformers and vLLM load. A run that was stopped goes on where it was, to the bit, if the same command is given
/// again. Settings that neither a file nor an option gives are FLAN's: Adafactor, learning rate 3e-5, 8,192 tokens a
/// step, 30,000 steps.
#[derive(Args)]
#[command(after_help = "Examples:
  flanc train --data out --out run --init data/tiny-model/config.json --settings data/tiny-model/train.toml
  flanc train --data out --out run --model ~/models/Qwen2.5-0.5B --plan")]
pub struct Train {
    /// Directory that `flanc compile` wrote, of profile packed
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Directory for checkpoints, log and the finished model
    #[arg(long, value_name = "RUN", required_unless_present = "plan")]
    out: Option<PathBuf>,
    #[command(flatten)]
    origin: OriginOptions,
    /// Settings of the run, see docs/TRAINING.md
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
    /// Of fresh weights
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What computes
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print what memory goes where and whether it fits, and do nothing
    #[arg(long)]
    plan: bool,
    /// Memory that --plan compares with, in GB [default: what this machine has free]
    #[arg(long, value_name = "GB", requires = "plan")]
    memory: Option<f64>,
    /// Print every event, and the summary, as a JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct OriginOptions {
    /// Directory of the model to begin with: config.json and safetensors
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Begin with fresh weights of this shape
    #[arg(long, value_name = "CONFIG.json")]
    init: Option<PathBuf>,
}

impl Train {
    pub fn run(self) -> Outcome {
        let origin = match (&self.origin.model, &self.origin.init) {
            (Some(directory), _) => Origin::Checkpoint(directory.clone()),
            (None, Some(file)) => Origin::Fresh(file.clone()),
            (None, None) => unreachable!("clap requires one of them"),
        };
        let out = self.out.clone().unwrap_or_default();
        let run = Run { data: self.data.clone(), out, origin, settings: self.settings()? };
        if self.plan {
            return self.print_plan(&run);
        }
        let pool = super::threads(self.threads)?;
        let device = self.device.choose()?;
        let mut view = View { bar: None, json: self.json, last: None };
        let summary = pool.install(|| match device {
            Chosen::Cpu => train::<Cpu>(&run, &mut |event| view.show(event)),
            Chosen::Cuda => train::<Cuda<Driver>>(&run, &mut |event| view.show(event)),
        });
        if let Some(bar) = &view.bar {
            bar.finish_and_clear();
        }
        let summary = summary?;
        if self.json {
            return print(&format!("{}\n", serde_json::json!(summary)));
        }
        print(&text(&summary, &run))
    }

    fn settings(&self) -> Result<Settings> {
        let mut settings = match &self.settings {
            Some(path) => Settings::open(path)?,
            None => Settings::default(),
        };
        settings.steps = self.steps.unwrap_or(settings.steps);
        settings.tokens_per_step = self.tokens_per_step.unwrap_or(settings.tokens_per_step);
        settings.micro_batch = self.micro_batch.unwrap_or(settings.micro_batch);
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings.recompute |= self.recompute;
        settings.optimizer.learning_rate = self.learning_rate.unwrap_or(settings.optimizer.learning_rate);
        settings.check()?;
        Ok(settings)
    }

    fn print_plan(&self, run: &Run) -> Outcome {
        let config = config(&run.origin)?;
        let data = open(run, &config)?;
        let (decoder, table) = lay_out(config, &run.settings, data.train.sequence);
        // A plan for a GPU needs none: only what is free on it is asked for, if there is one.
        let gpu = if self.device == Device::Cpu { None } else { driver::find().ok() };
        let on_gpu = self.device == Device::Cuda || gpu.is_some();
        let (table, free, what) = if on_gpu {
            let free = gpu.map(|facts| facts.memory_free as u64);
            (layout::plan(table).0, free, "in bf16, sums and weights in f32, on a GPU")
        } else {
            (table, free_memory(), "in f32 on the CPU")
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
            return print(&format!("{plan}\n"));
        }
        print(&format!(
            "{parameters} parameters, {} tokens at a time, {what}\n\n{}",
            decoder.layout.tokens,
            table.plan(memory)
        ))
    }
}

/// Memory that could be taken without swapping, where the system says so.
fn free_memory() -> Option<u64> {
    let text = storage::read_text("/proc/meminfo".as_ref()).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Shows events: as JSON on stdout, as a bar on a terminal, else a line now and then.
struct View {
    bar: Option<ProgressBar>,
    json: bool,
    last: Option<std::time::Instant>,
}

impl View {
    fn show(&mut self, event: &Event) {
        if self.json {
            // A closed stdout is no reason to stop training.
            let _ = print(&format!("{}\n", serde_json::json!(event)));
        }
        match event {
            Event::Started { step, steps, parameters, bytes, .. } => {
                let said = format!("{parameters} parameters, {} of memory", megabytes(*bytes));
                self.line(if *step > 0 { format!("{said}; goes on after step {step}") } else { said });
                if std::io::stderr().is_terminal() {
                    let bar = ProgressBar::new(*steps).with_position(*step);
                    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg} ETA {eta}");
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
                    bar.reset_eta();
                    self.bar = Some(bar);
                }
            }
            Event::Step { step, loss, tokens_per_second, .. } => {
                let said = format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s");
                match &self.bar {
                    Some(bar) => {
                        bar.set_position(*step);
                        bar.set_message(said);
                    }
                    None if self.last.is_none_or(|l| l.elapsed() > Duration::from_secs(10)) => {
                        self.last = Some(std::time::Instant::now());
                        self.line(format!("step {step}: {said}"));
                    }
                    None => {}
                }
            }
            Event::Skipped { step, reason, rows } => {
                self.line(format!("step {step} was skipped: {reason} (rows {}..{})", rows.0, rows.1));
            }
            Event::Validation { step, loss, targets } => {
                self.line(format!("step {step}: validation loss {loss:.4} ({targets} tokens)"));
            }
            Event::Checkpoint { .. } | Event::Finished { .. } => {}
        }
    }

    fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
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
    text.push_str(&format!("\nmodel: {out}/model, curve: {out}/loss.svg, log: {out}/log.jsonl\n"));
    text
}
