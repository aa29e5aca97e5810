//! What is known of a value before any record is read.
//!
//! The features of a corpus give every column a [`Type`]; the checker in `check.rs` computes the types of the
//! expressions over them. Text keeps its possible values where they are written down, because a label has to be one
//! of the options, and that can be refuted without a single record. What is not known is [`Type::Any`], about which
//! nothing is ever complained.

use std::fmt;

use crate::diag::listing;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    /// Text that is one of these, each named once, in the order of writing. A literal has exactly one.
    Choice(Vec<String>),
    Int,
    Float,
    Bool,
    List(Box<Type>),
    /// A fixed number of values, as `items()` and `zip` pair them.
    Tuple(Vec<Type>),
    Struct(Vec<(String, Type)>),
    None,
    Any,
}

/// Limits on what is remembered of a type. Templates can double a value with each `set`; types must not grow with it.
const MOST_CONSTANTS: usize = 64;
const MOST_CONSTANT_BYTES: usize = 4096;
const LARGEST: usize = 512;

impl Type {
    /// Text that is one of `values`; plain text where there are too many to be worth remembering.
    pub fn choice(values: impl IntoIterator<Item = String>) -> Type {
        let mut known: Vec<String> = Vec::new();
        let mut bytes = 0;
        for value in values {
            if known.contains(&value) {
                continue;
            }
            bytes += value.len();
            known.push(value);
            if known.len() > MOST_CONSTANTS || bytes > MOST_CONSTANT_BYTES {
                return Type::Text;
            }
        }
        if known.is_empty() { Type::Text } else { Type::Choice(known) }
    }

    pub fn list(item: Type) -> Type {
        Type::List(Box::new(item)).bounded()
    }

    /// The type itself, or [`Type::Any`] in place of one too large to carry along.
    pub fn bounded(self) -> Type {
        if self.size() > LARGEST { Type::Any } else { self }
    }

    fn size(&self) -> usize {
        1 + match self {
            Type::List(item) => item.size(),
            Type::Tuple(items) => items.iter().map(Type::size).sum(),
            Type::Struct(fields) => fields.iter().map(|(_, ty)| ty.size()).sum(),
            _ => 0,
        }
    }

    pub fn is_text(&self) -> bool {
        matches!(self, Type::Text | Type::Choice(_))
    }

    pub fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Float | Type::Bool)
    }

    /// The text, if it is known to be this one and no other.
    pub fn constant(&self) -> Option<&str> {
        match self {
            Type::Choice(values) => match &values[..] {
                [value] => Some(value),
                _ => None,
            },
            _ => None,
        }
    }

    /// The attribute `name` of a struct.
    pub fn field(&self, name: &str) -> Option<&Type> {
        match self {
            Type::Struct(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, ty)| ty),
            _ => None,
        }
    }

    /// What a loop over the value yields; nothing for what cannot be looped over.
    pub fn element(&self) -> Option<Type> {
        match self {
            Type::Text | Type::Choice(_) => Some(Type::Text),
            Type::List(item) => Some((**item).clone()),
            Type::Tuple(items) => Some(all(items)),
            Type::Struct(fields) => Some(Type::choice(fields.iter().map(|(name, _)| name.clone()))),
            Type::None | Type::Any => Some(Type::Any),
            Type::Int | Type::Float | Type::Bool => None,
        }
    }

    /// The least type that holds the values of both; [`Type::Any`] where they have nothing in common.
    #[must_use]
    pub fn join(&self, other: &Type) -> Type {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Type::Choice(a), Type::Choice(b)) => Type::choice(a.iter().chain(b).cloned()),
            (a, b) if a.is_text() && b.is_text() => Type::Text,
            (Type::Int, Type::Float) | (Type::Float, Type::Int) => Type::Float,
            (Type::List(a), Type::List(b)) => Type::list(a.join(b)),
            (Type::Tuple(a), Type::Tuple(b)) if a.len() == b.len() => {
                Type::Tuple(a.iter().zip(b).map(|(a, b)| a.join(b)).collect())
            }
            (Type::Struct(a), Type::Struct(b)) if a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0) => {
                Type::Struct(a.iter().zip(b).map(|((name, a), (_, b))| (name.clone(), a.join(b))).collect())
            }
            _ => Type::Any,
        }
    }

    /// The type with its article, as a sentence takes it: "a list of text", "an int", "text". Attributes of a struct
    /// are left out.
    pub fn phrase(&self) -> String {
        match self {
            Type::Int => "an int".to_owned(),
            Type::Text | Type::Choice(_) | Type::None | Type::Any => self.short(),
            _ => format!("a {}", self.short()),
        }
    }

    fn short(&self) -> String {
        match self {
            Type::Text | Type::Choice(_) => "text".to_owned(),
            Type::Int => "int".to_owned(),
            Type::Float => "float".to_owned(),
            Type::Bool => "bool".to_owned(),
            Type::List(item) => match &**item {
                Type::Any => "list".to_owned(),
                Type::Struct(_) => "list of structs".to_owned(),
                Type::Tuple(_) => "list of tuples".to_owned(),
                Type::List(_) => format!("list of {}", item.short().replacen("list", "lists", 1)),
                item => format!("list of {}", item.short()),
            },
            Type::Tuple(items) => match &items.iter().map(Type::short).collect::<Vec<_>>()[..] {
                [] => "tuple".to_owned(),
                [only] => format!("tuple of {only}"),
                [first @ .., last] => format!("tuple of {} and {last}", first.join(", ")),
            },
            Type::Struct(_) => "struct".to_owned(),
            Type::None => "none".to_owned(),
            Type::Any => "anything".to_owned(),
        }
    }
}

/// The join of all of `types`; anything, where there are none.
pub fn all<'t>(types: impl IntoIterator<Item = &'t Type>) -> Type {
    types.into_iter().cloned().reduce(|a, b| a.join(&b)).unwrap_or(Type::Any)
}

/// As people say it: "text", "list of text", "struct with `stem`, `choices`".
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Struct(fields) if !fields.is_empty() => {
                write!(f, "struct with {}", listing(fields.iter().map(|(name, _)| name.as_str())))
            }
            _ => f.write_str(&self.short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constants(values: &[&str]) -> Type {
        Type::choice(values.iter().map(|v| v.to_string()))
    }

    #[test]
    fn joins_keep_what_both_sides_share() {
        let list = |item| Type::List(Box::new(item));
        for (a, b, joined) in [
            (Type::Int, Type::Int, Type::Int),
            (Type::Int, Type::Float, Type::Float),
            (Type::Int, Type::Text, Type::Any),
            (Type::None, Type::Text, Type::Any),
            (Type::Any, Type::Text, Type::Any),
            (constants(&["yes"]), constants(&["no", "yes"]), constants(&["yes", "no"])),
            (constants(&["yes"]), Type::Text, Type::Text),
            (list(constants(&["yes"])), list(Type::Text), list(Type::Text)),
            (list(Type::Int), list(Type::Text), list(Type::Any)),
        ] {
            assert_eq!(a.join(&b), joined, "{a} and {b}");
        }
    }

    #[test]
    fn types_read_as_people_say_them() {
        let question =
            Type::Struct(vec![("stem".into(), Type::Text), ("choices".into(), Type::List(Box::new(Type::Text)))]);
        assert_eq!(question.to_string(), "struct with `stem`, `choices`");
        assert_eq!(question.phrase(), "a struct");
        assert_eq!(Type::list(question).phrase(), "a list of structs");
        assert_eq!(Type::list(Type::list(Type::Int)).phrase(), "a list of lists of int");
        assert_eq!(Type::Tuple(vec![Type::Int, Type::Text, Type::Bool]).phrase(), "a tuple of int, text and bool");
        assert_eq!(Type::Int.phrase(), "an int");
        assert_eq!(constants(&["a", "b"]).phrase(), "text");
    }

    #[test]
    fn what_doubles_is_let_go() {
        let mut ty = Type::Text;
        for _ in 0..100 {
            ty = Type::Tuple(vec![ty.clone(), ty]).bounded();
        }
        assert!(ty.size() <= LARGEST);
        assert_eq!(Type::choice((0..1000).map(|n| n.to_string())), Type::Text);
    }
}
