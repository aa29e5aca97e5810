//! flanc compiles instruction-tuning mixtures: corpora that TensorFlow Datasets exported and Jinja templates in,
//! tokenized Parquet shards out.
//!
//! The modules stand in the order of their dependencies, which is the order to read them in. [`compile::compile`] is
//! the table of contents: it calls the phases one by one, with a named value between each.
//!
//! | phase | from → to | what a compiler calls it |
//! | --- | --- | --- |
//! | [`plan`] | recipe, task definitions, corpus headers, tokenizer → [`plan::Plan`], hashed | parse, resolve, type-check |
//! | [`select`] | row counts → the rows under the cap | – |
//! | [`ingest`] | bytes of a TFDS split → decoded rows | reading |
//! | [`expand`] | rows × templates → prompts → ids, in task shards | lowering, code generation |
//! | [`link`] | task shards → global order by rates → packed rows | linking |
//! | [`shard::manifest`] | names, counts and hashes everything, last | the executable's table of contents |
//!
//! [`verify`] is the second path to the same numbers. `docs/ARCHITECTURE.md` says what holds everywhere, and why.

#![deny(unsafe_code)]

// What can be wrong, and how files are reached.
pub mod diag;
pub mod storage;

// What a record is.
pub mod example;
pub mod schema;
pub mod seed;

// Reading corpora.
pub mod ingest;

// What is written by hand: templates, definitions, recipes. (A document's strings are snippets of `template`.)
pub mod document;
pub mod template;

pub mod task;

pub mod mixture;

// Other people's templates.
pub mod import;

// Text to rows of ids.
pub mod pack;
pub mod tokenize;

// Files that a compile leaves.
pub mod shard;

// The phases, and the table of contents.
pub mod plan;
pub mod select;

pub mod read;

pub mod contamination;

pub mod exemplars;

pub mod audit;

pub mod preview;

pub mod serve;

pub mod expand;
pub mod link;

pub mod compile;
pub mod verify;

// The trainer.
pub mod model;

pub mod eval;
pub mod train;

pub mod cli;
