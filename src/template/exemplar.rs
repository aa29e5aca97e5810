//! Exemplars: examples that stand, answered, before the one that is asked about.

use std::borrow::Cow;

/// An example with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemplar {
    pub inputs: String,
    pub targets: String,
}

/// The marks that stand around exemplars and inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrapper {
    /// An exemplar's targets stand on the line below its inputs; a blank line follows.
    None,
    /// The same, and a line break after the inputs: the answer goes on where the text ends. So are models asked that
    /// were not tuned.
    Continuation,
    /// `0 … X 1 … X 0 … X 1 FLAN`, the dialogue markers of FLAN v1.
    FlanV1,
}

/// The inputs of a prompt, after its exemplars.
///
/// FLAN v1 (google-research/FLAN, `flan/few_shot.py` and `flan/preprocessors.py`) marks turns with `0` and `1`, ends
/// them with ` X `, strips the whole and names itself at the end.
pub fn assemble<'t>(exemplars: &[&Exemplar], inputs: &'t str, wrapper: Wrapper) -> Cow<'t, str> {
    match wrapper {
        Wrapper::None if exemplars.is_empty() => Cow::Borrowed(inputs),
        Wrapper::None | Wrapper::Continuation => {
            let mut text: String = exemplars.iter().map(|e| block(e)).collect();
            text.push_str(inputs);
            if wrapper == Wrapper::Continuation {
                text.push('\n');
            }
            Cow::Owned(text)
        }
        Wrapper::FlanV1 => {
            let turns = exemplars.iter().map(|e| format!("0 {} X 1 {} X ", e.inputs, e.targets));
            let text = format!("{}0 {inputs} X 1", turns.collect::<String>());
            Cow::Owned(format!("{} FLAN", text.trim()))
        }
    }
}

/// What an exemplar adds to a prompt without markers.
pub fn block(exemplar: &Exemplar) -> String {
    format!("{}\n{}\n\n", exemplar.inputs, exemplar.targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flan_v1_is_what_its_code_makes_of_strings() {
        let exemplar = |inputs: &str, targets: &str| Exemplar { inputs: inputs.into(), targets: targets.into() };
        let (one, two) = (exemplar("q1", "a1"), exemplar("q2", "a2"));
        assert_eq!(assemble(&[], "q", Wrapper::FlanV1), "0 q X 1 FLAN");
        assert_eq!(assemble(&[&one, &two], "q", Wrapper::FlanV1), "0 q1 X 1 a1 X 0 q2 X 1 a2 X 0 q X 1 FLAN");
        assert_eq!(assemble(&[&one], "q", Wrapper::None), "q1\na1\n\nq");
        assert_eq!(assemble(&[&one], "q", Wrapper::Continuation), "q1\na1\n\nq\n");
        assert_eq!(assemble(&[], "q", Wrapper::Continuation), "q\n");
    }
}
