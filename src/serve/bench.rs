//! What is served: a plan with its rows, the definitions that are edited, and what has been flagged.
//!
//! Everything here is called from threads with [`STACK_BYTES`](crate::template::engine::STACK_BYTES) of stack, and ends
//! by the limits of the engine and of the reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::drafts::{Definitions, Draft, Edits, Part, Stated, changed_on_disk, lines};
use super::flags::{Flag, Flags};
use super::messages::{checked, message};
use super::rows::{Row, RowAsked, cut, search};
use crate::audit::{Progress, Sample, audit_task};
use crate::diag::{Diagnostic, Result, listing, one};
use crate::example::ExampleId;
use crate::exemplars::Pools;
use crate::ingest::Corpus;
use crate::mixture::{Compat, Instructions};
use crate::plan::{Plan, PlannedTask, Role, Sources};
use crate::preview::view::{FailureView, Origins, PromptView, Viewer};
use crate::task::Task;
use crate::template::engine::Failure;

pub struct Bench<'s> {
    pub sources: &'s Sources<'s>,
    pub plan: Option<&'s Plan<'s>>,
    pub definitions: Definitions,
    /// Runs the checks that are made while somebody types.
    pub pool: &'s rayon::ThreadPool,
    pub flags: Flags,
}

/// A task with edits, as the page sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edited {
    pub task: String,
    /// The version that the edits were made to.
    pub version: String,
    #[serde(default)]
    pub edits: Edits,
}

/// What a template makes of a row, edited and as it is saved.
#[derive(Serialize)]
pub struct Shown {
    pub split: String,
    pub row: u64,
    /// The row's features as canonical JSON, cut where it is very long.
    pub features: String,
    /// The fields as computed from it: text as it is, anything else as JSON.
    pub fields: Map<String, Value>,
    /// `None` where the definition is not in order.
    pub prompt: Option<PromptView>,
    pub saved: Option<PromptView>,
    pub origins: Origins,
    pub diagnostics: Vec<Value>,
}

impl Bench<'_> {
    fn planned(&self, task: &str) -> Result<&PlannedTask<'_>> {
        self.sources.tasks.iter().find(|planned| planned.task.name() == task).ok_or_else(|| {
            let names = || self.sources.tasks.iter().map(|planned| planned.task.name());
            Diagnostic::error("unknown-task", format!("there is no task `{task}` here"))
                .did_you_mean(task, names())
                .note("note", format!("tasks: {}", listing(names())))
                .into()
        })
    }

    fn corpus(&self, planned: &PlannedTask<'_>) -> &Corpus {
        &self.sources.corpora[planned.corpus]
    }

    /// The tasks that can be looked at.
    pub fn session(&self) -> Value {
        let tasks = self.sources.tasks.iter().map(|planned| {
            let splits = self.corpus(planned).info.splits.iter();
            let templates = planned.task.definition.templates.iter();
            json!({
                "name": planned.task.name(),
                "title": planned.task.definition.title,
                "cluster": planned.task.definition.cluster,
                "held_out": planned.role == Role::HeldOut,
                "splits": splits.map(|s| json!([s.name, s.shard_lengths.iter().sum::<u64>()])).collect::<Vec<_>>(),
                "templates": templates.map(|t| json!([t.name.text, t.kind.name()])).collect::<Vec<_>>(),
            })
        });
        json!({
            "recipe": self.sources.recipe.name,
            "tasks": tasks.collect::<Vec<_>>(),
            "tokenizer": self.plan.map(|plan| {
                json!({ "special": plan.tokenizer.special_tokens().collect::<BTreeMap<_, _>>() })
            }),
            "writable": self.definitions.are_files(),
        })
    }

    /// A task's definition as it is now: its parts, and who else is made of them.
    pub fn open(&self, task: &str) -> Result<Value, Vec<Diagnostic>> {
        self.planned(task).map_err(one)?;
        let stated = self.definitions.stated(task)?;
        let parts = Part::all(&stated.definition);
        let parts = parts.iter().filter_map(|part| {
            let text = lines(part.of(&stated.definition)?);
            Some(json!({ "part": part, "text": text, "file": self.definitions.file_of(&stated, part) }))
        });
        let templates = stated.definition.templates.iter().map(|t| json!([t.name.text, t.kind.name()]));
        Ok(json!({
            "task": task,
            "version": stated.version,
            "parts": parts.collect::<Vec<_>>(),
            "templates": templates.collect::<Vec<_>>(),
            "fields": stated.definition.fields.iter().map(|f| &f.name).collect::<Vec<_>>(),
            "shared": self.definitions.sharers(&stated),
        }))
    }

    /// The task as it is stated now, if that is what the edits were made to.
    fn stated(&self, edited: &Edited) -> Result<Stated, Vec<Diagnostic>> {
        self.planned(&edited.task).map_err(one)?;
        let stated = self.definitions.stated(&edited.task)?;
        if stated.version == edited.version { Ok(stated) } else { Err(vec![changed_on_disk(&stated)]) }
    }

    /// What a template of an edited task makes of a row.
    pub fn draft(
        &self,
        edited: &Edited,
        template: &str,
        asked: &RowAsked,
        compare: bool,
    ) -> Result<Shown, Vec<Diagnostic>> {
        let stated = self.stated(edited)?;
        let draft = self.definitions.draft(&stated, &edited.edits).map_err(one)?;
        let row = Row::find(self.corpus(self.planned(&edited.task).map_err(one)?), asked).map_err(one)?;
        let mut shown = Shown {
            split: row.name.split.to_owned(),
            row: row.name.index,
            features: row.features().map_err(one)?,
            fields: Map::new(),
            prompt: None,
            saved: None,
            origins: Origins::default(),
            diagnostics: said(&draft),
        };
        if let Some(task) = &draft.task {
            let task = self.of_recipe(task);
            let (view, failure) = self.view(task, template, row, &mut shown.origins).map_err(one)?;
            shown.prompt = Some(view);
            shown.diagnostics.extend(failure.map(|f| message(&failed(&f), draft.definition.as_ref())));
            shown.fields = fields(task, row).map_err(one)?;
        }
        // What is saved may be out of order as well, or lack the template: then there is nothing to compare with.
        if compare
            && !edited.edits.is_empty()
            && let Ok(saved) = self.definitions.task(&stated)
        {
            let saved = self.view(self.of_recipe(&saved), template, row, &mut shown.origins);
            shown.saved = saved.ok().map(|(view, _)| view);
        }
        Ok(shown)
    }

    /// The task in the variant that the recipe takes.
    fn of_recipe<'t>(&self, task: &'t Task) -> &'t Task {
        if self.sources.recipe.compat == Compat::FlanV1 { task.as_flan_v1() } else { task }
    }

    /// A draft in the place that its task has in the plan.
    fn as_planned<'t>(&'t self, task: &'t Task) -> Result<PlannedTask<'t>> {
        let planned = self.planned(task.name())?;
        let recipe = &self.sources.recipe;
        let instructions = match planned.role {
            Role::Trained => recipe.instructions,
            Role::HeldOut => recipe.eval_instructions,
        };
        // Where the recipe puts something in the place of templates, all of them are looked at.
        let wanted: Option<BTreeSet<&str>> = (instructions == Instructions::Templates).then(|| {
            let templates = planned.templates.iter().map(|&t| &planned.task.definition.templates[t]);
            templates.map(|t| t.name.text.as_str()).collect()
        });
        let templates = task.definition.templates.iter().enumerate();
        let kept = templates.filter(|(_, t)| wanted.as_ref().is_none_or(|w| w.contains(t.name.text.as_str())));
        Ok(PlannedTask {
            task,
            corpus: planned.corpus,
            role: planned.role,
            templates: kept.map(|(index, _)| index).collect(),
            splits: planned.splits.clone(),
            exemplars: planned.exemplars.clone(),
            extent: planned.extent.clone(),
        })
    }

    /// What a template makes of a row, and where that fails, what there is to say of it.
    fn view(
        &self,
        task: &Task,
        template: &str,
        row: Row<'_>,
        origins: &mut Origins,
    ) -> Result<(PromptView, Option<Failure>)> {
        let index = template_of(task, template)?;
        let nothing = |failure: FailureView| PromptView {
            template: template.to_owned(),
            kind: task.definition.templates[index].kind.name(),
            inputs: None,
            targets: None,
            options: Vec::new(),
            answer: None,
            failure: Some(failure),
        };
        let planned = self.as_planned(task)?;
        let splits = &self.corpus(&planned).info.splits;
        let id = ExampleId {
            corpus: planned.corpus as u32,
            split: splits.iter().position(|split| split.name == row.name.split).unwrap_or(0) as u32,
            index: row.name.index,
        };
        let pools = self.plan.map(|plan| Pools::of(plan, [&planned]));
        let exemplars = pools.as_ref().map(|pools| pools.exemplars(0)).transpose()?.flatten();
        row.read(task.program.decoded_features(), |datum, bytes| {
            let bound = match task.program.bind(datum, bytes, row.name) {
                Ok(Some(bound)) => bound,
                Ok(None) => {
                    let detail = "the filter takes the row out".to_owned();
                    return Ok((nothing(FailureView { code: "filtered", detail }), None));
                }
                Err(failure) => return Ok((nothing(FailureView::new(&failure)), Some(failure))),
            };
            let mut viewer = Viewer::new(self.plan);
            let shots = viewer.draw(exemplars, task, &bound, index, id)?;
            let view = viewer.prompt(task, &bound, index, &shots, origins)?;
            // A view says why there is no prompt, and not where.
            let failure = view.failure.is_some().then(|| task.program.trace(&bound, index).err()).flatten();
            Ok((view, failure))
        })
    }

    /// What the audit says of an edited task.
    pub fn findings(&self, edited: &Edited, rows: u64) -> Result<Value, Vec<Diagnostic>> {
        self.pool.install(|| self.checks(edited, rows, &|_, _| Ok(())))
    }

    /// The same on the threads of whoever calls, who is told how far it is.
    pub fn checks(&self, edited: &Edited, rows: u64, progress: &Progress<'_>) -> Result<Value, Vec<Diagnostic>> {
        let stated = self.stated(edited)?;
        let draft = self.definitions.draft(&stated, &edited.edits).map_err(one)?;
        let Some(task) = &draft.task else { return Err(draft.diagnostics) };
        let as_planned = self.as_planned(self.of_recipe(task)).map_err(one)?;
        let (findings, figures) =
            audit_task(self.sources, self.plan, &as_planned, Sample::Some(rows), progress).map_err(one)?;
        Ok(checked(&findings, &figures, &as_planned.task.definition))
    }

    /// The files of an edited task as they would be saved, those that the edits change.
    pub fn texts(&self, edited: &Edited) -> Result<Value, Vec<Diagnostic>> {
        let stated = self.stated(edited)?;
        let files = self.definitions.texts(&stated, &edited.edits).map_err(one)?;
        Ok(json!({ "files": files }))
    }

    /// Looks for a text in the rows of a task's corpus.
    pub fn search(&self, task: &str, split: &str, text: &str) -> Result<Value> {
        search(self.corpus(self.planned(task)?), split, text)
    }

    /// Flags the prompt that a template of an edited task makes of a row.
    pub fn flag(&self, edited: &Edited, template: &str, row: &RowAsked, note: &str) -> Result<Flag, Vec<Diagnostic>> {
        let shown = self.draft(edited, template, row, false)?;
        let Some(PromptView { inputs: Some(inputs), targets: Some(targets), .. }) = shown.prompt else {
            return Err(vec![Diagnostic::error("no-prompt", "there is no prompt to flag")]);
        };
        let flag = Flag {
            id: 0,
            task: edited.task.clone(),
            template: template.to_owned(),
            split: shown.split,
            row: shown.row,
            inputs: inputs.text(),
            targets: targets.text(),
            note: note.to_owned(),
        };
        self.flags.add(flag).map_err(one)
    }
}

/// The fields of a row, those that no template reads as well; nothing where one cannot be computed.
fn fields(task: &Task, row: Row<'_>) -> Result<Map<String, Value>> {
    let Ok(program) = task.program_of_all_fields() else { return Ok(Map::new()) };
    let fields = row.read(program.decoded_features(), |datum, bytes| {
        Ok(program.bind(datum, bytes, row.name).ok().flatten().map(|bound| bound.fields()))
    })?;
    let shown = |value: Value| match value {
        Value::String(text) => cut(text),
        other => cut(other.to_string()),
    };
    Ok(fields.into_iter().flatten().map(|(name, value)| (name, shown(value).into())).collect())
}

fn template_of(task: &Task, name: &str) -> Result<usize> {
    let names = || task.definition.templates.iter().map(|t| t.name.text.as_str());
    names().position(|n| n == name).ok_or_else(|| {
        Diagnostic::error("unknown-template", format!("task `{}` has no template `{name}`", task.name()))
            .did_you_mean(name, names())
            .note("note", format!("templates: {}", listing(names())))
            .into()
    })
}

/// What a row's failure is about, as a message.
fn failed(failure: &Failure) -> Diagnostic {
    let diagnostic = Diagnostic::error(failure.reason.name(), failure.detail.clone());
    match &failure.place {
        Some(place) => diagnostic.at(place.clone()),
        None => diagnostic,
    }
}

/// What there is to say of a draft, each thing once.
fn said(draft: &Draft) -> Vec<Value> {
    let mut known = BTreeSet::new();
    let new = draft.diagnostics.iter().filter(|d| known.insert(d.to_string()));
    new.map(|diagnostic| message(diagnostic, draft.definition.as_ref())).collect()
}
