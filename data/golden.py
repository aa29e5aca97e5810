#!/usr/bin/env python3
"""Writes rows/feature_kinds.golden.jsonl: what TensorFlow Datasets itself decodes from feature_kinds/1.0.0.

    python3 data/golden.py [DIRECTORY]      rewrite the golden rows; or print the rows of another corpus's version directory

Needs tensorflow_datasets and tensorflow (made with 4.9.7 and 2.19.1). flanc and its tests do not: they only
compare with the file. Run it after make.py has changed the corpus.

Canonical JSON, one row a line, splits as dataset_info.json lists them, shards in order: keys sorted by code
point, compact, UTF-8, escapes only for `"`, `\\` and U+0000-1F. Text is a string, or {"$b64": ...} where it is
not UTF-8; a ClassLabel the bare integer; a float "f16:", "f32:" or "f64:" and its big-endian IEEE bits in hex;
a Sequence of dicts an object of arrays, a Dataset an array of objects; a missing optional TFDS's default.
"""
import base64, json, os, sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

DATA = Path(__file__).parent


def plain(value):
    """A decoded value as what json.dumps writes canonically."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (tf.data.Dataset, tf.RaggedTensor)):
        return [plain(v) for v in value]
    if isinstance(value, tf.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.ndim:
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        value = value[()]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"$b64": base64.b64encode(value).decode()}
    if isinstance(value, np.floating):
        return f"f{value.itemsize * 8}:{value.tobytes()[::-1].hex()}"          # little-endian machines only
    return bool(value) if isinstance(value, np.bool_) else int(value)


def lines(directory):
    builder = tfds.builder_from_directory(directory)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)       # shards one after the other
    for split in builder.info.splits:
        for row in builder.as_dataset(split=split, shuffle_files=False, read_config=in_order):
            yield json.dumps(plain(row), ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


if len(sys.argv) > 1:
    sys.stdout.writelines(lines(sys.argv[1]))
else:
    with open(DATA / "rows" / "feature_kinds.golden.jsonl", "w", encoding="utf-8") as out:
        out.writelines(lines(DATA / "feature_kinds" / "1.0.0"))
