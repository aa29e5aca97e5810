//! Scores of answers, and how sure they are.

/// How an answer is compared with the reference: lower case, without punctuation, articles and extra spaces, as SQuAD
/// does (Rajpurkar et al. 2016).
pub fn normalised(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_owned).collect()
}

/// 1 if both say the same.
pub fn exact_match(answer: &str, reference: &str) -> f64 {
    f64::from(u8::from(normalised(answer) == normalised(reference)))
}

/// Harmonic mean of precision and recall of the words.
pub fn f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalised(answer), normalised(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let mut left = reference.clone();
    let common = answer.iter().filter(|word| match left.iter().position(|l| l == *word) {
        Some(at) => {
            left.swap_remove(at);
            true
        }
        None => false,
    });
    let common = common.count() as f64;
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Mean {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    pub count: usize,
}

/// 97.5 % of a normal distribution lie below it.
const Z: f64 = 1.959_963_984_540_054;

impl Mean {
    /// Of scores from 0 to 1, by Wilson's interval, which stays between 0 and 1 and does not shrink to nothing where
    /// all scores are the same. Of scores between 0 and 1 it is too wide, never too narrow: their variance is at most
    /// that of zeros and ones with the same mean.
    pub fn of(scores: &[f64]) -> Option<Mean> {
        if scores.is_empty() {
            return None;
        }
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let denominator = 1.0 + Z * Z / count;
        let centre = (mean + Z * Z / (2.0 * count)) / denominator;
        let half = Z / denominator * (mean * (1.0 - mean) / count + Z * Z / (4.0 * count * count)).sqrt();
        Some(Mean { mean, low: (centre - half).max(0.0), high: (centre + half).min(1.0), count: scores.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_as_squad_does() {
        assert_eq!(exact_match("The Eiffel Tower.", "eiffel tower"), 1.0);
        assert_eq!(exact_match("tower", "eiffel tower"), 0.0);
        assert_eq!(f1("the big tower", "eiffel tower"), 0.5);
        assert_eq!(f1("", "a"), 1.0);
        assert_eq!(f1("x", ""), 0.0);
        // A word counts as often as it occurs in both.
        assert_eq!(f1("yes yes", "yes"), 2.0 / 3.0);
    }

    #[test]
    fn intervals_are_wilsons() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i < 80)).collect();
        let mean = Mean::of(&scores).unwrap();
        assert!((mean.mean, mean.count) == (0.8, 100));
        assert!((mean.low - 0.7112).abs() < 1e-4 && (mean.high - 0.8666).abs() < 1e-4, "{mean:?}");
        let all = Mean::of(&[1.0; 20]).unwrap();
        assert!(all.high == 1.0 && all.low > 0.8 && all.low < 0.9);
        assert_eq!(Mean::of(&[]), None);
    }
}
