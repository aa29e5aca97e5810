//! Drawing exemplars: answered examples from the training rows of a prompt's own task.
//!
//! A task's exemplars come from a pool of its training rows, those with the smallest keyed hashes (or the first ones,
//! where the recipe takes the first). Each prompt draws from the pool by its own identity; an example is never its own
//! exemplar, and no row but a training row is anyone's.

use std::sync::OnceLock;

use crate::diag::Result;
use crate::example::ExampleId;
use crate::mixture::{ExemplarTemplates, Recipe};
use crate::plan::{Plan, PlannedTask};
use crate::read::{Event, rows};
use crate::seed::{Seed, Stream};
use crate::select::first_keys;
use crate::template::engine::{Bound, Program};
use crate::template::exemplar::{Exemplar, Wrapper, block};
use crate::tokenize::Encoder;

/// Rows of a pool: as many as FLAN v1 shuffles among (`flan/few_shot.py`), and few enough to be kept in memory.
const POOL: u64 = 1000;

/// The pools of tasks, each read when its first prompt asks for it.
pub struct Pools<'p> {
    plan: &'p Plan<'p>,
    by_task: Vec<(&'p PlannedTask<'p>, OnceLock<Result<Exemplars<'p>>>)>,
}

impl<'p> Pools<'p> {
    /// Those of the plan's tasks.
    pub fn new(plan: &'p Plan<'p>) -> Pools<'p> {
        Pools::of(plan, &plan.tasks)
    }

    /// Those of other tasks, which may be drafts of the plan's.
    pub fn of(plan: &'p Plan<'p>, tasks: impl IntoIterator<Item = &'p PlannedTask<'p>>) -> Pools<'p> {
        Pools { plan, by_task: tasks.into_iter().map(|task| (task, OnceLock::new())).collect() }
    }

    /// The exemplars of a task, if the recipe wants any.
    pub fn exemplars(&self, task: usize) -> Result<Option<&Exemplars<'p>>> {
        let (task, pool) = &self.by_task[task];
        if task.exemplars.is_none() {
            return Ok(None);
        }
        let pool = pool.get_or_init(|| Exemplars::read(self.plan, task));
        pool.as_ref().map(Some).map_err(Box::clone)
    }
}

/// The pool of one task.
pub struct Exemplars<'p> {
    recipe: &'p Recipe,
    task: &'p PlannedTask<'p>,
    stream: Stream,
    rows: Vec<(ExampleId, Bound)>,
    /// By row and template: the exemplar, once it has been asked for; `None` if the row gives no such prompt.
    shots: Vec<OnceLock<Option<Shot>>>,
    /// Most tokens of exemplars and inputs together.
    budget: usize,
}

/// An exemplar and where it comes from.
pub struct Shot {
    pub id: ExampleId,
    pub template: usize,
    pub text: Exemplar,
    tokens: usize,
}

impl<'p> Exemplars<'p> {
    fn read(plan: &'p Plan<'p>, task: &'p PlannedTask<'p>) -> Result<Exemplars<'p>> {
        let recipe = &plan.recipe;
        let corpus = &plan.corpora[task.corpus].info.name.to_string();
        let mut pool = Vec::new();
        if let Some(split) = &task.exemplars {
            let selection = first_keys(plan, task, split, POOL);
            rows(plan, task, split, &selection, (0, selection.len()), |event| {
                // A row that is bad or does not fit is no exemplar; where it is a prompt, it is reported.
                if let Event::Row { id, bound, .. } = event {
                    pool.push((id, bound));
                }
                Ok(())
            })?;
        }
        let templates = task.task.definition.templates.len();
        let longest = plan.longest_inputs();
        Ok(Exemplars {
            recipe,
            task,
            stream: Seed(recipe.seed).stream(&["exemplars", task.task.name(), corpus]),
            shots: (0..pool.len() * templates).map(|_| OnceLock::new()).collect(),
            rows: pool,
            budget: recipe.exemplar_tokens.unwrap_or(longest).min(longest),
        })
    }

    /// The exemplars of a prompt whose inputs have `query` tokens: of those that are drawn for it, as many of the first
    /// ones as fit.
    pub fn draw(&self, id: ExampleId, template: usize, query: usize, encoder: &mut Encoder<'_>) -> Result<Vec<&Shot>> {
        /// Draws that may hit a row twice, or one that gives no exemplar.
        const TRIES: u64 = 8;
        let stream = self.stream.at(u64::from(id.split)).at(id.index).at(template as u64);
        let (rows, templates) = (self.rows.len() as u64, &self.task.templates);
        let (mut drawn, mut shots) = (Vec::new(), Vec::new());
        let mut tokens = query;
        for i in 0..self.recipe.shots as u64 * TRIES {
            if shots.len() == self.recipe.shots || drawn.len() as u64 == rows {
                break;
            }
            let row = (stream.draw(2 * i) % rows) as usize;
            if drawn.contains(&row) {
                continue;
            }
            drawn.push(row);
            let template = match self.recipe.exemplar_templates {
                ExemplarTemplates::Same => template,
                ExemplarTemplates::Mixed => templates[(stream.draw(2 * i + 1) % templates.len() as u64) as usize],
            };
            if self.rows[row].0 == id {
                continue;
            }
            let Some(shot) = self.shot(row, template, encoder)? else { continue };
            tokens += shot.tokens;
            if tokens > self.budget {
                break;
            }
            shots.push(shot);
        }
        Ok(shots)
    }

    fn shot(&self, row: usize, template: usize, encoder: &mut Encoder<'_>) -> Result<Option<&Shot>> {
        let program: &Program = &self.task.task.program;
        let cell = &self.shots[row * self.task.task.definition.templates.len() + template];
        if let Some(made) = cell.get() {
            return Ok(made.as_ref());
        }
        let (id, bound) = &self.rows[row];
        let shot = match program.render(bound, template) {
            Err(_) => None,
            Ok(prompt) => {
                let text = Exemplar { inputs: prompt.inputs, targets: prompt.targets };
                let mut ids = Vec::new();
                match self.recipe.wrapper {
                    Wrapper::None | Wrapper::Continuation => encoder.encode_into(&block(&text), &mut ids)?,
                    // FLAN v1 counts inputs and targets, and no marks.
                    Wrapper::FlanV1 => {
                        encoder.encode_into(&text.inputs, &mut ids)?;
                        encoder.encode_into(&text.targets, &mut ids)?;
                    }
                }
                Some(Shot { id: *id, template, text, tokens: ids.len() })
            }
        };
        Ok(cell.get_or_init(|| shot).as_ref())
    }
}
