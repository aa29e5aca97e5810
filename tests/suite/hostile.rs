//! Templates that would hang, take all memory or overflow the stack: each ends in an error, soon, or renders.

use std::time::{Duration, Instant};

use flanc::diag::Source;
use flanc::example::Datum;
use flanc::task::Task;
use flanc::template::check;
use flanc::template::definition;
use flanc::template::engine::{Computed, Life, Program, Reads, Row, RowName, STACK_BYTES, TemplateReads};
use flanc::template::snippet::Snippet;
use flanc::template::types::Type;

/// Far more than any takes on an idle machine, far less than a template without a budget would.
const SOON: Duration = Duration::from_secs(10);

/// Compiles and renders a template over `text = "word"` on a thread such as compiles run on; what came of it, which is
/// the same for a draft.
fn check(template: &str) -> String {
    let outcome = check_for(template, Life::Process);
    assert_eq!(check_for(template, Life::Use), outcome, "{template}");
    outcome
}

fn check_for(template: &str, life: Life) -> String {
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
            features: Default::default(),
        };
        let program = match Program::compile(&definition, &reads, Computed::Read, life) {
            Ok(program) => program,
            Err(errors) => return format!("refused: {}", errors[0].message),
        };
        let row = Datum::Struct(vec![("text", Datum::Text("word".into()))]);
        let bound =
            program.bind(&row, 4, Default::default()).expect("the field is a column").expect("there is no filter");
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

/// The same for templates of promptsource's dialect, which may do more.
fn check_promptsource(prompt: &str) -> String {
    let text = format!(
        "task = 't'\ndialect = 'promptsource'\ntfds = 'none'\ncluster = 'x'\nlicence = ''\n\
         [[template]]\nname = 'n'\nprompt = {}\n",
        toml::Value::from(prompt)
    );
    let render = move || {
        let (draft, _) = definition::read(&Source::new("hostile.toml", text)).expect("it is well formed");
        let task = match Task::for_any_rows(draft.complete(None).expect("it is whole")) {
            Ok(task) => task,
            Err(errors) => return format!("refused: {}", errors[0].message),
        };
        let row = serde_json::json!({ "text": "word" });
        let bound = task.program.bind(Row::Json(row.as_object().unwrap()), 4, RowName::default()).unwrap().unwrap();
        match task.program.parts(&bound, 0) {
            Ok(_) => "rendered".to_owned(),
            Err(failure) => format!("failed: {}", failure.detail),
        }
    };
    let began = Instant::now();
    let outcome = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(render).expect("a thread").join();
    assert!(began.elapsed() < SOON, "{:?} {prompt}", began.elapsed());
    outcome.expect("no panic")
}

#[test]
fn templates_of_promptsource_run_out_of_fuel_as_well() {
    let doubled = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for prompt in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ text }}{% endfor %}{% endfor %}",
        "{{ text * 90000000 }}",
        "{{ '{:>1000000000}'.format(text) }}",
        "{{ text.rjust(1000000000) }}",
        "{{ text | center(1000000000) }}",
        "{{ (text * 10000) | replace('', text * 10000) }}",
        "{{ text.join(text * 1000000) }}",
        &format!("{doubled}{{{{ ns.x }}}}"),
        &format!("{doubled}{{{{ ns.x | tojson(indent=16) }}}}"),
        &format!("{doubled}{{{{ ns.x | join }}}}"),
        &format!("{doubled}{{{{ [ns.x, ns.x] | most_frequent }}}}"),
        &format!("{doubled}{{% set d = {{}} %}}{{{{ d.update({{'k': ns.x}}) }}}}"),
        "{% set x = [] %}{{ x.append(x) }}{{ x }}",
        "{% set x = [] %}{% set y = [x] %}{{ x.append({'y': y}) }}{{ y }}",
        "{% set x = [text] %}{% for i in range(60) %}{% set _ = x.extend(x) %}{% endfor %}{{ x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set n = [] %}{% set _ = n.append(ns.x) %}\
         {% set ns.x = n %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{{ ([text] * 90000000) | join }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        let outcome = check_promptsource(prompt);
        assert!(outcome.starts_with("failed") || outcome.starts_with("refused"), "{prompt}: {outcome}");
    }
    let room = check::LARGEST_SOURCE - 64;
    for prompt in ["[", "{'a': [", "(", "not ", "1 + ", "x.pop(["]
        .map(|link| format!("{{{{ x.pop() }}}}{{% set y = {}", link.repeat(room / link.len())))
    {
        check_promptsource(&prompt); // an overflow would abort the test program
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
