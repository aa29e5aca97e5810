//! Decoder-only language models: configuration, weights, and the operations that they consist of.
//!
//! Knows nothing of templates, corpora or shards.

pub mod arena;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod decoder;
pub mod ops;
pub mod ranks;
pub mod rope;
pub mod rounding;
pub mod speed;
pub mod vocabulary;
pub mod weights;
