//! `flanc tokenizer train`: a vocabulary from the prompts of a recipe.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

use clap::{Args, Subcommand};

use super::{DataDirs, Definitions, Outcome, print, report};
use crate::diag::Result;
use crate::expand::TemplateDraw;
use crate::mixture;
use crate::plan::{Data, Role, Sources, SplitName, sources};
use crate::read::{Event, rows};
use crate::select::select;
use crate::storage;
use crate::tokenize::{Tokenizer as Loaded, train};

/// Make a tokenizer
#[derive(Args)]
pub struct Tokenizer {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Subcommand)]
enum TokenizerCommand {
    Train(Train),
}

/// Train a byte-level BPE tokenizer on the training prompts of a recipe
///
/// The same recipe and data give the same file. The recipe's own tokenizer is not looked at.
#[derive(Args)]
#[command(after_help = "Example:\n  flanc tokenizer train recipe.toml --vocabulary 32000 --out tokenizer.json")]
struct Train {
    /// Recipe: a file, or the name of a bundled one
    recipe: String,
    /// Tokens, the 256 bytes and the control tokens among them; the paper's models have 32,000
    #[arg(long, value_name = "N", default_value_t = 32_000)]
    vocabulary: usize,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    data: DataDirs,
    #[command(flatten)]
    definitions: Definitions,
}

/// Control tokens of a new vocabulary, by id.
const CONTROL: [&str; 2] = ["<pad>", "<eos>"];

impl Tokenizer {
    pub fn run(self) -> Outcome {
        match self.command {
            TokenizerCommand::Train(train) => train.run(),
        }
    }
}

impl Train {
    fn run(self) -> Outcome {
        let (catalogue, warnings) = self.definitions.load()?;
        report(&warnings);
        let (recipe, warnings) = mixture::find(&self.recipe, &catalogue)?;
        report(&warnings);
        let sources = sources(recipe, &catalogue, Data::OnDisk(&self.data.data_dirs))?;
        // The trainer pulls texts one at a time; a small buffer keeps both sides busy.
        let (sender, receiver) = sync_channel(4096);
        let (rendered, json) = std::thread::scope(|scope| {
            let producer = std::thread::Builder::new()
                .stack_size(crate::template::engine::STACK_BYTES)
                // The sender goes with it: the trainer stops when it is gone.
                .spawn_scoped(scope, {
                    let sources = &sources;
                    move || texts(sources, |text| sender.send(text).is_ok())
                })
                .map_err(|e| storage::failure("start a thread for", &self.out, &e))?;
            let json = train(receiver.into_iter(), self.vocabulary, &CONTROL);
            match producer.join() {
                Ok(rendered) => Ok((rendered?, json?)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
        .map_err(|e: Box<crate::diag::Diagnostic>| e)?;
        storage::write(&self.out, json.as_bytes())?;
        let tokenizer = Loaded::open(&self.out)?;
        tokenizer.verify()?;
        print(&format!("{}: {} tokens, trained on {rendered} texts\n", self.out.display(), tokenizer.vocabulary_size()))
    }
}

/// Hands the inputs and targets of all training prompts to `take`, until it wants no more; gives their number. Rows
/// that give no prompt are passed over: a compile of the same recipe reports them.
fn texts(sources: &Sources<'_>, mut take: impl FnMut(String) -> bool) -> Result<u64> {
    let mut count = 0;
    for task in sources.tasks.iter().filter(|t| t.role == Role::Trained) {
        let draw = TemplateDraw::new(sources, task);
        for split in task.splits.iter().filter(|s| s.name == SplitName::Train) {
            let (selection, _) = select(sources, task, split)?;
            let mut wanted = true;
            rows(sources, task, split, &selection, (0, selection.len()), |event| {
                let Event::Row { id, place, bound } = event else { return Ok(()) };
                for template in draw.draw(id, place) {
                    if wanted && let Ok(prompt) = task.task.program.render(&bound, template) {
                        wanted = take(prompt.inputs) && take(prompt.targets);
                        count += 2;
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(count)
}
