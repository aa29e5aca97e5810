//! `flanc check`: every definition against its schema, before any record is read.

use clap::Args;

use super::{Definitions, Outcome, report};

/// Type-check all task definitions against the schemas of their corpora
///
/// Reads no record. Prints what is wrong to stderr, with file, line and the offending text.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc check --templates my-defs --schemas my-schemas")]
pub struct Check {
    #[command(flatten)]
    definitions: Definitions,
    /// Print one JSON object: {"tasks", "templates", "warnings"}
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(self) -> Outcome {
        let (catalogue, warnings) = self.definitions.load()?;
        report(&warnings);
        let templates: usize = catalogue.tasks.iter().map(|t| t.definition.templates.len()).sum();
        if self.json {
            let summary = serde_json::json!({
                "tasks": catalogue.tasks.len(),
                "templates": templates,
                "warnings": warnings.len(),
            });
            super::print(&format!("{summary}\n"))
        } else {
            super::print(&format!(
                "{} tasks and {templates} templates are in order, {} warnings\n",
                catalogue.tasks.len(),
                warnings.len()
            ))
        }
    }
}
