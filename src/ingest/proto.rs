//! `tf.train.Example` on the wire, read without copying a value.
//!
//! ```text
//! Example  { 1: Features { 1: map<string, Feature> } }      a map entry is { 1: key, 2: Feature }
//! Feature  { oneof 1: BytesList { 1: bytes* } | 2: FloatList { 1: float* } | 3: Int64List { 1: int64* } }
//! ```
//!
//! (tensorflow `core/example/example.proto`, `feature.proto`.) Numbers may be packed or not; of two entries with one
//! key, and of two kinds in one `oneof`, the last wins, and a list that comes in pieces is joined, as protobuf's own
//! parsers do. Every length is checked against the bytes that are left, the whole of the message is checked before
//! a value is handed out, and values are slices of the record.

use std::fmt;

/// What is wrong with a message, and at which byte of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    pub at: usize,
    pub what: &'static str,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {} of the record", self.what, self.at)
    }
}

type Result<T> = std::result::Result<T, WireError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bytes,
    Float,
    Int64,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bytes => "bytes_list",
            Kind::Float => "float_list",
            Kind::Int64 => "int64_list",
        }
    }
}

/// One value list. `body` is the Feature message (from where its kind was last set), already checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values<'a> {
    /// `None`: a Feature in which nothing is set, which stands for an empty list of any kind.
    pub kind: Option<Kind>,
    pub count: usize,
    body: &'a [u8],
}

/// Calls `entry` for each feature of the message, in wire order.
pub fn parse<'a>(record: &'a [u8], mut entry: impl FnMut(&'a [u8], Values<'a>)) -> Result<()> {
    let mut example = Fields::new(record, 0);
    while let Some(field) = example.next()? {
        let Some(features) = field.message(1)? else { continue };
        let mut features = Fields::new(features.bytes, features.at);
        while let Some(field) = features.next()? {
            let Some(pair) = field.message(1)? else { continue };
            let (mut key, mut value): (&[u8], Option<Values>) = (&[], None);
            let mut pair = Fields::new(pair.bytes, pair.at);
            while let Some(field) = pair.next()? {
                if let Some(bytes) = field.message(1)? {
                    key = bytes.bytes;
                } else if let Some(feature) = field.message(2)? {
                    if value.is_some() {
                        return Err(WireError { at: feature.at, what: "a map entry with two values" });
                    }
                    value = Some(check_feature(feature)?);
                }
            }
            entry(key, value.unwrap_or(Values { kind: None, count: 0, body: &[] }));
        }
    }
    Ok(())
}

/// Checks a Feature message and counts its values.
fn check_feature<'a>(feature: Block<'a>) -> Result<Values<'a>> {
    let mut values = Values { kind: None, count: 0, body: &[] };
    let mut fields = Fields::new(feature.bytes, feature.at);
    loop {
        let start = fields.position;
        let Some(field) = fields.next()? else { return Ok(values) };
        let kind = match field.number {
            1 => Kind::Bytes,
            2 => Kind::Float,
            3 => Kind::Int64,
            _ => continue,
        };
        let Some(list) = field.message(field.number)? else { continue };
        if values.kind != Some(kind) {
            values = Values { kind: Some(kind), count: 0, body: &feature.bytes[start..] };
        }
        values.count += check_list(kind, list)?;
    }
}

fn check_list(kind: Kind, list: Block<'_>) -> Result<usize> {
    let mut count = 0;
    let mut fields = Fields::new(list.bytes, list.at);
    while let Some(field) = fields.next()? {
        if field.number != 1 {
            continue;
        }
        match (kind, field.payload) {
            (Kind::Bytes, Payload::Bytes(_))
            | (Kind::Float, Payload::Fixed32(_))
            | (Kind::Int64, Payload::Varint(_)) => count += 1,
            (Kind::Float, Payload::Bytes(packed)) => {
                if packed.bytes.len() % 4 != 0 {
                    return Err(WireError { at: packed.at, what: "packed floats whose length is no multiple of 4" });
                }
                count += packed.bytes.len() / 4;
            }
            (Kind::Int64, Payload::Bytes(packed)) => {
                let mut at = 0;
                while at < packed.bytes.len() {
                    varint(packed.bytes, &mut at).map_err(|what| WireError { at: packed.at + at, what })?;
                    count += 1;
                }
            }
            _ => return Err(WireError { at: field.at, what: "a list value of the wrong wire type" }),
        }
    }
    Ok(count)
}

impl<'a> Values<'a> {
    /// The pieces of the list: payloads of field 1 of every list message of this kind.
    fn pieces(self) -> impl Iterator<Item = Payload<'a>> {
        let number = match self.kind {
            Some(Kind::Bytes) => 1,
            Some(Kind::Float) => 2,
            Some(Kind::Int64) => 3,
            None => 0,
        };
        // The message was checked in `parse`, so the errors of `next` cannot come up again; they would end the list.
        let mut outer = Fields::new(self.body, 0);
        std::iter::from_fn(move || outer.next().ok().flatten())
            .filter(move |field| field.number == number)
            .filter_map(|field| match field.payload {
                Payload::Bytes(list) => Some(Fields::new(list.bytes, 0)),
                _ => None,
            })
            .flat_map(|mut list| std::iter::from_fn(move || list.next().ok().flatten()))
            .filter(|field| field.number == 1)
            .map(|field| field.payload)
    }

    /// The values of a bytes list.
    pub fn bytes(self) -> impl Iterator<Item = &'a [u8]> {
        self.pieces().filter_map(|piece| match piece {
            Payload::Bytes(block) => Some(block.bytes),
            _ => None,
        })
    }

    /// The values of a float list.
    pub fn floats(self) -> impl Iterator<Item = f32> {
        self.pieces().flat_map(|piece| {
            let (one, packed) = match piece {
                Payload::Fixed32(value) => (Some(value), &[][..]),
                Payload::Bytes(block) => (None, block.bytes),
                _ => (None, &[][..]),
            };
            let packed = packed.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
            one.into_iter().chain(packed).map(f32::from_bits)
        })
    }

    /// The values of an int64 list.
    pub fn ints(self) -> impl Iterator<Item = i64> {
        self.pieces().flat_map(|piece| {
            let (one, packed) = match piece {
                Payload::Varint(value) => (Some(value), &[][..]),
                Payload::Bytes(block) => (None, block.bytes),
                _ => (None, &[][..]),
            };
            let mut at = 0;
            let rest = std::iter::from_fn(move || if at < packed.len() { varint(packed, &mut at).ok() } else { None });
            one.into_iter().chain(rest).map(|value| value as i64)
        })
    }
}

/// Bytes and where they begin in the record.
#[derive(Clone, Copy)]
struct Block<'a> {
    bytes: &'a [u8],
    at: usize,
}

#[derive(Clone, Copy)]
enum Payload<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(Block<'a>),
}

struct Field<'a> {
    number: u64,
    payload: Payload<'a>,
    at: usize,
}

impl<'a> Field<'a> {
    /// The bytes of a length-delimited field if it has this number; another wire type under it is an error.
    fn message(&self, number: u64) -> Result<Option<Block<'a>>> {
        match self.payload {
            _ if self.number != number => Ok(None),
            Payload::Bytes(block) => Ok(Some(block)),
            _ => Err(WireError { at: self.at, what: "a message field of the wrong wire type" }),
        }
    }
}

/// Iterates over the fields of a message.
struct Fields<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Where `bytes` begins in the record.
    base: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], base: usize) -> Self {
        Fields { bytes, position: 0, base }
    }

    fn next(&mut self) -> Result<Option<Field<'a>>> {
        if self.position >= self.bytes.len() {
            return Ok(None);
        }
        let at = self.base + self.position;
        let fail = |what| WireError { at, what };
        let tag = varint(self.bytes, &mut self.position).map_err(fail)?;
        let number = tag >> 3;
        if number == 0 || number > (1 << 29) - 1 {
            return Err(fail("an impossible field number"));
        }
        let left = self.bytes.len() - self.position;
        let payload = match tag & 7 {
            0 => Payload::Varint(varint(self.bytes, &mut self.position).map_err(fail)?),
            1 if left >= 8 => {
                self.position += 8;
                Payload::Fixed64
            }
            2 => {
                let length = varint(self.bytes, &mut self.position).map_err(fail)?;
                let left = self.bytes.len() - self.position;
                if length > left as u64 {
                    return Err(fail("a length that reaches behind the end"));
                }
                let start = self.position;
                self.position += length as usize;
                Payload::Bytes(Block { bytes: &self.bytes[start..self.position], at: self.base + start })
            }
            5 if left >= 4 => {
                let b = &self.bytes[self.position..];
                self.position += 4;
                Payload::Fixed32(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            1 | 5 => return Err(fail("a number cut short")),
            _ => return Err(fail("an unknown wire type")),
        };
        Ok(Some(Field { number, payload, at }))
    }
}

/// Reads a varint of at most 64 bits and moves `at` behind it.
#[inline]
fn varint(bytes: &[u8], at: &mut usize) -> std::result::Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = bytes.get(*at) else { return Err("a varint cut short") };
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            if shift == 63 && byte > 1 {
                return Err("a varint of more than 64 bits");
            }
            return Ok(value);
        }
    }
    Err("a varint of more than 64 bits")
}
