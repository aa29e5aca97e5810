//! One prompt as a page shows it: every stretch of it with the expression that printed it, every token with its place.
//!
//! Texts come in pieces and tokens with lengths, so that a page needs no offsets. Lengths are in UTF-16 units, which is
//! how JavaScript counts.

use std::borrow::Cow;

use serde::Serialize;

use crate::audit::Side;
use crate::diag::Result;
use crate::example::ExampleId;
use crate::exemplars::Exemplars;
use crate::mixture::{Overflow, Wrapper};
use crate::plan::Plan;
use crate::task::Task;
use crate::template::definition::Body;
use crate::template::engine::{Bound, Failure, Traced};
use crate::template::exemplar::{Exemplar, assemble};
use crate::template::python;
use crate::tokenize::Encoder;

/// Tokens of a side that are shown; all are counted.
const MOST_TOKENS: usize = 8192;

/// What one template makes of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptView {
    pub template: String,
    /// `original` or `turned-around`.
    pub kind: &'static str,
    /// `None` where the row gives no prompt.
    pub inputs: Option<SideView>,
    pub targets: Option<SideView>,
    pub options: Vec<String>,
    pub answer: Option<String>,
    pub failure: Option<FailureView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailureView {
    pub code: &'static str,
    pub detail: String,
}

/// One of the two texts of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideView {
    /// Text and origin: 0 is the template's own words, n the nth expression of [`Origins`]. Together they are the text.
    pub pieces: Vec<(String, usize)>,
    /// Id and length of each token; the lengths add up to the text where all tokens are listed. Of several tokens that
    /// spell a character, the last has its length. Empty without a tokenizer.
    pub tokens: Vec<(u32, usize)>,
    /// Tokens of the text, listed or not.
    pub token_count: usize,
    pub special: Special,
    /// Tokens, from and to, that the recipe's lengths take away.
    pub cut: Option<(usize, usize)>,
    /// Whether its tokens carry no loss.
    pub masked: bool,
}

/// Control tokens that a recipe puts around a side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Special {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

/// The expressions that pieces come from, each once, counted from 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Origins(pub Vec<String>);

/// What stands around a prompt's inputs is no expression of its template.
const EXEMPLARS: &str = "(exemplars)";
const MARKERS: &str = "(markers)";

impl Origins {
    fn number(&mut self, expression: &str) -> usize {
        let known = self.0.iter().position(|e| e == expression);
        known.unwrap_or_else(|| {
            self.0.push(expression.to_owned());
            self.0.len() - 1
        }) + 1
    }
}

impl FailureView {
    pub fn new(failure: &Failure) -> FailureView {
        FailureView { code: failure.reason.name(), detail: failure.detail.clone() }
    }
}

/// Makes views, by the tokenizer and the lengths of a plan if there is one.
pub struct Viewer<'p> {
    plan: Option<(&'p Plan<'p>, Encoder<'p>)>,
}

impl<'p> Viewer<'p> {
    pub fn new(plan: Option<&'p Plan<'p>>) -> Viewer<'p> {
        Viewer { plan: plan.map(|plan| (plan, plan.tokenizer.encoder())) }
    }

    /// The exemplars that a recipe draws for a prompt, if it wants any.
    pub fn draw<'e>(
        &mut self,
        exemplars: Option<&'e Exemplars<'_>>,
        task: &Task,
        bound: &Bound,
        template: usize,
        id: ExampleId,
    ) -> Result<Vec<&'e Exemplar>> {
        let (Some(exemplars), Some((_, encoder))) = (exemplars, &mut self.plan) else { return Ok(Vec::new()) };
        let Ok(prompt) = task.program.render(bound, template) else { return Ok(Vec::new()) };
        let mut ids = Vec::new();
        encoder.encode_into(&prompt.inputs, &mut ids)?;
        let shots = exemplars.draw(id, template, ids.len(), encoder)?;
        Ok(shots.into_iter().map(|shot| &shot.text).collect())
    }

    /// What a template of `task` makes of a row, after `shots` as far as the recipe's lengths leave room for them.
    pub fn prompt(
        &mut self,
        task: &Task,
        bound: &Bound,
        template: usize,
        shots: &[&Exemplar],
        origins: &mut Origins,
    ) -> Result<PromptView> {
        let definition = &task.definition.templates[template];
        let mut view = PromptView {
            template: definition.name.text.clone(),
            kind: definition.kind.name(),
            inputs: None,
            targets: None,
            options: Vec::new(),
            answer: None,
            failure: None,
        };
        let trace = match task.program.trace(bound, template) {
            Ok(trace) => trace,
            Err(failure) => {
                view.failure = Some(FailureView::new(&failure));
                return Ok(view);
            }
        };
        view.options = trace.options.iter().flat_map(|options| options.iter().cloned()).collect();
        view.answer = trace.answer.as_deref().map(str::to_owned);
        let own = pieces(task, template, Side::Inputs, &trace.inputs, origins);
        let mut targets = SideView::of(pieces(task, template, Side::Targets, &trace.targets, origins), false);
        let Some((plan, encoder)) = &mut self.plan else {
            view.inputs = Some(SideView::of(own, true));
            view.targets = Some(targets);
            return Ok(view);
        };
        let lengths = plan.recipe.lengths;
        let most = [plan.longest_inputs(), lengths.targets - 1];
        let mut shots = shots;
        let mut inputs = loop {
            let mut inputs = SideView::of(around(&own, &trace.inputs.text, shots, plan.recipe.wrapper, origins), true);
            inputs.encode(encoder)?;
            // A prompt is not cut for the sake of its exemplars, except on the right.
            match shots.split_last() {
                Some((_, fewer)) if inputs.token_count > most[0] && lengths.overflow != Overflow::Right => {
                    shots = fewer;
                }
                _ => break inputs,
            }
        };
        targets.encode(encoder)?;
        inputs.special.before.extend(plan.bos.as_ref().map(|bos| bos.id));
        inputs.special.after.extend(plan.separator.as_ref().map(|separator| separator.id));
        targets.special.after.push(plan.eos.id);
        let too_long = [inputs.token_count > most[0], targets.token_count > most[1]];
        if lengths.overflow == Overflow::Drop && (too_long[0] || too_long[1]) {
            inputs.cut = Some((0, inputs.token_count));
            targets.cut = Some((0, targets.token_count));
        } else {
            if too_long[0] {
                inputs.cut = Some(match lengths.overflow {
                    Overflow::Shorten => of_longest_field(task, bound, template, &inputs, most[0], encoder)?,
                    Overflow::Right | Overflow::Drop => (most[0], inputs.token_count),
                });
            }
            if too_long[1] {
                targets.cut = Some((most[1], targets.token_count));
            }
        }
        view.inputs = Some(inputs);
        view.targets = Some(targets);
        Ok(view)
    }
}

impl SideView {
    fn of(pieces: Vec<(String, usize)>, masked: bool) -> SideView {
        SideView { pieces, tokens: Vec::new(), token_count: 0, special: Special::default(), cut: None, masked }
    }

    pub fn text(&self) -> String {
        self.pieces.iter().map(|(text, _)| text.as_str()).collect()
    }

    fn encode(&mut self, encoder: &mut Encoder<'_>) -> Result<()> {
        let text = self.text();
        let spans = encoder.spans(&text, MOST_TOKENS)?;
        let mut from = 0;
        self.token_count = spans.ids.len();
        self.tokens = spans
            .ids
            .iter()
            .zip(&spans.ends)
            .map(|(&id, &to)| {
                let length = utf16_length(&text[from..to]);
                from = to;
                (id, length)
            })
            .collect();
        Ok(())
    }
}

fn utf16_length(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// The stretches of a side, neighbours of one origin put together.
fn pieces(task: &Task, template: usize, side: Side, traced: &Traced, origins: &mut Origins) -> Vec<(String, usize)> {
    let source: Cow<'_, str> = match (&task.definition.templates[template].body, side) {
        (Body::Sides { inputs, .. }, Side::Inputs) => inputs.text.as_str().into(),
        (Body::Sides { targets, .. }, Side::Targets) => targets.text.as_str().into(),
        (Body::Prompt { prompt, .. }, _) => python::source(&prompt.text).into(),
    };
    let mut pieces: Vec<(String, usize)> = Vec::new();
    for piece in traced.pieces.iter().filter(|piece| !piece.output.is_empty()) {
        let origin = match source.get(piece.source.clone()) {
            _ if piece.literal => 0,
            expression => origins.number(expression.unwrap_or_default().trim()),
        };
        let text = &traced.text[piece.output.clone()];
        match pieces.last_mut() {
            Some((last, same)) if *same == origin => last.push_str(text),
            _ => pieces.push((text.to_owned(), origin)),
        }
    }
    pieces
}

/// The pieces of inputs with what a recipe puts before and after them.
fn around(
    own: &[(String, usize)],
    text: &str,
    shots: &[&Exemplar],
    wrapper: Wrapper,
    origins: &mut Origins,
) -> Vec<(String, usize)> {
    let whole = assemble(shots, text, wrapper);
    // What follows the inputs is the same for any; what is left stands before them.
    let after = assemble(&[], "", wrapper).trim_start_matches("0 ").len();
    let before = whole.len() - text.len() - after;
    let stated = if shots.is_empty() { MARKERS } else { EXEMPLARS };
    let mut pieces = Vec::new();
    if before > 0 {
        pieces.push((whole[..before].to_owned(), origins.number(stated)));
    }
    pieces.extend(own.iter().cloned());
    if after > 0 {
        pieces.push((whole[whole.len() - after..].to_owned(), origins.number(MARKERS)));
    }
    pieces
}

/// The tokens at the end of the longest field that are too many. A compile cuts the field by its own tokens and may need
/// several rounds; this is the first of them.
fn of_longest_field(
    task: &Task,
    bound: &Bound,
    template: usize,
    inputs: &SideView,
    most: usize,
    encoder: &mut Encoder<'_>,
) -> Result<(usize, usize)> {
    let right = (most, inputs.token_count);
    let Some((_, field)) = task.program.longest_field(bound, template) else { return Ok(right) };
    let printed = |(text, origin): &(String, usize)| *origin > 0 && text.trim() == field.trim();
    let Some(piece) = inputs.pieces.iter().rposition(printed) else { return Ok(right) };
    let mut tokens = |pieces: &[(String, usize)]| -> Result<usize> {
        let mut ids = Vec::new();
        let text: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
        encoder.encode_into(&text, &mut ids)?;
        Ok(ids.len())
    };
    let to = inputs.token_count - tokens(&inputs.pieces[piece + 1..])?.min(inputs.token_count);
    let from = tokens(&inputs.pieces[..piece])?.max(to.saturating_sub(inputs.token_count - most));
    Ok((from.min(to), to))
}
