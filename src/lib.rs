#![deny(unsafe_code)]
pub mod diag;
pub mod storage;
pub mod seed;
pub mod example;
pub mod template;
pub mod schema;
pub mod ingest;
pub mod cli;
