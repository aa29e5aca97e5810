//! Sub-split expressions: `train`, `train[:-200]`, `train[10%:20%]`, `train[2shard]`, `train+validation`, `all`.
//!
//! They are TFDS's own read-time language (tensorflow_datasets 4.9, `core/splits.py`, `ReadInstruction`): rows are
//! taken from the concatenation of a split's shards, percents are rounded to the closest row, bounds outside of
//! the split are errors.

use std::ops::Range;

use super::info::SplitInfo;

/// A stretch of rows of one split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub split: String,
    pub rows: Range<u64>,
}

/// Resolves `expression` against the splits a corpus has; `scale` multiplies absolute bounds (1 = as written), so
/// that a carve-out made for a corpus of thousands also fits a sample of it.
///
/// # Errors
/// A sentence that says what is wrong with the expression.
pub fn resolve(expression: &str, splits: &[SplitInfo], scale: f64) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    for term in expression.split('+') {
        let term = term.trim();
        if term == "all" {
            parts.extend(splits.iter().map(|s| Part { split: s.name.clone(), rows: 0..s.rows() }));
            continue;
        }
        parts.push(resolve_term(term, splits, scale)?);
    }
    Ok(parts)
}

/// The rows of `parts`, taken one after the other, that stand at the places `range`.
pub fn clip(parts: Vec<Part>, range: &Range<u64>) -> Vec<Part> {
    let mut first = 0; // the place of a part's first row
    let mut clipped = Vec::new();
    for part in parts {
        let length = part.rows.end - part.rows.start;
        let row_at = |place: u64| part.rows.start + place.saturating_sub(first).min(length);
        let rows = row_at(range.start)..row_at(range.end);
        first += length;
        if !rows.is_empty() {
            clipped.push(Part { split: part.split, rows });
        }
    }
    clipped
}

/// The names of the splits an expression takes rows from; `all` is left as it is.
pub fn names(expression: &str) -> impl Iterator<Item = &str> {
    expression.split('+').map(|term| term.trim().split('[').next().unwrap_or("").trim())
}

fn resolve_term(term: &str, splits: &[SplitInfo], scale: f64) -> Result<Part, String> {
    let (name, slice) = match term.split_once('[') {
        None => (term, None),
        Some((name, rest)) => {
            let slice = rest.strip_suffix(']').ok_or_else(|| format!("`{term}` lacks its closing bracket"))?;
            (name.trim(), Some(slice.trim()))
        }
    };
    let split = splits.iter().find(|s| s.name == name).ok_or_else(|| format!("there is no split `{name}`"))?;
    let rows = match slice {
        None => 0..split.rows(),
        Some(slice) => resolve_slice(slice, split, scale).map_err(|e| format!("`{term}`: {e}"))?,
    };
    Ok(Part { split: name.to_owned(), rows })
}

/// A bound as it is written; a negative one counts from the end.
enum Bound {
    Rows(i64),
    Percent(f64),
    Shards(i64),
}

fn resolve_slice(slice: &str, split: &SplitInfo, scale: f64) -> Result<Range<u64>, String> {
    let (from, to) = match slice.split_once(':') {
        Some((from, to)) => (parse_bound(from)?, parse_bound(to)?),
        None => {
            // `train[3]`: that row; `train[2shard]`: that shard.
            let (n, count, unit) = match parse_bound(slice)? {
                Some(Bound::Rows(n)) => (n, split.rows() as i64, "row"),
                Some(Bound::Shards(n)) => (n, split.shard_lengths.len() as i64, "shard"),
                _ => return Err("expected `[from:to]`, one row, or one shard".into()),
            };
            if !(-count..count).contains(&n) {
                return Err(format!("there is no {unit} {n}: `{}` has {count}, counted from 0", split.name));
            }
            let n = n.rem_euclid(count);
            let bound = if unit == "row" { Bound::Rows } else { Bound::Shards };
            return range(Some(bound(n)), Some(bound(n + 1)), split, 1.0);
        }
    };
    range(from, to, split, scale)
}

fn range(from: Option<Bound>, to: Option<Bound>, split: &SplitInfo, scale: f64) -> Result<Range<u64>, String> {
    let from = from.map_or(Ok(0), |bound| absolute(bound, split, scale))?;
    let to = to.map_or(Ok(split.rows()), |bound| absolute(bound, split, scale))?;
    if from > to {
        return Err(format!("it would begin at row {from} and end at row {to}"));
    }
    Ok(from..to)
}

fn absolute(bound: Bound, split: &SplitInfo, scale: f64) -> Result<u64, String> {
    let rows = split.rows() as i64;
    let outside = |n: i64| {
        format!(
            "row {n} lies outside of `{}`, which has {rows} rows; a smaller `split_scale` in the recipe shrinks carve-outs",
            split.name
        )
    };
    let resolve = |n: i64| if n < 0 { rows + n } else { n };
    let row = match bound {
        Bound::Rows(n) => {
            let scaled = (n as f64 * scale).round() as i64;
            if scaled.abs() > rows {
                return Err(outside(scaled));
            }
            // A carve-out that is scaled away leaves everything: `[:-200]` must not become `[:0]`.
            if n < 0 { rows + scaled } else { scaled }
        }
        Bound::Percent(p) => {
            if p.abs() > 100.0 {
                return Err(format!("{p}% lies outside of 0 to 100"));
            }
            // Python's round(): half to even.
            resolve((rows as f64 * p / 100.0).round_ties_even() as i64)
        }
        Bound::Shards(n) => {
            let shards = split.shard_lengths.len() as i64;
            let n = if n < 0 { shards + n } else { n };
            if !(0..=shards).contains(&n) {
                return Err(format!("shard {n} lies outside of `{}`, which has {shards}", split.name));
            }
            split.shard_lengths[..n as usize].iter().sum::<u64>() as i64
        }
    };
    Ok(row as u64)
}

fn parse_bound(text: &str) -> Result<Option<Bound>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        format!(
            "`{text}` is no bound: expected a row (`200`, `-200`, `30_000`), a percentage (`10%`) or a shard (`2shard`)"
        )
    };
    let number = |digits: &str| digits.trim().replace('_', "").parse::<i64>().map_err(|_| wrong());
    Ok(Some(if let Some(percent) = text.strip_suffix('%') {
        Bound::Percent(percent.trim().parse::<f64>().ok().filter(|p| p.is_finite()).ok_or_else(wrong)?)
    } else if let Some(shards) = text.strip_suffix("shard") {
        Bound::Shards(number(shards)?)
    } else {
        Bound::Rows(number(text)?)
    }))
}
