//! `flanc diff`: which prompts a change of definitions alters.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{DataDirs, Definitions, Failure, Outcome, print, report};
use crate::audit::Excerpt;
use crate::audit::changes::{Change, Prompt, Sample, State, changes, difference};
use crate::diag::{Diagnostic, Source};
use crate::mixture;
use crate::plan::{Data, Sources, sources_of_all_splits};
use crate::task::Catalogue;
use crate::template::engine::STACK_BYTES;
use crate::template::snippet::Snippet;

/// Show which prompts differ between two directories of task definitions
///
/// The same rows go through the templates of both. Prompts are counted by task and template, with a sample of those
/// that are not the same. Tasks whose corpora are not on disk are left out.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc diff old/template-defs template-defs --data-dir ~/tensorflow_datasets")]
pub struct Diff {
    /// Definitions of before
    old: PathBuf,
    /// Definitions of now
    new: PathBuf,
    /// Only this task; may be given more than once
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// Rows of each split to look at
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Altered prompts to print of each template
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Schemas to read in place of the bundled ones
    #[arg(long, value_name = "DIR")]
    schemas: Option<PathBuf>,
    #[command(flatten)]
    data: DataDirs,
}

impl Diff {
    pub fn run(self) -> Outcome {
        let load = |directory: &PathBuf| {
            Definitions { templates: Some(directory.clone()), schemas: self.schemas.clone() }.load()
        };
        let ((before, _), (now, _)) = (load(&self.old)?, load(&self.new)?);
        let (of_before, of_now) = (self.sources(&before)?, self.sources(&now)?);
        report(&of_now.warnings);
        let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).build();
        let pool = pool.map_err(|e| Box::new(Diagnostic::error("threads", format!("cannot start threads: {e}"))))?;
        let changes = pool.install(|| changes(&of_before, &of_now, self.rows, self.samples))?;
        if self.json {
            return print(&changes.iter().map(|change| format!("{}\n", line(change))).collect::<String>());
        }
        print(&text(&changes))
    }

    /// All tasks whose corpora are on disk, or those that were named.
    fn sources<'c>(&self, catalogue: &'c Catalogue) -> Result<Sources<'c>, Failure> {
        let source = Source::new("flanc diff", "absent = \"skip\"\ncap = \"none\"\n");
        let (mut recipe, _) = mixture::read(&source, "".as_ref(), catalogue)?;
        if !self.tasks.is_empty() {
            // A task may be in one of the directories alone.
            let known = self.tasks.iter().filter(|name| catalogue.task(name).is_ok());
            recipe.tasks = known.map(|name| Snippet::whole("--task", name)).collect();
        }
        Ok(sources_of_all_splits(recipe, catalogue, Data::OnDisk(&self.data.data_dirs))?)
    }
}

fn line(change: &Change) -> serde_json::Value {
    let prompt = |p: &Option<Prompt>| p.as_ref().map(|p| json!({ "inputs": p.inputs, "targets": p.targets }));
    let samples: Vec<_> = change
        .samples
        .iter()
        .map(|s| json!({ "split": s.row.split, "row": s.row.row, "before": prompt(&s.before), "now": prompt(&s.now) }))
        .collect();
    json!({
        "task": change.task, "template": change.template, "state": change.state.name(),
        "prompts": change.prompts, "altered": change.altered, "samples": samples,
    })
}

fn text(changes: &[Change]) -> String {
    let mut text = format!("{:<62}{:>8}{:>10}\n", "task and template", "prompts", "altered");
    let altered: Vec<&Change> = changes.iter().filter(|c| c.altered > 0 || c.state != State::Kept).collect();
    for change in &altered {
        let state = if change.state == State::Kept { "" } else { change.state.name() };
        let name = format!("{} {} {state}", change.task, change.template);
        text.push_str(&format!("{:<62}{:>8}{:>10}\n", name.trim_end(), change.prompts, change.altered));
        for sample in change.samples.iter().filter(|_| change.state == State::Kept) {
            text.push_str(&shown(sample));
        }
    }
    let sum = |of: fn(&Change) -> u64| changes.iter().map(of).sum::<u64>();
    text.push_str(&format!("{:<62}{:>8}{:>10}\n", "all", sum(|c| c.prompts), sum(|c| c.altered)));
    text
}

/// The stretches in which a prompt differs.
fn shown(sample: &Sample) -> String {
    let mut text = format!("  {}:{}\n", sample.row.split, sample.row.row);
    let (before, now) = match (&sample.before, &sample.now) {
        (Some(before), Some(now)) => (before, now),
        (None, _) => return format!("{text}    gave no prompt, and gives one\n"),
        (_, None) => return format!("{text}    gave a prompt, and gives none\n"),
    };
    for (side, before, now) in [("inputs", &before.inputs, &now.inputs), ("targets", &before.targets, &now.targets)] {
        if before != now {
            let (old, new) = difference(before, now);
            let (old, new) = (Excerpt::new(before, old).line(), Excerpt::new(now, new).line());
            text.push_str(&format!("  - {side}: {old}\n  + {side}: {new}\n"));
        }
    }
    text
}
