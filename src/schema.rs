//! The feature tree of a corpus: what TFDS's `features.json` says about its rows.
//!
//! Three spellings of that file are in use, and all of them are read:
//!
//! | spelling | written by | a Text feature |
//! | --- | --- | --- |
//! | proto JSON | TFDS ≥ 4.4 | `{"pythonClassName": "….Text", "text": {}}` |
//! | proto JSON in an envelope | in between | `{"type": "….FeaturesDict", "content": <proto JSON>, "proto_cls": …}` |
//! | plain JSON | TFDS 4.0–4.3 | `{"type": "….Text", "content": {}}` |
//!
//! (tensorflow_datasets 4.9, `core/features/feature.py`: `FeatureConnector.from_json`, and `core/proto/feature.proto`.)
//!
//! The tree keeps what decoding and checking need: Text is a scalar string tensor, Translation a struct of texts,
//! TranslationVariableLanguages a sequence of `{language, translation}`.

use serde_json::{Map, Value};

/// A node of the feature tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Named features, sorted by name.
    Struct(Vec<(String, Feature)>),
    /// A list; of a struct, it is decoded to a struct of lists.
    Sequence {
        item: Box<Feature>,
        length: Option<u64>,
    },
    /// Stored like a sequence, decoded to a list of structs.
    Dataset {
        item: Box<Feature>,
        length: Option<u64>,
    },
    Tensor(Tensor),
    /// An integer that names a class; `names` is empty where the corpus has no label file. -1 is "unknown".
    Label {
        classes: u64,
        names: Vec<String>,
    },
    /// Images, audio and video: known, and of no use in a template.
    Opaque {
        class: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub dtype: Dtype,
    /// Outermost first; `None` is a length that each row decides. Empty for a scalar.
    pub shape: Vec<Option<u64>>,
    pub encoding: Encoding,
    /// The row may lack it.
    pub optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Values in the record's own lists.
    None,
    /// One byte string that holds the little-endian buffer.
    Bytes,
    /// The same, compressed with zlib.
    Zlib,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float16,
    Float32,
    Float64,
    String,
}

impl Dtype {
    /// The names that TFDS, NumPy and TensorFlow have used for it.
    fn parse(name: &str) -> Option<Dtype> {
        Some(match name {
            "bool" | "bool_" => Dtype::Bool,
            "int8" => Dtype::Int8,
            "int16" => Dtype::Int16,
            "int32" => Dtype::Int32,
            "int64" => Dtype::Int64,
            "uint8" => Dtype::UInt8,
            "uint16" => Dtype::UInt16,
            "uint32" => Dtype::UInt32,
            "uint64" => Dtype::UInt64,
            "float16" => Dtype::Float16,
            "float32" => Dtype::Float32,
            "float64" => Dtype::Float64,
            "string" | "object" | "str" | "str_" | "bytes" => Dtype::String,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "bool",
            Dtype::Int8 => "int8",
            Dtype::Int16 => "int16",
            Dtype::Int32 => "int32",
            Dtype::Int64 => "int64",
            Dtype::UInt8 => "uint8",
            Dtype::UInt16 => "uint16",
            Dtype::UInt32 => "uint32",
            Dtype::UInt64 => "uint64",
            Dtype::Float16 => "float16",
            Dtype::Float32 => "float32",
            Dtype::Float64 => "float64",
            Dtype::String => "string",
        }
    }

    /// Bytes a value takes in an encoded buffer; `None` for strings, which cannot be encoded so.
    pub fn width(self) -> Option<usize> {
        match self {
            Dtype::Bool | Dtype::Int8 | Dtype::UInt8 => Some(1),
            Dtype::Int16 | Dtype::UInt16 | Dtype::Float16 => Some(2),
            Dtype::Int32 | Dtype::UInt32 | Dtype::Float32 => Some(4),
            Dtype::Int64 | Dtype::UInt64 | Dtype::Float64 => Some(8),
            Dtype::String => None,
        }
    }
}

/// What is wrong with a `features.json`: where in the tree, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct SchemaError {
    /// Feature names from the root, joined by `/`; empty at the root.
    pub path: String,
    pub expected: String,
    pub found: String,
}

/// Deeper trees than this do not occur and would overflow the stack of whoever walks them.
const MAX_DEPTH: usize = 64;

/// A declared shape is not to decide how much memory is taken: a row that lacks an optional tensor is given one of that
/// shape. Text corpora have none of a thousand values.
const MAX_TENSOR_VALUES: u64 = 1 << 22;

impl Feature {
    /// A text feature.
    pub fn text() -> Feature {
        Feature::scalar(Dtype::String)
    }

    fn scalar(dtype: Dtype) -> Feature {
        Feature::Tensor(Tensor { dtype, shape: Vec::new(), encoding: Encoding::None, optional: false })
    }

    /// Reads any of the three spellings.
    pub fn from_json(json: &Value) -> Result<Feature, SchemaError> {
        parse(json, "", 0)
    }

    /// The named features of a struct, or nothing.
    pub fn fields(&self) -> &[(String, Feature)] {
        match self {
            Feature::Struct(fields) => fields,
            _ => &[],
        }
    }

    /// One line that says what this is, for messages: `list of text`, `int64`, `label of 3 classes`.
    pub fn describe(&self) -> String {
        match self {
            Feature::Struct(fields) => {
                format!("struct with {}", fields.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "))
            }
            Feature::Sequence { item, length: None } => format!("sequence of {}", item.describe()),
            Feature::Sequence { item, length: Some(n) } => format!("sequence of {n} × {}", item.describe()),
            Feature::Dataset { item, .. } => format!("dataset of {}", item.describe()),
            Feature::Label { classes, .. } => format!("label of {classes} classes"),
            Feature::Opaque { class } => class.rsplit('.').next().unwrap_or(class).to_lowercase(),
            Feature::Tensor(t) => {
                let mut text = if t.dtype == Dtype::String { "text".to_owned() } else { t.dtype.name().to_owned() };
                if !t.shape.is_empty() {
                    let dims: Vec<String> = t.shape.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
                    text = format!("{text} tensor [{}]", dims.join(", "));
                }
                if t.optional { format!("optional {text}") } else { text }
            }
        }
    }

    /// How `found` differs from this tree, a sentence a feature; nothing if rows of one can be read as the other.
    pub fn differences(&self, found: &Feature) -> Vec<String> {
        let mut list = Vec::new();
        compare(self, found, "", &mut list);
        list
    }
}

fn compare(expected: &Feature, found: &Feature, path: &str, list: &mut Vec<String>) {
    let name = if path.is_empty() { "the row" } else { path };
    match (expected, found) {
        (Feature::Struct(a), Feature::Struct(b)) => {
            let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}/{key}") };
            for (key, feature) in a {
                match b.iter().find(|(other, _)| other == key) {
                    Some((_, other)) => compare(feature, other, &join(key), list),
                    None => list.push(format!("`{}` ({}) is missing", join(key), feature.describe())),
                }
            }
            for (key, feature) in b.iter().filter(|(key, _)| !a.iter().any(|(other, _)| other == key)) {
                list.push(format!("`{}` ({}) is new", join(key), feature.describe()));
            }
        }
        (Feature::Sequence { item: a, length: m }, Feature::Sequence { item: b, length: n })
        | (Feature::Dataset { item: a, length: m }, Feature::Dataset { item: b, length: n })
            if m == n =>
        {
            compare(a, b, path, list);
        }
        (Feature::Label { classes: a, names: m }, Feature::Label { classes: b, names: n }) => {
            if a != b {
                list.push(format!("`{name}` has {b} classes, expected {a}"));
            } else if m != n && !m.is_empty() && !n.is_empty() {
                list.push(format!("`{name}` names its classes {}, expected {}", n.join(", "), m.join(", ")));
            }
        }
        (a, b) if a == b => {}
        (a, b) => list.push(format!("`{name}` is {}, expected {}", b.describe(), a.describe())),
    }
}

fn parse(json: &Value, path: &str, depth: usize) -> Result<Feature, SchemaError> {
    let fail = |expected: &str, found: String| SchemaError { path: path.into(), expected: expected.into(), found };
    if depth > MAX_DEPTH {
        return Err(fail("a feature tree of at most 64 levels", "a deeper one".into()));
    }
    let Value::Object(object) = json else {
        return Err(fail("an object that describes a feature", brief(json)));
    };
    if let (Some(Value::String(class)), Some(content)) = (object.get("type"), object.get("content")) {
        return parse_envelope(class, content, object.contains_key("proto_cls"), path, depth);
    }
    parse_proto(object, path, depth)
}

/// `{"type": class, "content": …}`: plain JSON by class, or, with `proto_cls`, the proto JSON of that class's message.
fn parse_envelope(class: &str, content: &Value, proto: bool, path: &str, depth: usize) -> Result<Feature, SchemaError> {
    let fail = |expected: &str, found: String| SchemaError { path: path.into(), expected: expected.into(), found };
    let parsed;
    let content = match content {
        Value::String(text) => {
            parsed = serde_json::from_str(text).map_err(|e| fail("JSON in `content`", e.to_string()))?;
            &parsed
        }
        other => other,
    };
    let kind = class.rsplit('.').next().unwrap_or(class);
    let key = match kind {
        "FeaturesDict" => "featuresDict",
        "Tensor" | "Scalar" => "tensor",
        "Text" => "text",
        "ClassLabel" => "classLabel",
        "Sequence" | "Dataset" => "sequence",
        "Translation" | "TranslationVariableLanguages" => "translation",
        "BBoxFeature" | "BBox" => "boundingBox",
        "Image" | "LabeledImage" => "image",
        "Video" => "video",
        "Audio" => "audio",
        _ => return Err(fail("a feature class that flanc knows", class.to_owned())),
    };
    // The plain spelling lists a struct's features directly, and a few keys differ; both become the proto's form.
    let mut content = content.clone();
    if !proto && key == "featuresDict" {
        content = serde_json::json!({ "features": content });
    }
    if kind == "TranslationVariableLanguages"
        && let Value::Object(map) = &mut content
    {
        map.insert("variableLanguagesPerExample".into(), Value::Bool(true));
    }
    let mut object = Map::new();
    object.insert("pythonClassName".into(), Value::String(class.to_owned()));
    object.insert(key.into(), content);
    parse_proto(&object, path, depth)
}

fn parse_proto(object: &Map<String, Value>, path: &str, depth: usize) -> Result<Feature, SchemaError> {
    let fail = |expected: &str, found: String| SchemaError { path: path.into(), expected: expected.into(), found };
    let class = get(object, "pythonClassName").and_then(Value::as_str).unwrap_or("");
    let kinds = [
        "featuresDict",
        "tensor",
        "classLabel",
        "text",
        "translation",
        "sequence",
        "boundingBox",
        "image",
        "video",
        "audio",
        "jsonFeature",
    ];
    let Some((kind, content)) = kinds.iter().find_map(|kind| Some((*kind, get(object, kind)?))) else {
        let keys: Vec<&str> = object.keys().map(String::as_str).filter(|k| *k != "pythonClassName").collect();
        let found = match (keys.is_empty(), class) {
            (true, _) => "none of them".to_owned(),
            (false, "") => keys.join(", "),
            (false, class) => format!("{} of class {class}", keys.join(", ")),
        };
        return Err(fail(&format!("one of {}", kinds.join(", ")), found));
    };
    match kind {
        "featuresDict" => {
            let Some(Value::Object(features)) = get_in(content, "features") else {
                return Ok(Feature::Struct(Vec::new())); // proto3 JSON leaves an empty map out
            };
            let mut fields = Vec::new();
            for (name, feature) in features {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                fields.push((name.clone(), parse(feature, &path, depth + 1)?));
            }
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Feature::Struct(fields))
        }
        "text" => Ok(Feature::text()),
        "tensor" => parse_tensor(content, path),
        "classLabel" => {
            let classes = get_in(content, "numClasses").map_or(Some(0), integer).filter(|&n| n >= 0);
            let classes = classes.ok_or_else(|| fail("a number of classes", brief(content)))? as u64;
            Ok(Feature::Label { classes, names: Vec::new() })
        }
        "sequence" => {
            let item = get_in(content, "feature").ok_or_else(|| fail("`feature` in `sequence`", brief(content)))?;
            let item = Box::new(parse(item, path, depth + 1)?);
            let length = match get_in(content, "length") {
                None | Some(Value::Null) => None,
                Some(value) => match integer(value) {
                    Some(n) if n >= 0 => Some(n as u64),
                    Some(_) => None,
                    None => return Err(fail("a length", brief(value))),
                },
            };
            let dataset = class.rsplit('.').next() == Some("Dataset");
            Ok(if dataset { Feature::Dataset { item, length } } else { Feature::Sequence { item, length } })
        }
        "translation" => {
            let variable = get_in(content, "variableLanguagesPerExample").and_then(Value::as_bool) == Some(true)
                || class.ends_with("TranslationVariableLanguages");
            let names = if variable {
                vec!["language".to_owned(), "translation".to_owned()]
            } else {
                let languages = get_in(content, "languages").and_then(Value::as_array);
                let languages = languages.ok_or_else(|| fail("a list of languages", brief(content)))?;
                let mut names: Vec<String> = languages.iter().filter_map(|l| l.as_str().map(str::to_owned)).collect();
                names.sort();
                names
            };
            let texts = Feature::Struct(names.into_iter().map(|name| (name, Feature::text())).collect());
            Ok(if variable { Feature::Sequence { item: Box::new(texts), length: None } } else { texts })
        }
        "boundingBox" => Ok(Feature::Tensor(Tensor {
            dtype: Dtype::Float32,
            shape: vec![Some(4)],
            encoding: Encoding::None,
            optional: false,
        })),
        "jsonFeature" => {
            let text = get_in(content, "json").and_then(Value::as_str).unwrap_or("{}");
            let content: Value =
                serde_json::from_str(text).map_err(|e| fail("JSON in `jsonFeature`", e.to_string()))?;
            parse_envelope(class, &content, false, path, depth + 1)
        }
        _ => Ok(Feature::Opaque { class: class.to_owned() }),
    }
}

fn parse_tensor(content: &Value, path: &str) -> Result<Feature, SchemaError> {
    let fail = |expected: &str, found: String| SchemaError { path: path.into(), expected: expected.into(), found };
    let dtype = get_in(content, "dtype").and_then(Value::as_str).unwrap_or("");
    let dtype = Dtype::parse(dtype).ok_or_else(|| fail("a dtype that TFDS stores", format!("`{dtype}`")))?;
    let dimensions = match get_in(content, "shape") {
        Some(Value::Array(dims)) => dims.as_slice(),
        Some(shape) => get_in(shape, "dimensions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice),
        None => &[],
    };
    let mut shape = Vec::new();
    for dimension in dimensions {
        shape.push(match dimension {
            Value::Null => None,
            value => match integer(value) {
                Some(n) if n >= 0 => Some(n as u64),
                Some(_) => None,
                None => return Err(fail("a dimension", brief(value))),
            },
        });
    }
    let encoding = match get_in(content, "encoding").and_then(Value::as_str).unwrap_or("none") {
        "none" | "" => Encoding::None,
        "bytes" => Encoding::Bytes,
        "zlib" => Encoding::Zlib,
        other => return Err(fail("encoding none, bytes or zlib", format!("`{other}`"))),
    };
    if encoding != Encoding::None && (shape.contains(&None) || dtype == Dtype::String) {
        return Err(fail("numbers of a fixed shape under an encoding", brief(content)));
    }
    // A dimension of 0 leaves no values, but lists of the others, empty ones.
    let values = shape.iter().flatten().try_fold(1u64, |n, d| n.checked_mul((*d).max(1)));
    if values.is_none_or(|n| n > MAX_TENSOR_VALUES) {
        return Err(fail(&format!("a tensor of at most {MAX_TENSOR_VALUES} values"), brief(content)));
    }
    if shape.iter().filter(|d| d.is_none()).count() > 1 {
        return Err(fail("at most one unknown dimension", brief(content)));
    }
    let optional = get_in(content, "optional").and_then(Value::as_bool) == Some(true);
    Ok(Feature::Tensor(Tensor { dtype, shape, encoding, optional }))
}

/// A key in camelCase or snake_case: protobuf's JSON reader accepts both.
pub fn get<'j>(object: &'j Map<String, Value>, camel: &str) -> Option<&'j Value> {
    object.get(camel).or_else(|| {
        let mut snake = String::new();
        for c in camel.chars() {
            if c.is_ascii_uppercase() {
                snake.push('_');
            }
            snake.push(c.to_ascii_lowercase());
        }
        object.get(&snake)
    })
}

fn get_in<'j>(value: &'j Value, camel: &str) -> Option<&'j Value> {
    get(value.as_object()?, camel)
}

/// An int64 of proto3 JSON: a number or a decimal string.
pub fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// A JSON value cut to what fits into a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
