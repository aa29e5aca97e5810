//! The template checker, by fixtures: `tests/fixtures/check/*.toml`, and beside each what is said about it.
//!
//! A fixture has a `scope`, a table of names and types (`"text"`, `["int"]`, `{ stem = "text" }`), and one of
//! `template`, `expression`, or `options` with `answer`. To add a test, add a file and accept its snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use flanc::diag::{Diagnostic, Source};
use flanc::template::check;
use flanc::template::snippet::Snippet;
use flanc::template::types::Type;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

#[test]
fn fixtures() {
    insta::with_settings!({
        snapshot_path => "../fixtures/check",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::glob!("../fixtures/check", "*.toml", |path| {
            let name = path.file_name().unwrap().to_string_lossy();
            let said = said_about(&name, &std::fs::read_to_string(path).unwrap());
            let silent = name.starts_with("fine-");
            assert!(!silent || !said.contains("-->"), "{said}");
            insta::assert_snapshot!("said", said);
        });
    });
}

/// Every code that the checker has is met in some fixture.
#[test]
fn every_code_has_a_fixture() {
    let mut met = BTreeSet::new();
    for (name, text) in fixtures_text() {
        for line in said_about(&name, &text).lines() {
            if let Some((_, rest)) = line.split_once("[").filter(|(kind, _)| matches!(*kind, "error" | "warning")) {
                met.insert(rest.split(']').next().unwrap().to_owned());
            }
        }
    }
    let codes = [
        "answer-not-an-option",
        "bad-index",
        "cannot-unpack",
        "never-equal",
        "no-other-templates",
        "not-a-namespace",
        "not-iterable",
        "not-text",
        "shadowed-field",
        "syntax-error",
        "template-too-large",
        "unknown-attribute",
        "unknown-filter",
        "unknown-function",
        "unknown-method",
        "unknown-test",
        "unknown-variable",
        "unused-variable",
        "wrong-arguments",
        "wrong-filter-input",
        "wrong-operand",
    ];
    assert_eq!(met.iter().map(String::as_str).collect::<Vec<_>>(), codes);
}

/// What the checker calls fine, the engine renders with strict undefined, given no more than the names that are read.
#[test]
fn what_is_fine_renders() {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    engine.add_filter("ascii_lower", |text: String| text.to_ascii_lowercase());
    engine.add_filter("regex_replace", |text: String, _pattern: String, _by: String| text);
    for (name, text) in fixtures_text().filter(|(name, _)| name.starts_with("fine-")) {
        let source = Source::new(&name, &text);
        let fixture = DeTable::parse(&text).unwrap();
        let fixture = fixture.get_ref();
        let scope = fixture.get("scope").map_or(Vec::new(), |scope| fields(scope.get_ref()));
        // Of a value about which nothing is known there is no sample.
        if let Some(template) = fixture.get("template").filter(|_| scope.iter().all(|(_, ty)| *ty != Type::Any)) {
            let snippet = snippet(&source, template);
            let reads = check::template(&snippet, &scope, &mut Vec::new());
            let record = scope.into_iter().filter(|(name, _)| reads.contains(name)).collect();
            let rendered = engine.render_str(&snippet.text, sample(&Type::Struct(record)));
            assert!(rendered.is_ok(), "{name}: {rendered:?}");
        }
    }
}

fn sample(ty: &Type) -> Value {
    match ty {
        Type::Text | Type::Choice(_) => Value::from("Why so?"),
        Type::Int => Value::from(1),
        Type::Float => Value::from(0.5),
        Type::Bool => Value::from(true),
        Type::List(item) => Value::from(vec![sample(item), sample(item)]),
        Type::Tuple(items) => items.iter().map(sample).collect(),
        Type::Struct(fields) => {
            Value::from(fields.iter().map(|(name, ty)| (name.clone(), sample(ty))).collect::<BTreeMap<_, _>>())
        }
        Type::None | Type::Any => Value::from(()),
    }
}

/// Chains and nestings as long as the limit allows, on a stack of the size that callers have to give.
#[test]
fn nothing_within_the_limit_overflows_the_stack() {
    let long = |head: &str, link: &str, tail: &str| {
        let count = (check::LARGEST_SOURCE - head.len() - tail.len()) / link.len();
        format!("{head}{}{tail}", link.repeat(count))
    };
    let half = |head: &str, link: &str, middle: &str, close: &str, tail: &str| {
        let count = (check::LARGEST_SOURCE - head.len() - middle.len() - tail.len()) / (link.len() + close.len());
        format!("{head}{}{middle}{}{tail}", link.repeat(count), close.repeat(count))
    };
    let templates = [
        long("{{1", "+1", "}}"),
        long("{{n", ".n", "}}"),
        long("{{n", "()", "}}"),
        long("{{n", "[0]", "}}"),
        long("{{n", "[:]", "}}"),
        long("{{n", ".m()", "}}"),
        long("{{n", "|e", "}}"),
        long("{{n", "~n", "}}"),
        long("{{n", "**n", "}}"),
        long("{{n", "<n", "}}"),
        long("{{n", " or n", "}}"),
        long("{{n", " is n", "}}"),
        long("{{", "not ", "n}}"),
        long("{{", "-", "n}}"),
        long("{{n", " if n", "}}"),
        long("{{n", " if n else n", "}}"),
        long("{%if n%}", "{%elif n%}", "{%endif%}"),
        long("{%if n%}", "{%elif n%}{%set a=n%}", "{%endif%}"),
        long("{%filter e", "|e", "%}{%endfilter%}"),
        long("{%set a=n%}", "{%set a={'a':a,'b':a}%}", "{{a}}"),
        long("{%set a='a'%}", "{%set a=a~a%}", "{{a}}"),
        long("{{[", "1,", "]}}"),
        long("{{m(", "1,", ")}}"),
        long("", "{{m}}", ""),
        long("{{n|map(", "'map',", "'e')}}"),
        half("{{", "(", "n", ")", "}}"),
        half("{{", "[", "n", "]", "}}"),
        half("{{", "m(", "n", ")", "}}"),
        half("", "{%if n%}", "", "{%endif%}", ""),
        half("", "{%for i in n%}", "", "{%endfor%}", ""),
        half("{%set ", "(", "n", ",)", "=n%}"),
        long("{{", "(", ""),
        long("", "{%if n%}", ""),
    ];
    for template in templates {
        assert!(template.len() <= check::LARGEST_SOURCE && template.len() > check::LARGEST_SOURCE - 32);
        let check = move || {
            let begun = std::time::Instant::now();
            let (snippet, scope) = (Snippet::whole("chain", &template), [("n".to_owned(), Type::Any)]);
            check::template(&snippet, &scope, &mut Vec::new());
            assert!(begun.elapsed().as_secs() < 5, "{}", &template[..40]);
        };
        std::thread::Builder::new().stack_size(16 << 20).spawn(check).unwrap().join().unwrap();
    }
}

/// A text that breaks off anywhere, or has a stray byte anywhere, is answered with a message and nothing worse.
#[test]
fn broken_templates_are_reported_at_a_place() {
    let whole = "{% macro m(a, b=1) %}{{ a }}{% endmacro %}{% for x, y in q.items() if x is not none %}é{{ m(x[1:]) | \
        join(', ', attribute='a') ~ 'é' if y else -1 }}{% else %}{% set z %}{# é #}{% endset %}{% endfor %}";
    let scope = [("q".to_owned(), Type::Struct(vec![("a".to_owned(), Type::Text)]))];
    for at in (0..whole.len()).filter(|&at| whole.is_char_boundary(at)) {
        let mut texts = vec![whole[..at].to_owned()];
        for stray in ["{{", "{%", "}}", "%}", "'", "(", ")", "|", ".", "\u{1}", "é", "\n", "{% endif %}"] {
            texts.push(format!("{}{stray}{}", &whole[..at], &whole[at..]));
        }
        for text in texts {
            let mut diagnostics = Vec::new();
            let snippet = Snippet::whole("broken", &text);
            check::template(&snippet, &scope, &mut diagnostics);
            check::expression(&snippet, &scope, &mut diagnostics);
            assert!(diagnostics.iter().all(|diagnostic| !diagnostic.to_string().is_empty()));
        }
    }
}

/// Names and texts of all fixtures.
fn fixtures_text() -> impl Iterator<Item = (String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/check");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap()))
}

/// What the checker says about a fixture, with the names it read and the type it found.
fn said_about(name: &str, text: &str) -> String {
    let source = Source::new(name, text);
    let fixture = DeTable::parse(text).unwrap();
    let fixture = fixture.get_ref();
    let mut scope = fixture.get("scope").map_or(Vec::new(), |scope| fields(scope.get_ref()));
    let mut diagnostics: Vec<Diagnostic> = Vec::new();
    let mut outcome = String::new();
    let mut expression = |key: &str, scope: &[(String, Type)], diagnostics: &mut Vec<Diagnostic>| {
        let snippet = snippet(&source, &fixture[key]);
        let inferred = check::expression(&snippet, scope, diagnostics);
        outcome.push_str(&format!("{key}: {:?}, reads {}\n", inferred.ty, names(&inferred.reads)));
        (snippet, inferred.ty)
    };
    if fixture.contains_key("expression") {
        expression("expression", &scope, &mut diagnostics);
    }
    if fixture.contains_key("answer") {
        let (_, options) = expression("options", &scope, &mut diagnostics);
        scope.push(("options".to_owned(), options.clone()));
        let (snippet, answer) = expression("answer", &scope, &mut diagnostics);
        check::answer(&snippet, &answer, &options, &mut diagnostics);
    }
    if let Some(template) = fixture.get("template") {
        let reads = check::template(&snippet(&source, template), &scope, &mut diagnostics);
        outcome.push_str(&format!("template: reads {}\n", names(&reads)));
    }
    for diagnostic in diagnostics {
        outcome.push_str(&format!("\n{diagnostic}"));
    }
    // An empty label leaves a blank at the end of its line.
    outcome.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn snippet(source: &Arc<Source>, value: &Spanned<DeValue>) -> Snippet {
    let literal: Range<usize> = value.span();
    Snippet::from_toml(source, literal, value.get_ref().as_str().unwrap())
}

fn names(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn type_of(value: &DeValue) -> Type {
    match value {
        DeValue::String(name) => match &**name {
            "text" => Type::Text,
            "int" => Type::Int,
            "float" => Type::Float,
            "bool" => Type::Bool,
            "none" => Type::None,
            "any" => Type::Any,
            other => panic!("`{other}` is not a type"),
        },
        DeValue::Array(items) => Type::List(Box::new(type_of(items[0].get_ref()))),
        DeValue::Table(_) => Type::Struct(fields(value)),
        other => panic!("{other:?} is not a type"),
    }
}

/// The fields of a struct, in the order of the file.
fn fields(value: &DeValue) -> Vec<(String, Type)> {
    let DeValue::Table(table) = value else { panic!("{value:?} is not a table") };
    let mut fields: Vec<_> = table.iter().collect();
    fields.sort_by_key(|(name, _)| name.span().start);
    fields.into_iter().map(|(name, ty)| (name.get_ref().to_string(), type_of(ty.get_ref()))).collect()
}
