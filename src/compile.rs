//! Compiling: the phases in their order.
//!
//! [`compile`] is the table of contents. What it calls is cut into units, each a pure function of the plan that puts
//! whole files in place and leaves a receipt; stopping at any moment loses at most the units under way, and running
//! again goes on with the rest. The manifest is written last.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde_json::json;

use crate::contamination::{self, Overlap};
use crate::diag::{Diagnostic, Result, Severity, listing, one};
use crate::exemplars::Pools;
use crate::expand::{self, Counts, Keep, Object, UNIT_ROWS, Unit};
use crate::link::{self, Linked};
use crate::mixture::{Contamination, Filters};
use crate::plan::{FORMAT, Plan, Role, SplitName, corpus_identity, prompt_settings};
use crate::select::{Selection, select};
use crate::shard::manifest::{
    self, Extent, Manifest, MixtureEntry, SkippedEntry, SplitEntry, TaskEntry, TokenizerEntry,
};
use crate::shard::receipts::{self, Stamp};
use crate::shard::writer::{self, FileInfo};
use crate::storage;
use crate::template::engine;

/// What a run did.
pub enum Outcome {
    /// The output is that of this plan already; nothing was written.
    UpToDate(Manifest),
    Compiled(Compiled),
}

pub struct Compiled {
    pub manifest: Manifest,
    /// Units taken over from an earlier run.
    pub reused: usize,
    pub units: usize,
    /// Seconds of each phase.
    pub seconds: Vec<(&'static str, f64)>,
    /// Bad records that were let pass, rendered.
    pub bad: Vec<String>,
}

/// Compiles the plan into `out`. `max_bad_records` unreadable records are skipped; more stop the run, with the list.
pub fn compile(
    plan: &Plan<'_>,
    out: &Path,
    max_bad_records: u64,
    progress: &Progress,
) -> Result<Outcome, Vec<Diagnostic>> {
    let _lock = storage::lock(&out.join(receipts::DIRECTORY).join("lock")).map_err(one)?;
    let inputs = stamps(plan).map_err(one)?;
    if let Some(manifest) = up_to_date(plan, &inputs, max_bad_records, out).map_err(one)? {
        return Ok(Outcome::UpToDate(manifest));
    }
    check_foreign(out).map_err(one)?;
    let mut clock = Clock::default();
    // From here on the files and an old manifest may disagree: it goes first.
    storage::remove(&out.join(manifest::FILE)).map_err(one)?;
    verify_tokenizer(plan, out).map_err(one)?;
    let damage = open_files(plan, progress).map_err(one)?;
    clock.lap("open");
    let selections = select_rows(plan, progress).map_err(one)?;
    let (selections, overlaps) = check_contamination(plan, selections, progress).map_err(one)?;
    let units = units(plan, &selections).map_err(one)?;
    clock.lap("select");
    let (objects, reused) = expand_units(plan, &units, &selections, &inputs, out, progress).map_err(one)?;
    let (bad_records, bad) = check_bad_records(&damage, &objects, max_bad_records)?;
    clock.lap("expand and encode");
    let mixture = mix(plan, &objects, &selections, out, progress).map_err(one)?;
    clock.lap("mix and pack");
    let manifest = describe(plan, &objects, &selections, overlaps, &mixture);
    finish(plan, &manifest, &objects, &mixture, &inputs, bad_records, out).map_err(one)?;
    clock.lap("manifest");
    Ok(Outcome::Compiled(Compiled { manifest, reused, units: units.len(), seconds: clock.laps, bad }))
}

/// How far a run is. Phases count what they have done; whoever wants to show it looks from time to time.
pub struct Progress {
    phase: Mutex<(&'static str, Instant)>,
    pub done: AtomicU64,
    pub total: AtomicU64,
    pub tokens: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            phase: Mutex::new(("start", Instant::now())),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
        }
    }
}

impl Progress {
    pub fn begin(&self, phase: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(|e| e.into_inner()) = (phase, Instant::now());
        self.done.store(0, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub fn advance(&self, done: u64, tokens: u64) {
        self.done.fetch_add(done, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// The phase, and when it began.
    pub fn phase(&self) -> (&'static str, Instant) {
        *self.phase.lock().unwrap_or_else(|e| e.into_inner())
    }
}

struct Clock {
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock { last: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    fn lap(&mut self, name: &'static str) {
        self.laps.push((name, self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

/// Inputs of the whole run: every file that rows are read from.
type Inputs = BTreeMap<(usize, usize), Vec<Stamp>>;

/// Stamps of the files of each task's split.
fn stamps(plan: &Plan<'_>) -> Result<Inputs> {
    let mut inputs = Inputs::new();
    for (t, task) in plan.tasks.iter().enumerate() {
        for (s, split) in task.splits.iter().enumerate() {
            let mut list = Vec::new();
            let exemplars = task.exemplars.iter().flat_map(|e| &e.parts);
            for part in split.parts.iter().chain(exemplars) {
                for (path, size, changed) in plan.corpora[task.corpus].files(part)? {
                    list.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), size, changed));
                }
            }
            inputs.insert((t, s), list);
        }
    }
    Ok(inputs)
}

const WHOLE: &str = "whole";

/// The manifest, if it is of this plan, its inputs are as they were, no more of them bad than may be, and its files
/// are there.
fn up_to_date(plan: &Plan<'_>, inputs: &Inputs, max_bad_records: u64, out: &Path) -> Result<Option<Manifest>> {
    let Ok(Some(manifest)) = manifest::read(out) else { return Ok(None) };
    let tokenizer = storage::stamp(&out.join(manifest::TOKENIZER));
    if tokenizer.is_none_or(|(size, _)| size != plan.tokenizer.json().len() as u64)
        || storage::stamp(&out.join(CARD)).is_none()
    {
        return Ok(None);
    }
    let stamps: Vec<Stamp> = inputs.values().flatten().cloned().collect();
    let bad_records: Option<u64> = receipts::find(out, WHOLE, &plan.hash, &stamps, |_| manifest.files.clone());
    let known = bad_records.filter(|&n| n <= max_bad_records && manifest.plan == plan.hash);
    Ok(known.map(|_| manifest))
}

/// Refuses a directory that holds what flanc did not write where it writes and clears away.
fn check_foreign(out: &Path) -> Result<()> {
    let mut foreign = Vec::new();
    for folder in FOLDERS {
        let files = storage::walk(&out.join(folder))?.into_iter().map(|f| format!("{folder}/{}", f.to_string_lossy()));
        foreign.extend(files.filter(|f| !f.ends_with(".parquet") && !f.ends_with(storage::TEMPORARY)));
    }
    let card = out.join(CARD);
    if storage::stamp(&card).is_some() {
        let text = storage::read_text(&card)?;
        if !text.starts_with(CARD_HEAD) && !CARD_HEAD.starts_with(&text) {
            foreign.push(CARD.to_owned());
        }
    }
    let Some(first) = foreign.first() else { return Ok(()) };
    Err(Diagnostic::error("output-not-empty", "the output directory holds files that flanc did not write")
        .at(&out.join(first))
        .found(listing(foreign.iter().map(String::as_str)))
        .help("name a directory of its own with --out, or move these files away")
        .into())
}

/// Compares the two tokenizer engines, unless this user has done that for this tokenizer before.
fn verify_tokenizer(plan: &Plan<'_>, out: &Path) -> Result<()> {
    let key = plan.tokenizer.verdict_key();
    let name = format!("tokenizer-verified-{}", &blake3::hash(key.as_bytes()).to_hex()[..16]);
    let beside = out.join(receipts::DIRECTORY).join(&name);
    let path = storage::cache().map_or_else(|| beside.clone(), |cache| cache.join(&name));
    if [&path, &beside].iter().any(|path| storage::read_text(path).is_ok_and(|verdict| verdict == key)) {
        return Ok(());
    }
    plan.tokenizer.verify()?;
    // A cache that cannot be written to is as good as none.
    storage::write(&path, key.as_bytes()).or_else(|_| storage::write(&beside, key.as_bytes()))
}

/// Opens all files; gives what is wrong with them as a whole, and how many records that concerns.
fn open_files(plan: &Plan<'_>, progress: &Progress) -> Result<Vec<(Diagnostic, u64)>> {
    let mut parts = BTreeMap::new();
    for task in &plan.tasks {
        for part in task.splits.iter().flat_map(|s| &s.parts) {
            // Tasks share corpora: a file is looked at once.
            parts.entry((task.corpus, part.split.clone(), part.rows.start, part.rows.end)).or_insert(part);
        }
    }
    let parts: Vec<_> = parts.into_iter().map(|((corpus, ..), part)| (corpus, part)).collect();
    progress.begin("open files", parts.len() as u64);
    let found: Result<Vec<Vec<(Diagnostic, u64)>>> = parts
        .into_par_iter()
        .map(|(corpus, part)| {
            let damages = plan.corpora[corpus].damage(part)?;
            progress.advance(1, 0);
            Ok(damages.into_iter().map(|d| (d.diagnostic.clone(), d.lost.max(1))).collect())
        })
        .collect();
    let mut seen = BTreeSet::new();
    Ok(found?
        .concat()
        .into_iter()
        .filter(|(d, _)| d.severity == Severity::Error && seen.insert(d.to_string()))
        .collect())
}

/// Selected rows by task and split.
type Selections = BTreeMap<(usize, usize), Selected>;

struct Selected {
    rows: Selection,
    /// Rows that a filter took out while rows were selected.
    filtered: u64,
    /// Rows that were left out because held-out rows say the same.
    contaminated: u64,
}

fn select_rows(plan: &Plan<'_>, progress: &Progress) -> Result<Selections> {
    let splits: Vec<(usize, usize)> =
        plan.tasks.iter().enumerate().flat_map(|(t, task)| (0..task.splits.len()).map(move |s| (t, s))).collect();
    progress.begin("select", splits.len() as u64);
    splits
        .into_par_iter()
        .map(|(t, s)| {
            let task = &plan.tasks[t];
            let (rows, filtered) = select(plan, task, &task.splits[s])?;
            progress.advance(1, 0);
            Ok(((t, s), Selected { rows, filtered, contaminated: 0 }))
        })
        .collect()
}

/// Looks for training rows that say what held-out rows say, if the recipe wants that, and leaves them out, if it wants
/// that too.
fn check_contamination(
    plan: &Plan<'_>,
    selections: Selections,
    progress: &Progress,
) -> Result<(Selections, Vec<Overlap>)> {
    let held_out = plan.tasks.iter().any(|t| t.role == Role::HeldOut);
    if plan.recipe.contamination == Contamination::Ignore || !held_out {
        return Ok((selections, Vec::new()));
    }
    progress.begin("contamination", 1);
    let found = contamination::find(plan, &|task, split| &selections[&(task, split)].rows)?;
    let overlaps = found.iter().map(|f| f.overlap(plan)).collect();
    if plan.recipe.contamination == Contamination::Count {
        return Ok((selections, overlaps));
    }
    let mut cleaned = selections;
    for found in found.iter().filter(|f| plan.tasks[f.task].role == Role::Trained) {
        if let Some(selected) = cleaned.get_mut(&(found.task, found.split)) {
            let rows = selected.rows.retain(|place| !found.overlaps(place));
            selected.contaminated = selected.rows.len() - rows.len();
            selected.rows = rows;
        }
    }
    Ok((cleaned, overlaps))
}

/// Cuts the selected rows into units.
fn units(plan: &Plan<'_>, selections: &Selections) -> Result<Vec<Unit>> {
    let settings = prompt_settings(plan).to_string();
    let mut units = Vec::new();
    for (&(t, s), selected) in selections {
        let selection = &selected.rows;
        let task = &plan.tasks[t];
        let split = &task.splits[s];
        let count = selection.len().div_ceil(UNIT_ROWS);
        let corpus = &plan.corpora[task.corpus];
        let identity = corpus_identity(corpus, &split.parts)?;
        let exemplars = task.exemplars.as_ref().map(|e| corpus_identity(corpus, &e.parts)).transpose()?;
        // Which rows are contaminated depends on other tasks.
        let kept = (selected.contaminated > 0).then(|| selection.fingerprint());
        let templates = crate::task::fingerprint(&task.task.definition, &task.templates);
        for i in 0..count {
            let folder = if task.role == Role::HeldOut { "eval" } else { "tasks" };
            let (from, to) = (i * UNIT_ROWS, ((i + 1) * UNIT_ROWS).min(selection.len()));
            let key = json!([
                settings,
                task.task.name(),
                folder,
                split.name.name(),
                identity,
                exemplars,
                templates.to_hex().as_str(),
                kept,
                i,
                count
            ]);
            units.push(Unit {
                task: t,
                split: s,
                from,
                to,
                stem: format!("{folder}/{}/{}-{i:05}-of-{count:05}", task.task.name(), split.name.name()),
                key: blake3::hash(key.to_string().as_bytes()).to_hex().to_string(),
            });
        }
    }
    Ok(units)
}

fn expand_units(
    plan: &Plan<'_>,
    units: &[Unit],
    selections: &Selections,
    inputs: &Inputs,
    out: &Path,
    progress: &Progress,
) -> Result<(Vec<(Unit, Object)>, usize)> {
    progress.begin("expand and encode", units.iter().map(|u| u.to - u.from).sum());
    let reused = AtomicU64::new(0);
    let pools = Pools::new(plan);
    let files = |object: &Object| vec![object.shard.clone(), object.provenance.clone()];
    // The longest first: what is begun last keeps one thread busy while the others have nothing left to do.
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_cached_key(|&i| Reverse(weight(plan, &units[i], inputs)));
    let objects: Result<Vec<(usize, Object)>> = order
        .into_iter()
        .par_bridge()
        .map_init(
            || Keep::new(plan),
            |keep, i| {
                let unit = &units[i];
                let stamps = &inputs[&(unit.task, unit.split)];
                let object = match receipts::find(out, &unit.stem, &unit.key, stamps, files) {
                    Some(object) => {
                        reused.fetch_add(1, Ordering::Relaxed);
                        object
                    }
                    None => {
                        let object =
                            expand::run(plan, unit, &selections[&(unit.task, unit.split)].rows, &pools, out, keep)?;
                        receipts::leave(out, &unit.stem, &unit.key, stamps, &object)?;
                        object
                    }
                };
                progress.advance(unit.to - unit.from, object.shard.tokens);
                Ok((i, object))
            },
        )
        .collect();
    let mut objects = objects?;
    objects.sort_by_key(|(i, _)| *i);
    let objects = objects.into_iter().map(|(i, object)| (units[i].clone(), object)).collect();
    Ok((objects, reused.into_inner() as usize))
}

/// About how many bytes of text a unit makes.
fn weight(plan: &Plan<'_>, unit: &Unit, inputs: &Inputs) -> u64 {
    let task = &plan.tasks[unit.task];
    let bytes: u64 = inputs[&(unit.task, unit.split)].iter().map(|(_, size, _)| size).sum();
    let share = (unit.to - unit.from) as f64 / task.splits[unit.split].rows.max(1) as f64;
    (bytes as f64 * share * task.templates.len() as f64) as u64
}

/// Stops the run if more records were bad than it may skip; gives their number and the list otherwise.
fn check_bad_records(
    damage: &[(Diagnostic, u64)],
    objects: &[(Unit, Object)],
    most: u64,
) -> Result<(u64, Vec<String>), Vec<Diagnostic>> {
    let in_units: u64 = objects.iter().map(|(_, o)| o.counts.bad_records).sum();
    let mut count = damage.iter().map(|(_, records)| records).sum::<u64>() + in_units;
    let mut list: Vec<String> = damage.iter().map(|(d, _)| d.to_string()).collect();
    let mut seen = BTreeSet::new();
    for (bad, records) in objects.iter().flat_map(|(_, o)| &o.bad) {
        if seen.insert(bad) {
            list.push(bad.clone());
        } else {
            count -= records; // two tasks over one corpus meet the same record
        }
    }
    if count <= most {
        return Ok((count, list));
    }
    let records = if count == 1 { "record" } else { "records" };
    let verdict = Diagnostic::error("bad-records", format!("{count} {records} cannot be used"))
        .expected(format!("at most {most}"))
        .note("list", format!("\n{}", list.join("\n").trim_end()))
        .help(format!("repair the data, or skip them with --max-bad-records {count}"));
    Err(vec![verdict])
}

/// Links the training and the validation mixture.
fn mix(
    plan: &Plan<'_>,
    objects: &[(Unit, Object)],
    selections: &Selections,
    out: &Path,
    progress: &Progress,
) -> Result<BTreeMap<SplitName, Linked>> {
    let mut mixture = BTreeMap::new();
    if !plan.recipe.output.mix {
        return Ok(mixture);
    }
    for split in [SplitName::Train, SplitName::Validation] {
        let examples = selections
            .iter()
            .filter(|((t, s), _)| plan.tasks[*t].splits[*s].name == split)
            .map(|((t, _), selected)| match plan.recipe.filters {
                Filters::BeforeCap => (*t, selected.rows.len()),
                // A rate counts examples before the filter, as FLAN's does, whenever the filter was run.
                Filters::AfterCap => (*t, selected.rows.len() + selected.filtered),
            })
            .collect();
        mixture.insert(split, link::link(plan, split, objects, &examples, out, progress)?);
    }
    Ok(mixture)
}

/// What there is to say of the output.
fn describe(
    plan: &Plan<'_>,
    objects: &[(Unit, Object)],
    selections: &Selections,
    overlaps: Vec<Overlap>,
    mixture: &BTreeMap<SplitName, Linked>,
) -> Manifest {
    let mut files: Vec<_> = objects.iter().flat_map(|(_, o)| [o.shard.clone(), o.provenance.clone()]).collect();
    files.extend(mixture.values().flat_map(|l| l.files.iter().cloned()));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Manifest {
        format: FORMAT,
        plan: plan.hash.clone(),
        versions: BTreeMap::from([
            ("flanc".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("templates".to_owned(), engine::ENGINE.to_owned()),
            ("tokenizer".to_owned(), plan.tokenizer.engine().to_owned()),
            ("writer".to_owned(), writer::ENGINE.to_owned()),
        ]),
        recipe: plan.recipe.settings(),
        tokenizer: TokenizerEntry {
            blake3: plan.tokenizer.hash().to_owned(),
            engine: plan.tokenizer.engine().to_owned(),
            vocabulary: plan.tokenizer.vocabulary_size(),
            bos: plan.bos.as_ref().map(|b| (b.id, b.text.clone())),
            eos: (plan.eos.id, plan.eos.text.clone()),
            pad: (plan.pad.id, plan.pad.text.clone()),
            separator: plan.separator.as_ref().map(|s| (s.id, s.text.clone())),
        },
        mixture: mixture.iter().map(|(split, linked)| (split.name().to_owned(), mixture_entry(linked))).collect(),
        tasks: task_entries(plan, objects, selections, mixture),
        contamination: overlaps,
        skipped: plan
            .skipped
            .iter()
            .map(|s| SkippedEntry {
                task: s.task.clone(),
                split: s.split.map(|n| n.name().to_owned()),
                reason: s.reason.clone(),
            })
            .collect(),
        files,
    }
}

/// Clears away what does not belong to the output, and writes the manifest.
fn finish(
    plan: &Plan<'_>,
    manifest: &Manifest,
    objects: &[(Unit, Object)],
    mixture: &BTreeMap<SplitName, Linked>,
    inputs: &Inputs,
    bad_records: u64,
    out: &Path,
) -> Result<()> {
    let card = write_card(plan, &manifest.files, out)?;
    storage::write(&out.join(manifest::TOKENIZER), plan.tokenizer.json().as_bytes())?;
    clear(out, &manifest.files.iter().map(|f| f.path.as_str()).chain([card]).collect())?;
    let units = objects.iter().map(|(u, _)| u.stem.clone()).chain(mixture.values().flat_map(link::receipt_names));
    receipts::prune(out, &units.chain([WHOLE.to_owned()]).collect())?;
    let stamps: Vec<Stamp> = inputs.values().flatten().cloned().collect();
    receipts::leave(out, WHOLE, &plan.hash, &stamps, &bad_records)?;
    manifest::write(out, manifest)
}

fn mixture_entry(linked: &Linked) -> MixtureEntry {
    let t = linked.totals;
    let positions = t.tokens + t.padding_tokens;
    MixtureEntry {
        prompts: t.prompts,
        rows: t.rows,
        tokens: t.tokens,
        loss_tokens: t.loss_tokens,
        padding_tokens: t.padding_tokens,
        padding: if positions == 0 { 0.0 } else { t.padding_tokens as f64 / positions as f64 },
    }
}

fn task_entries(
    plan: &Plan<'_>,
    objects: &[(Unit, Object)],
    selections: &Selections,
    mixture: &BTreeMap<SplitName, Linked>,
) -> Vec<TaskEntry> {
    let mut counts: BTreeMap<(usize, usize), Counts> = BTreeMap::new();
    for (unit, object) in objects {
        counts.entry((unit.task, unit.split)).or_default().add(&object.counts);
    }
    let train = mixture.get(&SplitName::Train);
    let all = train.map_or(0, |l| l.totals.prompts);
    plan.tasks
        .iter()
        .enumerate()
        .map(|(t, task)| {
            let d = &task.task.definition;
            let drawn = |split: SplitName| mixture.get(&split).and_then(|l| l.draws.get(&t)).copied();
            let mut splits = BTreeMap::new();
            for (s, split) in task.splits.iter().enumerate() {
                let c = counts.remove(&(t, s)).unwrap_or_default();
                let (selected, filtered, contaminated) =
                    selections.get(&(t, s)).map_or((0, 0, 0), |s| (s.rows.len(), s.filtered, s.contaminated));
                let of_mixture = drawn(split.name).filter(|_| task.role == Role::Trained).unwrap_or_default();
                splits.insert(
                    split.name.name().to_owned(),
                    SplitEntry {
                        rows: split.rows,
                        capped: split.rows - selected - filtered - contaminated,
                        contaminated,
                        bad_records: c.bad_records + c.unread,
                        filtered: c.filtered + filtered,
                        prompts: c.prompts,
                        shortened: c.shortened,
                        dropped: c.failures,
                        input_tokens: c.input_tokens,
                        target_tokens: c.target_tokens,
                        text_bytes: c.text_bytes,
                        drawn: of_mixture.prompts,
                        repeated: of_mixture.repeated,
                    },
                );
            }
            let in_training = drawn(SplitName::Train).filter(|_| task.role == Role::Trained);
            TaskEntry {
                task: task.task.name().to_owned(),
                dataset: d.dataset.clone(),
                cluster: d.cluster.clone(),
                code_cluster: d.code_cluster.clone(),
                corpus: plan.corpora[task.corpus].info.name.to_string(),
                role: task.role.name().to_owned(),
                licence: d.licence.clone(),
                corpus_licence: plan.corpora[task.corpus].info.licence.clone(),
                templates: task.templates.iter().map(|&i| d.templates[i].name.text.clone()).collect(),
                extent: task
                    .extent
                    .iter()
                    .map(|(of, part)| Extent {
                        of: of.name().to_owned(),
                        split: part.split.clone(),
                        from: part.rows.start,
                        to: part.rows.end,
                    })
                    .collect(),
                splits,
                rate_asked: in_training.map(|d| d.rate_asked),
                rate_realised: in_training.map(|d| d.prompts as f64 / all.max(1) as f64),
            }
        })
        .collect()
}

const CARD: &str = "README.md";
/// How every card begins, and by which it is known.
const CARD_HEAD: &str = "---\n# Written by `flanc compile`.\nconfigs:\n";

/// Writes the card by which `load_dataset(OUT)` finds the mixture, `load_dataset(OUT, "rte")` a task, and neither the
/// provenance.
fn write_card(plan: &Plan<'_>, files: &[FileInfo], out: &Path) -> Result<&'static str> {
    // By config and split: a pattern for its shards, by which those of another number are not meant.
    let mut configs = BTreeMap::<(u8, String), BTreeMap<&str, String>>::new();
    for path in files.iter().map(|f| f.path.as_str()).filter(|p| !p.ends_with(".provenance.parquet")) {
        let parts: Vec<&str> = path.split('/').collect();
        let (order, config) = match parts[..] {
            ["mixture", _] => (0, "default".to_owned()),
            ["eval", task, _] => (2, format!("eval-{task}")),
            ["tasks", task, _] => (1, task.to_owned()),
            _ => continue,
        };
        if let Some((stem, name)) = path.rsplit_once('/')
            && let [split, _, "of", count] = name.split('-').collect::<Vec<_>>()[..]
        {
            configs.entry((order, config)).or_default().insert(split, format!("{stem}/{split}-?????-of-{count}"));
        }
    }
    let mut card = CARD_HEAD.to_owned();
    for ((_, config), splits) in &configs {
        card.push_str(&format!("- config_name: {config}\n  data_files:\n"));
        for (split, pattern) in splits {
            card.push_str(&format!("  - split: {split}\n    path: {pattern}\n"));
        }
    }
    card.push_str(&format!(
        "---\n\nAn instruction-tuning mixture compiled by flanc {}, profile `{}`, plan `{}`.\n\n\
         `manifest.json` says where every row came from and under which licence; the data keeps the licences of its sources.\n",
        env!("CARGO_PKG_VERSION"),
        plan.recipe.output.profile.name(),
        plan.hash
    ));
    storage::write(&out.join(CARD), card.as_bytes())?;
    Ok(CARD)
}

/// Where shards are.
const FOLDERS: [&str; 3] = ["tasks", "mixture", "eval"];

/// Removes files of earlier runs that are not part of this output. Only what flanc itself puts there is looked at, and
/// [`check_foreign`] has seen that there is nothing else.
fn clear(out: &Path, keep: &BTreeSet<&str>) -> Result<()> {
    for folder in FOLDERS {
        let root = out.join(folder);
        for file in storage::walk(&root)? {
            let relative = format!("{folder}/{}", file.to_string_lossy());
            if !keep.contains(relative.as_str()) {
                storage::remove(&root.join(&file))?;
            }
        }
        storage::remove_empty_directories(&root)?;
    }
    storage::remove_tree(&out.join(receipts::DIRECTORY).join(link::RUNS))?;
    storage::remove_empty_directories(out)
}
