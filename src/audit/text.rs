//! Text: what is wrong with the letters themselves, in the template's own words, in fields, and where they meet.

use std::collections::BTreeMap;
use std::ops::Range;

use whatlang::Lang;
use xxhash_rust::xxh3::xxh3_64;

use super::code::{
    CONTROL_CHARACTERS, Code, DOUBLE_SPACES, DOUBLED_PUNCTUATION, FOREIGN_LANGUAGE, MISSING_PUNCTUATION, MISSING_SPACE,
    MOJIBAKE, STRAY_CHARACTERS, TRAILING_BLANKS, UNBALANCED, UNRENDERED_BRACES,
};
use super::facts::Facts;
use super::finding::{Excerpt, Finding, Side, Spot, Tallies, Tally, is_unseen, side_of};
use super::observe::{Form, Prompt, Seen};
use crate::example::ExampleId;
use crate::template::engine::{Bound, Stretch, Traced, without_hyphens};

/// Stands in a masked text for what comes from the row.
const MASK: char = '\u{fffc}';

// ---- Fields --------------------------------------------------------------------------------------------------------

/// Looks at the fields of a row.
pub fn row(facts: &Facts<'_>, id: ExampleId, bound: &Bound, seen: &mut Seen) {
    let task = facts.planned.task;
    for (name, value) in bound.fields() {
        let field = task.definition.fields.iter().position(|f| f.name == name).map(Spot::Field);
        let feature = || task.schema.fields().iter().position(|(feature, _)| without_hyphens(feature) == name);
        let Some(spot) = field.or_else(|| feature().map(Spot::Feature)) else { continue };
        let text = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Array(items) => {
                items.iter().filter_map(|item| item.as_str()).collect::<Vec<_>>().join("\n")
            }
            _ => continue,
        };
        let mut hit = |code: &'static Code, what: &str, at: Range<usize>| {
            let message = format!("`{name}` has {what}");
            let excerpt = || Some(Excerpt::new(&text, at.clone()));
            seen.tallies.of(code, spot, message).add(|| facts.row(id), excerpt);
        };
        if let Some(at) = mojibake(&text) {
            hit(&MOJIBAKE, "characters of a wrong character set", at);
        }
        if let Some(at) = control_character(&text) {
            hit(&CONTROL_CHARACTERS, "control characters", at);
        }
        if let Some(lang) = language(&text) {
            *seen.languages.entry(spot).or_default() += 1;
            if !facts.languages.contains(&lang) {
                let message = format!("`{name}` is in {}", lang.eng_name());
                let tally = seen.tallies.of(&FOREIGN_LANGUAGE, spot, message);
                tally.add(|| facts.row(id), || Some(Excerpt::new(&text, 0..text.len())));
            }
        }
    }
}

/// Bytes of UTF-8 that were read as Latin-1 or Windows-1252, or are lost.
fn mojibake(text: &str) -> Option<Range<usize>> {
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let next = characters.peek().map(|&(_, next)| next);
        let end = |width: usize| at + width + next.map_or(0, char::len_utf8);
        match (c, next) {
            ('\u{fffd}', _) => return Some(at..at + 3),
            // The first byte of é, ü, … and a continuation; of the no-break space; of “, ’, –, ….
            ('Ã', Some('\u{80}'..='\u{bf}')) | ('Â', Some('\u{80}'..='\u{bf}')) | ('â', Some('€' | '\u{80}')) => {
                return Some(at..end(c.len_utf8()));
            }
            _ => {}
        }
    }
    None
}

fn control_character(text: &str) -> Option<Range<usize>> {
    text.char_indices().find(|&(_, c)| is_unseen(c)).map(|(at, c)| at..at + c.len_utf8())
}

/// The language of a text that is long enough for it to be told.
fn language(text: &str) -> Option<Lang> {
    /// Below, trigrams mistake names and headlines for Dutch or Latin.
    const CHARACTERS: usize = 120;
    /// Enough of a long text.
    const LOOKED_AT: usize = 1000;
    let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(at, _)| at);
    if text[..end].chars().filter(|c| c.is_alphabetic()).count() < CHARACTERS {
        return None;
    }
    let info = whatlang::detect(&text[..end])?;
    info.is_reliable().then(|| info.lang())
}

// ---- Joints --------------------------------------------------------------------------------------------------------

/// Letters that are put to the end of a word.
const ENDINGS: [&str; 13] = ["s", "es", "ed", "ing", "ly", "er", "ers", "d", "th", "st", "nd", "rd", "ish"];

/// Looks at the places where the template's own words and what comes from the row meet.
pub fn joints(prompt: &Prompt<'_>, side: Side, tallies: &mut Tallies) {
    let traced = prompt.side(side);
    let text = &traced.text;
    let own = |piece: &Stretch| prompt.facts.is_own(prompt.template, side, piece);
    let source = &side_of(prompt.facts.planned.task, prompt.template, side).text;
    let mut hit = |code: &'static Code, piece: &Stretch, message: String, at: Range<usize>| {
        let spot = Spot::text(prompt.template, side, &source_of(piece, &at));
        tallies.of(code, spot, message).add(|| prompt.row(), || Some(Excerpt::new(text, at)));
    };
    for pair in traced.pieces.windows(2) {
        let (left, right) = (&pair[0], &pair[1]);
        let field = if own(left) { right } else { left };
        let name = source.get(field.source.clone()).unwrap_or("…");
        let at = left.output.end;
        let (Some(last), Some(first)) = (text[..at].chars().next_back(), text[at..].chars().next()) else { continue };
        let joint = at - last.len_utf8()..at + first.len_utf8();
        if own(left) && own(right) {
            continue;
        }
        let from_row = (!own(left), !own(right));
        if last == ' ' && first == ' ' {
            hit(&DOUBLE_SPACES, field, format!("two blanks where `{name}` begins or ends"), joint.clone());
        }
        if last == ' ' && first == '\n' && from_row.0 {
            hit(&TRAILING_BLANKS, field, format!("`{name}` leaves a blank at the end of a line"), joint.clone());
        }
        if first.is_alphabetic() && from_row == (true, false) && !last.is_whitespace() {
            let run: String = text[at..right.output.end].chars().take_while(|c| c.is_alphabetic()).collect();
            let after = text[at + run.len()..].chars().next();
            if !ENDINGS.contains(&run.as_str()) && !matches!(after, Some('\'' | '’')) {
                let message = format!("`{run}` stands right after `{name}`");
                hit(&STRAY_CHARACTERS, right, message, at..at + run.len());
            }
        }
        if last.is_alphabetic() && from_row == (false, true) && first.is_alphanumeric() {
            let own = &text[left.output.clone()];
            let run: String = own.chars().rev().take_while(|c| c.is_alphabetic()).collect();
            let run: String = run.chars().rev().collect();
            let message = format!("`{run}` stands right before `{name}`");
            hit(&STRAY_CHARACTERS, left, message, at - run.len()..at);
        }
        if matches!(last, '.' | '?' | '!' | ',' | ':' | ';') && from_row == (false, true) && first.is_alphabetic() {
            hit(&MISSING_SPACE, field, format!("no blank between `{last}` and `{name}`"), joint.clone());
        }
        if from_row == (true, true) && last.is_alphanumeric() && first.is_alphanumeric() {
            let message =
                format!("no blank between `{name}` and `{}`", source.get(right.source.clone()).unwrap_or("…"));
            hit(&MISSING_SPACE, field, message, joint.clone());
        }
        if from_row == (true, false) && is_mark(last) && is_mark(first) {
            hit(
                &DOUBLED_PUNCTUATION,
                field,
                format!("`{first}` after `{name}`, which has its own mark"),
                joint.clone(),
            );
        }
        if from_row == (true, false) && last.is_alphanumeric() && begins_a_sentence(&text[at..right.output.end]) {
            let words = text[left.output.clone()].split_whitespace().count();
            if words >= WORDS_OF_A_SENTENCE {
                hit(&MISSING_PUNCTUATION, field, format!("no mark between `{name}` and the next sentence"), joint);
            }
        }
    }
    let ends = [
        (traced.pieces.first(), text.starts_with(char::is_whitespace), "begin", 0..0),
        (traced.pieces.last(), text.ends_with(char::is_whitespace), "end", text.len()..text.len()),
    ];
    for (piece, blank, what, at) in ends {
        if let Some(piece) = piece.filter(|p| blank && !own(p)) {
            let name = source.get(piece.source.clone()).unwrap_or("…");
            let message = format!("the {} {what} in the white space of `{name}`", side.name());
            hit(&TRAILING_BLANKS, piece, message, at);
        }
    }
}

const WORDS_OF_A_SENTENCE: usize = 4;

fn is_mark(c: char) -> bool {
    matches!(c, '.' | '?' | '!' | ',' | ';' | ':')
}

/// Whether a text goes on with a blank and a capitalized word.
fn begins_a_sentence(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(' ') else { return false };
    let mut characters = rest.chars();
    characters.next().is_some_and(char::is_uppercase) && characters.next().is_some_and(char::is_lowercase)
}

// ---- The template's own words --------------------------------------------------------------------------------------

/// Keeps each form that the template's own words take.
pub fn form(prompt: &Prompt<'_>, side: Side, forms: &mut BTreeMap<u64, Form>) {
    /// A template with more conditions than that repeats itself in them.
    const MOST: usize = 64;
    let traced = prompt.side(side);
    let masked = mask(prompt, side, traced);
    let hash = xxh3_64(masked.as_bytes());
    if forms.len() >= MOST && !forms.contains_key(&hash) {
        return;
    }
    let form = forms.entry(hash).or_insert_with(|| Form { example: traced.clone(), tally: Tally::default() });
    form.tally.add(|| prompt.row(), || None);
}

fn mask(prompt: &Prompt<'_>, side: Side, traced: &Traced) -> String {
    let mut masked = String::new();
    for piece in &traced.pieces {
        if prompt.facts.is_own(prompt.template, side, piece) {
            masked.push_str(&traced.text[piece.output.clone()]);
        } else if !masked.ends_with(MASK) {
            masked.push(MASK);
        }
    }
    masked
}

/// Looks at the forms of all templates.
pub fn finish(facts: &Facts<'_>, seen: &Seen, findings: &mut Vec<Finding>) {
    for &template in &facts.planned.templates {
        let seen = &seen.templates[template];
        for side in Side::BOTH {
            // A slip that is in several forms is said once.
            let mut said = BTreeMap::new();
            for form in seen.forms[side as usize].values() {
                for (code, message, piece, at) in slips(facts, template, side, &form.example) {
                    let source = source_of(&piece, &at);
                    let excerpt = Excerpt::new(&form.example.text, at);
                    let entry =
                        said.entry((source.start, code.name, message)).or_insert((code, source, Tally::default()));
                    entry.2.absorb(Tally { excerpts: vec![excerpt], ..form.tally.clone() });
                }
            }
            for ((_, _, message), (code, source, mut tally)) in said {
                tally.excerpts.truncate(1);
                let spot = Spot::text(template, side, &source);
                findings.push(Finding::new(code, facts.planned.task, spot, message).shown(tally, seen.prompts));
            }
        }
    }
}

/// Where a stretch of rendered text stands in the template: in literal text to the byte.
fn source_of(piece: &Stretch, at: &Range<usize>) -> Range<usize> {
    if !piece.literal {
        return piece.source.clone();
    }
    let from = piece.source.start + at.start.saturating_sub(piece.output.start);
    from..(from + at.len()).min(piece.source.end)
}

type Slip = (&'static Code, String, Stretch, Range<usize>);

/// What is wrong with the template's own words in one form of it.
fn slips(facts: &Facts<'_>, template: usize, side: Side, traced: &Traced) -> Vec<Slip> {
    let text = &traced.text;
    // For each byte of the text whether it is the template's own, with the characters in order.
    let own = |at: usize| {
        let piece = traced.pieces.iter().find(|p| p.output.contains(&at));
        piece.filter(|p| facts.is_own(template, side, p))
    };
    let characters: Vec<(usize, char, Option<&Stretch>)> = traced
        .pieces
        .iter()
        .flat_map(|piece| {
            let own = facts.is_own(template, side, piece);
            let start = piece.output.start;
            text[piece.output.clone()].char_indices().map(move |(at, c)| (start + at, c, own.then_some(piece)))
        })
        .collect();
    let mut slips: Vec<Slip> = Vec::new();
    let mut add = |code, message: &str, piece: &Stretch, at: Range<usize>| {
        slips.push((code, message.to_owned(), piece.clone(), at));
    };
    for (i, &(at, c, piece)) in characters.iter().enumerate() {
        let Some(piece) = piece else { continue };
        let after = characters.get(i + 1).copied();
        let before = i.checked_sub(1).and_then(|i| characters.get(i)).copied();
        let in_own = |neighbour: Option<(usize, char, Option<&Stretch>)>, of: fn(char) -> bool| {
            neighbour.is_some_and(|(_, c, piece)| piece.is_some() && of(c))
        };
        let end = at + c.len_utf8();
        let indented = before.is_none_or(|(_, c, _)| c == '\n' || c == ' ');
        if c == ' ' && !indented && in_own(after, |c| c == ' ') {
            add(&DOUBLE_SPACES, "two blanks in a row", piece, at..end);
        }
        if matches!(c, ' ' | '\t') && (after.is_none() || in_own(after, |c| c == '\n')) {
            add(&TRAILING_BLANKS, "a line ends in a blank", piece, at..end);
        }
        if c == '\n' && after.is_none() {
            add(&TRAILING_BLANKS, &format!("the {} end in a line break", side.name()), piece, at..end);
        }
        if matches!(c, ' ' | '\n' | '\t') && before.is_none() {
            add(&TRAILING_BLANKS, &format!("the {} begin with white space", side.name()), piece, at..end);
        }
        let ellipsis = c == '.' && (in_own(after, |c| c == '.') && in_own(before, |c| c == '.') || dots(text, at) >= 3);
        let pair = matches!((c, after.map(|a| a.1)), (',' | ';', Some(',' | ';' | '.')))
            || matches!(
                (c, after.map(|a| a.1)),
                ('.', Some('.' | ',' | ';')) | ('?', Some('?' | '.')) | ('!', Some('!'))
            );
        if pair && !ellipsis && in_own(after, is_mark) {
            add(&DOUBLED_PUNCTUATION, "two marks in a row", piece, at..end + 1);
        }
    }
    for (open, close) in braces(text) {
        if let Some(piece) = own(open) {
            add(&UNRENDERED_BRACES, &format!("`{}` is left as it is", &text[open..close]), piece, open..close);
        }
    }
    let own_text: String = characters.iter().map(|&(_, c, piece)| if piece.is_some() { c } else { MASK }).collect();
    if let Some(odd) = unbalanced(&own_text)
        && let Some(&(at, c, Some(piece))) = characters.get(odd)
    {
        add(&UNBALANCED, &format!("`{c}` has no counterpart"), piece, at..at + c.len_utf8());
    }
    let own_only: String = own_text.chars().map(|c| if c == MASK { ' ' } else { c }).collect();
    let own_pieces = || traced.pieces.iter().filter(|p| facts.is_own(template, side, p));
    for piece in own_pieces() {
        let words = &text[piece.output.clone()];
        let within = |at: Range<usize>| piece.output.start + at.start..piece.output.start + at.end;
        if let Some(at) = mojibake(words) {
            add(&MOJIBAKE, "characters of a wrong character set", piece, within(at));
        }
        if let Some(at) = control_character(words) {
            add(&CONTROL_CHARACTERS, "control characters", piece, within(at));
        }
    }
    if let Some(piece) = own_pieces().next()
        && let Some(lang) = language(&own_only).filter(|lang| !facts.languages.contains(lang))
    {
        add(&FOREIGN_LANGUAGE, &format!("the template is in {}", lang.eng_name()), piece, piece.output.clone());
    }
    slips
}

/// How many full stops stand in a row around `at`.
fn dots(text: &str, at: usize) -> usize {
    let before = text[..at].chars().rev().take_while(|&c| c == '.').count();
    before + text[at..].chars().take_while(|&c| c == '.').count()
}

/// Braces around a name, and the marks of expressions and statements.
fn braces(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = text[from..].find('{').map(|at| from + at) {
        from = open + 1;
        let inner = text[open..].trim_start_matches(['{', '%', ' ']);
        let name = inner.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
        let after = inner[name..].trim_start();
        if name > 0 && (after.starts_with('}') || after.starts_with("%}") || text[open..].starts_with("{{")) {
            let close = text[open..].find('}').map_or(text.len(), |at| open + at + 1);
            found.push((open, close));
            from = close;
        }
    }
    found
}

/// The first bracket or quotation mark that has no counterpart, as the number of its character.
fn unbalanced(text: &str) -> Option<usize> {
    let characters: Vec<char> = text.chars().collect();
    let mut open: Vec<(char, usize)> = Vec::new();
    for (i, &c) in characters.iter().enumerate() {
        match c {
            '(' | '[' | '{' | '“' | '«' => open.push((c, i)),
            ')' | ']' | '}' | '”' | '»' => {
                let opening = match c {
                    ')' => '(',
                    ']' => '[',
                    '}' => '{',
                    '”' => '“',
                    _ => '«',
                };
                if open.last().is_some_and(|(c, _)| *c == opening) {
                    open.pop();
                } else if c != ')' || !numbers_an_item(&characters, i) {
                    return Some(i);
                }
            }
            '"' => match open.last() {
                Some(('"', _)) => drop(open.pop()),
                _ => open.push((c, i)),
            },
            _ => {}
        }
    }
    open.first().map(|&(_, i)| i)
}

/// `a)` or `12)` at the beginning of a line or after a blank.
fn numbers_an_item(characters: &[char], bracket: usize) -> bool {
    let label = characters[..bracket].iter().rev().take_while(|c| c.is_alphanumeric()).count();
    let before = (bracket - label).checked_sub(1).map(|i| characters[i]);
    (1..=2).contains(&label) && before.is_none_or(char::is_whitespace)
}
