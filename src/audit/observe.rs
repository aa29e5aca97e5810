//! Looking at rows: each goes through every template, and what the checks want to know of it is kept.
//!
//! Rows are looked at in parallel, a stretch of one split at a time, and what was seen is put together in the order of
//! the rows: findings do not depend on threads.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::code;
use super::facts::Facts;
use super::finding::{Excerpt, RowName, Side, Spot, Tallies, Tally};
use super::lengths::{Lengths, Measure};
use super::{answers, leakage, metadata, text};
use crate::diag::Result;
use crate::example::{Datum, ExampleId};
use crate::plan::Sources;
use crate::read::{Decoded, decoded};
use crate::select::Selection;
use crate::template::engine::{Bound, Failure, Reason, Trace, Traced};

/// What was seen of a task's rows.
#[derive(Default)]
pub struct Seen {
    /// Rows that were looked at, those that the filter takes out among them.
    pub read: u64,
    pub filtered: u64,
    /// Rows that went on to the templates.
    pub rows: u64,
    pub templates: Vec<TemplateSeen>,
    /// How often each answer was right, and the options, if they were always the same.
    pub labels: BTreeMap<String, u64>,
    pub options: Options,
    /// How often the first option was right, the second, and so on.
    pub positions: Vec<u64>,
    /// By field: rows whose language was looked at.
    pub languages: BTreeMap<Spot, u64>,
    pub lengths: Lengths,
    pub tallies: Tallies,
}

/// What was seen of one template.
#[derive(Default)]
pub struct TemplateSeen {
    pub prompts: u64,
    /// Hashes of inputs and targets, and the row, of every prompt.
    pub hashes: Vec<(u64, u64, ExampleId)>,
    /// The text with what comes from the row masked, by hash: for each way in which the branches can go.
    pub forms: [BTreeMap<u64, Form>; 2],
    /// Beginnings of the stretches of the template that printed something.
    pub printed: [BTreeSet<usize>; 2],
    /// Prompts in which the expression that begins here printed a wrong option, and not the right one.
    pub wrong_options: BTreeMap<usize, u64>,
}

/// A form that a side of a template takes.
pub struct Form {
    pub example: Traced,
    pub tally: Tally,
}

/// The options of a task's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Options {
    #[default]
    None,
    /// The same for every row.
    Fixed(Vec<String>),
    Various,
}

/// One prompt, as the checks see it.
pub struct Prompt<'p> {
    pub facts: &'p Facts<'p>,
    pub template: usize,
    pub inputs: &'p Traced,
    pub targets: &'p Traced,
    pub options: &'p [String],
    pub answer: Option<&'p str>,
    pub id: ExampleId,
}

impl Prompt<'_> {
    pub fn side(&self, side: Side) -> &Traced {
        match side {
            Side::Inputs => self.inputs,
            Side::Targets => self.targets,
        }
    }

    pub fn row(&self) -> RowName {
        self.facts.row(self.id)
    }

    /// Whether the prompt asks for the answer.
    pub fn asks_for_answer(&self) -> bool {
        self.answer.is_some_and(|answer| answer.trim() == self.targets.text.trim())
    }
}

impl Facts<'_> {
    pub fn row(&self, id: ExampleId) -> RowName {
        RowName { split: self.splits[id.split as usize].clone(), row: id.index }
    }
}

/// Looks at the selected rows `range` of one split.
pub fn observe(
    sources: &Sources<'_>,
    facts: &Facts<'_>,
    split: usize,
    selection: &Selection,
    range: (u64, u64),
    mut measure: Option<Measure<'_>>,
) -> Result<Seen> {
    let task = facts.planned;
    let mut seen = Seen::default();
    seen.templates.resize_with(facts.templates.len(), TemplateSeen::default);
    decoded(sources, task, &task.splits[split], selection, range, |decoded| {
        let (id, row, bytes, name) = match decoded {
            Decoded::Row { id, row, bytes, name, .. } => (id, row, bytes, name),
            Decoded::Bad { diagnostic, records } => {
                seen.read += records;
                let message = format!("a record cannot be used: {}", diagnostic.message);
                let tally = seen.tallies.of(&code::ROWS_DROPPED, Spot::Task, message);
                tally.count += records;
                return Ok(());
            }
        };
        seen.read += 1;
        match task.task.program.bind(row, bytes, name) {
            Ok(None) => seen.filtered += 1,
            Err(failure) => seen.failed_row(facts, id, row, &failure),
            Ok(Some(bound)) => {
                seen.rows += 1;
                answers::row(facts, id, row, &bound, &mut seen);
                text::row(facts, id, &bound, &mut seen);
                for &template in &task.templates {
                    seen.prompt(facts, id, &bound, template, measure.as_mut())?;
                }
            }
        }
        Ok(())
    })?;
    Ok(seen)
}

impl Seen {
    /// A row that gives no prompt.
    fn failed_row(&mut self, facts: &Facts<'_>, id: ExampleId, row: &Datum<'_>, failure: &Failure) {
        let definition = &facts.planned.task.definition;
        let field = |name: &str| definition.fields.iter().position(|f| f.name == name);
        // Where it failed is given by the place of an expression.
        let failed = failure
            .place
            .as_ref()
            .and_then(|place| definition.fields.iter().position(|f| f.expression.whole_span().range == place.range));
        let spot = failed.or(field("answer")).map_or(Spot::Task, Spot::Field);
        let (code, message) = match failure.reason {
            Reason::AnswerNotAnOption => (&code::ANSWER_NOT_AN_OPTION, "the answer is none of the options".to_owned()),
            Reason::AnswerDiffersByBlank => {
                (&code::ANSWER_DIFFERS_BY_BLANK, "the answer differs from its option by white space".to_owned())
            }
            _ if failed.is_some() && failed == field("answer") => {
                (&code::ANSWER_UNDEFINED, "the answer cannot be computed".to_owned())
            }
            _ => (&code::ROWS_DROPPED, format!("a row gives no prompt: {}", failure.detail)),
        };
        let excerpt = || Excerpt { before: String::new(), marked: failure.detail.clone(), after: String::new() };
        self.tallies.of(code, spot, message).add(|| facts.row(id), || Some(excerpt()));
        answers::unlabelled(facts, id, row, self);
    }

    fn prompt(
        &mut self,
        facts: &Facts<'_>,
        id: ExampleId,
        bound: &Bound,
        template: usize,
        measure: Option<&mut Measure<'_>>,
    ) -> Result<()> {
        let program = &facts.planned.task.program;
        let Trace { inputs, targets, options, answer } = match program.trace(bound, template) {
            Ok(trace) => trace,
            Err(failure) => {
                let (code, message) = match failure.reason {
                    Reason::EmptyInputs => (&code::EMPTY_PROMPTS, "the inputs are empty".to_owned()),
                    Reason::EmptyTargets => (&code::EMPTY_PROMPTS, "the targets are empty".to_owned()),
                    // The template says which rows it is not for.
                    Reason::DoesNotApply => return Ok(()),
                    Reason::Unlabelled => (&code::EMPTY_PROMPTS, "the targets are empty".to_owned()),
                    _ => (&code::ROWS_DROPPED, format!("cannot be rendered: {}", failure.detail)),
                };
                self.tallies.of(code, Spot::Template(template), message).add(|| facts.row(id), || None);
                return Ok(());
            }
        };
        let prompt = Prompt {
            facts,
            template,
            inputs: &inputs,
            targets: &targets,
            options: options.as_deref().unwrap_or_default(),
            answer: answer.as_deref(),
            id,
        };
        let seen = &mut self.templates[template];
        seen.prompts += 1;
        seen.hashes.push((xxh3_64(inputs.text.as_bytes()), xxh3_64(targets.text.as_bytes()), id));
        for side in Side::BOTH {
            let traced = prompt.side(side);
            let text = &facts.templates[template][side as usize];
            seen.printed[side as usize].extend(traced.pieces.iter().filter_map(|p| text.print_at(p.source.start)));
            text::form(&prompt, side, &mut seen.forms[side as usize]);
            text::joints(&prompt, side, &mut self.tallies);
        }
        // Where an expression chooses between texts, which one it was shows in what it printed.
        for side in Side::BOTH {
            let text = &facts.templates[template][side as usize];
            for piece in &prompt.side(side).pieces {
                let printed = &prompt.side(side).text[piece.output.clone()];
                let chosen = text.choices(&piece.source).iter().filter(|(choice, _)| choice == printed);
                seen.printed[side as usize].extend(chosen.map(|(_, source)| source.start));
            }
        }
        answers::prompt(&prompt, &mut self.tallies);
        metadata::prompt(&prompt, &mut self.tallies);
        leakage::prompt(&prompt, seen, &mut self.tallies);
        if let Some(measure) = measure {
            measure.prompt(&prompt, bound, &mut self.lengths, &mut self.tallies)?;
        }
        Ok(())
    }

    /// Adds what was seen of later rows.
    pub fn absorb(&mut self, later: Seen) {
        self.read += later.read;
        self.filtered += later.filtered;
        if self.rows > 0 && later.rows > 0 && self.options != later.options {
            self.options = Options::Various;
        } else if self.rows == 0 {
            self.options = later.options;
        }
        self.rows += later.rows;
        for (label, count) in later.labels {
            *self.labels.entry(label).or_default() += count;
        }
        self.positions.resize(self.positions.len().max(later.positions.len()), 0);
        for (count, later) in self.positions.iter_mut().zip(later.positions) {
            *count += later;
        }
        for (field, rows) in later.languages {
            *self.languages.entry(field).or_default() += rows;
        }
        self.lengths.absorb(later.lengths);
        self.tallies.absorb(later.tallies);
        self.templates.resize_with(later.templates.len().max(self.templates.len()), TemplateSeen::default);
        for (seen, later) in self.templates.iter_mut().zip(later.templates) {
            seen.absorb(later);
        }
    }
}

impl TemplateSeen {
    fn absorb(&mut self, later: TemplateSeen) {
        self.prompts += later.prompts;
        self.hashes.extend(later.hashes);
        for (printed, later) in self.printed.iter_mut().zip(later.printed) {
            printed.extend(later);
        }
        for (forms, later) in self.forms.iter_mut().zip(later.forms) {
            for (hash, form) in later {
                match forms.get_mut(&hash) {
                    Some(known) => known.tally.absorb(form.tally),
                    None => drop(forms.insert(hash, form)),
                }
            }
        }
        for (source, count) in later.wrong_options {
            *self.wrong_options.entry(source).or_default() += count;
        }
    }
}
