//! Where a text can be cut so that its parts, encoded one by one, give the ids of the whole.
//!
//! The ten prompts of a row hold the same texts. Encoded once between its first cut and its last, a text costs each
//! prompt no more than its ends. A cut lies before a single space that stands between a visible ASCII character and
//! an ASCII letter: `word| word`. That is enough where
//!
//! - the pre-tokenizer splits there, whatever stands further off on either side. GPT-2's pattern and its successors end
//!   a run of letters, of digits or of marks before a space, and begin the next with `space + letters`; white space
//!   splitters and `▁` splitters split at every space;
//! - normalizers change characters by their neighbours at most, and an ASCII letter after a space is no neighbour's
//!   business;
//! - the model works within a pre-token, and draws no lots (BPE dropout);
//! - no added token that texts may match reaches across.
//!
//! Every other `tokenizer.json` has no cuts: its texts are encoded whole. Property tests hold joined parts against whole
//! texts for every family.

use std::ops::Range;

use serde_json::Value;

/// Whether texts of this tokenizer may be cut.
pub fn allowed(definition: &Value) -> bool {
    normalizer_is_local(&definition["normalizer"])
        && pre_tokenizer_splits(&definition["pre_tokenizer"])
        && model_is_local(&definition["model"])
        && definition["added_tokens"].as_array().into_iter().flatten().all(stays_on_one_side)
}

/// The stretch between the first and the last cut of a text.
pub fn middle(text: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let is_cut = |&i: &usize| {
        bytes[i] == b' ' && bytes[i - 1].is_ascii_graphic() && bytes.get(i + 1).is_some_and(u8::is_ascii_alphabetic)
    };
    let first = (1..bytes.len()).find(is_cut)?;
    let last = (first..bytes.len()).rev().find(is_cut)?;
    (first < last).then_some(first..last)
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

/// Patterns that split before a space between a visible character and a letter: those of GPT-2, of cl100k_base and
/// Llama 3, and of Qwen 2.
pub const PATTERNS: [&str; 3] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

fn pre_tokenizer_splits(pre_tokenizer: &Value) -> bool {
    match kind(pre_tokenizer) {
        "ByteLevel" => pre_tokenizer["use_regex"] != false,
        "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => true,
        "Metaspace" => pre_tokenizer["split"] != false,
        "Sequence" => {
            let Some(all) = pre_tokenizer["pretokenizers"].as_array() else { return false };
            match &all[..] {
                [split, bytes] if kind(split) == "Split" => {
                    split["behavior"] == "Isolated"
                        && split["invert"] != true
                        && split["pattern"]["Regex"].as_str().is_some_and(|pattern| PATTERNS.contains(&pattern))
                        && kind(bytes) == "ByteLevel"
                        && bytes["use_regex"] == false
                        && bytes["add_prefix_space"] == false
                }
                _ => false,
            }
        }
        _ => false,
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
    let holds_cut = token["content"]
        .as_str()
        .is_none_or(|text| text.as_bytes().windows(2).any(|pair| pair[0].is_ascii_graphic() && pair[1] == b' '));
    !holds_cut && ["lstrip", "rstrip", "single_word"].iter().all(|flag| token[flag] != true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_lie_before_single_spaces_between_words() {
        let text = "«Well», he said:  it's 3 o'clock now\nor so";
        let range = middle(text).unwrap();
        assert_eq!(&text[range], " he said:  it's 3 o'clock now\nor");
        for none in ["", " ", "word", "one word", "a  b", "1 2 3 4", "é è à", "one\ntwo three"] {
            assert_eq!(middle(none), None, "{none:?}");
        }
    }
}
