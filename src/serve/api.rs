//! What the page can ask, and the answers: JSON in, JSON out.
//!
//! | | |
//! | --- | --- |
//! | `GET session` | the tasks that can be looked at |
//! | `POST open` | a task's definition as it is now, part by part |
//! | `POST draft` | what a template of an edited task makes of a row, and what is wrong with the edits |
//! | `POST findings` | what the audit says of an edited task, over a few rows |
//! | `POST checks`, `GET checks`, `POST cancel` | the same over many rows: start, look, give up |
//! | `POST search` | rows that hold a text |
//! | `POST save` | writes the edits to the definition's file |
//! | `POST text` | the file as it would be written |
//! | `POST flag`, `POST unflag`, `GET flags` | prompts to come back to |

use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::bench::{Bench, Edited};
use super::checks::Checks;
use super::messages::message;
use super::rows::RowAsked;
use crate::diag::{Diagnostic, one};

/// Most rows of each split that a run looks at.
const MOST_ROWS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Session,
    Open,
    Draft,
    Findings,
    StartChecks,
    Checks,
    Cancel,
    Search,
    Save,
    Text,
    Flag,
    Unflag,
    Flags,
}

impl Ask {
    /// What is asked by a GET, which changes nothing.
    pub fn get(name: &str) -> Option<Ask> {
        Some(match name {
            "session" => Ask::Session,
            "checks" => Ask::Checks,
            "flags" => Ask::Flags,
            _ => return None,
        })
    }

    pub fn post(name: &str) -> Option<Ask> {
        Some(match name {
            "open" => Ask::Open,
            "draft" => Ask::Draft,
            "findings" => Ask::Findings,
            "checks" => Ask::StartChecks,
            "cancel" => Ask::Cancel,
            "search" => Ask::Search,
            "save" => Ask::Save,
            "text" => Ask::Text,
            "flag" => Ask::Flag,
            "unflag" => Ask::Unflag,
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenAsked {
    task: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DraftAsked {
    edited: Edited,
    template: String,
    row: RowAsked,
    #[serde(default)]
    compare: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChecksAsked {
    edited: Edited,
    rows: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchAsked {
    task: String,
    split: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditedAsked {
    edited: Edited,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlagAsked {
    edited: Edited,
    template: String,
    row: RowAsked,
    note: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnflagAsked {
    id: u64,
}

/// An answer, and the status it is sent with.
pub type Answer = (StatusCode, Value);

/// Answers; `body` is empty for what is asked by a GET.
pub fn answer(bench: &Bench<'_>, checks: &Checks, ask: Ask, body: &[u8]) -> Answer {
    let answered = match ask {
        Ask::Session => Ok(bench.session()),
        Ask::Checks => Ok(checks.progress()),
        Ask::Flags => Ok(json!({ "flags": bench.flags.all() })),
        Ask::Open => parse::<OpenAsked>(body).and_then(|asked| bench.open(&asked.task)),
        Ask::Draft => parse::<DraftAsked>(body).and_then(|asked| {
            bench.draft(&asked.edited, &asked.template, &asked.row, asked.compare).map(|shown| json!(shown))
        }),
        Ask::Findings => {
            parse::<ChecksAsked>(body).and_then(|asked| bench.findings(&asked.edited, asked.rows.min(MOST_ROWS)))
        }
        Ask::StartChecks => parse::<ChecksAsked>(body)
            .map(|asked| json!({ "run": checks.start(asked.edited, asked.rows.min(MOST_ROWS)) })),
        Ask::Cancel => {
            checks.cancel();
            Ok(json!({}))
        }
        Ask::Search => parse::<SearchAsked>(body)
            .and_then(|asked| bench.search(&asked.task, &asked.split, &asked.text).map_err(one)),
        Ask::Save => parse::<EditedAsked>(body).and_then(|EditedAsked { edited }| {
            let saved = bench.definitions.save(&edited.task, &edited.version, &edited.edits)?;
            Ok(json!({ "version": saved.version }))
        }),
        Ask::Text => parse::<EditedAsked>(body).and_then(|asked| bench.texts(&asked.edited)),
        Ask::Flag => parse::<FlagAsked>(body).and_then(|asked| {
            bench.flag(&asked.edited, &asked.template, &asked.row, &asked.note).map(|flag| json!(flag))
        }),
        Ask::Unflag => parse::<UnflagAsked>(body).map(|asked| {
            bench.flags.remove(asked.id);
            json!({})
        }),
    };
    match answered {
        Ok(value) => (StatusCode::OK, value),
        Err(diagnostics) => refused(&diagnostics),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Vec<Diagnostic>> {
    serde_json::from_slice(body).map_err(|e| vec![Diagnostic::error("bad-request", format!("cannot be read: {e}"))])
}

/// An answer that says what is wrong.
pub fn refused(diagnostics: &[Diagnostic]) -> Answer {
    let status = match diagnostics.first().map(|d| d.code) {
        Some("unknown-task" | "unknown-split" | "unknown-row" | "unknown-template" | "unknown-part") => {
            StatusCode::NOT_FOUND
        }
        Some("changed-on-disk" | "bundled-definitions") => StatusCode::CONFLICT,
        Some("outside") => StatusCode::FORBIDDEN,
        Some("busy") => StatusCode::SERVICE_UNAVAILABLE,
        Some("crashed") => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, json!({ "diagnostics": diagnostics.iter().map(|d| message(d, None)).collect::<Vec<_>>() }))
}
