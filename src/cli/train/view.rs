//! A run as it goes on: JSON on stdout, a bar on a terminal, else a line now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::signals;
use crate::cli::{grouped, print};
use crate::model::arena::megabytes;
use crate::train::Event;

pub struct View {
    bar: Option<ProgressBar>,
    json: bool,
    /// When a step was last shown without a terminal.
    shown: Option<Instant>,
}

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

impl View {
    pub fn new(json: bool) -> View {
        View { bar: None, json, shown: None }
    }

    pub fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub fn show(&mut self, event: &Event) {
        if self.json {
            // A closed stdout is no reason to stop training.
            let _ = print(&format!("{}\n", serde_json::json!(event)));
        }
        match event {
            Event::Started { step, steps, parameters, bytes, ranks, ceiling, .. } => {
                let mut said = format!(
                    "{} parameters, {} of tensors, products at {:.1} GFLOP/s",
                    grouped(*parameters as u64),
                    megabytes(*bytes),
                    ceiling / 1e9
                );
                if *ranks > 1 {
                    said.push_str(&format!(" on {ranks} ranks"));
                }
                if *step > 0 {
                    said.push_str(&format!("; goes on after step {step}"));
                }
                self.line(said);
                if std::io::stderr().is_terminal() {
                    let bar = ProgressBar::new(*steps).with_position(*step);
                    let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} {msg}");
                    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
                    self.bar = Some(bar);
                }
            }
            Event::Step { step, loss, tokens_per_second, mfu, eta, memory, .. } => {
                let said = format!(
                    "loss {loss:.4}, {} tokens/s, MFU {:.1} %, {}, ETA {}",
                    grouped(*tokens_per_second as u64),
                    100.0 * mfu,
                    megabytes(*memory),
                    clock(*eta)
                );
                match &self.bar {
                    Some(bar) => {
                        bar.set_position(*step);
                        bar.set_message(said);
                    }
                    None if self.shown.is_none_or(|shown| shown.elapsed() > PAUSE) => {
                        self.shown = Some(Instant::now());
                        self.line(format!("step {step}: {said}"));
                    }
                    None => {}
                }
            }
            Event::Warning { text, .. } => self.line(text.clone()),
            Event::Stopped { step, signal, .. } => {
                self.line(format!(
                    "stopped by {} after step {step}, which has a checkpoint; the same command goes on from there",
                    signals::name(*signal)
                ));
            }
            Event::Skipped { step, reason, rows, .. } => {
                self.line(format!("step {step} was skipped: {reason} (rows {}..{})", rows.0, rows.1));
            }
            Event::Validation { step, loss, targets, .. } => {
                self.line(format!("step {step}: validation loss {loss:.4} ({targets} tokens)"));
            }
            Event::Checkpoint { .. } | Event::Finished { .. } => {}
        }
    }

    fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

/// Seconds as `1:02:03` or `2:03`.
fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}
