//! Rows of ids under construction, one kind for each profile.
//!
//! They hold the ids once, and where the targets lie among them; labels and masks follow from that when the pages are
//! made.

use std::ops::Range;

use arrow::datatypes::{DataType, SchemaRef};

use super::columns::{lists_of, schema};
use super::pages::{Column, Repeats, Shape, Values};

/// Rows of one prompt each.
#[derive(Debug, Default)]
pub struct PromptRows {
    ids: Vec<u32>,
    offsets: Offsets,
    targets: Vec<Range<u32>>,
}

impl PromptRows {
    pub fn schema() -> SchemaRef {
        schema(&[
            ("input_ids", lists_of(DataType::Int32)),
            ("labels", lists_of(DataType::Int32)),
            ("attention_mask", lists_of(DataType::Int8)),
        ])
    }

    /// Adds a prompt.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        self.ids.extend_from_slice(inputs);
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(targets);
        self.targets.push(start..self.ids.len() as u32);
        self.offsets.close(self.ids.len());
    }

    pub fn rows(&self) -> usize {
        self.offsets.lists()
    }

    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub fn columns(&self) -> [Column<'_>; 3] {
        let shape = self.offsets.shape();
        [
            Column { shape, values: Values::Ids(&self.ids) },
            Column { shape, values: Values::Labels { ids: &self.ids, targets: &self.targets, repeats: Repeats::Many } },
            Column { shape, values: Values::Ones },
        ]
    }

    /// Forgets all rows; their memory stays, as pages that are returned to the system and fetched again have to be
    /// cleared each time.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
        self.targets.clear();
    }
}

/// Rows of many prompts each, padded.
#[derive(Debug, Default)]
pub struct PackedRows {
    ids: Vec<u32>,
    offsets: Offsets,
    targets: Vec<Range<u32>>,
    lengths: Vec<u32>,
    length_offsets: Offsets,
}

impl PackedRows {
    pub fn schema() -> SchemaRef {
        let ids = lists_of(DataType::Int32);
        schema(&[("input_ids", ids.clone()), ("labels", ids.clone()), ("seq_lengths", ids)])
    }

    /// Adds a segment to the open row; its loss begins at `target_start`.
    pub fn push(&mut self, ids: &[u32], target_start: usize) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        // The first token of a segment has nothing before it to be predicted from.
        self.targets.push((start + target_start.max(1)) as u32..self.ids.len() as u32);
        self.lengths.push((self.ids.len() - start) as u32);
    }

    /// Ends the row, filling it up to `sequence`; gives how many tokens that took.
    pub fn close(&mut self, sequence: usize, pad: u32) -> usize {
        let padding = self.offsets.end() + sequence - self.ids.len();
        if padding > 0 {
            self.ids.resize(self.ids.len() + padding, pad);
            self.lengths.push(padding as u32);
        }
        self.offsets.close(self.ids.len());
        self.length_offsets.close(self.lengths.len());
        padding
    }

    pub fn rows(&self) -> usize {
        self.offsets.lists()
    }

    pub fn columns(&self) -> [Column<'_>; 3] {
        let shape = self.offsets.shape();
        [
            Column { shape, values: Values::Ids(&self.ids) },
            Column { shape, values: Values::Labels { ids: &self.ids, targets: &self.targets, repeats: Repeats::Few } },
            Column { shape: self.length_offsets.shape(), values: Values::Numbers(&self.lengths) },
        ]
    }

    /// As [`PromptRows::clear`].
    pub fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
        self.targets.clear();
        self.lengths.clear();
        self.length_offsets.clear();
    }
}

/// Rows of many prompts each, for Megatron-Bridge, which pads them itself.
#[derive(Debug, Default)]
pub struct MegatronRows {
    ids: Vec<u32>,
    offsets: Offsets,
    /// Positions whose next token is trained.
    trained: Vec<Range<u32>>,
    starts: Vec<u32>,
    start_offsets: Offsets,
}

impl MegatronRows {
    pub fn schema() -> SchemaRef {
        schema(&[
            ("input_ids", lists_of(DataType::Int32)),
            ("seq_start_id", lists_of(DataType::Int32)),
            ("loss_mask", lists_of(DataType::Int8)),
        ])
    }

    /// Adds a segment to the open row; its loss begins at `target_start`.
    pub fn push(&mut self, ids: &[u32], target_start: usize) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        // Shifted left by one: the last position of a segment predicts nothing.
        self.trained.push((start + target_start.max(1) - 1) as u32..self.ids.len() as u32 - 1);
        self.starts.push((start - self.offsets.end()) as u32);
    }

    pub fn close(&mut self) {
        self.offsets.close(self.ids.len());
        self.start_offsets.close(self.starts.len());
    }

    pub fn rows(&self) -> usize {
        self.offsets.lists()
    }

    pub fn columns(&self) -> [Column<'_>; 3] {
        let shape = self.offsets.shape();
        [
            Column { shape, values: Values::Ids(&self.ids) },
            Column { shape: self.start_offsets.shape(), values: Values::Numbers(&self.starts) },
            Column { shape, values: Values::Mask(&self.trained) },
        ]
    }

    /// As [`PromptRows::clear`].
    pub fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
        self.trained.clear();
        self.starts.clear();
        self.start_offsets.clear();
    }
}

/// Where each list begins, and the end of the last. Row groups are written long before 2³² values.
#[derive(Debug)]
pub(super) struct Offsets(Vec<u32>);

impl Default for Offsets {
    fn default() -> Self {
        Offsets(vec![0])
    }
}

impl Offsets {
    pub(super) fn close(&mut self, end: usize) {
        self.0.push(end as u32);
    }

    fn end(&self) -> usize {
        self.0.last().map_or(0, |&end| end as usize)
    }

    fn lists(&self) -> usize {
        self.0.len() - 1
    }

    pub(super) fn shape(&self) -> Shape<'_> {
        Shape::Lists(&self.0)
    }

    pub(super) fn clear(&mut self) {
        self.0.truncate(1);
    }
}
