//! Templates that would hang, take all memory or overflow the stack: each ends in an error, soon, or renders.

use std::time::{Duration, Instant};

use flanc::diag::Source;
use flanc::example::Datum;
use flanc::template::check;
use flanc::template::definition;
use flanc::template::engine::{Program, Reads, STACK_BYTES, TemplateReads};
use flanc::template::snippet::Snippet;
use flanc::template::types::Type;

/// Far more than any takes on an idle machine, far less than a template without a budget would.
const SOON: Duration = Duration::from_secs(10);

/// Compiles and renders a template over `text = "word"` on a thread such as compiles run on; what came of it.
fn check(template: &str) -> String {
    let source = template.to_owned();
    let template = source.clone();
    let render = move || {
        let quoted = format!("{template:?}").replace("\\'", "'");
        let source = Source::new(
            "hostile.toml",
            format!(
                "task = \"t\"\ntfds = \"c:1.0.0\"\ncluster = \"x\"\nlicence = \"\"\n[fields]\ntext = \"text\"\n\
                 [[template]]\nname = \"n\"\nkind = \"original\"\ninputs = {quoted}\ntargets = \"yes\"\n"
            ),
        );
        let (draft, _) = definition::read(&source).expect("the definition is well formed");
        let definition = draft.complete(None).expect("the definition is whole");
        let inputs = [String::from("text")].into();
        let reads = Reads {
            filter: Default::default(),
            fields: vec![[String::from("text")].into()],
            templates: vec![TemplateReads { inputs, targets: Default::default() }],
        };
        let program = match Program::compile(&definition, &reads) {
            Ok(program) => program,
            Err(errors) => return format!("refused: {}", errors[0].message),
        };
        let row = Datum::Struct(vec![("text", Datum::Text("word".into()))]);
        let bound = program.bind(&row, 4).expect("the field is a column").expect("there is no filter");
        match program.render(&bound, 0) {
            Ok(prompt) => format!("rendered {} bytes", prompt.inputs.len()),
            Err(failure) => format!("failed: {}", failure.detail),
        }
    };
    let began = Instant::now();
    let outcome = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(render).expect("a thread").join();
    assert!(began.elapsed() < SOON, "{:?} {source}", began.elapsed());
    outcome.expect("no panic")
}

#[test]
fn loops_and_bombs_run_out_of_fuel() {
    for template in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ text }}{% endfor %}{% endfor %}",
        "{{ text * 90000000 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ text | indent(90000000) }}",
        "{{ text.ljust(1000000000) }}",
    ] {
        let outcome = check(template);
        assert!(outcome.starts_with("failed") || outcome.starts_with("refused"), "{template}: {outcome}");
    }
}

/// The engine would repeat a list outside of its budget, so the checker does not let it come to that.
#[test]
fn repeated_lists_are_refused_before_they_are_compiled() {
    let mut diagnostics = Vec::new();
    let scope = [("text".to_owned(), Type::Text)];
    check::template(&Snippet::whole("t", "{{ ([text] * 90000000) | join }}"), &scope, &mut diagnostics);
    assert_eq!(diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), ["repeated-list"]);
}

#[test]
fn chains_up_to_the_limit_do_not_overflow_the_stack() {
    let room = check::LARGEST_SOURCE - 64;
    let chain = |head: &str, link: &str, tail: &str| format!("{head}{}{tail}", link.repeat(room / link.len()));
    for template in [
        chain("{{ 1", "+1", " }}"),
        chain("{{ text", ".a", " }}"),
        chain("{{ ", "not ", "text }}"),
        chain("{{ text", "~text", " }}"),
        chain("{{ text", "|trim", " }}"),
        chain("{% if text == 1 %}", "{% elif text %}", "{% endif %}"),
        chain("{{ ", "(", "text"),
        chain("{{ ", "[", "text"),
        chain("", "{% if text %}", ""),
        chain("", "{% for a in text %}", ""),
    ] {
        check(&template); // an overflow would abort the test program
    }
}

#[test]
fn sources_beyond_the_limit_are_refused() {
    let outcome = check(&"a".repeat(check::LARGEST_SOURCE + 1));
    assert!(outcome.contains("too large"), "{outcome}");
}
