//! Shards: the Parquet files a compile leaves behind, and the manifest that names them.

pub mod columns;
pub mod inspect;
pub mod manifest;
pub mod pages;
pub mod provenance;
pub mod reader;
pub mod receipts;
pub mod rows;
pub mod writer;
