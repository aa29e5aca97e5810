#!/usr/bin/env python3
"""Writes the fields that FLAN v1's own code derives from the bundled rows.

    python3 tests/flan_fields.py --flan CHECKOUT

CHECKOUT is a checkout of github.com/google-research/FLAN, of which flan/tasks.py and the modules that it imports
are run as they are. Needs tensorflow and tensorflow_datasets besides, and tomllib, which Python has since 3.11;
seqio and t5 are not needed, as the few names of theirs that a task's preprocessors rely on are stood in for
below. The repository's tests need none of this: they read what was written, fixtures/flan_fields/<task>.jsonl,
a line for a row: {"task", "corpus", "split", "row", "fields"}, the row counted in its split as stored.

A task's preprocessors are its filters, the function that derives its fields and `format_options`, and no templates.
They get the rows of every split of the corpus that the task's definition takes examples from: the first 40, or as
many of them as fit into 40,000 bytes, but at least 8. What is left out of these:

- rows that a filter of FLAN's drops;
- rows at which FLAN's code stops, since it takes the first of a list that is empty: rows without a label, films
  without reviews;
- rows whose label is -1 although FLAN's code goes on: it takes the last of the options then;
- rows of wsc273 that are not ASCII: FLAN counts bytes by offsets that count characters, and cuts elsewhere.
"""
import argparse, functools, json, re, sys, tomllib, types
from pathlib import Path

import numpy
import tensorflow as tf
import tensorflow_datasets as tfds

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests/fixtures/flan_fields"
ROWS, ENOUGH, BYTES = 40, 8, 40_000


# -- seqio and t5, as far as they are called -------------------------------------------------------------------

class Any:
    """Stands for whatever is named or called in tasks.py and does not matter here: vocabularies, metrics."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Any()

    def __call__(self, *arguments, **options):
        return Any()


class Registry:
    """Gives back the tasks that were added."""
    tasks = {}

    @classmethod
    def add(cls, name, **parts):
        cls.tasks[name] = types.SimpleNamespace(**{"postprocess_fn": None, **parts})

    @classmethod
    def get(cls, name):
        return cls.tasks[name]


def map_over_dataset(function):
    """Of a function of an example, one of a dataset."""
    @functools.wraps(function)
    def of_dataset(dataset, *arguments, **options):
        return dataset.map(lambda example: function(example, *arguments, **options))
    return of_dataset


def stand_in(name, **parts):
    module = types.ModuleType(name)
    module.__path__ = []
    module.__getattr__ = Any().__getattr__
    for key, value in parts.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def flan_tasks(checkout):
    """FLAN's configurations, by task."""
    stand_in("seqio", map_over_dataset=map_over_dataset, TaskRegistry=Registry, TfdsDataSource=types.SimpleNamespace,
             utils=types.SimpleNamespace(map_over_dataset=map_over_dataset))
    stand_in("t5")
    for part, modules in {"data": ["glue_utils", "postprocessors", "preprocessors"], "evaluation": ["metrics"]}.items():
        stand_in(f"t5.{part}", **{m: stand_in(f"t5.{part}.{m}") for m in modules})
    sys.path.insert(0, str(checkout))
    from flan import tasks
    return tasks.TASK_CONFIGS


# -- Rows in, fields out ---------------------------------------------------------------------------------------

def definition(task):
    """The bundled definition, with what it takes from the one that it is like."""
    path, = ROOT.glob(f"template-defs/*/{task}.toml")
    own = tomllib.loads(path.read_text())
    return {**(definition(own["like"]) if "like" in own else {}), **own}


def as_json(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, numpy.ndarray):
        return [as_json(v) for v in value.tolist()]
    return value.item() if isinstance(value, numpy.generic) else value


class Counted:
    """A dataset whose rows keep their number, through what FLAN's steps do to it: they map and filter."""

    def __init__(self, dataset):
        self.dataset = dataset

    def map(self, function):
        return Counted(self.dataset.map(lambda i, example: (i, function(example))))

    def filter(self, function):
        return Counted(self.dataset.filter(lambda i, example: function(example)))


def is_ascii(text):
    return tf.strings.length(text) == tf.strings.length(text, unit="UTF8_CHAR")


def fields_of_split(rows, preprocessors):
    """Gives (row, fields) for each row that FLAN's code gives fields for, and why others are left out."""
    counted = functools.reduce(lambda dataset, step: step(dataset), preprocessors, Counted(rows.enumerate()))
    found, left_out = [], []
    iterator = iter(counted.dataset)
    while True:
        try:
            i, fields = next(iterator)
            fields = {name: as_json(value.numpy()) for name, value in fields.items()}
            if fields.get("label") == -1:
                left_out.append("the label is -1")
            else:
                found.append((int(i), dict(sorted(fields.items()))))
        except tf.errors.InvalidArgumentError as error:
            left_out.append(error.message.splitlines()[0].split(": ")[-1])
        except StopIteration:
            return found, left_out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flan", type=Path, required=True, metavar="CHECKOUT", help="a checkout of FLAN's repository")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="where to write, %(default)s if not given")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("*.jsonl"):
        old.unlink()
    for task, config in sorted(flan_tasks(arguments.flan).items()):
        corpus, version = definition(task)["tfds"].split(":")
        builder = tfds.builder_from_directory(ROOT / "data" / corpus / version)
        lines = []
        for split in sorted({re.match(r"\w+", s)[0] for s in definition(task)["splits"].values()}):
            rows = builder.as_dataset(split=split, shuffle_files=False,
                                      read_config=tfds.ReadConfig(interleave_cycle_length=1)).take(ROWS)
            steps = config.preprocessors
            if task == "wsc273":
                steps = [lambda dataset: dataset.filter(lambda row: is_ascii(row["text"]))] + steps
            found, left_out = fields_of_split(rows, steps)
            size = kept = 0
            for row, fields in found:
                line = json.dumps({"task": task, "corpus": f"{corpus}:{version}", "split": split, "row": row,
                                   "fields": fields}, ensure_ascii=False, separators=(",", ":")) + "\n"
                size += len(line.encode())
                if kept < ENOUGH or size <= BYTES:
                    lines.append(line)
                    kept += 1
            print(f"{task} {split}: {kept} of {len(list(rows))} rows")
            for why in left_out:
                print(f"    left out: {why}")
        (arguments.out / f"{task}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
