//! Prompts that somebody wants to come back to, for as long as the server runs.

use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::diag::{Diagnostic, Result};

#[derive(Clone, Debug, Serialize)]
pub struct Flag {
    pub id: u64,
    pub task: String,
    pub template: String,
    pub split: String,
    pub row: u64,
    pub inputs: String,
    pub targets: String,
    pub note: String,
}

#[derive(Default)]
pub struct Flags(Mutex<Vec<Flag>>);

/// Bytes of texts that are kept.
const MOST_BYTES: usize = 64 << 20;
const LONGEST_NOTE: usize = 4 << 10;

impl Flags {
    fn list(&self) -> MutexGuard<'_, Vec<Flag>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn all(&self) -> Vec<Flag> {
        self.list().clone()
    }

    /// Adds a flag, whose number is given here.
    pub fn add(&self, flag: Flag) -> Result<Flag> {
        let size = |flag: &Flag| flag.inputs.len() + flag.targets.len() + flag.note.len();
        if flag.note.len() > LONGEST_NOTE {
            return Err(Diagnostic::error("note", format!("a note has at most {LONGEST_NOTE} bytes")).into());
        }
        let mut flags = self.list();
        if flags.iter().map(size).sum::<usize>() + size(&flag) > MOST_BYTES {
            let full = Diagnostic::error("flags", "no more prompts can be flagged");
            return Err(full.help("export the flags, and remove some").into());
        }
        let flag = Flag { id: flags.last().map_or(0, |last| last.id + 1), ..flag };
        flags.push(flag.clone());
        Ok(flag)
    }

    pub fn remove(&self, id: u64) {
        self.list().retain(|flag| flag.id != id);
    }
}
