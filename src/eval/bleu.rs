//! BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a corpus, as sacrebleu 2.5.1 computes them (Post 2018).
//!
//! Both are functions of counts that add up over the pairs of a corpus, so the score of any sample of pairs is had
//! from sums. BLEU: one reference, upper and lower case told apart, tokens of mteval-v13a, up to four of them in a row,
//! exponential smoothing. chrF2: up to six characters in a row, without spaces, recall counting twice.

use std::sync::LazyLock;

use regex::Regex;

use super::overlap::{common, stretches};

/// Longest stretch of tokens that BLEU looks at.
const WORDS: usize = 4;
/// Longest stretch of characters that chrF looks at.
const CHARACTERS: usize = 6;

/// Numbers that a pair adds to BLEU: lengths of answer and reference, then for each length of stretch how many are
/// right and how many there are.
pub const BLEU_COUNTS: usize = 2 + 2 * WORDS;
/// Numbers that a pair adds to chrF: for each length of stretch, those of the answer, of the reference, and in both.
pub const CHRF_COUNTS: usize = 3 * CHARACTERS;

/// How BLEU was computed, as sacrebleu would say it.
pub const BLEU_SIGNATURE: &str =
    concat!("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:flanc-", env!("CARGO_PKG_VERSION"));
pub const CHRF_SIGNATURE: &str =
    concat!("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:flanc-", env!("CARGO_PKG_VERSION"));

/// What Python's `str.split` splits at: white space, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Tokens as mteval-v13a makes them: punctuation stands by itself, but full stop and comma within numbers.
pub fn tokens_13a(text: &str) -> Vec<String> {
    static STEPS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let step = |pattern: &str| Regex::new(pattern).expect("the patterns are constants");
        [
            (step(r"([{-~\[-` -&(-+:-@/])"), " $1 "),
            (step(r"([^0-9])([.,])"), "$1 $2 "),
            (step(r"([.,])([^0-9])"), " $1 $2"),
            (step(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, character);
    }
    line = format!(" {line} ");
    for (pattern, by) in STEPS.iter() {
        line = pattern.replace_all(&line, *by).into_owned();
    }
    line.split(is_space).filter(|token| !token.is_empty()).map(str::to_owned).collect()
}

/// What a pair adds to the counts of BLEU.
pub fn bleu_counts(answer: &str, reference: &str) -> [f64; BLEU_COUNTS] {
    let (answer, reference) = (tokens_13a(answer), tokens_13a(reference));
    let mut counts = [0.0; BLEU_COUNTS];
    (counts[0], counts[1]) = (answer.len() as f64, reference.len() as f64);
    for n in 1..=WORDS {
        counts[2 * n] = common(&answer, &reference, n) as f64;
        counts[2 * n + 1] = stretches(answer.len(), n) as f64;
    }
    counts
}

/// BLEU of the counts of a corpus, from 0 to 1.
pub fn bleu(counts: &[f64]) -> f64 {
    let (length, expected, stretches) = (counts[0], counts[1], &counts[2..]);
    if stretches.chunks(2).all(|n| n[0] == 0.0) {
        return 0.0;
    }
    let (mut smoothing, mut logarithms) = (1.0, 0.0);
    for n in stretches.chunks(2) {
        let (right, all) = (n[0], n[1]);
        logarithms += match (right, all) {
            // The corpus has no stretch of this length. sacrebleu takes -9999999999 for the logarithm of zero.
            (_, 0.0) => return 0.0,
            (0.0, _) => {
                smoothing *= 2.0;
                (1.0 / (smoothing * all)).ln()
            }
            _ => (right / all).ln(),
        };
    }
    let brevity = if length < expected { (1.0 - expected / length).exp() } else { 1.0 };
    brevity * (logarithms / WORDS as f64).exp()
}

/// What a pair adds to the counts of chrF.
pub fn chrf_counts(answer: &str, reference: &str) -> [f64; CHRF_COUNTS] {
    let characters = |text: &str| text.chars().filter(|&c| !is_space(c)).collect::<Vec<char>>();
    let (answer, reference) = (characters(answer), characters(reference));
    let mut counts = [0.0; CHRF_COUNTS];
    for n in 1..=CHARACTERS {
        let expected = stretches(reference.len(), n);
        let made = if expected > 0 { stretches(answer.len(), n) } else { 0 };
        counts[3 * (n - 1)..3 * n].copy_from_slice(&[
            made as f64,
            expected as f64,
            common(&answer, &reference, n) as f64,
        ]);
    }
    counts
}

/// chrF2 of the counts of a corpus, from 0 to 1: means of precision and recall over the lengths that occur.
pub fn chrf(counts: &[f64]) -> f64 {
    let occurring: Vec<&[f64]> = counts.chunks(3).filter(|n| n[0] > 0.0 && n[1] > 0.0).collect();
    let mean = |of: usize| occurring.iter().map(|n| n[2] / n[of]).sum::<f64>() / occurring.len().max(1) as f64;
    let (precision, recall) = (mean(0), mean(1));
    if precision + recall > 0.0 { 5.0 * precision * recall / (4.0 * precision + recall) } else { 0.0 }
}
