//! FLAN's patterns: pairs of texts with `{field}` in them, for groups of tasks.
//!
//! They come as FLAN's own `templates.py`, which is read and never run, or as JSON,
//! `{"group": [[inputs, targets], …]}`. What becomes of a pattern is FLAN's rule, not Python's `str.format`: fields are
//! what `{\w*}` matches, and no brace is an escape (google-research/FLAN, `flan/preprocessors.py`,
//! `format_from_feature_dictionary`).
//!
//! A group whose name the catalogue knows becomes a definition for each of its tasks, which takes everything but the
//! templates from the bundled one. Any other group becomes a definition without a corpus, for rows given as JSON.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::python_text::{self, Dict, Group, Pair};
use super::writer::{BodyOutline, Outline, TemplateOutline};
use super::{CLUSTER, Imported, task_name, unique};
use crate::diag::{Diagnostic, Result, Source, Span, listing};
use crate::ingest::info::CorpusName;
use crate::storage;
use crate::task::{Catalogue, Task};
use crate::template::definition::{Dialect, Kind, RESERVED, is_identifier};

/// Groups whose list of patterns several tasks share: those that are called after it.
const SHARED: [&str; 5] = ["arc", "anli", "mnli", "wmt16_translate", "para_crawl"];

/// Reads a file, or every `.py` and `.json` file of a tree. Tasks of `known` are what groups are looked for among.
pub fn import(path: &Path, known: &Catalogue) -> Result<Imported> {
    let mut files = vec![path.to_owned()];
    if storage::stamp(path).is_none() {
        let is_pattern_file = |file: &PathBuf| file.extension().is_some_and(|e| e == "py" || e == "json");
        files = storage::walk(path)?.into_iter().filter(is_pattern_file).map(|file| path.join(file)).collect();
    }
    if files.is_empty() {
        return Err(Diagnostic::error("nothing-to-import", "there are no patterns to import")
            .at(path)
            .expected("a templates.py or a JSON file, or a directory with some in it")
            .into());
    }
    let mut imported = Imported { files: files.len(), ..Imported::default() };
    let mut names = BTreeSet::new();
    for file in files {
        let source = match storage::read_text(&file) {
            Ok(text) => Source::new(file.display().to_string(), text),
            Err(diagnostic) => {
                imported.diagnostics.push(*diagnostic);
                continue;
            }
        };
        let (dicts, diagnostics) =
            if file.extension().is_some_and(|e| e == "json") { read_json(&source) } else { python_text::read(&source) };
        imported.diagnostics.extend(diagnostics);
        if dicts.is_empty() {
            imported.diagnostics.push(Diagnostic::error("no-patterns", "the file has no patterns").at(&file));
        }
        for dict in &dicts {
            for group in &dict.groups {
                imported.templates += group.pairs.len();
                import_group(&source, dict, group, known, &mut names, &mut imported);
            }
        }
    }
    Ok(imported)
}

/// A JSON file as the dict it stands for.
fn read_json(source: &Arc<Source>) -> (Vec<Dict>, Vec<Diagnostic>) {
    let wrong = |message: String| {
        Diagnostic::error("json", message)
            .at(Span { source: source.clone(), range: 0..0 })
            .label("not taken over")
            .expected("{\"group\": [[inputs, targets], …]}")
    };
    let file: serde_json::Map<String, serde_json::Value> = match serde_json::from_str(&source.text) {
        Ok(file) => file,
        Err(error) => return (Vec::new(), vec![wrong(error.to_string())]),
    };
    let mut groups = Vec::new();
    let mut diagnostics = Vec::new();
    for (name, list) in file {
        match serde_json::from_value::<Vec<Pair>>(list) {
            Ok(pairs) => groups.push(Group { name, pairs, place: 0..0 }),
            Err(error) => diagnostics.push(wrong(format!("the patterns of `{name}`: {error}"))),
        }
    }
    let dicts = if groups.is_empty() { Vec::new() } else { vec![Dict { name: "PATTERNS".to_owned(), groups }] };
    (dicts, diagnostics)
}

/// The tasks that go through the patterns of a group.
fn tasks_of<'k>(group: &str, known: &'k Catalogue) -> Vec<&'k Task> {
    let called = |name: &str| known.tasks.iter().filter(|task| task.name() == name).collect::<Vec<_>>();
    if SHARED.contains(&group) {
        return known.tasks.iter().filter(|t| t.name().starts_with(&format!("{group}_"))).collect();
    }
    // Two of FLAN's groups say which benchmark they are of.
    [called(group), group.strip_prefix("glue_").map(called).unwrap_or_default()]
        .into_iter()
        .find(|tasks| !tasks.is_empty())
        .unwrap_or_default()
}

fn import_group(
    source: &Arc<Source>,
    dict: &Dict,
    group: &Group,
    known: &Catalogue,
    names: &mut BTreeSet<String>,
    imported: &mut Imported,
) {
    let place = Span { source: source.clone(), range: group.place.clone() };
    let mut templates = Vec::new();
    let mut used: BTreeSet<String> = BTreeSet::new();
    for (i, (inputs, targets)) in group.pairs.iter().enumerate() {
        match (to_jinja(inputs, &mut used), to_jinja(targets, &mut used)) {
            (Ok(inputs), Ok(targets)) => templates.push(TemplateOutline {
                name: format!("flan-{}", i + 1),
                kind: Kind::Original,
                body: BodyOutline::Sides { inputs, targets },
            }),
            (Err(field), _) | (_, Err(field)) => imported.diagnostics.push(
                Diagnostic::error("field-name", format!("pattern {} of `{}` has a field `{field}`", i + 1, group.name))
                    .at(place.clone())
                    .label("the pattern is left out")
                    .expected("a field with a name such as `{premise}`"),
            ),
        }
    }
    if templates.is_empty() {
        imported.diagnostics.push(
            Diagnostic::warning("no-template", format!("the group `{}` has no patterns", group.name))
                .at(place)
                .label("no definition is written"),
        );
        return;
    }
    // Patterns that came in another dict are another way to ask, and do not take the place of the first.
    let first = dict.name == "PATTERNS";
    let mut made = false;
    for task in tasks_of(&group.name, known) {
        let fields = &task.definition.fields;
        let missing: Vec<&str> = used
            .iter()
            .map(String::as_str)
            .filter(|name| fields.iter().all(|f| f.name != **name) && *name != "options_")
            .collect();
        if !missing.is_empty() {
            let message = format!("task `{}` does not have what the patterns of `{}` ask for", task.name(), group.name);
            imported.diagnostics.push(
                Diagnostic::warning("other-fields", message)
                    .at(place.clone())
                    .label(format!("{} not among its fields", listing(missing)))
                    .note("note", "written as a definition without a corpus"),
            );
            continue;
        }
        let name = if first { task.name().to_owned() } else { format!("{}_{}", task.name(), dict.name.to_lowercase()) };
        imported.definitions.push(Outline {
            comments: vec![
                format!(
                    "Imported from FLAN's patterns for {}. All count as original: the patterns do not say",
                    group.name
                ),
                "which of them are turned around.".to_owned(),
            ],
            task: unique(name, names),
            folder: task.definition.cluster.clone(),
            title: None,
            dialect: Dialect::Flanc,
            like: Some(task.name().to_owned()),
            tfds: None,
            cluster: None,
            licence: None,
            origin: None,
            splits: Vec::new(),
            fields: Vec::new(),
            templates: templates.clone(),
        });
        made = true;
    }
    if !made {
        imported.definitions.push(without_corpus(group, &used, templates, names));
    }
}

/// A definition for rows that are given as JSON, which have the patterns' fields.
fn without_corpus(
    group: &Group,
    used: &BTreeSet<String>,
    templates: Vec<TemplateOutline>,
    names: &mut BTreeSet<String>,
) -> Outline {
    let mut fields: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    if fields.remove("options_") {
        fields.extend(["options", "answer"]); // which it is made of, and which has to be one of them
    }
    Outline {
        comments: vec![
            format!(
                "Imported from FLAN's patterns for {}, a group that is not in the catalogue. All count as",
                group.name
            ),
            "original. Rows are given as JSON until tfds names a corpus and [fields] says what is made of its rows."
                .to_owned(),
        ],
        task: unique(task_name(&group.name), names),
        folder: CLUSTER.to_owned(),
        title: Some(group.name.clone()),
        dialect: Dialect::Flanc,
        like: None,
        tfds: Some(CorpusName::NONE.to_owned()),
        cluster: Some(CLUSTER.to_owned()),
        licence: Some(String::new()),
        origin: Some("templates: FLAN".to_owned()),
        splits: Vec::new(),
        fields: fields.into_iter().map(|name| (name.to_owned(), name.to_owned())).collect(),
        templates,
    }
}

/// A pattern as a template; the names of its fields are added to `used`. An error is a name that no field can have.
fn to_jinja(pattern: &str, used: &mut BTreeSet<String>) -> Result<String, String> {
    static FIELD: LazyLock<regex::Regex> = LazyLock::new(|| regex::Regex::new(r"\{(\w*)\}").expect("it is valid"));
    // A brace on its own could begin a tag, together with what follows.
    let text = |literal: &str| literal.replace('{', "{{ \"{\" }}");
    let mut template = String::new();
    let mut copied = 0;
    for found in FIELD.captures_iter(pattern) {
        let (whole, name) = (found.get_match(), &found[1]);
        let reserved = RESERVED.contains(&name) && name != "options_";
        if !is_identifier(name) || reserved || KEYWORDS.contains(&name) {
            return Err(name.to_owned());
        }
        template.push_str(&text(&pattern[copied..whole.start()]));
        template.push_str(&format!("{{{{ {name} }}}}"));
        used.insert(name.to_owned());
        copied = whole.end();
    }
    template.push_str(&text(&pattern[copied..]));
    Ok(template)
}

/// Names that mean something else in an expression.
const KEYWORDS: [&str; 13] =
    ["true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_what_flan_takes_for_fields() {
        for (pattern, template) in [
            ("{a} and {b_2}\n", "{{ a }} and {{ b_2 }}\n"),
            ("{{a}}", "{{ \"{\" }}{{ a }}}"),
            ("{a b} {", "{{ \"{\" }}a b} {{ \"{\" }}"),
            ("{%x%} {#", "{{ \"{\" }}%x%} {{ \"{\" }}#"),
            ("no field }}", "no field }}"),
        ] {
            assert_eq!(to_jinja(pattern, &mut BTreeSet::new()).unwrap(), template);
        }
        for field in ["{}", "{1}", "{row}", "{none}"] {
            assert!(to_jinja(field, &mut BTreeSet::new()).is_err(), "{field}");
        }
    }
}
