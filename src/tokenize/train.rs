//! Training a vocabulary: byte-level BPE, in the form that most models of the day use.

use tokenizers_oracle::models::TrainerWrapper;
use tokenizers_oracle::models::bpe::{BPE, BpeTrainer};
use tokenizers_oracle::pre_tokenizers::byte_level::ByteLevel;

use super::Reference;
use crate::diag::{Diagnostic, Result};

/// Trains a byte-level BPE tokenizer and returns its `tokenizer.json`, ending in a newline.
///
/// Texts are split by GPT-2's pattern, with no normalization. Ids: the special tokens in their order, the 256 bytes,
/// then the merges, most frequent first; fewer than `vocabulary_size` if the texts have no more pairs to merge.
/// Literals of the special tokens in the texts are ordinary text.
///
/// The same texts, in whatever order and on any number of threads, give the same bytes: words are only counted, and
/// the trainer breaks ties between equally frequent pairs by their ids. It counts pairs in 32 bits, so give it at most
/// some two billion characters.
///
/// Fails if the vocabulary has no room for bytes and special tokens, or a special token is empty or named twice.
pub fn train(
    texts: impl Iterator<Item = String> + Send,
    vocabulary_size: usize,
    special_tokens: &[&str],
) -> Result<String> {
    let least = 256 + special_tokens.len();
    if vocabulary_size < least {
        return Err(Diagnostic::error("vocabulary-too-small", "the vocabulary has no room for every byte")
            .expected(format!("at least {least} tokens: 256 bytes and {} special tokens", special_tokens.len()))
            .found(format!("{vocabulary_size} tokens"))
            .into());
    }
    if let Some((i, token)) =
        special_tokens.iter().enumerate().find(|(i, t)| t.is_empty() || special_tokens[..*i].contains(t))
    {
        return Err(Diagnostic::error(
            "bad-special-token",
            format!("special token {i}, {token:?}, is empty or named twice"),
        )
        .into());
    }
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary_size)
        .special_tokens(special_tokens.iter().map(|&t| tokenizers_oracle::AddedToken::from(t, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut tokenizer = Reference::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let trained = tokenizer.train(&mut TrainerWrapper::from(trainer), texts).and_then(|t| t.to_string(true));
    let json = trained.map_err(|e| Diagnostic::error("training-failed", format!("cannot train a tokenizer: {e}")))?;
    Ok(json + "\n")
}
