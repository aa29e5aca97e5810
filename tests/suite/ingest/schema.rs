use std::fs;
use std::time::{Duration, Instant};

use flanc::schema::{Dtype, Encoding, Feature, Tensor};
use flanc::storage;
use serde_json::{Map, Value, json};

use super::{root, settings};

// ---- Spellings --------------------------------------------------------------------------------------------------------

/// The ways in which features.json has been written.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    /// TFDS 4.4 and newer.
    Proto,
    /// The same with snake_case keys and numbers that are no strings: protobuf's JSON reader takes them too.
    ProtoSnake,
    /// In an envelope with `proto_cls`.
    Envelope,
    /// In an envelope, as a string of JSON.
    EnvelopeText,
    /// TFDS 4.0 to 4.3.
    Plain,
}

/// A features.json for the tree.
fn spell(feature: &Feature, spelling: Spelling) -> Value {
    let (class, key, proto) = match feature {
        Feature::Struct(fields) => {
            let inner = |spelling| Value::Object(fields.iter().map(|(n, f)| (n.clone(), spell(f, spelling))).collect());
            if let Spelling::Plain = spelling {
                return json!({ "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "content": inner(spelling) });
            }
            ("features_dict.FeaturesDict", "featuresDict", json!({ "features": inner(inside(spelling)) }))
        }
        Feature::Sequence { item, length } | Feature::Dataset { item, length } => {
            let dataset = matches!(feature, Feature::Dataset { .. });
            let class = if dataset { "dataset_feature.Dataset" } else { "sequence_feature.Sequence" };
            let length = match spelling {
                Spelling::Plain | Spelling::ProtoSnake => json!(length),
                _ => json!(length.map_or("-1".to_owned(), |n| n.to_string())),
            };
            (class, "sequence", json!({ "feature": spell(item, inside(spelling)), "length": length }))
        }
        Feature::Label { classes, .. } => {
            let content = match spelling {
                Spelling::Plain => json!({ "num_classes": classes }),
                Spelling::ProtoSnake => json!({ "num_classes": classes }),
                _ => json!({ "numClasses": classes.to_string() }),
            };
            ("class_label_feature.ClassLabel", "classLabel", content)
        }
        Feature::Tensor(tensor) if *feature == Feature::text() => {
            assert!(!tensor.optional);
            ("text_feature.Text", "text", json!({}))
        }
        Feature::Tensor(tensor) => {
            let dims = |open: Value, number: fn(u64) -> Value| -> Vec<Value> {
                tensor.shape.iter().map(|d| d.map_or(open.clone(), number)).collect()
            };
            let shape = match spelling {
                Spelling::Plain => json!(dims(Value::Null, |n| json!(n))),
                Spelling::ProtoSnake => json!({ "dimensions": dims(json!(-1), |n| json!(n)) }),
                _ if tensor.shape.is_empty() => json!({}),
                _ => json!({ "dimensions": dims(json!("-1"), |n| json!(n.to_string())) }),
            };
            let encoding = match tensor.encoding {
                Encoding::None => "none",
                Encoding::Bytes => "bytes",
                Encoding::Zlib => "zlib",
            };
            let mut content = json!({ "dtype": tensor.dtype.name(), "shape": shape, "encoding": encoding });
            if tensor.optional {
                content["optional"] = json!(true); // proto3 JSON leaves what is false out
            }
            ("tensor_feature.Tensor", "tensor", content)
        }
        Feature::Opaque { class } => return json!({ "pythonClassName": class, "image": {} }),
    };
    let class = format!("tensorflow_datasets.core.features.{class}");
    match spelling {
        Spelling::Proto => json!({ "pythonClassName": class, key: proto }),
        Spelling::ProtoSnake => json!({ "python_class_name": class, snake(key): proto }),
        Spelling::Envelope => json!({ "type": class, "content": proto, "proto_cls": "tensorflow_datasets.Some" }),
        Spelling::EnvelopeText => {
            json!({ "type": class, "content": proto.to_string(), "proto_cls": "tensorflow_datasets.Some" })
        }
        Spelling::Plain => json!({ "type": class, "content": proto }),
    }
}

/// Inside of an envelope stands the proto's JSON.
fn inside(spelling: Spelling) -> Spelling {
    match spelling {
        Spelling::Envelope | Spelling::EnvelopeText => Spelling::Proto,
        other => other,
    }
}

fn snake(camel: &str) -> String {
    camel.chars().flat_map(|c| if c.is_uppercase() { vec!['_', c.to_ascii_lowercase()] } else { vec![c] }).collect()
}

fn check_spellings(feature: &Feature, what: &str) {
    for spelling in [Spelling::Proto, Spelling::ProtoSnake, Spelling::Envelope, Spelling::EnvelopeText, Spelling::Plain]
    {
        let json = spell(feature, spelling);
        assert_eq!(Feature::from_json(&json).as_ref(), Ok(feature), "{what}, {spelling:?}: {json}");
    }
}

/// Every bundled feature tree, in every spelling.
#[test]
fn spellings_give_one_tree() {
    let mut trees = 0;
    for directory in ["schemas", "data"] {
        let directory = root().join(directory);
        for path in storage::walk(&directory).unwrap().into_iter().filter(|path| path.ends_with("features.json")) {
            let json = serde_json::from_slice(&fs::read(directory.join(&path)).unwrap()).unwrap();
            let feature = Feature::from_json(&json).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
            check_spellings(&feature, &path.to_string_lossy());
            trees += 1;
        }
    }
    assert!(trees > 30, "{trees}");
}

/// What the bundled trees do not have.
#[test]
fn spellings_of_single_features() {
    for dtype in [Dtype::Bool, Dtype::UInt64, Dtype::Float16, Dtype::String] {
        for shape in [vec![], vec![Some(3)], vec![None, Some(2)], vec![Some(0), None]] {
            for (encoding, optional) in [(Encoding::None, false), (Encoding::None, true), (Encoding::Zlib, false)] {
                if encoding == Encoding::None || !shape.contains(&None) && dtype != Dtype::String {
                    check_spellings(
                        &Feature::Tensor(Tensor { dtype, shape: shape.clone(), encoding, optional }),
                        "tensor",
                    );
                }
            }
        }
    }
    check_spellings(&Feature::Struct(vec![]), "empty struct");
    let ragged = (0..4).fold(Feature::text(), |item, _| Feature::Sequence { item: Box::new(item), length: None });
    check_spellings(&ragged, "ragged");
}

/// Classes that are known by a name alone, and what old files called a type.
#[test]
fn classes_and_types_of_old_files() {
    let check = |json: Value, expected: &str| {
        let found = Feature::from_json(&json).map(|feature| feature.describe());
        assert_eq!(found.as_deref(), Ok(expected), "{json}");
    };
    let plain = |class: &str, content: Value| json!({ "type": format!("tensorflow_datasets.core.features.{class}"), "content": content });
    check(plain("translation_feature.Translation", json!({ "languages": ["en", "de"] })), "struct with de, en");
    check(
        plain("translation_feature.TranslationVariableLanguages", json!({ "languages": ["en", "de"] })),
        "sequence of struct with language, translation",
    );
    check(plain("image_feature.Image", json!({ "shape": [null, null, 3], "dtype": "uint8" })), "image");
    check(plain("bounding_boxes.BBoxFeature", json!({})), "float32 tensor [4]");
    for name in ["string", "object", "str", "str_", "bytes"] {
        check(plain("tensor_feature.Tensor", json!({ "shape": [], "dtype": name })), "text");
    }
    check(json!({ "pythonClassName": "x.FeaturesDict", "featuresDict": {} }), "struct with ");
    check(
        json!({ "pythonClassName": "x.Text", "jsonFeature": { "json": "{\"shape\": [2], \"dtype\": \"int8\"}" } }),
        "text",
    );
}

// ---- Trees that differ ------------------------------------------------------------------------------------------------

#[test]
fn differences_are_named() {
    let int = |shape: &[Option<u64>], optional| {
        Feature::Tensor(Tensor { dtype: Dtype::Int64, shape: shape.to_vec(), encoding: Encoding::None, optional })
    };
    let label =
        |classes, names: &[&str]| Feature::Label { classes, names: names.iter().map(|n| (*n).to_owned()).collect() };
    let sequence = |item, length| Feature::Sequence { item: Box::new(item), length };
    let dataset = |item| Feature::Dataset { item: Box::new(item), length: None };
    let of = |fields: &[(&str, Feature)]| {
        Feature::Struct(fields.iter().map(|(n, f)| ((*n).to_owned(), f.clone())).collect())
    };
    let text = Feature::text;
    let mut said = String::new();
    for (what, expected, found) in [
        (
            "nothing",
            of(&[("a", text()), ("b", label(2, &["no", "yes"]))]),
            of(&[("a", text()), ("b", label(2, &["no", "yes"]))]),
        ),
        ("names that are not known", label(2, &["no", "yes"]), label(2, &[])),
        ("a missing feature", of(&[("a", text()), ("b", int(&[], false))]), of(&[("a", text())])),
        ("a new feature", of(&[("a", text())]), of(&[("a", text()), ("b", sequence(text(), None))])),
        ("a renamed feature", of(&[("premise", text())]), of(&[("premises", text())])),
        ("another type", of(&[("a", text())]), of(&[("a", int(&[], false))])),
        (
            "another type, deep",
            of(&[("a", of(&[("b", sequence(text(), None))]))]),
            of(&[("a", of(&[("b", sequence(int(&[], false), None))]))]),
        ),
        ("one for many", of(&[("a", sequence(text(), None))]), of(&[("a", text())])),
        ("a fixed length", of(&[("a", sequence(text(), None))]), of(&[("a", sequence(text(), Some(4)))])),
        ("a dataset for a sequence", sequence(of(&[("a", text())]), None), dataset(of(&[("a", text())]))),
        ("another shape", of(&[("a", int(&[Some(2), None], false))]), of(&[("a", int(&[Some(3), None], false))])),
        ("optional", of(&[("a", int(&[], false))]), of(&[("a", int(&[], true))])),
        ("more classes", of(&[("a", label(2, &["no", "yes"]))]), of(&[("a", label(3, &["no", "yes", "maybe"]))])),
        ("classes in another order", of(&[("a", label(2, &["no", "yes"]))]), of(&[("a", label(2, &["yes", "no"]))])),
        ("the whole row", of(&[("a", text())]), text()),
        (
            "an image",
            of(&[("a", text())]),
            of(&[("a", Feature::Opaque { class: "tfds.core.features.image_feature.Image".into() })]),
        ),
        (
            "several things",
            of(&[("a", text()), ("b", text()), ("c", label(2, &[]))]),
            of(&[("a", int(&[], false)), ("c", label(4, &[])), ("d", text())]),
        ),
    ] {
        said.push_str(&format!("{what}\n"));
        expected.differences(&found).iter().for_each(|line| said.push_str(&format!("    {line}\n")));
    }
    settings("").bind(|| insta::assert_snapshot!("schema-differences", said));
}

// ---- Trees that make no sense -------------------------------------------------------------------------------------------

#[test]
fn hostile_trees_are_refused_soon() {
    let tensor = |content: Value| json!({ "pythonClassName": "x.Tensor", "tensor": content });
    let shaped = |shape: Value| tensor(json!({ "dtype": "int64", "shape": { "dimensions": shape } }));
    let huge = (1u64 << 62).to_string();
    let within = |feature: Value, levels: usize| {
        (0..levels)
            .fold(feature, |inner, _| json!({ "pythonClassName": "x.Sequence", "sequence": { "feature": inner } }))
    };
    // Each string of JSON is read anew, so the depth of one file is not bounded by that of JSON.
    let in_text =
        |feature: Value| json!({ "type": "x.Sequence", "content": json!({ "feature": feature }).to_string() });
    let mut said = String::new();
    for (what, json) in [
        ("a number", json!(1)),
        ("a list", json!([{ "text": {} }])),
        ("null", json!(null)),
        ("an empty object", json!({})),
        ("another class", json!({ "pythonClassName": "my_pkg.Hologram", "hologram": {} })),
        ("another class, before 4.4", json!({ "type": "my_pkg.Hologram", "content": {} })),
        (
            "a feature that is none, deep",
            json!({ "featuresDict": { "features": { "a": { "sequence": { "feature": { "featuresDict": { "features": { "b": 7 } } } } } } } }),
        ),
        ("a sequence of nothing", json!({ "pythonClassName": "x.Sequence", "sequence": {} })),
        (
            "a length that is none",
            json!({ "pythonClassName": "x.Sequence", "sequence": { "feature": { "text": {} }, "length": "many" } }),
        ),
        ("no dtype", tensor(json!({}))),
        ("another dtype", tensor(json!({ "dtype": "complex64" }))),
        ("a dimension that is none", shaped(json!(["x"]))),
        ("two unknown dimensions", shaped(json!(["-1", "-1"]))),
        ("a shape of 2^62", shaped(json!([huge]))),
        ("a shape of 2^62 times 0", shaped(json!([huge, "0"]))),
        ("a shape of 0 times 2^62", shaped(json!(["0", huge]))),
        ("a shape of 2^62 of unknown length", shaped(json!(["-1", huge]))),
        ("a shape of 2^124", shaped(json!([huge, huge]))),
        ("a shape of 2^63", shaped(json!([(1u64 << 63).to_string()]))),
        ("a shape of many dimensions", shaped(json!(vec!["2"; 100_000]))),
        ("an encoding that is none", tensor(json!({ "dtype": "int64", "encoding": "gzip" }))),
        ("encoded text", tensor(json!({ "dtype": "string", "encoding": "zlib" }))),
        (
            "an encoded tensor of unknown length",
            tensor(json!({ "dtype": "int8", "encoding": "bytes", "shape": { "dimensions": [-1] } })),
        ),
        ("negative classes", json!({ "classLabel": { "numClasses": "-3" } })),
        ("a translation without languages", json!({ "translation": {} })),
        ("content that is no JSON", json!({ "type": "x.FeaturesDict", "content": "{\"features\": " })),
        ("66 sequences", within(json!({ "text": {} }), 66)),
        ("40 sequences in 40 in text", within(in_text(within(json!({ "text": {} }), 40)), 40)),
    ] {
        let begun = Instant::now();
        let error = Feature::from_json(&json).expect_err(what);
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
        assert!(error.expected.len() + error.found.len() < 400, "{what}: {error:?}");
        said.push_str(&format!(
            "{what}\n    at `{}`: expected {}, found {}\n",
            error.path, error.expected, error.found
        ));
    }
    settings("").bind(|| insta::assert_snapshot!("schema-refused", said));
}

/// As a file, a deep tree ends in serde_json, which reads 128 levels.
#[test]
fn deep_files_are_refused() {
    let deep = |levels: usize| {
        let (open, close) =
            (r#"{"pythonClassName":"x.Sequence","sequence":{"feature":"#.repeat(levels), "}}".repeat(levels));
        format!("{open}{{\"text\":{{}}}}{close}")
    };
    let parse = |text: &str| serde_json::from_str::<Map<String, Value>>(text).map_err(|e| e.to_string());
    let fine = parse(&deep(60)).unwrap();
    assert!(Feature::from_json(&Value::Object(fine)).is_ok());
    let begun = Instant::now();
    assert!(parse(&deep(10_000)).unwrap_err().contains("recursion limit"));
    assert!(begun.elapsed() < Duration::from_secs(1));
}
