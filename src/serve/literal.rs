//! Strings of a TOML file, exchanged one by one: every other byte of the file stays as it is.
//!
//! A new text is quoted as the old one was, as far as that way of quoting can say it, so that a template that is
//! written over several lines stays so.

use std::ops::Range;

/// The file with other literals in place of those at `edits`, which do not overlap.
pub fn splice(file: &str, edits: &[(Range<usize>, String)]) -> String {
    let mut edits: Vec<_> = edits.iter().collect();
    edits.sort_by_key(|(range, _)| range.start);
    let mut text = String::with_capacity(file.len());
    let mut from = 0;
    for (range, literal) in edits {
        text.push_str(&file[from..range.start]);
        text.push_str(literal);
        from = range.end;
    }
    text.push_str(&file[from..]);
    text
}

/// A literal for `text` in the manner of `old`, which is one. Where the lines of the old one end in CR LF, as they do in
/// all of such a file, so do those of the new one; TOML hands them on as they are.
pub fn literal(text: &str, old: &str) -> String {
    let line = if old.contains("\r\n") { "\r\n" } else { "\n" };
    let several_lines = text.contains('\n');
    let plain = !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
    // Quotation marks at the end would run into the closing ones.
    let raw_lines = plain && !text.contains("'''") && !text.ends_with('\'');
    let with_lines = |quotes: &str, body: &str| format!("{quotes}{line}{}{quotes}", body.replace('\n', line));
    match old {
        _ if old.starts_with("'''") && raw_lines => {
            // Where the text began on the line of the quotation marks it still does, unless TOML would drop its first
            // line break there.
            let beside = !old[3..].starts_with(['\n', '\r']) && !text.starts_with('\n');
            if beside { format!("'''{}'''", text.replace('\n', line)) } else { with_lines("'''", text) }
        }
        _ if old.starts_with("\"\"\"") => with_lines("\"\"\"", &escaped(text, true)),
        _ if old.starts_with('\'') && plain && !several_lines && !text.contains('\'') => format!("'{text}'"),
        _ if several_lines && raw_lines => with_lines("'''", text),
        _ => format!("\"{}\"", escaped(text, false)),
    }
}

/// A text for the inside of a basic string; line breaks are left alone where it has several lines.
fn escaped(text: &str, several_lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' if several_lines => out.push('\n'),
            '\t' if several_lines => out.push('\t'),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, old: &str, expected: &str) {
        assert_eq!(literal(text, old), expected, "{text:?} in place of {old}");
    }

    #[test]
    fn a_text_is_quoted_as_the_old_one_was() {
        check("a", "'b'", "'a'");
        check("a", "\"b\"", "\"a\"");
        check("it's", "'b'", "\"it's\"");
        check("a\nb", "'b'", "'''\na\nb'''");
        check("a\nb", "'''\nc'''", "'''\na\nb'''");
        check("a\nb", "'''c'''", "'''a\nb'''");
        check("\na", "'''c'''", "'''\n\na'''");
        check("a\\b\n\"c\"", "\"\"\"\nd\"\"\"", "\"\"\"\na\\\\b\n\\\"c\\\"\"\"\"");
        check("a'''b", "'''c'''", "\"a'''b\"");
        check("a\u{1b}", "'c'", "\"a\\u001b\"");
        check("a\nb", "'''\r\nc'''", "'''\r\na\r\nb'''");
    }

    proptest! {
        #[test]
        fn toml_reads_what_was_written(text in "(\\PC|[\n\r\t'\"\\\\\u{0}\u{85}]){0,12}", style in 0..5usize, crlf: bool) {
            let old = ["'b'", "\"b\"", "'''\nb'''", "'''b'''", "\"\"\"\nb\"\"\""][style];
            let line = if crlf { "\r\n" } else { "\n" };
            let old = old.replace('\n', line);
            let file = format!("a = 1 # x{line}k = {old} # y{line}b = 2{line}");
            let at = file.find(&old).unwrap();
            let new = splice(&file, &[(at..at + old.len(), literal(&text, &old))]);
            let read: toml::Table = toml::from_str(&new).map_err(|e| TestCaseError::fail(format!("{new:?}: {e}")))?;
            let lines = |text: &str| if old.contains("\r\n") { text.replace("\r\n", "\n") } else { text.to_owned() };
            prop_assert_eq!(lines(read["k"].as_str().unwrap()), lines(&text));
            prop_assert!(new.starts_with(&file[..at]) && new.ends_with(&file[at + old.len()..]));
        }
    }
}
