//! Scores with their 95 % intervals.
//!
//! A share of a task's prompts has Wilson's interval; the templates of a task ask about the same rows, so a mean over
//! them is of as many independent cases as there are rows. Every other score, and every mean over tasks, has an interval
//! by bootstrap (Efron 1979): the rows of a task are drawn anew, with replacement, and the score is computed of what was
//! drawn, [`RESAMPLES`] times; the interval leaves out 2.5 % of the results on either side. Draws are named by the task
//! and its split, so that a row is drawn or not in all templates alike, and every run gives the same intervals.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::metrics::{Counts, Metric};
use crate::seed::Seed;

/// A score with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Rows that it was computed of.
    pub count: usize,
}

/// 97.5 % of a normal distribution lie below it.
const Z: f64 = 1.959_963_984_540_054;

/// A share of `count` independent cases, with the interval of Wilson (1927), which stays between 0 and 1 and does not
/// shrink to nothing where all cases came out the same. For a mean of numbers between 0 and 1 it is too wide, never too
/// narrow: their variance is at most that of zeros and ones with the same mean.
pub fn wilson(share: f64, count: usize) -> Score {
    let n = count as f64;
    let denominator = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / denominator;
    let half = Z / denominator * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Score { value: share, low: (centre - half).clamp(0.0, share), high: (centre + half).clamp(share, 1.0), count }
}

/// How intervals were made, for reports.
pub const METHOD: &str = "95 %; Wilson's for shares of a task's prompts, counting each row once, bootstrap over rows \
    for all else (1000 resamples, seed 17)";

/// As many as tell the ends of an interval to about a tenth of its width.
pub const RESAMPLES: usize = 1000;
const SEED: u64 = 17;

/// A score, and what it comes to in each resample.
#[derive(Clone, Debug, PartialEq)]
pub struct Resampled {
    value: f64,
    resamples: Vec<f64>,
    pub count: usize,
}

impl Resampled {
    /// The interval that leaves out as many resamples on either side.
    pub fn score(&self) -> Score {
        let mut sorted = self.resamples.clone();
        sorted.sort_by(f64::total_cmp);
        let out = sorted.len() / 40;
        Score { value: self.value, low: sorted[out], high: sorted[sorted.len() - 1 - out], count: self.count }
    }

    /// The score of a task, whether of one template or several.
    pub fn score_of(&self, metric: Metric) -> Score {
        if metric.is_share() { wilson(self.value, self.count) } else { self.score() }
    }

    /// The mean of several scores, each counting the same, of so many rows. Scores of one task share their draws; those
    /// of different tasks are drawn independently.
    pub fn mean<'r>(scores: impl Iterator<Item = &'r Resampled>, rows: usize) -> Option<Resampled> {
        let scores: Vec<&Resampled> = scores.collect();
        let over = |value: &dyn Fn(&Resampled) -> f64| {
            scores.iter().map(|score| value(score)).sum::<f64>() / scores.len() as f64
        };
        (!scores.is_empty()).then(|| Resampled {
            value: over(&|s| s.value),
            resamples: (0..RESAMPLES).map(|i| over(&|s| s.resamples[i])).collect(),
            count: rows,
        })
    }
}

/// How often each row of a task is in each resample.
pub struct Draws(Vec<Vec<u32>>);

impl Draws {
    /// As many rows drawn of `rows` as there are, [`RESAMPLES`] times.
    pub fn of(task: &str, split: &str, rows: usize) -> Draws {
        let stream = Seed(SEED).stream(&["bootstrap", task, split]);
        let resample = |number: usize| {
            let (stream, mut times) = (stream.at(number as u64), vec![0; rows]);
            (0..rows as u64).for_each(|i| times[(stream.draw(i) % rows as u64) as usize] += 1);
            times
        };
        Draws((0..RESAMPLES).into_par_iter().map(resample).collect())
    }
}

/// The prompts of one template, measured: by metric, the number of each prompt's row and what it adds to the counts.
#[derive(Default)]
pub struct Measured(BTreeMap<Metric, Vec<(usize, Vec<f64>)>>);

impl Measured {
    pub fn push(&mut self, row: usize, counts: Vec<Counts>) {
        for (metric, counts) in counts {
            self.0.entry(metric).or_default().push((row, counts));
        }
    }

    /// Every metric of these prompts, and of each resample of the task's rows.
    pub fn resampled(&self, draws: &Draws) -> BTreeMap<Metric, Resampled> {
        let of = |(metric, prompts): (&Metric, &Vec<(usize, Vec<f64>)>)| {
            let sum = |weight: &(dyn Fn(usize) -> u32 + Sync)| {
                let mut sums = vec![0.0; prompts[0].1.len()];
                for (row, counts) in prompts {
                    let weight = f64::from(weight(*row));
                    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += weight * count);
                }
                metric.of(&sums)
            };
            let value = sum(&|_| 1)?;
            // Where not every row has a prompt of this template, a resample may have none.
            let resamples = draws.0.par_iter().map(|times| sum(&|row| times[row]).unwrap_or(value)).collect();
            Some((*metric, Resampled { value, resamples, count: prompts.len() }))
        };
        self.0.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_wilsons_intervals() {
        let score = wilson(0.8, 100);
        assert!((score.low - 0.7112).abs() < 1e-4 && (score.high - 0.8666).abs() < 1e-4, "{score:?}");
        let all = wilson(1.0, 20);
        assert!(all.high == 1.0 && all.low > 0.8 && all.low < 0.9);
    }

    /// The mean of uniform numbers: an interval of plus and minus 1.96 standard errors, a tenth of its width aside.
    #[test]
    fn a_bootstrap_finds_the_error_of_a_mean() {
        let rows = 400;
        let mut measured = Measured::default();
        for row in 0..rows {
            measured.push(row, vec![(Metric::F1, vec![(row as f64 + 0.5) / rows as f64, 1.0])]);
        }
        let resampled = measured.resampled(&Draws::of("task", "test", rows));
        let (score, error) = (resampled[&Metric::F1].score(), (1.0 / 12.0 / rows as f64).sqrt());
        assert!((score.value - 0.5).abs() < 1e-12 && score.count == rows);
        for end in [0.5 - score.low, score.high - 0.5] {
            assert!((end / (Z * error) - 1.0).abs() < 0.1, "{score:?}");
        }
        // Two means of the same draws vary together, of different tasks independently: by a factor of √2 less.
        let other = measured.resampled(&Draws::of("other", "test", rows));
        let width = |scores: [&Resampled; 2]| {
            let score = Resampled::mean(scores.into_iter(), rows).unwrap().score();
            score.high - score.low
        };
        let (same, different) = (&resampled[&Metric::F1], &other[&Metric::F1]);
        assert_eq!(width([same, same]), score.high - score.low);
        let ratio = width([same, same]) / width([same, different]);
        assert!((ratio / 2f64.sqrt() - 1.0).abs() < 0.1, "{ratio}");
    }
}
