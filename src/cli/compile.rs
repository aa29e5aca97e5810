//! `flanc compile`: a recipe becomes shards.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::tokens::{named, of_model};
use super::{DataDirs, Definitions, Failure, Outcome, grouped, print, report};
use crate::compile::{self, Compiled, Progress};
use crate::diag::Diagnostic;
use crate::mixture;
use crate::plan::plan;
use crate::shard::manifest::Manifest;

/// Compile a recipe: read, expand, tokenize, mix, pack, write
///
/// Without a recipe, the bundled sample over ./data. A second run with nothing changed writes nothing; a run that was
/// stopped goes on where it was; the same plan gives the same bytes on any number of threads.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc compile recipe.toml --data-dir ~/tensorflow_datasets --out out")]
pub struct Compile {
    /// Recipe: a file or the name of a bundled one, see `flanc recipe list`; with `:VARIANT` where it holds several
    recipe: Option<String>,
    /// Directory for shards and manifest
    #[arg(long)]
    out: PathBuf,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Unreadable records to skip before the run stops with their list
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_bad_records: u64,
    /// Print the manifest and the time of each phase as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirs,
    #[command(flatten)]
    definitions: Definitions,
}

/// The recipe that runs when none is named.
const SAMPLE: &str = "sample";

/// What a recipe is compiled from and with.
pub(super) struct Sources<'a> {
    pub recipe: &'a str,
    pub data: &'a DataDirs,
    pub definitions: &'a Definitions,
    pub max_bad_records: u64,
    /// Directory of the model that the prompts are for: they are written in its own tokens, if it has some.
    pub model: Option<&'a Path>,
}

/// Compiles into `out`; progress goes to stderr, and `warn` is given what there is to warn of.
pub(super) fn compile_into(
    out: &Path,
    sources: &Sources<'_>,
    threads: Option<usize>,
    warn: impl Fn(&[Diagnostic]),
) -> Result<compile::Outcome, Failure> {
    let (catalogue, warnings) = sources.definitions.load()?;
    warn(&warnings);
    let (mut recipe, warnings) = mixture::find(sources.recipe, &catalogue)?;
    warn(&warnings);
    let own = sources.model.map(|model| of_model(model, &recipe.tokenizer)).transpose()?.flatten();
    let in_own = own.is_some();
    recipe.tokenizer = own.unwrap_or(recipe.tokenizer);
    let pool = super::threads(threads)?;
    let plan = plan(recipe, &catalogue, &sources.data.data_dirs)?;
    warn(&plan.warnings);
    if in_own {
        eprintln!("{}: {}", sources.recipe, named(&plan));
    }
    let progress = Progress::default();
    let outcome =
        watch(&progress, || pool.install(|| compile::compile(&plan, out, sources.max_bad_records, &progress)))?;
    if let compile::Outcome::Compiled(compiled) = &outcome {
        for bad in &compiled.bad {
            eprintln!("{bad}");
        }
    }
    Ok(outcome)
}

impl Compile {
    pub fn run(self) -> Outcome {
        let began = Instant::now();
        let sources = Sources {
            recipe: self.recipe.as_deref().unwrap_or(SAMPLE),
            data: &self.data,
            definitions: &self.definitions,
            max_bad_records: self.max_bad_records,
            model: None,
        };
        let outcome = compile_into(&self.out, &sources, self.threads, report)?;
        match outcome {
            compile::Outcome::UpToDate(manifest) => {
                if self.json {
                    return print(&format!("{}\n", serde_json::json!({ "up_to_date": true, "manifest": manifest })));
                }
                print(&format!(
                    "{} is up to date: plan {}, {} files\n",
                    self.out.display(),
                    &manifest.plan[..16],
                    manifest.files.len()
                ))
            }
            compile::Outcome::Compiled(compiled) => {
                if self.json {
                    let seconds: serde_json::Map<_, _> =
                        compiled.seconds.iter().map(|(phase, s)| ((*phase).to_owned(), serde_json::json!(s))).collect();
                    let result = serde_json::json!({
                        "up_to_date": false, "units": compiled.units, "reused": compiled.reused,
                        "seconds": seconds, "wall": began.elapsed().as_secs_f64(), "manifest": compiled.manifest,
                    });
                    return print(&format!("{result}\n"));
                }
                print(&summary(&compiled, &self.out, began.elapsed()))
            }
        }
    }
}

/// Runs `work` and shows its progress, if stderr is a terminal.
fn watch<T: Send>(progress: &Progress, work: impl FnOnce() -> T + Send) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg:<20} [{bar:30}] {pos}/{len} {prefix}ETA {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let finished = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (finished, bar) = (&finished, &bar);
        let watcher = scope.spawn(move || {
            let mut shown = "";
            while !finished.load(Ordering::Relaxed) {
                let (phase, since) = progress.phase();
                if phase != shown {
                    bar.reset();
                    bar.set_message(phase);
                    shown = phase;
                }
                let tokens =
                    progress.tokens.load(Ordering::Relaxed) as f64 / since.elapsed().as_secs_f64().max(1e-3) / 1e6;
                bar.set_prefix(if tokens > 0.0 { format!("{tokens:.1} M tokens/s ") } else { String::new() });
                bar.set_length(progress.total.load(Ordering::Relaxed));
                bar.set_position(progress.done.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            bar.finish_and_clear();
        });
        let result = work();
        finished.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        result
    })
}

/// The table at the end of a run.
fn summary(compiled: &Compiled, out: &Path, wall: Duration) -> String {
    let manifest = &compiled.manifest;
    let mut text = table(manifest);
    for (split, mixture) in manifest.mixture.iter().filter(|(_, m)| m.prompts > 0) {
        text.push_str(&format!(
            "{split:<12} {} prompts in {} rows, {} tokens, {:.2} % padding, loss on {:.1} %\n",
            grouped(mixture.prompts),
            grouped(mixture.rows),
            grouped(mixture.tokens),
            100.0 * mixture.padding,
            100.0 * mixture.loss_tokens as f64 / mixture.tokens.max(1) as f64
        ));
    }
    for overlap in manifest.contamination.iter().filter(|o| o.overlapping > 0) {
        text.push_str(&format!(
            "overlap      {} ({}): {} of {} rows, {} of them duplicates\n",
            overlap.task,
            overlap.role,
            grouped(overlap.overlapping),
            grouped(overlap.rows),
            grouped(overlap.duplicates)
        ));
    }
    text.push_str(&drops(manifest));
    for skipped in &manifest.skipped {
        let split = skipped.split.as_ref().map_or(String::new(), |s| format!(", {s}"));
        text.push_str(&format!("skipped      {}{split}: {}\n", skipped.task, skipped.reason));
    }
    let bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    let rendered: u64 = manifest.tasks.iter().flat_map(|t| t.splits.values()).map(|s| s.text_bytes).sum();
    let phases: Vec<String> = compiled.seconds.iter().map(|(phase, s)| format!("{phase} {s:.2} s")).collect();
    text.push_str(&format!(
        "{} files, {:.1} MB in {}, plan {}\n{:.2} s ({}); {:.1} MB of text, {} of {} units reused\n",
        manifest.files.len(),
        bytes as f64 / 1e6,
        out.display(),
        &manifest.plan[..16],
        wall.as_secs_f64(),
        phases.join(", "),
        rendered as f64 / 1e6,
        compiled.reused,
        compiled.units
    ));
    text
}

/// Prompts that were not made, by reason and template; the manifest lists rows for each.
fn drops(manifest: &Manifest) -> String {
    const SHOWN: usize = 12;
    let mut lines = Vec::new();
    for task in &manifest.tasks {
        for (split, entry) in &task.splits {
            for (template, reasons) in &entry.dropped {
                for (reason, failed) in reasons {
                    let template = if template.is_empty() { "every template" } else { template };
                    let example = failed.rows.first().map_or("", String::as_str);
                    let example: String = example.chars().take(100).collect();
                    lines.push(format!(
                        "dropped      {} {split}, {template}: {} × {reason}, e.g. {example}\n",
                        task.task, failed.count
                    ));
                }
            }
        }
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("dropped      and {more} more kinds, see manifest.json\n"));
    }
    lines.concat()
}

/// A line for each task.
fn table(manifest: &Manifest) -> String {
    let mut text = format!(
        "{:<24}{:>10}{:>9}{:>9}{:>10}{:>10}{:>9}{:>9}\n",
        "task", "rows", "capped", "filtered", "prompts", "drawn", "cut", "dropped"
    );
    for task in &manifest.tasks {
        for (split, s) in &task.splits {
            let dropped: u64 = s.dropped.values().flat_map(|r| r.values()).map(|f| f.count).sum();
            let name = if split == "train" { task.task.clone() } else { format!("  {split}") };
            let cells =
                [s.rows, s.capped, s.filtered + s.bad_records, s.prompts, s.drawn, s.shortened, dropped].map(grouped);
            text.push_str(&format!(
                "{name:<24}{:>10}{:>9}{:>9}{:>10}{:>10}{:>9}{:>9}\n",
                cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6]
            ));
        }
    }
    text
}
