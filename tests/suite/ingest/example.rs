use std::collections::BTreeMap;

use flanc::ingest::proto::{self, Kind as OurKind, Values};
use proptest::prelude::*;
use prost::Message;

// ---- The messages, for protobuf's own parser ------------------------------------------------------------------------

#[derive(Clone, PartialEq, Message)]
pub struct Example {
    #[prost(message, optional, tag = "1")]
    pub features: Option<Features>,
}

/// A map is a repeated message on the wire; written so, its keys may be any bytes, and come in any order.
#[derive(Clone, PartialEq, Message)]
pub struct Features {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub value: Option<Feature>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Feature {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    #[prost(message, tag = "1")]
    Bytes(BytesList),
    #[prost(message, tag = "2")]
    Floats(FloatList),
    #[prost(message, tag = "3")]
    Ints(Int64List),
}

#[derive(Clone, PartialEq, Message)]
pub struct BytesList {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub value: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FloatList {
    #[prost(float, repeated, tag = "1")]
    pub value: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Int64List {
    #[prost(int64, repeated, tag = "1")]
    pub value: Vec<i64>,
}

impl Example {
    pub fn new(entries: Vec<Entry>) -> Example {
        Example { features: Some(Features { entries }) }
    }

    /// The values under a key, to be changed.
    pub fn kind_mut(&mut self, key: &str) -> &mut Kind {
        let entries = &mut self.features.as_mut().unwrap().entries;
        let entry =
            entries.iter_mut().find(|entry| entry.key == key.as_bytes()).unwrap_or_else(|| panic!("no `{key}`"));
        entry.value.as_mut().unwrap().kind.as_mut().unwrap()
    }
}

impl Entry {
    pub fn new(key: &str, kind: Kind) -> Entry {
        Entry { key: key.as_bytes().to_vec(), value: Some(Feature { kind: Some(kind) }) }
    }
}

// ---- Two parsers ------------------------------------------------------------------------------------------------------

/// The values of one feature; floats by their bits.
#[derive(Debug, PartialEq)]
enum List {
    Bytes(Vec<Vec<u8>>),
    Floats(Vec<u32>),
    Ints(Vec<i64>),
}

type Map = BTreeMap<Vec<u8>, Option<List>>;

fn ours(record: &[u8]) -> Result<Map, String> {
    let list = |values: Values<'_>| {
        let list = match values.kind? {
            OurKind::Bytes => List::Bytes(values.bytes().map(<[u8]>::to_vec).collect()),
            OurKind::Float => List::Floats(values.floats().map(f32::to_bits).collect()),
            OurKind::Int64 => List::Ints(values.ints().collect()),
        };
        let count = match &list {
            List::Bytes(list) => list.len(),
            List::Floats(list) => list.len(),
            List::Ints(list) => list.len(),
        };
        assert_eq!(count, values.count);
        Some(list)
    };
    let mut map = Map::new();
    proto::parse(record, |key, values| {
        map.insert(key.to_vec(), list(values));
    })
    .map_err(|error| error.to_string())?;
    Ok(map)
}

fn prosts(record: &[u8]) -> Result<Map, String> {
    let example = Example::decode(record).map_err(|error| error.to_string())?;
    let entries = example.features.unwrap_or_default().entries.into_iter();
    let list = |kind| match kind {
        Kind::Bytes(list) => List::Bytes(list.value),
        Kind::Floats(list) => List::Floats(list.value.into_iter().map(f32::to_bits).collect()),
        Kind::Ints(list) => List::Ints(list.value),
    };
    Ok(entries.map(|entry| (entry.key, entry.value.and_then(|feature| feature.kind).map(list))).collect())
}

/// Both parsers take the record, and find the same in it.
fn check_same(record: &[u8]) {
    assert_eq!(ours(record).expect("flanc takes it"), prosts(record).expect("prost takes it"), "{record:02x?}");
}

/// What flanc takes prost takes too, and both find the same. The converse does not hold, for two things that no writer
/// of examples makes: groups (wire types 3 and 4), and a map entry with two values, which protobuf would merge.
fn check_no_more(record: &[u8]) {
    if let Ok(found) = ours(record) {
        assert_eq!(found, prosts(record).expect("prost takes what flanc takes"), "{record:02x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_prost_writes_is_read(entries in prop::collection::vec((key(), kind()), 0..6)) {
        let entries = entries.into_iter().map(|(key, kind)| Entry { key, value: Some(Feature { kind }) }).collect();
        check_same(&Example::new(entries).encode_to_vec());
    }

    #[test]
    fn what_other_writers_may_write_is_read(record in wire::example()) {
        check_same(&record);
    }

    #[test]
    fn arbitrary_bytes_are_taken_as_prost_takes_them(record in prop::collection::vec(any::<u8>(), 0..64)) {
        check_no_more(&record);
        // The same inside of valid frames, which random bytes hardly make.
        for depth in 1..6 {
            let wrapped = (0..depth).rfold(record.clone(), |inner, level| {
                let field = [1, 1, 2, 1 + record.len() as u64 % 3, 1][level];
                wire::field(field, &inner)
            });
            check_no_more(&wrapped);
        }
    }

    #[test]
    fn changed_messages_are_taken_as_prost_takes_them(
        record in wire::example(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut changed = record.clone();
        for (place, byte) in changes {
            if !record.is_empty() {
                changed[place.index(record.len())] = byte;
            }
        }
        check_no_more(&changed);
        check_no_more(&record[..cut.index(record.len() + 1)]);
    }
}

/// The two documented exceptions, and what else is refused.
#[test]
fn refusals_name_the_byte() {
    let check = |record: &[u8], expected: &str| assert_eq!(ours(record).unwrap_err(), expected, "{record:02x?}");
    let feature = wire::field(1, b"");
    let two_values = [wire::field(1, b"key"), wire::field(2, &feature), wire::field(2, &feature)].concat();
    check(&wire::field(1, &wire::field(1, &two_values)), "a map entry with two values at byte 15 of the record");
    check(&[0x0b, 0x0c], "an unknown wire type at byte 0 of the record");
    check(&[0x08, 0x01], "a message field of the wrong wire type at byte 0 of the record");
    check(&[0x0a, 0x05, 0x0a], "a length that reaches behind the end at byte 0 of the record");
    check(&[0x0a], "a varint cut short at byte 0 of the record");
    check(&[0xff; 11], "a varint of more than 64 bits at byte 0 of the record");
    check(&[0x02, 0x00], "an impossible field number at byte 0 of the record");
    check(&[0x15, 0x00], "a number cut short at byte 0 of the record");
    let of_feature = |feature: &[u8]| wire::field(1, &wire::field(1, &wire::field(2, feature)));
    check(
        &of_feature(&wire::field(2, &wire::field(1, b"abc"))),
        "packed floats whose length is no multiple of 4 at byte 10 of the record",
    );
    check(&of_feature(&wire::field(3, &wire::field(1, b"\x80"))), "a varint cut short at byte 11 of the record");
    check(&of_feature(&wire::field(1, &[0x08, 0x01])), "a list value of the wrong wire type at byte 8 of the record");
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes), // short, so that keys come twice
        1 => prop::collection::vec(any::<u8>(), 0..5),
    ]
}

fn kind() -> impl Strategy<Value = Option<Kind>> {
    prop_oneof![
        1 => Just(None),
        4 => prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 0..5).prop_map(|value| Some(Kind::Bytes(BytesList { value }))),
        4 => prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..5).prop_map(|value| Some(Kind::Floats(FloatList { value }))),
        4 => prop::collection::vec(any::<i64>(), 0..5).prop_map(|value| Some(Kind::Ints(Int64List { value }))),
    ]
}

/// Examples as bytes, in every form that protobuf allows a writer: numbers packed, unpacked and in pieces, varints longer
/// than need be, fields out of order and more than once, a oneof set again, fields that a later schema may bring.
mod wire {
    use super::*;

    pub fn varint(n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(n, &mut bytes);
        bytes
    }

    pub fn field(number: u64, payload: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(payload.len() as u64), payload.to_vec()].concat()
    }

    pub fn example() -> impl Strategy<Value = Vec<u8>> {
        let features = message(prop_oneof![5 => entry().prop_map(|entry| field(1, &entry)), 1 => unknown(4)], 0..5);
        message(prop_oneof![5 => features.prop_map(|features| field(1, &features)), 1 => unknown(4)], 0..3)
    }

    /// One value at most: the second would be merged.
    fn entry() -> impl Strategy<Value = Vec<u8>> {
        let keys = message(prop_oneof![5 => key().prop_map(|key| field(1, &key)), 1 => unknown(4)], 0..3);
        (keys.clone(), prop::option::weighted(0.9, feature()), keys).prop_map(|(before, feature, behind)| {
            [before, feature.map_or(Vec::new(), |feature| field(2, &feature)), behind].concat()
        })
    }

    fn feature() -> impl Strategy<Value = Vec<u8>> {
        let list = prop_oneof![
            list(bytes_piece()).prop_map(|list| field(1, &list)),
            list(float_piece()).prop_map(|list| field(2, &list)),
            list(int_piece()).prop_map(|list| field(3, &list)),
        ];
        message(prop_oneof![5 => list, 1 => unknown(4)], 0..4)
    }

    fn list(piece: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        message(prop_oneof![5 => piece, 1 => unknown(2)], 0..4)
    }

    fn bytes_piece() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..6).prop_map(|value| field(1, &value))
    }

    fn float_piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|value| [&[0x0d], &value[..]].concat()),
            prop::collection::vec(any::<[u8; 4]>(), 0..4).prop_map(|values| field(1, &values.concat())),
        ]
    }

    fn int_piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            long_varint().prop_map(|value| [vec![0x08], value].concat()),
            prop::collection::vec(long_varint(), 0..4).prop_map(|values| field(1, &values.concat())),
        ]
    }

    /// Up to ten bytes, whatever the value.
    fn long_varint() -> impl Strategy<Value = Vec<u8>> {
        (any::<u64>(), 0..64u32, 0..10usize).prop_map(|(value, shift, least)| {
            let mut bytes = varint(value >> shift);
            while bytes.len() < least {
                *bytes.last_mut().unwrap() |= 0x80;
                bytes.push(0);
            }
            bytes
        })
    }

    /// A field of a number that the message does not have.
    fn unknown(least: u64) -> impl Strategy<Value = Vec<u8>> {
        let payload = prop_oneof![
            long_varint().prop_map(|value| (0, value)),
            any::<[u8; 8]>().prop_map(|value| (1, value.to_vec())),
            prop::collection::vec(any::<u8>(), 0..6)
                .prop_map(|value| (2, [varint(value.len() as u64), value].concat())),
            any::<[u8; 4]>().prop_map(|value| (5, value.to_vec())),
        ];
        (least..1 << 29, payload)
            .prop_map(|(number, (wire_type, payload))| [varint(number << 3 | wire_type), payload].concat())
    }

    fn message(
        part: impl Strategy<Value = Vec<u8>>,
        parts: std::ops::Range<usize>,
    ) -> impl Strategy<Value = Vec<u8>> + Clone {
        let parts = prop::collection::vec(part, parts).prop_map(|parts| parts.concat());
        std::sync::Arc::new(parts) as std::sync::Arc<_>
    }
}
