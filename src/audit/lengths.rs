//! Lengths: tokens of inputs and targets, what a recipe's lengths cut, and how many of the tokens carry loss.

use std::collections::BTreeMap;

use super::code::{INPUTS_CUT, TARGETS_CUT};
use super::finding::{Side, Spot, Tallies};
use super::observe::Prompt;
use crate::diag::Result;
use crate::exemplars::Exemplars;
use crate::mixture::Overflow;
use crate::plan::Plan;
use crate::template::engine::Bound;
use crate::template::exemplar::{self, Exemplar};
use crate::tokenize::Encoder;

/// What has been measured of a task's prompts, before any cut.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    /// Tokens of each prompt; the control tokens around its sides counted.
    tokens: [Vec<u32>; 2],
    /// Prompts whose inputs, or targets, are longer than the recipe allows.
    pub cut: [u64; 2],
    /// Prompts that lose a part of a field, by the field.
    pub pays: BTreeMap<String, u64>,
    /// Tokens after the cut.
    kept: [u64; 2],
}

impl Lengths {
    pub fn prompts(&self) -> u64 {
        self.tokens[0].len() as u64
    }

    pub fn absorb(&mut self, later: Lengths) {
        for side in 0..2 {
            self.tokens[side].extend(&later.tokens[side]);
            self.cut[side] += later.cut[side];
            self.kept[side] += later.kept[side];
        }
        for (field, count) in later.pays {
            *self.pays.entry(field).or_default() += count;
        }
    }

    /// Tokens that the given share of prompts does not exceed.
    pub fn quantile(&self, side: Side, share: f64) -> u32 {
        let mut tokens = self.tokens[side as usize].clone();
        if tokens.is_empty() {
            return 0;
        }
        let at = ((tokens.len() - 1) as f64 * share).round() as usize;
        *tokens.select_nth_unstable(at).1
    }

    /// Prompts by the binary logarithm of their tokens: 1, 2 and 3, 4 to 7, ….
    pub fn histogram(&self, side: Side) -> Vec<u64> {
        let mut counts = Vec::new();
        for tokens in &self.tokens[side as usize] {
            let bin = tokens.max(&1).ilog2() as usize;
            if counts.len() <= bin {
                counts.resize(bin + 1, 0);
            }
            counts[bin] += 1;
        }
        counts
    }

    /// Prompts by their tokens in steps of an even width, a round number: the width, and the counts from 0 on. What lies
    /// beyond the last step is counted in it.
    pub fn steps(&self, side: Side) -> (u32, Vec<u64>) {
        const STEPS: u32 = 40;
        // A few very long prompts would push all others into one step.
        let wide = self.quantile(side, 0.99).max(1);
        let rounds = (0..10).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u32.pow(power)));
        let width = rounds.into_iter().find(|width| wide.div_ceil(*width) < STEPS).unwrap_or(u32::MAX);
        let mut counts = Vec::new();
        for tokens in &self.tokens[side as usize] {
            let step = (tokens / width).min(STEPS - 1) as usize;
            if counts.len() <= step {
                counts.resize(step + 1, 0);
            }
            counts[step] += 1;
        }
        (width, counts)
    }

    /// Share of tokens that carry loss: those of targets.
    pub fn loss_share(&self) -> f64 {
        self.kept[1] as f64 / (self.kept[0] + self.kept[1]).max(1) as f64
    }
}

/// Measures prompts by the tokenizer and the lengths of a recipe, with the exemplars that the recipe puts before them.
pub struct Measure<'p> {
    plan: &'p Plan<'p>,
    exemplars: Option<&'p Exemplars<'p>>,
    encoder: Encoder<'p>,
    ids: Vec<u32>,
}

impl<'p> Measure<'p> {
    pub fn new(plan: &'p Plan<'p>, exemplars: Option<&'p Exemplars<'p>>) -> Measure<'p> {
        Measure { plan, exemplars, encoder: plan.tokenizer.encoder(), ids: Vec::new() }
    }

    pub fn prompt(
        &mut self,
        prompt: &Prompt<'_>,
        bound: &Bound,
        lengths: &mut Lengths,
        tallies: &mut Tallies,
    ) -> Result<()> {
        let recipe = &self.plan.recipe;
        let counted = [
            (self.inputs(prompt)? + self.plan.around_inputs(), recipe.lengths.inputs),
            (self.tokens(&prompt.targets.text)? + 1, recipe.lengths.targets),
        ];
        for (side, (tokens, most)) in Side::BOTH.into_iter().zip(counted) {
            lengths.tokens[side as usize].push(tokens as u32);
            lengths.kept[side as usize] += tokens.min(most) as u64;
            if tokens <= most {
                continue;
            }
            lengths.cut[side as usize] += 1;
            let (code, message) = match side {
                Side::Targets => (&TARGETS_CUT, format!("targets have more than {most} tokens")),
                Side::Inputs => {
                    let task = prompt.facts.planned.task;
                    let longest = task.program.longest_field(bound, prompt.template);
                    let pays = longest.map_or("the end", |(field, _)| task.program.field_name(field));
                    *lengths.pays.entry(pays.to_owned()).or_default() += 1;
                    (&INPUTS_CUT, format!("inputs have more than {most} tokens, and `{pays}` is cut"))
                }
            };
            tallies.of(code, Spot::Task, message).add(|| prompt.row(), || None);
        }
        Ok(())
    }

    fn tokens(&mut self, text: &str) -> Result<usize> {
        self.ids.clear();
        self.encoder.encode_into(text, &mut self.ids)?;
        Ok(self.ids.len())
    }

    /// Tokens of the inputs with what the recipe puts around them. Exemplars are left out, the last one first, where the
    /// inputs would have to be cut for them; FLAN v1 cuts all the same.
    fn inputs(&mut self, prompt: &Prompt<'_>) -> Result<usize> {
        let recipe = &self.plan.recipe;
        let inputs = &prompt.inputs.text;
        let mut shots = Vec::new();
        if let Some(exemplars) = self.exemplars {
            let query = self.tokens(inputs)?;
            shots = exemplars.draw(prompt.id, prompt.template, query, &mut self.encoder)?;
        }
        let most = self.plan.longest_inputs();
        loop {
            let texts: Vec<&Exemplar> = shots.iter().map(|shot| &shot.text).collect();
            let tokens = self.tokens(&exemplar::assemble(&texts, inputs, recipe.wrapper))?;
            if tokens <= most || recipe.lengths.overflow == Overflow::Right || shots.pop().is_none() {
                return Ok(tokens);
            }
        }
    }
}
