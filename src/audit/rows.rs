//! Rows: prompts that are there twice. What gives no prompt is counted where it is met, in [`super::observe`].

use std::collections::HashMap;

use super::code::DUPLICATE_PROMPTS;
use super::facts::Facts;
use super::finding::{Finding, Spot, Tally};
use super::observe::Seen;

/// Rows that give the prompt of an earlier one.
pub fn finish(facts: &Facts<'_>, seen: &Seen, findings: &mut Vec<Finding>) {
    for &template in &facts.planned.templates {
        let seen = &seen.templates[template];
        let mut first = HashMap::new();
        let mut tally = Tally::default();
        for &(inputs, targets, id) in &seen.hashes {
            if first.insert((inputs, targets), id).is_some() {
                tally.add(|| facts.row(id), || None);
            }
        }
        if tally.count as f64 >= DUPLICATE_PROMPTS.least * seen.prompts.max(1) as f64 && tally.count > 1 {
            let message = "rows give a prompt that an earlier row gave";
            let finding = Finding::new(&DUPLICATE_PROMPTS, facts.planned.task, Spot::Template(template), message);
            findings.push(finding.shown(tally, seen.prompts));
        }
    }
}
