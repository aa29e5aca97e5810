//! The strings that both engines must agree on before anything is compiled.
//!
//! Pieces that tokenizers are known to trip over, alone and glued to one another, and the text of every
//! added token in every company. About two thousand strings and under 100 KB, the same at every call.

/// Part of a verdict's key: change it with the strings.
pub const VERSION: u32 = 1;

/// Pairs of pieces that are glued together. With the pieces alone it makes about two thousand strings.
const PAIRS: usize = 1_500;

/// Added tokens whose company is varied; some vocabularies reserve hundreds, all alike.
const TOKENS_VARIED: usize = 40;

const PIECES: &[&str] = &[
    // English, in sentences and in scraps
    "The quick brown fox jumps over the lazy dog.",
    "Premise: The ferry left at noon.\n\nHypothesis: The ferry was late.\n\nOPTIONS:\n- yes\n- no",
    "Does the premise entail the hypothesis?",
    "I can't, you'll, we've, she'd, they're, it's, I'm",
    "CAN'T YOU'LL WE'VE IT'S",
    "can’t ‘quoted’ “double” – dash — em…",
    "Mr. O'Neill-Smith's e-mail; state-of-the-art (1st ed.)",
    "a",
    "I",
    "Zz",
    "the",
    " the",
    "the ",
    " of the ",
    "McDonald iPhone XMLHttpRequest snake_case_name kebab-case camelCaseName SCREAMING_CASE",
    "UPPER lower Title mIxEd",
    "antidisestablishmentarianism",
    "Answer:",
    "'s",
    "'S",
    "'",
    "''",
    "s's'",
    // Code and markup
    "def f(x: int) -> int:\n    return x ** 2 if x > 0 else -x\n",
    "\tif (a[i] != b->c && !d) { ++e; } // comment\n",
    "for i in 0..=n { println!(\"{i:>8}\"); }",
    "<div class=\"a b\">&lt;p&gt; &amp; &#x27;</div>",
    "SELECT * FROM t WHERE a='b' -- c",
    "$x^2 + \\frac{1}{2} = \\alpha_{i,j}$",
    "{{ premise }}\n{% if x %}y{% endif %}",
    "{\"key\": [1, 2.5e-10, null, true]}",
    "#!/bin/sh\nset -eu\n",
    "```rust\nlet x = 1;\n```",
    "__init__ === !== <=> |> :: => ->",
    "0x1F 0b101 1e9 1_000 .5 5.",
    // Numbers, money, dates, places
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345",
    "123456789012345678901234567890",
    "3.14159 1,000,000.00 -5 +6 ±7",
    "$3.50 €12 £7 ¥900 17% 1/2 #3",
    "2021-03-14T15:09:26Z 3:45pm 12/31/99",
    "½ ² ³ ₁ ① Ⅳ ㊿ ๓ ٣ ३",
    "https://example.org/a/b.html?x=1&y=%20#top",
    "www.example.com user.name+tag@example.co.uk ftp://h:21/",
    "C:\\Users\\x\\file.txt /usr/local/bin ../../",
    "192.168.0.1 ::1 @user #topic",
    // White space and line ends
    " ",
    "  ",
    "   ",
    "        ",
    "                                                                 ",
    "\n",
    "\n\n",
    "\n\n\n\n",
    "\r\n",
    "\r\n\r\n",
    "\r",
    "\t",
    "\t\t\t",
    " \t \n \r\n ",
    "\n ",
    " \n",
    "  \n  ",
    "a  b   c    d",
    "a\nb\r\nc\rd\te",
    "trailing   ",
    "   leading",
    "\u{a0}",
    "a\u{a0}b",
    "\u{3000}",
    "\u{2003}\u{2009}\u{200a}\u{202f}",
    "\u{2028}\u{2029}\u{85}",
    "\u{b}\u{c}\u{1c}\u{1f}",
    "\u{1680}x\u{205f}y",
    // Scripts
    "Les élèves ont mangé à Noël où ça",
    "Größe Straße äöü ÄÖÜ ß ẞ",
    "¿Dónde está el niño? ¡Aquí!",
    "Zażółć gęślą jaźń",
    "İstanbul ılık ığdır",
    "Ǆ ǅ ǆ ﬀ ﬁ ﬃ Ŀ ŉ",
    "Ελληνικά, ΣΊΣΥΦΟΣ σίσυφος",
    "Съешь же ещё этих мягких булок",
    "Їжак ґанок",
    "Հայերեն",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ",
    "שָׁלוֹם עוֹלָם",
    "العَرَبِيَّة ١٢٣ لا",
    "فارسی می‌خواهم",
    "हिन्दी क्षत्रिय ज्ञान",
    "বাংলা தமிழ் తెలుగు മലയാളം",
    "ภาษาไทยไม่มีวรรค",
    "ພາສາລາວ မြန်မာ ខ្មែរ",
    "བོད་སྐད།",
    "አማርኛ።",
    "中文分词没有空格。",
    "繁體中文「引號」",
    "日本語の文章、カタカナとひらがな。",
    "ｶﾀｶﾅ ＦＵＬＬ　ｗｉｄｔｈ　１２３",
    "한국어 문장 띄어쓰기",
    "\u{1100}\u{1161}\u{11a8}",
    "𠮷野家 𝒜𝓁𝓅𝒽𝒶 𝟙𝟚𝟛 𐍈 𐐷",
    "ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⵜⵉⴼⵉⵏⴰⵖ",
    "Tiếng Việt đặc biệt",
    "mixed中文English日本語русскийعربي",
    // Marks, joiners, directions
    "e\u{301}",
    "é",
    "n\u{303}o",
    "A\u{30a}",
    "Å",
    "Z\u{351}\u{36b}\u{343}a\u{363}\u{360}l\u{328}\u{489}g\u{321}o\u{489}",
    "\u{301}",
    "\u{301}\u{302}x",
    "q\u{307}\u{323} q\u{323}\u{307}",
    "zero\u{200b}width",
    "join\u{200d}er non\u{200c}joiner",
    "\u{feff}bom",
    "bom\u{feff}",
    "soft\u{ad}hyphen",
    "word\u{2060}joiner",
    "\u{202e}right to left\u{202c}",
    "\u{200f}\u{200e}\u{2066}x\u{2069}",
    "👍",
    "👍🏽",
    "👩‍👩‍👧‍👦",
    "👩‍🚒🏳️‍🌈🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "🇸🇪🇯🇵🇸",
    "☂️ ☂ ❤️ 1️⃣ ™ ©",
    "😀😀😀😀",
    "→ ⇒ ∀x∈ℝ ∑ ∞ ≠ ≤",
    "─│┌┐ ▁▂▃ █",
    // What looks broken
    "\0",
    "a\0b",
    "\u{1}\u{2}\u{7}\u{8}\u{1b}[31mred\u{1b}[0m\u{7f}",
    "\u{80}\u{9f}",
    "\u{fffd}",
    "a\u{fffd}\u{fffd}b",
    "\u{fffe}\u{ffff}",
    "\u{e000}\u{f8ff}",
    "\u{10ffff}",
    "\u{fdd0}\u{1fffe}",
    "\\n \\u0041 \\x00 \\ud800 \\",
    "%0A %ZZ %E2%80 &nbsp; &#0;",
    "ÃƒÂ© â€™ Ã",
    "Ġthe Ċ ĉ Ā Ń",
    "▁the▁ ▁▁ _",
    "##ing ## #",
    "</w> @@ ▂",
    "<0x0A><0xFF> <0x> <0xG0>",
    "<unk> [UNK] <UNK>",
    "<s> </s> <pad> [CLS] [SEP] [MASK] <mask>",
    "<|endoftext|> <|im_start|>user <|im_end|> [INST] <<SYS>>",
    "<extra_id_0> <bos><eos>",
    "<|",
    "|>",
    "< s >",
    "</",
    // Punctuation in numbers
    "!",
    "!!",
    "?!?!?!",
    "...",
    "......",
    "-----",
    "=====",
    "*****",
    "(((())))",
    "\"'`´¨^~",
    ", . ; : ! ?",
    "a,b.c;d:e!f?g",
    " .",
    " ,\n",
    ")\n\n",
    "!\r\n",
    "_ __ ___",
    "、。「」・…",
];

/// Repeated pieces: long runs meet limits that ordinary texts never do.
const REPEATED: &[(&str, usize)] = &[
    ("a", 300),
    ("ab", 500),
    ("Aa", 120),
    ("0", 500),
    ("9876", 100),
    (" ", 700),
    ("\n", 400),
    ("\t ", 200),
    ("\r\n", 200),
    ("-", 600),
    ("!?", 150),
    ("é", 300),
    ("e\u{301}", 200),
    ("\u{301}", 120),
    ("中", 300),
    ("ا", 200),
    ("👍", 150),
    ("👩‍👧", 60),
    ("\u{200b}", 100),
    ("\0", 100),
    ("\u{fffd}", 100),
    ("xyzzy", 400),
    ("the ", 250),
    ("_", 300),
    ("'s", 120),
    ("loremipsumdolorsitamet", 50),
];

/// The strings, for a vocabulary with these added tokens.
pub fn strings<'t>(added_tokens: impl Iterator<Item = &'t str>) -> impl Iterator<Item = String> {
    let mut strings = vec![String::new()];
    strings.extend(PIECES.iter().map(|&piece| piece.to_owned()));
    strings.extend(PIECES.iter().filter(|p| !p.ends_with(' ')).map(|piece| format!("{piece} {piece}")));
    strings.extend(REPEATED.iter().map(|&(piece, times)| piece.repeat(times)));
    strings.extend(pairs());
    for (i, token) in added_tokens.enumerate() {
        strings.push(token.to_owned());
        if i < TOKENS_VARIED {
            strings.extend(in_company(token, PIECES[(i * 37) % PIECES.len()]));
        }
    }
    strings.into_iter()
}

/// Pieces glued together. Steps that share no factor with anything bring every piece together with many others.
fn pairs() -> impl Iterator<Item = String> {
    const GLUE: [&str; 6] = ["", " ", "\n", "", "  ", ". "];
    (0..PAIRS).map(|i| {
        let (first, second) = (i % PIECES.len(), (i * 7_919 + i / PIECES.len() * 104_729) % PIECES.len());
        format!("{}{}{}", PIECES[first], GLUE[i % GLUE.len()], PIECES[second])
    })
}

/// An added token beside words, spaces, itself, a piece, and in the wrong letters.
fn in_company(token: &str, piece: &str) -> Vec<String> {
    let mut without_last = token.to_owned();
    without_last.pop();
    vec![
        format!("word{token}"),
        format!("{token}word"),
        format!("word{token}word"),
        format!("word {token} word"),
        format!("a  {token}\n\nb"),
        format!(" {token}"),
        format!("{token} "),
        format!("{token}{token}"),
        format!("{token} {token}  {token}"),
        format!("x{token}{token}y"),
        format!("_{token}1"),
        format!("é{token}中"),
        format!("{piece}{token}{piece}"),
        format!("{piece} {token} {piece}"),
        format!("<{token}>"),
        token.to_uppercase(),
        token.to_lowercase(),
        format!("{without_last} {token}"),
        without_last,
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_about_two_thousand_different_strings() {
        let strings: Vec<String> = super::strings(["<pad>", "<eos>"].into_iter()).collect();
        let different: std::collections::BTreeSet<&String> = strings.iter().collect();
        let bytes: usize = strings.iter().map(String::len).sum();
        assert!((1_800..2_200).contains(&different.len()), "{} of {}", different.len(), strings.len());
        assert!(bytes < 150_000, "{bytes}");
    }
}
