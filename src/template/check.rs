//! Templates and expressions, checked against the types of a corpus before any record is read.
//!
//! A misspelt column, a filter that does not exist, a list printed as text: all of these would otherwise show after
//! hours, on the first record, or, printed as `['a', 'b']`, in a trained model. The checker walks the syntax tree of
//! minijinja (`unstable_machinery`), knows the [`Type`] of every name in sight, computes the type of each expression
//! and reports whatever cannot be right, at the bytes where it stands. What it cannot know is [`Type::Any`], and of
//! that it says nothing; after an error the type is `Any` too, so that one slip gives one message.
//!
//! It follows the engine's rules where those differ from what one would expect: the branches of an `if`, captured
//! blocks and filter blocks share the scope around them, loops and `with` open one, and a macro sees names that are
//! set only after it.
//!
//! A chain such as `1 + 1 + …` is a tree as deep as it is long. The checker goes down its left side in a loop, but the
//! parser recurses, and so does dropping the tree: sources are limited to [`LARGEST_SOURCE`], and callers have to give
//! their threads 16 MiB of stack.

mod builtins;
mod calls;
mod expressions;
mod syntax;

use std::collections::BTreeSet;
use std::mem;
use std::ops::Range;

use minijinja::machinery::ast::{Expr, ForLoop, IfCond, Macro, Stmt, WithBlock};
use minijinja::machinery::{parse, parse_expr};

use self::builtins::{FUNCTIONS, loop_variable};
use self::expressions::{first_operand, target_name};
use crate::diag::{Diagnostic, closest, listing};
use crate::template::snippet::Snippet;
use crate::template::types::Type;

/// Most bytes of a template or expression; the longest that promptsource has takes 2,850. Beyond it, a chain of
/// operators could overflow the stack of the parser, which aborts the process.
pub const LARGEST_SOURCE: usize = 8 * 1024;

/// What is known of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inferred {
    pub ty: Type,
    /// The names of its scope that it reads.
    pub reads: BTreeSet<String>,
}

/// Checks an expression over the names of `scope`.
pub fn expression(snippet: &Snippet, scope: &[(String, Type)], diagnostics: &mut Vec<Diagnostic>) -> Inferred {
    if let Some(diagnostic) = too_large(snippet) {
        diagnostics.push(diagnostic);
        return Inferred { ty: Type::Any, reads: BTreeSet::new() };
    }
    let mut checker = Checker::new(snippet, scope);
    let ty = match parse_expr(&snippet.text) {
        Ok(parsed) => checker.infer(&parsed),
        Err(error) => {
            diagnostics.push(syntax::explain(snippet, false, &error));
            Type::Any
        }
    };
    Inferred { ty, reads: checker.finish(diagnostics) }
}

/// Checks a template over the names of `scope`; returns those that it reads.
pub fn template(snippet: &Snippet, scope: &[(String, Type)], diagnostics: &mut Vec<Diagnostic>) -> BTreeSet<String> {
    if let Some(diagnostic) = too_large(snippet) {
        diagnostics.push(diagnostic);
        return BTreeSet::new();
    }
    let mut checker = Checker::new(snippet, scope);
    match parse(&snippet.text, "template", Default::default()) {
        Ok(parsed) => checker.statement(&parsed),
        Err(error) => diagnostics.push(syntax::explain(snippet, true, &error)),
    }
    checker.finish(diagnostics)
}

/// Checks that an answer of type `answer` can be among options of type `options`, which is known where both are
/// written down: `options = "['yes', 'no']"` with `answer = "'Yes' if label else 'No'"` never meet.
pub fn answer(snippet: &Snippet, answer: &Type, options: &Type, diagnostics: &mut Vec<Diagnostic>) {
    let Some(Type::Choice(options)) = options.element() else { return };
    let listed = || listing(options.iter().map(String::as_str));
    let is_option = |text: &str| options.iter().any(|option| option == text);
    match answer {
        Type::Choice(answers) => {
            // An empty answer stands for none.
            let missing: Vec<&str> =
                answers.iter().map(String::as_str).filter(|text| !text.is_empty() && !is_option(text)).collect();
            let listed_answers = listing(missing.iter().copied());
            let diagnostic = match missing.len() {
                0 => return,
                n if n < answers.len() => {
                    let message = format!("the answer can be {listed_answers}, which is not among the options");
                    Diagnostic::warning("answer-not-an-option", message)
                }
                1 => Diagnostic::error(
                    "answer-not-an-option",
                    format!("the answer {listed_answers} is not among the options"),
                ),
                _ => Diagnostic::error(
                    "answer-not-an-option",
                    format!("the answers {listed_answers} are not among the options"),
                ),
            };
            let close = missing.iter().find_map(|text| closest(text, options.iter().map(String::as_str)));
            let diagnostic = diagnostic.at(snippet.whole_span()).note("options", listed());
            diagnostics.push(match close {
                Some(option) => diagnostic.help(format!("did you mean `{option}`?")),
                None => diagnostic,
            });
        }
        Type::Int if !options.iter().any(|option| option.trim().parse::<i128>().is_ok()) => diagnostics.push(
            Diagnostic::error("answer-not-an-option", "the answer is an int, which is not among the options")
                .at(snippet.whole_span())
                .note("options", listed())
                .help("write `options[…]` to take the option of this number"),
        ),
        _ => {}
    }
}

fn too_large(snippet: &Snippet) -> Option<Diagnostic> {
    let size = snippet.text.len();
    (size > LARGEST_SOURCE).then(|| {
        Diagnostic::error(
            "template-too-large",
            format!("this takes {size} bytes, and at most {LARGEST_SOURCE} are read"),
        )
        .at(snippet.span(0..0))
        .help("move what is data into the corpus, or divide the template in two")
    })
}

/// A walk over one syntax tree. `'t` is the life of its text.
struct Checker<'t> {
    snippet: &'t Snippet,
    scope: &'t [(String, Type)],
    /// Innermost last; the first is that of the template itself.
    frames: Vec<Frame<'t>>,
    /// Names met in macros before they were set.
    awaited: Vec<Awaited<'t>>,
    /// How many macros are around this place.
    macros: usize,
    reads: BTreeSet<String>,
    /// Unknown names already reported.
    reported: BTreeSet<&'t str>,
    shadowed: BTreeSet<&'t str>,
    /// With the offset at which each begins.
    found: Vec<(usize, Diagnostic)>,
}

#[derive(Default)]
struct Frame<'t> {
    bindings: Vec<Binding<'t>>,
}

struct Binding<'t> {
    name: &'t str,
    ty: Type,
    origin: Origin<'t>,
    /// Set on one way through the template, but not on all.
    maybe: bool,
    used: bool,
}

#[derive(Clone, PartialEq)]
enum Origin<'t> {
    Set,
    With,
    Loop,
    Parameter,
    Macro { parameters: Vec<&'t str> },
}

struct Awaited<'t> {
    name: &'t str,
    is_call: bool,
}

/// Statements.
impl<'t> Checker<'t> {
    fn new(snippet: &'t Snippet, scope: &'t [(String, Type)]) -> Self {
        Checker {
            snippet,
            scope,
            frames: vec![Frame::default()],
            awaited: Vec::new(),
            macros: 0,
            reads: BTreeSet::new(),
            reported: BTreeSet::new(),
            shadowed: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    /// Hands over what was found, in the order of the text, and the names of the scope that were read.
    fn finish(mut self, diagnostics: &mut Vec<Diagnostic>) -> BTreeSet<String> {
        for Awaited { name, is_call } in mem::take(&mut self.awaited) {
            match self.frame().bindings.iter_mut().find(|binding| binding.name == name) {
                Some(binding) => binding.used = true,
                None if is_call => self.unknown_function(name),
                None => self.unknown_variable(name),
            }
        }
        self.close_frame();
        self.found.sort_by_key(|(start, _)| *start);
        diagnostics.extend(self.found.into_iter().map(|(_, diagnostic)| diagnostic));
        self.reads
    }

    fn statements(&mut self, body: &[Stmt<'t>]) {
        for statement in body {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Stmt<'t>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::EmitExpr(emit) => {
                let ty = self.infer(&emit.expr);
                self.printed(&ty, &emit.expr);
            }
            Stmt::Do(call) => {
                self.call(&call.call);
            }
            Stmt::ForLoop(node) => self.for_loop(node),
            Stmt::IfCond(node) => self.if_statement(node),
            Stmt::WithBlock(node) => self.with_block(node),
            Stmt::Set(set) => {
                let ty = self.infer(&set.expr);
                self.assign(&set.target, ty, &Origin::Set);
            }
            Stmt::SetBlock(set) => {
                self.statements(&set.body);
                let ty = set.filter.as_ref().map_or(Type::Text, |filter| self.infer(filter));
                self.assign(&set.target, ty, &Origin::Set);
            }
            Stmt::AutoEscape(node) => {
                self.infer(&node.enabled);
                self.statements(&node.body);
            }
            Stmt::FilterBlock(node) => {
                self.statements(&node.body);
                let ty = self.infer(&node.filter);
                self.printed(&ty, &node.filter);
            }
            Stmt::Macro(node) => {
                let parameters = node.args.iter().filter_map(target_name).collect();
                self.bind(node.name, Type::Any, &Origin::Macro { parameters });
                self.macro_body(node);
            }
            Stmt::CallBlock(node) => {
                self.call(&node.call);
                self.macro_body(&node.macro_decl);
            }
        }
    }

    fn for_loop(&mut self, node: &ForLoop<'t>) {
        let items = self.infer(&node.iter);
        let item = items.element().unwrap_or_else(|| {
            let what = items.phrase();
            self.report(
                self.extent(&node.iter),
                Diagnostic::error("not-iterable", format!("a loop cannot go over {what}")).label(what),
            );
            Type::Any
        });
        self.frames.push(Frame::default());
        self.assign(&node.target, item.clone(), &Origin::Loop);
        if let Some(filter) = &node.filter_expr {
            // `loop` counts what passes the filter, so it is not there yet.
            self.infer(filter);
        }
        self.bind("loop", loop_variable(&item), &Origin::Parameter);
        self.statements(&node.body);
        self.close_frame();
        if !node.else_body.is_empty() {
            let branch = self.branch(&node.else_body);
            self.merge(vec![branch, Frame::default()]);
        }
    }

    /// `elif` is an `if` in the `else` of another: the loop keeps a long chain of them off the stack.
    fn if_statement(&mut self, node: &IfCond<'t>) {
        let mut branches = Vec::new();
        let mut node = node;
        loop {
            self.infer(&node.expr);
            branches.push(self.branch(&node.true_body));
            match &node.false_body[..] {
                [Stmt::IfCond(next)] => node = next,
                [] => break branches.push(Frame::default()),
                body => break branches.push(self.branch(body)),
            }
        }
        self.merge(branches);
    }

    fn with_block(&mut self, node: &WithBlock<'t>) {
        self.frames.push(Frame::default());
        for (target, value) in &node.assignments {
            let ty = self.infer(value);
            self.assign(target, ty, &Origin::With);
        }
        self.statements(&node.body);
        self.close_frame();
    }

    fn macro_body(&mut self, node: &Macro<'t>) {
        self.frames.push(Frame::default());
        self.macros += 1;
        for parameter in &node.args {
            self.assign(parameter, Type::Any, &Origin::Parameter);
        }
        for default in &node.defaults {
            self.infer(default);
        }
        self.statements(&node.body);
        self.macros -= 1;
        self.close_frame();
    }

    /// Output of `{{ }}`, which has to be text or what prints like it.
    fn printed(&mut self, ty: &Type, expr: &Expr<'t>) {
        let kind = match ty {
            Type::List(_) => "a list",
            Type::Tuple(_) => "a tuple",
            Type::Struct(_) => "a struct",
            _ => return,
        };
        let range = self.extent(expr);
        let written = &self.snippet.text[range.clone()];
        let mut diagnostic =
            Diagnostic::error("not-text", format!("{kind} is printed here as if it were text")).label(ty.phrase());
        match ty {
            Type::Struct(fields) if !fields.is_empty() => {
                let names: Vec<String> = fields.iter().map(|(name, _)| format!("{written}.{name}")).collect();
                diagnostic =
                    diagnostic.help(format!("print what is in it: {}", listing(names.iter().map(String::as_str))));
            }
            Type::List(item) if matches!(**item, Type::Any | Type::Int | Type::Float) || item.is_text() => {
                let list = if matches!(expr, Expr::BinOp(_) | Expr::IfExpr(_)) {
                    format!("({written})")
                } else {
                    written.to_owned()
                };
                diagnostic = diagnostic.help(format!("join its items: `{list} | join(', ')`"));
            }
            Type::List(_) | Type::Tuple(_) => {
                diagnostic = diagnostic.help("write its items one by one, in a `{% for %}`")
            }
            _ => {}
        }
        self.report(range, diagnostic);
    }
}

/// Names.
impl<'t> Checker<'t> {
    /// Walks a branch that may be passed by; what it sets is returned, for [`Checker::merge`].
    fn branch(&mut self, body: &[Stmt<'t>]) -> Frame<'t> {
        self.frames.push(Frame::default());
        self.statements(body);
        self.frames.pop().expect("pushed above")
    }

    /// Takes what the alternative branches set into the frame around them.
    fn merge(&mut self, branches: Vec<Frame<'t>>) {
        let count = branches.len();
        let mut merged: Vec<(Binding<'t>, usize)> = Vec::new();
        for binding in branches.into_iter().flat_map(|branch| branch.bindings) {
            let always = usize::from(!binding.maybe);
            match merged.iter_mut().find(|(known, _)| known.name == binding.name) {
                Some((known, times)) => {
                    known.ty = known.ty.join(&binding.ty);
                    known.used |= binding.used;
                    *times += always;
                }
                None => merged.push((binding, always)),
            }
        }
        for (mut binding, times) in merged {
            binding.maybe = times < count;
            let bindings = &mut self.frame().bindings;
            match bindings.iter_mut().find(|known| known.name == binding.name) {
                Some(known) if binding.maybe => {
                    known.ty = known.ty.join(&binding.ty);
                    known.used |= binding.used;
                }
                Some(known) => {
                    binding.used |= known.used;
                    *known = binding;
                }
                None => bindings.push(binding),
            }
        }
    }

    fn frame(&mut self) -> &mut Frame<'t> {
        self.frames.last_mut().expect("the frame of the template is there until the end")
    }

    /// Leaves a scope: names that macros were waiting for are found in it, and what nobody read is reported.
    fn close_frame(&mut self) {
        let mut frame = self.frames.pop().expect("every frame is closed once");
        self.awaited.retain(|awaited| match frame.bindings.iter_mut().find(|b| b.name == awaited.name) {
            Some(binding) => {
                binding.used = true;
                false
            }
            None => true,
        });
        for binding in frame.bindings.iter().filter(|binding| !binding.used && !binding.name.starts_with('_')) {
            let (what, label) = match binding.origin {
                Origin::Set | Origin::With => ("variable", "set here, and read nowhere after it"),
                Origin::Macro { .. } => ("macro", "called nowhere"),
                Origin::Loop | Origin::Parameter => continue,
            };
            let mut diagnostic =
                Diagnostic::warning("unused-variable", format!("the {what} `{}` is never used", binding.name))
                    .label(label);
            if self.frames.iter().any(|outer| outer.bindings.iter().any(|known| known.name == binding.name)) {
                diagnostic = diagnostic
                    .note(
                        "note",
                        "what is set in a loop or `with` is forgotten at its end; the outer variable keeps its value",
                    )
                    .help(format!(
                        "keep it in a namespace: `{{% set ns = namespace({0}=…) %}}`, `{{% set ns.{0} = … %}}`",
                        binding.name
                    ));
            }
            self.found.push(place(self.snippet, self.place_of(binding.name), diagnostic));
        }
    }

    /// Gives the names of an assignment's left side their types.
    fn assign(&mut self, target: &Expr<'t>, ty: Type, origin: &Origin<'t>) {
        match target {
            Expr::Var(name) => self.bind(name.id, ty, origin),
            Expr::List(names) => {
                let types = self.unpack(target, names.items.len(), ty);
                for (name, ty) in names.items.iter().zip(types) {
                    self.assign(name, ty, origin);
                }
            }
            Expr::GetAttr(attribute) => {
                let owner = self.infer(&attribute.expr);
                if owner != Type::Any {
                    let range = self.extent(&attribute.expr);
                    let message =
                        format!("only a namespace has attributes that can be set, and this is {}", owner.phrase());
                    self.report(
                        range,
                        Diagnostic::error("not-a-namespace", message).help("make one: `{% set ns = namespace() %}`"),
                    );
                }
            }
            _ => {}
        }
    }

    /// The types of `count` names that a value of type `ty` is unpacked into.
    fn unpack(&mut self, target: &Expr<'t>, count: usize, ty: Type) -> Vec<Type> {
        let wrong = match &ty {
            Type::Tuple(items) if items.len() == count => return items.clone(),
            Type::List(item) => return vec![(**item).clone(); count],
            Type::Any | Type::None => return vec![Type::Any; count],
            Type::Struct(fields) if fields.len() == count => return vec![Type::Text; count],
            wrong => wrong.phrase(),
        };
        self.report(
            self.extent(target),
            Diagnostic::error("cannot-unpack", format!("{wrong} cannot be unpacked into {count} names")).label(wrong),
        );
        vec![Type::Any; count]
    }

    fn bind(&mut self, name: &'t str, ty: Type, origin: &Origin<'t>) {
        let hides =
            matches!(origin, Origin::Set | Origin::With | Origin::Loop) && self.scope.iter().any(|(n, _)| n == name);
        if hides && self.shadowed.insert(name) {
            let range = self.place_of(name);
            let label = match origin {
                Origin::Set => "from here on, the field cannot be read",
                _ => "inside this block, the field cannot be read",
            };
            let message = format!("`{name}` hides the field of the same name");
            self.report(range, Diagnostic::warning("shadowed-field", message).label(label));
        }
        let bindings = &mut self.frame().bindings;
        match bindings.iter_mut().find(|known| known.name == name) {
            Some(known) => {
                known.ty = ty;
                known.maybe = false;
                known.origin = origin.clone();
            }
            None => bindings.push(Binding { name, ty, origin: origin.clone(), maybe: false, used: false }),
        }
    }

    /// The type of a name, which counts as read from here on; nothing if there is no such name.
    fn look_up(&mut self, name: &str) -> Option<Type> {
        // A name set on some ways only may still be the one outside.
        let mut so_far: Option<Type> = None;
        let join =
            |so_far: &Option<Type>, ty: &Type| so_far.as_ref().map_or_else(|| ty.clone(), |known| known.join(ty));
        for frame in self.frames.iter_mut().rev() {
            if let Some(binding) = frame.bindings.iter_mut().find(|binding| binding.name == name) {
                binding.used = true;
                let ty = join(&so_far, &binding.ty);
                if !binding.maybe {
                    return Some(ty);
                }
                so_far = Some(ty);
            }
        }
        if let Some((_, ty)) = self.scope.iter().find(|(field, _)| field == name) {
            self.reads.insert(name.to_owned());
            return Some(join(&so_far, ty));
        }
        so_far
    }

    fn variable(&mut self, name: &'t str) -> Type {
        if let Some(ty) = self.look_up(name) {
            return ty;
        }
        if FUNCTIONS.contains(&name) || (self.macros > 0 && name == "caller") {
            return Type::Any;
        }
        if self.macros > 0 {
            self.awaited.push(Awaited { name, is_call: false });
        } else {
            self.unknown_variable(name);
        }
        Type::Any
    }

    fn unknown_variable(&mut self, name: &'t str) {
        if !self.reported.insert(name) {
            return;
        }
        let known = self.known_names();
        let mut diagnostic = Diagnostic::error("unknown-variable", format!("`{name}` is not defined"))
            .label("no field or variable of this name")
            .note("available", listing(known.iter().copied()))
            .did_you_mean(name, known.iter().copied());
        if name == "loop" {
            diagnostic =
                diagnostic.note("note", "`loop` is there inside `{% for %}`, but not in its `if` nor in a macro");
        }
        let range = self.place_of(name);
        self.report(range, diagnostic);
    }

    /// Fields and variables in sight, fields first.
    fn known_names(&self) -> Vec<&'t str> {
        let mut names: Vec<&str> = self.scope.iter().map(|(name, _)| name.as_str()).collect();
        for binding in self.frames.iter().flat_map(|frame| &frame.bindings) {
            if !names.contains(&binding.name) {
                names.push(binding.name);
            }
        }
        names
    }
}

fn place(snippet: &Snippet, range: Range<usize>, diagnostic: Diagnostic) -> (usize, Diagnostic) {
    (range.start, diagnostic.at(snippet.span(range)))
}

/// Places.
impl<'t> Checker<'t> {
    fn report(&mut self, range: Range<usize>, diagnostic: Diagnostic) {
        self.found.push(place(self.snippet, range, diagnostic));
    }

    /// Where a name stands. Names in the tree are slices of the text, so their address says it, and says it exactly:
    /// the spans of minijinja take in more than the name.
    fn place_of(&self, name: &str) -> Range<usize> {
        let text = &self.snippet.text;
        match (name.as_ptr() as usize).checked_sub(text.as_ptr() as usize) {
            Some(start) if start + name.len() <= text.len() => start..start + name.len(),
            // `caller` and `loop`, which nobody wrote down.
            _ => 0..0,
        }
    }

    /// From the first byte of an expression to its last. minijinja's spans end well, but those of filters, tests and
    /// attributes begin late, and those of comparisons too early.
    fn extent(&self, expr: &Expr<'t>) -> Range<usize> {
        let text = &self.snippet.text;
        let mut first = expr;
        while let Some(operand) = first_operand(first) {
            // A sign or `not` comes before its operand; but `not in` and `is not` are negations that come after.
            let own = first.span().start_offset as usize;
            let is_prefix = matches!(first, Expr::UnaryOp(_))
                && own < operand.span().start_offset as usize
                && text.get(own..).is_some_and(|rest| rest.starts_with('-') || rest.starts_with("not"));
            if is_prefix {
                break;
            }
            first = operand;
        }
        if let Expr::Call(call) = first {
            // A function's name, which is no operand.
            first = &call.expr;
        }
        let mut start = first.span().start_offset as usize;
        let end = (expr.span().end_offset as usize).clamp(start, text.len());
        // Parentheses leave no trace in the tree: take in as many before it as are closed within.
        let mut closed = balance(&text[start..end]);
        while closed > 0
            && let Some(before) = text[..start].trim_end().strip_suffix('(')
        {
            start = before.len();
            closed -= 1;
        }
        start..end
    }
}

/// How many more parentheses a text closes than it opens.
fn balance(text: &str) -> usize {
    text.matches(')').count().saturating_sub(text.matches('(').count())
}
