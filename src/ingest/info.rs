//! `dataset_info.json` and the directory it stands in: which corpus, which version, which splits, which files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::diag::{Diagnostic, Place, Result, closest, listing};
use crate::schema::{Feature, get, integer};
use crate::storage;

/// `name[/config][:version]`, as TFDS writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CorpusName {
    pub name: String,
    pub config: Option<String>,
    /// `X.Y.Z`; the highest on disk where it is absent.
    pub version: Option<String>,
}

impl std::fmt::Display for CorpusName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if let Some(config) = &self.config {
            write!(f, "/{config}")?;
        }
        if let Some(version) = &self.version {
            write!(f, ":{version}")?;
        }
        Ok(())
    }
}

impl CorpusName {
    /// Stands for no corpus: the rows of such a task are given as JSON.
    pub const NONE: &str = "none";

    pub fn is_none(&self) -> bool {
        self.name == CorpusName::NONE
    }

    /// Parses `name[/config][:version]`.
    pub fn parse(text: &str) -> Result<CorpusName> {
        let wrong = |found: &str| {
            Diagnostic::error("corpus-name", format!("`{text}` does not name a corpus"))
                .expected("name[/config][:version], such as super_glue/rte:1.0.2")
                .found(found)
        };
        let (path, version) = match text.split_once(':') {
            Some((path, version)) => (path, Some(version.to_owned())),
            None => (text, None),
        };
        let (name, config) = match path.split_once('/') {
            Some((name, config)) => (name, Some(config.to_owned())),
            None => (path, None),
        };
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+'))
        };
        if !plain(name) || config.as_deref().is_some_and(|c| !plain(c)) {
            return Err(wrong("a name with other characters than letters, digits, `_`, `-`, `.` and `+`").into());
        }
        if let Some(version) = &version
            && version_number(version).is_none()
        {
            return Err(wrong(&format!("version `{version}`")).into());
        }
        Ok(CorpusName { name: name.to_owned(), config, version })
    }
}

/// `X.Y.Z` as numbers: versions are compared by them, not as text.
pub fn version_number(text: &str) -> Option<[u64; 3]> {
    let mut parts = text.split('.').map(|p| if p.chars().all(|c| c.is_ascii_digit()) { p.parse().ok() } else { None });
    let number = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(number)
}

/// The container that holds a split's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    TfRecord,
    ArrayRecord,
    Parquet,
}

impl FileFormat {
    fn suffix(self) -> &'static str {
        match self {
            FileFormat::TfRecord => "tfrecord",
            FileFormat::ArrayRecord => "array_record",
            FileFormat::Parquet => "parquet",
        }
    }
}

/// A split as `dataset_info.json` promises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitInfo {
    pub name: String,
    /// Records in each shard, in reading order.
    pub shard_lengths: Vec<u64>,
    /// The file-name template, where it is not TFDS's default.
    pub template: Option<String>,
}

impl SplitInfo {
    pub fn rows(&self) -> u64 {
        self.shard_lengths.iter().sum()
    }
}

/// Everything a corpus says of itself before a record is read.
#[derive(Clone, Debug)]
pub struct CorpusInfo {
    /// With the version that was found.
    pub name: CorpusName,
    /// What the corpus calls itself, which its file names begin with.
    dataset: String,
    pub directory: PathBuf,
    pub format: FileFormat,
    pub splits: Vec<SplitInfo>,
    pub features: Feature,
    /// What the corpus says of its licence, often nothing.
    pub licence: String,
    /// What is odd about the headers without being wrong.
    pub warnings: Vec<Diagnostic>,
}

impl CorpusInfo {
    /// What is known of a corpus that is not there.
    pub fn published(name: &CorpusName, rows: &[(String, u64)]) -> CorpusInfo {
        let split =
            |(name, rows): &(String, u64)| SplitInfo { name: name.clone(), shard_lengths: vec![*rows], template: None };
        CorpusInfo {
            name: name.clone(),
            dataset: name.name.clone(),
            directory: PathBuf::new(),
            format: FileFormat::TfRecord,
            splits: rows.iter().map(split).collect(),
            features: Feature::Struct(Vec::new()),
            licence: String::new(),
            warnings: Vec::new(),
        }
    }
}

/// Finds the directory of a corpus below one of `data_dirs` and reads its headers.
pub fn read(name: &CorpusName, data_dirs: &[PathBuf]) -> Result<CorpusInfo> {
    let (directory, version) = find(name, data_dirs)?;
    let name = CorpusName { version: Some(version), ..name.clone() };
    read_directory(name, directory)
}

/// Whether any of `data_dirs` has this corpus, in any version or in the one that is asked for.
pub fn exists(name: &CorpusName, data_dirs: &[PathBuf]) -> bool {
    find(name, data_dirs).is_ok()
}

fn find(name: &CorpusName, data_dirs: &[PathBuf]) -> Result<(PathBuf, String)> {
    let relative = match &name.config {
        Some(config) => Path::new(&name.name).join(config),
        None => PathBuf::from(&name.name),
    };
    let mut others = Vec::new();
    let mut best: Option<([u64; 3], PathBuf, String)> = None;
    for data_dir in data_dirs {
        let base = data_dir.join(&relative);
        for (entry, _) in storage::list(&base)?.into_iter().filter(|(_, is_dir)| *is_dir) {
            // What is no X.Y.Z is no version, such as an unfinished write.
            let Some(number) = version_number(&entry) else { continue };
            let wanted = name.version.as_ref().is_none_or(|v| version_number(v) == Some(number));
            if wanted && best.as_ref().is_none_or(|(other, _, _)| number > *other) {
                best = Some((number, base.join(&entry), entry));
            } else if !wanted {
                others.push(entry);
            }
        }
    }
    if let Some((_, directory, version)) = best {
        return Ok((directory, version));
    }
    let looked = data_dirs.iter().map(|d| d.join(&relative).display().to_string()).collect::<Vec<_>>().join(", ");
    let mut diagnostic = Diagnostic::error("corpus-not-found", format!("no corpus `{name}` on disk"))
        .expected("a directory <data-dir>/<name>[/<config>]/<version> that TFDS wrote")
        .found(format!("none in {looked}"));
    let config = if others.is_empty() { config_hint(name, data_dirs)? } else { None };
    let hints =
        [versions_hint(others), config, unfinished_hint(&relative, data_dirs)?, misplaced_hint(&relative, data_dirs)?];
    for hint in hints.into_iter().flatten() {
        diagnostic = diagnostic.help(hint);
    }
    if diagnostic.notes.iter().all(|(kind, _)| *kind != "help") {
        diagnostic = diagnostic
            .help("name the directory that tfds.load used as data_dir with --data-dir; it may be given more than once");
    }
    Err(diagnostic.into())
}

fn versions_hint(mut others: Vec<String>) -> Option<String> {
    others.sort_by_key(|version| version_number(version));
    others.dedup();
    (!others.is_empty()).then(|| format!("these versions are there: {}", listing(others.iter().map(String::as_str))))
}

/// For a corpus whose export was begun and not ended.
fn unfinished_hint(relative: &Path, data_dirs: &[PathBuf]) -> Result<Option<String>> {
    for data_dir in data_dirs {
        let base = data_dir.join(relative);
        if let Some((name, _)) = storage::list(&base)?.iter().find(|(name, is_dir)| *is_dir && is_unfinished(name)) {
            let path = base.join(name);
            return Ok(Some(format!(
                "{} is an export that was not finished: run tfds.load or `tfds build` again",
                path.display()
            )));
        }
    }
    Ok(None)
}

/// `incomplete.XXXXXX_1.0.0` (now) and `1.0.0.incompleteXXXXXX` (before) are directories that TFDS is writing.
fn is_unfinished(directory: &str) -> bool {
    directory.starts_with("incomplete.") || directory.contains(".incomplete")
}

/// For a name without its config, or with one that is not there.
fn config_hint(name: &CorpusName, data_dirs: &[PathBuf]) -> Result<Option<String>> {
    for data_dir in data_dirs {
        let base = data_dir.join(&name.name);
        let entries = storage::list(&base)?;
        let configs: Vec<&str> = entries
            .iter()
            .filter(|(n, is_dir)| *is_dir && !n.starts_with('.') && !is_unfinished(n) && version_number(n).is_none())
            .map(|(n, _)| n.as_str())
            .collect();
        if configs.is_empty() {
            continue;
        }
        let hint = format!("`{}` has these configs here: {}", name.name, listing(configs.iter().copied()));
        let likely = match &name.config {
            Some(config) => {
                closest(config, configs.iter().copied()).map(|config| format!("did you mean `{}/{config}`?", name.name))
            }
            None => default_config(&base).map(|config| format!("tfds.load would take `{}/{config}`", name.name)),
        };
        return Ok(Some(likely.map_or(hint.clone(), |likely| format!("{hint}; {likely}"))));
    }
    Ok(None)
}

/// The config that TFDS loads when none is named. A file that is not there or not understood is no matter here.
fn default_config(base: &Path) -> Option<String> {
    let text = storage::read_text(&base.join(".config/metadata.json")).ok()?;
    let metadata: Value = serde_json::from_str(&text).ok()?;
    Some(metadata.get("default_config_name")?.as_str()?.to_owned())
}

/// For a --data-dir that is a corpus itself, or holds what `as_dataframe` made.
fn misplaced_hint(relative: &Path, data_dirs: &[PathBuf]) -> Result<Option<String>> {
    for directory in data_dirs.iter().flat_map(|data_dir| [data_dir.clone(), data_dir.join(relative)]) {
        let entries = storage::list(&directory)?;
        let has_versions = entries.iter().any(|(name, is_dir)| *is_dir && version_number(name).is_some());
        let files: Vec<&str> = entries.iter().filter(|(_, is_dir)| !is_dir).map(|(name, _)| name.as_str()).collect();
        if files.contains(&"dataset_info.json") || has_versions && data_dirs.contains(&directory) {
            let hint = "is the directory of one corpus: give the one above <name>[/<config>]/<version> as --data-dir";
            return Ok(Some(format!("{} {hint}", directory.display())));
        }
        if files.iter().any(|name| name.ends_with(".parquet")) {
            let hint = "holds Parquet tables, such as tfds.as_dataframe(…).to_parquet(…) writes: their feature types are \
                        lost, read the directory that TFDS prepared";
            return Ok(Some(format!("{} {hint}", directory.display())));
        }
    }
    Ok(None)
}

fn read_directory(name: CorpusName, directory: PathBuf) -> Result<CorpusInfo> {
    let info_path = directory.join("dataset_info.json");
    let info = read_json(&info_path, "dataset_info.json")?;
    let mut warnings = Vec::new();
    let format = read_format(&info, &info_path, &directory, &mut warnings)?;
    let splits = read_splits(&info, &info_path)?;
    let features_path = directory.join("features.json");
    let features = read_json(&features_path, "features.json")?;
    let mut features = Feature::from_json(&Value::Object(features)).map_err(|e| {
        let place = if e.path.is_empty() { "the top level".to_owned() } else { format!("feature `{}`", e.path) };
        Diagnostic::error("features", format!("features.json is not understood at {place}"))
            .at(&features_path)
            .expected(e.expected)
            .found(e.found)
            .help("export the corpus again with a current tensorflow_datasets, without custom feature classes")
    })?;
    let label_file = |name: &str| {
        let path = directory.join(name);
        storage::stamp(&path).map(|_| storage::read_text(&path)).transpose()
    };
    let labelled = warnings.len();
    read_labels(&mut features, "", &label_file, &mut warnings).map_err(|d| in_directory(*d, &directory))?;
    for warning in warnings.drain(labelled..).collect::<Vec<_>>() {
        warnings.push(in_directory(warning, &directory));
    }
    let text = |key: &str| get(&info, key).and_then(Value::as_str).unwrap_or("").trim().to_owned();
    let licence = get(&info, "redistributionInfo").and_then(|r| r.get("license")).and_then(Value::as_str).unwrap_or("");
    let dataset = if text("name").is_empty() { name.name.clone() } else { text("name") };
    if dataset != name.name {
        warnings.push(
            Diagnostic::warning(
                "corpus-renamed",
                format!("the directory of `{}` holds a corpus that calls itself `{dataset}`", name.name),
            )
            .at(&info_path),
        );
    }
    Ok(CorpusInfo { licence: licence.trim().to_owned(), name, dataset, directory, format, splits, features, warnings })
}

/// Gives a label file's name its directory.
fn in_directory(diagnostic: Diagnostic, directory: &Path) -> Diagnostic {
    match &diagnostic.place {
        Place::Path(name) => {
            let path = directory.join(name);
            diagnostic.at(&path)
        }
        _ => diagnostic,
    }
}

fn read_json(path: &Path, what: &str) -> Result<Map<String, Value>> {
    if storage::stamp(path).is_none() {
        let beside = path.parent().map(storage::list).transpose()?.unwrap_or_default();
        return Err(Diagnostic::error("header-missing", format!("{what} is missing"))
            .at(path)
            .expected("the JSON header that TFDS writes beside every corpus")
            .found(format!("beside it: {}", listing(beside.iter().map(|(name, _)| name.as_str()))))
            .help("copy the whole version directory, or export the corpus again with tensorflow_datasets 4 or newer")
            .into());
    }
    let text = storage::read_text(path)?;
    let wrong = |found: String| {
        Diagnostic::error("header-json", format!("{what} is not valid JSON"))
            .at(path)
            .expected("one JSON object")
            .found(found)
            .help("the file may have been cut while it was copied; copy or export it again")
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("another kind of JSON value".into()).into()),
        Err(e) => Err(wrong(e.to_string()).into()),
    }
}

/// The format to read: the main one, or an alternative where only that one's files are there.
fn read_format(
    info: &Map<String, Value>,
    path: &Path,
    directory: &Path,
    warnings: &mut Vec<Diagnostic>,
) -> Result<FileFormat> {
    let main = get(info, "fileFormat").and_then(Value::as_str).unwrap_or("tfrecord");
    let alternatives = get(info, "alternativeFileFormats").and_then(Value::as_array);
    let alternatives: Vec<&str> = alternatives.into_iter().flatten().filter_map(Value::as_str).collect();
    let parse = |name: &str| match name.to_ascii_lowercase().as_str() {
        "tfrecord" | "" => Ok(FileFormat::TfRecord),
        "array_record" => Ok(FileFormat::ArrayRecord),
        "parquet" => Ok(FileFormat::Parquet),
        "riegeli" => Err((
            "files in Riegeli's transposed layout, which flanc does not read",
            "convert it: tfds convert_format --dataset_dir=… --out_file_format=array_record",
        )),
        _ => Err((
            "a file format that TFDS does not have",
            "correct fileFormat if the files are in one of these, or export the corpus again",
        )),
    };
    for name in std::iter::once(&main).chain(&alternatives) {
        if let Ok(format) = parse(name) {
            let marker = format!(".{}", format.suffix());
            let present = storage::list(directory)?.iter().any(|(file, _)| file.contains(&marker));
            if present || (*name == main && alternatives.is_empty()) {
                if *name != main {
                    warnings.push(
                        Diagnostic::warning("alternative-format", format!("read as {name}, an alternative to {main}"))
                            .at(path),
                    );
                }
                return Ok(format);
            }
        }
    }
    match parse(main) {
        Ok(format) => Ok(format),
        Err((why, help)) => Err(Diagnostic::error("file-format", format!("fileFormat `{main}` cannot be read"))
            .at(path)
            .expected("tfrecord, array_record or parquet")
            .found(why)
            .help(help)
            .into()),
    }
}

fn read_splits(info: &Map<String, Value>, path: &Path) -> Result<Vec<SplitInfo>> {
    let wrong = |what: String| {
        Diagnostic::error("header-splits", "the splits in dataset_info.json are not understood")
            .at(path)
            .expected("splits as a list of {name, shardLengths, filepathTemplate}")
            .found(what)
    };
    let list = match get(info, "splits") {
        None => &[][..],
        Some(Value::Array(list)) => list.as_slice(),
        Some(other) => return Err(wrong(other.to_string().chars().take(60).collect()).into()),
    };
    let mut splits = Vec::new();
    for split in list {
        let split = split.as_object().ok_or_else(|| wrong("a split that is no object".into()))?;
        let name = get(split, "name").and_then(Value::as_str).unwrap_or("");
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
            return Err(wrong(format!("a split named `{name}`")).into());
        }
        if splits.iter().any(|other: &SplitInfo| other.name == name) {
            return Err(wrong(format!("two splits named `{name}`")).into());
        }
        let mut shard_lengths = Vec::new();
        for length in get(split, "shardLengths").and_then(Value::as_array).into_iter().flatten() {
            let length = integer(length).and_then(|n| u64::try_from(n).ok()).filter(|n| *n < 1 << 48);
            shard_lengths.push(length.ok_or_else(|| wrong(format!("a shard length of `{name}` that is no count")))?);
        }
        let rows = shard_lengths.iter().try_fold(0u64, |rows, n| rows.checked_add(*n).filter(|rows| *rows < 1 << 48));
        if rows.is_none() {
            return Err(wrong(format!("more rows in `{name}` than a disk holds")).into());
        }
        if let Some(declared) = get(split, "numShards").and_then(integer)
            && declared as usize != shard_lengths.len()
        {
            return Err(
                wrong(format!("{declared} shards but {} shard lengths in `{name}`", shard_lengths.len())).into()
            );
        }
        let template = get(split, "filepathTemplate").and_then(Value::as_str).filter(|t| !t.is_empty());
        splits.push(SplitInfo { name: name.to_owned(), shard_lengths, template: template.map(str::to_owned) });
    }
    Ok(splits)
}

impl CorpusInfo {
    /// Paths of a split's shards, in reading order. The file-name template is foreign text: it may not leave the directory.
    pub fn shard_paths(&self, split: &SplitInfo) -> Result<Vec<PathBuf>> {
        const DEFAULT: &str = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}";
        let template = split.template.as_deref().unwrap_or(DEFAULT);
        let shards = split.shard_lengths.len();
        let wrong = |found: String| {
            Diagnostic::error("file-template", format!("the file-name template of split `{}` is refused", split.name))
                .at(&self.directory.join("dataset_info.json"))
                .expected(format!("a plain file name such as {DEFAULT}"))
                .found(found)
                .help("the corpus may come from an untrusted place; correct filepathTemplate or export it again")
        };
        let mut paths = Vec::with_capacity(shards);
        for shard in 0..shards {
            let mut name = String::new();
            let mut rest = template;
            while let Some(open) = rest.find('{') {
                let close = rest[open..].find('}').ok_or_else(|| wrong(format!("`{template}`")))? + open;
                name.push_str(&rest[..open]);
                match &rest[open + 1..close] {
                    "DATASET" => name.push_str(&self.dataset),
                    "SPLIT" => name.push_str(&split.name),
                    "FILEFORMAT" => name.push_str(self.format.suffix()),
                    "SHARD_INDEX" => name.push_str(&format!("{shard:05}")),
                    "NUM_SHARDS" => name.push_str(&format!("{shards:05}")),
                    "SHARD_X_OF_Y" => name.push_str(&format!("{shard:05}-of-{shards:05}")),
                    other => return Err(wrong(format!("the variable {{{other}}} in `{template}`")).into()),
                }
                rest = &rest[close + 1..];
            }
            name.push_str(rest);
            if name.is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
                return Err(wrong(format!("`{name}`, which is not a file name in this directory")).into());
            }
            paths.push(self.directory.join(name));
        }
        if shards > 1 && paths.first() == paths.get(1) {
            return Err(wrong(format!("the same name for all of {shards} shards from `{template}`")).into());
        }
        Ok(paths)
    }
}

/// Fills the class names of a feature tree in. `labels` reads a label file by its name, or gives `None` if there is none.
pub fn read_labels(
    feature: &mut Feature,
    path: &str,
    labels: &dyn Fn(&str) -> Result<Option<String>>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<()> {
    match feature {
        Feature::Struct(fields) => {
            for (name, feature) in fields {
                // TFDS joins the path with `-`, and a `/` inside a name becomes a `.`.
                let name = name.replace('/', ".");
                let path = if path.is_empty() { name } else { format!("{path}-{name}") };
                read_labels(feature, &path, labels, warnings)?;
            }
        }
        Feature::Sequence { item, .. } | Feature::Dataset { item, .. } => read_labels(item, path, labels, warnings)?,
        Feature::Label { classes, names } => {
            let file = format!("{path}.labels.txt");
            let Some(text) = labels(&file)? else {
                // Legal: a ClassLabel made from num_classes alone has no names, and TFDS then prints numbers.
                let message = format!("`{path}` has no label file; its {classes} classes go by their numbers");
                let help = "if the corpus has names for them, copy its *.labels.txt too";
                warnings.push(Diagnostic::warning("label-names", message).at(Path::new(&file)).help(help));
                return Ok(());
            };
            *names = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
            if names.len() as u64 != *classes {
                return Err(Diagnostic::error(
                    "label-file",
                    format!("the label file of `{path}` does not fit features.json"),
                )
                .at(Path::new(&file))
                .expected(format!("{classes} names"))
                .found(format!("{} names", names.len()))
                .help("the files are from different exports; copy or export the corpus again")
                .into());
            }
        }
        Feature::Tensor(_) | Feature::Opaque { .. } => {}
    }
    Ok(())
}
