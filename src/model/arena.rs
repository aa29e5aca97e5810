//! The table of tensors: every number that a model keeps, with name, shape and purpose, before any memory is taken.
//!
//! A model is laid out by writing its table ([`super::decoder::Decoder::lay_out`]); a backend then takes the memory
//! for it in one go. `flanc train --plan` prints the same table, so the plan cannot differ from what happens.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::diag::Diagnostic;

/// A line of the table. Operations name their operands by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tensor(u32);

impl Tensor {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    Weights,
    Gradients,
    Optimizer,
    /// Kept from the forward pass, for the backward pass or for texts to be gone on with.
    Activations,
    /// Used anew by every layer.
    Workspace,
}

impl Group {
    pub const ALL: [Group; 5] =
        [Group::Weights, Group::Gradients, Group::Optimizer, Group::Activations, Group::Workspace];

    pub fn name(self) -> &'static str {
        match self {
            Group::Weights => "weights",
            Group::Gradients => "gradients",
            Group::Optimizer => "optimizer",
            Group::Activations => "activations",
            Group::Workspace => "workspace",
        }
    }
}

/// What a tensor's numbers have to be; a backend's [`Precision`] says how many bytes that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Learned, and kept from step to step in these numbers: in f32, so that small steps are not rounded away, with a copy
    /// to compute with where that is not f32; or in bf16 alone, to which the optimizer rounds by [`super::rounding`].
    Weight(Precision),
    /// Sums over many terms, and one number for a row of others (gradients, moments, losses): 4 bytes everywhere.
    Exact,
    /// What goes from one operation to the next: in the numbers that are computed with.
    Activation,
}

/// The numbers that a backend computes with, or that weights are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

impl Precision {
    /// Bytes that a number of such a tensor takes, its copy included.
    pub fn bytes(self, kind: Kind) -> usize {
        match (self, kind) {
            (Precision::F32, _) | (Precision::Bf16, Kind::Exact) => 4,
            (Precision::Bf16, Kind::Weight(Precision::F32)) => 4 + 2,
            (Precision::Bf16, Kind::Weight(Precision::Bf16) | Kind::Activation) => 2,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub group: Group,
    pub kind: Kind,
    pub shape: Vec<usize>,
}

impl Entry {
    /// Numbers in the tensor; `usize::MAX` where there are more than can be counted.
    pub fn len(&self) -> usize {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self, precision: Precision) -> u64 {
        (self.len() as u64).saturating_mul(precision.bytes(self.kind) as u64)
    }
}

/// Sizes of the model, for what a backend keeps beside the tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most tokens of a batch (N).
    pub tokens: usize,
    /// Most rows of logits at a time (R).
    pub logit_rows: usize,
    /// Query heads (H), 0 where nothing attends, and the width of a head (D).
    pub heads: usize,
    pub head_dim: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
    bounds: Bounds,
    precision: Precision,
}

impl Table {
    pub fn new(bounds: Bounds) -> Table {
        Table { bounds, ..Table::default() }
    }

    /// The same table for a backend that computes with other numbers.
    pub fn kept_in(self, precision: Precision) -> Table {
        Table { precision, ..self }
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn add(&mut self, group: Group, kind: Kind, name: impl Into<String>, shape: &[usize]) -> Tensor {
        self.entries.push(Entry { name: name.into(), group, kind, shape: shape.to_vec() });
        Tensor(self.entries.len() as u32 - 1)
    }

    pub fn get(&self, tensor: Tensor) -> &Entry {
        &self.entries[tensor.index()]
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn bytes(&self, group: Group) -> u64 {
        self.entries.iter().filter(|e| e.group == group).fold(0, |sum, e| sum.saturating_add(e.bytes(self.precision)))
    }

    pub fn total_bytes(&self) -> u64 {
        Group::ALL.iter().fold(0, |sum, &group| sum.saturating_add(self.bytes(group)))
    }

    /// The table as text: each group with its largest members, layers summed up, and whether it fits.
    pub fn plan(&self, memory: Option<u64>) -> String {
        let mut text = String::new();
        let width = self.entries.iter().map(|e| e.name.len() + 2).max().unwrap_or(2);
        let within = width - 2;
        for group in Group::ALL {
            let _ = writeln!(text, "{:<width$} {:>12}", group.name(), megabytes(self.bytes(group)));
            for line in self.lines(group) {
                let shape: Vec<String> = line.shape.iter().map(usize::to_string).collect();
                let times = if line.count > 1 { format!("{} × ", line.count) } else { String::new() };
                let _ = writeln!(
                    text,
                    "  {:<within$} {:>12}  {times}({})",
                    line.name,
                    megabytes(line.bytes),
                    shape.join(", ")
                );
            }
        }
        let total = self.total_bytes();
        let _ = writeln!(text, "{:<width$} {:>12}", "in all", megabytes(total));
        if let Some(memory) = memory {
            let verdict = if total <= memory { "fits into" } else { "does not fit into" };
            let _ = writeln!(text, "{verdict} {}", megabytes(memory));
        }
        text
    }

    /// Tensors of a group; those that every layer has in one line.
    pub fn lines(&self, group: Group) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for entry in self.entries.iter().filter(|e| e.group == group) {
            let name = every_layer(&entry.name);
            match lines.iter_mut().find(|l| l.name == name && l.shape == entry.shape) {
                Some(line) => {
                    line.count += 1;
                    line.bytes = line.bytes.saturating_add(entry.bytes(self.precision));
                }
                None => {
                    lines.push(Line { name, shape: entry.shape.clone(), count: 1, bytes: entry.bytes(self.precision) })
                }
            }
        }
        lines
    }

    /// What is said when the memory for `tensor` cannot be had.
    pub fn out_of_memory(&self, tensor: usize) -> Box<Diagnostic> {
        let entry = &self.entries[tensor];
        let trains = self.bytes(Group::Gradients) > 0;
        let help = match entry.group {
            Group::Activations | Group::Workspace if trains => {
                "lower --micro-batch, or give --recompute, which keeps one layer's activations in place of all"
            }
            Group::Activations | Group::Workspace => "lower --micro-batch",
            Group::Weights | Group::Gradients | Group::Optimizer => {
                "take a smaller model or a machine with more memory"
            }
        };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|kept| self.precision.bytes(Kind::Weight(kept)));
        let weights = self.entries.iter().filter(|e| e.kind == Kind::Weight(Precision::F32));
        let numbers = weights.fold(0u64, |sum, e| sum.saturating_add(e.len() as u64));
        let mut said = Diagnostic::error("out-of-memory", format!("no memory is left for `{}`", entry.name))
            .found(format!(
                "{} for it, {} for the whole run: {}",
                megabytes(entry.bytes(self.precision)),
                megabytes(self.total_bytes()),
                Group::ALL.map(|g| format!("{} {}", g.name(), megabytes(self.bytes(g)))).join(", ")
            ))
            .help(help);
        if !trains {
            return said.into();
        }
        // Worth a word where it saves a tenth of the whole.
        if numbers.saturating_mul((exact - rounded) as u64) > self.total_bytes() / 10 {
            said = said.help("--master-weights bf16 takes 6 bytes for a trained parameter in place of 10");
        }
        said.help("--plan prints what goes where").into()
    }
}

/// Tensors of one name and shape, over all layers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Line {
    pub name: String,
    pub shape: Vec<usize>,
    pub count: usize,
    pub bytes: u64,
}

/// `model.layers.3.mlp` → `model.layers.*.mlp`
fn every_layer(name: &str) -> String {
    name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part }).collect::<Vec<_>>().join(".")
}

pub fn megabytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= 1e10 {
        format!("{:.1} GB", bytes / 1e9)
    } else if bytes >= 1e5 {
        format!("{:.1} MB", bytes / 1e6)
    } else {
        format!("{:.1} kB", bytes / 1e3)
    }
}
