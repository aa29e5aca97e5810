//! Rendering: a row becomes fields, and fields become prompts, by minijinja 3.1.
//!
//! Undefined values are errors, nothing is escaped, nothing can be loaded or included. Every evaluation has a budget
//! of fuel, so a template can neither hang nor take memory without bound; sources are at most
//! [`check::LARGEST_SOURCE`] bytes, because the parser's stack grows with them, and the threads that compile and
//! render have [`STACK_BYTES`] of stack.
//!
//! Templates of promptsource's dialect are rendered by environments of their own, with lenient undefined values and
//! what [`python`] adds; expressions are ours in both dialects.
//!
//! What is compiled lives as long as the process: templates borrow their source and their environment, and both are
//! static. Sources are interned, so loading a definition twice costs nothing. Drafts, of which an editor makes one with
//! every key, are an exception ([`Life`]): nothing of them stays.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Expression, OutputSpanKind, State, Template, UndefinedBehavior, Value,
};

use crate::diag::{Diagnostic, Span};
use crate::example::Datum;

use super::check;
use super::definition::{Body, Definition, Dialect};
use super::options;
use super::pieces::{Piece, Shared, Slot, pieces};
use super::python;
use super::snippet::Snippet;
use crate::seed::{Seed, Stream};

/// The engine as the manifest and every plan hash name it.
pub const ENGINE: &str = "minijinja 3.1.0";

/// Stack that a thread needs to compile and render any source within the limits.
pub const STACK_BYTES: usize = 16 << 20;

/// Fuel is 50,000 and one for every 16 bytes of the row: ten times what the hungriest known template takes, and
/// little enough to stop a loop within milliseconds. The budget belongs to an environment, so rows are put into
/// classes by size.
const FUEL: u64 = 50_000;
const SIZE_CLASSES: [u64; 4] = [1 << 16, 1 << 20, 1 << 24, 1 << 28];

static ENVIRONMENTS: [LazyLock<Environment<'static>>; SIZE_CLASSES.len()] = [
    LazyLock::new(|| environment(0)),
    LazyLock::new(|| environment(1)),
    LazyLock::new(|| environment(2)),
    LazyLock::new(|| environment(3)),
];

static PROMPTSOURCE_ENVIRONMENTS: [LazyLock<Environment<'static>>; SIZE_CLASSES.len()] = [
    LazyLock::new(|| promptsource_environment(0)),
    LazyLock::new(|| promptsource_environment(1)),
    LazyLock::new(|| promptsource_environment(2)),
    LazyLock::new(|| promptsource_environment(3)),
];

fn environment(class: usize) -> Environment<'static> {
    let mut env = limited_environment(class);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_syntax(syntax());
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("ascii_lower", |text: &str| text.to_ascii_lowercase());
    env.add_filter("regex_replace", regex_replace);
    env.add_filter("numbered", numbered);
    env
}

fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    syntax.expect("the default delimiters are valid")
}

fn promptsource_environment(class: usize) -> Environment<'static> {
    let mut env = limited_environment(class);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    python::install(&mut env);
    env
}

fn limited_environment(class: usize) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_recursion_limit(64);
    env.set_fuel(Some(FUEL + SIZE_CLASSES[class] / 16));
    env.remove_global("debug");
    env
}

/// The class of the smallest environment whose budget fits a row of `bytes`.
fn size_class(bytes: usize) -> usize {
    SIZE_CLASSES.iter().position(|&limit| bytes as u64 <= limit).unwrap_or(SIZE_CLASSES.len() - 1)
}

/// The text with a static life. Definitions are few and small, and each text is kept once.
fn intern(text: &str) -> &'static str {
    static INTERNED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    // A panic while the lock is held would have to come from the allocator.
    let mut interned = INTERNED.lock().unwrap_or_else(|e| e.into_inner());
    match interned.get(text) {
        Some(known) => known,
        None => {
            let leaked: &'static str = Box::leak(text.into());
            interned.insert(leaked);
            leaked
        }
    }
}

/// How long what is compiled of a definition lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as the process; it is compiled once and rendered for every row.
    Process,
    /// Until it has been used: it is compiled anew each time, and goes with its program.
    Use,
}

/// The fields that a program computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computed {
    /// Those that something reads.
    Read,
    All,
}

/// A definition, compiled: what turns decoded rows into prompts.
pub struct Program {
    /// Top-level features that have to be decoded.
    pub features: BTreeSet<String>,
    /// Names of the expression scope: fields, then features, `row` among them if it is read.
    expression_names: Arc<[String]>,
    /// Names of the template scope: fields, then `options_`.
    template_names: Arc<[String]>,
    filter: Option<Compiled<Expression<'static, 'static>>>,
    fields: Vec<FieldProgram>,
    options: Option<usize>,
    answer: Option<usize>,
    templates: Vec<TemplateProgram>,
    /// What stands between the texts of templates that only put pieces together.
    slots: Vec<SlotProgram>,
    /// These texts.
    texts: Vec<&'static str>,
    /// Templates see the features as well as the fields.
    dialect: Dialect,
    /// The task's name, which draws hang on.
    task: String,
    /// By template: the fields that its inputs read.
    input_fields: Vec<Vec<usize>>,
}

/// One source for all size classes.
struct Compiled<T> {
    source: Text<T>,
    place: Span,
    dialect: Dialect,
}

enum Text<T> {
    /// Compiled for a class when the first row of that size comes.
    Kept { source: &'static str, by_class: [OnceLock<T>; SIZE_CLASSES.len()] },
    /// Compiled for each use.
    Draft(String),
}

enum TemplateProgram {
    Sides {
        inputs: Compiled<Template<'static, 'static>>,
        targets: Compiled<Template<'static, 'static>>,
        pieces: Option<[Vec<Piece>; 2]>,
    },
    Prompt {
        name: String,
        prompt: Compiled<Template<'static, 'static>>,
        answer_choices: Option<Compiled<Template<'static, 'static>>>,
    },
}

impl TemplateProgram {
    fn sources(&self) -> impl Iterator<Item = &Compiled<Template<'static, 'static>>> {
        let (first, second) = match self {
            TemplateProgram::Sides { inputs, targets, .. } => (inputs, Some(targets)),
            TemplateProgram::Prompt { prompt, answer_choices, .. } => (prompt, answer_choices.as_ref()),
        };
        std::iter::once(first).chain(second)
    }
}

/// A row of a corpus, or one that came as JSON.
#[derive(Clone, Copy)]
pub enum Row<'r> {
    Decoded(&'r Datum<'r>),
    Json(&'r serde_json::Map<String, serde_json::Value>),
}

impl<'r> From<&'r Datum<'r>> for Row<'r> {
    fn from(datum: &'r Datum<'r>) -> Self {
        Row::Decoded(datum)
    }
}

/// Which row of which split it is: draws hang on it, and nothing else does.
#[derive(Clone, Copy, Default)]
pub struct RowName<'s> {
    pub split: &'s str,
    pub index: u64,
}

enum SlotProgram {
    Field { scope: usize, trim: bool },
    Source(Box<Compiled<Template<'static, 'static>>>),
}

/// Bytes that are put together without the engine: half of what its fuel allows (a byte is read, trimmed and written for
/// a 64th of a unit each), so that both give the same.
const LARGEST_JOIN: usize = 1 << 18;

enum FieldProgram {
    /// Not read by anything that is rendered.
    Unused,
    Constant(Value),
    Computed(Box<Compiled<Expression<'static, 'static>>>),
}

/// A row whose fields have been computed, ready for any template.
#[derive(Clone)]
pub struct Bound {
    class: usize,
    fields: Arc<Scope>,
    /// By slot of the task: what it prints, once it has been asked for; `None` where the engine has to say why not.
    slots: Arc<[OnceLock<Option<Value>>]>,
    options: Option<Arc<[String]>>,
    answer: Option<Arc<str>>,
    /// What random choices of templates draw from; absent where templates have none.
    draws: Option<Stream>,
}

impl Traced {
    /// The pieces of `range` that are left when blanks are taken off at both ends, as those of `text`.
    fn part(&self, range: Range<usize>, text: String) -> Traced {
        let stripped = python::strip(&self.text[range.clone()]);
        let start = range.start + self.text[range.clone()].find(stripped).unwrap_or(0);
        let end = start + stripped.len();
        if stripped != text {
            // A row's text held the separator: what stands where is not known any more.
            let whole = Stretch { output: 0..text.len(), source: 0..0, literal: false };
            return Traced { text, pieces: vec![whole] };
        }
        let within = self.pieces.iter().filter(|p| p.output.start < end && p.output.end > start);
        let pieces = within.map(|piece| {
            let (from, to) = (piece.output.start.max(start), piece.output.end.min(end));
            let source = if piece.literal {
                piece.source.start + from - piece.output.start..piece.source.end - (piece.output.end - to)
            } else {
                piece.source.clone()
            };
            Stretch { output: from - start..to - start, source, literal: piece.literal }
        });
        Traced { pieces: pieces.collect(), text }
    }
}

impl Bound {
    /// The options, if the task has them, as `render` lists them.
    pub fn options(&self) -> Option<&[String]> {
        self.options.as_deref()
    }

    pub fn answer(&self) -> Option<&str> {
        self.answer.as_deref()
    }

    /// The fields that have been computed, and `options_`, as JSON.
    pub fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        let names = self.fields.names.iter().enumerate();
        names.filter_map(|(slot, name)| Some((name.clone(), json(&self.fields.get(slot)?)))).collect()
    }

    /// Calls `each` for every text among the fields, those in lists included.
    pub fn texts(&self, each: &mut dyn FnMut(&str)) {
        for slot in 0..self.fields.names.len() - 1 {
            let Some(value) = self.fields.get(slot) else { continue };
            match value.as_str() {
                Some(text) => each(text),
                None if value.kind() == ValueKind::Seq => {
                    value.try_iter().into_iter().flatten().filter_map(|item| item.as_str().map(&mut *each)).count();
                }
                None => {}
            }
        }
    }

    /// The same row with another text in a field.
    pub fn with_field(&self, field: usize, text: &str) -> Bound {
        Bound {
            fields: Arc::new(self.fields.with(field, Value::from(text))),
            slots: self.slots.iter().map(|_| OnceLock::new()).collect(),
            ..self.clone()
        }
    }
}

/// What a template made of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub inputs: String,
    pub targets: String,
    /// What the answer is one of, if that is known.
    pub options: Option<Arc<[String]>>,
    pub answer: Option<Arc<str>>,
}

/// A prompt, and where it comes from.
#[derive(Clone, Debug)]
pub struct Trace {
    pub inputs: Traced,
    pub targets: Traced,
    pub options: Option<Arc<[String]>>,
    pub answer: Option<Arc<str>>,
}

/// One side of a prompt, and where each of its bytes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    pub text: String,
    /// In the order of the text, without gaps.
    pub pieces: Vec<Stretch>,
}

/// A stretch of rendered text that one stretch of the template gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub output: Range<usize>,
    pub source: Range<usize>,
    /// Whether it stands in the template as it is; otherwise the source is an expression.
    pub literal: bool,
}

/// What an answer is one of, if that is known.
type Choices = Option<Arc<[String]>>;

/// What a template of promptsource's dialect printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Between the separators. Two make a prompt.
    pub parts: Vec<String>,
    pub choices: Option<Arc<[String]>>,
}

/// Stands between inputs and targets, and between choices.
const SEPARATOR: &str = "|||";

/// Stands for the separator in a row's text until what is printed has been split. It is promptsource's, because some of
/// its templates name it.
const PROTECTOR: &str = "3ed2dface8203c4c9dfb1a5dc58e41e0";

/// Why a row gives no prompt, as counted in the manifest.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: Reason,
    pub detail: String,
    pub place: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The filter or a field could not be computed, or is undefined.
    Field,
    /// The template could not be rendered.
    Template,
    /// The answer is none of the options.
    AnswerNotAnOption,
    /// The same, but for white space.
    AnswerDiffersByBlank,
    EmptyInputs,
    EmptyTargets,
    /// The template prints no inputs for a row: it says that it is not meant for it.
    DoesNotApply,
    /// The template prints no targets for a row: its label is not known.
    Unlabelled,
    /// The template prints other than inputs and targets.
    NotTwoParts,
    /// The prompt is longer than allowed and cannot be shortened.
    TooLong,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Field => "field",
            Reason::Template => "template",
            Reason::AnswerNotAnOption => "answer-not-an-option",
            Reason::AnswerDiffersByBlank => "answer-differs-by-blank",
            Reason::EmptyInputs => "empty-inputs",
            Reason::EmptyTargets => "empty-targets",
            Reason::DoesNotApply => "does-not-apply",
            Reason::Unlabelled => "unlabelled",
            Reason::NotTwoParts => "not-two-parts",
            Reason::TooLong => "too-long",
        }
    }
}

impl Program {
    /// Compiles a definition that has been checked; `reads` are, for each field, the filter and the templates, the
    /// names they read.
    ///
    /// # Errors
    /// What the checker lets pass and the engine does not.
    pub fn compile(
        definition: &Definition,
        reads: &Reads,
        computed: Computed,
        life: Life,
    ) -> Result<Program, Vec<Diagnostic>> {
        let needed = match computed {
            Computed::Read => reads.needed(definition),
            Computed::All => reads.all(definition),
        };
        let field_names: Vec<String> = definition.fields.iter().map(|f| f.name.clone()).collect();
        let expression_names: Arc<[String]> = field_names.iter().chain(&needed.features).cloned().collect();
        let own_names = match definition.dialect {
            Dialect::Flanc => vec!["options_".to_owned()],
            Dialect::Promptsource => {
                let features = needed.features.iter().map(|name| without_hyphens(name).into_owned());
                features.chain(["answer_choices".to_owned(), python::DRAWS.to_owned()]).collect()
            }
        };
        let template_names: Arc<[String]> = field_names.iter().cloned().chain(own_names).collect();
        let mut errors = Vec::new();
        let mut fields = Vec::new();
        for (i, field) in definition.fields.iter().enumerate() {
            if !needed.fields.contains(&i) {
                fields.push(FieldProgram::Unused);
                continue;
            }
            let compiled = Compiled::<Expression>::new(&field.expression, life);
            let constant = reads.fields[i].is_empty().then(|| compiled.eval(0, Value::from(()))).transpose();
            fields.push(match constant {
                Ok(Some(value)) => FieldProgram::Constant(value),
                Ok(None) => FieldProgram::Computed(Box::new(compiled)),
                Err(error) => {
                    errors.push(engine_error(&error, field.expression.whole_span()));
                    FieldProgram::Unused
                }
            });
        }
        let filter = definition.filter.as_ref().map(|filter| Compiled::<Expression>::new(filter, life));
        let (syntax, mut shared) = (syntax(), Shared::default());
        let templates: Vec<_> = definition
            .templates
            .iter()
            .map(|t| match &t.body {
                Body::Sides { inputs, targets } => {
                    let (inputs, targets) = (Compiled::new(inputs, life), Compiled::new(targets, life));
                    let mut split = |side: &Compiled<_>| match side.source {
                        // A longer source is refused below.
                        Text::Kept { source, .. } if source.len() <= check::LARGEST_SOURCE => {
                            pieces(source, &syntax, &template_names, &mut shared)
                        }
                        _ => None,
                    };
                    let pieces = split(&inputs).zip(split(&targets)).map(|(inputs, targets)| [inputs, targets]);
                    TemplateProgram::Sides { inputs, targets, pieces }
                }
                Body::Prompt { prompt, answer_choices, .. } => TemplateProgram::Prompt {
                    name: t.name.text.clone(),
                    prompt: Compiled::promptsource(prompt, life),
                    answer_choices: answer_choices.as_ref().map(|choices| Compiled::promptsource(choices, life)),
                },
            })
            .collect();
        errors.extend(fields.iter().filter_map(|f| match f {
            FieldProgram::Computed(compiled) => compiled.error(),
            _ => None,
        }));
        errors.extend(filter.iter().filter_map(Compiled::<Expression>::error));
        errors.extend(templates.iter().flat_map(TemplateProgram::sources).filter_map(Compiled::<Template>::error));
        if !errors.is_empty() {
            return Err(errors);
        }
        let position = |name: &str| field_names.iter().position(|n| n == name);
        // The options are not a field that may be shortened.
        let visible = |name: &str| template_names.iter().position(|n| n == name && name != "options_");
        Ok(Program {
            input_fields: reads
                .templates
                .iter()
                .map(|read| read.inputs.iter().filter_map(|name| visible(name)).collect())
                .collect(),
            dialect: definition.dialect,
            task: definition.task.text.clone(),
            features: needed.features,
            expression_names,
            template_names,
            filter,
            fields,
            options: position("options"),
            answer: position("answer"),
            templates,
            texts: shared.texts,
            slots: shared
                .slots
                .into_iter()
                .map(|slot| match slot {
                    Slot::Field { scope, trim } => SlotProgram::Field { scope, trim },
                    Slot::Source(source) => SlotProgram::Source(Box::new(Compiled::of(
                        source,
                        &Snippet::whole("slot", source),
                        Dialect::Flanc,
                        life,
                    ))),
                })
                .collect(),
        })
    }

    /// The features to decode; `None` where an expression takes the whole `row`.
    pub fn decoded_features(&self) -> Option<&BTreeSet<String>> {
        (!self.features.contains("row")).then_some(&self.features)
    }

    /// Computes the fields of a row of `bytes` bytes. `Ok(None)`: the filter takes the row out.
    pub fn bind<'r>(&self, row: impl Into<Row<'r>>, bytes: usize, name: RowName<'_>) -> Result<Option<Bound>, Failure> {
        let row = row.into();
        let class = size_class(bytes);
        let scope = Arc::new(Scope::new(&self.expression_names));
        // Features follow the fields, so a field's slot is never taken for that of a feature.
        let first = self.fields.len();
        let named = |name: &str, value: &dyn Fn() -> Value| {
            scope.set_from(first, name, value);
            if self.dialect == Dialect::Promptsource && name.contains('-') {
                scope.set_from(first, &without_hyphens(name), value);
            }
        };
        match row {
            Row::Decoded(Datum::Struct(features)) => {
                features.iter().for_each(|(name, datum)| named(name, &|| value(datum)));
            }
            Row::Json(features) => {
                features.iter().for_each(|(name, item)| named(name, &|| json_value(item)));
            }
            Row::Decoded(_) => return Err(field_failure("the corpus has no named features".into(), None)),
        }
        scope.set_from(first, "row", || match row {
            Row::Decoded(datum) => value(datum),
            Row::Json(features) => {
                Value::from_pairs(features.iter().map(|(name, item)| (name.as_str(), json_value(item))))
            }
        });
        let context = Value::from_dyn_object(scope.clone());
        if let Some(filter) = &self.filter {
            let kept = filter.eval(class, context.clone());
            if !kept.map_err(|e| field_failure(explain(&e), Some(filter.place.clone())))?.is_true() {
                return Ok(None);
            }
        }
        let fields = Arc::new(Scope::new(&self.template_names));
        for (i, field) in self.fields.iter().enumerate() {
            let (value, place) = match field {
                FieldProgram::Unused => continue,
                FieldProgram::Constant(value) => (value.clone(), None),
                FieldProgram::Computed(compiled) => {
                    let value = compiled.eval(class, context.clone());
                    (
                        value.map_err(|e| field_failure(explain(&e), Some(compiled.place.clone())))?,
                        Some(compiled.place.clone()),
                    )
                }
            };
            if value.is_undefined() {
                return Err(field_failure(format!("field `{}` is undefined", self.template_names[i]), place));
            }
            scope.set(i, value.clone());
            fields.set(i, value);
        }
        if self.dialect == Dialect::Promptsource {
            for (slot, feature) in self.expression_names.iter().enumerate().skip(first) {
                let Some(value) = scope.get(slot) else { continue };
                let protected = value.as_str().filter(|text| text.contains(SEPARATOR));
                let value = protected.map_or(value.clone(), |text| Value::from(text.replace(SEPARATOR, PROTECTOR)));
                fields.set_from(first, &without_hyphens(feature), || value);
            }
            let draws = Seed(0).stream(&["choice", &self.task, name.split]).at(name.index);
            return Ok(Some(Bound {
                class,
                fields,
                slots: Arc::new([]),
                options: None,
                answer: None,
                draws: Some(draws),
            }));
        }
        let options = self.options.and_then(|i| fields.get(i)).map(option_list).transpose()?;
        let answer: Option<Arc<str>> = self.answer.and_then(|i| fields.get(i)).map(|v| v.to_string().into());
        if let Some(options) = &options {
            if let Some(answer) = &answer
                && !options.iter().any(|option| **option == **answer)
            {
                let words = |text: &str| text.split_whitespace().collect::<String>();
                let nearly = options.iter().any(|option| words(option) == words(answer));
                return Err(Failure {
                    reason: if nearly { Reason::AnswerDiffersByBlank } else { Reason::AnswerNotAnOption },
                    detail: format!("answer {answer:?} is none of {options:?}"),
                    place: None,
                });
            }
            fields.set(self.template_names.len() - 1, Value::from(options::block(options)));
        }
        let slots = self.slots.iter().map(|_| OnceLock::new()).collect();
        Ok(Some(Bound { class, fields, slots, options: options.map(Arc::from), answer, draws: None }))
    }

    /// Whether the filter keeps the row.
    pub fn keeps(&self, row: &Datum<'_>, bytes: usize) -> Result<bool, Failure> {
        match self.filter {
            None => Ok(true),
            Some(_) => self.bind(row, bytes, RowName::default()).map(|bound| bound.is_some()),
        }
    }

    /// The longest text among the fields that a template's inputs read, options and answer left alone.
    pub fn longest_field(&self, bound: &Bound, template: usize) -> Option<(usize, String)> {
        let fields = self.input_fields[template].iter().filter(|&&i| Some(i) != self.answer && Some(i) != self.options);
        let texts = fields.filter_map(|&i| Some((i, bound.fields.get(i)?.as_str()?.to_owned())));
        texts.filter(|(_, text)| !text.is_empty()).max_by_key(|(i, text)| (text.len(), std::cmp::Reverse(*i)))
    }

    /// What templates call a field, by the number that [`Program::longest_field`] gives.
    pub fn field_name(&self, field: usize) -> &str {
        &self.template_names[field]
    }

    /// Renders one template over a row's fields.
    pub fn render(&self, bound: &Bound, template: usize) -> Result<Prompt, Failure> {
        let (inputs, targets) = match &self.templates[template] {
            TemplateProgram::Sides { inputs, targets, .. } => (inputs, targets),
            TemplateProgram::Prompt { prompt, .. } => {
                let parts = self.parts(bound, template)?;
                return prompt_of(parts).map_err(|reason| failure(reason, &prompt.place));
            }
        };
        let side = |compiled: &Compiled<Template<'static, 'static>>, side: usize| {
            let joined = self.pieces(bound, template).map(|sides| self.join(bound, sides[side]));
            match joined {
                Some(text) => Ok(text),
                None => compiled.render(bound.class, Value::from_dyn_object(bound.fields.clone())),
            }
        };
        let prompt = Prompt {
            inputs: side(inputs, 0)?,
            targets: side(targets, 1)?,
            options: bound.options.clone(),
            answer: bound.answer.clone(),
        };
        not_empty((&prompt.inputs, &inputs.place), (&prompt.targets, &targets.place))?;
        Ok(prompt)
    }

    /// The texts of the task that pieces refer to.
    pub fn texts(&self) -> &[&'static str] {
        &self.texts
    }

    /// The number of slots of the task.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The pieces of a template's inputs and of its targets, if it is made of pieces, and the row can print all its slots
    /// without their being so long that the engine might refuse.
    pub fn pieces(&self, bound: &Bound, template: usize) -> Option<[&[Piece]; 2]> {
        let TemplateProgram::Sides { pieces: Some([inputs, targets]), .. } = &self.templates[template] else {
            return None;
        };
        for side in [inputs, targets] {
            let mut length = 0;
            for piece in side {
                length += match piece {
                    Piece::Text(text) => self.texts[*text].len(),
                    Piece::Slot(slot) => self.print_slot(bound, *slot)?.len(),
                };
            }
            if length > LARGEST_JOIN {
                return None;
            }
        }
        Some([inputs, targets])
    }

    /// What a piece prints for a row; nothing where [`Program::pieces`] has found that it cannot.
    pub fn piece<'b>(&self, bound: &'b Bound, piece: Piece) -> &'b str {
        match piece {
            Piece::Text(text) => self.texts[text],
            Piece::Slot(slot) => self.print_slot(bound, slot).unwrap_or_default(),
        }
    }

    /// Puts the pieces of a side together.
    fn join(&self, bound: &Bound, pieces: &[Piece]) -> String {
        let text = |piece: &Piece| self.piece(bound, *piece);
        let mut joined = String::with_capacity(pieces.iter().map(|piece| text(piece).len()).sum());
        pieces.iter().for_each(|piece| joined.push_str(text(piece)));
        joined
    }

    fn print_slot<'b>(&self, bound: &'b Bound, slot: usize) -> Option<&'b str> {
        let printed = bound.slots[slot].get_or_init(|| match &self.slots[slot] {
            SlotProgram::Field { scope, .. } => bound.fields.get(*scope).filter(|value| value.as_str().is_some()),
            SlotProgram::Source(source) => {
                let context = Value::from_dyn_object(bound.fields.clone());
                source.render(bound.class, context).ok().map(Value::from)
            }
        });
        let text = printed.as_ref()?.as_str()?;
        Some(if matches!(self.slots[slot], SlotProgram::Field { trim: true, .. }) { text.trim() } else { text })
    }

    /// The same prompt with the origin of its bytes.
    pub fn trace(&self, bound: &Bound, template: usize) -> Result<Trace, Failure> {
        let (inputs, targets, options, answer) = match &self.templates[template] {
            TemplateProgram::Sides { inputs, targets, .. } => {
                let side = |compiled: &Compiled<Template<'static, 'static>>| {
                    compiled.trace(bound.class, Value::from_dyn_object(bound.fields.clone()))
                };
                let sides = (side(inputs)?, side(targets)?);
                not_empty((&sides.0.text, &inputs.place), (&sides.1.text, &targets.place))?;
                (sides.0, sides.1, bound.options.clone(), bound.answer.clone())
            }
            TemplateProgram::Prompt { prompt, .. } => {
                let Prompt { inputs, targets, options, answer } = self.render(bound, template)?;
                let (fields, _) = self.fields_and_choices(bound, template)?;
                let printed = prompt.trace(bound.class, Value::from_dyn_object(Arc::new(fields)))?;
                let middle = printed.text.find(SEPARATOR).unwrap_or(printed.text.len());
                let after = (middle + SEPARATOR.len()).min(printed.text.len());
                (printed.part(0..middle, inputs), printed.part(after..printed.text.len(), targets), options, answer)
            }
        };
        Ok(Trace { inputs, targets, options, answer })
    }

    /// What a template of promptsource's dialect prints, as its `apply` returns it. No parts for other templates.
    pub fn parts(&self, bound: &Bound, template: usize) -> Result<Parts, Failure> {
        let TemplateProgram::Prompt { prompt, .. } = &self.templates[template] else {
            return Ok(Parts { parts: Vec::new(), choices: None });
        };
        let (fields, choices) = self.fields_and_choices(bound, template)?;
        let printed = prompt.render(bound.class, Value::from_dyn_object(Arc::new(fields)))?;
        let clean = |part: &str| python::strip(&part.replace(PROTECTOR, SEPARATOR)).to_owned();
        Ok(Parts { parts: printed.split(SEPARATOR).map(clean).collect(), choices })
    }

    /// What a template of promptsource's dialect sees of a row, and its choices.
    fn fields_and_choices(&self, bound: &Bound, template: usize) -> Result<(Scope, Choices), Failure> {
        let last = bound.fields.values.len() - 1;
        let TemplateProgram::Prompt { name, answer_choices, .. } = &self.templates[template] else {
            return Ok((bound.fields.with(last, Value::from(())), None));
        };
        // One row of draws for both: what the choices take is gone for the prompt.
        let stream = bound.draws.unwrap_or(Seed(0).stream(&[])).named(name);
        let fields = bound.fields.with(last, python::draws(stream));
        let Some(source) = answer_choices else { return Ok((fields.with(last - 1, Value::from(())), None)) };
        let printed = source.render(bound.class, Value::from_dyn_object(Arc::new(fields.clone())))?;
        let clean = |part: &str| python::strip(part).replace(PROTECTOR, SEPARATOR);
        let choices: Vec<String> = printed.split(SEPARATOR).map(clean).collect();
        Ok((fields.with(last - 1, Value::from(choices.clone())), Some(choices.into())))
    }
}

fn not_empty((inputs, of_inputs): (&str, &Span), (targets, of_targets): (&str, &Span)) -> Result<(), Failure> {
    if targets.trim().is_empty() {
        return Err(failure(Reason::EmptyTargets, of_targets));
    }
    if inputs.trim().is_empty() {
        return Err(failure(Reason::EmptyInputs, of_inputs));
    }
    Ok(())
}

/// Two parts are a prompt; what anything else says is counted under a reason of its own.
fn prompt_of(parts: Parts) -> Result<Prompt, Reason> {
    match <[String; 2]>::try_from(parts.parts) {
        Ok([inputs, _]) if inputs.is_empty() => Err(Reason::DoesNotApply),
        Ok([_, targets]) if targets.is_empty() => Err(Reason::Unlabelled),
        Ok([inputs, targets]) => {
            let known = parts.choices.as_ref().is_some_and(|choices| choices.contains(&targets));
            let answer = known.then(|| Arc::from(targets.as_str()));
            Ok(Prompt { inputs, targets, options: parts.choices, answer })
        }
        Err(parts) if parts[..] == [""] => Err(Reason::DoesNotApply),
        Err(_) => Err(Reason::NotTwoParts),
    }
}

fn failure(reason: Reason, place: &Span) -> Failure {
    Failure { reason, detail: reason.name().replace('-', " "), place: Some(place.clone()) }
}

/// promptsource gives features names that a template can say.
pub fn without_hyphens(name: &str) -> Cow<'_, str> {
    if name.contains('-') { Cow::Owned(name.replace('-', "_")) } else { Cow::Borrowed(name) }
}

fn field_failure(detail: String, place: Option<Span>) -> Failure {
    Failure { reason: Reason::Field, detail, place }
}

fn option_list(value: Value) -> Result<Vec<String>, Failure> {
    let items = value.try_iter().map_err(|e| field_failure(format!("`options`: {}", explain(&e)), None))?;
    Ok(items.map(|item| item.to_string()).collect())
}

impl<T> Compiled<T> {
    fn new(snippet: &Snippet, life: Life) -> Self {
        Self::of(&snippet.text, snippet, Dialect::Flanc, life)
    }

    fn of(source: &str, snippet: &Snippet, dialect: Dialect, life: Life) -> Self {
        let source = match life {
            Life::Process => Text::Kept { source: intern(source), by_class: Default::default() },
            Life::Use => Text::Draft(source.to_owned()),
        };
        Compiled { source, place: snippet.whole_span(), dialect }
    }

    fn environment(&self, class: usize) -> Result<&'static Environment<'static>, Error> {
        let length = match &self.source {
            Text::Kept { source, .. } => source.len(),
            Text::Draft(source) => source.len(),
        };
        let (largest, environments) = match self.dialect {
            Dialect::Flanc => (check::LARGEST_SOURCE, &ENVIRONMENTS),
            Dialect::Promptsource => (check::LARGEST_SOURCE + python::LONGER, &PROMPTSOURCE_ENVIRONMENTS),
        };
        if length > largest {
            return Err(Error::new(ErrorKind::SyntaxError, "the source is too large"));
        }
        Ok(&environments[class])
    }
}

/// What is kept for a class, made if it is not there yet.
fn kept<T>(place: &OnceLock<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<&T, Error> {
    match place.get() {
        Some(made) => Ok(made),
        None => {
            let made = make()?;
            Ok(place.get_or_init(|| made))
        }
    }
}

impl Compiled<Expression<'static, 'static>> {
    fn with<R>(&self, class: usize, call: impl FnOnce(&Expression<'_, '_>) -> Result<R, Error>) -> Result<R, Error> {
        match &self.source {
            Text::Kept { source, by_class } => {
                call(kept(&by_class[class], || self.environment(class)?.compile_expression(source))?)
            }
            Text::Draft(source) => call(&self.environment(class)?.compile_expression(source)?),
        }
    }

    fn eval(&self, class: usize, context: Value) -> Result<Value, Error> {
        self.with(class, |expression| expression.eval(context))
    }

    fn error(&self) -> Option<Diagnostic> {
        self.with(0, |_| Ok(())).err().map(|error| engine_error(&error, self.place.clone()))
    }
}

impl Compiled<Template<'static, 'static>> {
    fn promptsource(snippet: &Snippet, life: Life) -> Self {
        Self::of(&python::source(&snippet.text), snippet, Dialect::Promptsource, life)
    }

    fn with<R>(&self, class: usize, call: impl FnOnce(&Template<'_, '_>) -> Result<R, Error>) -> Result<R, Error> {
        match &self.source {
            Text::Kept { source, by_class } => {
                call(kept(&by_class[class], || self.environment(class)?.template_from_str(source))?)
            }
            Text::Draft(source) => call(&self.environment(class)?.template_from_str(source)?),
        }
    }

    fn error(&self) -> Option<Diagnostic> {
        self.with(0, |_| Ok(())).err().map(|error| engine_error(&error, self.place.clone()))
    }

    fn render(&self, class: usize, context: Value) -> Result<String, Failure> {
        self.with(class, |template| template.render(context)).map_err(|error| self.failure(&error))
    }

    fn trace(&self, class: usize, context: Value) -> Result<Traced, Failure> {
        let traced = self.with(class, |template| template.render_with_spans(context));
        let (text, spans) = traced.map_err(|error| self.failure(&error))?;
        let piece = |span: &minijinja::OutputSpan| Stretch {
            output: span.output_range(),
            source: span.source_range(),
            literal: span.kind() == OutputSpanKind::Raw,
        };
        Ok(Traced { text, pieces: spans.iter().map(piece).collect() })
    }

    fn failure(&self, error: &Error) -> Failure {
        Failure { reason: Reason::Template, detail: explain(error), place: Some(self.place.clone()) }
    }
}

/// What the parts of a definition read, by name.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    pub filter: BTreeSet<String>,
    pub fields: Vec<BTreeSet<String>>,
    pub templates: Vec<TemplateReads>,
    /// Features that templates see themselves, past the fields.
    pub features: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub struct TemplateReads {
    pub inputs: BTreeSet<String>,
    pub targets: BTreeSet<String>,
}

struct Needed {
    fields: BTreeSet<usize>,
    features: BTreeSet<String>,
}

impl Reads {
    /// The fields and features that rendering needs. `row` stands for all features; a name that is a field above the
    /// reader means the field, otherwise the feature.
    fn needed(&self, definition: &Definition) -> Needed {
        let mut wanted: BTreeSet<&str> = ["options", "answer"].into();
        wanted.extend(self.templates.iter().flat_map(|t| t.inputs.iter().chain(&t.targets)).map(String::as_str));
        self.needed_for(definition, wanted)
    }

    /// Those that all fields need.
    fn all(&self, definition: &Definition) -> Needed {
        self.needed_for(definition, definition.fields.iter().map(|f| f.name.as_str()).collect())
    }

    fn needed_for<'n>(&'n self, definition: &'n Definition, mut wanted: BTreeSet<&'n str>) -> Needed {
        let features = self.filter.union(&self.features).cloned().collect();
        let mut needed = Needed { fields: BTreeSet::new(), features };
        for (i, field) in definition.fields.iter().enumerate().rev() {
            if !wanted.remove(field.name.as_str()) {
                continue;
            }
            needed.fields.insert(i);
            for name in &self.fields[i] {
                if definition.fields[..i].iter().any(|f| &f.name == name) {
                    wanted.insert(name);
                } else {
                    needed.features.insert(name.clone());
                }
            }
        }
        needed
    }
}

/// The names an expression or template sees, with their values as far as they are set.
#[derive(Clone, Debug)]
struct Scope {
    names: Arc<[String]>,
    values: Box<[OnceLock<Value>]>,
}

impl Scope {
    fn new(names: &Arc<[String]>) -> Scope {
        Scope { names: names.clone(), values: names.iter().map(|_| OnceLock::new()).collect() }
    }

    fn set(&self, slot: usize, value: Value) {
        let _ = self.values[slot].set(value); // each slot is set once for a row
    }

    fn set_from(&self, first: usize, name: &str, value: impl FnOnce() -> Value) {
        if let Some(slot) = self.names[first..].iter().position(|n| n == name)
            && self.values[first + slot].get().is_none()
        {
            self.set(first + slot, value());
        }
    }

    fn get(&self, slot: usize) -> Option<Value> {
        self.values[slot].get().cloned()
    }

    /// The same with another value in a slot.
    fn with(&self, slot: usize, value: Value) -> Scope {
        let mut other = self.clone();
        other.values[slot] = OnceLock::from(value);
        other
    }
}

impl Object for Scope {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.names.iter().zip(&self.values).filter(|(name, _)| *name == key).find_map(|(_, value)| value.get().cloned())
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.names.iter().map(Value::from).collect())
    }
}

/// A decoded value as the template engine sees it.
fn value(datum: &Datum<'_>) -> Value {
    match datum {
        Datum::Bool(v) => Value::from(*v),
        Datum::Int(v) => Value::from(*v),
        Datum::UInt(v) => Value::from(*v),
        Datum::F16(bits) => Value::from(f64::from(half::f16::from_bits(*bits))),
        Datum::F32(v) => Value::from(f64::from(*v)),
        Datum::F64(v) => Value::from(*v),
        Datum::Text(text) => Value::from(text.as_ref()),
        // Rows with invalid text are bad records before they come here; the replacement is for `render`.
        Datum::Bytes(bytes) => Value::from(String::from_utf8_lossy(bytes).into_owned()),
        Datum::List(items) => items.iter().map(value).collect(),
        // TFDS sorts the features of a struct, and so does the map.
        Datum::Struct(fields) => Value::from_object(
            fields.iter().map(|(name, item)| ((*name).to_owned(), value(item))).collect::<BTreeMap<_, _>>(),
        ),
    }
}

/// The same for JSON. Objects keep the order of their keys, as in Python.
fn json_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(v) => Value::from(*v),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (_, Some(integer)) => Value::from(integer),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(json_value).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, item)| (name.as_str(), json_value(item))))
        }
    }
}

/// A computed value as JSON; what JSON has no form for is printed as a template would print it.
fn json(value: &Value) -> serde_json::Value {
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number => match (i64::try_from(value.clone()), f64::try_from(value.clone())) {
            (Ok(integer), _) if value.is_integer() => integer.into(),
            (_, Ok(float)) => float.into(),
            _ => value.to_string().into(),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter().map(|items| items.map(|item| json(&item)).collect()).unwrap_or_default()
        }
        ValueKind::Map => {
            let names = value.try_iter().into_iter().flatten();
            names
                .map(|name| (name.to_string(), value.get_item(&name).map_or_else(|_| "".into(), |v| json(&v))))
                .collect()
        }
        _ => value.to_string().into(),
    }
}

/// An engine error in one line, its causes included.
fn explain(error: &Error) -> String {
    let mut text = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(", because {inner}"));
        cause = inner.source();
    }
    text
}

fn engine_error(error: &Error, place: Span) -> Diagnostic {
    Diagnostic::error("template", explain(error)).at(place).label("refused by the template engine")
}

/// `numbered`: a list as lines, each with its number: `1. …`.
fn numbered(items: &Value) -> Result<String, Error> {
    let lines = items.try_iter()?.enumerate().map(|(i, item)| format!("{}. {item}", i + 1));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// `regex_replace(pattern, with)`: replaces every match, as RE2 in TensorFlow does: `\w`, `\d`, `\s` and `\b` are
/// ASCII, `.` is any character but a newline, and `\1` in `with` is the first group.
///
/// Fuel is taken for each call and for the text, the same whether a pattern has been compiled before or not.
fn regex_replace(state: &State, text: &str, pattern: &str, with: &str) -> Result<String, Error> {
    /// Patterns may come from rows: more than a catalogue has are not kept.
    const MOST_KEPT: usize = 256;
    /// A pattern at the limit of size takes some milliseconds to compile.
    const FUEL_OF_A_CALL: u64 = 50;
    static COMPILED: Mutex<Option<HashMap<String, regex::Regex>>> = Mutex::new(None);
    state.consume_fuel(FUEL_OF_A_CALL + (text.len() as u64).div_ceil(64))?;
    let regex = {
        let mut compiled = COMPILED.lock().unwrap_or_else(|e| e.into_inner());
        let compiled = compiled.get_or_insert_default();
        match compiled.get(pattern) {
            Some(regex) => regex.clone(),
            None => {
                let regex = regex::RegexBuilder::new(&ascii_classes(pattern))
                    .size_limit(1 << 20)
                    .build()
                    .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("pattern {pattern:?}: {e}")))?;
                if compiled.len() >= MOST_KEPT {
                    compiled.clear();
                }
                compiled.insert(pattern.to_owned(), regex.clone());
                regex
            }
        }
    };
    let mut template = String::new();
    let mut characters = with.chars();
    while let Some(c) = characters.next() {
        match c {
            '$' => template.push_str("$$"),
            '\\' => match characters.next() {
                Some(digit @ '0'..='9') => template.push_str(&format!("${{{digit}}}")),
                Some(other) => template.push(other),
                None => template.push('\\'),
            },
            c => template.push(c),
        }
    }
    Ok(match regex.replace_all(text, template.as_str()) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    })
}

/// Spells the Perl classes of a pattern out as RE2's ASCII sets.
fn ascii_classes(pattern: &str) -> String {
    let mut out = String::new();
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match characters.next() {
            Some('w') => out.push_str("[0-9A-Za-z_]"),
            Some('W') => out.push_str("[^0-9A-Za-z_]"),
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('s') => out.push_str("[\\t\\n\\x0C\\r ]"),
            Some('S') => out.push_str("[^\\t\\n\\x0C\\r ]"),
            Some('b') => out.push_str("(?-u:\\b)"),
            Some('B') => out.push_str("(?-u:\\B)"),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}
