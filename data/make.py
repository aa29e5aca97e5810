#!/usr/bin/env python3
"""Writes the bundled corpora: from rows/*.jsonl to TensorFlow Datasets' directory layout.

    python3 data/make.py            write everything again
    python3 data/make.py --check    write nothing; exit 1 if a file on disk differs, is missing or is stale

The sentences are flanc's own (rows/<name>[.<config>].jsonl, one {"split": ..., "row": ...} a line), in the
shape of the corpora that bear these names. The feature trees are ../schemas/<name>[/<config>]/<version>/,
except that of `feature_kinds`, a corpus of every feature kind there is, which lies beside its rows.
Values in rows: text is a string or {"$b64": ...}, a ClassLabel its name (null or -1: unknown), a Sequence
or Dataset of dicts a list of objects (so is TranslationVariableLanguages, sorted by language and text),
an absent optional feature an absent key. The rows of math_dataset are the one file of rows/ written here.

Only the standard library is used, so that the bytes can be made again anywhere: TFRecord framing, CRC-32C
and the wire form of tf.train.Example are written out below.
"""
import base64, hashlib, json, random, struct, sys, tomllib, zlib
from pathlib import Path

DATA = Path(__file__).parent
ROWS = DATA / "rows"
SCHEMAS = DATA.parent / "schemas"
DEFINITIONS = DATA.parent / "template-defs"

# The splits that have more than one shard; the corpora themselves are those that have rows.
SHARDS = {"feature_kinds": {"train": 2, "test": 2}, "gem/common_gen": {"train": 2}, "glue/sst2": {"train": 2}}
# Corpora that no definition names, and their versions.
UNNAMED = {"feature_kinds": "1.0.0"}
# What TFDS loads when no config is named; only datasets of which that config is bundled can say so.
DEFAULT_CONFIG = {"ai2_arc": "ARC-Challenge", "anli": "r1", "gem": "common_gen", "glue": "cola",
                  "imdb_reviews": "plain_text", "math_dataset": "algebra__linear_1d",
                  "opinion_abstracts": "rotten_tomatoes", "paws_wiki": "labeled_final_tokenized", "squad": "v1.1",
                  "trivia_qa": "rc", "wmt16_translate": "cs-en"}
# What TFDS's builders name as the inputs and targets of `as_supervised`.
SUPERVISED = {"aeslc": ["email_body", "subject_line"], "ag_news_subset": ["description", "label"],
              "cnn_dailymail": ["article", "highlights"], "gigaword": ["document", "summary"],
              "imdb_reviews/plain_text": ["text", "label"], "multi_news": ["document", "summary"],
              "math_dataset/algebra__linear_1d": ["question", "answer"], "newsroom": ["text", "summary"],
              "para_crawl/enda": ["en", "da"], "para_crawl/enes": ["en", "es"], "samsum": ["dialogue", "summary"],
              "sentiment140": ["text", "polarity"], "wmt14_translate/fr-en": ["fr", "en"],
              "xsum": ["document", "summary"], "yelp_polarity_reviews": ["text", "label"],
              **{f"wmt16_translate/{code}-en": [code, "en"] for code in ["cs", "de", "fi", "ro", "ru", "tr"]}}


# -- tf.train.Example and TFRecord, as bytes ------------------------------------------------------------------

def varint(n):
    n &= 2**64 - 1                                   # a negative int64 takes ten bytes
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def field(number, payload):
    """A length-delimited field: wire type 2."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def bytes_list(values):
    return field(1, b"".join(field(1, v) for v in values))


def float_list(values):
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)) if values else b"")


def int64_list(values):
    return field(3, field(1, b"".join(map(varint, values))) if values else b"")


def example(features):
    """Keys sorted: protobuf leaves the order of a map open, and these files should be the same every time."""
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, features[key])) for key in sorted(features)))


def crc_table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)     # CRC-32C, reflected
        yield n


CRC = list(crc_table())


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(payload):
    length = struct.pack("<Q", len(payload))
    return length + masked_crc(length) + payload + masked_crc(payload)


# -- from a row to the features of an Example -----------------------------------------------------------------

EACH = object()                                      # a step into every element of a sequence
TEXT = {"text": {}}


def leaves(feature, steps=()):
    """The leaves of a feature tree, each with the steps that lead to it."""
    if "featuresDict" in feature:
        for name, inner in feature["featuresDict"]["features"].items():
            yield from leaves(inner, (*steps, name))
    elif "sequence" in feature:
        yield from leaves(feature["sequence"]["feature"], (*steps, EACH))
    elif feature.get("translation", {}).get("variableLanguagesPerExample"):
        yield (*steps, EACH, "language"), TEXT
        yield (*steps, EACH, "translation"), TEXT
    elif "translation" in feature:
        for language in feature["translation"]["languages"]:
            yield (*steps, language), TEXT
    else:
        yield steps, feature


def pick(value, steps):
    for i, step in enumerate(steps):
        if step is EACH:
            return [pick(v, steps[i + 1:]) for v in value]
        if value is None or step not in value:
            return None
        value = value[step]
    return value


def flat(value):
    return [x for v in value for x in flat(v)] if isinstance(value, list) else [value]


def text_bytes(value):
    return base64.b64decode(value["$b64"]) if isinstance(value, dict) else value.encode()


def deflate(data):
    """Huffman codes alone: which repeats a deflater finds differs between zlib builds, and with it the bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def encode_leaf(leaf, values, labels):
    """One leaf's values (a list, already flat but for the dimensions of a tensor) as a tf.train.Feature."""
    if "text" in leaf:
        return bytes_list([text_bytes(v) for v in values])
    if "classLabel" in leaf:
        number = lambda v: -1 if v is None else labels.index(v) if isinstance(v, str) else v
        return int64_list([number(v) for v in values])
    dtype, encoding = leaf["tensor"]["dtype"], leaf["tensor"].get("encoding", "none")
    if encoding != "none":                           # the array's own buffer, little-endian
        code = {"int32": "i", "int64": "q", "uint8": "B", "float32": "f", "float64": "d"}[dtype]
        buffers = [struct.pack(f"<{len(flat(v))}{code}", *flat(v)) for v in values]
        return bytes_list([deflate(b) if encoding == "zlib" else b for b in buffers])
    values = flat(values)
    if dtype == "string":
        return bytes_list([text_bytes(v) for v in values])
    if dtype.startswith("float"):                    # float64 too is stored as float32
        narrow = "<e" if dtype == "float16" else "<f"
        return float_list([struct.unpack(narrow, struct.pack(narrow, v))[0] for v in values])
    return int64_list([int(v) for v in values])


def encode_row(tree, row, labels):
    features = {}
    for steps, leaf in leaves(tree):
        key = "/".join(s for s in steps if s is not EACH)
        value, depth = pick(row, steps), steps.count(EACH)
        optional = leaf.get("tensor", {}).get("optional")
        if value is None and "classLabel" not in leaf:
            if not optional:
                raise SystemExit(f"{key} is missing in {json.dumps(row)[:200]}")
            continue
        values = [value] if depth == 0 else value
        for level in range(depth - 1):               # two or more levels are stored ragged: outermost lengths first
            features[f"{key}/ragged_row_lengths_{level}"] = int64_list([len(v) for v in values])
            values = [x for v in values for x in v]
        features[f"{key}/ragged_flat_values" if depth > 1 else key] = encode_leaf(leaf, values, labels.get(key.replace("/", "-"), []))
    return example(features)


# -- a corpus as files ----------------------------------------------------------------------------------------

def equations(count, rng):
    """Linear equations in one unknown with a whole answer, their numbers growing from row to row."""
    for i in range(count):
        size, answer, unknown = 9 + 3 * i, rng.randint(-40, 60), rng.choice("bcdfghjklmnpqrstuvwxyz")
        left = right = []
        while sum(left) == sum(right):               # each side: none to three multiples of the unknown
            left, right = ([rng.choice([-1, 1]) * rng.randint(1, size) for _ in range(n)] for n in (1 + i % 3, i % 2))
        here = rng.choice([0, 1, 1]) * rng.randint(-20 * size, 20 * size)
        there = (sum(left) - sum(right)) * answer + here
        sides = [linear(left, here, unknown), linear(right, there, unknown)]
        rng.shuffle(sides)
        yield {"question": f"Solve {sides[0]} = {sides[1]} for {unknown}.", "answer": str(answer)}


def linear(factors, constant, unknown):
    """`-3*x + x - 12`"""
    terms = [f"{'-' if f < 0 else ''}{'' if abs(f) == 1 else f'{abs(f)}*'}{unknown}" for f in factors]
    terms += [str(constant)] if constant or not terms else []
    return " + ".join(terms).replace("+ -", "- ")


def corpora():
    """(corpus, version) of every file of rows; the versions are those that the definitions name."""
    named = dict(UNNAMED)
    for definition in DEFINITIONS.glob("*/*.toml"):
        if "tfds" in (keys := tomllib.loads(definition.read_text(encoding="utf-8"))):
            corpus, _, version = keys["tfds"].partition(":")
            named[corpus] = version
    rows = {corpus for corpus in named if corpus.startswith("math_dataset") or rows_file(corpus).is_file()}
    strangers = sorted(p.name for p in ROWS.glob("*.jsonl") if not p.name.endswith(".golden.jsonl")
                       and p not in {rows_file(corpus) for corpus in named})
    if strangers:
        sys.exit(f"no definition names the corpus of rows/{', rows/'.join(strangers)}")
    return sorted((corpus, named[corpus]) for corpus in rows)


def rows_file(corpus):
    return ROWS / (corpus.replace("/", ".") + ".jsonl")


def row_lines(corpus):
    if corpus.startswith("math_dataset"):
        rng = random.Random("flanc " + corpus)
        return [json.dumps({"split": split, "row": row})
                for split, count in (("train", 60), ("test", 10)) for row in equations(count, rng)]
    return rows_file(corpus).read_text(encoding="utf-8").split("\n")[:-1]


def corpus_files(corpus, version):
    """Yields (path, bytes) for every file of one corpus."""
    name, _, config = corpus.partition("/")
    special = corpus == "feature_kinds"
    found = sorted(ROWS.glob("feature_kinds.*.*")) if special else sorted((SCHEMAS / corpus / version).glob("*"))
    schema = {p.name.removeprefix("feature_kinds."): p.read_bytes() for p in found if p.name.endswith((".labels.txt", "features.json"))}
    tree = json.loads(schema["features.json"])
    labels = {file.removesuffix(".labels.txt"): [line.strip() for line in text.decode().splitlines() if line.strip()]
              for file, text in schema.items() if file.endswith(".labels.txt")}
    out = DATA / corpus / version
    yield from ((out / file, text) for file, text in schema.items())

    by_split = {}
    lines = row_lines(corpus)
    if corpus.startswith("math_dataset"):
        yield rows_file(corpus), "".join(line + "\n" for line in lines).encode()
    for line in map(json.loads, lines):
        by_split.setdefault(line["split"], []).append(line["row"])
    splits = []
    for split, rows in by_split.items():
        # TFDS shuffles by a hash of each example's key; here the key is the position.
        order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(f"{corpus}/{split}/{i}".encode()).digest())
        payloads = [encode_row(tree, rows[i], labels) for i in order]
        n = SHARDS.get(corpus, {}).get(split, 1)
        bounds = [round(len(rows) * i / n) for i in range(n + 1)]
        for i in range(n):
            file = f"{name}-{split}.tfrecord-{i:05}-of-{n:05}"
            yield out / file, b"".join(map(tfrecord, payloads[bounds[i]:bounds[i + 1]]))
        splits.append({"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": split,
                       "numBytes": str(sum(map(len, payloads))),
                       "shardLengths": [str(b - a) for a, b in zip(bounds, bounds[1:])]})
    about = ("Every feature kind that TensorFlow Datasets can store, a few rows of each." if special else
             f"Sentences of flanc's own, in the shape of {corpus}; none of them is from the corpus of that name.")
    info = {"citation": "@misc{flanc, title={flanc's bundled corpora}, note={sentences of the project's own}}",
            "configDescription": about if config else "", "configName": config, "description": about,
            "fileFormat": "tfrecord", "moduleName": "flanc.data.make", "name": name,
            "redistributionInfo": {"license": "CC0-1.0"}, "releaseNotes": {version: "Written for flanc."},
            "splits": splits, "version": version}
    if corpus in SUPERVISED:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in SUPERVISED[corpus]]}}
    info = {key: value for key, value in info.items() if value != ""}     # proto3 JSON leaves defaults out
    yield out / "dataset_info.json", json.dumps(info, indent=2, sort_keys=True).encode() + b"\n"


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: make.py [--check]")
    bundled = corpora()
    files = {path: content for corpus, version in bundled for path, content in corpus_files(corpus, version)}
    for name, config in DEFAULT_CONFIG.items():
        if not any(corpus == f"{name}/{config}" for corpus, _ in bundled):
            continue
        files[DATA / name / ".config" / "metadata.json"] = json.dumps({"default_config_name": config}).encode()
    on_disk = {p for corpus, version in bundled for p in (DATA / corpus / version).glob("*")}
    stale = sorted(on_disk - set(files))
    changed = [p for p, content in sorted(files.items()) if not p.is_file() or p.read_bytes() != content]
    if sys.argv[1:]:
        for path in stale + changed:
            print("stale" if path in stale else "differs", path.relative_to(DATA), file=sys.stderr)
        sys.exit(1 if stale or changed else 0)
    for path in stale:
        path.unlink()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path])


if __name__ == "__main__":
    main()
