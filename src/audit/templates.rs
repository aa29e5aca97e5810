//! Templates: as a set, and what in them is of no use.

use std::collections::{BTreeMap, BTreeSet};

use super::code::{
    DEAD_BRANCH, FEW_ORIGINALS, KIND_MISLABELLED, LOW_DIVERSITY, MANY_TURNED_AROUND, NEAR_DUPLICATE, SAME_TEXT,
    UNUSED_FIELD,
};
use super::facts::{Facts, closure};
use super::finding::{Finding, Side, Spot, Tally, side_of};
use super::observe::Seen;
use crate::template::definition::{Body, Kind};

/// FLAN's ten templates, of which three are turned around at most.
const ORIGINALS: usize = 7;
const TURNED_AROUND: usize = 3;

/// How varied the wording of a task's templates is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Diversity {
    /// Mean BLEU of each template's own words, all others being its references: 0 no phrase in common, 1 the same.
    pub self_bleu: f64,
    /// Mean share of words in which two templates differ.
    pub edit_distance: f64,
}

/// What the definition shows by itself.
pub fn check(facts: &Facts<'_>, findings: &mut Vec<Finding>) -> Diversity {
    unused_fields(facts, findings);
    numbers(facts, findings);
    duplicates(facts, findings);
    kinds(facts, findings);
    let diversity = diversity(facts);
    const TOO_SIMILAR: f64 = 0.5;
    if diversity.self_bleu > TOO_SIMILAR {
        let message = format!("the wording of the templates varies little: self-BLEU {:.2}", diversity.self_bleu);
        findings.push(Finding::new(&LOW_DIVERSITY, facts.planned.task, Spot::Task, message));
    }
    diversity
}

fn unused_fields(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let reads = &facts.reads;
    let by_templates = reads.templates.iter().flat_map(|t| t.inputs.iter().chain(&t.targets));
    let read: BTreeSet<&String> = reads.fields.iter().flatten().chain(by_templates).collect();
    for (i, field) in facts.planned.task.definition.fields.iter().enumerate() {
        if !read.contains(&field.name) && !matches!(field.name.as_str(), "options" | "answer") {
            let message = format!("nothing reads the field `{}`", field.name);
            let finding = Finding::new(&UNUSED_FIELD, facts.planned.task, Spot::Field(i), message);
            findings.push(finding.at(field.place.clone()));
        }
    }
}

fn numbers(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let task = facts.planned.task;
    let of_kind = |kind| task.definition.templates.iter().filter(|t| t.kind == kind).count();
    let (originals, turned_around) = (of_kind(Kind::Original), of_kind(Kind::TurnedAround));
    if originals < ORIGINALS {
        let message = format!("original templates: {originals}, and at least {ORIGINALS} are wanted");
        findings.push(Finding::new(&FEW_ORIGINALS, task, Spot::Task, message));
    }
    if turned_around > TURNED_AROUND {
        let message = format!("templates turned around: {turned_around}, and at most {TURNED_AROUND} are wanted");
        findings.push(Finding::new(&MANY_TURNED_AROUND, task, Spot::Task, message));
    }
}

fn duplicates(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    /// Of the words, those that two templates may have in common.
    const TOO_SIMILAR: f64 = 0.9;
    let task = facts.planned.task;
    let blended = |t: usize, side: Side| side_of(task, t, side).text.split_whitespace().collect::<Vec<_>>().join(" ");
    for later in 0..facts.templates.len() {
        for earlier in 0..later {
            let name = &task.definition.templates[earlier].name.text;
            if Side::BOTH.iter().all(|&side| blended(earlier, side) == blended(later, side)) {
                let message = format!("the same text as `{name}`");
                findings.push(Finding::new(&SAME_TEXT, task, Spot::Template(later), message));
                break;
            }
            let ([a, of_a], [b, of_b]) = (&facts.templates[earlier], &facts.templates[later]);
            let same_targets = words(&of_a.masked) == words(&of_b.masked) && of_a.reads() == of_b.reads();
            // Templates that print other fields ask for something else in the same words.
            let similarity = 1.0 - distance(&words(&a.masked), &words(&b.masked));
            if same_targets && similarity >= TOO_SIMILAR && a.reads() == b.reads() {
                let message = format!("nearly the same text as `{name}`: {:.0} % of the words", 100.0 * similarity);
                findings.push(Finding::new(&NEAR_DUPLICATE, task, Spot::Template(later), message));
                break;
            }
        }
    }
}

/// A turned-around template that is marked as original, and the other way round.
fn kinds(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let task = facts.planned.task;
    let definition = &task.definition;
    let names = || definition.fields.iter().map(|f| f.name.as_str());
    let reads = &facts.reads.templates;
    // What is asked for: the answer, or else what nearly all originals ask for.
    let asked: BTreeSet<String> = match names().position(|name| name == "answer") {
        Some(answer) => {
            let mut asked: BTreeSet<String> = ["answer".to_owned()].into();
            // A field that is the answer in another form.
            asked.extend(names().enumerate().filter_map(|(i, name)| {
                let read = closure(&facts.reads, names(), i);
                (i > answer && read.contains("answer")).then(|| name.to_owned())
            }));
            asked
        }
        None => {
            const NEARLY_ALL: f64 = 0.7;
            let originals: Vec<_> =
                (0..reads.len()).filter(|&t| definition.templates[t].kind == Kind::Original).collect();
            let share = |name: &str| {
                let asking = originals.iter().filter(|&&t| reads[t].targets.contains(name)).count();
                asking as f64 / originals.len().max(1) as f64
            };
            names().filter(|name| share(name) >= NEARLY_ALL).map(str::to_owned).collect()
        }
    };
    if asked.is_empty() {
        return;
    }
    for (t, read) in reads.iter().enumerate() {
        let in_targets = read.targets.iter().any(|name| asked.contains(name));
        let in_inputs = read.inputs.iter().any(|name| asked.contains(name));
        let message = match definition.templates[t].kind {
            Kind::Original if in_inputs && !in_targets => "gives the answer and asks for something else: turned around",
            Kind::TurnedAround if in_targets && !in_inputs => "asks for the answer: an original",
            _ => continue,
        };
        findings.push(Finding::new(&KIND_MISLABELLED, task, Spot::Template(t), message));
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && !matches!(c, '{' | '}')).filter(|w| !w.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Share of words that have to be changed.
#[allow(clippy::ptr_arg)] // strsim iterates over references to sized collections
fn distance(a: &Vec<String>, b: &Vec<String>) -> f64 {
    let longest = a.len().max(b.len());
    if longest == 0 { 0.0 } else { strsim::generic_levenshtein(a, b) as f64 / longest as f64 }
}

fn diversity(facts: &Facts<'_>) -> Diversity {
    let texts: Vec<Vec<String>> = facts.templates.iter().map(|[inputs, _]| words(&inputs.masked)).collect();
    if texts.len() < 2 {
        return Diversity::default();
    }
    let n = texts.len() as f64;
    let others = |i: usize| texts.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, text)| text);
    let self_bleu = (0..texts.len()).map(|i| bleu(&texts[i], &others(i).collect::<Vec<_>>())).sum::<f64>() / n;
    let distances =
        (0..texts.len()).flat_map(|i| others(i).map(|other| distance(&texts[i], other)).collect::<Vec<_>>());
    Diversity { self_bleu, edit_distance: distances.sum::<f64>() / (n * (n - 1.0)) }
}

/// BLEU-4 with one added to the counts of longer phrases (Lin and Och 2004), the shortest text counting as it is.
fn bleu(text: &[String], references: &[&Vec<String>]) -> f64 {
    let mut log = 0.0;
    for n in 1..=4 {
        let mut counts: BTreeMap<&[String], usize> = BTreeMap::new();
        text.windows(n).for_each(|phrase| *counts.entry(phrase).or_default() += 1);
        let found: usize = counts
            .iter()
            .map(|(phrase, count)| {
                let most = references.iter().map(|r| r.windows(n).filter(|w| w == phrase).count()).max();
                (*count).min(most.unwrap_or(0))
            })
            .sum();
        let all = (text.len() + 1).saturating_sub(n);
        let added = usize::from(n > 1);
        log += ((found + added) as f64 / (all + added).max(1) as f64).max(1e-9).ln() / 4.0;
    }
    let length = text.len() as f64;
    let nearest =
        references.iter().map(|r| r.len() as f64).min_by(|a, b| (a - length).abs().total_cmp(&(b - length).abs()));
    let shorter = nearest.filter(|reference| *reference > length && length > 0.0);
    shorter.map_or(1.0, |reference| (1.0 - reference / length).exp()) * log.exp()
}

/// Branches that no row took.
pub fn finish(facts: &Facts<'_>, seen: &Seen, findings: &mut Vec<Finding>) {
    /// With fewer prompts a branch may be missed by chance.
    const ENOUGH: u64 = 100;
    for &template in &facts.planned.templates {
        let seen = &seen.templates[template];
        if seen.prompts < ENOUGH {
            continue;
        }
        for side in Side::BOTH {
            let text = &facts.templates[template][side as usize];
            let body = &facts.planned.task.definition.templates[template].body;
            let one_text = matches!(body, Body::Prompt { .. });
            let printed = |at: usize| {
                seen.printed[side as usize].contains(&at) || one_text && seen.printed.iter().any(|p| p.contains(&at))
            };
            if one_text && side == Side::Targets {
                continue;
            }
            let source = &side_of(facts.planned.task, template, side).text;
            let mut add = |range: &std::ops::Range<usize>| {
                let message = format!("no row prints `{}`", source.get(range.clone()).unwrap_or_default().trim());
                let finding =
                    Finding::new(&DEAD_BRANCH, facts.planned.task, Spot::text(template, side, range), message);
                findings.push(finding.shown(Tally::default(), seen.prompts));
            };
            let mut next = 0;
            while let Some(branch) = text.branches.get(next) {
                next += 1;
                let visible =
                    branch.prints.iter().find(|p| !source.get((*p).clone()).unwrap_or_default().trim().is_empty());
                if let Some(first) = visible.filter(|_| branch.prints.iter().all(|p| !printed(p.start))) {
                    add(first);
                    next += branch.within;
                }
            }
            for expression in text.expressions.iter().filter(|e| e.choices.len() > 1 && printed(e.source.start)) {
                let dead = expression.choices.iter().find(|(t, at)| !t.is_empty() && !printed(at.start));
                if let Some((_, range)) = dead {
                    add(range);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bleu_is_one_for_the_same_words_and_small_for_others() {
        let text = |t: &str| words(t);
        let one = text("read the passage below and answer the question");
        assert!((bleu(&one, &[&one]) - 1.0).abs() < 1e-9);
        assert!(bleu(&one, &[&text("what would you say to that")]) < 0.1);
    }
}
