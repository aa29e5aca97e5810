//! A string taken from a TOML file that still knows where each of its bytes stands there.
//!
//! Templates and expressions are TOML strings; a message about byte 40 of a template has to underline the right
//! characters of the definition, whichever of TOML's four ways of quoting was used.

use std::ops::Range;
use std::sync::Arc;

use crate::diag::{Source, Span};

/// Text with its origin.
#[derive(Clone, Debug)]
pub struct Snippet {
    pub text: String,
    source: Arc<Source>,
    /// Offset in `source` of each byte of `text`, and of its end.
    origin: Vec<u32>,
}

impl Snippet {
    /// A text that is its own source, e.g. an expression from the command line.
    pub fn whole(name: &str, text: &str) -> Snippet {
        Snippet { text: text.to_owned(), source: Source::new(name, text), origin: (0..=text.len() as u32).collect() }
    }

    /// The TOML string whose literal, quotes included, stands at `literal` in `source` and has the value `text`.
    pub fn from_toml(source: &Arc<Source>, literal: Range<usize>, text: &str) -> Snippet {
        let raw = &source.text[literal.clone()];
        let quotes = if raw.starts_with("\"\"\"") || raw.starts_with("'''") { 3 } else { 1 };
        let escapes = raw.starts_with('"');
        let mut at = quotes;
        if quotes == 3 {
            // TOML drops a newline right after the opening quotes.
            at += if raw[at..].starts_with("\r\n") { 2 } else { usize::from(raw[at..].starts_with('\n')) };
        }
        let mut origin = Vec::with_capacity(text.len() + 1);
        for c in text.chars() {
            if escapes {
                at += folded_lines(&raw[at..]);
            }
            let width = match raw[at..].chars().next() {
                Some('\\') if escapes => escape_length(&raw[at..]),
                Some('\r') if c == '\n' => 2,
                Some(found) => found.len_utf8(),
                None => 0,
            };
            origin.extend(std::iter::repeat_n((literal.start + at) as u32, c.len_utf8()));
            at = (at + width).min(raw.len());
        }
        origin.push((literal.start + at) as u32);
        Snippet { text: text.to_owned(), source: source.clone(), origin }
    }

    /// Where `range` of the text stands in its source.
    pub fn span(&self, range: Range<usize>) -> Span {
        let last = self.origin.len() - 1;
        let start = self.origin[range.start.min(last)] as usize;
        let end = (self.origin[range.end.min(last)] as usize).max(start);
        Span { source: self.source.clone(), range: start..end }
    }

    /// The part of the text that a place in its source is about; `None` if it is a place elsewhere.
    pub fn part_at(&self, span: &Span) -> Option<Range<usize>> {
        let (first, last) = (self.origin.first()?, self.origin.last()?);
        let within = *first as usize <= span.range.start && span.range.end <= *last as usize;
        let at = |offset: usize| {
            let at = self.origin.partition_point(|&o| (o as usize) < offset);
            (at..=self.text.len()).find(|&at| self.text.is_char_boundary(at)).unwrap_or(self.text.len())
        };
        (within && Arc::ptr_eq(&self.source, &span.source)).then(|| at(span.range.start)..at(span.range.end))
    }

    /// Where the whole text stands in its source.
    pub fn whole_span(&self) -> Span {
        self.span(0..self.text.len())
    }
}

/// Length of the escape sequence at the start of `raw`, which begins with a backslash.
fn escape_length(raw: &str) -> usize {
    match raw.as_bytes().get(1) {
        Some(b'u') => 6,
        Some(b'U') => 10,
        Some(b'x') => 4,
        _ => 2,
    }
}

/// Length of the line continuations (a backslash before a line's end, and the blanks after it) at the start of `raw`.
fn folded_lines(raw: &str) -> usize {
    let mut rest = raw;
    while let Some(after) = rest.strip_prefix('\\') {
        let blank = after.trim_start_matches([' ', '\t']);
        if !blank.starts_with('\n') && !blank.starts_with("\r\n") {
            break;
        }
        rest = blank.trim_start_matches([' ', '\t', '\r', '\n']);
    }
    raw.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_map_to_their_place_in_every_way_of_quoting() {
        for literal in [
            "'a {{ x }} b'",
            "'''\na {{ x }} b'''",
            "\"a {{ x }} b\"",
            "\"\"\"a \\\n   {{ x }} b\"\"\"",
            "\"\\u0061 {{ x }} b\"",
        ] {
            let file = format!("key = {literal}\n");
            let source = Source::new("f.toml", file.clone());
            let snippet = Snippet::from_toml(&source, 6..6 + literal.len(), "a {{ x }} b");
            let span = snippet.span(2..9);
            assert_eq!(&file[span.range.clone()], "{{ x }}", "{literal}");
            assert_eq!(snippet.part_at(&span), Some(2..9), "{literal}");
            assert_eq!(snippet.part_at(&Span { range: 0..3, ..span }), None);
        }
    }
}
