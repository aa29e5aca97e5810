//! What can be told of a task's templates before any row: who wrote which part of the text, and what is read where.

use std::collections::BTreeSet;
use std::ops::Range;

use minijinja::machinery::ast::{Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use whatlang::Lang;

use super::finding::Side;
use crate::plan::{PlannedTask, Sources};
use crate::schema::Feature;
use crate::template::definition::Body;
use crate::template::engine::{Reads, Stretch};
use crate::template::python;

/// A task, and what is known of it.
pub struct Facts<'s> {
    pub planned: &'s PlannedTask<'s>,
    /// Names of the corpus's splits, by number.
    pub splits: Vec<String>,
    pub reads: Reads,
    /// By template: inputs and targets.
    pub templates: Vec<[Text; 2]>,
    /// Features, as the answer reads them, that are labels: -1 is "unknown" in them.
    pub labels: Vec<String>,
    /// English, and the languages that a field names.
    pub languages: Vec<Lang>,
}

/// One side of a template, taken apart.
#[derive(Clone, Default)]
pub struct Text {
    /// Expressions that are printed.
    pub expressions: Vec<Printed>,
    /// Names that expressions read, and where.
    pub names: Vec<(String, Range<usize>)>,
    /// The template's own words, with `{}` for what comes from the row.
    pub masked: String,
    /// Where the stretches stand that print something, in order.
    prints: Vec<Range<usize>>,
    /// Stretches that are printed only if a condition holds, outermost first.
    pub branches: Vec<Branch>,
}

#[derive(Clone)]
pub struct Printed {
    pub source: Range<usize>,
    /// The texts it chooses from, where all of them are written there: `{{ "a" if x else "b" }}`.
    pub choices: Vec<(String, Range<usize>)>,
}

#[derive(Clone)]
pub struct Branch {
    /// Where the stretches stand that it prints.
    pub prints: Vec<Range<usize>>,
    /// How many of the branches after it are within it; while it is being read, `usize::MAX`.
    pub within: usize,
}

impl Facts<'_> {
    pub fn new<'s>(sources: &'s Sources<'s>, planned: &'s PlannedTask<'s>) -> Facts<'s> {
        let task = planned.task;
        let reads = task.reads();
        let definition = &task.definition;
        let templates = (0..definition.templates.len())
            .map(|t| match &definition.templates[t].body {
                Body::Sides { inputs, targets } => [Text::parse(&inputs.text), Text::parse(&targets.text)],
                Body::Prompt { prompt, .. } => Text::of_one(&python::source(&prompt.text)),
            })
            .collect();
        let answer = definition.fields.iter().position(|f| f.name == "answer");
        let of_answer = answer.map(|i| closure(&reads, definition.fields.iter().map(|f| f.name.as_str()), i));
        let labels = task.schema.fields().iter().filter(|(name, feature)| {
            matches!(feature, Feature::Label { .. })
                && of_answer.as_ref().is_some_and(|read| read.contains(name) || read.contains("row"))
        });
        let constants = definition.fields.iter().filter_map(|f| {
            let text = f.expression.text.trim();
            let name = text.strip_prefix(['\'', '"'])?.strip_suffix(['\'', '"'])?;
            Lang::all().iter().copied().find(|lang| lang.eng_name() == name)
        });
        Facts {
            planned,
            splits: sources.corpora[planned.corpus].info.splits.iter().map(|s| s.name.clone()).collect(),
            templates,
            labels: labels.map(|(name, _)| name.clone()).collect(),
            languages: constants.chain([Lang::Eng]).collect(),
            reads,
        }
    }

    /// Whether a piece is the template's own words.
    pub fn is_own(&self, template: usize, side: Side, piece: &Stretch) -> bool {
        piece.literal || !self.templates[template][side as usize].choices(&piece.source).is_empty()
    }
}

/// Everything that field `field` reads, through other fields as well: names of fields and of features.
pub fn closure<'n>(reads: &Reads, names: impl Iterator<Item = &'n str>, field: usize) -> BTreeSet<String> {
    let names: Vec<&str> = names.collect();
    let mut found = BTreeSet::new();
    let mut open = vec![field];
    while let Some(field) = open.pop() {
        for name in &reads.fields[field] {
            // A field sees the fields above it; below, the name is that of a feature.
            let above = names[..field].iter().position(|n| n == name);
            if found.insert(name.clone()) {
                open.extend(above);
            }
        }
    }
    found
}

impl Text {
    /// Takes a template apart that the engine has accepted.
    fn parse(source: &str) -> Text {
        let mut text = Text { names: names(source), ..Text::default() };
        if let Ok(Stmt::Template(template)) = parse(source, "template", Default::default()) {
            for statement in &template.children {
                text.statement(statement, false);
            }
        }
        text
    }

    /// Takes a template apart that prints inputs, a separator and targets. Both sides know all of it but the names that
    /// they read and their words.
    fn of_one(source: &str) -> [Text; 2] {
        let text = Text::parse(source);
        let middle = source.rfind("|||").unwrap_or(source.len());
        let (inputs, targets) = text.masked.rsplit_once("|||").unwrap_or((&text.masked, ""));
        let (of_inputs, of_targets) = text.names.iter().cloned().partition(|(_, at)| at.start < middle);
        [
            Text { masked: inputs.to_owned(), names: of_inputs, ..text.clone() },
            Text { masked: targets.to_owned(), names: of_targets, ..text.clone() },
        ]
    }

    /// The names that are read.
    pub fn reads(&self) -> BTreeSet<&str> {
        self.names.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Where the stretch begins that prints from `at`.
    pub fn print_at(&self, at: usize) -> Option<usize> {
        self.prints.iter().find(|print| print.contains(&at)).map(|print| print.start)
    }

    pub fn choices(&self, source: &Range<usize>) -> &[(String, Range<usize>)] {
        self.expressions.iter().find(|e| &e.source == source).map_or(&[], |e| &e.choices)
    }

    /// `captured`: what is printed here goes through a filter or into a variable, so that its place is lost.
    fn statement(&mut self, statement: &Stmt<'_>, captured: bool) {
        match statement {
            Stmt::EmitRaw(raw) => {
                self.masked.push_str(raw.raw);
                if !captured {
                    self.print(range(raw.span()));
                }
            }
            Stmt::EmitExpr(emit) => {
                let mut choices = Vec::new();
                if !written(&emit.expr, &mut choices) {
                    choices.clear();
                }
                match choices.is_empty() {
                    true => self.masked.push_str("{}"),
                    false => {
                        self.masked.push_str(&choices.iter().map(|(t, _)| t.as_str()).collect::<Vec<_>>().join(" "))
                    }
                }
                let source = range(emit.span());
                self.expressions.push(Printed { source: source.clone(), choices });
                if !captured {
                    self.print(source);
                }
            }
            Stmt::IfCond(condition) => {
                self.branch(&condition.true_body, captured);
                self.branch(&condition.false_body, captured);
            }
            Stmt::ForLoop(repeated) => {
                self.branch(&repeated.body, captured);
                self.branch(&repeated.else_body, captured);
            }
            Stmt::WithBlock(block) => block.body.iter().for_each(|s| self.statement(s, captured)),
            Stmt::AutoEscape(block) => block.body.iter().for_each(|s| self.statement(s, captured)),
            Stmt::SetBlock(block) => block.body.iter().for_each(|s| self.statement(s, true)),
            Stmt::FilterBlock(block) => block.body.iter().for_each(|s| self.statement(s, true)),
            Stmt::Macro(block) => block.body.iter().for_each(|s| self.statement(s, true)),
            Stmt::CallBlock(block) => block.macro_decl.body.iter().for_each(|s| self.statement(s, true)),
            _ => {}
        }
    }

    fn branch(&mut self, body: &[Stmt<'_>], captured: bool) {
        let index = self.branches.len();
        if !captured {
            self.branches.push(Branch { prints: Vec::new(), within: usize::MAX });
        }
        body.iter().for_each(|s| self.statement(s, captured));
        if !captured {
            self.branches[index].within = self.branches.len() - index - 1;
        }
    }

    /// Adds to all branches that are being read: those whose inner ones have not been counted yet.
    fn print(&mut self, source: Range<usize>) {
        self.prints.push(source.clone());
        for branch in self.branches.iter_mut().filter(|b| b.within == usize::MAX) {
            branch.prints.push(source.clone());
        }
    }
}

/// The texts an expression chooses from, if nothing else can come of it.
fn written(expression: &Expr<'_>, choices: &mut Vec<(String, Range<usize>)>) -> bool {
    match expression {
        Expr::Const(constant) => match constant.value.as_str() {
            Some(text) => {
                choices.push((text.to_owned(), range(expression.span())));
                true
            }
            None => false,
        },
        Expr::IfExpr(choice) => {
            written(&choice.true_expr, choices)
                && choice.false_expr.as_ref().is_none_or(|otherwise| written(otherwise, choices))
        }
        _ => false,
    }
}

/// The names that the expressions of a template read, attributes and names of arguments left out.
fn names(source: &str) -> Vec<(String, Range<usize>)> {
    let tokens: Vec<_> = tokenize(source, false, Default::default()).map_while(Result::ok).collect();
    let found = tokens.iter().enumerate().filter_map(|(i, (token, span))| {
        let Token::Ident(name) = token else { return None };
        let after = i.checked_sub(1).map(|i| &tokens[i].0);
        // `x.name`, `x | name`; and `name=` in a call, which in `set name = …` is no reading either.
        let read =
            !matches!(after, Some(Token::Dot | Token::Pipe)) && !matches!(tokens.get(i + 1), Some((Token::Assign, _)));
        read.then(|| ((*name).to_owned(), range(*span)))
    });
    found.collect()
}

fn range(span: Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}
