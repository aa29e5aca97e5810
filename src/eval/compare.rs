//! Several evaluations of the same tasks beside each other: the paper's comparison.
//!
//! FLAN was held against a model that was not tuned, which was asked to go on with plain texts, without and with
//! exemplars (arXiv 2109.01652, section 3 and appendix A). [`WAYS`] are these ways of asking, and their two
//! counterparts for the tuned model.

use serde::Serialize;

use super::chart::{Chart, Group, Panel};
use super::interval::Score;
use super::metrics::Metric;
use super::{BestOnDev, Report, TaskScores, mean_over_tasks};

/// A way of asking one of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub name: &'static str,
    pub title: &'static str,
    pub tuned: bool,
    pub exemplars: bool,
}

pub const WAYS: [Way; 4] = [
    Way { name: "untuned-zero-shot", title: "untuned, zero-shot", tuned: false, exemplars: false },
    Way { name: "untuned-few-shot", title: "untuned, few-shot", tuned: false, exemplars: true },
    Way { name: "tuned-zero-shot", title: "tuned, zero-shot", tuned: true, exemplars: false },
    Way { name: "tuned-few-shot", title: "tuned, with exemplars", tuned: true, exemplars: true },
];

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub recipe: String,
    /// Most exemplars.
    pub shots: usize,
    /// Most prompts of a template.
    pub limit: usize,
    pub columns: Vec<Column>,
    pub clusters: Vec<ClusterRow>,
    pub tasks: Vec<TaskRow>,
    /// Everything about each column.
    pub reports: Vec<Report>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Column {
    pub name: &'static str,
    pub title: &'static str,
    pub model: String,
    /// Hash of the plan of its prompts.
    pub plan: String,
}

/// The mean over the tasks of a cluster that all columns have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterRow {
    pub cluster: String,
    pub tasks: usize,
    /// By column; none where there is no such task.
    pub scores: Vec<Option<Score>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskRow {
    pub task: String,
    pub cluster: String,
    pub metric: Metric,
    /// By column: the mean over templates. None where a task could not be asked so.
    pub scores: Vec<Option<Score>>,
    /// By column.
    pub best_on_dev: Vec<Option<BestOnDev>>,
}

impl Comparison {
    /// The scores of all tasks, by cluster.
    pub fn chart(&self) -> Chart {
        let panel = |cluster: &ClusterRow| {
            let tasks = self.tasks.iter().filter(|task| task.cluster == cluster.cluster);
            let tasks = tasks.map(|task| Group {
                name: task.task.clone(),
                metric: task.metric.title(),
                scores: task.scores.clone(),
            });
            let mean = Group::mean(cluster.tasks, cluster.scores.clone());
            Panel { name: cluster.cluster.clone(), groups: mean.into_iter().chain(tasks).collect() }
        };
        Chart {
            title: format!("Held-out clusters: {}", self.recipe),
            series: self.columns.iter().map(|column| column.title).collect(),
            panels: self.clusters.iter().map(panel).collect(),
        }
    }
}

/// Sets the reports of [`WAYS`] beside each other.
pub fn compare(recipe: &str, shots: usize, limit: usize, reports: Vec<Report>) -> Comparison {
    let columns = WAYS.iter().zip(&reports).map(|(way, report)| Column {
        name: way.name,
        title: way.title,
        model: report.model.clone(),
        plan: report.plan.clone(),
    });
    let columns = columns.collect();
    let mut names: Vec<(&str, &str, Metric)> = Vec::new();
    for task in reports.iter().flat_map(|report| &report.tasks) {
        if names.iter().all(|(_, name, _)| *name != task.task) {
            names.push((&task.cluster, &task.task, task.headline));
        }
    }
    names.sort();
    // Whether a task is known by accuracy depends on its prompts: columns are compared where that is the same.
    let of = |name: &str, metric: Metric| -> Vec<Option<&TaskScores>> {
        let scored = |task: &&TaskScores| task.task == name && task.headline == metric && task.score().is_some();
        reports.iter().map(|report| report.tasks.iter().find(scored)).collect()
    };
    let mut tasks = Vec::new();
    // By cluster: the tasks that all columns know, by column.
    let mut common: Vec<(&str, Vec<Vec<&TaskScores>>)> = Vec::new();
    for &(cluster, name, metric) in &names {
        let columns = of(name, metric);
        tasks.push(TaskRow {
            task: name.to_owned(),
            cluster: cluster.to_owned(),
            metric,
            scores: columns.iter().map(|task| task.as_ref()?.score()).collect(),
            best_on_dev: columns.iter().map(|task| task.as_ref()?.best_on_dev.clone()).collect(),
        });
        if common.last().is_none_or(|(last, _)| *last != cluster) {
            common.push((cluster, Vec::new()));
        }
        if let (Some((_, tasks)), Some(columns)) = (common.last_mut(), columns.into_iter().collect()) {
            tasks.push(columns);
        }
    }
    let mean = |(cluster, tasks): (&str, Vec<Vec<&TaskScores>>)| {
        let column = |c: usize| mean_over_tasks(&tasks.iter().map(|columns| columns[c]).collect::<Vec<_>>());
        let scores = (0..reports.len()).map(column).collect();
        ClusterRow { cluster: cluster.to_owned(), tasks: tasks.len(), scores }
    };
    let clusters = common.into_iter().map(mean).collect();
    Comparison { recipe: recipe.to_owned(), shots, limit, columns, clusters, tasks, reports }
}
