//! Reading: the bytes of one TFDS split become rows.
//!
//! [`Corpus`] is a directory as TFDS left it. Its headers are read when it is opened; shards are opened when rows
//! are asked for. A row is named by its index in the split, shards in the order of their numbers, which is the order
//! `tfds.load` gives with `ReadConfig(interleave_cycle_length=1)`.

pub mod array_record;
pub mod features;
pub mod info;
pub mod parquet;
pub mod proto;
pub mod record;
pub mod splits;
pub mod tfrecord;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::diag::{Diagnostic, Place, Result, listing};
use crate::storage;

use array_record::ArrayRecordFile;
use features::{Decoder, Oddity, RowError};
use info::{CorpusInfo, CorpusName, FileFormat, SplitInfo};
use parquet::ParquetFile;
use record::{Damage, Record};
use splits::Part;
use tfrecord::TfRecordFile;

/// A corpus on disk.
pub struct Corpus {
    pub info: CorpusInfo,
    /// By split, in the order of `info.splits`.
    shards: Vec<Vec<Shard>>,
}

/// One file of a split.
struct Shard {
    path: PathBuf,
    /// Rows of the split that the headers place into this file.
    rows: Range<u64>,
    opened: OnceLock<Opened>,
}

struct Opened {
    /// `None` if the file cannot be read at all.
    container: Option<Container>,
    /// How the file as a whole departs from what the headers promise.
    damage: Option<Damage>,
}

enum Container {
    TfRecord(TfRecordFile),
    ArrayRecord(ArrayRecordFile),
    Parquet(ParquetFile),
}

/// A row before decoding.
pub struct RawRow<'a> {
    pub split: &'a str,
    /// Its place in the split.
    pub index: u64,
    pub payload: &'a [u8],
    file: &'a Path,
    record: u64,
    offset: u64,
}

impl Corpus {
    /// Finds the corpus below one of `data_dirs`, reads its headers and looks for its files; no record is read.
    pub fn open(name: &CorpusName, data_dirs: &[PathBuf]) -> Result<Corpus> {
        let info = info::read(name, data_dirs)?;
        let mut shards = Vec::new();
        for split in &info.splits {
            let mut first = 0;
            let mut of_split = Vec::new();
            for (path, &records) in info.shard_paths(split)?.into_iter().zip(&split.shard_lengths) {
                of_split.push(Shard { path, rows: first..first + records, opened: OnceLock::new() });
                first += records;
            }
            shards.push(of_split);
        }
        Ok(Corpus { info, shards })
    }

    /// A corpus of which only the numbers of rows are known, by split.
    pub fn published(name: &CorpusName, rows: &[(String, u64)]) -> Corpus {
        Corpus { info: CorpusInfo::published(name, rows), shards: Vec::new() }
    }

    pub fn split(&self, name: &str) -> Option<&SplitInfo> {
        self.info.splits.iter().find(|s| s.name == name)
    }

    /// Resolves a sub-split expression such as `train[:-200]`; see [`splits::resolve`] for `scale`.
    pub fn resolve(&self, expression: &str, scale: f64) -> Result<Vec<Part>> {
        splits::resolve(expression, &self.info.splits, scale).map_err(|problem| {
            Diagnostic::error("split", format!("split `{expression}` of `{}`: {problem}", self.info.name))
                .at(&self.info.directory.join("dataset_info.json"))
                .note("note", format!("splits there: {}", listing(self.info.splits.iter().map(|s| s.name.as_str()))))
                .into()
        })
    }

    /// A decoder for the top-level features in `wanted`, or for all of them.
    ///
    /// # Errors
    /// One of them is no text and no number.
    pub fn decoder(&self, wanted: Option<&BTreeSet<String>>) -> Result<Decoder<'_>> {
        Decoder::new(&self.info.features, wanted).map_err(|(path, class)| {
            Diagnostic::error(
                "feature-kind",
                format!("feature `{path}` of `{}` is no text and no number", self.info.name),
            )
            .at(&self.info.directory.join("features.json"))
            .expected("text, numbers, labels, and structs and sequences of them")
            .found(class)
            .into()
        })
    }

    /// The files of `part`, with size and time of change: what its rows are read from.
    ///
    /// # Errors
    /// A file that the headers promise is not there.
    pub fn files(&self, part: &Part) -> Result<Vec<(PathBuf, u64, u64)>> {
        self.shards_of(part)
            .map(|shard| match storage::stamp(&shard.path) {
                Some((size, changed)) => Ok((shard.path.clone(), size, changed)),
                None => Err(self.missing(shard)),
            })
            .collect()
    }

    /// Opens the files of `part` and lists how they depart from the headers: cut, too short, too long.
    pub fn damage(&self, part: &Part) -> Result<Vec<&Damage>> {
        let mut found = Vec::new();
        for shard in self.shards_of(part) {
            found.extend(self.open_shard(shard)?.damage.as_ref());
        }
        Ok(found)
    }

    /// Calls `visit` for the rows of `part` that are `wanted`, in order. Records that cannot be read go to `damaged`;
    /// what [`Self::damage`] lists is not repeated.
    pub fn visit(
        &self,
        part: &Part,
        wanted: &dyn Fn(u64) -> bool,
        visit: &mut dyn FnMut(RawRow<'_>) -> Result<()>,
        damaged: &mut dyn FnMut(Damage) -> Result<()>,
    ) -> Result<()> {
        for shard in self.shards_of(part) {
            let Some(container) = &self.open_shard(shard)?.container else { continue };
            let first = shard.rows.start;
            let range = part.rows.start.max(first) - first..part.rows.end.min(shard.rows.end) - first;
            let wanted = |record: u64| wanted(first + record);
            let mut visit = |record: Record<'_>| {
                visit(RawRow {
                    split: &part.split,
                    index: first + record.index,
                    payload: record.payload,
                    file: &shard.path,
                    record: record.index,
                    offset: record.offset,
                })
            };
            match container {
                Container::TfRecord(file) => file.visit(range, &wanted, &mut visit, damaged)?,
                Container::ArrayRecord(file) => file.visit(range, &wanted, &mut visit, damaged)?,
                Container::Parquet(file) => file.visit(range, &wanted, &mut visit, damaged)?,
            }
        }
        Ok(())
    }

    fn shards_of(&self, part: &Part) -> impl Iterator<Item = &Shard> {
        let split = self.info.splits.iter().position(|s| s.name == part.split);
        let rows = part.rows.clone();
        split
            .into_iter()
            .flat_map(|i| &self.shards[i])
            .filter(move |shard| shard.rows.start < rows.end && rows.start < shard.rows.end)
    }

    fn open_shard<'s>(&'s self, shard: &'s Shard) -> Result<&'s Opened> {
        if let Some(opened) = shard.opened.get() {
            return Ok(opened);
        }
        if storage::stamp(&shard.path).is_none() {
            return Err(self.missing(shard));
        }
        let bytes = storage::map(&shard.path)?;
        let size = bytes.len() as u64;
        let promised = shard.rows.end - shard.rows.start;
        let container = match self.info.format {
            FileFormat::TfRecord => TfRecordFile::open(&shard.path, bytes).map(Container::TfRecord),
            FileFormat::ArrayRecord => ArrayRecordFile::open(&shard.path, bytes).map(Container::ArrayRecord),
            FileFormat::Parquet => ParquetFile::open(&shard.path, bytes).map(Container::Parquet),
        };
        let opened = match container {
            Err(diagnostic) => {
                let lost = format!("none of its {promised} records can be read");
                let damage = Damage::new(diagnostic.note("note", lost), 0..promised);
                Opened { container: None, damage: Some(damage) }
            }
            Ok(container) => {
                let (records, broken) = match &container {
                    Container::TfRecord(file) => (file.records(), file.broken()),
                    Container::ArrayRecord(file) => (file.records(), None),
                    Container::Parquet(file) => (file.records(), None),
                };
                let damage = match broken {
                    Some(diagnostic) => {
                        let precede = format!("{records} of {promised} records precede it");
                        let diagnostic = diagnostic.clone().note("note", precede);
                        Some(Damage::new(diagnostic, records..promised.max(records + 1)))
                    }
                    None if records != promised => Some(self.miscount(shard, records, size)),
                    None => None,
                };
                Opened { container: Some(container), damage }
            }
        };
        Ok(shard.opened.get_or_init(|| opened))
    }

    /// A whole file with another number of records than the headers promise.
    fn miscount(&self, shard: &Shard, records: u64, size: u64) -> Damage {
        let promised = shard.rows.end - shard.rows.start;
        let lost_by_tfds = self.info.format == FileFormat::Parquet && parquet::rows_kept_by_tfds(promised) == records;
        // Records of a TFRecord file end where it ends.
        let end = Some(size).filter(|_| records < promised && self.info.format == FileFormat::TfRecord);
        let difference = counted(promised.abs_diff(records), "record");
        let (code, message, help) = if lost_by_tfds {
            (
                "rows-lost-by-tfds",
                format!("a Parquet shard is {difference} short: tensorflow_datasets did not write them"),
                "nothing was damaged, the rows were never in the file; export the corpus as tfrecord or array_record",
            )
        } else if records < promised {
            (
                "shard-short",
                format!("a shard is {difference} short"),
                match self.info.format {
                    FileFormat::TfRecord if size > 0 => {
                        "the file was cut between two records, or is of another export than dataset_info.json; \
                         copy or export the whole version directory again"
                    }
                    _ => {
                        "the file is not whole, or is of another export than dataset_info.json; \
                         copy or export the whole version directory again"
                    }
                },
            )
        } else {
            (
                "shard-long",
                format!("a shard has {difference} that dataset_info.json does not count"),
                "the file is of another export than dataset_info.json; the records beyond the count are not read",
            )
        };
        let found = if size == 0 { "0 records: the file is empty".to_owned() } else { counted(records, "record") };
        let diagnostic = Diagnostic::error(code, message)
            .at(Place::Record { file: shard.path.clone(), record: records.min(promised), offset: end })
            .expected(format!("{}, by shardLengths in dataset_info.json", counted(promised, "record")))
            .found(found);
        let diagnostic = if lost_by_tfds {
            let bug = "of a shard with more than 100 rows, TFDS 4.9 writes rows 0 to 99, 200 to 299, 500 to 599 and so on, \
                       and the count here is what that leaves";
            diagnostic.note("note", bug)
        } else {
            diagnostic
        };
        Damage::new(diagnostic.help(help), records.min(promised)..records.max(promised))
    }

    fn missing(&self, shard: &Shard) -> Box<Diagnostic> {
        let name = shard.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = storage::list(&self.info.directory).unwrap_or_default();
        let others = files.iter().map(|(f, _)| f.as_str()).filter(|f| !f.ends_with(".json") && !f.ends_with(".txt"));
        Diagnostic::error("shard-missing", format!("a shard of `{}` is not there", self.info.name))
            .at(&shard.path)
            .expected(format!("{name}, by dataset_info.json"))
            .found(format!("beside it: {}", listing(others)))
            .help("copy the whole version directory again, or export the corpus again")
            .into()
    }
}

/// `1 record`, `2 records`.
fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

impl RawRow<'_> {
    pub fn place(&self) -> Place {
        Place::Record { file: self.file.to_owned(), record: self.record, offset: Some(self.offset) }
    }

    /// The row error as a diagnostic at this record.
    pub fn error(&self, error: RowError) -> Diagnostic {
        Diagnostic::error(error.code, error.message)
            .at(self.place())
            .expected(error.expected)
            .found(error.found)
            .help(error.help)
    }

    /// An odd value as a warning at this record.
    pub fn oddity(&self, oddity: &Oddity) -> Diagnostic {
        Diagnostic::warning(oddity.code, format!("feature `{}` {}", oddity.feature, oddity.what))
            .at(self.place())
            .expected(&oddity.expected)
            .found(&oddity.found)
            .note("note", "TFDS lets it pass; a compile counts the row as a bad record if a task reads the feature")
            .help("export the corpus again from a source that is sound")
    }
}
