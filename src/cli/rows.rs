//! `flanc rows`: decoded examples as canonical JSON lines. Also what every command does that prints rows as it reads them.

use std::cell::RefCell;
use std::io::{BufWriter, Write};
use std::ops::Range;

use clap::Args;

use super::{DataDirs, Failure, Outcome, parse_range, report};
use crate::diag::{Diagnostic, Severity};
use crate::example::Datum;
use crate::ingest::features::Decoder;
use crate::ingest::info::CorpusName;
use crate::ingest::record::Damage;
use crate::ingest::splits::{Part, clip};
use crate::ingest::{Corpus, RawRow};

/// Print decoded rows of a corpus as canonical JSON lines
///
/// Keys are sorted, floats are given by their bits, strings that are not UTF-8 as {"$b64": …}, so two readers that
/// print the same lines agree on every bit.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc rows super_glue/rte --split 'train[:-200]' --rows 0..3")]
pub struct Rows {
    /// Corpus: `name[/config][:version]`
    corpus: String,
    /// Split expression, such as `train`, `train[:-200]` or `train[10%:20%]+validation`
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
        let parts = clip(corpus.resolve(&self.split, 1.0)?, &self.rows.unwrap_or(0..u64::MAX));
        let decoder = corpus.decoder(None)?;
        let problems = print_rows(&corpus, &parts, &decoder, &mut |_, datum, text, _| {
            datum.write_canonical(text);
            text.push('\n');
        })?;
        problems.settle(self.max_bad_records)
    }
}

/// What there is to say of records, and how many of them could not be used.
#[derive(Default)]
pub struct Problems {
    list: Vec<Diagnostic>,
    bad_records: u64,
}

impl Problems {
    /// Something about one record, which it cost if it is an error.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.bad_records += u64::from(diagnostic.severity == Severity::Error);
        self.list.push(diagnostic);
    }

    fn damage(&mut self, damage: Damage) {
        if damage.diagnostic.severity == Severity::Error {
            self.bad_records += damage.lost.max(1);
        }
        self.list.push(damage.diagnostic);
    }

    /// Prints them; more unusable records than are allowed make the command fail.
    pub fn settle(self, max_bad_records: u64) -> Outcome {
        if self.bad_records > max_bad_records {
            return Err(Failure::Diagnostics(self.list));
        }
        report(&self.list);
        Ok(())
    }
}

/// Prints what `write` makes of each row of `parts`, and returns what is wrong with records, which are passed over.
pub fn print_rows(
    corpus: &Corpus,
    parts: &[Part],
    decoder: &Decoder<'_>,
    write: &mut dyn FnMut(&RawRow<'_>, &Datum<'_>, &mut String, &mut Problems),
) -> Result<Problems, Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let problems = RefCell::new(Problems::default()); // rows and damage come through two closures
    let mut text = String::new();
    for part in parts {
        for damage in corpus.damage(part)? {
            problems.borrow_mut().damage(damage.clone());
        }
        let mut write_error = None;
        let visited = corpus.visit(
            part,
            &|_| true,
            &mut |row| {
                let mut problems = problems.borrow_mut();
                let mut oddities = Vec::new();
                match decoder.decode(row.payload, &mut oddities) {
                    Ok(datum) => {
                        text.clear();
                        write(&row, &datum, &mut text, &mut problems);
                        if let Err(error) = out.write_all(text.as_bytes()) {
                            write_error = Some(error);
                            return Err(Diagnostic::error("stdout", "stopped").into());
                        }
                    }
                    Err(error) => problems.push(row.error(error)),
                }
                oddities.iter().for_each(|oddity| problems.push(row.oddity(oddity)));
                Ok(())
            },
            &mut |damage| {
                problems.borrow_mut().damage(damage);
                Ok(())
            },
        );
        if let Some(error) = write_error {
            return Err(error.into());
        }
        visited?;
    }
    out.flush()?;
    Ok(problems.into_inner())
}
