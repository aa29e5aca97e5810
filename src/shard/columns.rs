//! The columns of every kind of shard, and the rows of those for evaluations; [`super::rows`] and [`super::provenance`]
//! have the others.
//!
//! | shard | columns |
//! | --- | --- |
//! | task shards, profile `sft` | `input_ids`, `labels` list&lt;int32&gt;, `attention_mask` list&lt;int8&gt; |
//! | profile `packed` | `input_ids`, `labels`, `seq_lengths`, all list&lt;int32&gt; |
//! | profile `megatron` | `input_ids`, `seq_start_id` list&lt;int32&gt;, `loss_mask` list&lt;int8&gt; |
//! | `eval/` | `input_ids`, `targets` list&lt;int32&gt;, `options` list&lt;list&lt;int32&gt;&gt;, `answer` int32 |
//! | provenance | `task`, `split`, `row`, `template`, `kind`, `repeat`, `target_start`, `length` |
//! | the same of task shards with exemplars | and `exemplar_splits`, `exemplar_rows`, `exemplar_templates`, a list a row |
//!
//! A `packed` row is filled with padding to its full length; the padding is the last of its `seq_lengths`, so that it
//! adds up and nothing attends to it. There is no `attention_mask` in it on purpose: an all-ones mask makes
//! transformers ignore the segments. `loss_mask` is shifted by one within each segment, as Megatron-Bridge reads it:
//! position i says whether the token at i + 1 is trained. The provenance of a packed row holds a list a column.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// A column of lists under construction.
#[derive(Debug)]
pub struct Lists<T> {
    offsets: Vec<i32>,
    pub values: Vec<T>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists { offsets: vec![0], values: Vec::new() }
    }
}

impl<T> Lists<T> {
    /// Ends the list that the values since the last call make.
    pub fn close(&mut self) {
        // Row groups are flushed long before 2^31 values.
        self.offsets.push(self.values.len() as i32);
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Vec<T>) {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        (OffsetBuffer::new(ScalarBuffer::from(offsets)), std::mem::take(&mut self.values))
    }
}

fn list(offsets: OffsetBuffer<i32>, values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("element", values.data_type().clone(), false));
    Arc::new(ListArray::new(field, offsets, values, None))
}

impl Lists<i32> {
    pub fn finish(&mut self) -> ArrayRef {
        let (offsets, values) = self.take();
        list(offsets, Arc::new(Int32Array::from(values)))
    }
}

pub(super) fn lists_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", item, false)))
}

pub(super) fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields: Vec<Field> = columns.iter().map(|(name, ty)| Field::new(*name, ty.clone(), false)).collect();
    Arc::new(Schema::new(fields))
}

/// Rows of an evaluation shard: a prompt, what is expected, and the options to be scored.
#[derive(Default)]
pub struct EvalRows {
    pub input_ids: Lists<i32>,
    pub targets: Lists<i32>,
    options: Lists<i32>,
    option_offsets: Lists<()>,
    answer: Vec<i32>,
}

impl EvalRows {
    pub fn schema() -> SchemaRef {
        let ids = lists_of(DataType::Int32);
        schema(&[
            ("input_ids", ids.clone()),
            ("targets", ids.clone()),
            ("options", lists_of(ids)),
            ("answer", DataType::Int32),
        ])
    }

    /// Adds a row; `answer` is the index of the right option, -1 where there are none.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32], options: &[Vec<u32>], answer: i32) {
        self.input_ids.values.extend(inputs.iter().map(|&id| id as i32));
        self.input_ids.close();
        self.targets.values.extend(targets.iter().map(|&id| id as i32));
        self.targets.close();
        for option in options {
            self.options.values.extend(option.iter().map(|&id| id as i32));
            self.options.close();
            self.option_offsets.values.push(());
        }
        self.option_offsets.close();
        self.answer.push(answer);
    }

    pub fn rows(&self) -> usize {
        self.answer.len()
    }

    pub fn finish(&mut self) -> RecordBatch {
        let options = self.options.finish();
        let (offsets, _) = self.option_offsets.take();
        let answer: ArrayRef = Arc::new(Int32Array::from(std::mem::take(&mut self.answer)));
        let columns = vec![self.input_ids.finish(), self.targets.finish(), list(offsets, options), answer];
        RecordBatch::try_new(Self::schema(), columns).expect("columns of one length and the schema's types")
    }
}
