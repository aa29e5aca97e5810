//! Reading shards back: for linking, `explain` and `verify`.

use std::path::Path;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Int8Type, Int32Type};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::diag::{Diagnostic, Result};
use crate::storage;

/// An open shard: its key-values, and its rows in batches of at most `batch` rows.
pub struct ShardReader {
    pub metadata: Vec<(String, String)>,
    pub rows: u64,
    batches: ParquetRecordBatchReader,
    path: std::path::PathBuf,
}

/// Opens the file `relative` below `root` to read all its columns.
pub fn open(root: &Path, relative: &str, batch: usize) -> Result<ShardReader> {
    open_columns(root, relative, batch, &[])
}

/// Opens a file to read only the top-level `columns`; none named means all.
pub fn open_columns(root: &Path, relative: &str, batch: usize, columns: &[&str]) -> Result<ShardReader> {
    open_from(root, relative, batch, columns, 0)
}

/// Opens a file to read `columns` of the rows after the first `skip`.
pub fn open_from(root: &Path, relative: &str, batch: usize, columns: &[&str], skip: usize) -> Result<ShardReader> {
    let path = root.join(relative);
    let mapped = storage::map(&path)?;
    let unreadable = |e: &dyn std::fmt::Display| {
        Diagnostic::error("parquet-read", format!("cannot read {}: {e}", path.display()))
            .at(&path)
            .help("run `flanc verify` on the output, or compile it again into another directory")
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from_owner(mapped)).map_err(|e| unreadable(&e))?;
    let file = builder.metadata().file_metadata();
    let rows = file.num_rows().max(0) as u64;
    let metadata = file.key_value_metadata().into_iter().flatten();
    let metadata = metadata.map(|kv| (kv.key.clone(), kv.value.clone().unwrap_or_default())).collect();
    let builder = if columns.is_empty() {
        builder
    } else {
        let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
        builder.with_projection(mask)
    };
    let batches = builder.with_batch_size(batch).with_offset(skip).build().map_err(|e| unreadable(&e))?;
    Ok(ShardReader { metadata, rows, batches, path })
}

impl Iterator for ShardReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        Some(batch.map_err(|e| {
            Diagnostic::error("parquet-read", format!("cannot read {}: {e}", self.path.display())).at(&self.path).into()
        }))
    }
}

/// A column by name; its absence is an error of the file.
pub fn column<'b>(batch: &'b RecordBatch, name: &str, path: &str) -> Result<&'b ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| {
        let names: Vec<String> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        Diagnostic::error("column-missing", format!("{path} has no column `{name}`")).found(names.join(", ")).into()
    })
}

/// A list column of 32-bit integers: all its values, and where each row ends.
pub fn lists_i32<'b>(batch: &'b RecordBatch, name: &str, path: &str) -> Result<(&'b [i32], &'b [i32])> {
    let lists = column(batch, name, path)?.as_list_opt::<i32>();
    let lists =
        lists.filter(|l| l.values().as_primitive_opt::<Int32Type>().is_some()).ok_or_else(|| wrong_type(name, path))?;
    Ok((lists.values().as_primitive::<Int32Type>().values(), lists.value_offsets()))
}

/// A list column of 8-bit integers.
pub fn lists_i8<'b>(batch: &'b RecordBatch, name: &str, path: &str) -> Result<(&'b [i8], &'b [i32])> {
    let lists = column(batch, name, path)?.as_list_opt::<i32>();
    let lists =
        lists.filter(|l| l.values().as_primitive_opt::<Int8Type>().is_some()).ok_or_else(|| wrong_type(name, path))?;
    Ok((lists.values().as_primitive::<Int8Type>().values(), lists.value_offsets()))
}

pub fn wrong_type(name: &str, path: &str) -> Box<Diagnostic> {
    Diagnostic::error("column-type", format!("column `{name}` of {path} has another type than flanc writes")).into()
}
