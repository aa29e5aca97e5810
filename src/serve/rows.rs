//! Rows of a corpus: one by one, and those that hold a text.

use std::cell::Cell;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::audit::Excerpt;
use crate::diag::{Diagnostic, Result, listing};
use crate::example::Datum;
use crate::ingest::Corpus;
use crate::ingest::features::Decoder;
use crate::ingest::splits::Part;
use crate::seed::Seed;
use crate::template::engine::RowName;

/// A row, as the page asks for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowAsked {
    /// One of the corpus's own splits.
    split: String,
    pick: Pick,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pick {
    Row(u64),
    /// The nth of the random rows that a seed gives.
    Random {
        seed: u64,
        draw: u64,
    },
}

/// A row that is there.
#[derive(Clone, Copy)]
pub struct Row<'c> {
    corpus: &'c Corpus,
    pub name: RowName<'c>,
}

/// Bytes of a row, or of a field, that the page is given to look at.
const MOST_SHOWN: usize = 64 << 10;

impl<'c> Row<'c> {
    pub fn find(corpus: &'c Corpus, asked: &'c RowAsked) -> Result<Row<'c>> {
        let (split, rows) = (asked.split.as_str(), rows_of(corpus, &asked.split)?);
        let unknown = |message: String| Diagnostic::error("unknown-row", message);
        let index = match asked.pick {
            Pick::Row(row) if row < rows => row,
            Pick::Random { seed, draw } if rows > 0 => {
                let drawn = Seed(seed).stream(&["serve", &corpus.info.name.to_string(), split]).draw(draw);
                ((u128::from(drawn) * u128::from(rows)) >> 64) as u64
            }
            Pick::Row(row) => {
                let expected = format!("less than {rows}, the rows of split `{split}`");
                return Err(unknown(format!("there is no row {row}")).expected(expected).into());
            }
            Pick::Random { .. } => return Err(unknown(format!("split `{split}` has no rows")).into()),
        };
        Ok(Row { corpus, name: RowName { split, index } })
    }

    /// Decodes the features in `wanted`, or all of them, and hands them on with the length of the record.
    pub fn read<T>(
        &self,
        wanted: Option<&BTreeSet<String>>,
        take: impl FnMut(&Datum<'_>, usize) -> Result<T>,
    ) -> Result<T> {
        self.read_by(&self.corpus.decoder(wanted)?, take)
    }

    fn read_by<T>(&self, decoder: &Decoder<'_>, mut take: impl FnMut(&Datum<'_>, usize) -> Result<T>) -> Result<T> {
        let RowName { split, index } = self.name;
        let (mut taken, mut damage) = (None, None);
        self.corpus.visit(
            &Part { split: split.to_owned(), rows: index..index + 1 },
            &|_| true,
            &mut |raw| {
                let datum = decoder.decode(raw.payload, &mut Vec::new()).map_err(|error| Box::new(raw.error(error)))?;
                taken = Some(take(&datum, raw.payload.len())?);
                Ok(())
            },
            &mut |found| {
                damage = Some(found.diagnostic);
                Ok(())
            },
        )?;
        let gone = || Diagnostic::error("no-row", format!("row {index} of split `{split}` cannot be read"));
        taken.ok_or_else(|| damage.unwrap_or_else(gone).into())
    }

    /// All features as canonical JSON, cut where that is very long.
    pub fn features(&self) -> Result<String> {
        self.read_by(&decodable(self.corpus)?, |datum, _| {
            let mut text = String::new();
            datum.write_canonical(&mut text);
            Ok(cut(text))
        })
    }
}

/// A text as far as the page shows it.
pub fn cut(mut text: String) -> String {
    if text.len() > MOST_SHOWN {
        let end = (0..=MOST_SHOWN).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn rows_of(corpus: &Corpus, split: &str) -> Result<u64> {
    corpus.split(split).map(|info| info.shard_lengths.iter().sum()).ok_or_else(|| {
        let splits = corpus.info.splits.iter().map(|s| s.name.as_str());
        Diagnostic::error("unknown-split", format!("there is no split `{split}`"))
            .note("note", format!("splits: {}", listing(splits)))
            .into()
    })
}

/// A decoder of all features that are text or numbers.
fn decodable(corpus: &Corpus) -> Result<Decoder<'_>> {
    corpus.decoder(None).or_else(|_| {
        let names = corpus.info.features.fields().iter().map(|(name, _)| name.clone());
        let wanted: BTreeSet<String> = names.filter(|n| corpus.decoder(Some(&[n.clone()].into())).is_ok()).collect();
        corpus.decoder(Some(&wanted))
    })
}

/// Looks for a text in the first thousand rows of a split, whatever the case of its letters.
pub fn search(corpus: &Corpus, split: &str, text: &str) -> Result<Value> {
    const ROWS: u64 = 1000;
    const BYTES: usize = 64 << 20;
    const HITS: usize = 50;
    const LONGEST: usize = 200;
    let rows = rows_of(corpus, split)?;
    if text.trim().is_empty() || text.chars().count() > LONGEST {
        return Err(Diagnostic::error("search", format!("expected a text of 1 to {LONGEST} characters")).into());
    }
    let pattern = regex::RegexBuilder::new(&regex::escape(text)).case_insensitive(true).build();
    let pattern = pattern.map_err(|e| Diagnostic::error("search", e.to_string()))?;
    let decoder = decodable(corpus)?;
    let (mut hits, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    let open = Cell::new(true);
    corpus.visit(
        &Part { split: split.to_owned(), rows: 0..rows.min(ROWS) },
        &|_| open.get(),
        &mut |row| {
            bytes += row.payload.len();
            looked_at = row.index + 1;
            if let Ok(datum) = decoder.decode(row.payload, &mut Vec::new())
                && let Some(excerpt) = found(&datum, &pattern)
            {
                hits.push(json!({ "row": row.index, "text": [excerpt.before, excerpt.marked, excerpt.after] }));
            }
            open.set(hits.len() < HITS && bytes < BYTES);
            Ok(())
        },
        // Rows that cannot be read are the audit's to complain about.
        &mut |_| Ok(()),
    )?;
    Ok(json!({ "hits": hits, "looked_at": looked_at, "rows": rows }))
}

/// The first place in a row's texts that matches.
fn found(datum: &Datum<'_>, pattern: &regex::Regex) -> Option<Excerpt> {
    match datum {
        Datum::Text(text) => pattern.find(text).map(|at| Excerpt::new(text, at.range())),
        Datum::List(items) => items.iter().find_map(|item| found(item, pattern)),
        Datum::Struct(fields) => fields.iter().find_map(|(_, item)| found(item, pattern)),
        _ => None,
    }
}
