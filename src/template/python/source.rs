//! A template's source, written so that the engine does with it what Jinja2 does.

use std::collections::BTreeSet;

use minijinja::Error;
use minijinja::machinery::{Span, Token, tokenize};

use crate::template::check::LARGEST_SOURCE;

/// Methods that change the list or dict they are called on.
const CHANGING: [&str; 9] = ["append", "extend", "insert", "pop", "remove", "reverse", "sort", "update", "setdefault"];

/// By how much [`source`] may make a source longer: one literal takes two bytes at least, and `_mut()` is six.
pub const LONGER: usize = 3 * LARGEST_SOURCE;

/// A template's source as the engine gets it: with `\n` at the ends of lines, as Jinja2 reads it, and with lists and
/// dicts that change where the template calls a method that changes one.
///
/// Only literals behind a `=`, and those within them, are wrapped: no other can be changed and then be seen.
pub fn source(template: &str) -> String {
    let lines = template.replace("\r\n", "\n").replace('\r', "\n");
    let tokens: Result<Vec<(Token<'_>, Span)>, Error> = tokenize(&lines, false, Default::default()).collect();
    let Ok(tokens) = tokens else { return lines }; // the parser will say what is wrong
    let changes = tokens.windows(3).any(|three| {
        matches!(three, [(Token::Dot, _), (Token::Ident(name), _), (Token::ParenOpen, _)] if CHANGING.contains(name))
    });
    if !changes {
        return lines;
    }
    let lines = loops_without_filters(&lines, &tokens).unwrap_or(lines.clone());
    let tokens: Result<Vec<(Token<'_>, Span)>, Error> = tokenize(&lines, false, Default::default()).collect();
    let Ok(tokens) = tokens else { return lines };
    let mut written = String::with_capacity(lines.len() + 64);
    let mut copied = 0;
    // For each open bracket: whether it is a literal that has been wrapped.
    let mut open: Vec<bool> = Vec::new();
    let mut follows_assign = false;
    let mut follows_value = false;
    for (token, span) in &tokens {
        let start = span.start_offset as usize;
        let end = span.end_offset as usize;
        match token {
            Token::BracketOpen | Token::BraceOpen => {
                let literal = !follows_value || matches!(token, Token::BraceOpen);
                let wrap = literal && (follows_assign || open.last() == Some(&true));
                if wrap {
                    written.push_str(&lines[copied..start]);
                    written.push_str("_mut(");
                    copied = start;
                }
                open.push(wrap);
            }
            Token::ParenOpen => open.push(false),
            Token::BracketClose | Token::BraceClose | Token::ParenClose if open.pop() == Some(true) => {
                written.push_str(&lines[copied..end]);
                written.push(')');
                copied = end;
            }
            Token::BlockStart | Token::VariableStart => open.clear(),
            _ => {}
        }
        follows_assign = matches!(token, Token::Assign);
        follows_value = matches!(
            token,
            Token::Ident(_)
                | Token::Str(_)
                | Token::String(_)
                | Token::BracketClose
                | Token::ParenClose
                | Token::BraceClose
        );
    }
    written.push_str(&lines[copied..]);
    written
}

/// Loops with their filters as an `if` in their body, where nothing tells the difference but that the filter is
/// evaluated for each item when its turn comes, as Jinja2 does: the engine evaluates it for all items first, and a list
/// that the body appends to is still empty then.
fn loops_without_filters(source: &str, tokens: &[(Token<'_>, Span)]) -> Option<String> {
    // `loop` counts what passes a filter, and so does an `else`.
    if tokens.iter().any(|(token, _)| matches!(token, Token::Ident("loop" | "else" | "recursive"))) {
        return None;
    }
    let mut inserts: Vec<(usize, &str)> = Vec::new();
    let mut open: Vec<bool> = Vec::new();
    for (i, three) in tokens.windows(2).enumerate() {
        match three {
            [(Token::BlockStart, _), (Token::Ident("for"), _)] => {
                let end = tokens[i..].iter().position(|(token, _)| matches!(token, Token::BlockEnd))? + i;
                let mut depth = 0i32;
                let filter = tokens[i..end].iter().position(|(token, _)| {
                    match token {
                        Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
                        Token::ParenClose | Token::BracketClose | Token::BraceClose => depth -= 1,
                        _ => {}
                    }
                    depth == 0 && matches!(token, Token::Ident("if"))
                });
                open.push(filter.is_some());
                if let Some(filter) = filter {
                    inserts.push((tokens[i + filter].1.start_offset as usize, "%}{% "));
                }
            }
            [(Token::BlockStart, span), (Token::Ident("endfor"), _)] if open.pop()? => {
                // Blanks that the tag takes away are those before it, and then before the `if`'s end.
                let start = span.start_offset as usize;
                let trims = source[start..].starts_with("{%-");
                inserts.push((start, if trims { "{%- endif %}" } else { "{% endif %}" }));
            }
            _ => {}
        }
    }
    let mut written = String::with_capacity(source.len() + 64);
    let mut copied = 0;
    for (at, text) in inserts {
        written.push_str(&source[copied..at]);
        written.push_str(text);
        copied = at;
    }
    written.push_str(&source[copied..]);
    Some(written)
}

/// Every name in a template, or in an expression: of variables, filters, attributes, and whatever else.
pub fn names(source: &str, expression: bool) -> BTreeSet<String> {
    let tokens = tokenize(source, expression, Default::default());
    tokens.map_while(Result::ok).filter_map(|(token, _)| identifier(&token)).collect()
}

/// The names that stand before the last separator of a template.
pub fn names_before_separator(source: &str) -> BTreeSet<String> {
    let end = source.rfind("|||").unwrap_or(source.len());
    let tokens = tokenize(source, false, Default::default()).map_while(Result::ok);
    tokens.filter(|(_, span)| (span.start_offset as usize) < end).filter_map(|(token, _)| identifier(&token)).collect()
}

fn identifier(token: &Token<'_>) -> Option<String> {
    if let Token::Ident(name) = token { Some((*name).to_owned()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_literals_that_change_are_wrapped() {
        for (source_text, written) in [
            ("{% set a = [] %}{{ a }}", "{% set a = [] %}{{ a }}"),
            ("{% set a = [] %}{{ a.append(1) }}", "{% set a = _mut([]) %}{{ a.append(1) }}"),
            (
                "{% set a = [[1], {'k': [2]}] %}{{ a.pop() }}",
                "{% set a = _mut([_mut([1]), _mut({'k': _mut([2])})]) %}{{ a.pop() }}",
            ),
            (
                "{{ x[0] }} [ {% set n = namespace(v={}) %}{{ n.v.update({}) }}",
                "{{ x[0] }} [ {% set n = namespace(v=_mut({})) %}{{ n.v.update({}) }}",
            ),
            ("a\r\nb\rc", "a\nb\nc"),
            (
                "{%- for x in f(a if b) if x not in c -%} {{ c.append(x) }} {%- endfor -%}",
                "{%- for x in f(a if b) %}{% if x not in c -%} {{ c.append(x) }} {%- endif %}{%- endfor -%}",
            ),
            (
                "{% for x in a if x %}{{ loop.index }}{{ c.pop() }}{% endfor %}",
                "{% for x in a if x %}{{ loop.index }}{{ c.pop() }}{% endfor %}",
            ),
        ] {
            assert_eq!(source(source_text), written);
        }
    }
}
