//! The prompts of evaluation shards.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int32Type;

use crate::diag::{Diagnostic, Result, listing};
use crate::shard::manifest::Manifest;
use crate::shard::{inspect, reader};

/// A prompt of an evaluation shard. Targets and options end with the end of the text.
pub struct Question {
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
    pub options: Vec<Vec<u32>>,
    answer: i32,
    pub template: String,
    pub original: bool,
    /// The row that it was made of: split of the corpus, and number.
    pub row: (String, u64),
}

impl Question {
    /// The right option, if the options are those of the question that this prompt asks.
    pub fn ranked(&self) -> Option<usize> {
        let answer = usize::try_from(self.answer).ok()?;
        let offered = self.options.len() > 1 && self.options.iter().all(|option| !option.is_empty());
        (offered && !self.inputs.is_empty() && self.options.get(answer) == Some(&self.targets)).then_some(answer)
    }

    /// Tokens of the longest text that the model has to look at.
    pub fn longest(&self, longest_answer: usize) -> usize {
        let answer = match self.ranked() {
            Some(_) => self.options.iter().map(Vec::len).max().unwrap_or(0),
            None => longest_answer,
        };
        self.inputs.len() + answer
    }
}

/// Evaluation shards by task and split.
pub type Shards = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The evaluation shards of `tasks`; none named means all.
pub fn shards(data: &Path, manifest: &Manifest, tasks: &[String]) -> Result<Shards> {
    let mut found = Shards::new();
    for file in manifest.files.iter().map(|f| &f.path) {
        let Some((task, name)) = file.strip_prefix("eval/").and_then(|rest| rest.split_once('/')) else { continue };
        let Some(split) = name.strip_suffix(".parquet").and_then(|name| name.split('-').next()) else { continue };
        if !name.ends_with(".provenance.parquet") {
            found.entry(task.to_owned()).or_default().entry(split.to_owned()).or_default().push(file.clone());
        }
    }
    let names = || found.keys().map(String::as_str);
    if let Some(unknown) = tasks.iter().find(|task| !found.contains_key(*task)) {
        return Err(Diagnostic::error("unknown-task", format!("no evaluation shards of task `{unknown}` are here"))
            .at(data)
            .found(listing(names()))
            .did_you_mean(unknown, names())
            .into());
    }
    if found.is_empty() {
        return Err(Diagnostic::error(
            "nothing-held-out",
            "the compile held no task out: there is nothing to evaluate on",
        )
        .at(data)
        .help("name tasks or clusters under `hold_out` in the recipe")
        .into());
    }
    found.retain(|task, _| tasks.is_empty() || tasks.contains(task));
    Ok(found)
}

/// Tokens of the longest text that the prompts of some shards ask a model to look at.
pub fn longest(root: &Path, shards: &Shards, vocabulary: usize, longest_answer: usize) -> Result<usize> {
    let mut longest = 0;
    for file in shards.values().flat_map(BTreeMap::values).flatten() {
        let asked = questions(root, file, vocabulary)?;
        let asked = asked.iter().filter(|question| question.original);
        longest = asked.map(|question| question.longest(longest_answer)).fold(longest, usize::max);
    }
    Ok(longest)
}

/// Reads the prompts of an evaluation shard.
pub fn questions(root: &Path, file: &str, vocabulary: usize) -> Result<Vec<Question>> {
    const BATCH: usize = 1024;
    let provenance_file = file.strip_suffix(".parquet").unwrap_or(file).to_owned() + ".provenance.parquet";
    let mut questions = Vec::new();
    let provenance = reader::open(root, &provenance_file, BATCH)?;
    for (batch, origins) in reader::open(root, file, BATCH)?.zip(provenance) {
        let (batch, origins) = (batch?, origins?);
        let origins = inspect::provenance(&origins, &provenance_file)?;
        let (inputs, targets) = (lists(&batch, "input_ids", file)?, lists(&batch, "targets", file)?);
        let options = nested(&batch, "options", file)?;
        let answers = reader::column(&batch, "answer", file)?;
        let answers = answers.as_primitive_opt::<Int32Type>().ok_or_else(|| reader::wrong_type("answer", file))?;
        let rows = inputs.into_iter().zip(targets).zip(options).zip(answers.values()).zip(origins);
        for ((((inputs, targets), options), &answer), origin) in rows {
            let mut ids = inputs.iter().chain(&targets).chain(options.iter().flatten());
            if let Some(id) = ids.find(|&&id| id as usize >= vocabulary) {
                return Err(Diagnostic::error("eval-row", format!("{file} has the id {id}"))
                    .at(&root.join(file))
                    .expected(format!("ids below {vocabulary}, `vocab_size` of the model"))
                    .into());
            }
            let Some((origin, ..)) = origin.into_iter().next() else { continue };
            let original = origin.kind != "turned-around";
            let row = (origin.split, origin.row);
            questions.push(Question { inputs, targets, options, answer, template: origin.template, original, row });
        }
    }
    Ok(questions)
}

fn unsigned(values: &[i32]) -> Vec<u32> {
    values.iter().map(|&id| id as u32).collect()
}

/// A column of lists, row by row.
fn lists(batch: &RecordBatch, name: &str, file: &str) -> Result<Vec<Vec<u32>>> {
    let (values, ends) = reader::lists_i32(batch, name, file)?;
    Ok(ends.windows(2).map(|w| unsigned(&values[w[0] as usize..w[1] as usize])).collect())
}

/// A column of lists of lists, row by row.
fn nested(batch: &RecordBatch, name: &str, file: &str) -> Result<Vec<Vec<Vec<u32>>>> {
    let wrong = || reader::wrong_type(name, file);
    let outer = reader::column(batch, name, file)?.as_list_opt::<i32>().ok_or_else(wrong)?;
    let inner = outer.values().as_list_opt::<i32>().ok_or_else(wrong)?;
    let values = inner.values().as_primitive_opt::<Int32Type>().ok_or_else(wrong)?.values();
    let lists: Vec<Vec<u32>> =
        inner.value_offsets().windows(2).map(|w| unsigned(&values[w[0] as usize..w[1] as usize])).collect();
    Ok(outer.value_offsets().windows(2).map(|w| lists[w[0] as usize..w[1] as usize].to_vec()).collect())
}
