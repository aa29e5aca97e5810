//! `flanc recipe`: what a recipe asks for, before any data is read.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Definitions, Outcome, grouped, print, report};
use crate::mixture::{self, Size, quotas, quotas_without_repeats};
use crate::plan::{Data, Role, Sources, SplitName, sources};

/// List recipes, or show what one asks for without reading data
#[derive(Args)]
pub struct RecipeCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Show(Show),
}

/// List the bundled recipes
#[derive(Args)]
#[command(after_help = "Example:\n  flanc recipe list")]
pub struct List {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    definitions: Definitions,
}

/// Show a recipe's plan: tasks in and out, rates, expected counts
///
/// Reads no data. Rows are counted as the definitions publish them or, with --data-dir, as the headers there say.
/// Filters are not run, so tasks that have one may give fewer prompts.
#[derive(Args)]
#[command(after_help = "Examples:\n  flanc recipe show flan\n  flanc recipe show hold-out:sentiment --json")]
pub struct Show {
    /// Recipe: a file or the name of a bundled one, with `:VARIANT` where it holds several
    recipe: String,
    /// Count the rows of the corpora in this directory; may be given more than once
    #[arg(long = "data-dir", value_name = "DIR")]
    data_dirs: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    definitions: Definitions,
}

impl RecipeCommand {
    pub fn run(self) -> Outcome {
        match self.command {
            Command::List(list) => list.run(),
            Command::Show(show) => show.run(),
        }
    }
}

impl List {
    fn run(self) -> Outcome {
        let (catalogue, _) = self.definitions.load()?;
        let mut text = String::new();
        for name in catalogue.recipe_names() {
            let about = about(catalogue.recipe(name).unwrap_or_default());
            let variants: Vec<String> = mixture::names(&catalogue)
                .into_iter()
                .filter(|n| n.split(':').next() == Some(name) && n.contains(':'))
                .collect();
            if self.json {
                text.push_str(&format!("{}\n", json!({ "recipe": name, "about": about, "variants": variants })));
                continue;
            }
            text.push_str(&format!("{name}\n  {about}\n"));
            if !variants.is_empty() {
                text.push_str(&format!("  {}\n", variants.join(" ")));
            }
        }
        print(&text)
    }
}

/// The comment at the head of a recipe.
fn about(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    lines.collect::<Vec<_>>().join(" ")
}

impl Show {
    fn run(self) -> Outcome {
        let (catalogue, _) = self.definitions.load()?;
        let (recipe, warnings) = mixture::find(&self.recipe, &catalogue)?;
        report(&warnings);
        let data = if self.data_dirs.is_empty() { Data::Published } else { Data::OnDisk(&self.data_dirs) };
        let sources = sources(recipe, &catalogue, data)?;
        report(&sources.warnings);
        let expected = Expected::of(&sources);
        print(&if self.json { format!("{}\n", expected.json(&sources)) } else { expected.text(&sources) })
    }
}

/// What a plan comes to, counted without reading.
struct Expected {
    /// By task: examples under the cap, prompts they give, rate, prompts in the mixture.
    trained: Vec<(usize, u64, u64, f64, u64)>,
    /// By task: rows that are evaluated, and prompts they give.
    held_out: Vec<(usize, u64, u64)>,
    /// Whether the mixture's size is known before tokens are counted.
    counted: bool,
}

impl Expected {
    fn of(sources: &Sources<'_>) -> Expected {
        let recipe = &sources.recipe;
        let rows = |task: usize, name: SplitName| {
            sources.tasks[task].splits.iter().find(|s| s.name == name).map_or(0, |s| s.rows)
        };
        let of_role = |role| (0..sources.tasks.len()).filter(move |&t| sources.tasks[t].role == role);
        let examples: Vec<(usize, u64)> = of_role(Role::Trained)
            .map(|t| (t, rows(t, SplitName::Train).min(recipe.cap.unwrap_or(u64::MAX))))
            .filter(|(_, n)| *n > 0)
            .collect();
        let prompts: Vec<u64> = examples
            .iter()
            .map(|&(t, n)| n * sources.tasks[t].templates_per_example(recipe.templates) as u64)
            .collect();
        let rates = sources.rates(&examples);
        let drawn = match recipe.size {
            Size::All | Size::Tokens(_) => prompts.clone(),
            Size::Prompts(total) => quotas(total, &rates),
            Size::WithoutRepeats => quotas_without_repeats(&prompts, &rates),
        };
        let all: u64 = drawn.iter().sum();
        let trained = examples.iter().zip(&prompts).zip(&rates).zip(&drawn);
        let trained = trained.map(|((((t, n), &prompts), &rate), &drawn)| {
            // With every prompt in it, a mixture's rates are what the sizes make them.
            let rate = if recipe.size == Size::All { drawn as f64 / all.max(1) as f64 } else { rate };
            (*t, *n, prompts, rate, drawn)
        });
        let held_out = of_role(Role::HeldOut).map(|t| {
            let rows = rows(t, SplitName::Test);
            (t, rows, rows * sources.tasks[t].templates.len() as u64)
        });
        Expected {
            trained: trained.collect(),
            held_out: held_out.collect(),
            counted: !matches!(recipe.size, Size::Tokens(_)),
        }
    }

    fn text(&self, sources: &Sources<'_>) -> String {
        let name = |t: usize| sources.tasks[t].task.name();
        let mut text = format!(
            "{}: {} tasks to train on, {} held out, {} left out\n\n",
            sources.recipe.name,
            self.trained.len(),
            self.held_out.len(),
            sources.skipped.len()
        );
        let last = if self.counted { "in mixture" } else { "" };
        text.push_str(&format!("{:<36}{:>10}{:>12}{:>10}{last:>12}\n", "trained on", "examples", "prompts", "rate"));
        for &(t, examples, prompts, rate, drawn) in &self.trained {
            let drawn = if self.counted { grouped(drawn) } else { String::new() };
            let (examples, prompts, percent) = (grouped(examples), grouped(prompts), 100.0 * rate);
            text.push_str(&format!("{:<36}{examples:>10}{prompts:>12}{percent:>8.3} %{drawn:>12}\n", name(t)));
        }
        let sum = |of: fn(&(usize, u64, u64, f64, u64)) -> u64| grouped(self.trained.iter().map(of).sum());
        let drawn = if self.counted { sum(|t| t.4) } else { String::new() };
        text.push_str(&format!("{:<36}{:>10}{:>12}{:>10}{drawn:>12}\n", "all", sum(|t| t.1), sum(|t| t.2), ""));
        if !self.held_out.is_empty() {
            text.push_str(&format!("\n{:<36}{:>10}{:>12}\n", "held out", "rows", "prompts"));
            for &(t, rows, prompts) in &self.held_out {
                text.push_str(&format!("{:<36}{:>10}{:>12}\n", name(t), grouped(rows), grouped(prompts)));
            }
        }
        if !sources.skipped.is_empty() {
            text.push_str("\nleft out\n");
            for skipped in &sources.skipped {
                let split = skipped.split.map_or(String::new(), |s| format!(", {}", s.name()));
                text.push_str(&format!("{}{split}: {}\n", skipped.task, skipped.reason));
            }
        }
        text
    }

    fn json(&self, sources: &Sources<'_>) -> serde_json::Value {
        let name = |t: usize| sources.tasks[t].task.name();
        json!({
            "recipe": sources.recipe.name,
            "settings": sources.recipe.settings(),
            "trained": self.trained.iter().map(|&(t, examples, prompts, rate, drawn)| json!({
                "task": name(t), "examples": examples, "prompts": prompts, "rate": rate,
                "in_mixture": self.counted.then_some(drawn),
            })).collect::<Vec<_>>(),
            "held_out": self.held_out.iter().map(|&(t, rows, prompts)| json!({
                "task": name(t), "rows": rows, "prompts": prompts,
            })).collect::<Vec<_>>(),
            "left_out": sources.skipped.iter().map(|s| json!({
                "task": s.task, "split": s.split.map(SplitName::name), "reason": s.reason,
            })).collect::<Vec<_>>(),
        })
    }
}
