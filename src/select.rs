//! Selecting: which rows of a split are used.
//!
//! The cap takes the rows with the smallest keyed hashes, so a cap of 10,000 gives a subset of what 30,000 gives, and
//! neither threads nor shards have a say. For that only the number of rows has to be known; records are read here
//! only where a filter comes before the cap, or where the position among the kept rows matters (`round-robin`).

use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::diag::Result;
use crate::ingest::Corpus;
use crate::ingest::splits::Part;
use crate::mixture::{Choice, Compat, Filters, Select};
use crate::plan::{PlannedSplit, PlannedTask, Role, Sources};
use crate::seed::Seed;

/// Rows of a split, as positions in the concatenation of its parts, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All(u64),
    Some(Vec<u64>),
}

impl Selection {
    pub fn len(&self) -> u64 {
        match self {
            Selection::All(rows) => *rows,
            Selection::Some(rows) => rows.len() as u64,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The selected positions for which `keep` holds, given their index among the selected ones.
    #[must_use]
    pub fn retain(&self, keep: impl Fn(u64) -> bool) -> Selection {
        Selection::Some((0..self.len()).filter(|&i| keep(i)).map(|i| self.get(i)).collect())
    }

    /// A hash of the selected positions.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        (0..self.len()).for_each(|i| {
            hasher.update(&self.get(i).to_le_bytes());
        });
        hasher.finalize().to_hex().to_string()
    }

    /// The `i`th selected position.
    pub fn get(&self, i: u64) -> u64 {
        match self {
            Selection::All(_) => i,
            Selection::Some(rows) => rows[i as usize],
        }
    }

    /// Whether a position is selected, and as which.
    pub fn index_of(&self, position: u64) -> Option<u64> {
        match self {
            Selection::All(rows) => (position < *rows).then_some(position),
            Selection::Some(rows) => rows.binary_search(&position).ok().map(|i| i as u64),
        }
    }
}

/// Rows that one task filters at a time.
const CHUNK: u64 = 8192;

/// Selects the rows of a split; also gives how many a filter before the cap took out.
pub fn select(sources: &Sources<'_>, task: &PlannedTask<'_>, split: &PlannedSplit) -> Result<(Selection, u64)> {
    let recipe = &sources.recipe;
    let filtered = task.task.definition.filter.is_some();
    let read_first = filtered && recipe.filters == Filters::BeforeCap;
    let read_after = filtered && recipe.templates == Choice::RoundRobin && !read_first;
    let corpus = &sources.corpora[task.corpus];
    if read_first {
        let kept = filter(corpus, task, split, &Selection::All(split.rows))?;
        let dropped = split.rows - kept.len() as u64;
        return Ok((cap(sources, task, split, Some(kept)), dropped));
    }
    let selection = cap(sources, task, split, None);
    if read_after {
        let kept = filter(corpus, task, split, &selection)?;
        let dropped = selection.len() - kept.len() as u64;
        return Ok((without_remainder(sources, task, Selection::Some(kept)), dropped));
    }
    Ok((without_remainder(sources, task, selection), 0))
}

/// FLAN v1 takes rows in batches of as many as there are templates, and drops the last batch if it is not full
/// (google-research/FLAN, `flan/preprocessors.py`: it maps over `batch(n, drop_remainder=True)`).
fn without_remainder(sources: &Sources<'_>, task: &PlannedTask<'_>, selection: Selection) -> Selection {
    let recipe = &sources.recipe;
    if recipe.compat != Compat::FlanV1 || recipe.templates != Choice::RoundRobin || task.role == Role::HeldOut {
        return selection;
    }
    let whole = selection.len() - selection.len() % task.templates.len() as u64;
    match selection {
        Selection::All(_) => Selection::All(whole),
        Selection::Some(mut rows) => {
            rows.truncate(whole as usize);
            Selection::Some(rows)
        }
    }
}

/// Applies the cap to all positions, or to the given ones. It is a cap on what is trained on: an evaluation takes all.
fn cap(sources: &Sources<'_>, task: &PlannedTask<'_>, split: &PlannedSplit, kept: Option<Vec<u64>>) -> Selection {
    let cap = sources.recipe.cap.filter(|_| task.role == Role::Trained).unwrap_or(u64::MAX);
    smallest_keys(sources, task, split, cap, kept)
}

fn smallest_keys(
    sources: &Sources<'_>,
    task: &PlannedTask<'_>,
    split: &PlannedSplit,
    cap: u64,
    kept: Option<Vec<u64>>,
) -> Selection {
    let corpus = &sources.corpora[task.corpus];
    let available = kept.as_ref().map_or(split.rows, |k| k.len() as u64);
    if available <= cap {
        return kept.map_or(Selection::All(split.rows), Selection::Some);
    }
    if sources.recipe.select == Select::Head {
        return Selection::Some(kept.map_or_else(
            || (0..cap).collect(),
            |mut k| {
                k.truncate(cap as usize);
                k
            },
        ));
    }
    let keys = RowKeys::new(sources.recipe.seed, corpus, &split.parts);
    // The cap's smallest keys so far, the largest on top: memory for the cap, whatever the corpus.
    let mut smallest: BinaryHeap<(u64, u64)> = BinaryHeap::new();
    let mut offer = |position: u64| {
        let key = (keys.key(position), position);
        if (smallest.len() as u64) < cap {
            smallest.push(key);
        } else if smallest.peek().is_some_and(|top| key < *top) {
            smallest.pop();
            smallest.push(key);
        }
    };
    match &kept {
        Some(kept) => kept.iter().for_each(|&p| offer(p)),
        None => (0..split.rows).for_each(offer),
    }
    let mut rows: Vec<u64> = smallest.into_iter().map(|(_, position)| position).collect();
    rows.sort_unstable();
    Selection::Some(rows)
}

/// The first rows of a split in the order in which the cap takes them, at most `count`.
pub fn first_keys(sources: &Sources<'_>, task: &PlannedTask<'_>, split: &PlannedSplit, count: u64) -> Selection {
    smallest_keys(sources, task, split, count, None)
}

/// The key of each row under the cap: a hash of corpus, split and index.
struct RowKeys<'p> {
    parts: &'p [Part],
    streams: Vec<crate::seed::Stream>,
}

impl<'p> RowKeys<'p> {
    fn new(seed: u64, corpus: &Corpus, parts: &'p [Part]) -> Self {
        let name = corpus.info.name.to_string();
        RowKeys { parts, streams: parts.iter().map(|p| Seed(seed).stream(&["cap", &name, &p.split])).collect() }
    }

    fn key(&self, position: u64) -> u64 {
        let (part, row) = locate(self.parts, position);
        self.streams[part].draw(row)
    }
}

/// Which part a position falls into, and its row in the part's split.
pub fn locate(parts: &[Part], mut position: u64) -> (usize, u64) {
    for (i, part) in parts.iter().enumerate() {
        let rows = part.rows.end - part.rows.start;
        if position < rows {
            return (i, part.rows.start + position);
        }
        position -= rows;
    }
    (parts.len(), position)
}

/// The stretches of the parts that hold the selected positions `from..to`, each with the position of its first row.
pub fn stretches(parts: &[Part], selection: &Selection, from: u64, to: u64) -> Vec<(Part, u64)> {
    if from >= to {
        return Vec::new();
    }
    let (first, last) = (selection.get(from), selection.get(to - 1));
    let mut found = Vec::new();
    let mut begin = 0;
    for part in parts {
        let rows = part.rows.end - part.rows.start;
        let (low, high) = (first.max(begin), (last + 1).min(begin + rows));
        if low < high {
            let rows = part.rows.start + low - begin..part.rows.start + high - begin;
            found.push((Part { split: part.split.clone(), rows }, low));
        }
        begin += rows;
    }
    found
}

/// The selected positions whose rows the task's filter keeps. Rows that cannot be read or decided are kept here: they
/// are reported where prompts are made.
fn filter(corpus: &Corpus, task: &PlannedTask<'_>, split: &PlannedSplit, selection: &Selection) -> Result<Vec<u64>> {
    let program = &task.task.program;
    let chunks: Vec<u64> = (0..selection.len().div_ceil(CHUNK)).collect();
    let kept: Result<Vec<Vec<u64>>> = chunks
        .into_par_iter()
        .map(|chunk| {
            let (from, to) = (chunk * CHUNK, ((chunk + 1) * CHUNK).min(selection.len()));
            let decoder = corpus.decoder(program.decoded_features())?;
            let mut dropped = Vec::new();
            for (part, position) in stretches(&split.parts, selection, from, to) {
                let first = part.rows.start;
                corpus.visit(
                    &part,
                    &|row| selection.index_of(position + row - first).is_some(),
                    &mut |row| {
                        let keeps = match decoder.decode(row.payload, &mut Vec::new()) {
                            Ok(datum) => program.keeps(&datum, row.payload.len()).unwrap_or(true),
                            Err(_) => true,
                        };
                        if !keeps {
                            dropped.push(position + row.index - first);
                        }
                        Ok(())
                    },
                    &mut |_| Ok(()),
                )?;
            }
            Ok((from..to).map(|i| selection.get(i)).filter(|p| dropped.binary_search(p).is_err()).collect())
        })
        .collect();
    Ok(kept?.concat())
}
