//! Leakage: inputs that give away what is asked for, and rows that are evaluated on after having been seen.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::code::{
    HELD_OUT_EXEMPLARS, INPUTS_READ_ANSWER, LABEL_IN_INPUTS, OVERLAPPING_SPLITS, TARGET_IN_INPUTS, TURNED_AROUND_LEAK,
};
use super::facts::{Facts, closure};
use super::finding::{Excerpt, Finding, Side, Spot, Tallies};
use super::observe::{Prompt, TemplateSeen};
use crate::ingest::splits::Part;
use crate::plan::{Role, Sources, SplitName};
use crate::template::definition::Kind;

/// A wrong option may show in an expression in so many of the prompts in which the right one shows alone.
pub const STRAY_OPTIONS: f64 = 0.1;

/// Looks for the target among the inputs of a prompt.
pub fn prompt(prompt: &Prompt<'_>, seen: &mut TemplateSeen, tallies: &mut Tallies) {
    let task = prompt.facts.planned.task;
    match task.definition.templates[prompt.template].kind {
        Kind::TurnedAround => target(prompt, tallies, true),
        Kind::Original if prompt.options.len() > 1 && prompt.asks_for_answer() => label(prompt, seen, tallies),
        Kind::Original => target(prompt, tallies, false),
    }
}

/// The pieces of the inputs that come from the row, where the template has them, and in the text.
fn from_row<'p>(prompt: &'p Prompt<'_>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + 'p {
    let pieces = prompt.inputs.pieces.iter();
    let pieces = pieces.filter(|p| !prompt.facts.is_own(prompt.template, Side::Inputs, p));
    pieces.map(|p| (p.source.clone(), p.output.clone()))
}

fn target(prompt: &Prompt<'_>, tallies: &mut Tallies, turned_around: bool) {
    /// A shorter text is met by chance.
    const SHORTEST: usize = 3;
    /// A name or a figure can be what is to be found in a text.
    const FOUND_IN_TEXT: usize = 5;
    let target = prompt.targets.text.trim();
    if target.chars().count() < SHORTEST {
        return;
    }
    let long = turned_around && target.split_whitespace().count() > FOUND_IN_TEXT;
    for (source, output) in from_row(prompt) {
        let piece = &prompt.inputs.text[output.clone()];
        // An answer that is found in a text is a small part of it.
        if !long && target.len() * 2 < piece.trim().len() {
            continue;
        }
        let Some(at) = find_word(piece, target) else { continue };
        let code = if turned_around { &TURNED_AROUND_LEAK } else { &TARGET_IN_INPUTS };
        let spot = Spot::text(prompt.template, Side::Inputs, &source);
        let range = output.start + at..output.start + at + target.len();
        tallies
            .of(code, spot, "this expression prints the target")
            .add(|| prompt.row(), || Some(Excerpt::new(&prompt.inputs.text, range)));
        return;
    }
}

/// Counts the expressions that print the right option and no wrong one.
fn label(prompt: &Prompt<'_>, seen: &mut TemplateSeen, tallies: &mut Tallies) {
    let Some(answer) = prompt.answer else { return };
    let mut by_length: Vec<&str> = prompt.options.iter().map(|o| o.trim()).collect();
    by_length.sort_by_key(|option| std::cmp::Reverse(option.len()));
    by_length.dedup();
    /// Where an expression prints the right option, and whether it prints a wrong one.
    type Prints = (Option<Range<usize>>, bool);
    let mut found: BTreeMap<(usize, usize), Prints> = BTreeMap::new();
    for (source, output) in from_row(prompt) {
        // One expression in a loop prints all options, one after the other.
        let (right, wrong) = found.entry((source.start, source.end)).or_default();
        // The longest first, each taken out where it stands: `duplicate` is not found in `not duplicate`.
        let mut rest = Cow::Borrowed(&prompt.inputs.text[output.clone()]);
        for &option in &by_length {
            let Some(at) = find_word(&rest, option) else { continue };
            if option == answer.trim() {
                *right = right.take().or(Some(output.start + at..output.start + at + option.len()));
            } else {
                *wrong = true;
            }
            rest = Cow::Owned(rest.replace(option, &"\0".repeat(option.len())));
        }
    }
    for ((from, to), (right, wrong)) in found {
        match right {
            Some(range) if !wrong => tallies
                .of(
                    &LABEL_IN_INPUTS,
                    Spot::text(prompt.template, Side::Inputs, &(from..to)),
                    "this expression prints the right option and no other",
                )
                .add(|| prompt.row(), || Some(Excerpt::new(&prompt.inputs.text, range))),
            None if wrong => *seen.wrong_options.entry(from).or_default() += 1,
            _ => {}
        }
    }
}

/// Where `word` stands in `text` with no letter or digit against it.
fn find_word(text: &str, word: &str) -> Option<usize> {
    if word.is_empty() {
        return None;
    }
    let touches = |inner: Option<char>, outer: Option<char>| {
        inner.is_some_and(char::is_alphanumeric) && outer.is_some_and(char::is_alphanumeric)
    };
    let (first, last) = (word.chars().next(), word.chars().next_back());
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !touches(first, before) && !touches(last, after)
    })
}

/// What definition and recipe show by themselves.
pub fn check(sources: &Sources<'_>, facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    reads_answer(facts, findings);
    overlaps(facts, findings);
    exemplars(sources, facts, findings);
}

/// A template that asks for the answer must not know it.
fn reads_answer(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let definition = &facts.planned.task.definition;
    let names = || definition.fields.iter().map(|f| f.name.as_str());
    let Some(answer) = names().position(|name| name == "answer") else { return };
    // What the answer is computed from, and the options are not: the label.
    let of_options = names().position(|name| name == "options").map(|i| closure(&facts.reads, names(), i));
    let of_options = of_options.unwrap_or_default();
    let label = closure(&facts.reads, names(), answer);
    let label: Vec<&String> =
        label.iter().filter(|name| *name != "options" && *name != "row" && !of_options.contains(*name)).collect();
    // Without options the answer is a part of the row like any other, and what else is computed from it may be too.
    let has_options = names().any(|name| name == "options");
    let tells = |name: &str| {
        name == "answer"
            || has_options
                && names().position(|n| n == name).is_some_and(|i| {
                    let read = closure(&facts.reads, names(), i);
                    name != "options" && label.iter().any(|l| read.contains(*l) || l.as_str() == name)
                })
    };
    for &t in &facts.planned.templates {
        let template = &definition.templates[t];
        if template.kind != Kind::Original || !facts.reads.templates[t].targets.contains("answer") {
            continue;
        }
        let [inputs, _] = &facts.templates[t];
        if let Some((name, source)) = inputs.names.iter().find(|(name, _)| tells(name)) {
            let spot = Spot::text(t, Side::Inputs, source);
            let message = format!("the inputs read `{name}`, which tells the answer");
            findings.push(Finding::new(&INPUTS_READ_ANSWER, facts.planned.task, spot, message));
        }
    }
}

/// Splits of a task must not share rows.
fn overlaps(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let extent = &facts.planned.extent;
    for (i, (name, part)) in extent.iter().enumerate() {
        let other = extent[..i].iter().find(|(other, of_other)| other != name && shared(part, of_other).is_some());
        let Some((other, of_other)) = other else { continue };
        let Some(rows) = shared(part, of_other) else { continue };
        let message = format!(
            "{} and {} share the rows {}..{} of `{}`",
            other.name(),
            name.name(),
            rows.start,
            rows.end,
            part.split
        );
        let task = facts.planned.task;
        let splits = &task.definition.splits;
        let place = match name {
            SplitName::Train => &splits.train,
            SplitName::Validation => &splits.validation,
            SplitName::Test => &splits.test,
        };
        let finding = Finding::new(&OVERLAPPING_SPLITS, task, Spot::Task, message);
        findings.push(match place {
            Some(place) => finding.at(place.whole_span()),
            None => finding,
        });
    }
}

/// Exemplars must not come from rows that are evaluated.
fn exemplars(sources: &Sources<'_>, facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let task = facts.planned;
    let Some(exemplars) = &task.exemplars else { return };
    let evaluated = sources.tasks.iter().filter(|t| t.role == Role::HeldOut && t.corpus == task.corpus);
    let evaluated = evaluated.flat_map(|t| t.splits.iter().flat_map(move |s| s.parts.iter().map(move |p| (t, p))));
    for (other, part) in evaluated {
        let Some(rows) = exemplars.parts.iter().find_map(|p| shared(p, part)) else { continue };
        let message = format!(
            "exemplars come from the rows {}..{} of `{}`, on which `{}` is evaluated",
            rows.start,
            rows.end,
            part.split,
            other.task.name()
        );
        let place = task.task.definition.splits.train.as_ref().map(|s| s.whole_span());
        let finding = Finding::new(&HELD_OUT_EXEMPLARS, task.task, Spot::Task, message);
        findings.push(match place {
            Some(place) => finding.at(place),
            None => finding,
        });
        return;
    }
}

fn shared(a: &Part, b: &Part) -> Option<Range<u64>> {
    let rows = a.rows.start.max(b.rows.start)..a.rows.end.min(b.rows.end);
    (a.split == b.split && !rows.is_empty()).then_some(rows)
}
