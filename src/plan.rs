//! The plan: everything that is decided before a record is read.
//!
//! Recipe, definitions, corpus headers and tokenizer are brought together and checked against each other. The plan's
//! hash names the outcome: the same plan gives the same bytes, on any number of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::diag::{Diagnostic, Result, listing, one};
use crate::ingest::Corpus;
use crate::ingest::info::CorpusName;
use crate::ingest::splits::{self, Part};
use crate::mixture::{Absent, Choice, Recipe, too_close};
use crate::shard::writer;
use crate::storage;
use crate::task::{Catalogue, Task, fingerprint};
use crate::template::engine;
use crate::template::snippet::Snippet;
use crate::tokenize::{Control, Tokenizer};

/// Raised whenever the same plan would give other bytes than before.
pub const FORMAT: u32 = 1;

/// Which rows go through which templates: all of a plan that has nothing to do with tokens.
pub struct Sources<'c> {
    pub recipe: Recipe,
    pub corpora: Vec<Corpus>,
    pub tasks: Vec<PlannedTask<'c>>,
    /// What the recipe asks for and does not get: it is not on disk, or too close to what is held out.
    pub skipped: Vec<Skipped>,
    pub warnings: Vec<Diagnostic>,
}

/// The whole of it.
pub struct Plan<'c> {
    sources: Sources<'c>,
    pub tokenizer: Tokenizer,
    pub eos: Control,
    pub pad: Control,
    pub separator: Option<Control>,
    pub hash: String,
}

/// A plan is read as its sources where tokens do not matter.
impl<'c> Deref for Plan<'c> {
    type Target = Sources<'c>;

    fn deref(&self) -> &Sources<'c> {
        &self.sources
    }
}

pub struct PlannedTask<'c> {
    pub task: &'c Task,
    /// Index into [`Sources::corpora`].
    pub corpus: usize,
    pub role: Role,
    /// Templates of the kinds that the recipe wants, by index.
    pub templates: Vec<usize>,
    pub splits: Vec<PlannedSplit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Trained,
    HeldOut,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Trained => "trained",
            Role::HeldOut => "held-out",
        }
    }
}

#[derive(Clone, Debug)]
pub struct PlannedSplit {
    pub name: SplitName,
    pub parts: Vec<Part>,
    /// Rows of the parts together.
    pub rows: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SplitName {
    Train,
    Validation,
    Test,
}

impl SplitName {
    pub fn name(self) -> &'static str {
        match self {
            SplitName::Train => "train",
            SplitName::Validation => "validation",
            SplitName::Test => "test",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub task: String,
    pub split: Option<SplitName>,
    pub reason: String,
}

/// Makes the plan. Reads headers, the tokenizer, and the sizes of shards; no record.
pub fn plan<'c>(recipe: Recipe, catalogue: &'c Catalogue, data_dirs: &[PathBuf]) -> Result<Plan<'c>, Vec<Diagnostic>> {
    let mut sources = sources(recipe, catalogue, data_dirs)?;
    let choice = &sources.recipe.tokenizer;
    let tokenizer = Tokenizer::open(&choice.file).map_err(|d| {
        let absent = storage::stamp(&choice.file).is_none();
        let diagnostic = d.at(choice.place.clone());
        vec![if absent { diagnostic.help("a relative path begins where the recipe is") } else { diagnostic }]
    })?;
    // The recipe's word for a token, and where it stands.
    let named = |token: &Option<Snippet>| token.as_ref().map_or(choice.place.clone(), Snippet::whole_span);
    let text = |token: &Option<Snippet>| token.as_ref().map(|t| t.text.clone());
    let eos = tokenizer.end_of_sequence(text(&choice.eos).as_deref()).map_err(|d| vec![d.at(named(&choice.eos))])?;
    let pad = tokenizer.padding(text(&choice.pad).as_deref(), &eos).map_err(|d| vec![d.at(named(&choice.pad))])?;
    let separator = match &choice.separator {
        Some(name) => tokenizer.control(Some(&name.text), &[]).map_err(|d| vec![d.at(name.whole_span())])?,
        None => None,
    };
    sources.warnings.extend(tokenizer.warnings.iter().cloned());
    let mut plan = Plan { sources, tokenizer, eos, pad, separator, hash: String::new() };
    plan.hash = hash(&plan).map_err(one)?;
    Ok(plan)
}

/// Resolves the tasks of a recipe against the definitions and the corpora on disk.
pub fn sources<'c>(
    recipe: Recipe,
    catalogue: &'c Catalogue,
    data_dirs: &[PathBuf],
) -> Result<Sources<'c>, Vec<Diagnostic>> {
    let (selected, skipped) = select_tasks(&recipe, catalogue)?;
    let mut sources = Sources { recipe, corpora: Vec::new(), tasks: Vec::new(), skipped, warnings: Vec::new() };
    let mut errors = Vec::new();
    let mut opened: BTreeMap<CorpusName, usize> = BTreeMap::new();
    for (task, role) in selected {
        match plan_task(&mut sources, task, role, data_dirs, &mut opened) {
            Ok(Some(planned)) => sources.tasks.push(planned),
            Ok(None) => {}
            Err(diagnostics) => errors.extend(diagnostics),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if !sources.tasks.iter().any(|t| t.role == Role::Trained && t.has(SplitName::Train)) {
        let mut nothing = Diagnostic::error("nothing-to-train-on", "no task of the recipe has training rows")
            .at(Path::new(&sources.recipe.source.name))
            .help("check `tasks`, `hold_out`, `kinds` and --data-dir");
        for task in sources.tasks.iter().take(10) {
            let why = if task.role == Role::HeldOut { "it is held out" } else { "its definition has no `train` split" };
            nothing = nothing.note("not trained", format!("{}: {why}", task.task.name()));
        }
        for skipped in sources.skipped.iter().take(10) {
            nothing = nothing.note("skipped", format!("{}: {}", skipped.task, skipped.reason));
        }
        return Err(vec![nothing]);
    }
    Ok(sources)
}

impl PlannedTask<'_> {
    pub fn has(&self, split: SplitName) -> bool {
        self.splits.iter().any(|s| s.name == split)
    }

    /// Prompts that an example of `split` gives at most.
    pub fn templates_per_example(&self, choice: Choice) -> usize {
        match choice {
            Choice::All => self.templates.len(),
            Choice::Some(n) => self.templates.len().min(n as usize),
            Choice::RoundRobin => 1,
        }
    }
}

/// Tasks with their roles; and those that what is held out takes with it.
type Selected<'c> = (Vec<(&'c Task, Role)>, Vec<Skipped>);

/// The tasks that the recipe selects.
fn select_tasks<'c>(recipe: &Recipe, catalogue: &'c Catalogue) -> Result<Selected<'c>, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut chosen = BTreeSet::new();
    for selector in &recipe.tasks {
        let (negated, name) = match selector.text.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, selector.text.as_str()),
        };
        let matched = matching(catalogue, name);
        if matched.is_empty() {
            errors.push(unknown_selector(catalogue, selector, name));
        }
        for task in matched {
            if negated {
                chosen.remove(task.name())
            } else {
                chosen.insert(task.name())
            };
        }
    }
    let mut held_out = BTreeSet::new();
    let mut close = BTreeSet::new();
    for selector in &recipe.hold_out {
        let matched = matching(catalogue, &selector.text);
        if matched.is_empty() {
            let unknown = unknown_selector(catalogue, selector, &selector.text);
            errors.push(match selector.text.starts_with('!') {
                true => unknown.help("`!` leaves out of `tasks`; `hold_out` lists what is held out, and nothing else"),
                false => unknown,
            });
        }
        held_out.extend(matched.into_iter().map(Task::name));
        close.extend(too_close(&selector.text).iter().copied());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let (mut selected, mut skipped) = (Vec::new(), Vec::new());
    for task in &catalogue.tasks {
        let mut skip = |reason: String| skipped.push(Skipped { task: task.name().to_owned(), split: None, reason });
        if held_out.contains(task.name()) {
            selected.push((task, Role::HeldOut));
        } else if !chosen.contains(task.name()) {
        } else if close.contains(task.definition.cluster.as_str()) {
            skip(format!("its cluster, {}, is too close to what is held out", task.definition.cluster));
        } else if let Some(other) = shares_rows(task, catalogue, &held_out) {
            skip(format!("its rows are those of `{}`, which is held out", other.name()));
        } else {
            selected.push((task, Role::Trained));
        }
    }
    Ok((selected, skipped))
}

/// The held-out task whose corpus a task reads: its rows would be seen in training.
fn shares_rows<'c>(task: &Task, catalogue: &'c Catalogue, held_out: &BTreeSet<&str>) -> Option<&'c Task> {
    catalogue
        .tasks
        .iter()
        .find(|other| held_out.contains(other.name()) && other.definition.corpus == task.definition.corpus)
}

fn matching<'c>(catalogue: &'c Catalogue, selector: &str) -> Vec<&'c Task> {
    let matches = |t: &&Task| {
        selector == "*"
            || selector == t.name()
            || selector == t.definition.cluster
            || selector == t.definition.code_cluster
    };
    catalogue.tasks.iter().filter(matches).collect()
}

fn unknown_selector(catalogue: &Catalogue, selector: &Snippet, name: &str) -> Diagnostic {
    let clusters: BTreeSet<&str> = catalogue.tasks.iter().map(|t| t.definition.cluster.as_str()).collect();
    let names = clusters.iter().copied().chain(catalogue.tasks.iter().map(Task::name));
    Diagnostic::error("unknown-task", format!("`{name}` is no task and no cluster"))
        .at(selector.whole_span())
        .label("not known")
        .did_you_mean(name.trim_start_matches('!'), names)
        .note("note", format!("clusters: {}; `flanc tasks` lists the tasks", listing(clusters)))
}

fn plan_task<'c>(
    sources: &mut Sources<'c>,
    task: &'c Task,
    role: Role,
    data_dirs: &[PathBuf],
    opened: &mut BTreeMap<CorpusName, usize>,
) -> Result<Option<PlannedTask<'c>>, Vec<Diagnostic>> {
    let definition = &task.definition;
    let skip = sources.recipe.absent == Absent::Skip;
    let name = match task.corpus_on_disk(data_dirs) {
        Some(name) => name,
        None if skip => {
            let reason = format!("no corpus `{}` on disk", definition.corpus);
            sources.skipped.push(Skipped { task: task.name().to_owned(), split: None, reason });
            return Ok(None);
        }
        None => &definition.corpus, // opening it says what is wrong
    };
    let corpus = match opened.get(name) {
        Some(&index) => index,
        None => {
            let corpus = Corpus::open(name, data_dirs).map_err(one)?;
            sources.warnings.extend(corpus.info.warnings.iter().cloned());
            if definition.corpus.version.is_some() && definition.corpus.version != corpus.info.name.version {
                sources.warnings.push(
                    Diagnostic::warning(
                        "other-version",
                        format!("`{}` is used in place of `{}`", corpus.info.name, definition.corpus),
                    )
                    .at(&corpus.info.directory)
                    .help("its features are known; its rows may differ"),
                );
            }
            sources.corpora.push(corpus);
            opened.insert(name.clone(), sources.corpora.len() - 1);
            sources.corpora.len() - 1
        }
    };
    let info = &sources.corpora[corpus].info;
    sources.warnings.extend(task.check_corpus(&info.name, &info.features, &info.directory).map_err(one)?);
    let wanted: &[(SplitName, &Option<Snippet>)] = match role {
        Role::Trained => {
            &[(SplitName::Train, &definition.splits.train), (SplitName::Validation, &definition.splits.validation)]
        }
        Role::HeldOut => &[(SplitName::Test, &definition.splits.test)],
    };
    let mut planned_splits = Vec::new();
    let mut errors = Vec::new();
    for (name, expression) in wanted {
        let Some(expression) = expression else {
            if role == Role::HeldOut {
                let reason = "it is held out, and its definition has no `test` split to evaluate on".to_owned();
                sources.skipped.push(Skipped { task: task.name().to_owned(), split: Some(*name), reason });
            }
            continue;
        };
        if skip
            && let Some(absent) =
                splits::names(&expression.text).find(|n| *n != "all" && sources.corpora[corpus].split(n).is_none())
        {
            let reason = format!("the corpus has no split `{absent}`");
            sources.skipped.push(Skipped { task: task.name().to_owned(), split: Some(*name), reason });
            continue;
        }
        match sources.corpora[corpus].resolve(&expression.text, sources.recipe.split_scale) {
            Ok(parts) => {
                let rows = parts.iter().map(|p| p.rows.end - p.rows.start).sum();
                planned_splits.push(PlannedSplit { name: *name, parts, rows });
            }
            Err(diagnostic) => errors.push(
                diagnostic
                    .at(expression.whole_span())
                    .label(format!("the {} rows of task `{}`", name.name(), task.name()))
                    .note("corpus", sources.corpora[corpus].info.directory.display().to_string()),
            ),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let templates: Vec<usize> = (0..definition.templates.len())
        .filter(|&i| sources.recipe.kinds.contains(&definition.templates[i].kind))
        // A turned-around template does not ask for what is evaluated.
        .filter(|&i| {
            role == Role::Trained || definition.templates[i].kind == crate::template::definition::Kind::Original
        })
        .collect();
    if templates.is_empty() {
        let reason = "it has no template of the kinds that the recipe wants".to_owned();
        sources.skipped.push(Skipped { task: task.name().to_owned(), split: None, reason });
        return Ok(None);
    }
    Ok(Some(PlannedTask { task, corpus, role, templates, splits: planned_splits }))
}

/// What a split's rows are read from, as far as it can be told without reading them.
pub fn corpus_identity(corpus: &Corpus, parts: &[Part]) -> Result<Value> {
    let mut files = Vec::new();
    for part in parts {
        for (path, size, _) in corpus.files(part)? {
            files.push(json!([path.file_name().map(|n| n.to_string_lossy().into_owned()), size]));
        }
    }
    let parts: Vec<Value> = parts.iter().map(|p| json!([p.split, p.rows.start, p.rows.end])).collect();
    let lengths: Vec<Value> = corpus.info.splits.iter().map(|s| json!([s.name, s.shard_lengths])).collect();
    let features = blake3::hash(format!("{:?}", corpus.info.features).as_bytes()).to_hex().to_string();
    Ok(
        json!({ "corpus": corpus.info.name.to_string(), "splits": lengths, "features": features, "parts": parts, "files": files }),
    )
}

/// The settings of a recipe that decide what a prompt's tokens are, and which prompts there are.
pub fn prompt_settings(plan: &Plan<'_>) -> Value {
    let r = &plan.recipe;
    json!({
        "format": FORMAT,
        "seed": r.seed,
        "cap": r.cap, "select": r.select, "filters": r.filters,
        "templates": r.templates,
        "wrapper": r.wrapper,
        "lengths": r.lengths,
        "tokenizer": plan.tokenizer.hash(),
        // Padding is in no task shard, but every file names the token.
        "eos": plan.eos.id, "pad": plan.pad.id, "separator": plan.separator.as_ref().map(|s| s.id),
        "engines": [engine::ENGINE, plan.tokenizer.engine(), writer::ENGINE],
    })
}

/// The settings of a recipe that decide how prompts are mixed.
pub fn mixture_settings(plan: &Plan<'_>) -> Value {
    let r = &plan.recipe;
    json!({
        "rate_max": r.rate_max, "temperature": r.temperature, "size": r.size,
        "output": r.output,
    })
}

fn hash(plan: &Plan<'_>) -> Result<String> {
    let mut tasks = Vec::new();
    for planned in &plan.tasks {
        let mut splits = Vec::new();
        for split in &planned.splits {
            splits.push(json!([split.name.name(), corpus_identity(&plan.corpora[planned.corpus], &split.parts)?]));
        }
        tasks.push(json!({
            "task": planned.task.name(),
            "role": planned.role.name(),
            "templates": fingerprint(&planned.task.definition, &planned.templates).to_hex().to_string(),
            "splits": splits,
        }));
    }
    let all = json!({ "prompts": prompt_settings(plan), "mixture": mixture_settings(plan), "tasks": tasks });
    Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
}
