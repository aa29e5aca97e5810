//! Findings, and the tallies they are made of.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use serde_json::{Value, json};

use super::code::Code;
use crate::diag::{Diagnostic, Span};
use crate::task::Task;
use crate::template::definition::Body;
use crate::template::engine::Traced;
use crate::template::snippet::Snippet;

/// Something about a task that should be looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub code: &'static Code,
    pub task: String,
    pub template: Option<String>,
    pub message: String,
    pub place: Span,
    /// Prompts or rows that show it, and how many were looked at; `None` where no row was needed.
    pub shown: Option<(u64, u64)>,
    /// The first rows that show it.
    pub rows: Vec<RowName>,
    /// The rendered text around it, for the first of these rows.
    pub excerpts: Vec<Excerpt>,
    /// Why the definition allows it.
    pub allowed: Option<String>,
}

/// A row as people name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowName {
    /// A split of the corpus.
    pub split: String,
    pub row: u64,
}

/// Rendered text with the stretch that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub before: String,
    pub marked: String,
    pub after: String,
}

/// One of the two texts of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Inputs,
    Targets,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Inputs, Side::Targets];

    pub fn name(self) -> &'static str {
        match self {
            Side::Inputs => "inputs",
            Side::Targets => "targets",
        }
    }
}

/// A place in a definition, as long as rows are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    Task,
    Field(usize),
    /// A feature of the corpus that templates see themselves.
    Feature(usize),
    Template(usize),
    /// Bytes of a template's text.
    Text {
        template: usize,
        side: Side,
        from: usize,
        to: usize,
    },
}

impl Spot {
    pub fn text(template: usize, side: Side, source: &Range<usize>) -> Spot {
        Spot::Text { template, side, from: source.start, to: source.end }
    }

    pub fn template(self) -> Option<usize> {
        match self {
            Spot::Template(template) | Spot::Text { template, .. } => Some(template),
            Spot::Task | Spot::Field(_) | Spot::Feature(_) => None,
        }
    }

    fn span(self, task: &Task) -> Span {
        let definition = &task.definition;
        match self {
            Spot::Task => definition.task.whole_span(),
            Spot::Field(field) => definition.fields[field].expression.whole_span(),
            Spot::Feature(_) => definition.corpus_place.clone(),
            Spot::Template(template) => definition.templates[template].name.whole_span(),
            Spot::Text { template, side, from, to } => side_of(task, template, side).span(from..to),
        }
    }
}

/// The source of one side of a template.
pub fn side_of(task: &Task, template: usize, side: Side) -> &Snippet {
    match (&task.definition.templates[template].body, side) {
        (Body::Sides { inputs, .. }, Side::Inputs) => inputs,
        (Body::Sides { targets, .. }, Side::Targets) => targets,
        // Both are in one text.
        (Body::Prompt { prompt, .. }, _) => prompt,
    }
}

impl Finding {
    /// A finding that the definition alone shows.
    pub fn new(code: &'static Code, task: &Task, spot: Spot, message: impl Into<String>) -> Finding {
        let template = spot.template().map(|t| task.definition.templates[t].name.text.clone());
        Finding {
            code,
            task: task.name().to_owned(),
            template,
            message: message.into(),
            place: spot.span(task),
            shown: None,
            rows: Vec::new(),
            excerpts: Vec::new(),
            allowed: None,
        }
    }

    /// With the place of a snippet that stands nowhere else.
    #[must_use]
    pub fn at(mut self, place: Span) -> Finding {
        self.place = place;
        self
    }

    /// Adds the rows that show it, out of `of`.
    #[must_use]
    pub fn shown(self, tally: Tally, of: u64) -> Finding {
        Finding { shown: Some((tally.count, of)), rows: tally.rows, excerpts: tally.excerpts, ..self }
    }

    /// As a message.
    pub fn diagnostic(&self) -> Diagnostic {
        let mut message = self.message.clone();
        if let Some(template) = &self.template {
            let _ = write!(message, ", template `{template}`"); // writing to a string does not fail
        }
        let mut diagnostic = Diagnostic::error(self.code.name, format!("{}: {message}", self.task));
        diagnostic.severity = self.code.severity;
        diagnostic = diagnostic.at(self.place.clone());
        if let Some((count, of)) = self.shown {
            let share = 100.0 * count as f64 / of.max(1) as f64;
            let rows: Vec<String> = self.rows.iter().map(|r| format!("{}:{}", r.split, r.row)).collect();
            let rows = if rows.is_empty() { String::new() } else { format!(": {}", rows.join(", ")) };
            diagnostic = diagnostic.note("shown by", format!("{count} of {of} ({share:.1} %){rows}"));
        }
        for excerpt in &self.excerpts {
            diagnostic = diagnostic.note("text", excerpt.line());
        }
        match &self.allowed {
            Some(why) => diagnostic.note("allowed", why),
            None => diagnostic.help(self.code.help),
        }
    }

    pub fn json(&self) -> Value {
        let (line, column) = self.place.source.line_column(self.place.range.start);
        json!({
            "kind": "finding",
            "code": self.code.name,
            "severity": self.code.severity.name(),
            "task": self.task,
            "template": self.template,
            "message": self.message,
            "file": self.place.source.name,
            "line": line,
            "column": column,
            "span": [self.place.range.start, self.place.range.end],
            "count": self.shown.map(|(count, _)| count),
            "of": self.shown.map(|(_, of)| of),
            "rows": self.rows.iter().map(|r| json!({ "split": r.split, "row": r.row })).collect::<Vec<_>>(),
            "text": self.excerpts.iter().map(|e| json!([e.before, e.marked, e.after])).collect::<Vec<_>>(),
            "help": self.code.help,
            "allowed": self.allowed,
        })
    }
}

impl Excerpt {
    /// Characters shown on either side.
    const AROUND: usize = 36;
    const MARKED: usize = 80;

    pub fn new(text: &str, range: Range<usize>) -> Excerpt {
        let before: String = {
            let mut characters: Vec<char> = text[..range.start].chars().rev().take(Self::AROUND).collect();
            characters.reverse();
            characters.into_iter().collect()
        };
        let marked = &text[range.clone()];
        let short: String = marked.chars().take(Self::MARKED).collect();
        let marked = if short.len() < marked.len() { format!("{short}…") } else { short };
        Excerpt { before, marked, after: text[range.end..].chars().take(Self::AROUND).collect() }
    }

    /// The whole text of a side, where no stretch of it matters more than the rest.
    pub fn whole(side: &Traced) -> Excerpt {
        Excerpt::new(&side.text, 0..side.text.len())
    }

    /// On one line, line breaks shown.
    pub fn line(&self) -> String {
        let shown = |c: char| match c {
            '\n' => "↵".to_owned(),
            c if is_unseen(c) => c.escape_unicode().to_string(),
            c => c.to_string(),
        };
        format!("{}⟦{}⟧{}", self.before, self.marked, self.after).chars().map(shown).collect()
    }
}

/// Characters that are not meant to be seen, those of writing direction and of no width among them.
pub fn is_unseen(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// What has been counted of one thing at one place.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub count: u64,
    pub rows: Vec<RowName>,
    pub excerpts: Vec<Excerpt>,
}

impl Tally {
    const ROWS: usize = 5;
    const EXCERPTS: usize = 2;

    /// Counts a row, the rows coming in order.
    pub fn add(&mut self, row: impl FnOnce() -> RowName, excerpt: impl FnOnce() -> Option<Excerpt>) {
        self.count += 1;
        if self.rows.len() < Self::ROWS {
            self.rows.push(row());
        }
        if self.excerpts.len() < Self::EXCERPTS {
            self.excerpts.extend(excerpt());
        }
    }

    pub fn absorb(&mut self, later: Tally) {
        self.count += later.count;
        self.rows.extend(later.rows);
        self.rows.truncate(Self::ROWS);
        self.excerpts.extend(later.excerpts);
        self.excerpts.truncate(Self::EXCERPTS);
    }
}

/// The tallies of a task: by code, place and message.
#[derive(Debug, Default)]
pub struct Tallies(pub BTreeMap<(&'static str, Spot, String), Tally>);

impl Tallies {
    pub fn of(&mut self, code: &'static Code, spot: Spot, message: impl Into<String>) -> &mut Tally {
        self.0.entry((code.name, spot, message.into())).or_default()
    }

    pub fn absorb(&mut self, later: Tallies) {
        for (key, tally) in later.0 {
            self.0.entry(key).or_default().absorb(tally);
        }
    }
}
