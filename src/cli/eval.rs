//! `flanc eval`: a model on the held-out tasks of a compile.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::compare::Compare;
use super::device::{Chosen, Device};
use super::{Outcome, grouped, print};
use crate::diag::{Diagnostic, Result, listing};
use crate::eval::chart::{self, Chart};
use crate::eval::interval::Score;
use crate::eval::metrics::Metric;
use crate::eval::{Evaluation, Report, Scores, TaskScores, evaluate};
use crate::model::cpu::Cpu;
use crate::model::cuda::Cuda;
use crate::model::cuda::driver::Driver;
use crate::storage;

/// Score a model on the held-out tasks of a compile
///
/// Prompts with options by the likelihood of each option, in all and a token; the others by greedy generation, exact
/// match, F1, BLEU, chrF and ROUGE. Every template by itself with a 95 % interval, the mean over templates, and the
/// template that is best on the task's validation rows.
#[derive(Args)]
#[command(
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  flanc eval --model run/model --data out
  flanc eval compare hold-out:sentiment --data-dir ~/tensorflow_datasets --untuned ~/models/Qwen2.5-0.5B \\
      --tuned run/model --out comparison"
)]
pub struct Eval {
    #[command(subcommand)]
    command: Option<Command>,
    /// Directory of the model: config.json and safetensors
    #[arg(long, value_name = "DIR", required = true)]
    model: Option<PathBuf>,
    /// Directory that `flanc compile` wrote, with tasks held out
    #[arg(long, value_name = "DIR", required = true)]
    data: Option<PathBuf>,
    /// Directory for report.json, report.txt and chart.svg
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Subcommand)]
enum Command {
    Compare(Compare),
}

/// How questions are asked, of one model or several.
#[derive(Args)]
pub struct Asking {
    /// Only this task; may be given more than once
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// Most prompts of a template: the first ones of each split
    #[arg(long, value_name = "N", default_value = "200")]
    pub limit: NonZeroUsize,
    /// Most tokens of a generated answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    longest_answer: usize,
    /// Tokens that go through the model at a time, if no prompt is longer; keys and values of four times as many are kept
    #[arg(long, value_name = "N", default_value_t = 4096)]
    micro_batch: usize,
    /// What computes
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Asking {
    /// Refuses tasks that are not among those held out.
    pub fn check_tasks<'n>(&self, held_out: impl Iterator<Item = &'n str> + Clone) -> Result<()> {
        match self.tasks.iter().find(|task| held_out.clone().all(|name| name != *task)) {
            Some(unknown) => {
                Err(Diagnostic::error("unknown-task", format!("the recipe does not hold out a task `{unknown}`"))
                    .found(listing(held_out.clone()))
                    .did_you_mean(unknown, held_out)
                    .into())
            }
            None => Ok(()),
        }
    }

    /// Asks one model the questions of one compile.
    pub fn evaluate(&self, device: Chosen, model: &Path, data: &Path, done: impl FnMut(&TaskScores)) -> Result<Report> {
        let evaluation = Evaluation {
            model: model.to_owned(),
            data: data.to_owned(),
            tasks: self.tasks.clone(),
            limit: self.limit.get(),
            longest_answer: self.longest_answer,
            micro_batch: self.micro_batch,
        };
        match device {
            Chosen::Cpu => evaluate::<Cpu>(&evaluation, done),
            Chosen::Cuda => evaluate::<Cuda<Driver>>(&evaluation, done),
        }
    }
}

impl Eval {
    pub fn run(self) -> Outcome {
        let (model, data) = match (self.command, &self.model, &self.data) {
            (None, Some(model), Some(data)) => (model, data),
            (Some(Command::Compare(compare)), ..) => return compare.run(),
            // Without a subcommand, clap asks for both.
            (None, ..) => return Ok(()),
        };
        let device = self.asking.device.choose()?;
        let pool = super::threads(self.asking.threads)?;
        let done = |task: &TaskScores| eprintln!("{} is done", task.task);
        let report = pool.install(|| self.asking.evaluate(device, model, data, done))?;
        let (text, json) = (table(&report), serde_json::json!(report));
        if let Some(out) = &self.out {
            write(out, "report.txt", &text, &json, &report.chart())?;
        }
        if self.asking.json {
            return print(&format!("{json}\n"));
        }
        print(&text)
    }
}

/// Writes a report in all its forms.
pub fn write(out: &Path, name: &str, text: &str, json: &serde_json::Value, chart: &Chart) -> Result<()> {
    storage::write(&out.join("report.json"), format!("{json:#}\n").as_bytes())?;
    storage::write(&out.join(name), text.as_bytes())?;
    storage::write(&out.join("chart.svg"), chart::svg(chart).as_bytes())
}

/// `71.3 [64.0, 77.9]`, in hundredths.
pub fn with_interval(score: Option<&Score>) -> String {
    score.map_or("–".to_owned(), |s| format!("{:.1} [{:.1}, {:.1}]", 100.0 * s.value, 100.0 * s.low, 100.0 * s.high))
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let width = report.tasks.iter().flat_map(|t| &t.test.templates).map(|t| t.template.len()).max().unwrap_or(0) + 4;
    for task in &report.tasks {
        text.push_str(&format!("{} ({}), by {}\n", task.task, task.cluster, task.headline.title()));
        let metrics: Vec<Metric> = task.test.mean.keys().copied().collect();
        let row = |name: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>20}")).collect();
            format!("  {name:<width$}{cells}\n")
        };
        let scores = |scores: &Scores| metrics.iter().map(|metric| with_interval(scores.get(metric))).collect();
        text.push_str(&row("", metrics.iter().map(|metric| metric.title().to_owned()).collect()));
        for template in &task.test.templates {
            text.push_str(&row(&template.template, scores(&template.scores)));
        }
        text.push_str(&row("mean", scores(&task.test.mean)));
        if let Some(best) = &task.best_on_dev {
            let validation = 100.0 * best.validation.value;
            let score = with_interval(Some(&best.test));
            text.push_str(&format!("  best on validation rows ({validation:.1}): {}, {score}\n", best.template));
        }
        if task.test.too_long > 0 {
            text.push_str(&format!("  {} prompts are longer than the model takes: left out\n", task.test.too_long));
        }
        text.push('\n');
    }
    for cluster in &report.clusters {
        let tasks = if cluster.tasks == 1 { "1 task".to_owned() } else { format!("{} tasks", cluster.tasks) };
        let score = with_interval(Some(&cluster.score));
        text.push_str(&format!("{}, {tasks}: {score}\n", cluster.cluster));
    }
    text.push_str(&format!("\nof up to {} prompts of each template (--limit)\n", grouped(report.limit as u64)));
    text
}
