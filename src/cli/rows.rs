//! `flanc rows`: decoded examples as canonical JSON lines.

use std::io::{BufWriter, Write};
use std::ops::Range;

use clap::Args;

use super::{DataDirs, Failure, Outcome, parse_range, report};
use crate::diag::{Diagnostic, Severity};
use crate::ingest::Corpus;
use crate::ingest::features::Decoder;
use crate::ingest::info::CorpusName;
use crate::ingest::record::Damage;

/// Print decoded rows of a corpus as canonical JSON lines
///
/// Keys are sorted, floats are given by their bits, strings that are not UTF-8 as {"$b64": …}, so two readers that
/// print the same lines agree on every bit.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc rows super_glue/rte --split 'train[:-200]' --rows 0..3")]
pub struct Rows {
    /// Corpus: name[/config][:version]
    corpus: String,
    /// Split expression, such as train, train[:-200] or train[10%:20%]+validation
    #[arg(long)]
    split: String,
    /// Rows of that, counted from 0: a..b, a.., ..b or one number
    #[arg(long, value_parser = parse_range)]
    rows: Option<Range<u64>>,
    /// Unreadable records to skip before the command fails
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_bad_records: u64,
    #[command(flatten)]
    data: DataDirs,
}

impl Rows {
    pub fn run(self) -> Outcome {
        let corpus = Corpus::open(&CorpusName::parse(&self.corpus)?, &self.data.data_dirs)?;
        report(&corpus.info.warnings);
        let parts = corpus.resolve(&self.split, 1.0)?;
        let decoder = Decoder::new(&corpus.info.features, None).map_err(|(path, class)| {
            Box::new(
                Diagnostic::error("feature-kind", format!("feature `{path}` is no text and no number"))
                    .expected("text, numbers, labels, and structs and sequences of them")
                    .found(class),
            )
        })?;
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut bad = Vec::new();
        let mut bad_records = 0;
        let mut position = 0; // of a part's first row within the whole expression
        let range = self.rows.unwrap_or(0..u64::MAX);
        for mut part in parts {
            let rows = part.rows.clone();
            let clip = |row: u64| rows.start + row.saturating_sub(position).min(rows.end - rows.start);
            part.rows = clip(range.start)..clip(range.end);
            position += rows.end - rows.start;
            if part.rows.is_empty() {
                continue;
            }
            let mut damages: Vec<Damage> = corpus.damage(&part)?.into_iter().cloned().collect();
            let mut line = String::new();
            let mut failed = Vec::new();
            let mut closed = None;
            let visited = corpus.visit(
                &part,
                &|_| true,
                &mut |row| {
                    let mut oddities = Vec::new();
                    match decoder.decode(row.payload, &mut oddities) {
                        Ok(datum) => {
                            line.clear();
                            datum.write_canonical(&mut line);
                            line.push('\n');
                            if let Err(error) = out.write_all(line.as_bytes()) {
                                closed = Some(error);
                                return Err(Box::new(Diagnostic::error("stdout", "stopped")));
                            }
                        }
                        Err(error) => failed.push(row.error(error)),
                    }
                    failed.extend(oddities.iter().map(|oddity| row.oddity(oddity)));
                    Ok(())
                },
                &mut |damage| {
                    damages.push(damage);
                    Ok(())
                },
            );
            if let Some(error) = closed {
                return Err(error.into());
            }
            visited?;
            for damage in damages {
                if damage.diagnostic.severity == Severity::Error {
                    bad_records += (damage.records.end - damage.records.start).max(1);
                }
                bad.push(damage.diagnostic);
            }
            bad_records += failed.iter().filter(|d| d.severity == Severity::Error).count() as u64;
            bad.extend(failed);
        }
        out.flush()?;
        if bad_records > self.max_bad_records {
            return Err(Failure::Diagnostics(bad));
        }
        report(&bad);
        Ok(())
    }
}
