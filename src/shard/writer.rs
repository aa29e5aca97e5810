//! Writing a shard: Parquet under a temporary name, hashed as it is written.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::storage::{self, Pending};

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

/// How the ids of a shard are stored; measured on real prompts (docs/performance.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The prompts of one row lie side by side: zstd finds the repetition, a dictionary would hide it.
    ByRow,
    /// Shuffled: nothing repeats nearby, and a dictionary stores ids in as many bits as there are distinct ones.
    Shuffled,
}

/// A shard being written.
pub struct ShardWriter {
    writer: ArrowWriter<Hashing>,
    path: PathBuf,
    relative: String,
    rows: u64,
    pub tokens: u64,
}

impl ShardWriter {
    /// Begins the file `relative` below `root`; `metadata` goes into the file's key-values.
    pub fn create(
        root: &Path,
        relative: &str,
        schema: SchemaRef,
        order: Order,
        metadata: &[(String, String)],
    ) -> Result<ShardWriter> {
        let path = root.join(relative);
        let file = Hashing { file: Pending::create(&path)?, hasher: blake3::Hasher::new(), bytes: 0 };
        let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        let mut properties = WriterProperties::builder()
            .set_writer_version(WriterVersion::PARQUET_1_0)
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level of zstd")))
            .set_created_by(format!("flanc {} ({ENGINE})", env!("CARGO_PKG_VERSION")))
            // The page index is written; minima of token ids would only make it larger.
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(metadata));
        let column = |name: &str| ColumnPath::from(vec![name.to_owned(), "list".to_owned(), "element".to_owned()]);
        if order == Order::ByRow {
            properties = properties.set_column_dictionary_enabled(column("input_ids"), false);
        }
        // Labels are runs of -100 with a few ids between them, which zstd sees by itself; the mask is all ones, whose
        // differences take no space at all.
        properties = properties
            .set_column_dictionary_enabled(column("labels"), false)
            .set_column_dictionary_enabled(column("attention_mask"), false)
            .set_column_encoding(column("attention_mask"), Encoding::DELTA_BINARY_PACKED);
        for scalar in ["row", "answer"] {
            properties = properties.set_column_statistics_enabled(ColumnPath::from(scalar), EnabledStatistics::Page);
        }
        let options = ArrowWriterOptions::new()
            .with_properties(properties.build())
            // Without it readers see plain Parquet types: text columns stay text, not categories.
            .with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(file, schema, options).map_err(|e| failure(&path, &e))?;
        Ok(ShardWriter { writer, path, relative: relative.to_owned(), rows: 0, tokens: 0 })
    }

    /// Writes a batch as a row group of its own.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).and_then(|()| self.writer.flush()).map_err(|e| failure(&self.path, &e))
    }

    /// Ends the file and puts it under its name.
    pub fn finish(self) -> Result<FileInfo> {
        let hashing = self.writer.into_inner().map_err(|e| failure(&self.path, &e))?;
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
