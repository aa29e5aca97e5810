//! A TOML document read key by key, with a place for every complaint.
//!
//! Definitions and recipes are written by hand, so a key that nobody knows is an error with a suggestion, a value of
//! the wrong type is underlined, and reading goes on after each, so that one run shows all slips of a file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::diag::{Diagnostic, Place, Source, Span, listing};
use crate::template::snippet::Snippet;

/// Parses the text of `source` and lets `read` take its keys.
///
/// # Errors
/// Every diagnostic of the document, if at least one is an error; otherwise `read`'s warnings come with its result.
pub fn read<T>(
    source: &Arc<Source>,
    read: impl FnOnce(&Table<'_>) -> Option<T>,
) -> Result<(T, Vec<Diagnostic>), Vec<Diagnostic>> {
    let diagnostics = RefCell::new(Vec::new());
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    if !errors.is_empty() {
        return Err(errors
            .iter()
            .map(|e| {
                let range = e.span().unwrap_or(0..0);
                Diagnostic::error("toml", e.message().to_owned())
                    .at(Span { source: source.clone(), range })
                    .label("not valid TOML")
            })
            .take(1) // what follows mostly follows from it
            .collect());
    }
    let table = Table {
        source,
        entries: document.get_ref(),
        span: 0..0,
        taken: RefCell::new(BTreeSet::new()),
        diagnostics: &diagnostics,
    };
    let value = read(&table);
    table.finish();
    drop(table);
    let mut diagnostics = diagnostics.into_inner();
    // In the order of the file, not of the reading.
    diagnostics.sort_by_key(|d| if let Place::Span(span) = &d.place { span.range.start } else { 0 });
    match value {
        Some(value) if diagnostics.iter().all(|d| d.severity < crate::diag::Severity::Error) => {
            Ok((value, diagnostics))
        }
        _ => Err(diagnostics),
    }
}

/// Lets `take` look at a document of which nothing is complained here; nothing, if it cannot be parsed.
pub fn skim<T: Default>(source: &Arc<Source>, take: impl FnOnce(&Table<'_>) -> T) -> T {
    let mut taken = T::default();
    let _ = read(source, |table| {
        taken = take(table);
        Some(())
    });
    taken
}

/// A table of the document. Each key is taken once; [`Table::finish`] complains about the ones nobody took.
pub struct Table<'t> {
    source: &'t Arc<Source>,
    entries: &'t DeTable<'t>,
    /// Of the table itself, for complaints about what it lacks.
    span: Range<usize>,
    taken: RefCell<BTreeSet<&'static str>>,
    diagnostics: &'t RefCell<Vec<Diagnostic>>,
}

impl<'t> Table<'t> {
    fn get(&self, key: &'static str) -> Option<(&'t DeValue<'t>, Range<usize>)> {
        self.taken.borrow_mut().insert(key);
        self.entries.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| (v.get_ref(), v.span()))
    }

    fn place(&self, range: Range<usize>) -> Span {
        Span { source: self.source.clone(), range }
    }

    /// Where the table stands.
    pub fn span(&self) -> Span {
        self.place(self.span.clone())
    }

    /// Where the value of a key stands, or the table, if it lacks the key.
    pub fn place_of(&self, key: &'static str) -> Span {
        self.get(key).map_or_else(|| self.span(), |(_, range)| self.place(range))
    }

    /// Whether the key is there, with whatever value.
    pub fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// Adds a diagnostic of the reader's own.
    pub fn complain(&self, diagnostic: Diagnostic) {
        self.diagnostics.borrow_mut().push(diagnostic);
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &DeValue, range: Range<usize>) {
        self.complain(
            Diagnostic::error("wrong-type", format!("`{key}` is not {expected}"))
                .label(format!("expected {expected}, found {}", self.describe(found, &range)))
                .at(self.place(range)),
        );
    }

    /// A value in a message: numbers as they are written, anything else by its type.
    fn describe(&self, value: &DeValue, range: &Range<usize>) -> String {
        match value {
            DeValue::Integer(_) | DeValue::Float(_) => self.source.text[range.clone()].to_owned(),
            other => format!("{} {}", article(other.type_str()), other.type_str()),
        }
    }

    fn require<T>(&self, key: &'static str, what: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.entries.iter().any(|(k, _)| k.get_ref() == key) {
            self.complain(
                Diagnostic::error("missing-key", format!("`{key}` is missing"))
                    .at(self.span())
                    .label(format!("expected `{key} = …`, {what}")),
            );
        }
        value
    }

    /// A string, with its place.
    pub fn text(&self, key: &'static str) -> Option<Snippet> {
        let (value, range) = self.get(key)?;
        match value {
            DeValue::String(text) => Some(Snippet::from_toml(self.source, range, text)),
            other => {
                self.wrong_type(key, "a string", other, range);
                None
            }
        }
    }

    /// A string that has to be there.
    pub fn required_text(&self, key: &'static str, what: &str) -> Option<Snippet> {
        self.require(key, what, self.text(key))
    }

    /// A non-negative integer.
    pub fn integer(&self, key: &'static str) -> Option<u64> {
        let (value, range) = self.get(key)?;
        let parsed = non_negative(value);
        if parsed.is_none() {
            self.wrong_type(key, "a non-negative integer", value, range);
        }
        parsed
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        let (value, range) = self.get(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.wrong_type(key, "true or false", value, range);
        }
        flag
    }

    /// An integer above 0.
    pub fn count(&self, key: &'static str) -> Option<u64> {
        let (value, range) = self.get(key)?;
        let number = self.integer(key)?;
        if number == 0 {
            self.wrong_type(key, "an integer above 0", value, range);
        }
        Some(number)
    }

    /// A number above 0.
    pub fn positive(&self, key: &'static str) -> Option<f64> {
        let (value, range) = self.get(key)?;
        let number = number(value).filter(|n| *n > 0.0);
        if number.is_none() {
            self.wrong_type(key, "a number above 0", value, range);
        }
        number
    }

    /// One of the given words, or an integer above 0 where `number` allows it.
    pub fn word_or_integer(&self, key: &'static str, words: &[&str], number: bool) -> Option<WordOrInteger> {
        let (value, range) = self.get(key)?;
        match value {
            DeValue::String(word) if words.contains(&word.as_ref()) => {
                return Some(WordOrInteger::Word(word.to_string()));
            }
            DeValue::Integer(_) if number => return self.count(key).map(WordOrInteger::Integer),
            _ => {}
        }
        let mut expected: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        expected.extend(number.then(|| "an integer above 0".to_owned()));
        let expected = match expected.split_last() {
            Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            _ => expected.concat(),
        };
        let mut diagnostic = Diagnostic::error("wrong-value", format!("`{key}` has a value that is not known"))
            .at(self.place(range))
            .label(format!("expected {expected}"));
        if let DeValue::String(word) = value {
            diagnostic = diagnostic.did_you_mean(word, words.iter().copied());
        }
        self.complain(diagnostic);
        None
    }

    /// One of the given words.
    pub fn word(&self, key: &'static str, words: &[&str]) -> Option<String> {
        match self.word_or_integer(key, words, false)? {
            WordOrInteger::Word(word) => Some(word),
            WordOrInteger::Integer(_) => None,
        }
    }

    /// A list of strings, with their places.
    pub fn texts(&self, key: &'static str) -> Option<Vec<Snippet>> {
        let (value, range) = self.get(key)?;
        let Some(array) = value.as_array() else {
            self.wrong_type(key, "a list of strings", value, range);
            return None;
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push(Snippet::from_toml(self.source, item.span(), text)),
                other => self.wrong_type(key, "a list of strings", other, item.span()),
            }
        }
        Some(texts)
    }

    /// Every key of a table of strings, in the order of the file, with the place of the key.
    pub fn text_entries(&self, key: &'static str) -> Vec<(String, Span, Snippet)> {
        let Some((value, range)) = self.get(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong_type(key, "a table of strings", value, range);
            return Vec::new();
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut texts = Vec::new();
        for (name, value) in entries {
            match value.get_ref() {
                DeValue::String(text) => texts.push((
                    name.get_ref().to_string(),
                    self.place(name.span()),
                    Snippet::from_toml(self.source, value.span(), text),
                )),
                other => self.wrong_type(name.get_ref(), "a string", other, value.span()),
            }
        }
        texts
    }

    /// Where the values of a table stand, by key.
    pub fn places_in(&self, key: &'static str) -> Vec<(String, Span)> {
        let table = self.get(key).and_then(|(value, _)| value.as_table());
        let entries = table.into_iter().flat_map(|t| t.iter());
        entries.map(|(name, value)| (name.get_ref().to_string(), self.place(value.span()))).collect()
    }

    /// Every key of a table of non-negative integers, in the order of the file.
    pub fn integer_entries(&self, key: &'static str) -> Vec<(String, u64)> {
        let Some((value, range)) = self.get(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong_type(key, "a table of integers", value, range);
            return Vec::new();
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut integers = Vec::new();
        for (name, value) in entries {
            match non_negative(value.get_ref()) {
                Some(integer) => integers.push((name.get_ref().to_string(), integer)),
                None => self.wrong_type(name.get_ref(), "a non-negative integer", value.get_ref(), value.span()),
            }
        }
        integers
    }

    /// Every key of a table of non-negative numbers, in the order of the file, with the place of the key.
    pub fn number_entries(&self, key: &'static str) -> Vec<(String, Span, f64)> {
        let Some((value, range)) = self.get(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong_type(key, "a table of numbers", value, range);
            return Vec::new();
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut numbers = Vec::new();
        for (name, value) in entries {
            match number(value.get_ref()).filter(|n| *n >= 0.0) {
                Some(number) => numbers.push((name.get_ref().to_string(), self.place(name.span()), number)),
                None => self.wrong_type(name.get_ref(), "a number of 0 or more", value.get_ref(), value.span()),
            }
        }
        numbers
    }

    /// Reads every table of a table of tables, in the order of the file; `read` also gets the key and its place.
    pub fn table_entries<T>(&self, key: &'static str, read: impl Fn(&str, Span, &Table<'_>) -> T) -> Vec<T> {
        let Some((value, range)) = self.get(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong_type(key, "a table of tables", value, range);
            return Vec::new();
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut list = Vec::new();
        for (name, value) in entries {
            match value.get_ref() {
                DeValue::Table(inner) => {
                    let place = self.place(name.span());
                    list.push(self.nested(inner, value.span(), |t| read(name.get_ref(), place, t)));
                }
                other => self.wrong_type(name.get_ref(), "a table", other, value.span()),
            }
        }
        list
    }

    /// The keys of a table, without taking what they hold.
    pub fn keys_of(&self, key: &'static str) -> Vec<String> {
        let table = self.get(key).and_then(|(value, _)| value.as_table());
        let mut entries: Vec<_> = table.into_iter().flat_map(|t| t.iter()).collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        entries.into_iter().map(|(name, _)| name.get_ref().to_string()).collect()
    }

    /// Reads a table.
    pub fn table<T>(&self, key: &'static str, read: impl FnOnce(&Table<'_>) -> T) -> Option<T> {
        let (value, range) = self.get(key)?;
        match value {
            DeValue::Table(entries) => Some(self.nested(entries, range, read)),
            other => {
                self.wrong_type(key, "a table", other, range);
                None
            }
        }
    }

    /// Whether `key` holds a table, for keys that take a word or a table.
    pub fn is_table(&self, key: &'static str) -> bool {
        self.get(key).is_some_and(|(value, _)| value.is_table())
    }

    /// Reads an array of tables; one that cannot be read is left out after its complaint.
    pub fn tables<T>(&self, key: &'static str, read: impl Fn(&Table<'_>) -> Option<T>) -> Vec<T> {
        let Some((value, range)) = self.get(key) else { return Vec::new() };
        let Some(array) = value.as_array() else {
            self.wrong_type(key, "an array of tables", value, range);
            return Vec::new();
        };
        let mut list = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::Table(entries) => list.extend(self.nested(entries, item.span(), &read)),
                other => self.wrong_type(key, "an array of tables", other, item.span()),
            }
        }
        list
    }

    fn nested<T>(&self, entries: &DeTable<'_>, span: Range<usize>, read: impl FnOnce(&Table<'_>) -> T) -> T {
        let table =
            Table { source: self.source, entries, span, taken: RefCell::default(), diagnostics: self.diagnostics };
        let value = read(&table);
        table.finish();
        value
    }

    /// Complains about keys that were not taken.
    fn finish(&self) {
        let taken = self.taken.borrow();
        for (key, _) in self.entries.iter().filter(|(key, _)| !taken.contains(key.get_ref().as_ref())) {
            self.complain(
                Diagnostic::error("unknown-key", format!("`{}` is not a key here", key.get_ref()))
                    .at(self.place(key.span()))
                    .label("not known")
                    .did_you_mean(key.get_ref(), taken.iter().copied())
                    .note("note", format!("keys here: {}", listing(taken.iter().copied()))),
            );
        }
    }
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    let text = value.as_float().map(|f| f.as_str()).or(value.as_integer().map(|i| i.as_str()))?;
    text.replace('_', "").parse().ok().filter(|n: &f64| n.is_finite())
}

fn non_negative(value: &DeValue<'_>) -> Option<u64> {
    value.as_integer().and_then(|i| u64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordOrInteger {
    Word(String),
    Integer(u64),
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
