//! What a plan comes to, counted without reading: examples, prompts, and the rates that a mixture asks for.

use crate::mixture::{Size, quotas, quotas_without_repeats};
use crate::plan::{Role, Sources, SplitName};

/// What is expected of a plan. Filters are not run, so tasks that have one may give less.
pub struct Expected {
    pub trained: Vec<Trained>,
    pub held_out: Vec<HeldOut>,
    /// Whether the mixture's size is known before tokens are counted.
    pub counted: bool,
}

pub struct Trained {
    /// Index into the plan's tasks.
    pub task: usize,
    /// Rows under the cap.
    pub examples: u64,
    pub prompts: u64,
    /// Share of the mixture's prompts that is asked for.
    pub rate: f64,
    /// Prompts in the mixture.
    pub drawn: u64,
}

pub struct HeldOut {
    pub task: usize,
    /// Rows that are evaluated.
    pub rows: u64,
    pub prompts: u64,
}

impl Expected {
    pub fn of(sources: &Sources<'_>) -> Expected {
        let recipe = &sources.recipe;
        let rows = |task: usize, name: SplitName| {
            sources.tasks[task].splits.iter().find(|s| s.name == name).map_or(0, |s| s.rows)
        };
        let of_role = |role| (0..sources.tasks.len()).filter(move |&t| sources.tasks[t].role == role);
        let examples: Vec<(usize, u64)> = of_role(Role::Trained)
            .map(|t| (t, rows(t, SplitName::Train).min(recipe.cap.unwrap_or(u64::MAX))))
            .filter(|(_, n)| *n > 0)
            .collect();
        let prompts: Vec<u64> = examples
            .iter()
            .map(|&(t, n)| n * sources.tasks[t].templates_per_example(recipe.templates) as u64)
            .collect();
        let rates = sources.rates(&examples);
        let drawn = match recipe.size {
            Size::All | Size::Tokens(_) => prompts.clone(),
            Size::Prompts(total) => quotas(total, &rates),
            Size::WithoutRepeats => quotas_without_repeats(&prompts, &rates),
        };
        let all: u64 = drawn.iter().sum();
        let trained = examples.iter().zip(&prompts).zip(&rates).zip(&drawn);
        let trained = trained.map(|(((&(task, examples), &prompts), &rate), &drawn)| {
            // With every prompt in it, a mixture's rates are what the sizes make them.
            let rate = if recipe.size == Size::All { drawn as f64 / all.max(1) as f64 } else { rate };
            Trained { task, examples, prompts, rate, drawn }
        });
        let held_out = of_role(Role::HeldOut).map(|task| {
            let rows = rows(task, SplitName::Test);
            HeldOut { task, rows, prompts: rows * sources.tasks[task].templates.len() as u64 }
        });
        Expected {
            trained: trained.collect(),
            held_out: held_out.collect(),
            counted: !matches!(recipe.size, Size::Tokens(_)),
        }
    }
}
