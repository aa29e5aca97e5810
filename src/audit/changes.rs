//! What a change of definitions does to prompts: the same rows through the templates of before and of now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rayon::prelude::*;

use super::finding::RowName;
use crate::diag::Result;
use crate::plan::{PlannedTask, Sources};
use crate::read::{Event, rows};
use crate::select::first_keys;

/// The prompts of one template, before and now.
#[derive(Clone, Debug)]
pub struct Change {
    pub task: String,
    pub template: String,
    pub state: State,
    /// Prompts that either of them makes of the rows looked at, and how many are not the same.
    pub prompts: u64,
    pub altered: u64,
    /// The first rows whose prompt is another.
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Kept,
    Added,
    Removed,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Kept => "kept",
            State::Added => "added",
            State::Removed => "removed",
        }
    }
}

/// A prompt of a row before and now; `None` where the row gives none.
#[derive(Clone, Debug)]
pub struct Sample {
    pub row: RowName,
    pub before: Option<Prompt>,
    pub now: Option<Prompt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub inputs: String,
    pub targets: String,
}

/// The prompts of a task's rows, by row and name of the template.
type Prompts = BTreeMap<RowName, BTreeMap<String, Prompt>>;

/// Compares what is made of at most `count` rows of each split, and keeps `samples` of each template.
pub fn changes(before: &Sources<'_>, now: &Sources<'_>, count: u64, samples: usize) -> Result<Vec<Change>> {
    let find = |sources: &Sources<'_>, name: &str| sources.tasks.iter().position(|t| t.task.name() == name);
    let names = |sources: &Sources<'_>| sources.tasks.iter().map(|t| t.task.name().to_owned()).collect::<Vec<_>>();
    let all: BTreeSet<String> = names(before).into_iter().chain(names(now)).collect();
    let all: Vec<String> = all.into_iter().collect();
    let by_task: Result<Vec<Vec<Change>>> = all
        .par_iter()
        .map(|name| {
            let (old, new) = (find(before, name), find(now, name));
            let of = |sources: &Sources<'_>, task: Option<usize>| match task {
                Some(task) => prompts(sources, &sources.tasks[task], count),
                None => Ok(Prompts::new()),
            };
            let templates = |sources: &Sources<'_>, task: Option<usize>| -> Vec<String> {
                let definition = task.map(|t| &sources.tasks[t].task.definition);
                definition.into_iter().flat_map(|d| d.templates.iter().map(|t| t.name.text.clone())).collect()
            };
            let (of_old, of_new) = (templates(before, old), templates(now, new));
            let (was, is) = (of(before, old)?, of(now, new)?);
            let removed = of_old.iter().filter(|t| !of_new.contains(t)).map(|t| (t, State::Removed));
            let states = of_new.iter().map(|t| (t, if of_old.contains(t) { State::Kept } else { State::Added }));
            Ok(states
                .chain(removed)
                .map(|(template, state)| compare(name, template, state, &was, &is, samples))
                .collect())
        })
        .collect();
    Ok(by_task?.concat())
}

fn prompts(sources: &Sources<'_>, task: &PlannedTask<'_>, count: u64) -> Result<Prompts> {
    let splits = &sources.corpora[task.corpus].info.splits;
    let mut found = Prompts::new();
    for split in &task.splits {
        let selection = first_keys(sources, task, split, count);
        rows(sources, task, split, &selection, (0, selection.len()), |event| {
            // A row that is bad or is filtered out gives no prompt; whether that is new is what is compared.
            if let Event::Row { id, bound, .. } = event {
                let row = RowName { split: splits[id.split as usize].name.clone(), row: id.index };
                let of_row = found.entry(row).or_default();
                for &template in &task.templates {
                    if let Ok(prompt) = task.task.program.render(&bound, template) {
                        let name = task.task.definition.templates[template].name.text.clone();
                        of_row.insert(name, Prompt { inputs: prompt.inputs, targets: prompt.targets });
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn compare(task: &str, template: &str, state: State, was: &Prompts, is: &Prompts, samples: usize) -> Change {
    let mut change = Change {
        task: task.to_owned(),
        template: template.to_owned(),
        state,
        prompts: 0,
        altered: 0,
        samples: Vec::new(),
    };
    let rows: BTreeSet<&RowName> = was.keys().chain(is.keys()).collect();
    for row in rows {
        let prompt = |of: &Prompts| of.get(row).and_then(|prompts| prompts.get(template)).cloned();
        let (before, now) = (prompt(was), prompt(is));
        if before.is_none() && now.is_none() {
            continue;
        }
        change.prompts += 1;
        if before != now {
            change.altered += 1;
            if change.samples.len() < samples {
                change.samples.push(Sample { row: row.clone(), before, now });
            }
        }
    }
    change
}

/// The stretches in which two texts differ, between what they begin and end with alike.
pub fn difference(before: &str, now: &str) -> (Range<usize>, Range<usize>) {
    let alike = |a: &mut dyn Iterator<Item = char>, b: &mut dyn Iterator<Item = char>| -> usize {
        a.zip(b).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
    };
    let start = alike(&mut before.chars(), &mut now.chars());
    let end = alike(&mut before[start..].chars().rev(), &mut now[start..].chars().rev());
    (start..before.len() - end, start..now.len() - end)
}

#[cfg(test)]
mod tests {
    #[test]
    fn texts_differ_between_what_they_share() {
        assert_eq!(super::difference("a cat sat", "a cart sat"), (4..4, 4..5));
        assert_eq!(super::difference("aa", "aaa"), (2..2, 2..3));
        assert_eq!(super::difference("ö", "ü"), (0..2, 0..2));
    }
}
