//! Checkpoints in Hugging Face's form: `config.json` and safetensors files.
//!
//! Read: `model.safetensors`, or the files that `model.safetensors.index.json` names; f32, bf16 and f16. Headers are
//! checked by the `safetensors` crate (sizes, overlaps, order) before a number is taken from the mapped file; names and
//! shapes are then compared with the table of the model. Written: one file, tensor by tensor, so that a checkpoint
//! takes no memory of its own; format of the file: <https://huggingface.co/docs/safetensors>.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype as Stored, SafeTensors};
use serde_json::{Map, Value, json};

use super::arena::Tensor;
use super::config::{self, Config};
use super::decoder::Decoder;
use super::ops::Ops;
use crate::diag::{Diagnostic, Result, listing};
use crate::seed::{Seed, Stream};
use crate::storage::{self, Mapped, Pending};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    /// Rounded to nearest, ties to even.
    #[default]
    Bf16,
}

impl Dtype {
    /// As `config.json` names it.
    fn torch(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
        }
    }

    fn stored(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// Reads the configuration of a model's directory.
pub fn config(directory: &Path) -> Result<Config> {
    Config::open(&directory.join(config::FILE))
}

/// Reads the weights of a model's directory into a backend.
pub fn load(directory: &Path, decoder: &Decoder, ops: &mut impl Ops) -> Result<()> {
    let files = files(directory)?;
    let mapped: Vec<(PathBuf, Mapped)> =
        files.into_iter().map(|path| Ok((path.clone(), storage::map(&path)?))).collect::<Result<_>>()?;
    let mut found = BTreeMap::new();
    let mut parsed = Vec::new();
    for (path, bytes) in &mapped {
        parsed.push((path, parse(path, bytes)?));
    }
    for (path, file) in &parsed {
        for (name, view) in file.iter() {
            found.insert(name, (*path, view));
        }
    }
    let mut unused: Vec<&str> = found.keys().copied().collect();
    for parameter in &decoder.parameters {
        let name = parameter.name.as_str();
        let Some((path, view)) = found.get(name) else {
            return Err(Diagnostic::error("weight-missing", format!("the checkpoint has no tensor `{name}`"))
                .at(directory)
                .found(listing(found.keys().copied()))
                .help("config.json and the weights have to be of the same model")
                .into());
        };
        let shape = &ops.table().get(parameter.weight).shape;
        if view.shape() != shape.as_slice() {
            return Err(Diagnostic::error("weight-shape", format!("`{name}` has another shape than config.json says"))
                .at(*path)
                .expected(format!("{shape:?}"))
                .found(format!("{:?}", view.shape()))
                .into());
        }
        let values = numbers(view.dtype(), view.data()).ok_or_else(|| {
            Diagnostic::error("weight-type", format!("`{name}` is stored as {:?}", view.dtype()))
                .at(*path)
                .expected("F32, BF16 or F16")
        })?;
        ops.write(parameter.weight, &values);
        unused.retain(|n| *n != name);
    }
    // Old checkpoints carry the rotations along, and some a copy of a tied head.
    let harmless = |n: &str| n.ends_with("rotary_emb.inv_freq") || decoder.config.tied && n == "lm_head.weight";
    unused.retain(|n| !harmless(n));
    if !unused.is_empty() {
        return Err(Diagnostic::error(
            "weight-unknown",
            "the checkpoint has tensors that this kind of model does not have",
        )
        .at(directory)
        .found(listing(unused))
        .help("without them the model would compute something else; is config.json that of this checkpoint?")
        .into());
    }
    Ok(())
}

/// The files that a model's weights are in.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let single = directory.join(SINGLE);
    if storage::stamp(&single).is_some() {
        return Ok(vec![single]);
    }
    let index = directory.join(INDEX);
    if storage::stamp(&index).is_none() {
        return Err(Diagnostic::error("no-weights", "there are no weights here")
            .at(directory)
            .expected(format!("{SINGLE}, or {INDEX} and the files it names"))
            .help("a checkpoint in another format (pytorch_model.bin, GGUF) has to be saved as safetensors first")
            .into());
    }
    let wrong = |what: &str| Diagnostic::error("weight-index", format!("{INDEX} {what}")).at(&index);
    let text = storage::read_text(&index)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(&format!("is not JSON: {e}")))?;
    let map = value["weight_map"].as_object().ok_or_else(|| wrong("has no object `weight_map`"))?;
    let mut names = Vec::new();
    for file in map.values() {
        let name = file.as_str().ok_or_else(|| wrong("names a file by something else than a text"))?;
        // A path that leads elsewhere is none that a checkpoint has.
        if Path::new(name).components().count() != 1 || name.starts_with('.') {
            return Err(wrong("names a file outside its directory").found(name.to_owned()).into());
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn parse<'b>(path: &Path, bytes: &'b [u8]) -> Result<SafeTensors<'b>> {
    SafeTensors::deserialize(bytes).map_err(|e| {
        Diagnostic::error("safetensors", format!("{} is not a whole safetensors file: {e}", path.display()))
            .at(path)
            .help("compare its size with that of the original; a Git LFS pointer is a text file of some 130 bytes")
            .into()
    })
}

fn numbers(dtype: Stored, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Stored::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Stored::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        Stored::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// Gives a model fresh weights: normal with the configuration's standard deviation, norms 1, biases 0.
pub fn init(seed: Seed, decoder: &Decoder, ops: &mut impl Ops) {
    for parameter in &decoder.parameters {
        let name = parameter.name.as_str();
        let length = ops.table().get(parameter.weight).len();
        let values = if name.ends_with("norm.weight") {
            vec![1.0; length]
        } else if name.ends_with(".bias") {
            vec![0.0; length]
        } else {
            let stream = seed.stream(&["init", name]);
            (0..length as u64).map(|i| (normal(stream, i) * decoder.config.init_std) as f32).collect()
        };
        ops.write(parameter.weight, &values);
    }
}

/// A standard normal number, by Box and Muller.
fn normal(stream: Stream, index: u64) -> f64 {
    let uniform = |draw: u64| ((draw >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (u, v) = (uniform(stream.draw(2 * index)), uniform(stream.draw(2 * index + 1)));
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

/// Writes a model that transformers and vLLM load.
pub fn save(directory: &Path, decoder: &Decoder, ops: &impl Ops, dtype: Dtype) -> Result<()> {
    let tensors: Vec<(String, Tensor)> = decoder.parameters.iter().map(|p| (p.name.clone(), p.weight)).collect();
    save_tensors(&directory.join(SINGLE), &tensors, ops, dtype)?;
    storage::write(&directory.join(config::FILE), decoder.config.to_json(dtype.torch()).as_bytes())
}

/// Writes tensors to a safetensors file.
pub fn save_tensors(path: &Path, tensors: &[(String, Tensor)], ops: &impl Ops, dtype: Dtype) -> Result<()> {
    let mut header = Map::new();
    // transformers refuses files that do not say which framework they are from.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for (name, tensor) in tensors {
        let entry = ops.table().get(*tensor);
        let begin = end;
        end += entry.len() * dtype.bytes();
        let line = json!({ "dtype": dtype.stored(), "shape": entry.shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), line);
    }
    let mut header = Value::Object(header).to_string();
    // Data begins at a multiple of 8.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let failed = |e: std::io::Error| storage::failure("write", path, &e);
    let mut file = Pending::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(header.as_bytes()).map_err(failed)?;
    for (_, tensor) in tensors {
        let values = ops.read(*tensor);
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        };
        file.write_all(&bytes).map_err(failed)?;
    }
    ops.healthy()?;
    file.commit()
}

/// Reads tensors that [`save_tensors`] wrote as `dtype`, all of them and no others.
pub fn load_tensors(path: &Path, tensors: &[(String, Tensor)], ops: &mut impl Ops, dtype: Dtype) -> Result<()> {
    let bytes = storage::map(path)?;
    let file = parse(path, &bytes)?;
    let differs = |name: &str| {
        Diagnostic::error("checkpoint", format!("`{name}` is not in the checkpoint as the model has it"))
            .at(path)
            .help("remove the checkpoint's directory; the one before it is used then")
    };
    let stored = match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::Bf16 => Stored::BF16,
    };
    for (name, tensor) in tensors {
        let view = file.tensor(name).map_err(|_| differs(name))?;
        if view.dtype() != stored || view.shape() != ops.table().get(*tensor).shape.as_slice() {
            return Err(differs(name).into());
        }
        let values = numbers(view.dtype(), view.data()).ok_or_else(|| differs(name))?;
        ops.write(*tensor, &values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_weights_are_normal_and_pinned() {
        let stream = Seed(17).stream(&["init", "w"]);
        let draws: Vec<f64> = (0..10_000).map(|i| normal(stream, i)).collect();
        let mean = draws.iter().sum::<f64>() / 1e4;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
