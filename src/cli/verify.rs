//! `flanc verify`: an output, checked from its files alone.

use std::path::PathBuf;

use clap::Args;

use super::{Outcome, print};
use crate::verify::verify;

/// Check every hash, count and column of a compiled output
///
/// Reads the whole output back: files against the manifest, rows against the rules of their profile, and every prompt
/// of the mixture against the task shard it came from.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc verify out")]
pub struct Verify {
    /// Directory that `flanc compile --out` wrote
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(self) -> Outcome {
        let verified = verify(&self.out)?;
        if self.json {
            return print(&format!("{}\n", serde_json::json!(verified)));
        }
        print(&format!(
            "{} is whole: {} files, {:.1} MB, {} rows, {} prompts, {} tokens\n",
            self.out.display(),
            verified.files,
            verified.bytes as f64 / 1e6,
            verified.rows,
            verified.prompts,
            verified.tokens
        ))
    }
}
