//! Diagnostics and findings for the page: with the part of the definition that they are about, and the place in it.

use serde_json::{Value, json};

use super::drafts::Part;
use crate::audit::{Finding, TaskAudit};
use crate::diag::{Diagnostic, Place, Span};
use crate::template::definition::Definition;

/// A diagnostic; places in a part are in UTF-16 units, which is how JavaScript counts.
pub fn message(diagnostic: &Diagnostic, definition: Option<&Definition>) -> Value {
    let mut value = json!({
        "severity": diagnostic.severity.name(),
        "code": diagnostic.code,
        "message": diagnostic.message,
        "label": diagnostic.label,
        "notes": diagnostic.notes,
    });
    match &diagnostic.place {
        Place::Span(span) => place(&mut value, span, definition),
        Place::Path(path) => value["file"] = path.display().to_string().into(),
        Place::Record { file, record, .. } => value["file"] = format!("{}, record {record}", file.display()).into(),
        Place::Nowhere => {}
    }
    value
}

fn place(value: &mut Value, span: &Span, definition: Option<&Definition>) {
    let (line, column) = span.source.line_column(span.range.start);
    value["file"] = span.source.name.clone().into();
    value["line"] = line.into();
    value["column"] = column.into();
    let found = definition.and_then(|definition| {
        Part::all(definition).into_iter().find_map(|part| {
            let snippet = part.of(definition)?;
            let range = snippet.part_at(span)?;
            // A browser's lines end in LF.
            let units = |to: usize| snippet.text[..to].replace("\r\n", "\n").encode_utf16().count();
            Some((part, units(range.start), units(range.end)))
        })
    });
    if let Some((part, from, to)) = found {
        value["part"] = part.0.into();
        value["from"] = from.into();
        value["to"] = to.into();
    }
}

/// Findings and figures of a task.
pub fn checked(findings: &[Finding], figures: &TaskAudit, definition: &Definition) -> Value {
    let findings = findings.iter().map(|finding| {
        let mut value = finding.json();
        place(&mut value, &finding.place, Some(definition));
        value
    });
    json!({
        "findings": findings.collect::<Vec<_>>(),
        "rows": figures.rows, "filtered": figures.filtered, "prompts": figures.prompts,
    })
}
