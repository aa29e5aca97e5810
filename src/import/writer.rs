//! Definitions as TOML text, for a person to read and go on with.
//!
//! Templates stand in `'''` strings, where nothing is escaped; what such a string cannot hold stands in a string with
//! escapes. Either way the text that is read back is the text that was written.

use std::fmt::Write;

use crate::template::definition::{Dialect, Kind, Metadata};

/// A definition to be written.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Lines above the definition.
    pub comments: Vec<String>,
    pub task: String,
    /// The directory that it is put into; its cluster, as far as that is known.
    pub folder: String,
    pub title: Option<String>,
    pub dialect: Dialect,
    pub like: Option<String>,
    pub tfds: Option<String>,
    pub cluster: Option<String>,
    pub licence: Option<String>,
    pub origin: Option<String>,
    /// `train`, `validation` and `test`, those that there are.
    pub splits: Vec<(&'static str, String)>,
    pub fields: Vec<(String, String)>,
    pub templates: Vec<TemplateOutline>,
}

#[derive(Clone, Debug)]
pub struct TemplateOutline {
    pub name: String,
    pub kind: Kind,
    pub body: BodyOutline,
}

/// What a template says, before it has a place in a file.
#[derive(Clone, Debug)]
pub enum BodyOutline {
    Sides { inputs: String, targets: String },
    Prompt { prompt: String, answer_choices: Option<String>, metadata: Metadata },
}

/// The text of a definition.
pub fn write(outline: &Outline) -> String {
    let mut out = String::new();
    for comment in &outline.comments {
        // A comment cannot hold what would end its line.
        let line: String = comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out.push_str(&format!("# {line}\n"));
    }
    key(&mut out, "task", &outline.task);
    if outline.dialect == Dialect::Promptsource {
        key(&mut out, "dialect", Dialect::NAMES[1]);
    }
    let texts = [
        ("like", &outline.like),
        ("title", &outline.title),
        ("tfds", &outline.tfds),
        ("cluster", &outline.cluster),
        ("licence", &outline.licence),
        ("source", &outline.origin),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            key(&mut out, name, text);
        }
    }
    if !outline.splits.is_empty() {
        let splits: Vec<String> =
            outline.splits.iter().map(|(name, rows)| format!("{name} = {}", basic(rows))).collect();
        let _ = writeln!(out, "splits = {{ {} }}", splits.join(", ")); // writing to a string does not fail
    }
    if !outline.fields.is_empty() {
        out.push_str("\n[fields]\n");
        for (name, expression) in &outline.fields {
            key(&mut out, name, expression);
        }
    }
    for template in &outline.templates {
        out.push_str("\n[[template]]\n");
        key(&mut out, "name", &template.name);
        key(&mut out, "kind", template.kind.name());
        match &template.body {
            BodyOutline::Sides { inputs, targets } => {
                block(&mut out, "inputs", inputs);
                block(&mut out, "targets", targets);
            }
            BodyOutline::Prompt { prompt, answer_choices, metadata } => {
                if let Some(choices) = answer_choices {
                    key(&mut out, "answer_choices", choices);
                }
                block(&mut out, "prompt", prompt);
                write_metadata(&mut out, metadata);
            }
        }
    }
    out
}

fn write_metadata(out: &mut String, metadata: &Metadata) {
    out.push_str("[template.metadata]\n");
    if let Some(id) = &metadata.id {
        key(out, "id", id);
    }
    for (name, flag) in [("original_task", metadata.original_task), ("choices_in_prompt", metadata.choices_in_prompt)] {
        if let Some(flag) = flag {
            out.push_str(&format!("{name} = {flag}\n"));
        }
    }
    for (name, list) in [("metrics", &metadata.metrics), ("languages", &metadata.languages)] {
        if !list.is_empty() {
            let list: Vec<String> = list.iter().map(|text| basic(text)).collect();
            out.push_str(&format!("{name} = [{}]\n", list.join(", ")));
        }
    }
    if let Some(reference) = metadata.reference.as_ref().filter(|text| !text.is_empty()) {
        key(out, "reference", reference);
    }
}

/// A string on the line of its key.
fn key(out: &mut String, name: &str, text: &str) {
    let plain = !text.contains(['\'', '\n']) && !needs_escapes(text);
    let value = if text.contains('\\') || (plain && text.contains('"')) {
        if plain { format!("'{text}'") } else { basic(text) }
    } else {
        basic(text)
    };
    out.push_str(&format!("{name} = {value}\n"));
}

/// A string on lines of its own, as it prints.
fn block(out: &mut String, name: &str, text: &str) {
    if !text.contains('\n') {
        return key(out, name, text);
    }
    let literal = !text.contains("'''") && !text.ends_with('\'') && !needs_escapes(text);
    match literal {
        // The newline behind the quotes is not part of the text.
        true => out.push_str(&format!("{name} = '''\n{text}'''\n")),
        false => out.push_str(&format!("{name} = {}\n", basic(text))),
    }
}

/// Whether a string without escapes cannot hold it. A carriage return would be read as part of a line's end.
fn needs_escapes(text: &str) -> bool {
    text.chars().any(|c| c.is_control() && c != '\n' && c != '\t')
}

/// A string with escapes.
fn basic(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c)); // writing to a string does not fail
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diag::Source;
    use crate::template::definition::{self, Body};

    /// Text with what is difficult in TOML.
    fn difficult() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("'''".to_owned()),
            Just("'".to_owned()),
            Just("\"\"\"".to_owned()),
            Just("\\".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n".to_owned()),
            Just("\r".to_owned()),
            Just("# {{ x }} |||".to_owned()),
            any::<char>().prop_map(String::from),
            "[ -~]{0,8}",
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(texts in proptest::collection::vec(difficult(), 6)) {
            let [prompt, choices, name, reference, title, metric] = <[String; 6]>::try_from(texts).unwrap();
            let outline = Outline {
                comments: vec![title.clone()],
                task: "t".into(),
                folder: String::new(),
                title: Some(title.clone()),
                dialect: Dialect::Promptsource,
                like: None,
                tfds: Some("a/b".into()),
                cluster: Some("c".into()),
                licence: Some(String::new()),
                origin: None,
                splits: vec![("train", "train[:10]".into())],
                fields: Vec::new(),
                templates: vec![TemplateOutline {
                    name: name.clone(),
                    kind: Kind::Original,
                    body: BodyOutline::Prompt {
                        prompt: prompt.clone(),
                        answer_choices: Some(choices.clone()),
                        metadata: Metadata {
                            original_task: Some(true),
                            metrics: vec![metric.clone()],
                            reference: Some(reference.clone()),
                            ..Metadata::default()
                        },
                    },
                }],
            };
            let text = write(&outline);
            let (draft, _) = definition::read(&Source::new("t.toml", text.clone())).expect(&text);
            let read = draft.complete(None).expect("it is whole");
            prop_assert_eq!(&read.title, &title);
            prop_assert_eq!(&read.templates[0].name.text, &name);
            let Body::Prompt { prompt: p, answer_choices, metadata } = &read.templates[0].body else { panic!("{text}") };
            prop_assert_eq!(&p.text, &prompt);
            prop_assert_eq!(&answer_choices.as_ref().unwrap().text, &choices);
            prop_assert_eq!(&metadata.metrics[0], &metric);
            prop_assert_eq!(metadata.reference.clone().unwrap_or_default(), reference);
        }
    }
}
