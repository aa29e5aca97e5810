//! The columns of every kind of shard, and the rows of those that are not ids throughout (see [`super::rows`]).
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

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};

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

/// Where a prompt came from. Names are indices into the tables that [`ProvenanceRows`] is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub task: u32,
    /// The split of the corpus, not the task's.
    pub split: u32,
    pub row: u64,
    pub template: u32,
    pub repeat: u32,
    pub target_start: u32,
    pub length: u32,
}

/// The names that origins refer to.
#[derive(Clone, Debug, Default)]
pub struct OriginNames {
    pub tasks: Vec<String>,
    pub splits: Vec<String>,
    pub templates: Vec<String>,
    /// By template.
    pub kinds: Vec<&'static str>,
}

/// What a row of provenance is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenanceForm {
    /// One prompt.
    Prompts,
    /// One prompt and the exemplars before it.
    WithExemplars,
    /// The prompts of a packed row.
    Packed,
}

/// Provenance rows.
pub struct ProvenanceRows {
    names: OriginNames,
    form: ProvenanceForm,
    exemplars: Vec<(u32, u64, u32)>,
    exemplar_ends: Lists<()>,
    origins: Vec<Origin>,
    row_ends: Lists<()>,
}

impl ProvenanceRows {
    pub fn new(names: OriginNames, form: ProvenanceForm) -> Self {
        ProvenanceRows {
            names,
            form,
            exemplars: Vec::new(),
            exemplar_ends: Lists::default(),
            origins: Vec::new(),
            row_ends: Lists::default(),
        }
    }

    pub fn schema(form: ProvenanceForm) -> SchemaRef {
        let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let columns = [
            ("task", text()),
            ("split", text()),
            ("row", DataType::UInt64),
            ("template", text()),
            ("kind", text()),
            ("repeat", DataType::UInt32),
            ("target_start", DataType::UInt32),
            ("length", DataType::UInt32),
        ];
        let packed = form == ProvenanceForm::Packed;
        let mut columns: Vec<_> = columns.map(|(name, ty)| (name, if packed { lists_of(ty) } else { ty })).into();
        if form == ProvenanceForm::WithExemplars {
            columns.extend([
                ("exemplar_splits", lists_of(text())),
                ("exemplar_rows", lists_of(DataType::UInt64)),
                ("exemplar_templates", lists_of(text())),
            ]);
        }
        schema(&columns)
    }

    pub fn push(&mut self, origin: Origin) {
        self.origins.push(origin);
        self.row_ends.values.push(());
    }

    /// The exemplars of the prompt that was added last: split, row and template of each.
    pub fn exemplars(&mut self, exemplars: impl Iterator<Item = (u32, u64, u32)>) {
        if self.form == ProvenanceForm::WithExemplars {
            self.exemplars.extend(exemplars);
            self.exemplar_ends.values.resize(self.exemplars.len(), ());
            self.exemplar_ends.close();
        }
    }

    /// Ends a packed row.
    pub fn close(&mut self) {
        self.row_ends.close();
    }

    pub fn finish(&mut self) -> RecordBatch {
        let origins = std::mem::take(&mut self.origins);
        let (offsets, _) = self.row_ends.take();
        fn named(names: &[String], keys: impl Iterator<Item = u32>) -> ArrayRef {
            let values = Arc::new(StringArray::from_iter_values(names));
            let keys = Int32Array::from_iter_values(keys.map(|k| k as i32));
            Arc::new(DictionaryArray::<Int32Type>::new(keys, values))
        }
        let text = |names: &[String], index: &dyn Fn(&Origin) -> u32| named(names, origins.iter().map(index));
        let kind_names: Vec<String> = ["original", "turned-around"].map(String::from).to_vec();
        let kinds: Vec<u32> = self.names.kinds.iter().map(|k| u32::from(*k != kind_names[0])).collect();
        let u32s =
            |f: fn(&Origin) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(origins.iter().map(f))) };
        let columns: Vec<ArrayRef> = vec![
            text(&self.names.tasks, &|o| o.task),
            text(&self.names.splits, &|o| o.split),
            Arc::new(UInt64Array::from_iter_values(origins.iter().map(|o| o.row))),
            text(&self.names.templates, &|o| o.template),
            text(&kind_names, &|o| kinds[o.template as usize]),
            u32s(|o| o.repeat),
            u32s(|o| o.target_start),
            u32s(|o| o.length),
        ];
        let columns = match self.form {
            ProvenanceForm::Prompts => columns,
            ProvenanceForm::Packed => columns.into_iter().map(|c| list(offsets.clone(), c)).collect(),
            ProvenanceForm::WithExemplars => {
                let exemplars = std::mem::take(&mut self.exemplars);
                let (ends, _) = self.exemplar_ends.take();
                let rows = UInt64Array::from_iter_values(exemplars.iter().map(|e| e.1));
                let of_exemplars = [
                    named(&self.names.splits, exemplars.iter().map(|e| e.0)),
                    Arc::new(rows),
                    named(&self.names.templates, exemplars.iter().map(|e| e.2)),
                ];
                columns.into_iter().chain(of_exemplars.map(|c| list(ends.clone(), c))).collect()
            }
        };
        debug_assert!(columns.iter().all(|c| c.null_count() == 0));
        RecordBatch::try_new(Self::schema(self.form), columns).expect("columns of one length and the schema's types")
    }
}
