use std::borrow::Cow;
use std::io::Write;

use flanc::example::Datum;
use flanc::ingest::features::Decoder;
use flanc::schema::{Dtype, Encoding, Feature, Tensor};
use proptest::prelude::*;
use prost::Message;

use super::example::{BytesList, Entry, Example, FloatList, Int64List, Kind};

/// A row as a user of TFDS writes it: sequences and datasets of structs are lists of structs.
#[derive(Clone, Debug)]
enum Row {
    /// The values of a tensor, row-major.
    Values(Vec<Scalar>),
    List(Vec<Row>),
    Struct(Vec<Row>),
    /// An optional tensor that the row lacks.
    Missing,
}

#[derive(Clone, Debug)]
enum Scalar {
    Int(i64),
    Float(f32),
    Bytes(Vec<u8>),
    /// The little-endian bytes of a value in an encoded tensor.
    Raw(Vec<u8>),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rows of random trees, encoded as TFDS does it, are decoded to what went in.
    #[test]
    fn rows_come_back(
        (tree, row) in tree().prop_flat_map(|tree| (Just(tree.clone()), row(&tree))),
        order in any::<u64>(),
        left_out in any::<bool>(),
    ) {
        let mut entries = Vec::new();
        encode(&tree, "", 0, &row, left_out, &mut entries);
        let turns = order as usize % entries.len().max(1); // the order of the entries means nothing
        entries.rotate_left(turns);
        let record = Example::new(entries).encode_to_vec();
        let decoder = Decoder::new(&tree, None).unwrap();
        let mut oddities = Vec::new();
        let found = decoder.decode(&record, &mut oddities);
        let found = found.unwrap_or_else(|error| panic!("{error:?}\n{tree:?}\n{row:?}"));
        let (found, expected) = (canonical(&found), canonical(&decoded(&tree, 0, &row)));
        prop_assert_eq!(&found, &expected, "{:?}", tree);
        prop_assert_eq!(oddities.iter().any(|o| o.code == "invalid-utf8"), found.contains("$b64"));
    }

    /// A record of another corpus is an error or a row, and nothing worse.
    #[test]
    fn records_of_other_trees_do_no_harm(
        (tree, row) in tree().prop_flat_map(|tree| (Just(tree.clone()), row(&tree))),
        other in tree(),
    ) {
        let mut entries = Vec::new();
        encode(&tree, "", 0, &row, false, &mut entries);
        let record = Example::new(entries).encode_to_vec();
        let decoder = Decoder::new(&other, None).unwrap();
        if let Err(error) = decoder.decode(&record, &mut Vec::new()) {
            prop_assert!(!error.expected.is_empty() && !error.found.is_empty() && error.message.contains('`'), "{:?}", error);
        }
    }
}

fn canonical(datum: &Datum<'_>) -> String {
    let mut text = String::new();
    datum.write_canonical(&mut text);
    text
}

// ---- Trees ------------------------------------------------------------------------------------------------------------

fn tree() -> impl Strategy<Value = Feature> {
    let leaf =
        prop_oneof![4 => tensor(), 1 => (1..9u64).prop_map(|classes| Feature::Label { classes, names: Vec::new() })];
    let inner = leaf.prop_recursive(4, 12, 3, |inner| {
        let length = prop::option::weighted(0.2, 0..3u64);
        prop_oneof![
            2 => (inner.clone(), length.clone()).prop_map(|(item, length)| Feature::Sequence { item: Box::new(item), length }),
            1 => (structure(inner.clone()), length).prop_map(|(item, length)| Feature::Dataset { item: Box::new(item), length }),
            1 => structure(inner),
        ]
        // Deeper than four lists nothing is known to be written, and a tensor of open shape stands under none.
        .prop_filter("too deep", |tree| is_usual(tree, 0))
    });
    structure(inner)
}

fn structure(inner: impl Strategy<Value = Feature>) -> impl Strategy<Value = Feature> {
    prop::collection::vec(inner, 1..4).prop_map(|features| {
        Feature::Struct(["a", "b c", "d-e"].iter().map(|n| (*n).to_owned()).zip(features).collect())
    })
}

fn tensor() -> impl Strategy<Value = Feature> {
    let dtypes = [
        Dtype::Bool,
        Dtype::Int8,
        Dtype::Int16,
        Dtype::Int32,
        Dtype::Int64,
        Dtype::UInt8,
        Dtype::UInt16,
        Dtype::UInt32,
        Dtype::UInt64,
        Dtype::Float16,
        Dtype::Float32,
        Dtype::Float64,
        Dtype::String,
        Dtype::String,
        Dtype::String,
    ];
    let encodings = [Encoding::None, Encoding::None, Encoding::Bytes, Encoding::Zlib];
    let shape = prop_oneof![4 => Just(vec![]), 2 => prop::collection::vec((1..4u64).prop_map(Some), 1..3)];
    let open = prop_oneof![Just(vec![None]), Just(vec![None, Some(2)]), Just(vec![Some(2), None])];
    prop_oneof![
        6 => (prop::sample::select(dtypes.to_vec()), shape, prop::sample::select(encodings.to_vec()), prop::bool::weighted(0.2)),
        1 => (prop::sample::select(dtypes.to_vec()), open, Just(Encoding::None), Just(false)),
    ]
    .prop_map(|(dtype, shape, encoding, optional)| {
        let encoding = if dtype == Dtype::String { Encoding::None } else { encoding };
        Feature::Tensor(Tensor { dtype, shape, encoding, optional })
    })
}

fn is_usual(tree: &Feature, lists: usize) -> bool {
    match tree {
        Feature::Struct(fields) => fields.iter().all(|(_, field)| is_usual(field, lists)),
        Feature::Sequence { item, .. } | Feature::Dataset { item, .. } => lists < 4 && is_usual(item, lists + 1),
        Feature::Tensor(tensor) => lists == 0 || !tensor.shape.contains(&None),
        Feature::Label { .. } => true,
        Feature::Opaque { .. } => false,
    }
}

// ---- Rows -------------------------------------------------------------------------------------------------------------

fn row(tree: &Feature) -> BoxedStrategy<Row> {
    match tree {
        Feature::Struct(fields) => {
            let fields: Vec<BoxedStrategy<Row>> = fields.iter().map(|(_, field)| row(field)).collect();
            fields.prop_map(Row::Struct).boxed()
        }
        Feature::Sequence { item, length } | Feature::Dataset { item, length } => {
            let lengths = length.map_or(0..4, |n| n as usize..n as usize + 1);
            prop::collection::vec(row(&without_options(item)), lengths).prop_map(Row::List).boxed()
        }
        Feature::Label { classes, .. } => (-1..*classes as i64).prop_map(|n| Row::Values(vec![Scalar::Int(n)])).boxed(),
        Feature::Opaque { .. } => unreachable!("no such trees are made"),
        Feature::Tensor(tensor) => {
            let values = |open: u64| tensor.shape.iter().map(|d| d.unwrap_or(open)).product::<u64>() as usize;
            let counts: Vec<usize> =
                if tensor.shape.contains(&None) { (0..3).map(values).collect() } else { vec![values(0)] };
            let scalar = scalar(tensor);
            let values = prop::sample::select(counts).prop_flat_map(move |n| prop::collection::vec(scalar.clone(), n));
            let present = values.prop_map(Row::Values);
            if tensor.optional { prop_oneof![present, Just(Row::Missing)].boxed() } else { present.boxed() }
        }
    }
}

/// Nothing is missing within a list.
fn without_options(tree: &Feature) -> Feature {
    match tree {
        Feature::Struct(fields) => {
            Feature::Struct(fields.iter().map(|(n, f)| (n.clone(), without_options(f))).collect())
        }
        Feature::Tensor(tensor) => Feature::Tensor(Tensor { optional: false, ..tensor.clone() }),
        Feature::Sequence { item, length } => {
            Feature::Sequence { item: Box::new(without_options(item)), length: *length }
        }
        Feature::Dataset { item, length } => {
            Feature::Dataset { item: Box::new(without_options(item)), length: *length }
        }
        other => other.clone(),
    }
}

fn scalar(tensor: &Tensor) -> BoxedStrategy<Scalar> {
    if tensor.encoding != Encoding::None {
        return prop::collection::vec(any::<u8>(), tensor.dtype.width().unwrap()).prop_map(Scalar::Raw).boxed();
    }
    match tensor.dtype {
        Dtype::String => prop_oneof![
            6 => "\\PC{0,6}".prop_map(|text| Scalar::Bytes(text.into_bytes())),
            1 => prop::collection::vec(any::<u8>(), 0..5).prop_map(Scalar::Bytes),
        ]
        .boxed(),
        Dtype::Float16 => any::<u16>()
            .prop_filter("NaN has many forms", |bits| bits & 0x7c00 != 0x7c00 || bits & 0x3ff == 0)
            .prop_map(|bits| Scalar::Float(half::f16::from_bits(bits).to_f32()))
            .boxed(),
        Dtype::Float32 => any::<u32>().prop_map(|bits| Scalar::Float(f32::from_bits(bits))).boxed(),
        Dtype::Float64 => any::<f32>().prop_map(Scalar::Float).boxed(),
        Dtype::Bool => any::<bool>().prop_map(|b| Scalar::Int(b.into())).boxed(),
        Dtype::Int8 => any::<i8>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::Int16 => any::<i16>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::Int32 => any::<i32>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::UInt8 => any::<u8>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::UInt16 => any::<u16>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::UInt32 => any::<u32>().prop_map(|n| Scalar::Int(n.into())).boxed(),
        Dtype::Int64 | Dtype::UInt64 => any::<i64>().prop_map(Scalar::Int).boxed(),
    }
}

// ---- As TFDS stores it ------------------------------------------------------------------------------------------------

/// The entries of one row; `row` lies `lists` lists deep. With `left_out`, empty sequences have no entry.
fn encode(tree: &Feature, path: &str, lists: usize, row: &Row, left_out: bool, entries: &mut Vec<Entry>) {
    match tree {
        Feature::Struct(fields) => {
            for (i, (name, field)) in fields.iter().enumerate() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                encode(field, &path, lists, &at_depth(row, lists, &|row| member(row, i)), left_out, entries);
            }
        }
        Feature::Sequence { item, .. } | Feature::Dataset { item, .. } => {
            encode(item, path, lists + 1, row, left_out, entries)
        }
        Feature::Label { .. } => encode_leaf(
            &Tensor { dtype: Dtype::Int64, shape: vec![], encoding: Encoding::None, optional: false },
            path,
            lists,
            row,
            left_out,
            entries,
        ),
        Feature::Tensor(tensor) => encode_leaf(tensor, path, lists, row, left_out, entries),
        Feature::Opaque { .. } => unreachable!("no such trees are made"),
    }
}

fn encode_leaf(tensor: &Tensor, path: &str, lists: usize, row: &Row, left_out: bool, entries: &mut Vec<Entry>) {
    if matches!(row, Row::Missing) {
        return;
    }
    // One level after the other becomes flat; the lengths of all but the outermost list are kept.
    let mut flat = vec![row.clone()];
    let mut lengths = Vec::new();
    for _ in 0..lists {
        let items = flat.iter().map(|row| if let Row::List(items) = row { items.clone() } else { panic!("{row:?}") });
        let items: Vec<Vec<Row>> = items.collect();
        lengths.push(items.iter().map(|items| items.len() as i64).collect::<Vec<_>>());
        flat = items.concat();
    }
    let tensors: Vec<Vec<Scalar>> =
        flat.into_iter().map(|row| if let Row::Values(values) = row { values } else { panic!() }).collect();
    for (level, lengths) in lengths.into_iter().enumerate().skip(1) {
        entries.push(Entry::new(
            &format!("{path}/ragged_row_lengths_{}", level - 1),
            Kind::Ints(Int64List { value: lengths }),
        ));
    }
    let key = if lists > 1 { format!("{path}/ragged_flat_values") } else { path.to_owned() };
    if left_out && tensors.is_empty() {
        return;
    }
    entries.push(Entry::new(&key, values(tensor, tensors)));
}

fn values(tensor: &Tensor, tensors: Vec<Vec<Scalar>>) -> Kind {
    if tensor.encoding != Encoding::None {
        let buffers = tensors.into_iter().map(|values| {
            let raw =
                values.into_iter().flat_map(|scalar| if let Scalar::Raw(bytes) = scalar { bytes } else { panic!() });
            let raw: Vec<u8> = raw.collect();
            if tensor.encoding == Encoding::Bytes {
                return raw;
            }
            let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(&raw).unwrap();
            packer.finish().unwrap()
        });
        return Kind::Bytes(BytesList { value: buffers.collect() });
    }
    let scalars = tensors.into_iter().flatten();
    match tensor.dtype {
        Dtype::String => Kind::Bytes(BytesList {
            value: scalars.map(|s| if let Scalar::Bytes(b) = s { b } else { panic!() }).collect(),
        }),
        Dtype::Float16 | Dtype::Float32 | Dtype::Float64 => Kind::Floats(FloatList {
            value: scalars.map(|s| if let Scalar::Float(f) = s { f } else { panic!() }).collect(),
        }),
        _ => Kind::Ints(Int64List {
            value: scalars.map(|s| if let Scalar::Int(n) = s { n } else { panic!() }).collect(),
        }),
    }
}

// ---- As TFDS reads it -------------------------------------------------------------------------------------------------

/// A sequence of structs is a struct of lists, a dataset of structs a list of structs; `row` lies `lists` lists deep.
fn decoded(tree: &Feature, lists: usize, row: &Row) -> Datum<'static> {
    match tree {
        Feature::Struct(fields) => Datum::Struct(
            fields
                .iter()
                .enumerate()
                .map(|(i, (name, field))| {
                    let name: &'static str = name.clone().leak();
                    (name, decoded(field, lists, &at_depth(row, lists, &|row| member(row, i))))
                })
                .collect(),
        ),
        Feature::Dataset { item, .. } if matches!(**item, Feature::Struct(_)) => nested(row, lists, &|row| {
            let Row::List(items) = row else { panic!("{row:?}") };
            Datum::List(items.iter().map(|row| decoded(item, 0, row)).collect())
        }),
        Feature::Sequence { item, .. } | Feature::Dataset { item, .. } => decoded(item, lists + 1, row),
        Feature::Label { .. } => nested(row, lists, &|row| match row {
            Row::Values(values) => value(Dtype::Int64, &values[0]),
            other => panic!("{other:?}"),
        }),
        Feature::Tensor(tensor) => nested(row, lists, &|row| match row {
            Row::Values(values) => {
                let known: u64 = tensor.shape.iter().flatten().product();
                let shape: Vec<u64> = tensor.shape.iter().map(|d| d.unwrap_or(values.len() as u64 / known)).collect();
                shaped(&shape, &mut values.iter().map(|scalar| value(tensor.dtype, scalar)))
            }
            Row::Missing => {
                let shape: Vec<u64> = tensor.shape.iter().map(|d| d.unwrap_or(0)).collect();
                shaped(&shape, &mut std::iter::repeat_with(|| missing(tensor.dtype)))
            }
            other => panic!("{other:?}"),
        }),
        Feature::Opaque { .. } => unreachable!("no such trees are made"),
    }
}

fn shaped(shape: &[u64], values: &mut dyn Iterator<Item = Datum<'static>>) -> Datum<'static> {
    match shape {
        [] => values.next().unwrap(),
        [n, rest @ ..] => Datum::List((0..*n).map(|_| shaped(rest, values)).collect()),
    }
}

fn value(dtype: Dtype, scalar: &Scalar) -> Datum<'static> {
    match (dtype, scalar) {
        (_, Scalar::Bytes(bytes)) => match String::from_utf8(bytes.clone()) {
            Ok(text) => Datum::Text(Cow::Owned(text)),
            Err(_) => Datum::Bytes(Cow::Owned(bytes.clone())),
        },
        (Dtype::Float16, Scalar::Float(f)) => Datum::F16(half::f16::from_f32(*f).to_bits()),
        (Dtype::Float64, Scalar::Float(f)) => Datum::F64((*f).into()),
        (_, Scalar::Float(f)) => Datum::F32(*f),
        (Dtype::Bool, Scalar::Int(n)) => Datum::Bool(*n != 0),
        (Dtype::UInt64, Scalar::Int(n)) => Datum::UInt(*n as u64),
        (_, Scalar::Int(n)) => Datum::Int(*n),
        (Dtype::Bool, Scalar::Raw(raw)) => Datum::Bool(raw[0] != 0),
        (Dtype::Int8, Scalar::Raw(raw)) => Datum::Int(raw[0] as i8 as i64),
        (Dtype::UInt8, Scalar::Raw(raw)) => Datum::Int(raw[0].into()),
        (Dtype::Int16, Scalar::Raw(raw)) => Datum::Int(i16::from_le_bytes(raw[..].try_into().unwrap()).into()),
        (Dtype::UInt16, Scalar::Raw(raw)) => Datum::Int(u16::from_le_bytes(raw[..].try_into().unwrap()).into()),
        (Dtype::Int32, Scalar::Raw(raw)) => Datum::Int(i32::from_le_bytes(raw[..].try_into().unwrap()).into()),
        (Dtype::UInt32, Scalar::Raw(raw)) => Datum::Int(u32::from_le_bytes(raw[..].try_into().unwrap()).into()),
        (Dtype::Int64, Scalar::Raw(raw)) => Datum::Int(i64::from_le_bytes(raw[..].try_into().unwrap())),
        (Dtype::UInt64, Scalar::Raw(raw)) => Datum::UInt(u64::from_le_bytes(raw[..].try_into().unwrap())),
        (Dtype::Float16, Scalar::Raw(raw)) => Datum::F16(u16::from_le_bytes(raw[..].try_into().unwrap())),
        (Dtype::Float32, Scalar::Raw(raw)) => Datum::F32(f32::from_le_bytes(raw[..].try_into().unwrap())),
        (Dtype::Float64, Scalar::Raw(raw)) => Datum::F64(f64::from_le_bytes(raw[..].try_into().unwrap())),
        (Dtype::String, Scalar::Raw(_)) => unreachable!("strings are not encoded"),
    }
}

/// TFDS's stand-ins, spelled out.
fn missing(dtype: Dtype) -> Datum<'static> {
    match dtype {
        Dtype::String => Datum::Text(Cow::Borrowed("")),
        Dtype::Bool => Datum::Bool(false),
        Dtype::Int8 => Datum::Int(-128),
        Dtype::Int16 => Datum::Int(-32768),
        Dtype::Int32 => Datum::Int(-2147483648),
        Dtype::Int64 => Datum::Int(-9223372036854775808),
        Dtype::UInt8 | Dtype::UInt16 | Dtype::UInt32 => Datum::Int(0),
        Dtype::UInt64 => Datum::UInt(0),
        Dtype::Float16 => Datum::F16(0xfbff),
        Dtype::Float32 => Datum::F32(f32::from_bits(0xff7fffff)),
        Dtype::Float64 => Datum::F64(f64::from_bits(0xffefffffffffffff)),
    }
}

fn member(row: &Row, i: usize) -> Row {
    match row {
        Row::Struct(fields) => fields[i].clone(),
        other => panic!("{other:?}"),
    }
}

fn at_depth(row: &Row, lists: usize, change: &dyn Fn(&Row) -> Row) -> Row {
    match (lists, row) {
        (0, row) => change(row),
        (_, Row::List(items)) => Row::List(items.iter().map(|row| at_depth(row, lists - 1, change)).collect()),
        (_, other) => panic!("{other:?}"),
    }
}

fn nested(row: &Row, lists: usize, decode: &dyn Fn(&Row) -> Datum<'static>) -> Datum<'static> {
    match (lists, row) {
        (0, row) => decode(row),
        (_, Row::List(items)) => Datum::List(items.iter().map(|row| nested(row, lists - 1, decode)).collect()),
        (_, other) => panic!("{other:?}"),
    }
}
