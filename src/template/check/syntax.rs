//! The parser's errors, said in the words of the template.
//!
//! The parser stops at its first error and names tokens ("unexpected integer, expected end of block"). Here the token
//! is quoted, and where the parser only noticed a missing end at the very end of the text, the place shown is the
//! beginning of what was never closed.

use std::ops::Range;

use minijinja::machinery::{Token, tokenize};

use crate::diag::Diagnostic;
use crate::template::snippet::Snippet;

/// Statements of Jinja that bring in other templates.
const OTHER_TEMPLATES: &[&str] = &["include", "import", "from", "extends", "block"];

/// Statements that have an `end…`; a `set` has one if it assigns nothing.
const BLOCKS: &[&str] = &["for", "if", "with", "macro", "call", "filter", "autoescape", "set"];

const STATEMENTS: &[&str] = &[
    "for",
    "else",
    "elif",
    "endfor",
    "if",
    "endif",
    "set",
    "endset",
    "with",
    "endwith",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "autoescape",
    "endautoescape",
    "raw",
    "endraw",
    "do",
    "break",
    "continue",
];

/// The diagnostic for an error that the parser of minijinja returned.
pub fn explain(snippet: &Snippet, is_template: bool, error: &minijinja::Error) -> Diagnostic {
    let text = &snippet.text;
    let range = range_of(text, error);
    let detail = error.detail().unwrap_or("this cannot be read as a template");
    let expected = detail.split_once(", expected ").map(|(_, expected)| closing_mark(expected));

    if let Some(statement) = detail.strip_prefix("unknown statement ") {
        return unknown_statement(snippet, range, statement);
    }
    if detail.starts_with("unexpected end of input") {
        return ended(snippet, is_template, expected);
    }
    if let Some(what @ ("string" | "comment" | "raw block")) = detail.strip_prefix("unexpected end of ") {
        // The place the parser gives is the end of the text.
        let opener = match what {
            "comment" => text.rfind("{#"),
            "raw block" => text.rfind("{%"),
            _ => unclosed_quote(text, is_template),
        };
        let from = opener.unwrap_or(range.start);
        let first_line = text[from..].lines().next().unwrap_or("").len();
        return syntax(snippet, from..from + first_line, format!("this {what} is never closed"));
    }
    if let Some(name) = detail.strip_prefix("cannot assign to reserved variable name ") {
        return syntax(snippet, range, format!("`{name}` is a reserved name, and cannot be set"));
    }
    if detail == "unexpected input after expression" {
        return syntax(snippet, range, "the expression is complete before this").help("is an operator missing?");
    }
    if detail == "template exceeds maximum recursion limits" {
        return syntax(snippet, range, "this is nested too deeply").help("give parts of it names with `{% set %}`");
    }

    let found = &text[range.clone()];
    let closes = found.ends_with("}}") || found.ends_with("%}");
    match expected {
        Some("an expression") if closes => {
            syntax(snippet, range.clone(), format!("an expression is missing before `{found}`"))
        }
        Some(expected) if found.is_empty() => syntax(snippet, range, format!("expected {expected}")),
        Some(expected) => syntax(snippet, range.clone(), format!("expected {expected}, found `{found}`")),
        None if detail.starts_with("unexpected ") && closes => {
            syntax(snippet, range.clone(), format!("an expression is missing before `{found}`"))
        }
        None if detail.starts_with("unexpected ") && !found.is_empty() => {
            syntax(snippet, range.clone(), format!("`{found}` cannot stand here"))
        }
        None => syntax(snippet, range, detail.to_owned()),
    }
}

fn syntax(snippet: &Snippet, range: Range<usize>, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error("syntax-error", message).at(snippet.span(range))
}

/// Where the string begins that the tokenizer stumbles over: at the first quote after the last token it could read.
fn unclosed_quote(text: &str, is_template: bool) -> Option<usize> {
    let read = tokenize(text, !is_template, Default::default()).map_while(Result::ok).last();
    let from = read.map_or(0, |(_, span)| span.end_offset as usize);
    text.get(from..)?.find(['\'', '"']).map(|at| from + at)
}

/// The bytes that the error is about, moved onto character boundaries.
fn range_of(text: &str, error: &minijinja::Error) -> Range<usize> {
    let range = error.range().unwrap_or(text.len()..text.len());
    let boundary = |mut offset: usize| {
        offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset += 1;
        }
        offset
    };
    let start = boundary(range.start);
    start..boundary(range.end.max(start))
}

/// What the parser expected, as it is written.
fn closing_mark(expected: &str) -> &str {
    match expected {
        "end of variable block" => "`}}`",
        "end of block" => "`%}`",
        "expression" => "an expression",
        "identifier" => "a name",
        "identifier or integer" => "a name or a number",
        "assignment operator" => "`=`",
        "comma" => "`,`",
        "in" => "`in`",
        "block keyword" | "keyword" => "a statement",
        other => other,
    }
}

fn unknown_statement(snippet: &Snippet, range: Range<usize>, name: &str) -> Diagnostic {
    if OTHER_TEMPLATES.contains(&name) {
        return Diagnostic::error("no-other-templates", format!("`{{% {name} %}}` is not available here"))
            .at(snippet.span(range))
            .label("a template stands alone")
            .help("repeat the text, or share it within the template by `{% macro %}`");
    }
    let open = Open::at_end_of(&snippet.text[..range.start]);
    if let (true, Some((opener, _))) = (STATEMENTS.contains(&name), open.blocks.last()) {
        return syntax(
            snippet,
            range,
            format!("`{{% {name} %}}` does not belong to `{{% {opener} %}}`, which is open here"),
        )
        .help(format!("close that with `{{% end{opener} %}}` first"));
    }
    if STATEMENTS.contains(&name) {
        return syntax(snippet, range, format!("`{{% {name} %}}` closes nothing: no block is open here"));
    }
    syntax(snippet, range, format!("there is no statement `{name}`")).did_you_mean(name, STATEMENTS.iter().copied())
}

/// The text ended where more was expected.
fn ended(snippet: &Snippet, is_template: bool, expected: Option<&str>) -> Diagnostic {
    let text = &snippet.text;
    let end = text.trim_end().len();
    if is_template {
        let open = Open::at_end_of(text);
        if let Some((mark, range)) = open.mark {
            let closing = if mark == "{{" { "}}" } else { "%}" };
            return syntax(snippet, range, format!("`{mark}` is never closed"))
                .help(format!("close it with `{closing}`"));
        }
        if let Some((block, range)) = open.blocks.last() {
            return syntax(snippet, range.clone(), format!("`{{% {block} %}}` is never closed"))
                .help(format!("close it with `{{% end{block} %}}`"));
        }
    }
    if text.trim().is_empty() {
        return syntax(snippet, 0..text.len(), "an expression is missing");
    }
    let what = if is_template { "template" } else { "expression" };
    let expected = expected.unwrap_or("more");
    let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
    syntax(snippet, last..end, format!("the {what} ends where {expected} is expected"))
}

/// What is open at the end of a text.
#[derive(Default)]
struct Open {
    /// An opening `{{` or `{%`.
    mark: Option<(&'static str, Range<usize>)>,
    /// Names of statements that wait for their end, outermost first.
    blocks: Vec<(String, Range<usize>)>,
}

impl Open {
    fn at_end_of(text: &str) -> Open {
        let mut open = Open::default();
        let mut statement: Option<(&str, Range<usize>)> = None;
        let mut assigns = false;
        let mut begins = false;
        for token in tokenize(text, false, Default::default()) {
            let Ok((token, span)) = token else { break };
            let range = span.start_offset as usize..span.end_offset as usize;
            match token {
                Token::VariableStart => open.mark = Some(("{{", range)),
                Token::BlockStart => {
                    open.mark = Some(("{%", range));
                    (statement, assigns, begins) = (None, false, true);
                    continue;
                }
                Token::Ident(name) if begins => statement = Some((name, range)),
                Token::Assign => assigns = true,
                Token::VariableEnd => open.mark = None,
                Token::BlockEnd => {
                    open.mark = None;
                    match statement.take() {
                        Some(("set", _)) if assigns => {}
                        Some((name, range)) if BLOCKS.contains(&name) => open.blocks.push((name.to_owned(), range)),
                        Some((name, _)) => {
                            let closed = name.strip_prefix("end");
                            if closed.is_some() && open.blocks.last().map(|(block, _)| block.as_str()) == closed {
                                open.blocks.pop();
                            }
                        }
                        None => {}
                    }
                }
                _ => {}
            }
            begins = false;
        }
        open
    }
}
