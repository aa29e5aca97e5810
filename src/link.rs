//! Linking: task shards become a mixture, in one global order.
//!
//! Every prompt that is drawn gets a key, a hash of its identity; sorting by key is the mixture's order. The key also
//! says which shard the prompt belongs to, so shards can be made one by one: first each task shard is *scattered*, its
//! prompts written out side by side with those that go to the same place; then each shard of the mixture is
//! *gathered*, sorted, packed and written. Memory is bounded by one shard's index, and both steps read and write in
//! long stretches.
//!
//! Tasks are drawn by exact quotas (largest remainder of the rates). A quota above what a task has takes all of its
//! prompts as often as they go into it, and for the rest those with the smallest draw keys.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{UInt32Type, UInt64Type};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::compile::Progress;
use crate::diag::{Diagnostic, Result};
use crate::expand::{GROUP_BYTES, GROUP_ROWS, Object, Unit};
use crate::mixture::{Profile, Size, quotas, quotas_without_repeats};
use crate::pack::pack;
use crate::plan::{Plan, Role, SplitName};
use crate::seed::{Seed, Stream};
use crate::shard::columns::{
    MegatronRows, Origin, OriginNames, PackedRows, PromptRows, ProvenanceForm, ProvenanceRows,
};
use crate::shard::reader::{self, IdPages};
use crate::shard::receipts;
use crate::shard::writer::{FileInfo, ShardWriter};
use crate::storage::{self, Mapped};

/// Where scattered task shards lie for as long as a run takes, below [`receipts::DIRECTORY`].
pub const RUNS: &str = "runs";
/// Bytes that scattering one task shard holds before it writes them out.
const SCATTER_BYTES: usize = 16 << 20;
/// Megatron-Bridge keeps a row group in memory for each worker and reads at random: small ones.
const MEGATRON_GROUP_ROWS: usize = 500;

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
        let names = names(plan);
        let made: Result<Vec<LinkedShard>> = known
            .into_par_iter()
            .enumerate()
            .map(|(i, known)| match known {
                Some(known) => Ok(known),
                None => {
                    let shard = gather(plan, split, i, &runs, &stems[i], &names, out)?;
                    receipts::leave(out, &stems[i], &key(i), &[], &shard)?;
                    progress.advance(shard.totals.prompts, shard.totals.tokens);
                    Ok(shard)
                }
            })
            .collect();
        linked = made?;
        drop(runs);
        storage::remove_tree(&directory)?;
    }
    let mut totals = Totals::default();
    let mut files = Vec::new();
    for shard in linked {
        totals.prompts += shard.totals.prompts;
        totals.rows += shard.totals.rows;
        totals.tokens += shard.totals.tokens;
        totals.loss_tokens += shard.totals.loss_tokens;
        totals.padding_tokens += shard.totals.padding_tokens;
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

/// A scattered task shard: a file, and where in it the prompts of each mixture shard lie.
struct Run {
    bytes: Mapped,
    /// By mixture shard.
    stretches: Vec<Vec<std::ops::Range<usize>>>,
    path: PathBuf,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = storage::remove(&self.path); // scratch; the directory goes at the end in any case
    }
}

/// Bytes of a scattered prompt before its ids: key, row, task, split, template, repeat, target_start, length.
const HEADER: usize = 8 + 8 + 6 * 4;

fn scatter(plan: &Plan<'_>, source: &Source<'_>, draw: Draw, shards: usize, out: &Path, path: &Path) -> Result<Run> {
    let task = source.task;
    let name = plan.tasks[task].task.name();
    let order = Seed(plan.recipe.seed).stream(&["order", name]);
    let picks = draw_stream(plan, task);
    let mut file = storage::Scratch::create(path)?;
    let mut buckets: Vec<Vec<u8>> = vec![Vec::new(); shards];
    let mut stretches = vec![Vec::new(); shards];
    let (mut held, mut written) = (0, 0);
    let mut spill = |buckets: &mut Vec<Vec<u8>>| -> Result<()> {
        for (bucket, stretches) in buckets.iter_mut().zip(&mut stretches) {
            if !bucket.is_empty() {
                file.write_all(bucket).map_err(|e| storage::failure("write", path, &e))?;
                stretches.push(written..written + bucket.len());
                written += bucket.len();
                bucket.clear();
            }
        }
        Ok(())
    };
    if source.object.counts.prompts > 0 && (draw.passes > 0 || draw.last.is_some()) {
        // A page holds the ids of whole prompts, which the provenance tells apart.
        let mut pages = IdPages::open(out, &source.object.shard.path, "input_ids")?;
        let mut page = Vec::new();
        let mut at = 0;
        for batch in origins(plan, source, out)? {
            for origin in batch? {
                if at == page.len() {
                    at = 0;
                    pages.next_page(&mut page)?;
                }
                let ids = page.get(at..at + origin.length as usize).ok_or_else(|| apart(source))?;
                at += ids.len();
                let more = draw.last.is_some_and(|last| draw_key(picks, &origin) <= last);
                let stream = order.at(u64::from(origin.split)).at(origin.row).at(u64::from(origin.template));
                for repeat in 0..draw.passes + u64::from(more) {
                    let key = stream.draw(repeat);
                    let bucket = &mut buckets[((u128::from(key) * shards as u128) >> 64) as usize];
                    let before = bucket.len();
                    bucket.extend(key.to_le_bytes());
                    bucket.extend(origin.row.to_le_bytes());
                    let [task, split, template] = [origin.task, origin.split, origin.template];
                    for value in [task, split, template, repeat as u32, origin.target_start, origin.length] {
                        bucket.extend(value.to_le_bytes());
                    }
                    bucket.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
                    held += bucket.len() - before;
                    if held >= SCATTER_BYTES {
                        spill(&mut buckets)?;
                        held = 0;
                    }
                }
            }
        }
        let all_read = at == page.len();
        pages.next_page(&mut page)?;
        if !(all_read && page.is_empty()) {
            return Err(apart(source));
        }
        spill(&mut buckets)?;
    }
    file.close()?;
    Ok(Run { bytes: storage::map(path)?, stretches, path: path.to_owned() })
}

fn apart(source: &Source<'_>) -> Box<Diagnostic> {
    Diagnostic::error("provenance", format!("{} and its provenance hold different rows", source.unit.stem))
        .help("remove the output directory and compile again")
        .into()
}

/// A prompt in a run.
struct Scattered<'r> {
    origin: Origin,
    ids: &'r [u8],
}

fn parse(bytes: &[u8], at: usize) -> (u64, Scattered<'_>) {
    let u64_at = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| bytes[at + i + k]));
    let u32_at = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| bytes[at + i + k]));
    let length = u32_at(36);
    let origin = Origin {
        row: u64_at(8),
        task: u32_at(16),
        split: u32_at(20),
        template: u32_at(24),
        repeat: u32_at(28),
        target_start: u32_at(32),
        length,
    };
    (u64_at(0), Scattered { origin, ids: &bytes[at + HEADER..at + HEADER + length as usize * 4] })
}

/// The names that the provenance of the mixture refers to: templates of all tasks in one table.
struct Names {
    names: OriginNames,
    /// Index of each task's first template in it.
    first_template: Vec<u32>,
    /// Index in it of each split of each task's corpus.
    splits: Vec<Vec<u32>>,
}

fn names(plan: &Plan<'_>) -> Names {
    let mut names = OriginNames::default();
    let (mut first_template, mut splits) = (Vec::new(), Vec::new());
    for task in &plan.tasks {
        names.tasks.push(task.task.name().to_owned());
        first_template.push(names.templates.len() as u32);
        for template in &task.task.definition.templates {
            names.templates.push(template.name.text.clone());
            names.kinds.push(template.kind.name());
        }
        let of_corpus = plan.corpora[task.corpus].info.splits.iter().map(|split| {
            let index = names.splits.iter().position(|n| *n == split.name).unwrap_or_else(|| {
                names.splits.push(split.name.clone());
                names.splits.len() - 1
            });
            index as u32
        });
        splits.push(of_corpus.collect());
    }
    Names { names, first_template, splits }
}

/// Sorts, packs and writes one shard of the mixture.
fn gather(
    plan: &Plan<'_>,
    split: SplitName,
    shard: usize,
    runs: &[Run],
    stem: &str,
    names: &Names,
    out: &Path,
) -> Result<LinkedShard> {
    let mut prompts: Vec<(u64, u32, usize, u32)> = Vec::new();
    for (r, run) in runs.iter().enumerate() {
        for stretch in &run.stretches[shard] {
            let mut at = stretch.start;
            while at < stretch.end {
                let (key, prompt) = parse(&run.bytes, at);
                prompts.push((key, r as u32, at, prompt.origin.length));
                at += HEADER + prompt.ids.len();
            }
        }
    }
    // By key; runs and offsets follow from the plan, so equal keys have an order too.
    prompts.sort_unstable();
    let lengths = plan.recipe.lengths;
    let metadata: Vec<(String, String)> = [
        ("flanc.plan", plan.hash.clone()),
        ("flanc.split", split.name().to_owned()),
        ("flanc.profile", plan.recipe.output.profile.name().to_owned()),
        ("flanc.sequence", plan.recipe.output.sequence.to_string()),
        ("flanc.tokenizer", plan.tokenizer.hash().to_owned()),
        ("flanc.templates", templates_hash(plan)),
        ("flanc.eos_id", plan.eos.id.to_string()),
        ("flanc.pad_id", plan.pad.id.to_string()),
        ("flanc.inputs_length", lengths.inputs.to_string()),
        ("flanc.targets_length", lengths.targets.to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    let profile = plan.recipe.output.profile;
    let schema = match profile {
        Profile::Sft => PromptRows::schema(),
        Profile::Packed => PackedRows::schema(),
        Profile::Megatron => MegatronRows::schema(),
    };
    let packed = profile != Profile::Sft;
    let form = if packed { ProvenanceForm::Packed } else { ProvenanceForm::Prompts };
    let mut output = Output {
        shard: ShardWriter::create(out, &format!("{stem}.parquet"), schema, &metadata)?,
        provenance_shard: ShardWriter::create(
            out,
            &format!("{stem}.provenance.parquet"),
            ProvenanceRows::schema(form),
            &metadata,
        )?,
        provenance: ProvenanceRows::new(names.names.clone(), form),
        totals: Totals::default(),
        names,
        ids: Vec::new(),
    };
    let prompt = |i: usize| {
        let (_, run, at, _) = prompts[i];
        parse(&runs[run as usize].bytes, at).1
    };
    let token_lengths = || prompts.iter().map(|&(.., length)| length).collect::<Vec<u32>>();
    let sequence = plan.recipe.output.sequence;
    match profile {
        Profile::Sft => {
            let mut rows = PromptRows::default();
            for i in 0..prompts.len() {
                let origin = output.take(&prompt(i));
                rows.push(&output.ids, origin.target_start as usize);
                output.totals.rows += 1;
                if rows.rows() >= GROUP_ROWS || rows.bytes() >= GROUP_BYTES {
                    let batch = rows.finish();
                    output.write(&batch)?;
                    rows.reclaim(batch);
                }
            }
            output.write(&rows.finish())?;
        }
        Profile::Packed => {
            let mut rows = PackedRows::default();
            for row in pack(&token_lengths(), sequence as u32) {
                let mut used = 0;
                for i in row {
                    let origin = output.take(&prompt(i as usize));
                    rows.push(&output.ids, origin.target_start as usize);
                    used += output.ids.len();
                }
                rows.close(used, sequence, plan.pad.id);
                output.close(sequence - used);
                if rows.input_ids.len() >= GROUP_ROWS || rows.input_ids.values.len() * 8 >= GROUP_BYTES {
                    let batch = rows.finish();
                    output.write(&batch)?;
                    rows.reclaim(batch);
                }
            }
            output.write(&rows.finish())?;
        }
        Profile::Megatron => {
            let mut rows = MegatronRows::default();
            for row in pack(&token_lengths(), sequence as u32) {
                let mut used = 0;
                for i in row {
                    let origin = output.take(&prompt(i as usize));
                    rows.push(&output.ids, origin.target_start as usize, used);
                    used += output.ids.len();
                }
                rows.close();
                output.close(0); // Megatron-Bridge pads
                if rows.input_ids.len() >= MEGATRON_GROUP_ROWS {
                    output.write(&rows.finish())?;
                }
            }
            output.write(&rows.finish())?;
        }
    }
    output.shard.tokens = output.totals.tokens;
    Ok(LinkedShard {
        shard: output.shard.finish()?,
        provenance: output.provenance_shard.finish()?,
        totals: output.totals,
    })
}

/// A mixture shard being written.
struct Output<'n> {
    shard: ShardWriter,
    provenance_shard: ShardWriter,
    provenance: ProvenanceRows,
    totals: Totals,
    names: &'n Names,
    /// Ids of the prompt taken last.
    ids: Vec<u32>,
}

impl Output<'_> {
    /// Takes a prompt's ids into `ids` and its origin into the provenance.
    fn take(&mut self, prompt: &Scattered<'_>) -> Origin {
        self.ids.clear();
        self.ids.extend(prompt.ids.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])));
        let origin = prompt.origin;
        let task = origin.task as usize;
        self.provenance.push(Origin {
            split: self.names.splits[task][origin.split as usize],
            template: self.names.first_template[task] + origin.template,
            ..origin
        });
        self.totals.prompts += 1;
        self.totals.tokens += u64::from(origin.length);
        self.totals.loss_tokens += u64::from(origin.length - origin.target_start.max(1).min(origin.length));
        origin
    }

    /// Ends a packed row.
    fn close(&mut self, padding: usize) {
        self.provenance.close();
        self.totals.rows += 1;
        self.totals.padding_tokens += padding as u64;
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() > 0 {
            self.shard.write(batch)?;
            self.provenance_shard.write(&self.provenance.finish())?;
        }
        Ok(())
    }
}

/// One hash for the templates of all tasks.
fn templates_hash(plan: &Plan<'_>) -> String {
    let mut hasher = blake3::Hasher::new();
    for task in &plan.tasks {
        hasher.update(crate::task::fingerprint(&task.task.definition, &task.templates).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
