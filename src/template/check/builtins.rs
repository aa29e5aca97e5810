//! What a template may call, and what goes in and comes out of it.
//!
//! The lists are constants, so that a message can name them; a test holds them against the engine's own, in both
//! directions, and so they cannot drift.

use crate::template::types::{Type, all};

/// What a filter takes. Only the clear cases are told apart: what fails on every record, or prints `['a', 'b']`
/// where text was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Anything,
    /// Text, or a number that is printed first.
    Printable,
    /// Text and nothing else.
    Text,
    /// Anything that can be looped over.
    Items,
    /// The same, but not text, whose characters nobody wants to join or to add up.
    List,
    Struct,
    Number,
    /// What can be read as a number.
    Convertible,
}

impl Wants {
    /// What would have been right, if `ty` is wrong.
    pub fn refuses(self, ty: &Type) -> Option<&'static str> {
        let holds_text = ty.is_text() || *ty == Type::Any;
        let holds_items = matches!(ty, Type::List(_) | Type::Tuple(_) | Type::Struct(_));
        let (accepted, wanted) = match self {
            Wants::Anything => (true, ""),
            Wants::Printable => (!holds_items, "text"),
            Wants::Text => (holds_text, "text"),
            Wants::Items => (!ty.is_number(), "a list or text"),
            Wants::List => (!ty.is_number() && !ty.is_text(), "a list"),
            Wants::Struct => (matches!(ty, Type::Struct(_) | Type::Any), "a struct"),
            Wants::Number => (ty.is_number() || *ty == Type::Any, "a number"),
            Wants::Convertible => (!holds_items, "a number or text"),
        };
        (!accepted).then_some(wanted)
    }
}

/// Filters of the engine, and ours (`ascii_lower`, `numbered`, `regex_replace`).
pub const FILTERS: &[(&str, Wants)] = &[
    ("abs", Wants::Number),
    ("ascii_lower", Wants::Text),
    ("attr", Wants::Anything),
    ("batch", Wants::Items),
    ("bool", Wants::Anything),
    ("capitalize", Wants::Printable),
    ("chain", Wants::Items),
    ("count", Wants::Items),
    ("d", Wants::Anything),
    ("default", Wants::Anything),
    ("dictsort", Wants::Struct),
    ("e", Wants::Printable),
    ("escape", Wants::Printable),
    ("first", Wants::Items),
    ("float", Wants::Convertible),
    ("format", Wants::Text),
    ("groupby", Wants::List),
    ("indent", Wants::Printable),
    ("int", Wants::Convertible),
    ("items", Wants::Struct),
    ("join", Wants::List),
    ("last", Wants::Items),
    ("length", Wants::Items),
    ("lines", Wants::Text),
    ("list", Wants::Items),
    ("lower", Wants::Printable),
    ("map", Wants::Items),
    ("max", Wants::Items),
    ("min", Wants::Items),
    ("numbered", Wants::List),
    ("pprint", Wants::Anything),
    ("regex_replace", Wants::Text),
    ("reject", Wants::Items),
    ("rejectattr", Wants::List),
    ("replace", Wants::Printable),
    ("reverse", Wants::Items),
    ("round", Wants::Number),
    ("safe", Wants::Printable),
    ("select", Wants::Items),
    ("selectattr", Wants::List),
    ("slice", Wants::Items),
    ("sort", Wants::Items),
    ("split", Wants::Text),
    ("string", Wants::Anything),
    ("sum", Wants::List),
    ("title", Wants::Printable),
    ("tojson", Wants::Anything),
    ("trim", Wants::Printable),
    ("unique", Wants::Items),
    ("upper", Wants::Printable),
    ("zip", Wants::Items),
];

pub const TESTS: &[&str] = &[
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "int",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "safe",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// The engine's `debug` prints its whole state and is not for templates.
pub const FUNCTIONS: &[&str] = &["dict", "namespace", "range"];

/// Methods that Python has on these types and minijinja-contrib gives us.
pub const TEXT_METHODS: &[&str] = &[
    "capitalize",
    "count",
    "endswith",
    "find",
    "format",
    "isalnum",
    "isalpha",
    "isascii",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "lower",
    "lstrip",
    "replace",
    "rfind",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "title",
    "upper",
];
pub const LIST_METHODS: &[&str] = &["count"];
pub const STRUCT_METHODS: &[&str] = &["get", "items", "keys", "values"];
pub const LOOP_METHODS: &[&str] = &["changed", "cycle"];

/// The methods of a value of this type.
pub fn methods(ty: &Type) -> &'static [&'static str] {
    match ty {
        Type::Text | Type::Choice(_) => TEXT_METHODS,
        Type::List(_) | Type::Tuple(_) => LIST_METHODS,
        Type::Struct(_) => STRUCT_METHODS,
        _ => &[],
    }
}

/// What `{% for … %}` calls `loop`, over items of this type.
pub fn loop_variable(item: &Type) -> Type {
    let numbers = ["index", "index0", "revindex", "revindex0", "length", "depth", "depth0"];
    let mut fields: Vec<(String, Type)> = numbers.iter().map(|name| (name.to_string(), Type::Int)).collect();
    fields.extend(["first", "last"].map(|name| (name.to_owned(), Type::Bool)));
    fields.extend(["previtem", "nextitem"].map(|name| (name.to_owned(), item.clone())));
    Type::Struct(fields).bounded()
}

/// What the filter `name` makes of `input`. Filters whose result hangs on their arguments are the checker's affair
/// (`default`, `int`, `float`, `map`, `attr`, `zip`, `chain`).
pub fn filtered(name: &str, input: &Type) -> Type {
    let element = || input.element().unwrap_or(Type::Any);
    match name {
        "lower" => on_constants(input, |text| text.to_lowercase()),
        "upper" => on_constants(input, |text| text.to_uppercase()),
        "ascii_lower" => on_constants(input, |text| text.to_ascii_lowercase()),
        "string" if input.is_text() => input.clone(),
        "safe" | "escape" | "e" | "title" | "capitalize" | "replace" | "trim" | "indent" | "string" | "pprint"
        | "format" | "tojson" | "join" | "numbered" | "regex_replace" => Type::Text,
        "length" | "count" => Type::Int,
        "bool" => Type::Bool,
        "abs" | "round" => input.clone(),
        "min" | "max" | "first" | "last" => element(),
        "sum" => match element() {
            number @ (Type::Int | Type::Float) => number,
            _ => Type::Any,
        },
        "sort" | "unique" | "list" | "select" | "reject" | "selectattr" | "rejectattr" => Type::list(element()),
        "reverse" if input.is_text() => Type::Text,
        "reverse" if *input == Type::Any => Type::Any,
        "reverse" => Type::list(element()),
        "batch" | "slice" => Type::list(Type::list(element())),
        "split" | "lines" => Type::list(Type::Text),
        "items" | "dictsort" => pairs(input),
        "groupby" => Type::list(Type::Any),
        _ => Type::Any,
    }
}

/// What the method `name` of `receiver` returns.
pub fn called(name: &str, receiver: &Type) -> Type {
    match (name, receiver) {
        ("lower", text) if text.is_text() => on_constants(text, |text| text.to_lowercase()),
        ("upper", text) if text.is_text() => on_constants(text, |text| text.to_uppercase()),
        ("count" | "find" | "rfind", _) => Type::Int,
        ("endswith" | "startswith", _) => Type::Bool,
        (name, _) if name.starts_with("is") => Type::Bool,
        ("split" | "splitlines", _) => Type::list(Type::Text),
        (_, text) if text.is_text() => Type::Text,
        ("keys", Type::Struct(_)) => Type::list(receiver.element().unwrap_or(Type::Any)),
        ("values", Type::Struct(fields)) => Type::list(all(fields.iter().map(|(_, ty)| ty))),
        ("items", Type::Struct(_)) => pairs(receiver),
        _ => Type::Any,
    }
}

fn pairs(of: &Type) -> Type {
    match of {
        Type::Struct(fields) => {
            let names = Type::choice(fields.iter().map(|(name, _)| name.clone()));
            Type::list(Type::Tuple(vec![names, all(fields.iter().map(|(_, ty)| ty))]))
        }
        _ => Type::list(Type::Any),
    }
}

fn on_constants(input: &Type, change: impl Fn(&str) -> String) -> Type {
    match input {
        Type::Choice(values) => Type::choice(values.iter().map(|value| change(value))),
        _ => Type::Text,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use minijinja::value::Value;
    use minijinja::{Environment, ErrorKind, context};

    use super::*;

    /// The names that the engine lists about itself under `part`, in what its `debug()` prints.
    fn listed(environment: &Environment, part: &str) -> BTreeSet<String> {
        let state = environment.render_str("{{ debug() }}", ()).unwrap();
        let after = state.split_once(&format!("{part}: ")).unwrap().1;
        let end = after.find(['}', ']']).unwrap();
        after[..end].split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn set<'n>(names: impl IntoIterator<Item = &'n &'n str>) -> BTreeSet<String> {
        names.into_iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn the_lists_are_the_engine_s_own() {
        let environment = Environment::new();
        let mut filters: BTreeSet<String> = FILTERS.iter().map(|(name, _)| name.to_string()).collect();
        for ours in ["ascii_lower", "numbered", "regex_replace"] {
            assert!(filters.remove(ours));
        }
        assert_eq!(filters, listed(&environment, "filters"));
        assert_eq!(set(TESTS), listed(&environment, "tests"));
        let mut functions = listed(&environment, "globals");
        assert!(functions.remove("debug"));
        assert_eq!(set(FUNCTIONS), functions);
    }

    #[test]
    fn the_methods_are_those_that_answer() {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let receivers = [
            (Type::Text, Value::from("text")),
            (Type::List(Box::new(Type::Int)), Value::from(vec![1])),
            (Type::Struct(vec![]), context! { a => 1 }),
        ];
        // Python's own methods are the candidates: what is missing from our lists has to be unknown to the engine.
        let candidates =
            "append as_integer_ratio capitalize casefold center clear copy count encode endswith expandtabs
            extend find format format_map fromkeys get index insert isalnum isalpha isascii isdecimal isdigit
            isidentifier islower isnumeric isprintable isspace istitle isupper items join keys ljust lower lstrip
            maketrans partition pop popitem remove removeprefix removesuffix replace reverse rfind rindex rjust
            rpartition rsplit rstrip setdefault sort split splitlines startswith strip swapcase title translate update
            upper values zfill";
        for (ty, receiver) in receivers {
            for name in candidates.split_whitespace() {
                let result =
                    environment.render_str(&format!("{{{{ it.{name}() }}}}"), context! { it => receiver.clone() });
                let unknown = result.is_err_and(|error| error.kind() == ErrorKind::UnknownMethod);
                assert_eq!(methods(&ty).contains(&name), !unknown, "{ty}.{name}");
            }
        }
    }

    /// Every filter that refuses a type here has to fail, or to print what nobody meant, in the engine as well.
    #[test]
    fn what_is_refused_fails_in_the_engine() {
        let environment = Environment::new();
        let samples = [
            (Type::Int, Value::from(3)),
            (Type::Bool, Value::from(true)),
            (Type::Text, Value::from("text")),
            (Type::List(Box::new(Type::Text)), Value::from(vec!["a", "b"])),
            (Type::Struct(vec![]), context! { a => 1 }),
        ];
        for (name, wants) in FILTERS {
            // Printing a list is no error there, joining characters neither.
            if matches!(wants, Wants::Printable | Wants::List | Wants::Anything) {
                continue;
            }
            let call = match *name {
                "batch" | "slice" => format!("{name}(2)"),
                // This one only fails once it is looped over.
                "chain" => "chain | list".to_owned(),
                name => name.to_owned(),
            };
            for (ty, sample) in &samples {
                if wants.refuses(ty).is_some() {
                    let result =
                        environment.render_str(&format!("{{{{ it | {call} }}}}"), context! { it => sample.clone() });
                    assert!(result.is_err(), "{ty} | {call} gives {result:?}");
                }
            }
        }
    }
}
