//! Contamination: what is trained on and what is held out, compared row by row.

use super::code::CONTAMINATED;
use super::finding::{Finding, Spot, Tally};
use crate::contamination::{self, Overlap};
use crate::diag::Result;
use crate::mixture::Contamination;
use crate::plan::{Role, Sources};
use crate::select::{Selection, select};

/// Counts the overlap of all rows that the recipe selects, if it holds any out.
pub fn overlaps(sources: &Sources<'_>) -> Result<Vec<Overlap>> {
    if sources.tasks.iter().all(|t| t.role == Role::Trained) {
        return Ok(Vec::new());
    }
    let mut selections: Vec<Vec<Selection>> = Vec::new();
    for task in &sources.tasks {
        let selected: Result<Vec<Selection>> =
            task.splits.iter().map(|split| select(sources, task, split).map(|(selection, _)| selection)).collect();
        selections.push(selected?);
    }
    let found = contamination::find(sources, &|task, split| &selections[task][split])?;
    Ok(found.iter().map(|f| f.overlap(sources)).collect())
}

/// The held-out tasks of which rows are trained on. A recipe that drops them has seen to it.
pub fn findings(sources: &Sources<'_>, overlaps: &[Overlap]) -> Vec<Finding> {
    if sources.recipe.contamination == Contamination::Drop {
        return Vec::new();
    }
    let held_out = overlaps.iter().filter(|o| o.role == Role::HeldOut.name() && o.overlapping > 0);
    let tasks = held_out.filter_map(|o| Some((o, sources.tasks.iter().find(|t| t.task.name() == o.task)?)));
    tasks
        .map(|(overlap, task)| {
            let message = format!("rows overlap with rows that are trained on, {} as duplicates", overlap.duplicates);
            let tally = Tally { count: overlap.overlapping, ..Tally::default() };
            Finding::new(&CONTAMINATED, task.task, Spot::Task, message).shown(tally, overlap.rows)
        })
        .collect()
}
