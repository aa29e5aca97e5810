//! Which tokens end a sequence and fill a row.

use super::Tokenizer;
use crate::diag::{Diagnostic, Result, listing};

/// What vocabularies call the end of a sequence, most telling first.
pub const ENDS: &[&str] =
    &["</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|end▁of▁sentence|>", "[SEP]"];
const PADDINGS: &[&str] =
    &["<pad>", "[PAD]", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>", "<unk>"];

/// A token that only we write, never data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub id: u32,
    pub text: String,
}

impl Tokenizer {
    /// The token that ends a sequence: the wanted one, or the first found of those that usually do.
    pub fn end_of_sequence(&self, wanted: Option<&str>) -> Result<Control> {
        self.control(wanted, ENDS)?.ok_or_else(|| {
            Diagnostic::error("no-end-token", format!("`{}` has no token that usually ends a sequence", self.name))
                .expected(listing(ENDS.iter().copied()))
                .found(listing(self.special_tokens().map(|(_, text)| text)))
                .help("name the token to use as end of sequence")
                .into()
        })
    }

    /// The token that fills a row: the wanted one, or the first found of those that usually do, or else the end.
    pub fn padding(&self, wanted: Option<&str>, end: &Control) -> Result<Control> {
        Ok(self.control(wanted, PADDINGS)?.unwrap_or_else(|| end.clone()))
    }

    /// The `wanted` control token, or the first of `guesses` that is one; `None` if no guess is.
    ///
    /// A wanted token that does not exist is an error, and so is one that data could spell.
    pub fn control(&self, wanted: Option<&str>, guesses: &[&str]) -> Result<Option<Control>> {
        let Some(wanted) = wanted else {
            return Ok(guesses.iter().find_map(|guess| self.vocabulary.control(guess)));
        };
        if let Some(control) = self.vocabulary.control(wanted) {
            return Ok(Some(control));
        }
        let controls = || self.special_tokens().filter(|&(id, _)| self.vocabulary.is_control(id)).map(|(_, text)| text);
        let error = match self.token_id(wanted) {
            None => Diagnostic::error("unknown-token", format!("`{}` has no token `{wanted}`", self.name))
                .did_you_mean(wanted, controls()),
            Some(id) if self.vocabulary.unknown == Some(id) => Diagnostic::error(
                "not-a-control-token",
                format!("`{wanted}` is what `{}` writes for unknown characters, so data can contain it", self.name),
            ),
            Some(_) => Diagnostic::error(
                "not-a-control-token",
                format!("`{wanted}` is an ordinary token of `{}`, so data can contain it", self.name),
            )
            .help("choose another, or list it in the file's added_tokens with \"special\": true"),
        };
        Err(error.note("available", listing(controls())).into())
    }
}
