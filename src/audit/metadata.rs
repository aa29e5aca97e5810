//! What promptsource's metadata and choices say of a template, against what the template prints.

use super::code::{CHOICES_MISSING, CHOICES_SHOWN, TARGET_NOT_A_CHOICE};
use super::finding::{Excerpt, Spot, Tallies};
use super::observe::Prompt;
use crate::template::definition::Body;

/// Compares a prompt with the choices of its template, and with the flag that says whether it shows them.
pub fn prompt(prompt: &Prompt<'_>, tallies: &mut Tallies) {
    let template = &prompt.facts.planned.task.definition.templates[prompt.template];
    let Body::Prompt { metadata, .. } = &template.body else { return };
    if prompt.options.is_empty() {
        return;
    }
    let spot = Spot::Template(prompt.template);
    let target = &prompt.targets.text;
    if !prompt.options.contains(target) {
        let tally = tallies.of(&TARGET_NOT_A_CHOICE, spot, "the target is none of `answer_choices`");
        let choices = format!(" is none of {}", prompt.options.join(" | "));
        tally.add(|| prompt.row(), || Some(Excerpt { after: choices, ..Excerpt::new(target, 0..target.len()) }));
    }
    let inputs = prompt.inputs.text.to_lowercase();
    let missing = prompt.options.iter().find(|option| !has_word(&inputs, &option.trim().to_lowercase()));
    match (metadata.choices_in_prompt, missing) {
        (Some(true), Some(missing)) => {
            let tally = tallies.of(&CHOICES_MISSING, spot, "`choices_in_prompt` is true, and a choice is not shown");
            let excerpt = Excerpt { after: " is missing".to_owned(), ..Excerpt::new(missing, 0..missing.len()) };
            tally.add(|| prompt.row(), || Some(excerpt));
        }
        (Some(false), None) if prompt.options.len() > 1 => {
            let tally = tallies.of(&CHOICES_SHOWN, spot, "`choices_in_prompt` is false, and all choices are shown");
            tally.add(|| prompt.row(), || Some(Excerpt::whole(prompt.inputs)));
        }
        _ => {}
    }
}

/// Whether `text` has `word` with no letter or digit right against it: `no` is not in `know`.
fn has_word(text: &str, word: &str) -> bool {
    let bounded = |at: usize| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let inner = [word.chars().next(), word.chars().next_back()];
        [before, after].iter().zip(inner).all(|(outer, inner)| {
            !(outer.is_some_and(char::is_alphanumeric) && inner.is_some_and(char::is_alphanumeric))
        })
    };
    text.match_indices(word).any(|(at, _)| bounded(at))
}

#[cfg(test)]
mod tests {
    use super::has_word;

    #[test]
    fn a_part_of_a_word_is_no_word() {
        for (text, word, expected) in [
            ("know it", "no", false),
            ("know? no.", "no", true),
            ("(a) cat", "(a)", true),
            ("x", "", true),
            ("", "x", false),
        ] {
            assert_eq!(has_word(text, word), expected, "{text} {word}");
        }
    }
}
