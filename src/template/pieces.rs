//! Templates that only put pieces together, which is nearly all of them: text, and what stands between texts.
//!
//! What stands between two texts, `{{ premise }}` or `{{ words | join(', ') }}`, prints the same wherever it stands, so a
//! row prints it once for all its templates; a plain field needs no engine at all. The texts of a template are known
//! before any row. Templates with blocks (`{% … %}`) are left to the engine whole.

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

/// A piece of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(&'static str),
    /// Index of a [`Slot`] of the task.
    Slot(usize),
}

/// What stands between texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A field by its place in the scope of templates, as it is or trimmed.
    Field { scope: usize, trim: bool },
    /// Anything else: a template of its own.
    Source(&'static str),
}

/// The pieces of a template; slots that are new are added to those of the task. `None`: there is more to it.
pub fn pieces(
    source: &'static str,
    syntax: &SyntaxConfig,
    names: &[String],
    slots: &mut Vec<Slot>,
) -> Option<Vec<Piece>> {
    let Ok(Stmt::Template(template)) = parse(source, "template", syntax.clone()) else { return None };
    let mut texts = Vec::new();
    for child in &template.children {
        match child {
            Stmt::EmitRaw(raw) => texts.push(offset(source, raw.raw)?..offset(source, raw.raw)? + raw.raw.len()),
            Stmt::EmitExpr(_) => {}
            _ => return None,
        }
    }
    let mut pieces = Vec::new();
    let mut end = 0;
    for text in texts.into_iter().chain(std::iter::once(source.len()..source.len())) {
        // White space that `-` takes away lies between the texts, and is taken away there again.
        let between = source.get(end..text.start)?;
        if !between.is_empty() {
            let slot = slot(between, syntax, names)?;
            let known = slots.iter().position(|s| *s == slot);
            pieces.push(Piece::Slot(known.unwrap_or_else(|| {
                slots.push(slot);
                slots.len() - 1
            })));
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(&source[text.clone()]));
        }
        end = text.end;
    }
    Some(pieces)
}

/// Where a part of `source` begins in it; `None` if it is no part of it.
fn offset(source: &str, part: &str) -> Option<usize> {
    let offset = (part.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
    (source.get(offset..offset + part.len()) == Some(part)).then_some(offset)
}

fn slot(between: &'static str, syntax: &SyntaxConfig, names: &[String]) -> Option<Slot> {
    // The tags of `{% raw %}` stand between texts as well, and are no template.
    let Ok(Stmt::Template(template)) = parse(between, "template", syntax.clone()) else { return None };
    if template.children.iter().any(|child| !matches!(child, Stmt::EmitExpr(_))) {
        return None;
    }
    if let [Stmt::EmitExpr(emit)] = &template.children[..] {
        let (expr, trim) = match &emit.expr {
            Expr::Filter(filter) if filter.name == "trim" && filter.args.is_empty() => (filter.expr.as_ref()?, true),
            expr => (expr, false),
        };
        if let Expr::Var(var) = expr
            && let Some(scope) = names.iter().position(|name| name == var.id)
        {
            return Some(Slot::Field { scope, trim });
        }
    }
    Some(Slot::Source(between))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(source: &'static str) -> Option<(Vec<Piece>, Vec<Slot>)> {
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap();
        let mut slots = Vec::new();
        let pieces = pieces(source, &syntax, &["a".to_owned(), "b".to_owned()], &mut slots)?;
        Some((pieces, slots))
    }

    #[test]
    fn texts_and_what_stands_between() {
        let (pieces, slots) = split("x {{ a }}\n{{ b | trim }}{{ a }} y{# no #}{{ b }}\n").unwrap();
        let [field, source, other] = slots[..] else { panic!("{slots:?}") };
        assert_eq!(field, Slot::Field { scope: 0, trim: false });
        assert_eq!(source, Slot::Source("{{ b | trim }}{{ a }}"));
        assert_eq!(other, Slot::Field { scope: 1, trim: false });
        let texts: Vec<&str> =
            pieces.iter().filter_map(|p| if let Piece::Text(t) = p { Some(*t) } else { None }).collect();
        assert_eq!(texts, ["x ", "\n", " y", "\n"]);
    }

    #[test]
    fn white_space_control_stays_between() {
        let (pieces, slots) = split("x  {{- a -}}  y").unwrap();
        assert_eq!(pieces, [Piece::Text("x"), Piece::Slot(0), Piece::Text("y")]);
        assert_eq!(slots, [Slot::Field { scope: 0, trim: false }]);
    }

    #[test]
    fn blocks_are_left_to_the_engine() {
        for source in ["{% if a %}x{% endif %}", "{% raw %}{{ a }}{% endraw %}x", "{{ a"] {
            assert_eq!(split(source), None, "{source}");
        }
    }
}
