//! Expanding and encoding: a range of one task's rows becomes a task shard.
//!
//! Each unit is a pure function of the plan: it reads its rows, renders them through their templates, encodes the
//! prompts, and writes one Parquet file with its provenance beside it. What happened to every row is counted.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result, Severity};
use crate::example::ExampleId;
use crate::mixture::{Choice, Overflow, Wrapper};
use crate::plan::{Plan, PlannedSplit, PlannedTask, Role, Sources};
use crate::seed::{Seed, Stream};
use crate::select::{Selection, stretches};
use crate::shard::columns::{EvalRows, Origin, OriginNames, PromptRows, ProvenanceRows};
use crate::shard::writer::{FileInfo, Order, ShardWriter};
use crate::template::engine::{Bound, Failure, Prompt, Reason};
use crate::tokenize::Encoder;

/// Source rows of a unit: some 40,000 prompts with ten templates, enough to make a file worth its overhead and few
/// enough to keep all threads busy to the end.
pub const UNIT_ROWS: u64 = 4096;
/// Rows and bytes at which a row group is written.
pub const GROUP_ROWS: usize = 4096;
pub const GROUP_BYTES: usize = 16 << 20;
/// One prompt in so many is encoded by the reference engine as well.
const SAMPLE: u64 = 1000;
/// Failures and bad records that a unit lists in full; all are counted.
const LISTED: usize = 20;

/// A range of the selected rows of one task's split.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Index into the plan's tasks.
    pub task: usize,
    /// Index into the task's splits.
    pub split: usize,
    /// Indices into the selection.
    pub from: u64,
    pub to: u64,
    /// The shard's path below the output directory, without `.parquet`.
    pub stem: String,
    /// Hash of everything that decides its bytes.
    pub key: String,
}

/// What became of a unit's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows that were to be read.
    pub rows: u64,
    pub filtered: u64,
    pub bad_records: u64,
    /// Rows that lie where a file as a whole is damaged: they are reported with the file, not here.
    pub unread: u64,
    pub prompts: u64,
    /// Prompts that were cut to fit.
    pub shortened: u64,
    pub input_tokens: u64,
    pub target_tokens: u64,
    /// UTF-8 bytes of inputs and targets, before any cut.
    pub text_bytes: u64,
    /// Prompts, or whole rows where the template is empty, that were not made: by template and reason.
    pub failures: BTreeMap<String, BTreeMap<String, Failed>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub count: u64,
    /// The first few, as `split row: detail`.
    pub rows: Vec<String>,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.rows += other.rows;
        self.filtered += other.filtered;
        self.bad_records += other.bad_records;
        self.unread += other.unread;
        self.prompts += other.prompts;
        self.shortened += other.shortened;
        self.input_tokens += other.input_tokens;
        self.target_tokens += other.target_tokens;
        self.text_bytes += other.text_bytes;
        for (template, reasons) in &other.failures {
            for (reason, failed) in reasons {
                let entry = self.failures.entry(template.clone()).or_default().entry(reason.clone()).or_default();
                entry.count += failed.count;
                let room = LISTED.saturating_sub(entry.rows.len());
                entry.rows.extend(failed.rows.iter().take(room).cloned());
            }
        }
    }
}

/// A finished unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    pub shard: FileInfo,
    pub provenance: FileInfo,
    pub counts: Counts,
    /// The first bad records, rendered, each with how many records it stands for.
    pub bad: Vec<(String, u64)>,
}

/// Names for the provenance of one task; the split names are its corpus's.
pub fn origin_names(plan: &Plan<'_>, task: &PlannedTask<'_>) -> OriginNames {
    let templates = &task.task.definition.templates;
    OriginNames {
        tasks: vec![task.task.name().to_owned()],
        splits: plan.corpora[task.corpus].info.splits.iter().map(|s| s.name.clone()).collect(),
        templates: templates.iter().map(|t| t.name.text.clone()).collect(),
        kinds: templates.iter().map(|t| t.kind.name()).collect(),
    }
}

/// What became of a row on its way to the templates.
pub enum Event {
    /// Records that could not be read or must not be used.
    Bad { diagnostic: Diagnostic, records: u64 },
    /// The filter took the row out.
    Filtered,
    /// A field could not be computed, or the answer is none of the options.
    Failed { id: ExampleId, failure: Failure },
    /// The row is ready; `place` is its index among the selected ones.
    Row { id: ExampleId, place: u64, bound: Bound },
}

/// Reads the selected rows `from..to` of a task's split, in order, and computes their fields.
pub fn rows(
    sources: &Sources<'_>,
    task: &PlannedTask<'_>,
    split: &PlannedSplit,
    selection: &Selection,
    (from, to): (u64, u64),
    mut event: impl FnMut(Event) -> Result<()>,
) -> Result<()> {
    let corpus = &sources.corpora[task.corpus];
    let program = &task.task.program;
    let decoder = corpus.decoder(program.decoded_features())?;
    let mut damages = Vec::new();
    for (part, position) in stretches(&split.parts, selection, from, to) {
        let first = part.rows.start;
        let split_index = corpus.info.splits.iter().position(|s| s.name == part.split).unwrap_or(0);
        let place_of = |row: u64| selection.index_of(position + row - first);
        corpus.visit(
            &part,
            &|row| place_of(row).is_some(),
            &mut |row| {
                let id = ExampleId { corpus: task.corpus as u32, split: split_index as u32, index: row.index };
                let mut oddities = Vec::new();
                let datum = match decoder.decode(row.payload, &mut oddities) {
                    Ok(datum) => datum,
                    Err(error) => return event(Event::Bad { diagnostic: row.error(error), records: 1 }),
                };
                // Only features that the task reads are decoded: an odd one would be in a prompt.
                if let Some(oddity) = oddities.first() {
                    let diagnostic = Diagnostic { severity: Severity::Error, ..row.oddity(oddity) };
                    return event(Event::Bad { diagnostic, records: 1 });
                }
                event(match program.bind(&datum, row.payload.len()) {
                    Ok(Some(bound)) => Event::Row { id, place: place_of(row.index).unwrap_or(0), bound },
                    Ok(None) => Event::Filtered,
                    Err(failure) => Event::Failed { id, failure },
                })
            },
            &mut |damage| {
                damages.push(damage);
                Ok(())
            },
        )?;
    }
    for damage in damages.into_iter().filter(|d| d.diagnostic.severity == Severity::Error) {
        event(Event::Bad { records: damage.lost, diagnostic: damage.diagnostic })?;
    }
    Ok(())
}

/// Draws the templates that the examples of a task go through.
pub struct TemplateDraw {
    stream: Stream,
    choice: Choice,
    templates: Vec<usize>,
}

impl TemplateDraw {
    pub fn new(sources: &Sources<'_>, task: &PlannedTask<'_>) -> TemplateDraw {
        let corpus = sources.corpora[task.corpus].info.name.to_string();
        TemplateDraw {
            stream: Seed(sources.recipe.seed).stream(&["templates", task.task.name(), &corpus]),
            // An evaluation shows every example through every template.
            choice: if task.role == Role::HeldOut { Choice::All } else { sources.recipe.templates },
            templates: task.templates.clone(),
        }
    }

    /// The templates for one example, in the order of the definition; `place` is its index among the selected ones.
    pub fn draw(&self, id: ExampleId, place: u64) -> Vec<usize> {
        let templates = &self.templates;
        match self.choice {
            Choice::All => templates.clone(),
            Choice::RoundRobin => vec![templates[(place % templates.len() as u64) as usize]],
            Choice::Some(n) => {
                let stream = self.stream.at(u64::from(id.split)).at(id.index);
                let mut ranked: Vec<(u64, usize)> = templates.iter().map(|&t| (stream.draw(t as u64), t)).collect();
                ranked.sort_unstable();
                ranked.truncate(n as usize);
                let mut chosen: Vec<usize> = ranked.into_iter().map(|(_, t)| t).collect();
                chosen.sort_unstable();
                chosen
            }
        }
    }
}

/// Makes a unit's shard below `out`.
pub fn run(plan: &Plan<'_>, unit: &Unit, selection: &Selection, out: &Path) -> Result<Object> {
    let task = &plan.tasks[unit.task];
    let split = &task.splits[unit.split];
    let mut worker = Worker::new(plan, task, split, unit, out)?;
    let mut seen = 0;
    rows(plan, task, split, selection, (unit.from, unit.to), |event| {
        seen += if let Event::Bad { records, .. } = event { records } else { 1 };
        match event {
            Event::Bad { diagnostic, records } => worker.bad(&diagnostic, records),
            Event::Filtered => worker.counts.filtered += 1,
            Event::Failed { id, failure } => worker.fail("", id.index, &failure),
            Event::Row { id, place, bound } => worker.row(id, place, &bound)?,
        }
        Ok(())
    })?;
    worker.counts.rows = unit.to - unit.from;
    worker.counts.unread = worker.counts.rows.saturating_sub(seen);
    worker.finish()
}

/// The rows of the profile that a unit writes.
enum Rows {
    Prompts(PromptRows),
    Eval(EvalRows),
}

struct Worker<'p> {
    plan: &'p Plan<'p>,
    task: &'p PlannedTask<'p>,
    split_name: &'static str,
    encoder: Encoder<'p>,
    rows: Rows,
    provenance: ProvenanceRows,
    shard: ShardWriter,
    provenance_shard: ShardWriter,
    draw: TemplateDraw,
    sample_stream: Stream,
    counts: Counts,
    bad: Vec<(String, u64)>,
    /// Buffers used again for every prompt.
    ids: Vec<u32>,
    targets: Vec<u32>,
}

impl<'p> Worker<'p> {
    fn new(
        plan: &'p Plan<'p>,
        task: &'p PlannedTask<'p>,
        split: &PlannedSplit,
        unit: &Unit,
        out: &Path,
    ) -> Result<Self> {
        let name = task.task.name();
        let corpus = plan.corpora[task.corpus].info.name.to_string();
        let metadata: Vec<(String, String)> = [
            ("flanc.unit", unit.key.clone()),
            ("flanc.task", name.to_owned()),
            ("flanc.tokenizer", plan.tokenizer.hash().to_owned()),
            ("flanc.templates", crate::task::fingerprint(&task.task.definition, &task.templates).to_hex().to_string()),
            ("flanc.eos_id", plan.eos.id.to_string()),
            ("flanc.pad_id", plan.pad.id.to_string()),
            ("flanc.inputs_length", plan.recipe.lengths.inputs.to_string()),
            ("flanc.targets_length", plan.recipe.lengths.targets.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let eval = task.role == Role::HeldOut;
        let (rows, schema) = if eval {
            (Rows::Eval(EvalRows::default()), EvalRows::schema())
        } else {
            (Rows::Prompts(PromptRows::default()), PromptRows::schema())
        };
        let file = |suffix: &str| format!("{}{suffix}.parquet", unit.stem);
        Ok(Worker {
            plan,
            task,
            split_name: split.name.name(),
            encoder: plan.tokenizer.encoder(),
            rows,
            provenance: ProvenanceRows::new(origin_names(plan, task), false),
            shard: ShardWriter::create(out, &file(""), schema, Order::ByRow, &metadata)?,
            provenance_shard: ShardWriter::create(
                out,
                &file(".provenance"),
                ProvenanceRows::schema(false),
                Order::ByRow,
                &metadata,
            )?,
            draw: TemplateDraw::new(plan, task),
            sample_stream: Seed(plan.recipe.seed).stream(&["sample", name, &corpus]),
            counts: Counts::default(),
            bad: Vec::new(),
            ids: Vec::new(),
            targets: Vec::new(),
        })
    }

    fn bad(&mut self, diagnostic: &Diagnostic, records: u64) {
        self.counts.bad_records += records;
        if self.bad.len() < LISTED {
            self.bad.push((diagnostic.to_string(), records));
        }
    }

    fn fail(&mut self, template: &str, row: u64, failure: &Failure) {
        let reasons = self.counts.failures.entry(template.to_owned()).or_default();
        let failed = reasons.entry(failure.reason.name().to_owned()).or_default();
        failed.count += 1;
        if failed.rows.len() < LISTED {
            failed.rows.push(format!("{} {row}: {}", self.split_name, failure.detail));
        }
    }

    /// All prompts of one row.
    fn row(&mut self, id: ExampleId, place: u64, bound: &Bound) -> Result<()> {
        for template in self.draw.draw(id, place) {
            if let Err(failure) = self.prompt(bound, template, id)? {
                let name = &self.task.task.definition.templates[template].name.text;
                self.fail(name, id.index, &failure);
            }
        }
        Ok(())
    }

    /// Renders, encodes and adds one prompt. The outer error ends the run, the inner one is counted.
    fn prompt(&mut self, bound: &Bound, template: usize, id: ExampleId) -> Result<Result<(), Failure>> {
        let program = &self.task.task.program;
        let mut prompt = match program.render(bound, template) {
            Ok(prompt) => prompt,
            Err(failure) => return Ok(Err(failure)),
        };
        wrap(&mut prompt, self.plan.recipe.wrapper);
        self.counts.text_bytes += (prompt.inputs.len() + prompt.targets.len()) as u64;
        self.ids.clear();
        self.encoder.encode_into(&prompt.inputs, &mut self.ids)?;
        self.targets.clear();
        self.encoder.encode_into(&prompt.targets, &mut self.targets)?;
        if self.sample_stream.at(id.index).draw(template as u64).is_multiple_of(SAMPLE) {
            self.plan.tokenizer.check_sample(&prompt.inputs, &self.ids)?;
            self.plan.tokenizer.check_sample(&prompt.targets, &self.targets)?;
        }
        match self.fit(bound, template)? {
            Ok(shortened) => self.counts.shortened += u64::from(shortened),
            Err(failure) => return Ok(Err(failure)),
        }
        self.ids.extend(self.plan.separator.as_ref().map(|s| s.id));
        let target_start = self.ids.len();
        self.targets.push(self.plan.eos.id);
        self.counts.prompts += 1;
        self.counts.input_tokens += target_start as u64;
        self.counts.target_tokens += self.targets.len() as u64;
        let length = target_start + self.targets.len();
        self.shard.tokens += length as u64;
        self.provenance.push(Origin {
            task: 0,
            split: id.split,
            row: id.index,
            template: template as u32,
            repeat: 0,
            target_start: target_start as u32,
            length: length as u32,
        });
        let full = match &mut self.rows {
            Rows::Prompts(rows) => {
                self.ids.extend_from_slice(&self.targets);
                rows.push(&self.ids, target_start);
                rows.rows() >= GROUP_ROWS || rows.bytes() >= GROUP_BYTES
            }
            Rows::Eval(rows) => {
                let mut options = Vec::new();
                for option in bound.options.iter().flatten() {
                    let mut ids = Vec::new();
                    self.encoder.encode_into(option, &mut ids)?;
                    ids.push(self.plan.eos.id);
                    options.push(ids);
                }
                let answer = bound.options.as_ref().zip(bound.answer.as_ref());
                let answer = answer.and_then(|(options, answer)| options.iter().position(|o| o == answer));
                rows.push(&self.ids, &self.targets, &options, answer.map_or(-1, |i| i as i32));
                rows.rows() >= GROUP_ROWS
            }
        };
        if full {
            self.flush()?;
        }
        Ok(Ok(()))
    }

    /// Brings `ids` and `targets` to length; says whether anything was cut.
    fn fit(&mut self, bound: &Bound, template: usize) -> Result<Result<bool, Failure>> {
        let lengths = self.plan.recipe.lengths;
        let most_inputs = lengths.inputs - usize::from(self.plan.separator.is_some());
        let most_targets = lengths.targets - 1; // the end of the sequence follows
        if self.ids.len() <= most_inputs && self.targets.len() <= most_targets {
            return Ok(Ok(false));
        }
        let too_long = |what: &str, tokens: usize, most: usize| Failure {
            reason: Reason::TooLong,
            detail: format!("{what} of {tokens} tokens, {most} allowed"),
            place: None,
        };
        if lengths.overflow == Overflow::Drop {
            let failure = if self.ids.len() > most_inputs {
                too_long("inputs", self.ids.len(), most_inputs)
            } else {
                too_long("targets", self.targets.len(), most_targets)
            };
            return Ok(Err(failure));
        }
        // Targets are cut where they end in either case: nothing stands behind them.
        self.targets.truncate(most_targets);
        if self.ids.len() > most_inputs {
            if lengths.overflow == Overflow::Right {
                self.ids.truncate(most_inputs);
            } else if !self.shorten(bound, template, most_inputs)? {
                return Ok(Err(too_long("inputs", self.ids.len(), most_inputs)));
            }
        }
        Ok(Ok(true))
    }

    /// Cuts the longest field of the inputs at a token boundary, as often as it takes for the rest of the prompt to
    /// fit. `Ok(false)`: it never fits.
    fn shorten(&mut self, bound: &Bound, template: usize, most: usize) -> Result<bool> {
        let program = &self.task.task.program;
        let mut cut = bound.clone();
        // Each round cuts at least one token, and nearly always all that are too many; a template that repeats a field
        // or changes its length takes a few.
        for _ in 0..16 {
            let excess = self.ids.len() - most;
            let Some((field, text)) = program.longest_field(&cut, template) else { return Ok(false) };
            let mut tokens = Vec::new();
            self.encoder.encode_into(&text, &mut tokens)?;
            let keep = tokens.len().saturating_sub(excess);
            cut = cut.with_field(field, &self.prefix(&text, &tokens, keep));
            let Ok(mut prompt) = program.render(&cut, template) else { return Ok(false) };
            wrap(&mut prompt, self.plan.recipe.wrapper);
            self.ids.clear();
            self.encoder.encode_into(&prompt.inputs, &mut self.ids)?;
            if self.ids.len() <= most {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The part of `text` that its first `keep` tokens spell.
    fn prefix(&self, text: &str, tokens: &[u32], keep: usize) -> String {
        let decoded = self.plan.tokenizer.decode(&tokens[..keep]);
        // A character may be spelt by several tokens; the pieces of one decode to U+FFFD.
        let decoded = decoded.trim_end_matches('\u{fffd}').trim_end();
        if let Some(prefix) = text.get(..decoded.len())
            && prefix == decoded
        {
            return prefix.to_owned();
        }
        // The tokenizer normalizes: take as large a share of the characters, up to the last blank.
        let characters = text.chars().count() * keep / tokens.len().max(1);
        let prefix: String = text.chars().take(characters).collect();
        prefix.rsplit_once(char::is_whitespace).map_or(prefix.as_str(), |(head, _)| head).to_owned()
    }

    fn flush(&mut self) -> Result<()> {
        let batch = match &mut self.rows {
            Rows::Prompts(rows) => rows.finish(),
            Rows::Eval(rows) => rows.finish(),
        };
        if batch.num_rows() > 0 {
            self.shard.write(&batch)?;
            self.provenance_shard.write(&self.provenance.finish())?;
        }
        if let Rows::Prompts(rows) = &mut self.rows {
            rows.reclaim(batch);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Object> {
        self.flush()?;
        Ok(Object {
            provenance: self.provenance_shard.finish()?,
            shard: self.shard.finish()?,
            counts: self.counts,
            bad: self.bad,
        })
    }
}

/// Puts the dialogue markers of FLAN v1 around the inputs (google-research/FLAN, `flan/preprocessors.py`).
fn wrap(prompt: &mut Prompt, wrapper: Wrapper) {
    if wrapper == Wrapper::FlanV1 {
        prompt.inputs = format!("0 {} X 1 FLAN", prompt.inputs);
    }
}
