//! `flanc render`: the prompts that a task's templates make of its rows.

use std::ops::Range;

use clap::Args;
use serde_json::json;

use super::rows::print_rows;
use super::{DataDirs, Definitions, Failure, Outcome, parse_range, report};
use crate::diag::{Diagnostic, listing};
use crate::ingest::Corpus;
use crate::ingest::splits::clip;
use crate::template::engine::{self, Bound, Prompt};

/// Print the prompts of a task
///
/// Every row goes through every template, or through the one that is named. A row that a filter takes out is passed
/// over; a row that cannot be rendered is reported on stderr.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc render rte --split train --rows 0..2 --template can-we-conclude")]
pub struct Render {
    /// Task name, see `flanc tasks`
    task: String,
    /// Split expression over the corpus, such as `train` or `train[:100]`
    #[arg(long, default_value = "train")]
    split: String,
    /// Rows of that, counted from 0: a..b, a.., ..b or one number
    #[arg(long, value_parser = parse_range)]
    rows: Option<Range<u64>>,
    /// Only this template
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Print the fields that are derived from each row, as JSON, in place of its prompts
    #[arg(long, conflicts_with = "template")]
    fields: bool,
    /// Take the task as FLAN v1 has it, where its definition lists differences
    #[arg(long)]
    flan_v1: bool,
    #[command(flatten)]
    definitions: Definitions,
    #[command(flatten)]
    data: DataDirs,
}

impl Render {
    pub fn run(self) -> Outcome {
        let (catalogue, _) = self.definitions.load()?;
        let task = catalogue.task(&self.task)?;
        let task = if self.flan_v1 { task.as_flan_v1() } else { task };
        let name = task.corpus_on_disk(&self.data.data_dirs).unwrap_or(&task.definition.corpus);
        let corpus = Corpus::open(name, &self.data.data_dirs)?;
        let warning = task.check_corpus(&corpus.info.name, &corpus.info.features, &corpus.info.directory)?;
        report(warning.as_slice());
        let names: Vec<&str> = task.definition.templates.iter().map(|t| t.name.text.as_str()).collect();
        let templates: Vec<usize> = match &self.template {
            None => (0..names.len()).collect(),
            Some(name) => match names.iter().position(|n| n == name) {
                Some(i) => vec![i],
                None => {
                    return Err(Failure::Diagnostics(vec![
                        Diagnostic::error(
                            "unknown-template",
                            format!("task `{}` has no template `{name}`", task.name()),
                        )
                        .did_you_mean(name, names.iter().copied())
                        .note("note", format!("templates: {}", listing(names))),
                    ]));
                }
            },
        };
        let with_all_fields = if self.fields { Some(task.program_of_all_fields()?) } else { None };
        let program = with_all_fields.as_ref().unwrap_or(&task.program);
        let decoder = corpus.decoder(program.decoded_features())?;
        let parts = clip(corpus.resolve(&self.split, 1.0)?, &self.rows.clone().unwrap_or(0..u64::MAX));
        let problems = print_rows(&corpus, &parts, &decoder, &mut |row, datum, text, problems| {
            let failed = |failure: engine::Failure| {
                let message = format!("a row of `{}` gives no prompt: {}", task.name(), failure.detail);
                Diagnostic::warning(failure.reason.name(), message).at(row.place())
            };
            let bound = match program.bind(datum, row.payload.len()) {
                Ok(Some(bound)) => bound,
                Ok(None) => return,
                Err(failure) => return problems.push(failed(failure)),
            };
            if self.fields {
                let line = json!({ "task": self.task, "split": row.split, "row": row.index, "fields": bound.fields() });
                return text.push_str(&format!("{line}\n"));
            }
            for &template in &templates {
                let definition = &task.definition.templates[template];
                match program.render(&bound, template) {
                    Ok(prompt) if self.json => {
                        text.push_str(&self.line(row.split, row.index, definition, &prompt, &bound));
                    }
                    Ok(prompt) => {
                        let (task, name) = (task.name(), &definition.name.text);
                        text.push_str(&format!("--- {task} {} row {} · {name}\n", row.split, row.index));
                        text.push_str(&format!("{}\n>>> {}\n\n", prompt.inputs, prompt.targets));
                    }
                    Err(failure) => problems.push(failed(failure)),
                }
            }
        })?;
        problems.settle(0)
    }

    fn line(
        &self,
        split: &str,
        row: u64,
        template: &crate::template::definition::TemplateDefinition,
        prompt: &Prompt,
        bound: &Bound,
    ) -> String {
        let line = json!({
            "task": self.task, "split": split, "row": row,
            "template": template.name.text, "kind": template.kind.name(),
            "inputs": prompt.inputs, "targets": prompt.targets,
            "options": bound.options, "answer": bound.answer,
        });
        format!("{line}\n")
    }
}
