//! Compiling into a directory of the test's own, and reading back what is there with nothing but Parquet.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int8Type, Int32Type, UInt32Type, UInt64Type};
use flanc::compile::{Compiled, Outcome, Progress};
use flanc::diag::{Diagnostic, Source};
use flanc::ingest::features::Decoder;
use flanc::ingest::info::CorpusName;
use flanc::ingest::{Corpus, RawRow};
use flanc::plan::Plan;
use flanc::shard::manifest::{Manifest, SplitEntry, TaskEntry};
use flanc::task::{Catalogue, Folder};
use flanc::{compile, mixture, plan, task};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

// ---- Directories ---------------------------------------------------------------------------------------------------

/// A directory that goes when the test does. In memory, if the system has such a place: there fsync costs nothing.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("flanc-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let roots = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
        let path = roots.iter().map(|root| root.join(&name)).find(|path| fs::create_dir(path).is_ok());
        Scratch(path.expect("a directory for temporary files"))
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn copy_tree(from: &Path, to: &Path) {
    for file in walk(from) {
        let to = to.join(&file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to).unwrap();
    }
}

/// Every file below a directory, sorted.
pub fn walk(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

/// The output proper: every file but those below `.flanc`, by hash.
pub fn bytes(out: &Path) -> BTreeMap<String, String> {
    let files = walk(out).into_iter().filter(|file| !file.starts_with(".flanc/"));
    files.map(|file| (file.clone(), blake3::hash(&fs::read(out.join(file)).unwrap()).to_hex().to_string())).collect()
}

/// A corpus of the bundled ones with each shard's records `times` over: TFRecord files may be put end to end.
pub fn repeat_corpus(corpus: &str, times: usize, data: &Path) {
    let from = Path::new("data").join(corpus);
    copy_tree(&from, &data.join(corpus));
    for file in walk(&from).into_iter().filter(|file| file.contains(".tfrecord")) {
        fs::write(data.join(corpus).join(&file), fs::read(from.join(&file)).unwrap().repeat(times)).unwrap();
    }
    let info = walk(&from).into_iter().find(|file| file.ends_with("dataset_info.json")).unwrap();
    let info = data.join(corpus).join(info);
    let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&info).unwrap()).unwrap();
    for split in json["splits"].as_array_mut().unwrap() {
        for length in split["shardLengths"].as_array_mut().unwrap() {
            let records: usize = length.as_str().unwrap().parse().unwrap();
            *length = (records * times).to_string().into();
        }
    }
    fs::write(info, json.to_string()).unwrap();
}

/// The records of a TFRecord file, framing included.
pub fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let (frame, after) = rest.split_at(8 + 4 + length + 4);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

// ---- Compiling -----------------------------------------------------------------------------------------------------

/// The bundled definitions.
pub fn bundled() -> &'static Catalogue {
    static CATALOGUE: OnceLock<Catalogue> = OnceLock::new();
    CATALOGUE.get_or_init(|| task::load(&Folder::BundledDefinitions, &Folder::BundledSchemas).unwrap().0)
}

/// Definitions of the test's own, over the bundled schemas.
pub fn definitions(directory: &Path) -> Catalogue {
    match task::load(&Folder::Directory(directory.to_owned()), &Folder::BundledSchemas) {
        Ok((catalogue, _)) => catalogue,
        Err(errors) => panic!("{}", text(&errors)),
    }
}

/// How a recipe is compiled.
pub struct Compiler<'c> {
    pub catalogue: &'c Catalogue,
    pub data: PathBuf,
    pub threads: usize,
    pub max_bad_records: u64,
}

impl Default for Compiler<'_> {
    fn default() -> Self {
        Compiler { catalogue: bundled(), data: PathBuf::from("data"), threads: 2, max_bad_records: 0 }
    }
}

/// Tasks of every shape, and not so many that each test takes them all in its stride.
pub const VARIOUS: [&str; 15] = [
    "aeslc",
    "cb",
    "cola",
    "common_gen",
    "imdb_reviews",
    "math_dataset",
    "glue_mrpc",
    "multirc",
    "natural_questions",
    "openbookqa",
    "rte",
    "sst2",
    "trec",
    "web_nlg_en",
    "wic",
];

/// The whole text of a recipe, given the keys in which it differs from others.
pub fn recipe(keys: &str) -> String {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tokenizer.json");
    let scale = if keys.contains("split_scale") { "" } else { "split_scale = 0.04\n" };
    format!("{scale}tokenizer.file = '{}'\n{keys}\n", tokenizer.display())
}

impl<'c> Compiler<'c> {
    pub fn plan(&self, keys: &str) -> Result<Plan<'c>, Vec<Diagnostic>> {
        let tasks: Vec<&str> = self.catalogue.tasks.iter().map(|t| t.name()).filter(|t| VARIOUS.contains(t)).collect();
        let text = if keys.contains("tasks =") { recipe(keys) } else { recipe(&format!("tasks = {tasks:?}\n{keys}")) };
        let (recipe, _) = mixture::read(&Source::new("recipe.toml", text), Path::new(""), self.catalogue)?;
        plan::plan(recipe, self.catalogue, std::slice::from_ref(&self.data))
    }

    pub fn try_run(&self, keys: &str, out: &Path) -> Result<Outcome, Vec<Diagnostic>> {
        let plan = self.plan(keys)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build().unwrap();
        pool.install(|| compile::compile(&plan, out, self.max_bad_records, &Progress::default()))
    }

    /// Compiles what has to compile.
    pub fn run(&self, keys: &str, out: &Path) -> Compiled {
        match self.try_run(keys, out) {
            Ok(Outcome::Compiled(compiled)) => compiled,
            Ok(Outcome::UpToDate(_)) => panic!("{} is up to date", out.display()),
            Err(errors) => panic!("{}", text(&errors)),
        }
    }
}

/// Compiles the bundled definitions over `data/`.
pub fn run(keys: &str, out: &Path) -> Manifest {
    Compiler::default().run(keys, out).manifest
}

pub fn text(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(Diagnostic::to_string).collect()
}

/// A run of the program, on a recipe in a file of its own.
pub fn program(keys: &str, scratch: &Path, data: &Path, out: &Path) -> Command {
    let file = scratch.join("recipe.toml");
    fs::write(&file, recipe(keys)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanc"));
    command.arg("compile").arg(file).arg("--data-dir").arg(data).arg("--out").arg(out).args(["--threads", "2"]);
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// ---- Reading back --------------------------------------------------------------------------------------------------

/// All rows of a Parquet file.
pub fn read(path: &Path) -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap();
    let schema = builder.schema().clone();
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

/// A column of lists of integers.
pub fn lists(batch: &RecordBatch, column: &str) -> Vec<Vec<i32>> {
    let lists = batch[column].as_list::<i32>();
    let values = |list: std::sync::Arc<dyn Array>| match list.as_primitive_opt::<Int32Type>() {
        Some(list) => list.values().to_vec(),
        None => list.as_primitive::<Int8Type>().values().iter().map(|&v| i32::from(v)).collect(),
    };
    (0..batch.num_rows()).map(|row| values(lists.value(row))).collect()
}

/// Names a prompt: a row through a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub task: String,
    pub split: String,
    pub row: u64,
    pub template: String,
}

/// A prompt as the provenance has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    pub name: Name,
    pub kind: String,
    pub repeat: u32,
    pub target_start: usize,
    pub length: usize,
}

/// A prompt with its ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prompt {
    pub segment: Segment,
    pub ids: Vec<i32>,
}

impl Prompt {
    pub fn inputs(&self) -> &[i32] {
        &self.ids[..self.segment.target_start]
    }

    /// With the end of sequence.
    pub fn targets(&self) -> &[i32] {
        &self.ids[self.segment.target_start..]
    }
}

/// A shard with the prompts of each row.
pub struct Shard {
    pub batch: RecordBatch,
    pub rows: Vec<Vec<Prompt>>,
}

/// Reads a shard and its provenance.
pub fn shard(out: &Path, file: &str) -> Shard {
    let batch = read(&out.join(file));
    let mut ids = lists(&batch, "input_ids");
    if batch.column_by_name("targets").is_some() {
        ids.iter_mut().zip(lists(&batch, "targets")).for_each(|(ids, targets)| ids.extend(targets));
    }
    let provenance = read(&out.join(file.replace(".parquet", ".provenance.parquet")));
    assert_eq!(provenance.num_rows(), batch.num_rows(), "{file}");
    let rows = ids.iter().enumerate().map(|(row, ids)| {
        let mut at = 0;
        let segments = segments(&provenance.slice(row, 1));
        let prompts = segments.into_iter().map(|segment| {
            let ids = ids[at..at + segment.length].to_vec();
            at += segment.length;
            Prompt { segment, ids }
        });
        prompts.collect()
    });
    Shard { rows: rows.collect(), batch }
}

/// The provenance of one row.
fn segments(row: &RecordBatch) -> Vec<Segment> {
    let flat = |name: &str| match row[name].as_list_opt::<i32>() {
        Some(lists) => lists.value(0),
        None => row[name].clone(),
    };
    let columns = ["task", "split", "template", "kind"].map(flat);
    let texts = |i: usize, at: usize| columns[i].as_string::<i32>().value(at).to_owned();
    let rows = flat("row");
    let numbers = ["repeat", "target_start", "length"].map(flat);
    let number = |i: usize, at: usize| numbers[i].as_primitive::<UInt32Type>().value(at);
    (0..rows.len())
        .map(|at| Segment {
            name: Name {
                task: texts(0, at),
                split: texts(1, at),
                row: rows.as_primitive::<UInt64Type>().value(at),
                template: texts(2, at),
            },
            kind: texts(3, at),
            repeat: number(0, at),
            target_start: number(1, at) as usize,
            length: number(2, at) as usize,
        })
        .collect()
}

/// The shards of the manifest whose paths begin like this, without their provenance.
pub fn shards(out: &Path, prefix: &str) -> Vec<Shard> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let paths = manifest.files.iter().map(|f| f.path.as_str());
    paths.filter(|p| p.starts_with(prefix) && !p.ends_with(".provenance.parquet")).map(|p| shard(out, p)).collect()
}

/// All prompts of these shards, in order.
pub fn prompts(out: &Path, prefix: &str) -> Vec<Prompt> {
    shards(out, prefix).into_iter().flat_map(|shard| shard.rows).flatten().collect()
}

/// What a manifest says of a task.
pub fn entry<'m>(manifest: &'m Manifest, task: &str) -> &'m TaskEntry {
    manifest.tasks.iter().find(|t| t.task == task).unwrap_or_else(|| panic!("no {task}"))
}

/// What a manifest says of a task's training split.
pub fn train<'m>(manifest: &'m Manifest, task: &str) -> &'m SplitEntry {
    &entry(manifest, task).splits["train"]
}

// ---- The rows that all is made of ----------------------------------------------------------------------------------

/// The rows of a split of a bundled corpus, as JSON.
pub fn source_rows(corpus: &str, split: &str) -> Vec<serde_json::Value> {
    let corpus = Corpus::open(&CorpusName::parse(corpus).unwrap(), &["data".into()]).unwrap();
    let decoder = Decoder::new(&corpus.info.features, None).unwrap();
    let mut rows = Vec::new();
    let mut visit = |row: RawRow<'_>| {
        let mut json = String::new();
        decoder.decode(row.payload, &mut Vec::new()).unwrap().write_canonical(&mut json);
        rows.push(serde_json::from_str(&json).unwrap());
        Ok(())
    };
    let part = corpus.resolve(split, 1.0).unwrap().remove(0);
    corpus.visit(&part, &|_| true, &mut visit, &mut |damage| panic!("{damage:?}")).unwrap();
    rows
}
