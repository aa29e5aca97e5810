//! The plan: everything that is decided before a record is read.
//!
//! Recipe, definitions, corpus headers and tokenizer are brought together and checked against each other. The plan's
//! hash names the outcome: the same plan gives the same bytes, on any number of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::diag::{Diagnostic, Result, Span, listing, one};
use crate::ingest::Corpus;
use crate::ingest::info::CorpusName;
use crate::ingest::splits::{self, Part};
use crate::mixture::{
    Absent, Begin, Choice, Compat, Instructions, Recipe, ReducedSplits, Wrapper, rates, reduced_splits, too_close,
};
use crate::shard::writer;
use crate::storage;
use crate::task::{Catalogue, Task, fingerprint};
use crate::template::definition::{Kind, Splits};
use crate::template::engine;
use crate::template::snippet::Snippet;
use crate::tokenize::{Control, Tokenizer};

/// Raised whenever the same plan would give other bytes than before.
pub const FORMAT: u32 = 5;

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
    /// What every prompt begins with.
    pub bos: Option<Control>,
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
    /// Where exemplars come from, if the recipe wants any: the training rows.
    pub exemplars: Option<PlannedSplit>,
    /// Every row of the task, used or not; those of a task that is held out are nobody else's.
    pub extent: Vec<(SplitName, Part)>,
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
    /// The expression that a definition or recipe has for it.
    fn of(self, splits: &Splits) -> Option<&Snippet> {
        match self {
            SplitName::Train => splits.train.as_ref(),
            SplitName::Validation => splits.validation.as_ref(),
            SplitName::Test => splits.test.as_ref(),
        }
    }

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

/// Where the numbers of rows come from.
#[derive(Clone, Copy)]
pub enum Data<'d> {
    /// The headers of corpora below these directories.
    OnDisk(&'d [PathBuf]),
    /// The counts that definitions give: a plan of which nothing can be compiled.
    Published,
}

/// Makes the plan of a compile. Reads headers, the tokenizer, and the sizes of shards; no record.
pub fn plan<'c>(recipe: Recipe, catalogue: &'c Catalogue, data_dirs: &[PathBuf]) -> Result<Plan<'c>, Vec<Diagnostic>> {
    with_tokenizer(sources(recipe, catalogue, Data::OnDisk(data_dirs))?, data_dirs, Tokenizer::open_to_compare)
}

/// Adds to sources what has to do with tokens.
pub fn with_tokenizer<'c>(
    mut sources: Sources<'c>,
    data_dirs: &[PathBuf],
    open: impl FnOnce(&Path) -> Result<Tokenizer>,
) -> Result<Plan<'c>, Vec<Diagnostic>> {
    let choice = &sources.recipe.tokenizer;
    let file = tokenizer_file(&sources.recipe, data_dirs);
    let at = |d: Diagnostic| match &choice.place {
        Some(place) => d.at(place.clone()),
        None => d.at(Path::new(&sources.recipe.name)),
    };
    let tokenizer = open(&file).map_err(|d| {
        let absent = storage::stamp(&file).is_none();
        let help = match choice.file {
            Some(_) => "a relative path begins where the recipe is",
            None => "name one as `file` under [tokenizer], or make one with `flanc tokenizer train`",
        };
        vec![if absent { at(*d).help(help) } else { at(*d) }]
    })?;
    // The recipe's word for a token, and where it stands.
    let named = |token: &Option<Snippet>, d: Diagnostic| match token {
        Some(token) => vec![d.at(token.whole_span())],
        None => vec![at(d)],
    };
    let text = |token: &Option<Snippet>| token.as_ref().map(|t| t.text.clone());
    let bos = match &choice.bos {
        Begin::Token(name) => tokenizer.control(Some(&name.text), &[]).map_err(|d| vec![d.at(name.whole_span())])?,
        Begin::Nothing | Begin::Unsaid => None,
    };
    let eos = tokenizer.end_of_sequence(text(&choice.eos).as_deref()).map_err(|d| named(&choice.eos, *d))?;
    let pad = tokenizer.padding(text(&choice.pad).as_deref(), &eos).map_err(|d| named(&choice.pad, *d))?;
    let separator = match &choice.separator {
        Some(name) => tokenizer.control(Some(&name.text), &[]).map_err(|d| named(&choice.separator, *d))?,
        // An answer that goes on where its text ends has nothing before it.
        None if sources.recipe.wrapper == Wrapper::Continuation => None,
        None => (sources.recipe.compat == Compat::FlanV1).then(|| eos.clone()),
    };
    let unsaid = match (&choice.bos, tokenizer.begins_with()) {
        (Begin::Unsaid, Some(token)) => Some(at(no_begin_token(&file, token))),
        _ => None,
    };
    sources.warnings.extend(tokenizer.warnings.iter().cloned().chain(unsaid));
    let mut plan = Plan { sources, tokenizer, bos, eos, pad, separator, hash: String::new() };
    plan.hash = hash(&plan).map_err(one)?;
    Ok(plan)
}

/// What is said where other programs would put a token before every prompt, and nobody has said whether we should.
fn no_begin_token(file: &Path, token: &str) -> Diagnostic {
    let message =
        format!("`{}` puts `{token}` before every text, and the recipe does not say whether to", file.display());
    Diagnostic::warning("no-begin-token", message)
        .found("no `bos` under [tokenizer]: prompts begin without")
        .note("note", "transformers and vLLM add the token; a model that was trained with it does worse without")
        .help(format!("say `bos = \"{token}\"`, or `bos = \"none\"` to go without and hear no more of it"))
}

/// The tokenizer that a recipe names; else the one where the command runs, or the one beside the data.
pub fn tokenizer_file(recipe: &Recipe, data_dirs: &[PathBuf]) -> PathBuf {
    const FILE: &str = "tokenizer.json";
    recipe.tokenizer.file.clone().unwrap_or_else(|| {
        let here = PathBuf::from(FILE);
        let beside = data_dirs.iter().map(|d| d.join(FILE)).find(|f| storage::stamp(f).is_some());
        if storage::stamp(&here).is_some() { here } else { beside.unwrap_or(here) }
    })
}

/// Resolves the tasks of a recipe against the definitions and the numbers of rows.
pub fn sources<'c>(recipe: Recipe, catalogue: &'c Catalogue, data: Data<'_>) -> Result<Sources<'c>, Vec<Diagnostic>> {
    let sources = resolve(recipe, catalogue, data, &[SplitName::Train, SplitName::Validation])?;
    if !sources.tasks.iter().any(|t| t.role == Role::Trained && t.has(SplitName::Train)) {
        return Err(vec![nothing_to_train_on(&sources)]);
    }
    Ok(sources)
}

/// The plan of what a recipe holds out, and of nothing else.
pub fn held_out<'c>(
    recipe: Recipe,
    catalogue: &'c Catalogue,
    data_dirs: &[PathBuf],
) -> Result<Plan<'c>, Vec<Diagnostic>> {
    let recipe = Recipe { tasks: Vec::new(), ..recipe };
    with_tokenizer(resolve(recipe, catalogue, Data::OnDisk(data_dirs), &[])?, data_dirs, Tokenizer::open_to_compare)
}

/// The same for looking at rows: those that a task is tested on as well, whether it can be trained on or not.
pub fn sources_of_all_splits<'c>(
    recipe: Recipe,
    catalogue: &'c Catalogue,
    data: Data<'_>,
) -> Result<Sources<'c>, Vec<Diagnostic>> {
    resolve(recipe, catalogue, data, &[SplitName::Train, SplitName::Validation, SplitName::Test])
}

fn nothing_to_train_on(sources: &Sources<'_>) -> Diagnostic {
    let mut nothing = Diagnostic::error("nothing-to-train-on", "no task of the recipe has training rows")
        .at(Path::new(&sources.recipe.name))
        .help("check `tasks`, `hold_out`, `kinds` and --data-dir");
    for task in sources.tasks.iter().take(10) {
        let why = if task.role == Role::HeldOut { "it is held out" } else { "its definition has no `train` split" };
        nothing = nothing.note("not trained", format!("{}: {why}", task.task.name()));
    }
    for skipped in sources.skipped.iter().take(10) {
        nothing = nothing.note("skipped", format!("{}: {}", skipped.task, skipped.reason));
    }
    nothing
}

/// Resolves the tasks; of those that are trained on, the splits `trained`.
fn resolve<'c>(
    recipe: Recipe,
    catalogue: &'c Catalogue,
    data: Data<'_>,
    trained: &'static [SplitName],
) -> Result<Sources<'c>, Vec<Diagnostic>> {
    let (selected, skipped) = select_tasks(&recipe, catalogue)?;
    let mut planner = Planner {
        data,
        trained,
        reduced: Vec::new(),
        sources: Sources { recipe, corpora: Vec::new(), tasks: Vec::new(), skipped, warnings: Vec::new() },
        opened: BTreeMap::new(),
        held_out: Vec::new(),
    };
    if let Data::OnDisk(data_dirs) = data {
        for directory in data_dirs {
            if let Some(reduced) = reduced_splits(directory)? {
                planner.reduced.push((directory.clone(), reduced));
            }
        }
    }
    let mut errors = Vec::new();
    // What is held out comes first: no row of it may be in training.
    for wanted in [Role::HeldOut, Role::Trained] {
        for (task, _) in selected.iter().filter(|(_, role)| *role == wanted) {
            match planner.task(task, wanted) {
                Ok(Some(planned)) => planner.sources.tasks.push(planned),
                Ok(None) => {}
                Err(diagnostics) => errors.extend(diagnostics),
            }
        }
    }
    let mut sources = planner.sources;
    sources.tasks.sort_by(|a, b| a.task.name().cmp(b.task.name()));
    if !errors.is_empty() {
        return Err(without_a_flood(errors));
    }
    Ok(sources)
}

/// One diagnostic in place of many that say that a corpus is not there.
fn without_a_flood(errors: Vec<Diagnostic>) -> Vec<Diagnostic> {
    const SHOWN: usize = 3;
    let (mut absent, mut others): (Vec<_>, Vec<_>) = errors.into_iter().partition(|d| d.code == "corpus-not-found");
    let more = absent.split_off(absent.len().min(SHOWN));
    if !more.is_empty() {
        let corpora = more.iter().map(|d| d.message.split('`').nth(1).unwrap_or(&d.message));
        let message = format!("{} more corpora are not on disk", more.len());
        absent.push(
            Diagnostic::error("corpus-not-found", message)
                .note("corpora", listing(corpora))
                .help("`absent = \"skip\"` in a recipe leaves out what is not there, as the recipe `on-disk` does"),
        );
    }
    others.splice(0..0, absent);
    others
}

impl Plan<'_> {
    /// Control tokens around the text of inputs; their length counts them.
    pub fn around_inputs(&self) -> usize {
        usize::from(self.bos.is_some()) + usize::from(self.separator.is_some())
    }

    /// Most tokens that the text of inputs may have.
    pub fn longest_inputs(&self) -> usize {
        self.recipe.lengths.inputs - self.around_inputs()
    }
}

impl Sources<'_> {
    /// The rates of the tasks that are trained on, given how many examples each has: min(n, rate_max) or the weight that
    /// the recipe states.
    pub fn rates(&self, examples: &[(usize, u64)]) -> Vec<f64> {
        let recipe = &self.recipe;
        let weights: Vec<f64> = examples
            .iter()
            .map(|&(task, n)| {
                let d = &self.tasks[task].task.definition;
                let stated = recipe.weight(&d.task.text, &d.cluster, &d.code_cluster);
                if n == 0 { 0.0 } else { stated.unwrap_or(n.min(recipe.rate_max) as f64) }
            })
            .collect();
        rates(&weights, recipe.temperature)
    }
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
            errors.push(unknown(catalogue, selector.whole_span(), name));
        }
        for task in matched {
            if negated {
                chosen.remove(task.name())
            } else {
                chosen.insert(task.name())
            };
        }
    }
    for name in recipe.splits.keys().filter(|name| catalogue.tasks.iter().all(|t| t.name() != name.as_str())) {
        errors.push(
            Diagnostic::error("unknown-task", format!("`[splits]` names `{name}`, which is no task"))
                .at(Path::new(&recipe.name))
                .did_you_mean(name, catalogue.tasks.iter().map(Task::name)),
        );
    }
    for (name, place, _) in recipe.weights.iter().filter(|(name, _, _)| matching(catalogue, name).is_empty()) {
        errors.push(unknown(catalogue, place.clone(), name));
    }
    let mut held_out = BTreeSet::new();
    let mut close = BTreeSet::new();
    for selector in &recipe.hold_out {
        let matched = matching(catalogue, &selector.text);
        if matched.is_empty() {
            let unknown = unknown(catalogue, selector.whole_span(), &selector.text);
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
        } else if let Some(cluster) =
            [&task.definition.cluster, &task.definition.code_cluster].into_iter().find(|c| close.contains(c.as_str()))
        {
            skip(format!("its cluster, {cluster}, is too close to what is held out"));
        } else if let Some(other) = same_dataset(task, catalogue, &held_out) {
            skip(format!("it is the same dataset as `{}`, which is held out", other.name()));
        } else {
            selected.push((task, Role::Trained));
        }
    }
    Ok((selected, skipped))
}

/// The held-out task that is, in another corpus, the same dataset: SQuAD 1.1 and 2.0 share their texts.
fn same_dataset<'c>(task: &Task, catalogue: &'c Catalogue, held_out: &BTreeSet<&str>) -> Option<&'c Task> {
    catalogue.tasks.iter().find(|other| {
        held_out.contains(other.name())
            && other.definition.dataset == task.definition.dataset
            && other.definition.corpus != task.definition.corpus
    })
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

fn unknown(catalogue: &Catalogue, place: Span, name: &str) -> Diagnostic {
    let clusters: BTreeSet<&str> = catalogue.tasks.iter().map(|t| t.definition.cluster.as_str()).collect();
    let names = clusters.iter().copied().chain(catalogue.tasks.iter().map(Task::name));
    Diagnostic::error("unknown-task", format!("`{name}` is no task and no cluster"))
        .at(place)
        .label("not known")
        .did_you_mean(name.trim_start_matches('!'), names)
        .note("note", format!("clusters: {}; `flanc tasks` lists the tasks", listing(clusters)))
}

/// What planning the tasks one after the other needs.
struct Planner<'c, 'd> {
    data: Data<'d>,
    /// The splits of a task that is trained on.
    trained: &'static [SplitName],
    /// By data directory: how splits are taken from what is only a part of the corpora.
    reduced: Vec<(PathBuf, ReducedSplits)>,
    sources: Sources<'c>,
    opened: BTreeMap<CorpusName, usize>,
    /// Every row of the tasks that are held out, training rows and all, by corpus.
    held_out: Vec<(&'c str, usize, Part)>,
}

impl<'c> Planner<'c, '_> {
    fn skip(&mut self, task: &Task, split: Option<SplitName>, reason: String) {
        self.sources.skipped.push(Skipped { task: task.name().to_owned(), split, reason });
    }

    /// `Ok(None)`: the task is skipped, which has been noted.
    fn task(&mut self, task: &'c Task, role: Role) -> Result<Option<PlannedTask<'c>>, Vec<Diagnostic>> {
        let recipe = &self.sources.recipe;
        let task = if recipe.compat == Compat::FlanV1 { task.as_flan_v1() } else { task };
        let instructions = if role == Role::Trained { recipe.instructions } else { recipe.eval_instructions };
        let task = match instructions {
            Instructions::Templates => task,
            Instructions::None => task.without_instructions()?,
            Instructions::DatasetName => task.with_dataset_name()?,
        };
        let Some(corpus) = self.corpus(task)? else { return Ok(None) };
        let wanted: &[SplitName] = match role {
            Role::Trained => self.trained,
            // Templates are chosen on validation rows, and scored on test rows.
            Role::HeldOut => &[SplitName::Validation, SplitName::Test],
        };
        let mut splits = Vec::new();
        let mut errors = Vec::new();
        for &name in wanted {
            match self.split(task, corpus, name) {
                Ok(split) => splits.extend(split),
                // What is tested does not hang on what templates are chosen on.
                Err(error) if role == Role::HeldOut && name == SplitName::Validation => {
                    self.skip(task, Some(name), error.message);
                }
                Err(error) => errors.push(*error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        if role == Role::HeldOut && !splits.iter().any(|s| s.name == SplitName::Test) {
            splits.clear();
        }
        let mut extent = Vec::new();
        for name in [SplitName::Train, SplitName::Validation, SplitName::Test] {
            let split = match splits.iter().find(|s| s.name == name) {
                Some(planned) => Some(planned.clone()),
                None if role == Role::HeldOut => self.split(task, corpus, name).ok().flatten(),
                None => None,
            };
            extent.extend(split.into_iter().flat_map(|s| s.parts).map(|part| (name, part)));
        }
        if role == Role::HeldOut {
            if task.definition.splits.test.is_none() {
                let reason = "it is held out, and its definition has no `test` split to evaluate on".to_owned();
                self.skip(task, Some(SplitName::Test), reason);
            }
            self.held_out.extend(extent.iter().map(|(_, part)| (task.name(), corpus, part.clone())));
        } else if let Some(other) = self.held_out_with_rows_of(corpus, &splits) {
            self.skip(task, None, format!("its rows are those of `{other}`, which is held out"));
            return Ok(None);
        }
        if role == Role::Trained && splits.is_empty() {
            self.skip(task, None, "its definition has no rows to train on".to_owned());
            return Ok(None);
        }
        let recipe = &self.sources.recipe;
        let mut templates: Vec<usize> = (0..task.definition.templates.len())
            .filter(|&i| {
                let kind = task.definition.templates[i].kind;
                // A turned-around template does not ask for what is evaluated.
                recipe.kinds.contains(&kind) && (role == Role::Trained || kind == Kind::Original)
            })
            .collect();
        if let Some(limit) = recipe.template_limit.filter(|_| role == Role::Trained) {
            templates.truncate(limit as usize);
        }
        if templates.is_empty() {
            self.skip(task, None, "it has no template of the kinds that the recipe wants".to_owned());
            return Ok(None);
        }
        let mut exemplars = None;
        if recipe.shots > 0 {
            exemplars = self.split(task, corpus, SplitName::Train).map_err(one)?.filter(|s| s.rows > 0);
            if exemplars.is_none() {
                self.skip(task, None, "it has no training rows to take exemplars from".to_owned());
                return Ok(None);
            }
        }
        Ok(Some(PlannedTask { task, corpus, role, templates, splits, exemplars, extent }))
    }

    /// The task's corpus among those that are open.
    fn corpus(&mut self, task: &Task) -> Result<Option<usize>, Vec<Diagnostic>> {
        let definition = &task.definition;
        let name = match self.data {
            Data::OnDisk(data_dirs) => match task.corpus_on_disk(data_dirs) {
                Some(name) => name,
                None if self.sources.recipe.absent == Absent::Skip => {
                    self.skip(task, None, format!("no corpus `{}` on disk", definition.corpus));
                    return Ok(None);
                }
                None => &definition.corpus, // opening it says what is wrong
            },
            Data::Published => &definition.corpus,
        };
        if let Some(&index) = self.opened.get(name) {
            self.check(task, index)?;
            return Ok(Some(index));
        }
        let corpus = match self.data {
            Data::OnDisk(data_dirs) => Corpus::open(name, data_dirs).map_err(one)?,
            Data::Published if definition.rows.is_empty() => {
                let missing = Diagnostic::error("rows", format!("how many rows `{name}` has is not known"))
                    .at(definition.corpus_place.clone())
                    .help("name a --data-dir, or add `rows = { train = … }` to the definition");
                return Err(vec![missing]);
            }
            Data::Published => Corpus::published(name, &definition.rows),
        };
        // Labels without names are no surprise where the schema knows of none.
        let as_expected = task.schema.differences(&corpus.info.features).is_empty();
        let news = corpus.info.warnings.iter().filter(|w| !(as_expected && w.code == "label-names"));
        self.sources.warnings.extend(news.cloned());
        if definition.corpus.version.is_some() && definition.corpus.version != corpus.info.name.version {
            let message = format!("`{}` is used in place of `{}`", corpus.info.name, definition.corpus);
            let warning = Diagnostic::warning("other-version", message).at(&corpus.info.directory);
            self.sources.warnings.push(warning.help("its features are known; its rows may differ"));
        }
        self.sources.corpora.push(corpus);
        let index = self.sources.corpora.len() - 1;
        self.opened.insert(name.clone(), index);
        self.check(task, index)?;
        Ok(Some(index))
    }

    /// Whether the corpus has the features that the task was written for.
    fn check(&mut self, task: &Task, corpus: usize) -> Result<(), Vec<Diagnostic>> {
        if let Data::OnDisk(_) = self.data {
            let info = &self.sources.corpora[corpus].info;
            let warning = task.check_corpus(&info.name, &info.features, &info.directory).map_err(one)?;
            self.sources.warnings.extend(warning);
        }
        Ok(())
    }

    /// The rows of a split, as the recipe, the data or the definition has it; `None` where there is no such split.
    fn split(&mut self, task: &Task, corpus: usize, name: SplitName) -> Result<Option<PlannedSplit>> {
        let opened = &self.sources.corpora[corpus];
        let reduced = self.reduced.iter().find(|(dir, _)| opened.info.directory.starts_with(dir)).map(|(_, r)| r);
        let recipe = &self.sources.recipe;
        let stated = recipe.splits.get(task.name()).and_then(|s| name.of(s));
        let stated = stated.or_else(|| name.of(reduced?.splits.get(task.name())?));
        let scale = recipe.split_scale.or(reduced.and_then(|r| r.scale)).unwrap_or(1.0);
        let (expression, scale) = match (stated, name.of(&task.definition.splits)) {
            (Some(stated), _) => (stated.clone(), 1.0),
            (None, Some(defined)) => (defined.clone(), scale),
            (None, None) => return Ok(None),
        };
        if recipe.absent == Absent::Skip
            && let Some(absent) = splits::names(&expression.text).find(|n| *n != "all" && opened.split(n).is_none())
        {
            let reason = format!("the corpus has no split `{absent}`");
            self.skip(task, Some(name), reason);
            return Ok(None);
        }
        match opened.resolve(&expression.text, scale) {
            Ok(parts) => {
                let rows = parts.iter().map(|p| p.rows.end - p.rows.start).sum();
                Ok(Some(PlannedSplit { name, parts, rows }))
            }
            Err(diagnostic) => Err(diagnostic
                .at(expression.whole_span())
                .label(format!("the {} rows of task `{}`", name.name(), task.name()))
                .note("corpus", opened.info.directory.display().to_string())
                .into()),
        }
    }

    /// A held-out task that has one of these rows.
    fn held_out_with_rows_of(&self, corpus: usize, splits: &[PlannedSplit]) -> Option<&'c str> {
        let mut parts = splits.iter().flat_map(|s| &s.parts);
        parts.find_map(|part| {
            let shared = self.held_out.iter().find(|(_, other, held)| {
                *other == corpus
                    && held.split == part.split
                    && held.rows.start < part.rows.end
                    && part.rows.start < held.rows.end
            });
            shared.map(|(task, _, _)| *task)
        })
    }
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
    let mut settings = json!({
        "format": FORMAT,
        "seed": r.seed,
        "cap": r.cap, "select": r.select, "filters": r.filters,
        "templates": r.templates,
        "compat": r.compat,
        "exemplars": [json!(r.shots), json!(r.exemplar_templates), json!(r.exemplar_tokens)],
        "wrapper": r.wrapper,
        "lengths": r.lengths,
        "tokenizer": plan.tokenizer.hash(),
        // Padding is in no task shard, but every file names the token.
        "eos": plan.eos.id, "pad": plan.pad.id, "separator": plan.separator.as_ref().map(|s| s.id),
        "engines": [engine::ENGINE, plan.tokenizer.engine(), writer::ENGINE],
    });
    // Left out where there is none: it is younger than plans that are to keep their hash.
    if let Some(bos) = &plan.bos {
        settings["bos"] = json!(bos.id);
    }
    settings
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
    let all = json!({ "contamination": plan.recipe.contamination, "prompts": prompt_settings(plan), "mixture": mixture_settings(plan), "tasks": tasks });
    Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
}
