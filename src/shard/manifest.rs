//! The manifest: the last file of a compile, and the only one that readers have to trust.
//!
//! It names every file with its hash, and says for every task what happened to its rows at each step. It holds nothing
//! that differs between two runs of one plan: no times, no paths of the machine, no thread counts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contamination::Overlap;
use crate::diag::{Diagnostic, Result};
use crate::expand::Failed;
use crate::storage;

use super::writer::FileInfo;

pub const FILE: &str = "manifest.json";
/// The tokenizer of the compile, beside the manifest: whoever trains or evaluates needs the same one.
pub const TOKENIZER: &str = "tokenizer.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Hash of the plan.
    pub plan: String,
    /// flanc and the engines whose output is in the bytes.
    pub versions: BTreeMap<String, String>,
    /// The recipe as it is meant, defaults included.
    pub recipe: serde_json::Value,
    pub tokenizer: TokenizerEntry,
    pub mixture: BTreeMap<String, MixtureEntry>,
    pub tasks: Vec<TaskEntry>,
    /// Training rows that say what held-out rows say, and the other way round, by task; empty if it was not looked for.
    pub contamination: Vec<Overlap>,
    /// What the recipe asks for and does not get: it is not on disk, or too close to what is held out.
    pub skipped: Vec<SkippedEntry>,
    pub files: Vec<FileInfo>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerEntry {
    pub blake3: String,
    pub engine: String,
    pub vocabulary: usize,
    /// What every prompt begins with, if the recipe has it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<(u32, String)>,
    pub eos: (u32, String),
    pub pad: (u32, String),
    pub separator: Option<(u32, String)>,
}

/// One split of the mixture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureEntry {
    pub prompts: u64,
    /// Rows of the Parquet files; with packing, fewer than prompts.
    pub rows: u64,
    pub tokens: u64,
    /// Tokens that carry loss.
    pub loss_tokens: u64,
    pub padding_tokens: u64,
    /// Padding as a share of all positions.
    pub padding: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    pub task: String,
    pub dataset: String,
    pub cluster: String,
    pub code_cluster: String,
    pub corpus: String,
    /// `trained` or `held-out`.
    pub role: String,
    /// Of the definition, and what the corpus says of itself.
    pub licence: String,
    pub corpus_licence: String,
    pub templates: Vec<String>,
    /// Every row of the task, used or not; those of a task that is held out are nobody else's.
    pub extent: Vec<Extent>,
    pub splits: BTreeMap<String, SplitEntry>,
    /// Share of the training mixture's prompts that the rates ask for, and the share it got.
    pub rate_asked: Option<f64>,
    pub rate_realised: Option<f64>,
}

/// Rows `from..to` of a split of the corpus, which are in the task's split `of`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub of: String,
    pub split: String,
    pub from: u64,
    pub to: u64,
}

impl Extent {
    pub fn has(&self, split: &str, row: u64) -> bool {
        self.split == split && (self.from..self.to).contains(&row)
    }
}

/// What happened to the rows of a task's split, in the order in which it happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitEntry {
    /// Rows of the split expression.
    pub rows: u64,
    /// Rows that the cap left out.
    pub capped: u64,
    /// Rows left out because held-out rows say the same.
    pub contaminated: u64,
    pub bad_records: u64,
    pub filtered: u64,
    /// Prompts made.
    pub prompts: u64,
    pub shortened: u64,
    /// Prompts that were not made (all of a row's where the template is empty), by template and reason.
    pub dropped: BTreeMap<String, BTreeMap<String, Failed>>,
    pub input_tokens: u64,
    pub target_tokens: u64,
    pub text_bytes: u64,
    /// Prompts in the mixture, repeats included.
    pub drawn: u64,
    /// Of these, second and later uses of a prompt.
    pub repeated: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedEntry {
    pub task: String,
    pub split: Option<String>,
    pub reason: String,
}

/// Reads the manifest of an output directory; `None` if it has none.
pub fn read(out: &Path) -> Result<Option<Manifest>> {
    let path = out.join(FILE);
    if storage::stamp(&path).is_none() {
        return Ok(None);
    }
    let text = storage::read_text(&path)?;
    serde_json::from_str(&text).map(Some).map_err(|e| {
        Diagnostic::error("manifest", format!("manifest.json cannot be read: {e}"))
            .at(&path)
            .help("compile again; a whole manifest is put in place at the end of every compile")
            .into()
    })
}

/// Reads the manifest of an output directory that has to have one.
pub fn require(out: &Path) -> Result<Manifest> {
    read(out)?.ok_or_else(|| {
        Diagnostic::error("no-manifest", "there is no finished compile here")
            .at(&out.join(FILE))
            .expected("the directory that `flanc compile --out` was given")
            .help("if a compile was stopped here, run the same command again: it goes on where it was")
            .into()
    })
}

/// Writes the manifest.
pub fn write(out: &Path, manifest: &Manifest) -> Result<()> {
    let mut text = serde_json::to_string_pretty(manifest)
        .map_err(|e| Diagnostic::error("manifest", format!("the manifest cannot be written as JSON: {e}")))?;
    text.push('\n');
    storage::write(&out.join(FILE), text.as_bytes())
}
