//! `flanc explain`: one row of a shard, as text, with where everything in it came from.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, Outcome, print};
use crate::diag::{Diagnostic, Result};
use crate::shard::inspect::{Segment, row};
use crate::shard::manifest::{self, Manifest};
use crate::tokenize::Tokenizer;

/// Show a row of a compiled mixture: text, segments, loss positions, and where each came from
#[derive(Args)]
#[command(after_help = "Example:\n  flanc explain out --shard 0 --row 12")]
pub struct Explain {
    /// Directory that `flanc compile --out` wrote
    out: PathBuf,
    /// Shard of the mixture, counted from 0
    #[arg(long, default_value_t = 0)]
    shard: usize,
    /// Row of that shard, counted from 0
    #[arg(long, default_value_t = 0)]
    row: u64,
    /// Split of the mixture
    #[arg(long, default_value = "train")]
    split: String,
    /// Any shard of the output instead, by its path in the manifest
    #[arg(long, value_name = "PATH", conflicts_with_all = ["shard", "split"])]
    file: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub fn run(self) -> Outcome {
        let manifest = manifest::require(&self.out)?;
        let file = match &self.file {
            Some(file) => file.clone(),
            None => mixture_shard(&manifest, &self.split, self.shard)?,
        };
        let tokenizer = open_tokenizer(&manifest, &self.out)?;
        let row = row(&self.out, &file, self.row)?;
        if self.json {
            let segments: Vec<_> = row.segments.iter().map(|s| describe(s, &row.ids, &tokenizer)).collect();
            return print(&format!(
                "{}\n",
                serde_json::json!({
                    "file": file, "row": self.row, "tokens": row.ids.len(), "padding": row.padding, "segments": segments,
                })
            ));
        }
        let mut text = format!("{file} row {}: {} tokens, {} of them padding\n", self.row, row.ids.len(), row.padding);
        let color = std::io::stdout().is_terminal();
        for (i, segment) in row.segments.iter().enumerate() {
            let o = &segment.origin;
            text.push_str(&format!(
                "\n── segment {i}: tokens {}..{}, loss from {}\n   {} {} row {} · {} ({}){}\n",
                segment.start,
                segment.start + segment.length,
                segment.start + segment.target_start,
                o.task,
                o.split,
                o.row,
                o.template,
                o.kind,
                if o.repeat > 0 { format!(", use {}", o.repeat + 1) } else { String::new() }
            ));
            if !o.exemplars.is_empty() {
                let rows: Vec<String> =
                    o.exemplars.iter().map(|e| format!("{} {} · {}", e.split, e.row, e.template)).collect();
                text.push_str(&format!("   exemplars: {}\n", rows.join(", ")));
            }
            let ids = &row.ids[segment.start..segment.start + segment.length];
            let (inputs, targets) = ids.split_at(segment.target_start);
            let targets = tokenizer.decode(targets);
            let targets = if color { format!("\x1b[32m{}\x1b[0m", printable(&targets)) } else { printable(&targets) };
            text.push_str(&format!("{}\n   ⇒ {targets}\n", printable(&tokenizer.decode(inputs))));
        }
        print(&text)
    }
}

fn mixture_shard(manifest: &Manifest, split: &str, shard: usize) -> Result<String, Failure> {
    let prefix = format!("mixture/{split}-");
    let shards: Vec<&str> = manifest
        .files
        .iter()
        .map(|f| f.path.as_str())
        .filter(|p| p.starts_with(&prefix) && !p.ends_with(".provenance.parquet"))
        .collect();
    match shards.get(shard) {
        Some(path) => Ok((*path).to_owned()),
        None => Err(Failure::Diagnostics(vec![
            Diagnostic::error("no-such-shard", format!("the mixture has no {split} shard {shard}"))
                .expected(format!("a number below {}", shards.len()))
                .help("`--file tasks/…` shows a task shard"),
        ])),
    }
}

/// Loads the tokenizer that a compile left beside its shards.
fn open_tokenizer(manifest: &Manifest, out: &Path) -> Result<Tokenizer> {
    let path = out.join(manifest::TOKENIZER);
    let tokenizer = Tokenizer::open(&path)?;
    if tokenizer.hash() != manifest.tokenizer.blake3 {
        return Err(Diagnostic::error("tokenizer-differs", "this is not the tokenizer of this compile")
            .at(&path)
            .expected(format!("blake3 {}", manifest.tokenizer.blake3))
            .found(tokenizer.hash())
            .help("compile again: the file was changed afterwards")
            .into());
    }
    Ok(tokenizer)
}

fn describe(segment: &Segment, ids: &[u32], tokenizer: &Tokenizer) -> serde_json::Value {
    let o = &segment.origin;
    let (inputs, targets) = ids[segment.start..segment.start + segment.length].split_at(segment.target_start);
    serde_json::json!({
        "start": segment.start, "length": segment.length, "target_start": segment.target_start,
        "task": o.task, "split": o.split, "row": o.row, "template": o.template, "kind": o.kind, "repeat": o.repeat,
        "exemplars": o.exemplars.iter().map(|e| serde_json::json!({
            "split": e.split, "row": e.row, "template": e.template,
        })).collect::<Vec<_>>(),
        "inputs": tokenizer.decode(inputs), "targets": tokenizer.decode(targets),
    })
}

/// Data must not reach a terminal as control sequences.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
