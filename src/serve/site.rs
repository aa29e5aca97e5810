//! The files of the page: those of the report, and the editor's.

use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::Value;

use crate::preview::page;

const EDITOR: &str = include_str!("assets/edit.html");

const STYLES: &[(&str, &str)] = &[("page.css", page::STYLE), ("edit.css", include_str!("assets/edit.css"))];

macro_rules! modules {
    ($($name:literal),+ $(,)?) => { &[$(($name, include_str!(concat!("assets/", $name)))),+] };
}

/// The scripts that a report has no use for.
const MODULES: &[(&str, &str)] =
    modules!("api.js", "edit.js", "edit-link.js", "editor.js", "flags.js", "rows.js", "source.js", "run.js");

/// The report with its data.
pub struct Site {
    page: String,
}

impl Site {
    pub fn new(report: &Value) -> Site {
        Site { page: page::served(report, "<script type=\"module\" src=\"assets/edit-link.js\"></script>") }
    }

    pub fn page(&self) -> Html<String> {
        Html(self.page.clone())
    }
}

pub fn editor() -> Html<&'static str> {
    Html(EDITOR)
}

/// A style or a script by its name.
pub fn asset(name: &str) -> Response {
    let of = |files: &[(&str, &'static str)]| files.iter().find(|(file, _)| *file == name).map(|(_, text)| *text);
    let (kind, text) = match (of(STYLES), of(page::MODULES).or_else(|| of(MODULES))) {
        (Some(style), _) => ("text/css; charset=utf-8", style),
        (None, Some(script)) => ("text/javascript; charset=utf-8", script),
        (None, None) => return StatusCode::NOT_FOUND.into_response(),
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
