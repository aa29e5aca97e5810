//! Expanding and encoding: a range of one task's rows becomes a task shard.
//!
//! Each unit is a pure function of the plan: it reads its rows, renders them through their templates, encodes the
//! prompts, and writes one Parquet file with its provenance beside it. What happened to every row is counted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result};
use crate::example::ExampleId;
use crate::exemplars::{Exemplars, Pools, Shot};
use crate::mixture::{Choice, Overflow, Wrapper};
use crate::plan::{Plan, PlannedSplit, PlannedTask, Role, Sources};
use crate::read::{Event, rows};
use crate::seed::{Seed, Stream};
use crate::select::Selection;
use crate::shard::columns::EvalRows;
use crate::shard::pages::PageEncoder;
use crate::shard::provenance::{Origin, OriginNames, ProvenanceForm, ProvenanceRows};
use crate::shard::rows::PromptRows;
use crate::shard::writer::{FileInfo, GroupEncoder, ShardWriter};
use crate::template::definition::Kind;
use crate::template::engine::{Bound, Failure, Program, Reason};
use crate::template::exemplar;
use crate::template::pieces::Piece;
use crate::tokenize::{Encoder, Part};

/// Source rows of a unit: some 40,000 prompts with ten templates, enough to make a file worth its overhead and few
/// enough to keep all threads busy to the end.
pub const UNIT_ROWS: u64 = 4096;
/// Rows and tokens at which a row group is written.
pub const GROUP_ROWS: usize = 4096;
pub const GROUP_TOKENS: usize = 2 << 20;
/// One prompt in so many is encoded as a whole as well,
const WHOLE_SAMPLE: u64 = 1000;
/// and one in so many, which are among those, by the reference engine: that takes as long as some fifty others.
const REFERENCE_SAMPLE: u64 = 4000;
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
        kinds: Kind::NAMES.map(str::to_owned).into(),
        kind_of: templates.iter().map(|t| t.kind as u32).collect(),
    }
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

/// What a thread keeps from one unit to the next: memory, and the words that its encoder knows.
pub struct Keep<'p> {
    encoder: Encoder<'p>,
    prompts: PromptRows,
    provenance: ProvenanceRows,
    pages: PageEncoder,
}

impl<'p> Keep<'p> {
    pub fn new(plan: &'p Plan<'_>) -> Keep<'p> {
        Keep {
            encoder: plan.tokenizer.encoder(),
            prompts: PromptRows::default(),
            provenance: ProvenanceRows::default(),
            pages: PageEncoder::default(),
        }
    }
}

/// Makes a unit's shard below `out`.
pub fn run<'p>(
    plan: &'p Plan<'p>,
    unit: &Unit,
    selection: &Selection,
    pools: &'p Pools<'p>,
    out: &Path,
    keep: &mut Keep<'p>,
) -> Result<Object> {
    let task = &plan.tasks[unit.task];
    let split = &task.splits[unit.split];
    let mut worker = Worker::new(plan, task, split, unit, pools.exemplars(unit.task)?, out, keep)?;
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

struct Worker<'k, 'p> {
    plan: &'p Plan<'p>,
    task: &'p PlannedTask<'p>,
    split_name: &'static str,
    keep: &'k mut Keep<'p>,
    exemplars: Option<&'p Exemplars<'p>>,
    /// Rows of an evaluation; those of the others are in `keep`.
    eval: Option<EvalRows>,
    names: OriginNames,
    form: ProvenanceForm,
    shard: ShardWriter,
    groups: GroupEncoder,
    provenance_shard: ShardWriter,
    provenance_groups: GroupEncoder,
    draw: TemplateDraw,
    sample_stream: Stream,
    counts: Counts,
    bad: Vec<(String, u64)>,
    /// Buffers used again for every prompt.
    ids: Vec<u32>,
    targets: Vec<u32>,
    /// Of the prompt under way.
    text_bytes: u64,
    /// `None` where prompts cannot be put together from pieces.
    joints: Option<Joints>,
}

/// The encoded pieces of a task's templates.
struct Joints {
    texts: Vec<Part>,
    slots: Vec<Part>,
    /// Whether a slot's part is that of the row under way.
    fresh: Vec<bool>,
}

impl Joints {
    fn new(program: &Program, encoder: &mut Encoder<'_>) -> Result<Joints> {
        let texts: Result<Vec<Part>> = program.texts().iter().map(|text| encoder.part(text, Part::default())).collect();
        let slots = program.slots();
        Ok(Joints { texts: texts?, slots: vec![Part::default(); slots], fresh: vec![false; slots] })
    }

    /// Encodes what a slot prints for the row under way, unless that was done.
    fn prepare(&mut self, slot: usize, text: &str, encoder: &mut Encoder<'_>) -> Result<()> {
        if !self.fresh[slot] {
            let part = std::mem::take(&mut self.slots[slot]);
            self.slots[slot] = encoder.part(text, part)?;
            self.fresh[slot] = true;
        }
        Ok(())
    }

    fn part(&self, piece: Piece) -> &Part {
        match piece {
            Piece::Text(text) => &self.texts[text],
            Piece::Slot(slot) => &self.slots[slot],
        }
    }
}

impl<'k, 'p> Worker<'k, 'p> {
    fn new(
        plan: &'p Plan<'p>,
        task: &'p PlannedTask<'p>,
        split: &PlannedSplit,
        unit: &Unit,
        exemplars: Option<&'p Exemplars<'p>>,
        out: &Path,
        keep: &'k mut Keep<'p>,
    ) -> Result<Self> {
        // A unit that failed may have left some.
        keep.prompts.clear();
        keep.provenance.clear();
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
        .into_iter()
        .chain(plan.bos.as_ref().map(|bos| ("flanc.bos_id", bos.id.to_string())))
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
        let eval = task.role == Role::HeldOut;
        let schema = if eval { EvalRows::schema() } else { PromptRows::schema() };
        let file = |suffix: &str| format!("{}{suffix}.parquet", unit.stem);
        let form = if exemplars.is_some() { ProvenanceForm::WithExemplars } else { ProvenanceForm::Prompts };
        let (shard, groups) = ShardWriter::create(out, &file(""), schema, &metadata)?;
        let (provenance_shard, provenance_groups) =
            ShardWriter::create(out, &file(".provenance"), ProvenanceRows::schema(form), &metadata)?;
        Ok(Worker {
            plan,
            task,
            split_name: split.name.name(),
            exemplars,
            eval: eval.then(EvalRows::default),
            names: origin_names(plan, task),
            form,
            shard,
            groups,
            provenance_shard,
            provenance_groups,
            draw: TemplateDraw::new(plan, task),
            sample_stream: Seed(plan.recipe.seed).stream(&["sample", name, &corpus]),
            counts: Counts::default(),
            bad: Vec::new(),
            ids: Vec::new(),
            targets: Vec::new(),
            text_bytes: 0,
            // Exemplars and markers stand around whole texts, and evaluations need the options beside the prompt.
            joints: (!eval && exemplars.is_none() && plan.recipe.wrapper == Wrapper::None)
                .then(|| Joints::new(&task.task.program, &mut keep.encoder))
                .transpose()?,
            keep,
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
        if let Some(joints) = &mut self.joints {
            joints.fresh.fill(false);
        }
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
        let lot = self.sample_stream.at(id.index).draw(template as u64);
        let sampled = lot.is_multiple_of(WHOLE_SAMPLE);
        let (mut shots, mut choices) = (Vec::new(), None);
        if sampled || !self.encode_joined(bound, template)? {
            let mut prompt = match self.task.task.program.render(bound, template) {
                Ok(prompt) => prompt,
                Err(failure) => return Ok(Err(failure)),
            };
            let joined = self.encode_joined(bound, template)?.then(|| (self.ids.clone(), self.targets.clone()));
            shots = self.encode_inputs(&mut prompt.inputs, template, id)?;
            self.targets.clear();
            self.keep.encoder.encode_into(&prompt.targets, &mut self.targets)?;
            if sampled {
                // What was joined from parts has to be what the whole gives, and that what the reference gives.
                let whole = (&self.ids, &self.targets);
                let differs = joined.as_ref().filter(|(inputs, targets)| (inputs, targets) != whole);
                let by_reference = differs.is_some() || lot.is_multiple_of(REFERENCE_SAMPLE);
                let checked = differs.map(|(inputs, targets)| (inputs, targets)).into_iter();
                for (inputs, targets) in checked.chain(by_reference.then_some(whole)) {
                    self.plan.tokenizer.check_sample(&prompt.inputs, inputs)?;
                    self.plan.tokenizer.check_sample(&prompt.targets, targets)?;
                }
            }
            self.text_bytes = (prompt.inputs.len() + prompt.targets.len()) as u64;
            choices = prompt.options.zip(prompt.answer);
        }
        self.counts.text_bytes += self.text_bytes;
        match self.fit(bound, template)? {
            Ok(shortened) => self.counts.shortened += u64::from(shortened),
            Err(failure) => return Ok(Err(failure)),
        }
        if let Some(bos) = &self.plan.bos {
            self.ids.insert(0, bos.id);
        }
        self.ids.extend(self.plan.separator.as_ref().map(|s| s.id));
        let target_start = self.ids.len();
        self.targets.push(self.plan.eos.id);
        self.counts.prompts += 1;
        self.counts.input_tokens += target_start as u64;
        self.counts.target_tokens += self.targets.len() as u64;
        let length = target_start + self.targets.len();
        self.shard.tokens += length as u64;
        let origin = Origin {
            task: 0,
            split: id.split,
            row: id.index,
            template: template as u32,
            repeat: 0,
            target_start: target_start as u32,
            length: length as u32,
        };
        self.keep.provenance.push(origin, &self.names);
        let of_shot = |shot: &&Shot| (shot.id.split, shot.id.index, shot.template as u32);
        self.keep.provenance.exemplars(shots.iter().map(of_shot));
        let full = match &mut self.eval {
            None => {
                let rows = &mut self.keep.prompts;
                rows.push(&self.ids, &self.targets);
                rows.rows() >= GROUP_ROWS || rows.tokens() >= GROUP_TOKENS
            }
            Some(rows) => {
                let mut options = Vec::new();
                for option in choices.iter().flat_map(|(options, _)| options.iter()) {
                    let mut ids = Vec::new();
                    self.keep.encoder.encode_into(option, &mut ids)?;
                    ids.push(self.plan.eos.id);
                    options.push(ids);
                }
                let answer = choices.and_then(|(options, answer)| options.iter().position(|o| **o == *answer));
                rows.push(&self.ids, &self.targets, &options, answer.map_or(-1, |i| i as i32));
                rows.rows() >= GROUP_ROWS
            }
        };
        if full {
            self.flush()?;
        }
        Ok(Ok(()))
    }

    /// Encodes a prompt that is put together from pieces into `ids` and `targets`, each piece that is a field once a row.
    /// `false`: it has to be rendered.
    fn encode_joined(&mut self, bound: &Bound, template: usize) -> Result<bool> {
        let program = &self.task.task.program;
        let Some(joints) = &mut self.joints else { return Ok(false) };
        let Some(sides) = program.pieces(bound, template) else { return Ok(false) };
        let text = |piece: &Piece| program.piece(bound, *piece);
        // Rendering says which side is empty.
        if sides.iter().any(|side| side.iter().all(|piece| text(piece).trim().is_empty())) {
            return Ok(false);
        }
        self.text_bytes = sides.iter().flat_map(|side| side.iter()).map(|piece| text(piece).len() as u64).sum();
        for (side, ids) in sides.iter().zip([&mut self.ids, &mut self.targets]) {
            for piece in side.iter() {
                if let Piece::Slot(slot) = piece {
                    joints.prepare(*slot, text(piece), &mut self.keep.encoder)?;
                }
            }
            ids.clear();
            self.keep.encoder.encode_joined(side.iter().map(|piece| joints.part(*piece)), ids)?;
        }
        Ok(true)
    }

    /// Puts exemplars and markers around the inputs and encodes them into `ids`; gives the exemplars.
    fn encode_inputs(&mut self, inputs: &mut String, template: usize, id: ExampleId) -> Result<Vec<&'p Shot>> {
        let recipe = &self.plan.recipe;
        let mut shots = Vec::new();
        if let Some(exemplars) = self.exemplars {
            self.ids.clear();
            self.keep.encoder.encode_into(inputs, &mut self.ids)?;
            shots = exemplars.draw(id, template, self.ids.len(), &mut self.keep.encoder)?;
        }
        let most = self.plan.longest_inputs();
        loop {
            let texts: Vec<&exemplar::Exemplar> = shots.iter().map(|shot| &shot.text).collect();
            let assembled = match exemplar::assemble(&texts, inputs, recipe.wrapper) {
                Cow::Owned(text) => Some(text),
                Cow::Borrowed(_) => None,
            };
            self.ids.clear();
            self.keep.encoder.encode_into(assembled.as_deref().unwrap_or(inputs), &mut self.ids)?;
            // A prompt is not cut for the sake of its exemplars, except as FLAN v1 cuts: wherever the length ends.
            if shots.is_empty() || self.ids.len() <= most || recipe.lengths.overflow == Overflow::Right {
                if let Some(text) = assembled {
                    *inputs = text;
                }
                return Ok(shots);
            }
            shots.pop();
        }
    }

    /// Brings `ids` and `targets` to length; says whether anything was cut.
    fn fit(&mut self, bound: &Bound, template: usize) -> Result<Result<bool, Failure>> {
        let lengths = self.plan.recipe.lengths;
        let most_inputs = self.plan.longest_inputs();
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
            self.keep.encoder.encode_into(&text, &mut tokens)?;
            let keep = tokens.len().saturating_sub(excess);
            cut = cut.with_field(field, &self.prefix(&text, &tokens, keep));
            let Ok(prompt) = program.render(&cut, template) else { return Ok(false) };
            // What is too long has lost its exemplars already.
            let inputs = exemplar::assemble(&[], &prompt.inputs, self.plan.recipe.wrapper);
            self.ids.clear();
            self.keep.encoder.encode_into(&inputs, &mut self.ids)?;
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
        let group = match &mut self.eval {
            None => self.groups.pages(&self.keep.prompts.columns(), &mut self.keep.pages)?,
            Some(rows) => self.groups.table(&rows.finish())?,
        };
        self.keep.prompts.clear();
        self.shard.write(group)
    }

    fn finish(mut self) -> Result<Object> {
        self.flush()?;
        let columns = self.keep.provenance.columns(&self.names, self.form);
        self.provenance_shard.write(self.provenance_groups.pages(&columns, &mut self.keep.pages)?)?;
        Ok(Object {
            provenance: self.provenance_shard.finish()?,
            shard: self.shard.finish()?,
            counts: self.counts,
            bad: self.bad,
        })
    }
}
