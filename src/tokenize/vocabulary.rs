//! What a `tokenizer.json` says about its tokens, read from the file itself and so the same for both engines.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::Value;

use super::Control;
use crate::diag::{Diagnostic, Result};

/// Largest id that is believed; a wild one in a damaged file would ask for memory without bound.
const LARGEST_ID: u64 = 1 << 24;

/// A token that is matched in the text before the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub text: String,
    /// Special ones are never matched in data; see the module above.
    pub special: bool,
}

#[derive(Debug)]
pub struct Vocabulary {
    /// By id; empty where there is none.
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
    /// By id.
    pub added: Vec<AddedToken>,
    /// The ids that no text may produce, as maximal runs in ascending order.
    controls: Vec<Range<u32>>,
    /// What the model writes for a character it lacks; `None` if it can write every byte.
    pub unknown: Option<u32>,
    spelling: Spelling,
}

/// How a model writes a character that is not in its vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Bytes under the printable aliases of GPT-2: a space is `Ġ`.
    ByteLevel,
    /// Bytes as `<0x20>`, for what has no token of its own.
    ByteFallback,
    /// The unknown token.
    Unknown,
}

impl Vocabulary {
    /// Reads model vocabulary and added tokens. Fails if they are absent, malformed, or if an id stands for two tokens.
    pub fn read(name: &str, definition: &Value) -> Result<Vocabulary> {
        let wrong = |what: String| {
            Diagnostic::error("bad-tokenizer", format!("`{name}`: {what}")).expected("a Hugging Face tokenizer.json")
        };
        let model = &definition["model"];
        let mut vocabulary = Vocabulary {
            pieces: Vec::new(),
            ids: HashMap::new(),
            added: Vec::new(),
            controls: Vec::new(),
            unknown: None,
            spelling: Spelling::Unknown,
        };
        match &model["vocab"] {
            Value::Object(words) => {
                vocabulary.ids.reserve(words.len());
                for (word, id) in words {
                    let id = id.as_u64().ok_or_else(|| wrong(format!("the id of {word:?} is not a number")))?;
                    vocabulary.insert(word, id).map_err(&wrong)?;
                }
            }
            Value::Array(words) => {
                for (id, word) in words.iter().enumerate() {
                    let word = word[0].as_str().ok_or_else(|| wrong(format!("word {id} has no text")))?;
                    vocabulary.insert(word, id as u64).map_err(&wrong)?;
                }
            }
            _ => return Err(wrong("its model has no vocabulary".to_owned()).into()),
        }
        for token in definition["added_tokens"].as_array().into_iter().flatten() {
            let (Some(id), Some(text)) = (token["id"].as_u64(), token["content"].as_str()) else {
                return Err(wrong(format!("an added token lacks its id or its text: {token}")).into());
            };
            if text.is_empty() {
                continue; // the engines ignore it as well
            }
            vocabulary.insert(text, id).map_err(&wrong)?;
            let special = token["special"].as_bool().unwrap_or(false);
            vocabulary.added.push(AddedToken { id: id as u32, text: text.to_owned(), special });
        }
        vocabulary.added.sort_by_key(|t| t.id);
        vocabulary.spelling = vocabulary.spelling_of(model);
        vocabulary.unknown = match vocabulary.spelling {
            Spelling::Unknown => vocabulary.unknown_of(model),
            Spelling::ByteLevel | Spelling::ByteFallback => None,
        };
        vocabulary.controls =
            runs(vocabulary.added.iter().filter(|t| t.special && Some(t.id) != vocabulary.unknown).map(|t| t.id));
        Ok(vocabulary)
    }

    fn insert(&mut self, word: &str, id: u64) -> Result<(), String> {
        if id > LARGEST_ID {
            return Err(format!("the id of {word:?} is {id}, more than {LARGEST_ID}"));
        }
        let slot = id as usize;
        if self.pieces.len() <= slot {
            self.pieces.resize(slot + 1, String::new());
        }
        let known = &self.pieces[slot];
        if !known.is_empty() && known != word {
            return Err(format!("id {id} stands for both {known:?} and {word:?}"));
        }
        self.pieces[slot] = word.to_owned();
        self.ids.insert(word.to_owned(), id as u32);
        Ok(())
    }

    fn spelling_of(&self, model: &Value) -> Spelling {
        if model["type"] == "WordPiece" || model["type"] == "WordLevel" {
            Spelling::Unknown
        } else if (0..=255).all(|b| self.ids.contains_key(&format!("<0x{b:02X}>"))) && model["byte_fallback"] == true {
            Spelling::ByteFallback
        } else if (0..=255).all(|b| self.ids.contains_key(byte_alias(b).encode_utf8(&mut [0; 4]))) {
            Spelling::ByteLevel
        } else {
            Spelling::Unknown
        }
    }

    fn unknown_of(&self, model: &Value) -> Option<u32> {
        let by_name = model["unk_token"].as_str().and_then(|token| self.id(token));
        by_name.or_else(|| model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok()))
    }

    /// One more than the greatest id.
    pub fn size(&self) -> usize {
        self.pieces.len()
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn piece(&self, id: u32) -> &str {
        self.pieces.get(id as usize).map_or("", String::as_str)
    }

    /// Replaces control tokens among `ids[start..]` by their spelling.
    pub fn spell_controls(&self, ids: &mut Vec<u32>, start: usize) {
        // One pass a run, of which a vocabulary has one to three, is a comparison that the compiler vectorizes.
        let found = self.controls.iter().any(|run| {
            let (first, length) = (run.start, run.end - run.start);
            ids[start..].iter().fold(false, |found, id| found | (id.wrapping_sub(first) < length))
        });
        if found {
            self.spell_found(ids, start);
        }
    }

    #[cold]
    fn spell_found(&self, ids: &mut Vec<u32>, start: usize) {
        let found = ids.split_off(start);
        for id in found {
            if self.is_control(id) { self.spell(self.piece(id), ids) } else { ids.push(id) }
        }
    }

    /// The control token of this text.
    pub fn control(&self, text: &str) -> Option<Control> {
        let id = self.id(text).filter(|&id| self.is_control(id))?;
        Some(Control { id, text: text.to_owned() })
    }

    pub fn is_control(&self, id: u32) -> bool {
        self.controls.iter().any(|run| run.contains(&id))
    }

    /// Appends the tokens of single characters, or else bytes, that make up a text.
    ///
    /// What the model lacks becomes its unknown token, or nothing if it has none, as both engines do.
    pub fn spell(&self, text: &str, ids: &mut Vec<u32>) {
        for character in text.chars() {
            let mut buffer = [0; 4];
            let utf8: &str = character.encode_utf8(&mut buffer);
            let whole = self.id(utf8).filter(|&id| self.spelling != Spelling::ByteLevel && !self.is_control(id));
            match (whole, self.spelling) {
                (Some(id), _) => ids.push(id),
                (None, Spelling::ByteLevel) => {
                    ids.extend(utf8.bytes().filter_map(|b| self.id(byte_alias(b).encode_utf8(&mut [0; 4]))))
                }
                (None, Spelling::ByteFallback) => {
                    ids.extend(utf8.bytes().filter_map(|b| self.id(&format!("<0x{b:02X}>"))))
                }
                (None, Spelling::Unknown) => ids.extend(self.unknown),
            }
        }
    }
}

/// Ascending ids as maximal runs.
fn runs(ids: impl Iterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some(run) if run.end == id => run.end += 1,
            Some(run) if run.contains(&id) => {}
            _ => runs.push(id..id + 1),
        }
    }
    runs
}

/// The printable character under which byte-level vocabularies write a byte: itself if it is printable, else the next
/// unused one from U+0100 on.
fn byte_alias(byte: u8) -> char {
    let is_itself = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_itself(byte) {
        return char::from(byte);
    }
    let others_before = (0..byte).filter(|&b| !is_itself(b)).count() as u32;
    char::from_u32(0x100 + others_before).unwrap_or(char::REPLACEMENT_CHARACTER) // at most U+0143
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_aliases_of_gpt2() {
        assert_eq!(['Ġ', 'Ċ', 'ĉ', '!', 'Ā', 'ġ'], [b' ', b'\n', b'\t', b'!', 0, 0x7F].map(byte_alias));
        assert_eq!(byte_alias(0xAD), 'Ń');
    }

    #[test]
    fn runs_are_maximal() {
        assert_eq!(runs([0, 1, 2, 7, 9, 10].into_iter()), [0..3, 7..8, 9..11]);
    }
}
