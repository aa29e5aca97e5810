//! Text to token ids: the ids that Hugging Face's `tokenizers` gives for a `tokenizer.json`, fast and proven.
//!
//! Two engines read the same file. *Fast* is `tokenizers` 1.0.0-rc.3, dozens of times quicker and young;
//! the *reference* is 0.23.2, whose ids the world's models were trained on. The fast one does the work.
//! [`Tokenizer::verify`] first lets both encode a fixed [`battery`] of awkward strings, and during a compile
//! [`Tokenizer::check_sample`] repeats that for prompts drawn by lot: the first difference is an error. A file
//! that the fast engine cannot read is read by the reference alone, and a warning says so. Known differences go the
//! same way: some files ([`known`]), and single texts with characters in dispute ([`unicode`]).
//!
//! **Data is text.** Whatever stands in a corpus, no control token (an added token marked special: end of sequence,
//! padding, mask, …) comes out of [`Encoder::encode_into`]. Both engines are told to treat the literals of such tokens
//! as ordinary text. That alone is not enough, because the model underneath may know the literal as a word of its own:
//! a Unigram vocabulary holds `</s>`, and finds it. So every result is searched for control ids, and one
//! that is found is spelled out, character by character ([`Vocabulary::spell`]). Control tokens are
//! written by us alone, by id. Post-processors, truncation and padding of the file do not apply: whether prompts begin
//! with a token is for the recipe to say, and [`Tokenizer::begins_with`] is what the file would do.
//!
//! A model without byte fallback writes its unknown token for characters it lacks; that one id is no control token.

pub mod battery;
mod begin;
mod control;
mod cuts;
mod difference;
mod known;
mod spans;
mod train;
mod unicode;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use xxhash_rust::xxh3::xxh3_64;

use self::cuts::Cuts;
use crate::diag::{Diagnostic, Result};
use crate::storage;

pub use begin::{beginning_with, begins_with};
pub use control::{Control, ENDS};
pub use spans::Spans;
pub use train::train;
pub use vocabulary::{AddedToken, Vocabulary};

/// Names and versions of the engines, as manifests give them.
pub const FAST: &str = "tokenizers 1.0.0-rc.3";
pub const REFERENCE: &str = "tokenizers 0.23.2";

type Reference = tokenizers_oracle::Tokenizer;

/// A `tokenizer.json`, ready to encode. Shared by all threads; each makes its own [`Encoder`].
pub struct Tokenizer {
    name: String,
    json: Arc<str>,
    hash: String,
    vocabulary: Vocabulary,
    begins_with: Option<String>,
    /// `None`: the reference encodes.
    fast: Option<PipelineTokenizer>,
    /// `None`: texts have to be encoded whole.
    cuts: Option<Cuts>,
    /// Built when first needed, or before by [`Tokenizer::open_to_compare`]: for 32,000 tokens it takes some 60 ms and
    /// 80 MB.
    reference: Arc<OnceLock<std::result::Result<Reference, String>>>,
    /// What its user should know about how the file was read.
    pub warnings: Vec<Diagnostic>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; errors as [`Tokenizer::from_json`] and [`storage::read_text`].
    pub fn open(path: &Path) -> Result<Tokenizer> {
        Tokenizer::from_json(&path.display().to_string(), storage::read_text(path)?)
    }

    /// The same for who will compare samples: a thread of its own loads the reference while the fast engine is loaded.
    pub fn open_to_compare(path: &Path) -> Result<Tokenizer> {
        let (definition, tokenizer) = Tokenizer::unloaded(&path.display().to_string(), storage::read_text(path)?)?;
        let (json, reference) = (tokenizer.json.clone(), tokenizer.reference.clone());
        // Whoever needs the reference before it is there waits for it, or loads it if there is no such thread.
        let _ = std::thread::Builder::new().spawn(move || reference.get_or_init(|| reference_engine(&json)).is_ok());
        tokenizer.loaded(definition)
    }

    /// Loads the fast engine or, if that refuses the file, the reference. `name` stands for the file in messages.
    ///
    /// Fails if the text is not a tokenizer, or neither engine accepts it; the message holds both reasons.
    pub fn from_json(name: &str, json: String) -> Result<Tokenizer> {
        let (definition, tokenizer) = Tokenizer::unloaded(name, json)?;
        tokenizer.loaded(definition)
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
            begins_with: begin::begins_with(&definition["post_processor"]).map(str::to_owned),
            cuts: Cuts::of(&definition),
            json: json.into(),
            fast: None,
            reference: Arc::default(),
            warnings: Vec::new(),
        };
        Ok((definition, tokenizer))
    }

    fn loaded(mut self, definition: Value) -> Result<Tokenizer> {
        match fast_engine(definition) {
            Ok(fast) => self.fast = Some(fast),
            Err(refusal) => {
                let name = &self.name;
                self.reference().map_err(|other| refused(name, &[(FAST, &refusal), (REFERENCE, other)]))?;
                self.warnings.push(
                    Diagnostic::warning(
                        "slow-tokenizer",
                        format!("{FAST} cannot read `{name}`, so {REFERENCE} encodes"),
                    )
                    .note("reason", refusal)
                    .note("note", "the ids are the same; encoding takes some fifty times as long"),
                );
            }
        }
        Ok(self)
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine that encodes: [`FAST`] or [`REFERENCE`].
    pub fn engine(&self) -> &'static str {
        if self.fast.is_some() { FAST } else { REFERENCE }
    }

    /// The file's text.
    pub fn json(&self) -> &str {
        &self.json
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

    /// The token that the file's post-processor puts before every text. We do not: see [`crate::mixture::Begin`].
    pub fn begins_with(&self) -> Option<&str> {
        self.begins_with.as_deref()
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
        Encoder { tokenizer: self, scratch: Vec::new(), open: String::new(), ends: Vec::new(), options: as_data() }
    }

    /// Encodes the [`battery`] with both engines and compares the ids, and the vocabularies as well.
    ///
    /// That takes about a tenth of a second, and always has the same outcome for one [`Tokenizer::verdict_key`]: keep
    /// the verdict. Where the reference encodes anyway, only its vocabulary is compared, with what the file says.
    pub fn verify(&self) -> Result<()> {
        let reference = self.reference_or_refusal()?;
        for id in 0..self.vocabulary_size() as u32 {
            let theirs = reference.id_to_token(id).unwrap_or_default();
            if theirs != self.piece(id) {
                return Err(difference::of_vocabularies(self, id, &theirs));
            }
        }
        if self.fast.is_none() {
            return Ok(());
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
        format!("{}: {} by {REFERENCE}, battery {}", self.hash, self.engine(), battery::VERSION)
    }

    /// Encodes `text` with the reference; an error if `ids`, which the fast engine gave for it, are not the same.
    pub fn check_sample(&self, text: &str, ids: &[u32]) -> Result<()> {
        let mut theirs = Vec::with_capacity(ids.len());
        self.encode_by_reference(text, &mut theirs)?;
        self.vocabulary.spell_controls(&mut theirs, 0);
        if theirs == ids { Ok(()) } else { Err(difference::of_encodings(self, text, ids, &theirs)) }
    }

    fn encode_by_reference(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let reference = self.reference_or_refusal()?;
        let encoding = contained(|| reference.encode_fast(text, false));
        ids.extend_from_slice(encoding.map_err(|reason| self.cannot_encode(text, &reason))?.get_ids());
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

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokenizer").field(&self.name).field(&self.engine()).field(&self.hash).finish()
    }
}

/// Encodes for one thread. It owns buffers that grow to the longest text and are used again, so that a call
/// allocates nothing of its own.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    scratch: Vec<PipelineToken>,
    /// What of joined texts is not yet encoded.
    open: String,
    /// Ends of parts with their ids, by a hash: the same ones come again in the next prompt of a row, or in every row.
    ends: Vec<End>,
    options: EncodeOptions,
}

/// A short text and its ids, a cache line in all. Ends are seven bytes on average, and hardly one in a thousand is longer.
#[derive(Clone)]
#[repr(align(64))]
struct End {
    length: u8,
    count: u8,
    text: [u8; End::LONGEST],
    ids: [u32; End::MOST_IDS],
}

impl End {
    const LONGEST: usize = 30;
    const MOST_IDS: usize = 8;
    /// As many are remembered, a megabyte in all.
    const REMEMBERED: usize = 1 << 14;
    /// The empty text has no ids.
    const EMPTY: End = End { length: 0, count: 0, text: [0; End::LONGEST], ids: [0; End::MOST_IDS] };
}

/// A text that is part of several others, with the ids of all but its ends.
#[derive(Clone, Debug, Default)]
pub struct Part {
    text: String,
    /// The first cut and the last; `None` if the text has to be encoded with what stands around it.
    cuts: Option<(usize, usize)>,
    /// Of what lies between them.
    ids: Vec<u32>,
}

impl Part {
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Encoder<'_> {
    /// Prepares a text for [`Encoder::encode_joined`], taking over the memory of another.
    pub fn part(&mut self, text: &str, mut part: Part) -> Result<Part> {
        part.text.clear();
        part.text.push_str(text);
        part.ids.clear();
        part.cuts = self.tokenizer.cuts.and_then(|cuts| cuts.ends(text));
        if let Some((first, last)) = part.cuts.filter(|(first, last)| first < last) {
            self.encode_into(&text[first..last], &mut part.ids)?;
        }
        Ok(part)
    }

    /// Appends the ids of the text that the parts make, one after the other: the same as those of the whole.
    pub fn encode_joined<'p>(&mut self, parts: impl Iterator<Item = &'p Part>, ids: &mut Vec<u32>) -> Result<()> {
        let mut open = std::mem::take(&mut self.open);
        open.clear();
        for part in parts {
            if let (Some(cuts), Some(&last)) = (self.tokenizer.cuts, open.as_bytes().last())
                && cuts.between(last, part.text.as_bytes())
            {
                self.encode_end(&open, ids)?;
                open.clear();
            }
            let Some((first, last)) = part.cuts else {
                open.push_str(&part.text);
                continue;
            };
            open.push_str(&part.text[..first]);
            self.encode_end(&open, ids)?;
            ids.extend_from_slice(&part.ids);
            open.clear();
            open.push_str(&part.text[last..]);
        }
        self.encode_end(&open, ids)?;
        self.open = open;
        Ok(())
    }

    /// [`Encoder::encode_into`] for what stands between cuts: short, and likely to have been encoded before.
    fn encode_end(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.len() > End::LONGEST {
            return self.encode_into(text, ids);
        }
        if self.ends.is_empty() {
            self.ends.resize(End::REMEMBERED, End::EMPTY);
        }
        let slot = xxh3_64(text.as_bytes()) as usize % End::REMEMBERED;
        let known = &self.ends[slot];
        let start = ids.len();
        if known.text[..usize::from(known.length)] == *text.as_bytes() {
            // All of them, which is one copy of a known size, and then as many as there are.
            ids.extend_from_slice(&known.ids);
            ids.truncate(start + usize::from(known.count));
            return Ok(());
        }
        self.encode_into(text, ids)?;
        let found = &ids[start..];
        if found.len() <= End::MOST_IDS {
            let known = &mut self.ends[slot];
            (known.length, known.count) = (text.len() as u8, found.len() as u8);
            known.text[..text.len()].copy_from_slice(text.as_bytes());
            known.ids[..found.len()].copy_from_slice(found);
        }
        Ok(())
    }

    /// Appends the ids of `text`, among them no control token. Fails if the engine does, which names the text.
    pub fn encode_into(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        match &self.tokenizer.fast {
            Some(fast) if !unicode::is_disputed(text) => {
                self.scratch.clear();
                contained(|| fast.encode_into(text, &self.options, &mut self.scratch))
                    .map_err(|reason| self.tokenizer.cannot_encode(text, &reason))?;
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
    if let Some(difference) = known::difference(&definition) {
        return Err(difference);
    }
    for unused in ["post_processor", "truncation", "padding"] {
        if let Some(value) = definition.get_mut(unused) {
            *value = Value::Null;
        }
    }
    tokenizers::canonicalize_value(&mut definition).map_err(|e| e.to_string())?;
    let fast = contained(|| tokenizers::from_json(&definition.to_string()))?;
    // Some patterns that it cannot match are accepted when loading and refused when encoding.
    contained(|| fast.encode_into(PROBE, &as_data(), &mut Vec::new()))?;
    Ok(fast)
}

/// A bit of everything that patterns look for.
const PROBE: &str = "It's 12 probes, \u{e9}\u{4e2d}\n\n  !";

fn reference_engine(json: &str) -> std::result::Result<Reference, String> {
    let mut reference: Reference = contained(|| json.parse::<Reference>())?;
    reference.with_truncation(None).map_err(|e| e.to_string())?;
    reference.with_padding(None);
    reference.set_encode_special_tokens(true);
    Ok(reference)
}

/// Runs an engine; a panic in it, which both have been seen to do on odd files, becomes a reason like any other.
///
/// What an engine keeps from call to call are buffers, which it clears, and caches of finished words.
fn contained<T, E: fmt::Display>(run: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(outcome) => outcome.map_err(|e| e.to_string()),
        Err(_) => Err("the engine panicked".to_owned()),
    }
}

fn refused(name: &str, reasons: &[(&str, &str)]) -> Diagnostic {
    let mut refusal = Diagnostic::error("bad-tokenizer", format!("`{name}` is not a tokenizer that can be read"))
        .expected("a Hugging Face tokenizer.json");
    for (engine, reason) in reasons {
        refusal = refusal.note("reason", format!("{engine}: {reason}"));
    }
    refusal
}
