//! What promptsource's templates take for granted: Jinja2 as it is on top of Python.
//!
//! minijinja has Jinja2's syntax and most of its filters. What it lacks, because it stands on Rust, is added here to the
//! environments of the promptsource dialect: how values print (`1e-05`, `'it\'s'`), Python's methods of strings, lists
//! and dicts, filters that differ, and promptsource's own filters. Lists and dicts of minijinja do not change, and
//! templates that call `append`, `pop` or `update` need ones that do: [`source()`] writes `_mut([])` for the lists and
//! dicts of such templates, and [`mod@mutable`] has what that gives.
//!
//! What is known to differ still is listed, with the reason, in `tests/fixtures/import/differ.toml`.

mod mutable;
mod printing;
mod source;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use self::mutable::{is_hashable, mutable};
use self::printing::{is_space, text, to_json};
use crate::seed::Stream;

pub use self::printing::strip;
pub use self::source::{LONGER, names, names_before_separator, source};

/// Adds everything to an environment.
pub fn install(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| {
        if let Some(text) = value.as_str() {
            return out.write_str(text).map_err(Error::from);
        }
        let text = text(state, value)?;
        out.write_str(&text).map_err(Error::from)
    });
    env.add_function("_mut", mutable);
    env.add_function("zip", zip);
    env.add_function("cycler", minijinja_contrib::globals::cycler);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("string", |state: &State, value: &Value| text(state, value));
    env.add_filter("lower", |state: &State, value: &Value| text(state, value).map(|text| text.to_lowercase()));
    env.add_filter("upper", |state: &State, value: &Value| text(state, value).map(|text| text.to_uppercase()));
    env.add_filter("title", |state: &State, value: &Value| {
        text(state, value).map(|text| minijinja::filters::title(text.into()))
    });
    env.add_filter("capitalize", |state: &State, value: &Value| text(state, value).map(|text| capitalized(&text)));
    env.add_filter("trim", trim);
    env.add_filter("replace", replace);
    env.add_filter("center", center);
    env.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    env.add_filter("join", join);
    env.add_filter("truncate", truncate);
    env.add_filter("tojson", to_json);
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_filter("forceescape", escape);
    env.add_filter("wordcount", wordcount);
    env.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    env.add_filter("striptags", minijinja_contrib::filters::striptags);
    env.add_filter("choice", choice);
    env.add_filter("random", random);
    env.add_filter("most_frequent", most_frequent);
    env.add_filter("highlight", |text: &str| format!("<span style='color: #F08080'>{text}</span>"));
}

/// Filters that the checker does not know of, because the other dialect lacks them.
pub const FILTERS: [&str; 9] = [
    "choice",
    "random",
    "most_frequent",
    "highlight",
    "truncate",
    "forceescape",
    "wordcount",
    "filesizeformat",
    "striptags",
];

/// Functions of which the same holds.
pub const FUNCTIONS: [&str; 3] = ["zip", "cycler", "joiner"];

fn failed(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

// Arguments, which Python lets be given by place or by name.

type Given = Rest<ValueOrKwargs>;

fn arguments<const N: usize>(names: [&'static str; N], given: Given) -> Result<[Option<Value>; N], Error> {
    let mut positional = given.into_values();
    let last = positional.last().filter(|last| last.as_object().is_some()).cloned();
    let named = match last.map(Kwargs::try_from) {
        Some(Ok(named)) => {
            positional.pop();
            named
        }
        _ => Kwargs::from_iter(std::iter::empty::<(&str, Value)>()),
    };
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut bound = names.map(|_| None);
    for (i, name) in names.iter().enumerate() {
        bound[i] = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
    }
    named.assert_all_used()?;
    Ok(bound)
}

fn text_or(value: &Option<Value>, default: &str) -> Result<String, Error> {
    match value {
        None => Ok(default.to_owned()),
        Some(value) => value.as_str().map(str::to_owned).ok_or_else(|| failed("expected text as an argument")),
    }
}

fn number_or(value: &Option<Value>, default: i64) -> Result<i64, Error> {
    match value {
        None => Ok(default),
        Some(value) => value.as_i64().ok_or_else(|| failed("expected a number as an argument")),
    }
}

// Filters.

/// Jinja2's `int`: 0, or the default given, where there is no number.
fn int(value: &Value, rest: Given) -> Result<Value, Error> {
    let [default, base] = arguments(["default", "base"], rest)?;
    let base = u32::try_from(number_or(&base, 10)?).ok().filter(|b| (2..=36).contains(b));
    let base = base.ok_or_else(|| failed("a base is from 2 to 36"))?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value is no number"));
    }
    Ok(number(value, base).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0))))
}

fn number(value: &Value, base: u32) -> Option<Value> {
    let whole = |float: f64| (float.is_finite() && float.abs() < 1e38).then(|| Value::from(float as i128));
    match value.kind() {
        ValueKind::String => {
            let digits = strip(value.as_str()?);
            let plain = without_underscores(digits)?.to_lowercase();
            let prefix = match base {
                2 => "0b",
                8 => "0o",
                16 => "0x",
                _ => "",
            };
            let parsed = i128::from_str_radix(plain.strip_prefix(prefix).unwrap_or(&plain), base).ok();
            parsed.map(Value::from).or_else(|| parse_float(digits).and_then(whole))
        }
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => f64::try_from(value.clone()).ok().and_then(whole),
        _ => None,
    }
}

/// Jinja2's `float`: 0.0, or the default given, where there is no number.
fn float(value: &Value, rest: Given) -> Result<Value, Error> {
    let [default] = arguments(["default"], rest)?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value is no number"));
    }
    let parsed = match value.kind() {
        ValueKind::String => parse_float(strip(value.as_str().unwrap_or_default())),
        ValueKind::Bool => Some(if value.is_true() { 1.0 } else { 0.0 }),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    };
    Ok(parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// Python allows single underscores between digits.
fn without_underscores(digits: &str) -> Option<String> {
    let bytes = digits.as_bytes();
    let misplaced = |i: usize| {
        let digit = |j: Option<usize>| j.and_then(|j| bytes.get(j)).is_some_and(u8::is_ascii_alphanumeric);
        bytes[i] == b'_' && !(digit(i.checked_sub(1)) && digit(Some(i + 1)))
    };
    (!(0..bytes.len()).any(misplaced)).then(|| digits.replace('_', ""))
}

fn parse_float(digits: &str) -> Option<f64> {
    without_underscores(digits)?.parse().ok()
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().map_or_else(String::new, |c| c.to_uppercase().collect());
    first + &characters.as_str().to_lowercase()
}

fn trim(state: &State, value: &Value, rest: Given) -> Result<String, Error> {
    let [chars] = arguments(["chars"], rest)?;
    let text = text(state, value)?;
    Ok(match chars.filter(|chars| !chars.is_none()) {
        None => strip(&text).to_owned(),
        Some(chars) => {
            let chars: Vec<char> = text_or(&Some(chars), "")?.chars().collect();
            text.trim_matches(&chars[..]).to_owned()
        }
    })
}

/// Jinja2's `replace`, which makes text of whatever it is given.
fn replace(state: &State, value: &Value, rest: Given) -> Result<String, Error> {
    let [old, new, count] = arguments(["old", "new", "count"], rest)?;
    let (Some(old), Some(new)) = (old, new) else { return Err(Error::from(ErrorKind::MissingArgument)) };
    let (text, old, new) = (text(state, value)?, self::text(state, &old)?, self::text(state, &new)?);
    let count = count.filter(|count| !count.is_none()).map(|count| number_or(&Some(count), -1)).transpose()?;
    let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    // The result is paid for before it is made.
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(&old).count() };
    state.consume_fuel(1 + (text.len() + found.min(most) * new.len()) as u64 / 64)?;
    Ok(text.replacen(&old, &new, most))
}

fn center(state: &State, value: &Value, rest: Given) -> Result<Value, Error> {
    let [width] = arguments(["width"], rest)?;
    let width = Value::from(number_or(&width, 80)?);
    string_method(state, &text(state, value)?, "center", &[width])
}

fn join(state: &State, value: &Value, rest: Given) -> Result<String, Error> {
    let [separator, attribute] = arguments(["d", "attribute"], rest)?;
    let separator = match separator {
        Some(separator) => text(state, &separator)?,
        None => String::new(),
    };
    if value.is_none() {
        return Err(failed("there is nothing to join"));
    }
    let mut joined = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        if i > 0 {
            joined.push_str(&separator);
        }
        let item = match &attribute {
            Some(path) => match path.as_str() {
                Some(path) => path.split('.').try_fold(item, |item, name| match name.parse::<i64>() {
                    Ok(index) => item.get_item(&Value::from(index)),
                    Err(_) => item.get_attr(name),
                })?,
                None => item.get_item(path)?,
            },
            None => item,
        };
        let item = text(state, &item)?;
        state.consume_fuel(1 + (separator.len() + item.len()) as u64 / 64)?;
        joined.push_str(&item);
    }
    Ok(joined)
}

/// Jinja2's `truncate`: text that is longer by no more than the leeway stays as it is.
fn truncate(state: &State, value: &Value, rest: Given) -> Result<String, Error> {
    let [length, killwords, end, leeway] = arguments(["length", "killwords", "end", "leeway"], rest)?;
    if value.kind() != ValueKind::String && !value.is_undefined() {
        return Err(failed("only text can be truncated"));
    }
    let text = text(state, value)?;
    let end = text_or(&end, "...")?;
    let (length, leeway) = (number_or(&length, 255)?, number_or(&leeway, 5)?);
    let room = length - end.chars().count() as i64;
    if room < 0 || leeway < 0 {
        return Err(failed(format!("{length} characters have no room for {end:?}")));
    }
    if text.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(room as usize).collect();
    let whole_words = !killwords.is_some_and(|k| k.is_true());
    let kept = if whole_words { kept.rsplit_once(' ').map_or(kept.as_str(), |(head, _)| head) } else { &kept };
    Ok(format!("{kept}{end}"))
}

/// Jinja2's `wordcount`: runs of word characters.
fn wordcount(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

/// MarkupSafe's `escape`.
fn escape(state: &State, value: &Value) -> Result<String, Error> {
    let mut escaped = String::new();
    for c in text(state, value)?.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Ok(escaped)
}

/// Python's `zip`, as a list.
fn zip(state: &State, sides: Rest<Value>) -> Result<Value, Error> {
    let mut sides = sides.iter().map(Value::try_iter).collect::<Result<Vec<_>, _>>()?;
    let mut tuples = Vec::new();
    while !sides.is_empty() {
        let items: Vec<Value> = sides.iter_mut().map_while(Iterator::next).collect();
        if items.len() < sides.len() {
            break;
        }
        state.consume_fuel(1 + items.len() as u64)?;
        tuples.push(Value::from(Tuple::new(items)));
    }
    Ok(Value::from(tuples))
}

// promptsource's filters.

/// Where a template finds the draws of its row. No template can name it: it is no identifier.
pub const DRAWS: &str = "draws of the row";

/// The random numbers of one rendering: the first `choice` takes draw 0, the next draw 1.
#[derive(Debug)]
pub struct Draws {
    stream: Stream,
    next: AtomicU64,
}

/// The draws of one rendering, as a value for its context.
pub fn draws(stream: Stream) -> Value {
    Value::from_object(Draws { stream, next: AtomicU64::new(0) })
}

impl Object for Draws {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

fn drawn(state: &State, value: &Value) -> Result<Option<Value>, Error> {
    let draws = state.lookup(DRAWS).ok_or_else(|| failed("there is nothing to draw from here"))?;
    let draws = draws.downcast_object_ref::<Draws>().ok_or_else(|| failed("there is nothing to draw from here"))?;
    let items: Vec<Value> = match value.kind() {
        ValueKind::Map => return Err(failed("a choice is made from a list")),
        _ => value.try_iter()?.collect(),
    };
    if items.is_empty() {
        return Ok(None);
    }
    let draw = draws.stream.draw(draws.next.fetch_add(1, Ordering::Relaxed));
    // The high half of the product: every item with the same probability, as far as 64 bits reach.
    let index = (u128::from(draw) * items.len() as u128) >> 64;
    Ok(items.into_iter().nth(index as usize))
}

fn choice(state: &State, value: &Value) -> Result<Value, Error> {
    drawn(state, value)?.ok_or_else(|| failed("cannot choose from an empty list"))
}

/// Jinja2's `random`, which lets an empty list pass.
fn random(state: &State, value: &Value) -> Result<Value, Error> {
    Ok(drawn(state, value)?.unwrap_or(Value::UNDEFINED))
}

/// The items that occur most often, in the order in which they come first; none of nothing.
fn most_frequent(state: &State, value: &Value) -> Result<Value, Error> {
    if !value.is_true() {
        return Ok(Value::from(()));
    }
    let mut places: HashMap<Value, usize> = HashMap::new();
    let mut counts: Vec<(Value, u64)> = Vec::new();
    for item in value.try_iter()? {
        state.consume_fuel(1)?;
        if !is_hashable(&item) {
            return Err(failed("lists and dicts cannot be counted"));
        }
        let place = *places.entry(item.clone()).or_insert(counts.len());
        match counts.get_mut(place) {
            Some((_, count)) => *count += 1,
            None => counts.push((item, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    Ok(counts.into_iter().filter(|(_, count)| Some(*count) == most).map(|(item, _)| item).collect())
}

// Python's methods.

/// Widest that a text may be asked to become; more than any prompt has, less than what would fill the memory.
const WIDEST: i64 = 100_000;

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(subject) = value.as_str() {
        match string_method(state, subject, name, args) {
            Err(error) if error.kind() == ErrorKind::UnknownMethod => {}
            result => return result,
        }
    }
    if value.kind() == ValueKind::Seq && name == "index" {
        let (wanted,): (&Value,) = from_args(args)?;
        return position(state, value, wanted);
    }
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && name == "copy" {
        let () = from_args(args)?;
        return mutable(value);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn position(state: &State, list: &Value, wanted: &Value) -> Result<Value, Error> {
    for (i, item) in list.try_iter()?.enumerate() {
        state.consume_fuel(1)?;
        if &item == wanted {
            return Ok(Value::from(i));
        }
    }
    Err(failed("the list has no such item"))
}

fn string_method(state: &State, subject: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let characters = |bytes: usize| subject[..bytes].chars().count();
    Ok(match name {
        "strip" | "lstrip" | "rstrip" if args.is_empty() => Value::from(match name {
            "strip" => strip(subject),
            "lstrip" => subject.trim_start_matches(is_space),
            _ => subject.trim_end_matches(is_space),
        }),
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let found = if name == "index" { subject.find(part) } else { subject.rfind(part) };
            Value::from(characters(found.ok_or_else(|| failed("the text has no such part"))?))
        }
        "title" => {
            let () = from_args(args)?;
            let mut inside = false;
            let mut titled = String::new();
            for c in subject.chars() {
                match inside {
                    true => titled.extend(c.to_lowercase()),
                    false => titled.extend(c.to_uppercase()),
                }
                inside = c.is_alphabetic();
            }
            Value::from(titled)
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Value::from(subject.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(subject.to_lowercase().replace('ß', "ss"))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let parts =
                if name == "partition" { subject.split_once(separator) } else { subject.rsplit_once(separator) };
            let parts = match parts {
                _ if separator.is_empty() => return Err(failed("an empty separator")),
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [subject, "", ""],
                None => ["", "", subject],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|m| usize::try_from(m).ok()).unwrap_or(usize::MAX - 1);
            let mut parts: Vec<&str> = match separator {
                Some("") => return Err(failed("an empty separator")),
                Some(separator) => subject.rsplitn(most + 1, separator).collect(),
                None => {
                    let mut rest = subject.trim_end_matches(is_space);
                    let mut words = Vec::new();
                    while !rest.is_empty() {
                        match rest.rfind(is_space).filter(|_| words.len() < most) {
                            Some(at) => {
                                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                                words.push(&rest[at + width..]);
                                rest = rest[..at].trim_end_matches(is_space);
                            }
                            None => words.push(std::mem::take(&mut rest)),
                        }
                    }
                    words
                }
            };
            parts.reverse();
            Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let item = item.as_str().ok_or_else(|| failed(format!("item {i} of what is joined is not text")))?;
                state.consume_fuel(1 + (subject.len() + item.len()) as u64 / 64)?;
                if i > 0 {
                    joined.push_str(subject);
                }
                joined.push_str(item);
            }
            Value::from(joined)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(subject.strip_prefix(prefix).unwrap_or(subject))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(subject.strip_suffix(suffix).unwrap_or(subject))
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            if width > WIDEST {
                return Err(failed(format!("a width of {width}, and {WIDEST} is the widest")));
            }
            let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
            let missing = (width - subject.chars().count() as i64).max(0) as usize;
            state.consume_fuel(missing as u64 / 64)?;
            let before = match name {
                "ljust" => 0,
                "center" => missing / 2 + (missing & width as usize & 1), // as CPython rounds it
                _ => missing,
            };
            let sign = subject.starts_with(['+', '-']) && name == "zfill";
            let (sign, digits) = subject.split_at(usize::from(sign));
            Value::from(format!("{sign}{}{digits}{}", fill.repeat(before), fill.repeat(missing - before)))
        }
        // The engine would take the memory first and look at the fuel then.
        "format" if widths(subject).any(|width| width > WIDEST) => {
            return Err(failed(format!("a width of more than {WIDEST}")));
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// The numbers in a format string, of which some are widths.
fn widths(format: &str) -> impl Iterator<Item = i64> + '_ {
    format.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty()).map(|d| d.parse().unwrap_or(i64::MAX))
}
