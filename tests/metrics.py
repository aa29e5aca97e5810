#!/usr/bin/env python3
"""What sacrebleu and rouge-score compute, for the metrics of `flanc eval` to be compared with.

    python3 tests/metrics.py make      writes tests/fixtures/metrics.json anew

Needs sacrebleu 2.5.1 and rouge-score 0.1.2. The pairs are put together by a seed from pieces that tokenizers disagree
about: numbers, entities, quotation marks, dashes, white space of all kinds, letters outside ASCII, nothing at all.
For each pair: the tokens of mteval-v13a of its answer, ROUGE-1, ROUGE-2 and ROUGE-L. For each corpus, a stretch of
the pairs: BLEU and chrF2.
"""
import json, pathlib, random, sys

import sacrebleu
from rouge_score import rouge_scorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

PIECES = [
    "the cat sat on the mat", "The Cat sat.", "a dog, a fox and 1,234.56 hens", "3.14 is not 3,14", "1.", ".5", "9-5",
    "2020-11-23", "U.S.A.", "e.g., this", "well-known", "state-\nof-the-art", "line one\nline two", "tab\there",
    "&quot;quoted&quot; &amp; &lt;b&gt;", "&amp;lt; twice", "&nbsp;", "<skipped> gone", "it's 'single' \"double\"",
    "“curly” ‘quotes’", "« guillemets »", "em—dash", "en–dash", "ellipsis…", "dots...", "what?!", "(in brackets)",
    "[1] {2} <3>", "50% of $100 + €20 = ?", "a/b\\c|d", "user@example.org", "#hashtag @name", "naïve façade", "Ärger im Öl",
    "ça va", "ISTANBUL İstanbul ıstanbul", "ΣΊΣΥΦΟΣ σίσυφος", "straße STRASSE", "日本語のテキスト", "中文，句子。", "한국어 문장",
    "नमस्ते दुनिया", "🙂 emoji 👩‍👩‍👧", "\u00a0no-break\u00a0space", "thin\u2009space", "\u2028separator", "\u0085next line",
    "\x1cfile\x1dgroup\x1erecord\x1funit", "zero\u200bwidth", "K (kelvin) ﬁ (ligature)", "e\u0301 combining", "x^2_y~z`",
    "running runs ran runner", "don't can't won't", "A", "a", "I", ",", ".", "-", "'", "...", "", " ", "\n", "\t ",
    "the the the the", "the", "one two three four five six seven eight nine ten", "ten nine eight seven", "0", "007",
    "<unk> <s> </s>", "A.B.C", "1.000.000,00", "10-", "-10", "3-", "a.b", "1a.2b", "5.a", "a.5", "$1,000", "x" * 60,
]


def text(rng, most):
    pieces = rng.choices(PIECES, k=rng.randint(0, most))
    return "".join(piece + rng.choice([" ", " ", " ", "", ", ", ". ", "\n"]) for piece in pieces)


def pair(rng):
    reference = text(rng, 4)
    kind = rng.randrange(4)
    if kind == 0:
        answer = text(rng, 4)
    elif kind == 1:
        answer = reference
    else:
        # The same words, some of them gone, doubled, exchanged or in another case.
        words = reference.split(" ")
        answer = []
        for word in words:
            fate = rng.randrange(8)
            if fate == 0:
                continue
            answer += [word, word] if fate == 1 else [word.swapcase()] if fate == 2 else [word]
        if kind == 3:
            answer += text(rng, 2).split(" ")
        answer = " ".join(answer)
    return answer, reference


def make(path):
    rng = random.Random(20261123)
    pairs = [(piece, piece) for piece in PIECES] + [pair(rng) for _ in range(320)]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    tokenizer = Tokenizer13a()
    rows = []
    for answer, reference in pairs:
        scores = scorer.score(reference, answer)
        rows.append({
            "answer": answer, "reference": reference, "tokens": tokenizer(answer.rstrip()).split(),
            "rouge": [scores[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")],
        })
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    stretches = [(0, len(pairs))] + [(i, i + 1) for i in range(0, len(pairs), 3)]
    stretches += [(i, min(i + 7, len(pairs))) for i in range(0, len(pairs), 7)]
    corpora = []
    for start, end in stretches:
        answers, references = zip(*pairs[start:end])
        corpora.append({
            "start": start, "end": end,
            "bleu": bleu.corpus_score(answers, [references]).score,
            "chrf": chrf.corpus_score(answers, [references]).score,
        })
    made_by = {"sacrebleu": sacrebleu.__version__, "bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    lines = lambda items: ",\n".join(json.dumps(item) for item in items)
    path.write_text(f'{{"made_by": {json.dumps(made_by)},\n"pairs": [\n{lines(rows)}],\n"corpora": [\n{lines(corpora)}]}}\n')
    print(f"{len(rows)} pairs, {len(corpora)} corpora")


if sys.argv[1:] == ["make"]:
    make(pathlib.Path(__file__).parent / "fixtures" / "metrics.json")
else:
    sys.exit(__doc__)
