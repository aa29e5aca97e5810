//! Auditing: what definitions and real rows show to be wrong with templates.
//!
//! Every template is rendered over a sample of the rows that a recipe selects, with the origin of every byte kept, so
//! that a check can tell the template's own words from what comes from the row, and which expression printed what.
//! [`audit`] is the table of contents: a check that needs no row looks at [`facts`], one that needs rows counts in
//! [`observe`] and says what it thinks of the counts at the end. The files are the families of checks.
//!
//! Nothing here knows how shards are made: this is a second path to the same prompts. What [`audit`] returns is for
//! the command line, and for pages that show it, to print.

mod answers;
pub mod changes;
pub mod code;
mod contamination;
mod facts;
mod finding;
mod leakage;
mod lengths;
mod metadata;
mod observe;
mod rows;
mod templates;
mod text;

use std::collections::BTreeSet;

use rayon::prelude::*;

use self::code::{Basis, Code, UNUSED_ALLOWANCE};
use self::facts::Facts;
pub use self::finding::{Excerpt, Finding, RowName, Side};
use self::finding::{Spot, Tally};
pub use self::lengths::Lengths;
use self::lengths::Measure;
use self::observe::Seen;
pub use self::templates::Diversity;
pub use crate::contamination::Overlap;
use crate::diag::{Result, Severity};
use crate::exemplars::Pools;
use crate::mixture::Instructions;
use crate::plan::{Plan, PlannedTask, Role, Sources};
use crate::select::{Selection, first_keys, select};
use crate::template::definition::Allowance;

/// What was found, with figures for every task.
pub struct Audit {
    /// By task and severity.
    pub findings: Vec<Finding>,
    pub tasks: Vec<TaskAudit>,
    pub overlaps: Vec<Overlap>,
}

/// Figures of one task.
pub struct TaskAudit {
    pub task: String,
    /// Rows that were looked at, and those of them that the filter took out.
    pub rows: u64,
    pub filtered: u64,
    pub prompts: u64,
    /// How often each option was right, where the options are always the same.
    pub labels: Vec<(String, u64)>,
    /// How often the first option was right, the second, and so on, of rows that have options.
    pub positions: Vec<u64>,
    pub diversity: Diversity,
    /// Empty without a tokenizer.
    pub lengths: Lengths,
}

/// How many rows of each split are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Those that the recipe's cap would take first, at most so many.
    Some(u64),
    /// All that the recipe selects.
    All,
}

/// Is told of the units of work that are done and of how many there are; an error ends the audit.
pub type Progress<'p> = dyn Fn(u64, u64) -> Result<()> + Sync + 'p;

/// Rows that a thread looks at at a time.
const CHUNK: u64 = 50;

/// Audits the tasks of a recipe; `plan` adds what needs a tokenizer.
pub fn audit(sources: &Sources<'_>, plan: Option<&Plan<'_>>, sample: Sample, progress: &Progress<'_>) -> Result<Audit> {
    let facts: Vec<Facts<'_>> = sources.tasks.iter().map(|task| Facts::new(sources, task)).collect();
    let mut seen = look(sources, plan, &facts, sample, progress)?;
    let overlaps = contamination::overlaps(sources)?;
    let (mut findings, mut tasks) = (contamination::findings(sources, &overlaps), Vec::new());
    for (facts, seen) in facts.iter().zip(&mut seen) {
        let (mut found, task) = conclude(sources, plan, facts, seen)?;
        findings.append(&mut found);
        tasks.push(task);
    }
    for facts in &facts {
        let unused = allow(facts, &mut findings);
        findings.extend(unused);
    }
    sort(&mut findings);
    Ok(Audit { findings, tasks, overlaps })
}

/// Audits one task, which may be a draft of one of the recipe's, but for its overlaps with others.
pub fn audit_task(
    sources: &Sources<'_>,
    plan: Option<&Plan<'_>>,
    task: &PlannedTask<'_>,
    sample: Sample,
    progress: &Progress<'_>,
) -> Result<(Vec<Finding>, TaskAudit)> {
    let facts = [Facts::new(sources, task)];
    let mut seen = look(sources, plan, &facts, sample, progress)?;
    let (mut findings, figures) = conclude(sources, plan, &facts[0], &mut seen[0])?;
    let unused = allow(&facts[0], &mut findings);
    findings.extend(unused);
    sort(&mut findings);
    Ok((findings, figures))
}

/// What all rows of a task together show.
fn conclude(
    sources: &Sources<'_>,
    plan: Option<&Plan<'_>>,
    facts: &Facts<'_>,
    seen: &mut Seen,
) -> Result<(Vec<Finding>, TaskAudit)> {
    let mut found = Vec::new();
    leakage::check(sources, facts, &mut found);
    // What stands in the place of templates is no set of them.
    let instructions = match facts.planned.role {
        Role::Trained => sources.recipe.instructions,
        Role::HeldOut => sources.recipe.eval_instructions,
    };
    let diversity = match instructions {
        Instructions::Templates => templates::check(facts, &mut found),
        Instructions::None | Instructions::DatasetName => Diversity::default(),
    };
    answers::finish(plan, facts, seen, &mut found)?;
    text::finish(facts, seen, &mut found);
    templates::finish(facts, seen, &mut found);
    rows::finish(facts, seen, &mut found);
    found.extend(counted(facts, seen));
    let options = match &seen.options {
        observe::Options::Fixed(options) => options.as_slice(),
        observe::Options::None | observe::Options::Various => &[],
    };
    let figures = TaskAudit {
        task: facts.planned.task.name().to_owned(),
        rows: seen.read,
        filtered: seen.filtered,
        prompts: seen.templates.iter().map(|t| t.prompts).sum(),
        labels: options.iter().map(|o| (o.clone(), seen.labels.get(o).copied().unwrap_or(0))).collect(),
        positions: std::mem::take(&mut seen.positions),
        diversity,
        lengths: std::mem::take(&mut seen.lengths),
    };
    Ok((found, figures))
}

fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| {
        let key = |f: &Finding| (f.task.clone(), std::cmp::Reverse(f.code.severity), f.place.range.start, f.code.name);
        key(a).cmp(&key(b)).then_with(|| a.message.cmp(&b.message))
    });
}

impl Audit {
    /// Findings of a severity that nothing allows; of one task, or of all.
    pub fn count(&self, severity: Severity, task: Option<&str>) -> usize {
        let found = self.findings.iter().filter(|f| f.code.severity == severity && f.allowed.is_none());
        found.filter(|f| task.is_none_or(|task| f.task == task)).count()
    }
}

/// Looks at the rows of all tasks.
fn look(
    sources: &Sources<'_>,
    plan: Option<&Plan<'_>>,
    facts: &[Facts<'_>],
    sample: Sample,
    progress: &Progress<'_>,
) -> Result<Vec<Seen>> {
    struct Unit<'u> {
        task: usize,
        split: usize,
        selection: &'u Selection,
        range: (u64, u64),
    }
    let splits: Vec<(usize, usize)> = facts
        .iter()
        .enumerate()
        .flat_map(|(task, facts)| (0..facts.planned.splits.len()).map(move |split| (task, split)))
        .collect();
    let selections: Result<Vec<Selection>> = splits
        .par_iter()
        .map(|&(task, split)| {
            let (task, split) = (facts[task].planned, &facts[task].planned.splits[split]);
            match sample {
                Sample::Some(rows) => Ok(first_keys(sources, task, split, rows)),
                Sample::All => select(sources, task, split).map(|(selection, _)| selection),
            }
        })
        .collect();
    let selections = selections?;
    let units: Vec<Unit<'_>> = splits
        .iter()
        .zip(&selections)
        .flat_map(|(&(task, split), selection)| {
            let chunks = 0..selection.len().div_ceil(CHUNK);
            chunks.map(move |i| {
                let range = (i * CHUNK, ((i + 1) * CHUNK).min(selection.len()));
                Unit { task, split, selection, range }
            })
        })
        .collect();
    let pools = plan.map(|plan| Pools::of(plan, facts.iter().map(|facts| facts.planned)));
    let done = std::sync::atomic::AtomicU64::new(0);
    let observed: Result<Vec<Seen>> = units
        .par_iter()
        .map(|unit| {
            let exemplars = pools.as_ref().map(|pools| pools.exemplars(unit.task)).transpose()?.flatten();
            let measure = plan.map(|plan| Measure::new(plan, exemplars));
            let seen = observe::observe(sources, &facts[unit.task], unit.split, unit.selection, unit.range, measure);
            progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, units.len() as u64)?;
            seen
        })
        .collect();
    let mut by_task: Vec<Seen> = facts.iter().map(|_| Seen::default()).collect();
    for (seen, facts) in by_task.iter_mut().zip(facts) {
        seen.templates.resize_with(facts.templates.len(), Default::default);
    }
    for (unit, seen) in units.iter().zip(observed?) {
        by_task[unit.task].absorb(seen);
    }
    Ok(by_task)
}

/// The tallies that are large enough to be findings.
fn counted(facts: &Facts<'_>, seen: &mut Seen) -> Vec<Finding> {
    /// In a small sample a single row is a large share.
    const ODD_ROW: u64 = 1;
    let tallies = std::mem::take(&mut seen.tallies);
    let mut findings = Vec::new();
    for ((name, spot, message), tally) in tallies.0 {
        let Some(code) = Code::find(name) else { continue };
        let of = denominator(code, spot, &tally, seen);
        let share = tally.count as f64 / of.max(1) as f64;
        if share < code.least || code.least > 0.0 && tally.count <= ODD_ROW && of > 1 {
            continue;
        }
        if let (true, Spot::Text { template, from, .. }) = (name == code::LABEL_IN_INPUTS.name, spot) {
            let wrong = seen.templates[template].wrong_options.get(&from).copied().unwrap_or(0);
            if wrong as f64 > leakage::STRAY_OPTIONS * tally.count as f64 {
                continue;
            }
        }
        findings.push(Finding::new(code, facts.planned.task, spot, message).shown(tally, of));
    }
    findings
}

/// What a tally is a part of: the prompts of a template, or the rows of the task.
fn denominator(code: &Code, spot: Spot, tally: &Tally, seen: &Seen) -> u64 {
    let prompts = |template: usize| seen.templates[template].prompts;
    let kept = seen.read - seen.filtered;
    let of = match spot {
        Spot::Text { template, .. } => prompts(template),
        // A prompt that was not made is a row's.
        Spot::Template(_) if code.name == code::EMPTY_PROMPTS.name || code.name == code::ROWS_DROPPED.name => seen.rows,
        Spot::Template(template) => prompts(template),
        Spot::Field(_) | Spot::Feature(_) if code.name == code::FOREIGN_LANGUAGE.name => {
            seen.languages.get(&spot).copied().unwrap_or(0)
        }
        Spot::Task if code.name == code::INPUTS_CUT.name || code.name == code::TARGETS_CUT.name => {
            seen.lengths.prompts()
        }
        Spot::Task | Spot::Field(_) | Spot::Feature(_) => kept,
    };
    of.max(tally.count)
}

/// Marks the findings that the definition allows; returns what there is to say of allowances that allow nothing.
fn allow(facts: &Facts<'_>, findings: &mut [Finding]) -> Vec<Finding> {
    let task = facts.planned.task;
    let applies = |allowance: &Allowance, finding: &Finding| {
        let same = |template: &crate::template::snippet::Snippet| finding.template.as_ref() == Some(&template.text);
        finding.task == task.name()
            && finding.code.name == allowance.code.text
            && allowance.template.as_ref().is_none_or(same)
    };
    let names: BTreeSet<&str> = task.definition.templates.iter().map(|t| t.name.text.as_str()).collect();
    let mut unused = Vec::new();
    for allowance in &task.definition.allowances {
        let mut used = false;
        for finding in findings.iter_mut().filter(|finding| applies(allowance, finding)) {
            finding.allowed = Some(allowance.why.clone());
            used = true;
        }
        let name = &allowance.code.text;
        let message = match (Code::find(name), &allowance.template) {
            (None, _) => format!("there is no code `{name}`"),
            (_, Some(template)) if !names.contains(template.text.as_str()) => {
                format!("there is no template `{}`", template.text)
            }
            (Some(code), _) if !used && code.basis == Basis::Definition => format!("there is no `{name}` to allow"),
            _ => continue,
        };
        let place = allowance.code.whole_span();
        unused.push(Finding::new(&UNUSED_ALLOWANCE, task, Spot::Task, message).at(place));
    }
    unused
}
