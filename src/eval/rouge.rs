//! ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of a pair, F-measure, as the package rouge-score 0.1.2 computes them
//! without its stemmer.

use super::overlap::{common, harmonic, stretches};

/// How ROUGE was computed.
pub const SIGNATURE: &str =
    "f-measure|nrefs:1|tokens:[a-z0-9]+ of the text in lower case|stemmer:no|as rouge-score 0.1.2";

/// Letters and digits of ASCII, in lower case; whatever else stands in the text divides.
fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let tokens = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|token| !token.is_empty());
    tokens.map(str::to_owned).collect()
}

/// ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1.
pub fn rouge(answer: &str, reference: &str) -> [f64; 3] {
    let (answer, reference) = (tokens(answer), tokens(reference));
    let f = |shared: usize, n: usize| {
        let of = |tokens: &[String]| shared as f64 / stretches(tokens.len(), n).max(1) as f64;
        harmonic(of(&answer), of(&reference))
    };
    [
        f(common(&answer, &reference, 1), 1),
        f(common(&answer, &reference, 2), 2),
        f(longest_common_subsequence(&answer, &reference), 1),
    ]
}

/// Length of the longest sequence that both contain, in this order, gaps allowed.
fn longest_common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    // By item of `a`: lengths for the beginnings of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if x == y { diagonal + 1 } else { above.max(lengths[j]) };
            diagonal = above;
        }
    }
    lengths[b.len()]
}
