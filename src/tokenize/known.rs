//! Files that the fast engine would read, but not as the reference does.
//!
//! Each rule stands for a difference that was found by comparing both on random files and texts. A rule may be wider
//! than the difference: it costs speed where it need not, and a warning says so.

use serde_json::Value;

/// Why a file is left to the reference, if it is.
pub fn difference(definition: &Value) -> Option<String> {
    let [normalizer, pre_tokenizer] = [&definition["normalizer"], &definition["pre_tokenizer"]];
    let metaspace = component(pre_tokenizer, "Metaspace");
    let matched = matched_in_data(&definition["added_tokens"]);
    let token_with = |flag: &str| matched.iter().find(|t| t[flag] == true).map(|t| t["content"].to_string());

    if let Some(token) = token_with("single_word") {
        return Some(format!(
            "it takes too little of the text around the added token {token} into account (`single_word`)"
        ));
    }
    if let Some(token) = token_with("normalized").filter(|_| !normalizer.is_null() || metaspace.is_some()) {
        return Some(format!("it finds the added token {token} elsewhere in a normalized text (`normalized`)"));
    }
    if let Some(token) =
        token_with("lstrip").or_else(|| token_with("rstrip")).filter(|_| matched.iter().any(|t| has_bare_edge(t)))
    {
        return Some(format!(
            "it gives the white space beside the added token {token} to another token (`lstrip`, `rstrip`)"
        ));
    }
    if metaspace.is_some_and(|m| m["prepend_scheme"] == "first") && component(normalizer, "Strip").is_some() {
        return Some("it puts a space before a text whose first characters were stripped".to_owned());
    }
    // To the reference, \u{b2} and \u{bd} belong to words, and joiners do not.
    let is_vague = |pattern: &&str| [r"\w", r"\W", r"\b", r"\B"].iter().any(|class| pattern.contains(class));
    let pattern = [normalizer, pre_tokenizer].map(patterns).concat().into_iter().find(is_vague)?;
    Some(format!("its regular expressions differ in what belongs to a word: {pattern}"))
}

/// The added tokens that text can match: all but the special ones.
fn matched_in_data(added_tokens: &Value) -> Vec<&Value> {
    added_tokens.as_array().into_iter().flatten().filter(|token| token["special"] != true).collect()
}

/// Whether an added token begins or ends in white space.
fn has_bare_edge(token: &Value) -> bool {
    token["content"].as_str().is_some_and(|text| text.trim() != text)
}

/// The component of this type, alone or in a sequence.
fn component<'d>(tree: &'d Value, kind: &str) -> Option<&'d Value> {
    if tree["type"] == kind {
        return Some(tree);
    }
    let parts = [&tree["normalizers"], &tree["pretokenizers"]].into_iter().filter_map(Value::as_array).flatten();
    parts.into_iter().find_map(|part| component(part, kind))
}

/// The regular expressions anywhere in a component.
fn patterns(tree: &Value) -> Vec<&str> {
    match tree {
        Value::Object(fields) => {
            let own = fields.get("Regex").and_then(Value::as_str);
            own.into_iter().chain(fields.values().flat_map(patterns)).collect()
        }
        Value::Array(parts) => parts.iter().flat_map(patterns).collect(),
        _ => Vec::new(),
    }
}
