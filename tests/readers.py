#!/usr/bin/env python3
"""Reads outputs of `flanc compile` as their users do, and compares what comes out.

    python3 tests/readers.py OUT...

Needs pyarrow, polars and datasets. Each OUT, of whatever profile, is read by pyarrow, file by file; by polars, by the
glob that the card names; and by Hugging Face datasets in four ways: the directory, by its card (`load_dataset(OUT)`),
and a glob, each whole and streamed; its tasks likewise, whole. All have to give the same rows in the same order, of the right types, and nothing
of the provenance files that lie beside them.
"""
import json, sys, tempfile
from pathlib import Path

import datasets
import polars
import pyarrow
import pyarrow.parquet

COLUMNS = {
    "packed": {"input_ids": "int32", "labels": "int32", "seq_lengths": "int32"},
    "sft": {"input_ids": "int32", "labels": "int32", "attention_mask": "int8"},
    "megatron": {"input_ids": "int32", "seq_start_id": "int32", "loss_mask": "int8"},
}
PROVENANCE = {
    "task": pyarrow.string(), "split": pyarrow.string(), "row": pyarrow.uint64(), "template": pyarrow.string(),
    "kind": pyarrow.string(), "repeat": pyarrow.uint32(), "target_start": pyarrow.uint32(), "length": pyarrow.uint32(),
}
POLARS = {"int32": polars.Int32, "int8": polars.Int8}


def expect(condition, message):
    if not condition:
        sys.exit(f"readers.py: {message}")


def same(what, expected, found):
    expect(len(expected) == len(found), f"{what}: {len(found)} rows, expected {len(expected)}")
    for i, (a, b) in enumerate(zip(expected, found)):
        expect(a == b, f"{what}: row {i} differs\n{a}\n{b}")


def list_of(value_type):
    return pyarrow.list_(pyarrow.field("element", value_type, nullable=False))


def check_mixture(out, profile, split, files):
    columns = COLUMNS[profile]
    tables = [pyarrow.parquet.read_table(out / f) for f in files]
    for table in tables:
        for name, kind in columns.items():
            expect(table.schema.field(name).type == list_of(getattr(pyarrow, kind)()), f"{name}: {table.schema}")
            expect(not table.schema.field(name).nullable, f"{name} may be null")
        expect(table.schema.names == list(columns), f"columns {table.schema.names}")
    rows = pyarrow.concat_tables(tables).to_pylist()
    check_rows(profile, rows)

    glob = f"mixture/{split}-?????-of-{len(files):05}.parquet"
    frame = polars.read_parquet(out / glob)
    expected = {name: polars.List(POLARS[kind]) for name, kind in columns.items()}
    expect(dict(frame.schema) == expected, f"polars: {frame.schema}")
    same(f"polars, {glob}", rows, frame.to_dicts())

    # Four ways; the cache is one of its own, so that no earlier run answers.
    for how, arguments in [("card", {"path": str(out)}),
                           ("glob", {"path": "parquet", "data_files": {split: str(out / glob)}})]:
        for streaming in [False, True]:
            with tempfile.TemporaryDirectory() as cache:
                found = datasets.load_dataset(**arguments, split=split, streaming=streaming, cache_dir=cache)
                what = f"datasets by {how}, {'streamed' if streaming else 'whole'}"
                expect(list(found.features) == list(columns), f"{what}: {found.features}")
                for name, kind in columns.items():
                    expect(found.features[name].feature.dtype == kind, f"{what}: {found.features}")
                same(what, rows, list(found))
                if streaming:
                    expect(found.num_shards == len(files), f"{what}: {found.num_shards} shards of {len(files)}")
    return len(rows)


def check_rows(profile, rows):
    """What a trainer of the profile relies on."""
    for row in rows:
        ids = row["input_ids"]
        if profile == "packed":
            expect(sum(row["seq_lengths"]) == len(ids) == len(row["labels"]), "seq_lengths do not add up")
            start = 0
            for length in row["seq_lengths"]:
                expect(row["labels"][start] == -100, "the first token of a segment is trained")
                start += length
        elif profile == "sft":
            expect(row["attention_mask"] == [1] * len(ids) and len(row["labels"]) == len(ids), "an sft row")
        else:
            # megatron.bridge.data: each sub-sequence trains ids[s+1:e] under loss_mask[s:e-1].
            ends = row["seq_start_id"][1:] + [len(ids)]
            for start, end in zip(row["seq_start_id"], ends):
                expect(any(row["loss_mask"][start:end - 1]), "a segment that trains nothing")
                expect(row["loss_mask"][end - 1] == 0, "loss after the end of a segment")


def check_file(out, file, rows):
    """Any other file: pyarrow and polars agree, and provenance is text and numbers."""
    table = pyarrow.parquet.read_table(out / file)
    expect(table.num_rows == rows, f"{file}: {table.num_rows} rows, {rows} in the manifest")
    if file.endswith(".provenance.parquet"):
        packed = pyarrow.types.is_list(table.schema.field("row").type)
        expected = {name: list_of(kind) if packed else kind for name, kind in PROVENANCE.items()}
        expect({f.name: f.type for f in table.schema} == expected, f"{file}: {table.schema}")
    same(f"polars, {file}", table.to_pylist(), polars.read_parquet(out / file).to_dicts())


def check_task(out, task, files):
    """`load_dataset(OUT, "rte")` is a task's own shards, `load_dataset(OUT, "eval-cb")` those of one held out."""
    held_out = task["role"] == "held-out"
    folder = f"{'eval' if held_out else 'tasks'}/{task['task']}/"
    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(str(out), ("eval-" if held_out else "") + task["task"], cache_dir=cache)
        for split, rows in found.items():
            paths = [f["path"] for f in files if f["path"].startswith(folder + split + "-")]
            tables = [pyarrow.parquet.read_table(out / p) for p in paths if not p.endswith(".provenance.parquet")]
            same(f"datasets, {folder}{split}", pyarrow.concat_tables(tables).to_pylist(), list(rows))
    there = {split for split, entry in task["splits"].items() if entry["prompts"]}
    expect(set(found) == there, f"{folder}: splits {set(found)}, not {there}")


def check(out):
    manifest = json.loads((out / "manifest.json").read_text())
    profile = manifest["recipe"]["output"]["profile"]
    mixture = {}
    for file in manifest["files"]:
        folder, _, name = file["path"].partition("/")
        if folder == "mixture" and not name.endswith(".provenance.parquet"):
            mixture.setdefault(name.split("-")[0], []).append(file["path"])
        else:
            check_file(out, file["path"], file["rows"])
    expect("train" in mixture, "no training mixture")
    rows = sum(check_mixture(out, profile, split, files) for split, files in mixture.items())
    with tempfile.TemporaryDirectory() as cache:
        splits = set(datasets.load_dataset(str(out), cache_dir=cache))
    expect(splits == set(mixture), f"load_dataset gives the splits {splits}, not {set(mixture)}")
    for task in manifest["tasks"]:
        check_task(out, task, manifest["files"])
    print(f"{out.name}: profile {profile}, {len(manifest['files'])} files, {rows} rows of {', '.join(mixture)}")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    for argument in sys.argv[1:] or sys.exit(__doc__):
        check(Path(argument).resolve())
    print(f"pyarrow {pyarrow.__version__}, polars {polars.__version__}, datasets {datasets.__version__}")
