//! What a record is: one decoded row of a TFDS split, and the name by which every later phase knows it.

use std::borrow::Cow;

/// Names one source example, wherever it ends up: the part that a `Span` plays in a compiler.
///
/// `corpus` and `split` count within a [`crate::plan::Plan`]; `index` is the row's place in the split, shards in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExampleId {
    pub corpus: u32,
    pub split: u32,
    pub index: u64,
}

/// A decoded value. Text and bytes borrow from the record, names from the feature tree.
///
/// Floating point numbers keep the width their feature declares, because the canonical form shows their bits;
/// TFDS stores all of them as 32-bit floats, so an `F64` is a widened one.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum<'a> {
    Bool(bool),
    Int(i64),
    UInt(u64),
    /// IEEE 754 binary16, as its bits.
    F16(u16),
    F32(f32),
    F64(f64),
    Text(Cow<'a, str>),
    /// A string that is not UTF-8: TFDS does not tell text from bytes, and checks neither when it writes.
    Bytes(Cow<'a, [u8]>),
    List(Vec<Datum<'a>>),
    Struct(Vec<(&'a str, Datum<'a>)>),
}

impl Datum<'_> {
    /// Appends the canonical JSON form: keys sorted, no blanks, floats as their bits, bytes that are not UTF-8 as
    /// `{"$b64": …}`. Two readers that agree on it agree on every bit of the row.
    pub fn write_canonical(&self, out: &mut String) {
        match self {
            Datum::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Datum::Int(value) => out.push_str(&value.to_string()),
            Datum::UInt(value) => out.push_str(&value.to_string()),
            Datum::F16(bits) => out.push_str(&format!("\"f16:{bits:04x}\"")),
            Datum::F32(value) => out.push_str(&format!("\"f32:{:08x}\"", value.to_bits())),
            Datum::F64(value) => out.push_str(&format!("\"f64:{:016x}\"", value.to_bits())),
            Datum::Text(text) => write_json_string(text, out),
            Datum::Bytes(bytes) => {
                out.push_str("{\"$b64\":\"");
                write_base64(bytes, out);
                out.push_str("\"}");
            }
            Datum::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write_canonical(out);
                }
                out.push(']');
            }
            Datum::Struct(fields) => {
                let mut order: Vec<usize> = (0..fields.len()).collect();
                order.sort_by_key(|&i| fields[i].0);
                out.push('{');
                for (n, &i) in order.iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    write_json_string(fields[i].0, out);
                    out.push(':');
                    fields[i].1.write_canonical(out);
                }
                out.push('}');
            }
        }
    }
}

/// Escapes only what JSON demands; everything else stays UTF-8.
fn write_json_string(text: &str, out: &mut String) {
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
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |acc, &b| acc << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (group >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= chunk.len() { ALPHABET[sextet] as char } else { '=' });
        }
    }
}
