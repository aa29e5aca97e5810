//! Recipes and rates: which tasks go into a mixture, how much of each, and in what form.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::diag::{Diagnostic, Source, Span};
use crate::document::{self, Table, WordOrInteger};
use crate::template::definition::Kind;
use crate::template::snippet::Snippet;

/// A recipe, as it is meant.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub source: Arc<Source>,
    pub seed: u64,
    /// Selectors: `*`, a cluster, a task, or one of these after `!`.
    pub tasks: Vec<Snippet>,
    /// Clusters or tasks that training must not see.
    pub hold_out: Vec<Snippet>,
    /// Most source examples taken from a split; `None` takes all.
    pub cap: Option<u64>,
    pub select: Select,
    pub filters: Filters,
    pub templates: Choice,
    pub kinds: Vec<Kind>,
    /// Most examples that count towards a task's weight.
    pub rate_max: u64,
    pub temperature: f64,
    pub size: Size,
    pub wrapper: Wrapper,
    pub absent: Absent,
    /// Multiplies absolute row bounds in split expressions.
    pub split_scale: f64,
    pub tokenizer: TokenizerChoice,
    pub lengths: Lengths,
    pub output: Output,
}

impl Recipe {
    /// The recipe as it is meant, defaults included, under the keys of the file.
    pub fn settings(&self) -> serde_json::Value {
        let texts = |list: &[Snippet]| list.iter().map(|s| s.text.clone()).collect::<Vec<_>>();
        serde_json::json!({
            "seed": self.seed,
            "tasks": texts(&self.tasks),
            "hold_out": texts(&self.hold_out),
            "cap": self.cap,
            "select": self.select,
            "filters": self.filters,
            "templates": match self.templates {
                Choice::All => serde_json::json!("all"),
                Choice::Some(n) => serde_json::json!(n),
                Choice::RoundRobin => serde_json::json!("round-robin"),
            },
            "kinds": self.kinds,
            "rate_max": self.rate_max,
            "temperature": self.temperature,
            "size": self.size,
            "wrapper": self.wrapper,
            "absent": self.absent,
            "split_scale": self.split_scale,
            "lengths": self.lengths,
            "output": self.output,
        })
    }
}

/// Which examples fall under the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Those with the smallest keyed hashes: a smaller cap takes a subset.
    Hash,
    /// The first ones, as FLAN v1 does.
    Head,
}

/// Whether a task's filter runs before the cap counts or after it, as in FLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filters {
    BeforeCap,
    AfterCap,
}

/// Which templates an example goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    All,
    /// This many, drawn for each example.
    Some(u64),
    /// The i-th example kept goes through template i mod n, as in FLAN v1.
    RoundRobin,
}

/// How large the mixture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Size {
    /// Every prompt once.
    All,
    /// This many prompts, by rates.
    Prompts(u64),
    /// As many prompts, by rates, as come nearest to this many tokens.
    Tokens(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrapper {
    None,
    /// `0 … X 1 FLAN`, the dialogue markers of FLAN v1.
    FlanV1,
}

/// What to do about a corpus or split that is not on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Absent {
    Error,
    Skip,
}

#[derive(Clone, Debug)]
pub struct TokenizerChoice {
    pub file: PathBuf,
    /// Where the recipe names the file, or would.
    pub place: Span,
    pub eos: Option<Snippet>,
    pub pad: Option<Snippet>,
    /// A control token between inputs and targets.
    pub separator: Option<Snippet>,
}

/// Lengths in tokens: inputs with their separator, targets with their end of sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lengths {
    pub inputs: usize,
    pub targets: usize,
    pub overflow: Overflow,
}

/// What happens to a prompt that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The longest field is cut until the rest of the prompt fits.
    Shorten,
    /// The prompt is left out.
    Drop,
    /// The ids are cut on the right, whatever stands there.
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    pub profile: Profile,
    /// Tokens in a packed row.
    pub sequence: usize,
    /// Whether to write a mixture, or task shards only.
    pub mix: bool,
    /// Tokens in a shard of the mixture, at most, before padding.
    pub shard_tokens: u64,
}

/// The columns of the mixture, by who reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    Packed,
    Sft,
    Megatron,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Profile::Packed => "packed",
            Profile::Sft => "sft",
            Profile::Megatron => "megatron",
        }
    }
}

/// Reads a recipe; a tokenizer path in it is taken from `directory`.
pub fn read(source: &Arc<Source>, directory: &Path) -> Result<(Recipe, Vec<Diagnostic>), Vec<Diagnostic>> {
    document::read(source, |table| read_recipe(source, table, directory))
}

fn read_recipe(source: &Arc<Source>, table: &Table<'_>, directory: &Path) -> Option<Recipe> {
    let templates = match table.word_or_integer("templates", &["all", "one", "round-robin"], true) {
        None => Choice::All,
        Some(WordOrInteger::Integer(n)) => Choice::Some(n),
        Some(WordOrInteger::Word(word)) => match word.as_str() {
            "one" => Choice::Some(1),
            "round-robin" => Choice::RoundRobin,
            _ => Choice::All,
        },
    };
    let cap = match table.word_or_integer("cap", &["none"], true) {
        None => Some(30_000),
        Some(WordOrInteger::Integer(n)) => Some(n),
        Some(WordOrInteger::Word(_)) => None,
    };
    let kinds = table.texts("kinds").map_or(vec![Kind::Original, Kind::TurnedAround], |names| {
        names.iter().filter_map(|name| parse_kind(table, name)).collect()
    });
    let size = if table.is_table("size") {
        table.table("size", read_size).flatten().unwrap_or(Size::All)
    } else {
        table.word("size", &["all", "{ prompts = … }", "{ tokens = … }"]);
        Size::All
    };
    if let Some(shots) = table.integer("shots")
        && shots > 0
    {
        table.complain(
            Diagnostic::error("shots", "prompts with exemplars cannot be made yet")
                .at(table.place_of("shots"))
                .label("expected 0"),
        );
    }
    let tokenizer = table.table("tokenizer", |t| TokenizerChoice {
        file: t.text("file").map_or_else(|| PathBuf::from("tokenizer.json"), |f| PathBuf::from(f.text)),
        place: t.place_of("file"),
        eos: t.text("eos"),
        pad: t.text("pad"),
        separator: t.text("separator"),
    });
    let mut tokenizer = tokenizer.unwrap_or_else(|| TokenizerChoice {
        file: PathBuf::from("tokenizer.json"),
        place: table.span(),
        eos: None,
        pad: None,
        separator: None,
    });
    tokenizer.file = directory.join(&tokenizer.file);
    let lengths = table.table("lengths", read_lengths);
    let lengths = lengths.unwrap_or(Lengths { inputs: 1024, targets: 256, overflow: Overflow::Shorten });
    let output = table.table("output", |t| {
        let output = Output {
            profile: match t.word("profile", &["packed", "sft", "megatron"]).as_deref() {
                Some("sft") => Profile::Sft,
                Some("megatron") => Profile::Megatron,
                _ => Profile::Packed,
            },
            sequence: t.count("sequence").unwrap_or(SEQUENCE as u64) as usize,
            mix: t.word("mix", &["tasks", "all"]).as_deref() != Some("tasks"),
            shard_tokens: t.count("shard_tokens").unwrap_or(SHARD_TOKENS),
        };
        (output, t.has("sequence").then(|| t.place_of("sequence")))
    });
    let (output, sequence_place) = output.unwrap_or((
        Output { profile: Profile::Packed, sequence: SEQUENCE, mix: true, shard_tokens: SHARD_TOKENS },
        None,
    ));
    if output.profile != Profile::Sft && output.sequence < lengths.inputs + lengths.targets {
        let given = sequence_place.is_some();
        table.complain(
            Diagnostic::error("sequence", "the longest prompt does not fit into a packed row")
                .at(sequence_place.unwrap_or_else(|| table.place_of("lengths")))
                .expected(format!("a sequence of at least {} + {} tokens", lengths.inputs, lengths.targets))
                .found(format!("sequence = {}{}", output.sequence, if given { "" } else { ", the default" }))
                .help("raise `sequence` in [output], or lower `inputs` and `targets` in [lengths]"),
        );
    }
    Some(Recipe {
        source: source.clone(),
        seed: table.integer("seed").unwrap_or(17),
        tasks: table.texts("tasks").unwrap_or_else(|| vec![Snippet::whole("tasks", "*")]),
        hold_out: table.texts("hold_out").unwrap_or_default(),
        cap,
        select: match table.word("select", &["hash", "head"]).as_deref() {
            Some("head") => Select::Head,
            _ => Select::Hash,
        },
        filters: match table.word("filters", &["before-cap", "after-cap"]).as_deref() {
            Some("before-cap") => Filters::BeforeCap,
            _ => Filters::AfterCap,
        },
        templates,
        kinds,
        rate_max: table.count("rate_max").unwrap_or(3_000),
        temperature: table.positive("temperature").unwrap_or(1.0),
        size,
        wrapper: match table.word("wrapper", &["none", "flan-v1"]).as_deref() {
            Some("flan-v1") => Wrapper::FlanV1,
            _ => Wrapper::None,
        },
        absent: match table.word("absent", &["error", "skip"]).as_deref() {
            Some("skip") => Absent::Skip,
            _ => Absent::Error,
        },
        split_scale: table.positive("split_scale").unwrap_or(1.0),
        tokenizer,
        lengths,
        output,
    })
}

/// 64 MiB of ids: what a thread sorts at a time, and some 15 MB on disk.
const SHARD_TOKENS: u64 = 1 << 24;
const SEQUENCE: usize = 2048;

fn read_lengths(table: &Table<'_>) -> Lengths {
    let at_least = |key, default: u64, least: u64| {
        let tokens = table.integer(key).unwrap_or(default);
        if tokens < least {
            table.complain(
                Diagnostic::error("lengths", format!("`{key}` leaves no room for a prompt"))
                    .at(table.place_of(key))
                    .label(format!("expected at least {least} tokens")),
            );
        }
        tokens as usize
    };
    Lengths {
        inputs: at_least("inputs", 1024, 16),
        targets: at_least("targets", 256, 2),
        overflow: match table.word("overflow", &["shorten", "drop", "right"]).as_deref() {
            Some("drop") => Overflow::Drop,
            Some("right") => Overflow::Right,
            _ => Overflow::Shorten,
        },
    }
}

fn read_size(table: &Table<'_>) -> Option<Size> {
    match (table.count("prompts"), table.count("tokens")) {
        (Some(n), None) => Some(Size::Prompts(n)),
        (None, Some(n)) => Some(Size::Tokens(n)),
        // The one that is there has been complained of.
        (None, None) if table.has("prompts") != table.has("tokens") => None,
        _ => {
            table.complain(
                Diagnostic::error("size", "a mixture has one size")
                    .at(table.span())
                    .label("expected { prompts = … } or { tokens = … }"),
            );
            None
        }
    }
}

fn parse_kind(table: &Table<'_>, name: &Snippet) -> Option<Kind> {
    let kind = Kind::parse(&name.text);
    if kind.is_none() {
        table.complain(
            Diagnostic::error("wrong-value", format!("`{}` is no kind of template", name.text))
                .at(name.whole_span())
                .label("expected `original` or `turned-around`")
                .did_you_mean(&name.text, Kind::NAMES),
        );
    }
    kind
}

/// Clusters that are too close to a held-out one to be trained on (arXiv 2109.01652, section 2.2): the two rules hold
/// in both directions, and reading comprehension and commonsense do not take out each other.
pub fn too_close(held_out: &str) -> &'static [&'static str] {
    match held_out {
        "natural-language-inference" => &["paraphrase"],
        "paraphrase" => &["natural-language-inference"],
        "reading-comprehension" | "commonsense" => &["reading-comprehension-with-commonsense"],
        "reading-comprehension-with-commonsense" => &["reading-comprehension", "commonsense"],
        _ => &[],
    }
}

/// Rates: examples-proportional up to `rate_max`, flattened by the temperature, summing to 1.
pub fn rates(examples: &[u64], rate_max: u64, temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = examples.iter().map(|&n| (n.min(rate_max) as f64).powf(1.0 / temperature)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| if total > 0.0 { w / total } else { 0.0 }).collect()
}

/// Divides `total` by `rates` into whole numbers that add up to it, by largest remainder; ties go to the first.
pub fn quotas(total: u64, rates: &[f64]) -> Vec<u64> {
    let exact: Vec<f64> = rates.iter().map(|r| r * total as f64).collect();
    let mut quotas: Vec<u64> = exact.iter().map(|x| x.floor() as u64).collect();
    // Rounding of the products may take the sum of the floors over the total by a hair.
    while quotas.iter().sum::<u64>() > total {
        let largest = (0..quotas.len()).max_by_key(|&i| quotas[i]).unwrap_or(0);
        quotas[largest] -= 1;
    }
    let mut order: Vec<usize> = (0..rates.len()).filter(|&i| rates[i] > 0.0).collect();
    order.sort_by(|&a, &b| (exact[b] - exact[b].floor()).total_cmp(&(exact[a] - exact[a].floor())).then(a.cmp(&b)));
    let mut missing = total - quotas.iter().sum::<u64>();
    for &i in order.iter().cycle() {
        if missing == 0 {
            break;
        }
        quotas[i] += 1;
        missing -= 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_of_the_paper() {
        // Of 69 tasks, 59 have more than 3,000 rows (google-research/FLAN; facts of its mixing rates).
        let few = [2290, 2051, 1671, 1659, 1122, 919, 605, 504, 350, 200];
        let examples: Vec<u64> = std::iter::repeat_n(30_000, 59).chain(few).collect();
        let rates = rates(&examples, 3_000, 1.0);
        assert!((rates[0] - 0.015_926).abs() < 1e-6, "{}", rates[0]);
    }

    proptest! {
        #[test]
        fn quotas_add_up(total in 0u64..10_000_000, examples in prop::collection::vec(1u64..100_000, 1..80)) {
            let rates = rates(&examples, 3_000, 1.0);
            let quotas = quotas(total, &rates);
            prop_assert_eq!(quotas.iter().sum::<u64>(), total);
            for (quota, rate) in quotas.iter().zip(&rates) {
                prop_assert!((*quota as f64 - rate * total as f64).abs() < 1.0 + 1e-6);
            }
        }
    }
}
