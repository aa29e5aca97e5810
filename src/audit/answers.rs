//! Answers: options, labels, and whether what is asked for can be known from the row at all.

use std::collections::BTreeSet;

use super::code::{
    INPUTS_NEVER_VARY, LABEL_IMBALANCE, LABELS_OF_UNEQUAL_LENGTH, OPTIONS_DIFFER_BY_BLANK, OPTIONS_NOT_SHOWN,
    REPEATED_OPTIONS, TARGET_NEVER_VARIES, UNLABELLED,
};
use super::facts::Facts;
use super::finding::{Excerpt, Finding, Side, Spot, Tallies, Tally};
use super::observe::{Options, Prompt, Seen, TemplateSeen};
use crate::diag::Result;
use crate::example::{Datum, ExampleId};
use crate::plan::Plan;
use crate::template::definition::{Body, Kind};
use crate::template::engine::Bound;

/// Looks at the options and the label of a row.
pub fn row(facts: &Facts<'_>, id: ExampleId, row: &Datum<'_>, bound: &Bound, seen: &mut Seen) {
    unlabelled(facts, id, row, seen);
    let Some(options) = bound.options() else { return };
    match &seen.options {
        _ if seen.rows == 1 => seen.options = Options::Fixed(options.to_vec()),
        Options::Fixed(known) if known == options => {}
        _ => seen.options = Options::Various,
    }
    if let (Options::Fixed(_), Some(answer)) = (&seen.options, bound.answer()) {
        *seen.labels.entry(answer.to_owned()).or_default() += 1;
    }
    if let Some(right) = bound.answer().and_then(|answer| options.iter().position(|option| option == answer)) {
        seen.positions.resize(seen.positions.len().max(options.len()), 0);
        seen.positions[right] += 1;
    }
    let field = facts.planned.task.definition.fields.iter().position(|f| f.name == "options");
    alike(facts, id, options, field.map_or(Spot::Task, Spot::Field), &mut seen.tallies);
}

/// Looks for options that are the same, or look so.
fn alike(facts: &Facts<'_>, id: ExampleId, options: &[String], spot: Spot, tallies: &mut Tallies) {
    let blended = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    for (i, option) in options.iter().enumerate() {
        let same = options[..i].iter().find(|other| blended(other) == blended(option));
        let (code, message) = match same {
            Some(other) if other == option => (&REPEATED_OPTIONS, "an option is there twice"),
            Some(_) => (&OPTIONS_DIFFER_BY_BLANK, "two options differ by white space or case alone"),
            None => continue,
        };
        let excerpt = Excerpt { before: String::new(), marked: options.join(" | "), after: String::new() };
        tallies.of(code, spot, message).add(|| facts.row(id), || Some(excerpt));
        return;
    }
}

/// A label of -1 is "unknown".
pub fn unlabelled(facts: &Facts<'_>, id: ExampleId, row: &Datum<'_>, seen: &mut Seen) {
    let Datum::Struct(features) = row else { return };
    for name in &facts.labels {
        if features.iter().any(|(feature, value)| feature == name && *value == Datum::Int(-1)) {
            let answer = facts.planned.task.definition.fields.iter().position(|f| f.name == "answer");
            let message = format!("rows without a label (`{name}` is -1) get an answer");
            let tally = seen.tallies.of(&UNLABELLED, answer.map_or(Spot::Task, Spot::Field), message);
            tally.add(|| facts.row(id), || None);
        }
    }
}

/// Looks for the options in a prompt that asks for one of them.
pub fn prompt(prompt: &Prompt<'_>, tallies: &mut Tallies) {
    let template = &prompt.facts.planned.task.definition.templates[prompt.template];
    if let Body::Prompt { .. } = template.body {
        alike(prompt.facts, prompt.id, prompt.options, Spot::Template(prompt.template), tallies);
    }
    if prompt.options.len() < 2 || template.kind != Kind::Original || !prompt.asks_for_answer() {
        return;
    }
    let text = &prompt.inputs.text;
    let mut missing = prompt.options.iter().map(|o| o.trim()).filter(|o| !text.contains(o)).peekable();
    if missing.peek().is_none() {
        return;
    }
    let lower = text.to_lowercase();
    if let Some(option) = missing.find(|option| !lower.contains(&option.to_lowercase())) {
        let excerpt = Excerpt { before: String::new(), marked: option.to_owned(), after: " is missing".to_owned() };
        let tally = tallies.of(&OPTIONS_NOT_SHOWN, Spot::Template(prompt.template), "the options are not shown");
        tally.add(|| prompt.row(), || Some(excerpt));
    }
}

/// What all rows together show.
pub fn finish(plan: Option<&Plan<'_>>, facts: &Facts<'_>, seen: &Seen, findings: &mut Vec<Finding>) -> Result<()> {
    if let Options::Fixed(options) = &seen.options {
        balance(facts, seen, options, findings);
        if let Some(plan) = plan {
            label_lengths(plan, facts, options, findings)?;
        }
    }
    for &template in &facts.planned.templates {
        varies(facts, template, &seen.templates[template], findings);
    }
    Ok(())
}

/// Fewer prompts may well be alike.
const ENOUGH_TO_VARY: u64 = 10;

fn varies(facts: &Facts<'_>, template: usize, seen: &TemplateSeen, findings: &mut Vec<Finding>) {
    let distinct =
        |hash: fn(&(u64, u64, ExampleId)) -> u64| seen.hashes.iter().map(hash).collect::<BTreeSet<_>>().len();
    if seen.prompts < ENOUGH_TO_VARY {
        return;
    }
    let (inputs, targets) = (distinct(|h| h.0), distinct(|h| h.1));
    let mut add = |code, side: Side, message: &str| {
        let form = seen.forms[side as usize].values().next();
        let mut tally = form.map_or_else(Tally::default, |f| f.tally.clone());
        tally.excerpts = form.map(|f| Excerpt::whole(&f.example)).into_iter().collect();
        tally.count = seen.prompts;
        let finding = Finding::new(code, facts.planned.task, Spot::Template(template), message);
        findings.push(finding.shown(tally, seen.prompts));
    };
    if targets == 1 {
        add(&TARGET_NEVER_VARIES, Side::Targets, "the target is always the same");
    } else if inputs == 1 {
        add(&INPUTS_NEVER_VARY, Side::Inputs, "the inputs are always the same");
    }
}

fn balance(facts: &Facts<'_>, seen: &Seen, options: &[String], findings: &mut Vec<Finding>) {
    /// With fewer rows a label may be missing by chance.
    const ENOUGH_ROWS: u64 = 50;
    const EVEN_ENOUGH: f64 = 0.5;
    if options.len() < 2 || seen.rows < ENOUGH_ROWS {
        return;
    }
    let counts: Vec<u64> = options.iter().map(|o| seen.labels.get(o).copied().unwrap_or(0)).collect();
    let all = counts.iter().sum::<u64>().max(1) as f64;
    let shares = counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / all);
    let entropy = -shares.map(|p| p * p.log2()).sum::<f64>() / (options.len() as f64).log2();
    let never = counts.contains(&0);
    if entropy >= EVEN_ENOUGH && !never {
        return;
    }
    let counted: Vec<String> = options.iter().zip(&counts).map(|(o, n)| format!("{o} {n}")).collect();
    let message = format!("labels are spread unevenly: {}", counted.join(", "));
    let answer = facts.planned.task.definition.fields.iter().position(|f| f.name == "answer");
    let spot = answer.map_or(Spot::Task, Spot::Field);
    let rarest = counts.iter().min().copied().unwrap_or(0);
    let tally = Tally { count: rarest, ..Tally::default() };
    findings.push(Finding::new(&LABEL_IMBALANCE, facts.planned.task, spot, message).shown(tally, seen.rows));
}

fn label_lengths(plan: &Plan<'_>, facts: &Facts<'_>, options: &[String], findings: &mut Vec<Finding>) -> Result<()> {
    const TOO_MANY: usize = 4;
    let mut encoder = plan.tokenizer.encoder();
    let mut lengths = Vec::new();
    for option in options {
        let mut ids = Vec::new();
        encoder.encode_into(option, &mut ids)?;
        lengths.push(ids.len());
    }
    let (least, most) = (lengths.iter().min().copied().unwrap_or(0), lengths.iter().max().copied().unwrap_or(0));
    if least == 1 && most >= TOO_MANY {
        let counted: Vec<String> = options.iter().zip(&lengths).map(|(o, n)| format!("{o} {n}")).collect();
        let message = format!("labels differ in their number of tokens: {}", counted.join(", "));
        let field = facts.planned.task.definition.fields.iter().position(|f| f.name == "options");
        let spot = field.map_or(Spot::Task, Spot::Field);
        findings.push(Finding::new(&LABELS_OF_UNEQUAL_LENGTH, facts.planned.task, spot, message));
    }
    Ok(())
}
