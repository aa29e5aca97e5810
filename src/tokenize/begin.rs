//! What a file's post-processor puts before every text.
//!
//! It does not apply where we encode: what a prompt begins with is said by its recipe. Other programs go by the file, so
//! that the one beside a finished model has to say what the data had.

use serde_json::{Map, Value, json};

use super::Control;

/// The token that a `post_processor` puts before every text.
pub fn begins_with(processor: &Value) -> Option<&str> {
    match processor["type"].as_str()? {
        "Sequence" => processor["processors"].as_array()?.iter().find_map(begins_with),
        "TemplateProcessing" => {
            let name = processor["single"][0]["SpecialToken"]["id"].as_str()?;
            // A template's name for a token may stand for another, or for several.
            processor["special_tokens"][name]["tokens"][0].as_str().or(Some(name))
        }
        "BertProcessing" | "RobertaProcessing" => processor["cls"][0].as_str(),
        _ => None,
    }
}

/// A tokenizer file of the same tokens whose post-processor puts `bos`, or nothing, before every text.
///
/// Where it has to be another one, what else it put around a text goes with it; what only mends offsets stays.
pub fn beginning_with(json: String, bos: Option<&Control>) -> String {
    let Ok(mut definition) = serde_json::from_str::<Map<String, Value>>(&json) else { return json };
    let processor = definition.remove("post_processor").unwrap_or_default();
    if begins_with(&processor) == bos.map(|bos| bos.text.as_str()) {
        return json;
    }
    let mut steps = match &processor["processors"] {
        Value::Array(steps) => steps.clone(),
        _ => vec![processor],
    };
    steps.retain(|step| step["type"] == "ByteLevel");
    steps.extend(bos.map(template));
    let processor = match steps.len() {
        0 => Value::Null,
        1 => steps.remove(0),
        _ => json!({ "type": "Sequence", "processors": steps }),
    };
    definition.insert("post_processor".to_owned(), processor);
    format!("{:#}\n", Value::Object(definition))
}

fn template(bos: &Control) -> Value {
    let token = |segment: u32| json!({ "SpecialToken": { "id": bos.text, "type_id": segment } });
    let text = |name: &str, segment: u32| json!({ "Sequence": { "id": name, "type_id": segment } });
    let mut special_tokens = Map::new();
    special_tokens.insert(bos.text.clone(), json!({ "id": bos.text, "ids": [bos.id], "tokens": [bos.text] }));
    json!({
        "type": "TemplateProcessing",
        "single": [token(0), text("A", 0)],
        "pair": [token(0), text("A", 0), token(1), text("B", 1)],
        "special_tokens": special_tokens,
    })
}
