//! Templates: how a task is written down, checked and rendered.

pub mod check;
pub mod definition;
pub mod engine;
pub mod exemplar;
pub mod options;
pub mod pieces;
pub mod python;
pub mod snippet;
pub mod types;
