//! `flanc tasks`: the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::json;

use super::{Definitions, Outcome, print};
use crate::task::Task;

/// List the tasks: corpus, cluster, splits, templates and licence
#[derive(Args)]
#[command(after_help = "Example:\n  flanc tasks --cluster sentiment --json")]
pub struct Tasks {
    /// Only the tasks of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    definitions: Definitions,
}

impl Tasks {
    pub fn run(self) -> Outcome {
        let (catalogue, _) = self.definitions.load()?;
        let tasks: Vec<&Task> = catalogue
            .tasks
            .iter()
            .filter(|t| {
                self.cluster.as_ref().is_none_or(|c| c == &t.definition.cluster || c == &t.definition.code_cluster)
            })
            .collect();
        let mut out = String::new();
        if self.json {
            for task in tasks {
                out.push_str(&format!("{}\n", describe(task)));
            }
            return print(&out);
        }
        let mut clusters: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in &tasks {
            clusters.entry(&task.definition.cluster).or_default().push(task);
        }
        for (cluster, tasks) in &clusters {
            out.push_str(&format!("{cluster}\n"));
            for task in tasks {
                let d = &task.definition;
                let turned =
                    d.templates.iter().filter(|t| t.kind == crate::template::definition::Kind::TurnedAround).count();
                let templates = format!("{} + {turned}", d.templates.len() - turned);
                out.push_str(&format!(
                    "  {:<28} {:<40} {templates:<7} {}\n",
                    task.name(),
                    d.corpus.to_string(),
                    d.licence
                ));
            }
        }
        let datasets: BTreeSet<&str> = tasks.iter().map(|t| t.definition.dataset.as_str()).collect();
        let templates: usize = tasks.iter().map(|t| t.definition.templates.len()).sum();
        out.push_str(&format!(
            "{} tasks of {} datasets in {} clusters, {templates} templates (original + turned around)\n",
            tasks.len(),
            datasets.len(),
            clusters.len()
        ));
        print(&out)
    }
}

fn describe(task: &Task) -> serde_json::Value {
    let d = &task.definition;
    let split = |s: &Option<crate::template::snippet::Snippet>| s.as_ref().map(|s| s.text.clone());
    json!({
        "task": task.name(),
        "title": d.title,
        "dataset": d.dataset,
        "cluster": d.cluster,
        "code_cluster": d.code_cluster,
        "tfds": d.corpus.to_string(),
        "splits": { "train": split(&d.splits.train), "validation": split(&d.splits.validation), "test": split(&d.splits.test) },
        "templates": d.templates.iter().map(|t| json!({ "name": t.name.text, "kind": t.kind.name() })).collect::<Vec<_>>(),
        "licence": d.licence,
        "source": d.origin,
        "rows": d.rows.iter().cloned().collect::<BTreeMap<String, u64>>(),
        "flan_v1": d.flan_v1.iter().map(|difference| json!({
            "part": difference.part.to_string(),
            "value": difference.value.as_ref().map(|v| v.text.clone()),
            "why": difference.why,
        })).collect::<Vec<_>>(),
    })
}
