//! What can be wrong, said so that it can be put right.
//!
//! Every refusal in flanc is a [`Diagnostic`]: a stable kebab-case code, one sentence, the place, and
//! notes that say what was expected, what was found and what to try. A phase that can find several things
//! wrong returns all of them; nothing stops at the first slip of a long definition.
//!
//! ```text
//! error[unknown-variable]: `premis` is not a field of task `rte`
//!   --> natural-language-inference/rte.toml:31:4
//!    |
//! 31 | {{ premis }}
//!    |    ^^^^^^ not defined here
//!    = help: did you mean `premise`?
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of anything that can fail for a reason its user can act upon.
pub type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Note,
    Warning,
    Error,
}

impl Severity {
    pub const ALL: [Severity; 3] = [Severity::Error, Severity::Warning, Severity::Note];

    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// A text that diagnostics can point into: a definition, a recipe, an expression given on the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Source> {
        Arc::new(Source { name: name.into(), text: text.into() })
    }

    /// One-based line and column (in characters) of a byte offset.
    pub fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = self.before(offset);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// The text before `offset`, which is first moved back to a character boundary and into the text.
    fn before(&self, offset: usize) -> &str {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        &self.text[..offset]
    }
}

/// A stretch of a [`Source`], in bytes.
#[derive(Clone, Debug)]
pub struct Span {
    pub source: Arc<Source>,
    pub range: Range<usize>,
}

/// Where something is wrong.
#[derive(Clone, Debug, Default)]
pub enum Place {
    #[default]
    Nowhere,
    Path(PathBuf),
    Span(Span),
    /// A record of a shard, counted from 0, and the byte offset at which it (or what stands in its place) begins.
    Record {
        file: PathBuf,
        record: u64,
        offset: Option<u64>,
    },
}

#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub severity: Severity,
    pub code: &'static str,
    pub message: String,
    pub place: Place,
    /// Printed under the marked text of a [`Place::Span`].
    pub label: String,
    /// `("expected" | "found" | "help" | "note" | …, text)`, in the order in which they were added.
    pub notes: Vec<(&'static str, String)>,
}

impl Diagnostic {
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }

    fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic {
            severity,
            code,
            message: message.into(),
            place: Place::Nowhere,
            label: String::new(),
            notes: Vec::new(),
        }
    }

    #[must_use]
    pub fn at(mut self, place: impl Into<Place>) -> Self {
        self.place = place.into();
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub fn expected(self, text: impl Into<String>) -> Self {
        self.note("expected", text)
    }

    #[must_use]
    pub fn found(self, text: impl Into<String>) -> Self {
        self.note("found", text)
    }

    #[must_use]
    pub fn help(self, text: impl Into<String>) -> Self {
        self.note("help", text)
    }

    #[must_use]
    pub fn note(mut self, kind: &'static str, text: impl Into<String>) -> Self {
        self.notes.push((kind, text.into()));
        self
    }

    /// Adds "did you mean …?" where one of `names` is close to `wrong`.
    #[must_use]
    pub fn did_you_mean<'n>(self, wrong: &str, names: impl IntoIterator<Item = &'n str>) -> Self {
        match closest(wrong, names) {
            Some(name) => self.help(format!("did you mean `{name}`?")),
            None => self,
        }
    }
}

/// A single diagnostic where a list is returned.
#[allow(clippy::boxed_local)] // a box is what every function that fails for one reason returns
pub fn one(diagnostic: Box<Diagnostic>) -> Vec<Diagnostic> {
    vec![*diagnostic]
}

/// The name nearest to `wrong` by edit distance, if it is near enough to be a slip of the same word.
pub fn closest<'n>(wrong: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let limit = (wrong.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Names as they stand in a message: `a`, `b` and `c`; long lists are cut, saying so.
pub fn listing<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 24;
    let names: Vec<&str> = names.into_iter().collect();
    let mut text = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    if names.is_empty() { "nothing".to_owned() } else { text }
}

impl From<Span> for Place {
    fn from(span: Span) -> Self {
        Place::Span(span)
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Place::Path(path.to_owned())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Place::Path(path.clone())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}[{}]: {}", self.severity.name(), self.code, printable(&self.message))?;
        let mut margin = 1;
        match &self.place {
            Place::Nowhere => {}
            Place::Path(path) => writeln!(f, "  --> {}", path.display())?,
            Place::Record { file, record, offset } => {
                write!(f, "  --> {}, record {record}", file.display())?;
                match offset {
                    Some(offset) => writeln!(f, ", byte {offset}")?,
                    None => writeln!(f)?,
                }
            }
            Place::Span(span) => margin = write_span(f, span, &self.label)?,
        }
        for (kind, text) in &self.notes {
            writeln!(f, "{:margin$} = {kind}: {}", "", printable(text))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// Writes place, line and underline; returns the width of the margin that line numbers take.
fn write_span(f: &mut fmt::Formatter<'_>, span: &Span, label: &str) -> Result<usize, fmt::Error> {
    let source = &span.source;
    let (line, column) = source.line_column(span.range.start);
    let text = source.text.lines().nth(line - 1).unwrap_or("");
    let margin = line.to_string().len();
    let marked = source.before(span.range.end).len().saturating_sub(source.before(span.range.start).len());
    let start = source.before(span.range.start).len();
    let marked = source.text[start..start + marked].split('\n').next().unwrap_or("").chars().count().max(1);
    // Tabs would move the underline; every control character takes one column.
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    writeln!(f, "{:margin$}--> {}:{line}:{column}", "", source.name)?;
    writeln!(f, "{:margin$} |", "")?;
    writeln!(f, "{line} | {shown}")?;
    writeln!(f, "{:margin$} | {:before$}{} {label}", "", "", "^".repeat(marked), before = column - 1)?;
    Ok(margin)
}

/// Messages quote foreign bytes; control characters in them must not reach a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}
