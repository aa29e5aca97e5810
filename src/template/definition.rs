//! A task definition: the TOML file in which a task is written down.
//!
//! `template-defs/<cluster>/<task>.toml` names a corpus and its splits, derives fields from its features, and lists
//! templates over the fields. Reading it checks the form only; [`super::check`] and [`crate::task`] check the sense.

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

/// A definition as it is written.
#[derive(Clone, Debug)]
pub struct Definition {
    pub source: Arc<Source>,
    pub task: Snippet,
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
    pub filter: Option<Snippet>,
    pub fields: Vec<Field>,
    pub templates: Vec<TemplateDefinition>,
}

/// Sub-split expressions; a task without one of them has nothing to give for it.
#[derive(Clone, Debug)]
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
    pub inputs: Snippet,
    pub targets: Snippet,
}

/// Reads a definition; the warnings come with it.
pub fn read(source: &Arc<Source>) -> Result<(Definition, Vec<Diagnostic>), Vec<Diagnostic>> {
    document::read(source, |table| read_definition(source, table))
}

fn read_definition(source: &Arc<Source>, table: &Table<'_>) -> Option<Definition> {
    let task = table.required_text("task", "the task's name");
    let title = table.text("title");
    let dataset = table.text("dataset");
    let corpus = table.required_text("tfds", "the corpus, such as \"super_glue/rte:1.0.2\"");
    let cluster = table.required_text("cluster", "the group of tasks that is held out together");
    let code_cluster = table.text("code_cluster");
    let licence = table.required_text("licence", "what the data may be used for, as far as known");
    let origin = table.text("source");
    let splits = table.table("splits", |t| Splits {
        train: t.text("train"),
        validation: t.text("validation"),
        test: t.text("test"),
    });
    let filter = table.text("filter");
    let fields = table
        .text_entries("fields")
        .into_iter()
        .map(|(name, place, expression)| Field { name, place, expression })
        .collect::<Vec<_>>();
    let templates = table.tables("template", read_template);
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
    let (task, corpus, cluster) = (task?, corpus?, cluster?);
    if !is_task_name(&task.text) {
        table.complain(
            Diagnostic::error("task-name", format!("a task cannot be called `{}`", task.text))
                .at(task.whole_span())
                .label("expected letters, digits, `_` and `-`: it becomes a directory"),
        );
    }
    let corpus_place = corpus.whole_span();
    let corpus = match CorpusName::parse(&corpus.text) {
        Ok(name) => name,
        Err(diagnostic) => {
            table.complain(diagnostic.at(corpus_place));
            return None;
        }
    };
    let or = |given: Option<Snippet>, default: &str| given.map_or_else(|| default.to_owned(), |s| s.text);
    Some(Definition {
        source: source.clone(),
        title: or(title, &task.text),
        dataset: or(dataset, &task.text),
        corpus,
        corpus_place,
        code_cluster: or(code_cluster, &cluster.text),
        cluster: cluster.text,
        licence: or(licence, ""),
        origin: or(origin, ""),
        splits: splits.unwrap_or(Splits { train: None, validation: None, test: None }),
        filter,
        fields,
        templates,
        task,
    })
}

fn read_template(table: &Table<'_>) -> Option<TemplateDefinition> {
    let name = table.required_text("name", "the template's name within the task");
    let kind = table.word("kind", &Kind::NAMES);
    let inputs = table.required_text("inputs", "what the model is given");
    let targets = table.required_text("targets", "what the model is to say");
    Some(TemplateDefinition {
        name: name?,
        kind: kind.as_deref().and_then(Kind::parse).unwrap_or(Kind::Original),
        inputs: inputs?,
        targets: targets?,
    })
}

/// Names that templates and expressions already know.
pub const RESERVED: [&str; 3] = ["row", "options_", "loop"];

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_task_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}
