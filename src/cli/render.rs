//! `flanc render`: the prompts that a task's templates make of its rows.

use std::io::{BufWriter, Write};
use std::ops::Range;

use clap::Args;
use serde_json::json;

use super::{DataDirs, Definitions, Failure, Outcome, parse_range, report};
use crate::diag::{Diagnostic, listing};
use crate::ingest::Corpus;
use crate::ingest::features::Decoder;
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
    /// Split expression over the corpus, such as train or train[:100]
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
    #[command(flatten)]
    definitions: Definitions,
    #[command(flatten)]
    data: DataDirs,
}

impl Render {
    pub fn run(self) -> Outcome {
        let (catalogue, _) = self.definitions.load()?;
        let task = catalogue.task(&self.task)?;
        let corpus = Corpus::open(&task.definition.corpus, &self.data.data_dirs)?;
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
        let wanted = task.program.decoded_features();
        let decoder = Decoder::new(&corpus.info.features, wanted).map_err(|(path, class)| {
            Box::new(
                Diagnostic::error("feature-kind", format!("feature `{path}` is no text and no number")).found(class),
            )
        })?;
        let mut out = BufWriter::new(std::io::stdout().lock());
        let mut problems = Vec::new();
        let range = self.rows.clone().unwrap_or(0..u64::MAX);
        let mut position = 0;
        for mut part in corpus.resolve(&self.split, 1.0)? {
            let rows = part.rows.clone();
            let clip = |row: u64| rows.start + row.saturating_sub(position).min(rows.end - rows.start);
            part.rows = clip(range.start)..clip(range.end);
            position += rows.end - rows.start;
            if part.rows.is_empty() {
                continue;
            }
            problems.extend(corpus.damage(&part)?.into_iter().map(|d| d.diagnostic.clone()));
            let mut write_error = None;
            let mut damaged = Vec::new();
            let visited = corpus.visit(
                &part,
                &|_| true,
                &mut |row| {
                    let mut oddities = Vec::new();
                    let datum = match decoder.decode(row.payload, &mut oddities) {
                        Ok(datum) => datum,
                        Err(error) => {
                            problems.push(row.error(error));
                            return Ok(());
                        }
                    };
                    problems.extend(oddities.iter().map(|o| row.oddity(o)));
                    let failed = |failure: engine::Failure| {
                        Diagnostic::warning(
                            failure.reason.name(),
                            format!("a row of `{}` gives no prompt: {}", task.name(), failure.detail),
                        )
                        .at(row.place())
                    };
                    let bound = match task.program.bind(&datum, row.payload.len()) {
                        Ok(Some(bound)) => bound,
                        Ok(None) => return Ok(()),
                        Err(failure) => {
                            problems.push(failed(failure));
                            return Ok(());
                        }
                    };
                    for &template in &templates {
                        match task.program.render(&bound, template) {
                            Ok(prompt) => {
                                let text = if self.json {
                                    self.line(
                                        &part.split,
                                        row.index,
                                        &task.definition.templates[template],
                                        &prompt,
                                        &bound,
                                    )
                                } else {
                                    let name = &task.definition.templates[template].name.text;
                                    format!(
                                        "--- {} {} row {} · {name}\n{}\n>>> {}\n\n",
                                        task.name(),
                                        part.split,
                                        row.index,
                                        prompt.inputs,
                                        prompt.targets
                                    )
                                };
                                if let Err(error) = out.write_all(text.as_bytes()) {
                                    write_error = Some(error);
                                    return Err(Box::new(Diagnostic::error("stdout", "stopped")));
                                }
                            }
                            Err(failure) => problems.push(failed(failure)),
                        }
                    }
                    Ok(())
                },
                &mut |damage| {
                    damaged.push(damage.diagnostic);
                    Ok(())
                },
            );
            if let Some(error) = write_error {
                return Err(error.into());
            }
            visited?;
            problems.extend(damaged);
        }
        out.flush()?;
        if problems.iter().any(|d| d.severity == crate::diag::Severity::Error) {
            return Err(Failure::Diagnostics(problems));
        }
        report(&problems);
        Ok(())
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
