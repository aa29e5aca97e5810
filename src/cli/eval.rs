//! `flanc eval`: a model on the held-out tasks of a compile.

use std::path::PathBuf;

use clap::Args;

use super::device::{Chosen, Device};
use super::{Outcome, print};
use crate::eval::metrics::Mean;
use crate::eval::{Evaluation, Report, TaskScores, evaluate};
use crate::model::cpu::Cpu;
use crate::model::cuda::Cuda;
use crate::model::cuda::driver::Driver;

/// Score a model on the held-out tasks of a compile
///
/// Prompts with options by the likelihood of each option, in all and a token; the others by greedy generation, exact
/// match and F1. Every template by itself with a 95 % interval, and the mean over templates.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc eval --model run/model --data out")]
pub struct Eval {
    /// Directory of the model: config.json and safetensors
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Directory that `flanc compile` wrote, with tasks held out
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only this task; may be given more than once
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// Most prompts of a template
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
    /// Most tokens of a generated answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    longest_answer: usize,
    /// Tokens that go through the model at a time
    #[arg(long, value_name = "N", default_value_t = 4096)]
    micro_batch: usize,
    /// What computes
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub fn run(self) -> Outcome {
        let pool = super::threads(self.threads)?;
        let evaluation = Evaluation {
            model: self.model,
            data: self.data,
            tasks: self.tasks,
            limit: self.limit,
            longest_answer: self.longest_answer,
            micro_batch: self.micro_batch,
        };
        let device = self.device.choose()?;
        let done = |task: &TaskScores| eprintln!("{} {} is done", task.task, task.split);
        let report = pool.install(|| match device {
            Chosen::Cpu => evaluate::<Cpu>(&evaluation, done),
            Chosen::Cuda => evaluate::<Cuda<Driver>>(&evaluation, done),
        })?;
        if self.json {
            return print(&format!("{}\n", serde_json::json!(report)));
        }
        print(&table(&report))
    }
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    let row = |name: &str, cells: [String; 4]| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>22}")).collect();
        format!("{name:<36}{cells}\n")
    };
    text.push_str(&row("", ["accuracy", "a token", "exact match", "F1"].map(str::to_owned)));
    let interval = |mean: Option<Mean>| {
        mean.map_or("–".to_owned(), |m| {
            format!("{:.1} [{:.1}, {:.1}]", 100.0 * m.mean, 100.0 * m.low, 100.0 * m.high)
        })
    };
    for task in &report.tasks {
        text.push_str(&format!("{} {} ({})\n", task.task, task.split, task.cluster));
        for (template, scores) in &task.templates {
            let cells = [scores.accuracy, scores.accuracy_normalised, scores.exact_match, scores.f1].map(interval);
            text.push_str(&row(&format!("  {template}"), cells));
        }
        let mean = |name: &str| task.mean.get(name).map_or("–".to_owned(), |m| format!("{:.1}", 100.0 * m));
        text.push_str(&row("  mean", ["accuracy", "accuracy_normalised", "exact_match", "f1"].map(mean)));
        if task.too_long > 0 {
            text.push_str(&format!("  {} prompts are longer than the model takes and were left out\n", task.too_long));
        }
    }
    text
}
