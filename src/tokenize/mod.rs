//! Text to token ids: the ids that Hugging Face's `tokenizers` gives for a `tokenizer.json`, fast and proven.
//!
//! Two engines read the same file. *Fast* is `tokenizers` 1.0.0-rc.3, dozens of times quicker and young;
//! the *reference* is 0.23.2, whose ids the world's models were trained on. The fast one does the work.
//! [`Tokenizer::verify`] first lets both encode a fixed [`battery`] of awkward strings, and during a compile
//! [`Tokenizer::check_sample`] repeats that for one prompt in a thousand: the first difference is an error. A file
//! that the fast engine cannot read is read by the reference alone, and a warning says so. Known differences go the same
//! way: some files ([`fast_engine`]), and single texts with characters that are in dispute ([`unicode`]).
//!
//! **Data is text.** Whatever stands in a corpus, no control token (an added token marked special: end of sequence,
//! padding, mask, …) comes out of [`Encoder::encode_into`]. Both engines are told to treat the literals of such tokens
//! as ordinary text. That alone is not enough, because the model underneath may know the literal as a word of its own:
//! a Unigram vocabulary holds `</s>`, and finds it. So every result is searched for control ids, and one
//! that is found is spelled out, character by character ([`Vocabulary::spell`]). Control tokens are
//! written by us alone, by id. Post-processors, truncation and padding of the file do not apply.
//!
//! A model without byte fallback writes its unknown token for characters it lacks; that one id is no control token.

pub mod battery;
mod control;
mod difference;
mod train;
mod unicode;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use crate::diag::{Diagnostic, Result};
use crate::storage;

pub use control::Control;
pub use train::train;
pub use vocabulary::{AddedToken, Vocabulary};

/// Names and versions of the engines, as manifests give them.
pub const FAST: &str = "tokenizers 1.0.0-rc.3";
pub const REFERENCE: &str = "tokenizers 0.23.2";

type Reference = tokenizers_oracle::Tokenizer;

/// A `tokenizer.json`, ready to encode. Shared by all threads; each makes its own [`Encoder`].
pub struct Tokenizer {
    name: String,
    json: String,
    hash: String,
    vocabulary: Vocabulary,
    /// `None`: the reference encodes.
    fast: Option<PipelineTokenizer>,
    /// Built when first needed: it takes longer to load than the fast engine.
    reference: OnceLock<std::result::Result<Reference, String>>,
    /// What its user should know about how the file was read.
    pub warnings: Vec<Diagnostic>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; errors as [`Tokenizer::from_json`] and [`storage::read_text`].
    pub fn open(path: &Path) -> Result<Tokenizer> {
        Tokenizer::from_json(&path.display().to_string(), storage::read_text(path)?)
    }

    /// Loads the fast engine or, if that refuses the file, the reference. `name` stands for the file in messages.
    ///
    /// Fails if the text is not a tokenizer, or neither engine accepts it; the message holds both reasons.
    pub fn from_json(name: &str, json: String) -> Result<Tokenizer> {
        let (definition, mut tokenizer) = Tokenizer::unloaded(name, json)?;
        match fast_engine(definition) {
            Ok(fast) => tokenizer.fast = Some(fast),
            Err(refusal) => {
                tokenizer.reference().map_err(|other| refused(name, &[(FAST, &refusal), (REFERENCE, other)]))?;
                tokenizer.warnings.push(
                    Diagnostic::warning(
                        "slow-tokenizer",
                        format!("{FAST} cannot read `{name}`, so {REFERENCE} encodes"),
                    )
                    .note("reason", refusal)
                    .note("note", "the ids are the same; encoding takes some fifty times as long"),
                );
            }
        }
        Ok(tokenizer)
    }

    /// Loads the reference engine only: the way out if [`Tokenizer::verify`] finds the two to differ.
    pub fn from_json_by_reference(name: &str, json: String) -> Result<Tokenizer> {
        let (_, tokenizer) = Tokenizer::unloaded(name, json)?;
        tokenizer.reference().map_err(|reason| refused(name, &[(REFERENCE, reason)]))?;
        Ok(tokenizer)
    }

    fn unloaded(name: &str, json: String) -> Result<(Value, Tokenizer)> {
        let definition = serde_json::from_str(&json).map_err(|e| {
            Diagnostic::error("bad-tokenizer", format!("`{name}` is not JSON: {e}"))
                .expected("a Hugging Face tokenizer.json")
        })?;
        let tokenizer = Tokenizer {
            name: name.to_owned(),
            hash: blake3::hash(json.as_bytes()).to_hex().to_string(),
            vocabulary: Vocabulary::read(name, &definition)?,
            json,
            fast: None,
            reference: OnceLock::new(),
            warnings: Vec::new(),
        };
        Ok((definition, tokenizer))
    }

    /// The engine that encodes: [`FAST`] or [`REFERENCE`].
    pub fn engine(&self) -> &'static str {
        if self.fast.is_some() { FAST } else { REFERENCE }
    }

    /// BLAKE3 of the file's text, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// One more than the greatest id: the rows that an embedding needs. Ids may have gaps below it.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary.size()
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// An id's token as the file writes it (`Ġthe`, `▁the`, `##ing`); empty if there is no such id.
    pub fn piece(&self, id: u32) -> &str {
        self.vocabulary.piece(id)
    }

    /// The added tokens that are marked special, by id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.vocabulary.added.iter().filter(|t| t.special).map(|t| (t.id, t.text.as_str()))
    }

    /// Text of some ids; special tokens stay visible, bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let decoded = match (&self.fast, self.reference.get()) {
            (Some(fast), _) => fast.decode(ids, false).ok(),
            (None, Some(Ok(reference))) => reference.decode(ids, false).ok(),
            (None, _) => None,
        };
        decoded.unwrap_or_else(|| ids.iter().map(|&id| self.piece(id)).collect())
    }

    /// A thread's own means to encode.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, scratch: Vec::new(), options: as_data() }
    }

    /// Encodes the [`battery`] with both engines and compares the ids, and the vocabularies as well.
    ///
    /// It loads the reference, which takes longer than [`Tokenizer::from_json`], and always gives the same answer for
    /// the same [`Tokenizer::verdict_key`]: keep the verdict. Where the reference encodes anyway, there is nothing to do.
    pub fn verify(&self) -> Result<()> {
        if self.fast.is_none() {
            return Ok(());
        }
        let reference = self.reference_or_refusal()?;
        for id in 0..self.vocabulary_size() as u32 {
            let theirs = reference.id_to_token(id).unwrap_or_default();
            if theirs != self.piece(id) {
                return Err(difference::of_vocabularies(self, id, &theirs));
            }
        }
        let (mut encoder, mut ids) = (self.encoder(), Vec::new());
        for text in battery::strings(self.vocabulary.added.iter().map(|t| t.text.as_str())) {
            ids.clear();
            encoder.encode_into(&text, &mut ids)?;
            self.check_sample(&text, &ids)?;
        }
        Ok(())
    }

    /// Names everything that the outcome of [`Tokenizer::verify`] depends on.
    pub fn verdict_key(&self) -> String {
        format!("{} {} {} battery {}", self.hash, FAST, REFERENCE, battery::VERSION)
    }

    /// Encodes `text` with the reference; an error if `ids`, which the fast engine gave for it, are not the same.
    pub fn check_sample(&self, text: &str, ids: &[u32]) -> Result<()> {
        let mut theirs = Vec::with_capacity(ids.len());
        self.encode_by_reference(text, &mut theirs)?;
        self.vocabulary.spell_controls(&mut theirs, 0);
        if theirs == ids { Ok(()) } else { Err(difference::of_encodings(self, text, ids, &theirs)) }
    }

    fn encode_by_reference(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let encoding = self.reference_or_refusal()?.encode_fast(text, false);
        ids.extend_from_slice(encoding.map_err(|e| self.cannot_encode(text, &e.to_string()))?.get_ids());
        Ok(())
    }

    fn reference(&self) -> std::result::Result<&Reference, &str> {
        self.reference.get_or_init(|| reference_engine(&self.json)).as_ref().map_err(String::as_str)
    }

    fn reference_or_refusal(&self) -> Result<&Reference> {
        self.reference().map_err(|reason| {
            let refusal = refused(&self.name, &[(REFERENCE, reason)]);
            Box::new(refusal.note("note", format!("what {FAST} makes of the file cannot be checked without it")))
        })
    }

    fn cannot_encode(&self, text: &str, reason: &str) -> Box<Diagnostic> {
        Diagnostic::error("cannot-encode", format!("`{}` cannot encode a text: {reason}", self.name))
            .found(difference::shown(text))
            .note("engine", self.engine())
            .into()
    }
}

/// Encodes for one thread. It owns buffers that grow to the longest text and are used again, so that a call
/// allocates nothing of its own.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    scratch: Vec<PipelineToken>,
    options: EncodeOptions,
}

impl Encoder<'_> {
    /// Appends the ids of `text`, among them no control token. Fails if the engine does, which names the text.
    pub fn encode_into(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        match &self.tokenizer.fast {
            Some(fast) if !unicode::is_disputed(text) => {
                self.scratch.clear();
                fast.encode_into(text, &self.options, &mut self.scratch)
                    .map_err(|e| self.tokenizer.cannot_encode(text, &e.to_string()))?;
                ids.extend_from_slice(PipelineToken::cast_slice(&self.scratch));
            }
            _ => self.tokenizer.encode_by_reference(text, ids)?,
        }
        self.tokenizer.vocabulary.spell_controls(ids, start);
        Ok(())
    }
}

/// How the fast engine treats texts from data: nothing added, nothing cut, and special tokens' literals are text.
fn as_data() -> EncodeOptions {
    EncodeOptions {
        add_special_tokens: false,
        encode_special_tokens: true,
        padding: Override::Off,
        truncation: Override::Off,
    }
}

/// Brings a file of any age into the form that the fast engine reads.
///
/// What never applies to us is taken out first, as it could only be a reason to refuse the file.
fn fast_engine(mut definition: Value) -> std::result::Result<PipelineTokenizer, String> {
    if let Some(difference) = known_difference(&definition) {
        return Err(difference);
    }
    for unused in ["post_processor", "truncation", "padding"] {
        if let Some(value) = definition.get_mut(unused) {
            *value = Value::Null;
        }
    }
    tokenizers::canonicalize_value(&mut definition).map_err(|e| e.to_string())?;
    let fast = tokenizers::from_json(&definition.to_string()).map_err(|e| e.to_string())?;
    // Some patterns that it cannot match are accepted when loading and refused when encoding.
    fast.encode_into(PROBE, &as_data(), &mut Vec::new()).map_err(|e| e.to_string())?;
    Ok(fast)
}

/// A bit of everything that patterns look for.
const PROBE: &str = "It's 12 probes, \u{e9}\u{4e2d}\n\n  !";

/// What the fast engine would read, but not as the reference does.
fn known_difference(definition: &Value) -> Option<String> {
    if splits_at_metaspace(&definition["pre_tokenizer"]) && has_normalized_token(&definition["added_tokens"]) {
        return Some(
            "it puts a space before an added token that is `normalized`, which the reference does not".to_owned(),
        );
    }
    // To the reference, \u{b2} and \u{bd} are of a word, and joiners are not.
    let is_vague = |pattern: &&str| ["\\w", "\\W", "\\b", "\\B"].iter().any(|class| pattern.contains(class));
    let patterns = [&definition["normalizer"], &definition["pre_tokenizer"]].map(regexes).concat();
    let pattern = patterns.into_iter().find(is_vague)?;
    Some(format!("its regular expressions differ from the reference's in what belongs to a word: {pattern}"))
}

/// The regular expressions anywhere in a component.
fn regexes(component: &Value) -> Vec<&str> {
    match component {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| {
                value.as_str().filter(|_| name == "Regex").map_or_else(|| regexes(value), |r| vec![r])
            })
            .collect(),
        Value::Array(parts) => parts.iter().flat_map(regexes).collect(),
        _ => Vec::new(),
    }
}

fn splits_at_metaspace(pre_tokenizer: &Value) -> bool {
    pre_tokenizer["type"] == "Metaspace"
        || pre_tokenizer["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(splits_at_metaspace))
}

/// Special tokens do not count: they are not matched in data.
fn has_normalized_token(added_tokens: &Value) -> bool {
    let matched = |token: &Value| token["normalized"] == true && token["special"] != true;
    added_tokens.as_array().is_some_and(|tokens| tokens.iter().any(matched))
}

fn reference_engine(json: &str) -> std::result::Result<Reference, String> {
    let mut reference: Reference = json.parse().map_err(|e: tokenizers_oracle::Error| e.to_string())?;
    reference.with_truncation(None).map_err(|e| e.to_string())?;
    reference.with_padding(None);
    reference.set_encode_special_tokens(true);
    Ok(reference)
}

fn refused(name: &str, reasons: &[(&str, &str)]) -> Diagnostic {
    let mut refusal = Diagnostic::error("bad-tokenizer", format!("`{name}` is not a tokenizer that can be read"))
        .expected("a Hugging Face tokenizer.json");
    for (engine, reason) in reasons {
        refusal = refusal.note("reason", format!("{engine}: {reason}"));
    }
    refusal
}
