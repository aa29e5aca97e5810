//! Evaluation on the held-out tasks of a compile.
//!
//! A prompt that offers options is scored by rank: the model's answer is the option whose tokens it finds most likely
//! after the inputs, the first of several; once by the sum of their log-likelihoods (the paper's way) and once by the
//! mean over the option's tokens, which does not favour short options. Any other prompt is answered by greedy
//! generation, until the end of text or a limit, and compared by exact match and F1. Each task gets a score for each
//! of its templates, and the mean over templates; prompts of turned-around templates ask something else and are left
//! out.

pub mod metrics;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use serde::Serialize;

use self::metrics::{Mean, exact_match, f1};
use crate::diag::{Diagnostic, Result};
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::{Batch, Ops};
use crate::model::weights;
use crate::shard::manifest::{self, Manifest};
use crate::shard::{inspect, reader};
use crate::tokenize::Tokenizer;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Directory of the model.
    pub model: PathBuf,
    /// Directory that `flanc compile` wrote.
    pub data: PathBuf,
    /// Tasks to evaluate; none named means all that were held out.
    pub tasks: Vec<String>,
    /// Most prompts of a template.
    pub limit: usize,
    /// Most tokens of an answer.
    pub longest_answer: usize,
    /// Tokens that go through the model at a time.
    pub micro_batch: usize,
}

/// Scores of one template, or means over those of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Share of the prompts whose answer is the most likely option.
    pub accuracy: Option<Mean>,
    /// The same, by likelihood a token.
    pub accuracy_normalised: Option<Mean>,
    pub exact_match: Option<Mean>,
    pub f1: Option<Mean>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskScores {
    pub task: String,
    pub cluster: String,
    pub split: String,
    /// Mean over templates, each counting the same.
    pub mean: BTreeMap<&'static str, f64>,
    pub templates: BTreeMap<String, Scores>,
    /// Prompts longer than the model takes.
    pub too_long: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub model: String,
    /// Hash of the plan of the data.
    pub plan: String,
    pub tasks: Vec<TaskScores>,
}

/// A prompt of an evaluation shard.
struct Question {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    options: Vec<Vec<u32>>,
    answer: i32,
    template: String,
    original: bool,
}

impl Question {
    /// Whether the options are those of the question that this prompt asks.
    fn ranked(&self) -> Option<usize> {
        let answer = usize::try_from(self.answer).ok()?;
        let offered = self.options.len() > 1 && !self.inputs.is_empty();
        (offered && self.options.get(answer) == Some(&self.targets)).then_some(answer)
    }

    /// Tokens of the longest text that the model has to look at.
    fn longest(&self, longest_answer: usize) -> usize {
        let answer = match self.ranked() {
            Some(_) => self.options.iter().map(Vec::len).max().unwrap_or(0),
            None => longest_answer,
        };
        self.inputs.len() + answer
    }
}

/// Evaluates a model on the held-out tasks; `report` is told of each task as it is done.
pub fn evaluate<O: Ops>(evaluation: &Evaluation, mut report: impl FnMut(&TaskScores)) -> Result<Report> {
    let manifest = manifest::require(&evaluation.data)?;
    let tokenizer = Tokenizer::open(&evaluation.data.join(manifest::TOKENIZER))?;
    let config = weights::config(&evaluation.model)?;
    if manifest.tokenizer.vocabulary > config.vocabulary {
        return Err(Diagnostic::error("vocabulary", "the tokenizer of the data has more tokens than the model")
            .at(&evaluation.data)
            .expected(format!("at most {} tokens, `vocab_size` of the model", config.vocabulary))
            .found(format!("{} tokens", manifest.tokenizer.vocabulary))
            .help("compile with the tokenizer of the model: `tokenizer.file` in the recipe")
            .into());
    }
    let positions = config.max_positions;
    let tokens = evaluation.micro_batch.max(positions.min(LONGEST));
    let logit_rows = 512.min(tokens);
    let (decoder, table) = Decoder::lay_out(config, Layout { tokens, logit_rows, purpose: Purpose::Score });
    let mut ops = O::allocate(table)?;
    ops.set_rotations(&decoder.config.rotation_frequencies(), positions.min(tokens));
    weights::load(&evaluation.model, &decoder, &mut ops)?;

    let mut model = Model { decoder, ops, longest: positions.min(tokens), end: manifest.tokenizer.eos.0 };
    let mut tasks = Vec::new();
    for (task, split, files) in shards(evaluation, &manifest)? {
        let cluster = manifest.tasks.iter().find(|t| t.task == task).map_or(String::new(), |t| t.cluster.clone());
        let scores = one_task(evaluation, &mut model, &tokenizer, task, split, cluster, &files)?;
        report(&scores);
        tasks.push(scores);
    }
    Ok(Report { model: evaluation.model.display().to_string(), plan: manifest.plan, tasks })
}

/// Longest prompt with answer that memory is taken for, where the model would take longer ones.
const LONGEST: usize = 8_192;

/// Evaluation shards by task and split.
fn shards(evaluation: &Evaluation, manifest: &Manifest) -> Result<Vec<(String, String, Vec<String>)>> {
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for file in manifest.files.iter().map(|f| &f.path) {
        let Some((task, name)) = file.strip_prefix("eval/").and_then(|rest| rest.split_once('/')) else { continue };
        let Some(split) = name.strip_suffix(".parquet").and_then(|name| name.split('-').next()) else { continue };
        if !name.ends_with(".provenance.parquet") {
            found.entry((task.to_owned(), split.to_owned())).or_default().push(file.clone());
        }
    }
    let names: Vec<String> = found.keys().map(|(task, _)| task.clone()).collect();
    if let Some(unknown) = evaluation.tasks.iter().find(|task| !names.contains(task)) {
        return Err(Diagnostic::error("unknown-task", format!("no evaluation shards of task `{unknown}` are here"))
            .at(&evaluation.data)
            .found(crate::diag::listing(names.iter().map(String::as_str)))
            .did_you_mean(unknown, names.iter().map(String::as_str))
            .into());
    }
    if found.is_empty() {
        return Err(Diagnostic::error(
            "nothing-held-out",
            "the compile held no task out: there is nothing to evaluate on",
        )
        .at(&evaluation.data)
        .help("name tasks or clusters under `hold_out` in the recipe")
        .into());
    }
    let asked = |task: &String| evaluation.tasks.is_empty() || evaluation.tasks.contains(task);
    Ok(found.into_iter().filter(|((t, _), _)| asked(t)).map(|((task, split), files)| (task, split, files)).collect())
}

struct Model<O> {
    decoder: Decoder,
    ops: O,
    /// Tokens of the longest text.
    longest: usize,
    end: u32,
}

/// Scores by template, as they come.
#[derive(Default)]
struct Collected {
    accuracy: Vec<f64>,
    normalised: Vec<f64>,
    exact: Vec<f64>,
    f1: Vec<f64>,
}

fn one_task<O: Ops>(
    evaluation: &Evaluation,
    model: &mut Model<O>,
    tokenizer: &Tokenizer,
    task: String,
    split: String,
    cluster: String,
    files: &[String],
) -> Result<TaskScores> {
    let mut collected: BTreeMap<String, Collected> = BTreeMap::new();
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let (mut ranked, mut open) = (Vec::new(), Vec::new());
    let mut too_long = 0;
    for file in files {
        for question in questions(&evaluation.data, file, model.decoder.config.vocabulary)? {
            let taken = taken.entry(question.template.clone()).or_default();
            if !question.original || *taken >= evaluation.limit {
                continue;
            }
            *taken += 1;
            if question.longest(evaluation.longest_answer) > model.longest {
                too_long += 1;
            } else if question.ranked().is_some() {
                ranked.push(question);
            } else {
                open.push(question);
            }
        }
    }
    for (question, (by_sum, by_mean)) in ranked.iter().zip(model.rank(&ranked)) {
        let scores = collected.entry(question.template.clone()).or_default();
        let right = question.ranked();
        scores.accuracy.push(f64::from(u8::from(Some(by_sum) == right)));
        scores.normalised.push(f64::from(u8::from(Some(by_mean) == right)));
    }
    for (question, answer) in open.iter().zip(model.generate(&open, evaluation.longest_answer)) {
        let text = |ids: &[u32]| tokenizer.decode(ids.strip_suffix(&[model.end]).unwrap_or(ids));
        let (answer, reference) = (text(&answer), text(&question.targets));
        let scores = collected.entry(question.template.clone()).or_default();
        scores.exact.push(exact_match(&answer, &reference));
        scores.f1.push(f1(&answer, &reference));
    }
    let templates: BTreeMap<String, Scores> = collected
        .into_iter()
        .map(|(template, c)| {
            let scores = Scores {
                accuracy: Mean::of(&c.accuracy),
                accuracy_normalised: Mean::of(&c.normalised),
                exact_match: Mean::of(&c.exact),
                f1: Mean::of(&c.f1),
            };
            (template, scores)
        })
        .collect();
    let mean = means(templates.values());
    Ok(TaskScores { task, cluster, split, mean, templates, too_long })
}

/// Each score's mean over the templates that have it.
fn means<'s>(templates: impl Iterator<Item = &'s Scores> + Clone) -> BTreeMap<&'static str, f64> {
    type Pick = fn(&Scores) -> Option<Mean>;
    let scores: [(&'static str, Pick); 4] = [
        ("accuracy", |s| s.accuracy),
        ("accuracy_normalised", |s| s.accuracy_normalised),
        ("exact_match", |s| s.exact_match),
        ("f1", |s| s.f1),
    ];
    let mean = |(name, pick): (&'static str, Pick)| {
        let values: Vec<f64> = templates.clone().filter_map(pick).map(|m| m.mean).collect();
        (!values.is_empty()).then(|| (name, values.iter().sum::<f64>() / values.len() as f64))
    };
    scores.into_iter().filter_map(mean).collect()
}

impl<O: Ops> Model<O> {
    /// The option that each question's model finds most likely: in all, and a token.
    fn rank(&mut self, questions: &[Question]) -> Vec<(usize, usize)> {
        let mut sums: Vec<Vec<f64>> = questions.iter().map(|q| vec![0.0; q.options.len()]).collect();
        let all: Vec<(usize, usize)> = questions
            .iter()
            .enumerate()
            .flat_map(|(q, question)| (0..question.options.len()).map(move |o| (q, o)))
            .collect();
        let text = |&(q, o): &(usize, usize)| [&questions[q].inputs[..], &questions[q].options[o]].concat();
        self.each_batch(&all, text, |model, members, texts| {
            let mut batch = Batch::default();
            for (&(q, _), text) in members.iter().zip(texts) {
                batch.push(text, |i| i >= questions[q].inputs.len());
            }
            let losses = model.decoder.score(&mut model.ops, &batch);
            let mut losses = losses.iter().map(|&l| f64::from(l));
            for &(q, o) in members {
                sums[q][o] = -losses.by_ref().take(questions[q].options[o].len()).sum::<f64>();
            }
        });
        let best = |scores: &mut dyn Iterator<Item = f64>| {
            let mut best = (0, f64::NEG_INFINITY);
            for (option, score) in scores.enumerate() {
                if score > best.1 {
                    best = (option, score);
                }
            }
            best.0
        };
        let choose = |(question, sums): (&Question, &Vec<f64>)| {
            let mut by_token = sums.iter().zip(&question.options).map(|(sum, option)| sum / option.len() as f64);
            (best(&mut sums.iter().copied()), best(&mut by_token))
        };
        questions.iter().zip(&sums).map(choose).collect()
    }

    /// The most likely token after another, for each question. Every token costs a pass over the whole text.
    fn generate(&mut self, questions: &[Question], longest: usize) -> Vec<Vec<u32>> {
        let mut answers: Vec<Vec<u32>> = vec![Vec::new(); questions.len()];
        let mut unfinished: Vec<usize> = (0..questions.len()).filter(|&q| !questions[q].inputs.is_empty()).collect();
        for _ in 0..longest {
            let so_far = answers.clone();
            let text = |&q: &usize| [&questions[q].inputs[..], &so_far[q]].concat();
            self.each_batch(&unfinished, text, |model, members, texts| {
                let mut batch = Batch::default();
                for text in texts {
                    batch.push(text, |_| false);
                    batch.rows.push(batch.tokens() as u32 - 1);
                    batch.targets.push(0);
                }
                let next = model.decoder.most_likely(&mut model.ops, &batch);
                for (&q, token) in members.iter().zip(next) {
                    answers[q].push(token);
                }
            });
            unfinished.retain(|&q| answers[q].last() != Some(&self.end));
            if unfinished.is_empty() {
                break;
            }
        }
        answers
    }

    /// Calls `work` with as many members as fit into a batch together, and their texts.
    fn each_batch<T>(
        &mut self,
        members: &[T],
        text: impl Fn(&T) -> Vec<u32>,
        mut work: impl FnMut(&mut Self, &[T], &[Vec<u32>]),
    ) {
        let capacity = self.decoder.layout.tokens;
        let (mut first, mut texts, mut tokens) = (0, Vec::new(), 0);
        for (number, member) in members.iter().enumerate() {
            let text = text(member);
            if tokens + text.len() > capacity {
                work(self, &members[first..number], &texts);
                texts.clear();
                (first, tokens) = (number, 0);
            }
            tokens += text.len();
            texts.push(text);
        }
        if !texts.is_empty() {
            work(self, &members[first..], &texts);
        }
    }
}

/// Reads the prompts of an evaluation shard.
fn questions(root: &Path, file: &str, vocabulary: usize) -> Result<Vec<Question>> {
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
            let ids = inputs.iter().chain(&targets).chain(options.iter().flatten());
            if let Some(id) = ids.clone().find(|&&id| id as usize >= vocabulary) {
                return Err(Diagnostic::error("eval-row", format!("{file} has the id {id}"))
                    .at(&root.join(file))
                    .expected(format!("ids below {vocabulary}, `vocab_size` of the model"))
                    .into());
            }
            let origin = origin.into_iter().next().map(|(origin, ..)| origin);
            let (template, kind) = origin.map_or(Default::default(), |o| (o.template, o.kind));
            questions.push(Question { inputs, targets, options, answer, template, original: kind != "turned-around" });
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
