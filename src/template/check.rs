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
mod syntax;

use std::collections::BTreeSet;
use std::mem;
use std::ops::Range;

use minijinja::machinery::ast::{
    BinOp, BinOpKind, Call, CallArg, Const, Expr, Filter, ForLoop, GetItem, IfCond, Macro, Slice, Spanned, Stmt, Test,
    UnaryOp, UnaryOpKind, WithBlock,
};
use minijinja::machinery::{parse, parse_expr};
use minijinja::value::ValueKind;

use self::builtins::{FILTERS, FUNCTIONS, LOOP_METHODS, TESTS, TEXT_METHODS, called, filtered, loop_variable, methods};
use crate::diag::{Diagnostic, closest, listing};
use crate::template::snippet::Snippet;
use crate::template::types::{Type, all};

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
            let message = format!("the answer {} is not among the options", listing(missing.iter().copied()));
            let diagnostic = match missing.len() {
                0 => return,
                n if n == answers.len() => Diagnostic::error("answer-not-an-option", message),
                _ => Diagnostic::warning("answer-not-an-option", message),
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

/// An argument of a call, its expression already checked.
struct Argument<'t> {
    /// Of a keyword argument; `*` for a splat.
    name: Option<&'t str>,
    ty: Type,
    range: Range<usize>,
}

// ---------------------------------------------------------------------------------------------------------------------
// Statements

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
        self.close_frame();
        for Awaited { name, is_call } in mem::take(&mut self.awaited) {
            if is_call {
                self.unknown_function(name);
            } else {
                self.unknown_variable(name);
            }
        }
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
        let what = match ty {
            Type::List(_) | Type::Tuple(_) | Type::Struct(_) => ty.phrase(),
            _ => return,
        };
        let range = self.extent(expr);
        let written = &self.snippet.text[range.clone()];
        let mut diagnostic = Diagnostic::error("not-text", format!("this prints {what}, not text")).label(ty.phrase());
        match ty {
            Type::Struct(fields) if !fields.is_empty() => {
                let names: Vec<String> = fields.iter().map(|(name, _)| format!("{written}.{name}")).collect();
                diagnostic =
                    diagnostic.help(format!("print what is in it: {}", listing(names.iter().map(String::as_str))));
            }
            Type::List(_) | Type::Tuple(_) => {
                diagnostic = diagnostic.help(format!("join its items: `{written} | join(', ')`"));
            }
            _ => {}
        }
        self.report(range, diagnostic);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

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
            let message = format!("`{name}` hides the field of the same name");
            self.report(
                range,
                Diagnostic::warning("shadowed-field", message).label("from here on the field cannot be read"),
            );
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

// ---------------------------------------------------------------------------------------------------------------------
// Expressions

/// The operand that comes first in the text, which is where chains of operators grow.
fn first_operand<'e, 't>(expr: &'e Expr<'t>) -> Option<&'e Expr<'t>> {
    match expr {
        Expr::Var(_) | Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => None,
        Expr::Slice(node) => Some(&node.expr),
        Expr::UnaryOp(node) => Some(&node.expr),
        Expr::BinOp(node) => Some(&node.left),
        Expr::Compare(node) => Some(&node.expr),
        Expr::IfExpr(node) => Some(&node.true_expr),
        Expr::Filter(node) => node.expr.as_ref(),
        Expr::Test(node) => Some(&node.expr),
        Expr::GetAttr(node) => Some(&node.expr),
        Expr::GetItem(node) => Some(&node.expr),
        Expr::Call(node) => match &node.expr {
            Expr::Var(_) => None,
            Expr::GetAttr(method) => Some(&method.expr),
            other => Some(other),
        },
    }
}

/// Whether `expr` asks if its operand is there at all, so that a missing attribute is no mistake.
fn asks_for_presence(expr: &Expr) -> bool {
    match expr {
        Expr::Test(test) => matches!(test.name, "defined" | "undefined"),
        Expr::Filter(filter) => matches!(filter.name, "default" | "d"),
        _ => false,
    }
}

fn target_name<'t>(target: &Expr<'t>) -> Option<&'t str> {
    match target {
        Expr::Var(name) => Some(name.id),
        _ => None,
    }
}

impl<'t> Checker<'t> {
    /// The type of an expression. Goes down to the first operand in a loop, then up again operator by operator.
    fn infer(&mut self, expr: &Expr<'t>) -> Type {
        let mut operators = Vec::new();
        let mut first = expr;
        while let Some(operand) = first_operand(first) {
            operators.push(first);
            first = operand;
        }
        let mut ty = self.operand(first);
        while let Some(operator) = operators.pop() {
            let may_be_missing = operators.last().is_some_and(|outer| asks_for_presence(outer));
            ty = self.operator(operator, ty, may_be_missing);
        }
        ty
    }

    /// The type of an expression that begins with no operand of its own.
    fn operand(&mut self, expr: &Expr<'t>) -> Type {
        match expr {
            Expr::Var(name) => self.variable(name.id),
            Expr::Const(constant) => type_of_constant(constant),
            Expr::List(list) => {
                let items: Vec<Type> = list.items.iter().map(|item| self.infer(item)).collect();
                Type::list(all(&items))
            }
            Expr::Tuple(tuple) => Type::Tuple(tuple.items.iter().map(|item| self.infer(item)).collect()).bounded(),
            Expr::Map(map) => {
                let keys: Vec<Type> = map.keys.iter().map(|key| self.infer(key)).collect();
                let values: Vec<Type> = map.values.iter().map(|value| self.infer(value)).collect();
                let fields: Option<Vec<(String, Type)>> =
                    keys.iter().zip(values).map(|(key, value)| Some((key.constant()?.to_owned(), value))).collect();
                fields.map_or(Type::Any, |fields| Type::Struct(fields).bounded())
            }
            Expr::Call(call) => self.function_call(call),
            // A filter block hands its text to the first filter.
            Expr::Filter(filter) => self.filter(filter, Type::Text, None),
            _ => Type::Any,
        }
    }

    /// The type of `expr`, whose first operand has the type `first`.
    fn operator(&mut self, expr: &Expr<'t>, first: Type, may_be_missing: bool) -> Type {
        match expr {
            Expr::GetAttr(node) => {
                self.attribute(&first, node.name, self.place_of(node.name), &node.expr, may_be_missing)
            }
            Expr::GetItem(node) => self.item(node, &first, may_be_missing),
            Expr::Slice(node) => self.slice(node, first),
            Expr::UnaryOp(node) => self.unary(node, first),
            Expr::BinOp(node) => self.binary(node, first),
            Expr::Compare(node) => {
                for operand in &node.ops {
                    self.infer(&operand.expr);
                }
                Type::Bool
            }
            Expr::IfExpr(node) => {
                self.infer(&node.test_expr);
                // Without an else the value is missing, and prints as nothing.
                node.false_expr.as_ref().map_or(first.clone(), |other| first.join(&self.infer(other)))
            }
            Expr::Filter(node) => self.filter(node, first, node.expr.as_ref()),
            Expr::Test(node) => self.test(node),
            Expr::Call(node) => self.call_on(node, first),
            Expr::Var(_) | Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => first,
        }
    }

    fn unary(&mut self, node: &UnaryOp<'t>, operand: Type) -> Type {
        match node.op {
            UnaryOpKind::Not => Type::Bool,
            UnaryOpKind::Neg if operand.is_number() || operand == Type::Any => operand,
            UnaryOpKind::Neg => {
                let range = self.extent(&node.expr);
                let message = format!("`-` needs a number, and this is {}", operand.phrase());
                self.report(range, Diagnostic::error("wrong-operand", message));
                Type::Any
            }
        }
    }

    fn binary(&mut self, node: &Spanned<BinOp<'t>>, left: Type) -> Type {
        let right = self.infer(&node.right);
        let unknown = left == Type::Any || right == Type::Any;
        let numbers = (left.is_number() || left == Type::Any) && (right.is_number() || right == Type::Any);
        let result = match node.op {
            BinOpKind::ScAnd | BinOpKind::ScOr => Some(left.join(&right)),
            BinOpKind::Eq | BinOpKind::Ne => {
                self.compared(node, &left, &right);
                Some(Type::Bool)
            }
            BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte => Some(Type::Bool),
            BinOpKind::In => match right {
                Type::Int | Type::Float | Type::Bool => None,
                _ => Some(Type::Bool),
            },
            BinOpKind::Concat => Some(self.concatenated(node, &left, &right)),
            BinOpKind::Add => match (&left, &right) {
                (Type::List(_) | Type::Tuple(_), Type::List(_) | Type::Tuple(_)) => Some(left.join(&right)),
                (a, b) if a.is_text() && b.is_text() => Some(Type::Text),
                _ if unknown => Some(Type::Any),
                _ if numbers => Some(arithmetic(&left, &right)),
                _ => None,
            },
            BinOpKind::Mul => match (&left, &right) {
                (text, Type::Int | Type::Bool) | (Type::Int | Type::Bool, text) if text.is_text() => Some(Type::Text),
                (list @ Type::List(_), Type::Int) | (Type::Int, list @ Type::List(_)) => Some(list.clone()),
                _ if unknown => Some(Type::Any),
                _ if numbers => Some(arithmetic(&left, &right)),
                _ => None,
            },
            BinOpKind::Div if numbers => Some(Type::Float),
            // A negative exponent makes a float of ints.
            BinOpKind::Pow if numbers => Some(Type::Any),
            BinOpKind::Sub | BinOpKind::FloorDiv | BinOpKind::Rem if unknown && numbers => Some(Type::Any),
            BinOpKind::Sub | BinOpKind::FloorDiv | BinOpKind::Rem if numbers => Some(arithmetic(&left, &right)),
            BinOpKind::Sub | BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem | BinOpKind::Pow => None,
        };
        result.unwrap_or_else(|| self.wrong_operands(node, &left, &right))
    }

    fn wrong_operands(&mut self, node: &Spanned<BinOp<'t>>, left: &Type, right: &Type) -> Type {
        let start = self.extent(&node.left).start;
        let end = self.extent(&node.right).end;
        let (left, right, symbol) = (left.phrase(), right.phrase(), symbol(node.op));
        let message = match node.op {
            BinOpKind::In => format!("nothing can be `in` {right}"),
            _ => format!("`{symbol}` does not go with {left} and {right}"),
        };
        let mut diagnostic = Diagnostic::error("wrong-operand", message);
        if matches!(node.op, BinOpKind::Add) && (left == "text" || right == "text") {
            diagnostic = diagnostic.help("`~` puts the text of any two values together");
        }
        self.report(start..end, diagnostic);
        Type::Any
    }

    /// Text of two values, one after the other.
    fn concatenated(&mut self, node: &Spanned<BinOp<'t>>, left: &Type, right: &Type) -> Type {
        for (ty, side) in [(left, &node.left), (right, &node.right)] {
            self.printed(ty, side);
        }
        match (left, right) {
            (Type::Choice(a), Type::Choice(b)) => {
                Type::choice(a.iter().flat_map(|a| b.iter().map(move |b| format!("{a}{b}"))))
            }
            _ => Type::Text,
        }
    }

    /// Two values that are compared, and never can be equal.
    fn compared(&mut self, node: &Spanned<BinOp<'t>>, left: &Type, right: &Type) {
        let kind = |ty: &Type| match ty {
            Type::Text | Type::Choice(_) => "text",
            Type::Int | Type::Float | Type::Bool => "number",
            Type::List(_) | Type::Tuple(_) => "list",
            Type::Struct(_) => "struct",
            Type::None | Type::Any => "",
        };
        let why = match (left, right) {
            (Type::Choice(a), Type::Choice(b)) if !a.iter().any(|value| b.contains(value)) => {
                let names = |values: &[String]| listing(values.iter().map(String::as_str));
                format!("{} and {} have nothing in common", names(a), names(b))
            }
            (a, b) if kind(a) != kind(b) && !kind(a).is_empty() && !kind(b).is_empty() => {
                format!("{} is compared with {}", a.phrase(), b.phrase())
            }
            _ => return,
        };
        let outcome = if matches!(node.op, BinOpKind::Eq) { "false" } else { "true" };
        let range = self.extent(&node.left).start..self.extent(&node.right).end;
        self.report(range, Diagnostic::warning("never-equal", format!("this is always {outcome}")).label(why));
    }

    /// The attribute `name`, written at `range`, of a value of type `owner`.
    fn attribute(
        &mut self,
        owner: &Type,
        name: &str,
        range: Range<usize>,
        of: &Expr<'t>,
        may_be_missing: bool,
    ) -> Type {
        if let Some(ty) = owner.field(name) {
            return ty.clone();
        }
        if *owner == Type::Any || may_be_missing {
            return Type::Any;
        }
        let written = &self.snippet.text[self.extent(of)];
        let mut diagnostic = match owner {
            Type::Struct(fields) => {
                let names = || fields.iter().map(|(name, _)| name.as_str());
                Diagnostic::error("unknown-attribute", format!("`{written}` has no attribute `{name}`"))
                    .label("no attribute of this name")
                    .note("available", listing(names()))
                    .did_you_mean(name, names())
            }
            _ => Diagnostic::error(
                "unknown-attribute",
                format!("`{written}` is {}, which has no attribute `{name}`", owner.phrase()),
            )
            .label("no attribute of this name"),
        };
        if methods(owner).contains(&name) {
            diagnostic = diagnostic.help(format!("`{name}` is a method: write `{written}.{name}()`"));
        }
        if let Type::List(item) = owner
            && item.field(name).is_some()
        {
            diagnostic = diagnostic.help(format!(
                "each of its items has one: `{written}[0].{name}`, or `{written} | map(attribute='{name}')` for all"
            ));
        }
        self.report(range, diagnostic);
        Type::Any
    }

    fn item(&mut self, node: &GetItem<'t>, owner: &Type, may_be_missing: bool) -> Type {
        let subscript = self.infer(&node.subscript_expr);
        let range = self.extent(&node.subscript_expr);
        match (owner, &subscript) {
            (Type::Any, _) => Type::Any,
            (Type::Struct(_), Type::Choice(names)) => {
                let types: Vec<Type> = names
                    .iter()
                    .map(|name| self.attribute(owner, name, range.clone(), &node.expr, may_be_missing))
                    .collect();
                all(&types)
            }
            (Type::Struct(_), Type::Text | Type::Any) => Type::Any,
            (Type::List(item), Type::Int | Type::Bool | Type::Any) => (**item).clone(),
            (Type::Tuple(items), Type::Int | Type::Bool | Type::Any) => {
                let number = |index: &Const| usize::try_from(index.value.clone()).ok();
                let index = if let Expr::Const(index) = &node.subscript_expr { number(index) } else { None };
                index.and_then(|index| items.get(index).cloned()).unwrap_or_else(|| all(items))
            }
            (Type::Text | Type::Choice(_), Type::Int | Type::Bool | Type::Any) => Type::Text,
            (Type::List(_), Type::Choice(names)) if names.len() == 1 => {
                self.attribute(owner, &names[0], range, &node.expr, may_be_missing)
            }
            _ if may_be_missing => Type::Any,
            (Type::Int | Type::Float | Type::Bool | Type::None, _) => {
                let range = self.extent(&node.expr);
                let message = format!("{} has no items", owner.phrase());
                self.report(range, Diagnostic::error("bad-index", message).label(owner.phrase()));
                Type::Any
            }
            (Type::Struct(fields), _) => {
                let names = fields.iter().map(|(name, _)| name.as_str());
                let message = format!("a struct is indexed by the name of an attribute, not by {}", subscript.phrase());
                self.report(
                    range,
                    Diagnostic::error("bad-index", message).label(subscript.phrase()).note("available", listing(names)),
                );
                Type::Any
            }
            _ => {
                let message = format!("{} is indexed by an int, not by {}", owner.phrase(), subscript.phrase());
                self.report(range, Diagnostic::error("bad-index", message).label(subscript.phrase()));
                Type::Any
            }
        }
    }

    fn slice(&mut self, node: &Slice<'t>, owner: Type) -> Type {
        for bound in [&node.start, &node.stop, &node.step].into_iter().flatten() {
            let ty = self.infer(bound);
            if !matches!(ty, Type::Int | Type::Bool | Type::None | Type::Any) {
                let message = format!("a slice is bounded by ints, not by {}", ty.phrase());
                self.report(self.extent(bound), Diagnostic::error("bad-index", message).label(ty.phrase()));
            }
        }
        match owner {
            Type::Text | Type::Choice(_) => Type::Text,
            Type::List(_) | Type::Any => owner,
            Type::Tuple(items) => Type::list(all(&items)),
            Type::None => Type::Any,
            Type::Int | Type::Float | Type::Bool | Type::Struct(_) => {
                let message = format!("{} cannot be sliced", owner.phrase());
                self.report(self.extent(&node.expr), Diagnostic::error("bad-index", message).label(owner.phrase()));
                Type::Any
            }
        }
    }
}

fn type_of_constant(constant: &Const) -> Type {
    let value = &constant.value;
    match value.kind() {
        ValueKind::String => Type::choice(value.as_str().map(str::to_owned)),
        ValueKind::Bool => Type::Bool,
        ValueKind::Number if value.is_integer() => Type::Int,
        ValueKind::Number => Type::Float,
        ValueKind::None => Type::None,
        _ => Type::Any,
    }
}

fn arithmetic(left: &Type, right: &Type) -> Type {
    if *left == Type::Float || *right == Type::Float { Type::Float } else { Type::Int }
}

fn symbol(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Eq => "==",
        BinOpKind::Ne => "!=",
        BinOpKind::Lt => "<",
        BinOpKind::Lte => "<=",
        BinOpKind::Gt => ">",
        BinOpKind::Gte => ">=",
        BinOpKind::ScAnd => "and",
        BinOpKind::ScOr => "or",
        BinOpKind::Add => "+",
        BinOpKind::Sub => "-",
        BinOpKind::Mul => "*",
        BinOpKind::Div => "/",
        BinOpKind::FloorDiv => "//",
        BinOpKind::Rem => "%",
        BinOpKind::Pow => "**",
        BinOpKind::Concat => "~",
        BinOpKind::In => "in",
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Filters, tests and calls

impl<'t> Checker<'t> {
    fn filter(&mut self, node: &Filter<'t>, input: Type, of: Option<&Expr<'t>>) -> Type {
        let arguments = self.arguments(&node.args);
        let range = self.place_of(node.name);
        if !self.knows_filter(node.name, range.clone()) {
            return Type::Any;
        }
        self.takes(node.name, &input, range, of);
        self.filtered(node.name, &input, &arguments)
    }

    fn knows_filter(&mut self, name: &str, range: Range<usize>) -> bool {
        if FILTERS.iter().any(|(known, _)| *known == name) {
            return true;
        }
        let names = || FILTERS.iter().map(|(name, _)| *name);
        let mut diagnostic = Diagnostic::error("unknown-filter", format!("there is no filter `{name}`"))
            .label("no filter of this name")
            .did_you_mean(name, names());
        if TEXT_METHODS.contains(&name) {
            diagnostic = diagnostic.help(format!("`{name}` is a method of text: write `….{name}()`"));
        } else if closest(name, names()).is_none() {
            diagnostic = diagnostic.note("available", names().collect::<Vec<_>>().join(", "));
        }
        self.report(range, diagnostic);
        false
    }

    /// Reports an input that the filter cannot take, at the input where that is known.
    fn takes(&mut self, name: &str, input: &Type, at: Range<usize>, of: Option<&Expr<'t>>) {
        let Some((_, wants)) = FILTERS.iter().find(|(known, _)| *known == name) else { return };
        let Some(wanted) = wants.refuses(input) else { return };
        let range = of.map_or(at, |expr| self.extent(expr));
        let message = format!("the filter `{name}` takes {wanted}, and this is {}", input.phrase());
        self.report(range, Diagnostic::error("wrong-filter-input", message).label(input.phrase()));
    }

    /// The result of a known filter, with those whose result depends on the arguments.
    fn filtered(&mut self, name: &str, input: &Type, arguments: &[Argument<'t>]) -> Type {
        let at = |index: usize| arguments.iter().filter(|argument| argument.name.is_none()).nth(index);
        let named = |name: &str| arguments.iter().find(|argument| argument.name == Some(name));
        let item = input.element().unwrap_or(Type::Any);
        match name {
            "default" | "d" => at(0).map_or(Type::Any, |other| input.join(&other.ty)),
            "int" | "float" => {
                let number = if name == "int" { Type::Int } else { Type::Float };
                at(0).or(named("default")).map_or(number.clone(), |other| number.join(&other.ty))
            }
            "map" => match (named("attribute"), at(0)) {
                (Some(path), _) if named("default").is_some() => {
                    let default = named("default").map_or(Type::Any, |default| default.ty.clone());
                    Type::list(self.attribute_path(&item, path, true).join(&default))
                }
                (Some(path), _) => Type::list(self.attribute_path(&item, path, false)),
                (None, Some(filter)) => Type::list(self.mapped(&item, filter, &arguments[1..])),
                _ => Type::list(Type::Any),
            },
            "select" | "reject" => {
                self.names_test(at(0));
                filtered(name, input)
            }
            "selectattr" | "rejectattr" => {
                if let Some(path) = at(0) {
                    let may_be_missing =
                        at(1).and_then(|test| test.ty.constant()).is_some_and(|test| test.ends_with("defined"));
                    self.attribute_path(&item, path, may_be_missing);
                }
                self.names_test(at(1));
                filtered(name, input)
            }
            "attr" => match at(0) {
                Some(path) => self.attribute_path(input, path, false),
                None => Type::Any,
            },
            "join" | "sum" | "sort" | "unique" | "min" | "max" => {
                let path = named("attribute").or(if name == "join" {
                    at(1)
                } else if name == "sum" {
                    at(0)
                } else {
                    None
                });
                let of = path.map(|path| self.attribute_path(&item, path, false));
                match (name, of) {
                    ("sum", Some(ty)) => ty,
                    _ => filtered(name, input),
                }
            }
            "groupby" => {
                if let Some(path) = at(0).or(named("attribute")) {
                    self.attribute_path(&item, path, named("default").is_some());
                }
                filtered(name, input)
            }
            "zip" | "chain" => {
                let others: Vec<Type> =
                    arguments.iter().map(|argument| argument.ty.element().unwrap_or(Type::Any)).collect();
                let items: Vec<Type> = [item].into_iter().chain(others).collect();
                match (name, input) {
                    ("zip", _) => Type::list(Type::Tuple(items)),
                    (_, Type::List(_) | Type::Tuple(_)) => Type::list(all(&items)),
                    _ => Type::Any,
                }
            }
            "trim" if arguments.is_empty() => match input {
                Type::Choice(values) => Type::choice(values.iter().map(|value| value.trim().to_owned())),
                _ => Type::Text,
            },
            _ => filtered(name, input),
        }
    }

    /// What `map('filter', …)` makes of each item.
    fn mapped(&mut self, item: &Type, filter: &Argument<'t>, arguments: &[Argument<'t>]) -> Type {
        let Some(name) = filter.ty.constant() else { return Type::Any };
        if !self.knows_filter(name, filter.range.clone()) {
            return Type::Any;
        }
        self.takes(name, item, filter.range.clone(), None);
        // `map('map', 'map', …)` would go down as deep as it has arguments.
        if name == "map" { Type::list(Type::Any) } else { self.filtered(name, item, arguments) }
    }

    /// The attribute that the text of an argument names, such as `'answers.text'`.
    fn attribute_path(&mut self, owner: &Type, path: &Argument<'t>, may_be_missing: bool) -> Type {
        let Some(names) = path.ty.constant() else { return Type::Any };
        let mut ty = owner.clone();
        for name in names.split('.') {
            ty = match &ty {
                Type::Any => return Type::Any,
                Type::List(item) if name.parse::<i64>().is_ok() => (**item).clone(),
                owner => match owner.field(name) {
                    Some(field) => field.clone(),
                    None if may_be_missing => return Type::Any,
                    None => {
                        let mut diagnostic = Diagnostic::error(
                            "unknown-attribute",
                            format!("{} has no attribute `{name}`", owner.phrase()),
                        )
                        .label("no attribute of this name");
                        if let Type::Struct(fields) = owner {
                            diagnostic = diagnostic.did_you_mean(name, fields.iter().map(|(name, _)| name.as_str()));
                        }
                        self.report(path.range.clone(), diagnostic);
                        return Type::Any;
                    }
                },
            };
        }
        ty
    }

    fn test(&mut self, node: &Test<'t>) -> Type {
        self.arguments(&node.args);
        self.knows_test(node.name, self.place_of(node.name));
        Type::Bool
    }

    /// The name of a test, given as the argument of `select` and its like.
    fn names_test(&mut self, argument: Option<&Argument<'t>>) {
        if let Some(argument) = argument
            && let Some(name) = argument.ty.constant()
        {
            self.knows_test(name, argument.range.clone());
        }
    }

    fn knows_test(&mut self, name: &str, range: Range<usize>) {
        if TESTS.contains(&name) {
            return;
        }
        let words = || TESTS.iter().copied().filter(|name| name.starts_with(char::is_alphabetic));
        let mut diagnostic = Diagnostic::error("unknown-test", format!("there is no test `{name}`"))
            .label("no test of this name")
            .did_you_mean(name, words());
        if closest(name, words()).is_none() {
            diagnostic = diagnostic.note("available", words().collect::<Vec<_>>().join(", "));
        }
        self.report(range, diagnostic);
    }

    fn arguments(&mut self, arguments: &[CallArg<'t>]) -> Vec<Argument<'t>> {
        arguments
            .iter()
            .map(|argument| {
                let (name, expr) = match argument {
                    CallArg::Pos(expr) => (None, expr),
                    CallArg::Kwarg(name, expr) => (Some(*name), expr),
                    CallArg::PosSplat(expr) | CallArg::KwargSplat(expr) => (Some("*"), expr),
                };
                let ty = self.infer(expr);
                Argument { name, ty: if name == Some("*") { Type::Any } else { ty }, range: self.extent(expr) }
            })
            .collect()
    }

    /// A call that stands as a statement of its own.
    fn call(&mut self, node: &Call<'t>) -> Type {
        match &node.expr {
            Expr::Var(_) => self.function_call(node),
            Expr::GetAttr(method) => {
                let receiver = self.infer(&method.expr);
                self.call_on(node, receiver)
            }
            other => {
                let called = self.infer(other);
                self.call_on(node, called)
            }
        }
    }

    /// A method call, `on` being the type of its receiver; or the call of a value of that type.
    fn call_on(&mut self, node: &Call<'t>, on: Type) -> Type {
        let arguments = self.arguments(&node.args);
        match &node.expr {
            Expr::GetAttr(method) => self.method_call(&method.expr, on, method.name, &arguments),
            callee => {
                if on != Type::Any {
                    let message = format!("{} cannot be called", on.phrase());
                    self.report(self.extent(callee), Diagnostic::error("unknown-function", message).label(on.phrase()));
                }
                Type::Any
            }
        }
    }

    fn method_call(&mut self, on: &Expr<'t>, receiver: Type, name: &'t str, arguments: &[Argument<'t>]) -> Type {
        let is_loop = matches!(on, Expr::Var(name) if name.id == "loop");
        let known = if is_loop { LOOP_METHODS } else { methods(&receiver) };
        let hidden = receiver.field(name);
        if receiver == Type::Any {
            return Type::Any;
        }
        if known.contains(&name) && hidden.is_none() {
            return match (is_loop, name) {
                (true, "cycle") => all(arguments.iter().map(|argument| &argument.ty)),
                (true, _) => Type::Bool,
                (false, "get") => match arguments.first().and_then(|key| receiver.field(key.ty.constant()?)) {
                    Some(ty) => ty.clone(),
                    None => Type::Any,
                },
                _ => called(name, &receiver),
            };
        }
        let written = &self.snippet.text[self.extent(on)];
        let mut diagnostic = match hidden {
            Some(field) => {
                let message = format!("`{written}.{name}` is {}, not a method", field.phrase());
                Diagnostic::error("unknown-method", message).label("an attribute of this name is in the way")
            }
            None => {
                let message = format!("`{written}` is {}, which has no method `{name}`", receiver.phrase());
                Diagnostic::error("unknown-method", message)
                    .label("no method of this name")
                    .did_you_mean(name, known.iter().copied())
            }
        };
        if hidden.is_none()
            && FILTERS.iter().any(|(filter, wants)| *filter == name && wants.refuses(&receiver).is_none())
        {
            diagnostic = diagnostic.help(format!("there is a filter of that name: `{written} | {name}`"));
        } else if matches!((&receiver, name), (Type::List(_), "append" | "extend" | "insert")) {
            diagnostic = diagnostic
                .help(format!("lists do not change; make a longer one: `{{% set {written} = {written} + […] %}}`"));
        } else if !known.is_empty() && closest(name, known.iter().copied()).is_none() {
            diagnostic = diagnostic.note("available", listing(known.iter().copied()));
        }
        self.report(self.place_of(name), diagnostic);
        Type::Any
    }

    fn function_call(&mut self, node: &Call<'t>) -> Type {
        let arguments = self.arguments(&node.args);
        let Some(name) = target_name(&node.expr) else { return Type::Any };
        let binding =
            self.frames.iter().rev().find_map(|frame| frame.bindings.iter().find(|binding| binding.name == name));
        if let Some(Binding { origin: Origin::Macro { parameters }, .. }) = binding {
            let parameters = parameters.clone();
            self.look_up(name);
            self.macro_call(name, &parameters, &arguments);
            return Type::Text;
        }
        match self.look_up(name) {
            // A recursive loop is called by its name.
            Some(Type::Any) => return Type::Any,
            Some(_) if name == "loop" => return Type::Text,
            Some(ty) => {
                let message = format!("`{name}` is {}, not a function", ty.phrase());
                self.report(self.place_of(name), Diagnostic::error("unknown-function", message).label(ty.phrase()));
                return Type::Any;
            }
            None => {}
        }
        match name {
            "range" => Type::list(Type::Int),
            "dict" if arguments.iter().all(|argument| argument.name.is_some_and(|name| name != "*")) => {
                let fields = arguments.iter().filter_map(|a| Some((a.name?.to_owned(), a.ty.clone()))).collect();
                Type::Struct(fields).bounded()
            }
            "dict" | "namespace" => Type::Any,
            "caller" if self.macros > 0 => Type::Text,
            _ if self.macros > 0 => {
                self.awaited.push(Awaited { name, is_call: true });
                Type::Any
            }
            _ => {
                self.unknown_function(name);
                Type::Any
            }
        }
    }

    fn macro_call(&mut self, name: &str, parameters: &[&str], arguments: &[Argument<'t>]) {
        let mut positional = 0;
        for argument in arguments {
            let message = match argument.name {
                Some("*" | "caller") => continue,
                Some(keyword) if parameters.contains(&keyword) => continue,
                Some(keyword) => format!("the macro `{name}` has no parameter `{keyword}`"),
                None => {
                    positional += 1;
                    if positional <= parameters.len() {
                        continue;
                    }
                    format!("the macro `{name}` takes {} arguments, and this is one too many", parameters.len())
                }
            };
            let diagnostic =
                Diagnostic::error("wrong-arguments", message).note("parameters", listing(parameters.iter().copied()));
            self.report(argument.range.clone(), diagnostic);
        }
    }

    fn unknown_function(&mut self, name: &'t str) {
        if !self.reported.insert(name) {
            return;
        }
        let known: Vec<&str> = FUNCTIONS.iter().copied().chain(self.known_macros()).collect();
        let mut diagnostic = Diagnostic::error("unknown-function", format!("there is no function `{name}`"))
            .label("no function or macro of this name")
            .note("available", listing(known.iter().copied()))
            .did_you_mean(name, known.iter().copied());
        let filter = match name {
            "len" => Some("length"),
            "str" => Some("string"),
            "sorted" => Some("sort"),
            "reversed" => Some("reverse"),
            _ => FILTERS.iter().map(|(filter, _)| *filter).find(|filter| *filter == name),
        };
        if let Some(filter) = filter {
            diagnostic = diagnostic.help(format!("it is a filter here: `… | {filter}`"));
        } else if name == "enumerate" {
            diagnostic = diagnostic.help("`loop.index` counts from 1 inside `{% for %}`, `loop.index0` from 0");
        }
        self.report(self.place_of(name), diagnostic);
    }

    fn known_macros(&self) -> impl Iterator<Item = &'t str> {
        let bindings = self.frames.iter().flat_map(|frame| &frame.bindings);
        bindings.filter(|binding| matches!(binding.origin, Origin::Macro { .. })).map(|binding| binding.name)
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Places

fn place(snippet: &Snippet, range: Range<usize>, diagnostic: Diagnostic) -> (usize, Diagnostic) {
    (range.start, diagnostic.at(snippet.span(range)))
}

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
