//! A recipe in the tokens of the model that its prompts are for.

use std::path::{Path, PathBuf};

use crate::diag::Result;
use crate::mixture::{Begin, TokenizerChoice};
use crate::model::vocabulary::{self, own};
use crate::plan::Plan;
use crate::template::snippet::Snippet;
use crate::tokenize::ENDS;

/// What a recipe's choice becomes for a model that has a tokenizer of its own; `None` if the model has none.
///
/// The model's file takes the place of the recipe's, unless that one has the same tokens: somebody may have given names
/// to some that were free. Control tokens that the recipe names stay where the file has them; for others come the model's
/// own. A separator that ends sequences elsewhere becomes the token that ends them here.
pub fn of_model(model: &Path, choice: &TokenizerChoice) -> Result<Option<TokenizerChoice>> {
    let Some(own) = own(model)? else { return Ok(None) };
    let same = |file: &&PathBuf| vocabulary::same_tokens(model, file).is_ok();
    let (file, place, known) = match choice.file.as_ref().filter(same) {
        Some(file) => (file.clone(), choice.place.clone(), vocabulary::open(file)?),
        None => (own.file.clone(), None, own.vocabulary),
    };
    let name = own.file.display().to_string();
    let of_own = |token: &str| Snippet::whole(&name, token);
    let has = |token: &Snippet| known.control(&token.text).is_some();
    let kept = |token: &Option<Snippet>| token.clone().filter(has);
    let eos = kept(&choice.eos).or(own.eos.as_deref().map(of_own));
    let bos = match (&choice.bos, own.bos.as_deref()) {
        (Begin::Nothing, _) => Begin::Nothing,
        (Begin::Token(token), _) if has(token) => choice.bos.clone(),
        (_, Some(token)) => Begin::Token(of_own(token)),
        (_, None) => Begin::Nothing,
    };
    let ends_elsewhere = |token: &Snippet| match &choice.eos {
        Some(eos) => eos.text == token.text,
        None => ENDS.contains(&token.text.as_str()),
    };
    let separator = match &choice.separator {
        Some(token) if !has(token) && ends_elsewhere(token) => {
            let usual = || ENDS.iter().find(|end| known.control(end).is_some()).map(|end| of_own(end));
            eos.clone().or_else(usual)
        }
        said => said.clone(),
    };
    let pad = kept(&choice.pad).or(own.pad.as_deref().map(of_own));
    Ok(Some(TokenizerChoice { file: Some(file), place, bos, eos, pad, separator }))
}

/// The tokens of a plan, for who did not choose them.
pub fn named(plan: &Plan<'_>) -> String {
    let named = [
        ("bos", plan.bos.as_ref()),
        ("eos", Some(&plan.eos)),
        ("pad", Some(&plan.pad)),
        ("separator", plan.separator.as_ref()),
    ];
    let none = || "none".to_owned();
    let named =
        named.map(|(key, token)| format!("{key} {}", token.map_or_else(none, |token| format!("{:?}", token.text))));
    format!("in the tokens of {}, {}", plan.tokenizer.name(), named.join(", "))
}
