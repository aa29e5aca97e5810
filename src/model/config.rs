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

use crate::diag::{Diagnostic, Result, listing};
use crate::storage;

pub const FILE: &str = "config.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

/// How far rotations are slowed down for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
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
        let (rope_theta, rope_scaling) = keys.rope()?;
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
            max_positions: keys
                .size("max_position_embeddings", Some(if family == Family::Llama { 2048 } else { 32_768 }))?,
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

    /// Radians that each pair of a head's numbers turns from one position to the next (D / 2).
    ///
    /// Pair i turns by `theta^(-2i / D)`, scaled; computed in f32 as transformers does, where a last bit more or less
    /// becomes visible at high positions.
    pub fn rotation_frequencies(&self) -> Vec<f32> {
        let pairs = self.head_dim / 2;
        let plain = (0..pairs).map(|i| {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / (self.rope_theta as f32).powf(exponent)
        });
        match self.rope_scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
            Scaling::Llama3 { factor, low, high, original } => plain
                .map(|frequency| {
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength < (original / high) as f32 {
                        return frequency;
                    }
                    if wavelength > (original / low) as f32 {
                        return frequency / factor as f32;
                    }
                    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                })
                .collect(),
        }
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
    /// transformers 5.
    fn rope(&self) -> Result<(f64, Scaling)> {
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
            other => {
                return Err(Diagnostic::error(
                    "model-unsupported",
                    format!("RoPE scaling of type `{other}` is not supported"),
                )
                .expected("`default`, `linear` or `llama3`")
                .help("if no segment is longer than the original context, `rope_scaling` can be set to null")
                .into());
            }
        };
        Ok((theta, scaling))
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
        assert_eq!(older.rotation_frequencies()[0], 0.5);
    }

    /// Llama 3.1's, as transformers 4.44.2 computes them: those up to pair 28 are kept, those from 35 on divided.
    #[test]
    fn frequencies_of_llama_3_are_kept_interpolated_or_divided() {
        let config = Config::parse(&format!(
            r#"{SMALL}, "head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {{"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}}}"#
        ));
        let frequencies = config.unwrap().rotation_frequencies();
        for (pair, expected) in [
            (0, 1.0),
            (28, 3.211_446e-3),
            (29, 2.166_570_6e-3),
            (31, 8.567_514_6e-4),
            (34, 1.785_077_9e-4),
            (35, 9.556_212e-5),
            (63, 3.068_926e-7),
        ] {
            let found: f32 = frequencies[pair];
            assert!((found / expected - 1.0).abs() < 1e-5, "pair {pair}: {found:e}, not {expected:e}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert!(refusal(r#", "hidden_act": "gelu""#).contains("`hidden_act`"));
        assert!(refusal(r#", "rope_scaling": {"type": "yarn", "factor": 4}"#).contains("`yarn`"));
        assert!(refusal(r#", "num_key_value_heads": 3"#).contains("multiple"));
        assert!(refusal(r#", "attention_dropout": 0.1"#).contains("`attention_dropout`"));
        assert!(refusal(r#", "num_key_value_heads": 0"#).contains("from 1"));
        assert!(Config::parse(r#"{"model_type": "gpt2"}"#).unwrap_err().to_string().contains("`gpt2`"));
        assert!(Config::parse(r#"{"model_type": "llama"}"#).unwrap_err().to_string().contains("`hidden_size`"));
    }
}
