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
    /// Index of a text of the task.
    Text(usize),
    /// Index of a [`Slot`] of the task.
    Slot(usize),
}

/// What the pieces of a task's templates refer to, each once.
#[derive(Debug, Default)]
pub struct Shared {
    pub texts: Vec<&'static str>,
    pub slots: Vec<Slot>,
}

/// What stands between texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A field by its place in the scope of templates, as it is or trimmed.
    Field { scope: usize, trim: bool },
    /// Anything else: a template of its own.
    Source(&'static str),
}

/// The pieces of a template; what is new among them is added to what the task shares. `None`: there is more to it.
pub fn pieces(
    source: &'static str,
    syntax: &SyntaxConfig,
    names: &[String],
    shared: &mut Shared,
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
            pieces.push(Piece::Slot(index(&mut shared.slots, slot(between, syntax, names)?)));
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(index(&mut shared.texts, &source[text.clone()])));
        }
        end = text.end;
    }
    Some(pieces)
}

/// Where `part` stands among the parts, at their end if it is new.
fn index<T: PartialEq>(parts: &mut Vec<T>, part: T) -> usize {
    parts.iter().position(|known| *known == part).unwrap_or_else(|| {
        parts.push(part);
        parts.len() - 1
    })
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

    fn split(source: &'static str) -> Option<(Vec<Piece>, Shared)> {
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build().unwrap();
        let mut shared = Shared::default();
        let pieces = pieces(source, &syntax, &["a".to_owned(), "b".to_owned()], &mut shared)?;
        Some((pieces, shared))
    }

    #[test]
    fn texts_and_what_stands_between() {
        let (pieces, shared) = split("x {{ a }}\n{{ b | trim }}{{ a }} y{# no #}{{ b }}\n").unwrap();
        let [field, source, other] = shared.slots[..] else { panic!("{shared:?}") };
        assert_eq!(field, Slot::Field { scope: 0, trim: false });
        assert_eq!(source, Slot::Source("{{ b | trim }}{{ a }}"));
        assert_eq!(other, Slot::Field { scope: 1, trim: false });
        use Piece::{Slot as S, Text as T};
        assert_eq!(pieces, [T(0), S(0), T(1), S(1), T(2), S(2), T(1)]);
        assert_eq!(shared.texts, ["x ", "\n", " y"]);
    }

    #[test]
    fn white_space_control_stays_between() {
        let (pieces, shared) = split("x  {{- a -}}  y").unwrap();
        assert_eq!(pieces, [Piece::Text(0), Piece::Slot(0), Piece::Text(1)]);
        assert_eq!(shared.texts, ["x", "y"]);
        assert_eq!(shared.slots, [Slot::Field { scope: 0, trim: false }]);
    }

    #[test]
    fn blocks_are_left_to_the_engine() {
        for source in ["{% if a %}x{% endif %}", "{% raw %}{{ a }}{% endraw %}x", "{{ a"] {
            assert!(split(source).is_none(), "{source}");
        }
    }
}
