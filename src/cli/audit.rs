//! `flanc audit`: what definitions and rows show to be wrong with templates.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{DataDirs, Definitions, Failure, Outcome, grouped, print, report, threads};
use crate::audit::code::{Basis, CODES, Code};
use crate::audit::{Audit, Sample, Side, TaskAudit, audit};
use crate::diag::{Diagnostic, Severity, Source, listing};
use crate::mixture::{self, Recipe};
use crate::plan::{Data, Plan, Sources, sources_of_all_splits, tokenizer_file, with_tokenizer};
use crate::preview;
use crate::preview::page::page;
use crate::preview::report::Compiled;
use crate::shard::manifest;
use crate::storage;
use crate::task::Catalogue;
use crate::template::snippet::Snippet;
use crate::tokenize::Tokenizer;

/// Look for slips in templates, over definitions and real rows
///
/// Every template of the recipe's tasks is rendered over a sample of rows. What is found goes to stdout, each finding
/// with its code, place, rows, text and what to do about it, and a table of all tasks at the end. Findings that are
/// meant to be so are allowed in the definition: `[[allow]]` with code, template and why.
#[derive(Args)]
#[command(after_help = "Examples:
  flanc audit
  flanc audit on-disk --data-dir ~/tensorflow_datasets --task rte --fail-on warning
  flanc audit --html report.html
  flanc audit --explain label-in-inputs")]
pub struct AuditCommand {
    /// Recipe that selects tasks, rows, templates, lengths and tokenizer [default: the bundled sample, or every task of
    /// --templates that is on disk]
    recipe: Option<String>,
    /// Only this task; may be given more than once
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// Rows of each split to look at, or `all`
    #[arg(long, value_name = "N", value_parser = parse_sample, default_value = "200")]
    rows: Sample,
    /// Exit with 1 if there is a finding of this severity or above that is not allowed
    #[arg(long, value_name = "SEVERITY", value_parser = ["error", "warning", "note"], default_value = "error")]
    fail_on: String,
    /// Print findings, then tasks, one JSON object a line
    #[arg(long)]
    json: bool,
    /// Say what a code means, and stop
    #[arg(long, value_name = "CODE")]
    explain: Option<String>,
    /// Write a report as well: one HTML file with findings, figures and prompts, which opens from disk
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Rows of each task whose prompts the report shows; rows that findings name are shown beside them
    #[arg(long, value_name = "N", default_value_t = 5, requires = "html")]
    html_rows: u64,
    /// Output of a compile of the recipe: the report shows the rates that it realised
    #[arg(long, value_name = "OUT", requires = "html")]
    compiled: Option<PathBuf>,
    /// Print allowed findings as well
    #[arg(long)]
    allowed: bool,
    /// Threads to use [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    data: DataDirs,
    #[command(flatten)]
    definitions: Definitions,
}

fn parse_sample(text: &str) -> Result<Sample, String> {
    match text {
        "all" => Ok(Sample::All),
        digits => match digits.replace('_', "").parse() {
            Ok(rows) if rows > 0 => Ok(Sample::Some(rows)),
            _ => Err("expected a number of rows, or `all`".to_owned()),
        },
    }
}

impl AuditCommand {
    pub fn run(self) -> Outcome {
        if let Some(code) = &self.explain {
            return explain(code);
        }
        let (catalogue, warnings) = self.definitions.load()?;
        report(&warnings);
        let recipe = recipe_of(self.recipe.as_deref(), &self.tasks, &catalogue)?;
        let pool = threads(self.threads)?;
        let sources = sources_of_all_splits(recipe, &catalogue, Data::OnDisk(&self.data.data_dirs))?;
        let found =
            tokenized(sources, &self.data.data_dirs, |sources, plan| Ok(pool.install(|| self.audit(sources, plan))?))?;
        print(&if self.json { json_lines(&found) } else { self.text(&found) })?;
        let failing: Vec<String> = Severity::ALL
            .into_iter()
            .take_while(|s| *s >= self.threshold())
            .map(|severity| (found.count(severity, None), severity.name()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}{}", if count == 1 { "" } else { "s" }))
            .collect();
        if failing.is_empty() {
            return Ok(());
        }
        let message = format!("the audit found {}", failing.join(", "));
        Err(Failure::Diagnostics(vec![Diagnostic::error("audit", message)]))
    }

    fn threshold(&self) -> Severity {
        Severity::ALL.into_iter().find(|s| s.name() == self.fail_on).unwrap_or(Severity::Error)
    }

    /// Audits, and writes the report.
    fn audit(&self, sources: &Sources<'_>, plan: Option<&Plan<'_>>) -> crate::diag::Result<Audit> {
        let manifest = self.compiled.as_deref().map(manifest::require).transpose()?;
        let found = audited(sources, plan, self.rows)?;
        let Some(file) = &self.html else { return Ok(found) };
        let compiled = self.compiled.as_ref().zip(manifest.as_ref());
        let compiled = compiled.map(|(out, manifest)| Compiled { name: out.display().to_string(), manifest });
        let data = preview::report::report(sources, plan, &found, self.html_rows, compiled.as_ref())?;
        storage::write(file, page(&data).as_bytes())?;
        Ok(found)
    }

    fn text(&self, found: &Audit) -> String {
        let mut text = String::new();
        for finding in found.findings.iter().filter(|f| self.allowed || f.allowed.is_none()) {
            text.push_str(&format!("{}\n", finding.diagnostic()));
        }
        text.push_str(&table(found));
        text
    }
}

/// The recipe to look at, with no more tasks than are named.
pub fn recipe_of(name: Option<&str>, tasks: &[String], catalogue: &Catalogue) -> Result<Recipe, Failure> {
    const SAMPLE: &str = "sample";
    let (mut recipe, warnings) = match (name, catalogue.recipe(SAMPLE)) {
        // Definitions of one's own may have no recipe beside them.
        (None, None) => {
            let every_task = Source::new("flanc audit", "absent = \"skip\"\n");
            mixture::read(&every_task, "".as_ref(), catalogue)?
        }
        (name, _) => mixture::find(name.unwrap_or(SAMPLE), catalogue)?,
    };
    report(&warnings);
    for name in tasks {
        catalogue.task(name)?;
    }
    if !tasks.is_empty() {
        recipe.tasks = tasks.iter().map(|name| Snippet::whole("--task", name)).collect();
        recipe.hold_out.retain(|held_out| tasks.contains(&held_out.text));
    }
    Ok(recipe)
}

/// Goes on with a plan where there is a tokenizer, and without one where there is none.
pub fn tokenized<'c, T>(
    sources: Sources<'c>,
    data_dirs: &[PathBuf],
    go_on: impl FnOnce(&Sources<'c>, Option<&Plan<'c>>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let recipe = &sources.recipe;
    if recipe.tokenizer.file.is_none() && storage::stamp(&tokenizer_file(recipe, data_dirs)).is_none() {
        report(&sources.warnings);
        let missing = Diagnostic::warning("no-tokenizer", "there is no tokenizer, so no lengths are measured");
        report(&[missing.help("name one in a recipe, or make one with `flanc tokenizer train`")]);
        return go_on(&sources, None);
    }
    let plan = with_tokenizer(sources, data_dirs, Tokenizer::open)?;
    report(&plan.warnings);
    go_on(&plan, Some(&plan))
}

/// Audits, with a bar on a terminal.
pub fn audited(sources: &Sources<'_>, plan: Option<&Plan<'_>>, sample: Sample) -> crate::diag::Result<Audit> {
    if !std::io::stderr().is_terminal() {
        return audit(sources, plan, sample, &|_, _| Ok(()));
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg:<20} [{bar:30}] {pos}/{len} ETA {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message("looking at rows");
    let found = audit(sources, plan, sample, &|done, of| {
        bar.set_length(of);
        bar.set_position(done);
        Ok(())
    });
    bar.finish_and_clear();
    found
}

fn explain(name: &str) -> Outcome {
    let Some(code) = Code::find(name) else {
        let names = CODES.iter().map(|code| code.name);
        let unknown = Diagnostic::error("unknown-code", format!("there is no code `{name}`"));
        let unknown = unknown.did_you_mean(name, names.clone());
        let unknown = CODES
            .chunks(8)
            .fold(unknown, |unknown, codes| unknown.note("codes", listing(codes.iter().map(|code| code.name))));
        return Err(Failure::Diagnostics(vec![unknown]));
    };
    let from = match code.basis {
        Basis::Definition => "definition and recipe alone".to_owned(),
        Basis::Rows if code.least > 0.0 => format!("rows, from {} % of them on", 100.0 * code.least),
        Basis::Rows => "rows".to_owned(),
    };
    print(&format!(
        "{name}: {}, from {from}\n\n{}\n\nWhat to do: {}\n\nWhere it is meant, the definition says so:\n\n  \
         [[allow]]\n  code = \"{name}\"\n  template = \"…\"   # optional\n  why = \"…\"\n",
        code.severity.name(),
        wrapped(code.about),
        code.help
    ))
}

/// In lines of at most 80 characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > 80 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n")
}

fn json_lines(found: &Audit) -> String {
    let mut text = String::new();
    for finding in &found.findings {
        text.push_str(&format!("{}\n", finding.json()));
    }
    for task in &found.tasks {
        let counts: BTreeMap<&str, usize> =
            Severity::ALL.into_iter().map(|s| (s.name(), found.count(s, Some(&task.task)))).collect();
        let side = |side: Side| {
            json!({
                "median": task.lengths.quantile(side, 0.5), "p95": task.lengths.quantile(side, 0.95),
                "most": task.lengths.quantile(side, 1.0), "cut": task.lengths.cut[side as usize],
                "histogram": task.lengths.histogram(side),
            })
        };
        let lengths = (task.lengths.prompts() > 0).then(|| {
            json!({
                "inputs": side(Side::Inputs), "targets": side(Side::Targets),
                "pays": task.lengths.pays, "loss_share": task.lengths.loss_share(),
            })
        });
        let line = json!({
            "kind": "task", "task": task.task, "rows": task.rows, "filtered": task.filtered, "prompts": task.prompts,
            "findings": counts, "labels": task.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            "self_bleu": task.diversity.self_bleu, "edit_distance": task.diversity.edit_distance, "tokens": lengths,
        });
        text.push_str(&format!("{line}\n"));
    }
    for overlap in &found.overlaps {
        let mut line = serde_json::json!(overlap);
        line["kind"] = "overlap".into();
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// A line for each task, at most 80 columns wide.
fn table(found: &Audit) -> String {
    let mut text =
        format!("{:<34}{:>9}{:>10}{:>9}{:>9}{:>9}\n", "task", "rows", "prompts", "errors", "warnings", "notes");
    let shown = |count: usize| if count == 0 { "·".to_owned() } else { count.to_string() };
    let counts = |task: Option<&str>| Severity::ALL.map(|severity| shown(found.count(severity, task)));
    for task in &found.tasks {
        let [errors, warnings, notes] = counts(Some(&task.task));
        let (rows, prompts) = (grouped(task.rows), grouped(task.prompts));
        text.push_str(&format!("{:<34}{rows:>9}{prompts:>10}{errors:>9}{warnings:>9}{notes:>9}\n", task.task));
    }
    let [errors, warnings, notes] = counts(None);
    let sum = |of: fn(&TaskAudit) -> u64| grouped(found.tasks.iter().map(of).sum());
    let (rows, prompts) = (sum(|t| t.rows), sum(|t| t.prompts));
    text.push_str(&format!("{:<34}{rows:>9}{prompts:>10}{errors:>9}{warnings:>9}{notes:>9}\n", "all"));
    let allowed = found.findings.iter().filter(|f| f.allowed.is_some()).count();
    if allowed > 0 {
        text.push_str(&format!("{allowed} findings are allowed by the definitions\n"));
    }
    text.push_str(&lengths(found));
    for overlap in found.overlaps.iter().filter(|o| o.overlapping > 0) {
        text.push_str(&format!(
            "overlap: {} ({}): {} of {} rows, {} duplicates\n",
            overlap.task,
            overlap.role,
            grouped(overlap.overlapping),
            grouped(overlap.rows),
            grouped(overlap.duplicates)
        ));
    }
    text
}

fn lengths(found: &Audit) -> String {
    if found.tasks.iter().all(|t| t.lengths.prompts() == 0) {
        return String::new();
    }
    let head = ["50 %", "95 %", "targets", "95 %", "cut", "loss"];
    let mut text = format!("\n{:<34}{:<12}", "tokens", "inputs, 2ⁿ");
    text.push_str(&format!("{:>5}{:>6}{:>8}{:>5}{:>5}{:>5}\n", head[0], head[1], head[2], head[3], head[4], head[5]));
    for task in found.tasks.iter().filter(|t| t.lengths.prompts() > 0) {
        let tokens = |side, share| task.lengths.quantile(side, share);
        let cut = task.lengths.cut[0].max(task.lengths.cut[1]) as f64 / task.lengths.prompts() as f64;
        let percent = |share: f64| format!("{:.0}%", 100.0 * share);
        text.push_str(&format!(
            "{:<34}{:<12}{:>5}{:>6}{:>8}{:>5}{:>5}{:>5}\n",
            task.task,
            sparkline(&task.lengths.histogram(Side::Inputs)),
            tokens(Side::Inputs, 0.5),
            tokens(Side::Inputs, 0.95),
            tokens(Side::Targets, 0.5),
            tokens(Side::Targets, 0.95),
            if cut > 0.0 { percent(cut) } else { "·".to_owned() },
            percent(task.lengths.loss_share()),
        ));
        if !task.lengths.pays.is_empty() {
            let pays: Vec<String> = task.lengths.pays.iter().map(|(f, n)| format!("{f} in {}", grouped(*n))).collect();
            text.push_str(&format!("  cut: {} of {} prompts\n", pays.join(", "), grouped(task.lengths.prompts())));
        }
    }
    text
}

/// A bar for each bin.
fn sparkline(counts: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().max().copied().unwrap_or(0).max(1);
    let bar = |count: &u64| if *count == 0 { ' ' } else { BARS[(count * 7).div_ceil(most).min(7) as usize] };
    counts.iter().map(bar).take(12).collect()
}
