//! How values print: as Python's `str` and `repr`, and as its JSON.

use std::fmt::Write;
use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::{Given, arguments, failed};

/// Lists within lists beyond this are refused: Python gives up at a thousand, and printing takes stack.
const DEEPEST: usize = 500;

/// Python's `str(value)`.
pub fn text(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let mut out = String::new();
            if !value.is_undefined() {
                write_repr(state, value, DEEPEST, &mut out)?;
            }
            Ok(out)
        }
    }
}

/// Python's `repr(value)`.
fn write_repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    let Some(depth) = depth.checked_sub(1) else { return Err(failed("lists are nested too deep to be printed")) };
    // The list may hold itself twice, and its items too: it is paid for before it is written.
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
    match value.kind() {
        ValueKind::String => write_string_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float_text(number)),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut written = 0;
            for item in value.try_iter()? {
                if written > 0 {
                    out.push_str(", ");
                }
                write_repr(state, &item, depth, out)?;
                written += 1;
            }
            if tuple && written == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(state, &key, depth, out)?;
                out.push_str(": ");
                write_repr(state, &value.get_item(&key)?, depth, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A float as Python prints it: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
    } else {
        let plain = number.to_string();
        if plain.contains('.') { plain } else { plain + ".0" }
    }
}

fn write_string_repr(text: &str, out: &mut String) {
    // Double quotes only where that saves escapes.
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                }; // writing to a string does not fail
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` of a character: it escapes what has no shape and all blanks but U+0020.
fn is_printable(c: char) -> bool {
    static UNPRINTABLE: LazyLock<regex::Regex> =
        LazyLock::new(|| regex::Regex::new(r"^[\p{C}\p{Z}]").expect("the pattern is valid"));
    !UNPRINTABLE.is_match(c.encode_utf8(&mut [0; 4]))
}

/// Python's `str.isspace` of a character: Unicode's blanks and the four information separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Python's `text.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Jinja2's `tojson`: sorted keys, ASCII only, safe within HTML.
pub fn to_json(state: &State, value: &Value, rest: Given) -> Result<String, Error> {
    let [indent] = arguments(["indent"], rest)?;
    let indent = indent.map(|i| i.as_usize().filter(|i| *i <= 16).ok_or_else(|| failed("an indent is from 0 to 16")));
    let mut out = String::new();
    write_json(state, value, indent.transpose()?, 0, &mut out)?;
    for (c, escaped) in [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\'', "\\u0027")] {
        if out.contains(c) {
            out = out.replace(c, escaped);
        }
    }
    Ok(out)
}

fn write_json(
    state: &State,
    value: &Value,
    indent: Option<usize>,
    level: usize,
    out: &mut String,
) -> Result<(), Error> {
    if level > DEEPEST {
        return Err(failed("lists are nested too deep to be printed"));
    }
    let blanks = (indent.unwrap_or(0) * level) as u64;
    state.consume_fuel(1 + (blanks + value.as_str().map_or(0, |text| text.len() as u64)) / 16)?;
    let line = |out: &mut String, first: bool, level: usize| {
        if !first {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    };
    let close = |out: &mut String, empty: bool, bracket: char| {
        if let (Some(indent), false) = (indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
        out.push(bracket);
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::String => write_json_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => out.push_str(&match float_text(f64::try_from(value.clone())?) {
            infinite if infinite.ends_with("inf") => infinite.replace("inf", "Infinity"),
            nan if nan == "nan" => "NaN".to_owned(),
            finite => finite,
        }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Seq => {
            out.push('[');
            let mut first = true;
            for item in value.try_iter()? {
                line(out, first, level + 1);
                write_json(state, &item, indent, level + 1, out)?;
                first = false;
            }
            close(out, first, ']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                line(out, i == 0, level + 1);
                match key.as_str() {
                    Some(key) => write_json_text(key, out),
                    None => {
                        let mut name = String::new();
                        write_json(state, key, None, level + 1, &mut name)?;
                        write_json_text(&name, out);
                    }
                }
                out.push_str(": ");
                write_json(state, &value.get_item(key)?, indent, level + 1, out)?;
            }
            close(out, keys.is_empty(), '}');
        }
        _ => return Err(failed(format!("{} has no JSON form", value.kind()))),
    }
    Ok(())
}

fn write_json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}"); // writing to a string does not fail
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (number, printed) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_text(number), printed);
        }
    }
}
