//! Evaluation on the held-out tasks of a compile.
//!
//! A prompt that offers options is scored by rank: the model's answer is the option whose tokens it finds most likely
//! after the inputs, the first of several; once by the sum of their log-likelihoods (the paper's way) and once by the
//! mean over the option's tokens, which does not favour short options. Any other prompt is answered by greedy
//! generation, until the end of text or a limit, and compared with the reference by several [`Metric`]s, one of which
//! the task is known by.
//!
//! Each template is scored by itself. A task's score is the mean over its templates, each counting the same; beside it
//! stands the score of the template that is best on the task's validation rows, as FLAN reports (arXiv 2109.01652,
//! section 3). Prompts of turned-around templates ask something else and are left out.
//!
//! [`compare`] sets several such evaluations beside each other.

pub mod answer;
pub mod bleu;
pub mod chart;
pub mod compare;
pub mod interval;
pub mod metrics;
mod overlap;
pub mod questions;
pub mod rouge;
pub mod squad;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use self::answer::Model;
use self::chart::{Chart, Group, Panel};
use self::interval::{Draws, Measured, Resampled, Score};
use self::metrics::{Metric, headline, of_answer, of_choice};
use self::questions::{Question, longest, questions, shards};
use crate::diag::{Diagnostic, Result};
use crate::model::ops::Ops;
use crate::model::{vocabulary, weights};
use crate::shard::manifest::{self, Manifest};
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

/// Scores by metric.
pub type Scores = BTreeMap<Metric, Score>;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TemplateScores {
    pub template: String,
    pub scores: Scores,
}

/// The prompts of one split of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitScores {
    /// In the order of the definition.
    pub templates: Vec<TemplateScores>,
    /// Over templates, each counting the same.
    pub mean: Scores,
    /// Prompts longer than the model takes, which were left out.
    pub too_long: usize,
    /// The mean's resamples, for means over tasks.
    #[serde(skip)]
    resampled: BTreeMap<Metric, Resampled>,
}

/// The template that is best on the validation rows, the first of several, and what it comes to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestOnDev {
    pub template: String,
    pub validation: Score,
    pub test: Score,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskScores {
    pub task: String,
    pub cluster: String,
    /// The metric that the task is known by.
    pub headline: Metric,
    pub test: SplitScores,
    pub validation: Option<SplitScores>,
    pub best_on_dev: Option<BestOnDev>,
}

/// The mean over the tasks of a cluster, each by the metric that it is known by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterScore {
    pub cluster: String,
    pub tasks: usize,
    pub score: Score,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub model: String,
    /// Hash of the plan of the data.
    pub plan: String,
    /// Most prompts of a template.
    pub limit: usize,
    /// How metrics were computed that there are several ways for.
    pub signatures: BTreeMap<Metric, &'static str>,
    /// How scores that are no shares got their intervals.
    pub intervals: String,
    pub clusters: Vec<ClusterScore>,
    pub tasks: Vec<TaskScores>,
}

/// Evaluates a model on the held-out tasks; `report` is told of each task as it is done.
pub fn evaluate<O: Ops>(evaluation: &Evaluation, mut report: impl FnMut(&TaskScores)) -> Result<Report> {
    let manifest = manifest::require(&evaluation.data)?;
    let tokenizer = Tokenizer::open(&evaluation.data.join(manifest::TOKENIZER))?;
    let shards = shards(&evaluation.data, &manifest, &evaluation.tasks)?;
    let config = weights::config(&evaluation.model)?;
    if manifest.tokenizer.vocabulary > config.vocabulary {
        return Err(Diagnostic::error("vocabulary", "the tokenizer of the data has more tokens than the model")
            .at(&evaluation.data)
            .expected(format!("at most {} tokens, `vocab_size` of the model", config.vocabulary))
            .found(format!("{} tokens", manifest.tokenizer.vocabulary))
            .help("compile with the tokenizer of the model: `tokenizer.file` in the recipe")
            .into());
    }
    vocabulary::same_tokens(&evaluation.model, &evaluation.data.join(manifest::TOKENIZER))?;
    // What is not asked for takes no memory: models take far longer texts than prompts are.
    let longest = longest(&evaluation.data, &shards, config.vocabulary, evaluation.longest_answer)?;
    let mut examiner = Examiner {
        evaluation,
        model: Model::<O>::open(&evaluation.model, config, evaluation.micro_batch, longest)?,
        tokenizer,
        end: manifest.tokenizer.eos.0,
        continuation: manifest.recipe["wrapper"] == "continuation",
    };
    let mut tasks = Vec::new();
    for (task, splits) in shards {
        // Rows that are all filtered leave no test shard.
        let Some(test) = splits.get(TEST) else { continue };
        let test = examiner.split(&task, TEST, test)?;
        let validation = splits.get(VALIDATION).map(|files| examiner.split(&task, VALIDATION, files)).transpose()?;
        let scores = task_scores(&manifest, task, test, validation);
        report(&scores);
        tasks.push(scores);
    }
    let signature = |metric: Metric| Some((metric, metric.signature()?));
    Ok(Report {
        model: evaluation.model.display().to_string(),
        plan: manifest.plan,
        limit: evaluation.limit,
        signatures: Metric::ALL.into_iter().filter_map(signature).collect(),
        intervals: interval::METHOD.to_owned(),
        clusters: clusters(&tasks),
        tasks,
    })
}

const TEST: &str = "test";
const VALIDATION: &str = "validation";

/// Puts a task's splits together.
fn task_scores(manifest: &Manifest, task: String, test: SplitScores, validation: Option<SplitScores>) -> TaskScores {
    let entry = manifest.tasks.iter().find(|entry| entry.task == task);
    let (cluster, code_cluster) = entry.map_or(("", ""), |entry| (&entry.cluster, &entry.code_cluster));
    let headline = headline(test.mean.contains_key(&Metric::Accuracy), cluster, code_cluster);
    let best_on_dev = validation.as_ref().and_then(|validation| best_on_dev(headline, validation, &test));
    TaskScores { cluster: cluster.to_owned(), task, headline, test, validation, best_on_dev }
}

fn best_on_dev(headline: Metric, validation: &SplitScores, test: &SplitScores) -> Option<BestOnDev> {
    let mut best: Option<BestOnDev> = None;
    for of_validation in &validation.templates {
        let of_test = test.templates.iter().find(|template| template.template == of_validation.template);
        let validation = of_validation.scores.get(&headline);
        let (Some(validation), Some(test)) = (validation, of_test.and_then(|t| t.scores.get(&headline))) else {
            continue;
        };
        if best.as_ref().is_none_or(|best| validation.value > best.validation.value) {
            let template = of_validation.template.clone();
            best = Some(BestOnDev { template, validation: *validation, test: *test });
        }
    }
    best
}

impl TaskScores {
    /// The score that the task is known by.
    pub fn score(&self) -> Option<Score> {
        self.test.mean.get(&self.headline).copied()
    }

    fn resampled(&self) -> Option<&Resampled> {
        self.test.resampled.get(&self.headline)
    }
}

impl Report {
    /// The scores of all tasks, by cluster.
    pub fn chart(&self) -> Chart {
        let panel = |cluster: &ClusterScore| {
            let tasks = self.tasks.iter().filter(|task| task.cluster == cluster.cluster);
            let tasks = tasks.map(|task| Group {
                name: task.task.clone(),
                metric: task.headline.title(),
                scores: vec![task.score(), task.best_on_dev.as_ref().map(|best| best.test)],
            });
            let mean = Group::mean(cluster.tasks, vec![Some(cluster.score), None]);
            Panel { name: cluster.cluster.clone(), groups: mean.into_iter().chain(tasks).collect() }
        };
        Chart {
            title: format!("Held-out clusters: {}", self.model),
            series: vec!["mean over templates", "template that is best on validation rows"],
            panels: self.clusters.iter().map(panel).collect(),
        }
    }
}

/// Means over clusters, in the order of their names.
fn clusters(tasks: &[TaskScores]) -> Vec<ClusterScore> {
    let mut by_cluster: BTreeMap<&str, Vec<&TaskScores>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.resampled().is_some()) {
        by_cluster.entry(&task.cluster).or_default().push(task);
    }
    let mean = |(cluster, tasks): (&str, Vec<&TaskScores>)| {
        let score = mean_over_tasks(&tasks)?;
        Some(ClusterScore { cluster: cluster.to_owned(), tasks: tasks.len(), score })
    };
    by_cluster.into_iter().filter_map(mean).collect()
}

/// The mean of what tasks are known by; of a single one, its own score. `None` where one has no score.
fn mean_over_tasks(tasks: &[&TaskScores]) -> Option<Score> {
    if let [task] = tasks {
        return task.score();
    }
    let scores: Vec<&Resampled> = tasks.iter().map(|task| task.resampled()).collect::<Option<_>>()?;
    let rows = scores.iter().map(|score| score.count).sum();
    Some(Resampled::mean(scores.into_iter(), rows)?.score())
}

/// What asking the questions of a compile takes.
struct Examiner<'e, O> {
    evaluation: &'e Evaluation,
    model: Model<O>,
    tokenizer: Tokenizer,
    /// The end of the text.
    end: u32,
    /// Whether prompts are texts to be gone on with, for models that were not tuned.
    continuation: bool,
}

impl<O: Ops> Examiner<'_, O> {
    /// Asks and measures the questions of one split of a task.
    fn split(&mut self, task: &str, split: &str, files: &[String]) -> Result<SplitScores> {
        let Asked { mut ranked, open, templates, rows, too_long } = self.ask(files)?;
        let mut measured: Vec<Measured> = templates.iter().map(|_| Measured::default()).collect();
        let place = |question: &Question| (templates.iter().position(|t| *t == question.template), rows[&question.row]);
        let mut push = |question: &Question, counts| {
            if let (Some(template), row) = place(question) {
                measured[template].push(row, counts);
            }
        };
        let right: Vec<usize> = ranked.iter().filter_map(Question::ranked).collect();
        if self.continuation {
            // A model that was not tuned has not learned that an answer ends the text.
            ranked
                .iter_mut()
                .flat_map(|q| &mut q.options)
                .filter(|o| o.len() > 1)
                .for_each(|o| o.truncate(o.len() - 1));
        }
        for ((question, right), (by_sum, by_token)) in ranked.iter().zip(right).zip(self.model.rank(&ranked)?) {
            push(question, of_choice(right, by_sum, by_token));
        }
        for (question, (answer, reference)) in open.iter().zip(self.answers(&open)?) {
            push(question, of_answer(&answer, &reference));
        }
        let draws = Draws::of(task, split, rows.len());
        let resampled: Vec<BTreeMap<Metric, Resampled>> = measured.iter().map(|m| m.resampled(&draws)).collect();
        let mean = |metric: Metric| {
            let scores = resampled.iter().filter_map(|template| template.get(&metric));
            Some((metric, Resampled::mean(scores, rows.len())?))
        };
        let means: BTreeMap<Metric, Resampled> = Metric::ALL.into_iter().filter_map(mean).collect();
        let scores = |of: &BTreeMap<Metric, Resampled>| of.iter().map(|(&m, r)| (m, r.score_of(m))).collect();
        let template = |(template, resampled)| TemplateScores { template, scores: scores(resampled) };
        Ok(SplitScores {
            templates: templates.iter().cloned().zip(&resampled).map(template).collect(),
            mean: scores(&means),
            too_long,
            resampled: means,
        })
    }

    /// Reads the questions that are asked.
    fn ask(&self, files: &[String]) -> Result<Asked> {
        let mut asked = Asked::default();
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        for file in files {
            for question in questions(&self.evaluation.data, file, self.model.decoder.config.vocabulary)? {
                let taken = taken.entry(question.template.clone()).or_default();
                if !question.original || question.inputs.is_empty() || *taken >= self.evaluation.limit {
                    continue;
                }
                *taken += 1;
                if !asked.templates.contains(&question.template) {
                    asked.templates.push(question.template.clone());
                }
                if question.longest(self.evaluation.longest_answer) > self.model.longest {
                    asked.too_long += 1;
                    continue;
                }
                let number = asked.rows.len();
                asked.rows.entry(question.row.clone()).or_insert(number);
                if question.ranked().is_some() {
                    asked.ranked.push(question);
                } else {
                    asked.open.push(question);
                }
            }
        }
        Ok(asked)
    }

    /// Generates answers; gives each with its reference.
    ///
    /// An answer ends with the text. That of a continuation ends with its line, or at a blank line if one of the
    /// references has several lines: what was not tuned goes on with the next example.
    fn answers(&mut self, open: &[Question]) -> Result<Vec<(String, String)>> {
        let (tokenizer, end) = (&self.tokenizer, self.end);
        let text = |ids: &[u32]| tokenizer.decode(ids.strip_suffix(&[end]).unwrap_or(ids));
        let references: Vec<String> = open.iter().map(|question| text(&question.targets)).collect();
        let one_line = references.iter().all(|reference| !reference.trim().contains('\n'));
        let stop = self.continuation.then_some(if one_line { "\n" } else { "\n\n" });
        let ends = |ids: &[u32]| {
            let stopped = |stop| text(ids).trim_start().contains(stop);
            ids.last() == Some(&end) || stop.is_some_and(stopped)
        };
        let answers = self.model.generate(open, self.evaluation.longest_answer, ends)?;
        let answer = |ids: &Vec<u32>| {
            let text = text(ids);
            match stop.and_then(|stop| text.trim_start().split_once(stop)) {
                Some((answer, _)) => answer.to_owned(),
                None => text,
            }
        };
        Ok(answers.iter().map(answer).zip(references).collect())
    }
}

/// The questions of one split of a task.
#[derive(Default)]
struct Asked {
    /// With options, of which one is to be chosen.
    ranked: Vec<Question>,
    /// To be answered in words.
    open: Vec<Question>,
    /// In the order of the definition.
    templates: Vec<String>,
    /// The rows that they were made of, numbered.
    rows: BTreeMap<(String, u64), usize>,
    too_long: usize,
}
