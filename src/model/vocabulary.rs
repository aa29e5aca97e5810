//! A model's own tokens: whether data is written in them, and which of them it begins and ends texts with.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::diag::{Diagnostic, Result};
use crate::storage;
use crate::tokenize::{Vocabulary, begins_with};

const FILE: &str = "tokenizer.json";

/// Refuses data whose ids stand for other tokens in the `tokenizer.json` beside a model's weights, if there is one:
/// every id would be valid, and every text nonsense to the model. `data` is the tokenizer that the data was encoded by.
pub fn same_tokens(model: &Path, data: &Path) -> Result<()> {
    let own = model.join(FILE);
    if storage::stamp(&own).is_none() {
        return Ok(());
    }
    let (own_text, data_text) = (storage::read_text(&own)?, storage::read_text(data)?);
    if own_text == data_text {
        return Ok(());
    }
    let (known, meant) = (vocabulary(&own, &definition(&own_text))?, vocabulary(data, &definition(&data_text))?);
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

/// The tokenizer beside a model's weights, and the control tokens that go with it; `None`: what the files do not say.
pub struct Own {
    pub file: PathBuf,
    /// What every text begins with.
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    /// Of `file`.
    pub vocabulary: Vocabulary,
}

/// Reads what a model's directory says of its tokens; `None` if it has no `tokenizer.json`.
///
/// That file has the tokens; which of them ends a text is in `tokenizer_config.json`, by its text, or in
/// `generation_config.json` or `config.json`, by its id, the first of several. Texts begin with a token if
/// `add_bos_token` says so or, where it is not said, if the tokenizer's post-processor puts one there.
pub fn own(model: &Path) -> Result<Option<Own>> {
    let file = model.join(FILE);
    if storage::stamp(&file).is_none() {
        return Ok(None);
    }
    let json = definition(&storage::read_text(&file)?);
    let vocabulary = vocabulary(&file, &json)?;
    let configs = ["tokenizer_config.json", "generation_config.json", "config.json"].map(|name| model.join(name));
    let [by_text, by_id @ ..] = [config(&configs[0])?, config(&configs[1])?, config(&configs[2])?];
    let token = |name: &str| {
        let token = &by_text[format!("{name}_token")];
        let text = token.as_str().or(token["content"].as_str());
        let of_id = |config: &Value| {
            let ids = &config[format!("{name}_token_id")];
            let id = ids.as_u64().or(ids[0].as_u64())?;
            Some(vocabulary.piece(u32::try_from(id).ok()?).to_owned())
        };
        let mut said = text.map(str::to_owned).into_iter().chain(by_id.iter().filter_map(of_id));
        said.find(|text| vocabulary.control(text).is_some())
    };
    let put_first = begins_with(&json["post_processor"]).filter(|text| vocabulary.control(text).is_some());
    let put_first = put_first.map(str::to_owned);
    let bos = match by_text["add_bos_token"].as_bool() {
        Some(true) => token("bos").or(put_first),
        Some(false) => None,
        None => put_first,
    };
    let (eos, pad) = (token("eos"), token("pad"));
    Ok(Some(Own { file, bos, eos, pad, vocabulary }))
}

/// Reads the vocabulary of a `tokenizer.json`.
pub fn open(file: &Path) -> Result<Vocabulary> {
    vocabulary(file, &definition(&storage::read_text(file)?))
}

/// What is no JSON has no vocabulary either, and is refused for that.
fn definition(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

fn vocabulary(file: &Path, definition: &Value) -> Result<Vocabulary> {
    Vocabulary::read(&file.display().to_string(), definition)
}

/// A file of settings; nothing where there is none.
fn config(file: &Path) -> Result<Value> {
    if storage::stamp(file).is_none() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&storage::read_text(file)?).map_err(|e| {
        Diagnostic::error("model-config", format!("the model's settings are not JSON: {e}")).at(file).into()
    })
}
