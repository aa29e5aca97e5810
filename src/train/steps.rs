//! The loop: rows become steps of the optimizer.
//!
//! A step's rows are cut into passes; pass i of a step is done by rank i mod n. Every rank reads all rows, which costs
//! little beside training on its share, so that all know how many targets a step has, and where its boundaries are,
//! without asking. Losses are told in the order of the passes and added up in it, so that every rank, and any number of
//! them, comes to the same numbers and the same decisions.
//!
//! Nothing here waits for a backend that has a queue, until the step after is in it: what became of a step is asked for a
//! step late. Only where a checkpoint is written, or the model validated, everything before is known first.

use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::checkpoint::{self, State};
use super::data::{Data, Step};
use super::log::{Event, now};
use super::settings::Settings;
use super::{Cut, Run, Stop};
use crate::diag::{Diagnostic, Result};
use crate::model::decoder::Decoder;
use crate::model::ops::{AdafactorStep, Batch, Ops};
use crate::model::ranks::Ranks;
use crate::model::speed;

/// What stays the same from step to step.
pub(super) struct Trainer<'r> {
    pub run: &'r Run,
    pub data: &'r Data,
    pub decoder: &'r Decoder,
    /// FLOP/s of all ranks.
    pub ceiling: f64,
    pub stop: &'r Stop,
}

/// Steps that are read ahead, by a thread, while those before them are done.
const AHEAD: usize = 2;

/// A step that was begun: all that is said of it once the backend has told what became of it.
struct Begun<O: Ops> {
    /// Its number, counted from 1, and its first row and the one after its last.
    number: u64,
    rows: (u64, u64),
    began: Instant,
    targets: usize,
    tokens: usize,
    flops: f64,
    /// None of a step without targets.
    computed: Option<Computed<O>>,
}

/// What is on its way from the backend.
struct Computed<O: Ops> {
    /// Of this rank's passes; none of a pass without targets.
    losses: Vec<Option<O::Losses>>,
    norm: O::Norm,
    asked: AdafactorStep,
}

/// Takes steps from the data until there are enough, or until some rank is asked to stop: by what, then, and a checkpoint is
/// written.
pub(super) fn steps<O: Ops + Send>(
    trainer: &Trainer<'_>,
    ops: &mut O,
    ranks: &mut Ranks,
    state: &mut State,
    say: &mut (dyn FnMut(Event) -> Result<()> + Send),
) -> Result<Option<i32>> {
    let Trainer { run, data, decoder, .. } = *trainer;
    let settings = &run.settings;
    let cut = Cut::of(settings, data.train.sequence);
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        // Ends when the receiver is gone.
        let position = state.position;
        scope.spawn(move || {
            let mut source = data.train.rows_from(position);
            while sender.send(Step::read(&mut source, cut.rows, cut.rows_per_pass)).is_ok() {}
        });
        let receiver = receiver; // dropped on every way out, before the scope waits for the thread
        let began = Instant::now();
        let mut progress = Progress { trainer, first: state.step, began, settled: began, stopped: None };
        let mut before: Option<Begun<O>> = None;
        for number in state.step + 1..=settings.steps {
            let began = Instant::now();
            let step = receiver.recv().expect("the reader lives as long as it is listened to")?;
            let position = before.as_ref().map_or(state.position, |before| before.rows.1);
            let rows = (position, position + cut.rows as u64);
            let begun = Begun {
                number,
                rows,
                began,
                targets: step.targets(),
                tokens: step.tokens(),
                flops: step.passes.iter().map(|p| speed::training_flops(&decoder.config, &p.batch)).sum(),
                computed: begin(settings, decoder, ops, ranks, number, &step)?,
            };
            if let Some(before) = before.replace(begun) {
                progress.settle(before, ops, ranks, state, say)?;
            }
            let validates = number == settings.steps || number.is_multiple_of(settings.validate_every);
            let mut saves = number == settings.steps || number.is_multiple_of(settings.checkpoint_every);
            if (!O::QUEUES || validates || saves || progress.stopped.is_some())
                && let Some(begun) = before.take()
            {
                progress.settle(begun, ops, ranks, state, say)?;
            }
            saves |= progress.stopped.is_some();
            if validates && let Some((loss, targets)) = validate(settings, data, decoder, ops, ranks)? {
                say(Event::Validation { step: number, time: now(), loss, targets })?;
            }
            if saves && ranks.leads() {
                checkpoint::save(&run.out, state.clone(), decoder, ops, settings.keep)?;
                say(Event::Checkpoint { step: number })?;
            }
            if number < settings.steps && progress.stopped.is_some() {
                return Ok(progress.stopped);
            }
        }
        Ok(None)
    })
}

/// Has a step of the optimizer done; none without targets.
fn begin<O: Ops>(
    settings: &Settings,
    decoder: &Decoder,
    ops: &mut O,
    ranks: &mut Ranks,
    number: u64,
    step: &Step,
) -> Result<Option<Computed<O>>> {
    if step.targets() == 0 {
        return Ok(None);
    }
    let losses = gradients(decoder, ops, ranks, step)?;
    let asked = settings.optimizer_step(number - 1);
    Ok(Some(Computed { losses, norm: decoder.update(ops, &asked), asked }))
}

/// What is known of the steps so far, besides the state that is kept.
struct Progress<'r> {
    trainer: &'r Trainer<'r>,
    /// Steps that were done when the run began, and when that was.
    first: u64,
    began: Instant,
    /// When the last step was settled.
    settled: Instant,
    /// What a rank was asked to stop by.
    stopped: Option<i32>,
}

impl Progress<'_> {
    /// Waits for what became of a step, and says it.
    fn settle<O: Ops>(
        &mut self,
        begun: Begun<O>,
        ops: &mut O,
        ranks: &mut Ranks,
        state: &mut State,
        say: &mut (dyn FnMut(Event) -> Result<()> + Send),
    ) -> Result<()> {
        let Trainer { run, data, ceiling, stop, .. } = *self.trainer;
        let Begun { number, rows, began, targets, tokens, flops, computed } = begun;
        let outcome = outcome(computed, targets, ops, ranks)?;
        // What one rank is asked to stop by stops all, after the same step.
        let asked = ranks.gather(&[f64::from(stop.load(Ordering::Relaxed))])?.concat();
        self.stopped = asked.into_iter().map(|signal| signal as i32).find(|&signal| signal != 0);
        // While it was computed, the step before it may have been waited for.
        let seconds = began.max(self.settled).elapsed().as_secs_f64().max(1e-9);
        self.settled = Instant::now();
        (state.step, state.position) = (number, rows.1);
        match outcome {
            Outcome::Done { loss, norm, asked } => {
                state.updates += 1;
                let mean = self.began.elapsed().as_secs_f64() / (number - self.first) as f64;
                say(Event::Step {
                    step: number,
                    time: now(),
                    loss,
                    targets,
                    tokens,
                    rate: asked.rate(state.updates),
                    norm,
                    epoch: state.position as f64 / data.train.rows as f64,
                    tokens_per_second: tokens as f64 / seconds,
                    mfu: flops / seconds / ceiling,
                    eta: mean * (run.settings.steps - number) as f64,
                    memory: ops.memory(),
                })
            }
            Outcome::Skipped(reason) => {
                state.skipped += 1;
                let rows = (rows.0 % data.train.rows, rows.1 % data.train.rows);
                say(Event::Skipped { step: number, time: now(), reason: reason.clone(), rows })?;
                if state.skipped > run.settings.max_skipped {
                    return Err(too_many_skipped(run, state, &reason));
                }
                Ok(())
            }
        }
    }
}

fn too_many_skipped(run: &Run, state: &State, reason: &str) -> Box<Diagnostic> {
    Diagnostic::error("too-many-skipped", format!("{} steps were skipped", state.skipped))
        .at(&run.out)
        .found(format!("the last one: {reason}"))
        .expected(format!("at most {} (`max_skipped`)", run.settings.max_skipped))
        .help("NaN or Inf: lower the learning rate, or give `max_norm`; log.jsonl names the rows of each")
        .into()
}

/// What became of a step.
enum Outcome {
    Done {
        loss: f64,
        norm: f64,
        asked: AdafactorStep,
    },
    /// Why; the weights are as they were.
    Skipped(String),
}

/// Waits for what a step was found to be. The norm is of all ranks' gradients, and a loss that is NaN or infinite has made
/// gradients NaN: every rank skips what one skips.
fn outcome<O: Ops>(computed: Option<Computed<O>>, targets: usize, ops: &mut O, ranks: &mut Ranks) -> Result<Outcome> {
    let Some(Computed { losses, norm, asked }) = computed else {
        return Ok(Outcome::Skipped("no token of it is trained".to_owned()));
    };
    let own: Vec<f64> = losses.into_iter().map(|l| l.map_or(0.0, |losses| total(&ops.arrived(losses)))).collect();
    let norm = ops.norm_arrived(norm);
    ops.healthy()?;
    let loss = in_order(&ranks.gather(&own)?) / targets as f64;
    Ok(match (norm.finite, loss.is_finite()) {
        (true, _) => Outcome::Done { loss, norm: norm.value, asked },
        (false, true) => Outcome::Skipped(format!("its loss is {loss}, but a gradient is NaN or infinite")),
        (false, false) => Outcome::Skipped(format!("its loss is {loss}")),
    })
}

/// Leaves the gradients of the step's mean loss, summed over ranks, and returns the losses of this rank's passes; none
/// of a pass without targets.
fn gradients<O: Ops>(decoder: &Decoder, ops: &mut O, ranks: &mut Ranks, step: &Step) -> Result<Vec<Option<O::Losses>>> {
    let weight = 1.0 / step.targets() as f32;
    // A round is what ranks do between two sums.
    let round = if O::SUMS_IN_ORDER { ranks.size() } else { step.passes.len() };
    let mut losses = Vec::new();
    decoder.zero_totals(ops);
    for passes in step.passes.chunks(round) {
        decoder.zero_gradients(ops);
        for pass in passes.iter().skip(ranks.rank()).step_by(ranks.size()) {
            let trained = !pass.batch.targets.is_empty();
            losses.push(trained.then(|| decoder.begin(ops, &pass.batch, pass.room, weight)));
        }
        decoder.sum_gradients(ops, ranks)?;
    }
    Ok(losses)
}

fn total(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum()
}

/// The sum of what ranks have dealt out among themselves: the first of each, the second of each, and so on.
fn in_order(by_rank: &[Vec<f64>]) -> f64 {
    let most = by_rank.iter().map(Vec::len).max().unwrap_or(0);
    (0..most).flat_map(|i| by_rank.iter().filter_map(move |rank| rank.get(i))).sum()
}

/// Mean loss of the first validation rows, and of how many tokens.
fn validate(
    settings: &Settings,
    data: &Data,
    decoder: &Decoder,
    ops: &mut impl Ops,
    ranks: &mut Ranks,
) -> Result<Option<(f64, usize)>> {
    let Some(shards) = &data.validation else { return Ok(None) };
    let count = settings.validate_rows.min(shards.rows as usize);
    let mut rows = shards.rows_from(0);
    let (mut own, mut targets) = (Vec::new(), 0);
    for row in 0..count {
        let mut batch = Batch::default();
        rows.next_into(&mut batch)?;
        targets += batch.targets.len();
        if row % ranks.size() == ranks.rank() {
            own.push(if batch.targets.is_empty() { 0.0 } else { total(&decoder.score(ops, &batch)) });
        }
    }
    ops.healthy()?;
    let sum = in_order(&ranks.gather(&own)?);
    Ok((targets > 0).then(|| (sum / targets as f64, targets)))
}
