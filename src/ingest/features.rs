//! From the flat lists of a `tf.train.Example` back to the tree that `features.json` describes.
//!
//! TFDS stores a row as one list per leaf of the feature tree, under the leaf's path joined by `/`:
//!
//! - under no sequence: the tensor's values, row-major;
//! - under one: the values of all items, one after the other;
//! - under two or more: `<path>/ragged_flat_values`, and for each level but the outermost the item counts,
//!   `<path>/ragged_row_lengths_0` being those of the outermost list's items.
//!
//! (tensorflow_datasets 4.9, `core/example_serializer.py`, `core/example_parser.py`.) A [`Decoder`] is built once
//! from a feature tree, for the features that are wanted; decoding then looks up each list by its key and borrows
//! text from the record.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Read;

use crate::diag::listing;
use crate::example::Datum;
use crate::schema::{Dtype, Encoding, Feature, Tensor};

use super::proto::{self, Kind, Values};
use super::record::RECORD_LIMIT;

/// Why a record is not a row of its corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    pub code: &'static str,
    pub message: String,
    pub expected: String,
    pub found: String,
    pub help: &'static str,
}

/// What TFDS would let pass: the row decodes, but a value in it cannot mean what its feature says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oddity {
    pub code: &'static str,
    /// Path of the feature.
    pub feature: String,
    /// What is wrong with it, as the end of a sentence.
    pub what: &'static str,
    pub expected: String,
    pub found: String,
}

/// Decodes rows of one corpus.
#[derive(Debug)]
pub struct Decoder<'f> {
    root: Node<'f>,
    /// Sorted by key: the lists to look for, and their slot.
    keys: Vec<(Vec<u8>, usize)>,
}

#[derive(Debug)]
enum Node<'f> {
    Struct(Vec<(&'f str, Node<'f>)>),
    /// The struct of lists below it is turned into a list of structs, `depth` lists down.
    Rows {
        path: String,
        depth: usize,
        node: Box<Node<'f>>,
    },
    Leaf(Leaf),
}

#[derive(Debug)]
struct Leaf {
    path: String,
    /// Lengths of the sequences above it, outermost first; `None` is any length.
    levels: Vec<Option<u64>>,
    tensor: Tensor,
    /// For a label: its number of classes.
    classes: Option<u64>,
    values: usize,
    /// Slots of `ragged_row_lengths_0`, `_1`, …
    row_lengths: Vec<usize>,
}

impl<'f> Decoder<'f> {
    /// A decoder for the top-level features in `wanted`, or for all of them.
    ///
    /// # Errors
    /// The path and class of a wanted feature that is no text and no number.
    pub fn new(features: &'f Feature, wanted: Option<&BTreeSet<String>>) -> Result<Self, (String, String)> {
        let mut keys = Vec::new();
        let root = match features {
            Feature::Struct(fields) => Node::Struct(
                fields
                    .iter()
                    .filter(|(name, _)| wanted.is_none_or(|w| w.contains(name)))
                    .map(|(name, feature)| Ok((name.as_str(), lower(feature, name.clone(), &[], &mut keys)?)))
                    .collect::<Result<_, (String, String)>>()?,
            ),
            other => lower(other, String::new(), &[], &mut keys)?,
        };
        keys.sort();
        Ok(Decoder { root, keys })
    }

    /// Decodes one record; odd values are decoded as they are and listed.
    pub fn decode<'r>(&self, record: &'r [u8], oddities: &mut Vec<Oddity>) -> Result<Datum<'r>, RowError>
    where
        'f: 'r,
    {
        let mut slots: Vec<Option<Values<'r>>> = vec![None; self.keys.len()];
        proto::parse(record, |key, values| {
            if let Ok(i) = self.keys.binary_search_by(|(k, _)| k.as_slice().cmp(key)) {
                // A Feature with no kind set stands for no value at all.
                slots[self.keys[i].1] = Some(values).filter(|v| v.kind.is_some());
            }
        })
        .map_err(|e| RowError {
            code: "not-an-example",
            message: "a record is not a tf.train.Example".into(),
            expected: "a protobuf message Example { Features { map<string, Feature> } }".into(),
            found: e.to_string(),
            help: "if its file has checksums, the record was written like this, and not by TFDS; export the corpus again",
        })?;
        node(&self.root, &slots, oddities).map_err(|error| match error.code {
            MISSING => RowError { found: format!("a record with {}", keys_of(record)), ..error },
            _ => error,
        })
    }
}

const MISSING: &str = "feature-missing";

/// The keys of a record, for a message.
fn keys_of(record: &[u8]) -> String {
    let mut keys = Vec::new();
    // The record has been parsed before.
    let _ = proto::parse(record, |key, _| keys.push(String::from_utf8_lossy(key).into_owned()));
    keys.sort();
    listing(keys.iter().map(String::as_str))
}

fn lower<'f>(
    feature: &'f Feature,
    path: String,
    levels: &[Option<u64>],
    keys: &mut Vec<(Vec<u8>, usize)>,
) -> Result<Node<'f>, (String, String)> {
    Ok(match feature {
        Feature::Struct(fields) => Node::Struct(
            fields
                .iter()
                .map(|(name, feature)| Ok((name.as_str(), lower(feature, format!("{path}/{name}"), levels, keys)?)))
                .collect::<Result<_, (String, String)>>()?,
        ),
        Feature::Sequence { item, length } => lower(item, path, &[levels, &[*length]].concat(), keys)?,
        Feature::Dataset { item, length } => {
            let node = lower(item, path.clone(), &[levels, &[*length]].concat(), keys)?;
            if matches!(**item, Feature::Struct(_)) {
                Node::Rows { path, depth: levels.len(), node: Box::new(node) }
            } else {
                node
            }
        }
        Feature::Tensor(tensor) => Node::Leaf(leaf(path, levels, tensor.clone(), None, keys)),
        Feature::Label { classes, .. } => {
            let tensor = Tensor { dtype: Dtype::Int64, shape: Vec::new(), encoding: Encoding::None, optional: false };
            Node::Leaf(leaf(path, levels, tensor, Some(*classes), keys))
        }
        Feature::Opaque { class } => return Err((path, class.clone())),
    })
}

fn leaf(
    path: String,
    levels: &[Option<u64>],
    tensor: Tensor,
    classes: Option<u64>,
    keys: &mut Vec<(Vec<u8>, usize)>,
) -> Leaf {
    let mut slot = |key: String| {
        keys.push((key.into_bytes(), keys.len()));
        keys.len() - 1
    };
    let ragged = levels.len() >= 2;
    let values = slot(if ragged { format!("{path}/ragged_flat_values") } else { path.clone() });
    let row_lengths = (0..if ragged { levels.len() - 1 } else { 0 })
        .map(|i| slot(format!("{path}/ragged_row_lengths_{i}")))
        .collect();
    Leaf { path, levels: levels.to_vec(), tensor, classes, values, row_lengths }
}

fn node<'r, 'f: 'r>(
    node_: &Node<'f>,
    slots: &[Option<Values<'r>>],
    oddities: &mut Vec<Oddity>,
) -> Result<Datum<'r>, RowError> {
    match node_ {
        Node::Struct(fields) => Ok(Datum::Struct(
            fields
                .iter()
                .map(|(name, child)| Ok((*name, node(child, slots, oddities)?)))
                .collect::<Result<_, RowError>>()?,
        )),
        Node::Rows { path, depth, node: child } => transpose(path, node(child, slots, oddities)?, *depth),
        Node::Leaf(leaf) => leaf.decode(slots, oddities),
    }
}

/// Turns a struct whose leaves are lists into a list of structs, `depth` lists down.
fn transpose<'r>(path: &str, datum: Datum<'r>, depth: usize) -> Result<Datum<'r>, RowError> {
    let Datum::Struct(fields) = datum else { return Ok(datum) };
    let mut rows: Option<Vec<Vec<(&str, Datum)>>> = None;
    for (name, column) in fields {
        // A struct inside a dataset is a struct of lists itself: turn it first.
        let column = if matches!(column, Datum::Struct(_)) { transpose(path, column, 0)? } else { column };
        let Datum::List(items) = column else { continue };
        let rows = rows.get_or_insert_with(|| items.iter().map(|_| Vec::new()).collect());
        if rows.len() != items.len() {
            return Err(RowError {
                code: "sequence-lengths",
                message: format!("the features of Dataset `{path}` have lists of different lengths"),
                expected: format!("a list of length {} for `{path}/{name}`, as for those before it", rows.len()),
                found: format!("length {}", items.len()),
                help: "the record was not written by TFDS; export the corpus again",
            });
        }
        for (row, item) in rows.iter_mut().zip(items) {
            row.push((name, item));
        }
    }
    let rows = rows.unwrap_or_default().into_iter().map(Datum::Struct);
    if depth == 0 {
        Ok(Datum::List(rows.collect()))
    } else {
        rows.map(|r| transpose(path, r, depth - 1)).collect::<Result<_, _>>().map(Datum::List)
    }
}

impl Leaf {
    /// The kind of list in which this leaf's values are stored.
    fn kind(&self) -> Kind {
        match (self.tensor.encoding, self.tensor.dtype) {
            (Encoding::None, Dtype::Float16 | Dtype::Float32 | Dtype::Float64) => Kind::Float,
            (Encoding::None, dtype) if dtype != Dtype::String => Kind::Int64,
            _ => Kind::Bytes,
        }
    }

    fn decode<'r>(&self, slots: &[Option<Values<'r>>], oddities: &mut Vec<Oddity>) -> Result<Datum<'r>, RowError> {
        let Some(values) = slots[self.values] else {
            // Lists of empty lists have lengths and no values.
            let has_lengths = self.row_lengths.iter().any(|&slot| slots[slot].is_some());
            return if has_lengths { self.ragged(Vec::new(), slots) } else { self.absent() };
        };
        let kind = self.kind();
        if values.kind != Some(kind) {
            return Err(RowError {
                code: "feature-dtype",
                message: format!("feature `{}` is not stored as features.json says", self.path),
                expected: format!("a list of kind {}, as {} is stored", kind.name(), self.tensor.dtype.name()),
                found: format!("one of kind {}", values.kind.map_or("none", Kind::name)),
                help: "features.json and the records are from different exports; export the corpus again",
            });
        }
        let mut items = self.values(values, oddities)?.into_iter();
        match self.levels.len() {
            0 => self.tensor(&mut items, values.count),
            1 => {
                let list = self.list(items, values.count)?;
                if let Some(length) = self.levels[0]
                    && list.len() as u64 != length
                {
                    return Err(self.count_error(format!("{length} items"), list.len()));
                }
                Ok(Datum::List(list))
            }
            _ => self.ragged(self.list(items, values.count)?, slots),
        }
    }

    /// All values of the list, in order.
    fn values<'r>(&self, values: Values<'r>, oddities: &mut Vec<Oddity>) -> Result<Vec<Datum<'r>>, RowError> {
        let dtype = self.tensor.dtype;
        Ok(match (self.tensor.encoding, self.kind()) {
            (Encoding::None, Kind::Float) => values.floats().map(|v| float(dtype, v)).collect(),
            (Encoding::None, Kind::Int64) => {
                let ints: Vec<Datum> = values.ints().map(|v| int(dtype, v)).collect();
                if let Some(classes) = self.classes {
                    for value in values.ints().filter(|v| !(-1..classes as i64).contains(v)) {
                        oddities.push(Oddity {
                            code: "label-out-of-range",
                            feature: self.path.clone(),
                            what: "holds a class that it does not have",
                            expected: format!("a class from 0 to {}, or -1 for unknown", classes as i64 - 1),
                            found: value.to_string(),
                        });
                    }
                }
                ints
            }
            (Encoding::None, Kind::Bytes) => values.bytes().map(|bytes| self.text(bytes, oddities)).collect(),
            (encoding, _) => {
                let mut all = Vec::new();
                for buffer in values.bytes() {
                    self.buffer(encoding, buffer, &mut all)?;
                }
                all
            }
        })
    }

    fn text<'r>(&self, bytes: &'r [u8], oddities: &mut Vec<Oddity>) -> Datum<'r> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Datum::Text(Cow::Borrowed(text)),
            Err(e) => {
                oddities.push(Oddity {
                    code: "invalid-utf8",
                    feature: self.path.clone(),
                    what: "holds a string that is not UTF-8",
                    expected: "UTF-8".into(),
                    found: format!("an invalid sequence at byte {} of {}", e.valid_up_to(), bytes.len()),
                });
                Datum::Bytes(Cow::Borrowed(bytes))
            }
        }
    }

    /// Unpacks a little-endian buffer, compressed or not; its size is known from the shape.
    fn buffer(&self, encoding: Encoding, buffer: &[u8], out: &mut Vec<Datum<'_>>) -> Result<(), RowError> {
        let dtype = self.tensor.dtype;
        // `schema` admits encodings for numbers of a fixed shape only.
        let width = dtype.width().unwrap_or(1);
        let size = self.tensor.shape.iter().map(|d| d.unwrap_or(0)).product::<u64>().saturating_mul(width as u64);
        // Zlib makes much of little: a sequence of such tensors is not to outgrow what a record may hold.
        if (out.len() * width) as u64 + size > RECORD_LIMIT as u64 {
            return Err(self.count_error(format!("at most {RECORD_LIMIT} bytes, decompressed"), "more"));
        }
        let unpacked;
        let bytes = if encoding == Encoding::Zlib {
            let mut data = Vec::new();
            // One byte more than expected is enough to see that there are too many.
            let read = flate2::read::ZlibDecoder::new(buffer).take(size + 1).read_to_end(&mut data);
            if let Err(e) = read {
                return Err(self.count_error(format!("{size} bytes of zlib data"), e));
            }
            unpacked = data;
            &unpacked[..]
        } else {
            buffer
        };
        if bytes.len() as u64 != size {
            return Err(self.count_error(format!("a buffer of {size} bytes"), format!("{} bytes", bytes.len())));
        }
        out.extend(bytes.chunks_exact(width).map(|chunk| from_le(dtype, chunk)));
        Ok(())
    }

    /// One tensor out of the next values; `count` is how many there are, which decides an unknown dimension.
    fn tensor<'r>(&self, items: &mut impl Iterator<Item = Datum<'r>>, count: usize) -> Result<Datum<'r>, RowError> {
        let count = if self.tensor.encoding == Encoding::None { count } else { self.known() as usize * count };
        let known = self.known();
        let shape: Vec<u64> =
            self.tensor.shape.iter().map(|d| d.unwrap_or((count as u64).checked_div(known).unwrap_or(0))).collect();
        if shape.iter().product::<u64>() != count as u64 {
            return Err(self.count_error(self.expected_values(), count));
        }
        Ok(shaped(&shape, items))
    }

    /// As many tensors as the values make.
    fn list<'r>(&self, mut items: impl Iterator<Item = Datum<'r>>, count: usize) -> Result<Vec<Datum<'r>>, RowError> {
        let each = self.known();
        let count = if self.tensor.encoding == Encoding::None { count } else { each as usize * count };
        if self.tensor.shape.contains(&None) || each == 0 || !(count as u64).is_multiple_of(each) {
            return Err(self.count_error(format!("a multiple of {each} values"), count));
        }
        let shape: Vec<u64> = self.tensor.shape.iter().flatten().copied().collect();
        Ok((0..count as u64 / each).map(|_| shaped(&shape, &mut items)).collect())
    }

    /// Groups the flat items by the row lengths, innermost first.
    fn ragged<'r>(&self, flat: Vec<Datum<'r>>, slots: &[Option<Values<'r>>]) -> Result<Datum<'r>, RowError> {
        let mut items = flat;
        for &slot in self.row_lengths.iter().rev() {
            let lengths: Vec<i64> = match slots[slot] {
                Some(values) if values.kind == Some(Kind::Int64) => values.ints().collect(),
                Some(_) => return Err(self.count_error("row lengths as an int64_list".into(), "another kind of list")),
                None => Vec::new(),
            };
            let total: i128 = lengths.iter().map(|&n| i128::from(n)).sum();
            if total != items.len() as i128 || lengths.iter().any(|&n| n < 0) {
                return Err(RowError {
                    code: "ragged-lengths",
                    message: format!("the row lengths of feature `{}` do not fit its values", self.path),
                    expected: format!("lengths that add up to {} values", items.len()),
                    found: format!("{} lengths that add up to {total}", lengths.len()),
                    help: "the record is damaged or was written by another program; export the corpus again",
                });
            }
            let mut rest = items.into_iter();
            items = lengths.iter().map(|&n| Datum::List(rest.by_ref().take(n as usize).collect())).collect();
        }
        Ok(Datum::List(items))
    }

    /// What a row without this leaf's list has.
    fn absent<'r>(&self) -> Result<Datum<'r>, RowError> {
        match self.levels.first() {
            Some(None) => Ok(Datum::List(Vec::new())),
            Some(Some(0)) => Ok(Datum::List(Vec::new())),
            Some(Some(n)) if self.levels.len() == 1 => Err(self.missing(&format!("a list of {n} items"))),
            Some(Some(_)) => Ok(Datum::List(Vec::new())), // ragged lists are read whatever their declared length
            None if self.tensor.optional => {
                let shape: Vec<u64> = self.tensor.shape.iter().map(|d| d.unwrap_or(0)).collect();
                Ok(shaped(&shape, &mut std::iter::repeat_with(|| minimum(self.tensor.dtype))))
            }
            // A tensor with an unknown dimension is stored as a list, which TFDS leaves out when it is empty.
            None if self.tensor.shape.first() == Some(&None) => Ok(Datum::List(Vec::new())),
            None => Err(self.missing(&self.expected_values())),
        }
    }

    fn missing(&self, expected: &str) -> RowError {
        RowError {
            code: MISSING,
            message: format!("a record lacks feature `{}`", self.path),
            expected: format!("{expected} under the key `{}`", self.path),
            found: "a record without it".into(), // with what, only `decode` knows
            help: "features.json and the records are from different exports, or the record was cut; export the corpus again",
        }
    }

    /// Values of one tensor, unknown dimensions counted as one.
    fn known(&self) -> u64 {
        self.tensor.shape.iter().flatten().fold(1, |n, d| n.saturating_mul(*d))
    }

    fn expected_values(&self) -> String {
        match (self.tensor.shape.is_empty(), self.tensor.shape.contains(&None)) {
            (true, _) => "one value".into(),
            (_, false) => format!("{} values", self.known()),
            (_, true) => format!("a multiple of {} values", self.known()),
        }
    }

    fn count_error(&self, expected: String, found: impl std::fmt::Display) -> RowError {
        RowError {
            code: "feature-values",
            message: format!("feature `{}` does not hold what its shape says", self.path),
            expected,
            found: found.to_string(),
            help: "features.json and the records are from different exports; export the corpus again",
        }
    }
}

/// Nests the next values by `shape`, row-major.
fn shaped<'r>(shape: &[u64], items: &mut impl Iterator<Item = Datum<'r>>) -> Datum<'r> {
    match shape.split_first() {
        // The callers have counted the values.
        None => items.next().unwrap_or(Datum::Int(0)),
        Some((&n, rest)) => Datum::List((0..n).map(|_| shaped(rest, items)).collect()),
    }
}

/// Stored as int64; cast to the declared type as `tf.cast` does, by wrapping.
fn int<'r>(dtype: Dtype, value: i64) -> Datum<'r> {
    match dtype {
        Dtype::Bool => Datum::Bool(value != 0),
        Dtype::Int8 => Datum::Int((value as i8).into()),
        Dtype::Int16 => Datum::Int((value as i16).into()),
        Dtype::Int32 => Datum::Int((value as i32).into()),
        Dtype::UInt8 => Datum::Int((value as u8).into()),
        Dtype::UInt16 => Datum::Int((value as u16).into()),
        Dtype::UInt32 => Datum::Int((value as u32).into()),
        Dtype::UInt64 => Datum::UInt(value as u64),
        _ => Datum::Int(value),
    }
}

/// Stored as float32, whatever was declared.
fn float<'r>(dtype: Dtype, value: f32) -> Datum<'r> {
    match dtype {
        Dtype::Float16 => Datum::F16(half::f16::from_f32(value).to_bits()),
        Dtype::Float64 => Datum::F64(value.into()),
        _ => Datum::F32(value),
    }
}

fn from_le<'r>(dtype: Dtype, chunk: &[u8]) -> Datum<'r> {
    let mut bytes = [0u8; 8];
    bytes[..chunk.len()].copy_from_slice(chunk);
    let bits = u64::from_le_bytes(bytes);
    match dtype {
        Dtype::Float16 => Datum::F16(bits as u16),
        Dtype::Float32 => Datum::F32(f32::from_bits(bits as u32)),
        Dtype::Float64 => Datum::F64(f64::from_bits(bits)),
        other => int(other, bits as i64),
    }
}

/// What TFDS puts in the place of an optional value that is not there.
fn minimum<'r>(dtype: Dtype) -> Datum<'r> {
    match dtype {
        Dtype::String => Datum::Text(Cow::Borrowed("")),
        Dtype::Bool => Datum::Bool(false),
        Dtype::Int8 => Datum::Int(i8::MIN.into()),
        Dtype::Int16 => Datum::Int(i16::MIN.into()),
        Dtype::Int32 => Datum::Int(i32::MIN.into()),
        Dtype::Int64 => Datum::Int(i64::MIN),
        Dtype::UInt8 | Dtype::UInt16 | Dtype::UInt32 => Datum::Int(0),
        Dtype::UInt64 => Datum::UInt(0),
        Dtype::Float16 => Datum::F16(half::f16::MIN.to_bits()),
        Dtype::Float32 => Datum::F32(f32::MIN),
        Dtype::Float64 => Datum::F64(f64::MIN),
    }
}
