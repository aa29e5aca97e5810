//! The page: one file that needs nothing else, or parts for a server.
//!
//! The scripts under `assets` are modules that name what they import. A server hands them out as they are; a file that
//! opens from disk can import nothing, so there they are put one after the other in the order of [`MODULES`], without
//! their import lines and the word `export`. Names are therefore unique among all modules.
//!
//! The page's own policy lets nothing run and nothing be loaded but this script and this style, by their hashes: what
//! stands in a row stays text.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The page with a mark where style, policy, data and script stand.
pub const HTML: &str = include_str!("assets/page.html");
pub const STYLE: &str = include_str!("assets/page.css");

macro_rules! modules {
    ($($name:literal),+ $(,)?) => { &[$(($name, include_str!(concat!("assets/", $name)))),+] };
}

/// The scripts by name, each after those that it imports.
pub const MODULES: &[(&str, &str)] = modules!(
    "dom.js",
    "data.js",
    "permalink.js",
    "words.js",
    "treemap.js",
    "histogram.js",
    "theme.js",
    "tokens.js",
    "prompts.js",
    "findings.js",
    "overview.js",
    "task.js",
    "search.js",
    "keys.js",
    "report.js",
);

/// The report as one HTML file.
pub fn page(data: &Value) -> String {
    let script = bundle();
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(&script),
        hash(STYLE)
    );
    filled(|mark| match mark {
        "policy" => format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">"),
        "style" => format!("<style>{STYLE}</style>"),
        "data" => data_block(data),
        "script" => format!("<script type=\"module\">{script}</script>"),
        _ => String::new(),
    })
}

/// The report for a server, which hands out style and scripts under `assets/` and states the policy; `more` is added
/// to the scripts.
pub fn served(data: &Value, more: &str) -> String {
    filled(|mark| match mark {
        "style" => "<link rel=\"stylesheet\" href=\"assets/page.css\">".to_owned(),
        "data" => data_block(data),
        "script" => format!("<script type=\"module\" src=\"assets/report.js\"></script>{more}"),
        _ => String::new(),
    })
}

/// The page with something in the place of its marks. What is put in is not looked at again: a row may well hold a mark.
fn filled(put: impl Fn(&str) -> String) -> String {
    let mut page = String::new();
    let mut rest = HTML;
    while let Some((before, after)) = rest.split_once("<!--{") {
        let (mark, after) = after.split_once("}-->").unwrap_or((after, ""));
        page.push_str(before);
        page.push_str(&put(mark));
        rest = after;
    }
    page.push_str(rest);
    page
}

fn data_block(data: &Value) -> String {
    format!("<script type=\"application/json\" id=\"data\">{}</script>", embedded(data))
}

/// All modules as one.
fn bundle() -> String {
    let mut script = String::new();
    for (name, module) in MODULES {
        script.push_str(&format!("\n// ---- {name}\n"));
        for line in module.lines().filter(|line| !line.starts_with("import ")) {
            script.push_str(line.strip_prefix("export ").unwrap_or(line));
            script.push('\n');
        }
    }
    script
}

/// JSON that may stand in a script element: no row can end the element or begin a comment in it, and no old reader of
/// JavaScript finds the end of a line in it.
fn embedded(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// A source expression of a policy: what may run is what has this hash.
fn hash(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text.as_bytes())))
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let sextet = bits >> (18 - 6 * i) & 63;
            text.push(if i <= group.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (bytes, text) in pairs {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn no_row_ends_the_data() {
        let page = page(&serde_json::json!({ "row": "</script><!--{script}--><script>\u{2028}\u{2029}" }));
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(page.contains(r"\u003c/script>\u003c!--{script}-->\u003cscript>\u2028\u2029"));
    }

    #[test]
    fn a_module_imports_only_what_stands_before_it() {
        for (i, (name, module)) in MODULES.iter().enumerate() {
            for line in module.lines().filter(|line| line.starts_with("import ")) {
                let from = line.split("\"./").nth(1).and_then(|l| l.split('"').next());
                let before = MODULES[..i].iter().any(|(other, _)| Some(*other) == from);
                assert!(before && line.ends_with(';'), "{name}: {line}");
            }
        }
    }
}
