//! `flanc render`: the prompts that a task's templates make of its rows.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::rows::print_rows;
use super::{DataDirs, Definitions, Failure, Outcome, parse_range, report};
use crate::diag::{Diagnostic, Place, listing};
use crate::ingest::Corpus;
use crate::ingest::splits::clip;
use crate::storage;
use crate::task::{self, Task};
use crate::template::definition::{Body, TemplateDefinition};
use crate::template::engine::{self, Prompt, Row, RowName, Trace, Traced};

/// Print the prompts of a task
///
/// Every row goes through every template, or through the one that is named. A row that a filter takes out is passed
/// over; a row that cannot be rendered is reported on stderr.
///
/// With --row-json, rows are JSON objects, one a line, and each prints one line for every template: the prompt as with
/// --json, or {"task", "row", "template", "skipped", "detail"} for what gives none. No corpus and no schema is needed.
#[derive(Args)]
#[command(after_help = "Examples:\n  flanc render rte --split train --rows 0..2 --template can-we-conclude\n  \
    flanc render imported/my-task.toml --row-json - < rows.jsonl")]
pub struct Render {
    /// Task name, see `flanc tasks`; or a definition's file, which ends in .toml
    task: String,
    /// Rows as JSON objects, one a line, in place of a corpus: a file, or - for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["split", "rows", "json", "fields", "data_dirs"])]
    row_json: Option<PathBuf>,
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
        if let Some(rows) = &self.row_json {
            return self.render_json_rows(rows);
        }
        let (catalogue, file);
        let task = if self.task.ends_with(".toml") {
            let definition = task::read_file(Path::new(&self.task), &self.definitions.templates())?;
            file = Task::new(definition, &self.definitions.schemas())?.0;
            &file
        } else {
            catalogue = self.definitions.load()?.0;
            catalogue.task(&self.task)?
        };
        let task = if self.flan_v1 { task.as_flan_v1() } else { task };
        let name = task.corpus_on_disk(&self.data.data_dirs).unwrap_or(&task.definition.corpus);
        let corpus = Corpus::open(name, &self.data.data_dirs)?;
        let warning = task.check_corpus(&corpus.info.name, &corpus.info.features, &corpus.info.directory)?;
        report(warning.as_slice());
        let templates = self.templates_of(task)?;
        let with_all_fields = if self.fields { Some(task.program_of_all_fields()?) } else { None };
        let program = with_all_fields.as_ref().unwrap_or(&task.program);
        let decoder = corpus.decoder(program.decoded_features())?;
        let parts = clip(corpus.resolve(&self.split, 1.0)?, &self.rows.clone().unwrap_or(0..u64::MAX));
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let problems = print_rows(&corpus, &parts, &decoder, &mut |row, datum, text, problems| {
            let failed = |failure: engine::Failure| {
                let message = format!("a row of `{}` gives no prompt: {}", task.name(), failure.detail);
                Diagnostic::warning(failure.reason.name(), message).at(row.place())
            };
            let bound = match program.bind(datum, row.payload.len(), RowName { split: row.split, index: row.index }) {
                Ok(Some(bound)) => bound,
                Ok(None) => return,
                Err(failure) => return problems.push(failed(failure)),
            };
            if self.fields {
                let line =
                    json!({ "task": task.name(), "split": row.split, "row": row.index, "fields": bound.fields() });
                return text.push_str(&format!("{line}\n"));
            }
            for &template in &templates {
                let definition = &task.definition.templates[template];
                if colours && !self.json {
                    match program.trace(&bound, template) {
                        Ok(trace) => {
                            let (task, name) = (task.name(), &definition.name.text);
                            text.push_str(&format!("--- {task} {} row {} · {name}\n", row.split, row.index));
                            text.push_str(&coloured(&definition.body, &trace));
                        }
                        Err(failure) => problems.push(failed(failure)),
                    }
                    continue;
                }
                match program.render(&bound, template) {
                    Ok(prompt) if self.json => {
                        let line = prompt_line(task, Some(row.split), row.index, definition, &prompt);
                        text.push_str(&format!("{line}\n"));
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

    /// Every template of the task, or the one that is asked for.
    fn templates_of(&self, task: &Task) -> Result<Vec<usize>, Failure> {
        let names: Vec<&str> = task.definition.templates.iter().map(|t| t.name.text.as_str()).collect();
        let Some(name) = &self.template else { return Ok((0..names.len()).collect()) };
        match names.iter().position(|n| n == name) {
            Some(template) => Ok(vec![template]),
            None => Err(Failure::Diagnostics(vec![
                Diagnostic::error("unknown-template", format!("task `{}` has no template `{name}`", task.name()))
                    .did_you_mean(name, names.iter().copied())
                    .note("note", format!("templates: {}", listing(names))),
            ])),
        }
    }

    /// Renders rows that are given as JSON, one a line.
    fn render_json_rows(&self, path: &Path) -> Outcome {
        let definition = if self.task.ends_with(".toml") {
            task::read_file(Path::new(&self.task), &self.definitions.templates())?
        } else {
            let (catalogue, _) = self.definitions.load()?;
            let task = catalogue.task(&self.task)?;
            if self.flan_v1 { task.as_flan_v1() } else { task }.definition.clone()
        };
        let task = Task::for_any_rows(definition)?;
        let templates = self.templates_of(&task)?;
        let mut out = io::BufWriter::new(io::stdout().lock());
        let mut problems = Vec::new();
        for (index, line) in lines(path)?.enumerate() {
            let line = line.map_err(|e| unreadable(path, &e))?;
            match serde_json::from_str(&line) {
                Ok(row) => print_json_row(&task, &templates, &row, line.len(), index as u64, &mut out)?,
                Err(error) => problems.push(
                    Diagnostic::error("row-json", format!("line {} is not a JSON object", index + 1))
                        .at(Place::Path(path.to_owned()))
                        .found(error.to_string()),
                ),
            }
        }
        out.flush()?;
        if problems.is_empty() { Ok(()) } else { Err(Failure::Diagnostics(problems)) }
    }
}

/// A prompt for a terminal: what comes from the row is blue, options are yellow, targets green.
fn coloured(body: &Body, trace: &Trace) -> String {
    const ROW: &str = "\x1b[34m";
    const OPTIONS: &str = "\x1b[33m";
    const TARGETS: &str = "\x1b[32m";
    const PLAIN: &str = "\x1b[0m";
    let source = match body {
        Body::Sides { inputs, .. } => &inputs.text,
        Body::Prompt { prompt, .. } => &prompt.text,
    };
    let Traced { text, pieces } = &trace.inputs;
    let inputs = pieces.iter().map(|piece| {
        let shown = visible(&text[piece.output.clone()]);
        let expression = source.get(piece.source.clone()).unwrap_or_default();
        match expression {
            _ if piece.literal => shown,
            options if options.contains("options") || options.contains("answer_choices") => {
                format!("{OPTIONS}{shown}{PLAIN}")
            }
            _ => format!("{ROW}{shown}{PLAIN}"),
        }
    });
    let targets = visible(&trace.targets.text);
    format!("{}\n{TARGETS}>>> {targets}{PLAIN}\n\n", inputs.collect::<String>())
}

/// A row's text must not command the terminal.
fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// The lines of a file, or of stdin for `-`.
fn lines(path: &Path) -> Result<Box<dyn Iterator<Item = io::Result<String>>>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock().lines()));
    }
    let file = storage::open(path)?;
    Ok(Box::new(file.lines()))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot read rows: {error}");
    Failure::Diagnostics(vec![Diagnostic::error("row-json", message).at(Place::Path(path.to_owned()))])
}

fn print_json_row(
    task: &Task,
    templates: &[usize],
    row: &serde_json::Map<String, Value>,
    bytes: usize,
    index: u64,
    out: &mut impl Write,
) -> Outcome {
    let bound = task.program.bind(Row::Json(row), bytes, RowName { split: "", index });
    for &template in templates {
        let definition = &task.definition.templates[template];
        let skipped = |reason: &str, detail: &str| {
            let name = &definition.name.text;
            json!({ "task": task.name(), "row": index, "template": name, "skipped": reason, "detail": detail })
        };
        let line = match &bound {
            Ok(Some(bound)) => match task.program.render(bound, template) {
                Ok(prompt) => prompt_line(task, None, index, definition, &prompt),
                Err(failure) => {
                    let mut line = skipped(failure.reason.name(), &failure.detail);
                    // What was printed instead, for whoever compares it.
                    if let Ok(parts) = task.program.parts(bound, template)
                        && !parts.parts.is_empty()
                    {
                        line["parts"] = json!(parts.parts);
                        line["options"] = json!(parts.choices.as_deref());
                    }
                    line
                }
            },
            Ok(None) => skipped("filter", "the filter takes the row out"),
            Err(failure) => skipped(failure.reason.name(), &failure.detail),
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn prompt_line(task: &Task, split: Option<&str>, row: u64, template: &TemplateDefinition, prompt: &Prompt) -> Value {
    json!({
        "task": task.name(), "split": split, "row": row,
        "template": template.name.text, "kind": template.kind.name(),
        "inputs": prompt.inputs, "targets": prompt.targets,
        "options": prompt.options.as_deref(), "answer": prompt.answer.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::engine::Stretch;
    use crate::template::snippet::Snippet;

    #[test]
    fn colours_tell_where_text_comes_from() {
        let inputs = Snippet::whole("inputs", "Say {{ text }}: {{ options_ }}");
        let body = Body::Sides { inputs, targets: Snippet::whole("targets", "{{ answer }}") };
        let piece = |output, source, literal| Stretch { output, source, literal };
        let pieces = vec![
            piece(0..4, 0..4, true),
            piece(4..6, 7..11, false),
            piece(6..8, 14..16, true),
            piece(8..9, 19..27, false),
        ];
        let trace = Trace {
            inputs: Traced { text: "Say \x1b!: o".to_owned(), pieces },
            targets: Traced { text: "t".to_owned(), pieces: Vec::new() },
            options: None,
            answer: None,
        };
        let expected = "Say \x1b[34m\\u{1b}!\x1b[0m: \x1b[33mo\x1b[0m\n\x1b[32m>>> t\x1b[0m\n\n";
        assert_eq!(coloured(&body, &trace), expected);
    }
}
