//! Reading shards back: for linking, `explain` and `verify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Fields, Int8Type, Int32Type, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::diag::{Diagnostic, Result};
use crate::storage;

use super::pages;

/// An open shard: its key-values, and its rows in batches of at most `batch` rows.
pub struct ShardReader {
    pub metadata: Vec<(String, String)>,
    pub rows: u64,
    batches: ParquetRecordBatchReader,
    path: PathBuf,
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
    let bytes = Bytes::from_owner(storage::map(&path)?);
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| unreadable(&path, &e))?;
    build(builder, path, batch, columns, skip)
}

/// Opens a file to read `columns`, those of text as categories: [`categories`] reads them.
pub fn open_categories(root: &Path, relative: &str, batch: usize, columns: &[&str]) -> Result<ShardReader> {
    let path = root.join(relative);
    let bytes = Bytes::from_owner(storage::map(&path)?);
    let plain = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).map_err(|e| unreadable(&path, &e))?;
    let fields = plain.schema().fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => {
            let categories = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
            Arc::new(field.as_ref().clone().with_data_type(categories))
        }
        _ => field.clone(),
    });
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields.collect::<Fields>())));
    let metadata =
        ArrowReaderMetadata::try_new(plain.metadata().clone(), options).map_err(|e| unreadable(&path, &e))?;
    build(ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata), path, batch, columns, 0)
}

fn build(
    builder: ParquetRecordBatchReaderBuilder<Bytes>,
    path: PathBuf,
    batch: usize,
    columns: &[&str],
    skip: usize,
) -> Result<ShardReader> {
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
    let batches = builder.with_batch_size(batch).with_offset(skip).build().map_err(|e| unreadable(&path, &e))?;
    Ok(ShardReader { metadata, rows, batches, path })
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Box<Diagnostic> {
    Diagnostic::error("parquet-read", format!("cannot read {}: {error}", path.display()))
        .at(path)
        .help("run `flanc verify` on the output, or compile it again into another directory")
        .into()
}

impl Iterator for ShardReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        Some(batch.map_err(|e| unreadable(&self.path, &e)))
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

/// A column of text that was read as categories: their names, and each row's.
pub fn categories<'b>(batch: &'b RecordBatch, name: &str, path: &str) -> Result<(Vec<&'b str>, &'b [i32])> {
    let column = column(batch, name, path)?.as_dictionary_opt::<Int32Type>();
    let column = column.filter(|c| c.null_count() == 0).ok_or_else(|| wrong_type(name, path))?;
    let names = column.values().as_string_opt::<i32>().ok_or_else(|| wrong_type(name, path))?;
    Ok((names.iter().map(Option::unwrap_or_default).collect(), column.keys().values()))
}

/// The ids of a column that [`super::pages`] made, a page at a time, without the lists they are in: nothing has to be
/// put together for whoever knows the lengths.
pub struct IdPages {
    file: SerializedFileReader<Bytes>,
    path: PathBuf,
    column: usize,
    /// Row groups that were begun.
    groups: usize,
    pages: Option<Box<dyn parquet::column::page::PageReader>>,
}

impl IdPages {
    pub fn open(root: &Path, relative: &str, column: &str) -> Result<IdPages> {
        let path = root.join(relative);
        let bytes = Bytes::from_owner(storage::map(&path)?);
        let file = SerializedFileReader::new(bytes).map_err(|e| unreadable(&path, &e))?;
        let schema = file.metadata().file_metadata().schema_descr();
        let found = schema.columns().iter().position(|c| c.path().parts().first().is_some_and(|name| name == column));
        let column = found.ok_or_else(|| wrong_type(column, relative))?;
        Ok(IdPages { file, path, column, groups: 0, pages: None })
    }

    /// Reads the next page, the ids of whole rows; none at the end.
    pub fn next_page(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        loop {
            let page = self.pages.as_mut().map(|pages| pages.get_next_page()).transpose();
            match page.map_err(|e| unreadable(&self.path, &e))?.flatten() {
                Some(page) => {
                    return pages::ids(&page, ids).ok_or_else(|| unreadable(&self.path, &"a page is no list of ids"));
                }
                None if self.groups == self.file.num_row_groups() => {
                    ids.clear();
                    return Ok(());
                }
                None => {
                    let group = self.file.get_row_group(self.groups);
                    let pages = group.and_then(|group| group.get_column_page_reader(self.column));
                    self.pages = Some(pages.map_err(|e| unreadable(&self.path, &e))?);
                    self.groups += 1;
                }
            }
        }
    }
}
