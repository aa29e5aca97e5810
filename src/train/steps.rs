//! The loop: rows become steps of the optimizer.
//!
//! A step's rows are cut into passes; pass i of a step is done by rank i mod n. Every rank reads all rows, which costs
//! little beside training on its share, so that all know how many targets a step has, and where its boundaries are,
//! without asking. Losses are told in the order of the passes and added up in it, so that every rank, and any number of
//! them, comes to the same numbers and the same decisions.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::checkpoint::{self, State};
use super::data::{Data, Step};
use super::log::{Event, now};
use super::settings::Settings;
use super::{Cut, Run};
use crate::diag::{Diagnostic, Result};
use crate::model::decoder::Decoder;
use crate::model::ops::{Batch, Ops};
use crate::model::ranks::Ranks;
use crate::model::speed;

/// What stays the same from step to step.
pub(super) struct Trainer<'r> {
    pub run: &'r Run,
    pub data: &'r Data,
    pub decoder: &'r Decoder,
    /// FLOP/s of all ranks.
    pub ceiling: f64,
}

/// Steps that are read ahead, by a thread, while those before them are done.
const AHEAD: usize = 2;

/// Takes steps from the data until there are enough.
pub(super) fn steps<O: Ops + Send>(
    trainer: &Trainer<'_>,
    ops: &mut O,
    ranks: &mut Ranks,
    state: &mut State,
    say: &mut (dyn FnMut(Event) -> Result<()> + Send),
) -> Result<()> {
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
        let (first, began) = (state.step, Instant::now());
        while state.step < settings.steps {
            let before = Instant::now();
            let step = receiver.recv().expect("the reader lives as long as it is listened to")?;
            let from = state.position;
            state.position += cut.rows as u64;
            let outcome = one_step(settings, decoder, ops, ranks, state, &step)?;
            state.step += 1;
            match outcome {
                Outcome::Done { loss, rate, norm } => {
                    state.updates += 1;
                    let seconds = before.elapsed().as_secs_f64().max(1e-9);
                    let flops: f64 = step.passes.iter().map(|p| speed::training_flops(&decoder.config, p)).sum();
                    let mean = began.elapsed().as_secs_f64() / (state.step - first) as f64;
                    say(Event::Step {
                        step: state.step,
                        time: now(),
                        loss,
                        targets: step.targets(),
                        tokens: step.tokens(),
                        rate,
                        norm,
                        epoch: state.position as f64 / data.train.rows as f64,
                        tokens_per_second: step.tokens() as f64 / seconds,
                        mfu: flops / seconds / trainer.ceiling,
                        eta: mean * (settings.steps - state.step) as f64,
                        memory: ops.memory(),
                    })?;
                }
                Outcome::Skipped(reason) => {
                    state.skipped += 1;
                    let rows = (from % data.train.rows, state.position % data.train.rows);
                    say(Event::Skipped { step: state.step, time: now(), reason: reason.clone(), rows })?;
                    if state.skipped > settings.max_skipped {
                        return Err(too_many_skipped(run, state, &reason));
                    }
                }
            }
            let last = state.step == settings.steps;
            if (last || state.step.is_multiple_of(settings.validate_every))
                && let Some((loss, targets)) = validate(settings, data, decoder, ops, ranks)?
            {
                say(Event::Validation { step: state.step, time: now(), loss, targets })?;
            }
            if ranks.leads() && (last || state.step.is_multiple_of(settings.checkpoint_every)) {
                checkpoint::save(&run.out, state.clone(), decoder, ops, settings.keep)?;
                say(Event::Checkpoint { step: state.step })?;
            }
        }
        Ok(())
    })
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
        rate: f64,
        norm: f64,
    },
    /// Why; the weights are as they were.
    Skipped(String),
}

/// One step of the optimizer.
fn one_step(
    settings: &Settings,
    decoder: &Decoder,
    ops: &mut impl Ops,
    ranks: &mut Ranks,
    state: &State,
    step: &Step,
) -> Result<Outcome> {
    let targets = step.targets();
    if targets == 0 {
        return Ok(Outcome::Skipped("no token of it is trained".to_owned()));
    }
    let losses = gradients(decoder, ops, ranks, step)?;
    let norm = decoder.gradient_norm(ops); // the only time in a step that is waited for the backend
    let own: Vec<f64> = losses.into_iter().map(|l| l.map_or(0.0, |losses| total(&ops.arrived(losses)))).collect();
    let loss = in_order(&ranks.gather(&own)?) / targets as f64;
    if !loss.is_finite() {
        return Ok(Outcome::Skipped(format!("its loss is {loss}")));
    }
    if !norm.finite {
        return Ok(Outcome::Skipped(format!("its loss is {loss}, but a gradient is NaN or infinite")));
    }
    let scale = settings.max_norm.map_or(1.0, |most| (most / norm.value.max(1e-12)).min(1.0));
    let update = settings.optimizer_step(state.step, state.updates + 1, scale);
    decoder.update(ops, &update);
    Ok(Outcome::Done { loss, rate: update.rate, norm: norm.value })
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
            losses.push((!pass.targets.is_empty()).then(|| decoder.begin(ops, pass, weight)));
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
    let sum = in_order(&ranks.gather(&own)?);
    Ok((targets > 0).then(|| (sum / targets as f64, targets)))
}
