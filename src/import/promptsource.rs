//! promptsource's `templates.yaml`: one file for each dataset or subset, with templates in Jinja.
//!
//! A file becomes a definition in promptsource's dialect. The templates are taken over as they stand, because only that
//! keeps what they print: inputs and targets are split where they are rendered, not here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::writer::{BodyOutline, Outline, TemplateOutline};
use super::yaml::{self, Node, Value};
use super::{CLUSTER, Imported, task_name, unique};
use crate::diag::{Diagnostic, Result, Source, listing};
use crate::ingest::info::CorpusName;
use crate::storage;
use crate::task::Catalogue;
use crate::template::check;
use crate::template::definition::{Dialect, Kind, Metadata};
use crate::template::snippet::Snippet;

/// Reads a file, or every `.yaml` file of a tree. Tasks of `known` lend what they know of a corpus.
pub fn import(path: &Path, known: &Catalogue) -> Result<Imported> {
    let mut files = vec![path.to_owned()];
    if storage::stamp(path).is_none() {
        let is_yaml = |file: &PathBuf| file.extension().is_some_and(|e| e == "yaml" || e == "yml");
        files = storage::walk(path)?.into_iter().filter(is_yaml).map(|file| path.join(file)).collect();
    }
    if files.is_empty() {
        return Err(Diagnostic::error("nothing-to-import", "there are no templates to import")
            .at(path)
            .expected("a templates.yaml, or a directory with some in it")
            .into());
    }
    let mut imported = Imported { files: files.len(), ..Imported::default() };
    let mut names: BTreeSet<String> = BTreeSet::new();
    for file in files {
        let read = storage::read_text(&file).and_then(|text| {
            let source = Source::new(file.display().to_string(), text);
            yaml::read(&source).map(|node| (source, node))
        });
        match read {
            Ok((source, node)) => {
                let mut reader = Reader { source: &source, known, imported: &mut imported };
                if let Some(mut outline) = reader.file(&node) {
                    outline.task = unique(outline.task, &mut names);
                    imported.definitions.push(outline);
                }
            }
            Err(diagnostic) => imported.diagnostics.push(*diagnostic),
        }
    }
    Ok(imported)
}

const CORE_TAGS: [&str; 7] = ["str", "map", "seq", "null", "bool", "int", "float"];

struct Reader<'r> {
    source: &'r Arc<Source>,
    known: &'r Catalogue,
    imported: &'r mut Imported,
}

impl Reader<'_> {
    fn say(&mut self, diagnostic: Diagnostic, node: &Node) {
        // Only the first line of what may be a long text.
        let line = self.source.text[node.range.start.min(self.source.text.len())..].find('\n').unwrap_or(usize::MAX);
        let end = node.range.end.min(node.range.start.saturating_add(line));
        let range = node.range.start..end.max(node.range.start);
        self.imported.diagnostics.push(diagnostic.at(crate::diag::Span { source: self.source.clone(), range }));
    }

    /// Complains of a tag other than `expected`, which would have PyYAML make something else of the node.
    fn has_tag(&mut self, node: &Node, expected: &[&str]) -> bool {
        let Some(tag) = node.tag.as_deref() else { return true };
        // YAML's own types change nothing: a node is what it is, or it is refused for that.
        let core = tag.strip_prefix("tag:yaml.org,2002:").is_some_and(|ty| CORE_TAGS.contains(&ty));
        let fits = expected.contains(&tag) || core || tag == "!";
        if !fits {
            let listed = if expected.is_empty() { "no tag".to_owned() } else { listing(expected.iter().copied()) };
            let diagnostic = Diagnostic::error("yaml-tag", format!("the tag `{tag}` is not promptsource's"));
            self.say(diagnostic.label("left out").expected(listed), node);
        }
        fits
    }

    /// The entries of a mapping.
    fn entries<'n>(&mut self, node: &'n Node, what: &str, tags: &[&str]) -> Option<&'n [(String, Node)]> {
        if !self.has_tag(node, tags) {
            return None;
        }
        match &node.value {
            Value::Map(entries) => Some(entries),
            other => {
                let diagnostic = Diagnostic::error("yaml-form", format!("{what} is {}", other.describe()));
                self.say(diagnostic.label("expected a mapping"), node);
                None
            }
        }
    }

    /// Warns of entries that nobody reads: they are not taken over.
    fn nothing_else(&mut self, entries: &[(String, Node)], what: &str, read: &[&str]) {
        for (key, node) in entries.iter().filter(|(key, _)| !read.contains(&key.as_str())) {
            let diagnostic = Diagnostic::warning("not-taken-over", format!("`{key}` of {what} is not taken over"));
            self.say(diagnostic.label("has no place in a definition"), node);
        }
    }

    /// Text, or nothing where there is none.
    fn text(&mut self, parent: &Node, key: &str) -> Option<String> {
        let node = parent.get(key)?;
        if !self.has_tag(node, &[]) {
            return None;
        }
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Null => None,
            other => {
                let message = format!("`{key}` is {}, not text", other.describe());
                self.say(Diagnostic::error("yaml-form", message).label("put it into quotes"), node);
                None
            }
        }
    }

    fn flag(&mut self, parent: &Node, key: &str) -> Option<bool> {
        let node = parent.get(key)?;
        match &node.value {
            Value::Bool(flag) => Some(*flag),
            Value::Null => None,
            other => {
                let message = format!("`{key}` is {}", other.describe());
                self.say(Diagnostic::error("yaml-form", message).label("expected true or false"), node);
                None
            }
        }
    }

    fn texts(&mut self, parent: &Node, key: &str) -> Vec<String> {
        let Some(node) = parent.get(key) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            if node.value != Value::Null {
                let message = format!("`{key}` is {}", node.value.describe());
                self.say(Diagnostic::error("yaml-form", message).label("expected a list"), node);
            }
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(text) => texts.push(text.clone()),
                other => {
                    let message = format!("`{key}` lists {}", other.describe());
                    self.say(Diagnostic::error("yaml-form", message).label("left out"), item);
                }
            }
        }
        texts
    }

    fn file(&mut self, node: &Node) -> Option<Outline> {
        let entries = self.entries(node, "the file", &[])?;
        self.nothing_else(entries, "the file", &["dataset", "subset", "templates"]);
        let Some(dataset) = self.text(node, "dataset") else {
            self.say(Diagnostic::error("yaml-form", "the file names no `dataset`").label("left out"), node);
            return None;
        };
        // A version may be read as a number.
        let subset = match node.get("subset").map(|subset| &subset.value) {
            Some(Value::Number(number)) => Some(number.clone()),
            _ => self.text(node, "subset"),
        };
        let Some(list) = node.get("templates") else {
            self.say(Diagnostic::error("yaml-form", "the file has no `templates`").label("left out"), node);
            return None;
        };
        let mut templates: Vec<TemplateOutline> = Vec::new();
        let mut names = BTreeSet::new();
        for (id, template) in self.entries(list, "`templates`", &[])? {
            self.imported.templates += 1;
            let Some(mut outline) = self.template(id, template) else { continue };
            if !names.insert(outline.name.clone()) {
                let message = format!("two templates are called `{}`", outline.name);
                self.say(Diagnostic::warning("duplicate-template", message).label("gets a number"), template);
                outline.name = unique(outline.name, &mut names);
            }
            templates.push(outline);
        }
        if templates.is_empty() {
            let message = format!("no template of `{dataset}` is taken over");
            self.say(Diagnostic::error("no-template", message).label("no definition is written"), list);
            return None;
        }
        Some(self.outline(&dataset, subset.as_deref(), templates))
    }

    fn template(&mut self, id: &str, node: &Node) -> Option<TemplateOutline> {
        let entries = self.entries(node, &format!("template `{id}`"), &["!Template"])?;
        let what = format!("template `{id}`");
        self.nothing_else(entries, &what, &["answer_choices", "id", "jinja", "metadata", "name", "reference"]);
        let Some(prompt) = self.text(node, "jinja") else {
            if node.get("jinja").is_some_and(|n| n.value != Value::Null) {
                return None; // that it is no text has been said
            }
            self.say(Diagnostic::error("yaml-form", format!("{what} has no `jinja`")).label("left out"), node);
            return None;
        };
        let answer_choices = match self.text(node, "answer_choices") {
            None if node.get("answer_choices").is_some_and(|n| n.value != Value::Null) => return None,
            choices => choices,
        };
        for (key, text) in [("jinja", Some(&prompt)), ("answer_choices", answer_choices.as_ref())] {
            let Some(text) = text else { continue };
            let mut found = Vec::new();
            check::template(&Snippet::whole(key, text), &[], &mut found);
            let errors =
                found.into_iter().filter(|d| matches!(d.code, "syntax-error" | "template-too-large" | "repeated-list"));
            if let Some(error) = errors.into_iter().next() {
                let message = format!("`{key}` of {what} is refused: {}", error.message);
                self.say(Diagnostic::error(error.code, message).label("left out"), node.get(key).unwrap_or(node));
                return None;
            }
        }
        if !prompt.contains("|||") {
            let message = format!("{what} has no `|||`");
            self.say(Diagnostic::warning("no-separator", message).label("has no targets, so it gives no prompt"), node);
        }
        match self.text(node, "id") {
            Some(own) if own != id => {
                let message = format!("{what} calls itself `{own}`");
                self.say(Diagnostic::warning("template-id", message).label("the key is kept"), node);
            }
            _ => {}
        }
        let mut metadata =
            Metadata { id: Some(id.to_owned()), reference: self.text(node, "reference"), ..Metadata::default() };
        if let Some(given) = node.get("metadata").filter(|n| n.value != Value::Null)
            && let Some(entries) = self.entries(given, &format!("the metadata of {what}"), &["!TemplateMetadata"])
        {
            let read = ["choices_in_prompt", "languages", "metrics", "original_task"];
            self.nothing_else(entries, &format!("the metadata of {what}"), &read);
            metadata.original_task = self.flag(given, "original_task");
            metadata.choices_in_prompt = self.flag(given, "choices_in_prompt");
            metadata.metrics = self.texts(given, "metrics");
            metadata.languages = self.texts(given, "languages");
        }
        Some(TemplateOutline {
            name: self.text(node, "name").unwrap_or_else(|| id.to_owned()),
            kind: if metadata.original_task == Some(false) { Kind::TurnedAround } else { Kind::Original },
            body: BodyOutline::Prompt { prompt, answer_choices, metadata },
        })
    }

    /// The definition, with what the catalogue knows of a corpus of the same name.
    fn outline(&self, dataset: &str, subset: Option<&str>, templates: Vec<TemplateOutline>) -> Outline {
        let path = subset.map_or_else(|| dataset.to_owned(), |subset| format!("{dataset}/{subset}"));
        // What a user of the Hub has put there, TFDS does not have.
        let guess = if dataset.contains('/') { None } else { CorpusName::parse(&path).ok() };
        let same = |corpus: &CorpusName| {
            guess.as_ref().is_some_and(|g| (&g.name, &g.config) == (&corpus.name, &corpus.config))
        };
        let task = self.known.tasks.iter().find(|task| same(&task.definition.corpus));
        let known = task.map(|task| &task.definition);
        let mut comments = vec![format!("Imported from promptsource's templates for {path}.")];
        if known.is_none() {
            comments.push(match guess {
                Some(_) => "The corpus is a guess by the name. To compile it: schema, splits, and a look at the names."
                    .to_owned(),
                None => "TFDS has no corpus of this name. To compile it: tfds, schema, splits.".to_owned(),
            });
        }
        let splits = known.map_or_else(Vec::new, |d| {
            let all = [("train", &d.splits.train), ("validation", &d.splits.validation), ("test", &d.splits.test)];
            all.into_iter().filter_map(|(name, rows)| Some((name, rows.as_ref()?.text.clone()))).collect()
        });
        Outline {
            comments,
            task: task_name(&path.replace('/', "_")),
            folder: known.map_or(CLUSTER, |d| &d.cluster).to_owned(),
            title: Some(path),
            dialect: Dialect::Promptsource,
            like: None,
            tfds: Some(match (known, guess) {
                (Some(known), _) => known.corpus.to_string(),
                (None, Some(guess)) => guess.to_string(),
                (None, None) => CorpusName::NONE.to_owned(),
            }),
            cluster: Some(known.map_or(CLUSTER, |d| &d.cluster).to_owned()),
            licence: Some(known.map_or("", |d| &d.licence).to_owned()),
            origin: Some("templates: promptsource".to_owned()),
            splits,
            fields: Vec::new(),
            templates,
        }
    }
}
