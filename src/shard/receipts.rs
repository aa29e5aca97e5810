//! Receipts: what a run has finished, so that the next one need not do it again.
//!
//! A unit of work that has put its files under their names leaves `OUT/.flanc/receipts/<unit>.json`. The next run
//! takes the unit for done if the receipt carries the same key, the inputs have not been touched and the files are
//! there. Receipts are a cache and no part of the output: without them everything is made again, with the same bytes.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::storage;

use super::writer::FileInfo;

/// Where a run keeps what is not output.
pub const DIRECTORY: &str = ".flanc";

/// An input as it was: name, size, and time of change.
pub type Stamp = (String, u64, u64);

#[derive(Serialize, Deserialize)]
struct Receipt<T> {
    key: String,
    inputs: Vec<Stamp>,
    result: T,
}

fn path(out: &Path, unit: &str) -> PathBuf {
    out.join(DIRECTORY).join("receipts").join(format!("{unit}.json"))
}

/// The result of a unit that has been done before, under the same key and from the same inputs.
pub fn find<T: DeserializeOwned>(
    out: &Path,
    unit: &str,
    key: &str,
    inputs: &[Stamp],
    files: impl Fn(&T) -> Vec<FileInfo>,
) -> Option<T> {
    let text = storage::stamp(&path(out, unit)).and_then(|_| storage::read_text(&path(out, unit)).ok())?;
    let receipt: Receipt<T> = serde_json::from_str(&text).ok()?;
    let whole = |file: &FileInfo| storage::stamp(&out.join(&file.path)).is_some_and(|(size, _)| size == file.bytes);
    (receipt.key == key && receipt.inputs == inputs && files(&receipt.result).iter().all(whole))
        .then_some(receipt.result)
}

/// Leaves the receipt of a unit whose files are in place.
pub fn leave<T: Serialize>(out: &Path, unit: &str, key: &str, inputs: &[Stamp], result: &T) -> Result<()> {
    let receipt = Receipt { key: key.to_owned(), inputs: inputs.to_vec(), result };
    let text = serde_json::to_string(&receipt)
        .map_err(|e| Diagnostic::error("receipt", format!("a receipt cannot be written as JSON: {e}")))?;
    storage::write(&path(out, unit), text.as_bytes())
}

/// Removes the receipts of units that are not among `units`.
pub fn prune(out: &Path, units: &std::collections::BTreeSet<String>) -> Result<()> {
    let root = out.join(DIRECTORY).join("receipts");
    for file in storage::walk(&root)? {
        let name = file.to_string_lossy().trim_end_matches(".json").to_owned();
        if !units.contains(&name) {
            storage::remove(&root.join(&file))?;
        }
    }
    storage::remove_empty_directories(&root)
}
