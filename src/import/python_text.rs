//! Patterns out of Python source: dicts of lists of pairs of strings, read as text and never run.
//!
//! ```python
//! PATTERNS = {
//!     "group": [
//!         ("{premise}\n" "Is this so?", "{answer}"),  # neighbours are one string
//!     ],
//! }
//! PATTERNS["other"] = PATTERNS["group"]
//! ```
//!
//! That is all that is understood. Imports and docstrings are passed over; whatever else stands at the top of the file is
//! reported with its line, because it may have changed what the dicts hold.

use std::ops::Range;
use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};

/// A pair of patterns: inputs and targets.
pub type Pair = (String, String);

/// A dict of the file, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Dict {
    pub name: String,
    /// In the order in which the groups were first set.
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub pairs: Vec<Pair>,
    pub place: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    /// A string that is no plain text, and why.
    Unreadable(String),
    /// Punctuation, operators and digits, by character.
    Sign(char),
    /// The end of a line outside of brackets.
    End,
    /// The line that begins here is part of the statement before it.
    Indent,
}

/// The dicts of a file, and what was not understood.
pub fn read(source: &Arc<Source>) -> (Vec<Dict>, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let tokens = match tokens(&source.text) {
        Ok(tokens) => tokens,
        Err((range, message)) => {
            diagnostics.push(complaint(source, range, message));
            return (Vec::new(), diagnostics);
        }
    };
    let mut dicts: Vec<Dict> = Vec::new();
    for statement in statements(&tokens) {
        if let Err((range, message)) = read_statement(statement, &mut dicts) {
            diagnostics.push(complaint(source, range, message));
        }
    }
    dicts.retain(|dict| !dict.groups.is_empty());
    (dicts, diagnostics)
}

fn complaint(source: &Arc<Source>, range: Range<usize>, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error("python", message)
        .at(Span { source: source.clone(), range })
        .label("not taken over")
        .expected("`NAME = {\"group\": [(\"inputs\", \"targets\"), …]}` or `NAME[\"group\"] = NAME[\"other\"]`")
}

type Placed = (Token, Range<usize>);
type Complaint = (Range<usize>, String);

/// Statements at the top of the file, each with the indented lines that belong to it.
fn statements(tokens: &[Placed]) -> Vec<&[Placed]> {
    let mut statements = Vec::new();
    let mut start = 0;
    for (i, (token, _)) in tokens.iter().enumerate() {
        let next_is_indented = matches!(tokens.get(i + 1), Some((Token::Indent, _)));
        if *token == Token::End && !next_is_indented {
            statements.push(&tokens[start..i]);
            start = i + 1;
        }
    }
    statements.push(&tokens[start..]);
    statements.retain(|statement| !statement.is_empty());
    statements
}

fn read_statement(statement: &[Placed], dicts: &mut Vec<Dict>) -> Result<(), Complaint> {
    let mut parser = Parser { rest: statement };
    let place = statement[0].1.clone();
    let not_understood = || (place.clone(), "this statement is not understood".to_owned());
    match &statement[0].0 {
        Token::Text(_) => return Ok(()), // a docstring
        Token::Name(word) if word == "import" || word == "from" => return Ok(()),
        Token::Name(_) => {}
        _ => return Err(not_understood()),
    }
    let name = parser.name().ok_or_else(not_understood)?;
    if parser.sign('[') {
        let group = parser.text()?;
        parser.expect(']')?;
        parser.expect('=')?;
        let pairs = parser.pairs(dicts)?;
        parser.done()?;
        set(dicts, name, Group { name: group, pairs, place });
        return Ok(());
    }
    if !parser.sign('=') || !parser.sign('{') {
        return Err(not_understood());
    }
    // A dict that is set again begins anew. Its groups are kept only if all of it is understood: the name of a group
    // may be set twice, and the last one counts.
    let mut groups: Vec<Group> = Vec::new();
    while !parser.sign('}') {
        let place = parser.place();
        let group = parser.text()?;
        parser.expect(':')?;
        let pairs = parser.pairs(dicts)?;
        match groups.iter_mut().find(|known| known.name == group) {
            Some(known) => known.pairs = pairs,
            None => groups.push(Group { name: group, pairs, place }),
        }
        if !parser.sign(',') {
            parser.expect('}')?;
            break;
        }
    }
    parser.done()?;
    dicts.retain(|dict| dict.name != name);
    dicts.push(Dict { name, groups });
    Ok(())
}

fn set(dicts: &mut Vec<Dict>, name: String, group: Group) {
    if dicts.iter().all(|dict| dict.name != name) {
        dicts.push(Dict { name: name.clone(), groups: Vec::new() });
    }
    for dict in dicts.iter_mut().filter(|dict| dict.name == name) {
        match dict.groups.iter_mut().find(|known| known.name == group.name) {
            Some(known) => known.pairs = group.pairs.clone(),
            None => dict.groups.push(group.clone()),
        }
    }
}

/// Reads one statement from the left.
struct Parser<'t> {
    rest: &'t [Placed],
}

impl Parser<'_> {
    fn place(&self) -> Range<usize> {
        self.rest.first().map_or(0..0, |(_, range)| range.clone())
    }

    fn name(&mut self) -> Option<String> {
        match self.rest {
            [(Token::Name(name), _), rest @ ..] => {
                self.rest = rest;
                Some(name.clone())
            }
            _ => None,
        }
    }

    fn sign(&mut self, sign: char) -> bool {
        match self.rest {
            [(Token::Sign(found), _), rest @ ..] if *found == sign => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, sign: char) -> Result<(), Complaint> {
        if self.sign(sign) { Ok(()) } else { Err((self.place(), format!("expected `{sign}` here"))) }
    }

    fn done(&self) -> Result<(), Complaint> {
        if self.rest.is_empty() { Ok(()) } else { Err((self.place(), "the statement goes on".to_owned())) }
    }

    /// One string, of one or several literals, in brackets or not.
    fn text(&mut self) -> Result<String, Complaint> {
        if self.sign('(') {
            let text = self.text()?;
            self.expect(')')?;
            return Ok(text);
        }
        let mut text = String::new();
        let mut found = false;
        loop {
            match self.rest {
                [(Token::Text(part), _), rest @ ..] => {
                    text.push_str(part);
                    self.rest = rest;
                    found = true;
                }
                [(Token::Sign('+'), _), (Token::Text(_), _), ..] if found => self.rest = &self.rest[1..],
                [(Token::Unreadable(why), _), ..] => return Err((self.place(), why.clone())),
                _ if found => return Ok(text),
                _ => return Err((self.place(), "expected a string here".to_owned())),
            }
        }
    }

    /// A list of pairs, or the one of a group that is known.
    fn pairs(&mut self, dicts: &[Dict]) -> Result<Vec<Pair>, Complaint> {
        let place = self.place();
        if let Some(name) = self.name() {
            self.expect('[')?;
            let group = self.text()?;
            self.expect(']')?;
            let known = dicts.iter().find(|dict| dict.name == name);
            let known = known.and_then(|dict| dict.groups.iter().find(|known| known.name == group));
            return match known {
                Some(known) => Ok(known.pairs.clone()),
                None => Err((place, format!("`{name}` has no group `{group}` at this point"))),
            };
        }
        self.expect('[')?;
        let mut pairs = Vec::new();
        while !self.sign(']') {
            pairs.push(self.pair()?);
            if !self.sign(',') {
                self.expect(']')?;
                break;
            }
        }
        Ok(pairs)
    }

    fn pair(&mut self) -> Result<Pair, Complaint> {
        let close = if self.sign('[') { ']' } else { ')' };
        if close == ')' {
            self.expect('(')?;
        }
        let inputs = self.text()?;
        self.expect(',')?;
        let targets = self.text()?;
        self.sign(',');
        self.expect(close)?;
        Ok((inputs, targets))
    }
}

/// The tokens of a file, without comments. An error is of the file: where a string has no end, nothing can be told.
fn tokens(text: &str) -> Result<Vec<Placed>, Complaint> {
    let mut tokens: Vec<Placed> = Vec::new();
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let start = at;
        match c {
            '\n' => {
                at += 1;
                let ended = matches!(tokens.last(), None | Some((Token::End | Token::Indent, _)));
                if depth == 0 && !ended {
                    tokens.push((Token::End, start..at));
                }
            }
            '#' => at += rest.find('\n').unwrap_or(rest.len()),
            '\\' if rest[1..].starts_with('\n') || rest[1..].starts_with("\r\n") => {
                at += rest.find('\n').map_or(rest.len(), |end| end + 1);
            }
            c if c.is_whitespace() || c == '\u{feff}' => {
                at += c.len_utf8();
                let begins = start == 0 || text[..start].ends_with('\n');
                let line = rest.split('\n').next().unwrap_or("").trim_start();
                let blank = line.is_empty() || line.starts_with('#');
                if begins && depth == 0 && !blank && c != '\u{feff}' {
                    tokens.push((Token::Indent, start..at));
                }
            }
            c if c.is_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                let word = &rest[..end];
                let is_prefix = word.len() <= 2 && word.chars().all(|c| "rRuUbBfF".contains(c));
                if is_prefix && rest[end..].starts_with(['"', '\'']) {
                    let (token, length) = literal(&rest[end..], word).map_err(|m| (start..at + end + 1, m))?;
                    at += end + length;
                    tokens.push((token, start..at));
                } else {
                    at += end;
                    tokens.push((Token::Name(word.to_owned()), start..at));
                }
            }
            '"' | '\'' => {
                let (token, length) = literal(rest, "").map_err(|m| (start..start + 1, m))?;
                at += length;
                tokens.push((token, start..at));
            }
            sign => {
                at += sign.len_utf8();
                match sign {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                tokens.push((Token::Sign(sign), start..at));
            }
        }
    }
    Ok(tokens)
}

/// The string literal that `text` begins with, and its length; `prefix` stood before its quotes.
fn literal(text: &str, prefix: &str) -> Result<(Token, usize), String> {
    let quote = &text[..1];
    let long = quote.repeat(3);
    let quotes = if text.starts_with(&long) { long.as_str() } else { quote };
    let mut end = quotes.len();
    while !text[end..].starts_with(quotes) {
        let mut characters = text[end..].chars();
        let c = characters.next().ok_or("a string without an end")?;
        // Even a raw string goes on behind a quote with a backslash.
        end += c.len_utf8() + if c == '\\' { characters.next().map_or(0, char::len_utf8) } else { 0 };
        if c == '\n' && quotes.len() == 1 {
            return Err("a string that ends with its line".to_owned());
        }
    }
    // Python reads every kind of line end as one.
    let content = text[quotes.len()..end].replace("\r\n", "\n");
    let token = match prefix.to_lowercase().as_str() {
        "" | "u" => unescape(&content).map_or_else(Token::Unreadable, Token::Text),
        "r" => Token::Text(content),
        other => Token::Unreadable(format!("a string with the prefix `{other}` is not a pattern")),
    };
    Ok((token, end + quotes.len()))
}

fn unescape(content: &str) -> Result<String, String> {
    let mut value = String::new();
    let mut rest = content;
    while let Some(at) = rest.find('\\') {
        value.push_str(&rest[..at]);
        let escaped = &rest[at + 1..];
        let next = escaped.chars().next().ok_or("a string that ends with a backslash")?;
        rest = &escaped[escape(escaped, next, &mut value)?..];
    }
    value.push_str(rest);
    Ok(value)
}

/// Adds what an escape stands for, of which `text` is the part behind the backslash; returns its length.
fn escape(text: &str, next: char, value: &mut String) -> Result<usize, String> {
    let code = |digits: Option<&str>, radix: u32| {
        digits.and_then(|d| u32::from_str_radix(d, radix).ok()).and_then(char::from_u32)
    };
    let hexadecimal = |length: usize| {
        let found = code(text.get(1..1 + length), 16);
        found.ok_or_else(|| format!("`\\{}` is no character", text.chars().take(1 + length).collect::<String>()))
    };
    let (c, length) = match next {
        '\n' => return Ok(1),
        'n' => ('\n', 1),
        't' => ('\t', 1),
        'r' => ('\r', 1),
        'a' => ('\u{7}', 1),
        'b' => ('\u{8}', 1),
        'f' => ('\u{c}', 1),
        'v' => ('\u{b}', 1),
        '\\' | '\'' | '"' => (next, 1),
        'x' => (hexadecimal(2)?, 3),
        'u' => (hexadecimal(4)?, 5),
        'U' => (hexadecimal(8)?, 9),
        'N' if text[1..].starts_with('{') => return Err("a character that is given by its name".to_owned()),
        '0'..='7' => {
            let length = text.chars().take(3).take_while(|c| c.is_digit(8)).count();
            (code(text.get(..length), 8).ok_or("an escape that is no character")?, length)
        }
        other => {
            value.push('\\'); // it is none, and Python leaves it as it is
            (other, other.len_utf8())
        }
    };
    value.push(c);
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> (Vec<Dict>, Vec<String>) {
        let source = Source::new("t.py", text);
        let (dicts, diagnostics) = read(&source);
        let said = diagnostics.iter().map(|d| {
            let crate::diag::Place::Span(span) = &d.place else { panic!("no place") };
            format!("{}: {}", source.line_column(span.range.start).0, d.message)
        });
        (dicts, said.collect())
    }

    fn pairs(dicts: &[Dict], group: &str) -> Vec<Pair> {
        dicts[0].groups.iter().find(|g| g.name == group).unwrap().pairs.clone()
    }

    #[test]
    fn literals_have_the_values_that_python_gives_them() {
        for (written, value) in [
            (r#""a\n\t\\\"b""#, "a\n\t\\\"b"),
            (r#"'it"s'"#, "it\"s"),
            (r#""a" 'b' "c""#, "abc"),
            (r#"("a" + "b")"#, "ab"),
            (r#""\x41\u00e9\U0001F600\101\0""#, "A\u{e9}\u{1F600}A\0"),
            (r#""\d\w""#, "\\d\\w"),
            (r#"r"\n\"" "#, "\\n\\\""),
            ("\"\"\"a\n\"b\" ''\n\"\"\"", "a\n\"b\" ''\n"),
            ("\"a\\\n  b\"", "a  b"),
            ("(\"a\"  # why\n  \"b\")", "ab"),
        ] {
            let (dicts, said) = check(&format!("P = {{'g': [({written}, 'y')]}}\n"));
            assert!(said.is_empty(), "{written}: {said:?}");
            assert_eq!(pairs(&dicts, "g"), [(value.to_owned(), "y".to_owned())], "{written}");
        }
    }

    #[test]
    fn aliases_share_what_stands_at_that_point() {
        let (dicts, said) = check(
            "\"\"\"Doc.\"\"\"\nimport x\nP = {\n  'a': [('1', '2'),],\n}\nP[\n  'b'] = P['a']\nP['a'] = [('3', '4')]\n",
        );
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(pairs(&dicts, "a"), [("3".to_owned(), "4".to_owned())]);
        assert_eq!(pairs(&dicts, "b"), [("1".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn whatever_else_is_reported_with_its_line() {
        let (dicts, said) = check(
            "P = {'a': [('1', '2')]}\nQ = copy(P)\nfor k in P:\n  del P[k]\n\nP.update(\n  {})\nR = {'x': [F('1', '2')]}\nS = {'x': [(f'1', '2')]}\n",
        );
        assert_eq!(dicts.len(), 1);
        let lines =
            ["2: this statement", "3: this statement", "6: this statement", "8: expected `(` here", "9: a string with"];
        assert_eq!(said.len(), lines.len(), "{said:?}");
        assert!(said.iter().zip(lines).all(|(said, line)| said.starts_with(line)), "{said:?}");
    }
}
