//! The audit's checks over many rows of an edited task: one run at a time, on threads of its own.
//!
//! The page starts a run, asks how far it is, and may give it up; a new run gives up the one before.

use std::sync::{Condvar, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::bench::{Bench, Edited};
use super::messages::message;
use crate::diag::{Diagnostic, Result};

#[derive(Default)]
pub struct Checks {
    state: Mutex<State>,
    /// Told when there is something to run, or nothing more to come.
    news: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of the run that counts; results of others are dropped.
    current: u64,
    waiting: Option<(Edited, u64)>,
    done: u64,
    of: u64,
    /// What came of the current run.
    result: Option<Value>,
    closed: bool,
}

impl State {
    /// What was under way does not count any more.
    fn next(&mut self) {
        *self = State { current: self.current + 1, closed: self.closed, ..State::default() };
    }
}

impl Checks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts a run, and returns its number.
    pub fn start(&self, edited: Edited, rows: u64) -> u64 {
        let mut state = self.state();
        state.next();
        state.waiting = Some((edited, rows));
        self.news.notify_all();
        state.current
    }

    /// Gives up what is running.
    pub fn cancel(&self) {
        self.state().next();
    }

    /// How far a run is, and what came of it.
    pub fn progress(&self) -> Value {
        let state = self.state();
        json!({ "run": state.current, "done": state.done, "of": state.of, "result": state.result })
    }

    /// No run comes any more, and the one that is under way is given up.
    pub fn close(&self) {
        let mut state = self.state();
        state.next();
        state.closed = true;
        self.news.notify_all();
    }

    /// Runs what is started, until [`Checks::close`].
    pub fn work(&self, bench: &Bench<'_>, pool: &rayon::ThreadPool) {
        loop {
            let mut state = self.state();
            let (run, (edited, rows)) = loop {
                if state.closed {
                    return;
                }
                match state.waiting.take() {
                    Some(waiting) => break (state.current, waiting),
                    None => state = self.news.wait(state).unwrap_or_else(|e| e.into_inner()),
                }
            };
            drop(state);
            let progress = |done: u64, of: u64| -> Result<()> {
                let mut state = self.state();
                if state.current != run {
                    return Err(Diagnostic::error("cancelled", "the run was given up").into());
                }
                (state.done, state.of) = (state.done.max(done), of);
                Ok(())
            };
            let result = pool.install(|| bench.checks(&edited, rows, &progress)).unwrap_or_else(|diagnostics| {
                json!({ "diagnostics": diagnostics.iter().map(|d| message(d, None)).collect::<Vec<_>>() })
            });
            let mut state = self.state();
            if state.current == run {
                state.result = Some(result);
            }
        }
    }
}
