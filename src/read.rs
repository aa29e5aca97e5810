//! Reading the selected rows of a split: decoded, filtered, and with their fields computed.

use crate::diag::{Diagnostic, Result, Severity};
use crate::example::{Datum, ExampleId};
use crate::plan::{PlannedSplit, PlannedTask, Sources};
use crate::select::{Selection, stretches};
use crate::template::engine::{Bound, Failure, RowName};

/// What became of a row on its way to the templates.
pub enum Event {
    /// Records that could not be read or must not be used.
    Bad { diagnostic: Diagnostic, records: u64 },
    /// The filter took the row out.
    Filtered,
    /// A field could not be computed, or the answer is none of the options.
    Failed { id: ExampleId, failure: Failure },
    /// The row is ready; `place` is its index among the selected ones.
    Row { id: ExampleId, place: u64, bound: Bound },
}

/// A row before its fields are computed.
pub enum Decoded<'r> {
    Bad {
        diagnostic: Diagnostic,
        records: u64,
    },
    /// `place` is its index among the selected ones, `bytes` the length of its record.
    Row {
        id: ExampleId,
        place: u64,
        row: &'r Datum<'r>,
        bytes: usize,
        name: RowName<'r>,
    },
}

/// Reads the selected rows `from..to` of a task's split, in order, and computes their fields.
pub fn rows(
    sources: &Sources<'_>,
    task: &PlannedTask<'_>,
    split: &PlannedSplit,
    selection: &Selection,
    range: (u64, u64),
    mut event: impl FnMut(Event) -> Result<()>,
) -> Result<()> {
    decoded(sources, task, split, selection, range, |decoded| {
        event(match decoded {
            Decoded::Bad { diagnostic, records } => Event::Bad { diagnostic, records },
            Decoded::Row { id, place, row, bytes, name } => match task.task.program.bind(row, bytes, name) {
                Ok(Some(bound)) => Event::Row { id, place, bound },
                Ok(None) => Event::Filtered,
                Err(failure) => Event::Failed { id, failure },
            },
        })
    })
}

/// Reads the selected rows `from..to` of a task's split, in order: the features that the task needs.
pub fn decoded(
    sources: &Sources<'_>,
    task: &PlannedTask<'_>,
    split: &PlannedSplit,
    selection: &Selection,
    (from, to): (u64, u64),
    mut event: impl FnMut(Decoded<'_>) -> Result<()>,
) -> Result<()> {
    let corpus = &sources.corpora[task.corpus];
    let decoder = corpus.decoder(task.task.program.decoded_features())?;
    let mut damages = Vec::new();
    for (part, position) in stretches(&split.parts, selection, from, to) {
        let first = part.rows.start;
        let split_index = corpus.info.splits.iter().position(|s| s.name == part.split).unwrap_or(0);
        let place_of = |row: u64| selection.index_of(position + row - first);
        corpus.visit(
            &part,
            &|row| place_of(row).is_some(),
            &mut |row| {
                let id = ExampleId { corpus: task.corpus as u32, split: split_index as u32, index: row.index };
                let mut oddities = Vec::new();
                let datum = match decoder.decode(row.payload, &mut oddities) {
                    Ok(datum) => datum,
                    Err(error) => return event(Decoded::Bad { diagnostic: row.error(error), records: 1 }),
                };
                // Only features that the task reads are decoded: an odd one would be in a prompt.
                if let Some(oddity) = oddities.first() {
                    let diagnostic = Diagnostic { severity: Severity::Error, ..row.oddity(oddity) };
                    return event(Decoded::Bad { diagnostic, records: 1 });
                }
                let name = RowName { split: row.split, index: row.index };
                let place = place_of(row.index).unwrap_or(0);
                event(Decoded::Row { id, place, row: &datum, bytes: row.payload.len(), name })
            },
            &mut |damage| {
                damages.push(damage);
                Ok(())
            },
        )?;
    }
    for damage in damages.into_iter().filter(|d| d.diagnostic.severity == Severity::Error) {
        event(Decoded::Bad { records: damage.lost, diagnostic: damage.diagnostic })?;
    }
    Ok(())
}
