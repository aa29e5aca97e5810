//! Contamination: rows of training that say what rows of the evaluation say.
//!
//! Two rows overlap if a text of each has thirteen words in a row in common, and are duplicates if one of them has a
//! text of at least eight words that is a text of the other's, word for word (the analysis of arXiv 2109.01652,
//! appendix C, after that of GPT-3). A row's texts are its task's fields; words are runs of letters and digits, in
//! lower case.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::diag::Result;
use crate::plan::{Role, Sources, SplitName};
use crate::read::{Event, rows};
use crate::select::Selection;
use crate::template::engine::Bound;

/// Words of a stretch that two rows have in common.
const STRETCH: usize = 13;
/// Words of a text from which on its repetition is no accident.
const WORDS: usize = 8;
/// Hashes of evaluation rows that are kept at a time: 128 MiB. Training rows are read once for each such part.
const PART: u64 = 1 << 24;
/// Rows that a thread reads at a time.
const CHUNK: u64 = 4096;

/// What was found about the rows of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    pub task: String,
    /// `trained` or `held-out`.
    pub role: String,
    /// Rows that were looked at: the training rows, or the rows that are evaluated.
    pub rows: u64,
    /// Rows that share thirteen words in a row with the other side, or are duplicates.
    pub overlapping: u64,
    pub duplicates: u64,
}

/// Rows of one task, and which of them overlap, by their place among the selected ones.
pub struct Found {
    pub task: usize,
    pub split: usize,
    overlapping: Vec<AtomicBool>,
    duplicates: Vec<AtomicBool>,
}

impl Found {
    /// Whether the `place`th selected row overlaps.
    pub fn overlaps(&self, place: u64) -> bool {
        self.overlapping[place as usize].load(Ordering::Relaxed)
    }

    /// The counts.
    pub fn overlap(&self, sources: &Sources<'_>) -> Overlap {
        let count = |flags: &[AtomicBool]| flags.iter().filter(|f| f.load(Ordering::Relaxed)).count() as u64;
        let task = &sources.tasks[self.task];
        Overlap {
            task: task.task.name().to_owned(),
            role: task.role.name().to_owned(),
            rows: self.overlapping.len() as u64,
            overlapping: count(&self.overlapping),
            duplicates: count(&self.duplicates),
        }
    }
}

/// Compares what is trained on with what is held out; `selection` gives the selected rows of a task's split.
pub fn find<'s>(
    sources: &Sources<'_>,
    selection: &(dyn Fn(usize, usize) -> &'s Selection + Sync),
) -> Result<Vec<Found>> {
    let of_role = |role: Role, name: SplitName| -> Vec<Found> {
        let tasks = sources.tasks.iter().enumerate().filter(move |(_, task)| task.role == role);
        let splits = tasks.filter_map(|(t, task)| Some((t, task.splits.iter().position(|s| s.name == name)?)));
        splits
            .map(|(task, split)| {
                let flags = || (0..selection(task, split).len()).map(|_| AtomicBool::new(false)).collect();
                Found { task, split, overlapping: flags(), duplicates: flags() }
            })
            .collect()
    };
    let (held_out, trained) = (of_role(Role::HeldOut, SplitName::Test), of_role(Role::Trained, SplitName::Train));
    let total = AtomicU64::new(0);
    each_row(sources, &held_out, selection, &|_, _, hashes| {
        total.fetch_add(hashes.len() as u64, Ordering::Relaxed);
    })?;
    let parts = total.into_inner().div_ceil(PART);
    for part in 0..parts {
        let index = Index::new(sources, &held_out, selection, &|hash| hash % parts == part)?;
        each_row(sources, &trained, selection, &|found, place, hashes| {
            for &(hash, whole) in hashes {
                if index.hit(hash) {
                    found.overlapping[place as usize].store(true, Ordering::Relaxed);
                    if whole {
                        found.duplicates[place as usize].store(true, Ordering::Relaxed);
                    }
                }
            }
        })?;
        each_row(sources, &held_out, selection, &|found, place, hashes| {
            for &(hash, whole) in hashes {
                if index.was_hit(hash) {
                    found.overlapping[place as usize].store(true, Ordering::Relaxed);
                    if whole {
                        found.duplicates[place as usize].store(true, Ordering::Relaxed);
                    }
                }
            }
        })?;
    }
    Ok(held_out.into_iter().chain(trained).collect())
}

/// Hashes of evaluation rows, sorted, and whether a training row has each.
struct Index {
    hashes: Vec<u64>,
    hits: Vec<AtomicBool>,
}

impl Index {
    /// The hashes of evaluation rows that are `wanted`.
    fn new<'s>(
        sources: &Sources<'_>,
        held_out: &[Found],
        selection: &(dyn Fn(usize, usize) -> &'s Selection + Sync),
        wanted: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Index> {
        let collected = Mutex::new(Vec::new());
        each_row(sources, held_out, selection, &|_, _, hashes| {
            let wanted = hashes.iter().map(|(hash, _)| *hash).filter(|hash| wanted(*hash));
            collected.lock().unwrap_or_else(|e| e.into_inner()).extend(wanted);
        })?;
        let mut hashes: Vec<u64> = collected.into_inner().unwrap_or_else(|e| e.into_inner());
        hashes.par_sort_unstable();
        hashes.dedup();
        let hits = hashes.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Index { hashes, hits })
    }

    /// Whether an evaluation row has the hash; marks it.
    fn hit(&self, hash: u64) -> bool {
        let found = self.hashes.binary_search(&hash);
        if let Ok(i) = found {
            self.hits[i].store(true, Ordering::Relaxed);
        }
        found.is_ok()
    }

    fn was_hit(&self, hash: u64) -> bool {
        self.hashes.binary_search(&hash).is_ok_and(|i| self.hits[i].load(Ordering::Relaxed))
    }
}

/// What is done with a row: it gets the place and the hashes of [`hash_texts`].
type Look<'l> = dyn Fn(&Found, u64, &[(u64, bool)]) + Sync + 'l;

/// Calls `look` for every row with its place and the hashes of its stretches and whole texts.
fn each_row<'s>(
    sources: &Sources<'_>,
    tasks: &[Found],
    selection: &(dyn Fn(usize, usize) -> &'s Selection + Sync),
    look: &Look<'_>,
) -> Result<()> {
    let chunks: Vec<(&Found, u64, u64)> = tasks
        .iter()
        .flat_map(|found| {
            let rows = found.overlapping.len() as u64;
            (0..rows.div_ceil(CHUNK)).map(move |i| (found, i * CHUNK, ((i + 1) * CHUNK).min(rows)))
        })
        .collect();
    chunks.into_par_iter().try_for_each(|(found, from, to)| {
        let task = &sources.tasks[found.task];
        let mut hashes = Vec::new();
        rows(sources, task, &task.splits[found.split], selection(found.task, found.split), (from, to), |event| {
            // A row that gives no prompt contaminates nothing.
            if let Event::Row { place, bound, .. } = event {
                hash_texts(&bound, &mut hashes);
                look(found, place, &hashes);
            }
            Ok(())
        })
    })
}

/// The hashes of a row: of each stretch of thirteen words, and of each text of eight words or more, marked so.
fn hash_texts(bound: &Bound, hashes: &mut Vec<(u64, bool)>) {
    hashes.clear();
    let (mut words, mut ends) = (String::new(), Vec::new());
    bound.texts(&mut |text| {
        split_words(text, &mut words, &mut ends);
        let start = |i: usize| if i == 0 { 0 } else { ends[i - 1] };
        if ends.len() >= WORDS {
            // A whole text and a stretch of the same words are different things.
            hashes.push((!xxh3_64(words.as_bytes()), true));
        }
        for i in 0..(ends.len() + 1).saturating_sub(STRETCH) {
            hashes.push((xxh3_64(&words.as_bytes()[start(i)..ends[i + STRETCH - 1]]), false));
        }
    });
}

/// The words of a text, each followed by a blank, and where each ends.
fn split_words(text: &str, words: &mut String, ends: &mut Vec<usize>) {
    words.clear();
    ends.clear();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        words.extend(word.chars().flat_map(char::to_lowercase));
        words.push(' ');
        ends.push(words.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(text: &str) -> usize {
        let (mut words, mut ends) = (String::new(), Vec::new());
        split_words(text, &mut words, &mut ends);
        (ends.len() + 1).saturating_sub(STRETCH)
    }

    #[test]
    fn words_are_letters_and_digits_in_lower_case() {
        let (mut words, mut ends) = (String::new(), Vec::new());
        split_words("  The café's 3 ÉTAGES—all of them.", &mut words, &mut ends);
        assert_eq!(words, "the café s 3 étages all of them ");
        assert_eq!(ends.len(), 8);
    }

    #[test]
    fn a_stretch_has_thirteen_words() {
        let text = "one two three four five six seven eight nine ten eleven twelve";
        assert_eq!(stretches(text), 0);
        assert_eq!(stretches(&format!("{text} thirteen")), 1);
        assert_eq!(stretches(&format!("{text} thirteen fourteen")), 2);
    }
}
