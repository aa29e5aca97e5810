//! Writing a shard: Parquet under a temporary name, hashed as it is written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, SchemaDescPtr};
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::storage::{self, Pending};

use super::pages::{self, Column, PageEncoder};

/// The writer as the manifest names it.
pub const ENGINE: &str = "parquet 60.1.0";

/// A finished file, as receipts and the manifest list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Relative to the output directory, with `/`.
    pub path: String,
    pub rows: u64,
    /// Tokens, padding not counted; 0 for provenance.
    pub tokens: u64,
    pub bytes: u64,
    pub blake3: String,
}

/// A shard being written, a row group at a time.
pub struct ShardWriter {
    file: SerializedFileWriter<Hashing>,
    path: PathBuf,
    relative: String,
    rows: u64,
    pub tokens: u64,
}

/// Makes row groups of one shard, on any thread.
pub struct GroupEncoder {
    columns: SchemaDescPtr,
    schema: SchemaRef,
    tables: ArrowRowGroupWriterFactory,
    path: PathBuf,
}

/// A row group, encoded and compressed.
pub struct RowGroup {
    rows: usize,
    chunks: Vec<ColumnChunk>,
}

enum ColumnChunk {
    Pages(pages::Chunk),
    Table(ArrowColumnChunk),
}

impl ShardWriter {
    /// Begins the file `relative` below `root`; `metadata` goes into the file's key-values.
    pub fn create(
        root: &Path,
        relative: &str,
        schema: SchemaRef,
        metadata: &[(String, String)],
    ) -> Result<(ShardWriter, GroupEncoder)> {
        let path = root.join(relative);
        let file = Hashing { file: Pending::create(&path)?, hasher: blake3::Hasher::new(), bytes: 0 };
        let file = open(file, &schema, metadata).map_err(|e| failure(&path, &e))?;
        let encoder = GroupEncoder {
            columns: Arc::new(file.schema_descr().clone()),
            schema: schema.clone(),
            tables: ArrowRowGroupWriterFactory::new(&file, schema),
            path: path.clone(),
        };
        Ok((ShardWriter { file, path, relative: relative.to_owned(), rows: 0, tokens: 0 }, encoder))
    }

    /// Writes a row group; one without rows leaves nothing.
    pub fn write(&mut self, group: RowGroup) -> Result<()> {
        if group.rows == 0 {
            return Ok(());
        }
        self.rows += group.rows as u64;
        let write = || -> std::result::Result<(), ParquetError> {
            let mut file = self.file.next_row_group()?;
            for chunk in group.chunks {
                match chunk {
                    ColumnChunk::Pages(chunk) => file.append_column(&chunk.bytes, chunk.close)?,
                    ColumnChunk::Table(chunk) => chunk.append_to_row_group(&mut file)?,
                }
            }
            file.close().map(drop)
        };
        write().map_err(|e| failure(&self.path, &e))
    }

    /// Ends the file and puts it under its name.
    pub fn finish(self) -> Result<FileInfo> {
        let hashing = self.file.into_inner().map_err(|e| failure(&self.path, &e))?;
        let info = FileInfo {
            path: self.relative,
            rows: self.rows,
            tokens: self.tokens,
            bytes: hashing.bytes,
            blake3: hashing.hasher.finalize().to_hex().to_string(),
        };
        hashing.file.commit()?;
        Ok(info)
    }
}

impl GroupEncoder {
    /// Encodes columns by [`super::pages`].
    pub fn pages(&self, columns: &[Column<'_>], pages: &mut PageEncoder) -> Result<RowGroup> {
        debug_assert_eq!(columns.len(), self.columns.num_columns());
        let described = self.columns.columns().iter().cloned();
        let chunks = columns.iter().zip(described).map(|(column, described)| pages.encode(*column, described));
        let chunks: std::result::Result<_, _> = chunks.map(|chunk| chunk.map(ColumnChunk::Pages)).collect();
        Ok(RowGroup { rows: columns[0].shape.rows(), chunks: chunks.map_err(|e| failure(&self.path, &e))? })
    }

    /// Encodes a batch of any columns by the Arrow writer.
    pub fn table(&self, batch: &RecordBatch) -> Result<RowGroup> {
        debug_assert_eq!(batch.schema(), self.schema);
        let encode = || -> std::result::Result<Vec<ColumnChunk>, ParquetError> {
            let mut writers = self.tables.create_column_writers(0)?.into_iter();
            let mut chunks = Vec::new();
            for (field, column) in self.schema.fields().iter().zip(batch.columns()) {
                for (leaf, mut writer) in compute_leaves(field, column)?.into_iter().zip(&mut writers) {
                    writer.write(&leaf)?;
                    chunks.push(ColumnChunk::Table(writer.close()?));
                }
            }
            Ok(chunks)
        };
        Ok(RowGroup { rows: batch.num_rows(), chunks: encode().map_err(|e| failure(&self.path, &e))? })
    }
}

fn open(
    file: Hashing,
    schema: &SchemaRef,
    metadata: &[(String, String)],
) -> std::result::Result<SerializedFileWriter<Hashing>, ParquetError> {
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    let properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_created_by(format!("flanc {} ({ENGINE})", env!("CARGO_PKG_VERSION")))
        // The page index is written; minima of token ids would only make it larger.
        .set_statistics_enabled(EnabledStatistics::None)
        .set_column_statistics_enabled(ColumnPath::from("answer"), EnabledStatistics::Page)
        .set_key_value_metadata(Some(metadata));
    // The Arrow schema is not put beside it: readers see plain Parquet types, and text columns stay text.
    let root = ArrowSchemaConverter::new().convert(schema)?.root_schema_ptr();
    SerializedFileWriter::new(file, root, Arc::new(properties.build()))
}

/// Counts and hashes what goes into a file.
struct Hashing {
    file: Pending,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A Parquet error; an I/O error inside it keeps its advice.
fn failure(path: &Path, error: &parquet::errors::ParquetError) -> Box<Diagnostic> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return storage::failure("write", path, io);
        }
        cause = inner.source();
    }
    Diagnostic::error("parquet-write", format!("cannot write {}: {error}", path.display())).at(path).into()
}
