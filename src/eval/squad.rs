//! Exact match and F1 of a pair, as SQuAD has them (Rajpurkar et al. 2016).

use super::overlap::{common, harmonic};

/// Words of a text in lower case, without punctuation and articles.
fn words(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_owned).collect()
}

/// Whether both have the same words in the same order.
pub fn exact_match(answer: &str, reference: &str) -> bool {
    words(answer) == words(reference)
}

/// Harmonic mean of precision and recall of the words.
pub fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let shared = common(&answer, &reference, 1) as f64;
    harmonic(shared / answer.len() as f64, shared / reference.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_as_squad_does() {
        assert!(exact_match("The Eiffel Tower.", "eiffel tower"));
        assert!(!exact_match("tower", "eiffel tower"));
        assert_eq!(f1("the big tower", "eiffel tower"), 0.5);
        assert_eq!(f1("", "a"), 1.0);
        assert_eq!(f1("x", ""), 0.0);
        // A word counts as often as it occurs in both.
        assert_eq!(f1("yes yes", "yes"), 2.0 / 3.0);
    }
}
