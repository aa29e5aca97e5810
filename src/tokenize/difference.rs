//! How a difference between the engines is told.

use super::{FAST, REFERENCE, Tokenizer};
use crate::diag::Diagnostic;

/// Ids, and characters of text, that are shown on each side of the first difference.
const IDS_SHOWN: usize = 24;
const CHARACTERS_SHOWN: usize = 400;

pub fn of_encodings(tokenizer: &Tokenizer, text: &str, fast: &[u32], reference: &[u32]) -> Box<Diagnostic> {
    let place = fast.iter().zip(reference).take_while(|(a, b)| a == b).count();
    let token = |ids: &[u32]| match ids.get(place) {
        Some(&id) => format!("{id} ({:?})", tokenizer.piece(id)),
        None => "the end".to_owned(),
    };
    differ(tokenizer, "disagree on a text")
        .note("text", shown(text))
        .note(
            "text",
            format!("the first difference is after {place} tokens, {:?}", tail(&tokenizer.decode(&fast[..place]))),
        )
        .found(format!("{FAST}: {} in {}", token(fast), around(fast, place)))
        .expected(format!("{REFERENCE}: {} in {}", token(reference), around(reference, place)))
        .into()
}

pub fn of_vocabularies(tokenizer: &Tokenizer, id: u32, reference: &str) -> Box<Diagnostic> {
    differ(tokenizer, &format!("disagree with the file on what id {id} stands for"))
        .found(format!("{:?} in the file", tokenizer.piece(id)))
        .expected(format!("{reference:?}, which {REFERENCE} makes of it"))
        .note(
            "note",
            "added tokens that the model lacks are numbered from its size on, whatever id the file gives them",
        )
        .into()
}

fn differ(tokenizer: &Tokenizer, what: &str) -> Diagnostic {
    Diagnostic::error("tokenizer-engines-differ", format!("the engines that read `{}` {what}", tokenizer.name))
        .help("please report this text with the tokenizer; until then let the reference engine encode")
}

/// A text in one line, cut in the middle if it is long.
pub fn shown(text: &str) -> String {
    let length = text.chars().count();
    if length <= CHARACTERS_SHOWN {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(CHARACTERS_SHOWN / 2).collect();
    let tail: String = text.chars().skip(length - CHARACTERS_SHOWN / 2).collect();
    format!("{head:?} … {tail:?} ({length} characters)")
}

fn tail(text: &str) -> String {
    let length = text.chars().count();
    text.chars().skip(length.saturating_sub(40)).collect()
}

fn around(ids: &[u32], place: usize) -> String {
    let from = place.saturating_sub(IDS_SHOWN).min(ids.len());
    let to = (place + IDS_SHOWN).min(ids.len());
    let before = if from > 0 { "… " } else { "" };
    let after = if to < ids.len() { " …" } else { "" };
    let listed: Vec<String> = ids[from..to].iter().map(u32::to_string).collect();
    format!("[{before}{}{after}] ({} ids)", listed.join(" "), ids.len())
}
