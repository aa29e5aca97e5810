#![deny(unsafe_code)]
pub mod diag;
pub mod document;
pub mod storage;
pub mod seed;
pub mod example;
pub mod schema;
pub mod ingest;
pub mod template;
pub mod task;
pub mod tokenize;
pub mod cli;
