//! `flanc import`: other people's templates as definitions.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Definitions, Failure, Outcome, print, report};
use crate::diag::Severity;
use crate::import::{self, Imported, flan, promptsource};

/// Take over templates that others wrote, as task definitions
///
/// Writes CLUSTER/TASK.toml below --out and prints the paths. What cannot be taken over is reported on stderr, with
/// its place; the rest is taken over all the same, and the exit code is 1.
#[derive(Args)]
#[command(after_help = "Examples:\n  flanc import promptsource templates/ --out imported\n  \
    flanc import flan flan/templates.py --out imported")]
pub struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Subcommand)]
enum From {
    /// promptsource's templates.yaml, or a tree of them
    Promptsource(Source),
    /// FLAN's patterns: templates.py, which is read and not run, or JSON {"group": [[inputs, targets], …]}
    Flan(Source),
}

#[derive(Args)]
struct Source {
    /// File or directory to read
    path: PathBuf,
    /// Directory to write to
    #[arg(long, value_name = "DIR", default_value = "imported")]
    out: PathBuf,
    /// Replace definitions that are there and say something else
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    definitions: Definitions,
}

impl Import {
    pub fn run(self) -> Outcome {
        match self.from {
            From::Promptsource(source) => {
                let (known, _) = source.definitions.load()?;
                settle(promptsource::import(&source.path, &known)?, &source)
            }
            From::Flan(source) => {
                let (known, _) = source.definitions.load()?;
                settle(flan::import(&source.path, &known)?, &source)
            }
        }
    }
}

fn settle(mut imported: Imported, source: &Source) -> Outcome {
    let written = import::write(&mut imported, &source.out, source.force)?;
    let mut list = String::new();
    for path in &written {
        list.push_str(&format!("{}\n", path.display()));
    }
    print(&list)?;
    let summary = format!(
        "{} files with {} templates; {} definitions with {} templates",
        imported.files,
        imported.templates,
        imported.definitions.len(),
        imported.taken()
    );
    eprintln!("{summary}");
    if imported.diagnostics.iter().any(|d| d.severity == Severity::Error) {
        return Err(Failure::Diagnostics(imported.diagnostics));
    }
    report(&imported.diagnostics);
    Ok(())
}
