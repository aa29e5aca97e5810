//! What the audit can find, by code.

use crate::diag::Severity;

/// What a finding is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Definition and recipe alone: it does not depend on which rows were looked at.
    Definition,
    /// Rows. It may show in one sample, or with one tokenizer, and not in another.
    Rows,
}

/// A kind of finding.
#[derive(Debug)]
pub struct Code {
    pub name: &'static str,
    pub severity: Severity,
    pub basis: Basis,
    /// Share of prompts (or rows, where it is about rows) from which on it is said: below, it is an odd row and not
    /// the template.
    pub least: f64,
    /// What to do.
    pub help: &'static str,
    /// What it is and why it matters, for `--explain`.
    pub about: &'static str,
}

impl Code {
    pub fn find(name: &str) -> Option<&'static Code> {
        CODES.iter().copied().find(|code| code.name == name)
    }
}

const fn always(name: &'static str, severity: Severity, help: &'static str, about: &'static str) -> Code {
    Code { name, severity, basis: Basis::Definition, least: 0.0, help, about }
}

const fn shown(name: &'static str, severity: Severity, least: f64, help: &'static str, about: &'static str) -> Code {
    Code { name, severity, basis: Basis::Rows, least, help, about }
}

use Severity::{Error, Note, Warning};

// ---- Leakage -------------------------------------------------------------------------------------------------------

pub static TARGET_IN_INPUTS: Code = shown(
    "target-in-inputs",
    Error,
    0.2,
    "take the expression out of the inputs, or ask for something else",
    "An expression in the inputs prints the target, or a text of which the target is the better part. The model learns \
     to copy. An answer that is a small part of a longer text, as in extractive question answering, is not meant.",
);
pub static LABEL_IN_INPUTS: Code = shown(
    "label-in-inputs",
    Error,
    0.3,
    "print all options or none; the right one alone gives the answer away",
    "An expression in the inputs prints the right option and hardly ever a wrong one, so that the label can be read \
     off the prompt without understanding it.",
);
pub static TURNED_AROUND_LEAK: Code = shown(
    "turned-around-leak",
    Error,
    0.2,
    "leave what is asked for out of the inputs",
    "A turned-around template gives the answer and asks for a part of the example. Here that part stands in the inputs \
     already.",
);
pub static INPUTS_READ_ANSWER: Code = always(
    "inputs-read-answer",
    Error,
    "base the wording on something other than the answer",
    "The inputs of a template that asks for the answer read the answer, or a field that is computed from the label. \
     Even where the answer is not printed, it may decide how the question is put, and that is enough to learn it from.",
);
pub static OVERLAPPING_SPLITS: Code = always(
    "overlapping-splits",
    Error,
    "let one split end where the other begins",
    "Two splits of a task share rows. What is validated or tested on has then been trained on.",
);
pub static HELD_OUT_EXEMPLARS: Code = always(
    "held-out-exemplars",
    Error,
    "take exemplars from rows that nothing is evaluated on",
    "Exemplars stand in the prompts, answers and all. Those of this task are taken from rows that are evaluated, so \
     that a prompt can hold its own answer.",
);

// ---- Answers -------------------------------------------------------------------------------------------------------

pub static ANSWER_NOT_AN_OPTION: Code = shown(
    "answer-not-an-option",
    Error,
    0.0,
    "compare the expressions of `options` and `answer`, or filter such rows",
    "The answer of a row is none of its options. No prompt is made of it, so that a slip in one of the two expressions \
     silently costs rows, and those of one class more than others.",
);
pub static ANSWER_DIFFERS_BY_BLANK: Code = shown(
    "answer-differs-by-blank",
    Error,
    0.0,
    "trim both: `options = \"[a, b] | map('trim') | list\"`",
    "The answer is one of the options but for white space. What a model is scored by is compared byte by byte, so such \
     a row cannot be got right, and no prompt is made of it.",
);
pub static REPEATED_OPTIONS: Code = shown(
    "repeated-options",
    Warning,
    0.05,
    "filter such rows, or derive options that differ",
    "A row has the same option twice, so that two choices are equally right. A few rows of a corpus may be like that; \
     many come from the expression.",
);
pub static OPTIONS_DIFFER_BY_BLANK: Code = shown(
    "options-differ-by-blank",
    Error,
    0.0,
    "trim the options, or filter such rows",
    "Two options of a row differ by white space or case alone. Nobody can tell which of them is meant.",
);
pub static UNLABELLED: Code = shown(
    "unlabelled",
    Error,
    0.0,
    "filter them: `filter = \"label >= 0\"`",
    "TFDS gives a label of -1 where it is unknown, which as an index picks the last option: a wrong answer that looks \
     like any other.",
);
pub static ANSWER_UNDEFINED: Code = shown(
    "answer-undefined",
    Error,
    0.0,
    "give `options` an entry for every class of the label, or filter the others",
    "The answer of a row cannot be computed. Mostly the label counts beyond the options: a class that was forgotten, or \
     counting from 1. No prompt is made of such a row.",
);
pub static LABEL_IMBALANCE: Code = shown(
    "label-imbalance",
    Note,
    0.0,
    "nothing, if the corpus is so; otherwise look at the filter and at the order of `options`",
    "One option is right nearly always, or one never: less than half of the entropy that evenly spread labels would \
     have. It may be the corpus. It may also be a filter that takes out a class.",
);
pub static LABELS_OF_UNEQUAL_LENGTH: Code = shown(
    "labels-of-unequal-length",
    Note,
    0.0,
    "choose words for the labels that the tokenizer knows, if they are yours to choose",
    "One option is a single token and another takes four or more. Where options are ranked by their probability, the \
     longer one is at a disadvantage. It depends on the tokenizer.",
);
pub static OPTIONS_NOT_SHOWN: Code = shown(
    "options-not-shown",
    Warning,
    0.5,
    "print `{{ options_ }}`, or name the options in the instruction",
    "The task has options and the inputs do not show them, so that the model has to guess which words are asked for.",
);
pub static TARGET_NOT_A_CHOICE: Code = shown(
    "target-not-a-choice",
    Warning,
    0.05,
    "let the target be one of `answer_choices`, or leave `answer_choices` out where the answer is free",
    "A template of promptsource's dialect has `answer_choices`, and what it asks for is none of them. Whoever ranks the \
     choices can then never be right, and the prompt counts as one without options.",
);
pub static CHOICES_MISSING: Code = shown(
    "choices-missing",
    Warning,
    0.5,
    "print `answer_choices` in the prompt, or set `choices_in_prompt = false`",
    "promptsource's metadata say that the prompt shows its choices, and it does not. Collections that are put together \
     by that flag get other prompts than they ask for.",
);
pub static CHOICES_SHOWN: Code = shown(
    "choices-shown",
    Note,
    0.95,
    "set `choices_in_prompt = true`",
    "promptsource's metadata say that the prompt does not show its choices, and nearly every one shows all of them, as \
     words. Collections that are put together by that flag get other prompts than they ask for.",
);
pub static TARGET_NEVER_VARIES: Code = shown(
    "target-never-varies",
    Warning,
    0.0,
    "ask for something that depends on the row",
    "Every row gives the same target, which can be learned without reading the inputs.",
);
pub static INPUTS_NEVER_VARY: Code = shown(
    "inputs-never-vary",
    Error,
    0.0,
    "print a field of the row",
    "Every row gives the same inputs and other targets, which nothing can be learned from.",
);

// ---- Text ----------------------------------------------------------------------------------------------------------

pub static STRAY_CHARACTERS: Code = shown(
    "stray-characters",
    Error,
    0.0,
    "put a blank or a line break between, or take the letters out",
    "Letters of the template stand right against a field, as in `{{ hypothesis }}n` or `{{ text }}Summary`: a `\\n` \
     that lost its backslash, or a separator that was forgotten. Endings such as the s of a plural are not meant.",
);
pub static MISSING_SPACE: Code = shown(
    "missing-space",
    Warning,
    0.05,
    "put a blank or a line break between",
    "Two fields, or a field and the punctuation before it, run into each other without a blank.",
);
pub static MISSING_PUNCTUATION: Code = shown(
    "missing-punctuation",
    Warning,
    0.3,
    "end the line after the field, or add the mark that is missing",
    "A field that ends without punctuation is followed, on the same line, by a new sentence of the template.",
);
pub static DOUBLED_PUNCTUATION: Code = shown(
    "doubled-punctuation",
    Warning,
    0.05,
    "leave the mark to the field, or strip the field's own: `{{ text.rstrip('.') }}`",
    "A field ends in a punctuation mark, and the template adds another: `??`, `..`, `?.`. Or the template itself has \
     two.",
);
pub static TRAILING_BLANKS: Code = shown(
    "trailing-blanks",
    Warning,
    0.05,
    "trim the field, `{{ text | trim }}`, or take the blank out of the template",
    "Inputs or targets begin or end in white space, or a line ends in it. At the end of the inputs it takes the blank \
     that most tokenizers make the beginning of the next word; in targets the model learns to write it.",
);
pub static DOUBLE_SPACES: Code = shown(
    "double-spaces",
    Warning,
    0.05,
    "leave one of them out, or trim the field",
    "Two blanks stand in a row where the template joins its parts.",
);
pub static UNBALANCED: Code = shown(
    "unbalanced",
    Warning,
    0.0,
    "close what is open",
    "The template's own text has a quotation mark or bracket that is not closed, or closes one that was not opened.",
);
pub static UNRENDERED_BRACES: Code = shown(
    "unrendered-braces",
    Error,
    0.0,
    "write `{{ name }}`",
    "Braces that were meant for the template engine are left in the text, as `{hypothesis}` in a template that was \
     brought over from another format.",
);
pub static MOJIBAKE: Code = shown(
    "mojibake",
    Warning,
    0.05,
    "repair the field, e.g. with `replace`, or filter such rows",
    "The text was decoded with the wrong character set somewhere on its way (`â€™` for an apostrophe, `Ã©` for é), or \
     has the mark that stands for characters which were lost.",
);
pub static CONTROL_CHARACTERS: Code = shown(
    "control-characters",
    Warning,
    0.05,
    "replace them in the field's expression",
    "The text has characters that are not meant to be seen: control characters, marks of writing direction, zero-width \
     blanks. Most tokenizers spend several tokens on each.",
);
pub static FOREIGN_LANGUAGE: Code = shown(
    "foreign-language",
    Warning,
    0.2,
    "look at the rows; where a task is about another language, a field that names it (`lang2 = \"'German'\"`) says so",
    "Texts are in a language that the task does not name: it is about English, and about the languages whose names its \
     fields print. Only texts of some length are looked at, and only what is identified with confidence counts.",
);

// ---- Templates -----------------------------------------------------------------------------------------------------

pub static UNUSED_FIELD: Code =
    always("unused-field", Note, "use it, or take it out", "A field that no template and no other field reads.");
pub static DEAD_BRANCH: Code = shown(
    "dead-branch",
    Warning,
    0.0,
    "look at the condition: a value that is misspelt, or one that does not occur",
    "No row of the sample takes this branch of the template.",
);
pub static SAME_TEXT: Code = always(
    "same-text",
    Error,
    "take one of them out, or put it differently",
    "Two templates of a task have the same text under two names: the task counts as more varied than it is, and each \
     of its rows gives the same prompt twice.",
);
pub static NEAR_DUPLICATE: Code = always(
    "near-duplicate",
    Warning,
    "put one of them differently",
    "With their expressions masked, the inputs of two templates that ask for the same differ in less than a tenth of \
     their words.",
);
pub static LOW_DIVERSITY: Code = always(
    "low-diversity",
    Note,
    "write some of the templates anew, from another point of view",
    "The templates of the task resemble each other: the mean BLEU of each one's own words against those of the others \
     (self-BLEU) is above one half.",
);
pub static FEW_ORIGINALS: Code = always(
    "few-originals",
    Warning,
    "write more",
    "Fewer than seven templates ask for the answer. FLAN has ten templates for each dataset, at most three of them \
     turned around.",
);
pub static MANY_TURNED_AROUND: Code = always(
    "many-turned-around",
    Warning,
    "keep three of them",
    "More than three templates are turned around. FLAN has at most three for each dataset.",
);
pub static KIND_MISLABELLED: Code = always(
    "kind-mislabelled",
    Error,
    "correct `kind`",
    "A template that gives the answer and asks for a part of the example is marked `original`, or one that asks for the \
     answer `turned-around`. A held-out task is evaluated on its original templates.",
);

// ---- Rows ----------------------------------------------------------------------------------------------------------

pub static EMPTY_PROMPTS: Code = shown(
    "empty-prompts",
    Warning,
    0.01,
    "filter such rows",
    "The inputs or the targets come out empty. No prompt is made then.",
);
pub static ROWS_DROPPED: Code = shown(
    "rows-dropped",
    Warning,
    0.01,
    "look at the expression, or filter such rows so that it is seen to be meant",
    "Rows give no prompt because a record is bad, or an expression or template cannot be evaluated.",
);
pub static DUPLICATE_PROMPTS: Code = shown(
    "duplicate-prompts",
    Note,
    0.1,
    "nothing, if the corpus repeats itself; otherwise print the fields in which the rows differ",
    "Several rows give the same prompt, inputs and targets. Often the template leaves out what tells the rows apart.",
);

// ---- Lengths -------------------------------------------------------------------------------------------------------

pub static INPUTS_CUT: Code = shown(
    "inputs-cut",
    Note,
    0.5,
    "raise `inputs` under [lengths] in the recipe, or leave the field that pays out of some templates",
    "Half of the prompts are longer than the recipe allows and lose a part of a field, or are left out. What smaller \
     shares come to is in the table.",
);
pub static TARGETS_CUT: Code = shown(
    "targets-cut",
    Note,
    0.5,
    "raise `targets` under [lengths] in the recipe",
    "Half of the targets are longer than the recipe allows and are cut, which teaches a model to break off. What \
     smaller shares come to is in the table.",
);

// ---- Contamination and allowances ----------------------------------------------------------------------------------

pub static CONTAMINATED: Code = shown(
    "contaminated",
    Warning,
    0.0,
    "`contamination = \"drop\"` in the recipe leaves such rows out of training",
    "Rows that are held out for evaluation share thirteen words in a row with rows that are trained on, or are the same \
     text. All rows are compared, not the sample alone.",
);
pub static UNUSED_ALLOWANCE: Code = always(
    "unused-allowance",
    Warning,
    "take the [[allow]] out, or correct it",
    "An allowance that allows nothing: it was for something that has been put right since, or has a slip of its own. \
     What depends on the rows that are looked at is not held against it.",
);

/// All of them, by family.
pub static CODES: [&Code; 46] = [
    &TARGET_IN_INPUTS,
    &LABEL_IN_INPUTS,
    &TURNED_AROUND_LEAK,
    &INPUTS_READ_ANSWER,
    &OVERLAPPING_SPLITS,
    &HELD_OUT_EXEMPLARS,
    &ANSWER_NOT_AN_OPTION,
    &ANSWER_DIFFERS_BY_BLANK,
    &REPEATED_OPTIONS,
    &OPTIONS_DIFFER_BY_BLANK,
    &UNLABELLED,
    &ANSWER_UNDEFINED,
    &LABEL_IMBALANCE,
    &LABELS_OF_UNEQUAL_LENGTH,
    &OPTIONS_NOT_SHOWN,
    &TARGET_NOT_A_CHOICE,
    &CHOICES_MISSING,
    &CHOICES_SHOWN,
    &TARGET_NEVER_VARIES,
    &INPUTS_NEVER_VARY,
    &STRAY_CHARACTERS,
    &MISSING_SPACE,
    &MISSING_PUNCTUATION,
    &DOUBLED_PUNCTUATION,
    &TRAILING_BLANKS,
    &DOUBLE_SPACES,
    &UNBALANCED,
    &UNRENDERED_BRACES,
    &MOJIBAKE,
    &CONTROL_CHARACTERS,
    &FOREIGN_LANGUAGE,
    &UNUSED_FIELD,
    &DEAD_BRANCH,
    &SAME_TEXT,
    &NEAR_DUPLICATE,
    &LOW_DIVERSITY,
    &FEW_ORIGINALS,
    &MANY_TURNED_AROUND,
    &KIND_MISLABELLED,
    &EMPTY_PROMPTS,
    &ROWS_DROPPED,
    &DUPLICATE_PROMPTS,
    &INPUTS_CUT,
    &TARGETS_CUT,
    &CONTAMINATED,
    &UNUSED_ALLOWANCE,
];
