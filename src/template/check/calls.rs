//! The types of what is called: filters, tests, methods, functions and macros.

use std::ops::Range;

use minijinja::machinery::ast::{Call, CallArg, Expr, Filter, Test};

use super::builtins::{FILTERS, FUNCTIONS, LOOP_METHODS, TESTS, TEXT_METHODS, called, filtered, methods};
use super::expressions::target_name;
use super::{Awaited, Binding, Checker, Origin};
use crate::diag::{Diagnostic, closest, listing};
use crate::template::types::{Type, all};

/// An argument of a call, its expression already checked.
struct Argument<'t> {
    /// Of a keyword argument; `*` for a splat.
    name: Option<&'t str>,
    ty: Type,
    range: Range<usize>,
}

impl<'t> Checker<'t> {
    pub(super) fn filter(&mut self, node: &Filter<'t>, input: Type, of: Option<&Expr<'t>>) -> Type {
        let arguments = self.arguments(&node.args);
        let range = self.place_of(node.name);
        if !self.knows_filter(node.name, range.clone()) {
            return Type::Any;
        }
        // With a default, a number can be asked of anything.
        if !matches!(node.name, "int" | "float") || arguments.is_empty() {
            self.takes(node.name, &input, range, of);
        }
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
            "sum" => match at(0).or(named("attribute")) {
                Some(path) => self.attribute_path(&item, path, false),
                None => filtered(name, input),
            },
            "join" | "unique" => {
                if let Some(path) = named("attribute").or(if name == "join" { at(1) } else { None }) {
                    self.attribute_path(&item, path, false);
                }
                filtered(name, input)
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
                Type::Text | Type::Choice(_) | Type::List(_) | Type::Tuple(_) if name.parse::<i64>().is_ok() => {
                    ty.element().unwrap_or(Type::Any)
                }
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

    pub(super) fn test(&mut self, node: &Test<'t>) -> Type {
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
    pub(super) fn call(&mut self, node: &Call<'t>) -> Type {
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
    pub(super) fn call_on(&mut self, node: &Call<'t>, on: Type) -> Type {
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
                Diagnostic::error("unknown-method", message)
                    .label("an attribute")
                    .help(format!("read it without calling it: `{written}.{name}`"))
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
        } else if hidden.is_none() && !known.is_empty() && closest(name, known.iter().copied()).is_none() {
            diagnostic = diagnostic.note("available", listing(known.iter().copied()));
        }
        self.report(self.place_of(name), diagnostic);
        Type::Any
    }

    pub(super) fn function_call(&mut self, node: &Call<'t>) -> Type {
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
                let message = format!("`{name}` is {} and cannot be called", ty.phrase());
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

    pub(super) fn unknown_function(&mut self, name: &'t str) {
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
