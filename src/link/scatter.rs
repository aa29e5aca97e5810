//! Scattering: the prompts of a task shard, side by side with those that go to the same shard of the mixture.
//!
//! Ids take two bytes each where the vocabulary allows it: a mixture's prompts are written once and read once, and
//! that is what both cost.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Draw, Source, draw_key, draw_stream, origins};
use crate::diag::{Diagnostic, Result};
use crate::plan::Plan;
use crate::seed::Seed;
use crate::shard::provenance::Origin;
use crate::shard::reader::IdPages;
use crate::storage::{self, Mapped};

/// Bytes that scattering one task shard holds before it writes them out.
const SCATTER_BYTES: usize = 16 << 20;
/// Parts of a mixture shard, by key: prompts that stand near each other in the mixture lie near each other in the run, so
/// that what is fetched for one of its rows is in the processor's cache for the next.
const PARTS: usize = 16;

/// A scattered task shard: a file, and where in it the prompts of each mixture shard lie.
pub(super) struct Run {
    bytes: Mapped,
    width: Width,
    /// By part of the mixture.
    stretches: Vec<Vec<Range<usize>>>,
    path: PathBuf,
}

/// Bytes of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Two = 2,
    Four = 4,
}

impl Width {
    fn of(vocabulary: usize) -> Width {
        if vocabulary <= 1 << 16 { Width::Two } else { Width::Four }
    }

    /// Appends ids; `None` if one does not fit, as no tokenizer of this vocabulary makes it.
    fn write(self, ids: &[u32], bytes: &mut Vec<u8>) -> Option<()> {
        match self {
            Width::Two => {
                if ids.iter().fold(0, |all, id| all | id) > u32::from(u16::MAX) {
                    return None;
                }
                bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()));
            }
            Width::Four => bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
        }
        Some(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = storage::remove(&self.path); // scratch; the directory goes at the end in any case
    }
}

/// Bytes of a scattered prompt before its ids: key, row, task, split, template, repeat, target_start, length.
const HEADER: usize = 8 + 8 + 6 * 4;

pub(super) fn scatter(
    plan: &Plan<'_>,
    source: &Source<'_>,
    draw: Draw,
    shards: usize,
    out: &Path,
    path: &Path,
) -> Result<Run> {
    let width = Width::of(plan.tokenizer.vocabulary_size());
    let task = source.task;
    let name = plan.tasks[task].task.name();
    let order = Seed(plan.recipe.seed).stream(&["order", name]);
    let picks = draw_stream(plan, task);
    let mut file = storage::Scratch::create(path)?;
    let parts = shards * PARTS;
    let mut buckets: Vec<Vec<u8>> = vec![Vec::new(); parts];
    let mut stretches = vec![Vec::new(); parts];
    let (mut held, mut written) = (0, 0);
    let mut spill = |buckets: &mut Vec<Vec<u8>>| -> Result<()> {
        for (bucket, stretches) in buckets.iter_mut().zip(&mut stretches) {
            if !bucket.is_empty() {
                file.write_all(bucket).map_err(|e| storage::failure("write", path, &e))?;
                stretches.push(written..written + bucket.len());
                written += bucket.len();
                bucket.clear();
            }
        }
        Ok(())
    };
    if source.object.counts.prompts > 0 && (draw.passes > 0 || draw.last.is_some()) {
        // A page holds the ids of whole prompts, which the provenance tells apart.
        let mut pages = IdPages::open(out, &source.object.shard.path, "input_ids")?;
        let mut page = Vec::new();
        let mut at = 0;
        for batch in origins(plan, source, out)? {
            for origin in batch? {
                if at == page.len() {
                    at = 0;
                    pages.next_page(&mut page)?;
                }
                if origin.length == 0 || origin.target_start > origin.length {
                    return Err(apart(source));
                }
                let ids = page.get(at..at + origin.length as usize).ok_or_else(|| apart(source))?;
                at += ids.len();
                let more = draw.last.is_some_and(|last| draw_key(picks, &origin) <= last);
                let stream = order.at(u64::from(origin.split)).at(origin.row).at(u64::from(origin.template));
                for repeat in 0..draw.passes + u64::from(more) {
                    let key = stream.draw(repeat);
                    let bucket = &mut buckets[((u128::from(key) * parts as u128) >> 64) as usize];
                    let before = bucket.len();
                    bucket.extend(key.to_le_bytes());
                    bucket.extend(origin.row.to_le_bytes());
                    let [task, split, template] = [origin.task, origin.split, origin.template];
                    for value in [task, split, template, repeat as u32, origin.target_start, origin.length] {
                        bucket.extend(value.to_le_bytes());
                    }
                    width.write(ids, bucket).ok_or_else(|| apart(source))?;
                    held += bucket.len() - before;
                    if held >= SCATTER_BYTES {
                        spill(&mut buckets)?;
                        held = 0;
                    }
                }
            }
        }
        let all_read = at == page.len();
        pages.next_page(&mut page)?;
        if !(all_read && page.is_empty()) {
            return Err(apart(source));
        }
        spill(&mut buckets)?;
    }
    file.close()?;
    Ok(Run { bytes: storage::map(path)?, width, stretches, path: path.to_owned() })
}

fn apart(source: &Source<'_>) -> Box<Diagnostic> {
    Diagnostic::error("provenance", format!("{} and its provenance hold different rows", source.unit.stem))
        .help("remove the output directory and compile again")
        .into()
}

/// A prompt in a run.
pub(super) struct Scattered<'r> {
    pub key: u64,
    pub origin: Origin,
    width: Width,
    ids: &'r [u8],
}

impl Run {
    /// Where the prompts of a mixture shard begin.
    pub(super) fn places(&self, shard: usize) -> impl Iterator<Item = (usize, Scattered<'_>)> {
        self.stretches[shard * PARTS..(shard + 1) * PARTS].iter().flatten().flat_map(move |stretch| {
            let mut at = stretch.start;
            std::iter::from_fn(move || {
                (at < stretch.end).then(|| {
                    let (place, prompt) = (at, self.prompt(at));
                    at += HEADER + prompt.ids.len();
                    (place, prompt)
                })
            })
        })
    }

    pub(super) fn prompt(&self, at: usize) -> Scattered<'_> {
        let header = &self.bytes[at..at + HEADER];
        let u64_at = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| header[i + k]));
        let u32_at = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| header[i + k]));
        let length = u32_at(36);
        let origin = Origin {
            row: u64_at(8),
            task: u32_at(16),
            split: u32_at(20),
            template: u32_at(24),
            repeat: u32_at(28),
            target_start: u32_at(32),
            length,
        };
        let ids = &self.bytes[at + HEADER..at + HEADER + length as usize * self.width as usize];
        Scattered { key: u64_at(0), origin, width: self.width, ids }
    }
}

impl Scattered<'_> {
    pub(super) fn read_into(&self, ids: &mut Vec<u32>) {
        ids.clear();
        match self.width {
            Width::Two => ids.extend(self.ids.as_chunks().0.iter().map(|&id| u32::from(u16::from_le_bytes(id)))),
            Width::Four => ids.extend(self.ids.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id))),
        }
    }
}
