//! `flanc recipe`: what a recipe asks for, before any data is read.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Definitions, Outcome, grouped, print, report};
use crate::mixture;
use crate::plan::{Data, Sources, SplitName, sources};
use crate::preview::rates::{Expected, Trained};

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
        print(&if self.json { format!("{}\n", json(&expected, &sources)) } else { text(&expected, &sources) })
    }
}

/// What a plan comes to, as tables.
fn text(expected: &Expected, sources: &Sources<'_>) -> String {
    let Expected { trained, held_out, counted } = expected;
    let name = |t: usize| sources.tasks[t].task.name();
    let mut text = format!(
        "{}: {} tasks to train on, {} held out, {} left out\n\n",
        sources.recipe.name,
        trained.len(),
        held_out.len(),
        sources.skipped.len()
    );
    let last = if *counted { "in mixture" } else { "" };
    text.push_str(&format!("{:<36}{:>10}{:>12}{:>10}{last:>12}\n", "trained on", "examples", "prompts", "rate"));
    for t in trained {
        let drawn = if *counted { grouped(t.drawn) } else { String::new() };
        let (examples, prompts, percent) = (grouped(t.examples), grouped(t.prompts), 100.0 * t.rate);
        text.push_str(&format!("{:<36}{examples:>10}{prompts:>12}{percent:>8.3} %{drawn:>12}\n", name(t.task)));
    }
    let sum = |of: fn(&Trained) -> u64| grouped(trained.iter().map(of).sum());
    let drawn = if *counted { sum(|t| t.drawn) } else { String::new() };
    let (examples, prompts) = (sum(|t| t.examples), sum(|t| t.prompts));
    text.push_str(&format!("{:<36}{examples:>10}{prompts:>12}{:>10}{drawn:>12}\n", "all", ""));
    if !held_out.is_empty() {
        text.push_str(&format!("\n{:<36}{:>10}{:>12}\n", "held out", "rows", "prompts"));
        for t in held_out {
            text.push_str(&format!("{:<36}{:>10}{:>12}\n", name(t.task), grouped(t.rows), grouped(t.prompts)));
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

fn json(expected: &Expected, sources: &Sources<'_>) -> serde_json::Value {
    let name = |t: usize| sources.tasks[t].task.name();
    json!({
        "recipe": sources.recipe.name,
        "settings": sources.recipe.settings(),
        "trained": expected.trained.iter().map(|t| json!({
            "task": name(t.task), "examples": t.examples, "prompts": t.prompts, "rate": t.rate,
            "in_mixture": expected.counted.then_some(t.drawn),
        })).collect::<Vec<_>>(),
        "held_out": expected.held_out.iter().map(|t| json!({
            "task": name(t.task), "rows": t.rows, "prompts": t.prompts,
        })).collect::<Vec<_>>(),
        "left_out": sources.skipped.iter().map(|s| json!({
            "task": s.task, "split": s.split.map(SplitName::name), "reason": s.reason,
        })).collect::<Vec<_>>(),
    })
}
