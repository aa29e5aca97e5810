//! Drafts: a task's definition with other texts in some of its places, before any of it is saved.
//!
//! The page edits [`Part`]s, the strings of a definition that are templates or expressions. A draft is the text of the
//! definition's file with these strings exchanged, read and checked as any definition is; what would be saved is what
//! is looked at. A task that is `like` another has parts that stand in the other's file; they are edited there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::literal::{literal, splice};
use crate::diag::{Diagnostic, Result, Source, Span, one};
use crate::document;
use crate::storage;
use crate::task::{Folder, Task};
use crate::template::definition::{self, Body, Definition};
use crate::template::snippet::Snippet;

/// A string of a definition that can be edited: `filter`, `field/NAME`, `template/NAME/inputs` (or `targets`, `prompt`,
/// `answer_choices`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Part(pub String);

/// Other texts for some parts.
pub type Edits = BTreeMap<Part, String>;

/// The definitions that drafts are made of.
pub struct Definitions {
    folder: Folder,
    schemas: Folder,
    /// By task: its file, and whether it is one of the bundled ones.
    files: BTreeMap<String, File>,
    /// Held from looking at a version to writing the next one.
    saving: Mutex<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    bundled: bool,
    path: String,
}

/// A task as its files say, the task's own file first and then those of the tasks it is like.
pub struct Stated {
    files: Vec<(File, Arc<Source>)>,
    pub definition: Definition,
    /// Of all these files: names the version that edits were made to.
    pub version: String,
}

/// What became of edits.
pub struct Draft {
    /// By index into the files of [`Stated`]: their texts with the edits in them, where there were any.
    changed: Vec<(usize, String)>,
    /// The definition, as far as it can be read, for the places of diagnostics.
    pub definition: Option<Definition>,
    pub task: Option<Task>,
    /// Warnings, or, where there is no task, errors.
    pub diagnostics: Vec<Diagnostic>,
}

/// Most bytes that a part may have. The checker allows less and says so; this is for what is no template at all.
const LARGEST_PART: usize = 64 << 10;

impl Definitions {
    pub fn new(folder: Folder, schemas: Folder) -> Result<Definitions> {
        let mut files = BTreeMap::new();
        for (bundled, folder) in [(true, &Folder::BundledDefinitions), (false, &folder)] {
            for path in folder.files()?.into_iter().filter(|f| f.ends_with(".toml") && !f.starts_with("recipes/")) {
                let Some(text) = folder.read(&path)? else { continue };
                let bundled = bundled || matches!(folder, Folder::BundledDefinitions);
                let name = document::skim(&Source::new(folder.name(&path), text), |t| t.text("task").map(|s| s.text));
                files.extend(name.map(|name| (name, File { bundled, path })));
            }
        }
        Ok(Definitions { folder, schemas, files, saving: Mutex::default() })
    }

    fn folder_of(&self, file: &File) -> &Folder {
        if file.bundled { &Folder::BundledDefinitions } else { &self.folder }
    }

    /// Reads a task's files as they are now.
    pub fn stated(&self, task: &str) -> Result<Stated, Vec<Diagnostic>> {
        let mut files: Vec<(File, Arc<Source>)> = Vec::new();
        let mut drafts = Vec::new();
        let mut hasher = blake3::Hasher::new();
        let mut wanted = Some(task.to_owned());
        while let Some(name) = wanted.take() {
            let unknown = || Diagnostic::error("unknown-task", format!("there is no task `{name}`"));
            let file = self.files.get(&name).ok_or_else(|| vec![unknown()])?;
            if files.iter().any(|(known, _)| known == file) {
                return Err(vec![Diagnostic::error("like", format!("task `{task}` is like itself"))]);
            }
            let folder = self.folder_of(file);
            let gone = || unknown().note("note", format!("{} is not there any more", folder.name(&file.path)));
            let text = folder.read(&file.path).map_err(one)?.ok_or_else(|| vec![gone()])?;
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            let source = Source::new(folder.name(&file.path), text);
            let (draft, _) = definition::read(&source)?;
            wanted = draft.like.as_ref().map(|like| like.text.clone());
            files.push((file.clone(), source));
            drafts.push(draft);
        }
        let definition = complete(drafts).ok_or_else(|| vec![incomplete(task)])?;
        Ok(Stated { files, definition, version: hasher.finalize().to_hex().to_string() })
    }

    /// The task as it is stated.
    pub fn task(&self, stated: &Stated) -> Result<Task, Vec<Diagnostic>> {
        Task::draft(stated.definition.clone(), &self.schemas).map(|(task, _)| task)
    }

    /// Puts edits into a task.
    ///
    /// # Errors
    /// An edit is of no part of the task. What is wrong with the texts themselves is in the draft.
    pub fn draft(&self, stated: &Stated, edits: &Edits) -> Result<Draft> {
        let mut by_file: Vec<Vec<(Range<usize>, String)>> = stated.files.iter().map(|_| Vec::new()).collect();
        for (part, text) in edits {
            if text.len() > LARGEST_PART {
                let message = format!("`{}` has {} bytes, and at most {LARGEST_PART} are read", part.0, text.len());
                return Err(Diagnostic::error("template-too-large", message).into());
            }
            let unknown = || Diagnostic::error("unknown-part", format!("there is no `{}`", part.0));
            let snippet = part.of(&stated.definition).ok_or_else(unknown)?;
            if lines(snippet) == *text {
                continue;
            }
            let (file, source, range) = stated.literal(snippet, part).ok_or_else(unknown)?;
            let new = literal(text, &source.text[range.clone()]);
            by_file[file].push((range, new));
        }
        let mut changed = Vec::new();
        let mut drafts = Vec::new();
        let mut diagnostics = Vec::new();
        for (index, ((_, source), edits)) in stated.files.iter().zip(&by_file).enumerate() {
            let mut source = source.clone();
            if !edits.is_empty() {
                let text = splice(&source.text, edits);
                source = Source::new(source.name.clone(), text.clone());
                changed.push((index, text));
            }
            match definition::read(&source) {
                Ok((draft, warnings)) => {
                    diagnostics.extend(warnings);
                    drafts.push(draft);
                }
                Err(errors) => {
                    diagnostics.extend(errors);
                    return Ok(Draft { changed, definition: None, task: None, diagnostics });
                }
            }
        }
        let Some(definition) = complete(drafts) else {
            return Err(incomplete(&stated.definition.task.text).into());
        };
        let task = match Task::draft(definition.clone(), &self.schemas) {
            Ok((task, warnings)) => {
                diagnostics.extend(warnings);
                Some(task)
            }
            Err(errors) => {
                diagnostics.extend(errors);
                None
            }
        };
        Ok(Draft { changed, definition: Some(definition), task, diagnostics })
    }

    /// The other tasks that are made of a task's files, by file.
    pub fn sharers(&self, stated: &Stated) -> BTreeMap<String, Vec<String>> {
        let mut sharers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for task in self.files.keys().filter(|task| **task != stated.definition.task.text) {
            let Ok(other) = self.stated(task) else { continue };
            for (file, _) in stated.files.iter().filter(|(file, _)| other.files.iter().any(|(f, _)| f == file)) {
                sharers.entry(file.path.clone()).or_default().push(task.clone());
            }
        }
        sharers
    }

    /// Whether definitions can be written.
    pub fn are_files(&self) -> bool {
        matches!(self.folder, Folder::Directory(_))
    }

    /// The file that a part stands in.
    pub fn file_of(&self, stated: &Stated, part: &Part) -> Option<String> {
        let (file, _, _) = stated.literal(part.of(&stated.definition)?, part)?;
        Some(stated.files[file].0.path.clone())
    }

    fn path_of(&self, file: &File) -> Option<PathBuf> {
        match self.folder_of(file) {
            Folder::Directory(root) => Some(root.join(&file.path)),
            Folder::BundledDefinitions | Folder::BundledSchemas => None,
        }
    }

    /// Writes a draft to its files. Nothing is written unless every task that shares the files is in order.
    ///
    /// # Errors
    /// The definitions are part of the program; a file has been changed by others; the draft, or a task that is like
    /// it, is not in order; a file cannot be written.
    pub fn save(&self, task: &str, version: &str, edits: &Edits) -> Result<Stated, Vec<Diagnostic>> {
        let _saving = self.saving.lock().unwrap_or_else(|e| e.into_inner());
        let stated = self.stated(task)?;
        if stated.version != version {
            return Err(vec![changed_on_disk(&stated)]);
        }
        let draft = self.draft(&stated, edits).map_err(one)?;
        if draft.task.is_none() {
            return Err(draft.diagnostics);
        }
        let mut writes = Vec::new();
        for (index, text) in &draft.changed {
            let (file, source) = &stated.files[*index];
            let Some(path) = self.path_of(file) else { return Err(vec![bundled(file)]) };
            let path = inside(&self.folder, &path).map_err(one)?;
            for other in self.files.keys().filter(|other| *other != task) {
                self.check_with(other, file, source, text)?;
            }
            writes.push((path, text));
        }
        for (path, text) in writes {
            storage::write(&path, text.as_bytes()).map_err(one)?;
        }
        self.stated(task)
    }

    /// The files that a draft changes, with their texts.
    pub fn texts(&self, stated: &Stated, edits: &Edits) -> Result<Vec<(String, String)>> {
        let draft = self.draft(stated, edits)?;
        Ok(draft.changed.into_iter().map(|(index, text)| (stated.files[index].0.path.clone(), text)).collect())
    }

    /// Checks another task as it will be once a file has a new text, if it is made of that file.
    fn check_with(&self, task: &str, file: &File, old: &Source, text: &str) -> Result<(), Vec<Diagnostic>> {
        // A task that is not in order already is not made worse.
        let Ok(stated) = self.stated(task) else { return Ok(()) };
        if stated.files.iter().all(|(other, _)| other != file) || self.task(&stated).is_err() {
            return Ok(());
        }
        let drafts = stated.files.iter().map(|(other, source)| {
            let source = if other == file { Source::new(old.name.clone(), text) } else { source.clone() };
            definition::read(&source).map(|(draft, _)| draft)
        });
        let definition = complete(drafts.collect::<Result<_, _>>()?).ok_or_else(|| vec![incomplete(task)])?;
        let Err(mut errors) = Task::draft(definition, &self.schemas) else { return Ok(()) };
        let message = format!("task `{task}` is made of the same text, and would not be in order");
        errors.insert(0, Diagnostic::error("shared-definition", message));
        Err(errors)
    }
}

impl Stated {
    /// The file and the place of the literal that a snippet was read from.
    fn literal(&self, snippet: &Snippet, part: &Part) -> Option<(usize, &Arc<Source>, Range<usize>)> {
        let of = snippet.whole_span().source;
        let file = self.files.iter().position(|(_, source)| Arc::ptr_eq(source, &of))?;
        let source = &self.files[file].1;
        Some((file, source, part.literal(source)?))
    }

    pub fn file(&self) -> &str {
        &self.files[0].0.path
    }
}

impl Part {
    /// The parts of a definition, in its order.
    pub fn all(definition: &Definition) -> Vec<Part> {
        let fields = definition.fields.iter().map(|field| format!("field/{}", field.name));
        let templates = definition.templates.iter().flat_map(|template| {
            let sides: &[&str] = match &template.body {
                Body::Sides { .. } => &["inputs", "targets"],
                Body::Prompt { answer_choices: Some(_), .. } => &["prompt", "answer_choices"],
                Body::Prompt { answer_choices: None, .. } => &["prompt"],
            };
            sides.iter().map(move |side| format!("template/{}/{side}", template.name.text))
        });
        let filter = definition.filter.iter().map(|_| "filter".to_owned());
        filter.chain(fields).chain(templates).map(Part).collect()
    }

    /// The part's text in a definition.
    pub fn of<'d>(&self, definition: &'d Definition) -> Option<&'d Snippet> {
        if self.0 == "filter" {
            return definition.filter.as_ref();
        }
        if let Some(name) = self.0.strip_prefix("field/") {
            return definition.fields.iter().find(|field| field.name == name).map(|field| &field.expression);
        }
        let (name, side) = self.0.strip_prefix("template/")?.rsplit_once('/')?;
        let template = definition.templates.iter().find(|template| template.name.text == name)?;
        match (&template.body, side) {
            (Body::Sides { inputs, .. }, "inputs") => Some(inputs),
            (Body::Sides { targets, .. }, "targets") => Some(targets),
            (Body::Prompt { prompt, .. }, "prompt") => Some(prompt),
            (Body::Prompt { answer_choices, .. }, "answer_choices") => answer_choices.as_ref(),
            _ => None,
        }
    }

    /// Where the part's literal stands in a file, quotation marks included.
    fn literal(&self, source: &Arc<Source>) -> Option<Range<usize>> {
        let place = |span: Span| Some(span.range).filter(|range| !range.is_empty());
        document::skim(source, |table| {
            if self.0 == "filter" {
                return place(table.place_of("filter"));
            }
            if let Some(name) = self.0.strip_prefix("field/") {
                return table.places_in("fields").into_iter().find(|(field, _)| field == name).and_then(|f| place(f.1));
            }
            let (name, side) = self.0.strip_prefix("template/")?.rsplit_once('/')?;
            let side = ["inputs", "targets", "prompt", "answer_choices"].into_iter().find(|known| *known == side)?;
            let of_name = table.tables("template", |t| {
                let same = t.text("name").is_some_and(|text| text.text == name);
                (same && t.has(side)).then(|| t.place_of(side))
            });
            of_name.into_iter().next().and_then(place)
        })
    }
}

/// A part's text as a browser has it: its lines end in LF.
pub fn lines(snippet: &Snippet) -> String {
    snippet.text.replace("\r\n", "\n")
}

/// The definition that drafts make, each being like the one after it.
fn complete(drafts: Vec<definition::Draft>) -> Option<Definition> {
    drafts
        .into_iter()
        .rev()
        .try_fold(None, |base: Option<Definition>, draft| draft.complete(base.as_ref()).map(Some))?
}

fn incomplete(task: &str) -> Diagnostic {
    Diagnostic::error("incomplete", format!("the definition of `{task}` is not whole"))
}

pub fn changed_on_disk(stated: &Stated) -> Diagnostic {
    Diagnostic::error("changed-on-disk", "the definition has been changed since it was read")
        .note("file", stated.file())
        .help("read it again, and make the edit to what is there now")
}

fn bundled(file: &File) -> Diagnostic {
    Diagnostic::error("bundled-definitions", "these definitions are part of the program, and cannot be written")
        .note("file", &file.path)
        .help("start with `--templates DIR`, and put the text there under this name")
}

/// Where a file is written: below the folder, whatever links lead there.
fn inside(folder: &Folder, path: &Path) -> Result<PathBuf> {
    let Folder::Directory(root) = folder else { return Ok(path.to_owned()) };
    if let (Some(root), Some(path)) = (storage::resolved(root), storage::resolved(path))
        && path.starts_with(&root)
    {
        return Ok(path);
    }
    Err(Diagnostic::error("outside", "a definition is a link to elsewhere")
        .at(path)
        .help("only files below --templates are written")
        .into())
}
