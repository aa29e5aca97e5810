//! The command line: what was typed becomes calls into the library, and what those return becomes text.
//!
//! stdout carries results only; diagnostics and progress go to stderr. Exit codes: 0 done; 1 something in the data,
//! the templates or the recipe is wrong, and stderr says what; 2 usage; 130 and 143 a training run was stopped by Ctrl-C or
//! SIGTERM, and can go on.

mod audit;
mod check;
mod compare;
mod compile;
mod device;
mod diff;
mod eval;
mod explain;
mod gpu;
mod import;
mod recipe;
mod render;
mod rows;
mod serve;
mod tasks;
mod tokenizer;
mod tokens;
mod train;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::diag::{Diagnostic, Severity};
use crate::task::{self, Catalogue, Folder};
use crate::template::engine::STACK_BYTES;

/// A compiler for instruction-tuning mixtures: TFDS corpora and Jinja templates in, tokenized Parquet shards out.
#[derive(Parser)]
#[command(name = "flanc", version, max_term_width = 100)]
struct Flanc {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compile(compile::Compile),
    Explain(explain::Explain),
    Verify(verify::Verify),
    Check(check::Check),
    Audit(audit::AuditCommand),
    Serve(serve::Serve),
    Diff(diff::Diff),
    Tasks(tasks::Tasks),
    Import(import::Import),
    Recipe(recipe::RecipeCommand),
    Rows(rows::Rows),
    Render(render::Render),
    Tokenizer(tokenizer::Tokenizer),
    Train(train::Train),
    Eval(eval::Eval),
    Gpu(gpu::GpuCommand),
}

/// Where corpora lie.
#[derive(Args)]
struct DataDirs {
    /// Directory that tfds.load would take as data_dir; may be given more than once, and the highest version wins
    #[arg(long = "data-dir", value_name = "DIR", default_value = "data")]
    data_dirs: Vec<PathBuf>,
}

/// Which definitions are read.
#[derive(Args)]
struct Definitions {
    /// Task definitions and recipes to read in place of the bundled ones
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
    /// Schemas to read in place of the bundled ones
    #[arg(long, value_name = "DIR")]
    schemas: Option<PathBuf>,
}

impl Definitions {
    fn load(&self) -> Result<(Catalogue, Vec<Diagnostic>), Failure> {
        Ok(task::load(&self.templates(), &self.schemas())?)
    }

    fn templates(&self) -> Folder {
        self.templates.clone().map_or(Folder::BundledDefinitions, Folder::Directory)
    }

    fn schemas(&self) -> Folder {
        self.schemas.clone().map_or(Folder::BundledSchemas, Folder::Directory)
    }
}

/// Why a command did not do what it was asked for.
enum Failure {
    Diagnostics(Vec<Diagnostic>),
    /// The reader of stdout went away: `flanc rows … | head`.
    OutputClosed,
    /// Stopped, in good order, by a signal of this number.
    Stopped(i32),
}

type Outcome = Result<(), Failure>;

impl From<Box<Diagnostic>> for Failure {
    fn from(diagnostic: Box<Diagnostic>) -> Self {
        Failure::Diagnostics(vec![*diagnostic])
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Failure::Diagnostics(diagnostics)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Diagnostics(vec![Diagnostic::error("stdout", format!("cannot write to stdout: {error}"))]),
        }
    }
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let flanc = Flanc::parse();
    let outcome = match flanc.command {
        Command::Compile(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Tasks(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Recipe(command) => command.run(),
        Command::Rows(command) => command.run(),
        Command::Render(command) => command.run(),
        Command::Tokenizer(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Gpu(command) => command.run(),
    };
    match outcome {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Diagnostics(list)) => {
            report(&list);
            ExitCode::from(1)
        }
        // As shells say it of a process that a signal ended.
        Err(Failure::Stopped(signal)) => ExitCode::from(128u8.saturating_add(signal as u8)),
    }
}

/// Prints a result to stdout.
fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A diagnostic as a line of JSON: `event` says whether it is a warning or what made a command fail.
fn as_event(event: &str, diagnostic: &Diagnostic) -> String {
    let (code, message, text) = (diagnostic.code, &diagnostic.message, diagnostic.to_string());
    serde_json::json!({ "event": event, "code": code, "message": message, "text": text }).to_string() + "\n"
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// Diagnostics shown in full before the rest is only counted.
const SHOWN: usize = 50;

/// Prints diagnostics to stderr, with a closing count when there are several.
fn report(list: &[Diagnostic]) {
    let mut text = String::new();
    for diagnostic in list.iter().take(SHOWN) {
        text.push_str(&diagnostic.to_string());
        text.push('\n');
    }
    if list.len() > SHOWN {
        text.push_str(&format!("… and {} more\n", list.len() - SHOWN));
    }
    let errors = list.iter().filter(|d| d.severity == Severity::Error).count();
    if list.len() > 1 {
        text.push_str(&format!("{errors} errors, {} warnings\n", list.len() - errors));
    }
    let _ = io::stderr().write_all(text.as_bytes()); // nowhere left to say that stderr is closed
}

/// A pool of so many threads, or of as many as there are.
fn threads(threads: Option<usize>) -> crate::diag::Result<rayon::ThreadPool> {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).stack_size(STACK_BYTES).build();
    pool.map_err(|e| Diagnostic::error("threads", format!("cannot start {threads} threads: {e}")).into())
}

/// Parses `a..b`, `a..`, `..b` or a single row.
fn parse_range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |part: &str, default: u64| match part.trim() {
        "" => Ok(default),
        digits => digits.replace('_', "").parse().map_err(|_| format!("`{digits}` is no row number")),
    };
    match text.split_once("..") {
        Some((from, to)) => Ok(number(from, 0)?..number(to, u64::MAX)?),
        None => number(text, 0).map(|row| row..row.saturating_add(1)),
    }
}
