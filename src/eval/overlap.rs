//! Counting what two sequences have in common: what BLEU, chrF, ROUGE and F1 are made of.

use std::collections::BTreeMap;

/// Stretches of length `n` in a sequence of `length` items.
pub fn stretches(length: usize, n: usize) -> usize {
    (length + 1).saturating_sub(n)
}

/// Stretches of length `n` that both have; one that occurs several times counts as often as in the one that has it
/// less.
pub fn common<T: Ord>(a: &[T], b: &[T], n: usize) -> usize {
    let mut left: BTreeMap<&[T], usize> = BTreeMap::new();
    for stretch in b.windows(n) {
        *left.entry(stretch).or_default() += 1;
    }
    let found = a.windows(n).filter(|stretch| match left.get_mut(stretch) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    });
    found.count()
}

/// Harmonic mean; 0 where both are.
pub fn harmonic(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}
