//! A model that answers: options by likelihood, and tokens one after the other.
//!
//! The inputs of a question go through the model once. Their keys and values are kept, but for the last token's; each
//! option is then a segment that goes on from there with that token and its own, and an answer grows by one token a
//! pass.

use std::ops::Range;
use std::path::Path;

use super::questions::Question;
use crate::diag::Result;
use crate::model::config::Config;
use crate::model::decoder::{Decoder, Layout, Purpose};
use crate::model::ops::{Batch, Likelihood, Ops, Past};
use crate::model::weights;

pub struct Model<O> {
    pub decoder: Decoder,
    ops: O,
    /// Tokens of the longest text.
    pub longest: usize,
}

/// Longest prompt with answer that memory is taken for, where the model would take longer ones.
const LONGEST: usize = 8_192;
/// Tokens that are kept, for each that goes through the model at a time: answers grow together, by a token a pass.
const KEPT: usize = 4;

/// A text, of which the rest behind what is kept goes through the model; its last tokens predict `targets`.
struct Text {
    past: Past,
    ids: Vec<u32>,
    targets: Vec<u32>,
}

impl Text {
    /// Tokens that have to go through the model.
    fn rest(&self) -> usize {
        self.ids.len() - self.past.length as usize
    }
}

impl<O: Ops> Model<O> {
    /// Loads a model to answer questions, of which the longest asks for `longest` tokens, by `micro_batch` tokens at a time,
    /// or as many as that one has.
    pub fn open(directory: &Path, config: Config, micro_batch: usize, longest: usize) -> Result<Model<O>> {
        let positions = config.max_positions;
        let tokens = micro_batch.max(longest.min(positions).min(LONGEST)).max(1);
        let purpose = Purpose::Score { places: KEPT * tokens };
        let (decoder, table) = Decoder::lay_out(config, Layout { tokens, logit_rows: 512.min(tokens), purpose });
        let mut ops = O::allocate(table)?;
        let longest = positions.min(tokens);
        ops.set_rotations(&decoder.config.rope(), longest);
        weights::load(directory, &decoder, &mut ops)?;
        Ok(Model { decoder, ops, longest })
    }

    /// The option of each question that the model finds most likely after the inputs, the first of several: in all, and
    /// a token.
    pub fn rank(&mut self, questions: &[Question]) -> Result<Vec<(usize, usize)>> {
        let first_best = |options: &[Likelihood], score: fn(&Likelihood) -> f32| {
            let mut best = (0, f32::NEG_INFINITY);
            for (option, score) in options.iter().map(score).enumerate() {
                if score > best.1 {
                    best = (option, score);
                }
            }
            best.0
        };
        let choose =
            |options: &Vec<Likelihood>| (first_best(options, |o| o.in_all), first_best(options, |o| o.per_token));
        Ok(self.likelihoods(questions)?.iter().map(choose).collect())
    }

    /// How likely each question's options are.
    pub fn likelihoods(&mut self, questions: &[Question]) -> Result<Vec<Vec<Likelihood>>> {
        let mut by_question = Vec::new();
        for group in self.groups(questions, 0) {
            let questions = &questions[group];
            let past = self.read(questions, 0);
            let of_question = |(question, past): (&Question, &Past)| {
                let past = *past;
                let inputs = question.inputs.clone();
                question.options.clone().into_iter().map(move |targets| {
                    let ids = [&inputs[..], &targets[..targets.len() - 1]].concat();
                    Text { past, ids, targets }
                })
            };
            let texts: Vec<Text> = questions.iter().zip(&past).flat_map(of_question).collect();
            let mut likelihoods = Vec::with_capacity(texts.len());
            for part in cut(&texts, self.decoder.layout.tokens, Text::rest) {
                likelihoods.extend(self.decoder.likelihoods(&mut self.ops, &batch(texts[part].iter())));
            }
            self.ops.healthy()?;
            let mut likelihoods = likelihoods.into_iter();
            by_question.extend(questions.iter().map(|q| likelihoods.by_ref().take(q.options.len()).collect()));
        }
        Ok(by_question)
    }

    /// The most likely token after the inputs, and after that, of each question; until an answer `ends`, or has
    /// `longest` tokens.
    pub fn generate(
        &mut self,
        questions: &[Question],
        longest: usize,
        ends: impl Fn(&[u32]) -> bool,
    ) -> Result<Vec<Vec<u32>>> {
        let mut answers = vec![Vec::new(); questions.len()];
        for group in self.groups(questions, longest) {
            let past = self.read(&questions[group.clone()], longest);
            // Targets are not looked at: every text asks for one token.
            let begin =
                |(question, past): (&Question, Past)| Text { past, ids: question.inputs.clone(), targets: vec![0] };
            let mut growing: Vec<(usize, Text)> =
                group.clone().zip(questions[group].iter().zip(past).map(begin)).collect();
            for _ in 0..longest {
                let mut next = Vec::with_capacity(growing.len());
                for part in cut(&growing, self.decoder.layout.tokens, |(_, text)| text.rest()) {
                    let texts = growing[part].iter().map(|(_, text)| text);
                    let batch = Batch { keep: true, ..batch(texts) };
                    next.extend(self.decoder.most_likely(&mut self.ops, &batch));
                }
                self.ops.healthy()?;
                for ((question, text), token) in growing.iter_mut().zip(next) {
                    text.past.length = text.ids.len() as u32;
                    text.ids.push(token);
                    answers[*question].push(token);
                }
                growing.retain(|(question, _)| !ends(&answers[*question]));
            }
        }
        Ok(answers)
    }

    /// Questions that are worked on together: their inputs, and `more` tokens of each, have places.
    fn groups(&self, questions: &[Question], more: usize) -> Vec<Range<usize>> {
        cut(questions, KEPT * self.decoder.layout.tokens, |question| question.inputs.len() + more)
    }

    /// Keeps the inputs of each question but their last token, with places for so many `more`.
    fn read(&mut self, questions: &[Question], more: usize) -> Vec<Past> {
        let mut place = 0;
        let place_of = |question: &Question| {
            let past = Past { place, length: 0 };
            place += (question.inputs.len() + more) as u32;
            let ids = question.inputs[..question.inputs.len() - 1].to_vec();
            Text { past, ids, targets: Vec::new() }
        };
        let texts: Vec<Text> = questions.iter().map(place_of).collect();
        // An input of one token leaves nothing to keep.
        let unread: Vec<&Text> = texts.iter().filter(|text| text.rest() > 0).collect();
        for part in cut(&unread, self.decoder.layout.tokens, |text| text.rest()) {
            self.decoder.read(&mut self.ops, &Batch { keep: true, ..batch(unread[part].iter().copied()) });
        }
        texts.into_iter().map(|text| Past { length: text.ids.len() as u32, ..text.past }).collect()
    }
}

fn batch<'t>(texts: impl Iterator<Item = &'t Text>) -> Batch {
    let mut batch = Batch::default();
    for text in texts {
        batch.go_on(text.past, &text.ids, &text.targets);
    }
    batch
}

/// Cuts a list into stretches whose members have up to `most` tokens together, or one member.
fn cut<T>(members: &[T], most: usize, tokens: impl Fn(&T) -> usize) -> Vec<Range<usize>> {
    let (mut stretches, mut first, mut sum) = (Vec::new(), 0, 0);
    for (number, member) in members.iter().enumerate() {
        let tokens = tokens(member);
        if sum + tokens > most && number > first {
            stretches.push(first..number);
            (first, sum) = (number, 0);
        }
        sum += tokens;
    }
    if first < members.len() {
        stretches.push(first..members.len());
    }
    stretches
}
