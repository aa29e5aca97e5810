//! The metrics, and which of them a task is known by.

use serde::{Serialize, Serializer};

use super::{bleu, rouge, squad};

/// What answers are measured by. All scores are from 0 to 1, those of BLEU and chrF too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Share of the prompts whose right option is the most likely one.
    Accuracy,
    /// The same, by likelihood a token.
    AccuracyNormalised,
    /// Share of the answers with the words of the reference, as SQuAD compares.
    ExactMatch,
    /// Share of the answers that are the reference, character by character, but for spaces around them.
    Verbatim,
    /// Words shared with the reference, as SQuAD counts.
    F1,
    Bleu,
    Chrf,
    Rouge1,
    Rouge2,
    RougeL,
}

impl Metric {
    pub const ALL: [Metric; 10] = [
        Metric::Accuracy,
        Metric::AccuracyNormalised,
        Metric::ExactMatch,
        Metric::Verbatim,
        Metric::F1,
        Metric::Bleu,
        Metric::Chrf,
        Metric::Rouge1,
        Metric::Rouge2,
        Metric::RougeL,
    ];

    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::AccuracyNormalised => "accuracy_normalised",
            Metric::ExactMatch => "exact_match",
            Metric::Verbatim => "verbatim",
            Metric::F1 => "f1",
            Metric::Bleu => "bleu",
            Metric::Chrf => "chrf",
            Metric::Rouge1 => "rouge_1",
            Metric::Rouge2 => "rouge_2",
            Metric::RougeL => "rouge_l",
        }
    }

    /// As tables have it.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::AccuracyNormalised => "accuracy a token",
            Metric::ExactMatch => "exact match",
            Metric::Verbatim => "verbatim",
            Metric::F1 => "F1",
            Metric::Bleu => "BLEU",
            Metric::Chrf => "chrF",
            Metric::Rouge1 => "ROUGE-1",
            Metric::Rouge2 => "ROUGE-2",
            Metric::RougeL => "ROUGE-L",
        }
    }

    /// Whether it is a share of the prompts: each is right or wrong.
    pub fn is_share(self) -> bool {
        matches!(self, Metric::Accuracy | Metric::AccuracyNormalised | Metric::ExactMatch | Metric::Verbatim)
    }

    /// How it was computed, where there is more than one way.
    pub fn signature(self) -> Option<&'static str> {
        match self {
            Metric::Bleu => Some(bleu::BLEU_SIGNATURE),
            Metric::Chrf => Some(bleu::CHRF_SIGNATURE),
            Metric::Rouge1 | Metric::Rouge2 | Metric::RougeL => Some(rouge::SIGNATURE),
            _ => None,
        }
    }

    /// The metric of counts that were summed over prompts: a mean, but for BLEU and chrF. `None` where nothing was
    /// counted.
    pub fn of(self, counts: &[f64]) -> Option<f64> {
        match self {
            Metric::Bleu => Some(bleu::bleu(counts)),
            Metric::Chrf => Some(bleu::chrf(counts)),
            _ => (counts[1] > 0.0).then(|| counts[0] / counts[1]),
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What one prompt adds to the counts that a metric is computed from.
pub type Counts = (Metric, Vec<f64>);

fn mean_of(metric: Metric, score: f64) -> Counts {
    (metric, vec![score, 1.0])
}

/// The counts of a prompt whose options were ranked.
pub fn of_choice(right: usize, by_sum: usize, by_token: usize) -> Vec<Counts> {
    let share = |metric, chosen| mean_of(metric, f64::from(u8::from(chosen == right)));
    vec![share(Metric::Accuracy, by_sum), share(Metric::AccuracyNormalised, by_token)]
}

/// The counts of a prompt that was answered in words.
pub fn of_answer(answer: &str, reference: &str) -> Vec<Counts> {
    let share = |metric, equal| mean_of(metric, f64::from(u8::from(equal)));
    let [one, two, longest] = rouge::rouge(answer, reference);
    vec![
        share(Metric::ExactMatch, squad::exact_match(answer, reference)),
        share(Metric::Verbatim, answer.trim() == reference.trim()),
        mean_of(Metric::F1, squad::f1(answer, reference)),
        (Metric::Bleu, bleu::bleu_counts(answer, reference).to_vec()),
        (Metric::Chrf, bleu::chrf_counts(answer, reference).to_vec()),
        mean_of(Metric::Rouge1, one),
        mean_of(Metric::Rouge2, two),
        mean_of(Metric::RougeL, longest),
    ]
}

/// The metric that a task is known by, in means over tasks and in charts: accuracy where options were ranked, else by
/// its cluster. Those of FLAN are named, by the paper's names and by its code's; a cluster of one's own has F1.
pub fn headline(ranked: bool, cluster: &str, code_cluster: &str) -> Metric {
    if ranked {
        return Metric::Accuracy;
    }
    match (cluster, code_cluster) {
        ("translation", _) | (_, "translation") => Metric::Bleu,
        ("summarization" | "struct-to-text", _) | (_, "summarization" | "structure_to_text") => Metric::Rouge1,
        // Short answers that are right or wrong.
        ("closed-book-qa", _) | (_, "open_domain_qa" | "math") => Metric::ExactMatch,
        // What is asked for is the very thing that SQuAD's comparison ignores: case, punctuation, spaces.
        (_, "text_formatting") => Metric::Verbatim,
        // Questions about a text, and all else.
        _ => Metric::F1,
    }
}
