//! What the audit's report shows: findings, tasks with their figures, and prompts of some real rows.
//!
//! The rows are the first ones of each task's first split that the recipe's cap would take, and those that findings
//! name first, so that what is found can be looked at. A task keeps each text once, however many of its prompts hold
//! it, and tokens are packed into text: 62 datasets with ten templates and five rows take some 4 MB.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::rates::Expected;
use super::view::{FailureView, Origins, PromptView, SideView, Special, Viewer};
use crate::audit::code::CODES;
use crate::audit::{Audit, Finding, Lengths, Side, TaskAudit};
use crate::diag::Result;
use crate::exemplars::{Exemplars, Pools};
use crate::plan::{Plan, PlannedTask, Role, Sources};
use crate::read::{Event, rows};
use crate::select::{Selection, first_keys};
use crate::shard::manifest::Manifest;
use crate::template::definition::Body;

/// Rows that a task shows for the sake of its findings.
const MOST_ROWS_OF_FINDINGS: usize = 12;

/// A compile of the same recipe, for the rates that it realised.
pub struct Compiled<'m> {
    pub name: String,
    pub manifest: &'m Manifest,
}

/// The report as JSON: `rows` rows of each task, and those that findings name.
pub fn report(
    sources: &Sources<'_>,
    plan: Option<&Plan<'_>>,
    audit: &Audit,
    rows: u64,
    compiled: Option<&Compiled<'_>>,
) -> Result<Value> {
    let pools = plan.map(Pools::new);
    let shown: Result<Vec<Shown>> = (0..sources.tasks.len())
        .into_par_iter()
        .map(|index| {
            let task = &sources.tasks[index];
            let findings = audit.findings.iter().enumerate().filter(|(_, f)| f.task == task.task.name());
            let exemplars = pools.as_ref().map(|pools| pools.exemplars(index)).transpose()?.flatten();
            shown(sources, (plan, exemplars), task, rows, &findings.collect::<Vec<_>>())
        })
        .collect();
    let expected = Expected::of(sources);
    let drawn: u64 = expected.trained.iter().map(|t| t.drawn).sum();
    let tasks =
        sources.tasks.iter().zip(&audit.tasks).zip(shown?).enumerate().map(|(index, ((task, figures), shown))| {
            let counted = expected.trained.iter().find(|t| t.task == index);
            let entry = compiled.and_then(|c| c.manifest.tasks.iter().find(|t| t.task == task.task.name()));
            let realised = match (compiled, counted) {
                (Some(_), _) => entry.and_then(|entry| entry.rate_realised),
                (None, Some(counted)) if expected.counted => Some(counted.drawn as f64 / drawn.max(1) as f64),
                _ => None,
            };
            let rates = counted.map(|t| {
                json!({
                    "examples": t.examples, "prompts": t.prompts, "asked": t.rate, "realised": realised,
                    "drawn": expected.counted.then_some(t.drawn),
                })
            });
            // Of a task that is not trained on, the rows that it is evaluated on, or has.
            let held_out = expected.held_out.iter().find(|t| t.task == index);
            let rows_there_are: u64 = task.splits.iter().map(|s| s.rows).sum();
            let size = counted.map(|t| t.prompts).or(held_out.map(|t| t.prompts));
            let size = size.unwrap_or(rows_there_are * task.templates.len() as u64);
            json!({
                "about": about(task, figures, size, rates.unwrap_or(Value::Null)),
                "figures": figures_of(figures),
                "origins": shown.origins,
                "texts": shown.texts,
                "rows": shown.rows,
            })
        });
    let recipe = &sources.recipe;
    let codes: BTreeMap<&str, Value> = CODES
        .iter()
        .map(|code| (code.name, json!({ "severity": code.severity.name(), "about": code.about, "help": code.help })))
        .collect();
    Ok(json!({
        "format": 1,
        "recipe": {
            "name": recipe.settings()["name"], "lengths": recipe.lengths, "shots": recipe.shots, "wrapper": recipe.wrapper,
            "size": recipe.size, "rate_max": recipe.rate_max, "temperature": recipe.temperature, "cap": recipe.cap,
        },
        "tokenizer": plan.map(|plan| {
            json!({
                "vocabulary": plan.tokenizer.vocabulary_size(),
                "special": plan.tokenizer.special_tokens().collect::<BTreeMap<_, _>>(),
            })
        }),
        "compiled": compiled.map(|c| json!({ "name": c.name, "plan": c.manifest.plan })),
        "codes": codes,
        "findings": audit.findings.iter().map(finding).collect::<Vec<_>>(),
        "overlaps": audit.overlaps,
        "left_out": sources.skipped.iter().map(|s| json!({
            "task": s.task, "split": s.split.map(|s| s.name()), "reason": s.reason,
        })).collect::<Vec<_>>(),
        "tasks": tasks.collect::<Vec<_>>(),
    }))
}

/// A finding without what its code says.
fn finding(finding: &Finding) -> Value {
    let mut value = finding.json();
    if let Some(entries) = value.as_object_mut() {
        entries.retain(|key, _| !matches!(key.as_str(), "kind" | "help" | "severity" | "span"));
    }
    value
}

/// What the definition and the plan say of a task.
fn about(task: &PlannedTask<'_>, figures: &TaskAudit, size: u64, rates: Value) -> Value {
    let definition = &task.task.definition;
    let templates = task.templates.iter().map(|&t| {
        let template = &definition.templates[t];
        let (inputs, targets) = match &template.body {
            Body::Sides { inputs, targets } => (inputs.text.as_str(), Some(targets.text.as_str())),
            Body::Prompt { prompt, .. } => (prompt.text.as_str(), None),
        };
        json!({ "name": template.name.text, "kind": template.kind.name(), "inputs": inputs, "targets": targets })
    });
    json!({
        "name": definition.task.text, "title": definition.title, "dataset": definition.dataset,
        "cluster": definition.cluster, "corpus": definition.corpus.to_string(), "licence": definition.licence,
        "file": definition.source.name, "held_out": task.role == Role::HeldOut,
        "filter": definition.filter.as_ref().map(|f| &f.text),
        "fields": definition.fields.iter().map(|f| json!([f.name, f.expression.text])).collect::<Vec<_>>(),
        "templates": templates.collect::<Vec<_>>(),
        "splits": task.splits.iter().map(|s| json!([s.name.name(), s.rows])).collect::<Vec<_>>(),
        "rows": figures.rows, "filtered": figures.filtered, "prompts": figures.prompts,
        "size": size, "rates": rates,
    })
}

fn figures_of(figures: &TaskAudit) -> Value {
    let lengths = &figures.lengths;
    let tokens = (lengths.prompts() > 0).then(|| {
        json!({
            "inputs": histogram(lengths, Side::Inputs), "targets": histogram(lengths, Side::Targets),
            "prompts": lengths.prompts(), "pays": lengths.pays, "loss_share": lengths.loss_share(),
        })
    });
    json!({
        "labels": figures.labels, "positions": figures.positions,
        "self_bleu": figures.diversity.self_bleu, "edit_distance": figures.diversity.edit_distance,
        "tokens": tokens,
    })
}

fn histogram(lengths: &Lengths, side: Side) -> Value {
    let (width, counts) = lengths.steps(side);
    json!({
        "width": width, "counts": counts, "median": lengths.quantile(side, 0.5), "p95": lengths.quantile(side, 0.95),
        "most": lengths.quantile(side, 1.0), "cut": lengths.cut[side as usize],
    })
}

// ---- Rows ----------------------------------------------------------------------------------------------------------

/// The rows of a task, and what their prompts share.
#[derive(Default)]
struct Shown {
    origins: Origins,
    texts: Vec<String>,
    rows: Vec<RowShown>,
}

#[derive(Serialize)]
struct RowShown {
    split: String,
    row: u64,
    /// Why the row gives no prompt at all.
    failure: Option<FailureView>,
    prompts: Vec<PromptShown>,
}

/// A [`PromptView`] with what it shares with others left to the task.
#[derive(Serialize)]
struct PromptShown {
    template: String,
    kind: &'static str,
    inputs: Option<SideShown>,
    targets: Option<SideShown>,
    options: Vec<String>,
    answer: Option<String>,
    failure: Option<FailureView>,
    /// Indices into the report's findings.
    findings: Vec<usize>,
}

/// A [`SideView`], packed.
#[derive(Serialize)]
struct SideShown {
    /// Indices into the task's texts, and origins.
    pieces: Vec<(usize, usize)>,
    /// [`packed`] ids and lengths.
    tokens: String,
    token_count: usize,
    special: Special,
    cut: Option<(usize, usize)>,
    masked: bool,
}

/// Renders the rows of a task that the report shows. `findings` are the task's, with their indices.
fn shown(
    sources: &Sources<'_>,
    (plan, exemplars): (Option<&Plan<'_>>, Option<&Exemplars<'_>>),
    task: &PlannedTask<'_>,
    count: u64,
    findings: &[(usize, &Finding)],
) -> Result<Shown> {
    let mut shown = Shown::default();
    let mut known = HashMap::new();
    let mut viewer = Viewer::new(plan);
    let splits = &sources.corpora[task.corpus].info.splits;
    for (split, positions) in task.splits.iter().zip(wanted(sources, task, count, findings)) {
        let selection = Selection::Some(positions.into_iter().collect());
        rows(sources, task, split, &selection, (0, selection.len()), |event| {
            let (id, bound, failure) = match event {
                Event::Row { id, bound, .. } => (id, Some(bound), None),
                Event::Failed { id, failure } => (id, None, Some(FailureView::new(&failure))),
                // The audit has said what is wrong with a record.
                Event::Bad { .. } | Event::Filtered => return Ok(()),
            };
            let split = splits[id.split as usize].name.clone();
            let mut prompts = Vec::new();
            for &template in task.templates.iter().filter(|_| bound.is_some()) {
                let Some(bound) = &bound else { continue };
                let shots = viewer.draw(exemplars, task.task, bound, template, id)?;
                let view = viewer.prompt(task.task, bound, template, &shots, &mut shown.origins)?;
                let about = |f: &Finding| {
                    f.template.as_ref() == Some(&view.template)
                        && f.rows.iter().any(|r| r.split == split && r.row == id.index)
                };
                let findings = findings.iter().filter(|(_, f)| about(f)).map(|(index, _)| *index).collect();
                prompts.push(PromptShown::new(view, findings, &mut shown.texts, &mut known));
            }
            shown.rows.push(RowShown { split, row: id.index, failure, prompts });
            Ok(())
        })?;
    }
    Ok(shown)
}

/// The positions of the rows to show, by split.
fn wanted(
    sources: &Sources<'_>,
    task: &PlannedTask<'_>,
    count: u64,
    findings: &[(usize, &Finding)],
) -> Vec<BTreeSet<u64>> {
    let mut wanted: Vec<BTreeSet<u64>> = task.splits.iter().map(|_| BTreeSet::new()).collect();
    if let (Some(split), Some(wanted)) = (task.splits.first(), wanted.first_mut()) {
        let first = first_keys(sources, task, split, count);
        wanted.extend((0..first.len()).map(|i| first.get(i)));
    }
    let mut more = 0;
    for row in findings.iter().filter_map(|(_, finding)| finding.rows.first()) {
        let place = task.splits.iter().enumerate().find_map(|(split, planned)| {
            let mut begin = 0;
            planned.parts.iter().find_map(|part| {
                let position = (part.split == row.split && part.rows.contains(&row.row))
                    .then(|| begin + row.row - part.rows.start);
                begin += part.rows.end - part.rows.start;
                position.map(|position| (split, position))
            })
        });
        if let Some((split, position)) = place
            && more < MOST_ROWS_OF_FINDINGS
        {
            more += usize::from(wanted[split].insert(position));
        }
    }
    wanted
}

impl PromptShown {
    fn new(
        view: PromptView,
        findings: Vec<usize>,
        texts: &mut Vec<String>,
        known: &mut HashMap<String, usize>,
    ) -> PromptShown {
        let mut side = |side: SideView| SideShown {
            pieces: side
                .pieces
                .into_iter()
                .map(|(text, origin)| {
                    let index = *known.entry(text).or_insert_with_key(|text| {
                        texts.push(text.clone());
                        texts.len() - 1
                    });
                    (index, origin)
                })
                .collect(),
            tokens: packed(&side.tokens),
            token_count: side.token_count,
            special: side.special,
            cut: side.cut,
            masked: side.masked,
        };
        PromptShown {
            inputs: view.inputs.map(&mut side),
            targets: view.targets.map(&mut side),
            template: view.template,
            kind: view.kind,
            options: view.options,
            answer: view.answer,
            failure: view.failure,
            findings,
        }
    }
}

/// Ids and lengths by turns, each in groups of seven bits, the lowest first, in base64.
fn packed(tokens: &[(u32, usize)]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * 3);
    for &(id, length) in tokens {
        for mut number in [u64::from(id), length as u64] {
            while number >= 128 {
                bytes.push(number as u8 | 128);
                number >>= 7;
            }
            bytes.push(number as u8);
        }
    }
    super::page::base64(&bytes)
}
