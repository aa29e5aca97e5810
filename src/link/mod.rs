//! Linking: task shards become a mixture, in one global order.
//!
//! Every prompt that is drawn gets a key, a hash of its identity; sorting by key is the mixture's order. The key also
//! says which shard the prompt belongs to, so shards can be made one by one: first each task shard is *scattered*, its
//! prompts written out side by side with those that go to the same place; then each shard of the mixture is
//! *sorted*, packed and written. All threads work on one shard, its row groups among them, while the next is being
//! sorted: none has to wait for the last shard, and memory is bounded by the index of two.
//!
//! Tasks are drawn by exact quotas (largest remainder of the rates). A quota above what a task has takes all of its
//! prompts as often as they go into it, and for the rest those with the smallest draw keys.

mod gather;
mod scatter;

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{UInt32Type, UInt64Type};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::gather::Gather;
use self::scatter::{Run, scatter};
use crate::compile::Progress;
use crate::diag::{Diagnostic, Result};
use crate::expand::{GROUP_ROWS, Object, Unit};
use crate::mixture::{Size, quotas, quotas_without_repeats};
use crate::plan::{Plan, Role, SplitName};
use crate::seed::{Seed, Stream};
use crate::shard::provenance::Origin;
use crate::shard::reader;
use crate::shard::receipts;
use crate::shard::writer::FileInfo;
use crate::storage;

/// Where scattered task shards lie for as long as a run takes, below [`receipts::DIRECTORY`].
pub const RUNS: &str = "runs";

/// What linking one split gave.
#[derive(Clone, Debug, Default)]
pub struct Linked {
    pub files: Vec<FileInfo>,
    pub totals: Totals,
    /// By task of the plan.
    pub draws: BTreeMap<usize, Drawn>,
}

/// How much of a task went into the mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drawn {
    pub prompts: u64,
    pub repeated: u64,
    pub rate_asked: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub prompts: u64,
    pub rows: u64,
    pub tokens: u64,
    pub loss_tokens: u64,
    pub padding_tokens: u64,
}

impl Totals {
    fn add(&mut self, other: &Totals) {
        self.prompts += other.prompts;
        self.rows += other.rows;
        self.tokens += other.tokens;
        self.loss_tokens += other.loss_tokens;
        self.padding_tokens += other.padding_tokens;
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LinkedShard {
    shard: FileInfo,
    provenance: FileInfo,
    totals: Totals,
}

/// A task shard that takes part.
struct Source<'o> {
    task: usize,
    unit: &'o Unit,
    object: &'o Object,
}

/// How often the prompts of a task are used: each `passes` times, and once more if its draw key is not above `last`.
#[derive(Clone, Copy)]
struct Draw {
    passes: u64,
    last: Option<DrawKey>,
}

/// The hash, and the identity it was made from, so that no two are equal.
type DrawKey = (u64, u32, u64, u32);

/// Links one split of the mixture. `examples` are the selected rows of each task, which the rates go by.
pub fn link(
    plan: &Plan<'_>,
    split: SplitName,
    objects: &[(Unit, Object)],
    examples: &BTreeMap<usize, u64>,
    out: &Path,
    progress: &Progress,
) -> Result<Linked> {
    let sources: Vec<Source> = objects
        .iter()
        .filter(|(unit, _)| {
            let task = &plan.tasks[unit.task];
            task.role == Role::Trained && task.splits[unit.split].name == split
        })
        .map(|(unit, object)| Source { task: unit.task, unit, object })
        .collect();
    let (draws, drawn) = draw(plan, split, &sources, examples, out)?;
    if drawn.values().all(|d| d.prompts == 0) {
        return Ok(Linked::default());
    }
    let shards = shard_count(plan, &sources, &drawn);
    let key = |shard: usize| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(plan.hash.as_bytes());
        for source in &sources {
            hasher.update(source.object.shard.blake3.as_bytes());
        }
        hasher.update(format!("{} {shard} {shards}", split.name()).as_bytes());
        hasher.finalize().to_hex().to_string()
    };
    let stems: Vec<String> = (0..shards).map(|i| format!("mixture/{}-{i:05}-of-{shards:05}", split.name())).collect();
    let known: Vec<Option<LinkedShard>> = stems
        .iter()
        .enumerate()
        .map(|(i, stem)| {
            receipts::find(out, stem, &key(i), &[], |l: &LinkedShard| vec![l.shard.clone(), l.provenance.clone()])
        })
        .collect();
    let total = drawn.values().map(|d| d.prompts).sum();
    progress.begin(if split == SplitName::Train { "mix" } else { "mix validation" }, total);
    let mut linked = Vec::new();
    if known.iter().all(Option::is_some) {
        linked.extend(known.into_iter().flatten());
    } else {
        let directory = out.join(receipts::DIRECTORY).join(RUNS).join(split.name());
        let runs: Result<Vec<Run>> = sources
            .par_iter()
            .enumerate()
            .map(|(i, source)| {
                scatter(plan, source, draws[&source.task], shards, out, &directory.join(format!("{i:06}.run")))
            })
            .collect();
        let runs = runs?;
        let gather = Gather::new(plan, split, &runs, out);
        let missing: Vec<usize> = (0..shards).filter(|&i| known[i].is_none()).collect();
        let mut sorted = missing.first().map(|&i| gather.sort(i));
        let mut made = BTreeMap::new();
        for (n, &i) in missing.iter().enumerate() {
            let this = sorted.take().expect("a shard is sorted while the one before it is written");
            let (shard, next) =
                rayon::join(|| gather.write(&this, &stems[i]), || missing.get(n + 1).map(|&next| gather.sort(next)));
            let shard = shard?;
            receipts::leave(out, &stems[i], &key(i), &[], &shard)?;
            progress.advance(shard.totals.prompts, shard.totals.tokens);
            made.insert(i, shard);
            sorted = next;
        }
        linked.extend(known.into_iter().enumerate().filter_map(|(i, known)| known.or_else(|| made.remove(&i))));
        drop(gather);
        drop(runs);
        storage::remove_tree(&directory)?;
    }
    let mut totals = Totals::default();
    let mut files = Vec::new();
    for shard in linked {
        totals.add(&shard.totals);
        files.extend([shard.shard, shard.provenance]);
    }
    Ok(Linked { files, totals, draws: drawn })
}

/// Names of receipts that `link` leaves, given the files it made.
pub fn receipt_names(linked: &Linked) -> impl Iterator<Item = String> {
    linked
        .files
        .iter()
        .filter_map(|f| f.path.strip_suffix(".parquet"))
        .filter(|p| !p.ends_with(".provenance"))
        .map(str::to_owned)
}

/// Decides how often each task's prompts are used.
fn draw(
    plan: &Plan<'_>,
    split: SplitName,
    sources: &[Source<'_>],
    examples: &BTreeMap<usize, u64>,
    out: &Path,
) -> Result<(BTreeMap<usize, Draw>, BTreeMap<usize, Drawn>)> {
    let (mut prompts, mut tokens) = (BTreeMap::<usize, u64>::new(), BTreeMap::<usize, u64>::new());
    for source in sources {
        *prompts.entry(source.task).or_default() += source.object.counts.prompts;
        *tokens.entry(source.task).or_default() += source.object.shard.tokens;
    }
    let tasks: Vec<usize> = prompts.iter().filter(|(_, n)| **n > 0).map(|(t, _)| *t).collect();
    let rates = plan.rates(&tasks.iter().map(|t| (*t, examples.get(t).copied().unwrap_or(0))).collect::<Vec<_>>());
    // The validation mixture is there to be read whole: sizes and rates are for training.
    let size = if split == SplitName::Train { plan.recipe.size } else { Size::All };
    let wanted: Vec<u64> = match size {
        Size::All => tasks.iter().map(|t| prompts[t]).collect(),
        Size::Prompts(total) => quotas(total, &rates),
        Size::Tokens(total) => {
            let mean: f64 = tasks.iter().zip(&rates).map(|(t, rate)| rate * tokens[t] as f64 / prompts[t] as f64).sum();
            quotas((total as f64 / mean).round() as u64, &rates)
        }
        Size::WithoutRepeats => quotas_without_repeats(&tasks.iter().map(|t| prompts[t]).collect::<Vec<_>>(), &rates),
    };
    let all: u64 = wanted.iter().sum();
    let (mut draws, mut drawn) = (BTreeMap::new(), BTreeMap::new());
    for ((&task, &quota), &rate) in tasks.iter().zip(&wanted).zip(&rates) {
        let available = prompts[&task];
        let (passes, rest) = (quota / available, quota % available);
        let last = if rest == 0 { None } else { Some(last_key(plan, task, rest, sources, out)?) };
        draws.insert(task, Draw { passes, last });
        let rate_asked = if size == Size::All { quota as f64 / all as f64 } else { rate };
        drawn.insert(task, Drawn { prompts: quota, repeated: quota.saturating_sub(available), rate_asked });
    }
    // Task shards without a prompt have nothing to scatter.
    for source in sources {
        draws.entry(source.task).or_insert(Draw { passes: 0, last: None });
    }
    Ok((draws, drawn))
}

/// The `rest`th smallest draw key of a task.
fn last_key(plan: &Plan<'_>, task: usize, rest: u64, sources: &[Source<'_>], out: &Path) -> Result<DrawKey> {
    let stream = draw_stream(plan, task);
    let mut keys = Vec::new();
    for source in sources.iter().filter(|s| s.task == task) {
        for batch in origins(plan, source, out)? {
            keys.extend(batch?.iter().map(|o| draw_key(stream, o)));
        }
    }
    if rest == 0 || rest as usize > keys.len() {
        return Err(Diagnostic::error("provenance", "a task shard and its provenance differ in length")
            .help("remove the output directory and compile again")
            .into());
    }
    Ok(*keys.select_nth_unstable(rest as usize - 1).1)
}

fn draw_stream(plan: &Plan<'_>, task: usize) -> Stream {
    Seed(plan.recipe.seed).stream(&["draw", plan.tasks[task].task.name()])
}

fn draw_key(stream: Stream, o: &Origin) -> DrawKey {
    (stream.at(u64::from(o.split)).at(o.row).draw(u64::from(o.template)), o.split, o.row, o.template)
}

fn shard_count(plan: &Plan<'_>, sources: &[Source<'_>], drawn: &BTreeMap<usize, Drawn>) -> usize {
    let mut tokens = 0.0;
    for (task, drawn) in drawn {
        let of_task = || sources.iter().filter(|s| s.task == *task);
        let (all, prompts) =
            of_task().fold((0, 0), |(t, p), s| (t + s.object.shard.tokens, p + s.object.counts.prompts));
        tokens += all as f64 * drawn.prompts as f64 / prompts as f64;
    }
    ((tokens / plan.recipe.output.shard_tokens as f64).ceil() as usize).max(1)
}

/// The provenance of a task shard, in batches of its rows.
fn origins<'s>(
    plan: &'s Plan<'_>,
    source: &'s Source<'_>,
    out: &Path,
) -> Result<impl Iterator<Item = Result<Vec<Origin>>> + 's> {
    const COLUMNS: [&str; 5] = ["split", "row", "template", "target_start", "length"];
    let path = &source.object.provenance.path;
    let planned = &plan.tasks[source.task];
    let splits: Vec<&str> = plan.corpora[planned.corpus].info.splits.iter().map(|s| s.name.as_str()).collect();
    let templates: Vec<&str> = planned.task.definition.templates.iter().map(|t| t.name.text.as_str()).collect();
    let batches = reader::open_categories(out, path, GROUP_ROWS, &COLUMNS)?;
    Ok(batches.map(move |batch| {
        let batch = batch?;
        let u32s = |name: &str| {
            let column = reader::column(&batch, name, path)?.as_primitive_opt::<UInt32Type>();
            column.ok_or_else(|| reader::wrong_type(name, path))
        };
        let row = reader::column(&batch, "row", path)?.as_primitive_opt::<UInt64Type>();
        let row = row.ok_or_else(|| reader::wrong_type("row", path))?;
        let split = indices(&batch, "split", path, &splits)?;
        let template = indices(&batch, "template", path, &templates)?;
        let (target_start, length) = (u32s("target_start")?, u32s("length")?);
        let origin = |i: usize| Origin {
            task: source.task as u32,
            split: split[i],
            row: row.value(i),
            template: template[i],
            repeat: 0,
            target_start: target_start.value(i),
            length: length.value(i),
        };
        Ok((0..batch.num_rows()).map(origin).collect())
    }))
}

/// A column of names as indices into `names`.
fn indices(batch: &RecordBatch, column: &str, path: &str, names: &[&str]) -> Result<Vec<u32>> {
    let (categories, keys) = reader::categories(batch, column, path)?;
    let index = |name: &str| {
        names.iter().position(|n| *n == name).map(|i| i as u32).ok_or_else(|| {
            let unknown = format!("{path} names `{name}`, which the plan does not have");
            let unknown = Diagnostic::error("provenance", unknown);
            Box::new(unknown.help("remove the output directory and compile again"))
        })
    };
    let categories: Vec<u32> = categories.iter().map(|name| index(name)).collect::<Result<_, _>>()?;
    Ok(keys.iter().map(|&key| categories[key as usize]).collect())
}
