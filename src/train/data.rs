//! Packed rows in their order, as steps of the optimizer.
//!
//! Where a run stands in its data is one number: rows taken since the beginning. The rows of all shards come one after
//! another, in the order of the manifest, and begin anew after the last; a resumed run opens the shard that its number
//! falls into. Segments without a target token are left out: they would cost time and add nothing.

use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Result};
use crate::model::ops::Batch;
use crate::shard::manifest::{self, Manifest, TokenizerEntry};
use crate::shard::pages::IGNORED;
use crate::shard::reader::{self, ShardReader, lists_i32};

/// The shards of one split of a mixture.
#[derive(Clone, Debug)]
pub struct Shards {
    root: PathBuf,
    /// Names and numbers of rows.
    files: Vec<(String, u64)>,
    pub rows: u64,
    /// Length of a row.
    pub sequence: usize,
    /// Ids are below this.
    vocabulary: usize,
    /// Longest segment that the model is made for.
    longest: usize,
}

/// What a model can take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub vocabulary: usize,
    pub positions: usize,
}

/// The data of a compile: training shards, and validation shards if there are any.
pub struct Data {
    pub train: Shards,
    pub validation: Option<Shards>,
    /// Hash of the plan.
    pub plan: String,
    pub tokenizer: TokenizerEntry,
}

impl Data {
    pub fn open(root: &Path, limits: Limits) -> Result<Data> {
        let manifest = manifest::require(root)?;
        if manifest.tokenizer.vocabulary > limits.vocabulary {
            return Err(Diagnostic::error("vocabulary", "the tokenizer of the data has more tokens than the model")
                .at(root)
                .expected(format!("at most {} tokens, `vocab_size` of the model", limits.vocabulary))
                .found(format!("{} tokens", manifest.tokenizer.vocabulary))
                .help("compile with the tokenizer of the model: `tokenizer.file` in the recipe")
                .into());
        }
        let train = Shards::open(root, &manifest, "train", limits)?.ok_or_else(|| {
            Diagnostic::error("no-training-data", "the output has no rows to train on")
                .at(root)
                .expected("mixture/train-*.parquet, with rows")
                .help("every task of the recipe may be held out, or skipped: see `skipped` in manifest.json")
        })?;
        let validation = Shards::open(root, &manifest, "validation", limits)?;
        Ok(Data { train, validation, plan: manifest.plan, tokenizer: manifest.tokenizer })
    }
}

const COLUMNS: [&str; 3] = ["input_ids", "labels", "seq_lengths"];

impl Shards {
    fn open(root: &Path, manifest: &Manifest, split: &str, limits: Limits) -> Result<Option<Shards>> {
        let prefix = format!("mixture/{split}-");
        let files: Vec<(String, u64)> = manifest
            .files
            .iter()
            .filter(|f| f.path.starts_with(&prefix) && !f.path.ends_with(".provenance.parquet") && f.rows > 0)
            .map(|f| (f.path.clone(), f.rows))
            .collect();
        let rows = files.iter().map(|(_, rows)| rows).sum();
        let Some((first, _)) = files.first() else { return Ok(None) };
        let profile = manifest.recipe["output"]["profile"].as_str().unwrap_or("another");
        if profile != "packed" {
            return Err(Diagnostic::error(
                "profile",
                format!("training reads packed rows; these are of profile `{profile}`"),
            )
            .at(root)
            .help("compile with `profile = \"packed\"` under [output] of the recipe")
            .into());
        }
        let mut shards = Shards {
            root: root.to_owned(),
            rows,
            sequence: 0,
            vocabulary: limits.vocabulary,
            longest: limits.positions,
            files: files.clone(),
        };
        let mut shard = reader::open_columns(root, first, 1, &COLUMNS)?;
        if let Some(batch) = shard.next() {
            shards.sequence = lists_i32(&batch?, "input_ids", first)?.0.len();
        }
        Ok(Some(shards))
    }

    /// The rows from number `position` on, without end.
    pub fn rows_from(&self, position: u64) -> Rows<'_> {
        let mut row = position % self.rows;
        let mut file = 0;
        while row >= self.files[file].1 {
            row -= self.files[file].1;
            file += 1;
        }
        Rows { shards: self, file, skip: row as usize, reader: None, open: Vec::new(), number: 0 }
    }

    fn wrong(&self, file: &str, row: u64, what: String) -> Box<Diagnostic> {
        Diagnostic::error("packed-row", format!("row {row} of {file} {what}"))
            .at(&self.root.join(file))
            .help("run `flanc verify` on the output")
            .into()
    }
}

/// A row: ids, labels, and where its segments end.
struct Row {
    ids: Vec<i32>,
    labels: Vec<i32>,
    lengths: Vec<i32>,
}

/// Rows of a split, endlessly.
pub struct Rows<'s> {
    shards: &'s Shards,
    file: usize,
    /// Rows of the file to pass over.
    skip: usize,
    reader: Option<ShardReader>,
    /// Rows that have been read, the next one last.
    open: Vec<Row>,
    /// Of the row that was read last, within its file.
    number: u64,
}

/// Rows decoded at a time.
const BATCH: usize = 64;

impl Rows<'_> {
    /// Adds the next row to `batch`.
    pub fn next_into(&mut self, batch: &mut Batch) -> Result<()> {
        let row = loop {
            if let Some(row) = self.open.pop() {
                break row;
            }
            self.read()?;
        };
        let file = &self.shards.files[self.file].0;
        let (shards, number) = (self.shards, self.number);
        let wrong = |what: String| shards.wrong(file, number, what);
        self.number += 1;
        let total =
            row.lengths.iter().try_fold(0usize, |sum, &l| Some(sum + usize::try_from(l).ok().filter(|&l| l > 0)?));
        if row.ids.len() != row.labels.len() || total != Some(row.ids.len()) || row.ids.len() != self.shards.sequence {
            return Err(wrong(format!(
                "does not add up: {} ids, {} labels, segments of {:?}, rows of {}",
                row.ids.len(),
                row.labels.len(),
                row.lengths,
                self.shards.sequence
            )));
        }
        if let Some(id) =
            row.ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= self.shards.vocabulary))
        {
            return Err(wrong(format!("has the id {id}; the model knows those below {}", self.shards.vocabulary)));
        }
        let mut at = 0;
        for &length in &row.lengths {
            let length = length as usize;
            let (ids, labels) = (&row.ids[at..at + length], &row.labels[at..at + length]);
            at += length;
            if labels.iter().skip(1).all(|&l| l == IGNORED) {
                continue;
            }
            if length > self.shards.longest {
                return Err(wrong(format!(
                    "has a segment of {length} tokens; the model takes {}",
                    self.shards.longest
                ))
                .help("compile with shorter `lengths`, or raise `max_position_embeddings`, if the model is fresh")
                .into());
            }
            if labels.iter().zip(ids).any(|(&label, &id)| label != IGNORED && label != id) {
                return Err(wrong("has labels that are not its ids: they are shifted, or of another profile".into()));
            }
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            batch.push(&ids, |i| labels[i] != IGNORED);
        }
        Ok(())
    }

    /// Reads the next rows, of the next file if this one has no more.
    fn read(&mut self) -> Result<()> {
        let file = &self.shards.files[self.file].0;
        if self.reader.is_none() {
            self.reader = Some(reader::open_from(&self.shards.root, file, BATCH, &COLUMNS, self.skip)?);
            self.number = self.skip as u64;
            self.skip = 0;
        }
        match self.reader.as_mut().and_then(Iterator::next) {
            None => {
                self.reader = None;
                self.file = (self.file + 1) % self.shards.files.len();
            }
            Some(batch) => {
                let batch = batch?;
                let [ids, labels, lengths] = COLUMNS.map(|name| lists_i32(&batch, name, file));
                let (ids, labels, lengths) = (ids?, labels?, lengths?);
                let list = |(values, ends): (&[i32], &[i32]), row: usize| {
                    values[ends[row] as usize..ends[row + 1] as usize].to_vec()
                };
                self.open.extend((0..batch.num_rows()).rev().map(|row| Row {
                    ids: list(ids, row),
                    labels: list(labels, row),
                    lengths: list(lengths, row),
                }));
            }
        }
        Ok(())
    }
}

/// Rows that go through the model together.
#[derive(Debug, Default)]
pub struct Pass {
    pub batch: Batch,
    /// Tokens of the rows, with padding and all else that is left out.
    pub room: usize,
}

/// The rows of one step of the optimizer.
#[derive(Debug, Default)]
pub struct Step {
    /// As many as it takes with the micro-batch.
    pub passes: Vec<Pass>,
}

impl Step {
    pub fn targets(&self) -> usize {
        self.passes.iter().map(|pass| pass.batch.targets.len()).sum()
    }

    pub fn tokens(&self) -> usize {
        self.passes.iter().map(|pass| pass.batch.tokens()).sum()
    }

    /// Takes the next `count` rows, at most `rows_per_pass` to a pass.
    pub fn read(rows: &mut Rows<'_>, count: usize, rows_per_pass: usize) -> Result<Step> {
        let mut step = Step::default();
        for number in 0..count {
            if number % rows_per_pass == 0 {
                step.passes.push(Pass::default());
            }
            let pass = step.passes.last_mut().expect("there is an open pass");
            rows.next_into(&mut pass.batch)?;
            pass.room += rows.shards.sequence;
        }
        Ok(step)
    }
}
