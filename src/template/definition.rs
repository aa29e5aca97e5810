//! A task definition: the TOML file in which a task is written down.
//!
//! `template-defs/<cluster>/<task>.toml` names a corpus and its splits, derives fields from its features, and lists
//! templates over the fields. A file may say that its task is `like` another and give only what differs. Reading
//! checks the form only; [`super::check`] and [`crate::task`] check the sense.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Source, Span};
use crate::document::{self, Table};
use crate::ingest::info::CorpusName;

use super::snippet::Snippet;

/// Which way a template asks: for the answer, or, turned around, for a part of the example given its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Original,
    TurnedAround,
}

impl Kind {
    pub const NAMES: [&str; 2] = ["original", "turned-around"];

    pub fn parse(name: &str) -> Option<Kind> {
        match name {
            "original" => Some(Kind::Original),
            "turned-around" => Some(Kind::TurnedAround),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Original => Kind::NAMES[0],
            Kind::TurnedAround => Kind::NAMES[1],
        }
    }
}

/// The language of a definition's templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Our own: inputs and targets over declared fields, and nothing undefined.
    #[default]
    Flanc,
    /// promptsource's: one text that prints inputs and targets, over the row's features, as Jinja2 renders it.
    Promptsource,
}

impl Dialect {
    pub const NAMES: [&str; 2] = ["flanc", "promptsource"];

    fn parse(name: &str) -> Dialect {
        if name == Dialect::NAMES[1] { Dialect::Promptsource } else { Dialect::Flanc }
    }
}

/// A definition as it is written.
#[derive(Clone, Debug)]
pub struct Definition {
    pub source: Arc<Source>,
    pub task: Snippet,
    pub dialect: Dialect,
    /// The task's name as people write it.
    pub title: String,
    /// The paper's unit of counting: several tasks may be one dataset.
    pub dataset: String,
    pub corpus: CorpusName,
    pub corpus_place: Span,
    pub cluster: String,
    /// The cluster in FLAN's code, which divides more finely than its paper.
    pub code_cluster: String,
    pub licence: String,
    /// Where the data comes from.
    pub origin: String,
    pub splits: Splits,
    /// Rows of the corpus's own splits as published, for plans that are made without it.
    pub rows: Vec<(String, u64)>,
    pub filter: Option<Snippet>,
    pub fields: Vec<Field>,
    pub templates: Vec<TemplateDefinition>,
    /// Where the release of FLAN v1 differs.
    pub flan_v1: Vec<Difference>,
    /// What the audit is not to complain about.
    pub allowances: Vec<Allowance>,
}

/// Sub-split expressions; a task without one of them has nothing to give for it.
#[derive(Clone, Debug, Default)]
pub struct Splits {
    pub train: Option<Snippet>,
    pub validation: Option<Snippet>,
    pub test: Option<Snippet>,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub place: Span,
    pub expression: Snippet,
}

#[derive(Clone, Debug)]
pub struct TemplateDefinition {
    pub name: Snippet,
    pub kind: Kind,
    pub body: Body,
}

/// What a template says, in the definition's dialect.
#[derive(Clone, Debug)]
pub enum Body {
    Sides {
        inputs: Snippet,
        targets: Snippet,
    },
    /// Prints inputs, `|||` and targets.
    Prompt {
        prompt: Snippet,
        /// Prints the choices, with `|||` between them.
        answer_choices: Option<Snippet>,
        metadata: Metadata,
    },
}

/// What promptsource says about a template. Nothing is rendered from it; audits compare it with what is.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub id: Option<String>,
    pub original_task: Option<bool>,
    pub choices_in_prompt: Option<bool>,
    pub metrics: Vec<String>,
    pub languages: Vec<String>,
    pub reference: Option<String>,
}

/// A known difference between a definition and what another implementation makes of the same rows.
#[derive(Clone, Debug)]
pub struct Difference {
    pub part: Part,
    /// What stands there in the other's place; `None` where its bytes cannot be had.
    pub value: Option<Snippet>,
    pub why: String,
}

/// A finding of the audit that is meant to be so.
#[derive(Clone, Debug)]
pub struct Allowance {
    pub code: Snippet,
    /// The template it is about; `None`: any, or the task as a whole.
    pub template: Option<Snippet>,
    pub why: String,
}

/// The part of a definition that a difference is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Field(String),
    Filter,
    /// `train`, `validation` or `test`.
    Split(String),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Field(name) => write!(f, "field `{name}`"),
            Part::Filter => write!(f, "the filter"),
            Part::Split(name) => write!(f, "the {name} split"),
        }
    }
}

impl Definition {
    /// The task as FLAN v1 has it, or `None` where that is the same.
    pub fn as_flan_v1(&self) -> Option<Definition> {
        if self.flan_v1.iter().all(|d| d.value.is_none()) {
            return None;
        }
        let mut other = Definition { flan_v1: Vec::new(), ..self.clone() };
        for difference in &self.flan_v1 {
            let Some(value) = &difference.value else { continue };
            match &difference.part {
                Part::Filter => other.filter = Some(value.clone()),
                Part::Field(name) => {
                    if let Some(field) = other.fields.iter_mut().find(|f| &f.name == name) {
                        field.expression = value.clone();
                    }
                }
                Part::Split(name) => match name.as_str() {
                    "train" => other.splits.train = Some(value.clone()),
                    "validation" => other.splits.validation = Some(value.clone()),
                    _ => other.splits.test = Some(value.clone()),
                },
            }
        }
        Some(other)
    }
}

/// A file that has been read: a whole definition, unless it says what it is like.
#[derive(Debug)]
pub struct Draft {
    source: Arc<Source>,
    pub task: Snippet,
    dialect: Dialect,
    /// The task that gives what is not stated here.
    pub like: Option<Snippet>,
    title: Option<String>,
    dataset: Option<String>,
    corpus: Option<(CorpusName, Span)>,
    cluster: Option<String>,
    code_cluster: Option<String>,
    licence: Option<String>,
    origin: Option<String>,
    splits: Option<Splits>,
    rows: Option<Vec<(String, u64)>>,
    filter: Option<Snippet>,
    fields: Option<Vec<Field>>,
    templates: Option<Vec<TemplateDefinition>>,
    flan_v1: Option<Vec<Difference>>,
    allowances: Option<Vec<Allowance>>,
}

/// Reads a file; the warnings come with it.
pub fn read(source: &Arc<Source>) -> Result<(Draft, Vec<Diagnostic>), Vec<Diagnostic>> {
    document::read(source, |table| read_draft(source, table))
}

impl Draft {
    /// The definition, with what it does not state taken from `base`; where it is like no task, reading has seen that
    /// nothing is missing.
    pub fn complete(self, base: Option<&Definition>) -> Option<Definition> {
        let text = |given: Option<String>, of_base: fn(&Definition) -> &String, default: &str| {
            given.unwrap_or_else(|| base.map_or(default, |b| of_base(b)).to_owned())
        };
        let (corpus, corpus_place) =
            self.corpus.or_else(|| base.map(|b| (b.corpus.clone(), b.corpus_place.clone())))?;
        let cluster = text(self.cluster, |b| &b.cluster, "");
        // The dialect is that of the templates.
        let dialect = match base {
            Some(base) if self.templates.is_none() => base.dialect,
            _ => self.dialect,
        };
        Some(Definition {
            dialect,
            title: self.title.unwrap_or_else(|| self.task.text.clone()),
            dataset: text(self.dataset, |b| &b.dataset, &self.task.text),
            corpus,
            corpus_place,
            code_cluster: text(self.code_cluster, |b| &b.code_cluster, &cluster),
            cluster,
            licence: text(self.licence, |b| &b.licence, ""),
            origin: text(self.origin, |b| &b.origin, ""),
            splits: self.splits.or_else(|| base.map(|b| b.splits.clone())).unwrap_or_default(),
            rows: self.rows.or_else(|| base.map(|b| b.rows.clone())).unwrap_or_default(),
            filter: self.filter.or_else(|| base?.filter.clone()),
            fields: self.fields.or_else(|| base.map(|b| b.fields.clone())).unwrap_or_default(),
            templates: self.templates.or_else(|| base.map(|b| b.templates.clone())).unwrap_or_default(),
            flan_v1: self.flan_v1.or_else(|| base.map(|b| b.flan_v1.clone())).unwrap_or_default(),
            allowances: self.allowances.or_else(|| base.map(|b| b.allowances.clone())).unwrap_or_default(),
            task: self.task,
            source: self.source,
        })
    }
}

fn read_draft(source: &Arc<Source>, table: &Table<'_>) -> Option<Draft> {
    let like = table.text("like");
    let text = |key, what: &str| if like.is_some() { table.text(key) } else { table.required_text(key, what) };
    let task = table.required_text("task", "the task's name");
    let corpus = text("tfds", "the corpus, such as \"super_glue/rte:1.0.2\"");
    let cluster = text("cluster", "the group of tasks that is held out together");
    let licence = text("licence", "what the data may be used for, as far as known");
    let splits = table.table("splits", |t| Splits {
        train: t.text("train"),
        validation: t.text("validation"),
        test: t.text("test"),
    });
    let fields = table.has("fields").then(|| {
        let entries = table.text_entries("fields").into_iter();
        entries.map(|(name, place, expression)| Field { name, place, expression }).collect::<Vec<_>>()
    });
    let dialect = table.word("dialect", &Dialect::NAMES).map_or(Dialect::default(), |name| Dialect::parse(&name));
    let templates = table.has("template").then(|| table.tables("template", |t| read_template(t, dialect)));
    check_names(table, fields.as_deref().unwrap_or_default(), templates.as_deref().unwrap_or_default());
    let flan_v1 = table.table("compat", |t| t.tables("flan-v1", read_difference));
    let allowances = table.has("allow").then(|| table.tables("allow", read_allowance));
    let corpus = corpus.and_then(|name| match CorpusName::parse(&name.text) {
        Ok(parsed) => Some((parsed, name.whole_span())),
        Err(diagnostic) => {
            table.complain(diagnostic.at(name.whole_span()));
            None
        }
    });
    let plain = |key| table.text(key).map(|s: Snippet| s.text);
    let (title, dataset, code_cluster, origin) =
        (plain("title"), plain("dataset"), plain("code_cluster"), plain("source"));
    let rows = table.has("rows").then(|| table.integer_entries("rows"));
    let filter = table.text("filter");
    let draft = Draft {
        source: source.clone(),
        task: task?,
        dialect,
        like: like.clone(),
        title,
        dataset,
        corpus,
        cluster: cluster.map(|s| s.text),
        code_cluster,
        licence: licence.map(|s| s.text),
        origin,
        splits,
        rows,
        filter,
        fields,
        templates,
        flan_v1,
        allowances,
    };
    if !is_task_name(&draft.task.text) {
        table.complain(
            Diagnostic::error("task-name", format!("a task cannot be called `{}`", draft.task.text))
                .at(draft.task.whole_span())
                .label("expected letters, digits, `_` and `-`: it becomes a directory"),
        );
    }
    Some(draft)
}

fn check_names(table: &Table<'_>, fields: &[Field], templates: &[TemplateDefinition]) {
    for field in fields.iter().filter(|f| !is_identifier(&f.name) || RESERVED.contains(&f.name.as_str())) {
        table.complain(
            Diagnostic::error("field-name", format!("a field cannot be called `{}`", field.name))
                .at(field.place.clone())
                .label(if RESERVED.contains(&field.name.as_str()) {
                    "has a meaning of its own"
                } else {
                    "expected a name such as `premise`"
                }),
        );
    }
    for (i, template) in templates.iter().enumerate() {
        if templates[..i].iter().any(|other| other.name.text == template.name.text) {
            table.complain(
                Diagnostic::error("duplicate-template", format!("two templates are called `{}`", template.name.text))
                    .at(template.name.whole_span())
                    .label("the name is taken"),
            );
        }
    }
}

fn read_difference(table: &Table<'_>) -> Option<Difference> {
    let field = table.text("field");
    let filter = table.word("part", &["filter"]);
    let split = table.word("split", &["train", "validation", "test"]);
    let part = match (field, filter, split) {
        (Some(field), None, None) => Part::Field(field.text),
        (None, Some(_), None) => Part::Filter,
        (None, None, Some(split)) => Part::Split(split),
        _ => {
            table.complain(
                Diagnostic::error("difference", "a difference is about one part of the definition")
                    .at(table.span())
                    .label("expected `field = …`, `split = …` or `part = \"filter\"`"),
            );
            return None;
        }
    };
    let why = table.required_text("why", "what the other does, and why we do not");
    Some(Difference { part, value: table.text("value"), why: why?.text })
}

fn read_allowance(table: &Table<'_>) -> Option<Allowance> {
    let code = table.required_text("code", "the code of the finding");
    let template = table.text("template");
    let why = table.required_text("why", "the reason for which it is meant");
    Some(Allowance { code: code?, template, why: why?.text })
}

fn read_template(table: &Table<'_>, dialect: Dialect) -> Option<TemplateDefinition> {
    let name = table.required_text("name", "the template's name within the task");
    let kind = table.word("kind", &Kind::NAMES);
    let body = match dialect {
        Dialect::Flanc => {
            let inputs = table.required_text("inputs", "what the model is given");
            let targets = table.required_text("targets", "what the model is to say");
            Body::Sides { inputs: inputs?, targets: targets? }
        }
        Dialect::Promptsource => {
            let prompt = table.required_text("prompt", "what prints inputs, `|||` and targets");
            let answer_choices = table.text("answer_choices");
            let metadata = table.table("metadata", read_metadata).unwrap_or_default();
            Body::Prompt { prompt: prompt?, answer_choices, metadata }
        }
    };
    Some(TemplateDefinition {
        name: name?,
        kind: kind.as_deref().and_then(Kind::parse).unwrap_or(Kind::Original),
        body,
    })
}

fn read_metadata(table: &Table<'_>) -> Metadata {
    let texts = |key| table.texts(key).unwrap_or_default().into_iter().map(|s: Snippet| s.text).collect();
    Metadata {
        id: table.text("id").map(|s| s.text),
        original_task: table.boolean("original_task"),
        choices_in_prompt: table.boolean("choices_in_prompt"),
        metrics: texts("metrics"),
        languages: texts("languages"),
        reference: table.text("reference").map(|s| s.text),
    }
}

/// Names that templates and expressions already know.
pub const RESERVED: [&str; 3] = ["row", "options_", "loop"];

pub fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub fn is_task_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}
