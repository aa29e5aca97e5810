//! Where the tokens of a text lie in it, for whoever shows them.

use super::{Encoder, contained};
use crate::diag::Result;

/// The ids of a text, and where the first of them end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// As [`Encoder::encode_into`] gives them.
    pub ids: Vec<u32>,
    /// By token, for as many of the first ones as were asked for: the byte of the text at which it ends, on a character
    /// boundary. White space that a tokenizer drops belongs to the token after it, a character that is spelt by several
    /// tokens to the last of them. If every token is listed, the last ends where the text does.
    pub ends: Vec<usize>,
}

/// A token of the reference engine and the bytes it stands for.
struct Placed {
    id: u32,
    start: usize,
    end: usize,
}

/// Bytes of text that are looked at for a token whose place is asked for; a token of prose has four or five.
const BYTES_A_TOKEN: usize = 8;

impl Encoder<'_> {
    /// The ids of `text`, and where at most the first `most` of them end.
    ///
    /// Only the reference engine tells places; it is slow, so it reads no more of a long text than it has to. Places
    /// are believed as far as the ids are those of the whole.
    pub fn spans(&mut self, text: &str, most: usize) -> Result<Spans> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        let read = &text[..text.floor_char_boundary(most.saturating_mul(BYTES_A_TOKEN).min(text.len()))];
        let mut placed = self.places(read)?;
        let known = ids.iter().zip(&placed).take_while(|(id, placed)| **id == placed.id).count();
        placed.truncate(known);
        let mut ends = vec![0; known];
        // A token ends no later than any after it begins, so that a shared character is the last one's.
        let mut least = read.len();
        for (end, token) in ends.iter_mut().zip(&placed).rev() {
            *end = read.floor_char_boundary(token.end.min(least));
            least = least.min(token.start);
        }
        if known == ids.len()
            && let Some(last) = ends.last_mut()
        {
            *last = text.len();
        }
        ends.truncate(most);
        Ok(Spans { ids, ends })
    }

    /// Ids of the reference engine, control tokens spelled out, each with the bytes it stands for.
    fn places(&self, text: &str) -> Result<Vec<Placed>> {
        let reference = self.tokenizer.reference_or_refusal()?;
        let encoding = contained(|| reference.encode(text, false));
        let encoding = encoding.map_err(|reason| self.tokenizer.cannot_encode(text, &reason))?;
        let mut placed = Vec::new();
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let mut ids = vec![id];
            self.tokenizer.vocabulary.spell_controls(&mut ids, 0);
            placed.extend(ids.into_iter().map(|id| Placed { id, start, end }));
        }
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;
    use proptest::prelude::*;

    fn spans(text: &str, most: usize) -> Spans {
        let json = std::fs::read_to_string("data/tokenizer.json").unwrap();
        let tokenizer = Tokenizer::from_json("data/tokenizer.json", json).unwrap();
        tokenizer.encoder().spans(text, most).unwrap()
    }

    #[test]
    fn tokens_cover_the_text() {
        let text = "It rains.\n\n  \u{4e2d}\u{1f600} <eos> </s> end ";
        let Spans { ids, ends } = spans(text, 100);
        assert_eq!(ids.len(), ends.len());
        assert_eq!(ends.last(), Some(&text.len()));
        assert!(ends.is_sorted() && ends.iter().all(|&end| text.is_char_boundary(end)), "{ends:?}");
    }

    #[test]
    fn of_a_long_text_only_the_beginning_is_placed() {
        let text = "word and word ".repeat(100_000);
        let Spans { ids, ends } = spans(&text, 50);
        assert_eq!(ends.len(), 50);
        assert!(ids.len() > 100_000);
        assert_eq!(spans("", 50), Spans::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_is_covered(text in "\\PC{0,40}") {
            let Spans { ids, ends } = spans(&text, 1000);
            prop_assert_eq!(ids.len(), ends.len());
            prop_assert!(ends.is_sorted());
            prop_assert!(ends.iter().all(|&end| text.is_char_boundary(end)));
            prop_assert!(ids.is_empty() || ends.last() == Some(&text.len()));
        }
    }
}
