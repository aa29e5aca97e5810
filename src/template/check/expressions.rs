//! The types of expressions: operators, attributes, items and slices.

use std::ops::Range;

use minijinja::machinery::ast::{BinOp, BinOpKind, Const, Expr, GetItem, Slice, Spanned, UnaryOp, UnaryOpKind};
use minijinja::value::ValueKind;

use super::Checker;
use super::builtins::methods;
use crate::diag::{Diagnostic, listing};
use crate::template::types::{Type, all};

/// The operand that comes first in the text, which is where chains of operators grow.
pub(super) fn first_operand<'e, 't>(expr: &'e Expr<'t>) -> Option<&'e Expr<'t>> {
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

pub(super) fn target_name<'t>(target: &Expr<'t>) -> Option<&'t str> {
    match target {
        Expr::Var(name) => Some(name.id),
        _ => None,
    }
}

impl<'t> Checker<'t> {
    /// The type of an expression. Goes down to the first operand in a loop, then up again operator by operator.
    pub(super) fn infer(&mut self, expr: &Expr<'t>) -> Type {
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
                (Type::List(_), Type::List(_)) => Some(left.join(&right)),
                (Type::Tuple(a), Type::Tuple(b)) => Some(Type::Tuple([&a[..], &b[..]].concat()).bounded()),
                (a, b) if a.is_text() && b.is_text() => Some(Type::Text),
                _ if unknown => Some(Type::Any),
                _ if numbers => Some(arithmetic(&left, &right)),
                _ => None,
            },
            BinOpKind::Mul => match (&left, &right) {
                (text, Type::Int | Type::Bool) | (Type::Int | Type::Bool, text) if text.is_text() => Some(Type::Text),
                (Type::List(_), Type::Int | Type::Bool) | (Type::Int | Type::Bool, Type::List(_)) => {
                    Some(self.repeated_list(node))
                }
                (Type::Tuple(_), Type::Int | Type::Bool) | (Type::Int | Type::Bool, Type::Tuple(_)) => Some(Type::Any),
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

    /// The engine repeats lists lazily, so that ninety million items cost no fuel until they are printed, and then
    /// none either (minijinja 3.1.0, `value/ops.rs`, `binop_alloc_estimate`).
    fn repeated_list(&mut self, node: &Spanned<BinOp<'t>>) -> Type {
        let extent = self.extent(&node.left).start..self.extent(&node.right).end;
        let diagnostic = Diagnostic::error("repeated-list", "a list is repeated here, which no budget would bound")
            .help("write the items out, or loop over `range(…)`");
        self.report(extent, diagnostic);
        Type::Any
    }

    fn wrong_operands(&mut self, node: &Spanned<BinOp<'t>>, left: &Type, right: &Type) -> Type {
        let start = self.extent(&node.left).start;
        let end = self.extent(&node.right).end;
        let prints = |ty: &Type| ty.is_text() || ty.is_number();
        let is_sum_of_text = matches!(node.op, BinOpKind::Add) && prints(left) && prints(right);
        let (left, right, symbol) = (left.phrase(), right.phrase(), symbol(node.op));
        let message = match node.op {
            BinOpKind::In => format!("nothing can be `in` {right}"),
            _ => format!("`{symbol}` does not go with {left} and {right}"),
        };
        let mut diagnostic = Diagnostic::error("wrong-operand", message);
        if is_sum_of_text {
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
    pub(super) fn attribute(
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
            (Type::List(item), Type::Int | Type::Float | Type::Bool | Type::Any) => (**item).clone(),
            (Type::Tuple(items), Type::Int | Type::Float | Type::Bool | Type::Any) => {
                let number = |index: &Const| usize::try_from(index.value.clone()).ok();
                let index = if let Expr::Const(index) = &node.subscript_expr { number(index) } else { None };
                index.and_then(|index| items.get(index).cloned()).unwrap_or_else(|| all(items))
            }
            (Type::Text | Type::Choice(_), Type::Int | Type::Float | Type::Bool | Type::Any) => Type::Text,
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
