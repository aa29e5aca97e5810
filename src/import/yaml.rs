//! YAML, read so that a file can do no harm: nothing is constructed from a tag, and aliases, depth and size have limits.
//!
//! The result is a tree in which every node knows its tag and its place. Keys that occur twice are refused, where PyYAML
//! would silently take the last.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, Tagged};

use crate::diag::{Diagnostic, Result, Source, Span};

/// Files larger than this are no collections of templates; the largest known takes 60 kB.
pub const LARGEST_FILE: usize = 4 << 20;
/// Lists within lists; a templates.yaml has five levels.
const DEEPEST: usize = 32;
/// Nodes that all aliases together may stand for. No known file has an alias.
const MOST_ALIASED: usize = 10_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    /// As it is written, `!Template`; nothing where there is none.
    pub tag: Option<String>,
    /// In bytes of the source.
    pub range: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As it prints.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    pub fn span(&self, source: &Arc<Source>) -> Span {
        Span { source: source.clone(), range: self.range.clone() }
    }
}

impl Value {
    pub fn describe(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads the one document of a source.
pub fn read(source: &Arc<Source>) -> Result<Node> {
    let text = &source.text;
    if text.len() > LARGEST_FILE {
        return Err(Diagnostic::error("yaml", "a YAML file is too large to be read")
            .at(Span { source: source.clone(), range: 0..0 })
            .expected(format!("at most {LARGEST_FILE} bytes"))
            .found(format!("{} bytes", text.len()))
            .into());
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEEPEST,
            max_documents: 1,
            max_aliases: 100,
            max_anchors: 100,
            max_merge_keys: 100,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_ALIASED },
        with_snippet: false,
    };
    let parsed: Parsed = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let offset = error.location().and_then(|l| l.span().byte_offset()).unwrap_or(0) as usize;
        Diagnostic::error("yaml", in_our_words(&error.without_snippet().to_string()))
            .at(Span { source: source.clone(), range: offset..offset })
            .label("cannot be read")
            .note("note", "of a file that cannot be read, no template is taken over")
    })?;
    Ok(parsed.into_node())
}

/// The reader's message without the place, which is shown, and without what only a program could do about it.
fn in_our_words(message: &str) -> String {
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(message);
    match message.rsplit_once(" at line ") {
        Some((message, place)) if place.chars().all(|c| c.is_ascii_digit() || " ,columni".contains(c)) => message,
        _ => message,
    }
    .to_owned()
}

/// A node with what the parser knows of it.
struct Parsed(Spanned<Tagged<Raw>>);

enum Raw {
    Scalar(Value),
    List(Vec<Parsed>),
    Map(Vec<(String, Parsed)>),
}

impl Parsed {
    fn into_node(self) -> Node {
        let span = self.0.referenced.span();
        let start = span.byte_offset().unwrap_or(0) as usize;
        let Tagged(raw, tag) = self.0.value;
        Node {
            value: match raw {
                Raw::Scalar(value) => value,
                Raw::List(items) => Value::List(items.into_iter().map(Parsed::into_node).collect()),
                Raw::Map(entries) => {
                    Value::Map(entries.into_iter().map(|(key, node)| (key, node.into_node())).collect())
                }
            },
            tag,
            range: start..start + span.byte_len().unwrap_or(0) as usize,
        }
    }
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Deserialize::deserialize(deserializer).map(Parsed)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNode;

        impl<'de> Visitor<'de> for AnyNode {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a scalar, a list or a mapping")
            }

            fn visit_unit<E: Error>(self) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Null))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Bool(value)))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Number(value.to_string())))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Number(value.to_string())))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Number(value.to_string())))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Text(value.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut entries: Vec<(String, Parsed)> = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }

        deserializer.deserialize_any(AnyNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Node> {
        read(&Source::new("t.yaml", text))
    }

    #[test]
    fn nodes_know_tag_and_place() {
        let text = "a: !Template\n  b: 'it''s'\n  c: [1, true, ~, 3.0.0]\n";
        let node = check(text).unwrap();
        let template = node.get("a").unwrap();
        assert_eq!(template.tag.as_deref(), Some("!Template"));
        let b = template.get("b").unwrap();
        assert_eq!(b.value, Value::Text("it's".into()));
        assert_eq!(&text[b.range.clone()], "'it''s'");
        let Value::List(items) = &template.get("c").unwrap().value else { panic!("a list") };
        let values: Vec<_> = items.iter().map(|n| n.value.clone()).collect();
        let expected = [Value::Number("1".into()), Value::Bool(true), Value::Null, Value::Text("3.0.0".into())];
        assert_eq!(values, expected);
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        let bomb = (0..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
            format!("{text}a{}: &a{} [*a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}, *a{i}]\n", i + 1, i + 1)
        });
        for (text, said) in [
            (bomb.as_str(), "alias"),
            (&"[".repeat(10_000), "recursion"),
            (&format!("a: {}1{}", "[".repeat(60), "]".repeat(60)), "depth"),
            (&"x: y\n".repeat(1 << 20), "too large"),
            ("a: 1\na: 2\n", "duplicate"),
            ("a: 1\n---\nb: 2\n", "document"),
            ("a: [", ""),
            ("a: &x [*x]\n", ""),
        ] {
            let error = check(text).expect_err(&text[..text.len().min(40)]);
            assert!(error.message.to_lowercase().contains(said), "{error}");
        }
    }
}
