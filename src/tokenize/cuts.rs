//! Where a text can be cut so that its parts, encoded one by one, give the ids of the whole.
//!
//! The ten prompts of a row hold the same texts. Encoded once between its first cut and its last, a text costs each
//! prompt no more than its ends; and where a cut falls between two texts, their ends are the same in every prompt. A cut
//! lies after a visible ASCII character, before a single space that another one follows (`word| word`), and, with most
//! tokenizers, before the end of a line. That is enough where
//!
//! - the pre-tokenizer splits there, whatever stands further off on either side. GPT-2's pattern and its successors end
//!   a run of letters, of digits or of marks before white space, which no pre-token has inside it, and do not look back;
//!   white space splitters and `▁` splitters split at every space;
//! - normalizers change characters by their neighbours at most, and ASCII beside white space is no neighbour's business;
//! - the model works within a pre-token, and draws no lots (BPE dropout);
//! - no added token that texts may match reaches across.
//!
//! Every other `tokenizer.json` has no cuts: its texts are encoded whole. Property tests hold joined parts against whole
//! texts for every family.

use serde_json::Value;

/// Where a tokenizer's texts may be cut besides before single spaces: before the end of a line that stands after
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuts {
    /// nothing: `▁` splitters do not split there.
    Spaces,
    /// a letter or a digit; other marks take the ends of lines with them.
    Words,
    /// anything visible.
    Lines,
}

impl Cuts {
    /// What a tokenizer allows, if it does.
    pub fn of(definition: &Value) -> Option<Cuts> {
        let allowed = normalizer_is_local(&definition["normalizer"])
            && model_is_local(&definition["model"])
            && definition["added_tokens"].as_array().into_iter().flatten().all(stays_on_one_side);
        if allowed { of_pre_tokenizer(&definition["pre_tokenizer"]) } else { None }
    }

    /// Whether a cut lies between `before`, the last byte of a text, and `after`, which goes on.
    pub fn between(self, before: u8, after: &[u8]) -> bool {
        match after {
            [b' ', next, ..] => before.is_ascii_graphic() && next.is_ascii_graphic(),
            [b'\n', ..] => match self {
                Cuts::Spaces => false,
                Cuts::Words => before.is_ascii_alphanumeric(),
                Cuts::Lines => before.is_ascii_graphic(),
            },
            _ => false,
        }
    }

    /// The first and the last cut of a text; they may be the same.
    pub fn ends(self, text: &str) -> Option<(usize, usize)> {
        let bytes = text.as_bytes();
        let is_cut = |&i: &usize| self.between(bytes[i - 1], &bytes[i..]);
        let first = (1..bytes.len()).find(is_cut)?;
        Some((first, (first..bytes.len()).rev().find(is_cut)?))
    }
}

fn kind(component: &Value) -> &str {
    component["type"].as_str().unwrap_or_default()
}

fn normalizer_is_local(normalizer: &Value) -> bool {
    match kind(normalizer) {
        "" => normalizer.is_null(),
        "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "BertNormalizer" => true,
        "Sequence" => normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(normalizer_is_local)),
        _ => false,
    }
}

/// Patterns that split before white space after a visible character: those of GPT-2, of cl100k_base and Llama 3, and of
/// Qwen 2. In the latter two, marks take the ends of lines behind them with them.
pub const PATTERNS: [(&str, Cuts); 3] = [
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Cuts::Lines),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Cuts::Words,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Cuts::Words,
    ),
];

fn of_pre_tokenizer(pre_tokenizer: &Value) -> Option<Cuts> {
    match kind(pre_tokenizer) {
        // A space that is put before every text that does not begin with one would be put before lines, too.
        "ByteLevel" if pre_tokenizer["use_regex"] == false => None,
        "ByteLevel" if pre_tokenizer["add_prefix_space"] == false => Some(Cuts::Lines),
        "ByteLevel" => Some(Cuts::Spaces),
        "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => Some(Cuts::Lines),
        "Metaspace" => (pre_tokenizer["split"] != false).then_some(Cuts::Spaces),
        "Sequence" => {
            let [split, bytes] = &pre_tokenizer["pretokenizers"].as_array()?[..] else { return None };
            let pattern = split["pattern"]["Regex"].as_str()?;
            let splits = kind(split) == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] != true
                && kind(bytes) == "ByteLevel"
                && bytes["use_regex"] == false
                && bytes["add_prefix_space"] == false;
            PATTERNS.iter().find(|(known, _)| splits && *known == pattern).map(|(_, cuts)| *cuts)
        }
        _ => None,
    }
}

fn model_is_local(model: &Value) -> bool {
    match kind(model) {
        "BPE" => model["dropout"].as_f64().unwrap_or(0.0) == 0.0,
        "Unigram" | "WordPiece" | "WordLevel" => true,
        _ => false,
    }
}

/// Whether an added token, if texts may match it at all, neither holds a cut nor takes white space beside itself.
fn stays_on_one_side(token: &Value) -> bool {
    if token["special"] == true {
        return true;
    }
    let holds_cut = token["content"].as_str().is_none_or(|text| {
        text.as_bytes().windows(2).any(|pair| pair[0].is_ascii_graphic() && b" \n".contains(&pair[1]))
    });
    !holds_cut && ["lstrip", "rstrip", "single_word"].iter().all(|flag| token[flag] != true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_before_single_spaces_and_the_ends_of_lines() {
        let text = "«Well», he said:  it's 3 o'clock now\nor so";
        let between = |cuts: Cuts, text: &'static str| cuts.ends(text).map(|(first, last)| &text[first..last]);
        for cuts in [Cuts::Spaces, Cuts::Words, Cuts::Lines] {
            assert_eq!(between(cuts, text).unwrap(), " he said:  it's 3 o'clock now\nor");
            assert_eq!(between(cuts, "one (word)"), Some(""));
            for none in ["", " ", "\n", "word", "a  b", "é è à", "one ", " two", "é\n"] {
                assert_eq!(between(cuts, none), None, "{none:?}");
            }
        }
        assert_eq!(between(Cuts::Words, "one.\ntwo\n\n3\n"), Some("\n\n3"));
        assert_eq!(between(Cuts::Lines, "one.\ntwo\n\n3\n"), Some("\ntwo\n\n3"));
        assert_eq!(between(Cuts::Spaces, "one.\ntwo\n\n3\n"), None);
    }
}
