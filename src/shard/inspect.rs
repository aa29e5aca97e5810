//! One row of a shard, of whatever profile, with its provenance.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{UInt32Type, UInt64Type};

use crate::diag::{Diagnostic, Result};

use super::reader;

/// A row: its ids, and what they are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub ids: Vec<u32>,
    pub padding: usize,
    pub segments: Vec<Segment>,
}

/// One prompt in a row. Positions count from the row's first token, `target_start` from the segment's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: usize,
    pub length: usize,
    pub target_start: usize,
    pub origin: NamedOrigin,
}

/// Where a prompt came from, by names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedOrigin {
    pub task: String,
    pub split: String,
    pub row: u64,
    pub template: String,
    pub kind: String,
    pub repeat: u32,
    /// What stood before it; told by task shards and evaluation shards, not by the mixture.
    pub exemplars: Vec<NamedExemplar>,
}

/// An example that stood before a prompt, of the same task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedExemplar {
    pub split: String,
    pub row: u64,
    pub template: String,
}

/// The provenance of one row of a file: origins with `target_start` and `length`.
pub type Provenance = Vec<(NamedOrigin, usize, usize)>;

/// Reads row `index` of the shard `file` below `out`.
pub fn row(out: &Path, file: &str, index: u64) -> Result<Row> {
    let batch = one_row(out, file, index)?;
    let mut ids = only_list(&batch, "input_ids", file)?;
    if batch.column_by_name("targets").is_some() {
        ids.extend(only_list(&batch, "targets", file)?);
    }
    let provenance_file = file.strip_suffix(".parquet").unwrap_or(file).to_owned() + ".provenance.parquet";
    let batch = one_row(out, &provenance_file, index)?;
    let origins = provenance(&batch, &provenance_file)?.pop().unwrap_or_default();
    let mut segments = Vec::new();
    let mut start = 0;
    for (origin, target_start, length) in origins {
        if start + length > ids.len() || target_start > length {
            return Err(Diagnostic::error(
                "provenance",
                format!("{provenance_file} does not fit {file} in row {index}"),
            )
            .help("run `flanc verify` on the output")
            .into());
        }
        segments.push(Segment { start, length, target_start, origin });
        start += length;
    }
    Ok(Row { padding: ids.len() - start, ids, segments })
}

fn one_row(out: &Path, file: &str, index: u64) -> Result<RecordBatch> {
    let shard = reader::open(out, file, 1024)?;
    let rows = shard.rows;
    let mut first = 0;
    for batch in shard {
        let batch = batch?;
        let count = batch.num_rows() as u64;
        if index < first + count {
            return Ok(batch.slice((index - first) as usize, 1));
        }
        first += count;
    }
    Err(Diagnostic::error("no-such-row", format!("{file} has no row {index}"))
        .expected(format!("a number below {rows}"))
        .into())
}

/// The ids of a batch of one row.
fn only_list(row: &RecordBatch, column: &str, file: &str) -> Result<Vec<u32>> {
    let (values, ends) = reader::lists_i32(row, column, file)?;
    Ok(values[ends[0] as usize..ends[1] as usize].iter().map(|&id| id as u32).collect())
}

/// The provenance of each row of a batch.
pub fn provenance(batch: &RecordBatch, file: &str) -> Result<Vec<Provenance>> {
    let packed = reader::column(batch, "row", file)?.as_list_opt::<i32>().is_some();
    let flat = |name: &str| -> Result<ArrayRef> {
        let column = reader::column(batch, name, file)?;
        if !packed {
            return Ok(column.clone());
        }
        let lists = column.as_list_opt::<i32>().ok_or_else(|| reader::wrong_type(name, file))?;
        Ok(lists.values().clone())
    };
    let ends: Vec<usize> = if packed {
        let lists = reader::column(batch, "row", file)?.as_list::<i32>();
        lists.value_offsets().iter().map(|&o| o as usize).collect()
    } else {
        (0..=batch.num_rows()).collect()
    };
    let texts = |name: &'static str| -> Result<Vec<String>> {
        let column = flat(name)?;
        let strings = column.as_string_opt::<i32>().ok_or_else(|| reader::wrong_type(name, file))?;
        Ok((0..strings.len()).map(|i| strings.value(i).to_owned()).collect())
    };
    let u32s = |name: &'static str| -> Result<Vec<u32>> {
        let column = flat(name)?;
        let values = column.as_primitive_opt::<UInt32Type>().ok_or_else(|| reader::wrong_type(name, file))?;
        Ok(values.values().to_vec())
    };
    let rows = flat("row")?;
    let rows = rows.as_primitive_opt::<UInt64Type>().ok_or_else(|| reader::wrong_type("row", file))?.values().to_vec();
    let (task, split, template, kind) = (texts("task")?, texts("split")?, texts("template")?, texts("kind")?);
    let (repeat, target_start, length) = (u32s("repeat")?, u32s("target_start")?, u32s("length")?);
    let mut exemplars = exemplars(batch, file)?;
    Ok(ends
        .windows(2)
        .map(|range| {
            (range[0]..range[1])
                .map(|i| {
                    let origin = NamedOrigin {
                        task: task[i].clone(),
                        split: split[i].clone(),
                        row: rows[i],
                        template: template[i].clone(),
                        kind: kind[i].clone(),
                        repeat: repeat[i],
                        exemplars: exemplars.get_mut(i).map(std::mem::take).unwrap_or_default(),
                    };
                    (origin, target_start[i] as usize, length[i] as usize)
                })
                .collect()
        })
        .collect())
}

/// The exemplars of each prompt of a batch; none where the shard has no such columns.
fn exemplars(batch: &RecordBatch, file: &str) -> Result<Vec<Vec<NamedExemplar>>> {
    const ROWS: &str = "exemplar_rows";
    if batch.column_by_name(ROWS).is_none() {
        return Ok(Vec::new());
    }
    let lists = |name: &'static str| -> Result<&ListArray> {
        reader::column(batch, name, file)?.as_list_opt::<i32>().ok_or_else(|| reader::wrong_type(name, file))
    };
    let texts = |name: &'static str| -> Result<Vec<String>> {
        let values = lists(name)?.values();
        let strings = values.as_string_opt::<i32>().ok_or_else(|| reader::wrong_type(name, file))?;
        Ok((0..strings.len()).map(|i| strings.value(i).to_owned()).collect())
    };
    let (splits, templates) = (texts("exemplar_splits")?, texts("exemplar_templates")?);
    let rows = lists(ROWS)?;
    let values = rows.values().as_primitive_opt::<UInt64Type>().ok_or_else(|| reader::wrong_type(ROWS, file))?;
    let ends = rows.value_offsets();
    if splits.len() != values.len() || templates.len() != values.len() {
        return Err(reader::wrong_type(ROWS, file));
    }
    Ok(ends
        .windows(2)
        .map(|range| {
            (range[0] as usize..range[1] as usize)
                .map(|i| NamedExemplar {
                    split: splits[i].clone(),
                    row: values.value(i),
                    template: templates[i].clone(),
                })
                .collect()
        })
        .collect())
}
