//! Verifying: every hash, count and column of an output, recomputed from its files alone.
//!
//! Nothing of the compiler is used but the manifest's form and the column layouts. Each file is hashed and read back;
//! each row is checked against the rules of its profile; and each prompt of the mixture has to be found, id by id, in
//! the task shard that its provenance names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use crate::diag::{Diagnostic, Result, one};
use crate::shard::inspect::{NamedOrigin, Provenance, provenance};
use crate::shard::manifest::{self, Extent, Manifest};
use crate::shard::pages::IGNORED;
use crate::shard::reader;
use crate::shard::writer::FileInfo;
use crate::storage;

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    pub files: usize,
    pub bytes: u64,
    pub rows: u64,
    pub prompts: u64,
    pub tokens: u64,
}

/// Faults of one file that are listed; a file with more is wrong throughout.
const LISTED: usize = 5;
const BATCH: usize = 1024;

/// What is known of one prompt: who it is, and what its ids are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Fingerprint {
    /// Of task, split, row and template.
    identity: u64,
    /// Of the ids and where the loss begins.
    content: u64,
    repeat: u32,
}

/// What a data file and its provenance gave.
#[derive(Default)]
struct Checked {
    file: String,
    rows: u64,
    tokens: u64,
    padding: u64,
    loss_tokens: u64,
    input_tokens: u64,
    prompts: BTreeMap<String, u64>,
    fingerprints: Vec<Fingerprint>,
    faults: Vec<Diagnostic>,
}

/// Verifies the output in `out`.
///
/// # Errors
/// Everything that is wrong.
pub fn verify(out: &Path) -> Result<Verified, Vec<Diagnostic>> {
    let manifest = manifest::require(out).map_err(one)?;
    let mut faults = Vec::new();
    check_tokenizer(out, &manifest, &mut faults);
    check_listing(out, &manifest, &mut faults).map_err(one)?;
    faults.extend(manifest.files.par_iter().flat_map_iter(|file| check_file(out, file)).collect::<Vec<_>>());
    if !faults.is_empty() {
        return Err(faults); // rows of files that are not the ones written say nothing more
    }
    let data: Vec<&FileInfo> = manifest.files.iter().filter(|f| !is_provenance(&f.path)).collect();
    let checked: Vec<Checked> = data
        .par_iter()
        .map(|file| {
            let mut checked = Checked { file: file.path.clone(), ..Checked::default() };
            if let Err(fault) = check_rows(out, &manifest, file, &mut checked) {
                checked.faults.push(*fault);
            }
            checked
        })
        .collect();
    let mut verified = Verified { files: manifest.files.len(), ..Verified::default() };
    verified.bytes = manifest.files.iter().map(|f| f.bytes).sum();
    for (file, checked) in data.iter().zip(&checked) {
        verified.rows += checked.rows;
        verified.tokens += checked.tokens;
        verified.prompts += checked.prompts.values().sum::<u64>();
        for (what, listed, found) in [("rows", file.rows, checked.rows), ("tokens", file.tokens, checked.tokens)] {
            if listed != found {
                faults.push(fault(&file.path, format!("the manifest counts {listed} {what}, the file has {found}")));
            }
        }
    }
    check_counts(&manifest, &checked, &mut faults);
    check_mixture(&manifest, &checked, &mut faults);
    faults.extend(checked.into_iter().flat_map(|c| c.faults));
    if faults.is_empty() { Ok(verified) } else { Err(faults) }
}

fn is_provenance(path: &str) -> bool {
    path.ends_with(".provenance.parquet")
}

fn fault(file: &str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error("verify", message).at(Path::new(file)).help("compile again; whatever was changed is made anew")
}

fn check_tokenizer(out: &Path, manifest: &Manifest, faults: &mut Vec<Diagnostic>) {
    match storage::read_text(&out.join(manifest::TOKENIZER)) {
        Ok(text) if blake3::hash(text.as_bytes()).to_hex().as_str() == manifest.tokenizer.blake3 => {}
        Ok(_) => faults.push(fault(manifest::TOKENIZER, "this is not the tokenizer of the compile")),
        Err(diagnostic) => faults.push(*diagnostic),
    }
}

/// Files that are there without being listed could be taken for output.
fn check_listing(out: &Path, manifest: &Manifest, faults: &mut Vec<Diagnostic>) -> Result<()> {
    let listed: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    for folder in ["tasks", "mixture", "eval"] {
        for file in storage::walk(&out.join(folder))? {
            let path = format!("{folder}/{}", file.to_string_lossy());
            if !listed.contains(path.as_str()) {
                faults.push(fault(&path, "this file is not in the manifest"));
            }
        }
    }
    Ok(())
}

/// Size and hash of a file.
fn check_file(out: &Path, file: &FileInfo) -> Option<Diagnostic> {
    let mapped = match storage::map(&out.join(&file.path)) {
        Ok(mapped) => mapped,
        Err(diagnostic) => return Some(*diagnostic),
    };
    if mapped.len() as u64 != file.bytes {
        return Some(fault(&file.path, format!("{} bytes, the manifest says {}", mapped.len(), file.bytes)));
    }
    let found = blake3::hash(&mapped).to_hex().to_string();
    (found != file.blake3).then(|| fault(&file.path, "its bytes were changed").expected(&file.blake3).found(found))
}

/// Reads a data file with its provenance and checks every row.
fn check_rows(out: &Path, manifest: &Manifest, file: &FileInfo, checked: &mut Checked) -> Result<()> {
    let provenance_path = file.path.trim_end_matches(".parquet").to_owned() + ".provenance.parquet";
    let shard = reader::open(out, &file.path, BATCH)?;
    if file.path.starts_with("mixture/") && !shard.metadata.contains(&("flanc.plan".into(), manifest.plan.clone())) {
        checked.faults.push(fault(&file.path, "its key-values name another plan than the manifest"));
    }
    let mut origins = reader::open(out, &provenance_path, BATCH)?;
    let mut pending: std::collections::VecDeque<Provenance> = Default::default();
    for batch in shard {
        let batch = batch?;
        while pending.len() < batch.num_rows() {
            let Some(more) = origins.next() else { break };
            pending.extend(provenance(&more?, &provenance_path)?);
        }
        if pending.len() < batch.num_rows() {
            checked.faults.push(fault(&provenance_path, "it has fewer rows than its shard"));
            return Ok(());
        }
        let rows: Vec<Provenance> = pending.drain(..batch.num_rows()).collect();
        check_batch(manifest, file, &batch, &rows, checked)?;
    }
    if !pending.is_empty() || origins.next().is_some() {
        checked.faults.push(fault(&provenance_path, "it has more rows than its shard"));
    }
    Ok(())
}

fn check_batch(
    manifest: &Manifest,
    file: &FileInfo,
    batch: &RecordBatch,
    rows: &[Provenance],
    checked: &mut Checked,
) -> Result<()> {
    let path = &file.path;
    let (ids, ends) = reader::lists_i32(batch, "input_ids", path)?;
    for (i, origins) in rows.iter().enumerate() {
        let ids = &ids[ends[i] as usize..ends[i + 1] as usize];
        let row = RowOf { manifest, path, batch, index: i, ids, origins };
        let problem = if batch.column_by_name("targets").is_some() {
            check_eval(&row, checked)?
        } else if batch.column_by_name("seq_lengths").is_some() {
            check_packed(&row, checked)?
        } else if batch.column_by_name("loss_mask").is_some() {
            check_megatron(&row, checked)?
        } else {
            check_prompt(&row, checked)?
        };
        if let Some(problem) = problem
            && checked.faults.len() < LISTED
        {
            checked.faults.push(fault(path, format!("row {}: {problem}", checked.rows)));
        }
        checked.rows += 1;
    }
    Ok(())
}

/// A row under inspection.
struct RowOf<'r> {
    manifest: &'r Manifest,
    path: &'r str,
    batch: &'r RecordBatch,
    index: usize,
    ids: &'r [i32],
    origins: &'r Provenance,
}

impl RowOf<'_> {
    fn list(&self, column: &str) -> Result<&[i32]> {
        let (values, ends) = reader::lists_i32(self.batch, column, self.path)?;
        Ok(&values[ends[self.index] as usize..ends[self.index + 1] as usize])
    }

    fn bytes(&self, column: &str) -> Result<&[i8]> {
        let (values, ends) = reader::lists_i8(self.batch, column, self.path)?;
        Ok(&values[ends[self.index] as usize..ends[self.index + 1] as usize])
    }

    /// Checks the ids of one segment and takes its fingerprint.
    fn segment(&self, ids: &[i32], origin: &NamedOrigin, target_start: usize, checked: &mut Checked) -> Option<String> {
        let tokenizer = &self.manifest.tokenizer;
        if let Some(id) = ids.iter().find(|&&id| id < 0 || id as usize >= tokenizer.vocabulary) {
            return Some(format!("id {id} is not in the vocabulary"));
        }
        if target_start >= ids.len() {
            return Some("a segment without targets".into());
        }
        if let Some((bos, text)) = &tokenizer.bos
            && ids[..target_start].first() != Some(&(*bos as i32))
        {
            return Some(format!("a segment does not begin with `{text}`"));
        }
        if ids.last() != Some(&(tokenizer.eos.0 as i32)) {
            return Some("a segment does not end in the end of sequence".into());
        }
        if let Some(problem) = wrong_row(self.manifest, self.path, origin) {
            return Some(problem);
        }
        *checked.prompts.entry(origin.task.clone()).or_default() += 1;
        checked.tokens += ids.len() as u64;
        checked.input_tokens += target_start as u64;
        checked.loss_tokens += (ids.len() - target_start.max(1)) as u64;
        checked.fingerprints.push(fingerprint(ids, origin, target_start));
        None
    }
}

fn fingerprint(ids: &[i32], origin: &NamedOrigin, target_start: usize) -> Fingerprint {
    let mut identity = Xxh3::new();
    for part in [&origin.task, &origin.split, &origin.template] {
        identity.update(&(part.len() as u64).to_le_bytes());
        identity.update(part.as_bytes());
    }
    identity.update(&origin.row.to_le_bytes());
    let mut content = Xxh3::new();
    content.update(&(target_start as u64).to_le_bytes());
    for id in ids {
        content.update(&id.to_le_bytes());
    }
    Fingerprint { identity: identity.digest(), content: content.digest(), repeat: origin.repeat }
}

/// The first position at which labels are not what they have to be.
fn wrong_label(ids: &[i32], labels: &[i32], target_start: usize) -> Option<usize> {
    (0..ids.len()).find(|&i| labels[i] != if i < target_start { IGNORED } else { ids[i] })
}

fn check_prompt(row: &RowOf<'_>, checked: &mut Checked) -> Result<Option<String>> {
    let labels = row.list("labels")?;
    let mask = row.bytes("attention_mask")?;
    let [(origin, target_start, length)] = row.origins.as_slice() else {
        return Ok(Some("expected one origin".into()));
    };
    if labels.len() != row.ids.len() || mask.len() != row.ids.len() || *length != row.ids.len() {
        return Ok(Some("ids, labels, attention_mask and provenance differ in length".into()));
    }
    if mask.iter().any(|&m| m != 1) {
        return Ok(Some("attention_mask is not all ones".into()));
    }
    if let Some(i) = wrong_label(row.ids, labels, *target_start) {
        return Ok(Some(format!("label {i} is {}", labels[i])));
    }
    Ok(row.segment(row.ids, origin, *target_start, checked))
}

fn check_packed(row: &RowOf<'_>, checked: &mut Checked) -> Result<Option<String>> {
    let (labels, lengths) = (row.list("labels")?, row.list("seq_lengths")?);
    if labels.len() != row.ids.len() {
        return Ok(Some("ids and labels differ in length".into()));
    }
    let total: i64 = lengths.iter().map(|&n| i64::from(n)).sum();
    if total != row.ids.len() as i64 || lengths.iter().any(|&n| n <= 0) {
        return Ok(Some(format!("seq_lengths add up to {total}, the row has {} tokens", row.ids.len())));
    }
    if lengths.len() != row.origins.len() && lengths.len() != row.origins.len() + 1 {
        return Ok(Some(format!("{} segments with {} origins", lengths.len(), row.origins.len())));
    }
    let mut start = 0;
    for (&length, (origin, target_start, of_origin)) in lengths.iter().zip(row.origins) {
        let range = start..start + length as usize;
        if *of_origin != length as usize {
            return Ok(Some(format!("a segment of {length} tokens, its provenance says {of_origin}")));
        }
        if let Some(i) = wrong_label(&row.ids[range.clone()], &labels[range.clone()], (*target_start).max(1)) {
            return Ok(Some(format!("label {} is {}", start + i, labels[start + i])));
        }
        if let Some(problem) = row.segment(&row.ids[range], origin, *target_start, checked) {
            return Ok(Some(problem));
        }
        start += length as usize;
    }
    let pad = row.manifest.tokenizer.pad.0 as i32;
    checked.padding += (row.ids.len() - start) as u64;
    if row.ids[start..].iter().any(|&id| id != pad) || labels[start..].iter().any(|&l| l != IGNORED) {
        return Ok(Some("the padding holds something else".into()));
    }
    Ok(None)
}

fn check_megatron(row: &RowOf<'_>, checked: &mut Checked) -> Result<Option<String>> {
    let (starts, mask) = (row.list("seq_start_id")?, row.bytes("loss_mask")?);
    if mask.len() != row.ids.len() || starts.len() != row.origins.len() {
        return Ok(Some("ids, loss_mask, seq_start_id and provenance differ in length".into()));
    }
    let mut start = 0;
    for (&begins, (origin, target_start, length)) in starts.iter().zip(row.origins) {
        let end = start + length;
        if begins as usize != start || end > row.ids.len() {
            return Ok(Some(format!("a segment begins at {begins}, expected {start}")));
        }
        // Shifted by one: the mask at i is for the token at i + 1 of the same segment.
        let wrong = (start..end).find(|&i| {
            let trained = i + 1 < end && i + 1 - start >= (*target_start).max(1);
            mask[i] != i8::from(trained)
        });
        if let Some(i) = wrong {
            return Ok(Some(format!("loss_mask {i} is {}", mask[i])));
        }
        if let Some(problem) = row.segment(&row.ids[start..end], origin, *target_start, checked) {
            return Ok(Some(problem));
        }
        start = end;
    }
    Ok((start != row.ids.len()).then(|| "ids behind the last segment".into()))
}

fn check_eval(row: &RowOf<'_>, checked: &mut Checked) -> Result<Option<String>> {
    let targets = row.list("targets")?;
    let [(origin, target_start, length)] = row.origins.as_slice() else {
        return Ok(Some("expected one origin".into()));
    };
    if *target_start != row.ids.len() || *length != row.ids.len() + targets.len() {
        return Ok(Some("input_ids, targets and provenance differ in length".into()));
    }
    let options = reader::column(row.batch, "options", row.path)?.as_list_opt::<i32>();
    let options = options.ok_or_else(|| reader::wrong_type("options", row.path))?.value(row.index).len() as i32;
    let answer = reader::column(row.batch, "answer", row.path)?.as_primitive_opt::<Int32Type>();
    let answer = answer.ok_or_else(|| reader::wrong_type("answer", row.path))?.value(row.index);
    if options > 0 && !(0..options).contains(&answer) {
        return Ok(Some(format!("answer {answer} of {options} options")));
    }
    let ids: Vec<i32> = row.ids.iter().chain(targets).copied().collect();
    Ok(row.segment(&ids, origin, *target_start, checked))
}

/// Compares the manifest's counts by task and by mixture with the files.
fn check_counts(manifest: &Manifest, checked: &[Checked], faults: &mut Vec<Diagnostic>) {
    let trained: BTreeSet<&str> =
        manifest.tasks.iter().filter(|t| t.role == "trained").map(|t| t.task.as_str()).collect();
    for task in &manifest.tasks {
        for (split, entry) in &task.splits {
            let folder = if task.role == "trained" { "tasks" } else { "eval" };
            let prefix = format!("{folder}/{}/{split}-", task.task);
            let of_split = || checked.iter().filter(|c| c.file.starts_with(&prefix));
            let prompts: u64 = of_split().flat_map(|c| c.prompts.values()).sum();
            let inputs: u64 = of_split().map(|c| c.input_tokens).sum();
            let targets: u64 = of_split().map(|c| c.tokens - c.input_tokens).sum();
            let of_mixture = checked.iter().filter(|c| c.file.starts_with(&format!("mixture/{split}-")));
            let drawn: u64 = of_mixture.filter_map(|c| c.prompts.get(&task.task)).sum();
            let pairs = [
                ("prompts", entry.prompts, prompts),
                ("input tokens", entry.input_tokens, inputs),
                ("target tokens", entry.target_tokens, targets),
                ("drawn prompts", entry.drawn, drawn),
            ];
            for (what, listed, found) in pairs.into_iter().filter(|(_, listed, found)| listed != found) {
                faults.push(fault(
                    manifest::FILE,
                    format!("task {}, {split}: {listed} {what} listed, {found} found", task.task),
                ));
            }
        }
    }
    for (split, entry) in &manifest.mixture {
        let of_split = || checked.iter().filter(|c| c.file.starts_with(&format!("mixture/{split}-")));
        let sum = |count: fn(&Checked) -> u64| of_split().map(count).sum::<u64>();
        let pairs = [
            ("rows", entry.rows, sum(|c| c.rows)),
            ("prompts", entry.prompts, sum(|c| c.prompts.values().sum())),
            ("tokens", entry.tokens, sum(|c| c.tokens)),
            ("tokens with loss", entry.loss_tokens, sum(|c| c.loss_tokens)),
            ("padding tokens", entry.padding_tokens, sum(|c| c.padding)),
        ];
        for (what, listed, found) in pairs.into_iter().filter(|(_, listed, found)| listed != found) {
            faults.push(fault(manifest::FILE, format!("mixture {split}: {listed} {what} listed, {found} found")));
        }
        for task in of_split().flat_map(|c| c.prompts.keys()).filter(|t| !trained.contains(t.as_str())) {
            faults.push(fault(
                manifest::FILE,
                format!("mixture {split} holds prompts of `{task}`, which is not trained on"),
            ));
        }
    }
    check_held_out(manifest, faults);
}

/// What is held out is of no cluster that is trained on, if the recipe holds out clusters, and of no dataset.
fn check_held_out(manifest: &Manifest, faults: &mut Vec<Diagnostic>) {
    let clusters: BTreeSet<&str> =
        manifest.recipe["hold_out"].as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect();
    let trained = || manifest.tasks.iter().filter(|t| t.role == "trained");
    for task in trained().filter(|t| clusters.contains(t.cluster.as_str())) {
        let message = format!("`{}` is trained on, and its cluster is held out", task.task);
        faults.push(fault(manifest::FILE, message));
    }
    for held_out in manifest.tasks.iter().filter(|t| t.role != "trained") {
        for other in trained().filter(|t| t.dataset == held_out.dataset && t.corpus != held_out.corpus) {
            faults.push(fault(
                manifest::FILE,
                format!("`{}` is trained on, the same dataset as held-out `{}`", other.task, held_out.task),
            ));
        }
    }
}

/// A prompt whose row is none of its task's, or held out by another; an exemplar that is no training row, or the
/// prompt's own.
fn wrong_row(manifest: &Manifest, path: &str, origin: &NamedOrigin) -> Option<String> {
    let task = manifest.tasks.iter().find(|t| t.task == origin.task)?;
    let is_row =
        |split: &str, row: u64, of: &dyn Fn(&Extent) -> bool| task.extent.iter().any(|e| e.has(split, row) && of(e));
    if !is_row(&origin.split, origin.row, &|_| true) {
        return Some(format!("row {} of {} is not one of `{}`", origin.row, origin.split, task.task));
    }
    for exemplar in &origin.exemplars {
        if (&exemplar.split, exemplar.row) == (&origin.split, origin.row) {
            return Some("the row is its own exemplar".into());
        }
        if !is_row(&exemplar.split, exemplar.row, &|e| e.of == "train") {
            return Some(format!("its exemplar, row {} of {}, is no training row", exemplar.row, exemplar.split));
        }
    }
    if path.starts_with("eval/") {
        return None;
    }
    let mut held_out = manifest.tasks.iter().filter(|t| t.role != "trained" && t.corpus == task.corpus);
    let rows = || {
        let exemplars = origin.exemplars.iter().map(|e| (e.split.as_str(), e.row));
        std::iter::once((origin.split.as_str(), origin.row)).chain(exemplars)
    };
    held_out.find_map(|held| {
        let (split, row) = rows().find(|&(split, row)| held.extent.iter().any(|e| e.has(split, row)))?;
        Some(format!("row {row} of {split} is held out, as one of `{}`", held.task))
    })
}

/// Every prompt of the mixture is a prompt of a task shard, and no use of one comes twice.
fn check_mixture(manifest: &Manifest, checked: &[Checked], faults: &mut Vec<Diagnostic>) {
    let prompts_of = |prefix: &str| -> Vec<Fingerprint> {
        checked.iter().filter(|c| c.file.starts_with(prefix)).flat_map(|c| c.fingerprints.iter().copied()).collect()
    };
    let mut of_tasks: Vec<(u64, u64)> = prompts_of("tasks/").iter().map(|f| (f.identity, f.content)).collect();
    of_tasks.sort_unstable();
    for split in manifest.mixture.keys() {
        let mut uses = prompts_of(&format!("mixture/{split}-"));
        let unknown = uses.iter().filter(|f| of_tasks.binary_search(&(f.identity, f.content)).is_err()).count();
        if unknown > 0 {
            faults.push(fault(
                manifest::FILE,
                format!("{unknown} prompts of mixture {split} are not those of the task shards"),
            ));
        }
        uses.sort_unstable();
        let doubled = uses.windows(2).filter(|w| w[0] == w[1]).count();
        if doubled > 0 {
            faults.push(fault(
                manifest::FILE,
                format!("{doubled} prompts of mixture {split} come twice under one number of use"),
            ));
        }
    }
}
