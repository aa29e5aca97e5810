//! Whether data is written in a model's own tokens.

use std::path::Path;

use serde_json::Value;

use crate::diag::{Diagnostic, Result};
use crate::storage;
use crate::tokenize::Vocabulary;

/// Refuses data whose ids stand for other tokens in the `tokenizer.json` beside a model's weights, if there is one:
/// every id would be valid, and every text nonsense to the model. `data` is the tokenizer that the data was encoded by.
pub fn same_tokens(model: &Path, data: &Path) -> Result<()> {
    let own = model.join("tokenizer.json");
    if storage::stamp(&own).is_none() {
        return Ok(());
    }
    let (own_text, data_text) = (storage::read_text(&own)?, storage::read_text(data)?);
    if own_text == data_text {
        return Ok(());
    }
    let read = |path: &Path, text: &str| {
        // What is no JSON has no vocabulary either, and is refused for that.
        Vocabulary::read(&path.display().to_string(), &serde_json::from_str(text).unwrap_or(Value::Null))
    };
    let (known, meant) = (read(&own, &own_text)?, read(data, &data_text)?);
    // An id that the model has no token for may have been given one.
    let differs = |&id: &u32| {
        let (known, meant) = (known.piece(id), meant.piece(id));
        known != meant && !known.is_empty() && !meant.is_empty()
    };
    match (0..meant.size() as u32).find(differs) {
        None => Ok(()),
        Some(id) => Err(Diagnostic::error("other-tokenizer", "the data is not in the model's tokens")
            .at(data)
            .expected(format!("id {id} to be {:?}, as in {}", known.piece(id), own.display()))
            .found(format!("{:?}", meant.piece(id)))
            .help(format!("compile with `tokenizer.file = \"{}\"` in the recipe", own.display()))
            .into()),
    }
}
