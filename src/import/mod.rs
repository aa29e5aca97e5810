//! Other people's templates: read from the files they come in, and written as definitions.
//!
//! Nothing is executed and nothing is fetched. What cannot be taken over is reported, and the rest is taken over all the
//! same; [`Imported::diagnostics`] has an error for everything that is lost.

pub mod flan;
pub mod promptsource;
mod python_text;
pub mod writer;
pub mod yaml;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::diag::{Diagnostic, Result};
use crate::storage;

use writer::Outline;

/// The cluster of tasks that are not known.
pub const CLUSTER: &str = "imported";

/// What came out of an import.
#[derive(Default)]
pub struct Imported {
    /// Files that were read.
    pub files: usize,
    /// Templates found in them, taken over or not.
    pub templates: usize,
    pub definitions: Vec<Outline>,
    pub diagnostics: Vec<Diagnostic>,
}

impl Imported {
    /// Templates that were taken over.
    pub fn taken(&self) -> usize {
        self.definitions.iter().map(|d| d.templates.len()).sum()
    }
}

/// A task name made of any text: what a task cannot be called becomes `_`.
fn task_name(text: &str) -> String {
    let safe: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect();
    match safe.chars().next() {
        Some(c) if c.is_ascii_alphanumeric() => safe,
        _ => format!("task{safe}"),
    }
}

/// `name`, or `name_2`, `name_3` … if it is taken.
fn unique(name: String, taken: &mut BTreeSet<String>) -> String {
    let mut candidate = name.clone();
    let mut number = 2;
    while !taken.insert(candidate.clone()) {
        candidate = format!("{name}_{number}");
        number += 1;
    }
    candidate
}

/// Writes definitions below `out`, as `<cluster>/<task>.toml`; returns the paths. A file that is there and says something
/// else is left as it is, because someone may have gone on with it, and reported.
pub fn write(imported: &mut Imported, out: &Path, force: bool) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for outline in &imported.definitions {
        let path = out.join(task_name(&outline.folder)).join(format!("{}.toml", outline.task));
        let text = writer::write(outline);
        if !force && storage::stamp(&path).is_some() && storage::read_text(&path).ok().as_ref() != Some(&text) {
            imported.diagnostics.push(
                Diagnostic::error("file-exists", format!("the definition of `{}` is not written", outline.task))
                    .at(&path)
                    .found("a file with other contents")
                    .help("give another directory with --out, or --force to replace what is there"),
            );
            continue;
        }
        storage::write(&path, text.as_bytes())?;
        written.push(path);
    }
    Ok(written)
}
