//! The shape of a model: what a `config.json` of Hugging Face says, checked once.
//!
//! Three families are read, which are one decoder with small differences:
//!
//! | `model_type` | biases | norm of q and k | size of a head |
//! | --- | --- | --- | --- |
//! | `llama` | q, k, v and o if `attention_bias` | no | `head_dim`, or hidden / heads |
//! | `qwen2` | q, k, v | no | hidden / heads |
//! | `qwen3` | q, k, v and o if `attention_bias` | yes | `head_dim` |
//!
//! Whatever would change the numbers and is not implemented (sliding windows, other activations, other kinds of RoPE
//! scaling) is refused by name: a model that trains with the wrong formula looks well until it is used elsewhere.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::rope::{Rope, Scaling, Yarn};
use crate::diag::{Diagnostic, Result, listing};
use crate::storage;

pub const FILE: &str = "config.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

/// A decoder-only model. Letters in brackets are those of the shape comments.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    /// (V)
    pub vocabulary: usize,
    /// Width of the residual stream (C).
    pub hidden: usize,
    /// Width inside the MLP (F).
    pub intermediate: usize,
    /// (L)
    pub layers: usize,
    /// Query heads (H).
    pub heads: usize,
    /// Key and value heads (K), each shared by H / K query heads.
    pub kv_heads: usize,
    /// Width of a head (D).
    pub head_dim: usize,
    pub norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Scaling,
    /// Longest segment the model is made for.
    pub max_positions: usize,
    /// The head is the embedding.
    pub tied: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub qk_norm: bool,
    /// Standard deviation of fresh weights.
    pub init_std: f64,
    /// Everything the file says, so that a saved model says it too.
    raw: Map<String, Value>,
}

impl Config {
    /// Reads a `config.json`.
    pub fn open(path: &Path) -> Result<Config> {
        let text = storage::read_text(path)?;
        Config::parse(&text).map_err(|d| Box::new(d.at(path)))
    }

    /// Reads the text of a `config.json`.
    pub fn parse(text: &str) -> Result<Config> {
        let raw: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            Diagnostic::error("model-config", format!("the model's configuration is not a JSON object: {e}"))
        })?;
        let keys = Keys(&raw);
        let family = match keys.text("model_type")? {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            other => {
                return Err(Diagnostic::error(
                    "model-unsupported",
                    format!("models of type `{other}` are not supported"),
                )
                .expected("`llama`, `qwen2` or `qwen3`")
                .help("Llama 2 and 3, TinyLlama, SmolLM, Qwen2, Qwen2.5 and Qwen3 (dense) are of these types")
                .into());
            }
        };
        let hidden = keys.size("hidden_size", None)?;
        let heads = keys.size("num_attention_heads", None)?;
        let kv_heads = keys.size("num_key_value_heads", Some(heads))?;
        let head_dim = match family {
            Family::Qwen3 => keys.size("head_dim", Some(128))?,
            Family::Llama => keys.size("head_dim", Some(hidden / heads))?,
            Family::Qwen2 => hidden / heads,
        };
        let attention_bias = keys.flag("attention_bias", false)?;
        let positions =
            keys.size("max_position_embeddings", Some(if family == Family::Llama { 2048 } else { 32_768 }))?;
        let (rope_theta, rope_scaling) = keys.rope(positions)?;
        let config = Config {
            family,
            vocabulary: keys.size("vocab_size", None)?,
            hidden,
            intermediate: keys.size("intermediate_size", None)?,
            layers: keys.size("num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_dim,
            norm_eps: keys.number("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            rope_scaling,
            max_positions: rope_scaling.positions(positions),
            tied: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            qk_norm: family == Family::Qwen3,
            init_std: keys.number("initializer_range", Some(0.02))?,
            raw: raw.clone(),
        };
        keys.refuse_what_changes_the_numbers()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Diagnostic::error("model-config", message).into());
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!(
                "{} query heads cannot be shared out to {} key-value heads: \
                 `num_attention_heads` has to be a multiple of `num_key_value_heads`",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim == 0 {
            return wrong(format!(
                "a head of {} numbers cannot be rotated in pairs: `head_dim` has to be even",
                self.head_dim
            ));
        }
        if self.family == Family::Qwen2 && self.head_dim * self.heads != self.hidden {
            return wrong(format!("`hidden_size` {} is no multiple of {} heads", self.hidden, self.heads));
        }
        let norm_eps = f64::from(self.norm_eps);
        for (key, value) in [("rms_norm_eps", norm_eps), ("rope_theta", self.rope_theta)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(format!("`{key}` is {value}; it has to be above 0"));
            }
        }
        Ok(())
    }

    /// The text of a `config.json` that says the same, with weights of type `dtype` (`float32`, `bfloat16`).
    pub fn to_json(&self, dtype: &str) -> String {
        let mut raw = self.raw.clone();
        let (class, kind) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        raw.insert("architectures".into(), json!([class]));
        raw.insert("model_type".into(), json!(kind));
        // Newer versions of transformers write and prefer `dtype`, older ones know only `torch_dtype`.
        let newer = raw.contains_key("dtype");
        raw.insert("torch_dtype".into(), json!(dtype));
        if newer {
            raw.insert("dtype".into(), json!(dtype));
        }
        // The defaults differ between classes and versions; what was used is written.
        raw.insert("tie_word_embeddings".into(), json!(self.tied));
        let mut text = serde_json::to_string_pretty(&raw).expect("JSON values can always be written");
        text.push('\n');
        text
    }

    /// Width of all query heads together (H·D).
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads (K·D).
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The rotations of queries and keys.
    pub fn rope(&self) -> Rope {
        Rope::new(self.rope_theta, self.head_dim, self.rope_scaling)
    }
}

/// Looks up keys of a configuration; `null` counts as absent, as it does in transformers.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn missing(&self, key: &str) -> Box<Diagnostic> {
        Diagnostic::error("model-config", format!("the model's configuration has no `{key}`"))
            .found(listing(self.0.keys().map(String::as_str)))
            .into()
    }

    fn wrong(key: &str, expected: &str, found: &Value) -> Box<Diagnostic> {
        Diagnostic::error("model-config", format!("`{key}` of the model's configuration is not {expected}"))
            .found(found.to_string())
            .into()
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().ok_or_else(|| Self::wrong(key, "a text", value))
    }

    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        // Sizes are multiplied with each other; below this no product of the few that are overflows.
        const LIMIT: u64 = 1 << 24;
        match (self.get(key), default) {
            (None, None) => Err(self.missing(key)),
            (None, Some(default)) => Ok(default),
            (Some(value), _) => match value.as_u64() {
                Some(size @ 1..=LIMIT) => Ok(size as usize),
                _ => Err(Self::wrong(key, "a whole number from 1 to 16,777,216", value)),
            },
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (None, None) => Err(self.missing(key)),
            (None, Some(default)) => Ok(default),
            (Some(value), _) => value.as_f64().ok_or_else(|| Self::wrong(key, "a number", value)),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| Self::wrong(key, "true or false", value)),
        }
    }

    /// Base and scaling, from `rope_theta` and `rope_scaling`, or from `rope_parameters`, which holds both since
    /// transformers 5. `positions` is `max_position_embeddings`.
    fn rope(&self, positions: usize) -> Result<(f64, Scaling)> {
        let object = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_object().map(Some).ok_or_else(|| Self::wrong(key, "an object", value)),
        };
        let parameters = object("rope_parameters")?;
        let theta = match parameters {
            Some(parameters) if parameters.contains_key("rope_theta") => Keys(parameters).number("rope_theta", None)?,
            _ => self.number("rope_theta", Some(10_000.0))?,
        };
        let Some(scaling) = parameters.or(object("rope_scaling")?) else { return Ok((theta, Scaling::None)) };
        let scaling = Keys(scaling);
        scaling.refuse_what_changes_the_numbers()?; // `partial_rotary_factor` may stand here too
        let kind = match scaling.get("rope_type").or(scaling.get("type")) {
            None => "default",
            Some(kind) => kind.as_str().ok_or_else(|| Self::wrong("rope_type", "a text", kind))?,
        };
        let factor = || -> Result<f64> {
            match scaling.number("factor", None)? {
                factor if factor >= 1.0 => Ok(factor),
                _ => Err(Diagnostic::error("model-config", "`factor` of the RoPE scaling has to be at least 1").into()),
            }
        };
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: factor()? },
            "llama3" => {
                let low = scaling.number("low_freq_factor", None)?;
                let high = scaling.number("high_freq_factor", None)?;
                let original = scaling.number("original_max_position_embeddings", None)?;
                if !(low > 0.0 && high > low && original > 0.0) {
                    return Err(Diagnostic::error("model-config", "the llama3 RoPE scaling makes no sense")
                        .expected("0 < low_freq_factor < high_freq_factor, original_max_position_embeddings > 0")
                        .found(format!("{low}, {high}, {original}"))
                        .into());
                }
                Scaling::Llama3 { factor: factor()?, low, high, original }
            }
            "yarn" if theta > 1.0 => Scaling::Yarn(scaling.yarn(factor()?, positions)?),
            "yarn" => return Err(Self::wrong("rope_theta", "above 1, as YaRN needs it", &json!(theta))),
            other => {
                return Err(Diagnostic::error(
                    "model-unsupported",
                    format!("RoPE scaling of type `{other}` is not supported"),
                )
                .expected("`default`, `linear`, `llama3` or `yarn`")
                .help("if no segment is longer than the original context, `rope_scaling` can be set to null")
                .into());
            }
        };
        Ok((theta, scaling))
    }

    /// What a scaling by YaRN says, with the defaults of transformers.
    fn yarn(&self, factor: f64, positions: usize) -> Result<Yarn> {
        const KNOWN: [&str; 12] = [
            "rope_type",
            "type",
            "rope_theta",
            "partial_rotary_factor",
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ];
        if let Some(other) = self.0.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            let message = format!("the RoPE scaling has a `{other}`, which is not known of YaRN");
            return Err(Diagnostic::error("model-unsupported", message).expected(listing(KNOWN)).into());
        }
        let (weight, weight_of_all) = (self.number("mscale", Some(0.0))?, self.number("mscale_all_dim", Some(0.0))?);
        let by_weights = if weight != 0.0 && weight_of_all != 0.0 {
            Yarn::amplitude(factor, weight) / Yarn::amplitude(factor, weight_of_all)
        } else {
            Yarn::amplitude(factor, 1.0)
        };
        let yarn = Yarn {
            factor,
            original: self.number("original_max_position_embeddings", Some(positions as f64))?,
            fast: self.number("beta_fast", Some(32.0))?,
            slow: self.number("beta_slow", Some(1.0))?,
            truncate: self.flag("truncate", true)?,
            amplitude: self.number("attention_factor", Some(by_weights))?,
        };
        if !(yarn.original >= 1.0 && yarn.slow > 0.0 && yarn.fast >= yarn.slow && yarn.amplitude > 0.0) {
            return Err(Diagnostic::error("model-config", "the yarn RoPE scaling makes no sense")
                .expected("0 < beta_slow <= beta_fast, attention_factor > 0, original_max_position_embeddings >= 1")
                .found(format!("{}, {}, {}, {}", yarn.slow, yarn.fast, yarn.amplitude, yarn.original))
                .into());
        }
        Ok(yarn)
    }

    fn refuse_what_changes_the_numbers(&self) -> Result<()> {
        let neutral: [(&str, &[Value]); 9] = [
            ("hidden_act", &[json!("silu"), json!("swish")]),
            ("mlp_bias", &[json!(false)]),
            ("use_sliding_window", &[json!(false)]),
            ("attention_dropout", &[json!(0), json!(0.0)]),
            ("residual_dropout", &[json!(0), json!(0.0)]),
            ("embedding_dropout", &[json!(0), json!(0.0)]),
            ("pretraining_tp", &[json!(1)]),
            ("quantization_config", &[]),
            ("partial_rotary_factor", &[json!(1), json!(1.0)]),
        ];
        for (key, allowed) in neutral {
            let Some(value) = self.get(key) else { continue };
            if !allowed.contains(value) {
                let diagnostic = Diagnostic::error(
                    "model-unsupported",
                    format!("the model's configuration asks for a `{key}` that is not supported"),
                )
                .found(value.to_string());
                return Err(match allowed.first() {
                    Some(value) => diagnostic.expected(value.to_string()),
                    None => diagnostic.expected("weights in f32, bf16 or f16"),
                }
                .into());
            }
        }
        if let Some(Value::Array(kinds)) = self.get("layer_types")
            && let Some(other) = kinds.iter().find(|k| k.as_str() != Some("full_attention"))
        {
            return Err(Diagnostic::error("model-unsupported", "only full attention is supported")
                .found(format!("{other} among `layer_types`"))
                .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2"#;

    fn refusal(more: &str) -> String {
        Config::parse(&format!("{SMALL}{more}}}")).expect_err("refused").to_string()
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = Config::parse(&format!("{SMALL}}}")).unwrap();
        assert_eq!((config.kv_heads, config.head_dim, config.tied), (2, 4, false));
        assert_eq!((config.norm_eps, config.rope_theta, config.max_positions), (1e-6, 10_000.0, 2048));
        let again = Config::parse(&config.to_json("float32")).unwrap();
        assert_eq!(again.head_dim, config.head_dim);
    }

    #[test]
    fn rope_is_read_in_both_forms() {
        let older = Config::parse(&format!(
            r#"{SMALL}, "rope_theta": 500000.0, "rope_scaling": {{"rope_type": "linear", "factor": 2.0}}}}"#
        ));
        let newer = Config::parse(&format!(
            r#"{SMALL}, "rope_parameters": {{"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0}}}}"#
        ));
        let (older, newer) = (older.unwrap(), newer.unwrap());
        assert_eq!(older.rope_scaling, Scaling::Linear { factor: 2.0 });
        assert_eq!((older.rope_theta, older.rope_scaling), (newer.rope_theta, newer.rope_scaling));
        assert_eq!(older.rope().frequencies[0], 0.5);
    }

    #[test]
    fn yarn_is_read_with_the_defaults_of_transformers() {
        let read = |more: &str| {
            let text = format!(
                r#"{SMALL}, "max_position_embeddings": 32768, "rope_scaling": {{"type": "yarn", "factor": 4.0{more}}}}}"#
            );
            let config = Config::parse(&text).unwrap();
            let again = Config::parse(&config.to_json("float32")).unwrap();
            assert_eq!(again.rope_scaling, config.rope_scaling, "what is saved says the same");
            let Scaling::Yarn(yarn) = config.rope_scaling else { panic!("{:?}", config.rope_scaling) };
            (config.max_positions, yarn)
        };
        let (positions, yarn) = read("");
        assert_eq!((positions, yarn.original, yarn.fast, yarn.slow), (131_072, 32_768.0, 32.0, 1.0));
        assert!(yarn.truncate && (yarn.amplitude - 1.138_629_436).abs() < 1e-9);
        let (positions, yarn) =
            read(r#", "original_max_position_embeddings": 4096, "beta_fast": 16, "truncate": false"#);
        assert_eq!((positions, yarn.original, yarn.fast, yarn.truncate), (32_768, 4096.0, 16.0, false));
        assert_eq!(read(r#", "attention_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0"#).1.amplitude, 0.5);
        // As transformers 5.23.0 computes it.
        let (_, yarn) = read(r#", "mscale": 0.707, "mscale_all_dim": 1.0"#);
        assert!((yarn.amplitude - 0.964_326_914_892).abs() < 1e-9, "{}", yarn.amplitude);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert!(refusal(r#", "hidden_act": "gelu""#).contains("`hidden_act`"));
        assert!(refusal(r#", "rope_scaling": {"type": "dynamic", "factor": 4}"#).contains("`dynamic`"));
        let yarn = |more: &str| refusal(&format!(r#", "rope_scaling": {{"type": "yarn"{more}}}"#));
        assert!(yarn("").contains("no `factor`"));
        assert!(yarn(r#", "factor": 4, "attn_factor": 2"#).contains("`attn_factor`"));
        assert!(yarn(r#", "factor": 4, "beta_slow": 64"#).contains("beta_slow <= beta_fast"));
        assert!(yarn(r#", "factor": 4, "partial_rotary_factor": 0.5"#).contains("`partial_rotary_factor`"));
        let narrow = refusal(r#", "rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 4}"#);
        assert!(narrow.contains("above 1"));
        assert!(refusal(r#", "num_key_value_heads": 3"#).contains("multiple"));
        assert!(refusal(r#", "attention_dropout": 0.1"#).contains("`attention_dropout`"));
        assert!(refusal(r#", "num_key_value_heads": 0"#).contains("from 1"));
        assert!(Config::parse(r#"{"model_type": "gpt2"}"#).unwrap_err().to_string().contains("`gpt2`"));
        assert!(Config::parse(r#"{"model_type": "llama"}"#).unwrap_err().to_string().contains("`hidden_size`"));
    }
}
