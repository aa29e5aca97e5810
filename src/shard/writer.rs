//! Writing a shard: Parquet under a temporary name, hashed as it is written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::storage::{self, Pending};

use super::pages::{ChunkEncoder, LEVEL};

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

/// A shard being written.
pub struct ShardWriter {
    form: Form,
    schema: SchemaRef,
    path: PathBuf,
    relative: String,
    rows: u64,
    pub tokens: u64,
}

/// Who makes the pages.
enum Form {
    /// Ours, for lists of ids and nothing else.
    Ids {
        writer: Box<SerializedFileWriter<Hashing>>,
        encoder: ChunkEncoder,
    },
    Any(Box<ArrowWriter<Hashing>>),
}

impl ShardWriter {
    /// Begins the file `relative` below `root`; `metadata` goes into the file's key-values.
    pub fn create(
        root: &Path,
        relative: &str,
        schema: SchemaRef,
        metadata: &[(String, String)],
    ) -> Result<ShardWriter> {
        let path = root.join(relative);
        let file = Hashing { file: Pending::create(&path)?, hasher: blake3::Hasher::new(), bytes: 0 };
        let form = Form::new(file, &schema, metadata).map_err(|e| failure(&path, &e))?;
        Ok(ShardWriter { form, schema, path, relative: relative.to_owned(), rows: 0, tokens: 0 })
    }

    /// Writes a batch as a row group of its own.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        debug_assert_eq!(batch.schema(), self.schema);
        self.form.write(batch).map_err(|e| failure(&self.path, &e))
    }

    /// Ends the file and puts it under its name.
    pub fn finish(self) -> Result<FileInfo> {
        let hashing = self.form.finish().map_err(|e| failure(&self.path, &e))?;
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

impl Form {
    fn new(
        file: Hashing,
        schema: &SchemaRef,
        metadata: &[(String, String)],
    ) -> std::result::Result<Form, ParquetError> {
        let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        let mut properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?))
            .set_created_by(format!("flanc {} ({ENGINE})", env!("CARGO_PKG_VERSION")))
            // The page index is written; minima of token ids would only make it larger.
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(metadata));
        if schema.fields().iter().all(|field| ChunkEncoder::takes(field.data_type())) {
            let root = ArrowSchemaConverter::new().convert(schema)?.root_schema_ptr();
            let writer = SerializedFileWriter::new(file, root, Arc::new(properties.build()))?;
            return Ok(Form::Ids { writer: Box::new(writer), encoder: ChunkEncoder::new()? });
        }
        for scalar in ["row", "answer"] {
            properties = properties.set_column_statistics_enabled(ColumnPath::from(scalar), EnabledStatistics::Page);
        }
        let options = ArrowWriterOptions::new()
            .with_properties(properties.build())
            // Without it readers see plain Parquet types: text columns stay text, not categories.
            .with_skip_arrow_metadata(true);
        Ok(Form::Any(Box::new(ArrowWriter::try_new_with_options(file, schema.clone(), options)?)))
    }

    fn write(&mut self, batch: &RecordBatch) -> std::result::Result<(), ParquetError> {
        match self {
            Form::Any(writer) => writer.write(batch).and_then(|()| writer.flush()),
            Form::Ids { writer, encoder } => {
                let schema = writer.schema_descr().columns().to_vec();
                let mut group = writer.next_row_group()?;
                for (column, described) in batch.columns().iter().zip(schema) {
                    let chunk = encoder.encode(column.as_list::<i32>(), described)?;
                    group.append_column(&chunk.bytes, chunk.close)?;
                }
                group.close().map(drop)
            }
        }
    }

    fn finish(self) -> std::result::Result<Hashing, ParquetError> {
        match self {
            Form::Any(writer) => writer.into_inner(),
            Form::Ids { writer, .. } => writer.into_inner(),
        }
    }
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
