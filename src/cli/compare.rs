//! `flanc eval compare`: a tuned model and one that is not, on the held-out tasks of a recipe.

use std::path::{Path, PathBuf};

use clap::Args;

use super::eval::{Asking, with_interval, write};
use super::tokens::of_model;
use super::{DataDirs, Definitions, Outcome, print, report};
use crate::compile::{self, Progress};
use crate::diag::{Diagnostic, Result};
use crate::eval::TaskScores;
use crate::eval::compare::{Comparison, WAYS, Way, compare};
use crate::eval::interval::METHOD;
use crate::mixture::{self, Contamination, Instructions, Output, Recipe, TokenizerChoice, Wrapper};
use crate::plan;

/// Compare a tuned model with one that is not, as the paper does
///
/// The untuned model goes on with plain texts, without and with exemplars; the tuned one is given instructions, without
/// and with exemplars. Compiles what the recipe holds out, in these four forms, below --out; a second run reuses it.
/// A model with a tokenizer.json beside its weights is asked in its own tokens.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc eval compare hold-out:sentiment --data-dir ~/tensorflow_datasets \\\n      \
                  --untuned ~/models/Qwen2.5-0.5B --tuned run/model --out comparison")]
pub struct Compare {
    /// Recipe that the tuned model was trained by, with tasks held out
    recipe: String,
    /// Directory of a model that was not tuned: config.json and safetensors
    #[arg(long, value_name = "DIR")]
    untuned: PathBuf,
    /// Directory of the tuned model
    #[arg(long, value_name = "DIR")]
    tuned: PathBuf,
    /// Directory for report.json, report.md and chart.svg, and the prompts
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Most exemplars before a prompt
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=64))]
    shots: u64,
    /// Unreadable records to skip before the run stops with their list
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_bad_records: u64,
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    data: DataDirs,
    #[command(flatten)]
    definitions: Definitions,
}

impl Compare {
    pub fn run(self) -> Outcome {
        let (catalogue, warnings) = self.definitions.load()?;
        report(&warnings);
        let (recipe, warnings) = mixture::find(&self.recipe, &catalogue)?;
        report(&warnings);
        let device = self.asking.device.choose()?;
        let pool = super::threads(self.asking.threads)?;
        // All prompts first: what is wrong with data or recipe shows before a model has worked for hours.
        for way in WAYS {
            let plan = plan::held_out(self.asked(way, &recipe)?, &catalogue, &self.data.data_dirs)?;
            if plan.tasks.is_empty() {
                return Err(nothing_held_out(&recipe).into());
            }
            self.asking.check_tasks(plan.tasks.iter().map(|planned| planned.task.name()))?;
            eprintln!("{}: prompts", way.title);
            pool.install(|| compile::compile(&plan, &self.prompts(way), self.max_bad_records, &Progress::default()))?;
        }
        let mut reports = Vec::new();
        for way in WAYS {
            let done = |task: &TaskScores| eprintln!("{}: {} is done", way.title, task.task);
            reports.push(pool.install(|| self.asking.evaluate(device, self.model(way), &self.prompts(way), done))?);
        }
        let name = Path::new(&recipe.name).file_name().unwrap_or_default().to_string_lossy();
        let comparison = compare(&name, self.shots as usize, self.asking.limit.get(), reports);
        let (text, json) = (markdown(&comparison), serde_json::json!(comparison));
        write(&self.out, "report.md", &text, &json, &comparison.chart())?;
        if self.asking.json {
            return print(&format!("{json}\n"));
        }
        print(&text)
    }

    fn model(&self, way: Way) -> &Path {
        if way.tuned { &self.tuned } else { &self.untuned }
    }

    fn prompts(&self, way: Way) -> PathBuf {
        self.out.join("prompts").join(way.name)
    }

    /// The recipe whose held-out prompts ask so: a tuned model is asked as the recipe trained it; one that is not gets
    /// the fields of each example, one below the other, and goes on where they end.
    fn asked(&self, way: Way, recipe: &Recipe) -> Result<Recipe> {
        let recipe = Recipe {
            shots: if way.exemplars { self.shots as usize } else { 0 },
            contamination: Contamination::Ignore,
            output: Output { mix: false, ..recipe.output },
            ..recipe.clone()
        };
        let own = |choice: &TokenizerChoice| of_model(self.model(way), choice);
        if way.tuned {
            let tokenizer = own(&recipe.tokenizer)?.unwrap_or(recipe.tokenizer);
            return Ok(Recipe { tokenizer, ..recipe });
        }
        // What the recipe says of control tokens is for the model that it trained.
        let tokenizer = match own(&TokenizerChoice::default())? {
            Some(own) => own,
            None => TokenizerChoice { separator: None, ..recipe.tokenizer },
        };
        let (eval_instructions, wrapper) = (Instructions::None, Wrapper::Continuation);
        Ok(Recipe { eval_instructions, wrapper, tokenizer, ..recipe })
    }
}

fn nothing_held_out(recipe: &Recipe) -> Box<Diagnostic> {
    Diagnostic::error("nothing-held-out", "the recipe holds no task out: there is nothing to compare on")
        .at(Path::new(&recipe.name))
        .help("name tasks or clusters under `hold_out`, or take a bundled recipe such as `hold-out:sentiment`")
        .into()
}

/// The report, as a table that reads well as text too.
fn markdown(comparison: &Comparison) -> String {
    let mut header = vec!["".to_owned(), "metric".to_owned()];
    header.extend(comparison.columns.iter().map(|column| column.title.to_owned()));
    header.push("tuned, best template".to_owned());
    let tuned = WAYS.iter().position(|way| way.tuned && !way.exemplars).unwrap_or(0);
    let mut rows = vec![header];
    for cluster in &comparison.clusters {
        let mut row = vec![format!("**{}**", cluster.cluster)];
        if cluster.tasks > 1 {
            row.push(format!("mean of {}", cluster.tasks));
            row.extend(cluster.scores.iter().map(|score| with_interval(score.as_ref())));
        }
        row.resize(rows[0].len(), String::new());
        rows.push(row);
        for task in comparison.tasks.iter().filter(|task| task.cluster == cluster.cluster) {
            let mut row = vec![task.task.clone(), task.metric.title().to_owned()];
            row.extend(task.scores.iter().map(|score| with_interval(score.as_ref())));
            row.push(with_interval(task.best_on_dev[tuned].as_ref().map(|best| &best.test)));
            rows.push(row);
        }
    }
    let mut text = format!("# Held-out tasks of {}\n\n", comparison.recipe);
    for column in &comparison.columns {
        text.push_str(&format!("- {}: `{}`\n", column.title, column.model));
    }
    text.push_str(&format!(
        "\nMeans over templates, of up to {} prompts each; up to {} exemplars. The last column is the score on test rows of \
         the template that is best on validation rows. Means of clusters are over the tasks that all columns have. \
         Intervals: {METHOD}.\n\n",
        comparison.limit, comparison.shots
    ));
    text.push_str(&aligned(&rows));
    let signatures: Vec<String> = comparison
        .reports
        .first()
        .iter()
        .flat_map(|report| &report.signatures)
        .map(|(metric, signature)| format!("- {}: `{signature}`\n", metric.title()))
        .collect();
    text.push_str(&format!("\n{}", signatures.concat()));
    text
}

/// A Markdown table whose columns stand below each other.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let padded = |(c, cell): (usize, &String)| format!("{cell:<0$}", width(c));
        text.push_str(&line(row.iter().enumerate().map(padded).collect()));
        if number == 0 {
            text.push_str(&line((0..row.len()).map(|c| "-".repeat(width(c).max(3))).collect()));
        }
    }
    text
}
