//! Tasks: definitions checked against the features of their corpora, compiled, and found by name.
//!
//! The catalogue is what `template-defs/` and `schemas/` hold, or what the user names in their place; the bundled
//! ones are part of the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rust_embed::Embed;

use crate::diag::{Diagnostic, Place, Result, Severity, Source, Span, listing, one};
use crate::ingest::info::{self, CorpusName};
use crate::schema::{Dtype, Feature};
use crate::storage;
use crate::template::check;
use crate::template::definition::{self, Body, Definition, Dialect, Draft, Kind, Part, TemplateDefinition};
use crate::template::engine::{self, Computed, Life, Program, Reads, TemplateReads, without_hyphens};
use crate::template::python;
use crate::template::snippet::Snippet;
use crate::template::types::Type;

#[derive(Embed)]
#[folder = "template-defs"]
struct BundledDefinitions;

#[derive(Embed)]
#[folder = "schemas"]
struct BundledSchemas;

/// A folder of text files: the bundled one, or one on disk.
#[derive(Clone, Debug)]
pub enum Folder {
    BundledDefinitions,
    BundledSchemas,
    Directory(PathBuf),
}

impl Folder {
    /// The files below it, as paths with `/`, sorted.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut files: Vec<String> = match self {
            Folder::BundledDefinitions => BundledDefinitions::iter().map(String::from).collect(),
            Folder::BundledSchemas => BundledSchemas::iter().map(String::from).collect(),
            Folder::Directory(root) => {
                storage::walk(root)?.into_iter().filter_map(|p| p.to_str().map(str::to_owned)).collect()
            }
        };
        files.sort();
        Ok(files)
    }

    /// A file's text, or `None` if it is not there.
    pub fn read(&self, file: &str) -> Result<Option<String>> {
        let embedded = match self {
            Folder::Directory(root) => {
                let path = root.join(file);
                return storage::stamp(&path).map(|_| storage::read_text(&path)).transpose();
            }
            Folder::BundledDefinitions => BundledDefinitions::get(file),
            Folder::BundledSchemas => BundledSchemas::get(file),
        };
        Ok(embedded.map(|f| String::from_utf8_lossy(&f.data).into_owned()))
    }

    /// How a file of it is called in messages.
    pub fn name(&self, file: &str) -> String {
        match self {
            Folder::BundledDefinitions => format!("template-defs/{file}"),
            Folder::BundledSchemas => format!("schemas/{file}"),
            Folder::Directory(root) => root.join(file).display().to_string(),
        }
    }
}

/// A definition that has been checked and compiled.
pub struct Task {
    pub definition: Definition,
    /// The features its corpus is expected to have.
    pub schema: Feature,
    /// The corpus in every version of which the features are known, the definition's own first.
    pub corpora: Vec<CorpusName>,
    pub program: Program,
    life: Life,
    /// The task as FLAN v1 has it, where that differs.
    flan_v1: Option<Box<Task>>,
    /// The task with one template that tells the model nothing, or no more than a name; made when it is asked for.
    plain: OnceLock<Box<Task>>,
    named: OnceLock<Box<Task>>,
}

/// All tasks, by name.
pub struct Catalogue {
    pub tasks: Vec<Task>,
    recipes: BTreeMap<String, String>,
}

/// Reads, checks and compiles every definition of `definitions`; the warnings come with them.
pub fn load(definitions: &Folder, schemas: &Folder) -> Result<(Catalogue, Vec<Diagnostic>), Vec<Diagnostic>> {
    let mut diagnostics = Vec::new();
    let mut drafts = Vec::new();
    let mut recipes = BTreeMap::new();
    let files = definitions.files().map_err(|d| vec![*d])?;
    for file in files.iter().filter(|f| f.ends_with(".toml")) {
        let Some(text) = definitions.read(file).map_err(|d| vec![*d])? else { continue };
        if let Some(recipe) = file.strip_prefix("recipes/").and_then(|f| f.strip_suffix(".toml")) {
            recipes.insert(recipe.to_owned(), text);
            continue;
        }
        match definition::read(&Source::new(definitions.name(file), text)) {
            Ok((draft, warnings)) => {
                diagnostics.extend(warnings);
                drafts.push(draft);
            }
            Err(errors) => diagnostics.extend(errors),
        }
    }
    let mut tasks: Vec<Task> = Vec::new();
    for definition in complete(drafts, &mut diagnostics) {
        match Task::new(definition, schemas) {
            Ok((task, warnings)) => {
                diagnostics.extend(warnings);
                tasks.push(task);
            }
            Err(errors) => diagnostics.extend(errors),
        }
    }
    // What tasks share is looked at for each of them, and said once.
    let mut said = BTreeSet::new();
    diagnostics.retain(|d| said.insert(d.to_string()));
    if diagnostics.iter().any(|d| d.severity == Severity::Error) {
        return Err(diagnostics);
    }
    if tasks.is_empty() {
        let nothing = Diagnostic::error("no-definitions", "there are no task definitions")
            .expected("files <cluster>/<task>.toml")
            .found(definitions.name(""));
        return Err(vec![nothing]);
    }
    tasks.sort_by(|a, b| a.name().cmp(b.name()));
    Ok((Catalogue { tasks, recipes }, diagnostics))
}

/// Reads one definition; a task that it is like is looked for in `definitions`.
pub fn read_file(path: &Path, definitions: &Folder) -> Result<Definition, Vec<Diagnostic>> {
    let text = storage::read_text(path).map_err(one)?;
    let (draft, _) = definition::read(&Source::new(path.display().to_string(), text))?;
    let mut drafts = Vec::new();
    if draft.like.is_some() {
        drafts = drafts_of(definitions).map_err(one)?;
    }
    let mut diagnostics = Vec::new();
    drafts.push(draft);
    let name = path.display().to_string();
    complete(drafts, &mut diagnostics).into_iter().find(|d| d.source.name == name).ok_or(diagnostics)
}

/// The definitions of a folder, as far as they can be read.
fn drafts_of(definitions: &Folder) -> Result<Vec<Draft>> {
    let mut drafts = Vec::new();
    for file in definitions.files()?.iter().filter(|f| f.ends_with(".toml") && !f.starts_with("recipes/")) {
        let Some(text) = definitions.read(file)? else { continue };
        drafts.extend(definition::read(&Source::new(definitions.name(file), text)).ok().map(|(draft, _)| draft));
    }
    Ok(drafts)
}

/// Fills drafts in from the tasks they are like: those of the same folder or, for definitions that were imported,
/// bundled ones.
fn complete(drafts: Vec<Draft>, diagnostics: &mut Vec<Diagnostic>) -> Vec<Definition> {
    let (like, whole): (Vec<Draft>, Vec<Draft>) = drafts.into_iter().partition(|d| d.like.is_some());
    let mut definitions: Vec<Definition> = whole.into_iter().filter_map(|d| d.complete(None)).collect();
    let mut left = fill_in(like, &mut definitions);
    if !left.is_empty() {
        let bundled = drafts_of(&Folder::BundledDefinitions).unwrap_or_default();
        let (like, whole): (Vec<Draft>, Vec<Draft>) = bundled.into_iter().partition(|d| d.like.is_some());
        let mut bases: Vec<Definition> = whole.into_iter().filter_map(|d| d.complete(None)).collect();
        fill_in(like, &mut bases);
        let known = bases.len();
        left = fill_in(left, &mut bases);
        definitions.extend(bases.split_off(known));
        for draft in &left {
            let Some(name) = &draft.like else { continue };
            diagnostics.push(
                Diagnostic::error("like", format!("`{}` is like no task", draft.task.text))
                    .at(name.whole_span())
                    .label("expected a task that is not in turn like this one")
                    .did_you_mean(&name.text, definitions.iter().map(|d| d.task.text.as_str())),
            );
        }
    }
    for (i, definition) in definitions.iter().enumerate() {
        if let Some(other) = definitions[..i].iter().find(|d| d.task.text == definition.task.text) {
            diagnostics.push(
                Diagnostic::error("duplicate-task", format!("two tasks are called `{}`", definition.task.text))
                    .at(definition.task.whole_span())
                    .label("the name is taken")
                    .note("note", format!("by {}", other.source.name)),
            );
        }
    }
    definitions
}

/// Completes the drafts that are like one of the definitions, and adds them; returns those that are like none.
fn fill_in(mut drafts: Vec<Draft>, definitions: &mut Vec<Definition>) -> Vec<Draft> {
    loop {
        let base_of = |draft: &Draft| {
            let name = &draft.like.as_ref()?.text;
            definitions.iter().find(|d| &d.task.text == name).cloned()
        };
        let Some((i, base)) = drafts.iter().enumerate().find_map(|(i, draft)| Some((i, base_of(draft)?))) else {
            return drafts;
        };
        definitions.extend(drafts.remove(i).complete(Some(&base)));
    }
}

impl Catalogue {
    pub fn task(&self, name: &str) -> Result<&Task> {
        self.tasks.iter().find(|t| t.name() == name).ok_or_else(|| {
            let names = || self.tasks.iter().map(Task::name);
            Diagnostic::error("unknown-task", format!("there is no task `{name}`"))
                .did_you_mean(name, names())
                .note("note", format!("tasks: {}", listing(names())))
                .into()
        })
    }

    /// The text of a recipe that lies beside the definitions.
    pub fn recipe(&self, name: &str) -> Option<&str> {
        self.recipes.get(name).map(String::as_str)
    }

    pub fn recipe_names(&self) -> impl Iterator<Item = &str> {
        self.recipes.keys().map(String::as_str)
    }
}

impl Task {
    /// Checks and compiles a definition; the warnings come with it.
    pub fn new(definition: Definition, schemas: &Folder) -> Result<(Task, Vec<Diagnostic>), Vec<Diagnostic>> {
        Task::compiled(definition, schemas, Life::Process)
    }

    /// The same for a definition that is being written: nothing of it stays when the task goes.
    pub fn draft(definition: Definition, schemas: &Folder) -> Result<(Task, Vec<Diagnostic>), Vec<Diagnostic>> {
        Task::compiled(definition, schemas, Life::Use)
    }

    fn compiled(
        definition: Definition,
        schemas: &Folder,
        life: Life,
    ) -> Result<(Task, Vec<Diagnostic>), Vec<Diagnostic>> {
        if definition.corpus.is_none() {
            let no_corpus = Diagnostic::warning("no-corpus", format!("task `{}` has no corpus", definition.task.text))
                .at(definition.corpus_place.clone())
                .label("it renders rows given as JSON, and cannot be compiled")
                .help("name the corpus here once there is one");
            return Task::of_any_rows(definition, life).map(|task| (task, vec![no_corpus]));
        }
        let mut diagnostics = Vec::new();
        let (schema, corpora) = read_schema(&definition, schemas).map_err(|d| vec![*d])?;
        check_differences(&definition, &mut diagnostics);
        let reads = check_definition(&definition, &schema, &mut diagnostics).reads;
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return Err(diagnostics);
        }
        let program = Program::compile(&definition, &reads, Computed::Read, life)?;
        let flan_v1 = match definition.as_flan_v1() {
            None => None,
            Some(other) => {
                let reads = check_definition(&other, &schema, &mut diagnostics).reads;
                if diagnostics.iter().any(|d| d.severity == Severity::Error) {
                    return Err(diagnostics);
                }
                let program = Program::compile(&other, &reads, Computed::Read, life)?;
                Some(Box::new(Task::of(other, schema.clone(), corpora.clone(), program, life)))
            }
        };
        Ok((Task { flan_v1, ..Task::of(definition, schema, corpora, program, life) }, diagnostics))
    }

    fn of(definition: Definition, schema: Feature, corpora: Vec<CorpusName>, program: Program, life: Life) -> Task {
        let (plain, named) = (OnceLock::new(), OnceLock::new());
        Task { definition, schema, corpora, program, life, flan_v1: None, plain, named }
    }

    /// The task without instructions: the fields that its first original template reads, a line each, and that
    /// template's targets (arXiv 2109.01652, section 4.3, "no template").
    pub fn without_instructions(&self) -> Result<&Task, Vec<Diagnostic>> {
        self.derived(&self.plain, "no-template", "")
    }

    /// The same after the names of cluster and dataset: `[Sentiment: SST-2]` ("dataset name").
    pub fn with_dataset_name(&self) -> Result<&Task, Vec<Diagnostic>> {
        let cluster = self.definition.cluster.replace('-', " ");
        let mut characters = cluster.chars();
        let capital: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
        let name = format!("[{capital}{}: {}] ", characters.as_str(), self.definition.title);
        self.derived(&self.named, "dataset-name", &name)
    }

    fn derived<'t>(
        &self,
        made: &'t OnceLock<Box<Task>>,
        name: &str,
        before: &str,
    ) -> Result<&'t Task, Vec<Diagnostic>> {
        if let Some(task) = made.get() {
            return Ok(task);
        }
        let mut diagnostics = Vec::new();
        let checked = check_definition(&self.definition, &self.schema, &mut diagnostics);
        let mut templates = self.definition.templates.iter().zip(&checked.reads.templates);
        let first = templates.clone().find(|(template, _)| template.kind == Kind::Original).or(templates.next());
        let Some((first, reads)) = first else { return Err(diagnostics) };
        let fields = self.definition.fields.iter().zip(&checked.fields);
        let lines: Vec<String> = fields
            .filter(|(f, _)| reads.inputs.contains(&f.name) && !matches!(f.name.as_str(), "options" | "answer"))
            .map(|(f, ty)| match ty {
                Type::List(_) | Type::Tuple(_) => format!("{{{{ {} | join('\n') }}}}", f.name),
                _ => format!("{{{{ {} }}}}", f.name),
            })
            .collect();
        let inputs = format!("{before}{}", lines.join("\n"));
        let Body::Sides { targets, .. } = &first.body else {
            let message = format!("the templates of `{}` cannot be taken apart", self.name());
            return Err(vec![
                Diagnostic::error("no-instructions", message)
                    .at(first.name.whole_span())
                    .label("inputs and targets are one text in promptsource's dialect")
                    .help("leave the task out where prompts without instructions are asked for"),
            ]);
        };
        let template = TemplateDefinition {
            name: Snippet::whole("name", name),
            kind: Kind::Original,
            body: Body::Sides {
                inputs: Snippet::whole(&format!("{}, {name}", self.definition.source.name), &inputs),
                targets: targets.clone(),
            },
        };
        let definition = Definition { templates: vec![template], ..self.definition.clone() };
        let checked = check_definition(&definition, &self.schema, &mut diagnostics);
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return Err(diagnostics);
        }
        let program = Program::compile(&definition, &checked.reads, Computed::Read, self.life)?;
        let task = Task::of(definition, self.schema.clone(), self.corpora.clone(), program, self.life);
        Ok(made.get_or_init(|| Box::new(task)))
    }

    /// A definition for rows that are given as JSON, with whatever features they have.
    pub fn for_any_rows(definition: Definition) -> Result<Task, Vec<Diagnostic>> {
        Task::of_any_rows(definition, Life::Process)
    }

    fn of_any_rows(definition: Definition, life: Life) -> Result<Task, Vec<Diagnostic>> {
        let mut diagnostics = Vec::new();
        let schema = any_features(&definition);
        let checked = check_definition(&definition, &schema, &mut diagnostics);
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return Err(diagnostics);
        }
        let program = Program::compile(&definition, &checked.reads, Computed::Read, life)?;
        Ok(Task::of(definition, schema, Vec::new(), program, life))
    }

    /// The task as FLAN v1 has it.
    pub fn as_flan_v1(&self) -> &Task {
        self.flan_v1.as_deref().unwrap_or(self)
    }

    pub fn name(&self) -> &str {
        &self.definition.task.text
    }

    /// The program with every field, for those who want to look at them.
    pub fn program_of_all_fields(&self) -> Result<Program, Vec<Diagnostic>> {
        Program::compile(&self.definition, &self.reads(), Computed::All, self.life)
    }

    /// What the parts of the definition read.
    pub fn reads(&self) -> Reads {
        check_definition(&self.definition, &self.schema, &mut Vec::new()).reads
    }

    /// The corpus as it lies on disk: in the version that the definition names or, failing that, in the newest one of
    /// which the features are known.
    pub fn corpus_on_disk(&self, data_dirs: &[PathBuf]) -> Option<&CorpusName> {
        self.corpora.iter().find(|name| info::exists(name, data_dirs))
    }

    /// Compares the features of a corpus with the schema the task was checked against.
    ///
    /// # Errors
    /// A feature that the task reads is missing or of another kind. Differences elsewhere are warnings.
    pub fn check_corpus(
        &self,
        corpus: &CorpusName,
        features: &Feature,
        directory: &Path,
    ) -> Result<Option<Diagnostic>> {
        let differences = self.schema.differences(features);
        if differences.is_empty() {
            return Ok(None);
        }
        let relevant = self
            .schema
            .fields()
            .iter()
            .filter(|(name, _)| self.program.features.contains(name) || self.program.features.contains("row"));
        let broken: Vec<String> = relevant
            .flat_map(|(name, feature)| {
                let one = |f: &Feature| Feature::Struct(vec![(name.clone(), f.clone())]);
                let found = features.fields().iter().find(|(n, _)| n == name);
                one(feature).differences(&found.map_or(Feature::Struct(Vec::new()), |(_, f)| one(f)))
            })
            .collect();
        let path = directory.join("features.json");
        let describe = |mut diagnostic: Diagnostic, list: &[String]| {
            for difference in list {
                diagnostic = diagnostic.note("differs", difference);
            }
            diagnostic.at(&path)
        };
        if broken.is_empty() {
            let message = format!("`{corpus}` differs from its schema where task `{}` does not look", self.name());
            return Ok(Some(describe(Diagnostic::warning("schema-differs", message), &differences)));
        }
        let message = format!("`{corpus}` is not what task `{}` was written for", self.name());
        Err(describe(Diagnostic::error("schema-differs", message), &broken)
            .help("export the version that the definition names, or adapt the definition and its schema")
            .into())
    }
}

/// Differences that name a field have to name one of the definition's, if they are to take its place.
fn check_differences(definition: &Definition, diagnostics: &mut Vec<Diagnostic>) {
    for difference in &definition.flan_v1 {
        if let (Part::Field(name), Some(value)) = (&difference.part, &difference.value)
            && definition.fields.iter().all(|f| &f.name != name)
        {
            diagnostics.push(
                Diagnostic::error("difference", format!("there is no field `{name}` to differ"))
                    .at(value.whole_span())
                    .label("stands in for nothing")
                    .did_you_mean(name, definition.fields.iter().map(|f| f.name.as_str())),
            );
        }
    }
}

/// The expected features of a definition's corpus, from `schemas/<name>[/<config>]/<version>/`; with the corpus in all
/// versions that have a schema, its own first and then from the newest on.
fn read_schema(definition: &Definition, schemas: &Folder) -> Result<(Feature, Vec<CorpusName>)> {
    let corpus = &definition.corpus;
    let base = match &corpus.config {
        Some(config) => format!("{}/{config}", corpus.name),
        None => corpus.name.clone(),
    };
    let files = schemas.files()?;
    let mut versions: Vec<&str> =
        files.iter().filter_map(|f| f.strip_prefix(&format!("{base}/"))?.strip_suffix("/features.json")).collect();
    versions.retain(|v| info::version_number(v).is_some());
    versions.sort_by_key(|v| std::cmp::Reverse(info::version_number(v)));
    let version = corpus.version.as_deref().or(versions.first().copied()).unwrap_or("").to_owned();
    let others = versions.iter().filter(|v| **v != version).copied();
    let corpora: Vec<CorpusName> = std::iter::once(version.as_str())
        .chain(others)
        .map(|v| CorpusName { version: Some(v.to_owned()), ..corpus.clone() })
        .collect();
    let file = format!("{base}/{version}/features.json");
    let Some(text) = schemas.read(&file)? else {
        let known = files.iter().filter_map(|f| f.strip_suffix("/features.json")?.rsplit_once('/'));
        let known: Vec<String> = known.map(|(name, version)| format!("{name}:{version}")).collect();
        return Err(Diagnostic::error("schema-missing", format!("there is no schema for `{corpus}`"))
            .at(definition.corpus_place.clone())
            .label("its features are not known")
            .expected(schemas.name(&file))
            .did_you_mean(&corpus.to_string(), known.iter().map(String::as_str))
            .help("for a new corpus, copy features.json and the label files of an export there")
            .into());
    };
    let name = schemas.name(&file);
    let wrong = |found: String| {
        Diagnostic::error("schema", "a schema is not a features.json").at(Path::new(&name)).found(found)
    };
    let json = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let mut feature = Feature::from_json(&json)
        .map_err(|e| wrong(format!("{} at `{}`, expected {}", e.found, e.path, e.expected)))?;
    let labels = |label_file: &str| schemas.read(&format!("{base}/{version}/{label_file}"));
    info::read_labels(&mut feature, "", &labels, &mut Vec::new())?;
    Ok((feature, corpora))
}

/// What is known of a definition once it has been checked.
struct Checked {
    /// What its parts read.
    reads: Reads,
    /// The type of each field.
    fields: Vec<Type>,
}

/// Checks a definition against its corpus's features.
fn check_definition(definition: &Definition, schema: &Feature, diagnostics: &mut Vec<Diagnostic>) -> Checked {
    let features: Vec<(String, Type)> = schema.fields().iter().map(|(n, f)| (n.clone(), type_of(f))).collect();
    let mut expression_scope = features.clone();
    expression_scope.push(("row".to_owned(), Type::Struct(features)));
    let mut reads = Reads::default();
    let mut filtered = BTreeSet::new();
    if let Some(filter) = &definition.filter {
        reads.filter = check::expression(filter, &expression_scope, diagnostics).reads;
        filtered = reads.filter.clone();
        if diagnostics.iter().any(|d| d.severity == Severity::Error) {
            filtered.insert("row".to_owned()); // whatever it was meant to filter
        }
    }
    let mut template_scope: Vec<(String, Type)> = Vec::new();
    let (mut options, mut answer) = (None, None);
    for field in &definition.fields {
        let inferred = check::expression(&field.expression, &expression_scope, diagnostics);
        check_unlabelled(definition, schema, field, &inferred.reads, &filtered, diagnostics);
        match field.name.as_str() {
            "options" => options = Some((field, inferred.ty.clone())),
            "answer" => answer = Some((field, inferred.ty.clone())),
            _ => {}
        }
        // A field stands before a feature of the same name from here on.
        expression_scope.retain(|(name, _)| name != &field.name);
        expression_scope.push((field.name.clone(), inferred.ty.clone()));
        template_scope.push((field.name.clone(), inferred.ty));
        reads.fields.push(inferred.reads);
    }
    match (&options, &answer) {
        (Some((field, ty)), _) if !matches!(ty, Type::List(_) | Type::Tuple(_) | Type::Any) => diagnostics.push(
            Diagnostic::error("options-not-a-list", "`options` is not a list")
                .at(field.expression.whole_span())
                .label(format!("this is {ty}"))
                .expected("a list, such as `['yes', 'no']`"),
        ),
        (Some((_, options_type)), Some((answer, answer_type))) => {
            check::answer(&answer.expression, answer_type, options_type, diagnostics);
        }
        (Some((field, _)), None) => diagnostics.push(
            Diagnostic::error("options-without-answer", "there are options and no answer")
                .at(field.place.clone())
                .label("`answer` has to be one of these")
                .help("add `answer = \"options[label]\"`, or whatever picks the right one"),
        ),
        _ => {}
    }
    if options.is_some() {
        template_scope.push(("options_".to_owned(), Type::Text));
    }
    for template in &definition.templates {
        let (inputs, targets) = match &template.body {
            Body::Sides { inputs, targets } => (inputs, targets),
            Body::Prompt { prompt, answer_choices, .. } => {
                let read = check_prompt(prompt, answer_choices.as_ref(), definition, schema, diagnostics);
                let features = schema.fields().iter().map(|(name, _)| name);
                let seen = |name: &&String| {
                    let name = without_hyphens(name);
                    read.inputs.contains(&*name) || read.targets.contains(&*name)
                };
                reads.features.extend(features.filter(seen).cloned());
                reads.templates.push(read);
                continue;
            }
        };
        let (inputs_text, targets_text) = (inputs, targets);
        let before = diagnostics.len();
        let inputs = check::template(inputs_text, &template_scope, diagnostics);
        if diagnostics.len() == before && inputs.iter().all(|name| name == "options_") {
            diagnostics.push(
                Diagnostic::warning(
                    "no-field",
                    format!("the inputs of template `{}` use no field", template.name.text),
                )
                .at(inputs_text.whole_span())
                .label("the same for every row"),
            );
        }
        let targets = check::template(targets_text, &template_scope, diagnostics);
        for unknown in diagnostics[before..].iter_mut().filter(|d| d.code == "unknown-variable") {
            let Place::Span(Span { source, range }) = &unknown.place else { continue };
            let name = &source.text[range.clone()];
            if schema.fields().iter().any(|(feature, _)| feature == name) {
                let help =
                    format!("it is a feature of the corpus; templates see [fields]: add `{name} = \"{name}\"` there");
                *unknown = unknown.clone().help(help);
            } else if name == "options_" {
                *unknown =
                    unknown.clone().help("it is made of a field `options`, a list, which this task does not have");
            }
        }
        reads.templates.push(TemplateReads { inputs, targets });
    }
    if definition.templates.is_empty() {
        diagnostics.push(
            Diagnostic::error("no-template", format!("task `{}` has no template", definition.task.text))
                .at(definition.task.whole_span())
                .label("expected at least one [[template]]"),
        );
    }
    let fields = template_scope.into_iter().map(|(_, ty)| ty).take(definition.fields.len()).collect();
    Checked { reads, fields }
}

/// Checks a template of promptsource's dialect, about which little can be known: what would be an error in ours is a
/// warning where it is likely a slip, and nothing where such templates do it on purpose.
fn check_prompt(
    prompt: &Snippet,
    answer_choices: Option<&Snippet>,
    definition: &Definition,
    schema: &Feature,
    diagnostics: &mut Vec<Diagnostic>,
) -> TemplateReads {
    let fields = definition.fields.iter().map(|f| f.name.clone());
    let features = schema.fields().iter().map(|(name, _)| without_hyphens(name).into_owned());
    let mut scope: Vec<(String, Type)> = fields.chain(features).map(|name| (name, Type::Any)).collect();
    let mut check = |snippet: &Snippet, scope: &[(String, Type)]| {
        let mut found = Vec::new();
        let reads = check::template(snippet, scope, &mut found);
        for mut diagnostic in found {
            let Place::Span(span) = &diagnostic.place else { continue };
            let name = &span.source.text[span.range.clone()];
            match diagnostic.code {
                "syntax-error" | "template-too-large" | "repeated-list" => {}
                "unknown-filter" if !python::FILTERS.contains(&name) => diagnostic.severity = Severity::Warning,
                "unknown-function" if !python::FUNCTIONS.contains(&name) => diagnostic.severity = Severity::Warning,
                // A global that is named without being called.
                "unknown-variable" if !python::FUNCTIONS.contains(&name) => diagnostic.severity = Severity::Warning,
                _ => continue,
            }
            diagnostics.push(diagnostic);
        }
        reads
    };
    let of_choices = answer_choices.map(|choices| check(choices, &scope)).unwrap_or_default();
    scope.push(("answer_choices".to_owned(), Type::Any));
    let all = check(prompt, &scope);
    // Prompts that are too long are shortened by the features that stand before the separator. What choices are made
    // of is left alone.
    let before_separator = python::names_before_separator(&prompt.text);
    let inputs = all.iter().filter(|name| before_separator.contains(*name) && !of_choices.contains(*name)).cloned();
    TemplateReads { inputs: inputs.collect(), targets: all.union(&of_choices).cloned().collect() }
}

/// The features that rows given as JSON may have: every name that the definition mentions, of any type.
fn any_features(definition: &Definition) -> Feature {
    let mut names = BTreeSet::new();
    let expressions = definition.fields.iter().map(|f| &f.expression).chain(&definition.filter);
    for expression in expressions {
        names.extend(python::names(&expression.text, true));
    }
    for template in &definition.templates {
        if let Body::Prompt { prompt, answer_choices, .. } = &template.body {
            for snippet in std::iter::once(prompt).chain(answer_choices) {
                names.extend(python::names(&snippet.text, false));
            }
        }
    }
    Feature::Struct(names.into_iter().map(|name| (name, Feature::Opaque { class: "any".to_owned() })).collect())
}

/// A label of -1 stands for "unknown", and as an index for the last option: such rows have to be filtered out.
fn check_unlabelled(
    definition: &Definition,
    schema: &Feature,
    field: &definition::Field,
    reads: &BTreeSet<String>,
    filtered: &BTreeSet<String>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if filtered.contains("row") || field.name != "answer" {
        return;
    }
    let labels = schema.fields().iter().filter(|(_, f)| matches!(f, Feature::Label { .. }));
    for (name, _) in labels.filter(|(name, _)| reads.contains(name) && !filtered.contains(name)) {
        diagnostics.push(
            Diagnostic::warning(
                "unlabelled",
                format!("rows of `{}` without a label get an answer", definition.task.text),
            )
            .at(field.expression.whole_span())
            .label(format!("`{name}` is -1 where it is unknown, which picks the last option"))
            .help(format!("add `filter = \"{name} >= 0\"`")),
        );
    }
}

/// What an expression sees of a feature.
fn type_of(feature: &Feature) -> Type {
    match feature {
        Feature::Struct(fields) => Type::Struct(fields.iter().map(|(n, f)| (n.clone(), type_of(f))).collect()),
        Feature::Sequence { item, .. } => lists(item),
        Feature::Dataset { item, .. } => Type::list(type_of(item)),
        Feature::Label { .. } => Type::Int,
        Feature::Opaque { .. } => Type::Any,
        Feature::Tensor(tensor) => {
            let scalar = match tensor.dtype {
                Dtype::String => Type::Text,
                Dtype::Bool => Type::Bool,
                Dtype::Float16 | Dtype::Float32 | Dtype::Float64 => Type::Float,
                _ => Type::Int,
            };
            tensor.shape.iter().fold(scalar, |ty, _| Type::list(ty))
        }
    }
}

/// A sequence of a struct is a struct of lists.
fn lists(item: &Feature) -> Type {
    match item {
        Feature::Struct(fields) => Type::Struct(fields.iter().map(|(n, f)| (n.clone(), lists(f))).collect()),
        other => Type::list(type_of(other)),
    }
}

/// A hash of everything in a definition that decides what its prompts say, for the templates of these indices.
pub fn fingerprint(definition: &Definition, templates: &[usize]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(engine::ENGINE);
    part(definition.filter.as_ref().map_or("", |f| &f.text));
    for field in &definition.fields {
        part(&field.name);
        part(&field.expression.text);
    }
    for &i in templates {
        // Draws go by the index, so it counts even where only templates that are not used stand before.
        part(&i.to_string());
        let template = &definition.templates[i];
        part(&template.name.text);
        part(template.kind.name());
        match &template.body {
            Body::Sides { inputs, targets } => [&*inputs.text, &targets.text].map(&mut part),
            Body::Prompt { prompt, answer_choices, .. } => {
                part(Dialect::NAMES[1]);
                part(&definition.task.text); // draws hang on it
                [&*prompt.text, answer_choices.as_ref().map_or("", |s| &s.text)].map(&mut part)
            }
        };
    }
    hasher.finalize()
}
