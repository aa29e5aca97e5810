//! Recipes and rates: which tasks go into a mixture, how much of each, and in what form.
//!
//! A recipe begins with the settings of its `base`, or the defaults, and states what differs. A file may hold several
//! recipes that differ in little: each of its `[variants]` goes over the file's own settings, and is called
//! `file:variant`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::diag::{Diagnostic, Result, Source, Span, listing};
use crate::document::{self, Table, WordOrInteger};
use crate::storage;
use crate::task::Catalogue;
use crate::template::definition::{Kind, Splits};
pub use crate::template::exemplar::Wrapper;
use crate::template::snippet::Snippet;

/// A recipe, as it is meant.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What it was called by.
    pub name: String,
    pub compat: Compat,
    pub seed: u64,
    /// Selectors: `*`, a cluster, a task, or one of these after `!`.
    pub tasks: Vec<Snippet>,
    /// Clusters or tasks that training must not see.
    pub hold_out: Vec<Snippet>,
    pub contamination: Contamination,
    /// Most source examples taken from a split; `None` takes all.
    pub cap: Option<u64>,
    pub select: Select,
    pub filters: Filters,
    pub templates: Choice,
    /// Only so many templates of each task, the first ones.
    pub template_limit: Option<u64>,
    pub kinds: Vec<Kind>,
    /// What stands in the place of templates, in training and in evaluation.
    pub instructions: Instructions,
    pub eval_instructions: Instructions,
    /// Exemplars before each prompt, at most.
    pub shots: usize,
    pub exemplar_templates: ExemplarTemplates,
    /// Most tokens of the exemplars and the inputs they stand before; `None`: what the lengths allow.
    pub exemplar_tokens: Option<usize>,
    /// Most examples that count towards a task's weight.
    pub rate_max: u64,
    pub temperature: f64,
    /// Weights, in examples, of tasks and clusters that do not go by their size.
    pub weights: Vec<(String, Span, f64)>,
    pub size: Size,
    pub wrapper: Wrapper,
    pub absent: Absent,
    /// Multiplies absolute row bounds in split expressions; `None`: what the data says, or 1.
    pub split_scale: Option<f64>,
    /// Split expressions, by task, in place of the definitions' own; they are not scaled.
    pub splits: BTreeMap<String, Splits>,
    pub tokenizer: TokenizerChoice,
    pub lengths: Lengths,
    pub output: Output,
}

impl Recipe {
    /// What a recipe says that says nothing.
    fn defaults(name: &str) -> Recipe {
        Recipe {
            name: name.to_owned(),
            compat: Compat::None,
            seed: 17,
            tasks: vec![Snippet::whole("tasks", "*")],
            hold_out: Vec::new(),
            contamination: Contamination::Ignore,
            cap: Some(30_000),
            select: Select::Hash,
            filters: Filters::AfterCap,
            templates: Choice::All,
            template_limit: None,
            kinds: vec![Kind::Original, Kind::TurnedAround],
            instructions: Instructions::Templates,
            eval_instructions: Instructions::Templates,
            shots: 0,
            exemplar_templates: ExemplarTemplates::Same,
            exemplar_tokens: Some(960),
            rate_max: 3_000,
            temperature: 1.0,
            weights: Vec::new(),
            size: Size::All,
            wrapper: Wrapper::None,
            absent: Absent::Error,
            split_scale: None,
            splits: BTreeMap::new(),
            tokenizer: TokenizerChoice::default(),
            lengths: Lengths { inputs: 1024, targets: 256, overflow: Overflow::Shorten },
            output: Output { profile: Profile::Packed, sequence: SEQUENCE, mix: true, shard_tokens: SHARD_TOKENS },
        }
    }

    /// The recipe as it is meant, defaults included, under the keys of the file.
    pub fn settings(&self) -> serde_json::Value {
        let texts = |list: &[Snippet]| list.iter().map(|s| s.text.clone()).collect::<Vec<_>>();
        serde_json::json!({
            // Where the file lies is no part of what it says.
            "name": Path::new(&self.name).file_name().map(|n| n.to_string_lossy().into_owned()),
            "compat": self.compat,
            "seed": self.seed,
            "tasks": texts(&self.tasks),
            "hold_out": texts(&self.hold_out),
            "contamination": self.contamination,
            "cap": self.cap,
            "select": self.select,
            "filters": self.filters,
            "templates": match self.templates {
                Choice::All => serde_json::json!("all"),
                Choice::Some(n) => serde_json::json!(n),
                Choice::RoundRobin => serde_json::json!("round-robin"),
            },
            "template_limit": self.template_limit,
            "kinds": self.kinds,
            "instructions": self.instructions,
            "eval_instructions": self.eval_instructions,
            "shots": self.shots,
            "exemplar_templates": self.exemplar_templates,
            "exemplar_tokens": self.exemplar_tokens,
            "rate_max": self.rate_max,
            "temperature": self.temperature,
            "weights": self.weights.iter().map(|(name, _, weight)| (name.clone(), *weight)).collect::<BTreeMap<_, _>>(),
            "size": self.size,
            "wrapper": self.wrapper,
            "absent": self.absent,
            "split_scale": self.split_scale,
            "splits": self.splits.iter().map(|(task, splits)| (task.clone(), split_texts(splits))).collect::<BTreeMap<_, _>>(),
            "lengths": self.lengths,
            "output": self.output,
        })
    }

    /// The weight that the recipe gives a task, if it does: that of its own name before that of its cluster.
    pub fn weight(&self, task: &str, cluster: &str, code_cluster: &str) -> Option<f64> {
        [task, cluster, code_cluster]
            .iter()
            .find_map(|name| self.weights.iter().find(|(of, _, _)| of == name).map(|(_, _, weight)| *weight))
    }
}

/// Split expressions by their names, as JSON.
pub fn split_texts(splits: &Splits) -> serde_json::Value {
    let text = |s: &Option<Snippet>| s.as_ref().map(|s| s.text.clone());
    serde_json::json!({
        "train": text(&splits.train), "validation": text(&splits.validation), "test": text(&splits.test),
    })
}

/// Whose choices are repeated, mistakes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    None,
    FlanV1,
}

/// What is done about training rows that overlap with held-out evaluation rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contamination {
    /// It is not looked for.
    Ignore,
    Count,
    /// The training rows are left out.
    Drop,
}

/// What tells the model what to do (arXiv 2109.01652, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instructions {
    Templates,
    /// Nothing: the fields of the first template, one below the other.
    None,
    /// The names of task and dataset, before the fields.
    DatasetName,
}

/// The templates that exemplars go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExemplarTemplates {
    /// That of the prompt they stand before.
    Same,
    /// Any of the task's, as FLAN v1 has it.
    Mixed,
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
    /// As many prompts, by rates, as there are without drawing one twice.
    WithoutRepeats,
}

/// What to do about a corpus or split that is not on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Absent {
    Error,
    Skip,
}

#[derive(Clone, Debug, Default)]
pub struct TokenizerChoice {
    /// `None`: `tokenizer.json`, where the command runs or beside the data.
    pub file: Option<PathBuf>,
    /// Where the recipe names the file.
    pub place: Option<Span>,
    pub bos: Begin,
    pub eos: Option<Snippet>,
    pub pad: Option<Snippet>,
    /// A control token between inputs and targets.
    pub separator: Option<Snippet>,
}

/// The control token that every prompt begins with.
#[derive(Clone, Debug, Default)]
pub enum Begin {
    /// The recipe does not say: none, and a warning if the tokenizer is used to one.
    #[default]
    Unsaid,
    Nothing,
    Token(Snippet),
}

/// Lengths in tokens: inputs with what begins them and their separator, targets with their end of sequence.
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

/// Where a recipe's text is, and what its relative paths begin with.
struct Found {
    source: Arc<Source>,
    directory: PathBuf,
}

/// Recipes that may stand on one another.
const MOST_BASES: usize = 8;

/// Finds and reads a recipe: `name` is a file, or the name of a bundled one, and may end in `:variant`.
pub fn find(name: &str, catalogue: &Catalogue) -> Result<(Recipe, Vec<Diagnostic>), Vec<Diagnostic>> {
    find_from(name, Path::new(""), catalogue, MOST_BASES)
}

fn find_from(
    name: &str,
    directory: &Path,
    catalogue: &Catalogue,
    bases: usize,
) -> Result<(Recipe, Vec<Diagnostic>), Vec<Diagnostic>> {
    let locate = |name: &str| -> Result<Option<Found>> {
        let path = directory.join(name);
        if storage::stamp(&path).is_some() {
            let source = Source::new(path.display().to_string(), storage::read_text(&path)?);
            return Ok(Some(Found { source, directory: path.parent().unwrap_or(Path::new("")).to_owned() }));
        }
        // A bundled recipe names its tokenizer from where the command runs.
        let bundled = catalogue.recipe(name);
        Ok(bundled
            .map(|text| Found { source: Source::new(format!("recipes/{name}.toml"), text), directory: PathBuf::new() }))
    };
    let one = |d: Box<Diagnostic>| vec![*d];
    let (found, variant) = match locate(name).map_err(one)? {
        Some(found) => (Some(found), None),
        None => match name.rsplit_once(':') {
            Some((file, variant)) => (locate(file).map_err(one)?, Some(variant)),
            None => (None, None),
        },
    };
    let Some(found) = found else {
        let known = names(catalogue);
        return Err(vec![
            Diagnostic::error("recipe-not-found", format!("there is no recipe `{name}`"))
                .expected("a file, or the name of a bundled recipe")
                .did_you_mean(name, known.iter().map(String::as_str))
                .note("note", format!("bundled: {}", listing(catalogue.recipe_names()))),
        ]);
    };
    read_layers(&found, name, variant, catalogue, bases)
}

/// Every bundled recipe, variants spelled out.
pub fn names(catalogue: &Catalogue) -> Vec<String> {
    let mut all = Vec::new();
    for name in catalogue.recipe_names() {
        let text = catalogue.recipe(name).unwrap_or_default();
        let source = Source::new(format!("recipes/{name}.toml"), text);
        let variants = document::skim(&source, |table| table.keys_of("variants"));
        match &variants[..] {
            [] => all.push(name.to_owned()),
            variants => all.extend(variants.iter().map(|variant| format!("{name}:{variant}"))),
        }
    }
    all
}

/// Reads the text of a recipe; paths in it are taken from `directory`.
pub fn read(
    source: &Arc<Source>,
    directory: &Path,
    catalogue: &Catalogue,
) -> Result<(Recipe, Vec<Diagnostic>), Vec<Diagnostic>> {
    let found = Found { source: source.clone(), directory: directory.to_owned() };
    read_layers(&found, &source.name, None, catalogue, MOST_BASES)
}

/// Reads what a recipe stands on, the file over that, and the variant over both.
fn read_layers(
    found: &Found,
    name: &str,
    variant: Option<&str>,
    catalogue: &Catalogue,
    bases: usize,
) -> Result<(Recipe, Vec<Diagnostic>), Vec<Diagnostic>> {
    document::read(&found.source, |table| {
        let recipe = match table.text("base") {
            None => Recipe::defaults(name),
            Some(base) if bases == 0 => {
                table.complain(
                    Diagnostic::error("base", "recipes stand on one another without end")
                        .at(base.whole_span())
                        .label(format!("expected at most {MOST_BASES} below one another")),
                );
                return None;
            }
            Some(base) => match find_from(&base.text, &found.directory, catalogue, bases - 1) {
                Ok((recipe, warnings)) => {
                    warnings.into_iter().for_each(|w| table.complain(w));
                    Recipe { name: name.to_owned(), ..recipe }
                }
                Err(errors) => {
                    let mut missing = errors;
                    if let [only] = &mut missing[..]
                        && only.code == "recipe-not-found"
                    {
                        *only = only.clone().at(base.whole_span());
                    }
                    missing.into_iter().for_each(|e| table.complain(e));
                    return None;
                }
            },
        };
        let recipe = amend(recipe, table, &found.directory);
        // All of them are read, so that the slips of each show.
        let mut variants =
            table.table_entries("variants", |name, _, t| (name.to_owned(), amend(recipe.clone(), t, &found.directory)));
        if variants.is_empty() && variant.is_none() {
            return Some(recipe);
        }
        if let Some(i) = variant.and_then(|wanted| variants.iter().position(|(name, _)| name == wanted)) {
            return Some(variants.swap_remove(i).1);
        }
        let names = || variants.iter().map(|(name, _)| name.as_str());
        let what = match variant {
            Some(variant) => format!("there is no variant `{variant}`"),
            None => "this file holds several recipes".to_owned(),
        };
        let mut diagnostic = Diagnostic::error("variant", what)
            .at(Path::new(&found.source.name))
            .expected(format!("`{}:<variant>`", name.split(':').next().unwrap_or(name)))
            .note("note", format!("variants: {}", listing(names())));
        if let Some(variant) = variant {
            diagnostic = diagnostic.did_you_mean(variant, names());
        }
        table.complain(diagnostic);
        None
    })
}

/// A recipe with what a table states in place of its own.
fn amend(mut recipe: Recipe, table: &Table<'_>, directory: &Path) -> Recipe {
    if let Some(word) = table.word("compat", &["none", "flan-v1"]) {
        recipe.compat = Compat::None;
        if word == "flan-v1" {
            recipe = as_flan_v1(recipe);
        }
    }
    let or = |given: Option<u64>, inherited: u64| given.unwrap_or(inherited);
    recipe.seed = or(table.integer("seed"), recipe.seed);
    recipe.tasks = table.texts("tasks").unwrap_or(recipe.tasks);
    recipe.hold_out = table.texts("hold_out").unwrap_or(recipe.hold_out);
    recipe.contamination = match table.word("contamination", &["ignore", "count", "drop"]).as_deref() {
        None => recipe.contamination,
        Some("count") => Contamination::Count,
        Some("drop") => Contamination::Drop,
        Some(_) => Contamination::Ignore,
    };
    recipe.cap = match table.word_or_integer("cap", &["none"], true) {
        None => recipe.cap,
        Some(WordOrInteger::Integer(n)) => Some(n),
        Some(WordOrInteger::Word(_)) => None,
    };
    recipe.select = match table.word("select", &["hash", "head"]).as_deref() {
        None => recipe.select,
        Some("head") => Select::Head,
        Some(_) => Select::Hash,
    };
    recipe.filters = match table.word("filters", &["before-cap", "after-cap"]).as_deref() {
        None => recipe.filters,
        Some("before-cap") => Filters::BeforeCap,
        Some(_) => Filters::AfterCap,
    };
    recipe.templates = match table.word_or_integer("templates", &["all", "one", "round-robin"], true) {
        None => recipe.templates,
        Some(WordOrInteger::Integer(n)) => Choice::Some(n),
        Some(WordOrInteger::Word(word)) => match word.as_str() {
            "one" => Choice::Some(1),
            "round-robin" => Choice::RoundRobin,
            _ => Choice::All,
        },
    };
    recipe.template_limit = match table.word_or_integer("template_limit", &["none"], true) {
        None => recipe.template_limit,
        Some(WordOrInteger::Integer(n)) => Some(n),
        Some(WordOrInteger::Word(_)) => None,
    };
    if let Some(names) = table.texts("kinds") {
        recipe.kinds = names.iter().filter_map(|name| parse_kind(table, name)).collect();
    }
    recipe.instructions = instructions(table, "instructions").unwrap_or(recipe.instructions);
    recipe.eval_instructions = instructions(table, "eval_instructions").unwrap_or(recipe.eval_instructions);
    recipe.shots = or(table.integer("shots"), recipe.shots as u64) as usize;
    if recipe.shots > MOST_SHOTS {
        table.complain(
            Diagnostic::error("shots", format!("{} exemplars are too many", recipe.shots))
                .at(table.place_of("shots"))
                .label(format!("expected at most {MOST_SHOTS}")),
        );
    }
    recipe.exemplar_templates = match table.word("exemplar_templates", &["same", "mixed"]).as_deref() {
        None => recipe.exemplar_templates,
        Some("mixed") => ExemplarTemplates::Mixed,
        Some(_) => ExemplarTemplates::Same,
    };
    recipe.exemplar_tokens = match table.word_or_integer("exemplar_tokens", &["none"], true) {
        None => recipe.exemplar_tokens,
        Some(WordOrInteger::Integer(n)) => Some(n as usize),
        Some(WordOrInteger::Word(_)) => None,
    };
    recipe.rate_max = or(table.count("rate_max"), recipe.rate_max);
    recipe.temperature = table.positive("temperature").unwrap_or(recipe.temperature);
    if table.has("weights") {
        recipe.weights = table.number_entries("weights");
    }
    if table.is_table("size") {
        recipe.size = table.table("size", read_size).flatten().unwrap_or(recipe.size);
    } else {
        let words = ["all", "without-repeats", "{ prompts = … }", "{ tokens = … }"];
        recipe.size = match table.word("size", &words).as_deref() {
            None => recipe.size,
            Some("without-repeats") => Size::WithoutRepeats,
            Some(_) => Size::All,
        };
    }
    recipe.wrapper = match table.word("wrapper", &["none", "flan-v1", "continuation"]).as_deref() {
        None => recipe.wrapper,
        Some("flan-v1") => Wrapper::FlanV1,
        Some("continuation") => Wrapper::Continuation,
        Some(_) => Wrapper::None,
    };
    recipe.absent = match table.word("absent", &["error", "skip"]).as_deref() {
        None => recipe.absent,
        Some("skip") => Absent::Skip,
        Some(_) => Absent::Error,
    };
    recipe.split_scale = table.positive("split_scale").or(recipe.split_scale);
    recipe.splits.extend(read_splits(table));
    table.table("tokenizer", |t| {
        let choice = &mut recipe.tokenizer;
        if let Some(file) = t.text("file") {
            choice.place = Some(file.whole_span());
            choice.file = Some(directory.join(file.text));
        }
        match t.text("bos") {
            None => {}
            Some(word) if word.text == "none" => choice.bos = Begin::Nothing,
            Some(token) => choice.bos = Begin::Token(token),
        }
        choice.eos = t.text("eos").or(choice.eos.take());
        choice.pad = t.text("pad").or(choice.pad.take());
        choice.separator = t.text("separator").or(choice.separator.take());
    });
    table.table("lengths", |t| recipe.lengths = read_lengths(t, recipe.lengths));
    let sequence_place = table.table("output", |t| {
        recipe.output = read_output(t, recipe.output);
        t.has("sequence").then(|| t.place_of("sequence"))
    });
    let (lengths, output) = (recipe.lengths, recipe.output);
    if (table.has("lengths") || table.has("output"))
        && output.profile != Profile::Sft
        && output.sequence < lengths.inputs + lengths.targets
    {
        let place = sequence_place.flatten();
        let found = format!("sequence = {}{}", output.sequence, if place.is_some() { "" } else { ", the default" });
        table.complain(
            Diagnostic::error("sequence", "the longest prompt does not fit into a packed row")
                .at(place.unwrap_or_else(|| table.place_of("lengths")))
                .expected(format!("a sequence of at least {} + {} tokens", lengths.inputs, lengths.targets))
                .found(found)
                .help("raise `sequence` in [output], or lower `inputs` and `targets` in [lengths]"),
        );
    }
    recipe
}

/// What FLAN v1 does (google-research/FLAN at e9e4ec6, `flan/`): the first 30,000 rows in the order of TFDS, filters
/// after that, the i-th example through template i mod 10, ids cut on the right, an end of sequence after the inputs,
/// and its dialogue markers.
fn as_flan_v1(recipe: Recipe) -> Recipe {
    Recipe {
        compat: Compat::FlanV1,
        cap: Some(30_000),
        select: Select::Head,
        filters: Filters::AfterCap,
        templates: Choice::RoundRobin,
        exemplar_templates: ExemplarTemplates::Mixed,
        exemplar_tokens: Some(960),
        rate_max: 3_000,
        temperature: 1.0,
        wrapper: Wrapper::FlanV1,
        lengths: Lengths { inputs: 1024, targets: 256, overflow: Overflow::Right },
        ..recipe
    }
}

/// Far above the 16 of the paper, and little enough that a prompt's exemplars can be drawn one after the other.
const MOST_SHOTS: usize = 64;

fn instructions(table: &Table<'_>, key: &'static str) -> Option<Instructions> {
    table.word(key, &["templates", "none", "dataset-name"]).map(|word| match word.as_str() {
        "none" => Instructions::None,
        "dataset-name" => Instructions::DatasetName,
        _ => Instructions::Templates,
    })
}

/// `[splits]`: by task, split expressions in place of the definition's.
fn read_splits(table: &Table<'_>) -> BTreeMap<String, Splits> {
    let read = |name: &str, _: Span, t: &Table<'_>| {
        let splits = Splits { train: t.text("train"), validation: t.text("validation"), test: t.text("test") };
        (name.to_owned(), splits)
    };
    table.table_entries("splits", read).into_iter().collect()
}

/// How the splits of definitions are to be taken from data that is only a part of the corpora.
#[derive(Debug, Default)]
pub struct ReducedSplits {
    pub scale: Option<f64>,
    pub splits: BTreeMap<String, Splits>,
}

/// The file beside reduced corpora that says so.
pub const REDUCED: &str = "splits.toml";

/// Reads the file [`REDUCED`] of a data directory, if there is one.
pub fn reduced_splits(data_dir: &Path) -> Result<Option<ReducedSplits>, Vec<Diagnostic>> {
    let path = data_dir.join(REDUCED);
    if storage::stamp(&path).is_none() {
        return Ok(None);
    }
    let source = Source::new(path.display().to_string(), storage::read_text(&path).map_err(|d| vec![*d])?);
    let (reduced, _) = document::read(&source, |table| {
        Some(ReducedSplits { scale: table.positive("split_scale"), splits: read_splits(table) })
    })?;
    Ok(Some(reduced))
}

/// 64 MiB of ids: what a thread sorts at a time, and some 15 MB on disk.
const SHARD_TOKENS: u64 = 1 << 24;
const SEQUENCE: usize = 2048;

fn read_lengths(table: &Table<'_>, inherited: Lengths) -> Lengths {
    let at_least = |key, inherited: usize, least: u64| {
        let tokens = table.integer(key).unwrap_or(inherited as u64);
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
        inputs: at_least("inputs", inherited.inputs, 16),
        targets: at_least("targets", inherited.targets, 2),
        overflow: match table.word("overflow", &["shorten", "drop", "right"]).as_deref() {
            None => inherited.overflow,
            Some("drop") => Overflow::Drop,
            Some("right") => Overflow::Right,
            Some(_) => Overflow::Shorten,
        },
    }
}

fn read_output(table: &Table<'_>, inherited: Output) -> Output {
    Output {
        profile: match table.word("profile", &["packed", "sft", "megatron"]).as_deref() {
            None => inherited.profile,
            Some("sft") => Profile::Sft,
            Some("megatron") => Profile::Megatron,
            Some(_) => Profile::Packed,
        },
        sequence: table.count("sequence").unwrap_or(inherited.sequence as u64) as usize,
        mix: table.word("mix", &["tasks", "all"]).map_or(inherited.mix, |word| word == "all"),
        shard_tokens: table.count("shard_tokens").unwrap_or(inherited.shard_tokens),
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
/// in both directions, and reading comprehension and commonsense do not take out each other. FLAN's code has the same
/// rules for its own clusters (`flan/task_splits.py`, `generate_inter_cluster_splits`).
pub fn too_close(held_out: &str) -> &'static [&'static str] {
    match held_out {
        "natural-language-inference" | "entailment" => &["paraphrase"],
        "paraphrase" => &["natural-language-inference", "entailment"],
        "reading-comprehension" | "commonsense" | "reading_comprehension" | "common_sense" => {
            &["reading-comprehension-with-commonsense", "read_comp_and_common_sense"]
        }
        "reading-comprehension-with-commonsense" | "read_comp_and_common_sense" => {
            &["reading-comprehension", "commonsense", "reading_comprehension", "common_sense"]
        }
        _ => &[],
    }
}

/// Rates: proportional to the weights, flattened by the temperature, summing to 1.
pub fn rates(weights: &[f64], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = weights.iter().map(|w| if *w > 0.0 { w.powf(1.0 / temperature) } else { 0.0 }).collect();
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

/// The largest quotas by `rates` that draw none of so many prompts twice.
pub fn quotas_without_repeats(prompts: &[u64], rates: &[f64]) -> Vec<u64> {
    let drawn = prompts.iter().zip(rates).filter(|(_, rate)| **rate > 0.0);
    let total = drawn.map(|(n, rate)| *n as f64 / rate).fold(f64::INFINITY, f64::min);
    let quotas = quotas(if total.is_finite() { total.floor() as u64 } else { 0 }, rates);
    // The largest remainder may round a task up past its last prompt.
    quotas.into_iter().zip(prompts).map(|(quota, n)| quota.min(*n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_of_the_paper() {
        // Of 69 tasks, 59 have more than 3,000 rows (google-research/FLAN; facts of its mixing rates).
        let few = [2290, 2051, 1671, 1659, 1122, 919, 605, 504, 350, 200];
        let examples = std::iter::repeat_n(30_000, 59).chain(few);
        let weights: Vec<f64> = examples.map(|n: u64| n.min(3_000) as f64).collect();
        let rates = rates(&weights, 1.0);
        assert!((rates[0] - 0.015_926).abs() < 1e-6, "{}", rates[0]);
    }

    proptest! {
        #[test]
        fn quotas_add_up(total in 0u64..10_000_000, examples in prop::collection::vec(1u64..100_000, 1..80)) {
            let rates = rates(&examples.iter().map(|n| *n as f64).collect::<Vec<_>>(), 1.0);
            let quotas = quotas(total, &rates);
            prop_assert_eq!(quotas.iter().sum::<u64>(), total);
            for (quota, rate) in quotas.iter().zip(&rates) {
                prop_assert!((*quota as f64 - rate * total as f64).abs() < 1.0 + 1e-6);
            }
        }
    }
}
